//! Tries before the start what the broker will need: a ring, a direct write, a sync, the same bytes back; decides
//! nothing, but each failure says what to change.

use crate::disk::{DirError, FileDisk};
use crate::ring::{Errno, Ring, RingError, RingOptions};
use coulee_core::block::BlockPool;
use coulee_core::disk::{Disk, DiskError};
use coulee_core::limits::BLOCK_BYTES;
use std::ffi::CString;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What the executor and the rings of one shard want to lock.
pub const LOCKED_BYTES_MIN: u64 = 512 << 10;
/// Blocks of the file that is written and read back.
const BLOCKS: usize = 16;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Findings {
    /// One flush of the device stands in for a sync of each file there.
    pub is_device_flush_proved: bool,
}

/// Why the broker would not run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfTestError {
    /// There is no ring.
    Ring(RingError),
    /// The limit on locked memory is too low.
    LockedMemory {
        /// What it is, in bytes.
        limit_bytes: u64,
    },
    /// The data directory can't be used.
    Dir(DirError),
    /// What was written did not come back: the device or the filesystem can't be trusted.
    Unfaithful {
        /// The first byte that differs.
        position: u64,
    },
}

impl fmt::Display for SelfTestError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => write!(formatter, "{error}"),
            Self::LockedMemory { limit_bytes } => write!(
                formatter,
                "at most {limit_bytes} bytes of memory may be locked, {LOCKED_BYTES_MIN} are needed for each shard: \
                 raise ulimit -l (LimitMEMLOCK)"
            ),
            Self::Dir(error) => write!(formatter, "the data directory cannot be used: {error}"),
            Self::Unfaithful { position } => write!(
                formatter,
                "what was written at byte {position} of a file was not read back: check the device and its filesystem"
            ),
        }
    }
}

impl std::error::Error for SelfTestError {}

impl From<Errno> for SelfTestError {
    fn from(errno: Errno) -> Self {
        Self::Dir(DirError::of(errno))
    }
}

/// Tries everything in the data directory `dir`, which is made where it is missing; leaves no file behind that was not
/// there. Blocks the thread; to be run under the directory's lock.
///
/// # Errors
/// [`SelfTestError`] for the first thing that does not work.
pub fn run(dir: &Path) -> Result<Findings, SelfTestError> {
    check_locked_memory(locked_memory_limit())?;
    let ring = Ring::new(RingOptions::default()).map_err(SelfTestError::Ring)?;
    let disk = FileDisk::open(dir, ring.clone(), BlockPool::new(0)).map_err(SelfTestError::Dir)?;
    let root = Rc::new(OwnedFd::from(std::fs::File::open(dir).map_err(|error| Errno::of(&error))?));
    let path = CString::new(format!("selftest.{}", std::process::id())).expect("a number holds no zero byte");
    let tried = ring.block_on(write_and_read(&ring, &root, &path))?;
    let removed = ring.block_on(ring.unlink_at(&root, path, 0))?;
    tried?;
    removed?;
    ring.block_on(disk.sync_device())?.map_err(|error| match error {
        DiskError::Io { errno } => Errno(errno),
        DiskError::NoSpace => Errno(libc::ENOSPC),
        DiskError::NotFound | DiskError::BeyondEnd => Errno(libc::EIO),
    })?;
    Ok(Findings { is_device_flush_proved: disk.device_flush_proved() })
}

/// Tries everything as [`run`] does where the data directory `dir` is or will be, and leaves nothing behind: in a
/// directory of its own inside `dir`, or inside the nearest directory above it that is there.
///
/// # Errors
/// [`SelfTestError`] for the first thing that does not work.
pub fn run_apart(dir: &Path) -> Result<Findings, SelfTestError> {
    let failed = |error: std::io::Error| SelfTestError::from(Errno::of(&error));
    let place = std::path::absolute(dir).map_err(failed)?;
    let mut above = place.ancestors();
    // A file in the way is no directory to be made: what is there under this name has to be one.
    let nearest = above.find(|path| path.symlink_metadata().is_ok()).unwrap_or(&place);
    let trial = Trial(nearest.join(format!(".coulee-trial.{}", std::process::id())));
    std::fs::DirBuilder::new().mode(0o700).create(&trial.0).map_err(failed)?;
    let findings = run(&trial.0);
    std::fs::remove_dir_all(&trial.0).map_err(failed)?;
    findings
}

