//! A shard's own io_uring: files, readiness, reaped once a cycle; knows no log, no connection and no policy.
//!
//! Operations fill the submission queue; [`Ring::submit`] hands all of them over in one system call, [`Ring::reap`]
//! takes completions from shared memory and enters the kernel only where it has said that there is work. An idle shard
//! waits in [`Ring::wait`].
//!
//! SINGLE_ISSUER and DEFER_TASKRUN: completions are made when this thread asks for them, never in the middle of a
//! cycle (docs/decisions/002-file-ring.md has reasons and figures). Needs Linux 6.1.
//!
//! An operation owns what the kernel was given an address of until it completes, also when its future is dropped.

use coulee_core::block::{Block, BlockMut};
use io_uring::{IoUring, cqueue, squeue};
use std::cell::RefCell;
use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

mod idle;
mod operation;
mod readiness;

pub use idle::RingWaker;
pub use operation::{Errno, Fd};
pub use readiness::{Interest, Readiness, Ready, Token};

use operation::{Next, Operation, Read, Write};
use readiness::{POLL_BIT, Polls};

/// Names completions that nobody waits for.
const IGNORED: u64 = u64::MAX;
/// Names what other threads end a wait with.
const WAKE_UP: u64 = u64::MAX - 1;

/// When the kernel does the work of completing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TaskRun {
    /// When this thread enters the ring and asks for events (SINGLE_ISSUER, DEFER_TASKRUN).
    #[default]
    Deferred,
    /// At any system call of this thread (COOP_TASKRUN).
    Cooperative,
}

/// How a ring is set up.
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// Entries of the submission queue; where it is full, it is submitted.
    pub entries: u32,
    /// Operations on files in flight, at most; further ones wait for their turn.
    pub operations_max: u32,
    /// Tokens are below this.
    pub polls_max: u32,
    /// When completions are made.
    pub task_run: TaskRun,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { entries: 512, operations_max: 4_096, polls_max: 1 << 20, task_run: TaskRun::default() }
    }
}

/// Why there is no ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The kernel has no io_uring at all.
    Missing,
    /// The kernel's io_uring lacks what a ring of ours needs: Linux 6.1.
    KernelTooOld,
    /// A policy forbids io_uring; with the value of the sysctl `kernel.io_uring_disabled` where it can be read.
    Forbidden {
        /// 0: something else forbids it, such as seccomp.
        sysctl: Option<u8>,
    },
    /// The limit on locked memory leaves no room.
    Memory,
    /// The limit on open files leaves no room.
    Descriptors,
    /// Something else.
    System(Errno),
}

impl fmt::Display for RingError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(formatter, "this kernel is built without io_uring: run Linux 6.1 or newer"),
            Self::KernelTooOld => write!(formatter, "this kernel's io_uring is too old: run Linux 6.1 or newer"),
            Self::Forbidden { sysctl: Some(value @ 1..) } => {
                write!(formatter, "io_uring is switched off: set sysctl kernel.io_uring_disabled={value} to 0")
            }
            Self::Forbidden { .. } => {
                write!(formatter, "io_uring is forbidden, as containers' default seccomp profiles do: allow ")?;
                write!(formatter, "io_uring_setup, io_uring_enter and io_uring_register in the profile")
            }
            Self::Memory => write!(formatter, "no memory may be locked for io_uring: raise ulimit -l (LimitMEMLOCK)"),
            Self::Descriptors => write!(formatter, "no descriptor is left: raise ulimit -n (LimitNOFILE)"),
            Self::System(errno) => write!(formatter, "io_uring cannot be set up: {errno}"),
        }
    }
}

impl std::error::Error for RingError {}

impl RingError {
    fn of(error: &std::io::Error) -> Self {
        match Errno::of(error) {
            Errno(libc::ENOSYS) => Self::Missing,
            Errno(libc::EINVAL) => Self::KernelTooOld,
            Errno(libc::EPERM | libc::EACCES) => {
                let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
                Self::Forbidden { sysctl: sysctl.and_then(|text| text.trim().parse().ok()) }
            }
            Errno(libc::ENOMEM) => Self::Memory,
            Errno(libc::EMFILE | libc::ENFILE) => Self::Descriptors,
            errno => Self::System(errno),
        }
    }
}

