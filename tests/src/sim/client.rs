//! One simulated client: what it does next, what it writes down of it; knows no shard but by its number.

use super::broker::{Reply, Request};
use super::network::{ConnectionId, Network};
use super::plan::{Plan, Shape};
use super::topics::{Asked, Topics};
use crate::checker::{Begun, Ended, Incident, Key, Op, Process, Recorder, Runs, Value};
use coulee_core::catalog::{CATALOG_TOPIC, Change, Topic};
use coulee_core::controller::View;
use coulee_core::executor::Random;
use coulee_core::log::reader::ReadError;
use coulee_core::partition::{Acks, ProduceError};
use coulee_core::shard::fetches::{FetchError, FetchPart, FetchSpec, FetchedPart};
use coulee_protocol::api::topics::Durability;
use coulee_protocol::batch::{BatchHeader, HEADER_BYTES, check_payload_crc};
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::columns::{Columns, Scratch};
use coulee_protocol::compression::Codec;
use coulee_protocol::ids::{Offset, PartitionUid, Timestamp, TopicId};
use std::collections::{BTreeMap, VecDeque};

/// What a client is there for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends records.
    Producer,
    /// Reads them.
    Consumer,
    /// Makes the first topics, and later others where it may.
    Operator(bool),
    /// Reads these partitions from the front to the end, once.
    Reader(VecDeque<(PartitionUid, Key)>),
}

/// An operation that waits for its answer.
enum Flight {
    Produce(Op),
    Fetch { op: Op, key: Key, from: Offset },
    Change(Vec<Op>),
}

/// What a client sees of the world when it acts.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The time, in microseconds; every record of the history has its own.
    pub now_us: u64,
    /// Chance.
    pub random: &'a mut Random,
    /// The network.
    pub network: &'a mut Network,
    /// All partitions that ever were.
    pub topics: &'a mut Topics,
    /// What the run is like.
    pub plan: &'a Plan,
    /// The next value that nobody has sent.
    pub next_value: &'a mut u64,
    /// Histories of processes that are over.
    pub over: &'a mut Vec<Recorder>,
    /// The next process.
    pub next_process: &'a mut u32,
}

/// A client. Each of its connections is a process of the history.
pub struct Client {
    role: Role,
    recorder: Recorder,
    connection: Option<(ConnectionId, u16)>,
    in_flight: BTreeMap<u64, Flight>,
    next_number: u64,
    /// When it acts next.
    pub next_us: u64,
    positions: BTreeMap<Key, Offset>,
    /// Fetches that failed on the broker's disk, and produces that were told of a partition that is offline.
    pub failed_reads: u64,
    /// See [`Client::failed_reads`].
    pub offline: u64,
    /// It begins nothing any more.
    pub resting: bool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Client({:?}, {} in flight)", self.role, self.in_flight.len())
    }
}

impl Client {
    /// A client that has not connected yet.
    #[must_use]
    pub const fn new(role: Role, process: u32) -> Self {
        Self {
            role,
            recorder: Recorder::new(Process(process)),
            connection: None,
            in_flight: BTreeMap::new(),
            next_number: 0,
            next_us: 0,
            positions: BTreeMap::new(),
            failed_reads: 0,
            offline: 0,
            resting: false,
        }
    }

    /// What it is there for, and what is left of it.
    #[must_use]
    pub const fn role(&self) -> &Role {
        &self.role
    }

    /// The shard that it is connected to.
    #[must_use]
    pub fn shard(&self) -> Option<u16> {
        self.connection.map(|(_, shard)| shard)
    }

    /// Its connection.
    #[must_use]
    pub fn connection_id(&self) -> Option<ConnectionId> {
        self.connection.map(|(id, _)| id)
    }

    /// Operations that wait.
    #[must_use]
    pub fn waits(&self) -> usize {
        self.in_flight.len()
    }

    /// What it has written down.
    #[must_use]
    pub fn into_recorder(self) -> Recorder {
        self.recorder
    }

    /// Its connection is gone: of what is in flight it learns nothing. The next one is another process.
    pub fn lose_connection(&mut self, scene: &mut Scene<'_>) {
        for flight in std::mem::take(&mut self.in_flight).into_values() {
            let ops = match flight {
                Flight::Produce(op) | Flight::Fetch { op, .. } => vec![op],
                Flight::Change(ops) => ops,
            };
            ops.into_iter().for_each(|op| self.recorder.end(scene.now_us, op, Ended::Unknown));
        }
        self.connection = None;
        *scene.next_process += 1;
        let fresh = Recorder::new(Process(*scene.next_process));
        scene.over.push(std::mem::replace(&mut self.recorder, fresh));
    }

