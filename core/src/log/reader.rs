//! Reads whole batches for a fetch from a segment file, checked on the way; knows nothing of who asked or may see them.
//!
//! Sketch: one read (or a resident mapping) a MiB, the header and the payload CRC once a batch, no copy: the slices of
//! the answer are slices of what was read.

use super::scan::{BadFrame, Chain};
use super::source::{Found, Source};
use crate::block::Block;
use crate::disk::{Disk, DiskError, FileName};
use crate::limits::BULK_READ_BYTES;
use coulee_protocol::batch::{BatchHeader, HEADER_BYTES};
use coulee_protocol::columns::{Columns, Scratch};
use coulee_protocol::ids::{Offset, Timestamp};
use std::rc::Rc;

/// Where in a segment a read starts and where it must end. Holds the segment's file against recycling.
#[derive(Debug)]
pub struct ReadJob<D: Disk> {
    pub(super) disk: D,
    pub(super) name: FileName,
    /// Base offset of the segment.
    pub(super) base: Offset,
    pub(super) file: Option<D::File>,
    pub(super) mapped: bool,
    pub(super) data_end: u32,
    /// Position of the first batch looked at, and what it has to be.
    pub(super) position: u32,
    pub(super) chain: Chain,
    /// Nothing at or above this offset is looked at.
    pub(super) end: Offset,
    /// Offset where the next segment starts, or `end` for the last one.
    pub(super) segment_end: Offset,
    pub(super) lease: Rc<()>,
}

/// Why a range cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The disk failed: this read only.
    Disk(DiskError),
    /// Stored bytes are not what was written: offsets from `from` up to `to` cannot be served.
    Damaged {
        /// First offset that is lost.
        from: Offset,
        /// First offset behind the loss.
        to: Offset,
        /// What was found.
        found: BadFrame,
    },
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disk(error) => error.fmt(formatter),
            Self::Damaged { from, to, found } => write!(formatter, "offsets {from} to {to} are damaged: {found}"),
        }
    }
}

impl std::error::Error for ReadError {}

/// What a read brings.
#[derive(Clone, Debug)]
pub struct Batches<F> {
    /// Whole batches, without padding, in order.
    pub slices: Vec<Block>,
    /// The offset after the last of them.
    pub next: Offset,
    /// Bytes read from the file.
    pub bytes_read: u64,
    /// Base offset of the segment and its file, for the next read of it.
    pub file: (Offset, F),
}

/// The first record at or after a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOffset {
    /// Base offset of the batch that holds it.
    pub offset: Offset,
    /// Greatest timestamp of that batch.
    pub timestamp: Timestamp,
}

impl<D: Disk> ReadJob<D> {
    /// A walk over the segment's file, and the file.
    async fn open(&mut self) -> Result<(Source<D::File>, D::File), DiskError> {
        let file = match self.file.take() {
            Some(file) => file,
            None => self.disk.open(self.name).await?,
        };
        let mapped = self.mapped.then(|| Rc::clone(&self.lease));
        Ok((Source::new(file.clone(), self.data_end, mapped), file))
    }

    /// Reads whole batches from the one that holds `offset`: at most `bytes_max` bytes of them, but at least one.
    ///
    /// # Errors
    /// [`ReadError`] when not even the first can be served.
    pub async fn read(mut self, offset: Offset, bytes_max: usize) -> Result<Batches<D::File>, ReadError> {
        let (source, file) = self.open().await.map_err(ReadError::Disk)?;
        let mut source = if bytes_max >= BULK_READ_BYTES { source.with_read_ahead() } else { source };
        let mut batches = Batches { slices: Vec::new(), next: offset, bytes_read: 0, file: (self.base, file) };
        let mut bytes = 0;
        while self.chain.next_offset < self.end {
            match source.step(self.position, &self.chain).await {
                Ok(Found::Batch(start, header, slice)) => {
                    self.position = super::segment::padded_end(start, header.batch_len());
                    self.chain = Chain::behind(&header);
                    if header.end_offset() <= offset {
                        continue;
                    }
                    let full = !batches.slices.is_empty() && bytes + slice.len() > bytes_max;
                    if full || header.end_offset() > self.end {
                        break;
                    }
                    bytes += slice.len();
                    batches.slices.push(slice);
                    batches.next = header.end_offset();
                }
                Ok(Found::Bad(found)) => {
                    if batches.slices.is_empty()
                        && let Some(error) = self.damage(&mut source, offset, found).await?
                    {
                        return Err(error);
                    }
                    if !batches.slices.is_empty() {
                        break;
                    }
                }
                Err(error) if batches.slices.is_empty() => return Err(ReadError::Disk(error)),
                Err(_) => break,
            }
        }
        drop(self.lease);
        batches.bytes_read = source.bytes_read();
        Ok(batches)
    }

    /// Steps over a bad frame: an error where `offset` lies in what is lost, else the walk goes on behind it.
    async fn damage(
        &mut self,
        source: &mut Source<D::File>,
        offset: Offset,
        found: BadFrame,
    ) -> Result<Option<ReadError>, ReadError> {
        let from = self.chain.next_offset;
        let behind = source.resync(self.position, &self.chain, self.end).await.map_err(ReadError::Disk)?;
        let to = behind.map_or(self.segment_end, |(_, header)| header.leader.base_offset);
        match behind {
            Some((position, header)) if to <= offset => {
                self.position = position;
                let prev_header_crc = Some(header.leader.prev_header_crc);
                let next_index = header.leader.batch_index;
                self.chain = Chain { next_offset: to, next_index, prev_header_crc, ..self.chain };
                Ok(None)
            }
            _ => Ok(Some(ReadError::Damaged { from, to, found })),
        }
    }

    /// The first batch whose greatest timestamp is at or after `timestamp`; `None` where there is none below the end.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn find_time(mut self, timestamp: Timestamp) -> Result<Option<TimedOffset>, ReadError> {
        let (mut source, _) = self.open().await.map_err(ReadError::Disk)?;
        while self.chain.next_offset < self.end {
            match source.step(self.position, &self.chain).await.map_err(ReadError::Disk)? {
                Found::Batch(start, header, batch) => {
                    if header.max_timestamp >= timestamp {
                        return Ok(Some(first_at_or_after(&header, &batch, timestamp)));
                    }
                    self.position = super::segment::padded_end(start, header.batch_len());
                    self.chain = Chain::behind(&header);
                }
                Found::Bad(found) => {
                    let from = self.chain.next_offset;
                    return Err(ReadError::Damaged { from, to: self.segment_end, found });
                }
            }
        }
        Ok(None)
    }
}

/// The first record of a batch at or after `timestamp`; the batch as a whole where its records cannot be told apart.
fn first_at_or_after(header: &BatchHeader, batch: &[u8], timestamp: Timestamp) -> TimedOffset {
    let mut scratch = Scratch::default();
    let columns = Columns::open(&batch[HEADER_BYTES..], header, &mut scratch).ok();
    let found = columns.and_then(|columns| columns.records().find(|record| record.timestamp >= timestamp));
    let whole = TimedOffset { offset: header.leader.base_offset, timestamp: header.max_timestamp };
    found.map_or(whole, |record| TimedOffset { offset: record.offset, timestamp: record.timestamp })
}
