//! Records on their way to partitions: owns when a batch goes and when it goes again; knows no connection and no clock.
//!
//! Each partition has a lane: one open batch that records are added to, sealed batches in order, and those in flight.
//! A batch goes when it is full, or has waited for its linger, and the window has room; while it has none, the open
//! batch goes on growing. Time is counted from the producer's beginning.
//!
//! **Order.** A batch that surely was not written is repeated, but never behind one that was sent after it and may have
//! been written. So after such a failure a lane rests until everything in flight has landed; then all of the trailing
//! batches that were not written go again, in order. One that was overtaken fails instead.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coulee_protocol::columns::builder::{BatchBuilder, BuildError, NewRecord};
use coulee_protocol::compression::Codec;
use coulee_protocol::partitioner::partition_of_key;

use super::fate::Fate;
use crate::backoff::Backoff;
use crate::error::{DeliveryError, Refusal, SendError};
use crate::limits::SPARE_BUILDERS_MAX;
use crate::retry::Verdict;

/// What an accumulator goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) codec: Codec,
    pub(crate) batch_bytes_max: usize,
    /// A record that is alone in its batch may make it so large; not below `batch_bytes_max`.
    pub(crate) record_bytes_max: usize,
    pub(crate) batch_records_max: usize,
    pub(crate) linger: Duration,
    /// Batches of one partition in flight.
    pub(crate) window: usize,
    /// From the first record of a batch to its fate.
    pub(crate) delivery_timeout: Duration,
}

/// A batch that was cut off from its lane.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) content: Content,
    id: u64,
    fate: Arc<Fate>,
    /// Bytes of the memory bound that it gives back.
    cost: usize,
    began: Duration,
}

/// What a batch is made of.
#[derive(Debug)]
pub(crate) enum Content {
    /// Records, not yet built: building costs a checksum and perhaps compression, outside of any lock.
    Records(Box<BatchBuilder>),
    /// What goes over the wire.
    Built(Bytes),
}

/// How a batch in flight has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Landing {
    /// It was written, from this offset on if that is known.
    Written(Option<u64>),
    /// It was not acknowledged.
    Failed(Verdict),
    /// It could not be built.
    Unbuilt(BuildError),
}

/// What is to be done next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send this batch to this partition.
    Send(u32, Batch),
    /// Nothing, until something happens or this time has come.
    Wait(Option<Duration>),
    /// Nothing, ever: the producer is closed and every record has its fate.
    Finished,
}

/// Where a record went.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) fate: Arc<Fate>,
    pub(crate) index: u32,
    pub(crate) partition: u32,
    /// Whether there is something new to do or to wait for.
    pub(crate) wakes: bool,
}

/// A batch that takes records.
#[derive(Debug)]
struct Open {
    id: u64,
    builder: BatchBuilder,
    fate: Arc<Fate>,
    cost: usize,
    began: Duration,
    /// Whether it has lingered long enough.
    is_due: bool,
}

/// A batch in flight, in the order in which they were sent.
#[derive(Debug)]
struct Flying {
    id: u64,
    state: FlyingState,
}

#[derive(Debug)]
enum FlyingState {
    InFlight,
    /// It surely was not written, and waits for those behind it.
    Failed(Batch, Option<Refusal>),
    /// It has its fate; the flag says whether it may have been written.
    Landed(bool),
}

#[derive(Debug, Default)]
struct Lane {
    open: Option<Open>,
    sealed: VecDeque<Batch>,
    flying: VecDeque<Flying>,
    /// Waits for its connection.
    is_parked: bool,
    is_ready: bool,
    not_before: Duration,
    timer: Option<Duration>,
    backoff: Backoff,
    /// Why nothing got through since something last did: what waits too long behind it is told so.
    refusal: Option<Refusal>,
}

impl Lane {
    fn rests(&self) -> bool {
        self.is_parked || self.flying.iter().any(|flying| matches!(flying.state, FlyingState::Failed(..)))
    }

