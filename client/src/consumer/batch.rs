//! A fetched batch and its records: owns the checks on arrival and the trimming; knows no broker and no position.
//!
//! A batch shares the memory of the frame that it came in; its records are slices of it. Only compressed columns are
//! restored, into memory of the batch's own.

use bytes::Bytes;
use coulee_protocol::batch::{BatchHeader, Encoding, HEADER_BYTES, check_payload_crc};
use coulee_protocol::columns::{Columns, Headers, Scratch};

use crate::error::BatchFault;

/// A batch as it came, its header and payload checked against their checksums.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) header: BatchHeader,
    pub(crate) payload: Bytes,
}

/// Cuts batches apart and checks each by itself. What is sound before a fault is given with it.
pub(crate) fn split(mut bytes: Bytes) -> (Vec<Fetched>, Option<BatchFault>) {
    let mut batches = Vec::new();
    while !bytes.is_empty() {
        let header = match BatchHeader::decode(&bytes) {
            Ok(header) => header,
            Err(error) => return (batches, Some(BatchFault::Header(error))),
        };
        let (expected, found) = (header.batch_len(), bytes.len());
        if expected > found {
            return (batches, Some(BatchFault::Cut { expected, found }));
        }
        let payload = bytes.split_to(expected).split_off(HEADER_BYTES);
        if let Err(computed) = check_payload_crc(&header, &payload) {
            return (batches, Some(BatchFault::PayloadCrc { stored: header.payload_crc, computed }));
        }
        batches.push(Fetched { header, payload });
    }
    (batches, None)
}

/// Records of one partition that came together, in order.
#[derive(Debug)]
pub struct Batch {
    partition: u32,
    fetched: Fetched,
    /// Records below this offset were not asked for.
    wanted: u64,
    high_watermark: u64,
    scratch: Scratch,
}

impl Batch {
    pub(crate) fn new(partition: u32, fetched: Fetched, wanted: u64, high_watermark: u64) -> Self {
        Self { partition, fetched, wanted, high_watermark, scratch: Scratch::default() }
    }

    /// The partition.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// The first offset that its records may have.
    #[must_use]
    pub fn first_offset(&self) -> u64 {
        self.fetched.header.leader.base_offset.0.max(self.wanted)
    }

    /// The offset behind its records, where the next batch begins.
    #[must_use]
    pub fn end_offset(&self) -> u64 {
        self.fetched.header.end_offset().0
    }

    /// The end of what was visible in the partition when the batch was fetched.
    #[must_use]
    pub fn high_watermark(&self) -> u64 {
        self.high_watermark
    }

    /// The batch's header, for those who want its sizes, timestamps or compression. It tells of the whole batch, those
    /// records included that were not asked for.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.fetched.header
    }

    /// The batch's payload as it came.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.fetched.payload
    }

    /// Opens the records: checks the columns, and restores them where they are compressed.
    ///
    /// # Errors
    /// [`BatchFault::Columns`] or [`BatchFault::Encoding`]. The batch's place in the partition is sound all the same:
    /// the consumer has gone on behind it.
    pub fn records(&mut self) -> Result<Records<'_>, BatchFault> {
        let Fetched { header, payload } = &self.fetched;
        if header.encoding != Encoding::Columnar {
            return Err(BatchFault::Encoding);
        }
        let columns = Columns::open(payload, header, &mut self.scratch).map_err(BatchFault::Columns)?;
        let mut records = Records { partition: self.partition, columns, next: 0 };
        while records.columns.record(records.next).is_some_and(|record| record.offset.0 < self.wanted) {
            records.next += 1;
        }
        Ok(records)
    }
}

/// A record, borrowed from its batch.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The partition.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// Its timestamp, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Its key, if it has one.
    pub key: Option<&'a [u8]>,
    /// Its value; `None` for a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers, in order, duplicates kept.
    pub headers: Headers<'a>,
}

