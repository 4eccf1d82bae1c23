//! The catalog: which topics there are, how they are set, which partitions they have; does no I/O, keeps no clock.
//!
//! State is what the records of `__catalog` say, applied in order. A change is *planned* against the state, which gives
//! a record; the record is made durable; then it is *applied*, on the controller and on every shard alike, so that all
//! of them have the same view.

use crate::config::{ConfigError, TopicConfig, known_key};
use crate::groups::{OFFSETS_PARTITIONS, OFFSETS_TOPIC, OFFSETS_TOPIC_ID};
use crate::limits::SHARD_PARTITIONS_MAX;
use crate::log::segment::Owner;
use crate::placement::Slot;
use coulee_protocol::api::topics::is_internal;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{ClusterId, PartitionUid, ShardId, TopicId};
use coulee_protocol::limits::TOPIC_PARTITIONS_MAX;
use record::{CatalogRecord, NewPartitions, RecordError, Settings};
use std::collections::BTreeMap;
use std::fmt;

pub mod record;

/// Name of the catalog's own topic.
pub const CATALOG_TOPIC: &str = "__catalog";
/// Id of the catalog's own topic, the same in every cluster.
pub const CATALOG_TOPIC_ID: TopicId = TopicId(*b"coulee/__catalog");
/// The catalog's own partition.
pub const CATALOG_UID: PartitionUid = PartitionUid(1);
/// The first partition of a user.
pub const FIRST_UID: PartitionUid = PartitionUid(2);
/// Partitions of a topic where the request names no number.
pub const PARTITIONS_DEFAULT: u32 = 1;

/// How the topic of committed offsets is set. Its coordinators let whole segments go, so these are small; a group with
/// all that its members have told is one record.
const OFFSETS_SETTINGS: [(&str, &str); 2] = [("max.message.bytes", "8388608"), ("segment.bytes", "1048576")];

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its id.
    pub id: TopicId,
    /// Its name.
    pub name: Box<str>,
    /// What differs from the defaults, by key.
    pub settings: Settings,
    /// The whole configuration.
    pub config: TopicConfig,
    /// Its partitions by number.
    pub partitions: Vec<Placed>,
}

/// A partition and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its identity.
    pub uid: PartitionUid,
    /// Its place in the order of placement.
    pub slot: Slot,
}

/// A change that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Make a topic.
    Create {
        /// Its id, random, from whoever asks.
        topic_id: TopicId,
        /// Its name, checked by the protocol.
        name: Box<str>,
        /// Its partitions; 0 for the default.
        partitions: u32,
        /// Its replicas; 0 for the default.
        replication_factor: u16,
        /// What differs from the defaults.
        settings: Settings,
    },
    /// Change a topic.
    Alter {
        /// Its name.
        name: Box<str>,
        /// Keys that get a value.
        set: Settings,
        /// Keys that go back to their default.
        removed: Vec<Box<str>>,
        /// Partitions after the change; 0 for as many as there are.
        partitions: u32,
    },
    /// Make the topic of committed offsets.
    CreateOffsets,
    /// Delete a topic.
    Delete {
        /// Its name.
        name: Box<str>,
    },
}

/// Why a change is refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// There is a topic of this name.
    Exists,
    /// There is none.
    Unknown,
    /// The name is one of the broker's own.
    Internal,
    /// The number of partitions is not allowed.
    Partitions {
        /// What was asked for.
        found: u32,
        /// The fewest there may be: a topic never loses one.
        least: u32,
    },
    /// A shard would have more partitions than it can carry.
    ShardFull {
        /// Which.
        shard: ShardId,
    },
    /// A single broker keeps one replica.
    Replicas {
        /// What was asked for.
        found: u16,
    },
    /// A setting is refused.
    Config(ConfigError),
    /// The catalog's own log does not take it now.
    Log(ErrorCode),
    /// The topic is changed, but a partition of it could not be opened.
    NotOpened,
}

