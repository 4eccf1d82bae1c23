//! When each request is to be sent; knows no clock and no socket.
//!
//! An open loop sends by the clock, whatever has been answered: a broker that stops for a second makes a second's worth
//! of requests late, and each of them counts from the time that it was to be sent.

/// Times at equal distances, without drift: number `n` is computed from the start, not from the one before.
///
/// At 3 a second from 1,000 ns on, the first four are due at 1,000, 333,334,333, 666,667,666 and 1,000,001,000 ns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    start_ns: u64,
    /// Requests in a billion seconds, so that slow rates are exact too.
    rate_nano: u128,
    next: u64,
}

impl Schedule {
    /// `per_second` requests in each second from `start_ns` on.
    ///
    /// # Panics
    /// If the rate is not above 0.
    pub(crate) fn new(start_ns: u64, per_second: f64) -> Self {
        assert!(per_second > 0.0, "a schedule has a rate, found {per_second}");
        Self { start_ns, rate_nano: ((per_second * 1e9) as u128).max(1), next: 0 }
    }

    /// When the next one is due.
    pub(crate) fn due_ns(&self) -> u64 {
        let after_ns = u128::from(self.next) * 1_000_000_000_000_000_000 / self.rate_nano;
        self.start_ns + u64::try_from(after_ns).expect("runs are shorter than 500 years")
    }

    /// The next one is sent.
    pub(crate) const fn advance(&mut self) {
        self.next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(start_ns: u64, per_second: f64, count: u64) -> Vec<u64> {
        let mut schedule = Schedule::new(start_ns, per_second);
        let next = |_| {
            let due_ns = schedule.due_ns();
            schedule.advance();
            due_ns
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn requests_are_due_at_equal_distances_from_the_start() {
        assert_eq!(times(1_000, 3.0, 4), [1_000, 333_334_333, 666_667_666, 1_000_001_000]);
        assert_eq!(times(0, 0.5, 3), [0, 2_000_000_000, 4_000_000_000]);
    }

    #[test]
    fn a_schedule_does_not_drift() {
        let last = times(7, 7_000_000.0, 7_000_001)[7_000_000];
        assert_eq!(last, 1_000_000_007);
    }
}
