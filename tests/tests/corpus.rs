//! Replays the corpus of the fuzz targets and thousands of inputs made from it; knows no format.
//!
//! Seeds are fixed, so that a run can be repeated: a failure prints target, seed and the input in hex.

use coulee_core::executor::Random;
use coulee_tests::fuzz::memory::{Counting, within};
use coulee_tests::fuzz::{TARGETS, batch, frame, recovery, repair, stored};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Largest input of a fuzz run; `oversized` ones are longer.
const INPUT_BYTES_MAX: usize = 4 << 10;

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("an entry of a readable folder").path();
            (path.display().to_string(), fs::read(&path).expect("a readable file"))
        })
        .collect();
    files.sort();
    files
}

/// Runs a body and says on what input it broke.
fn run(body: fn(&[u8]), origin: &str, bytes: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(bytes))) {
        let hex: String = bytes.iter().take(2 * INPUT_BYTES_MAX).map(|byte| format!("{byte:02x}")).collect();
        eprintln!("{origin}, {} bytes: {hex}", bytes.len());
        resume_unwind(panic);
    }
}

/// One input made from another: bits turned, bytes set, cut, repeated, noise, an unknown API or version, a wild length.
fn changed(random: &mut Random, seeds: &[(String, Vec<u8>)]) -> Vec<u8> {
    let pick = |random: &mut Random| seeds[random.below(seeds.len() as u64) as usize].1.clone();
    let mut bytes = pick(random);
    for _ in 0..=random.below(4) {
        let len = bytes.len() as u64;
        let at = if len == 0 { 0 } else { random.below(len) as usize };
        match random.below(9) {
            0 => bytes.truncate(at),
            1 => bytes.extend((0..random.below(300)).map(|_| random.next() as u8)),
            2 => bytes = (0..random.below(200)).map(|_| random.next() as u8).collect(),
            3 => bytes.extend(pick(random)),
            4 if len >= 12 => {
                bytes[8..12].copy_from_slice(&(random.next() as u32).to_le_bytes());
                let whole = (len as u32).to_le_bytes();
                bytes[..4].copy_from_slice(&whole);
            }
            5 if len >= at as u64 + 4 => {
                let wild = [u32::MAX, 1 << 31, 1 << 24, 64 << 20, len as u32][random.below(5) as usize];
                bytes[at..at + 4].copy_from_slice(&wild.to_le_bytes());
            }
            6 if len > 0 => bytes[at] = random.next() as u8,
            _ if len > 0 => bytes[at] ^= 1 << random.below(8),
            _ => {}
        }
    }
    bytes.truncate(2 * INPUT_BYTES_MAX);
    bytes
}

fn replay(target: &str, body: fn(&[u8]), rounds: u64) {
    let seeds = corpus(target);
    assert!(seeds.len() >= 10, "only {} files in the corpus of {target}", seeds.len());
    for (path, bytes) in &seeds {
        run(body, path, bytes);
        (0..bytes.len().min(256)).for_each(|len| run(body, &format!("{path} cut"), &bytes[..len]));
    }
    for seed in 0..rounds {
        let bytes = changed(&mut Random::new(seed), &seeds);
        run(body, &format!("{target}, seed {seed}"), &bytes);
    }
    println!("{target}: {} files, their beginnings, and seeds 0 to {rounds}", seeds.len());
}

#[test]
fn frames_of_the_corpus_and_what_is_made_of_them_break_no_property() {
    replay("frame", frame, 20_000);
}

#[test]
fn batches_of_the_corpus_and_what_is_made_of_them_break_no_property() {
    replay("batch", batch, 20_000);
}

#[test]
fn pages_files_and_records_of_the_corpus_and_what_is_made_of_them_break_no_property() {
    replay("stored", stored, 50_000);
}

#[test]
fn repairs_of_the_corpus_and_of_what_is_made_of_it_break_no_property() {
    replay("repair", repair, 2_000);
}

#[test]
fn recovery_from_the_corpus_and_what_is_made_of_it_breaks_no_property() {
    replay("recovery", recovery, 10_000);
}

#[test]
fn inputs_far_over_the_limits_break_no_property() {
    let mut random = Random::new(7);
    for (name, body) in TARGETS {
        for first in 0..4_u8 {
            let mut bytes: Vec<u8> = vec![first; 17 << 20];
            run(body, &format!("{name}, {first} repeated"), &bytes);
            bytes[1..100_000].fill_with(|| random.next() as u8);
            run(body, &format!("{name}, noise behind {first}"), &bytes);
        }
    }
}

#[test]
#[should_panic(expected = "held 1048576 bytes, at most 4100 are allowed")]
fn a_length_that_is_believed_is_found_by_what_it_allocates() {
    let input = (1_u32 << 20).to_le_bytes();
    within(4_096 + input.len(), "believing a length", || drop(vec![0_u8; u32::from_le_bytes(input) as usize]));
}

#[test]
fn a_log_whose_last_segment_was_cut_goes_on_behind_the_damage() {
    recovery(include_bytes!("../fixtures/corpus/recovery/cut_segment"));
}

#[test]
fn a_segment_named_after_an_offset_that_no_batch_can_have_is_left_alone() {
    recovery(include_bytes!("../fixtures/corpus/recovery/renamed_to_the_last_offset"));
}

#[test]
fn a_log_whose_last_segment_is_empty_behind_damage_takes_appends() {
    recovery(include_bytes!("../fixtures/corpus/recovery/empty_last_segment_behind_damage"));
}

#[test]
fn every_target_has_a_program_and_a_corpus() {
    for (name, _) in TARGETS {
        let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../fuzz/fuzz_targets/{name}.rs"));
        assert!(program.exists(), "{}", program.display());
        let bytes: usize = corpus(name).iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes < 100_000, "the corpus of {name} has grown to {bytes} bytes");
    }
}
