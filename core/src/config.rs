//! Configuration of a topic: parses Kafka's keys and ours into values that cannot be wrong; knows no topic.
//!
//! A key that this version does not act on is refused, never stored silently.

use crate::log::segment::SegmentSize;
use coulee_protocol::api::topics::Durability;
use coulee_protocol::limits::{BATCH_BYTES_DEFAULT_MAX, BATCH_BYTES_MAX};
use std::fmt;

/// Whose clock the timestamps of records are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's.
    #[default]
    CreateTime,
    /// The broker's, when the batch arrived.
    LogAppendTime,
}

/// How batches of a topic are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StorageEncoding {
    /// As each producer sent them.
    #[default]
    AsProduced,
    /// Columnar only.
    Columnar,
}

/// What a topic is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// What an ack means.
    pub durability: Durability,
    /// Largest batch, header included.
    pub batch_bytes_max: usize,
    /// Largest of the four segment sizes that a segment may take.
    pub segment_size_max: SegmentSize,
    /// `segment.bytes` as it was set.
    pub segment_bytes: u64,
    /// Whose clock timestamps are.
    pub timestamp_type: TimestampType,
    /// How batches are encoded.
    pub encoding: StorageEncoding,
}

impl Default for TopicConfig {
    fn default() -> Self {
        let largest = SegmentSize::ALL[3];
        Self {
            durability: Durability::Fsync,
            batch_bytes_max: BATCH_BYTES_DEFAULT_MAX,
            segment_size_max: largest,
            segment_bytes: u64::from(largest.bytes()),
            timestamp_type: TimestampType::CreateTime,
            encoding: StorageEncoding::AsProduced,
        }
    }
}

/// Why a setting is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// This version does not act on the key.
    UnknownKey {
        /// The key as it came.
        key: Box<str>,
        /// The known key that is most like it, if any is.
        similar: Option<&'static str>,
    },
    /// The value is none that the key can have.
    Value {
        /// The key.
        key: &'static str,
        /// The value as it came.
        value: Box<str>,
        /// What it has to be.
        expected: &'static str,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKey { key, similar: None } => write!(formatter, "unknown topic configuration {key:?}"),
            Self::UnknownKey { key, similar: Some(similar) } => {
                write!(formatter, "unknown topic configuration {key:?}, did you mean {similar:?}?")
            }
            Self::Value { key, value, expected } => write!(formatter, "{key} cannot be {value:?}, expected {expected}"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The keys that this version acts on.
pub const KEYS: [&str; 6] = [
    "durability",
    "max.message.bytes",
    "segment.bytes",
    "message.timestamp.type",
    "compression.type",
    "storage.encoding",
];

impl TopicConfig {
    /// The defaults with `entries` on top, in order.
    ///
    /// # Errors
    /// [`ConfigError`] for the first entry that cannot be.
    pub fn parse<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        entries.into_iter().try_for_each(|(key, value)| config.set(key, value))?;
        Ok(config)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        let key = known_key(key)?;
        let refuse = |expected| ConfigError::Value { key, value: value.into(), expected };
        let bytes = |least: u64, most: u64, expected| {
            value.parse::<u64>().ok().filter(|bytes| (least..=most).contains(bytes)).ok_or_else(|| refuse(expected))
        };
        match key {
            "durability" => {
                self.durability = match value {
                    "fsync" => Durability::Fsync,
                    "written" => Durability::Written,
                    _ => return Err(refuse("fsync or written")),
                }
            }
            "max.message.bytes" => {
                self.batch_bytes_max = bytes(1_024, BATCH_BYTES_MAX as u64, "1024 to 8388608 bytes")? as usize;
            }
            "segment.bytes" => {
                self.segment_bytes = bytes(64 << 10, 128 << 20, "65536 to 134217728 bytes")?;
                self.segment_size_max = SegmentSize::at_most(self.segment_bytes);
            }
            "message.timestamp.type" => {
                self.timestamp_type = match value {
                    "CreateTime" => TimestampType::CreateTime,
                    "LogAppendTime" => TimestampType::LogAppendTime,
                    _ => return Err(refuse("CreateTime or LogAppendTime")),
                }
            }
            "compression.type" if value != "producer" => return Err(refuse("producer")),
            "storage.encoding" => {
                self.encoding = match value {
                    "as-produced" => StorageEncoding::AsProduced,
                    "columnar" => StorageEncoding::Columnar,
                    _ => return Err(refuse("as-produced or columnar")),
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Every key with its value, in the order of [`KEYS`].
    #[must_use]
    pub fn entries(&self) -> [(&'static str, String); 6] {
        let durability = match self.durability {
            Durability::Fsync => "fsync",
            Durability::Written => "written",
        };
        let timestamp = match self.timestamp_type {
            TimestampType::CreateTime => "CreateTime",
            TimestampType::LogAppendTime => "LogAppendTime",
        };
        let encoding = match self.encoding {
            StorageEncoding::AsProduced => "as-produced",
            StorageEncoding::Columnar => "columnar",
        };
        [
            (KEYS[0], durability.into()),
            (KEYS[1], self.batch_bytes_max.to_string()),
            (KEYS[2], self.segment_bytes.to_string()),
            (KEYS[3], timestamp.into()),
            (KEYS[4], "producer".into()),
            (KEYS[5], encoding.into()),
        ]
    }
}

/// The key as this version knows it.
///
/// # Errors
/// [`ConfigError::UnknownKey`].
pub fn known_key(key: &str) -> Result<&'static str, ConfigError> {
    let known = KEYS.into_iter().find(|known| *known == key);
    known.ok_or_else(|| ConfigError::UnknownKey { key: key.into(), similar: similar(key) })
}

/// The known key that shares the longest beginning with `key`, if that is at least four letters.
fn similar(key: &str) -> Option<&'static str> {
    let shared = |known: &&str| known.bytes().zip(key.bytes()).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
    KEYS.into_iter().max_by_key(shared).filter(|known| shared(known) >= 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_parse_back_from_what_they_print() {
        let set = [("durability", "written"), ("segment.bytes", "20000000"), ("max.message.bytes", "2048")];
        let config = TopicConfig::parse(set).unwrap();
        assert_eq!(config.segment_size_max, SegmentSize::ALL[2]);
        let entries = config.entries();
        let again = TopicConfig::parse(entries.iter().map(|(key, value)| (*key, value.as_str())));
        assert_eq!(again, Ok(config));
    }

    #[test]
    fn what_this_version_does_not_act_on_is_refused_by_name() {
        let refused = TopicConfig::parse([("segment.byte", "1")]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "unknown topic configuration \"segment.byte\", did you mean \"segment.bytes\"?"
        );
        assert!(TopicConfig::parse([("retention.ms", "1")]).is_err());
        for (key, value) in [
            ("durability", "sometimes"),
            ("max.message.bytes", "-1"),
            ("max.message.bytes", "99999999999999999999"),
            ("segment.bytes", "1"),
            ("compression.type", "zstd"),
            ("storage.encoding", "kafka"),
            ("message.timestamp.type", ""),
        ] {
            assert!(matches!(TopicConfig::parse([(key, value)]), Err(ConfigError::Value { .. })), "{key}={value}");
        }
    }
}
