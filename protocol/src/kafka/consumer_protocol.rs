//! What consumers of a group tell each other through the coordinator: owns `ConsumerProtocol`'s bytes; assigns nothing.
//!
//! The coordinator passes these bytes on and does not open them (but for the topics of a subscription, to know which
//! offsets are in use). They are Kafka's, so that clients of both protocols can be members of one group.

use super::{Reader, SchemaError, Writer};

/// The protocol type of groups of consumers.
pub const CONSUMER: &str = "consumer";
/// The version that is written: everything below can be read by older clients, which ignore what follows.
const VERSION: i16 = 3;

/// Partitions of one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TopicPartitions {
    /// The topic.
    pub topic: String,
    /// Its partitions.
    pub partitions: Vec<i32>,
}

impl TopicPartitions {
    fn write(writer: Writer, own: &Self) -> Writer {
        writer.text(&own.topic).array_of(own.partitions.iter(), |writer, partition| writer.i32(*partition))
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, SchemaError> {
        let topic = reader.text("topic")?.to_owned();
        let partitions = reader.array_of("partitions", |reader| reader.i32("partition"))?;
        Ok(Self { topic, partitions })
    }
}

/// What a member wants (`ConsumerProtocolSubscription`, versions 0 to 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Topics that it wants to read.
    pub topics: Vec<String>,
    /// What its assignor wants to be known.
    pub user_data: Option<Vec<u8>>,
    /// What it reads and would keep (from version 1 on).
    pub owned: Vec<TopicPartitions>,
    /// In which generation it got that; −1 where it is not known (from version 2 on).
    pub generation: i32,
    /// Where it stands (from version 3 on).
    pub rack: Option<String>,
}

impl Default for Subscription {
    fn default() -> Self {
        Self { topics: Vec::new(), user_data: None, owned: Vec::new(), generation: -1, rack: None }
    }
}

impl Subscription {
    /// Its bytes, version 3.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::default().i16(VERSION);
        let writer = writer.array_of(self.topics.iter(), |writer, topic| writer.text(topic));
        let writer = writer.nullable_bytes(self.user_data.as_deref());
        let writer = writer.array_of(self.owned.iter(), TopicPartitions::write);
        writer.i32(self.generation).nullable_text(self.rack.as_deref()).finish()
    }

    /// The subscription in `bytes`. What newer versions have behind it is ignored.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SchemaError> {
        let mut reader = Reader::new(bytes);
        let version = version_of(&mut reader, "subscription")?;
        let topics = reader.array_of("topics", |reader| reader.text("topic").map(str::to_owned))?;
        let user_data = reader.nullable_bytes("user data")?.map(<[u8]>::to_vec);
        let owned = if version >= 1 { reader.array_of("owned partitions", TopicPartitions::read)? } else { Vec::new() };
        let generation = if version >= 2 { reader.i32("generation")? } else { -1 };
        let rack = if version >= 3 { reader.nullable_text("rack")?.map(str::to_owned) } else { None };
        Ok(Self { topics, user_data, owned, generation, rack })
    }
}

/// What a member gets (`ConsumerProtocolAssignment`, versions 0 to 3, which have the same fields).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// What it reads from now on.
    pub partitions: Vec<TopicPartitions>,
    /// What its assignor wants it to know.
    pub user_data: Option<Vec<u8>>,
}

impl Assignment {
    /// Its bytes, version 3.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::default().i16(VERSION).array_of(self.partitions.iter(), TopicPartitions::write);
        writer.nullable_bytes(self.user_data.as_deref()).finish()
    }

    /// The assignment in `bytes`; no bytes at all are an empty one.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SchemaError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let mut reader = Reader::new(bytes);
        version_of(&mut reader, "assignment")?;
        let partitions = reader.array_of("assigned partitions", TopicPartitions::read)?;
        let user_data = reader.nullable_bytes("user data")?.map(<[u8]>::to_vec);
        Ok(Self { partitions, user_data })
    }
}

/// What Kafka's eager sticky assignor keeps in a subscription's user data (`StickyAssignor`, version 1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StickyUserData {
    /// What the member had.
    pub previous: Vec<TopicPartitions>,
    /// In which generation.
    pub generation: i32,
}

