//! ④ One core of the broker: owns its partitions and turns commands into effects, cycle by cycle; it knows no socket,
//! no clock and no other shard.
//!
//! A cycle: reap what the disk has completed, submit writes, start the sync if none is in flight, release acks, answer
//! fetches, then background work. Commands come in between cycles; effects are taken out after one. The server runs
//! this very loop over glommio, the simulator over a seeded executor.
//!
//! Sketch: one boxed future a write, a sync or a cold read, nothing a batch or a record; one map look-up a request.

use crate::block::BlockPool;
use crate::checkpoint::{self, PartitionCheckpoint};
use crate::config::TopicConfig;
use crate::disk::{Disk, DiskError};
use crate::groups::request::Listed as ListedGroup;
use crate::groups::{Answer as GroupAnswer, GroupRequest, Options as GroupOptions};
use crate::limits::SHARD_PARTITIONS_MAX;
use crate::log::appender::{Mark, WriteId};
use crate::log::reader::{Batches, ReadError, TimedOffset};
use crate::log::recovery::{self, RecoveryError, Report};
use crate::log::segment::{Owner, SegmentSize};
use crate::log::{Incoming, Log, NewSegment, RetiredFile};
use crate::partition::{Acks, Partition, ProduceError};
use crate::pool::{self, ReadyFile, SegmentPool};
use coordinators::Coordinators;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{LeaderEpoch, Offset, PartitionUid, Timestamp, TopicId};
use fetches::{FetchSpec, FetchedPart, Fetches};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::task::{Context, Poll};

pub mod acks;
mod background;
pub mod budget;
mod commit;
mod coordinators;
pub mod fetches;

/// Names a request; whoever sent the command knows it again in the effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// The time of a cycle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds that never go back, for intervals.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970, for timestamps.
    pub wall_ms: i64,
}

/// What a shard is told.
#[derive(Debug)]
pub enum Command {
    /// Open a partition, making its directory if there is none.
    Open(Owner, TopicConfig),
    /// Change a partition's configuration.
    Alter(PartitionUid, TopicConfig),
    /// Close a partition and remove its files.
    Delete(PartitionUid),
    /// Every partition has been opened by its shard, but for these: forget what old checkpoints say of others.
    Settle(BTreeSet<PartitionUid>),
    /// Say how a partition stands.
    Describe(RequestId, PartitionUid),
    /// Append a batch.
    Produce {
        /// Whom to answer.
        request: RequestId,
        /// The partition.
        partition: PartitionUid,
        /// When to answer.
        acks: Acks,
        /// One whole batch as it came.
        batch: Incoming,
    },
    /// Read batches of some partitions.
    Fetch(RequestId, FetchSpec),
    /// Answer a fetch that waits with what there is.
    Hurry(RequestId),
    /// Look an offset up.
    ListOffsets(RequestId, PartitionUid, OffsetQuery),
    /// Ask a group's coordinator.
    Group(RequestId, Box<GroupRequest>),
    /// List the groups of this shard's coordinators.
    ListGroups(RequestId),
    /// The catalog has been read: these are all topics.
    Topics(BTreeSet<TopicId>),
    /// A topic is gone.
    TopicDeleted(TopicId),
    /// Take no more produces, make everything durable, write a clean checkpoint.
    Stop,
}

/// What the controller tells the shard that owns a partition; it can go to another thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// [`Command::Open`].
    Open(Owner, TopicConfig),
    /// [`Command::Alter`].
    Alter(PartitionUid, TopicConfig),
    /// [`Command::Delete`].
    Delete(PartitionUid),
    /// [`Command::Settle`].
    Settle(BTreeSet<PartitionUid>),
}

impl From<Order> for Command {
    fn from(order: Order) -> Self {
        match order {
            Order::Open(owner, config) => Self::Open(owner, config),
            Order::Alter(uid, config) => Self::Alter(uid, config),
            Order::Delete(uid) => Self::Delete(uid),
            Order::Settle(unopened) => Self::Settle(unopened),
        }
    }
}

