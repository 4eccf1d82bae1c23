//! Inputs shared by the criterion benches: records, batches, a shard with one partition; knows nothing of what they
//! measure.
//!
//! Everything is made the same way each time: no chance, no clock.

pub mod baseline;

use coulee_core::block::BlockPool;
use coulee_core::config::TopicConfig;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::disk::{Dir, Disk as _, DiskError};
use coulee_core::executor::{Random, block_on};
use coulee_core::limits::{BLOCK_BYTES, LARGE_BATCH_BYTES};
use coulee_core::log::Incoming;
use coulee_core::log::segment::{Owner, SegmentSize};
use coulee_core::partition::Acks;
use coulee_core::pool;
use coulee_core::shard::{Command, Effect, Now, RequestId, Shard, ShardOptions};
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::compression::Codec;
use coulee_protocol::ids::{ClusterId, PartitionUid, Timestamp, TopicId};
use coulee_protocol::limits::BATCH_BYTES_DEFAULT_MAX;
use criterion::Criterion;
use std::fmt::Write as _;
use std::task::{Context, Waker};
use std::time::Duration;

/// Records of a large batch.
pub const BATCH_RECORDS: usize = 1_000;
/// Bytes of a value.
pub const VALUE_BYTES: usize = 100;
/// Bytes of a key.
pub const KEY_BYTES: usize = 16;

/// How each bench is measured.
#[must_use]
pub fn config() -> Criterion {
    Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1_500))
}

