//! Failing devices: no false ack, nothing done twice that must not be; knows only commands, effects and the disk.

#![allow(clippy::unwrap_used, reason = "what the tests share fails as they do")]

mod model;

use coulee_core::checkpoint::Checkpoint;
use coulee_core::disk::memory::{Faults, MemoryDisk};
use coulee_core::disk::{Copy2, FileName};
use coulee_core::executor::Runner;
use coulee_core::partition::{Acks, ProduceError};
use coulee_core::shard::fetches::FetchError;
use coulee_core::shard::{Command, Effect, RequestId, ShardOptions};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{Offset, PartitionUid};
use model::{
    Model, OPTIONS, Verdict, answer, append, batch, content, dice, fetch, incoming, open_all, quiesce, read_all,
    read_around, restart, send, small_segments, start, stop,
};

const FIRST: FileName = FileName::Segment(PartitionUid(1), Offset(0));

/// A shard with `partitions` partitions that hold an acknowledged batch each: ids 1, 2, 3 …
fn begun(partitions: u64, seed: u64) -> Runner {
    let (mut runner, _) = start(MemoryDisk::crashing(), partitions, seed).unwrap();
    for uid in 1..=partitions {
        append(&mut runner, uid, uid, (2, 50)).unwrap();
    }
    quiesce(&mut runner);
    runner
}

/// Sends batch 100 + uid to each of the partitions at once, so that none of the writes is alone.
fn send_to_all(runner: &mut Runner, partitions: impl Iterator<Item = u64>) {
    partitions.for_each(|uid| send(runner, uid, 100 + uid, &batch(100 + uid, 1, 20)));
    quiesce(runner);
}

fn offline(answer: Option<Result<coulee_core::shard::Produced, ProduceError>>) -> bool {
    answer.is_some_and(|answer| answer == Err(ProduceError::Offline))
}

/// After partition 1 has stopped: it reads, refuses, syncs no more; the others work; a start finds the device's data.
fn check_stopped(mut runner: Runner, partitions: u64, seed: u64) {
    let synced = runner.disk.syncs(FIRST);
    for round in 0..20 {
        runner.pass(1_000);
        send(&mut runner, 1, 200 + round, &batch(200, 1, 20));
        assert!(offline(answer(&mut runner, 200 + round)), "seed {seed}: a stopped partition takes a batch");
    }
    assert_eq!(runner.disk.syncs(FIRST), synced, "seed {seed}: a failed sync was tried again");
    assert_eq!(read_all(&mut runner, 1, 0).unwrap().len(), 1, "seed {seed}: reads go on up to the high watermark");
    for uid in 2..=partitions {
        append(&mut runner, uid, 300 + uid, (1, 10)).unwrap();
    }
    // A power cut, and a restart of the process alone: in both the device decides.
    let same = runner.disk.damaged(FIRST, Some);
    for disk in [runner.disk.crash(&mut dice(seed)), same] {
        let (mut again, opened) = start(disk, partitions, seed).unwrap();
        assert!(opened.iter().all(|opened| opened.damage.is_empty()), "seed {seed}: {opened:?}");
        assert!(!read_all(&mut again, 1, 0).unwrap().is_empty(), "seed {seed}: the acknowledged batch is gone");
        for uid in 2..=partitions {
            assert_eq!(read_all(&mut again, uid, 0).unwrap().len(), 3, "seed {seed}: partition {uid}");
        }
        append(&mut again, 1, 400, (1, 10)).unwrap();
    }
}

#[test]
fn a_failed_sync_stops_its_partition_is_never_repeated_and_leaves_the_others_alone() {
    for seed in 0..40 {
        let mut runner = begun(3, seed);
        runner.disk.set_device_flush(false);
        let before = runner.disk.syncs(FIRST);
        runner.disk.set_faults(|faults| {
            faults.next_sync_fails = true;
            faults.aim = Some(|name| name == FIRST);
        });
        send_to_all(&mut runner, 1..=3);
        assert!(offline(answer(&mut runner, 101)), "seed {seed}");
        assert_eq!(runner.disk.syncs(FIRST), before + 1, "seed {seed}: one sync, which failed");
        for uid in 2..=3 {
            assert!(matches!(answer(&mut runner, 100 + uid), Some(Ok(_))), "seed {seed}: partition {uid} goes on");
        }
        check_stopped(runner, 3, seed);
    }
}

#[test]
fn a_failed_write_stops_its_partition_and_leaves_the_others_alone() {
    for seed in 0..40 {
        let mut runner = begun(3, seed);
        runner.disk.set_faults(|faults| {
            faults.next_write_fails = true;
            faults.aim = Some(|name| name == FIRST);
        });
        send_to_all(&mut runner, 1..=3);
        assert!(offline(answer(&mut runner, 101)), "seed {seed}");
        for uid in 2..=3 {
            assert!(matches!(answer(&mut runner, 100 + uid), Some(Ok(_))), "seed {seed}: partition {uid} goes on");
        }
        check_stopped(runner, 3, seed);
    }
}

