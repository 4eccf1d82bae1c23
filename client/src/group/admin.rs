//! Groups as operators see them: lists, describes, moves and forgets; is no member of any.

use std::collections::BTreeMap;
use std::fmt;

use coulee_protocol::api::groups::v1 as groups;
use coulee_protocol::api::offsets::v1 as offsets;
use coulee_protocol::api::{ApiKey, BodyError, text};
use coulee_protocol::kafka::consumer_protocol::Assignment;

use super::assignor::Place;
use crate::client::Client;
use crate::error::{AdminError, Refusal};

/// How a group stands; the names are Kafka's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// It has no members; it may have offsets.
    Empty,
    /// Its members are to join again.
    PreparingRebalance,
    /// They have, and wait for their leader's assignment.
    CompletingRebalance,
    /// They have their assignment.
    Stable,
    /// It is being forgotten.
    Dead,
    /// A state that only a newer broker knows.
    Unknown(u8),
}

impl GroupState {
    fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Empty,
            1 => Self::PreparingRebalance,
            2 => Self::CompletingRebalance,
            3 => Self::Stable,
            4 => Self::Dead,
            code => Self::Unknown(code),
        }
    }
}

impl fmt::Display for GroupState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSummary {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub state: GroupState,
    /// What it is: `consumer` for consumers; empty where it never had members.
    pub protocol_type: String,
    /// How many members it has.
    pub members: u32,
}

/// A group and its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// How it stands.
    pub state: GroupState,
    /// Its generation.
    pub generation: i32,
    /// What it is: `consumer` for consumers; empty where it never had members.
    pub protocol_type: String,
    /// The assignor; empty unless it is stable.
    pub protocol: String,
    /// The member that assigns.
    pub leader: String,
    /// The partition of `__consumer_offsets` that holds it.
    pub partition: u32,
    /// Its members.
    pub members: Vec<GroupMember>,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Its id.
    pub member_id: String,
    /// Its own name, where it is a static member.
    pub instance_id: Option<String>,
    /// How its client calls itself.
    pub client_id: String,
    /// Where its client is: `/` and an address.
    pub host: String,
    /// What it reads, by topic; empty unless the group is stable.
    pub assignment: Vec<(String, Vec<u32>)>,
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The next record that the group wants.
    pub offset: u64,
    /// The text that was kept with it.
    pub metadata: String,
    /// When it was committed, in milliseconds since 1970.
    pub committed_ms: i64,
}

fn owned(what: &'static str, bytes: &[u8]) -> Result<String, AdminError> {
    text(what, bytes).map(str::to_owned).map_err(AdminError::Unreadable)
}

fn by_topic(places: &[Place]) -> Vec<offsets::TopicPartitions> {
    let mut topics: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    places.iter().for_each(|(topic, partition)| topics.entry(topic).or_default().push(*partition));
    let topic =
        |(name, partitions): (&str, Vec<u32>)| offsets::TopicPartitions { name: name.as_bytes().to_vec(), partitions };
    topics.into_iter().map(topic).collect()
}

/// The first partition that was refused.
fn check_results(response: &offsets::ResultsResponse) -> Result<(), AdminError> {
    let failed = response.topics.iter().flat_map(|topic| &topic.partitions).find(|partition| partition.error != 0);
    failed.map_or(Ok(()), |failed| Err(AdminError::Refused(Refusal::of_code(failed.error))))
}

