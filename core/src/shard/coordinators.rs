//! Coordinators of a shard: one for each partition of the offsets topic that it owns; moves their records and answers.
//!
//! A coordinator appends and reads as a client would, under numbers of its own, whose effects are kept back here. What
//! it wants is done at once, so that a batch that is refused is known before anything else happens to it.

use super::fetches::{FetchError, FetchPart, FetchSpec, FetchedPart};
use super::{Effect, Produced, RequestId, Shard};
use crate::block::Block;
use crate::disk::Disk;
use crate::groups::request::Listed;
use crate::groups::{
    Answer, AppendId, Coordinator, Effect as GroupEffect, Event, GroupRequest, OFFSETS_TOPIC_ID, Options, partition_of,
};
use crate::limits::READ_BYTES;
use crate::log::Incoming;
use crate::log::segment::Owner;
use crate::partition::{Acks, ProduceError};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{Offset, PartitionUid, TopicId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

/// Numbers of coordinators begin here; those of clients are below, those of the controller above.
const OWN: u64 = 1 << 63;
const OWN_END: u64 = OWN | 1 << 62;
/// Set in the number of a read.
const READ: u64 = 1 << 61;
/// Where the coordinator's partition lies in its numbers.
const PARTITION_SHIFT: u32 = 48;

/// The coordinators of one shard.
#[derive(Debug, Default)]
pub(super) struct Coordinators {
    options: Options,
    all: BTreeMap<u32, (PartitionUid, Coordinator)>,
    /// What they are to be told, in order.
    events: VecDeque<(u32, Event)>,
    /// Appends and reads whose effects are to be kept back.
    outstanding: usize,
    /// The catalog has been read: a log that is opened later is a new one.
    is_told: bool,
}

impl Coordinators {
    pub(super) const fn allow(&mut self, options: Options) {
        self.options = options;
    }

    pub(super) fn deadline_ms(&self) -> Option<u64> {
        // What they were not told yet is due at once.
        let now_due = (!self.events.is_empty()).then_some(0);
        self.all.values().filter_map(|(_, coordinator)| coordinator.deadline_ms()).chain(now_due).min()
    }
}

impl<D: Disk> Shard<D> {
    /// A partition has been opened: one of the offsets topic gets its coordinator.
    pub(super) fn begin_coordinator(&mut self, owner: &Owner, log_start: Offset) {
        if owner.topic_id != OFFSETS_TOPIC_ID {
            return;
        }
        let coordinators = &mut self.coordinators;
        let coordinator = Coordinator::new(owner.partition, coordinators.options, log_start, coordinators.is_told);
        coordinators.all.insert(owner.partition, (owner.partition_uid, coordinator));
        // Its first wish is to read.
        coordinators.events.push_back((owner.partition, Event::Tick));
    }

    /// Takes a request for a group. Its answer comes out of a later cycle.
    pub(super) fn ask_group(&mut self, request: RequestId, asked: GroupRequest) {
        let partition = partition_of(&asked.group);
        if self.coordinators.all.contains_key(&partition) {
            self.coordinators.events.push_back((partition, Event::Request(request, asked)));
        } else {
            // It is somewhere else, or is being opened, or could not be.
            let refused = Answer::Refused(ErrorCode::NotCoordinator);
            self.effects.push_back(Effect::Group(request, refused));
        }
    }

    /// All groups of this shard's coordinators.
    pub(super) fn list_groups(&mut self, request: RequestId) {
        let mut groups: Result<Vec<Listed>, ErrorCode> = Ok(Vec::new());
        for (_, coordinator) in self.coordinators.all.values() {
            groups = groups.and_then(|mut groups| {
                groups.extend(coordinator.list()?);
                Ok(groups)
            });
        }
        self.effects.push_back(Effect::Groups(request, groups));
    }

    pub(super) fn tell_topics(&mut self, topics: BTreeSet<TopicId>) {
        let topics = Rc::new(topics);
        self.coordinators.is_told = true;
        for partition in self.coordinators.all.keys() {
            self.coordinators.events.push_back((*partition, Event::Topics(Rc::clone(&topics))));
        }
    }

    pub(super) fn tell_topic_deleted(&mut self, topic: TopicId) {
        for partition in self.coordinators.all.keys() {
            self.coordinators.events.push_back((*partition, Event::TopicDeleted(topic)));
        }
    }

    /// Tells coordinators what has happened, and does what they want. Whether there was anything.
    pub(super) fn coordinate(&mut self) -> bool {
        self.keep_own_effects();
        let now_ms = self.now.monotonic_ms;
        for (partition, (_, coordinator)) in &self.coordinators.all {
            if coordinator.deadline_ms().is_some_and(|at| at <= now_ms) {
                self.coordinators.events.push_back((*partition, Event::Tick));
            }
        }
        let worked = !self.coordinators.events.is_empty();
        while let Some((partition, event)) = self.coordinators.events.pop_front() {
            let Some((uid, coordinator)) = self.coordinators.all.get_mut(&partition) else { continue };
            let (uid, effects) = (*uid, coordinator.step(self.now, event));
            // First of all: a batch that is refused is known to its coordinator before the next event.
            let mut refused = Vec::new();
            for effect in effects {
                refused.extend(self.carry_out(partition, uid, effect));
            }
            refused.into_iter().rev().for_each(|event| self.coordinators.events.push_front((partition, event)));
        }
        worked
    }

    /// Does what a coordinator wants; what it is to be told at once.
    fn carry_out(&mut self, partition: u32, uid: PartitionUid, effect: GroupEffect) -> Option<Event> {
        match effect {
            GroupEffect::Answer(request, answer) => {
                self.effects.push_back(Effect::Group(request, answer));
                None
            }
            GroupEffect::Append(append) => {
                let request = own_request(partition, append.id.0);
                let batch = Incoming::Shared(Block::from_owner(Rc::new(append.batch)));
                let produced = self.produce(request, uid, Acks::Acknowledged, batch);
                self.coordinators.outstanding += usize::from(produced.is_ok());
                produced.err().map(|error| Event::Appended(append.id, Err(code_of(&error))))
            }
            GroupEffect::Read(offset) => {
                let part = FetchPart { partition: uid, offset, bytes_max: READ_BYTES };
                let spec = FetchSpec { parts: vec![part], bytes_min: 1, bytes_max: READ_BYTES, wait_ms: 0 };
                self.coordinators.outstanding += 1;
                self.fetch(own_request(partition, READ), spec);
                None
            }
            GroupEffect::LetGo(_) => None,
        }
    }

    /// Keeps back what answers a coordinator.
    pub(super) fn keep_own_effects(&mut self) {
        if self.coordinators.outstanding == 0 {
            return;
        }
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Produced(request, result) if is_own(request) => self.own_appended(request, result),
                Effect::Fetched(request, parts) if is_own(request) => self.own_read(request, parts),
                effect => self.effects.push_back(effect),
            }
        }
    }

    fn own_appended(&mut self, request: RequestId, result: Result<Produced, ProduceError>) {
        let (partition, number) = partition_and_number(request);
        let result = result.map(|produced| produced.base_offset).map_err(|error| code_of(&error));
        self.coordinators.outstanding -= 1;
        self.coordinators.events.push_back((partition, Event::Appended(AppendId(number), result)));
    }

    fn own_read(&mut self, request: RequestId, parts: Vec<FetchedPart>) {
        let (partition, _) = partition_and_number(request);
        self.coordinators.outstanding -= 1;
        let read = parts.into_iter().next().map_or(Ok(Vec::new()), |part| part.batches);
        let read = read.map_err(|error: FetchError| error.code());
        self.coordinators.events.push_back((partition, Event::Read(read)));
    }
}

