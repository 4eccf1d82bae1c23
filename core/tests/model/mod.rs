//! A model of what producers know, and the checks against what a shard serves; knows nothing of files and formats.
//!
//! Each record's value names its batch and its place in it, so that loss, doubling, change and reordering show.
#![allow(dead_code, reason = "each test file uses its part of the model")]

use coulee_core::block::Block;
use coulee_core::config::TopicConfig;
use coulee_core::disk::FileName;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::executor::{Random, Runner};
use coulee_core::log::Incoming;
use coulee_core::log::reader::ReadError;
use coulee_core::log::segment::Owner;
use coulee_core::partition::{Acks, ProduceError};
use coulee_core::shard::fetches::{FetchError, FetchPart, FetchSpec};
use coulee_core::shard::{Command, Effect, Opened, Produced, RequestId, ShardOptions};
use coulee_protocol::batch::{BatchHeader, HEADER_BYTES};
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::columns::{Columns, Scratch};
use coulee_protocol::compression::Codec;
use coulee_protocol::ids::{ClusterId, Offset, PartitionUid, Timestamp, TopicId};
use std::collections::BTreeMap;

/// What a check found wrong.
pub(crate) type Verdict<T = ()> = Result<T, String>;

/// Who owns partition `uid` in these tests.
pub(crate) fn owner(uid: u64) -> Owner {
    Owner {
        cluster_id: ClusterId([7; 16]),
        topic_id: TopicId([9; 16]),
        partition_uid: PartitionUid(uid),
        partition: uid as u32,
    }
}

/// A topic with segments of at most 64 KiB, so that they roll often.
pub(crate) fn small_segments() -> TopicConfig {
    TopicConfig::parse([("segment.bytes", "65536")]).expect("a size that segments may have")
}

/// A shard with little memory and a small pool, so that caches are left and files recycled.
pub(crate) const OPTIONS: ShardOptions = ShardOptions { id: 0, tail_bytes: 256 << 10, pool_bytes: 1 << 20 };

/// A batch of `records` records whose values name batch `id`, each `bytes` long at least.
pub(crate) fn batch(id: u64, records: u64, bytes: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None, 8 << 20);
    for record in 0..records {
        let mut value = format!("{id}:{record}/{records}:").into_bytes();
        value.resize(value.len().max(bytes), b'a' + (id % 26) as u8);
        let record = NewRecord { timestamp: Timestamp(id as i64), value: Some(&value), ..NewRecord::default() };
        builder.push(&record).expect("the batch has room");
    }
    builder.finish().expect("the batch has records")
}

/// `bytes` as they would come from a socket: large batches in a block of their own.
pub(crate) fn incoming(bytes: &[u8]) -> Incoming {
    let mut block = coulee_core::block::BlockPool::new(0).take(bytes.len());
    block.extend(bytes);
    if bytes.len() >= 32 << 10 { Incoming::Owned(block) } else { Incoming::Shared(block.freeze()) }
}

/// One batch as a producer knows it.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) partition: u64,
    pub(crate) payload: Vec<u8>,
    pub(crate) acked_at: Option<u64>,
}

/// Records of a batch and bytes of each.
type Shape = (u64, usize);

/// Mostly small batches, some of many records, some large.
pub(crate) fn mostly_small(random: &mut Random) -> Shape {
    match random.below(12) {
        0 => (1 + random.below(3), 40_000),
        1 => (300, 100),
        _ => (1 + random.below(5), random.below(400) as usize),
    }
}

/// What producers have sent and been told.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    /// How the topics are set.
    pub(crate) config: TopicConfig,
    /// What batches are like.
    pub(crate) shape: fn(&mut Random) -> Shape,
    /// A partition may stop: its producers then do not know what became of their batches.
    pub(crate) may_stop: bool,
    pub(crate) sent: BTreeMap<u64, Sent>,
    /// Offsets at which each partition was once seen to hold a batch that a reader was shown.
    pub(crate) seen: BTreeMap<(u64, u64), u64>,
    pub(crate) next_id: u64,
}

