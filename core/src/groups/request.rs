//! What coordinators are asked and what they answer, as plain data that may go to another thread; decides nothing.

use super::Options;
use super::group::State;
use crate::catalog::Catalog;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::TopicId;

/// A request for the coordinator of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRequest {
    /// The group.
    pub group: Box<str>,
    /// What is asked.
    pub request: Request,
}

/// What a coordinator is asked of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// To become or stay a member: the answer comes when all have joined.
    Join(Join),
    /// To hand out, or to get, an assignment: the answer comes when the leader's is durable.
    Sync(Sync),
    /// To stay a member for another session timeout.
    Heartbeat(Identity, i32),
    /// To be members no longer.
    Leave(Vec<Identity>),
    /// To keep offsets: the answer comes when they are durable.
    Commit(Commit),
    /// To tell committed offsets.
    Fetch(Wanted),
    /// To tell what the group is.
    Describe,
    /// To forget the group and its offsets; only to check that it can be, if so.
    Delete {
        /// Check everything, change nothing.
        validate_only: bool,
    },
    /// To forget some of its offsets.
    DeleteOffsets(Vec<WantedTopic>),
}

/// Who a member says that it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The id that the coordinator gave it; empty where it has none.
    pub member_id: Box<str>,
    /// Its own name, where it is a static member.
    pub instance_id: Option<Box<str>>,
}

/// A request to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Who.
    pub identity: Identity,
    /// How its client calls itself.
    pub client_id: Box<str>,
    /// Where its client is.
    pub client_host: Box<str>,
    /// How long it may be silent, in milliseconds.
    pub session_timeout_ms: u32,
    /// How long the others wait for it in a rebalance, in milliseconds.
    pub rebalance_timeout_ms: u32,
    /// What its group is, such as `consumer`.
    pub protocol_type: Box<str>,
    /// The assignment protocols that it knows, best first, with what it tells the leader in each.
    pub protocols: Vec<(Box<str>, Box<[u8]>)>,
    /// A new member has to come back with the id that it is given (KIP-394).
    pub requires_known_member: bool,
    /// It understands that a leader may be told not to assign (KIP-814).
    pub can_skip_assignment: bool,
    /// Chance, for its id.
    pub random: [u8; 16],
}

/// A request for an assignment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sync {
    /// Who.
    pub identity: Identity,
    /// In which generation.
    pub generation: i32,
    /// What it takes the group for; `None` where it does not say.
    pub protocol_type: Option<Box<str>>,
    /// What it takes for agreed on; `None` where it does not say.
    pub protocol: Option<Box<str>>,
    /// From the leader: the assignment of each member.
    pub assignments: Vec<(Box<str>, Box<[u8]>)>,
}

/// A request to keep offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// Who; empty for someone who is no member.
    pub identity: Identity,
    /// In which generation; −1 for someone who is no member.
    pub generation: i32,
    /// The offsets.
    pub topics: Vec<CommitTopic>,
}

/// Offsets of one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitTopic {
    /// Its name.
    pub name: Box<str>,
    /// Its id and how many partitions it has, where it exists.
    pub found: Option<(TopicId, u32)>,
    /// The offsets.
    pub partitions: Vec<CommitPartition>,
}

/// An offset to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitPartition {
    /// Its partition.
    pub index: u32,
    /// The next record that the group wants.
    pub offset: u64,
    /// The leader epoch of the record before; −1 where it is not known.
    pub leader_epoch: i32,
    /// What is to be kept with it.
    pub metadata: Box<str>,
}

/// Which committed offsets are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All that there are.
    All,
    /// Those of these partitions.
    Some(Vec<WantedTopic>),
}

/// Partitions of one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedTopic {
    /// Its name.
    pub name: Box<str>,
    /// Its id, where it exists.
    pub id: Option<TopicId>,
    /// The partitions.
    pub partitions: Vec<u32>,
}

impl Request {
    /// Fills in what the catalog knows of the topics that are named. An offset is kept for a topic, not for its name: a
    /// topic that is deleted and made again begins without any.
    pub fn resolve(&mut self, catalog: &Catalog) {
        match self {
            Self::Commit(commit) => commit.topics.iter_mut().for_each(|topic| {
                topic.found = catalog.topic(&topic.name).map(|found| (found.id, found.partitions.len() as u32));
            }),
            Self::Fetch(Wanted::Some(topics)) | Self::DeleteOffsets(topics) => topics.iter_mut().for_each(|topic| {
                topic.id = catalog.topic(&topic.name).map(|found| found.id);
            }),
            _ => {}
        }
    }

