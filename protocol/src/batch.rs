//! The 128-byte record batch header (docs/STORAGE_FORMAT.md, "Record batch"); knows nothing of where a batch lies.
//!
//! The record batch is the unit on the wire, on disk and, later, on followers: the same bytes. The producer makes
//! them once with the leader's fields zero; the leader checks them, fills its fields in and stamps the header again;
//! the payload is never touched.
//!
//! Cost of a batch, not of a record: two CRC-32 of 124 bytes and 128 bytes written; no allocation.

use crate::columns;
use crate::compression::{Codec, CompressionError};
use crate::ids::{BatchIndex, LeaderEpoch, Offset, PartitionUid, ProducerId, Timestamp};
use crate::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use rkyv::rancor::Failure;
use rkyv::ser::allocator::SubAllocator;
use rkyv::ser::writer::Buffer;
use rkyv::{Archive, Serialize};
use std::fmt;
use std::mem::{offset_of, size_of};

/// `CLRB`, little endian: zeros never decode as a batch.
pub const MAGIC: u32 = u32::from_le_bytes(*b"CLRB");
/// The version this code writes and reads.
pub const VERSION: u8 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 128;
/// Attribute bit 3: the broker's time of arrival stands for the timestamps of all records.
pub const LOG_APPEND_TIME: u16 = 1 << 3;
/// Offsets never reach this.
pub const OFFSET_END_MAX: u64 = 1 << 63;

/// How the payload is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// A Kafka v2 record batch, verbatim.
    Kafka,
    /// An archive of columns.
    Columnar,
}

/// What a batch is for. Consumers see data only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchType {
    /// Records of producers.
    Data,
    /// Takes a batch index, holds nothing.
    NoOp,
    /// A change of the members of a raft group.
    RaftConfig,
    /// The end of a transaction.
    TransactionMarker,
    /// State of idempotent producers.
    ProducerSnapshot,
    /// What has moved to object storage.
    TierMarker,
}

impl BatchType {
    const ALL: [Self; 6] =
        [Self::Data, Self::NoOp, Self::RaftConfig, Self::TransactionMarker, Self::ProducerSnapshot, Self::TierMarker];
}

/// The header as stored. Field order, widths and the archive's layout are the format.
#[derive(Archive, Serialize)]
struct Stored {
    magic: u32,
    version: u8,
    header_len: u8,
    encoding: u8,
    batch_type: u8,
    header_crc: u32,
    payload_crc: u32,
    batch_len: u32,
    payload_len: u32,
    partition_uid: u64,
    batch_index: u64,
    leader_epoch: u32,
    prev_header_crc: u32,
    durable_end_hint: u64,
    base_offset: u64,
    offset_count: u32,
    record_count: u32,
    base_timestamp: i64,
    max_timestamp: i64,
    producer_id: i64,
    base_sequence: i32,
    producer_epoch: i16,
    attributes: u16,
    reserved: [u8; 24],
}

const CRC_AT: usize = offset_of!(ArchivedStored, header_crc);
const _: () = assert!(size_of::<ArchivedStored>() == HEADER_BYTES && align_of::<ArchivedStored>() == 1);
const _: () = assert!(offset_of!(ArchivedStored, version) == 4 && offset_of!(ArchivedStored, encoding) == 6);
const _: () = assert!(CRC_AT == 8 && offset_of!(ArchivedStored, payload_crc) == 12);
const _: () = assert!(offset_of!(ArchivedStored, batch_len) == 16 && offset_of!(ArchivedStored, payload_len) == 20);
const _: () = assert!(offset_of!(ArchivedStored, partition_uid) == 24 && offset_of!(ArchivedStored, batch_index) == 32);
const _: () = assert!(offset_of!(ArchivedStored, leader_epoch) == 40);
const _: () = assert!(offset_of!(ArchivedStored, prev_header_crc) == 44);
const _: () = assert!(offset_of!(ArchivedStored, durable_end_hint) == 48);
const _: () = assert!(offset_of!(ArchivedStored, base_offset) == 56 && offset_of!(ArchivedStored, offset_count) == 64);
const _: () = assert!(offset_of!(ArchivedStored, record_count) == 68);
const _: () = assert!(offset_of!(ArchivedStored, base_timestamp) == 72);
const _: () = assert!(offset_of!(ArchivedStored, max_timestamp) == 80 && offset_of!(ArchivedStored, producer_id) == 88);
const _: () = assert!(offset_of!(ArchivedStored, base_sequence) == 96);
const _: () = assert!(offset_of!(ArchivedStored, producer_epoch) == 100);
const _: () = assert!(offset_of!(ArchivedStored, attributes) == 102 && offset_of!(ArchivedStored, reserved) == 104);

