//! Bytes of one connection become frames; knows no socket, no API and no partition.
//!
//! Small frames are cut out of the buffer that they were received in together. A large one is received into memory of
//! its own, its batch into an aligned block that can be written to disk as it is; its bytes are reserved from the
//! shard's budget before that memory is taken. A connection that says nothing holds no memory here.
//!
//! Sketch, small frames: one buffer a system call, no copy, two counted references a frame. A large frame: at most
//! 4 KiB of it, read ahead, are copied.

use crate::limits::{OWN_FRAME_BYTES, READ_BYTES_MAX, READ_BYTES_MIN};
use coulee_core::block::{Block, BlockMut, BlockPool};
use coulee_core::log::Incoming;
use coulee_core::shard::budget::{Budget, ClientId, Reservation};
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameError, FrameHeader};
use std::rc::Rc;

/// A whole frame.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Its header, checked.
    pub(crate) header: FrameHeader,
    /// Its body.
    pub(crate) body: Block,
    /// What follows the body, up to the frame's end; perhaps nothing.
    pub(crate) batches: Incoming,
    /// What a large one has reserved.
    pub(crate) reservation: Option<Reservation>,
}

/// A large frame that is not complete yet.
#[derive(Debug)]
struct Partial {
    header: FrameHeader,
    body: Vec<u8>,
    body_filled: usize,
    batches: BlockMut,
    reservation: Reservation,
}

impl Partial {
    fn missing(&self) -> usize {
        self.body.len() - self.body_filled + self.header.batches_bytes() - self.batches.len()
    }

    /// Where the next bytes go. Never empty while something is missing.
    fn spare(&mut self) -> &mut [u8] {
        if self.body_filled < self.body.len() {
            return &mut self.body[self.body_filled..];
        }
        let missing = self.header.batches_bytes() - self.batches.len();
        self.batches.spare(missing)
    }

    fn advance(&mut self, bytes: usize) {
        if self.body_filled < self.body.len() {
            self.body_filled += bytes;
        } else {
            self.batches.advance(bytes);
        }
    }

    fn into_frame(self) -> Frame {
        let body = Block::from_owner(Rc::new(self.body));
        let batches = Incoming::Owned(self.batches);
        Frame { header: self.header, body, batches, reservation: Some(self.reservation) }
    }
}

/// What frames are cut with: the shard's memory, and whose frames they are.
#[derive(Debug)]
pub(crate) struct Means<'a> {
    /// Where memory comes from.
    pub(crate) pool: &'a BlockPool,
    /// What limits it.
    pub(crate) budget: &'a mut Budget,
    /// Whose connection it is.
    pub(crate) client: ClientId,
    /// The largest frame that it may send.
    pub(crate) frame_bytes_max: usize,
}

/// The receiving side of one connection.
#[derive(Debug, Default)]
pub(crate) struct Input {
    partial: Option<Box<Partial>>,
    /// Bytes behind the last whole frame: the beginning of a header, or of a frame that waits for the budget.
    rest: Vec<u8>,
    /// What the small frame that has begun in `rest` has reserved.
    reserved: Option<Reservation>,
    paused: bool,
    read_bytes: usize,
    received: u64,
    frames: u64,
    /// Bytes copied since they were last asked for.
    copied: u64,
}

impl Input {
    /// Bytes received so far.
    #[must_use]
    pub(crate) const fn received(&self) -> u64 {
        self.received
    }

    /// Bytes copied from one buffer to another since this was last asked.
    pub(crate) const fn take_copied(&mut self) -> u64 {
        std::mem::replace(&mut self.copied, 0)
    }

    /// Keeps what is left over until the next read.
    fn keep_rest(&mut self, rest: &[u8]) {
        self.copied += rest.len() as u64;
        self.rest = rest.to_vec();
    }

    /// Whole frames so far.
    #[must_use]
    pub(crate) const fn frames(&self) -> u64 {
        self.frames
    }

    /// Whether a frame has begun and is not complete.
    #[must_use]
    pub(crate) fn is_amid_frame(&self) -> bool {
        self.partial.is_some() || !self.rest.is_empty()
    }

    /// Whether a frame waits for the budget: then nothing is to be read.
    #[must_use]
    pub(crate) const fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether a large frame is being received: then reads go to [`Input::large_spare`] first.
    #[must_use]
    pub(crate) const fn is_large(&self) -> bool {
        self.partial.is_some()
    }

    /// A buffer for the next read: what was left over is in it, and there is room behind.
    #[must_use]
    pub(crate) fn buffer(&mut self, pool: &BlockPool) -> BlockMut {
        self.read_bytes = self.read_bytes.clamp(READ_BYTES_MIN, READ_BYTES_MAX);
        let mut buffer = pool.take(self.read_bytes.max(self.rest.len() + FRAME_HEADER_BYTES));
        buffer.extend(&self.rest);
        self.copied += self.rest.len() as u64;
        self.rest = Vec::new();
        buffer
    }

    /// Takes back a buffer that nothing was read into.
    pub(crate) fn keep(&mut self, buffer: &BlockMut) {
        self.keep_rest(buffer.filled());
    }

