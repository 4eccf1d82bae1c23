//! Proves the checker: sound histories pass, each rule has one that breaks it and is told so; knows no broker.

use super::{Begun, Crash, Ended, History, Incident, Key, Op, PartitionInfo, Process, Promise, Recorder, Report, Rule};
use super::{Run, Runs, Value};
use coulee_protocol::ids::Offset;
use std::collections::BTreeMap;

/// The only partition of most histories.
const KEY: Key = Key(0);

/// A history told line by line, one tick of the clock each.
struct Story {
    now: u64,
    recorders: BTreeMap<u32, Recorder>,
    partitions: Vec<PartitionInfo>,
}

impl Story {
    fn new() -> Self {
        let partitions = vec![PartitionInfo::durable("orders-0"), PartitionInfo::durable("orders-1")];
        Self { now: 0, recorders: BTreeMap::new(), partitions }
    }

    fn promising(promise: Promise) -> Self {
        let mut story = Self::new();
        story.partitions[0].promise = promise;
        story
    }

    /// The next tick, and what writes down what a process does.
    fn of(&mut self, process: u32) -> (u64, &mut Recorder) {
        self.now += 1;
        (self.now, self.recorders.entry(process).or_insert_with(|| Recorder::new(Process(process))))
    }

    fn begin(&mut self, process: u32, begun: Begun) -> Op {
        let (now, recorder) = self.of(process);
        recorder.begin(now, begun)
    }

    fn end(&mut self, op: Op, ended: Ended) {
        let (now, recorder) = self.of(op.process.0);
        recorder.end(now, op, ended);
    }

    fn incident(&mut self, process: u32, incident: Incident) {
        let (now, recorder) = self.of(process);
        recorder.incident(now, incident);
    }

    fn send(&mut self, process: u32, first: u64, count: u32) -> Op {
        self.begin(process, Begun::Produce { key: KEY, first: Value(first), count, once: true })
    }

    /// Process 1 sends and is told the offset.
    fn produce(&mut self, first: u64, count: u32, base: u64) {
        let op = self.send(1, first, count);
        self.end(op, acked(base));
    }

    /// Process 9 reads runs of (offset, first value, count) from `from` on.
    fn read(&mut self, from: Option<u64>, runs: &[(u64, u64, u32)], high_watermark: u64) {
        let op = self.begin(9, Begun::Fetch { key: KEY, from: from.map(Offset) });
        let run = |&(offset, first, count)| Run { offset: Offset(offset), first: Value(first), count };
        let runs = runs.iter().map(run).collect();
        self.end(op, Ended::Fetched { runs, high_watermark: Offset(high_watermark), log_start: Offset(0) });
    }

    fn check(self) -> Report {
        History::new(self.partitions, self.recorders.into_values()).check()
    }

    /// The history breaks `rule` before any other, and the text says `what`.
    fn breaks(self, rule: Rule, what: &str) {
        let report = self.check();
        let found = report.violations.iter().find(|violation| violation.rule == rule);
        let found = found.unwrap_or_else(|| panic!("{rule:?} is not broken: {:?}", report.violations));
        assert!(found.text.contains(what), "{found}");
        assert!(report.verdict().is_err());
    }

    fn holds(self) -> Report {
        let report = self.check();
        report.verdict().unwrap_or_else(|wrong| panic!("{wrong}"));
        report
    }
}

fn acked(base: u64) -> Ended {
    Ended::Acked { base: Offset(base), high_watermark: None }
}

#[test]
fn a_sound_history_with_crashes_unknown_outcomes_and_two_readers_passes() {
    let mut story = Story::new();
    story.produce(10, 3, 0);
    let lost = story.send(1, 20, 2);
    let survived = story.send(2, 30, 1);
    story.read(Some(0), &[(0, 10, 3)], 3);
    story.incident(0, Incident::Crash(Crash::Power));
    story.end(lost, Ended::Unknown);
    story.end(survived, Ended::Unknown);
    story.read(Some(0), &[(0, 10, 3), (3, 30, 1)], 4);
    let refused = story.send(1, 40, 1);
    story.end(refused, Ended::Failed);
    story.produce(50, 1, 4);
    story.read(None, &[(4, 50, 1)], 5);
    let report = story.holds();
    assert_eq!((report.acked, report.unknown, report.unknown_found, report.read), (4, 3, 1, 8));
}

