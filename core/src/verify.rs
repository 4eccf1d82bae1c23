//! Checks all that a stopped broker has left on disk and changes nothing; what is damage and what an unsynced tail, the
//! walk of a start decides ([`crate::log::recovery`]). It knows no path and prints nothing.
//!
//! Damage is what was durable and cannot be read. Of a cache (index, footer, checkpoint, one of two copies) nothing is
//! lost with it: that is a warning. What a crash leaves in the ordinary way, and the next start clears away, is a note.

use crate::catalog::record::CatalogRecord;
use crate::catalog::{CATALOG_UID, Catalog, FIRST_UID, ReplayError};
use crate::checkpoint::{self, Checkpoint};
use crate::disk::{Dir, Disk, DiskError, File, FileName};
use crate::log::recovery::inspection::{Inspected, inspect};
use crate::log::segment::{Owner, SegmentSize};
use crate::meta::{self, Found};
use coulee_protocol::batch::{BatchHeader, HEADER_BYTES};
use coulee_protocol::columns::{Columns, Scratch};
use coulee_protocol::ids::{ClusterId, Offset, PartitionUid};
pub use finding::{Finding, Findings, Place, Severity, What};

mod finding;

/// What a check tells while it runs.
#[derive(Debug)]
pub enum Told<'a> {
    /// There is so much to check.
    Begun {
        /// Partitions.
        partitions: usize,
        /// Bytes of their segment files.
        bytes: u64,
    },
    /// A valid batch of so many bytes.
    Batch(usize),
    /// A partition is done.
    Partition(&'a PartitionReport),
}

/// How a partition was found.
#[derive(Clone, Debug)]
pub struct PartitionReport {
    /// Which.
    pub uid: PartitionUid,
    /// Its topic and its number there; none where the catalog does not have it.
    pub topic: Option<(Box<str>, u32)>,
    /// Bytes of its segment files.
    pub file_bytes: u64,
    /// What the walk has found.
    pub inspected: Inspected,
    /// All that is to be said of it.
    pub findings: Findings,
}

impl PartitionReport {
    /// Offsets that were durable and cannot be read, marked by a repair or not.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.inspected.damage.iter().map(|damage| damage.to.0 - damage.from.0).sum()
    }
}

/// How a data directory was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is to be said of the directory as a whole: meta, checkpoints, catalog, pools, directories.
    pub findings: Findings,
    /// Every partition that has files or is in the catalog, by uid.
    pub partitions: Vec<PartitionReport>,
    /// Files in reserve.
    pub pool_files: u64,
    /// The catalog as far as it can be read.
    pub catalog: Catalog,
    /// The cluster, where it is known.
    pub cluster_id: Option<ClusterId>,
}

impl Report {
    /// The worst that was found.
    #[must_use]
    pub fn severity(&self) -> Option<Severity> {
        let parts = self.partitions.iter().map(|partition| &partition.findings);
        parts.chain([&self.findings]).filter_map(Findings::worst).max()
    }
}

