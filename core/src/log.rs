//! ⑥ The log of one partition: its segments, its ends and what has to happen on disk next; it asks nobody who may read.
//!
//! ```text
//!  log start            durable end   written end   log end
//!      │ sealed │ closed │ active …│·············│···········│
//! ```
//! Appending is synchronous: position, offset, index and chain are assigned in one step, so nothing is ever reserved
//! for bytes that have not come. What needs the disk comes out as work (`next_write`, `sync_work`, `naming_due`,
//! `seal_due`) and goes back in as its result; the shard owns the futures between.

use crate::block::{Block, BlockMut, BlockPool, align_up};
use crate::disk::{Disk, File, FileName};
use crate::limits::{BLOCK_BYTES, QUICK_FILL_MS, SEGMENT_EPOCHS_MAX, UNSYNCED_BYTES_MAX};
use appender::{Appender, Mark, Write, WriteId};
use coulee_protocol::batch::{BatchHeader, HEADER_BYTES, LeaderFields};
use coulee_protocol::ids::{BatchIndex, LeaderEpoch, Offset, Timestamp};
use index::{IndexOf, SparseIndex};
use reader::{ReadError, ReadJob};
use scan::Chain;
use segment::{EpochStart, Footer, HeaderPage, Owner, SegmentSize, padded_end, start_after};
use std::collections::VecDeque;
use std::rc::Rc;
use tail::TailCache;

pub mod appender;
pub mod hole;
pub mod index;
pub mod reader;
pub mod recovery;
pub mod scan;
pub mod segment;
pub mod source;
pub mod tail;

/// Stored offsets that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// First offset that is lost.
    pub from: Offset,
    /// First offset behind the loss.
    pub to: Offset,
}

/// What a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Batches are appended to it.
    Active,
    /// Full; still without a footer.
    Closed,
    /// Footer and trailer are being written.
    Sealing,
    /// Immutable.
    Sealed,
}

/// One segment of the log.
#[derive(Debug)]
struct Segment<D: Disk> {
    page: HeaderPage,
    page_crc: u32,
    /// Where it lies until it has its own name.
    pool_name: Option<FileName>,
    naming: bool,
    file: Option<D::File>,
    phase: Phase,
    /// Behind its last batch, once nothing is appended any more.
    end: Option<Mark>,
    /// Part of it is damaged: it is never sealed.
    damaged: bool,
    index: SparseIndex,
    epochs: Vec<EpochStart>,
    /// When it was begun, if that was in this run.
    begun_ms: Option<u64>,
    lease: Rc<()>,
}

/// A batch that came, checked, but not yet stamped.
#[derive(Debug)]
pub enum Incoming {
    /// In a buffer of its own: a large one is appended without a copy.
    Owned(BlockMut),
    /// In a buffer shared with others.
    Shared(Block),
}

impl Incoming {
    /// The bytes of the batch.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(block) => block.filled(),
            Self::Shared(block) => block,
        }
    }
}

/// Why a batch is not appended now. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendRefusal {
    /// A segment file of this size is needed first.
    NeedsSegment(SegmentSize),
    /// Too much waits for its sync.
    TooMuchUnsynced,
}

/// A file for the next segment.
#[derive(Debug)]
pub struct NewSegment<F> {
    /// The file, open.
    pub file: F,
    /// What it is called until everything before it is durable.
    pub pool_name: FileName,
    /// Its size.
    pub size: SegmentSize,
    /// Every block of it has been written and synced.
    pub prezeroed: bool,
}

/// A segment file that nothing is appended to or read from any more.
#[derive(Debug)]
pub struct RetiredFile<F> {
    /// What it is called.
    pub name: FileName,
    /// The file, if it is open.
    pub file: Option<F>,
    /// Its size.
    pub size: SegmentSize,
    /// Bytes from its front that have been written and synced; none where the file is not to be used again.
    pub written: u32,
    /// Others hold it while a read or a write of it is in flight.
    pub lease: Rc<()>,
}

