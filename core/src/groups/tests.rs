//! The coordinator step by step: each transition, each refusal, what a start reads back; no disk, no shard.

use super::request::{Commit, CommitPartition, CommitTopic, Identity, Join, Joined, Sync, Wanted, WantedTopic};
use super::*;
use crate::block::Block;
use crate::limits::SNAPSHOT_RECORDS_MIN;
use crate::shard::{Now, RequestId};
use coulee_protocol::batch::{BatchHeader, LeaderFields};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{BatchIndex, LeaderEpoch, Offset, PartitionUid, TopicId};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

const TOPIC: TopicId = TopicId([1; 16]);

/// A coordinator, its log, and what it has answered.
struct Bench {
    coordinator: Coordinator,
    now: Now,
    /// Batches that are durable, from offset 0 on.
    log: Vec<Block>,
    log_start: Offset,
    end: Offset,
    /// Batches that were given to the log.
    given: Vec<Append>,
    /// Durable at once.
    is_fast: bool,
    answers: BTreeMap<RequestId, Answer>,
    next_request: u64,
    let_go: Option<Offset>,
}

impl Bench {
    fn new() -> Self {
        Self::over(Vec::new(), Offset(0))
    }

    fn over(log: Vec<Block>, log_start: Offset) -> Self {
        let end = log.last().map_or(Offset(0), |batch| BatchHeader::decode(batch).unwrap().end_offset());
        let now = Now { monotonic_ms: 1_000, wall_ms: 1_700_000_000_000 };
        let coordinator = Coordinator::new(partition_of("g"), Options::default(), log_start, true);
        let (answers, given) = (BTreeMap::new(), Vec::new());
        let mut bench = Self {
            coordinator,
            now,
            log,
            log_start,
            end,
            given,
            is_fast: true,
            answers,
            next_request: 0,
            let_go: None,
        };
        bench.tell(Event::Tick);
        bench
    }

    /// The same log, read by a coordinator that knows nothing else.
    fn restarted(&self) -> Self {
        let mut bench = Self::over(self.log.clone(), self.log_start);
        bench.now = self.now;
        bench
    }

    fn tell(&mut self, event: Event) {
        for effect in self.coordinator.step(self.now, event) {
            match effect {
                Effect::Answer(request, answer) => {
                    let before = self.answers.insert(request, answer);
                    assert_eq!(before, None, "{request:?} was answered twice");
                }
                Effect::Append(append) => self.given.push(append),
                Effect::LetGo(offset) => self.let_go = Some(offset),
                Effect::Read(offset) => {
                    let from = |batch: &&Block| BatchHeader::decode(batch).unwrap().leader.base_offset >= offset;
                    let batches: Vec<Block> = self.log.iter().filter(from).take(3).cloned().collect();
                    self.tell(Event::Read(Ok(batches)));
                }
            }
        }
        if self.is_fast {
            self.sync();
        }
    }

    /// Everything that was given to the log becomes durable.
    fn sync(&mut self) {
        while !self.given.is_empty() {
            let Append { id, mut batch } = self.given.remove(0);
            let header = BatchHeader::decode(&batch).unwrap();
            let leader = LeaderFields {
                partition_uid: PartitionUid(9),
                batch_index: BatchIndex(1),
                leader_epoch: LeaderEpoch(1),
                prev_header_crc: 0,
                durable_end_hint: Offset(0),
                base_offset: self.end,
            };
            let header = header.stamp(leader, batch.first_chunk_mut().unwrap());
            let base = std::mem::replace(&mut self.end, header.end_offset());
            self.log.push(Block::from_owner(Rc::new(batch)));
            self.tell(Event::Appended(id, Ok(base)));
        }
    }

    fn ask(&mut self, request: Request) -> RequestId {
        self.ask_of("g", request)
    }

