//! Committed offsets of one group: what is durable, what is on its way to the log; decides who may commit.

use super::Options;
use super::change::{Change, Committed};
use super::coordinator::AppendId;
use super::group::{Group, State, Then, Turn};
use super::request::{Commit, CommitPartition, CommitTopic, TopicOffsets, TopicResults, Wanted, WantedTopic};
use crate::limits::GROUP_OFFSETS_MAX;
use crate::shard::RequestId;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::TopicId;
use std::rc::Rc;

/// Offsets by topic and partition, both in order. Vectors, since nearly every group has a few.
#[derive(Clone, Debug, Default)]
pub(super) struct Offsets {
    topics: Vec<(Rc<str>, Vec<Entry>)>,
    count: usize,
}

/// What is known of one partition.
#[derive(Clone, Debug, Default)]
struct Entry {
    partition: u32,
    durable: Option<Committed>,
    /// What records say that are not durable yet, oldest first.
    unapplied: Vec<(AppendId, Option<Committed>)>,
}

impl Entry {
    /// What the log says at its end.
    fn newest(&self) -> Option<&Committed> {
        self.unapplied.last().map_or(self.durable.as_ref(), |(_, committed)| committed.as_ref())
    }

    fn is_void(&self) -> bool {
        self.durable.is_none() && self.unapplied.is_empty()
    }
}

impl Offsets {
    /// Partitions with an offset, or with one on its way.
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn entry(&self, topic: &str, partition: u32) -> Option<&Entry> {
        let at = self.topics.binary_search_by(|(name, _)| (**name).cmp(topic)).ok()?;
        let entries = &self.topics[at].1;
        entries.binary_search_by_key(&partition, |entry| entry.partition).ok().map(|at| &entries[at])
    }

    /// What is durable of a partition.
    pub(super) fn durable(&self, topic: &str, partition: u32) -> Option<&Committed> {
        self.entry(topic, partition)?.durable.as_ref()
    }

    fn entry_mut(&mut self, topic: &Rc<str>, partition: u32) -> &mut Entry {
        let at = self.topics.binary_search_by(|(name, _)| (**name).cmp(topic)).unwrap_or_else(|at| {
            self.topics.reserve_exact(usize::from(self.topics.is_empty()));
            self.topics.insert(at, (Rc::clone(topic), Vec::new()));
            at
        });
        let entries = &mut self.topics[at].1;
        let at = entries.binary_search_by_key(&partition, |entry| entry.partition).unwrap_or_else(|at| {
            entries.reserve_exact(usize::from(entries.is_empty()));
            entries.insert(at, Entry { partition, ..Entry::default() });
            self.count += 1;
            at
        });
        &mut entries[at]
    }

    fn tidy(&mut self, topic: &str, partition: u32) {
        let Ok(at) = self.topics.binary_search_by(|(name, _)| (**name).cmp(topic)) else { return };
        let entries = &mut self.topics[at].1;
        if let Ok(place) = entries.binary_search_by_key(&partition, |entry| entry.partition)
            && entries[place].is_void()
        {
            entries.remove(place);
            self.count -= 1;
        }
        if entries.is_empty() {
            self.topics.remove(at);
        }
    }

    /// A record was given to the log.
    pub(super) fn appended(&mut self, id: AppendId, topic: &Rc<str>, partition: u32, committed: Option<Committed>) {
        self.entry_mut(topic, partition).unapplied.push((id, committed));
    }

    /// That record is durable, or never will be.
    pub(super) fn settled(&mut self, id: AppendId, topic: &Rc<str>, partition: u32, is_durable: bool) {
        let entry = self.entry_mut(topic, partition);
        if let Some(at) = entry.unapplied.iter().position(|(own, _)| *own == id) {
            let (_, committed) = entry.unapplied.remove(at);
            if is_durable {
                entry.durable = committed;
            }
        }
        self.tidy(topic, partition);
    }