/// Which offset is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetQuery {
    /// The log start.
    Earliest,
    /// The high watermark.
    Latest,
    /// The first record at or after this time.
    AtOrAfter(Timestamp),
    /// The first record with the greatest time of all.
    MaxTimestamp,
}

/// What a produce brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    /// Offset of the batch's first record.
    pub base_offset: Offset,
    /// First readable offset of the partition.
    pub log_start: Offset,
    /// Its high watermark.
    pub high_watermark: Offset,
    /// The leader's epoch.
    pub epoch: LeaderEpoch,
}

/// How a partition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its leader epoch.
    pub epoch: LeaderEpoch,
    /// First readable offset.
    pub log_start: Offset,
    /// Below it records are visible.
    pub high_watermark: Offset,
    /// Next offset.
    pub log_end: Offset,
    /// Bytes of its segment files.
    pub bytes: u64,
    /// Its segments.
    pub segments: u32,
}

/// What an opened partition was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its leader epoch from now on.
    pub epoch: LeaderEpoch,
    /// First readable offset.
    pub log_start: Offset,
    /// Next offset.
    pub log_end: Offset,
    /// Damaged ranges.
    pub damage: Vec<crate::log::Damage>,
    /// What recovery did.
    pub report: Report,
}

/// What a look-up of an offset answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// The offset; with the time of its record where it was looked up by time.
    At(Offset, Option<Timestamp>),
    /// No record is that young.
    Nowhere,
    /// The partition is not here, or not yet.
    Absent(ErrorCode),
    /// It could not be read.
    Failed(ReadError),
}

/// What a shard does to the world.
#[derive(Debug)]
pub enum Effect {
    /// A partition is open and takes appends, or could not be opened.
    Opened(PartitionUid, Result<Opened, RecoveryError>),
    /// A partition's files are gone.
    Deleted(PartitionUid, Result<(), DiskError>),
    /// A failed write or sync has stopped a partition until the next start.
    Offline(PartitionUid),
    /// How a partition stands, or why that cannot be said.
    Described(RequestId, Result<Described, ErrorCode>),
    /// The answer to a produce.
    Produced(RequestId, Result<Produced, ProduceError>),
    /// The answer to a fetch.
    Fetched(RequestId, Vec<FetchedPart>),
    /// The answer to a look-up.
    Listed(RequestId, Listed),
    /// The answer of a group's coordinator.
    Group(RequestId, GroupAnswer),
    /// The groups of this shard's coordinators, or why they cannot be told.
    Groups(RequestId, Result<Vec<ListedGroup>, ErrorCode>),
    /// Everything is durable and the checkpoint is clean.
    Stopped,
}

/// Counts since start; plain numbers, read by Stats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Batches appended.
    pub batches: u64,
    /// Records appended.
    pub records: u64,
    /// Bytes of these batches.
    pub bytes: u64,
    /// Writes issued.
    pub writes: u64,
    /// Syncs of files and flushes of the device.
    pub syncs: u64,
    /// Of those, one flush of the device for several files.
    pub device_flushes: u64,
    /// Batches sent from memory.
    pub tail_batches: u64,
    /// Bytes read from files for fetches.
    pub read_bytes: u64,
    /// Segments that began in a file that was not zeroed ahead.
    pub fresh_segments: u64,
    /// Fetches that met damage.
    pub damaged_reads: u64,
    /// Partitions stopped by a failed write or sync.
    pub offline_partitions: u64,
    /// Bytes of batches copied in user space.
    pub copied_bytes: u64,
}

/// What a shard has now; plain numbers, read by Stats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Partitions that are open.
    pub partitions: u64,
    /// Of those, offline.
    pub partitions_offline: u64,
    /// Their segments.
    pub segments: u64,
    /// Bytes of their segment files.
    pub log_bytes: u64,
    /// Files in the pool.
    pub pool_segments: u64,
    /// Bytes of them.
    pub pool_bytes: u64,
    /// Produces that wait.
    pub pending_acks: u64,
    /// Fetches that wait.
    pub waiting_fetches: u64,
}

