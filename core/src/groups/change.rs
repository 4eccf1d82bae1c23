//! What a record of `__consumer_offsets` changes: owns its form as key, value and headers; applies nothing.
//!
//! docs/STORAGE_FORMAT.md, "Groups and committed offsets". Key and value are Kafka's; one header of ours, `topic.id`,
//! tells a topic from a later one of the same name, which Kafka's value has no field for.

use coulee_protocol::ids::TopicId;
use coulee_protocol::kafka::SchemaError;
use coulee_protocol::kafka::consumer_offsets::{Key, OffsetValue};
use std::rc::Rc;

/// The header that carries the topic's id.
const TOPIC_ID: &[u8] = b"topic.id";

/// An offset that a group has committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The topic that it is of.
    pub topic_id: TopicId,
    /// The next record that the group wants.
    pub offset: u64,
    /// The leader epoch of the record before; −1 where it is not known.
    pub leader_epoch: i32,
    /// What was kept with it.
    pub metadata: Box<str>,
    /// When, in milliseconds since 1970.
    pub committed_ms: i64,
}

/// One change of one group, as a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A committed offset, or none any more.
    Offset {
        /// The topic.
        topic: Rc<str>,
        /// The partition.
        partition: u32,
        /// What is committed.
        committed: Option<Committed>,
    },
    /// The group as it is stored (`GroupMetadataValue`), or no longer.
    Group(Option<Rc<[u8]>>),
}

/// A record's key and value, and its one header.
pub(super) struct Encoded {
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) topic_id: Option<TopicId>,
}

impl Encoded {
    /// Calls `push` with the record's headers.
    pub(super) fn with_headers<T>(&self, push: impl FnOnce(&[(&[u8], Option<&[u8]>)]) -> T) -> T {
        match &self.topic_id {
            Some(id) => push(&[(TOPIC_ID, Some(&id.0))]),
            None => push(&[]),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Vec::len) + 64
    }
}

impl Change {
    /// The record that says it of `group`.
    pub(super) fn encode(&self, group: &str) -> Encoded {
        match self {
            Self::Offset { topic, partition, committed } => {
                let key = Key::Offset { group, topic, partition: *partition as i32 }.encode();
                let value = committed.as_ref().map(|committed| {
                    let Committed { offset, leader_epoch, metadata, committed_ms, .. } = committed;
                    let (offset, commit_timestamp) = (*offset as i64, *committed_ms);
                    OffsetValue { offset, leader_epoch: *leader_epoch, metadata, commit_timestamp }.encode()
                });
                Encoded { key, value, topic_id: committed.as_ref().map(|committed| committed.topic_id) }
            }
            Self::Group(value) => Encoded {
                key: Key::Group { group }.encode(),
                value: value.as_ref().map(|value| value.to_vec()),
                topic_id: None,
            },
        }
    }

    /// The group and the change that a record is.
    pub(super) fn decode<'a>(
        key: &'a [u8],
        value: Option<&[u8]>,
        mut headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> Result<(&'a str, Self), SchemaError> {
        match Key::decode(key)? {
            Key::Group { group } => Ok((group, Self::Group(value.map(Rc::from)))),
            Key::Offset { group, topic, partition } => {
                let partition = u32::try_from(partition).map_err(|_| SchemaError::Negative { what: "partition" })?;
                let id = headers.find(|(name, _)| *name == TOPIC_ID).and_then(|(_, id)| id?.try_into().ok());
                let committed = value.map(OffsetValue::decode).transpose()?.map(|value| {
                    let offset = u64::try_from(value.offset).map_err(|_| SchemaError::Negative { what: "offset" })?;
                    Ok(Committed {
                        topic_id: TopicId(id.ok_or(SchemaError::Short { what: "topic.id" })?),
                        offset,
                        leader_epoch: value.leader_epoch,
                        metadata: value.metadata.into(),
                        committed_ms: value.commit_timestamp,
                    })
                });
                Ok((group, Self::Offset { topic: topic.into(), partition, committed: committed.transpose()? }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_reads_back_from_its_record() {
        let committed = Committed {
            topic_id: TopicId([7; 16]),
            offset: 1 << 40,
            leader_epoch: -1,
            metadata: "where I was".into(),
            committed_ms: 99,
        };
        let offset = |committed| Change::Offset { topic: "orders".into(), partition: 3, committed };
        let group = |value: Option<&[u8]>| Change::Group(value.map(Rc::from));
        for change in [offset(Some(committed)), offset(None), group(Some(b"value")), group(None)] {
            let encoded = change.encode("g");
            let decoded = encoded.with_headers(|headers| {
                let headers = headers.iter().copied();
                Change::decode(&encoded.key, encoded.value.as_deref(), headers)
                    .map(|(group, change)| (group.to_owned(), change))
            });
            assert_eq!(decoded, Ok(("g".to_owned(), change)));
        }
        let encoded = offset(Some(Committed::default())).encode("g");
        let without = Change::decode(&encoded.key, encoded.value.as_deref(), std::iter::empty());
        assert_eq!(without, Err(SchemaError::Short { what: "topic.id" }), "an offset of no topic is of no use");
    }
}
