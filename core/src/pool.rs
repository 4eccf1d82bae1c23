//! The shard's segment files in reserve: zeroed, synced, ready; decides what to make next and knows no partition.
//!
//! Writing over blocks that were written before needs no journal: a sync then takes 0.1 ms instead of 0.6–4
//! (docs/decisions/001). A file called `.log` in the pool has been zeroed and synced throughout; one called `.new` has
//! not, and a start removes it.

use crate::block::is_zero;
use crate::disk::{Dir, Disk, DiskError, File, FileName};
use crate::limits::{BLOCK_BYTES, ZERO_BYTES};
use crate::log::segment::SegmentSize;
use crate::log::{NewSegment, RetiredFile};
use std::ops::Range;

/// Files of each size that are made ahead before anybody asks, and at most.
const READY_FILES: [(usize, usize); 4] = [(64, 1_024), (8, 64), (0, 8), (0, 2)];
/// Files of these sizes are made only while none of either is asked for, for so long: a bulk load goes on in fallocated
/// ones, faster than beside the zeroing of what it needs next (docs/decisions/001).
const LARGE: [SegmentSize; 2] = [SegmentSize::ALL[2], SegmentSize::ALL[3]];
const LARGE_QUIET_MS: u64 = 1_000;

/// A zeroed file that waits to become a segment.
#[derive(Clone, Debug)]
pub struct ReadyFile<F> {
    /// What it is called.
    pub name: FileName,
    /// The file, open.
    pub file: F,
    /// Its size.
    pub size: SegmentSize,
}

/// Segment files in reserve. One lives on each shard.
#[derive(Debug)]
pub struct SegmentPool<F> {
    shard: u16,
    /// Files that are ready, by size.
    ready: [Vec<ReadyFile<F>>; 4],
    /// The size of the file that is being made: one at a time.
    making: Option<SegmentSize>,
    /// Files of each size that were asked for since start, and when last.
    asked: [usize; 4],
    asked_ms: [u64; 4],
    next_number: u64,
    bytes_max: u64,
    /// Making one has failed: none is made until something is given back or asked for.
    paused: bool,
    /// Bytes of retired files that are on their way into the pool.
    returning: u64,
}

impl<F: File> SegmentPool<F> {
    /// A pool with the files that a start has found, keeping at most `bytes_max` in reserve.
    #[must_use]
    pub fn new(shard: u16, found: Vec<ReadyFile<F>>, next_number: u64, bytes_max: u64) -> Self {
        let ready = [const { Vec::new() }; 4];
        let (making, asked, asked_ms, paused, returning) = (None, [0; 4], [0; 4], false, 0);
        let mut pool = Self { shard, ready, making, asked, asked_ms, next_number, bytes_max, paused, returning };
        pool.keep(found);
        pool
    }

    fn keep(&mut self, files: impl IntoIterator<Item = ReadyFile<F>>) {
        files.into_iter().for_each(|file| self.ready[file.size.index()].push(file));
    }

    /// Files that are ready.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ready.iter().map(Vec::len).sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the files that are ready.
    #[must_use]
    pub fn ready_bytes(&self) -> u64 {
        SegmentSize::ALL.iter().map(|size| self.ready[size.index()].len() as u64 * u64::from(size.bytes())).sum()
    }

    /// A ready file of `size`; where there is none, of the next smaller one, which lasts until there is, unless that is
    /// below `least`.
    pub fn take(&mut self, size: SegmentSize, least: SegmentSize, now_ms: u64) -> Option<NewSegment<F>> {
        self.asked[size.index()] += 1;
        self.asked_ms[size.index()] = now_ms;
        self.paused = false;
        let at = size.index();
        let smaller = at.checked_sub(1).filter(|smaller| SegmentSize::ALL[*smaller] >= least);
        let found = self.ready[at].pop().or_else(|| self.ready[smaller?].pop());
        let ReadyFile { name, file, size } = found?;
        Some(NewSegment { file, pool_name: name, size, prezeroed: true })
    }

