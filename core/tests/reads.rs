//! Reads from files and from memory, fetches that wait, look-ups, and partitions that go away while they are read;
//! knows only commands, effects and the disk.

#![allow(clippy::unwrap_used, reason = "what the tests share fails as they do")]

mod model;

use coulee_core::config::TopicConfig;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::disk::{Dir, Disk, FileName};
use coulee_core::executor::{Runner, block_on};
use coulee_core::partition::ProduceError;
use coulee_core::shard::fetches::{FetchError, FetchPart, FetchSpec, FetchedPart};
use coulee_core::shard::{Command, Effect, Listed, OffsetQuery, RequestId, ShardOptions};
use coulee_protocol::batch::BatchHeader;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{Offset, PartitionUid, Timestamp};
use model::{
    OPTIONS, answer, append, batch, dice, fetch, open_all, owner, quiesce, read_around, send, small_segments, start,
    stop,
};
use std::collections::BTreeSet;
use std::task::{Context, Waker};

const UID: PartitionUid = PartitionUid(1);

/// Five segments of batches in many sizes: batch `id` has records of the time `id`.
fn several_segments(options: ShardOptions) -> Runner {
    let mut runner = Runner::start(MemoryDisk::crashing(), options, 1).unwrap();
    open_all(&mut runner, 1, small_segments()).unwrap();
    for id in 1..=60 {
        let shape = [(3, 40), (1, 5_000), (1, 33_000), (2, 700), (50, 20)][id as usize % 5];
        append(&mut runner, 1, id, shape).unwrap();
    }
    runner
}

fn part(partition: u64, offset: u64, bytes_max: usize) -> FetchPart {
    FetchPart { partition: PartitionUid(partition), offset: Offset(offset), bytes_max }
}

/// Asks for `parts` under the number `id`, and does not wait.
fn ask(runner: &mut Runner, id: u64, parts: Vec<FetchPart>, bytes_min: usize, wait_ms: u64) {
    let spec = FetchSpec { parts, bytes_min, bytes_max: 1 << 20, wait_ms };
    runner.command(Command::Fetch(RequestId(id), spec));
}

/// The answer to fetch `id`, if it has come. No time passes.
fn came(runner: &mut Runner, id: u64) -> Option<Vec<FetchedPart>> {
    quiesce(runner);
    let is_it = |effect: &Effect| matches!(effect, Effect::Fetched(request, _) if request.0 == id);
    let at = runner.effects.iter().position(is_it)?;
    match runner.effects.remove(at) {
        Some(Effect::Fetched(_, parts)) => Some(parts),
        _ => None,
    }
}

fn bytes_of(part: &FetchedPart) -> usize {
    part.batches.as_ref().map_or(0, |slices| slices.iter().map(|slice| slice.len()).sum())
}

#[test]
fn any_offset_of_any_segment_is_found_in_the_files_whatever_the_byte_limit() {
    let disk = stop(several_segments(OPTIONS)).unwrap();
    let (mut runner, _) = start(disk, 1, 2).unwrap();
    let stored = read_around(&mut runner, 1).unwrap();
    for offset in 0..stored.end {
        let from = stored.batches.partition_point(|(base, _)| *base <= offset) - 1;
        for bytes_max in [0, 1, 3_000, 40_000, 1 << 20] {
            let slices = fetch(&mut runner, 1, offset, bytes_max).unwrap();
            let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
            assert!(!slices.is_empty() && (slices.len() == 1 || bytes <= bytes_max), "offset {offset}, {bytes_max}");
            for (slice, (base, expected)) in slices.iter().zip(&stored.batches[from..]) {
                assert!(slice[..] == expected[..], "offset {offset}: the batch at {base}");
            }
        }
    }
    assert_eq!(runner.shard.counters().tail_batches, 0, "nothing was in memory");
}

