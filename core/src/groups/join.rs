//! Joining, leaving, expiring: how a group's members come together in a generation; stores nothing but empty groups.

use super::change::Change;
use super::group::{Group, Joining, State, Then, Turn};
use super::member::{Member, new_member_id};
use super::request::{Answer, Identity, Join};
use crate::shard::RequestId;
use coulee_protocol::error::ErrorCode;
use std::rc::Rc;

impl Group {
    /// Takes a request to join (Kafka's `handleJoinGroup`).
    pub(super) fn join(&mut self, turn: &mut Turn<'_>, request: RequestId, join: Join) {
        if let Err(code) = self.check_join(turn, &join) {
            turn.refuse(request, code);
        } else if join.identity.member_id.is_empty() {
            self.join_new(turn, request, join);
        } else {
            self.join_again(turn, request, join);
        }
        self.complete_if_all_joined(turn);
    }

    fn check_join(&self, turn: &Turn<'_>, join: &Join) -> Result<(), ErrorCode> {
        let member = self.members.get(&join.identity.member_id);
        let full = match self.state {
            State::Empty | State::Dead => false,
            State::PreparingRebalance => {
                let waiting = self.members.values().filter(|member| member.joins.is_some()).count();
                member.is_none_or(|member| member.joins.is_none()) && waiting >= turn.options.members_max
            }
            State::CompletingRebalance | State::Stable => {
                member.is_none() && self.members.len() >= turn.options.members_max
            }
        };
        let pending_full = join.identity.member_id.is_empty() && self.pending.len() >= turn.options.members_max;
        let bytes = join.protocols.iter().map(|(name, metadata)| name.len() + metadata.len()).sum::<usize>();
        if full || pending_full || !self.has_room(bytes) {
            return Err(ErrorCode::GroupMaxSizeReached);
        }
        if self.state == State::Dead {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        if !self.supports(&join.protocol_type, &join.protocols) {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        Ok(())
    }

    fn join_new(&mut self, turn: &mut Turn<'_>, request: RequestId, join: Join) {
        let member_id = new_member_id(&join);
        let instance = join.identity.instance_id.as_ref();
        match instance.map(|instance| self.instances.get(instance).cloned()) {
            Some(Some(old)) => self.replace_static(turn, request, join, (old, member_id)),
            None if join.requires_known_member => {
                // It comes back with its id: so one that never gets an answer leaves no member behind (KIP-394).
                let deadline_ms = turn.now.monotonic_ms + u64::from(join.session_timeout_ms);
                self.pending.insert(member_id.clone(), deadline_ms);
                turn.answer(request, Answer::MemberIdRequired(member_id));
            }
            _ => self.add(turn, request, join, member_id),
        }
    }

    fn join_again(&mut self, turn: &mut Turn<'_>, request: RequestId, join: Join) {
        let member_id = join.identity.member_id.clone();
        if self.pending.contains_key(&member_id) {
            if join.identity.instance_id.is_some() {
                // A static member gets its id and is a member at once: this one is not who it says.
                return turn.refuse(request, ErrorCode::UnknownMemberId);
            }
            return self.add(turn, request, join, member_id);
        }
        if let Err(code) = self.check_member(&join.identity) {
            return turn.refuse(request, code);
        }
        let says_the_same = self.members.get(&member_id).is_some_and(|member| member.says(&join.protocols));
        let is_leader = self.is_leader(&member_id);
        match self.state {
            State::Empty | State::Dead => turn.refuse(request, ErrorCode::UnknownMemberId),
            // It may not have got its answer: it gets it again.
            State::CompletingRebalance if says_the_same => {
                turn.answer(request, Answer::Joined(Box::new(self.joined(&member_id, is_leader))));
            }
            // A leader that joins again has seen something that changes the assignment.
            State::Stable if says_the_same && !is_leader => {
                turn.answer(request, Answer::Joined(Box::new(self.joined(&member_id, false))));
            }
            _ => {
                let before = self.members.get_mut(&member_id).and_then(|member| member.update(request, join));
                before.into_iter().for_each(|before| turn.refuse(before, ErrorCode::RebalanceInProgress));
                self.maybe_rebalance(turn);
            }
        }
    }

    fn add(&mut self, turn: &mut Turn<'_>, request: RequestId, join: Join, member_id: Box<str>) {
        self.new_member_added |= self.state == State::PreparingRebalance && self.generation == 0;
        if self.members.is_empty() {
            self.protocol_type = Some(join.protocol_type.clone());
        }
        self.pending.remove(&member_id);
        let member = Member::new(request, join, turn.now.monotonic_ms);
        if let Some(instance) = &member.instance_id {
            self.instances.insert(instance.clone(), member_id.clone());
        }
        self.leader.get_or_insert_with(|| member_id.clone());
        self.members.insert(member_id, member);
        self.maybe_rebalance(turn);
    }

    /// A static member has come back, without the id that it had (Kafka's `updateStaticMemberAndRebalance`).
    fn replace_static(
        &mut self,
        turn: &mut Turn<'_>,
        request: RequestId,
        join: Join,
        (old, new): (Box<str>, Box<str>),
    ) {
        let leader_before = self.leader.clone();
        let Some(mut member) = self.members.remove(&old) else { return };
        // Whoever else goes by its name is fenced off at once.
        for waiting in [member.joins.take(), member.syncs.take()].into_iter().flatten() {
            turn.refuse(waiting, ErrorCode::FencedInstanceId);
        }
        let can_skip = join.can_skip_assignment;
        member.update(request, join);
        member.touch(turn.now.monotonic_ms);
        member.instance_id.iter().for_each(|instance| drop(self.instances.insert(instance.clone(), new.clone())));
        self.members.insert(new.clone(), member);
        if self.is_leader(&old) {
            self.leader = Some(new.clone());
        }
        match self.state {
            State::Stable if self.select_protocol() == self.protocol => {
                let value = self.value(|_, member| Rc::clone(&member.assignment), turn.now);
                let then = Then::Welcome { member_id: new, leader_before, can_skip };
                turn.write(vec![Change::Group(Some(value))], then);
            }
            // The leader may have been shown the old id: its assignment would miss the new one.
            State::Stable | State::CompletingRebalance => self.prepare_rebalance(turn),
            State::Empty | State::PreparingRebalance | State::Dead => {}
        }
    }

    /// Answers a static member that came back, once that is stored.
    pub(super) fn welcome(
        &mut self,
        turn: &mut Turn<'_>,
        member_id: &str,
        leader_before: Option<Box<str>>,
        can_skip: bool,
    ) {
        let is_leader = self.is_leader(member_id);
        let mut joined = self.joined(member_id, is_leader && can_skip);
        if can_skip {
            joined.skip_assignment = is_leader;
        } else {
            // By the old leader's id it sees that it is not to assign: a stable group would not hand that on.
            joined.leader = leader_before.unwrap_or_default();
        }
        let Some(member) = self.members.get_mut(member_id) else { return };
        // It may have been swept into a rebalance since, which answers it.
        if self.state == State::Stable
            && let Some(request) = member.joins.take()
        {
            member.is_new = false;
            member.touch(turn.now.monotonic_ms);
            turn.answer(request, Answer::Joined(Box::new(joined)));
        }
    }

    pub(super) fn maybe_rebalance(&mut self, turn: &mut Turn<'_>) {
        if matches!(self.state, State::Empty | State::CompletingRebalance | State::Stable) {
            self.prepare_rebalance(turn);
        }
    }

    /// Has every member join again.
    pub(super) fn prepare_rebalance(&mut self, turn: &mut Turn<'_>) {
        if self.state == State::CompletingRebalance {
            self.refuse_syncs(turn, ErrorCode::RebalanceInProgress);
        }
        self.sync_deadline_ms = None;
        self.members.values_mut().for_each(|member| member.owes_sync = false);
        let (now_ms, timeout_ms) = (turn.now.monotonic_ms, self.rebalance_timeout_ms());
        let delay_ms = u64::from(turn.options.initial_delay_ms);
        self.joining = Some(match self.state {
            State::Empty if delay_ms > 0 => Joining {
                deadline_ms: now_ms + delay_ms,
                initial: Some((timeout_ms.saturating_sub(delay_ms), delay_ms)),
            },
            _ => Joining { deadline_ms: now_ms + timeout_ms, initial: None },
        });
        self.change_state(State::PreparingRebalance, turn.now);
    }

    pub(super) fn complete_if_all_joined(&mut self, turn: &mut Turn<'_>) {
        let waits_for_first = self.joining.is_some_and(|joining| joining.initial.is_some());
        let all = self.members.values().all(|member| member.joins.is_some()) && self.pending.is_empty();
        if self.state == State::PreparingRebalance && !waits_for_first && all {
            self.complete_join(turn);
        }
    }

    /// Begins the next generation with those who have joined (Kafka's `onCompleteJoin`).
    fn complete_join(&mut self, turn: &mut Turn<'_>) {
        let absent = self.those(|member| member.joins.is_none() && member.instance_id.is_none());
        absent.iter().for_each(|id| drop(self.remove(id)));
        if !self.elect_leader() && !self.members.is_empty() {
            // None of them has joined: they are static members, which keep their place until they expire.
            let deadline_ms = turn.now.monotonic_ms + self.rebalance_timeout_ms().max(1);
            self.joining = Some(Joining { deadline_ms, initial: None });
            return;
        }
        self.joining = None;
        self.new_member_added = false;
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.protocol = self.select_protocol();
        if self.members.is_empty() {
            self.leader = None;
            self.change_state(State::Empty, turn.now);
            let value = self.value(|_, member| Rc::clone(&member.assignment), turn.now);
            turn.write(vec![Change::Group(Some(value))], Then::Nothing);
            return;
        }
        self.change_state(State::CompletingRebalance, turn.now);
        self.sync_deadline_ms = Some(turn.now.monotonic_ms + self.rebalance_timeout_ms());
        for id in self.those(|_| true) {
            let joined = self.joined(&id, self.is_leader(&id));
            let member = self.members.get_mut(&id).expect("it was just listed");
            let request = member.joins.take();
            member.is_new = false;
            member.owes_sync = true;
            member.touch(turn.now.monotonic_ms);
            request.into_iter().for_each(|request| turn.answer(request, Answer::Joined(Box::new(joined.clone()))));
        }
    }

    /// Makes sure that the leader is one who has joined. Whether there is one.
    fn elect_leader(&mut self) -> bool {
        let has_joined = |id: &str| self.members.get(id).is_some_and(|member| member.joins.is_some());
        if self.leader.as_deref().is_some_and(has_joined) {
            return true;
        }
        let joined = self.members.iter().find(|(_, member)| member.joins.is_some()).map(|(id, _)| id.clone());
        let found = joined.is_some();
        self.leader = joined.or_else(|| self.leader.take());
        found
    }

    /// Takes out those who leave. What became of each.
    pub(super) fn leave(&mut self, turn: &mut Turn<'_>, leaving: Vec<Identity>) -> Vec<(Identity, ErrorCode)> {
        let results = leaving.into_iter().map(|identity| {
            let code = self.leave_one(turn, &identity).err().unwrap_or(ErrorCode::None);
            (identity, code)
        });
        results.collect()
    }

    fn leave_one(&mut self, turn: &mut Turn<'_>, identity: &Identity) -> Result<(), ErrorCode> {
        if self.state == State::Dead {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        if identity.instance_id.is_none() && self.pending.remove(&identity.member_id).is_some() {
            self.complete_if_all_joined(turn);
            return Ok(());
        }
        // An operator names a static member by its own name alone (KIP-345).
        let by_instance = identity.member_id.is_empty();
        let instance = identity.instance_id.as_ref().filter(|_| by_instance);
        let member_id = match instance {
            Some(instance) => self.instances.get(instance).cloned().ok_or(ErrorCode::UnknownMemberId)?,
            None => {
                self.check_member(identity)?;
                identity.member_id.clone()
            }
        };
        self.lose(turn, &member_id);
        self.after_loss(turn);
        Ok(())
    }

    /// Takes a member out that waits for nothing any more.
    fn lose(&mut self, turn: &mut Turn<'_>, member_id: &str) {
        let Some(member) = self.remove(member_id) else { return };
        for waiting in [member.joins, member.syncs].into_iter().flatten() {
            turn.refuse(waiting, ErrorCode::UnknownMemberId);
        }
    }

    fn after_loss(&mut self, turn: &mut Turn<'_>) {
        if matches!(self.state, State::CompletingRebalance | State::Stable) {
            self.prepare_rebalance(turn);
        }
        self.complete_if_all_joined(turn);
    }

    /// Does what time asks for.
    pub(super) fn expire(&mut self, turn: &mut Turn<'_>) {
        let now_ms = turn.now.monotonic_ms;
        let waited = self.pending.len();
        self.pending.retain(|_, deadline_ms| *deadline_ms > now_ms);
        let silent = self.those(|member| member.expires_ms().is_some_and(|at| at <= now_ms));
        silent.iter().for_each(|id| self.lose(turn, id));
        if self.sync_deadline_ms.is_some_and(|at| at <= now_ms) {
            self.sync_deadline_ms = None;
            let owing = self.those(|member| member.owes_sync);
            owing.iter().for_each(|id| self.lose(turn, id));
            if !owing.is_empty() {
                self.prepare_rebalance(turn);
            }
        }
        if !silent.is_empty() {
            self.after_loss(turn);
        } else if waited > self.pending.len() || self.state == State::PreparingRebalance {
            self.complete_if_all_joined(turn);
        }
        if let Some(joining) = self.joining.filter(|joining| joining.deadline_ms <= now_ms) {
            self.joined_long_enough(turn, joining);
        }
    }

    /// The time to join is over; a group's first members are waited for again as long as new ones come (KIP-134).
    fn joined_long_enough(&mut self, turn: &mut Turn<'_>, joining: Joining) {
        match joining.initial {
            Some((left_ms, last_ms)) if self.new_member_added && left_ms > 0 => {
                self.new_member_added = false;
                let delay_ms = u64::from(turn.options.initial_delay_ms).min(left_ms);
                let deadline_ms = turn.now.monotonic_ms + delay_ms;
                self.joining =
                    Some(Joining { deadline_ms, initial: Some((left_ms.saturating_sub(last_ms), delay_ms)) });
            }
            _ => self.complete_join(turn),
        }
    }
}
