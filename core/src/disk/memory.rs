//! A disk in memory, with a mode that keeps operations until told and loses at a crash what a device may lose; knows
//! no segment and no batch.
//!
//! Crash model, after what ext4 on a volatile write cache does: a write may be lost, kept or torn at 512 bytes until
//! a sync that began after it completed has succeeded; later writes may survive earlier ones, but of two writes of one
//! sector in order the older never wins. Directory operations survive as a prefix (one journal). A device flush makes
//! nothing durable over blocks that no file sync has covered before (unwritten extents).

use super::{Dir, Disk, DiskError, File, FileName, WriteMode};
use crate::block::{Block, BlockPool};
use crate::executor::Random;
use crate::limits::BLOCK_BYTES;
use coulee_protocol::ids::PartitionUid;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// What a device tears a write at.
const SECTOR_BYTES: usize = 512;

/// What goes wrong. All off by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Syncs and flushes succeed and make nothing durable.
    pub syncs_do_nothing: bool,
    /// Syncs and flushes of files, and writes that are to be durable, never complete.
    pub syncs_hang: bool,
    /// The next sync of a file fails, and the writes it should have covered are never durable.
    pub next_sync_fails: bool,
    /// The next flush of the device fails, and no write that has completed and was not synced is ever durable.
    pub next_flush_fails: bool,
    /// The next write fails, half done.
    pub next_write_fails: bool,
    /// The next read fails.
    pub next_read_fails: bool,
    /// The next file is not created.
    pub next_create_fails: bool,
    /// The next file is not renamed.
    pub next_rename_fails: bool,
    /// The next sync of a directory fails; what it should have covered is durable with a later one.
    pub next_dir_sync_fails: bool,
    /// The files that the `next` faults strike; all where there is none. Flushes and directories have no file.
    pub aim: Option<fn(FileName) -> bool>,
    /// No file can be created.
    pub full: bool,
    /// No fault: mappings are offered, and every page of them is resident.
    pub resident: bool,
}

struct Unsynced {
    position: usize,
    bytes: Vec<u8>,
    completed: u64,
    /// A failed sync has dropped the bytes. A later one succeeds without them.
    dropped: bool,
}

#[derive(Default)]
struct Inode {
    data: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// Blocks that a sync of the file has covered: a device flush is enough for them from then on.
    converted: Vec<bool>,
    /// Syncs of the file, failed ones and durable writes included.
    syncs: u64,
    /// Blocks that were asked for ahead and not written since: a mapping has them in memory.
    ahead: BTreeSet<usize>,
}

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
    SyncDir { upto: usize },
    SyncDevice { began: u64 },
    Sync { inode: usize, began: u64 },
    Write { inode: usize, position: usize, blocks: Vec<Block>, mode: WriteMode },
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
    slot: Rc<RefCell<Slot>>,
}

/// A change of the names, until a directory sync has made it durable.
#[derive(Clone)]
enum NameChange {
    Add(FileName, usize),
    Remove(FileName),
    AddDir(Dir),
    RemoveDir(Dir),
}

#[derive(Clone, Default)]
struct Names {
    files: BTreeMap<FileName, usize>,
    dirs: BTreeSet<Dir>,
}

impl Names {
    fn apply(&mut self, change: &NameChange) {
        match change {
            NameChange::Add(name, inode) => drop(self.files.insert(*name, *inode)),
            NameChange::Remove(name) => drop(self.files.remove(name)),
            NameChange::AddDir(dir) => drop(self.dirs.insert(*dir)),
            NameChange::RemoveDir(dir) => drop(self.dirs.remove(dir)),
        }
    }
}

struct State {
    inodes: Vec<Inode>,
    names: Names,
    durable_names: Names,
    /// Changes after `durable_names`, in order.
    changes: Vec<NameChange>,
    /// Changes that are in `durable_names`.
    changes_synced: usize,
    pending: Vec<Pending>,
    /// Keeps operations until [`MemoryDisk::complete`], and what is needed to crash.
    crashing: bool,
    /// Counts completions, so that a sync knows what came before it.
    clock: u64,
    faults: Faults,
    /// Flushes of the device, failed ones included.
    flushes: u64,
    /// Reads of files.
    reads: u64,
    device_flush_proved: bool,
    trace: u64,
    pool: BlockPool,
}