/// What the leader fills in. All zero in a batch that comes from a producer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaderFields {
    /// The partition that this batch belongs to.
    pub partition_uid: PartitionUid,
    /// 1, 2, 3 … in that partition.
    pub batch_index: BatchIndex,
    /// The leader's epoch; never 0 once stored.
    pub leader_epoch: LeaderEpoch,
    /// `header_crc` of the batch before; of the first in a segment it is the header page's chain anchor.
    pub prev_header_crc: u32,
    /// Everything below was durable on this node when the batch was stamped.
    pub durable_end_hint: Offset,
    /// Offset of the first record.
    pub base_offset: Offset,
}

/// A checked batch header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// How the payload is encoded.
    pub encoding: Encoding,
    /// What the batch is for.
    pub batch_type: BatchType,
    /// CRC-32 over the header without this field.
    pub header_crc: u32,
    /// CRC over the payload.
    pub payload_crc: u32,
    /// Bytes of the payload, without padding.
    pub payload_len: u32,
    /// The leader's part.
    pub leader: LeaderFields,
    /// Offsets that the batch takes.
    pub offset_count: u32,
    /// Records that it holds.
    pub record_count: u32,
    /// Least timestamp; columnar deltas count from it.
    pub base_timestamp: Timestamp,
    /// Greatest timestamp.
    pub max_timestamp: Timestamp,
    /// Idempotent producer, or [`ProducerId::NONE`].
    pub producer_id: ProducerId,
    /// Sequence of the first record, or −1.
    pub base_sequence: i32,
    /// Epoch of the producer, or −1.
    pub producer_epoch: i16,
    /// Kafka's bits: 0–2 compression, 3 timestamp type, 4 transactional, 5 control.
    pub attributes: u16,
}

/// Why 128 bytes are no batch header of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Fewer than 128 bytes are left.
    Truncated {
        /// Bytes at hand.
        have: usize,
    },
    /// The first four bytes are not `CLRB`.
    Magic {
        /// What they are.
        found: u32,
    },
    /// A version that this code does not read.
    Version {
        /// The version found.
        found: u8,
    },
    /// `header_crc` does not fit the bytes.
    Crc {
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
    /// `header_len`, `batch_len` and `payload_len` contradict each other or a limit.
    Lengths {
        /// `batch_len` as stored.
        batch_len: u32,
        /// `payload_len` as stored.
        payload_len: u32,
    },
    /// An encoding or batch type without meaning.
    Kind {
        /// Encoding found.
        encoding: u8,
        /// Batch type found.
        batch_type: u8,
    },
    /// Counts, offsets or timestamps that no batch can have, or reserved bytes that are not zero.
    Fields,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { have } => write!(formatter, "batch header needs 128 bytes, {have} are left"),
            Self::Magic { found } => write!(formatter, "batch magic is {found:#010x}, expected {MAGIC:#010x}"),
            Self::Version { found } => write!(formatter, "batch version is {found}, this release reads {VERSION}"),
            Self::Crc { stored, computed } => {
                write!(formatter, "batch header crc is {stored:#010x}, computed {computed:#010x}")
            }
            Self::Lengths { batch_len, payload_len } => {
                write!(
                    formatter,
                    "batch length {batch_len} and payload length {payload_len} contradict each other or the limit"
                )
            }
            Self::Kind { encoding, batch_type } => {
                write!(formatter, "encoding {encoding} with batch type {batch_type} has no meaning")
            }
            Self::Fields => {
                write!(formatter, "batch header holds counts, offsets or reserved bytes that no batch can have")
            }
        }
    }
}

impl std::error::Error for HeaderError {}

/// CRC-32 over a header, skipping the four bytes that hold it.
fn header_crc(header: &[u8; HEADER_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..CRC_AT]);
    hasher.update(&header[CRC_AT + 4..]);
    hasher.finalize()
}

