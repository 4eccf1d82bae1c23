//! The records of the catalog's log: what changed, as bytes; knows no state and judges nothing but its own form.
//!
//! docs/STORAGE_FORMAT.md, "Catalog", specifies each byte. One record is one change, applied whole.

use crate::placement::Slot;
use coulee_protocol::api::topics::check_topic_name;
use coulee_protocol::ids::{PartitionUid, TopicId};
use coulee_protocol::limits::{CONFIG_ENTRIES_MAX, TOPIC_PARTITIONS_MAX};
use std::fmt;

/// Version of the records that this broker writes, and the newest that it reads.
pub const VERSION: u8 = 1;
const CREATED: u8 = 1;
const ALTERED: u8 = 2;
const DELETED: u8 = 3;

/// Settings as they were asked for: key and value, by key.
pub type Settings = Vec<(Box<str>, Box<str>)>;

/// Partitions that come into being: consecutive uids and slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewPartitions {
    /// The first one's uid.
    pub first_uid: PartitionUid,
    /// The first one's slot.
    pub first_slot: Slot,
    /// How many; may be 0 where a topic is altered.
    pub count: u32,
}

/// One change of the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogRecord {
    /// A topic was made.
    Created {
        /// Its id.
        topic_id: TopicId,
        /// Its name.
        name: Box<str>,
        /// What differs from the defaults.
        settings: Settings,
        /// Its partitions, from number 0.
        partitions: NewPartitions,
    },
    /// A topic was changed.
    Altered {
        /// Which.
        topic_id: TopicId,
        /// All that differs from the defaults from now on.
        settings: Settings,
        /// Partitions that were added behind the others.
        added: NewPartitions,
    },
    /// A topic was deleted.
    Deleted {
        /// Which.
        topic_id: TopicId,
    },
}

/// Why bytes are no record of the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// A newer broker wrote it.
    TooNew {
        /// Its version.
        found: u8,
    },
    /// It is of a kind that its version does not have.
    Kind {
        /// The kind.
        found: u8,
    },
    /// It ends early, goes on behind its end, or holds what cannot be.
    Malformed,
}

impl fmt::Display for RecordError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooNew { found } => {
                write!(formatter, "catalog record of version {found}, this broker reads up to {VERSION}")
            }
            Self::Kind { found } => write!(formatter, "catalog record of unknown kind {found}"),
            Self::Malformed => write!(formatter, "catalog record is malformed"),
        }
    }
}

impl std::error::Error for RecordError {}

impl CatalogRecord {
    /// The record as the value of a record in the catalog's partition.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, topic_id) = match self {
            Self::Created { topic_id, .. } => (CREATED, topic_id),
            Self::Altered { topic_id, .. } => (ALTERED, topic_id),
            Self::Deleted { topic_id } => (DELETED, topic_id),
        };
        let mut out = vec![VERSION, kind];
        out.extend_from_slice(&topic_id.0);
        match self {
            Self::Created { name, settings, partitions, .. } => {
                put_text(&mut out, name);
                put_partitions(&mut out, partitions);
                put_settings(&mut out, settings);
            }
            Self::Altered { settings, added, .. } => {
                put_partitions(&mut out, added);
                put_settings(&mut out, settings);
            }
            Self::Deleted { .. } => {}
        }
        out
    }

    /// Reads a record. Total: any bytes give a record or an error.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader { left: bytes };
        let version = reader.array::<1>()?[0];
        if version != VERSION {
            return Err(RecordError::TooNew { found: version });
        }
        let kind = reader.array::<1>()?[0];
        let topic_id = TopicId(reader.array()?);
        let record = match kind {
            CREATED => {
                let name = reader.text()?;
                let partitions = reader.partitions()?;
                if check_topic_name(&name).is_err() || partitions.count == 0 {
                    return Err(RecordError::Malformed);
                }
                Self::Created { topic_id, name, partitions, settings: reader.settings()? }
            }
            ALTERED => Self::Altered { topic_id, added: reader.partitions()?, settings: reader.settings()? },
            DELETED => Self::Deleted { topic_id },
            found => return Err(RecordError::Kind { found }),
        };
        if reader.left.is_empty() { Ok(record) } else { Err(RecordError::Malformed) }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let len = u16::try_from(text.len()).expect("names, keys and values are bounded by the protocol's limits");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_partitions(out: &mut Vec<u8>, partitions: &NewPartitions) {
    out.extend_from_slice(&partitions.first_uid.0.to_le_bytes());
    out.extend_from_slice(&partitions.first_slot.0.to_le_bytes());
    out.extend_from_slice(&partitions.count.to_le_bytes());
}