/// A file to sync, and whether a device flush would do.
#[derive(Clone, Debug)]
pub struct SyncFile<F> {
    /// The file.
    pub file: F,
    /// Every block of it had been written and synced before.
    pub prezeroed: bool,
}

/// A sync to start: when all files are synced, everything below the snapshot is.
#[derive(Clone, Debug)]
pub struct SyncWork<F> {
    /// The written end when the sync was planned.
    pub snapshot: Mark,
    /// Files written to since the last sync.
    pub files: Vec<SyncFile<F>>,
}

/// Blocks that seal a segment.
#[derive(Debug)]
pub struct SealWork<F> {
    /// Base offset of the segment.
    pub base: Offset,
    /// Its file, if it is open.
    pub file: Option<F>,
    /// Its name.
    pub name: FileName,
    /// Footer: where and what.
    pub footer: (u64, Block),
    /// Trailer: where and what.
    pub trailer: (u64, Block),
    /// The index file's name and bytes.
    pub index: (FileName, Vec<u8>),
    /// Holds the segment's file and its directory while this is under way.
    pub lease: Rc<()>,
}

/// Where a read finds its batches.
#[derive(Debug)]
pub enum Read<D: Disk> {
    /// In memory: whole batches and the offset behind them.
    Tail(Vec<Block>, Offset),
    /// In a file.
    File(ReadJob<D>),
}

/// The log of one partition. Lives on the partition's shard.
#[derive(Debug)]
pub struct Log<D: Disk> {
    disk: D,
    pool: BlockPool,
    owner: Owner,
    epoch: LeaderEpoch,
    segments: VecDeque<Segment<D>>,
    appender: Appender,
    cache: TailCache,
    /// Everything below is synced, in files that may still be without a name.
    synced: Mark,
    /// Everything below survives a power cut.
    durable: Mark,
    /// Where the next start has to scan from while nothing has become durable behind damage.
    resume_floor: Option<Mark>,
    log_start: Offset,
    damage: Vec<Damage>,
    size_max: SegmentSize,
}

impl<D: Disk> Log<D> {
    /// First readable offset.
    #[must_use]
    pub const fn log_start(&self) -> Offset {
        self.log_start
    }

    /// Next offset to be assigned.
    #[must_use]
    pub const fn log_end(&self) -> Offset {
        self.appender.end().offset
    }

    /// Behind the contiguous prefix of completed writes, as far as the segments have their names: a start would not
    /// find what lies in others.
    #[must_use]
    pub fn written_end(&self) -> Offset {
        let unnamed = self.segments.iter().rev().take_while(|segment| segment.pool_name.is_some()).last();
        let written = self.appender.written().offset;
        let unnamed = unnamed.filter(|_| !cfg!(coulee_mutation = "written_without_name"));
        unnamed.map_or(written, |segment| written.min(segment.page.base_offset))
    }

    /// Everything below survives a power cut.
    #[must_use]
    pub const fn durable_end(&self) -> Offset {
        self.durable.offset
    }

    /// The leader epoch that batches are stamped with.
    #[must_use]
    pub const fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// Who the log belongs to.
    #[must_use]
    pub const fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Ranges known to be damaged.
    #[must_use]
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Bytes of batches copied in user space so far.
    #[must_use]
    pub const fn copied_bytes(&self) -> u64 {
        self.appender.copied_bytes()
    }

