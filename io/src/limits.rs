//! Every bound of executors, mesh and sockets; knows nothing of who runs into them.

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

const _: () = assert!(MESH_RING_SLOTS.is_power_of_two());
const _: () = assert!(IO_MEMORY_BYTES_MIN <= IO_MEMORY_BYTES_MAX);
