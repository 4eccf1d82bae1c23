//! One shard with sockets and no partitions, a cycle's step at a time: who is served, and who waits; knows no thread.

use super::scene::{self, Around, Scene};
use super::*;
use crate::limits::CONNECTION_CYCLE_FRAMES;
use coulee_core::block::Block;
use coulee_core::log::Incoming;
use coulee_core::shard::budget::{BUDGET_BYTES_MIN, ClientId, Reservation};
use coulee_io::mesh::Mesh;
use coulee_protocol::api::ApiKey;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

/// Bytes of a large frame: an eighth of what incomplete ones may have.
const LARGE_BYTES: usize = 8 << 20;

/// A shard with the least budget, and what has to live as long.
struct Alone {
    shard: ShardServer,
    _around: Around,
}

impl Alone {
    fn new() -> Self {
        let (shard, around) = scene::shard(Mesh::new(1).remove(0), BUDGET_BYTES_MIN);
        Self { shard, _around: around }
    }

    fn connect(&mut self) -> (Key, UnixStream) {
        scene::connect(&mut self.shard)
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
    let mut alone = Alone::new();
    let (key, mut client) = alone.connect();
    let backlog = refused(&mut alone.shard, large(ApiKey::Produce.code()));
    let held = alone.use_up();
    client.write_all(&beginning_of_large()).unwrap();
    alone.serve();
    assert!(alone.connection(key).input.is_paused() && alone.shard.paused.contains(&key));
    // A frame from before, which has waited for its turn, gives its own memory back: too little for the next one.
    alone.connection(key).backlog.push_back(backlog);
    alone.shard.enqueue(key);
    alone.serve();
    assert!(alone.connection(key).input.is_paused() && alone.shard.paused.contains(&key), "it still waits");
    alone.free(held);
    alone.serve();
    assert!(!alone.connection(key).input.is_paused(), "there is room for its frame");
}

#[test]
fn a_connection_whose_turn_is_over_as_it_begins_to_wait_goes_on_when_there_is_room() {
    let mut alone = Alone::new();
    let (key, mut client) = alone.connect();
    let held = alone.use_up();
    let small = FrameHeader::request(u16::MAX, 1, 3, 8, 0).encode();
    let turn: Vec<u8> = (0..2 * CONNECTION_CYCLE_FRAMES).flat_map(|_| [&small[..], &[0; 8]].concat()).collect();
    client.write_all(&[turn, beginning_of_large()].concat()).unwrap();
    alone.serve();
    assert!(alone.connection(key).input.is_paused() && alone.shard.paused.contains(&key));
    alone.free(held);
    alone.serve();
    assert!(!alone.connection(key).input.is_paused(), "there is room for its frame");
}

#[test]
fn a_refused_frame_gives_its_memory_back() {
    let mut alone = Alone::new();
    let response = FrameHeader::response(&large(ApiKey::Produce.code()), ErrorCode::None, 1, 64 << 10);
    for header in [large(ApiKey::Produce.code()), large(ApiKey::Fetch.code()), large(u16::MAX), response] {
        let (key, _client) = alone.connect();
        let frame = refused(&mut alone.shard, header);
        alone.connection(key).backlog.push_back(frame);
        alone.serve();
        assert_eq!(alone.shard.budget.reserved(), 0, "{header:?}");
    }
}

#[test]
fn a_shard_that_stops_never_rests_unless_the_disk_will_wake_it() {
    let mut scene = Scene::open();
    while scene.server.cycle() || scene.server.parts.ring.in_flight() > 0 {}
    scene.around.controls.stop();
    // The grace period is an hour, so that it is no way out.
    while scene.server.phase != Phase::Over {
        let worked = scene.server.cycle();
        let is_woken = scene.server.parts.ring.in_flight() > 0;
        assert!(worked || is_woken || scene.server.phase == Phase::Over, "it sleeps and nobody wakes it");
    }
}
