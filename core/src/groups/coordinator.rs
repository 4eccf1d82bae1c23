//! Coordinator of the groups in one partition of `__consumer_offsets`: requests to records and answers; knows no log.
//!
//! A record is *given* to the log, becomes *durable*, and only then is *applied*: what was promised is what a start
//! reads back. Records of one partition become durable in order, so state changes apply in log order.
//!
//! Sketch: one batch a commit, one map look-up a request; a heartbeat allocates nothing and moves no timer.

use super::change::Change;
use super::group::{Group, State, Then, Turn, Write};
use super::load::Loading;
use super::request::{Answer, GroupRequest, Listed, Request};
use super::upkeep::Upkeep;
use super::{OFFSETS_PARTITIONS, Options};
use crate::block::Block;
use crate::limits::{BATCH_OVERHEAD_BYTES, GROUPS_MAX};
use crate::shard::{Now, RequestId};
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::compression::Codec;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{Offset, Timestamp, TopicId};
use coulee_protocol::limits::BATCH_BYTES_MAX;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Names a batch that the coordinator has given to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AppendId(pub u64);

/// A batch for the log.
#[derive(Debug)]
pub struct Append {
    /// Its name.
    pub id: AppendId,
    /// Its bytes.
    pub batch: Vec<u8>,
}

/// What the coordinator is told.
#[derive(Debug)]
pub enum Event {
    /// Someone asks something of a group.
    Request(RequestId, GroupRequest),
    /// A batch is durable at this base offset, or never will be.
    Appended(AppendId, Result<Offset, ErrorCode>),
    /// Whole batches of the log from where the coordinator asked; none at its end. Or why they cannot be read.
    Read(Result<Vec<Block>, ErrorCode>),
    /// All topics that there are, once the catalog has been read.
    Topics(Rc<BTreeSet<TopicId>>),
    /// A topic is gone.
    TopicDeleted(TopicId),
    /// Time has passed.
    Tick,
}

/// What the coordinator does.
#[derive(Debug)]
pub enum Effect {
    /// Answer a request.
    Answer(RequestId, Answer),
    /// Append a batch to the log.
    Append(Append),
    /// Read the log from here on.
    Read(Offset),
    /// Nothing before this offset is needed any more.
    LetGo(Offset),
}

/// How far the coordinator is.
#[derive(Debug)]
pub(super) enum Phase {
    /// Its log is being read.
    Loading(Loading),
    /// It takes requests.
    Ready,
    /// Its log cannot be read, or its records are not what this version writes.
    Failed(ErrorCode),
}

/// A batch on its way.
#[derive(Debug)]
struct InFlight {
    group: Box<str>,
    write: Write,
}

/// The coordinator of the groups of one partition. Lives on the shard that owns the partition.
#[derive(Debug)]
pub struct Coordinator {
    partition: u32,
    pub(super) options: Options,
    pub(super) phase: Phase,
    pub(super) groups: BTreeMap<Box<str>, Group>,
    /// When which group is to be looked at.
    timers: BTreeSet<(u64, Box<str>)>,
    in_flight: BTreeMap<AppendId, InFlight>,
    next_append: u64,
    /// Behind the last record that is applied.
    pub(super) applied_end: Offset,
    pub(super) upkeep: Upkeep,
    pub(super) effects: Vec<Effect>,
}

impl Coordinator {
    /// The coordinator of this partition, which begins by reading its log from `log_start` on; with `is_told` no
    /// [`Event::Topics`] is waited for.
    #[must_use]
    pub fn new(partition: u32, options: Options, log_start: Offset, is_told: bool) -> Self {
        assert!(partition < OFFSETS_PARTITIONS, "partition {partition} of the offsets topic");
        Self {
            partition,
            options,
            phase: Phase::Loading(Loading::new(is_told)),
            groups: BTreeMap::new(),
            timers: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            next_append: 0,
            applied_end: log_start,
            upkeep: Upkeep::default(),
            effects: vec![Effect::Read(log_start)],
        }
    }

