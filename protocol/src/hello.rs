//! The first exchange on a connection: owns its hand-coded, frozen layout; knows nothing of rkyv and takes no decision.
//!
//! It is never an rkyv archive, so that any two versions of client and broker can read each other's first words. A
//! Hello travels in a frame with API 0, version 0. Layout: docs/PROTOCOL.md, "Hello".

use std::fmt;

use crate::error::ErrorCode;
use crate::frame::FRAME_HEADER_BYTES;
use crate::ids::{ClusterId, ShardId};
use crate::limits::HELLO_BYTES_MAX;

/// The first four bytes of a Hello request's body.
pub const HELLO_MAGIC: [u8; 4] = *b"COUL";
/// The protocol that this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// "Any shard": the broker keeps the connection where it was accepted.
pub const ANY_SHARD: u16 = u16::MAX;
/// The auth mechanism "none", with empty credentials.
pub const AUTH_NONE: u8 = 0;
/// Bytes of a client name or broker version.
pub const HELLO_NAME_BYTES_MAX: usize = 255;
/// Bytes of the credentials.
pub const CREDENTIALS_BYTES_MAX: usize = 3_584;
/// APIs that one answer may list.
pub const HELLO_APIS_MAX: usize = 256;

/// Fixed part of the request's body.
const REQUEST_BYTES: usize = 24;
/// Fixed part of the response's body.
const RESPONSE_BYTES: usize = 40;
/// One entry of the response's list of APIs.
const API_RANGE_BYTES: usize = 6;

const _: () =
    assert!(FRAME_HEADER_BYTES + REQUEST_BYTES + HELLO_NAME_BYTES_MAX + CREDENTIALS_BYTES_MAX <= HELLO_BYTES_MAX);
const _: () = assert!(
    FRAME_HEADER_BYTES + RESPONSE_BYTES + HELLO_NAME_BYTES_MAX + HELLO_APIS_MAX * API_RANGE_BYTES <= HELLO_BYTES_MAX
);
const _: () = assert!(CREDENTIALS_BYTES_MAX <= u16::MAX as usize);

/// What a client says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloRequest<'a> {
    /// The oldest protocol that the client speaks.
    pub protocol_min: u16,
    /// The newest one.
    pub protocol_max: u16,
    /// Optional features that the client knows; none is defined yet.
    pub features: u64,
    /// The shard that shall own the connection; `None` for any.
    pub wanted_shard: Option<ShardId>,
    /// Name and version of the client, for logs.
    pub client_name: &'a str,
    /// How the client authenticates: [`AUTH_NONE`], or a number that the broker may not know.
    pub auth_mechanism: u8,
    /// What that mechanism needs; empty for [`AUTH_NONE`].
    pub credentials: &'a [u8],
}

impl<'a> HelloRequest<'a> {
    /// Reads a body of exactly this request.
    ///
    /// # Errors
    /// What is wrong with it. Nothing is allocated.
    pub fn decode(body: &'a [u8]) -> Result<Self, HelloError> {
        let Some((head, rest)) = body.split_first_chunk::<REQUEST_BYTES>() else {
            return Err(HelloError::Length { expected: REQUEST_BYTES, found: body.len() });
        };
        let magic = [head[0], head[1], head[2], head[3]];
        if magic != HELLO_MAGIC {
            return Err(HelloError::Magic { found: magic });
        }
        let (protocol_min, protocol_max) = (u16_at(head, 4), u16_at(head, 6));
        if protocol_min > protocol_max {
            return Err(HelloError::Range { min: protocol_min, max: protocol_max });
        }
        let (name_len, credentials_len) = (usize::from(head[18]), usize::from(u16_at(head, 20)));
        if credentials_len > CREDENTIALS_BYTES_MAX {
            return Err(HelloError::CredentialsTooLong { max: CREDENTIALS_BYTES_MAX, found: credentials_len });
        }
        check_zero(&head[22..24])?;
        let expected = REQUEST_BYTES + name_len + credentials_len;
        if body.len() != expected {
            return Err(HelloError::Length { expected, found: body.len() });
        }
        let (name, credentials) = rest.split_at(name_len);
        let auth_mechanism = head[19];
        if auth_mechanism == AUTH_NONE && !credentials.is_empty() {
            return Err(HelloError::CredentialsUnasked { found: credentials.len() });
        }
        let wanted_shard = Some(u16_at(head, 16)).filter(|shard| *shard != ANY_SHARD).map(ShardId);
        Ok(Self {
            protocol_min,
            protocol_max,
            features: u64_at(head, 8),
            wanted_shard,
            client_name: text(name)?,
            auth_mechanism,
            credentials,
        })
    }

