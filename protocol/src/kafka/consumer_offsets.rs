//! Keys and values of `__consumer_offsets`: owns their bytes, which are Kafka's; knows no group.
//!
//! Schemas of Kafka's group coordinator: `OffsetCommitKey` 1, `OffsetCommitValue` 3, `GroupMetadataKey` 2,
//! `GroupMetadataValue` 3: what brokers up to 4.x write, and what Burrow, kminion, MirrorMaker 2 and `kafka-dump-log`
//! read. A record without a value is a tombstone.

use super::{Reader, SchemaError, Writer};

/// Partitions of `__consumer_offsets`, for ever: a group's partition hangs on it.
pub const OFFSETS_PARTITIONS: u32 = 50;
const OFFSET_KEY: i16 = 1;
const OFFSET_VALUE: i16 = 3;
const GROUP_KEY: i16 = 2;
const GROUP_VALUE: i16 = 3;

/// The partition of `__consumer_offsets` that a group's records are in: Java's hash of its name, made positive as
/// Kafka does it, modulo 50.
#[must_use]
pub fn partition_of(group: &str) -> u32 {
    let hash = group.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    // `Utils.abs`: the one number without a positive counterpart becomes 0.
    hash.checked_abs().unwrap_or(0).unsigned_abs() % OFFSETS_PARTITIONS
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    /// The committed offset of a partition.
    Offset {
        /// The group.
        group: &'a str,
        /// The topic.
        topic: &'a str,
        /// The partition.
        partition: i32,
    },
    /// The group itself.
    Group {
        /// The group.
        group: &'a str,
    },
}

impl<'a> Key<'a> {
    /// The bytes of the key.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Offset { group, topic, partition } => {
                Writer::default().i16(OFFSET_KEY).text(group).text(topic).i32(*partition).finish()
            }
            Self::Group { group } => Writer::default().i16(GROUP_KEY).text(group).finish(),
        }
    }

    /// The key in `bytes`.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, SchemaError> {
        let mut reader = Reader::new(bytes);
        let key = match reader.i16("key version")? {
            // Version 0 has the same fields.
            0 | OFFSET_KEY => Self::Offset {
                group: reader.text("group")?,
                topic: reader.text("topic")?,
                partition: reader.i32("partition")?,
            },
            GROUP_KEY => Self::Group { group: reader.text("group")? },
            found => return Err(SchemaError::Version { what: "key of __consumer_offsets", found }),
        };
        reader.end()?;
        Ok(key)
    }
}

/// A committed offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetValue<'a> {
    /// The next record that the group wants.
    pub offset: i64,
    /// The leader epoch of the record before; −1 where the consumer did not say.
    pub leader_epoch: i32,
    /// What the consumer wanted kept with it.
    pub metadata: &'a str,
    /// When it was committed, in milliseconds since 1970.
    pub commit_timestamp: i64,
}

impl<'a> OffsetValue<'a> {
    /// The bytes of the value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::default().i16(OFFSET_VALUE).i64(self.offset).i32(self.leader_epoch);
        writer.text(self.metadata).i64(self.commit_timestamp).finish()
    }

    /// The value in `bytes`.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, SchemaError> {
        let mut reader = Reader::new(bytes);
        let version = reader.i16("value version")?;
        if version != OFFSET_VALUE {
            return Err(SchemaError::Version { what: "committed offset", found: version });
        }
        let value = Self {
            offset: reader.i64("offset")?,
            leader_epoch: reader.i32("leader epoch")?,
            metadata: reader.text("metadata")?,
            commit_timestamp: reader.i64("commit timestamp")?,
        };
        reader.end()?;
        Ok(value)
    }
}