    fn has_work(&self) -> bool {
        !self.sealed.is_empty() || self.open.as_ref().is_some_and(|open| open.is_due)
    }

    /// Whether a batch of it may go now.
    fn may_send(&self, rules: &Rules, now: Duration) -> bool {
        self.has_work() && self.not_before <= now && self.flying.len() < rules.window && !self.rests()
    }

    /// When to look at it again, if nothing happens before.
    fn wakes_at(&self, rules: &Rules, now: Duration) -> Option<Duration> {
        if self.not_before > now && self.has_work() {
            return Some(self.not_before);
        }
        self.open.as_ref().filter(|open| !open.is_due).map(|open| open.began + rules.linger)
    }
}

/// Everything that a producer holds.
#[derive(Debug)]
pub(crate) struct Accumulator {
    rules: Rules,
    lanes: Vec<Lane>,
    timers: BTreeSet<(Duration, u32)>,
    ready: VecDeque<u32>,
    spare: Vec<BatchBuilder>,
    /// Where records without a key go, until the batch there is full or gone.
    sticky: u32,
    next_id: u64,
    undecided: BTreeSet<u64>,
    released: usize,
    is_closing: bool,
}

impl Accumulator {
    pub(crate) fn new(rules: Rules, partitions: u32, sticky: u32) -> Self {
        assert!(partitions > 0, "a topic without partitions");
        assert!(rules.window > 0, "a window without room");
        Self {
            rules,
            lanes: (0..partitions).map(|_| Lane::default()).collect(),
            timers: BTreeSet::new(),
            ready: VecDeque::new(),
            spare: Vec::new(),
            sticky: sticky % partitions,
            next_id: 0,
            undecided: BTreeSet::new(),
            released: 0,
            is_closing: false,
        }
    }

    /// The topic has got more partitions.
    pub(crate) fn grow(&mut self, partitions: u32) {
        let count = self.lanes.len().max(partitions as usize);
        self.lanes.resize_with(count, Lane::default);
    }

    /// Takes a record that costs `cost` of the memory bound; copies its value once.
    pub(crate) fn push(
        &mut self,
        now: Duration,
        partition: Option<u32>,
        record: &NewRecord<'_>,
        cost: usize,
    ) -> Result<Taken, SendError> {
        if self.is_closing {
            return Err(SendError::Closed);
        }
        let partitions = self.lanes.len() as u32;
        let fixed = match (partition, record.key) {
            (Some(partition), _) if partition >= partitions => {
                return Err(SendError::NoPartition { partition, partitions });
            }
            (Some(partition), _) => Some(partition),
            (None, Some(key)) => Some(partition_of_key(key, partitions)),
            (None, None) => None,
        };
        let mut wakes = false;
        // At most twice: a record that fits no empty batch is too large.
        loop {
            let partition = fixed.unwrap_or(self.sticky);
            let is_new = self.lanes[partition as usize].open.is_none();
            if is_new {
                self.open(partition, now);
            }
            let open = self.lanes[partition as usize].open.as_mut().expect("opened right above");
            match open.builder.push(record) {
                Ok(()) => {
                    let taken = self.taken(partition, now, cost, is_new);
                    return Ok(Taken { wakes: taken.wakes || wakes, ..taken });
                }
                Err(BuildError::Full) => {
                    assert!(!is_new, "an empty batch is full");
                    self.seal(partition);
                    wakes |= self.look_at(partition, now);
                }
                Err(error) => {
                    if is_new {
                        self.discard(partition);
                    }
                    return match error {
                        BuildError::TooLarge { .. } => self.push_alone(now, partition, record, cost),
                        _ => Err(SendError::TooManyHeaders),
                    };
                }
            }
        }
    }

