//! Requests that take longer than their client waits: owns what becomes of them; knows no disk that is slow.

use super::*;
use crate::connection::{Connection, Stage};
use crate::facts::Facts;
use crate::message::{Answer, Message, Question};
use crate::shard::{News, Parts, Phase};
use coulee_core::block::BlockPool;
use coulee_core::catalog::{Catalog, Change};
use coulee_core::controller::Told;
use coulee_core::shard::{Produced, Shard, ShardOptions};
use coulee_io::control::Control;
use coulee_io::disk::FileDisk;
use coulee_io::mesh::{Mesh, MeshEnd};
use coulee_io::net::Socket;
use coulee_io::ring::{Ring, RingOptions};
use coulee_io::wake::Sleeper;
use coulee_io::watchdog::Watchdog;
use coulee_protocol::api::{ApiKey, encode, produce::v1 as produce};
use coulee_protocol::frame::FRAME_HEADER_BYTES;
use coulee_protocol::frame::FrameHeader;
use coulee_protocol::ids::{ClusterId, LeaderEpoch, Offset, PartitionUid, ShardId, TopicId};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

/// Shard 0 of two with one client. The other shard, which owns the partition, is a mere end of the mesh: what is sent
/// there is under way for as long as the test likes, as on a disk that does not finish a sync.
struct Scene {
    server: ShardServer,
    other: MeshEnd<Message>,
    client: UnixStream,
    uid: PartitionUid,
    _watchdog: Watchdog,
    _news: mpsc::Receiver<News>,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ring = Ring::new(RingOptions::default()).unwrap();
        let pool = BlockPool::new(0);
        let disk = FileDisk::open(dir.path(), ring.clone(), pool.clone()).unwrap();
        let options = ShardOptions { id: 0, tail_bytes: 0, pool_bytes: 0 };
        let core = ring.block_on(Shard::start(disk, pool.clone(), options)).unwrap().unwrap();
        let mut ends = Mesh::new(2).into_iter();
        let (mut mesh, other) = (ends.next().unwrap(), ends.next().unwrap());
        let sleeper = Sleeper::new(ring.eventfd().unwrap());
        mesh.attach(1, Sleeper::new(ring.eventfd().unwrap()).waker());
        let (watchdog, mut pulses) = Watchdog::start(1).unwrap();
        let (news, heard) = mpsc::channel();
        let facts = Facts {
            cluster_id: ClusterId([1; 16]),
            native: ([127, 0, 0, 1], 0).into(),
            entries: Vec::new(),
            connections_max: 10,
            shutdown_grace_ms: Facts::grace_ms(Duration::ZERO),
        };
        let parts = Parts {
            id: ShardId(0),
            ring,
            pool,
            core,
            mesh,
            sleeper,
            pulse: pulses.remove(0),
            listener: None,
            controller: None,
            facts,
            control: Control::default(),
            news,
            budget_bytes: 64 << 20,
        };
        let mut server = ShardServer::new(parts);
        let uid = tell_of_a_topic(&mut server);
        let (client, own) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        own.set_nonblocking(true).unwrap();
        server.adopt(Box::new(Connection::new(Socket::from_fd(OwnedFd::from(own)), Stage::Open)));
        Self { server, other, client, uid, _watchdog: watchdog, _news: heard, _dir: dir }
    }

    /// Sends a produce request, which the other shard gets; the number it has there.
    fn produce(&mut self, correlation: u32, timeout_ms: u32) -> RequestId {
        let mut body = Vec::new();
        encode(&produce::Request { partition_uid: self.uid.0, acks: 1, flags: 0, timeout_ms }, &mut body);
        let batch = [7; 256];
        let header = FrameHeader::request(ApiKey::Produce.code(), 1, correlation, body.len(), batch.len());
        self.client.write_all(&[&header.encode()[..], &body, &batch].concat()).unwrap();
        loop {
            self.server.cycle();
            if let Some((_, Message::Ask(number, Question::Produce(..)))) = self.other.receive() {
                return number;
            }
        }
    }

    /// Runs until this time is over.
    fn pass(&mut self, ms: u64) {
        let until_ms = self.server.now().monotonic_ms + ms;
        while self.server.now().monotonic_ms < until_ms {
            self.server.cycle();
        }
        self.server.cycle();
    }

    /// Correlation and error of the next answer, if there is one.
    fn answer(&mut self) -> Option<(u32, u16)> {
        let mut header = [0; FRAME_HEADER_BYTES];
        match self.client.read(&mut header) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            read => assert_eq!(read.unwrap(), header.len()),
        }
        let header = FrameHeader::decode(&header, 1 << 20).unwrap();
        self.client.read_exact(&mut vec![0; header.rest_bytes()]).unwrap();
        Some((header.correlation, header.error))
    }

    fn finish(&mut self, number: RequestId) {
        let (base_offset, log_start) = (Offset(5), Offset(0));
        let produced = Produced { base_offset, log_start, high_watermark: Offset(6), epoch: LeaderEpoch(0) };
        assert!(self.other.send(0, Message::Answer(number, Answer::Produced(Ok(produced)))).is_ok());
        self.server.cycle();
        self.server.cycle();
    }
}

