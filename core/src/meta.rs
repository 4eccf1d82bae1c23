//! The meta file: which cluster a data directory belongs to and which format it has, in two copies; knows no topic.
//!
//! It is written when the directory is made and read before anything else (docs/STORAGE_FORMAT.md, "Meta").

use crate::block::BlockPool;
use crate::disk::{Copy2, Dir, Disk, DiskError, File, FileName, WriteMode};
use crate::limits::BLOCK_BYTES;
use crate::log::segment::{take, u32_at, u64_at};
use coulee_protocol::ids::ClusterId;
use std::fmt;

/// `CLMT`.
const MAGIC: [u8; 4] = *b"CLMT";
/// Version of the data directory that this broker writes, and the newest that it reads.
pub const FORMAT_VERSION: u16 = 1;
const USED_BYTES: usize = 64;

/// What the meta file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Grows with each write; the copy with the greater one counts.
    pub sequence: u64,
}

/// Why a data directory cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaError {
    /// A newer broker wrote it.
    TooNew {
        /// Oldest format version that a reader has to know.
        found: u16,
    },
    /// There are partitions and no readable copy.
    Lost,
    /// The disk's.
    Disk(DiskError),
}

impl fmt::Display for MetaError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooNew { found } => write!(
                formatter,
                "the data directory has format version {found}, this broker reads up to {FORMAT_VERSION}: use a newer"
            ),
            Self::Lost => write!(
                formatter,
                "the data directory holds partitions, but neither meta.a nor meta.b can be read: restore one of them"
            ),
            Self::Disk(error) => error.fmt(formatter),
        }
    }
}

impl std::error::Error for MetaError {}

impl From<DiskError> for MetaError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// What a copy is found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It can be read.
    Sound(Meta),
    /// It asks for a reader of this version.
    TooNew(u16),
    /// It is damaged.
    Unreadable,
    /// There is none.
    Missing,
}

impl Meta {
    /// The file's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut out = [0; BLOCK_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[6..8].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        out[16..32].copy_from_slice(&self.cluster_id.0);
        let crc = crc32fast::hash(&out[..USED_BYTES - 4]);
        out[USED_BYTES - 4..USED_BYTES].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a copy. Total: any bytes are something.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Found {
        let Some(used) = bytes.get(..USED_BYTES) else { return Found::Unreadable };
        let sound = used[..4] == MAGIC && crc32fast::hash(&used[..USED_BYTES - 4]) == u32_at(used, USED_BYTES - 4);
        let reader = u16::from_le_bytes(take(used, 6));
        match sound {
            true if reader > FORMAT_VERSION => Found::TooNew(reader),
            true => Found::Sound(Self { cluster_id: ClusterId(take(used, 16)), sequence: u64_at(used, 8) }),
            false => Found::Unreadable,
        }
    }
}

async fn read<D: Disk>(disk: &D, copy: Copy2) -> Result<Found, DiskError> {
    let file = match disk.open(FileName::Meta(copy)).await {
        Ok(file) => file,
        Err(DiskError::NotFound) => return Ok(Found::Missing),
        Err(error) => return Err(error),
    };
    if file.len() < BLOCK_BYTES as u64 {
        return Ok(Found::Unreadable);
    }
    Ok(file.read_at(0, BLOCK_BYTES).await.map_or(Found::Unreadable, |bytes| Meta::decode(&bytes)))
}

/// Writes one copy and waits until it is durable.
///
/// # Errors
/// The disk's; the other copy is untouched.
pub async fn write<D: Disk>(disk: &D, pool: &BlockPool, copy: Copy2, meta: Meta) -> Result<(), DiskError> {
    let file = disk.create(FileName::Meta(copy), BLOCK_BYTES as u64).await?;
    let mut block = pool.take(BLOCK_BYTES);
    block.extend(&meta.encode());
    file.write_at(vec![block.freeze()], 0, WriteMode::Written).await?;
    file.sync().await?;
    disk.sync_dir(Dir::Root).await
}

/// Reads both copies as they are and changes nothing.
///
/// # Errors
/// The disk's.
pub async fn look<D: Disk>(disk: &D) -> Result<[Found; 2], DiskError> {
    Ok([read(disk, Copy2::A).await?, read(disk, Copy2::B).await?])
}

/// The one that counts of two copies, if one can be read.
#[must_use]
pub fn newest(copies: &[Found; 2]) -> Option<Meta> {
    let sound = copies.iter().filter_map(|copy| if let Found::Sound(meta) = copy { Some(*meta) } else { None });
    sound.max_by_key(|meta| meta.sequence)
}

