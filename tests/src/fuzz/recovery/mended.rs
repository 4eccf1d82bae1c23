//! The body of the target `repair`: damaged files under `verify` and `repair`; knows what was written, and no format.
//!
//! A check changes nothing. A repair leaves readable what was readable, gives no offset out again by its marks, and has
//! nothing to do a second time.

use super::base::BASE;
use super::{OPTIONS, PARTITIONS, Served, faults, serve, start};
use crate::fuzz::input::Input;
use crate::fuzz::memory::assert_counted;
use coulee_core::block::BlockPool;
use coulee_core::catalog::CATALOG_UID;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::executor::{Random, block_on};
use coulee_core::repair::{Step, repair as mend};
use coulee_core::verify::{PartitionReport, Report, verify};

/// Damages files as `bytes` say, checks them, repairs them, and repairs them again.
///
/// # Panics
/// When a property breaks.
pub fn repair(bytes: &[u8]) {
    assert_counted();
    assert_eq!(OPTIONS.pool_bytes, 0, "a reserve would be in the way of the comparison");
    let mut input = Input(bytes);
    let kind = input.u8();
    let image = if kind % 2 == 1 { &BASE.crashed } else { &BASE.stopped };
    let (files, moved) = faults::happen(image, &BASE.older, input);
    let disk = MemoryDisk::holding(files.clone());
    let found = checked(&disk);
    assert!(disk.files() == MemoryDisk::holding(files).files(), "a check has changed something");
    let before = served(&disk);
    let pool = BlockPool::new(0);
    let (steps, report) = block_on(&disk, &mut Random::new(1), mend(&disk, &pool, 1, 0, &mut |_, _| ()))
        .expect("a disk without faults takes a repair");
    let is_readable = |report: &Report| report.partitions.iter().all(|partition| partition.inspected.error.is_none());
    assert_eq!(is_readable(&found), is_readable(&report), "what cannot be opened stays so");
    // Partition 1 is the catalog's, which is never marked; and nothing is as long as nobody knows the cluster.
    let marked = |partition: &&PartitionReport| {
        let is_known = report.cluster_id.is_some() && partition.inspected.error.is_none();
        is_known && partition.uid != CATALOG_UID
    };
    for partition in report.partitions.iter().filter(marked) {
        assert_eq!(partition.inspected.unmarked().count(), 0, "damage is left that nobody has marked");
    }
    let mended = disk.files();
    let again = block_on(&disk, &mut Random::new(2), mend(&disk, &pool, 2, 0, &mut |_, _| ()));
    assert_eq!(again.map(|(steps, _)| steps), Ok(Vec::new()), "a second repair finds something to do");
    assert!(mended == disk.files(), "a second repair changes something");
    if moved {
        return;
    }
    for (uid, (before, after)) in PARTITIONS.into_iter().zip(before.iter().zip(served(&disk))) {
        let (Some(before), Some(after)) = (before, &after) else { continue };
        let is_kept = |batch: &(u64, Vec<u8>)| after.batches.contains(batch);
        assert!(before.batches.iter().all(is_kept), "partition {uid} served {before:?}, after a repair {after:?}");
        // Behind a header page that cannot be read even an unsynced tail counts as lost; restored, it is a tail.
        let is_marked_only = steps.iter().all(|step| matches!(step, Step::Meta(_) | Step::Mark(..)));
        let ends = (before.end, after.end);
        assert!(
            !is_marked_only || ends.0 == ends.1,
            "partition {uid} ended at {}, after a repair at {}",
            ends.0,
            ends.1
        );
    }
}

fn checked(disk: &MemoryDisk) -> Report {
    block_on(disk, &mut Random::new(1), verify(disk, &mut |_| ())).expect("a disk without faults can be checked")
}

/// What a shard serves of a copy: a start clears things away.
fn served(disk: &MemoryDisk) -> Vec<Option<Served>> {
    let mut runner = start(&MemoryDisk::holding(disk.files()));
    PARTITIONS.map(|uid| serve(&mut runner, uid, None)).into()
}