enum State {
    Free,
    InFlight(Operation),
    Done(Operation, i32),
}

struct Slot {
    generation: u32,
    state: State,
    waker: Option<Waker>,
    /// Its future is gone: what it brings is discarded.
    detached: bool,
}

/// A slot as it was when an operation got it.
#[derive(Clone, Copy)]
struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    const fn name(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }
}

struct Inner {
    /// Declared before `slots`: the ring is closed before memory that it may use is freed; see `Drop`.
    uring: IoUring,
    slots: Vec<Slot>,
    free: Vec<u32>,
    in_flight: usize,
    operations_max: usize,
    /// Futures that found no free slot.
    waiters: Vec<Waker>,
    /// To be woken once nothing is borrowed.
    woken: Vec<Waker>,
    polls: Polls,
    wake_ups: idle::WakeUps,
    /// Among what is queued is something that a worker thread of the kernel has to do.
    has_punted: bool,
    enters: u64,
}

/// A shard's ring. Clones share it; it never leaves its thread.
#[derive(Clone)]
pub struct Ring {
    inner: Rc<RefCell<Inner>>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Ring({} in flight)", self.in_flight())
    }
}

impl Ring {
    /// Makes a ring for the thread that calls.
    ///
    /// # Errors
    /// [`RingError`], which says what to change.
    pub fn new(options: RingOptions) -> Result<Self, RingError> {
        assert!(options.operations_max > 0, "a ring that may do nothing is of no use");
        let mut builder = IoUring::builder();
        // Room for every operation and for bursts of polls; beyond it the kernel keeps completions until asked.
        builder.setup_cqsize((2 * options.entries).max(options.operations_max + options.entries).next_power_of_two());
        builder.setup_clamp().setup_submit_all().setup_taskrun_flag().dontfork();
        match options.task_run {
            TaskRun::Deferred => builder.setup_single_issuer().setup_defer_taskrun(),
            TaskRun::Cooperative => builder.setup_coop_taskrun(),
        };
        let uring = builder.build(options.entries).map_err(|error| RingError::of(&error))?;
        if !uring.params().is_feature_nodrop() {
            return Err(RingError::KernelTooOld);
        }
        let inner = Inner {
            uring,
            slots: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            operations_max: options.operations_max as usize,
            waiters: Vec::new(),
            woken: Vec::new(),
            polls: Polls::new(options.polls_max),
            wake_ups: idle::WakeUps::new().map_err(RingError::System)?,
            has_punted: false,
            enters: 0,
        };
        Ok(Self { inner: Rc::new(RefCell::new(inner)) })
    }

    /// Hands everything queued to the kernel, in one system call; none where nothing is queued.
    ///
    /// # Errors
    /// The kernel has no memory for it now; everything stays queued.
    pub fn submit(&self) -> Result<(), Errno> {
        self.inner.borrow_mut().submit()
    }

    /// Takes in what has completed: wakes futures, notes readiness. Answers the number of completions. A system call
    /// only where the kernel has said that it has something to deliver.
    pub fn reap(&self) -> usize {
        let mut inner = self.inner.borrow_mut();
        inner.ask_for_deferred();
        let count = inner.drain();
        inner.arm_again();
        let mut woken = std::mem::take(&mut inner.woken);
        drop(inner);
        woken.drain(..).for_each(Waker::wake);
        let mut inner = self.inner.borrow_mut();
        if inner.woken.is_empty() {
            inner.woken = woken;
        }
        count
    }

