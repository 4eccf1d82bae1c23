//! Walks through a history in its order, keeps what is known so far and judges each answer by it; knows no clock.

use super::commits::Register;
use super::partition::Partition;
use super::rules::{Report, Rule};
use super::{Begun, Ended, Event, Incident, Key, Op, PartitionInfo, Process, Run, Value, What};
use coulee_protocol::ids::Offset;
use std::collections::BTreeMap;
use std::ops::Range;

/// What a process was told of its produce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Acked,
    Refused,
}

/// One produce.
#[derive(Clone, Copy, Debug)]
struct Produce {
    process: Process,
    key: Key,
    first: Value,
    count: u32,
    once: bool,
    sent_us: u64,
    fate: Fate,
    /// What of the partition was known when it was sent: it cannot lie below.
    floor: Offset,
    /// Where it was found, or said to be.
    base: Option<Offset>,
}

/// An operation that has no answer yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    begun: Begun,
    at: usize,
    /// The place among the produces.
    produce: usize,
    /// The known end, the log start, and whether the partition was there for sure, or surely not, when it began.
    floor: Offset,
    log_start: Offset,
    sure: Option<bool>,
    from: Offset,
}

/// Whether a partition's topic is there, as far as that is sure.
#[derive(Clone, Copy, Debug, Default)]
struct Presence {
    sure: Option<bool>,
    /// Creations and removals that may still happen.
    open: usize,
    /// Somebody has asked for its removal: nobody has to find it any more.
    may_be_gone: bool,
}

struct Walk<'a> {
    report: Report,
    partitions: Vec<Partition>,
    presence: Vec<Presence>,
    produces: Vec<Produce>,
    /// Produces by their first value.
    by_value: BTreeMap<Value, usize>,
    pending: BTreeMap<Op, Pending>,
    /// Where the produces of a process lie: by process, partition and order of sending.
    placed: BTreeMap<(Process, Key, usize), Offset>,
    /// The last offset of which a process was told, and where its next fetch goes on.
    told: BTreeMap<(Process, Key), Offset>,
    positions: BTreeMap<(Process, Key), Offset>,
    registers: BTreeMap<(u32, Key), Register>,
    event: &'a Event,
    at: usize,
    crashed_at: usize,
}

/// Holds `events` against every rule.
pub(super) fn check(partitions: &[PartitionInfo], events: &[Event]) -> Report {
    let Some(first) = events.first() else { return Report::default() };
    let mut walk = Walk {
        report: Report::default(),
        partitions: partitions.iter().cloned().map(Partition::new).collect(),
        presence: vec![Presence::default(); partitions.len()],
        produces: Vec::new(),
        by_value: BTreeMap::new(),
        pending: BTreeMap::new(),
        placed: BTreeMap::new(),
        told: BTreeMap::new(),
        positions: BTreeMap::new(),
        registers: BTreeMap::new(),
        event: first,
        at: 0,
        crashed_at: 0,
    };
    for (at, event) in events.iter().enumerate() {
        (walk.event, walk.at) = (event, at);
        match &event.what {
            What::Begun(begun) => walk.begin(*begun),
            What::Ended(ended) => walk.end(ended),
            What::Incident(incident) => walk.incident(*incident),
        }
    }
    walk.finish();
    walk.report
}

fn time(time_us: u64) -> String {
    format!("{}.{:03} ms", time_us / 1_000, time_us % 1_000)
}