#[test]
fn a_write_that_should_be_durable_by_itself_and_fails_stops_its_partition_too() {
    let mut runner = begun(2, 3);
    runner.disk.set_faults(|faults| faults.next_write_fails = true);
    let before = runner.disk.syncs(FIRST);
    send(&mut runner, 1, 101, &batch(101, 1, 20));
    assert!(offline(answer(&mut runner, 101)));
    assert_eq!(runner.disk.syncs(FIRST), before + 1, "the write was to be durable, and nothing was synced afterwards");
    append(&mut runner, 2, 102, (1, 20)).unwrap();
    check_stopped(runner, 2, 3);
}

/// Rolls every partition until its active segment lies in a file that was zeroed ahead.
fn prezeroed(partitions: u64, seed: u64) -> Runner {
    let mut runner = begun(partitions, seed);
    for uid in 1..=partitions {
        for round in 0..6 {
            let fresh = runner.shard.counters().fresh_segments;
            append(&mut runner, uid, 1_000 * uid + round, (1, 45_000)).unwrap();
            quiesce(&mut runner);
            if round > 2 && runner.shard.counters().fresh_segments == fresh {
                break;
            }
        }
    }
    runner
}

#[test]
fn a_failed_flush_stops_every_partition_with_unsynced_writes_and_no_other() {
    let mut flushed = 0;
    for seed in 0..60 {
        let mut runner = prezeroed(5, seed);
        let flushes = runner.disk.flushes();
        runner.disk.set_faults(|faults| faults.syncs_hang = true);
        // The first of three to be written is synced by itself; the flush is for the two others.
        send_to_all(&mut runner, 1..=3);
        runner.disk.set_faults(|faults| faults.syncs_hang = false);
        assert_eq!(runner.disk.pending(), 1, "seed {seed}: one sync is in flight");
        runner.disk.complete(0);
        if runner.disk.flushes() > flushes {
            // All three were written before a cycle saw the first: that was a flush of all.
            continue;
        }
        flushed += 1;
        runner.disk.set_faults(|faults| faults.syncs_hang = true);
        quiesce(&mut runner);
        // 4 has written while the flush was under way; 5 has nothing unsynced.
        send_to_all(&mut runner, 4..=4);
        runner.disk.set_faults(|faults| (faults.syncs_hang, faults.next_flush_fails) = (false, true));
        quiesce(&mut runner);
        assert_eq!(runner.disk.flushes(), flushes + 1, "seed {seed}: one flush, and never again");
        let stopped = (1..=3).filter(|uid| offline(answer(&mut runner, 100 + uid))).count();
        assert_eq!(stopped, 2, "seed {seed}: those whose flush it was");
        assert!(offline(answer(&mut runner, 104)), "seed {seed}: its write may have gone with that flush");
        append(&mut runner, 5, 105, (1, 20)).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        let crashed = runner.disk.crash(&mut dice(seed));
        let (mut again, _) = start(crashed, 5, seed).unwrap();
        for uid in 1..=5 {
            let stored = read_all(&mut again, uid, 0).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
            assert!(stored.len() >= 4, "seed {seed}: partition {uid} has lost what was acknowledged");
        }
    }
    assert!(flushed >= 10, "only {flushed} seeds came to a flush of some");
}

#[test]
fn a_full_disk_refuses_what_needs_a_segment_serves_reads_and_takes_appends_again_when_there_is_room() {
    let options = ShardOptions { pool_bytes: 0, ..OPTIONS };
    let mut runner = Runner::start(MemoryDisk::crashing(), options, 1).unwrap();
    open_all(&mut runner, 2, small_segments()).unwrap();
    append(&mut runner, 1, 1, (1, 33_000)).unwrap();
    append(&mut runner, 1, 2, (1, 5_000)).unwrap();
    runner.disk.set_faults(|faults| faults.full = true);
    append(&mut runner, 1, 3, (1, 500)).unwrap();
    for id in 4..10 {
        send(&mut runner, 1, id, &batch(id, 1, 33_000));
        assert_eq!(answer(&mut runner, id), Some(Err(ProduceError::DiskFull)));
    }
    append(&mut runner, 1, 10, (1, 500)).unwrap();
    send(&mut runner, 2, 11, &batch(11, 1, 5));
    assert_eq!(answer(&mut runner, 11), Some(Err(ProduceError::DiskFull)), "its first segment");
    assert_eq!(read_all(&mut runner, 1, 0).unwrap().len(), 4);
    runner.disk.set_faults(|faults| faults.full = false);
    assert_eq!(append(&mut runner, 1, 12, (1, 33_000)).unwrap().base_offset, Offset(4), "no offset was spent");
    append(&mut runner, 2, 13, (1, 5)).unwrap();
    let (mut again, _) = start(runner.disk.crash(&mut dice(1)), 2, 1).unwrap();
    assert_eq!(read_all(&mut again, 1, 0).unwrap().len(), 5);
}

