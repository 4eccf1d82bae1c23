//! What one seed draws: sizes, speeds, who comes, what goes wrong; knows nothing of how it is carried out.

use super::latency::Latency;
use coulee_core::executor::Random;

/// What a disk does to one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfortune {
    /// It is sound: crashes alone.
    None,
    /// Single operations fail.
    Errors,
    /// There is no room at times.
    Full,
    /// Stored bytes change by themselves.
    Harm,
}

/// What a run is like. Everything comes from the seed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Lives of the broker before the last one, in which all is read.
    pub lives: u64,
    /// Steps of a life, at most.
    pub steps: u64,
    /// Producers, consumers, and clients that make and remove topics.
    pub clients: [u64; 3],
    /// Topics at the beginning, and partitions of each at most.
    pub topics: (u64, u64),
    /// Requests of a producer in flight, at most.
    pub window: usize,
    /// A client waits so long at most before it goes on, in microseconds.
    pub think_us: u64,
    /// What batches are like.
    pub shape: Shape,
    /// Of so many actions, one in which an operator changes something.
    pub restless: u64,
    /// In thousandths of its actions, how often a client breaks its connection.
    pub breaks: u64,
    /// How long the disk takes.
    pub disk: Latency,
    /// How long the network takes.
    pub network: Latency,
    /// Whether one flush stands in for the syncs of files.
    pub device_flush: bool,
    /// Bytes of the tail caches and of the pool of a shard.
    pub tail_bytes: usize,
    /// See [`Plan::tail_bytes`].
    pub pool_bytes: u64,
    /// Whether segments may grow to 1 MiB.
    pub large_segments: bool,
    /// Whether some topics acknowledge what is only written.
    pub some_written: bool,
    /// What the disk does.
    pub misfortune: Misfortune,
    /// In thousandths, how many writes come in parts.
    pub short_writes: u64,
}

/// What batches are like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Records of a batch, at most.
    pub records: u64,
    /// Bytes of a record, at most.
    pub bytes: u64,
    /// All batches are alike: what is stale lies where something new is expected.
    pub equal: bool,
    /// In hundredths, how many batches are large: they start on a block of their own.
    pub large: u64,
}

impl Plan {
    /// What `seed` draws.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x7061_6c6e);
        let mut one_of = |choices: &[u64]| choices[random.below(choices.len() as u64) as usize];
        let latency = |least_us, spread_us, sync_factor, slow| Latency { least_us, spread_us, sync_factor, slow };
        let shape = Shape {
            records: one_of(&[1, 3, 20]),
            bytes: one_of(&[8, 100, 400, 3_000]),
            equal: one_of(&[0, 0, 1]) == 1,
            large: one_of(&[0, 5, 15, 30]),
        };
        Self {
            seed,
            lives: one_of(&[1, 2, 3, 4, 6]),
            steps: one_of(&[500, 2_000, 6_000]),
            clients: [one_of(&[1, 2, 3]), one_of(&[1, 2]), one_of(&[0, 1, 1])],
            topics: (one_of(&[1, 1, 2]), one_of(&[1, 2, 3])),
            window: one_of(&[1, 4, 16]) as usize,
            think_us: one_of(&[50, 300, 2_000, 20_000]),
            shape,
            restless: one_of(&[4, 30]),
            breaks: one_of(&[0, 5, 30]),
            disk: latency(one_of(&[1, 50, 200]), one_of(&[5, 100, 2_000]), one_of(&[1, 3, 20]), one_of(&[0, 5, 50])),
            network: latency(one_of(&[1, 20]), one_of(&[1, 50, 500]), 1, one_of(&[0, 10])),
            device_flush: one_of(&[0, 1]) == 1,
            tail_bytes: one_of(&[0, 16 << 10, 256 << 10]) as usize,
            pool_bytes: one_of(&[0, 256 << 10, 1 << 20]),
            large_segments: one_of(&[0, 0, 0, 1]) == 1,
            some_written: one_of(&[0, 0, 1]) == 1,
            misfortune: [
                Misfortune::None,
                Misfortune::None,
                Misfortune::Errors,
                Misfortune::Errors,
                Misfortune::Full,
                Misfortune::Harm,
            ][one_of(&[0, 1, 2, 3, 4, 5]) as usize],
            short_writes: one_of(&[0, 0, 200]),
        }
    }

    /// Shards of the next life: a directory opens with any number of them.
    pub fn shards(&self, random: &mut Random) -> u16 {
        1 + random.below(3) as u16
    }
}
