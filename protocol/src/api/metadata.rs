//! Metadata, API 1: owns its bodies; knows nothing of who leads what.

/// Version 1.
pub mod v1 {
    use crate::api::body::{BodyError, Check, check_count, check_flags};
    use crate::api::topics::topic_name;
    use crate::limits::REQUEST_TOPICS_MAX;

    /// Request flags bit 0: all topics; `topics` is empty then.
    pub const FLAG_ALL_TOPICS: u8 = 1;
    /// Request flags bit 1: internal topics too.
    pub const FLAG_INCLUDE_INTERNAL: u8 = 2;
    /// Topic flags bit 0: the topic is internal.
    pub const FLAG_INTERNAL: u8 = 1;

    archived! {
        /// Asks for brokers, and for the topics named.
        pub struct Request: 9 {
            /// The topics, at most `REQUEST_TOPICS_MAX`.
            0 topics: Vec<TopicName>,
            /// [`FLAG_ALL_TOPICS`], [`FLAG_INCLUDE_INTERNAL`].
            8 flags: u8,
        }
    }

    archived! {
        /// Names a topic.
        pub struct TopicName: 8 {
            /// The name, UTF-8.
            0 name: Vec<u8>,
        }
    }

    archived! {
        /// The cluster as the broker sees it.
        pub struct Response: 36 {
            /// The cluster's id.
            0 cluster_id: [u8; 16],
            /// The shard that owns the catalog.
            16 controller_shard: u16,
            /// Every broker that can be reached.
            18 brokers: Vec<Broker>,
            /// Shards of the answering broker.
            26 shards: u16,
            /// One entry for each topic named, in that order, or all of them by name.
            28 topics: Vec<Topic>,
        }
    }

    archived! {
        /// A broker and where it listens.
        pub struct Broker: 14 {
            /// Its id.
            0 broker_id: u32,
            /// The host that clients connect to, UTF-8.
            4 host: Vec<u8>,
            /// The port.
            12 port: u16,
        }
    }

    archived! {
        /// A topic.
        pub struct Topic: 36 {
            /// 0, or why the rest is empty.
            0 error: u16,
            /// Its id; zero with an error.
            2 topic_id: [u8; 16],
            /// Its name, UTF-8.
            18 name: Vec<u8>,
            /// [`FLAG_INTERNAL`].
            26 flags: u8,
            /// What an ack means: a number of [`Durability`](crate::api::topics::Durability).
            27 durability: u8,
            /// Its partitions in ascending order of index.
            28 partitions: Vec<Partition>,
        }
    }

    archived! {
        /// A partition and its owner.
        pub struct Partition: 24 {
            /// Its number in the topic, from 0.
            0 index: u32,
            /// What produce and fetch requests name it by.
            4 partition_uid: u64,
            /// The shard that owns it.
            12 shard: u16,
            /// The broker that leads it.
            14 broker_id: u32,
            /// Its leader epoch.
            18 leader_epoch: u32,
            /// 0, or why it can't be used at the moment.
            22 error: u16,
        }
    }

    impl Check for ArchivedRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_flags(self.flags, FLAG_ALL_TOPICS | FLAG_INCLUDE_INTERNAL)?;
            check_count("topics", self.topics.len(), REQUEST_TOPICS_MAX)?;
            if self.flags & FLAG_ALL_TOPICS != 0 && !self.topics.is_empty() {
                return Err(BodyError::Contradiction { what: "all topics and named topics" });
            }
            self.topics.iter().try_for_each(|topic| topic_name(&topic.name).map(|_| ()))
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::api::{encode, open};
        use crate::error::ErrorCode;

        fn check(request: &Request) -> Result<(), BodyError> {
            let mut body = Vec::new();
            encode(request, &mut body);
            open::<Request>(&body).map(|_| ())
        }

        #[test]
        fn names_and_all_topics_exclude_each_other() {
            let named = Request { topics: vec![TopicName { name: b"orders".to_vec() }], flags: 0 };
            assert_eq!(check(&named), Ok(()));
            assert_eq!(check(&Request { topics: vec![], flags: 3 }), Ok(()));
            assert!(matches!(check(&Request { flags: 1, ..named }), Err(BodyError::Contradiction { .. })));
        }

        #[test]
        fn counts_flags_and_names_are_checked() {
            let topics = vec![TopicName { name: b"t".to_vec() }; REQUEST_TOPICS_MAX + 1];
            assert_eq!(
                check(&Request { topics, flags: 0 }),
                Err(BodyError::TooMany { what: "topics", max: REQUEST_TOPICS_MAX, found: REQUEST_TOPICS_MAX + 1 })
            );
            assert_eq!(
                check(&Request { topics: vec![], flags: 4 }),
                Err(BodyError::UnknownFlags { known: 3, found: 4 })
            );
            let error = check(&Request { topics: vec![TopicName { name: vec![0xff] }], flags: 0 }).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidTopicException);
        }
    }
}
