//! One producer: its connection, what it has in flight, and what the acks have to say; knows no clock.
//!
//! A request's correlation is the place where it is remembered, so that an ack is found without a search. Sketch, for a
//! small request: one copy of its frame into the buffer of the next system call, nothing allocated. A large batch goes
//! from its template to the socket without a copy.

use crate::fault::Fault;
use crate::tally::Tally;
use crate::templates::Templates;
use crate::wire::{Frame, SMALL_ROOM, Wire, refusal};
use coulee_protocol::api::{ApiKey, access, encode, produce};
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader};
use coulee_protocol::ids::ShardId;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;

/// Bytes of a produce request's body.
const BODY_BYTES: usize = 14;
/// What goes before a batch.
const PREFIX_BYTES: usize = FRAME_HEADER_BYTES + BODY_BYTES;
/// Batches from this size on are sent from where they lie.
const LARGE_BATCH_BYTES: usize = 8 << 10;
/// Slices in one system call.
const SLICES_MAX: usize = 32;
/// Small requests are gathered up to here before the socket is asked to take them.
const GATHERED_BYTES_MAX: usize = 512 << 10;

/// What is fetched back needs to know when it was sent.
pub(crate) type Sent = Vec<u64>;

/// A partition that this lane writes.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) uid: u64,
    /// Nobody else writes it: then each offset is known beforehand.
    pub(crate) is_own: bool,
    body: [u8; BODY_BYTES],
    sent: u64,
    acked: u64,
    /// The offset behind the last acknowledged batch.
    end: u64,
    /// The intended times of all its requests, where somebody wants them.
    pub(crate) times: Option<Sent>,
}

impl Target {
    pub(crate) fn new(uid: u64, is_own: bool, keeps_times: bool) -> Self {
        let mut bytes = Vec::new();
        let request =
            produce::v1::Request { partition_uid: uid, acks: produce::v1::ACKS_DURABLE, flags: 0, timeout_ms: 0 };
        encode(&request, &mut bytes);
        let body = bytes.try_into().expect("the layout of a published request is frozen");
        Self { uid, is_own, body, sent: 0, acked: 0, end: 0, times: keeps_times.then(Vec::new) }
    }

    /// Batches that were acknowledged.
    pub(crate) const fn acked(&self) -> u64 {
        self.acked
    }

    fn mistaken(&self, what: &'static str, expected: u64, found: u64) -> Fault {
        Fault::Record { partition: self.uid, what, expected, found }
    }

    /// Batch number `number` lies at `base`: that is where it has to be.
    fn acknowledge(&mut self, number: u64, base: u64, records: u64) -> Result<(), Fault> {
        if number != self.acked {
            return Err(self.mistaken("the batch that is acknowledged next", self.acked, number));
        }
        if self.is_own && base != self.end {
            return Err(self.mistaken("the offset of an acknowledged batch", self.end, base));
        }
        if base < self.end {
            return Err(self.mistaken("the least offset of an acknowledged batch", self.end, base));
        }
        self.acked += 1;
        self.end = base + records;
        Ok(())
    }
}

/// A request in flight.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    intended_ns: u64,
    target: u32,
    number: u64,
}

/// A large request that the socket has not taken whole.
#[derive(Debug)]
struct Large {
    prefix: [u8; PREFIX_BYTES],
    number: u64,
}

/// One producing connection.
#[derive(Debug)]
pub(crate) struct Lane {
    wire: Wire,
    pub(crate) targets: Vec<Target>,
    next_target: usize,
    slots: Vec<Slot>,
    free: Vec<u32>,
    is_large: bool,
    small: Vec<u8>,
    large: VecDeque<Large>,
    /// Bytes of `small`, or of the first of `large`, that are sent.
    sent: usize,
    writable: bool,
}

impl Lane {
    /// Connects to the shard that owns the lane's partitions; to a bare server without Hello.
    pub(crate) fn connect(
        address: SocketAddr,
        shard: Option<ShardId>,
        targets: Vec<Target>,
        in_flight: u32,
        batch_bytes: usize,
    ) -> Result<Self, Fault> {
        Ok(Self {
            wire: Wire::connect(address, shard, SMALL_ROOM)?,
            targets,
            next_target: 0,
            slots: vec![Slot::default(); in_flight as usize],
            free: (0..in_flight).rev().collect(),
            is_large: batch_bytes >= LARGE_BATCH_BYTES,
            small: Vec::new(),
            large: VecDeque::new(),
            sent: 0,
            writable: true,
        })
    }