/// The records of a batch, in order.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    partition: u32,
    columns: Columns<'a>,
    next: usize,
}

impl<'a> Iterator for Records<'a> {
    type Item = Received<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.columns.record(self.next)?;
        self.next += 1;
        Some(Received {
            partition: self.partition,
            offset: record.offset.0,
            timestamp_ms: record.timestamp.0,
            key: record.key,
            value: record.value,
            headers: record.headers,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.columns.len() - self.next.min(self.columns.len());
        (left, Some(left))
    }
}

impl ExactSizeIterator for Records<'_> {}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use coulee_protocol::batch::LeaderFields;
    use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
    use coulee_protocol::compression::Codec;
    use coulee_protocol::ids::{BatchIndex, LeaderEpoch, Offset, PartitionUid};

    /// A stored batch of these values, and its header.
    pub(crate) fn stored(codec: Codec, leader: LeaderFields, values: &[&[u8]]) -> (BatchHeader, Vec<u8>) {
        let mut builder = BatchBuilder::new(codec, 1 << 20);
        values.iter().for_each(|value| {
            builder.push(&NewRecord { value: Some(value), ..NewRecord::default() }).unwrap();
        });
        let mut batch = builder.finish().unwrap();
        let header = BatchHeader::decode(&batch).unwrap();
        let header = header.stamp(leader, batch.first_chunk_mut().unwrap());
        (header, batch)
    }

    pub(crate) fn leader(batch_index: u64, base_offset: u64, prev_header_crc: u32) -> LeaderFields {
        LeaderFields {
            partition_uid: PartitionUid(7),
            batch_index: BatchIndex(batch_index),
            leader_epoch: LeaderEpoch(1),
            prev_header_crc,
            durable_end_hint: Offset(0),
            base_offset: Offset(base_offset),
        }
    }

    #[test]
    fn records_below_the_offset_asked_for_are_trimmed() {
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
            let (_, bytes) = stored(codec, leader(1, 40, 0), &[b"a", b"b", b"c"]);
            for (wanted, expected) in [(0, 3), (40, 3), (41, 2), (42, 1), (43, 0)] {
                let fetched = split(Bytes::from(bytes.clone())).0.remove(0);
                let mut batch = Batch::new(5, fetched, wanted, 43);
                let records: Vec<_> =
                    batch.records().unwrap().map(|record| (record.partition, record.offset)).collect();
                assert_eq!(records.len(), expected, "{wanted}");
                assert!(records.iter().all(|(partition, offset)| *partition == 5 && *offset >= wanted));
                assert_eq!((batch.first_offset(), batch.end_offset()), (wanted.max(40), 43));
            }
        }
    }

    #[test]
    fn values_are_slices_of_the_received_frame() {
        let (_, bytes) = stored(Codec::None, leader(1, 0, 0), &[b"value"]);
        let frame = Bytes::from(bytes);
        let mut batch = Batch::new(0, split(frame.clone()).0.remove(0), 0, 1);
        let value = batch.records().unwrap().next().unwrap().value.unwrap();
        assert!(frame.as_ptr_range().contains(&value.as_ptr()));
    }

    #[test]
    fn what_is_sound_before_a_fault_is_kept() {
        let (_, first) = stored(Codec::None, leader(1, 0, 0), &[b"a"]);
        let (_, second) = stored(Codec::None, leader(2, 1, 0), &[b"b"]);
        let both = [first.clone(), second].concat();
        let cut = both.len() - 1;
        let (batches, fault) = split(Bytes::from(both[..cut].to_vec()));
        assert_eq!(batches.len(), 1);
        assert!(matches!(fault, Some(BatchFault::Cut { .. })));
        for position in 0..both.len() {
            let mut damaged = both.clone();
            damaged[position] ^= 4;
            let (batches, fault) = split(Bytes::from(damaged));
            assert!(fault.is_some(), "byte {position}");
            assert_eq!(batches.len(), usize::from(position >= first.len()), "byte {position}");
        }
    }
}
