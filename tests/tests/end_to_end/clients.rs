//! What producers and consumers rely on, over the client crate; knows no frame.

use crate::{connect_with_topic, poll, read, run};
use coulee_client::{Acks, Codec, OffsetSpec, Record, Start};
use coulee_tests::broker::Broker;
use std::time::Duration;

/// Keys, values and headers with nulls, empty ones and duplicates among them.
const HEADERS: [(&[u8], Option<&[u8]>); 4] = [(b"a", Some(b"1")), (b"b", None), (b"a", Some(b"")), (b"", Some(b"x"))];

#[test]
fn records_come_back_as_they_were_sent_whatever_the_compression() {
    let broker = Broker::start();
    run(async {
        let client = connect_with_topic(&broker, 1).await;
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
            let producer =
                client.producer("t").compression(codec).linger(Duration::from_secs(60)).build().await.unwrap();
            let long = vec![b'x'; 100_000];
            let records = [
                Record::new(b"value").key(b"key").headers(&HEADERS).timestamp_ms(1_000),
                Record::tombstone(b"gone").timestamp_ms(2_000),
                Record::new(b"").timestamp_ms(1_500),
                Record::new(&long).key(b"").timestamp_ms(3_000),
            ];
            let mut deliveries = Vec::new();
            for record in records {
                deliveries.push(producer.send(record).await.unwrap());
            }
            producer.close().await;
            let first = deliveries.remove(0).await.unwrap().offset.unwrap();
            for (delivery, offset) in deliveries.into_iter().zip(first + 1..) {
                assert_eq!(delivery.await.unwrap().offset, Some(offset), "offsets follow each other");
            }
            let mut consumer = client.consumer("t").start(Start::Offset(first)).build().await.unwrap();
            let mut batch = consumer.poll().await.unwrap().expect("what was acknowledged is visible");
            let seen: Vec<_> = batch.records().unwrap().collect();
            let plain: Vec<_> = seen.iter().map(|record| (record.timestamp_ms, record.key, record.value)).collect();
            let expected = [
                (1_000, Some(&b"key"[..]), Some(&b"value"[..])),
                (2_000, Some(b"gone"), None),
                (1_500, None, Some(b"")),
                (3_000, Some(b""), Some(&long)),
            ];
            assert_eq!(plain, expected, "{codec:?}");
            assert_eq!(seen[0].headers.collect::<Vec<_>>(), HEADERS, "{codec:?}");
            assert_eq!(seen[1].headers.count(), 0);
        }
    });
}

#[test]
fn each_partition_keeps_the_order_of_its_producer() {
    const RECORDS: u32 = 20_000;
    let broker = Broker::start();
    run(async {
        let client = connect_with_topic(&broker, 5).await;
        let producer = client.producer("t").batch_records_max(97).build().await.unwrap();
        let mut deliveries = Vec::new();
        for number in 0..RECORDS {
            let key = (number % 50).to_le_bytes();
            deliveries.push(producer.send(Record::new(&number.to_le_bytes()).key(&key)).await.unwrap());
        }
        producer.close().await;
        for delivery in deliveries {
            delivery.await.unwrap();
        }
        let seen = read(&client, Start::Start, RECORDS as usize).await;
        let mut owners = std::collections::BTreeMap::new();
        let mut ends = [0_u64; 5];
        let mut last = [None; 5];
        for (partition, offset, key, value) in seen {
            let place = partition as usize;
            let number = u32::from_le_bytes(value.unwrap().try_into().unwrap());
            assert_eq!(offset, ends[place], "offsets have no holes");
            assert!(last[place] < Some(number), "partition {partition}: {number} after {:?}", last[place]);
            (ends[place], last[place]) = (offset + 1, Some(number));
            assert_eq!(*owners.entry(key.unwrap()).or_insert(partition), partition, "a key has one partition");
        }
        assert!(ends.iter().all(|end| *end > 0), "{ends:?}");
    });
}

#[test]
fn a_consumer_begins_at_an_offset_or_a_time_or_the_end() {
    let broker = Broker::start();
    run(async {
        let client = connect_with_topic(&broker, 1).await;
        let producer = client.producer("t").linger(Duration::ZERO).batch_records_max(3).build().await.unwrap();
        for number in 0..10_u8 {
            let value = [number];
            let record = Record::new(&value).timestamp_ms(1_000 + 10 * i64::from(number));
            producer.send(record).await.unwrap().await.unwrap();
        }
        let values = |seen: Vec<crate::Seen>| seen.into_iter().map(|(.., value)| value.unwrap()[0]).collect::<Vec<_>>();
        assert_eq!(values(read(&client, Start::Offset(4), 6).await), [4, 5, 6, 7, 8, 9]);
        assert_eq!(values(read(&client, Start::Time(1_075), 2).await), [8, 9]);
        let mut end = client.consumer("t").start(Start::End).max_wait(Duration::from_secs(60)).build().await.unwrap();
        producer.send(Record::new(&[10])).await.unwrap().await.unwrap();
        assert_eq!(values(poll(&mut end).await), [10]);

        let listed = async |spec| {
            let listed = client.list_offsets("t", &[], spec).await.unwrap();
            (listed[0].offset, listed[0].timestamp_ms)
        };
        assert_eq!(listed(OffsetSpec::Start).await.0, Some(0));
        assert_eq!(listed(OffsetSpec::End).await.0, Some(11));
        assert_eq!(listed(OffsetSpec::Time(1_050)).await, (Some(5), Some(1_050)));
        assert_eq!(listed(OffsetSpec::Time(1 << 50)).await, (None, None));
        assert_eq!(listed(OffsetSpec::MaxTimestamp).await.0, Some(10));
    });
}

#[test]
fn a_fetch_that_waits_is_answered_by_the_record_that_comes() {
    let broker = Broker::start();
    run(async {
        let client = connect_with_topic(&broker, 2).await;
        // It would wait for a minute.
        let mut consumer = client.consumer("t").max_wait(Duration::from_secs(60)).build().await.unwrap();
        let producer = client.producer("t").linger(Duration::ZERO).build().await.unwrap();
        let sent = async {
            // The fetches are with the broker, which parks them.
            while waiting_fetches(&client).await == 0 {
                tokio::task::yield_now().await;
            }
            producer.send(Record::new(b"late").partition(1)).await.unwrap().await.unwrap()
        };
        let (seen, delivered) = tokio::join!(poll(&mut consumer), sent);
        assert_eq!(seen, [(1, delivered.offset.unwrap(), None, Some(b"late".to_vec()))]);
    });
}

async fn waiting_fetches(client: &coulee_client::Client) -> u64 {
    let stats = client.stats().await.unwrap();
    stats.shards.iter().map(|shard| shard.counters[&coulee_client::Counter::WaitingFetches]).sum()
}

#[test]
fn records_sent_without_acks_arrive_in_order() {
    let broker = Broker::start();
    run(async {
        let client = connect_with_topic(&broker, 1).await;
        let producer = client.producer("t").acks(Acks::None).batch_records_max(10).build().await.unwrap();
        for number in 0..500_u32 {
            let delivery = producer.send(Record::new(&number.to_le_bytes())).await.unwrap();
            drop(delivery);
        }
        producer.close().await;
        let seen = read(&client, Start::Start, 500).await;
        let numbers: Vec<u32> =
            seen.into_iter().map(|(.., value)| u32::from_le_bytes(value.unwrap().try_into().unwrap())).collect();
        assert_eq!(numbers, (0..500).collect::<Vec<_>>());
    });
}