    /// Segments, the active one included.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// Bytes of all segment files.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| u64::from(segment.page.size.bytes())).sum()
    }

    /// The largest segment that may be made from now on.
    pub const fn set_size_max(&mut self, size_max: SegmentSize) {
        self.size_max = size_max;
    }

    /// Assigns offset, index and place to a checked batch, stamps its header and appends it. Synchronous.
    ///
    /// # Errors
    /// [`AppendRefusal`], with the batch given back; nothing has changed.
    pub fn append(
        &mut self,
        header: BatchHeader,
        batch: Incoming,
        now_ms: u64,
    ) -> Result<BatchHeader, (AppendRefusal, Incoming)> {
        let len = header.batch_len();
        assert_eq!(batch.bytes().len(), len, "the batch was checked to be one whole batch");
        if let Some(refusal) = self.refusal(len, now_ms) {
            return Err((refusal, batch));
        }
        let end = *self.appender.end();
        let start = start_after(end.position, len);
        let leader = LeaderFields {
            partition_uid: self.owner.partition_uid,
            batch_index: end.index,
            leader_epoch: self.epoch,
            prev_header_crc: end.prev_header_crc,
            durable_end_hint: self.durable.offset,
            base_offset: end.offset,
        };
        let header = self.place(BatchHeader { leader, ..header }, batch, start);
        let active = self.segments.back_mut().expect("it was just found to fit");
        active.note(&header, start);
        Ok(header)
    }

    /// Why a batch of `len` bytes could not be appended now, if it could not.
    #[must_use]
    pub fn refusal(&self, len: usize, now_ms: u64) -> Option<AppendRefusal> {
        let end = self.appender.end();
        if end.bytes - self.synced.bytes + len as u64 > UNSYNCED_BYTES_MAX as u64 {
            return Some(AppendRefusal::TooMuchUnsynced);
        }
        let fits = self.segments.back().is_some_and(|active| {
            let epochs = active.epochs.len() < SEGMENT_EPOCHS_MAX || active.last_epoch() == Some(self.epoch);
            let reach = padded_end(start_after(end.position, len), len);
            active.phase == Phase::Active && epochs && reach <= active.page.size.data_end()
        });
        (!fits).then(|| AppendRefusal::NeedsSegment(self.next_size(len, now_ms)))
    }

    /// Stamps the batch and hands its bytes to the appender.
    fn place(&mut self, header: BatchHeader, batch: Incoming, start: u32) -> BatchHeader {
        let len = header.batch_len();
        let end = *self.appender.end();
        let behind = |header: &BatchHeader| Mark {
            offset: header.end_offset(),
            index: header.leader.batch_index.next(),
            prev_header_crc: header.header_crc,
            segment: end.segment,
            position: padded_end(start, len),
            bytes: end.bytes + u64::from(padded_end(start, len) - end.position),
        };
        let mut head = [0; HEADER_BYTES];
        let header = header.encode(&mut head);
        if !segment::is_large(len) {
            self.appender.append_small(&head, &batch.bytes()[HEADER_BYTES..], start, behind(&header), &mut self.cache);
            return header;
        }
        let mut block = match batch {
            Incoming::Owned(block) => block,
            Incoming::Shared(shared) => self.appender.own(&shared),
        };
        block.filled_mut()[..HEADER_BYTES].copy_from_slice(&head);
        self.appender.append_large(block, start, behind(&header), &mut self.cache);
        header
    }

    /// The size of the next segment: the next larger one when the last was filled quickly.
    fn next_size(&self, batch_len: usize, now_ms: u64) -> SegmentSize {
        let size = self.segments.back().map_or(SegmentSize::SMALLEST, |last| {
            let quick = last.begun_ms.is_some_and(|begun| now_ms.saturating_sub(begun) < QUICK_FILL_MS);
            if quick { last.page.size.larger() } else { last.page.size }
        });
        size.min(self.size_max).holding(batch_len)
    }

    /// Goes on in a new segment, whose file is still called `pool_name`.
    pub fn start_segment(&mut self, new: NewSegment<D::File>, now_ms: u64) {
        let NewSegment { file, pool_name, size, prezeroed } = new;
        let end = *self.appender.end();
        if let Some(active) = self.segments.back_mut().filter(|last| last.phase == Phase::Active) {
            active.phase = Phase::Closed;
            active.end = Some(end);
        }
        let page = HeaderPage {
            owner: self.owner,
            leader_epoch: self.epoch,
            base_offset: end.offset,
            base_index: end.index,
            chain_anchor: end.prev_header_crc,
            size,
            prezeroed,
        };
        let mut bytes = [0; BLOCK_BYTES];
        page.encode(&mut bytes);
        self.appender.start_segment(end.offset, &bytes, &mut self.cache);
        let mut segment = Segment::new(page, Some(file), Some(pool_name));
        segment.begun_ms = Some(now_ms);
        self.segments.push_back(segment);
    }

    /// The next write to issue, the file it goes to and what holds that file, if one may start now.
    pub fn next_write(&mut self) -> Option<(Write, D::File, Rc<()>)> {
        let write = self.appender.next_write(&mut self.cache)?;
        let segment = self.segments.iter().rev().find(|segment| segment.page.base_offset == write.segment);
        let segment = segment.expect("a segment being written stays");
        let file = segment.file.clone().expect("a segment being written is open");
        Some((write, file, Rc::clone(&segment.lease)))
    }

    /// Whether a write would be the only one: then it may as well be durable by itself.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        let (written, synced) = (self.appender.written(), &self.synced);
        !self.appender.is_writing() && written.segment == synced.segment && written.position == synced.position
    }

    /// Notes that a write has completed.
    pub fn write_completed(&mut self, id: WriteId, durable: bool) {
        let mark = self.appender.completed(id);
        if durable {
            // It was issued when everything before was synced; later writes may be done already, but not durable.
            self.sync_completed(mark);
        }
    }

    /// Whether anything was written since the last sync, or is being written.
    #[must_use]
    pub fn has_unsynced(&self) -> bool {
        self.appender.is_writing() || self.sync_work().is_some()
    }

    /// What the next sync has to cover, if anything was written since the last.
    #[must_use]
    pub fn sync_work(&self) -> Option<SyncWork<D::File>> {
        let (written, synced) = (*self.appender.written(), &self.synced);
        if written.segment == synced.segment && written.position == synced.position {
            return None;
        }
        let touched = |segment: &&Segment<D>| {
            let base = segment.page.base_offset;
            let all_synced =
                segment.end.is_some_and(|end| end.segment == synced.segment && end.position <= synced.position);
            base >= synced.segment && base <= written.segment && !all_synced
        };
        let files = self.segments.iter().filter(touched).map(|segment| SyncFile {
            file: segment.file.clone().expect("a segment that was written to stays open until it is sealed"),
            prezeroed: segment.page.prezeroed,
        });
        Some(SyncWork { snapshot: written, files: files.collect() })
    }

    /// Notes that everything below `snapshot` is synced, and moves the durable end as far as names allow.
    pub fn sync_completed(&mut self, snapshot: Mark) {
        let late = cfg!(coulee_mutation = "sync_snapshot_late");
        let snapshot = if late { *self.appender.written() } else { snapshot };
        if snapshot.offset >= self.synced.offset
            && (snapshot.segment, snapshot.position) > (self.synced.segment, self.synced.position)
        {
            self.synced = snapshot;
        }
        self.advance_durable();
    }

    /// Data in a segment without its name is not durable: a start would not find it.
    fn advance_durable(&mut self) {
        let unnamed = self.segments.iter().position(|segment| segment.pool_name.is_some());
        let reach = match unnamed {
            Some(at) if self.synced.offset >= self.segments[at].page.base_offset => {
                let before = at.checked_sub(1).and_then(|before| self.segments[before].end);
                // Where a whole segment was lost, the one before it ends below what is durable.
                before.filter(|end| end.offset >= self.durable.offset).unwrap_or(self.durable)
            }
            _ => self.synced,
        };
        assert!(reach.offset >= self.durable.offset, "the durable end never goes back");
        if reach.offset > self.durable.offset {
            self.resume_floor = None;
        }
        self.durable = reach;
    }

    /// A segment that may take its name now, and what holds its file: everything before it is durable.
    pub fn naming_due(&mut self) -> Option<(FileName, FileName, Rc<()>)> {
        let (durable, uid) = (self.durable.offset, self.owner.partition_uid);
        let segment = self.segments.iter_mut().find(|segment| segment.pool_name.is_some())?;
        let early = cfg!(coulee_mutation = "name_before_durable");
        if segment.naming || (segment.page.base_offset > durable && !early) {
            return None;
        }
        segment.naming = true;
        let lease = Rc::clone(&segment.lease);
        segment.pool_name.map(|from| (from, FileName::Segment(uid, segment.page.base_offset), lease))
    }

    /// Notes that the segment at `base` has its name, durably.
    pub fn named(&mut self, base: Offset) {
        let segment = self.segments.iter_mut().find(|segment| segment.page.base_offset == base);
        let segment = segment.expect("a segment being named stays");
        segment.pool_name = None;
        segment.naming = false;
        self.advance_durable();
    }

    /// A closed segment below `visible_end` that can be sealed now.
    pub fn seal_due(&mut self, visible_end: Offset) -> Option<SealWork<D::File>> {
        let durable = self.durable.offset;
        let (pool, uid) = (self.pool.clone(), self.owner.partition_uid);
        let segment = self
            .segments
            .iter_mut()
            .find(|segment| segment.phase == Phase::Closed && !segment.damaged && segment.pool_name.is_none())?;
        let end = segment.end.filter(|end| end.offset <= durable && end.offset <= visible_end)?;
        segment.phase = Phase::Sealing;
        Some(segment.seal(&pool, uid, end))
    }

    /// Notes that sealing has succeeded or not; a failed one is tried again after the next start.
    pub fn sealed(&mut self, base: Offset, done: bool) {
        if done && let Some(segment) = self.segments.iter_mut().find(|segment| segment.page.base_offset == base) {
            segment.phase = Phase::Sealed;
            // Reads open it again; the shard bounds how many stay open.
            segment.file = None;
        }
    }

    /// Bytes and number of the append buffers kept for readers.
    #[must_use]
    pub fn cached(&self) -> (usize, usize) {
        self.cache.kept()
    }

    /// Gives up the log: its files, to be recycled or removed.
    #[must_use]
    pub fn into_files(self) -> Vec<RetiredFile<D::File>> {
        let uid = self.owner.partition_uid;
        let retired = |segment: Segment<D>| RetiredFile {
            name: segment.pool_name.unwrap_or(FileName::Segment(uid, segment.page.base_offset)),
            written: segment.written(),
            file: segment.file,
            size: segment.page.size,
            lease: segment.lease,
        };
        self.segments.into_iter().map(retired).collect()
    }

    /// Lets the oldest append buffer of the tail cache go; its bytes.
    pub fn evict(&mut self) -> Option<usize> {
        self.cache.evict()
    }

    /// Bytes between `offset` and `end`, counted until `enough`. Whatever has left memory counts as enough.
    #[must_use]
    pub fn bytes_between(&self, offset: Offset, end: Offset, enough: usize) -> usize {
        if offset >= end { 0 } else { self.cache.bytes_between(offset, end, enough).unwrap_or(enough) }
    }

    /// Where the batches from `offset` up to `end` are found.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] where that is known already. The caller has checked `log_start <= offset < end`.
    pub fn read(&self, offset: Offset, end: Offset, bytes_max: usize) -> Result<Read<D>, ReadError> {
        assert!(self.log_start <= offset && offset < end, "the caller checks the range");
        if let Some((slices, next)) = self.cache.read(offset, end, bytes_max) {
            return Ok(Read::Tail(slices, next));
        }
        let after = self.segments.partition_point(|segment| segment.page.base_offset <= offset);
        let known = self.damage.iter().find(|damage| damage.from <= offset && offset < damage.to);
        if let Some(damage) = known {
            let found = scan::BadFrame::Gap;
            return Err(ReadError::Damaged { from: damage.from, to: damage.to, found });
        }
        let at = after.checked_sub(1).expect("an offset in no segment is known damage");
        let entry = self.segments[at].index.at_offset(offset).copied();
        let from = entry.map(|entry| (entry.offset, entry.index, entry.position));
        Ok(Read::File(self.job(at, from, end)))
    }

    /// A read of segment `at` from an index entry (or its start) on.
    fn job(&self, at: usize, from: Option<(Offset, BatchIndex, u32)>, end: Offset) -> ReadJob<D> {
        let segment = &self.segments[at];
        let next_base = self.segments.get(at + 1).map(|next| next.page.base_offset);
        let segment_end = next_base.map_or(end, |base| base.min(end));
        let page = &segment.page;
        let start = (page.base_offset, page.base_index, BLOCK_BYTES as u32);
        let (next_offset, next_index, position) = from.unwrap_or(start);
        let prev_header_crc = (position == BLOCK_BYTES as u32).then_some(page.chain_anchor);
        ReadJob {
            disk: self.disk.clone(),
            name: segment.pool_name.unwrap_or(FileName::Segment(self.owner.partition_uid, page.base_offset)),
            base: page.base_offset,
            file: segment.file.clone(),
            mapped: segment.phase == Phase::Sealed,
            data_end: segment.page.size.data_end(),
            position,
            chain: Chain {
                partition_uid: self.owner.partition_uid,
                next_offset,
                next_index,
                prev_header_crc,
                epoch: page.leader_epoch,
            },
            end: segment_end,
            segment_end,
            lease: Rc::clone(&segment.lease),
        }
    }

    /// Searches, one behind the other, for the first batch at or after `timestamp` below `end`.
    #[must_use]
    pub fn time_jobs(&self, timestamp: Timestamp, end: Offset) -> Vec<ReadJob<D>> {
        let may_hold = |segment: &Segment<D>| segment.index.max_timestamp().is_none_or(|max| max >= timestamp);
        let below = |segment: &Segment<D>| segment.page.base_offset < end;
        (0..self.segments.len())
            .filter(|at| may_hold(&self.segments[*at]) && below(&self.segments[*at]))
            .map(|at| {
                let entry = self.segments[at].index.before_time(timestamp);
                self.job(at, entry.map(|entry| (entry.offset, entry.index, entry.position)), end)
            })
            .collect()
    }

    /// The greatest timestamp of all records, as far as it is known.
    #[must_use]
    pub fn max_timestamp(&self) -> Option<Timestamp> {
        self.segments.iter().filter_map(|segment| segment.index.max_timestamp()).max()
    }

    /// Keeps the file of the sealed segment at `base` that a read has opened; whether it was not open before.
    pub fn keep_file(&mut self, base: Offset, file: D::File) -> bool {
        let segment = self.segments.iter_mut().find(|segment| segment.page.base_offset == base);
        let opened = segment.filter(|segment| segment.file.is_none() && segment.phase == Phase::Sealed);
        opened.map(|segment| segment.file = Some(file)).is_some()
    }

    /// Closes the file of the sealed segment at `base`.
    pub fn close_file(&mut self, base: Offset) {
        let sealed = |segment: &&mut Segment<D>| segment.page.base_offset == base && segment.phase == Phase::Sealed;
        if let Some(segment) = self.segments.iter_mut().find(sealed) {
            segment.file = None;
        }
    }

    /// What a checkpoint says of this log.
    #[must_use]
    pub fn checkpoint(&self, clean: bool) -> crate::checkpoint::PartitionCheckpoint {
        let resume = self.resume_floor.unwrap_or(self.durable);
        let segment = self.segments.iter().find(|segment| segment.page.base_offset == resume.segment);
        let index = segment.map(|segment| segment.index.thinned(resume.position)).unwrap_or_default();
        let epochs = segment.map(|segment| &*segment.epochs).unwrap_or_default();
        let epochs = epochs.iter().filter(|start| start.index < resume.index).copied().collect();
        let max_timestamp = segment.and_then(|segment| segment.index.max_timestamp());
        crate::checkpoint::PartitionCheckpoint {
            partition_uid: self.owner.partition_uid,
            epoch: self.epoch,
            log_start: self.log_start,
            durable_end: match cfg!(coulee_mutation = "checkpoint_ahead_of_durable") {
                true => self.log_end(),
                false => self.durable.offset,
            },
            resume,
            max_timestamp: max_timestamp.unwrap_or(Timestamp(i64::MIN)),
            clean: clean && self.resume_floor.is_none() && resume.offset == self.log_end(),
            index,
            epochs,
        }
    }
}

