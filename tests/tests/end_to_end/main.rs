//! Whole brokers: the program, real sockets, real files; what they are made of is tested beside it.

#![allow(clippy::unwrap_used, reason = "what the tests share fails as they do")]

mod clients;
mod groups;
mod lives;
mod mutations;
mod python;
mod shards;
mod topics;
mod wire;

use coulee_client::{Client, Consumer, NewTopic, Start};
use coulee_tests::broker::Broker;
use std::future::Future;
use std::time::Duration;

/// Runs one client.
pub(crate) fn run<T>(client: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(client)
}

/// A client of the broker.
pub(crate) async fn connect(broker: &Broker) -> Client {
    Client::connect(broker.address()).await.unwrap()
}

/// A client of the broker and a new topic `t`.
pub(crate) async fn connect_with_topic(broker: &Broker, partitions: u32) -> Client {
    let client = connect(broker).await;
    client.create_topic(NewTopic::new("t").partitions(partitions)).await.unwrap();
    client
}

/// A record that was read: partition, offset, key and value.
pub(crate) type Seen = (u32, u64, Option<Vec<u8>>, Option<Vec<u8>>);

/// Reads `count` records from `start`.
pub(crate) async fn read(client: &Client, start: Start, count: usize) -> Vec<Seen> {
    let mut consumer = client.consumer("t").start(start).max_wait(Duration::from_secs(60)).build().await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < count {
        seen.extend(poll(&mut consumer).await);
    }
    assert_eq!(seen.len(), count);
    seen
}

/// What the next poll brings.
pub(crate) async fn poll(consumer: &mut Consumer) -> Vec<Seen> {
    let mut batch = consumer.poll().await.unwrap().expect("records within a minute");
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    let records = batch.records().unwrap();
    records.map(|record| (record.partition, record.offset, owned(record.key), owned(record.value))).collect()
}
