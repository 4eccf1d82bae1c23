//! One operation on a file: what the kernel reads and writes while it is in flight; knows no slot and no future.
//!
//! The operation owns everything that the kernel was given an address of: blocks, their list, paths, and the
//! descriptor, so that its number names nothing else before the kernel is done with it.

use coulee_core::block::{Block, BlockMut};
use io_uring::{opcode, squeue, types};
use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;

/// An open file as operations share it; closed with the last of them.
pub type Fd = Rc<OwnedFd>;

/// Vectors of one write (UIO_MAXIOV): more are written as the remainder of a short write.
const VECTORS_MAX: usize = 1_024;

/// The kernel's error number of an operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

impl std::error::Error for Errno {}

impl Errno {
    /// The error number that `error` carries, EIO where it has none.
    #[must_use]
    pub fn of(error: &std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }

    /// Whether it says that a right is missing.
    #[must_use]
    pub const fn is_rights(self) -> bool {
        matches!(self.0, libc::EACCES | libc::EPERM)
    }
}

/// A write of blocks, which a device may do in parts.
pub(super) struct Write {
    pub(super) fd: Fd,
    pub(super) blocks: Vec<Block>,
    pub(super) position: u64,
    pub(super) durable: bool,
    bytes: usize,
    done: usize,
    vectors: Vec<libc::iovec>,
}

impl Write {
    pub(super) fn new(fd: Fd, blocks: Vec<Block>, position: u64, durable: bool) -> Self {
        let bytes = blocks.iter().map(|block| block.len()).sum();
        Self { fd, blocks, position, durable, bytes, done: 0, vectors: Vec::new() }
    }

    fn entry(&mut self) -> squeue::Entry {
        let flags = if self.durable { libc::RWF_DSYNC } else { 0 };
        let (fd, position) = (types::Fd(self.fd.as_raw_fd()), self.position + self.done as u64);
        let mut skip = self.done;
        self.vectors.clear();
        for block in &self.blocks {
            if skip >= block.len() {
                skip -= block.len();
                continue;
            }
            let rest = &block[skip..];
            skip = 0;
            self.vectors.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
            if self.vectors.len() == VECTORS_MAX {
                break;
            }
        }
        if let [only] = self.vectors[..] {
            let len = u32::try_from(only.iov_len).expect("a write is less than 4 GiB");
            return opcode::Write::new(fd, only.iov_base.cast(), len).offset(position).rw_flags(flags).build();
        }
        let count = self.vectors.len() as u32;
        opcode::Writev::new(fd, self.vectors.as_ptr(), count).offset(position).rw_flags(flags).build()
    }
}

/// A read into a block, which a device may do in parts.
pub(super) struct Read {
    pub(super) fd: Fd,
    pub(super) block: BlockMut,
    pub(super) position: u64,
    pub(super) len: usize,
}

impl Read {
    fn entry(&mut self) -> squeue::Entry {
        let (fd, position) = (types::Fd(self.fd.as_raw_fd()), self.position + self.block.len() as u64);
        let rest = self.block.spare(self.len - self.block.len());
        let len = u32::try_from(rest.len()).expect("a read is less than 4 GiB");
        opcode::Read::new(fd, rest.as_mut_ptr(), len).offset(position).build()
    }
}

/// What the kernel is asked to do.
pub(super) enum Operation {
    Write(Write),
    Read(Read),
    Sync { fd: Fd, data_only: bool },
    Allocate { fd: Fd, len: u64 },
    Open { dir: Fd, path: CString, flags: i32, mode: u32 },
    Rename { dir: Fd, from: CString, to: CString },
    Unlink { dir: Fd, path: CString, flags: i32 },
    MakeDir { dir: Fd, path: CString, mode: u32 },
}

/// What follows a completion.
pub(super) enum Next {
    /// The rest has to be submitted.
    Again,
    /// It is over with this result.
    Done(i32),
}

impl Operation {
    /// The entry for the submission queue. Addresses in it stay valid as long as the operation lives: they lead into
    /// memory that it owns on the heap.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        match self {
            Self::Write(write) => write.entry(),
            Self::Read(read) => read.entry(),
            Self::Sync { fd, data_only } => {
                let flags = if *data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
                opcode::Fsync::new(types::Fd(fd.as_raw_fd())).flags(flags).build()
            }
            Self::Allocate { fd, len } => opcode::Fallocate::new(types::Fd(fd.as_raw_fd()), *len).build(),
            Self::Open { dir, path, flags, mode } => {
                opcode::OpenAt::new(types::Fd(dir.as_raw_fd()), path.as_ptr()).flags(*flags).mode(*mode).build()
            }
            Self::Rename { dir, from, to } => {
                let dir = types::Fd(dir.as_raw_fd());
                opcode::RenameAt::new(dir, from.as_ptr(), dir, to.as_ptr()).build()
            }
            Self::Unlink { dir, path, flags } => {
                opcode::UnlinkAt::new(types::Fd(dir.as_raw_fd()), path.as_ptr()).flags(*flags).build()
            }
            Self::MakeDir { dir, path, mode } => {
                opcode::MkDirAt::new(types::Fd(dir.as_raw_fd()), path.as_ptr()).mode(*mode).build()
            }
        }
    }

    /// Takes a completion in. A sync is never tried again, whatever its result.
    pub(super) fn advance(&mut self, result: i32) -> Next {
        let transfers = matches!(self, Self::Write(_) | Self::Read(_));
        if result == -libc::EINTR && transfers {
            return Next::Again;
        }
        if result < 0 {
            return Next::Done(result);
        }
        match self {
            Self::Write(write) => {
                write.done += result as usize;
                assert!(write.done <= write.bytes, "the kernel writes no more than it was given");
                match (write.done == write.bytes, result) {
                    (true, _) => Next::Done(0),
                    // Nothing written and no reason given: going on would go on for ever.
                    (false, 0) => Next::Done(-libc::EIO),
                    (false, _) => Next::Again,
                }
            }
            Self::Read(read) => {
                read.block.advance(result as usize);
                if read.block.len() < read.len && result > 0 { Next::Again } else { Next::Done(0) }
            }
            _ => Next::Done(result),
        }
    }

    /// Lets go of what an operation has brought that nobody waits for any more.
    pub(super) fn discard(self, result: i32) {
        if let (Self::Open { .. }, 0..) = (self, result) {
            drop(owned(result));
        }
    }
}

/// The descriptor that an open has just brought.
pub(super) fn owned(fd: RawFd) -> OwnedFd {
    assert!(fd >= 0, "only a successful open brings a descriptor");
    // SAFETY: the kernel answered this number to our open, which nobody else saw: a slot gives its result out once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
