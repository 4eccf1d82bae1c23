//! Reads a segment file window by window and steps through its batches; knows no partition state and decides nothing.
//!
//! One read of up to 1 MiB at a time; slices of it are handed on, so that what is served is what was read.

use super::scan::{BadFrame, Chain, Step, Window};
use crate::block::{Block, align_down, align_up, is_zero};
use crate::disk::{DiskError, File};
use crate::limits::{BATCH_ALIGN, BLOCK_BYTES, READ_AHEAD_BYTES, READ_BYTES};
use coulee_protocol::batch::{BatchHeader, HEADER_BYTES};
use coulee_protocol::ids::{Offset, PartitionUid};
use std::ops::Range;
use std::rc::Rc;

/// A segment file being walked.
#[derive(Debug)]
pub struct Source<F> {
    file: F,
    data_end: u32,
    window: Option<(u32, Block)>,
    bytes_read: u64,
    /// Where the file is sealed: what keeps it from being used again. It is served from the mapping then, if its pages
    /// are resident.
    mapped: Option<Rc<()>>,
    /// What follows a window is asked for ahead, where the file is sealed.
    reads_ahead: bool,
}

/// Mapped bytes, with what keeps their file from being used again while anyone has a slice of them.
struct Leased {
    block: Block,
    _lease: Rc<()>,
}

impl AsRef<[u8]> for Leased {
    fn as_ref(&self) -> &[u8] {
        &self.block
    }
}

/// What a walk found at a position.
#[derive(Clone, Debug)]
pub enum Found {
    /// The next batch: where it starts, its header, its bytes without padding.
    Batch(u32, BatchHeader, Block),
    /// Not the next batch.
    Bad(BadFrame),
}

impl<F: File> Source<F> {
    /// A walk over `file`, whose batches end at or before `data_end`.
    pub const fn new(file: F, data_end: u32, mapped: Option<Rc<()>>) -> Self {
        Self { file, data_end, window: None, bytes_read: 0, mapped, reads_ahead: false }
    }

    /// The same for a reader that goes on behind what it asks for now: a sealed file is read ahead of it into memory.
    pub fn with_read_ahead(self) -> Self {
        Self { reads_ahead: true, ..self }
    }