    /// Whether the large frame ends with its next spare room: then bytes behind belong to the next frame.
    #[must_use]
    pub(crate) fn is_large_spare_last(&self) -> bool {
        let left = |partial: &Partial| partial.body_filled == partial.body.len() || partial.header.batches_bytes() == 0;
        self.partial.as_deref().is_some_and(left)
    }

    /// Where the next bytes of the large frame go.
    pub(crate) fn large_spare(&mut self) -> &mut [u8] {
        self.partial.as_mut().expect("asked for while a large frame is being received").spare()
    }

    /// Notes that `bytes` have come into [`Input::large_spare`]; the frame, if that was all of it.
    pub(crate) fn large_received(&mut self, means: &mut Means<'_>, bytes: usize) -> Option<Frame> {
        self.received += bytes as u64;
        let partial = self.partial.as_mut().expect("noted while a large frame is being received");
        partial.advance(bytes);
        if partial.missing() > 0 {
            return None;
        }
        self.frames += 1;
        let mut frame = self.partial.take()?.into_frame();
        if let Some(reservation) = &mut frame.reservation {
            means.budget.complete(reservation);
        }
        Some(frame)
    }

    /// Cuts frames out of a buffer that `received` bytes have just been read into, behind what was left over.
    ///
    /// # Errors
    /// [`FrameError`] when the next frame cannot be told from what comes: the connection is of no use any more. The
    /// frames before it are in `frames`.
    pub(crate) fn cut(
        &mut self,
        means: &mut Means<'_>,
        buffer: BlockMut,
        received: usize,
        frames: &mut Vec<Frame>,
    ) -> Result<(), FrameError> {
        self.received += received as u64;
        let (filled, room) = (buffer.len(), buffer.capacity());
        self.read_bytes = if filled == room { room * 4 } else { (filled * 2).next_power_of_two() };
        self.cut_block(means, &buffer.freeze(), frames)
    }

    /// Goes on with a frame that waited for the budget.
    ///
    /// # Errors
    /// As [`Input::cut`].
    pub(crate) fn resume(&mut self, means: &mut Means<'_>, frames: &mut Vec<Frame>) -> Result<(), FrameError> {
        let rest = std::mem::take(&mut self.rest);
        let mut buffer = means.pool.take(rest.len());
        buffer.extend(&rest);
        self.copied += rest.len() as u64;
        self.cut_block(means, &buffer.freeze(), frames)
    }

    fn cut_block(&mut self, means: &mut Means<'_>, block: &Block, frames: &mut Vec<Frame>) -> Result<(), FrameError> {
        let mut at = 0;
        self.paused = false;
        self.reserved.take().into_iter().for_each(|reservation| means.budget.release(reservation));
        while let Some(bytes) = block[at..].first_chunk::<FRAME_HEADER_BYTES>() {
            let header = FrameHeader::decode(bytes, means.frame_bytes_max)?;
            let (body_at, end) = (at + FRAME_HEADER_BYTES, at + header.len as usize);
            if end > block.len() {
                return self.begin(means, header, block, at);
            }
            let batches_at = body_at + header.body_len as usize;
            frames.push(Frame {
                header,
                body: block.slice(body_at..batches_at),
                batches: Incoming::Shared(block.slice(batches_at..end)),
                reservation: None,
            });
            self.frames += 1;
            at = end;
        }
        self.keep_rest(&block[at..]);
        Ok(())
    }

    /// Begins a frame that does not end in this buffer: in memory of its own where it is large, else with the next one.
    fn begin(
        &mut self,
        means: &mut Means<'_>,
        header: FrameHeader,
        block: &Block,
        at: usize,
    ) -> Result<(), FrameError> {
        let have = &block[at + FRAME_HEADER_BYTES..];
        let (len, body_len) = (header.len as usize, header.body_len as usize);
        let Some(reservation) = means.budget.reserve(means.client, len) else {
            self.keep_rest(&block[at..]);
            self.paused = true;
            return Ok(());
        };
        if len < OWN_FRAME_BYTES {
            // The next buffer is made to hold it whole.
            self.keep_rest(&block[at..]);
            self.read_bytes = self.read_bytes.max(len.next_power_of_two());
            self.reserved = Some(reservation);
            return Ok(());
        }
        // Little is read ahead of the next one, so that little of it has to be copied.
        self.read_bytes = READ_BYTES_MIN;
        let (body, batches) = have.split_at(have.len().min(body_len));
        let mut partial = Partial {
            header,
            body: vec![0; body_len],
            body_filled: body.len(),
            batches: means.pool.take(header.batches_bytes().max(1)),
            reservation,
        };
        partial.body[..body.len()].copy_from_slice(body);
        partial.batches.extend(batches);
        self.copied += have.len() as u64;
        self.partial = Some(Box::new(partial));
        Ok(())
    }

