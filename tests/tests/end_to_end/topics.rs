//! Topics as clients see them: made, changed, described, deleted; knows no log.

use crate::{connect, connect_with_topic, read, run};
use coulee_client::{AdminError, Client, Durability, ErrorCode, NewTopic, Record, Start, TopicChange};
use coulee_tests::broker::{Broker, Options};

/// What a refused change is refused with.
#[track_caller]
fn code<T: std::fmt::Debug>(refused: Result<T, AdminError>) -> ErrorCode {
    let error = refused.unwrap_err();
    error.code().unwrap_or_else(|| panic!("{error}"))
}

async fn names(client: &Client) -> Vec<(String, u32)> {
    let topics = client.topics(false).await.unwrap();
    topics.iter().map(|topic| (topic.name.clone(), topic.partition_count())).collect()
}

#[test]
fn a_topic_is_seen_by_every_client_as_soon_as_it_is_made_and_after_a_restart() {
    let broker = Broker::start();
    let made = run(async {
        let client = connect(&broker).await;
        let other = connect(&broker).await;
        let new = NewTopic::new("t").partitions(3).config("durability", "written").config("segment.bytes", "1048576");
        let made = client.create_topic(new).await.unwrap();
        client.create_topic(NewTopic::new("by-default")).await.unwrap();
        assert_eq!(made.partitions, 3);
        assert_eq!(names(&other).await, [("by-default".into(), 1), ("t".into(), 3)]);
        made
    });
    let broker = Broker::start_on(broker.stop(), &Options::default());
    run(async {
        let client = connect(&broker).await;
        assert_eq!(names(&client).await, [("by-default".into(), 1), ("t".into(), 3)]);
        let described = client.describe_topic("t").await.unwrap();
        assert_eq!((described.topic_id, described.durability), (made.topic_id, Some(Durability::Written)));
        let set: Vec<_> = described.configs.iter().filter(|config| config.is_set).collect();
        let set: Vec<_> = set.iter().map(|config| (config.key.as_str(), config.value.as_str())).collect();
        assert_eq!(set, [("durability", "written"), ("segment.bytes", "1048576")]);
        assert!(described.partitions.iter().all(|partition| partition.error == 0 && partition.log_end == 0));
        let internal = client.topics(true).await.unwrap();
        assert!(internal.iter().any(|topic| topic.is_internal && topic.name == "__catalog"), "{internal:?}");
    });
}

#[test]
fn what_cannot_be_a_topic_is_refused_and_changes_nothing() {
    let broker = Broker::start();
    run(async {
        let client = connect_with_topic(&broker, 2).await;
        let create = async |topic: NewTopic| code(client.create_topic(topic).await);
        assert_eq!(create(NewTopic::new("t")).await, ErrorCode::TopicAlreadyExists);
        assert_eq!(create(NewTopic::new("a b")).await, ErrorCode::InvalidTopicException);
        assert_eq!(create(NewTopic::new("__own")).await, ErrorCode::InvalidTopicException);
        assert_eq!(create(NewTopic::new("u").partitions(10_001)).await, ErrorCode::InvalidPartitions);
        assert_eq!(create(NewTopic::new("u").config("durability", "often")).await, ErrorCode::InvalidConfig);
        assert_eq!(create(NewTopic::new("u").config("durabillity", "fsync")).await, ErrorCode::InvalidConfig);
        let alter = async |change: TopicChange| code(client.alter_topic(change).await);
        assert_eq!(alter(TopicChange::new("t").partitions(1)).await, ErrorCode::InvalidPartitions);
        assert_eq!(alter(TopicChange::new("t").set("segment.bytes", "1")).await, ErrorCode::InvalidConfig);
        assert_eq!(alter(TopicChange::new("none").partitions(1)).await, ErrorCode::UnknownTopicOrPartition);
        assert_eq!(code(client.delete_topic("none").await), ErrorCode::UnknownTopicOrPartition);
        assert_eq!(code(client.delete_topic("__catalog").await), ErrorCode::InvalidTopicException);
        assert_eq!(code(client.describe_topic("none").await), ErrorCode::UnknownTopicOrPartition);
        let validated = client.create_topic(NewTopic::new("u").partitions(4).validate_only()).await.unwrap();
        assert_eq!(validated.partitions, 4);
        assert_eq!(names(&client).await, [("t".into(), 2)]);
    });
}

#[test]
fn a_topic_gets_more_partitions_and_other_settings_while_it_is_used() {
    let broker = Broker::start();
    run(async {
        let client = connect_with_topic(&broker, 1).await;
        let producer = client.producer("t").build().await.unwrap();
        producer.send(Record::new(b"a")).await.unwrap().await.unwrap();
        let change = TopicChange::new("t").partitions(3).set("max.message.bytes", "2048");
        assert_eq!(client.alter_topic(change).await.unwrap().partitions, 3);
        let wider = client.producer("t").build().await.unwrap();
        wider.send(Record::new(b"b").partition(2)).await.unwrap().await.unwrap();
        let refused = wider.send(Record::new(&[0; 4_096])).await.unwrap().await.unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::MessageTooLarge));
        assert!(!refused.may_be_written());
        client.alter_topic(TopicChange::new("t").remove("max.message.bytes")).await.unwrap();
        wider.send(Record::new(&[0; 4_096])).await.unwrap().await.unwrap();
        assert_eq!(read(&client, Start::Start, 3).await.len(), 3);
    });
}

#[test]
fn a_deleted_topic_is_gone_for_all_and_its_name_is_free() {
    let broker = Broker::start();
    run(async {
        let client = connect_with_topic(&broker, 2).await;
        let other = connect(&broker).await;
        let producer = other.producer("t").build().await.unwrap();
        producer.send(Record::new(b"old").partition(0)).await.unwrap().await.unwrap();
        let old = client.describe_topic("t").await.unwrap();
        assert_eq!(client.delete_topic("t").await.unwrap(), old.topic_id);
        assert!(names(&other).await.is_empty());
        let again = client.create_topic(NewTopic::new("t").partitions(2)).await.unwrap();
        assert_ne!(again.topic_id, old.topic_id);
        // The producer finds the new topic by itself: what it had sent to was not there any more.
        producer.send(Record::new(b"new").partition(0)).await.unwrap().await.unwrap();
        let seen = read(&client, Start::Start, 1).await;
        assert_eq!(seen, [(0, 0, None, Some(b"new".to_vec()))]);
        let uids: Vec<u64> = old.partitions.iter().map(|partition| partition.uid).collect();
        let now = client.describe_topic("t").await.unwrap();
        assert!(now.partitions.iter().all(|partition| !uids.contains(&partition.uid)), "a uid is never used again");
    });
    let folder = broker.stop();
    let kept = std::fs::read_dir(folder.data().join("p")).unwrap().count();
    assert_eq!(kept, 3, "the partitions of the topic, and the catalog's");
}