    /// Appends the body.
    ///
    /// # Errors
    /// If decoding it would refuse it: a name or credentials that are too long, a range upside down.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), HelloError> {
        let name_len = name_length(self.client_name)?;
        if self.credentials.len() > CREDENTIALS_BYTES_MAX {
            return Err(HelloError::CredentialsTooLong { max: CREDENTIALS_BYTES_MAX, found: self.credentials.len() });
        }
        if self.auth_mechanism == AUTH_NONE && !self.credentials.is_empty() {
            return Err(HelloError::CredentialsUnasked { found: self.credentials.len() });
        }
        if self.protocol_min > self.protocol_max {
            return Err(HelloError::Range { min: self.protocol_min, max: self.protocol_max });
        }
        out.extend_from_slice(&HELLO_MAGIC);
        out.extend_from_slice(&self.protocol_min.to_le_bytes());
        out.extend_from_slice(&self.protocol_max.to_le_bytes());
        out.extend_from_slice(&self.features.to_le_bytes());
        out.extend_from_slice(&self.wanted_shard.map_or(ANY_SHARD, |shard| shard.0).to_le_bytes());
        out.extend_from_slice(&[name_len, self.auth_mechanism]);
        out.extend_from_slice(&(self.credentials.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(self.client_name.as_bytes());
        out.extend_from_slice(self.credentials);
        Ok(())
    }

    /// The protocol that both sides speak; `None` where there is none (the answer is `UNSUPPORTED_VERSION`).
    #[must_use]
    pub fn protocol(&self) -> Option<u16> {
        (self.protocol_min..=self.protocol_max).contains(&PROTOCOL_VERSION).then_some(PROTOCOL_VERSION)
    }
}

/// The versions of one API that the broker reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiRange {
    /// The API's number; perhaps one that this version does not know.
    pub api: u16,
    /// The oldest version.
    pub min: u16,
    /// The newest version.
    pub max: u16,
}

/// What the broker answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloResponse<'a> {
    /// The protocol chosen from the client's range.
    pub protocol: u16,
    /// The client's features that the broker knows too.
    pub features: u64,
    /// The broker's version, for people.
    pub broker_version: &'a str,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The shard that owns the connection from now on.
    pub shard: ShardId,
    /// Shards of this broker.
    pub shards: u16,
    /// What the broker can do, in ascending order of API, at most [`HELLO_APIS_MAX`] entries.
    pub apis: Vec<ApiRange>,
}

impl<'a> HelloResponse<'a> {
    /// Reads a body of exactly this response.
    ///
    /// # Errors
    /// What is wrong with it. The one allocation is bounded by [`HELLO_APIS_MAX`] and by the bytes that are there.
    pub fn decode(body: &'a [u8]) -> Result<Self, HelloError> {
        let Some((head, rest)) = body.split_first_chunk::<RESPONSE_BYTES>() else {
            return Err(HelloError::Length { expected: RESPONSE_BYTES, found: body.len() });
        };
        let (version_len, api_count) = (usize::from(head[32]), usize::from(u16_at(head, 6)));
        if api_count > HELLO_APIS_MAX {
            return Err(HelloError::TooManyApis { max: HELLO_APIS_MAX, found: api_count });
        }
        check_zero(&head[33..40])?;
        let expected = RESPONSE_BYTES + version_len + api_count * API_RANGE_BYTES;
        if body.len() != expected {
            return Err(HelloError::Length { expected, found: body.len() });
        }
        let (version, ranges) = rest.split_at(version_len);
        let mut cluster_id = ClusterId::default();
        cluster_id.0.copy_from_slice(&head[16..32]);
        let range = |bytes: &[u8]| ApiRange { api: u16_at(bytes, 0), min: u16_at(bytes, 2), max: u16_at(bytes, 4) };
        let apis: Vec<_> = ranges.chunks_exact(API_RANGE_BYTES).map(range).collect();
        check_ranges(&apis)?;
        Ok(Self {
            protocol: u16_at(head, 0),
            features: u64_at(head, 8),
            broker_version: text(version)?,
            cluster_id,
            shard: ShardId(u16_at(head, 2)),
            shards: u16_at(head, 4),
            apis,
        })
    }

