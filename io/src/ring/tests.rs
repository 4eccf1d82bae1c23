//! The ring on real files, sockets and threads; knows no disk layout.

use super::*;
use coulee_core::block::BlockPool;
use coulee_core::limits::BLOCK_BYTES;
use glommio::LocalExecutorBuilder;
use std::cell::Cell;
use std::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::mpsc;
use std::time::Duration;

#[expect(clippy::disallowed_methods, reason = "an executor of its own, made once, for what is tried here")]
/// Runs `test` as the one task of a glommio executor, beside the cycle that every shard runs.
pub(crate) fn on_executor<T>(options: RingOptions, test: impl AsyncFnOnce(Ring) -> T) -> T {
    let executor = LocalExecutorBuilder::default().io_memory(256 << 10).make().unwrap();
    executor.run(async {
        let ring = Ring::new(options).unwrap();
        cycle(&ring, test(ring.clone())).await
    })
}

#[expect(clippy::disallowed_methods, reason = "an executor of its own, made once, for what is tried here")]
/// Runs `test` as the one task of a glommio executor, without a cycle beside it: for those that wait themselves.
pub(crate) fn alone(options: RingOptions, test: impl AsyncFnOnce(Ring)) {
    let executor = LocalExecutorBuilder::default().io_memory(256 << 10).make().unwrap();
    executor.run(async { test(Ring::new(options).unwrap()).await });
}

/// Submits, reaps and waits until `future` is done.
pub(crate) async fn cycle<T>(ring: &Ring, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await {
            return value;
        }
        ring.submit().unwrap();
        if ring.reap() == 0 {
            ring.wait(None).unwrap();
        }
    }
}

pub(crate) async fn poll_once<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}

/// All of `futures`, at once.
pub(crate) async fn all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    poll_fn(|context| {
        for (future, output) in futures.iter_mut().filter(|(_, output)| output.is_none()) {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                *output = Some(value);
            }
        }
        if futures.iter().all(|(_, output)| output.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    futures.into_iter().map(|(_, output)| output.unwrap()).collect()
}

/// `blocks` blocks of `byte`.
fn filled(byte: u8, blocks: usize) -> Block {
    let mut block = BlockPool::new(0).take(blocks * BLOCK_BYTES);
    block.extend(&vec![byte; blocks * BLOCK_BYTES]);
    block.freeze()
}

const FLAGS: i32 = libc::O_RDWR | libc::O_CREAT | libc::O_DIRECT | libc::O_CLOEXEC;

async fn file_in(ring: &Ring, dir: &tempfile::TempDir) -> (Fd, Fd) {
    let root: Fd = Rc::new(std::fs::File::open(dir.path()).unwrap().into());
    let file = ring.open_at(&root, c"file".into(), FLAGS, 0o600).await.unwrap();
    ring.allocate(&file, 1 << 20).await.unwrap();
    (root, file)
}

async fn read(ring: &Ring, file: &Fd, position: u64, len: usize) -> Vec<u8> {
    let block = BlockPool::new(0).take(len);
    ring.read_at(file, block, position, len).await.unwrap().filled().to_vec()
}

#[test]
fn every_operation_does_what_its_system_call_does() {
    let dir = tempfile::tempdir().unwrap();
    on_executor(RingOptions::default(), async |ring| {
        let (root, file) = file_in(&ring, &dir).await;
        ring.write_at(&file, vec![filled(1, 1), filled(2, 2)], 4_096, false).await.unwrap();
        ring.write_at(&file, vec![filled(3, 1)], 0, true).await.unwrap();
        ring.sync_data(&file).await.unwrap();
        ring.sync_all(&file).await.unwrap();
        let bytes = read(&ring, &file, 0, 5 * 4_096).await;
        let firsts: Vec<u8> = bytes.iter().step_by(4_096).copied().collect();
        assert_eq!(firsts, [3, 1, 2, 2, 0]);
        ring.make_dir_at(&root, c"sub".into(), 0o700).await.unwrap();
        assert_eq!(ring.make_dir_at(&root, c"sub".into(), 0o700).await, Err(Errno(libc::EEXIST)));
        ring.rename_at(&root, c"file".into(), c"sub/other".into()).await.unwrap();
        assert_eq!(std::fs::read(dir.path().join("sub/other")).unwrap().len(), 1 << 20);
        assert_eq!(ring.unlink_at(&root, c"file".into(), 0).await, Err(Errno(libc::ENOENT)));
        ring.unlink_at(&root, c"sub/other".into(), 0).await.unwrap();
        ring.unlink_at(&root, c"sub".into(), libc::AT_REMOVEDIR).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(ring.in_flight(), 0);
    });
}

/// Owner of a block that says when it is let go.
struct Witness(Block, Rc<Cell<bool>>);

impl AsRef<[u8]> for Witness {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.1.set(true);
    }
}

