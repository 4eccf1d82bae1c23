//! ⑦ One file of a partition's log: header page, footer, trailer, places of batches; it does no I/O.
//!
//! docs/STORAGE_FORMAT.md, "Segment file", specifies each byte.

use crate::block::{align_up, is_zero};
use crate::limits::{
    BATCH_ALIGN, BLOCK_BYTES, HEADER_PAGE_BYTES, LARGE_BATCH_BYTES, SEGMENT_END_BYTES, SEGMENT_EPOCHS_MAX,
    SEGMENT_SIZES,
};
use coulee_protocol::ids::{BatchIndex, ClusterId, LeaderEpoch, Offset, PartitionUid, Timestamp, TopicId};
use std::fmt;

/// `CLSG`: a header page.
const HEADER_MAGIC: [u8; 4] = *b"CLSG";
/// `CLFT`: a footer.
const FOOTER_MAGIC: [u8; 4] = *b"CLFT";
/// `CLTR`: a trailer.
const TRAILER_MAGIC: [u8; 4] = *b"CLTR";
/// The format that this release writes.
pub const FORMAT_VERSION: u16 = 1;
/// Feature bit: every block of the file had been written and synced before.
const FEATURE_PREZEROED: u64 = 1 << 0;
/// Feature bits that this release reads.
const FEATURES_KNOWN: u64 = FEATURE_PREZEROED;
/// The CRC of a page covers everything before its last four bytes.
const PAGE_CRC_AT: usize = BLOCK_BYTES - 4;
const FOOTER_EPOCHS_AT: usize = 80;
const FOOTER_EPOCH_BYTES: usize = 20;
const _: () = assert!(FOOTER_EPOCHS_AT + SEGMENT_EPOCHS_MAX * FOOTER_EPOCH_BYTES <= PAGE_CRC_AT);

/// One of the four sizes of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentSize(u8);

impl SegmentSize {
    /// The smallest: 64 KiB.
    pub const SMALLEST: Self = Self(0);
    /// All four, growing.
    pub const ALL: [Self; 4] = [Self(0), Self(1), Self(2), Self(3)];

    /// Its place in [`SegmentSize::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Bytes of the file.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        SEGMENT_SIZES[self.index()]
    }

    /// Where batches must have ended.
    #[must_use]
    pub const fn data_end(self) -> u32 {
        self.bytes() - SEGMENT_END_BYTES as u32
    }

    /// The size of a file of `bytes`, if it is one of the four.
    #[must_use]
    pub fn of_bytes(bytes: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|size| u64::from(size.bytes()) == bytes)
    }

    /// The next larger size, or this one where it is the largest.
    #[must_use]
    pub const fn larger(self) -> Self {
        if self.0 == 3 { self } else { Self(self.0 + 1) }
    }

    /// The least size from `self` on that holds a batch of `batch_len` bytes.
    #[must_use]
    pub fn holding(self, batch_len: usize) -> Self {
        let fits = |size: &Self| HEADER_PAGE_BYTES + align_up(batch_len) <= size.data_end() as usize;
        Self::ALL.into_iter().filter(|size| *size >= self).find(fits).unwrap_or(Self(3))
    }

    /// The largest size not above `segment.bytes` of a topic, at least the smallest.
    #[must_use]
    pub fn at_most(bytes: u64) -> Self {
        Self::ALL.into_iter().rev().find(|size| u64::from(size.bytes()) <= bytes).unwrap_or(Self::SMALLEST)
    }
}

/// Whether a batch starts and ends on blocks of its own.
#[must_use]
pub const fn is_large(batch_len: usize) -> bool {
    batch_len >= LARGE_BATCH_BYTES
}

/// Where a batch of `batch_len` bytes starts behind one that ends, with its padding, at `end`.
#[must_use]
pub const fn start_after(end: u32, batch_len: usize) -> u32 {
    let align = if is_large(batch_len) { BLOCK_BYTES } else { BATCH_ALIGN };
    end.next_multiple_of(align as u32)
}