#[test]
fn what_was_just_written_is_served_from_memory_and_what_has_left_it_from_the_file() {
    let large = ShardOptions { tail_bytes: 64 << 20, ..OPTIONS };
    let mut in_memory = several_segments(large);
    let mut in_files = several_segments(ShardOptions { tail_bytes: 0, ..OPTIONS });
    quiesce(&mut in_files);
    let memory = read_around(&mut in_memory, 1).unwrap();
    let files = read_around(&mut in_files, 1).unwrap();
    assert_eq!(in_memory.shard.counters().read_bytes, 0);
    assert_eq!(in_files.shard.counters().tail_batches, 0);
    assert_eq!(in_files.shard.kept_bytes(), 0);
    let bytes = |served: &model::Served| -> Vec<Vec<u8>> { served.batches.iter().map(|(_, b)| b.to_vec()).collect() };
    // The hint says how far syncs were, which is a matter of time; payloads are the same.
    let payloads = |served| -> Vec<Vec<u8>> { bytes(served).iter().map(|batch| batch[128..].to_vec()).collect() };
    assert_eq!(payloads(&memory), payloads(&files));
    assert_eq!(memory.batches.len(), 60);
    let kept = in_memory.shard.kept_bytes();
    assert!(kept > 400_000, "large batches are counted, too: {kept} bytes");
}

#[test]
fn the_tail_caches_of_a_shard_keep_no_more_than_their_bound() {
    let mut runner = several_segments(OPTIONS);
    for id in 100..140 {
        append(&mut runner, 1, id, (1, 40_000)).unwrap();
        quiesce(&mut runner);
        let (counted, kept) = (runner.shard.kept_bytes(), runner.shard.partition(UID).unwrap().log.cached().0);
        assert_eq!(counted, kept, "what is counted is what is kept");
        assert!(kept <= OPTIONS.tail_bytes, "{kept} bytes are kept");
    }
}

#[test]
fn a_fetch_at_the_end_waits_until_something_is_durable_there_or_its_time_is_up() {
    let (mut runner, _) = start(MemoryDisk::crashing(), 2, 1).unwrap();
    append(&mut runner, 1, 1, (1, 10)).unwrap();
    quiesce(&mut runner);
    // Time.
    ask(&mut runner, 10, vec![part(1, 1, 1_000), part(2, 0, 1_000)], 1, 1_000);
    assert!(came(&mut runner, 10).is_none());
    runner.pass(999);
    assert!(came(&mut runner, 10).is_none());
    runner.pass(1);
    let parts = came(&mut runner, 10).expect("its time is up");
    assert!(parts.iter().all(|part| part.batches.as_ref().is_ok_and(Vec::is_empty)), "{parts:?}");
    assert_eq!(parts[0].high_watermark, Offset(1));
    // Written is not enough.
    ask(&mut runner, 11, vec![part(2, 0, 1_000), part(1, 1, 1_000)], 1, 60_000);
    runner.disk.set_faults(|faults| faults.syncs_hang = true);
    send(&mut runner, 1, 2, &batch(2, 1, 10));
    assert!(came(&mut runner, 11).is_none(), "shown before it is durable");
    runner.disk.set_faults(|faults| faults.syncs_hang = false);
    let parts = came(&mut runner, 11).expect("the high watermark has moved");
    assert_eq!((bytes_of(&parts[0]) > 0, bytes_of(&parts[1]) > 0), (false, true));
    assert!(answer(&mut runner, 2).is_some());
}

#[test]
fn a_fetch_waits_for_as_many_bytes_as_it_asks_for() {
    let (mut runner, _) = start(MemoryDisk::crashing(), 2, 1).unwrap();
    ask(&mut runner, 10, vec![part(1, 0, 1 << 20), part(2, 0, 1 << 20)], 6_000, 60_000);
    for id in 1..=3 {
        append(&mut runner, 1 + id % 2, id, (1, 1_500)).unwrap();
        assert!(came(&mut runner, 10).is_none(), "after batch {id}");
    }
    append(&mut runner, 1, 4, (1, 1_500)).unwrap();
    let parts = came(&mut runner, 10).expect("four times 1,500 bytes");
    assert!(parts.iter().map(bytes_of).sum::<usize>() >= 6_000);
    // One that asks for more than there will be gets what is there in the end.
    ask(&mut runner, 11, vec![part(1, 0, 1 << 20)], 1 << 20, 500);
    assert!(came(&mut runner, 11).is_none());
    runner.pass(500);
    assert!(bytes_of(&came(&mut runner, 11).unwrap()[0]) > 3_000);
}

