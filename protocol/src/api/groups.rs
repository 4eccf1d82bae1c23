//! ListGroups, DescribeGroup and DeleteGroup, APIs 37–39: owns their bodies; knows no group.

/// Version 1.
pub mod v1 {
    use crate::api::body::{BodyError, Check, check_flags, check_text};
    use crate::limits::GROUP_NAME_BYTES_MAX;

    /// Flags bit 0 of [`DeleteRequest`]: check everything, change nothing.
    pub const FLAG_VALIDATE_ONLY: u8 = 1;

    archived! {
        /// Asks for the groups of all coordinators.
        pub struct ListRequest: 1 {
            /// None is defined: 0.
            0 flags: u8,
        }
    }

    archived! {
        /// Every group, by name.
        pub struct ListResponse: 8 {
            /// The groups.
            0 groups: Vec<ListedGroup>,
        }
    }

    archived! {
        /// A group.
        pub struct ListedGroup: 21 {
            /// Its name.
            0 group: Vec<u8>,
            /// What it is: `consumer` for consumers; empty where it never had members.
            8 protocol_type: Vec<u8>,
            /// 0 Empty, 1 PreparingRebalance, 2 CompletingRebalance, 3 Stable, 4 Dead.
            16 state: u8,
            /// How many members it has.
            17 members: u32,
        }
    }

    archived! {
        /// Asks what a group is.
        pub struct DescribeRequest: 8 {
            /// The group, UTF-8.
            0 group: Vec<u8>,
        }
    }

    archived! {
        /// What the group is.
        pub struct DescribeResponse: 41 {
            /// 0 Empty, 1 PreparingRebalance, 2 CompletingRebalance, 3 Stable, 4 Dead.
            0 state: u8,
            /// Its generation.
            1 generation: i32,
            /// What it is: `consumer` for consumers; empty where it never had members.
            5 protocol_type: Vec<u8>,
            /// The assignment protocol; empty unless it is stable.
            13 protocol: Vec<u8>,
            /// The member that assigns.
            21 leader: Vec<u8>,
            /// The partition of the offsets topic that holds it.
            29 partition: u32,
            /// Its members.
            33 members: Vec<DescribedMember>,
        }
    }

    archived! {
        /// A member.
        pub struct DescribedMember: 48 {
            /// Its id.
            0 member_id: Vec<u8>,
            /// Its own name, where it is a static member; else empty.
            8 instance_id: Vec<u8>,
            /// How its client calls itself.
            16 client_id: Vec<u8>,
            /// Where its client is: `/` and an address.
            24 client_host: Vec<u8>,
            /// What it has told the leader; empty unless the group is stable.
            32 metadata: Vec<u8>,
            /// What the leader has given it; empty unless the group is stable.
            40 assignment: Vec<u8>,
        }
    }

    archived! {
        /// Forgets a group without members, and its offsets.
        pub struct DeleteRequest: 9 {
            /// The group, UTF-8.
            0 group: Vec<u8>,
            /// Bit 0: check everything, change nothing.
            8 flags: u8,
        }
    }

    archived! {
        /// The group is gone, or could be.
        pub struct DeleteResponse: 1 {
            /// None is defined: 0.
            0 flags: u8,
        }
    }

    impl Check for ArchivedListRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_flags(self.flags, 0)
        }
    }

    impl Check for ArchivedDescribeRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_text("group", &self.group, GROUP_NAME_BYTES_MAX)
        }
    }

    impl Check for ArchivedDeleteRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_text("group", &self.group, GROUP_NAME_BYTES_MAX)?;
            check_flags(self.flags, FLAG_VALIDATE_ONLY)
        }
    }
}
