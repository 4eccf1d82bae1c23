//! The body of the target `recovery`: damaged files under a shard that starts; knows what was written, and no format.
//!
//! The first byte says what the rest is: what happened to the files of a partition that was stopped, or that lost
//! power, or the bytes of one file. Then a shard starts over these files, reads everything, appends, reads that back,
//! ends, and another one starts.

mod base;
mod faults;
mod mended;

pub use mended::repair;

use super::input::Input;
use super::memory::{assert_counted, within};
use base::{BASE, Written, batch, config, owner};
use coulee_core::block::{Block, BlockPool};
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::executor::Runner;
use coulee_core::log::Incoming;
use coulee_core::log::reader::ReadError;
use coulee_core::log::recovery::RecoveryError;
use coulee_core::partition::Acks;
use coulee_core::shard::fetches::{FetchError, FetchPart, FetchSpec};
use coulee_core::shard::{Command, Effect, OffsetQuery, Opened, RequestId, ShardOptions};
use coulee_protocol::batch::{BatchHeader, HEADER_BYTES, check_payload_crc};
use coulee_protocol::ids::{Offset, PartitionUid, Timestamp};
use std::fmt;

/// What two lives of a shard may hold beside the files they found: windows of segments, buffers of appends, new files.
const SHARD_BYTES: usize = 2 << 20;
/// Little memory and no reserve of segment files: each life is short.
const OPTIONS: ShardOptions = ShardOptions { id: 0, tail_bytes: 128 << 10, pool_bytes: 0 };
/// The partitions of the images.
const PARTITIONS: [u64; 2] = [1, 2];
/// A batch number that no image holds.
const LATE: u64 = 1_000_000;

/// Damages files as `bytes` say and lives over them.
///
/// # Panics
/// When a property breaks: the shard panics, gets stuck, serves what was not written or leaves a gap unreported, does
/// not take an append or forgets it, or holds more than the files and a constant.
pub fn recovery(bytes: &[u8]) {
    assert_counted();
    let mut input = Input(bytes);
    let kind = input.u8();
    let stop = kind & 4 != 0;
    let image = if kind % 4 == 1 { &BASE.crashed } else { &BASE.stopped };
    // Foreign bytes may be a batch that nobody of ours has sent.
    let ((files, moved), written) = match kind % 4 {
        2 => ((faults::foreign(image, input), true), None),
        _ => (faults::happen(image, &BASE.older, input), Some(&BASE.written)),
    };
    let file_bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let disk = MemoryDisk::holding(files);
    within(file_bytes + SHARD_BYTES, "a shard over damaged files", || lives(&disk, written, stop, moved));
}

/// What a partition serves: batches by their offsets, and where it ends. What is between was reported as damaged.
#[derive(PartialEq, Eq)]
struct Served {
    batches: Vec<(u64, Vec<u8>)>,
    end: u64,
}

impl fmt::Debug for Served {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offsets: Vec<u64> = self.batches.iter().map(|(offset, _)| *offset).collect();
        write!(formatter, "{offsets:?} up to {}", self.end)
    }
}

/// Two lives: the second serves what the first did and what was appended to it.
///
/// Where batches have `moved`, or a segment's name is not its own, the second may serve less or more of what was
/// written, and report the rest: a copy behind the end stands in for a damaged batch only until something nearer is
/// appended, one before its place leads the walk past what follows, one in a closed segment is found by reading on.
fn lives(disk: &MemoryDisk, written: Option<&Written>, stop: bool, moved: bool) {
    let mut first = start(disk);
    let mut served: Vec<Option<Served>> = PARTITIONS.map(|uid| serve(&mut first, uid, written)).into();
    for (uid, served) in PARTITIONS.into_iter().zip(&mut served) {
        if let Some(served) = served {
            append(&mut first, uid, served);
        }
    }
    if stop {
        first.command(Command::Stop);
        let stopped = first.wait_for(|effect| matches!(effect, Effect::Stopped).then_some(()));
        assert!(stopped.is_some(), "the shard does not stop");
    }
    drop(first);
    let mut second = start(disk);
    for (uid, before) in PARTITIONS.into_iter().zip(served) {
        let after = serve(&mut second, uid, None);
        let (Some(before), Some(after)) = (&before, &after) else {
            assert!(before == after, "partition {uid} opens at one start only");
            continue;
        };
        let ours = |(offset, payload): &(u64, Vec<u8>)| {
            before.batches.iter().any(|(other, _)| other == offset)
                || written.is_none_or(|written| written.get(&(uid, *offset)) == Some(payload))
        };
        let same = |(offset, payload): &(u64, Vec<u8>)| {
            before.batches.iter().all(|(other, shown)| other != offset || shown == payload)
        };
        let consistent = after.end == before.end && after.batches.iter().all(|batch| ours(batch) && same(batch));
        let fine = after == before || (moved && consistent);
        assert!(fine, "partition {uid} served {before:?}, after another start {after:?}");
    }
}

