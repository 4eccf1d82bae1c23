//! `core::verify` over disks in memory: finds damage and nothing else, as a start would; knows not how it is shown.
//!
//! Every check also compares the disk before and after: nothing may change.

#![allow(clippy::unwrap_used, reason = "what the tests share fails as they do")]

mod model;

use coulee_core::block::BlockPool;
use coulee_core::catalog::{CATALOG_UID, Catalog, Change};
use coulee_core::config::TopicConfig;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::disk::{Copy2, Disk, FileName};
use coulee_core::executor::{Random, Runner, block_on};
use coulee_core::limits::BLOCK_BYTES;
use coulee_core::log::scan::{Chain, Step, Window};
use coulee_core::log::segment::{Footer, HeaderPage, SegmentSize, Trailer, padded_end};
use coulee_core::meta;
use coulee_core::shard::{Command, Effect, ShardOptions};
use coulee_core::verify::{Report, Severity, What, verify};
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::compression::Codec;
use coulee_protocol::ids::{ClusterId, LeaderEpoch, Offset, PartitionUid, TopicId};
use model::{answer, append, content, send, small_segments, stop};

const CLUSTER: ClusterId = ClusterId([7; 16]);
const UID: PartitionUid = PartitionUid(2);
/// No file in reserve: a copy of the disk is quickly made.
const BARE: ShardOptions = ShardOptions { id: 0, tail_bytes: 0, pool_bytes: 0 };

/// Checks `disk`, which has to be the same afterwards.
fn checked(disk: &MemoryDisk) -> Report {
    let before = disk.files();
    let report = block_on(disk, &mut Random::new(1), verify(disk, &mut |_| ())).unwrap();
    assert!(disk.files() == before, "a check has changed something");
    report
}

fn is_damaged(report: &Report) -> bool {
    report.severity() == Some(Severity::Damage)
}

/// Everything that was found, as text.
fn told(report: &Report) -> Vec<String> {
    let parts = report.partitions.iter().map(|partition| &partition.findings);
    let all = parts.chain([&report.findings]).flat_map(|findings| findings.iter());
    all.map(|finding| format!("{} {:?} {}", finding.place, finding.position, finding.what)).collect()
}

/// A broker's directory with one topic of two partitions, and a shard that has both of them open.
fn begin(disk: MemoryDisk, config: TopicConfig, seed: u64) -> (Runner, Catalog) {
    block_on(&disk, &mut Random::new(1), meta::open(&disk, &BlockPool::new(0), CLUSTER)).unwrap();
    let mut runner = Runner::start(disk, BARE, seed).unwrap();
    let mut catalog = Catalog::default();
    open(&mut runner, &catalog, CATALOG_UID, TopicConfig::default());
    let (name, topic_id) = ("orders".into(), TopicId([9; 16]));
    let change = Change::Create { topic_id, name, partitions: 2, replication_factor: 0, settings: vec![] };
    let record = catalog.plan(change, 1).unwrap();
    catalog.apply(&record).unwrap();
    let value = record.encode();
    let mut builder = BatchBuilder::new(Codec::None, 1 << 20);
    builder.push(&NewRecord { value: Some(&value), ..NewRecord::default() }).unwrap();
    send(&mut runner, CATALOG_UID.0, 1 << 32, &builder.finish().unwrap());
    answer(&mut runner, 1 << 32).unwrap().unwrap();
    for uid in [2, 3] {
        open(&mut runner, &catalog, PartitionUid(uid), config);
    }
    (runner, catalog)
}

fn open(runner: &mut Runner, catalog: &Catalog, uid: PartitionUid, config: TopicConfig) {
    runner.command(Command::Open(catalog.owner(uid, CLUSTER).unwrap(), config));
    let opened =
        runner.wait_for(|effect| matches!(effect, Effect::Opened(opened, Ok(_)) if *opened == uid).then_some(()));
    opened.unwrap();
}

