//! Faults of disks and processes under the running program, with load from several clients; owns what is done to it and
//! leaves to the history checker what has to be true.
//!
//! `COULEE_FAULTS_SEED` and `COULEE_FAULTS_ROUNDS` change what is run.

#![allow(clippy::unwrap_used, reason = "what the tests share fails as they do")]

mod disk;
mod load;
mod process;

use coulee_tests::chance::{Chance, setting};
use coulee_tests::checker::{Crash, History, Incident, Recorder};
use load::{Load, Notes, partitions, read_all, runtime};
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

/// How often a fault is brought about in `make test`.
const ROUNDS: u64 = 3;

fn rounds() -> u64 {
    setting("COULEE_FAULTS_ROUNDS").unwrap_or(ROUNDS)
}

/// What is done to a broker and its successors on one directory, and what their clients were told.
struct Trial {
    chance: Chance,
    clock: Instant,
    life: u32,
    recorders: Vec<Recorder>,
}

impl Trial {
    fn new() -> Self {
        let seed = setting("COULEE_FAULTS_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
        // Shown when the test fails.
        println!("COULEE_FAULTS_SEED={seed}");
        Self { chance: Chance(seed), clock: Instant::now(), life: 0, recorders: Vec::new() }
    }

    /// Puts load on a broker.
    fn load(&mut self, address: &str) -> Load {
        self.life += 1;
        Load::start(address, self.life, self.clock, &mut self.chance)
    }

    fn finish(&mut self, load: Load) {
        self.recorders.extend(load.finish());
    }

    /// Notes that a broker was killed.
    fn crashed(&mut self) {
        let mut notes = self.notes();
        let at = self.clock.elapsed().as_micros() as u64;
        notes.recorder.incident(at, Incident::Crash(Crash::Process));
        self.recorders.push(notes.recorder);
    }

    fn notes(&mut self) -> Notes {
        self.life += 1;
        Notes::new(self.clock, 100 * self.life)
    }

    /// Reads everything back and holds it against every promise.
    fn check(&mut self, address: &str) {
        let mut notes = self.notes();
        runtime().block_on(read_all(address, &mut notes));
        self.recorders.push(notes.recorder);
        let report = History::new(partitions(), self.recorders.clone()).check();
        println!("{report}");
        report.verdict().unwrap_or_else(|broken| panic!("{broken}"));
        assert!(report.acked > 0, "the load was none");
    }
}
