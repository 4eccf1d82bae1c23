//! Opens the log of a partition from what a crash or a clean stop left; decides what is torn tail and what is damage,
//! cuts only the first, and knows nothing of who will use the log.
//!
//! Let K be the greatest of the checkpoint's durable end, the base of a following segment, and the durable ends that
//! valid batches speak of. A bad frame below K is damage: kept, reported, stepped over. At or above K it is the
//! unsynced tail, whatever follows it: cut there, the rest zeroed and synced, the tail block read back.
//!
//! Cost: sealed segments three blocks each; the last segment from the checkpoint's mark on, CRC included; behind its
//! end [`UNSYNCED_BYTES_MAX`] and one batch more, which is as far as a proof of durability can lie.

use super::appender::{Appender, Mark};
use super::index::SparseIndex;
use super::scan::{BadFrame, Chain};
use super::segment::{Footer, HeaderPage, Owner, PageError, SegmentSize, Trailer};
use super::source::{Found, Source};
use super::tail::TailCache;
use super::{Damage, Log, Phase, Segment, hole};
use crate::block::{BlockPool, align_down, is_zero};
use crate::checkpoint::PartitionCheckpoint;
use crate::disk::{Dir, Disk, DiskError, File, FileName, WriteMode};
use crate::limits::{BLOCK_BYTES, READ_BYTES, SEGMENT_END_BYTES, SEGMENT_SIZES, UNSYNCED_BYTES_MAX};
use coulee_protocol::batch::OFFSET_END_MAX;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{BatchIndex, LeaderEpoch, Offset};
use coulee_protocol::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use inspection::Inspection;
use std::collections::VecDeque;

pub mod inspection;

/// How far behind a bad frame a batch may lie that proves the frame was durable.
const PROOF_BYTES: usize = UNSYNCED_BYTES_MAX + BATCH_BYTES_MAX + BLOCK_BYTES;

/// Why a log cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryError {
    /// The disk failed.
    Disk(DiskError),
    /// A segment was written by a release whose format this one does not read.
    TooNew {
        /// Base offset of the segment.
        segment: Offset,
        /// The least format version that a reader must know.
        min_reader: u16,
    },
    /// A segment has a feature that this release does not know.
    UnknownFeatures {
        /// Base offset of the segment.
        segment: Offset,
        /// The bits of its header page.
        features: u64,
    },
    /// What was just written does not read back.
    ReadBack {
        /// Base offset of the segment.
        segment: Offset,
        /// Where.
        position: u32,
    },
}

impl RecoveryError {
    /// The code on the wire, for whoever asks for the partition.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::TooNew { .. } | Self::UnknownFeatures { .. } => ErrorCode::FormatTooNew,
            Self::Disk(_) | Self::ReadBack { .. } => ErrorCode::PartitionOffline,
        }
    }
}

impl std::fmt::Display for RecoveryError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disk(error) => error.fmt(formatter),
            Self::TooNew { segment, min_reader } => {
                let page = PageError::TooNew { min_reader: *min_reader };
                write!(formatter, "segment {segment}: {page}")
            }
            Self::UnknownFeatures { segment, features } => {
                let page = PageError::UnknownFeatures { features: *features };
                write!(formatter, "segment {segment}: {page}")
            }
            Self::ReadBack { segment, position } => {
                write!(formatter, "segment {segment}: block at {position} does not read back as written")
            }
        }
    }
}

impl std::error::Error for RecoveryError {}

impl From<DiskError> for RecoveryError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// What a recovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Bytes read.
    pub bytes_read: u64,
    /// Whether there was something behind the end that had to be zeroed.
    pub tail_zeroed: bool,
    /// A segment that had taken its name and nothing else, and was let go.
    pub empty_segment: Option<Offset>,
    /// Why each damaged range of the log is one, in their order.
    pub causes: Vec<Cause>,
}

/// Why offsets that were durable cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No segment file holds them.
    Missing,
    /// The header page of their segment, the one at this base offset.
    Page(Offset, PageError),
    /// What lies in the segment at this base offset, from this position on.
    Frame(Offset, u32, BadFrame),
}