    /// It connects to a shard.
    pub fn connect(&mut self, id: ConnectionId, shard: u16) {
        self.connection = Some((id, shard));
    }

    /// It does the next thing, where it may.
    pub fn act(&mut self, view: &View, scene: &mut Scene<'_>) {
        self.next_us = scene.now_us + 1 + scene.random.below(scene.plan.think_us);
        if !view.is_settled() || self.resting {
            // Nothing to do for a while: time may pass.
            self.next_us += 1_000 + scene.random.below(1_000);
            return;
        }
        match &mut self.role {
            Role::Producer if self.in_flight.len() < scene.plan.window => self.produce(view, scene),
            Role::Consumer if self.in_flight.is_empty() => self.consume(view, scene),
            Role::Operator(_) if self.in_flight.is_empty() => self.operate(view, scene),
            Role::Reader(left) if self.in_flight.is_empty() => {
                if let Some((uid, key)) = left.front().copied() {
                    self.fetch(uid, key, 0, scene);
                }
            }
            _ => {}
        }
    }

    /// A partition that the client sees, by chance.
    fn any_partition(view: &View, scene: &mut Scene<'_>) -> Option<(PartitionUid, Asked)> {
        let topics: Vec<&Topic> = view.catalog().topics().filter(|topic| &*topic.name != CATALOG_TOPIC).collect();
        let topic = topics.get(scene.random.below(topics.len().max(1) as u64) as usize)?;
        let number = scene.random.below(topic.partitions.len() as u64) as usize;
        let uid = topic.partitions[number].uid;
        let asked = scene.topics.find(topic.id, number as u32, uid);
        Some((uid, asked.unwrap_or_else(|| panic!("topic {} was made by nobody", topic.name))))
    }

    fn send(&mut self, flight: Flight, request: Request, scene: &mut Scene<'_>) {
        let Some((connection, _)) = self.connection else { return };
        self.next_number += 1;
        self.in_flight.insert(self.next_number, flight);
        scene.network.send(connection, self.next_number, request, scene.now_us, scene.random);
    }

    fn produce(&mut self, view: &View, scene: &mut Scene<'_>) {
        let Some((uid, asked)) = Self::any_partition(view, scene) else { return };
        let first = Value(*scene.next_value);
        let (batch, count) = batch(first.0, &scene.plan.shape, scene.random);
        *scene.next_value += count;
        let begun = Begun::Produce { key: asked.key, first, count: count as u32, once: true };
        let op = self.recorder.begin(scene.now_us, begun);
        if scene.random.below(40) == 0 {
            let Some((connection, _)) = self.connection else { return };
            let request = Request::Produce(uid, Acks::None, batch);
            scene.network.send(connection, u64::MAX, request, scene.now_us, scene.random);
            return;
        }
        self.send(Flight::Produce(op), Request::Produce(uid, Acks::Acknowledged, batch), scene);
    }

    fn consume(&mut self, view: &View, scene: &mut Scene<'_>) {
        let Some((uid, asked)) = Self::any_partition(view, scene) else { return };
        if scene.random.below(12) == 0 {
            self.positions.remove(&asked.key);
        }
        let wait_ms = if scene.random.below(3) == 0 { 0 } else { scene.random.below(50) };
        self.fetch(uid, asked.key, wait_ms, scene);
    }

    fn fetch(&mut self, uid: PartitionUid, key: Key, wait_ms: u64, scene: &mut Scene<'_>) {
        let from = self.positions.get(&key).copied().unwrap_or_default();
        let bytes_max = [1, 5_000, 1 << 20][scene.random.below(3) as usize];
        let parts = vec![FetchPart { partition: uid, offset: from, bytes_max }];
        let bytes_min = 1 + scene.random.below(2_000) as usize;
        let op = self.recorder.begin(scene.now_us, Begun::Fetch { key, from: Some(from) });
        let spec = FetchSpec { parts, bytes_min, bytes_max, wait_ms };
        self.send(Flight::Fetch { op, key, from }, Request::Fetch(spec), scene);
    }