#[test]
fn an_acknowledged_value_that_is_missing_in_the_middle_is_named() {
    let mut story = Story::new();
    story.produce(10, 1, 0);
    story.produce(11, 1, 1);
    story.produce(12, 1, 2);
    story.read(Some(0), &[(0, 10, 1), (2, 12, 1)], 3);
    story.breaks(Rule::AckedIsNeverLost, "orders-0: value 11 at offset 1 (sent by process 1 at 0.003 ms) was");
}

#[test]
fn an_acknowledged_end_that_a_crash_took_is_named() {
    let mut story = Story::new();
    story.produce(10, 2, 0);
    story.incident(0, Incident::Crash(Crash::Power));
    story.read(Some(0), &[(0, 10, 1)], 1);
    story.breaks(Rule::AckedIsNeverLost, "value 11 at offset 1");
}

#[test]
fn an_acknowledged_value_whose_offset_another_has_taken_is_lost() {
    let mut story = Story::new();
    story.produce(10, 1, 0);
    story.produce(20, 1, 0);
    story.breaks(Rule::AckedIsNeverLost, "value 10 at offset 0");
}

#[test]
fn what_nobody_has_read_since_the_last_crash_is_not_proved() {
    let mut story = Story::new();
    story.produce(10, 4, 0);
    story.read(Some(0), &[(0, 10, 4)], 4);
    story.incident(0, Incident::Crash(Crash::Process));
    story.read(Some(0), &[(0, 10, 1)], 4);
    let report = story.check();
    assert_eq!((report.violation_count, report.unproved), (0, 3));
    assert!(report.verdict().unwrap_err().contains("3 acknowledged values were not read again"));
}

#[test]
fn a_value_that_was_shown_and_is_gone_after_a_crash_is_named() {
    let mut story = Story::new();
    let op = story.send(1, 10, 1);
    story.read(Some(0), &[(0, 10, 1)], 1);
    story.incident(0, Incident::Crash(Crash::Power));
    story.end(op, Ended::Unknown);
    story.read(Some(0), &[], 0);
    story.breaks(Rule::ShownNeverVanishes, "value 10 at offset 0");
}

#[test]
fn a_value_at_two_offsets_is_named_unless_it_may_be_sent_again() {
    for once in [true, false] {
        let mut story = Story::new();
        let op = story.begin(1, Begun::Produce { key: KEY, first: Value(10), count: 1, once });
        story.read(Some(0), &[(0, 10, 1)], 1);
        story.end(op, acked(1));
        story.read(Some(0), &[(0, 10, 1), (1, 10, 1)], 2);
        if once {
            story.breaks(
                Rule::NoValueTwice,
                "value 10 at offset 1 (sent by process 1 at 0.001 ms) lies at offset 0, too",
            );
        } else {
            story.holds();
        }
    }
}

#[test]
fn an_offset_with_two_values_is_named() {
    let mut story = Story::new();
    let (one, other) = (story.send(1, 10, 1), story.send(2, 20, 1));
    story.read(Some(0), &[(0, 10, 1)], 1);
    story.read(Some(0), &[(0, 20, 1)], 1);
    story.end(one, Ended::Unknown);
    story.end(other, Ended::Unknown);
    story.breaks(Rule::NoOffsetWithTwoValues, "is what value 10 at offset 0");
}

#[test]
fn values_of_one_process_in_another_order_are_named() {
    let mut story = Story::new();
    let (first, second) = (story.send(1, 10, 1), story.send(1, 20, 1));
    story.end(second, acked(0));
    story.end(first, acked(1));
    story.breaks(Rule::SentOrderIsKept, "are in another order");
}

#[test]
fn new_data_at_an_old_offset_is_named() {
    let mut story = Story::new();
    story.read(Some(0), &[], 3);
    story.produce(10, 1, 2);
    story.breaks(Rule::SentOrderIsKept, "was sent when offset 2 was taken");
}

#[test]
fn a_part_of_a_batch_is_named() {
    let mut story = Story::new();
    let (one, other) = (story.send(1, 10, 3), story.send(2, 20, 1));
    story.read(Some(0), &[(0, 10, 2), (2, 20, 1)], 3);
    story.end(one, Ended::Unknown);
    story.end(other, Ended::Unknown);
    story.breaks(Rule::BatchesAreWhole, "batch at offset 0");
}

