//! Counts the instructions of each hot piece under callgrind and holds them against `baseline.tsv`; knows no clock.
//!
//! Times of shared machines are noise, and virtual ones have no counters of their own; callgrind executes the code on a
//! processor of its own and finds the same number each time. It runs this program once for each piece, with the piece's
//! name, and counts while [`only_this_is_counted`] runs: not what is set up before, nor the first round, which grows
//! buffers.
//!
//! Its processor has AVX2 and nothing newer, so that CRC and copies are counted in another form than production runs.

use coulee_bench::baseline::{self, Change, Count, RISE_MAX};
use coulee_bench::{BATCH_RECORDS, Bed, OWNER, VALUE_BYTES, batch, push_all, values};
use coulee_core::block::BlockPool;
use coulee_core::limits::BLOCK_BYTES;
use coulee_core::log::appender::{Appender, Mark};
use coulee_core::log::segment::{SegmentSize, padded_end, start_after};
use coulee_core::log::tail::TailCache;
use coulee_core::shard::fetches::{FetchPart, FetchSpec};
use coulee_core::shard::{Command, Effect, RequestId};
use coulee_protocol::api::{encode, fetch, open, produce};
use coulee_protocol::batch::{BatchHeader, HEADER_BYTES, LeaderFields, check_entry};
use coulee_protocol::columns::builder::BatchBuilder;
use coulee_protocol::columns::{Columns, Scratch};
use coulee_protocol::compression::Codec;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader};
use coulee_protocol::ids::{BatchIndex, Offset, PartitionUid};
use coulee_protocol::limits::{BATCH_BYTES_DEFAULT_MAX, FRAME_BYTES_MAX};
use std::hint::black_box;
use std::path::PathBuf;
use std::process::{self, ExitCode};

/// A piece: its name, what an element of it is, and its work, which answers how many of them were counted.
type Piece = (&'static str, &'static str, fn() -> u64);

const PIECES: [Piece; 20] = [
    ("frame, cut out of what was received", "frame", cut_frames),
    ("produce request, open", "request", open_produce),
    ("batch header, decode", "batch", decode_header),
    ("batch header, stamp", "batch", stamp_header),
    ("check on entry, 1 x 100 B", "batch", || check(1)),
    ("check on entry, 1000 x 100 B", "batch", || check(BATCH_RECORDS)),
    ("CRC of 64 KiB", "KiB", crc),
    ("build 1000 x 100 B", "record", build),
    ("read 1000 x 100 B", "record", read),
    ("lz4, compress 1000 x 100 B", "record", compress),
    ("appender, 1 x 100 B, 100 a write", "batch", || append_small(100)),
    ("appender, 1 x 100 B, 1 a write", "batch", || append_small(1)),
    ("appender, 1000 x 100 B", "batch", append_large),
    ("shard, produce 1 x 100 B, 1 in flight", "batch", || produce_singles(1)),
    ("shard, produce 1 x 100 B, 1000 in flight", "batch", || produce_singles(1_000)),
    ("shard, produce 1000 x 100 B, 1 in flight", "batch", produce_large),
    ("shard, fetch 8 x 1000 x 100 B of the tail", "fetch", fetch_tail),
    ("produce response, encode", "ack", encode_ack),
    ("fetch request of 10 partitions, open", "request", open_fetch),
    ("fetch response of 10 partitions, encode", "response", encode_fetched),
];

/// What callgrind counts. One function for all pieces, so that its name finds it whatever is inlined.
#[inline(never)]
fn only_this_is_counted(rounds: u64, round: &mut dyn FnMut()) {
    (0..rounds).for_each(|_| round());
}

/// Runs a round to grow what grows, then counts `rounds` of them.
fn count(rounds: u64, mut round: impl FnMut()) -> u64 {
    round();
    only_this_is_counted(rounds, &mut round);
    rounds
}