fn put_settings(out: &mut Vec<u8>, settings: &Settings) {
    let count = u16::try_from(settings.len()).expect("settings are bounded by the protocol's limits");
    out.extend_from_slice(&count.to_le_bytes());
    for (key, value) in settings {
        put_text(out, key);
        put_text(out, value);
    }
}

/// Takes fields from the front of what is left.
struct Reader<'a> {
    left: &'a [u8],
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (array, rest) = self.left.split_first_chunk::<N>().ok_or(RecordError::Malformed)?;
        self.left = rest;
        Ok(*array)
    }

    fn text(&mut self) -> Result<Box<str>, RecordError> {
        let len = usize::from(u16::from_le_bytes(self.array()?));
        let (text, rest) = self.left.split_at_checked(len).ok_or(RecordError::Malformed)?;
        self.left = rest;
        std::str::from_utf8(text).map(Into::into).map_err(|_| RecordError::Malformed)
    }

    fn partitions(&mut self) -> Result<NewPartitions, RecordError> {
        let first_uid = PartitionUid(u64::from_le_bytes(self.array()?));
        let first_slot = Slot(u64::from_le_bytes(self.array()?));
        let count = u32::from_le_bytes(self.array()?);
        let ends = [first_uid.0, first_slot.0].into_iter().all(|first| first.checked_add(u64::from(count)).is_some());
        if count > TOPIC_PARTITIONS_MAX || !ends {
            return Err(RecordError::Malformed);
        }
        Ok(NewPartitions { first_uid, first_slot, count })
    }

    fn settings(&mut self) -> Result<Settings, RecordError> {
        let count = usize::from(u16::from_le_bytes(self.array()?));
        if count > CONFIG_ENTRIES_MAX {
            return Err(RecordError::Malformed);
        }
        (0..count).map(|_| Ok((self.text()?, self.text()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> [CatalogRecord; 3] {
        let topic_id = TopicId([5; 16]);
        let partitions = NewPartitions { first_uid: PartitionUid(2), first_slot: Slot(1), count: 3 };
        let settings: Settings =
            vec![("durability".into(), "written".into()), ("segment.bytes".into(), "65536".into())];
        [
            CatalogRecord::Created { topic_id, name: "orders".into(), settings: settings.clone(), partitions },
            CatalogRecord::Altered { topic_id, settings, added: NewPartitions { count: 0, ..partitions } },
            CatalogRecord::Deleted { topic_id },
        ]
    }

    #[test]
    fn every_record_reads_back_and_no_shorter_or_longer_one_does() {
        for record in records() {
            let bytes = record.encode();
            assert_eq!(CatalogRecord::decode(&bytes), Ok(record));
            for end in 0..bytes.len() {
                assert_eq!(CatalogRecord::decode(&bytes[..end]), Err(RecordError::Malformed), "first {end} bytes");
            }
            assert_eq!(CatalogRecord::decode(&[bytes.as_slice(), &[0]].concat()), Err(RecordError::Malformed));
        }
    }

    #[test]
    fn changed_bytes_give_a_record_or_a_typed_error_and_a_newer_version_says_so() {
        for record in records() {
            let bytes = record.encode();
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut changed = bytes.clone();
                    changed[at] ^= 1 << bit;
                    if let Ok(read) = CatalogRecord::decode(&changed) {
                        assert_eq!(read.encode(), changed);
                    }
                }
            }
            let newer = [&[VERSION + 1], &bytes[1..]].concat();
            assert_eq!(CatalogRecord::decode(&newer), Err(RecordError::TooNew { found: VERSION + 1 }));
            let other = [&[VERSION, 99], &bytes[2..]].concat();
            assert_eq!(CatalogRecord::decode(&other), Err(RecordError::Kind { found: 99 }));
        }
    }
}
