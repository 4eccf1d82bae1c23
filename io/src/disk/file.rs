//! An open file of the disk: direct reads and writes, syncs, its mapping once it is sealed; knows no name.

use super::place::Place;
use super::{FileDisk, disk_error};
use crate::mapped::Mapped;
use crate::ring::Fd;
use coulee_core::block::Block;
use coulee_core::disk::{DiskError, File, WriteMode};
use coulee_core::limits::{BLOCK_BYTES, ZERO_BYTES};
use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

#[cfg(coulee_mutation = "writes_wait_for_sync")]
use super::held::{Held, Registry};

struct Shared {
    fd: Fd,
    len: u64,
    /// Made when it is first asked for, given up when the file is written again.
    mapped: RefCell<Option<Mapped>>,
    #[cfg(coulee_mutation = "writes_wait_for_sync")]
    held: Rc<Held>,
}

/// An open file. Clones share it; it is closed with the last of them and of the operations on it.
#[derive(Clone)]
pub struct OpenFile {
    disk: FileDisk,
    shared: Rc<Shared>,
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "OpenFile({:?}, {} bytes)", self.shared.fd, self.shared.len)
    }
}

impl OpenFile {
    pub(super) fn new(disk: &FileDisk, fd: Fd, place: &Place) -> Self {
        let shared = Shared {
            len: place.len,
            mapped: RefCell::new(None),
            #[cfg(coulee_mutation = "writes_wait_for_sync")]
            held: disk.root.held.of(&fd, place.inode),
            fd,
        };
        Self { disk: disk.clone(), shared: Rc::new(shared) }
    }

    fn mapped(&self) -> Option<Mapped> {
        #[cfg(coulee_mutation = "writes_wait_for_sync")]
        if !self.shared.held.is_empty() {
            return None;
        }
        let mut mapped = self.shared.mapped.borrow_mut();
        if mapped.is_none() {
            *mapped = Mapped::new(&self.shared.fd, self.shared.len);
        }
        mapped.clone()
    }

    async fn write(&self, blocks: Vec<Block>, position: u64, mode: WriteMode) -> Result<(), DiskError> {
        #[cfg(coulee_mutation = "writes_wait_for_sync")]
        if self.shared.held.take_write(&blocks, position, mode) {
            return Ok(());
        }
        let durable = mode == WriteMode::Durable && !cfg!(coulee_mutation = "ack_before_fsync");
        self.disk.ring.write_at(&self.shared.fd, blocks, position, durable).await.map_err(disk_error)
    }
}

impl File for OpenFile {
    async fn write_at(&self, blocks: Vec<Block>, position: u64, mode: WriteMode) -> Result<(), DiskError> {
        let aligned = blocks.iter().all(|block| block.len().is_multiple_of(BLOCK_BYTES) && !block.is_empty());
        assert!(aligned && !blocks.is_empty(), "direct writes are whole blocks");
        assert!(position.is_multiple_of(BLOCK_BYTES as u64), "direct writes begin on a block");
        let bytes: usize = blocks.iter().map(|block| block.len()).sum();
        if position.saturating_add(bytes as u64) > self.shared.len {
            return Err(DiskError::BeyondEnd);
        }
        // Writes past the page cache and a mapping do not go together: an active file has none.
        drop(self.shared.mapped.borrow_mut().take());
        self.write(blocks, position, mode).await
    }

    async fn read_at(&self, position: u64, len: usize) -> Result<Block, DiskError> {
        let aligned = len.is_multiple_of(BLOCK_BYTES) && position.is_multiple_of(BLOCK_BYTES as u64);
        assert!(aligned && len > 0, "direct reads are whole blocks");
        if position.saturating_add(len as u64) > self.shared.len {
            return Err(DiskError::BeyondEnd);
        }
        let block = self.disk.pool.take(len);
        let block = self.disk.ring.read_at(&self.shared.fd, block, position, len).await.map_err(disk_error)?;
        if block.len() < len {
            // The file was cut behind our back.
            return Err(DiskError::BeyondEnd);
        }
        #[cfg(coulee_mutation = "writes_wait_for_sync")]
        let block = self.shared.held.over(block, position);
        Ok(block.freeze())
    }

    async fn sync(&self) -> Result<(), DiskError> {
        if cfg!(any(coulee_mutation = "no_file_sync", coulee_mutation = "ack_before_fsync")) {
            return Ok(());
        }
        #[cfg(coulee_mutation = "writes_wait_for_sync")]
        return Registry::sync(&self.shared.held, &self.disk.ring, &self.shared.fd).await;
        #[cfg(not(coulee_mutation = "writes_wait_for_sync"))]
        self.disk.ring.sync_data(&self.shared.fd).await.map_err(disk_error)
    }

    async fn zero(&self, range: Range<u64>) -> Result<(), DiskError> {
        let mut at = range.start;
        while at < range.end {
            let bytes = (range.end - at).min(ZERO_BYTES as u64);
            let zeros = self.disk.zeros().slice(0..bytes as usize);
            self.write_at(vec![zeros], at, WriteMode::Written).await?;
            at += bytes;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.shared.len
    }

    fn map(&self, range: Range<u64>) -> Option<Block> {
        self.mapped()?.block(range)
    }

    fn resident(&self, range: Range<u64>) -> bool {
        self.mapped().is_some_and(|mapped| mapped.is_resident(range))
    }

    fn will_need(&self, range: Range<u64>) {
        if let Some(mapped) = self.mapped() {
            mapped.will_need(range);
        }
    }
}
