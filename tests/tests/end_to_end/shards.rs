//! Partitions on several shards, and connections to any of them; knows no client crate but for its good manners.

use crate::{connect, connect_with_topic, read, run};
use coulee_client::{Counter, ErrorCode, PartitionUid, Record, Start, Stats};
use coulee_protocol::api::ApiKey;
use coulee_protocol::api::{fetch::v1 as fetch, list_offsets::v1 as list_offsets, produce::v1 as produce};
use coulee_protocol::batch::BatchHeader;
use coulee_tests::broker::{Broker, Options};
use coulee_tests::wire::{Wire, batch};
use std::time::Duration;

fn forwarded(stats: &Stats) -> u64 {
    stats.shards.iter().map(|shard| shard.counters[&Counter::ForwardedRequests]).sum()
}

/// The partitions of the topic `t`, each with its shard.
fn partitions(broker: &Broker, count: u32) -> Vec<(PartitionUid, u16)> {
    let topic = run(async { connect_with_topic(broker, count).await.topic("t").await.unwrap() });
    topic.partitions.iter().map(|partition| (partition.uid, partition.shard.0)).collect()
}

/// Produces one batch and gives its base offset.
pub(crate) fn produce(wire: &mut Wire, uid: PartitionUid, values: &[&[u8]]) -> u64 {
    let request = produce::Request { partition_uid: uid.0, acks: produce::ACKS_DURABLE, flags: 0, timeout_ms: 0 };
    wire.call(ApiKey::Produce, &request, &batch(values)).read::<produce::Response>().base_offset
}

/// A request for everything from these places on, which waits for a minute.
fn fetch_of(places: &[(PartitionUid, u64)]) -> fetch::Request {
    let part = |(uid, offset): &(PartitionUid, u64)| fetch::RequestPartition {
        partition_uid: uid.0,
        offset: *offset,
        max_bytes: 1 << 20,
    };
    let partitions = places.iter().map(part).collect();
    fetch::Request { max_wait_ms: 60_000, min_bytes: 1, max_bytes: 8 << 20, isolation: 0, partitions }
}

/// Base offsets of the batches of each partition in the answer to a fetch.
fn fetched(wire: &mut Wire, places: &[(PartitionUid, u64)]) -> Vec<Vec<u64>> {
    let answer = wire.call(ApiKey::Fetch, &fetch_of(places), &[]);
    let response: fetch::Response = answer.read();
    let mut rest = answer.batches.as_slice();
    let mut bases = Vec::new();
    for (part, (uid, _)) in response.partitions.iter().zip(places) {
        assert_eq!((part.partition_uid, part.error), (uid.0, 0));
        let (mut own, behind) = rest.split_at(part.batches_len as usize);
        let mut found = Vec::new();
        while !own.is_empty() {
            let header = BatchHeader::decode(own).unwrap();
            assert_eq!(header.leader.partition_uid, *uid);
            found.push(header.leader.base_offset.0);
            own = &own[header.batch_len()..];
        }
        bases.push(found);
        rest = behind;
    }
    assert!(rest.is_empty());
    bases
}

#[test]
fn a_client_that_knows_the_owners_has_nothing_forwarded() {
    let broker = Broker::start();
    run(async {
        let client = connect_with_topic(&broker, 6).await;
        let topic = client.topic("t").await.unwrap();
        let owners: std::collections::BTreeSet<u16> = topic.partitions.iter().map(|found| found.shard.0).collect();
        assert_eq!(owners.len(), 2, "the partitions lie on both shards");
        let before = client.stats().await.unwrap();
        let producer = client.producer("t").linger(Duration::ZERO).build().await.unwrap();
        for number in 0..600_u32 {
            let value = number.to_le_bytes();
            let record = Record::new(&value).partition(number % 6);
            let delivery = producer.send(record).await.unwrap();
            if number % 20 == 0 {
                delivery.await.unwrap();
            }
        }
        producer.close().await;
        assert_eq!(read(&client, Start::Offset(0), 600).await.len(), 600);
        let after = client.stats().await.unwrap();
        assert_eq!(forwarded(&after) - forwarded(&before), 0);
        let produced = |stats: &Stats| {
            let records = stats.shards.iter().map(|shard| shard.counters[&Counter::ProducedRecords]);
            records.collect::<Vec<_>>()
        };
        let (before, after) = (produced(&before), produced(&after));
        assert_eq!(after, [before[0] + 300, before[1] + 300]);
    });
}

