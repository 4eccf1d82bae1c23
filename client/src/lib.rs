//! Async Rust client of Coulee: producer, consumer, admin over the native protocol; knows no broker crate.
#![forbid(unsafe_code)]

mod admin;
mod backoff;
mod client;
mod connection;
mod consumer;
mod error;
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
pub use producer::fate::{Delivered, Delivery};
pub use producer::{Acks, Producer, ProducerBuilder, Record};
pub use topic::{Partition, Topic};
