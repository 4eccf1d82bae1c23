//! Fetches of a shard: parked as data while there is too little to send, read part by part when there is enough; knows
//! no connection and decides nothing about what is visible.
//!
//! A parked fetch is one entry here and its number in each of its partitions; a partition whose high watermark moves
//! names the fetches to look at again.

use super::{Done, Effect, RequestId, Shard};
use crate::block::Block;
use crate::disk::Disk;
use crate::limits::{FETCH_READ_BYTES, PARKED_FETCHES_MAX};
use crate::log::Read;
use crate::log::reader::{Batches, ReadError};
use crate::partition::Partition;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{Offset, PartitionUid};
use std::collections::{BTreeMap, BTreeSet};

/// One partition of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchPart {
    /// Which.
    pub partition: PartitionUid,
    /// First offset wanted.
    pub offset: Offset,
    /// Bytes wanted of it at most; one batch comes in any case.
    pub bytes_max: usize,
}

/// What is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchSpec {
    /// The partitions, in the order in which they are read.
    pub parts: Vec<FetchPart>,
    /// Answer when this many bytes are there.
    pub bytes_min: usize,
    /// Bytes of all parts at most; one batch comes in any case.
    pub bytes_max: usize,
    /// Answer at the latest this long after now, in milliseconds.
    pub wait_ms: u64,
}

/// Why a part of a fetch brings nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// The shard does not have this partition, or not yet, or could not open it.
    Absent(ErrorCode),
    /// The offset is below the log start or above the log end.
    OffsetOutOfRange,
    /// Too many fetches wait on this shard.
    Overloaded,
    /// The range is damaged or cannot be read.
    Read(ReadError),
}

impl FetchError {
    /// The code on the wire.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Absent(code) => *code,
            Self::OffsetOutOfRange => ErrorCode::OffsetOutOfRange,
            Self::Overloaded => ErrorCode::Overloaded,
            Self::Read(ReadError::Damaged { .. }) => ErrorCode::RangeDamaged,
            Self::Read(ReadError::Disk(_)) => ErrorCode::KafkaStorageError,
        }
    }
}

/// What a fetch brings of one partition.
#[derive(Clone, Debug)]
pub struct FetchedPart {
    /// Which.
    pub partition: PartitionUid,
    /// Whole batches in order, the first of which holds the offset asked for; or why there are none.
    pub batches: Result<Vec<Block>, FetchError>,
    /// Below it records are visible.
    pub high_watermark: Offset,
    /// First readable offset.
    pub log_start: Offset,
}

#[derive(Debug)]
struct Fetch {
    request: RequestId,
    spec: FetchSpec,
    deadline_ms: u64,
    done: Vec<FetchedPart>,
    bytes: usize,
}

/// The fetches that a shard has in hand.
#[derive(Debug, Default)]
pub struct Fetches {
    all: BTreeMap<u64, Fetch>,
    deadlines: BTreeSet<(u64, u64)>,
    next_number: u64,
}

impl Fetches {
    /// When the next parked fetch has waited long enough.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}

impl<D: Disk> Shard<D> {
    pub(super) fn fetch(&mut self, request: RequestId, spec: FetchSpec) {
        let number = self.fetches.next_number;
        self.fetches.next_number += 1;
        let deadline_ms = self.now.monotonic_ms.saturating_add(spec.wait_ms);
        let fetch = Fetch { request, spec, deadline_ms, done: Vec::new(), bytes: 0 };
        let ready = fetch.spec.wait_ms == 0 || self.is_ready(&fetch.spec);
        if !ready && self.fetches.deadlines.len() >= PARKED_FETCHES_MAX {
            let refused = |part: &FetchPart| self.nothing(part.partition, FetchError::Overloaded);
            let parts = fetch.spec.parts.iter().map(refused).collect();
            self.effects.push_back(Effect::Fetched(request, parts));
            return;
        }
        self.fetches.all.insert(number, fetch);
        if ready {
            self.read_next(number);
        } else {
            self.park(number);
        }
    }

    fn park(&mut self, number: u64) {
        let Some(fetch) = self.fetches.all.get(&number) else { return };
        self.fetches.deadlines.insert((fetch.deadline_ms, number));
        for part in &fetch.spec.parts {
            if let Some(partition) = self.partitions.get_mut(&part.partition) {
                partition.park(number);
            }
        }
    }

    /// Whether a fetch given now would wait for records.
    #[must_use]
    pub fn would_wait(&self, spec: &FetchSpec) -> bool {
        spec.wait_ms > 0 && !self.is_ready(spec)
    }

    /// Whether enough is there, or something has to be said at once.
    fn is_ready(&self, spec: &FetchSpec) -> bool {
        let mut bytes = 0;
        for part in &spec.parts {
            let Some(partition) = self.partitions.get(&part.partition) else { return true };
            let (start, visible) = (partition.log.log_start(), partition.high_watermark());
            if part.offset < start || part.offset > partition.log.log_end() {
                return true;
            }
            bytes += partition.log.bytes_between(part.offset, visible, spec.bytes_min.max(1));
        }
        bytes >= spec.bytes_min.max(1)
    }

    /// Answers the fetch of `request`, if it waits, with what there is.
    pub(super) fn hurry(&mut self, request: RequestId) {
        let found = self.fetches.all.iter().find(|(_, fetch)| fetch.request == request);
        let Some((&number, fetch)) = found else { return };
        if self.fetches.deadlines.contains(&(fetch.deadline_ms, number)) {
            self.unpark(number);
            self.read_next(number);
        }
    }

    /// Fetches that wait for records.
    pub(super) fn parked(&self) -> usize {
        self.fetches.deadlines.len()
    }

