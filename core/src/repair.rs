//! Mends what a start cannot mend by itself, with the knowledge of whoever asks for it; it never removes a batch, knows
//! no path and prints nothing.
//!
//! A repair is planned from what [`crate::verify`] finds, and carried out in passes: what can be restored first (the
//! meta file from header pages, a file's length, a header page from the batches behind it), then what is left is marked
//! as lost. Everything that is written over is kept aside before. Each step is whole or can be planned again, so that a
//! repair that was cut off is finished by the next one, and one that is done finds nothing to do.

use crate::block::BlockPool;
use crate::catalog::CATALOG_UID;
use crate::disk::{Copy2, Dir, Disk, DiskError, File, FileName, WriteMode};
use crate::limits::{BATCH_ALIGN, BLOCK_BYTES, READ_BYTES};
use crate::log::recovery::Cause;
use crate::log::scan::Window;
use crate::log::segment::{HeaderPage, Owner, PageError, SegmentSize, Trailer};
use crate::log::{Damage, hole};
use crate::meta::{self, Meta};
use crate::verify::{PartitionReport, Report, What, verify};
use coulee_protocol::batch::BatchHeader;
use coulee_protocol::ids::{ClusterId, Offset, PartitionUid};
use std::fmt;

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make both copies of the meta file, for this cluster.
    Meta(ClusterId),
    /// Give the segment file its length back: what is missing is zero, what is too much is left out.
    Length(PartitionUid, Offset, SegmentSize),
    /// Write the header page of the segment that begins at this offset anew.
    Page(HeaderPage),
    /// Mark a range as lost; what lies in its place, if anything does, begins at this byte of this segment.
    Mark(PartitionUid, Damage, Option<(Offset, u32)>),
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta(_) => write!(formatter, "make meta.a and meta.b from the header pages of the segments"),
            Self::Length(uid, base, size) => {
                let name = FileName::Segment(*uid, *base);
                write!(formatter, "give {name} its length of {} bytes back", size.bytes())
            }
            Self::Page(page) => {
                let name = FileName::Segment(page.owner.partition_uid, page.base_offset);
                write!(formatter, "write the header page of {name} anew from its batches")
            }
            Self::Mark(uid, lost, _) => {
                write!(formatter, "mark offsets {} to {} (exclusive) of p/{uid} as lost", lost.from, lost.to)
            }
        }
    }
}

/// Passes of one repair, at most: the catalog is restored before what only it can tell, and marks come last.
const PASSES_MAX: usize = 4;

/// Mends what can be mended and marks the rest; answers what was done and how the directory is found afterwards. `told`
/// hears of the steps of each pass before they are taken. `run` names the place of what is kept aside.
///
/// # Errors
/// The disk's: what was done stays done, the next repair does the rest.
pub async fn repair<D: Disk>(
    disk: &D,
    pool: &BlockPool,
    run: u64,
    now_ms: i64,
    told: &mut dyn FnMut(&Report, &[Step]),
) -> Result<(Vec<Step>, Report), DiskError> {
    let mut done = Vec::new();
    for _ in 0..PASSES_MAX {
        let report = verify(disk, &mut |_| ()).await?;
        let steps = plan(disk, &report).await?;
        if steps.is_empty() {
            return Ok((done, report));
        }
        told(&report, &steps);
        apply(disk, pool, &steps, run, now_ms).await?;
        done.extend(steps);
    }
    let report = verify(disk, &mut |_| ()).await?;
    Ok((done, report))
}

