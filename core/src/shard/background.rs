//! Background work of a shard: checkpoints, sealing, segment files in reserve, removals, stopping; it knows no request.
//!
//! While the foreground has work, background futures get one poll a cycle, which starts at most one short operation.

use super::{Done, Effect, Shard, Stopping};
use crate::checkpoint::{self, Checkpoint};
use crate::disk::{Dir, Disk, DiskError, FileName};
use crate::limits::{CHECKPOINT_INTERVAL_MS, OPEN_SEALED_FILES_MAX};
use crate::log::RetiredFile;
use crate::pool;
use coulee_protocol::ids::{Offset, PartitionUid};
use futures_util::stream::StreamExt;
use std::rc::Rc;
use std::task::{Context, Poll};

impl<D: Disk> Shard<D> {
    /// Goes on with background work: once while the foreground is `busy`, else until it waits.
    pub(super) fn background(&mut self, context: &mut Context<'_>, busy: bool) -> bool {
        self.make_segments();
        self.recycle();
        let mut worked = false;
        while let Poll::Ready(Some(done)) = self.background.poll_next_unpin(context) {
            self.completed(done);
            worked = true;
            if busy {
                break;
            }
        }
        worked
    }

    fn make_segments(&mut self) {
        if self.stopping != Stopping::No {
            return;
        }
        if let Some(size) = self.segments.making_due() {
            let (disk, shard, number) = (self.disk.clone(), self.segments.shard(), self.segments.next_number());
            self.background.push(Box::pin(async move {
                Done::PoolMade(size, pool::make_ready(disk, shard, number, size).await.ok())
            }));
        }
    }

    /// Puts retired files back into the pool once nobody reads or writes them.
    fn recycle(&mut self) {
        let Some(at) = self.retired.iter().position(|retired| Rc::strong_count(&retired.lease) == 1) else { return };
        let Some(retired) = self.retired.remove(at) else { return };
        let (disk, shard, number) = (self.disk.clone(), self.segments.shard(), self.segments.next_number());
        let keep = retired.prezeroed && self.segments.has_room(retired.size);
        self.background.push(Box::pin(async move {
            if keep {
                Done::Recycled(pool::recycle(disk, shard, number, retired).await.ok())
            } else {
                // What cannot be removed now is found by the next start.
                let removed = disk.remove(retired.name).await;
                Done::Recycled(removed.ok().and(None))
            }
        }));
    }

    /// Removes the directory of a deleted partition; files worth keeping go to the pool.
    pub(super) fn remove_files(&mut self, uid: PartitionUid, files: Vec<RetiredFile<D::File>>) {
        let disk = self.disk.clone();
        self.opening.remove(&uid);
        self.retired
            .extend(files.into_iter().filter(|file| matches!(file.name, FileName::Pool(..) | FileName::Fresh(..))));
        self.background.push(Box::pin(async move { Done::Removed(uid, remove_partition(&disk, uid).await) }));
    }

    /// Keeps the file of a sealed segment open for the next read, and closes the one that has been open longest.
    pub(super) fn keep_file(&mut self, uid: PartitionUid, base: Offset, file: D::File) {
        let kept = self.partitions.get_mut(&uid).is_some_and(|partition| partition.log.keep_file(base, file));
        if kept {
            self.open_files.push_back((uid, base));
        }
        if self.open_files.len() > OPEN_SEALED_FILES_MAX
            && let Some((uid, base)) = self.open_files.pop_front()
            && let Some(partition) = self.partitions.get_mut(&uid)
        {
            partition.log.close_file(base);
        }
    }

    pub(super) fn checkpoint_deadline_ms(&self) -> Option<u64> {
        let waits = self.checkpoints.due && !self.checkpoints.storing;
        waits.then_some(self.checkpoints.last_ms + CHECKPOINT_INTERVAL_MS)
    }

    /// Writes a checkpoint when one is due: at once where a partition waits to be opened or the shard stops.
    pub(super) fn store_checkpoint(&mut self) -> bool {
        let checkpoints = &self.checkpoints;
        let awaited = !checkpoints.opening.is_empty() || matches!(self.stopping, Stopping::Clean(_));
        let urgent = awaited && !checkpoints.failed;
        let late = self.now.monotonic_ms >= checkpoints.last_ms + CHECKPOINT_INTERVAL_MS;
        if checkpoints.storing || !(urgent || (checkpoints.due && late)) || self.stopping == Stopping::Done {
            return false;
        }
        let clean = matches!(self.stopping, Stopping::Clean(_));
        let mut partitions = self.checkpoints.unopened.clone();
        for (uid, partition) in &self.partitions {
            partitions.insert(*uid, partition.log.checkpoint(clean && !partition.is_offline()));
        }
        self.checkpoints.sequence += 1;
        self.checkpoints.storing = true;
        self.checkpoints.due = false;
        self.checkpoints.last_ms = self.now.monotonic_ms;
        let sequence = self.checkpoints.sequence;
        let checkpoint = Checkpoint { sequence, partitions: partitions.into_values().collect() };
        let (disk, pool, shard) = (self.disk.clone(), self.pool.clone(), self.options.id);
        self.io.push(Box::pin(async move {
            Done::Checkpointed(sequence, checkpoint::store(disk, pool, shard, checkpoint).await)
        }));
        true
    }

    pub(super) fn checkpointed(&mut self, sequence: u64, result: &Result<(), DiskError>) {
        self.checkpoints.storing = false;
        if std::mem::take(&mut self.checkpoints.spoiled) || result.is_err() {
            // The other copy stands, so the next one goes to the same copy again, under the same number: whoever
            // waits for two numbers has to have both copies.
            self.checkpoints.sequence -= 1;
            self.checkpoints.failed = true;
            self.checkpoints.due = true;
            return;
        }
        self.checkpoints.failed = false;
        self.checkpoints.stored = sequence;
        while let Some((_, uid, opened)) = self.checkpoints.opening.pop_front_if(|(needed, ..)| *needed <= sequence) {
            if let Some(partition) = self.partitions.get_mut(&uid) {
                partition.allow_appends();
                self.effects.push_back(Effect::Opened(uid, Ok(opened)));
            }
        }
    }

    /// Goes on with stopping, where that was asked for.
    pub(super) fn stop(&mut self) -> bool {
        match self.stopping {
            Stopping::Draining => {
                let quiet = self.dirty.is_empty()
                    && self.unsynced.is_empty()
                    && !self.syncing
                    && self.writes_in_flight == 0
                    && !self.checkpoints.storing
                    && self.background.is_empty()
                    && self.opening.is_empty()
                    && self.partitions.values().all(|partition| partition.is_offline() || partition.pending() == 0);
                if quiet {
                    // Both copies, so that a lost one leaves another that is as new.
                    self.stopping = Stopping::Clean(self.checkpoints.sequence + 2);
                }
                quiet
            }
            Stopping::Clean(sequence) if self.checkpoints.stored >= sequence => {
                self.stopping = Stopping::Done;
                self.effects.push_back(Effect::Stopped);
                true
            }
            _ => false,
        }
    }
}

/// Removes every file of a partition, then its directory, durably.
async fn remove_partition<D: Disk>(disk: &D, uid: PartitionUid) -> Result<(), DiskError> {
    for name in disk.list(Dir::Partition(uid)).await? {
        disk.remove(name).await?;
    }
    disk.remove_dir(Dir::Partition(uid)).await?;
    disk.sync_dir(Dir::Partitions).await
}
