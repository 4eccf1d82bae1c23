//! What is told of a run: a line of a table, or JSON; measures nothing.

use crate::arguments::RunArguments;
use crate::control::Usage;
use crate::generator::Outcome;
use crate::tally::{Latencies, Tally};
use coulee_client::Counter;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Counters that a report shows the growth of.
const COUNTERS: [Counter; 11] = [
    Counter::ProducedRecords,
    Counter::ProducedBytes,
    Counter::FetchedBytes,
    Counter::CopiedBytes,
    Counter::Writes,
    Counter::WrittenBytes,
    Counter::Syncs,
    Counter::Cycles,
    Counter::Allocations,
    Counter::SegmentsCreated,
    Counter::SegmentsFallocated,
];

/// One line: what was done and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) parameters: Map<String, Value>,
    pub(crate) value_bytes: u64,
    pub(crate) acks: Tally,
    pub(crate) reads: Tally,
    pub(crate) read_bytes: u64,
    pub(crate) server_cpu_us: u64,
    pub(crate) rss_bytes: u64,
    pub(crate) counters: Map<String, Value>,
}

/// A run's lines.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) rows: Vec<Row>,
    /// What bare servers did before and after.
    pub(crate) bare: Vec<Row>,
    pub(crate) machine: String,
}

/// How a broker stands beside the better of the bare servers, each one's runs taken together by their median.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratios {
    pub(crate) throughput: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) cpu: f64,
}

impl Ratios {
    pub(crate) fn of<'a>(row: &Row, bare: impl IntoIterator<Item = &'a Row>) -> Option<Self> {
        let bare: Vec<&Row> = bare.into_iter().collect();
        let most = |value: &dyn Fn(&Row) -> f64| best(&bare, value, f64::max);
        let least = |value: &dyn Fn(&Row) -> f64| best(&bare, value, f64::min);
        let percentile = |percent: f64| move |row: &Row| row.acks.latencies.percentile_us(percent);
        Some(Self {
            throughput: row.acks.records_per_second() / most(&|row| row.acks.records_per_second())?,
            p50: percentile(50.0)(row) / least(&percentile(50.0))?,
            p99: percentile(99.0)(row) / least(&percentile(99.0))?,
            cpu: row.cpu_ns_per_record() / least(&Row::cpu_ns_per_record)?,
        })
    }
}

/// The median of each kind of bare server, the better one of them.
fn best(bare: &[&Row], value: &dyn Fn(&Row) -> f64, better: fn(f64, f64) -> f64) -> Option<f64> {
    let mut kinds: Vec<&str> = bare.iter().map(|row| row.name.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let of_kind = |kind: &&str| bare.iter().filter(|row| row.name == **kind).map(|row| value(row)).collect();
    kinds.iter().map(|kind| median(of_kind(kind))).reduce(better)
}

/// The value in the middle; of an even count, the mean of the two there.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { f64::midpoint(values[middle - 1], values[middle]) } else { values[middle] }
}

impl Row {
    pub(crate) fn new(
        arguments: &RunArguments,
        name: &str,
        outcome: Outcome,
        read_bytes: u64,
        (before, after): (&Usage, &Usage),
    ) -> Self {
        let grown = |counter: &Counter| Some((counter.name().to_owned(), after.grown(before, *counter)?.into()));
        Self {
            name: name.to_owned(),
            parameters: parameters(arguments, after.shards),
            value_bytes: u64::from(arguments.size),
            acks: outcome.acks,
            reads: outcome.reads,
            read_bytes,
            server_cpu_us: after.cpu_us.saturating_sub(before.cpu_us),
            rss_bytes: after.rss_bytes,
            counters: COUNTERS.iter().filter_map(grown).collect(),
        }
    }

    /// What a bare server has done under the same load.
    pub(crate) fn bare(parameters: Map<String, Value>, name: String, size: u32, outcome: Outcome, cpu_us: u64) -> Self {
        Self {
            name,
            parameters,
            value_bytes: u64::from(size),
            acks: outcome.acks,
            reads: outcome.reads,
            read_bytes: 0,
            server_cpu_us: cpu_us,
            rss_bytes: 0,
            counters: Map::new(),
        }
    }

    /// What the row is about: acks, or, where nothing was written, reads.
    fn main(&self) -> &Tally {
        if self.acks.records > 0 { &self.acks } else { &self.reads }
    }

    pub(crate) fn cpu_ns_per_record(&self) -> f64 {
        self.server_cpu_us as f64 * 1e3 / self.main().records.max(1) as f64
    }

    pub(crate) fn megabytes_per_second(&self, tally: &Tally) -> f64 {
        tally.records_per_second() * self.value_bytes as f64 / 1e6
    }

    fn line(&self, name: &str, tally: &Tally) -> String {
        let latencies = &tally.latencies;
        let percentiles = [50.0, 90.0, 99.0, 99.9].map(|percent| latencies.percentile_us(percent));
        let mut line = String::new();
        let written = write!(
            line,
            "{name:<22} {:>12.0} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>7.1}",
            tally.records_per_second(),
            self.megabytes_per_second(tally),
            percentiles[0],
            percentiles[1],
            percentiles[2],
            percentiles[3],
            latencies.max_us(),
            self.cpu_ns_per_record(),
            self.rss_bytes as f64 / f64::from(1 << 20),
        );
        written.expect("text can always be added to");
        line
    }

