//! Bytes on their way out: owns their order and how many have left; knows no socket and no request.
//!
//! Small frames are copied together, so that thousands of them need a few system calls; a large batch goes out from
//! where it was built. Every frame has an end in the stream of bytes: once that many have left, it has left in whole.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use crate::limits::{COALESCED_BYTES, GATHERED_BYTES};

/// What waits to be written.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pieces: VecDeque<Bytes>,
    gathered: BytesMut,
    queued_end: u64,
    sent_end: u64,
}

impl Outbox {
    /// Takes a frame and says where in the stream it ends.
    pub(crate) fn push(&mut self, head: &[u8], batch: Bytes) -> u64 {
        self.queued_end += (head.len() + batch.len()) as u64;
        self.gathered.extend_from_slice(head);
        if head.len() + batch.len() <= COALESCED_BYTES {
            self.gathered.extend_from_slice(&batch);
            if self.gathered.len() >= GATHERED_BYTES {
                self.close_gathered();
            }
        } else {
            self.close_gathered();
            if !batch.is_empty() {
                self.pieces.push_back(batch);
            }
        }
        self.queued_end
    }

    /// Whether everything has left.
    pub(crate) fn is_empty(&self) -> bool {
        self.queued_end == self.sent_end
    }

    /// How many bytes have left since the beginning.
    pub(crate) fn sent_end(&self) -> u64 {
        self.sent_end
    }

    /// Fills `slices` with what is next and says how many it took.
    pub(crate) fn fill<'a>(&'a mut self, slices: &mut [IoSlice<'a>]) -> usize {
        if self.pieces.len() < slices.len() {
            self.close_gathered();
        }
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    /// Notes that `count` bytes have left.
    pub(crate) fn advance(&mut self, mut count: usize) {
        self.sent_end += count as u64;
        assert!(self.sent_end <= self.queued_end, "{} bytes have left of {}", self.sent_end, self.queued_end);
        while count > 0 {
            let piece = self.pieces.front_mut().expect("what leaves was a piece");
            let of_piece = count.min(piece.len());
            piece.advance(of_piece);
            count -= of_piece;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
    }

    fn close_gathered(&mut self) {
        if !self.gathered.is_empty() {
            self.pieces.push_back(self.gathered.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::WRITE_SLICES;

    /// Takes everything out, `size` bytes at a time.
    fn drain(outbox: &mut Outbox, size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
            let filled = outbox.fill(&mut slices);
            let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.iter().copied()).take(size).collect();
            outbox.advance(bytes.len());
            out.extend(bytes);
        }
        out
    }

    #[test]
    fn bytes_leave_in_order_whatever_is_taken_at_a_time() {
        for size in [1, 2, 7, 4_096, 1 << 20] {
            let mut outbox = Outbox::default();
            let mut expected = Vec::new();
            for index in 0..6_u8 {
                let batch = vec![index; if index % 2 == 0 { 10 } else { COALESCED_BYTES * 2 }];
                expected.extend([&[100 + index; 3][..], &batch].concat());
                assert_eq!(outbox.push(&[100 + index; 3], Bytes::from(batch)), expected.len() as u64);
            }
            assert_eq!(drain(&mut outbox, size), expected, "{size} at a time");
            assert_eq!(outbox.sent_end(), expected.len() as u64);
        }
    }

    #[test]
    fn a_large_batch_is_not_copied() {
        let mut outbox = Outbox::default();
        let batch = Bytes::from(vec![1; COALESCED_BYTES + 1]);
        outbox.push(b"head", batch.clone());
        let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
        assert_eq!(outbox.fill(&mut slices), 2);
        assert_eq!(slices[1].as_ptr(), batch.as_ptr());
    }

    #[test]
    fn a_thousand_small_frames_are_one_piece() {
        let mut outbox = Outbox::default();
        for _ in 0..1_000 {
            outbox.push(&[0; 38], Bytes::from_static(&[1; 100]));
        }
        let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
        assert_eq!(outbox.fill(&mut slices), 1);
    }
}
