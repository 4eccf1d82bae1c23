//! Pauses between tries: owns how they grow; reads no clock and never waits itself.

use std::time::Duration;

use crate::limits::{BACKOFF_MAX, BACKOFF_MIN};

/// Doubles from [`BACKOFF_MIN`] to [`BACKOFF_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Notes a failure and says how long to wait: at least three quarters of the pause, the rest by `chance`, so that
    /// many clients of one broker don't come back together.
    pub(crate) fn failed(&mut self, chance: u64) -> Duration {
        let pause = BACKOFF_MIN.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        let quarter = (pause.as_micros() / 4) as u64;
        pause - Duration::from_micros(chance % (quarter + 1))
    }

    /// Starts anew.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..9).map(|_| backoff.failed(0).as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1_000, 1_000]);
        backoff.succeeded();
        assert_eq!(backoff.failed(0), BACKOFF_MIN);
        (0..100).for_each(|_| assert!(backoff.failed(u64::MAX) <= BACKOFF_MAX));
    }

    #[test]
    fn chance_shortens_a_pause_by_a_quarter_at_most() {
        for chance in [0, 1, 2_500, 2_501, u64::MAX / 3, u64::MAX] {
            let pause = Backoff::default().failed(chance);
            assert!(pause <= BACKOFF_MIN && pause >= BACKOFF_MIN * 3 / 4, "{chance}: {pause:?}");
        }
    }
}