    /// Takes what a record says that was read back.
    pub(super) fn replay(&mut self, topic: &Rc<str>, partition: u32, committed: Option<Committed>) {
        self.entry_mut(topic, partition).durable = committed;
        self.tidy(topic, partition);
    }

    /// Every offset as the log has it at its end.
    pub(super) fn at_log_end(&self) -> impl Iterator<Item = (&Rc<str>, u32, &Committed)> {
        let entries = self.topics.iter().flat_map(|(topic, entries)| entries.iter().map(move |entry| (topic, entry)));
        entries.filter_map(|(topic, entry)| Some((topic, entry.partition, entry.newest()?)))
    }

    fn all_durable(&self) -> impl Iterator<Item = TopicOffsets> {
        self.topics.iter().map(|(name, entries)| {
            let partition = |entry: &Entry| Some((entry.partition, Some(entry.durable.clone()?)));
            TopicOffsets { name: (**name).into(), partitions: entries.iter().filter_map(partition).collect() }
        })
    }

    /// Records that take away each offset that `is_gone` says is.
    pub(super) fn tombstones(&self, is_gone: impl Fn(&str, u32, &Committed) -> bool) -> Vec<Change> {
        let gone = self.at_log_end().filter(|(topic, partition, committed)| is_gone(topic, *partition, committed));
        let tombstone = |(topic, partition, _): (&Rc<str>, u32, &Committed)| Change::Offset {
            topic: Rc::clone(topic),
            partition,
            committed: None,
        };
        gone.map(tombstone).collect()
    }

    /// Whether a record of this partition is on its way to the log.
    pub(super) fn is_unapplied(&self, topic: &str, partition: u32) -> bool {
        self.entry(topic, partition).is_some_and(|entry| !entry.unapplied.is_empty())
    }
}

impl Group {
    /// Whether someone may commit (Kafka's `validateOffsetCommit`).
    fn check_commit(&self, commit: &Commit) -> Result<(), ErrorCode> {
        if self.state == State::Dead {
            return Err(ErrorCode::CoordinatorNotAvailable);
        }
        if cfg!(coulee_mutation = "skip_fencing") {
            return Ok(());
        }
        let Commit { identity, generation, .. } = commit;
        if *generation < 0 && self.state == State::Empty {
            // An operator, or a consumer that does without the group's assignment.
            return Ok(());
        }
        if *generation < 0 && identity.member_id.is_empty() && identity.instance_id.is_none() {
            return Err(ErrorCode::UnknownMemberId);
        }
        self.check_current(identity, *generation)?;
        if self.state == State::CompletingRebalance {
            return Err(ErrorCode::RebalanceInProgress);
        }
        Ok(())
    }

    /// Has offsets stored; the answer comes when they are durable.
    pub(super) fn commit(&mut self, turn: &mut Turn<'_>, request: RequestId, commit: Commit) {
        if let Err(code) = self.check_commit(&commit) {
            return turn.refuse(request, code);
        }
        if let Some(member) = self.members.get_mut(&commit.identity.member_id) {
            member.touch(turn.now.monotonic_ms);
        }
        let (mut changes, mut results) = (Vec::new(), Vec::new());
        for CommitTopic { name, found, partitions } in commit.topics {
            let topic: Rc<str> = Rc::from(&*name);
            let mut own = TopicResults { name, partitions: Vec::with_capacity(partitions.len()) };
            for partition in partitions {
                let index = partition.index;
                let room = self.offsets.len() + changes.len() < GROUP_OFFSETS_MAX;
                let checked = check_partition(&partition, found, turn.options).and_then(|topic_id| {
                    let known = self.offsets.entry(&topic, index).is_some();
                    if room || known { Ok(topic_id) } else { Err(ErrorCode::PolicyViolation) }
                });
                own.partitions.push((index, checked.err().unwrap_or(ErrorCode::None)));
                if let Ok(topic_id) = checked {
                    let CommitPartition { offset, leader_epoch, metadata, .. } = partition;
                    let committed_ms = turn.now.wall_ms;
                    let committed = Some(Committed { topic_id, offset, leader_epoch, metadata, committed_ms });
                    changes.push(Change::Offset { topic: Rc::clone(&topic), partition: index, committed });
                }
            }
            results.push(own);
        }
        turn.write(changes, Then::Answer(request, results));
    }

