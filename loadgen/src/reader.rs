//! One consumer: fetches, and checks every batch on the way back; knows no clock.
//!
//! Of each batch the header's checksum, its partition, its offset (none lost, doubled or reordered), its count of
//! records and the checksum over its payload are compared with what was sent. The next fetch is on its way before the
//! payloads of the last one are read, as a consumer would do that wants to be fast.

use crate::fault::Fault;
use crate::tally::Tally;
use crate::templates::Templates;
use crate::wire::{Frame, Wire, refusal};
use coulee_protocol::api::{ApiKey, access, encode, fetch};
use coulee_protocol::batch::{BatchHeader, HEADER_BYTES};
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader};
use coulee_protocol::ids::ShardId;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::ops::Range;

/// How long a fetch waits for records.
const WAIT_MS: u32 = 500;

/// A partition that is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) uid: u64,
    /// One lane wrote it alone: then the checksum of each batch is known.
    pub(crate) is_own: bool,
    /// The offset that comes next.
    pub(crate) next: u64,
}

/// A batch that was found in an answer.
#[derive(Clone, Debug)]
struct Found {
    source: usize,
    header: BatchHeader,
    payload: Range<usize>,
}

/// One consuming connection, with at most one fetch in flight.
#[derive(Debug)]
pub(crate) struct Reader {
    wire: Wire,
    pub(crate) sources: Vec<Source>,
    fetch_bytes: u32,
    out: Vec<u8>,
    sent: usize,
    correlation: u32,
    asked_ns: u64,
    in_flight: bool,
    found: Vec<Found>,
    /// Bytes of record batches that were checked.
    pub(crate) bytes: u64,
}

impl Reader {
    /// Connects to the shard that owns the partitions.
    pub(crate) fn connect(
        address: SocketAddr,
        shard: ShardId,
        sources: Vec<Source>,
        fetch_bytes: u32,
    ) -> Result<Self, Fault> {
        Ok(Self {
            wire: Wire::connect(address, Some(shard), fetch_bytes as usize + (64 << 10))?,
            sources,
            fetch_bytes,
            out: Vec::new(),
            sent: 0,
            correlation: 0,
            asked_ns: 0,
            in_flight: false,
            found: Vec::new(),
            bytes: 0,
        })
    }

    pub(crate) const fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Records that were read and checked.
    pub(crate) fn records(&self) -> u64 {
        self.sources.iter().map(|source| source.next).sum()
    }

