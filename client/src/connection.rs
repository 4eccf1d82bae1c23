//! One connection to one shard: owns the socket, the Hello and the task that moves bytes; knows no topic and no retry.
//!
//! One task owns everything: it reads, writes, matches answers and watches the time. Decisions are in plain state
//! machines beside it: [`frames`] cuts frames, [`outbox`] orders bytes, [`flight`] matches, bounds and judges losses.

pub(crate) mod flight;
pub(crate) mod frames;
pub(crate) mod outbox;

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coulee_protocol::api::{Api, ApiKey, Body, BodyError, decode, encode};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader};
use coulee_protocol::hello::{AUTH_NONE, ApiRange, HelloRequest, HelloResponse, PROTOCOL_VERSION};
use coulee_protocol::ids::{ClusterId, ShardId};
use coulee_protocol::limits::FRAME_BYTES_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use self::flight::{Cost, Flight, Lost, Violation};
use self::frames::{Frame, FrameReader};
use self::outbox::Outbox;
use crate::error::{ConnectError, HelloFault, Refusal};
use crate::limits::{COMMANDS_MAX, TICK, WRITE_SLICES};

/// What the broker said first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) shard: ShardId,
    pub(crate) shards: u16,
    pub(crate) cluster_id: ClusterId,
    pub(crate) broker_version: String,
    apis: Vec<ApiRange>,
}

impl Welcome {
    /// The greatest version of `api` that both sides know.
    pub(crate) fn version(&self, api: ApiKey) -> Option<u16> {
        let range = self.apis.iter().find(|range| range.api == api.code())?;
        let row = Api::find(api.code(), range.max).or_else(|_| Api::find(api.code(), 1)).ok()?;
        let version = range.max.min(row.max);
        (version >= range.min && version >= row.min).then_some(version)
    }
}

/// A request on its way to the connection.
#[derive(Debug)]
pub(crate) struct Command {
    api: ApiKey,
    /// Room for the frame's header, then the body.
    head: Vec<u8>,
    batch: Bytes,
    /// Whether an answer comes.
    is_answered: bool,
    answer_bytes: usize,
    deadline: Instant,
    reply: oneshot::Sender<Result<Frame, Failure>>,
}

/// The answer to come.
pub(crate) type Answer = oneshot::Receiver<Result<Frame, Failure>>;

impl Command {
    /// A request of `body` with `batch` behind it, and where its answer comes.
    pub(crate) fn new<T: Body>(api: ApiKey, body: &T, deadline: Instant) -> (Self, Answer) {
        let mut head = Vec::with_capacity(FRAME_HEADER_BYTES + 64);
        head.resize(FRAME_HEADER_BYTES, 0);
        encode(body, &mut head);
        let (reply, answer) = oneshot::channel();
        (Self { api, head, batch: Bytes::new(), is_answered: true, answer_bytes: 0, deadline, reply }, answer)
    }

    /// The record batch behind the body.
    pub(crate) fn with_batch(self, batch: Bytes, is_answered: bool) -> Self {
        Self { batch, is_answered, ..self }
    }

    /// Bytes of record batches that the answer may have.
    pub(crate) fn expecting(self, answer_bytes: usize) -> Self {
        Self { answer_bytes, ..self }
    }

    fn cost(&self) -> Cost {
        Cost { frame_bytes: self.head.len() + self.batch.len(), answer_bytes: self.answer_bytes }
    }
}

/// Why a request has no answer of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Its frame never left in whole.
    NotSent,
    /// Its frame has left and nothing came back.
    Unanswered,
    /// The broker refused.
    Refused(Refusal),
    /// The broker does not know the API.
    Unsupported(ApiKey),
    /// The answer can't be read.
    Unreadable(BodyError),
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::NotSent => Self::NotSent,
            Lost::Unanswered => Self::Unanswered,
        }
    }
}

/// How a client introduces itself.
#[derive(Clone, Debug)]
pub(crate) struct Greeting {
    pub(crate) client_name: String,
    pub(crate) timeout: Duration,
}

/// A connection; the task that owns it ends when the last of these is dropped, or the peer closes.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    commands: mpsc::Sender<Command>,
    pub(crate) welcome: Arc<Welcome>,
}

