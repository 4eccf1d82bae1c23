//! What a suite runs and what has to come of it, from a file in TOML: owns its words; runs nothing.

use crate::arguments::{Durability, RunArguments, Work};
use crate::fault::Fault;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;

/// The file that is built in.
const BUILT_IN: &str = include_str!("../../targets.toml");

/// A suite.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Targets {
    full: Pace,
    quick: Pace,
    #[serde(rename = "row")]
    pub(crate) rows: Vec<RowSpec>,
}

/// How much time and room a suite takes. A row may say otherwise.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pace {
    /// Runs of each row.
    pub(crate) runs: u32,
    /// Seconds of each run.
    pub(crate) seconds: f64,
    /// Seconds of each bare server's run.
    pub(crate) bare_seconds: f64,
    /// What each bare server's file holds.
    pub(crate) bare_mib: u64,
    /// Zeroed files that recycled rows find in the pool.
    pub(crate) pool_gib: u64,
    /// Of those, files of 1 MiB, for rows with many partitions.
    pub(crate) small_files: u64,
    /// What growing rows write at most.
    pub(crate) growing_gib: u64,
    /// No row begins once so many seconds have passed.
    pub(crate) seconds_max: Option<f64>,
}

/// The kinds of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RowWork {
    Produce,
    Ack,
    E2e,
    Mixed,
    Partitions,
    Sdk,
    /// A log is written, the broker started again, the log read cold, with acks of another topic beside it, and once
    /// more.
    Replay,
    /// Topics that nobody uses.
    Idle,
    /// A log is written, the broker killed and started again.
    Restart,
}

impl RowWork {
    /// The work of `run` that the row's parameters are those of.
    pub(crate) const fn work(self) -> Work {
        match self {
            Self::Produce | Self::Restart | Self::Idle => Work::Produce,
            Self::Ack => Work::Ack,
            Self::E2e => Work::E2e,
            Self::Mixed => Work::Mixed,
            Self::Partitions => Work::Partitions,
            Self::Sdk => Work::Sdk,
            Self::Replay => Work::Replay,
        }
    }
}

/// What segments are written into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pool {
    /// Files that a broker of default settings makes meanwhile.
    #[default]
    Growing,
    /// Files that were zeroed before.
    Recycled,
}

/// What a row is held against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Bare {
    #[default]
    None,
    /// The better of bare loop and bare ring.
    Best,
    /// The bare ring, whose writes are direct.
    Ring,
    /// The bare replay.
    Replay,
}

/// A row.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RowSpec {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) work: RowWork,
    size: Option<u32>,
    batch: Option<u32>,
    producers: Option<u32>,
    partitions: Option<u32>,
    in_flight: Option<u32>,
    rate: Option<u64>,
    /// Another row, of whose rate `rate_share` is this one's.
    pub(crate) rate_of: Option<String>,
    rate_share: Option<f64>,
    #[serde(default = "fsync")]
    durability: Durability,
    #[serde(default)]
    pub(crate) pool: Pool,
    #[serde(default)]
    pub(crate) bare: Bare,
    seconds: Option<f64>,
    quick_seconds: Option<f64>,
    /// MiB that are written before replays and restarts.
    mib: Option<u64>,
    quick_mib: Option<u64>,
    /// Topics of an idle broker.
    pub(crate) topics: Option<u32>,
    /// What a reader has to know.
    pub(crate) note: Option<String>,
    /// Why the row cannot be measured: what the product lacks.
    pub(crate) lacks: Option<String>,
    #[serde(default, rename = "target")]
    pub(crate) targets: Vec<Target>,
}

const fn fsync() -> Durability {
    Durability::Fsync
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    RecordsPerSecond,
    MbPerSecond,
    P50Us,
    P90Us,
    P99Us,
    P999Us,
    MaxUs,
    CpuUsPerRecord,
    RssMib,
    ThroughputOverBare,
    P50OverBare,
    P99OverBare,
    CpuOverBare,
    /// Bytes copied in user space, in percent of those that came in or went out.
    CopiedPercent,
    /// CPU of the broker, in percent of a core.
    CpuPercent,
    /// From the start of the process until it answers for the topic.
    StartMs,
}

