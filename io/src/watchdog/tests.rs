//! The watchdog in time that tests make up, and its thread with real wake-ups; no test waits for a time.

use super::*;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use std::task::Wake;

/// Counts how often a shard's task is woken, and says so.
struct Task {
    wakes: AtomicUsize,
    woken: mpsc::Sender<()>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
        // Nobody listens any more once a test is over.
        self.woken.send(()).unwrap_or_default();
    }
}

fn task() -> (Arc<Task>, mpsc::Receiver<()>) {
    let (woken, wakes) = mpsc::channel();
    (Arc::new(Task { wakes: AtomicUsize::new(0), woken }), wakes)
}

/// The state of one shard without a thread that watches it.
fn unwatched() -> (Arc<Shared>, Pulse, Attached, Arc<Task>) {
    let shared = Shared::new(1);
    let pulse = Pulse::new(&shared, 0);
    let (task, _) = task();
    let attached = pulse.attach(TaskWaker::from(Arc::clone(&task)));
    (shared, pulse, attached, task)
}

#[test]
fn a_gap_without_sleep_is_counted_as_a_stall() {
    let (shared, pulse, _attached, _) = unwatched();
    for now_us in [1_000, 1_100, 5_900, 15_900, 16_000, 116_000, 10_116_000] {
        pulse.beat(now_us);
    }
    let stalls = shared.vitals[0].read(10_116_001);
    assert_eq!(stalls.counts, [0, 1, 0, 0, 1, 0, 0, 0, 1]);
    assert_eq!((stalls.longest_us, stalls.current_us), (10_000_000, 0));
    assert_eq!(shared.vitals[0].read(10_122_000).current_us, 6_000);
}

#[test]
fn a_sleeping_shard_has_no_stalls_and_gets_no_nudges() {
    let (shared, pulse, _attached, task) = unwatched();
    let mut silences = [Silence::default()];
    assert!(!shared.look(1_000_000, &mut silences), "a shard that has not begun is not awake");
    pulse.beat(1_000_000);
    pulse.sleep();
    assert!(!shared.look(9_000_000, &mut silences));
    assert_eq!(shared.vitals[0].read(9_000_000), Stalls::default());
    pulse.beat(9_000_001);
    assert_eq!(shared.vitals[0].read(9_000_002), Stalls::default());
    assert_eq!(task.wakes.load(Ordering::Relaxed), 0);
}

#[test]
fn a_shard_that_sleeps_on_is_woken_once_a_second_in_case_it_has_lost_a_wake_up() {
    let (shared, pulse, _attached, task) = unwatched();
    let mut silences = [Silence::default()];
    pulse.beat(1_000_000);
    pulse.sleep();
    for (now_us, wakes) in [(1_500_000, 0), (2_499_999, 0), (2_500_000, 1), (3_499_999, 1), (3_500_000, 2)] {
        assert!(!shared.look(now_us, &mut silences), "it is no reason to stay awake");
        assert_eq!(task.wakes.load(Ordering::Relaxed), wakes, "at {now_us}");
    }
    pulse.beat(3_600_000);
    pulse.sleep();
    shared.look(3_700_000, &mut silences);
    shared.look(4_600_000, &mut silences);
    assert_eq!(task.wakes.load(Ordering::Relaxed), 2, "another sleep begins anew");
}

#[test]
fn only_a_silent_shard_with_work_is_nudged() {
    let (shared, pulse, attached, task) = unwatched();
    let mut silences = [Silence::default()];
    pulse.beat(1_000);
    assert!(shared.look(1_000 + WATCHDOG_TICK_US - 1, &mut silences));
    assert_eq!(task.wakes.load(Ordering::Relaxed), 0);
    assert!(shared.look(1_000 + WATCHDOG_TICK_US, &mut silences));
    assert_eq!(task.wakes.load(Ordering::Relaxed), 1);
    drop(attached);
    assert!(!shared.look(u64::MAX >> 1, &mut silences), "a shard that has ended is not awake");
}

#[test]
fn nudges_of_one_silence_are_bounded() {
    let (shared, pulse, _attached, task) = unwatched();
    let mut silences = [Silence::default()];
    pulse.beat(1_000);
    for tick in 1..=2 * u64::from(NUDGES_MAX) {
        assert!(shared.look(1_000 + tick * WATCHDOG_TICK_US, &mut silences));
    }
    assert_eq!(task.wakes.load(Ordering::Relaxed), NUDGES_MAX as usize);
    pulse.beat(2_000);
    assert!(shared.look(u64::MAX >> 1, &mut silences));
    assert_eq!(task.wakes.load(Ordering::Relaxed), NUDGES_MAX as usize + 1, "a beat begins anew");
}

#[test]
fn a_parked_watchdog_is_called_by_the_first_shard_that_wakes() {
    let (watchdog, pulses) = Watchdog::start(2).unwrap();
    while !watchdog.shared.is_parked.load(Ordering::Relaxed) {
        thread::yield_now();
    }
    let (task, wakes) = task();
    let _attached = pulses[1].attach(TaskWaker::from(task));
    pulses[1].beat(monotonic_us());
    // Comes only if the watchdog runs again: the beat is 5 ms old by then.
    wakes.recv().unwrap();
    assert!(watchdog.vitals().stalls(1).nudges > 0);
    assert_eq!(watchdog.vitals().stalls(0), Stalls::default());
    assert_eq!(watchdog.vitals().shards(), 2);
}

#[test]
fn a_parked_watchdog_ends_when_it_is_dropped() {
    let (watchdog, pulses) = Watchdog::start(1).unwrap();
    while !watchdog.shared.is_parked.load(Ordering::Relaxed) {
        thread::yield_now();
    }
    drop(watchdog);
    drop(pulses);
}
