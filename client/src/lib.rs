//! Async Rust client of Coulee: producer, consumer, admin over the native protocol; knows nothing of broker insides.
//!
//! ```no_run
//! use coulee_client::{Client, NewTopic, Record};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("127.0.0.1:7700").await?;
//! client.create_topic(NewTopic::new("orders").partitions(4)).await?;
//!
//! let producer = client.producer("orders").build().await?;
//! let delivery = producer.send(Record::new(b"a sandwich").key(b"table 7")).await?;
//! println!("on disk at offset {:?}", delivery.await?.offset);
//!
//! let mut consumer = client.consumer("orders").build().await?;
//! while let Some(mut batch) = consumer.poll().await? {
//!     for record in batch.records()? {
//!         println!("{}: {:?}", record.offset, record.value);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Connections
//!
//! A [`Client`] has one connection to each shard whose partitions are used, made when it is needed and made anew with
//! growing pauses when it is lost. Requests are pipelined and bounded ([`limits`]); answers may overtake each other.
//! Where partitions are is looked up on first use, after an answer that says so, and every five minutes.
//!
//! # Producing
//!
//! [`Producer::send`] copies a record into the open batch of its partition and returns at once, unless as much is held
//! as [`ProducerBuilder::memory_bytes_max`] allows: then it waits. It gives a [`Delivery`], a future that says what
//! became of the record. Sending many before awaiting the first is what makes batches:
//!
//! ```no_run
//! # use coulee_client::{Client, DeliveryError, Record};
//! # async fn run(client: Client) -> Result<(), Box<dyn std::error::Error>> {
//! let producer = client.producer("orders").build().await?;
//! let mut deliveries = Vec::new();
//! for number in 0..1_000_u32 {
//!     deliveries.push(producer.send(Record::new(&number.to_le_bytes())).await?);
//! }
//! producer.flush().await;
//! for delivery in deliveries {
//!     match delivery.await {
//!         Ok(delivered) => println!("{:?}", delivered.offset),
//!         Err(error) if error.may_be_written() => println!("perhaps written: {error}"),
//!         Err(error) => println!("surely not written: {error}"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A batch is sent again only if it surely was not written, and never behind one of its partition that was sent after
//! it and may have been written: order holds, and nothing is doubled. What may have been written and was not
//! acknowledged is the caller's to decide: [`DeliveryError::OutcomeUnknown`].
//!
//! # Consuming
//!
//! A [`Consumer`] reads the partitions that it is given and remembers nothing for later. A [`Batch`] shares the memory
//! that it was received in, and its records are slices of that. Each batch is checked on arrival: checksums, its place,
//! and the chain to the one before. Damage on the broker's disk is never passed over silently:
//!
//! ```no_run
//! # use coulee_client::{Client, ConsumeError, Start};
//! # async fn run(client: Client) -> Result<(), Box<dyn std::error::Error>> {
//! let mut consumer = client.consumer("orders").partitions([0, 2]).start(Start::Offset(100)).build().await?;
//! loop {
//!     match consumer.poll().await {
//!         Ok(Some(mut batch)) => println!("{} records", batch.records()?.len()),
//!         Ok(None) => break,
//!         Err(ConsumeError::Damaged { partition, from, to }) => {
//!             println!("{from} to {to} are lost");
//!             consumer.skip_damaged(partition)?;
//!         }
//!         Err(error) => return Err(error.into()),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Consumer groups
//!
//! A [`GroupConsumer`] shares topics with the other members of its group, and goes on where the group has committed:
//!
//! ```no_run
//! # use coulee_client::{Client, OffsetReset};
//! # async fn run(client: Client) -> Result<(), Box<dyn std::error::Error>> {
//! let mut consumer = client.group("billing").topic("orders").offset_reset(OffsetReset::Earliest).join();
//! for _ in 0..100 {
//!     let Some(mut polled) = consumer.poll().await? else { continue };
//!     for record in polled.batch.records()? {
//!         println!("{} {}: {:?}", polled.topic, record.offset, record.value);
//!     }
//!     consumer.commit().await?;
//! }
//! consumer.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Administration
//!
//! [`Client::create_topic`], [`Client::delete_topic`], [`Client::alter_topic`], [`Client::describe_topic`],
//! [`Client::topics`], [`Client::list_offsets`], [`Client::groups`], [`Client::describe_group`],
//! [`Client::committed_offsets`], [`Client::stats`] and [`Client::describe_broker`].
#![forbid(unsafe_code)]

mod admin;
mod backoff;
mod client;
mod connection;
mod consumer;
mod error;
mod group;
pub mod limits;
mod producer;
mod retry;
mod topic;

pub use coulee_protocol::api::broker::Origin;
pub use coulee_protocol::api::stats::{Counter, Histogram};
pub use coulee_protocol::api::topics::Durability;
pub use coulee_protocol::columns::Headers;
pub use coulee_protocol::compression::Codec;
pub use coulee_protocol::error::{ErrorCode, Outcome, Retriable};
pub use coulee_protocol::ids::{ClusterId, LeaderEpoch, PartitionUid, ShardId, TopicId};

pub use admin::{
    BrokerConfig, BrokerDescription, ListedOffset, NewTopic, OffsetSpec, PartitionDescription, ShardStats, Stats,
    TopicChange, TopicConfig, TopicDescription, TopicSummary,
};
pub use client::{Client, ClientBuilder};
pub use consumer::batch::{Batch, Received, Records};
pub use consumer::{Consumer, ConsumerBuilder, NotAssigned, Start};
pub use error::{
    AdminError, BatchFault, ConnectError, ConsumeError, DeliveryError, HelloFault, Refusal, SendError, Violation,
};
pub use group::admin::{CommittedOffset, GroupDescription, GroupMember, GroupState, GroupSummary};
pub use group::assignor::Assignor;
pub use group::{GroupBatch, GroupBuilder, GroupConsumer, GroupError, OffsetReset, Rebalance};
pub use producer::fate::{Delivered, Delivery};
pub use producer::{Acks, Producer, ProducerBuilder, Record};
pub use topic::{Partition, Topic};
