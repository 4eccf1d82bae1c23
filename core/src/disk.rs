//! The port to files: what core asks of a disk and what it may rely on; knows no path, no kernel and no thread.
//!
//! Three disks stand behind it: `io`'s, [`memory::MemoryDisk`], and the fault-injecting one of `tests`.
//! Futures are `!Send`; an operation starts when its future is first polled and its buffers live until it completes,
//! also when the future is dropped.

use crate::block::Block;
use coulee_protocol::ids::{Offset, PartitionUid};
use std::fmt;
use std::ops::Range;

pub mod memory;

/// A directory of the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dir {
    /// The data directory itself.
    Root,
    /// `p`: holds one directory a partition.
    Partitions,
    /// `p/<uid>`.
    Partition(PartitionUid),
    /// `pool/<shard>`.
    Pool(u16),
    /// `checkpoint`.
    Checkpoints,
    /// `repair`.
    Repairs,
    /// `repair/<run>`: what a repair has kept aside.
    Repair(u64),
}

/// A file of the data directory. Its place is the format (docs/STORAGE_FORMAT.md, "Data directory").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileName {
    /// `meta.a` or `meta.b`.
    Meta(Copy2),
    /// `p/<uid>/<base offset, 20 digits>.log`.
    Segment(PartitionUid, Offset),
    /// `p/<uid>/<base offset, 20 digits>.index`.
    Index(PartitionUid, Offset),
    /// `pool/<shard>/<number>.log`.
    Pool(u16, u64),
    /// `pool/<shard>/<number>.new`: not yet zeroed throughout.
    Fresh(u16, u64),
    /// `checkpoint/<shard>.a` or `.b`.
    Checkpoint(u16, Copy2),
    /// `p/<uid>/<first lost offset, 20 digits>.hole`.
    Hole(PartitionUid, Offset),
    /// `repair/<run>/<uid>-<base offset>-<position>.bytes`: bytes of a segment as they were found.
    Kept(u64, PartitionUid, Offset, u32),
}

/// Which of two alternating copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Copy2 {
    /// The copy written by even sequence numbers.
    A,
    /// The copy written by odd sequence numbers.
    B,
}

impl Copy2 {
    /// The copy that write number `sequence` goes to.
    #[must_use]
    pub const fn of(sequence: u64) -> Self {
        if sequence.is_multiple_of(2) { Self::A } else { Self::B }
    }

    const fn suffix(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
        }
    }
}

impl FileName {
    /// The directory that holds it.
    #[must_use]
    pub const fn dir(self) -> Dir {
        match self {
            Self::Meta(_) => Dir::Root,
            Self::Segment(uid, _) | Self::Index(uid, _) | Self::Hole(uid, _) => Dir::Partition(uid),
            Self::Kept(run, ..) => Dir::Repair(run),
            Self::Pool(shard, _) | Self::Fresh(shard, _) => Dir::Pool(shard),
            Self::Checkpoint(..) => Dir::Checkpoints,
        }
    }

    /// The file called `name` in `dir`, or `None` where no file of ours is called so.
    #[must_use]
    pub fn parse(dir: Dir, name: &str) -> Option<Self> {
        let (stem, suffix) = name.rsplit_once('.')?;
        let number = || stem.parse::<u64>().ok();
        let copy = match suffix {
            "a" => Some(Copy2::A),
            "b" => Some(Copy2::B),
            _ => None,
        };
        let parsed = match (dir, suffix) {
            (Dir::Root, _) if stem == "meta" => Self::Meta(copy?),
            (Dir::Partition(uid), "log") => Self::Segment(uid, Offset(number()?)),
            (Dir::Partition(uid), "index") => Self::Index(uid, Offset(number()?)),
            (Dir::Partition(uid), "hole") => Self::Hole(uid, Offset(number()?)),
            (Dir::Repair(run), "bytes") => {
                let mut parts = stem.split('-');
                let mut part = || parts.next()?.parse::<u64>().ok();
                let (uid, base, position) = (part()?, part()?, part()?);
                Self::Kept(run, PartitionUid(uid), Offset(base), u32::try_from(position).ok()?)
            }
            (Dir::Pool(shard), "log") => Self::Pool(shard, number()?),
            (Dir::Pool(shard), "new") => Self::Fresh(shard, number()?),
            (Dir::Checkpoints, _) => Self::Checkpoint(stem.parse().ok()?, copy?),
            _ => return None,
        };
        (parsed.to_string().rsplit('/').next() == Some(name)).then_some(parsed)
    }
}

impl fmt::Display for Dir {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => write!(formatter, "."),
            Self::Partitions => write!(formatter, "p"),
            Self::Partition(uid) => write!(formatter, "p/{uid}"),
            Self::Pool(shard) => write!(formatter, "pool/{shard}"),
            Self::Checkpoints => write!(formatter, "checkpoint"),
            Self::Repairs => write!(formatter, "repair"),
            Self::Repair(run) => write!(formatter, "repair/{run}"),
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta(copy) => write!(formatter, "meta.{}", copy.suffix()),
            Self::Segment(uid, base) => write!(formatter, "p/{uid}/{:020}.log", base.0),
            Self::Index(uid, base) => write!(formatter, "p/{uid}/{:020}.index", base.0),
            Self::Pool(shard, number) => write!(formatter, "pool/{shard}/{number}.log"),
            Self::Fresh(shard, number) => write!(formatter, "pool/{shard}/{number}.new"),
            Self::Checkpoint(shard, copy) => write!(formatter, "checkpoint/{shard}.{}", copy.suffix()),
            Self::Hole(uid, from) => write!(formatter, "p/{uid}/{:020}.hole", from.0),
            Self::Kept(run, uid, base, position) => {
                write!(formatter, "repair/{run}/{uid}-{:020}-{position}.bytes", base.0)
            }
        }
    }
}

