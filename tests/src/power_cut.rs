//! What a disk holds after a power cut: all that was flushed, and of the rest what chance leaves; knows no filesystem.

use crate::block_device::Entry;
use crate::chance::Chance;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What a disk writes wholly or not at all.
const SECTOR_BYTES: usize = 512;
/// Writes that survive are torn in one of so many cases.
const TORN_ONE_IN: u64 = 4;

/// The part of the log that a flush has made durable, in an image.
#[derive(Debug)]
pub struct Durable {
    image: File,
    applied: usize,
}

impl Durable {
    /// Nothing of the log is in `image` yet.
    #[must_use]
    pub fn new(image: File) -> Self {
        Self { image, applied: 0 }
    }

    /// Applies everything up to the last flush before `cut`; gives where that was.
    ///
    /// # Errors
    /// If the image cannot be written.
    pub fn advance(&mut self, entries: &[Entry], cut: usize) -> io::Result<usize> {
        while let Some(flush) = entries[self.applied..cut].iter().position(|entry| !matches!(entry, Entry::Write(..))) {
            let end = self.applied + flush;
            // What a failed flush has not made durable is gone for good: the worst that a device may do.
            if matches!(entries[end], Entry::Flush) {
                for entry in &entries[self.applied..end] {
                    if let Entry::Write(offset, bytes) = entry {
                        self.image.write_all_at(bytes, *offset)?;
                    }
                }
            }
            self.applied = end + 1;
        }
        Ok(self.applied)
    }
}

/// Applies to `image` what chance leaves of writes that nothing has flushed: none, some or all, whole or torn.
///
/// # Errors
/// If the image cannot be written.
pub fn survive(image: &File, unflushed: &[Entry], chance: &mut Chance) -> io::Result<()> {
    let kept_of_8 = chance.below(9);
    for entry in unflushed {
        let Entry::Write(offset, bytes) = entry else { continue };
        if !chance.is_hit(kept_of_8, 8) {
            continue;
        }
        if !chance.is_hit(1, TORN_ONE_IN) {
            image.write_all_at(bytes, *offset)?;
            continue;
        }
        for (number, sector) in (0..).zip(bytes.chunks(SECTOR_BYTES)) {
            if chance.is_hit(1, 2) {
                image.write_all_at(sector, offset + number * SECTOR_BYTES as u64)?;
            }
        }
    }
    Ok(())
}
