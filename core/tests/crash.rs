//! Model against crash disk: whatever a power cut takes, nothing acknowledged is lost; knows only commands and effects.

mod model;

use coulee_core::config::TopicConfig;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::executor::{Random, Runner};
use coulee_core::shard::ShardOptions;
use model::{Model, OPTIONS, Verdict, dice, open_all, restart, small_segments};

/// One random thing: a batch, time, or a step of disk or shard.
fn happen(runner: &mut Runner, model: &mut Model, partitions: u64) -> Verdict<usize> {
    match runner.random.below(6) {
        0 => model.produce(runner, partitions),
        1 => {
            let ms = runner.random.below(40);
            runner.pass(ms);
        }
        _ => drop(runner.step()),
    }
    model.take_acks(runner)
}

/// Runs one seed with small segments.
fn run(seed: u64, prepare: fn(&MemoryDisk)) -> Verdict<(usize, u64)> {
    run_with(seed, prepare, Model::default(), OPTIONS)
}

/// Runs one seed: produces, completions in any order, time, and power cuts at random steps. Answers how many batches
/// were acknowledged and the disk's trace.
fn run_with(seed: u64, prepare: fn(&MemoryDisk), mut model: Model, options: ShardOptions) -> Verdict<(usize, u64)> {
    let mut dice = dice(seed);
    let partitions = 1 + dice.below(3);
    let disk = MemoryDisk::crashing();
    disk.set_device_flush(dice.below(2) == 0);
    prepare(&disk);
    let (mut acked, mut trace) = (0, 0);
    let mut runner = Runner::start(disk, options, seed).map_err(|error| error.to_string())?;
    open_all(&mut runner, partitions, model.config)?;
    for round in 0..2 + dice.below(3) {
        for _ in 0..dice.below(1_200) {
            acked += happen(&mut runner, &mut model, partitions)?;
        }
        trace ^= runner.disk.trace().rotate_left(round as u32);
        let crashed = runner.disk.crash(&mut dice);
        prepare(&crashed);
        let restarted = restart(crashed, &mut model, partitions, seed + round);
        runner = restarted.map_err(|wrong| format!("seed {seed}, crash {round}: {wrong}"))?;
    }
    Ok((acked, trace))
}

#[test]
fn nothing_acknowledged_is_lost_doubled_or_changed_by_a_power_cut_at_any_step() {
    let mut acked = 0;
    for seed in 0..1_000 {
        acked += run(seed, |_| ()).unwrap_or_else(|wrong| panic!("{wrong}")).0;
    }
    println!("1,000 seeds, {acked} batches acknowledged");
    assert!(acked > 50_000, "only {acked} batches were acknowledged: the test has lost its teeth");
}

/// Batches from one record to most of a segment of 64 KiB, and some that only the next larger size holds.
fn up_to_large(random: &mut Random) -> (u64, usize) {
    match random.below(16) {
        0 => (1, 100_000 + random.below(300_000) as usize),
        1..=4 => (1 + random.below(3), 30_000 + random.below(20_000) as usize),
        5..=7 => (50, 100),
        _ => (1 + random.below(5), random.below(400) as usize),
    }
}

#[test]
fn segments_that_grow_from_64_kib_to_1_mib_lose_nothing_either() {
    let config = TopicConfig::parse([("segment.bytes", "1048576")]).unwrap();
    let options = ShardOptions { pool_bytes: 4 << 20, ..OPTIONS };
    let (mut acked, mut grown) = (0, 0);
    for seed in 5_000..5_060 {
        let model = Model { config, shape: up_to_large, ..Model::default() };
        let ran = run_with(seed, |_| (), model, options);
        acked += ran.unwrap_or_else(|wrong| panic!("{wrong}")).0;
        grown += 1;
    }
    println!("{grown} seeds, {acked} batches acknowledged");
    assert!(acked > 2_000, "only {acked} batches were acknowledged: the test has lost its teeth");
}

/// The process dies, and a new one starts on what it has left, synced or not.
fn kill(runner: Runner, model: &mut Model, partitions: u64, seed: u64) -> Verdict<Runner> {
    let disk = runner.disk.clone();
    drop(runner);
    // The kernel ends what is in flight before the process is gone.
    while disk.pending() > 0 {
        disk.complete(0);
    }
    restart(disk, model, partitions, seed)
}

