//! Why a run is of no use; decides nothing.

use std::fmt;
use std::io;

/// What went wrong.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The machine: a socket, a thread, a process.
    Machine {
        /// What was tried.
        what: &'static str,
        error: io::Error,
    },
    /// What the broker sent cannot be read.
    Wire {
        /// What was read.
        what: &'static str,
        detail: String,
    },
    /// The broker has refused a request.
    Refused { code: u16, message: String },
    /// A call of the SDK: a topic, statistics.
    Control { what: &'static str, detail: String },
    /// A record is lost, doubled, reordered or changed.
    Record { partition: u64, what: &'static str, expected: u64, found: u64 },
    /// Nothing came for too long.
    Stalled { what: &'static str, seconds: u64, outstanding: u64 },
    /// A started broker has ended, or never said that it was ready.
    Broker { detail: String },
    /// A server that Coulee is compared with has refused something, or said what it should not.
    Peer { peer: &'static str, detail: String },
    /// What a suite is to run cannot be understood.
    Targets { detail: String },
}

impl Fault {
    pub(crate) fn machine(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Machine { what, error }
    }

    pub(crate) fn wire(what: &'static str, detail: impl fmt::Display) -> Self {
        Self::Wire { what, detail: detail.to_string() }
    }

    pub(crate) fn control(what: &'static str) -> impl FnOnce(coulee_client::AdminError) -> Self {
        move |error| Self::Control { what, detail: error.to_string() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine { what, error } => write!(formatter, "{what}: {error}"),
            Self::Wire { what, detail } => write!(formatter, "{what} cannot be read: {detail}"),
            Self::Refused { code, message } => write!(formatter, "the broker refuses with {code}: {message}"),
            Self::Control { what, detail } => write!(formatter, "{what}: {detail}"),
            Self::Record { partition, what, expected, found } => {
                write!(formatter, "partition {partition}: {what} is {found}, expected {expected}")
            }
            Self::Stalled { what, seconds, outstanding } => {
                write!(formatter, "{what}: nothing for {seconds} s, {outstanding} outstanding")
            }
            Self::Broker { detail } => write!(formatter, "the started broker: {detail}"),
            Self::Peer { peer, detail } => write!(formatter, "{peer}: {detail}"),
            Self::Targets { detail } => formatter.write_str(detail),
        }
    }
}

impl std::error::Error for Fault {}
