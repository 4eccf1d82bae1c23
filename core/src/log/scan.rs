//! Walks the batches of a segment's bytes and says where a chain of valid ones ends and why; knows no file.
//!
//! Recovery, readers and `verify` share it, so that all three agree on what is valid. Cost: the header once, the
//! payload once (CRC-32), gaps once.

use super::segment::{is_large, padded_end};
use crate::block::is_zero;
use crate::limits::{BATCH_ALIGN, BLOCK_BYTES};
use coulee_protocol::batch::{BatchHeader, HEADER_BYTES, HeaderError, check_payload_crc};
use coulee_protocol::ids::{BatchIndex, LeaderEpoch, Offset, PartitionUid};
use std::fmt;

/// What the next batch of a chain has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The partition.
    pub partition_uid: PartitionUid,
    /// Its base offset.
    pub next_offset: Offset,
    /// Its index.
    pub next_index: BatchIndex,
    /// `header_crc` of the batch before it, where that is known.
    pub prev_header_crc: Option<u32>,
    /// Its epoch is at least this.
    pub epoch: LeaderEpoch,
}

impl Chain {
    /// The chain behind `header`.
    #[must_use]
    pub fn behind(header: &BatchHeader) -> Self {
        Self {
            partition_uid: header.leader.partition_uid,
            next_offset: header.end_offset(),
            next_index: header.leader.batch_index.next(),
            prev_header_crc: Some(header.header_crc),
            epoch: header.leader.leader_epoch,
        }
    }

    /// Whether `header` is the next of this chain.
    fn check(&self, header: &BatchHeader) -> Result<(), BadFrame> {
        let leader = &header.leader;
        if cfg!(coulee_mutation = "reuse_stale_segment") && leader.base_offset == self.next_offset {
            return Ok(());
        }
        if leader.partition_uid != self.partition_uid {
            return Err(BadFrame::OtherPartition { found: leader.partition_uid });
        }
        let next = leader.base_offset == self.next_offset && leader.batch_index == self.next_index;
        let epoch = leader.leader_epoch >= self.epoch && leader.leader_epoch.0 != 0;
        let linked = self.prev_header_crc.is_none_or(|crc| crc == leader.prev_header_crc);
        if next && epoch && linked {
            Ok(())
        } else {
            Err(BadFrame::Chain { expected: self.next_offset, found: leader.base_offset })
        }
    }
}

/// Why the bytes at a position are not the next batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadFrame {
    /// There is no batch header.
    Header(HeaderError),
    /// The batch does not end within the segment's data.
    BeyondEnd,
    /// A batch of another partition: a misdirected write or a recycled file.
    OtherPartition {
        /// Its partition.
        found: PartitionUid,
    },
    /// A batch that does not follow the one before: a hole, a fork or a stale sector.
    Chain {
        /// Offset that had to come.
        expected: Offset,
        /// Offset that came.
        found: Offset,
    },
    /// The payload does not fit its CRC.
    Payload,
    /// Padding or a gap holds other bytes than zeros.
    Gap,
}

impl fmt::Display for BadFrame {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(error) => error.fmt(formatter),
            Self::BeyondEnd => write!(formatter, "batch does not end within the segment"),
            Self::OtherPartition { found } => write!(formatter, "batch belongs to partition uid {found}"),
            Self::Chain { expected, found } => write!(formatter, "offset {found} does not follow, expected {expected}"),
            Self::Payload => write!(formatter, "payload crc does not fit"),
            Self::Gap => write!(formatter, "gap between batches is not zero"),
        }
    }
}

/// What lies at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next batch of the chain.
    Batch {
        /// Where it starts.
        start: u32,
        /// Its header.
        header: BatchHeader,
    },
    /// The window ends before this can be told: read on to `need` bytes behind the position.
    Need {
        /// Bytes wanted from the position on.
        need: usize,
    },
    /// Not the next batch.
    Bad(BadFrame),
}

