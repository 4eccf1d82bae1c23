//! What goes wrong with a simulated disk, and what has; knows no bytes.

use std::collections::BTreeMap;
use std::ops::Range;

/// An operation that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A write: half of it may be on the device.
    Write,
    /// A sync of a file, or a write that is durable by itself: what it was for is gone, and a second one succeeds.
    Sync,
    /// A flush of the device.
    Flush,
    /// Creating a file.
    Create,
    /// Renaming one.
    Rename,
    /// A sync of a directory; what it was for is durable with a later one.
    SyncDir,
    /// A read.
    Read,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Write, Self::Sync, Self::Flush, Self::Create, Self::Rename, Self::SyncDir, Self::Read];
}

/// What goes wrong. Nothing by default.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Operations of each kind that succeed before one fails.
    pub countdowns: BTreeMap<Kind, u64>,
    /// In thousandths, how many writes of more than a block come in parts.
    pub short_writes: u64,
    /// When no file can be created for want of room, in microseconds.
    pub full: Range<u64>,
    /// How many operations of each kind have failed.
    pub struck: BTreeMap<Kind, u64>,
    /// Creations that were refused for want of room.
    pub refused: u64,
}

impl Faults {
    /// Whether this operation fails.
    pub(super) fn strikes(&mut self, kind: Kind) -> bool {
        let Some(left) = self.countdowns.get_mut(&kind) else { return false };
        if *left > 0 {
            *left -= 1;
            return false;
        }
        self.countdowns.remove(&kind);
        *self.struck.entry(kind).or_default() += 1;
        true
    }

    pub(super) fn is_full(&mut self, now_us: u64) -> bool {
        let full = self.full.contains(&now_us);
        self.refused += u64::from(full);
        full
    }

    /// Whether an operation of this kind has failed.
    #[must_use]
    pub fn has_struck(&self, kind: Kind) -> bool {
        self.struck.contains_key(&kind)
    }
}
