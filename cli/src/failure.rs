//! What a user sees when a command fails: owns the printed form, hints and exit codes; never decides what to do next.

use std::fmt::Write as _;
use std::io;

use coulee_client::{
    AdminError, BatchFault, ConnectError, ConsumeError, DeliveryError, ErrorCode, GroupError, Refusal, Retriable,
    SendError,
};
use coulee_server::config::ConfigError;

use crate::code::LocalCode;

/// Where the codes are explained.
const DOCS: &str = "docs/errors.md";

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Something failed that has no code of its own.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// What was named does not exist.
    NotFound = 3,
    /// It is not allowed.
    Denied = 4,
    /// Nobody answered, or not in time.
    Unavailable = 5,
    /// It exists already, or someone else holds it.
    Conflict = 6,
    /// Some of it was done.
    PartlyDone = 7,
    /// Stored data is not what it should be: what `verify` is there to say.
    Violated = 8,
}

/// Why a command ends before its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It failed.
    Failed(Box<Failure>),
    /// Whoever read standard output has gone: there is nobody left to tell.
    PipeClosed,
}

/// A failure, ready to be printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The number of the error code.
    pub(crate) number: u16,
    /// What is wrong, in one line.
    pub(crate) message: String,
    /// Further lines of the same.
    pub(crate) notes: Vec<String>,
    /// What the user can do.
    pub(crate) hint: Option<String>,
    /// How the process ends.
    pub(crate) exit: Exit,
}

impl Failure {
    /// A failure of the command line's own.
    pub(crate) fn local(code: LocalCode, message: impl Into<String>) -> Self {
        Self {
            number: code.number(),
            message: message.into(),
            notes: Vec::new(),
            hint: None,
            exit: exit_of_local(code),
        }
    }

    /// A failure with a code of the protocol.
    pub(crate) fn coded(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            number: code.code(),
            message: message.into(),
            notes: Vec::new(),
            hint: hint_of(code).map(str::to_owned),
            exit: exit_of(code),
        }
    }

    /// With this hint instead of the code's own.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With one more line.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// With another exit code.
    pub(crate) fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// What a broker refused.
    pub(crate) fn refused(refusal: &Refusal) -> Self {
        let mut message = refusal.message.trim_end_matches('.').to_owned();
        if let Some(first) = message.get(..1) {
            let lowered = first.to_lowercase();
            message.replace_range(..1, &lowered);
        }
        // A detail that only repeats the meaning of the code says nothing more.
        if !refusal.detail.is_empty() && refusal.detail != refusal.message {
            let _infallible = write!(message, ": {}", refusal.detail);
        }
        let known = refusal.code().map(|code| Self::coded(code, message.clone()));
        known.unwrap_or_else(|| Self {
            number: refusal.number,
            message,
            notes: Vec::new(),
            hint: Some("the broker is newer than this program: use the `coulee` that came with it".into()),
            exit: Exit::Failed,
        })
    }

    /// The text on standard error; with colours if wanted.
    pub(crate) fn text(&self, is_coloured: bool) -> String {
        let (red, bold, plain) = if is_coloured { ("\x1b[1;31m", "\x1b[1m", "\x1b[0m") } else { ("", "", "") };
        let number = self.number;
        let mut text = format!("{red}error[E{number}]{plain}{bold}: {}{plain}\n", self.message);
        for note in &self.notes {
            text.push_str(&format!("  {note}\n"));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("  hint: {}\n", hint.replace('\n', "\n        ")));
        }
        text.push_str(&format!("  docs: {DOCS}#e{number}\n"));
        text
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

