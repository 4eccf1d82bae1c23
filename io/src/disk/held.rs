//! Writes kept in memory until a sync, in test builds only: a killed process then loses what a power cut would; it
//! knows no test and no name of a file.
//!
//! Held by block: of two writes of one block the later counts, as on a disk. A write that is to be durable by itself
//! goes to the file at once and takes the place of what was held for its blocks.

use super::disk_error;
use crate::ring::{Fd, Ring};
use coulee_core::block::{Block, BlockMut};
use coulee_core::disk::{DiskError, WriteMode};
use coulee_core::limits::{BLOCK_BYTES, WRITE_BYTES_MAX};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Stands in programs that hold writes back, so that they can be told from others.
#[used]
static MUTATION: &str = "writes_wait_for_sync";

/// What is held of one file.
pub(super) struct Held {
    /// Keeps the file, so that no other gets its inode number.
    fd: Fd,
    /// By number of the block: when it was written, and with what.
    blocks: RefCell<BTreeMap<u64, (u64, Block)>>,
    written: Cell<u64>,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.borrow().is_empty()
    }

    /// Takes a write; false where it has to go to the file.
    pub(super) fn take_write(&self, blocks: &[Block], position: u64, mode: WriteMode) -> bool {
        let mut held = self.blocks.borrow_mut();
        self.written.set(self.written.get() + 1);
        let mut number = position / BLOCK_BYTES as u64;
        for block in blocks {
            for at in (0..block.len()).step_by(BLOCK_BYTES) {
                match mode {
                    WriteMode::Durable => drop(held.remove(&number)),
                    WriteMode::Written => {
                        let block = block.slice(at..at + BLOCK_BYTES);
                        held.insert(number, (self.written.get(), block));
                    }
                }
                number += 1;
            }
        }
        mode == WriteMode::Written
    }

    /// What was read at `position`, as it would be with everything written.
    pub(super) fn over(&self, mut read: BlockMut, position: u64) -> BlockMut {
        let first = position / BLOCK_BYTES as u64;
        let held = self.blocks.borrow();
        for (at, bytes) in read.filled_mut().chunks_mut(BLOCK_BYTES).enumerate() {
            if let Some((_, block)) = held.get(&(first + at as u64)) {
                bytes.copy_from_slice(block);
            }
        }
        read
    }

    /// Writes everything held to the file; what to pass to [`Held::release`] once that is synced.
    pub(super) async fn write_out(&self, ring: &Ring) -> Result<u64, DiskError> {
        let upto = self.written.get();
        let blocks: Vec<(u64, Block)> =
            self.blocks.borrow().iter().map(|(number, (_, block))| (*number, block.clone())).collect();
        let neighbours = |a: &(u64, Block), b: &(u64, Block)| a.0 + 1 == b.0;
        for run in blocks.chunk_by(neighbours).flat_map(|run| run.chunks(WRITE_BYTES_MAX / BLOCK_BYTES)) {
            let write = run.iter().map(|(_, block)| block.clone()).collect();
            ring.write_at(&self.fd, write, run[0].0 * BLOCK_BYTES as u64, false).await.map_err(disk_error)?;
        }
        Ok(upto)
    }

    /// Lets go of what was written before `upto` was answered.
    pub(super) fn release(&self, upto: u64) {
        self.blocks.borrow_mut().retain(|_, (written, _)| *written > upto);
    }
}

/// What is held of all files of a disk.
#[derive(Default)]
pub(super) struct Registry {
    files: RefCell<BTreeMap<u64, Rc<Held>>>,
}

impl Registry {
    /// What is held of the file with this inode number.
    pub(super) fn of(&self, fd: &Fd, inode: u64) -> Rc<Held> {
        self.prune();
        let mut files = self.files.borrow_mut();
        let new = || Held { fd: Rc::clone(fd), blocks: RefCell::default(), written: Cell::new(0) };
        Rc::clone(files.entry(inode).or_insert_with(|| Rc::new(new())))
    }

    /// Closes files that nobody has open and nothing is held of.
    pub(super) fn prune(&self) {
        self.files.borrow_mut().retain(|_, held| Rc::strong_count(held) > 1 || !held.is_empty());
    }

    /// Syncs the device through `flush` with everything held of every file on it.
    pub(super) async fn sync_device(&self, ring: &Ring, flush: &Fd) -> Result<(), DiskError> {
        let files: Vec<Rc<Held>> = self.files.borrow().values().map(Rc::clone).collect();
        let mut written = Vec::new();
        for held in files {
            written.push((held.write_out(ring).await?, held));
        }
        ring.sync_data(flush).await.map_err(disk_error)?;
        written.iter().for_each(|(upto, held)| held.release(*upto));
        Ok(())
    }

    /// Syncs the file `fd` with everything held of it.
    pub(super) async fn sync(held: &Held, ring: &Ring, fd: &Fd) -> Result<(), DiskError> {
        let upto = held.write_out(ring).await?;
        ring.sync_data(fd).await.map_err(disk_error)?;
        held.release(upto);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{filled, with_disk};
    use coulee_core::disk::{Copy2, Disk, File, FileName, WriteMode};

    #[test]
    fn an_unsynced_write_is_read_but_not_in_the_file_until_a_sync() {
        with_disk(async |disk| {
            let file = disk.create(FileName::Meta(Copy2::A), 16_384).await.unwrap();
            let stored = || std::fs::read(disk.root().join("meta.a")).unwrap();
            let firsts = |bytes: &[u8]| bytes.iter().step_by(4_096).copied().collect::<Vec<u8>>();
            file.write_at(vec![filled(1, 3)], 0, WriteMode::Written).await.unwrap();
            file.write_at(vec![filled(2, 1)], 4_096, WriteMode::Written).await.unwrap();
            assert_eq!(firsts(&file.read_at(0, 16_384).await.unwrap()), [1, 2, 1, 0]);
            let again = disk.open(FileName::Meta(Copy2::A)).await.unwrap();
            assert_eq!(firsts(&again.read_at(4_096, 12_288).await.unwrap()), [2, 1, 0], "another handle reads it, too");
            assert!(file.map(0..4_096).is_none() && !file.resident(0..4_096));
            assert_eq!(firsts(&stored()), [0, 0, 0, 0]);
            file.write_at(vec![filled(3, 1)], 0, WriteMode::Durable).await.unwrap();
            assert_eq!(firsts(&stored()), [3, 0, 0, 0], "a durable write takes no earlier one along");
            file.sync().await.unwrap();
            assert_eq!(firsts(&stored()), [3, 2, 1, 0]);
            file.write_at(vec![filled(4, 1)], 12_288, WriteMode::Written).await.unwrap();
            drop((file, again));
            assert_eq!(firsts(&stored()), [3, 2, 1, 0]);
            disk.sync_device().await.unwrap();
            assert_eq!(firsts(&stored()), [3, 2, 1, 4]);
        });
    }
}
