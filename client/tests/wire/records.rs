//! Producer and consumer against a real socket: owns claims about records and their order; knows no broker.

use std::time::Duration;

use super::peer::{Door, Peer, Request, answer};
use coulee_client::{Acks, Client, ConsumeError, DeliveryError, ErrorCode, Producer, ProducerBuilder, Record, Start};
use coulee_protocol::api::fetch::v1 as fetch;
use coulee_protocol::api::list_offsets::v1 as list_offsets;
use coulee_protocol::api::produce::v1 as produce;
use coulee_protocol::batch::{BatchHeader, LeaderFields, check_entry};
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::compression::Codec;
use coulee_protocol::ids::{BatchIndex, LeaderEpoch, Offset, PartitionUid, ShardId};

/// A producer of a topic with this many partitions, and its peer.
async fn producing(
    door: &Door,
    partitions: u32,
    configure: impl Fn(ProducerBuilder) -> ProducerBuilder,
) -> (Producer, Peer) {
    let (client, mut peer) = tokio::join!(Client::connect(door.address.as_str()), door.accept());
    let builder = configure(client.unwrap().producer("t").linger(Duration::ZERO));
    let (producer, ()) = tokio::join!(builder.build(), peer.answer_metadata(partitions));
    (producer.unwrap(), peer)
}

/// The next produce request, checked, and how many records it has.
async fn produced(peer: &mut Peer) -> (Request, u32) {
    let request = peer.request().await.expect("a produce request");
    let header = check_entry(&request.batch, 8 << 20).unwrap();
    (request, header.record_count)
}

async fn acknowledge(peer: &mut Peer, request: &Request, base_offset: u64) {
    peer.answer(request, &produce::Response { base_offset, ..Default::default() }).await;
}

#[tokio::test]
async fn records_arrive_in_batches_and_learn_their_offsets() {
    let door = Door::open().await;
    let (producer, mut peer) = producing(&door, 2, |builder| builder.linger(Duration::from_secs(60))).await;
    let mut deliveries = Vec::new();
    for value in [b"a", b"b", b"c"] {
        deliveries.push(producer.send(Record::new(value).partition(1).timestamp_ms(77)).await.unwrap());
    }
    let script = async {
        let (request, records) = produced(&mut peer).await;
        let body: produce::Request = request.body();
        assert_eq!((body.partition_uid, body.acks, records), (2, 1, 3));
        acknowledge(&mut peer, &request, 40).await;
    };
    tokio::join!(producer.flush(), script);
    for (delivery, offset) in deliveries.into_iter().zip(40..) {
        let delivered = delivery.await.unwrap();
        assert_eq!((delivered.partition, delivered.offset, delivered.timestamp_ms), (1, Some(offset), 77));
    }
}

#[tokio::test]
async fn a_batch_that_was_sent_and_not_answered_has_an_unknown_outcome_and_is_not_repeated() {
    let door = Door::open().await;
    let (producer, mut peer) = producing(&door, 1, |builder| builder).await;
    let lost = producer.send(Record::new(b"lost")).await.unwrap();
    produced(&mut peer).await;
    drop(peer);
    let error = lost.await.unwrap_err();
    assert_eq!(error, DeliveryError::OutcomeUnknown { refusal: None });
    assert_eq!((error.code(), error.may_be_written()), (Some(ErrorCode::OutcomeUnknown), true));
    let next = producer.send(Record::new(b"next one")).await.unwrap();
    let mut peer = door.accept().await;
    let (request, _) = produced(&mut peer).await;
    assert!(request.batch.windows(8).any(|window| window == b"next one"));
    acknowledge(&mut peer, &request, 1).await;
    assert_eq!(next.await.unwrap().offset, Some(1));
}

#[tokio::test]
async fn a_batch_is_repeated_after_a_look_at_the_metadata_when_the_leader_has_moved() {
    let door = Door::open().await;
    let (producer, mut peer) = producing(&door, 1, |builder| builder).await;
    let delivery = producer.send(Record::new(b"v")).await.unwrap();
    let (first, _) = produced(&mut peer).await;
    peer.refuse(&first, ErrorCode::NotLeaderOrFollower).await;
    peer.answer_metadata(1).await;
    let (second, _) = produced(&mut peer).await;
    assert_eq!(first.batch, second.batch);
    acknowledge(&mut peer, &second, 3).await;
    assert_eq!(delivery.await.unwrap().offset, Some(3));
}