    fn operate(&mut self, view: &View, scene: &mut Scene<'_>) {
        let topics: Vec<&Topic> = view.catalog().topics().filter(|topic| &*topic.name != CATALOG_TOPIC).collect();
        let few = (topics.len() as u64) < scene.plan.topics.0;
        let Role::Operator(busy) = self.role else { return };
        if !few && (!busy || scene.random.below(scene.plan.restless) > 0) {
            return;
        }
        let any = topics.get(scene.random.below(topics.len().max(1) as u64) as usize);
        match any.filter(|_| !few) {
            Some(topic) if scene.random.below(2) == 0 => {
                let keys = scene.topics.ask_removal(topic.id);
                let ops = keys.into_iter().map(|key| self.recorder.begin(scene.now_us, Begun::Delete(key))).collect();
                self.send(Flight::Change(ops), Request::Change(Change::Delete { name: topic.name.clone() }), scene);
            }
            Some(topic) => {
                let written = topic.config.durability == Durability::Written;
                let numbers = topic.partitions.len() as u32..topic.partitions.len() as u32 + 1;
                let partitions = numbers.end;
                let ops = self.ask_for(&topic.name.clone(), topic.id, numbers, written, scene);
                let name = topic.name.clone();
                let change = Change::Alter { name, set: vec![], removed: vec![], partitions };
                self.send(Flight::Change(ops), Request::Change(change), scene);
            }
            None => self.create(scene),
        }
    }

    fn create(&mut self, scene: &mut Scene<'_>) {
        let mut id = [1; 16];
        id[..8].copy_from_slice(&scene.random.next().to_le_bytes());
        let (id, name): (TopicId, Box<str>) = (TopicId(id), format!("topic-{}", scene.random.below(4)).into());
        let partitions = 1 + scene.random.below(scene.plan.topics.1) as u32;
        let written = scene.plan.some_written && scene.random.below(2) == 0;
        let bytes = if scene.plan.large_segments { "1048576" } else { "65536" };
        let mut settings: Vec<(Box<str>, Box<str>)> = vec![("segment.bytes".into(), bytes.into())];
        if written {
            settings.insert(0, ("durability".into(), "written".into()));
        }
        let ops = self.ask_for(&name, id, 0..partitions, written, scene);
        let change = Change::Create { topic_id: id, name, partitions, replication_factor: 1, settings };
        self.send(Flight::Change(ops), Request::Change(change), scene);
    }

    fn ask_for(
        &mut self,
        topic: &str,
        id: TopicId,
        numbers: std::ops::Range<u32>,
        written: bool,
        scene: &mut Scene<'_>,
    ) -> Vec<Op> {
        let keys: Vec<Key> = numbers.map(|number| scene.topics.ask(topic, id, number, written)).collect();
        keys.into_iter().map(|key| self.recorder.begin(scene.now_us, Begun::Create(key))).collect()
    }

    /// An answer has come.
    pub fn hear(&mut self, number: u64, reply: Reply, scene: &mut Scene<'_>) {
        let Some(flight) = self.in_flight.remove(&number) else { return };
        match (flight, reply) {
            (Flight::Produce(op), Reply::Produced(result)) => self.produced(op, result, scene.now_us),
            (Flight::Fetch { op, key, from }, Reply::Fetched(parts)) => {
                for part in parts {
                    self.fetched(op, key, from, part, scene);
                }
            }
            (Flight::Change(ops), Reply::Changed(result)) => {
                use coulee_core::catalog::ChangeError;
                use coulee_protocol::error::ErrorCode;
                let ended = match result {
                    Ok(_) => Ended::Done,
                    // The record may have been written, or the topic is made and cannot be opened.
                    Err(ChangeError::NotOpened | ChangeError::Log(ErrorCode::PartitionOffline)) => Ended::Unknown,
                    Err(_) => Ended::Failed,
                };
                ops.into_iter().for_each(|op| self.recorder.end(scene.now_us, op, ended.clone()));
            }
            (Flight::Produce(op) | Flight::Fetch { op, .. }, Reply::Refused) => {
                self.recorder.end(scene.now_us, op, Ended::Failed);
            }
            _ => unreachable!("an answer fits its request"),
        }
    }

    fn produced(&mut self, op: Op, result: Result<coulee_core::shard::Produced, ProduceError>, now_us: u64) {
        let ended = match result {
            Ok(produced) => Ended::Acked { base: produced.base_offset, high_watermark: Some(produced.high_watermark) },
            Err(ProduceError::Offline) => {
                self.offline += 1;
                Ended::Unknown
            }
            Err(ProduceError::Entry(error)) => panic!("a sound batch is refused: {error}"),
            // Its topic was removed while it was under way.
            Err(ProduceError::Unknown) => Ended::Unknown,
            Err(_) => Ended::Failed,
        };
        self.recorder.end(now_us, op, ended);
    }

