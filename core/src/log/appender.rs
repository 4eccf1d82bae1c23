//! ⑧ Group commit: gathers batches into writes, keeps two writes off one block, and knows what is written; it does
//! no I/O, owns no file and answers nobody.
//!
//! ```text
//!  appended ─▶ tail block ─▶ piece ─▶ write in flight ─▶ written end
//!              (filled)      (frozen)  (blocks aligned)    (contiguous)
//! ```
//! Issuing a write freezes its buffers; the next one begins with a copy of the unfinished block, so it may start only
//! when the write before has completed. Large batches own their blocks and go several at a time.
//!
//! Sketch, a small batch: one copy into the tail block, and at most 4 KiB copied again a write. A large batch: no
//! copy; its buffer is the piece. One system call a write, whatever it holds.

use super::segment::HeaderPage;
use super::tail::{BufferId, TailCache};
use crate::block::{Block, BlockMut, BlockPool, align_down, align_up};
use crate::limits::{BLOCK_BYTES, TAIL_BLOCK_BYTES, WRITE_BYTES_MAX, WRITES_IN_FLIGHT_MAX};
use coulee_protocol::ids::{BatchIndex, Offset};
use std::collections::VecDeque;

/// A point between two batches of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Offset of the next record.
    pub offset: Offset,
    /// Index of the next batch.
    pub index: BatchIndex,
    /// `header_crc` of the batch before.
    pub prev_header_crc: u32,
    /// Base offset of the segment that the batch before lies in.
    pub segment: Offset,
    /// Where, in that segment, the batch before ends with its padding.
    pub position: u32,
    /// Bytes appended since start; only differences mean anything.
    pub bytes: u64,
}

impl Mark {
    /// In front of the first batch of a segment.
    #[must_use]
    pub const fn at_start_of(page: &HeaderPage) -> Self {
        Self {
            offset: page.base_offset,
            index: page.base_index,
            prev_header_crc: page.chain_anchor,
            segment: page.base_offset,
            position: BLOCK_BYTES as u32,
            bytes: 0,
        }
    }
}

/// Names a write of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(pub u64);

/// A write to issue.
#[derive(Debug)]
pub struct Write {
    /// Its name.
    pub id: WriteId,
    /// Base offset of the segment it goes to.
    pub segment: Offset,
    /// Where in the file: whole blocks.
    pub position: u32,
    /// What: whole blocks, one behind the other.
    pub blocks: Vec<Block>,
}

/// A frozen buffer that waits for its write.
#[derive(Debug)]
struct Piece {
    segment: Offset,
    base: u32,
    /// The bytes, zeros behind the last batch up to a whole block.
    block: Block,
    mark: Mark,
}

#[derive(Debug)]
struct InFlight {
    id: WriteId,
    segment: Offset,
    /// First byte behind its blocks.
    blocks_end: u32,
    mark: Mark,
    done: bool,
}

/// Gathers the appends of one partition. Lives on the partition's shard.
#[derive(Debug)]
pub struct Appender {
    pool: BlockPool,
    tail: BlockMut,
    tail_base: u32,
    tail_id: BufferId,
    /// The tail holds bytes that no piece or write holds.
    tail_fresh: bool,
    /// Bytes that the next tail block is made for.
    tail_bytes: usize,
    pieces: VecDeque<Piece>,
    in_flight: VecDeque<InFlight>,
    next_id: u64,
    /// Log end: behind the last batch appended.
    end: Mark,
    /// Behind the last batch of the contiguous prefix of completed writes.
    written: Mark,
    copied_bytes: u64,
}

impl Appender {
    /// An appender that goes on at `end`; `unfinished` is what the block that holds `end.position` has before it.
    #[must_use]
    pub fn resume(pool: BlockPool, end: Mark, unfinished: &[u8]) -> Self {
        assert_eq!(unfinished.len(), end.position as usize % BLOCK_BYTES, "the unfinished block up to the end");
        let mut tail = pool.take(BLOCK_BYTES);
        tail.extend(unfinished);
        Self {
            tail_base: align_down(end.position as usize) as u32,
            pool,
            tail,
            tail_id: BufferId(0),
            tail_fresh: false,
            tail_bytes: BLOCK_BYTES,
            pieces: VecDeque::new(),
            in_flight: VecDeque::new(),
            next_id: 0,
            end,
            written: end,
            copied_bytes: 0,
        }
    }

    /// The log end.
    #[must_use]
    pub const fn end(&self) -> &Mark {
        &self.end
    }

    /// The written end: everything below is in completed writes.
    #[must_use]
    pub const fn written(&self) -> &Mark {
        &self.written
    }