impl ChangeError {
    /// The code on the wire.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Exists => ErrorCode::TopicAlreadyExists,
            Self::Unknown => ErrorCode::UnknownTopicOrPartition,
            Self::Internal => ErrorCode::InvalidTopicException,
            Self::Partitions { .. } | Self::ShardFull { .. } => ErrorCode::InvalidPartitions,
            Self::Replicas { .. } => ErrorCode::InvalidReplicationFactor,
            Self::Config(_) => ErrorCode::InvalidConfig,
            Self::Log(code) => *code,
            Self::NotOpened => ErrorCode::PartitionOffline,
        }
    }
}

impl fmt::Display for ChangeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists => write!(formatter, "a topic of this name exists"),
            Self::Unknown => write!(formatter, "there is no topic of this name"),
            Self::Internal => write!(formatter, "names that begin with __ are the broker's own"),
            Self::Partitions { found, least } => {
                write!(formatter, "{found} partitions, expected {least} to {TOPIC_PARTITIONS_MAX}")
            }
            Self::ShardFull { shard } => {
                write!(formatter, "shard {shard} would have more than {SHARD_PARTITIONS_MAX} partitions")
            }
            Self::Replicas { found } => write!(formatter, "replication factor {found}, expected 1"),
            Self::Config(error) => error.fmt(formatter),
            Self::Log(code) => write!(formatter, "the catalog cannot be written: {}", code.meaning()),
            Self::NotOpened => {
                write!(formatter, "the topic was changed, but one of its new partitions cannot be opened")
            }
        }
    }
}

impl std::error::Error for ChangeError {}

/// Why a record cannot be applied: the catalog's log does not fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// The record itself cannot be read.
    Record(RecordError),
    /// It names a topic that is not there, or makes one that is.
    Topic(TopicId),
    /// It does not go on where the record before ended.
    Counter {
        /// The uid that had to come.
        expected: PartitionUid,
        /// The uid that came.
        found: PartitionUid,
    },
    /// A setting that this version does not know: a newer broker wrote it.
    Config(ConfigError),
}

impl fmt::Display for ReplayError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(error) => error.fmt(formatter),
            Self::Topic(id) => write!(formatter, "catalog record does not fit the state of topic {id}"),
            Self::Counter { expected, found } => {
                write!(formatter, "catalog record goes on at partition uid {found}, expected {expected}")
            }
            Self::Config(error) => error.fmt(formatter),
        }
    }
}

impl std::error::Error for ReplayError {}

/// What applying a record did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// A topic was made.
    Created(TopicId),
    /// A topic was changed; its partitions from this number on are new.
    Altered(TopicId, u32),
    /// A topic is gone; this is what it was.
    Deleted(Topic),
}

/// The catalog. The controller has it, and each shard a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    topics: BTreeMap<TopicId, Topic>,
    names: BTreeMap<Box<str>, TopicId>,
    /// Topic and number of each partition.
    partitions: BTreeMap<PartitionUid, (TopicId, u32)>,
    next_uid: PartitionUid,
    next_slot: Slot,
}

impl Default for Catalog {
    fn default() -> Self {
        let own = Topic {
            id: CATALOG_TOPIC_ID,
            name: CATALOG_TOPIC.into(),
            settings: Vec::new(),
            config: TopicConfig::default(),
            partitions: vec![Placed { uid: CATALOG_UID, slot: Slot::CATALOG }],
        };
        Self {
            topics: BTreeMap::from([(CATALOG_TOPIC_ID, own)]),
            names: BTreeMap::from([(CATALOG_TOPIC.into(), CATALOG_TOPIC_ID)]),
            partitions: BTreeMap::from([(CATALOG_UID, (CATALOG_TOPIC_ID, 0))]),
            next_uid: FIRST_UID,
            next_slot: Slot::FIRST,
        }
    }
}