/// A directory after a clean stop: partition 2 has several sealed segments and an active one, partition 3 one batch.
fn stopped() -> MemoryDisk {
    let (mut runner, _) = begin(MemoryDisk::new(), small_segments(), 1);
    let shapes = [(3, 40), (1, 5_000), (1, 33_000), (2, 9), (1, 700), (7, 1), (1, 3_900), (40, 20), (1, 300)];
    for id in 1..=24 {
        append(&mut runner, UID.0, id, shapes[id as usize % shapes.len()]).unwrap();
    }
    append(&mut runner, 3, 25, (1, 1)).unwrap();
    stop(runner).unwrap()
}

/// The segments of partition 2, oldest first.
fn segments(disk: &MemoryDisk) -> Vec<FileName> {
    let mut names: Vec<FileName> = disk.files().into_iter().map(|(name, _)| name).collect();
    names.retain(|name| matches!(name, FileName::Segment(uid, _) if *uid == UID));
    names
}

fn flipped(disk: &MemoryDisk, name: FileName, position: usize) -> MemoryDisk {
    disk.damaged(name, |mut bytes| {
        bytes[position] ^= 1 << (position % 8);
        Some(bytes)
    })
}

#[test]
fn a_sound_directory_has_no_findings_and_every_record_is_counted() {
    let report = checked(&stopped());
    assert_eq!((told(&report), report.severity()), (Vec::new(), None));
    let counts =
        |at: usize| (report.partitions[at].inspected.seen.batches, report.partitions[at].inspected.seen.records);
    assert_eq!((counts(0), counts(2)), ((1, 1), (1, 1)));
    assert_eq!(report.partitions[1].inspected.seen.batches, 24);
    let end = report.partitions[1].inspected.log_end;
    assert_eq!(report.partitions[1].inspected.seen.records, end.0);
    assert_eq!(report.partitions[1].topic, Some(("orders".into(), 0)));
}

/// Positions of a segment that mean something: header page, batches with padding and gaps, footer and trailer.
fn meant(bytes: &[u8], end: u32, is_sealed: bool) -> Vec<usize> {
    let footer = (end as usize).next_multiple_of(BLOCK_BYTES);
    let trailer = bytes.len() - BLOCK_BYTES;
    let mut positions: Vec<usize> = (0..end as usize).collect();
    if is_sealed {
        positions.extend((footer..footer + BLOCK_BYTES).chain(trailer..bytes.len()));
    }
    positions
}

#[test]
fn a_flipped_byte_anywhere_in_a_segment_is_found_in_that_file_and_at_or_before_that_byte() {
    let disk = stopped();
    let names = segments(&disk);
    assert!(names.len() >= 3);
    let (sealed, active) = (names[0], names[names.len() - 1]);
    for (name, is_sealed) in [(sealed, true), (active, false)] {
        let bytes = content(&disk, name);
        let end = if is_sealed {
            let at = Trailer::decode(&bytes[bytes.len() - BLOCK_BYTES..], SegmentSize::SMALLEST).unwrap();
            Footer::decode(&bytes[at.footer_position as usize..]).unwrap().data_end
        } else {
            end_of_batches(&bytes)
        };
        // Of the large payloads a sample: their CRC does not care where.
        for position in meant(&bytes, end, is_sealed).into_iter().step_by(3) {
            let report = checked(&flipped(&disk, name, position));
            let findings: Vec<_> = report.partitions[1].findings.iter().collect();
            let here = findings.iter().find(|finding| finding.place.to_string() == name.to_string());
            let here = here.unwrap_or_else(|| panic!("{name} byte {position}: {:?}", told(&report)));
            assert!(here.position.unwrap_or(0) as usize <= position, "{name} byte {position}: {here:?}");
            let is_of_batches = position < end as usize;
            assert_eq!(is_damaged(&report), is_of_batches, "{name} byte {position}: {:?}", told(&report));
        }
    }
}

/// Where the chain of valid batches of a segment ends.
fn end_of_batches(bytes: &[u8]) -> u32 {
    walk(bytes).last().map_or(BLOCK_BYTES as u32, |(_, _, end)| *end)
}

