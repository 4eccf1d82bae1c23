//! One member of a group: what it said, what it waits for, until when it has to be heard of; knows no other member.

use super::request::{DescribedMember, Identity, Join};
use crate::shard::RequestId;
use std::rc::Rc;

/// How long a member that has never got an answer is waited for, in milliseconds (Kafka's
/// `NewMemberJoinTimeoutMs`): it has no id yet, so it sends no heartbeats.
pub(super) const NEW_MEMBER_TIMEOUT_MS: u64 = 300_000;

/// A member. Lives in its group.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) instance_id: Option<Box<str>>,
    pub(super) client_id: Box<str>,
    pub(super) client_host: Box<str>,
    pub(super) session_timeout_ms: u32,
    pub(super) rebalance_timeout_ms: u32,
    /// Best first.
    pub(super) protocols: Vec<(Box<str>, Rc<[u8]>)>,
    pub(super) assignment: Rc<[u8]>,
    /// Its join, until all have joined.
    pub(super) joins: Option<RequestId>,
    /// Its sync, until the assignment is durable.
    pub(super) syncs: Option<RequestId>,
    /// It has never got an answer to a join.
    pub(super) is_new: bool,
    /// It has joined this generation and not asked for its assignment.
    pub(super) owes_sync: bool,
    /// When it has been silent for too long.
    pub(super) deadline_ms: u64,
}

impl Member {
    /// A member that asks to join for the first time.
    pub(super) fn new(request: RequestId, join: Join, now_ms: u64) -> Self {
        let mut member = Self {
            instance_id: join.identity.instance_id.clone(),
            client_id: join.client_id.clone(),
            client_host: join.client_host.clone(),
            session_timeout_ms: 0,
            rebalance_timeout_ms: 0,
            protocols: Vec::new(),
            assignment: Rc::from([]),
            joins: None,
            syncs: None,
            is_new: true,
            owes_sync: false,
            deadline_ms: now_ms + NEW_MEMBER_TIMEOUT_MS,
        };
        member.update(request, join);
        member
    }

    /// Takes what it says when it joins again; the request that waited before, if one did.
    pub(super) fn update(&mut self, request: RequestId, join: Join) -> Option<RequestId> {
        self.session_timeout_ms = join.session_timeout_ms;
        self.rebalance_timeout_ms = join.rebalance_timeout_ms;
        self.protocols = join.protocols.into_iter().map(|(name, metadata)| (name, Rc::from(metadata))).collect();
        self.joins.replace(request)
    }

    /// It has been heard of.
    pub(super) fn touch(&mut self, now_ms: u64) {
        self.deadline_ms = now_ms + u64::from(self.session_timeout_ms);
    }

    /// When it is to be removed if nothing is heard of it. One that waits for the others is not silent.
    pub(super) fn expires_ms(&self) -> Option<u64> {
        let waits = self.joins.is_some() || self.syncs.is_some();
        (self.is_new || !waits).then_some(self.deadline_ms)
    }

    /// Whether it says the same as before.
    pub(super) fn says(&self, protocols: &[(Box<str>, Box<[u8]>)]) -> bool {
        let own = self.protocols.iter().map(|(name, metadata)| (&**name, &**metadata));
        own.eq(protocols.iter().map(|(name, metadata)| (&**name, &**metadata)))
    }

    /// What it says in a protocol.
    pub(super) fn metadata(&self, protocol: &str) -> &[u8] {
        self.protocols.iter().find(|(name, _)| **name == *protocol).map_or(&[], |(_, metadata)| metadata)
    }

    /// Bytes that it has the coordinator keep.
    pub(super) fn bytes(&self) -> usize {
        let protocols: usize = self.protocols.iter().map(|(name, metadata)| name.len() + metadata.len()).sum();
        protocols + self.assignment.len() + self.client_id.len() + self.client_host.len() + 256
    }

    pub(super) fn identity(&self, member_id: &str) -> Identity {
        Identity { member_id: member_id.into(), instance_id: self.instance_id.clone() }
    }

    /// As it is shown; what it says and has only in a stable group's `protocol`.
    pub(super) fn describe(&self, member_id: &str, protocol: Option<&str>) -> DescribedMember {
        DescribedMember {
            identity: self.identity(member_id),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            metadata: protocol.map_or_else(Box::default, |protocol| self.metadata(protocol).into()),
            assignment: if protocol.is_some() { (*self.assignment).into() } else { Box::default() },
        }
    }
}

/// An id for a new member, as Kafka makes it: its own name or its client's, and 128 random bits.
pub(super) fn new_member_id(join: &Join) -> Box<str> {
    let prefix = join.identity.instance_id.as_deref().unwrap_or(&join.client_id);
    let mut id = format!("{prefix}-");
    for (at, byte) in join.random.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            id.push('-');
        }
        id.push_str(&format!("{byte:02x}"));
    }
    id.into()
}