/// How a shard is set up.
#[derive(Clone, Copy, Debug)]
pub struct ShardOptions {
    /// Its number.
    pub id: u16,
    /// Bytes that the tail caches of its partitions may keep.
    pub tail_bytes: usize,
    /// Bytes of segment files kept in reserve.
    pub pool_bytes: u64,
}

/// Something the disk has completed.
enum Done<D: Disk> {
    Opened(PartitionUid, TopicConfig, Result<Box<(Log<D>, Report)>, RecoveryError>),
    Written(PartitionUid, WriteId, bool, Result<(), DiskError>),
    Synced(Synced),
    SegmentMade(PartitionUid, Result<NewSegment<D::File>, DiskError>),
    Named(PartitionUid, Offset, Result<(), DiskError>),
    Sealed(PartitionUid, Offset, Result<(), DiskError>),
    Read(u64, Result<Batches<D::File>, ReadError>),
    Found(RequestId, Result<Option<TimedOffset>, ReadError>),
    Checkpointed(u64, Result<(), DiskError>),
    PoolMade(Option<ReadyFile<D::File>>),
    /// Bytes that the pool expected, and the files that have come.
    Recycled(u64, Vec<ReadyFile<D::File>>),
    Removed(PartitionUid, Result<(), DiskError>, u64, Vec<ReadyFile<D::File>>),
}

/// What a sync has brought.
struct Synced {
    /// Each partition that it was for, what it was to cover, and whether it has.
    marks: Vec<(PartitionUid, Mark, Result<(), DiskError>)>,
    /// One flush of the device was for several files.
    by_device: bool,
    /// It has failed.
    flush_failed: bool,
}

/// A deleted partition, until nothing reads, writes, names, seals or opens its files.
struct Removal<F> {
    uid: PartitionUid,
    files: Vec<RetiredFile<F>>,
    opening: bool,
}

type InFlight<D> = Pin<Box<dyn Future<Output = Done<D>>>>;

/// What is known of checkpoints.
#[derive(Debug, Default)]
struct Checkpoints {
    sequence: u64,
    /// The greatest sequence that is durable.
    stored: u64,
    storing: bool,
    /// The last one could not be stored: the next is not urgent, whoever waits for it.
    failed: bool,
    /// A flush of the device has failed while it was being stored: it does not count.
    spoiled: bool,
    /// Something has moved since the last one was begun.
    due: bool,
    last_ms: u64,
    /// Entries of partitions that are not open yet.
    unopened: BTreeMap<PartitionUid, PartitionCheckpoint>,
    /// Partitions that may append once the sequence is stored, and what to say then.
    opening: VecDeque<(u64, PartitionUid, Opened)>,
}

/// Why a partition is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    Opening,
    Unopenable(RecoveryError),
    Unknown,
}

impl Absence {
    const fn code(self) -> ErrorCode {
        match self {
            Self::Opening => ErrorCode::Recovering,
            Self::Unopenable(error) => error.code(),
            Self::Unknown => ErrorCode::UnknownTopicOrPartition,
        }
    }
}

/// How far stopping has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopping {
    No,
    /// Waiting for writes and syncs.
    Draining,
    /// Waiting for the checkpoint with this sequence.
    Clean(u64),
    Done,
}

