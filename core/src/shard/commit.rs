//! The commit cycle of a shard: writes of all dirty partitions, one sync for all of them; it knows no request.
//!
//! Segments begin, take their names and are sealed here, too.
//!
//! The next sync starts when the previous one ends and takes with it all that was written meanwhile; writing goes on
//! while it is in flight. One write alone is made durable by itself.

use super::{Done, Effect, Produced, Shard, Synced};
use crate::disk::{Disk, DiskError, File, WriteMode};
use crate::log::appender::WriteId;
use crate::log::{NewSegment, RetiredFile, SyncFile, SyncWork};
use crate::partition::{Partition, ProduceError};
use crate::pool;
use coulee_protocol::api::topics::Durability;
use coulee_protocol::ids::{Offset, PartitionUid};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::rc::Rc;

impl<D: Disk> Shard<D> {
    /// Issues every write that may start.
    pub(super) fn submit_writes(&mut self) -> bool {
        let mut worked = false;
        // One partition with something to write and nothing else under way: its write may as well be durable.
        let quiet = self.dirty.len() == 1 && self.unsynced.is_empty() && self.writes_in_flight == 0 && !self.syncing;
        for uid in std::mem::take(&mut self.dirty) {
            let Some(partition) = self.partitions.get_mut(&uid).filter(|partition| !partition.is_offline()) else {
                continue;
            };
            let durable = quiet && partition.log.is_alone() && partition.config().durability == Durability::Fsync;
            let mode = if durable { WriteMode::Durable } else { WriteMode::Written };
            while let Some((write, file, lease)) = partition.log.next_write() {
                self.writes_in_flight += 1;
                self.counters.writes += 1;
                worked = true;
                self.io.push(Box::pin(async move {
                    let result = file.write_at(write.blocks, u64::from(write.position), mode).await;
                    drop(lease);
                    Done::Written(uid, write.id, mode == WriteMode::Durable, result)
                }));
                if durable {
                    break;
                }
            }
            // Buffers are kept when a write freezes them, and large batches when they are appended.
            let (bytes, buffers) = partition.newly_kept();
            self.kept_bytes += bytes;
            self.kept.extend(std::iter::repeat_n(uid, buffers));
            worked |= self.name_and_seal(uid);
        }
        worked
    }

    pub(super) fn written(&mut self, uid: PartitionUid, id: WriteId, durable: bool, result: Result<(), DiskError>) {
        self.writes_in_flight -= 1;
        let Some(partition) = self.partitions.get_mut(&uid) else { return };
        if partition.is_offline() {
            return;
        }
        if result.is_err() {
            self.fail(uid);
            return;
        }
        partition.log.write_completed(id, durable);
        if partition.log.sync_work().is_some() {
            self.unsynced.insert(uid);
        }
        self.dirty.insert(uid);
        self.advance(uid);
    }

    /// Starts the sync of everything written, if none is in flight.
    pub(super) fn start_sync(&mut self) -> bool {
        if self.syncing || self.unsynced.is_empty() {
            return false;
        }
        let mut works = Vec::with_capacity(self.unsynced.len());
        for uid in std::mem::take(&mut self.unsynced) {
            let work = self.partitions.get(&uid).filter(|partition| !partition.is_offline());
            works.extend(work.and_then(|partition| partition.log.sync_work()).map(|work| (uid, work)));
        }
        if works.is_empty() {
            return false;
        }
        self.syncing = true;
        self.counters.syncs += 1;
        let disk = self.disk.clone();
        self.io.push(Box::pin(async move { Done::Synced(sync_all(&disk, works).await) }));
        true
    }

