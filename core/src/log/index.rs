//! The sparse index of a segment and its file: a cache, checked when read, rebuilt from the log; knows no I/O.
//!
//! It is never trusted to cut anything. One entry per 64 KiB of batches: 32 bytes each, 64 KiB for the largest segment.

use super::segment::{take, u32_at, u64_at};
use crate::limits::{CHECKPOINT_INDEX_ENTRIES_MAX, INDEX_INTERVAL_BYTES};
use coulee_protocol::batch::BatchHeader;
use coulee_protocol::ids::{BatchIndex, Offset, PartitionUid, Timestamp};

/// `CLIX`.
const MAGIC: [u8; 4] = *b"CLIX";
const VERSION: u16 = 1;
const FILE_HEADER_BYTES: usize = 64;
/// Bytes of an entry in a file.
pub const ENTRY_BYTES: usize = 32;

/// Where a batch lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Its base offset.
    pub offset: Offset,
    /// Its index.
    pub index: BatchIndex,
    /// Where it starts in the file.
    pub position: u32,
    /// Greatest timestamp of all batches of the segment up to and including this one.
    pub max_timestamp: Timestamp,
}

impl IndexEntry {
    /// Writes the entry: offset, index, position, zero, timestamp.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.0.to_le_bytes());
        out.extend_from_slice(&self.index.0.to_le_bytes());
        out.extend_from_slice(&self.position.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.max_timestamp.0.to_le_bytes());
    }

    /// Reads an entry from exactly [`ENTRY_BYTES`].
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), ENTRY_BYTES, "the caller cuts whole entries");
        Self {
            offset: Offset(u64_at(bytes, 0)),
            index: BatchIndex(u64_at(bytes, 8)),
            position: u32_at(bytes, 16),
            max_timestamp: Timestamp(i64::from_le_bytes(take(bytes, 24))),
        }
    }
}

/// Which segment an index file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexOf {
    /// The partition.
    pub partition_uid: PartitionUid,
    /// The segment's base offset.
    pub base_offset: Offset,
    /// CRC of its header page.
    pub header_page_crc: u32,
}

/// The sparse index of one segment, in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SparseIndex {
    entries: Vec<IndexEntry>,
    max_timestamp: Option<Timestamp>,
}

impl SparseIndex {
    /// An index that starts from entries that a checkpoint or a file kept.
    #[must_use]
    pub fn from_entries(entries: Vec<IndexEntry>) -> Self {
        let max_timestamp = entries.last().map(|entry| entry.max_timestamp);
        Self { entries, max_timestamp }
    }

    /// Notes a batch at `position`; batches come in order.
    pub fn note(&mut self, header: &BatchHeader, position: u32) {
        let max_timestamp = self.max_timestamp.map_or(header.max_timestamp, |max| max.max(header.max_timestamp));
        self.max_timestamp = Some(max_timestamp);
        let due = self.entries.last().is_none_or(|last| position >= last.position + INDEX_INTERVAL_BYTES);
        if due {
            let (offset, index) = (header.leader.base_offset, header.leader.batch_index);
            self.entries.push(IndexEntry { offset, index, position, max_timestamp });
        }
    }

    /// Greatest timestamp noted.
    #[must_use]
    pub const fn max_timestamp(&self) -> Option<Timestamp> {
        self.max_timestamp
    }

    /// Raises the greatest timestamp to what a footer or a checkpoint knows of batches between entries.
    pub fn raise_max_timestamp(&mut self, known: Timestamp) {
        self.max_timestamp = Some(self.max_timestamp.map_or(known, |max| max.max(known)));
    }

    /// All entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// The last entry at or before `offset`.
    #[must_use]
    pub fn at_offset(&self, offset: Offset) -> Option<&IndexEntry> {
        let after = self.entries.partition_point(|entry| entry.offset <= offset);
        self.entries[..after].last()
    }

    /// The last entry up to which everything is older than `timestamp`; the search goes on from there.
    #[must_use]
    pub fn before_time(&self, timestamp: Timestamp) -> Option<&IndexEntry> {
        let older = self.entries.partition_point(|entry| entry.max_timestamp < timestamp);
        self.entries[..older].last()
    }