    fn json(&self) -> Value {
        json!({
            "work": self.name,
            "parameters": self.parameters,
            "acked": self.direction(&self.acks),
            "read": self.direction(&self.reads),
            "read_bytes": self.read_bytes,
            "server_cpu_us": self.server_cpu_us,
            "server_cpu_ns_per_record": self.cpu_ns_per_record(),
            "rss_bytes": self.rss_bytes,
            "counters": self.counters,
        })
    }

    fn direction(&self, tally: &Tally) -> Value {
        json!({
            "records": tally.records,
            "requests": tally.requests,
            "records_measured": tally.records_measured,
            "seconds": tally.seconds(),
            "records_per_second": tally.records_per_second(),
            "mb_per_second": self.megabytes_per_second(tally),
            "latency_us": latency(&tally.latencies),
            "records_each_100_ms": tally.points,
        })
    }
}

impl Rows {
    /// The table: one line for each row, two where it wrote and read.
    pub(crate) fn table(&self) -> String {
        let heads =
            ["work", "records/s", "MB/s", "p50 us", "p90 us", "p99 us", "p99.9 us", "max us", "cpu ns/r", "rss MiB"];
        let [work, records, rest @ ..] = heads;
        let mut lines = format!("{work:<22} {records:>12}");
        rest.iter()
            .for_each(|head| lines += &format!(" {head:>width$}", width = if *head == "rss MiB" { 7 } else { 9 }));
        for row in self.rows.iter().chain(&self.bare) {
            if row.acks.records > 0 {
                lines += &format!("\n{}", row.line(&row.name, &row.acks));
            }
            if row.reads.records > 0 {
                let name = if row.acks.records > 0 { format!("{}: read", row.name) } else { row.name.clone() };
                lines += &format!("\n{}", row.line(&name, &row.reads));
            }
        }
        for row in &self.rows {
            if let Some(Ratios { throughput, p50, p99, cpu }) = Ratios::of(row, &self.bare) {
                lines += &format!(
                    "\n{} / bare: throughput {throughput:.2}, p50 {p50:.2}, p99 {p99:.2}, cpu {cpu:.2}",
                    row.name
                );
            }
        }
        if let Some(row) = self.rows.first() {
            lines += &format!("\n{}  [{}]", summary(&row.parameters), self.machine);
        }
        lines
    }

    pub(crate) fn json(&self) -> Value {
        let command: Vec<String> = std::env::args().collect();
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        let bare: Vec<Value> = self.bare.iter().map(Row::json).collect();
        let ratio = |row: &Row| {
            let Ratios { throughput, p50, p99, cpu } = Ratios::of(row, &self.bare)?;
            Some(json!({"throughput": throughput, "p50": p50, "p99": p99, "cpu": cpu}))
        };
        let ratios: Vec<Option<Value>> = self.rows.iter().map(ratio).collect();
        json!({
            "machine": self.machine,
            "command": command.join(" "),
            "rows": rows,
            "bare": bare,
            "ratios": ratios,
        })
    }
}

pub(crate) fn parameters(arguments: &RunArguments, shards: usize) -> Map<String, Value> {
    let value = json!({
        "durability": arguments.durability.name(),
        "size": arguments.size,
        "batch": arguments.batch(),
        "producers": arguments.producers(),
        "partitions": arguments.partitions(),
        "in_flight": arguments.in_flight(),
        "rate": arguments.rate(),
        "cpus": arguments.cpus,
        "shards": shards,
    });
    value.as_object().cloned().unwrap_or_default()
}

fn summary(parameters: &Map<String, Value>) -> String {
    let words: Vec<String> = parameters.iter().map(|(key, value)| format!("{key}={value}")).collect();
    words.join(" ")
}

fn latency(latencies: &Latencies) -> Value {
    json!({
        "p50": latencies.percentile_us(50.0),
        "p90": latencies.percentile_us(90.0),
        "p99": latencies.percentile_us(99.0),
        "p99.9": latencies.percentile_us(99.9),
        "max": latencies.max_us(),
        "count": latencies.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Window;

    fn row(name: &str, records: u64, latency_ns: u64, cpu_us: u64) -> Row {
        let window = Window { start_ns: 0, end_ns: 1_000_000_000 };
        let mut acks = Tally::new(window);
        acks.done(records, 1_000_000 - latency_ns, 1_000_000);
        let outcome = Outcome { acks, reads: Tally::new(window) };
        Row::bare(Map::new(), name.to_owned(), 100, outcome, cpu_us)
    }

    #[test]
    fn the_median_of_an_even_count_lies_between_the_two_in_the_middle() {
        assert_eq!([vec![3.0, 1.0, 2.0], vec![4.0, 1.0, 3.0, 2.0]].map(median), [2.0, 2.5]);
    }

    #[test]
    fn a_broker_is_held_against_the_better_of_the_bare_servers() {
        let bare = [
            row("loop", 300, 80_000, 30),
            row("ring", 100, 40_000, 5),
            row("loop", 500, 120_000, 50),
            row("ring", 100, 40_000, 5),
        ];
        let ratios = Ratios::of(&row("produce", 200, 60_000, 20), &bare).unwrap();
        let close = |found: f64, expected: f64| (found - expected).abs() < 0.01;
        assert!(close(ratios.throughput, 200.0 / 400.0), "{ratios:?}");
        assert!(close(ratios.p50, 1.5) && close(ratios.p99, 1.5), "{ratios:?}");
        assert!(close(ratios.cpu, 2.0), "{ratios:?}");
        assert_eq!(Ratios::of(&row("produce", 200, 60_000, 20), &[]), None);
    }
}
