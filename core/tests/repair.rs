//! `core::repair` over disks in memory: what was readable stays so, more becomes so, the rest is marked; cut off at any
//! step it can be done again, and done once it finds nothing to do.

#![allow(clippy::unwrap_used, reason = "what the tests share fails as they do")]

mod model;

use coulee_core::block::{Block, BlockPool};
use coulee_core::catalog::{CATALOG_UID, Catalog, Change};
use coulee_core::config::TopicConfig;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::disk::{Copy2, FileName};
use coulee_core::executor::{Random, Runner, block_on};
use coulee_core::limits::BLOCK_BYTES;
use coulee_core::meta;
use coulee_core::repair::{Step, plan, repair};
use coulee_core::shard::{Command, Effect, ShardOptions};
use coulee_core::verify::{Report, Severity, verify};
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::compression::Codec;
use coulee_protocol::ids::{ClusterId, Offset, PartitionUid, TopicId};
use model::{Served, answer, append, read_around, send, small_segments, stop};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

const CLUSTER: ClusterId = ClusterId([7; 16]);
const UID: PartitionUid = PartitionUid(2);
const BARE: ShardOptions = ShardOptions { id: 0, tail_bytes: 0, pool_bytes: 0 };

fn open(runner: &mut Runner, uid: PartitionUid) {
    runner.command(Command::Open(catalog().owner(uid, CLUSTER).unwrap(), small_segments()));
    let opened =
        runner.wait_for(|effect| matches!(effect, Effect::Opened(opened, Ok(_)) if *opened == uid).then_some(()));
    opened.unwrap();
}

/// One topic with one partition.
fn catalog() -> Catalog {
    let mut catalog = Catalog::default();
    catalog.apply(&catalog.plan(change(), 1).unwrap()).unwrap();
    catalog
}

fn change() -> Change {
    let (name, topic_id) = ("orders".into(), TopicId([9; 16]));
    Change::Create { topic_id, name, partitions: 1, replication_factor: 0, settings: vec![] }
}

/// A directory after a clean stop: several sealed segments and an active one.
fn stopped() -> MemoryDisk {
    let disk = MemoryDisk::crashing();
    block_on(&disk, &mut Random::new(1), meta::open(&disk, &BlockPool::new(0), CLUSTER)).unwrap();
    let mut runner = Runner::start(disk, BARE, 1).unwrap();
    runner.command(Command::Open(catalog().owner(CATALOG_UID, CLUSTER).unwrap(), TopicConfig::default()));
    let value = Catalog::default().plan(change(), 1).unwrap().encode();
    let mut builder = BatchBuilder::new(Codec::None, 1 << 20);
    builder.push(&NewRecord { value: Some(&value), ..NewRecord::default() }).unwrap();
    runner.wait_for(|effect| matches!(effect, Effect::Opened(..)).then_some(())).unwrap();
    send(&mut runner, CATALOG_UID.0, 1 << 32, &builder.finish().unwrap());
    answer(&mut runner, 1 << 32).unwrap().unwrap();
    open(&mut runner, UID);
    let shapes = [(3, 40), (1, 5_000), (1, 33_000), (2, 9), (1, 700), (7, 1), (1, 3_900), (40, 20), (1, 300)];
    for id in 1..=24 {
        append(&mut runner, UID.0, id, shapes[id as usize % shapes.len()]).unwrap();
    }
    stop(runner).unwrap()
}

fn segments(disk: &MemoryDisk) -> Vec<FileName> {
    let mut names: Vec<FileName> = disk.files().into_iter().map(|(name, _)| name).collect();
    names.retain(|name| matches!(name, FileName::Segment(uid, _) if *uid == UID));
    names
}

fn checked(disk: &MemoryDisk) -> Report {
    block_on(disk, &mut Random::new(1), verify(disk, &mut |_| ())).unwrap()
}

fn repaired(disk: &MemoryDisk, run: u64) -> (Vec<Step>, Report) {
    let pool = BlockPool::new(0);
    block_on(disk, &mut Random::new(run), repair(disk, &pool, run, 5, &mut |_, _| ())).unwrap()
}

/// What a shard serves of a copy of `disk`.
fn served(disk: &MemoryDisk) -> Served {
    let copy = disk.damaged(FileName::Meta(Copy2::A), |bytes| (!bytes.is_empty()).then_some(bytes));
    let mut runner = Runner::start(copy, BARE, 2).unwrap();
    open(&mut runner, UID);
    read_around(&mut runner, UID.0).unwrap()
}