    /// Gives back what an incomplete frame has reserved, when the connection ends.
    pub(crate) fn abandon(&mut self, budget: &mut Budget) {
        let partial = self.partial.take().map(|partial| partial.reservation);
        partial.into_iter().chain(self.reserved.take()).for_each(|reservation| budget.release(reservation));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coulee_core::executor::Random;
    use coulee_core::shard::budget::BUDGET_BYTES_MIN;
    use coulee_protocol::limits::FRAME_BYTES_MAX;

    fn frame(correlation: u32, body: usize, batches: usize) -> Vec<u8> {
        let header = FrameHeader::request(2, 1, correlation, body, batches);
        let mut bytes = header.encode().to_vec();
        bytes.extend((0..body + batches).map(|at| (at as u32 ^ correlation) as u8));
        bytes
    }

    /// Feeds `stream` in pieces whose sizes `random` chooses, as a socket would.
    fn feed(stream: &[u8], random: &mut Random, budget: &mut Budget) -> (Vec<Frame>, Result<(), FrameError>) {
        let pool = BlockPool::new(1 << 20);
        let (mut input, mut frames, mut at) = (Input::default(), Vec::new(), 0);
        while at < stream.len() {
            let mut means = Means { pool: &pool, budget, client: ClientId(1), frame_bytes_max: FRAME_BYTES_MAX };
            let come = 1 + random.below(9_000).min(random.below(200_000)) as usize;
            let left = &stream[at..];
            if input.is_large() {
                let spare = input.large_spare();
                let count = come.min(left.len()).min(spare.len());
                spare[..count].copy_from_slice(&left[..count]);
                at += count;
                frames.extend(input.large_received(&mut means, count));
                continue;
            }
            let mut buffer = input.buffer(&pool);
            let count = come.min(left.len()).min(buffer.capacity() - buffer.len());
            buffer.extend(&left[..count]);
            at += count;
            if let Err(error) = input.cut(&mut means, buffer, count, &mut frames) {
                return (frames, Err(error));
            }
        }
        assert!(!input.is_amid_frame());
        (frames, Ok(()))
    }

    #[test]
    fn frames_come_out_whole_and_in_order_however_their_bytes_come() {
        for seed in 0..40 {
            let (mut random, mut budget) = (Random::new(seed), Budget::new(BUDGET_BYTES_MIN));
            let sizes: Vec<(usize, usize)> = (0..60)
                .map(|_| match random.below(8) {
                    0 => (14, 60_000 + random.below(300_000) as usize),
                    1 => (40_000, 0),
                    _ => (random.below(200) as usize, random.below(4_000) as usize),
                })
                .collect();
            let stream: Vec<u8> = (0..).zip(&sizes).flat_map(|(number, (a, b))| frame(number, *a, *b)).collect();
            let (frames, ended) = feed(&stream, &mut random, &mut budget);
            assert_eq!((frames.len(), ended), (sizes.len(), Ok(())), "seed {seed}");
            for (number, (got, (body, batches))) in (0..).zip(frames.into_iter().zip(&sizes)) {
                let whole = [&got.header.encode(), &*got.body, got.batches.bytes()].concat();
                assert_eq!(whole, frame(number, *body, *batches), "seed {seed}, frame {number}");
                if let Some(reservation) = got.reservation {
                    budget.release(reservation);
                }
            }
            assert_eq!(budget.reserved(), 0, "seed {seed}");
        }
    }

    #[test]
    fn frames_before_a_broken_one_still_count() {
        let (mut random, mut budget) = (Random::new(1), Budget::new(BUDGET_BYTES_MIN));
        let mut stream = [frame(0, 14, 100), frame(1, 14, 100)].concat();
        stream.extend([0xff; 24]);
        let (frames, ended) = feed(&stream, &mut random, &mut budget);
        assert_eq!(frames.len(), 2);
        assert_eq!(ended.unwrap_err().code(), coulee_protocol::error::ErrorCode::FrameTooLarge);
    }

    #[test]
    fn a_large_frame_waits_while_the_budget_is_used_up_and_goes_on_when_it_is_not() {
        let pool = BlockPool::new(0);
        let mut budget = Budget::new(BUDGET_BYTES_MIN);
        let mut held = Vec::new();
        while let Some(reservation) = budget.reserve(ClientId(held.len() as u64 + 7), 8 << 20) {
            held.push(reservation);
        }
        let (mut input, mut frames) = (Input::default(), Vec::new());
        let bytes = frame(1, 14, 8 << 20);
        let mut means =
            Means { pool: &pool, budget: &mut budget, client: ClientId(1), frame_bytes_max: FRAME_BYTES_MAX };
        let mut buffer = input.buffer(&pool);
        buffer.extend(&bytes[..100]);
        input.cut(&mut means, buffer, 100, &mut frames).unwrap();
        assert!(input.is_paused() && !input.is_large());
        input.resume(&mut means, &mut frames).unwrap();
        assert!(input.is_paused(), "nothing was released");
        held.into_iter().for_each(|reservation| means.budget.release(reservation));
        input.resume(&mut means, &mut frames).unwrap();
        assert!(input.is_large() && !input.is_paused());
        input.abandon(&mut budget);
        assert_eq!(budget.reserved(), 0);
    }
}
