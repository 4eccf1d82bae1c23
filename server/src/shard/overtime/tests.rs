//! Requests that take longer than their client waits: owns what becomes of them; knows no disk that is slow.

use super::*;
use crate::shard::Phase;
use crate::shard::scene::Scene;
use coulee_protocol::frame::FrameHeader;
use coulee_protocol::ids::ShardId;
use std::os::unix::net::UnixStream;

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
    Pending::new(Asker::Shard(ShardId(1), RequestId(0)), FrameHeader::default(), 0)
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