/// One core of the broker. It never leaves its thread.
pub struct Shard<D: Disk> {
    options: ShardOptions,
    disk: D,
    pool: BlockPool,
    partitions: BTreeMap<PartitionUid, Partition<D>>,
    /// Being opened.
    opening: BTreeSet<PartitionUid>,
    /// Could not be opened.
    unopenable: BTreeMap<PartitionUid, RecoveryError>,
    io: FuturesUnordered<InFlight<D>>,
    background: FuturesUnordered<InFlight<D>>,
    /// May have something to write, to name or to seal.
    dirty: BTreeSet<PartitionUid>,
    /// Have appends that wait.
    starved: BTreeSet<PartitionUid>,
    /// Have completed writes that are not synced.
    unsynced: BTreeSet<PartitionUid>,
    syncing: bool,
    writes_in_flight: usize,
    fetches: Fetches,
    /// Owners of kept append buffers, oldest first; and bytes kept.
    kept: VecDeque<PartitionUid>,
    kept_bytes: usize,
    /// Sealed segments whose file is open, in the order they were opened.
    open_files: VecDeque<(PartitionUid, Offset)>,
    retired: VecDeque<RetiredFile<D::File>>,
    /// Deleted partitions whose files are still in use.
    removals: Vec<Removal<D::File>>,
    segments: SegmentPool<D::File>,
    checkpoints: Checkpoints,
    coordinators: Coordinators,
    stopping: Stopping,
    effects: VecDeque<Effect>,
    counters: Counters,
    now: Now,
}

impl<D: Disk> std::fmt::Debug for Shard<D> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { options, partitions, opening, io, background, dirty, unsynced, removals, stopping, .. } = self;
        write!(formatter, "Shard({}, {} partitions, {} opening, ", options.id, partitions.len(), opening.len())?;
        write!(formatter, "{} dirty, {} unsynced, {} removals, ", dirty.len(), unsynced.len(), removals.len())?;
        write!(formatter, "{} operations, {} in the background, stopping: {stopping:?})", io.len(), background.len())
    }
}

impl<D: Disk> Shard<D> {
    /// Reads the shard's checkpoint and pool. No partition is open yet.
    ///
    /// # Errors
    /// The disk's.
    pub async fn start(disk: D, pool: BlockPool, options: ShardOptions) -> Result<Self, DiskError> {
        use crate::disk::Dir;
        for dir in [Dir::Partitions, Dir::Checkpoints] {
            disk.create_dir(dir).await?;
        }
        let loaded = checkpoint::load(&disk, options.id).await?;
        let segments = pool::load(&disk, options.id, options.pool_bytes).await?;
        disk.sync_dir(Dir::Root).await?;
        let unopened = loaded.partitions.into_iter().map(|entry| (entry.partition_uid, entry)).collect();
        let sequence = loaded.sequence;
        Ok(Self {
            options,
            disk,
            pool,
            partitions: BTreeMap::new(),
            opening: BTreeSet::new(),
            unopenable: BTreeMap::new(),
            io: FuturesUnordered::new(),
            background: FuturesUnordered::new(),
            dirty: BTreeSet::new(),
            starved: BTreeSet::new(),
            unsynced: BTreeSet::new(),
            syncing: false,
            writes_in_flight: 0,
            fetches: Fetches::default(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            open_files: VecDeque::new(),
            retired: VecDeque::new(),
            removals: Vec::new(),
            segments,
            checkpoints: Checkpoints { sequence, stored: sequence, unopened, ..Checkpoints::default() },
            coordinators: Coordinators::default(),
            stopping: Stopping::No,
            effects: VecDeque::new(),
            counters: Counters::default(),
            now: Now::default(),
        })
    }

    /// What consumer groups are allowed, other than by default; before any partition is opened.
    pub const fn allow_groups(&mut self, options: GroupOptions) {
        self.coordinators.allow(options);
    }

    /// Counts since start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let copied_bytes: u64 = self.partitions.values().map(|partition| partition.log.copied_bytes()).sum();
        Counters { copied_bytes: self.counters.copied_bytes + copied_bytes, ..self.counters }
    }

