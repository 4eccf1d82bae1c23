//! The disk of a shard: files of one data directory, written past the page cache; knows no segment and no batch.
//!
//! Files are opened O_DIRECT and reached through the shard's ring. A new file is made under `new/` with its space
//! reserved, and takes its name when it is whole: a crash leaves it there or not at all. One flush of the device is an
//! fdatasync of the file `flush`: ext4 and xfs answer it with a flush of the device also where the file has nothing to
//! write, which their source says and a test counts at the block device.

use crate::ring::{Errno, Fd, Ring};
use coulee_core::block::{Block, BlockPool};
use coulee_core::disk::{Dir, Disk, DiskError, FileName};
use coulee_core::limits::{BLOCK_BYTES, ZERO_BYTES};
use coulee_protocol::ids::PartitionUid;
use std::cell::OnceCell;
use std::ffi::CString;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

mod file;
#[cfg(coulee_mutation = "writes_wait_for_sync")]
mod held;
mod lock;
mod place;

pub use file::OpenFile;
pub use lock::{DirLock, LockError, check_free, lock, lock_to_read};

/// Where files are made; emptied by [`lock()`].
const NEW_DIR: &str = "new";
/// Holds one directory for each shard's pool.
const POOLS_DIR: &str = "pool";
/// The file whose fdatasync flushes the device.
const FLUSH_FILE: &str = "flush";
/// Files are the broker's own; a group may be let in by those who run it.
const FILE_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;

/// Counts files made by this process, so that no two shards make one under the same name.
static MADE: AtomicU64 = AtomicU64::new(0);

/// Why a data directory can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirError {
    /// It can't be made or opened, or not written to.
    Rights,
    /// Its filesystem is full.
    NoSpace,
    /// Its filesystem has no direct I/O over blocks of 4 KiB.
    NoDirectIo,
    /// Something else.
    System(Errno),
}

impl fmt::Display for DirError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rights => write!(formatter, "no right to write there: give the directory to the broker's user"),
            Self::NoSpace => write!(formatter, "the filesystem is full"),
            Self::NoDirectIo => {
                write!(formatter, "the filesystem has no direct I/O in blocks of 4096 bytes: use ext4 or xfs")
            }
            Self::System(errno) => write!(formatter, "{errno}"),
        }
    }
}

impl std::error::Error for DirError {}

impl DirError {
    pub(crate) fn of(errno: Errno) -> Self {
        match errno.0 {
            libc::EACCES | libc::EPERM | libc::EROFS => Self::Rights,
            libc::ENOSPC | libc::EDQUOT => Self::NoSpace,
            // What an open with O_DIRECT and a direct transfer answer where there is none.
            libc::EINVAL | libc::EOPNOTSUPP => Self::NoDirectIo,
            _ => Self::System(errno),
        }
    }
}

struct Root {
    path: PathBuf,
    fd: Fd,
    device: u64,
    flush: Fd,
    flush_proved: bool,
    /// Nothing may be changed, and what has no direct I/O is read through the page cache.
    is_only_read: bool,
    zeros: OnceCell<Block>,
    #[cfg(coulee_mutation = "writes_wait_for_sync")]
    held: held::Registry,
}

/// The disk of a shard. Clones share it; it never leaves its thread.
#[derive(Clone)]
pub struct FileDisk {
    ring: Ring,
    pool: BlockPool,
    root: Rc<Root>,
}

impl fmt::Debug for FileDisk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "FileDisk({})", self.root.path.display())
    }
}

