//! A disk that logs what is done to it and fails when told, as a file on FUSE; knows no filesystem on it and no broker.
//!
//! A loop device stands on that file. Requests are taken one by one. A write is in the log when it has completed, a
//! flush when it begins: some writes and all flushes complete late, so that flushes overtake writes, and writes
//! complete during flushes that do not cover them. Now and then, and rather where much is not flushed, nothing
//! completes for a while, so that whatever was acknowledged gets to who waits for it while the log stands still. A
//! flush that fails makes nothing durable, and the log says so: a device may have lost by then what a later flush does
//! not bring back.

use crate::chance::Chance;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, WriteFlags,
};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// The file's name.
const DISK: &str = "disk";
const DISK_INODE: INodeNo = INodeNo(2);
/// Sizes and names never change.
const FOREVER: Duration = Duration::from_secs(3_600);
/// The most that one request may write.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Of so many writes one completes late.
const LATE_ONE_IN: u64 = 16;
/// The latest that something completes after it began.
const LATE_US_MAX: u64 = 3_000;
/// Before how many of 64 requests the disk stands still, for each write that nothing has flushed yet, and at most.
const STILL_OF_64: usize = 1;
const STILL_OF_64_MAX: usize = 8;
/// How long it stands still.
const STILL: Duration = Duration::from_millis(12);

/// What was done to the disk.
#[derive(Debug)]
pub enum Entry {
    /// These bytes were written there.
    Write(u64, Box<[u8]>),
    /// All writes before this were made durable.
    Flush,
    /// Writes since the last flush were not made durable, and no later flush does it.
    FailedFlush,
}

/// The log, which grows.
#[derive(Debug, Default)]
pub struct Journal {
    entries: Mutex<Vec<Entry>>,
    len: AtomicUsize,
    bytes: AtomicU64,
    overlaps: AtomicUsize,
    /// Writes since the last flush.
    unflushed: AtomicUsize,
    stills: Mutex<Vec<usize>>,
    /// Held by whoever completes something.
    completing: Mutex<()>,
}

impl Journal {
    /// How many entries there are now.
    #[must_use]
    pub fn position(&self) -> usize {
        self.len.load(Ordering::SeqCst)
    }

    /// Bytes that were written so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Writes that began while another one of the same bytes was in flight.
    #[must_use]
    pub fn overlaps(&self) -> usize {
        self.overlaps.load(Ordering::SeqCst)
    }

    /// How long the log was each time the disk stood still.
    ///
    /// # Panics
    /// If the disk has.
    #[must_use]
    pub fn stills(&self) -> Vec<usize> {
        self.stills.lock().expect("nobody panics with it").clone()
    }

    /// Nothing completes for a while.
    fn stand_still(&self) {
        let _nobody_else = self.completing.lock().expect("nobody panics with it");
        Chance::wait(STILL);
        self.stills.lock().expect("nobody panics with it").push(self.position());
    }

    /// Takes the log; what is done to the disk from now on is in no log of interest.
    ///
    /// # Panics
    /// If the disk has.
    #[must_use]
    pub fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.entries.lock().expect("nobody panics with it"))
    }

    fn push(&self, entry: Entry) {
        if let Entry::Write(_, bytes) = &entry {
            self.bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
            self.unflushed.fetch_add(1, Ordering::SeqCst);
        } else {
            self.unflushed.store(0, Ordering::SeqCst);
        }
        let mut entries = self.entries.lock().expect("nobody panics with it");
        entries.push(entry);
        self.len.store(entries.len(), Ordering::SeqCst);
    }
}

/// Which flushes fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailingFlushes {
    /// None.
    #[default]
    None,
    /// The next one.
    Next,
    /// Every one.
    All,
}

/// What the disk does wrong from now on.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Reads of these bytes fail.
    pub reads: Vec<Range<u64>>,
    /// Writes of these bytes fail.
    pub writes: Vec<Range<u64>>,
    /// Flushes that fail.
    pub flushes: FailingFlushes,
    /// Each request takes so much longer.
    pub delay: Duration,
    /// Requests that were failed.
    pub failed: usize,
}

