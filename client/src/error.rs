//! Why an operation failed: owns one small enum for each operation; decides no retry.

use std::fmt;
use std::io;

use coulee_protocol::api::BodyError;
use coulee_protocol::api::error_body::ErrorBody;
use coulee_protocol::api::topics::TopicNameError;
use coulee_protocol::api::{ApiKey, access};
use coulee_protocol::batch::HeaderError;
use coulee_protocol::columns::ColumnsError;
use coulee_protocol::error::{ErrorCode, Outcome};
use coulee_protocol::frame::FrameError;
use coulee_protocol::hello::HelloError;

pub use crate::connection::flight::Violation;

/// An answer with an error code: the broker has understood and refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The number as it came; perhaps one that this version does not know.
    pub number: u16,
    /// What went wrong, for people.
    pub message: String,
    /// Facts for programs and logs; may be empty.
    pub detail: String,
    /// Whether a write may have happened all the same.
    pub outcome: Outcome,
}

impl Refusal {
    /// The refusal in an answer's header and body. A body that says nothing readable leaves the number's meaning.
    pub(crate) fn read(number: u16, body: &[u8]) -> Self {
        let known = ErrorCode::from_code(number);
        // The careful one of what the table says and what the broker says counts.
        let of_table = known.map_or(Outcome::Unknown, ErrorCode::outcome);
        let meaning = || known.map_or("unknown error code", ErrorCode::meaning).to_owned();
        let Ok(body) = access::<ErrorBody>(body) else {
            return Self { number, message: meaning(), detail: String::new(), outcome: of_table };
        };
        let outcome = if body.outcome() == Outcome::Unknown { Outcome::Unknown } else { of_table };
        Self {
            number,
            message: body.message().map_or_else(|_| meaning(), str::to_owned),
            detail: body.detail().unwrap_or_default().to_owned(),
            outcome,
        }
    }

    /// The refusal that only a code in a body tells of.
    pub(crate) fn of_code(number: u16) -> Self {
        Self::read(number, &[])
    }

    /// The code; `None` for a number that this version does not know.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        ErrorCode::from_code(self.number)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code() {
            Some(code) => code.fmt(formatter)?,
            None => write!(formatter, "E{}", self.number)?,
        }
        write!(formatter, ": {}", self.message)?;
        if self.detail.is_empty() { Ok(()) } else { write!(formatter, " ({})", self.detail) }
    }
}

impl std::error::Error for Refusal {}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// No address was given.
    NoAddress,
    /// The address can't be resolved or reached: start the broker, or correct the address.
    Unreachable {
        /// The address as it was given.
        address: String,
        /// What the system says.
        kind: io::ErrorKind,
    },
    /// Nobody answered in time.
    TimedOut {
        /// The address as it was given.
        address: String,
    },
    /// The broker refused the Hello.
    Refused(Refusal),
    /// What answered does not speak this protocol, or speaks another version of it.
    NotABroker {
        /// The address as it was given.
        address: String,
        /// Where the answer went wrong.
        fault: HelloFault,
    },
    /// The client's name does not fit a Hello.
    ClientName(HelloError),
}

/// What is wrong with the answer to a Hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloFault {
    /// The connection was closed instead.
    Closed,
    /// Its frame is broken.
    Frame(FrameError),
    /// It answers something else.
    Violation(Violation),
    /// Its body is broken.
    Body(HelloError),
    /// The broker chose a protocol that was not offered.
    Protocol {
        /// Which.
        found: u16,
    },
}

impl ConnectError {
    /// The broker's error code, where it gave one.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(refusal) => refusal.code(),
            _ => None,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress => formatter.write_str("no address of a broker was given"),
            Self::Unreachable { address, kind } => write!(formatter, "no connection to {address}: {kind}"),
            Self::TimedOut { address } => write!(formatter, "no answer from {address} in time"),
            Self::Refused(refusal) => write!(formatter, "hello refused: {refusal}"),
            Self::NotABroker { address, fault } => {
                write!(formatter, "{address} does not speak this protocol: {fault:?}")
            }
            Self::ClientName(error) => error.fmt(formatter),
        }
    }
}

impl std::error::Error for ConnectError {}

