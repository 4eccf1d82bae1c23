//! Administration: owns the readable forms of what brokers are asked and answer; keeps nothing.
//!
//! Every change is repeated only while it surely has not happened; see [`AdminError`].

use std::collections::BTreeMap;

use coulee_protocol::api::broker::{Origin, v1 as broker};
use coulee_protocol::api::list_offsets::v1 as list_offsets;
use coulee_protocol::api::metadata::v1 as metadata;
use coulee_protocol::api::stats::{Counter, Histogram, v1 as stats};
use coulee_protocol::api::topics::{Durability, check_topic_name, v1 as topics};
use coulee_protocol::api::{ApiKey, BodyError, text};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{ShardId, TopicId};
use coulee_protocol::limits::FETCH_PARTITIONS_MAX;
use tokio::time::sleep;

use crate::client::{Client, Tries};
use crate::error::{AdminError, Refusal};
use crate::topic::Topic;

/// A topic to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewTopic {
    name: String,
    partitions: u32,
    configs: Vec<(String, String)>,
    validate_only: bool,
}

impl NewTopic {
    /// A topic with the broker's defaults.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// How many partitions; 0 for the broker's default.
    #[must_use]
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = partitions;
        self
    }

    /// A configuration key and its value.
    #[must_use]
    pub fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.configs.push((key.into(), value.into()));
        self
    }

    /// Check everything, make nothing.
    #[must_use]
    pub fn validate_only(mut self) -> Self {
        self.validate_only = true;
        self
    }
}

/// A change of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicChange {
    name: String,
    set: Vec<(String, String)>,
    removed: Vec<String>,
    partitions: u32,
    validate_only: bool,
}

impl TopicChange {
    /// A change of the topic of this name that changes nothing yet.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Gives a configuration key a value.
    #[must_use]
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.set.push((key.into(), value.into()));
        self
    }

    /// Gives a configuration key its default back.
    #[must_use]
    pub fn remove(mut self, key: impl Into<String>) -> Self {
        self.removed.push(key.into());
        self
    }

    /// How many partitions there are after the change: never fewer than before.
    #[must_use]
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = partitions;
        self
    }

    /// Check everything, change nothing.
    #[must_use]
    pub fn validate_only(mut self) -> Self {
        self.validate_only = true;
        self
    }
}

/// A topic that was made or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicSummary {
    /// Its id; zero if a new topic was only validated.
    pub topic_id: TopicId,
    /// Its partitions.
    pub partitions: u32,
}

/// A topic, its partitions and its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    /// Its id.
    pub topic_id: TopicId,
    /// Whether it is one of the broker's own.
    pub is_internal: bool,
    /// What an ack means; `None` for a durability of a newer broker.
    pub durability: Option<Durability>,
    /// Replicas of each partition.
    pub replication_factor: u16,
    /// Its partitions in ascending order of index.
    pub partitions: Vec<PartitionDescription>,
    /// Every configuration key with its effective value, by name.
    pub configs: Vec<TopicConfig>,
}

/// A partition and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionDescription {
    /// Its number in the topic, from 0.
    pub index: u32,
    /// Its identity for ever.
    pub uid: u64,
    /// The shard that owns it.
    pub shard: u16,
    /// 0, or the number of the error code that says why the rest is zero.
    pub error: u16,
    /// Its leader epoch.
    pub leader_epoch: u32,
    /// Its first readable offset.
    pub log_start: u64,
    /// The end of what is visible.
    pub high_watermark: u64,
    /// The next offset to be assigned.
    pub log_end: u64,
    /// Bytes of its record batches.
    pub bytes: u64,
    /// Its segments.
    pub segments: u32,
}

/// A configuration key of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// The key.
    pub key: String,
    /// Its effective value.
    pub value: String,
    /// Whether it was set for this topic; else it is the broker's default.
    pub is_set: bool,
}

/// The broker's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerDescription {
    /// The broker's version.
    pub version: String,
    /// Every key, by name.
    pub entries: Vec<BrokerConfig>,
}

/// A configuration key of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerConfig {
    /// The key.
    pub key: String,
    /// Its effective value.
    pub value: String,
    /// Where it comes from; `None` for an origin that only a newer version knows.
    pub origin: Option<Origin>,
    /// The file and line, the variable or the flag; empty for a default.
    pub origin_detail: String,
}

/// What the shards have counted since the broker started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The shards, in ascending order.
    pub shards: Vec<ShardStats>,
    /// CPU time of the whole process, user and system.
    pub process_cpu_us: u64,
    /// Resident memory of the whole process.
    pub rss_bytes: u64,
}

