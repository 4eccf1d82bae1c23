//! The one list of error codes; knows nothing of who raises them or of how they are shown.
//!
//! Below 1,000: Kafka's numbers with Kafka's meaning. From 1,000: ours. A published number is never reused. Each code
//! says what a caller needs to know next: is another try worth it, and *may the write have happened*?

use std::fmt;

/// Whether the same request may succeed when it is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retriable {
    /// Never: the request, or what it names, has to change first.
    No,
    /// Yes, after a pause or with fresh metadata.
    Yes,
    /// Once the broker was restarted.
    AfterRestart,
    /// Only the caller can know, since the outcome of the first try is unknown.
    CallersChoice,
}

impl Retriable {
    /// The word of docs/PROTOCOL.md.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Yes => "yes",
            Self::AfterRestart => "after restart",
            Self::CallersChoice => "caller's choice",
        }
    }
}

/// What a failed request left behind, if it was one that changes something. A read leaves nothing, whatever this says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// The code answers no write.
    NotAWrite = 0,
    /// Nothing was written and nothing will be.
    NotWritten = 1,
    /// The write may have happened, or may still happen.
    Unknown = 2,
}

impl Outcome {
    /// The outcome with this number in an `ErrorBody`.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::NotAWrite),
            1 => Some(Self::NotWritten),
            2 => Some(Self::Unknown),
            _ => None,
        }
    }

    /// Its number in an `ErrorBody`.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The words of docs/PROTOCOL.md.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotAWrite => "–",
            Self::NotWritten => "not written",
            Self::Unknown => "unknown",
        }
    }
}

/// Declares the enum and its lookups from one table.
macro_rules! errors {
    ($($code:literal $variant:ident $name:literal $retriable:ident $outcome:ident $meaning:literal)+) => {
        /// An error code of the native protocol, and of the Kafka protocol below 1,000.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum ErrorCode {
            $(#[doc = $meaning] $variant = $code,)+
        }

        impl ErrorCode {
            /// Every code, in ascending order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The code with this number; `None` for a number that this version does not know.
            #[must_use]
            pub fn from_code(code: u16) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The name as the field knows it, in capitals.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What it means, as a sentence.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)+
                }
            }

            /// Whether another try is worth it.
            #[must_use]
            pub fn retriable(self) -> Retriable {
                match self {
                    $(Self::$variant => Retriable::$retriable,)+
                }
            }

            /// Whether the write may have happened.
            #[must_use]
            pub fn outcome(self) -> Outcome {
                match self {
                    $(Self::$variant => Outcome::$outcome,)+
                }
            }
        }
    };
}