/// A segment as found.
struct Candidate<D: Disk> {
    base: Offset,
    file: D::File,
    page: Result<HeaderPage, PageError>,
}

/// A walk through the segments, oldest first.
struct Recovery<'a, D: Disk> {
    disk: &'a D,
    owner: Owner,
    checkpoint: Option<&'a PartitionCheckpoint>,
    /// K: everything below was durable.
    proved: Offset,
    /// Behind what has been walked.
    end: Mark,
    epoch: LeaderEpoch,
    damage: Vec<Damage>,
    resume_floor: Option<Mark>,
    segments: VecDeque<Segment<D>>,
    report: Report,
    /// Base offset of the segment that is looked at.
    looked_at: Offset,
    /// Ranges that a repair has marked as lost.
    holes: Vec<Damage>,
    /// What is noted where everything is walked and nothing changed.
    inspection: Option<Inspection<'a>>,
}

/// Opens the log of `owner`'s partition. Waits for all it has to read, cut and sync; what it returns takes appends.
///
/// # Errors
/// [`RecoveryError`]; damage to what was durable is no error but a part of the log.
pub async fn recover<D: Disk>(
    disk: &D,
    pool: &BlockPool,
    owner: Owner,
    checkpoint: Option<&PartitionCheckpoint>,
    size_max: SegmentSize,
) -> Result<(Log<D>, Report), RecoveryError> {
    let mut recovery = Recovery::new(disk, owner, checkpoint);
    let log_start = recovery.look().await?;
    let unfinished = recovery.settle().await?;
    Ok(recovery.into_log(pool, log_start, size_max, &unfinished))
}

impl<'a, D: Disk> Recovery<'a, D> {
    fn new(disk: &'a D, owner: Owner, checkpoint: Option<&'a PartitionCheckpoint>) -> Self {
        Self {
            disk,
            owner,
            checkpoint,
            proved: checkpoint.map_or(Offset(0), |checkpoint| checkpoint.durable_end),
            end: Mark { index: BatchIndex(1), ..Mark::default() },
            epoch: checkpoint.map_or(LeaderEpoch(0), |checkpoint| checkpoint.epoch),
            damage: Vec::new(),
            resume_floor: None,
            segments: VecDeque::new(),
            report: Report::default(),
            looked_at: Offset(0),
            holes: Vec::new(),
            inspection: None,
        }
    }

    /// Finds out what is there, changing nothing; answers where the log starts.
    async fn look(&mut self) -> Result<Offset, RecoveryError> {
        let found = self.list().await?;
        let holes = self.holes.iter().map(|hole| hole.from);
        let first = found.first().map(|first| first.base).into_iter().chain(holes).min();
        let log_start = self.checkpoint.map(|checkpoint| checkpoint.log_start).or(first).unwrap_or_default();
        self.end.offset = first.map_or(log_start, |first| first.min(log_start));
        self.walk(&found).await?;
        Ok(log_start)
    }