const fn own_request(partition: u32, number: u64) -> RequestId {
    RequestId(OWN | (partition as u64) << PARTITION_SHIFT | number)
}

const fn is_own(request: RequestId) -> bool {
    request.0 >= OWN && request.0 < OWN_END
}

const fn partition_and_number(request: RequestId) -> (u32, u64) {
    let number = request.0 & !(OWN | READ);
    ((number >> PARTITION_SHIFT) as u32, number & ((1 << PARTITION_SHIFT) - 1))
}

/// What a client is told where a coordinator's record was not stored.
const fn code_of(error: &ProduceError) -> ErrorCode {
    match error {
        // The partition is on its way here or away from here.
        ProduceError::Unknown | ProduceError::Recovering => ErrorCode::NotCoordinator,
        other => other.code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_coordinators_are_those_of_nobody_else() {
        for (partition, number) in [(0, 0), (49, 7), (49, (1 << 48) - 1)] {
            let request = own_request(partition, number);
            assert!(is_own(request));
            assert_eq!(partition_and_number(request), (partition, number));
            let read = own_request(partition, READ);
            assert!(is_own(read) && partition_and_number(read) == (partition, 0));
        }
        for other in [crate::controller::CATALOG_REQUEST, RequestId(u64::MAX - 1), RequestId(OWN - 1), RequestId(0)] {
            assert!(!is_own(other));
        }
    }
}
