//! Everything that decides about data: log, partition, shard, catalog; knows no socket, no kernel, no clock, no chance.
//!
//! Where to start reading: [`shard`] owns the partitions of one core and turns commands into effects, cycle by cycle;
//! [`partition`] orders and acknowledges; [`log`] keeps. Files are reached through [`disk::Disk`] only.
#![forbid(unsafe_code)]

pub mod block;
pub mod catalog;
pub mod checkpoint;
pub mod config;
pub mod controller;
pub mod disk;
pub mod executor;
pub mod groups;
pub mod limits;
pub mod log;
pub mod meta;
pub mod partition;
pub mod placement;
pub mod pool;
pub mod repair;
pub mod shard;
pub mod verify;