#[test]
fn a_fetch_of_several_partitions_goes_over_its_limit_by_one_batch_at_most() {
    for options in [OPTIONS, ShardOptions { tail_bytes: 0, ..OPTIONS }] {
        let mut runner = Runner::start(MemoryDisk::crashing(), options, 1).unwrap();
        open_all(&mut runner, 4, small_segments()).unwrap();
        for id in 0..40 {
            append(&mut runner, 1 + id % 4, 1 + id, (1, 1_000)).unwrap();
        }
        let one = bytes_of(&fetched(&mut runner, 1, vec![part(1, 0, 1)], 1)[0]);
        for bytes_max in [0, 1, one, 3 * one, 11 * one + 5, 15 * one, 1 << 20] {
            let parts = (1..=4).map(|uid| part(uid, 3, 5 * one)).collect();
            let parts = fetched(&mut runner, 1, parts, bytes_max);
            let bytes: Vec<usize> = parts.iter().map(bytes_of).collect();
            let total: usize = bytes.iter().sum();
            assert!(bytes.iter().all(|bytes| *bytes <= 5 * one), "{bytes:?}");
            assert!(total >= one && total < bytes_max.max(1) + one, "{bytes:?} of {bytes_max}");
            assert_eq!(parts.len(), 4, "every part is answered");
            for part in parts {
                let slices = part.batches.unwrap();
                let first = slices.first().map(|slice| BatchHeader::decode(slice).unwrap().leader.base_offset);
                assert!(first.is_none_or(|first| first == Offset(3)));
            }
        }
    }
}

fn fetched(runner: &mut Runner, id: u64, parts: Vec<FetchPart>, bytes_max: usize) -> Vec<FetchedPart> {
    let spec = FetchSpec { parts, bytes_min: 1, bytes_max, wait_ms: 0 };
    runner.command(Command::Fetch(RequestId(id), spec));
    came(runner, id).expect("it does not wait")
}

#[test]
fn an_offset_that_the_log_does_not_have_is_said_at_once() {
    let (mut runner, _) = start(MemoryDisk::crashing(), 1, 1).unwrap();
    append(&mut runner, 1, 1, (5, 10)).unwrap();
    ask(&mut runner, 10, vec![part(1, 6, 1_000)], 1, 60_000);
    let parts = came(&mut runner, 10).expect("it does not wait");
    assert_eq!(parts[0].batches.as_ref().err(), Some(&FetchError::OffsetOutOfRange));
    assert_eq!((parts[0].log_start, parts[0].high_watermark), (Offset(0), Offset(5)), "where it may go on");
    assert_eq!(fetch(&mut runner, 1, u64::MAX, 1).err(), Some(FetchError::OffsetOutOfRange));
    assert_eq!(fetch(&mut runner, 7, 0, 1).err(), Some(FetchError::Absent(ErrorCode::UnknownTopicOrPartition)));
    assert!(fetch(&mut runner, 1, 5, 1).unwrap().is_empty(), "the end is in range");
}

fn listed(runner: &mut Runner, uid: u64, query: OffsetQuery) -> Listed {
    runner.command(Command::ListOffsets(RequestId(77), PartitionUid(uid), query));
    let listed = runner.wait_for(|effect| match effect {
        Effect::Listed(RequestId(77), listed) => Some(*listed),
        _ => None,
    });
    listed.expect("a look-up is answered")
}

#[test]
fn offsets_are_listed_earliest_latest_and_by_time_over_several_segments_and_after_a_start() {
    let runner = several_segments(OPTIONS);
    let restarted = start(stop(several_segments(OPTIONS)).unwrap(), 1, 2).unwrap().0;
    for mut runner in [runner, restarted] {
        let stored = read_around(&mut runner, 1).unwrap();
        assert!(runner.shard.partition(UID).unwrap().log.segment_count() >= 4);
        assert_eq!(listed(&mut runner, 1, OffsetQuery::Earliest), Listed::At(Offset(0), None));
        assert_eq!(listed(&mut runner, 1, OffsetQuery::Latest), Listed::At(Offset(stored.end), None));
        for time in -1..=60 {
            let batch = &stored.batches[(time - 1).max(0) as usize];
            let expected = Listed::At(Offset(batch.0), Some(Timestamp(time.max(1))));
            assert_eq!(listed(&mut runner, 1, OffsetQuery::AtOrAfter(Timestamp(time))), expected, "time {time}");
        }
        assert_eq!(listed(&mut runner, 1, OffsetQuery::AtOrAfter(Timestamp(61))), Listed::Nowhere);
        assert_eq!(listed(&mut runner, 9, OffsetQuery::Latest), Listed::Absent(ErrorCode::UnknownTopicOrPartition));
    }
}

