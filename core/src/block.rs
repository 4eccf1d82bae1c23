//! Aligned, counted memory for direct I/O; knows nothing of files, batches or who reads it.
//!
//! A [`BlockMut`] is lent out once to be filled (a receive, a copy into the tail); frozen it becomes a [`Block`],
//! which is shared: written, cached and sent from the same memory. The last owner gives it back to its pool.
//! Pools live on one shard.

use crate::limits::BLOCK_BYTES;
use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::rc::{Rc, Weak};

/// Rounds up to whole blocks of [`BLOCK_BYTES`]. `align_up(1) == 4096`, `align_up(4096) == 4096`.
#[must_use]
pub const fn align_up(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// Rounds down to whole blocks. `align_down(8191) == 4096`.
#[must_use]
pub const fn align_down(bytes: usize) -> usize {
    bytes - bytes % BLOCK_BYTES
}

/// Whether all of `bytes` are zero. Padding and the rest of a segment are checked with it, so it has to go at memory
/// speed: 64 bytes are folded together before there is a branch.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    let zero = |bytes: &[u8]| bytes.iter().fold(0, |seen, byte| seen | byte) == 0;
    chunks.iter().all(|chunk| zero(chunk)) && zero(rest)
}

/// Memory classes, 4 KiB to 1 MiB; anything larger is made to measure and not kept.
const CLASSES: [usize; 7] = [4 << 10, 16 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20];

#[derive(Debug)]
struct Shelves {
    free: [Vec<Vec<u8>>; CLASSES.len()],
    kept_bytes: usize,
    kept_bytes_max: usize,
}

impl Shelves {
    /// Makes room for memory of `class`, where that can be had from others: what is asked for changes with the load,
    /// and memory that the system has to give anew costs many times what it costs to fill.
    fn make_room(&mut self, class: usize) -> bool {
        let bytes_of = |free: &[Vec<Vec<u8>>; CLASSES.len()], class: usize| free[class].len() * CLASSES[class];
        while self.kept_bytes + CLASSES[class] > self.kept_bytes_max {
            let others = (0..CLASSES.len()).filter(|other| *other != class);
            let Some(most) = others.max_by_key(|other| bytes_of(&self.free, *other)) else { return false };
            if bytes_of(&self.free, most) <= bytes_of(&self.free, class) || self.free[most].pop().is_none() {
                return false;
            }
            self.kept_bytes -= CLASSES[most];
        }
        true
    }
}

/// Gives out aligned memory and takes it back. One lives on each shard.
#[derive(Clone, Debug)]
pub struct BlockPool {
    shelves: Rc<RefCell<Shelves>>,
}

impl BlockPool {
    /// A pool that keeps at most `kept_bytes_max` bytes for reuse.
    #[must_use]
    pub fn new(kept_bytes_max: usize) -> Self {
        let shelves = Shelves { free: Default::default(), kept_bytes: 0, kept_bytes_max };
        Self { shelves: Rc::new(RefCell::new(shelves)) }
    }

    /// Memory for `bytes`, empty. What it held before is still in it beyond its length, never visible.
    #[must_use]
    pub fn take(&self, bytes: usize) -> BlockMut {
        let class = CLASSES.iter().position(|size| *size >= bytes);
        let size = class.map_or_else(|| align_up(bytes), |class| CLASSES[class]);
        let mut shelves = self.shelves.borrow_mut();
        let kept = class.and_then(|class| shelves.free[class].pop());
        if kept.is_some() {
            shelves.kept_bytes -= size;
        }
        drop(shelves);
        let bytes = kept.unwrap_or_else(|| vec![0; size + BLOCK_BYTES]);
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES);
        assert!(start <= BLOCK_BYTES, "a byte pointer can be aligned within one block");
        BlockMut { memory: Memory { bytes, start, size, pool: Rc::downgrade(&self.shelves) }, len: 0 }
    }
}

/// The memory itself; goes back to its pool when dropped.
struct Memory {
    bytes: Vec<u8>,
    start: usize,
    size: usize,
    pool: Weak<RefCell<Shelves>>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else { return };
        let Some(class) = CLASSES.iter().position(|size| *size == self.size) else { return };
        let mut shelves = pool.borrow_mut();
        if shelves.make_room(class) {
            shelves.kept_bytes += self.size;
            shelves.free[class].push(std::mem::take(&mut self.bytes));
        }
    }
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.size]
    }
}

/// Aligned memory with one owner, filled from the front.
pub struct BlockMut {
    memory: Memory,
    len: usize,
}

