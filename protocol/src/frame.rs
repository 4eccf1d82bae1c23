//! ② Frames: owns the 24 bytes before each request and response; refuses to know what a body or a batch holds.
//!
//! Layout (docs/PROTOCOL.md, "Frame"): header, `body_len` bytes of body, and up to `len` the raw record batches.

use std::fmt;

use crate::error::ErrorCode;
use crate::limits::FRAME_BYTES_MAX;

/// Bytes of the header.
pub const FRAME_HEADER_BYTES: usize = 24;
/// Flags bit 0: the frame is a response.
pub const FLAG_RESPONSE: u16 = 1;
/// The flags that this version knows.
const FLAGS_KNOWN: u16 = FLAG_RESPONSE;

// The header's own lengths are u32, so a frame of any allowed size fits them.
const _: () = assert!(FRAME_BYTES_MAX <= u32::MAX as usize);

/// The header of a frame whose lengths were checked against each other and against the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the whole frame, these 24 included.
    pub len: u32,
    /// Bytes of the body; what follows it are record batches.
    pub body_len: u32,
    /// The API's number, not yet looked up.
    pub api: u16,
    /// The version of the API.
    pub version: u16,
    /// Chosen by the client, returned in the response.
    pub correlation: u32,
    /// [`FLAG_RESPONSE`] or 0.
    pub flags: u16,
    /// In a response, an error code (perhaps of a newer version) or 0; in a request 0.
    pub error: u16,
}

impl FrameHeader {
    /// The header of a request with this much body and this much of record batches.
    ///
    /// # Panics
    /// If the frame would be larger than [`FRAME_BYTES_MAX`]: the sender bounds what it builds.
    #[must_use]
    pub fn request(api: u16, version: u16, correlation: u32, body_bytes: usize, batches_bytes: usize) -> Self {
        let (len, body_len) = lengths(body_bytes, batches_bytes);
        Self { len, body_len, api, version, correlation, flags: 0, error: 0 }
    }

    /// The header of the response to `request`.
    ///
    /// # Panics
    /// If the frame would be larger than [`FRAME_BYTES_MAX`]: the sender bounds what it builds.
    #[must_use]
    pub fn response(request: &Self, error: ErrorCode, body_bytes: usize, batches_bytes: usize) -> Self {
        let (len, body_len) = lengths(body_bytes, batches_bytes);
        let Self { api, version, correlation, .. } = *request;
        Self { len, body_len, api, version, correlation, flags: FLAG_RESPONSE, error: error.code() }
    }

    /// Reads and checks a header; no frame longer than `frame_bytes_max` (or [`FRAME_BYTES_MAX`]) passes.
    ///
    /// # Errors
    /// What is wrong with it, with what was expected and what was found.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES], frame_bytes_max: usize) -> Result<Self, FrameError> {
        let header = Self {
            len: u32_at(bytes, 0),
            body_len: u32_at(bytes, 4),
            api: u16_at(bytes, 8),
            version: u16_at(bytes, 10),
            correlation: u32_at(bytes, 12),
            flags: u16_at(bytes, 16),
            error: u16_at(bytes, 18),
        };
        let len_max = frame_bytes_max.min(FRAME_BYTES_MAX);
        if (header.len as usize) < FRAME_HEADER_BYTES {
            return Err(FrameError::TooShort { expected_min: FRAME_HEADER_BYTES, found: header.len as usize });
        }
        if header.len as usize > len_max {
            return Err(FrameError::TooLarge { max: len_max, found: header.len as usize });
        }
        let rest = header.len - FRAME_HEADER_BYTES as u32;
        if header.body_len > rest {
            return Err(FrameError::BodyTooLarge { max: rest, found: header.body_len });
        }
        if header.flags & !FLAGS_KNOWN != 0 {
            return Err(FrameError::UnknownFlags { known: FLAGS_KNOWN, found: header.flags });
        }
        let reserved = u32_at(bytes, 20);
        if reserved != 0 {
            return Err(FrameError::ReservedNotZero { found: reserved });
        }
        if !header.is_response() && header.error != 0 {
            return Err(FrameError::RequestWithError { found: header.error });
        }
        Ok(header)
    }

    /// The 24 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.api.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.correlation.to_le_bytes());
        bytes[16..18].copy_from_slice(&self.flags.to_le_bytes());
        bytes[18..20].copy_from_slice(&self.error.to_le_bytes());
        bytes
    }

    /// Whether the frame answers a request.
    #[must_use]
    pub fn is_response(&self) -> bool {
        self.flags & FLAG_RESPONSE != 0
    }

    /// Bytes after the header: body and batches.
    #[must_use]
    pub fn rest_bytes(&self) -> usize {
        (self.len as usize).saturating_sub(FRAME_HEADER_BYTES)
    }

    /// Bytes of record batches after the body.
    #[must_use]
    pub fn batches_bytes(&self) -> usize {
        self.rest_bytes().saturating_sub(self.body_len as usize)
    }
}