#[test]
fn a_failed_read_is_an_error_of_that_fetch_and_of_nothing_else() {
    let disk = stop(begun(2, 1)).unwrap();
    let (mut runner, _) = start(disk, 2, 2).unwrap();
    runner.disk.set_faults(|faults| {
        faults.next_read_fails = true;
        faults.aim = Some(|name| name == FIRST);
    });
    assert_eq!(fetch(&mut runner, 2, 0, 1_000).unwrap().len(), 1, "another file");
    let failed = fetch(&mut runner, 1, 0, 1_000).unwrap_err();
    assert!(matches!(failed, FetchError::Read(_)) && failed.code() == ErrorCode::KafkaStorageError, "{failed:?}");
    assert_eq!(fetch(&mut runner, 1, 0, 1_000).unwrap().len(), 1);
    append(&mut runner, 1, 50, (1, 10)).unwrap();
    assert_eq!(read_all(&mut runner, 1, 0).unwrap().len(), 2);
}

/// Arms one of the faults at chance.
fn arm(runner: &mut Runner, kinds: &[fn(&mut Faults) -> &mut bool]) {
    let kind = kinds[runner.random.below(kinds.len() as u64) as usize];
    runner.disk.set_faults(|faults| *kind(faults) = true);
}

/// Produces at random while faults of `kinds` strike what `aim` names, cuts the power, and checks the model.
fn run_with_faults(
    seed: u64,
    may_stop: bool,
    aim: Option<fn(FileName) -> bool>,
    kinds: &[fn(&mut Faults) -> &mut bool],
) -> Verdict<usize> {
    let disk = MemoryDisk::crashing();
    disk.set_device_flush(seed.is_multiple_of(2));
    let mut model = Model { may_stop, ..Model::default() };
    let (mut runner, _) = start(disk, 3, seed)?;
    let mut acked = 0;
    for round in 0..3 {
        runner.disk.set_faults(|faults| faults.aim = aim);
        for _ in 0..900 {
            match runner.random.below(24) {
                0..4 => model.produce(&mut runner, 3),
                4..8 => runner.pass(runner.random.clone().below(40)),
                8 => arm(&mut runner, kinds),
                _ => drop(runner.step()),
            }
            acked += model.take_acks(&mut runner).map_err(|wrong| format!("round {round}: {wrong}"))?;
        }
        let crashed = runner.disk.crash(&mut dice(seed + round));
        runner = restart(crashed, &mut model, 3, seed + round).map_err(|wrong| format!("round {round}: {wrong}"))?;
    }
    Ok(acked)
}