    /// Takes a record that is larger than batches are meant to be, into a batch of its own.
    fn push_alone(
        &mut self,
        now: Duration,
        partition: u32,
        record: &NewRecord<'_>,
        cost: usize,
    ) -> Result<Taken, SendError> {
        let mut builder = BatchBuilder::new(self.rules.codec, self.rules.record_bytes_max);
        match builder.push(record) {
            Ok(()) => {}
            Err(BuildError::TooLarge { bytes, max }) => return Err(SendError::TooLarge { bytes, max }),
            Err(_) => return Err(SendError::TooManyHeaders),
        }
        if self.lanes[partition as usize].open.is_some() {
            self.seal(partition);
        }
        self.open_with(partition, now, builder);
        // It is full, whatever comes: what it was built in is not kept either.
        let taken = self.taken(partition, now, cost, true);
        assert!(self.lanes[partition as usize].open.is_none(), "a batch above the bound of batches is full");
        Ok(taken)
    }

    /// Lets records be as large as the topic takes them.
    pub(crate) fn allow_records(&mut self, bytes_max: usize) {
        self.rules.record_bytes_max = bytes_max.max(self.rules.batch_bytes_max);
    }

    /// Bytes that a batch of more than one record may have.
    pub(crate) fn batch_bytes_max(&self) -> usize {
        self.rules.batch_bytes_max
    }

    /// What is to be done next.
    pub(crate) fn next(&mut self, now: Duration) -> Next {
        self.fire_timers(now);
        while let Some(partition) = self.ready.pop_front() {
            let lane = &mut self.lanes[partition as usize];
            lane.is_ready = false;
            if !lane.may_send(&self.rules, now) {
                self.look_at(partition, now);
                continue;
            }
            if lane.sealed.is_empty() {
                self.seal(partition);
            }
            let lane = &mut self.lanes[partition as usize];
            let batch = lane.sealed.pop_front().expect("a lane that may send has a batch");
            if now >= batch.began + self.rules.delivery_timeout {
                let refusal = lane.refusal.clone();
                self.decide(batch, Err(not_written(refusal)));
            } else {
                lane.flying.push_back(Flying { id: batch.id, state: FlyingState::InFlight });
                self.look_at(partition, now);
                return Next::Send(partition, batch);
            }
            self.look_at(partition, now);
        }
        if self.is_closing && self.undecided.is_empty() {
            return Next::Finished;
        }
        Next::Wait(self.timers.first().map(|(at, _)| *at))
    }

    /// The batch that was to be sent can't be right now: it is first again, and its lane waits for [`Self::unpark`].
    pub(crate) fn park(&mut self, partition: u32, batch: Batch) {
        let lane = &mut self.lanes[partition as usize];
        let last = lane.flying.pop_back();
        assert!(last.is_some_and(|last| last.id == batch.id), "a batch is parked right after it was to be sent");
        lane.sealed.push_front(batch);
        lane.is_parked = true;
        // What keeps it back now is another thing.
        lane.refusal = None;
    }

    /// The lane may go on; if it did not get what it waited for, after a pause.
    pub(crate) fn unpark(&mut self, partition: u32, now: Duration, failed: Option<u64>) {
        let lane = &mut self.lanes[partition as usize];
        lane.is_parked = false;
        if let Some(chance) = failed {
            lane.not_before = now + lane.backoff.failed(chance);
        }
        self.look_at(partition, now);
    }

    /// The broker says why the lane's partition takes nothing.
    pub(crate) fn blame(&mut self, partition: u32, refusal: Refusal) {
        self.lanes[partition as usize].refusal = Some(refusal);
    }

