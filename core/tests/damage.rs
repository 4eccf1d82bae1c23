//! Damaged files: whatever byte is flipped, torn, missing or old, a start serves the same data or says what is lost;
//! knows where batches lie, nothing of how they are read.

#![allow(clippy::unwrap_used, reason = "what the tests share fails as they do")]

mod model;

use coulee_core::block::Block;
use coulee_core::checkpoint::Checkpoint;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::disk::{Copy2, FileName};
use coulee_core::executor::Runner;
use coulee_core::limits::BLOCK_BYTES;
use coulee_core::log::appender::Mark;
use coulee_core::log::segment::{padded_end, start_after};
use coulee_core::shard::ShardOptions;
use coulee_protocol::batch::BatchHeader;
use coulee_protocol::ids::{BatchIndex, Offset, PartitionUid, Timestamp};
use model::{Verdict, append, batch, content, open_all, quiesce, read_around, send, small_segments, start, stop};

/// Nothing in reserve and nothing in memory: every read goes to the files, and a copy of them is quickly made.
const BARE: ShardOptions = ShardOptions { id: 0, tail_bytes: 0, pool_bytes: 0 };
const UID: PartitionUid = PartitionUid(1);

/// One batch as it was stored.
struct Stored {
    base: u64,
    end: u64,
    bytes: Block,
}

/// A partition after a clean stop.
struct Scene {
    disk: MemoryDisk,
    stored: Vec<Stored>,
    end: u64,
    /// Base offsets of the segments.
    bases: Vec<u64>,
}

/// Base offsets of the segments of `uid`.
fn bases(disk: &MemoryDisk, uid: PartitionUid) -> Vec<u64> {
    let base = |(name, _)| match name {
        FileName::Segment(found, base) if found == uid => Some(base.0),
        _ => None,
    };
    disk.files().into_iter().filter_map(base).collect()
}

/// Small, middling and large batches over several segments, so that there are gaps and padding in each.
fn scene() -> Scene {
    let mut runner = Runner::start(MemoryDisk::new(), BARE, 1).unwrap();
    open_all(&mut runner, 1, small_segments()).unwrap();
    let shapes = [(3, 40), (1, 5_000), (1, 33_000), (2, 9), (1, 700), (7, 1), (1, 3_900), (40, 20), (1, 300)];
    for id in 1..=24 {
        append(&mut runner, 1, id, shapes[id as usize % shapes.len()]).unwrap();
    }
    let served = read_around(&mut runner, 1).unwrap();
    let stored = |(base, bytes): (u64, Block)| {
        let header = BatchHeader::decode(&bytes).unwrap();
        Stored { base, end: header.end_offset().0, bytes }
    };
    let stored = served.batches.into_iter().map(stored).collect();
    let disk = stop(runner).unwrap();
    let bases = bases(&disk, UID);
    assert!(bases.len() >= 3, "sealed segments and an active one");
    Scene { disk, stored, end: served.end, bases }
}

impl Scene {
    /// The file of the segment with the `at`-th base offset.
    fn segment(&self, at: usize) -> FileName {
        FileName::Segment(UID, Offset(self.bases[at]))
    }

    fn active(&self) -> usize {
        self.bases.len() - 1
    }

    /// Where the segment's offsets end.
    fn segment_end(&self, at: usize) -> u64 {
        self.bases.get(at + 1).copied().unwrap_or(self.end)
    }

    /// Batches of a segment with the bytes that are theirs: the gap before, the batch, its padding.
    fn places(&self, at: usize) -> Vec<(usize, usize, &Stored)> {
        let (from, to) = (self.bases[at], self.segment_end(at));
        let mut position = BLOCK_BYTES as u32;
        let inside = self.stored.iter().filter(|batch| from <= batch.base && batch.base < to);
        let place = |batch| {
            let batch: &Stored = batch;
            let (start, len) = (position, batch.bytes.len());
            position = padded_end(start_after(position, len), len);
            (start as usize, position as usize, batch)
        };
        inside.map(place).collect()
    }

    /// The offsets that may be lost when the byte at `position` is not what it was.
    fn at_stake(&self, at: usize, position: usize) -> Option<(u64, u64)> {
        if position < BLOCK_BYTES {
            return Some((self.bases[at], self.segment_end(at)));
        }
        let places = self.places(at);
        let hit = places.iter().find(|(from, to, _)| (*from..*to).contains(&position));
        hit.map(|(_, _, batch)| (batch.base, batch.end))
    }