impl<D: Disk> Segment<D> {
    fn new(page: HeaderPage, file: Option<D::File>, pool_name: Option<FileName>) -> Self {
        Self {
            page_crc: page.crc(),
            page,
            pool_name,
            naming: false,
            file,
            phase: Phase::Active,
            end: None,
            damaged: false,
            index: SparseIndex::default(),
            epochs: Vec::new(),
            begun_ms: None,
            lease: Rc::new(()),
        }
    }

    /// Bytes from its front that have been written and synced, where it may be used again.
    fn written(&self) -> u32 {
        match self.phase {
            // Where bytes have changed by themselves, others may.
            _ if self.damaged => 0,
            _ if self.page.prezeroed => self.page.size.bytes(),
            Phase::Sealed => self.end.map_or(0, |end| end.position / BLOCK_BYTES as u32 * BLOCK_BYTES as u32),
            Phase::Active | Phase::Closed | Phase::Sealing => 0,
        }
    }

    fn last_epoch(&self) -> Option<LeaderEpoch> {
        self.epochs.last().map(|start| start.epoch)
    }

    /// Notes a batch that lies at `start`.
    fn note(&mut self, header: &BatchHeader, start: u32) {
        self.index.note(header, start);
        let leader = &header.leader;
        if self.last_epoch() != Some(leader.leader_epoch) {
            self.epochs.push(EpochStart {
                epoch: leader.leader_epoch,
                index: leader.batch_index,
                offset: leader.base_offset,
            });
        }
    }