impl Connection {
    /// Connects and says Hello. When it returns, the named shard owns the connection, if it exists.
    pub(crate) async fn open(
        address: &str,
        greeting: &Greeting,
        wanted_shard: Option<ShardId>,
    ) -> Result<Self, ConnectError> {
        let opened = timeout(greeting.timeout, Self::shake_hands(address, greeting, wanted_shard)).await;
        let (stream, reader, welcome) =
            opened.unwrap_or_else(|_| Err(ConnectError::TimedOut { address: address.to_owned() }))?;
        let (commands, queue) = mpsc::channel(COMMANDS_MAX);
        tokio::spawn(Driver::new(stream, reader, queue, welcome.clone()).run());
        Ok(Self { commands, welcome })
    }

    async fn shake_hands(
        address: &str,
        greeting: &Greeting,
        wanted_shard: Option<ShardId>,
    ) -> Result<(TcpStream, FrameReader, Arc<Welcome>), ConnectError> {
        let unreachable =
            |error: io::Error| ConnectError::Unreachable { address: address.to_owned(), kind: error.kind() };
        let fault = |fault| ConnectError::NotABroker { address: address.to_owned(), fault };
        let hello = HelloRequest {
            protocol_min: PROTOCOL_VERSION,
            protocol_max: PROTOCOL_VERSION,
            features: 0,
            wanted_shard,
            client_name: &greeting.client_name,
            auth_mechanism: AUTH_NONE,
            credentials: &[],
        };
        let mut body = Vec::new();
        hello.encode(&mut body).map_err(ConnectError::ClientName)?;
        let header = FrameHeader::request(ApiKey::Hello.code(), 0, 0, body.len(), 0);
        let mut stream = TcpStream::connect(address).await.map_err(unreachable)?;
        // Latency of single records; a socket that refuses it still works.
        stream.set_nodelay(true).map_err(unreachable)?;
        stream.write_all(&[&header.encode()[..], &body].concat()).await.map_err(unreachable)?;
        let mut reader = FrameReader::default();
        let answer = loop {
            if let Some(frame) = reader.next_frame().map_err(|error| fault(HelloFault::Frame(error)))? {
                break frame;
            }
            if stream.read_buf(reader.room()).await.map_err(unreachable)? == 0 {
                return Err(fault(HelloFault::Closed));
            }
        };
        let welcome = welcome(&header, &answer).map_err(|error| match error {
            Ok(refusal) => ConnectError::Refused(refusal),
            Err(wrong) => fault(wrong),
        })?;
        Ok((stream, reader, Arc::new(welcome)))
    }

    /// Whether requests may still be handed over.
    pub(crate) fn is_open(&self) -> bool {
        !self.commands.is_closed()
    }

    /// Hands a request over, if there is room right now; gives it back otherwise.
    pub(crate) fn try_submit(&self, command: Command) -> Result<(), Command> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(command) | TrySendError::Closed(command) => command,
        })
    }

    /// Waits until there is room for a request, or the connection is lost.
    pub(crate) async fn room(&self) {
        // A closed connection has room for nothing, and nobody has to wait for it.
        drop(self.commands.reserve().await);
    }

    /// Hands a request over and waits for its answer.
    pub(crate) async fn call<Q: Body, R: Body>(&self, api: ApiKey, body: &Q, deadline: Instant) -> Result<R, Failure> {
        let (command, answer) = Command::new(api, body, deadline);
        let frame = self.exchange(command, answer).await?;
        decode(&frame.body).map_err(Failure::Unreadable)
    }

    /// As [`Connection::call`], with the frame as it came.
    pub(crate) async fn exchange(&self, command: Command, answer: Answer) -> Result<Frame, Failure> {
        if command.cost().frame_bytes > FRAME_BYTES_MAX {
            return Err(Failure::Refused(Refusal::of_code(ErrorCode::FrameTooLarge.code())));
        }
        if self.commands.send(command).await.is_err() {
            return Err(Failure::NotSent);
        }
        // The task answers everything, unless its runtime is being shut down.
        answer.await.unwrap_or(Err(Failure::Unanswered))
    }
}