    /// The scene with one bit of a file flipped.
    fn flipped(&self, name: FileName, position: usize) -> MemoryDisk {
        self.disk.damaged(name, |mut bytes| {
            bytes[position] ^= 1 << (position % 8);
            Some(bytes)
        })
    }

    /// Opens the partition on `disk` and reads everything: what is served is what was stored, what is said to be lost
    /// lies in `stake`, and the two make up the whole.
    fn check(&self, disk: MemoryDisk, stake: Option<(u64, u64)>) -> Verdict<Runner> {
        let mut runner = Runner::start(disk, BARE, 3).map_err(|error| error.to_string())?;
        let opened = open_all(&mut runner, 1, small_segments())?;
        let served = read_around(&mut runner, 1)?;
        if served.end != self.end || opened[0].log_end.0 != self.end {
            return Err(format!("ends at {} instead of {}", served.end, self.end));
        }
        let known = opened[0].damage.iter().map(|damage| (damage.from.0, damage.to.0));
        for (from, to) in served.lost.iter().copied().chain(known) {
            if !stake.is_some_and(|stake| stake.0 <= from && to <= stake.1) {
                return Err(format!("{from} to {to} is called lost, at stake is {stake:?}"));
            }
        }
        let lost = |batch: &&Stored| served.lost.iter().any(|(from, to)| *from <= batch.base && batch.end <= *to);
        let mut expected = self.stored.iter().filter(|batch| !lost(batch));
        for (offset, bytes) in &served.batches {
            let same = expected.next().is_some_and(|batch| batch.base == *offset && batch.bytes[..] == bytes[..]);
            if !same {
                return Err(format!("the batch at {offset} is not what was stored there"));
            }
        }
        match expected.next() {
            Some(batch) => Err(format!("the batch at {} is neither served nor called lost", batch.base)),
            None => Ok(runner),
        }
    }

    /// As [`Scene::check`], then appends, restarts and finds the same with the new batch behind it.
    fn check_and_go_on(&self, disk: MemoryDisk, stake: Option<(u64, u64)>) -> Verdict {
        let mut runner = self.check(disk, stake)?;
        let lost = read_around(&mut runner, 1)?.lost;
        let produced = append(&mut runner, 1, 1_000, (1, 10))?;
        if produced.base_offset.0 != self.end {
            return Err(format!("goes on at {} instead of {}", produced.base_offset, self.end));
        }
        let mut again = Runner::start(stop(runner)?, BARE, 4).map_err(|error| error.to_string())?;
        open_all(&mut again, 1, small_segments())?;
        let served = read_around(&mut again, 1)?;
        let new = served.batches.last().is_some_and(|(offset, _)| *offset == self.end);
        let same = served.lost == lost && served.batches.len() + lost.len() > 1;
        if new && same { Ok(()) } else { Err("what was served or lost is another after the next start".into()) }
    }
}

/// Flips one bit of each byte of a segment, one byte at a time.
fn flip_each_byte(at: usize, damage: impl Fn(&Scene, usize) -> MemoryDisk, each: usize) {
    let scene = scene();
    let name = scene.segment(at.min(scene.active()));
    let (at, len) = (at.min(scene.active()), content(&scene.disk, name).len());
    for position in (0..len).filter(|position| position % each == 0 || !inside_large(&scene, at, *position)) {
        let (disk, stake) = (damage(&scene, position), scene.at_stake(at, position));
        let checked = scene.check(disk, stake).map(drop);
        checked.unwrap_or_else(|wrong| panic!("byte {position} of {name}: {wrong}"));
        if position % 509 == 0 {
            let gone_on = scene.check_and_go_on(damage(&scene, position), stake);
            gone_on.unwrap_or_else(|wrong| panic!("byte {position} of {name}, going on: {wrong}"));
        }
    }
}

/// Whether the byte lies in the middle of a large payload, which one CRC covers whole, or behind all batches.
fn inside_large(scene: &Scene, at: usize, position: usize) -> bool {
    let places = scene.places(at);
    let large = |(from, to, batch): &(usize, usize, &Stored)| {
        batch.bytes.len() > 30_000 && (from + 2 * BLOCK_BYTES..to - BLOCK_BYTES).contains(&position)
    };
    let end = places.last().map_or(BLOCK_BYTES, |(_, to, _)| to.next_multiple_of(BLOCK_BYTES));
    places.iter().any(large) || (end + 2 * BLOCK_BYTES..(64 << 10) - BLOCK_BYTES).contains(&position)
}

