//! FindCoordinator to LeaveGroup, APIs 30–34: owns their bodies; knows no group and assigns nothing.

/// Version 1.
pub mod v1 {
    use crate::api::body::{BodyError, Check, check_count, check_range, check_text, text};
    use crate::limits::{GROUP_MEMBERS_MAX, GROUP_NAME_BYTES_MAX, GROUP_PROTOCOLS_MAX, REBALANCE_TIMEOUT_MS_MAX};

    archived! {
        /// Asks which shard coordinates a group.
        pub struct FindRequest: 8 {
            /// The group, UTF-8.
            0 group: Vec<u8>,
        }
    }

    archived! {
        /// Where the group's coordinator is.
        pub struct FindResponse: 20 {
            /// The partition of the offsets topic that holds the group.
            0 partition: u32,
            /// The shard that owns it.
            4 shard: u16,
            /// The broker.
            6 broker_id: u32,
            /// The host that clients connect to, UTF-8.
            10 host: Vec<u8>,
            /// The port.
            18 port: u16,
        }
    }

    archived! {
        /// Asks to become or to stay a member. The answer comes when all members have joined.
        pub struct JoinRequest: 56 {
            /// The group, UTF-8, not empty.
            0 group: Vec<u8>,
            /// The id that the coordinator gave; empty for a new member.
            8 member_id: Vec<u8>,
            /// The member's own name, where it is a static member; else empty.
            16 instance_id: Vec<u8>,
            /// How the client calls itself, UTF-8: member ids begin with it.
            24 client_id: Vec<u8>,
            /// How long the member may be silent, in milliseconds.
            32 session_timeout_ms: u32,
            /// How long the others wait for it in a rebalance, in milliseconds.
            36 rebalance_timeout_ms: u32,
            /// What the group is, UTF-8: `consumer` for consumers.
            40 protocol_type: Vec<u8>,
            /// The assignment protocols that the member knows, best first.
            48 protocols: Vec<Protocol>,
        }
    }

    archived! {
        /// An assignment protocol, and what the member tells the leader in it.
        pub struct Protocol: 16 {
            /// Its name, UTF-8.
            0 name: Vec<u8>,
            /// For consumers, Kafka's `ConsumerProtocolSubscription`.
            8 metadata: Vec<u8>,
        }
    }

    archived! {
        /// A generation begins, or the member is to join again with the id that it gets here.
        pub struct JoinResponse: 47 {
            /// 0, or MEMBER_ID_REQUIRED: then `member_id` is all there is.
            0 error: u16,
            /// The generation.
            2 generation: i32,
            /// The assignment protocol that all know.
            6 protocol: Vec<u8>,
            /// The member that assigns.
            14 leader: Vec<u8>,
            /// The member that this is for.
            22 member_id: Vec<u8>,
            /// Bit 0: it is the leader and does not assign, since what was assigned stands.
            30 flags: u8,
            /// What the group is.
            31 protocol_type: Vec<u8>,
            /// For the leader: every member and what it has told; else empty.
            39 members: Vec<JoinedMember>,
        }
    }

    /// Flags bit 0 of [`JoinResponse`]: do not assign.
    pub const FLAG_SKIP_ASSIGNMENT: u8 = 1;

    archived! {
        /// A member and what it has told.
        pub struct JoinedMember: 24 {
            /// Its id.
            0 member_id: Vec<u8>,
            /// Its own name, where it is a static member; else empty.
            8 instance_id: Vec<u8>,
            /// What it told, in the protocol agreed on.
            16 metadata: Vec<u8>,
        }
    }

    archived! {
        /// Asks for the member's assignment; from the leader, brings everyone's. The answer comes when that is durable.
        pub struct SyncRequest: 52 {
            /// The group, UTF-8.
            0 group: Vec<u8>,
            /// The generation.
            8 generation: i32,
            /// The member.
            12 member_id: Vec<u8>,
            /// Its own name, where it is a static member; else empty.
            20 instance_id: Vec<u8>,
            /// What it takes the group for; empty for no check.
            28 protocol_type: Vec<u8>,
            /// What it takes for agreed on; empty for no check.
            36 protocol: Vec<u8>,
            /// From the leader: what each member gets; else empty.
            44 assignments: Vec<MemberAssignment>,
        }
    }

    archived! {
        /// What a member gets.
        pub struct MemberAssignment: 16 {
            /// The member.
            0 member_id: Vec<u8>,
            /// For consumers, Kafka's `ConsumerProtocolAssignment`.
            8 assignment: Vec<u8>,
        }
    }

    archived! {
        /// The member's assignment.
        pub struct SyncResponse: 24 {
            /// What the group is.
            0 protocol_type: Vec<u8>,
            /// The assignment protocol.
            8 protocol: Vec<u8>,
            /// What the leader has given it; empty for nothing.
            16 assignment: Vec<u8>,
        }
    }

    archived! {
        /// Says that a member lives.
        pub struct HeartbeatRequest: 28 {
            /// The group, UTF-8.
            0 group: Vec<u8>,
            /// The generation.
            8 generation: i32,
            /// The member.
            12 member_id: Vec<u8>,
            /// Its own name, where it is a static member; else empty.
            20 instance_id: Vec<u8>,
        }
    }

