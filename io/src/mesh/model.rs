//! The mesh under loom, in every interleaving of two threads; a ring of two slots stands for one of 1,024.
//!
//! Run by `make loom`, which also breaks the code in two ways and checks that these models notice.

use super::*;
use crate::wake::Sleeper;
use loom::thread;

#[test]
fn messages_arrive_in_order_and_a_full_ring_gives_them_back() {
    loom::model(|| {
        let (mut sender, mut receiver) = ring::<usize>(2);
        let thread = thread::spawn(move || (1..=3).filter(|message| sender.push(*message).is_ok()).collect::<Vec<_>>());
        let mut received: Vec<usize> = (0..2).filter_map(|_| receiver.pop()).collect();
        let sent = thread.join().unwrap();
        received.extend(std::iter::from_fn(|| receiver.pop()));
        assert_eq!(received, sent);
        assert!(receiver.is_empty());
        assert!(sent.starts_with(&[1, 2]), "two slots take two messages: {sent:?}");
    });
}

#[test]
fn messages_left_behind_are_dropped_once() {
    loom::model(|| {
        let witness = Arc::new(());
        let (mut sender, mut receiver) = ring(2);
        let message = Arc::clone(&witness);
        let thread = thread::spawn(move || {
            assert!(sender.push(Arc::clone(&message)).is_ok());
            assert!(sender.push(message).is_ok());
        });
        drop(receiver.pop());
        drop(receiver);
        thread.join().unwrap();
        assert_eq!(Arc::strong_count(&witness), 1);
    });
}

/// Takes `count` messages, asleep whenever there is none. loom calls a lost wake-up a deadlock.
fn receive_all(end: &mut MeshEnd<usize>, sleeper: &Sleeper, count: usize) -> Vec<usize> {
    let mut received = Vec::new();
    while received.len() < count {
        if let Some((_, message)) = end.receive() {
            received.push(message);
        } else if let Some(sleep) = sleeper.announce(|| !end.is_empty()) {
            sleep.block();
        }
    }
    received
}

#[test]
fn no_wake_up_is_lost_when_a_shard_falls_asleep() {
    loom::model(|| {
        let mut ends = Mesh::with_slots::<usize>(2, 2);
        let mut sending = ends.pop().unwrap();
        let mut receiving = ends.pop().unwrap();
        let sleeper = Sleeper::modelled();
        sending.attach(0, sleeper.waker());
        let thread = thread::spawn(move || {
            for message in 1..=2 {
                assert_eq!(sending.send(0, message), Ok(()));
                sending.wake_peers();
            }
        });
        assert_eq!(receive_all(&mut receiving, &sleeper, 2), [1, 2]);
        thread.join().unwrap();
    });
}

#[test]
fn two_senders_wake_one_sleeper() {
    let mut model = loom::model::Builder::new();
    // Three threads: every interleaving with up to this many preemptions.
    model.preemption_bound = Some(3);
    model.check(|| {
        let mut ends = Mesh::with_slots::<usize>(3, 2);
        let senders = ends.split_off(1);
        let mut receiving = ends.pop().unwrap();
        let sleeper = Sleeper::modelled();
        let threads: Vec<_> = senders
            .into_iter()
            .map(|mut end| {
                end.attach(0, sleeper.waker());
                thread::spawn(move || {
                    let message = end.shard();
                    assert_eq!(end.send(0, message), Ok(()));
                    end.wake_peers();
                })
            })
            .collect();
        let mut received = receive_all(&mut receiving, &sleeper, 2);
        received.sort_unstable();
        assert_eq!(received, [1, 2]);
        for thread in threads {
            thread.join().unwrap();
        }
    });
}
