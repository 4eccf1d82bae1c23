//! The mesh between real threads; what loom can't see: the bound of 1,024, many messages, real wake-ups.

use super::*;
use crate::wake::Sleeper;
use std::rc::Rc;

const fn is_send<T: Send>() {}

#[test]
fn an_end_can_be_moved_to_its_thread() {
    is_send::<MeshEnd<Box<u64>>>();
}

#[test]
fn a_full_ring_gives_the_message_back() {
    let mut ends = Mesh::new::<usize>(2);
    let (left, right) = ends.split_at_mut(1);
    for message in 0..MESH_RING_SLOTS {
        assert_eq!(left[0].send(1, message), Ok(()));
    }
    assert_eq!(left[0].send(1, 7_777), Err(7_777));
    assert!(!right[0].is_empty());
    assert_eq!(right[0].receive(), Some((0, 0)));
    assert_eq!(left[0].send(1, MESH_RING_SLOTS), Ok(()));
    for message in 1..=MESH_RING_SLOTS {
        assert_eq!(right[0].receive(), Some((0, message)));
    }
    assert_eq!(right[0].receive(), None);
    assert!(right[0].is_empty());
}

#[test]
fn peers_take_turns_when_messages_are_received() {
    let mut ends = Mesh::new::<u32>(4);
    for from in [1, 2, 3] {
        for message in 0..3 {
            assert_eq!(ends[from].send(0, message), Ok(()));
        }
    }
    let order: Vec<(usize, u32)> = std::iter::from_fn(|| ends[0].receive()).collect();
    assert_eq!(order, [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2)]);
}

#[test]
fn a_mesh_of_one_shard_is_always_empty() {
    let mut ends = Mesh::new::<Box<u8>>(1);
    assert!(ends[0].is_empty());
    assert_eq!(ends[0].receive(), None);
    assert_eq!((ends[0].shard(), ends[0].shards()), (0, 1));
}

#[test]
fn messages_left_in_a_ring_are_dropped_with_it() {
    // One thread, so a counted pointer that is no `Send` outside can witness the drops: wrapped for the bound only.
    struct Witness(#[expect(dead_code, reason = "only its drop counts")] Rc<()>);
    // SAFETY: both ends stay on this thread.
    unsafe impl Send for Witness {}
    let count = Rc::new(());
    let mut ends = Mesh::new::<Witness>(2);
    for _ in 0..5 {
        assert!(ends[0].send(1, Witness(Rc::clone(&count))).is_ok());
    }
    drop(ends[1].receive());
    assert_eq!(Rc::strong_count(&count), 5);
    drop(ends);
    assert_eq!(Rc::strong_count(&count), 1);
}

/// Sends and receives until both counts are reached, asleep when neither moves.
fn exchange(mut end: MeshEnd<u64>, sleeper: &Sleeper, messages: u64) {
    let peer = 1 - end.shard();
    let (mut sent, mut received) = (0, 0);
    while sent < messages || received < messages {
        let before = (sent, received);
        while sent < messages && end.send(peer, sent).is_ok() {
            sent += 1;
        }
        while let Some((from, message)) = end.receive() {
            assert_eq!((from, message), (peer, received));
            received += 1;
        }
        end.wake_peers();
        // A full ring is emptied by a peer that has its own messages to look at: only then may this side sleep.
        if before == (sent, received)
            && sent == messages
            && let Some(sleep) = sleeper.announce(|| !end.is_empty())
        {
            sleep.block();
        }
    }
}

#[test]
fn two_threads_exchange_many_messages_without_loss() {
    let mut ends = Mesh::new(2);
    let sleepers: Vec<Sleeper> = (0..2).map(|_| Sleeper::with_own_eventfd().unwrap()).collect();
    ends[0].attach(1, sleepers[1].waker());
    ends[1].attach(0, sleepers[0].waker());
    std::thread::scope(|scope| {
        for (end, sleeper) in ends.into_iter().zip(&sleepers) {
            scope.spawn(move || exchange(end, sleeper, 200_000));
        }
    });
}

#[test]
fn a_sleeping_shard_answers_each_of_many_requests() {
    let mut ends = Mesh::new::<u64>(2);
    let sleepers: Vec<Sleeper> = (0..2).map(|_| Sleeper::with_own_eventfd().unwrap()).collect();
    ends[0].attach(1, sleepers[1].waker());
    ends[1].attach(0, sleepers[0].waker());
    let mut server = ends.pop().unwrap();
    let mut client = ends.pop().unwrap();
    let wait = |end: &mut MeshEnd<u64>, sleeper: &Sleeper| loop {
        if let Some((_, message)) = end.receive() {
            return message;
        }
        if let Some(sleep) = sleeper.announce(|| !end.is_empty()) {
            sleep.block();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..5_000 {
                let request = wait(&mut server, &sleepers[1]);
                assert_eq!(request, round);
                assert_eq!(server.send(0, request * 2), Ok(()));
                server.wake_peers();
            }
        });
        for round in 0..5_000 {
            assert_eq!(client.send(1, round), Ok(()));
            client.wake_peers();
            assert_eq!(wait(&mut client, &sleepers[0]), round * 2);
        }
    });
}