/// Why a request that was answered by the broker, or not at all, brought nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminError {
    /// There was no connection within the time for a request. Nothing happened.
    Connect(ConnectError),
    /// The broker refused. [`Refusal::outcome`] says whether a change may have happened.
    Refused(Refusal),
    /// The connection broke, or the time was up, before the answer came: a change may have happened.
    OutcomeUnknown,
    /// The broker does not have this API in a version that this client knows. Nothing happened.
    Unsupported {
        /// Which.
        api: ApiKey,
    },
    /// The answer can't be read: a change has happened, what it brought is unknown.
    Unreadable(BodyError),
    /// The name is no topic name. Nothing was sent.
    TopicName(TopicNameError),
    /// The topic has no such partition. Nothing was sent.
    NoPartition {
        /// The topic.
        topic: String,
        /// The partition asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
}

impl AdminError {
    /// The error code, where there is one.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Connect(error) => error.code(),
            Self::Refused(refusal) => refusal.code(),
            Self::OutcomeUnknown => Some(ErrorCode::OutcomeUnknown),
            Self::Unsupported { .. } => Some(ErrorCode::UnsupportedVersion),
            Self::TopicName(_) => Some(ErrorCode::InvalidTopicException),
            Self::NoPartition { .. } => Some(ErrorCode::UnknownTopicOrPartition),
            Self::Unreadable(_) => None,
        }
    }
}

impl fmt::Display for AdminError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(formatter),
            Self::Refused(refusal) => refusal.fmt(formatter),
            Self::OutcomeUnknown => {
                write!(formatter, "{}: no answer came, the change may have happened", ErrorCode::OutcomeUnknown)
            }
            Self::Unsupported { api } => write!(formatter, "the broker has no version of {api} that this client knows"),
            Self::Unreadable(error) => write!(formatter, "the answer can't be read: {error}"),
            Self::TopicName(error) => error.fmt(formatter),
            Self::NoPartition { topic, partition, partitions } => {
                write!(formatter, "topic {topic} has no partition {partition}: there are {partitions}, counted from 0")
            }
        }
    }
}

impl std::error::Error for AdminError {}

/// Why a producer did not take a record. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The producer was closed.
    Closed,
    /// The record fits no batch of the size that this producer makes.
    TooLarge {
        /// Bytes that it needs at least.
        bytes: usize,
        /// Bytes that there may be.
        max: usize,
    },
    /// More headers than a record may have.
    TooManyHeaders,
    /// The topic has no such partition.
    NoPartition {
        /// The partition asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
}

impl SendError {
    /// The error code, where there is one.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Closed => None,
            Self::TooLarge { .. } => Some(ErrorCode::MessageTooLarge),
            Self::TooManyHeaders => Some(ErrorCode::InvalidRecord),
            Self::NoPartition { .. } => Some(ErrorCode::UnknownTopicOrPartition),
        }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => formatter.write_str("the producer is closed"),
            Self::TooLarge { bytes, max } => write!(formatter, "record needs {bytes} bytes, at most {max} allowed"),
            Self::TooManyHeaders => formatter.write_str("record has too many headers"),
            Self::NoPartition { partition, partitions } => {
                write!(formatter, "the topic has no partition {partition}: there are {partitions}, counted from 0")
            }
        }
    }
}

impl std::error::Error for SendError {}

/// What became of a record that was taken and not confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryError {
    /// It was surely not written: sending it again can't double it.
    NotWritten {
        /// The broker's last word on it.
        refusal: Refusal,
    },
    /// It was surely not written: until its time was up there was no connection that took it.
    Undelivered,
    /// It may have been written ([`ErrorCode::OutcomeUnknown`]): sending it again may double it.
    OutcomeUnknown {
        /// The broker's answer, where one came.
        refusal: Option<Refusal>,
    },
    /// The batch could not be built. It was not written.
    Unbuilt(coulee_protocol::columns::builder::BuildError),
}

impl DeliveryError {
    /// The error code: the broker's, or [`ErrorCode::OutcomeUnknown`].
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::NotWritten { refusal } => refusal.code(),
            Self::OutcomeUnknown { .. } => Some(ErrorCode::OutcomeUnknown),
            Self::Undelivered | Self::Unbuilt(_) => None,
        }
    }

    /// Whether the record may have been written.
    #[must_use]
    pub fn may_be_written(&self) -> bool {
        matches!(self, Self::OutcomeUnknown { .. })
    }
}

