//! Counts of instructions held against committed ones: owns the baseline's text and the verdict; counts nothing itself.
//!
//! The text has a line for each piece: its name, what one element of it is, and how many instructions an element takes,
//! with tabs between them. Lines that begin with `#` say what it is.

use std::fmt;

/// A piece that takes more than this share above its baseline fails.
pub const RISE_MAX: f64 = 0.05;

/// What begins the text.
const HEAD: &str = "\
# Instructions of user code an element, counted by callgrind; `make bench-baseline` writes it anew.
# docs/BENCHMARKS.md says how. piece, element, instructions
";

/// How many instructions a piece takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Count {
    /// The piece. No two have one name.
    pub name: String,
    /// What the instructions are counted for: a batch, a record.
    pub element: String,
    /// Instructions of one element.
    pub instructions: f64,
}

/// A line of a baseline that is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// The line, from 1.
    pub line: usize,
    /// What it says.
    pub found: String,
}

impl fmt::Display for LineError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "line {} of the baseline is `{}`, expected piece, element, instructions",
            self.line, self.found
        )
    }
}

/// Reads a baseline.
///
/// # Errors
/// The first line that is not one of it, or names a piece again.
pub fn parse(text: &str) -> Result<Vec<Count>, LineError> {
    let mut counts: Vec<Count> = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let error = || LineError { line: index + 1, found: line.to_owned() };
        let [name, element, instructions] = line.split('\t').collect::<Vec<_>>()[..] else { return Err(error()) };
        let instructions: f64 = instructions.parse().map_err(|_| error())?;
        let is_count = instructions.is_finite() && instructions > 0.0;
        if !is_count || counts.iter().any(|count| count.name == name) {
            return Err(error());
        }
        counts.push(Count { name: name.to_owned(), element: element.to_owned(), instructions });
    }
    Ok(counts)
}

/// The text of a baseline, which [`parse`] reads.
#[must_use]
pub fn text(counts: &[Count]) -> String {
    let line = |Count { name, element, instructions }: &Count| format!("{name}\t{element}\t{instructions:.2}\n");
    counts.iter().map(line).fold(HEAD.to_owned(), |text, line| text + &line)
}

/// How a piece stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// By which share it takes more than its baseline, less where it is negative.
    By(f64),
    /// The baseline does not have it, or counts other elements.
    New,
    /// Only the baseline has it.
    Gone,
}

impl Change {
    /// Whether the guard fails: the piece got dearer, or nothing guards it.
    #[must_use]
    pub fn fails(self) -> bool {
        match self {
            Self::By(share) => share > RISE_MAX,
            Self::New | Self::Gone => true,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // No `-0.0 %`.
            Self::By(share) => write!(formatter, "{:+.1} %", (share * 1_000.0).round() / 10.0 + 0.0),
            Self::New => formatter.write_str("not in the baseline"),
            Self::Gone => formatter.write_str("only in the baseline"),
        }
    }
}

/// Each piece that was found with its change, then those of the baseline that were not.
#[must_use]
pub fn compare(baseline: &[Count], found: &[Count]) -> Vec<(Count, Change)> {
    let is_same = |one: &Count, other: &Count| one.name == other.name && one.element == other.element;
    let change = |count: &Count| match baseline.iter().find(|base| is_same(base, count)) {
        Some(base) => Change::By(count.instructions / base.instructions - 1.0),
        None => Change::New,
    };
    let gone = baseline.iter().filter(|base| !found.iter().any(|count| is_same(base, count)));
    let found = found.iter().map(|count| (count.clone(), change(count)));
    found.chain(gone.map(|base| (base.clone(), Change::Gone))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(name: &str, instructions: f64) -> Count {
        Count { name: name.to_owned(), element: "batch".to_owned(), instructions }
    }

    fn change(before: f64, after: f64) -> Change {
        compare(&[count("crc", before)], &[count("crc", after)])[0].1
    }

    #[test]
    fn more_than_five_percent_above_the_baseline_fails_and_anything_less_passes() {
        assert!(change(1_000.0, 1_051.0).fails());
        for after in [1_049.0, 1_000.0, 500.0] {
            assert!(!change(1_000.0, after).fails(), "{after}");
        }
    }

    #[test]
    fn a_piece_that_only_one_side_has_fails() {
        let compared = compare(&[count("crc", 1.0), count("frame", 2.0)], &[count("ack", 3.0), count("crc", 1.0)]);
        let changes: Vec<(&str, Change)> = compared.iter().map(|(count, change)| (&*count.name, *change)).collect();
        assert_eq!(changes, [("ack", Change::New), ("crc", Change::By(0.0)), ("frame", Change::Gone)]);
        assert!(Change::New.fails() && Change::Gone.fails());
    }

    #[test]
    fn counts_of_other_elements_are_not_compared() {
        let record = Count { element: "record".to_owned(), ..count("crc", 1.0) };
        assert_eq!(compare(&[count("crc", 1.0)], &[record])[0].1, Change::New);
    }

    #[test]
    fn a_baseline_reads_back_as_it_was_written_to_two_places() {
        let counts = [count("append, 1 × 100 B", 1_234.567), count("crc", 0.25)];
        let read = parse(&text(&counts)).unwrap();
        assert_eq!(read, [count("append, 1 × 100 B", 1_234.57), count("crc", 0.25)]);
    }

    #[test]
    fn a_broken_line_is_named() {
        for line in ["crc", "crc\tbatch", "crc\tbatch\tmany", "crc\tbatch\t0", "crc\tbatch\tNaN", "crc\tbatch\t1\t2"] {
            let error = LineError { line: 3, found: line.to_owned() };
            assert_eq!(parse(&format!("# head\n\n{line}\n")), Err(error));
        }
        assert_eq!(parse("crc\tbatch\t1\ncrc\trecord\t2\n").unwrap_err().line, 2, "a piece has one line");
    }

    #[test]
    fn changes_are_signed_and_nothing_is_never_less_than_nothing() {
        let printed = [0.062, -0.031, 0.0, -0.000_01].map(|share| Change::By(share).to_string());
        assert_eq!(printed, ["+6.2 %", "-3.1 %", "+0.0 %", "+0.0 %"]);
    }
}