/// Where a batch that starts at `start` ends with its padding: the next may start there.
#[must_use]
pub const fn padded_end(start: u32, batch_len: usize) -> u32 {
    let align = if is_large(batch_len) { BLOCK_BYTES } else { BATCH_ALIGN };
    (start + batch_len as u32).next_multiple_of(align as u32)
}

/// Who a segment belongs to; the same for all segments of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The topic.
    pub topic_id: TopicId,
    /// The partition, for ever.
    pub partition_uid: PartitionUid,
    /// Its number within the topic.
    pub partition: u32,
}

/// The header page: written once, with the first write of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderPage {
    /// Who it belongs to.
    pub owner: Owner,
    /// Leader epoch when the segment began.
    pub leader_epoch: LeaderEpoch,
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Index of its first batch.
    pub base_index: BatchIndex,
    /// `header_crc` of the batch before its first; 0 where there is none or it is not known.
    pub chain_anchor: u32,
    /// Bytes of the file.
    pub size: SegmentSize,
    /// Every block of the file had been written and synced before: a device flush makes writes durable.
    pub prezeroed: bool,
}

/// Why a page or footer is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageError {
    /// All bytes are zero: never written.
    Empty,
    /// Fewer bytes than a page.
    Truncated,
    /// Not the page that was expected here.
    Magic,
    /// The CRC does not fit.
    Crc,
    /// Written by a release whose format this one does not read.
    TooNew {
        /// The least format version that a reader must know.
        min_reader: u16,
    },
    /// Written with a feature that this release does not know.
    UnknownFeatures {
        /// The bits of the page.
        features: u64,
    },
    /// Contents that contradict each other.
    Fields,
}

impl fmt::Display for PageError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(formatter, "page was never written"),
            Self::Truncated => write!(formatter, "page is cut short"),
            Self::Magic => write!(formatter, "page has another magic"),
            Self::Crc => write!(formatter, "page crc does not fit"),
            Self::TooNew { min_reader } => {
                write!(formatter, "format needs a reader of version {min_reader}, this release reads {FORMAT_VERSION}")
            }
            Self::UnknownFeatures { features } => {
                write!(formatter, "format has features {features:#x}, of which this release does not know all")
            }
            Self::Fields => write!(formatter, "page contradicts itself"),
        }
    }
}

impl std::error::Error for PageError {}

/// A page being written or read, little endian.
pub(crate) struct Page<'a>(pub(crate) &'a mut [u8]);

impl Page<'_> {
    pub(crate) fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }

    /// Stamps the CRC over everything before the last four bytes of the page.
    pub(crate) fn seal(&mut self) {
        let crc = crc32fast::hash(&self.0[..PAGE_CRC_AT]);
        self.put(PAGE_CRC_AT, crc.to_le_bytes());
    }
}

/// `N` bytes of a page that has been checked to be long enough.
pub(crate) fn take<const N: usize>(page: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&page[at..at + N]);
    bytes
}

pub(crate) fn u32_at(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(take(page, at))
}

pub(crate) fn u64_at(page: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(take(page, at))
}

/// Checks magic and CRC of the page at the start of `bytes` and returns it.
fn checked_page(bytes: &[u8], magic: [u8; 4]) -> Result<&[u8], PageError> {
    let page = bytes.get(..BLOCK_BYTES).ok_or(PageError::Truncated)?;
    if page[..4] != magic {
        return Err(if is_zero(page) { PageError::Empty } else { PageError::Magic });
    }
    if crc32fast::hash(&page[..PAGE_CRC_AT]) != u32_at(page, PAGE_CRC_AT) {
        return Err(PageError::Crc);
    }
    Ok(page)
}

impl HeaderPage {
    /// Writes the page into its first 4,096 bytes.
    pub fn encode(&self, out: &mut [u8]) {
        let out = &mut out[..BLOCK_BYTES];
        out.fill(0);
        let mut page = Page(out);
        page.put(0, HEADER_MAGIC);
        page.put(4, FORMAT_VERSION.to_le_bytes());
        page.put(6, FORMAT_VERSION.to_le_bytes());
        page.put(8, if self.prezeroed { FEATURE_PREZEROED } else { 0 }.to_le_bytes());
        page.put(16, self.owner.cluster_id.0);
        page.put(32, self.owner.topic_id.0);
        page.put(48, self.owner.partition_uid.0.to_le_bytes());
        page.put(56, self.owner.partition.to_le_bytes());
        page.put(60, self.leader_epoch.0.to_le_bytes());
        page.put(64, self.base_offset.0.to_le_bytes());
        page.put(72, self.base_index.0.to_le_bytes());
        page.put(80, self.chain_anchor.to_le_bytes());
        page.put(84, self.size.bytes().to_le_bytes());
        page.seal();
    }

