//! Consumer groups as clients see them: shared partitions, committed offsets, bad input; knows no coordinator.

use crate::{connect, connect_with_topic, run};
use coulee_client::{
    Assignor, Client, ErrorCode, GroupConsumer, GroupError, GroupState, NewTopic, OffsetReset, Rebalance, Record, Start,
};
use coulee_tests::broker::{Broker, Options};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

fn options() -> Options {
    Options::default().and("group.initial.rebalance.delay=0s")
}

/// Sends so many records with their number as the value, spread over the partitions.
async fn send(client: &Client, topic: &str, numbers: std::ops::Range<u64>) {
    let producer = client.producer(topic).build().await.unwrap();
    let mut deliveries = Vec::new();
    for number in numbers {
        let key = number.to_le_bytes();
        deliveries.push(producer.send(Record::new(number.to_string().as_bytes()).key(&key)).await.unwrap());
    }
    producer.flush().await;
    for delivery in deliveries {
        delivery.await.unwrap();
    }
}

fn member(client: &Client, group: &str) -> GroupConsumer {
    let builder = client.group(group).topic("t").offset_reset(OffsetReset::Earliest).auto_commit(None);
    builder.heartbeat_interval(Duration::from_millis(50)).join()
}

/// The numbers of the records that the next poll brings.
async fn poll(consumer: &mut GroupConsumer) -> Vec<u64> {
    let Some(mut polled) = consumer.poll().await.unwrap() else { return Vec::new() };
    let number = |value: Option<&[u8]>| std::str::from_utf8(value.unwrap()).unwrap().parse().unwrap();
    polled.batch.records().unwrap().map(|record| number(record.value)).collect()
}

/// Polls until so many records have come.
async fn take(consumer: &mut GroupConsumer, count: usize) -> BTreeSet<u64> {
    let mut seen = BTreeSet::new();
    while seen.len() < count {
        for number in poll(consumer).await {
            assert!(seen.insert(number), "record {number} came twice");
        }
    }
    seen
}

/// Polls all of them until every one of them reads `each` partitions.
async fn share(consumers: &mut [GroupConsumer], each: usize) {
    while consumers.iter().any(|consumer| consumer.assignment().len() != each) {
        for consumer in &mut *consumers {
            drop(consumer.poll().await.unwrap());
        }
    }
}

#[test]
fn members_share_the_partitions_and_who_is_left_has_them_all() {
    let broker = Broker::start_with(&options());
    run(async {
        let client = connect_with_topic(&broker, 4).await;
        send(&client, "t", 0..400).await;
        let mut consumers = vec![member(&client, "g"), member(&client, "g")];
        share(&mut consumers, 2).await;
        let owned: BTreeSet<(String, u32)> = consumers.iter().flat_map(GroupConsumer::assignment).collect();
        assert_eq!(owned.len(), 4, "each partition has one reader");
        let described = client.describe_group("g").await.unwrap();
        assert_eq!((described.state, &*described.protocol), (GroupState::Stable, "cooperative-sticky"));
        assert!(described.members.iter().all(|member| member.host == "/127.0.0.1" && member.assignment.len() == 1));
        let (mut first, second) = (consumers.remove(0), consumers.remove(0));
        second.close().await.unwrap();
        share(std::slice::from_mut(&mut first), 4).await;
        // Nothing was committed: all of it comes again.
        for (topic, partition) in first.assignment() {
            first.seek(&topic, partition, 0).unwrap();
        }
        assert_eq!(take(&mut first, 400).await, (0..400).collect());
        first.close().await.unwrap();
    });
}

#[test]
fn a_group_goes_on_where_it_has_committed_whatever_ends_the_broker() {
    let mut broker = Broker::start_with(&options());
    run(async {
        let client = connect_with_topic(&broker, 4).await;
        send(&client, "t", 0..100).await;
    });
    for (round, is_killed) in [true, false, true].into_iter().enumerate() {
        let next = 100 * (round as u64 + 1);
        run(async {
            let client = connect(&broker).await;
            let mut consumer = member(&client, "g");
            assert_eq!(take(&mut consumer, 100).await, (next - 100..next).collect(), "round {round}");
            // Neither closed nor left: the broker ends under it.
            consumer.commit().await.unwrap();
            send(&client, "t", next..next + 100).await;
            if round == 0 {
                let committed = client.committed_offsets("g", &[]).await.unwrap();
                assert_eq!(committed.iter().map(|own| own.offset).sum::<u64>(), 100);
            }
            consumer.close().await.unwrap();
        });
        let folder = if is_killed { broker.kill() } else { broker.stop() };
        broker = Broker::start_on(folder, &options());
    }
    run(async {
        let client = connect(&broker).await;
        let committed = client.committed_offsets("g", &[]).await.unwrap();
        assert_eq!(committed.iter().map(|own| own.offset).sum::<u64>(), 300, "{committed:?}");
        let internal = client.topics(true).await.unwrap();
        let offsets = internal.iter().find(|topic| topic.name == "__consumer_offsets").unwrap();
        assert_eq!((offsets.is_internal, offsets.partition_count()), (true, 50));
    });
}

