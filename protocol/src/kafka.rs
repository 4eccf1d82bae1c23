//! Kafka's own bytes where Coulee keeps or passes them on: owns their schemas; knows no group and no topic.
//!
//! | module | owns |
//! |---|---|
//! | [`consumer_offsets`] | keys and values of `__consumer_offsets`, as Kafka's tools read them |
//! | [`consumer_protocol`] | what members of a group tell their leader, and what it tells them |
//!
//! Everything is big endian. Decoders are total: whatever the bytes, a value or a typed error, and nothing is allocated
//! by a count that is not checked against the bytes that are left.

mod bytes;
pub mod consumer_offsets;
pub mod consumer_protocol;

pub use bytes::{Reader, Writer};

use std::fmt;

/// Why bytes are not of the schema that they are read with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaError {
    /// They end early.
    Short {
        /// What is missing.
        what: &'static str,
    },
    /// They go on behind the end.
    Trailing {
        /// How many do.
        bytes: usize,
    },
    /// A length or count below zero where there has to be one.
    Negative {
        /// Of what.
        what: &'static str,
    },
    /// A text is not UTF-8.
    NotUtf8 {
        /// Which.
        what: &'static str,
    },
    /// A version that this program does not read.
    Version {
        /// Of what.
        what: &'static str,
        /// Which.
        found: i16,
    },
}

impl fmt::Display for SchemaError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { what } => write!(formatter, "bytes end before {what}"),
            Self::Trailing { bytes } => write!(formatter, "{bytes} bytes behind the end"),
            Self::Negative { what } => write!(formatter, "length of {what} is below 0"),
            Self::NotUtf8 { what } => write!(formatter, "{what} is not utf-8"),
            Self::Version { what, found } => write!(formatter, "{what} of version {found} is not known"),
        }
    }
}

impl std::error::Error for SchemaError {}
