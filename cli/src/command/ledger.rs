//! What became of lines or events that were sent: owns counts, the first troubles and the verdict; sends nothing.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use coulee_client::{Delivered, Delivery, DeliveryError};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use crate::code::LocalCode;
use crate::failure::{Exit, Failure};
use crate::terminal::Terminal;

/// Troubles that are told one by one.
const TOLD_MAX: usize = 10;
/// Deliveries that wait for their turn to be looked at.
pub(crate) const PENDING_MAX: usize = 65_536;
/// Progress is shown every so many.
const SHOWN_EVERY: u64 = 512;

/// A line or an event on its way.
#[derive(Debug)]
pub(crate) struct Sent {
    /// From 1.
    pub(crate) number: u64,
    /// The id, where the program gave one.
    pub(crate) event_id: Option<Uuid>,
    pub(crate) delivery: Delivery,
}

/// Counts of one run.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// What is counted: `line` or `event`.
    noun: &'static str,
    /// What is said of those that went well: `acknowledged`, `sent`.
    done: &'static str,
    acknowledged: u64,
    /// Never sent, since they are wrong in themselves.
    bad: u64,
    /// Surely not written.
    not_written: u64,
    /// Perhaps written.
    unknown: u64,
    partitions: BTreeMap<u32, Acknowledged>,
    troubles: Vec<String>,
    /// Why the first of those failed that were sent.
    first: Option<Failure>,
}

/// What was acknowledged in one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Acknowledged {
    count: u64,
    /// Behind the last of them.
    end: Option<u64>,
}

impl Ledger {
    pub(crate) fn new(noun: &'static str, done: &'static str) -> Self {
        Self {
            noun,
            done,
            acknowledged: 0,
            bad: 0,
            not_written: 0,
            unknown: 0,
            partitions: BTreeMap::new(),
            troubles: Vec::new(),
            first: None,
        }
    }

    /// One that could not be sent.
    pub(crate) fn reject(&mut self, number: u64, reason: &str) {
        self.bad += 1;
        self.trouble(number, reason);
    }

    /// One that is sound and, in a dry run, counts as done.
    pub(crate) fn accept(&mut self) {
        self.acknowledged += 1;
    }

    fn settle_one(&mut self, number: u64, outcome: Result<Delivered, DeliveryError>) {
        match outcome {
            Ok(delivered) => {
                self.acknowledged += 1;
                let of_partition = self.partitions.entry(delivered.partition).or_default();
                of_partition.count += 1;
                of_partition.end = of_partition.end.max(delivered.offset.map(|offset| offset + 1));
            }
            Err(error) => {
                let count = if error.may_be_written() { &mut self.unknown } else { &mut self.not_written };
                *count += 1;
                let failure = Failure::from(error);
                self.trouble(number, &failure.message);
                self.first.get_or_insert(failure);
            }
        }
    }

    fn trouble(&mut self, number: u64, reason: &str) {
        if self.troubles.len() < TOLD_MAX {
            self.troubles.push(format!("{} {number}: {reason}", self.noun));
        }
    }

    fn failed(&self) -> u64 {
        self.bad + self.not_written + self.unknown
    }

    /// One line for people.
    pub(crate) fn text(&self, took: Duration) -> String {
        let (count, seconds) = (self.acknowledged, took.as_secs_f64());
        let (noun, done) = (self.nouns(count), self.done);
        let rate = count as f64 / seconds.max(0.001);
        format!("{count} {noun} {done} in {seconds:.1} s ({rate:.0}/s)")
    }

    fn nouns(&self, count: u64) -> String {
        if count == 1 { self.noun.to_owned() } else { format!("{}s", self.noun) }
    }

    /// The counts as an object. What was only sent is not called acknowledged.
    pub(crate) fn object(&self, took: Duration) -> Map<String, Value> {
        let partition =
            |(index, of): (&u32, &Acknowledged)| json!({"partition": index, self.done: of.count, "end": of.end});
        let mut object = Map::new();
        object.insert(self.done.into(), self.acknowledged.into());
        object.insert("bad".into(), self.bad.into());
        object.insert("not_written".into(), self.not_written.into());
        object.insert("unknown".into(), self.unknown.into());
        object.insert("seconds".into(), took.as_secs_f64().into());
        object.insert("partitions".into(), self.partitions.iter().map(partition).collect());
        object
    }