/// A directory that is gone afterwards, whatever happens.
struct Trial(PathBuf);

impl Drop for Trial {
    fn drop(&mut self) {
        // It is gone already where nothing went wrong.
        let _is_gone = std::fs::remove_dir_all(&self.0).is_err();
    }
}

async fn write_and_read(ring: &Ring, root: &Rc<OwnedFd>, path: &CString) -> Result<(), SelfTestError> {
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_DIRECT | libc::O_CLOEXEC;
    let file = ring.open_at(root, path.clone(), flags, 0o600).await?;
    let len = BLOCKS * BLOCK_BYTES;
    ring.allocate(&file, len as u64).await?;
    let mut block = BlockPool::new(0).take(len);
    // Every eight bytes say where they belong.
    (0..len as u64 / 8).for_each(|word| block.extend(&(!(word * 8)).to_le_bytes()));
    let written = block.freeze();
    ring.write_at(&file, vec![written.clone()], 0, false).await?;
    ring.sync_data(&file).await?;
    ring.write_at(&file, vec![written.slice(0..BLOCK_BYTES)], 0, true).await?;
    let read = ring.read_at(&file, BlockPool::new(0).take(len), 0, len).await?;
    let same = read.filled().iter().zip(written.iter()).take_while(|(a, b)| a == b).count();
    if same < len {
        return Err(SelfTestError::Unfaithful { position: same as u64 });
    }
    Ok(())
}

fn check_locked_memory(limit_bytes: u64) -> Result<(), SelfTestError> {
    if limit_bytes < LOCKED_BYTES_MIN {
        return Err(SelfTestError::LockedMemory { limit_bytes });
    }
    Ok(())
}

/// The soft limit on locked memory; all there is where the system does not say.
fn locked_memory_limit() -> u64 {
    let mut limit = MaybeUninit::<libc::rlimit>::zeroed();
    // SAFETY: the kernel writes one `rlimit` to the last argument, which has room for it.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, limit.as_mut_ptr()) };
    if asked != 0 {
        return u64::MAX;
    }
    // SAFETY: it was zeroed, which is a value of this plain structure, and then filled in.
    unsafe { limit.assume_init() }.rlim_cur
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_works_passes_and_keeps_no_file_of_the_test() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["flush", "new"]);
    }

    /// What lies in a directory.
    fn names(dir: &Path) -> Vec<std::ffi::OsString> {
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_trial_leaves_nothing_behind_whether_the_directory_is_there_or_not() {
        let dir = tempfile::tempdir().unwrap();
        run_apart(dir.path()).unwrap();
        run_apart(&dir.path().join("not/there/yet")).unwrap();
        assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
        std::fs::write(dir.path().join("file"), "").unwrap();
        let refused = run_apart(&dir.path().join("file/below")).unwrap_err();
        assert_eq!(refused, SelfTestError::Dir(DirError::System(Errno(libc::ENOTDIR))));
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn a_low_limit_on_locked_memory_is_refused_with_what_to_change() {
        assert_eq!(check_locked_memory(LOCKED_BYTES_MIN), Ok(()));
        let refused = check_locked_memory(64 << 10).unwrap_err();
        assert!(refused.to_string().contains("65536") && refused.to_string().contains("ulimit -l"), "{refused}");
    }

    #[test]
    fn a_directory_that_cannot_be_made_names_the_reason() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = run(&file.path().join("below")).unwrap_err();
        assert_eq!(refused, SelfTestError::Dir(DirError::System(Errno(libc::ENOTDIR))));
        assert!(refused.to_string().contains("data directory"), "{refused}");
    }

    #[test]
    fn a_filesystem_without_direct_io_is_refused_by_name() {
        // procfs takes no files at all; what an open there answers stands for the errors that systems give.
        let refused = run(Path::new("/proc/coulee")).unwrap_err();
        assert!(matches!(refused, SelfTestError::Dir(_)), "{refused}");
        assert_eq!(DirError::of(Errno(libc::EINVAL)), DirError::NoDirectIo);
        assert!(DirError::NoDirectIo.to_string().contains("ext4 or xfs"));
    }
}
