//! CreateTopic to DescribeTopic, APIs 10–13: owns their bodies and the rules for names; knows no topic and no default.

use std::fmt;

use super::body::{BodyError, text};
use crate::limits::TOPIC_NAME_BYTES_MAX;

/// Bytes of a configuration key.
pub const CONFIG_KEY_BYTES_MAX: usize = 255;
/// Bytes of a configuration value.
pub const CONFIG_VALUE_BYTES_MAX: usize = 4_096;

/// What an ack of a topic means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Durability {
    /// It survives power loss of this machine.
    #[default]
    Fsync = 0,
    /// The device has the bytes, unflushed: it survives a crash of the process and of the system, not a power cut.
    Written = 1,
}

impl Durability {
    /// The durability with this number.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Fsync),
            1 => Some(Self::Written),
            _ => None,
        }
    }

    /// Its number.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// Checks a topic name: `[A-Za-z0-9._-]`, 1 to 249 of them, not `.` and not `..`.
///
/// # Errors
/// The rule that is broken.
pub fn check_topic_name(name: &str) -> Result<(), TopicNameError> {
    if name.is_empty() {
        return Err(TopicNameError::Empty);
    }
    if name.len() > TOPIC_NAME_BYTES_MAX {
        return Err(TopicNameError::TooLong { max: TOPIC_NAME_BYTES_MAX, found: name.len() });
    }
    let allowed = |character: &char| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-');
    if let Some((at, found)) = name.char_indices().find(|(_, character)| !allowed(character)) {
        return Err(TopicNameError::Character { at, found });
    }
    if name == "." || name == ".." {
        return Err(TopicNameError::Dots);
    }
    Ok(())
}

/// Whether the name is one of the broker's own topics.
#[must_use]
pub fn is_internal(name: &str) -> bool {
    name.starts_with("__")
}

/// A topic name of a body, checked.
///
/// # Errors
/// If it is not UTF-8, or breaks a rule for names.
pub fn topic_name(bytes: &[u8]) -> Result<&str, BodyError> {
    let name = text("topic name", bytes)?;
    check_topic_name(name)?;
    Ok(name)
}

/// The rule that a topic name breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicNameError {
    /// It has no characters.
    Empty,
    /// It is too long.
    TooLong {
        /// The most bytes.
        max: usize,
        /// What there was.
        found: usize,
    },
    /// It holds something else than letters and digits of ASCII, `.`, `_` and `-`.
    Character {
        /// Where, in bytes.
        at: usize,
        /// What.
        found: char,
    },
    /// It is `.` or `..`.
    Dots,
}

impl fmt::Display for TopicNameError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => formatter.write_str("topic name is empty"),
            Self::TooLong { max, found } => write!(formatter, "topic name of {found} bytes, expected at most {max}"),
            Self::Character { at, found } => {
                write!(formatter, "topic name holds {found:?} at byte {at}, expected letters, digits, '.', '_' and '-'")
            }
            Self::Dots => formatter.write_str("topic name is '.' or '..'"),
        }
    }
}

impl std::error::Error for TopicNameError {}

/// Version 1.
pub mod v1 {
    use super::{CONFIG_KEY_BYTES_MAX, CONFIG_VALUE_BYTES_MAX, topic_name};
    use crate::api::body::{BodyError, Check, check_count, check_flags, check_range, text};
    use crate::limits::{CONFIG_ENTRIES_MAX, TOPIC_PARTITIONS_MAX};

    /// Flags bit 0 of the changing requests: check everything, change nothing.
    pub const FLAG_VALIDATE_ONLY: u8 = 1;
    /// Flags bit 0 of [`DescribeResponse`]: the topic is internal.
    pub const FLAG_INTERNAL: u8 = 1;
    /// Origin of a configuration value: the broker's default.
    pub const ORIGIN_DEFAULT: u8 = 0;
    /// Origin of a configuration value: set for this topic.
    pub const ORIGIN_TOPIC: u8 = 1;

