//! Runs the Python reader over golden files and over those of a shard; knows nothing of the format itself.
//!
//! The reader was written from docs/STORAGE_FORMAT.md alone: where both agree, the page says what the code does.

use coulee_core::block::BlockPool;
use coulee_core::config::TopicConfig;
use coulee_core::disk::FileName;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::executor::{Random, Runner};
use coulee_core::log::Incoming;
use coulee_core::log::segment::Owner;
use coulee_core::partition::Acks;
use coulee_core::shard::{Command, Effect, RequestId, ShardOptions};
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::compression::Codec;
use coulee_protocol::ids::{ClusterId, PartitionUid, Timestamp, TopicId};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Output};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn golden() -> PathBuf {
    repository().join("tests/format/golden/storage")
}

/// A directory of this test's own, removed when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("coulee-format-{name}-{}", process::id()));
        fs::create_dir_all(&path).expect("a writable temporary directory");
        Self(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("names are relative")).expect("a writable temporary directory");
        fs::write(path, bytes).expect("a writable temporary directory");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}

/// Python with `arguments`; without it the format is not proved, so its absence is a failure.
fn python(arguments: &[&Path]) -> Output {
    let run = process::Command::new("python3").arg("-B").args(arguments).output();
    run.unwrap_or_else(|error| panic!("python3 is needed to prove the format: {error}"))
}

/// Whether the reader finds nothing wrong in the data directory `directory`, and the lines that it prints.
fn read(directory: &Path) -> (bool, Vec<String>) {
    let run = python(&[&repository().join("tests/format/read_storage.py"), directory]);
    let lines = String::from_utf8(run.stdout).expect("JSON is text").lines().map(str::to_owned).collect();
    let crashed = String::from_utf8(run.stderr).expect("Python writes text");
    assert!(crashed.is_empty(), "the reader does not get through {}: {crashed}", directory.display());
    (run.status.success(), lines)
}

#[test]
fn the_documented_reader_finds_in_the_golden_files_what_was_put_in() {
    let (sound, lines) = read(&golden());
    let listing = fs::read_to_string(golden().join("golden.json")).unwrap();
    let listed: Vec<&str> =
        listing.lines().filter(|line| line.starts_with('{')).map(|line| line.trim_end_matches(',')).collect();
    for (found, listed) in lines.iter().zip(&listed) {
        assert_eq!(found, listed);
    }
    assert!(sound && lines.len() == listed.len(), "{} lines, {} in golden.json", lines.len(), listed.len());
    let json = process::Command::new("python3").args(["-m", "json.tool"]).arg(golden().join("golden.json")).output();
    assert!(json.unwrap().status.success(), "golden.json is no JSON");
}

/// The bytes of each hex dump of docs/STORAGE_FORMAT.md, with their places.
fn dumps() -> Vec<Vec<(usize, u8)>> {
    let text = fs::read_to_string(repository().join("docs/STORAGE_FORMAT.md")).expect("the page");
    let (_, example) = text.split_once("\n## Example\n").expect("the page has an example");
    let row = |line: &str| -> Option<Vec<(usize, u8)>> {
        let (place, rest) = line.split_once("  ")?;
        let place = usize::from_str_radix(place, 16).ok()?;
        let (bytes, _) = rest.split_once("  |")?;
        bytes
            .split_whitespace()
            .enumerate()
            .map(|(i, byte)| Some((place + i, u8::from_str_radix(byte, 16).ok()?)))
            .collect()
    };
    let blocks = example.split("```").skip(1).step_by(2).take(2);
    blocks.map(|block| block.lines().filter_map(row).flatten().collect()).collect()
}

#[test]
fn the_example_of_the_storage_page_is_how_the_golden_segment_begins() {
    let dumps = dumps();
    assert_eq!(dumps.iter().map(Vec::len).collect::<Vec<_>>(), [7 * 16, 320], "bytes shown of header page and batch");
    let segment = fs::read(golden().join("p/7/00000000000000000000.log")).unwrap();
    for (dump, base) in dumps.iter().zip([0, 4_096]) {
        for (place, byte) in dump {
            assert_eq!(segment[base + place], *byte, "at {base} + {place:#x}");
        }
    }
    let shown = |place: usize| dumps[0].iter().any(|(other, _)| *other == place);
    assert!((0..4_096).all(|place| shown(place) || segment[place] == 0), "bytes not shown are zero");
}

