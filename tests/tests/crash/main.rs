//! Kill -9 at random moments under load: owns rounds and what has to be true after each; knows no byte of the log.
//!
//! The program may be one that keeps writes in memory until a sync (`make crash`): then kill -9 is a power cut.
//! `COULEE_CRASH_ROUNDS`, `COULEE_CRASH_SEED` and `COULEE_CRASH_DURABILITY` change what is run.

#![allow(clippy::unwrap_used, reason = "what the tests share fails as they do")]

mod ledger;
mod load;

use coulee_client::{Client, NewTopic, OffsetSpec, Start};
use coulee_tests::broker::{Broker, Folder, Options, Process};
use coulee_tests::chance::{Chance, setting};
use ledger::{Ledger, Number};
use load::Load;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Partitions of the topic, on two shards.
const PARTITIONS: u32 = 4;
/// Rounds of `make test`.
const ROUNDS: u32 = 15;
/// The longest that a broker lives under load.
const LIFE_US_MAX: u64 = 150_000;
/// The longest that a start lives that is cut short.
const START_US_MAX: u64 = 40_000;

/// What is done again and again to one data directory.
struct Run {
    chance: Chance,
    ledger: Ledger,
    early_kills: u32,
}

impl Run {
    /// Starts the broker; in one of four rounds it is killed before it is ready, and started again.
    fn start(&mut self, folder: Folder) -> Broker {
        if self.chance.below(4) == 0 {
            let mut cut_short = Process::spawn(&folder, &folder.data(), &Options::default());
            self.chance.moment(START_US_MAX);
            cut_short.kill();
            self.early_kills += 1;
        }
        Broker::start_on(folder, &Options::default())
    }

    /// Checks what the last round has left, puts load on the broker, and kills it.
    fn round(&mut self, broker: Broker) -> Broker {
        self.check(&broker, false);
        let load = Load::start(broker.address(), &self.ledger, &mut self.chance);
        self.chance.moment(LIFE_US_MAX);
        let folder = broker.kill();
        load.finish(&mut self.ledger);
        self.start(folder)
    }

    /// Reads what is there, all of it or what has come since it was last read.
    fn check(&mut self, broker: &Broker, from_the_start: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let begins = if from_the_start { vec![0; PARTITIONS as usize] } else { self.ledger.read_ends() };
        let seen = runtime.block_on(read(broker.address(), &begins));
        if from_the_start {
            self.ledger.compare(&seen);
        } else {
            self.ledger.take(seen);
        }
    }
}

/// The numbers of each partition from `begins` to its end.
async fn read(address: &str, begins: &[u64]) -> Vec<Vec<Number>> {
    let client = Client::connect(address).await.unwrap();
    let ends = client.list_offsets("t", &[], OffsetSpec::End).await.unwrap();
    let mut consumer = client.consumer("t").start(Start::End).max_wait(Duration::from_secs(10)).build().await.unwrap();
    let mut left = 0;
    for (partition, begin) in (0..).zip(begins) {
        let end = ends[partition as usize].offset.unwrap();
        assert!(*begin <= end, "partition {partition} ends at {end}, and {begin} records were read from it before");
        left += end - begin;
        consumer.seek(partition, *begin).unwrap();
    }
    let mut seen = vec![Vec::new(); begins.len()];
    while left > 0 {
        let mut batch = consumer.poll().await.unwrap().expect("records up to the high watermark");
        for record in batch.records().unwrap() {
            let place = record.partition as usize;
            assert_eq!(record.offset, begins[place] + seen[place].len() as u64, "offsets have no holes");
            seen[place].push(Number::decode(record.value.unwrap()));
            left -= 1;
        }
    }
    seen
}

fn run(durability: &str, rounds: u32) {
    let seed = setting("COULEE_CRASH_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    // Shown when the test fails.
    println!("COULEE_CRASH_SEED={seed}, {rounds} rounds, durability {durability}");
    let began = Instant::now();
    let mut run = Run { chance: Chance(seed), ledger: Ledger::new(PARTITIONS), early_kills: 0 };
    let mut broker = Broker::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(broker.address()).await.unwrap();
        // Small segments, so that many are begun and sealed.
        let topic = NewTopic::new("t").partitions(PARTITIONS).config("segment.bytes", "65536");
        client.create_topic(topic.config("durability", durability)).await.unwrap();
    });
    for _ in 0..rounds {
        broker = run.round(broker);
    }
    run.check(&broker, false);
    run.check(&broker, true);
    let (elapsed, early) = (began.elapsed(), run.early_kills);
    println!("{rounds} rounds, {early} more kills before the broker was ready, {elapsed:.1?}: {}", run.ledger);
    assert!(run.ledger.acknowledged() > 0, "the load was none");
}

#[test]
fn every_acknowledged_record_outlives_kill_9_in_order_and_once() {
    let rounds = setting("COULEE_CRASH_ROUNDS").map_or(ROUNDS, |rounds| rounds as u32);
    run(&std::env::var("COULEE_CRASH_DURABILITY").unwrap_or_else(|_| "fsync".into()), rounds);
}
