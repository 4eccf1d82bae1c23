//! Owns the claims about segment files in reserve: what is used again, when more are made; knows no partition.

#![allow(clippy::unwrap_used, reason = "what the tests share fails as they do")]

use coulee_core::block::BlockPool;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::disk::{Dir, Disk, File, FileName, WriteMode};
use coulee_core::executor::{Random, block_on};
use coulee_core::log::RetiredFile;
use coulee_core::log::segment::SegmentSize;
use coulee_core::pool::{self, ReadyFile, SegmentPool};
use coulee_protocol::ids::{Offset, PartitionUid};
use std::rc::Rc;

const SIZE: SegmentSize = SegmentSize::ALL[1];
const UID: PartitionUid = PartitionUid(1);

/// A file of one partition whose front of `written` bytes was written and synced, put into the pool.
async fn recycled(disk: &MemoryDisk, written: u32) -> ReadyFile<<MemoryDisk as Disk>::File> {
    disk.create_dir(Dir::Pool(0)).await.unwrap();
    disk.create_dir(Dir::Partition(UID)).await.unwrap();
    disk.sync_dir(Dir::Partitions).await.unwrap();
    let name = FileName::Segment(UID, Offset(0));
    let file = disk.create(name, u64::from(SIZE.bytes())).await.unwrap();
    write(&file, 0, written as usize, b'd').await;
    file.sync().await.unwrap();
    disk.sync_dir(name.dir()).await.unwrap();
    let retired = RetiredFile { name, file: Some(file), size: SIZE, written, lease: Rc::default() };
    pool::recycle(disk.clone(), 0, 9, retired).await.unwrap()
}

async fn write<F: File>(file: &F, position: u64, len: usize, byte: u8) {
    let mut block = BlockPool::new(0).take(len);
    block.extend(&vec![byte; len]);
    file.write_at(vec![block.freeze()], position, WriteMode::Written).await.unwrap();
}

#[test]
fn every_block_of_a_recycled_file_is_made_durable_by_a_flush_of_the_device() {
    for written in [16 << 10, 512 << 10, SIZE.bytes() - 8_192, SIZE.bytes()] {
        for seed in 0..20 {
            let (disk, mut random) = (MemoryDisk::crashing(), Random::new(seed));
            let at = random.below(u64::from(SIZE.bytes() / 4_096)) * 4_096;
            let name = block_on(&disk, &mut random.clone(), async {
                let ReadyFile { name, file, .. } = recycled(&disk, written).await;
                write(&file, at, 4_096, b'n').await;
                disk.sync_device().await.unwrap();
                name
            });
            let crashed = disk.crash(&mut random);
            let bytes =
                crashed.files().into_iter().find_map(|(found, bytes)| (found == name).then_some(bytes)).unwrap();
            let block = &bytes[at as usize..][..4_096];
            assert!(block.iter().all(|byte| *byte == b'n'), "seed {seed}, {written} bytes: what lies at {at} is lost");
            assert!(at == 0 || bytes[..4_096].iter().all(|byte| *byte == 0), "seed {seed}: a header page is left");
        }
    }
}

#[test]
fn a_power_cut_while_a_file_is_recycled_leaves_none_that_only_looks_as_if_it_were_ready() {
    for seed in 0..200 {
        let (disk, mut random) = (MemoryDisk::crashing(), Random::new(seed));
        let mut future = Box::pin(recycled(&disk, 16 << 10));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for _ in 0..random.below(40) {
            if future.as_mut().poll(&mut context).is_ready() {
                break;
            }
            disk.complete(random.below(disk.pending() as u64) as usize);
        }
        drop(future);
        let crashed = disk.crash(&mut random);
        let at = random.below(u64::from(SIZE.bytes() / 4_096)) * 4_096;
        let name = block_on(&crashed, &mut random.clone(), async {
            let mut pool = pool::load(&crashed, 0, 1 << 30).await.unwrap();
            let new = pool.take(SIZE, SIZE, 0)?;
            write(&new.file, at, 4_096, b'n').await;
            crashed.sync_device().await.unwrap();
            Some(new.pool_name)
        });
        let Some(name) = name else { continue };
        let again = crashed.crash(&mut random);
        let bytes = again.files().into_iter().find_map(|(found, bytes)| (found == name).then_some(bytes)).unwrap();
        assert!(
            bytes[at as usize..][..4_096].iter().all(|byte| *byte == b'n'),
            "seed {seed}: what lies at {at} is lost"
        );
    }
}

/// Which sizes a pool makes one after the other at `now_ms`, in bytes.
fn made(disk: &MemoryDisk, pool: &mut SegmentPool<<MemoryDisk as Disk>::File>, now_ms: u64) -> Vec<u32> {
    let mut made = Vec::new();
    while let Some(size) = pool.making_due(now_ms) {
        made.push(size.bytes());
        let number = pool.next_number();
        let ready = block_on(disk, &mut Random::new(1), pool::make_ready(disk.clone(), 0, number, size));
        pool.made(Some(ready.unwrap()));
    }
    made
}

#[test]
fn a_pool_holds_small_files_from_the_start_and_large_ones_once_a_partition_grows_and_the_load_has_ended() {
    let disk = MemoryDisk::crashing();
    let mut pool = block_on(&disk, &mut Random::new(1), pool::load(&disk, 0, 64 << 20)).unwrap();
    let first = made(&disk, &mut pool, 0);
    assert_eq!((first.len(), first.iter().sum::<u32>()), (72, 12 << 20));
    assert_eq!(pool.deadline_ms(), None, "nobody has asked for more");
    assert!(pool.take(SegmentSize::ALL[1], SIZE, 5_000).is_some());
    assert_eq!(made(&disk, &mut pool, 5_000), [1 << 20, 1 << 20, 1 << 20, 16 << 20], "the partition is growing");
    assert!(pool.take(SegmentSize::ALL[2], SIZE, 6_000).is_some());
    assert_eq!((made(&disk, &mut pool, 6_999), pool.deadline_ms()), (vec![], Some(7_000)));
    assert_eq!(made(&disk, &mut pool, 7_000), [16 << 20; 3]);
    assert!(pool.bytes() <= 64 << 20);
}

#[test]
fn a_partition_goes_on_in_a_smaller_zeroed_file_while_there_is_none_of_the_size_it_has_grown_to() {
    let disk = MemoryDisk::crashing();
    let mut pool = block_on(&disk, &mut Random::new(1), pool::load(&disk, 0, 1 << 20)).unwrap();
    assert_eq!(made(&disk, &mut pool, 0), [64 << 10; 16], "there is room for no other");
    let smaller = pool.take(SIZE, SegmentSize::SMALLEST, 0).unwrap();
    assert_eq!((smaller.size, smaller.prezeroed), (SegmentSize::SMALLEST, true));
    assert!(pool.take(SIZE, SIZE, 0).is_none(), "the batch that waits would not fit");
    assert!(
        pool.take(SegmentSize::ALL[2], SegmentSize::SMALLEST, 0).is_none(),
        "one that is much too small is not worth it"
    );
}