/// What one shard has counted. Ids that this version does not know are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStats {
    /// Which.
    pub shard: ShardId,
    /// How much of recovery is done; 100 when it serves.
    pub recovery_percent: u8,
    /// Its counters and gauges.
    pub counters: BTreeMap<Counter, u64>,
    /// Its histograms: the greatest value of each bucket that is not empty, ascending, and how many are in it.
    pub histograms: BTreeMap<Histogram, Vec<(u64, u64)>>,
}

/// Which offset of a partition is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The first readable one.
    Start,
    /// The end of what is visible: where the next record will be.
    End,
    /// That of the first record with at least this timestamp, in milliseconds.
    Time(u64),
    /// That of the record with the greatest timestamp.
    MaxTimestamp,
}

impl OffsetSpec {
    fn timestamp(self) -> i64 {
        match self {
            Self::Start => list_offsets::LOG_START,
            Self::End => list_offsets::HIGH_WATERMARK,
            Self::Time(timestamp_ms) => i64::try_from(timestamp_ms).unwrap_or(i64::MAX),
            Self::MaxTimestamp => list_offsets::MAX_TIMESTAMP,
        }
    }
}

/// An offset that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    /// The partition.
    pub partition: u32,
    /// The offset; `None` where there is no such record.
    pub offset: Option<u64>,
    /// The timestamp of the record found; `None` where no record was asked for or found.
    pub timestamp_ms: Option<i64>,
    /// The leader epoch of the record found, or the current one.
    pub leader_epoch: u32,
}

