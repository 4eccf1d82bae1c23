//! Builds a columnar record batch in one buffer; knows nothing of partitions, sockets or leaders.
//!
//! Values are appended straight to the output, behind room for the header, so that each payload byte is copied once
//! between the caller and the wire; the ends and the rare columns follow when the batch is finished. Nothing is
//! allocated per record: the buffers keep their capacity from batch to batch.

use super::ColumnsV1;
use crate::batch::{BatchHeader, BatchType, Encoding, HEADER_BYTES, LeaderFields};
use crate::compression::{Codec, CompressionError};
use crate::ids::{ProducerId, Timestamp};
use crate::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, RECORD_HEADERS_MAX};
use rkyv::rancor::{Failure, Fallible};
use rkyv::ser::allocator::SubAllocator;
use rkyv::ser::{Positional, Writer};
use rkyv::vec::{ArchivedVec, VecResolver};
use rkyv::{Archive, Place, Serialize};
use std::fmt;

/// A record as a producer has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewRecord<'a> {
    /// When it happened.
    pub timestamp: Timestamp,
    /// Its key, if any.
    pub key: Option<&'a [u8]>,
    /// Its value; `None` is a tombstone on a compacted topic.
    pub value: Option<&'a [u8]>,
    /// Headers in order; duplicates are kept.
    pub headers: &'a [(&'a [u8], Option<&'a [u8]>)],
}

/// Why a record was not taken. The builder is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// The batch has no room for it: finish this batch and push again.
    Full,
    /// It fits no batch of the size the builder was made for.
    TooLarge {
        /// Bytes that a batch of it alone would have at least.
        bytes: usize,
        /// Bytes a batch may have.
        max: usize,
    },
    /// More than 1,000 headers.
    TooManyHeaders,
    /// A column could not be compressed.
    Compression(CompressionError),
    /// There is no record in the batch.
    Empty,
}

impl fmt::Display for BuildError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(formatter, "batch is full"),
            Self::TooLarge { bytes, max } => {
                write!(formatter, "record needs a batch of {bytes} bytes, at most {max} allowed")
            }
            Self::TooManyHeaders => write!(formatter, "record has more than {RECORD_HEADERS_MAX} headers"),
            Self::Compression(error) => error.fmt(formatter),
            Self::Empty => write!(formatter, "batch has no record"),
        }
    }
}

impl std::error::Error for BuildError {}

/// Bytes that already lie in the output: archives as a vector, serializes to nothing.
struct Placed {
    position: usize,
    len: usize,
}

impl Archive for Placed {
    type Archived = ArchivedVec<u8>;
    type Resolver = VecResolver;

    fn resolve(&self, resolver: Self::Resolver, out: Place<Self::Archived>) {
        ArchivedVec::resolve_from_len(self.len, resolver, out);
    }
}

impl<S: Fallible + Positional + Writer + ?Sized> Serialize<S> for Placed {
    fn serialize(&self, _: &mut S) -> Result<Self::Resolver, S::Error> {
        Ok(VecResolver::from_pos(self.position))
    }
}

/// A growing column of byte strings.
#[derive(Debug, Default)]
struct Column {
    offsets: Vec<u32>,
    bytes: Vec<u8>,
    nulls: Vec<u8>,
}

impl Column {
    /// Entry number `index`; the columns before it are filled in when this is the first that is there.
    fn push(&mut self, index: usize, entry: Option<&[u8]>) {
        if self.offsets.is_empty() {
            self.offsets.resize(index + 1, 0);
            if index > 0 {
                (0..index).for_each(|earlier| set_null(&mut self.nulls, earlier));
            }
        }
        match entry {
            Some(bytes) => self.bytes.extend_from_slice(bytes),
            None => set_null(&mut self.nulls, index),
        }
        self.offsets.push(self.bytes.len() as u32);
    }

    fn clear(&mut self) {
        self.offsets.clear();
        self.bytes.clear();
        self.nulls.clear();
    }

    /// The null bits, as long as `count` entries want them, or empty where there is no null.
    fn take_nulls(&mut self, count: usize) -> Vec<u8> {
        if !self.nulls.is_empty() {
            self.nulls.resize(count.div_ceil(8), 0);
        }
        std::mem::take(&mut self.nulls)
    }