impl StickyUserData {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::default().array_of(self.previous.iter(), TopicPartitions::write);
        writer.i32(self.generation).finish()
    }

    /// What is in `bytes`; version 0 has no generation.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SchemaError> {
        let mut reader = Reader::new(bytes);
        let previous = reader.array_of("previous assignment", TopicPartitions::read)?;
        let generation = if reader.end().is_ok() { -1 } else { reader.i32("generation")? };
        Ok(Self { previous, generation })
    }
}

fn version_of(reader: &mut Reader<'_>, what: &'static str) -> Result<i16, SchemaError> {
    match reader.i16("version")? {
        found @ ..0 => Err(SchemaError::Version { what, found }),
        version => Ok(version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::seeded::Seeded;

    fn subscription() -> Subscription {
        let owned = vec![TopicPartitions { topic: "a".into(), partitions: vec![0, 2] }];
        let (topics, user_data) = (vec!["a".into(), "bc".into()], Some(b"u".to_vec()));
        Subscription { topics, user_data, owned, generation: 5, rack: Some("r".into()) }
    }

    #[test]
    fn a_subscription_has_the_bytes_that_kafka_writes_and_each_older_version_is_read() {
        let (v0, v1) = (
            &b"\x00\x00\x00\x02\x00\x01a\x00\x02bc\x00\x00\x00\x01u"[..],
            &b"\x00\x00\x00\x01\x00\x01a\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x02"[..],
        );
        let bytes = |version: u8, parts: &[&[u8]]| [&[0, version][..], &parts.concat()].concat();
        let all = bytes(3, &[v0, v1, b"\x00\x00\x00\x05", b"\x00\x01r"]);
        assert_eq!(subscription().encode(), all);
        assert_eq!(Subscription::decode(&all), Ok(subscription()));
        let third = Subscription { rack: None, ..subscription() };
        assert_eq!(Subscription::decode(&bytes(2, &[v0, v1, b"\x00\x00\x00\x05"])), Ok(third.clone()));
        let second = Subscription { generation: -1, ..third };
        assert_eq!(Subscription::decode(&bytes(1, &[v0, v1])), Ok(second.clone()));
        assert_eq!(Subscription::decode(&bytes(0, &[v0])), Ok(Subscription { owned: vec![], ..second }));
        let newer = bytes(9, &[&all[2..], b"something new"]);
        assert_eq!(Subscription::decode(&newer), Ok(subscription()));
        assert_eq!(Subscription::decode(b"\xff\xff"), Err(SchemaError::Version { what: "subscription", found: -1 }));
    }

    #[test]
    fn an_assignment_has_the_bytes_that_kafka_writes() {
        let partitions = vec![TopicPartitions { topic: "a".into(), partitions: vec![7] }];
        let assignment = Assignment { partitions: partitions.clone(), user_data: None };
        let bytes = b"\x00\x03\x00\x00\x00\x01\x00\x01a\x00\x00\x00\x01\x00\x00\x00\x07\xff\xff\xff\xff";
        assert_eq!(assignment.encode(), bytes);
        assert_eq!(Assignment::decode(bytes), Ok(assignment));
        assert_eq!(Assignment::decode(b""), Ok(Assignment::default()));
        let sticky = StickyUserData { previous: partitions, generation: 4 };
        assert_eq!(StickyUserData::decode(&sticky.encode()), Ok(sticky.clone()));
        let old = &sticky.encode()[..sticky.encode().len() - 4];
        assert_eq!(StickyUserData::decode(old), Ok(StickyUserData { generation: -1, ..sticky }));
    }

    #[test]
    fn whatever_a_member_sends_is_read_or_refused() {
        let mut seeded = Seeded::new(0x5eed_c0de);
        let valid = subscription().encode();
        for _ in 0..20_000 {
            let mut damaged = valid.clone();
            let at = seeded.below(damaged.len());
            damaged[at] = seeded.next() as u8;
            damaged.truncate(seeded.below(damaged.len() + 1));
            for bytes in [damaged, seeded.bytes(64)] {
                if let Ok(read) = Subscription::decode(&bytes) {
                    assert_eq!(Subscription::decode(&read.encode()), Ok(read));
                }
                if let Ok(read) = Assignment::decode(&bytes) {
                    assert_eq!(Assignment::decode(&read.encode()), Ok(read));
                }
                drop(StickyUserData::decode(&bytes));
            }
        }
    }
}