#[test]
fn every_request_works_on_the_wrong_shard_too() {
    let broker = Broker::start();
    let partitions = partitions(&broker, 4);
    for (uid, shard) in &partitions {
        let mut right = Wire::open(broker.address(), Some(*shard));
        let mut wrong = Wire::open(broker.address(), Some(1 - shard));
        assert_eq!(produce(&mut wrong, *uid, &[b"a", b"b"]), 0);
        assert_eq!(produce(&mut right, *uid, &[b"c"]), 2);
        assert_eq!(produce(&mut wrong, *uid, &[b"d"]), 3);
        for wire in [&mut right, &mut wrong] {
            assert_eq!(fetched(wire, &[(*uid, 0)]), [[0, 2, 3]]);
            let ask = |timestamp| list_offsets::RequestPartition { partition_uid: uid.0, timestamp };
            let timestamps = [list_offsets::LOG_START, list_offsets::HIGH_WATERMARK, 1_000];
            let request = list_offsets::Request { partitions: timestamps.map(ask).into() };
            let listed: list_offsets::Response = wire.call(ApiKey::ListOffsets, &request, &[]).read();
            let offsets: Vec<_> = listed.partitions.iter().map(|found| (found.error, found.offset)).collect();
            assert_eq!(offsets, [(0, 0), (0, 4), (0, 0)]);
        }
    }
}

#[test]
fn acks_of_a_partition_come_in_order_on_the_wrong_shard_too() {
    let broker = Broker::start();
    let partitions = partitions(&broker, 2);
    for shard in [0, 1] {
        let mut wire = Wire::open(broker.address(), Some(shard));
        let mut asked = Vec::new();
        for number in 0..200_usize {
            let (uid, _) = partitions[number % 2];
            let request = produce::Request { partition_uid: uid.0, acks: 1, flags: 0, timeout_ms: 0 };
            let body = coulee_tests::wire::encoded(&request);
            asked.push((wire.ask(ApiKey::Produce.code(), 1, &body, &batch(&[b"x"])), number % 2));
        }
        let mut last = [(0, None), (0, None)];
        for _ in &asked {
            let answer = wire.answer().unwrap();
            let base = answer.read::<produce::Response>().base_offset;
            let correlation = answer.header.correlation;
            let (_, which) = asked.iter().find(|(asked, _)| *asked == correlation).unwrap();
            assert!(last[*which] < (correlation, Some(base)), "{correlation} at {base} after {:?}", last[*which]);
            last[*which] = (correlation, Some(base));
        }
    }
}

#[test]
fn more_than_the_mesh_holds_arrives_though_nobody_answers() {
    const BATCHES: u64 = 20_000;
    let broker = Broker::start();
    let (uid, shard) = partitions(&broker, 1)[0];
    let mut right = Wire::open(broker.address(), Some(shard));
    let mut wrong = Wire::open(broker.address(), Some(1 - shard));
    let request = produce::Request { partition_uid: uid.0, acks: produce::ACKS_NONE, flags: 0, timeout_ms: 0 };
    let (body, batch) = (coulee_tests::wire::encoded(&request), batch(&[b"x"]));
    for _ in 0..BATCHES {
        wrong.ask(ApiKey::Produce.code(), 1, &body, &batch);
    }
    let mut end = 0;
    while end < BATCHES {
        let bases = fetched(&mut right, &[(uid, end)]).remove(0);
        assert_eq!(bases.first(), Some(&end), "nothing comes for a minute");
        end += bases.len() as u64;
    }
}

#[test]
fn one_fetch_reads_partitions_of_several_shards() {
    let broker = Broker::start_with(&Options::shards(3));
    let partitions = partitions(&broker, 6);
    let mut wire = Wire::open(broker.address(), Some(2));
    for (at, (uid, _)) in partitions.iter().enumerate() {
        for _ in 0..=at {
            produce(&mut wire, *uid, &[b"x"]);
        }
    }
    for shard in 0..3 {
        let mut wire = Wire::open(broker.address(), Some(shard));
        let places: Vec<(PartitionUid, u64)> = partitions.iter().map(|(uid, _)| (*uid, 0)).collect();
        let mut ends = vec![0; places.len()];
        // One shard may answer before the others, and then the others give what they have.
        while ends.iter().zip(1..).any(|(end, count)| *end < count) {
            let places: Vec<(PartitionUid, u64)> =
                places.iter().zip(&ends).map(|((uid, _), end)| (*uid, *end)).collect();
            for (bases, end) in fetched(&mut wire, &places).iter().zip(&mut ends) {
                for base in bases {
                    assert_eq!(base, end, "batches come in order");
                    *end += 1;
                }
            }
        }
        assert_eq!(ends, [1, 2, 3, 4, 5, 6]);
    }
}