#[test]
fn any_flipped_byte_of_a_sealed_segment_costs_one_batch_or_nothing_and_is_said() {
    flip_each_byte(0, |scene, position| scene.flipped(scene.segment(0), position), 1);
}

#[test]
fn any_flipped_byte_of_the_active_segment_costs_one_batch_or_nothing_and_is_said() {
    flip_each_byte(usize::MAX, |scene, position| scene.flipped(scene.segment(scene.active()), position), 13);
}

/// The checkpoint makes recovery walk the active segment from its first batch, and knows that all of it was durable.
fn walked(scene: &Scene) -> MemoryDisk {
    let base = scene.bases[scene.active()];
    let page = content(&scene.disk, scene.segment(scene.active()));
    let number = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
    [Copy2::A, Copy2::B].into_iter().fold(scene.disk.clone(), |disk, copy| {
        disk.damaged(FileName::Checkpoint(0, copy), |bytes| {
            let mut checkpoint = Checkpoint::decode(&bytes).unwrap();
            let partition = &mut checkpoint.partitions[0];
            assert!(partition.clean && partition.durable_end.0 == scene.end);
            partition.clean = false;
            (partition.index, partition.epochs) = (Vec::new(), Vec::new());
            partition.max_timestamp = Timestamp(i64::MIN);
            partition.resume = Mark {
                offset: Offset(base),
                index: BatchIndex(number(72)),
                prev_header_crc: number(80) as u32,
                segment: Offset(base),
                position: BLOCK_BYTES as u32,
                bytes: 0,
            };
            let mut encoded = checkpoint.encode();
            encoded.resize(bytes.len(), 0);
            Some(encoded)
        })
    })
}

#[test]
fn a_flipped_byte_that_a_start_walks_over_is_reported_by_that_start() {
    let scene = scene();
    let (name, at) = (scene.segment(scene.active()), scene.active());
    let walked = Scene { disk: walked(&scene), ..scene };
    for position in (0..64 << 10).filter(|position| position % 29 == 0 || !inside_large(&walked, at, *position)) {
        let stake = walked.at_stake(at, position);
        let runner = walked.check(walked.flipped(name, position), stake);
        let runner = runner.unwrap_or_else(|wrong| panic!("byte {position}: {wrong}"));
        let damage = runner.shard.partition(UID).unwrap().log.damage();
        assert_eq!(damage.len(), usize::from(stake.is_some()), "byte {position}: {damage:?}");
        if position % 211 == 0 {
            let gone_on = walked.check_and_go_on(walked.flipped(name, position), stake);
            gone_on.unwrap_or_else(|wrong| panic!("byte {position}, going on: {wrong}"));
        }
    }
}

#[test]
fn a_flipped_byte_in_a_segment_whose_trailer_is_gone_is_reported_at_the_start() {
    let scene = scene();
    let name = scene.segment(1);
    let unsealed = scene.disk.damaged(name, |mut bytes| {
        let trailer = bytes.len() - BLOCK_BYTES;
        bytes[trailer..].fill(0);
        Some(bytes)
    });
    let unsealed = Scene { disk: unsealed, ..scene };
    for position in (0..(64 << 10) - BLOCK_BYTES).filter(|position| position % 23 == 0) {
        let stake = unsealed.at_stake(1, position);
        let runner = unsealed.check(unsealed.flipped(name, position), stake);
        let runner = runner.unwrap_or_else(|wrong| panic!("byte {position}: {wrong}"));
        let damage = runner.shard.partition(UID).unwrap().log.damage();
        assert_eq!(damage.len(), usize::from(stake.is_some()), "byte {position}: {damage:?}");
    }
}

#[test]
fn a_block_of_zeros_or_of_another_place_costs_what_it_held_and_is_said() {
    let scene = scene();
    for at in 0..scene.bases.len() {
        let (name, bytes) = (scene.segment(at), content(&scene.disk, scene.segment(at)));
        for block in (0..bytes.len()).step_by(BLOCK_BYTES) {
            let other = (block + 2 * BLOCK_BYTES) % bytes.len();
            let hit: Vec<(u64, u64)> =
                (block..block + BLOCK_BYTES).filter_map(|position| scene.at_stake(at, position)).collect();
            let held = hit.first().zip(hit.last()).map(|(first, last)| (first.0, last.1));
            // A second copy of a batch may be read instead of the first; where the copy is cut, one more is lost.
            let whole = Some((scene.bases[at], scene.segment_end(at)));
            let sources = [(vec![0; BLOCK_BYTES], held), (bytes[other..other + BLOCK_BYTES].to_vec(), whole)];
            for (source, stake) in sources {
                let disk = scene.disk.damaged(name, |mut bytes| {
                    bytes[block..block + BLOCK_BYTES].copy_from_slice(&source);
                    Some(bytes)
                });
                let checked = scene.check_and_go_on(disk, stake);
                checked.unwrap_or_else(|wrong| panic!("block at {block} of {name}: {wrong}"));
            }
        }
    }
}

