//! The two clocks of the system, read once a cycle; knows nothing of what time is good for.
//!
//! Both are read through the vDSO: some 25 ns each and no system call.

use coulee_core::shard::Now;
use std::time::{SystemTime, UNIX_EPOCH};

/// The clock of one shard. Its monotonic side is the system's, so that readings of all shards compare.
#[derive(Debug)]
pub struct Clock {
    now: Now,
    monotonic_us: u64,
}

impl Clock {
    /// A clock that has been read once.
    #[must_use]
    pub fn new() -> Self {
        let mut clock = Self { now: Now::default(), monotonic_us: 0 };
        clock.read();
        clock
    }

    /// Reads both clocks, once a cycle.
    pub fn read(&mut self) -> Now {
        let monotonic_us = monotonic_us();
        assert!(monotonic_us >= self.monotonic_us, "CLOCK_MONOTONIC went back");
        self.monotonic_us = monotonic_us;
        self.now = Now { monotonic_ms: monotonic_us / 1_000, wall_ms: wall_ms() };
        self.now
    }

    /// What the last [`Clock::read`] saw.
    #[must_use]
    pub const fn now(&self) -> Now {
        self.now
    }

    /// The monotonic side of the last [`Clock::read`], finer.
    #[must_use]
    pub const fn monotonic_us(&self) -> u64 {
        self.monotonic_us
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// Microseconds since the system started, now. For intervals within a cycle; a cycle's own time is [`Clock::read`].
#[must_use]
pub fn monotonic_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec of ours that lives through the call.
    let outcome = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert_eq!(outcome, 0, "every Linux has CLOCK_MONOTONIC");
    let seconds = u64::try_from(time.tv_sec).expect("time since start is not negative");
    let nanoseconds = u64::try_from(time.tv_nsec).expect("a part of a second is not negative");
    seconds * 1_000_000 + nanoseconds / 1_000
}

/// Milliseconds since 1970; negative before it.
fn wall_ms() -> i64 {
    let milliseconds = |time: std::time::Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => milliseconds(since),
        Err(before) => -milliseconds(before.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_never_goes_back_and_two_clocks_agree() {
        let mut first = Clock::new();
        let mut second = Clock::new();
        for _ in 0..1_000 {
            let (before, between) = (first.read(), second.read());
            let after = first.read();
            assert!(before.monotonic_ms <= between.monotonic_ms);
            assert!(between.monotonic_ms <= after.monotonic_ms);
            assert_eq!(first.now(), after);
            assert_eq!(first.monotonic_us() / 1_000, after.monotonic_ms);
        }
    }

    #[test]
    fn wall_time_is_that_of_the_system() {
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let read = u128::try_from(Clock::new().now().wall_ms).unwrap();
        let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        assert!(before <= read, "{before} {read}");
        assert!(read <= after, "{read} {after}");
    }
}