impl fmt::Debug for BlockMut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BlockMut({} of {})", self.len, self.memory.size)
    }
}

impl BlockMut {
    /// Bytes filled.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether none is.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that it can hold.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.memory.size
    }

    /// What has been filled.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        &self.memory.bytes[self.memory.start..self.memory.start + self.len]
    }

    /// What has been filled, to be changed.
    pub fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.memory.bytes[self.memory.start..self.memory.start + self.len]
    }

    /// The next `bytes` to receive into; they count once [`BlockMut::advance`] says so.
    pub fn spare(&mut self, bytes: usize) -> &mut [u8] {
        assert!(self.len + bytes <= self.memory.size, "a receive stays within its block");
        let start = self.memory.start + self.len;
        &mut self.memory.bytes[start..start + bytes]
    }

    /// Counts `bytes` of the spare room as filled.
    pub fn advance(&mut self, bytes: usize) {
        assert!(self.len + bytes <= self.memory.size, "more bytes came than there was room for");
        self.len += bytes;
    }

    /// Copies `bytes` to the end.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.spare(bytes.len()).copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Fills with zeros up to `len` bytes in all.
    pub fn pad_to(&mut self, len: usize) {
        assert!(len >= self.len, "padding never cuts");
        let missing = len - self.len;
        self.spare(missing).fill(0);
        self.len = len;
    }

    /// Shares what has been filled; nobody can change it afterwards.
    #[must_use]
    pub fn freeze(self) -> Block {
        let len = self.len;
        Block { owner: Rc::new(self.memory), start: 0, len }
    }
}

/// Shared, immutable bytes: a frozen buffer or a mapping.
#[derive(Clone)]
pub struct Block {
    owner: Rc<dyn AsRef<[u8]>>,
    start: usize,
    len: usize,
}

impl fmt::Debug for Block {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Block({} bytes)", self.len)
    }
}

impl std::ops::Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.start..self.start + self.len]
    }
}

impl Block {
    /// Shares the bytes of any owner that keeps them in place: a mapping, a vector.
    #[must_use]
    pub fn from_owner(owner: Rc<dyn AsRef<[u8]>>) -> Self {
        let len = (*owner).as_ref().len();
        Self { owner, start: 0, len }
    }

    /// A part of it, which shares the same memory.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "a slice stays within its block");
        Self { owner: Rc::clone(&self.owner), start: self.start + range.start, len: range.end - range.start }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_filled_from_the_front_and_reused() {
        let pool = BlockPool::new(1 << 20);
        let mut block = pool.take(5_000);
        assert_eq!(block.filled().as_ptr().align_offset(BLOCK_BYTES), 0);
        assert_eq!(block.capacity(), 16 << 10);
        block.extend(b"abc");
        block.pad_to(8);
        let frozen = block.freeze();
        let slice = frozen.slice(1..5);
        assert_eq!(&*slice, b"bc\0\0");
        let address = frozen.as_ptr();
        drop(frozen);
        assert_eq!(&*slice, b"bc\0\0", "a slice keeps the memory");
        drop(slice);
        assert_eq!(pool.take(16 << 10).filled().as_ptr(), address, "the memory came back");
    }

    #[test]
    fn one_byte_that_is_not_zero_is_found_wherever_it_lies() {
        let mut bytes = vec![0; 300];
        for len in [0, 1, 63, 64, 65, 300] {
            assert!(is_zero(&bytes[..len]), "{len}");
            for at in 0..len {
                bytes[at] = 1 << (at % 8);
                assert!(!is_zero(&bytes[..len]), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn a_pool_that_is_full_of_one_size_makes_room_for_another_until_both_have_as_much() {
        let pool = BlockPool::new(1 << 20);
        let give_back = |bytes: usize, count: usize| {
            let blocks: Vec<BlockMut> = (0..count).map(|_| pool.take(bytes)).collect();
            drop(blocks);
        };
        let kept = |class: usize| pool.shelves.borrow().free[class].len();
        give_back(4 << 10, 256);
        assert_eq!(kept(0), 256);
        give_back(256 << 10, 4);
        assert_eq!((kept(0), kept(4)), (128, 2));
        assert_eq!(pool.shelves.borrow().kept_bytes, 1 << 20);
    }

    #[test]
    fn a_pool_keeps_no_more_than_its_bound() {
        let pool = BlockPool::new(8 << 10);
        let blocks: Vec<BlockMut> = (0..10).map(|_| pool.take(4_096)).collect();
        drop(blocks);
        assert_eq!(pool.shelves.borrow().kept_bytes, 8 << 10);
    }
}