    fn seal(&self, pool: &BlockPool, uid: coulee_protocol::ids::PartitionUid, end: Mark) -> SealWork<D::File> {
        let footer = Footer {
            header_page_crc: self.page_crc,
            data_end: end.position,
            batch_count: end.index.0 - self.page.base_index.0,
            record_count: end.offset.0 - self.page.base_offset.0,
            end_offset: end.offset,
            end_index: end.index,
            max_timestamp: self.index.max_timestamp().unwrap_or(Timestamp(i64::MIN)),
            last_header_crc: end.prev_header_crc,
            epochs: self.epochs.clone(),
        };
        let page = |encode: &dyn Fn(&mut [u8])| {
            let mut block = pool.take(BLOCK_BYTES);
            block.pad_to(BLOCK_BYTES);
            encode(block.filled_mut());
            block.freeze()
        };
        let trailer = segment::Trailer { header_page_crc: self.page_crc, footer_position: footer.position() };
        let base = self.page.base_offset;
        let of = IndexOf { partition_uid: uid, base_offset: base, header_page_crc: self.page_crc };
        SealWork {
            base,
            file: self.file.clone(),
            name: FileName::Segment(uid, base),
            footer: (u64::from(footer.position()), page(&|out| footer.encode(out))),
            trailer: (u64::from(self.page.size.bytes()) - BLOCK_BYTES as u64, page(&|out| trailer.encode(out))),
            index: (FileName::Index(uid, base), self.index.encode(&of)),
            lease: Rc::clone(&self.lease),
        }
    }
}

impl<F: File> SealWork<F> {
    /// Writes footer, trailer and index file. The index is a cache: failing to write it is no failure.
    ///
    /// # Errors
    /// The disk's, when footer or trailer could not be made durable.
    pub async fn run<D: Disk<File = F>>(self, disk: D, pool: BlockPool) -> Result<(), crate::disk::DiskError> {
        let file = match self.file {
            Some(file) => file,
            None => disk.open(self.name).await?,
        };
        let mode = crate::disk::WriteMode::Written;
        file.write_at(vec![self.footer.1], self.footer.0, mode).await?;
        file.write_at(vec![self.trailer.1], self.trailer.0, mode).await?;
        file.sync().await?;
        let (name, bytes) = self.index;
        let mut block = pool.take(align_up(bytes.len()));
        block.extend(&bytes);
        block.pad_to(align_up(bytes.len()));
        if let Ok(index) = disk.create(name, block.len() as u64).await
            && index.write_at(vec![block.freeze()], 0, mode).await.is_ok()
            && index.sync().await.is_err()
        {
            return disk.remove(name).await;
        }
        drop(self.lease);
        Ok(())
    }
}