impl Faults {
    fn is_failing(&mut self, ranges: fn(&Self) -> &[Range<u64>], offset: u64, len: usize) -> bool {
        let end = offset + len as u64;
        let is_failing = ranges(self).iter().any(|range| range.start < end && offset < range.end);
        self.failed += usize::from(is_failing);
        is_failing
    }

    fn fails_flush(&mut self) -> bool {
        let fails = self.flushes != FailingFlushes::None;
        if self.flushes == FailingFlushes::Next {
            self.flushes = FailingFlushes::None;
        }
        self.failed += usize::from(fails);
        fails
    }
}

/// A disk that is served; gone when it is dropped, which needs that nobody uses it.
#[derive(Debug)]
pub struct BlockDevice {
    session: Option<BackgroundSession>,
    late: Option<JoinHandle<()>>,
    path: PathBuf,
    journal: Arc<Journal>,
    faults: Arc<Mutex<Faults>>,
}

impl BlockDevice {
    /// Serves `image` as a file in the directory `at`, and logs what is done to it.
    ///
    /// # Errors
    /// If the image cannot be opened or nothing can be mounted.
    ///
    /// # Panics
    /// If there are no threads.
    pub fn serve(image: &Path, at: &Path, chance: Chance) -> io::Result<Self> {
        let image = File::options().read(true).write(true).open(image)?;
        let bytes = image.metadata()?.len();
        let (journal, faults) = (Arc::new(Journal::default()), Arc::default());
        let (late_writes, receiver) = channel();
        let (in_flight, chance) = (Arc::new(Mutex::new(BTreeMap::new())), Mutex::new(chance));
        let late = Late { journal: Arc::clone(&journal), in_flight: Arc::clone(&in_flight), receiver };
        let late = std::thread::spawn(move || late.run());
        let disk = Served {
            image,
            bytes,
            journal: Arc::clone(&journal),
            faults: Arc::clone(&faults),
            chance,
            in_flight,
            late: Mutex::new(late_writes),
        };
        let session = Some(fuser::spawn_mount(disk, at, &Config::default())?);
        Ok(Self { session, late: Some(late), path: at.join(DISK), journal, faults })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was done to it.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Changes what it does wrong.
    ///
    /// # Panics
    /// If the disk has.
    pub fn fail<T>(&self, change: impl FnOnce(&mut Faults) -> T) -> T {
        change(&mut self.faults.lock().expect("nobody panics with it"))
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        self.fail(|faults| *faults = Faults::default());
        let unmounted = self.session.take().map(BackgroundSession::umount_and_join);
        let joined = self.late.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(unmounted, Some(Ok(()))) && matches!(joined, Some(Ok(()))), "{unmounted:?}, {joined:?}");
        }
    }
}

/// A request that has begun and not completed.
enum Begun {
    Write(u64, u64, Box<[u8]>, ReplyWrite),
    Flush(ReplyEmpty),
}

type InFlight = Arc<Mutex<BTreeMap<u64, Range<u64>>>>;

/// Completes late requests.
struct Late {
    journal: Arc<Journal>,
    in_flight: InFlight,
    receiver: Receiver<(Instant, Begun)>,
}

impl Late {
    fn run(self) {
        while let Ok((at, begun)) = self.receiver.recv() {
            Chance::wait(at.saturating_duration_since(Instant::now()));
            let _nobody_else = self.journal.completing.lock().expect("nobody panics with it");
            match begun {
                Begun::Write(number, offset, bytes, reply) => {
                    let len = bytes.len() as u32;
                    self.in_flight.lock().expect("nobody panics with it").remove(&number);
                    self.journal.push(Entry::Write(offset, bytes));
                    reply.written(len);
                }
                Begun::Flush(reply) => reply.ok(),
            }
        }
    }
}

struct Served {
    image: File,
    bytes: u64,
    journal: Arc<Journal>,
    faults: Arc<Mutex<Faults>>,
    chance: Mutex<Chance>,
    in_flight: InFlight,
    late: Mutex<Sender<(Instant, Begun)>>,
}