/// What Hello's answer says, or the refusal, or what is wrong with it.
fn welcome(request: &FrameHeader, answer: &Frame) -> Result<Welcome, Result<Refusal, HelloFault>> {
    let header = &answer.header;
    if !header.is_response() {
        return Err(Err(HelloFault::Violation(Violation::NotAResponse)));
    }
    if header.error != 0 {
        return Err(Ok(Refusal::read(header.error, &answer.body)));
    }
    if header.correlation != request.correlation {
        return Err(Err(HelloFault::Violation(Violation::UnknownCorrelation { found: header.correlation })));
    }
    let (expected, found) = ((request.api, request.version), (header.api, header.version));
    if expected != found {
        return Err(Err(HelloFault::Violation(Violation::OtherApi { expected, found })));
    }
    let hello = HelloResponse::decode(&answer.body).map_err(|error| Err(HelloFault::Body(error)))?;
    if hello.protocol != PROTOCOL_VERSION {
        return Err(Err(HelloFault::Protocol { found: hello.protocol }));
    }
    Ok(Welcome {
        shard: hello.shard,
        shards: hello.shards,
        cluster_id: hello.cluster_id,
        broker_version: hello.broker_version.to_owned(),
        apis: hello.apis,
    })
}

/// The task that owns a connection.
#[derive(Debug)]
struct Driver {
    stream: TcpStream,
    queue: mpsc::Receiver<Command>,
    /// The next request, while there is no room for it in flight.
    waiting: Option<Command>,
    welcome: Arc<Welcome>,
    began: Instant,
    /// When the peer last said something.
    heard: Duration,
    /// Whether somebody can still submit.
    is_wanted: bool,
    machine: Machine,
}

/// Everything but the socket.
#[derive(Debug)]
struct Machine {
    reader: FrameReader,
    outbox: Outbox,
    flight: Flight<oneshot::Sender<Result<Frame, Failure>>>,
}

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// Nobody wants it any more, and nothing is in flight.
    Unwanted,
    /// It is lost, or the peer does not speak the protocol.
    Lost,
}

impl Driver {
    fn new(stream: TcpStream, reader: FrameReader, queue: mpsc::Receiver<Command>, welcome: Arc<Welcome>) -> Self {
        let machine = Machine { reader, outbox: Outbox::default(), flight: Flight::default() };
        Self {
            stream,
            queue,
            waiting: None,
            welcome,
            began: Instant::now(),
            heard: Duration::ZERO,
            is_wanted: true,
            machine,
        }
    }