impl Metric {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::RecordsPerSecond => "records_per_second",
            Self::MbPerSecond => "mb_per_second",
            Self::P50Us => "p50_us",
            Self::P90Us => "p90_us",
            Self::P99Us => "p99_us",
            Self::P999Us => "p999_us",
            Self::MaxUs => "max_us",
            Self::CpuUsPerRecord => "cpu_us_per_record",
            Self::RssMib => "rss_mib",
            Self::ThroughputOverBare => "throughput_over_bare",
            Self::P50OverBare => "p50_over_bare",
            Self::P99OverBare => "p99_over_bare",
            Self::CpuOverBare => "cpu_over_bare",
            Self::CopiedPercent => "copied_percent",
            Self::CpuPercent => "cpu_percent",
            Self::StartMs => "start_ms",
        }
    }
}

/// What a metric has to be.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Target {
    /// Part of the row; its first one by default.
    pub(crate) part: Option<String>,
    pub(crate) metric: Metric,
    pub(crate) at_least: Option<f64>,
    pub(crate) at_most: Option<f64>,
    /// The metric counts as a share of the same in the first part of this row.
    pub(crate) over_row: Option<String>,
    /// The same, of another part of its own row.
    pub(crate) over_part: Option<String>,
}

impl Targets {
    /// Reads a file, or what is built in.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self, Fault> {
        match path {
            None => Self::parse(BUILT_IN, "targets.toml"),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(Fault::machine("the file of targets"))?;
                Self::parse(&text, &path.display().to_string())
            }
        }
    }

    pub(super) fn parse(text: &str, name: &str) -> Result<Self, Fault> {
        let wrong = |detail: String| Fault::Targets { detail: format!("{name}: {detail}") };
        let targets: Self = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let mut before = BTreeSet::new();
        for row in &targets.rows {
            let known = |row: &Option<String>| row.as_ref().is_none_or(|id| before.contains(id));
            if !known(&row.rate_of) {
                return Err(wrong(format!("row {}: rate_of has to be the id of a row before", row.id)));
            }
            for target in &row.targets {
                if !known(&target.over_row) {
                    return Err(wrong(format!("row {}: over_row has to be the id of a row before", row.id)));
                }
                if target.at_least.is_some() == target.at_most.is_some() {
                    let metric = target.metric.name();
                    return Err(wrong(format!("row {}: {metric} needs one of at_least and at_most", row.id)));
                }
            }
            if !before.insert(row.id.clone()) {
                return Err(wrong(format!("row {} stands there twice", row.id)));
            }
        }
        Ok(targets)
    }

    /// Keeps the rows that are wanted, and those whose figures they need.
    pub(crate) fn keep(&mut self, wanted: &[String]) -> Result<(), Fault> {
        if wanted.is_empty() {
            return Ok(());
        }
        if let Some(unknown) = wanted.iter().find(|id| self.rows.iter().all(|row| row.id != **id)) {
            let ids: Vec<&str> = self.rows.iter().map(|row| row.id.as_str()).collect();
            let detail = format!("there is no row {unknown}, but {}", ids.join(", "));
            return Err(Fault::Targets { detail });
        }
        let mut needed: BTreeSet<String> = wanted.iter().cloned().collect();
        for row in self.rows.iter().rev().filter(|row| wanted.contains(&row.id)) {
            needed.extend(row.rate_of.clone());
            needed.extend(row.targets.iter().filter_map(|target| target.over_row.clone()));
        }
        self.rows.retain(|row| needed.contains(&row.id));
        Ok(())
    }

    pub(crate) const fn pace(&self, is_quick: bool) -> &Pace {
        if is_quick { &self.quick } else { &self.full }
    }
}

