//! How long things take in a simulated world; knows no disk and no network.

use coulee_core::executor::Random;

/// How long operations take, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// The least.
    pub least_us: u64,
    /// What chance adds, at most.
    pub spread_us: u64,
    /// A sync takes so many times as long.
    pub sync_factor: u64,
    /// In thousandths, how many take a hundred times as long.
    pub slow: u64,
}

impl Latency {
    /// How long this one takes.
    pub fn of(&self, is_sync: bool, random: &mut Random) -> u64 {
        let us = self.least_us + random.below(self.spread_us + 1);
        let us = if is_sync { us * self.sync_factor } else { us };
        if random.below(1_000) < self.slow { us * 100 } else { us }
    }
}