fn start(disk: &MemoryDisk) -> Runner {
    Runner::start(disk.clone(), OPTIONS, 1).expect("no content of any file keeps a shard from starting")
}

/// Opens a partition and reads all of it; `None` where its files say that a newer release wrote them.
fn serve(runner: &mut Runner, uid: u64, written: Option<&Written>) -> Option<Served> {
    runner.command(Command::Open(owner(uid), config()));
    let opened = runner.wait_for(|effect| match effect {
        Effect::Opened(opened, result) if opened.0 == uid => Some(result.clone()),
        _ => None,
    });
    let opened = match opened.expect("opening ends") {
        Ok(opened) => opened,
        Err(RecoveryError::TooNew { .. }) => return None,
        Err(error) => panic!("partition {uid} does not open: {error}"),
    };
    let served = read_all(runner, uid, &opened);
    for (offset, payload) in served.batches.iter().filter(|_| written.is_some()) {
        let expected = written.and_then(|written| written.get(&(uid, *offset)));
        assert!(expected == Some(payload), "partition {uid} serves at offset {offset} what was not written there");
    }
    find_times(runner, uid);
    Some(served)
}

/// Reads from the log start to the log end. Each offset is served once, or reported.
fn read_all(runner: &mut Runner, uid: u64, opened: &Opened) -> Served {
    let mut served = Served { batches: Vec::new(), end: opened.log_end.0 };
    let mut offset = opened.log_start;
    while offset < opened.log_end {
        match fetch(runner, uid, offset) {
            Ok(batches) => {
                assert!(!batches.is_empty(), "nothing comes at {offset} below the end {}", opened.log_end);
                for bytes in &batches {
                    let header = whole(bytes);
                    assert!(header.leader.base_offset <= offset && offset < header.end_offset());
                    assert_eq!(header.leader.partition_uid.0, uid);
                    offset = header.end_offset();
                    served.batches.push((header.leader.base_offset.0, bytes[HEADER_BYTES..].to_vec()));
                }
            }
            Err(FetchError::Read(ReadError::Damaged { from, to, .. })) => {
                assert!(from <= offset && offset < to, "damage from {from} to {to} is answered to {offset}");
                offset = to;
            }
            Err(error) => panic!("a fetch at {offset} of partition {uid}: {error:?}"),
        }
    }
    assert_eq!(offset, opened.log_end);
    served
}

/// The header of a served batch, whose checksums hold.
fn whole(bytes: &Block) -> BatchHeader {
    let header = BatchHeader::decode(bytes).expect("what is served begins with a header");
    assert_eq!(header.batch_len(), bytes.len());
    check_payload_crc(&header, &bytes[HEADER_BYTES..]).expect("what is served is whole");
    header
}

fn fetch(runner: &mut Runner, uid: u64, offset: Offset) -> Result<Vec<Block>, FetchError> {
    let bytes_max = 16 << 10;
    let parts = vec![FetchPart { partition: PartitionUid(uid), offset, bytes_max }];
    runner.command(Command::Fetch(RequestId(offset.0), FetchSpec { parts, bytes_min: 1, bytes_max, wait_ms: 0 }));
    let fetched = runner.wait_for(|effect| match effect {
        Effect::Fetched(request, parts) if request.0 == offset.0 => Some(parts[0].batches.clone()),
        _ => None,
    });
    fetched.expect("a fetch that does not wait is answered")
}

/// Looks a time up through whatever index is left; any answer will do.
fn find_times(runner: &mut Runner, uid: u64) {
    for time in [0, 20, i64::MAX] {
        let query = OffsetQuery::AtOrAfter(Timestamp(time));
        runner.command(Command::ListOffsets(RequestId(time as u64), PartitionUid(uid), query));
        let listed = runner.wait_for(|effect| match effect {
            Effect::Listed(request, listed) if request.0 == time as u64 => Some(*listed),
            _ => None,
        });
        assert!(listed.is_some(), "looking up a time is not answered");
    }
}

/// Appends a batch at the end, which is read back at once.
fn append(runner: &mut Runner, uid: u64, served: &mut Served) {
    let bytes = batch(LATE + uid, 2, 50);
    let mut block = BlockPool::new(0).take(bytes.len());
    block.extend(&bytes);
    runner.command(Command::Produce {
        request: RequestId(LATE + uid),
        partition: PartitionUid(uid),
        acks: Acks::Acknowledged,
        batch: Incoming::Shared(block.freeze()),
    });
    let produced = runner.wait_for(|effect| match effect {
        Effect::Produced(request, produced) if request.0 == LATE + uid => Some(*produced),
        _ => None,
    });
    let produced = produced.expect("an append is answered").expect("a log that has opened takes appends");
    assert_eq!(produced.base_offset.0, served.end, "the append is not at the end");
    let read = fetch(runner, uid, produced.base_offset).expect("what was appended is read back");
    let payload = read.first().expect("what was appended is there")[HEADER_BYTES..].to_vec();
    assert!(payload == bytes[HEADER_BYTES..], "the append was changed");
    served.batches.push((served.end, payload));
    served.end += 2;
}
