//! Every bound of the broker's decisions, with the proofs between them; knows nothing of who runs into them.

use coulee_protocol::limits::{BATCH_BYTES_MAX, FRAME_BYTES_MAX};

/// What direct I/O is aligned to, whatever the device says.
pub const BLOCK_BYTES: usize = 4_096;
/// Where small batches start.
pub const BATCH_ALIGN: usize = 64;
/// From this size on a batch starts on a block of its own and is zero-padded to the next (docs/decisions/001).
pub const LARGE_BATCH_BYTES: usize = 32 << 10;
/// Header page of a segment.
pub const HEADER_PAGE_BYTES: usize = BLOCK_BYTES;
/// What a segment keeps free at its end: the footer's block and the trailer's.
pub const SEGMENT_END_BYTES: usize = 2 * BLOCK_BYTES;
/// The four sizes of segments, in bytes.
pub const SEGMENT_SIZES: [u32; 4] = [64 << 10, 1 << 20, 16 << 20, 128 << 20];

/// A segment filled within this many milliseconds is followed by one of the next larger size.
pub const QUICK_FILL_MS: u64 = 600_000;

/// The largest buffer that small batches are gathered in.
pub const TAIL_BLOCK_BYTES: usize = 64 << 10;
/// One write, at most.
pub const WRITE_BYTES_MAX: usize = 1 << 20;
/// Writes of one partition in flight, at most.
pub const WRITES_IN_FLIGHT_MAX: usize = 16;
/// Bytes of one partition that are appended and not yet durable, at most: recovery need not look further than this
/// beyond a bad frame for a batch that proves the frame was durable.
pub const UNSYNCED_BYTES_MAX: usize = 64 << 20;
/// Appends that wait for a segment file or for a sync, in one partition.
pub const WAITING_APPENDS_MAX: usize = 16_384;

/// Bytes between two entries of a sparse index.
pub const INDEX_INTERVAL_BYTES: u32 = 64 << 10;
/// Index entries of an active segment that a checkpoint carries.
pub const CHECKPOINT_INDEX_ENTRIES_MAX: usize = 32;
/// How long a durable end may move before a checkpoint follows it, in milliseconds.
pub const CHECKPOINT_INTERVAL_MS: u64 = 100;

/// One read from a file.
pub const READ_BYTES: usize = 1 << 20;
/// What one part of a fetch takes from files, at most: a round trip for each MiB would cost as much as the MiB.
pub const FETCH_READ_BYTES: usize = 2 << 20;
/// How far a sealed segment is read ahead of a reader that takes it in pieces of [`BULK_READ_BYTES`] or more.
pub const READ_AHEAD_BYTES: usize = 8 << 20;
/// See [`READ_AHEAD_BYTES`].
pub const BULK_READ_BYTES: usize = 256 << 10;
/// One write of zeros into a file for the pool: larger ones starve the log beside them (docs/decisions/001).
pub const ZERO_BYTES: usize = 256 << 10;
/// Reads of one shard in flight, at most.
pub const READS_IN_FLIGHT_MAX: usize = 256;
/// Partitions on a shard.
pub const SHARD_PARTITIONS_MAX: usize = 10_000;
/// Changes of the catalog that wait for the one before.
pub const CATALOG_CHANGES_WAITING_MAX: usize = 1_024;
/// Fetches parked on a shard.
pub const PARKED_FETCHES_MAX: usize = 65_536;
/// Sealed segment files that a shard keeps open.
pub const OPEN_SEALED_FILES_MAX: usize = 1_024;
/// Commands that a shard takes in one cycle.
pub const CYCLE_COMMANDS_MAX: usize = 4_096;

/// Groups of one partition of the offsets topic.
pub const GROUPS_MAX: usize = 200_000;
/// Members of one group.
pub const GROUP_MEMBERS_MAX: usize = 5_000;
/// Bytes that all members of one group have told, and those that they have been assigned: both go into one record.
pub const GROUP_BYTES_MAX: usize = 3 << 20;
/// Partitions that one group has committed offsets of.
pub const GROUP_OFFSETS_MAX: usize = 100_000;
/// How often committed offsets are looked through for old ones, in milliseconds (Kafka's
/// `offsets.retention.check.interval.ms`).
pub const GROUP_SWEEP_INTERVAL_MS: u64 = 600_000;
/// Groups that are looked through at a time.
pub const GROUP_SWEEP_MAX: usize = 512;
/// Records that a coordinator's log has at least before a snapshot is worth its while.
pub const SNAPSHOT_RECORDS_MIN: usize = 16_384;
/// How long after a snapshot that failed the next is tried, in milliseconds.
pub const SNAPSHOT_RETRY_MS: u64 = 10_000;
/// Bytes of one batch of a snapshot, about.
pub const BATCH_BYTES_FOR_SNAPSHOT: usize = 256 << 10;
/// What a batch has beside the bytes of its records, at most, as far as a coordinator's records go.
pub const BATCH_OVERHEAD_BYTES: usize = 1_024;

/// Frames up to this size have a reserve of their own in the budget.
pub const SMALL_FRAME_BYTES: usize = 16 << 10;
/// Leader epochs that may begin in one segment: what the footer's block can hold.
pub const SEGMENT_EPOCHS_MAX: usize = 190;

// A small batch and the unfinished block before it always fit a tail block.
const _: () = assert!(LARGE_BATCH_BYTES + BLOCK_BYTES + BATCH_ALIGN <= TAIL_BLOCK_BYTES);
// The largest batch fits the largest segment, with header page, footer and trailer, and the segment before that too.
const _: () =
    assert!(BATCH_BYTES_MAX + BLOCK_BYTES + HEADER_PAGE_BYTES + SEGMENT_END_BYTES <= SEGMENT_SIZES[2] as usize);
const _: () = assert!(LARGE_BATCH_BYTES + HEADER_PAGE_BYTES + SEGMENT_END_BYTES <= SEGMENT_SIZES[0] as usize);
// A write never has to split a batch that fits one frame beyond what may be in flight.
const _: () = assert!(UNSYNCED_BYTES_MAX >= WRITES_IN_FLIGHT_MAX * WRITE_BYTES_MAX);
const _: () = assert!(UNSYNCED_BYTES_MAX >= 2 * FRAME_BYTES_MAX);
const _: () = assert!(BLOCK_BYTES.is_multiple_of(BATCH_ALIGN) && TAIL_BLOCK_BYTES.is_multiple_of(BLOCK_BYTES));
// What members have told and what they are assigned fit one record, with room for names.
const _: () = assert!(2 * GROUP_BYTES_MAX + (1 << 20) <= BATCH_BYTES_MAX);
// Every segment size is whole blocks, so that direct I/O covers it.
const _: () = assert!(SEGMENT_SIZES[0].is_multiple_of(BLOCK_BYTES as u32) && SEGMENT_SIZES[3].is_multiple_of(1 << 20));
