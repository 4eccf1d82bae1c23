//! One process a data directory: the file LOCK, held locked; knows nothing else of what lies there but leftovers.

use super::{DIR_MODE, FILE_MODE, NEW_DIR};
use crate::ring::Errno;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// The file that is locked. The kernel lets go of it when the process ends, however it ends.
const LOCK_FILE: &str = "LOCK";
/// A process id has at most this many digits.
const PID_BYTES_MAX: u64 = 20;

/// The right to use a data directory, for as long as it lives.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

/// Why a data directory could not be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockError {
    /// Another process has it.
    Held {
        /// That process, where it has said who it is.
        pid: Option<u32>,
    },
    /// The directory or the file in it can't be made, opened or cleared.
    System(Errno),
}

impl fmt::Display for LockError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { pid: Some(pid) } => write!(formatter, "the data directory is in use by process {pid}"),
            Self::Held { pid: None } => write!(formatter, "the data directory is in use by another process"),
            Self::System(errno) => write!(formatter, "the data directory cannot be locked: {errno}"),
        }
    }
}

impl std::error::Error for LockError {}

/// Locks the data directory `root`, making it where it is missing, and removes files that an earlier run had not
/// finished making.
///
/// # Errors
/// [`LockError::Held`] where another process has it.
pub fn lock(root: &Path) -> Result<DirLock, LockError> {
    let failed = |error: std::io::Error| LockError::System(Errno::of(&error));
    fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(root).map_err(failed)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
    let mut file = options.open(root.join(LOCK_FILE)).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(LockError::Held { pid: holder(&mut file) }),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    remove_unfinished(root).map_err(failed)?;
    Ok(DirLock { _file: file })
}

/// Whether [`lock()`] would find the data directory `root` free, now: makes and changes nothing, wherever it is.
///
/// # Errors
/// As [`lock()`].
pub fn check_free(root: &Path) -> Result<(), LockError> {
    lock_to_read(root).map(drop)
}

/// Keeps brokers out of the data directory `root` for as long as the answer lives; others may read it, too. Makes and
/// changes nothing. Without the file there is nothing to hold, and no broker has ever finished a start there.
///
/// # Errors
/// As [`lock()`].
pub fn lock_to_read(root: &Path) -> Result<Option<DirLock>, LockError> {
    let failed = |error: std::io::Error| LockError::System(Errno::of(&error));
    let mut file = match File::open(root.join(LOCK_FILE)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    // Shared, so that two who look do not take each other for a broker. Closing the file lets go of it.
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(DirLock { _file: file })),
        Err(TryLockError::WouldBlock) => Err(LockError::Held { pid: holder(&mut file) }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// The process that has said that it holds the file. One that only reads says nothing, and the file may still name a
/// broker that is no more.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(PID_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|pid: &u32| Path::new("/proc").join(pid.to_string()).exists())
}

fn remove_unfinished(root: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(root.join(NEW_DIR)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        // Ours are called by numbers; anything else is left alone.
        if entry.file_name().to_str().is_some_and(|name| name.parse::<u64>().is_ok()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
