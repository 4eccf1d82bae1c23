//! What the system says of an open file: its size, device and filesystem; knows no name.

use crate::ring::{Errno, Fd};
use coulee_core::limits::BLOCK_BYTES;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// Filesystems whose fdatasync of a clean file is a flush of the device: ext4 (its number is also that of ext2 and
/// ext3, which do the same) and xfs.
const FLUSHING: [i64; 2] = [0xef53, 0x5846_5342];

/// Where a file lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) device: u64,
    #[cfg_attr(
        not(coulee_mutation = "writes_wait_for_sync"),
        allow(dead_code, reason = "names a file in a test mode")
    )]
    pub(super) inode: u64,
    pub(super) len: u64,
    /// Direct I/O in our blocks works: false where the filesystem would go through the page cache, as ext4 does with
    /// `data=journal`.
    pub(super) has_direct_io: bool,
    pub(super) is_flush_proved: bool,
}

impl Place {
    pub(super) fn of(fd: &Fd) -> Result<Self, Errno> {
        let stat = stat(fd)?;
        // A filesystem that does not say may do it all the same; the self-test tries.
        let is_told = stat.stx_mask & libc::STATX_DIOALIGN != 0;
        let (memory, offset) = (stat.stx_dio_mem_align as usize, stat.stx_dio_offset_align as usize);
        let aligned = |align: usize| align > 0 && BLOCK_BYTES.is_multiple_of(align);
        let has_direct_io = !is_told || (aligned(memory) && aligned(offset));
        let kind = filesystem(fd)?;
        Ok(Self {
            device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            inode: stat.stx_ino,
            len: stat.stx_size,
            has_direct_io,
            is_flush_proved: is_told && has_direct_io && FLUSHING.contains(&kind),
        })
    }
}

fn stat(fd: &Fd) -> Result<libc::statx, Errno> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let (flags, mask) = (libc::AT_EMPTY_PATH, libc::STATX_BASIC_STATS | libc::STATX_DIOALIGN);
    // SAFETY: the descriptor is open while `fd` lives, the path is an empty string with its zero, and the kernel writes
    // one `statx` to the last argument, which has room for it.
    let asked = unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), flags, mask, stat.as_mut_ptr()) };
    if asked != 0 {
        return Err(Errno::of(&std::io::Error::last_os_error()));
    }
    // SAFETY: it was zeroed, which is a value of this plain structure, and then filled in.
    Ok(unsafe { stat.assume_init() })
}

fn filesystem(fd: &Fd) -> Result<i64, Errno> {
    let mut stat = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is open while `fd` lives, and the kernel writes one `statfs` to the last argument.
    let asked = unsafe { libc::fstatfs(fd.as_raw_fd(), stat.as_mut_ptr()) };
    if asked != 0 {
        return Err(Errno::of(&std::io::Error::last_os_error()));
    }
    // SAFETY: it was zeroed, which is a value of this plain structure, and then filled in.
    let stat = unsafe { stat.assume_init() };
    #[allow(clippy::unnecessary_cast, reason = "its width differs between architectures")]
    Ok(stat.f_type as i64)
}
