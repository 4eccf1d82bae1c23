//! The broker: wires listeners to shards and shards to each other; decides nothing about data.
#![forbid(unsafe_code)]

pub mod config;
