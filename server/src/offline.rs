//! Opens the directory of a stopped broker for core's checks and repairs, and says what core found; decides nothing.
//!
//! The directory is held against brokers for as long as it is looked at.

use coulee_core::block::BlockPool;
use coulee_core::disk::{Dir, DiskError};
use coulee_core::repair::{self, Step};
use coulee_core::verify::{self, PartitionReport, Report, Severity, Told};
use coulee_io::disk::{DirError, DirLock, FileDisk, LockError};
use coulee_io::ring::{Errno, Ring, RingError, RingOptions};
use std::fmt;
use std::path::Path;

/// Free buffers that are kept: a window of a file and the largest batch.
const BLOCKS_KEPT_BYTES_MAX: usize = 16 << 20;
/// How often progress is told, in bytes.
const TOLD_EVERY_BYTES: u64 = 8 << 20;

/// Why a directory cannot be looked at.
#[derive(Debug)]
pub enum OfflineError {
    /// There is none.
    Missing,
    /// It holds nothing that a broker has made.
    NotOurs,
    /// A broker has it, or it cannot be locked.
    Lock(LockError),
    /// It cannot be opened.
    Dir(DirError),
    /// The machine has no ring for files.
    Ring(RingError),
    /// The system refused something else.
    System(Errno),
    /// It cannot be read.
    Disk(DiskError),
}

/// What a user can do about a directory that cannot be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirFault {
    /// Name another one.
    Missing,
    /// Stop who has it.
    Taken,
    /// Be another user.
    Rights,
    /// The text says what.
    Other,
}

impl OfflineError {
    /// What can be done about it.
    #[must_use]
    pub const fn fault(&self) -> DirFault {
        match self {
            Self::Missing | Self::NotOurs => DirFault::Missing,
            Self::Lock(LockError::Held { .. }) => DirFault::Taken,
            Self::Lock(LockError::System(errno)) if errno.is_rights() => DirFault::Rights,
            Self::Dir(DirError::Rights) => DirFault::Rights,
            _ => DirFault::Other,
        }
    }
}

impl fmt::Display for OfflineError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(formatter, "there is no such directory"),
            Self::NotOurs => write!(formatter, "this is no data directory: it has no meta file and no partitions"),
            Self::Lock(error) => error.fmt(formatter),
            Self::Dir(error) => write!(formatter, "the data directory cannot be used: {error}"),
            Self::Ring(error) => error.fmt(formatter),
            Self::System(error) => error.fmt(formatter),
            Self::Disk(error) => write!(formatter, "the data directory cannot be read: {error}"),
        }
    }
}

impl std::error::Error for OfflineError {}

/// How far a check is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Partitions that are done.
    pub partitions_done: usize,
    /// Partitions that there are.
    pub partitions: usize,
    /// Bytes of segment files that are done.
    pub bytes_done: u64,
    /// Bytes of segment files that there are.
    pub bytes: u64,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is: `note`, `warning` or `damage`.
    pub severity: &'static str,
    /// The file or directory below the data directory.
    pub file: String,
    /// The byte of the file.
    pub position: Option<u32>,
    /// The first offset that is lost by it, and the first one behind.
    pub lost: Option<(u64, u64)>,
    /// What.
    pub what: String,
    /// What to do about it.
    pub advice: &'static str,
}

impl From<&verify::Finding> for Finding {
    fn from(finding: &verify::Finding) -> Self {
        let severity = match finding.what.severity() {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Damage => "damage",
        };
        Self {
            severity,
            file: finding.place.to_string(),
            position: finding.position,
            lost: finding.lost.map(|lost| (lost.from.0, lost.to.0)),
            what: finding.what.to_string(),
            advice: finding.what.advice(),
        }
    }
}

/// How a partition was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its uid.
    pub uid: u64,
    /// Its topic and its number there, where the catalog has it.
    pub topic: Option<(String, u32)>,
    /// First readable offset.
    pub log_start: u64,
    /// Where a start goes on.
    pub log_end: u64,
    /// Segments that can be read.
    pub segments: u64,
    /// Valid batches.
    pub batches: u64,
    /// Their records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Offsets that are lost.
    pub lost: u64,
    /// The first findings.
    pub findings: Vec<Finding>,
    /// How many more there were.
    pub untold: u64,
}

