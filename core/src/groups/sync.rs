//! Assignments and heartbeats: how a generation becomes stable and stays so; decides nothing about who is a member.

use super::change::Change;
use super::group::{Group, State, Then, Turn};
use super::request::{Answer, Identity, Sync, Synced};
use crate::limits::GROUP_BYTES_MAX;
use crate::shard::RequestId;
use coulee_protocol::error::ErrorCode;
use std::collections::BTreeMap;
use std::rc::Rc;

impl Group {
    /// Takes a request for an assignment; the leader's brings all of them (Kafka's `handleSyncGroup`).
    pub(super) fn sync(&mut self, turn: &mut Turn<'_>, request: RequestId, sync: Sync) {
        if let Err(code) = self.check_sync(&sync) {
            return turn.refuse(request, code);
        }
        let is_leader = self.is_leader(&sync.identity.member_id);
        let is_stable = self.state == State::Stable;
        let (now_ms, member) = (turn.now.monotonic_ms, self.members.get_mut(&sync.identity.member_id));
        let Some(member) = member else { return turn.refuse(request, ErrorCode::UnknownMemberId) };
        member.owes_sync = false;
        if is_stable {
            member.touch(now_ms);
            let assignment = Rc::clone(&member.assignment);
            let synced = self.synced(&assignment);
            return turn.answer(request, Answer::Synced(synced));
        }
        let before = member.syncs.replace(request);
        before.into_iter().for_each(|before| turn.refuse(before, ErrorCode::RebalanceInProgress));
        // Once for each generation: a second assignment of the same one would give a partition to two.
        if is_leader && self.storing != Some(self.generation) {
            self.store(turn, sync.assignments);
        }
    }

    fn check_sync(&self, sync: &Sync) -> Result<(), ErrorCode> {
        if self.state == State::Dead {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        self.check_current(&sync.identity, sync.generation)?;
        let differs = |said: &Option<Box<str>>, own: &Option<Box<str>>| said.is_some() && said != own;
        if differs(&sync.protocol_type, &self.protocol_type) || differs(&sync.protocol, &self.protocol) {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        match self.state {
            State::Empty | State::Dead => Err(ErrorCode::UnknownMemberId),
            State::PreparingRebalance => Err(ErrorCode::RebalanceInProgress),
            State::CompletingRebalance | State::Stable => Ok(()),
        }
    }

    /// Stores what the leader has assigned. Members that it left out get nothing.
    fn store(&mut self, turn: &mut Turn<'_>, assignments: Vec<(Box<str>, Box<[u8]>)>) {
        let known = assignments.into_iter().filter(|(id, _)| self.members.contains_key(id));
        let assignments: BTreeMap<Box<str>, Rc<[u8]>> = known.map(|(id, bytes)| (id, Rc::from(bytes))).collect();
        if assignments.values().map(|bytes| bytes.len()).sum::<usize>() > GROUP_BYTES_MAX {
            self.refuse_syncs(turn, ErrorCode::MessageTooLarge);
            return self.maybe_rebalance(turn);
        }
        let nothing: Rc<[u8]> = Rc::from([]);
        let assigned = |id: &str, _: &_| assignments.get(id).cloned().unwrap_or_else(|| Rc::clone(&nothing));
        let value = self.value(assigned, turn.now);
        let generation = self.generation;
        self.storing = Some(generation);
        turn.write(vec![Change::Group(Some(value))], Then::Assign { generation, assignments });
    }

    /// The leader's assignment is stored, or is not. Where the group has moved on meanwhile, nobody has seen it.
    pub(super) fn stored_assignment(
        &mut self,
        turn: &mut Turn<'_>,
        generation: i32,
        mut assignments: BTreeMap<Box<str>, Rc<[u8]>>,
        stored: Result<(), ErrorCode>,
    ) {
        if self.storing == Some(generation) {
            self.storing = None;
        }
        if self.state != State::CompletingRebalance || generation != self.generation {
            return;
        }
        if let Err(code) = stored {
            self.refuse_syncs(turn, code);
            self.maybe_rebalance(turn);
            return self.complete_if_all_joined(turn);
        }
        self.change_state(State::Stable, turn.now);
        let ids: Vec<Box<str>> = self.members.keys().cloned().collect();
        for id in ids {
            let assignment = assignments.remove(&id).unwrap_or_else(|| Rc::from([]));
            let synced = self.synced(&assignment);
            let member = self.members.get_mut(&id).expect("it was just listed");
            member.assignment = assignment;
            if let Some(request) = member.syncs.take() {
                member.touch(turn.now.monotonic_ms);
                turn.answer(request, Answer::Synced(synced));
            }
        }
    }

    /// Sends everyone who waits for an assignment away.
    pub(super) fn refuse_syncs(&mut self, turn: &mut Turn<'_>, code: ErrorCode) {
        for member in self.members.values_mut() {
            member.assignment = Rc::from([]);
            if let Some(request) = member.syncs.take() {
                member.touch(turn.now.monotonic_ms);
                turn.refuse(request, code);
            }
        }
    }

    fn synced(&self, assignment: &[u8]) -> Synced {
        Synced {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: self.protocol.clone().unwrap_or_default(),
            assignment: assignment.into(),
        }
    }

    /// Notes that a member lives; what it has to know.
    pub(super) fn heartbeat(&mut self, turn: &Turn<'_>, identity: &Identity, generation: i32) -> Result<(), ErrorCode> {
        if self.state == State::Dead {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        self.check_current(identity, generation)?;
        if let Some(member) = self.members.get_mut(&identity.member_id) {
            member.touch(turn.now.monotonic_ms);
        }
        match self.state {
            State::PreparingRebalance => Err(ErrorCode::RebalanceInProgress),
            State::CompletingRebalance | State::Stable => Ok(()),
            State::Empty | State::Dead => Err(ErrorCode::UnknownMemberId),
        }
    }
}
