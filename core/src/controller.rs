//! The owner of the catalog: reads it at start, makes changes durable, has them carried out; does no I/O, knows no
//! connection. It lives on shard 0.
//!
//! ```text
//!  all shards up ─▶ open `__catalog` ─▶ read it ─▶ every partition opened by its owner ─▶ settled
//!  change ─▶ planned ─▶ record appended, durable ─▶ applied, told to all shards ─▶ owners done ─▶ answered
//! ```
//! One record is under way at a time: the next change is planned against what the one before has made of the catalog.
//! What a crash left undone is finished at start: partitions of the catalog are opened, files of deleted ones removed.
//! Files of partitions that this catalog never made are left alone and reported.

use crate::block::Block;
use crate::catalog::record::CatalogRecord;
use crate::catalog::{Applied, CATALOG_UID, Catalog, Change, ChangeError, ReplayError};
use crate::groups::{OFFSETS_TOPIC_ID, partition_of};
use crate::limits::{CATALOG_CHANGES_WAITING_MAX, READ_BYTES, SHARD_PARTITIONS_MAX};
use crate::log::Incoming;
use crate::log::reader::ReadError;
use crate::log::recovery::RecoveryError;
use crate::partition::{Acks, ProduceError};
use crate::shard::fetches::{FetchError, FetchPart, FetchSpec, FetchedPart};
use crate::shard::{Command, Now, Opened, Order, Produced, RequestId};
use coulee_protocol::api::topics::is_internal;
use coulee_protocol::batch::{BatchHeader, HEADER_BYTES};
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::columns::{Columns, Scratch};
use coulee_protocol::compression::Codec;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{ClusterId, LeaderEpoch, Offset, PartitionUid, ShardId, Timestamp, TopicId};
use coulee_protocol::limits::BATCH_BYTES_DEFAULT_MAX;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::rc::Rc;

/// Names the controller's own produces and fetches of the catalog's partition.
pub const CATALOG_REQUEST: RequestId = RequestId(u64::MAX);

/// What the controller is told.
#[derive(Debug)]
pub enum Event {
    /// Another shard, or this one, has read its checkpoint and takes commands.
    ShardStarted,
    /// A shard has opened a partition, or could not.
    Opened(PartitionUid, Result<Opened, RecoveryError>),
    /// A failed write or sync has stopped a partition.
    Offline(PartitionUid),
    /// A shard has removed a partition's files, or not all of them.
    Deleted(PartitionUid),
    /// The answer to [`CATALOG_REQUEST`] as a produce.
    Produced(Result<Produced, ProduceError>),
    /// The answer to [`CATALOG_REQUEST`] as a fetch.
    Fetched(Vec<FetchedPart>),
    /// Someone wants a change.
    Change(RequestId, Change),
    /// The broker is stopping: no more changes.
    Stop,
}

/// What has changed, for the view of every shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A record was applied.
    Record(CatalogRecord),
    /// A partition takes requests.
    Opened(PartitionUid, LeaderEpoch),
    /// A partition takes none, and why.
    Closed(PartitionUid, ErrorCode),
    /// Every partition has been opened, or could not be.
    Settled,
}

/// What the controller does.
#[derive(Debug)]
pub enum Effect {
    /// A command for the controller's own shard.
    Own(Command),
    /// An order for a shard.
    Order(ShardId, Order),
    /// News for the view of every shard.
    Tell(Told),
    /// The answer to a change.
    Changed(RequestId, Result<Changed, ChangeError>),
    /// A directory of a partition that this catalog never made; it is left as it is.
    Foreign(PartitionUid),
    /// The broker cannot start.
    Failed(StartError),
}

/// What a change brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The topic.
    pub topic_id: TopicId,
    /// Its partitions now.
    pub partitions: u32,
}