impl Catalog {
    /// The topic called `name`.
    #[must_use]
    pub fn topic(&self, name: &str) -> Option<&Topic> {
        self.topics.get(self.names.get(name)?)
    }

    /// The topic with this id.
    #[must_use]
    pub fn topic_by_id(&self, id: TopicId) -> Option<&Topic> {
        self.topics.get(&id)
    }

    /// The ids of all topics.
    pub fn topic_ids(&self) -> impl Iterator<Item = TopicId> + '_ {
        self.topics.keys().copied()
    }

    /// All topics, by name.
    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.names.values().filter_map(|id| self.topics.get(id))
    }

    /// The topic of a partition and the partition's number in it.
    #[must_use]
    pub fn partition(&self, uid: PartitionUid) -> Option<(&Topic, u32)> {
        let (id, number) = self.partitions.get(&uid)?;
        Some((self.topics.get(id)?, *number))
    }

    /// The shard that owns a partition.
    #[must_use]
    pub fn shard_of(&self, uid: PartitionUid, shards: u16) -> Option<ShardId> {
        let (topic, number) = self.partition(uid)?;
        Some(topic.partitions[number as usize].slot.shard(shards))
    }

    /// Who a partition belongs to, as its segments say.
    #[must_use]
    pub fn owner(&self, uid: PartitionUid, cluster_id: ClusterId) -> Option<Owner> {
        let (topic, partition) = self.partition(uid)?;
        Some(Owner { cluster_id, topic_id: topic.id, partition_uid: uid, partition })
    }

    /// Every partition, the catalog's own included, by uid.
    pub fn partition_uids(&self) -> impl Iterator<Item = PartitionUid> + '_ {
        self.partitions.keys().copied()
    }

    /// Whether a partition was there and is deleted. One that this catalog never made is not: its files stay.
    #[must_use]
    pub fn was_deleted(&self, uid: PartitionUid) -> bool {
        uid >= FIRST_UID && uid < self.next_uid && !self.partitions.contains_key(&uid)
    }

    /// Checks a change and makes the record that would carry it out on `shards` shards.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing has changed.
    pub fn plan(&self, change: Change, shards: u16) -> Result<CatalogRecord, ChangeError> {
        match change {
            Change::Create { topic_id, name, partitions, replication_factor, mut settings } => {
                if is_internal(&name) {
                    return Err(ChangeError::Internal);
                }
                if self.names.contains_key(&name) || self.topics.contains_key(&topic_id) {
                    return Err(ChangeError::Exists);
                }
                if replication_factor > 1 {
                    return Err(ChangeError::Replicas { found: replication_factor });
                }
                let count = if partitions == 0 { PARTITIONS_DEFAULT } else { partitions };
                settings.sort();
                config_of(&settings).map_err(ChangeError::Config)?;
                let partitions = self.new_partitions(0, count, shards)?;
                Ok(CatalogRecord::Created { topic_id, name, settings, partitions })
            }
            Change::Alter { name, set, removed, partitions } => {
                self.plan_alter(&name, set, &removed, partitions, shards)
            }
            Change::CreateOffsets => {
                if self.topics.contains_key(&OFFSETS_TOPIC_ID) {
                    return Err(ChangeError::Exists);
                }
                let mut settings: Settings =
                    OFFSETS_SETTINGS.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
                settings.sort();
                let partitions = self.new_partitions(0, OFFSETS_PARTITIONS, shards)?;
                Ok(CatalogRecord::Created {
                    topic_id: OFFSETS_TOPIC_ID,
                    name: OFFSETS_TOPIC.into(),
                    settings,
                    partitions,
                })
            }
            Change::Delete { name } => Ok(CatalogRecord::Deleted { topic_id: self.users_topic(&name)?.id }),
        }
    }

    fn plan_alter(
        &self,
        name: &str,
        set: Settings,
        removed: &[Box<str>],
        partitions: u32,
        shards: u16,
    ) -> Result<CatalogRecord, ChangeError> {
        let topic = self.users_topic(name)?;
        // A key that nobody knows is an error even where it would only be removed.
        removed.iter().try_for_each(|key| known_key(key).map(|_| ())).map_err(ChangeError::Config)?;
        let mut settings: BTreeMap<Box<str>, Box<str>> = topic.settings.iter().cloned().collect();
        settings.retain(|key, _| !removed.contains(key));
        settings.extend(set);
        let settings: Settings = settings.into_iter().collect();
        config_of(&settings).map_err(ChangeError::Config)?;
        let present = topic.partitions.len() as u32;
        let wanted = if partitions == 0 { present } else { partitions };
        let added = self.new_partitions(present, wanted, shards)?;
        Ok(CatalogRecord::Altered { topic_id: topic.id, settings, added })
    }

    /// A topic that a user may change.
    fn users_topic(&self, name: &str) -> Result<&Topic, ChangeError> {
        if is_internal(name) {
            return Err(ChangeError::Internal);
        }
        self.topic(name).ok_or(ChangeError::Unknown)
    }

    /// The partitions that bring a topic from `present` to `wanted`.
    fn new_partitions(&self, present: u32, wanted: u32, shards: u16) -> Result<NewPartitions, ChangeError> {
        if wanted < present.max(1) || wanted > TOPIC_PARTITIONS_MAX {
            return Err(ChangeError::Partitions { found: wanted, least: present.max(1) });
        }
        let new = NewPartitions { first_uid: self.next_uid, first_slot: self.next_slot, count: wanted - present };
        let mut carried: BTreeMap<ShardId, usize> = BTreeMap::new();
        let present = self.topics.values().flat_map(|topic| &topic.partitions).map(|placed| placed.slot);
        let coming = (0..u64::from(new.count)).map(|number| new.first_slot.advance(number));
        for slot in present.chain(coming) {
            let count = carried.entry(slot.shard(shards)).or_default();
            *count += 1;
            if *count > SHARD_PARTITIONS_MAX {
                return Err(ChangeError::ShardFull { shard: slot.shard(shards) });
            }
        }
        Ok(new)
    }

    /// Applies a record that is durable.
    ///
    /// # Errors
    /// [`ReplayError`]; nothing has changed.
    pub fn apply(&mut self, record: &CatalogRecord) -> Result<Applied, ReplayError> {
        match record {
            CatalogRecord::Created { topic_id, name, settings, partitions } => {
                if self.topics.contains_key(topic_id) || self.names.contains_key(name) {
                    return Err(ReplayError::Topic(*topic_id));
                }
                let config = config_of(settings).map_err(ReplayError::Config)?;
                let partitions = self.place(*topic_id, 0, partitions)?;
                let (id, name, settings) = (*topic_id, name.clone(), settings.clone());
                self.names.insert(name.clone(), id);
                self.topics.insert(id, Topic { id, name, settings, config, partitions });
                Ok(Applied::Created(id))
            }
            CatalogRecord::Altered { topic_id, settings, added } => {
                let config = config_of(settings).map_err(ReplayError::Config)?;
                let topic = self.topics.get(topic_id).ok_or(ReplayError::Topic(*topic_id))?;
                let first_new = topic.partitions.len() as u32;
                let placed = self.place(*topic_id, first_new, added)?;
                let topic = self.topics.get_mut(topic_id).ok_or(ReplayError::Topic(*topic_id))?;
                topic.settings.clone_from(settings);
                topic.config = config;
                topic.partitions.extend(placed);
                Ok(Applied::Altered(*topic_id, first_new))
            }
            CatalogRecord::Deleted { topic_id } => {
                let topic = self.topics.remove(topic_id).ok_or(ReplayError::Topic(*topic_id))?;
                self.names.remove(&topic.name);
                for placed in &topic.partitions {
                    self.partitions.remove(&placed.uid);
                }
                Ok(Applied::Deleted(topic))
            }
        }
    }

    /// Takes the next uids and slots for partitions of a topic, from number `first` on.
    fn place(&mut self, topic_id: TopicId, first: u32, new: &NewPartitions) -> Result<Vec<Placed>, ReplayError> {
        if new.first_uid != self.next_uid || new.first_slot != self.next_slot {
            return Err(ReplayError::Counter { expected: self.next_uid, found: new.first_uid });
        }
        let placed = |number: u32| Placed {
            uid: PartitionUid(new.first_uid.0 + u64::from(number)),
            slot: new.first_slot.advance(u64::from(number)),
        };
        let placed: Vec<Placed> = (0..new.count).map(placed).collect();
        for (number, placed) in (first..).zip(&placed) {
            self.partitions.insert(placed.uid, (topic_id, number));
        }
        self.next_uid.0 += u64::from(new.count);
        self.next_slot = self.next_slot.advance(u64::from(new.count));
        Ok(placed)
    }
}