#[test]
fn a_segment_file_that_is_gone_or_of_another_length_is_lost_as_a_whole_and_no_other() {
    let scene = scene();
    for at in 0..scene.bases.len() {
        let stake = Some((scene.bases[at], scene.segment_end(at)));
        for len in [None, Some(0), Some(4_096), Some(60 << 10), Some(1 << 20)] {
            let disk = scene.disk.damaged(scene.segment(at), |mut bytes| {
                bytes.resize(len?, 0);
                Some(bytes)
            });
            let checked = scene.check_and_go_on(disk, stake);
            checked.unwrap_or_else(|wrong| panic!("segment {at}, length {len:?}: {wrong}"));
        }
    }
}

#[test]
fn an_index_file_missing_damaged_anywhere_or_of_another_segment_changes_nothing() {
    let scene = scene();
    let index = |at: usize| FileName::Index(UID, Offset(scene.bases[at]));
    let checked = |disk: MemoryDisk, what: &str| {
        scene.check_and_go_on(disk, None).unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
    };
    checked(scene.disk.damaged(index(0), |_| None), "missing");
    checked(scene.disk.damaged(index(0), |_| Some(content(&scene.disk, index(1)))), "another segment's");
    checked(scene.disk.damaged(index(1), |bytes| Some(vec![0; bytes.len()])), "zeros");
    for position in 0..content(&scene.disk, index(0)).len() {
        let disk = scene.flipped(index(0), position);
        scene.check(disk, None).unwrap_or_else(|wrong| panic!("byte {position}: {wrong}"));
    }
}

#[test]
fn one_copy_of_the_checkpoint_or_none_gives_the_same_data() {
    let scene = scene();
    let name = |copy| FileName::Checkpoint(0, copy);
    for copy in [Copy2::A, Copy2::B] {
        for position in 0..content(&scene.disk, name(copy)).len() {
            let disk = scene.flipped(name(copy), position);
            scene.check(disk, None).unwrap_or_else(|wrong| panic!("byte {position} of {copy:?}: {wrong}"));
        }
        scene.check_and_go_on(scene.disk.damaged(name(copy), |_| None), None).unwrap();
    }
    let none = scene.disk.damaged(name(Copy2::A), |_| None).damaged(name(Copy2::B), |_| None);
    scene.check_and_go_on(none, None).unwrap();
    let zeros = |bytes: Vec<u8>| Some(vec![0; bytes.len()]);
    let zeros = scene.disk.damaged(name(Copy2::A), zeros).damaged(name(Copy2::B), zeros);
    scene.check_and_go_on(zeros, None).unwrap();
}

/// Copies of the checkpoint at several times of two runs, clean ones and others.
#[test]
fn an_older_checkpoint_put_back_in_either_place_or_both_gives_the_same_data() {
    let names = [FileName::Checkpoint(0, Copy2::A), FileName::Checkpoint(0, Copy2::B)];
    let (mut disk, mut kept) = (MemoryDisk::new(), Vec::new());
    let mut id = 0;
    for _ in 0..2 {
        let mut runner = Runner::start(disk.clone(), BARE, 5).unwrap();
        open_all(&mut runner, 1, small_segments()).unwrap();
        for _ in 0..9 {
            id += 1;
            append(&mut runner, 1, id, [(2, 90), (1, 33_000), (3, 2_000)][id as usize % 3]).unwrap();
            runner.pass(200);
            quiesce(&mut runner);
            kept.push(names.map(|name| content(&runner.disk, name)));
        }
        disk = stop(runner).unwrap();
        kept.push(names.map(|name| content(&disk, name)));
    }
    kept.dedup();
    assert!(kept.len() > 12, "{} different copies", kept.len());
    let mut runner = Runner::start(disk.clone(), BARE, 6).unwrap();
    open_all(&mut runner, 1, small_segments()).unwrap();
    let expected = read_around(&mut runner, 1).unwrap();
    for (a, b) in (0..kept.len()).flat_map(|a| (0..kept.len()).map(move |b| (a, b))) {
        let old = disk.damaged(names[0], |_| Some(kept[a][0].clone())).damaged(names[1], |_| Some(kept[b][1].clone()));
        let mut runner = Runner::start(old, BARE, 7).unwrap();
        let opened = open_all(&mut runner, 1, small_segments()).unwrap();
        assert_eq!(opened[0].damage, [], "copies {a} and {b}");
        let served = read_around(&mut runner, 1).unwrap_or_else(|wrong| panic!("copies {a} and {b}: {wrong}"));
        let same = served.batches.iter().map(|(_, bytes)| &bytes[..]).eq(expected.batches.iter().map(|(_, b)| &b[..]));
        assert!(same, "copies {a} and {b} serve something else");
        let next = append(&mut runner, 1, 1_000, (1, 10)).unwrap();
        assert_eq!(next.base_offset.0, expected.end, "copies {a} and {b}");
    }
}

