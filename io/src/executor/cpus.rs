//! Which CPUs the process may use: its affinity mask, and how many of them its cgroups pay for; binds none of them.

use std::fs;
use std::io;
use std::path::Path;

/// What [`usable_cpus`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsableCpus {
    /// CPUs to run on: the first of `allowed`, as many as the quota pays for.
    pub cpus: Vec<usize>,
    /// All CPUs of the affinity mask.
    pub allowed: Vec<usize>,
    /// CPUs that the tightest quota of the cgroups pays for, rounded up; `None` without a quota.
    pub quota: Option<usize>,
}

/// The CPUs of the affinity mask, capped by the quota of the cgroup (v1 or v2) and of those above it.
///
/// # Errors
/// The kernel has more CPUs than the mask has room for.
pub fn usable_cpus() -> io::Result<UsableCpus> {
    let allowed = affinity()?;
    // Without /proc or without cgroups there is no quota.
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let quota = quota(&groups, Path::new("/sys/fs/cgroup"));
    let count = quota.map_or(allowed.len(), |quota| quota.clamp(1, allowed.len()));
    Ok(UsableCpus { cpus: allowed[..count].to_vec(), allowed, quota })
}

fn affinity() -> io::Result<Vec<usize>> {
    // SAFETY: a mask is an array of integers, for which zeros are the empty mask.
    let mut mask: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the mask is ours and its size is that of its type.
    let outcome = unsafe { libc::sched_getaffinity(0, size_of_val(&mask), &raw mut mask) };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    let count = usize::try_from(libc::CPU_SETSIZE).expect("a count of CPUs");
    // SAFETY: `cpu` is below the size of the mask.
    let is_set = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &mask) };
    let cpus: Vec<usize> = (0..count).filter(is_set).collect();
    assert!(!cpus.is_empty(), "a running thread may run somewhere");
    Ok(cpus)
}

/// The smallest quota of the groups that `groups` (/proc/self/cgroup) names and of all above them, in whole CPUs.
fn quota(groups: &str, root: &Path) -> Option<usize> {
    let mut smallest = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let is_unified = controllers.is_empty();
        if !is_unified && !controllers.split(',').any(|controller| controller == "cpu") {
            continue;
        }
        // v1 mounts each set of controllers in a folder of its own, usually linked as `cpu`.
        let mount = if is_unified { root.to_owned() } else { root.join("cpu") };
        let read = if is_unified { quota_v2 } else { quota_v1 };
        let group = Path::new(group.trim_start_matches('/'));
        // In a container the path is often that of the host: then only the mount's own folder is there.
        for folder in group.ancestors() {
            let cpus = read(&mount.join(folder));
            smallest = [smallest, cpus].into_iter().flatten().min();
        }
    }
    smallest
}

/// `cpu.max`: quota or `max`, and period, in microseconds.
fn quota_v2(folder: &Path) -> Option<usize> {
    let text = fs::read_to_string(folder.join("cpu.max")).ok()?;
    let mut words = text.split_whitespace();
    whole_cpus(words.next()?.parse().ok()?, words.next()?.parse().ok()?)
}

/// `cpu.cfs_quota_us`, −1 without one, and `cpu.cfs_period_us`.
fn quota_v1(folder: &Path) -> Option<usize> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<i64>().ok();
    whole_cpus(read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)
}

fn whole_cpus(quota_us: i64, period_us: i64) -> Option<usize> {
    let quota_us = u64::try_from(quota_us).ok().filter(|quota| *quota > 0)?;
    let period_us = u64::try_from(period_us).ok().filter(|period| *period > 0)?;
    usize::try_from(quota_us.div_ceil(period_us)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy;
    use std::path::PathBuf;

    /// A folder of cgroup files, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn with(files: &[(&str, &str)]) -> Self {
            let folder = std::env::temp_dir().join(format!("coulee-cpus-{:016x}", entropy::random_u64()));
            for (name, text) in files {
                let path = folder.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn the_tightest_quota_of_a_unified_tree_wins_rounded_up() {
        let folder = Folder::with(&[
            ("cpu.max", "max 100000\n"),
            ("a/cpu.max", "150000 100000\n"),
            ("a/b/cpu.max", "400000 100000\n"),
        ]);
        assert_eq!(quota("0::/a/b\n", &folder.0), Some(2));
        assert_eq!(quota("0::/a/missing\n", &folder.0), Some(2));
        assert_eq!(quota("0::/\n", &folder.0), None);
    }

    #[test]
    fn a_quota_of_the_first_version_is_read() {
        let files = [("cpu/a/cpu.cfs_quota_us", "50000\n"), ("cpu/a/cpu.cfs_period_us", "100000\n")];
        let folder = Folder::with(&files);
        assert_eq!(quota("3:cpu,cpuacct:/a\n2:memory:/b\n", &folder.0), Some(1));
        assert_eq!(quota("3:cpuset:/a\n", &folder.0), None);
        let unbound = Folder::with(&[("cpu/cpu.cfs_quota_us", "-1\n"), ("cpu/cpu.cfs_period_us", "100000\n")]);
        assert_eq!(quota("3:cpu:/\n", &unbound.0), None);
    }

    #[test]
    fn nonsense_in_cgroup_files_is_no_quota() {
        let folder = Folder::with(&[("cpu.max", "lots\n"), ("a/cpu.max", ""), ("b/cpu.max", "100000 0\n")]);
        for groups in ["", "0", "0::", "0::/a", "0::/b", "garbage\n:::\n"] {
            assert_eq!(quota(groups, &folder.0), None, "{groups:?}");
        }
    }

    #[test]
    fn usable_cpus_are_the_first_of_the_mask() {
        let found = usable_cpus().unwrap();
        assert!(!found.cpus.is_empty());
        assert!(found.allowed.starts_with(&found.cpus));
        assert_eq!(found.cpus.len(), found.quota.map_or(found.allowed.len(), |quota| quota.min(found.allowed.len())));
    }
}