fn config_of(settings: &Settings) -> Result<TopicConfig, ConfigError> {
    TopicConfig::parse(settings.iter().map(|(key, value)| (&**key, &**value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(name: &str, partitions: u32, id: u8) -> Change {
        let (name, topic_id) = (name.into(), TopicId([id; 16]));
        Change::Create { topic_id, name, partitions, replication_factor: 0, settings: vec![] }
    }

    fn alter(name: &str, partitions: u32, set: &[(&str, &str)], removed: &[&str]) -> Change {
        let set = set.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Change::Alter { name: name.into(), set, removed: removed.iter().map(|key| (*key).into()).collect(), partitions }
    }

    fn carry_out(catalog: &mut Catalog, change: Change) -> Result<CatalogRecord, ChangeError> {
        let record = catalog.plan(change, 2)?;
        catalog.apply(&record).unwrap();
        Ok(record)
    }

    #[test]
    fn uids_are_never_reused_and_slots_go_on_over_deletions() {
        let mut catalog = Catalog::default();
        carry_out(&mut catalog, create("a", 3, 1)).unwrap();
        carry_out(&mut catalog, Change::Delete { name: "a".into() }).unwrap();
        carry_out(&mut catalog, create("a", 2, 2)).unwrap();
        let placed = &catalog.topic("a").unwrap().partitions;
        assert_eq!(
            placed[..],
            [Placed { uid: PartitionUid(5), slot: Slot(4) }, Placed { uid: PartitionUid(6), slot: Slot(5) }]
        );
        assert!(catalog.was_deleted(PartitionUid(2)));
        assert!(!catalog.was_deleted(PartitionUid(5)), "it is there");
        assert!(!catalog.was_deleted(PartitionUid(7)), "it was never made: its files would stay");
        assert!(!catalog.was_deleted(CATALOG_UID));
    }

    #[test]
    fn the_same_records_give_the_same_catalog_on_every_shard() {
        let (mut catalog, mut records) = (Catalog::default(), Vec::new());
        for change in [
            create("orders", 10, 1),
            create("clicks", 1, 2),
            alter("orders", 12, &[("durability", "written")], &[]),
            Change::Delete { name: "clicks".into() },
            alter("orders", 0, &[], &["durability"]),
        ] {
            records.push(carry_out(&mut catalog, change).unwrap());
        }
        let mut copy = Catalog::default();
        for record in &records {
            let record = CatalogRecord::decode(&record.encode()).unwrap();
            copy.apply(&record).unwrap();
        }
        assert_eq!(copy, catalog);
        assert_eq!(copy.topic("orders").unwrap().config, TopicConfig::default());
        assert_eq!(copy.topics().map(|topic| &*topic.name).collect::<Vec<_>>(), [CATALOG_TOPIC, "orders"]);
        let (topic, number) = copy.partition(PartitionUid(13)).unwrap();
        assert_eq!((&*topic.name, number), ("orders", 10));
        assert_eq!(copy.apply(&records[0]), Err(ReplayError::Topic(TopicId([1; 16]))), "no record is applied twice");
    }

    #[test]
    fn a_change_that_cannot_be_is_refused_with_its_reason_and_changes_nothing() {
        let mut catalog = Catalog::default();
        carry_out(&mut catalog, create("a", 3, 1)).unwrap();
        let before = catalog.clone();
        let replicas = Change::Create {
            topic_id: TopicId([3; 16]),
            name: "b".into(),
            partitions: 1,
            replication_factor: 3,
            settings: vec![],
        };
        for (change, code) in [
            (create("a", 1, 2), ErrorCode::TopicAlreadyExists),
            (create("__mine", 1, 2), ErrorCode::InvalidTopicException),
            (create("b", TOPIC_PARTITIONS_MAX + 1, 2), ErrorCode::InvalidPartitions),
            (replicas, ErrorCode::InvalidReplicationFactor),
            (alter("a", 2, &[], &[]), ErrorCode::InvalidPartitions),
            (alter("b", 2, &[], &[]), ErrorCode::UnknownTopicOrPartition),
            (alter("a", 0, &[("durability", "maybe")], &[]), ErrorCode::InvalidConfig),
            (alter("a", 0, &[], &["durabilty"]), ErrorCode::InvalidConfig),
            (Change::Delete { name: CATALOG_TOPIC.into() }, ErrorCode::InvalidTopicException),
            (Change::Delete { name: "b".into() }, ErrorCode::UnknownTopicOrPartition),
        ] {
            assert_eq!(carry_out(&mut catalog, change.clone()).unwrap_err().code(), code, "{change:?}");
        }
        assert_eq!(catalog, before);
    }

    #[test]
    fn the_topic_of_committed_offsets_is_made_once_and_is_nobodys_to_change() {
        let mut catalog = Catalog::default();
        carry_out(&mut catalog, Change::CreateOffsets).unwrap();
        let topic = catalog.topic(OFFSETS_TOPIC).unwrap();
        assert_eq!((topic.id, topic.partitions.len()), (OFFSETS_TOPIC_ID, 50));
        assert_eq!(topic.config.batch_bytes_max, coulee_protocol::limits::BATCH_BYTES_MAX);
        let before = catalog.clone();
        for (change, error) in [
            (Change::CreateOffsets, ChangeError::Exists),
            (Change::Delete { name: OFFSETS_TOPIC.into() }, ChangeError::Internal),
            (alter(OFFSETS_TOPIC, 51, &[], &[]), ChangeError::Internal),
        ] {
            assert_eq!(carry_out(&mut catalog, change), Err(error));
        }
        assert_eq!(catalog, before);
    }

    #[test]
    fn no_shard_is_given_more_partitions_than_it_can_carry() {
        let mut catalog = Catalog::default();
        let most = TOPIC_PARTITIONS_MAX;
        let record = catalog.plan(create("a", most, 1), 2).unwrap();
        catalog.apply(&record).unwrap();
        let record = catalog.plan(create("b", most - 1, 2), 2).unwrap();
        catalog.apply(&record).unwrap();
        let refused = catalog.plan(create("c", 1, 3), 2);
        assert!(matches!(refused, Err(ChangeError::ShardFull { .. })), "{refused:?}");
        assert!(catalog.plan(create("c", 1, 3), 4).is_ok());
    }

    #[test]
    fn a_record_that_leaves_uids_out_is_no_part_of_this_catalog() {
        let mut catalog = Catalog::default();
        let partitions = NewPartitions { first_uid: PartitionUid(3), first_slot: Slot(1), count: 1 };
        let (topic_id, name) = (TopicId([1; 16]), "a".into());
        let record = CatalogRecord::Created { topic_id, name, settings: vec![], partitions };
        let expected = ReplayError::Counter { expected: FIRST_UID, found: PartitionUid(3) };
        assert_eq!(catalog.apply(&record), Err(expected));
        assert_eq!(catalog, Catalog::default());
    }
}