impl Served {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_dir = inode == INodeNo::ROOT;
        let size = if is_dir { 0 } else { self.bytes };
        FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_dir { FileType::Directory } else { FileType::RegularFile },
            perm: if is_dir { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4_096,
            flags: 0,
        }
    }

    /// What is wrong with a request that has come.
    fn faults<T>(&self, ask: impl FnOnce(&mut Faults) -> T) -> T {
        let unflushed = self.journal.unflushed.load(Ordering::SeqCst);
        let of_64 = (unflushed * STILL_OF_64).min(STILL_OF_64_MAX) as u64;
        if self.chance.lock().expect("nobody panics with it").is_hit(of_64, 64) {
            self.journal.stand_still();
        }
        let (answer, delay) = {
            let mut faults = self.faults.lock().expect("nobody panics with it");
            (ask(&mut faults), faults.delay)
        };
        if !delay.is_zero() {
            Chance::wait(delay);
        }
        answer
    }

    /// Writes to the image; whether nobody is to know yet, and under which number it is in flight.
    fn write_out(&self, offset: u64, bytes: &[u8]) -> io::Result<Option<u64>> {
        self.image.write_all_at(bytes, offset)?;
        let mut in_flight = self.in_flight.lock().expect("nobody panics with it");
        let end = offset + bytes.len() as u64;
        if in_flight.values().any(|range: &Range<u64>| range.start < end && offset < range.end) {
            self.journal.overlaps.fetch_add(1, Ordering::SeqCst);
        }
        if !self.chance.lock().expect("nobody panics with it").is_hit(1, LATE_ONE_IN) {
            return Ok(None);
        }
        let number = in_flight.last_key_value().map_or(0, |(number, _)| number + 1);
        in_flight.insert(number, offset..end);
        Ok(Some(number))
    }

    fn complete_late(&self, begun: Begun) {
        let by_us = self.chance.lock().expect("nobody panics with it").below(LATE_US_MAX);
        let late = self.late.lock().expect("nobody panics with it");
        let at = Instant::now() + Duration::from_micros(by_us);
        late.send((at, begun)).expect("it is joined after this disk is gone");
    }
}

impl Filesystem for Served {
    fn init(&mut self, _request: &Request, kernel: &mut KernelConfig) -> io::Result<()> {
        // Several requests of the loop device in flight.
        kernel.add_capabilities(InitFlags::FUSE_ASYNC_DIO).map_err(|_| io::ErrorKind::Unsupported)?;
        kernel.set_max_write(WRITE_BYTES_MAX).map(drop).map_err(|_| io::ErrorKind::InvalidInput.into())
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == DISK {
            reply.entry(&FOREVER, &self.attributes(DISK_INODE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _file: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attributes(inode));
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Each write of the loop device is to come here at once.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _file: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; u64::from(size).min(self.bytes.saturating_sub(offset)) as usize];
        if self.faults(|faults| faults.is_failing(|faults| &faults.reads, offset, bytes.len())) {
            return reply.error(Errno::EIO);
        }
        match self.image.read_exact_at(&mut bytes, offset) {
            Ok(()) => reply.data(&bytes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _file: FileHandle,
        offset: u64,
        bytes: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if offset.saturating_add(bytes.len() as u64) > self.bytes {
            return reply.error(Errno::ENOSPC);
        }
        if self.faults(|faults| faults.is_failing(|faults| &faults.writes, offset, bytes.len())) {
            return reply.error(Errno::EIO);
        }
        match self.write_out(offset, bytes) {
            Ok(Some(number)) => self.complete_late(Begun::Write(number, offset, bytes.into(), reply)),
            Ok(None) => {
                self.journal.push(Entry::Write(offset, bytes.into()));
                reply.written(bytes.len() as u32);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn fsync(&self, _request: &Request, _inode: INodeNo, _file: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        if self.faults(Faults::fails_flush) {
            self.journal.push(Entry::FailedFlush);
            return reply.error(Errno::EIO);
        }
        self.journal.push(Entry::Flush);
        self.complete_late(Begun::Flush(reply));
    }
}