/// A disk in memory. Clones share it.
#[derive(Clone)]
pub struct MemoryDisk {
    state: Rc<RefCell<State>>,
}

impl std::fmt::Debug for MemoryDisk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "MemoryDisk({} files)", self.state.borrow().names.files.len())
    }
}

impl Default for MemoryDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryDisk {
    /// A disk that completes every operation at once and never crashes.
    #[must_use]
    pub fn new() -> Self {
        Self::with_mode(false)
    }

    /// A disk that keeps every operation until [`MemoryDisk::complete`] and can crash.
    #[must_use]
    pub fn crashing() -> Self {
        Self::with_mode(true)
    }

    /// A disk like [`MemoryDisk::new`] that holds `files`.
    #[must_use]
    pub fn holding(files: impl IntoIterator<Item = (FileName, Vec<u8>)>) -> Self {
        let disk = Self::new();
        let mut state = disk.state.borrow_mut();
        for (name, data) in files {
            let converted = vec![true; data.len().div_ceil(BLOCK_BYTES)];
            state.inodes.push(Inode { data, converted, ..Inode::default() });
            let inode = state.inodes.len() - 1;
            state.change(NameChange::AddDir(name.dir()));
            state.change(NameChange::Add(name, inode));
        }
        drop(state);
        disk
    }

    fn with_mode(crashing: bool) -> Self {
        let state = State {
            inodes: Vec::new(),
            names: Names::default(),
            durable_names: Names::default(),
            changes: Vec::new(),
            changes_synced: 0,
            pending: Vec::new(),
            crashing,
            clock: 0,
            faults: Faults::default(),
            flushes: 0,
            reads: 0,
            device_flush_proved: true,
            trace: 0xcbf2_9ce4_8422_2325,
            pool: BlockPool::new(64 << 20),
        };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    /// What goes wrong from now on.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state.borrow_mut().faults);
    }

    /// Whether a device flush stands in for syncs of files; true by default.
    pub fn set_device_flush(&self, proved: bool) {
        self.state.borrow_mut().device_flush_proved = proved;
    }

    /// Operations that can be completed now.
    #[must_use]
    pub fn pending(&self) -> usize {
        let state = self.state.borrow();
        let hang = state.faults.syncs_hang;
        state.pending.iter().filter(|pending| !(hang && pending.op.is_sync())).count()
    }

    /// Completes the `chosen`-th of the operations that can be.
    pub fn complete(&self, chosen: usize) {
        let mut state = self.state.borrow_mut();
        let hang = state.faults.syncs_hang;
        let mut able = (0..state.pending.len()).filter(|index| !(hang && state.pending[*index].op.is_sync()));
        let index = able.nth(chosen).expect("the caller chooses below pending()");
        let Pending { op, slot } = state.pending.remove(index);
        let result = state.perform(&op);
        drop(state);
        let mut slot = slot.borrow_mut();
        slot.result = Some(result);
        if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
    }

    /// The disk as it may be found after a power cut at this moment. Operations in flight may have happened in part.
    #[must_use]
    pub fn crash(&self, random: &mut Random) -> Self {
        let state = self.state.borrow();
        assert!(state.crashing, "only a crashing disk knows what it may lose");
        let crashed = Self::crashing();
        let mut names = state.durable_names.clone();
        let survived = random.below(state.changes.len() as u64 + 1) as usize;
        state.changes[..survived].iter().for_each(|change| names.apply(change));
        let mut inodes: Vec<Inode> = state.inodes.iter().map(|inode| inode.crash(random)).collect();
        for pending in &state.pending {
            if let Op::Write { inode, position, blocks, .. } = &pending.op {
                inodes[*inode].tear(
                    *position,
                    &blocks.iter().flat_map(|block| block.to_vec()).collect::<Vec<u8>>(),
                    random,
                );
            }
        }
        for inode in &mut inodes {
            inode.durable.clone_from(&inode.data);
        }
        let mut fresh = crashed.state.borrow_mut();
        fresh.inodes = inodes;
        fresh.durable_names = names.clone();
        fresh.names = names;
        fresh.device_flush_proved = state.device_flush_proved;
        drop(fresh);
        crashed
    }