    /// Opens every segment file and reads its header page.
    async fn list(&mut self) -> Result<Vec<Candidate<D>>, RecoveryError> {
        let uid = self.owner.partition_uid;
        let names = self.disk.list(Dir::Partition(uid)).await?;
        let mut found = Vec::new();
        for name in names {
            if let FileName::Hole(..) = name
                && let Some(hole) = hole::read(self.disk, name).await?
            {
                // It was durable once: its offsets are never given out again.
                self.proved = self.proved.max(hole.to);
                self.holes.push(hole);
            }
            let FileName::Segment(_, base) = name else { continue };
            if base.0 >= OFFSET_END_MAX - u64::from(BATCH_RECORDS_MAX) {
                // No batch has such an offset: the name is not ours, and proves nothing.
                continue;
            }
            self.looked_at = base;
            let file = self.disk.open(name).await?;
            let page = if file.len() < 3 * BLOCK_BYTES as u64 {
                Err(PageError::Truncated)
            } else {
                HeaderPage::decode(&file.read_at(0, BLOCK_BYTES).await?)
            };
            match page {
                Err(PageError::TooNew { min_reader }) => {
                    return Err(RecoveryError::TooNew { segment: base, min_reader });
                }
                Err(PageError::UnknownFeatures { features }) => {
                    return Err(RecoveryError::UnknownFeatures { segment: base, features });
                }
                _ => {}
            }
            let page = page.and_then(|page| {
                let own = page.owner.partition_uid == uid && page.base_offset == base;
                if own && u64::from(page.size.bytes()) == file.len() { Ok(page) } else { Err(PageError::Fields) }
            });
            found.push(Candidate { base, file, page });
        }
        if let Some(last) = found.last()
            && self.inspection.is_none()
            && last.base >= self.stored_end()
        {
            // A process that died may have left the name without its sync, and what is found now will be relied on.
            self.disk.sync_dir(Dir::Partition(uid)).await?;
        }
        // A segment takes its name when everything before it is durable.
        self.proved = self.proved.max(found.last().map_or(Offset(0), |last| last.base));
        if let Some(last) = found.last().filter(|last| last.page.is_err()) {
            self.hear_batches(last).await?;
        }
        if let Some(last) = found.last()
            && last.page.is_err()
            && self.proved <= last.base
        {
            // It had its name, but nothing in it was ever durable.
            self.report.empty_segment = Some(last.base);
            found.pop();
        }
        Ok(found)
    }

    /// The durable end that the checkpoint knows.
    fn stored_end(&self) -> Offset {
        self.checkpoint.map_or(Offset(0), |checkpoint| checkpoint.durable_end)
    }

    /// Asks the batches of the last segment, whose header page cannot be read. One that speaks of durable offsets in
    /// this very segment proves that the page was durable, and so is damaged: then every batch there counts as lost,
    /// since a start that took their offsets again would lose them in silence. A torn first write has no such witness:
    /// nothing in the segment was durable when it was written.
    async fn hear_batches(&mut self, last: &Candidate<D>) -> Result<(), RecoveryError> {
        let len = last.file.len().min(u64::from(SEGMENT_SIZES[3])) as usize;
        if len < 3 * BLOCK_BYTES {
            return Ok(());
        }
        let mut source = Source::new(last.file.clone(), (len - SEGMENT_END_BYTES) as u32, None);
        let (hint, end) = source.testimony(self.owner.partition_uid, last.base).await?;
        self.report.bytes_read += source.bytes_read();
        if self.proved.max(hint) > last.base {
            self.proved = self.proved.max(hint).max(end);
        }
        Ok(())
    }

    async fn walk(&mut self, found: &[Candidate<D>]) -> Result<(), RecoveryError> {
        for (at, segment) in found.iter().enumerate() {
            self.looked_at = segment.base;
            let next = found.get(at + 1);
            if segment.base > self.end.offset {
                self.lose(segment.base, Cause::Missing);
            }
            let page = match segment.page {
                Ok(page) => page,
                Err(error) => {
                    // Nothing in it can be placed: all of it is damaged.
                    let to = next.map_or(self.proved, |next| next.base);
                    self.lose(to, Cause::Page(segment.base, error));
                    continue;
                }
            };
            self.epoch = self.epoch.max(page.leader_epoch);
            self.end = Mark::at_start_of(&page);
            let limit = next.map(|next| next.base);
            self.segments.push_back(Segment::new(page, Some(segment.file.clone()), None));
            let is_sealed = self.take_footer(&segment.file, limit).await?;
            if self.inspection.is_some() {
                self.walk_whole(&segment.file, limit, is_sealed).await?;
            } else if !is_sealed {
                self.scan(segment.file.clone(), limit).await?;
            }
            if limit.is_some()
                && let Some(closed) = self.segments.back_mut()
            {
                closed.end = Some(self.end);
                if closed.phase == Phase::Active {
                    closed.phase = Phase::Closed;
                }
            }
        }
        if self.proved > self.end.offset {
            self.lose(self.proved, Cause::Missing);
        }
        Ok(())
    }

