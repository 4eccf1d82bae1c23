//! Consumer groups: who is a member, which generation it is, what the group has committed; does no I/O, keeps no clock.
//!
//! One [`Coordinator`] for each partition of `__consumer_offsets`, on the shard that owns it: a state machine,
//! `step(now, event) -> effects`. Its state is what the records of that partition say, applied in log order: an answer
//! that promises something waits until its record is durable. What only matters while members are connected (who has
//! joined, who waits) is in memory alone, as in Kafka: after a start members go on with the generation that is stored.
//!
//! ```text
//!            first member joins                 all have joined, or time is up
//!   Empty ───────────────────▶ PreparingRebalance ───────────────▶ CompletingRebalance
//!     ▲                          ▲    │ nobody came                      │ the leader's assignment
//!     └──────────────────────────┼────┘                                  │ is durable
//!     deleted ─▶ Dead            └──── a member joins, leaves, expires ◀─ Stable
//! ```
//! Members compute the assignment: the coordinator hands the leader what all have said, and each what the leader says.
//! Semantics, names, defaults and errors are Kafka's (its classic protocol, KIP-134, 211, 345, 394, 814), so that a
//! listener of Kafka's protocol can stand before the same machine.

mod change;
mod coordinator;
mod group;
mod join;
mod load;
mod member;
mod offsets;
pub mod request;
mod sync;
#[cfg(test)]
mod tests;
mod upkeep;

pub use change::{Change, Committed};
pub use coordinator::{Append, AppendId, Coordinator, Effect, Event};
pub use coulee_protocol::kafka::consumer_offsets::{OFFSETS_PARTITIONS, partition_of};
pub use request::{Answer, GroupRequest, Request};

use coulee_protocol::ids::TopicId;

/// Name of the topic that holds committed offsets and groups.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// Its id, the same in every cluster.
pub const OFFSETS_TOPIC_ID: TopicId = TopicId(*b"coulee/__offsets");

/// What a broker allows its groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Shortest session timeout that a member may ask for (`group.min.session.timeout.ms`).
    pub session_timeout_min_ms: u32,
    /// Longest one (`group.max.session.timeout.ms`).
    pub session_timeout_max_ms: u32,
    /// How long the first members of an empty group are waited for (`group.initial.rebalance.delay.ms`).
    pub initial_delay_ms: u32,
    /// Members of one group (`group.max.size`).
    pub members_max: usize,
    /// Bytes of the text that is kept with a committed offset (`offset.metadata.max.bytes`).
    pub metadata_bytes_max: usize,
    /// How long a committed offset that nobody uses is kept (`offsets.retention.minutes`).
    pub retention_ms: i64,
    /// Records that a log has at least before a snapshot is worth its while.
    pub snapshot_records_min: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            session_timeout_min_ms: 6_000,
            session_timeout_max_ms: 1_800_000,
            initial_delay_ms: 3_000,
            members_max: crate::limits::GROUP_MEMBERS_MAX,
            metadata_bytes_max: 4_096,
            retention_ms: 7 * 86_400_000,
            snapshot_records_min: crate::limits::SNAPSHOT_RECORDS_MIN,
        }
    }
}
