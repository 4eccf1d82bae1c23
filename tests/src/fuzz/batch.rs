//! The body of the target `batch`: headers, columns, codecs and the builder; knows no log and no partition.
//!
//! The first byte says what the rest is: a batch, a payload, a compressed column, or records for the builder. Checksums
//! are put right where they would only hide what is behind them.

use super::input::Input;
use super::memory::{assert_counted, within};
use coulee_protocol::batch::{self, BatchHeader, BatchType, Encoding, HEADER_BYTES, LeaderFields};
use coulee_protocol::columns::builder::{BatchBuilder, BuildError, NewRecord};
use coulee_protocol::columns::{Columns, ColumnsError, Record, Scratch};
use coulee_protocol::compression::Codec;
use coulee_protocol::ids::{Offset, ProducerId, Timestamp};
use coulee_protocol::limits::{BATCH_BYTES_MAX, COLUMN_BYTES_MAX, RECORD_HEADERS_MAX};

/// What zstd's error holds: its message.
const ERROR_BYTES: usize = 256;

/// What a codec may make of a byte at most; the four columns of a batch together stay within it, too.
fn restored_bytes_max(codec: Codec, packed: usize) -> usize {
    let ratio = match codec {
        Codec::None => 0,
        Codec::Lz4 => 255,
        Codec::Zstd => 32 << 10,
    };
    (packed * ratio).min(4 * COLUMN_BYTES_MAX) + if codec == Codec::None { 0 } else { ERROR_BYTES }
}

/// What the builder may hold for each byte of the input, the copies of records that are compared included.
const BUILD_RATIO: usize = 256;
/// What it may hold beyond that: the tables of lz4, the smallest buffers.
const BUILD_BYTES: usize = 128 << 10;

const CODECS: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];

/// Reads `bytes` as the first of them says.
///
/// # Panics
/// When a property breaks: a length is believed, a check and a reader disagree, or what was built does not come back.
pub fn batch(bytes: &[u8]) {
    assert_counted();
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => whole(rest),
        1 => payload(Input(rest)),
        2 => column(Input(rest)),
        _ => {
            let bound = BUILD_RATIO * rest.len() + BUILD_BYTES;
            within(bound, "building batches", || build(Input(rest)));
        }
    }
}

