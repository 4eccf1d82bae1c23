//! The simulated disk: a device with a volatile cache, a journal of names, latency and faults; knows no segment and no
//! batch.
//!
//! Crash model: a write may be lost, kept or torn at 512 bytes until a sync that began after it completed has
//! succeeded; later writes may survive earlier ones, but of two writes of one sector the older never wins. Changes of
//! names survive as a prefix (one journal); the sync of a directory makes those durable that came up to its last one.
//! A device flush makes nothing durable over blocks that no sync of their file has covered before (unwritten extents).
//! When the process alone dies, what has completed stays in the cache, and only a later sync makes it durable. Two
//! writes in flight that cover one block are a bug, and a panic.
//!
//! Files are pages of 4 KiB, shared between what is read, what is durable and what waits, so that a crash copies
//! pointers. A page of zeros is none.

use super::latency::Latency;
use coulee_core::block::{Block, BlockPool, is_zero};
use coulee_core::disk::{Dir, Disk, DiskError, File, FileName, WriteMode};
use coulee_core::executor::Random;
use coulee_core::limits::BLOCK_BYTES;
use coulee_protocol::ids::PartitionUid;
use faults::{Faults, Kind};
use names::{NameChange, Names};
use pages::{Inode, Page, to_page};
use std::cell::RefCell;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

pub mod damage;
pub mod faults;
mod names;
mod pages;

/// What the system says of a failed operation.
const EIO: DiskError = DiskError::Io { errno: 5 };
const ENOTEMPTY: DiskError = DiskError::Io { errno: 39 };

enum Op {
    Open(FileName),
    Create(FileName, u64),
    CreateDir(Dir),
    List(Dir),
    ListPartitions,
    ListPools,
    Rename(FileName, FileName),
    Remove(FileName),
    RemoveDir(Dir),
    SyncDir { dir: Dir, upto: usize },
    SyncDevice { began: u64 },
    Sync { inode: usize, began: u64 },
    Write { inode: usize, first: usize, pages: Vec<Page>, done: usize, mode: WriteMode },
    Read { inode: usize, position: usize, len: usize },
}

enum Output {
    Unit,
    File(usize, u64),
    Names(Vec<FileName>),
    Partitions(Vec<PartitionUid>),
    Shards(Vec<u16>),
    Block(Block),
}

#[derive(Default)]
struct Slot {
    result: Option<Result<Output, DiskError>>,
    waker: Option<Waker>,
}

struct Pending {
    op: Op,
    ready_us: u64,
    slot: Rc<RefCell<Slot>>,
}

struct State {
    inodes: Vec<Inode>,
    names: Names,
    durable_names: Names,
    /// Changes after `durable_names`, in order, and how many are in it.
    changes: Vec<NameChange>,
    changes_synced: usize,
    pending: Vec<Pending>,
    /// Counts completions, so that a sync knows what came before it.
    clock: u64,
    now_us: u64,
    random: Random,
    latency: Latency,
    faults: Faults,
    device_flush_proved: bool,
    trace: u64,
    pool: BlockPool,
}

/// A disk. Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    state: Rc<RefCell<State>>,
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "SimDisk({} files)", self.state.borrow().names.files.len())
    }
}

impl SimDisk {
    /// An empty disk whose operations take as long as `latency` and `seed` say.
    #[must_use]
    pub fn new(seed: u64, latency: Latency, device_flush_proved: bool) -> Self {
        let state = State {
            inodes: Vec::new(),
            names: Names::default(),
            durable_names: Names::default(),
            changes: Vec::new(),
            changes_synced: 0,
            pending: Vec::new(),
            clock: 0,
            now_us: 0,
            random: Random::new(seed),
            latency,
            faults: Faults::default(),
            device_flush_proved,
            trace: 0xcbf2_9ce4_8422_2325,
            pool: BlockPool::new(8 << 20),
        };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    /// Time passes.
    pub fn set_now(&self, now_us: u64) {
        self.state.borrow_mut().now_us = now_us;
    }

    /// What goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state.borrow_mut().faults = faults;
    }