impl fmt::Display for DeliveryError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWritten { refusal } => write!(formatter, "not written: {refusal}"),
            Self::Undelivered => formatter.write_str("not written: no broker took it in time"),
            Self::OutcomeUnknown { refusal: Some(refusal) } => {
                write!(formatter, "{}: may have been written: {refusal}", ErrorCode::OutcomeUnknown)
            }
            Self::OutcomeUnknown { refusal: None } => {
                write!(formatter, "{}: may have been written, no answer came", ErrorCode::OutcomeUnknown)
            }
            Self::Unbuilt(error) => write!(formatter, "not written: {error}"),
        }
    }
}

impl std::error::Error for DeliveryError {}

/// Why a poll brought no batch. Each names its partition, which rests until the caller has decided; others go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumeError {
    /// Stored records are damaged (`RANGE_DAMAGED`): [`crate::Consumer::skip_damaged`] goes on behind them.
    Damaged {
        /// The partition.
        partition: u32,
        /// The first damaged offset.
        from: u64,
        /// The end of the damage.
        to: u64,
    },
    /// The position is outside of the log: [`crate::Consumer::seek`] somewhere else.
    OutOfRange {
        /// The partition.
        partition: u32,
        /// The position.
        position: u64,
        /// The first readable offset.
        log_start: u64,
        /// The end of what is visible.
        high_watermark: u64,
    },
    /// The broker refuses to serve the partition.
    Refused {
        /// The partition.
        partition: u32,
        /// Why.
        refusal: Refusal,
    },
    /// What came is not what the position asked for, or broken: [`crate::Consumer::seek`] reads it again.
    Corrupt {
        /// The partition.
        partition: u32,
        /// The position.
        position: u64,
        /// What is wrong.
        fault: BatchFault,
    },
    /// No broker answered for longer than the time for a request. The next poll tries again.
    Unreachable(AdminError),
}

/// What is wrong with a fetched batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchFault {
    /// Its header.
    Header(HeaderError),
    /// It is cut off.
    Cut {
        /// Bytes that it should have.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// Its payload does not fit its checksum.
    PayloadCrc {
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
    /// It belongs to another partition.
    OtherPartition {
        /// The partition's uid.
        expected: u64,
        /// The batch's.
        found: u64,
    },
    /// It neither holds the position nor follows the batch before.
    Offsets {
        /// The offset that should come next.
        expected: u64,
        /// The first of the batch.
        base: u64,
        /// Its end.
        end: u64,
    },
    /// It is not chained to the batch before: the log has changed below what was read.
    Chain,
    /// Its columns can't be read.
    Columns(ColumnsError),
    /// Its encoding is one that this client does not read.
    Encoding,
}

impl ConsumeError {
    /// The error code, where there is one.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Damaged { .. } => Some(ErrorCode::RangeDamaged),
            Self::OutOfRange { .. } => Some(ErrorCode::OffsetOutOfRange),
            Self::Refused { refusal, .. } => refusal.code(),
            Self::Corrupt { .. } => Some(ErrorCode::CorruptMessage),
            Self::Unreachable(error) => error.code(),
        }
    }
}

impl fmt::Display for ConsumeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged { partition, from, to } => {
                write!(formatter, "{}: partition {partition}, offsets {from} to {to}", ErrorCode::RangeDamaged)
            }
            Self::OutOfRange { partition, position, log_start, high_watermark } => write!(
                formatter,
                "{}: partition {partition} has {log_start} to {high_watermark}, the position is {position}",
                ErrorCode::OffsetOutOfRange
            ),
            Self::Refused { partition, refusal } => write!(formatter, "partition {partition}: {refusal}"),
            Self::Corrupt { partition, position, fault } => {
                write!(formatter, "partition {partition} at {position}: {fault}")
            }
            Self::Unreachable(error) => error.fmt(formatter),
        }
    }
}

impl std::error::Error for ConsumeError {}

impl fmt::Display for BatchFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(error) => error.fmt(formatter),
            Self::Cut { expected, found } => write!(formatter, "batch of {expected} bytes is cut off after {found}"),
            Self::PayloadCrc { stored, computed } => {
                write!(formatter, "payload crc is {stored:#010x}, computed {computed:#010x}")
            }
            Self::OtherPartition { expected, found } => {
                write!(formatter, "batch of partition uid {found}, expected {expected}")
            }
            Self::Offsets { expected, base, end } => {
                write!(formatter, "batch of offsets {base} to {end}, expected one that holds {expected}")
            }
            Self::Chain => formatter.write_str("batch is not chained to the one before"),
            Self::Columns(error) => error.fmt(formatter),
            Self::Encoding => formatter.write_str("batch has an encoding that this client does not read"),
        }
    }
}

impl std::error::Error for BatchFault {}
