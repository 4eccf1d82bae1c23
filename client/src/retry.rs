//! When a request is sent again: owns the rule over the error table; knows no connection and counts no tries.
//!
//! Without idempotence a write may be repeated only if it surely was not written: the table of docs/PROTOCOL.md says so
//! for each code, and a frame that never left in whole has done nothing. Everything else is for the caller to decide.

use coulee_protocol::error::{ErrorCode, Outcome, Retriable};

use crate::connection::Failure;
use crate::error::Refusal;

/// What becomes of a batch that was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It surely was not written and another try may help.
    Repeat(Option<Refusal>),
    /// It surely was not written and another try does not help.
    NotWritten(Refusal),
    /// It may have been written.
    Unknown(Option<Refusal>),
}

/// Judges a failed produce request.
pub(crate) fn judge_produce(failure: Failure) -> Verdict {
    match failure {
        Failure::NotSent => Verdict::Repeat(None),
        // It was answered without an error, so it was written; where, nobody can say.
        Failure::Unanswered | Failure::Unreadable(_) => Verdict::Unknown(None),
        Failure::Unsupported(_) => Verdict::NotWritten(Refusal::of_code(ErrorCode::UnsupportedVersion.code())),
        Failure::Refused(refusal) => match (refusal.outcome, refusal.code().map(ErrorCode::retriable)) {
            (Outcome::NotWritten, Some(Retriable::Yes)) => Verdict::Repeat(Some(refusal)),
            (Outcome::NotWritten, _) => Verdict::NotWritten(refusal),
            // A code that answers no write, as the answer to a write, says nothing of it.
            (Outcome::Unknown | Outcome::NotAWrite, _) => Verdict::Unknown(Some(refusal)),
        },
    }
}

/// Whether an administrative request is repeated within its time. What does not exist is said at once, not waited for.
pub(crate) fn repeats_request(failure: &Failure, is_write: bool) -> bool {
    match failure {
        Failure::NotSent => true,
        Failure::Unanswered => !is_write,
        Failure::Unreadable(_) | Failure::Unsupported(_) => false,
        Failure::Refused(refusal) => {
            let is_safe = !is_write || refusal.outcome == Outcome::NotWritten;
            is_safe && refusal.code().is_some_and(passes_by_itself)
        }
    }
}

/// Whether fetching goes on after this code without a word to the caller.
pub(crate) fn repeats_fetch(code: ErrorCode) -> bool {
    passes_by_itself(code) || is_of_stale_metadata(code)
}

/// Whether the code tells that partitions have moved, or that a topic was deleted and made again.
pub(crate) fn is_of_stale_metadata(code: ErrorCode) -> bool {
    use ErrorCode::{NotLeaderOrFollower, UnknownTopicId, UnknownTopicOrPartition};
    matches!(code, NotLeaderOrFollower | UnknownTopicOrPartition | UnknownTopicId)
}

/// Whether waiting alone may help.
pub(crate) fn passes_by_itself(code: ErrorCode) -> bool {
    use ErrorCode as Code;
    matches!(
        code,
        Code::LeaderNotAvailable
            | Code::NotLeaderOrFollower
            | Code::NotController
            | Code::CoordinatorLoadInProgress
            | Code::CoordinatorNotAvailable
            | Code::NotCoordinator
            | Code::ReplicaNotAvailable
            | Code::OffsetNotAvailable
            | Code::ThrottlingQuotaExceeded
            | Code::Overloaded
            | Code::Recovering
            | Code::ShuttingDown
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use coulee_protocol::api::encode;
    use coulee_protocol::api::error_body::ErrorBody;

    fn refused(code: ErrorCode, change: impl Fn(&mut ErrorBody)) -> Failure {
        let mut error = ErrorBody::new(code, "");
        change(&mut error);
        let mut body = Vec::new();
        encode(&error, &mut body);
        Failure::Refused(Refusal::read(code.code(), &body))
    }

    #[test]
    fn every_code_is_repeated_only_if_the_table_says_retriable_and_not_written() {
        for code in ErrorCode::ALL.iter().copied().filter(|code| *code != ErrorCode::None) {
            let verdict = judge_produce(refused(code, |_| ()));
            match (code.retriable(), code.outcome()) {
                (Retriable::Yes, Outcome::NotWritten) => assert!(matches!(verdict, Verdict::Repeat(_)), "{code}"),
                (_, Outcome::NotWritten) => assert!(matches!(verdict, Verdict::NotWritten(_)), "{code}"),
                _ => assert!(matches!(verdict, Verdict::Unknown(_)), "{code}"),
            }
        }
    }

    #[test]
    fn our_own_codes_are_judged_as_their_table_has_them() {
        use ErrorCode as Code;
        let verdict = |code| match judge_produce(refused(code, |_| ())) {
            Verdict::Repeat(_) => "repeat",
            Verdict::NotWritten(_) => "not written",
            Verdict::Unknown(_) => "unknown",
        };
        let table = [
            (Code::FrameInvalid, "not written"),
            (Code::FrameTooLarge, "not written"),
            (Code::HelloRequired, "not written"),
            (Code::Overloaded, "repeat"),
            (Code::DiskFull, "repeat"),
            (Code::PartitionOffline, "unknown"),
            (Code::RangeDamaged, "unknown"),
            (Code::Recovering, "repeat"),
            (Code::OutcomeUnknown, "unknown"),
            (Code::FormatTooNew, "not written"),
            (Code::ShuttingDown, "repeat"),
            (Code::RequestTimedOut, "unknown"),
            (Code::NotEnoughReplicasAfterAppend, "unknown"),
            (Code::KafkaStorageError, "unknown"),
            (Code::MessageTooLarge, "not written"),
            (Code::NotLeaderOrFollower, "repeat"),
        ];
        for (code, expected) in table {
            assert_eq!(verdict(code), expected, "{code}");
        }
    }

    #[test]
    fn a_broker_that_calls_the_outcome_unknown_is_believed() {
        let verdict = judge_produce(refused(ErrorCode::Overloaded, |body| body.outcome = Outcome::Unknown.code()));
        assert!(matches!(verdict, Verdict::Unknown(Some(_))));
        let verdict = judge_produce(refused(ErrorCode::PartitionOffline, |body| body.outcome = 1));
        assert!(matches!(verdict, Verdict::Unknown(Some(_))), "one side's word is not enough");
    }

    #[test]
    fn unknown_codes_and_lost_answers_are_unknown_and_unsent_frames_repeat() {
        assert!(matches!(judge_produce(Failure::Refused(Refusal::of_code(999))), Verdict::Unknown(Some(_))));
        assert_eq!(judge_produce(Failure::Unanswered), Verdict::Unknown(None));
        assert_eq!(judge_produce(Failure::NotSent), Verdict::Repeat(None));
    }

    #[test]
    fn an_administrative_write_is_repeated_only_if_nothing_happened() {
        assert!(repeats_request(&Failure::NotSent, true));
        assert!(!repeats_request(&Failure::Unanswered, true) && repeats_request(&Failure::Unanswered, false));
        assert!(repeats_request(&refused(ErrorCode::Recovering, |_| ()), true));
        assert!(!repeats_request(&refused(ErrorCode::UnknownTopicOrPartition, |_| ()), false));
        assert!(!repeats_request(&refused(ErrorCode::TopicAlreadyExists, |_| ()), true));
    }
}