    /// Reports everything from the end of the walk up to `to` as damaged and goes on there.
    fn lose(&mut self, to: Offset, cause: Cause) {
        if to <= self.end.offset {
            return;
        }
        self.resume_floor.get_or_insert(self.end);
        self.damage.push(Damage { from: self.end.offset, to });
        self.report.causes.push(cause);
        // Each lost batch took at least one offset: this index was never used.
        let lost = to.0 - self.end.offset.0;
        self.end.index = BatchIndex(self.end.index.0 + lost);
        self.end.offset = to;
        if let Some(segment) = self.segments.back_mut() {
            segment.damaged = true;
        }
    }

    /// Believes the footer of a sealed segment instead of scanning it.
    async fn take_footer(&mut self, file: &D::File, limit: Option<Offset>) -> Result<bool, RecoveryError> {
        let Some(segment) = self.segments.back_mut() else { return Ok(false) };
        let size = segment.page.size;
        let last = file.read_at(u64::from(size.bytes()) - BLOCK_BYTES as u64, BLOCK_BYTES).await?;
        let trailer = Trailer::decode(&last, size).ok().filter(|trailer| trailer.header_page_crc == segment.page_crc);
        let Some(trailer) = trailer else { return Ok(false) };
        let block = file.read_at(u64::from(trailer.footer_position), BLOCK_BYTES).await?;
        let footer = Footer::decode(&block).ok().filter(|footer| {
            let placed = footer.position() == trailer.footer_position && footer.header_page_crc == segment.page_crc;
            // A walk through everything can tell a missing segment from a damaged end of the one before.
            let stops_short = self.inspection.is_some() && limit > Some(footer.end_offset);
            placed && (stops_short || limit.is_none_or(|limit| footer.end_offset == limit))
        });
        let Some(footer) = footer else { return Ok(false) };
        segment.phase = Phase::Sealed;
        segment.file = None;
        segment.epochs = footer.epochs;
        self.epoch = segment.last_epoch().map_or(self.epoch, |epoch| epoch.max(self.epoch));
        self.end = Mark {
            offset: footer.end_offset,
            index: footer.end_index,
            prev_header_crc: footer.last_header_crc,
            segment: segment.page.base_offset,
            position: footer.data_end,
            bytes: 0,
        };
        segment.end = Some(self.end);
        let of = super::IndexOf {
            partition_uid: self.owner.partition_uid,
            base_offset: segment.page.base_offset,
            header_page_crc: segment.page_crc,
        };
        segment.index = load_index(self.disk, &of).await.unwrap_or_default();
        segment.index.raise_max_timestamp(footer.max_timestamp);
        self.report.bytes_read += 3 * BLOCK_BYTES as u64;
        Ok(true)
    }

