//! One shard with sockets and no partitions, a cycle's step at a time: who is served, and who waits; knows no thread.

use super::*;
use crate::connection::Stage;
use crate::limits::CONNECTION_CYCLE_FRAMES;
use coulee_core::block::Block;
use coulee_core::log::Incoming;
use coulee_core::shard::ShardOptions;
use coulee_core::shard::budget::{BUDGET_BYTES_MIN, ClientId, Reservation};
use coulee_io::mesh::Mesh;
use coulee_io::net::Socket;
use coulee_io::ring::RingOptions;
use coulee_io::watchdog::Watchdog;
use coulee_protocol::api::ApiKey;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader};
use coulee_protocol::ids::ClusterId;

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use tempfile::TempDir;

/// Bytes of a large frame: an eighth of what incomplete ones may have.
const LARGE_BYTES: usize = 8 << 20;

/// A shard, and what has to live as long.
struct Scene {
    shard: ShardServer,
    _news: mpsc::Receiver<News>,
    _watchdog: Watchdog,
    _dir: TempDir,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ring = Ring::new(RingOptions::default()).unwrap();
        let pool = BlockPool::new(0);
        let disk = FileDisk::open(dir.path(), ring.clone(), pool.clone()).unwrap();
        let options = ShardOptions { id: 0, tail_bytes: 0, pool_bytes: 0 };
        let core = ring.block_on(Shard::start(disk, pool.clone(), options)).unwrap().unwrap();
        let (news, heard) = mpsc::channel();
        let (watchdog, mut pulses) = Watchdog::start(1).unwrap();
        let facts = Facts {
            cluster_id: ClusterId([1; 16]),
            native: "127.0.0.1:1".parse().unwrap(),
            entries: Vec::new(),
            connections_max: 8,
            shutdown_grace_ms: 1_000,
        };
        let parts = Parts {
            id: ShardId(0),
            sleeper: Sleeper::new(ring.eventfd().unwrap()),
            ring,
            pool,
            core,
            mesh: Mesh::new(1).remove(0),
            pulse: pulses.remove(0),
            listener: None,
            controller: None,
            facts,
            control: Control::default(),
            news,
            budget_bytes: BUDGET_BYTES_MIN,
        };
        Self { shard: ShardServer::new(parts), _news: heard, _watchdog: watchdog, _dir: dir }
    }

    /// A connection that has said Hello, and its client's side.
    fn connect(&mut self) -> (Key, UnixStream) {
        let (own, client) = UnixStream::pair().unwrap();
        own.set_nonblocking(true).unwrap();
        let connection = Connection::new(Socket::from_fd(OwnedFd::from(own)), Stage::Open);
        (self.shard.adopt(Box::new(connection)), client)
    }

    fn connection(&mut self, key: Key) -> &mut Connection {
        self.shard.connections.find(key).unwrap().as_mut().unwrap()
    }

    /// Serves as long as somebody is to be served.
    fn serve(&mut self) {
        let most = 1_000;
        assert!((0..most).any(|_| !self.shard.serve()), "{most} times and still not done");
    }

    /// Uses up what incomplete frames may have of the budget.
    fn use_up(&mut self) -> Vec<Reservation> {
        (1_000..).map_while(|client| self.shard.budget.reserve(ClientId(client), LARGE_BYTES)).collect()
    }

    fn free(&mut self, held: Vec<Reservation>) {
        held.into_iter().for_each(|reservation| self.shard.free(Some(reservation)));
    }
}

/// A request of which nothing but the header has been sent.
fn beginning_of_large() -> Vec<u8> {
    FrameHeader::request(ApiKey::Produce.code(), 1, 1, 14, LARGE_BYTES - 14 - FRAME_HEADER_BYTES).encode().to_vec()
}

/// A whole frame whose body is none, and what it holds of the budget.
fn refused(shard: &mut ShardServer, header: FrameHeader) -> Frame {
    let mut reservation = shard.budget.reserve(ClientId(1), header.len as usize).unwrap();
    shard.budget.complete(&mut reservation);
    Frame {
        header,
        body: Block::from_owner(Rc::new(vec![1])),
        batches: Incoming::Shared(Block::from_owner(Rc::new(vec![0; header.batches_bytes()]))),
        reservation: Some(reservation),
    }
}

/// The header of a large request with one byte of body.
fn large(api: u16) -> FrameHeader {
    FrameHeader::request(api, 1, 2, 1, 64 << 10)
}

#[test]
fn a_connection_goes_on_when_what_it_waited_for_is_given_back_while_it_is_served() {
    let mut scene = Scene::new();
    let (key, mut client) = scene.connect();
    let backlog = refused(&mut scene.shard, large(ApiKey::Produce.code()));
    let held = scene.use_up();
    client.write_all(&beginning_of_large()).unwrap();
    scene.serve();
    assert!(scene.connection(key).input.is_paused() && scene.shard.paused.contains(&key));
    // A frame from before, which has waited for its turn, gives its own memory back: too little for the next one.
    scene.connection(key).backlog.push_back(backlog);
    scene.shard.enqueue(key);
    scene.serve();
    assert!(scene.connection(key).input.is_paused() && scene.shard.paused.contains(&key), "it still waits");
    scene.free(held);
    scene.serve();
    assert!(!scene.connection(key).input.is_paused(), "there is room for its frame");
}

#[test]
fn a_connection_whose_turn_is_over_as_it_begins_to_wait_goes_on_when_there_is_room() {
    let mut scene = Scene::new();
    let (key, mut client) = scene.connect();
    let held = scene.use_up();
    let small = FrameHeader::request(u16::MAX, 1, 3, 8, 0).encode();
    let turn: Vec<u8> = (0..2 * CONNECTION_CYCLE_FRAMES).flat_map(|_| [&small[..], &[0; 8]].concat()).collect();
    client.write_all(&[turn, beginning_of_large()].concat()).unwrap();
    scene.serve();
    assert!(scene.connection(key).input.is_paused() && scene.shard.paused.contains(&key));
    scene.free(held);
    scene.serve();
    assert!(!scene.connection(key).input.is_paused(), "there is room for its frame");
}

#[test]
fn a_refused_frame_gives_its_memory_back() {
    let mut scene = Scene::new();
    let response = FrameHeader::response(&large(ApiKey::Produce.code()), ErrorCode::None, 1, 64 << 10);
    for header in [large(ApiKey::Produce.code()), large(ApiKey::Fetch.code()), large(u16::MAX), response] {
        let (key, _client) = scene.connect();
        let frame = refused(&mut scene.shard, header);
        scene.connection(key).backlog.push_back(frame);
        scene.serve();
        assert_eq!(scene.shard.budget.reserved(), 0, "{header:?}");
    }
}
