//! Stored bytes stay: a shard writes fixed batches and its files are compared with golden ones; knows no reader.
//!
//! The files lie in tests/format/golden/storage, laid out as a data directory. golden.json beside them says what they
//! hold, one JSON object a line, for readers in other languages. `COULEE_GOLDEN=write` writes anew.

use coulee_core::block::BlockPool;
use coulee_core::checkpoint::Checkpoint;
use coulee_core::config::TopicConfig;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::disk::{Copy2, FileName};
use coulee_core::executor::Runner;
use coulee_core::limits::BLOCK_BYTES;
use coulee_core::log::Incoming;
use coulee_core::log::index::IndexEntry;
use coulee_core::log::recovery::RecoveryError;
use coulee_core::log::scan::{Chain, Step, Window};
use coulee_core::log::segment::{EpochStart, Footer, HeaderPage, Owner, Trailer, padded_end};
use coulee_core::partition::Acks;
use coulee_core::shard::{Command, Effect, RequestId, ShardOptions};
use coulee_protocol::batch::{BatchHeader, BatchType, Encoding, LOG_APPEND_TIME};
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::compression::Codec;
use coulee_protocol::ids::{ClusterId, LeaderEpoch, Offset, PartitionUid, Timestamp, TopicId};
use std::fmt::Write;
use std::path::PathBuf;

const UID: PartitionUid = PartitionUid(7);
const OWNER: Owner =
    Owner { cluster_id: ClusterId([0xc1; 16]), topic_id: TopicId([0x70; 16]), partition_uid: UID, partition: 2 };
const OPTIONS: ShardOptions = ShardOptions { id: 0, tail_bytes: 256 << 10, pool_bytes: 1 << 20 };
/// The time at which the first record happened.
const BEGIN: i64 = 1_700_000_000_000;

/// One record as it is given to a producer.
#[derive(Clone, Default)]
struct Given {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(&'static str, Option<&'static [u8]>)>,
}

/// One batch as it is given to the shard.
struct Batch {
    codec: Codec,
    on_arrival: bool,
    records: Vec<Given>,
}

fn record(timestamp: i64, key: Option<&str>, value: Option<&[u8]>) -> Given {
    let (key, value) = (key.map(|key| key.as_bytes().to_vec()), value.map(<[u8]>::to_vec));
    Given { timestamp: BEGIN + timestamp, key, value, headers: Vec::new() }
}

/// `bytes` that no codec makes smaller, the same for each `seed`.
fn noise(seed: u32, bytes: usize) -> Vec<u8> {
    let next = |state: &mut u32| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*state >> 24) as u8)
    };
    std::iter::repeat(()).scan(seed, |state, ()| next(state)).take(bytes).collect()
}

/// Twelve records with keys, nulls, headers, and timestamps out of order.
fn mixed(begin: i64) -> Vec<Given> {
    let given = |i: i64| Given {
        timestamp: BEGIN + begin + (i * 7) % 12,
        key: (i % 3 != 0).then(|| format!("key-{}", i % 4).into_bytes()),
        value: (i % 5 != 4).then(|| "the same text again, ".repeat(1 + i as usize % 3).into_bytes()),
        headers: match i % 4 {
            0 => vec![("trace", Some(b"\x00\xff" as &[u8])), ("trace", None), ("", Some(b""))],
            2 => vec![("content-type", Some(b"text/plain"))],
            _ => Vec::new(),
        },
    };
    (0..12).map(given).collect()
}

/// The batches of each run: what a leader epoch appends.
fn runs() -> [Vec<Batch>; 3] {
    let batch = |codec, records| Batch { codec, on_arrival: false, records };
    // The example of docs/STORAGE_FORMAT.md.
    let example =
        vec![record(0, None, Some(b"hello")), Given { headers: vec![("h", Some(b"v"))], ..record(5, Some("k"), None) }];
    let plain = [b"" as &[u8], b"caf\xc3\xa9", b"\"quoted\"\\"];
    let plain = plain.into_iter().map(|value| record(-2_000_000_000_000, None, Some(value))).collect();
    let first = vec![
        batch(Codec::None, example),
        batch(Codec::None, plain),
        batch(Codec::Lz4, mixed(100)),
        batch(Codec::None, vec![record(200, Some("large"), Some(&noise(1, 37_000)))]),
    ];
    let arrival =
        Batch { on_arrival: true, ..batch(Codec::None, vec![record(1, None, Some(b"a")), record(9, None, None)]) };
    // Does not fit behind the large one: the second segment begins.
    let rolling = batch(Codec::None, (0..4).map(|i| record(300 + i, None, Some(&noise(2, 2_000)))).collect());
    let second = vec![batch(Codec::Zstd, mixed(250)), arrival, rolling, batch(Codec::Lz4, mixed(400))];
    let large = (0..9).map(|i| record(500, None, Some(&noise(3 + i, 4_000)))).collect();
    let third = vec![
        batch(Codec::Lz4, large),
        batch(Codec::Zstd, mixed(600)),
        batch(Codec::None, vec![record(700, Some("tombstone"), None)]),
    ];
    [first, second, third]
}

