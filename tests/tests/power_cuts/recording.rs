//! Lives of a broker over a disk that logs what is done to it, and what its clients were told; knows no power cut.

use crate::ledger::{Event, Ledger};
use crate::load::{self, FLEETING, Load, Next, Work};
use coulee_client::Client;
use coulee_protocol::api::stats::Counter;
use coulee_tests::block_device::{BlockDevice, Entry};
use coulee_tests::broker::{Folder, Options, Process, address};
use coulee_tests::chance::Chance;
use coulee_tests::mounts::Mount;
use std::path::Path;
use std::time::{Duration, Instant};

/// A life ends when clients were told of so many bytes of values, or after this time on a slow machine.
const LIFE_BYTES: u64 = 3 << 20;
const LIFE_TIME: Duration = Duration::from_millis(2_500);
/// So many files are zeroed ahead on each shard before steady work begins.
const POOL_FILES: u64 = 40;

/// What a broker is put through.
struct Life {
    shards: u16,
    pool_mib: u64,
    work: Work,
    is_killed: bool,
}

/// Steady work comes last: its acks hang on little else than flushes.
const LIVES: [Life; 4] = [
    Life { shards: 2, pool_mib: 24, work: Work::Mixed, is_killed: true },
    Life { shards: 2, pool_mib: 0, work: Work::Mixed, is_killed: false },
    Life { shards: 1, pool_mib: 24, work: Work::Steady, is_killed: true },
    Life { shards: 2, pool_mib: 24, work: Work::Steady, is_killed: true },
];

/// What a broker on a small disk is started with.
pub(crate) fn options(shards: u16, pool_mib: u64) -> Options {
    let set = ["memory.shard=64MiB", "log.format=json"].map(Into::into).into();
    Options { shards, listen: "127.0.0.1:0".into(), set }.and(&format!("pool.bytes={pool_mib}MiB"))
}

/// The log of a disk, and what the clients were told meanwhile.
pub(crate) struct Recording {
    pub(crate) entries: Vec<Entry>,
    pub(crate) ledger: Ledger,
    /// Where steady work begins.
    pub(crate) steady_at: usize,
    /// Where the disk stood still: all acks that were under way had come.
    pub(crate) stills: Vec<usize>,
}

/// What the shards have counted.
#[derive(Default)]
struct Counts {
    syncs: u64,
    device_flushes: u64,
    fallocated: u64,
}

impl Counts {
    async fn add(&mut self, address: &str) {
        let stats = Client::connect(address).await.unwrap().stats().await.unwrap();
        for shard in stats.shards {
            let count = |counter| shard.counters.get(&counter).copied().unwrap_or_default();
            self.syncs += count(Counter::Syncs);
            self.device_flushes += count(Counter::DeviceFlushes);
            self.fallocated += count(Counter::SegmentsFallocated);
        }
    }
}