    /// Bytes of batches copied in user space so far: of small ones their payload, once more what a write repeats of
    /// an unfinished block, and of large ones those that did not come in a block of their own.
    #[must_use]
    pub const fn copied_bytes(&self) -> u64 {
        self.copied_bytes
    }

    /// Whether something waits to be written.
    #[must_use]
    pub fn has_unissued(&self) -> bool {
        self.tail_fresh || !self.pieces.is_empty()
    }

    /// Whether a write is in flight.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Moves to a new segment, whose header page is the first thing written to it.
    pub fn start_segment(&mut self, base: Offset, header_page: &[u8; BLOCK_BYTES], cache: &mut TailCache) {
        self.freeze_tail(cache);
        self.end.segment = base;
        self.end.position = BLOCK_BYTES as u32;
        self.new_tail(0, &[], BLOCK_BYTES);
        self.tail.extend(header_page);
        self.tail_fresh = true;
    }

    /// Appends a small batch, `head` being its stamped header: copies it into the tail block.
    pub fn append_small(&mut self, head: &[u8], payload: &[u8], start: u32, end: Mark, cache: &mut TailCache) {
        let bytes = (end.position - self.end.position) as usize;
        if (end.position - self.tail_base) as usize > self.tail.capacity() {
            self.tail_bytes = (self.tail_bytes * 4)
                .clamp(align_up(bytes + BLOCK_BYTES), TAIL_BLOCK_BYTES.max(align_up(bytes + BLOCK_BYTES)));
            self.rotate_tail(cache);
        }
        let at = (start - self.tail_base) as usize;
        self.tail.pad_to(at);
        self.tail.extend(head);
        self.tail.extend(payload);
        self.tail.pad_to((end.position - self.tail_base) as usize);
        self.tail_fresh = true;
        self.copied_bytes += payload.len() as u64;
        cache.note(end.offset, self.tail_id, at, head.len() + payload.len());
        self.end = end;
    }

    /// Gives a large batch that came between others a block of its own: a copy.
    pub fn own(&mut self, batch: &Block) -> BlockMut {
        let mut block = self.pool.take(align_up(batch.len()));
        block.extend(batch);
        self.copied_bytes += batch.len() as u64;
        block
    }

    /// Appends a large batch that lies, stamped, in a block of its own: no copy.
    pub fn append_large(&mut self, mut block: BlockMut, start: u32, end: Mark, cache: &mut TailCache) {
        let len = block.len();
        assert_eq!(start as usize % BLOCK_BYTES, 0, "a large batch owns its blocks");
        assert_eq!(end.position as usize, start as usize + align_up(len), "and is padded to the next");
        self.freeze_tail(cache);
        block.pad_to(align_up(len));
        let block = block.freeze();
        let id = self.next_buffer();
        cache.note(end.offset, id, 0, len);
        cache.keep(id, block.clone());
        self.pieces.push_back(Piece { segment: end.segment, base: start, block, mark: end });
        self.new_tail(end.position, &[], self.tail_bytes);
        self.end = end;
    }

    /// The next write, if one may start now.
    pub fn next_write(&mut self, cache: &mut TailCache) -> Option<Write> {
        if !self.has_unissued() || self.in_flight.len() >= WRITES_IN_FLIGHT_MAX {
            return None;
        }
        let (segment, position) = match self.pieces.front() {
            Some(piece) => (piece.segment, piece.base),
            None => (self.end.segment, self.tail_base),
        };
        // Writes go up the file, so only the last one before can reach into this one's first block.
        let overlaps = |write: &InFlight| !write.done && write.segment == segment && write.blocks_end > position;
        if self.in_flight.back().is_some_and(overlaps) && !cfg!(coulee_mutation = "overlapping_tail_writes") {
            return None;
        }
        let pieces_bytes: usize = self.pieces.iter().map(|piece| piece.block.len()).sum();
        if self.tail_fresh && pieces_bytes < WRITE_BYTES_MAX {
            self.freeze_tail_and_go_on(cache);
        }
        Some(self.gather(segment, position))
    }