    /// Whether all went well; `is_cut` if there would have been more to send.
    pub(crate) fn verdict(&self, is_cut: bool) -> Result<(), Failure> {
        let (failed, done) = (self.failed(), self.acknowledged);
        if failed == 0 && !is_cut {
            return Ok(());
        }
        if failed == 0 {
            let message = format!("interrupted after {done} {}, all {}", self.nouns(done), self.done);
            return Err(Failure::local(LocalCode::Interrupted, message).exit(Exit::PartlyDone));
        }
        let mut notes = self.troubles.clone();
        let untold = failed - notes.len() as u64;
        if untold > 0 {
            notes.push(format!("and {untold} more"));
        }
        if self.unknown > 0 && self.unknown < failed {
            notes.push(format!("{} of them may have been written, the others surely were not", self.unknown));
        }
        // Where nothing at all went well, the reason is the failure.
        if let (0, Some(first)) = (done, &self.first) {
            return Err(Failure { notes, ..first.clone() });
        }
        let message = format!("{done} of {} {}s were {}", done + failed, self.noun, self.done);
        let failure = Failure::local(LocalCode::NotAllAcknowledged, message);
        let exit = if done == 0 { Exit::Failed } else { failure.exit };
        let hint = if self.unknown > 0 {
            "what may have been written can be there: look before sending it again"
        } else {
            "nothing of what failed was written: send it again once the cause is gone"
        };
        Err(Failure { notes, ..failure }.hint(hint).exit(exit))
    }
}

/// Looks at deliveries in the order of sending until there are no more. The first that failed wakes `broken`. What was
/// delivered goes to `told`, one JSON object a line, as soon as there is nothing else to do.
///
/// # Errors
/// If `told` can't be written: whoever wants to know is gone, and no more is sent.
pub(crate) async fn settle(
    ledger: &RefCell<Ledger>,
    mut deliveries: mpsc::Receiver<Sent>,
    broken: &Notify,
    progress: &ProgressBar,
    mut told: Option<impl Write>,
) -> Result<(), Failure> {
    let mut fault = None;
    while let Some(Sent { number, event_id, delivery }) = deliveries.recv().await {
        let outcome = delivery.await;
        if let (Some(out), Ok(delivered)) = (&mut told, &outcome) {
            let line = write_delivered(out, ledger.borrow().noun, number, event_id, delivered);
            let written = line.and_then(|()| if deliveries.is_empty() { out.flush() } else { Ok(()) });
            if let Err(error) = written {
                broken.notify_one();
                (fault, told) = (Some(error), None);
            }
        }
        let is_broken = outcome.is_err();
        let mut ledger = ledger.borrow_mut();
        ledger.settle_one(number, outcome);
        if is_broken {
            broken.notify_one();
        }
        if number.is_multiple_of(SHOWN_EVERY) {
            progress.set_position(ledger.acknowledged);
        }
    }
    let ended = match (fault, told) {
        (Some(error), _) => Err(error),
        (None, Some(mut out)) => out.flush(),
        (None, None) => Ok(()),
    };
    ended.map_err(|error| untold(&error))
}

/// A closed pipe is no good end here: something was acknowledged and nobody knows what.
fn untold(error: &io::Error) -> Failure {
    Failure::local(LocalCode::OutputFailed, format!("standard output can't be written: {error}"))
        .exit(Exit::PartlyDone)
        .hint("what was sent before is there, told or not: look before sending it again")
}

/// One delivery as an object on a line. Without an acknowledgement there is no offset.
fn write_delivered(
    out: &mut impl Write,
    noun: &str,
    number: u64,
    event_id: Option<Uuid>,
    delivered: &Delivered,
) -> io::Result<()> {
    let Delivered { partition, offset, .. } = delivered;
    write!(out, "{{\"{noun}\":{number}")?;
    if let Some(id) = event_id {
        write!(out, ",\"eventId\":\"{id}\"")?;
    }
    match offset {
        Some(offset) => writeln!(out, ",\"partition\":{partition},\"offset\":{offset}}}"),
        None => writeln!(out, ",\"partition\":{partition},\"offset\":null}}"),
    }
}