#[test]
fn members_of_a_killed_broker_go_on_in_their_generation() {
    let broker = Broker::start_with(&options());
    let port = broker.address().to_owned();
    run(async {
        let client = connect_with_topic(&broker, 2).await;
        send(&client, "t", 0..10).await;
        let mut consumer = member(&client, "g");
        assert_eq!(take(&mut consumer, 10).await.len(), 10);
        consumer.commit().await.unwrap();
        let generation = consumer.generation();
        let folder = broker.kill();
        let broker = Broker::start_on(folder, &Options { listen: port, ..options() });
        let other = connect(&broker).await;
        send(&other, "t", 10..20).await;
        assert_eq!(take(&mut consumer, 10).await, (10..20).collect());
        assert_eq!(consumer.generation(), generation, "nobody had to join again");
        consumer.close().await.unwrap();
    });
}

#[test]
fn every_assignor_shares_what_there_is_and_partitions_that_stay_are_never_stopped() {
    let broker = Broker::start_with(&options());
    run(async {
        let client = connect_with_topic(&broker, 6).await;
        for assignor in Assignor::ALL {
            let group = assignor.name();
            let join = |log: mpsc::Sender<Rebalance>| {
                let builder = client.group(group).topic("t").assignors([assignor]);
                let builder = builder.heartbeat_interval(Duration::from_millis(50)).max_wait(Duration::from_millis(20));
                builder.on_rebalance(move |rebalance| drop(log.send(rebalance.clone()))).join()
            };
            let (log, heard) = mpsc::channel();
            let mut consumers = vec![join(log)];
            share(&mut consumers, 6).await;
            heard.try_iter().for_each(drop);
            consumers.push(join(mpsc::channel().0));
            share(&mut consumers, 3).await;
            let stopped: BTreeSet<(String, u32)> = heard
                .try_iter()
                .filter_map(|rebalance| match rebalance {
                    Rebalance::Revoked(places) => Some(places),
                    _ => None,
                })
                .flatten()
                .collect();
            let expected = if assignor.is_cooperative() { 3 } else { 6 };
            assert_eq!(stopped.len(), expected, "{group}: {stopped:?}");
            for consumer in consumers {
                consumer.close().await.unwrap();
            }
        }
    });
}

#[test]
fn a_static_member_that_comes_back_keeps_its_partitions_and_the_other_one_of_its_name_is_fenced_off() {
    let broker = Broker::start_with(&options());
    run(async {
        let client = connect_with_topic(&broker, 2).await;
        let join = || {
            let builder = client.group("g").topic("t").instance_id("one").offset_reset(OffsetReset::Earliest);
            builder.heartbeat_interval(Duration::from_millis(50)).auto_commit(None).join()
        };
        let mut first = join();
        share(std::slice::from_mut(&mut first), 2).await;
        let generation = first.generation();
        let mut second = join();
        share(std::slice::from_mut(&mut second), 2).await;
        assert_eq!(second.generation(), generation, "nobody else had to notice");
        let fenced = loop {
            if let Err(error) = first.poll().await {
                break error;
            }
        };
        assert_eq!(fenced.code(), Some(ErrorCode::FencedInstanceId), "{fenced}");
        second.close().await.unwrap();
    });
}

