//! What a suite tells in text and JSON: lines of its table, its summary, report.json; measures nothing.

use super::Suite;
use super::measured::{BareRun, Measured, Part, Run, Values};
use super::targets::Metric;
use super::verdict::{Ending, Verdict, number, verdicts};
use crate::machine;
use serde_json::{Map, Value, json};
use std::time::UNIX_EPOCH;

/// Columns: head, metric, width.
pub(super) const COLUMNS: [(&str, Metric, usize); 12] = [
    ("records/s", Metric::RecordsPerSecond, 12),
    ("MB/s", Metric::MbPerSecond, 8),
    ("p50 µs", Metric::P50Us, 9),
    ("p90 µs", Metric::P90Us, 9),
    ("p99 µs", Metric::P99Us, 9),
    ("p99.9 µs", Metric::P999Us, 9),
    ("max µs", Metric::MaxUs, 9),
    ("cpu µs/r", Metric::CpuUsPerRecord, 9),
    ("rss MiB", Metric::RssMib, 8),
    ("copied %", Metric::CopiedPercent, 9),
    ("/ bare", Metric::ThroughputOverBare, 7),
    ("p50 / b", Metric::P50OverBare, 8),
];
const NAME_WIDTH: usize = 34;

/// The table's first line.
pub(super) fn heads() -> String {
    let heads = COLUMNS.iter().map(|(head, _, width)| format!("{head:>width$}"));
    format!("{:<NAME_WIDTH$}{}", "row", heads.collect::<String>())
}

/// The lines of one row: its parts, then its targets.
pub(super) fn row(row: &Measured, rows: &[Measured]) -> String {
    let mut lines = vec![format!("{}: {} ({:.1} s)", row.spec.id, row.spec.title, row.took_seconds)];
    for part in &row.parts {
        let cell = |(_, metric, width): &(&str, Metric, usize)| {
            let text = part.value(*metric).map_or_else(|| "–".to_owned(), number);
            format!("{text:>width$}")
        };
        let cells: String = COLUMNS.iter().map(cell).collect();
        lines.push(format!("  {:<width$}{cells}", part.name, width = NAME_WIDTH - 2));
    }
    lines.extend(row.caution().map(|caution| format!("  {caution}")));
    lines.extend(row.skipped.as_ref().map(|reason| format!("  not measured: {reason}")));
    lines.extend(row.fault.as_ref().map(|fault| format!("  FAILED: {fault}")));
    for Verdict { wanted, found, is_met } in verdicts(row, rows) {
        let found = found.map_or_else(|| "not measured".to_owned(), number);
        lines.push(format!("  {} {wanted}: {found}", if is_met { "met   " } else { "missed" }));
    }
    lines.join("\n")
}

/// Targets that are met, those that are not, and rows that failed.
pub(super) fn counts(suite: &Suite) -> (usize, usize, usize) {
    let all: Vec<Verdict> = suite.rows.iter().flat_map(|row| verdicts(row, &suite.rows)).collect();
    let met = all.iter().filter(|verdict| verdict.is_met).count();
    (met, all.len() - met, suite.rows.iter().filter(|row| row.fault.is_some()).count())
}

/// How the suite ended, in a few lines.
pub(super) fn summary(suite: &Suite, ending: Ending) -> String {
    let (met, missed, failed) = counts(suite);
    let mut lines = vec![format!("{met} targets met, {missed} missed, {failed} rows failed in {:.0} s", suite.seconds)];
    for row in &suite.rows {
        lines.extend(row.fault.as_ref().map(|fault| format!("FAILED {}: {fault}", row.spec.id)));
    }
    lines.extend(machine::caution().map(str::to_owned));
    lines.push(format!("[{}]  exit code {}", suite.machine, ending.code()));
    lines.join("\n")
}

/// report.json.
pub(super) fn json(suite: &Suite, ending: Ending) -> Value {
    let (met, missed, failed) = counts(suite);
    let began = suite.began.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let rows: Vec<Value> = suite.rows.iter().map(|row| row_json(row, &suite.rows)).collect();
    json!({
        "machine": suite.machine,
        "caution": machine::caution(),
        "command": suite.command,
        "began_unix_s": began,
        "seconds": suite.seconds,
        "is_quick": suite.is_quick,
        "pool_bytes": suite.pool_bytes,
        "exit_code": ending.code(),
        "targets_met": met,
        "targets_missed": missed,
        "rows_failed": failed,
        "rows": rows,
    })
}