/// Why an operation failed. The machine's fault, never the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// No room: nothing of the operation was done.
    NoSpace,
    /// There is no such file.
    NotFound,
    /// The operation failed; what it did is unknown.
    Io {
        /// The system's error number.
        errno: i32,
    },
    /// The file ends before what was asked for.
    BeyondEnd,
}

impl fmt::Display for DiskError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSpace => write!(formatter, "no space left on device"),
            Self::NotFound => write!(formatter, "no such file"),
            Self::Io { errno } => write!(formatter, "input/output error (os error {errno})"),
            Self::BeyondEnd => write!(formatter, "read beyond the end of the file"),
        }
    }
}

impl std::error::Error for DiskError {}

/// What a write promises when it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// The device has the bytes, unflushed.
    Written,
    /// These bytes are durable (RWF_DSYNC). Says nothing about earlier writes.
    Durable,
}

/// A disk. Cheap to clone: a handle of the shard's own disk.
pub trait Disk: Clone + fmt::Debug + 'static {
    /// An open file.
    type File: File;

    /// Opens a file that exists.
    fn open(&self, name: FileName) -> impl Future<Output = Result<Self::File, DiskError>>;
    /// Makes a file of `len` bytes, a multiple of the block size, that reads as zeros; its space is
    /// reserved. Replaces a file of that name.
    fn create(&self, name: FileName, len: u64) -> impl Future<Output = Result<Self::File, DiskError>>;
    /// Makes a directory; fine if it is there.
    fn create_dir(&self, dir: Dir) -> impl Future<Output = Result<(), DiskError>>;
    /// The files in `dir`, sorted; empty if there is no such directory.
    fn list(&self, dir: Dir) -> impl Future<Output = Result<Vec<FileName>, DiskError>>;
    /// Partitions that have a directory, sorted.
    fn list_partitions(&self) -> impl Future<Output = Result<Vec<PartitionUid>, DiskError>>;
    /// Shards that have a pool, sorted, whether there still is such a shard or not.
    fn list_pools(&self) -> impl Future<Output = Result<Vec<u16>, DiskError>>;
    /// Renames a file, replacing what is there.
    fn rename(&self, from: FileName, to: FileName) -> impl Future<Output = Result<(), DiskError>>;
    /// Removes a file; fine if it is gone.
    fn remove(&self, name: FileName) -> impl Future<Output = Result<(), DiskError>>;
    /// Removes an empty directory; fine if it is gone.
    fn remove_dir(&self, dir: Dir) -> impl Future<Output = Result<(), DiskError>>;
    /// Makes creations, renames and removals in `dir` durable.
    fn sync_dir(&self, dir: Dir) -> impl Future<Output = Result<(), DiskError>>;
    /// One flush of the device: makes every write durable that completed before it began, over blocks that had been
    /// written before. Files that are new or fallocated need [`File::sync`].
    fn sync_device(&self) -> impl Future<Output = Result<(), DiskError>>;
    /// Whether [`Disk::sync_device`] may stand in for a sync of each file on this disk.
    fn device_flush_proved(&self) -> bool;
}

/// An open file. Cheap to clone; the file is closed with the last handle.
pub trait File: Clone + fmt::Debug + 'static {
    /// Writes `blocks` one behind the other at `position`. Position and total length are whole blocks. No two writes
    /// in flight may cover the same block: nothing orders them.
    fn write_at(
        &self,
        blocks: Vec<Block>,
        position: u64,
        mode: WriteMode,
    ) -> impl Future<Output = Result<(), DiskError>>;
    /// Reads `len` bytes at `position`, both whole blocks.
    fn read_at(&self, position: u64, len: usize) -> impl Future<Output = Result<Block, DiskError>>;
    /// Makes every write durable that completed before it began. After a failure nothing may be assumed, and it must
    /// never be tried again: a second sync may succeed with the data gone.
    fn sync(&self) -> impl Future<Output = Result<(), DiskError>>;
    /// Writes zeros over `range`, whole blocks.
    fn zero(&self, range: Range<u64>) -> impl Future<Output = Result<(), DiskError>>;
    /// Bytes of the file.
    fn len(&self) -> u64;
    /// Whether it has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The bytes of `range` of a sealed segment, mapped read-only, or `None` where this disk does not map.
    fn map(&self, range: Range<u64>) -> Option<Block>;
    /// Whether `range` of a mapping can be touched without waiting for the device.
    fn resident(&self, range: Range<u64>) -> bool;
    /// Asks for read-ahead of `range`.
    fn will_need(&self, range: Range<u64>);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_name_parses_back_and_others_do_not() {
        let uid = PartitionUid(12);
        let names = [
            FileName::Meta(Copy2::A),
            FileName::Segment(uid, Offset(7)),
            FileName::Index(uid, Offset(u64::MAX)),
            FileName::Pool(3, 9),
            FileName::Fresh(3, 9),
            FileName::Checkpoint(0, Copy2::B),
            FileName::Hole(uid, Offset(9)),
            FileName::Kept(5, uid, Offset(9), 4_096),
        ];
        for name in names {
            let text = name.to_string();
            let last = text.rsplit('/').next().unwrap_or_default();
            assert_eq!(FileName::parse(name.dir(), last), Some(name), "{text}");
        }
        for foreign in ["", ".log", "1.log", "00000000000000000007.tmp", "lost+found", "99999999999999999999.log"] {
            assert_eq!(FileName::parse(Dir::Partition(uid), foreign), None, "{foreign}");
        }
        assert_eq!(FileName::parse(Dir::Checkpoints, "70000.a"), None);
    }
}