    /// At most [`CHECKPOINT_INDEX_ENTRIES_MAX`] entries below `end`, evenly spread, the first always among them.
    #[must_use]
    pub fn thinned(&self, end: u32) -> Vec<IndexEntry> {
        let below = self.entries.partition_point(|entry| entry.position < end);
        let stride = below.div_ceil(CHECKPOINT_INDEX_ENTRIES_MAX).max(1);
        self.entries[..below].iter().step_by(stride).copied().collect()
    }

    /// The index as a file's bytes.
    #[must_use]
    pub fn encode(&self, of: &IndexOf) -> Vec<u8> {
        let mut out = Vec::with_capacity(FILE_HEADER_BYTES + self.entries.len() * ENTRY_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&of.partition_uid.0.to_le_bytes());
        out.extend_from_slice(&of.base_offset.0.to_le_bytes());
        out.extend_from_slice(&of.header_page_crc.to_le_bytes());
        out.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        out.resize(FILE_HEADER_BYTES, 0);
        self.entries.iter().for_each(|entry| entry.encode(&mut out));
        let crc = crc32fast::hash(&out);
        out[FILE_HEADER_BYTES - 4..FILE_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads an index file; `None` where it is damaged, of another segment or contradicts itself: then it is rebuilt.
    #[must_use]
    pub fn decode(bytes: &[u8], of: &IndexOf) -> Option<Self> {
        let header = bytes.get(..FILE_HEADER_BYTES)?;
        let count = u32_at(header, 28) as usize;
        let end = count.checked_mul(ENTRY_BYTES)?.checked_add(FILE_HEADER_BYTES)?;
        let used = bytes.get(..end)?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&used[..FILE_HEADER_BYTES - 4]);
        hasher.update(&[0; 4]);
        hasher.update(&used[FILE_HEADER_BYTES..]);
        let sound = header[..4] == MAGIC
            && u16::from_le_bytes(take(header, 4)) == VERSION
            && PartitionUid(u64_at(header, 8)) == of.partition_uid
            && Offset(u64_at(header, 16)) == of.base_offset
            && u32_at(header, 24) == of.header_page_crc
            && hasher.finalize() == u32_at(header, FILE_HEADER_BYTES - 4);
        if !sound {
            return None;
        }
        let entries: Vec<IndexEntry> =
            used[FILE_HEADER_BYTES..].chunks_exact(ENTRY_BYTES).map(IndexEntry::decode).collect();
        let grow =
            entries.windows(2).all(|pair| pair[0].offset < pair[1].offset && pair[0].position < pair[1].position);
        grow.then(|| Self::from_entries(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: u64) -> Vec<IndexEntry> {
        let entry = |i: u64| IndexEntry {
            offset: Offset(i * 10),
            index: BatchIndex(i + 1),
            position: 4_096 + i as u32 * INDEX_INTERVAL_BYTES,
            max_timestamp: Timestamp(i as i64 * 100),
        };
        (0..count).map(entry).collect()
    }

    const OF: IndexOf = IndexOf { partition_uid: PartitionUid(1), base_offset: Offset(0), header_page_crc: 9 };

    #[test]
    fn an_index_file_reads_back_and_a_changed_one_is_rebuilt_instead() {
        let index = SparseIndex::from_entries(entries(5));
        let bytes = index.encode(&OF);
        assert_eq!(SparseIndex::decode(&bytes, &OF), Some(index));
        for position in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[position] ^= 4;
            assert_eq!(SparseIndex::decode(&damaged, &OF), None, "byte {position}");
            assert_eq!(SparseIndex::decode(&bytes[..position], &OF), None);
        }
        assert_eq!(SparseIndex::decode(&bytes, &IndexOf { header_page_crc: 8, ..OF }), None, "stale");
    }

    #[test]
    fn lookups_never_answer_an_entry_behind_what_is_looked_for() {
        let index = SparseIndex::from_entries(entries(100));
        assert_eq!(index.at_offset(Offset(25)).map(|entry| entry.offset), Some(Offset(20)));
        assert_eq!(index.at_offset(Offset(0)).map(|entry| entry.offset), Some(Offset(0)));
        assert_eq!(index.before_time(Timestamp(250)).map(|entry| entry.offset), Some(Offset(20)));
        assert_eq!(index.before_time(Timestamp(0)), None);
        assert!(index.thinned(u32::MAX).len() <= CHECKPOINT_INDEX_ENTRIES_MAX);
        assert_eq!(index.thinned(u32::MAX)[0].offset, Offset(0));
        assert_eq!(index.thinned(4_097).len(), 1);
    }
}
