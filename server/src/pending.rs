//! Requests that are unanswered: whom to answer, and what is still missing; decides nothing.

use crate::connection::Charge;
use crate::slab::Key;
use coulee_core::groups::request::Listed as ListedGroup;
use coulee_core::shard::RequestId;
use coulee_core::shard::budget::Reservation;
use coulee_core::shard::fetches::FetchedPart;
use coulee_protocol::api::list_offsets::v1::Response as OffsetsResponse;
use coulee_protocol::api::stats::v1::Shard as ShardStats;
use coulee_protocol::api::topics::v1::DescribeResponse;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::FrameHeader;
use coulee_protocol::ids::ShardId;

/// Whom to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A connection of this shard.
    Connection(Key),
    /// Another shard, under its own number.
    Shard(ShardId, RequestId),
    /// A part of a request of this shard that asks several.
    Part {
        /// That request.
        whole: RequestId,
        /// Which part of it this is.
        at: usize,
    },
}

/// How long a request's client waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// As long as it takes.
    Endless,
    /// Until then, on the monotonic clock.
    Until(u64),
    /// Until then, and the shard's order of deadlines has it.
    Watched(u64),
    /// No longer: it was told so, and what comes is not sent.
    Over,
}

/// A request that is not done.
#[derive(Debug)]
pub(crate) struct Pending {
    /// Whom to answer.
    pub(crate) asker: Asker,
    /// The header of its frame, where it came in one.
    pub(crate) header: FrameHeader,
    /// What it holds of its connection's allowance.
    pub(crate) charge: Charge,
    /// What it holds of the shard's budget.
    pub(crate) reservation: Option<Reservation>,
    /// When it was complete in memory, on the monotonic clock.
    pub(crate) began_us: u64,
    /// How long its client waits.
    pub(crate) patience: Patience,
    /// What has to be put together first.
    pub(crate) gather: Option<Box<Gather>>,
}

impl Pending {
    /// A request of which nothing is held yet.
    #[must_use]
    pub(crate) fn new(asker: Asker, header: FrameHeader, began_us: u64) -> Self {
        Self {
            asker,
            header,
            charge: Charge::default(),
            reservation: None,
            began_us,
            patience: Patience::Endless,
            gather: None,
        }
    }
}

/// An answer that is put together from several.
#[derive(Debug)]
pub(crate) struct Gather {
    /// Parts that have not come.
    pub(crate) left: usize,
    /// What has come.
    pub(crate) so_far: SoFar,
}

/// What has come of an answer.
#[derive(Debug)]
pub(crate) enum SoFar {
    /// Offsets, one place for each partition of the request.
    Offsets(OffsetsResponse),
    /// A topic, one place for each of its partitions.
    Topic(Box<DescribeResponse>),
    /// Counts, one place for each shard.
    Stats(Vec<Option<Box<ShardStats>>>),
    /// Groups, of the shards that have answered.
    Groups(Result<Vec<ListedGroup>, ErrorCode>),
    /// Records of several shards.
    Fetch(Fetching),
}

/// A fetch whose partitions lie on several shards.
#[derive(Debug)]
pub(crate) struct Fetching {
    /// One place for each partition of the request.
    pub(crate) parts: Vec<Option<FetchedPart>>,
    /// For each shard that was asked: which, under which number, and for which places.
    pub(crate) asked: Vec<(ShardId, RequestId, Vec<usize>)>,
    /// Answer when this many bytes are there.
    pub(crate) bytes_min: usize,
    /// The others have been told to answer with what they have.
    pub(crate) hurried: bool,
}

impl Fetching {
    /// Bytes of batches that have come.
    #[must_use]
    pub(crate) fn bytes(&self) -> usize {
        let slices = self.parts.iter().flatten().filter_map(|part| part.batches.as_ref().ok()).flatten();
        slices.map(|slice| slice.len()).sum()
    }

    /// Whether there is reason to wait no longer: enough bytes, or an error to tell.
    #[must_use]
    pub(crate) fn is_enough(&self) -> bool {
        self.bytes() >= self.bytes_min.max(1) || self.parts.iter().flatten().any(|part| part.batches.is_err())
    }
}
