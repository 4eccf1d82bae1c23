//! One shard of two, driven cycle by cycle by a test, with one client: owns what stands around it; asserts nothing.

use super::{News, Parts, ShardServer};
use crate::connection::{Connection, Stage};
use crate::facts::Facts;
use crate::message::{Answer, Message, Question};
use crate::slab::Key;
use coulee_core::block::BlockPool;
use coulee_core::catalog::{Catalog, Change};
use coulee_core::controller::Told;
use coulee_core::shard::{Produced, RequestId, Shard, ShardOptions};
use coulee_io::control::{Control, Controls};
use coulee_io::disk::FileDisk;
use coulee_io::mesh::{Mesh, MeshEnd};
use coulee_io::net::Socket;
use coulee_io::ring::{Ring, RingOptions};
use coulee_io::wake::Sleeper;
use coulee_protocol::api::{ApiKey, encode, produce::v1 as produce};
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader};
use coulee_protocol::ids::{ClusterId, LeaderEpoch, Offset, PartitionUid, ShardId, TopicId};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

/// What has to live as long as a shard, beside it.
pub(super) struct Around {
    pub(super) controls: Controls,
    _news: mpsc::Receiver<News>,
    _dir: tempfile::TempDir,
}

/// A shard without partitions on a real disk and ring, at one end of a mesh.
pub(super) fn shard(mesh: MeshEnd<Message>, budget_bytes: usize) -> (ShardServer, Around) {
    let dir = tempfile::tempdir().unwrap();
    let ring = Ring::new(RingOptions::default()).unwrap();
    let pool = BlockPool::new(0);
    let disk = FileDisk::open(dir.path(), ring.clone(), pool.clone()).unwrap();
    let options = ShardOptions { id: 0, tail_bytes: 0, pool_bytes: 0 };
    let core = ring.block_on(Shard::start(disk, pool.clone(), options)).unwrap().unwrap();
    let (news, heard) = mpsc::channel();
    let control = Control::default();
    let facts = Facts {
        cluster_id: ClusterId([1; 16]),
        native: ([127, 0, 0, 1], 0).into(),
        entries: Vec::new(),
        connections_max: 10,
        shutdown_grace_ms: Facts::grace_ms(Duration::from_secs(3_600)),
    };
    let parts = Parts {
        id: ShardId(0),
        sleeper: Sleeper::new(ring.eventfd().unwrap()),
        ring,
        pool,
        core,
        mesh,
        listener: None,
        controller: None,
        facts,
        control: control.clone(),
        news,
        budget_bytes,
    };
    let controls = control.of_process(Vec::new());
    (ShardServer::new(parts), Around { controls, _news: heard, _dir: dir })
}

/// A connection that has said Hello, and its client's side.
pub(super) fn connect(server: &mut ShardServer) -> (Key, UnixStream) {
    let (own, client) = UnixStream::pair().unwrap();
    own.set_nonblocking(true).unwrap();
    let connection = Connection::new(Socket::from_fd(OwnedFd::from(own)), Stage::Open);
    (server.adopt(Box::new(connection)), client)
}

/// Shard 0 of two with one client. The other shard, which owns the partition, is a mere end of the mesh: what is sent
/// there is under way for as long as the test likes, as on a disk that does not finish a sync.
pub(super) struct Scene {
    pub(super) server: ShardServer,
    pub(super) around: Around,
    other: MeshEnd<Message>,
    pub(super) client: UnixStream,
    uid: PartitionUid,
}

impl Scene {
    pub(super) fn open() -> Self {
        let mut ends = Mesh::new(2).into_iter();
        let (mesh, other) = (ends.next().unwrap(), ends.next().unwrap());
        let (mut server, around) = shard(mesh, 64 << 20);
        let waker = Sleeper::new(server.parts.ring.eventfd().unwrap()).waker();
        server.parts.mesh.attach(1, waker);
        let uid = tell_of_a_topic(&mut server);
        let (_, client) = connect(&mut server);
        client.set_nonblocking(true).unwrap();
        Self { server, around, other, client, uid }
    }

    /// Sends a produce request, which the other shard gets; the number it has there.
    pub(super) fn produce(&mut self, correlation: u32, timeout_ms: u32) -> RequestId {
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
    pub(super) fn pass(&mut self, ms: u64) {
        let until_ms = self.server.now().monotonic_ms + ms;
        while self.server.now().monotonic_ms < until_ms {
            self.server.cycle();
        }
        self.server.cycle();
    }

    /// Correlation and error of the next answer, if there is one.
    pub(super) fn answer(&mut self) -> Option<(u32, u16)> {
        let mut header = [0; FRAME_HEADER_BYTES];
        match self.client.read(&mut header) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            read => assert_eq!(read.unwrap(), header.len()),
        }
        let header = FrameHeader::decode(&header, 1 << 20).unwrap();
        self.client.read_exact(&mut vec![0; header.rest_bytes()]).unwrap();
        Some((header.correlation, header.error))
    }

    pub(super) fn finish(&mut self, number: RequestId) {
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
