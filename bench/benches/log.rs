//! Measures the log over a disk in memory: appends through a shard up to their ack, and the scan of a recovery; knows
//! no device.
//!
//! The disk copies what is written and what is read once, which a device does beside the processor; nothing is
//! subtracted for it.

use coulee_bench::{BATCH_RECORDS, Bed, OWNER, batch, config};
use coulee_core::block::BlockPool;
use coulee_core::executor::{Random, block_on};
use coulee_core::log::recovery::{Report, recover};
use coulee_core::log::segment::SegmentSize;
use coulee_protocol::compression::Codec;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// A bed whose active segment has just begun and has 128 MiB.
fn bed() -> Bed {
    let mut bed = Bed::new(&SegmentSize::ALL).expect("a disk in memory has no faults");
    bed.fill(&batch(BATCH_RECORDS, Codec::None), SegmentSize::ALL[3], 0);
    bed
}

/// Appends `batch` for `iterations` times, `together` of them in flight, and answers the time from the commands to the
/// last ack. Receiving, which copies the batch into its block, is not counted.
fn append(bed: &mut Bed, batch: &[u8], together: usize, iterations: u64) -> Duration {
    let (mut spent, mut left) = (Duration::ZERO, iterations as usize);
    while left > 0 {
        if !bed.has_room(batch.len(), together) {
            *bed = self::bed();
        }
        let count = together.min(left);
        let received: Vec<_> = (0..count).map(|_| bed.receive(batch)).collect();
        let began = Instant::now();
        for (request, batch) in received.into_iter().enumerate() {
            bed.produce(request as u64, batch);
        }
        bed.wait_for_acks(count);
        spent += began.elapsed();
        left -= count;
    }
    spent
}

/// A time is that of one batch, from the command to the ack.
fn appends(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append");
    let mut bed = bed();
    for (name, records, together) in [
        ("1x100B, 1 in flight", 1, 1),
        ("1x100B, 1000 in flight", 1, 1_000),
        ("1000x100B, 1 in flight", BATCH_RECORDS, 1),
        ("1000x100B, 8 in flight", BATCH_RECORDS, 8),
    ] {
        let batch = batch(records, Codec::None);
        group.throughput(Throughput::Elements(records as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| append(&mut bed, &batch, together, iterations));
        });
    }
    group.finish();
}

/// Opens the log of `bed` as after a crash that left no checkpoint.
fn recovered(bed: &Bed) -> Report {
    let pool = BlockPool::new(8 << 20);
    let opening = recover(&bed.disk, &pool, OWNER, None, SegmentSize::ALL[3]);
    block_on(&bed.disk, &mut Random::new(1), opening).expect("the log is whole").1
}

/// Recovery without a checkpoint: the last segment is scanned from its first batch on, CRCs included, and behind its
/// end as far as a proof of durability can lie. Throughput counts every byte read.
fn recovery(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("recovery");
    group.sample_size(20);
    let (middle, large) = (SegmentSize::ALL[2], SegmentSize::ALL[3]);
    for (name, records, size, position) in [
        ("128 MiB of 1000x100B", BATCH_RECORDS, large, u32::MAX),
        ("16 MiB of 1000x100B", BATCH_RECORDS, middle, u32::MAX),
        ("16 MiB of 10x100B", 10, middle, u32::MAX),
        ("16 MiB of 1x100B", 1, middle, u32::MAX),
        ("128 MiB, 4 MiB of 1000x100B, then zeros", BATCH_RECORDS, large, 4 << 20),
    ] {
        let mut bed = Bed::new(&SegmentSize::ALL).expect("a disk in memory has no faults");
        if size == large {
            bed.fill(&batch(BATCH_RECORDS, Codec::None), middle, u32::MAX);
        }
        bed.fill(&batch(records, Codec::None), size, position);
        (0..10).for_each(|_| drop(bed.cycle()));
        let report = recovered(&bed);
        assert!(report.bytes_read >= u64::from(position.min(size.data_end())), "{report:?}");
        group.throughput(Throughput::Bytes(report.bytes_read));
        group.bench_function(name, |bencher| bencher.iter(|| black_box(recovered(&bed))));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = config();
    targets = appends, recovery
}
criterion_main!(benches);
