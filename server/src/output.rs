//! Answers of one connection on their way to its socket; knows no request and decides nothing.
//!
//! Small answers are gathered in one buffer, record batches are sent from the blocks that hold them. Sketch: one
//! system call for up to 64 slices, one copy of each answer's header and body, none of a batch.

use crate::limits::{OUTPUT_SLICES_MAX, SPARE_BUFFER_BYTES_MAX, SPARE_BUFFERS_MAX};
use coulee_core::block::Block;
use coulee_protocol::api::error_body::ErrorBody;
use coulee_protocol::api::{Body, encode};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader};
use std::collections::VecDeque;
use std::io::IoSlice;

/// A piece of the byte stream.
#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    Block(Block),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Block(block) => block,
        }
    }
}

/// Buffers that are empty and may be used again. One for each shard.
#[derive(Debug, Default)]
pub(crate) struct Spare(Vec<Vec<u8>>);

impl Spare {
    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_default()
    }

    fn give_back(&mut self, mut bytes: Vec<u8>) {
        if self.0.len() < SPARE_BUFFERS_MAX && bytes.capacity() <= SPARE_BUFFER_BYTES_MAX {
            bytes.clear();
            self.0.push(bytes);
        }
    }
}

/// What waits for one socket.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are sent.
    first_sent: usize,
    bytes: usize,
    sent: u64,
}

impl Output {
    /// Bytes that wait.
    #[must_use]
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    #[must_use]
    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Bytes sent so far.
    #[must_use]
    pub(crate) const fn sent(&self) -> u64 {
        self.sent
    }

    /// Adds the answer to `request`: `body`, then `batches`.
    pub(crate) fn answer<T: Body>(&mut self, spare: &mut Spare, request: &FrameHeader, body: &T, batches: Vec<Block>) {
        self.frame(spare, request, ErrorCode::None, body, batches);
    }

    /// Adds an error as the answer to `request`.
    pub(crate) fn refuse(&mut self, spare: &mut Spare, request: &FrameHeader, code: ErrorCode, detail: &str) {
        self.frame(spare, request, code, &ErrorBody::new(code, detail), Vec::new());
    }

    /// Adds an answer whose body is coded by hand.
    pub(crate) fn answer_bytes(&mut self, spare: &mut Spare, request: &FrameHeader, body: &[u8]) {
        let header = FrameHeader::response(request, ErrorCode::None, body.len(), 0).encode();
        let out = self.open(spare);
        out.extend_from_slice(&header);
        out.extend_from_slice(body);
        self.bytes += header.len() + body.len();
    }

    fn frame<T: Body>(
        &mut self,
        spare: &mut Spare,
        request: &FrameHeader,
        code: ErrorCode,
        body: &T,
        batches: Vec<Block>,
    ) {
        let batches_bytes = batches.iter().map(|block| block.len()).sum();
        let out = self.open(spare);
        let start = out.len();
        out.resize(start + FRAME_HEADER_BYTES, 0);
        let body_bytes = encode(body, out);
        let header = FrameHeader::response(request, code, body_bytes, batches_bytes);
        out[start..start + FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        self.bytes += FRAME_HEADER_BYTES + body_bytes + batches_bytes;
        self.pieces.extend(batches.into_iter().map(Piece::Block));
    }

    /// The buffer at the end, to be appended to.
    fn open(&mut self, spare: &mut Spare) -> &mut Vec<u8> {
        if !matches!(self.pieces.back(), Some(Piece::Bytes(_))) {
            self.pieces.push_back(Piece::Bytes(spare.take()));
        }
        match self.pieces.back_mut() {
            Some(Piece::Bytes(bytes)) => bytes,
            _ => unreachable!("a buffer was just put there"),
        }
    }

    /// The first slices that wait, for one system call.
    #[must_use]
    pub(crate) fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut skip = self.first_sent;
        let pieces = self.pieces.iter().take(OUTPUT_SLICES_MAX);
        pieces.map(|piece| IoSlice::new(&piece.bytes()[std::mem::take(&mut skip)..])).collect()
    }

    /// Notes that `count` bytes are sent.
    pub(crate) fn advance(&mut self, spare: &mut Spare, count: usize) {
        assert!(count <= self.bytes, "no more is sent than there was");
        self.bytes -= count;
        self.sent += count as u64;
        self.first_sent += count;
        while let Some(first) = self.pieces.front() {
            let len = first.bytes().len();
            if self.first_sent < len {
                return;
            }
            self.first_sent -= len;
            if let Some(Piece::Bytes(bytes)) = self.pieces.pop_front() {
                spare.give_back(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coulee_protocol::api::{list_offsets, produce};
    use coulee_protocol::frame::split;
    use std::rc::Rc;

    #[test]
    fn what_is_sent_in_any_pieces_is_the_answers_in_their_order() {
        for step in [1, 7, 24, 1_000] {
            let (mut output, mut spare, mut sent) = (Output::default(), Spare::default(), Vec::new());
            for correlation in 0..5 {
                let request = FrameHeader::request(3, 1, correlation, 0, 0);
                let batch = Block::from_owner(Rc::new(vec![correlation as u8; 10]));
                let body = list_offsets::v1::Response::default();
                output.answer(&mut spare, &request, &body, vec![batch; correlation as usize]);
                output.refuse(&mut spare, &request, ErrorCode::Overloaded, "later");
            }
            while !output.is_empty() {
                let slices = output.slices();
                let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(step).collect();
                output.advance(&mut spare, bytes.len());
                sent.extend(bytes);
            }
            let mut left = sent.as_slice();
            for correlation in 0..5 {
                let mut next = || {
                    let len = u32::from_le_bytes(left[..4].try_into().unwrap()) as usize;
                    let (frame, rest) = left.split_at(len);
                    left = rest;
                    split(frame).unwrap()
                };
                let (header, _, batches) = next();
                assert_eq!((header.correlation, header.error), (correlation, 0));
                assert_eq!(batches, vec![correlation as u8; 10 * correlation as usize]);
                assert_eq!(next().0.error, ErrorCode::Overloaded.code());
            }
            assert_eq!(left, []);
        }
    }

    #[test]
    fn many_small_answers_share_one_buffer() {
        let (mut output, mut spare) = (Output::default(), Spare::default());
        for correlation in 0..100 {
            let request = FrameHeader::request(2, 1, correlation, 0, 0);
            output.answer(&mut spare, &request, &produce::v1::Response::default(), Vec::new());
        }
        assert_eq!(output.slices().len(), 1);
        assert_eq!(output.bytes(), 100 * (24 + 28));
    }
}
