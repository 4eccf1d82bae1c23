//! One blocking connection of the native protocol, and the frames that the measurements send; knows no broker process.

use std::io::{Read, Write};
use std::net::TcpStream;

use coulee_protocol::api::{ApiKey, Body, decode, encode, fetch, metadata, produce, stats, topics};
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::compression::Codec;
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader};
use coulee_protocol::hello::{AUTH_NONE, HelloRequest, PROTOCOL_VERSION};
use coulee_protocol::ids::{ShardId, Timestamp};

use crate::Outcome;

/// A partition and the shard that owns it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) uid: u64,
    pub(crate) shard: ShardId,
}

pub(crate) struct Wire {
    pub(crate) socket: TcpStream,
}

pub(crate) fn frame<T: Body>(api: ApiKey, correlation: u32, request: &T, batch: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    encode(request, &mut body);
    let mut bytes = FrameHeader::request(api.code(), 1, correlation, body.len(), batch.len()).encode().to_vec();
    bytes.extend_from_slice(&body);
    bytes.extend_from_slice(batch);
    bytes
}

/// The frame that appends `batch` to a partition.
pub(crate) fn produce_frame(place: Place, correlation: u32, batch: &[u8]) -> Vec<u8> {
    let request =
        produce::v1::Request { partition_uid: place.uid, acks: produce::v1::ACKS_DURABLE, flags: 0, timeout_ms: 0 };
    frame(ApiKey::Produce, correlation, &request, batch)
}

/// The frame that asks for records of a partition from `offset` on.
pub(crate) fn fetch_frame(place: Place, correlation: u32, offset: u64, bytes_max: u32) -> Vec<u8> {
    let request = fetch::v1::Request {
        max_wait_ms: 1_000,
        min_bytes: 1,
        max_bytes: bytes_max,
        isolation: fetch::v1::READ_UNCOMMITTED,
        partitions: vec![fetch::v1::RequestPartition { partition_uid: place.uid, offset, max_bytes: bytes_max }],
    };
    frame(ApiKey::Fetch, correlation, &request, &[])
}

/// A batch of about `bytes`, of records of `record` bytes.
pub(crate) fn batch(bytes: usize, record: usize) -> Outcome<Vec<u8>> {
    let mut builder = BatchBuilder::new(Codec::None, bytes + bytes / 4 + 4_096);
    let value: Vec<u8> = (0..record).map(|at| (at * 31) as u8).collect();
    for _ in 0..(bytes / record).max(1) {
        let new = NewRecord { timestamp: Timestamp(1), key: None, value: Some(&value), headers: &[] };
        builder.push(&new).map_err(|error| format!("{error:?}"))?;
    }
    builder.finish().map_err(|error| format!("{error:?}").into())
}

pub(crate) fn hello_frame(shard: Option<ShardId>) -> Vec<u8> {
    let hello = HelloRequest {
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        features: 0,
        wanted_shard: shard,
        client_name: "strain",
        auth_mechanism: AUTH_NONE,
        credentials: &[],
    };
    let mut body = Vec::new();
    hello.encode(&mut body).expect("our own name fits");
    let mut bytes = FrameHeader::request(ApiKey::Hello.code(), 0, 0, body.len(), 0).encode().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

/// One whole frame of a stream: its header, and what follows.
pub(crate) fn read_frame(socket: &mut impl Read) -> std::io::Result<(FrameHeader, Vec<u8>)> {
    let mut head = [0; FRAME_HEADER_BYTES];
    socket.read_exact(&mut head)?;
    let header = FrameHeader::decode(&head, 64 << 20).map_err(std::io::Error::other)?;
    let mut rest = vec![0; header.rest_bytes()];
    socket.read_exact(&mut rest)?;
    Ok((header, rest))
}

impl Wire {
    /// Connects and says Hello, for a shard if one is named.
    pub(crate) fn open(address: &str, shard: Option<ShardId>) -> Outcome<Self> {
        let mut wire = Self { socket: TcpStream::connect(address)? };
        wire.socket.set_nodelay(true)?;
        wire.socket.write_all(&hello_frame(shard))?;
        wire.answer()?;
        Ok(wire)
    }

    fn answer(&mut self) -> Outcome<Vec<u8>> {
        let (header, rest) = read_frame(&mut self.socket)?;
        if header.error != 0 {
            return Err(format!("error {} to API {}: {}", header.error, header.api, lossy(&rest)).into());
        }
        Ok(rest)
    }

    fn ask<T: Body>(&mut self, api: ApiKey, request: &T) -> Outcome<Vec<u8>> {
        self.socket.write_all(&frame(api, 1, request, &[]))?;
        self.answer()
    }

    /// Appends a batch and waits for its ack.
    pub(crate) fn produce(&mut self, place: Place, batch: &[u8]) -> Outcome<u64> {
        self.socket.write_all(&produce_frame(place, 1, batch))?;
        let body = self.answer()?;
        let response: produce::v1::Response = decode(&body).map_err(|error| error.to_string())?;
        Ok(response.base_offset)
    }

    pub(crate) fn create_topic(&mut self, name: &str, partitions: u32) -> Outcome<()> {
        let request = topics::v1::CreateRequest {
            name: name.into(),
            partitions,
            replication_factor: 0,
            configs: Vec::new(),
            flags: 0,
        };
        self.ask(ApiKey::CreateTopic, &request).map(drop)
    }

    /// Every partition of every topic, topic by topic.
    pub(crate) fn places(&mut self) -> Outcome<Vec<Place>> {
        let request = metadata::v1::Request { topics: Vec::new(), flags: metadata::v1::FLAG_ALL_TOPICS };
        let body = self.ask(ApiKey::Metadata, &request)?;
        let response: metadata::v1::Response = decode(&body).map_err(|error| error.to_string())?;
        let partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
        Ok(partitions.map(|part| Place { uid: part.partition_uid, shard: ShardId(part.shard) }).collect())
    }

    /// The sum over all shards of one counter.
    pub(crate) fn counter(&mut self, counter: stats::Counter) -> Outcome<u64> {
        let body = self.ask(ApiKey::Stats, &stats::v1::Request { flags: 0 })?;
        let response: stats::v1::Response = decode(&body).map_err(|error| error.to_string())?;
        let all = response.shards.iter().flat_map(|shard| &shard.counters);
        Ok(all.filter(|value| value.id == counter.id()).map(|value| value.value).sum())
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|letter| !letter.is_control()).collect()
}