impl From<&PartitionReport> for Partition {
    fn from(report: &PartitionReport) -> Self {
        let seen = &report.inspected.seen;
        Self {
            uid: report.uid.0,
            topic: report.topic.as_ref().map(|(name, number)| (name.to_string(), *number)),
            log_start: report.inspected.log_start.0,
            log_end: report.inspected.log_end.0,
            segments: seen.segments,
            batches: seen.batches,
            records: seen.records,
            bytes: seen.bytes,
            lost: report.lost(),
            findings: report.findings.iter().map(Finding::from).collect(),
            untold: report.findings.untold(),
        }
    }
}

/// How a directory was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Something that was durable cannot be read.
    pub is_damaged: bool,
    /// Findings of the directory as a whole.
    pub findings: Vec<Finding>,
    /// Its partitions, by uid.
    pub partitions: Vec<Partition>,
    /// Files in reserve.
    pub pool_files: u64,
    /// Bytes read.
    pub bytes_read: u64,
}

impl Verified {
    fn of(report: &Report) -> Self {
        Self {
            is_damaged: report.severity() == Some(Severity::Damage),
            findings: report.findings.iter().map(Finding::from).collect(),
            partitions: report.partitions.iter().map(Partition::from).collect(),
            pool_files: report.pool_files,
            bytes_read: report.partitions.iter().map(|partition| partition.inspected.report.bytes_read).sum(),
        }
    }
}

/// Checks a directory and leaves no trace in it. Blocks the thread.
///
/// # Errors
/// [`OfflineError`]; what is wrong with the data is no error but an answer.
pub fn verify(data_dir: &Path, on_progress: &mut dyn FnMut(Progress)) -> Result<Verified, OfflineError> {
    check_ours(data_dir)?;
    let _held: Option<DirLock> = coulee_io::disk::lock_to_read(data_dir).map_err(OfflineError::Lock)?;
    let ring = Ring::new(RingOptions::default()).map_err(OfflineError::Ring)?;
    let pool = BlockPool::new(BLOCKS_KEPT_BYTES_MAX);
    let disk = FileDisk::open_to_read(data_dir, ring.clone(), pool).map_err(OfflineError::Dir)?;
    let mut meter = Meter { on_progress, now: Progress::default(), told_bytes: 0, partitions_bytes: 0 };
    let report = ring.block_on(verify::verify(&disk, &mut |told| meter.hear(&told))).map_err(OfflineError::System)?;
    Ok(Verified::of(&report.map_err(OfflineError::Disk)?))
}

/// What a repair would do, or has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// Each step, in order. Those of a repair that was only planned are of its first pass.
    pub steps: Vec<String>,
    /// Where what was written over is kept, below the data directory; none where nothing was done.
    pub kept: Option<String>,
    /// How the directory is found afterwards, or now.
    pub verified: Verified,
}

/// What a repair of the directory would do first; leaves no trace. Blocks the thread.
///
/// # Errors
/// [`OfflineError`].
pub fn plan_repair(data_dir: &Path) -> Result<Repaired, OfflineError> {
    check_ours(data_dir)?;
    let _held = coulee_io::disk::lock_to_read(data_dir).map_err(OfflineError::Lock)?;
    let ring = Ring::new(RingOptions::default()).map_err(OfflineError::Ring)?;
    let pool = BlockPool::new(BLOCKS_KEPT_BYTES_MAX);
    let disk = FileDisk::open_to_read(data_dir, ring.clone(), pool).map_err(OfflineError::Dir)?;
    let planning = async {
        let report = verify::verify(&disk, &mut |_| ()).await?;
        Ok((repair::plan(&disk, &report).await?, report))
    };
    let (steps, report) = ring.block_on(planning).map_err(OfflineError::System)?.map_err(OfflineError::Disk)?;
    let steps = steps.iter().map(ToString::to_string).collect();
    Ok(Repaired { steps, kept: None, verified: Verified::of(&report) })
}