/// Splits one whole frame into header, body and record batches.
///
/// # Errors
/// As [`FrameHeader::decode`], and if `frame` is not exactly as long as its header says.
pub fn split(frame: &[u8]) -> Result<(FrameHeader, &[u8], &[u8]), FrameError> {
    let Some((bytes, rest)) = frame.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Err(FrameError::TooShort { expected_min: FRAME_HEADER_BYTES, found: frame.len() });
    };
    let header = FrameHeader::decode(bytes, FRAME_BYTES_MAX)?;
    if header.rest_bytes() != rest.len() {
        return Err(FrameError::LengthMismatch { expected: header.len as usize, found: frame.len() });
    }
    let Some((body, batches)) = rest.split_at_checked(header.body_len as usize) else {
        return Err(FrameError::BodyTooLarge { max: rest.len() as u32, found: header.body_len });
    };
    Ok((header, body, batches))
}

/// Why bytes are not a frame. The stream can't be trusted afterwards: the connection closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Fewer bytes than a header has, or a `len` that says so.
    TooShort {
        /// The least that a frame has.
        expected_min: usize,
        /// What there was.
        found: usize,
    },
    /// `len` is above the limit.
    TooLarge {
        /// The limit.
        max: usize,
        /// What `len` says.
        found: usize,
    },
    /// `body_len` is above what `len` leaves.
    BodyTooLarge {
        /// What `len` leaves.
        max: u32,
        /// What `body_len` says.
        found: u32,
    },
    /// Flags that this version does not know.
    UnknownFlags {
        /// All that it knows.
        known: u16,
        /// What there was.
        found: u16,
    },
    /// The reserved field is not zero.
    ReservedNotZero {
        /// What there was.
        found: u32,
    },
    /// A request carries an error code.
    RequestWithError {
        /// What there was.
        found: u16,
    },
    /// The slice is not as long as the header says.
    LengthMismatch {
        /// What `len` says.
        expected: usize,
        /// Bytes of the slice.
        found: usize,
    },
}

impl FrameError {
    /// The code that the peer is told before the connection closes.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge { .. } => ErrorCode::FrameTooLarge,
            _ => ErrorCode::FrameInvalid,
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { expected_min, found } => {
                write!(formatter, "frame of {found} bytes, expected at least {expected_min}")
            }
            Self::TooLarge { max, found } => write!(formatter, "frame of {found} bytes, expected at most {max}"),
            Self::BodyTooLarge { max, found } => {
                write!(formatter, "frame body of {found} bytes, expected at most {max}")
            }
            Self::UnknownFlags { known, found } => {
                write!(formatter, "frame flags {found:#06x}, expected none but {known:#06x}")
            }
            Self::ReservedNotZero { found } => write!(formatter, "reserved frame field is {found:#x}, expected 0"),
            Self::RequestWithError { found } => write!(formatter, "request frame with error {found}, expected 0"),
            Self::LengthMismatch { expected, found } => {
                write!(formatter, "frame says {expected} bytes, found {found}")
            }
        }
    }
}

impl std::error::Error for FrameError {}

/// `len` and `body_len` for these sizes.
fn lengths(body_bytes: usize, batches_bytes: usize) -> (u32, u32) {
    assert!(body_bytes <= FRAME_BYTES_MAX, "body of {body_bytes} bytes");
    assert!(batches_bytes <= FRAME_BYTES_MAX, "batches of {batches_bytes} bytes");
    let len = FRAME_HEADER_BYTES + body_bytes + batches_bytes;
    assert!(len <= FRAME_BYTES_MAX, "frame of {len} bytes");
    (len as u32, body_bytes as u32)
}

