//! Sizes, durations and CPU lists as people write them: owns units and canonical text; knows no key and no bound.

use std::time::Duration;

/// Units of sizes: binary ones first, since text is made with them.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];
/// Units of durations, in milliseconds. `ms` comes before `m` and `s`, which it contains.
const DURATIONS: [(&str, u64); 5] = [("ms", 1), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
/// CPUs that a list can name: as many as a Linux kernel can be built for.
const CPUS_END: u16 = 8_192;

/// `256MiB`, `1 GB`, `4096`: a whole number and a unit, bytes without one.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    scaled(text, &SIZES)
}

/// `30s`, `500ms`, `1h`: a whole number and a unit. Only 0 needs none.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text.trim() == "0" {
        return Some(Duration::ZERO);
    }
    if text.trim().ends_with(|last: char| last.is_ascii_digit()) {
        return None;
    }
    scaled(text, &DURATIONS).map(Duration::from_millis)
}

/// `0,2-3`: CPU numbers and ranges, both ends meant. Ascending and without doubles.
#[must_use]
pub fn parse_cpus(text: &str) -> Option<Vec<u16>> {
    let mut cpus = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= CPUS_END {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    let count = cpus.len();
    cpus.dedup();
    (cpus.len() == count).then_some(cpus)
}

/// With the largest binary unit that leaves a whole number: `256MiB`, `1000B`.
#[must_use]
pub fn bytes_text(bytes: u64) -> String {
    let binary = SIZES.iter().filter(|(unit, _)| unit.contains('i'));
    let fitting = binary.into_iter().find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size));
    let (unit, size) = fitting.unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / size)
}

/// With the largest unit that leaves a whole number: `30s`, `1500ms`.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let largest_first = DURATIONS[1..].iter().chain(&DURATIONS[..1]);
    let fitting =
        largest_first.into_iter().find(|(_, size)| milliseconds >= *size && milliseconds.is_multiple_of(*size));
    let (unit, size) = fitting.unwrap_or(&("s", 1_000));
    format!("{}{unit}", milliseconds / size)
}

/// As [`parse_cpus`] reads it, neighbours joined: `0,2-3`.
#[must_use]
pub fn cpus_text(cpus: &[u16]) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => ranges.push((*cpu, *cpu)),
        }
    }
    let text = |(first, last): &(u16, u16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let has_unit = |(unit, _): &&(&str, u64)| {
        let split = text.len().checked_sub(unit.len()).filter(|at| text.is_char_boundary(*at));
        split.is_some_and(|at| text[at..].eq_ignore_ascii_case(unit))
    };
    let (digits, size) = units
        .iter()
        .find(has_unit)
        .map_or((text, 1), |(unit, size)| (text[..text.len() - unit.len()].trim_end(), *size));
    let digits: String = digits.chars().filter(|character| *character != '_').collect();
    // `parse` would also take a sign.
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    if is_number { digits.parse::<u64>().ok()?.checked_mul(size) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        let table = [
            ("0", Some(0)),
            ("4096", Some(4_096)),
            ("4_096", Some(4_096)),
            ("1B", Some(1)),
            ("1KiB", Some(1_024)),
            ("1kb", Some(1_000)),
            ("256 MiB", Some(256 << 20)),
            ("2GiB", Some(2 << 30)),
            ("3TB", Some(3_000_000_000_000)),
            ("", None),
            ("MiB", None),
            ("-1", None),
            ("+1", None),
            ("1.5GiB", None),
            ("1 parsec", None),
            ("99999999TiB", None),
            ("1é", None),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_bytes(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        let table = [
            ("0", Some(0)),
            ("30s", Some(30_000)),
            ("500ms", Some(500)),
            ("2m", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("7d", Some(604_800_000)),
            ("30", None),
            ("s", None),
            ("-1s", None),
        ];
        for (text, milliseconds) in table {
            assert_eq!(parse_duration(text), milliseconds.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn cpu_lists_name_each_cpu_once() {
        let table: [(&str, Option<&[u16]>); 9] = [
            ("0", Some(&[0])),
            ("0,2-3", Some(&[0, 2, 3])),
            ("3, 1", Some(&[1, 3])),
            ("", None),
            ("1,1", None),
            ("0-2,1", None),
            ("3-1", None),
            ("all", None),
            ("0-65535", None),
        ];
        for (text, cpus) in table {
            assert_eq!(parse_cpus(text).as_deref(), cpus, "{text:?}");
        }
    }

    #[test]
    fn texts_are_short_and_read_back() {
        for (bytes, text) in [(0, "0B"), (1_000, "1000B"), (1 << 20, "1MiB"), (3 << 29, "1536MiB"), (1 << 40, "1TiB")] {
            assert_eq!((bytes_text(bytes).as_str(), parse_bytes(text)), (text, Some(bytes)));
        }
        for (milliseconds, text) in [(0, "0s"), (1_500, "1500ms"), (30_000, "30s"), (86_400_000, "1d")] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!((duration_text(duration).as_str(), parse_duration(text)), (text, Some(duration)));
        }
        for (cpus, text) in [(&[0_u16][..], "0"), (&[0, 1, 2, 5, 7, 8], "0-2,5,7-8")] {
            assert_eq!((cpus_text(cpus).as_str(), parse_cpus(text).as_deref()), (text, Some(cpus)));
        }
    }
}
