//! Bodies as archives: owns writing, validation and the errors of both; knows no API.
//!
//! An archive is written children first, root last, and its root is found from the end of the slice, so bodies are
//! always handed over with their exact length. Validation (bytecheck, in declaration order, no shared pointers) neither
//! allocates nor recurses deeper than the types nest.

use std::fmt;
use std::mem::{MaybeUninit, take};

use rkyv::api::low::{self, LowSerializer, LowValidator};
use rkyv::api::{deserialize_using, serialize_using};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::{Failure, Strategy};
use rkyv::ser::Serializer;
use rkyv::ser::allocator::{Arena, ArenaHandle, SubAllocator};
use rkyv::{Archive, Archived, Deserialize, Portable, Serialize};

use super::topics::TopicNameError;
use crate::error::ErrorCode;
use crate::limits::FRAME_BYTES_MAX;

/// Scratch on the stack while an archive is written; only nested `Vec`s need any (4 bytes an element).
const SCRATCH_BYTES: usize = 1_024;

/// What can be a body: any of the versioned request and response types.
pub trait Body:
    Sized
    + Archive<
        Archived: Portable + for<'a> CheckBytes<LowValidator<'a, Failure>> + Deserialize<Self, Strategy<(), Failure>>,
    > + for<'a> Serialize<LowSerializer<Vec<u8>, SubAllocator<'a>, Failure>>
    + for<'a> Serialize<LowSerializer<Vec<u8>, ArenaHandle<'a>, Failure>>
{
}

impl<T> Body for T where
    T: Archive<
            Archived: Portable + for<'a> CheckBytes<LowValidator<'a, Failure>> + Deserialize<T, Strategy<(), Failure>>,
        > + for<'a> Serialize<LowSerializer<Vec<u8>, SubAllocator<'a>, Failure>>
        + for<'a> Serialize<LowSerializer<Vec<u8>, ArenaHandle<'a>, Failure>>
{
}

/// What a request has to hold beyond being a valid archive.
pub trait Check {
    /// Checks counts, names, flags and ranges.
    ///
    /// # Errors
    /// The first rule that is broken, with what was expected and what was found.
    fn check(&self) -> Result<(), BodyError>;
}

/// Appends the archive of `value` and returns its length, which is the frame's `body_len`.
///
/// Allocates nothing but room in `out`, except for values with more than a few hundred nested `Vec`s.
///
/// # Panics
/// If `out` grows beyond 2³¹ bytes: bodies are bounded by their frame, which the sender checks.
pub fn encode<T: Body>(value: &T, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    let mut scratch = [MaybeUninit::<u8>::uninit(); SCRATCH_BYTES];
    let mut serializer = Serializer::new(take(out), SubAllocator::new(&mut scratch), ());
    let written: Result<usize, Failure> = serialize_using(value, &mut serializer);
    *out = serializer.into_writer();
    if written.is_err() {
        out.truncate(start);
        encode_with_arena(value, out);
    }
    assert!(out.len() < 1 << 31, "an archive's pointers reach 2^31 bytes, found {}", out.len());
    out.len() - start
}

/// The archive in `body`, validated, read in place.
///
/// # Errors
/// If the bytes are no archive of that type. Nothing is allocated.
pub fn access<T: Body>(body: &[u8]) -> Result<&Archived<T>, BodyError> {
    if body.len() > FRAME_BYTES_MAX {
        return Err(BodyError::Archive { bytes: body.len() });
    }
    low::access::<Archived<T>, Failure>(body).map_err(|_| BodyError::Archive { bytes: body.len() })
}

/// The request in `body`, validated and checked, read in place.
///
/// # Errors
/// As [`access`] and [`Check::check`].
pub fn open<T: Body<Archived: Check>>(body: &[u8]) -> Result<&Archived<T>, BodyError> {
    let archived = access::<T>(body)?;
    archived.check()?;
    Ok(archived)
}

/// The value in `body`, as a copy: what it allocates is bounded by the bytes that are there.
///
/// # Errors
/// As [`access`].
pub fn decode<T: Body>(body: &[u8]) -> Result<T, BodyError> {
    let archived = access::<T>(body)?;
    deserialize_using::<T, (), Failure>(archived, &mut ()).map_err(|_| BodyError::Archive { bytes: body.len() })
}

/// A text of a body.
///
/// # Errors
/// If the bytes are not UTF-8.
pub fn text<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a str, BodyError> {
    std::str::from_utf8(bytes).map_err(|error| BodyError::NotUtf8 { what, valid_bytes: error.valid_up_to() })
}