#[test]
fn a_fetch_over_several_shards_is_woken_by_any_of_them() {
    let broker = Broker::start();
    let partitions = partitions(&broker, 2);
    let mut waits = Wire::open(broker.address(), Some(0));
    let mut writes = Wire::open(broker.address(), Some(1));
    let mut ends = [0, 0];
    for which in [0, 1, 1, 0] {
        let places = [(partitions[0].0, ends[0]), (partitions[1].0, ends[1])];
        let body = coulee_tests::wire::encoded(&fetch_of(&places));
        waits.ask(ApiKey::Fetch.code(), 1, &body, &[]);
        produce(&mut writes, partitions[which].0, &[b"x"]);
        let response: fetch::Response = waits.answer().unwrap().read();
        let came: Vec<bool> = response.partitions.iter().map(|part| part.batches_len > 0).collect();
        assert_eq!(came, [which == 0, which == 1]);
        ends[which] += 1;
    }
}

#[test]
fn a_broker_of_one_shard_answers_every_request() {
    let broker = Broker::start_with(&Options::shards(1));
    let partitions = partitions(&broker, 2);
    let mut wire = Wire::open(broker.address(), Some(0));
    assert_eq!(produce(&mut wire, partitions[0].0, &[b"x"]), 0);
    assert_eq!(fetched(&mut wire, &[(partitions[0].0, 0), (partitions[1].0, 0)]), [vec![0], vec![]]);
    let stats = run(async { connect(&broker).await.stats().await.unwrap() });
    assert_eq!(stats.shards.len(), 1);
}

#[test]
fn a_request_for_no_partition_is_answered() {
    let broker = Broker::start();
    let mut wire = Wire::open(broker.address(), None);
    let request = fetch::Request { min_bytes: 0, ..fetch_of(&[]) };
    assert!(wire.call(ApiKey::Fetch, &request, &[]).read::<fetch::Response>().partitions.is_empty());
    let request = list_offsets::Request { partitions: Vec::new() };
    assert!(wire.call(ApiKey::ListOffsets, &request, &[]).read::<list_offsets::Response>().partitions.is_empty());
}

#[test]
fn a_shard_that_does_not_exist_is_refused_with_those_that_do() {
    let broker = Broker::start();
    let mut wire = Wire::connect(broker.address());
    let answer = wire.hello(Some(7));
    assert_eq!((answer.error(), answer.detail().as_str()), (ErrorCode::InvalidRequest, "shard 7, expected 0 to 1"));
    assert_eq!(wire.answer(), None, "the connection is closed");
}

/// What each shard has copied so far.
fn copied(broker: &Broker) -> Vec<u64> {
    let stats = run(async { connect(broker).await.stats().await.unwrap() });
    stats.shards.iter().map(|shard| shard.counters[&Counter::CopiedBytes]).collect()
}

#[test]
fn copied_bytes_rise_by_what_is_forwarded_or_small_and_not_by_a_large_batch_at_its_place() {
    let broker = Broker::start();
    let (uid, owner) = partitions(&broker, 1)[0];
    let mut right = Wire::open(broker.address(), Some(owner));
    let mut wrong = Wire::open(broker.address(), Some(1 - owner));
    // Of which shard it is about, and by how much its count rises.
    let mut rise = |shard: u16, work: &mut dyn FnMut(&mut Wire, &mut Wire)| {
        let before = copied(&broker)[usize::from(shard)];
        work(&mut right, &mut wrong);
        copied(&broker)[usize::from(shard)] - before
    };
    let (large, small) = (vec![7; 800_000], vec![7; 20_000]);
    let in_place = rise(owner, &mut |right, _| assert_eq!(produce(right, uid, &[&large]), 0));
    assert!(in_place <= 800_000 / 20, "{in_place} bytes of a large batch were copied");
    let tail = rise(owner, &mut |right, _| assert_eq!(produce(right, uid, &[&small]), 1));
    assert!(tail >= 20_000, "{tail} bytes of a small batch were copied");
    let forwarded = rise(1 - owner, &mut |_, wrong| assert_eq!(produce(wrong, uid, &[&large]), 2));
    assert!(forwarded >= 800_000, "{forwarded} bytes of a forwarded batch were copied");
    let served = rise(owner, &mut |right, _| assert_eq!(fetched(right, &[(uid, 2)]), [[2]]));
    assert!(served <= 800_000 / 20, "{served} bytes of a fetch were copied");
    let back = rise(owner, &mut |_, wrong| assert_eq!(fetched(wrong, &[(uid, 2)]), [[2]]));
    assert!(back >= 800_000, "{back} bytes of a forwarded fetch were copied");
}
