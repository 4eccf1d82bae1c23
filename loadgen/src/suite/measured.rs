//! What rows have measured: parts, their runs, medians over them, and what was counted; knows no target and no broker.

use super::targets::{Metric, Pool, RowSpec};
use crate::report::{Ratios, Row, median};
use crate::tally::{Latencies, Tally};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// One value of each metric that there is.
pub(crate) type Values = BTreeMap<Metric, f64>;

/// One run of one part of a row.
#[derive(Debug)]
pub(crate) struct Run {
    /// When it ended.
    pub(crate) ended: SystemTime,
    pub(crate) values: Values,
    /// Records of requests and answers that were checked, by what happened to them.
    pub(crate) counts: Map<String, Value>,
    pub(crate) latencies: Option<Latencies>,
    pub(crate) seconds: f64,
    /// Records in each tenth of a second.
    pub(crate) points: Vec<u64>,
    pub(crate) bare: Vec<BareRun>,
}

/// A bare server under the same load.
#[derive(Clone, Debug)]
pub(crate) struct BareRun {
    pub(crate) name: String,
    /// Before the broker's run, or after it.
    pub(crate) is_before: bool,
    pub(crate) values: Values,
    pub(crate) latencies: Option<Latencies>,
}

/// A line of the table: one of the things that a row measures.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) runs: Vec<Run>,
}

/// What came of a row.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) spec: RowSpec,
    pub(crate) parameters: Map<String, Value>,
    pub(crate) parts: Vec<Part>,
    /// Why there is nothing, or no more.
    pub(crate) fault: Option<String>,
    /// Why it was not begun.
    pub(crate) skipped: Option<String>,
    /// What all of it took, with bare servers and what goes before.
    pub(crate) took_seconds: f64,
}

/// Bare servers around a run.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    pub(crate) before: Vec<Row>,
    pub(crate) after: Vec<Row>,
}

impl Run {
    /// A run that is no matter of requests.
    pub(crate) fn plain(values: impl IntoIterator<Item = (Metric, f64)>, counts: Value) -> Self {
        Self {
            ended: SystemTime::now(),
            values: values.into_iter().collect(),
            counts: counts.as_object().cloned().unwrap_or_default(),
            latencies: None,
            seconds: 0.0,
            points: Vec::new(),
            bare: Vec::new(),
        }
    }

    /// One direction of what `run` has measured, beside bare servers.
    pub(crate) fn of(row: &Row, tally: &Tally, beside: &Beside) -> Self {
        let mut values = values_of(tally, row.value_bytes);
        let records = tally.records.max(1) as f64;
        let counted = |name: &str| row.counters.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        values.insert(Metric::CpuUsPerRecord, row.server_cpu_us as f64 / records);
        values.insert(Metric::RssMib, row.rss_bytes as f64 / f64::from(1 << 20));
        let moved = counted("produced_bytes") + counted("fetched_bytes");
        if moved > 0.0 {
            values.insert(Metric::CopiedPercent, 100.0 * counted("copied_bytes") / moved);
        }
        let mut run = Self {
            ended: SystemTime::now(),
            values,
            counts: counts_of(row),
            latencies: Some(tally.latencies.clone()),
            seconds: tally.seconds(),
            points: tally.points.clone(),
            bare: Vec::new(),
        };
        run.hold_against(row, tally, beside);
        run
    }

    fn hold_against(&mut self, row: &Row, tally: &Tally, beside: &Beside) {
        let all = || beside.before.iter().chain(&beside.after);
        let view = Row { acks: tally.clone(), ..row.clone() };
        if let Some(Ratios { throughput, p50, p99, .. }) = Ratios::of(&view, all()) {
            self.values.insert(Metric::ThroughputOverBare, throughput);
            self.values.insert(Metric::P50OverBare, p50);
            self.values.insert(Metric::P99OverBare, p99);
        }
        // The ring alone: the loop's CPU time has no protocol either, but a thread more.
        if let Some(Ratios { cpu, .. }) = Ratios::of(&view, all().filter(|row| row.name == "bare ring")) {
            self.values.insert(Metric::CpuOverBare, cpu);
        }
        let bare = |is_before: bool| {
            move |row: &Row| BareRun {
                name: row.name.clone(),
                is_before,
                values: values_of(&row.acks, row.value_bytes),
                latencies: Some(row.acks.latencies.clone()),
            }
        };
        self.bare.extend(beside.before.iter().map(bare(true)));
        self.bare.extend(beside.after.iter().map(bare(false)));
    }
}

