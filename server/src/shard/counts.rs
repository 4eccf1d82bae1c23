//! What one shard has counted since it started: plain numbers, read by Stats; decides nothing.

use super::ShardServer;
use coulee_core::partition::ProduceError;
use coulee_core::shard::fetches::FetchedPart;
use coulee_protocol::api::ApiKey;
use coulee_protocol::api::stats::v1::{Bucket, CounterValue, HistogramValue, Response, Shard};
use coulee_protocol::api::stats::{Counter, Histogram};
use coulee_protocol::batch::BatchHeader;
use coulee_protocol::error::ErrorCode;
use std::io;

/// Cycles longer than this are stalls, in microseconds.
const STALL_US: u64 = 10_000;
/// Sub-buckets of each power of two: values are told apart to an eighth.
const SUB_BUCKETS: u64 = 8;
const BUCKETS: usize = 64 * SUB_BUCKETS as usize;

/// A distribution of whole numbers, exact below 8 and to an eighth above.
#[derive(Debug)]
pub(super) struct Distribution {
    buckets: Box<[u64; BUCKETS]>,
}

impl Default for Distribution {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]) }
    }
}

impl Distribution {
    pub(super) fn count(&mut self, value: u64) {
        self.buckets[bucket_of(value)] += 1;
    }

    fn value(&self, id: Histogram) -> HistogramValue {
        let filled = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        let buckets = filled.map(|(at, count)| Bucket { le: bucket_end(at) - 1, count: *count });
        HistogramValue { id: id.id(), buckets: buckets.collect() }
    }
}

/// 0 to 7 have a bucket each; from there on eight buckets for each power of two. `bucket_of(8) == 8`,
/// `bucket_of(15) == 15`, `bucket_of(16) == bucket_of(17) == 16`.
fn bucket_of(value: u64) -> usize {
    if value < SUB_BUCKETS {
        return value as usize;
    }
    let power = u64::from(value.ilog2()) - 3;
    (power * SUB_BUCKETS + (value >> power)) as usize
}

/// The first value behind a bucket.
fn bucket_end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB_BUCKETS {
        return bucket + 1;
    }
    let power = bucket / SUB_BUCKETS - 1;
    let end = u128::from(bucket - power * SUB_BUCKETS + 1) << power;
    u64::try_from(end).unwrap_or(u64::MAX)
}

/// Counts of the wiring; the core has its own.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) produce_requests: u64,
    pub(super) produce_errors: u64,
    pub(super) fetch_requests: u64,
    pub(super) fetched_batches: u64,
    pub(super) fetched_records: u64,
    pub(super) fetched_bytes: u64,
    pub(super) fetch_errors: u64,
    pub(super) other_requests: u64,
    pub(super) forwarded_requests: u64,
    pub(super) received_bytes: u64,
    pub(super) copied_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) stalls: u64,
    pub(super) cycles: u64,
    pub(super) connections_accepted: u64,
    pub(super) connections_refused: u64,
    pub(super) invalid_frames: u64,
    pub(super) paused_reads: u64,
    pub(super) checksum_failures: u64,
    ack_us: Distribution,
    fetch_us: Distribution,
    cycle_us: Distribution,
}

impl Counts {
    pub(super) fn cycle(&mut self, us: u64) {
        self.cycles += 1;
        self.stalls += u64::from(us > STALL_US);
        self.cycle_us.count(us);
    }

    pub(super) fn request(&mut self, api: ApiKey) {
        match api {
            ApiKey::Fetch => self.fetch_requests += 1,
            _ => self.other_requests += 1,
        }
    }

    pub(super) fn produced(&mut self, us: u64) {
        self.ack_us.count(us);
    }

    pub(super) fn produce_refused(&mut self, error: &ProduceError) {
        self.produce_errors += 1;
        self.checksum_failures += u64::from(error.code() == ErrorCode::CorruptMessage);
    }

    pub(super) fn fetched(&mut self, parts: &[FetchedPart], us: u64) {
        self.fetch_us.count(us);
        let failed = parts.iter().any(|part| part.batches.is_err());
        self.fetch_errors += u64::from(failed);
        for block in parts.iter().filter_map(|part| part.batches.as_ref().ok()).flatten() {
            self.fetched_bytes += block.len() as u64;
            self.fetched_batches += 1;
            self.fetched_records += BatchHeader::decode(block).map_or(0, |header| u64::from(header.record_count));
        }
    }
}