    /// What there is now.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        let mut gauges = Gauges {
            pool_segments: self.segments.len() as u64,
            pool_bytes: self.segments.ready_bytes(),
            waiting_fetches: self.parked() as u64,
            ..Gauges::default()
        };
        for partition in self.partitions.values() {
            gauges.partitions += 1;
            gauges.partitions_offline += u64::from(partition.is_offline());
            gauges.segments += partition.log.segment_count() as u64;
            gauges.log_bytes += partition.log.size_bytes();
            gauges.pending_acks += partition.pending() as u64;
        }
        gauges
    }

    /// A partition that is open.
    #[must_use]
    pub fn partition(&self, uid: PartitionUid) -> Option<&Partition<D>> {
        self.partitions.get(&uid)
    }

    /// What the shard has done to the world since this was last asked.
    pub fn take_effects(&mut self) -> VecDeque<Effect> {
        self.keep_own_effects();
        std::mem::take(&mut self.effects)
    }

    /// Takes a command. Its effects come out of the next cycles, or at once where it is refused.
    pub fn command(&mut self, command: Command) {
        match command {
            Command::Open(owner, config) => self.open(owner, config),
            Command::Alter(uid, config) => {
                if let Some(partition) = self.partitions.get_mut(&uid) {
                    partition.set_config(config);
                    self.dirty.insert(uid);
                }
            }
            Command::Delete(uid) => self.delete(uid),
            Command::Settle(unopened) => {
                self.checkpoints.unopened.retain(|uid, _| unopened.contains(uid));
                self.checkpoints.due = true;
            }
            Command::Describe(request, uid) => {
                let described = self.describe(uid);
                self.effects.push_back(Effect::Described(request, described));
            }
            Command::Produce { request, partition, acks, batch } => {
                if let Err(error) = self.produce(request, partition, acks, batch)
                    && acks == Acks::Acknowledged
                {
                    self.effects.push_back(Effect::Produced(request, Err(error)));
                }
            }
            Command::Fetch(request, spec) => self.fetch(request, spec),
            Command::Hurry(request) => self.hurry(request),
            Command::ListOffsets(request, uid, query) => self.list_offsets(request, uid, query),
            Command::Group(request, asked) => self.ask_group(request, *asked),
            Command::ListGroups(request) => self.list_groups(request),
            Command::Topics(topics) => self.tell_topics(topics),
            Command::TopicDeleted(topic) => self.tell_topic_deleted(topic),
            Command::Stop => {
                if self.stopping == Stopping::No {
                    self.stopping = Stopping::Draining;
                }
            }
        }
    }

    fn open(&mut self, owner: Owner, config: TopicConfig) {
        let uid = owner.partition_uid;
        assert!(!self.partitions.contains_key(&uid), "a partition is opened once");
        assert!(self.partitions.len() < SHARD_PARTITIONS_MAX, "the catalog places no more on one shard");
        self.opening.insert(uid);
        let (disk, pool) = (self.disk.clone(), self.pool.clone());
        let checkpoint = self.checkpoints.unopened.get(&uid).cloned();
        self.io.push(Box::pin(async move {
            let opened = open_log(&disk, &pool, owner, checkpoint.as_ref(), config.segment_size_max).await;
            Done::Opened(uid, config, opened.map(Box::new))
        }));
    }

    fn delete(&mut self, uid: PartitionUid) {
        self.checkpoints.unopened.remove(&uid);
        self.unopenable.remove(&uid);
        self.checkpoints.due = true;
        let files = match self.partitions.remove(&uid) {
            Some(mut partition) => {
                self.fetches_of(&mut partition);
                for request in partition.fail() {
                    self.effects.push_back(Effect::Produced(request, Err(ProduceError::Unknown)));
                }
                self.kept_bytes -= partition.counted_bytes();
                self.counters.copied_bytes += partition.log.copied_bytes();
                partition.log.into_files()
            }
            None => Vec::new(),
        };
        for sets in [&mut self.dirty, &mut self.starved, &mut self.unsynced] {
            sets.remove(&uid);
        }
        self.kept.retain(|owner| *owner != uid);
        self.open_files.retain(|(owner, _)| *owner != uid);
        let opening = self.opening.remove(&uid);
        self.removals.push(Removal { uid, files, opening });
    }

    fn produce(
        &mut self,
        request: RequestId,
        uid: PartitionUid,
        acks: Acks,
        batch: Incoming,
    ) -> Result<(), ProduceError> {
        if self.stopping != Stopping::No {
            return Err(ProduceError::ShuttingDown);
        }
        let Some(partition) = self.partitions.get_mut(&uid) else {
            return Err(match self.absence(uid) {
                Absence::Opening => ProduceError::Recovering,
                Absence::Unopenable(error) => ProduceError::Unopenable(error),
                Absence::Unknown => ProduceError::Unknown,
            });
        };
        let (bytes, before) = (batch.bytes().len() as u64, partition.log.log_end());
        partition.produce(request, acks, batch, self.now)?;
        self.counters.batches += 1;
        self.counters.bytes += bytes;
        let records = partition.log.log_end().0 - before.0;
        self.counters.records += records;
        if records == 0 {
            self.starved.insert(uid);
        }
        self.dirty.insert(uid);
        Ok(())
    }

    /// Why a partition is not here.
    fn absence(&self, uid: PartitionUid) -> Absence {
        if self.opening.contains(&uid) {
            Absence::Opening
        } else if let Some(error) = self.unopenable.get(&uid) {
            Absence::Unopenable(*error)
        } else {
            Absence::Unknown
        }
    }

    fn describe(&self, uid: PartitionUid) -> Result<Described, ErrorCode> {
        let Some(partition) = self.partitions.get(&uid) else { return Err(self.absence(uid).code()) };
        Ok(Described {
            epoch: partition.log.epoch(),
            log_start: partition.log.log_start(),
            high_watermark: partition.high_watermark(),
            log_end: partition.log.log_end(),
            bytes: partition.log.size_bytes(),
            segments: partition.log.segment_count() as u32,
        })
    }

    fn list_offsets(&mut self, request: RequestId, uid: PartitionUid, query: OffsetQuery) {
        let Some(partition) = self.partitions.get(&uid) else {
            let absent = self.absence(uid).code();
            self.effects.push_back(Effect::Listed(request, Listed::Absent(absent)));
            return;
        };
        let end = partition.high_watermark();
        let query = match (query, partition.log.max_timestamp()) {
            (OffsetQuery::MaxTimestamp, Some(timestamp)) => OffsetQuery::AtOrAfter(timestamp),
            (query, _) => query,
        };
        let listed = match query {
            OffsetQuery::Earliest => Listed::At(partition.log.log_start(), None),
            OffsetQuery::Latest => Listed::At(end, None),
            OffsetQuery::MaxTimestamp => Listed::Nowhere,
            OffsetQuery::AtOrAfter(timestamp) => {
                let jobs = partition.log.time_jobs(timestamp, end);
                self.io.push(Box::pin(async move {
                    for job in jobs {
                        match job.find_time(timestamp).await {
                            Ok(None) => {}
                            found => return Done::Found(request, found),
                        }
                    }
                    Done::Found(request, Ok(None))
                }));
                return;
            }
        };
        self.effects.push_back(Effect::Listed(request, listed));
    }

    /// One cycle at `now`. It never waits; whether it found anything to do. Where it did not, the shard may sleep until
    /// the waker of `context` is woken, a command comes or [`Shard::deadline_ms`] passes.
    pub fn cycle(&mut self, now: Now, context: &mut Context<'_>) -> bool {
        self.now = now;
        let mut worked = self.reap(context);
        worked |= self.coordinate();
        worked |= self.feed_starved();
        worked |= self.submit_writes();
        worked |= self.start_sync();
        worked |= self.expire_fetches();
        self.bound_kept_bytes();
        worked |= self.store_checkpoint();
        worked |= self.stop();
        // What was just begun is submitted by being polled once.
        worked |= self.reap(context);
        worked |= self.background(context, worked);
        worked | self.coordinate()
    }

    /// When the shard wants its next cycle if nothing happens before.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        let checkpoint = self.checkpoint_deadline_ms().filter(|_| self.stopping != Stopping::Done);
        let segment = self.segments.deadline_ms().filter(|_| self.stopping == Stopping::No);
        let group = self.coordinators.deadline_ms();
        self.fetches.deadline_ms().into_iter().chain(checkpoint).chain(segment).chain(group).min()
    }

    fn reap(&mut self, context: &mut Context<'_>) -> bool {
        let mut worked = false;
        // The set of futures may say that it waits although some of it wants to be polled: it yields after as many as
        // it has, and wakes a waker that is none here. Asked again it goes on, and asking in vain costs a few ns.
        let mut waits = 0;
        while waits < 3 {
            match self.io.poll_next_unpin(context) {
                Poll::Ready(Some(done)) => {
                    self.completed(done);
                    worked = true;
                }
                Poll::Ready(None) => break,
                Poll::Pending => waits += 1,
            }
        }
        worked
    }

    fn completed(&mut self, done: Done<D>) {
        match done {
            Done::Opened(uid, config, opened) => self.opened(uid, config, opened),
            Done::Written(uid, id, durable, result) => self.written(uid, id, durable, result),
            Done::Synced(synced) => self.synced(synced),
            Done::SegmentMade(uid, made) => self.segment_made(uid, made),
            Done::Named(uid, base, result) => self.named(uid, base, result),
            Done::Sealed(uid, base, result) => self.sealed(uid, base, &result),
            Done::Read(number, result) => self.fetch_read(number, result),
            Done::Found(request, found) => {
                let listed = match found {
                    Ok(Some(found)) => Listed::At(found.offset, Some(found.timestamp)),
                    Ok(None) => Listed::Nowhere,
                    Err(error) => Listed::Failed(error),
                };
                self.effects.push_back(Effect::Listed(request, listed));
            }
            Done::Checkpointed(sequence, result) => self.checkpointed(sequence, &result),
            Done::PoolMade(file) => self.segments.made(file),
            Done::Recycled(expected, files) => self.segments.give_back(expected, files),
            Done::Removed(uid, result, expected, files) => {
                self.segments.give_back(expected, files);
                self.effects.push_back(Effect::Deleted(uid, result));
            }
        }
    }

    fn opened(&mut self, uid: PartitionUid, config: TopicConfig, opened: Result<Box<(Log<D>, Report)>, RecoveryError>) {
        if !self.opening.remove(&uid) {
            // Deleted while it was being opened.
            if let Some(removal) = self.removals.iter_mut().find(|removal| removal.uid == uid) {
                removal.opening = false;
                removal.files = opened.map(|opened| opened.0.into_files()).unwrap_or_default();
            }
            return;
        }
        let (log, report) = match opened {
            Ok(opened) => *opened,
            Err(error) => {
                self.unopenable.insert(uid, error);
                self.effects.push_back(Effect::Opened(uid, Err(error)));
                return;
            }
        };
        let opened = Opened {
            epoch: log.epoch(),
            log_start: log.log_start(),
            log_end: log.log_end(),
            damage: log.damage().to_vec(),
            report,
        };
        self.checkpoints.unopened.remove(&uid);
        self.begin_coordinator(&log.owner().clone(), log.log_start());
        self.partitions.insert(uid, Partition::new(log, config));
        // Both copies must know the new epoch, and neither may still call the log clean.
        let sequence = self.checkpoints.sequence + 2;
        self.checkpoints.opening.push_back((sequence, uid, opened));
        self.checkpoints.due = true;
        self.dirty.insert(uid);
    }

    /// Bytes that the tail caches keep now.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }
}

/// Makes sure that the partition's directory is there, durably, and recovers its log.
async fn open_log<D: Disk>(
    disk: &D,
    pool: &BlockPool,
    owner: Owner,
    checkpoint: Option<&PartitionCheckpoint>,
    size_max: SegmentSize,
) -> Result<(Log<D>, Report), RecoveryError> {
    use crate::disk::Dir;
    disk.create_dir(Dir::Partition(owner.partition_uid)).await?;
    disk.sync_dir(Dir::Partitions).await?;
    recovery::recover(disk, pool, owner, checkpoint, size_max).await
}
