//! The checkpoint of a shard: where its partitions stood, in two alternating checksummed copies; knows no file handle.
//!
//! It only ever says less than is true: durable ends that were durable, marks that were behind them. A lost or stale
//! copy costs time at the next start, never data (docs/STORAGE_FORMAT.md, "Checkpoint").

use crate::block::{BlockPool, align_up};
use crate::disk::{Copy2, Dir, Disk, DiskError, File, FileName, WriteMode};
use crate::limits::{BLOCK_BYTES, CHECKPOINT_INDEX_ENTRIES_MAX, SEGMENT_EPOCHS_MAX};
use crate::log::appender::Mark;
use crate::log::index::{ENTRY_BYTES, IndexEntry};
use crate::log::segment::{EpochStart, take, u32_at, u64_at};
use coulee_protocol::ids::{BatchIndex, LeaderEpoch, Offset, PartitionUid, Timestamp};
use std::collections::BTreeMap;

/// `CLCK`.
const MAGIC: [u8; 4] = *b"CLCK";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 64;
/// One partition without its index entries and epochs.
const PARTITION_BYTES: usize = 96;
const EPOCH_BYTES: usize = 20;

/// What a checkpoint says of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionCheckpoint {
    /// Which.
    pub partition_uid: PartitionUid,
    /// Its leader epoch.
    pub epoch: LeaderEpoch,
    /// First readable offset.
    pub log_start: Offset,
    /// Everything below was durable.
    pub durable_end: Offset,
    /// A point at or before the durable end from which a start scans.
    pub resume: Mark,
    /// Greatest timestamp in the segment of `resume`; `i64::MIN` where there is none.
    pub max_timestamp: Timestamp,
    /// The log ended at `resume` and nothing was appended afterwards: no scan is needed.
    pub clean: bool,
    /// Thinned index of the segment of `resume`, below it.
    pub index: Vec<IndexEntry>,
    /// Epochs that begin in that segment, below `resume`.
    pub epochs: Vec<EpochStart>,
}

/// What a copy holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Grows with each write; the copy with the greater one counts.
    pub sequence: u64,
    /// All partitions of the shard, by uid.
    pub partitions: Vec<PartitionCheckpoint>,
}

impl PartitionCheckpoint {
    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        for word in
            [self.partition_uid.0, self.log_start.0, self.durable_end.0, self.resume.offset.0, self.resume.index.0]
        {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.resume.segment.0.to_le_bytes());
        out.extend_from_slice(&self.max_timestamp.0.to_le_bytes());
        for word in [self.epoch.0, self.resume.position, self.resume.prev_header_crc, u32::from(self.clean)] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&(self.index.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.epochs.len() as u32).to_le_bytes());
        out.resize(start + PARTITION_BYTES, 0);
        self.index.iter().for_each(|entry| entry.encode(out));
        for epoch in &self.epochs {
            out.extend_from_slice(&epoch.epoch.0.to_le_bytes());
            out.extend_from_slice(&epoch.index.0.to_le_bytes());
            out.extend_from_slice(&epoch.offset.0.to_le_bytes());
        }
    }

    /// Reads one partition from the front of `bytes` and answers how much it took.
    fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let fixed = bytes.get(..PARTITION_BYTES)?;
        let (entries, epochs) = (u32_at(fixed, 72) as usize, u32_at(fixed, 76) as usize);
        if entries > CHECKPOINT_INDEX_ENTRIES_MAX || epochs > SEGMENT_EPOCHS_MAX {
            return None;
        }
        let index_end = PARTITION_BYTES + entries * ENTRY_BYTES;
        let end = index_end + epochs * EPOCH_BYTES;
        let index = bytes.get(PARTITION_BYTES..index_end)?.chunks_exact(ENTRY_BYTES).map(IndexEntry::decode).collect();
        let epochs = bytes.get(index_end..end)?.chunks_exact(EPOCH_BYTES).map(|epoch| EpochStart {
            epoch: LeaderEpoch(u32_at(epoch, 0)),
            index: BatchIndex(u64_at(epoch, 4)),
            offset: Offset(u64_at(epoch, 12)),
        });
        let partition = Self {
            partition_uid: PartitionUid(u64_at(fixed, 0)),
            log_start: Offset(u64_at(fixed, 8)),
            durable_end: Offset(u64_at(fixed, 16)),
            resume: Mark {
                offset: Offset(u64_at(fixed, 24)),
                index: BatchIndex(u64_at(fixed, 32)),
                segment: Offset(u64_at(fixed, 40)),
                position: u32_at(fixed, 60),
                prev_header_crc: u32_at(fixed, 64),
                bytes: 0,
            },
            max_timestamp: Timestamp(i64::from_le_bytes(take(fixed, 48))),
            epoch: LeaderEpoch(u32_at(fixed, 56)),
            clean: u32_at(fixed, 68) == 1,
            index,
            epochs: epochs.collect(),
        };
        let sound = partition.resume.offset <= partition.durable_end && partition.log_start <= partition.durable_end;
        sound.then_some((partition, end))
    }
}

