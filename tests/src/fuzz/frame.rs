//! The body of the target `frame`: headers, hellos and every body of every API; knows no connection and no batch.
//!
//! The input is a whole frame where its header says so, else a body. The body is read as everything that a body may
//! be, whatever API the header names, so that a golden body is a seed as it is.

use super::memory::{assert_counted, within};
use coulee_protocol::api::error_body::ErrorBody;
use coulee_protocol::api::{APIS, Api, ApiKey, Body, Check, access, decode, encode, open};
use coulee_protocol::api::{broker, fetch, groups, list_offsets, members, metadata, offsets, produce, stats, topics};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader, split};
use coulee_protocol::hello::{HelloRequest, HelloResponse};
use coulee_protocol::limits::FRAME_BYTES_MAX;
use std::fmt::Debug;

/// A value takes at most this many times its archive: 24 bytes stand for each 8 of an archived `Vec`.
const VALUE_RATIO: usize = 3;
/// What a value may take beyond that: nothing is rounded up but the small.
const VALUE_BYTES: usize = 64;
/// The set in which `check` looks for keys that come twice, over their archives.
const CHECK_RATIO: usize = 4;

/// Reads `bytes` as a frame and as a body.
///
/// # Panics
/// When a property breaks: a decoder allocates by a length it has not checked, or what it took does not come back.
pub fn frame(bytes: &[u8]) {
    assert_counted();
    if let Some(head) = bytes.first_chunk::<FRAME_HEADER_BYTES>() {
        header(head);
    }
    let (body, batches) = match within(0, "splitting a frame", || split(bytes)) {
        Ok((header, body, batches)) => {
            assert_eq!(FRAME_HEADER_BYTES + body.len() + batches.len(), bytes.len());
            row(&header);
            (body, batches)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_ne!(error.code(), ErrorCode::None);
            (bytes, &[][..])
        }
    };
    for row in APIS {
        for version in row.min..=row.max {
            request(row.key, version, body);
            response(row.key, version, body, batches);
        }
    }
    error_body(body);
}

/// A header that is taken comes back bit by bit and keeps its lengths within the limit.
fn header(head: &[u8; FRAME_HEADER_BYTES]) {
    for limit in [0, FRAME_HEADER_BYTES, 4_096, usize::MAX] {
        if let Ok(header) = within(0, "decoding a frame header", || FrameHeader::decode(head, limit)) {
            assert_eq!(&header.encode(), head);
            assert!(header.len as usize <= limit.min(FRAME_BYTES_MAX));
            assert_eq!(header.rest_bytes(), header.body_len as usize + header.batches_bytes());
        }
    }
}

/// A number or version that the table lacks is refused with an answer that can be sent and read.
fn row(header: &FrameHeader) {
    match within(0, "looking an API up", || Api::find(header.api, header.version)) {
        Ok(row) => assert_eq!((row.key.code(), true), (header.api, (row.min..=row.max).contains(&header.version))),
        Err(error) => {
            let mut body = Vec::new();
            let len = encode(&ErrorBody::new(error.code(), &error.to_string()), &mut body);
            let answer = FrameHeader::response(header, error.code(), len, 0);
            let frame = [&answer.encode()[..], &body].concat();
            let (read, body, batches) = split(&frame).expect("an answer of ours is a frame");
            assert_eq!((read, batches.len()), (answer, 0));
            let refused = access::<ErrorBody>(body).expect("an answer of ours has an error body");
            assert_eq!(refused.detail(), Ok(error.to_string().as_str()));
        }
    }
}

fn request(api: ApiKey, version: u16, body: &[u8]) {
    match (api, version) {
        (ApiKey::Hello, 0) => hello_request(body),
        (ApiKey::Metadata, 1) => checked::<metadata::v1::Request>(body),
        (ApiKey::Produce, 1) => checked::<produce::v1::Request>(body),
        (ApiKey::Fetch, 1) => checked::<fetch::v1::Request>(body),
        (ApiKey::ListOffsets, 1) => checked::<list_offsets::v1::Request>(body),
        (ApiKey::CreateTopic, 1) => checked::<topics::v1::CreateRequest>(body),
        (ApiKey::DeleteTopic, 1) => checked::<topics::v1::DeleteRequest>(body),
        (ApiKey::AlterTopic, 1) => checked::<topics::v1::AlterRequest>(body),
        (ApiKey::DescribeTopic, 1) => checked::<topics::v1::DescribeRequest>(body),
        (ApiKey::Stats, 1) => checked::<stats::v1::Request>(body),
        (ApiKey::DescribeBroker, 1) => checked::<broker::v1::Request>(body),
        (ApiKey::FindCoordinator, 1) => checked::<members::v1::FindRequest>(body),
        (ApiKey::JoinGroup, 1) => checked::<members::v1::JoinRequest>(body),
        (ApiKey::SyncGroup, 1) => checked::<members::v1::SyncRequest>(body),
        (ApiKey::Heartbeat, 1) => checked::<members::v1::HeartbeatRequest>(body),
        (ApiKey::LeaveGroup, 1) => checked::<members::v1::LeaveRequest>(body),
        (ApiKey::OffsetCommit, 1) => checked::<offsets::v1::CommitRequest>(body),
        (ApiKey::OffsetFetch, 1) => checked::<offsets::v1::FetchRequest>(body),
        (ApiKey::ListGroups, 1) => checked::<groups::v1::ListRequest>(body),
        (ApiKey::DescribeGroup, 1) => checked::<groups::v1::DescribeRequest>(body),
        (ApiKey::DeleteGroup, 1) => checked::<groups::v1::DeleteRequest>(body),
        (ApiKey::OffsetDelete, 1) => checked::<offsets::v1::DeleteRequest>(body),
        (api, version) => panic!("the table lists {api} version {version}: read its request here"),
    }
}