#[test]
fn acks_out_of_order_are_named() {
    let mut story = Story::new();
    let (first, second) = (story.send(1, 10, 1), story.send(1, 20, 1));
    story.end(second, acked(1));
    story.end(first, acked(0));
    story.breaks(Rule::AcksComeInOrder, "value 10 at offset 0");
}

#[test]
fn a_reader_that_skips_or_goes_back_is_named() {
    for (second, what) in [((2, 12, 1), "at offset 1"), ((0, 10, 1), "offset 0 comes where 1 has to")] {
        let mut story = Story::new();
        let op = story.send(1, 10, 3);
        story.read(None, &[(0, 10, 1)], 3);
        story.read(None, &[second], 3);
        story.end(op, Ended::Unknown);
        let rule = if second.0 == 2 { Rule::ShownNeverVanishes } else { Rule::ReadsSkipNothing };
        story.breaks(rule, what);
    }
    let mut story = Story::new();
    let op = story.send(1, 10, 1);
    story.read(Some(0), &[(2, 10, 1)], 3);
    story.end(op, Ended::Unknown);
    story.breaks(Rule::ReadsSkipNothing, "a fetch at 0 goes on at 2");
}

#[test]
fn what_nobody_sent_or_sent_elsewhere_is_named() {
    for value in [Value::UNREADABLE, Value(77), Value(10)] {
        let mut story = Story::new();
        story.begin(1, Begun::Produce { key: Key(1), first: Value(10), count: 1, once: true });
        story.read(Some(0), &[(0, value.0, 1)], 1);
        story.breaks(Rule::OnlySentIsRead, "at offset 0 was not sent to it");
    }
}

#[test]
fn a_refused_value_that_is_there_is_named_whenever_it_was_seen() {
    for early in [true, false] {
        let mut story = Story::new();
        let op = story.send(1, 10, 1);
        if early {
            story.read(Some(0), &[(0, 10, 1)], 1);
        }
        story.end(op, Ended::Failed);
        story.read(Some(0), &[(0, 10, 1)], 1);
        story.breaks(Rule::RefusedIsNotThere, "refused");
    }
}

#[test]
fn a_record_above_the_high_watermark_is_named() {
    let mut story = Story::new();
    story.produce(10, 2, 0);
    story.read(Some(0), &[(0, 10, 2)], 1);
    story.breaks(Rule::NothingAboveHighWatermark, "offset 1 is shown, the high watermark is 1");
}

#[test]
fn a_high_watermark_that_goes_back_is_named_and_one_asked_for_before_is_not() {
    let mut story = Story::new();
    let early = story.begin(8, Begun::Fetch { key: KEY, from: Some(Offset(0)) });
    story.produce(10, 2, 0);
    story.end(early, Runs::default().fetched(Offset(0), Offset(0)));
    story.read(Some(0), &[(0, 10, 2)], 2);
    story.read(Some(2), &[], 1);
    let report = story.check();
    let broken: Vec<Rule> = report.violations.iter().map(|violation| violation.rule).collect();
    assert_eq!(broken, [Rule::HighWatermarkNeverGoesBack, Rule::AckedIsNeverLost], "{:?}", report.violations);
}

#[test]
fn a_log_start_that_moves_where_nothing_may_go_is_named() {
    for retention in [false, true] {
        let mut story = Story::new();
        story.partitions[0].retention = retention;
        story.produce(10, 3, 0);
        for (from, log_start) in [(1, 1), (2, 2), (1, 1)] {
            let op = story.begin(9, Begun::Fetch { key: KEY, from: Some(Offset(from)) });
            let mut runs = Runs::default();
            (from..3).for_each(|offset| runs.push(Offset(offset), Value(10 + offset)));
            story.end(op, runs.fetched(Offset(3), Offset(log_start)));
        }
        let expected = if retention { 1 } else { 3 };
        let report = story.check();
        assert_eq!(report.violation_count, expected, "{:?}", report.violations);
        assert!(report.violations.iter().all(|violation| violation.rule == Rule::LogStartHolds));
    }
}

