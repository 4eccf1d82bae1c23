//! Every bound of the client, with the proofs between them; knows nothing of who runs into them.

use std::time::Duration;

use coulee_protocol::limits::{BATCH_BYTES_MAX, FRAME_BYTES_MAX};

/// Requests in flight on one connection whose frame is larger than [`SMALL_FRAME_BYTES`].
pub const IN_FLIGHT_LARGE_MAX: usize = 64;
/// Requests in flight on one connection whose frame is small: single records are pipelined deeply.
pub const IN_FLIGHT_SMALL_MAX: usize = 16_384;
/// Up to this size a frame counts as small.
pub const SMALL_FRAME_BYTES: usize = 16 << 10;
/// Bytes in flight on one connection: of requests, and of the answers that they ask for.
pub const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;
/// Requests that wait for room on one connection; whoever has one more waits itself.
pub(crate) const COMMANDS_MAX: usize = 1_024;
/// Frames up to this size are copied together, so that many go out with one system call.
pub(crate) const COALESCED_BYTES: usize = 4 << 10;
/// What is gathered before it goes out as one piece.
pub(crate) const GATHERED_BYTES: usize = 256 << 10;
/// Pieces that one write hands to the kernel.
pub(crate) const WRITE_SLICES: usize = 16;
/// What one read makes room for.
pub(crate) const READ_BYTES: usize = 64 << 10;
/// How often a connection looks for requests that wait too long.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// The pause after the first failed try; it doubles with each one.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// The longest pause between two tries.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Bytes that a taken record is counted with beside its own.
pub(crate) const RECORD_OVERHEAD_BYTES: usize = 32;
/// Batches of one partition in flight, at most.
pub const WINDOW_MAX: usize = IN_FLIGHT_SMALL_MAX;
/// Memory that one producer may hold records in, at most.
pub const PRODUCER_MEMORY_MAX: usize = 1 << 30;
/// Builders that a producer keeps for reuse.
pub(crate) const SPARE_BUILDERS_MAX: usize = 8;
/// What one fetch may ask for, at most: room is left for its answer's body.
pub const FETCH_BYTES_MAX: usize = 15 << 20;

const _: () = assert!(IN_FLIGHT_LARGE_MAX <= IN_FLIGHT_SMALL_MAX);
// A request of any size can be in flight when nothing else is.
const _: () = assert!(FRAME_BYTES_MAX <= IN_FLIGHT_BYTES_MAX);
const _: () = assert!(COALESCED_BYTES < GATHERED_BYTES);
// A produce request has one batch of any size, and compression that gains nothing still fits a frame.
const _: () = assert!(BATCH_BYTES_MAX + BATCH_BYTES_MAX / 64 < FRAME_BYTES_MAX);
// An answer with one batch of any size fits a frame, whatever `max_bytes` was.
const _: () = assert!(BATCH_BYTES_MAX < FETCH_BYTES_MAX && FETCH_BYTES_MAX < FRAME_BYTES_MAX);
// Permits of a semaphore are counted in u32 at a time.
const _: () = assert!(PRODUCER_MEMORY_MAX < u32::MAX as usize);
