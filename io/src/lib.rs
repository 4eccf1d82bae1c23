//! The machine below the broker: executors, file ring, sockets, mesh, clock; decides nothing about data.

#[cfg(not(loom))]
pub mod clock;
#[cfg(not(loom))]
pub mod entropy;
#[cfg(not(loom))]
pub mod executor;
pub mod limits;
pub mod mesh;
#[cfg(not(loom))]
pub mod net;
pub mod wake;
#[cfg(not(loom))]
pub mod watchdog;