    /// Walks the batches of the newest segment found, from the checkpoint's mark where it lies in it.
    async fn scan(&mut self, file: D::File, limit: Option<Offset>) -> Result<(), RecoveryError> {
        let Some(segment) = self.segments.back_mut() else { return Ok(()) };
        let data_end = segment.page.size.data_end();
        let from_mark = self.checkpoint.filter(|_| self.inspection.is_none());
        let resume = from_mark.filter(|checkpoint| {
            let inside = BLOCK_BYTES as u32..=data_end;
            checkpoint.resume.segment == segment.page.base_offset && inside.contains(&checkpoint.resume.position)
        });
        if let Some(checkpoint) = resume {
            self.end = checkpoint.resume;
            segment.index = SparseIndex::from_entries(checkpoint.index.clone());
            segment.index.raise_max_timestamp(checkpoint.max_timestamp);
            segment.epochs.clone_from(&checkpoint.epochs);
        }
        let clean = limit.is_none() && resume.is_some_and(|checkpoint| checkpoint.clean);
        let mut source = Source::new(file, data_end, None);
        while self.end.offset < limit.unwrap_or(Offset(u64::MAX)) {
            let chain = self.chain();
            match source.step(self.end.position, &chain).await? {
                Found::Batch(start, header, bytes) => {
                    if let Some(segment) = self.segments.back_mut() {
                        segment.note(&header, start);
                    }
                    if let Some(inspection) = &mut self.inspection {
                        inspection.batch(&header, start, &bytes);
                    }
                    self.epoch = self.epoch.max(header.leader.leader_epoch);
                    self.end.offset = header.end_offset();
                    self.end.index = header.leader.batch_index.next();
                    self.end.prev_header_crc = header.header_crc;
                    self.end.position = super::padded_end(start, header.batch_len());
                }
                Found::Bad(bad) => {
                    let skip_proof = clean && self.checkpoint.is_some_and(|checkpoint| checkpoint.resume == self.end);
                    if !skip_proof && limit.is_none() {
                        let (hint, dirty) = source.look_ahead(self.end.position, PROOF_BYTES, &chain).await?;
                        self.proved = self.proved.max(hint);
                        self.report.tail_zeroed = dirty;
                    }
                    if cfg!(coulee_mutation = "truncate_damaged_middle") && limit.is_none() {
                        self.proved = self.end.offset;
                    }
                    let known = limit.unwrap_or(self.proved);
                    if self.end.offset >= known || !self.step_over(&mut source, known, bad).await? {
                        break;
                    }
                }
            }
        }
        self.report.bytes_read += source.bytes_read();
        Ok(())
    }

    /// Steps over damage below `known`: whether there is a batch to go on with in this segment.
    async fn step_over(
        &mut self,
        source: &mut Source<D::File>,
        known: Offset,
        bad: BadFrame,
    ) -> Result<bool, RecoveryError> {
        self.report.tail_zeroed = false;
        let chain = self.chain();
        let cause = Cause::Frame(self.end.segment, self.end.position, bad);
        let behind = source.resync(self.end.position, &chain, known).await?;
        let Some((position, header)) = behind else {
            self.lose(known, cause);
            return Ok(false);
        };
        self.lose(header.leader.base_offset, cause);
        self.end.index = header.leader.batch_index;
        self.end.prev_header_crc = header.leader.prev_header_crc;
        self.end.position = position;
        Ok(true)
    }

    fn chain(&self) -> Chain {
        let segment = self.segments.back();
        // A batch of an epoch before the segment's own was left in the file by an earlier life of it.
        let begun = segment.map_or(LeaderEpoch(1), |segment| segment.page.leader_epoch);
        let epoch = segment.and_then(Segment::last_epoch).map_or(begun, |last| last.max(begun));
        Chain {
            partition_uid: self.owner.partition_uid,
            next_offset: self.end.offset,
            next_index: self.end.index,
            prev_header_crc: Some(self.end.prev_header_crc),
            epoch,
        }
    }

