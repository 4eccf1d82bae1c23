//! What is promised, and what was found to break it; knows no event.

use std::fmt;

/// How many violations are told in full.
const TOLD_MAX: usize = 50;

/// A promise. Each has a history in the tests that breaks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// What was acknowledged is there, where it was said to be.
    AckedIsNeverLost,
    /// What was shown to a reader is there: nothing is visible before it is durable.
    ShownNeverVanishes,
    /// No value lies at two offsets.
    NoValueTwice,
    /// No offset has two values.
    NoOffsetWithTwoValues,
    /// Values of one process lie in the order in which they were sent, and behind all that was acknowledged before.
    SentOrderIsKept,
    /// A batch is there as a whole or not at all.
    BatchesAreWhole,
    /// A process is told of its produces in the order of their offsets.
    AcksComeInOrder,
    /// A reader gets what it asked for, without a gap and without a step back.
    ReadsSkipNothing,
    /// Nothing is read that was not sent to that partition before.
    OnlySentIsRead,
    /// What was refused for sure is not there.
    RefusedIsNotThere,
    /// Records are shown below the high watermark only.
    NothingAboveHighWatermark,
    /// The high watermark never goes back.
    HighWatermarkNeverGoesBack,
    /// The log start never goes back, and moves only where records may go.
    LogStartHolds,
    /// An error about damage speaks of what was damaged.
    ErrorsAreForDamage,
    /// An offset below the high watermark is in range.
    RangeErrorsAreTrue,
    /// A power cut takes an end of what was only written, nothing before it.
    LossIsASuffix,
    /// A committed offset is the last one that was committed.
    CommittedOffsetsHold,
    /// A topic that was made is there, one that was removed is not.
    TopicsHold,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// What happened, with names, offsets, values and times.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.rule, self.text)
    }
}

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Values whose produce was acknowledged.
    pub acked: u64,
    /// Values of which nobody was told for sure what became of them.
    pub unknown: u64,
    /// Of those, found.
    pub unknown_found: u64,
    /// Records that fetches have brought.
    pub read: u64,
    /// Acknowledged values that nobody has read since the last crash: nothing is proved of these.
    pub unproved: u64,
    /// Promises broken, the first of them told.
    pub violations: Vec<Violation>,
    /// Promises broken, in all.
    pub violation_count: u64,
}

impl Report {
    pub(super) fn break_rule(&mut self, rule: Rule, text: String) {
        self.violation_count += 1;
        if self.violations.len() < TOLD_MAX {
            self.violations.push(Violation { rule, text });
        }
    }

    /// Whether everything that was acknowledged has been read again and no promise is broken.
    ///
    /// # Errors
    /// What is broken, in words.
    pub fn verdict(&self) -> Result<(), String> {
        if self.violation_count > 0 {
            let told: Vec<String> = self.violations.iter().take(5).map(ToString::to_string).collect();
            return Err(format!("{} promises broken:\n  {}", self.violation_count, told.join("\n  ")));
        }
        if self.unproved > 0 {
            return Err(format!(
                "{} acknowledged values were not read again: nothing is proved of them",
                self.unproved
            ));
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acked, unknown, unknown_found, read, violation_count, .. } = self;
        write!(
            formatter,
            "{acked} values acknowledged, {unknown} of unknown outcome ({unknown_found} of them there), "
        )?;
        write!(formatter, "{read} records read, {violation_count} promises broken")
    }
}