    /// Takes pieces of one segment from the front, up to [`WRITE_BYTES_MAX`].
    fn gather(&mut self, segment: Offset, position: u32) -> Write {
        let (mut blocks, mut bytes, mut mark, mut blocks_end) = (Vec::new(), 0, self.written, position);
        while let Some(piece) = self.pieces.front().filter(|piece| piece.segment == segment) {
            if bytes > 0 && bytes + piece.block.len() > WRITE_BYTES_MAX {
                break;
            }
            let Some(piece) = self.pieces.pop_front() else { break };
            // A successor in this write repeats the unfinished block: leave it to that one.
            let next = self.pieces.front().filter(|next| {
                next.segment == segment && bytes + piece.block.len() + next.block.len() <= WRITE_BYTES_MAX
            });
            let until = next.map_or(piece.block.len(), |next| (next.base - piece.base) as usize);
            if until > 0 {
                blocks.push(piece.block.slice(0..until));
            }
            bytes += until;
            mark = piece.mark;
            blocks_end = piece.base + piece.block.len() as u32;
        }
        let id = WriteId(self.next_id);
        self.next_id += 1;
        self.in_flight.push_back(InFlight { id, segment, blocks_end, mark, done: false });
        Write { id, segment, position, blocks }
    }

    /// Notes that write `id` has completed, moves the written end over the contiguous prefix, and answers where that
    /// write ended.
    pub fn completed(&mut self, id: WriteId) -> Mark {
        let write = self.in_flight.iter_mut().find(|write| write.id == id).expect("a write completes once");
        write.done = true;
        let mark = write.mark;
        while let Some(write) = self.in_flight.front().filter(|write| write.done) {
            assert!(write.mark.offset >= self.written.offset, "the written end never goes back");
            self.written = write.mark;
            self.in_flight.pop_front();
        }
        mark
    }

    fn next_buffer(&mut self) -> BufferId {
        self.tail_id.0 += 1;
        self.tail_id
    }

    /// A new tail block at `base` that begins with `unfinished`.
    fn new_tail(&mut self, base: u32, unfinished: &[u8], bytes: usize) {
        self.tail = self.pool.take(bytes.max(BLOCK_BYTES));
        self.tail.extend(unfinished);
        self.copied_bytes += unfinished.len() as u64;
        self.tail_base = base;
        self.next_buffer();
        self.tail_fresh = false;
    }

    /// Makes a piece of the tail if it holds something that no piece holds. The tail is used up.
    fn freeze_tail(&mut self, cache: &mut TailCache) -> Option<Block> {
        if !self.tail_fresh {
            return None;
        }
        let id = self.tail_id;
        let empty = self.pool.take(BLOCK_BYTES);
        let mut tail = std::mem::replace(&mut self.tail, empty);
        tail.pad_to(align_up(tail.len()));
        let block = tail.freeze();
        cache.keep(id, block.clone());
        let (segment, base) = (self.end.segment, self.tail_base);
        self.pieces.push_back(Piece { segment, base, block: block.clone(), mark: self.end });
        self.tail_fresh = false;
        Some(block)
    }

    /// Freezes the tail and begins the next with a copy of the unfinished block.
    fn freeze_tail_and_go_on(&mut self, cache: &mut TailCache) {
        let used = self.tail.len();
        // Grow and shrink with what one write takes.
        self.tail_bytes = (used * 2).clamp(BLOCK_BYTES, TAIL_BLOCK_BYTES);
        self.rotate_tail(cache);
    }