impl BatchHeader {
    /// Bytes of header and payload, without padding.
    #[must_use]
    pub const fn batch_len(&self) -> usize {
        HEADER_BYTES + self.payload_len as usize
    }

    /// The offset after the last one that the batch takes.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        self.leader.base_offset.advance(u64::from(self.offset_count))
    }

    /// Reads and checks the header at the start of `bytes`. The payload need not be there.
    ///
    /// # Errors
    /// [`HeaderError`]: any bytes give a header or an error.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let Some(raw) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(HeaderError::Truncated { have: bytes.len() });
        };
        let stored = rkyv::api::low::access::<ArchivedStored, Failure>(raw).map_err(|_| HeaderError::Fields)?;
        if stored.magic != MAGIC {
            return Err(HeaderError::Magic { found: stored.magic.to_native() });
        }
        if stored.version != VERSION {
            return Err(HeaderError::Version { found: stored.version });
        }
        let computed = header_crc(raw);
        if stored.header_crc != computed {
            return Err(HeaderError::Crc { stored: stored.header_crc.to_native(), computed });
        }
        Self::from_stored(stored)
    }

    /// The checks behind the CRC: they catch a peer that computes CRCs well over nonsense.
    fn from_stored(stored: &ArchivedStored) -> Result<Self, HeaderError> {
        let (batch_len, payload_len) = (stored.batch_len.to_native(), stored.payload_len.to_native());
        let sound = usize::from(stored.header_len) == HEADER_BYTES
            && batch_len as usize <= BATCH_BYTES_MAX
            && payload_len.checked_add(HEADER_BYTES as u32) == Some(batch_len);
        if !sound {
            return Err(HeaderError::Lengths { batch_len, payload_len });
        }
        let encoding = match stored.encoding {
            0 => Some(Encoding::Kafka),
            1 => Some(Encoding::Columnar),
            _ => None,
        };
        let (Some(encoding), Some(&batch_type)) = (encoding, BatchType::ALL.get(usize::from(stored.batch_type))) else {
            return Err(HeaderError::Kind { encoding: stored.encoding, batch_type: stored.batch_type });
        };
        let header = Self {
            encoding,
            batch_type,
            header_crc: stored.header_crc.to_native(),
            payload_crc: stored.payload_crc.to_native(),
            payload_len,
            leader: LeaderFields {
                partition_uid: PartitionUid(stored.partition_uid.to_native()),
                batch_index: BatchIndex(stored.batch_index.to_native()),
                leader_epoch: LeaderEpoch(stored.leader_epoch.to_native()),
                prev_header_crc: stored.prev_header_crc.to_native(),
                durable_end_hint: Offset(stored.durable_end_hint.to_native()),
                base_offset: Offset(stored.base_offset.to_native()),
            },
            offset_count: stored.offset_count.to_native(),
            record_count: stored.record_count.to_native(),
            base_timestamp: Timestamp(stored.base_timestamp.to_native()),
            max_timestamp: Timestamp(stored.max_timestamp.to_native()),
            producer_id: ProducerId(stored.producer_id.to_native()),
            base_sequence: stored.base_sequence.to_native(),
            producer_epoch: stored.producer_epoch.to_native(),
            attributes: stored.attributes.to_native(),
        };
        if header.is_sound() && stored.reserved == [0; 24] { Ok(header) } else { Err(HeaderError::Fields) }
    }

    /// Whether counts, offsets and timestamps can belong to one batch.
    fn is_sound(&self) -> bool {
        let data = self.batch_type == BatchType::Data;
        let counts = self.record_count <= self.offset_count
            && self.offset_count <= BATCH_RECORDS_MAX
            && (!data || self.offset_count > 0);
        let offsets = self.leader.base_offset.0 < OFFSET_END_MAX - u64::from(BATCH_RECORDS_MAX)
            && self.leader.durable_end_hint.0 <= self.leader.base_offset.0;
        counts && offsets && self.base_timestamp <= self.max_timestamp
    }

    /// Writes the header with a fresh `header_crc` and returns it with that CRC set.
    pub fn encode(mut self, out: &mut [u8; HEADER_BYTES]) -> Self {
        let stored = Stored {
            magic: MAGIC,
            version: VERSION,
            header_len: HEADER_BYTES as u8,
            encoding: match self.encoding {
                Encoding::Kafka => 0,
                Encoding::Columnar => 1,
            },
            batch_type: self.batch_type as u8,
            header_crc: 0,
            payload_crc: self.payload_crc,
            batch_len: self.batch_len() as u32,
            payload_len: self.payload_len,
            partition_uid: self.leader.partition_uid.0,
            batch_index: self.leader.batch_index.0,
            leader_epoch: self.leader.leader_epoch.0,
            prev_header_crc: self.leader.prev_header_crc,
            durable_end_hint: self.leader.durable_end_hint.0,
            base_offset: self.leader.base_offset.0,
            offset_count: self.offset_count,
            record_count: self.record_count,
            base_timestamp: self.base_timestamp.0,
            max_timestamp: self.max_timestamp.0,
            producer_id: self.producer_id.0,
            base_sequence: self.base_sequence,
            producer_epoch: self.producer_epoch,
            attributes: self.attributes,
            reserved: [0; 24],
        };
        let written = rkyv::api::low::to_bytes_in_with_alloc::<_, _, Failure>(
            &stored,
            Buffer::from(&mut *out),
            SubAllocator::empty(),
        );
        assert!(written.is_ok_and(|buffer| buffer.len() == HEADER_BYTES), "a header of integers always fits 128 bytes");
        self.header_crc = header_crc(out);
        out[CRC_AT..CRC_AT + 4].copy_from_slice(&self.header_crc.to_le_bytes());
        self
    }

    /// The same batch with the time of its arrival in the place of its records' timestamps (LogAppendTime). Only the
    /// header changes: readers of a batch with the attribute take its `max_timestamp` for every record.
    #[must_use]
    pub const fn arrived_at(mut self, now: Timestamp) -> Self {
        self.base_timestamp = now;
        self.max_timestamp = now;
        self.attributes |= LOG_APPEND_TIME;
        self
    }

    /// Stamps the leader's fields into a checked batch's first 128 bytes and returns the header as stored.
    pub fn stamp(self, leader: LeaderFields, out: &mut [u8; HEADER_BYTES]) -> Self {
        Self { leader, ..self }.encode(out)
    }
}

