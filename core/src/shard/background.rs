//! Background work of a shard: checkpoints, sealing, segment files in reserve, removals, stopping; it knows no request.
//!
//! While the foreground has work, background futures get one poll a cycle, which starts at most one short operation.

use super::{Done, Effect, Removal, Shard, Stopping};
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
        self.remove_deleted();
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
        if let Some(size) = self.segments.making_due(self.now.monotonic_ms) {
            let (disk, shard, number) = (self.disk.clone(), self.segments.shard(), self.segments.next_number());
            self.background
                .push(Box::pin(async move { Done::PoolMade(pool::make_ready(disk, shard, number, size).await.ok()) }));
        }
    }

    /// Puts retired files back into the pool once nobody reads or writes them.
    fn recycle(&mut self) {
        let free = |lease: &Rc<()>| Rc::strong_count(lease) == 1 || cfg!(coulee_mutation = "recycle_while_read");
        let Some(at) = self.retired.iter().position(|retired| free(&retired.lease)) else { return };
        let Some(retired) = self.retired.remove(at) else { return };
        let (disk, shard, number) = (self.disk.clone(), self.segments.shard(), self.segments.next_number());
        let expected = retired.written > 0 && self.segments.expects(retired.size);
        let bytes = if expected { u64::from(retired.size.bytes()) } else { 0 };
        self.background.push(Box::pin(async move {
            if expected {
                let recycled = pool::recycle(disk, shard, number, retired).await;
                return Done::Recycled(bytes, recycled.into_iter().collect());
            }
            // What cannot be removed now is found by the next start.
            let removed = disk.remove(retired.name).await;
            Done::Recycled(bytes, removed.map(|()| Vec::new()).unwrap_or_default())
        }));
    }

    /// Removes the files and the directory of a deleted partition once nobody holds them; those worth keeping go to
    /// the pool.
    fn remove_deleted(&mut self) {
        let free = |file: &RetiredFile<D::File>| {
            Rc::strong_count(&file.lease) == 1 || cfg!(coulee_mutation = "recycle_while_read")
        };
        let due = |removal: &Removal<D::File>| !removal.opening && removal.files.iter().all(free);
        let Some(at) = self.removals.iter().position(due) else { return };
        let Removal { uid, files, .. } = self.removals.swap_remove(at);
        let (mut keep, mut gone, mut expected) = (Vec::new(), Vec::new(), 0);
        for file in files {
            if file.written > 0 && self.segments.expects(file.size) {
                expected += u64::from(file.size.bytes());
                keep.push((self.segments.next_number(), file));
            } else {
                gone.push(file.name);
            }
        }
        let (disk, shard) = (self.disk.clone(), self.segments.shard());
        self.background.push(Box::pin(async move {
            let mut kept = Vec::new();
            for (number, file) in keep {
                // Where this fails the file lies in the pool, for the next start, or is removed with the others.
                kept.extend(pool::recycle(disk.clone(), shard, number, file).await);
            }
            Done::Removed(uid, remove_partition(&disk, uid, gone).await, expected, kept)
        }));
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
                    && self.removals.is_empty()
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

/// Removes the files called `gone` and every other of a partition, then its directory, durably.
async fn remove_partition<D: Disk>(disk: &D, uid: PartitionUid, gone: Vec<FileName>) -> Result<(), DiskError> {
    for name in gone.into_iter().chain(disk.list(Dir::Partition(uid)).await?) {
        disk.remove(name).await?;
    }
    disk.remove_dir(Dir::Partition(uid)).await?;
    disk.sync_dir(Dir::Partitions).await
}