    /// A hash of everything that has completed, in order.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.state.borrow().trace
    }

    /// How often the file called `name` was synced, whether that succeeded or not.
    #[must_use]
    pub fn syncs(&self, name: FileName) -> u64 {
        let state = self.state.borrow();
        state.names.files.get(&name).map_or(0, |inode| state.inodes[*inode].syncs)
    }

    /// How often the device was flushed, whether that succeeded or not.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.state.borrow().flushes
    }

    /// How often a file was read, mappings aside.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.state.borrow().reads
    }

    /// Every file with its bytes, for tests that look at them or damage them.
    #[must_use]
    pub fn files(&self) -> Vec<(FileName, Vec<u8>)> {
        let state = self.state.borrow();
        state.names.files.iter().map(|(name, inode)| (*name, state.inodes[*inode].data.clone())).collect()
    }

    /// A copy of this disk with the content of `name` changed, or the file gone where `change` answers `None`.
    /// Everything in it is durable; nothing is in flight.
    #[must_use]
    pub fn damaged(&self, name: FileName, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> Self {
        let state = self.state.borrow();
        let copy = Self::with_mode(state.crashing);
        let mut into = copy.state.borrow_mut();
        into.device_flush_proved = state.device_flush_proved;
        into.names = state.names.clone();
        // Files without a name cannot be reached in the copy.
        into.inodes.resize_with(state.inodes.len(), Inode::default);
        for inode in state.names.files.values() {
            into.inodes[*inode] = state.inodes[*inode].copy(state.crashing);
        }
        let content = into.names.files.remove(&name).map(|inode| std::mem::take(&mut into.inodes[inode].data));
        if let Some(data) = change(content.unwrap_or_default()) {
            let converted = vec![true; data.len() / BLOCK_BYTES];
            into.inodes.push(Inode { data, converted, ..Inode::default() }.copy(state.crashing));
            let added = into.inodes.len() - 1;
            into.names.files.insert(name, added);
        }
        into.durable_names = into.names.clone();
        drop(into);
        copy
    }

    fn submit(&self, op: Op) -> OpFuture {
        OpFuture { disk: self.clone(), op: Some(op), slot: Rc::default() }
    }
}

impl Op {
    const fn is_sync(&self) -> bool {
        matches!(self, Self::Sync { .. } | Self::SyncDevice { .. } | Self::Write { mode: WriteMode::Durable, .. })
    }
}

impl Inode {
    fn copy(&self, crashing: bool) -> Self {
        let durable = if crashing { self.data.clone() } else { Vec::new() };
        Self { data: self.data.clone(), durable, converted: self.converted.clone(), ..Self::default() }
    }

    /// What of it is there after a crash: the durable bytes, and of each unsynced write any of its sectors.
    fn crash(&self, random: &mut Random) -> Self {
        let mut crashed = Self { data: self.durable.clone(), converted: self.converted.clone(), ..Self::default() };
        for write in self.unsynced.iter().filter(|write| !write.dropped) {
            crashed.tear(write.position, &write.bytes, random);
        }
        crashed
    }

    /// Applies a write as a device that lost power may have: all, nothing, or some sectors.
    fn tear(&mut self, position: usize, bytes: &[u8], random: &mut Random) {
        let fate = random.below(4);
        for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
            let kept = match fate {
                0 => false,
                1 => true,
                _ => random.below(2) == 0,
            };
            if kept {
                let at = position + index * SECTOR_BYTES;
                self.data[at..at + sector.len()].copy_from_slice(sector);
            }
        }
    }

    /// Makes durable what completed before `began`; a device flush (`whole` false) only over converted blocks.
    fn sync(&mut self, began: u64, whole: bool) {
        let (durable, converted) = (&mut self.durable, &mut self.converted);
        self.unsynced.retain(|write| {
            let blocks = write.position / BLOCK_BYTES..(write.position + write.bytes.len()).div_ceil(BLOCK_BYTES);
            let covered = write.completed < began && (whole || converted[blocks.clone()].iter().all(|block| *block));
            if covered {
                if !write.dropped {
                    durable[write.position..write.position + write.bytes.len()].copy_from_slice(&write.bytes);
                }
                converted[blocks].fill(true);
            }
            !covered
        });
    }
}