/// Why a batch that a producer sent is refused. Nothing of it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryError {
    /// The header is no batch header.
    Header(HeaderError),
    /// The bytes that came are not exactly one batch.
    Length {
        /// What the header says.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// Larger than the topic's `max.message.bytes`.
    TooLarge {
        /// Bytes of the batch.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// `payload_crc` does not fit the payload.
    PayloadCrc {
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
    /// The producer has set one of the leader's fields.
    LeaderFieldsSet,
    /// A batch type or encoding that clients of this listener may not write.
    NotForProducers,
    /// The payload is no columnar payload.
    Columns(columns::ColumnsError),
    /// The attributes name a codec that columns cannot have.
    Compression(CompressionError),
}

impl fmt::Display for EntryError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(error) => error.fmt(formatter),
            Self::Length { expected, found } => write!(formatter, "batch says {expected} bytes, {found} came"),
            Self::TooLarge { bytes, max } => {
                write!(formatter, "batch of {bytes} bytes is over max.message.bytes {max}")
            }
            Self::PayloadCrc { stored, computed } => {
                write!(formatter, "payload crc is {stored:#010x}, computed {computed:#010x}")
            }
            Self::LeaderFieldsSet => write!(formatter, "fields that the leader fills in are not zero"),
            Self::NotForProducers => {
                write!(formatter, "this batch type or encoding cannot be produced over this listener")
            }
            Self::Columns(error) => error.fmt(formatter),
            Self::Compression(error) => error.fmt(formatter),
        }
    }
}

impl std::error::Error for EntryError {}

