//! Real executors on real threads; processes of their own for what ends a process.

use super::*;
use crate::mesh::{Mesh, MeshEnd};
use std::env;
use std::process::{Command, Output};

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
    let body = move |part: &'static str| {
        // SAFETY: no pointer is passed.
        let cpu = unsafe { libc::sched_getcpu() };
        let name = thread::current().name().map(str::to_owned);
        said.send((part, usize::try_from(cpu).unwrap(), name)).unwrap();
    };
    start(&ExecutorOptions::on(cpus.clone()), vec!["left", "right"], body).unwrap().join();
    let mut seen: Vec<_> = heard.iter().collect();
    seen.sort();
    let name = |shard| Some(format!("shard-{shard}"));
    assert_eq!(seen, [("left", cpus[0], name(0)), ("right", cpus[1], name(1))]);
}

#[test]
fn shards_talk_over_the_mesh() {
    let body = |(shard, mut end): (usize, MeshEnd<u64>)| {
        let (peer, mut received) = (1 - shard, 0);
        let mut unsent = 0_u64;
        while received < 5_000 {
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
    start(&ExecutorOptions::on(two_cpus()), Mesh::new(2).into_iter().enumerate().collect(), body).unwrap().join();
}

#[test]
fn a_cpu_that_does_not_exist_is_an_error_and_no_body_runs() {
    let cpus = vec![usable_cpus().unwrap().allowed[0], 100_000];
    let body = |()| panic!("one shard is missing");
    match start(&ExecutorOptions::on(cpus), vec![(), ()], body) {
        Err(StartError::Executor { shard: 1, cpu: 100_000, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_panic_on_a_shard_ends_the_process_and_names_the_shard() {
    let Some(output) = in_child("a_panic_on_a_shard_ends_the_process_and_names_the_shard") else {
        let body = |shard| {
            assert_eq!(shard, 0, "a shard of the test dies");
            loop {
                thread::park();
            }
        };
        return start(&ExecutorOptions::on(two_cpus()), vec![0, 1], body).unwrap().join();
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("shard 1 panicked"), "{said}");
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    assert_eq!(signal, Some(libc::SIGABRT), "{said}");
}