impl Client {
    /// Every group, by name.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn groups(&self) -> Result<Vec<GroupSummary>, AdminError> {
        let response: groups::ListResponse = self.read(ApiKey::ListGroups, &groups::ListRequest { flags: 0 }).await?;
        let summary = |group: groups::ListedGroup| {
            Ok(GroupSummary {
                name: owned("group", &group.group)?,
                state: GroupState::from_code(group.state),
                protocol_type: owned("protocol type", &group.protocol_type)?,
                members: group.members,
            })
        };
        response.groups.into_iter().map(summary).collect()
    }

    /// A group and its members.
    ///
    /// # Errors
    /// [`AdminError`]; `Refused` with GROUP_ID_NOT_FOUND where there is none.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription, AdminError> {
        let request = groups::DescribeRequest { group: group.as_bytes().to_vec() };
        let found: groups::DescribeResponse = self.read(ApiKey::DescribeGroup, &request).await?;
        let member = |member: &groups::DescribedMember| {
            let unreadable = |_| AdminError::Unreadable(BodyError::Contradiction { what: "bytes of an assignment" });
            let assignment = Assignment::decode(&member.assignment).map_err(unreadable)?;
            let partitions = |own: Vec<i32>| own.into_iter().filter_map(|at| u32::try_from(at).ok()).collect();
            let own = assignment.partitions.into_iter().map(|own| (own.topic, partitions(own.partitions)));
            Ok(GroupMember {
                member_id: owned("member id", &member.member_id)?,
                instance_id: Some(owned("instance id", &member.instance_id)?).filter(|instance| !instance.is_empty()),
                client_id: owned("client id", &member.client_id)?,
                host: owned("client host", &member.client_host)?,
                assignment: own.collect(),
            })
        };
        Ok(GroupDescription {
            state: GroupState::from_code(found.state),
            generation: found.generation,
            protocol_type: owned("protocol type", &found.protocol_type)?,
            protocol: owned("protocol", &found.protocol)?,
            leader: owned("leader", &found.leader)?,
            partition: found.partition,
            members: found.members.iter().map(member).collect::<Result<_, AdminError>>()?,
        })
    }

    /// Forgets a group without members, and its offsets; with `validate_only` only says whether it could be.
    ///
    /// # Errors
    /// [`AdminError`]; `Refused` with NON_EMPTY_GROUP while it has members, GROUP_ID_NOT_FOUND where there is none.
    pub async fn delete_group(&self, group: &str, validate_only: bool) -> Result<(), AdminError> {
        let flags = if validate_only { groups::FLAG_VALIDATE_ONLY } else { 0 };
        let request = groups::DeleteRequest { group: group.as_bytes().to_vec(), flags };
        self.change::<_, groups::DeleteResponse>(ApiKey::DeleteGroup, &request).await.map(|_| ())
    }

    /// The committed offsets of a group, of these partitions or of all where none is named. What is not committed is
    /// left out.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn committed_offsets(
        &self,
        group: &str,
        partitions: &[(String, u32)],
    ) -> Result<Vec<CommittedOffset>, AdminError> {
        let flags = if partitions.is_empty() { offsets::FLAG_ALL } else { 0 };
        let group = group.as_bytes().to_vec();
        let request = offsets::FetchRequest { group, topics: by_topic(partitions), flags };
        let response: offsets::FetchResponse = self.read(ApiKey::OffsetFetch, &request).await?;
        let mut committed = Vec::new();
        for topic in response.topics {
            let name = owned("topic name", &topic.name)?;
            for found in topic.partitions.into_iter().filter(|found| found.offset != offsets::NO_OFFSET) {
                committed.push(CommittedOffset {
                    topic: name.clone(),
                    partition: found.index,
                    offset: found.offset,
                    metadata: owned("offset metadata", &found.metadata)?,
                    committed_ms: found.commit_timestamp,
                });
            }
        }
        Ok(committed)
    }

    /// Moves a group that has no members: it goes on at these offsets.
    ///
    /// # Errors
    /// [`AdminError`]; `Refused` with UNKNOWN_MEMBER_ID while the group has members.
    pub async fn set_committed_offsets(&self, group: &str, offsets: &[((String, u32), u64)]) -> Result<(), AdminError> {
        let mut topics: BTreeMap<&str, Vec<offsets::CommitPartition>> = BTreeMap::new();
        for ((topic, index), offset) in offsets {
            let (index, offset, leader_epoch) = (*index, *offset, offsets::NO_LEADER_EPOCH);
            let partition = offsets::CommitPartition { index, offset, leader_epoch, metadata: Vec::new() };
            topics.entry(topic).or_default().push(partition);
        }
        let topic =
            |(name, partitions): (&str, Vec<_>)| offsets::CommitTopic { name: name.as_bytes().to_vec(), partitions };
        let request = offsets::CommitRequest {
            group: group.as_bytes().to_vec(),
            generation: offsets::NO_GENERATION,
            member_id: Vec::new(),
            instance_id: Vec::new(),
            topics: topics.into_iter().map(topic).collect(),
        };
        // The same offsets once more change nothing.
        let response: offsets::ResultsResponse = self.read(ApiKey::OffsetCommit, &request).await?;
        check_results(&response)
    }

    /// Forgets committed offsets of partitions that no member reads.
    ///
    /// # Errors
    /// [`AdminError`]; `Refused` with GROUP_SUBSCRIBED_TO_TOPIC while members read the topic.
    pub async fn delete_committed_offsets(&self, group: &str, partitions: &[(String, u32)]) -> Result<(), AdminError> {
        let request = offsets::DeleteRequest { group: group.as_bytes().to_vec(), topics: by_topic(partitions) };
        let response: offsets::ResultsResponse = self.read(ApiKey::OffsetDelete, &request).await?;
        check_results(&response)
    }
}