/// Reads the meta file of a data directory, or makes it with `fresh` as the cluster's id where the directory is new.
/// A copy that is lost is made again from the other.
///
/// # Errors
/// [`MetaError`]; nothing has changed.
pub async fn open<D: Disk>(disk: &D, pool: &BlockPool, fresh: ClusterId) -> Result<Meta, MetaError> {
    let copies = look(disk).await?;
    for copy in &copies {
        if let Found::TooNew(found) = copy {
            return Err(MetaError::TooNew { found: *found });
        }
    }
    let meta = match newest(&copies) {
        Some(meta) => meta,
        // A first start that was cut off before its meta file was durable has made no partition.
        None if disk.list_partitions().await?.is_empty() => Meta { cluster_id: fresh, sequence: 1 },
        None => return Err(MetaError::Lost),
    };
    for (found, copy) in copies.iter().zip([Copy2::A, Copy2::B]) {
        if !matches!(found, Found::Sound(other) if *other == meta) {
            write(disk, pool, copy, meta).await?;
        }
    }
    Ok(meta)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::memory::MemoryDisk;
    use crate::executor::{Random, block_on};
    use coulee_protocol::ids::PartitionUid;

    fn start(disk: &MemoryDisk, fresh: u8) -> Result<Meta, MetaError> {
        block_on(disk, &mut Random::new(1), open(disk, &BlockPool::new(0), ClusterId([fresh; 16])))
    }

    fn spoil(disk: &MemoryDisk, copy: Copy2, bytes: &[u8]) {
        let spoiled = async {
            let file = disk.create(FileName::Meta(copy), BLOCK_BYTES as u64).await.unwrap();
            let mut block = BlockPool::new(0).take(BLOCK_BYTES);
            block.extend(bytes);
            block.pad_to(BLOCK_BYTES);
            file.write_at(vec![block.freeze()], 0, WriteMode::Written).await.unwrap();
        };
        block_on(disk, &mut Random::new(1), spoiled);
    }

    #[test]
    fn a_cluster_id_is_chosen_once_and_survives_the_loss_of_either_copy() {
        let disk = MemoryDisk::new();
        assert_eq!(start(&disk, 7).unwrap().cluster_id, ClusterId([7; 16]));
        for copy in [Copy2::A, Copy2::B] {
            spoil(&disk, copy, b"nothing of ours");
            assert_eq!(start(&disk, 8).unwrap().cluster_id, ClusterId([7; 16]));
            block_on(&disk, &mut Random::new(1), disk.remove(FileName::Meta(copy))).unwrap();
            assert_eq!(start(&disk, 9).unwrap().cluster_id, ClusterId([7; 16]));
        }
    }

    #[test]
    fn a_directory_that_holds_partitions_gets_no_new_cluster_id() {
        let disk = MemoryDisk::new();
        block_on(&disk, &mut Random::new(1), disk.create_dir(Dir::Partition(PartitionUid(1)))).unwrap();
        assert_eq!(start(&disk, 7), Err(MetaError::Lost));
        spoil(&disk, Copy2::A, &[0; 64]);
        assert_eq!(start(&disk, 7), Err(MetaError::Lost));
    }

    #[test]
    fn a_newer_format_is_refused_by_name_and_left_as_it_is() {
        let disk = MemoryDisk::new();
        let mut newer = Meta { cluster_id: ClusterId([1; 16]), sequence: 9 }.encode();
        newer[6] = 2;
        let crc = crc32fast::hash(&newer[..USED_BYTES - 4]);
        newer[USED_BYTES - 4..USED_BYTES].copy_from_slice(&crc.to_le_bytes());
        spoil(&disk, Copy2::B, &newer);
        assert_eq!(start(&disk, 7), Err(MetaError::TooNew { found: 2 }));
        assert_eq!(start(&disk, 7), Err(MetaError::TooNew { found: 2 }));
    }

    #[test]
    fn every_changed_byte_of_a_copy_is_noticed() {
        let bytes = Meta { cluster_id: ClusterId([1; 16]), sequence: 9 }.encode();
        assert!(matches!(Meta::decode(&bytes), Found::Sound(_)));
        for at in 0..USED_BYTES {
            let mut changed = bytes;
            changed[at] ^= 1;
            assert!(matches!(Meta::decode(&changed), Found::Unreadable), "byte {at}");
        }
    }
}
