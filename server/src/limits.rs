//! Bounds of the wiring: what a connection, a cycle and a queue between shards may hold; knows no log.

use coulee_protocol::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX};
use std::time::Duration;

/// The least that is asked of a socket at once, and the most that is read ahead of a large frame.
pub(crate) const READ_BYTES_MIN: usize = 4 << 10;
/// The most that is asked of a socket at once while its frames are small.
pub(crate) const READ_BYTES_MAX: usize = 64 << 10;
/// Frames from this size on are received into memory of their own.
pub(crate) const OWN_FRAME_BYTES: usize = 32 << 10;
/// Bytes that one connection may bring in one cycle before it is the next one's turn.
pub(crate) const CONNECTION_CYCLE_BYTES: usize = 512 << 10;
/// Frames that one connection may bring in one cycle.
pub(crate) const CONNECTION_CYCLE_FRAMES: usize = 1_024;
/// Requests of one connection that are unanswered.
pub(crate) const IN_FLIGHT_REQUESTS_MAX: usize = 16_384;
/// Of those, requests in frames above 16 KiB, or other than Produce.
pub(crate) const IN_FLIGHT_LARGE_MAX: usize = 64;
/// Bytes of one connection's unanswered requests.
pub(crate) const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;
/// The most that a fetch asks of the log while the shard is crowded with answers, or of another shard.
pub(crate) const MODEST_FETCH_BYTES: usize = 1 << 20;
/// Answers of one connection that wait for its socket; above it no further request is read.
pub(crate) const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Slices given to the socket in one call.
pub(crate) const OUTPUT_SLICES_MAX: usize = 64;
/// Spare buffers for answers that a shard keeps.
pub(crate) const SPARE_BUFFERS_MAX: usize = 64;
/// A spare buffer larger than this is not kept.
pub(crate) const SPARE_BUFFER_BYTES_MAX: usize = 256 << 10;
/// Messages that a shard takes from others in one cycle.
pub(crate) const CYCLE_MESSAGES_MAX: usize = 1_024;
/// Messages to one shard that wait for room in the mesh; above it no connection is read.
pub(crate) const OUTBOX_MESSAGES_MAX: usize = 4_096;
/// Connections that a shard accepts in one cycle: a crowd that comes at once does not keep acks waiting.
pub(crate) const CYCLE_ACCEPTS_MAX: usize = 16;
/// Descriptors of files and rings, which no connection may take: a segment that cannot be opened stops its partition.
pub(crate) const OTHER_DESCRIPTORS: u32 = 4_096;
/// Connections that a shard closes in one cycle because their time is over.
pub(crate) const CYCLE_DEADLINES_MAX: usize = 16;
/// Frames of all connections in one cycle, but for what the last turn brings: small requests by the thousand are
/// written and synced in parts, so that the disk works while the next part is read.
pub(crate) const CYCLE_FRAMES_MAX: usize = 1_024;
/// Requests that are answered in one cycle because their client's time is over.
pub(crate) const CYCLE_OVERTIMES_MAX: usize = 1_024;
/// Requests that are noted with the time of their client before those that were noted first are looked at.
pub(crate) const OVERTIME_NOTES_MAX: usize = 16_384;
/// A request that is answered within this time is never put in the order of deadlines, in milliseconds.
pub(crate) const OVERTIME_TICK_MS: u64 = 100;
/// Connections that have their turn in one cycle.
pub(crate) const CYCLE_TURNS_MAX: usize = 256;

/// The longest sleep, in milliseconds: a shard that has lost a wake-up goes on, and one that has not pays for an empty
/// cycle.
pub(crate) const SLEEP_MS_MAX: u64 = 1_000;
/// How long a start waits for a taken port to become free.
pub(crate) const BIND_PATIENCE: Duration = Duration::from_secs(2);
/// A connection has to say Hello within this time, in milliseconds.
pub(crate) const HELLO_WAIT_MS: u64 = 5_000;
/// A frame has to bring this much in each period, or its connection is closed.
pub(crate) const FRAME_BYTES_PER_PERIOD: usize = 5 * (64 << 10);
/// That period, in milliseconds.
pub(crate) const FRAME_PERIOD_MS: u64 = 5_000;
/// A peer that takes none of its answers for this long is gone, in milliseconds.
pub(crate) const OUTPUT_STALL_MS: u64 = 60_000;
/// How long a shard waits before it asks again for a connection when descriptors have run out, in milliseconds.
pub(crate) const ACCEPT_PAUSE_MS: u64 = 100;
/// The longest that a fetch may wait for records, in milliseconds.
pub(crate) const FETCH_WAIT_MS_MAX: u32 = 60_000;
/// How long after a try to make the topic of committed offsets the next one comes, in milliseconds.
pub(crate) const OFFSETS_TOPIC_PAUSE_MS: u64 = 1_000;

const _: () = assert!(READ_BYTES_MIN >= HELLO_BYTES_MAX && READ_BYTES_MAX >= OWN_FRAME_BYTES);
const _: () = assert!(IN_FLIGHT_BYTES_MAX >= 2 * FRAME_BYTES_MAX);

/// Of `wanted` connections, those for which there are descriptors where a process may have `limit` in all. Files have
/// half of a small limit.
pub(crate) fn connections_within(limit: u64, wanted: u32) -> u32 {
    let files = (limit / 2).min(u64::from(OTHER_DESCRIPTORS));
    wanted.min(u32::try_from(limit - files).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_files() {
        assert_eq!(connections_within(128, 20_000), 64);
        assert_eq!(connections_within(20_000, 20_000), 15_904);
        assert_eq!(connections_within(65_536, 20_000), 20_000);
        assert_eq!(connections_within(u64::MAX, 1_000_000), 1_000_000);
    }
}
