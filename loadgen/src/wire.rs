//! One plain socket that never waits, and the frames that come in on it; knows no request.
//!
//! Sketch: one system call for all frames that have come, none of them copied; what is left of the last one is moved to
//! the front of the buffer.

use crate::fault::Fault;
use coulee_protocol::api::ApiKey;
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader, split};
use coulee_protocol::hello::{AUTH_NONE, HelloRequest, HelloResponse, PROTOCOL_VERSION};
use coulee_protocol::ids::ShardId;
use coulee_protocol::limits::FRAME_BYTES_MAX;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;

/// Room for answers that are small.
pub(crate) const SMALL_ROOM: usize = 256 << 10;

/// A frame in the buffer.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) header: FrameHeader,
    /// Where body and batches lie.
    pub(crate) body: Range<usize>,
    pub(crate) batches: Range<usize>,
}

/// A connection to a broker that has said Hello.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Bytes of whole frames that were looked at.
    taken: usize,
    filled: usize,
}

impl Wire {
    /// Connects to the shard that owns what will be asked for, or to a bare server, which takes no Hello.
    pub(crate) fn connect(address: SocketAddr, shard: Option<ShardId>, room: usize) -> Result<Self, Fault> {
        let mut wire = Self::plain(address, room)?;
        if let Some(shard) = shard {
            wire.greet(shard)?;
        }
        wire.stream.set_nonblocking(true).map_err(Fault::machine("a socket that does not wait"))?;
        Ok(wire)
    }

    /// Says Hello and waits for the answer.
    fn greet(&mut self, shard: ShardId) -> Result<(), Fault> {
        let mut body = Vec::new();
        let hello = HelloRequest {
            protocol_min: PROTOCOL_VERSION,
            protocol_max: PROTOCOL_VERSION,
            features: 0,
            wanted_shard: Some(shard),
            client_name: concat!("coulee-loadgen/", env!("CARGO_PKG_VERSION")),
            auth_mechanism: AUTH_NONE,
            credentials: &[],
        };
        hello.encode(&mut body).expect("the name is short and there are no credentials");
        let header = FrameHeader::request(ApiKey::Hello.code(), 0, 0, body.len(), 0).encode();
        self.stream.write_all(&[&header[..], &body].concat()).map_err(Fault::machine("hello"))?;
        let mut answer = vec![0; FRAME_HEADER_BYTES];
        self.stream.read_exact(&mut answer).map_err(Fault::machine("the answer to hello"))?;
        let head = answer.first_chunk().expect("it was just read");
        let header = FrameHeader::decode(head, FRAME_BYTES_MAX).map_err(|error| Fault::wire("hello", error))?;
        answer.resize(header.len as usize, 0);
        let rest = &mut answer[FRAME_HEADER_BYTES..];
        self.stream.read_exact(rest).map_err(Fault::machine("the answer to hello"))?;
        let (header, body, _) = split(&answer).map_err(|error| Fault::wire("hello", error))?;
        if header.error != 0 {
            return Err(refusal(&header, body));
        }
        let hello = HelloResponse::decode(body).map_err(|error| Fault::wire("hello", error))?;
        if hello.shard != shard {
            return Err(Fault::wire("hello", format!("shard {}, expected {shard}", hello.shard)));
        }
        Ok(())
    }

    /// Connects and says nothing; it still waits.
    fn plain(address: SocketAddr, room: usize) -> Result<Self, Fault> {
        let stream = TcpStream::connect(address).map_err(Fault::machine("connect"))?;
        stream.set_nodelay(true).map_err(Fault::machine("nodelay"))?;
        Ok(Self { stream, buffer: vec![0; room], taken: 0, filled: 0 })
    }

    pub(crate) const fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads once. Whether the socket may have more.
    pub(crate) fn receive(&mut self) -> Result<bool, Fault> {
        self.make_room();
        let room = &mut self.buffer[self.filled..];
        let wanted = room.len();
        match self.stream.read(room) {
            Ok(0) => Err(Fault::wire("an answer", "the broker has closed the connection")),
            Ok(count) => {
                self.filled += count;
                Ok(count == wanted)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(Fault::Machine { what: "an answer", error }),
        }
    }

    /// Moves what is left to the front, and makes the buffer as large as the frame at hand.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        if let Some(len) = self.buffer[..self.filled].first_chunk::<4>() {
            let len = (u32::from_le_bytes(*len) as usize).min(FRAME_BYTES_MAX);
            if len > self.buffer.len() {
                self.buffer.resize(len, 0);
            }
        }
    }

    /// The next whole frame.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, Fault> {
        let Some(head) = self.buffer[self.taken..self.filled].first_chunk() else { return Ok(None) };
        let header = FrameHeader::decode(head, FRAME_BYTES_MAX).map_err(|error| Fault::wire("an answer", error))?;
        let (start, end) = (self.taken, self.taken + header.len as usize);
        if end > self.filled {
            return Ok(None);
        }
        self.taken = end;
        let batches_at = start + FRAME_HEADER_BYTES + header.body_len as usize;
        Ok(Some(Frame { header, body: start + FRAME_HEADER_BYTES..batches_at, batches: batches_at..end }))
    }

    /// Bytes of a frame that was just taken.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// Sends as much as the socket takes now; 0 when it takes nothing.
    pub(crate) fn send(&mut self, slices: &[IoSlice<'_>]) -> Result<usize, Fault> {
        match self.stream.write_vectored(slices) {
            Ok(count) => Ok(count),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(error) => Err(Fault::Machine { what: "a request", error }),
        }
    }
}

/// The fault that an answer with an error stands for.
pub(crate) fn refusal(header: &FrameHeader, body: &[u8]) -> Fault {
    use coulee_protocol::api::{access, error_body::ErrorBody};
    let message = access::<ErrorBody>(body).map_or_else(
        |error| error.to_string(),
        |body| format!("{} {}", body.message().unwrap_or_default(), body.detail().unwrap_or_default()),
    );
    Fault::Refused { code: header.error, message }
}