impl ShardServer {
    /// Everything that this shard counts.
    pub(super) fn stats(&self) -> Shard {
        let (core, counts) = (self.parts.core.counters(), &self.counts);
        let gauges = self.parts.core.gauges();
        let counters = [
            (Counter::ProduceRequests, counts.produce_requests),
            (Counter::ProducedBatches, core.batches),
            (Counter::ProducedRecords, core.records),
            (Counter::ProducedBytes, core.bytes),
            (Counter::ProduceErrors, counts.produce_errors),
            (Counter::FetchRequests, counts.fetch_requests),
            (Counter::FetchedBatches, counts.fetched_batches),
            (Counter::FetchedRecords, counts.fetched_records),
            (Counter::FetchedBytes, counts.fetched_bytes),
            (Counter::FetchErrors, counts.fetch_errors),
            (Counter::OtherRequests, counts.other_requests),
            (Counter::ForwardedRequests, counts.forwarded_requests),
            (Counter::ReceivedBytes, counts.received_bytes),
            (Counter::SentBytes, counts.sent_bytes),
            (Counter::CopiedBytes, core.copied_bytes + counts.copied_bytes),
            (Counter::Writes, core.writes),
            (Counter::Syncs, core.syncs),
            (Counter::FailedWrites, core.offline_partitions),
            (Counter::DiskReadBytes, core.read_bytes),
            (Counter::TailCacheReads, core.tail_batches),
            (Counter::SegmentsFallocated, core.fresh_segments),
            (Counter::Stalls, counts.stalls),
            (Counter::Cycles, counts.cycles),
            (Counter::ConnectionsAccepted, counts.connections_accepted),
            (Counter::ConnectionsRefused, counts.connections_refused),
            (Counter::InvalidFrames, counts.invalid_frames),
            (Counter::PausedReads, counts.paused_reads),
            (Counter::DamagedRanges, core.damaged_reads),
            (Counter::ChecksumFailures, counts.checksum_failures),
            (Counter::DeviceFlushes, core.device_flushes),
            (Counter::Connections, self.connections.len() as u64),
            (Counter::Partitions, gauges.partitions),
            (Counter::PartitionsOffline, gauges.partitions_offline),
            (Counter::Segments, gauges.segments),
            (Counter::LogBytes, gauges.log_bytes),
            (Counter::PoolSegments, gauges.pool_segments),
            (Counter::PoolBytes, gauges.pool_bytes),
            (Counter::BudgetBytes, self.parts.budget_bytes as u64),
            (Counter::BudgetUsedBytes, self.budget.reserved() as u64),
            (Counter::TailCacheBytes, self.parts.core.kept_bytes() as u64),
            (Counter::PendingAcks, gauges.pending_acks),
            (Counter::WaitingFetches, gauges.waiting_fetches),
        ];
        let histograms = [
            (Histogram::ProduceAckUs, &counts.ack_us),
            (Histogram::FetchUs, &counts.fetch_us),
            (Histogram::CycleUs, &counts.cycle_us),
        ];
        let (recovered, all) = self.view.progress();
        Shard {
            shard: self.id().0,
            recovery_percent: (100 * recovered.min(all)).checked_div(all).unwrap_or(100) as u8,
            counters: counters
                .iter()
                .map(|(counter, value)| CounterValue { id: counter.id(), value: *value })
                .collect(),
            histograms: histograms.iter().map(|(id, distribution)| distribution.value(*id)).collect(),
        }
    }

    /// The answer to Stats: the shards, and what the process as a whole uses.
    pub(super) fn process_stats(&self, shards: Vec<Shard>) -> io::Result<Response> {
        let usage = coulee_io::usage::of_process()?;
        Ok(Response { shards, process_cpu_us: usage.cpu_us, rss_bytes: usage.rss_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_buckets_follow_each_other() {
        for value in (0..5_000).chain([u64::from(u32::MAX), u64::MAX / 2, u64::MAX - 1]) {
            let bucket = bucket_of(value);
            assert!(value < bucket_end(bucket), "{value} in {bucket}");
            assert!(bucket == 0 || value >= bucket_end(bucket - 1), "{value} in {bucket}");
        }
        assert!(bucket_of(u64::MAX) < BUCKETS);
    }

    #[test]
    fn a_bucket_is_at_most_an_eighth_wide() {
        for value in [100, 1_000, 123_456] {
            let bucket = bucket_of(value);
            let width = bucket_end(bucket) - bucket_end(bucket - 1);
            assert!(width * SUB_BUCKETS <= value + width, "{value}: {width}");
        }
    }
}