#[test]
fn an_error_about_damage_is_believed_only_where_there_is_damage() {
    let story = |damaged: bool| {
        let mut story = Story::new();
        story.produce(10, 3, 0);
        if damaged {
            story.incident(0, Incident::Damage(KEY, Offset(1), Offset(2)));
        }
        story.read(Some(0), &[(0, 10, 1)], 3);
        let op = story.begin(9, Begun::Fetch { key: KEY, from: None });
        story.end(op, Ended::Damaged { from: Offset(1), to: Offset(2) });
        story.incident(9, Incident::Seek(KEY, Offset(2)));
        story.read(None, &[(2, 12, 1)], 3);
        story
    };
    story(true).holds();
    story(false).breaks(Rule::ErrorsAreForDamage, "offsets 1 to 2 are said to be damaged");
}

#[test]
fn an_offset_said_to_be_out_of_range_below_the_high_watermark_is_named() {
    let mut story = Story::new();
    story.produce(10, 3, 0);
    let op = story.begin(9, Begun::Fetch { key: KEY, from: Some(Offset(2)) });
    story.end(op, Ended::OutOfRange);
    story.breaks(Rule::RangeErrorsAreTrue, "offset 2 is said to be out of range, 0 to 3 is known");
}

#[test]
fn a_power_cut_may_take_an_end_of_what_was_only_written_and_nothing_else() {
    for (after, sound) in [((0, 10), true), ((1, 11), false)] {
        let mut story = Story::promising(Promise::Written);
        story.produce(10, 1, 0);
        story.produce(11, 1, 1);
        story.incident(0, Incident::Crash(Crash::Power));
        let other = story.send(2, 20, 1);
        let base = 1 - after.0;
        story.end(other, acked(base));
        let mut runs = [(base, 20, 1), (after.0, after.1, 1)];
        runs.sort_unstable();
        story.read(Some(0), &runs, 2);
        if sound {
            story.holds();
        } else {
            story.breaks(Rule::LossIsASuffix, "value 11 at offset 1");
        }
    }
    let mut story = Story::promising(Promise::Written);
    story.produce(10, 1, 0);
    story.incident(0, Incident::Crash(Crash::Process));
    story.read(Some(0), &[], 0);
    story.breaks(Rule::AckedIsNeverLost, "value 10");
}

#[test]
fn a_committed_offset_is_the_last_one_or_one_of_unknown_outcome() {
    let story = |told: Option<u64>| {
        let mut story = Story::new();
        for (offset, ended) in [(5, Ended::Done), (7, Ended::Done), (8, Ended::Failed), (9, Ended::Unknown)] {
            let op = story.begin(1, Begun::Commit { group: 1, key: KEY, offset: Offset(offset) });
            story.end(op, ended);
        }
        let op = story.begin(2, Begun::AskCommitted { group: 1, key: KEY });
        story.end(op, Ended::Committed(told.map(Offset)));
        story
    };
    story(Some(7)).holds();
    story(Some(9)).holds();
    for wrong in [None, Some(5), Some(8)] {
        story(wrong).breaks(Rule::CommittedOffsetsHold, "group 1 has committed offset");
    }
}

#[test]
fn a_topic_that_comes_back_or_is_gone_is_named() {
    for (changes, there) in [(vec![true], false), (vec![true, false], true)] {
        let mut story = Story::new();
        for made in changes {
            let op = story.begin(1, if made { Begun::Create(KEY) } else { Begun::Delete(KEY) });
            story.end(op, Ended::Done);
        }
        let op = story.begin(2, Begun::Describe(KEY));
        story.end(op, Ended::There(there));
        story.breaks(Rule::TopicsHold, "the topic was");
    }
    let mut story = Story::new();
    let create = story.begin(1, Begun::Create(KEY));
    let ask = story.begin(2, Begun::Describe(KEY));
    story.end(create, Ended::Done);
    story.end(ask, Ended::There(false));
    story.holds();
}

#[test]
fn a_million_records_are_checked_record_by_record() {
    let mut story = Story::new();
    for batch in 0..10_000 {
        story.produce(batch * 100, 100, batch * 100);
    }
    for from in (0..1_000_000).step_by(5_000) {
        story.read(Some(from), &[(from, from, 5_000)], 1_000_000);
    }
    let report = story.holds();
    assert_eq!((report.acked, report.read), (1_000_000, 1_000_000));
}
