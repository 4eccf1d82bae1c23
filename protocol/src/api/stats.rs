//! Stats, API 20: owns its bodies and the numbers of counters and histograms; counts nothing itself.

/// How a number behaves over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows while the process lives.
    Counter,
    /// It goes up and down.
    Gauge,
}

impl Kind {
    /// The word of docs/PROTOCOL.md.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// Declares an enum of published numbers, their names and meanings.
macro_rules! published {
    ($(#[$doc:meta])* $type:ident { $($id:literal $variant:ident $name:literal $meaning:literal)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum $type {
            $(#[doc = $meaning] $variant = $id,)+
        }

        impl $type {
            /// Every one, in ascending order of id.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The one with this id; `None` for an id of a newer version.
            #[must_use]
            pub fn from_id(id: u16) -> Option<Self> {
                match id {
                    $($id => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// Its id, never reused.
            #[must_use]
            pub fn id(self) -> u16 {
                self as u16
            }

            /// Its name in metrics, with its unit last.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What it counts.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)+
                }
            }
        }
    };
}

published! {
    /// A number that a shard reports. Ids from 100 are gauges.
    Counter {
        1 ProduceRequests "produce_requests" "Produce requests answered or taken with acks 0."
        2 ProducedBatches "produced_batches" "Record batches appended for producers."
        3 ProducedRecords "produced_records" "Records in them."
        4 ProducedBytes "produced_bytes" "Bytes of them, headers included, padding not."
        5 ProduceErrors "produce_errors" "Produce requests answered with an error."
        6 FetchRequests "fetch_requests" "Fetch requests answered."
        7 FetchedBatches "fetched_batches" "Record batches sent to consumers."
        8 FetchedRecords "fetched_records" "Records in them."
        9 FetchedBytes "fetched_bytes" "Bytes of them."
        10 FetchErrors "fetch_errors" "Fetch requests answered with an error, as a whole or for a partition."
        11 OtherRequests "other_requests" "Requests of all other APIs."
        12 ForwardedRequests "forwarded_requests" "Requests passed on to the shard that owns the partition."
        13 ReceivedBytes "received_bytes" "Bytes read from sockets."
        14 SentBytes "sent_bytes" "Bytes written to sockets."
        15 CopiedBytes "copied_bytes" "Bytes of batches and partial frames copied between buffers of ours."
        16 Allocations "allocations" "Heap allocations on the shard's thread."
        17 Writes "writes" "Writes of log files that completed."
        18 WrittenBytes "written_bytes" "Bytes of them, padding included."
        19 Syncs "syncs" "Syncs of files or devices that completed."
        20 FailedWrites "failed_writes" "Writes and syncs that failed: a partition went offline each time."
        21 DiskReads "disk_reads" "Reads of log files that went to the disk."
        22 DiskReadBytes "disk_read_bytes" "Bytes of them."
        23 TailCacheReads "tail_cache_reads" "Fetched partitions served from the buffers that were written."
        24 MappedReads "mapped_reads" "Fetched partitions served from a mapped segment."
        25 SegmentsCreated "segments_created" "Segments begun."
        26 SegmentsFallocated "segments_fallocated" "Of those, not taken from the pool of zeroed files."
        27 SegmentsSealed "segments_sealed" "Segments sealed."
        28 SegmentsRemoved "segments_removed" "Segments unlinked or given back to the pool."
        29 Stalls "stalls" "Cycles that took longer than 10 ms."
        30 Cycles "cycles" "Cycles of the shard's loop."
        31 ConnectionsAccepted "connections_accepted" "Connections accepted or handed over to this shard."
        32 ConnectionsRefused "connections_refused" "Connections refused for want of room."
        33 InvalidFrames "invalid_frames" "Frames that closed their connection."
        34 PausedReads "paused_reads" "Times a connection was not read because the budget was used up."
        35 ParkedFetches "parked_fetches" "Fetches that had to wait for records."
        36 RecoveredBytes "recovered_bytes" "Bytes of log read at start."
        37 TruncatedTails "truncated_tails" "Torn tails cut off at start."
        38 DamagedRanges "damaged_ranges" "Damaged ranges found below a durable end."
        39 ChecksumFailures "checksum_failures" "Batches refused from producers for their checksum."
        40 DeviceFlushes "device_flushes" "Of the syncs, those that were one flush of the device for several files."

        100 Connections "connections" "Connections open now."
        101 Partitions "partitions" "Partitions that the shard owns."
        102 PartitionsOffline "partitions_offline" "Of those, offline after a failed write or sync."
        103 Segments "segments" "Segments of those partitions."
        104 LogBytes "log_bytes" "Bytes of those segments that hold record batches."
        105 PoolSegments "pool_segments" "Zeroed files that wait in the pool."
        106 PoolBytes "pool_bytes" "Bytes of them."
        107 BudgetBytes "budget_bytes" "Memory that the shard may use for frames and buffers."
        108 BudgetUsedBytes "budget_used_bytes" "Of that, in use now."
        109 TailCacheBytes "tail_cache_bytes" "Of that, held by the tail cache."
        110 PendingAcks "pending_acks" "Produce requests that wait for their ack."
        111 WaitingFetches "waiting_fetches" "Fetches that wait for records now."
    }
}

published! {
    /// A distribution that a shard reports.
    Histogram {
        1 ProduceAckUs "produce_ack_us" "From the batch complete in memory to its ack, in µs."
        2 SyncUs "sync_us" "A sync of a file or device, in µs."
        3 WriteUs "write_us" "A write of a log file, in µs."
        4 FetchUs "fetch_us" "A fetch that did not wait for records, in µs."
        5 CycleUs "cycle_us" "A cycle of the shard's loop, waiting not counted, in µs."
        6 BatchRecords "batch_records" "Records in an appended batch."
        7 BatchBytes "batch_bytes" "Bytes of an appended batch."
    }
}

impl Counter {
    /// How it behaves over time.
    #[must_use]
    pub fn kind(self) -> Kind {
        if self.id() < 100 { Kind::Counter } else { Kind::Gauge }
    }
}

/// Version 1.
pub mod v1 {
    use crate::api::body::{BodyError, Check, check_flags};

    archived! {
        /// Asks for the counters of every shard.
        pub struct Request: 1 {
            /// None is defined: 0.
            0 flags: u8,
        }
    }

    archived! {
        /// What the shards have counted since the process started.
        pub struct Response: 24 {
            /// One entry for each shard, in ascending order.
            0 shards: Vec<Shard>,
            /// CPU time of the whole process, user and system.
            8 process_cpu_us: u64,
            /// Resident memory of the whole process.
            16 rss_bytes: u64,
        }
    }

    archived! {
        /// One shard.
        pub struct Shard: 19 {
            /// Its number.
            0 shard: u16,
            /// How much of recovery is done; 100 when it serves.
            2 recovery_percent: u8,
            /// Its counters, in ascending order of id.
            3 counters: Vec<CounterValue>,
            /// Its histograms, in ascending order of id.
            11 histograms: Vec<HistogramValue>,
        }
    }

    archived! {
        /// One counter or gauge.
        pub struct CounterValue: 10 {
            /// A [`Counter`](super::Counter)'s id; skip what you do not know.
            0 id: u16,
            /// Its value.
            2 value: u64,
        }
    }

    archived! {
        /// One histogram.
        pub struct HistogramValue: 10 {
            /// A [`Histogram`](super::Histogram)'s id; skip what you do not know.
            0 id: u16,
            /// The buckets that are not empty, in ascending order of `le`.
            2 buckets: Vec<Bucket>,
        }
    }

    archived! {
        /// How many values were above the previous bucket's `le` and at most this one's.
        pub struct Bucket: 16 {
            /// The greatest value that belongs here; `u64::MAX` for no bound.
            0 le: u64,
            /// How many (not cumulative).
            8 count: u64,
        }
    }

    impl Check for ArchivedRequest {
        fn check(&self) -> Result<(), BodyError> {
            check_flags(self.flags, 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_unique_and_found() {
        let counters = Counter::ALL.iter().map(|counter| (counter.id(), counter.name()));
        let histograms = Histogram::ALL.iter().map(|histogram| (histogram.id(), histogram.name()));
        for list in [counters.collect::<Vec<_>>(), histograms.collect::<Vec<_>>()] {
            assert!(list.windows(2).all(|pair| pair[0].0 < pair[1].0));
            let mut names: Vec<_> = list.iter().map(|(_, name)| name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), list.len());
        }
        for counter in Counter::ALL {
            assert_eq!(Counter::from_id(counter.id()), Some(*counter));
        }
        assert_eq!(Counter::from_id(99), None);
        assert_eq!(Histogram::from_id(0), None);
    }

    #[test]
    fn gauges_have_ids_from_100() {
        assert_eq!(Counter::DamagedRanges.kind(), Kind::Counter);
        assert_eq!(Counter::Connections.kind(), Kind::Gauge);
    }
}