/// Why the broker cannot start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The catalog's log could not be opened.
    Open(RecoveryError),
    /// Part of the catalog's log is damaged.
    Damaged {
        /// First offset that is lost.
        from: Offset,
        /// First offset behind the loss.
        to: Offset,
    },
    /// The catalog's log could not be read.
    Read(FetchError),
    /// A batch of the catalog's log holds no records of ours.
    Batch {
        /// Offset of its first record.
        offset: Offset,
    },
    /// Its records do not fit together.
    Replay {
        /// Offset of the record.
        offset: Offset,
        /// Why.
        error: ReplayError,
    },
    /// With so few shards one would have more partitions than it can carry.
    TooManyPartitions {
        /// The shard.
        shard: ShardId,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => write!(formatter, "the catalog cannot be opened: {error}"),
            Self::Damaged { from, to } => {
                write!(
                    formatter,
                    "the catalog is damaged from offset {from} to {to}: restore p/{CATALOG_UID} from a copy"
                )
            }
            Self::Read(error) => write!(formatter, "the catalog cannot be read: {}", error.code().meaning()),
            Self::Batch { offset } => write!(formatter, "the catalog holds no record of ours at offset {offset}"),
            Self::Replay { offset, error } => write!(formatter, "the catalog breaks off at offset {offset}: {error}"),
            Self::TooManyPartitions { shard } => write!(
                formatter,
                "shard {shard} would have more than {SHARD_PARTITIONS_MAX} partitions: start with more shards"
            ),
        }
    }
}

impl std::error::Error for StartError {}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// Shards that have not reported yet.
    Starting(u16),
    /// The catalog's partition is being opened.
    Opening,
    /// The catalog is being read, from this offset on.
    Reading(Offset),
    /// Changes are taken.
    Ready,
    /// The broker stops, or could not start.
    Ended,
}

/// A change whose record is applied and whose partitions are not all done yet.
#[derive(Debug)]
struct Awaiting {
    request: RequestId,
    changed: Changed,
    left: BTreeSet<PartitionUid>,
    /// One of them could not be opened or removed.
    failed: bool,
}

/// The controller.
#[derive(Debug)]
pub struct Controller {
    cluster_id: ClusterId,
    shards: u16,
    catalog: Catalog,
    phase: Phase,
    /// Partition directories found at start.
    directories: Vec<PartitionUid>,
    /// To be opened at start and not reported yet; then those that could not be.
    unopened: BTreeSet<PartitionUid>,
    unopenable: BTreeSet<PartitionUid>,
    settled: bool,
    queue: VecDeque<(RequestId, Change)>,
    writing: Option<(RequestId, CatalogRecord)>,
    awaiting: Vec<Awaiting>,
    effects: Vec<Effect>,
}

