//! A small seeded executor for tests and benches: chooses what happens next; knows nothing of what it runs.
//!
//! One seed, one run: the order of completions and of polls comes from [`Random`] alone. Wakers do nothing: whoever
//! drives polls again after each completion.

use crate::block::BlockPool;
use crate::disk::DiskError;
use crate::disk::memory::MemoryDisk;
use crate::shard::{Command, Effect, Now, Shard, ShardOptions};
use std::collections::VecDeque;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// xorshift64*: small, seeded, good enough to choose interleavings. Never used in production.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator; seed 0 is taken as 1.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        // Spread neighbouring seeds apart.
        let mixed = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(if mixed == 0 { 1 } else { mixed })
    }

    /// The next 64 bits.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
}

/// Runs `future` to its end over `disk`, completing the operations that it waits for in an order that `random` chooses.
///
/// # Panics
/// When the future waits and nothing is left that could wake it: a deadlock of ours.
pub fn block_on<T>(disk: &MemoryDisk, random: &mut Random, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        let pending = disk.pending();
        assert!(pending > 0, "the future waits and no operation is in flight");
        disk.complete(random.below(pending as u64) as usize);
    }
}

/// A shard over a disk in memory, driven step by step by chance from one seed.
#[derive(Debug)]
pub struct Runner {
    /// The disk.
    pub disk: MemoryDisk,
    /// The shard.
    pub shard: Shard<MemoryDisk>,
    /// What has come out and was not taken yet.
    pub effects: VecDeque<Effect>,
    /// Where the next choice comes from.
    pub random: Random,
    now: Now,
}

impl Runner {
    /// Starts a shard on `disk`.
    ///
    /// # Errors
    /// The disk's.
    pub fn start(disk: MemoryDisk, options: ShardOptions, seed: u64) -> Result<Self, DiskError> {
        let mut random = Random::new(seed);
        let pool = BlockPool::new(8 << 20);
        let shard = block_on(&disk, &mut random, Shard::start(disk.clone(), pool, options))?;
        let now = Now { monotonic_ms: 1, wall_ms: 1_700_000_000_000 };
        Ok(Self { disk, shard, effects: VecDeque::new(), random, now })
    }

    /// Hands the shard a command.
    pub fn command(&mut self, command: Command) {
        self.shard.command(command);
    }

    /// Lets time pass.
    pub fn pass(&mut self, ms: u64) {
        self.now.monotonic_ms += ms;
        self.now.wall_ms += ms as i64;
    }

    /// One thing happens: a completion of the disk's or a cycle of the shard's. Whether it was of any use.
    pub fn step(&mut self) -> bool {
        let pending = self.disk.pending();
        if pending > 0 && self.random.below(3) > 0 {
            self.disk.complete(self.random.below(pending as u64) as usize);
            return true;
        }
        let worked = self.shard.cycle(self.now, &mut Context::from_waker(Waker::noop()));
        self.effects.extend(self.shard.take_effects());
        worked || pending > 0
    }

    /// Steps until there is an effect that `wanted` takes, and answers it; the others stay in order. `None` where
    /// nothing happens any more.
    pub fn wait_for<T>(&mut self, mut wanted: impl FnMut(&Effect) -> Option<T>) -> Option<T> {
        let mut idle = 0;
        loop {
            let found =
                self.effects.iter().enumerate().find_map(|(at, effect)| wanted(effect).map(|found| (at, found)));
            if let Some((at, found)) = found {
                self.effects.remove(at);
                return Some(found);
            }
            if self.step() {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle > 8 {
                return None;
            }
            // Nothing to do now: what waits, waits for time.
            self.pass(50);
        }
    }
}