/// Where the batch before ends, the chain there, and where the batch ends.
fn walk(bytes: &[u8]) -> Vec<(u32, Chain, u32)> {
    let page = HeaderPage::decode(bytes).unwrap();
    let window = Window { bytes, base: 0, data_end: page.size.data_end() };
    let mut chain = Chain {
        partition_uid: page.owner.partition_uid,
        next_offset: page.base_offset,
        next_index: page.base_index,
        prev_header_crc: Some(page.chain_anchor),
        epoch: LeaderEpoch(1),
    };
    let (mut position, mut walked) = (BLOCK_BYTES as u32, Vec::new());
    while let Step::Batch { start, header } = window.step(position, &chain) {
        let end = padded_end(start, header.batch_len());
        walked.push((position, chain, end));
        (position, chain) = (end, Chain::behind(&header));
    }
    walked
}

#[test]
fn every_flipped_bit_of_a_sealed_segment_of_1_mib_is_noticed() {
    let config = TopicConfig::parse([("segment.bytes", "1048576")]).unwrap();
    let (mut runner, _) = begin(MemoryDisk::new(), config, 1);
    for id in 1..=1_300 {
        append(&mut runner, UID.0, id, (1, 700 + id as usize % 200)).unwrap();
    }
    let disk = stop(runner).unwrap();
    let is_meant = |(name, bytes): &(FileName, Vec<u8>)| {
        let trailer =
            bytes.len() == 1 << 20 && Trailer::decode(&bytes[(1 << 20) - BLOCK_BYTES..], SegmentSize::ALL[1]).is_ok();
        matches!(name, FileName::Segment(..)) && trailer
    };
    let (_, mut bytes) = disk.files().into_iter().find(is_meant).expect("a sealed segment of 1 MiB");
    let walked = walk(&bytes);
    let footer = (end_of_batches(&bytes) as usize).next_multiple_of(BLOCK_BYTES);
    let trailer = bytes.len() - BLOCK_BYTES;
    let mut flipped = 0_u64;
    let mut each_bit = |bytes: &mut Vec<u8>, range: std::ops::Range<usize>, is_noticed: &dyn Fn(&[u8]) -> bool| {
        for bit in range.start * 8..range.end * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(is_noticed(bytes), "bit {} of byte {}", bit % 8, bit / 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            flipped += 1;
        }
    };
    each_bit(&mut bytes, 0..BLOCK_BYTES, &|bytes| HeaderPage::decode(bytes).is_err());
    for (position, chain, end) in &walked {
        let data_end = SegmentSize::ALL[1].data_end();
        let is_bad = |bytes: &[u8]| {
            let window = Window { bytes: &bytes[*position as usize..], base: *position, data_end };
            matches!(window.step(*position, chain), Step::Bad(_))
        };
        each_bit(&mut bytes, *position as usize..*end as usize, &is_bad);
    }
    each_bit(&mut bytes, footer..footer + BLOCK_BYTES, &|bytes| Footer::decode(&bytes[footer..]).is_err());
    let is_bad = |bytes: &[u8]| Trailer::decode(&bytes[trailer..], SegmentSize::ALL[1]).is_err();
    each_bit(&mut bytes, trailer..trailer + BLOCK_BYTES, &is_bad);
    println!("{flipped} bits of {} batches flipped one by one, every one noticed", walked.len());
    assert!(flipped > 7_900_000, "only {flipped} bits");
}

#[test]
fn a_segment_that_is_gone_or_cut_is_named_with_the_offsets_that_it_held() {
    let disk = stopped();
    let names = segments(&disk);
    let base = |name: FileName| if let FileName::Segment(_, base) = name { base } else { unreachable!() };
    let (from, to) = (base(names[1]), base(names[2]));
    for cut in [None, Some(0), Some(60 << 10_usize)] {
        let report = checked(&disk.damaged(names[1], |mut bytes| {
            bytes.truncate(cut?);
            Some(bytes)
        }));
        let first = report.partitions[1].findings.iter().next().unwrap();
        assert_eq!(first.place.to_string(), names[1].to_string());
        assert_eq!(first.lost.map(|lost| (lost.from, lost.to)), Some((from, to)), "{cut:?}");
        assert_eq!(report.partitions[1].lost(), to.0 - from.0);
        assert_eq!((is_damaged(&report), report.partitions[2].findings.worst()), (true, None));
    }
    // The last one, of which only the checkpoint knows.
    let last = names[names.len() - 1];
    let report = checked(&disk.damaged(last, |_| None));
    assert_eq!(report.partitions[1].findings.iter().next().unwrap().place.to_string(), last.to_string());
}

