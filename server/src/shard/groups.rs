//! Consumer groups as clients see them: requests on their way to a coordinator, its answers back; decides nothing.

use super::ShardServer;
use super::dispatch::Refusal;
use crate::connection::Connection;
use crate::limits::OFFSETS_TOPIC_PAUSE_MS;
use crate::message::{Message, Question};
use crate::output::{Output, Spare};
use crate::pending::{Asker, Gather, SoFar};
use crate::slab::Key;
use coulee_core::catalog::Change;
use coulee_core::groups::request::{
    Commit, CommitPartition, CommitTopic, Description, Identity, Join, Joined, Listed, Sync, TopicOffsets,
    TopicResults, Wanted, WantedTopic,
};
use coulee_core::groups::{Answer, Committed, GroupRequest, Request, partition_of};
use coulee_core::shard::RequestId;
use coulee_protocol::api::groups::v1 as groups;
use coulee_protocol::api::members::v1 as members;
use coulee_protocol::api::offsets::v1 as offsets;
use coulee_protocol::api::{ApiKey, BodyError, open, text};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::FrameHeader;
use coulee_protocol::ids::ShardId;

/// Nobody waits for the answer to a request with this number.
const NOBODY: RequestId = RequestId(u64::MAX - 1);

type Outcome = Result<(), Refusal>;

impl ShardServer {
    /// Passes a request for a group on to its coordinator.
    pub(super) fn ask_group(
        &mut self,
        key: Key,
        connection: &mut Connection,
        header: FrameHeader,
        (api, body): (ApiKey, &[u8]),
    ) -> Outcome {
        let mut asked = match api {
            ApiKey::JoinGroup => join(connection, body)?,
            ApiKey::SyncGroup => sync(body)?,
            ApiKey::Heartbeat => {
                let request = open::<members::HeartbeatRequest>(body)?;
                let identity = identity(&request.member_id, &request.instance_id)?;
                asked(&request.group, Request::Heartbeat(identity, request.generation.to_native()))?
            }
            ApiKey::LeaveGroup => {
                let request = open::<members::LeaveRequest>(body)?;
                let leaving = request.members.iter().map(|member| identity(&member.member_id, &member.instance_id));
                asked(&request.group, Request::Leave(leaving.collect::<Result<_, _>>()?))?
            }
            ApiKey::OffsetCommit => commit(body)?,
            ApiKey::OffsetFetch => fetch(body)?,
            ApiKey::DescribeGroup => asked(&open::<groups::DescribeRequest>(body)?.group, Request::Describe)?,
            ApiKey::DeleteGroup => {
                let request = open::<groups::DeleteRequest>(body)?;
                let validate_only = request.flags & groups::FLAG_VALIDATE_ONLY != 0;
                asked(&request.group, Request::Delete { validate_only })?
            }
            ApiKey::OffsetDelete => {
                let request = open::<offsets::DeleteRequest>(body)?;
                asked(&request.group, Request::DeleteOffsets(wanted(&request.topics)?))?
            }
            other => unreachable!("{other} is about no group"),
        };
        let shard = self.coordinator(&asked.group)?;
        asked.request.resolve(self.view.catalog());
        let pending = self.pending(key, header, None);
        let request = self.expect(key, connection, pending);
        if shard == self.id() {
            self.parts.core.command(coulee_core::shard::Command::Group(request, Box::new(asked)));
        } else {
            self.ask(shard, request, Question::Group(Box::new(asked)));
        }
        Ok(())
    }

    /// The shard that coordinates a group. Where committed offsets have no topic yet, has it made.
    fn coordinator(&mut self, group: &str) -> Result<ShardId, Refusal> {
        match self.view.coordinator(group, self.shards()) {
            Ok(Some(shard)) => Ok(shard),
            Ok(None) => {
                let now_ms = self.now().monotonic_ms;
                if now_ms >= self.ask_for_offsets_at_ms {
                    self.ask_for_offsets_at_ms = now_ms + OFFSETS_TOPIC_PAUSE_MS;
                    self.send_to(ShardId(0), Message::Change(NOBODY, Change::CreateOffsets));
                }
                Err(Refusal::new(ErrorCode::CoordinatorNotAvailable, "the topic of committed offsets is being made"))
            }
            Err(code) => Err(Refusal::new(code, group)),
        }
    }