/// The frames of 16 singles as they come in one read, cut as a connection cuts them.
fn cut_frames() -> u64 {
    let batch = batch(1, Codec::None);
    let mut body = Vec::new();
    let body_bytes = encode(&produce::v1::Request { partition_uid: 1, acks: 1, flags: 0, timeout_ms: 0 }, &mut body);
    let mut received = BlockPool::new(0).take(16 << 10);
    for correlation in 0..16 {
        received.extend(&FrameHeader::request(2, 1, correlation, body_bytes, batch.len()).encode());
        received.extend(&body);
        received.extend(&batch);
    }
    let received = received.freeze();
    let mut frames = Vec::new();
    16 * count(50, || {
        frames.clear();
        let mut at = 0;
        while let Some(bytes) = black_box(&received)[at..].first_chunk::<FRAME_HEADER_BYTES>() {
            let header = FrameHeader::decode(bytes, FRAME_BYTES_MAX).expect("it was just encoded");
            let (body_at, end) = (at + FRAME_HEADER_BYTES, at + header.len as usize);
            let batch_at = body_at + header.body_len as usize;
            frames.push((header, received.slice(body_at..batch_at), received.slice(batch_at..end)));
            at = end;
        }
    })
}

fn open_produce() -> u64 {
    let mut body = Vec::new();
    encode(&produce::v1::Request { partition_uid: 1, acks: 1, flags: 0, timeout_ms: 0 }, &mut body);
    count(200, || {
        let request = open::<produce::v1::Request>(black_box(&body)).expect("it was just encoded");
        black_box((request.partition_uid.to_native(), request.acks));
    })
}

fn decode_header() -> u64 {
    let batch = batch(1, Codec::None);
    count(200, || {
        black_box(BatchHeader::decode(black_box(&batch)).is_ok());
    })
}

fn stamp_header() -> u64 {
    let header = BatchHeader::decode(&batch(1, Codec::None)).expect("it was just built");
    let leader = LeaderFields { batch_index: BatchIndex(1), base_offset: Offset(7), ..LeaderFields::default() };
    let mut stamped = [0; HEADER_BYTES];
    count(200, || {
        black_box(header.stamp(black_box(leader), &mut stamped));
    })
}

fn check(records: usize) -> u64 {
    let batch = batch(records, Codec::None);
    count(100, || {
        black_box(check_entry(black_box(&batch), BATCH_BYTES_DEFAULT_MAX).is_ok());
    })
}

fn crc() -> u64 {
    let bytes = &values((64 << 10) / VALUE_BYTES + 1)[..64 << 10];
    64 * count(20, || {
        black_box(crc32fast::hash(black_box(bytes)));
    })
}

fn build() -> u64 {
    let values = values(BATCH_RECORDS);
    let mut builder = BatchBuilder::new(Codec::None, BATCH_BYTES_DEFAULT_MAX);
    let rounds = count(10, || {
        push_all(&mut builder, black_box(&values), &[]);
        let batch = builder.finish().expect("it has records");
        builder.recycle(black_box(batch));
    });
    rounds * BATCH_RECORDS as u64
}

fn read() -> u64 {
    let batch = batch(BATCH_RECORDS, Codec::None);
    let header = BatchHeader::decode(&batch).expect("it was just built");
    let rounds = count(10, || {
        let mut scratch = Scratch::default();
        let columns = Columns::open(black_box(&batch[HEADER_BYTES..]), &header, &mut scratch).expect("it is whole");
        let len = |value: Option<&[u8]>| value.map_or(0, |value| value.len() + usize::from(value[0]));
        black_box(columns.values().fold(0, |sum, value| sum + len(value)));
    });
    rounds * BATCH_RECORDS as u64
}

fn compress() -> u64 {
    let (values, mut packed) = (values(BATCH_RECORDS), Vec::new());
    let rounds = count(4, || {
        packed.clear();
        Codec::Lz4.compress(black_box(&values), &mut packed).expect("the column is within its bound");
    });
    rounds * BATCH_RECORDS as u64
}

/// An appender in a segment that has just begun, the cache of its tail, and the pool that both take from.
fn appender() -> (Appender, TailCache, BlockPool) {
    let (pool, mut cache) = (BlockPool::new(16 << 20), TailCache::starting_at(Offset(0)));
    let mut appender = Appender::resume(pool.clone(), Mark { index: BatchIndex(1), ..Mark::default() }, &[]);
    appender.start_segment(Offset(0), &[1; BLOCK_BYTES], &mut cache);
    (appender, cache, pool)
}

/// Where the next batch of `len` bytes starts, and the log end behind it.
fn next(appender: &Appender, len: usize) -> (u32, Mark) {
    let mark = *appender.end();
    let start = start_after(mark.position, len);
    let end =
        Mark { offset: mark.offset.advance(1), index: mark.index.next(), position: padded_end(start, len), ..mark };
    (start, end)
}