/// One byte of each part of the golden files, and the file: all of them are covered by a check.
const COVERED: [(&str, usize); 21] = [
    ("checkpoint/0.a", 8),
    ("checkpoint/0.b", 64 + 24),
    ("checkpoint/0.b", 64 + 100),
    ("p/7/00000000000000000000.log", 0),
    ("p/7/00000000000000000000.log", 80),
    ("p/7/00000000000000000000.log", 3_000),
    ("p/7/00000000000000000000.log", 4_096),
    ("p/7/00000000000000000000.log", 4_096 + 44),
    ("p/7/00000000000000000000.log", 4_096 + 130),
    ("p/7/00000000000000000000.log", 4_096 + 312),
    ("p/7/00000000000000000000.log", 8_000),
    ("p/7/00000000000000000000.log", 30_000),
    ("p/7/00000000000000000000.log", 61_440),
    ("p/7/00000000000000000000.log", 61_440 + 12),
    ("p/7/00000000000000000000.index", 64 + 16),
    ("p/7/00000000000000000000.index", 4_000),
    ("p/7/00000000000000000032.log", 72),
    ("p/7/00000000000000000032.log", 12_000),
    ("p/7/00000000000000000032.log", 30_000),
    ("p/7/00000000000000000032.log", 54_000),
    ("p/7/00000000000000000032.log", 54_271),
];

