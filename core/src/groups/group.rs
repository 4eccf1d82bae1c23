//! One group: its members, its generation, what it has stored; knows no other group and no log.

use super::Options;
use super::change::Change;
use super::coordinator::AppendId;
use super::member::Member;
use super::offsets::Offsets;
use super::request::{Answer, Description, Identity, Joined, JoinedMember, TopicResults};
use crate::limits::GROUP_BYTES_MAX;
use crate::shard::{Now, RequestId};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::kafka::consumer_offsets::{GroupValue, MemberValue};
use coulee_protocol::kafka::consumer_protocol::{CONSUMER, Subscription};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// How a group stands; the names are Kafka's, and tools read them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// It has no members; it may have offsets.
    #[default]
    Empty = 0,
    /// Its members are to join again.
    PreparingRebalance = 1,
    /// They have, and wait for their leader's assignment.
    CompletingRebalance = 2,
    /// They have their assignment.
    Stable = 3,
    /// It is being forgotten.
    Dead = 4,
}

/// What a group does in one step, beside changing itself.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    pub(super) now: Now,
    pub(super) options: &'a Options,
    pub(super) answers: &'a mut Vec<(RequestId, Answer)>,
    pub(super) writes: &'a mut Vec<Write>,
}

impl Turn<'_> {
    pub(super) fn answer(&mut self, request: RequestId, answer: Answer) {
        self.answers.push((request, answer));
    }

    pub(super) fn refuse(&mut self, request: RequestId, code: ErrorCode) {
        self.answer(request, Answer::Refused(code));
    }

    pub(super) fn write(&mut self, changes: Vec<Change>, then: Then) {
        self.writes.push(Write { changes, then });
    }
}

/// Records of one group that become durable together, and what follows.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) changes: Vec<Change>,
    pub(super) then: Then,
}

/// What follows when records are durable, or are not.
#[derive(Debug)]
pub(super) enum Then {
    /// Nothing.
    Nothing,
    /// The members of this generation get their assignment.
    Assign { generation: i32, assignments: BTreeMap<Box<str>, Rc<[u8]>> },
    /// A static member that has come back in a stable group is told so.
    Welcome { member_id: Box<str>, leader_before: Option<Box<str>>, can_skip: bool },
    /// A commit or a deletion of offsets is answered.
    Answer(RequestId, Vec<TopicResults>),
    /// The group is forgotten, and who asked for that is told.
    Forget(Option<RequestId>),
}

/// A rebalance that waits for members to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Joining {
    /// When it is waited no longer.
    pub(super) deadline_ms: u64,
    /// The group was empty: what may be added to the delay, and how long the last one was.
    pub(super) initial: Option<(u64, u64)>,
}

/// A group. Lives in its coordinator.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) state: State,
    pub(super) generation: i32,
    pub(super) protocol_type: Option<Box<str>>,
    pub(super) protocol: Option<Box<str>>,
    pub(super) leader: Option<Box<str>>,
    pub(super) members: BTreeMap<Box<str>, Member>,
    /// The member that each instance is.
    pub(super) instances: BTreeMap<Box<str>, Box<str>>,
    /// Ids that were given out and have not come back, and until when they are waited for.
    pub(super) pending: BTreeMap<Box<str>, u64>,
    pub(super) joining: Option<Joining>,
    pub(super) new_member_added: bool,
    pub(super) sync_deadline_ms: Option<u64>,
    /// The generation whose assignment is on its way to the log.
    pub(super) storing: Option<i32>,
    /// Since when it is in its state, in milliseconds since 1970.
    pub(super) since_ms: Option<i64>,
    pub(super) offsets: Offsets,
    /// The group as its last durable record has it.
    pub(super) stored: Option<Rc<[u8]>>,
    /// What records that are not durable yet say of it.
    pub(super) unapplied: Vec<(AppendId, Option<Rc<[u8]>>)>,
    /// When its coordinator looks at it next.
    pub(super) armed_ms: Option<u64>,
}

impl Group {
    pub(super) fn change_state(&mut self, state: State, now: Now) {
        self.state = state;
        self.since_ms = Some(now.wall_ms);
    }

    /// Whether nothing would be lost if it were forgotten: nobody is here, and the log says nothing of it.
    pub(super) fn is_void(&self) -> bool {
        self.state == State::Empty
            && self.members.is_empty()
            && self.pending.is_empty()
            && self.offsets.is_empty()
            && self.stored.is_none()
            && self.unapplied.is_empty()
    }

    /// Checks who a member says that it is (Kafka's `validateMember`).
    pub(super) fn check_member(&self, identity: &Identity) -> Result<(), ErrorCode> {
        if let Some(instance) = &identity.instance_id {
            return match self.instances.get(instance) {
                None => Err(ErrorCode::UnknownMemberId),
                Some(current) if *current != identity.member_id => Err(ErrorCode::FencedInstanceId),
                Some(_) => Ok(()),
            };
        }
        if self.members.contains_key(&identity.member_id) { Ok(()) } else { Err(ErrorCode::UnknownMemberId) }
    }

    /// Checks a member and its generation.
    pub(super) fn check_current(&self, identity: &Identity, generation: i32) -> Result<(), ErrorCode> {
        self.check_member(identity)?;
        if generation == self.generation { Ok(()) } else { Err(ErrorCode::IllegalGeneration) }
    }

    pub(super) fn is_leader(&self, member_id: &str) -> bool {
        self.leader.as_deref() == Some(member_id)
    }