    /// Reads and checks the page at the start of `bytes`.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let page = checked_page(bytes, HEADER_MAGIC)?;
        let min_reader = u16::from_le_bytes(take(page, 6));
        if min_reader > FORMAT_VERSION {
            return Err(PageError::TooNew { min_reader });
        }
        let features = u64_at(page, 8);
        // Before anything that a feature may change: a page that is only unknown must never count as damaged.
        if features & !FEATURES_KNOWN != 0 {
            return Err(PageError::UnknownFeatures { features });
        }
        let size = SegmentSize::of_bytes(u64::from(u32_at(page, 84))).ok_or(PageError::Fields)?;
        if !is_zero(&page[88..PAGE_CRC_AT]) {
            return Err(PageError::Fields);
        }
        Ok(Self {
            owner: Owner {
                cluster_id: ClusterId(take(page, 16)),
                topic_id: TopicId(take(page, 32)),
                partition_uid: PartitionUid(u64_at(page, 48)),
                partition: u32_at(page, 56),
            },
            leader_epoch: LeaderEpoch(u32_at(page, 60)),
            base_offset: Offset(u64_at(page, 64)),
            base_index: BatchIndex(u64_at(page, 72)),
            chain_anchor: u32_at(page, 80),
            size,
            prezeroed: features & FEATURE_PREZEROED != 0,
        })
    }

    /// The CRC of the page, which footer, trailer and index file repeat: a stale one never fits.
    #[must_use]
    pub fn crc(&self) -> u32 {
        let mut page = [0; BLOCK_BYTES];
        self.encode(&mut page);
        u32_at(&page, PAGE_CRC_AT)
    }
}

/// Where a leader epoch begins in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: LeaderEpoch,
    /// Index of its first batch.
    pub index: BatchIndex,
    /// Offset of its first record.
    pub offset: Offset,
}

/// What a sealed segment says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// CRC of the segment's header page.
    pub header_page_crc: u32,
    /// Where the last batch ends with its padding: the footer starts at the next block.
    pub data_end: u32,
    /// Batches in the segment.
    pub batch_count: u64,
    /// Records in the segment.
    pub record_count: u64,
    /// The offset after its last.
    pub end_offset: Offset,
    /// The index after its last batch's.
    pub end_index: BatchIndex,
    /// Greatest timestamp; `i64::MIN` where there is no record.
    pub max_timestamp: Timestamp,
    /// `header_crc` of its last batch.
    pub last_header_crc: u32,
    /// Epochs that begin in it, growing; at most [`SEGMENT_EPOCHS_MAX`].
    pub epochs: Vec<EpochStart>,
}

impl Footer {
    /// Where the footer's block starts.
    #[must_use]
    pub const fn position(&self) -> u32 {
        self.data_end.next_multiple_of(BLOCK_BYTES as u32)
    }

    /// Writes the footer into its first 4,096 bytes.
    pub fn encode(&self, out: &mut [u8]) {
        assert!(self.epochs.len() <= SEGMENT_EPOCHS_MAX, "a segment is closed before its footer overflows");
        let out = &mut out[..BLOCK_BYTES];
        out.fill(0);
        let mut page = Page(out);
        page.put(0, FOOTER_MAGIC);
        page.put(4, FORMAT_VERSION.to_le_bytes());
        page.put(8, self.header_page_crc.to_le_bytes());
        page.put(12, self.data_end.to_le_bytes());
        page.put(16, self.batch_count.to_le_bytes());
        page.put(24, self.record_count.to_le_bytes());
        page.put(32, self.end_offset.0.to_le_bytes());
        page.put(40, self.end_index.0.to_le_bytes());
        page.put(48, self.max_timestamp.0.to_le_bytes());
        page.put(56, self.last_header_crc.to_le_bytes());
        page.put(60, (self.epochs.len() as u32).to_le_bytes());
        // 64: length of a producer snapshot that follows the epochs; none in this version.
        for (slot, start) in self.epochs.iter().enumerate() {
            let at = FOOTER_EPOCHS_AT + slot * FOOTER_EPOCH_BYTES;
            page.put(at, start.epoch.0.to_le_bytes());
            page.put(at + 4, start.index.0.to_le_bytes());
            page.put(at + 12, start.offset.0.to_le_bytes());
        }
        page.seal();
    }