#[test]
fn a_dropped_write_keeps_its_blocks_until_it_has_completed() {
    let dir = tempfile::tempdir().unwrap();
    alone(RingOptions::default(), async |ring| {
        let (_, file) = cycle(&ring, file_in(&ring, &dir)).await;
        let gone = Rc::new(Cell::new(false));
        let block = Block::from_owner(Rc::new(Witness(filled(7, 4), Rc::clone(&gone))));
        {
            let mut write = pin!(ring.write_at(&file, vec![block], 0, false));
            assert!(poll_once(write.as_mut()).await.is_pending());
        }
        assert_eq!(ring.in_flight(), 1);
        assert!(!gone.get(), "the kernel was not even given the write, and its memory is gone");
        while ring.in_flight() > 0 {
            assert!(!gone.get(), "the write is in flight, and its memory is gone");
            ring.wait(None).unwrap();
            ring.reap();
        }
        assert!(gone.get(), "a completed write keeps nothing");
        let bytes = cycle(&ring, read(&ring, &file, 0, 4_096)).await;
        assert_eq!(bytes, [7; 4_096], "a dropped write goes on");
    });
}

#[test]
fn a_dropped_open_closes_what_it_has_opened() {
    let dir = tempfile::tempdir().unwrap();
    alone(RingOptions::default(), async |ring| {
        let root: Fd = Rc::new(std::fs::File::open(dir.path()).unwrap().into());
        {
            let mut open = pin!(ring.open_at(&root, c"only".into(), FLAGS, 0o600));
            assert!(poll_once(open.as_mut()).await.is_pending());
        }
        while ring.in_flight() > 0 {
            ring.wait(None).unwrap();
            ring.reap();
        }
        let path = dir.path().join("only");
        assert!(path.exists(), "a dropped open goes on");
        let fds = std::fs::read_dir("/proc/self/fd").unwrap();
        let open = fds.filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| to == path));
        assert_eq!(open.count(), 0, "nobody has the descriptor, and it is open");
    });
}

#[test]
fn a_ring_dropped_with_reads_in_flight_waits_for_them() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..20 {
        on_executor(RingOptions::default(), async |outer| {
            let (_, file) = file_in(&outer, &dir).await;
            let ring = Ring::new(RingOptions::default()).unwrap();
            let gone = Rc::new(Cell::new(false));
            let block = Block::from_owner(Rc::new(Witness(filled(7, 16), Rc::clone(&gone))));
            let mut write = Box::pin(ring.write_at(&file, vec![block], 0, true));
            assert!(poll_once(write.as_mut()).await.is_pending());
            ring.submit().unwrap();
            drop(write);
            drop(ring);
            assert!(gone.get());
            assert_eq!(read(&outer, &file, 0, 65_536).await, [7; 65_536]);
        });
    }
}

#[test]
fn operations_beyond_the_bound_wait_for_their_turn_and_all_are_done() {
    let dir = tempfile::tempdir().unwrap();
    let options = RingOptions { entries: 2, operations_max: 4, ..RingOptions::default() };
    on_executor(options, async |ring| {
        let (_, file) = file_in(&ring, &dir).await;
        let most = Cell::new(0);
        let writes = (0..200_u64).map(async |number| {
            let written = ring.write_at(&file, vec![filled(number as u8, 1)], number * 4_096, false).await;
            most.set(most.get().max(ring.in_flight()));
            written
        });
        assert!(all(writes.collect()).await.iter().all(Result::is_ok));
        assert!(most.get() <= 4, "{} in flight", most.get());
        let bytes = read(&ring, &file, 0, 200 * 4_096).await;
        assert!(bytes.iter().step_by(4_096).enumerate().all(|(number, byte)| number as u8 == *byte));
    });
}

#[test]
fn a_short_write_goes_on_with_the_rest_and_a_short_read_with_its() {
    on_executor(RingOptions::default(), async |ring| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let writer: Fd = Rc::new(writer.into());
        // A pipe takes 64 KiB at a time: each of these writes is short many times, within blocks and between them.
        let reading = std::thread::spawn(move || {
            let mut bytes = vec![0; 3 << 20];
            reader.read_exact(&mut bytes).map(|()| bytes)
        });
        let blocks: Vec<Block> = (0..12).map(|number| filled(number, 64)).collect();
        ring.write_at(&writer, blocks, 0, false).await.unwrap();
        let bytes = reading.join().unwrap().unwrap();
        assert!(bytes.chunks(64 * 4_096).enumerate().all(|(number, block)| block.iter().all(|b| *b == number as u8)));

        let (reader, mut writer) = std::io::pipe().unwrap();
        let reader: Fd = Rc::new(reader.into());
        let writing = std::thread::spawn(move || (0..64).try_for_each(|byte| writer.write_all(&[byte; 4_096])));
        let bytes = read(&ring, &reader, 0, 64 * 4_096).await;
        writing.join().unwrap().unwrap();
        assert!(bytes.chunks(4_096).enumerate().all(|(number, block)| block.iter().all(|b| *b == number as u8)));
        assert_eq!(read(&ring, &reader, 0, 4_096).await, [], "the end is an end");
    });
}