/// Why a body can't be used. The framing is intact: the connection survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// The bytes are no archive of the expected type.
    Archive {
        /// How many there are.
        bytes: usize,
    },
    /// A list is longer than allowed.
    TooMany {
        /// Of what.
        what: &'static str,
        /// The most.
        max: usize,
        /// What there was.
        found: usize,
    },
    /// A text is longer than allowed.
    TooLong {
        /// Which.
        what: &'static str,
        /// The most bytes.
        max: usize,
        /// What there was.
        found: usize,
    },
    /// A text is not UTF-8.
    NotUtf8 {
        /// Which.
        what: &'static str,
        /// Bytes before the first that are not.
        valid_bytes: usize,
    },
    /// A topic name breaks the rules for names.
    TopicName(TopicNameError),
    /// Flags that this version does not know.
    UnknownFlags {
        /// All that it knows.
        known: u8,
        /// What there was.
        found: u8,
    },
    /// A number outside its range.
    OutOfRange {
        /// Which.
        what: &'static str,
        /// The least.
        min: i128,
        /// The greatest.
        max: i128,
        /// What there was.
        found: i128,
    },
    /// The same key twice.
    Duplicate {
        /// Of what.
        what: &'static str,
    },
    /// Two fields that exclude each other.
    Contradiction {
        /// Which.
        what: &'static str,
    },
    /// The record batches are not as long as the body says.
    BatchesLength {
        /// What it says.
        expected: u64,
        /// Bytes after the body.
        found: u64,
    },
}

impl BodyError {
    /// The code of the answer.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TopicName(_) | Self::NotUtf8 { what: "topic name", .. } => ErrorCode::InvalidTopicException,
            Self::OutOfRange { what: "partitions", .. } => ErrorCode::InvalidPartitions,
            Self::OutOfRange { what: "acks", .. } => ErrorCode::InvalidRequiredAcks,
            Self::TooLong { what: "group", .. } | Self::NotUtf8 { what: "group", .. } => ErrorCode::InvalidGroupId,
            Self::TooLong { what: "offset metadata", .. } => ErrorCode::OffsetMetadataTooLarge,
            Self::TooMany { what: "configs", .. }
            | Self::TooLong { what: "config key" | "config value", .. }
            | Self::NotUtf8 { what: "config key" | "config value", .. }
            | Self::Duplicate { what: "config key" } => ErrorCode::InvalidConfig,
            _ => ErrorCode::InvalidRequest,
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Archive { bytes } => write!(formatter, "body of {bytes} bytes is no valid archive of its type"),
            Self::TooMany { what, max, found } => write!(formatter, "{found} {what}, expected at most {max}"),
            Self::TooLong { what, max, found } => {
                write!(formatter, "{what} of {found} bytes, expected at most {max}")
            }
            Self::NotUtf8 { what, valid_bytes } => write!(formatter, "{what} is not utf-8 after {valid_bytes} bytes"),
            Self::TopicName(error) => error.fmt(formatter),
            Self::UnknownFlags { known, found } => {
                write!(formatter, "flags {found:#04x}, expected none but {known:#04x}")
            }
            Self::OutOfRange { what, min, max, found } => {
                write!(formatter, "{what} is {found}, expected {min} to {max}")
            }
            Self::Duplicate { what } => write!(formatter, "the same {what} twice"),
            Self::Contradiction { what } => write!(formatter, "{what} exclude each other"),
            Self::BatchesLength { expected, found } => {
                write!(formatter, "body says {expected} bytes of record batches, found {found}")
            }
        }
    }
}

impl std::error::Error for BodyError {}

impl From<TopicNameError> for BodyError {
    fn from(error: TopicNameError) -> Self {
        Self::TopicName(error)
    }
}

/// Refuses flags outside `known`.
pub(crate) fn check_flags(found: u8, known: u8) -> Result<(), BodyError> {
    if found & !known == 0 { Ok(()) } else { Err(BodyError::UnknownFlags { known, found }) }
}

/// Refuses a list longer than `max`.
pub(crate) fn check_count(what: &'static str, found: usize, max: usize) -> Result<(), BodyError> {
    if found <= max { Ok(()) } else { Err(BodyError::TooMany { what, max, found }) }
}

