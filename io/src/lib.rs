//! The machine below the broker: executors, file ring, sockets, mesh, clock; decides nothing about data.

#[cfg(not(loom))]
pub mod disk;
#[cfg(not(loom))]
pub mod mapped;
#[cfg(not(loom))]
pub mod ring;
#[cfg(not(loom))]
pub mod selftest;