#[test]
fn whatever_a_group_cannot_do_has_an_error_of_its_own() {
    let broker = Broker::start_with(&options());
    run(async {
        let client = connect_with_topic(&broker, 2).await;
        let missing = client.describe_group("none").await.unwrap_err();
        assert_eq!(missing.code(), Some(ErrorCode::GroupIdNotFound));
        assert_eq!(client.delete_group("none", false).await.unwrap_err().code(), Some(ErrorCode::GroupIdNotFound));
        let mut consumer = member(&client, "g");
        share(std::slice::from_mut(&mut consumer), 2).await;
        let elsewhere = consumer.commit_offsets(&[("t", 7, 0)]).await.unwrap_err();
        assert_eq!(elsewhere, GroupError::NotAssigned { topic: "t".into(), partition: 7 });
        let place = |partition| ("t".to_owned(), partition);
        let moved = client.set_committed_offsets("g", &[(place(0), 0)]).await.unwrap_err();
        assert_eq!(moved.code(), Some(ErrorCode::UnknownMemberId), "only members commit while there are any");
        assert_eq!(client.delete_group("g", true).await.unwrap_err().code(), Some(ErrorCode::NonEmptyGroup));
        let used = client.delete_committed_offsets("g", &[place(0)]).await.unwrap_err();
        assert_eq!(used.code(), Some(ErrorCode::GroupSubscribedToTopic));
        consumer.close().await.unwrap();
        let unknown = client.set_committed_offsets("g", &[(("none".into(), 0), 0)]).await.unwrap_err();
        assert_eq!(unknown.code(), Some(ErrorCode::UnknownTopicOrPartition));
        let unknown = client.set_committed_offsets("g", &[(place(2), 0)]).await.unwrap_err();
        assert_eq!(unknown.code(), Some(ErrorCode::UnknownTopicOrPartition));
        client.set_committed_offsets("g", &[(place(0), 5), (place(1), 6)]).await.unwrap();
        client.delete_committed_offsets("g", &[place(0)]).await.unwrap();
        let left = client.committed_offsets("g", &[]).await.unwrap();
        assert_eq!(left.iter().map(|own| (own.partition, own.offset)).collect::<Vec<_>>(), [(1, 6)]);
        let nowhere = client.group("fresh").topic("t").offset_reset(OffsetReset::None).join().poll().await;
        assert!(matches!(nowhere, Err(GroupError::NoOffset { .. })), "{nowhere:?}");
        client.delete_group("g", false).await.unwrap();
        assert!(client.groups().await.unwrap().iter().all(|group| group.name != "g"));
    });
}

#[test]
fn nobody_but_the_broker_writes_its_own_topics() {
    let broker = Broker::start_with(&options());
    run(async {
        let client = connect_with_topic(&broker, 1).await;
        client.set_committed_offsets("g", &[(("t".into(), 0), 0)]).await.unwrap();
        for topic in ["__catalog", "__consumer_offsets"] {
            let producer = client.producer(topic).build().await.unwrap();
            let refused = producer.send(Record::new(b"x")).await.unwrap().await.unwrap_err();
            assert!(!refused.may_be_written(), "{topic}: {refused}");
        }
    });
    let broker = Broker::start_on(broker.stop(), &options());
    run(async { assert_eq!(connect(&broker).await.topics(false).await.unwrap().len(), 1) });
}

#[test]
fn a_topic_that_is_made_again_begins_without_offsets() {
    let broker = Broker::start_with(&options());
    run(async {
        let client = connect_with_topic(&broker, 1).await;
        client.set_committed_offsets("g", &[(("t".into(), 0), 7)]).await.unwrap();
        client.delete_topic("t").await.unwrap();
        client.create_topic(NewTopic::new("t")).await.unwrap();
        assert_eq!(client.committed_offsets("g", &[("t".into(), 0)]).await.unwrap(), []);
    });
    let broker = Broker::start_on(broker.kill(), &options());
    run(async {
        let client = connect(&broker).await;
        assert_eq!(client.committed_offsets("g", &[("t".into(), 0)]).await.unwrap(), []);
    });
}

#[test]
fn several_topics_are_read_by_one_member_and_records_come_in_order() {
    let broker = Broker::start_with(&options());
    run(async {
        let client = connect_with_topic(&broker, 2).await;
        client.create_topic(NewTopic::new("u").partitions(3)).await.unwrap();
        send(&client, "t", 0..50).await;
        send(&client, "u", 50..100).await;
        let builder = client.group("g").topic("t").topic("u").offset_reset(OffsetReset::Earliest);
        let mut consumer = builder.join();
        let mut ends: BTreeMap<(String, u32), u64> = BTreeMap::new();
        let mut count = 0;
        while count < 100 {
            let Some(mut polled) = consumer.poll().await.unwrap() else { continue };
            for record in polled.batch.records().unwrap() {
                let end = ends.entry((polled.topic.clone(), record.partition)).or_default();
                assert_eq!(record.offset, *end);
                *end += 1;
                count += 1;
            }
        }
        consumer.close().await.unwrap();
        let committed = client.committed_offsets("g", &[]).await.unwrap();
        assert_eq!(committed.iter().map(|own| own.offset).sum::<u64>(), 100, "closing commits what was polled");
        let mut one = client.consumer("u").start(Start::Start).build().await.unwrap();
        assert!(one.poll().await.unwrap().is_some());
    });
}

