//! Measures the codec of the protocol: building, validating, reading, framing, compressing; knows no log and no disk.

use coulee_bench::{BATCH_RECORDS, VALUE_BYTES, batch, config, keys, push_all, values};
use coulee_protocol::batch::{BatchHeader, HEADER_BYTES, LeaderFields, check_entry};
use coulee_protocol::columns::builder::BatchBuilder;
use coulee_protocol::columns::{self, Columns, Scratch};
use coulee_protocol::compression::Codec;
use coulee_protocol::frame::{self, FrameHeader};
use coulee_protocol::ids::{BatchIndex, LeaderEpoch, Offset, PartitionUid};
use coulee_protocol::limits::BATCH_BYTES_DEFAULT_MAX;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

/// Builds batches of 1,000 records into a recycled buffer; a time is that of the whole batch.
fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build");
    group.throughput(Throughput::Elements(BATCH_RECORDS as u64));
    let values = values(BATCH_RECORDS);
    for (name, keys) in [("1000x100B", Vec::new()), ("1000x100B with keys", keys(BATCH_RECORDS))] {
        let mut builder = BatchBuilder::new(Codec::None, BATCH_BYTES_DEFAULT_MAX);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                push_all(&mut builder, black_box(&values), &keys);
                let batch = builder.finish().expect("it has records");
                builder.recycle(black_box(batch));
            });
        });
    }
    group.finish();
}

/// Opens a batch and goes over its records; a time is that of the whole batch.
fn read(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Elements(BATCH_RECORDS as u64));
    let batch = batch(BATCH_RECORDS, Codec::None);
    let header = BatchHeader::decode(&batch).expect("it was just built");
    let payload = &batch[HEADER_BYTES..];
    group.bench_function("open and all values", |bencher| {
        bencher.iter(|| {
            let mut scratch = Scratch::default();
            let columns = Columns::open(black_box(payload), &header, &mut scratch).expect("it was just built");
            columns.values().fold(0, |sum, value| sum + value.map_or(0, |value| value.len() + usize::from(value[0])))
        });
    });
    group.bench_function("open and all records", |bencher| {
        bencher.iter(|| {
            let mut scratch = Scratch::default();
            let columns = Columns::open(black_box(payload), &header, &mut scratch).expect("it was just built");
            columns.records().fold(0, |sum, record| sum + record.offset.0 + record.value.map_or(0, <[u8]>::len) as u64)
        });
    });
    group.finish();
}

/// What entry costs: the CRC over the payload, everything but the CRC, and both with the header.
fn validate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("validate");
    let batch = batch(BATCH_RECORDS, Codec::None);
    let header = BatchHeader::decode(&batch).expect("it was just built");
    let payload = &batch[HEADER_BYTES..];
    group.bench_function("columns without CRC", |bencher| {
        bencher.iter(|| columns::check_entry(black_box(payload), &header).is_ok());
    });
    group.bench_function("header alone", |bencher| bencher.iter(|| BatchHeader::decode(black_box(&batch)).is_ok()));
    let leader = LeaderFields {
        partition_uid: PartitionUid(1),
        batch_index: BatchIndex(1),
        leader_epoch: LeaderEpoch(1),
        ..LeaderFields { base_offset: Offset(7), ..LeaderFields::default() }
    };
    let mut stamped = [0; HEADER_BYTES];
    group.bench_function("stamp", |bencher| bencher.iter(|| header.stamp(black_box(leader), &mut stamped).header_crc));
    // These two read every byte.
    group.throughput(Throughput::Bytes(batch.len() as u64));
    group.bench_function("payload CRC alone", |bencher| bencher.iter(|| crc32fast::hash(black_box(payload))));
    group.bench_function("whole entry", |bencher| {
        bencher.iter(|| check_entry(black_box(&batch), BATCH_BYTES_DEFAULT_MAX).is_ok());
    });
    group.finish();
}

fn crc(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crc");
    for (name, bytes) in [("4 KiB", 4 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)] {
        let bytes: Vec<u8> = values(bytes / VALUE_BYTES + 1)[..bytes].to_vec();
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| crc32fast::hash(black_box(&bytes))));
    }
    group.finish();
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            let (api, version, correlation, body_bytes, batches_bytes) = black_box((2, 1, 7, 40, 104_000));
            FrameHeader::request(api, version, correlation, body_bytes, batches_bytes).encode()
        });
    });
    let mut bytes = FrameHeader::request(2, 1, 7, 40, 1_000).encode().to_vec();
    bytes.resize(24 + 1_040, 1);
    group.bench_function("split", |bencher| bencher.iter(|| frame::split(black_box(&bytes)).is_ok()));
    group.finish();
}

/// Compresses and restores the values of 1,000 records; throughput counts the bytes before compression.
fn compression(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compression");
    let values = values(BATCH_RECORDS);
    group.throughput(Throughput::Bytes(values.len() as u64));
    for (name, codec) in [("none", Codec::None), ("lz4", Codec::Lz4), ("zstd", Codec::Zstd)] {
        let mut packed = Vec::new();
        codec.compress(&values, &mut packed).expect("the column is within its bound");
        println!("compression/{name}: {} of {} bytes", packed.len(), values.len());
        group.bench_function(format!("{name} compress"), |bencher| {
            let mut out = Vec::new();
            bencher.iter(|| {
                out.clear();
                codec.compress(black_box(&values), &mut out).is_ok()
            });
        });
        group.bench_function(format!("{name} restore"), |bencher| {
            let mut out = Vec::new();
            bencher.iter(|| codec.restore(black_box(&packed), values.len(), &mut out).is_ok());
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = config();
    targets = build, read, validate, crc, frames, compression
}
criterion_main!(benches);