/// A line that shows how far it is, where somebody looks.
pub(crate) fn progress(terminal: &Terminal, total: Option<u64>) -> ProgressBar {
    let target = if terminal.is_watched { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(total, target);
    let template = match total {
        Some(_) => "{bar:30} {pos}/{len} acknowledged, {rate}/s, {eta} to go",
        None => "{spinner} {pos} acknowledged, {rate}/s",
    };
    let style = if total.is_some() { ProgressStyle::default_bar() } else { ProgressStyle::default_spinner() };
    let style = style.template(template).expect("the templates are constants, and a test draws them");
    // Its own form of a rate has four decimals.
    bar.with_style(style.with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // A text in memory takes everything.
        let _infallible = write!(out, "{:.0}", state.per_sec());
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(partition: u32, offset: u64) -> Result<Delivered, DeliveryError> {
        Ok(Delivered { partition, offset: Some(offset), timestamp_ms: 0 })
    }

    #[test]
    fn a_run_without_trouble_is_told_in_one_line() {
        let mut ledger = Ledger::new("line", "acknowledged");
        for (partition, offset) in [(0, 5), (1, 0), (0, 6)] {
            ledger.settle_one(1, delivered(partition, offset));
        }
        assert_eq!(ledger.verdict(false), Ok(()));
        assert_eq!(ledger.text(Duration::from_secs(2)), "3 lines acknowledged in 2.0 s (2/s)");
        let object = Value::Object(ledger.object(Duration::from_secs(2)));
        assert_eq!(object["partitions"][0], json!({"partition": 0, "acknowledged": 2, "end": 7}));
        assert_eq!((&object["acknowledged"], &object["bad"]), (&json!(3), &json!(0)));
    }

    #[test]
    fn a_delivery_is_one_object_on_a_line() {
        let written = |event_id, offset| {
            let mut out = Vec::new();
            let delivered = Delivered { partition: 3, offset, timestamp_ms: 0 };
            write_delivered(&mut out, "event", 17, event_id, &delivered).unwrap();
            String::from_utf8(out).unwrap()
        };
        let id = Uuid::from_u128(1);
        let expected = "{\"event\":17,\"eventId\":\"00000000-0000-0000-0000-000000000001\",\
                        \"partition\":3,\"offset\":42}\n";
        assert_eq!(written(Some(id), Some(42)), expected);
        assert_eq!(written(None, None), "{\"event\":17,\"partition\":3,\"offset\":null}\n");
    }

    #[test]
    fn bad_lines_are_told_by_number_and_the_run_is_partly_done() {
        let mut ledger = Ledger::new("line", "acknowledged");
        ledger.settle_one(1, delivered(0, 0));
        (2..=14).for_each(|number| ledger.reject(number, "no JSON from column 1 on"));
        let text = ledger.verdict(false).unwrap_err().text(false);
        let told: String = (2..=11).map(|number| format!("  line {number}: no JSON from column 1 on\n")).collect();
        let expected = format!(
            "error[E2008]: 1 of 14 lines were acknowledged\n{told}  and 3 more\n  \
             hint: nothing of what failed was written: send it again once the cause is gone\n  \
             docs: docs/errors.md#e2008\n"
        );
        assert_eq!(text, expected);
        assert_eq!(ledger.verdict(false).unwrap_err().exit, Exit::PartlyDone);
    }

    #[test]
    fn what_may_have_been_written_is_told_apart() {
        let mut ledger = Ledger::new("event", "acknowledged");
        ledger.settle_one(1, delivered(0, 0));
        ledger.settle_one(2, Err(DeliveryError::OutcomeUnknown { refusal: None }));
        ledger.settle_one(3, Err(DeliveryError::Undelivered));
        let failure = ledger.verdict(false).unwrap_err();
        assert_eq!(failure.notes[2], "1 of them may have been written, the others surely were not");
        assert_eq!(
            failure.hint.as_deref(),
            Some("what may have been written can be there: look before sending it again")
        );
    }

    #[test]
    fn where_nothing_went_well_the_first_reason_is_the_failure() {
        let mut ledger = Ledger::new("line", "acknowledged");
        ledger.settle_one(1, Err(DeliveryError::Undelivered));
        let failure = ledger.verdict(false).unwrap_err();
        assert_eq!((failure.number, failure.exit), (2_003, Exit::Unavailable));
        let mut bad = Ledger::new("line", "acknowledged");
        bad.reject(1, "no field \"userId\"");
        assert_eq!(bad.verdict(false).unwrap_err().exit, Exit::Failed);
    }

    #[test]
    fn an_interrupted_run_is_partly_done() {
        let mut ledger = Ledger::new("line", "acknowledged");
        ledger.settle_one(1, delivered(0, 0));
        let failure = ledger.verdict(true).unwrap_err();
        assert_eq!((failure.number, failure.exit), (2_015, Exit::PartlyDone));
        assert_eq!(failure.message, "interrupted after 1 line, all acknowledged");
    }

    #[test]
    fn progress_is_drawn_from_valid_templates() {
        let terminal = Terminal::new(true, true);
        for total in [None, Some(10)] {
            progress(&terminal, total).set_position(5);
        }
    }
}
