//! Every bound of executors, mesh, sockets and watchdog; knows nothing of who runs into them.

/// Messages between two shards that wait to be taken, in one direction.
pub const MESH_RING_SLOTS: usize = 1_024;

/// Slices in one vectored read or write: the kernel's `UIO_MAXIOV`.
pub const VECTORED_SLICES_MAX: usize = 1_024;

/// What glommio refuses to start below.
pub const LOCKED_MEMORY_BYTES_MIN: u64 = 512 << 10;
/// Memory that an executor may register with its rings. glommio's default pins 30 MiB.
pub const IO_MEMORY_BYTES_MIN: usize = 256 << 10;
/// See [`IO_MEMORY_BYTES_MIN`].
pub const IO_MEMORY_BYTES_MAX: usize = 1 << 20;

/// How often the watchdog looks while a shard is awake.
pub const WATCHDOG_TICK_US: u64 = 5_000;
/// Ticks without a shard awake after which the watchdog waits to be called.
pub const WATCHDOG_QUIET_TICKS: u32 = 40;
/// How often a shard that sleeps is nudged, in case that it has lost a wake-up.
pub const SLEEP_NUDGE_US: u64 = 1_000_000;
/// Nudges of one shard that gives no sign of life. Each one is a clone of a waker until the shard runs again, and
/// glommio counts those in an `i16`.
pub const NUDGES_MAX: u32 = 1_000;

const _: () = assert!(MESH_RING_SLOTS.is_power_of_two());
const _: () = assert!(IO_MEMORY_BYTES_MIN <= IO_MEMORY_BYTES_MAX);
const _: () = assert!(NUDGES_MAX < i16::MAX as u32 / 4);