impl Default for Model {
    fn default() -> Self {
        let (sent, seen) = (BTreeMap::new(), BTreeMap::new());
        Self { config: small_segments(), shape: mostly_small, may_stop: false, sent, seen, next_id: 0 }
    }
}

impl Model {
    /// Sends one random batch to one of `partitions`.
    pub(crate) fn produce(&mut self, runner: &mut Runner, partitions: u64) {
        let (records, bytes) = (self.shape)(&mut runner.random);
        let partition = 1 + runner.random.below(partitions);
        self.next_id += 1;
        let id = self.next_id;
        let batch = batch(id, records, bytes);
        self.sent.insert(id, Sent { partition, payload: batch[HEADER_BYTES..].to_vec(), acked_at: None });
        let batch = incoming(&batch);
        let partition = PartitionUid(partition);
        runner.command(Command::Produce { request: RequestId(id), partition, acks: Acks::Acknowledged, batch });
    }

    /// Notes the acks that have come out of the shard.
    pub(crate) fn take_acks(&mut self, runner: &mut Runner) -> Verdict<usize> {
        let mut acked = 0;
        for effect in std::mem::take(&mut runner.effects) {
            if let Effect::Produced(request, result) = effect {
                let sent = self.sent.get_mut(&request.0).ok_or("an ack for nothing")?;
                match result {
                    Ok(produced) => {
                        acked += 1;
                        let doubled = sent.acked_at.replace(produced.base_offset.0);
                        if doubled.is_some() {
                            return Err(format!("batch {} was acknowledged twice", request.0));
                        }
                    }
                    Err(ProduceError::Offline) if self.may_stop => {}
                    Err(error) => return Err(format!("batch {} was refused: {error:?}", request.0)),
                }
            } else {
                runner.effects.push_back(effect);
            }
        }
        Ok(acked)
    }

    /// Checks that what `partition` serves is what was sent: in order, once, unchanged, and all that was acknowledged.
    pub(crate) fn check(&self, partition: u64, stored: &[(BatchHeader, Block)], end: u64) -> Verdict {
        let mut by_offset = BTreeMap::new();
        let (mut last_id, mut next) = (0, stored.first().map_or(end, |(header, _)| header.leader.base_offset.0));
        for (header, bytes) in stored {
            let offset = header.leader.base_offset.0;
            if offset != next {
                return Err(format!("partition {partition} goes from offset {next} to {offset}"));
            }
            next = header.end_offset().0;
            let id = batch_id(header, bytes)?;
            let sent = self.sent.get(&id).filter(|sent| sent.partition == partition);
            let sent = sent.ok_or_else(|| format!("partition {partition} holds batch {id} that was not sent to it"))?;
            if sent.payload != bytes[HEADER_BYTES..] {
                return Err(format!("batch {id} was changed"));
            }
            if id <= last_id {
                return Err(format!("batch {id} comes behind {last_id}: doubled or out of order"));
            }
            last_id = id;
            by_offset.insert(offset, id);
        }
        for (id, sent) in &self.sent {
            if let Some(offset) = sent.acked_at.filter(|_| sent.partition == partition)
                && by_offset.get(&offset) != Some(id)
            {
                return Err(format!("partition {partition} lost batch {id}, acknowledged at offset {offset}"));
            }
        }
        let shown = self.seen.iter().filter(|((shown, _), _)| *shown == partition);
        for ((_, offset), id) in shown {
            if by_offset.get(offset) != Some(id) {
                return Err(format!("batch {id} at offset {offset} was shown to a reader and is gone"));
            }
        }
        Ok(())
    }
}

/// Which batch the records of a stored batch name; all must name the same and be complete.
pub(crate) fn batch_id(header: &BatchHeader, bytes: &[u8]) -> Verdict<u64> {
    let mut scratch = Scratch::default();
    let columns = Columns::open(&bytes[HEADER_BYTES..], header, &mut scratch).map_err(|error| error.to_string())?;
    let first = columns.record(0).and_then(|record| record.value).ok_or("a batch without records")?;
    let id = std::str::from_utf8(first).ok().and_then(|text| text.split(':').next()?.parse().ok());
    id.ok_or_else(|| "a value that was never sent".into())
}