impl FileDisk {
    /// Opens the data directory `path`, making it where it is missing. Reads come into blocks of `pool`. Blocks the
    /// thread: for the start only.
    ///
    /// # Errors
    /// [`DirError`], which says what to change.
    pub fn open(path: &Path, ring: Ring, pool: BlockPool) -> Result<Self, DirError> {
        let failed = |error: std::io::Error| DirError::of(Errno::of(&error));
        let mut dirs = fs::DirBuilder::new();
        dirs.recursive(true).mode(DIR_MODE).create(path.join(NEW_DIR)).map_err(failed)?;
        let fd: Fd = Rc::new(fs::File::open(path).map_err(failed)?.into());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE).custom_flags(libc::O_DIRECT);
        let flush: Fd = Rc::new(options.open(path.join(FLUSH_FILE)).map_err(failed)?.into());
        let place = place::Place::of(&flush).map_err(DirError::of)?;
        if !place.has_direct_io {
            return Err(DirError::NoDirectIo);
        }
        let root = Root {
            path: path.into(),
            fd,
            device: place.device,
            flush,
            flush_proved: place.is_flush_proved,
            is_only_read: false,
            zeros: OnceCell::new(),
            #[cfg(coulee_mutation = "writes_wait_for_sync")]
            held: held::Registry::default(),
        };
        let disk = Self { ring, pool, root: Rc::new(root) };
        if place.len == 0 {
            disk.ring.block_on(disk.fill_flush_file()).map_err(DirError::of)?.map_err(DirError::of)?;
        }
        Ok(disk)
    }

    /// Opens the data directory `path` for reading: makes nothing, and refuses every change. Any filesystem will do.
    /// Blocks the thread.
    ///
    /// # Errors
    /// [`DirError`].
    pub fn open_to_read(path: &Path, ring: Ring, pool: BlockPool) -> Result<Self, DirError> {
        let fd: Fd = Rc::new(fs::File::open(path).map_err(|error| DirError::of(Errno::of(&error)))?.into());
        let root = Root {
            path: path.into(),
            device: place::Place::of(&fd).map_err(DirError::of)?.device,
            flush: Rc::clone(&fd),
            fd,
            flush_proved: false,
            is_only_read: true,
            zeros: OnceCell::new(),
            #[cfg(coulee_mutation = "writes_wait_for_sync")]
            held: held::Registry::default(),
        };
        Ok(Self { ring, pool, root: Rc::new(root) })
    }

    /// Refuses a change of a directory that is only read.
    fn check_change(&self) -> Result<(), DiskError> {
        if self.root.is_only_read { Err(DiskError::Io { errno: libc::EROFS }) } else { Ok(()) }
    }

    /// Writes a text for people into `dir`, durably. Blocks the thread.
    ///
    /// # Errors
    /// The system's.
    pub fn write_note(&self, dir: Dir, name: &str, text: &str) -> Result<(), DiskError> {
        self.check_change()?;
        let write = || -> std::io::Result<()> {
            let dir = self.root.path.join(dir.to_string());
            fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(&dir)?;
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(FILE_MODE).open(dir.join(name))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|error| disk_error(Errno::of(&error)))
    }

    /// Gives the flush file its one block, written once, so that its sync never has metadata to write.
    async fn fill_flush_file(&self) -> Result<(), Errno> {
        let zeros = self.zeros().slice(0..BLOCK_BYTES);
        self.ring.write_at(&self.root.flush, vec![zeros], 0, false).await?;
        self.ring.sync_all(&self.root.flush).await?;
        self.ring.sync_all(&self.root.fd).await
    }

    /// The ring that its files are reached through.
    #[must_use]
    pub const fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The data directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root.path
    }

    fn zeros(&self) -> &Block {
        self.root.zeros.get_or_init(|| {
            let mut zeros = self.pool.take(ZERO_BYTES);
            zeros.pad_to(ZERO_BYTES);
            zeros.freeze()
        })
    }

    async fn open_path(&self, path: CString, flags: i32) -> Result<Fd, DiskError> {
        self.ring.open_at(&self.root.fd, path, flags | libc::O_CLOEXEC, FILE_MODE).await.map_err(disk_error)
    }

    fn opened(&self, fd: Fd) -> Result<OpenFile, DiskError> {
        let place = place::Place::of(&fd).map_err(disk_error)?;
        // One flush is one device's.
        if place.device != self.root.device {
            return Err(DiskError::Io { errno: libc::EXDEV });
        }
        Ok(OpenFile::new(self, fd, &place))
    }

    async fn sync_path(&self, path: CString) -> Result<(), DiskError> {
        let dir = self.open_path(path, libc::O_RDONLY | libc::O_DIRECTORY).await?;
        self.ring.sync_all(&dir).await.map_err(disk_error)
    }

    /// Names of entries in `dir` that are UTF-8; none where there is no such directory. Blocks: a list is for starts
    /// and for opening a partition.
    fn entries(&self, dir: impl fmt::Display) -> Result<Vec<String>, DiskError> {
        let failed = |error: std::io::Error| disk_error(Errno::of(&error));
        let entries = match fs::read_dir(self.root.path.join(dir.to_string())) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        Ok(names)
    }
}

impl Disk for FileDisk {
    type File = OpenFile;

    async fn open(&self, name: FileName) -> Result<OpenFile, DiskError> {
        let access = if self.root.is_only_read { libc::O_RDONLY } else { libc::O_RDWR };
        let fd = match self.open_path(c_path(name), access | libc::O_DIRECT).await {
            Err(DiskError::Io { errno: libc::EINVAL }) if self.root.is_only_read => {
                self.open_path(c_path(name), access).await?
            }
            other => other?,
        };
        self.opened(fd)
    }

    async fn create(&self, name: FileName, len: u64) -> Result<OpenFile, DiskError> {
        assert!(len.is_multiple_of(BLOCK_BYTES as u64), "files are whole blocks");
        self.check_change()?;
        let (unfinished, fd) = Unfinished::make(self).await?;
        if len > 0 {
            self.ring.allocate(&fd, len).await.map_err(disk_error)?;
        }
        let file = self.opened(fd)?;
        self.ring.rename_at(&self.root.fd, unfinished.path.clone(), c_path(name)).await.map_err(disk_error)?;
        unfinished.named();
        Ok(file)
    }