/// A group whose last generation is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupValue<'a> {
    /// What its members are, such as `consumer`; empty where it never had any.
    pub protocol_type: &'a str,
    /// Its generation.
    pub generation: i32,
    /// The assignment protocol that its members have agreed on.
    pub protocol: Option<&'a str>,
    /// The member that assigns.
    pub leader: Option<&'a str>,
    /// Since when it is as it is, in milliseconds since 1970; −1 where that is not known.
    pub current_state_timestamp: i64,
    /// Its members.
    pub members: Vec<MemberValue<'a>>,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberValue<'a> {
    /// Its id, from the coordinator.
    pub member_id: &'a str,
    /// Its own name, where it is a static member.
    pub instance_id: Option<&'a str>,
    /// How its client calls itself.
    pub client_id: &'a str,
    /// Where its client is.
    pub client_host: &'a str,
    /// How long the others wait for it in a rebalance, in milliseconds.
    pub rebalance_timeout_ms: i32,
    /// How long it may be silent, in milliseconds.
    pub session_timeout_ms: i32,
    /// What it has told the leader.
    pub subscription: &'a [u8],
    /// What the leader has told it.
    pub assignment: &'a [u8],
}

impl<'a> GroupValue<'a> {
    /// The bytes of the value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::default().i16(GROUP_VALUE).text(self.protocol_type).i32(self.generation);
        let writer = writer.nullable_text(self.protocol).nullable_text(self.leader).i64(self.current_state_timestamp);
        let member = |writer: Writer, member: &MemberValue<'_>| {
            let writer = writer.text(member.member_id).nullable_text(member.instance_id);
            let writer = writer.text(member.client_id).text(member.client_host);
            let writer = writer.i32(member.rebalance_timeout_ms).i32(member.session_timeout_ms);
            writer.bytes(member.subscription).bytes(member.assignment)
        };
        writer.array_of(self.members.iter(), member).finish()
    }

    /// The value in `bytes`.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, SchemaError> {
        let mut reader = Reader::new(bytes);
        let version = reader.i16("value version")?;
        if version != GROUP_VALUE {
            return Err(SchemaError::Version { what: "group metadata", found: version });
        }
        let value = Self {
            protocol_type: reader.text("protocol type")?,
            generation: reader.i32("generation")?,
            protocol: reader.nullable_text("protocol")?,
            leader: reader.nullable_text("leader")?,
            current_state_timestamp: reader.i64("state timestamp")?,
            members: reader.array_of("members", |reader| {
                Ok(MemberValue {
                    member_id: reader.text("member id")?,
                    instance_id: reader.nullable_text("instance id")?,
                    client_id: reader.text("client id")?,
                    client_host: reader.text("client host")?,
                    rebalance_timeout_ms: reader.i32("rebalance timeout")?,
                    session_timeout_ms: reader.i32("session timeout")?,
                    subscription: reader.bytes("subscription")?,
                    assignment: reader.bytes("assignment")?,
                })
            })?,
        };
        reader.end()?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::seeded::Seeded;

    #[test]
    fn a_group_lies_in_the_partition_that_kafka_gives_it() {
        // Java's own: "test".hashCode() is 3556498, and "polygenelubricants" hashes to Integer.MIN_VALUE.
        for (group, partition) in
            [("test", 48), ("polygenelubricants", 0), ("", 0), ("a", 47), ("billing", 9), ("größe", 7), ("🚀", 27)]
        {
            assert_eq!(partition_of(group), partition, "{group:?}");
        }
    }

    #[test]
    fn keys_have_the_bytes_that_kafka_writes() {
        let offset = Key::Offset { group: "g1", topic: "orders", partition: 258 };
        let group = Key::Group { group: "g1" };
        let offset_bytes = b"\x00\x01\x00\x02g1\x00\x06orders\x00\x00\x01\x02";
        let group_bytes = b"\x00\x02\x00\x02g1";
        assert_eq!((offset.encode(), group.encode()), (offset_bytes.to_vec(), group_bytes.to_vec()));
        assert_eq!((Key::decode(offset_bytes), Key::decode(group_bytes)), (Ok(offset), Ok(group)));
        let newer = Key::decode(b"\x00\x03\x00\x02g1");
        assert_eq!(newer, Err(SchemaError::Version { what: "key of __consumer_offsets", found: 3 }));
    }

    #[test]
    fn a_committed_offset_has_the_bytes_that_kafka_writes() {
        let value = OffsetValue { offset: 42, leader_epoch: 7, metadata: "note", commit_timestamp: 0x0102_0304 };
        let bytes = b"\x00\x03\x00\x00\x00\x00\x00\x00\x00\x2a\x00\x00\x00\x07\x00\x04note\
                      \x00\x00\x00\x00\x01\x02\x03\x04";
        assert_eq!(value.encode(), bytes);
        assert_eq!(OffsetValue::decode(bytes), Ok(value));
    }

    fn group() -> GroupValue<'static> {
        let member = MemberValue {
            member_id: "c-1",
            instance_id: Some("i"),
            client_id: "c",
            client_host: "/127.0.0.1",
            rebalance_timeout_ms: 300_000,
            session_timeout_ms: 45_000,
            subscription: b"sub",
            assignment: b"as",
        };
        let dynamic = MemberValue { member_id: "d", instance_id: None, assignment: b"", ..member.clone() };
        GroupValue {
            protocol_type: "consumer",
            generation: 3,
            protocol: Some("range"),
            leader: Some("c-1"),
            current_state_timestamp: 9,
            members: vec![member, dynamic],
        }
    }

    #[test]
    fn a_group_has_the_bytes_that_kafka_writes() {
        let bytes = [
            &b"\x00\x03\x00\x08consumer\x00\x00\x00\x03\x00\x05range\x00\x03c-1\x00\x00\x00\x00\x00\x00\x00\x09"[..],
            b"\x00\x00\x00\x02",
            b"\x00\x03c-1\x00\x01i\x00\x01c\x00\x0a/127.0.0.1\x00\x04\x93\xe0\x00\x00\xaf\xc8",
            b"\x00\x00\x00\x03sub\x00\x00\x00\x02as",
            b"\x00\x01d\xff\xff\x00\x01c\x00\x0a/127.0.0.1\x00\x04\x93\xe0\x00\x00\xaf\xc8",
            b"\x00\x00\x00\x03sub\x00\x00\x00\x00",
        ];
        assert_eq!(group().encode(), bytes.concat());
        assert_eq!(GroupValue::decode(&bytes.concat()), Ok(group()));
        let empty = GroupValue { protocol: None, leader: None, members: vec![], ..group() };
        assert_eq!(GroupValue::decode(&empty.encode()), Ok(empty));
    }

    type Decoder<'a> = (&'a Vec<u8>, fn(&[u8]) -> bool);

    /// Each of `valid` with what tells whether bytes are of its kind.
    fn decoders(valid: &[Vec<u8>; 3]) -> [Decoder<'_>; 3] {
        [
            (&valid[0], |bytes| Key::decode(bytes).is_ok()),
            (&valid[1], |bytes| OffsetValue::decode(bytes).is_ok()),
            (&valid[2], |bytes| GroupValue::decode(bytes).is_ok()),
        ]
    }

    #[test]
    fn decoders_are_total_on_shortened_and_random_bytes() {
        let mut seeded = Seeded::new(0x5eed_0ff5);
        let valid = [
            Key::Offset { group: "g", topic: "t", partition: 1 }.encode(),
            OffsetValue { offset: 1, leader_epoch: -1, metadata: "m", commit_timestamp: 2 }.encode(),
            group().encode(),
        ];
        for bytes in &valid {
            for end in 0..bytes.len() {
                let read = decoders(&valid).map(|(own, decodes)| own == bytes && decodes(&bytes[..end]));
                assert_eq!(read, [false; 3], "{end} bytes of {bytes:?}");
            }
            for _ in 0..2_000 {
                let mut damaged = bytes.clone();
                let at = seeded.below(damaged.len());
                damaged[at] = seeded.next() as u8;
                for bytes in [damaged, seeded.bytes(64)] {
                    if let Ok(key) = Key::decode(&bytes) {
                        assert!(Key::decode(&key.encode()).is_ok());
                    }
                    if let Ok(value) = OffsetValue::decode(&bytes) {
                        assert_eq!(value.encode(), bytes);
                    }
                    if let Ok(value) = GroupValue::decode(&bytes) {
                        assert_eq!(value.encode(), bytes);
                    }
                }
            }
        }
    }
}