    async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let end = loop {
            self.admit_waiting();
            let is_idle = self.machine.flight.is_empty() && self.machine.outbox.is_empty();
            if !self.is_wanted && is_idle && self.waiting.is_none() {
                break End::Unwanted;
            }
            if let Some(end) = self.step(&mut tick).await {
                break end;
            }
        };
        debug_assert!(matches!(end, End::Lost) || self.machine.flight.is_empty());
        // From here on submitting fails, so that what is found below is all there is.
        self.queue.close();
        for (reply, lost) in self.machine.flight.lose() {
            answer(reply, Err(lost.into()));
        }
        if let Some(command) = self.waiting.take() {
            answer(command.reply, Err(Failure::NotSent));
        }
        // Waits for those too who got their room before it was closed.
        while let Some(command) = self.queue.recv().await {
            answer(command.reply, Err(Failure::NotSent));
        }
    }

    /// Waits for whatever happens next and does what it asks for.
    async fn step(&mut self, tick: &mut tokio::time::Interval) -> Option<End> {
        let Machine { reader, outbox, flight } = &mut self.machine;
        let (mut read_half, mut write_half) = self.stream.split();
        let has_bytes = !outbox.is_empty();
        let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
        let filled = outbox.fill(&mut slices);
        tokio::select! {
            read = read_half.read_buf(reader.room()) => match read {
                Ok(0) | Err(_) => return Some(End::Lost),
                Ok(_) => {
                    self.heard = self.began.elapsed();
                    return self.machine.deliver().err();
                }
            },
            // Bytes count as gone when the kernel has taken them: an unfinished write has taken none.
            written = write_half.write_vectored(&slices[..filled]), if has_bytes => match written {
                Ok(0) | Err(_) => return Some(End::Lost),
                Ok(count) => {
                    outbox.advance(count);
                    while let Some(reply) = flight.sent(outbox.sent_end()) {
                        answer(reply, Ok(Frame::nothing()));
                    }
                }
            },
            command = self.queue.recv(), if self.is_wanted && self.waiting.is_none() => match command {
                Some(command) => self.waiting = Some(command),
                None => self.is_wanted = false,
            },
            _ = tick.tick(), if !flight.is_empty() => return self.watch(),
        }
        None
    }

    /// Takes requests up while there are any and room for them.
    fn admit_waiting(&mut self) {
        while let Some(command) = self.waiting.take().or_else(|| self.queue.try_recv().ok()) {
            if command.deadline <= Instant::now() {
                answer(command.reply, Err(Failure::NotSent));
                continue;
            }
            let Some(version) = self.welcome.version(command.api) else {
                answer(command.reply, Err(Failure::Unsupported(command.api)));
                continue;
            };
            if !self.machine.flight.has_room(command.cost()) {
                self.waiting = Some(command);
                return;
            }
            let now = self.began.elapsed();
            let deadline = command.deadline.saturating_duration_since(self.began);
            self.machine.admit(command, version, (now, deadline));
        }
    }

    /// Fails what has waited too long.
    fn watch(&mut self) -> Option<End> {
        let now = self.began.elapsed();
        if self.machine.flight.is_peer_gone(now, self.heard) {
            return Some(End::Lost);
        }
        for reply in self.machine.flight.expire(now) {
            answer(reply, Err(Failure::Unanswered));
        }
        None
    }
}

impl Machine {
    fn admit(&mut self, command: Command, version: u16, times: (Duration, Duration)) {
        let cost = command.cost();
        let Command { api, mut head, batch, is_answered, reply, .. } = command;
        let correlation = self.flight.correlation();
        let body_bytes = head.len() - FRAME_HEADER_BYTES;
        let header = FrameHeader::request(api.code(), version, correlation, body_bytes, batch.len());
        head[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        let frame_end = self.outbox.push(&head, batch);
        if is_answered {
            self.flight.admit(&header, frame_end, cost, times, reply);
        } else {
            self.flight.admit_silent(frame_end, cost, reply);
        }
    }

    /// Gives every whole frame to whom it answers.
    fn deliver(&mut self) -> Result<(), End> {
        while let Some(frame) = self.reader.next_frame().map_err(|_| End::Lost)? {
            let reply = self.flight.answer(&frame.header).map_err(|_| End::Lost)?;
            let Some(reply) = reply else { continue };
            let result = match frame.header.error {
                0 => Ok(frame),
                number => Err(Failure::Refused(Refusal::read(number, &frame.body))),
            };
            answer(reply, result);
        }
        Ok(())
    }
}

impl Frame {
    /// What a request without an answer is answered with.
    fn nothing() -> Self {
        Self { header: FrameHeader::default(), body: Bytes::new(), batches: Bytes::new() }
    }
}

/// Tells whoever asked; who has gone away doesn't want to know.
fn answer(reply: oneshot::Sender<Result<Frame, Failure>>, result: Result<Frame, Failure>) {
    drop(reply.send(result));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn welcome_with(apis: Vec<ApiRange>) -> Welcome {
        let (shard, cluster_id) = (ShardId(0), ClusterId::default());
        Welcome { shard, shards: 1, cluster_id, broker_version: String::new(), apis }
    }

    #[test]
    fn the_greatest_version_that_both_know_is_used() {
        let fetch = |min, max| ApiRange { api: ApiKey::Fetch.code(), min, max };
        assert_eq!(welcome_with(vec![fetch(1, 1)]).version(ApiKey::Fetch), Some(1));
        assert_eq!(welcome_with(vec![fetch(1, 9)]).version(ApiKey::Fetch), Some(1));
        assert_eq!(welcome_with(vec![fetch(2, 9)]).version(ApiKey::Fetch), None);
        assert_eq!(welcome_with(vec![fetch(1, 1)]).version(ApiKey::Produce), None);
    }
}