/// A disk with acknowledged batches, and its segment's bytes with written but unsynced ones behind them.
struct Torn {
    disk: MemoryDisk,
    name: FileName,
    /// The segment as it is durable, and as it would be had the device kept everything.
    durable: Vec<u8>,
    written: Vec<u8>,
    /// What the file may have held before.
    earlier: Vec<u8>,
    acked: u64,
    /// Where the unsynced batches lie, and the offset behind each.
    tail: Vec<(usize, usize, u64)>,
}

fn torn_scene() -> Torn {
    let (mut runner, _) = start(MemoryDisk::crashing(), 2, 9).unwrap();
    for (id, shape) in [(1, (3, 900)), (2, (1, 45_000)), (3, (1, 4_500)), (4, (3, 30)), (5, (1, 77))] {
        append(&mut runner, 1, id, shape).unwrap();
        append(&mut runner, 2, 100 + id, (1, 30)).unwrap();
    }
    runner.pass(500);
    quiesce(&mut runner);
    let acked = runner.shard.partition(UID).unwrap().high_watermark().0;
    let disk = runner.disk.crash(&mut model::dice(1));
    let bases = bases(&disk, UID);
    assert_eq!(bases.len(), 2, "an earlier segment and the active one");
    let (earlier, name) = (content(&disk, FileName::Segment(UID, Offset(0))), FileName::Segment(UID, Offset(bases[1])));
    let durable = content(&disk, name);
    runner.disk.set_faults(|faults| faults.syncs_hang = true);
    // Both partitions at once: a write alone would be made durable by itself, and hang.
    send(&mut runner, 2, 110, &batch(110, 1, 30));
    let mut position = 0;
    let mut tail = Vec::new();
    for (id, shape) in [(6, (1, 90)), (7, (2, 200)), (8, (1, 5_000)), (9, (1, 33_000)), (10, (1, 40)), (11, (3, 1))] {
        let bytes = batch(id, shape.0, shape.1);
        send(&mut runner, 1, id, &bytes);
        quiesce(&mut runner);
        let log = &runner.shard.partition(UID).unwrap().log;
        assert_eq!(log.written_end(), log.log_end(), "batch {id} is written");
        if position == 0 {
            let written = content(&runner.disk, name);
            position = (BLOCK_BYTES..).find(|at| written[*at] != durable[*at]).unwrap() / 64 * 64;
        }
        let start = start_after(position as u32, bytes.len());
        let end = padded_end(start, bytes.len()) as usize;
        tail.push((position, end, log.log_end().0));
        position = end;
    }
    assert_eq!(runner.shard.partition(UID).unwrap().high_watermark().0, acked, "nothing of it is acknowledged");
    Torn { disk, name, durable, written: content(&runner.disk, name), earlier, acked, tail }
}

