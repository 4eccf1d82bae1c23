//! OffsetCommit, OffsetFetch and OffsetDelete, APIs 35, 36 and 40: owns their bodies; knows no group.

/// Version 1.
pub mod v1 {
    use crate::api::body::{BodyError, Check, check_count, check_flags, check_range, check_text, text};
    use crate::api::members::v1::check_member;
    use crate::api::topics::topic_name;
    use crate::limits::{GROUP_NAME_BYTES_MAX, OFFSET_PARTITIONS_MAX, OFFSETS_MAX, REQUEST_TOPICS_MAX};

    /// As a generation: the request comes from no member.
    pub const NO_GENERATION: i32 = -1;
    /// As a leader epoch: it is not known.
    pub const NO_LEADER_EPOCH: i32 = -1;
    /// As an offset: none is committed.
    pub const NO_OFFSET: u64 = u64::MAX;
    /// Flags bit 0 of [`FetchRequest`]: all offsets of the group; `topics` is empty then.
    pub const FLAG_ALL: u8 = 1;

    archived! {
        /// Commits offsets of a group. The answer comes when they are durable.
        pub struct CommitRequest: 36 {
            /// The group, UTF-8.
            0 group: Vec<u8>,
            /// The generation; −1 for someone who is no member, while the group has none.
            8 generation: i32,
            /// The member; empty for someone who is none.
            12 member_id: Vec<u8>,
            /// Its own name, where it is a static member; else empty.
            20 instance_id: Vec<u8>,
            /// The offsets, at most 100,000 partitions in all.
            28 topics: Vec<CommitTopic>,
        }
    }

    archived! {
        /// Offsets of one topic.
        pub struct CommitTopic: 16 {
            /// The topic, UTF-8.
            0 name: Vec<u8>,
            /// The offsets.
            8 partitions: Vec<CommitPartition>,
        }
    }

    archived! {
        /// The offset of one partition.
        pub struct CommitPartition: 24 {
            /// The partition's number in the topic.
            0 index: u32,
            /// The next record that the group wants: 0 to 2⁶³ − 1.
            4 offset: u64,
            /// The leader epoch of the record before; −1 where it is not known.
            12 leader_epoch: i32,
            /// A text that is kept with the offset, UTF-8.
            16 metadata: Vec<u8>,
        }
    }

    archived! {
        /// What became of each partition, in the order of the request.
        pub struct ResultsResponse: 8 {
            /// The topics.
            0 topics: Vec<TopicResults>,
        }
    }

    archived! {
        /// Partitions of one topic.
        pub struct TopicResults: 16 {
            /// The topic.
            0 name: Vec<u8>,
            /// Its partitions.
            8 partitions: Vec<PartitionResult>,
        }
    }

    archived! {
        /// What became of one partition.
        pub struct PartitionResult: 6 {
            /// The partition's number in the topic.
            0 index: u32,
            /// 0, or why it was not done.
            4 error: u16,
        }
    }

    archived! {
        /// Asks for committed offsets.
        pub struct FetchRequest: 17 {
            /// The group, UTF-8.
            0 group: Vec<u8>,
            /// The partitions that are asked for, at most 100,000 in all.
            8 topics: Vec<TopicPartitions>,
            /// Bit 0: all offsets of the group; `topics` is empty then.
            16 flags: u8,
        }
    }

    archived! {
        /// Partitions of one topic.
        pub struct TopicPartitions: 16 {
            /// The topic, UTF-8.
            0 name: Vec<u8>,
            /// Numbers of partitions in the topic.
            8 partitions: Vec<u32>,
        }
    }

    archived! {
        /// Committed offsets.
        pub struct FetchResponse: 8 {
            /// The topics: those of the request in its order, or all by name.
            0 topics: Vec<TopicOffsets>,
        }
    }

    archived! {
        /// Committed offsets of one topic.
        pub struct TopicOffsets: 16 {
            /// The topic.
            0 name: Vec<u8>,
            /// Its partitions.
            8 partitions: Vec<PartitionOffset>,
        }
    }