/// Checks everything, and tells how far it is. Memory is bounded: one window of a file, and the first findings of each
/// partition.
///
/// # Errors
/// The disk's, where not even a directory or the place of a checkpoint can be read; a file of a partition that cannot
/// be read is a finding.
pub async fn verify<D: Disk>(disk: &D, told: &mut dyn FnMut(Told<'_>)) -> Result<Report, DiskError> {
    let mut report = Report::default();
    let directories = disk.list_partitions().await?;
    check_meta(disk, &directories, &mut report).await?;
    check_checkpoints(disk, &mut report.findings).await?;
    check_pools(disk, &mut report).await?;
    let checkpoint = checkpoint::load(disk, 0).await?;
    let mut bytes = 0;
    for uid in &directories {
        bytes += segment_bytes(disk, *uid).await?;
    }
    told(Told::Begun { partitions: directories.len(), bytes });
    let mut replay = Replay::default();
    let own = owner_of(&report, CATALOG_UID);
    let witness = &mut |header: &BatchHeader, batch: &[u8]| {
        replay.batch(header, batch);
        told(Told::Batch(batch.len()));
    };
    let catalog = check_partition(disk, CATALOG_UID, own, &checkpoint, witness).await?;
    report.catalog = replay.catalog;
    let is_empty = catalog.inspected.log_end == Offset(0);
    if is_empty && directories.iter().any(|uid| *uid >= FIRST_UID) {
        report.findings.push(Finding::of_dir(Dir::Partition(CATALOG_UID), What::CatalogMissing));
    }
    if let Some((offset, error)) = replay.error.filter(|_| catalog.inspected.damage.is_empty()) {
        let what = What::Catalog(offset, error);
        report.findings.push(Finding::of_dir(Dir::Partition(CATALOG_UID), what));
    }
    finish(catalog, &mut report, told);
    let mut uids: Vec<PartitionUid> = report.catalog.partition_uids().chain(directories.iter().copied()).collect();
    uids.sort_unstable();
    uids.dedup();
    for uid in uids.into_iter().filter(|uid| *uid != CATALOG_UID) {
        check_place(uid, &directories, &checkpoint, &mut report);
        let own = owner_of(&report, uid);
        let witness = &mut |_: &BatchHeader, batch: &[u8]| told(Told::Batch(batch.len()));
        let partition = check_partition(disk, uid, own, &checkpoint, witness).await?;
        finish(partition, &mut report, told);
    }
    Ok(report)
}

fn finish(mut partition: PartitionReport, report: &mut Report, told: &mut dyn FnMut(Told<'_>)) {
    let topic = report.catalog.partition(partition.uid).map(|(topic, number)| (topic.name.clone(), number));
    partition.topic = topic;
    told(Told::Partition(&partition));
    report.partitions.push(partition);
}

/// Who a partition belongs to; only its uid where cluster or catalog are not known.
fn owner_of(report: &Report, uid: PartitionUid) -> Owner {
    let known = report.cluster_id.and_then(|cluster_id| report.catalog.owner(uid, cluster_id));
    known.unwrap_or_else(|| Owner { partition_uid: uid, ..Owner::default() })
}

async fn segment_bytes<D: Disk>(disk: &D, uid: PartitionUid) -> Result<u64, DiskError> {
    let mut bytes = 0;
    for name in disk.list(Dir::Partition(uid)).await? {
        if matches!(name, FileName::Segment(..)) {
            bytes += disk.open(name).await?.len();
        }
    }
    Ok(bytes)
}

async fn check_meta<D: Disk>(disk: &D, directories: &[PartitionUid], report: &mut Report) -> Result<(), DiskError> {
    let copies = meta::look(disk).await?;
    let newest = meta::newest(&copies);
    report.cluster_id = newest.map(|meta| meta.cluster_id);
    for (copy, name) in copies.iter().zip([crate::disk::Copy2::A, crate::disk::Copy2::B].map(FileName::Meta)) {
        let what = match copy {
            Found::TooNew(version) => What::MetaTooNew(*version),
            Found::Sound(meta) if newest == Some(*meta) => continue,
            _ if newest.is_none() => continue,
            _ => What::MetaCopy,
        };
        report.findings.push(Finding::of_file(name, what));
    }
    let is_lost = newest.is_none() && copies.iter().all(|copy| !matches!(copy, Found::TooNew(_)));
    if is_lost && !directories.is_empty() {
        report.findings.push(Finding::of_dir(Dir::Root, What::MetaLost));
    }
    Ok(())
}

/// A copy that cannot be read. Without any, what was durable is told by the log alone.
async fn check_checkpoints<D: Disk>(disk: &D, findings: &mut Findings) -> Result<(), DiskError> {
    let copies = checkpoint::look(disk).await?;
    for (name, _) in copies.iter().filter(|(_, is_sound)| !is_sound) {
        let FileName::Checkpoint(shard, _) = name else { continue };
        let of_shard = |other: &(FileName, bool)| matches!(other.0, FileName::Checkpoint(of, _) if of == *shard);
        let is_other_sound = copies.iter().any(|copy| of_shard(copy) && copy.1);
        let what = if is_other_sound { What::CheckpointCopy } else { What::CheckpointLost };
        findings.push(Finding::of_file(*name, what));
    }
    Ok(())
}

/// The files in reserve: nothing of them was promised to anybody.
async fn check_pools<D: Disk>(disk: &D, report: &mut Report) -> Result<(), DiskError> {
    for shard in disk.list_pools().await? {
        for name in disk.list(Dir::Pool(shard)).await? {
            report.pool_files += 1;
            let is_ready = matches!(name, FileName::Pool(..));
            if is_ready && SegmentSize::of_bytes(disk.open(name).await?.len()).is_none() {
                report.findings.push(Finding::of_file(name, What::PoolSize));
            }
        }
    }
    Ok(())
}

/// Whether the directory of a partition is where the catalog says, and nowhere else.
fn check_place(uid: PartitionUid, directories: &[PartitionUid], checkpoint: &Checkpoint, report: &mut Report) {
    let is_there = directories.binary_search(&uid).is_ok();
    let is_known = report.catalog.partition(uid).is_some();
    let was_written = checkpoint.partition(uid).is_some_and(|partition| partition.durable_end > partition.log_start);
    let what = match (is_known, is_there) {
        (true, true) => return,
        // Then the walk finds what is lost.
        (true, false) if was_written => return,
        (true, false) => What::PartitionMissing,
        (false, _) if report.catalog.was_deleted(uid) => What::PartitionDeleted,
        (false, _) => What::PartitionForeign,
    };
    report.findings.push(Finding::of_dir(Dir::Partition(uid), what));
}

async fn check_partition<D: Disk>(
    disk: &D,
    uid: PartitionUid,
    owner: Owner,
    checkpoint: &Checkpoint,
    witness: &mut dyn FnMut(&BatchHeader, &[u8]),
) -> Result<PartitionReport, DiskError> {
    let file_bytes = segment_bytes(disk, uid).await?;
    let inspected = inspect(disk, owner, checkpoint.partition(uid), witness).await;
    let mut findings = Findings::default();
    for (damage, cause) in inspected.damage.iter().zip(&inspected.report.causes) {
        let found = Finding::of_damage(uid, *damage, *cause);
        let is_marked = inspected.is_marked(*damage);
        findings.push(if is_marked { Finding { what: What::Hole, ..found } } else { found });
    }
    if let Some((error, segment, position)) = inspected.error {
        let what = What::Unreadable(error);
        let at = Finding::of_file(FileName::Segment(uid, segment), what);
        findings.push(Finding { position: Some(position), ..at });
    }
    for remark in &inspected.seen.remarks {
        findings.push(Finding::of_remark(uid, *remark));
    }
    findings.pass_over(inspected.seen.remark_count - inspected.seen.remarks.len() as u64);
    Ok(PartitionReport { uid, topic: None, file_bytes, inspected, findings })
}

/// The catalog that the batches of its log make.
#[derive(Debug, Default)]
struct Replay {
    catalog: Catalog,
    error: Option<(Offset, Option<ReplayError>)>,
}

impl Replay {
    fn batch(&mut self, header: &BatchHeader, batch: &[u8]) {
        let base = header.leader.base_offset;
        let mut scratch = Scratch::default();
        let Ok(columns) = Columns::open(&batch[HEADER_BYTES..], header, &mut scratch) else {
            self.error.get_or_insert((base, None));
            return;
        };
        for (offset, value) in (base.0..).map(Offset).zip(columns.values()) {
            let Some(value) = value else {
                self.error.get_or_insert((offset, None));
                continue;
            };
            let record = CatalogRecord::decode(value).map_err(ReplayError::Record);
            if let Err(error) = record.and_then(|record| self.catalog.apply(&record)) {
                self.error.get_or_insert((offset, Some(error)));
            }
        }
    }
}
