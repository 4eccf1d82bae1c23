//! The columnar payload: validation on entry and zero-copy reading; knows nothing of partitions or of who wrote it.
//!
//! A payload is one rkyv archive of columns, not of records: value ends, values, and only where needed keys, nulls,
//! timestamps, offsets, headers. The columns are those of an Arrow binary array.
//!
//! Sketch, for 1,000 records of 100 B: 4 bytes a record over the values (their ends) and 240 for header and root.
//! Building ([`builder::BatchBuilder`]) copies each value once. Validation reads the ends, not the values. Reading a
//! record is two loads and a slice.

use crate::batch::{BatchHeader, LOG_APPEND_TIME};
use crate::compression::{Codec, CompressionError};
use crate::ids::{Offset, Timestamp};
use crate::limits::{COLUMN_BYTES_MAX, RECORD_HEADERS_MAX};
use rkyv::rancor::Failure;
use rkyv::rend::unaligned::u32_ule;
use rkyv::vec::ArchivedVec;
use rkyv::{Archive, Serialize};
use std::fmt;

pub mod builder;

/// Bytes of the archive's root, which ends the payload: 14 vectors of 8 bytes.
pub const ROOT_BYTES: usize = 14 * 8;

/// The columns of version 1. Frozen: field order and types are the format.
///
/// `B` is how the value bytes get into the archive: the builder has placed them already.
#[derive(Archive, Serialize)]
pub(crate) struct ColumnsV1<B: Archive> {
    pub(crate) values: B,
    pub(crate) value_offsets: Vec<u32>,
    pub(crate) value_nulls: Vec<u8>,
    pub(crate) keys: Vec<u8>,
    pub(crate) key_offsets: Vec<u32>,
    pub(crate) key_nulls: Vec<u8>,
    pub(crate) timestamp_deltas: Vec<u32>,
    pub(crate) offset_deltas: Vec<u32>,
    pub(crate) header_offsets: Vec<u32>,
    pub(crate) header_keys: Vec<u8>,
    pub(crate) header_key_offsets: Vec<u32>,
    pub(crate) header_values: Vec<u8>,
    pub(crate) header_value_offsets: Vec<u32>,
    pub(crate) header_value_nulls: Vec<u8>,
}

type Archived = ArchivedColumnsV1<Vec<u8>>;
const _: () = assert!(size_of::<Archived>() == ROOT_BYTES && align_of::<Archived>() == 1);

/// A column of a payload, for errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Record values.
    Values,
    /// Record keys.
    Keys,
    /// Timestamp deltas.
    Timestamps,
    /// Offset deltas.
    Offsets,
    /// Which headers belong to which record.
    Headers,
    /// Keys of headers.
    HeaderKeys,
    /// Values of headers.
    HeaderValues,
}

/// Why a payload is no columnar payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnsError {
    /// The bytes are not an archive of columns.
    Archive,
    /// A column has another number of entries than its batch has records, or than the column beside it.
    Count {
        /// Where.
        column: Column,
        /// Entries that it must have.
        expected: usize,
        /// Entries that it has.
        found: usize,
    },
    /// The ends of a column do not start at 0, go back, or end elsewhere than its bytes do.
    Ends {
        /// Where.
        column: Column,
    },
    /// A null entry has bytes, or bits beyond the last entry are set.
    Nulls {
        /// Where.
        column: Column,
    },
    /// Timestamps contradict the batch header.
    Timestamps,
    /// Offset deltas go back, leave the batch, or came from a producer.
    Offsets,
    /// A record has more than 1,000 headers.
    TooManyHeaders,
    /// A compressed column does not restore.
    Compression(CompressionError),
}

impl fmt::Display for ColumnsError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Archive => write!(formatter, "payload is not an archive of columns"),
            Self::Count { column, expected, found } => {
                write!(formatter, "column {column:?} has {found} entries, expected {expected}")
            }
            Self::Ends { column } => {
                write!(formatter, "ends of column {column:?} are not monotone or do not fit its bytes")
            }
            Self::Nulls { column } => write!(formatter, "null bits of column {column:?} contradict its entries"),
            Self::Timestamps => write!(formatter, "timestamps contradict the batch header"),
            Self::Offsets => write!(formatter, "offset deltas contradict the batch header"),
            Self::TooManyHeaders => write!(formatter, "a record has more than {RECORD_HEADERS_MAX} headers"),
            Self::Compression(error) => error.fmt(formatter),
        }
    }
}