/// What one pass would do, from what a check has found. Nothing is changed.
///
/// # Errors
/// The disk's.
pub async fn plan<D: Disk>(disk: &D, report: &Report) -> Result<Vec<Step>, DiskError> {
    // Without the cluster nothing can be restored, and what might be is not given up.
    if report.findings.iter().any(|finding| finding.what == What::MetaLost) {
        return Ok(cluster_of(disk, report).await?.map(Step::Meta).into_iter().collect());
    }
    let mut steps = Vec::new();
    for partition in &report.partitions {
        let before = steps.len();
        // Of a partition that cannot be walked to its end nothing is known to be lost.
        if partition.inspected.error.is_some() {
            continue;
        }
        for (_, cause) in partition.inspected.unmarked() {
            if let Cause::Page(base, error) = cause {
                steps.extend(restore(disk, report, partition, base, error).await?);
            }
        }
        // A broker does not start without its whole catalog, so a mark there would only hide that; and what is restored
        // of it is read before anything else is given up.
        if partition.uid == CATALOG_UID {
            if steps.is_empty() { continue } else { return Ok(steps) }
        }
        // What is restored is looked at again before anything is given up.
        if steps.len() == before {
            let marks = partition.inspected.unmarked().flat_map(|(lost, cause)| marks(partition, lost, cause));
            steps.extend(marks);
        }
    }
    Ok(steps)
}

/// The marks that are missing for a lost range: earlier ones stay as they are.
fn marks(partition: &PartitionReport, lost: Damage, cause: Cause) -> Vec<Step> {
    let at = match cause {
        Cause::Missing => None,
        Cause::Page(base, _) => Some((base, 0)),
        Cause::Frame(base, position, _) => Some((base, position)),
    };
    let (mut from, mut marks) = (lost.from, Vec::new());
    let holes = partition.inspected.holes.iter().filter(|hole| hole.to > lost.from && hole.from < lost.to);
    for hole in holes {
        if hole.from > from {
            marks.push(Step::Mark(partition.uid, Damage { from, to: hole.from }, at));
        }
        from = from.max(hole.to);
    }
    if from < lost.to {
        marks.push(Step::Mark(partition.uid, Damage { from, to: lost.to }, at));
    }
    marks
}

/// The cluster that every header page names; none where they do not agree.
async fn cluster_of<D: Disk>(disk: &D, report: &Report) -> Result<Option<ClusterId>, DiskError> {
    let mut found = None;
    for partition in &report.partitions {
        for page in pages(disk, partition.uid).await? {
            if found.is_some_and(|found| found != page.owner.cluster_id) {
                return Ok(None);
            }
            found = Some(page.owner.cluster_id);
        }
    }
    Ok(found)
}

/// The header pages of a partition that can be read.
async fn pages<D: Disk>(disk: &D, uid: PartitionUid) -> Result<Vec<HeaderPage>, DiskError> {
    let mut pages = Vec::new();
    for name in disk.list(Dir::Partition(uid)).await? {
        let FileName::Segment(..) = name else { continue };
        let file = disk.open(name).await?;
        if file.len() >= BLOCK_BYTES as u64
            && let Ok(page) = HeaderPage::decode(&file.read_at(0, BLOCK_BYTES).await?)
            && page.owner.partition_uid == uid
        {
            pages.push(page);
        }
    }
    Ok(pages)
}

/// How the segment at `base`, whose header page was refused, can be read again; nothing where it cannot.
async fn restore<D: Disk>(
    disk: &D,
    report: &Report,
    partition: &PartitionReport,
    base: Offset,
    error: PageError,
) -> Result<Option<Step>, DiskError> {
    let uid = partition.uid;
    let file = disk.open(FileName::Segment(uid, base)).await?;
    let whole_blocks = file.len() / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    if whole_blocks < BLOCK_BYTES as u64 {
        return Ok(None);
    }
    let found = HeaderPage::decode(&file.read_at(0, BLOCK_BYTES).await?).ok();
    let own = found.filter(|page| page.owner.partition_uid == uid && page.base_offset == base);
    if let Some(page) = own {
        // The page is sound, so it was refused for the file's length.
        return Ok((whole_blocks > BLOCK_BYTES as u64).then_some(Step::Length(uid, base, page.size)));
    }
    let Some(size) = SegmentSize::of_bytes(file.len()).filter(|_| error != PageError::Truncated) else {
        return Ok(None);
    };
    let known = report.cluster_id.and_then(|cluster_id| report.catalog.owner(uid, cluster_id));
    let owner = pages(disk, uid).await?.first().map(|page| page.owner).or(known);
    let (Some(owner), Some((position, first))) = (owner, first_batch(&file, uid, base, size).await?) else {
        return Ok(None);
    };
    Ok(Some(Step::Page(page_before(&file, owner, base, size, position, &first).await?)))
}