    async fn create_dir(&self, dir: Dir) -> Result<(), DiskError> {
        self.check_change()?;
        let make = |path: String| async move {
            match self.ring.make_dir_at(&self.root.fd, c_path(path), DIR_MODE).await {
                Ok(()) => Ok(true),
                Err(Errno(libc::EEXIST)) => Ok(false),
                Err(errno) => Err(disk_error(errno)),
            }
        };
        let path = dir.to_string();
        if let Some((parent, _)) = path.rsplit_once('/') {
            make(parent.to_owned()).await?;
            // No `Dir` names the parent of pools, so that nobody else syncs it.
            if make(path.clone()).await? && matches!(dir, Dir::Pool(_)) {
                self.sync_path(c_path(parent)).await?;
            }
            return Ok(());
        }
        make(path).await.map(drop)
    }

    async fn list(&self, dir: Dir) -> Result<Vec<FileName>, DiskError> {
        let mut names: Vec<_> = self.entries(dir)?.iter().filter_map(|name| FileName::parse(dir, name)).collect();
        names.sort_unstable();
        Ok(names)
    }

    async fn list_partitions(&self) -> Result<Vec<PartitionUid>, DiskError> {
        let named = |name: &String| name.parse().ok().map(PartitionUid).filter(|uid| uid.to_string() == *name);
        let mut uids: Vec<_> = self.entries(Dir::Partitions)?.iter().filter_map(named).collect();
        uids.sort_unstable();
        Ok(uids)
    }

    async fn list_pools(&self) -> Result<Vec<u16>, DiskError> {
        let named = |name: &String| name.parse().ok().filter(|shard: &u16| shard.to_string() == *name);
        let mut shards: Vec<_> = self.entries(POOLS_DIR)?.iter().filter_map(named).collect();
        shards.sort_unstable();
        Ok(shards)
    }

    async fn rename(&self, from: FileName, to: FileName) -> Result<(), DiskError> {
        self.check_change()?;
        self.ring.rename_at(&self.root.fd, c_path(from), c_path(to)).await.map_err(disk_error)
    }

    async fn remove(&self, name: FileName) -> Result<(), DiskError> {
        self.check_change()?;
        #[cfg(coulee_mutation = "writes_wait_for_sync")]
        self.root.held.prune();
        gone(self.ring.unlink_at(&self.root.fd, c_path(name), 0).await)
    }

    async fn remove_dir(&self, dir: Dir) -> Result<(), DiskError> {
        self.check_change()?;
        gone(self.ring.unlink_at(&self.root.fd, c_path(dir), libc::AT_REMOVEDIR).await)
    }

    async fn sync_dir(&self, dir: Dir) -> Result<(), DiskError> {
        if cfg!(coulee_mutation = "no_dir_fsync") {
            return Ok(());
        }
        self.sync_path(c_path(dir)).await
    }

    async fn sync_device(&self) -> Result<(), DiskError> {
        if cfg!(any(coulee_mutation = "no_device_flush", coulee_mutation = "ack_before_fsync")) {
            return Ok(());
        }
        #[cfg(coulee_mutation = "writes_wait_for_sync")]
        return self.root.held.sync_device(&self.ring, &self.root.flush).await;
        #[cfg(not(coulee_mutation = "writes_wait_for_sync"))]
        self.ring.sync_data(&self.root.flush).await.map_err(disk_error)
    }

    fn device_flush_proved(&self) -> bool {
        self.root.flush_proved
    }
}

/// A file that is being made; removed unless it gets its name.
struct Unfinished {
    root: Rc<Root>,
    path: CString,
    is_named: bool,
}

impl Unfinished {
    async fn make(disk: &FileDisk) -> Result<(Self, Fd), DiskError> {
        loop {
            let number = MADE.fetch_add(1, Ordering::Relaxed);
            let path = c_path(format!("{NEW_DIR}/{number}"));
            let flags = libc::O_RDWR | libc::O_DIRECT | libc::O_CREAT | libc::O_EXCL;
            match disk.ring.open_at(&disk.root.fd, path.clone(), flags | libc::O_CLOEXEC, FILE_MODE).await {
                Ok(fd) => return Ok((Self { root: Rc::clone(&disk.root), path, is_named: false }, fd)),
                // A run that nobody cleaned up after.
                Err(Errno(libc::EEXIST)) => {}
                Err(errno) => return Err(disk_error(errno)),
            }
        }
    }

    fn named(mut self) {
        self.is_named = true;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.is_named {
            return;
        }
        let path = self.root.path.join(self.path.to_str().expect("its name was made of ASCII"));
        // It may have got its name in the meantime, or the filesystem has stopped after an error and removes nothing:
        // what stays is removed when the directory is next locked.
        drop(fs::remove_file(path));
    }
}

fn gone(result: Result<(), Errno>) -> Result<(), DiskError> {
    match result {
        Err(Errno(libc::ENOENT)) => Ok(()),
        other => other.map_err(disk_error),
    }
}

fn c_path(path: impl fmt::Display) -> CString {
    CString::new(path.to_string()).expect("names of ours hold no zero byte")
}

fn disk_error(errno: Errno) -> DiskError {
    match errno.0 {
        libc::ENOSPC | libc::EDQUOT => DiskError::NoSpace,
        libc::ENOENT => DiskError::NotFound,
        errno => DiskError::Io { errno },
    }
}

#[cfg(test)]
mod tests;