impl std::error::Error for ColumnsError {}

/// The archive's root, checked by bytecheck; allocates nothing.
fn access(payload: &[u8]) -> Result<&Archived, ColumnsError> {
    rkyv::api::low::access::<Archived, Failure>(payload).map_err(|_| ColumnsError::Archive)
}

/// The last end of a column whose `offsets` are checked, or `None` where they are not monotone from 0.
fn monotone_end(offsets: &[u32_ule]) -> Option<u32> {
    let last = offsets.last()?.to_native();
    // One comparison a record without an early exit, so that it vectorises.
    let monotone = offsets.windows(2).fold(true, |sound, pair| sound & (pair[0].to_native() <= pair[1].to_native()));
    (monotone && offsets[0] == 0 && (last as usize) < 1 << 31).then_some(last)
}

/// A column of byte strings before its bytes are restored.
struct RawBytes<'a> {
    column: Column,
    offsets: &'a [u32_ule],
    bytes: &'a [u8],
    nulls: &'a [u8],
}

impl RawBytes<'_> {
    /// Checks `count` entries; an absent column (no offsets) is allowed where `optional`.
    fn check(&self, count: usize, optional: bool, codec: Codec) -> Result<(), ColumnsError> {
        let column = self.column;
        if optional && self.offsets.is_empty() {
            let empty = self.bytes.is_empty() && self.nulls.is_empty();
            return if empty { Ok(()) } else { Err(ColumnsError::Ends { column }) };
        }
        if self.offsets.len() != count + 1 {
            return Err(ColumnsError::Count { column, expected: count + 1, found: self.offsets.len() });
        }
        let end = monotone_end(self.offsets).ok_or(ColumnsError::Ends { column })? as usize;
        let fits = match codec {
            Codec::None => end == self.bytes.len(),
            Codec::Lz4 | Codec::Zstd => end <= COLUMN_BYTES_MAX && (end == 0) == self.bytes.is_empty(),
        };
        if !fits {
            return Err(ColumnsError::Ends { column });
        }
        self.check_nulls(count)
    }

    fn check_nulls(&self, count: usize) -> Result<(), ColumnsError> {
        if self.nulls.is_empty() {
            return Ok(());
        }
        let sound = self.nulls.len() == count.div_ceil(8)
            && (0..self.nulls.len() * 8).all(|index| {
                !is_null(self.nulls, index) || (index < count && self.offsets[index] == self.offsets[index + 1])
            });
        if sound { Ok(()) } else { Err(ColumnsError::Nulls { column: self.column }) }
    }
}

