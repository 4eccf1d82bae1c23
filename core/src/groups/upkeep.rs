//! Keeps a coordinator's log and memory small: expiry, and snapshots that let the old log go; answers nobody.
//!
//! A snapshot is ordinary records: every group as the log has it at its end, in batches, one at a time, with other
//! records between them. Whatever is read from the offset where it began is the whole state: each thing is written
//! there again, as new as the log has it then, and later records follow. Until compaction comes this takes its place.

use super::change::Change;
use super::coordinator::{AppendId, Coordinator, Effect, encode};
use super::group::{Group, State};
use crate::limits::{BATCH_BYTES_FOR_SNAPSHOT, GROUP_SWEEP_INTERVAL_MS, GROUP_SWEEP_MAX, SNAPSHOT_RETRY_MS};
use crate::shard::Now;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::Offset;
use std::ops::Bound;
use std::rc::Rc;

/// How far upkeep is.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// Records from the log start on.
    pub(super) records_in_log: usize,
    /// With more records than this a snapshot may be due.
    snapshot_above: usize,
    snapshot: Option<Snapshot>,
    /// Not before this is another one begun.
    snapshot_not_before_ms: u64,
    /// When offsets are looked through for old ones next.
    sweep_at_ms: u64,
    /// Where that goes on, while it is under way.
    sweeping: Option<Box<str>>,
}

/// A snapshot that is being written.
#[derive(Debug)]
struct Snapshot {
    /// From here on it is the whole state.
    from: Offset,
    /// Records in the log when it began.
    records_before: usize,
    /// The last group that is in it.
    after: Option<Box<str>>,
    /// The batch that is on its way, and how many records it has.
    waits_for: Option<(AppendId, usize)>,
    /// Every group is in it.
    is_complete: bool,
}

impl Coordinator {
    pub(super) fn begin_upkeep(&mut self, now: Now) {
        self.upkeep.sweep_at_ms = now.monotonic_ms + GROUP_SWEEP_INTERVAL_MS;
        self.upkeep.snapshot_above = self.snapshot_above();
    }

    pub(super) fn upkeep_deadline_ms(&self) -> Option<u64> {
        if self.groups.is_empty() && self.upkeep.snapshot.is_none() {
            // An idle partition wakes nobody.
            return None;
        }
        let sweeps_on = self.upkeep.sweeping.is_some();
        let snapshot_due = self.is_snapshot_due().then_some(self.upkeep.snapshot_not_before_ms);
        let sweep = if sweeps_on { 0 } else { self.upkeep.sweep_at_ms };
        Some(sweep).into_iter().chain(snapshot_due).min()
    }

    /// One short step of what is due.
    pub(super) fn look_after_upkeep(&mut self, now: Now) {
        if self.upkeep.sweeping.is_some() || now.monotonic_ms >= self.upkeep.sweep_at_ms {
            self.sweep(now);
        }
        if self.is_snapshot_due() && now.monotonic_ms >= self.upkeep.snapshot_not_before_ms {
            // Counting what is live costs a look at each group: it is done when it may matter.
            self.upkeep.snapshot_above = self.snapshot_above();
            if self.is_snapshot_due() {
                self.begin_snapshot(now);
            }
        }
    }

    fn is_snapshot_due(&self) -> bool {
        self.upkeep.snapshot.is_none() && self.upkeep.records_in_log > self.upkeep.snapshot_above
    }

    /// Four times as many records as are live, and enough to be worth the while.
    fn snapshot_above(&self) -> usize {
        let live = |group: &Group| group.offsets.len() + usize::from(group.stored.is_some());
        let live: usize = self.groups.values().map(live).sum();
        self.options.snapshot_records_min.max(4 * live)
    }

    fn begin_snapshot(&mut self, now: Now) {
        // Whatever is on its way lies behind what is applied: it stays.
        self.upkeep.snapshot = Some(Snapshot {
            from: self.applied_end,
            records_before: self.upkeep.records_in_log,
            after: None,
            waits_for: None,
            is_complete: false,
        });
        self.go_on_with_snapshot(now);
    }

    /// Writes the next groups, as the log has them at its end.
    fn go_on_with_snapshot(&mut self, now: Now) {
        let Some(snapshot) = &mut self.upkeep.snapshot else { return };
        let from = snapshot.after.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let (mut changes, mut bytes) = (Vec::new(), 0);
        for (name, group) in self.groups.range::<str, _>((from.as_ref().map(|name| &**name), Bound::Unbounded)) {
            if bytes >= BATCH_BYTES_FOR_SNAPSHOT {
                break;
            }
            let own = group.at_log_end();
            bytes += own.iter().map(|change| change.encode(name).bytes()).sum::<usize>();
            changes.extend(own.into_iter().map(|change| (name.clone(), change)));
            snapshot.after = Some(name.clone());
        }
        let last = self.groups.keys().next_back();
        snapshot.is_complete = last.is_none() || snapshot.after.as_ref() >= last;
        if changes.is_empty() {
            return self.snapshot_written();
        }
        let Some(batches) = chunks(&changes, now) else {
            // A group that fits no batch was never stored by one: this cannot be, and the log stays as it is.
            return self.give_snapshot_up(now);
        };
        let count = batches.len();
        for (at, (records, batch)) in batches.into_iter().enumerate() {
            let id = self.append(records, batch);
            if at + 1 == count
                && let Some(snapshot) = &mut self.upkeep.snapshot
            {
                snapshot.waits_for = Some((id, records));
            }
        }
    }