impl Checkpoint {
    /// The checkpoint as a file's bytes, without padding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.partitions.len() * (PARTITION_BYTES + 2 * ENTRY_BYTES));
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.resize(8, 0);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&(self.partitions.len() as u32).to_le_bytes());
        out.resize(HEADER_BYTES, 0);
        self.partitions.iter().for_each(|partition| partition.encode(&mut out));
        let len = (out.len() as u32).to_le_bytes();
        out[20..24].copy_from_slice(&len);
        let crc = crc32fast::hash(&out).to_le_bytes();
        out[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc);
        out
    }

    /// Reads a copy; `None` where it is missing, torn, damaged or of another version.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER_BYTES)?;
        let used = bytes.get(..u32_at(header, 20) as usize)?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(used.get(..HEADER_BYTES - 4)?);
        hasher.update(&[0; 4]);
        hasher.update(used.get(HEADER_BYTES..)?);
        let sound = header[..4] == MAGIC
            && u16::from_le_bytes(take(header, 4)) == VERSION
            && hasher.finalize() == u32_at(header, HEADER_BYTES - 4);
        let count = u32_at(header, 16) as usize;
        if !sound || count > used.len() / PARTITION_BYTES {
            return None;
        }
        let (mut partitions, mut at) = (Vec::new(), HEADER_BYTES);
        for _ in 0..count {
            let (partition, len) = PartitionCheckpoint::decode(&used[at..])?;
            partitions.push(partition);
            at += len;
        }
        (at == used.len()).then(|| Self { sequence: u64_at(header, 8), partitions })
    }

    /// What this checkpoint says of `uid`.
    #[must_use]
    pub fn partition(&self, uid: PartitionUid) -> Option<&PartitionCheckpoint> {
        let at = self.partitions.binary_search_by_key(&uid, |partition| partition.partition_uid).ok()?;
        Some(&self.partitions[at])
    }
}