#[test]
fn while_a_partition_is_opened_producers_and_readers_are_told_so() {
    let disk = stop(several_segments(OPTIONS)).unwrap();
    let mut runner = Runner::start(disk, OPTIONS, 3).unwrap();
    runner.command(Command::Open(owner(1), small_segments()));
    let mut refused = 0;
    for id in 100.. {
        send(&mut runner, 1, id, &batch(id, 1, 10));
        match answer_now(&mut runner, id) {
            Some(Err(ProduceError::Recovering)) => refused += 1,
            Some(other) => panic!("{other:?}"),
            None => break,
        }
        if refused == 1 {
            ask(&mut runner, 1, vec![part(1, 0, 1_000)], 1, 60_000);
            let at = runner.shard.take_effects();
            let error = |parts: &[FetchedPart]| parts[0].batches.as_ref().err().copied();
            let told = |effect: &Effect| match effect {
                Effect::Fetched(_, parts) => error(parts) == Some(FetchError::Absent(ErrorCode::Recovering)),
                _ => false,
            };
            assert!(at.iter().any(told), "{at:?}");
        }
        runner.step();
    }
    assert!(refused > 5, "{refused} batches came while it was opened");
    let opened = runner.effects.iter().any(|effect| matches!(effect, Effect::Opened(UID, Ok(_))));
    assert!(opened, "appends are taken when it is said to be open, not before");
    assert_eq!(fetch(&mut runner, 1, 0, 1).unwrap().len(), 1);
}

/// The answer to produce `id` where it is given at once.
fn answer_now(runner: &mut Runner, id: u64) -> Option<Result<coulee_core::shard::Produced, ProduceError>> {
    let effects = runner.shard.take_effects();
    runner.effects.extend(effects);
    let is_it = |effect: &Effect| matches!(effect, Effect::Produced(request, _) if request.0 == id);
    let at = runner.effects.iter().position(is_it)?;
    match runner.effects.remove(at) {
        Some(Effect::Produced(_, result)) => Some(result),
        _ => None,
    }
}

/// Deletes a partition at any moment of produces, rolls, sealing and reads: everybody is answered once, its files are
/// gone, and another partition goes on.
fn delete_in_the_middle(seed: u64) {
    let (mut runner, _) = start(MemoryDisk::crashing(), 2, seed).unwrap();
    append(&mut runner, 2, 1, (1, 10)).unwrap();
    let (mut produced, mut fetched) = (BTreeSet::new(), BTreeSet::new());
    for id in 1_000..1_000 + runner.random.below(30) {
        let bytes = [100, 30_000, 45_000, 100_000][runner.random.below(4) as usize];
        send(&mut runner, 1, id, &batch(id, 1, bytes));
        produced.insert(id);
        let offset = runner.random.below(4);
        ask(&mut runner, 5_000 + id, vec![part(2, 1, 100), part(1, offset, 100)], 50_000, 100_000);
        fetched.insert(5_000 + id);
        for _ in 0..runner.random.below(60) {
            runner.step();
        }
    }
    runner.command(Command::Delete(UID));
    quiesce(&mut runner);
    let mut deleted = 0;
    for effect in std::mem::take(&mut runner.effects) {
        match effect {
            Effect::Produced(request, _) => assert!(produced.remove(&request.0), "seed {seed}: {request:?} twice"),
            Effect::Fetched(request, _) => assert!(fetched.remove(&request.0), "seed {seed}: {request:?} twice"),
            Effect::Deleted(uid, result) => {
                assert_eq!((uid, result), (UID, Ok(())), "seed {seed}");
                deleted += 1;
            }
            _ => {}
        }
    }
    assert_eq!((deleted, produced.len(), fetched.len()), (1, 0, 0), "seed {seed}: answered {produced:?} {fetched:?}");
    check_gone(&mut runner, seed);
}

