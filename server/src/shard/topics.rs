//! Topics and the broker itself, as clients see them: metadata, changes, descriptions; decides nothing about them.

use super::ShardServer;
use super::answers::put_changed;
use super::dispatch::Refusal;
use crate::connection::Connection;
use crate::message::{Message, Question};
use crate::pending::{Asker, Gather, SoFar};
use crate::slab::Key;
use coulee_core::catalog::record::Settings;
use coulee_core::catalog::{Applied, Change, Topic};
use coulee_core::config::TopicConfig;
use coulee_core::controller::Changed;
use coulee_protocol::api::metadata::v1 as metadata;
use coulee_protocol::api::topics::{is_internal, topic_name, v1 as topics};
use coulee_protocol::api::{BodyError, broker, open, stats, text};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::FrameHeader;
use coulee_protocol::ids::{ShardId, TopicId};

/// The one broker there is.
pub(super) const BROKER_ID: u32 = 0;

/// The outcome of a request: nothing, or why it is refused.
type Outcome = Result<(), Refusal>;

impl ShardServer {
    pub(super) fn metadata(&mut self, connection: &mut Connection, header: &FrameHeader, body: &[u8]) -> Outcome {
        let request = open::<metadata::Request>(body)?;
        let internal = request.flags & metadata::FLAG_INCLUDE_INTERNAL != 0;
        let catalog = self.view.catalog();
        let topics = if request.flags & metadata::FLAG_ALL_TOPICS != 0 {
            catalog
                .topics()
                .filter(|topic| internal || !is_internal(&topic.name))
                .map(|topic| self.topic(topic))
                .collect()
        } else {
            let named = |name: &str| {
                let found = catalog.topic(name).map(|topic| self.topic(topic));
                found.unwrap_or_else(|| self.no_topic(name))
            };
            let names = request.topics.iter().map(|topic| topic_name(&topic.name));
            names.map(|name| name.map(named)).collect::<Result<_, BodyError>>()?
        };
        let native = self.parts.facts.native;
        let response = metadata::Response {
            cluster_id: self.parts.facts.cluster_id.0,
            controller_shard: 0,
            brokers: vec![metadata::Broker {
                broker_id: BROKER_ID,
                host: native.ip().to_string().into_bytes(),
                port: native.port(),
            }],
            shards: self.shards(),
            topics,
        };
        connection.output.answer(&mut self.spare, header, &response, Vec::new());
        Ok(())
    }

    fn no_topic(&self, name: &str) -> metadata::Topic {
        metadata::Topic { error: self.view.absent().code(), name: name.as_bytes().to_vec(), ..Default::default() }
    }

    fn topic(&self, topic: &Topic) -> metadata::Topic {
        let partition = |(index, placed): (usize, &coulee_core::catalog::Placed)| {
            let state = self.view.state(placed.uid);
            metadata::Partition {
                index: index as u32,
                partition_uid: placed.uid.0,
                shard: placed.slot.shard(self.shards()).0,
                broker_id: BROKER_ID,
                leader_epoch: state.map_or(0, |epoch| epoch.0),
                error: state.err().map_or(0, ErrorCode::code),
            }
        };
        metadata::Topic {
            error: 0,
            topic_id: topic.id.0,
            name: topic.name.as_bytes().to_vec(),
            flags: if is_internal(&topic.name) { metadata::FLAG_INTERNAL } else { 0 },
            durability: topic.config.durability.code(),
            partitions: topic.partitions.iter().enumerate().map(partition).collect(),
        }
    }

    pub(super) fn create_topic(
        &mut self,
        key: Key,
        connection: &mut Connection,
        header: FrameHeader,
        body: &[u8],
    ) -> Outcome {
        let request = open::<topics::CreateRequest>(body)?;
        let change = Change::Create {
            topic_id: TopicId(coulee_io::entropy::random_bytes_16()),
            name: topic_name(&request.name)?.into(),
            partitions: request.partitions.to_native(),
            replication_factor: request.replication_factor.to_native(),
            settings: settings(&request.configs)?,
        };
        self.change(key, connection, header, change, request.flags)
    }

    pub(super) fn alter_topic(
        &mut self,
        key: Key,
        connection: &mut Connection,
        header: FrameHeader,
        body: &[u8],
    ) -> Outcome {
        let request = open::<topics::AlterRequest>(body)?;
        let removed = request.removed.iter().map(|key| text("config key", &key.key).map(Into::into));
        let change = Change::Alter {
            name: topic_name(&request.name)?.into(),
            set: settings(&request.set)?,
            removed: removed.collect::<Result<_, BodyError>>()?,
            partitions: request.partitions.to_native(),
        };
        self.change(key, connection, header, change, request.flags)
    }

    pub(super) fn delete_topic(
        &mut self,
        key: Key,
        connection: &mut Connection,
        header: FrameHeader,
        body: &[u8],
    ) -> Outcome {
        let request = open::<topics::DeleteRequest>(body)?;
        let change = Change::Delete { name: topic_name(&request.name)?.into() };
        self.change(key, connection, header, change, request.flags)
    }

