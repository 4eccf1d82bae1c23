//! What the process uses of the machine: CPU time and memory; knows not what for.

use std::io;
use std::mem::MaybeUninit;

/// What the process has used, and uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all its threads since it started, user and system, in microseconds.
    pub cpu_us: u64,
    /// Resident memory, in bytes.
    pub rss_bytes: u64,
}

/// What this process uses now.
///
/// # Errors
/// /proc cannot be read.
pub fn of_process() -> io::Result<Usage> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    Ok(Usage { cpu_us: cpu_us(), rss_bytes: pages * page_bytes() })
}

fn page_bytes() -> u64 {
    // SAFETY: the call takes no pointer.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).expect("pages have a size")
}

fn cpu_us() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one `rusage` to the last argument, which has room for it.
    let outcome = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    assert_eq!(outcome, 0, "a process may ask for its own usage");
    // SAFETY: it was zeroed, which is a value of this plain structure, and then filled in.
    let usage = unsafe { usage.assume_init() };
    let us = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    us(usage.ru_utime) + us(usage.ru_stime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_uses_time_and_memory() {
        let before = of_process().unwrap();
        let memory = vec![1_u8; 32 << 20];
        let mut after = of_process().unwrap();
        assert!(after.rss_bytes >= before.rss_bytes + (memory.len() as u64) / 2);
        while after.cpu_us <= before.cpu_us {
            std::hint::black_box(memory.iter().map(|byte| u64::from(*byte)).sum::<u64>());
            after = of_process().unwrap();
        }
    }
}
