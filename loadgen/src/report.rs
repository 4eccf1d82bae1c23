//! What is told of a run: a line of a table, or JSON; measures nothing.

use crate::arguments::RunArguments;
use crate::control::Usage;
use crate::generator::Outcome;
use crate::tally::{Latencies, Tally};
use coulee_client::Counter;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Counters that a report shows the growth of.
const COUNTERS: [Counter; 10] = [
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
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) parameters: Map<String, Value>,
    value_bytes: u64,
    pub(crate) acks: Tally,
    reads: Tally,
    read_bytes: u64,
    server_cpu_us: u64,
    rss_bytes: u64,
    counters: Map<String, Value>,
}

/// A run's lines.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) rows: Vec<Row>,
    pub(crate) machine: String,
}

impl Row {
    pub(crate) fn new(
        arguments: &RunArguments,
        name: &'static str,
        outcome: Outcome,
        read_bytes: u64,
        (before, after): (&Usage, &Usage),
    ) -> Self {
        let grown = |counter: &Counter| Some((counter.name().to_owned(), after.grown(before, *counter)?.into()));
        Self {
            name,
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

    /// What the row is about: acks, or, where nothing was written, reads.
    fn main(&self) -> &Tally {
        if self.acks.records > 0 { &self.acks } else { &self.reads }
    }

    fn cpu_ns_per_record(&self) -> f64 {
        self.server_cpu_us as f64 * 1e3 / self.main().records.max(1) as f64
    }

    fn megabytes_per_second(&self, tally: &Tally) -> f64 {
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
        let heads = ["work", "records/s", "MB/s", "p50 us", "p90 us", "p99 us", "p99.9 us", "max us", "cpu ns/r", "rss MiB"];
        let [work, records, rest @ ..] = heads;
        let mut lines = format!("{work:<22} {records:>12}");
        rest.iter().for_each(|head| lines += &format!(" {head:>width$}", width = if *head == "rss MiB" { 7 } else { 9 }));
        for row in &self.rows {
            if row.acks.records > 0 {
                lines += &format!("\n{}", row.line(row.name, &row.acks));
            }
            if row.reads.records > 0 {
                let name = if row.acks.records > 0 { format!("{}: read", row.name) } else { row.name.to_owned() };
                lines += &format!("\n{}", row.line(&name, &row.reads));
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
        json!({"machine": self.machine, "command": command.join(" "), "rows": rows})
    }
}

fn parameters(arguments: &RunArguments, shards: usize) -> Map<String, Value> {
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
