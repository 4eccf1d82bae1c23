//! Counts allocations on the way of a record: as many for a batch of 10,000 records as for one of 100; knows no time.
//!
//! The allocator counts for each thread, so that tests beside each other do not disturb each other's figures.

use coulee_core::block::BlockPool;
use coulee_core::config::TopicConfig;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::executor::Runner;
use coulee_core::log::Incoming;
use coulee_core::log::segment::Owner;
use coulee_core::partition::Acks;
use coulee_core::shard::{Command, Effect, RequestId, ShardOptions};
use coulee_protocol::batch::{BatchHeader, HEADER_BYTES, check_entry};
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::columns::{Columns, Scratch};
use coulee_protocol::compression::Codec;
use coulee_protocol::ids::{ClusterId, PartitionUid, Timestamp, TopicId};
use coulee_protocol::limits::BATCH_BYTES_DEFAULT_MAX;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

thread_local! {
    /// Allocations of this thread so far. Needs no destructor, so it can be counted at any time.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call is handed on unchanged to the system's allocator, which keeps the contract; counting touches
// nothing but a cell of this thread and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_one();
        // SAFETY: the caller keeps the contract of `alloc`, which is the same there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_one();
        // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is the same there.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count_one();
        // SAFETY: `pointer` came from `System` by this allocator, with this layout; the caller vouches for `bytes`.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` by this allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count_one() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

/// How often `work` allocates or grows something.
fn allocations<T>(work: impl FnOnce() -> T) -> u64 {
    let before = ALLOCATIONS.get();
    let result = work();
    let count = ALLOCATIONS.get() - before;
    drop(black_box(result));
    count
}

/// What the records of a batch have beside a value.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Values,
    Keys,
    Everything,
}

const SHAPES: [Shape; 3] = [Shape::Values, Shape::Keys, Shape::Everything];

/// Pushes `records` records of `value_bytes` bytes and makes a batch of them.
fn build(builder: &mut BatchBuilder, shape: Shape, records: usize, value_bytes: usize) -> Vec<u8> {
    let value = [b'v'; 4_096];
    let headers: [(&[u8], Option<&[u8]>); 2] = [(b"trace", Some(b"1")), (b"trace", None)];
    for record in 0..records {
        let number = (record as u64).to_le_bytes();
        let mut new = NewRecord { value: Some(&value[..value_bytes]), ..NewRecord::default() };
        if !matches!(shape, Shape::Values) {
            new.key = Some(&number);
        }
        if matches!(shape, Shape::Everything) {
            new.timestamp = Timestamp(record as i64);
            new.headers = &headers;
            new.value = new.value.filter(|_| record % 3 > 0);
        }
        builder.push(&new).expect("the batch has room");
    }
    builder.finish().expect("the batch has records")
}

/// Allocations of each of 20 batches built one behind the other into recycled buffers, after two that warm them up.
fn allocations_of_building(shape: Shape, records: usize) -> Vec<u64> {
    let mut builder = BatchBuilder::new(Codec::None, BATCH_BYTES_DEFAULT_MAX);
    let mut one = || {
        let count = allocations(|| {
            let batch = build(&mut builder, shape, records, 40);
            builder.recycle(batch);
        });
        assert!(builder.is_empty());
        count
    };
    (0..22).map(|_| one()).skip(2).collect()
}

#[test]
fn building_a_batch_with_a_recycled_builder_allocates_nothing() {
    for shape in SHAPES {
        for records in [100, 1_000, 10_000] {
            assert_eq!(allocations_of_building(shape, records), [0; 20], "{shape:?} {records}");
        }
    }
}

#[test]
fn a_builder_that_is_not_recycled_is_noticed_by_the_count() {
    let mut builder = BatchBuilder::new(Codec::None, BATCH_BYTES_DEFAULT_MAX);
    drop(build(&mut builder, Shape::Keys, 1_000, 40));
    assert!(allocations(|| build(&mut builder, Shape::Keys, 1_000, 40)) > 0);
    let owned = |records: usize| {
        let values: Vec<Vec<u8>> = (0..records).map(|record| vec![record as u8; 40]).collect();
        values.iter().map(Vec::len).sum::<usize>()
    };
    assert_eq!(allocations(|| owned(1_000)) - allocations(|| owned(100)), 900, "one a record is counted as such");
}

#[test]
fn validating_a_batch_and_reading_its_records_allocates_nothing() {
    for shape in SHAPES {
        for records in [100, 10_000] {
            let batch = build(&mut BatchBuilder::new(Codec::None, BATCH_BYTES_DEFAULT_MAX), shape, records, 40);
            let header = check_entry(&batch, BATCH_BYTES_DEFAULT_MAX).expect("it was just built");
            let validating = allocations(|| check_entry(&batch, BATCH_BYTES_DEFAULT_MAX).is_ok());
            assert_eq!(validating, 0, "validating {shape:?} {records}");
            let reading = allocations(|| read(&batch, &header, &mut Scratch::default()));
            assert_eq!(reading, 0, "reading {shape:?} {records}");
        }
    }
}