    /// Appends the body.
    ///
    /// # Errors
    /// If decoding it would refuse it: a version text that is too long, APIs that are too many or out of order.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), HelloError> {
        let version_len = name_length(self.broker_version)?;
        if self.apis.len() > HELLO_APIS_MAX {
            return Err(HelloError::TooManyApis { max: HELLO_APIS_MAX, found: self.apis.len() });
        }
        check_ranges(&self.apis)?;
        for field in [self.protocol, self.shard.0, self.shards, self.apis.len() as u16] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.features.to_le_bytes());
        out.extend_from_slice(&self.cluster_id.0);
        out.push(version_len);
        out.extend_from_slice(&[0; 7]);
        out.extend_from_slice(self.broker_version.as_bytes());
        for range in &self.apis {
            for field in [range.api, range.min, range.max] {
                out.extend_from_slice(&field.to_le_bytes());
            }
        }
        Ok(())
    }

    /// The versions of one API; `None` if the broker does not have it.
    #[must_use]
    pub fn versions(&self, api: u16) -> Option<ApiRange> {
        self.apis.iter().find(|range| range.api == api).copied()
    }
}

/// Why bytes are not a Hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// The body is not as long as its fields say.
    Length {
        /// What they say.
        expected: usize,
        /// Bytes of the body.
        found: usize,
    },
    /// The first four bytes are not [`HELLO_MAGIC`].
    Magic {
        /// What they are.
        found: [u8; 4],
    },
    /// A range whose least is above its greatest.
    Range {
        /// The least.
        min: u16,
        /// The greatest.
        max: u16,
    },
    /// Reserved bytes that are not zero.
    ReservedNotZero,
    /// A name that is not UTF-8.
    NotUtf8 {
        /// Bytes before the first that are not.
        valid_bytes: usize,
    },
    /// A name that is too long.
    NameTooLong {
        /// The most bytes.
        max: usize,
        /// What there was.
        found: usize,
    },
    /// Credentials that are too long.
    CredentialsTooLong {
        /// The most bytes.
        max: usize,
        /// What there was.
        found: usize,
    },
    /// Credentials for the mechanism "none".
    CredentialsUnasked {
        /// How many bytes.
        found: usize,
    },
    /// More APIs than an answer may list.
    TooManyApis {
        /// The most.
        max: usize,
        /// What there was.
        found: usize,
    },
    /// APIs that are not in ascending order.
    ApisOutOfOrder {
        /// The first that does not follow.
        found: u16,
    },
}

impl HelloError {
    /// The code that the peer is told before the connection closes.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Magic { .. } | Self::Length { .. } => ErrorCode::HelloRequired,
            _ => ErrorCode::InvalidRequest,
        }
    }
}

