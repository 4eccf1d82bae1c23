//! ③ Requests and responses: owns the one table of APIs and their versioned, frozen types; decides nothing about them.
//!
//! Dispatch goes through [`APIS`], so that no API can be added without saying which [`Operation`] on which [`Resource`]
//! it needs. A published version's types never change: a new field is a new version, its type beside the old one.
//!
//! The types hold integers, byte arrays and `Vec`s only. A text is a `Vec<u8>` whose UTF-8 is checked at the edge, an
//! enum is a number that the edge looks up, "none" is a number that the document names. So every archive has one
//! layout, which docs/PROTOCOL.md gives byte by byte and which each declaration pins at compile time.
#![allow(missing_debug_implementations, reason = "rkyv derives a resolver beside each type, without Debug")]

use std::fmt;

use crate::error::ErrorCode;
use crate::hello::ApiRange;

/// Declares a frozen archive: a struct with its derives, the size of its archived form and the offset of each field.
macro_rules! archived {
    (
        $(#[$doc:meta])*
        pub struct $name:ident: $bytes:literal {
            $($(#[$field_doc:meta])* $offset:literal $field:ident: $type:ty,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
        #[rkyv(derive(Debug))]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)+
        }

        const _: () = assert!(size_of::<rkyv::Archived<$name>>() == $bytes);
        const _: () = assert!(align_of::<rkyv::Archived<$name>>() == 1);
        $(const _: () = assert!(std::mem::offset_of!(rkyv::Archived<$name>, $field) == $offset);)+
    };
}

pub mod body;
pub mod broker;
pub mod error_body;
pub mod fetch;
pub mod groups;
pub mod list_offsets;
pub mod members;
pub mod metadata;
pub mod offsets;
pub mod produce;
#[cfg(test)]
pub(crate) mod seeded;
pub mod stats;
pub mod topics;

pub use body::{Body, BodyError, Check, access, decode, encode, open, text};

/// What a principal needs to be allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Nothing: the API is what a principal is established with.
    None,
    /// To see that it exists, and what it is.
    Describe,
    /// To see its configuration.
    DescribeConfigs,
    /// To read its records.
    Read,
    /// To write records.
    Write,
    /// To create it.
    Create,
    /// To delete it.
    Delete,
    /// To change it.
    Alter,
}

/// What the operation is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// The cluster as a whole.
    Cluster,
    /// Each topic that the request names, or whose partitions it names.
    Topic,
    /// The consumer group that the request names.
    Group,
}

/// One row of the table of APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api {
    /// Its key.
    pub key: ApiKey,
    /// Its name, for logs and documents.
    pub name: &'static str,
    /// The oldest version that is read.
    pub min: u16,
    /// The newest version.
    pub max: u16,
    /// What it needs to be allowed.
    pub operation: Operation,
    /// To what.
    pub resource: Resource,
}

