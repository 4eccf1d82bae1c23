//! Real executors on real threads; processes of their own for what ends a process.

use super::*;
use crate::clock::{Clock, monotonic_us};
use crate::entropy;
use crate::mesh::{Mesh, MeshEnd};
use std::cell::RefCell;
use std::env;
use std::pin::Pin;
use std::process::{Command, Output};
use std::rc::Rc;

/// Names the test that a child process is to play the other part of.
const CHILD: &str = "COULEE_IO_CHILD";

/// Runs the test of this name in a process of its own, or `None` in that process.
fn in_child(test: &str) -> Option<Output> {
    if env::var_os(CHILD).is_some() {
        return None;
    }
    let name = format!("executor::tests::{test}");
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", &name, "--nocapture"]).env(CHILD, "1");
    Some(command.output().unwrap())
}

/// As many shards as there are CPUs, at most two; on one CPU both are pinned to it.
fn two_cpus() -> Vec<usize> {
    let cpus = usable_cpus().unwrap().allowed;
    vec![cpus[0], cpus[cpus.len() - 1]]
}

#[test]
fn each_shard_runs_its_own_part_pinned_to_its_cpu() {
    let cpus = two_cpus();
    let (said, heard) = mpsc::channel();
    let body = move |seat: Seat, part: &'static str| async move {
        // A future that can't be sent is what a shard is made of.
        let kept = Rc::new(RefCell::new(part));
        poll_fn(|context| {
            context.waker().wake_by_ref();
            if kept.replace("").is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        // SAFETY: no pointer is passed.
        let cpu = unsafe { libc::sched_getcpu() };
        let name = thread::current().name().map(str::to_owned);
        said.send((seat.shard, seat.cpu, usize::try_from(cpu).unwrap(), name, part)).unwrap();
    };
    start(&ExecutorOptions::on(cpus.clone()), vec!["left", "right"], body).unwrap().join();
    let mut seen: Vec<_> = heard.iter().collect();
    seen.sort();
    let name = |shard| Some(format!("shard-{shard}"));
    assert_eq!(seen, [(0, cpus[0], cpus[0], name(0), "left"), (1, cpus[1], cpus[1], name(1), "right")]);
}

#[test]
fn shards_talk_over_the_mesh() {
    let body = |seat: Seat, mut end: MeshEnd<u64>| async move {
        let mut clock = Clock::new();
        let (peer, mut received) = (1 - seat.shard, 0);
        let mut unsent = 0_u64;
        while received < 5_000 {
            clock.read();
            seat.pulse.beat(clock.monotonic_us());
            while unsent < 5_000 && end.send(peer, unsent).is_ok() {
                unsent += 1;
            }
            while let Some((from, message)) = end.receive() {
                assert_eq!((from, message), (peer, received));
                received += 1;
            }
            // Gives the CPU to the peer, which may be pinned to the same one.
            thread::yield_now();
        }
        while unsent < 5_000 {
            unsent += u64::from(end.send(peer, unsent).is_ok());
            thread::yield_now();
        }
    };
    start(&ExecutorOptions::on(two_cpus()), Mesh::new(2), body).unwrap().join();
}

#[test]
fn a_cpu_that_does_not_exist_is_an_error_and_no_body_runs() {
    let cpus = vec![usable_cpus().unwrap().allowed[0], 100_000];
    let body = |_: Seat, ()| async { panic!("one shard is missing") };
    match start(&ExecutorOptions::on(cpus), vec![(), ()], body) {
        Err(StartError::Executor { shard: 1, cpu: 100_000, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_panic_on_a_shard_ends_the_process_and_names_the_shard() {
    let Some(output) = in_child("a_panic_on_a_shard_ends_the_process_and_names_the_shard") else {
        let body = |seat: Seat, ()| async move {
            assert_eq!(seat.shard, 0, "a shard of the test dies");
            std::future::pending::<()>().await;
        };
        return start(&ExecutorOptions::on(two_cpus()), vec![(), ()], body).unwrap().join();
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("shard 1 panicked"), "{said}");
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    assert_eq!(signal, Some(libc::SIGABRT), "{said}");
}

#[test]
fn a_shard_that_is_parked_with_work_is_nudged_from_outside() {
    let body = |seat: Seat, ()| async move {
        seat.pulse.beat(monotonic_us());
        // Nobody keeps the waker: as when glommio parks with a task that wants to run, only the watchdog can help.
        let mut polls = 0;
        poll_fn(|_| {
            polls += 1;
            if polls == 3 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        seat.pulse.beat(monotonic_us());
    };
    let executors = start(&ExecutorOptions::on(vec![two_cpus()[0]]), vec![()], body).unwrap();
    let vitals = executors.vitals();
    executors.join();
    let stalls = vitals.stalls(0);
    assert!(stalls.nudges >= 2, "{stalls:?}");
    assert_eq!(stalls.counts.iter().sum::<u64>(), 1, "{stalls:?}");
    assert!(stalls.longest_us >= crate::limits::WATCHDOG_TICK_US, "{stalls:?}");
    assert_eq!(stalls.current_us, 0, "a shard that has ended is not late");
}

#[test]
fn a_panicking_future_does_not_reach_the_caller_of_start() {
    let Some(output) = in_child("a_panicking_future_does_not_reach_the_caller_of_start") else {
        let body =
            |_: Seat, seed: u64| -> Pin<Box<dyn Future<Output = ()>>> { panic!("before the first poll, {seed}") };
        start(&ExecutorOptions::on(vec![two_cpus()[0]]), vec![entropy::random_u64()], body).unwrap().join();
        println!("the process went on");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("shard 0 panicked"), "{said}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("went on"));
}
