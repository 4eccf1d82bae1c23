//! Faults of the disk under a filesystem: reads, writes, flushes that fail, slowness; they know no byte of the log.

use crate::load::{PARTITIONS, TOPIC, create_topic, end_of, runtime};
use crate::{Trial, rounds};
use coulee_client::{Client, Start};
use coulee_protocol::api::stats::Counter;
use coulee_tests::block_device::{FailingFlushes, Faults};
use coulee_tests::broker::{Options, Process, address};
use coulee_tests::rig::{FILESYSTEMS, Filesystem, Rig, extents};
use std::ops::Range;
use std::time::Duration;

/// Acks between one thing that is done and the next.
const ACKS: usize = 200;
/// How long each request takes on a slow disk.
const SLOW: Duration = Duration::from_millis(10);

fn start(rig: &Rig) -> (Process, String) {
    let mut broker = Process::spawn(rig.folder(), &rig.data(), &Options::default());
    let ready = broker.ready_line().unwrap_or_else(|ended| panic!("{}\n{}", ended.status, ended.log));
    let address = address(&ready);
    (broker, address)
}

/// A broker on a disk of its own, with the topic and something in it.
fn begin(test: &str, filesystem: Filesystem) -> Option<(Trial, Rig, Process, String)> {
    let rig = Rig::new(test, filesystem)?;
    let mut trial = Trial::new();
    let (broker, address) = start(&rig);
    runtime().block_on(create_topic(&address));
    let load = trial.load(&address);
    load.await_acks(ACKS);
    trial.finish(load);
    Some((trial, rig, broker, address))
}

/// Where on the disk the files of a partition lie.
async fn extents_of(rig: &Rig, address: &str, partition: u32) -> Vec<Range<u64>> {
    let client = Client::connect(address).await.unwrap();
    let uid = client.topic(TOPIC).await.unwrap().partitions[partition as usize].uid;
    let files = std::fs::read_dir(rig.data().join(format!("p/{uid}"))).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|end| end == "log")).flat_map(|path| extents(&path)).collect()
}

/// How many partitions are offline.
async fn offline(address: &str) -> u64 {
    let stats = Client::connect(address).await.unwrap().stats().await.unwrap();
    stats.shards.iter().map(|shard| shard.counters[&Counter::PartitionsOffline]).sum()
}

/// Kills the broker, starts it on the disk as it should be, and checks what is there; then it takes writes again.
fn restart_and_check(trial: &mut Trial, mut broker: Process, rig: &mut Rig) {
    broker.kill();
    trial.crashed();
    rig.disk().fail(|faults| *faults = Faults::default());
    rig.remount();
    let (_broker, address) = start(rig);
    trial.check(&address);
    let load = trial.load(&address);
    load.await_acks(ACKS);
    trial.finish(load);
    assert_eq!(runtime().block_on(offline(&address)), 0);
    trial.check(&address);
}

#[test]
fn a_failed_write_stops_its_partition_and_no_other_and_costs_nothing() {
    for filesystem in FILESYSTEMS {
        let test = "a_failed_write_stops_its_partition_and_no_other_and_costs_nothing";
        let Some((mut trial, mut rig, broker, address)) = begin(test, filesystem) else { return };
        let load = trial.load(&address);
        // Its next write may be into another file by now.
        while rig.disk().fail(|faults| faults.failed) == 0 {
            let extents = runtime().block_on(extents_of(&rig, &address, 0));
            rig.disk().fail(|faults| faults.writes = extents);
            load.await_acks(20);
        }
        load.await_refusals(5);
        load.await_acks(ACKS);
        assert!(rig.disk().fail(|faults| std::mem::take(&mut faults.writes).len()) > 0);
        // It is not tried again by itself, also when the disk is well again.
        load.await_refusals(5);
        trial.finish(load);
        assert_eq!(runtime().block_on(offline(&address)), 1, "{}", broker.log());
        // Reads go on, also of the partition that has stopped.
        trial.check(&address);
        restart_and_check(&mut trial, broker, &mut rig);
    }
}

#[test]
fn failed_flushes_are_never_acknowledged_over_and_reads_go_on() {
    for filesystem in FILESYSTEMS {
        let test = "failed_flushes_are_never_acknowledged_over_and_reads_go_on";
        let Some((mut trial, mut rig, broker, address)) = begin(test, filesystem) else { return };
        rig.disk().fail(|faults| faults.flushes = FailingFlushes::All);
        let load = trial.load(&address);
        load.await_refusals(20);
        trial.finish(load);
        assert!(rig.disk().fail(|faults| faults.failed) > 0);
        assert!(runtime().block_on(offline(&address)) > 0, "{}", broker.log());
        trial.check(&address);
        restart_and_check(&mut trial, broker, &mut rig);
    }
}

#[test]
fn a_failed_read_is_an_error_for_that_fetch_and_for_no_other() {
    let test = "a_failed_read_is_an_error_for_that_fetch_and_for_no_other";
    let Some((mut trial, mut rig, mut broker, _)) = begin(test, FILESYSTEMS[0]) else { return };
    broker.kill();
    trial.crashed();
    // Nothing is in memory.
    rig.remount();
    let (broker, address) = start(&rig);
    runtime().block_on(async {
        let extents = extents_of(&rig, &address, 0).await;
        rig.disk().fail(|faults| faults.reads = extents);
        let client = Client::connect(&address).await.unwrap();
        let read = async |partition| {
            let consumer = client.consumer(TOPIC).partitions([partition]).start(Start::Start).max_bytes(1 << 18);
            consumer.build().await.unwrap().poll().await.map(|batch| batch.map(|batch| batch.end_offset()))
        };
        let failed = read(0).await;
        assert!(failed.is_err(), "{failed:?}");
        for partition in 1..PARTITIONS {
            assert!(end_of(&client, partition).await == 0 || read(partition).await.unwrap().is_some());
        }
        assert!(rig.disk().fail(|faults| std::mem::take(faults).failed) > 0);
    });
    trial.check(&address);
    restart_and_check(&mut trial, broker, &mut rig);
}

#[test]
fn a_slow_disk_breaks_no_promise() {
    let test = "a_slow_disk_breaks_no_promise";
    let Some((mut trial, mut rig, broker, address)) = begin(test, FILESYSTEMS[0]) else { return };
    let load = trial.load(&address);
    for _ in 0..rounds() {
        rig.disk().fail(|faults| faults.delay = SLOW);
        load.await_acks(ACKS);
        rig.disk().fail(|faults| faults.delay = Duration::ZERO);
        load.await_acks(ACKS);
    }
    trial.finish(load);
    trial.check(&address);
    restart_and_check(&mut trial, broker, &mut rig);
}