impl Walk<'_> {
    fn break_rule(&mut self, rule: Rule, key: Key, what: impl std::fmt::Display) {
        let name = &self.partitions[key.0 as usize].info.name;
        let (process, now) = (self.event.op.process.0, time(self.event.time_us));
        self.report.break_rule(rule, format!("{name}: {what} (told to process {process} at {now})"));
    }

    fn partition(&mut self, key: Key) -> &mut Partition {
        &mut self.partitions[key.0 as usize]
    }

    fn begin(&mut self, begun: Begun) {
        let op = self.event.op;
        let (Begun::Produce { key, .. }
        | Begun::Fetch { key, .. }
        | Begun::Commit { key, .. }
        | Begun::AskCommitted { key, .. }
        | Begun::Create(key)
        | Begun::Delete(key)
        | Begun::Describe(key)) = begun;
        let (known_end, log_start) = (self.partition(key).known_end, self.partition(key).log_start);
        let mut from = Offset(0);
        match begun {
            Begun::Produce { first, count, once, .. } => {
                assert!(count > 0 && first.0 < Value::UNREADABLE.0, "a produce has values");
                let before = self.by_value.range(..first.advance(u64::from(count))).next_back();
                let overlaps =
                    before.is_some_and(|(other, at)| other.advance(u64::from(self.produces[*at].count)) > first);
                assert!(!overlaps, "value {} is sent twice: the test has to send it once", first.0);
                self.by_value.insert(first, self.produces.len());
                let process = op.process;
                let (sent_us, fate, base) = (self.event.time_us, Fate::Open, None);
                let floor = known_end;
                self.produces.push(Produce { process, key, first, count, once, sent_us, fate, floor, base });
            }
            Begun::Fetch { from: asked, .. } => {
                from = asked.or_else(|| self.positions.get(&(op.process, key)).copied()).unwrap_or(log_start);
            }
            Begun::Commit { group, offset, .. } => {
                self.registers.entry((group, key)).or_default().begin(offset, self.at);
            }
            Begun::Create(_) | Begun::Delete(_) => {
                let presence = &mut self.presence[key.0 as usize];
                (presence.sure, presence.open) = (None, presence.open + 1);
                presence.may_be_gone |= matches!(begun, Begun::Delete(_));
            }
            Begun::AskCommitted { .. } | Begun::Describe(_) => {}
        }
        let produce = self.produces.len().wrapping_sub(1);
        let sure = self.presence[key.0 as usize].sure;
        self.pending.insert(op, Pending { begun, at: self.at, produce, floor: known_end, log_start, sure, from });
    }

    fn end(&mut self, ended: &Ended) {
        let op = self.event.op;
        let pending = self.pending.remove(&op).expect("an answer belongs to an operation that waits for one");
        match (pending.begun, ended) {
            (Begun::Produce { .. }, Ended::Acked { base, high_watermark }) => {
                self.acked(pending.produce, *base, *high_watermark);
            }
            (Begun::Produce { .. }, Ended::Failed) => self.refused(pending.produce),
            (Begun::Produce { key, .. }, Ended::There(false)) => {
                self.described(key, &pending, false);
                self.refused(pending.produce);
            }
            (Begun::Fetch { key, .. }, ended) => self.fetch_ended(key, &pending, ended),
            (Begun::Commit { group, key, .. }, Ended::Done | Ended::Failed) => {
                let failed = *ended == Ended::Failed;
                self.registers.entry((group, key)).or_default().end(pending.at, self.at, failed);
            }
            (Begun::AskCommitted { group, key }, Ended::Committed(found)) => {
                let allowed = self.registers.entry((group, key)).or_default().allowed(pending.at);
                if !allowed.contains(found) {
                    let what =
                        format!("group {group} has committed offset {found:?}, one of {allowed:?} was committed");
                    self.break_rule(Rule::CommittedOffsetsHold, key, what);
                }
            }
            (Begun::Create(key) | Begun::Delete(key), Ended::Done | Ended::Failed) => {
                let presence = &mut self.presence[key.0 as usize];
                presence.open -= 1;
                let happened = (*ended == Ended::Done).then_some(matches!(pending.begun, Begun::Create(_)));
                presence.sure = happened.filter(|_| presence.open == 0);
            }
            (Begun::Describe(key), Ended::There(there)) => self.described(key, &pending, *there),
            (_, Ended::Unknown | Ended::Failed | Ended::There(_)) => {}
            (begun, ended) => unreachable!("{begun:?} is never answered by {ended:?}"),
        }
    }

    fn acked(&mut self, at: usize, base: Offset, high_watermark: Option<Offset>) {
        let Produce { process, key, first, count, once, .. } = self.produces[at];
        self.produces[at].fate = Fate::Acked;
        self.report.acked += u64::from(count);
        let end = base.advance(u64::from(count));
        let told = self.told.insert((process, key), end).unwrap_or_default();
        if once && base < told {
            let what = format!("{} is acknowledged behind one at offset {told}", self.describe(at, base));
            self.break_rule(Rule::AcksComeInOrder, key, what);
        }
        self.observe(key, Run { offset: base, first, count });
        self.partition(key).raise(end);
        if let Some(high_watermark) = high_watermark {
            if high_watermark < end {
                let what = format!("{} is above the high watermark {high_watermark}", self.describe(at, base));
                self.break_rule(Rule::NothingAboveHighWatermark, key, what);
            }
            self.partition(key).raise(high_watermark);
        }
    }

    fn refused(&mut self, at: usize) {
        self.produces[at].fate = Fate::Refused;
        if let Produce { key, base: Some(base), .. } = self.produces[at] {
            let what = format!("{} was seen before it was refused", self.describe(at, base));
            self.break_rule(Rule::RefusedIsNotThere, key, what);
        }
    }

    fn described(&mut self, key: Key, pending: &Pending, there: bool) {
        // Whatever has begun since the question may have answered it.
        let presence = &self.presence[key.0 as usize];
        let sure = pending.sure.filter(|_| presence.sure == pending.sure);
        if sure == Some(!there) {
            let what = if there { "the topic was removed and is there" } else { "the topic was made and is not there" };
            self.break_rule(Rule::TopicsHold, key, what);
        }
    }

    fn fetch_ended(&mut self, key: Key, pending: &Pending, ended: &Ended) {
        match ended {
            Ended::Fetched { runs, high_watermark, log_start } => {
                self.ends(key, pending, *high_watermark, *log_start);
                self.fetched(key, pending, runs, *high_watermark);
            }
            Ended::Damaged { from, to } => {
                let within = from.0..to.0;
                if !self.partition(key).damaged.holds(&within) || !within.contains(&pending.from.0) {
                    let what = format!("offsets {from} to {to} are said to be damaged; asked for {}", pending.from);
                    self.break_rule(Rule::ErrorsAreForDamage, key, what);
                }
                self.cover(key, pending, within);
            }
            Ended::OutOfRange => {
                let (start, end) = (self.partition(key).log_start, pending.floor);
                if start <= pending.from && pending.from <= end {
                    let what = format!("offset {} is said to be out of range, {start} to {end} is known", pending.from);
                    self.break_rule(Rule::RangeErrorsAreTrue, key, what);
                }
            }
            Ended::There(there) => self.described(key, pending, *there),
            Ended::Failed | Ended::Unknown => {}
            other => unreachable!("a fetch is never answered by {other:?}"),
        }
    }

    /// The ends that a fetch has brought.
    fn ends(&mut self, key: Key, pending: &Pending, high_watermark: Offset, log_start: Offset) {
        if high_watermark < pending.floor {
            let lost = self.partition(key).known(high_watermark.0..pending.floor.0).last();
            let last = lost.map_or_else(String::new, |(offset, value)| format!(", {}", self.tell(offset, value)));
            let what = format!("the high watermark is {high_watermark} and was {}{last}", pending.floor);
            self.break_rule(Rule::HighWatermarkNeverGoesBack, key, what);
            if let Some((offset, value)) = lost {
                self.lost(key, offset, value);
            }
        }
        let partition = self.partition(key);
        let moved = log_start > Offset(0) && !partition.info.retention;
        if moved || log_start < pending.log_start {
            let what = format!("the log start is {log_start}, it was {}", pending.log_start);
            self.break_rule(Rule::LogStartHolds, key, what);
        }
        let partition = self.partition(key);
        partition.log_start = partition.log_start.max(log_start);
        partition.raise(high_watermark);
    }

    /// The records that a fetch has brought.
    fn fetched(&mut self, key: Key, pending: &Pending, runs: &[Run], high_watermark: Offset) {
        let mut next = pending.from;
        for (at, run) in runs.iter().enumerate() {
            let end = run.offset.advance(u64::from(run.count));
            if run.offset > next {
                self.skipped(key, next, run.offset);
            } else if run.offset < next && (at > 0 || end <= next) {
                let what = format!("offset {} comes where {next} has to", run.offset);
                self.break_rule(Rule::ReadsSkipNothing, key, what);
            }
            if end > high_watermark {
                let what = format!("offset {} is shown, the high watermark is {high_watermark}", end.0 - 1);
                self.break_rule(Rule::NothingAboveHighWatermark, key, what);
            }
            self.report.read += u64::from(run.count);
            self.observe(key, *run);
            self.is_whole(key, *run, at > 0, at + 1 < runs.len());
            next = next.max(end);
        }
        let process = self.event.op.process;
        self.positions.insert((process, key), next);
        self.partition(key).raise(next);
        self.cover(key, pending, pending.from.0..next.0);
    }

    /// A fetch has told all of `range`, from what there is since the last crash if it was sent after that.
    fn cover(&mut self, key: Key, pending: &Pending, range: Range<u64>) {
        if pending.at >= self.crashed_at {
            self.partition(key).covered.add(range);
        }
    }

    /// Whether the batches at the ends of a run, where others come before or behind it, are there as a whole.
    fn is_whole(&mut self, key: Key, run: Run, others_before: bool, others_behind: bool) {
        let last = run.first.0.saturating_add(u64::from(run.count) - 1);
        let starts = |at: usize| self.produces[at].first == run.first;
        let ends = |at: usize| self.produces[at].first.0 + u64::from(self.produces[at].count) - 1 == last;
        let cut = others_before && self.produce_of(run.first).is_some_and(|at| !starts(at))
            || others_behind && self.produce_of(Value(last)).is_some_and(|at| !ends(at));
        if cut {
            let what = format!("of the batch at offset {} only a part is there", run.offset);
            self.break_rule(Rule::BatchesAreWhole, key, what);
        }
    }

    /// A fetch went from `from` to `to` without a word.
    fn skipped(&mut self, key: Key, from: Offset, to: Offset) {
        let known: Vec<(u64, Value)> = self.partition(key).known(from.0..to.0).take(1).collect();
        match known.first() {
            Some((offset, value)) => self.lost(key, *offset, *value),
            None => self.break_rule(Rule::ReadsSkipNothing, key, format!("a fetch at {from} goes on at {to}")),
        }
    }

    /// A value that was known to be at `offset` is not.
    fn lost(&mut self, key: Key, offset: u64, value: Value) {
        let acked = self.produce_of(value).is_some_and(|at| self.produces[at].fate == Fate::Acked);
        let (rule, was) = if acked {
            (Rule::AckedIsNeverLost, "was acknowledged")
        } else {
            (Rule::ShownNeverVanishes, "was shown to a reader")
        };
        let what = format!("{} {was} and is gone", self.tell(offset, value));
        self.break_rule(rule, key, what);
    }

    fn produce_of(&self, value: Value) -> Option<usize> {
        let (first, at) = self.by_value.range(..=value).next_back()?;
        (value < first.advance(u64::from(self.produces[*at].count))).then_some(*at)
    }

    /// Values lie where a process was told, or has read.
    fn observe(&mut self, key: Key, run: Run) {
        let (mut offset, mut value, mut left) = (run.offset, run.first, run.count);
        while left > 0 {
            let Some(at) = self.produce_of(value).filter(|at| self.produces[*at].key == key) else {
                let what = format!("value {} at offset {offset} was not sent to it", value.0);
                self.break_rule(Rule::OnlySentIsRead, key, what);
                return;
            };
            let Produce { first, count, .. } = self.produces[at];
            let skipped = value.0 - first.0;
            let here = left.min(count - skipped as u32);
            self.observe_batch(at, offset, skipped);
            for step in 0..u64::from(here) {
                self.place(key, offset.0 + step, value.advance(step));
            }
            (offset, value, left) = (offset.advance(u64::from(here)), value.advance(u64::from(here)), left - here);
        }
    }

    /// One value lies at one offset.
    fn place(&mut self, key: Key, offset: u64, value: Value) {
        let partition = self.partition(key);
        if !partition.is_of_a_prefix(offset, value) {
            let what = format!("{} is there, something before it is not", self.tell(offset, value));
            return self.break_rule(Rule::LossIsASuffix, key, what);
        }
        if let Some(known) = self.partition(key).put(offset, value) {
            let what = format!("{} is what {} was", self.tell(offset, value), self.tell(offset, known));
            self.break_rule(Rule::NoOffsetWithTwoValues, key, what);
            if self.produce_of(known).is_some_and(|at| self.produces[at].fate == Fate::Acked) {
                self.lost(key, offset, known);
            }
        }
    }

    /// The value that comes `skipped` behind the first of produce `at` lies at `offset`.
    fn observe_batch(&mut self, at: usize, offset: Offset, skipped: u64) {
        let produce = self.produces[at];
        let key = produce.key;
        let Some(base) = offset.0.checked_sub(skipped).map(Offset) else {
            let what = format!("value {} at offset {offset} leaves no room before it", produce.first.0 + skipped);
            return self.break_rule(Rule::BatchesAreWhole, key, what);
        };
        if produce.fate == Fate::Refused {
            let what = format!("{} was refused and is there", self.describe(at, base));
            self.break_rule(Rule::RefusedIsNotThere, key, what);
        }
        match produce.base {
            Some(known) if known == base => return,
            Some(known) => {
                if produce.once {
                    let what = format!("{} lies at offset {known}, too", self.describe(at, base));
                    self.break_rule(Rule::NoValueTwice, key, what);
                }
                return;
            }
            None => self.produces[at].base = Some(base),
        }
        if base < produce.floor {
            let what = format!("{} was sent when offset {} was taken", self.describe(at, base), produce.floor.0 - 1);
            self.break_rule(Rule::SentOrderIsKept, key, what);
        }
        if produce.once {
            self.keep_order(at, base);
        }
        // It is there as a whole, or not at all.
        for step in 0..u64::from(produce.count) {
            self.place(key, base.0 + step, produce.first.advance(step));
        }
    }

    /// Whether produce `at` lies between those that its process has sent before and after it.
    fn keep_order(&mut self, at: usize, base: Offset) {
        let Produce { process, key, .. } = self.produces[at];
        let before = self.placed.range((process, key, 0)..(process, key, at)).next_back();
        let after = self.placed.range((process, key, at + 1)..=(process, key, usize::MAX)).next();
        let inverted = before.filter(|(_, other)| **other > base).or_else(|| after.filter(|(_, other)| **other < base));
        if let Some((&(_, _, other), &offset)) = inverted {
            let what = format!("{} and {} are in another order", self.describe(at, base), self.describe(other, offset));
            self.break_rule(Rule::SentOrderIsKept, key, what);
        }
        self.placed.insert((process, key, at), base);
    }

    fn incident(&mut self, incident: Incident) {
        match incident {
            Incident::Crash(crash) => {
                self.crashed_at = self.at;
                self.partitions.iter_mut().for_each(|partition| partition.crash(crash));
                // Whoever waits for an answer asked a broker that is no more: what it knew may be gone.
                let partitions = &self.partitions;
                for pending in self.pending.values_mut() {
                    if let Begun::Fetch { key, .. } | Begun::Produce { key, .. } = pending.begun {
                        pending.floor = pending.floor.min(partitions[key.0 as usize].known_end);
                    }
                }
            }
            Incident::Damage(key, from, to) => self.partition(key).damaged.add(from.0..to.0),
            Incident::Seek(key, to) => drop(self.positions.insert((self.event.op.process, key), to)),
        }
    }

    /// After the last event: what was acknowledged and never read again, and the counts.
    fn finish(&mut self) {
        let here = self.partitions.iter().zip(&self.presence).filter(|(_, presence)| !presence.may_be_gone);
        for (partition, _) in here {
            for missing in partition.covered.missing(partition.log_start.0..partition.values_len()) {
                let unread = partition.known(missing);
                let acked = unread.filter(|(offset, value)| {
                    let acked = self.produce_of(*value).is_some_and(|at| self.produces[at].fate == Fate::Acked);
                    acked && !partition.damaged.holds(&(*offset..*offset + 1))
                });
                self.report.unproved += acked.count() as u64;
            }
        }
        for produce in self.produces.iter().filter(|produce| produce.fate == Fate::Open) {
            self.report.unknown += u64::from(produce.count);
            self.report.unknown_found += produce.base.map_or(0, |_| u64::from(produce.count));
        }
    }

    /// A value in words.
    fn tell(&self, offset: u64, value: Value) -> String {
        match self.produce_of(value) {
            Some(at) => {
                let Produce { process, sent_us, .. } = self.produces[at];
                let sent = time(sent_us);
                format!("value {} at offset {offset} (sent by process {} at {sent})", value.0, process.0)
            }
            None => format!("value {} at offset {offset}, which nobody sent,", value.0),
        }
    }

    fn describe(&self, at: usize, base: Offset) -> String {
        let Produce { first, count, .. } = self.produces[at];
        let told = self.tell(base.0, first);
        if count == 1 { told } else { format!("{told} and {} behind it", count - 1) }
    }
}