fn built(batch: &Batch) -> Vec<u8> {
    let mut builder = BatchBuilder::new(batch.codec, 1 << 20);
    for record in &batch.records {
        let headers: Vec<_> = record.headers.iter().map(|(key, value)| (key.as_bytes(), *value)).collect();
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let record = NewRecord { timestamp: Timestamp(record.timestamp), key, value, headers: &headers };
        builder.push(&record).expect("the batch has room");
    }
    builder.finish().expect("the batch has records")
}

/// The topic's configuration for `batch`: segments of 64 KiB.
fn config(on_arrival: bool) -> TopicConfig {
    let timestamps = if on_arrival { "LogAppendTime" } else { "CreateTime" };
    TopicConfig::parse([("segment.bytes", "65536"), ("message.timestamp.type", timestamps)]).expect("known keys")
}

/// Appends each run's batches with a shard of its own, which is stopped before the next one starts.
fn written() -> MemoryDisk {
    let disk = MemoryDisk::new();
    for batches in runs() {
        let mut runner = Runner::start(disk.clone(), OPTIONS, 1).expect("a disk in memory");
        runner.command(Command::Open(OWNER, config(false)));
        let opened = runner.wait_for(|effect| matches!(effect, Effect::Opened(_, Ok(_))).then_some(()));
        assert!(opened.is_some(), "the partition opens");
        for (number, batch) in batches.iter().enumerate() {
            runner.command(Command::Alter(UID, config(batch.on_arrival)));
            let bytes = built(batch);
            let mut block = BlockPool::new(0).take(bytes.len());
            block.extend(&bytes);
            let (request, batch) = (RequestId(number as u64), Incoming::Owned(block));
            runner.command(Command::Produce { request, partition: UID, acks: Acks::Acknowledged, batch });
            let acked = runner.wait_for(|effect| matches!(effect, Effect::Produced(_, Ok(_))).then_some(()));
            assert!(acked.is_some(), "batch {number} is acknowledged");
        }
        runner.command(Command::Stop);
        assert!(runner.wait_for(|effect| matches!(effect, Effect::Stopped).then_some(())).is_some(), "the shard stops");
    }
    disk
}

/// The files that hold data.
fn files() -> Vec<(FileName, Vec<u8>)> {
    let reserve = |name: &FileName| matches!(name, FileName::Pool(..) | FileName::Fresh(..));
    written().files().into_iter().filter(|(name, _)| !reserve(name)).collect()
}

/// A line of golden.json: fields in order.
struct Line(String);

impl Line {
    fn new(what: &str) -> Self {
        Self(format!("{{\"what\": \"{what}\""))
    }

    fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        write!(self.0, ", \"{name}\": {value}").expect("a string takes everything");
        self
    }

    fn end(self) -> String {
        self.0 + "}"
    }
}

fn list<T>(items: &[T], show: impl Fn(&T) -> String) -> String {
    format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", "))
}