    /// Compresses the bytes in place.
    fn pack(&mut self, codec: Codec) -> Result<(), CompressionError> {
        if codec == Codec::None || self.bytes.is_empty() {
            return Ok(());
        }
        let mut packed = Vec::new();
        codec.compress(&self.bytes, &mut packed)?;
        self.bytes = packed;
        Ok(())
    }
}

fn set_null(nulls: &mut Vec<u8>, index: usize) {
    if nulls.len() <= index / 8 {
        nulls.resize(index / 8 + 1, 0);
    }
    nulls[index / 8] |= 1 << (index % 8);
}

/// Collects records and makes batches of them.
#[derive(Debug)]
pub struct BatchBuilder {
    codec: Codec,
    batch_bytes_max: usize,
    out: Vec<u8>,
    value_offsets: Vec<u32>,
    value_nulls: Vec<u8>,
    keys: Column,
    timestamps: Vec<Timestamp>,
    first_timestamp: Timestamp,
    same_timestamp: bool,
    least: Timestamp,
    greatest: Timestamp,
    header_ends: Vec<u32>,
    header_keys: Column,
    header_values: Column,
    side_bytes: usize,
}

/// Bytes of a batch of one record beside its own: header, root, two ends.
const FIXED_BYTES: usize = HEADER_BYTES + super::ROOT_BYTES + 8;

impl BatchBuilder {
    /// A builder of batches of at most `batch_bytes_max` bytes before compression, header included.
    #[must_use]
    pub fn new(codec: Codec, batch_bytes_max: usize) -> Self {
        let mut builder = Self {
            codec,
            batch_bytes_max: batch_bytes_max.min(BATCH_BYTES_MAX),
            out: Vec::new(),
            value_offsets: Vec::new(),
            value_nulls: Vec::new(),
            keys: Column::default(),
            timestamps: Vec::new(),
            first_timestamp: Timestamp(0),
            same_timestamp: true,
            least: Timestamp(i64::MAX),
            greatest: Timestamp(i64::MIN),
            header_ends: Vec::new(),
            header_keys: Column::default(),
            header_values: Column::default(),
            side_bytes: 0,
        };
        builder.clear();
        builder
    }

