//! The mark of a range that is known to be lost: one file beside the segments; it decides nothing.
//!
//! docs/STORAGE_FORMAT.md, "Hole", specifies each byte. A mark says that the range was durable once, that it cannot be
//! read, and that somebody was told so: its offsets are never given out again, whatever becomes of the checkpoint.

use super::Damage;
use super::segment::{take, u64_at};
use crate::block::{BlockPool, is_zero};
use crate::disk::{Disk, DiskError, File, FileName, WriteMode};
use crate::limits::BLOCK_BYTES;
use coulee_protocol::batch::OFFSET_END_MAX;
use coulee_protocol::ids::{Offset, PartitionUid};

/// `CLHO`.
const MAGIC: [u8; 4] = *b"CLHO";
const VERSION: u16 = 1;
const USED_BYTES: usize = 64;

/// The file's bytes for a range of partition `uid` that was marked at `now_ms`.
#[must_use]
pub fn encode(uid: PartitionUid, hole: Damage, now_ms: i64) -> [u8; BLOCK_BYTES] {
    let mut out = [0; BLOCK_BYTES];
    out[..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[8..16].copy_from_slice(&uid.0.to_le_bytes());
    out[16..24].copy_from_slice(&hole.from.0.to_le_bytes());
    out[24..32].copy_from_slice(&hole.to.0.to_le_bytes());
    out[32..40].copy_from_slice(&now_ms.to_le_bytes());
    let crc = crc32fast::hash(&out[..USED_BYTES - 4]);
    out[USED_BYTES - 4..USED_BYTES].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The range that the bytes of `name` mark; `None` where they are damaged or of another range.
#[must_use]
pub fn decode(bytes: &[u8], name: FileName) -> Option<Damage> {
    let FileName::Hole(uid, from) = name else { return None };
    let used = bytes.get(..USED_BYTES)?;
    let crc = u32::from_le_bytes(take(used, USED_BYTES - 4));
    let hole = Damage { from: Offset(u64_at(used, 16)), to: Offset(u64_at(used, 24)) };
    let sound = used[..4] == MAGIC
        && u16::from_le_bytes(take(used, 4)) == VERSION
        && crc32fast::hash(&used[..USED_BYTES - 4]) == crc
        && PartitionUid(u64_at(used, 8)) == uid
        && is_zero(&used[6..8])
        && is_zero(&used[40..USED_BYTES - 4]);
    (sound && hole.from == from && hole.from < hole.to && hole.to.0 < OFFSET_END_MAX).then_some(hole)
}

/// Reads a mark; `None` where it is damaged: then the range is what the log says of it.
///
/// # Errors
/// The disk's, when a file that exists cannot be opened.
pub async fn read<D: Disk>(disk: &D, name: FileName) -> Result<Option<Damage>, DiskError> {
    let file = disk.open(name).await?;
    if file.len() < BLOCK_BYTES as u64 {
        return Ok(None);
    }
    Ok(file.read_at(0, BLOCK_BYTES).await.ok().and_then(|bytes| decode(&bytes, name)))
}

/// Writes a mark and waits until it is durable.
///
/// # Errors
/// The disk's; a mark that is half written marks nothing.
pub async fn write<D: Disk>(disk: &D, uid: PartitionUid, hole: Damage, now_ms: i64) -> Result<(), DiskError> {
    let name = FileName::Hole(uid, hole.from);
    let file = disk.create(name, BLOCK_BYTES as u64).await?;
    let mut block = BlockPool::new(0).take(BLOCK_BYTES);
    block.extend(&encode(uid, hole, now_ms));
    file.write_at(vec![block.freeze()], 0, WriteMode::Written).await?;
    file.sync().await?;
    disk.sync_dir(name.dir()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_written_as_the_committed_bytes() {
        let golden = include_bytes!("../../../tests/format/golden/hole/00000000000000000003.hole");
        let hole = Damage { from: Offset(3), to: Offset(9) };
        assert!(encode(PartitionUid(7), hole, 1_700_000_000_000) == *golden);
    }

    #[test]
    fn a_mark_reads_back_under_its_own_name_only_and_every_changed_byte_is_noticed() {
        let (uid, hole) = (PartitionUid(7), Damage { from: Offset(3), to: Offset(9) });
        let bytes = encode(uid, hole, 1_700_000_000_000);
        let name = FileName::Hole(uid, hole.from);
        assert_eq!(decode(&bytes, name), Some(hole));
        for at in 0..USED_BYTES {
            let mut changed = bytes;
            changed[at] ^= 1 << (at % 8);
            assert_eq!(decode(&changed, name), None, "byte {at}");
            assert_eq!(decode(&bytes[..at], name), None);
        }
        assert_eq!(decode(&bytes, FileName::Hole(PartitionUid(8), hole.from)), None);
        assert_eq!(decode(&bytes, FileName::Hole(uid, Offset(4))), None);
        assert_eq!(decode(&bytes, FileName::Segment(uid, hole.from)), None);
    }
}