    archived! {
        /// A configuration key and its value.
        pub struct ConfigEntry: 16 {
            /// The key, UTF-8.
            0 key: Vec<u8>,
            /// The value as text, UTF-8.
            8 value: Vec<u8>,
        }
    }

    archived! {
        /// A configuration key.
        pub struct ConfigKey: 8 {
            /// The key, UTF-8.
            0 key: Vec<u8>,
        }
    }

    archived! {
        /// CreateTopic's request.
        pub struct CreateRequest: 23 {
            /// The name, UTF-8.
            0 name: Vec<u8>,
            /// Partitions; 0 for the default.
            8 partitions: u32,
            /// Replicas of each partition; 0 for the default.
            12 replication_factor: u16,
            /// What differs from the defaults, at most `CONFIG_ENTRIES_MAX`.
            14 configs: Vec<ConfigEntry>,
            /// [`FLAG_VALIDATE_ONLY`].
            22 flags: u8,
        }
    }

    archived! {
        /// CreateTopic's response.
        pub struct CreateResponse: 20 {
            /// The new topic's id; zero if it was only validated.
            0 topic_id: [u8; 16],
            /// Its partitions.
            16 partitions: u32,
        }
    }

    archived! {
        /// DeleteTopic's request.
        pub struct DeleteRequest: 9 {
            /// The name, UTF-8.
            0 name: Vec<u8>,
            /// [`FLAG_VALIDATE_ONLY`].
            8 flags: u8,
        }
    }

    archived! {
        /// DeleteTopic's response.
        pub struct DeleteResponse: 16 {
            /// The id that the topic had.
            0 topic_id: [u8; 16],
        }
    }

    archived! {
        /// AlterTopic's request.
        pub struct AlterRequest: 29 {
            /// The name, UTF-8.
            0 name: Vec<u8>,
            /// Keys that get a value, at most `CONFIG_ENTRIES_MAX`.
            8 set: Vec<ConfigEntry>,
            /// Keys that go back to their default, at most `CONFIG_ENTRIES_MAX`.
            16 removed: Vec<ConfigKey>,
            /// Partitions after the change; 0 for as many as there are.
            24 partitions: u32,
            /// [`FLAG_VALIDATE_ONLY`].
            28 flags: u8,
        }
    }

    archived! {
        /// AlterTopic's response.
        pub struct AlterResponse: 20 {
            /// The topic's id.
            0 topic_id: [u8; 16],
            /// Its partitions after the change.
            16 partitions: u32,
        }
    }

    archived! {
        /// DescribeTopic's request.
        pub struct DescribeRequest: 9 {
            /// The name, UTF-8.
            0 name: Vec<u8>,
            /// None is defined: 0.
            8 flags: u8,
        }
    }

    archived! {
        /// DescribeTopic's response.
        pub struct DescribeResponse: 36 {
            /// The topic's id.
            0 topic_id: [u8; 16],
            /// [`FLAG_INTERNAL`].
            16 flags: u8,
            /// What an ack means: a number of [`Durability`](super::Durability).
            17 durability: u8,
            /// Replicas of each partition.
            18 replication_factor: u16,
            /// Its partitions in ascending order of index.
            20 partitions: Vec<Partition>,
            /// Every key of a topic with its effective value, by name.
            28 configs: Vec<Config>,
        }
    }

    archived! {
        /// A partition and what it holds.
        pub struct Partition: 56 {
            /// Its number in the topic, from 0.
            0 index: u32,
            /// Its identity.
            4 partition_uid: u64,
            /// The shard that owns it.
            12 shard: u16,
            /// 0, or why the rest is zero.
            14 error: u16,
            /// Its leader epoch.
            16 leader_epoch: u32,
            /// Its log start.
            20 log_start: u64,
            /// Its high watermark.
            28 high_watermark: u64,
            /// Its log end.
            36 log_end: u64,
            /// Bytes of its record batches.
            44 bytes: u64,
            /// Its segments.
            52 segments: u32,
        }
    }