/// A batch as it came, and the same with its lengths and checksums put right.
fn whole(bytes: &[u8]) {
    entry(bytes);
    let Some((head, payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return };
    let mut head = *head;
    head[..4].copy_from_slice(b"CLRB");
    head[12..16].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    head[16..20].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    head[20..24].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let crc = crc32fast::hash(&[&head[..8], &head[12..]].concat());
    head[8..12].copy_from_slice(&crc.to_le_bytes());
    entry(&[&head[..], payload].concat());
}

/// Whatever the bytes: a header that decodes encodes to itself, and what passes the checks can be read.
fn entry(bytes: &[u8]) {
    let checked = within(0, "checking an entry", || batch::check_entry(bytes, BATCH_BYTES_MAX));
    let Ok(header) = within(0, "decoding a batch header", || BatchHeader::decode(bytes)) else {
        assert!(checked.is_err());
        return;
    };
    let mut again = [0; HEADER_BYTES];
    assert_eq!(header.encode(&mut again), header);
    assert_eq!(&again[..], &bytes[..HEADER_BYTES]);
    assert_eq!(header.end_offset().0 - header.leader.base_offset.0, u64::from(header.offset_count));
    if let Ok(checked) = checked {
        assert_eq!((checked, header.batch_len()), (header, bytes.len()));
    }
    let Some(payload) = bytes.get(HEADER_BYTES..header.batch_len()) else { return };
    let opened = open(&header, payload);
    if checked.is_ok() {
        assert!(matches!(opened, Ok(()) | Err(ColumnsError::Compression(_))), "{opened:?} of what was checked");
    }
}

/// Opens a payload and reads all of it. Reading allocates nothing.
fn open(header: &BatchHeader, payload: &[u8]) -> Result<(), ColumnsError> {
    let codec = Codec::from_attributes(header.attributes).unwrap_or_default();
    let mut scratch = Scratch::default();
    let bound = restored_bytes_max(codec, payload.len());
    let columns = within(bound, "opening columns", || Columns::open(payload, header, &mut scratch))?;
    assert_eq!(columns.len(), header.record_count as usize);
    within(0, "reading records", || {
        let (mut next, mut values) = (header.leader.base_offset, columns.values());
        for record in columns.records() {
            assert!(record.offset >= next && record.offset < header.end_offset());
            next = record.offset.advance(1);
            assert!(record.timestamp >= header.base_timestamp && record.timestamp <= header.max_timestamp);
            assert_eq!(values.next(), Some(record.value));
            assert!(record.headers.count() <= RECORD_HEADERS_MAX as usize);
        }
        assert_eq!(values.next(), None);
        assert!(columns.record(columns.len()).is_none());
    });
    again(codec, &columns);
    Ok(())
}

/// What was read can be built anew and reads the same.
fn again(codec: Codec, columns: &Columns<'_>) {
    let mut builder = BatchBuilder::new(codec, BATCH_BYTES_MAX);
    let records: Vec<Owned> = columns.records().take(64).map(Owned::of).collect();
    let taken = records.iter().take_while(|record| record.push(&mut builder).is_ok()).count();
    if taken > 0 {
        check_built(&mut builder, &records[..taken], BATCH_BYTES_MAX);
    }
}

/// A header from 32 bytes, the rest its payload.
fn payload(mut input: Input<'_>) {
    let attributes = u16::from(input.u8());
    let base_timestamp = Timestamp(input.u64() as i64);
    let (record_count, offset_count) = (input.u32(), input.u32());
    let (base_offset, span) = (input.u64(), input.u32());
    let max_timestamp = Timestamp(base_timestamp.0.saturating_add(i64::from(span)));
    let leader = LeaderFields { base_offset: Offset(base_offset), ..LeaderFields::default() };
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend_from_slice(input.0);
    let (head, payload) = bytes.split_first_chunk_mut::<HEADER_BYTES>().expect("room for the header comes first");
    let header = BatchHeader {
        encoding: Encoding::Columnar,
        batch_type: BatchType::Data,
        header_crc: 0,
        payload_crc: crc32fast::hash(payload),
        payload_len: payload.len() as u32,
        leader,
        offset_count,
        record_count,
        base_timestamp,
        max_timestamp,
        producer_id: ProducerId::NONE,
        base_sequence: -1,
        producer_epoch: -1,
        attributes,
    };
    header.encode(head);
    entry(&bytes);
}

/// A column that claims a length: restored it has that length, and packed again it comes back.
fn column(mut input: Input<'_>) {
    let codec = CODECS[usize::from(input.u8()) % CODECS.len()];
    let claimed = input.u32() as usize;
    let mut out = Vec::new();
    // A vector of bytes begins with eight.
    let bound = restored_bytes_max(codec, input.0.len()).max(input.0.len()) + 8;
    let restored = within(bound, "restoring a column", || codec.restore(input.0, claimed, &mut out));
    if restored.is_ok() {
        assert_eq!(out.len(), claimed);
    }
    let mut packed = Vec::new();
    if !input.is_empty() {
        codec.compress(input.0, &mut packed).expect("a column of this size is taken");
    }
    codec.restore(&packed, input.0.len(), &mut out).expect("what was packed is restored");
    assert_eq!(out, input.0);
}

/// A record that outlives its batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Owned {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Owned {
    fn of(record: Record<'_>) -> Self {
        Self {
            timestamp: record.timestamp.0,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers.map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))).collect(),
        }
    }

    /// A byte of flags, a timestamp near the last one or anywhere, and byte strings of up to 255 bytes.
    fn read(input: &mut Input<'_>, last: i64) -> Self {
        let flags = input.u8();
        let timestamp = match flags & 3 {
            0 => last,
            1 => last.wrapping_add(i64::from(input.u8())),
            2 => last.wrapping_sub(i64::from(input.u32())),
            _ => input.u64() as i64,
        };
        let mut text = |wanted: bool| {
            wanted.then(|| {
                let len = usize::from(input.u8());
                input.take(len).to_vec()
            })
        };
        let (key, value) = (text(flags & 4 != 0), text(flags & 8 == 0));
        let headers = (0..flags >> 5).map(|_| (text(true).unwrap_or_default(), text(flags & 16 != 0))).collect();
        Self { timestamp, key, value, headers }
    }

    fn push(&self, builder: &mut BatchBuilder) -> Result<(), BuildError> {
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            self.headers.iter().map(|(key, value)| (&key[..], value.as_deref())).collect();
        let (key, value) = (self.key.as_deref(), self.value.as_deref());
        builder.push(&NewRecord { timestamp: Timestamp(self.timestamp), key, value, headers: &headers })
    }
}

/// Records go through the builder and come back, batch by batch.
fn build(mut input: Input<'_>) {
    let codec = CODECS[usize::from(input.u8()) % CODECS.len()];
    let bytes_max = usize::from(input.u16());
    let mut builder = BatchBuilder::new(codec, bytes_max);
    let (mut pending, mut last) = (Vec::new(), 0);
    while !input.is_empty() {
        let record = Owned::read(&mut input, last);
        last = record.timestamp;
        let before = (builder.len(), builder.bytes());
        match record.push(&mut builder) {
            Ok(()) => pending.push(record),
            Err(error) => {
                assert_eq!((builder.len(), builder.bytes()), before, "{error} changed the builder");
                if error == BuildError::Full {
                    check_built(&mut builder, &pending, bytes_max);
                    pending.clear();
                    match record.push(&mut builder) {
                        Ok(()) => pending.push(record),
                        Err(error) => assert!(matches!(error, BuildError::TooLarge { .. }), "{error} when empty"),
                    }
                }
            }
        }
    }
    if pending.is_empty() {
        assert_eq!(builder.finish(), Err(BuildError::Empty));
    } else {
        check_built(&mut builder, &pending, bytes_max);
    }
}

/// Finishes the batch and reads it back; the builder takes its buffer again.
fn check_built(builder: &mut BatchBuilder, records: &[Owned], bytes_max: usize) {
    let bytes = builder.bytes();
    let batch = builder.finish().expect("a builder that has taken records finishes");
    let header = batch::check_entry(&batch, BATCH_BYTES_MAX).expect("a batch that was built passes the checks");
    assert_eq!(header.record_count as usize, records.len());
    if header.attributes & 0b111 == 0 {
        assert!(batch.len() <= bytes_max, "a batch of {} bytes, at most {bytes_max}", batch.len());
        assert!(batch.len() <= bytes, "a batch of {} bytes that was counted as {bytes}", batch.len());
    }
    let mut scratch = Scratch::default();
    let columns = Columns::open(&batch[HEADER_BYTES..], &header, &mut scratch).expect("a batch that was built opens");
    assert!(columns.records().map(Owned::of).eq(records.iter().cloned()), "records have changed");
    builder.recycle(batch);
}