errors! {
    0 None "NONE" No NotAWrite "No error."
    1 OffsetOutOfRange "OFFSET_OUT_OF_RANGE" No NotAWrite
        "The offset is below the log start or above the end of what is visible."
    2 CorruptMessage "CORRUPT_MESSAGE" Yes NotWritten "The record batch failed its checksum or is malformed."
    3 UnknownTopicOrPartition "UNKNOWN_TOPIC_OR_PARTITION" Yes NotWritten
        "This broker does not know the topic or partition."
    5 LeaderNotAvailable "LEADER_NOT_AVAILABLE" Yes NotWritten "The partition has no leader at the moment."
    6 NotLeaderOrFollower "NOT_LEADER_OR_FOLLOWER" Yes NotWritten "This broker does not lead the partition."
    7 RequestTimedOut "REQUEST_TIMED_OUT" Yes Unknown "The request was not finished within its time."
    9 ReplicaNotAvailable "REPLICA_NOT_AVAILABLE" Yes NotAWrite "The replica is not available on this broker."
    10 MessageTooLarge "MESSAGE_TOO_LARGE" No NotWritten "The record batch is larger than max.message.bytes."
    12 OffsetMetadataTooLarge "OFFSET_METADATA_TOO_LARGE" No NotWritten
        "The text stored with a committed offset is too long."
    14 CoordinatorLoadInProgress "COORDINATOR_LOAD_IN_PROGRESS" Yes NotWritten
        "The coordinator is still loading its state."
    15 CoordinatorNotAvailable "COORDINATOR_NOT_AVAILABLE" Yes NotWritten "There is no coordinator at the moment."
    16 NotCoordinator "NOT_COORDINATOR" Yes NotWritten "This broker does not coordinate the group or transaction."
    17 InvalidTopicException "INVALID_TOPIC_EXCEPTION" No NotWritten "The topic name is not a valid one."
    18 RecordListTooLarge "RECORD_LIST_TOO_LARGE" No NotWritten "The record batch is larger than a segment can hold."
    19 NotEnoughReplicas "NOT_ENOUGH_REPLICAS" Yes NotWritten "Too few replicas are in sync to accept the write."
    20 NotEnoughReplicasAfterAppend "NOT_ENOUGH_REPLICAS_AFTER_APPEND" Yes Unknown
        "The batch was appended, but too few replicas were in sync to confirm it."
    21 InvalidRequiredAcks "INVALID_REQUIRED_ACKS" No NotWritten "The acks of a produce request is not a known value."
    22 IllegalGeneration "ILLEGAL_GENERATION" No NotWritten "The generation is not the group's current one."
    23 InconsistentGroupProtocol "INCONSISTENT_GROUP_PROTOCOL" No NotWritten
        "The member shares no assignment protocol with the group."
    24 InvalidGroupId "INVALID_GROUP_ID" No NotWritten "The group id is not a valid one."
    25 UnknownMemberId "UNKNOWN_MEMBER_ID" No NotWritten "The group does not know the member."
    26 InvalidSessionTimeout "INVALID_SESSION_TIMEOUT" No NotWritten "The session timeout is outside the allowed range."
    27 RebalanceInProgress "REBALANCE_IN_PROGRESS" No NotWritten "The group is rebalancing: join it again."
    28 InvalidCommitOffsetSize "INVALID_COMMIT_OFFSET_SIZE" No NotWritten
        "The commit of offsets is larger than a batch may be."
    29 TopicAuthorizationFailed "TOPIC_AUTHORIZATION_FAILED" No NotWritten "The principal may not do this to the topic."
    30 GroupAuthorizationFailed "GROUP_AUTHORIZATION_FAILED" No NotWritten "The principal may not do this to the group."
    31 ClusterAuthorizationFailed "CLUSTER_AUTHORIZATION_FAILED" No NotWritten
        "The principal may not do this to the cluster."
    32 InvalidTimestamp "INVALID_TIMESTAMP" No NotWritten "The timestamp of a record is outside the allowed range."
    33 UnsupportedSaslMechanism "UNSUPPORTED_SASL_MECHANISM" No NotWritten
        "The broker does not offer this way to authenticate."
    34 IllegalSaslState "ILLEGAL_SASL_STATE" No NotWritten "The request does not fit the state of the authentication."
    35 UnsupportedVersion "UNSUPPORTED_VERSION" No NotWritten "The broker does not know the API or this version of it."
    36 TopicAlreadyExists "TOPIC_ALREADY_EXISTS" No NotWritten "A topic of this name exists."
    37 InvalidPartitions "INVALID_PARTITIONS" No NotWritten "The number of partitions is not allowed."
    38 InvalidReplicationFactor "INVALID_REPLICATION_FACTOR" No NotWritten
        "The replication factor is below 1 or above the number of brokers."
    39 InvalidReplicaAssignment "INVALID_REPLICA_ASSIGNMENT" No NotWritten "The assignment of replicas is not possible."
    40 InvalidConfig "INVALID_CONFIG" No NotWritten "A configuration key is unknown or its value is not allowed."
    41 NotController "NOT_CONTROLLER" Yes NotWritten "This broker is not the controller."
    42 InvalidRequest "INVALID_REQUEST" No NotWritten "The request is well framed and makes no sense."
    43 UnsupportedForMessageFormat "UNSUPPORTED_FOR_MESSAGE_FORMAT" No NotWritten
        "The format of the stored records does not support this."
    44 PolicyViolation "POLICY_VIOLATION" No NotWritten "The request is valid and a policy of the broker forbids it."
    45 OutOfOrderSequenceNumber "OUT_OF_ORDER_SEQUENCE_NUMBER" No NotWritten
        "The sequence does not follow the last one of this producer."
    46 DuplicateSequenceNumber "DUPLICATE_SEQUENCE_NUMBER" No Unknown
        "The sequence was seen before, too long ago to repeat its answer."
    47 InvalidProducerEpoch "INVALID_PRODUCER_EPOCH" No NotWritten "The producer epoch is older than the current one."
    48 InvalidTxnState "INVALID_TXN_STATE" No NotWritten "The transaction is in no state that allows this."
    49 InvalidProducerIdMapping "INVALID_PRODUCER_ID_MAPPING" No NotWritten
        "The producer id is not the one of this transactional id."
    50 InvalidTransactionTimeout "INVALID_TRANSACTION_TIMEOUT" No NotWritten
        "The transaction timeout is longer than the broker allows."
    51 ConcurrentTransactions "CONCURRENT_TRANSACTIONS" Yes NotWritten
        "Another operation on this transaction is still under way."
    52 TransactionCoordinatorFenced "TRANSACTION_COORDINATOR_FENCED" No NotWritten
        "A newer coordinator has taken over the transaction."
    53 TransactionalIdAuthorizationFailed "TRANSACTIONAL_ID_AUTHORIZATION_FAILED" No NotWritten
        "The principal may not use the transactional id."
    54 SecurityDisabled "SECURITY_DISABLED" No NotWritten "Security features are switched off on this broker."
    55 OperationNotAttempted "OPERATION_NOT_ATTEMPTED" No NotWritten
        "Nothing was tried, because another part of the same request failed."
    56 KafkaStorageError "KAFKA_STORAGE_ERROR" Yes Unknown "The disk failed while the log was accessed."
    58 SaslAuthenticationFailed "SASL_AUTHENTICATION_FAILED" No NotWritten "The credentials are wrong."
    59 UnknownProducerId "UNKNOWN_PRODUCER_ID" No NotWritten "The partition knows nothing of this producer id."
    68 NonEmptyGroup "NON_EMPTY_GROUP" No NotWritten "The group still has members."
    69 GroupIdNotFound "GROUP_ID_NOT_FOUND" No NotWritten "There is no group of this id."
    70 FetchSessionIdNotFound "FETCH_SESSION_ID_NOT_FOUND" Yes NotAWrite "There is no fetch session of this id."
    71 InvalidFetchSessionEpoch "INVALID_FETCH_SESSION_EPOCH" Yes NotAWrite "The fetch session is at another epoch."
    72 ListenerNotFound "LISTENER_NOT_FOUND" Yes NotWritten "The leader has no listener of the kind that was asked on."
    74 FencedLeaderEpoch "FENCED_LEADER_EPOCH" Yes NotWritten "The leader epoch is older than the broker's."
    75 UnknownLeaderEpoch "UNKNOWN_LEADER_EPOCH" Yes NotWritten "The leader epoch is newer than the broker's."
    76 UnsupportedCompressionType "UNSUPPORTED_COMPRESSION_TYPE" No NotWritten
        "The compression of the batch is not supported here."
    78 OffsetNotAvailable "OFFSET_NOT_AVAILABLE" Yes NotAWrite "The leader does not know its high watermark yet."
    79 MemberIdRequired "MEMBER_ID_REQUIRED" No NotWritten "Join again, with the member id that this answer carries."
    81 GroupMaxSizeReached "GROUP_MAX_SIZE_REACHED" No NotWritten "The group holds as many members as it may."
    82 FencedInstanceId "FENCED_INSTANCE_ID" No NotWritten "Another member took over this static instance id."
    85 NoReassignmentInProgress "NO_REASSIGNMENT_IN_PROGRESS" No NotWritten "No reassignment is under way."
    86 GroupSubscribedToTopic "GROUP_SUBSCRIBED_TO_TOPIC" No NotWritten
        "The group still consumes the topic whose offsets were to be deleted."
    87 InvalidRecord "INVALID_RECORD" No NotWritten "A record of the batch breaks a rule of the topic."
    88 UnstableOffsetCommit "UNSTABLE_OFFSET_COMMIT" Yes NotAWrite
        "Committed offsets are still part of an open transaction."
    89 ThrottlingQuotaExceeded "THROTTLING_QUOTA_EXCEEDED" Yes NotWritten "A quota is used up for the moment."
    90 ProducerFenced "PRODUCER_FENCED" No NotWritten "A newer producer with the same transactional id has taken over."
    91 ResourceNotFound "RESOURCE_NOT_FOUND" No NotWritten "What the request names does not exist."
    92 DuplicateResource "DUPLICATE_RESOURCE" No NotWritten "The request names the same thing twice."
    93 UnacceptableCredential "UNACCEPTABLE_CREDENTIAL" No NotWritten "The new credential is not acceptable."
    100 UnknownTopicId "UNKNOWN_TOPIC_ID" Yes NotWritten "This broker does not know the topic id."
    103 InconsistentTopicId "INCONSISTENT_TOPIC_ID" Yes NotWritten "The topic id and the log on disk do not fit."
    104 InconsistentClusterId "INCONSISTENT_CLUSTER_ID" No NotWritten "The cluster id is not this cluster's."
    105 TransactionalIdNotFound "TRANSACTIONAL_ID_NOT_FOUND" No NotWritten "There is no transaction of this id."
    110 FencedMemberEpoch "FENCED_MEMBER_EPOCH" No NotWritten "The member epoch is no longer valid: join again."
    111 UnreleasedInstanceId "UNRELEASED_INSTANCE_ID" No NotWritten
        "The static instance id is still held by another member."
    112 UnsupportedAssignor "UNSUPPORTED_ASSIGNOR" No NotWritten "The group does not support this assignor."
    113 StaleMemberEpoch "STALE_MEMBER_EPOCH" No NotWritten "The member epoch is old: send again with the current one."
    120 TransactionAbortable "TRANSACTION_ABORTABLE" No NotWritten "The transaction can only be aborted."

    1000 FrameInvalid "FRAME_INVALID" No NotWritten "The frame is malformed; the connection is closed."
    1001 FrameTooLarge "FRAME_TOO_LARGE" No NotWritten "The frame is larger than the broker takes."
    1002 HelloRequired "HELLO_REQUIRED" No NotWritten "Something else came before Hello was answered."
    1003 Overloaded "OVERLOADED" Yes NotWritten "The broker has no room for this at the moment."
    1004 DiskFull "DISK_FULL" Yes NotWritten "The disk is full; nothing was written, reads go on."
    1005 PartitionOffline "PARTITION_OFFLINE" AfterRestart Unknown
        "A write or sync of this partition failed: it takes no more writes until the broker restarts."
    1006 RangeDamaged "RANGE_DAMAGED" No NotAWrite
        "Stored records of this range are damaged; the range is given, the rest is served."
    1007 Recovering "RECOVERING" Yes NotWritten "The broker is still reading its log after a start."
    1008 OutcomeUnknown "OUTCOME_UNKNOWN" CallersChoice Unknown
        "The connection broke before the answer came (made by clients, never sent)."
    1009 FormatTooNew "FORMAT_TOO_NEW" No NotWritten
        "The data was written by a newer version, in a format unknown to this one."
    1010 ShuttingDown "SHUTTING_DOWN" Yes NotWritten "The broker is shutting down."
}

