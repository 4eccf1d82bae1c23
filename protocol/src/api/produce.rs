//! Produce, API 2: owns its bodies; knows nothing of the batch that follows.

/// Version 1.
pub mod v1 {
    use crate::api::body::{BodyError, Check, check_flags, check_range};

    /// No answer, no promise.
    pub const ACKS_NONE: u8 = 0;
    /// An answer once the topic's durability is reached.
    pub const ACKS_DURABLE: u8 = 1;

    archived! {
        /// Appends the one record batch that follows the body.
        pub struct Request: 14 {
            /// The partition. The batch's header leaves it zero: the leader fills it in.
            0 partition_uid: u64,
            /// [`ACKS_NONE`] or [`ACKS_DURABLE`].
            8 acks: u8,
            /// None is defined: 0.
            9 flags: u8,
            /// How long the client will wait for the ack; 0 for as long as the broker lets it.
            10 timeout_ms: u32,
        }
    }

    archived! {
        /// Where the batch went.
        pub struct Response: 28 {
            /// The offset of its first record.
            0 base_offset: u64,
            /// The partition's log start.
            8 log_start: u64,
            /// The partition's high watermark, above every record of the batch.
            16 high_watermark: u64,
            /// The leader epoch that the batch was appended in.
            24 leader_epoch: u32,
        }
    }

    impl Check for ArchivedRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_flags(self.flags, 0)?;
            check_range("acks", self.acks, ACKS_NONE, ACKS_DURABLE)
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::api::{encode, open};
        use crate::error::ErrorCode;

        #[test]
        fn acks_are_0_or_1_and_flags_0() {
            let check = |acks, flags| {
                let mut body = Vec::new();
                encode(&Request { partition_uid: 1, acks, flags, timeout_ms: 0 }, &mut body);
                open::<Request>(&body).map(|_| ()).map_err(|error| error.code())
            };
            assert_eq!(check(0, 0), Ok(()));
            assert_eq!(check(1, 0), Ok(()));
            assert_eq!(check(2, 0), Err(ErrorCode::InvalidRequiredAcks));
            assert_eq!(check(1, 1), Err(ErrorCode::InvalidRequest));
        }
    }
}