/// The values of `count` records, one behind the other: readings of sensors as JSON, cut or filled to
/// [`VALUE_BYTES`]. Codecs find in them what they find in such data: names that repeat, numbers that do not.
#[must_use]
pub fn values(count: usize) -> Vec<u8> {
    let (mut bytes, mut random) = (Vec::with_capacity(count * VALUE_BYTES), Random::new(7));
    for record in 0..count {
        let (sensor, celsius) = (random.below(500), random.below(40_000));
        let mut value = format!(r#"{{"sensor":{sensor},"sequence":{record},"celsius":{celsius},"state":"ok","note":""#);
        write!(value, "{:016x}", random.next()).expect("a string takes every text");
        value.truncate(VALUE_BYTES - 2);
        bytes.extend_from_slice(value.as_bytes());
        bytes.resize((record + 1) * VALUE_BYTES - 2, b' ');
        bytes.extend_from_slice(b"\"}");
    }
    bytes
}

/// The keys of `count` records, one behind the other, [`KEY_BYTES`] each.
#[must_use]
pub fn keys(count: usize) -> Vec<u8> {
    (0..count).flat_map(|record| format!("{:016x}", record * 7).into_bytes()).collect()
}

/// Pushes one record for each value, and its key where there are any.
pub fn push_all(builder: &mut BatchBuilder, values: &[u8], keys: &[u8]) {
    let mut keys = keys.chunks_exact(KEY_BYTES);
    for value in values.chunks_exact(VALUE_BYTES) {
        let record = NewRecord { timestamp: Timestamp(1), key: keys.next(), value: Some(value), headers: &[] };
        builder.push(&record).expect("the batch has room for what the benches build");
    }
}

/// A batch of `count` records as a producer sends it.
#[must_use]
pub fn batch(count: usize, codec: Codec) -> Vec<u8> {
    let mut builder = BatchBuilder::new(codec, BATCH_BYTES_DEFAULT_MAX);
    push_all(&mut builder, &values(count), &[]);
    builder.finish().expect("there is at least one record")
}

/// The owner of the one partition.
pub const OWNER: Owner =
    Owner { cluster_id: ClusterId([7; 16]), topic_id: TopicId([9; 16]), partition_uid: PartitionUid(1), partition: 0 };

/// A shard over a disk in memory with one open partition, whose segment files lie ready and zeroed.
#[derive(Debug)]
pub struct Bed {
    /// The disk. It completes everything at once.
    pub disk: MemoryDisk,
    /// The shard.
    pub shard: Shard<MemoryDisk>,
    /// Where batches are received into.
    pub pool: BlockPool,
    now: Now,
}

impl Bed {
    /// A bed whose pool has the files of `ready` and makes no others while something is measured.
    ///
    /// # Errors
    /// The disk's, which has none.
    pub fn new(ready: &[SegmentSize]) -> Result<Self, DiskError> {
        let (disk, pool) = (MemoryDisk::new(), BlockPool::new(64 << 20));
        let options = ShardOptions { id: 0, tail_bytes: 4 << 20, pool_bytes: 0 };
        let set_up = async {
            disk.create_dir(Dir::Pool(0)).await?;
            for (number, size) in ready.iter().enumerate() {
                pool::make_ready(disk.clone(), 0, number as u64, *size).await?;
            }
            Shard::start(disk.clone(), pool.clone(), options).await
        };
        let shard = block_on(&disk, &mut Random::new(1), set_up)?;
        let mut bed = Self { disk, shard, pool, now: Now { monotonic_ms: 1, wall_ms: 1_700_000_000_000 } };
        let config = TopicConfig::parse([("segment.bytes", "134217728")]).expect("a size that segments may have");
        bed.shard.command(Command::Open(OWNER, config));
        while !bed.cycle().any(|effect| matches!(effect, Effect::Opened(_, Ok(_)))) {}
        Ok(bed)
    }

    /// One cycle of the shard, and what came out of it.
    pub fn cycle(&mut self) -> impl Iterator<Item = Effect> + use<> {
        self.shard.cycle(self.now, &mut Context::from_waker(Waker::noop()));
        self.shard.take_effects().into_iter()
    }

    /// `batch` as it lies in memory when it has been received: large ones in a block of their own.
    #[must_use]
    pub fn receive(&self, batch: &[u8]) -> Incoming {
        let mut block = self.pool.take(batch.len());
        block.extend(batch);
        if batch.len() >= LARGE_BATCH_BYTES { Incoming::Owned(block) } else { Incoming::Shared(block.freeze()) }
    }

    /// Hands the shard a produce.
    pub fn produce(&mut self, request: u64, batch: Incoming) {
        let (request, partition) = (RequestId(request), OWNER.partition_uid);
        self.shard.command(Command::Produce { request, partition, acks: Acks::Acknowledged, batch });
    }

    /// Cycles until `count` produces are acknowledged; nothing else comes out of the shard meanwhile.
    ///
    /// # Panics
    /// If one is refused.
    pub fn wait_for_acks(&mut self, mut count: usize) {
        while count > 0 {
            for effect in self.cycle() {
                assert!(matches!(effect, Effect::Produced(_, Ok(_))), "a produce was not acknowledged: {effect:?}");
                count -= 1;
            }
        }
    }

    /// Appends `batch` over and over until the active segment has `size` and is filled up to `position` or full.
    pub fn fill(&mut self, batch: &[u8], size: SegmentSize, position: u32) {
        loop {
            let log = &self.shard.partition(OWNER.partition_uid).expect("it is open").log;
            let begun = log.size_bytes() >= u64::from(size.bytes());
            let full = log.refusal(batch.len(), self.now.monotonic_ms).is_some();
            if begun && (full || log.checkpoint(false).resume.position >= position) {
                break;
            }
            let incoming = self.receive(batch);
            self.produce(0, incoming);
            self.wait_for_acks(1);
        }
    }

    /// Whether `count` batches of `bytes` still go into the active segment, which has the largest size.
    #[must_use]
    pub fn has_room(&self, bytes: usize, count: usize) -> bool {
        let log = &self.shard.partition(OWNER.partition_uid).expect("it is open").log;
        let position = log.checkpoint(false).resume.position as usize;
        position + count * (bytes + BLOCK_BYTES) <= SegmentSize::ALL[3].data_end() as usize
    }
}