#[test]
fn damage_of_an_index_a_checkpoint_or_a_copy_of_meta_is_a_warning_and_no_loss() {
    let disk = stopped();
    let FileName::Segment(_, base) = segments(&disk)[0] else { unreachable!() };
    let index = FileName::Index(UID, base);
    let files = [
        (index, 96),
        (FileName::Checkpoint(0, Copy2::A), 64),
        (FileName::Checkpoint(0, Copy2::B), 64),
        (FileName::Meta(Copy2::A), 64),
        (FileName::Meta(Copy2::B), 64),
    ];
    for (name, bytes) in files {
        for position in 0..bytes {
            let report = checked(&flipped(&disk, name, position));
            assert_eq!(report.severity(), Some(Severity::Warning), "{name} byte {position}: {:?}", told(&report));
            assert!(told(&report)[0].starts_with(&name.to_string()), "{:?}", told(&report));
        }
    }
    let report = checked(&disk.damaged(index, |_| None));
    assert_eq!(report.severity(), Some(Severity::Note), "an index may be missing");
    let none = disk.damaged(FileName::Checkpoint(0, Copy2::A), |_| None);
    let none = none.damaged(FileName::Checkpoint(0, Copy2::B), |_| None);
    assert!(!is_damaged(&checked(&none)), "without a checkpoint the log is all there is");
}