    /// Operations on files that the kernel has not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inner.borrow().in_flight
    }

    /// System calls that this ring has made to submit and to ask for completions.
    #[must_use]
    pub fn enters(&self) -> u64 {
        self.inner.borrow().enters
    }

    /// Polls `fd` until [`Ring::unpoll`]; events come out of [`Ring::take_ready`]. The owner of `fd` ends the poll
    /// before it closes it. A connection stays open, as its peer sees it, until the end of the poll has been submitted
    /// and reaped: `shutdown` says goodbye at once.
    pub fn poll_multishot(&self, fd: BorrowedFd<'_>, token: Token, interest: Interest) {
        let mut inner = self.inner.borrow_mut();
        let entry = inner.polls.arm(fd.as_raw_fd(), token, interest);
        inner.push(&entry);
    }

    /// Ends the poll of `token`: nothing of it is delivered after this call, and the token may be used again. Fine
    /// where there is none.
    pub fn unpoll(&self, token: Token) {
        let mut inner = self.inner.borrow_mut();
        if let Some(entry) = inner.polls.disarm(token) {
            inner.push(&entry.user_data(IGNORED));
        }
    }

    /// Moves what has become ready since the last call into `into`, each token once.
    pub fn take_ready(&self, into: &mut Vec<Ready>) {
        self.inner.borrow_mut().polls.drain(into);
    }

    /// Writes `blocks` one behind the other at `position`. When it returns without an error the device has all of
    /// them, and flushed where `durable`.
    ///
    /// # Errors
    /// The kernel's; some of the bytes may be written.
    pub async fn write_at(&self, fd: &Fd, blocks: Vec<Block>, position: u64, durable: bool) -> Result<(), Errno> {
        let write = Write::new(Rc::clone(fd), blocks, position, durable);
        self.run(Operation::Write(write)).await.1.map(drop)
    }

    /// Reads `len` bytes at `position` into `block`, which is empty; fewer where the file ends before.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn read_at(&self, fd: &Fd, block: BlockMut, position: u64, len: usize) -> Result<BlockMut, Errno> {
        assert!(block.is_empty(), "a read fills a block from its front");
        let read = Read { fd: Rc::clone(fd), block, position, len };
        match self.run(Operation::Read(read)).await {
            (Operation::Read(read), Ok(_)) => Ok(read.block),
            (_, result) => Err(result.expect_err("a read comes back as it went")),
        }
    }

    /// Makes the data of `fd` durable, with what is needed to read it (fdatasync).
    ///
    /// # Errors
    /// The kernel's. Never to be tried again.
    pub async fn sync_data(&self, fd: &Fd) -> Result<(), Errno> {
        self.run(Operation::Sync { fd: Rc::clone(fd), data_only: true }).await.1.map(drop)
    }

    /// Makes `fd` durable, with all of its metadata (fsync).
    ///
    /// # Errors
    /// The kernel's. Never to be tried again.
    pub async fn sync_all(&self, fd: &Fd) -> Result<(), Errno> {
        self.run(Operation::Sync { fd: Rc::clone(fd), data_only: false }).await.1.map(drop)
    }

    /// Reserves the first `len` bytes of `fd`, which reads as zeros where nothing is written.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn allocate(&self, fd: &Fd, len: u64) -> Result<(), Errno> {
        self.run(Operation::Allocate { fd: Rc::clone(fd), len }).await.1.map(drop)
    }

    /// Opens `path` below `dir` with `flags` of open(2), and `mode` where that makes it.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn open_at(&self, dir: &Fd, path: CString, flags: i32, mode: u32) -> Result<Fd, Errno> {
        let opened = self.run(Operation::Open { dir: Rc::clone(dir), path, flags, mode }).await.1;
        opened.map(|fd| Rc::new(operation::owned(fd)))
    }

    /// Renames `from` to `to`, both below `dir`, replacing what is there.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn rename_at(&self, dir: &Fd, from: CString, to: CString) -> Result<(), Errno> {
        self.run(Operation::Rename { dir: Rc::clone(dir), from, to }).await.1.map(drop)
    }

    /// Removes the file `path` below `dir`, or with AT_REMOVEDIR the empty directory.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn unlink_at(&self, dir: &Fd, path: CString, flags: i32) -> Result<(), Errno> {
        self.run(Operation::Unlink { dir: Rc::clone(dir), path, flags }).await.1.map(drop)
    }

    /// Makes the directory `path` below `dir`.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn make_dir_at(&self, dir: &Fd, path: CString, mode: u32) -> Result<(), Errno> {
        self.run(Operation::MakeDir { dir: Rc::clone(dir), path, mode }).await.1.map(drop)
    }

    fn run(&self, operation: Operation) -> Running {
        Running { ring: self.clone(), stage: Stage::New(operation) }
    }

    /// Drives `future` with this ring alone, blocking the thread: for what runs before there is an executor.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> Result<T, Errno> {
        let mut future = std::pin::pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return Ok(value);
            }
            if self.inner.borrow().woken.is_empty() {
                assert!(self.in_flight() > 0, "the future waits for something that is not of this ring");
                self.inner.borrow_mut().enter(1)?;
            }
            self.reap();
        }
    }
}

