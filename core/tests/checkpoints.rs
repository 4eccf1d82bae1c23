//! A shard's two checkpoint copies: one that cannot be written never costs the other; knows no partition's data.

use coulee_core::checkpoint::Checkpoint;
use coulee_core::config::TopicConfig;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::disk::{Copy2, FileName};
use coulee_core::executor::Runner;
use coulee_core::log::segment::Owner;
use coulee_core::shard::{Command, Effect, ShardOptions};
use coulee_protocol::ids::PartitionUid;

/// So many that a checkpoint fills more than half of its block: a write that is done in half is torn.
const PARTITIONS: u64 = 30;

fn sequences(disk: &MemoryDisk) -> [Option<u64>; 2] {
    [Copy2::A, Copy2::B].map(|copy| {
        let files = disk.files();
        let (_, bytes) = files.iter().find(|(name, _)| *name == FileName::Checkpoint(0, copy))?;
        Checkpoint::decode(bytes).map(|checkpoint| checkpoint.sequence)
    })
}

/// Lets `ms` pass and everything happen that is due.
fn settle(runner: &mut Runner, ms: u64) {
    runner.pass(ms);
    while runner.step() {}
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_written_again_to_the_same_copy() {
    let disk = MemoryDisk::new();
    let options = ShardOptions { id: 0, tail_bytes: 1 << 20, pool_bytes: 0 };
    let mut runner = Runner::start(disk.clone(), options, 1).unwrap();
    for uid in 1..=PARTITIONS {
        let owner = Owner { partition_uid: PartitionUid(uid), ..Owner::default() };
        runner.command(Command::Open(owner, TopicConfig::default()));
        let opened = runner.wait_for(|effect| matches!(effect, Effect::Opened(_, Ok(_))).then_some(()));
        assert!(opened.is_some(), "partition {uid} opens");
    }
    settle(&mut runner, 1_000);
    let [Some(a), Some(b)] = sequences(&disk) else { panic!("both copies are there: {:?}", sequences(&disk)) };
    let newest = a.max(b);

    disk.set_faults(|faults| faults.next_write_fails = true);
    // What a removed partition leaves to do is a checkpoint and no other write.
    runner.command(Command::Delete(PartitionUid(1)));
    settle(&mut runner, 1_000);
    let torn = sequences(&disk);
    assert!(torn.contains(&None) && torn.contains(&Some(newest)), "one copy is torn, the newest stands: {torn:?}");
    settle(&mut runner, 1_000);
    let [Some(a), Some(b)] = sequences(&disk) else { panic!("both copies are there again: {:?}", sequences(&disk)) };
    assert_eq!((a.min(b), a.max(b)), (newest, newest + 1));
}

#[test]
fn a_shard_that_has_stopped_wants_no_more_cycles_whatever_comes_late() {
    let options = ShardOptions { id: 0, tail_bytes: 1 << 20, pool_bytes: 0 };
    let mut runner = Runner::start(MemoryDisk::new(), options, 1).unwrap();
    runner.command(Command::Stop);
    assert!(runner.wait_for(|effect| matches!(effect, Effect::Stopped).then_some(())).is_some());
    let owner = Owner { partition_uid: PartitionUid(1), ..Owner::default() };
    runner.command(Command::Open(owner, TopicConfig::default()));
    settle(&mut runner, 1_000);
    assert_eq!(runner.shard.deadline_ms(), None, "it would be given cycle after cycle in vain");
}