/// Everything that was served before is served unchanged, and the log ends where it ended.
fn keeps(before: &Served, after: &Served) {
    assert_eq!(before.end, after.end);
    for (offset, bytes) in &before.batches {
        let same = |(other, found): &(u64, Block)| other == offset && found[..] == bytes[..];
        assert!(after.batches.iter().any(same), "the batch at {offset} was readable before");
    }
}

/// A way to damage a directory.
type Fault = fn(&MemoryDisk, &[FileName]) -> MemoryDisk;

/// Ways, each with what has to be readable of the batches afterwards: all, or at least some more than before.
const FAULTS: [(&str, Fault, bool); 8] = [
    ("header page of a sealed segment", |disk, names| disk.damaged(names[0], |bytes| at(bytes, 50)), true),
    (
        "header page of a middle segment, all zeros",
        |disk, names| disk.damaged(names[1], |bytes| zeros(bytes, 0, 4_096)),
        true,
    ),
    (
        "header page of the active segment",
        |disk, names| disk.damaged(names[names.len() - 1], |bytes| at(bytes, 9)),
        true,
    ),
    ("page and first batch", |disk, names| disk.damaged(names[1], |bytes| zeros(bytes, 0, 4_300)), false),
    ("a batch in the middle", |disk, names| disk.damaged(names[0], |bytes| at(bytes, 6_000)), false),
    ("a segment that is gone", |disk, names| disk.damaged(names[1], |_| None), false),
    (
        "a segment that is too long",
        |disk, names| {
            disk.damaged(names[0], |mut bytes| {
                bytes.resize(1 << 20, 0);
                Some(bytes)
            })
        },
        true,
    ),
    (
        "both copies of meta",
        |disk, _| {
            let one = disk.damaged(FileName::Meta(Copy2::A), |_| None);
            one.damaged(FileName::Meta(Copy2::B), |bytes| at(bytes, 20))
        },
        true,
    ),
];

fn at(mut bytes: Vec<u8>, position: usize) -> Option<Vec<u8>> {
    bytes[position] ^= 4;
    Some(bytes)
}

fn zeros(mut bytes: Vec<u8>, from: usize, to: usize) -> Option<Vec<u8>> {
    bytes[from..to].fill(0);
    Some(bytes)
}

#[test]
fn a_repair_restores_what_it_can_marks_the_rest_and_has_nothing_to_do_a_second_time() {
    let sound = stopped();
    let names = segments(&sound);
    assert!(names.len() >= 3);
    let whole = served(&sound);
    for (name, fault, is_restored) in FAULTS {
        let disk = fault(&sound, &names);
        let before = served(&disk);
        assert_eq!(checked(&disk).severity(), Some(Severity::Damage), "{name}");
        let (steps, report) = repaired(&disk, 1);
        assert!(!steps.is_empty() && report.severity() < Some(Severity::Damage), "{name}: {steps:?}");
        let after = served(&disk);
        keeps(&before, &after);
        if is_restored {
            assert_eq!((after.batches.len(), after.lost.len()), (whole.batches.len(), 0), "{name}");
        } else {
            let marks = disk.files().iter().filter(|(name, _)| matches!(name, FileName::Hole(..))).count();
            assert!(marks > 0 && !after.lost.is_empty(), "{name}: the hole is marked and told");
        }
        let files = disk.files();
        assert_eq!(repaired(&disk, 2).0, [], "{name}: a second time");
        assert!(files == disk.files(), "{name}: a second repair changes nothing");
    }
}

#[test]
fn a_header_page_is_restored_bit_by_bit_where_the_trailer_knows_its_sum() {
    let sound = stopped();
    let name = segments(&sound)[0];
    let disk = sound.damaged(name, |bytes| zeros(bytes, 0, BLOCK_BYTES));
    repaired(&disk, 1);
    assert!(model::content(&disk, name) == model::content(&sound, name));
    let kept = FileName::Kept(1, UID, Offset(0), 0);
    assert!(model::content(&disk, kept) == [0; BLOCK_BYTES], "what was there is kept aside");
}