fn u16_at(bytes: &[u8; FRAME_HEADER_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8; FRAME_HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::seeded::Seeded;

    fn valid() -> FrameHeader {
        FrameHeader::request(2, 1, 0x0102_0304, 17, 300)
    }

    #[test]
    fn header_is_24_bytes_at_the_documented_offsets() {
        let request = valid();
        let bytes = FrameHeader::response(&request, ErrorCode::DiskFull, 5, 6).encode();
        assert_eq!(bytes[0..4], [35, 0, 0, 0]);
        assert_eq!(bytes[4..8], [5, 0, 0, 0]);
        assert_eq!(bytes[8..12], [2, 0, 1, 0]);
        assert_eq!(bytes[12..16], [4, 3, 2, 1]);
        assert_eq!(bytes[16..18], [1, 0]);
        assert_eq!(bytes[18..20], 1004u16.to_le_bytes());
        assert_eq!(bytes[20..24], [0; 4]);
    }

    #[test]
    fn encode_and_decode_are_inverse() {
        let header = valid();
        assert_eq!(FrameHeader::decode(&header.encode(), FRAME_BYTES_MAX), Ok(header));
        assert_eq!(header.rest_bytes(), 317);
        assert_eq!(header.batches_bytes(), 300);
    }

    #[test]
    fn refuses_each_broken_field_with_what_it_found() {
        let decode = |change: &dyn Fn(&mut [u8; 24])| {
            let mut bytes = valid().encode();
            change(&mut bytes);
            FrameHeader::decode(&bytes, 1_000).unwrap_err()
        };
        assert_eq!(decode(&|bytes| bytes[0..2].fill(0)), FrameError::TooShort { expected_min: 24, found: 0 });
        assert_eq!(decode(&|bytes| bytes[3] = 1), FrameError::TooLarge { max: 1_000, found: (1 << 24) + 341 });
        assert_eq!(
            decode(&|bytes| bytes[4..6].copy_from_slice(&318u16.to_le_bytes())),
            FrameError::BodyTooLarge { max: 317, found: 318 }
        );
        assert_eq!(decode(&|bytes| bytes[16] = 2), FrameError::UnknownFlags { known: 1, found: 2 });
        assert_eq!(decode(&|bytes| bytes[23] = 1), FrameError::ReservedNotZero { found: 1 << 24 });
        assert_eq!(decode(&|bytes| bytes[18] = 7), FrameError::RequestWithError { found: 7 });
    }

    #[test]
    fn no_callers_limit_lifts_the_protocols() {
        let mut bytes = valid().encode();
        bytes[0..4].copy_from_slice(&(FRAME_BYTES_MAX as u32 + 1).to_le_bytes());
        let error = FrameHeader::decode(&bytes, usize::MAX).unwrap_err();
        assert_eq!(error, FrameError::TooLarge { max: FRAME_BYTES_MAX, found: FRAME_BYTES_MAX + 1 });
        assert_eq!(error.code(), ErrorCode::FrameTooLarge);
    }

    #[test]
    fn split_finds_the_parts_and_refuses_every_other_length() {
        let mut frame = FrameHeader::request(2, 1, 7, 3, 4).encode().to_vec();
        frame.extend_from_slice(b"bodbatc");
        let (header, body, batches) = split(&frame).unwrap();
        assert_eq!((header.correlation, body, batches), (7, &b"bod"[..], &b"batc"[..]));
        for len in 0..frame.len() {
            assert!(split(&frame[..len]).is_err(), "{len}");
        }
        frame.push(0);
        assert_eq!(split(&frame), Err(FrameError::LengthMismatch { expected: 31, found: 32 }));
    }

    #[test]
    fn is_total_on_random_bytes() {
        let mut seeded = Seeded::new(0x5eed_f4a3);
        for _ in 0..20_000 {
            let mut bytes = seeded.bytes(64);
            // Half of the time a plausible length, so that the later checks are reached.
            if bytes.len() >= 24 && seeded.below(2) == 0 {
                let (len, body_len) = (bytes.len() as u32, u32::from(bytes[4] % 32));
                bytes[0..4].copy_from_slice(&len.to_le_bytes());
                bytes[4..8].copy_from_slice(&body_len.to_le_bytes());
            }
            if let Ok((header, body, batches)) = split(&bytes) {
                assert_eq!(24 + body.len() + batches.len(), header.len as usize);
            }
        }
    }
}