    pub(super) fn find_coordinator(
        &mut self,
        connection: &mut Connection,
        header: &FrameHeader,
        body: &[u8],
    ) -> Outcome {
        let group = text("group", &open::<members::FindRequest>(body)?.group)?;
        let shard = self.coordinator(group)?;
        let native = self.parts.facts.native;
        let response = members::FindResponse {
            partition: partition_of(group),
            shard: shard.0,
            broker_id: super::topics::BROKER_ID,
            host: native.ip().to_string().into_bytes(),
            port: native.port(),
        };
        connection.output.answer(&mut self.spare, header, &response, Vec::new());
        Ok(())
    }

    /// Asks every shard for its groups.
    pub(super) fn list_groups(
        &mut self,
        key: Key,
        connection: &mut Connection,
        header: FrameHeader,
        body: &[u8],
    ) -> Outcome {
        open::<groups::ListRequest>(body)?;
        if !self.view.is_settled() {
            return Err(Refusal::new(ErrorCode::Recovering, "the catalog is being read"));
        }
        let shards = self.shards();
        let gather = Gather { left: usize::from(shards), so_far: SoFar::Groups(Ok(Vec::new())) };
        let pending = self.pending(key, header, Some(gather));
        let whole = self.expect(key, connection, pending);
        for shard in 0..shards {
            let part = self.expect_answer(Asker::Part { whole, at: usize::from(shard) });
            self.ask(ShardId(shard), part, Question::Groups);
        }
        Ok(())
    }
}

fn asked(group: &[u8], request: Request) -> Result<GroupRequest, BodyError> {
    Ok(GroupRequest { group: text("group", group)?.into(), request })
}

fn identity(member_id: &[u8], instance_id: &[u8]) -> Result<Identity, BodyError> {
    let member_id = text("member id", member_id)?.into();
    Ok(Identity { member_id, instance_id: optional("instance id", instance_id)? })
}

/// A text, where it is not empty.
fn optional(what: &'static str, bytes: &[u8]) -> Result<Option<Box<str>>, BodyError> {
    Ok(Some(text(what, bytes)?).filter(|text| !text.is_empty()).map(Into::into))
}

fn join(connection: &Connection, body: &[u8]) -> Result<GroupRequest, BodyError> {
    let request = open::<members::JoinRequest>(body)?;
    let protocol = |protocol: &members::ArchivedProtocol| {
        Ok((text("assignment protocol", &protocol.name)?.into(), protocol.metadata.as_slice().into()))
    };
    let join = Join {
        identity: identity(&request.member_id, &request.instance_id)?,
        client_id: text("client id", &request.client_id)?.into(),
        // As Kafka writes it. A client that has gone is nowhere.
        client_host: connection
            .socket
            .peer_address()
            .map_or_else(|_| "/".into(), |peer| format!("/{}", peer.ip()).into()),
        session_timeout_ms: request.session_timeout_ms.to_native(),
        rebalance_timeout_ms: request.rebalance_timeout_ms.to_native(),
        protocol_type: text("protocol type", &request.protocol_type)?.into(),
        protocols: request.protocols.iter().map(protocol).collect::<Result<_, BodyError>>()?,
        requires_known_member: true,
        can_skip_assignment: true,
        random: coulee_io::entropy::random_bytes_16(),
    };
    asked(&request.group, Request::Join(join))
}