fn row_json(row: &Measured, rows: &[Measured]) -> Value {
    let target =
        |Verdict { wanted, found, is_met }: &Verdict| json!({"wanted": wanted, "found": found, "is_met": is_met});
    json!({
        "id": row.spec.id,
        "title": row.spec.title,
        "note": row.spec.note,
        "caution": row.caution(),
        "work": format!("{:?}", row.spec.work).to_lowercase(),
        "pool": format!("{:?}", row.spec.pool).to_lowercase(),
        "parameters": row.parameters,
        "not_measured": row.skipped,
        "fault": row.fault,
        "took_seconds": row.took_seconds,
        "targets": verdicts(row, rows).iter().map(target).collect::<Vec<_>>(),
        "parts": row.parts.iter().map(part_json).collect::<Vec<_>>(),
    })
}

fn part_json(part: &Part) -> Value {
    let mut medians = Values::new();
    for metric in part.runs.iter().flat_map(|run| run.values.keys()) {
        medians.extend(part.value(*metric).map(|value| (*metric, value)));
    }
    let sums: Map<String, Value> = part
        .runs
        .iter()
        .flat_map(|run| run.counts.keys())
        .map(|name| (name.clone(), part.count(name).into()))
        .collect();
    json!({
        "name": part.name,
        "median": values_json(&medians),
        "counts": sums,
        "runs": part.runs.iter().map(run_json).collect::<Vec<_>>(),
    })
}

fn run_json(run: &Run) -> Value {
    let bare = |bare: &BareRun| {
        json!({
            "name": bare.name,
            "when": if bare.is_before { "before" } else { "after" },
            "values": values_json(&bare.values),
        })
    };
    json!({
        "values": values_json(&run.values),
        "counts": run.counts,
        "seconds": run.seconds,
        "records_each_100_ms": run.points,
        "bare": run.bare.iter().map(bare).collect::<Vec<_>>(),
    })
}

fn values_json(values: &Values) -> Value {
    values.iter().map(|(metric, value)| (metric.name().to_owned(), Value::from(*value))).collect::<Map<_, _>>().into()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::suite::verdict::tests::rows;
    use std::time::SystemTime;

    /// A suite of two rows: one is measured, one has failed.
    pub(crate) fn suite() -> Suite {
        let text = "[[row]]\nid = \"a\"\ntitle = \"first & <best>\"\nwork = \"produce\"\n\
            [[row.target]]\nmetric = \"records_per_second\"\nat_least = 100\n\
            [[row]]\nid = \"b\"\ntitle = \"B\"\nwork = \"produce\"\n";
        let mut rows = rows(text, &[&[(Metric::RecordsPerSecond, 120.0)]]);
        rows[1].fault = Some("partition 7: the offset of the next batch is 3, expected 2".into());
        let (machine, command) = ("a machine".to_owned(), "coulee-loadgen suite".to_owned());
        Suite { rows, is_quick: true, began: SystemTime::now(), seconds: 1.0, machine, command, pool_bytes: 0 }
    }

    #[test]
    fn the_table_says_what_is_met_and_names_what_failed() {
        let suite = suite();
        let first = row(&suite.rows[0], &suite.rows);
        assert!(first.contains("met    records_per_second ≥ 100: 120"), "{first}");
        assert!(row(&suite.rows[1], &suite.rows).contains("FAILED: partition 7: the offset of the next batch is 3"));
        let summary = summary(&suite, Ending::of(&suite.rows));
        assert!(summary.contains("FAILED b: partition 7") && summary.contains("exit code 1"), "{summary}");
        assert!(heads().contains("records/s"));
    }

    #[test]
    fn the_report_holds_targets_medians_and_counts() {
        let suite = suite();
        let json = json(&suite, Ending::of(&suite.rows));
        assert_eq!((&json["exit_code"], &json["targets_met"], &json["rows_failed"]), (&1.into(), &1.into(), &1.into()));
        let part = &json["rows"][0]["parts"][0];
        assert_eq!(part["median"]["records_per_second"], 120.0);
        assert_eq!(json["rows"][0]["targets"][0]["is_met"], true);
        assert_eq!(json["rows"][1]["fault"], "partition 7: the offset of the next batch is 3, expected 2");
    }
}
