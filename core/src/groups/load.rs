//! Reading a coordinator's log back: what is durable becomes its state again; appends nothing but what is overdue.

use super::change::Change;
use super::coordinator::{Coordinator, Effect, Phase};
use super::group::{Group, State};
use super::member::Member;
use crate::block::Block;
use crate::shard::Now;
use coulee_protocol::batch::{BatchHeader, BatchType, HEADER_BYTES};
use coulee_protocol::columns::{Columns, Scratch};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::TopicId;
use coulee_protocol::kafka::consumer_offsets::GroupValue;
use std::collections::BTreeSet;
use std::rc::Rc;

/// What a load still waits for.
#[derive(Debug)]
pub(super) struct Loading {
    /// The log has been read to its end.
    is_read: bool,
    /// The catalog is known, or was when the log began.
    is_told: bool,
    /// Topics that there are, where that matters.
    topics: Option<Rc<BTreeSet<TopicId>>>,
    /// Topics that went since.
    deleted: Vec<TopicId>,
}

impl Loading {
    pub(super) const fn new(is_told: bool) -> Self {
        Self { is_read: false, is_told, topics: None, deleted: Vec::new() }
    }
}

impl Coordinator {
    /// Batches have come, or the end of the log.
    pub(super) fn read(&mut self, now: Now, read: Result<Vec<Block>, ErrorCode>) {
        let Phase::Loading(loading) = &mut self.phase else { return };
        loading.is_read = read.as_ref().is_ok_and(Vec::is_empty);
        let is_read = loading.is_read;
        match read.and_then(|batches| batches.iter().try_for_each(|batch| self.replay(batch))) {
            // Groups that are not seen would begin anew: better none of this partition than some of them wrong.
            Err(code) => self.phase = Phase::Failed(code),
            Ok(()) if is_read => self.finish_loading(now),
            Ok(()) => self.effects.push(Effect::Read(self.applied_end)),
        }
    }

    /// Applies the records of a batch.
    fn replay(&mut self, batch: &[u8]) -> Result<(), ErrorCode> {
        let header = BatchHeader::decode(batch).map_err(|_| ErrorCode::RangeDamaged)?;
        self.applied_end = header.end_offset();
        if header.batch_type != BatchType::Data {
            return Ok(());
        }
        let mut scratch = Scratch::default();
        let columns =
            Columns::open(&batch[HEADER_BYTES..], &header, &mut scratch).map_err(|_| ErrorCode::RangeDamaged)?;
        for record in columns.records() {
            let key = record.key.ok_or(ErrorCode::FormatTooNew)?;
            // What this version does not know a newer one has written.
            let decoded = Change::decode(key, record.value, record.headers).map_err(|_| ErrorCode::FormatTooNew)?;
            self.replay_change(decoded.0, decoded.1);
            self.upkeep.records_in_log += 1;
        }
        Ok(())
    }

    fn replay_change(&mut self, name: &str, change: Change) {
        if !self.groups.contains_key(name) {
            self.groups.insert(name.into(), Group::default());
        }
        let group = self.groups.get_mut(name).expect("it was just made sure of");
        match change {
            Change::Offset { topic, partition, committed } => group.offsets.replay(&topic, partition, committed),
            Change::Group(value) => group.stored = value,
        }
    }

    pub(super) fn told_topics(&mut self, now: Now, topics: &Rc<BTreeSet<TopicId>>) {
        if let Phase::Loading(loading) = &mut self.phase {
            loading.is_told = true;
            loading.topics = Some(Rc::clone(topics));
            self.finish_loading(now);
        }
    }

    pub(super) fn topic_deleted(&mut self, now: Now, topic: TopicId) {
        match &mut self.phase {
            Phase::Loading(loading) => loading.deleted.push(topic),
            Phase::Ready => self.forget_offsets(now, |id| id == topic),
            Phase::Failed(_) => {}
        }
    }

    /// Once log and catalog are known: members are there again, and offsets of topics that are not are taken out.
    fn finish_loading(&mut self, now: Now) {
        let Phase::Loading(loading) = &mut self.phase else { return };
        if !loading.is_read || !loading.is_told {
            return;
        }
        let (topics, deleted) = (loading.topics.take(), std::mem::take(&mut loading.deleted));
        self.phase = Phase::Ready;
        let names: Vec<Box<str>> = self.groups.keys().cloned().collect();
        for name in names {
            let group = self.groups.get_mut(&name).expect("it was just listed");
            if group.adopt(now).is_err() {
                self.phase = Phase::Failed(ErrorCode::FormatTooNew);
                return;
            }
            self.look_again(&name);
        }
        let is_gone =
            |id: TopicId| deleted.contains(&id) || topics.as_ref().is_some_and(|topics| !topics.contains(&id));
        self.forget_offsets(now, is_gone);
        self.begin_upkeep(now);
    }

    fn forget_offsets(&mut self, now: Now, is_gone: impl Fn(TopicId) -> bool) {
        let names: Vec<Box<str>> = self.groups.keys().cloned().collect();
        for name in names {
            let Some(group) = self.groups.get(&name) else { continue };
            let changes = group.offsets.tombstones(|_, _, committed| is_gone(committed.topic_id));
            if !changes.is_empty() {
                let then = super::group::Then::Nothing;
                self.write(now, &name, super::group::Write { changes, then });
            }
        }
    }
}

impl Group {
    /// Becomes what is stored: a group with members goes on in its generation, and waits for their heartbeats.
    fn adopt(&mut self, now: Now) -> Result<(), coulee_protocol::kafka::SchemaError> {
        let Some(stored) = self.stored.clone() else { return Ok(()) };
        let value = GroupValue::decode(&stored)?;
        self.generation = value.generation;
        self.protocol_type = Some(value.protocol_type).filter(|kind| !kind.is_empty()).map(Into::into);
        self.protocol = value.protocol.map(Into::into);
        self.leader = value.leader.map(Into::into);
        self.since_ms = Some(value.current_state_timestamp).filter(|since| *since >= 0);
        self.state = if value.members.is_empty() { State::Empty } else { State::Stable };
        for stored in value.members {
            let mut member = Member {
                instance_id: stored.instance_id.map(Into::into),
                client_id: stored.client_id.into(),
                client_host: stored.client_host.into(),
                session_timeout_ms: stored.session_timeout_ms.max(0) as u32,
                rebalance_timeout_ms: stored.rebalance_timeout_ms.max(0) as u32,
                protocols: vec![(value.protocol.unwrap_or_default().into(), stored.subscription.into())],
                assignment: stored.assignment.into(),
                joins: None,
                syncs: None,
                is_new: false,
                owes_sync: false,
                deadline_ms: 0,
            };
            member.touch(now.monotonic_ms);
            if let Some(instance) = &member.instance_id {
                self.instances.insert(instance.clone(), stored.member_id.into());
            }
            self.members.insert(stored.member_id.into(), member);
        }
        Ok(())
    }
}
