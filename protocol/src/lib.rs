//! Bytes on the wire and in the log; knows no socket, no file, no clock and takes no decision of the broker's.
//!
//! | module | owns |
//! |---|---|
//! | [`ids`] | offsets, epochs, ids and timestamps as distinct types |
//! | [`limits`] | every bound of the wire, with the proofs between them |
//! | [`error`] | the one list of error codes |
//! | [`frame`] | the 24-byte frame header |
//! | [`hello`] | the frozen, hand-coded first exchange |
//! | [`api`] | the one table of APIs and the versioned request and response types |
//! | [`batch`] | the 128-byte record batch header |
//! | [`columns`] | the columnar payload: builder, validation, zero-copy reader |
//! | [`compression`] | lz4 and zstd over data columns |
//! | [`kafka`] | Kafka's own schemas, where its bytes are kept or passed on |
//! | [`partitioner`] | Kafka's murmur2: which partition a key belongs to |
//!
//! Every decoder in this crate is total: whatever the bytes, it returns a value or a typed error, never panics and
//! never allocates by a length it has not checked against what is left.
#![forbid(unsafe_code)]

pub mod api;
pub mod batch;
pub mod columns;
pub mod compression;
pub mod error;
pub mod frame;
pub mod hello;
pub mod ids;
pub mod kafka;
pub mod limits;
pub mod partitioner;