    archived! {
        /// The committed offset of one partition.
        pub struct PartitionOffset: 32 {
            /// The partition's number in the topic.
            0 index: u32,
            /// The offset; 2⁶⁴ − 1 where none is committed, which is no error.
            4 offset: u64,
            /// The leader epoch that came with it; −1 for none.
            12 leader_epoch: i32,
            /// The text that came with it.
            16 metadata: Vec<u8>,
            /// When it was committed, in milliseconds; −1 where none is.
            24 commit_timestamp: i64,
        }
    }

    archived! {
        /// Forgets offsets that no member of the group uses. Answered with a `ResultsResponse`.
        pub struct DeleteRequest: 16 {
            /// The group, UTF-8.
            0 group: Vec<u8>,
            /// The partitions, at most 100,000 in all.
            8 topics: Vec<TopicPartitions>,
        }
    }

    impl Check for ArchivedCommitRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_member(&self.group, &self.member_id, &self.instance_id)?;
            check_count("topics", self.topics.len(), REQUEST_TOPICS_MAX)?;
            let count = self.topics.iter().map(|topic| topic.partitions.len()).sum();
            check_count("committed partitions", count, OFFSET_PARTITIONS_MAX)?;
            for topic in self.topics.iter() {
                topic_name(&topic.name)?;
                for partition in topic.partitions.iter() {
                    check_range("partition", partition.index.to_native(), 0, i32::MAX)?;
                    check_range("committed offset", partition.offset.to_native(), 0, OFFSETS_MAX)?;
                    check_text("offset metadata", &partition.metadata, i16::MAX as usize)?;
                }
            }
            Ok(())
        }
    }

    impl Check for ArchivedFetchRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_text("group", &self.group, GROUP_NAME_BYTES_MAX)?;
            check_flags(self.flags, FLAG_ALL)?;
            if self.flags & FLAG_ALL != 0 && !self.topics.is_empty() {
                return Err(BodyError::Contradiction { what: "all offsets and some topics" });
            }
            check_topics(&self.topics)
        }
    }

    impl Check for ArchivedDeleteRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_text("group", &self.group, GROUP_NAME_BYTES_MAX)?;
            check_topics(&self.topics)
        }
    }

    fn check_topics(topics: &[ArchivedTopicPartitions]) -> Result<(), BodyError> {
        check_count("topics", topics.len(), REQUEST_TOPICS_MAX)?;
        let count = topics.iter().map(|topic| topic.partitions.len()).sum();
        check_count("partitions", count, OFFSET_PARTITIONS_MAX)?;
        topics.iter().try_for_each(|topic| text("topic name", &topic.name).map(|_| ()))
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::api::{encode, open};

        #[test]
        fn a_commit_is_checked_as_a_whole_before_any_of_it_is_done() {
            let check = |change: &dyn Fn(&mut CommitPartition)| {
                let mut partition = CommitPartition::default();
                change(&mut partition);
                let topic = CommitTopic { name: b"t".to_vec(), partitions: vec![Default::default(), partition] };
                let request = CommitRequest { group: b"g".to_vec(), topics: vec![topic], ..Default::default() };
                let mut body = Vec::new();
                encode(&request, &mut body);
                open::<CommitRequest>(&body).map(|_| ())
            };
            assert_eq!(check(&|_| ()), Ok(()));
            assert_eq!(check(&|partition| partition.offset = OFFSETS_MAX), Ok(()));
            let found = check(&|partition| partition.offset = OFFSETS_MAX + 1);
            assert!(matches!(found, Err(BodyError::OutOfRange { what: "committed offset", .. })), "{found:?}");
            let found = check(&|partition| partition.metadata = vec![b'm'; 32_768]);
            assert!(matches!(found, Err(BodyError::TooLong { what: "offset metadata", .. })), "{found:?}");
            let found = check(&|partition| partition.index = 1 << 31);
            assert!(matches!(found, Err(BodyError::OutOfRange { what: "partition", .. })), "{found:?}");
        }

        #[test]
        fn all_offsets_and_some_of_them_exclude_each_other() {
            let topics = vec![TopicPartitions { name: b"t".to_vec(), partitions: vec![0] }];
            let mut body = Vec::new();
            encode(&FetchRequest { group: b"g".to_vec(), topics, flags: FLAG_ALL }, &mut body);
            assert!(matches!(open::<FetchRequest>(&body), Err(BodyError::Contradiction { .. })));
        }
    }
}