    /// A number that no file of this shard's pool has had since the start.
    pub const fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Bytes of the files that are ready, being made or on their way back.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ready_bytes() + self.making.map_or(0, |size| u64::from(size.bytes())) + self.returning
    }

    /// The size of a file to make now, if one is wanted and there is room.
    pub fn making_due(&mut self, now_ms: u64) -> Option<SegmentSize> {
        let (due_ms, size) = self.next_making()?;
        if due_ms > now_ms {
            return None;
        }
        self.making = Some(size);
        Some(size)
    }

    /// When a file is to be made, where that is known.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        self.next_making().map(|(due_ms, _)| due_ms)
    }

    /// The next file to make, and when.
    fn next_making(&self) -> Option<(u64, SegmentSize)> {
        if self.paused || self.making.is_some() {
            return None;
        }
        let bytes = self.bytes();
        let wanted = SegmentSize::ALL.into_iter().filter(|size| {
            self.ready[size.index()].len() < self.wanted(size.index())
                && bytes + u64::from(size.bytes()) <= self.bytes_max
        });
        let asked_ms = LARGE.iter().map(|size| self.asked_ms[size.index()]).max().unwrap_or(0);
        let due_ms = |size| if LARGE.contains(&size) { asked_ms + LARGE_QUIET_MS } else { 0 };
        wanted.map(|size| (due_ms(size), size)).min()
    }

    /// Files of a size that should be ready: twice as many as were asked for, and one for each of the next smaller
    /// size that was, since the partitions that fill those soon ask for this one.
    fn wanted(&self, index: usize) -> usize {
        let (ahead, most) = READY_FILES[index];
        let growing = if index > 0 { self.asked[index - 1] } else { 0 };
        (ahead + 2 * self.asked[index] + growing).min(most)
    }

    /// The file that was being made is ready, or could not be made.
    pub fn made(&mut self, file: Option<ReadyFile<F>>) {
        self.making = None;
        self.paused = file.is_none();
        self.keep(file);
    }

    /// Whether a retired file of `size` is worth keeping; then its room is kept until [`SegmentPool::give_back`].
    pub fn expects(&mut self, size: SegmentSize) -> bool {
        let room = self.bytes() + u64::from(size.bytes()) <= self.bytes_max;
        if room {
            self.returning += u64::from(size.bytes());
        }
        room
    }

    /// Takes in the files that have come of `expected` bytes.
    pub fn give_back(&mut self, expected: u64, files: Vec<ReadyFile<F>>) {
        assert!(self.returning >= expected, "what comes back was expected");
        self.returning -= expected;
        self.paused &= files.is_empty();
        self.keep(files);
    }

    /// The shard it belongs to.
    #[must_use]
    pub const fn shard(&self) -> u16 {
        self.shard
    }
}

/// Makes a file that was never written: usable at once, but each sync of it is its own.
///
/// # Errors
/// The disk's; [`DiskError::NoSpace`] with nothing left behind.
pub async fn make_fresh<D: Disk>(
    disk: D,
    shard: u16,
    number: u64,
    size: SegmentSize,
) -> Result<NewSegment<D::File>, DiskError> {
    let pool_name = FileName::Fresh(shard, number);
    let file = disk.create(pool_name, u64::from(size.bytes())).await?;
    Ok(NewSegment { file, pool_name, size, prezeroed: false })
}

/// Makes a zeroed and synced file, 256 KiB at a time, so that whoever polls this can hold it back between two.
///
/// # Errors
/// The disk's; what was begun is removed.
pub async fn make_ready<D: Disk>(
    disk: D,
    shard: u16,
    number: u64,
    size: SegmentSize,
) -> Result<ReadyFile<D::File>, DiskError> {
    let fresh = FileName::Fresh(shard, number);
    let made = zero_through(&disk, fresh, size).await;
    let file = match made {
        Ok(file) => file,
        Err(error) => {
            disk.remove(fresh).await?;
            return Err(error);
        }
    };
    let name = FileName::Pool(shard, number);
    disk.rename(fresh, name).await?;
    disk.sync_dir(Dir::Pool(shard)).await?;
    Ok(ReadyFile { name, file, size })
}