    /// Whether one more member of this kind could be agreed with.
    pub(super) fn supports(&self, protocol_type: &str, protocols: &[(Box<str>, Box<[u8]>)]) -> bool {
        if self.members.is_empty() && self.state == State::Empty {
            return !protocol_type.is_empty() && !protocols.is_empty();
        }
        let candidates = self.candidates();
        self.protocol_type.as_deref() == Some(protocol_type)
            && protocols.iter().any(|(name, _)| candidates.contains(&**name))
    }

    /// Bytes that members have it keep.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.members.values().map(Member::bytes).sum::<usize>() + bytes <= GROUP_BYTES_MAX
    }

    /// The protocols that every member knows.
    fn candidates(&self) -> BTreeSet<&str> {
        let mut members = self.members.values();
        let Some(first) = members.next() else { return BTreeSet::new() };
        let mut candidates: BTreeSet<&str> = first.protocols.iter().map(|(name, _)| &**name).collect();
        for member in members {
            candidates.retain(|candidate| member.protocols.iter().any(|(name, _)| **name == **candidate));
        }
        candidates
    }

    /// The protocol that most members like best of those that all know.
    pub(super) fn select_protocol(&self) -> Option<Box<str>> {
        let candidates = self.candidates();
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            let best = member.protocols.iter().find(|(name, _)| candidates.contains(&**name));
            *votes.entry(&best?.0).or_default() += 1;
        }
        // Of two with as many votes, the first by name: the same one each time.
        let most = votes.values().max().copied()?;
        votes.into_iter().find(|(_, count)| *count == most).map(|(name, _)| name.into())
    }

    /// Takes a member out; its requests are the caller's to answer.
    pub(super) fn remove(&mut self, member_id: &str) -> Option<Member> {
        let member = self.members.remove(member_id)?;
        if let Some(instance) = &member.instance_id
            && self.instances.get(instance).is_some_and(|current| **current == *member_id)
        {
            self.instances.remove(instance);
        }
        if self.is_leader(member_id) {
            self.leader = self.members.keys().next().cloned();
        }
        Some(member)
    }

    /// The ids of those members that `is` says are meant.
    pub(super) fn those(&self, is: impl Fn(&Member) -> bool) -> Vec<Box<str>> {
        self.members.iter().filter(|(_, member)| is(member)).map(|(id, _)| id.clone()).collect()
    }

    /// How long the slowest member may take to join, in milliseconds.
    pub(super) fn rebalance_timeout_ms(&self) -> u64 {
        self.members.values().map(|member| u64::from(member.rebalance_timeout_ms)).max().unwrap_or_default()
    }

    /// When something is to happen by itself.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        let members = self.members.values().filter_map(Member::expires_ms);
        let pending = self.pending.values().copied();
        let joining = self.joining.map(|joining| joining.deadline_ms);
        members.chain(pending).chain(joining).chain(self.sync_deadline_ms).min()
    }

    /// What a member is told when it has joined; the leader what all say.
    pub(super) fn joined(&self, member_id: &str, with_members: bool) -> Joined {
        let protocol = self.protocol.clone().unwrap_or_default();
        let said = self.members.iter().filter(|_| with_members).map(|(id, member)| JoinedMember {
            identity: member.identity(id),
            metadata: member.metadata(&protocol).into(),
        });
        let members = said.collect();
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            leader: self.leader.clone().unwrap_or_default(),
            member_id: member_id.into(),
            skip_assignment: false,
            members,
            protocol,
        }
    }

    /// The group as a record, with these assignments.
    pub(super) fn value(&self, assignments: impl Fn(&str, &Member) -> Rc<[u8]>, now: Now) -> Rc<[u8]> {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let assigned: Vec<Rc<[u8]>> = self.members.iter().map(|(id, member)| assignments(id, member)).collect();
        let members = self.members.iter().zip(&assigned).map(|((member_id, member), assignment)| MemberValue {
            member_id,
            instance_id: member.instance_id.as_deref(),
            client_id: &member.client_id,
            client_host: &member.client_host,
            rebalance_timeout_ms: member.rebalance_timeout_ms as i32,
            session_timeout_ms: member.session_timeout_ms as i32,
            subscription: member.metadata(protocol),
            assignment,
        });
        let value = GroupValue {
            protocol_type: self.protocol_type.as_deref().unwrap_or_default(),
            generation: self.generation,
            protocol: self.protocol.as_deref(),
            leader: self.leader.as_deref(),
            current_state_timestamp: now.wall_ms,
            members: members.collect(),
        };
        value.encode().into()
    }

    /// Topics that the members of a stable group of consumers read; `None` where that is not known.
    pub(super) fn subscribed(&self) -> Option<BTreeSet<String>> {
        if self.protocol_type.as_deref() != Some(CONSUMER) || self.members.is_empty() {
            return None;
        }
        let protocol = self.protocol.as_deref()?;
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            topics.extend(Subscription::decode(member.metadata(protocol)).ok()?.topics);
        }
        Some(topics)
    }

    /// What the group is.
    pub(super) fn describe(&self, partition: u32) -> Description {
        let protocol = self.protocol.as_deref().filter(|_| self.state == State::Stable);
        let members = self.members.iter().map(|(id, member)| member.describe(id, protocol));
        Description {
            partition,
            state: self.state,
            generation: self.generation,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: protocol.unwrap_or_default().into(),
            leader: self.leader.clone().unwrap_or_default(),
            members: members.collect(),
        }
    }
}