    /// What has gone wrong so far, and what is still to.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.state.borrow().faults.clone()
    }

    /// How many operations can complete now, and when the first can.
    #[must_use]
    pub fn ready(&self) -> (usize, Option<u64>) {
        let state = self.state.borrow();
        let ready = state.pending.iter().filter(|pending| pending.ready_us <= state.now_us).count();
        (ready, state.pending.iter().map(|pending| pending.ready_us).min())
    }

    /// Completes the `chosen`-th of the operations that can be, or a part of it.
    pub fn complete(&self, chosen: usize) {
        let mut state = self.state.borrow_mut();
        let now = state.now_us;
        let mut ready = (0..state.pending.len()).filter(|at| state.pending[*at].ready_us <= now);
        let at = ready.nth(chosen).expect("the caller chooses among those that are ready");
        let Pending { mut op, slot, .. } = state.pending.remove(at);
        let Some(result) = state.perform(&mut op) else {
            // A short write: the rest comes later.
            let ready_us = state.now_us + state.latency_of(&op);
            state.pending.push(Pending { op, ready_us, slot });
            return;
        };
        drop(state);
        let mut slot = slot.borrow_mut();
        slot.result = Some(result);
        if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
    }

    /// The disk as it may be found after a power cut at this moment.
    #[must_use]
    pub fn cut_power(&self) -> Self {
        let mut state = self.state.borrow_mut();
        let State { random, inodes, changes, durable_names, pending, .. } = &mut *state;
        let mut names = durable_names.clone();
        let survived = random.below(changes.len() as u64 + 1) as usize;
        changes[..survived].iter().for_each(|change| names.apply(change));
        let mut inodes: Vec<Inode> = inodes.iter().map(|inode| inode.cut_power(random)).collect();
        for op in pending.iter().map(|pending| &pending.op) {
            if let Op::Write { inode, first, pages, done, .. } = op {
                inodes[*inode].tear(*first + done, &pages[*done..], random);
            }
        }
        inodes.iter_mut().for_each(Inode::settle);
        state.successor(inodes, names.clone(), names, Vec::new())
    }

    /// The disk as a new process finds it when the old one dies at this moment: nothing that has completed is gone, and
    /// nothing that was not synced is durable.
    #[must_use]
    pub fn kill(&self) -> Self {
        let mut state = self.state.borrow_mut();
        let State { random, inodes, pending, clock, .. } = &mut *state;
        let mut inodes: Vec<Inode> = inodes.iter().map(Inode::kill).collect();
        for op in pending.iter().map(|pending| &pending.op) {
            if let Op::Write { inode, first, pages, done, .. } = op
                && random.below(2) == 0
            {
                inodes[*inode].write(*first + done, &pages[*done..], *clock);
            }
        }
        let (names, durable, changes) = (state.names.clone(), state.durable_names.clone(), state.changes.clone());
        state.successor(inodes, names, durable, changes)
    }

    /// A hash of everything that has completed, in order.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.state.borrow().trace
    }

    fn submit(&self, op: Op) -> OpFuture {
        OpFuture { disk: self.clone(), op: Some(op), slot: Rc::default() }
    }
}

impl State {
    /// A disk with other contents and everything else as it is.
    fn successor(
        &mut self,
        inodes: Vec<Inode>,
        names: Names,
        durable_names: Names,
        changes: Vec<NameChange>,
    ) -> SimDisk {
        let state = Self {
            inodes,
            names,
            durable_names,
            changes,
            changes_synced: 0,
            pending: Vec::new(),
            clock: self.clock,
            now_us: self.now_us,
            random: Random::new(self.random.next()),
            latency: self.latency,
            faults: Faults::default(),
            device_flush_proved: self.device_flush_proved,
            trace: self.trace,
            pool: self.pool.clone(),
        };
        SimDisk { state: Rc::new(RefCell::new(state)) }
    }