    /// Reads and checks the footer at the start of `bytes`.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let page = checked_page(bytes, FOOTER_MAGIC)?;
        let epochs = u32_at(page, 60) as usize;
        if epochs > SEGMENT_EPOCHS_MAX {
            return Err(PageError::Fields);
        }
        let used = FOOTER_EPOCHS_AT + epochs * FOOTER_EPOCH_BYTES;
        let version = u16::from_le_bytes(take(page, 4));
        let zeros = [&page[6..8], &page[64..FOOTER_EPOCHS_AT], &page[used..PAGE_CRC_AT]];
        if version != FORMAT_VERSION || !zeros.into_iter().all(is_zero) {
            return Err(PageError::Fields);
        }
        let data_end = u32_at(page, 12);
        if data_end > SegmentSize::ALL[3].data_end() {
            return Err(PageError::Fields);
        }
        let start = |slot: usize| {
            let at = FOOTER_EPOCHS_AT + slot * FOOTER_EPOCH_BYTES;
            let (index, offset) = (BatchIndex(u64_at(page, at + 4)), Offset(u64_at(page, at + 12)));
            EpochStart { epoch: LeaderEpoch(u32_at(page, at)), index, offset }
        };
        Ok(Self {
            header_page_crc: u32_at(page, 8),
            data_end,
            batch_count: u64_at(page, 16),
            record_count: u64_at(page, 24),
            end_offset: Offset(u64_at(page, 32)),
            end_index: BatchIndex(u64_at(page, 40)),
            max_timestamp: Timestamp(i64::from_le_bytes(take(page, 48))),
            last_header_crc: u32_at(page, 56),
            epochs: (0..epochs).map(start).collect(),
        })
    }
}

/// The last block of a sealed segment: says where the footer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// CRC of the segment's header page.
    pub header_page_crc: u32,
    /// Where the footer's block starts.
    pub footer_position: u32,
}

impl Trailer {
    /// Writes the trailer into its first 4,096 bytes.
    pub fn encode(&self, out: &mut [u8]) {
        let out = &mut out[..BLOCK_BYTES];
        out.fill(0);
        let mut page = Page(out);
        page.put(0, TRAILER_MAGIC);
        page.put(4, FORMAT_VERSION.to_le_bytes());
        page.put(8, self.header_page_crc.to_le_bytes());
        page.put(12, self.footer_position.to_le_bytes());
        page.seal();
    }

