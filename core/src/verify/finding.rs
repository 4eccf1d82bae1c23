//! What a check of a data directory finds, how bad it is and what to do about it; finds nothing itself.

use crate::catalog::ReplayError;
use crate::disk::{Dir, FileName};
use crate::log::Damage;
use crate::log::recovery::inspection::Remark;
use crate::log::recovery::{Cause, RecoveryError};
use crate::log::scan::BadFrame;
use crate::log::segment::PageError;
use coulee_protocol::ids::{Offset, PartitionUid};
use std::fmt;

/// Findings that are kept of one partition: the rest is counted.
const FINDINGS_MAX: usize = 64;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// What a crash leaves; the next start clears it away.
    Note,
    /// Something is not as it should be, and nothing is lost by it.
    Warning,
    /// What was durable cannot be read.
    Damage,
}

/// Where something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a directory.
    Dir(Dir),
    /// In a file, or where it should be.
    File(FileName),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(dir) => dir.fmt(formatter),
            Self::File(name) => name.fmt(formatter),
        }
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub place: Place,
    /// The byte of the file, where it is one.
    pub position: Option<u32>,
    /// Offsets that are lost by it.
    pub lost: Option<Damage>,
    /// What.
    pub what: What,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A segment file is missing.
    SegmentMissing,
    /// A range that a repair has marked as lost.
    Hole,
    /// A header page cannot be read.
    Page(PageError),
    /// What lies there is not the next batch.
    Frame(BadFrame),
    /// The file cannot be read, or not by this release.
    Unreadable(RecoveryError),
    /// Neither copy of the meta file can be read.
    MetaLost,
    /// A newer broker wrote the directory.
    MetaTooNew(u16),
    /// There is no catalog, and there are partitions.
    CatalogMissing,
    /// The record of the catalog at this offset does not fit, or is none.
    Catalog(Offset, Option<ReplayError>),
    /// One of the two copies of the meta file cannot be read.
    MetaCopy,
    /// One of the two copies of a checkpoint cannot be read.
    CheckpointCopy,
    /// Neither copy of a checkpoint can be read.
    CheckpointLost,
    /// The directory of a partition of the catalog is missing.
    PartitionMissing,
    /// A directory of a partition that the catalog never made.
    PartitionForeign,
    /// A directory of a deleted partition.
    PartitionDeleted,
    /// A file in reserve has none of the sizes of a segment.
    PoolSize,
    /// Something beside the batches.
    Remark(Remark),
}