impl State {
    fn note(&mut self, what: u64, value: u64) {
        for byte in what.to_le_bytes().into_iter().chain(value.to_le_bytes()) {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Whether the fault that `armed` finds strikes the file that `is_it` knows; then it is used up.
    fn strikes(&mut self, armed: fn(&mut Faults) -> &mut bool, is_it: impl Fn(FileName, usize) -> bool) -> bool {
        let aimed =
            |aim: fn(FileName) -> bool| self.names.files.iter().any(|(name, at)| aim(*name) && is_it(*name, *at));
        *armed(&mut self.faults) && self.faults.aim.is_none_or(aimed) && std::mem::take(armed(&mut self.faults))
    }

    /// Names can only be made in directories that are there.
    fn in_a_directory(&self, name: FileName) -> Result<(), DiskError> {
        let there = name.dir() == Dir::Root || self.names.dirs.contains(&name.dir());
        if there { Ok(()) } else { Err(DiskError::NotFound) }
    }

    fn change(&mut self, change: NameChange) {
        self.names.apply(&change);
        if self.crashing {
            self.changes.push(change);
        }
    }

    fn perform(&mut self, op: &Op) -> Result<Output, DiskError> {
        self.clock += 1;
        match op {
            Op::Write { inode, position, blocks, mode } => self.write(*inode, *position, blocks, *mode),
            Op::Read { inode, position, len } => {
                self.reads += 1;
                self.read(*inode, *position, *len)
            }
            Op::Sync { inode, began } => {
                self.note(2, *inode as u64);
                self.sync(*began, Some(*inode))
            }
            Op::SyncDevice { began } => {
                self.note(3, 0);
                self.flushes += 1;
                self.sync(*began, None)
            }
            names => self.perform_on_names(names),
        }
    }

    fn perform_on_names(&mut self, op: &Op) -> Result<Output, DiskError> {
        match op {
            Op::Open(name) => {
                let inode = *self.names.files.get(name).ok_or(DiskError::NotFound)?;
                return Ok(Output::File(inode, self.inodes[inode].data.len() as u64));
            }
            Op::Create(name, len) => {
                self.note(4, *len);
                return self.create(*name, *len as usize);
            }
            Op::List(dir) => {
                let names = self.names.files.keys().filter(|name| name.dir() == *dir).copied().collect();
                return Ok(Output::Names(names));
            }
            Op::ListPartitions => {
                let uid = |dir: &Dir| if let Dir::Partition(uid) = dir { Some(*uid) } else { None };
                return Ok(Output::Partitions(self.names.dirs.iter().filter_map(uid).collect()));
            }
            Op::ListPools => {
                let shard = |dir: &Dir| if let Dir::Pool(shard) = dir { Some(*shard) } else { None };
                return Ok(Output::Shards(self.names.dirs.iter().filter_map(shard).collect()));
            }
            Op::CreateDir(dir) => self.change(NameChange::AddDir(*dir)),
            Op::RemoveDir(dir) if self.names.files.keys().any(|name| name.dir() == *dir) => {
                return Err(DiskError::Io { errno: 39 });
            }
            Op::RemoveDir(dir) => self.change(NameChange::RemoveDir(*dir)),
            Op::Rename(from, to) => {
                self.in_a_directory(*to)?;
                if self.strikes(|faults| &mut faults.next_rename_fails, |name, _| name == *from) {
                    return Err(DiskError::Io { errno: 5 });
                }
                let inode = *self.names.files.get(from).ok_or(DiskError::NotFound)?;
                self.note(5, inode as u64);
                self.change(NameChange::Remove(*from));
                self.change(NameChange::Add(*to, inode));
            }
            Op::Remove(name) => self.change(NameChange::Remove(*name)),
            Op::SyncDir { .. } if std::mem::take(&mut self.faults.next_dir_sync_fails) => {
                return Err(DiskError::Io { errno: 5 });
            }
            Op::SyncDir { upto } => {
                // The journal is one: what came before in other directories is durable, too.
                let done = upto.saturating_sub(self.changes_synced);
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
        if self.faults.full {
            return Err(DiskError::NoSpace);
        }
        self.in_a_directory(name)?;
        // It has no name yet that the aim could know.
        if self.faults.aim.is_none_or(|aim| aim(name)) && std::mem::take(&mut self.faults.next_create_fails) {
            return Err(DiskError::Io { errno: 5 });
        }
        let durable = if self.crashing { vec![0; len] } else { Vec::new() };
        let converted = vec![false; len / BLOCK_BYTES];
        self.inodes.push(Inode { data: vec![0; len], durable, converted, ..Inode::default() });
        let inode = self.inodes.len() - 1;
        self.change(NameChange::Add(name, inode));
        Ok(Output::File(inode, len as u64))
    }

    fn write(&mut self, inode: usize, position: usize, blocks: &[Block], mode: WriteMode) -> Result<Output, DiskError> {
        let end = position + blocks.iter().map(|block| block.len()).sum::<usize>();
        self.inodes[inode].ahead.retain(|block| !(position / BLOCK_BYTES..end / BLOCK_BYTES).contains(block));
        self.note(1, position as u64);
        let failed = self.strikes(|faults| &mut faults.next_write_fails, |_, at| at == inode);
        let (clock, crashing) = (self.clock, self.crashing);
        let file = &mut self.inodes[inode];
        file.syncs += u64::from(mode == WriteMode::Durable);
        let mut at = position;
        for block in blocks {
            let end = at + block.len();
            let room = file.data.get_mut(at..end).ok_or(DiskError::BeyondEnd)?;
            if failed {
                let half = block.len() / 2;
                room[..half].copy_from_slice(&block[..half]);
                return Err(DiskError::Io { errno: 5 });
            }
            room.copy_from_slice(block);
            if crashing {
                file.unsynced.push(Unsynced { position: at, bytes: block.to_vec(), completed: clock, dropped: false });
            }
            at = end;
        }
        if mode == WriteMode::Durable && crashing {
            if self.faults.syncs_do_nothing {
                return Ok(Output::Unit);
            }
            // Only this write: earlier unsynced ones of the file stay as they are.
            let mut earlier = std::mem::take(&mut file.unsynced);
            let own = earlier.split_off(earlier.len() - blocks.len());
            file.unsynced = own;
            file.sync(u64::MAX, true);
            file.unsynced = earlier;
        }
        Ok(Output::Unit)
    }

    fn read(&mut self, inode: usize, position: usize, len: usize) -> Result<Output, DiskError> {
        if self.strikes(|faults| &mut faults.next_read_fails, |_, at| at == inode) {
            return Err(DiskError::Io { errno: 5 });
        }
        let mut block = self.pool.take(len);
        block.extend(self.inodes[inode].data.get(position..position + len).ok_or(DiskError::BeyondEnd)?);
        Ok(Output::Block(block.freeze()))
    }

    fn sync(&mut self, began: u64, inode: Option<usize>) -> Result<Output, DiskError> {
        let failed = match inode {
            Some(inode) => self.strikes(|faults| &mut faults.next_sync_fails, |_, at| at == inode),
            None => std::mem::take(&mut self.faults.next_flush_fails),
        };
        let nothing = self.faults.syncs_do_nothing;
        let files = match inode {
            Some(inode) => &mut self.inodes[inode..=inode],
            None => &mut self.inodes[..],
        };
        for file in files {
            file.syncs += u64::from(inode.is_some());
            if failed {
                // The kernel marks the pages clean: no later sync will write them.
                file.unsynced.iter_mut().for_each(|write| write.dropped = true);
            } else if !nothing {
                file.sync(began, inode.is_some());
            }
        }
        if failed { Err(DiskError::Io { errno: 5 }) } else { Ok(Output::Unit) }
    }

    fn assert_no_overlap(&self, op: &Op) {
        let Some((inode, blocks)) = op.written() else { return };
        for (other, range) in self.pending.iter().filter_map(|pending| pending.op.written()) {
            let apart = other != inode || range.end <= blocks.start || blocks.end <= range.start;
            assert!(apart, "two writes in flight cover bytes {range:?} and {blocks:?} of one file");
        }
    }
}

impl Op {
    fn written(&self) -> Option<(usize, Range<usize>)> {
        let Self::Write { inode, position, blocks, .. } = self else { return None };
        Some((*inode, *position..*position + blocks.iter().map(|block| block.len()).sum::<usize>()))
    }
}

/// An operation: starts when first polled, goes on when dropped.
struct OpFuture {
    disk: MemoryDisk,
    op: Option<Op>,
    slot: Rc<RefCell<Slot>>,
}

impl Future for OpFuture {
    type Output = Result<Output, DiskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(mut op) = self.op.take() {
            let mut state = self.disk.state.borrow_mut();
            op.begin(&state);
            if !state.crashing {
                return Poll::Ready(state.perform(&op));
            }
            state.assert_no_overlap(&op);
            state.pending.push(Pending { op, slot: Rc::clone(&self.slot) });
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

impl Op {
    /// A sync covers what has completed when it begins.
    fn begin(&mut self, state: &State) {
        match self {
            Self::Sync { began, .. } | Self::SyncDevice { began } => *began = state.clock + 1,
            Self::SyncDir { upto } => *upto = state.changes_synced + state.changes.len(),
            _ => {}
        }
    }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    async fn open(&self, name: FileName) -> Result<MemoryFile, DiskError> {
        self.submit(Op::Open(name)).await.map(|output| self.file(output))
    }

    async fn create(&self, name: FileName, len: u64) -> Result<MemoryFile, DiskError> {
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

    async fn sync_dir(&self, _: Dir) -> Result<(), DiskError> {
        self.submit(Op::SyncDir { upto: 0 }).await.map(drop)
    }

    async fn sync_device(&self) -> Result<(), DiskError> {
        self.submit(Op::SyncDevice { began: 0 }).await.map(drop)
    }

    fn device_flush_proved(&self) -> bool {
        self.state.borrow().device_flush_proved
    }
}

impl MemoryDisk {
    fn file(&self, output: Output) -> MemoryFile {
        let Output::File(inode, len) = output else { unreachable!("opening answers a file") };
        MemoryFile { disk: self.clone(), inode, len }
    }
}

/// An open file of a [`MemoryDisk`].
#[derive(Clone, Debug)]
pub struct MemoryFile {
    disk: MemoryDisk,
    inode: usize,
    len: u64,
}

impl File for MemoryFile {
    async fn write_at(&self, blocks: Vec<Block>, position: u64, mode: WriteMode) -> Result<(), DiskError> {
        let aligned = blocks.iter().all(|block| block.len().is_multiple_of(BLOCK_BYTES) && !block.is_empty());
        assert!(aligned && position.is_multiple_of(BLOCK_BYTES as u64), "direct writes are whole blocks");
        self.disk.submit(Op::Write { inode: self.inode, position: position as usize, blocks, mode }).await.map(drop)
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
        let len = (range.end - range.start) as usize;
        let pool = self.disk.state.borrow().pool.clone();
        let mut zeros = pool.take(len);
        zeros.pad_to(len);
        self.write_at(vec![zeros.freeze()], range.start, WriteMode::Written).await
    }

    fn len(&self) -> u64 {
        self.len
    }

    /// A copy: nobody may write to a file while a mapping of it is held, so that none could tell.
    fn map(&self, range: Range<u64>) -> Option<Block> {
        let state = self.disk.state.borrow();
        let bytes = state.inodes[self.inode].data.get(range.start as usize..range.end as usize)?;
        Some(Block::from_owner(Rc::new(bytes.to_vec())))
    }

    fn resident(&self, range: Range<u64>) -> bool {
        let state = self.disk.state.borrow();
        state.faults.resident || blocks(&range).all(|block| state.inodes[self.inode].ahead.contains(&block))
    }

    fn will_need(&self, range: Range<u64>) {
        self.disk.state.borrow_mut().inodes[self.inode].ahead.extend(blocks(&range));
    }
}

/// The blocks that `range` touches.
fn blocks(range: &Range<u64>) -> Range<usize> {
    range.start as usize / BLOCK_BYTES..(range.end as usize).div_ceil(BLOCK_BYTES)
}