impl Controller {
    /// A controller of `shards` shards that has not read its catalog yet; `directories` are the partitions that have
    /// one on disk.
    #[must_use]
    pub fn new(cluster_id: ClusterId, shards: u16, directories: Vec<PartitionUid>) -> Self {
        Self {
            cluster_id,
            shards,
            catalog: Catalog::default(),
            phase: Phase::Starting(shards),
            directories,
            unopened: BTreeSet::new(),
            unopenable: BTreeSet::new(),
            settled: false,
            queue: VecDeque::new(),
            writing: None,
            awaiting: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// The catalog as far as it is applied.
    #[must_use]
    pub const fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Takes an event at `now` and answers what is to be done, in order.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Effect> {
        match event {
            Event::ShardStarted => self.shard_started(),
            Event::Opened(uid, opened) => self.opened(uid, opened),
            Event::Offline(uid) => self.tell(Told::Closed(uid, ErrorCode::PartitionOffline)),
            Event::Deleted(uid) => self.done(uid, true),
            Event::Fetched(parts) => self.fetched(parts),
            Event::Produced(result) => self.produced(result),
            Event::Change(request, change) => self.change(request, change),
            Event::Stop => self.stop(),
        }
        self.plan_next(now);
        std::mem::take(&mut self.effects)
    }

    fn tell(&mut self, told: Told) {
        self.effects.push(Effect::Tell(told));
    }

    fn fail(&mut self, error: StartError) {
        self.phase = Phase::Ended;
        self.effects.push(Effect::Failed(error));
    }

    fn shard_started(&mut self) {
        // Only now may anything write a checkpoint: every shard has read those of all others.
        let Phase::Starting(left) = &mut self.phase else { return };
        *left -= 1;
        if *left == 0 {
            self.phase = Phase::Opening;
            self.order_open(CATALOG_UID);
        }
    }

    fn order_open(&mut self, uid: PartitionUid) {
        let owner = self.catalog.owner(uid, self.cluster_id).expect("a partition of the catalog");
        let (topic, _) = self.catalog.partition(uid).expect("a partition of the catalog");
        self.order(uid, Order::Open(owner, topic.config));
    }

    fn order(&mut self, uid: PartitionUid, order: Order) {
        let shard = self.catalog.shard_of(uid, self.shards).expect("a partition of the catalog");
        self.effects.push(Effect::Order(shard, order));
    }

    fn opened(&mut self, uid: PartitionUid, opened: Result<Opened, RecoveryError>) {
        let told = match &opened {
            Ok(opened) => Told::Opened(uid, opened.epoch),
            Err(error) => Told::Closed(uid, error.code()),
        };
        self.tell(told);
        if uid == CATALOG_UID {
            return self.catalog_opened(opened);
        }
        if opened.is_err() {
            self.unopenable.insert(uid);
        }
        self.unopened.remove(&uid);
        self.done(uid, opened.is_ok());
        self.settle();
    }

    fn catalog_opened(&mut self, opened: Result<Opened, RecoveryError>) {
        match opened {
            Err(error) => self.fail(StartError::Open(error)),
            Ok(opened) => match opened.damage.first() {
                // A topic that is not seen would have its files taken for foreign, and its uids given out again.
                Some(damage) => self.fail(StartError::Damaged { from: damage.from, to: damage.to }),
                None => self.read_on(opened.log_start),
            },
        }
    }

    fn read_on(&mut self, offset: Offset) {
        self.phase = Phase::Reading(offset);
        let part = FetchPart { partition: CATALOG_UID, offset, bytes_max: READ_BYTES };
        let spec = FetchSpec { parts: vec![part], bytes_min: 1, bytes_max: READ_BYTES, wait_ms: 0 };
        self.effects.push(Effect::Own(Command::Fetch(CATALOG_REQUEST, spec)));
    }

    fn fetched(&mut self, parts: Vec<FetchedPart>) {
        let Phase::Reading(mut next) = self.phase else { return };
        for part in parts {
            let slices = match part.batches {
                Ok(slices) => slices,
                Err(FetchError::Read(ReadError::Damaged { from, to, .. })) => {
                    return self.fail(StartError::Damaged { from, to });
                }
                Err(error) => return self.fail(StartError::Read(error)),
            };
            if slices.is_empty() {
                return self.replayed();
            }
            for slice in slices {
                match self.replay(&slice) {
                    Ok(end) => next = end,
                    Err(error) => return self.fail(error),
                }
            }
        }
        self.read_on(next);
    }

    /// Applies the records of a batch and answers the offset behind it.
    fn replay(&mut self, batch: &[u8]) -> Result<Offset, StartError> {
        let header = BatchHeader::decode(batch).map_err(|_| StartError::Batch { offset: Offset(0) })?;
        let mut scratch = Scratch::default();
        let base = header.leader.base_offset;
        let columns = Columns::open(&batch[HEADER_BYTES..], &header, &mut scratch);
        let columns = columns.map_err(|_| StartError::Batch { offset: base })?;
        for (offset, value) in (base.0..).map(Offset).zip(columns.values()) {
            let record = CatalogRecord::decode(value.ok_or(StartError::Batch { offset })?).map_err(ReplayError::Record);
            let applied = record.and_then(|record| self.catalog.apply(&record).map(|_| record));
            let record = applied.map_err(|error| StartError::Replay { offset, error })?;
            self.tell(Told::Record(record));
        }
        Ok(header.end_offset())
    }

    /// The catalog is read: has every partition opened, and removes what deleted ones left behind.
    fn replayed(&mut self) {
        let mut carried: BTreeMap<ShardId, usize> = BTreeMap::new();
        let uids: Vec<PartitionUid> = self.catalog.partition_uids().collect();
        for shard in uids.iter().filter_map(|uid| self.catalog.shard_of(*uid, self.shards)) {
            *carried.entry(shard).or_default() += 1;
        }
        if let Some((shard, _)) = carried.iter().find(|(_, count)| **count > SHARD_PARTITIONS_MAX) {
            return self.fail(StartError::TooManyPartitions { shard: *shard });
        }
        self.phase = Phase::Ready;
        for uid in uids.into_iter().filter(|uid| *uid != CATALOG_UID) {
            self.unopened.insert(uid);
            self.order_open(uid);
        }
        for uid in std::mem::take(&mut self.directories) {
            if self.catalog.was_deleted(uid) {
                self.effects.push(Effect::Order(ShardId(0), Order::Delete(uid)));
            } else if self.catalog.partition(uid).is_none() {
                self.effects.push(Effect::Foreign(uid));
            }
        }
        self.settle();
    }

    /// Once all partitions are opened, lets every shard forget what old checkpoints say of partitions of others.
    fn settle(&mut self) {
        if self.settled || self.phase != Phase::Ready || !self.unopened.is_empty() {
            return;
        }
        self.settled = true;
        for shard in 0..self.shards {
            self.effects.push(Effect::Order(ShardId(shard), Order::Settle(self.unopenable.clone())));
        }
        self.tell(Told::Settled);
    }

    fn change(&mut self, request: RequestId, change: Change) {
        let refused = match self.phase {
            Phase::Ended => Some(ErrorCode::ShuttingDown),
            Phase::Ready if self.queue.len() < CATALOG_CHANGES_WAITING_MAX => None,
            Phase::Ready => Some(ErrorCode::Overloaded),
            _ => Some(ErrorCode::Recovering),
        };
        match refused {
            Some(code) => self.effects.push(Effect::Changed(request, Err(ChangeError::Log(code)))),
            None => self.queue.push_back((request, change)),
        }
    }

    fn stop(&mut self) {
        self.phase = Phase::Ended;
        for (request, _) in std::mem::take(&mut self.queue) {
            let refused = Err(ChangeError::Log(ErrorCode::ShuttingDown));
            self.effects.push(Effect::Changed(request, refused));
        }
    }

    /// Plans the next change that waits, if none is being written.
    fn plan_next(&mut self, now: Now) {
        while self.writing.is_none()
            && let Some((request, change)) = self.queue.pop_front()
        {
            match self.catalog.plan(change, self.shards) {
                Err(error) => self.effects.push(Effect::Changed(request, Err(error))),
                Ok(record) => {
                    let batch = Incoming::Shared(batch_of(&record, now));
                    let (partition, acks) = (CATALOG_UID, Acks::Acknowledged);
                    let produce = Command::Produce { request: CATALOG_REQUEST, partition, acks, batch };
                    self.effects.push(Effect::Own(produce));
                    self.writing = Some((request, record));
                }
            }
        }
    }

    fn produced(&mut self, result: Result<Produced, ProduceError>) {
        let Some((request, record)) = self.writing.take() else { return };
        if let Err(error) = result {
            let refused = Err(ChangeError::Log(error.code()));
            self.effects.push(Effect::Changed(request, refused));
            return;
        }
        let applied = self.catalog.apply(&record).expect("a record applies to the state it was planned against");
        let deleted = if let Applied::Deleted(topic) = &applied { topic.partitions.clone() } else { Vec::new() };
        for placed in &deleted {
            let shard = placed.slot.shard(self.shards);
            self.effects.push(Effect::Order(shard, Order::Delete(placed.uid)));
        }
        self.tell(Told::Record(record));
        let (changed, left) = match applied {
            Applied::Deleted(topic) => {
                let left = deleted.iter().map(|placed| placed.uid).collect();
                (Changed { topic_id: topic.id, partitions: 0 }, left)
            }
            Applied::Created(id) => self.carry_out(id, 0),
            Applied::Altered(id, first_new) => self.carry_out(id, first_new),
        };
        self.awaiting.push(Awaiting { request, changed, left, failed: false });
        self.answer();
    }

    /// Has the new partitions of a topic opened, from number `first_new` on, and the others set anew.
    fn carry_out(&mut self, id: TopicId, first_new: u32) -> (Changed, BTreeSet<PartitionUid>) {
        let topic = self.catalog.topic_by_id(id).expect("it was just applied");
        let (config, uids) = (topic.config, topic.partitions.iter().map(|placed| placed.uid).collect::<Vec<_>>());
        let (present, new) = uids.split_at(first_new as usize);
        present.iter().for_each(|uid| self.order(*uid, Order::Alter(*uid, config)));
        new.iter().for_each(|uid| self.order_open(*uid));
        (Changed { topic_id: id, partitions: uids.len() as u32 }, new.iter().copied().collect())
    }

    /// A partition has been opened or removed.
    fn done(&mut self, uid: PartitionUid, well: bool) {
        for awaiting in &mut self.awaiting {
            awaiting.failed |= awaiting.left.remove(&uid) && !well;
        }
        self.answer();
    }

    fn answer(&mut self) {
        let ready = |awaiting: &mut Awaiting| awaiting.left.is_empty();
        for awaiting in self.awaiting.extract_if(.., ready) {
            let result = if awaiting.failed { Err(ChangeError::NotOpened) } else { Ok(awaiting.changed) };
            self.effects.push(Effect::Changed(awaiting.request, result));
        }
    }
}

/// A batch with one record.
fn batch_of(record: &CatalogRecord, now: Now) -> Block {
    let value = record.encode();
    let mut builder = BatchBuilder::new(Codec::None, BATCH_BYTES_DEFAULT_MAX);
    let record = NewRecord { timestamp: Timestamp(now.wall_ms), value: Some(&value), ..NewRecord::default() };
    builder
        .push(&record)
        .expect("256 settings of a few bytes each fit a batch: their keys are known, their values short");
    Block::from_owner(Rc::new(builder.finish().expect("the batch has a record")))
}

/// What one shard knows of the catalog: enough to answer Metadata and to forward a request.
#[derive(Debug, Default)]
pub struct View {
    catalog: Catalog,
    states: BTreeMap<PartitionUid, Result<LeaderEpoch, ErrorCode>>,
    settled: bool,
}

impl View {
    /// Takes news from the controller, in the order in which it tells them.
    pub fn hear(&mut self, told: &Told) {
        match told {
            Told::Record(record) => {
                let applied = self.catalog.apply(record).expect("the controller has applied the same records");
                if let Applied::Deleted(topic) = applied {
                    topic.partitions.iter().for_each(|placed| {
                        self.states.remove(&placed.uid);
                    });
                }
            }
            Told::Opened(uid, epoch) => drop(self.states.insert(*uid, Ok(*epoch))),
            Told::Closed(uid, code) => drop(self.states.insert(*uid, Err(*code))),
            Told::Settled => self.settled = true,
        }
    }

    /// The catalog.
    #[must_use]
    pub const fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The shard that coordinates a group of this name, among `shards`; `None` where the topic of committed offsets is
    /// still to be made.
    ///
    /// # Errors
    /// Why the coordinator cannot be asked now.
    pub fn coordinator(&self, group: &str, shards: u16) -> Result<Option<ShardId>, ErrorCode> {
        let Some(topic) = self.catalog.topic_by_id(OFFSETS_TOPIC_ID) else {
            return if self.settled { Ok(None) } else { Err(ErrorCode::Recovering) };
        };
        let placed = topic.partitions[partition_of(group) as usize];
        match self.state(placed.uid) {
            // One that takes no records still knows what was committed.
            Ok(_) | Err(ErrorCode::PartitionOffline) => Ok(Some(placed.slot.shard(shards))),
            Err(ErrorCode::Recovering) => Err(ErrorCode::CoordinatorLoadInProgress),
            Err(code) => Err(code),
        }
    }

    /// The shard that a client's records for a partition go to, among `shards`; `None` where nobody knows it.
    ///
    /// # Errors
    /// INVALID_TOPIC_EXCEPTION: the topic is the broker's own.
    pub fn writable(&self, uid: PartitionUid, shards: u16) -> Result<Option<ShardId>, ErrorCode> {
        let Some((topic, number)) = self.catalog.partition(uid) else { return Ok(None) };
        if is_internal(&topic.name) {
            return Err(ErrorCode::InvalidTopicException);
        }
        Ok(Some(topic.partitions[number as usize].slot.shard(shards)))
    }

    /// Whether every partition has been opened, or could not be.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.settled
    }

    /// What is to be said of something that the catalog does not have: it may come as long as that is being read.
    #[must_use]
    pub const fn absent(&self) -> ErrorCode {
        if self.settled { ErrorCode::UnknownTopicOrPartition } else { ErrorCode::Recovering }
    }

    /// Partitions that take requests, and partitions in all: how far a start has come.
    #[must_use]
    pub fn progress(&self) -> (usize, usize) {
        (self.states.len(), self.catalog.partition_uids().count())
    }

    /// The epoch of a partition's leader, or why the partition takes no requests.
    ///
    /// # Errors
    /// RECOVERING while it is being opened, PARTITION_OFFLINE, UNKNOWN_TOPIC_OR_PARTITION.
    pub fn state(&self, uid: PartitionUid) -> Result<LeaderEpoch, ErrorCode> {
        let is_known = self.catalog.partition(uid).is_some();
        let absent = if is_known { ErrorCode::Recovering } else { self.absent() };
        self.states.get(&uid).copied().unwrap_or(Err(absent))
    }
}