    /// Takes an event at `now` and answers what is to be done, in order.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Effect> {
        match event {
            Event::Request(request, asked) => self.request(now, request, asked),
            Event::Appended(id, result) => self.appended(now, id, result),
            Event::Read(read) => self.read(now, read),
            Event::Topics(topics) => self.told_topics(now, &topics),
            Event::TopicDeleted(topic) => self.topic_deleted(now, topic),
            Event::Tick => self.tick(now),
        }
        std::mem::take(&mut self.effects)
    }

    /// When the coordinator wants a [`Event::Tick`] at the latest.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        let timer = self.timers.first().map(|(at, _)| *at);
        timer.into_iter().chain(self.upkeep_deadline_ms()).min()
    }

    /// Batches that are not durable yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.in_flight.len()
    }

    /// Its groups.
    ///
    /// # Errors
    /// Why they cannot be told: COORDINATOR_LOAD_IN_PROGRESS, or what is wrong with the log.
    pub fn list(&self) -> Result<Vec<Listed>, ErrorCode> {
        self.check_ready()?;
        let groups = self.groups.iter();
        let listed = groups.map(|(name, group)| Listed {
            group: name.clone(),
            protocol_type: group.protocol_type.clone().unwrap_or_default(),
            state: group.state,
            members: group.members.len() as u32,
        });
        Ok(listed.collect())
    }

    fn check_ready(&self) -> Result<(), ErrorCode> {
        match &self.phase {
            Phase::Ready => Ok(()),
            Phase::Loading(_) => Err(ErrorCode::CoordinatorLoadInProgress),
            Phase::Failed(code) => Err(*code),
        }
    }

    fn request(&mut self, now: Now, request: RequestId, asked: GroupRequest) {
        let GroupRequest { group: name, request: asked } = asked;
        let checked = self.check_ready().and_then(|()| asked.check(&name, &self.options));
        if let Err(code) = checked {
            return self.effects.push(Effect::Answer(request, Answer::Refused(code)));
        }
        if !self.groups.contains_key(&name) {
            match self.without_group(asked) {
                Ok(answer) => return self.effects.push(Effect::Answer(request, answer)),
                Err(asked) => {
                    self.groups.insert(name.clone(), Group::default());
                    return self.ask_group(now, request, name, *asked);
                }
            }
        }
        self.ask_group(now, request, name, asked);
    }

    /// What is to be said where there is no such group; the request, where one is to be made for it.
    fn without_group(&self, asked: Request) -> Result<Answer, Box<Request>> {
        let is_full = self.groups.len() >= GROUPS_MAX;
        Ok(match asked {
            Request::Join(join) if join.identity.member_id.is_empty() && !is_full => {
                return Err(Box::new(Request::Join(join)));
            }
            Request::Commit(commit) if commit.generation < 0 && !is_full => {
                return Err(Box::new(Request::Commit(commit)));
            }
            Request::Join(join) if join.identity.member_id.is_empty() => Answer::Refused(ErrorCode::PolicyViolation),
            Request::Commit(commit) if commit.generation < 0 => Answer::Refused(ErrorCode::PolicyViolation),
            Request::Join(_) | Request::Sync(_) | Request::Heartbeat(..) => Answer::Refused(ErrorCode::UnknownMemberId),
            Request::Commit(_) => Answer::Refused(ErrorCode::IllegalGeneration),
            Request::Leave(leaving) => {
                Answer::Left(leaving.into_iter().map(|identity| (identity, ErrorCode::UnknownMemberId)).collect())
            }
            // Nothing is committed: that is no error, or a group could never begin.
            Request::Fetch(wanted) => Answer::Offsets(Group::default().fetch(wanted)),
            Request::Describe | Request::Delete { .. } | Request::DeleteOffsets(_) => {
                Answer::Refused(ErrorCode::GroupIdNotFound)
            }
        })
    }

    fn ask_group(&mut self, now: Now, request: RequestId, name: Box<str>, asked: Request) {
        let partition = self.partition;
        self.with_group(now, &name, |group, turn| match asked {
            Request::Join(join) => group.join(turn, request, join),
            Request::Sync(sync) => group.sync(turn, request, sync),
            Request::Heartbeat(identity, generation) => {
                let answer = group.heartbeat(turn, &identity, generation);
                turn.answer(request, answer.map_or_else(Answer::Refused, |()| Answer::Alive));
            }
            Request::Leave(leaving) => {
                let left = group.leave(turn, leaving);
                turn.answer(request, Answer::Left(left));
            }
            Request::Commit(commit) => group.commit(turn, request, commit),
            Request::Fetch(wanted) => {
                let offsets = group.fetch(wanted);
                turn.answer(request, Answer::Offsets(offsets));
            }
            Request::Describe => {
                let described = group.describe(partition);
                turn.answer(request, Answer::Described(Box::new(described)));
            }
            Request::Delete { validate_only } => {
                if let Err(code) = group.delete(turn, request, validate_only) {
                    turn.refuse(request, code);
                }
            }
            Request::DeleteOffsets(topics) => group.delete_offsets(turn, request, topics),
        });
    }

    /// Lets a group do something, then does what it asks for.
    pub(super) fn with_group(&mut self, now: Now, name: &str, act: impl FnOnce(&mut Group, &mut Turn<'_>)) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let (mut answers, mut writes) = (Vec::new(), Vec::new());
        act(group, &mut Turn { now, options: &self.options, answers: &mut answers, writes: &mut writes });
        self.effects.extend(answers.into_iter().map(|(request, answer)| Effect::Answer(request, answer)));
        for write in writes {
            self.write(now, name, write);
        }
        self.look_again(name);
    }

    /// Notes when a group wants to be looked at, and forgets one that is nothing any more.
    pub(super) fn look_again(&mut self, name: &str) {
        let Some(group) = self.groups.get_mut(name) else { return };
        if group.is_void() {
            if let Some(at) = group.armed_ms {
                self.timers.remove(&(at, name.into()));
            }
            self.groups.remove(name);
            return;
        }
        // A later deadline may wait: when the timer comes it is set anew.
        let Some(at) = group.deadline_ms() else { return };
        if group.armed_ms.is_none_or(|armed| at < armed) {
            if let Some(armed) = group.armed_ms.replace(at) {
                self.timers.remove(&(armed, name.into()));
            }
            self.timers.insert((at, name.into()));
        }
    }

    fn tick(&mut self, now: Now) {
        while let Some((at, _)) = self.timers.first()
            && *at <= now.monotonic_ms
        {
            let Some((_, name)) = self.timers.pop_first() else { break };
            if let Some(group) = self.groups.get_mut(&name) {
                group.armed_ms = None;
            }
            self.with_group(now, &name, Group::expire);
        }
        if matches!(self.phase, Phase::Ready) {
            self.look_after_upkeep(now);
        }
    }

    /// Gives records of a group to the log. Where there are none, what follows comes at once.
    pub(super) fn write(&mut self, now: Now, name: &str, write: Write) {
        if write.changes.is_empty() {
            return self.follow(now, name, write.then, Ok(()));
        }
        let records = write.changes.iter().map(|change| (name, change));
        let Some(batch) = encode(records, now, BATCH_BYTES_MAX) else {
            return self.follow(now, name, write.then, Err(ErrorCode::InvalidCommitOffsetSize));
        };
        let id = self.append(write.changes.len(), batch);
        let group = self.groups.get_mut(name).expect("a group that writes is there");
        for change in &write.changes {
            match change {
                Change::Offset { topic, partition, committed } => {
                    group.offsets.appended(id, topic, *partition, committed.clone());
                }
                Change::Group(value) => group.unapplied.push((id, value.clone())),
            }
        }
        if cfg!(coulee_mutation = "commit_before_durable")
            && let Then::Answer(request, results) = &write.then
        {
            self.effects.push(Effect::Answer(*request, Answer::Partitions(results.clone())));
        }
        self.in_flight.insert(id, InFlight { group: name.into(), write });
    }

    /// Names a batch and has it appended.
    pub(super) fn append(&mut self, records: usize, batch: Vec<u8>) -> AppendId {
        let id = AppendId(self.next_append);
        self.next_append += 1;
        self.upkeep.records_in_log += records;
        self.effects.push(Effect::Append(Append { id, batch }));
        id
    }

    fn appended(&mut self, now: Now, id: AppendId, result: Result<Offset, ErrorCode>) {
        let Some(InFlight { group: name, write }) = self.in_flight.remove(&id) else {
            return self.snapshot_appended(now, id, result);
        };
        if let Ok(base) = result {
            self.applied_end = base.advance(write.changes.len() as u64);
        }
        if let Some(group) = self.groups.get_mut(&name) {
            for change in &write.changes {
                match change {
                    Change::Offset { topic, partition, .. } => {
                        group.offsets.settled(id, topic, *partition, result.is_ok());
                    }
                    Change::Group(value) => {
                        group.unapplied.retain(|(own, _)| *own != id);
                        if result.is_ok() {
                            group.stored.clone_from(value);
                        }
                    }
                }
            }
        }
        self.follow(now, &name, write.then, result.map(|_| ()));
        self.look_again(&name);
    }

    /// Does what follows when records are durable, or are not.
    fn follow(&mut self, now: Now, name: &str, then: Then, result: Result<(), ErrorCode>) {
        match then {
            Then::Nothing => {}
            Then::Answer(request, mut results) => {
                if cfg!(coulee_mutation = "commit_before_durable") && result.is_ok() {
                    return;
                }
                if let Err(code) = result {
                    let accepted = results.iter_mut().flat_map(|topic| &mut topic.partitions);
                    accepted.filter(|(_, own)| *own == ErrorCode::None).for_each(|(_, own)| *own = code);
                }
                self.effects.push(Effect::Answer(request, Answer::Partitions(results)));
            }
            Then::Assign { generation, assignments } => self.with_group(now, name, |group, turn| {
                group.stored_assignment(turn, generation, assignments, result);
            }),
            Then::Welcome { member_id, leader_before, can_skip } => self.with_group(now, name, |group, turn| {
                if let Err(code) = result {
                    let waiting = group.members.get_mut(&member_id).and_then(|member| member.joins.take());
                    return waiting.into_iter().for_each(|request| turn.refuse(request, code));
                }
                group.welcome(turn, &member_id, leader_before, can_skip);
            }),
            Then::Forget(request) => self.forgotten(now, name, request, result),
        }
    }

    /// A group's tombstones are durable, or are not.
    fn forgotten(&mut self, now: Now, name: &str, request: Option<RequestId>, result: Result<(), ErrorCode>) {
        if let Some(group) = self.groups.get_mut(name) {
            match result {
                // What was committed while it was being forgotten was refused: nothing is left.
                Ok(()) => {
                    if let Some(at) = group.armed_ms {
                        self.timers.remove(&(at, name.into()));
                    }
                    self.groups.remove(name);
                }
                Err(_) => group.change_state(State::Empty, now),
            }
        }
        if let Some(request) = request {
            let answer = result.map_or_else(Answer::Refused, |()| Answer::Deleted);
            self.effects.push(Effect::Answer(request, answer));
        }
    }

    /// The partition that it coordinates.
    #[must_use]
    pub const fn partition(&self) -> u32 {
        self.partition
    }
}

/// A batch of these records; `None` where they do not fit one of `bytes_max`.
pub(super) fn encode<'a>(
    changes: impl Iterator<Item = (&'a str, &'a Change)>,
    now: Now,
    bytes_max: usize,
) -> Option<Vec<u8>> {
    let mut builder = BatchBuilder::new(Codec::None, bytes_max - BATCH_OVERHEAD_BYTES);
    for (group, change) in changes {
        let encoded = change.encode(group);
        let pushed = encoded.with_headers(|headers| {
            let (key, value) = (Some(&*encoded.key), encoded.value.as_deref());
            builder.push(&NewRecord { timestamp: Timestamp(now.wall_ms), key, value, headers })
        });
        pushed.ok()?;
    }
    builder.finish().ok()
}