fn values_of(tally: &Tally, value_bytes: u64) -> Values {
    let percentile = |percent| tally.latencies.percentile_us(percent);
    let rate = tally.records_per_second();
    Values::from([
        (Metric::RecordsPerSecond, rate),
        (Metric::MbPerSecond, rate * value_bytes as f64 / 1e6),
        (Metric::P50Us, percentile(50.0)),
        (Metric::P90Us, percentile(90.0)),
        (Metric::P99Us, percentile(99.0)),
        (Metric::P999Us, percentile(99.9)),
        (Metric::MaxUs, tally.latencies.max_us()),
    ])
}

/// What was acknowledged, read, verified, and what the broker has counted meanwhile.
fn counts_of(row: &Row) -> Map<String, Value> {
    let mut counts = Map::new();
    counts.insert("records_acknowledged".into(), row.acks.records.into());
    counts.insert("records_read".into(), row.reads.records.into());
    // Whatever was read was compared with what was sent before it was counted.
    counts.insert("records_verified".into(), row.reads.records.into());
    counts.insert("read_bytes".into(), row.read_bytes.into());
    counts.extend(row.counters.clone());
    counts
}

impl Part {
    /// The median over the runs.
    pub(crate) fn value(&self, metric: Metric) -> Option<f64> {
        let values: Vec<f64> = self.runs.iter().filter_map(|run| run.values.get(&metric).copied()).collect();
        if values.is_empty() { None } else { Some(median(values)) }
    }

    /// The sum of a count over the runs.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.runs.iter().filter_map(|run| run.counts.get(name)?.as_u64()).sum()
    }

    /// The latencies of all runs together.
    pub(crate) fn latencies(&self) -> Option<Latencies> {
        sum(self.runs.iter().filter_map(|run| run.latencies.as_ref()))
    }

    /// The latencies of each kind of bare server, all its runs together.
    pub(crate) fn bare_latencies(&self) -> Vec<(String, Latencies)> {
        let mut kinds: BTreeMap<&str, Vec<&Latencies>> = BTreeMap::new();
        for bare in self.runs.iter().flat_map(|run| &run.bare) {
            kinds.entry(&bare.name).or_default().extend(&bare.latencies);
        }
        kinds.into_iter().filter_map(|(name, all)| Some((name.to_owned(), sum(all)?))).collect()
    }
}

fn sum<'a>(all: impl IntoIterator<Item = &'a Latencies>) -> Option<Latencies> {
    let mut all = all.into_iter();
    let mut sum = all.next()?.clone();
    all.for_each(|more| sum.add(more));
    (sum.len() > 0).then_some(sum)
}

impl Measured {
    pub(crate) const fn new(spec: RowSpec, parameters: Map<String, Value>) -> Self {
        Self { spec, parameters, parts: Vec::new(), fault: None, skipped: None, took_seconds: 0.0 }
    }

    /// Adds a run to the part of this name.
    pub(crate) fn add(&mut self, part: &str, run: Run) {
        match self.parts.iter_mut().find(|known| known.name == part) {
            Some(known) => known.runs.push(run),
            None => self.parts.push(Part { name: part.to_owned(), runs: vec![run] }),
        }
    }

    /// What a recycled row has to be read with, where the pool was too small for it.
    pub(crate) fn caution(&self) -> Option<String> {
        let fallocated: u64 = self.parts.first().map_or(0, |part| part.count("segments_fallocated"));
        let is_spoiled = self.spec.pool == Pool::Recycled && fallocated > 0;
        is_spoiled.then(|| format!("not all of it is recycled: {fallocated} segments found no file in the pool"))
    }

    /// The part of this name, or the first.
    pub(crate) fn part(&self, name: Option<&str>) -> Option<&Part> {
        match name {
            None => self.parts.first(),
            Some(name) => self.parts.iter().find(|part| part.name == name),
        }
    }
}
