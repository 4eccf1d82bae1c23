//! What the ring costs in both ways of completing, for docs/decisions/002; knows no broker.
//!
//! `cargo run --profile test -p coulee-io --example ring_costs -- DIR` writes a file of 64 MiB in DIR and removes it.

use coulee_core::block::{Block, BlockPool};
use coulee_io::ring::{Fd, Interest, Ring, RingOptions, TaskRun, Token};
use futures_util::stream::{FuturesUnordered, StreamExt};
use glommio::LocalExecutorBuilder;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

const FILE_BYTES: u64 = 64 << 20;
const BLOCK: u64 = 4_096;
const ROUNDS: usize = 5;
const WRITES: usize = 300;

/// Median, 99th percentile and rate of what took `times`.
fn print(what: &str, task_run: TaskRun, mut times: Vec<Duration>, operations: usize, enters: u64) {
    let total: Duration = times.iter().sum();
    times.sort_unstable();
    let (p50, p99) = (times[times.len() / 2].as_micros(), times[times.len() * 99 / 100].as_micros());
    let rate = operations as f64 / total.as_secs_f64();
    let enters = enters as f64 / operations as f64;
    println!("{what:<34} {task_run:?}: p50 {p50} us, p99 {p99} us, {rate:.0}/s, {enters:.2} enters each");
}

async fn cycle<T>(ring: &Ring, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await {
            return value;
        }
        ring.submit().expect("there is memory for requests");
        if ring.reap() == 0 {
            ring.wait(None).expect("there is memory to wait");
        }
    }
}

async fn one_at_a_time(ring: &Ring, task_run: TaskRun, file: &Fd, block: &Block, durable: bool) {
    let (mut times, enters) = (Vec::new(), ring.enters());
    for number in 0..WRITES as u64 {
        let begin = Instant::now();
        let write = ring.write_at(file, vec![block.clone()], number * BLOCK % FILE_BYTES, durable);
        cycle(ring, write).await.expect("the device takes it");
        times.push(begin.elapsed());
    }
    let what = if durable { "4 KiB durable, one at a time" } else { "4 KiB written, one at a time" };
    print(what, task_run, times, WRITES, ring.enters() - enters);
}

/// 64 writes in flight, then one fdatasync, each time.
async fn many(ring: &Ring, task_run: TaskRun, file: &Fd, block: &Block) {
    let (mut times, enters) = (Vec::new(), ring.enters());
    for round in 0..100_u64 {
        let begin = Instant::now();
        let at = |number: u64| (round * 64 + number) * BLOCK % FILE_BYTES;
        let writes: FuturesUnordered<_> =
            (0..64).map(|number| ring.write_at(file, vec![block.clone()], at(number), false)).collect();
        let written = cycle(ring, writes.collect::<Vec<_>>()).await;
        assert!(written.iter().all(Result::is_ok), "the device takes them");
        cycle(ring, ring.sync_data(file)).await.expect("the device flushes");
        times.push(begin.elapsed());
    }
    print("64 x 4 KiB in flight, one sync", task_run, times, 100 * 64, ring.enters() - enters);
}

/// A byte to a thread and back, waiting for each.
async fn echo(ring: &Ring, task_run: TaskRun) {
    let (near, mut far) = UnixStream::pair().expect("a pair of sockets");
    near.set_nonblocking(true).expect("a socket of ours");
    let other = std::thread::spawn(move || {
        let mut byte = [0];
        while far.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
    });
    ring.poll_multishot(near.as_fd(), Token(0), Interest::Read);
    let (mut times, mut ready, enters) = (Vec::new(), Vec::new(), ring.enters());
    for _ in 0..5_000 {
        let begin = Instant::now();
        (&near).write_all(&[1]).expect("room for a byte");
        while (&near).read(&mut [0]).is_err() {
            ring.wait(None).expect("there is memory to wait");
            ring.reap();
            ring.take_ready(&mut ready);
        }
        times.push(begin.elapsed());
    }
    print("echo through a multishot poll", task_run, times, 5_000, ring.enters() - enters);
    ring.unpoll(Token(0));
    ring.submit().expect("there is memory for requests");
    // The poll holds the socket open until its end is reaped.
    ring.reap();
    drop(near);
    other.join().expect("the other side ends with this one");
}

/// How often this thread has gone to sleep.
fn sleeps() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok()).expect("the kernel counts them")
}

#[expect(clippy::disallowed_methods, reason = "an executor of its own, made once, for what is tried here")]
fn measure(path: &Path, task_run: TaskRun) {
    let executor = LocalExecutorBuilder::default().io_memory(256 << 10).make().expect("an executor");
    executor.run(async {
        let ring = Ring::new(RingOptions { task_run, ..RingOptions::default() }).expect("a ring");
        let mut options = std::fs::OpenOptions::new();
        let opened = options.read(true).write(true).custom_flags(0o40000).open(path).expect("the file");
        let file: Fd = Rc::new(opened.into());
        let mut block = BlockPool::new(0).take(BLOCK as usize);
        block.pad_to(BLOCK as usize);
        let block = block.freeze();
        one_at_a_time(&ring, task_run, &file, &block, true).await;
        one_at_a_time(&ring, task_run, &file, &block, false).await;
        many(&ring, task_run, &file, &block).await;
        echo(&ring, task_run).await;
        let before = sleeps();
        ring.wait(Some(Duration::from_secs(2))).expect("there is memory to wait");
        println!("{:<34} {task_run:?}: {} sleeps in 2 s", "idle", sleeps() - before);
    });
}

fn main() {
    let dir = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let path = dir.join("ring_costs.data");
    // Written throughout and synced, as a file of the pool is.
    let zeros = vec![0; FILE_BYTES as usize];
    std::fs::write(&path, zeros)
        .and_then(|()| std::fs::File::open(&path)?.sync_all())
        .expect("a directory to write in");
    for _ in 0..ROUNDS {
        measure(&path, TaskRun::Deferred);
        measure(&path, TaskRun::Cooperative);
    }
    std::fs::remove_file(&path).expect("the file is ours");
}