fn sync(body: &[u8]) -> Result<GroupRequest, BodyError> {
    let request = open::<members::SyncRequest>(body)?;
    let assignment = |assignment: &members::ArchivedMemberAssignment| {
        Ok((text("member id", &assignment.member_id)?.into(), assignment.assignment.as_slice().into()))
    };
    let sync = Sync {
        identity: identity(&request.member_id, &request.instance_id)?,
        generation: request.generation.to_native(),
        protocol_type: optional("protocol type", &request.protocol_type)?,
        protocol: optional("assignment protocol", &request.protocol)?,
        assignments: request.assignments.iter().map(assignment).collect::<Result<_, BodyError>>()?,
    };
    asked(&request.group, Request::Sync(sync))
}

fn commit(body: &[u8]) -> Result<GroupRequest, BodyError> {
    let request = open::<offsets::CommitRequest>(body)?;
    let partition = |partition: &offsets::ArchivedCommitPartition| {
        Ok(CommitPartition {
            index: partition.index.to_native(),
            offset: partition.offset.to_native(),
            leader_epoch: partition.leader_epoch.to_native(),
            metadata: text("offset metadata", &partition.metadata)?.into(),
        })
    };
    let topic = |topic: &offsets::ArchivedCommitTopic| {
        let partitions = topic.partitions.iter().map(partition).collect::<Result<_, BodyError>>()?;
        Ok(CommitTopic { name: text("topic name", &topic.name)?.into(), found: None, partitions })
    };
    let commit = Commit {
        identity: identity(&request.member_id, &request.instance_id)?,
        generation: request.generation.to_native(),
        topics: request.topics.iter().map(topic).collect::<Result<_, BodyError>>()?,
    };
    asked(&request.group, Request::Commit(commit))
}

fn fetch(body: &[u8]) -> Result<GroupRequest, BodyError> {
    let request = open::<offsets::FetchRequest>(body)?;
    let is_all = request.flags & offsets::FLAG_ALL != 0;
    let wanted = if is_all { Wanted::All } else { Wanted::Some(wanted(&request.topics)?) };
    asked(&request.group, Request::Fetch(wanted))
}

fn wanted(topics: &[offsets::ArchivedTopicPartitions]) -> Result<Vec<WantedTopic>, BodyError> {
    let topic = |topic: &offsets::ArchivedTopicPartitions| {
        let partitions = topic.partitions.iter().map(|partition| partition.to_native()).collect();
        Ok(WantedTopic { name: text("topic name", &topic.name)?.into(), id: None, partitions })
    };
    topics.iter().map(topic).collect()
}

/// The answer of a coordinator.
pub(super) fn put_group_answer(output: &mut Output, spare: &mut Spare, header: &FrameHeader, answer: Answer) {
    let none = Vec::new;
    match answer {
        Answer::Refused(code) => output.refuse(spare, header, code, ""),
        Answer::MemberIdRequired(member_id) => {
            let (error, member_id) = (ErrorCode::MemberIdRequired.code(), bytes(&member_id));
            output.answer(spare, header, &members::JoinResponse { error, member_id, ..Default::default() }, none());
        }
        Answer::Joined(joined) => output.answer(spare, header, &join_response(*joined), none()),
        Answer::Synced(synced) => {
            let response = members::SyncResponse {
                protocol_type: bytes(&synced.protocol_type),
                protocol: bytes(&synced.protocol),
                assignment: synced.assignment.into(),
            };
            output.answer(spare, header, &response, none());
        }
        Answer::Alive => output.answer(spare, header, &members::HeartbeatResponse { flags: 0 }, none()),
        Answer::Left(left) => {
            let left = left.into_iter().map(|(identity, code)| members::Left {
                member_id: bytes(&identity.member_id),
                instance_id: bytes(&identity.instance_id.unwrap_or_default()),
                error: code.code(),
            });
            output.answer(spare, header, &members::LeaveResponse { members: left.collect() }, none());
        }
        Answer::Partitions(topics) => output.answer(spare, header, &results_response(topics), none()),
        Answer::Offsets(topics) => output.answer(spare, header, &offsets_response(topics), none()),
        Answer::Described(found) => output.answer(spare, header, &describe_response(*found), none()),
        Answer::Deleted => output.answer(spare, header, &groups::DeleteResponse { flags: 0 }, none()),
    }
}