#[test]
fn an_index_that_points_beside_a_batch_is_found_though_its_sum_fits() {
    let disk = stopped();
    let FileName::Segment(_, base) = segments(&disk)[0] else { unreachable!() };
    let index = FileName::Index(UID, base);
    let wrong = disk.damaged(index, |mut bytes| {
        bytes[64 + 16] += 64;
        bytes[60..64].fill(0);
        let used = 64 + 32 * u32::from_le_bytes(bytes[28..32].try_into().unwrap()) as usize;
        let crc = crc32fast::hash(&bytes[..used]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        Some(bytes)
    });
    let report = checked(&wrong);
    assert_eq!(told(&report), [format!("{index} None index file is damaged, or says what is not so")]);
}

#[test]
fn what_a_power_cut_leaves_is_never_called_damage_and_a_start_agrees() {
    let mut tails = 0;
    for seed in 0..200 {
        let (mut runner, catalog) = begin(MemoryDisk::crashing(), small_segments(), seed);
        let mut dice = Random::new(seed ^ 0x0ff);
        for id in 1..=dice.below(60) {
            let shape = if dice.below(6) == 0 { (1, 33_000) } else { (1 + dice.below(4), dice.below(2_000) as usize) };
            send(&mut runner, 2 + id % 2, id, &model::batch(id, shape.0, shape.1));
            for _ in 0..dice.below(8) {
                runner.step();
            }
            runner.pass(dice.below(40));
        }
        let crashed = runner.disk.crash(&mut dice);
        let report = checked(&crashed);
        assert!(!is_damaged(&report), "seed {seed}: {:?}", told(&report));
        tails += told(&report).iter().filter(|told| told.contains("unsynced tail")).count();
        let mut started = Runner::start(crashed, BARE, seed).unwrap();
        for (uid, at) in [(1, 0), (2, 1), (3, 2)] {
            open(&mut started, &catalog, PartitionUid(uid), small_segments());
            let log = &started.shard.partition(PartitionUid(uid)).unwrap().log;
            assert_eq!(log.log_end(), report.partitions[at].inspected.log_end, "seed {seed}, partition {uid}");
        }
    }
    assert!(tails > 10, "only {tails} torn tails: the test has lost its teeth");
}

#[test]
fn what_a_start_calls_damage_is_damage_and_what_it_serves_is_not() {
    let disk = stopped();
    let names = segments(&disk);
    for seed in 0..400 {
        let mut dice = Random::new(seed);
        let mut damaged = disk.damaged(names[0], Some);
        for _ in 0..1 + dice.below(3) {
            let name = names[dice.below(names.len() as u64) as usize];
            let at = dice.below(64 << 10) as usize / 512 * 512;
            let kind = dice.below(2);
            damaged = damaged.damaged(name, |mut bytes| {
                let sector = &mut bytes[at..at + 512];
                if kind == 0 {
                    sector.fill(0)
                } else {
                    sector.iter_mut().for_each(|byte| *byte ^= 0x55)
                }
                Some(bytes)
            });
        }
        let report = checked(&damaged);
        let known: Vec<(u64, u64)> =
            report.partitions[1].inspected.damage.iter().map(|damage| (damage.from.0, damage.to.0)).collect();
        let mut runner = Runner::start(damaged, BARE, seed).unwrap();
        open(&mut runner, &report.catalog, UID, small_segments());
        let served = model::read_around(&mut runner, UID.0).unwrap();
        let lost = |offset: u64| served.lost.iter().any(|(from, to)| (*from..*to).contains(&offset));
        let known = |offset: u64| known.iter().any(|(from, to)| (*from..*to).contains(&offset));
        for offset in 0..served.end {
            assert_eq!(lost(offset), known(offset), "seed {seed}, offset {offset}: {:?}", told(&report));
        }
    }
}

#[test]
fn directories_are_held_against_the_catalog() {
    let disk = stopped();
    let whats =
        |disk: &MemoryDisk| -> Vec<What> { checked(disk).findings.iter().map(|found| found.what.clone()).collect() };
    // Nobody has made partition 40; partition 3 has lost its files, which the checkpoint knows to have been written.
    let foreign = disk.damaged(segments(&disk)[0], Some);
    block_on(&foreign, &mut Random::new(1), foreign.create_dir(coulee_core::disk::Dir::Partition(PartitionUid(40))))
        .unwrap();
    assert_eq!(whats(&foreign), [What::PartitionForeign]);
    let lost = disk.damaged(FileName::Segment(PartitionUid(3), Offset(0)), |_| None);
    let report = checked(&lost);
    assert_eq!((is_damaged(&report), report.partitions[2].lost()), (true, 1));
    // A catalog that is gone, or of which a record is.
    let catalog = FileName::Segment(CATALOG_UID, Offset(0));
    let report = checked(&flipped(&disk, catalog, BLOCK_BYTES + 200));
    assert!(is_damaged(&report) && report.partitions[0].lost() == 1, "{:?}", told(&report));
    let (a, b) = (FileName::Checkpoint(0, Copy2::A), FileName::Checkpoint(0, Copy2::B));
    let gone = disk.damaged(catalog, |_| None).damaged(a, |_| None).damaged(b, |_| None);
    assert!(whats(&gone).contains(&What::CatalogMissing), "{:?}", whats(&gone));
    let metas = disk.damaged(FileName::Meta(Copy2::A), |_| None).damaged(FileName::Meta(Copy2::B), |_| None);
    assert_eq!(whats(&metas), [What::MetaLost]);
    assert!(is_damaged(&checked(&metas)));
}

#[test]
fn a_read_that_fails_is_told_with_its_file_and_the_other_partitions_are_checked() {
    let disk = stopped();
    let failing = disk.damaged(segments(&disk)[0], Some);
    failing.set_faults(|faults| {
        faults.next_read_fails = true;
        faults.aim = Some(|name| name == FileName::Segment(UID, Offset(0)));
    });
    let report = checked(&failing);
    let first = report.partitions[1].findings.iter().next().unwrap();
    assert_eq!(first.place.to_string(), segments(&disk)[0].to_string());
    assert!(is_damaged(&report) && report.partitions[2].findings.worst().is_none());
}