impl Client {
    /// Makes a topic. When it returns, the topic can be written and read.
    ///
    /// # Errors
    /// [`AdminError`]; `Refused` with `TOPIC_ALREADY_EXISTS` where there is one of that name.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<TopicSummary, AdminError> {
        check_topic_name(&topic.name).map_err(AdminError::TopicName)?;
        let request = topics::CreateRequest {
            name: topic.name.clone().into_bytes(),
            partitions: topic.partitions,
            replication_factor: 0,
            configs: entries(topic.configs),
            flags: flags(topic.validate_only),
        };
        let response: Result<topics::CreateResponse, _> = self.change(ApiKey::CreateTopic, &request).await;
        self.forget_topic(&topic.name);
        response.map(|made| TopicSummary { topic_id: TopicId(made.topic_id), partitions: made.partitions })
    }

    /// Deletes a topic and its records. Gives the id that it had.
    ///
    /// # Errors
    /// [`AdminError`]; `Refused` with `UNKNOWN_TOPIC_OR_PARTITION` where there is none of that name.
    pub async fn delete_topic(&self, name: &str) -> Result<TopicId, AdminError> {
        check_topic_name(name).map_err(AdminError::TopicName)?;
        let request = topics::DeleteRequest { name: name.as_bytes().to_vec(), flags: flags(false) };
        let response: Result<topics::DeleteResponse, _> = self.change(ApiKey::DeleteTopic, &request).await;
        self.forget_topic(name);
        response.map(|deleted| TopicId(deleted.topic_id))
    }

    /// Has the broker check that a topic can be deleted, and deletes nothing. Gives its id.
    ///
    /// # Errors
    /// As [`Client::delete_topic`].
    pub async fn check_delete_topic(&self, name: &str) -> Result<TopicId, AdminError> {
        check_topic_name(name).map_err(AdminError::TopicName)?;
        let request = topics::DeleteRequest { name: name.as_bytes().to_vec(), flags: flags(true) };
        // Nothing changes, so it may be asked again.
        let response: topics::DeleteResponse = self.read(ApiKey::DeleteTopic, &request).await?;
        Ok(TopicId(response.topic_id))
    }

    /// Changes a topic's configuration, or gives it more partitions.
    ///
    /// # Errors
    /// [`AdminError`]; `Refused` with `INVALID_CONFIG` or `INVALID_PARTITIONS` for a change that is not allowed.
    pub async fn alter_topic(&self, change: TopicChange) -> Result<TopicSummary, AdminError> {
        check_topic_name(&change.name).map_err(AdminError::TopicName)?;
        let request = topics::AlterRequest {
            name: change.name.clone().into_bytes(),
            set: entries(change.set),
            removed: change.removed.into_iter().map(|key| topics::ConfigKey { key: key.into_bytes() }).collect(),
            partitions: change.partitions,
            flags: flags(change.validate_only),
        };
        let response: Result<topics::AlterResponse, _> = self.change(ApiKey::AlterTopic, &request).await;
        self.forget_topic(&change.name);
        response.map(|altered| TopicSummary { topic_id: TopicId(altered.topic_id), partitions: altered.partitions })
    }

    /// A topic's partitions and effective configuration.
    ///
    /// # Errors
    /// [`AdminError`]; `Refused` with `UNKNOWN_TOPIC_OR_PARTITION` where there is none of that name.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription, AdminError> {
        check_topic_name(name).map_err(AdminError::TopicName)?;
        let request = topics::DescribeRequest { name: name.as_bytes().to_vec(), flags: 0 };
        let response: topics::DescribeResponse = self.read(ApiKey::DescribeTopic, &request).await?;
        let config = |config: topics::Config| {
            let (key, value) = (owned("config key", &config.key)?, owned("config value", &config.value)?);
            Ok(TopicConfig { key, value, is_set: config.origin == topics::ORIGIN_TOPIC })
        };
        let configs: Result<_, BodyError> = response.configs.into_iter().map(config).collect();
        Ok(TopicDescription {
            topic_id: TopicId(response.topic_id),
            is_internal: response.flags & topics::FLAG_INTERNAL != 0,
            durability: Durability::from_code(response.durability),
            replication_factor: response.replication_factor,
            partitions: response.partitions.into_iter().map(described).collect(),
            configs: configs.map_err(AdminError::Unreadable)?,
        })
    }

    /// All topics by name; the broker's own too if `include_internal`.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn topics(&self, include_internal: bool) -> Result<Vec<Topic>, AdminError> {
        let internal = if include_internal { metadata::FLAG_INCLUDE_INTERNAL } else { 0 };
        let request = metadata::Request { topics: Vec::new(), flags: metadata::FLAG_ALL_TOPICS | internal };
        let response: metadata::Response = self.read(ApiKey::Metadata, &request).await?;
        let sound = response.topics.into_iter().filter(|topic| topic.error == 0);
        sound.map(|topic| Topic::read(topic).map_err(AdminError::Unreadable)).collect()
    }

    /// One offset of each partition named, or of all partitions if none is.
    ///
    /// # Errors
    /// [`AdminError`], of the first partition that has no answer.
    pub async fn list_offsets(
        &self,
        topic: &str,
        partitions: &[u32],
        spec: OffsetSpec,
    ) -> Result<Vec<ListedOffset>, AdminError> {
        let mut tries = Tries::new(self);
        let error = loop {
            let error = match self.list_offsets_once(topic, partitions, spec).await {
                Ok(listed) => return Ok(listed),
                Err(error) => error,
            };
            // What is known of its partitions is old: they are being opened, or the topic was made anew.
            self.forget_topic(topic);
            match tries.pause(self, error) {
                Ok(pause) => sleep(pause).await,
                Err(error) => break error,
            }
        };
        // Once more with fresh metadata: a topic that was deleted and made again has other uids.
        if error.code().is_some_and(crate::retry::is_of_stale_metadata) {
            return self.list_offsets_once(topic, partitions, spec).await;
        }
        Err(error)
    }

    async fn list_offsets_once(
        &self,
        name: &str,
        partitions: &[u32],
        spec: OffsetSpec,
    ) -> Result<Vec<ListedOffset>, AdminError> {
        let topic = self.topic(name).await?;
        let all: Vec<u32> = (0..topic.partition_count()).collect();
        let partitions = if partitions.is_empty() { &all } else { partitions };
        let mut listed = Vec::with_capacity(partitions.len());
        for some in partitions.chunks(FETCH_PARTITIONS_MAX) {
            let wanted: Result<Vec<_>, _> = some.iter().map(|index| readable(&topic, *index)).collect();
            let partition = |uid| list_offsets::RequestPartition { partition_uid: uid, timestamp: spec.timestamp() };
            let request = list_offsets::Request { partitions: wanted?.into_iter().map(partition).collect() };
            let response: list_offsets::Response = self.read(ApiKey::ListOffsets, &request).await?;
            if response.partitions.len() != some.len() {
                let (max, found) = (some.len(), response.partitions.len());
                return Err(AdminError::Unreadable(BodyError::TooMany { what: "listed offsets", max, found }));
            }
            for (partition, found) in some.iter().zip(response.partitions) {
                if found.error != 0 {
                    return Err(AdminError::Refused(Refusal::of_code(found.error)));
                }
                listed.push(ListedOffset {
                    partition: *partition,
                    offset: Some(found.offset).filter(|offset| *offset != list_offsets::NO_OFFSET),
                    timestamp_ms: Some(found.timestamp).filter(|timestamp| *timestamp >= 0),
                    leader_epoch: found.leader_epoch,
                });
            }
        }
        Ok(listed)
    }

    /// The counters and histograms of every shard.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn stats(&self) -> Result<Stats, AdminError> {
        let response: stats::Response = self.read(ApiKey::Stats, &stats::Request { flags: 0 }).await?;
        let shard = |shard: stats::Shard| {
            let counters = shard.counters.iter().filter_map(|known| Some((Counter::from_id(known.id)?, known.value)));
            let buckets = |value: &stats::HistogramValue| {
                value.buckets.iter().map(|bucket| (bucket.le, bucket.count)).collect::<Vec<_>>()
            };
            let histograms =
                shard.histograms.iter().filter_map(|known| Some((Histogram::from_id(known.id)?, buckets(known))));
            ShardStats {
                shard: ShardId(shard.shard),
                recovery_percent: shard.recovery_percent,
                counters: counters.collect(),
                histograms: histograms.collect(),
            }
        };
        Ok(Stats {
            shards: response.shards.into_iter().map(shard).collect(),
            process_cpu_us: response.process_cpu_us,
            rss_bytes: response.rss_bytes,
        })
    }

    /// The broker's effective configuration.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn describe_broker(&self) -> Result<BrokerDescription, AdminError> {
        let response: broker::Response = self.read(ApiKey::DescribeBroker, &broker::Request { flags: 0 }).await?;
        let entry = |entry: broker::Entry| {
            Ok(BrokerConfig {
                key: owned("config key", &entry.key)?,
                value: owned("config value", &entry.value)?,
                origin: Origin::from_code(entry.origin),
                origin_detail: owned("origin detail", &entry.origin_detail)?,
            })
        };
        let entries: Result<_, BodyError> = response.entries.into_iter().map(entry).collect();
        let version = owned("broker version", &response.version).map_err(AdminError::Unreadable)?;
        Ok(BrokerDescription { version, entries: entries.map_err(AdminError::Unreadable)? })
    }
}

