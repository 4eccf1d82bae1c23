//! A peer that speaks the protocol over a real socket: owns frames and Hello; decides nothing, tests say each answer.

use coulee_protocol::api::{Body, decode, encode, error_body::ErrorBody, metadata::v1 as metadata, ranges};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader};
use coulee_protocol::hello::{HelloRequest, HelloResponse, PROTOCOL_VERSION};
use coulee_protocol::ids::{ClusterId, ShardId};
use coulee_protocol::limits::FRAME_BYTES_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Where clients connect to.
pub(crate) struct Door {
    listener: TcpListener,
    pub(crate) address: String,
}

/// One connection.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    /// The shard that Hello named.
    pub(crate) wanted_shard: Option<ShardId>,
}

/// One request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) header: FrameHeader,
    body: Vec<u8>,
    pub(crate) batch: Vec<u8>,
}

impl Request {
    pub(crate) fn body<T: Body>(&self) -> T {
        decode(&self.body).expect("the client sends sound bodies")
    }
}

impl Door {
    pub(crate) async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self { listener, address }
    }

    /// The next connection, before Hello.
    pub(crate) async fn accept_raw(&self) -> Peer {
        Peer { stream: self.listener.accept().await.unwrap().0, wanted_shard: None }
    }

    /// The next connection, greeted by the shard that it wants, or by shard 0.
    pub(crate) async fn accept(&self) -> Peer {
        let mut peer = self.accept_raw().await;
        let request = peer.request().await.expect("hello comes first");
        let hello = HelloRequest::decode(&request.body).unwrap();
        assert!(hello.client_name.starts_with("coulee-client"));
        peer.wanted_shard = hello.wanted_shard;
        let response = HelloResponse {
            protocol: PROTOCOL_VERSION,
            features: 0,
            broker_version: "0.0.0",
            cluster_id: ClusterId([9; 16]),
            shard: hello.wanted_shard.unwrap_or_default(),
            shards: 2,
            apis: ranges().collect(),
        };
        let mut body = Vec::new();
        response.encode(&mut body).unwrap();
        let header = FrameHeader::response(&request.header, ErrorCode::None, body.len(), 0);
        peer.send(&[&header.encode()[..], &body].concat()).await;
        peer
    }
}

impl Peer {
    /// The next request, or `None` when the client has closed.
    pub(crate) async fn request(&mut self) -> Option<Request> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.stream.read_exact(&mut header).await.ok()?;
        let header = FrameHeader::decode(&header, FRAME_BYTES_MAX).unwrap();
        let mut body = vec![0; header.rest_bytes()];
        self.stream.read_exact(&mut body).await.ok()?;
        let batch = body.split_off(header.body_len as usize);
        Some(Request { header, body, batch })
    }

    /// Sends bytes as they are. The client may have gone away.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes).await);
    }

    pub(crate) async fn answer<T: Body>(&mut self, request: &Request, body: &T) {
        self.send(&answer(request, body, &[])).await;
    }

    pub(crate) async fn refuse(&mut self, request: &Request, code: ErrorCode) {
        self.send(&refusal(request, code)).await;
    }

    /// Answers the next request, which asks for the topic `t`, of `partitions` partitions with uids 1, 2, … on shard 0.
    pub(crate) async fn answer_metadata(&mut self, partitions: u32) {
        self.answer_metadata_of(partitions, ShardId(0)).await;
    }

    /// As [`Peer::answer_metadata`], with the partitions on another shard.
    pub(crate) async fn answer_metadata_of(&mut self, partitions: u32, shard: ShardId) {
        let request = self.request().await.expect("a request for metadata");
        let asked: metadata::Request = request.body();
        assert_eq!(asked.topics, [metadata::TopicName { name: b"t".to_vec() }]);
        let partition = |index| metadata::Partition {
            index,
            partition_uid: u64::from(index) + 1,
            shard: shard.0,
            ..Default::default()
        };
        let partitions = (0..partitions).map(partition).collect();
        let topic = metadata::Topic { name: b"t".to_vec(), partitions, ..Default::default() };
        self.answer(&request, &metadata::Response { topics: vec![topic], shards: 1, ..Default::default() }).await;
    }
}

/// The frame of an answer.
pub(crate) fn answer<T: Body>(request: &Request, body: &T, batches: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(body, &mut bytes);
    let header = FrameHeader::response(&request.header, ErrorCode::None, bytes.len(), batches.len());
    [&header.encode()[..], &bytes, batches].concat()
}

/// The frame of an answer with an error.
pub(crate) fn refusal(request: &Request, code: ErrorCode) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&ErrorBody::new(code, "a detail"), &mut bytes);
    let header = FrameHeader::response(&request.header, code, bytes.len(), 0);
    [&header.encode()[..], &bytes].concat()
}
