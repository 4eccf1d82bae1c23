//! Async Rust client of Coulee: producer, consumer, admin over the native protocol; knows no broker crate.
#![forbid(unsafe_code)]