    /// A batch of the snapshot is durable, or never will be.
    pub(super) fn snapshot_appended(&mut self, now: Now, id: AppendId, result: Result<Offset, ErrorCode>) {
        let Some(snapshot) = &mut self.upkeep.snapshot else { return };
        let Ok(base) = result else { return self.give_snapshot_up(now) };
        let Some((_, records)) = snapshot.waits_for.filter(|(waits_for, _)| *waits_for == id) else { return };
        snapshot.waits_for = None;
        self.applied_end = self.applied_end.max(base.advance(records as u64));
        if snapshot.is_complete {
            self.snapshot_written();
        } else {
            self.go_on_with_snapshot(now);
        }
    }

    fn snapshot_written(&mut self) {
        let Some(Snapshot { from, records_before, .. }) = self.upkeep.snapshot.take() else { return };
        self.upkeep.records_in_log -= records_before;
        self.effects.push(Effect::LetGo(from));
    }

    fn give_snapshot_up(&mut self, now: Now) {
        self.upkeep.snapshot = None;
        self.upkeep.snapshot_not_before_ms = now.monotonic_ms + SNAPSHOT_RETRY_MS;
    }

    /// Looks through some groups for offsets that have been unused for too long (KIP-211).
    fn sweep(&mut self, now: Now) {
        let from = self.upkeep.sweeping.take().map_or(Bound::Unbounded, Bound::Excluded);
        let range = (from.as_ref().map(AsRef::as_ref), Bound::Unbounded);
        let names: Vec<Box<str>> =
            self.groups.range::<str, _>(range).take(GROUP_SWEEP_MAX).map(|(name, _)| name.clone()).collect();
        self.upkeep.sweep_at_ms = now.monotonic_ms + GROUP_SWEEP_INTERVAL_MS;
        self.upkeep.sweeping = names.last().filter(|_| names.len() == GROUP_SWEEP_MAX).cloned();
        let retention_ms = self.options.retention_ms;
        for name in names {
            let Some(group) = self.groups.get(&name) else { continue };
            let changes = group.expired(now.wall_ms, retention_ms);
            let is_left = group.offsets.len() > changes.len();
            if group.state == State::Empty && group.pending.is_empty() && group.unapplied.is_empty() && !is_left {
                self.with_group(now, &name, |group, turn| group.forget(turn, None));
            } else if !changes.is_empty() {
                let then = super::group::Then::Nothing;
                self.write(now, &name, super::group::Write { changes, then });
            }
        }
    }
}

/// Changes as batches that each fit: with how many records.
fn chunks(changes: &[(Box<str>, Change)], now: Now) -> Option<Vec<(usize, Vec<u8>)>> {
    use coulee_protocol::limits::BATCH_BYTES_MAX;
    let (mut batches, mut rest) = (Vec::new(), changes);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |(name, change): &&(Box<str>, Change)| {
            bytes += change.encode(name).bytes();
            bytes < BATCH_BYTES_FOR_SNAPSHOT
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (now_due, later) = rest.split_at(count);
        let records = now_due.iter().map(|(name, change)| (&**name, change));
        batches.push((count, encode(records, now, BATCH_BYTES_MAX)?));
        rest = later;
    }
    Some(batches)
}

impl Group {
    /// Everything that the log says of it at its end, as records.
    fn at_log_end(&self) -> Vec<Change> {
        let offset = |(topic, partition, committed): (&Rc<str>, u32, &super::Committed)| Change::Offset {
            topic: Rc::clone(topic),
            partition,
            committed: Some(committed.clone()),
        };
        let mut changes: Vec<Change> = self.offsets.at_log_end().map(offset).collect();
        let stored = self.unapplied.last().map_or(&self.stored, |(_, value)| value);
        changes.extend(stored.clone().map(|value| Change::Group(Some(value))));
        changes
    }

    /// Records that take away what has been unused for longer than `retention_ms`.
    fn expired(&self, now_ms: i64, retention_ms: i64) -> Vec<Change> {
        let is_old = |since_ms: i64| now_ms.saturating_sub(since_ms) >= retention_ms;
        let subscribed = self.subscribed();
        self.offsets.tombstones(|topic, partition, committed| {
            let is_unused = match (self.state, &self.protocol_type) {
                // Nobody has been here since then.
                (State::Empty, Some(_)) => {
                    is_old(self.since_ms.unwrap_or(committed.committed_ms).max(committed.committed_ms))
                }
                // Consumers that do without the group: what counts is when they were last heard of.
                (State::Empty, None) => is_old(committed.committed_ms),
                (State::Stable, _) => {
                    subscribed.as_ref().is_some_and(|topics| !topics.contains(topic)) && is_old(committed.committed_ms)
                }
                _ => false,
            };
            is_unused && !self.offsets.is_unapplied(topic, partition)
        })
    }
}
