//! Whether targets are met, and how the suite ends: owns the comparison; measures nothing.

use super::measured::Measured;
use super::targets::Target;

/// A target and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    /// The target in words.
    pub(crate) wanted: String,
    /// What it is, where it was measured.
    pub(crate) found: Option<f64>,
    pub(crate) is_met: bool,
}

/// How a suite ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Every target is met.
    Met,
    /// Some are missed, or could not be measured.
    Missed,
    /// Something failed, or a record is lost, doubled or reordered.
    Failed,
}

impl Ending {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Met => 0,
            Self::Missed => 3,
            Self::Failed => 1,
        }
    }

    /// How all rows together end.
    pub(crate) fn of(rows: &[Measured]) -> Self {
        if rows.iter().any(|row| row.fault.is_some()) {
            Self::Failed
        } else if rows.iter().flat_map(|row| verdicts(row, rows)).all(|verdict| verdict.is_met) {
            Self::Met
        } else {
            Self::Missed
        }
    }
}

/// What came of a row's targets. One that was not measured is not met.
pub(crate) fn verdicts(row: &Measured, rows: &[Measured]) -> Vec<Verdict> {
    row.spec.targets.iter().map(|target| verdict(target, row, rows)).collect()
}

fn verdict(target: &Target, row: &Measured, rows: &[Measured]) -> Verdict {
    let Target { part, metric, at_least, at_most, over_row, over_part } = target;
    let own = || row.part(part.as_deref())?.value(*metric);
    let base = || match (over_row, over_part) {
        (Some(id), _) => rows.iter().find(|row| row.spec.id == *id)?.part(None)?.value(*metric),
        (None, Some(part)) => row.part(Some(part))?.value(*metric),
        (None, None) => Some(1.0),
    };
    let found = own().zip(base()).map(|(own, base)| own / base).filter(|found| found.is_finite());
    let is_met = found
        .is_some_and(|found| at_least.is_none_or(|least| found >= least) && at_most.is_none_or(|most| found <= most));
    let bound = match (at_least, at_most) {
        (Some(least), _) => format!("≥ {}", number(*least)),
        (None, Some(most)) => format!("≤ {}", number(*most)),
        (None, None) => String::new(),
    };
    let mut wanted = part.as_ref().map_or_else(String::new, |part| format!("{part}: "));
    wanted += metric.name();
    if let Some(over) = over_row.as_ref().or(over_part.as_ref()) {
        wanted += &format!(" / {over}");
    }
    Verdict { wanted: format!("{wanted} {bound}"), found, is_met }
}

/// A figure with as many digits as say something, in groups of three.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 || value == value.trunc() => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    rest.map_or_else(|| format!("{sign}{grouped}"), |rest| format!("{sign}{grouped}.{rest}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::suite::measured::Run;
    use crate::suite::targets::{Metric, Targets};
    use serde_json::{Map, json};

    /// Rows of a file, the first part of each with these values in its runs.
    pub(crate) fn rows(text: &str, values: &[&[(Metric, f64)]]) -> Vec<Measured> {
        let paces = ["full", "quick"].map(|name| {
            format!(
                "[{name}]\nruns = 1\nseconds = 1\nbare_seconds = 1\nbare_mib = 1\npool_gib = 1\n\
                 small_files = 1\ngrowing_gib = 1\n"
            )
        });
        let targets = Targets::parse(&format!("{}{text}", paces.concat()), "rows").unwrap();
        let mut rows: Vec<Measured> = targets.rows.into_iter().map(|spec| Measured::new(spec, Map::new())).collect();
        for (row, values) in rows.iter_mut().zip(values) {
            for (metric, value) in *values {
                row.add("", Run::plain([(*metric, *value)], json!({})));
            }
        }
        rows
    }

    const ROWS: &str = "[[row]]\nid = \"a\"\ntitle = \"A\"\nwork = \"produce\"\n\
        [[row.target]]\nmetric = \"records_per_second\"\nat_least = 100\n\
        [[row]]\nid = \"b\"\ntitle = \"B\"\nwork = \"produce\"\n\
        [[row.target]]\nmetric = \"records_per_second\"\nover_row = \"a\"\nat_least = 0.5\n";
    const RATE: Metric = Metric::RecordsPerSecond;

    #[test]
    fn all_met_is_0_one_missed_is_3_and_a_fault_is_1() {
        let ending = |a: &[(Metric, f64)], b: &[(Metric, f64)]| Ending::of(&rows(ROWS, &[a, b]));
        assert_eq!(ending(&[(RATE, 100.0)], &[(RATE, 50.0)]).code(), 0);
        assert_eq!(ending(&[(RATE, 99.0)], &[(RATE, 50.0)]).code(), 3);
        assert_eq!(ending(&[(RATE, 200.0)], &[(RATE, 50.0)]).code(), 3, "a quarter of the other row");
        assert_eq!(ending(&[(RATE, 200.0)], &[]).code(), 3, "what is not measured is not met");
        let mut failed = rows(ROWS, &[&[(RATE, 100.0)], &[(RATE, 50.0)]]);
        failed[1].fault = Some("partition 7: the offset of the next batch is 3, expected 2".into());
        assert_eq!(Ending::of(&failed).code(), 1);
    }

    #[test]
    fn a_target_is_held_against_the_median_of_the_runs() {
        let rows = rows(ROWS, &[&[(RATE, 10.0), (RATE, 120.0), (RATE, 900.0)]]);
        let verdicts = verdicts(&rows[0], &rows);
        assert_eq!((verdicts[0].found, verdicts[0].is_met), (Some(120.0), true));
        assert_eq!(verdicts[0].wanted, "records_per_second ≥ 100");
    }

    #[test]
    fn a_recycled_row_whose_pool_was_too_small_says_so() {
        let text = "[[row]]\nid = \"a\"\ntitle = \"A\"\nwork = \"produce\"\npool = \"recycled\"\n";
        let mut rows = rows(text, &[&[(RATE, 1.0)]]);
        assert_eq!(rows[0].caution(), None);
        rows[0].add("", Run::plain([], json!({"segments_fallocated": 7})));
        assert!(rows[0].caution().unwrap().contains("7 segments found no file"));
    }

    #[test]
    fn figures_are_short_and_grouped() {
        let cases =
            [(15e6, "15,000,000"), (0.5, "0.50"), (211.4, "211"), (12.34, "12.3"), (-1_234.5, "-1,234"), (5.0, "5")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }
}