    fn note(&mut self, what: u64, value: u64) {
        for word in [what, value] {
            self.trace = (self.trace ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(17);
        }
    }

    fn latency_of(&mut self, op: &Op) -> u64 {
        let is_sync = matches!(op, Op::Sync { .. } | Op::SyncDevice { .. } | Op::SyncDir { .. })
            || matches!(op, Op::Write { mode: WriteMode::Durable, .. });
        self.latency.of(is_sync, &mut self.random)
    }

    fn change(&mut self, change: NameChange) {
        self.names.apply(&change);
        self.changes.push(change);
    }

    /// Carries an operation out; `None` where a part of it is left.
    fn perform(&mut self, op: &mut Op) -> Option<Result<Output, DiskError>> {
        self.clock += 1;
        let result = match op {
            Op::Write { inode, first, pages, done, mode } => {
                return self.write((*inode, *first), pages, done, *mode);
            }
            Op::Read { inode, position, len } => self.read(*inode, *position, *len),
            Op::Sync { inode, began } => self.sync(*began, Some(*inode)),
            Op::SyncDevice { began } => self.sync(*began, None),
            names => self.perform_on_names(names),
        };
        self.note(1, u64::from(result.is_ok()));
        Some(result)
    }

    fn perform_on_names(&mut self, op: &Op) -> Result<Output, DiskError> {
        match op {
            Op::Open(name) => {
                let inode = *self.names.files.get(name).ok_or(DiskError::NotFound)?;
                return Ok(Output::File(inode, self.inodes[inode].len()));
            }
            Op::Create(name, len) => return self.create(*name, *len as usize),
            Op::List(dir) => return Ok(Output::Names(self.names.files_in(*dir))),
            Op::ListPartitions => return Ok(Output::Partitions(self.names.partitions())),
            Op::ListPools => return Ok(Output::Shards(self.names.pools())),
            Op::CreateDir(dir) => self.change(NameChange::AddDir(*dir)),
            Op::RemoveDir(dir) if !self.names.files_in(*dir).is_empty() => return Err(ENOTEMPTY),
            Op::RemoveDir(dir) => self.change(NameChange::RemoveDir(*dir)),
            Op::Rename(from, to) => {
                self.names.has_dir_of(*to)?;
                if self.faults.strikes(Kind::Rename) {
                    return Err(EIO);
                }
                let inode = *self.names.files.get(from).ok_or(DiskError::NotFound)?;
                self.note(5, inode as u64);
                // One change: a crash never finds the file under neither name.
                self.change(NameChange::Rename(*from, *to, inode));
            }
            Op::Remove(name) => self.change(NameChange::Remove(*name)),
            Op::SyncDir { .. } if self.faults.strikes(Kind::SyncDir) => return Err(EIO),
            Op::SyncDir { upto, .. } => {
                let done = upto.saturating_sub(self.changes_synced).min(self.changes.len());
                self.changes_synced += done;
                let later = self.changes.split_off(done);
                for change in std::mem::replace(&mut self.changes, later) {
                    self.durable_names.apply(&change);
                }
            }
            _ => unreachable!("operations on files are performed elsewhere"),
        }
        Ok(Output::Unit)
    }

    fn create(&mut self, name: FileName, len: usize) -> Result<Output, DiskError> {
        self.note(4, len as u64);
        if self.faults.is_full(self.now_us) {
            return Err(DiskError::NoSpace);
        }
        self.names.has_dir_of(name)?;
        if self.faults.strikes(Kind::Create) {
            return Err(EIO);
        }
        self.inodes.push(Inode::new(len / BLOCK_BYTES));
        let inode = self.inodes.len() - 1;
        self.change(NameChange::Add(name, inode));
        Ok(Output::File(inode, len as u64))
    }

    fn write(
        &mut self,
        (inode, first): (usize, usize),
        pages: &[Page],
        done: &mut usize,
        mode: WriteMode,
    ) -> Option<Result<Output, DiskError>> {
        self.note(2, (inode << 32 | first) as u64);
        if first + pages.len() > self.inodes[inode].page_count() {
            return Some(Err(DiskError::BeyondEnd));
        }
        let left = pages.len() - *done;
        let clock = self.clock;
        if self.faults.strikes(Kind::Write) {
            self.inodes[inode].write(first + *done, &pages[*done..*done + left / 2], clock);
            self.inodes[inode].drop_last();
            return Some(Err(EIO));
        }
        let short = left > 1 && self.random.below(1_000) < self.faults.short_writes;
        let now = if short { 1 + self.random.below(left as u64 - 1) as usize } else { left };
        self.inodes[inode].write(first + *done, &pages[*done..*done + now], clock);
        if mode == WriteMode::Durable {
            if self.faults.strikes(Kind::Sync) {
                self.inodes[inode].drop_last();
                return Some(Err(EIO));
            }
            self.inodes[inode].sync_last();
        }
        *done += now;
        (*done == pages.len()).then_some(Ok(Output::Unit))
    }

    fn read(&mut self, inode: usize, position: usize, len: usize) -> Result<Output, DiskError> {
        self.note(3, (inode << 32 | position) as u64);
        if self.faults.strikes(Kind::Read) {
            return Err(EIO);
        }
        let file = &self.inodes[inode];
        let first = position / BLOCK_BYTES;
        if first + len / BLOCK_BYTES > file.page_count() {
            return Err(DiskError::BeyondEnd);
        }
        let mut block = self.pool.take(len);
        for page in first..first + len / BLOCK_BYTES {
            match file.page(page) {
                Some(bytes) => block.extend(&bytes[..]),
                None => block.pad_to(block.len() + BLOCK_BYTES),
            }
        }
        Ok(Output::Block(block.freeze()))
    }

    /// Makes durable what completed before `began`, or drops it where the sync fails: the kernel marks pages clean, and
    /// no later sync will write them.
    fn sync(&mut self, began: u64, inode: Option<usize>) -> Result<Output, DiskError> {
        let failed = self.faults.strikes(if inode.is_some() { Kind::Sync } else { Kind::Flush });
        let files = match inode {
            Some(inode) => &mut self.inodes[inode..=inode],
            None => &mut self.inodes[..],
        };
        for file in files {
            if failed {
                file.drop_all();
            } else {
                file.sync(began, inode.is_some());
            }
        }
        if failed { Err(EIO) } else { Ok(Output::Unit) }
    }

    fn assert_no_overlap(&self, op: &Op) {
        let Some((inode, blocks)) = op.written() else { return };
        for (other, range) in self.pending.iter().filter_map(|pending| pending.op.written()) {
            let apart = other != inode || range.end <= blocks.start || blocks.end <= range.start;
            assert!(apart, "two writes in flight cover blocks {range:?} and {blocks:?} of one file");
        }
    }
}

impl Op {
    fn written(&self) -> Option<(usize, Range<usize>)> {
        let Self::Write { inode, first, pages, .. } = self else { return None };
        Some((*inode, *first..*first + pages.len()))
    }