    fn fetched(&mut self, op: Op, key: Key, from: Offset, part: FetchedPart, scene: &Scene<'_>) {
        let now_us = scene.now_us;
        let gone = scene.topics.of_uid(part.partition).is_some_and(|asked| asked.may_be_gone);
        let mut at_end = true;
        let ended = match part.batches {
            // The partition was removed while its file was read: nothing is known of its ends.
            Ok(_) if gone && part.high_watermark == Offset(0) => Ended::Failed,
            Ok(batches) => {
                let (runs, next) = read(&batches, from);
                at_end = next >= part.high_watermark;
                self.positions.insert(key, next);
                runs.fetched(part.high_watermark, part.log_start)
            }
            Err(FetchError::Read(ReadError::Damaged { from, to, .. })) => {
                at_end = false;
                self.positions.insert(key, to);
                Ended::Damaged { from, to }
            }
            Err(FetchError::Read(ReadError::Disk(_))) => {
                self.failed_reads += 1;
                at_end = false;
                Ended::Failed
            }
            Err(FetchError::OffsetOutOfRange) => {
                self.positions.remove(&key);
                Ended::OutOfRange
            }
            Err(FetchError::Absent(_) | FetchError::Overloaded) => Ended::Failed,
        };
        let seek = if let Ended::Damaged { to, .. } = ended { Some(to) } else { None };
        self.recorder.end(now_us, op, ended);
        if let Some(to) = seek {
            self.recorder.incident(now_us, Incident::Seek(key, to));
        }
        if let Role::Reader(left) = &mut self.role
            && at_end
        {
            left.pop_front();
        }
    }
}

/// A batch of values from `first` on, and how many.
fn batch(first: u64, shape: &Shape, random: &mut Random) -> (Vec<u8>, u64) {
    let large = random.below(100) < shape.large;
    let (records, bytes) = match (large, shape.equal) {
        (true, _) => (1 + random.below(2), 17_000 + random.below(20_000) as usize),
        (false, true) => (shape.records, shape.bytes as usize),
        (false, false) => (1 + random.below(shape.records), random.below(shape.bytes + 1) as usize),
    };
    let mut builder = BatchBuilder::new(Codec::None, 8 << 20);
    for value in first..first + records {
        let bytes = value_bytes(value, bytes);
        // Timestamps of their own would make no two batches alike.
        let record = NewRecord { timestamp: Timestamp(7), value: Some(&bytes), ..NewRecord::default() };
        builder.push(&record).expect("the batch has room");
    }
    (builder.finish().expect("the batch has records"), records)
}

/// The bytes that stand for a value: its number, then a pattern of it.
fn value_bytes(value: u64, bytes: usize) -> Vec<u8> {
    let mut out = value.to_le_bytes().to_vec();
    out.resize(bytes.max(8), (value % 251) as u8);
    out
}

/// The records of whole batches, and the offset behind them.
fn read(batches: &[coulee_core::block::Block], from: Offset) -> (Runs, Offset) {
    let (mut runs, mut next, mut scratch) = (Runs::default(), from, Scratch::default());
    for bytes in batches {
        let header = BatchHeader::decode(bytes).unwrap_or_else(|error| panic!("a fetch brings no batch: {error}"));
        let payload = &bytes[HEADER_BYTES..];
        assert!(
            check_payload_crc(&header, payload).is_ok(),
            "the payload at {} was changed",
            header.leader.base_offset
        );
        let columns = Columns::open(payload, &header, &mut scratch);
        let columns = columns.unwrap_or_else(|error| panic!("a batch cannot be opened: {error}"));
        for (offset, value) in (header.leader.base_offset.0..).zip(columns.values()) {
            runs.push(Offset(offset), value.map_or(Value::UNREADABLE, value_of));
        }
        next = next.max(header.end_offset());
    }
    (runs, next)
}

/// The value that bytes stand for.
fn value_of(bytes: &[u8]) -> Value {
    let Some((number, rest)) = bytes.split_first_chunk::<8>() else { return Value::UNREADABLE };
    let value = u64::from_le_bytes(*number);
    let pattern = (value % 251) as u8;
    if rest.iter().all(|byte| *byte == pattern) { Value(value) } else { Value::UNREADABLE }
}