    /// Reads and checks the trailer of a file of `size`.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn decode(bytes: &[u8], size: SegmentSize) -> Result<Self, PageError> {
        let page = checked_page(bytes, TRAILER_MAGIC)?;
        let trailer = Self { header_page_crc: u32_at(page, 8), footer_position: u32_at(page, 12) };
        let sound = u16::from_le_bytes(take(page, 4)) == FORMAT_VERSION
            && trailer.footer_position.is_multiple_of(BLOCK_BYTES as u32)
            && (HEADER_PAGE_BYTES as u32..=size.data_end()).contains(&trailer.footer_position)
            && is_zero(&page[16..PAGE_CRC_AT])
            && is_zero(&page[6..8]);
        if sound { Ok(trailer) } else { Err(PageError::Fields) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header_page() -> HeaderPage {
        HeaderPage {
            owner: Owner {
                cluster_id: ClusterId([1; 16]),
                topic_id: TopicId([2; 16]),
                partition_uid: PartitionUid(3),
                partition: 4,
            },
            leader_epoch: LeaderEpoch(5),
            base_offset: Offset(6),
            base_index: BatchIndex(7),
            chain_anchor: 8,
            size: SegmentSize::ALL[1],
            prezeroed: true,
        }
    }

    fn footer() -> Footer {
        let start = EpochStart { epoch: LeaderEpoch(5), index: BatchIndex(7), offset: Offset(6) };
        Footer {
            header_page_crc: 1,
            data_end: 8_200,
            batch_count: 2,
            record_count: 3,
            end_offset: Offset(9),
            end_index: BatchIndex(9),
            max_timestamp: Timestamp(-4),
            last_header_crc: 5,
            epochs: vec![start; SEGMENT_EPOCHS_MAX],
        }
    }

    #[test]
    fn pages_read_back_and_every_flipped_bit_of_them_is_noticed() {
        let trailer = Trailer { header_page_crc: 3, footer_position: 8_192 };
        let size = SegmentSize::SMALLEST;
        let mut pages = [[0; BLOCK_BYTES]; 3];
        header_page().encode(&mut pages[0]);
        footer().encode(&mut pages[1]);
        trailer.encode(&mut pages[2]);
        assert_eq!(HeaderPage::decode(&pages[0]), Ok(header_page()));
        assert_eq!(Footer::decode(&pages[1]), Ok(footer()));
        assert_eq!(Trailer::decode(&pages[2], size), Ok(trailer));
        for position in 0..BLOCK_BYTES {
            let mut damaged = pages;
            damaged.iter_mut().for_each(|page| page[position] ^= 1 << (position % 8));
            assert!(HeaderPage::decode(&damaged[0]).is_err(), "header byte {position}");
            assert!(Footer::decode(&damaged[1]).is_err(), "footer byte {position}");
            assert!(Trailer::decode(&damaged[2], size).is_err(), "trailer byte {position}");
            assert_eq!(HeaderPage::decode(&pages[0][..position]), Err(PageError::Truncated));
        }
        assert_eq!(HeaderPage::decode(&[0; BLOCK_BYTES]), Err(PageError::Empty));
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let mut page = [0; BLOCK_BYTES];
        header_page().encode(&mut page);
        page[6] = 9;
        Page(&mut page).seal();
        assert_eq!(HeaderPage::decode(&page), Err(PageError::TooNew { min_reader: 9 }));
    }

    #[test]
    fn a_footer_that_ends_behind_every_segment_is_refused() {
        let mut page = [0; BLOCK_BYTES];
        page[..4].copy_from_slice(&FOOTER_MAGIC);
        page[4] = 1;
        page[12..16].fill(0xff);
        Page(&mut page).seal();
        assert_eq!(Footer::decode(&page).map(|footer| footer.position()), Err(PageError::Fields));
    }

    #[test]
    fn an_unknown_feature_is_refused_whatever_else_the_page_holds() {
        let mut page = [0; BLOCK_BYTES];
        header_page().encode(&mut page);
        page[8] = 3;
        page[84] = 1;
        Page(&mut page).seal();
        assert_eq!(HeaderPage::decode(&page), Err(PageError::UnknownFeatures { features: 3 }));
    }

    #[test]
    fn small_batches_start_on_64_bytes_and_large_ones_own_their_blocks() {
        assert_eq!(start_after(4_160, 300), 4_160);
        assert_eq!(padded_end(4_160, 300), 4_480);
        assert_eq!(start_after(4_160, LARGE_BATCH_BYTES), 8_192);
        assert_eq!(padded_end(8_192, LARGE_BATCH_BYTES + 1), 8_192 + 36_864);
        assert_eq!(SegmentSize::SMALLEST.holding(LARGE_BATCH_BYTES), SegmentSize::SMALLEST);
        assert_eq!(SegmentSize::SMALLEST.holding(60 << 10), SegmentSize::ALL[1]);
        assert_eq!(SegmentSize::at_most(20 << 20), SegmentSize::ALL[2]);
        assert_eq!(SegmentSize::at_most(1), SegmentSize::SMALLEST);
    }
}