#[test]
fn a_range_of_a_growing_buffer_is_written_while_it_grows() {
    let dir = tempfile::tempdir().unwrap();
    on_executor(RingOptions::default(), async |ring| {
        let (_, file) = file_in(&ring, &dir).await;
        let whole = filled(9, 4);
        // Two ranges of one piece of memory, in flight at once, at places of their own.
        let ranges = vec![(whole.slice(4_096..8_192), 0), (whole.slice(8_192..16_384), 8_192)];
        let writes = ranges.into_iter().map(|(block, at)| ring.write_at(&file, vec![block], at, false));
        assert!(all(writes.collect()).await.iter().all(Result::is_ok));
        let bytes = read(&ring, &file, 0, 5 * 4_096).await;
        let firsts: Vec<u8> = bytes.iter().step_by(4_096).copied().collect();
        assert_eq!(firsts, [9, 0, 9, 9, 0]);
    });
}

#[test]
fn files_make_progress_in_a_cycle_that_never_waits() {
    let dir = tempfile::tempdir().unwrap();
    on_executor(RingOptions::default(), async |ring| {
        let (_, file) = file_in(&ring, &dir).await;
        let enters = ring.enters();
        for position in 0..100 {
            let mut reading = pin!(ring.read_at(&file, BlockPool::new(0).take(4_096), position * 4_096, 4_096));
            // No await ever gives the executor a turn: submit and reap are all it takes.
            while poll_once(reading.as_mut()).await.is_pending() {
                ring.submit().unwrap();
                ring.reap();
            }
        }
        let calls = ring.enters() - enters;
        assert!(calls <= 400, "{calls} system calls for 100 reads: reaping is to cost none while nothing has come");
    });
}

/// Waits until something is ready.
async fn next_ready(ring: &Ring) -> Vec<Ready> {
    let mut ready = Vec::new();
    while ready.is_empty() {
        ring.wait(None).unwrap();
        ring.reap();
        ring.take_ready(&mut ready);
    }
    ready
}

#[test]
fn a_poll_tells_of_each_arrival_without_being_armed_again() {
    alone(RingOptions::default(), async |ring| {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        ring.poll_multishot(near.as_fd(), Token(3), Interest::Read);
        for round in 0..50 {
            far.write_all(&[round]).unwrap();
            let ready = next_ready(&ring).await;
            assert_eq!(ready.len(), 1, "round {round}: {ready:?}");
            assert_eq!(ready[0].token, Token(3));
            assert!(ready[0].readiness.is_readable() && !ready[0].readiness.is_peer_closed());
            let mut byte = [0];
            assert_eq!((&near).read(&mut byte).unwrap(), 1);
            assert_eq!(byte, [round]);
        }
        drop(far);
        assert!(next_ready(&ring).await[0].readiness.is_peer_closed());
        ring.unpoll(Token(3));
    });
}

#[test]
fn room_to_write_is_told_and_a_failed_poll_is_not_silent() {
    alone(RingOptions::default(), async |ring| {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        while (&near).write(&[0; 65_536]).is_ok() {}
        ring.poll_multishot(near.as_fd(), Token(0), Interest::ReadWrite);
        ring.submit().unwrap();
        ring.reap();
        let mut ready = Vec::new();
        ring.take_ready(&mut ready);
        assert_eq!(ready, [], "a full socket is not ready");
        far.read_exact(&mut [0; 65_536]).unwrap();
        far.set_nonblocking(true).unwrap();
        while far.read(&mut [0; 65_536]).is_ok() {}
        assert!(next_ready(&ring).await[0].readiness.is_writable());
        ring.unpoll(Token(0));
        // A regular file can't be polled for arrivals on a ring; whatever the kernel says, the owner hears of it.
        let closed = near.as_raw_fd();
        drop((near, far));
        // SAFETY: the number is used for one call, which answers that nothing is open under it, or polls what is.
        let fd = unsafe { BorrowedFd::borrow_raw(if closed > 2 { 1 << 20 } else { closed }) };
        ring.poll_multishot(fd, Token(1), Interest::Read);
        let ready = next_ready(&ring).await;
        assert!(ready[0].token == Token(1) && ready[0].readiness.is_failed(), "{ready:?}");
    });
}