/// Nothing of partition 1 is left, now and after a power cut, and another takes its place.
fn check_gone(runner: &mut Runner, seed: u64) {
    let left = |disk: &MemoryDisk| -> Vec<FileName> {
        disk.files().into_iter().map(|(name, _)| name).filter(|name| name.dir() == Dir::Partition(UID)).collect()
    };
    assert_eq!(left(&runner.disk), [], "seed {seed}");
    let pool = runner.disk.files().into_iter().filter(|(name, _)| name.dir() == Dir::Pool(0));
    let pool: usize = pool.map(|(_, bytes)| bytes.len()).sum();
    assert!(pool as u64 <= OPTIONS.pool_bytes, "seed {seed}: {pool} bytes in the pool");
    runner.command(Command::Open(owner(3), small_segments()));
    let opened = runner.wait_for(|effect| matches!(effect, Effect::Opened(uid, Ok(_)) if uid.0 == 3).then_some(()));
    assert!(opened.is_some(), "seed {seed}");
    assert_eq!(append(runner, 3, 9_000, (1, 45_000)).unwrap().base_offset, Offset(0), "seed {seed}");
    append(runner, 2, 9_001, (1, 10)).unwrap();
    assert_eq!(
        fetch(runner, 1, 0, 1).err(),
        Some(FetchError::Absent(ErrorCode::UnknownTopicOrPartition)),
        "seed {seed}"
    );
    assert_eq!(read_around(runner, 3).unwrap().batches.len(), 1);
    let crashed = runner.disk.crash(&mut dice(seed));
    assert_eq!(left(&crashed), [], "seed {seed}");
    let uids = block_on(&crashed, &mut dice(seed), crashed.list_partitions()).unwrap();
    assert!(!uids.contains(&UID), "seed {seed}: {uids:?}");
    let (mut again, _) = start(crashed, 2, seed).unwrap();
    assert_eq!(read_around(&mut again, 2).unwrap().batches.len(), 2, "seed {seed}");
}

#[test]
fn a_partition_deleted_at_any_moment_answers_everybody_once_and_leaves_no_file() {
    (0..300).for_each(delete_in_the_middle);
}

#[test]
fn a_partition_deleted_while_it_is_opened_leaves_no_file_either() {
    for seed in 0..100 {
        let disk = stop(several_segments(OPTIONS)).unwrap();
        let mut runner = Runner::start(disk, OPTIONS, seed).unwrap();
        open_all(&mut runner, 0, small_segments()).unwrap();
        runner.command(Command::Open(owner(2), small_segments()));
        let opened = |effect: &Effect| matches!(effect, Effect::Opened(uid, Ok(_)) if uid.0 == 2).then_some(());
        runner.wait_for(opened).unwrap();
        append(&mut runner, 2, 1, (1, 10)).unwrap();
        runner.command(Command::Open(owner(1), small_segments()));
        for _ in 0..runner.random.below(50) {
            runner.step();
        }
        runner.command(Command::Delete(UID));
        quiesce(&mut runner);
        let deleted = |effect: &Effect| matches!(effect, Effect::Deleted(UID, Ok(()))).then_some(());
        assert!(runner.wait_for(deleted).is_some(), "seed {seed}: {:?}", runner.effects);
        check_gone(&mut runner, seed);
    }
}

#[test]
fn a_file_that_is_being_read_is_neither_recycled_nor_removed_before_the_read_is_done() {
    for seed in 0..60 {
        let disk = stop(several_segments(OPTIONS)).unwrap();
        let (mut runner, _) = start(disk, 2, seed).unwrap();
        append(&mut runner, 2, 1, (1, 10)).unwrap();
        let expected = fetch(&mut runner, 1, 0, 40_000).unwrap();
        // The file may be open already, or not.
        let offset = if seed % 2 == 0 { 0 } else { 20 };
        ask(&mut runner, 5, vec![part(1, offset, 40_000)], 1, 0);
        runner
            .shard
            .cycle(coulee_core::shard::Now { monotonic_ms: 1, wall_ms: 1 }, &mut Context::from_waker(Waker::noop()));
        assert!(runner.disk.pending() > 0, "seed {seed}: the read is in flight");
        runner.command(Command::Delete(UID));
        let parts = came(&mut runner, 5).unwrap();
        let slices = parts[0].batches.as_ref().unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        if seed % 2 == 0 {
            let same = slices.iter().map(|slice| &slice[..]).eq(expected.iter().map(|slice| &slice[..]));
            assert!(same, "seed {seed}: something else was read");
        }
        assert!(!slices.is_empty());
        check_gone(&mut runner, seed);
    }
}

