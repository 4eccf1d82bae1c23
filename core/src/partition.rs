//! ⑤ One partition: orders produces, acknowledges them, and says what is visible; it knows no request but its number,
//! and no other partition.
//!
//! A produce is *ordered* when its batch has its offset and *acknowledged* when the topic's acknowledged end has
//! passed it. Nothing at or above the high watermark is visible to a consumer; it never goes back.

use crate::config::{TimestampType, TopicConfig};
use crate::disk::Disk;
use crate::limits::WAITING_APPENDS_MAX;
use crate::log::recovery::RecoveryError;
use crate::log::segment::SegmentSize;
use crate::log::{AppendRefusal, Incoming, Log};
use crate::shard::acks::{Ack, AckQueue};
use crate::shard::{Now, RequestId};
use coulee_protocol::api::topics::Durability;
use coulee_protocol::batch::{BatchHeader, EntryError, check_entry};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{Offset, Timestamp};
use std::collections::VecDeque;

/// When a producer wants its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// Never.
    None,
    /// When the topic's durability is reached.
    Acknowledged,
}

/// Why a produce fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProduceError {
    /// The batch is refused; nothing was written.
    Entry(EntryError),
    /// No room on the device; nothing was written.
    DiskFull,
    /// Too many appends wait; nothing was written.
    Overloaded,
    /// A write or sync of this partition has failed: it takes no more; a batch in flight may have been written.
    Offline,
    /// The partition could not be opened when the broker started; nothing was written.
    Unopenable(RecoveryError),
    /// The shard does not have this partition; nothing was written.
    Unknown,
    /// The partition is being opened; nothing was written.
    Recovering,
    /// The broker is stopping; nothing was written.
    ShuttingDown,
}

impl ProduceError {
    /// The code on the wire.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Entry(EntryError::TooLarge { .. }) => ErrorCode::MessageTooLarge,
            Self::Entry(EntryError::NotForProducers | EntryError::LeaderFieldsSet) => ErrorCode::InvalidRecord,
            Self::Entry(EntryError::Compression(_)) => ErrorCode::UnsupportedCompressionType,
            Self::Entry(_) => ErrorCode::CorruptMessage,
            Self::DiskFull => ErrorCode::DiskFull,
            Self::Overloaded => ErrorCode::Overloaded,
            Self::Offline => ErrorCode::PartitionOffline,
            Self::Unopenable(error) => error.code(),
            Self::Unknown => ErrorCode::UnknownTopicOrPartition,
            Self::Recovering => ErrorCode::Recovering,
            Self::ShuttingDown => ErrorCode::ShuttingDown,
        }
    }
}

impl std::fmt::Display for ProduceError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Entry(error) => error.fmt(formatter),
            Self::Unopenable(error) => error.fmt(formatter),
            other => write!(formatter, "{}", other.code().meaning()),
        }
    }
}

impl std::error::Error for ProduceError {}

/// An append that waits for a segment file or for a sync. It has no offset yet.
#[derive(Debug)]
struct Waiting {
    request: RequestId,
    acks: Acks,
    header: BatchHeader,
    batch: Incoming,
}

/// One partition. Lives on the shard that owns it.
#[derive(Debug)]
pub struct Partition<D: Disk> {
    /// Its log.
    pub log: Log<D>,
    config: TopicConfig,
    high_watermark: Offset,
    acks: AckQueue,
    waiting: VecDeque<Waiting>,
    /// Fetches that wait for the high watermark to move, by number.
    parked: Vec<u64>,
    offline: bool,
    /// Append buffers that the shard has counted: bytes and number.
    counted: (usize, usize),
    /// Its epoch is in a durable checkpoint: it may append.
    writable: bool,
    /// A segment file is on its way.
    segment_requested: bool,
}

impl<D: Disk> Partition<D> {
    /// A partition over an opened log: everything that recovery kept is visible.
    #[must_use]
    pub fn new(log: Log<D>, config: TopicConfig) -> Self {
        let high_watermark = log.durable_end();
        Self {
            log,
            config,
            high_watermark,
            acks: AckQueue::default(),
            waiting: VecDeque::new(),
            parked: Vec::new(),
            offline: false,
            counted: (0, 0),
            writable: false,
            segment_requested: false,
        }
    }

    /// Below it records are visible to consumers.
    #[must_use]
    pub fn high_watermark(&self) -> Offset {
        if cfg!(coulee_mutation = "visible_before_durable") { self.log.written_end() } else { self.high_watermark }
    }

    /// What the topic is set to.
    #[must_use]
    pub const fn config(&self) -> &TopicConfig {
        &self.config
    }

    /// Sets the topic's configuration. A stricter durability takes hold as its end passes the high watermark.
    pub const fn set_config(&mut self, config: TopicConfig) {
        self.config = config;
        self.log.set_size_max(config.segment_size_max);
    }

    /// Whether a failed write or sync has stopped it.
    #[must_use]
    pub const fn is_offline(&self) -> bool {
        self.offline
    }

    /// Lets it append: the epoch that it stamps is in a durable checkpoint, so no later start will use it again.
    pub const fn allow_appends(&mut self) {
        self.writable = true;
    }

