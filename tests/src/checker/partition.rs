//! What is known of one partition: values by offset, ends, what was read since the last crash; knows no process.

use super::{Crash, PartitionInfo, Promise, Value};
use coulee_protocol::ids::Offset;
use std::collections::BTreeMap;
use std::ops::Range;

/// No value is known there.
const NOTHING: u64 = u64::MAX;

/// Ranges of offsets, joined where they touch.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(super) fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut from, mut to) = (range.start, range.end);
        while let Some((&start, &end)) = self.0.range(..=to).next_back().filter(|(_, end)| **end >= from) {
            self.0.remove(&start);
            (from, to) = (from.min(start), to.max(end));
        }
        self.0.insert(from, to);
    }

    pub(super) fn holds(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.0.range(..=range.start).next_back().is_some_and(|(_, end)| *end >= range.end)
    }

    /// What of `range` lies in none of them.
    pub(super) fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let (mut at, mut missing) = (range.start, Vec::new());
        for (&start, &end) in &self.0 {
            if start > at && at < range.end {
                missing.push(at..start.min(range.end));
            }
            at = at.max(end);
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }
}

/// One partition as its clients know it.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) info: PartitionInfo,
    values: Vec<u64>,
    /// Everything below was acknowledged, shown, or said to be visible.
    pub(super) known_end: Offset,
    pub(super) log_start: Offset,
    /// Damaged by the test.
    pub(super) damaged: Ranges,
    /// Read since the last crash.
    pub(super) covered: Ranges,
    /// Before the last power cut that may have taken an end, and the first offset that it took, as far as is known.
    before: Vec<u64>,
    cut: Option<u64>,
}

impl Partition {
    pub(super) fn new(info: PartitionInfo) -> Self {
        Self {
            info,
            values: Vec::new(),
            known_end: Offset(0),
            log_start: Offset(0),
            damaged: Ranges::default(),
            covered: Ranges::default(),
            before: Vec::new(),
            cut: None,
        }
    }

    /// The value that is known to lie at `offset`.
    pub(super) fn value(&self, offset: u64) -> Option<Value> {
        self.values.get(offset as usize).copied().filter(|value| *value != NOTHING).map(Value)
    }

    /// Notes that `value` lies at `offset`, or answers what is known to lie there.
    pub(super) fn put(&mut self, offset: u64, value: Value) -> Option<Value> {
        let at = offset as usize;
        if self.values.len() <= at {
            self.values.resize(at + 1, NOTHING);
        }
        let known = self.values[at];
        if known == NOTHING {
            self.values[at] = value.0;
            return None;
        }
        (known != value.0).then_some(Value(known))
    }

    /// After a power cut that may have taken an end: whether `value` at `offset` agrees with a prefix being left.
    pub(super) fn is_of_a_prefix(&mut self, offset: u64, value: Value) -> bool {
        let Some(before) = self.before.get(offset as usize).copied().filter(|before| *before != NOTHING) else {
            return true;
        };
        if before == value.0 {
            return self.cut.is_none_or(|cut| offset < cut);
        }
        self.cut = Some(self.cut.map_or(offset, |cut| cut.min(offset)));
        true
    }

    pub(super) fn raise(&mut self, end: Offset) {
        self.known_end = self.known_end.max(end);
    }

    /// The broker went down.
    pub(super) fn crash(&mut self, crash: Crash) {
        self.covered = Ranges::default();
        if self.info.promise == Promise::Written && crash == Crash::Power {
            self.before = std::mem::take(&mut self.values);
            self.cut = None;
            self.known_end = self.log_start;
        }
    }

    /// Values known at offsets of `range`, lowest first.
    pub(super) fn known(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Value)> + '_ {
        let end = range.end.min(self.values.len() as u64);
        (range.start..end).filter_map(|offset| self.value(offset).map(|value| (offset, value)))
    }

    pub(super) fn values_len(&self) -> u64 {
        self.values.len() as u64
    }
}
