//! A connection without the client crate: owns one socket and whole frames; repeats nothing and hides nothing.

use coulee_protocol::api::error_body::ErrorBody;
use coulee_protocol::api::{ApiKey, Body, decode, encode};
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::compression::Codec;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader};
use coulee_protocol::hello::{AUTH_NONE, HelloRequest, HelloResponse, PROTOCOL_VERSION};
use coulee_protocol::ids::{ShardId, Timestamp};
use coulee_protocol::limits::{BATCH_BYTES_MAX, FRAME_BYTES_MAX};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A broker that says nothing for so long has failed the test.
const SILENCE: Duration = Duration::from_secs(60);

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its frame's header.
    pub header: FrameHeader,
    /// Its body.
    pub body: Vec<u8>,
    /// Record batches behind it.
    pub batches: Vec<u8>,
}

impl Answer {
    /// The error, or [`ErrorCode::None`].
    ///
    /// # Panics
    /// If the code is not a known one.
    #[must_use]
    pub fn error(&self) -> ErrorCode {
        ErrorCode::from_code(self.header.error).expect("a broker sends codes that are documented")
    }

    /// The body of an answer without an error.
    ///
    /// # Panics
    /// If it is an error, or another body.
    #[must_use]
    pub fn read<T: Body>(&self) -> T {
        assert_eq!(self.error(), ErrorCode::None, "{}", self.detail());
        decode(&self.body).expect("the body of the answer")
    }

    /// Facts of an error; nothing of another answer.
    ///
    /// # Panics
    /// If the body of an error is none.
    #[must_use]
    pub fn detail(&self) -> String {
        if self.error() == ErrorCode::None {
            return String::new();
        }
        let body: ErrorBody = decode(&self.body).expect("the body of an error");
        String::from_utf8(body.detail).expect("details are text")
    }
}

/// One connection.
#[derive(Debug)]
pub struct Wire {
    socket: TcpStream,
    correlation: u32,
}

impl Wire {
    /// Connects and says nothing.
    ///
    /// # Panics
    /// If nobody listens.
    #[must_use]
    pub fn connect(address: &str) -> Self {
        let socket = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        socket.set_read_timeout(Some(SILENCE)).expect("a socket takes a timeout");
        socket.set_nodelay(true).expect("a socket takes this option");
        Self { socket, correlation: 0 }
    }

    /// Connects and has said Hello to the shard.
    #[must_use]
    pub fn open(address: &str, shard: Option<u16>) -> Self {
        let mut wire = Self::connect(address);
        let answer = wire.hello(shard);
        assert_eq!(answer.error(), ErrorCode::None, "{}", answer.detail());
        let response = HelloResponse::decode(&answer.body).expect("the answer to a Hello");
        assert!(shard.is_none_or(|shard| response.shard == ShardId(shard)), "{response:?}");
        wire
    }

    /// Says Hello.
    #[must_use]
    pub fn hello(&mut self, shard: Option<u16>) -> Answer {
        let body = hello_body(shard, PROTOCOL_VERSION);
        self.request(ApiKey::Hello.code(), 0, &body, &[])
    }

    /// Sends bytes as they are. The broker may have closed.
    pub fn send(&mut self, bytes: &[u8]) {
        drop(self.socket.write_all(bytes));
    }

    /// Sends a request and does not wait; its correlation.
    pub fn ask(&mut self, api: u16, version: u16, body: &[u8], batches: &[u8]) -> u32 {
        self.correlation += 1;
        let header = FrameHeader::request(api, version, self.correlation, body.len(), batches.len());
        self.send(&[&header.encode()[..], body, batches].concat());
        self.correlation
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Panics
    /// If another answer comes, or none.
    #[must_use]
    pub fn request(&mut self, api: u16, version: u16, body: &[u8], batches: &[u8]) -> Answer {
        let correlation = self.ask(api, version, body, batches);
        let answer = self.answer().expect("an answer before the connection is closed");
        assert_eq!((answer.header.api, answer.header.version), (api, version), "an answer repeats what it answers");
        assert_eq!(answer.header.correlation, correlation, "an answer repeats the correlation");
        answer
    }

    /// Sends a request of version 1 and waits for its answer.
    #[must_use]
    pub fn call<T: Body>(&mut self, api: ApiKey, body: &T, batches: &[u8]) -> Answer {
        self.request(api.code(), 1, &encoded(body), batches)
    }

    /// The next answer; `None` when the broker has closed the connection.
    ///
    /// # Panics
    /// If it is no response, or nothing comes for a minute.
    pub fn answer(&mut self) -> Option<Answer> {
        let mut header = [0; FRAME_HEADER_BYTES];
        match self.socket.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => return None,
            Err(error) => panic!("no answer: {error}"),
        }
        let header = FrameHeader::decode(&header, FRAME_BYTES_MAX).expect("a broker sends sound frames");
        assert!(header.is_response());
        let mut body = vec![0; header.rest_bytes()];
        self.socket.read_exact(&mut body).ok()?;
        let batches = body.split_off(header.body_len as usize);
        Some(Answer { header, body, batches })
    }
}

/// The bytes of a body.
#[must_use]
pub fn encoded<T: Body>(body: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(body, &mut bytes);
    bytes
}

/// The body of a Hello.
///
/// # Panics
/// Never: the name is short.
#[must_use]
pub fn hello_body(wanted_shard: Option<u16>, protocol: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let hello = HelloRequest {
        protocol_min: protocol,
        protocol_max: protocol,
        features: 0,
        wanted_shard: wanted_shard.map(ShardId),
        client_name: "tests",
        auth_mechanism: AUTH_NONE,
        credentials: &[],
    };
    hello.encode(&mut bytes).expect("a short name");
    bytes
}

/// A record batch with these values.
///
/// # Panics
/// If they are too many or too large.
#[must_use]
pub fn batch(values: &[&[u8]]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None, BATCH_BYTES_MAX);
    for value in values {
        let record = NewRecord { timestamp: Timestamp(1_000), key: None, value: Some(value), headers: &[] };
        builder.push(&record).expect("a batch has room for a few values");
    }
    builder.finish().expect("values that are not compressed make a batch")
}