    /// Producers and appends that wait.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.acks.len() + self.waiting.len()
    }

    /// Checks a batch and orders it, or queues it where the log cannot take it now.
    ///
    /// # Errors
    /// [`ProduceError`]; nothing of the batch was written.
    pub fn produce(&mut self, request: RequestId, acks: Acks, batch: Incoming, now: Now) -> Result<(), ProduceError> {
        if self.offline {
            return Err(ProduceError::Offline);
        }
        if !self.writable {
            return Err(ProduceError::Recovering);
        }
        let header = check_entry(batch.bytes(), self.config.batch_bytes_max).map_err(ProduceError::Entry)?;
        let header = match self.config.timestamp_type {
            TimestampType::CreateTime => header,
            TimestampType::LogAppendTime => header.arrived_at(Timestamp(now.wall_ms)),
        };
        let waiting = Waiting { request, acks, header, batch };
        if self.waiting.is_empty() {
            let waits = self.order(waiting, now);
            self.waiting.extend(waits);
            return Ok(());
        }
        if self.waiting.len() >= WAITING_APPENDS_MAX {
            return Err(ProduceError::Overloaded);
        }
        self.waiting.push_back(waiting);
        Ok(())
    }

    /// Appends to the log, or gives the append back where it has to wait.
    fn order(&mut self, append: Waiting, now: Now) -> Option<Waiting> {
        let Waiting { request, acks, header, batch } = append;
        match self.log.append(header, batch, now.monotonic_ms) {
            Ok(stored) => {
                if acks == Acks::Acknowledged {
                    self.acks.push(Ack { request, base: stored.leader.base_offset, end: stored.end_offset() });
                }
                None
            }
            Err((_, batch)) => Some(Waiting { request, acks, header, batch }),
        }
    }

    /// Orders what waits, as far as the log takes it.
    pub fn order_waiting(&mut self, now: Now) {
        while let Some(next) = self.waiting.pop_front() {
            if let Some(next) = self.order(next, now) {
                self.waiting.push_front(next);
                break;
            }
        }
    }

    /// The size that the next segment file should have, and the least that the first waiting append fits in; once.
    pub fn segment_wanted(&mut self, now: Now) -> Option<(SegmentSize, SegmentSize)> {
        if self.segment_requested || self.offline {
            return None;
        }
        let next = self.waiting.front()?;
        match self.log.refusal(next.header.batch_len(), now.monotonic_ms)? {
            AppendRefusal::NeedsSegment(size) => {
                self.segment_requested = true;
                Some((size, SegmentSize::SMALLEST.holding(next.header.batch_len())))
            }
            AppendRefusal::TooMuchUnsynced => None,
        }
    }

    /// Whether appends wait.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// A segment file has come, or there is none to be had: then what waits is refused.
    pub fn segment_came(&mut self) {
        self.segment_requested = false;
    }

    /// Refuses everything that waits for a segment; none of it was written.
    pub fn refuse_waiting(&mut self) -> impl Iterator<Item = RequestId> + '_ {
        self.waiting.drain(..).filter(|waiting| waiting.acks == Acks::Acknowledged).map(|waiting| waiting.request)
    }

    /// Moves the high watermark after the log's ends have moved; whether it has.
    pub fn advance(&mut self) -> bool {
        let end = match self.config.durability {
            Durability::Fsync if cfg!(coulee_mutation = "ack_before_fsync") => self.log.written_end(),
            Durability::Fsync => self.log.durable_end(),
            Durability::Written => self.log.written_end().max(self.log.durable_end()),
        };
        let moved = end > self.high_watermark;
        self.high_watermark = self.high_watermark.max(end);
        moved
    }

    /// Producers whose batch is acknowledged now, in order.
    pub fn release_acks(&mut self) -> impl Iterator<Item = Ack> + '_ {
        self.acks.release(self.high_watermark)
    }

    /// Stops the partition after a failed write or sync: nothing more is taken or acknowledged until a restart has
    /// read the device. Who waits for an answer learns that the outcome is unknown.
    pub fn fail(&mut self) -> Vec<RequestId> {
        self.offline = true;
        let answered = |waiting: &Waiting| waiting.acks == Acks::Acknowledged;
        let waiting = self.waiting.drain(..).filter(answered).map(|waiting| waiting.request);
        self.acks.abandon().map(|ack| ack.request).chain(waiting).collect()
    }

    /// Bytes and number of the append buffers that the tail cache has kept since this was last asked.
    pub fn newly_kept(&mut self) -> (usize, usize) {
        let (before, now) = (self.counted, self.log.cached());
        assert!(now.0 >= before.0 && now.1 >= before.1, "a buffer that was counted goes by being evicted");
        self.counted = now;
        (now.0 - before.0, now.1 - before.1)
    }

    /// Lets the oldest append buffer go, which was counted; its bytes.
    pub fn evict(&mut self) -> Option<usize> {
        let bytes = self.log.evict()?;
        self.counted = (self.counted.0 - bytes, self.counted.1 - 1);
        Some(bytes)
    }

    /// Bytes of the append buffers that were counted and are still kept.
    #[must_use]
    pub const fn counted_bytes(&self) -> usize {
        self.counted.0
    }

    /// Parks fetch `number` until the high watermark moves.
    pub fn park(&mut self, number: u64) {
        if !self.parked.contains(&number) {
            self.parked.push(number);
        }
    }

    /// The fetches to look at again.
    pub fn unpark(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.parked)
    }

    /// Forgets fetch `number`.
    pub fn forget(&mut self, number: u64) {
        self.parked.retain(|parked| *parked != number);
    }
}
