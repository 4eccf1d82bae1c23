//! The body of the target `stored`: every page, file and record that lies on disk beside batches; knows no disk.
//!
//! The first byte says what the rest is. A checksum is put right first, where a bit of that byte asks for it: otherwise
//! nothing would ever get past it. What decodes encodes to bytes that decode to the same.

use super::input::Input;
use super::memory::{assert_counted, within};
use coulee_core::catalog::Catalog;
use coulee_core::catalog::record::CatalogRecord;
use coulee_core::checkpoint::Checkpoint;
use coulee_core::disk::FileName;
use coulee_core::limits::BLOCK_BYTES;
use coulee_core::log::hole;
use coulee_core::log::index::{IndexOf, SparseIndex};
use coulee_core::log::segment::{Footer, HeaderPage, SegmentSize, Trailer};
use coulee_core::meta::{Found, Meta};
use coulee_protocol::ids::{Offset, PartitionUid};

/// A value takes at most so many times its bytes: entries are as large in memory as on disk, lists are grown by half.
const VALUE_RATIO: usize = 4;
/// What a value may take beyond that.
const VALUE_BYTES: usize = 16 << 10;
/// Where the sum of a file's header lies, and where that of a page.
const FILE_CRC_AT: usize = 60;
const PAGE_CRC_AT: usize = BLOCK_BYTES - 4;

/// Reads `bytes` as one of the things that lie on disk.
///
/// # Panics
/// When a property breaks: a decoder panics, allocates by a length it has not checked, or what it took does not come
/// back.
pub fn stored(bytes: &[u8]) {
    assert_counted();
    let mut input = Input(bytes);
    let kind = input.u8();
    let (sum_fits, mut bytes) = (kind & 0x80 != 0, input.0.to_vec());
    match kind & 0x0f {
        0 => page(bytes, sum_fits),
        1 => footer(bytes, sum_fits),
        2 => trailer(bytes, sum_fits),
        3 => {
            if sum_fits {
                let used = bytes.get(28..32).map_or(0, |count| 64 + 32 * number(count));
                seal(&mut bytes, FILE_CRC_AT, used, true);
            }
            index(&bytes);
        }
        4 => {
            if sum_fits {
                let used = bytes.get(20..24).map_or(0, number);
                seal(&mut bytes, FILE_CRC_AT, used, true);
            }
            checkpoint(&bytes);
        }
        5 => meta(bytes, sum_fits),
        6 => mark(bytes, sum_fits),
        _ => record(&bytes),
    }
}

fn number(bytes: &[u8]) -> usize {
    u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize
}

/// Puts the sum at `at` right: over what is before it, or over all `used` bytes with the sum taken as zero.
fn seal(bytes: &mut [u8], at: usize, used: usize, is_whole: bool) {
    if bytes.len() < at + 4 || (is_whole && !(at + 4..=bytes.len()).contains(&used)) {
        return;
    }
    bytes[at..at + 4].fill(0);
    let crc = crc32fast::hash(if is_whole { &bytes[..used] } else { &bytes[..at] });
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// The bytes as a page of a segment.
fn as_page(mut bytes: Vec<u8>, sum_fits: bool) -> Vec<u8> {
    if sum_fits {
        bytes.resize(BLOCK_BYTES, 0);
        seal(&mut bytes, PAGE_CRC_AT, 0, false);
    }
    bytes
}

fn page(bytes: Vec<u8>, sum_fits: bool) {
    let bytes = as_page(bytes, sum_fits);
    let Ok(page) = within(0, "decoding a header page", || HeaderPage::decode(&bytes)) else { return };
    let mut again = [0; BLOCK_BYTES];
    page.encode(&mut again);
    assert_eq!(HeaderPage::decode(&again), Ok(page));
}

fn footer(bytes: Vec<u8>, sum_fits: bool) {
    let bytes = as_page(bytes, sum_fits);
    let decoded = within(VALUE_BYTES, "decoding a footer", || Footer::decode(&bytes));
    let Ok(footer) = decoded else { return };
    assert!(footer.position() <= SegmentSize::ALL[3].data_end());
    let mut again = [0; BLOCK_BYTES];
    footer.encode(&mut again);
    assert_eq!(again[..], bytes[..BLOCK_BYTES]);
}

fn trailer(bytes: Vec<u8>, sum_fits: bool) {
    let bytes = as_page(bytes, sum_fits);
    for size in SegmentSize::ALL {
        let Ok(trailer) = within(0, "decoding a trailer", || Trailer::decode(&bytes, size)) else { continue };
        assert!(trailer.footer_position <= size.data_end());
        let mut again = [0; BLOCK_BYTES];
        trailer.encode(&mut again);
        assert_eq!(again[..], bytes[..BLOCK_BYTES]);
    }
}

fn index(bytes: &[u8]) {
    let mut head = Input(bytes);
    head.take(8);
    let (partition_uid, base_offset, header_page_crc) = (PartitionUid(head.u64()), Offset(head.u64()), head.u32());
    let of = IndexOf { partition_uid, base_offset, header_page_crc };
    let bound = VALUE_RATIO * bytes.len() + VALUE_BYTES;
    let Some(index) = within(bound, "decoding an index", || SparseIndex::decode(bytes, &of)) else { return };
    assert_eq!(SparseIndex::decode(&index.encode(&of), &of), Some(index.clone()));
    for offset in [0, 1, u64::MAX] {
        assert!(index.at_offset(Offset(offset)).is_none_or(|entry| entry.offset.0 <= offset));
    }
}

fn checkpoint(bytes: &[u8]) {
    let bound = VALUE_RATIO * bytes.len() + VALUE_BYTES;
    let decoded = within(bound, "decoding a checkpoint", || Checkpoint::decode(bytes));
    let Some(checkpoint) = decoded else { return };
    assert!(checkpoint.partitions.iter().all(|partition| partition.log_start <= partition.durable_end));
    assert_eq!(Checkpoint::decode(&checkpoint.encode()), Some(checkpoint));
}

fn meta(mut bytes: Vec<u8>, sum_fits: bool) {
    if sum_fits {
        seal(&mut bytes, FILE_CRC_AT, 0, false);
    }
    let Found::Sound(meta) = within(0, "decoding a meta file", || Meta::decode(&bytes)) else { return };
    assert_eq!(Meta::decode(&meta.encode()), Found::Sound(meta));
}

fn mark(mut bytes: Vec<u8>, sum_fits: bool) {
    if sum_fits {
        seal(&mut bytes, FILE_CRC_AT, 0, false);
    }
    let mut head = Input(&bytes);
    head.take(8);
    let (uid, from) = (PartitionUid(head.u64()), Offset(head.u64()));
    let name = FileName::Hole(uid, from);
    let Some(hole) = within(0, "decoding a mark", || hole::decode(&bytes, name)) else { return };
    assert!(hole.from == from && hole.from < hole.to);
    assert_eq!(hole::decode(&hole::encode(uid, hole, 0), name), Some(hole));
}

fn record(bytes: &[u8]) {
    let bound = VALUE_RATIO * bytes.len() + VALUE_BYTES;
    let decoded = within(bound, "decoding a record of the catalog", || CatalogRecord::decode(bytes));
    let Ok(record) = decoded else { return };
    assert_eq!(record.encode(), bytes, "one record has two encodings");
    let mut catalog = Catalog::default();
    let before = catalog.clone();
    if catalog.apply(&record).is_err() {
        assert_eq!(catalog, before, "a record that does not fit has changed something");
    }
}