impl RowSpec {
    /// What `run` would be told; `base_rate` is that of the row in `rate_of`.
    pub(crate) fn arguments(&self, pace: &Pace, is_quick: bool, base_rate: Option<f64>) -> RunArguments {
        let own_seconds = if is_quick { self.quick_seconds } else { self.seconds };
        let share = base_rate.map(|rate| ((rate * self.rate_share.unwrap_or(1.0)) as u64).max(1));
        let given = RunArguments::of(self.work.work(), own_seconds.unwrap_or(pace.seconds));
        RunArguments {
            size: self.size.unwrap_or(given.size),
            batch: self.batch,
            producers: self.producers,
            partitions: self.partitions,
            in_flight: self.in_flight,
            rate: share.or(self.rate),
            durability: self.durability,
            bytes_max: (self.pool == Pool::Growing).then_some(pace.growing_gib << 30),
            ..given
        }
    }

    /// Bytes that are written before a replay or a restart.
    pub(crate) fn bytes(&self, is_quick: bool) -> u64 {
        (if is_quick { self.quick_mib.or(self.mib) } else { self.mib }).unwrap_or(1_024) << 20
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACES: &str = "[full]\nruns = 3\nseconds = 10\nbare_seconds = 5\nbare_mib = 9\n\
         pool_gib = 16\nsmall_files = 9\ngrowing_gib = 8\n\
         [quick]\nruns = 1\nseconds = 2\nbare_seconds = 0.5\nbare_mib = 9\n\
         pool_gib = 4\nsmall_files = 9\ngrowing_gib = 4\n";

    fn refused(rows: &str) -> String {
        Targets::parse(&format!("{PACES}{rows}"), "x.toml").unwrap_err().to_string()
    }

    #[test]
    fn what_is_built_in_can_be_read() {
        let targets = Targets::read(None).unwrap();
        assert!(targets.rows.len() >= 18);
        let (full, quick) = (targets.pace(false), targets.pace(true));
        assert!(full.runs >= 3 && full.seconds >= 10.0 && quick.runs == 1 && quick.seconds_max <= Some(60.0));
        assert!(targets.rows.iter().all(|row| row.lacks.is_some() || !row.title.is_empty()));
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        let row = "[[row]]\nid = \"a\"\ntitle = \"A\"\nwork = \"produce\"\n";
        assert!(refused(&format!("{row}sise = 3\n")).contains("sise"));
        assert!(refused("[[row]]\nid = \"a\"\ntitle = \"A\"\nwork = \"dig\"\n").contains("line 20"));
        assert!(refused(&format!("{row}{row}")).contains("row a stands there twice"));
        assert!(
            refused(&format!("{row}[[row.target]]\nmetric = \"p50_us\"\n")).contains("one of at_least and at_most")
        );
        let later = format!("{row}[[row.target]]\nmetric = \"p50_us\"\nat_most = 2\nover_row = \"b\"\n");
        assert!(refused(&later).contains("over_row has to be the id of a row before"));
    }

    #[test]
    fn parameters_are_those_of_run_and_a_rate_may_follow_another_row() {
        let rows = "[[row]]\nid = \"a\"\ntitle = \"A\"\nwork = \"produce\"\nsize = 1024\nproducers = 8\n\
                    [[row]]\nid = \"b\"\ntitle = \"B\"\nwork = \"produce\"\nrate_of = \"a\"\nrate_share = 0.5\n\
                    quick_seconds = 1\npool = \"recycled\"\n";
        let mut targets = Targets::parse(&format!("{PACES}{rows}"), "x.toml").unwrap();
        let a = targets.rows[0].arguments(targets.pace(false), false, None);
        assert_eq!((a.size, a.producers(), a.batch(), a.seconds), (1_024, 8, 1_000, 10.0));
        assert_eq!((a.rate(), a.bytes_max), (None, Some(8 << 30)));
        let b = targets.rows[1].arguments(targets.pace(true), true, Some(1_000.0));
        assert_eq!((b.rate(), b.seconds, b.bytes_max), (Some(500), 1.0, None));
        targets.keep(&["b".into()]).unwrap();
        assert_eq!(targets.rows.len(), 2, "b needs the rate of a");
        assert!(targets.keep(&["c".into()]).is_err());
    }
}