    fn ask_of(&mut self, group: &str, request: Request) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.tell(Event::Request(id, GroupRequest { group: group.into(), request }));
        id
    }

    fn answer(&mut self, request: Request) -> Answer {
        let id = self.ask(request);
        self.take(id)
    }

    fn take(&mut self, id: RequestId) -> Answer {
        self.answers.remove(&id).unwrap_or_else(|| panic!("{id:?} is unanswered"))
    }

    fn joined(&mut self, id: RequestId) -> Joined {
        match self.take(id) {
            Answer::Joined(joined) => *joined,
            other => panic!("{other:?}"),
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now.monotonic_ms += ms;
        self.now.wall_ms += ms as i64;
        self.tell(Event::Tick);
    }

    /// As long as the first members are waited for: once more where others have come meanwhile.
    fn pass_initial_delay(&mut self) {
        self.pass(3_000);
        if self.answers.is_empty() {
            self.pass(3_000);
        }
    }

    /// The id of a new dynamic member.
    fn new_id(&mut self, random: u8) -> Box<str> {
        match self.answer(Request::Join(join(random, "", None))) {
            Answer::MemberIdRequired(id) => id,
            other => panic!("{other:?}"),
        }
    }

    /// A stable group of so many dynamic members; the first is the leader.
    fn stable(&mut self, count: u8) -> Vec<Box<str>> {
        let ids: Vec<Box<str>> = (0..count).map(|random| self.new_id(random)).collect();
        let joins: Vec<RequestId> = ids.iter().map(|id| self.ask(Request::Join(join(0, id, None)))).collect();
        self.pass_initial_delay();
        let generation = joins.iter().map(|id| self.joined(*id).generation).max().unwrap();
        self.sync_all(&ids, generation);
        ids
    }

    fn sync_all(&mut self, ids: &[Box<str>], generation: i32) {
        let syncs: Vec<RequestId> = ids
            .iter()
            .map(|id| {
                let assignments = ids.iter().map(|id| (id.clone(), id.as_bytes().into())).collect();
                self.ask(Request::Sync(Sync { assignments, ..sync(id, generation) }))
            })
            .collect();
        for (id, request) in ids.iter().zip(syncs) {
            let Answer::Synced(synced) = self.take(request) else { panic!("{id} got no assignment") };
            assert_eq!(*synced.assignment, *id.as_bytes());
        }
    }

    fn state(&mut self) -> (group::State, i32, usize) {
        match self.answer(Request::Describe) {
            Answer::Described(found) => (found.state, found.generation, found.members.len()),
            Answer::Refused(ErrorCode::GroupIdNotFound) => (group::State::Dead, -1, 0),
            other => panic!("{other:?}"),
        }
    }

    /// The committed offset of partition 0 of `topic`.
    fn committed(&mut self) -> Option<u64> {
        let topic = WantedTopic { name: "t".into(), id: Some(TOPIC), partitions: vec![0] };
        let Answer::Offsets(topics) = self.answer(Request::Fetch(Wanted::Some(vec![topic]))) else { panic!() };
        topics[0].partitions[0].1.as_ref().map(|committed| committed.offset)
    }

    fn commit(&mut self, member_id: &str, generation: i32, offset: u64) -> ErrorCode {
        match self.answer(Request::Commit(commit(member_id, generation, offset))) {
            Answer::Partitions(topics) => topics[0].partitions[0].1,
            Answer::Refused(code) => code,
            other => panic!("{other:?}"),
        }
    }
}