/// The first valid header of the partition in a segment, at or above its base offset, and where it lies.
async fn first_batch<F: File>(
    file: &F,
    uid: PartitionUid,
    base: Offset,
    size: SegmentSize,
) -> Result<Option<(u32, BatchHeader)>, DiskError> {
    let (mut from, data_end) = (BLOCK_BYTES as u32, size.data_end());
    while from < data_end {
        // Windows overlap by a block, so that no header straddles the end of one unseen.
        let len = READ_BYTES.min((data_end - from) as usize);
        let bytes = file.read_at(u64::from(from), len).await?;
        let window = Window { bytes: &bytes, base: from, data_end };
        let found = window.headers_from(from, uid).find(|(_, header)| header.leader.base_offset >= base);
        if found.is_some() {
            return Ok(found);
        }
        from = if len == READ_BYTES { from + (len - BLOCK_BYTES) as u32 } else { data_end };
    }
    Ok(None)
}

/// The header page that a segment had whose first batch, or the first that is left, is `first`.
async fn page_before<F: File>(
    file: &F,
    owner: Owner,
    base: Offset,
    size: SegmentSize,
    position: u32,
    first: &BatchHeader,
) -> Result<HeaderPage, DiskError> {
    let is_first = position == BLOCK_BYTES as u32 && first.leader.base_offset == base;
    // In front of a lost batch any index will do that was not used behind it, and no anchor fits.
    let before = (u64::from(position) - BLOCK_BYTES as u64) / BATCH_ALIGN as u64;
    let index = if is_first { 0 } else { before.min(first.leader.batch_index.0 - 1) };
    let page = HeaderPage {
        owner,
        leader_epoch: first.leader.leader_epoch,
        base_offset: base,
        base_index: coulee_protocol::ids::BatchIndex(first.leader.batch_index.0 - index),
        chain_anchor: if is_first { first.leader.prev_header_crc } else { 0 },
        size,
        prezeroed: false,
    };
    // A trailer knows the sum of the page; without one a segment that syncs by itself is always right.
    let last = file.read_at(u64::from(size.bytes()) - BLOCK_BYTES as u64, BLOCK_BYTES).await?;
    let trailer = Trailer::decode(&last, size).ok();
    let prezeroed = HeaderPage { prezeroed: true, ..page };
    let is_prezeroed = trailer.is_some_and(|trailer| trailer.header_page_crc == prezeroed.crc());
    Ok(if is_prezeroed { prezeroed } else { page })
}