impl fmt::Display for HelloError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { expected, found } => write!(formatter, "hello of {found} bytes, expected {expected}"),
            Self::Magic { found } => write!(formatter, "hello begins with {found:02x?}, expected {HELLO_MAGIC:02x?}"),
            Self::Range { min, max } => write!(formatter, "version range {min} to {max} is upside down"),
            Self::ReservedNotZero => formatter.write_str("reserved bytes of hello are not zero"),
            Self::NotUtf8 { valid_bytes } => write!(formatter, "name in hello is not utf-8 after {valid_bytes} bytes"),
            Self::NameTooLong { max, found } => {
                write!(formatter, "name of {found} bytes in hello, expected at most {max}")
            }
            Self::CredentialsTooLong { max, found } => {
                write!(formatter, "credentials of {found} bytes, expected at most {max}")
            }
            Self::CredentialsUnasked { found } => {
                write!(formatter, "credentials of {found} bytes without an auth mechanism")
            }
            Self::TooManyApis { max, found } => write!(formatter, "hello lists {found} apis, expected at most {max}"),
            Self::ApisOutOfOrder { found } => write!(formatter, "api {found} in hello is out of order"),
        }
    }
}

impl std::error::Error for HelloError {}

fn name_length(name: &str) -> Result<u8, HelloError> {
    u8::try_from(name.len()).map_err(|_| HelloError::NameTooLong { max: HELLO_NAME_BYTES_MAX, found: name.len() })
}

fn text(bytes: &[u8]) -> Result<&str, HelloError> {
    std::str::from_utf8(bytes).map_err(|error| HelloError::NotUtf8 { valid_bytes: error.valid_up_to() })
}

fn check_zero(reserved: &[u8]) -> Result<(), HelloError> {
    if reserved.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(HelloError::ReservedNotZero) }
}

fn check_ranges(apis: &[ApiRange]) -> Result<(), HelloError> {
    if let Some(range) = apis.iter().find(|range| range.min > range.max) {
        return Err(HelloError::Range { min: range.min, max: range.max });
    }
    match apis.windows(2).find(|pair| pair[0].api >= pair[1].api) {
        Some(pair) => Err(HelloError::ApisOutOfOrder { found: pair[1].api }),
        None => Ok(()),
    }
}

