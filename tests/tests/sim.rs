//! Whole brokers under the simulator: no seed breaks a promise, a seed is one run; knows no file and no socket.

use coulee_tests::sim::{Ran, run, run_caught};

/// Seeds of the gate; `make soak` runs as many as one has time for.
const SEEDS: u64 = 600;

/// Runs these seeds and adds up what they saw.
fn run_all(seeds: std::ops::Range<u64>) -> Ran {
    let mut total = Ran::default();
    for seed in seeds {
        let ran = run_caught(seed).unwrap_or_else(|failure| panic!("{failure}"));
        total.crashes += ran.crashes;
        total.power_cuts += ran.power_cuts;
        total.faults.iter_mut().zip(ran.faults).for_each(|(sum, more)| *sum += more);
        total.report.acked += ran.report.acked;
        total.report.read += ran.report.read;
    }
    total
}

#[test]
fn no_seed_loses_doubles_reorders_or_changes_what_was_acknowledged() {
    let ran = run_all(0..SEEDS);
    println!("{SEEDS} seeds, {} crashes, {} of them power cuts; {}", ran.crashes, ran.power_cuts, ran.report);
    println!("{:?} operations failed, creations refused, blocks spoilt", ran.faults);
    assert!(ran.crashes > SEEDS && ran.report.acked > 50 * SEEDS, "the simulator has lost its teeth: {ran:?}");
    assert!(ran.faults.iter().all(|count| *count > SEEDS / 10), "the disk is too kind: {:?}", ran.faults);
}

#[test]
fn one_seed_run_twice_gives_the_same_trace_and_another_seed_another() {
    let traces = || (0..30).map(|seed| run(seed).unwrap_or_else(|failure| panic!("{failure}"))).collect::<Vec<Ran>>();
    let (first, second) = (traces(), traces());
    assert_eq!(first, second);
    assert!(first.windows(2).all(|pair| pair[0].trace != pair[1].trace));
}

/// What a failure asks for: `COULEE_SIM_SEED=N cargo test -p coulee-tests --test sim -- --exact …`.
#[test]
fn one_seed_of_the_environment() {
    let seed = std::env::var("COULEE_SIM_SEED").ok().map(|seed| seed.parse().expect("a seed is a number"));
    let ran = run(seed.unwrap_or(0)).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{ran:?}");
}