/// Opens partitions 1 to `partitions` and waits until they take appends.
pub(crate) fn open_all(runner: &mut Runner, partitions: u64, config: TopicConfig) -> Verdict<Vec<Opened>> {
    (1..=partitions).for_each(|uid| runner.command(Command::Open(owner(uid), config)));
    let wait = |runner: &mut Runner, uid| {
        let opened = runner.wait_for(|effect| match effect {
            Effect::Opened(opened, result) if opened.0 == uid => Some(result.clone()),
            _ => None,
        });
        opened.ok_or("never opened")?.map_err(|error| format!("partition {uid} does not open: {error}"))
    };
    (1..=partitions).map(|uid| wait(runner, uid)).collect()
}

/// One fetch of one partition, waited for.
pub(crate) fn fetch(runner: &mut Runner, uid: u64, offset: u64, bytes_max: usize) -> Result<Vec<Block>, FetchError> {
    let number = 1 << 40 | runner.random.next() >> 32;
    let parts = vec![FetchPart { partition: PartitionUid(uid), offset: Offset(offset), bytes_max }];
    let spec = FetchSpec { parts, bytes_min: 1, bytes_max, wait_ms: 0 };
    runner.command(Command::Fetch(RequestId(number), spec));
    let fetched = runner.wait_for(|effect| match effect {
        Effect::Fetched(request, parts) if request.0 == number => Some(parts[0].batches.clone()),
        _ => None,
    });
    fetched.expect("a fetch that does not wait is answered")
}

/// Everything that `uid` serves from `offset` up to its high watermark, stepping over nothing.
pub(crate) fn read_all(runner: &mut Runner, uid: u64, mut offset: u64) -> Verdict<Vec<(BatchHeader, Block)>> {
    let mut stored = Vec::new();
    loop {
        let bytes_max = 1 + runner.random.below(100_000) as usize;
        let slices = fetch(runner, uid, offset, bytes_max).map_err(|error| format!("fetch at {offset}: {error:?}"))?;
        if slices.is_empty() {
            return Ok(stored);
        }
        for slice in slices {
            let header = BatchHeader::decode(&slice).map_err(|error| error.to_string())?;
            coulee_protocol::batch::check_payload_crc(&header, &slice[HEADER_BYTES..]).map_err(|_| "payload crc")?;
            offset = header.end_offset().0;
            stored.push((header, slice));
        }
    }
}

/// Starts over on `disk` and checks all partitions against the model.
pub(crate) fn restart(disk: MemoryDisk, model: &mut Model, partitions: u64, seed: u64) -> Verdict<Runner> {
    let mut runner = Runner::start(disk, OPTIONS, seed).map_err(|error| error.to_string())?;
    for opened in open_all(&mut runner, partitions, model.config)? {
        if !opened.damage.is_empty() {
            return Err(format!("an unsynced tail was called damage: {:?}", opened.damage));
        }
    }
    for uid in 1..=partitions {
        let stored = read_all(&mut runner, uid, 0)?;
        let end = stored.last().map_or(0, |(header, _)| header.end_offset().0);
        model.check(uid, &stored, end)?;
        forget_lost(model, uid, &stored)?;
    }
    Ok(runner)
}

/// What was not acknowledged and is not there is gone for good; what is there has been seen and has to stay.
fn forget_lost(model: &mut Model, uid: u64, stored: &[(BatchHeader, Block)]) -> Verdict {
    let mut kept = BTreeMap::new();
    for (header, bytes) in stored {
        kept.insert(batch_id(header, bytes)?, header.leader.base_offset.0);
    }
    model.sent.retain(|id, sent| sent.partition != uid || kept.contains_key(id));
    for (id, offset) in kept {
        model.seen.insert((uid, offset), id);
    }
    Ok(())
}

/// A generator for a seed, apart from the runner's own.
pub(crate) fn dice(seed: u64) -> Random {
    Random::new(seed ^ 0x5eed)
}