/// Who reads which partition, and what each member had to stop.
#[derive(Debug, Default)]
struct Ledger {
    owners: BTreeMap<u32, usize>,
    stopped: BTreeMap<usize, BTreeSet<u32>>,
    /// Told of each change.
    changed: Arc<Notify>,
}

/// A member that polls until it is told to leave, and books what it reads.
async fn book(client: Client, number: usize, ledger: Arc<Mutex<Ledger>>, leave: Arc<Notify>) {
    let own = ledger.clone();
    let builder = client.group("large").topic("t").heartbeat_interval(Duration::from_millis(100));
    let heard = move |rebalance: &Rebalance| {
        let mut ledger = own.lock().unwrap();
        match rebalance {
            Rebalance::Assigned(places) => {
                for (_, partition) in places {
                    let before = ledger.owners.insert(*partition, number);
                    assert_eq!(before, None, "partition {partition} has two readers, the other is {number}");
                }
            }
            Rebalance::Revoked(places) | Rebalance::Lost(places) => {
                for (_, partition) in places {
                    ledger.owners.remove(partition);
                    ledger.stopped.entry(number).or_default().insert(*partition);
                }
            }
        }
        ledger.changed.notify_one();
    };
    let mut consumer = builder.on_rebalance(heard).join();
    loop {
        tokio::select! {
            () = leave.notified() => break,
            polled = consumer.poll() => drop(polled.unwrap()),
        }
    }
    let had = consumer.assignment();
    {
        // Before it leaves: whoever gets them may begin at once.
        let mut ledger = ledger.lock().unwrap();
        ledger.owners.retain(|partition, _| !had.iter().any(|(_, own)| own == partition));
    }
    consumer.close().await.unwrap();
}

/// Waits until each of these members reads its share of 200 partitions.
async fn even(ledger: &Mutex<Ledger>, members: usize) {
    let changed = ledger.lock().unwrap().changed.clone();
    loop {
        {
            let ledger = ledger.lock().unwrap();
            let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
            ledger.owners.values().for_each(|owner| *counts.entry(*owner).or_default() += 1);
            let (least, most) = (counts.values().min(), counts.values().max());
            let is_even = least.zip(most).is_some_and(|(least, most)| most - least <= 1);
            if ledger.owners.len() == 200 && counts.len() == members && is_even {
                return;
            }
        }
        changed.notified().await;
    }
}

#[test]
fn fifty_members_come_and_go_and_no_partition_has_two_readers_or_stops_without_moving() {
    let broker = Broker::start_with(&options());
    run(async {
        connect(&broker).await.create_topic(NewTopic::new("t").partitions(200)).await.unwrap();
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let (mut members, mut leaves) = (JoinSet::new(), Vec::new());
        for number in 0..60 {
            if number >= 50 {
                // One goes, and when that has settled another one comes.
                let leave: Arc<Notify> = leaves.remove(0);
                ledger.lock().unwrap().stopped.clear();
                let before = ledger.lock().unwrap().owners.clone();
                leave.notify_one();
                even(&ledger, 49).await;
                check_stops(&ledger, &before);
            }
            let leave = Arc::new(Notify::new());
            members.spawn(book(connect(&broker).await, number, ledger.clone(), leave.clone()));
            leaves.push(leave);
            if number >= 49 {
                let before = ledger.lock().unwrap().owners.clone();
                ledger.lock().unwrap().stopped.clear();
                even(&ledger, 50).await;
                if number > 49 {
                    check_stops(&ledger, &before);
                }
            }
        }
        leaves.iter().for_each(|leave| leave.notify_one());
        while let Some(ended) = members.join_next().await {
            ended.unwrap();
        }
    });
}

/// What a member that stays had to stop is another's now.
fn check_stops(ledger: &Mutex<Ledger>, before: &BTreeMap<u32, usize>) {
    let ledger = ledger.lock().unwrap();
    for (member, stopped) in &ledger.stopped {
        for partition in stopped.iter().filter(|partition| before.get(*partition) == Some(member)) {
            assert_ne!(ledger.owners.get(partition), Some(member), "{member} was stopped for nothing: {partition}");
        }
    }
}