/// The callers have checked that the fixed part is there.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::seeded::Seeded;

    fn request() -> HelloRequest<'static> {
        HelloRequest {
            protocol_min: 1,
            protocol_max: 3,
            features: 0x0102_0304_0506_0708,
            wanted_shard: Some(ShardId(5)),
            client_name: "trout/1.2 ß",
            auth_mechanism: 1,
            credentials: b"\0alice\0secret",
        }
    }

    fn response() -> HelloResponse<'static> {
        HelloResponse {
            protocol: 1,
            features: 9,
            broker_version: "coulee 0.1.0",
            cluster_id: ClusterId([7; 16]),
            shard: ShardId(1),
            shards: 2,
            apis: crate::api::ranges().collect(),
        }
    }

    fn request_bytes(request: &HelloRequest<'_>) -> Vec<u8> {
        let mut body = Vec::new();
        request.encode(&mut body).unwrap();
        body
    }

    fn response_bytes(response: &HelloResponse<'_>) -> Vec<u8> {
        let mut body = Vec::new();
        response.encode(&mut body).unwrap();
        body
    }

    #[test]
    fn requests_and_responses_roundtrip() {
        assert_eq!(HelloRequest::decode(&request_bytes(&request())), Ok(request()));
        let any =
            HelloRequest { wanted_shard: None, client_name: "", auth_mechanism: 0, credentials: b"", ..request() };
        assert_eq!(request_bytes(&any)[16..18], [0xff, 0xff]);
        assert_eq!(HelloRequest::decode(&request_bytes(&any)), Ok(any));
        assert_eq!(HelloResponse::decode(&response_bytes(&response())), Ok(response()));
    }

    #[test]
    fn the_largest_hello_fits_its_limit_and_one_byte_more_is_refused() {
        let name = "n".repeat(HELLO_NAME_BYTES_MAX);
        let credentials = vec![1; CREDENTIALS_BYTES_MAX + 1];
        let largest =
            HelloRequest { client_name: &name, credentials: &credentials[..CREDENTIALS_BYTES_MAX], ..request() };
        assert!(FRAME_HEADER_BYTES + request_bytes(&largest).len() <= HELLO_BYTES_MAX);
        let longer = format!("{name}n");
        let refused = |request: HelloRequest<'_>| request.encode(&mut Vec::new()).unwrap_err();
        assert_eq!(
            refused(HelloRequest { client_name: &longer, ..request() }),
            HelloError::NameTooLong { max: 255, found: 256 }
        );
        assert_eq!(
            refused(HelloRequest { credentials: &credentials, ..request() }),
            HelloError::CredentialsTooLong { max: CREDENTIALS_BYTES_MAX, found: CREDENTIALS_BYTES_MAX + 1 }
        );
    }

    #[test]
    fn every_truncation_and_every_extension_is_refused() {
        for mut body in [request_bytes(&request()), response_bytes(&response())] {
            for len in 0..body.len() {
                assert!(HelloRequest::decode(&body[..len]).is_err());
                assert!(HelloResponse::decode(&body[..len]).is_err());
            }
            body.push(0);
            assert!(HelloRequest::decode(&body).is_err());
            assert!(HelloResponse::decode(&body).is_err());
        }
    }

    #[test]
    fn refuses_each_broken_field_of_a_request() {
        let decode = |at: usize, byte: u8| {
            let mut body = request_bytes(&request());
            body[at] = byte;
            HelloRequest::decode(&body).unwrap_err()
        };
        assert_eq!(decode(0, b'K'), HelloError::Magic { found: *b"KOUL" });
        assert_eq!(decode(4, 4), HelloError::Range { min: 4, max: 3 });
        assert_eq!(decode(19, 0), HelloError::CredentialsUnasked { found: 13 });
        assert_eq!(decode(21, 0xff), HelloError::CredentialsTooLong { max: 3_584, found: 0xff0d });
        assert_eq!(decode(23, 1), HelloError::ReservedNotZero);
        assert_eq!(decode(24, 0xff), HelloError::NotUtf8 { valid_bytes: 0 });
    }

    #[test]
    fn refuses_each_broken_field_of_a_response() {
        let decode = |at: usize, byte: u8| {
            let mut body = response_bytes(&response());
            body[at] = byte;
            HelloResponse::decode(&body).unwrap_err()
        };
        assert_eq!(decode(7, 2), HelloError::TooManyApis { max: 256, found: 512 + response().apis.len() });
        assert_eq!(decode(39, 1), HelloError::ReservedNotZero);
        assert_eq!(decode(40, 0xff), HelloError::NotUtf8 { valid_bytes: 0 });
        let first_api = RESPONSE_BYTES + response().broker_version.len();
        assert_eq!(decode(first_api, 9), HelloError::ApisOutOfOrder { found: 1 });
        assert_eq!(decode(first_api + 2, 9), HelloError::Range { min: 9, max: 0 });
    }

    #[test]
    fn a_protocol_is_chosen_from_both_ranges_or_not_at_all() {
        let protocol = |protocol_min, protocol_max| HelloRequest { protocol_min, protocol_max, ..request() }.protocol();
        assert_eq!(protocol(0, 9), Some(PROTOCOL_VERSION));
        assert_eq!(protocol(1, 1), Some(PROTOCOL_VERSION));
        assert_eq!(protocol(2, 9), None);
    }

    #[test]
    fn is_total_on_random_and_on_damaged_bytes() {
        let mut seeded = Seeded::new(0x5eed_4e11);
        let valid = [request_bytes(&request()), response_bytes(&response())];
        for round in 0..20_000 {
            let mut body = if round % 2 == 0 { seeded.bytes(128) } else { valid[round / 2 % 2].clone() };
            for _ in 0..seeded.below(4) {
                let at = seeded.below(body.len().max(1));
                if let Some(byte) = body.get_mut(at) {
                    *byte = seeded.next() as u8;
                }
            }
            if let Ok(request) = HelloRequest::decode(&body) {
                assert_eq!(request_bytes(&request), body);
            }
            if let Ok(response) = HelloResponse::decode(&body) {
                assert_eq!(response_bytes(&response), body);
            }
        }
    }
}
