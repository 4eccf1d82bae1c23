//! The files that faults happen to, made once by a shard itself, and what was written to them; knows no fault.

use super::{OPTIONS, PARTITIONS};
use coulee_core::block::BlockPool;
use coulee_core::config::TopicConfig;
use coulee_core::disk::FileName;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::executor::{Random, Runner};
use coulee_core::log::Incoming;
use coulee_core::log::segment::Owner;
use coulee_core::partition::Acks;
use coulee_core::shard::{Command, Effect, RequestId, ShardOptions};
use coulee_protocol::batch::HEADER_BYTES;
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::compression::Codec;
use coulee_protocol::ids::{ClusterId, PartitionUid, Timestamp, TopicId};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Files by name.
pub(super) type Files = Vec<(FileName, Vec<u8>)>;
/// Payloads by partition and base offset.
pub(super) type Written = BTreeMap<(u64, u64), Vec<u8>>;

/// The images and what they hold.
pub(super) struct Base {
    /// After a clean stop: a sealed segment with its index, an active one, and a partition with one segment.
    pub(super) stopped: Files,
    /// The same log after a power cut with appends in flight.
    pub(super) crashed: Files,
    /// The files when half of it was written.
    pub(super) older: Files,
    pub(super) written: Written,
}

pub(super) static BASE: LazyLock<Base> = LazyLock::new(Base::make);

/// Batches of partition 1: small ones, one that has blocks of its own, and enough to roll once.
const BATCHES: u64 = 36;
const LARGE_AT: u64 = 9;
/// Every sixth batch is one of partition 2, too.
const EVERY: u64 = 6;

pub(super) fn owner(uid: u64) -> Owner {
    Owner {
        cluster_id: ClusterId([7; 16]),
        topic_id: TopicId([9; 16]),
        partition_uid: PartitionUid(uid),
        partition: uid as u32,
    }
}

/// The smallest segments.
pub(super) fn config() -> TopicConfig {
    TopicConfig::parse([("segment.bytes", "65536")]).expect("a size that segments may have")
}

/// A batch whose values name it.
pub(super) fn batch(id: u64, records: u64, bytes: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None, 1 << 20);
    for record in 0..records {
        let mut value = format!("{id}:{record}:").into_bytes();
        value.resize(value.len().max(bytes), b'a' + (id % 26) as u8);
        let record = NewRecord { timestamp: Timestamp(id as i64), value: Some(&value), ..NewRecord::default() };
        builder.push(&record).expect("the batch has room");
    }
    builder.finish().expect("the batch has records")
}

/// `files` with one file of the pool: each more is 64 KiB to copy for every input.
fn with_one_reserve(mut files: Files) -> Files {
    let mut reserves = 0;
    files.retain(|(name, _)| {
        reserves += usize::from(matches!(name, FileName::Pool(..) | FileName::Fresh(..)));
        reserves <= 1 || !matches!(name, FileName::Pool(..) | FileName::Fresh(..))
    });
    files
}

/// A shard that is written to, one batch after the other.
struct Writer {
    runner: Runner,
    written: Written,
    ends: BTreeMap<u64, u64>,
}

impl Writer {
    fn start(disk: MemoryDisk) -> Self {
        let options = ShardOptions { pool_bytes: 128 << 10, ..OPTIONS };
        let mut runner = Runner::start(disk, options, 3).expect("an empty disk starts");
        for uid in PARTITIONS {
            runner.command(Command::Open(owner(uid), config()));
            let opened = runner.wait_for(|effect| matches!(effect, Effect::Opened(_, Ok(_))).then_some(()));
            opened.expect("a new partition opens");
        }
        Self { runner, written: Written::new(), ends: BTreeMap::new() }
    }

    /// Sends batch `id` to `uid` and notes where it goes.
    fn send(&mut self, uid: u64, id: u64) {
        let records = 1 + id % 3;
        let bytes = batch(id, records, if id == LARGE_AT { 33_000 } else { 500 });
        let mut block = BlockPool::new(0).take(bytes.len());
        block.extend(&bytes);
        let batch = if bytes.len() >= 32 << 10 { Incoming::Owned(block) } else { Incoming::Shared(block.freeze()) };
        let (request, partition) = (RequestId(uid << 32 | id), PartitionUid(uid));
        self.runner.command(Command::Produce { request, partition, acks: Acks::Acknowledged, batch });
        let end = self.ends.entry(uid).or_default();
        self.written.insert((uid, *end), bytes[HEADER_BYTES..].to_vec());
        *end += records;
    }

    fn send_and_wait(&mut self, ids: std::ops::Range<u64>) {
        for id in ids {
            for uid in PARTITIONS.into_iter().filter(|uid| *uid == 1 || id % EVERY == 0) {
                self.send(uid, id);
                let acked = self.runner.wait_for(|effect| match effect {
                    Effect::Produced(_, result) => Some(result.is_ok()),
                    _ => None,
                });
                assert_eq!(acked, Some(true), "batch {id} is not acknowledged");
            }
        }
    }
}

impl Base {
    fn make() -> Self {
        let mut writer = Writer::start(MemoryDisk::new());
        writer.send_and_wait(0..BATCHES / 2);
        let older = writer.runner.disk.files();
        writer.send_and_wait(BATCHES / 2..BATCHES);
        writer.runner.command(Command::Stop);
        let stopped = writer.runner.wait_for(|effect| matches!(effect, Effect::Stopped).then_some(()));
        stopped.expect("a shard stops");
        let stopped = with_one_reserve(writer.runner.disk.files());

        let mut writer = Writer::start(MemoryDisk::crashing());
        writer.send_and_wait(0..BATCHES - 4);
        for id in BATCHES - 4..BATCHES {
            for uid in PARTITIONS.into_iter().filter(|uid| *uid == 1 || id % EVERY == 0) {
                writer.send(uid, id);
            }
            for _ in 0..3 {
                writer.runner.step();
            }
        }
        let crashed = with_one_reserve(writer.runner.disk.crash(&mut Random::new(5)).files());
        Self { stopped, crashed, older, written: writer.written }
    }
}
