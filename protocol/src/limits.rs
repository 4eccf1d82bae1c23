//! Every bound of the wire, with the proofs between them; knows nothing of who enforces them.

/// A whole frame, header included.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// `max.message.bytes` by default: one record batch, header included (Kafka's number).
pub const BATCH_BYTES_DEFAULT_MAX: usize = 1_048_588;
/// The largest value that `max.message.bytes` may take.
pub const BATCH_BYTES_MAX: usize = 8 << 20;
/// Records in one batch.
pub const BATCH_RECORDS_MAX: u32 = 1_000_000;
/// Headers of one record.
pub const RECORD_HEADERS_MAX: u32 = 1_000;
/// Bytes of one data column once decompressed: 8 × the largest batch.
pub const COLUMN_BYTES_MAX: usize = 64 << 20;
/// Partitions that one Fetch may name.
pub const FETCH_PARTITIONS_MAX: usize = 4_096;
/// What a connection may hold before its Hello is answered.
pub const HELLO_BYTES_MAX: usize = 4 << 10;
/// A topic name.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;
/// Partitions of one topic.
pub const TOPIC_PARTITIONS_MAX: u32 = 10_000;
/// Configuration entries in one request.
pub const CONFIG_ENTRIES_MAX: usize = 256;
/// Topics that one request may name.
pub const REQUEST_TOPICS_MAX: usize = 10_000;
/// The name of a group, of a static member, of a client, of an assignment protocol.
pub const GROUP_NAME_BYTES_MAX: usize = 255;
/// Members that one request may name.
pub const GROUP_MEMBERS_MAX: usize = 5_000;
/// Assignment protocols that one member may know.
pub const GROUP_PROTOCOLS_MAX: usize = 16;
/// The longest that a group may be told to wait for a member: a day.
pub const REBALANCE_TIMEOUT_MS_MAX: u32 = 86_400_000;
/// Partitions whose offsets one request may commit, fetch or delete.
pub const OFFSET_PARTITIONS_MAX: usize = 100_000;
/// The greatest offset that can be committed.
pub const OFFSETS_MAX: u64 = i64::MAX as u64;

const _: () = assert!(BATCH_BYTES_DEFAULT_MAX <= BATCH_BYTES_MAX);
// A frame can always carry one batch of the largest size and its body.
const _: () = assert!(BATCH_BYTES_MAX + 4_096 < FRAME_BYTES_MAX);
// Column ends are below 2^31 (Arrow's 32-bit binary array).
const _: () = assert!(COLUMN_BYTES_MAX < 1 << 31);
const _: () = assert!(HELLO_BYTES_MAX < FRAME_BYTES_MAX);