    archived! {
        /// The member is one of a stable group, or of one that waits for its leader.
        pub struct HeartbeatResponse: 1 {
            /// None is defined: 0.
            0 flags: u8,
        }
    }

    archived! {
        /// Says that members leave.
        pub struct LeaveRequest: 16 {
            /// The group, UTF-8.
            0 group: Vec<u8>,
            /// Who, at most 5,000.
            8 members: Vec<Leaving>,
        }
    }

    archived! {
        /// A member that leaves.
        pub struct Leaving: 16 {
            /// Its id; empty where a static member is named by `instance_id` alone.
            0 member_id: Vec<u8>,
            /// Its own name, where it is a static member; else empty.
            8 instance_id: Vec<u8>,
        }
    }

    archived! {
        /// What became of each, in the order of the request.
        pub struct LeaveResponse: 8 {
            /// The members.
            0 members: Vec<Left>,
        }
    }

    archived! {
        /// A member that has left, or has not.
        pub struct Left: 18 {
            /// Its id, as it was named.
            0 member_id: Vec<u8>,
            /// Its own name, as it was named.
            8 instance_id: Vec<u8>,
            /// 0, or why it has not.
            16 error: u16,
        }
    }

    impl Check for ArchivedFindRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_text("group", &self.group, GROUP_NAME_BYTES_MAX)
        }
    }

    impl Check for ArchivedJoinRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_member(&self.group, &self.member_id, &self.instance_id)?;
            check_text("client id", &self.client_id, GROUP_NAME_BYTES_MAX)?;
            check_text("protocol type", &self.protocol_type, GROUP_NAME_BYTES_MAX)?;
            let longest = REBALANCE_TIMEOUT_MS_MAX;
            check_range("session timeout", self.session_timeout_ms.to_native(), 0, longest)?;
            check_range("rebalance timeout", self.rebalance_timeout_ms.to_native(), 0, longest)?;
            check_count("assignment protocols", self.protocols.len(), GROUP_PROTOCOLS_MAX)?;
            self.protocols
                .iter()
                .try_for_each(|protocol| check_text("assignment protocol", &protocol.name, GROUP_NAME_BYTES_MAX))
        }
    }

    impl Check for ArchivedSyncRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_member(&self.group, &self.member_id, &self.instance_id)?;
            text("protocol type", &self.protocol_type)?;
            text("assignment protocol", &self.protocol)?;
            check_count("assignments", self.assignments.len(), GROUP_MEMBERS_MAX)?;
            self.assignments.iter().try_for_each(|assignment| text("member id", &assignment.member_id).map(|_| ()))
        }
    }

    impl Check for ArchivedHeartbeatRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_member(&self.group, &self.member_id, &self.instance_id)
        }
    }

    impl Check for ArchivedLeaveRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_text("group", &self.group, GROUP_NAME_BYTES_MAX)?;
            check_count("members", self.members.len(), GROUP_MEMBERS_MAX)?;
            self.members.iter().try_for_each(|member| check_member(&self.group, &member.member_id, &member.instance_id))
        }
    }

    /// The names of a member and its group.
    pub(crate) fn check_member(group: &[u8], member_id: &[u8], instance_id: &[u8]) -> Result<(), BodyError> {
        check_text("group", group, GROUP_NAME_BYTES_MAX)?;
        // An id that the coordinator gave is a name and 37 bytes more.
        check_text("member id", member_id, 2 * GROUP_NAME_BYTES_MAX)?;
        check_text("instance id", instance_id, GROUP_NAME_BYTES_MAX)
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::api::{encode, open};

        fn check(change: impl FnOnce(&mut JoinRequest)) -> Result<(), BodyError> {
            let protocols = vec![Protocol { name: b"range".to_vec(), metadata: Vec::new() }];
            let mut request = JoinRequest { group: b"g".to_vec(), protocols, ..Default::default() };
            change(&mut request);
            let mut body = Vec::new();
            encode(&request, &mut body);
            open::<JoinRequest>(&body).map(|_| ())
        }

        #[test]
        fn a_join_is_held_against_the_limits_of_names_and_times() {
            assert_eq!(check(|_| ()), Ok(()));
            let long = |field| BodyError::TooLong { what: field, max: 255, found: 256 };
            assert_eq!(check(|join| join.group = vec![b'g'; 256]), Err(long("group")));
            assert_eq!(check(|join| join.instance_id = vec![b'i'; 256]), Err(long("instance id")));
            assert_eq!(check(|join| join.client_id = vec![b'c'; 256]), Err(long("client id")));
            assert_eq!(check(|join| join.protocols[0].name = vec![b'p'; 256]), Err(long("assignment protocol")));
            let not_text = BodyError::NotUtf8 { what: "member id", valid_bytes: 1 };
            assert_eq!(check(|join| join.member_id = vec![b'm', 0xff]), Err(not_text));
            let too_long = check(|join| join.rebalance_timeout_ms = 86_400_001);
            assert!(matches!(too_long, Err(BodyError::OutOfRange { what: "rebalance timeout", .. })), "{too_long:?}");
            let many = check(|join| join.protocols = vec![Protocol::default(); 17]);
            assert_eq!(many, Err(BodyError::TooMany { what: "assignment protocols", max: 16, found: 17 }));
        }
    }
}