/// Writing standard output failed.
impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::PipeClosed;
        }
        Failure::local(LocalCode::OutputFailed, format!("standard output can't be written: {error}")).into()
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match &error {
            ConnectError::Refused(refusal) => Self::refused(refusal),
            ConnectError::NotABroker { .. } => Self::local(LocalCode::NotABroker, error.to_string())
                .hint("is it the port of the native protocol? 7700 by default; give another one with --address"),
            ConnectError::ClientName(_) | ConnectError::NoAddress => Self::local(LocalCode::Usage, error.to_string()),
            ConnectError::Unreachable { .. } | ConnectError::TimedOut { .. } => {
                Self::local(LocalCode::BrokerUnreachable, error.to_string())
                    .hint("start a broker with: coulee serve\nor name another one with --address HOST:PORT")
            }
        }
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Connect(error) => error.into(),
            AdminError::Refused(refusal) => Self::refused(&refusal),
            AdminError::OutcomeUnknown => {
                Self::coded(ErrorCode::OutcomeUnknown, "no answer came, the change may have happened")
                    .hint("look before you try again: coulee topic list")
            }
            AdminError::Unsupported { .. } => Self::coded(ErrorCode::UnsupportedVersion, error.to_string()),
            AdminError::Unreadable(_) => Self::local(LocalCode::AnswerUnreadable, error.to_string()),
            AdminError::TopicName(_) => Self::coded(ErrorCode::InvalidTopicException, error.to_string()),
            AdminError::NoPartition { .. } => Self::coded(ErrorCode::UnknownTopicOrPartition, error.to_string())
                .hint("partitions are counted from 0; see them with: coulee topic describe TOPIC"),
        }
    }
}

impl From<ConsumeError> for Failure {
    fn from(error: ConsumeError) -> Self {
        match error {
            ConsumeError::Damaged { partition, from, to } => {
                Self::coded(ErrorCode::RangeDamaged, damage_text(partition, from, to))
            }
            ConsumeError::OutOfRange { partition, position, log_start, high_watermark } => Self::coded(
                ErrorCode::OffsetOutOfRange,
                format!("partition {partition} has no offset {position}, it has {log_start} to {high_watermark}"),
            ),
            ConsumeError::Refused { partition, refusal } => {
                let mut failure = Self::refused(&refusal);
                failure.message = format!("partition {partition}: {}", failure.message);
                failure
            }
            ConsumeError::Corrupt { partition, position, fault } => corrupt(partition, position, &fault),
            ConsumeError::Unreachable(error) => error.into(),
        }
    }
}

/// What came is broken.
pub(crate) fn corrupt(partition: u32, position: u64, fault: &BatchFault) -> Failure {
    let message = format!("partition {partition}, offset {position}: {fault}");
    Failure::coded(ErrorCode::CorruptMessage, message)
        .hint("try again; if it stays, the broker's memory or disk is broken: see its log")
}

/// A damaged range, for people.
pub(crate) fn damage_text(partition: u32, from: u64, to: u64) -> String {
    format!("partition {partition}: stored records of offsets {from} to {to} (exclusive) are damaged")
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        match error.code() {
            Some(code) => Self::coded(code, error.to_string()),
            None => Self::local(LocalCode::Interrupted, error.to_string()),
        }
    }
}

impl From<DeliveryError> for Failure {
    fn from(error: DeliveryError) -> Self {
        match &error {
            DeliveryError::NotWritten { refusal } => Self::refused(refusal),
            DeliveryError::Undelivered => Self::local(LocalCode::BrokerUnreachable, error.to_string())
                .hint("nothing of it was written; try again, with a longer --timeout if the broker is slow"),
            DeliveryError::OutcomeUnknown { refusal } => {
                let why =
                    refusal.as_ref().map_or_else(|| "no answer came".to_owned(), |refusal| refusal.message.clone());
                Self::coded(ErrorCode::OutcomeUnknown, format!("may have been written: {why}"))
            }
            DeliveryError::Unbuilt(_) => Self::coded(ErrorCode::InvalidRecord, error.to_string()),
        }
    }
}

impl From<GroupError> for Failure {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Refused(refusal) => Self::refused(&refusal),
            GroupError::Unreachable(error) => error.into(),
            GroupError::Consume { error, .. } => error.into(),
            GroupError::NotAssigned { .. } => Self::coded(ErrorCode::UnknownMemberId, error.to_string()),
            GroupError::NoOffset { .. } => Self::coded(ErrorCode::OffsetOutOfRange, error.to_string()),
            GroupError::Unintelligible { .. } => Self::coded(ErrorCode::InconsistentGroupProtocol, error.to_string()),
            GroupError::Closed => Self::local(LocalCode::Interrupted, error.to_string()),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let count = error.faults.len();
        let faults = if count == 1 { "fault" } else { "faults" };
        let mut failure = Self::local(LocalCode::ConfigInvalid, format!("the configuration has {count} {faults}"))
            .hint("list the keys with: coulee config show --effective");
        failure.notes = error.faults.iter().map(ToString::to_string).collect();
        failure
    }
}