async fn zero_through<D: Disk>(disk: &D, name: FileName, size: SegmentSize) -> Result<D::File, DiskError> {
    let file = disk.create(name, u64::from(size.bytes())).await?;
    zero(&file, 0..u64::from(size.bytes())).await?;
    file.sync().await?;
    Ok(file)
}

async fn zero<F: File>(file: &F, range: Range<u64>) -> Result<(), DiskError> {
    let mut at = range.start;
    while at < range.end {
        let step = (ZERO_BYTES as u64).min(range.end - at);
        file.zero(at..at + step).await?;
        at += step;
    }
    Ok(())
}

/// Puts a retired segment back into the pool: renamed, then its header page zeroed and synced, so that it is never
/// taken for a segment again. One that was not written throughout gets zeros where nothing was, under a name that a
/// start removes. The caller has waited until nobody holds it.
///
/// # Errors
/// The disk's; the file may then lie in either place, and a start deals with both.
pub async fn recycle<D: Disk>(
    disk: D,
    shard: u16,
    number: u64,
    retired: RetiredFile<D::File>,
) -> Result<ReadyFile<D::File>, DiskError> {
    let file = match retired.file {
        Some(file) => file,
        None => disk.open(retired.name).await?,
    };
    let name = FileName::Pool(shard, number);
    let is_whole = retired.written == retired.size.bytes();
    let first = if is_whole { name } else { FileName::Fresh(shard, number) };
    disk.rename(retired.name, first).await?;
    disk.sync_dir(retired.name.dir()).await?;
    disk.sync_dir(Dir::Pool(shard)).await?;
    zero(&file, u64::from(retired.written)..u64::from(retired.size.bytes())).await?;
    // After a crash before this a start finds a header page in the pool and zeroes it.
    file.zero(0..BLOCK_BYTES as u64).await?;
    file.sync().await?;
    if !is_whole {
        disk.rename(first, name).await?;
        disk.sync_dir(Dir::Pool(shard)).await?;
    }
    Ok(ReadyFile { name, file, size: retired.size })
}

/// Finds what the last run left in the pool: zeroes the header pages of files that had been begun, removes those that
/// were not zeroed throughout.
///
/// # Errors
/// The disk's.
pub async fn load<D: Disk>(disk: &D, shard: u16, bytes_max: u64) -> Result<SegmentPool<D::File>, DiskError> {
    disk.create_dir(Dir::Pool(shard)).await?;
    let (mut found, mut last) = (Vec::new(), 0);
    for name in disk.list(Dir::Pool(shard)).await? {
        let number = match name {
            FileName::Pool(_, number) => number,
            FileName::Fresh(_, number) => {
                disk.remove(name).await?;
                last = last.max(number);
                continue;
            }
            _ => continue,
        };
        last = last.max(number);
        let file = disk.open(name).await?;
        let Some(size) = SegmentSize::of_bytes(file.len()) else {
            disk.remove(name).await?;
            continue;
        };
        if !is_zero(&file.read_at(0, BLOCK_BYTES).await?) {
            file.zero(0..BLOCK_BYTES as u64).await?;
            file.sync().await?;
        }
        found.push(ReadyFile { name, file, size });
    }
    disk.sync_dir(Dir::Pool(shard)).await?;
    Ok(SegmentPool::new(shard, found, last, bytes_max))
}

/// What became of the pools of shards that are no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Files that have gone over into the pools of other shards.
    pub moved: usize,
    /// Files that there was no room for, or that nobody can use.
    pub removed: usize,
}