    /// Passes a change on to the controller, or only says what it would bring about.
    fn change(
        &mut self,
        key: Key,
        connection: &mut Connection,
        header: FrameHeader,
        change: Change,
        flags: u8,
    ) -> Outcome {
        if flags & topics::FLAG_VALIDATE_ONLY != 0 {
            let changed = self.validate(change)?;
            put_changed(&mut connection.output, &mut self.spare, &header, changed);
            return Ok(());
        }
        let pending = self.pending(key, header, None);
        let request = self.expect(key, connection, pending);
        // On shard 0 too: a refusal at once would find the connection taken out, in the middle of being served.
        self.send_to(ShardId(0), Message::Change(request, change));
        Ok(())
    }

    /// Checks a change against what this shard knows. A topic that would be made has no id yet.
    fn validate(&self, change: Change) -> Result<Changed, Refusal> {
        if !self.view.is_settled() {
            return Err(Refusal::new(ErrorCode::Recovering, "the catalog is being read"));
        }
        let mut catalog = self.view.catalog().clone();
        let planned =
            catalog.plan(change, self.shards()).map_err(|error| Refusal::new(error.code(), error.to_string()))?;
        let applied = catalog.apply(&planned).expect("a record applies to the state it was planned against");
        let partitions = |id| catalog.topic_by_id(id).map_or(0, |topic| topic.partitions.len() as u32);
        Ok(match applied {
            Applied::Created(id) => Changed { topic_id: TopicId([0; 16]), partitions: partitions(id) },
            Applied::Altered(id, _) => Changed { topic_id: id, partitions: partitions(id) },
            Applied::Deleted(topic) => Changed { topic_id: topic.id, partitions: 0 },
        })
    }

    pub(super) fn describe_topic(
        &mut self,
        key: Key,
        connection: &mut Connection,
        header: FrameHeader,
        body: &[u8],
    ) -> Outcome {
        let request = open::<topics::DescribeRequest>(body)?;
        let name = topic_name(&request.name)?;
        let Some(topic) = self.view.catalog().topic(name) else {
            return Err(Refusal::new(self.view.absent(), name));
        };
        let uids: Vec<_> = topic.partitions.iter().map(|placed| placed.uid).collect();
        let partition = |(index, placed): (usize, &coulee_core::catalog::Placed)| topics::Partition {
            index: index as u32,
            partition_uid: placed.uid.0,
            shard: placed.slot.shard(self.shards()).0,
            ..Default::default()
        };
        let response = topics::DescribeResponse {
            topic_id: topic.id.0,
            flags: if is_internal(name) { topics::FLAG_INTERNAL } else { 0 },
            durability: topic.config.durability.code(),
            replication_factor: 1,
            partitions: topic.partitions.iter().enumerate().map(partition).collect(),
            configs: configs(topic),
        };
        let gather = Gather { left: uids.len(), so_far: SoFar::Topic(Box::new(response)) };
        let pending = self.pending(key, header, Some(gather));
        let whole = self.expect(key, connection, pending);
        for (at, uid) in uids.into_iter().enumerate() {
            let part = self.expect_answer(Asker::Part { whole, at });
            self.ask(self.owner(uid), part, Question::Describe(uid));
        }
        Ok(())
    }

    pub(super) fn gather_stats(
        &mut self,
        key: Key,
        connection: &mut Connection,
        header: FrameHeader,
        body: &[u8],
    ) -> Outcome {
        open::<stats::v1::Request>(body)?;
        let shards = self.shards();
        let so_far = SoFar::Stats((0..shards).map(|_| None).collect());
        let pending = self.pending(key, header, Some(Gather { left: usize::from(shards), so_far }));
        let whole = self.expect(key, connection, pending);
        for shard in 0..shards {
            let part = self.expect_answer(Asker::Part { whole, at: usize::from(shard) });
            // As a message to this shard too: known at once, it would come while this connection is being served.
            self.send_to(ShardId(shard), Message::Ask(part, Question::Stats));
        }
        Ok(())
    }

    pub(super) fn describe_broker(
        &mut self,
        connection: &mut Connection,
        header: &FrameHeader,
        body: &[u8],
    ) -> Outcome {
        open::<broker::v1::Request>(body)?;
        let entry = |entry: &crate::config::Entry| broker::v1::Entry {
            key: entry.key.to_string().into_bytes(),
            value: entry.value.as_bytes().to_vec(),
            origin: entry.origin.code(),
            origin_detail: entry.detail.as_bytes().to_vec(),
        };
        let version = crate::facts::VERSION.as_bytes().to_vec();
        let response = broker::v1::Response { version, entries: self.parts.facts.entries.iter().map(entry).collect() };
        connection.output.answer(&mut self.spare, header, &response, Vec::new());
        Ok(())
    }
}

fn settings(entries: &[topics::ArchivedConfigEntry]) -> Result<Settings, BodyError> {
    let both = |entry: &topics::ArchivedConfigEntry| {
        Ok((text("config key", &entry.key)?.into(), text("config value", &entry.value)?.into()))
    };
    entries.iter().map(both).collect()
}

/// Every key of a topic with its value, by name, and where that comes from.
fn configs(topic: &Topic) -> Vec<topics::Config> {
    let config: &TopicConfig = &topic.config;
    let mut configs: Vec<topics::Config> = config
        .entries()
        .into_iter()
        .map(|(key, value)| {
            let set = topic.settings.iter().any(|(set, _)| **set == *key);
            let origin = if set { topics::ORIGIN_TOPIC } else { topics::ORIGIN_DEFAULT };
            topics::Config { key: key.as_bytes().to_vec(), value: value.into_bytes(), origin }
        })
        .collect();
    configs.sort_by(|a, b| a.key.cmp(&b.key));
    configs
}