    pub(crate) const fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Whether one more request may be in flight.
    pub(crate) const fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Requests that are not acknowledged.
    pub(crate) const fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts the next request on its way; it was meant to go at `intended_ns`. Not without room.
    pub(crate) fn request(&mut self, templates: &Templates, intended_ns: u64) {
        let correlation = self.free.pop().expect("the caller has asked for room");
        let at = self.next_target;
        self.next_target = if at + 1 == self.targets.len() { 0 } else { at + 1 };
        let target = &mut self.targets[at];
        let number = target.sent;
        target.sent += 1;
        if let Some(times) = &mut target.times {
            times.push(intended_ns);
        }
        self.slots[correlation as usize] = Slot { intended_ns, target: at as u32, number };
        let batch = templates.batch(number);
        let header = FrameHeader::request(ApiKey::Produce.code(), 1, correlation, BODY_BYTES, batch.len());
        if self.is_large {
            let mut prefix = [0; PREFIX_BYTES];
            prefix[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
            prefix[FRAME_HEADER_BYTES..].copy_from_slice(&target.body);
            self.large.push_back(Large { prefix, number });
        } else {
            self.small.extend_from_slice(&header.encode());
            self.small.extend_from_slice(&target.body);
            self.small.extend_from_slice(batch);
        }
    }

    /// Whether so much waits for the socket that more would only lie about.
    pub(crate) const fn is_gathered(&self) -> bool {
        self.small.len() >= GATHERED_BYTES_MAX
    }

    /// The socket takes bytes again.
    pub(crate) const fn set_writable(&mut self) {
        self.writable = true;
    }

    /// Gives the socket what waits.
    pub(crate) fn flush(&mut self, templates: &Templates) -> Result<(), Fault> {
        while self.writable && !self.small.is_empty() {
            let count = self.wire.send(&[IoSlice::new(&self.small[self.sent..])])?;
            self.writable = count > 0;
            self.sent += count;
            if self.sent == self.small.len() {
                self.small.clear();
                self.sent = 0;
            }
        }
        while self.writable && !self.large.is_empty() {
            let mut slices = Vec::with_capacity(SLICES_MAX);
            let mut skip = self.sent;
            for Large { prefix, number } in self.large.iter().take(SLICES_MAX / 2) {
                for part in [&prefix[..], templates.batch(*number)] {
                    let rest = &part[skip.min(part.len())..];
                    skip = skip.saturating_sub(part.len());
                    slices.push(IoSlice::new(rest));
                }
            }
            let count = self.wire.send(&slices)?;
            self.writable = count > 0;
            self.sent += count;
            let whole = PREFIX_BYTES + templates.batch_bytes();
            while self.sent >= whole {
                self.sent -= whole;
                self.large.pop_front();
            }
        }
        Ok(())
    }

    /// Reads acks until none is left. The time is read once for all that came together.
    pub(crate) fn receive(
        &mut self,
        templates: &Templates,
        tally: &mut Tally,
        mut now_ns: impl FnMut() -> u64,
    ) -> Result<(), Fault> {
        let mut more = true;
        while more {
            more = self.wire.receive()?;
            let now_ns = now_ns();
            while let Some(frame) = self.wire.next_frame()? {
                let intended_ns = self.acknowledge(&frame, u64::from(templates.records()))?;
                tally.done(u64::from(templates.records()), intended_ns, now_ns);
            }
        }
        Ok(())
    }

    /// Looks an ack over and frees its place; when its request was meant to be sent.
    fn acknowledge(&mut self, frame: &Frame, records: u64) -> Result<u64, Fault> {
        let body = self.wire.bytes(frame.body.clone());
        if frame.header.error != 0 {
            return Err(refusal(&frame.header, body));
        }
        let ack = access::<produce::v1::Response>(body).map_err(|error| Fault::wire("an ack", error))?;
        let base = ack.base_offset.to_native();
        let Some(slot) = self.slots.get(frame.header.correlation as usize).copied() else {
            return Err(Fault::wire("an ack", format!("correlation {}", frame.header.correlation)));
        };
        self.targets[slot.target as usize].acknowledge(slot.number, base, records)?;
        self.free.push(frame.header.correlation);
        Ok(slot.intended_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_have_to_come_in_order_and_at_their_offsets() {
        let mut target = Target::new(7, true, false);
        assert!(target.acknowledge(0, 0, 10).is_ok());
        assert!(target.acknowledge(1, 10, 10).is_ok());
        let text = |result: Result<(), Fault>| result.unwrap_err().to_string();
        let next = text(target.acknowledge(3, 20, 10));
        assert_eq!(next, "partition 7: the batch that is acknowledged next is 3, expected 2");
        let hole = text(target.acknowledge(2, 30, 10));
        assert_eq!(hole, "partition 7: the offset of an acknowledged batch is 30, expected 20");
    }

    #[test]
    fn a_shared_partition_may_hold_others_batches_between() {
        let mut target = Target::new(7, false, false);
        assert!(target.acknowledge(0, 40, 10).is_ok());
        assert!(target.acknowledge(1, 70, 10).is_ok());
        assert!(target.acknowledge(2, 79, 10).is_err(), "the batch before ends at 80");
    }
}