/// Repairs the directory at the time `now_ms`, in milliseconds since 1970. Blocks the thread.
///
/// # Errors
/// [`OfflineError`]; what was done stays done, and another repair does the rest.
pub fn repair(data_dir: &Path, now_ms: u64) -> Result<Repaired, OfflineError> {
    check_ours(data_dir)?;
    let _held = coulee_io::disk::lock(data_dir).map_err(OfflineError::Lock)?;
    let ring = Ring::new(RingOptions::default()).map_err(OfflineError::Ring)?;
    let pool = BlockPool::new(BLOCKS_KEPT_BYTES_MAX);
    let disk = FileDisk::open(data_dir, ring.clone(), pool.clone()).map_err(OfflineError::Dir)?;
    let (mut unwritten, mut pass) = (None, 0);
    let mut note = |report: &Report, steps: &[Step]| {
        pass += 1;
        let text = note_of(report, steps);
        let name = format!("pass-{pass}.txt");
        unwritten = unwritten.or_else(|| disk.write_note(Dir::Repair(now_ms), &name, &text).err());
    };
    let repairing = repair::repair(&disk, &pool, now_ms, now_ms as i64, &mut note);
    let (steps, report) = ring.block_on(repairing).map_err(OfflineError::System)?.map_err(OfflineError::Disk)?;
    if let Some(error) = unwritten {
        return Err(OfflineError::Disk(error));
    }
    let kept = (!steps.is_empty()).then(|| Dir::Repair(now_ms).to_string());
    let steps = steps.iter().map(ToString::to_string).collect();
    Ok(Repaired { steps, kept, verified: Verified::of(&report) })
}

/// What was found and what is about to be done, for people.
fn note_of(report: &Report, steps: &[Step]) -> String {
    let mut lines = vec!["found:".to_owned()];
    let parts = report.partitions.iter().map(|partition| &partition.findings);
    for finding in [&report.findings].into_iter().chain(parts).flat_map(verify::Findings::iter) {
        let Finding { severity, file, position, lost, what, .. } = Finding::from(finding);
        let at = position.map_or_else(String::new, |position| format!(" at byte {position}"));
        let lost = lost.map_or_else(String::new, |(from, to)| format!(", offsets {from} to {to} (exclusive)"));
        lines.push(format!("  {severity} {file}{at}{lost}: {what}"));
    }
    lines.push("to do:".to_owned());
    lines.extend(steps.iter().map(|step| format!("  {step}")));
    lines.join("\n") + "\n"
}

/// Whether a broker has ever made anything there.
fn check_ours(data_dir: &Path) -> Result<(), OfflineError> {
    if !data_dir.is_dir() {
        return Err(OfflineError::Missing);
    }
    let is_ours = ["meta.a", "meta.b", "p"].iter().any(|name| data_dir.join(name).exists());
    if is_ours { Ok(()) } else { Err(OfflineError::NotOurs) }
}

/// Adds up what core tells, and passes it on every few bytes.
struct Meter<'a> {
    on_progress: &'a mut dyn FnMut(Progress),
    now: Progress,
    told_bytes: u64,
    /// Of the partitions that are done.
    partitions_bytes: u64,
}

impl Meter<'_> {
    fn hear(&mut self, told: &Told<'_>) {
        match told {
            Told::Begun { partitions, bytes } => (self.now.partitions, self.now.bytes) = (*partitions, *bytes),
            Told::Batch(bytes) => {
                self.now.bytes_done += *bytes as u64;
                if self.now.bytes_done < self.told_bytes + TOLD_EVERY_BYTES {
                    return;
                }
            }
            Told::Partition(report) => {
                self.partitions_bytes += report.file_bytes;
                self.now.bytes_done = self.partitions_bytes;
                self.now.partitions_done += usize::from(report.file_bytes > 0);
            }
        }
        self.told_bytes = self.now.bytes_done;
        (self.on_progress)(self.now);
    }
}