impl Torn {
    /// Starts with `bytes` in the segment and checks what is served; `whole` bytes of it are as written.
    fn check(&self, bytes: &[u8], whole: usize, go_on: bool) -> Verdict {
        let disk = self.disk.damaged(self.name, |_| Some(bytes.to_vec()));
        let (mut runner, opened) = start(disk, 1, 10)?;
        if !opened[0].damage.is_empty() {
            return Err(format!("called damage: {:?}", opened[0].damage));
        }
        let served = read_around(&mut runner, 1)?;
        let kept = self.tail.iter().filter(|(_, end, _)| *end <= whole).map(|(_, _, offset)| *offset).max();
        let least = kept.unwrap_or(self.acked);
        let clean = served.end == self.acked || self.tail.iter().any(|(_, _, offset)| *offset == served.end);
        if !served.lost.is_empty() || served.end < least || !clean {
            return Err(format!("serves up to {} instead of {least}, lost {:?}", served.end, served.lost));
        }
        if go_on {
            let ids = [append(&mut runner, 1, 50, (2, 60))?, append(&mut runner, 1, 51, (1, 34_000))?];
            if ids[0].base_offset.0 != served.end {
                return Err(format!("goes on at {} instead of {}", ids[0].base_offset, served.end));
            }
            let crashed = runner.disk.crash(&mut model::dice(whole as u64));
            let (mut again, opened) = start(crashed, 1, 11)?;
            let more = read_around(&mut again, 1)?;
            if !opened[0].damage.is_empty() || more.batches.len() != served.batches.len() + 2 {
                return Err(format!("{} batches became {}", served.batches.len() + 2, more.batches.len()));
            }
        }
        Ok(())
    }

    /// Every byte of the small batches and around the large one's edges; its middle, under one CRC, by steps.
    fn cuts(&self) -> impl Iterator<Item = usize> {
        let (from, to) = (self.tail[0].0, self.tail[self.tail.len() - 1].1);
        let (large, large_end, _) = self.tail[3];
        let middle = large + 2 * BLOCK_BYTES..large_end - BLOCK_BYTES;
        (from..=to).filter(move |cut| !middle.contains(cut) || cut % 97 == 0)
    }
}

#[test]
fn an_unsynced_tail_torn_at_any_byte_is_cut_and_never_called_damage() {
    let torn = torn_scene();
    for cut in torn.cuts() {
        let bytes = [&torn.written[..cut], &torn.durable[cut..]].concat();
        torn.check(&bytes, cut, cut % 61 == 0).unwrap_or_else(|wrong| panic!("torn at {cut}: {wrong}"));
    }
}

#[test]
fn an_unsynced_tail_whose_first_part_was_lost_and_whose_rest_was_kept_is_cut_too() {
    let torn = torn_scene();
    for cut in torn.cuts().filter(|cut| cut % 3 == 0) {
        let bytes = [&torn.durable[..cut], &torn.written[cut..]].concat();
        torn.check(&bytes, torn.tail[0].0, cut % 61 == 0).unwrap_or_else(|wrong| panic!("lost up to {cut}: {wrong}"));
    }
}

/// A recycled file holds, behind what was written, the batches of the segment that it was: here of this very
/// partition, which is the worst.
#[test]
fn a_tail_torn_over_the_batches_of_an_earlier_segment_is_cut_all_the_same() {
    let torn = torn_scene();
    let touched = torn.tail[0].0.next_multiple_of(BLOCK_BYTES);
    for cut in torn.cuts().filter(|cut| cut % 5 == 0 || cut % 64 < 2) {
        let behind = torn.tail[torn.tail.len() - 1].1.next_multiple_of(BLOCK_BYTES);
        let mut bytes = [&torn.durable[..touched], &torn.earlier[touched..]].concat();
        bytes[..cut].copy_from_slice(&torn.written[..cut]);
        if cut >= behind {
            bytes[cut..behind].copy_from_slice(&torn.written[cut..behind]);
        }
        torn.check(&bytes, cut, cut % 61 == 0).unwrap_or_else(|wrong| panic!("torn at {cut}: {wrong}"));
    }
}

#[test]
fn a_last_segment_without_its_header_page_and_any_checkpoint_is_said_to_be_lost_and_stays() {
    let scene = scene();
    let (name, base) = (scene.segment(scene.active()), scene.bases[scene.active()]);
    let mut disk = scene.disk.damaged(name, |mut bytes| {
        bytes[40] ^= 1;
        Some(bytes)
    });
    for copy in [Copy2::A, Copy2::B] {
        disk = disk.damaged(FileName::Checkpoint(0, copy), |_| None);
    }
    let (mut runner, opened) = start(disk, 1, 7).unwrap();
    let lost: Vec<(u64, u64)> = opened[0].damage.iter().map(|damage| (damage.from.0, damage.to.0)).collect();
    assert_eq!(lost, [(base, scene.end)]);
    assert!(runner.disk.files().iter().any(|(file, _)| *file == name), "it may be repaired");
    assert_eq!(append(&mut runner, 1, 99, (1, 10)).unwrap().base_offset.0, scene.end, "no offset is given out twice");
}