impl Recording {
    /// Puts load on brokers, one life after the other, on a filesystem that was made in `image`.
    pub(crate) fn make(folder: &Folder, image: &str, chance: &mut Chance) -> Self {
        std::fs::create_dir_all(folder.at("served")).unwrap();
        let served = folder.at("served");
        let disk = BlockDevice::serve(Path::new(image), Path::new(&served), Chance(chance.below(u64::MAX))).unwrap();
        let mount = Mount::direct_image(&folder.at("loaded"), &disk.path().to_string_lossy()).unwrap();
        let (mut ledger, mut next, mut counts) = (Ledger::default(), Next::default(), Counts::default());
        let mut steady_at = None;
        for life in LIVES {
            let mut broker = Process::spawn(folder, &mount.path().join("data"), &options(life.shards, life.pool_mib));
            let ready = broker.ready_line().unwrap_or_else(|ended| panic!("{}\n{}", ended.status, ended.log));
            assert!(broker.log().contains(r#""one_flush":true"#), "the one flush is not in use:\n{}", broker.log());
            let address = address(&ready);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            if life.work == Work::Steady {
                runtime.block_on(until_pool_is_full(&address));
            }
            let is_first = ledger.acked() == 0 || (life.work == Work::Steady && steady_at.is_none());
            if is_first {
                runtime.block_on(load::create_topics(&address, life.work));
                note_topics(&mut ledger, life.work, disk.journal().position());
            }
            if life.work == Work::Steady {
                steady_at = steady_at.or_else(|| Some(disk.journal().position()));
            }
            let load = Load::start(&address, disk.journal(), life.work, &next, chance);
            take(&load, &mut ledger);
            runtime.block_on(counts.add(&address));
            if life.is_killed {
                broker.kill();
            } else {
                broker.terminate();
                assert_eq!(broker.wait().status.code(), Some(0), "{}", broker.log());
            }
            load.finish(&mut next).into_iter().for_each(|event| ledger.note(event));
        }
        let (overlaps, bytes) = (disk.journal().overlaps(), disk.journal().bytes());
        let steady_at = steady_at.expect("some work is steady");
        let stills = disk.journal().stills();
        let recording = Self { entries: disk.journal().take(), ledger, steady_at, stills };
        drop(mount);
        drop(disk);
        assert_eq!(overlaps, 0, "two writes of the same bytes were in flight");
        recording.tell(&counts, bytes);
        // The work is what it is meant to be: many syncs are one flush, and some files are not from the pool.
        assert!(counts.device_flushes > 0 && counts.fallocated > 0, "no flush of the device, or no new file");
        recording
    }

    fn tell(&self, counts: &Counts, bytes: u64) {
        let flushes = |entries: &[Entry]| entries.iter().filter(|entry| matches!(entry, Entry::Flush)).count();
        let steady = &self.entries[self.steady_at..];
        let (steady_flushes, steady_writes) = (flushes(steady), steady.len() - flushes(steady));
        let flushes = flushes(&self.entries);
        let (writes, mebibytes) = (self.entries.len() - flushes, bytes >> 20);
        let (acked, (topics, deleted)) = (self.ledger.acked(), self.ledger.topics());
        let fleeting = topics.filter(|topic| *topic >= FLEETING).count();
        let Counts { syncs, device_flushes, fallocated } = counts;
        println!(
            "recorded: {acked} records acknowledged, {} lives, {fleeting} topics that came and {deleted} that went; \
             {writes} writes, {mebibytes} MiB, {flushes} flushes ({steady_writes} and {steady_flushes} at steady \
             work); of {syncs} syncs {device_flushes} were one flush for several files; {fallocated} segments in \
             fallocated files",
            LIVES.len()
        );
    }
}

/// The topics that stay were made before the log was that long.
fn note_topics(ledger: &mut Ledger, work: Work, position: usize) {
    for topic in work.topics().map(|topic| topic as u32) {
        ledger.note(Event::Created(topic, position));
        if !load::is_durable(topic) {
            ledger.is_loose(topic);
        }
    }
}

/// Waits for files that were zeroed ahead: only over them one flush is for all.
async fn until_pool_is_full(address: &str) {
    let client = Client::connect(address).await.unwrap();
    loop {
        let stats = client.stats().await.unwrap();
        let files = stats.shards.iter().map(|shard| shard.counters[&Counter::PoolSegments]);
        if files.min() >= Some(POOL_FILES) {
            return;
        }
        Chance::wait(Duration::from_millis(5));
    }
}

/// Takes what the clients are told until it is enough.
fn take(load: &Load, ledger: &mut Ledger) {
    let (mut bytes, end) = (0, Instant::now() + LIFE_TIME);
    while bytes < LIFE_BYTES {
        let Some(left) = end.checked_duration_since(Instant::now()) else { break };
        let Some(event) = load.event(left) else { break };
        if let Event::Acked(acked) = event {
            bytes += u64::from(acked.sent.len);
        }
        ledger.note(event);
    }
}