/// Whether bit `index` of a bitmap is set; an empty bitmap has none.
fn is_null(nulls: &[u8], index: usize) -> bool {
    nulls.get(index / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
}

impl Archived {
    fn value_column(&self) -> RawBytes<'_> {
        RawBytes { column: Column::Values, offsets: &self.value_offsets, bytes: &self.values, nulls: &self.value_nulls }
    }

    fn key_column(&self) -> RawBytes<'_> {
        RawBytes { column: Column::Keys, offsets: &self.key_offsets, bytes: &self.keys, nulls: &self.key_nulls }
    }

    fn header_columns(&self) -> [RawBytes<'_>; 2] {
        [
            RawBytes {
                column: Column::HeaderKeys,
                offsets: &self.header_key_offsets,
                bytes: &self.header_keys,
                nulls: &[],
            },
            RawBytes {
                column: Column::HeaderValues,
                offsets: &self.header_value_offsets,
                bytes: &self.header_values,
                nulls: &self.header_value_nulls,
            },
        ]
    }

    /// Everything but the restored bytes of compressed columns.
    fn check(&self, header: &BatchHeader, codec: Codec) -> Result<(), ColumnsError> {
        let count = header.record_count as usize;
        self.value_column().check(count, false, codec)?;
        self.key_column().check(count, true, codec)?;
        self.check_timestamps(header)?;
        self.check_offsets(header)?;
        self.check_headers(count, codec)
    }

    fn check_timestamps(&self, header: &BatchHeader) -> Result<(), ColumnsError> {
        let deltas: &[u32_ule] = &self.timestamp_deltas;
        let on_arrival = header.attributes & LOG_APPEND_TIME != 0;
        if deltas.is_empty() {
            let equal = header.base_timestamp == header.max_timestamp;
            return if equal { Ok(()) } else { Err(ColumnsError::Timestamps) };
        }
        let count = header.record_count as usize;
        if deltas.len() != count {
            return Err(ColumnsError::Count { column: Column::Timestamps, expected: count, found: deltas.len() });
        }
        let greatest = deltas.iter().fold(0, |greatest, delta| delta.to_native().max(greatest));
        let max = header.base_timestamp.0.checked_add(i64::from(greatest));
        if on_arrival || max == Some(header.max_timestamp.0) { Ok(()) } else { Err(ColumnsError::Timestamps) }
    }

    fn check_offsets(&self, header: &BatchHeader) -> Result<(), ColumnsError> {
        let deltas: &[u32_ule] = &self.offset_deltas;
        let count = header.record_count as usize;
        if deltas.is_empty() {
            return if header.record_count == header.offset_count { Ok(()) } else { Err(ColumnsError::Offsets) };
        }
        if deltas.len() != count {
            return Err(ColumnsError::Count { column: Column::Offsets, expected: count, found: deltas.len() });
        }
        let grow = deltas.windows(2).all(|pair| pair[0].to_native() < pair[1].to_native());
        let inside = deltas.last().is_some_and(|last| last.to_native() < header.offset_count);
        if grow && inside { Ok(()) } else { Err(ColumnsError::Offsets) }
    }

    fn check_headers(&self, count: usize, codec: Codec) -> Result<(), ColumnsError> {
        let offsets: &[u32_ule] = &self.header_offsets;
        let [keys, values] = self.header_columns();
        if offsets.is_empty() {
            // Without header offsets both columns must be absent, not merely of zero entries.
            let absent = [&keys, &values]
                .iter()
                .all(|raw| raw.offsets.is_empty() && raw.bytes.is_empty() && raw.nulls.is_empty())
                && self.header_value_nulls.is_empty();
            return if absent { Ok(()) } else { Err(ColumnsError::Ends { column: Column::Headers }) };
        }
        if offsets.len() != count + 1 {
            return Err(ColumnsError::Count { column: Column::Headers, expected: count + 1, found: offsets.len() });
        }
        let total = monotone_end(offsets).ok_or(ColumnsError::Ends { column: Column::Headers })? as usize;
        if offsets.windows(2).any(|pair| pair[1].to_native() - pair[0].to_native() > RECORD_HEADERS_MAX) {
            return Err(ColumnsError::TooManyHeaders);
        }
        keys.check(total, false, codec)?;
        values.check(total, false, codec)
    }
}

/// Checks the payload of a batch that came from a producer. Compressed columns are not restored: their ends are
/// checked here, their bytes by who reads them.
///
/// # Errors
/// [`ColumnsError`]; any bytes give an answer, nothing is allocated.
pub fn check_entry(payload: &[u8], header: &BatchHeader) -> Result<(), ColumnsError> {
    let codec = Codec::from_attributes(header.attributes).map_err(ColumnsError::Compression)?;
    let columns = access(payload)?;
    if !columns.offset_deltas.is_empty() {
        return Err(ColumnsError::Offsets);
    }
    columns.check(header, codec)
}

/// Restored bytes of compressed columns; reuse one for many batches.
#[derive(Debug, Default)]
pub struct Scratch {
    values: Vec<u8>,
    keys: Vec<u8>,
    header_keys: Vec<u8>,
    header_values: Vec<u8>,
}

/// Restores the bytes of `raw` into `scratch` where they are compressed.
fn restore<'a>(raw: &RawBytes<'a>, codec: Codec, scratch: &'a mut Vec<u8>) -> Result<&'a [u8], ColumnsError> {
    if codec == Codec::None {
        return Ok(raw.bytes);
    }
    let len = raw.offsets.last().map_or(0, |end| end.to_native() as usize);
    codec.restore(raw.bytes, len, scratch).map_err(ColumnsError::Compression)?;
    Ok(scratch)
}

/// A checked column of byte strings.
#[derive(Clone, Copy, Debug)]
struct Bytes<'a> {
    offsets: &'a [u32_ule],
    bytes: &'a [u8],
    nulls: &'a [u8],
}

impl<'a> Bytes<'a> {
    /// Entry `index`, which the caller has checked to be below the count.
    fn entry(&self, index: usize) -> Option<&'a [u8]> {
        if !self.nulls.is_empty() && is_null(self.nulls, index) {
            return None;
        }
        let (start, end) = (self.offsets[index].to_native() as usize, self.offsets[index + 1].to_native() as usize);
        Some(&self.bytes[start..end])
    }
}