/// Declares keys and table together.
macro_rules! apis {
    ($($(#[$doc:meta])* $key:literal $name:ident $min:literal..=$max:literal $operation:ident $resource:ident)+) => {
        /// The number of an API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum ApiKey {
            $($(#[$doc])* $name = $key,)+
        }

        /// Every API, in ascending order of key.
        pub const APIS: &[Api] = &[$(Api {
            key: ApiKey::$name,
            name: stringify!($name),
            min: $min,
            max: $max,
            operation: Operation::$operation,
            resource: Resource::$resource,
        },)+];
    };
}

apis! {
    /// The first exchange.
    0 Hello 0..=0 None Cluster
    /// Brokers, shards, topics, and the shard that owns each partition.
    1 Metadata 1..=1 Describe Topic
    /// One record batch for one partition.
    2 Produce 1..=1 Write Topic
    /// Record batches of many partitions.
    3 Fetch 1..=1 Read Topic
    /// Offsets by time.
    4 ListOffsets 1..=1 Describe Topic
    /// Makes a topic.
    10 CreateTopic 1..=1 Create Topic
    /// Deletes a topic and its records.
    11 DeleteTopic 1..=1 Delete Topic
    /// Changes a topic's configuration, or gives it more partitions.
    12 AlterTopic 1..=1 Alter Topic
    /// A topic's partitions and effective configuration.
    13 DescribeTopic 1..=1 Describe Topic
    /// Counters and histograms of each shard.
    20 Stats 1..=1 Describe Cluster
    /// The broker's effective configuration.
    21 DescribeBroker 1..=1 DescribeConfigs Cluster
    /// Which shard coordinates a consumer group.
    30 FindCoordinator 1..=1 Describe Group
    /// Becomes or stays a member of a group; answered when all have joined.
    31 JoinGroup 1..=1 Read Group
    /// Hands out or gets an assignment.
    32 SyncGroup 1..=1 Read Group
    /// Stays a member.
    33 Heartbeat 1..=1 Read Group
    /// Is a member no longer.
    34 LeaveGroup 1..=1 Read Group
    /// Keeps offsets of a group; needs to be allowed to read their topics, too.
    35 OffsetCommit 1..=1 Read Group
    /// Tells committed offsets.
    36 OffsetFetch 1..=1 Describe Group
    /// All groups.
    37 ListGroups 1..=1 Describe Cluster
    /// A group and its members.
    38 DescribeGroup 1..=1 Describe Group
    /// Forgets a group and its offsets.
    39 DeleteGroup 1..=1 Delete Group
    /// Forgets some offsets of a group.
    40 OffsetDelete 1..=1 Delete Group
}

impl ApiKey {
    /// Its number.
    #[must_use]
    pub fn code(self) -> u16 {
        self as u16
    }
}

impl fmt::Display for ApiKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

impl Api {
    /// The row for this number and version.
    ///
    /// # Errors
    /// If the number is unknown, or the version outside the range that is read.
    pub fn find(api: u16, version: u16) -> Result<&'static Self, ApiError> {
        let Some(row) = APIS.iter().find(|row| row.key.code() == api) else {
            return Err(ApiError::UnknownApi { found: api });
        };
        if !(row.min..=row.max).contains(&version) {
            return Err(ApiError::UnknownVersion { api: row.key, min: row.min, max: row.max, found: version });
        }
        Ok(row)
    }
}

/// The table as Hello's answer lists it.
pub fn ranges() -> impl Iterator<Item = ApiRange> {
    APIS.iter().map(|row| ApiRange { api: row.key.code(), min: row.min, max: row.max })
}

/// Why a request has no row. The connection survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiError {
    /// No API has this number.
    UnknownApi {
        /// The number.
        found: u16,
    },
    /// The API has no such version.
    UnknownVersion {
        /// The API.
        api: ApiKey,
        /// Its oldest version.
        min: u16,
        /// Its newest version.
        max: u16,
        /// The version asked for.
        found: u16,
    },
}

impl ApiError {
    /// The code of the answer.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        ErrorCode::UnsupportedVersion
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownApi { found } => write!(formatter, "api {found} is unknown"),
            Self::UnknownVersion { api, min, max, found } => {
                write!(formatter, "{api} version {found}, expected {min} to {max}")
            }
        }
    }
}

impl std::error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_design() {
        let keys: Vec<_> = APIS.iter().map(|row| (row.key.code(), row.name)).collect();
        let expected = [
            (0, "Hello"),
            (1, "Metadata"),
            (2, "Produce"),
            (3, "Fetch"),
            (4, "ListOffsets"),
            (10, "CreateTopic"),
            (11, "DeleteTopic"),
            (12, "AlterTopic"),
            (13, "DescribeTopic"),
            (20, "Stats"),
            (21, "DescribeBroker"),
            (30, "FindCoordinator"),
            (31, "JoinGroup"),
            (32, "SyncGroup"),
            (33, "Heartbeat"),
            (34, "LeaveGroup"),
            (35, "OffsetCommit"),
            (36, "OffsetFetch"),
            (37, "ListGroups"),
            (38, "DescribeGroup"),
            (39, "DeleteGroup"),
            (40, "OffsetDelete"),
        ];
        assert_eq!(keys, expected);
    }

    #[test]
    fn each_row_is_found_by_each_of_its_versions_and_no_other() {
        for row in APIS {
            assert!(row.min <= row.max);
            for version in 0..16 {
                let found = Api::find(row.key.code(), version);
                assert_eq!(found.is_ok(), (row.min..=row.max).contains(&version), "{} {version}", row.name);
            }
        }
        let error = Api::find(2, 9).unwrap_err();
        assert_eq!(error.to_string(), "Produce version 9, expected 1 to 1");
        assert_eq!(error.code(), ErrorCode::UnsupportedVersion);
        assert_eq!(Api::find(5, 1), Err(ApiError::UnknownApi { found: 5 }));
    }

    #[test]
    fn only_hello_needs_no_permission() {
        let free: Vec<_> = APIS.iter().filter(|row| row.operation == Operation::None).map(|row| row.key).collect();
        assert_eq!(free, [ApiKey::Hello]);
    }
}