/// Shares what lies in the pools of shards that are no more among the `shards` that there are, as far as each has room
/// below `bytes_max`, and removes the rest. To be run before any of them starts: what it finds in its pool then, it
/// looks at as always.
///
/// # Errors
/// The disk's; a file then lies in one of both pools, and the next start goes on.
pub async fn adopt<D: Disk>(disk: &D, shards: u16, bytes_max: u64) -> Result<Adopted, DiskError> {
    assert!(shards > 0, "a broker has a shard");
    let mut adopted = Adopted::default();
    for orphan in disk.list_pools().await?.into_iter().filter(|shard| *shard >= shards) {
        let heir = orphan % shards;
        disk.create_dir(Dir::Pool(heir)).await?;
        let (mut bytes, mut last) = (0, 0);
        for name in disk.list(Dir::Pool(heir)).await? {
            if let FileName::Pool(_, number) | FileName::Fresh(_, number) = name {
                bytes += disk.open(name).await?.len();
                last = last.max(number);
            }
        }
        for name in disk.list(Dir::Pool(orphan)).await? {
            let size = match name {
                FileName::Pool(..) => SegmentSize::of_bytes(disk.open(name).await?.len()),
                _ => None,
            };
            match size.map(|size| u64::from(size.bytes())).filter(|size| bytes + size <= bytes_max) {
                Some(size) => {
                    bytes += size;
                    last += 1;
                    disk.rename(name, FileName::Pool(heir, last)).await?;
                    adopted.moved += 1;
                }
                None => {
                    disk.remove(name).await?;
                    adopted.removed += 1;
                }
            }
        }
        for pool in [heir, orphan] {
            disk.sync_dir(Dir::Pool(pool)).await?;
        }
    }
    Ok(adopted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::memory::MemoryDisk;
    use crate::executor::{Random, block_on};

    const SMALL: SegmentSize = SegmentSize::ALL[0];

    /// A disk with ready files of the smallest size in the pools of these shards.
    fn disk(files: &[(u16, u64)]) -> MemoryDisk {
        let disk = MemoryDisk::new();
        block_on(&disk, &mut Random::new(1), async {
            for (shard, number) in files {
                disk.create_dir(Dir::Pool(*shard)).await.unwrap();
                make_ready(disk.clone(), *shard, *number, SMALL).await.unwrap();
            }
        });
        disk
    }

    #[test]
    fn pools_of_shards_that_are_no_more_are_shared_among_those_that_are() {
        let disk = disk(&[(0, 3), (2, 3), (2, 8), (3, 1), (4, 1)]);
        let bytes_max = 3 * u64::from(SMALL.bytes());
        block_on(&disk, &mut Random::new(2), async {
            make_fresh(disk.clone(), 3, 9, SMALL).await.unwrap();
            disk.create(FileName::Pool(3, 10), 4_096).await.unwrap();
            let adopted = adopt(&disk, 2, bytes_max).await.unwrap();
            // Of shard 2 both files fit into pool 0, of shard 4 none; of shard 3 one is of use.
            assert_eq!(adopted, Adopted { moved: 3, removed: 3 });
            for orphan in 2..5 {
                assert_eq!(disk.list(Dir::Pool(orphan)).await, Ok(Vec::new()));
            }
            for (shard, count) in [(0, 3), (1, 1)] {
                let pool = load(&disk, shard, bytes_max).await.unwrap();
                assert_eq!((pool.len(), pool.ready_bytes() <= bytes_max), (count, true), "{shard}");
            }
            assert_eq!(adopt(&disk, 2, bytes_max).await, Ok(Adopted::default()), "once is enough");
        });
    }

    #[test]
    fn a_segment_that_had_begun_in_an_adopted_file_is_gone_before_anybody_uses_it() {
        let disk = disk(&[(1, 1)]);
        block_on(&disk, &mut Random::new(3), async {
            let file = disk.open(FileName::Pool(1, 1)).await.unwrap();
            let mut page = crate::block::BlockPool::new(0).take(BLOCK_BYTES);
            page.extend(&[7; BLOCK_BYTES]);
            file.write_at(vec![page.freeze()], 0, crate::disk::WriteMode::Written).await.unwrap();
            adopt(&disk, 1, 1 << 30).await.unwrap();
            let mut pool = load(&disk, 0, 1 << 30).await.unwrap();
            let segment = pool.take(SMALL, SMALL, 0).unwrap();
            let first = segment.file.read_at(0, BLOCK_BYTES).await.unwrap();
            assert!(first.iter().all(|byte| *byte == 0));
        });
    }
}
