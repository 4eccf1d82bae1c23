//! Latency logs in HdrHistogram's format: a file for each part of a row, an interval for each run; decides nothing.

use super::Suite;
use super::measured::Part;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Writes them all.
pub(super) fn write(suite: &Suite, out: &Path) -> io::Result<()> {
    for row in &suite.rows {
        for part in row.parts.iter().filter(|part| part.runs.iter().any(|run| run.latencies.is_some())) {
            let name = format!("{}-{}.hlog", row.spec.id, part.name.replace(' ', "-"));
            let mut writer = BufWriter::new(File::create(out.join(name))?);
            write_part(part, &row.spec.title, suite.began, &mut writer)?;
            writer.flush()?;
        }
    }
    Ok(())
}

fn write_part(part: &Part, title: &str, began: SystemTime, writer: &mut impl Write) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder.add_comment(&format!("[{title}: {}, nanoseconds, one interval a run]", part.name));
    builder.with_start_time(began).with_base_time(began).with_max_value_divisor(1e6);
    let mut log = builder.begin_log_with(writer, &mut serializer)?;
    for (number, run) in (1..).zip(&part.runs) {
        let Some(latencies) = &run.latencies else { continue };
        let duration = Duration::from_secs_f64(run.seconds.max(0.0));
        let ended = run.ended.duration_since(began).unwrap_or_default();
        let tag = format!("run-{number}");
        let written =
            log.write_histogram(latencies.histogram(), ended.saturating_sub(duration), duration, Tag::new(&tag));
        written.map_err(|error| io::Error::other(format!("{error:?}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::measured::Run;
    use crate::tally::Latencies;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    use serde_json::json;

    #[test]
    fn a_log_holds_an_interval_for_each_run() {
        let run = |latency_ns: u64| {
            let mut latencies = Latencies::new();
            latencies.record(latency_ns);
            Run { latencies: Some(latencies), seconds: 2.0, ..Run::plain([], json!({})) }
        };
        let part = Part { name: "acks".into(), runs: vec![run(1_000_000), run(3_000_000)] };
        let mut bytes = Vec::new();
        write_part(&part, "a row", SystemTime::UNIX_EPOCH, &mut bytes).unwrap();
        let entries: Vec<LogEntry<'_>> = IntervalLogIterator::new(&bytes).map(Result::unwrap).collect();
        let intervals = entries.iter().filter_map(|entry| match entry {
            LogEntry::Interval(interval) => Some((interval.tag().unwrap().as_str().to_owned(), interval.max())),
            _ => None,
        });
        let intervals: Vec<(String, f64)> = intervals.collect();
        assert_eq!(intervals.len(), 2);
        assert_eq!((intervals[0].0.as_str(), intervals[1].0.as_str()), ("run-1", "run-2"));
        assert!((intervals[1].1 - 3.0).abs() < 0.01, "{intervals:?}");
    }
}