/// Bytes of a segment from `base` on.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// Position of the first in the file.
    pub base: u32,
    /// Where the segment's batches must have ended.
    pub data_end: u32,
}

impl Window<'_> {
    /// The bytes from `position` to `end`, or how many are needed.
    fn get(&self, position: u32, end: u32) -> Result<&[u8], Step> {
        assert!(position >= self.base, "a scan never goes back");
        let (from, to) = ((position - self.base) as usize, (end - self.base) as usize);
        self.bytes.get(from..to).ok_or(Step::Need { need: to - from })
    }

    /// What lies at `position`, where the batch before ended with its padding.
    #[must_use]
    pub fn step(&self, position: u32, chain: &Chain) -> Step {
        match self.batch_at(position, chain) {
            Step::Bad(bad) if !position.is_multiple_of(BLOCK_BYTES as u32) => {
                self.batch_behind_gap(position, chain, bad)
            }
            step => step,
        }
    }

    /// A large batch starts on the next block: what is between must be zero.
    fn batch_behind_gap(&self, position: u32, chain: &Chain, bad: BadFrame) -> Step {
        let next_block = position.next_multiple_of(BLOCK_BYTES as u32);
        let gap = match self.get(position, next_block.min(self.data_end)) {
            Ok(gap) => gap,
            Err(need) => return need,
        };
        let zero = is_zero(gap);
        match self.batch_at(next_block, chain) {
            Step::Batch { start, header } if is_large(header.batch_len()) => {
                if zero {
                    Step::Batch { start, header }
                } else {
                    Step::Bad(BadFrame::Gap)
                }
            }
            Step::Need { need } => Step::Need { need: need + (next_block - position) as usize },
            _ => Step::Bad(bad),
        }
    }

    fn batch_at(&self, start: u32, chain: &Chain) -> Step {
        let Some(header_end) = start.checked_add(HEADER_BYTES as u32).filter(|end| *end <= self.data_end) else {
            return Step::Bad(BadFrame::BeyondEnd);
        };
        let bytes = match self.get(start, header_end) {
            Ok(bytes) => bytes,
            Err(need) => return need,
        };
        let header = match BatchHeader::decode(bytes) {
            Ok(header) => header,
            Err(error) => return Step::Bad(BadFrame::Header(error)),
        };
        if let Err(bad) = chain.check(&header) {
            return Step::Bad(bad);
        }
        let len = header.batch_len();
        if start as usize + len > self.data_end as usize {
            return Step::Bad(BadFrame::BeyondEnd);
        }
        if is_large(len) && !start.is_multiple_of(BLOCK_BYTES as u32) {
            return Step::Bad(BadFrame::Gap);
        }
        let end = padded_end(start, len);
        let whole = match self.get(start, end) {
            Ok(whole) => whole,
            Err(need) => return need,
        };
        if check_payload_crc(&header, &whole[HEADER_BYTES..len]).is_err() {
            return Step::Bad(BadFrame::Payload);
        }
        if !is_zero(&whole[len..]) {
            return Step::Bad(BadFrame::Gap);
        }
        Step::Batch { start, header }
    }

    /// Every valid header of `partition_uid` from `position` on, at any place where a batch may start, chained or not.
    /// What it says of durability was true when it was written.
    pub fn headers_from(&self, position: u32, partition_uid: PartitionUid) -> impl Iterator<Item = (u32, BatchHeader)> {
        let first = position.next_multiple_of(BATCH_ALIGN as u32);
        (first..self.data_end).step_by(BATCH_ALIGN).filter_map(move |start| {
            let bytes = self.get(start, start + HEADER_BYTES as u32).ok()?;
            // Most places hold payload or zeros: the magic decides before any CRC is computed.
            let header = BatchHeader::decode(bytes).ok()?;
            (header.leader.partition_uid == partition_uid && header.leader.leader_epoch.0 != 0)
                .then_some((start, header))
        })
    }
}