    /// Whether a request for the group `name` can be dealt with at all.
    ///
    /// # Errors
    /// INVALID_GROUP_ID, INVALID_SESSION_TIMEOUT.
    pub(super) fn check(&self, name: &str, options: &Options) -> Result<(), ErrorCode> {
        let needs_name = !matches!(self, Self::Commit(_) | Self::Fetch(_) | Self::Describe | Self::Delete { .. });
        if name.is_empty() && needs_name {
            return Err(ErrorCode::InvalidGroupId);
        }
        let range = options.session_timeout_min_ms..=options.session_timeout_max_ms;
        match self {
            Self::Join(join) if !range.contains(&join.session_timeout_ms) => Err(ErrorCode::InvalidSessionTimeout),
            _ => Ok(()),
        }
    }
}

/// What a coordinator answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing of it was done, and why.
    Refused(ErrorCode),
    /// To a join: come back with this id.
    MemberIdRequired(Box<str>),
    /// To a join: a member of this generation.
    Joined(Box<Joined>),
    /// To a sync.
    Synced(Synced),
    /// To a heartbeat: all is well.
    Alive,
    /// To a leave: what became of each.
    Left(Vec<(Identity, ErrorCode)>),
    /// To a commit or a deletion of offsets: what became of each partition.
    Partitions(Vec<TopicResults>),
    /// To a fetch.
    Offsets(Vec<TopicOffsets>),
    /// To a description.
    Described(Box<Description>),
    /// To a deletion: it is gone, or could be.
    Deleted,
}

/// What a member learns when all have joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// The generation that begins.
    pub generation: i32,
    /// What the group is.
    pub protocol_type: Box<str>,
    /// The assignment protocol that all know.
    pub protocol: Box<str>,
    /// The member that assigns.
    pub leader: Box<str>,
    /// The one that this is for.
    pub member_id: Box<str>,
    /// It is the leader and does not assign: what was assigned stands.
    pub skip_assignment: bool,
    /// For the leader: what every member has said.
    pub members: Vec<JoinedMember>,
}

/// What a member has said to the leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JoinedMember {
    /// Who.
    pub identity: Identity,
    /// What, in the protocol agreed on.
    pub metadata: Box<[u8]>,
}

/// What a member gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// What the group is.
    pub protocol_type: Box<str>,
    /// The assignment protocol.
    pub protocol: Box<str>,
    /// What the leader has told it.
    pub assignment: Box<[u8]>,
}

/// What became of partitions of one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicResults {
    /// The topic.
    pub name: Box<str>,
    /// Each partition and its result; [`ErrorCode::None`] where all is well.
    pub partitions: Vec<(u32, ErrorCode)>,
}

/// Committed offsets of one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicOffsets {
    /// The topic.
    pub name: Box<str>,
    /// Each partition and its offset, where there is one.
    pub partitions: Vec<(u32, Option<super::Committed>)>,
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub group: Box<str>,
    /// What it is.
    pub protocol_type: Box<str>,
    /// How it stands.
    pub state: State,
    /// Its members.
    pub members: u32,
}

/// What a group is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The partition of the offsets topic that holds it.
    pub partition: u32,
    /// How it stands.
    pub state: State,
    /// Its generation.
    pub generation: i32,
    /// What it is.
    pub protocol_type: Box<str>,
    /// The assignment protocol, once it is agreed on.
    pub protocol: Box<str>,
    /// The member that assigns.
    pub leader: Box<str>,
    /// Its members.
    pub members: Vec<DescribedMember>,
}

/// A member of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DescribedMember {
    /// Who.
    pub identity: Identity,
    /// How its client calls itself.
    pub client_id: Box<str>,
    /// Where its client is.
    pub client_host: Box<str>,
    /// What it has told the leader; nothing while the group rebalances.
    pub metadata: Box<[u8]>,
    /// What the leader has told it; nothing while the group rebalances.
    pub assignment: Box<[u8]>,
}