#[test]
fn a_plan_changes_nothing() {
    let sound = stopped();
    for (name, fault, _) in FAULTS {
        let disk = fault(&sound, &segments(&sound));
        let (files, report) = (disk.files(), checked(&disk));
        let steps = block_on(&disk, &mut Random::new(1), plan(&disk, &report)).unwrap();
        assert!(!steps.is_empty() && files == disk.files(), "{name}");
    }
}

#[test]
fn a_marked_hole_is_remembered_when_checkpoints_and_the_segments_around_it_are_gone() {
    let sound = stopped();
    let names = segments(&sound);
    let (first, last) = (names[0], names[names.len() - 1]);
    for lost in [first, last] {
        let disk = sound.damaged(lost, |_| None);
        repaired(&disk, 1);
        let before = served(&disk);
        let gone = disk.damaged(FileName::Checkpoint(0, Copy2::A), |_| None);
        let gone = gone.damaged(FileName::Checkpoint(0, Copy2::B), |_| None);
        let after = served(&gone);
        keeps(&before, &after);
        assert_eq!(before.lost, after.lost, "{lost}: readers are told as before");
    }
}

/// Lets `future` complete so many operations of the disk, and answers whether it came to its end.
fn run_for(disk: &MemoryDisk, random: &mut Random, operations: u64, future: impl Future<Output = ()>) -> bool {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..operations {
        if let Poll::Ready(()) = future.as_mut().poll(&mut context) {
            return true;
        }
        disk.complete(random.below(disk.pending() as u64) as usize);
    }
    future.as_mut().poll(&mut context).is_ready()
}

#[test]
fn a_repair_that_a_power_cut_stops_at_any_step_loses_nothing_and_the_next_one_finishes_it() {
    let sound = stopped();
    let names = segments(&sound);
    let mut cuts = 0;
    for (name, fault, _) in FAULTS {
        let before = served(&fault(&sound, &names));
        for operations in 0.. {
            let disk = fault(&sound, &names);
            let mut random = Random::new(operations);
            let pool = BlockPool::new(0);
            let future = async { drop(repair(&disk, &pool, 1, 5, &mut |_, _| ()).await.unwrap()) };
            let is_done = run_for(&disk, &mut random, operations, future);
            let crashed = disk.crash(&mut random);
            keeps(&before, &served(&crashed));
            let (_, report) = repaired(&crashed, 2);
            assert!(report.severity() < Some(Severity::Damage), "{name}, cut after {operations} operations");
            keeps(&before, &served(&crashed));
            cuts += 1;
            if is_done {
                break;
            }
        }
    }
    println!("{cuts} power cuts amid repairs");
}

#[test]
fn a_page_is_restored_though_the_meta_file_is_lost_with_it_and_without_a_cluster_nothing_is_given_up() {
    let sound = stopped();
    let catalog = FileName::Segment(CATALOG_UID, Offset(0));
    let lost = FAULTS[7].1(&sound, &segments(&sound)).damaged(catalog, |bytes| at(bytes, 50));
    let some = lost.damaged(segments(&sound)[0], |bytes| at(bytes, 50));
    assert!(repaired(&some, 1).1.severity() < Some(Severity::Damage), "other pages know the cluster");
    assert_eq!(served(&some).lost, []);
    let none = segments(&sound).into_iter().fold(lost, |disk, name| disk.damaged(name, |bytes| at(bytes, 50)));
    let (steps, report) = repaired(&none, 1);
    assert_eq!((steps, report.severity()), (Vec::new(), Some(Severity::Damage)));
}

#[test]
fn a_lost_record_of_the_catalog_stays_damage_since_no_broker_starts_without_it() {
    let sound = stopped();
    let disk = sound.damaged(FileName::Segment(CATALOG_UID, Offset(0)), |bytes| at(bytes, BLOCK_BYTES + 200));
    let (steps, report) = repaired(&disk, 1);
    assert_eq!((steps, report.severity()), (Vec::new(), Some(Severity::Damage)));
}

#[test]
fn a_disk_that_is_full_refuses_a_repair_before_anything_is_changed() {
    let sound = stopped();
    let disk = sound.damaged(segments(&sound)[0], |bytes| at(bytes, 50));
    disk.set_faults(|faults| faults.full = true);
    let files = disk.files();
    let pool = BlockPool::new(0);
    let refused = block_on(&disk, &mut Random::new(1), repair(&disk, &pool, 1, 5, &mut |_, _| ()));
    assert_eq!(refused.map(drop), Err(coulee_core::disk::DiskError::NoSpace));
    assert!(files == disk.files());
}
