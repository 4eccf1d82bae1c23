//! A whole shard of core over the disk: produce, acknowledge, start again, read back; knows no socket.

use super::open;
use crate::disk::FileDisk;
use crate::ring::tests::{alone, cycle};
use crate::ring::{Ring, RingOptions};
use coulee_core::block::BlockPool;
use coulee_core::config::TopicConfig;
use coulee_core::log::Incoming;
use coulee_core::log::segment::Owner;
use coulee_core::partition::Acks;
use coulee_core::shard::fetches::{FetchPart, FetchSpec};
use coulee_core::shard::{Command, Effect, Now, RequestId, Shard, ShardOptions};
use coulee_protocol::batch::HEADER_BYTES;
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::compression::Codec;
use coulee_protocol::ids::{ClusterId, Offset, PartitionUid, Timestamp, TopicId};
use std::future::poll_fn;
use std::path::Path;
use std::task::Poll;
use std::time::{Duration, Instant};

const OPTIONS: ShardOptions = ShardOptions { id: 0, tail_bytes: 256 << 10, pool_bytes: 4 << 20 };
const UID: PartitionUid = PartitionUid(1);

fn owner() -> Owner {
    Owner { cluster_id: ClusterId([7; 16]), topic_id: TopicId([9; 16]), partition_uid: UID, partition: 0 }
}

/// A batch of one record whose value says `id`, `bytes` long.
fn batch(id: u64, bytes: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None, 8 << 20);
    let mut value = id.to_le_bytes().to_vec();
    value.resize(bytes, id as u8);
    builder.push(&NewRecord { timestamp: Timestamp(1), value: Some(&value), ..NewRecord::default() }).unwrap();
    builder.finish().unwrap()
}

/// A shard on a ring, as the server runs it: a cycle, then a wait where there was nothing to do.
struct Driven {
    shard: Shard<FileDisk>,
    ring: Ring,
    began: Instant,
}

impl Driven {
    async fn start(ring: &Ring, root: &Path) -> Self {
        let disk = open(root, ring);
        let shard = cycle(ring, Shard::start(disk, BlockPool::new(8 << 20), OPTIONS)).await.unwrap();
        Self { shard, ring: ring.clone(), began: Instant::now() }
    }

    /// The next effects; waits for them.
    async fn effects(&mut self) -> Vec<Effect> {
        loop {
            self.ring.reap();
            let ms = self.began.elapsed().as_millis() as u64;
            let now = Now { monotonic_ms: ms, wall_ms: 1_700_000_000_000 + ms as i64 };
            let worked = poll_fn(|context| Poll::Ready(self.shard.cycle(now, context))).await;
            let effects: Vec<Effect> = self.shard.take_effects().into();
            if !effects.is_empty() {
                return effects;
            }
            self.ring.submit().unwrap();
            if !worked && self.ring.reap() == 0 {
                let deadline = self.shard.deadline_ms().map(|at| Duration::from_millis(at.saturating_sub(ms)));
                self.ring.wait(deadline).unwrap();
            }
        }
    }

    async fn open_partition(&mut self) -> (Offset, Offset) {
        self.shard.command(Command::Open(owner(), TopicConfig::parse([("segment.bytes", "65536")]).unwrap()));
        match self.effects().await.as_slice() {
            [Effect::Opened(UID, Ok(opened))] => (opened.log_start, opened.log_end),
            other => panic!("{other:?}"),
        }
    }

    async fn produce(&mut self, ids: std::ops::Range<u64>) {
        let mut waiting = ids.end - ids.start;
        for id in ids {
            let bytes = batch(id, if id % 7 == 0 { 40_000 } else { 100 });
            let mut block = BlockPool::new(0).take(bytes.len());
            block.extend(&bytes);
            let batch = if bytes.len() >= 32 << 10 { Incoming::Owned(block) } else { Incoming::Shared(block.freeze()) };
            let request = RequestId(id);
            self.shard.command(Command::Produce { request, partition: UID, acks: Acks::Acknowledged, batch });
        }
        while waiting > 0 {
            for effect in self.effects().await {
                match effect {
                    Effect::Produced(_, Ok(_)) => waiting -= 1,
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// Payloads of the batches from offset `from` on.
    async fn read_from(&mut self, from: u64, end: u64) -> Vec<Vec<u8>> {
        let (mut payloads, mut offset) = (Vec::new(), Offset(from));
        while offset.0 < end {
            let part = FetchPart { partition: UID, offset, bytes_max: 1 << 20 };
            let spec = FetchSpec { parts: vec![part], bytes_min: 1, bytes_max: 1 << 20, wait_ms: 0 };
            self.shard.command(Command::Fetch(RequestId(0), spec));
            for effect in self.effects().await {
                let Effect::Fetched(_, parts) = effect else { panic!("{effect:?}") };
                for part in parts {
                    let slices = part.batches.unwrap();
                    payloads.extend(slices.iter().map(|slice| slice[HEADER_BYTES..].to_vec()));
                    offset.0 += slices.len() as u64;
                }
            }
        }
        payloads
    }

    async fn stop(mut self) {
        self.shard.command(Command::Stop);
        let effects = self.effects().await;
        assert!(matches!(effects[..], [Effect::Stopped]), "{effects:?}");
    }
}

fn sent(ids: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    ids.map(|id| batch(id, if id % 7 == 0 { 40_000 } else { 100 })[HEADER_BYTES..].to_vec()).collect()
}

#[test]
fn what_a_shard_has_acknowledged_is_read_back_after_a_start_with_and_without_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let mut end = 0;
    for (round, is_stopped) in [true, false, true].into_iter().enumerate() {
        alone(RingOptions::default(), async |ring| {
            let mut driven = Driven::start(&ring, dir.path()).await;
            assert_eq!(driven.open_partition().await, (Offset(0), Offset(end)), "round {round}");
            assert_eq!(driven.read_from(0, end).await, sent(0..end), "round {round}");
            driven.produce(end..end + 1).await;
            driven.produce(end + 1..end + 60).await;
            end += 60;
            assert_eq!(driven.read_from(0, end).await, sent(0..end), "round {round}");
            if is_stopped {
                driven.stop().await;
            }
        });
    }
}