/// Refuses a text longer than `max` bytes, or that is none.
pub(crate) fn check_text(what: &'static str, bytes: &[u8], max: usize) -> Result<(), BodyError> {
    if bytes.len() > max {
        return Err(BodyError::TooLong { what, max, found: bytes.len() });
    }
    text(what, bytes).map(|_| ())
}

/// Refuses a number outside `min` to `max`.
pub(crate) fn check_range(
    what: &'static str,
    found: impl Into<i128>,
    min: impl Into<i128>,
    max: impl Into<i128>,
) -> Result<(), BodyError> {
    let (found, min, max) = (found.into(), min.into(), max.into());
    if (min..=max).contains(&found) { Ok(()) } else { Err(BodyError::OutOfRange { what, min, max, found }) }
}

/// The second try, for values whose nested `Vec`s need more scratch than the stack gives.
fn encode_with_arena<T: Body>(value: &T, out: &mut Vec<u8>) {
    let mut arena = Arena::new();
    let mut serializer = Serializer::new(take(out), arena.acquire(), ());
    let written: Result<usize, Failure> = serialize_using(value, &mut serializer);
    *out = serializer.into_writer();
    assert!(written.is_ok(), "a vector and an arena refuse nothing");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::seeded::Seeded;
    use crate::api::{
        broker, error_body, fetch, groups, list_offsets, members, metadata, offsets, produce, stats, topics,
    };

    fn names(count: usize) -> metadata::v1::Request {
        let name = |index: usize| metadata::v1::TopicName { name: format!("topic-{index}").into_bytes() };
        metadata::v1::Request { topics: (0..count).map(name).collect(), flags: 0 }
    }

    #[test]
    fn roundtrips_below_and_above_the_scratch() {
        for count in [0, 1, 255, 256, 257, 5_000] {
            let mut out = Vec::new();
            assert_eq!(encode(&names(count), &mut out), out.len());
            assert_eq!(decode::<metadata::v1::Request>(&out).unwrap(), names(count));
        }
    }

    #[test]
    fn appends_and_leaves_what_was_there() {
        for count in [1, 1_000] {
            let mut out = b"header".to_vec();
            let len = encode(&names(count), &mut out);
            assert_eq!(&out[..6], b"header");
            assert_eq!(out.len(), 6 + len);
            // An archive does not depend on where it was written.
            let mut alone = Vec::new();
            encode(&names(count), &mut alone);
            assert_eq!(out[6..], alone);
        }
    }

    #[test]
    fn layout_is_children_first_root_last_pointers_from_their_own_place() {
        let mut out = Vec::new();
        encode(&metadata::v1::Request { flags: 2, ..names(1) }, &mut out);
        let expected: &[u8] = &[
            b't', b'o', b'p', b'i', b'c', b'-', b'0', // 0: the name
            0xf9, 0xff, 0xff, 0xff, 7, 0, 0, 0, // 7: the only element: 7 + (-7) = 0, 7 bytes
            0xf8, 0xff, 0xff, 0xff, 1, 0, 0, 0, 2, // 15: the root: 15 + (-8) = 7, 1 element; flags
        ];
        assert_eq!(out, expected);
        // The order that other writers may not take: the second field's data before the first's.
        let request = topics::v1::ConfigEntry { key: b"k".to_vec(), value: b"v".to_vec() };
        let mut out = Vec::new();
        encode(&request, &mut out);
        assert_eq!(access::<topics::v1::ConfigEntry>(&out).unwrap().value.as_slice(), b"v");
        let swapped = [b"vk", &[0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xfa, 0xff, 0xff, 0xff, 1, 0, 0, 0][..]].concat();
        assert_eq!(access::<topics::v1::ConfigEntry>(&swapped).unwrap_err(), BodyError::Archive { bytes: 18 });
    }

    #[test]
    fn refuses_pointers_out_of_the_body_and_overlaps() {
        let entry = |key: i32, key_len: u32, value: i32, value_len: u32| {
            let mut body = b"kv".to_vec();
            body.extend(key.to_le_bytes());
            body.extend(key_len.to_le_bytes());
            body.extend(value.to_le_bytes());
            body.extend(value_len.to_le_bytes());
            access::<topics::v1::ConfigEntry>(&body).map(|entry| (entry.key.to_vec(), entry.value.to_vec()))
        };
        let refused = Err(BodyError::Archive { bytes: 18 });
        assert_eq!(entry(-2, 1, -9, 1), Ok((b"k".to_vec(), b"v".to_vec())));
        assert_eq!(entry(-2, 0, -10, 0), Ok((vec![], vec![])));
        assert_eq!(entry(-3, 1, -9, 1), refused);
        assert_eq!(entry(-2, 3, -9, 1), refused);
        assert_eq!(entry(-2, 2, -9, 1), refused);
        assert_eq!(entry(-2, u32::MAX, -9, 1), refused);
        assert_eq!(entry(i32::MIN, 1, i32::MAX, 1), refused);
        assert_eq!(entry(0, 1, -9, 1), refused);
    }

    /// Damages valid archives of one type, and reads noise as that type.
    fn check_total<T: Body + PartialEq + fmt::Debug>(value: &T, seeded: &mut Seeded) {
        let mut valid = Vec::new();
        encode(value, &mut valid);
        assert_eq!(decode::<T>(&valid).as_ref(), Ok(value));
        let read = |body: &[u8]| {
            if let Ok(value) = decode::<T>(body) {
                let mut again = Vec::new();
                encode(&value, &mut again);
                assert_eq!(decode::<T>(&again), Ok(value));
            }
        };
        (0..valid.len()).for_each(|len| read(&valid[..len]));
        (0..valid.len()).for_each(|start| read(&valid[start..]));
        for _ in 0..2_000 {
            let mut damaged = valid.clone();
            for _ in 0..=seeded.below(3) {
                let at = seeded.below(damaged.len());
                damaged[at] = seeded.next() as u8;
            }
            read(&damaged);
            read(&seeded.bytes(96));
        }
    }

    #[test]
    fn every_body_is_total_on_truncated_damaged_and_random_bytes() {
        let mut seeded = Seeded::new(0x5eed_b0d1);
        check_total(
            &error_body::ErrorBody { message: b"no".to_vec(), detail: b"why".to_vec(), outcome: 1 },
            &mut seeded,
        );
        check_total(&names(3), &mut seeded);
        let partition = metadata::v1::Partition { index: 1, partition_uid: 9, ..Default::default() };
        let topic = metadata::v1::Topic { name: b"t".to_vec(), partitions: vec![partition; 2], ..Default::default() };
        let broker = metadata::v1::Broker { broker_id: 1, host: b"localhost".to_vec(), port: 7700 };
        let brokers = vec![broker; 2];
        check_total(
            &metadata::v1::Response { brokers, topics: vec![topic; 2], shards: 2, ..Default::default() },
            &mut seeded,
        );
        check_total(&produce::v1::Request::default(), &mut seeded);
        check_total(&produce::v1::Response::default(), &mut seeded);
        check_total(&fetch::v1::Request { partitions: vec![Default::default(); 3], ..Default::default() }, &mut seeded);
        check_total(&fetch::v1::Response { partitions: vec![Default::default(); 3] }, &mut seeded);
        check_total(&list_offsets::v1::Request { partitions: vec![Default::default(); 3] }, &mut seeded);
        check_total(&list_offsets::v1::Response { partitions: vec![Default::default(); 3] }, &mut seeded);
    }

    #[test]
    fn every_administrative_body_is_total_too() {
        let mut seeded = Seeded::new(0x5eed_b0d2);
        let configs = vec![topics::v1::ConfigEntry { key: b"k".to_vec(), value: b"v".to_vec() }; 2];
        let set = configs.clone();
        let removed = vec![topics::v1::ConfigKey { key: b"x".to_vec() }];
        let name = b"orders".to_vec();
        check_total(&topics::v1::CreateRequest { name: name.clone(), configs, ..Default::default() }, &mut seeded);
        check_total(&topics::v1::CreateResponse::default(), &mut seeded);
        check_total(&topics::v1::DeleteRequest { name: name.clone(), flags: 0 }, &mut seeded);
        check_total(&topics::v1::DeleteResponse::default(), &mut seeded);
        check_total(&topics::v1::AlterRequest { name: name.clone(), set, removed, ..Default::default() }, &mut seeded);
        check_total(&topics::v1::AlterResponse::default(), &mut seeded);
        check_total(&topics::v1::DescribeRequest { name, flags: 0 }, &mut seeded);
        let configs = vec![topics::v1::Config { key: b"k".to_vec(), value: b"v".to_vec(), origin: 1 }];
        let partitions = vec![Default::default(); 2];
        check_total(&topics::v1::DescribeResponse { partitions, configs, ..Default::default() }, &mut seeded);
        check_total(&stats::v1::Request::default(), &mut seeded);
        let counters = vec![stats::v1::CounterValue { id: 1, value: 7 }; 3];
        let buckets = vec![stats::v1::Bucket { le: 1, count: 2 }; 2];
        let histograms = vec![stats::v1::HistogramValue { id: 1, buckets }; 2];
        let shard = stats::v1::Shard { shard: 1, recovery_percent: 100, counters, histograms };
        check_total(&stats::v1::Response { shards: vec![shard; 2], ..Default::default() }, &mut seeded);
        check_total(&broker::v1::Request::default(), &mut seeded);
        let entry = broker::v1::Entry { key: b"shards".to_vec(), value: b"2".to_vec(), ..Default::default() };
        check_total(&broker::v1::Response { version: b"0.1.0".to_vec(), entries: vec![entry; 2] }, &mut seeded);
    }

    #[test]
    fn every_body_of_groups_is_total_too() {
        let mut seeded = Seeded::new(0x5eed_b0d3);
        let some = b"g".to_vec();
        check_total(&members::v1::FindRequest { group: some.clone() }, &mut seeded);
        check_total(&members::v1::FindResponse { host: some.clone(), ..Default::default() }, &mut seeded);
        let protocols = vec![members::v1::Protocol { name: some.clone(), metadata: b"m".to_vec() }; 2];
        check_total(&members::v1::JoinRequest { group: some.clone(), protocols, ..Default::default() }, &mut seeded);
        let joined = vec![members::v1::JoinedMember { member_id: some.clone(), ..Default::default() }; 2];
        check_total(&members::v1::JoinResponse { members: joined, ..Default::default() }, &mut seeded);
        let assignments = vec![members::v1::MemberAssignment { member_id: some.clone(), ..Default::default() }; 2];
        check_total(&members::v1::SyncRequest { assignments, ..Default::default() }, &mut seeded);
        check_total(&members::v1::SyncResponse { assignment: some.clone(), ..Default::default() }, &mut seeded);
        check_total(&members::v1::HeartbeatRequest { group: some.clone(), ..Default::default() }, &mut seeded);
        check_total(&members::v1::HeartbeatResponse::default(), &mut seeded);
        let leaving = vec![members::v1::Leaving { member_id: some.clone(), ..Default::default() }; 2];
        check_total(&members::v1::LeaveRequest { group: some.clone(), members: leaving }, &mut seeded);
        check_total(&members::v1::LeaveResponse { members: vec![Default::default(); 2] }, &mut seeded);
        let partitions = vec![offsets::v1::CommitPartition { metadata: some.clone(), ..Default::default() }; 2];
        let topics = vec![offsets::v1::CommitTopic { name: some.clone(), partitions }; 2];
        check_total(&offsets::v1::CommitRequest { topics, ..Default::default() }, &mut seeded);
        let partitions = vec![offsets::v1::PartitionResult::default(); 2];
        let topics = vec![offsets::v1::TopicResults { name: some.clone(), partitions }; 2];
        check_total(&offsets::v1::ResultsResponse { topics }, &mut seeded);
        let topics = vec![offsets::v1::TopicPartitions { name: some.clone(), partitions: vec![1, 2] }; 2];
        check_total(&offsets::v1::DeleteRequest { group: some.clone(), topics: topics.clone() }, &mut seeded);
        check_total(&offsets::v1::FetchRequest { group: some.clone(), topics, flags: 0 }, &mut seeded);
        let partitions = vec![offsets::v1::PartitionOffset { metadata: some.clone(), ..Default::default() }; 2];
        let topics = vec![offsets::v1::TopicOffsets { name: some.clone(), partitions }; 2];
        check_total(&offsets::v1::FetchResponse { topics }, &mut seeded);
        check_total(&groups::v1::ListRequest::default(), &mut seeded);
        let listed = vec![groups::v1::ListedGroup { group: some.clone(), ..Default::default() }; 2];
        check_total(&groups::v1::ListResponse { groups: listed }, &mut seeded);
        check_total(&groups::v1::DescribeRequest { group: some.clone() }, &mut seeded);
        let described = vec![groups::v1::DescribedMember { member_id: some.clone(), ..Default::default() }; 2];
        check_total(&groups::v1::DescribeResponse { members: described, ..Default::default() }, &mut seeded);
        check_total(&groups::v1::DeleteRequest { group: some, flags: 1 }, &mut seeded);
        check_total(&groups::v1::DeleteResponse::default(), &mut seeded);
    }
}