impl ErrorCode {
    /// Its number.
    #[must_use]
    pub fn code(self) -> u16 {
        self as u16
    }

    /// Whether the number is Kafka's, and may be sent to a Kafka client as it is.
    #[must_use]
    pub fn is_kafkas(self) -> bool {
        self.code() < 1_000
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (E{})", self.name(), self.code())
    }
}

impl std::error::Error for ErrorCode {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_ascending() {
        for pair in ErrorCode::ALL.windows(2) {
            assert!(pair[0].code() < pair[1].code(), "{} before {}", pair[0], pair[1]);
        }
        let mut names: Vec<_> = ErrorCode::ALL.iter().map(|code| code.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorCode::ALL.len());
    }

    #[test]
    fn each_number_finds_its_code_and_no_other_number_finds_one() {
        let found = (0..=u16::MAX).filter_map(ErrorCode::from_code).collect::<Vec<_>>();
        assert_eq!(found, ErrorCode::ALL);
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_code(code.code()), Some(*code));
        }
    }

    #[test]
    fn ours_begin_at_1000_and_kafkas_end_below() {
        let ours = [ErrorCode::FrameInvalid, ErrorCode::OutcomeUnknown, ErrorCode::ShuttingDown];
        assert!(ours.iter().all(|code| code.code() >= 1_000 && !code.is_kafkas()));
        assert!(ErrorCode::UnknownTopicId.is_kafkas());
    }

    #[test]
    fn kafkas_numbers_are_kafkas() {
        let pinned = [
            (0, "NONE"),
            (3, "UNKNOWN_TOPIC_OR_PARTITION"),
            (10, "MESSAGE_TOO_LARGE"),
            (17, "INVALID_TOPIC_EXCEPTION"),
            (27, "REBALANCE_IN_PROGRESS"),
            (35, "UNSUPPORTED_VERSION"),
            (45, "OUT_OF_ORDER_SEQUENCE_NUMBER"),
            (56, "KAFKA_STORAGE_ERROR"),
            (69, "GROUP_ID_NOT_FOUND"),
            (74, "FENCED_LEADER_EPOCH"),
            (75, "UNKNOWN_LEADER_EPOCH"),
            (76, "UNSUPPORTED_COMPRESSION_TYPE"),
            (79, "MEMBER_ID_REQUIRED"),
            (82, "FENCED_INSTANCE_ID"),
            (87, "INVALID_RECORD"),
            (88, "UNSTABLE_OFFSET_COMMIT"),
            (90, "PRODUCER_FENCED"),
            (100, "UNKNOWN_TOPIC_ID"),
        ];
        for (code, name) in pinned {
            assert_eq!(ErrorCode::from_code(code).map(ErrorCode::name), Some(name));
        }
    }

    #[test]
    fn display_carries_name_and_number() {
        assert_eq!(ErrorCode::DiskFull.to_string(), "DISK_FULL (E1004)");
    }

    #[test]
    fn meanings_are_sentences() {
        for code in ErrorCode::ALL {
            assert!(code.meaning().ends_with('.'), "{code}");
            assert!(code.meaning().starts_with(char::is_uppercase), "{code}");
        }
    }

    #[test]
    fn every_outcome_reads_back_from_its_number() {
        for outcome in [Outcome::NotAWrite, Outcome::NotWritten, Outcome::Unknown] {
            assert_eq!(Outcome::from_code(outcome.code()), Some(outcome));
        }
        assert_eq!(Outcome::from_code(3), None);
    }
}
