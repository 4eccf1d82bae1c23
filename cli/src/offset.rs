//! Where consuming begins, as people write it: owns the forms of `--offset`; knows no topic and no clock.

use std::str::FromStr;

use coulee_client::Start;
use coulee_server::config::parse_duration;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// A place in each partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OffsetFrom(pub(crate) Start);

impl FromStr for OffsetFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let start = match text {
            "start" => Start::Start,
            "end" => Start::End,
            _ => match text.strip_prefix('@') {
                Some(time) => Start::Time(milliseconds(time).ok_or_else(|| {
                    format!("{time:?} is no time, expected 2026-11-20T10:00Z, 2026-11-20, or milliseconds since 1970")
                })?),
                None => Start::Offset(digits(text).ok_or("expected start, end, an offset or @time")?),
            },
        };
        Ok(Self(start))
    }
}

/// Where a group is moved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeekTo {
    /// A place in each partition.
    Place(Start),
    /// The first record of this long ago, in milliseconds.
    Ago(u64),
}

impl SeekTo {
    /// The place, as of now.
    pub(crate) fn at(self, now_ms: u64) -> Start {
        match self {
            Self::Place(place) => place,
            Self::Ago(ago_ms) => Start::Time(now_ms.saturating_sub(ago_ms)),
        }
    }
}

impl FromStr for SeekTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(ago) = text.strip_prefix('-') {
            let ago = parse_duration(ago).and_then(|ago| u64::try_from(ago.as_millis()).ok());
            return ago.map(Self::Ago).ok_or_else(|| format!("{text:?} is no duration, expected -30m, -1h, -7d"));
        }
        let place = OffsetFrom::from_str(text).map(|from| Self::Place(from.0));
        place.map_err(|error| error.replace(" or @time", ", @time or -duration"))
    }
}

/// RFC 3339, with or without seconds, with an offset or a zone; without either, UTC.
fn milliseconds(text: &str) -> Option<u64> {
    if let Some(milliseconds) = digits(text) {
        return Some(milliseconds);
    }
    let instant = text.parse::<Timestamp>().ok();
    let zoned = || text.parse::<Zoned>().ok().map(|zoned| zoned.timestamp());
    let in_utc = |civil: DateTime| civil.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    let civil = || text.parse::<DateTime>().ok().and_then(in_utc);
    let date = || text.parse::<Date>().ok().and_then(|date| in_utc(date.at(0, 0, 0, 0)));
    let instant = instant.or_else(zoned).or_else(civil).or_else(date)?;
    u64::try_from(instant.as_millisecond()).ok()
}

fn digits(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_in_all_forms() {
        let table = [
            ("start", Start::Start),
            ("end", Start::End),
            ("0", Start::Offset(0)),
            ("18446744073709551614", Start::Offset(u64::MAX - 1)),
            ("@0", Start::Time(0)),
            ("@1793000000123", Start::Time(1_793_000_000_123)),
            ("@1970-01-01T00:00:01.5Z", Start::Time(1_500)),
            ("@1970-01-01T01:00+01:00", Start::Time(0)),
            ("@1970-01-02T00:00Z", Start::Time(86_400_000)),
            ("@1970-01-02T00:00:00", Start::Time(86_400_000)),
            ("@1970-01-02", Start::Time(86_400_000)),
        ];
        for (text, start) in table {
            assert_eq!(text.parse(), Ok(OffsetFrom(start)), "{text:?}");
        }
    }

    #[test]
    fn a_group_can_be_moved_by_a_duration_too() {
        assert_eq!("-1h".parse(), Ok(SeekTo::Ago(3_600_000)));
        assert_eq!("-1h".parse::<SeekTo>().unwrap().at(3_600_001), Start::Time(1));
        assert_eq!("@7".parse::<SeekTo>().unwrap().at(99), Start::Time(7));
        assert_eq!("end".parse(), Ok(SeekTo::Place(Start::End)));
        assert!("-1".parse::<SeekTo>().is_err_and(|error| error.contains("is no duration")));
        assert_eq!("begin".parse::<SeekTo>(), Err("expected start, end, an offset, @time or -duration".into()));
    }

    #[test]
    fn what_is_no_place_says_what_is_one() {
        for text in ["", "begin", "-1", "+1", "1.5", "18446744073709551616"] {
            assert_eq!(text.parse::<OffsetFrom>(), Err("expected start, end, an offset or @time".into()), "{text:?}");
        }
        for text in ["@", "@yesterday", "@2026-13-01", "@1960-01-01"] {
            assert!(text.parse::<OffsetFrom>().is_err_and(|error| error.contains("is no time")), "{text:?}");
        }
    }
}