    /// Puts a fresh block in the place of the tail, with a copy of its unfinished block.
    fn rotate_tail(&mut self, cache: &mut TailCache) {
        let used = self.tail.len();
        let whole = align_down(used);
        let base = self.tail_base + whole as u32;
        let unfinished: Block = match self.freeze_tail(cache) {
            Some(block) => block.slice(whole..used),
            None => {
                let empty = self.pool.take(BLOCK_BYTES);
                std::mem::replace(&mut self.tail, empty).freeze().slice(whole..used)
            }
        };
        self.new_tail(base, &unfinished, self.tail_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Random;
    use crate::limits::LARGE_BATCH_BYTES;
    use crate::log::segment::{padded_end, start_after};
    use coulee_protocol::batch::HEADER_BYTES;
    use std::collections::BTreeMap;

    const FILE_BYTES: usize = 1 << 20;

    /// An appender over files in memory, driven by chance.
    struct Run {
        random: Random,
        appender: Appender,
        cache: TailCache,
        in_flight: Vec<Write>,
        /// By segment: what was appended, and what completed writes have left.
        files: BTreeMap<Offset, (Vec<u8>, Vec<u8>)>,
        batches: Vec<Vec<u8>>,
    }

    impl Run {
        fn new(seed: u64) -> Self {
            let start = Mark { index: BatchIndex(1), ..Mark::default() };
            let mut run = Self {
                random: Random::new(seed),
                appender: Appender::resume(BlockPool::new(4 << 20), start, &[]),
                cache: TailCache::starting_at(Offset(0)),
                in_flight: Vec::new(),
                files: BTreeMap::new(),
                batches: Vec::new(),
            };
            run.start_segment();
            run
        }

        fn start_segment(&mut self) {
            let base = self.appender.end().offset;
            let page = [self.random.next() as u8 | 1; BLOCK_BYTES];
            self.appender.start_segment(base, &page, &mut self.cache);
            let mut expected = vec![0; FILE_BYTES];
            expected[..BLOCK_BYTES].copy_from_slice(&page);
            self.files.insert(base, (expected, vec![0; FILE_BYTES]));
        }

        fn append(&mut self) {
            let len = HEADER_BYTES
                + match self.random.below(6) {
                    0 => self.random.below(100_000),
                    1 => LARGE_BATCH_BYTES as u64 - 200 + self.random.below(200),
                    2 => self.random.below(9_000),
                    _ => self.random.below(600),
                } as usize;
            let mut end = *self.appender.end();
            let start = start_after(end.position, len);
            if padded_end(start, len) as usize > FILE_BYTES {
                return self.start_segment();
            }
            let first = self.random.next() as u8;
            let bytes: Vec<u8> = (0..len).map(|at| first.wrapping_add(at as u8) | 1).collect();
            let file = self.files.get_mut(&end.segment).expect("it was begun");
            file.0[start as usize..start as usize + len].copy_from_slice(&bytes);
            end = Mark {
                offset: end.offset.advance(1),
                index: end.index.next(),
                position: padded_end(start, len),
                ..end
            };
            if len >= LARGE_BATCH_BYTES {
                let mut block = BlockPool::new(0).take(align_up(len));
                block.extend(&bytes);
                self.appender.append_large(block, start, end, &mut self.cache);
            } else {
                let (head, payload) = bytes.split_at(HEADER_BYTES);
                self.appender.append_small(head, payload, start, end, &mut self.cache);
            }
            self.batches.push(bytes);
        }

        fn issue(&mut self) {
            while let Some(write) = self.appender.next_write(&mut self.cache) {
                let bytes = |write: &Write| write.blocks.iter().map(|block| block.len()).sum::<usize>();
                let range = |write: &Write| write.position as usize..write.position as usize + bytes(write);
                let new = range(&write);
                assert!(
                    new.start.is_multiple_of(BLOCK_BYTES) && new.end.is_multiple_of(BLOCK_BYTES) && !new.is_empty()
                );
                for other in self.in_flight.iter().filter(|other| other.segment == write.segment) {
                    let other = range(other);
                    assert!(other.end <= new.start || new.end <= other.start, "{other:?} and {new:?} are in flight");
                }
                self.in_flight.push(write);
                assert!(self.in_flight.len() <= WRITES_IN_FLIGHT_MAX);
            }
        }

        /// Completes any of the writes in flight; everything below the written end is then in its file.
        fn complete(&mut self) {
            let any = self.random.below(self.in_flight.len() as u64) as usize;
            let write = self.in_flight.swap_remove(any);
            let file = &mut self.files.get_mut(&write.segment).expect("it was begun").1;
            let mut at = write.position as usize;
            for block in &write.blocks {
                file[at..at + block.len()].copy_from_slice(block);
                at += block.len();
            }
            self.appender.completed(write.id);
            let written = *self.appender.written();
            if let Some((expected, file)) = self.files.get(&written.segment) {
                let end = written.position as usize;
                assert!(expected[..end] == file[..end], "what lies below the written end {written:?} is not written");
            }
        }

        fn finish(&mut self) {
            while self.appender.has_unissued() || self.appender.is_writing() {
                self.issue();
                self.complete();
            }
            assert_eq!(self.appender.written(), self.appender.end());
            for (base, (expected, file)) in &self.files {
                assert!(expected == file, "segment {base} does not hold what was appended");
            }
            let (kept, _) = self.cache.read(Offset(0), self.appender.end().offset, usize::MAX).unwrap_or_default();
            assert!(kept.iter().map(|slice| &slice[..]).eq(self.batches.iter().map(|batch| &batch[..])));
        }
    }

    #[test]
    fn no_two_writes_in_flight_share_a_block_and_files_hold_byte_for_byte_what_was_appended() {
        for seed in 0..300 {
            let run = std::panic::catch_unwind(|| {
                let mut run = Run::new(seed);
                for _ in 0..run.random.below(300) {
                    match run.random.below(3) {
                        0 => run.append(),
                        1 => run.issue(),
                        _ if run.in_flight.is_empty() => run.append(),
                        _ => run.complete(),
                    }
                }
                run.finish();
            });
            assert!(run.is_ok(), "seed {seed}");
        }
    }
}