impl Inner {
    fn enter(&mut self, wanted: usize) -> Result<(), Errno> {
        loop {
            self.enters += 1;
            match self.uring.submitter().submit_and_wait(wanted) {
                Ok(_) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(Errno::of(&error)),
            }
        }
    }

    fn submit(&mut self) -> Result<(), Errno> {
        while !self.uring.submission().is_empty() {
            match self.enter(0) {
                // Full of completions: make room, what they bring is kept for the next reap.
                Err(Errno(libc::EBUSY)) => drop(self.drain()),
                other => other?,
            }
        }
        if std::mem::take(&mut self.has_punted) {
            // The worker wakes up on this thread's CPU. Without its turn now it begins when this thread sleeps, which
            // on a busy shard is a few hundred microseconds later.
            std::thread::yield_now();
        }
        Ok(())
    }

    fn push(&mut self, entry: &squeue::Entry) {
        if self.uring.submission().is_full() {
            let submitted = self.submit();
            assert!(submitted.is_ok(), "the kernel has no memory for a queue of requests: {submitted:?}");
        }
        let mut queue = self.uring.submission();
        // SAFETY: every address in the entry leads into memory owned by the operation in its slot, which is kept until
        // the completion (`completed`, `Drop`); polls and cancels carry none.
        let pushed = unsafe { queue.push(entry) };
        assert!(pushed.is_ok(), "a submission queue that was just submitted has room");
    }

