//! What a client is told of topics: owns the readable form of metadata; asks nobody.

use coulee_protocol::api::topics::Durability;
use coulee_protocol::api::{BodyError, metadata::v1 as metadata, text};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{LeaderEpoch, PartitionUid, ShardId, TopicId};

/// A topic and its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its id: a topic deleted and made again has another one.
    pub topic_id: TopicId,
    /// Whether it is one of the broker's own.
    pub is_internal: bool,
    /// What an ack means; `None` for a durability of a newer broker.
    pub durability: Option<Durability>,
    /// Its partitions, in ascending order of index.
    pub partitions: Vec<Partition>,
}

/// A partition and its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number in the topic, from 0.
    pub index: u32,
    /// Its identity for ever.
    pub uid: PartitionUid,
    /// The shard that owns it.
    pub shard: ShardId,
    /// Its leader epoch.
    pub leader_epoch: LeaderEpoch,
    /// Why it can't be used at the moment: a number of [`ErrorCode`], 0 for none.
    pub error: u16,
}

impl Topic {
    /// Reads an entry without an error.
    pub(crate) fn read(topic: metadata::Topic) -> Result<Self, BodyError> {
        let partition = |partition: &metadata::Partition| Partition {
            index: partition.index,
            uid: PartitionUid(partition.partition_uid),
            shard: ShardId(partition.shard),
            leader_epoch: LeaderEpoch(partition.leader_epoch),
            error: partition.error,
        };
        let partitions: Vec<_> = topic.partitions.iter().map(partition).collect();
        // Producers count on it: a partition's index is its place.
        let is_dense = partitions.iter().zip(0..).all(|(partition, index)| partition.index == index);
        if partitions.is_empty() || !is_dense {
            return Err(BodyError::Contradiction { what: "partitions of a topic and their indexes" });
        }
        Ok(Self {
            name: text("topic name", &topic.name)?.to_owned(),
            topic_id: TopicId(topic.topic_id),
            is_internal: topic.flags & metadata::FLAG_INTERNAL != 0,
            durability: Durability::from_code(topic.durability),
            partitions,
        })
    }

    /// How many partitions it has.
    #[must_use]
    pub fn partition_count(&self) -> u32 {
        self.partitions.len() as u32
    }
}

impl Partition {
    /// Why it can't be used at the moment, where the reason is a known one.
    #[must_use]
    pub fn error_code(&self) -> Option<ErrorCode> {
        ErrorCode::from_code(self.error).filter(|code| *code != ErrorCode::None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_without_partitions_or_with_holes_between_them_is_refused() {
        let topic = |indexes: &[u32]| {
            let partition = |index: &u32| metadata::Partition { index: *index, ..Default::default() };
            let partitions = indexes.iter().map(partition).collect();
            Topic::read(metadata::Topic { name: b"t".to_vec(), partitions, ..Default::default() })
        };
        assert_eq!(topic(&[0, 1, 2]).map(|topic| topic.partition_count()), Ok(3));
        assert!(topic(&[]).is_err() && topic(&[0, 2]).is_err() && topic(&[1]).is_err());
    }
}
