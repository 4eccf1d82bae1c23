//! The walk of a start, through everything and changing nothing: what `verify` stands on; decides no more than a start.
//!
//! Sealed segments are walked batch by batch and held against their footers and index files, the checkpoint's resume
//! point against the batches around it. What is damage and what is the unsynced tail, the walk itself has decided.

use super::{Cause, Recovery, RecoveryError, Report};
use crate::block::{align_down, is_zero};
use crate::checkpoint::PartitionCheckpoint;
use crate::disk::{Disk, DiskError, File, FileName};
use crate::limits::{BLOCK_BYTES, READ_BYTES};
use crate::log::appender::Mark;
use crate::log::index::{IndexEntry, IndexOf, SparseIndex};
use crate::log::segment::{EpochStart, Footer, HeaderPage, Owner, Trailer, padded_end};
use crate::log::{Damage, Phase, Segment};
use coulee_protocol::batch::BatchHeader;
use coulee_protocol::ids::{ClusterId, Offset, Timestamp};

/// Remarks that are kept of one partition: the rest is counted.
pub const REMARKS_MAX: usize = 64;

/// What is not as it should be, though nothing is lost by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remark {
    /// The header page of the segment at this base offset names another cluster, topic or partition number.
    Owner(Offset),
    /// The index file of the sealed segment at this base offset is missing.
    IndexMissing(Offset),
    /// The index file of the segment at this base offset is damaged, or says what is not so.
    Index(Offset),
    /// The footer of the sealed segment at this base offset says other than its batches.
    Footer(Offset),
    /// Of the footer and the trailer of the segment at this base offset only one can be read.
    HalfSealed(Offset),
    /// The point from which a start would walk the segment at this base offset is none between two of its batches.
    Resume(Offset),
    /// Behind the end of the log, in the segment at this base offset, lies what was never synced.
    Tail(Offset, u32),
    /// The last segment, at this base offset, has its name and nothing that was ever durable.
    Empty(Offset),
}

/// What a walk through everything has counted and remarked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Segment files with a valid header page.
    pub segments: u64,
    /// Valid batches.
    pub batches: u64,
    /// Their records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The first remarks, at most [`REMARKS_MAX`].
    pub remarks: Vec<Remark>,
    /// Remarks in all.
    pub remark_count: u64,
}

impl Seen {
    fn remark(&mut self, remark: Remark) {
        self.remark_count += 1;
        if self.remarks.len() < REMARKS_MAX {
            self.remarks.push(remark);
        }
    }
}

/// Sees every batch: its header and its bytes.
pub type Witness<'a> = &'a mut dyn FnMut(&BatchHeader, &[u8]);

/// Notes of a walk through everything.
pub struct Inspection<'a> {
    seen: Seen,
    witness: Witness<'a>,
    /// What is left of the index file of the segment that is walked.
    entries: std::vec::IntoIter<IndexEntry>,
    next_entry: Option<IndexEntry>,
    index_fits: bool,
    max_timestamp: Timestamp,
    /// The point that a start would begin at in the segment that is walked.
    resume: Option<Mark>,
    resume_fits: bool,
}

impl std::fmt::Debug for Inspection<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Inspection({:?})", self.seen)
    }
}

impl<'a> Inspection<'a> {
    fn new(witness: Witness<'a>) -> Self {
        Self {
            seen: Seen::default(),
            witness,
            entries: Vec::new().into_iter(),
            next_entry: None,
            index_fits: true,
            max_timestamp: Timestamp(i64::MIN),
            resume: None,
            resume_fits: true,
        }
    }

    /// A segment begins, with what its index file and the checkpoint say of it.
    fn begin(&mut self, index: Option<SparseIndex>, resume: Option<Mark>) {
        self.seen.segments += 1;
        self.entries = index.map(|index| index.entries().to_vec()).unwrap_or_default().into_iter();
        self.next_entry = self.entries.next();
        (self.index_fits, self.resume_fits) = (true, true);
        self.max_timestamp = Timestamp(i64::MIN);
        self.resume = resume;
    }