    /// Asks for what comes next, unless that is asked already.
    pub(crate) fn ask(&mut self, now_ns: u64) -> Result<(), Fault> {
        if self.in_flight {
            return Ok(());
        }
        let part = |source: &Source| fetch::v1::RequestPartition {
            partition_uid: source.uid,
            offset: source.next,
            max_bytes: self.fetch_bytes,
        };
        let request = fetch::v1::Request {
            max_wait_ms: WAIT_MS,
            min_bytes: 1,
            max_bytes: self.fetch_bytes,
            isolation: fetch::v1::READ_UNCOMMITTED,
            partitions: self.sources.iter().map(part).collect(),
        };
        self.out.resize(FRAME_HEADER_BYTES, 0);
        let body_bytes = encode(&request, &mut self.out);
        self.correlation = self.correlation.wrapping_add(1);
        let header = FrameHeader::request(ApiKey::Fetch.code(), 1, self.correlation, body_bytes, 0);
        self.out[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        self.in_flight = true;
        self.asked_ns = now_ns;
        self.flush()
    }

    /// Gives the socket what waits.
    pub(crate) fn flush(&mut self) -> Result<(), Fault> {
        while self.sent < self.out.len() {
            let count = self.wire.send(&[IoSlice::new(&self.out[self.sent..])])?;
            if count == 0 {
                return Ok(());
            }
            self.sent += count;
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Reads until nothing is left. `intended_ns` says when batch number so of a source was to be sent, for end-to-end
    /// latencies; without it a latency is that of the fetch.
    pub(crate) fn receive(
        &mut self,
        templates: &Templates,
        tally: &mut Tally,
        mut now_ns: impl FnMut() -> u64,
        intended_ns: impl Fn(usize, u64) -> Option<u64>,
    ) -> Result<(), Fault> {
        let mut more = true;
        while more {
            more = self.wire.receive()?;
            while let Some(frame) = self.wire.next_frame()? {
                let (came_ns, asked_ns) = (now_ns(), self.asked_ns);
                self.look_over(&frame, templates)?;
                self.in_flight = false;
                self.ask(came_ns)?;
                self.check_payloads(templates)?;
                let done_ns = now_ns();
                let records = u64::from(templates.records());
                for Found { source, header, .. } in &self.found {
                    let number = header.leader.base_offset.0 / records;
                    // A record has arrived when its bytes have; checking it is the generator's own work.
                    match intended_ns(*source, number) {
                        Some(intended_ns) => tally.done(records, intended_ns, came_ns),
                        None => tally.done(records, asked_ns, done_ns),
                    }
                }
            }
        }
        Ok(())
    }

    /// Finds the batches of an answer and compares their headers with what has to come.
    fn look_over(&mut self, frame: &Frame, templates: &Templates) -> Result<(), Fault> {
        self.found.clear();
        let body = self.wire.bytes(frame.body.clone());
        if frame.header.error != 0 {
            return Err(refusal(&frame.header, body));
        }
        let response = access::<fetch::v1::Response>(body).map_err(|error| Fault::wire("a fetch's answer", error))?;
        response.check_batches(frame.batches.len()).map_err(|error| Fault::wire("a fetch's answer", error))?;
        if response.partitions.len() != self.sources.len() || frame.header.correlation != self.correlation {
            return Err(Fault::wire("a fetch's answer", "it answers another fetch"));
        }
        let mut at = frame.batches.start;
        for (place, part) in response.partitions.iter().enumerate() {
            let source = &mut self.sources[place];
            if part.error != 0 {
                let message = format!("a fetch of partition {}", source.uid);
                return Err(Fault::Refused { code: part.error.to_native(), message });
            }
            let end = at + part.batches_len.to_native() as usize;
            while at < end {
                let bytes = self.wire.bytes(at..end);
                let header = BatchHeader::decode(bytes).map_err(|error| Fault::wire("a batch", error))?;
                let batch_end = at + header.batch_len();
                if batch_end > end {
                    return Err(Fault::wire("a batch", "it is longer than the answer"));
                }
                check_header(source, &header, templates.records())?;
                source.next = header.end_offset().0;
                self.found.push(Found { source: place, header, payload: at + HEADER_BYTES..batch_end });
                self.bytes += header.batch_len() as u64;
                at = batch_end;
            }
        }
        Ok(())
    }

    /// Reads every payload byte.
    fn check_payloads(&self, templates: &Templates) -> Result<(), Fault> {
        for Found { source, header, payload } in &self.found {
            let source = &self.sources[*source];
            let computed = crc32fast::hash(self.wire.bytes(payload.clone()));
            let number = header.leader.base_offset.0 / u64::from(templates.records());
            let expected = if source.is_own { templates.payload_crc(number) } else { header.payload_crc };
            if computed != expected {
                let (expected, found) = (u64::from(expected), u64::from(computed));
                return Err(Fault::Record { partition: source.uid, what: "the checksum of a batch", expected, found });
            }
        }
        Ok(())
    }
}

/// Whether a batch is the one that has to come next.
fn check_header(source: &Source, header: &BatchHeader, records: u32) -> Result<(), Fault> {
    let mistaken = |what, expected, found| Err(Fault::Record { partition: source.uid, what, expected, found });
    if header.leader.partition_uid.0 != source.uid {
        return mistaken("the partition of a batch", source.uid, header.leader.partition_uid.0);
    }
    if header.leader.base_offset.0 != source.next {
        return mistaken("the offset of the next batch", source.next, header.leader.base_offset.0);
    }
    if header.record_count != records || header.offset_count != records {
        return mistaken("the count of a batch's records", u64::from(records), u64::from(header.record_count));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use coulee_protocol::batch::LeaderFields;
    use coulee_protocol::ids::{Offset, PartitionUid};

    #[test]
    fn a_lost_doubled_or_foreign_batch_is_noticed() {
        let templates = Templates::new(10, 100).unwrap();
        let header = BatchHeader::decode(templates.batch(0)).unwrap();
        let source = Source { uid: 3, is_own: true, next: 50 };
        let check = |uid, base| {
            let leader =
                LeaderFields { partition_uid: PartitionUid(uid), base_offset: Offset(base), ..LeaderFields::default() };
            check_header(&source, &BatchHeader { leader, ..header }, 10).map_err(|fault| fault.to_string())
        };
        assert_eq!(check(3, 50), Ok(()));
        assert_eq!(check(3, 60), Err("partition 3: the offset of the next batch is 60, expected 50".to_owned()));
        assert!(check(3, 40).is_err());
        assert!(check(4, 50).is_err());
    }
}