#[test]
fn what_was_meant_for_a_former_owner_of_a_token_never_reaches_the_next() {
    alone(RingOptions::default(), async |ring| {
        let mut ready = Vec::new();
        for round in 0..200 {
            let (old, mut old_far) = UnixStream::pair().unwrap();
            let (new, mut new_far) = UnixStream::pair().unwrap();
            ring.poll_multishot(old.as_fd(), Token(5), Interest::Read);
            if round % 2 == 0 {
                ring.submit().unwrap();
            }
            old_far.write_all(b"for the former").unwrap();
            match round % 3 {
                0 => drop(ring.reap()),
                1 => ring.submit().unwrap(),
                _ => {}
            }
            ring.unpoll(Token(5));
            drop(old);
            ring.poll_multishot(new.as_fd(), Token(5), Interest::Read);
            ring.submit().unwrap();
            ring.reap();
            ring.take_ready(&mut ready);
            assert_eq!(ready, [], "round {round}");
            new_far.write_all(b"for the next").unwrap();
            assert!(next_ready(&ring).await[0].readiness.is_readable(), "round {round}");
            // The former connection is closed once the end of its poll was submitted.
            assert_eq!(old_far.read(&mut [0]).map_err(|error| error.kind()).unwrap_or(0), 0, "round {round}");
            ring.unpoll(Token(5));
        }
    });
}

#[test]
fn more_events_than_the_completion_queue_holds_all_arrive() {
    let options = RingOptions { entries: 4, operations_max: 1, ..RingOptions::default() };
    alone(options, async |ring| {
        let mut pairs: Vec<_> = (0..300).map(|_| UnixStream::pair().unwrap()).collect();
        for round in 0..3 {
            for (index, (near, far)) in pairs.iter_mut().enumerate() {
                if round == 0 {
                    ring.poll_multishot(near.as_fd(), Token(index as u32), Interest::Read);
                }
                far.write_all(&[round]).unwrap();
            }
            let mut told = vec![false; pairs.len()];
            while !told.iter().all(|told| *told) {
                next_ready(&ring).await.iter().for_each(|ready| told[ready.token.0 as usize] = true);
            }
            pairs.iter_mut().for_each(|(near, _)| near.read_exact(&mut [0]).unwrap());
        }
    });
}

#[test]
fn a_thread_ends_the_wait_of_a_shard_and_no_wake_up_is_lost() {
    alone(RingOptions::default(), async |ring| {
        let (waker, (ask, asked)) = (ring.waker().unwrap(), mpsc::channel::<u32>());
        let (answer, answers) = mpsc::channel::<u32>();
        let other = std::thread::spawn(move || {
            for number in asked {
                answer.send(number).unwrap();
                waker.wake();
            }
        });
        for number in 0..2_000 {
            ask.send(number).unwrap();
            while answers.try_recv() != Ok(number) {
                ring.wait(None).unwrap();
            }
        }
        drop(ask);
        other.join().unwrap();
    });
}

#[test]
fn a_wait_ends_when_its_time_is_over() {
    alone(RingOptions::default(), async |ring| {
        for _ in 0..10 {
            ring.wait(Some(Duration::from_millis(2))).unwrap();
        }
        assert_eq!(ring.reap(), 0);
    });
}

#[test]
fn a_ring_that_cannot_be_had_says_what_to_change() {
    let error = |errno| RingError::of(&std::io::Error::from_raw_os_error(errno));
    assert_eq!(error(libc::ENOSYS), RingError::Missing);
    assert_eq!(error(libc::EINVAL), RingError::KernelTooOld);
    assert_eq!(error(libc::ENOMEM), RingError::Memory);
    assert_eq!(error(libc::EMFILE), RingError::Descriptors);
    assert!(matches!(error(libc::EPERM), RingError::Forbidden { .. }));
    assert!(RingError::Forbidden { sysctl: Some(2) }.to_string().contains("kernel.io_uring_disabled"));
    assert!(RingError::Forbidden { sysctl: Some(0) }.to_string().contains("seccomp"));
    assert!(RingError::Memory.to_string().contains("ulimit -l"));
}

#[test]
fn both_ways_of_completing_pass_a_thousand_writes() {
    for task_run in [TaskRun::Deferred, TaskRun::Cooperative] {
        let dir = tempfile::tempdir().unwrap();
        on_executor(RingOptions { task_run, ..RingOptions::default() }, async |ring| {
            let (_, file) = file_in(&ring, &dir).await;
            for round in 0..5 {
                let write = |number: u64| ring.write_at(&file, vec![filled(round, 1)], number * 4_096, false);
                assert!(all((0..200).map(write).collect()).await.iter().all(Result::is_ok), "{task_run:?}");
            }
            assert!(read(&ring, &file, 0, 200 * 4_096).await.iter().all(|byte| *byte == 4), "{task_run:?}");
        });
    }
}