/// Issues what may be issued, completes it, and lets the cache go down to nothing.
fn write_all(appender: &mut Appender, cache: &mut TailCache) {
    while let Some(write) = appender.next_write(cache) {
        appender.completed(black_box(write).id);
    }
    while cache.evict().is_some() {}
}

fn append_small(a_write: u64) -> u64 {
    let (mut appender, mut cache, _pool) = appender();
    let batch = batch(1, Codec::None);
    let (head, payload) = batch.split_at(HEADER_BYTES);
    let rounds = count(1_000 / a_write, || {
        for _ in 0..a_write {
            let (start, end) = next(&appender, batch.len());
            appender.append_small(black_box(head), black_box(payload), start, end, &mut cache);
        }
        write_all(&mut appender, &mut cache);
    });
    rounds * a_write
}

fn append_large() -> u64 {
    let (mut appender, mut cache, pool) = appender();
    let batch = batch(BATCH_RECORDS, Codec::None);
    let received = || {
        let mut block = pool.take(batch.len());
        block.extend(&batch);
        block
    };
    let mut waiting: Vec<_> = (0..=20).map(|_| received()).collect();
    count(20, || {
        let block = waiting.pop().expect("there is one for each round");
        let (start, end) = next(&appender, block.len());
        appender.append_large(block, start, end, &mut cache);
        write_all(&mut appender, &mut cache);
    })
}

/// A shard whose active segment of 16 MiB has just begun.
fn bed() -> Bed {
    let mut bed = Bed::new(&SegmentSize::ALL[..3]).expect("a disk in memory has no faults");
    bed.fill(&batch(BATCH_RECORDS, Codec::None), SegmentSize::ALL[2], 0);
    bed
}

/// From the commands to the acks of `together` batches at a time; receiving them is not counted.
fn produce_rounds(batch: &[u8], rounds: u64, together: usize) -> u64 {
    let mut bed = bed();
    let all = (rounds as usize + 1) * together;
    let mut received: Vec<_> = (0..all).map(|_| bed.receive(batch)).collect();
    let rounds = count(rounds, || {
        for request in 0..together {
            let batch = received.pop().expect("there is one for each request");
            bed.produce(request as u64, batch);
        }
        bed.wait_for_acks(together);
    });
    rounds * together as u64
}

fn produce_singles(together: usize) -> u64 {
    produce_rounds(&batch(1, Codec::None), if together == 1 { 100 } else { 2 }, together)
}

fn produce_large() -> u64 {
    produce_rounds(&batch(BATCH_RECORDS, Codec::None), 20, 1)
}

/// Eight batches of 1,000 records out of the tail cache.
fn fetch_tail() -> u64 {
    let mut bed = bed();
    let batch = batch(BATCH_RECORDS, Codec::None);
    for request in 0..8 {
        let received = bed.receive(&batch);
        bed.produce(request, received);
        bed.wait_for_acks(1);
    }
    let end = bed.shard.partition(OWNER.partition_uid).expect("it is open").log.log_end();
    let offset = Offset(end.0 - 8 * BATCH_RECORDS as u64);
    let part = FetchPart { partition: OWNER.partition_uid, offset, bytes_max: 1 << 20 };
    count(20, || {
        let spec = FetchSpec { parts: vec![part], bytes_min: 1, bytes_max: 4 << 20, wait_ms: 500 };
        bed.shard.command(Command::Fetch(RequestId(0), spec));
        let fetched = bed.cycle().any(|effect| match effect {
            Effect::Fetched(_, parts) => parts[0].batches.as_ref().is_ok_and(|batches| batches.len() == 8),
            _ => false,
        });
        assert!(fetched, "all of it lies in the tail cache");
    })
}

/// Body and header of an answer, behind those of others in one buffer, as a connection gathers them.
fn encode_ack() -> u64 {
    let request = FrameHeader::request(2, 1, 7, 14, 164);
    let mut out = Vec::with_capacity(64 << 10);
    count(200, || {
        let body = produce::v1::Response { base_offset: 7, log_start: 0, high_watermark: 8, leader_epoch: 1 };
        answer(&mut out, &request, black_box(&body));
    })
}

