//! The tail cache: append buffers kept for readers at the end of a partition; knows no file and decides nothing about
//! what readers may see.
//!
//! A fetch gets slices of the very buffers that were written. 32 bytes a batch, nothing a record.

use crate::block::Block;
use coulee_protocol::ids::Offset;
use std::collections::VecDeque;

/// Names a buffer of one partition: 0, 1, 2 …
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BufferId(pub u64);

#[derive(Clone, Copy, Debug)]
struct Entry {
    end: Offset,
    buffer: BufferId,
    start: u32,
    len: u32,
}

/// Batches whose bytes are still in memory, in order of offset and without gaps.
#[derive(Debug, Default)]
pub struct TailCache {
    entries: VecDeque<Entry>,
    buffers: VecDeque<(BufferId, Block)>,
    bytes: usize,
    /// Offset of the first entry.
    first: Offset,
}

impl TailCache {
    /// An empty cache whose first batch will have offset `next`.
    #[must_use]
    pub const fn starting_at(next: Offset) -> Self {
        Self { entries: VecDeque::new(), buffers: VecDeque::new(), bytes: 0, first: next }
    }

    /// Notes a batch that ends at offset `end` and lies at `start` in a buffer that is still being filled.
    pub fn note(&mut self, end: Offset, buffer: BufferId, start: usize, len: usize) {
        self.entries.push_back(Entry { end, buffer, start: start as u32, len: len as u32 });
    }

    /// Keeps a buffer that nothing will change any more.
    pub fn keep(&mut self, id: BufferId, block: Block) {
        assert!(self.buffers.back().is_none_or(|(last, _)| *last < id), "buffers are kept in order");
        self.bytes += block.len();
        self.buffers.push_back((id, block));
    }

    /// Bytes of the oldest buffer let go, or `None` where none is kept.
    pub fn evict(&mut self) -> Option<usize> {
        let (id, block) = self.buffers.pop_front()?;
        self.bytes -= block.len();
        while let Some(entry) = self.entries.front().filter(|entry| entry.buffer <= id) {
            self.first = entry.end;
            self.entries.pop_front();
        }
        Some(block.len())
    }

    /// Bytes and number of the buffers kept.
    #[must_use]
    pub fn kept(&self) -> (usize, usize) {
        (self.bytes, self.buffers.len())
    }

    /// First offset that is here.
    #[must_use]
    pub const fn first(&self) -> Offset {
        self.first
    }

    /// Whole batches from the one that holds `offset`, up to offset `end`, at most `bytes_max` but at least one.
    /// `None` where `offset` is not here.
    #[must_use]
    pub fn read(&self, offset: Offset, end: Offset, bytes_max: usize) -> Option<(Vec<Block>, Offset)> {
        if offset < self.first || offset >= end {
            return None;
        }
        let from = self.entries.partition_point(|entry| entry.end <= offset);
        let (mut slices, mut bytes, mut next) = (Vec::new(), 0, offset);
        for entry in self.entries.range(from..).take_while(|entry| entry.end <= end) {
            let len = entry.len as usize;
            if !slices.is_empty() && bytes + len > bytes_max {
                break;
            }
            let kept = self.buffers.binary_search_by_key(&entry.buffer, |(id, _)| *id);
            let Ok(kept) = kept else { break };
            slices.push(self.buffers[kept].1.slice(entry.start as usize..entry.start as usize + len));
            bytes += len;
            next = entry.end;
        }
        (!slices.is_empty()).then_some((slices, next))
    }

    /// Bytes of the batches between `offset` and `end`, counted until `enough`; `None` where `offset` is not here.
    #[must_use]
    pub fn bytes_between(&self, offset: Offset, end: Offset, enough: usize) -> Option<usize> {
        if offset < self.first {
            return None;
        }
        let from = self.entries.partition_point(|entry| entry.end <= offset);
        let mut bytes = 0;
        for entry in self.entries.range(from..).take_while(|entry| entry.end <= end) {
            bytes += entry.len as usize;
            if bytes >= enough {
                break;
            }
        }
        Some(bytes)
    }
}
