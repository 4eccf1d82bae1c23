//! Numbers from a seed, and settings of a run; knows no test.

use std::sync::mpsc;
use std::time::Duration;

/// Numbers from a seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Chance(pub u64);

impl Chance {
    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True in `hits` of `of` cases.
    pub fn is_hit(&mut self, hits: u64, of: u64) -> bool {
        self.below(of) < hits
    }

    /// Waits for a moment between now and `us_max` from now.
    pub fn moment(&mut self, us_max: u64) {
        Self::wait(Duration::from_micros(self.below(us_max)));
    }

    /// Waits for so long: what is slow on purpose, or done at a moment of its own.
    ///
    /// # Panics
    /// Never.
    pub fn wait(time: Duration) {
        let (_silent, nobody) = mpsc::channel::<()>();
        let silence = nobody.recv_timeout(time);
        assert!(silence.is_err(), "nobody sends");
    }

    /// Bytes to fill a value with.
    #[must_use]
    pub fn bytes(mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// A number in the environment.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}
