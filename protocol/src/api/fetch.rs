//! Fetch, API 3: owns its bodies; knows nothing of the batches that follow a response.

/// Version 1.
pub mod v1 {
    use crate::api::body::{BodyError, Check, check_count, check_range};
    use crate::limits::FETCH_PARTITIONS_MAX;

    /// Everything below the high watermark.
    pub const READ_UNCOMMITTED: u8 = 0;
    /// Everything below the last stable offset.
    pub const READ_COMMITTED: u8 = 1;
    /// The greatest offset: every stored one is below 2⁶³.
    const OFFSET_MAX: u64 = (1 << 63) - 1;

    archived! {
        /// Asks for record batches, and waits for them.
        pub struct Request: 21 {
            /// How long to wait for `min_bytes`.
            0 max_wait_ms: u32,
            /// Answer at once when this much is there; 0 never waits.
            4 min_bytes: u32,
            /// Bounds the batches of the whole answer.
            8 max_bytes: u32,
            /// [`READ_UNCOMMITTED`] or [`READ_COMMITTED`].
            12 isolation: u8,
            /// The partitions, at most `FETCH_PARTITIONS_MAX`.
            13 partitions: Vec<RequestPartition>,
        }
    }

    archived! {
        /// A partition and where to go on in it.
        pub struct RequestPartition: 20 {
            /// The partition.
            0 partition_uid: u64,
            /// The next offset that is wanted.
            8 offset: u64,
            /// Bounds the batches of this partition.
            16 max_bytes: u32,
        }
    }

    archived! {
        /// One entry for each partition of the request, in that order; their batches follow the body in the same order.
        pub struct Response: 8 {
            /// The partitions.
            0 partitions: Vec<ResponsePartition>,
        }
    }

    archived! {
        /// What is known and sent of a partition.
        pub struct ResponsePartition: 54 {
            /// The partition.
            0 partition_uid: u64,
            /// 0, or why there are no batches.
            8 error: u16,
            /// Its high watermark.
            10 high_watermark: u64,
            /// Its last stable offset.
            18 last_stable_offset: u64,
            /// Its log start.
            26 log_start: u64,
            /// Bytes of its record batches behind the body.
            34 batches_len: u32,
            /// With `RANGE_DAMAGED`: the first offset of the damage; else 0.
            38 damaged_from: u64,
            /// With `RANGE_DAMAGED`: the end of the damage, where reading can go on; else 0.
            46 damaged_to: u64,
        }
    }

    impl Check for ArchivedRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_range("isolation", self.isolation, READ_UNCOMMITTED, READ_COMMITTED)?;
            check_count("partitions in a fetch", self.partitions.len(), FETCH_PARTITIONS_MAX)?;
            self.partitions
                .iter()
                .try_for_each(|partition| check_range("offset", partition.offset.to_native(), 0, OFFSET_MAX))
        }
    }

    impl ArchivedResponse {
        /// Checks that the batches behind the body are as long as the partitions say together.
        ///
        /// # Errors
        /// If they are not.
        pub fn check_batches(&self, batches_bytes: usize) -> Result<(), BodyError> {
            // At most 2^21 partitions of 2^32 bytes: no overflow.
            let expected = self.partitions.iter().map(|partition| u64::from(partition.batches_len.to_native())).sum();
            let found = batches_bytes as u64;
            if expected == found { Ok(()) } else { Err(BodyError::BatchesLength { expected, found }) }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::api::{access, encode, open};

        fn check(request: &Request) -> Result<(), BodyError> {
            let mut body = Vec::new();
            encode(request, &mut body);
            open::<Request>(&body).map(|_| ())
        }

        #[test]
        fn counts_isolation_and_offsets_are_checked() {
            let partition = RequestPartition { partition_uid: 1, offset: OFFSET_MAX, max_bytes: 1 };
            let request = |count| Request { partitions: vec![partition.clone(); count], ..Default::default() };
            assert_eq!(check(&request(FETCH_PARTITIONS_MAX)), Ok(()));
            assert!(matches!(check(&request(FETCH_PARTITIONS_MAX + 1)), Err(BodyError::TooMany { .. })));
            assert!(matches!(check(&Request { isolation: 2, ..request(1) }), Err(BodyError::OutOfRange { .. })));
            let beyond = RequestPartition { offset: OFFSET_MAX + 1, ..partition.clone() };
            let error = check(&Request { partitions: vec![beyond], ..Default::default() }).unwrap_err();
            assert_eq!(error.to_string(), "offset is 9223372036854775808, expected 0 to 9223372036854775807");
        }

        #[test]
        fn batches_are_as_long_as_the_partitions_say() {
            let partition = ResponsePartition { batches_len: u32::MAX, ..Default::default() };
            let mut body = Vec::new();
            encode(&Response { partitions: vec![partition; 2] }, &mut body);
            let response = access::<Response>(&body).unwrap();
            assert_eq!(response.check_batches(2 * u32::MAX as usize), Ok(()));
            let error = BodyError::BatchesLength { expected: 2 * u64::from(u32::MAX), found: 7 };
            assert_eq!(response.check_batches(7), Err(error));
        }
    }
}