impl What {
    /// How bad it is.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        match self {
            Self::SegmentMissing | Self::Page(_) | Self::Frame(_) | Self::Unreadable(_) | Self::MetaLost => {
                Severity::Damage
            }
            Self::MetaTooNew(_) | Self::CatalogMissing | Self::Catalog(..) => Severity::Damage,
            Self::MetaCopy | Self::CheckpointCopy | Self::CheckpointLost | Self::Hole => Severity::Warning,
            Self::PartitionMissing | Self::PartitionForeign => Severity::Warning,
            Self::Remark(Remark::Tail(..) | Remark::Empty(_) | Remark::IndexMissing(_)) => Severity::Note,
            Self::Remark(_) => Severity::Warning,
            Self::PartitionDeleted | Self::PoolSize => Severity::Note,
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::SegmentMissing => "put the file back from a copy, or mark the range as lost: coulee repair",
            Self::Hole => "nothing: readers are told, and may step over it",
            Self::Page(_) => "put the file back from a copy, or restore the page from the batches: coulee repair",
            Self::Frame(_) => "put the file back from a copy, or mark the range as lost: coulee repair",
            Self::Unreadable(RecoveryError::TooNew { .. } | RecoveryError::UnknownFeatures { .. }) => {
                "use the version that wrote it, or a newer one"
            }
            Self::Unreadable(_) => "see the system's log for the device, and copy the directory to a sound one",
            Self::MetaLost => "restore meta.a or meta.b from a copy; coulee repair makes them from the segments",
            Self::MetaTooNew(_) => "use the version that wrote it, or a newer one",
            Self::CatalogMissing | Self::Catalog(..) => "restore p/1 from a copy",
            Self::MetaCopy | Self::CheckpointCopy => "nothing: the other copy stands, the next start writes both",
            Self::CheckpointLost => "nothing: the log is read instead; until then a torn end may hide damage",
            Self::PartitionMissing => "restore it from a copy; a start makes it anew, and empty",
            Self::PartitionForeign => "nothing, or move it away: a start leaves it as it is",
            Self::PartitionDeleted | Self::PoolSize => "nothing: the next start removes it",
            Self::Remark(Remark::Tail(..)) => "nothing: it was never acknowledged, the next start clears it",
            Self::Remark(Remark::Empty(_)) => "nothing: the next start removes it",
            Self::Remark(Remark::Owner(_)) => "see whether the file was copied here from another directory",
            Self::Remark(Remark::Footer(_)) => {
                "put the file back from a copy: the batches are sound, their sums are not"
            }
            Self::Remark(_) => "nothing: the batches are read instead",
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SegmentMissing => write!(formatter, "segment is missing"),
            Self::Hole => write!(formatter, "lost, and marked so by a repair"),
            Self::Page(error) => write!(formatter, "header page: {error}"),
            Self::Frame(bad) => bad.fmt(formatter),
            Self::Unreadable(error) => error.fmt(formatter),
            Self::MetaLost => write!(formatter, "neither meta.a nor meta.b can be read"),
            Self::MetaTooNew(version) => write!(formatter, "format version {version} is newer than this release"),
            Self::CatalogMissing => write!(formatter, "the catalog is missing, and there are partitions"),
            Self::Catalog(offset, Some(error)) => write!(formatter, "catalog record at offset {offset}: {error}"),
            Self::Catalog(offset, None) => write!(formatter, "no catalog record at offset {offset}"),
            Self::MetaCopy | Self::CheckpointCopy => write!(formatter, "one of two copies is damaged or old"),
            Self::CheckpointLost => write!(formatter, "neither copy of the checkpoint can be read"),
            Self::PartitionMissing => write!(formatter, "the partition has no directory"),
            Self::PartitionForeign => write!(formatter, "the catalog never made this partition"),
            Self::PartitionDeleted => write!(formatter, "files of a deleted partition"),
            Self::PoolSize => write!(formatter, "file in reserve of an odd size"),
            Self::Remark(remark) => remark.fmt(formatter),
        }
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Owner(_) => "header page names another cluster, topic or partition",
            Self::IndexMissing(_) => "the sealed segment has no index file",
            Self::Index(_) => "index file is damaged, or says what is not so",
            Self::Footer(_) => "footer says other than the batches",
            Self::HalfSealed(_) => "footer or trailer is damaged, or sealing was cut off",
            Self::Resume(_) => "the checkpoint's resume point is none between two batches",
            Self::Tail(..) => "unsynced tail behind the end of the log",
            Self::Empty(_) => "segment was begun and nothing in it was ever durable",
        })
    }
}

impl Finding {
    pub(super) const fn of_dir(dir: Dir, what: What) -> Self {
        Self { place: Place::Dir(dir), position: None, lost: None, what }
    }

    pub(super) const fn of_file(name: FileName, what: What) -> Self {
        Self { place: Place::File(name), position: None, lost: None, what }
    }

    pub(super) const fn of_damage(uid: PartitionUid, lost: Damage, cause: Cause) -> Self {
        let (segment, position, what) = match cause {
            Cause::Missing => (lost.from, None, What::SegmentMissing),
            Cause::Page(segment, error) => (segment, Some(0), What::Page(error)),
            Cause::Frame(segment, position, bad) => (segment, Some(position), What::Frame(bad)),
        };
        Self { place: Place::File(FileName::Segment(uid, segment)), position, lost: Some(lost), what }
    }

    pub(super) const fn of_remark(uid: PartitionUid, remark: Remark) -> Self {
        let (base, position) = match remark {
            Remark::Tail(base, position) => (base, Some(position)),
            Remark::Owner(base) | Remark::IndexMissing(base) | Remark::Index(base) | Remark::Footer(base) => {
                (base, None)
            }
            Remark::HalfSealed(base) | Remark::Resume(base) | Remark::Empty(base) => (base, None),
        };
        let name = match remark {
            Remark::IndexMissing(_) | Remark::Index(_) => FileName::Index(uid, base),
            _ => FileName::Segment(uid, base),
        };
        Self { place: Place::File(name), position, lost: None, what: What::Remark(remark) }
    }
}

/// The first findings, and how many there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    kept: Vec<Finding>,
    untold: u64,
    worst: Option<Severity>,
}

impl Findings {
    pub(super) fn push(&mut self, finding: Finding) {
        self.worst = self.worst.max(Some(finding.what.severity()));
        if self.kept.len() < FINDINGS_MAX { self.kept.push(finding) } else { self.untold += 1 }
    }

    pub(super) const fn pass_over(&mut self, count: u64) {
        self.untold += count;
    }

    /// The first ones, in the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.kept.iter()
    }

    /// How many more there were.
    #[must_use]
    pub const fn untold(&self) -> u64 {
        self.untold
    }

    /// The worst of all.
    #[must_use]
    pub const fn worst(&self) -> Option<Severity> {
        self.worst
    }
}