/// Checks a whole batch as it came from a producer: header, length, payload CRC, columns.
/// Reads each payload byte once (for the CRC) and each offset once.
///
/// # Errors
/// [`EntryError`], with the facts; nothing is changed either way.
pub fn check_entry(batch: &[u8], batch_bytes_max: usize) -> Result<BatchHeader, EntryError> {
    let header = BatchHeader::decode(batch).map_err(EntryError::Header)?;
    if header.batch_len() > batch_bytes_max {
        return Err(EntryError::TooLarge { bytes: header.batch_len(), max: batch_bytes_max });
    }
    if header.batch_len() != batch.len() {
        return Err(EntryError::Length { expected: header.batch_len(), found: batch.len() });
    }
    if header.leader != LeaderFields::default() {
        return Err(EntryError::LeaderFieldsSet);
    }
    if header.batch_type != BatchType::Data || header.encoding != Encoding::Columnar || header.attributes & !0b111 != 0
    {
        return Err(EntryError::NotForProducers);
    }
    Codec::from_attributes(header.attributes).map_err(EntryError::Compression)?;
    let payload = &batch[HEADER_BYTES..];
    check_payload_crc(&header, payload)
        .map_err(|computed| EntryError::PayloadCrc { stored: header.payload_crc, computed })?;
    columns::check_entry(payload, &header).map_err(EntryError::Columns)?;
    Ok(header)
}

/// Compares the payload with the header's CRC.
///
/// # Errors
/// The CRC as computed, when it is another one.
pub fn check_payload_crc(header: &BatchHeader, payload: &[u8]) -> Result<(), u32> {
    let computed = crc32fast::hash(payload);
    if computed == header.payload_crc { Ok(()) } else { Err(computed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> BatchHeader {
        BatchHeader {
            encoding: Encoding::Columnar,
            batch_type: BatchType::Data,
            header_crc: 0,
            payload_crc: 9,
            payload_len: 1_000,
            leader: LeaderFields {
                partition_uid: PartitionUid(7),
                batch_index: BatchIndex(3),
                leader_epoch: LeaderEpoch(2),
                prev_header_crc: 5,
                durable_end_hint: Offset(40),
                base_offset: Offset(50),
            },
            offset_count: 10,
            record_count: 8,
            base_timestamp: Timestamp(-5),
            max_timestamp: Timestamp(5),
            producer_id: ProducerId::NONE,
            base_sequence: -1,
            producer_epoch: -1,
            attributes: 0,
        }
    }

    #[test]
    fn a_header_reads_back_as_written_and_its_end_is_exclusive() {
        let mut bytes = [0; HEADER_BYTES];
        let written = header().encode(&mut bytes);
        let read = BatchHeader::decode(&bytes).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.end_offset(), Offset(60));
        assert_eq!(read.batch_len(), 1_128);
    }

    #[test]
    fn zeros_and_every_flipped_bit_and_every_short_header_are_refused() {
        assert_eq!(BatchHeader::decode(&[0; 128]), Err(HeaderError::Magic { found: 0 }));
        let mut bytes = [0; HEADER_BYTES];
        header().encode(&mut bytes);
        for position in 0..HEADER_BYTES {
            assert_eq!(BatchHeader::decode(&bytes[..position]), Err(HeaderError::Truncated { have: position }));
            for bit in 0..8 {
                let mut damaged = bytes;
                damaged[position] ^= 1 << bit;
                assert!(BatchHeader::decode(&damaged).is_err(), "byte {position} bit {bit}");
            }
        }
    }

    #[test]
    fn fields_that_contradict_each_other_are_refused_behind_a_right_checksum() {
        let check = |change: fn(&mut BatchHeader)| {
            let mut bytes = [0; HEADER_BYTES];
            let mut changed = header();
            change(&mut changed);
            changed.encode(&mut bytes);
            BatchHeader::decode(&bytes)
        };
        assert_eq!(check(|header| header.record_count = 11), Err(HeaderError::Fields));
        assert_eq!(check(|header| header.offset_count = 0), Err(HeaderError::Fields));
        assert_eq!(check(|header| header.leader.base_offset = Offset(1 << 63)), Err(HeaderError::Fields));
        assert_eq!(check(|header| header.leader.durable_end_hint = Offset(51)), Err(HeaderError::Fields));
        assert_eq!(check(|header| header.max_timestamp = Timestamp(-6)), Err(HeaderError::Fields));
        let lengths = check(|header| header.payload_len = BATCH_BYTES_MAX as u32);
        assert!(matches!(lengths, Err(HeaderError::Lengths { .. })));
    }
}