/// Sends a batch and does not wait.
pub(crate) fn send(runner: &mut Runner, uid: u64, id: u64, batch: &[u8]) {
    let (request, partition) = (RequestId(id), PartitionUid(uid));
    runner.command(Command::Produce { request, partition, acks: Acks::Acknowledged, batch: incoming(batch) });
}

/// Waits for the answer to request `id`, if it ever comes.
pub(crate) fn answer(runner: &mut Runner, id: u64) -> Option<Result<Produced, ProduceError>> {
    runner.wait_for(|effect| match effect {
        Effect::Produced(request, result) if request.0 == id => Some(*result),
        _ => None,
    })
}

/// Sends a batch of `records` records and waits until it is acknowledged.
pub(crate) fn append(runner: &mut Runner, uid: u64, id: u64, (records, bytes): Shape) -> Verdict<Produced> {
    send(runner, uid, id, &batch(id, records, bytes));
    let answer = answer(runner, id).ok_or_else(|| format!("batch {id} is never answered"))?;
    answer.map_err(|error| format!("batch {id} is refused: {error:?}"))
}

/// Steps until nothing happens any more without time passing.
pub(crate) fn quiesce(runner: &mut Runner) {
    let mut idle = 0;
    while idle < 8 {
        idle = if runner.step() { 0 } else { idle + 1 };
    }
}

/// Stops the shard cleanly and answers its disk.
pub(crate) fn stop(mut runner: Runner) -> Verdict<MemoryDisk> {
    runner.command(Command::Stop);
    let stopped = runner.wait_for(|effect| matches!(effect, Effect::Stopped).then_some(()));
    stopped.ok_or("never stops")?;
    Ok(runner.disk.clone())
}

/// The bytes of the file called `name`.
pub(crate) fn content(disk: &MemoryDisk, name: FileName) -> Vec<u8> {
    let found = disk.files().into_iter().find(|(found, _)| *found == name);
    found.unwrap_or_else(|| panic!("there is no {name}")).1
}

/// What a partition serves from its log start to its high watermark.
#[derive(Debug, Default)]
pub(crate) struct Served {
    /// Whole batches, by the offset of their first record.
    pub(crate) batches: Vec<(u64, Block)>,
    /// Ranges that are said to be damaged.
    pub(crate) lost: Vec<(u64, u64)>,
    /// The high watermark.
    pub(crate) end: u64,
}

/// Reads everything that `uid` serves and steps over what it says is damaged. Wrong is whatever is left out silently.
pub(crate) fn read_around(runner: &mut Runner, uid: u64) -> Verdict<Served> {
    let partition = runner.shard.partition(PartitionUid(uid)).ok_or("the partition is not open")?;
    let (mut offset, end) = (partition.log.log_start().0, partition.high_watermark().0);
    let mut served = Served { end, ..Served::default() };
    while offset < end {
        match fetch(runner, uid, offset, 1 << 20) {
            Ok(slices) if slices.is_empty() => return Err(format!("nothing at offset {offset}, below the end {end}")),
            Ok(slices) => {
                for slice in slices {
                    let header = BatchHeader::decode(&slice).map_err(|error| error.to_string())?;
                    if header.leader.base_offset.0 != offset {
                        return Err(format!("asked for {offset}, came {}", header.leader.base_offset));
                    }
                    served.batches.push((offset, slice));
                    offset = header.end_offset().0;
                }
            }
            Err(FetchError::Read(ReadError::Damaged { from, to, .. })) => {
                if !(from.0 <= offset && offset < to.0) {
                    return Err(format!("offset {offset} is said to be lost in {from} to {to}"));
                }
                served.lost.push((offset, to.0));
                offset = to.0;
            }
            Err(error) => return Err(format!("fetch at {offset}: {error:?}")),
        }
    }
    Ok(served)
}

/// Starts a shard on `disk` and opens `partitions` partitions with small segments.
pub(crate) fn start(disk: MemoryDisk, partitions: u64, seed: u64) -> Verdict<(Runner, Vec<Opened>)> {
    let mut runner = Runner::start(disk, OPTIONS, seed).map_err(|error| error.to_string())?;
    let opened = open_all(&mut runner, partitions, small_segments())?;
    Ok((runner, opened))
}