/// Bytes as JSON: short texts, or hex, or length and CRC.
fn bytes(bytes: Option<&[u8]>) -> String {
    match bytes {
        None => "null".into(),
        Some(long) if long.len() > 64 => {
            format!("{{\"bytes\": {}, \"crc32\": {}}}", long.len(), crc32fast::hash(long))
        }
        Some(text) if text.iter().all(|byte| (32..127).contains(byte)) => {
            format!("{:?}", String::from_utf8_lossy(text))
        }
        Some(other) => format!("{{\"hex\": \"{}\"}}", hex(other)),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn epochs(epochs: &[EpochStart]) -> String {
    list(epochs, |start| format!("[{}, {}, {}]", start.epoch.0, start.index.0, start.offset.0))
}

fn entries(entries: &[IndexEntry]) -> String {
    let show = |entry: &IndexEntry| {
        format!("[{}, {}, {}, {}]", entry.offset.0, entry.index.0, entry.position, entry.max_timestamp.0)
    };
    list(entries, show)
}

fn header_page_line(file: &str, page: &HeaderPage) -> String {
    Line::new("segment")
        .with("file", format!("\"{file}\""))
        .with("format_version", 1)
        .with("prezeroed", page.prezeroed)
        .with("cluster_id", format!("\"{}\"", hex(&page.owner.cluster_id.0)))
        .with("topic_id", format!("\"{}\"", hex(&page.owner.topic_id.0)))
        .with("partition_uid", page.owner.partition_uid.0)
        .with("partition", page.owner.partition)
        .with("leader_epoch", page.leader_epoch.0)
        .with("base_offset", page.base_offset.0)
        .with("base_index", page.base_index.0)
        .with("chain_anchor", page.chain_anchor)
        .with("file_bytes", page.size.bytes())
        .end()
}

fn batch_line(start: u32, header: &BatchHeader) -> String {
    assert_eq!((header.encoding, header.batch_type), (Encoding::Columnar, BatchType::Data), "nothing else is written");
    Line::new("batch")
        .with("at", start)
        .with("encoding", 1)
        .with("batch_type", 0)
        .with("header_crc", header.header_crc)
        .with("payload_crc", header.payload_crc)
        .with("batch_len", header.batch_len())
        .with("partition_uid", header.leader.partition_uid.0)
        .with("batch_index", header.leader.batch_index.0)
        .with("leader_epoch", header.leader.leader_epoch.0)
        .with("prev_header_crc", header.leader.prev_header_crc)
        .with("durable_end_hint", header.leader.durable_end_hint.0)
        .with("base_offset", header.leader.base_offset.0)
        .with("offset_count", header.offset_count)
        .with("record_count", header.record_count)
        .with("base_timestamp", header.base_timestamp.0)
        .with("max_timestamp", header.max_timestamp.0)
        .with("producer_id", header.producer_id.0)
        .with("base_sequence", header.base_sequence)
        .with("producer_epoch", header.producer_epoch)
        .with("attributes", header.attributes)
        .end()
}

/// The records as they were given, at the offsets and the time of arrival that the shard gave.
fn record_lines(given: &Batch, header: &BatchHeader) -> Vec<String> {
    assert_eq!(header.attributes & LOG_APPEND_TIME != 0, given.on_arrival);
    // Whoever has no zstd still sees the lengths.
    let stored = |text: Option<&[u8]>| match (text, given.codec) {
        (Some(text), Codec::Zstd) => format!("{{\"zstd\": {}}}", text.len()),
        (text, _) => bytes(text),
    };
    let line = |(at, record): (usize, &Given)| {
        let timestamp = if given.on_arrival { header.max_timestamp.0 } else { record.timestamp };
        let headers =
            list(&record.headers, |(key, value)| format!("[{}, {}]", stored(Some(key.as_bytes())), stored(*value)));
        Line::new("record")
            .with("offset", header.leader.base_offset.0 + at as u64)
            .with("timestamp", timestamp)
            .with("key", stored(record.key.as_deref()))
            .with("value", stored(record.value.as_deref()))
            .with("headers", headers)
            .end()
    };
    given.records.iter().enumerate().map(line).collect()
}

fn footer_line(footer: &Footer) -> String {
    Line::new("footer")
        .with("at", footer.position())
        .with("data_end", footer.data_end)
        .with("batch_count", footer.batch_count)
        .with("record_count", footer.record_count)
        .with("end_offset", footer.end_offset.0)
        .with("end_index", footer.end_index.0)
        .with("max_timestamp", footer.max_timestamp.0)
        .with("last_header_crc", footer.last_header_crc)
        .with("epochs", epochs(&footer.epochs))
        .end()
}

/// What a segment holds; takes what was given for each of its batches off `given`.
fn segment_lines<'a>(name: &str, file: &[u8], given: &mut impl Iterator<Item = &'a Batch>) -> Vec<String> {
    let page = HeaderPage::decode(file).expect("a header page");
    let mut lines = vec![header_page_line(name, &page)];
    let window = Window { bytes: file, base: 0, data_end: page.size.data_end() };
    let mut at = BLOCK_BYTES as u32;
    let (next_offset, next_index) = (page.base_offset, page.base_index);
    let prev_header_crc = Some(page.chain_anchor);
    let mut chain = Chain { partition_uid: UID, next_offset, next_index, prev_header_crc, epoch: LeaderEpoch(1) };
    while let Step::Batch { start, header } = window.step(at, &chain) {
        lines.push(batch_line(start, &header));
        lines.extend(record_lines(given.next().expect("no batch that was not given"), &header));
        (at, chain) = (padded_end(start, header.batch_len()), Chain::behind(&header));
    }
    match Trailer::decode(&file[file.len() - BLOCK_BYTES..], page.size) {
        Ok(trailer) => {
            let footer = Footer::decode(&file[trailer.footer_position as usize..]).expect("a footer");
            lines.push(footer_line(&footer));
        }
        Err(_) => {
            let (offset, index) = (chain.next_offset.0, chain.next_index.0);
            lines.push(Line::new("end").with("at", at).with("offset", offset).with("index", index).end());
        }
    }
    lines
}

fn checkpoint_line(name: &str, file: &[u8]) -> String {
    let checkpoint = Checkpoint::decode(file).expect("a checkpoint");
    let partitions = list(&checkpoint.partitions, |partition| {
        let line = Line(format!("{{\"partition_uid\": {}", partition.partition_uid.0))
            .with("log_start", partition.log_start.0)
            .with("durable_end", partition.durable_end.0)
            .with("resume_offset", partition.resume.offset.0)
            .with("resume_index", partition.resume.index.0)
            .with("resume_segment", partition.resume.segment.0)
            .with("max_timestamp", partition.max_timestamp.0)
            .with("epoch", partition.epoch.0)
            .with("resume_position", partition.resume.position)
            .with("resume_header_crc", partition.resume.prev_header_crc)
            .with("clean", u32::from(partition.clean));
        line.with("index", entries(&partition.index)).with("epochs", epochs(&partition.epochs)).end()
    });
    let line = Line::new("checkpoint").with("file", format!("\"{name}\"")).with("sequence", checkpoint.sequence);
    line.with("partitions", partitions).end()
}

fn index_line(name: &str, file: &[u8]) -> String {
    let count = u32::from_le_bytes(file[28..32].try_into().expect("four bytes")) as usize;
    let stored: Vec<IndexEntry> = file[64..64 + 32 * count].chunks_exact(32).map(IndexEntry::decode).collect();
    Line::new("index").with("file", format!("\"{name}\"")).with("entries", entries(&stored)).end()
}

/// golden.json: what a reader of the whole directory finds, checkpoints first, then segment by segment.
fn listing(files: &[(FileName, Vec<u8>)]) -> String {
    let runs = runs();
    let mut given = runs.iter().flatten();
    let last = |name: FileName| name.to_string().rsplit('/').next().unwrap_or_default().to_owned();
    let mut lines: Vec<String> = Vec::new();
    for (name, file) in files.iter().filter(|(name, _)| matches!(name, FileName::Checkpoint(..))) {
        lines.push(checkpoint_line(&last(*name), file));
    }
    for (name, file) in files {
        let FileName::Segment(uid, base) = *name else { continue };
        lines.extend(segment_lines(&last(*name), file, &mut given));
        let index = FileName::Index(uid, base);
        if let Some((_, file)) = files.iter().find(|(name, _)| *name == index) {
            lines.push(index_line(&last(index), file));
        }
    }
    assert!(given.next().is_none(), "every batch that was given is stored");
    format!("[\n{}\n]\n", lines.join(",\n"))
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the switch to write golden files is given to the test by hand")]
fn stored_bytes_are_those_of_the_golden_files() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/format/golden/storage");
    let stored = files();
    let listing = ("golden.json".to_owned(), listing(&stored).into_bytes());
    let files: Vec<_> = stored.into_iter().map(|(name, bytes)| (name.to_string(), bytes)).chain([listing]).collect();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let segments = ["p/7/00000000000000000000.log", "p/7/00000000000000000032.log"];
    assert!(segments.iter().all(|name| names.contains(name)) && names.len() == 6, "{names:?}");
    for (name, bytes) in &files {
        let path = directory.join(name);
        if std::env::var("COULEE_GOLDEN").is_ok_and(|value| value == "write") {
            std::fs::create_dir_all(path.parent().expect("a file lies in a directory")).expect("a writable checkout");
            std::fs::write(&path, bytes).expect("a writable checkout");
        }
        let committed = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let differs = committed.iter().zip(bytes).position(|(committed, written)| committed != written);
        assert!(&committed == bytes, "{name} differs, first at {differs:?}");
    }
}

#[test]
fn the_golden_files_are_the_same_each_time_they_are_made() {
    assert!(files() == files(), "a shard over the same batches wrote other bytes");
}

#[test]
fn a_segment_with_an_unknown_feature_is_refused_and_kept() {
    let last = FileName::Segment(UID, Offset(32));
    let mut newer = written().damaged(last, |mut file| {
        file[8] |= 2;
        let crc = crc32fast::hash(&file[..BLOCK_BYTES - 4]).to_le_bytes();
        file[BLOCK_BYTES - 4..BLOCK_BYTES].copy_from_slice(&crc);
        Some(file)
    });
    // Without a checkpoint nothing but its name speaks for what the segment holds.
    for copy in [Copy2::A, Copy2::B] {
        newer = newer.damaged(FileName::Checkpoint(0, copy), |_| None);
    }
    let mut runner = Runner::start(newer.clone(), OPTIONS, 1).unwrap();
    runner.command(Command::Open(OWNER, config(false)));
    let refused = runner.wait_for(|effect| match effect {
        Effect::Opened(_, result) => Some(result.clone()),
        _ => None,
    });
    assert_eq!(refused, Some(Err(RecoveryError::UnknownFeatures { segment: Offset(32), features: 3 })));
    assert!(newer.files().iter().any(|(name, _)| *name == last), "the segment that could not be read is gone");
}
