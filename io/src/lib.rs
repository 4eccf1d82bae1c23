//! The machine below the broker: executors, file ring, sockets, mesh, clock; decides nothing about data.

#[cfg(not(loom))]
pub mod clock;
#[cfg(not(loom))]
pub mod control;
#[cfg(not(loom))]
pub mod disk;
#[cfg(not(loom))]
pub mod entropy;
#[cfg(not(loom))]
pub mod executor;
pub mod limits;
#[cfg(not(loom))]
pub mod mapped;
pub mod mesh;
#[cfg(not(loom))]
pub mod net;
#[cfg(not(loom))]
pub mod ring;
#[cfg(not(loom))]
pub mod selftest;
#[cfg(not(loom))]
pub mod usage;
pub mod wake;