#[test]
fn the_reader_reports_an_altered_byte_wherever_a_check_covers_it() {
    let scratch = Scratch::new("altered");
    let names: BTreeSet<&str> = COVERED.iter().map(|(name, _)| *name).collect();
    let files: BTreeMap<&str, Vec<u8>> =
        names.into_iter().map(|name| (name, fs::read(golden().join(name)).unwrap())).collect();
    files.iter().for_each(|(name, bytes)| scratch.write(name, bytes));
    assert!(read(&scratch.0).0, "the copy is sound before a byte is altered");
    for (name, place) in COVERED {
        let mut altered = files[name].clone();
        altered[place] ^= 0x20;
        scratch.write(name, &altered);
        let (sound, lines) = read(&scratch.0);
        let reported = lines.iter().any(|line| line.starts_with(r#"{"what": "error""#));
        assert!(!sound && reported, "byte {place} of {name} was altered, and nothing reported");
        scratch.write(name, &files[name]);
    }
    assert!(read(&scratch.0).0, "and after all are as they were");
}

const PARTITIONS: u64 = 3;

fn opened(disk: MemoryDisk, seed: u64) -> Runner {
    let options = ShardOptions { id: 0, tail_bytes: 256 << 10, pool_bytes: 1 << 20 };
    let mut runner = Runner::start(disk, options, seed).expect("a disk in memory");
    let config = TopicConfig::parse([("segment.bytes", "65536")]).expect("a size that segments may have");
    for uid in 1..=PARTITIONS {
        let (cluster_id, topic_id) = (ClusterId([7; 16]), TopicId([9; 16]));
        let owner = Owner { cluster_id, topic_id, partition_uid: PartitionUid(uid), partition: uid as u32 };
        runner.command(Command::Open(owner, config));
    }
    for _ in 0..PARTITIONS {
        let open = |effect: &Effect| matches!(effect, Effect::Opened(_, Ok(_))).then_some(());
        assert!(runner.wait_for(open).is_some(), "seed {seed}: a partition does not open");
    }
    runner
}

/// A batch of random records, and what the reader has to print of each behind its offset.
fn batch(random: &mut Random) -> (Vec<u8>, Vec<String>) {
    let codec = if random.below(3) == 0 { Codec::Lz4 } else { Codec::None };
    let mut builder = BatchBuilder::new(codec, 1 << 20);
    let mut printed = Vec::new();
    let count = if random.below(8) == 0 { 700 } else { 1 + random.below(20) };
    for _ in 0..count {
        let (time, key) = (random.below(1 << 41) as i64 % 5_000, format!("key{}", random.below(50)));
        let value = format!("{:x}", random.next()).repeat(1 + random.below(4) as usize);
        let value = &value[..value.len().min(64)];
        let record = NewRecord {
            timestamp: Timestamp(time),
            key: (time % 2 == 0).then_some(key.as_bytes()),
            value: (time % 7 != 0).then_some(value.as_bytes()),
            headers: if time % 3 == 0 { &[(b"h", Some(b"v")), (b"h", None)] } else { &[] },
        };
        builder.push(&record).expect("the batch has room");
        let text = |present: bool, text: &str| if present { format!("\"{text}\"") } else { "null".into() };
        let headers = if time % 3 == 0 { r#"[["h", "v"], ["h", null]]"# } else { "[]" };
        let (key, value) = (text(time % 2 == 0, &key), text(time % 7 != 0, value));
        printed.push(format!(r#""timestamp": {time}, "key": {key}, "value": {value}, "headers": {headers}}}"#));
    }
    (builder.finish().expect("the batch has records"), printed)
}

/// Produces `count` random batches and notes in `printed` what a reader has to print of each partition.
fn produce(runner: &mut Runner, count: u64, printed: &mut [Vec<String>]) {
    for request in 0..count {
        let (bytes, records) = batch(&mut runner.random);
        let uid = 1 + runner.random.below(PARTITIONS);
        let lines = &mut printed[uid as usize - 1];
        for record in records {
            lines.push(format!(r#"{{"what": "record", "offset": {}, {record}"#, lines.len()));
        }
        let mut block = BlockPool::new(0).take(bytes.len());
        block.extend(&bytes);
        let (request, batch) = (RequestId(request), Incoming::Owned(block));
        let partition = PartitionUid(uid);
        runner.command(Command::Produce { request, partition, acks: Acks::Acknowledged, batch });
        if runner.random.below(4) == 0 {
            runner.step();
        }
    }
    let mut acked = 0;
    while acked < count {
        let ack = |effect: &Effect| matches!(effect, Effect::Produced(_, Ok(_))).then_some(());
        assert!(runner.wait_for(ack).is_some(), "{acked} of {count} batches are acknowledged");
        acked += 1;
    }
}

#[test]
fn the_reader_finds_every_record_that_a_running_shard_has_acknowledged() {
    let seed = 4;
    let mut printed = vec![Vec::new(); PARTITIONS as usize];
    let disk = MemoryDisk::crashing();
    let mut runner = opened(disk, seed);
    produce(&mut runner, 60, &mut printed);
    // A power cut, so that there are several epochs; nothing acknowledged goes with it.
    let crashed = runner.disk.crash(&mut Random::new(seed));
    let mut runner = opened(crashed, seed + 1);
    produce(&mut runner, 60, &mut printed);
    let scratch = Scratch::new("live");
    let files = runner.disk.files();
    files.iter().for_each(|(name, bytes)| scratch.write(&name.to_string(), bytes));
    let (sound, lines) = read(&scratch.0);
    let errors: Vec<&String> = lines.iter().filter(|line| line.starts_with(r#"{"what": "error""#)).collect();
    assert!(sound, "seed {seed}: {errors:?}");
    let found: Vec<&String> = lines.iter().filter(|line| line.starts_with(r#"{"what": "record""#)).collect();
    let expected: Vec<&String> = printed.iter().flatten().collect();
    let differs = found.iter().zip(&expected).find(|(found, expected)| found != expected);
    assert!(found.len() == expected.len() && differs.is_none(), "seed {seed}: {} found, {differs:?}", found.len());
    let sealed = files.iter().filter(|(name, _)| matches!(name, FileName::Index(..))).count();
    println!("{} records in {} files, {sealed} segments sealed", found.len(), files.len());
    assert!(sealed > 0, "seed {seed}: no segment was sealed");

    // One byte in the middle of what the first segment holds.
    let (name, bytes) = files.iter().find(|(name, _)| matches!(name, FileName::Segment(..))).expect("a segment");
    let mut altered = bytes.clone();
    altered[5_000] ^= 1;
    scratch.write(&name.to_string(), &altered);
    assert!(!read(&scratch.0).0, "seed {seed}: an altered byte of {name} is not reported");
}
