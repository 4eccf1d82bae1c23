//! Compression of data columns (lz4 block, zstd frame); knows no batch, only bytes and the length they must have.
//!
//! The uncompressed length of a column is always known from its offsets, which stay readable. It is checked against
//! [`COLUMN_BYTES_MAX`] and against what the codec can produce at most from the bytes at hand before anything is
//! reserved.

use crate::limits::COLUMN_BYTES_MAX;
use std::fmt;

/// Codec of the data columns of a batch; the numbers are Kafka's attribute bits 0–2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// Columns are stored as they are.
    #[default]
    None,
    /// LZ4 block format, without a length prefix.
    Lz4,
    /// One Zstandard frame (RFC 8878).
    Zstd,
}

/// Why a column could not be compressed or restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionError {
    /// The attribute bits name a codec that columns cannot have (1 gzip, 2 snappy, 5–7 unassigned).
    UnknownCodec {
        /// The three bits.
        found: u16,
    },
    /// The column claims more bytes than allowed, or than its codec could have made from what is there.
    TooLarge {
        /// Claimed bytes.
        claimed: usize,
        /// Bytes allowed.
        allowed: usize,
    },
    /// The codec refused the bytes, or they restore to another length than the offsets say.
    Corrupt,
}

impl fmt::Display for CompressionError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownCodec { found } => {
                write!(formatter, "compression type {found} is not one of 0, 3 (lz4), 4 (zstd)")
            }
            Self::TooLarge { claimed, allowed } => {
                write!(formatter, "column claims {claimed} bytes where at most {allowed} are possible")
            }
            Self::Corrupt => write!(formatter, "compressed column does not restore to the length its offsets say"),
        }
    }
}

impl std::error::Error for CompressionError {}

/// lz4 spends at least one byte on 255 bytes of output.
const LZ4_RATIO_MAX: usize = 255;
/// A zstd RLE block makes 128 KiB of four bytes.
const ZSTD_RATIO_MAX: usize = 32 << 10;
/// The level at which zstd beats lz4's ratio without leaving the hundreds of MB/s.
const ZSTD_LEVEL: i32 = 3;

impl Codec {
    /// The codec named by bits 0–2 of a batch's attributes.
    ///
    /// # Errors
    /// [`CompressionError::UnknownCodec`] for anything but 0, 3 and 4.
    pub fn from_attributes(attributes: u16) -> Result<Self, CompressionError> {
        match attributes & 0b111 {
            0 => Ok(Self::None),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            found => Err(CompressionError::UnknownCodec { found }),
        }
    }

    /// Bits 0–2 of a batch's attributes.
    #[must_use]
    pub const fn attributes(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// Compresses `column` onto the end of `out`.
    ///
    /// # Errors
    /// [`CompressionError::TooLarge`] over [`COLUMN_BYTES_MAX`], [`CompressionError::Corrupt`] when the codec fails.
    pub fn compress(self, column: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
        within(column.len(), COLUMN_BYTES_MAX)?;
        match self {
            Self::None => out.extend_from_slice(column),
            Self::Lz4 => out.extend_from_slice(&lz4_flex::block::compress(column)),
            Self::Zstd => {
                let bytes = zstd::bulk::compress(column, ZSTD_LEVEL).map_err(|_| CompressionError::Corrupt)?;
                out.extend_from_slice(&bytes);
            }
        }
        Ok(())
    }

    /// Restores `column` to exactly `len` bytes, which replace the content of `out`.
    ///
    /// # Errors
    /// [`CompressionError::TooLarge`] before anything is reserved, [`CompressionError::Corrupt`] afterwards.
    pub fn restore(self, column: &[u8], len: usize, out: &mut Vec<u8>) -> Result<(), CompressionError> {
        let ratio = match self {
            Self::None => 1,
            Self::Lz4 => LZ4_RATIO_MAX,
            Self::Zstd => ZSTD_RATIO_MAX,
        };
        within(len, COLUMN_BYTES_MAX.min(column.len().saturating_mul(ratio)))?;
        out.clear();
        if len == 0 {
            return if column.is_empty() { Ok(()) } else { Err(CompressionError::Corrupt) };
        }
        out.resize(len, 0);
        let restored = match self {
            Self::None => {
                out.copy_from_slice(column.get(..len).ok_or(CompressionError::Corrupt)?);
                column.len()
            }
            Self::Lz4 => lz4_flex::block::decompress_into(column, out).map_err(|_| CompressionError::Corrupt)?,
            Self::Zstd => {
                zstd::bulk::decompress_to_buffer(column, out.as_mut_slice()).map_err(|_| CompressionError::Corrupt)?
            }
        };
        if restored == len { Ok(()) } else { Err(CompressionError::Corrupt) }
    }
}

/// Refuses `claimed` above `allowed`.
const fn within(claimed: usize, allowed: usize) -> Result<(), CompressionError> {
    if claimed > allowed { Err(CompressionError::TooLarge { claimed, allowed }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_restores_what_it_compressed() {
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
            for len in [0_usize, 1, 100, 70_000] {
                let column: Vec<u8> = (0..len).map(|i| (i % 7) as u8).collect();
                let mut packed = Vec::new();
                if len > 0 {
                    codec.compress(&column, &mut packed).unwrap();
                }
                let mut restored = Vec::new();
                codec.restore(&packed, len, &mut restored).unwrap();
                assert_eq!(restored, column, "{codec:?} {len}");
                assert_eq!(Codec::from_attributes(codec.attributes()), Ok(codec));
            }
        }
    }

    #[test]
    fn a_claim_beyond_what_the_codec_can_make_reserves_nothing() {
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
            let mut out = Vec::new();
            let refused = codec.restore(&[1, 2], COLUMN_BYTES_MAX + 1, &mut out);
            assert!(matches!(refused, Err(CompressionError::TooLarge { .. })), "{codec:?}: {refused:?}");
            assert!(codec.restore(&[1, 2], 40_000_000, &mut out).is_err());
            assert_eq!(out.capacity(), 0, "{codec:?}");
        }
    }

    #[test]
    fn damaged_columns_give_a_typed_error_or_other_bytes_of_the_same_length() {
        for codec in [Codec::Lz4, Codec::Zstd] {
            let column: Vec<u8> = (0..5_000_u32).flat_map(|i| (i % 300).to_le_bytes()).collect();
            let mut packed = Vec::new();
            codec.compress(&column, &mut packed).unwrap();
            let mut out = Vec::new();
            for position in 0..packed.len() {
                let mut damaged = packed.clone();
                damaged[position] ^= 0x55;
                if codec.restore(&damaged, column.len(), &mut out).is_ok() {
                    assert_eq!(out.len(), column.len());
                }
                assert!(codec.restore(&packed[..position], column.len(), &mut out).is_err());
            }
        }
    }
}