/// The uid of a partition of a topic.
pub(crate) fn partition_of(topic: &Topic, partition: u32) -> Result<u64, AdminError> {
    let missing =
        || AdminError::NoPartition { topic: topic.name.clone(), partition, partitions: topic.partition_count() };
    let found = topic.partitions.get(partition as usize).ok_or_else(missing)?;
    if found.error == 0 { Ok(found.uid.0) } else { Err(AdminError::Refused(Refusal::of_code(found.error))) }
}

/// The uid of a partition that is to be read: one that has stopped after a failed write still serves reads.
fn readable(topic: &Topic, partition: u32) -> Result<u64, AdminError> {
    match partition_of(topic, partition) {
        Err(AdminError::Refused(refusal)) if refusal.code() == Some(ErrorCode::PartitionOffline) => {
            Ok(topic.partitions[partition as usize].uid.0)
        }
        other => other,
    }
}

fn entries(configs: Vec<(String, String)>) -> Vec<topics::ConfigEntry> {
    let entry =
        |(key, value): (String, String)| topics::ConfigEntry { key: key.into_bytes(), value: value.into_bytes() };
    configs.into_iter().map(entry).collect()
}

fn flags(validate_only: bool) -> u8 {
    if validate_only { topics::FLAG_VALIDATE_ONLY } else { 0 }
}

fn owned(what: &'static str, bytes: &[u8]) -> Result<String, BodyError> {
    text(what, bytes).map(str::to_owned)
}

fn described(partition: topics::Partition) -> PartitionDescription {
    PartitionDescription {
        index: partition.index,
        uid: partition.partition_uid,
        shard: partition.shard,
        error: partition.error,
        leader_epoch: partition.leader_epoch,
        log_start: partition.log_start,
        high_watermark: partition.high_watermark,
        log_end: partition.log_end,
        bytes: partition.bytes,
        segments: partition.segments,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_that_has_stopped_after_a_failed_write_is_still_read() {
        let partition = |(index, error): (u32, ErrorCode)| metadata::Partition {
            index,
            partition_uid: 7,
            error: error.code(),
            ..Default::default()
        };
        let errors = [(0, ErrorCode::None), (1, ErrorCode::PartitionOffline), (2, ErrorCode::FormatTooNew)];
        let partitions = errors.map(partition).into();
        let topic = Topic::read(metadata::Topic { name: b"t".to_vec(), partitions, ..Default::default() }).unwrap();
        assert_eq!(readable(&topic, 0), Ok(7));
        assert_eq!(readable(&topic, 1), Ok(7));
        assert!(partition_of(&topic, 1).is_err(), "it takes no writes");
        assert!(readable(&topic, 2).is_err() && readable(&topic, 3).is_err());
    }
}