fn bytes(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn join_response(joined: Joined) -> members::JoinResponse {
    let member = |member: coulee_core::groups::request::JoinedMember| members::JoinedMember {
        member_id: bytes(&member.identity.member_id),
        instance_id: bytes(&member.identity.instance_id.unwrap_or_default()),
        metadata: member.metadata.into(),
    };
    members::JoinResponse {
        error: 0,
        generation: joined.generation,
        protocol: bytes(&joined.protocol),
        leader: bytes(&joined.leader),
        member_id: bytes(&joined.member_id),
        flags: if joined.skip_assignment { members::FLAG_SKIP_ASSIGNMENT } else { 0 },
        protocol_type: bytes(&joined.protocol_type),
        members: joined.members.into_iter().map(member).collect(),
    }
}

fn results_response(topics: Vec<TopicResults>) -> offsets::ResultsResponse {
    let result = |(index, code): (u32, ErrorCode)| offsets::PartitionResult { index, error: code.code() };
    let topic = |topic: TopicResults| offsets::TopicResults {
        name: bytes(&topic.name),
        partitions: topic.partitions.into_iter().map(result).collect(),
    };
    offsets::ResultsResponse { topics: topics.into_iter().map(topic).collect() }
}

fn offsets_response(topics: Vec<TopicOffsets>) -> offsets::FetchResponse {
    let offset = |(index, committed): (u32, Option<Committed>)| match committed {
        Some(committed) => offsets::PartitionOffset {
            index,
            offset: committed.offset,
            leader_epoch: committed.leader_epoch,
            metadata: bytes(&committed.metadata),
            commit_timestamp: committed.committed_ms,
        },
        None => offsets::PartitionOffset {
            index,
            offset: offsets::NO_OFFSET,
            leader_epoch: offsets::NO_LEADER_EPOCH,
            metadata: Vec::new(),
            commit_timestamp: -1,
        },
    };
    let topic = |topic: TopicOffsets| offsets::TopicOffsets {
        name: bytes(&topic.name),
        partitions: topic.partitions.into_iter().map(offset).collect(),
    };
    offsets::FetchResponse { topics: topics.into_iter().map(topic).collect() }
}

fn describe_response(found: Description) -> groups::DescribeResponse {
    let member = |member: coulee_core::groups::request::DescribedMember| groups::DescribedMember {
        member_id: bytes(&member.identity.member_id),
        instance_id: bytes(&member.identity.instance_id.unwrap_or_default()),
        client_id: bytes(&member.client_id),
        client_host: bytes(&member.client_host),
        metadata: member.metadata.into(),
        assignment: member.assignment.into(),
    };
    groups::DescribeResponse {
        state: found.state as u8,
        generation: found.generation,
        protocol_type: bytes(&found.protocol_type),
        protocol: bytes(&found.protocol),
        leader: bytes(&found.leader),
        partition: found.partition,
        members: found.members.into_iter().map(member).collect(),
    }
}

/// Adds the groups of one more shard; an error of any is the answer.
pub(super) fn put_groups(groups: &mut Result<Vec<Listed>, ErrorCode>, more: Result<Vec<Listed>, ErrorCode>) {
    match (groups, more) {
        (Ok(groups), Ok(more)) => groups.extend(more),
        (groups @ Ok(_), Err(code)) => *groups = Err(code),
        (Err(_), _) => {}
    }
}

/// All groups, by name.
pub(super) fn list_response(mut listed: Vec<Listed>) -> groups::ListResponse {
    listed.sort_by(|a, b| a.group.cmp(&b.group));
    let group = |listed: Listed| groups::ListedGroup {
        group: bytes(&listed.group),
        protocol_type: bytes(&listed.protocol_type),
        state: listed.state as u8,
        members: listed.members,
    };
    groups::ListResponse { groups: listed.into_iter().map(group).collect() }
}