/// Has the shard know a topic, and answers a partition of it that lies on shard 1.
fn tell_of_a_topic(server: &mut ShardServer) -> PartitionUid {
    let topic_id = TopicId([9; 16]);
    let name = "t".into();
    let change = Change::Create { topic_id, name, partitions: 2, replication_factor: 1, settings: Vec::new() };
    let record = Catalog::default().plan(change, 2).unwrap();
    server.send_to(ShardId(0), Message::Told(Told::Record(record)));
    server.send_to(ShardId(0), Message::Told(Told::Settled));
    server.cycle();
    let catalog = server.view.catalog();
    let lies_there = |uid: &PartitionUid| catalog.shard_of(*uid, 2) == Some(ShardId(1));
    catalog.partition_uids().find(lies_there).unwrap()
}

#[test]
fn a_produce_that_takes_longer_than_its_client_waits_is_answered_once_and_holds_its_room_until_it_is_done() {
    let mut scene = Scene::open();
    let for_ever = scene.produce(1, 0);
    let patient = scene.produce(2, u32::MAX);
    let hasty = scene.produce(3, 1);
    scene.pass(1);
    assert_eq!(scene.answer(), Some((3, ErrorCode::RequestTimedOut.code())));
    // Generations turn, deadlines are looked at, and nobody else is told anything.
    scene.pass(3 * OVERTIME_TICK_MS);
    assert_eq!(scene.answer(), None);
    assert_eq!(scene.server.pending.len(), 3, "the write goes on, and holds what it has held");
    scene.finish(hasty);
    assert_eq!(scene.answer(), None, "it was answered");
    assert_eq!(scene.server.pending.len(), 2);
    scene.finish(patient);
    scene.finish(for_ever);
    assert_eq!((scene.answer(), scene.answer()), (Some((2, 0)), Some((1, 0))));
    assert_eq!(scene.server.overtime.deadline_ms(), None, "nothing is left to wake up for");
    assert_eq!(scene.server.phase, Phase::Running);
}

#[test]
fn an_answer_to_a_client_that_has_gone_is_nobodys_when_its_time_is_over() {
    let mut scene = Scene::open();
    let number = scene.produce(1, 1);
    scene.client = UnixStream::pair().unwrap().0;
    scene.pass(1);
    scene.finish(number);
    assert_eq!(scene.server.pending.len(), 0);
}

fn pending() -> Pending {
    Pending {
        asker: Asker::Shard(ShardId(1), RequestId(0)),
        header: FrameHeader::default(),
        charge: Default::default(),
        reservation: None,
        began_us: 0,
        patience: Patience::Endless,
        gather: None,
    }
}

/// Notes a request.
fn note(overtime: &mut Overtime, slab: &mut Slab<Pending>, deadline_ms: u64) -> Key {
    let key = slab.insert(Pending { patience: Patience::Until(deadline_ms), ..pending() });
    overtime.note(slab, (deadline_ms, key));
    key
}

/// Answers a request.
fn answer(overtime: &mut Overtime, slab: &mut Slab<Pending>, key: Key) {
    let pending = slab.remove(key).unwrap();
    overtime.forget(key, pending.patience);
}

#[test]
fn requests_come_due_in_the_order_of_their_deadlines_and_none_before() {
    let (mut overtime, mut slab) = (Overtime::default(), Slab::default());
    let late = note(&mut overtime, &mut slab, 30_000);
    let soon = note(&mut overtime, &mut slab, 20_000);
    assert_eq!(overtime.deadline_ms(), Some(20_000));
    assert_eq!(overtime.due(&mut slab, 19_999), None);
    assert_eq!(overtime.due(&mut slab, 30_000), Some(soon));
    assert_eq!(overtime.due(&mut slab, 30_000), Some(late));
    assert_eq!((overtime.due(&mut slab, 30_000), overtime.deadline_ms()), (None, None));
}

#[test]
fn what_is_answered_within_a_tick_is_never_put_in_order_and_what_is_answered_later_leaves_nothing() {
    let (mut overtime, mut slab) = (Overtime::default(), Slab::default());
    assert_eq!(overtime.due(&mut slab, 0), None);
    let quick = note(&mut overtime, &mut slab, 30_000);
    let slow = note(&mut overtime, &mut slab, 30_000);
    answer(&mut overtime, &mut slab, quick);
    for tick in 1..=2 {
        assert!(overtime.deadlines.is_empty());
        assert_eq!(overtime.due(&mut slab, tick * OVERTIME_TICK_MS), None);
    }
    assert_eq!(overtime.deadlines.len(), 1);
    answer(&mut overtime, &mut slab, slow);
    assert!(overtime.deadlines.is_empty() && overtime.deadline_ms().is_none());
}

#[test]
fn notes_are_bounded_however_many_requests_come_in_a_tick() {
    let (mut overtime, mut slab) = (Overtime::default(), Slab::default());
    for _ in 0..5 * OVERTIME_NOTES_MAX {
        let key = note(&mut overtime, &mut slab, 30_000);
        answer(&mut overtime, &mut slab, key);
    }
    assert!(overtime.young.keys.len() <= OVERTIME_NOTES_MAX && overtime.elder.keys.len() <= OVERTIME_NOTES_MAX);
    assert!(overtime.deadlines.is_empty());
}