    pub(super) fn synced(&mut self, Synced { marks, by_device, flush_failed }: Synced) {
        self.syncing = false;
        self.counters.device_flushes += u64::from(by_device);
        for (uid, mark, result) in marks {
            let Some(partition) = self.partitions.get_mut(&uid) else { continue };
            if partition.is_offline() {
                continue;
            }
            if cfg!(coulee_mutation = "retry_failed_fsync") && result.is_err() {
                self.unsynced.insert(uid);
                continue;
            }
            if result.is_err() {
                // Never tried again: a second sync may succeed with the data gone.
                self.fail(uid);
                continue;
            }
            partition.log.sync_completed(mark);
            if partition.log.sync_work().is_some() {
                self.unsynced.insert(uid);
            }
            self.dirty.insert(uid);
            self.advance(uid);
        }
        let spared = cfg!(any(coulee_mutation = "retry_failed_fsync", coulee_mutation = "failed_flush_spares_others"));
        if flush_failed && !spared {
            // What else was written meanwhile may have gone with it, and the next flush would not say so.
            let at_risk = |partition: &Partition<D>| !partition.is_offline() && partition.log.has_unsynced();
            let at_risk = self.partitions.iter().filter(|(_, partition)| at_risk(partition));
            let at_risk: Vec<PartitionUid> = at_risk.map(|(uid, _)| *uid).collect();
            at_risk.into_iter().for_each(|uid| self.fail(uid));
            self.checkpoints.spoiled = self.checkpoints.storing;
            self.checkpoints.due = true;
        }
    }

    /// After the ends of a partition's log have moved: acks, parked fetches, appends that waited for a sync.
    pub(super) fn advance(&mut self, uid: PartitionUid) {
        let Some(partition) = self.partitions.get_mut(&uid) else { return };
        partition.order_waiting(self.now);
        self.checkpoints.due = true;
        if !partition.advance() {
            return;
        }
        let (log_start, high_watermark, epoch) =
            (partition.log.log_start(), partition.high_watermark(), partition.log.epoch());
        for ack in partition.release_acks() {
            let produced = Produced { base_offset: ack.base, log_start, high_watermark, epoch };
            self.effects.push_back(Effect::Produced(ack.request, Ok(produced)));
        }
        let parked = partition.unpark();
        self.wake_fetches(&parked);
    }

    /// Stops a partition after a failed write or sync.
    pub(super) fn fail(&mut self, uid: PartitionUid) {
        let Some(partition) = self.partitions.get_mut(&uid) else { return };
        if partition.is_offline() {
            return;
        }
        self.counters.offline_partitions += 1;
        self.effects.push_back(Effect::Offline(uid));
        for request in partition.fail() {
            self.effects.push_back(Effect::Produced(request, Err(ProduceError::Offline)));
        }
        self.starved.remove(&uid);
        self.unsynced.remove(&uid);
    }

    /// Gets segment files for the partitions whose appends wait for one.
    pub(super) fn feed_starved(&mut self) -> bool {
        let mut worked = false;
        for uid in std::mem::take(&mut self.starved) {
            let Some(partition) = self.partitions.get_mut(&uid) else { continue };
            let Some((size, least)) = partition.segment_wanted(self.now) else {
                if partition.is_starved() {
                    self.starved.insert(uid);
                }
                continue;
            };
            worked = true;
            if let Some(ready) = self.segments.take(size, least, self.now.monotonic_ms) {
                self.segment_made(uid, Ok(ready));
                continue;
            }
            let (disk, shard, number) = (self.disk.clone(), self.segments.shard(), self.segments.next_number());
            self.io.push(Box::pin(
                async move { Done::SegmentMade(uid, pool::make_fresh(disk, shard, number, size).await) },
            ));
        }
        worked
    }

    pub(super) fn segment_made(&mut self, uid: PartitionUid, made: Result<NewSegment<D::File>, DiskError>) {
        let now = self.now;
        let Some(partition) = self.partitions.get_mut(&uid) else {
            // Deleted meanwhile.
            let unused = |new: NewSegment<D::File>| RetiredFile {
                name: new.pool_name,
                file: Some(new.file),
                size: new.size,
                written: if new.prezeroed { new.size.bytes() } else { 0 },
                lease: Rc::default(),
            };
            self.retired.extend(made.ok().map(unused));
            return;
        };
        partition.segment_came();
        match made {
            Ok(new) => {
                self.counters.fresh_segments += u64::from(!new.prezeroed);
                let before = partition.log.log_end();
                partition.log.start_segment(new, now.monotonic_ms);
                partition.order_waiting(now);
                self.counters.records += partition.log.log_end().0 - before.0;
                if partition.is_starved() {
                    self.starved.insert(uid);
                }
                self.dirty.insert(uid);
            }
            Err(DiskError::NoSpace) => {
                for request in partition.refuse_waiting() {
                    self.effects.push_back(Effect::Produced(request, Err(ProduceError::DiskFull)));
                }
            }
            Err(_) => self.fail(uid),
        }
    }