    /// A valid batch that starts at `start`.
    pub(super) fn batch(&mut self, header: &BatchHeader, start: u32, bytes: &[u8]) {
        let seen = &mut self.seen;
        seen.batches += 1;
        seen.records += u64::from(header.record_count);
        seen.bytes += header.batch_len() as u64;
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp);
        while let Some(entry) = self.next_entry.filter(|entry| entry.position <= start) {
            let leader = &header.leader;
            let fits = (entry.position, entry.offset, entry.index) == (start, leader.base_offset, leader.batch_index);
            self.index_fits &= fits && entry.max_timestamp >= self.max_timestamp;
            self.next_entry = self.entries.next();
        }
        if let Some(resume) = self.resume.filter(|resume| resume.offset == header.end_offset()) {
            let end = (header.leader.batch_index.next(), header.header_crc, padded_end(start, header.batch_len()));
            self.resume_fits = end == (resume.index, resume.prev_header_crc, resume.position);
            self.resume = None;
        }
        (self.witness)(header, bytes);
    }
}

/// What a walk through everything has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// First readable offset.
    pub log_start: Offset,
    /// Where a start would go on.
    pub log_end: Offset,
    /// What cannot be read of what was durable; [`Report::causes`] says why.
    pub damage: Vec<Damage>,
    /// Ranges that a repair has marked as lost, by their first offset.
    pub holes: Vec<Damage>,
    /// As of a start.
    pub report: Report,
    /// What was counted and remarked.
    pub seen: Seen,
    /// Why the walk ended early, and where: base offset and position.
    pub error: Option<(RecoveryError, Offset, u32)>,
}

/// Walks everything that a start would find of `owner`'s partition; changes nothing. Every batch is shown to
/// `witness`. An owner without a cluster is only a partition uid.
pub async fn inspect<D: Disk>(
    disk: &D,
    owner: Owner,
    checkpoint: Option<&PartitionCheckpoint>,
    witness: Witness<'_>,
) -> Inspected {
    let mut walk = Recovery::new(disk, owner, checkpoint);
    walk.inspection = Some(Inspection::new(witness));
    let looked = match walk.look().await {
        Ok(log_start) => walk.look_behind().await.map(|()| log_start),
        Err(error) => Err(error),
    };
    let position = if walk.end.segment == walk.looked_at { walk.end.position } else { 0 };
    let error = looked.err().map(|error| (error, walk.looked_at, position));
    let mut seen = walk.inspection.map(|inspection| inspection.seen).unwrap_or_default();
    if let Some(base) = walk.report.empty_segment {
        seen.remark(Remark::Empty(base));
    }
    Inspected {
        log_start: looked.unwrap_or_default(),
        log_end: walk.end.offset,
        damage: walk.damage,
        holes: walk.holes,
        report: walk.report,
        seen,
        error,
    }
}

impl Inspected {
    /// Damage that no repair has marked yet.
    pub fn unmarked(&self) -> impl Iterator<Item = (Damage, Cause)> + '_ {
        let damage = self.damage.iter().copied().zip(self.report.causes.iter().copied());
        damage.filter(|(damage, _)| !self.is_marked(*damage))
    }

    /// Whether a repair has marked all of a range as lost.
    #[must_use]
    pub fn is_marked(&self, range: Damage) -> bool {
        let mut next = range.from;
        for hole in &self.holes {
            if hole.from <= next {
                next = next.max(hole.to);
            }
        }
        next >= range.to
    }
}