    /// A batch in flight has ended.
    pub(crate) fn land(&mut self, partition: u32, mut batch: Batch, landing: Landing, (now, chance): (Duration, u64)) {
        let is_late = now >= batch.began + self.rules.delivery_timeout;
        let id = batch.id;
        let state = match landing {
            Landing::Written(base) => {
                let lane = &mut self.lanes[partition as usize];
                lane.backoff.succeeded();
                lane.refusal = None;
                self.recycle(std::mem::replace(&mut batch.content, Content::Built(Bytes::new())));
                self.decide(batch, Ok(base));
                FlyingState::Landed(true)
            }
            Landing::Failed(Verdict::Repeat(refusal)) if is_late => {
                self.lanes[partition as usize].refusal.clone_from(&refusal);
                self.decide(batch, Err(not_written(refusal)));
                FlyingState::Landed(false)
            }
            Landing::Failed(Verdict::Repeat(refusal)) => {
                let lane = &mut self.lanes[partition as usize];
                lane.not_before = lane.not_before.max(now + lane.backoff.failed(chance));
                lane.refusal.clone_from(&refusal);
                FlyingState::Failed(batch, refusal)
            }
            Landing::Failed(Verdict::NotWritten(refusal)) => {
                self.decide(batch, Err(DeliveryError::NotWritten { refusal }));
                FlyingState::Landed(false)
            }
            Landing::Failed(Verdict::Unknown(refusal)) => {
                self.decide(batch, Err(DeliveryError::OutcomeUnknown { refusal }));
                FlyingState::Landed(true)
            }
            Landing::Unbuilt(error) => {
                self.decide(batch, Err(DeliveryError::Unbuilt(error)));
                FlyingState::Landed(false)
            }
        };
        let flying = self.lanes[partition as usize].flying.iter_mut().find(|flying| flying.id == id);
        flying.expect("what lands was in flight").state = state;
        self.settle(partition);
        self.look_at(partition, now);
    }

    /// Everything that is held goes as soon as it can. Gives the end of the ids taken so far.
    pub(crate) fn flush(&mut self, now: Duration) -> u64 {
        for partition in 0..self.lanes.len() as u32 {
            if let Some(open) = &mut self.lanes[partition as usize].open {
                open.is_due = true;
                self.look_at(partition, now);
            }
        }
        self.next_id
    }

    /// Takes no more; what is held goes.
    pub(crate) fn close(&mut self, now: Duration) -> u64 {
        self.is_closing = true;
        self.flush(now)
    }

    /// Below this id every batch has its fate.
    pub(crate) fn decided_end(&self) -> u64 {
        self.undecided.first().copied().unwrap_or(self.next_id)
    }

    /// Bytes of the memory bound that were given back since the last time.
    pub(crate) fn take_released(&mut self) -> usize {
        std::mem::take(&mut self.released)
    }

    /// Gives a builder back for later batches.
    pub(crate) fn keep_builder(&mut self, builder: BatchBuilder) {
        if self.spare.len() < SPARE_BUILDERS_MAX {
            self.spare.push(builder);
        }
    }

    fn open(&mut self, partition: u32, now: Duration) {
        let new = || BatchBuilder::new(self.rules.codec, self.rules.batch_bytes_max);
        let builder = self.spare.pop().unwrap_or_else(new);
        self.open_with(partition, now, builder);
    }

    fn open_with(&mut self, partition: u32, now: Duration, builder: BatchBuilder) {
        let id = self.next_id;
        self.next_id += 1;
        self.undecided.insert(id);
        let fate = Arc::new(Fate::default());
        let open = Open { id, builder, fate, cost: 0, began: now, is_due: self.rules.linger.is_zero() };
        self.lanes[partition as usize].open = Some(open);
    }

    /// Takes back an open batch that no record came to.
    fn discard(&mut self, partition: u32) {
        let open = self.lanes[partition as usize].open.take().expect("opened for a record that did not come");
        assert!(open.builder.is_empty(), "records are not discarded");
        self.undecided.remove(&open.id);
        self.keep_builder(open.builder);
    }