    /// What is committed, where it is durable; of a topic that was made anew, nothing.
    pub(super) fn fetch(&self, wanted: Wanted) -> Vec<TopicOffsets> {
        let Wanted::Some(topics) = wanted else { return self.offsets.all_durable().collect() };
        let topic = |WantedTopic { name, id, partitions }: WantedTopic| {
            let found = |partition: u32| {
                let committed = self.offsets.durable(&name, partition);
                (partition, committed.filter(|committed| Some(committed.topic_id) == id).cloned())
            };
            TopicOffsets { partitions: partitions.into_iter().map(found).collect(), name }
        };
        topics.into_iter().map(topic).collect()
    }

    /// Forgets offsets that nobody uses (KIP-496).
    pub(super) fn delete_offsets(&self, turn: &mut Turn<'_>, request: RequestId, topics: Vec<WantedTopic>) {
        let subscribed = match self.state {
            State::Dead => return turn.refuse(request, ErrorCode::GroupIdNotFound),
            State::Empty => Default::default(),
            _ => match self.subscribed() {
                Some(subscribed) => subscribed,
                None => return turn.refuse(request, ErrorCode::NonEmptyGroup),
            },
        };
        let (mut changes, mut results) = (Vec::new(), Vec::new());
        for WantedTopic { name, partitions, .. } in topics {
            let is_used = subscribed.contains(&*name);
            let code = if is_used { ErrorCode::GroupSubscribedToTopic } else { ErrorCode::None };
            let topic: Rc<str> = Rc::from(&*name);
            for partition in partitions.iter().copied() {
                if !is_used && self.offsets.entry(&topic, partition).is_some() {
                    changes.push(Change::Offset { topic: Rc::clone(&topic), partition, committed: None });
                }
            }
            results.push(TopicResults { name, partitions: partitions.into_iter().map(|at| (at, code)).collect() });
        }
        turn.write(changes, Then::Answer(request, results));
    }

    /// Forgets the whole group, if it has no members.
    pub(super) fn delete(
        &mut self,
        turn: &mut Turn<'_>,
        request: RequestId,
        validate_only: bool,
    ) -> Result<(), ErrorCode> {
        match self.state {
            State::Dead => return Err(ErrorCode::GroupIdNotFound),
            State::Empty if self.pending.is_empty() => {}
            _ => return Err(ErrorCode::NonEmptyGroup),
        }
        if validate_only {
            turn.answer(request, super::Answer::Deleted);
        } else {
            self.forget(turn, Some(request));
        }
        Ok(())
    }

    /// Takes everything of the group out of the log.
    pub(super) fn forget(&mut self, turn: &mut Turn<'_>, request: Option<RequestId>) {
        self.change_state(State::Dead, turn.now);
        let mut changes = self.offsets.tombstones(|_, _, _| true);
        changes.push(Change::Group(None));
        turn.write(changes, Then::Forget(request));
    }
}

/// Whether an offset can be kept, and for which topic.
fn check_partition(
    partition: &CommitPartition,
    found: Option<(TopicId, u32)>,
    options: &Options,
) -> Result<TopicId, ErrorCode> {
    let (topic_id, partitions) = found.ok_or(ErrorCode::UnknownTopicOrPartition)?;
    if partition.index >= partitions {
        return Err(ErrorCode::UnknownTopicOrPartition);
    }
    if partition.metadata.len() > options.metadata_bytes_max {
        return Err(ErrorCode::OffsetMetadataTooLarge);
    }
    Ok(topic_id)
}