impl<D: Disk> Recovery<'_, D> {
    fn remark(&mut self, remark: Remark) {
        if let Some(inspection) = &mut self.inspection {
            inspection.seen.remark(remark);
        }
    }

    /// Walks the newest segment from its first batch on, sealed or not, and holds what else is said of it against that.
    pub(super) async fn walk_whole(
        &mut self,
        file: &D::File,
        limit: Option<Offset>,
        is_sealed: bool,
    ) -> Result<(), RecoveryError> {
        let Some(segment) = self.segments.back_mut() else { return Ok(()) };
        let (page, page_crc, base) = (segment.page, segment.page_crc, segment.page.base_offset);
        let footer = (self.end, std::mem::take(&mut segment.epochs), std::mem::take(&mut segment.index));
        if self.owner.cluster_id != ClusterId::default() && page.owner != self.owner {
            self.remark(Remark::Owner(base));
        }
        let of = IndexOf { partition_uid: self.owner.partition_uid, base_offset: base, header_page_crc: page_crc };
        let index = read_index(self.disk, &of).await?;
        match &index {
            Ok(None) if is_sealed => self.remark(Remark::IndexMissing(base)),
            Err(()) => self.remark(Remark::Index(base)),
            Ok(_) => {}
        }
        let index = index.unwrap_or_default();
        let has_index = index.is_some();
        let resume = self.checkpoint.map(|checkpoint| checkpoint.resume);
        let resume = resume.filter(|resume| !is_sealed && resume.segment == base);
        if let Some(inspection) = &mut self.inspection {
            inspection.begin(index, resume.filter(|resume| resume.position >= BLOCK_BYTES as u32));
        }
        self.end = Mark::at_start_of(&page);
        let whole_so_far = self.damage.len();
        self.scan(file.clone(), if is_sealed { Some(footer.0.offset) } else { limit }).await?;
        let is_whole = self.damage.len() == whole_so_far;
        if let Some(inspection) = &mut self.inspection {
            let fits = inspection.index_fits && (inspection.next_entry.is_none() || !is_whole);
            let resume_fits = inspection.resume_fits;
            (!fits).then(|| inspection.seen.remark(Remark::Index(base)));
            (!resume_fits).then(|| inspection.seen.remark(Remark::Resume(base)));
        }
        if is_sealed {
            self.keep_footer(footer, is_whole);
        } else if is_whole && (has_index || self.is_half_sealed(file, &page, page_crc).await?) {
            self.remark(Remark::HalfSealed(base));
        }
        Ok(())
    }

    /// Goes on behind a sealed segment as its footer says, which a start would believe.
    fn keep_footer(&mut self, (end, epochs, index): (Mark, Vec<EpochStart>, SparseIndex), is_whole: bool) {
        let Some(segment) = self.segments.back_mut() else { return };
        let walked = Mark { bytes: 0, ..self.end };
        let fits = walked == end && segment.epochs == epochs && segment.index.max_timestamp() <= index.max_timestamp();
        segment.phase = Phase::Sealed;
        (segment.end, segment.epochs, segment.index) = (Some(end), epochs, index);
        self.end = end;
        if is_whole && !fits {
            let base = end.segment;
            self.remark(Remark::Footer(base));
        }
    }

    /// Whether one of footer and trailer is there, of a segment that is not sealed.
    async fn is_half_sealed(&self, file: &D::File, page: &HeaderPage, page_crc: u32) -> Result<bool, DiskError> {
        let position = self.end.position.next_multiple_of(BLOCK_BYTES as u32);
        let footer = Footer::decode(&file.read_at(u64::from(position), BLOCK_BYTES).await?);
        let last = u64::from(page.size.bytes()) - BLOCK_BYTES as u64;
        let trailer = Trailer::decode(&file.read_at(last, BLOCK_BYTES).await?, page.size);
        let of_this = |crc: u32| crc == page_crc;
        Ok(footer.is_ok_and(|footer| of_this(footer.header_page_crc))
            || trailer.is_ok_and(|trailer| of_this(trailer.header_page_crc)))
    }

    /// Whether something lies behind the end of the log that a start would zero.
    async fn look_behind(&mut self) -> Result<(), RecoveryError> {
        let end = self.end;
        let goes_on = |segment: &&Segment<D>| {
            segment.phase == Phase::Active && !segment.damaged && segment.page.base_offset == end.segment
        };
        let Some(segment) = self.segments.back().filter(goes_on) else { return Ok(()) };
        let block_at = align_down(end.position as usize);
        let mut is_torn = self.report.tail_zeroed;
        if let Some(file) = segment.file.as_ref().filter(|_| block_at < segment.page.size.data_end() as usize) {
            let block = file.read_at(block_at as u64, BLOCK_BYTES).await?;
            is_torn |= !is_zero(&block[end.position as usize - block_at..]);
        }
        if is_torn {
            self.remark(Remark::Tail(end.segment, end.position));
        }
        Ok(())
    }
}

/// The index file of a segment: none, or one that cannot be believed.
async fn read_index<D: Disk>(disk: &D, of: &IndexOf) -> Result<Result<Option<SparseIndex>, ()>, DiskError> {
    let file = match disk.open(FileName::Index(of.partition_uid, of.base_offset)).await {
        Err(DiskError::NotFound) => return Ok(Ok(None)),
        other => other?,
    };
    let len = file.len() as usize;
    if len == 0 || !len.is_multiple_of(BLOCK_BYTES) || len > READ_BYTES {
        return Ok(Err(()));
    }
    // What cannot be read of a cache is only lost.
    let Ok(bytes) = file.read_at(0, len).await else { return Ok(Err(())) };
    Ok(SparseIndex::decode(&bytes, of).map(Some).ok_or(()))
}
