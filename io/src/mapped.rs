//! A whole sealed file mapped read-only, as blocks; knows no segment, and not who may still write the file.
//!
//! A mapping is made only of a file that nobody writes or cuts while blocks of it live: mappings and direct writes of
//! one file are not coherent, and a cut file turns reads into SIGBUS. Whoever asks for the mapping decides that.
//! Pages that are not resident are not to be touched: a cold page stalls the shard for milliseconds.

use crate::ring::Fd;
use coulee_core::block::{Block, align_down};
use coulee_core::limits::BLOCK_BYTES;
use memmap2::{Advice, Mmap, MmapOptions};
use std::fmt;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::rc::Rc;

/// Pages asked for in one mincore: 1 MiB.
const PAGES_MAX: usize = 256;
/// The lowest bit of mincore's answer: the page is resident.
const RESIDENT: u8 = 1;

/// A mapped file. Clones share the mapping; blocks keep it.
#[derive(Clone)]
pub struct Mapped {
    map: Rc<Mmap>,
}

impl fmt::Debug for Mapped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Mapped({} bytes)", self.map.len())
    }
}

impl Mapped {
    /// Maps the first `len` bytes of `fd`, or `None` where the system gives no mapping.
    #[must_use]
    pub fn new(fd: &Fd, len: u64) -> Option<Self> {
        let len = usize::try_from(len).ok().filter(|len| *len > 0)?;
        let mut options = MmapOptions::new();
        let options = options.len(len);
        // SAFETY: the file is sealed: core asks for mappings of sealed segments only, never truncates one, and waits
        // with recycling until no lease on it is left (core::log, "leases"; `disk::file` drops the mapping on writes).
        let map = unsafe { options.map(fd.as_raw_fd()) }.ok()?;
        Some(Self { map: Rc::new(map) })
    }

    /// The bytes of `range`, or `None` where the mapping ends before.
    #[must_use]
    pub fn block(&self, range: Range<u64>) -> Option<Block> {
        let range = self.checked(range)?;
        let owner: Rc<dyn AsRef<[u8]>> = Rc::<Mmap>::clone(&self.map);
        Some(Block::from_owner(owner).slice(range))
    }

    /// Whether every page of `range` is in memory.
    #[must_use]
    pub fn is_resident(&self, range: Range<u64>) -> bool {
        let Some(range) = self.checked(range) else { return false };
        let mut pages = [0_u8; PAGES_MAX];
        let mut at = align_down(range.start);
        while at < range.end {
            let bytes = (range.end - at).min(PAGES_MAX * BLOCK_BYTES);
            let count = bytes.div_ceil(BLOCK_BYTES);
            let start = self.map[at..].as_ptr().cast_mut();
            // SAFETY: `at..at + bytes` lies in the mapping (`checked`), starts on a page, and `pages` has a byte for
            // each of its pages: `count` is at most PAGES_MAX.
            let asked = unsafe { libc::mincore(start.cast(), bytes, pages.as_mut_ptr()) };
            if asked != 0 || pages[..count].iter().any(|page| page & RESIDENT == 0) {
                return false;
            }
            at += bytes;
        }
        true
    }

    /// Asks for read-ahead of `range`. Only a hint: without an effect where the system refuses.
    pub fn will_need(&self, range: Range<u64>) {
        if let Some(range) = self.checked(range)
            && let Err(error) = self.map.advise_range(Advice::WillNeed, range.start, range.len())
        {
            debug_assert!(error.raw_os_error() != Some(libc::EINVAL), "the range of a mapping is valid: {error}");
        }
    }

    fn checked(&self, range: Range<u64>) -> Option<Range<usize>> {
        let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
        (start <= end && end <= self.map.len()).then_some(start..end)
    }
}

// mincore and madvise count in pages, and a block is one.
const _: () = assert!(BLOCK_BYTES == 4_096);