    /// Bytes read so far.
    pub const fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The window that holds `need` bytes from `position` on, or all up to the end of the data.
    ///
    /// # Errors
    /// The disk's.
    pub async fn window(&mut self, position: u32, need: usize) -> Result<Window<'_>, DiskError> {
        if position >= self.data_end {
            return Ok(Window { bytes: &[], base: position, data_end: self.data_end });
        }
        let end = (position as usize + need).min(self.data_end as usize);
        let held =
            self.window.as_ref().is_some_and(|(base, block)| position >= *base && end <= *base as usize + block.len());
        if !held {
            let base = align_down(position as usize);
            let wanted = align_up(end - base).max(READ_BYTES).min(align_up(self.data_end as usize) - base);
            let range = base as u64..(base + wanted) as u64;
            self.read_ahead(&range);
            let block = match self.resident(range) {
                Some(mapped) => mapped,
                None => self.file.read_at(base as u64, wanted).await?,
            };
            self.bytes_read += wanted as u64;
            self.window = Some((base as u32, block));
        }
        let (base, block) = self.window.as_ref().expect("a window was just read");
        Ok(Window { bytes: block, base: *base, data_end: self.data_end })
    }

    /// The mapping of `range`, where touching it costs no wait.
    fn resident(&self, range: Range<u64>) -> Option<Block> {
        let lease = self.mapped.as_ref().filter(|_| self.file.resident(range.clone()))?;
        let leased = Leased { block: self.file.map(range)?, _lease: Rc::clone(lease) };
        Some(Block::from_owner(Rc::new(leased)))
    }

    /// Asks for `window` and what follows it, one read's length at a time, where the end of that is not there yet. A
    /// window that is missing is read by itself as well: whoever comes next finds it.
    fn read_ahead(&self, window: &Range<u64>) {
        if self.mapped.is_none() || !self.reads_ahead {
            return;
        }
        let end = (window.end + READ_AHEAD_BYTES as u64).min(align_down(self.data_end as usize) as u64);
        let mut at = window.start;
        while at < end {
            let chunk = at..(at + READ_BYTES as u64).min(end);
            if !self.file.resident(chunk.end - BLOCK_BYTES as u64..chunk.end) {
                self.file.will_need(chunk.clone());
            }
            at = chunk.end;
        }
    }

    /// What lies at `position`, where the batch before ended with its padding.
    ///
    /// # Errors
    /// The disk's.
    pub async fn step(&mut self, position: u32, chain: &Chain) -> Result<Found, DiskError> {
        let mut need = HEADER_BYTES;
        loop {
            match self.window(position, need).await?.step(position, chain) {
                Step::Batch { start, header } => {
                    let (base, block) = self.window.as_ref().expect("the batch lies in it");
                    let from = (start - base) as usize;
                    return Ok(Found::Batch(start, header, block.slice(from..from + header.batch_len())));
                }
                Step::Bad(bad) => return Ok(Found::Bad(bad)),
                Step::Need { need: more } => {
                    // Beyond the end of the data nothing more comes: the batch does not end in this segment.
                    if more <= need || position as usize + need >= self.data_end as usize {
                        return Ok(Found::Bad(BadFrame::BeyondEnd));
                    }
                    need = more;
                }
            }
        }
    }

    /// The first whole batch behind a bad frame at `position`: of the same partition, with an offset above the
    /// expected one and below `limit`, and of an epoch that the chain may go on with.
    ///
    /// # Errors
    /// The disk's.
    pub async fn resync(
        &mut self,
        position: u32,
        chain: &Chain,
        limit: Offset,
    ) -> Result<Option<(u32, BatchHeader)>, DiskError> {
        let mut from = position + BATCH_ALIGN as u32;
        while from + (HEADER_BYTES as u32) <= self.data_end {
            let window = self.window(from, READ_BYTES).await?;
            let window_end = window.base + window.bytes.len() as u32;
            let plausible = |(_, header): &(u32, BatchHeader)| {
                let leader = &header.leader;
                leader.base_offset > chain.next_offset
                    && leader.base_offset < limit
                    && leader.leader_epoch >= chain.epoch
            };
            let candidates: Vec<(u32, BatchHeader)> =
                window.headers_from(from, chain.partition_uid).filter(plausible).collect();
            for (start, header) in candidates {
                let own = Chain {
                    next_offset: header.leader.base_offset,
                    next_index: header.leader.batch_index,
                    prev_header_crc: None,
                    ..*chain
                };
                if let Found::Batch(found, header, _) = self.step(start, &own).await?
                    && found == start
                {
                    return Ok(Some((start, header)));
                }
            }
            // A header may straddle the end of the window: go on 128 bytes before it.
            from = (window_end - HEADER_BYTES as u32).max(from + BATCH_ALIGN as u32);
        }
        Ok(None)
    }

    /// The greatest durable end that valid headers in the `bytes` behind `position` speak of, or 0, and whether one of
    /// them could be taken for a batch to come: then it has to go before anything is appended.
    ///
    /// # Errors
    /// The disk's.
    pub async fn look_ahead(
        &mut self,
        position: u32,
        bytes: usize,
        chain: &Chain,
    ) -> Result<(Offset, bool), DiskError> {
        let end = (position as usize + bytes).min(self.data_end as usize) as u32;
        let (mut hint, mut stale) = (Offset(0), false);
        let see = |header: &BatchHeader| {
            hint = hint.max(header.leader.durable_end_hint);
            stale |= header.leader.batch_index >= chain.next_index;
        };
        self.each_header(position..end, chain.partition_uid, see).await?;
        Ok((hint, stale))
    }

    /// What valid headers of a partition in the whole file say, where its header page cannot be read: the greatest
    /// durable end that they speak of, and the greatest end of their own. Headers below `base` are of an earlier use.
    ///
    /// # Errors
    /// The disk's.
    pub async fn testimony(&mut self, uid: PartitionUid, base: Offset) -> Result<(Offset, Offset), DiskError> {
        let (mut hint, mut end) = (Offset(0), Offset(0));
        let see = |header: &BatchHeader| {
            if header.leader.base_offset >= base {
                hint = hint.max(header.leader.durable_end_hint);
                end = end.max(header.end_offset());
            }
        };
        self.each_header(BLOCK_BYTES as u32..self.data_end, uid, see).await?;
        Ok((hint, end))
    }

    /// Shows the valid headers of a partition that lie in `range` and a little behind it, some of them twice.
    async fn each_header(
        &mut self,
        range: Range<u32>,
        uid: PartitionUid,
        mut see: impl FnMut(&BatchHeader),
    ) -> Result<(), DiskError> {
        let mut from = range.start;
        while from < range.end {
            let window = self.window(from, READ_BYTES).await?;
            let window_end = window.base + window.bytes.len() as u32;
            // Most of what lies here is zero: that is told at memory speed.
            if !is_zero(&window.bytes[(from - window.base) as usize..]) {
                window.headers_from(from, uid).for_each(|(_, header)| see(&header));
            }
            if window_end >= range.end {
                break;
            }
            // A header may straddle the end of the window.
            from = (window_end - HEADER_BYTES as u32).max(from + BATCH_ALIGN as u32);
        }
        Ok(())
    }
}