fn response(api: ApiKey, version: u16, body: &[u8], batches: &[u8]) {
    match (api, version) {
        (ApiKey::Hello, 0) => hello_response(body),
        (ApiKey::Metadata, 1) => comes_back::<metadata::v1::Response>(body),
        (ApiKey::Produce, 1) => comes_back::<produce::v1::Response>(body),
        (ApiKey::Fetch, 1) => {
            comes_back::<fetch::v1::Response>(body);
            fetched(body, batches);
        }
        (ApiKey::ListOffsets, 1) => comes_back::<list_offsets::v1::Response>(body),
        (ApiKey::CreateTopic, 1) => comes_back::<topics::v1::CreateResponse>(body),
        (ApiKey::DeleteTopic, 1) => comes_back::<topics::v1::DeleteResponse>(body),
        (ApiKey::AlterTopic, 1) => comes_back::<topics::v1::AlterResponse>(body),
        (ApiKey::DescribeTopic, 1) => comes_back::<topics::v1::DescribeResponse>(body),
        (ApiKey::Stats, 1) => comes_back::<stats::v1::Response>(body),
        (ApiKey::DescribeBroker, 1) => comes_back::<broker::v1::Response>(body),
        (ApiKey::FindCoordinator, 1) => comes_back::<members::v1::FindResponse>(body),
        (ApiKey::JoinGroup, 1) => comes_back::<members::v1::JoinResponse>(body),
        (ApiKey::SyncGroup, 1) => comes_back::<members::v1::SyncResponse>(body),
        (ApiKey::Heartbeat, 1) => comes_back::<members::v1::HeartbeatResponse>(body),
        (ApiKey::LeaveGroup, 1) => comes_back::<members::v1::LeaveResponse>(body),
        (ApiKey::OffsetCommit, 1) => comes_back::<offsets::v1::ResultsResponse>(body),
        (ApiKey::OffsetFetch, 1) => comes_back::<offsets::v1::FetchResponse>(body),
        (ApiKey::ListGroups, 1) => comes_back::<groups::v1::ListResponse>(body),
        (ApiKey::DescribeGroup, 1) => comes_back::<groups::v1::DescribeResponse>(body),
        (ApiKey::DeleteGroup, 1) => comes_back::<groups::v1::DeleteResponse>(body),
        (ApiKey::OffsetDelete, 1) => comes_back::<offsets::v1::ResultsResponse>(body),
        (api, version) => panic!("the table lists {api} version {version}: read its response here"),
    }
}

/// What decodes encodes, and decodes to the same again.
fn comes_back<T: Body + PartialEq + Debug>(body: &[u8]) {
    let readable = within(0, "validating a body", || access::<T>(body).is_ok());
    let value = within(VALUE_RATIO * body.len() + VALUE_BYTES, "decoding a body", || decode::<T>(body));
    assert_eq!(readable, value.is_ok(), "validation and decoding disagree");
    let Ok(value) = value else { return };
    let mut first = Vec::new();
    assert_eq!(encode(&value, &mut first), first.len());
    let again = decode::<T>(&first).expect("what was encoded decodes");
    assert_eq!(again, value);
    let mut second = Vec::new();
    encode(&again, &mut second);
    assert_eq!(first, second, "one value has two encodings");
}

/// The same for a request, whose checks answer or refuse, also after encoding again.
fn checked<T: Body<Archived: Check> + PartialEq + Debug>(body: &[u8]) {
    comes_back::<T>(body);
    let opened = within(CHECK_RATIO * body.len() + VALUE_BYTES, "checking a body", || open::<T>(body).map(|_| ()));
    match decode::<T>(body) {
        Ok(value) => {
            let mut again = Vec::new();
            encode(&value, &mut again);
            assert_eq!(open::<T>(&again).map(|_| ()), opened, "the checks depend on the encoding");
        }
        Err(error) => assert_eq!(opened, Err(error)),
    }
    if let Err(error) = opened {
        assert_ne!(error.code(), ErrorCode::None);
        assert!(!error.to_string().is_empty());
    }
}

fn fetched(body: &[u8], batches: &[u8]) {
    let Ok(archived) = access::<fetch::v1::Response>(body) else { return };
    let expected: u64 = archived.partitions.iter().map(|partition| u64::from(partition.batches_len.to_native())).sum();
    assert_eq!(archived.check_batches(batches.len()).is_ok(), expected == batches.len() as u64);
}

fn error_body(body: &[u8]) {
    comes_back::<ErrorBody>(body);
    let Ok(archived) = access::<ErrorBody>(body) else { return };
    let texts = (archived.message().is_ok(), archived.detail().is_ok(), archived.outcome().code());
    assert!(texts.2 <= 2, "an outcome without a number");
}

fn hello_request(body: &[u8]) {
    let Ok(request) = within(0, "decoding a hello", || HelloRequest::decode(body)) else { return };
    let mut again = Vec::new();
    request.encode(&mut again).expect("what was decoded encodes");
    assert_eq!(again, body);
    assert_eq!(request.protocol().is_some(), request.protocol_min <= 1 && request.protocol_max >= 1);
}

fn hello_response(body: &[u8]) {
    let decoded = within(body.len() + VALUE_BYTES, "decoding a hello's answer", || HelloResponse::decode(body));
    let Ok(response) = decoded else { return };
    let mut again = Vec::new();
    response.encode(&mut again).expect("what was decoded encodes");
    assert_eq!(again, body);
    assert!(response.apis.iter().all(|range| response.versions(range.api) == Some(*range)));
}