    fn taken(&mut self, partition: u32, now: Duration, cost: usize, is_new: bool) -> Taken {
        let rules = self.rules;
        let open = self.lanes[partition as usize].open.as_mut().expect("it took the record");
        open.cost += cost;
        let (fate, index) = (open.fate.clone(), open.builder.len() as u32 - 1);
        let is_full = open.builder.len() >= rules.batch_records_max || open.builder.bytes() >= rules.batch_bytes_max;
        if is_full {
            self.seal(partition);
        }
        // In between nothing changes for the lane: the hot path ends here.
        let wakes = (is_full || is_new) && self.look_at(partition, now);
        Taken { fate, index, partition, wakes }
    }

    fn seal(&mut self, partition: u32) {
        let lane = &mut self.lanes[partition as usize];
        let Open { id, builder, fate, cost, began, .. } = lane.open.take().expect("an open batch is sealed");
        lane.sealed.push_back(Batch { content: Content::Records(Box::new(builder)), id, fate, cost, began });
        if partition == self.sticky {
            self.sticky = (self.sticky + 1) % self.lanes.len() as u32;
        }
    }

    /// Queues the lane if it may send, sets its timer otherwise. Says whether one of both is new.
    fn look_at(&mut self, partition: u32, now: Duration) -> bool {
        let lane = &mut self.lanes[partition as usize];
        let timer = if lane.may_send(&self.rules, now) { None } else { lane.wakes_at(&self.rules, now) };
        let is_ready = lane.may_send(&self.rules, now) && !lane.is_ready;
        if is_ready {
            lane.is_ready = true;
            self.ready.push_back(partition);
        }
        if timer == lane.timer {
            return is_ready;
        }
        if let Some(before) = lane.timer {
            self.timers.remove(&(before, partition));
        }
        lane.timer = timer;
        self.timers.extend(timer.map(|at| (at, partition)));
        is_ready || timer.is_some()
    }

    fn fire_timers(&mut self, now: Duration) {
        while let Some((at, partition)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, partition));
            let lane = &mut self.lanes[partition as usize];
            lane.timer = None;
            if let Some(open) = &mut lane.open {
                open.is_due |= open.began + self.rules.linger <= now;
            }
            self.look_at(partition, now);
        }
    }

    /// Drops what has landed at the front; once nothing is in flight, repeats what may be repeated.
    fn settle(&mut self, partition: u32) {
        let lane = &mut self.lanes[partition as usize];
        while lane.flying.front().is_some_and(|first| matches!(first.state, FlyingState::Landed(_))) {
            lane.flying.pop_front();
        }
        if lane.flying.iter().any(|flying| matches!(flying.state, FlyingState::InFlight)) {
            return;
        }
        let mut overtaken = false;
        let mut refused = Vec::new();
        while let Some(last) = lane.flying.pop_back() {
            match last.state {
                FlyingState::Landed(may_be_written) => overtaken |= may_be_written,
                FlyingState::Failed(batch, _) if !overtaken => lane.sealed.push_front(batch),
                FlyingState::Failed(batch, refusal) => refused.push((batch, refusal)),
                FlyingState::InFlight => unreachable!("nothing is in flight"),
            }
        }
        for (batch, refusal) in refused {
            self.decide(batch, Err(not_written(refusal)));
        }
    }

    fn decide(&mut self, batch: Batch, outcome: super::fate::Outcome) {
        assert!(self.undecided.remove(&batch.id), "batch {} has its fate", batch.id);
        self.released += batch.cost;
        batch.fate.decide(outcome);
    }

    /// Takes the buffer of a batch that was sent, if nobody else holds it.
    fn recycle(&mut self, content: Content) {
        if let (Content::Built(bytes), Some(builder)) = (content, self.spare.last_mut())
            && let Ok(buffer) = bytes.try_into_mut()
        {
            builder.recycle(buffer.into());
        }
    }
}

/// The error of a batch that surely was not written.
fn not_written(refusal: Option<Refusal>) -> DeliveryError {
    refusal.map_or(DeliveryError::Undelivered, |refusal| DeliveryError::NotWritten { refusal })
}

#[cfg(test)]
mod tests;