    /// Records taken so far.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.value_offsets.len() - 1
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the batch would have now, uncompressed.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.out.len() + self.side_bytes + super::ROOT_BYTES + self.value_offsets.len() * 4
    }

    /// Takes a record: copies its value once, into the batch.
    ///
    /// # Errors
    /// [`BuildError`]; the builder is then as before.
    pub fn push(&mut self, record: &NewRecord<'_>) -> Result<(), BuildError> {
        let value = record.value.unwrap_or_default();
        let side = self.side_cost(record)?;
        let needed = value.len() + side + 4;
        if self.bytes() + needed > self.batch_bytes_max {
            let alone = FIXED_BYTES + needed;
            let hopeless = self.is_empty() || alone > self.batch_bytes_max;
            return Err(if hopeless {
                BuildError::TooLarge { bytes: alone, max: self.batch_bytes_max }
            } else {
                BuildError::Full
            });
        }
        if self.len() >= BATCH_RECORDS_MAX as usize || !self.spans(record.timestamp) {
            return Err(BuildError::Full);
        }
        let index = self.len();
        self.push_timestamp(index, record.timestamp);
        self.out.extend_from_slice(value);
        self.value_offsets.push((self.out.len() - HEADER_BYTES) as u32);
        if record.value.is_none() {
            set_null(&mut self.value_nulls, index);
        }
        if record.key.is_some() || !self.keys.offsets.is_empty() {
            self.keys.push(index, record.key);
        }
        if !record.headers.is_empty() || !self.header_ends.is_empty() {
            self.push_headers(index, record.headers);
        }
        self.side_bytes += side;
        Ok(())
    }

    /// Bytes that keys, timestamps, headers of `record` may take, nulls and late columns included.
    fn side_cost(&self, record: &NewRecord<'_>) -> Result<usize, BuildError> {
        if record.headers.len() > RECORD_HEADERS_MAX as usize {
            return Err(BuildError::TooManyHeaders);
        }
        let plain = record.key.is_none() && record.headers.is_empty() && self.keys.offsets.is_empty();
        if plain
            && record.value.is_some()
            && self.value_nulls.is_empty()
            && self.header_ends.is_empty()
            && self.timestamps.is_empty()
            && (record.timestamp == self.first_timestamp || self.is_empty())
        {
            return Ok(0);
        }
        // Generous: each column that this record may bring into being is counted for every record so far, and for the
        // zero that its ends begin with. Headers bring three such columns.
        let late = |present: bool, wanted: bool| if wanted && !present { (self.len() + 2) * 5 } else { 5 };
        let key = record.key.map_or(0, <[u8]>::len) + late(!self.keys.offsets.is_empty(), record.key.is_some());
        let timestamp = late(!self.timestamps.is_empty(), record.timestamp != self.first_timestamp);
        let headers =
            record.headers.iter().map(|(key, value)| key.len() + value.map_or(0, <[u8]>::len) + 13).sum::<usize>()
                + late(!self.header_ends.is_empty(), !record.headers.is_empty())
                + if self.header_ends.is_empty() && !record.headers.is_empty() { 8 } else { 0 };
        // Null bits cost a byte for eight records once the first null is there: the 2 bytes of each cover them after.
        let first_null = |is_null: bool, nulls: &[u8]| if is_null && nulls.is_empty() { self.len() / 8 + 1 } else { 0 };
        let nulls = first_null(record.value.is_none(), &self.value_nulls)
            + first_null(record.key.is_none() && !self.keys.offsets.is_empty(), &self.keys.nulls);
        Ok(key + timestamp + headers + nulls + 2)
    }

    /// Whether all timestamps stay within 2³² ms of each other.
    fn spans(&self, timestamp: Timestamp) -> bool {
        let (least, greatest) = (self.least.min(timestamp), self.greatest.max(timestamp));
        greatest.0.checked_sub(least.0).is_some_and(|span| u32::try_from(span).is_ok())
    }

    fn push_timestamp(&mut self, index: usize, timestamp: Timestamp) {
        if index == 0 {
            self.first_timestamp = timestamp;
        } else if self.same_timestamp && timestamp != self.first_timestamp {
            self.same_timestamp = false;
            self.timestamps.resize(index, self.first_timestamp);
        }
        if !self.same_timestamp {
            self.timestamps.push(timestamp);
        }
        self.least = self.least.min(timestamp);
        self.greatest = self.greatest.max(timestamp);
    }

    fn push_headers(&mut self, index: usize, headers: &[(&[u8], Option<&[u8]>)]) {
        if self.header_ends.is_empty() {
            self.header_ends.resize(index + 1, 0);
            self.header_keys.offsets.push(0);
            self.header_values.offsets.push(0);
        }
        for (key, value) in headers {
            let at = self.header_keys.offsets.len() - 1;
            self.header_keys.push(at, Some(key));
            self.header_values.push(at, *value);
        }
        self.header_ends.push((self.header_keys.offsets.len() - 1) as u32);
    }

    /// Makes the batch: header and payload, ready for the wire. The builder is empty afterwards and keeps the
    /// capacity of what it gives away only through [`BatchBuilder::recycle`].
    ///
    /// # Errors
    /// [`BuildError::Empty`], or [`BuildError::Compression`] after which the records are gone.
    pub fn finish(&mut self) -> Result<Vec<u8>, BuildError> {
        if self.is_empty() {
            return Err(BuildError::Empty);
        }
        let count = self.len();
        let header = self.header(count);
        let packed = self.pack();
        if let Err(error) = packed {
            self.clear();
            return Err(BuildError::Compression(error));
        }
        let mut columns = self.columns(count);
        let mut out = rkyv::api::low::to_bytes_in_with_alloc::<_, _, Failure>(
            &columns,
            std::mem::take(&mut self.out),
            SubAllocator::empty(),
        )
        .expect("a vector takes every archive");
        let payload_len = (out.len() - HEADER_BYTES) as u32;
        let (head, payload) = out.split_first_chunk_mut::<HEADER_BYTES>().expect("room for the header comes first");
        BatchHeader { payload_len, payload_crc: crc32fast::hash(payload), ..header }.encode(head);
        self.value_offsets = std::mem::take(&mut columns.value_offsets);
        self.keys.bytes = std::mem::take(&mut columns.keys);
        self.keys.offsets = std::mem::take(&mut columns.key_offsets);
        self.clear();
        Ok(out)
    }

    /// Gives back the buffer of a batch that has been sent, so that the next one allocates nothing.
    pub fn recycle(&mut self, batch: Vec<u8>) {
        if self.is_empty() && batch.capacity() > self.out.capacity() {
            self.out = batch;
            self.clear();
        }
    }

    fn header(&self, count: usize) -> BatchHeader {
        BatchHeader {
            encoding: Encoding::Columnar,
            batch_type: BatchType::Data,
            header_crc: 0,
            payload_crc: 0,
            payload_len: 0,
            leader: LeaderFields::default(),
            offset_count: count as u32,
            record_count: count as u32,
            base_timestamp: self.least,
            max_timestamp: self.greatest,
            producer_id: ProducerId::NONE,
            base_sequence: -1,
            producer_epoch: -1,
            attributes: self.codec.attributes(),
        }
    }

    fn pack(&mut self) -> Result<(), CompressionError> {
        if self.codec == Codec::None {
            return Ok(());
        }
        if self.out.len() > HEADER_BYTES {
            let mut packed = vec![0; HEADER_BYTES];
            self.codec.compress(&self.out[HEADER_BYTES..], &mut packed)?;
            self.out = packed;
        }
        for column in [&mut self.keys, &mut self.header_keys, &mut self.header_values] {
            column.pack(self.codec)?;
        }
        Ok(())
    }

    fn columns(&mut self, count: usize) -> ColumnsV1<Placed> {
        let headers = self.header_ends.last().map_or(0, |end| *end as usize);
        if !self.value_nulls.is_empty() {
            self.value_nulls.resize(count.div_ceil(8), 0);
        }
        let least = self.least;
        ColumnsV1 {
            values: Placed { position: HEADER_BYTES, len: self.out.len() - HEADER_BYTES },
            value_offsets: std::mem::take(&mut self.value_offsets),
            value_nulls: std::mem::take(&mut self.value_nulls),
            key_nulls: self.keys.take_nulls(count),
            keys: std::mem::take(&mut self.keys.bytes),
            key_offsets: std::mem::take(&mut self.keys.offsets),
            timestamp_deltas: self.timestamps.iter().map(|timestamp| (timestamp.0 - least.0) as u32).collect(),
            offset_deltas: Vec::new(),
            header_offsets: std::mem::take(&mut self.header_ends),
            header_keys: std::mem::take(&mut self.header_keys.bytes),
            header_key_offsets: std::mem::take(&mut self.header_keys.offsets),
            header_value_nulls: self.header_values.take_nulls(headers),
            header_values: std::mem::take(&mut self.header_values.bytes),
            header_value_offsets: std::mem::take(&mut self.header_values.offsets),
        }
    }

    fn clear(&mut self) {
        self.out.clear();
        self.out.resize(HEADER_BYTES, 0);
        self.value_offsets.clear();
        self.value_offsets.push(0);
        self.value_nulls.clear();
        self.timestamps.clear();
        self.header_ends.clear();
        [&mut self.keys, &mut self.header_keys, &mut self.header_values].into_iter().for_each(Column::clear);
        self.same_timestamp = true;
        self.least = Timestamp(i64::MAX);
        self.greatest = Timestamp(i64::MIN);
        self.side_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{EntryError, check_entry};
    use crate::columns::{Columns, Scratch};
    use crate::limits::BATCH_BYTES_DEFAULT_MAX;

    type OwnedHeaders = Vec<(Vec<u8>, Option<Vec<u8>>)>;
    type Owned = (i64, Option<Vec<u8>>, Option<Vec<u8>>, OwnedHeaders);

    /// xorshift64*, so that a failing seed can be replayed.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
        }

        fn bytes(&mut self, max: u64) -> Vec<u8> {
            (0..self.below(max)).map(|_| self.below(4) as u8).collect()
        }

        fn maybe(&mut self, one_in: u64, max: u64) -> Option<Vec<u8>> {
            (one_in > 0 && self.below(one_in) == 0).then(|| self.bytes(max))
        }

        fn record(&mut self, shape: u64) -> Owned {
            let timestamp = if shape & 1 == 0 { 1_000 } else { 1_000 - self.below(50) as i64 };
            let key = self.maybe(if shape & 2 == 0 { 0 } else { 2 }, 9);
            let value = if shape & 4 != 0 && self.below(3) == 0 { None } else { Some(self.bytes(40)) };
            let headers = if shape & 8 != 0 { self.below(4) } else { 0 };
            (timestamp, key, value, (0..headers).map(|_| (self.bytes(5), self.maybe(2, 6))).collect())
        }
    }

    fn push(builder: &mut BatchBuilder, (timestamp, key, value, headers): &Owned) -> Result<(), BuildError> {
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            headers.iter().map(|(key, value)| (key.as_slice(), value.as_deref())).collect();
        let (key, value) = (key.as_deref(), value.as_deref());
        builder.push(&NewRecord { timestamp: Timestamp(*timestamp), key, value, headers: &headers })
    }

    fn read(batch: &[u8]) -> Vec<Owned> {
        let header = BatchHeader::decode(batch).unwrap();
        let mut scratch = Scratch::default();
        let columns = Columns::open(&batch[HEADER_BYTES..], &header, &mut scratch).unwrap();
        let values: Vec<Option<Vec<u8>>> = columns.values().map(|value| value.map(<[u8]>::to_vec)).collect();
        let records: Vec<Owned> = columns
            .records()
            .enumerate()
            .map(|(index, record)| {
                assert_eq!(record.offset.0, index as u64);
                let headers = record.headers.map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))).collect();
                (record.timestamp.0, record.key.map(<[u8]>::to_vec), record.value.map(<[u8]>::to_vec), headers)
            })
            .collect();
        assert!(values.iter().zip(&records).all(|(value, record)| *value == record.2));
        records
    }

    #[test]
    fn what_is_built_is_accepted_and_reads_back_the_same_in_every_shape_and_codec() {
        for seed in 1..=400_u64 {
            let mut random = Random(seed);
            let codec = [Codec::None, Codec::Lz4, Codec::Zstd][random.below(3) as usize];
            let shape = random.below(16);
            let records: Vec<Owned> = (0..=random.below(60)).map(|_| random.record(shape)).collect();
            let mut builder = BatchBuilder::new(codec, BATCH_BYTES_DEFAULT_MAX);
            for round in 0..2 {
                records.iter().for_each(|record| push(&mut builder, record).unwrap());
                let promised = builder.bytes();
                let batch = builder.finish().unwrap();
                check_entry(&batch, BATCH_BYTES_DEFAULT_MAX).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                assert!(codec != Codec::None || batch.len() <= promised, "seed {seed}: {} > {promised}", batch.len());
                assert_eq!(read(&batch), records, "seed {seed}, round {round}, shape {shape}");
                builder.recycle(batch);
            }
        }
    }

    #[test]
    fn a_thousand_records_of_equal_shape_cost_less_than_six_bytes_each() {
        let mut builder = BatchBuilder::new(Codec::None, BATCH_BYTES_DEFAULT_MAX);
        let value = [7_u8; 100];
        (0..1_000).for_each(|_| builder.push(&NewRecord { value: Some(&value), ..NewRecord::default() }).unwrap());
        let batch = builder.finish().unwrap();
        assert_eq!(batch.len(), 128 + 1_000 * 100 + 1_001 * 4 + 112);
        assert!((batch.len() - 100_000) / 1_000 < 6);
    }

    #[test]
    fn a_full_batch_takes_no_more_and_a_record_too_large_for_any_is_refused_as_such() {
        let mut builder = BatchBuilder::new(Codec::None, 1_000);
        let large = [1_u8; 990];
        let small = [1_u8; 300];
        let record = |value| NewRecord { value: Some(value), ..NewRecord::default() };
        assert!(matches!(builder.push(&record(&large)), Err(BuildError::TooLarge { max: 1_000, .. })));
        assert_eq!(builder.push(&record(&small)), Ok(()));
        assert_eq!(builder.push(&record(&small)), Ok(()));
        assert_eq!(builder.push(&record(&small)), Err(BuildError::Full));
        assert_eq!(builder.len(), 2);
        let late = NewRecord { timestamp: Timestamp(1 << 40), ..record(&[]) };
        assert_eq!(builder.push(&late), Err(BuildError::Full), "timestamps too far apart");
        assert!(builder.finish().unwrap().len() <= 1_000);
        assert_eq!(builder.finish(), Err(BuildError::Empty));
        let headers = vec![(&b"k"[..], None); 1_001];
        let many = NewRecord { headers: &headers, ..record(&[]) };
        assert_eq!(builder.push(&many), Err(BuildError::TooManyHeaders));
    }

    #[test]
    fn null_bits_and_columns_that_come_late_are_counted_before_they_are_there() {
        let value = Some(&b"v"[..]);
        let first = NewRecord { key: Some(b"k"), value, headers: &[(b"h", Some(b"x"))], ..NewRecord::default() };
        let null = NewRecord::default();
        for (first, others) in [(first, 0), (null, 4_000)] {
            let mut builder = BatchBuilder::new(Codec::None, BATCH_BYTES_DEFAULT_MAX);
            builder.push(&first).unwrap();
            (0..others).for_each(|_| builder.push(&NewRecord { value, ..null }).unwrap());
            let promised = builder.bytes();
            let built = builder.finish().unwrap().len();
            assert!(built <= promised, "a batch of {built} bytes was counted as {promised}");
        }
    }

    #[test]
    fn ten_thousand_small_records_with_keys_fit_one_batch() {
        let mut builder = BatchBuilder::new(Codec::None, BATCH_BYTES_DEFAULT_MAX);
        let record = NewRecord { key: Some(b"key"), value: Some(b"value"), ..NewRecord::default() };
        (0..10_000).for_each(|_| builder.push(&record).unwrap());
        assert_eq!(builder.finish().unwrap().len(), 128 + 10_000 * 8 + 2 * 10_001 * 4 + 112);
    }

    #[test]
    fn any_flipped_or_missing_byte_of_a_produced_batch_is_refused() {
        let mut random = Random(77);
        let mut builder = BatchBuilder::new(Codec::None, BATCH_BYTES_DEFAULT_MAX);
        (0..20).for_each(|_| push(&mut builder, &random.record(15)).unwrap());
        let batch = builder.finish().unwrap();
        for position in 0..batch.len() {
            for bit in 0..8 {
                let mut damaged = batch.clone();
                damaged[position] ^= 1 << bit;
                assert!(check_entry(&damaged, BATCH_BYTES_DEFAULT_MAX).is_err(), "byte {position} bit {bit}");
            }
            assert!(check_entry(&batch[..position], BATCH_BYTES_DEFAULT_MAX).is_err());
        }
        let long = [batch.as_slice(), &[0]].concat();
        assert!(matches!(check_entry(&long, BATCH_BYTES_DEFAULT_MAX), Err(EntryError::Length { .. })));
        assert!(matches!(check_entry(&batch, 200), Err(EntryError::TooLarge { max: 200, .. })));
    }

    /// A peer that computes CRCs well over nonsense: bytes of a good payload changed, both CRCs made right again.
    #[test]
    fn nonsense_with_right_checksums_gives_a_typed_error_or_a_readable_batch() {
        for seed in 1..=3_000_u64 {
            let mut random = Random(seed);
            let codec = [Codec::None, Codec::Lz4, Codec::Zstd][random.below(3) as usize];
            let mut builder = BatchBuilder::new(codec, BATCH_BYTES_DEFAULT_MAX);
            let shape = random.below(16);
            (0..=random.below(10)).for_each(|_| push(&mut builder, &random.record(shape)).unwrap());
            let mut batch = builder.finish().unwrap();
            let mut header = BatchHeader::decode(&batch).unwrap();
            for _ in 0..=random.below(3) {
                let at = HEADER_BYTES + random.below((batch.len() - HEADER_BYTES) as u64) as usize;
                batch[at] = random.below(256) as u8;
            }
            header.payload_crc = crc32fast::hash(&batch[HEADER_BYTES..]);
            header.record_count = header.record_count.saturating_sub(random.below(2) as u32).max(1);
            header.encode(batch.first_chunk_mut().unwrap());
            let mut scratch = Scratch::default();
            if check_entry(&batch, BATCH_BYTES_DEFAULT_MAX).is_ok() {
                let header = BatchHeader::decode(&batch).unwrap();
                if let Ok(columns) = Columns::open(&batch[HEADER_BYTES..], &header, &mut scratch) {
                    let read = columns.records().map(|record| record.headers.count()).sum::<usize>();
                    assert!(read <= batch.len() * 64, "seed {seed}");
                }
            }
        }
    }
}