    /// A sync covers what has completed when it begins.
    fn begin(&mut self, state: &State) {
        match self {
            Self::Sync { began, .. } | Self::SyncDevice { began } => *began = state.clock + 1,
            Self::SyncDir { dir, upto } => {
                // The journal is one, so what came before the last change in this directory is durable with it.
                let last = state.changes.iter().rposition(|change| change.is_in(*dir));
                *upto = state.changes_synced + last.map_or(0, |last| last + 1);
            }
            _ => {}
        }
    }
}

/// An operation: starts when first polled, goes on when dropped.
struct OpFuture {
    disk: SimDisk,
    op: Option<Op>,
    slot: Rc<RefCell<Slot>>,
}

impl Future for OpFuture {
    type Output = Result<Output, DiskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(mut op) = self.op.take() {
            let mut state = self.disk.state.borrow_mut();
            op.begin(&state);
            state.assert_no_overlap(&op);
            let ready_us = state.now_us + state.latency_of(&op);
            state.pending.push(Pending { op, ready_us, slot: Rc::clone(&self.slot) });
        }
        let mut slot = self.slot.borrow_mut();
        match slot.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl SimDisk {
    fn file(&self, output: Output) -> SimFile {
        let Output::File(inode, len) = output else { unreachable!("opening answers a file") };
        SimFile { disk: self.clone(), inode, len }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    async fn open(&self, name: FileName) -> Result<SimFile, DiskError> {
        self.submit(Op::Open(name)).await.map(|output| self.file(output))
    }

    async fn create(&self, name: FileName, len: u64) -> Result<SimFile, DiskError> {
        self.submit(Op::Create(name, len)).await.map(|output| self.file(output))
    }

    async fn create_dir(&self, dir: Dir) -> Result<(), DiskError> {
        self.submit(Op::CreateDir(dir)).await.map(drop)
    }

    async fn list(&self, dir: Dir) -> Result<Vec<FileName>, DiskError> {
        match self.submit(Op::List(dir)).await? {
            Output::Names(names) => Ok(names),
            _ => unreachable!("a list answers names"),
        }
    }

    async fn list_partitions(&self) -> Result<Vec<PartitionUid>, DiskError> {
        match self.submit(Op::ListPartitions).await? {
            Output::Partitions(uids) => Ok(uids),
            _ => unreachable!("a list of partitions answers uids"),
        }
    }

    async fn list_pools(&self) -> Result<Vec<u16>, DiskError> {
        match self.submit(Op::ListPools).await? {
            Output::Shards(shards) => Ok(shards),
            _ => unreachable!("a list of pools answers shards"),
        }
    }

    async fn rename(&self, from: FileName, to: FileName) -> Result<(), DiskError> {
        self.submit(Op::Rename(from, to)).await.map(drop)
    }

    async fn remove(&self, name: FileName) -> Result<(), DiskError> {
        self.submit(Op::Remove(name)).await.map(drop)
    }

    async fn remove_dir(&self, dir: Dir) -> Result<(), DiskError> {
        self.submit(Op::RemoveDir(dir)).await.map(drop)
    }

    async fn sync_dir(&self, dir: Dir) -> Result<(), DiskError> {
        self.submit(Op::SyncDir { dir, upto: 0 }).await.map(drop)
    }

    async fn sync_device(&self) -> Result<(), DiskError> {
        self.submit(Op::SyncDevice { began: 0 }).await.map(drop)
    }

    fn device_flush_proved(&self) -> bool {
        self.state.borrow().device_flush_proved
    }
}

/// An open file of a [`SimDisk`].
#[derive(Clone, Debug)]
pub struct SimFile {
    disk: SimDisk,
    inode: usize,
    len: u64,
}

impl File for SimFile {
    async fn write_at(&self, blocks: Vec<Block>, position: u64, mode: WriteMode) -> Result<(), DiskError> {
        let aligned = blocks.iter().all(|block| block.len().is_multiple_of(BLOCK_BYTES) && !block.is_empty());
        assert!(aligned && position.is_multiple_of(BLOCK_BYTES as u64), "direct writes are whole blocks");
        let pages = blocks.iter().flat_map(|block| block.chunks_exact(BLOCK_BYTES)).map(to_page).collect();
        let (inode, first) = (self.inode, position as usize / BLOCK_BYTES);
        self.disk.submit(Op::Write { inode, first, pages, done: 0, mode }).await.map(drop)
    }

    async fn read_at(&self, position: u64, len: usize) -> Result<Block, DiskError> {
        let aligned = len.is_multiple_of(BLOCK_BYTES) && position.is_multiple_of(BLOCK_BYTES as u64);
        assert!(aligned && len > 0, "direct reads are whole blocks");
        match self.disk.submit(Op::Read { inode: self.inode, position: position as usize, len }).await? {
            Output::Block(block) => Ok(block),
            _ => unreachable!("a read answers a block"),
        }
    }

    async fn sync(&self) -> Result<(), DiskError> {
        self.disk.submit(Op::Sync { inode: self.inode, began: 0 }).await.map(drop)
    }

    async fn zero(&self, range: Range<u64>) -> Result<(), DiskError> {
        if range.is_empty() {
            return Ok(());
        }
        let pages = vec![None; (range.end - range.start) as usize / BLOCK_BYTES];
        let (inode, first) = (self.inode, range.start as usize / BLOCK_BYTES);
        self.disk.submit(Op::Write { inode, first, pages, done: 0, mode: WriteMode::Written }).await.map(drop)
    }

    fn len(&self) -> u64 {
        self.len
    }

    /// A copy: nobody may write to a file while a mapping of it is held, so that none could tell.
    fn map(&self, range: Range<u64>) -> Option<Block> {
        let state = self.disk.state.borrow();
        let file = &state.inodes[self.inode];
        let (start, end) = (range.start as usize, range.end as usize);
        let first = start / BLOCK_BYTES;
        let mut bytes = Vec::with_capacity(end.div_ceil(BLOCK_BYTES) * BLOCK_BYTES - first * BLOCK_BYTES);
        for page in first..end.div_ceil(BLOCK_BYTES) {
            match file.page(page) {
                Some(page) => bytes.extend_from_slice(&page[..]),
                None => bytes.resize(bytes.len() + BLOCK_BYTES, 0),
            }
        }
        let skipped = start - first * BLOCK_BYTES;
        bytes.truncate(end - first * BLOCK_BYTES);
        let len = bytes.len();
        Some(Block::from_owner(Rc::new(bytes)).slice(skipped..len))
    }

    fn resident(&self, range: Range<u64>) -> bool {
        self.disk.state.borrow_mut().inodes[self.inode].is_resident(&range)
    }

    fn will_need(&self, range: Range<u64>) {
        self.disk.state.borrow_mut().inodes[self.inode].fetch_ahead(&range);
    }
}

/// Whether bytes are what a page of zeros is.
fn is_empty_page(bytes: &[u8]) -> bool {
    is_zero(bytes)
}