fn join(random: u8, member_id: &str, instance_id: Option<&str>) -> Join {
    Join {
        identity: identity(member_id, instance_id),
        client_id: "c".into(),
        client_host: "/127.0.0.1".into(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 60_000,
        protocol_type: "consumer".into(),
        protocols: vec![("range".into(), Box::from(*b"r")), ("sticky".into(), Box::from(*b"s"))],
        requires_known_member: true,
        can_skip_assignment: true,
        random: [random; 16],
    }
}

fn identity(member_id: &str, instance_id: Option<&str>) -> Identity {
    Identity { member_id: member_id.into(), instance_id: instance_id.map(Into::into) }
}

fn sync(member_id: &str, generation: i32) -> Sync {
    Sync { identity: identity(member_id, None), generation, ..Sync::default() }
}

fn commit(member_id: &str, generation: i32, offset: u64) -> Commit {
    let partition = CommitPartition { index: 0, offset, leader_epoch: -1, metadata: "m".into() };
    let topic = CommitTopic { name: "t".into(), found: Some((TOPIC, 1)), partitions: vec![partition] };
    Commit { identity: identity(member_id, None), generation, topics: vec![topic] }
}

fn heartbeat(member_id: &str, generation: i32) -> Request {
    Request::Heartbeat(identity(member_id, None), generation)
}

#[test]
fn the_first_members_are_waited_for_and_then_the_leader_hears_what_all_say() {
    let mut bench = Bench::new();
    let first = bench.new_id(1);
    assert!(first.starts_with("c-01010101-0101-"), "{first}");
    let join_first = bench.ask(Request::Join(join(0, &first, None)));
    bench.pass(2_000);
    let second = bench.new_id(2);
    let join_second = bench.ask(Request::Join(join(0, &second, None)));
    bench.pass(1_000);
    assert!(bench.answers.is_empty(), "a new member makes the first wait once more");
    assert_eq!(bench.state(), (group::State::PreparingRebalance, 0, 2));
    bench.pass(3_000);
    let (leader, follower) = (bench.joined(join_first), bench.joined(join_second));
    assert_eq!((leader.generation, &leader.leader, &*leader.protocol), (1, &first, "range"));
    assert_eq!(leader.members.len(), 2);
    assert_eq!((follower.members.len(), &follower.leader), (0, &first));
    assert_eq!(bench.state(), (group::State::CompletingRebalance, 1, 2));
    bench.sync_all(&[first, second], 1);
    assert_eq!(bench.state(), (group::State::Stable, 1, 2));
}

#[test]
fn a_member_that_joins_later_has_the_others_join_again() {
    let mut bench = Bench::new();
    let mut ids = bench.stable(2);
    let new = bench.new_id(9);
    let joins = vec![bench.ask(Request::Join(join(0, &new, None)))];
    for id in &ids {
        assert_eq!(bench.answer(heartbeat(id, 1)), Answer::Refused(ErrorCode::RebalanceInProgress));
        assert_eq!(
            bench.answer(Request::Sync(sync(id, 1))),
            Answer::Refused(ErrorCode::RebalanceInProgress),
            "the old assignment is not handed out again"
        );
    }
    let joins: Vec<RequestId> =
        joins.into_iter().chain(ids.iter().map(|id| bench.ask(Request::Join(join(0, id, None))))).collect();
    let generations: Vec<i32> = joins.into_iter().map(|id| bench.joined(id).generation).collect();
    assert_eq!(generations, [2, 2, 2], "nobody waits once all are there");
    ids.push(new);
    bench.sync_all(&ids, 2);
    assert_eq!(bench.answer(heartbeat(&ids[0], 1)), Answer::Refused(ErrorCode::IllegalGeneration));
    assert_eq!(bench.answer(heartbeat("nobody", 2)), Answer::Refused(ErrorCode::UnknownMemberId));
    assert_eq!(bench.answer(heartbeat(&ids[0], 2)), Answer::Alive);
}

#[test]
fn who_is_silent_for_too_long_is_no_member_any_more() {
    let mut bench = Bench::new();
    let ids = bench.stable(3);
    for expected in [Answer::Alive, Answer::Alive, Answer::Refused(ErrorCode::RebalanceInProgress)] {
        bench.pass(4_000);
        assert_eq!(bench.answer(heartbeat(&ids[0], 1)), expected);
    }
    assert_eq!(bench.state(), (group::State::PreparingRebalance, 1, 1));
    let alone = bench.ask(Request::Join(join(0, &ids[0], None)));
    assert_eq!(bench.joined(alone).generation, 2);
    assert_eq!(bench.answer(heartbeat(&ids[1], 1)), Answer::Refused(ErrorCode::UnknownMemberId));
    bench.pass(60_000);
    assert_eq!(bench.state(), (group::State::Empty, 3, 0), "nor is who has joined and never asks for its assignment");
}

#[test]
fn a_member_that_does_not_join_again_in_time_is_left_out() {
    let mut bench = Bench::new();
    let ids = bench.stable(2);
    let new = bench.new_id(7);
    let joins = [bench.ask(Request::Join(join(0, &new, None))), bench.ask(Request::Join(join(0, &ids[0], None)))];
    for _ in 0..12 {
        bench.pass(5_000);
        drop(bench.answer(heartbeat(&ids[1], 1)));
    }
    assert_eq!(joins.map(|id| bench.joined(id).generation), [2, 2]);
    assert_eq!(bench.state().2, 2);
}

#[test]
fn a_static_member_keeps_its_place_and_its_old_self_is_fenced_off() {
    let mut bench = Bench::new();
    let request = bench.ask(Request::Join(join(1, "", Some("i"))));
    bench.pass(3_000);
    let first = bench.joined(request).member_id;
    let assignments = vec![(first.clone(), Box::from(*b"all"))];
    let own = Sync { identity: identity(&first, Some("i")), generation: 1, assignments, ..Sync::default() };
    assert!(matches!(bench.answer(Request::Sync(own)), Answer::Synced(_)));
    bench.is_fast = false;
    let back = bench.ask(Request::Join(join(2, "", Some("i"))));
    assert!(bench.answers.is_empty(), "its new id is stored first");
    bench.is_fast = true;
    bench.sync();
    let joined = bench.joined(back);
    assert_eq!((joined.generation, joined.skip_assignment, joined.members.len()), (1, true, 1));
    assert_ne!(joined.member_id, first);
    let fenced = Answer::Refused(ErrorCode::FencedInstanceId);
    assert_eq!(bench.answer(Request::Heartbeat(identity(&first, Some("i")), 1)), fenced);
    let stale = Commit { identity: identity(&first, Some("i")), ..commit("", 1, 5) };
    assert_eq!(bench.answer(Request::Commit(stale)), fenced);
    let synced = bench.answer(Request::Sync(Sync { identity: identity(&joined.member_id, Some("i")), ..sync("", 1) }));
    let Answer::Synced(synced) = synced else { panic!("{synced:?}") };
    assert_eq!(*synced.assignment, *b"all", "it has what it had");
    let Answer::Left(left) = bench.answer(Request::Leave(vec![identity("", Some("i")), identity("", Some("j"))]))
    else {
        panic!()
    };
    assert_eq!([left[0].1, left[1].1], [ErrorCode::None, ErrorCode::UnknownMemberId]);
    assert_eq!(bench.state(), (group::State::Empty, 2, 0));
}

#[test]
fn nobody_gets_an_assignment_before_it_is_durable_and_a_generation_has_one() {
    let mut bench = Bench::new();
    let ids: Vec<Box<str>> = (0..2).map(|random| bench.new_id(random)).collect();
    let joins: Vec<RequestId> = ids.iter().map(|id| bench.ask(Request::Join(join(0, id, None)))).collect();
    bench.pass_initial_delay();
    joins.iter().for_each(|id| assert_eq!(bench.joined(*id).generation, 1));
    bench.is_fast = false;
    let all_to = |to: usize| vec![(ids[to].clone(), Box::from(*b"all"))];
    let first = bench.ask(Request::Sync(Sync { assignments: all_to(0), ..sync(&ids[0], 1) }));
    let follower = bench.ask(Request::Sync(sync(&ids[1], 1)));
    let again = bench.ask(Request::Sync(Sync { assignments: all_to(1), ..sync(&ids[0], 1) }));
    assert_eq!(bench.take(first), Answer::Refused(ErrorCode::RebalanceInProgress), "one request of a member waits");
    assert!(bench.answers.is_empty());
    assert_eq!(bench.given.len(), 1, "a second assignment of a generation is not taken");
    bench.is_fast = true;
    bench.sync();
    let (Answer::Synced(leader), Answer::Synced(follower)) = (bench.take(again), bench.take(follower)) else {
        panic!()
    };
    assert_eq!((&*leader.assignment, &*follower.assignment), (&b"all"[..], &b""[..]));
}

#[test]
fn an_assignment_that_cannot_be_stored_begins_another_rebalance() {
    let mut bench = Bench::new();
    let id = bench.new_id(0);
    let join_request = bench.ask(Request::Join(join(0, &id, None)));
    bench.pass(3_000);
    assert_eq!(bench.joined(join_request).generation, 1);
    bench.is_fast = false;
    let sync_request = bench.ask(Request::Sync(sync(&id, 1)));
    let Append { id: append, .. } = bench.given.remove(0);
    bench.tell(Event::Appended(append, Err(ErrorCode::DiskFull)));
    assert_eq!(bench.take(sync_request), Answer::Refused(ErrorCode::DiskFull));
    assert_eq!(bench.state().0, group::State::PreparingRebalance);
}

#[test]
fn offsets_count_when_they_are_durable_and_only_members_of_this_generation_commit() {
    let mut bench = Bench::new();
    assert_eq!(bench.committed(), None);
    let ids = bench.stable(1);
    bench.is_fast = false;
    let request = bench.ask(Request::Commit(commit(&ids[0], 1, 5)));
    assert_eq!(bench.committed(), None, "it is not durable");
    assert!(bench.answers.is_empty());
    bench.is_fast = true;
    bench.sync();
    assert!(matches!(bench.take(request), Answer::Partitions(_)));
    assert_eq!(bench.committed(), Some(5));
    for (member, generation, code) in [
        (&*ids[0], 0, ErrorCode::IllegalGeneration),
        (&*ids[0], -1, ErrorCode::IllegalGeneration),
        ("stranger", 1, ErrorCode::UnknownMemberId),
        ("", -1, ErrorCode::UnknownMemberId),
        (&*ids[0], 1, ErrorCode::None),
    ] {
        assert_eq!(bench.commit(member, generation, 6), code, "{member:?} {generation}");
    }
    let with = |change: fn(&mut CommitTopic)| {
        let mut commit = commit(&ids[0], 1, 7);
        change(&mut commit.topics[0]);
        Request::Commit(commit)
    };
    for (request, code) in [
        (with(|topic| topic.found = None), ErrorCode::UnknownTopicOrPartition),
        (with(|topic| topic.partitions[0].index = 1), ErrorCode::UnknownTopicOrPartition),
        (with(|topic| topic.partitions[0].metadata = "x".repeat(4_097).into()), ErrorCode::OffsetMetadataTooLarge),
    ] {
        let Answer::Partitions(topics) = bench.answer(request) else { panic!() };
        assert_eq!(topics[0].partitions[0].1, code);
    }
    assert_eq!(bench.committed(), Some(6));
    // Between two generations nobody knows whose partitions are whose.
    let leader = bench.ask(Request::Join(join(0, &ids[0], None)));
    assert_eq!(bench.joined(leader).generation, 2);
    assert_eq!(bench.commit(&ids[0], 2, 9), ErrorCode::RebalanceInProgress);
}

#[test]
fn a_group_without_members_takes_offsets_from_anyone_and_is_deleted_with_them() {
    let mut bench = Bench::new();
    assert_eq!(bench.commit("", 3, 5), ErrorCode::IllegalGeneration, "there is no such generation");
    assert_eq!(bench.commit("", -1, 5), ErrorCode::None);
    assert_eq!(bench.state(), (group::State::Empty, 0, 0));
    let ids = bench.stable(1);
    let delete = |validate_only| Request::Delete { validate_only };
    assert_eq!(bench.answer(delete(false)), Answer::Refused(ErrorCode::NonEmptyGroup));
    drop(bench.answer(Request::Leave(vec![identity(&ids[0], None)])));
    assert_eq!(bench.answer(delete(true)), Answer::Deleted);
    assert_eq!(bench.committed(), Some(5));
    assert_eq!(bench.answer(delete(false)), Answer::Deleted);
    assert_eq!((bench.committed(), bench.state().0), (None, group::State::Dead));
    assert_eq!(bench.answer(delete(false)), Answer::Refused(ErrorCode::GroupIdNotFound));
    let mut again = bench.restarted();
    assert_eq!((again.committed(), again.state().0), (None, group::State::Dead));
}

#[test]
fn an_offset_on_its_way_is_deleted_too_when_its_group_is() {
    let mut bench = Bench::new();
    bench.is_fast = false;
    let commit_request = bench.ask(Request::Commit(commit("", -1, 5)));
    let delete = bench.ask(Request::Delete { validate_only: false });
    assert_eq!(bench.commit("", -1, 6), ErrorCode::CoordinatorNotAvailable, "it is being forgotten");
    bench.is_fast = true;
    bench.sync();
    assert!(matches!(bench.take(commit_request), Answer::Partitions(_)));
    assert_eq!(bench.take(delete), Answer::Deleted);
    assert_eq!(bench.restarted().committed(), None);
}

#[test]
fn after_a_start_members_go_on_in_their_generation_with_what_was_committed() {
    let mut bench = Bench::new();
    let ids = bench.stable(2);
    assert_eq!(bench.commit(&ids[1], 1, 77), ErrorCode::None);
    let mut again = bench.restarted();
    assert_eq!(again.state(), (group::State::Stable, 1, 2));
    assert_eq!(again.committed(), Some(77));
    assert_eq!(again.answer(heartbeat(&ids[0], 1)), Answer::Alive);
    let Answer::Synced(synced) = again.answer(Request::Sync(sync(&ids[1], 1))) else { panic!() };
    assert_eq!(*synced.assignment, *ids[1].as_bytes());
    again.pass(10_001);
    assert_eq!(again.state(), (group::State::Empty, 2, 0));
}

#[test]
fn requests_are_put_off_while_the_log_is_read_and_refused_where_it_cannot_be() {
    let mut coordinator = Coordinator::new(0, Options::default(), Offset(0), false);
    let ask = |coordinator: &mut Coordinator| {
        let asked = GroupRequest { group: "g".into(), request: Request::Describe };
        match coordinator.step(Now::default(), Event::Request(RequestId(1), asked)).pop() {
            Some(Effect::Answer(_, Answer::Refused(code))) => code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ask(&mut coordinator), ErrorCode::CoordinatorLoadInProgress);
    drop(coordinator.step(Now::default(), Event::Read(Ok(Vec::new()))));
    assert_eq!(ask(&mut coordinator), ErrorCode::CoordinatorLoadInProgress, "the catalog is not known");
    drop(coordinator.step(Now::default(), Event::Topics(Rc::default())));
    assert_eq!(ask(&mut coordinator), ErrorCode::GroupIdNotFound);
    let mut damaged = Coordinator::new(0, Options::default(), Offset(0), true);
    drop(damaged.step(Now::default(), Event::Read(Err(ErrorCode::RangeDamaged))));
    assert_eq!(ask(&mut damaged), ErrorCode::RangeDamaged);
    assert_eq!(damaged.list(), Err(ErrorCode::RangeDamaged));
}

#[test]
fn offsets_of_a_topic_that_is_gone_are_gone_whenever_that_is_noticed() {
    let mut bench = Bench::new();
    assert_eq!(bench.commit("", -1, 5), ErrorCode::None);
    // A start that finds the topic missing.
    let mut coordinator = Coordinator::new(0, Options::default(), Offset(0), false);
    drop(coordinator.step(bench.now, Event::Read(Ok(bench.log.clone()))));
    drop(coordinator.step(bench.now, Event::Read(Ok(Vec::new()))));
    let others = Rc::new(BTreeSet::from([TopicId([9; 16])]));
    let effects = coordinator.step(bench.now, Event::Topics(others));
    assert!(matches!(effects[..], [Effect::Append(_)]), "{effects:?}");
    // A topic of the same name that was made anew.
    let topic = WantedTopic { name: "t".into(), id: Some(TopicId([2; 16])), partitions: vec![0] };
    let Answer::Offsets(topics) = bench.answer(Request::Fetch(Wanted::Some(vec![topic]))) else { panic!() };
    assert_eq!(topics[0].partitions, [(0, None)]);
    bench.tell(Event::TopicDeleted(TOPIC));
    assert_eq!((bench.committed(), bench.restarted().committed()), (None, None));
}

#[test]
fn offsets_that_nobody_uses_are_forgotten_after_a_week_and_those_in_use_are_not() {
    let week = 7 * 86_400_000;
    let mut bench = Bench::new();
    let ids = bench.stable(1);
    assert_eq!(bench.commit(&ids[0], 1, 5), ErrorCode::None);
    // The group is there all the time; its members subscribe to what cannot be read here, so nothing is known unused.
    for _ in 0..week / 9_000 + 1 {
        bench.pass(9_000);
        drop(bench.answer(heartbeat(&ids[0], 1)));
    }
    assert_eq!(bench.committed(), Some(5));
    drop(bench.answer(Request::Leave(vec![identity(&ids[0], None)])));
    bench.pass(week - 600_001);
    assert_eq!(bench.committed(), Some(5), "a week begins when the last member has left");
    bench.pass(1_200_001);
    assert_eq!((bench.committed(), bench.state().0), (None, group::State::Dead));
    assert_eq!(bench.restarted().state().0, group::State::Dead);
}

#[test]
fn what_a_snapshot_keeps_is_all_that_a_start_needs() {
    let mut bench = Bench::new();
    let ids = bench.stable(2);
    for group in ["other", "third"] {
        let request = bench.ask_of(group, Request::Commit(commit("", -1, 3)));
        drop(bench.take(request));
    }
    let mut offset = 0;
    while bench.let_go.is_none() {
        offset += 1;
        assert!(offset < 4 * SNAPSHOT_RECORDS_MIN as u64, "no snapshot was written");
        assert_eq!(bench.commit(&ids[0], 1, offset), ErrorCode::None);
        if offset.is_multiple_of(64) {
            bench.pass(1);
            drop(bench.answer(heartbeat(&ids[1], 1)));
        }
    }
    let from = bench.let_go.take().unwrap();
    assert!(from.0 > SNAPSHOT_RECORDS_MIN as u64 / 2);
    bench.log.retain(|batch| BatchHeader::decode(batch).unwrap().end_offset() > from);
    bench.log_start = from;
    let mut again = bench.restarted();
    assert_eq!(again.committed(), Some(offset));
    assert_eq!(again.state(), (group::State::Stable, 1, 2));
    for group in ["other", "third"] {
        let request = again.ask_of(group, Request::Describe);
        assert!(matches!(again.take(request), Answer::Described(_)), "{group}");
    }
}

#[test]
fn a_snapshot_never_writes_an_older_offset_behind_a_newer_one() {
    let mut bench = Bench::new();
    assert_eq!(bench.commit("", -1, 1), ErrorCode::None);
    bench.coordinator.upkeep.records_in_log = SNAPSHOT_RECORDS_MIN + 1;
    bench.is_fast = false;
    // On its way when the snapshot begins.
    let newer = bench.ask(Request::Commit(commit("", -1, 2)));
    bench.tell(Event::Tick);
    assert_eq!(bench.given.len(), 2, "the commit and the snapshot behind it");
    bench.is_fast = true;
    bench.sync();
    assert!(matches!(bench.take(newer), Answer::Partitions(_)));
    let from = bench.let_go.unwrap();
    assert_eq!(from, Offset(1), "what was on its way is kept");
    assert_eq!((bench.committed(), bench.restarted().committed()), (Some(2), Some(2)));
}

#[test]
fn groups_have_bounds() {
    let mut bench = Bench::new();
    bench.coordinator.options.members_max = 2;
    let ids = bench.stable(2);
    let refused = bench.answer(Request::Join(join(5, "", None)));
    assert_eq!(refused, Answer::Refused(ErrorCode::GroupMaxSizeReached));
    let huge = vec![("range".into(), vec![0; crate::limits::GROUP_BYTES_MAX].into())];
    let refused = bench.answer(Request::Join(Join { protocols: huge, ..join(5, &ids[0], None) }));
    assert_eq!(refused, Answer::Refused(ErrorCode::GroupMaxSizeReached));
    for session_timeout_ms in [0, 5_999, 1_800_001] {
        let refused = bench.answer(Request::Join(Join { session_timeout_ms, ..join(5, "", None) }));
        assert_eq!(refused, Answer::Refused(ErrorCode::InvalidSessionTimeout));
    }
    let request = bench.ask_of("", Request::Join(join(5, "", None)));
    assert_eq!(bench.take(request), Answer::Refused(ErrorCode::InvalidGroupId));
    let other = vec![("mine".into(), Box::default())];
    let refused = bench.answer(Request::Join(Join { protocols: other, ..join(5, &ids[0], None) }));
    assert_eq!(refused, Answer::Refused(ErrorCode::InconsistentGroupProtocol));
}