/// A checked columnar payload, read in place.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    base_offset: Offset,
    base_timestamp: Timestamp,
    count: usize,
    values: Bytes<'a>,
    keys: Bytes<'a>,
    timestamp_deltas: &'a [u32_ule],
    offset_deltas: &'a [u32_ule],
    header_offsets: &'a [u32_ule],
    header_keys: Bytes<'a>,
    header_values: Bytes<'a>,
}

/// One record, borrowed from its batch.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its offset.
    pub offset: Offset,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// Its key, where it has one.
    pub key: Option<&'a [u8]>,
    /// Its value, where it has one.
    pub value: Option<&'a [u8]>,
    /// Its headers, in order, duplicates kept.
    pub headers: Headers<'a>,
}

/// The headers of one record.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a> {
    keys: Bytes<'a>,
    values: Bytes<'a>,
    next: usize,
    end: usize,
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.end {
            return None;
        }
        let index = self.next;
        self.next += 1;
        Some((self.keys.entry(index).unwrap_or_default(), self.values.entry(index)))
    }
}

impl<'a> Columns<'a> {
    /// Checks and opens the payload of a columnar batch. Only compressed columns are copied (into `scratch`).
    ///
    /// # Errors
    /// [`ColumnsError`]; any bytes give an answer, and no more is allocated than the codec could have packed into them.
    pub fn open(payload: &'a [u8], header: &BatchHeader, scratch: &'a mut Scratch) -> Result<Self, ColumnsError> {
        let codec = Codec::from_attributes(header.attributes).map_err(ColumnsError::Compression)?;
        let archived = access(payload)?;
        archived.check(header, codec)?;
        let Scratch { values, keys, header_keys, header_values } = scratch;
        let (raw_values, raw_keys) = (archived.value_column(), archived.key_column());
        let [raw_header_keys, raw_header_values] = archived.header_columns();
        let bytes = |raw: RawBytes<'a>, scratch: &'a mut Vec<u8>| {
            let bytes = restore(&raw, codec, scratch)?;
            Ok(Bytes { offsets: raw.offsets, bytes, nulls: raw.nulls })
        };
        Ok(Self {
            base_offset: header.leader.base_offset,
            base_timestamp: header.base_timestamp,
            count: header.record_count as usize,
            values: bytes(raw_values, values)?,
            keys: bytes(raw_keys, keys)?,
            timestamp_deltas: if header.attributes & LOG_APPEND_TIME == 0 { &archived.timestamp_deltas } else { &[] },
            offset_deltas: &archived.offset_deltas,
            header_offsets: &archived.header_offsets,
            header_keys: bytes(raw_header_keys, header_keys)?,
            header_values: bytes(raw_header_values, header_values)?,
        })
    }

    /// Records in the batch.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The record at `index`, or `None` beyond the last.
    #[must_use]
    pub fn record(&self, index: usize) -> Option<Record<'a>> {
        if index >= self.count {
            return None;
        }
        let offset_delta = self.offset_deltas.get(index).map_or(index as u64, |delta| u64::from(delta.to_native()));
        let timestamp_delta = self.timestamp_deltas.get(index).map_or(0, |delta| i64::from(delta.to_native()));
        let (next, end) = match self.header_offsets.get(index..index + 2) {
            Some(ends) => (ends[0].to_native() as usize, ends[1].to_native() as usize),
            None => (0, 0),
        };
        Some(Record {
            offset: self.base_offset.advance(offset_delta),
            timestamp: Timestamp(self.base_timestamp.0 + timestamp_delta),
            key: if self.keys.offsets.is_empty() { None } else { self.keys.entry(index) },
            value: self.values.entry(index),
            headers: Headers { keys: self.header_keys, values: self.header_values, next, end },
        })
    }

    /// All records in order.
    pub fn records(&self) -> impl Iterator<Item = Record<'a>> + use<'a> {
        let columns = *self;
        (0..columns.count).filter_map(move |index| columns.record(index))
    }

    /// All values in order: two loads and a slice each.
    pub fn values(&self) -> impl Iterator<Item = Option<&'a [u8]>> + use<'a> {
        let Bytes { offsets, bytes, nulls } = self.values;
        offsets.windows(2).enumerate().map(move |(index, ends)| {
            if !nulls.is_empty() && is_null(nulls, index) {
                return None;
            }
            Some(&bytes[ends[0].to_native() as usize..ends[1].to_native() as usize])
        })
    }
}

/// The payload's vectors are what the format says they are.
const _: () = assert!(size_of::<ArchivedVec<u8>>() == 8);