    /// Lets a segment take its name once everything before it is durable, and seals the one before.
    fn name_and_seal(&mut self, uid: PartitionUid) -> bool {
        let Some(partition) = self.partitions.get_mut(&uid) else { return false };
        let visible = partition.high_watermark();
        let naming = partition.log.naming_due();
        let seal = partition.log.seal_due(visible);
        let worked = naming.is_some() || seal.is_some();
        if let Some((from, to, lease)) = naming {
            let disk = self.disk.clone();
            let crate::disk::FileName::Segment(_, base) = to else { unreachable!("segments are named as segments") };
            self.io.push(Box::pin(async move {
                let result = match disk.rename(from, to).await {
                    Ok(()) if !cfg!(coulee_mutation = "no_dir_fsync") => disk.sync_dir(to.dir()).await,
                    done => done,
                };
                drop(lease);
                Done::Named(uid, base, result)
            }));
        }
        if let Some(work) = seal {
            let (disk, pool, base) = (self.disk.clone(), self.pool.clone(), work.base);
            self.background.push(Box::pin(async move { Done::Sealed(uid, base, work.run(disk, pool).await) }));
        }
        worked
    }

    pub(super) fn named(&mut self, uid: PartitionUid, base: Offset, result: Result<(), DiskError>) {
        let Some(partition) = self.partitions.get_mut(&uid) else { return };
        if result.is_err() {
            self.fail(uid);
            return;
        }
        partition.log.named(base);
        self.dirty.insert(uid);
        self.advance(uid);
    }

    pub(super) fn sealed(&mut self, uid: PartitionUid, base: Offset, result: &Result<(), DiskError>) {
        if let Some(partition) = self.partitions.get_mut(&uid) {
            partition.log.sealed(base, result.is_ok());
            self.dirty.insert(uid);
        }
    }

    /// Lets the oldest append buffers go while too many are kept.
    pub(super) fn bound_kept_bytes(&mut self) {
        while self.kept_bytes > self.options.tail_bytes {
            let Some(uid) = self.kept.pop_front() else { break };
            let evicted = self.partitions.get_mut(&uid).and_then(Partition::evict);
            self.kept_bytes -= evicted.unwrap_or(0);
        }
    }
}

/// Syncs what every partition has written: one flush of the device where that is proved and all blocks had been
/// written before, each file by itself elsewhere, all at once.
async fn sync_all<D: Disk>(disk: &D, works: Vec<(PartitionUid, SyncWork<D::File>)>) -> Synced {
    let flushable = |file: &SyncFile<D::File>| {
        (file.prezeroed || cfg!(coulee_mutation = "flush_new_files")) && disk.device_flush_proved()
    };
    let flushed = works.iter().flat_map(|(_, work)| &work.files).filter(|file| flushable(file)).count();
    let flush = flushed > 1;
    let mut results: Vec<Result<(), DiskError>> = vec![Ok(()); works.len()];
    let mut syncs = FuturesUnordered::new();
    for (at, (_, work)) in works.iter().enumerate() {
        for file in work.files.iter().filter(|file| !flush || !flushable(file)) {
            let file = file.file.clone();
            syncs.push(async move { (at, file.sync().await) });
        }
    }
    let all = async {
        while let Some((at, result)) = syncs.next().await {
            results[at] = results[at].and(result);
        }
    };
    let device = async { if flush { disk.sync_device().await } else { Ok(()) } };
    let (device, ()) = futures_util::future::join(device, all).await;
    if device.is_err() {
        // Files that had a sync of their own, too: what they had written may have gone with the flush.
        results.fill(device);
    }
    let marks = works.into_iter().zip(results).map(|((uid, work), result)| (uid, work.snapshot, result));
    Synced { marks: marks.collect(), by_device: flush, flush_failed: device.is_err() }
}