fn answer<T: coulee_protocol::api::Body>(out: &mut Vec<u8>, request: &FrameHeader, body: &T) {
    let start = out.len();
    out.resize(start + FRAME_HEADER_BYTES, 0);
    let body_bytes = encode(body, out);
    let header = FrameHeader::response(request, ErrorCode::None, body_bytes, 0);
    out[start..start + FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
}

fn open_fetch() -> u64 {
    let partition = |partition_uid| fetch::v1::RequestPartition { partition_uid, offset: 7, max_bytes: 1 << 20 };
    let partitions = (1..=10).map(partition).collect();
    let request = fetch::v1::Request { max_wait_ms: 500, min_bytes: 1, max_bytes: 1 << 20, isolation: 0, partitions };
    let mut body = Vec::new();
    encode(&request, &mut body);
    count(100, || {
        let request = open::<fetch::v1::Request>(black_box(&body)).expect("it was just encoded");
        let part = |part: &fetch::v1::ArchivedRequestPartition| FetchPart {
            partition: PartitionUid(part.partition_uid.to_native()),
            offset: Offset(part.offset.to_native()),
            bytes_max: part.max_bytes.to_native() as usize,
        };
        black_box(request.partitions.iter().map(part).collect::<Vec<_>>());
    })
}

fn encode_fetched() -> u64 {
    let request = FrameHeader::request(3, 1, 7, 221, 0);
    let entry = |partition_uid| fetch::v1::ResponsePartition {
        partition_uid,
        high_watermark: 9,
        batches_len: 1_000,
        ..Default::default()
    };
    let body = fetch::v1::Response { partitions: (1..=10).map(entry).collect() };
    let mut out = Vec::with_capacity(128 << 10);
    count(100, || answer(&mut out, &request, black_box(&body)))
}

/// Runs this program under callgrind for one piece.
fn counted(&(name, element, _): &Piece) -> Result<Count, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = process::Command::new("valgrind");
    // Its processor claims that `rep movsb` is fast and counts an instruction for each byte that it copies.
    command.env(
        "GLIBC_TUNABLES",
        "glibc.cpu.x86_rep_movsb_threshold=1000000000:glibc.cpu.x86_rep_stosb_threshold=1000000000",
    );
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*only_this_is_counted*"]);
    let run = command.arg(program).arg(name).output();
    let run = run.map_err(|error| format!("valgrind cannot be started ({error}): apt-get install valgrind"))?;
    let (said, log) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let total = log.lines().find_map(|line| line.split_once("Collected : ")).map(|(_, number)| number.trim().parse());
    match (run.status.success(), total, said.trim().parse()) {
        (true, Some(Ok(total)), Ok(elements)) if total > 0 => {
            let (total, elements): (u32, u32) = (total, elements);
            let instructions = f64::from(total) / f64::from(elements);
            Ok(Count { name: name.to_owned(), element: element.to_owned(), instructions })
        }
        _ => Err(format!("{name} was not counted, {}\n{said}{log}", run.status)),
    }
}

/// Counts all pieces, prints them, and writes the baseline or holds them against it.
fn guard(is_writing: bool) -> Result<bool, String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("baseline.tsv");
    let found: Vec<Count> = PIECES.iter().map(counted).collect::<Result<_, _>>()?;
    if is_writing {
        std::fs::write(&path, baseline::text(&found)).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let compared = baseline::compare(&baseline::parse(&text).map_err(|error| error.to_string())?, &found);
    println!("| piece | instructions | of each | change |\n|---|---|---|---|");
    for (Count { name, element, instructions }, change) in &compared {
        println!("| {name} | {instructions:.1} | {element} | {change}{} |", if change.fails() { " ✗" } else { "" });
    }
    let failed = compared.iter().filter(|(_, change)| change.fails()).count();
    if failed > 0 {
        let (all, percent) = (compared.len(), RISE_MAX * 100.0);
        println!(
            "{failed} of {all} pieces rose by more than {percent} % or stand on one side only; where that is meant,"
        );
        println!("`make bench-baseline` writes the baseline anew, and the commit says why");
    } else if compared.iter().any(|(_, change)| matches!(change, Change::By(share) if *share < -RISE_MAX)) {
        println!("some pieces have become cheaper: `make bench-baseline` keeps it that way");
    }
    Ok(failed == 0)
}

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let Some((_, _, run)) = PIECES.iter().find(|(name, _, _)| arguments.first().is_some_and(|first| first == name)) {
        println!("{}", run());
        return ExitCode::SUCCESS;
    }
    match guard(arguments.iter().any(|argument| argument == "--write")) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
