//! What shards say to each other: questions, answers, orders and connections; decides nothing.
//!
//! Everything here can go to another thread. Record batches travel as copies: a client that knows the owner of a
//! partition asks that shard itself, so this is the slow way that still has to work.

use coulee_core::block::Block;
use coulee_core::catalog::{Change, ChangeError};
use coulee_core::controller::{Changed, Told};
use coulee_core::groups::request::Listed as ListedGroup;
use coulee_core::groups::{Answer as GroupAnswer, GroupRequest};
use coulee_core::log::recovery::RecoveryError;
use coulee_core::partition::{Acks, ProduceError};
use coulee_core::shard::fetches::{FetchError, FetchSpec, FetchedPart};
use coulee_core::shard::{Described, Listed, OffsetQuery, Opened, Order, Produced, RequestId};
use coulee_io::net::Socket;
use coulee_protocol::api::stats::v1::Shard as ShardStats;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{Offset, PartitionUid};
use std::rc::Rc;

/// A question about partitions, for the shard that owns them, or about a shard.
#[derive(Debug)]
pub(crate) enum Question {
    /// Append this batch.
    Produce(PartitionUid, Acks, Vec<u8>),
    /// Read these.
    Fetch(FetchSpec),
    /// Look an offset up.
    Offset(PartitionUid, OffsetQuery),
    /// Say how it stands.
    Describe(PartitionUid),
    /// Say what the shard has counted.
    Stats,
    /// Something of a group that this shard coordinates.
    Group(Box<GroupRequest>),
    /// Say which groups this shard coordinates.
    Groups,
}

/// The answer to a [`Question`].
#[derive(Debug)]
pub(crate) enum Answer {
    /// To a produce.
    Produced(Result<Produced, ProduceError>),
    /// To a fetch.
    Fetched(Vec<RemotePart>),
    /// To a look-up.
    Listed(Listed),
    /// To a description.
    Described(Result<Described, ErrorCode>),
    /// To a question for counts.
    Stats(Box<ShardStats>),
    /// Of a group's coordinator.
    Group(GroupAnswer),
    /// To a question for groups.
    Groups(Result<Vec<ListedGroup>, ErrorCode>),
}

/// One part of a fetch, with its batches copied.
#[derive(Debug)]
pub(crate) struct RemotePart {
    partition: PartitionUid,
    batches: Result<Vec<Vec<u8>>, FetchError>,
    high_watermark: Offset,
    log_start: Offset,
}

impl From<FetchedPart> for RemotePart {
    fn from(part: FetchedPart) -> Self {
        let batches = part.batches.map(|blocks| blocks.iter().map(|block| block.to_vec()).collect());
        let FetchedPart { partition, high_watermark, log_start, .. } = part;
        Self { partition, batches, high_watermark, log_start }
    }
}

impl From<RemotePart> for FetchedPart {
    fn from(part: RemotePart) -> Self {
        let block = |bytes: Vec<u8>| Block::from_owner(Rc::new(bytes));
        let batches = part.batches.map(|batches| batches.into_iter().map(block).collect());
        let RemotePart { partition, high_watermark, log_start, .. } = part;
        Self { partition, batches, high_watermark, log_start }
    }
}

/// What the controller hears from a shard.
#[derive(Debug)]
pub(crate) enum Report {
    /// It has read its checkpoint and takes orders.
    Started,
    /// It has opened a partition, or could not.
    Opened(PartitionUid, Result<Opened, RecoveryError>),
    /// A partition has gone offline.
    Offline(PartitionUid),
    /// It has removed a partition's files, or tried to.
    Deleted(PartitionUid),
}

/// What one shard says to another.
#[derive(Debug)]
pub(crate) enum Message {
    /// This connection, whose Hello has been read, wants to be on your shard.
    Connection(Socket, Greeting),
    /// Please answer under this number of mine.
    Ask(RequestId, Question),
    /// Please answer the fetch under this number of mine now, with what there is.
    Hurry(RequestId),
    /// The answer to your number.
    Answer(RequestId, Answer),
    /// To the controller: what has happened.
    Report(Report),
    /// To the controller: a change that a client wants, under this number of mine.
    Change(RequestId, Change),
    /// From the controller: the answer to your number.
    Changed(RequestId, Result<Changed, ChangeError>),
    /// From the controller: do this.
    Order(Order),
    /// From the controller: this has changed.
    Told(Told),
}

/// What is left of a Hello once it has been read.
#[derive(Clone, Debug)]
pub(crate) struct Greeting {
    /// The correlation id of its frame.
    pub(crate) correlation: u32,
    /// The protocol chosen.
    pub(crate) protocol: u16,
    /// Name of the client, for logs.
    pub(crate) client_name: Box<str>,
}