    /// Makes the end of the log ready for appends: zeroes what lies behind it and answers the unfinished block.
    /// Where the end is damaged or sealed, the log goes on in a new segment.
    async fn settle(&mut self) -> Result<Vec<u8>, RecoveryError> {
        if let Some(base) = self.report.empty_segment {
            let uid = self.owner.partition_uid;
            self.disk.remove(FileName::Segment(uid, base)).await?;
            self.disk.sync_dir(Dir::Partition(uid)).await?;
        }
        let (end, stored) = (self.end, self.stored_end());
        let zero = std::mem::take(&mut self.report.tail_zeroed);
        let Some(segment) = self.segments.back_mut().filter(|last| last.phase == Phase::Active) else {
            self.end.position = end.position.next_multiple_of(BLOCK_BYTES as u32);
            return Ok(Vec::new());
        };
        let file = segment.file.clone().expect("a segment that was scanned is open");
        if end.offset > stored && !cfg!(coulee_mutation = "unsynced_after_death") {
            // A process that died leaves writes that no sync has covered. Readers will see them from now on.
            file.sync().await?;
        }
        // A segment without a batch has no damage in it: the next one would begin at the same offset, under its name.
        let empty = segment.page.base_offset == end.offset;
        let ends_here = segment.page.base_offset == end.segment && (empty || self.resume_floor.is_none());
        if !ends_here {
            // What is behind the damage stays as it is, for `repair`.
            segment.phase = Phase::Closed;
            segment.damaged = true;
            segment.end = Some(end);
            self.end.position = end.position.next_multiple_of(BLOCK_BYTES as u32);
            return Ok(Vec::new());
        }
        let data_end = segment.page.size.data_end();
        let block_at = align_down(end.position as usize) as u32;
        let used = (end.position - block_at) as usize;
        if block_at >= data_end {
            return Ok(Vec::new());
        }
        let before = file.read_at(u64::from(block_at), BLOCK_BYTES).await?;
        // A large batch may come next and leave this block as it is: the gap before it has to be zero.
        if (zero || !is_zero(&before[used..])) && !cfg!(coulee_mutation = "cut_without_zeroing") {
            let reach = if zero { PROOF_BYTES } else { 0 };
            zero_behind(&file, &before, end.position, reach, segment.page.size).await?;
            self.report.tail_zeroed = true;
        }
        let after = file.read_at(u64::from(block_at), BLOCK_BYTES).await?;
        let zeroed = is_zero(&after[used..]) || cfg!(coulee_mutation = "cut_without_zeroing");
        if after[..used] != before[..used] || !zeroed {
            return Err(RecoveryError::ReadBack { segment: end.segment, position: block_at });
        }
        Ok(after[..used].to_vec())
    }

    fn into_log(
        self,
        pool: &BlockPool,
        log_start: Offset,
        size_max: SegmentSize,
        unfinished: &[u8],
    ) -> (Log<D>, Report) {
        let log = Log {
            disk: self.disk.clone(),
            pool: pool.clone(),
            owner: self.owner,
            epoch: LeaderEpoch(self.epoch.0 + 1),
            appender: Appender::resume(pool.clone(), self.end, unfinished),
            cache: TailCache::starting_at(self.end.offset),
            synced: self.end,
            durable: self.end,
            resume_floor: self.resume_floor,
            segments: self.segments,
            log_start,
            damage: self.damage,
            size_max,
        };
        (log, self.report)
    }
}

/// Zeroes the rest of the block that holds `position` and `reach` bytes behind it, footer and trailer included, and
/// syncs. `block` is that block as it was read.
async fn zero_behind<F: File>(
    file: &F,
    block: &[u8],
    position: u32,
    reach: usize,
    size: SegmentSize,
) -> Result<(), DiskError> {
    let pool = BlockPool::new(0);
    let block_at = align_down(position as usize);
    let mut first = pool.take(BLOCK_BYTES);
    first.extend(&block[..position as usize - block_at]);
    first.pad_to(BLOCK_BYTES);
    file.write_at(vec![first.freeze()], block_at as u64, WriteMode::Written).await?;
    let (mut at, end) = (block_at + BLOCK_BYTES, (block_at + reach).min(size.bytes() as usize));
    while at < end {
        let step = READ_BYTES.min(end - at);
        file.zero(at as u64..(at + step) as u64).await?;
        at += step;
    }
    let trailer = u64::from(size.bytes()) - BLOCK_BYTES as u64;
    file.zero(trailer..u64::from(size.bytes())).await?;
    file.sync().await
}

/// The index file of a sealed segment, or `None` where it is missing or wrong: reads then walk from the start.
async fn load_index<D: Disk>(disk: &D, of: &super::IndexOf) -> Option<SparseIndex> {
    let file = disk.open(FileName::Index(of.partition_uid, of.base_offset)).await.ok()?;
    let len = file.len() as usize;
    let sound = len > 0 && len.is_multiple_of(BLOCK_BYTES) && len <= READ_BYTES;
    if !sound {
        return None;
    }
    let bytes = file.read_at(0, len).await.ok()?;
    SparseIndex::decode(&bytes, of)
}