#[test]
fn what_a_start_shows_after_the_process_has_died_survives_a_power_cut_that_follows() {
    for seed in 0..150 {
        let (mut dice, mut model) = (dice(seed), Model::default());
        let mut runner = Runner::start(MemoryDisk::crashing(), OPTIONS, seed).unwrap();
        open_all(&mut runner, 2, small_segments()).unwrap();
        for round in 0..4 {
            for _ in 0..dice.below(300) {
                happen(&mut runner, &mut model, 2).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
            }
            let killed = kill(runner, &mut model, 2, seed + round);
            let killed = killed.unwrap_or_else(|wrong| panic!("seed {seed}, death {round}: {wrong}"));
            let cut = restart(killed.disk.crash(&mut dice), &mut model, 2, seed + round);
            runner = cut.unwrap_or_else(|wrong| panic!("seed {seed}, power cut {round}: {wrong}"));
        }
    }
}

#[test]
fn a_process_that_dies_at_any_moment_loses_nothing_that_was_acknowledged_when_written() {
    let config = TopicConfig::parse([("segment.bytes", "65536"), ("durability", "written")]).unwrap();
    let mut acked = 0;
    for seed in 0..150 {
        let (mut dice, mut model) = (dice(seed), Model { config, ..Model::default() });
        let mut runner = Runner::start(MemoryDisk::crashing(), OPTIONS, seed).unwrap();
        open_all(&mut runner, 2, config).unwrap();
        for round in 0..4 {
            for _ in 0..dice.below(400) {
                acked += happen(&mut runner, &mut model, 2).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
            }
            let killed = kill(runner, &mut model, 2, seed + round);
            runner = killed.unwrap_or_else(|wrong| panic!("seed {seed}, death {round}: {wrong}"));
        }
    }
    assert!(acked > 5_000, "only {acked} batches were acknowledged: the test has lost its teeth");
}

/// One scenario with roll, naming, sealing and checkpoints, cut after each of its steps.
#[test]
fn a_power_cut_after_any_single_step_of_a_roll_loses_nothing() {
    for cut in 0..700 {
        let mut dice = dice(cut);
        let (mut model, disk) = (Model::default(), MemoryDisk::crashing());
        let mut runner = Runner::start(disk, OPTIONS, 11).unwrap();
        open_all(&mut runner, 1, small_segments()).unwrap();
        for _ in 0..cut {
            happen(&mut runner, &mut model, 1).unwrap_or_else(|wrong| panic!("cut {cut}: {wrong}"));
        }
        let crashed = runner.disk.crash(&mut dice);
        restart(crashed, &mut model, 1, cut).unwrap_or_else(|wrong| panic!("cut {cut}: {wrong}"));
    }
}

#[test]
fn the_same_test_fails_when_syncs_do_nothing() {
    let failed =
        (0..20).filter_map(|seed| run(seed, |disk| disk.set_faults(|faults| faults.syncs_do_nothing = true)).err());
    let failed: Vec<String> = failed.collect();
    println!("{} of 20 seeds fail without syncs, the first with: {}", failed.len(), failed[0]);
    assert!(failed.len() >= 15, "only {} of 20 seeds notice that syncs do nothing", failed.len());
}

#[test]
fn a_disk_whose_sync_never_returns_never_lets_anything_be_acknowledged() {
    for seed in 0..50 {
        let (mut model, disk) = (Model::default(), MemoryDisk::crashing());
        let mut runner = Runner::start(disk, OPTIONS, seed).unwrap();
        open_all(&mut runner, 2, small_segments()).unwrap();
        runner.disk.set_faults(|faults| faults.syncs_hang = true);
        for _ in 0..2_000 {
            let acked = happen(&mut runner, &mut model, 2).unwrap();
            assert_eq!(acked, 0, "seed {seed}: acknowledged before any sync returned");
        }
        assert!(model.sent.len() > 100, "seed {seed}: nothing was produced");
    }
}

#[test]
fn one_seed_run_twice_gives_the_same_trace_and_another_seed_another() {
    let traces: Vec<(usize, u64)> = (0..20).map(|seed| run(seed, |_| ()).unwrap()).collect();
    let again: Vec<(usize, u64)> = (0..20).map(|seed| run(seed, |_| ()).unwrap()).collect();
    assert_eq!(traces, again);
    assert_ne!(traces[0].1, traces[1].1);
}