#[test]
fn reading_compressed_batches_into_the_same_scratch_allocates_nothing_a_record() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let mut scratch = Scratch::default();
        let mut count = |records| {
            let batch = build(&mut BatchBuilder::new(codec, BATCH_BYTES_DEFAULT_MAX), Shape::Keys, records, 40);
            let header = BatchHeader::decode(&batch).expect("it was just built");
            read(&batch, &header, &mut scratch);
            allocations(|| read(&batch, &header, &mut scratch))
        };
        let (few, many) = (count(100), count(10_000));
        assert_eq!(few, many, "{codec:?}");
    }
}

/// Goes over every part of every record.
fn read(batch: &[u8], header: &BatchHeader, scratch: &mut Scratch) -> usize {
    let columns = Columns::open(&batch[HEADER_BYTES..], header, scratch).expect("it was just built");
    let values = columns.values().map(|value| value.map_or(0, <[u8]>::len)).sum::<usize>();
    let parts = columns.records().map(|record| {
        let headers = record.headers.map(|(key, value)| key.len() + value.map_or(0, <[u8]>::len)).sum::<usize>();
        headers + record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len)
    });
    values + parts.sum::<usize>()
}

const UID: PartitionUid = PartitionUid(1);

/// A shard with one open partition.
fn runner() -> Runner {
    let options = ShardOptions { id: 0, tail_bytes: 1 << 20, pool_bytes: 0 };
    let mut runner = Runner::start(MemoryDisk::new(), options, 1).expect("a disk in memory has no faults");
    let owner = Owner { cluster_id: ClusterId([7; 16]), topic_id: TopicId([9; 16]), partition_uid: UID, partition: 0 };
    let config = TopicConfig::parse([("segment.bytes", "134217728")]).expect("a size that segments may have");
    runner.command(Command::Open(owner, config));
    let opened = runner.wait_for(|effect| matches!(effect, Effect::Opened(_, Ok(_))).then_some(()));
    assert!(opened.is_some(), "the partition never opened");
    runner
}

/// Appends `together` copies of `batch` and waits for their acks.
fn append(runner: &mut Runner, received: Vec<Incoming>) {
    let count = received.len();
    for (request, batch) in received.into_iter().enumerate() {
        let (request, acks) = (RequestId(request as u64), Acks::Acknowledged);
        runner.command(Command::Produce { request, partition: UID, acks, batch });
    }
    for _ in 0..count {
        let acked = runner.wait_for(|effect| match effect {
            Effect::Produced(_, result) => Some(result.is_ok()),
            _ => None,
        });
        assert_eq!(acked, Some(true), "a batch was not acknowledged");
    }
}

/// `batch` as it is received `together` times.
fn received(pool: &BlockPool, batch: &[u8], together: usize) -> Vec<Incoming> {
    let receive = |_| {
        let mut block = pool.take(batch.len());
        block.extend(batch);
        if batch.len() >= 32 << 10 { Incoming::Owned(block) } else { Incoming::Shared(block.freeze()) }
    };
    (0..together).map(receive).collect()
}

/// Allocations from `together` produces to their acks: the median of 101 rounds in one segment of 128 MiB, because an
/// index entry or a longer queue falls into some of them.
fn allocations_of_appending(records: usize, value_bytes: usize, together: usize) -> u64 {
    let (mut runner, pool) = (runner(), BlockPool::new(16 << 20));
    let batch =
        build(&mut BatchBuilder::new(Codec::None, BATCH_BYTES_DEFAULT_MAX), Shape::Values, records, value_bytes);
    let filler = build(&mut BatchBuilder::new(Codec::None, BATCH_BYTES_DEFAULT_MAX), Shape::Values, 200, 4_096);
    while runner.shard.partition(UID).is_none_or(|partition| partition.log.size_bytes() < 128 << 20) {
        append(&mut runner, received(&pool, &filler, 1));
    }
    let mut counts: Vec<u64> = (0..101)
        .map(|_| {
            let received = received(&pool, &batch, together);
            allocations(|| append(&mut runner, received))
        })
        .collect();
    counts.sort_unstable();
    counts[counts.len() / 2]
}

#[test]
fn appending_a_batch_up_to_its_ack_allocates_the_same_whatever_it_holds() {
    let small = [(1, 4_000), (100, 40), (1_000, 4)];
    let large = [(10, 4_000), (1_000, 40), (10_000, 40), (10_000, 100)];
    for (name, batches) in [("small", &small[..]), ("large", &large[..])] {
        let counts: Vec<u64> =
            batches.iter().map(|(records, bytes)| allocations_of_appending(*records, *bytes, 1)).collect();
        println!("{name}: {counts:?} allocations a batch");
        assert!(counts.iter().all(|count| *count == counts[0]), "{name}: {counts:?} for {batches:?}");
        assert!(counts[0] < 64, "{name}: {} allocations a batch", counts[0]);
    }
}

#[test]
fn small_batches_that_share_a_cycle_share_its_allocations() {
    let (one, many) = (allocations_of_appending(1, 100, 1), allocations_of_appending(1, 100, 200));
    println!("{one} allocations for one batch of one record, {many} for 200 in one cycle");
    assert!(many < one + 50, "a quarter of one for each further batch at most: {one}, {many}");
}
