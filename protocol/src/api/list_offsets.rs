//! ListOffsets, API 4: owns its bodies; knows nothing of how an offset is found.

/// Version 1.
pub mod v1 {
    use crate::api::body::{BodyError, Check, check_count, check_range};
    use crate::limits::FETCH_PARTITIONS_MAX;

    /// As a timestamp: the high watermark, where new records will become visible.
    pub const HIGH_WATERMARK: i64 = -1;
    /// As a timestamp: the log start.
    pub const LOG_START: i64 = -2;
    /// As a timestamp: the record with the greatest timestamp.
    pub const MAX_TIMESTAMP: i64 = -3;
    /// As an offset: there is none.
    pub const NO_OFFSET: u64 = u64::MAX;

    archived! {
        /// Asks for one offset of each partition.
        pub struct Request: 8 {
            /// The partitions, at most `FETCH_PARTITIONS_MAX`.
            0 partitions: Vec<RequestPartition>,
        }
    }

    archived! {
        /// A partition and what is asked of it.
        pub struct RequestPartition: 16 {
            /// The partition.
            0 partition_uid: u64,
            /// ≥ 0: the first record with at least this timestamp; or one of the negative constants.
            8 timestamp: i64,
        }
    }

    archived! {
        /// One entry for each partition of the request, in that order.
        pub struct Response: 8 {
            /// The partitions.
            0 partitions: Vec<ResponsePartition>,
        }
    }

    archived! {
        /// What was found.
        pub struct ResponsePartition: 30 {
            /// The partition.
            0 partition_uid: u64,
            /// 0, or why there is no offset.
            8 error: u16,
            /// The offset, or [`NO_OFFSET`].
            10 offset: u64,
            /// The timestamp of the record found; −1 where no record was asked for or found.
            18 timestamp: i64,
            /// The leader epoch of the record found, or the current one.
            26 leader_epoch: u32,
        }
    }

    impl Check for ArchivedRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_count("partitions in a list of offsets", self.partitions.len(), FETCH_PARTITIONS_MAX)?;
            self.partitions.iter().try_for_each(|partition| {
                check_range("timestamp", partition.timestamp.to_native(), MAX_TIMESTAMP, i64::MAX)
            })
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::api::{encode, open};

        #[test]
        fn timestamps_below_the_named_ones_are_refused() {
            let check = |timestamp| {
                let mut body = Vec::new();
                encode(&Request { partitions: vec![RequestPartition { partition_uid: 1, timestamp }] }, &mut body);
                open::<Request>(&body).map(|_| ())
            };
            for timestamp in [MAX_TIMESTAMP, LOG_START, HIGH_WATERMARK, 0, i64::MAX] {
                assert_eq!(check(timestamp), Ok(()));
            }
            assert!(matches!(check(-4), Err(BodyError::OutOfRange { found: -4, .. })));
        }
    }
}
