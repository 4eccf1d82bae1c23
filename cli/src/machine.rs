//! What this machine has: owns the reading of /proc and of the cgroup; decides no default.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use coulee_server::config::{Machine, parse_cpus};

const CGROUPS: &str = "/sys/fs/cgroup";

/// Reads it for a broker whose data lies in `data_dir`, which need not exist.
pub(crate) fn read(data_dir: &Path) -> Machine {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // The quota of the cgroup, rounded, is in this number too.
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    let cpus = mask(&status).unwrap_or_else(|| (0..usable).filter_map(|cpu| u16::try_from(cpu).ok()).collect());
    let cpu_quota = (usable < cpus.len()).then(|| u16::try_from(usable).unwrap_or(u16::MAX));
    Machine {
        cpu_quota,
        cpus,
        memory_bytes: memory_bytes(),
        disk_bytes: disk_bytes(data_dir),
        log_is_terminal: io::stderr().is_terminal(),
    }
}

/// The CPUs that the process may run on.
fn mask(status: &str) -> Option<Vec<u16>> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    parse_cpus(list).filter(|cpus| !cpus.is_empty())
}

/// The machine's, or the least limit of the cgroups around the process.
fn memory_bytes() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = cgroup_folders(&own)
        .into_iter()
        .filter_map(|folder| fs::read_to_string(folder.join("memory.max")).ok()?.trim().parse::<u64>().ok());
    limits.chain(total(&meminfo)).min().unwrap_or(1 << 30)
}

fn total(meminfo: &str) -> Option<u64> {
    let kibibytes = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"))?;
    kibibytes.trim().parse::<u64>().ok()?.checked_mul(1_024)
}

/// The folder of the process's cgroup (version 2) and those around it.
fn cgroup_folders(own: &str) -> Vec<PathBuf> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    Path::new(path)
        .ancestors()
        .map(|folder| Path::new(CGROUPS).join(folder.strip_prefix("/").unwrap_or(folder)))
        .collect()
}

/// The size of the filesystem that a path is on, or will be.
fn disk_bytes(path: &Path) -> u64 {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = absolute.ancestors().find(|folder| folder.exists()).unwrap_or_else(|| Path::new("/"));
    rustix::fs::statvfs(existing).map_or(0, |found| found.f_blocks.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read_as_it_writes_them() {
        assert_eq!(mask("Name:\tx\nCpus_allowed:\td\nCpus_allowed_list:\t0,2-3\n"), Some(vec![0, 2, 3]));
        assert_eq!(mask("Name:\tx\n"), None);
        assert_eq!(total("MemTotal:       24081420 kB\nMemFree: 1 kB\n"), Some(24_081_420 * 1_024));
        let folders = cgroup_folders("1:cpu:/x\n0::/system.slice/coulee.service\n");
        let expected = ["system.slice/coulee.service", "system.slice", ""];
        assert_eq!(folders, expected.map(|folder| Path::new(CGROUPS).join(folder)));
    }

    #[test]
    fn this_machine_has_cpus_memory_and_a_disk() {
        let machine = read(Path::new("./not/there/yet"));
        assert!(!machine.cpus.is_empty() && machine.memory_bytes > 1 << 20 && machine.disk_bytes > 1 << 20);
    }
}