#[test]
fn zeroed_files_of_a_deleted_partition_go_back_to_the_pool() {
    let mut runner = several_segments(ShardOptions { pool_bytes: 256 << 20, ..OPTIONS });
    quiesce(&mut runner);
    let pool = |runner: &Runner| runner.disk.files().iter().filter(|(name, _)| name.dir() == Dir::Pool(0)).count();
    let (segments, before) = (runner.shard.partition(UID).unwrap().log.segment_count(), pool(&runner));
    runner.command(Command::Delete(UID));
    quiesce(&mut runner);
    assert!(pool(&runner) >= before + segments - 3, "{before} files and {segments} segments became {}", pool(&runner));
    let blank = runner.disk.files().into_iter().filter(|(name, _)| name.dir() == Dir::Pool(0));
    assert!(blank.into_iter().all(|(_, bytes)| bytes[..4_096].iter().all(|byte| *byte == 0)), "no header page is left");
    let fresh = runner.shard.counters().fresh_segments;
    runner.command(Command::Open(owner(2), small_segments()));
    runner.wait_for(|effect| matches!(effect, Effect::Opened(..)).then_some(())).unwrap();
    for id in 100..108 {
        append(&mut runner, 2, id, (1, 45_000)).unwrap();
    }
    assert_eq!(runner.shard.counters().fresh_segments, fresh, "they are used again");
    let (mut again, _) = start(runner.disk.crash(&mut dice(5)), 2, 5).unwrap();
    assert_eq!(read_around(&mut again, 2).unwrap().batches.len(), 8);
}

#[test]
fn a_file_whose_mapped_bytes_are_still_being_sent_does_not_go_back_to_the_pool() {
    let mut runner = several_segments(ShardOptions { pool_bytes: 256 << 20, tail_bytes: 0, ..OPTIONS });
    quiesce(&mut runner);
    runner.disk.set_faults(|faults| faults.resident = true);
    let pool = |runner: &Runner| runner.disk.files().iter().filter(|(name, _)| name.dir() == Dir::Pool(0)).count();
    let sent = fetch(&mut runner, 1, 0, 1).unwrap();
    assert!(!sent.is_empty());
    let before = pool(&runner);
    runner.command(Command::Delete(UID));
    quiesce(&mut runner);
    assert_eq!(pool(&runner), before, "the segment of the first batch is waited for");
    drop(sent);
    quiesce(&mut runner);
    assert!(pool(&runner) > before, "nobody holds it any more");
}

#[test]
fn a_sealed_segment_is_read_ahead_of_a_reader_that_takes_much_and_of_no_other() {
    let config = TopicConfig::parse([("segment.bytes", "16777216")]).unwrap();
    let mut runner = Runner::start(MemoryDisk::crashing(), ShardOptions { tail_bytes: 0, ..OPTIONS }, 1).unwrap();
    open_all(&mut runner, 1, config).unwrap();
    for id in 1..=60 {
        append(&mut runner, 1, id, (1, 500_000)).unwrap();
    }
    quiesce(&mut runner);

    let mut pass = |bytes_max: usize| {
        let before = runner.disk.reads();
        for offset in 0..30 {
            ask(&mut runner, offset, vec![part(1, offset, bytes_max)], 1, 0);
            let come = runner.wait_for(|effect| matches!(effect, Effect::Fetched(..)).then_some(()));
            assert!(come.is_some(), "offset {offset}");
        }
        runner.disk.reads() - before
    };
    assert!(pass(1_000) >= 29, "each is read, and nothing else");
    let bulk = pass(1 << 20);
    assert_eq!(bulk, 0, "what is asked for is there at once on this disk");
    assert_eq!(pass(1_000), 0, "it stays in memory");
}