#[test]
fn failures_of_checkpoint_and_index_files_are_seen_by_no_producer_and_lose_nothing() {
    let aim: fn(FileName) -> bool = |name| matches!(name, FileName::Checkpoint(..) | FileName::Index(..));
    let kinds: [fn(&mut Faults) -> &mut bool; 3] = [
        |faults| &mut faults.next_write_fails,
        |faults| &mut faults.next_sync_fails,
        |faults| &mut faults.next_create_fails,
    ];
    let run = |seed| run_with_faults(seed, false, Some(aim), &kinds);
    let acked: usize = (0..60).map(|seed| run(seed).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"))).sum();
    assert!(acked > 6_000, "only {acked} batches were acknowledged");
}

#[test]
fn whatever_fails_nothing_acknowledged_is_lost_doubled_or_changed() {
    let kinds: [fn(&mut Faults) -> &mut bool; 6] = [
        |faults| &mut faults.next_write_fails,
        |faults| &mut faults.next_sync_fails,
        |faults| &mut faults.next_flush_fails,
        |faults| &mut faults.next_create_fails,
        |faults| &mut faults.next_rename_fails,
        |faults| &mut faults.next_dir_sync_fails,
    ];
    let run = |seed| run_with_faults(seed, true, None, &kinds);
    let acked: usize = (0..150).map(|seed| run(seed).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"))).sum();
    assert!(acked > 1_000, "only {acked} batches were acknowledged");
}

#[test]
fn a_pool_that_cannot_be_filled_stops_no_append() {
    let mut runner = begun(1, 1);
    let kinds: [fn(&mut Faults) -> &mut bool; 4] = [
        |faults| &mut faults.next_create_fails,
        |faults| &mut faults.next_write_fails,
        |faults| &mut faults.next_sync_fails,
        |faults| &mut faults.next_rename_fails,
    ];
    for (id, kind) in (2_u64..).zip(kinds.iter().cycle().take(12)) {
        // The segments in use lie in files with a name of their own: what is aimed at is being made.
        runner.disk.set_faults(|faults| {
            *kind(faults) = true;
            faults.aim = Some(|name| matches!(name, FileName::Fresh(..)));
        });
        quiesce(&mut runner);
        runner.disk.set_faults(|faults| *faults = Faults::default());
        append(&mut runner, 1, id, (1, 45_000)).unwrap_or_else(|wrong| panic!("batch {id}: {wrong}"));
    }
    assert_eq!(read_all(&mut runner, 1, 0).unwrap().len(), 13);
    let (mut again, _) = start(runner.disk.crash(&mut dice(1)), 1, 1).unwrap();
    assert_eq!(read_all(&mut again, 1, 0).unwrap().len(), 13);
}

#[test]
fn a_segment_that_cannot_be_sealed_is_read_all_the_same_and_sealed_after_the_next_start() {
    let aims: [fn(FileName) -> bool; 2] = [|name| name == FIRST, |name| matches!(name, FileName::Index(..))];
    let kinds: [fn(&mut Faults) -> &mut bool; 2] =
        [|faults| &mut faults.next_write_fails, |faults| &mut faults.next_sync_fails];
    for (aim, kind) in aims.into_iter().flat_map(|aim| kinds.map(|kind| (aim, kind))) {
        let mut runner = begun(1, 5);
        append(&mut runner, 1, 2, (1, 45_000)).unwrap();
        quiesce(&mut runner);
        runner.disk.set_faults(|faults| (*kind(faults), faults.aim) = (true, Some(aim)));
        append(&mut runner, 1, 3, (1, 45_000)).unwrap();
        append(&mut runner, 1, 4, (1, 45_000)).unwrap();
        quiesce(&mut runner);
        assert_eq!(read_all(&mut runner, 1, 0).unwrap().len(), 4);
        let (mut again, opened) = start(stop(runner).unwrap(), 1, 6).unwrap();
        assert_eq!(opened[0].damage, []);
        assert_eq!(read_around(&mut again, 1).unwrap().batches.len(), 4);
        append(&mut again, 1, 5, (1, 10)).unwrap();
        let disk = stop(again).unwrap();
        let trailer = &content(&disk, FIRST)[60 << 10..];
        assert_eq!(&trailer[..4], b"CLTR", "sealed at last");
    }
}

#[test]
fn a_partition_takes_appends_only_when_both_copies_of_the_checkpoint_hold_its_epoch() {
    let kinds: [fn(&mut Faults) -> &mut bool; 2] =
        [|faults| &mut faults.next_write_fails, |faults| &mut faults.next_sync_fails];
    for seed in 0..60 {
        let (mut runner, _) = start(stop(begun(1, seed)).unwrap(), 1, seed).unwrap();
        runner = Runner::start(stop(runner).unwrap(), OPTIONS, seed).unwrap();
        runner.disk.set_faults(|faults| {
            *kinds[seed as usize % 2](faults) = true;
            faults.aim = Some(if seed % 4 < 2 {
                |name| matches!(name, FileName::Checkpoint(0, Copy2::A))
            } else {
                |name| matches!(name, FileName::Checkpoint(0, Copy2::B))
            });
        });
        open_all(&mut runner, 1, small_segments()).unwrap();
        let epoch = runner.shard.partition(PartitionUid(1)).unwrap().log.epoch();
        let crashed = runner.disk.crash(&mut dice(seed));
        for copy in [Copy2::A, Copy2::B] {
            let checkpoint = Checkpoint::decode(&content(&crashed, FileName::Checkpoint(0, copy)));
            let held = checkpoint.map(|checkpoint| (checkpoint.partitions[0].epoch, checkpoint.partitions[0].clean));
            assert_eq!(held, Some((epoch, false)), "seed {seed}: copy {copy:?}");
        }
    }
}

#[test]
fn a_producer_that_wants_no_answer_gets_none_when_its_partition_stops() {
    let mut stopped = 0;
    for seed in 0..60 {
        let mut runner = begun(1, seed);
        runner.disk.set_faults(|faults| {
            faults.next_write_fails = true;
            faults.aim = Some(|name| name == FIRST);
        });
        send(&mut runner, 1, 50, &batch(50, 1, 10));
        for id in 60..64 {
            // The first needs a segment, so all of them wait.
            let (request, partition) = (RequestId(id), PartitionUid(1));
            let batch = incoming(&batch(id, 1, 45_000));
            runner.command(Command::Produce { request, partition, acks: Acks::None, batch });
        }
        quiesce(&mut runner);
        stopped += usize::from(offline(answer(&mut runner, 50)));
        let answered = runner.effects.iter().any(|effect| matches!(effect, Effect::Produced(..)));
        assert!(!answered, "seed {seed}: {:?}", runner.effects);
    }
    assert_eq!(stopped, 60);
}
