//! Async Rust client of Coulee: producer, consumer, admin over the native protocol; knows nothing of the broker's insides.
#![forbid(unsafe_code)]