#[tokio::test]
async fn records_go_straight_to_the_shard_that_owns_their_partition() {
    let door = Door::open().await;
    let (client, mut any) = tokio::join!(Client::connect(door.address.as_str()), door.accept());
    assert_eq!(any.wanted_shard, None);
    let building = client.unwrap().producer("t").linger(Duration::ZERO).build();
    let (producer, ()) = tokio::join!(building, any.answer_metadata_of(1, ShardId(1)));
    let delivery = producer.unwrap().send(Record::new(b"v")).await.unwrap();
    let mut owner = door.accept().await;
    assert_eq!(owner.wanted_shard, Some(ShardId(1)));
    let (request, _) = produced(&mut owner).await;
    acknowledge(&mut owner, &request, 2).await;
    assert_eq!(delivery.await.unwrap().offset, Some(2));
}

#[tokio::test]
async fn many_records_in_flight_all_find_their_offsets() {
    let door = Door::open().await;
    let (producer, mut peer) = producing(&door, 3, |builder| builder.in_flight(64)).await;
    let sending = async {
        let mut deliveries = Vec::new();
        for number in 0..2_000_u32 {
            let key = (number % 17).to_le_bytes();
            deliveries.push(producer.send(Record::new(&number.to_le_bytes()).key(&key)).await.unwrap());
            if number % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        producer.flush().await;
        let mut ends = [0; 3];
        for delivery in deliveries {
            let delivered = delivery.await.unwrap();
            // Records of a partition have the offsets in which they were sent.
            let end = &mut ends[delivered.partition as usize];
            assert_eq!(delivered.offset, Some(*end));
            *end += 1;
        }
        ends
    };
    let script = async {
        let mut ends = [0; 3];
        while ends.iter().sum::<u64>() < 2_000 {
            let (request, records) = produced(&mut peer).await;
            let body: produce::Request = request.body();
            let end = &mut ends[body.partition_uid as usize - 1];
            acknowledge(&mut peer, &request, *end).await;
            *end += u64::from(records);
        }
        ends
    };
    let (sent, stored) = tokio::join!(sending, script);
    assert_eq!(sent, stored);
}

#[tokio::test]
async fn a_refused_record_fails_with_the_brokers_word() {
    let door = Door::open().await;
    let (producer, mut peer) = producing(&door, 1, |builder| builder).await;
    let delivery = producer.send(Record::new(b"v")).await.unwrap();
    let (request, _) = produced(&mut peer).await;
    peer.refuse(&request, ErrorCode::MessageTooLarge).await;
    let error = delivery.await.unwrap_err();
    assert_eq!((error.code(), error.may_be_written()), (Some(ErrorCode::MessageTooLarge), false));
}

#[tokio::test]
async fn sending_waits_while_too_much_is_held() {
    let door = Door::open().await;
    let (producer, mut peer) = producing(&door, 1, |builder| builder.memory_bytes_max(100)).await;
    let first = producer.send(Record::new(&[1; 50])).await.unwrap();
    let (request, _) = produced(&mut peer).await;
    let mut waiting = Box::pin(producer.send(Record::new(&[2; 50])));
    assert!(tokio::time::timeout(Duration::ZERO, &mut waiting).await.is_err(), "there is no room");
    acknowledge(&mut peer, &request, 0).await;
    let second = waiting.await.unwrap();
    let (request, _) = produced(&mut peer).await;
    acknowledge(&mut peer, &request, 1).await;
    assert_eq!((first.await.unwrap().offset, second.await.unwrap().offset), (Some(0), Some(1)));
    assert!(producer.send(Record::new(&[0; 101])).await.is_err(), "it would never fit");
}

#[tokio::test]
async fn without_acks_a_record_is_delivered_when_it_has_left() {
    let door = Door::open().await;
    let (producer, mut peer) = producing(&door, 1, |builder| builder.acks(Acks::None)).await;
    let delivery = producer.send(Record::new(b"v")).await.unwrap();
    assert_eq!(delivery.await.unwrap().offset, None);
    let body: produce::Request = produced(&mut peer).await.0.body();
    assert_eq!(body.acks, 0);
}

#[tokio::test]
async fn closing_waits_for_what_was_taken() {
    let door = Door::open().await;
    let (producer, mut peer) = producing(&door, 1, |builder| builder.linger(Duration::from_secs(60))).await;
    let delivery = producer.send(Record::new(b"v")).await.unwrap();
    let script = async {
        let (request, _) = produced(&mut peer).await;
        acknowledge(&mut peer, &request, 5).await;
    };
    tokio::join!(producer.close(), script);
    assert_eq!(delivery.await.unwrap().offset, Some(5));
}

/// A stored batch of two records at `base`, chained to `prev`.
fn stored(base: u64, batch_index: u64, prev: u32) -> (u32, Vec<u8>) {
    let mut builder = BatchBuilder::new(Codec::None, 4_096);
    for value in [&b"first"[..], b"second"] {
        builder.push(&NewRecord { key: Some(b"k"), value: Some(value), ..NewRecord::default() }).unwrap();
    }
    let mut batch = builder.finish().unwrap();
    let leader = LeaderFields {
        partition_uid: PartitionUid(1),
        batch_index: BatchIndex(batch_index),
        leader_epoch: LeaderEpoch(1),
        prev_header_crc: prev,
        durable_end_hint: Offset(0),
        base_offset: Offset(base),
    };
    let header = BatchHeader::decode(&batch).unwrap().stamp(leader, batch.first_chunk_mut().unwrap());
    (header.header_crc, batch)
}

/// Answers the next fetch, which has to ask for `offset`, with these batches or this error.
async fn serve(peer: &mut Peer, offset: u64, batches: &[u8], part: fetch::ResponsePartition) {
    let request = peer.request().await.expect("a fetch");
    let asked: fetch::Request = request.body();
    assert_eq!((asked.partitions[0].partition_uid, asked.partitions[0].offset), (1, offset));
    let part = fetch::ResponsePartition { partition_uid: 1, batches_len: batches.len() as u32, ..part };
    let body = fetch::Response { partitions: vec![part] };
    peer.send(&answer(&request, &body, batches)).await;
}

#[tokio::test]
async fn a_consumer_starts_trims_skips_damage_and_knows_where_it_is() {
    let door = Door::open().await;
    let (client, mut peer) = tokio::join!(Client::connect(door.address.as_str()), door.accept());
    let client = client.unwrap();
    let building = client.consumer("t").start(Start::Offset(11)).build();
    let (consumer, ()) = tokio::join!(building, peer.answer_metadata(1));
    let mut consumer = consumer.unwrap();
    let visible = || fetch::ResponsePartition { high_watermark: 24, log_start: 2, ..Default::default() };
    let script = async {
        let (crc, first) = stored(10, 1, 0);
        let (_, second) = stored(12, 2, crc);
        serve(&mut peer, 11, &[first, second].concat(), visible()).await;
        let error = ErrorCode::RangeDamaged.code();
        serve(&mut peer, 14, &[], fetch::ResponsePartition { error, damaged_from: 14, damaged_to: 20, ..visible() })
            .await;
        serve(&mut peer, 20, &stored(20, 9, 77).1, visible()).await;
    };
    let polls = async {
        let mut batch = consumer.poll().await.unwrap().unwrap();
        let offsets: Vec<_> =
            batch.records().unwrap().map(|record| (record.offset, record.value.unwrap().to_vec())).collect();
        assert_eq!(offsets, [(11, b"second".to_vec())]);
        assert_eq!((consumer.position(0), consumer.high_watermark(0)), (Some(12), Some(24)));
        assert_eq!(consumer.poll().await.unwrap().unwrap().first_offset(), 12);
        let damaged = consumer.poll().await.unwrap_err();
        assert_eq!(damaged, ConsumeError::Damaged { partition: 0, from: 14, to: 20 });
        assert_eq!(consumer.skip_damaged(0), Ok(Some(20)));
        assert_eq!(consumer.poll().await.unwrap().unwrap().end_offset(), 22);
    };
    tokio::join!(polls, script);
}

#[tokio::test]
async fn a_consumer_goes_on_where_it_was_after_a_lost_connection() {
    let door = Door::open().await;
    let (client, mut peer) = tokio::join!(Client::connect(door.address.as_str()), door.accept());
    let client = client.unwrap();
    let script = async {
        peer.answer_metadata(1).await;
        let request = peer.request().await.unwrap();
        let asked: list_offsets::Request = request.body();
        assert_eq!(asked.partitions[0].timestamp, list_offsets::LOG_START);
        let part = list_offsets::ResponsePartition { partition_uid: 1, offset: 4, timestamp: -1, ..Default::default() };
        peer.answer(&request, &list_offsets::Response { partitions: vec![part] }).await;
        peer.request().await.unwrap();
        drop(peer);
        let mut peer = door.accept().await;
        peer.answer_metadata(1).await;
        serve(&mut peer, 4, &stored(4, 1, 0).1, fetch::ResponsePartition::default()).await;
        peer
    };
    let polls = async {
        let mut consumer = client.consumer("t").build().await.unwrap();
        loop {
            if let Some(batch) = consumer.poll().await.unwrap() {
                return (consumer, batch);
            }
        }
    };
    let ((consumer, batch), _peer) = tokio::join!(polls, script);
    assert_eq!((batch.first_offset(), consumer.position(0)), (4, Some(6)));
}