/// Keeps aside what the steps of one pass write over, then carries them out, in order. `run` names the place.
///
/// # Errors
/// The disk's: what was done stays done, the rest is planned again by the next repair.
async fn apply<D: Disk>(disk: &D, pool: &BlockPool, steps: &[Step], run: u64, now_ms: i64) -> Result<(), DiskError> {
    disk.create_dir(Dir::Repair(run)).await?;
    disk.sync_dir(Dir::Root).await?;
    disk.sync_dir(Dir::Repairs).await?;
    for step in steps {
        match step {
            Step::Meta(_) | Step::Mark(_, _, None) => {}
            Step::Length(uid, base, _) => keep(disk, run, *uid, *base, 0, u64::MAX).await?,
            Step::Page(page) => {
                let (uid, base) = (page.owner.partition_uid, page.base_offset);
                keep(disk, run, uid, base, 0, BLOCK_BYTES as u64).await?;
            }
            Step::Mark(uid, _, Some((base, position))) => {
                let from = position / BLOCK_BYTES as u32 * BLOCK_BYTES as u32;
                keep(disk, run, *uid, *base, from, KEPT_BYTES_MAX).await?;
            }
        }
    }
    disk.sync_dir(Dir::Repair(run)).await?;
    for step in steps {
        match *step {
            Step::Meta(cluster_id) => {
                let meta = Meta { cluster_id, sequence: 1 };
                for copy in [Copy2::A, Copy2::B] {
                    meta::write(disk, pool, copy, meta).await?;
                }
            }
            Step::Length(uid, base, size) => give_length(disk, FileName::Segment(uid, base), size).await?,
            Step::Page(page) => write_page(disk, pool, &page).await?,
            Step::Mark(uid, lost, _) => {
                // The whole directory may be gone.
                disk.create_dir(Dir::Partition(uid)).await?;
                disk.sync_dir(Dir::Partitions).await?;
                hole::write(disk, uid, lost, now_ms).await?;
            }
        }
    }
    Ok(())
}

/// Bytes from the beginning of a damaged range that are kept aside. The segment keeps all of them as well.
const KEPT_BYTES_MAX: u64 = 16 << 20;

/// Copies up to `bytes_max` bytes of a segment from `from` on to the side; fine if the file is gone or ends before.
async fn keep<D: Disk>(
    disk: &D,
    run: u64,
    uid: PartitionUid,
    base: Offset,
    from: u32,
    bytes_max: u64,
) -> Result<(), DiskError> {
    let file = match disk.open(FileName::Segment(uid, base)).await {
        Err(DiskError::NotFound) => return Ok(()),
        other => other?,
    };
    let whole_blocks = file.len() / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    let len = whole_blocks.saturating_sub(u64::from(from)).min(bytes_max);
    if len == 0 {
        return Ok(());
    }
    let kept = disk.create(FileName::Kept(run, uid, base, from), len).await?;
    copy(&file, u64::from(from), &kept, len).await
}

/// Copies `len` bytes, whole blocks, and syncs.
async fn copy<F: File>(from: &F, position: u64, to: &F, len: u64) -> Result<(), DiskError> {
    let mut done = 0;
    while done < len {
        let step = (len - done).min(READ_BYTES as u64);
        let bytes = from.read_at(position + done, step as usize).await?;
        to.write_at(vec![bytes], done, WriteMode::Written).await?;
        done += step;
    }
    to.sync().await
}

/// Makes the file anew in its length beside the old one, and gives it the name in one step.
async fn give_length<D: Disk>(disk: &D, name: FileName, size: SegmentSize) -> Result<(), DiskError> {
    let old = disk.open(name).await?;
    disk.create_dir(Dir::Pool(0)).await?;
    let number = |name: &FileName| match name {
        FileName::Pool(_, number) | FileName::Fresh(_, number) => *number,
        _ => 0,
    };
    let last = disk.list(Dir::Pool(0)).await?.iter().map(number).max().unwrap_or_default();
    let fresh = FileName::Fresh(0, last + 1);
    let new = disk.create(fresh, u64::from(size.bytes())).await?;
    let whole_blocks = old.len() / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    copy(&old, 0, &new, whole_blocks.min(u64::from(size.bytes()))).await?;
    disk.rename(fresh, name).await?;
    disk.sync_dir(name.dir()).await?;
    disk.sync_dir(Dir::Pool(0)).await
}

async fn write_page<D: Disk>(disk: &D, pool: &BlockPool, page: &HeaderPage) -> Result<(), DiskError> {
    let file = disk.open(FileName::Segment(page.owner.partition_uid, page.base_offset)).await?;
    let mut block = pool.take(BLOCK_BYTES);
    block.pad_to(BLOCK_BYTES);
    page.encode(block.filled_mut());
    file.write_at(vec![block.freeze()], 0, WriteMode::Written).await?;
    file.sync().await
}