    /// Whether the kernel has completions that it delivers only when entered.
    fn is_deferring(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    fn ask_for_deferred(&mut self) {
        if self.is_deferring() {
            let asked = self.enter(0);
            // Without memory the kernel keeps what it has, and is asked again in the next cycle.
            assert!(
                matches!(asked, Ok(()) | Err(Errno(libc::EAGAIN | libc::EBUSY))),
                "a ring can be entered: {asked:?}"
            );
        }
    }

    fn drain(&mut self) -> usize {
        let mut count = 0;
        loop {
            let Some(completion) = self.uring.completion().next() else { return count };
            count += 1;
            let (name, result) = (completion.user_data(), completion.result());
            match name {
                IGNORED => {}
                WAKE_UP => self.wake_ups.completed(completion.flags()),
                name if name & POLL_BIT != 0 => {
                    self.polls.completed(name, result, cqueue::more(completion.flags()));
                }
                name => self.completed(name, result),
            }
        }
    }

    /// Arms polls that the kernel has ended. After a drain, not in it: such a poll may complete at once.
    fn arm_again(&mut self) {
        while let Some(entry) = self.polls.next_ended() {
            self.push(&entry);
        }
    }

    fn completed(&mut self, name: u64, result: i32) {
        let (index, generation) = (name as u32, (name >> 32) as u32);
        let slot = &mut self.slots[index as usize];
        assert_eq!(slot.generation, generation, "a slot is kept until its completion");
        let State::InFlight(mut operation) = std::mem::replace(&mut slot.state, State::Free) else {
            unreachable!("an operation completes once");
        };
        match operation.advance(result) {
            Next::Again => {
                let entry = operation.entry().user_data(name);
                slot.state = State::InFlight(operation);
                self.push(&entry);
            }
            Next::Done(result) => {
                self.in_flight -= 1;
                if slot.detached {
                    operation.discard(result);
                    self.release(index);
                } else {
                    slot.state = State::Done(operation, result);
                    self.woken.extend(slot.waker.take());
                }
            }
        }
    }

    /// Starts `operation`, or gives it back where too many are in flight.
    fn start(&mut self, mut operation: Operation, waker: &Waker) -> Result<Key, Operation> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.operations_max => {
                self.slots.push(Slot { generation: 0, state: State::Free, waker: None, detached: false });
                (self.slots.len() - 1) as u32
            }
            None => {
                self.waiters.push(waker.clone());
                return Err(operation);
            }
        };
        let slot = &mut self.slots[index as usize];
        let key = Key { index, generation: slot.generation };
        let entry = operation.entry().user_data(key.name());
        self.has_punted |= matches!(operation, Operation::Sync { .. });
        slot.state = State::InFlight(operation);
        slot.waker = Some(waker.clone());
        slot.detached = false;
        self.in_flight += 1;
        self.push(&entry);
        Ok(key)
    }

    fn release(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Free;
        slot.waker = None;
        slot.generation = (slot.generation + 1) & (u32::MAX >> 1);
        self.free.push(index);
        self.woken.append(&mut self.waiters);
    }

    /// The result of `key`, if it is there; else `waker` is woken when it is.
    fn take(&mut self, key: Key, waker: &Waker) -> Option<(Operation, i32)> {
        let slot = &mut self.slots[key.index as usize];
        assert_eq!(slot.generation, key.generation, "a slot is its future's until that has the result");
        match std::mem::replace(&mut slot.state, State::Free) {
            State::Done(operation, result) => {
                self.release(key.index);
                Some((operation, result))
            }
            other => {
                slot.state = other;
                if !slot.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                    slot.waker = Some(waker.clone());
                }
                None
            }
        }
    }

    fn detach(&mut self, key: Key) {
        let slot = &mut self.slots[key.index as usize];
        match std::mem::replace(&mut slot.state, State::Free) {
            State::Done(operation, result) => {
                operation.discard(result);
                self.release(key.index);
            }
            other => {
                slot.state = other;
                slot.waker = None;
                slot.detached = true;
            }
        }
    }
}

impl Drop for Inner {
    /// Waits until the kernel uses no memory of ours any more. Where it can't be asked, that memory is never freed.
    fn drop(&mut self) {
        while self.in_flight > 0 {
            if self.enter(1).is_err() {
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            self.drain();
        }
    }
}

enum Stage {
    New(Operation),
    InFlight(Key),
    Finished,
}

/// An operation: starts when first polled, goes on when dropped.
struct Running {
    ring: Ring,
    stage: Stage,
}

impl Future for Running {
    type Output = (Operation, Result<i32, Errno>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let running = &mut *self;
        let mut inner = running.ring.inner.borrow_mut();
        match std::mem::replace(&mut running.stage, Stage::Finished) {
            Stage::New(operation) => {
                running.stage = match inner.start(operation, context.waker()) {
                    Ok(key) => Stage::InFlight(key),
                    Err(operation) => Stage::New(operation),
                };
                Poll::Pending
            }
            Stage::InFlight(key) => match inner.take(key, context.waker()) {
                Some((operation, result)) => {
                    Poll::Ready((operation, if result < 0 { Err(Errno(-result)) } else { Ok(result) }))
                }
                None => {
                    running.stage = Stage::InFlight(key);
                    Poll::Pending
                }
            },
            Stage::Finished => unreachable!("a future is not polled after it has answered"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Stage::InFlight(key) = self.stage {
            self.ring.inner.borrow_mut().detach(key);
        }
    }
}

/// A second descriptor of the same file.
fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    fd.as_fd().try_clone_to_owned().map_err(|error| Errno::of(&error))
}

#[cfg(test)]
pub(crate) mod tests;
