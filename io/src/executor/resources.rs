//! The process's limits of open files and of locked memory: raised as far as allowed; asks nobody for more.

use crate::limits::LOCKED_MEMORY_BYTES_MIN;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The limit of open files before and after it was raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// The soft limit found.
    pub before: u64,
    /// The soft limit now, which is the hard one.
    pub now: u64,
}

/// The hard limit of locked memory is below what an executor needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockedMemoryTooLow {
    /// The limit, in bytes.
    pub limit_bytes: u64,
    /// What it has to be at least, in bytes.
    pub needed_bytes: u64,
}

/// Raises the soft limit of open files to the hard one.
///
/// # Errors
/// What the kernel said.
pub fn raise_open_files() -> io::Result<OpenFiles> {
    let before = limit(libc::RLIMIT_NOFILE)?;
    let now = raise(libc::RLIMIT_NOFILE)?;
    Ok(OpenFiles { before: before.rlim_cur, now })
}

/// Makes room for `count` descriptors in the process's table. The kernel doubles a full table and, once there are
/// several threads, waits for a grace period of RCU while it does: a crowd of connections would stop the shard that
/// accepts them for 20 ms at each doubling. To be called before threads are started.
///
/// # Errors
/// What the kernel said: above all `EINVAL` where `count` is above the limit of open files.
pub fn grow_file_table(count: u32) -> io::Result<()> {
    let any = File::open("/dev/null")?;
    let highest = libc::c_int::try_from(count.saturating_sub(1)).map_err(io::Error::other)?;
    // SAFETY: `any` is open; no memory is passed.
    let number = unsafe { libc::fcntl(any.as_raw_fd(), libc::F_DUPFD_CLOEXEC, highest) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and is ours alone.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
    Ok(())
}

/// Raises the soft limit of locked memory to the hard one and checks that an executor can be made.
///
/// # Errors
/// The hard limit is too low.
pub fn raise_locked_memory() -> Result<(), LockedMemoryTooLow> {
    let raised = raise(libc::RLIMIT_MEMLOCK).or_else(|_| limit(libc::RLIMIT_MEMLOCK).map(|limit| limit.rlim_cur));
    check_locked_memory(raised.expect("RLIMIT_MEMLOCK can always be read"))
}

const fn check_locked_memory(limit_bytes: u64) -> Result<(), LockedMemoryTooLow> {
    if limit_bytes < LOCKED_MEMORY_BYTES_MIN {
        return Err(LockedMemoryTooLow { limit_bytes, needed_bytes: LOCKED_MEMORY_BYTES_MIN });
    }
    Ok(())
}

fn limit(resource: libc::__rlimit_resource_t) -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is ours and lives through the call.
    let outcome = unsafe { libc::getrlimit(resource, &raw mut limit) };
    if outcome == 0 { Ok(limit) } else { Err(io::Error::last_os_error()) }
}

/// Sets the soft limit to the hard one and returns it.
fn raise(resource: libc::__rlimit_resource_t) -> io::Result<u64> {
    let found = limit(resource)?;
    let wanted = libc::rlimit { rlim_cur: found.rlim_max, rlim_max: found.rlim_max };
    // SAFETY: `wanted` is ours and lives through the call.
    let outcome = unsafe { libc::setrlimit(resource, &raw const wanted) };
    if outcome == 0 { Ok(wanted.rlim_cur) } else { Err(io::Error::last_os_error()) }
}

impl fmt::Display for LockedMemoryTooLow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "the limit of locked memory is {} bytes and has to be {} at least: raise it (`ulimit -l`, systemd's \
             LimitMEMLOCK=, docker's --ulimit memlock=)",
            self.limit_bytes, self.needed_bytes
        )
    }
}

impl std::error::Error for LockedMemoryTooLow {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_open_files_becomes_the_hard_one() {
        let raised = raise_open_files().unwrap();
        assert!(raised.now >= raised.before, "{raised:?}");
        let found = limit(libc::RLIMIT_NOFILE).unwrap();
        assert_eq!((found.rlim_cur, found.rlim_max), (raised.now, raised.now));
    }

    #[test]
    fn the_table_of_descriptors_has_the_room_asked_for_and_no_descriptor_more() {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let slots = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap().trim().to_owned();
            line.parse::<u32>().unwrap()
        };
        let before = open();
        let wanted = slots() * 2;
        grow_file_table(wanted).unwrap();
        assert!(slots() >= wanted);
        assert!(open() < before + 16, "other tests open a few");
        let error = grow_file_table(u32::MAX >> 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn too_little_locked_memory_is_refused_with_what_to_change() {
        assert_eq!(check_locked_memory(LOCKED_MEMORY_BYTES_MIN), Ok(()));
        let error = check_locked_memory(64 << 10).unwrap_err();
        assert_eq!(error, LockedMemoryTooLow { limit_bytes: 64 << 10, needed_bytes: LOCKED_MEMORY_BYTES_MIN });
        assert!(error.to_string().contains("ulimit -l"), "{error}");
    }
}