/// A file that was named and can't be read.
pub(crate) fn unreadable(path: &str, error: &io::Error) -> Failure {
    let exit = match error.kind() {
        io::ErrorKind::NotFound => Exit::NotFound,
        io::ErrorKind::PermissionDenied => Exit::Denied,
        _ => Exit::Failed,
    };
    Failure::local(LocalCode::FileUnreadable, format!("{path} can't be read: {error}"))
        .hint("check the path, and who may read the file")
        .exit(exit)
}

fn exit_of_local(code: LocalCode) -> Exit {
    match code {
        LocalCode::Usage | LocalCode::ConfigInvalid | LocalCode::NotConfirmed => Exit::Usage,
        LocalCode::BrokerUnreachable => Exit::Unavailable,
        LocalCode::AddressTaken | LocalCode::DataDirTaken => Exit::Conflict,
        LocalCode::NotAllAcknowledged => Exit::PartlyDone,
        LocalCode::DataDamaged | LocalCode::ProofViolated => Exit::Violated,
        _ => Exit::Failed,
    }
}

/// How the process ends after an answer with this code.
pub(crate) fn exit_of(code: ErrorCode) -> Exit {
    use ErrorCode as E;
    match code {
        E::UnknownTopicOrPartition | E::UnknownTopicId | E::ResourceNotFound | E::GroupIdNotFound => Exit::NotFound,
        E::TransactionalIdNotFound | E::UnknownMemberId | E::UnknownProducerId => Exit::NotFound,
        E::TopicAuthorizationFailed | E::GroupAuthorizationFailed | E::ClusterAuthorizationFailed => Exit::Denied,
        E::TransactionalIdAuthorizationFailed | E::SaslAuthenticationFailed | E::PolicyViolation => Exit::Denied,
        E::TopicAlreadyExists | E::DuplicateResource | E::NonEmptyGroup | E::GroupSubscribedToTopic => Exit::Conflict,
        E::ProducerFenced | E::InvalidProducerEpoch | E::FencedInstanceId => Exit::Conflict,
        E::InvalidTopicException | E::InvalidPartitions | E::InvalidConfig | E::InvalidReplicationFactor => Exit::Usage,
        // A broken batch is worth another try and still no sign that nobody is there.
        E::CorruptMessage => Exit::Failed,
        E::OutcomeUnknown => Exit::Unavailable,
        code if code.retriable() == Retriable::Yes => Exit::Unavailable,
        _ => Exit::Failed,
    }
}

/// What a user can do about a code, where that does not depend on the command.
fn hint_of(code: ErrorCode) -> Option<&'static str> {
    use ErrorCode as E;
    Some(match code {
        E::OffsetOutOfRange => "begin with --offset start, or behind the last record with --offset end",
        E::UnknownTopicOrPartition => "see the topics with: coulee topic list",
        E::MessageTooLarge => "raise the topic's limit with: coulee topic alter TOPIC --set max.message.bytes=N",
        E::InvalidTopicException => "a name is 1 to 249 letters and digits of ASCII, '.', '_' and '-', not '.' or '..'",
        E::TopicAlreadyExists => "see what it is with: coulee topic describe TOPIC",
        E::InvalidPartitions => "a topic has 1 to 10000 partitions, and never fewer than before",
        E::InvalidConfig => "see the keys and their values with: coulee topic describe TOPIC",
        E::UnsupportedVersion => "program and broker are of different versions: see both with --version",
        E::RequestTimedOut => "the broker is slow or busy: try again with a longer --timeout",
        E::Overloaded => "try again in a moment, or give the broker more memory: memory.shard",
        E::DiskFull => "make room on the disk of the broker's data directory; writes go on by themselves",
        E::PartitionOffline => "see the broker's log for the failed write, mend the disk, and restart the broker",
        E::RangeDamaged => "step over what is damaged, and read the rest, with: --skip-damaged",
        E::Recovering => "the broker reads its log after a start: try again in a moment",
        E::ShuttingDown => "start the broker again, or name another one with --address",
        E::OutcomeUnknown => "it may be there: look before sending it again, which may double it",
        E::FormatTooNew => "use the version that wrote the data directory, or a newer one",
        E::GroupIdNotFound => "see the groups with: coulee group list",
        E::NonEmptyGroup => "stop the group's members first",
        E::ThrottlingQuotaExceeded => "send more slowly",
        E::TopicAuthorizationFailed | E::ClusterAuthorizationFailed | E::GroupAuthorizationFailed => {
            "ask whoever runs the broker for the right"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