    /// Looks at parked fetches again.
    pub(super) fn wake_fetches(&mut self, numbers: &[u64]) {
        for number in numbers {
            let Some(fetch) = self.fetches.all.get(number) else { continue };
            if self.is_ready(&fetch.spec) {
                self.unpark(*number);
                self.read_next(*number);
            } else {
                self.park(*number);
            }
        }
    }

    fn unpark(&mut self, number: u64) {
        let Some(fetch) = self.fetches.all.get(&number) else { return };
        self.fetches.deadlines.remove(&(fetch.deadline_ms, number));
        for part in &fetch.spec.parts {
            if let Some(partition) = self.partitions.get_mut(&part.partition) {
                partition.forget(number);
            }
        }
    }

    /// Answers the fetches that have waited long enough with what is there.
    pub(super) fn expire_fetches(&mut self) -> bool {
        let mut worked = false;
        while let Some((deadline, number)) = self.fetches.deadlines.first().copied() {
            if deadline > self.now.monotonic_ms {
                break;
            }
            self.unpark(number);
            self.read_next(number);
            worked = true;
        }
        worked
    }

    /// Answers every fetch parked on a partition that goes away.
    pub(super) fn fetches_of(&mut self, partition: &mut Partition<D>) {
        for number in partition.unpark() {
            self.unpark(number);
            self.read_next(number);
        }
    }

    fn nothing(&self, uid: PartitionUid, error: FetchError) -> FetchedPart {
        let partition = self.partitions.get(&uid);
        FetchedPart {
            partition: uid,
            batches: Err(error),
            high_watermark: partition.map(Partition::high_watermark).unwrap_or_default(),
            log_start: partition.map(|partition| partition.log.log_start()).unwrap_or_default(),
        }
    }

    /// Reads the parts that are left, until one has to wait for the disk, then answers.
    fn read_next(&mut self, number: u64) {
        loop {
            let Some(fetch) = self.fetches.all.get(&number) else { return };
            let Some(part) = fetch.spec.parts.get(fetch.done.len()).copied() else { break };
            let left = fetch.spec.bytes_max.saturating_sub(fetch.bytes);
            let full = fetch.bytes > 0 && left == 0;
            let Some(read) = self.read_part(&part, left, full) else { return self.wait_for(number, &part, left) };
            self.part_done(number, read);
        }
        if let Some(fetch) = self.fetches.all.remove(&number) {
            self.effects.push_back(Effect::Fetched(fetch.request, fetch.done));
        }
    }

    fn part_done(&mut self, number: u64, part: FetchedPart) {
        if let Some(fetch) = self.fetches.all.get_mut(&number) {
            let slices = part.batches.as_deref().unwrap_or_default();
            fetch.bytes += slices.iter().map(|slice| slice.len()).sum::<usize>();
            fetch.done.push(part);
        }
    }

    /// A part that can be answered from memory, or `None` where the disk has to be asked.
    fn read_part(&mut self, part: &FetchPart, left: usize, full: bool) -> Option<FetchedPart> {
        let uid = part.partition;
        let Some(partition) = self.partitions.get(&uid) else {
            return Some(self.nothing(uid, FetchError::Absent(self.absence(uid).code())));
        };
        let (start, visible) = (partition.log.log_start(), partition.high_watermark());
        if part.offset < start || part.offset > partition.log.log_end() {
            return Some(self.nothing(uid, FetchError::OffsetOutOfRange));
        }
        let empty = FetchedPart { partition: uid, batches: Ok(Vec::new()), high_watermark: visible, log_start: start };
        if part.offset >= visible || full {
            return Some(empty);
        }
        match partition.log.read(part.offset, visible, part.bytes_max.min(left)) {
            Ok(Read::Tail(slices, _)) => {
                self.counters.tail_batches += slices.len() as u64;
                Some(FetchedPart { batches: Ok(slices), ..empty })
            }
            Ok(Read::File(_)) => None,
            Err(error) => {
                self.counters.damaged_reads += 1;
                Some(self.nothing(uid, FetchError::Read(error)))
            }
        }
    }

    /// Reads a part from its file; the fetch goes on when that has come.
    fn wait_for(&self, number: u64, part: &FetchPart, left: usize) {
        let Some(partition) = self.partitions.get(&part.partition) else { return };
        let bytes_max = part.bytes_max.min(left).min(FETCH_READ_BYTES);
        let read = partition.log.read(part.offset, partition.high_watermark(), bytes_max);
        let Ok(Read::File(job)) = read else { return };
        let offset = part.offset;
        self.io.push(Box::pin(async move { Done::Read(number, job.read(offset, bytes_max).await) }));
    }

    pub(super) fn fetch_read(&mut self, number: u64, result: Result<Batches<D::File>, ReadError>) {
        let Some(fetch) = self.fetches.all.get(&number) else { return };
        let Some(part) = fetch.spec.parts.get(fetch.done.len()).copied() else { return };
        let read = match result {
            Ok(batches) => {
                self.counters.read_bytes += batches.bytes_read;
                let (base, file) = batches.file;
                self.keep_file(part.partition, base, file);
                let nothing = self.nothing(part.partition, FetchError::Absent(ErrorCode::UnknownTopicOrPartition));
                FetchedPart { batches: Ok(batches.slices), ..nothing }
            }
            Err(error) => {
                self.counters.damaged_reads += u64::from(matches!(error, ReadError::Damaged { .. }));
                self.nothing(part.partition, FetchError::Read(error))
            }
        };
        self.part_done(number, read);
        self.read_next(number);
    }
}