    archived! {
        /// A configuration key, its effective value and where that comes from.
        pub struct Config: 17 {
            /// The key, UTF-8.
            0 key: Vec<u8>,
            /// The value as text, UTF-8.
            8 value: Vec<u8>,
            /// [`ORIGIN_DEFAULT`] or [`ORIGIN_TOPIC`].
            16 origin: u8,
        }
    }

    impl Check for ArchivedCreateRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_flags(self.flags, FLAG_VALIDATE_ONLY)?;
            topic_name(&self.name)?;
            check_range("partitions", self.partitions.to_native(), 0, TOPIC_PARTITIONS_MAX)?;
            check_entries(&self.configs)?;
            check_unique(self.configs.iter().map(|entry| &entry.key[..]))
        }
    }

    impl Check for ArchivedDeleteRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_flags(self.flags, FLAG_VALIDATE_ONLY)?;
            topic_name(&self.name).map(|_| ())
        }
    }

    impl Check for ArchivedAlterRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_flags(self.flags, FLAG_VALIDATE_ONLY)?;
            topic_name(&self.name)?;
            check_range("partitions", self.partitions.to_native(), 0, TOPIC_PARTITIONS_MAX)?;
            check_entries(&self.set)?;
            check_count("configs", self.removed.len(), CONFIG_ENTRIES_MAX)?;
            self.removed.iter().try_for_each(|removed| check_key(&removed.key))?;
            let set = self.set.iter().map(|entry| &entry.key[..]);
            check_unique(set.chain(self.removed.iter().map(|removed| &removed.key[..])))
        }
    }

    impl Check for ArchivedDescribeRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_flags(self.flags, 0)?;
            topic_name(&self.name).map(|_| ())
        }
    }

    fn check_entries(entries: &[ArchivedConfigEntry]) -> Result<(), BodyError> {
        check_count("configs", entries.len(), CONFIG_ENTRIES_MAX)?;
        entries.iter().try_for_each(|entry| {
            check_key(&entry.key)?;
            check_text("config value", &entry.value, CONFIG_VALUE_BYTES_MAX)
        })
    }

    fn check_key(key: &[u8]) -> Result<(), BodyError> {
        check_text("config key", key, CONFIG_KEY_BYTES_MAX)
    }

    fn check_text(what: &'static str, bytes: &[u8], max: usize) -> Result<(), BodyError> {
        if bytes.len() > max {
            return Err(BodyError::TooLong { what, max, found: bytes.len() });
        }
        text(what, bytes).map(|_| ())
    }

    /// At most 2 × 256 keys: 131,000 comparisons, most of them of lengths, without an allocation.
    fn check_unique<'a>(keys: impl Iterator<Item = &'a [u8]> + Clone) -> Result<(), BodyError> {
        let mut rest = keys;
        while let Some(key) = rest.next() {
            if rest.clone().any(|other| other == key) {
                return Err(BodyError::Duplicate { what: "config key" });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{encode, open};
    use crate::error::ErrorCode;
    use crate::limits::{CONFIG_ENTRIES_MAX, TOPIC_PARTITIONS_MAX};

    #[test]
    fn names_that_kafka_allows_are_allowed_and_no_others() {
        for name in ["a", "orders.v1", "A_b-9", "...", "__catalog", &"x".repeat(249)] {
            assert_eq!(check_topic_name(name), Ok(()), "{name}");
        }
        assert_eq!(check_topic_name(""), Err(TopicNameError::Empty));
        assert_eq!(check_topic_name(&"x".repeat(250)), Err(TopicNameError::TooLong { max: 249, found: 250 }));
        assert_eq!(check_topic_name("."), Err(TopicNameError::Dots));
        assert_eq!(check_topic_name(".."), Err(TopicNameError::Dots));
        assert_eq!(check_topic_name("a/b"), Err(TopicNameError::Character { at: 1, found: '/' }));
        assert_eq!(check_topic_name("größe"), Err(TopicNameError::Character { at: 2, found: 'ö' }));
        assert!(is_internal("__catalog") && !is_internal("_catalog"));
    }

    #[test]
    fn every_durability_reads_back_from_its_number() {
        for durability in [Durability::Fsync, Durability::Written] {
            assert_eq!(Durability::from_code(durability.code()), Some(durability));
        }
        assert_eq!(Durability::from_code(2), None);
    }

    fn entry(key: &str, value: &str) -> v1::ConfigEntry {
        v1::ConfigEntry { key: key.as_bytes().to_vec(), value: value.as_bytes().to_vec() }
    }

    fn create() -> v1::CreateRequest {
        v1::CreateRequest {
            name: b"orders".to_vec(),
            configs: vec![entry("durability", "fsync")],
            ..Default::default()
        }
    }

    fn check_create(request: &v1::CreateRequest) -> Result<(), ErrorCode> {
        let mut body = Vec::new();
        encode(request, &mut body);
        open::<v1::CreateRequest>(&body).map(|_| ()).map_err(|error| error.code())
    }

    #[test]
    fn create_requests_are_checked() {
        assert_eq!(check_create(&create()), Ok(()));
        assert_eq!(check_create(&v1::CreateRequest { partitions: TOPIC_PARTITIONS_MAX, ..create() }), Ok(()));
        let refused = [
            (v1::CreateRequest { name: b"a b".to_vec(), ..create() }, ErrorCode::InvalidTopicException),
            (v1::CreateRequest { name: vec![0xff], ..create() }, ErrorCode::InvalidTopicException),
            (v1::CreateRequest { partitions: TOPIC_PARTITIONS_MAX + 1, ..create() }, ErrorCode::InvalidPartitions),
            (v1::CreateRequest { flags: 2, ..create() }, ErrorCode::InvalidRequest),
            (
                v1::CreateRequest { configs: vec![entry("k", "1"), entry("k", "2")], ..create() },
                ErrorCode::InvalidConfig,
            ),
            (v1::CreateRequest { configs: vec![entry(&"k".repeat(256), "")], ..create() }, ErrorCode::InvalidConfig),
            (v1::CreateRequest { configs: vec![entry("k", &"v".repeat(4_097))], ..create() }, ErrorCode::InvalidConfig),
        ];
        for (request, code) in refused {
            assert_eq!(check_create(&request), Err(code), "{request:?}");
        }
        let configs: Vec<_> = (0..=CONFIG_ENTRIES_MAX).map(|index| entry(&index.to_string(), "")).collect();
        assert_eq!(check_create(&v1::CreateRequest { configs, ..create() }), Err(ErrorCode::InvalidConfig));
    }

    #[test]
    fn alter_requests_refuse_a_key_that_is_set_and_removed() {
        let check = |removed: &str| {
            let removed = vec![v1::ConfigKey { key: removed.as_bytes().to_vec() }];
            let set = vec![entry("durability", "written")];
            let mut body = Vec::new();
            encode(&v1::AlterRequest { name: b"t".to_vec(), set, removed, ..Default::default() }, &mut body);
            open::<v1::AlterRequest>(&body).map(|_| ())
        };
        assert_eq!(check("segment.bytes"), Ok(()));
        assert_eq!(check("durability"), Err(BodyError::Duplicate { what: "config key" }));
    }

    #[test]
    fn delete_and_describe_check_name_and_flags() {
        let mut body = Vec::new();
        encode(&v1::DeleteRequest { name: b"t".to_vec(), flags: v1::FLAG_VALIDATE_ONLY }, &mut body);
        assert!(open::<v1::DeleteRequest>(&body).is_ok());
        // The two have one layout: what one allows, the other refuses.
        assert_eq!(
            open::<v1::DescribeRequest>(&body).unwrap_err(),
            BodyError::UnknownFlags { known: 0, found: v1::FLAG_VALIDATE_ONLY }
        );
    }
}