async fn read_copy<D: Disk>(disk: &D, name: FileName) -> Result<Option<Checkpoint>, DiskError> {
    let file = match disk.open(name).await {
        Ok(file) => file,
        Err(DiskError::NotFound) => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = file.len() as usize;
    if len == 0 || !len.is_multiple_of(BLOCK_BYTES) {
        return Ok(None);
    }
    // A copy that cannot be read is a lost copy: the other one, or the log, stands in.
    Ok(file.read_at(0, len).await.ok().and_then(|bytes| Checkpoint::decode(&bytes)))
}

/// Every copy that there is, and whether it can be read; changes nothing.
///
/// # Errors
/// The disk's, when a file that exists cannot be opened.
pub async fn look<D: Disk>(disk: &D) -> Result<Vec<(FileName, bool)>, DiskError> {
    let mut copies = Vec::new();
    for name in disk.list(Dir::Checkpoints).await? {
        copies.push((name, read_copy(disk, name).await?.is_some()));
    }
    Ok(copies)
}

/// The newer of the readable copies of `shard`; with what the checkpoints of other shards say of partitions, too, as
/// the directory may have been used by another number of them. Of several entries for one partition the one with the
/// greatest epoch counts: each opening raises it, and stores it before anything is appended.
///
/// # Errors
/// The disk's, when a file that exists cannot be opened.
pub async fn load<D: Disk>(disk: &D, shard: u16) -> Result<Checkpoint, DiskError> {
    let mut newest: BTreeMap<u16, Checkpoint> = BTreeMap::new();
    for name in disk.list(Dir::Checkpoints).await? {
        let FileName::Checkpoint(of, _) = name else { continue };
        let Some(copy) = read_copy(disk, name).await? else { continue };
        let kept = newest.entry(of).or_default();
        if copy.sequence >= kept.sequence {
            *kept = copy;
        }
    }
    let sequence = newest.get(&shard).map_or(0, |own| own.sequence);
    let mut partitions: BTreeMap<PartitionUid, PartitionCheckpoint> = BTreeMap::new();
    for entry in newest.into_values().flat_map(|checkpoint| checkpoint.partitions) {
        let age = |entry: &PartitionCheckpoint| (entry.epoch, entry.durable_end, !entry.clean);
        let known = partitions.entry(entry.partition_uid).or_insert_with(|| entry.clone());
        if age(&entry) > age(known) {
            *known = entry;
        }
    }
    Ok(Checkpoint { sequence, partitions: partitions.into_values().collect() })
}

/// Writes `checkpoint` into the copy that its sequence names and waits until it is durable.
///
/// # Errors
/// The disk's; the other copy is untouched.
pub async fn store<D: Disk>(disk: D, pool: BlockPool, shard: u16, checkpoint: Checkpoint) -> Result<(), DiskError> {
    let bytes = checkpoint.encode();
    let len = align_up(bytes.len());
    let mut block = pool.take(len);
    block.extend(&bytes);
    block.pad_to(len);
    let name = FileName::Checkpoint(shard, Copy2::of(checkpoint.sequence));
    let open = disk.open(name).await.ok().filter(|file| file.len() >= len as u64);
    let file = match open {
        Some(file) => file,
        None => {
            // Room to grow, so that a name changes rarely.
            let file = disk.create(name, (2 * len) as u64).await?;
            if let Err(error) = disk.sync_dir(Dir::Checkpoints).await {
                // The next one has to make the name durable: it must not find this file.
                disk.remove(name).await?;
                return Err(error);
            }
            file
        }
    };
    file.write_at(vec![block.freeze()], 0, WriteMode::Written).await?;
    file.sync().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::memory::MemoryDisk;
    use crate::executor::{Random, block_on};

    fn checkpoint() -> Checkpoint {
        let partition = |uid: u64| PartitionCheckpoint {
            partition_uid: PartitionUid(uid),
            epoch: LeaderEpoch(3),
            log_start: Offset(1),
            durable_end: Offset(90),
            resume: Mark {
                offset: Offset(90),
                index: BatchIndex(8),
                prev_header_crc: 7,
                segment: Offset(50),
                position: 8_192,
                bytes: 0,
            },
            max_timestamp: Timestamp(-1),
            clean: uid == 2,
            index: vec![
                IndexEntry {
                    offset: Offset(50),
                    index: BatchIndex(4),
                    position: 4_096,
                    max_timestamp: Timestamp(1)
                };
                uid as usize
            ],
            epochs: vec![EpochStart { epoch: LeaderEpoch(3), index: BatchIndex(4), offset: Offset(50) }],
        };
        Checkpoint { sequence: 5, partitions: vec![partition(2), partition(9)] }
    }

    #[test]
    fn a_copy_reads_back_and_any_changed_or_short_one_counts_as_lost() {
        let bytes = checkpoint().encode();
        assert_eq!(Checkpoint::decode(&bytes), Some(checkpoint()));
        let padded = [bytes.as_slice(), &[0; 100]].concat();
        assert_eq!(Checkpoint::decode(&padded), Some(checkpoint()));
        for position in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1 << (position % 8);
            assert_eq!(Checkpoint::decode(&damaged), None, "byte {position}");
            assert_eq!(Checkpoint::decode(&bytes[..position]), None);
        }
        assert_eq!(checkpoint().partition(PartitionUid(9)).map(|partition| partition.clean), Some(false));
        assert_eq!(checkpoint().partition(PartitionUid(3)), None);
    }

    #[test]
    fn a_partition_that_moved_to_another_shard_is_known_by_its_newest_epoch() {
        let (disk, mut random) = (MemoryDisk::new(), Random::new(1));
        let stored = |random: &mut Random, shard, sequence, epoch, clean| {
            let mut partition = checkpoint().partitions.remove(0);
            partition.epoch = LeaderEpoch(epoch);
            partition.clean = clean;
            let checkpoint = Checkpoint { sequence, partitions: vec![partition] };
            block_on(&disk, random, store(disk.clone(), BlockPool::new(0), shard, checkpoint)).unwrap();
        };
        block_on(&disk, &mut random, disk.create_dir(Dir::Checkpoints)).unwrap();
        stored(&mut random, 1, 8, 3, true);
        stored(&mut random, 0, 2, 4, false);
        for (shard, sequence) in [(0, 2), (1, 8), (2, 0)] {
            let loaded = block_on(&disk, &mut random, load(&disk, shard)).unwrap();
            let entry = loaded.partition(PartitionUid(2)).unwrap();
            assert_eq!((loaded.sequence, entry.epoch, entry.clean), (sequence, LeaderEpoch(4), false));
        }
    }
}
