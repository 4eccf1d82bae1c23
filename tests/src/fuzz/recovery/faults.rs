//! What happens to files between two starts, read from a fuzzer's bytes; knows no format and no shard.
//!
//! Only what devices, file systems and operators do: bits turn, sectors are lost, stale, misdirected or torn, files are
//! cut, swapped, renamed or gone. Nothing computes a checksum, so that nothing can be forged. Batches never get into
//! the reserve: its names say that its files are zero, and what a start would find there later was there before.

use super::base::Files;
use crate::fuzz::input::Input;
use coulee_core::disk::{Copy2, FileName};
use coulee_protocol::ids::{Offset, PartitionUid};

/// Faults of one input, at most.
const FAULTS_MAX: usize = 12;
const SECTOR_BYTES: usize = 512;
/// A file of foreign bytes is filled up to this size: the least segment.
const FOREIGN_BYTES: usize = 64 << 10;

/// `image` after the faults that `input` names, and whether they brought batches to places that they were not written
/// to, or gave a segment another name.
pub(super) fn happen(image: &Files, older: &Files, mut input: Input<'_>) -> (Files, bool) {
    let (mut files, mut moved) = (image.clone(), false);
    for _ in 0..FAULTS_MAX {
        if input.is_empty() || files.is_empty() {
            break;
        }
        moved |= matches!(input.0[0] % 10, 3 | 7 | 8);
        one(&mut files, older, &mut input);
    }
    (files, moved)
}

/// One fault: its kind, its file, its place.
fn one(files: &mut Files, older: &Files, input: &mut Input<'_>) {
    let kind = input.u8();
    let file = usize::from(input.u8()) % files.len();
    let at = usize::from(input.u16());
    let moves_batches = matches!(kind % 10, 2 | 3 | 6 | 7);
    if moves_batches && is_reserve(files[file].0) {
        return;
    }
    match kind % 10 {
        0 => {
            if let Some(byte) = files[file].1.get_mut(at) {
                *byte ^= input.u8().max(1);
            }
        }
        1 => sectors(&mut files[file].1, at, input.u8(), |_, sector| sector.fill(0)),
        2 => {
            let stale = bytes_of(older, files[file].0);
            sectors(&mut files[file].1, at, input.u8(), |from, sector| copy(stale, from, sector));
        }
        3 => {
            let other = files[usize::from(input.u8()) % files.len()].1.clone();
            let from = usize::from(input.u16()) / SECTOR_BYTES * SECTOR_BYTES;
            let start = at / SECTOR_BYTES * SECTOR_BYTES;
            let shifted = |place: usize| from + place - start;
            sectors(&mut files[file].1, at, input.u8(), |place, sector| copy(&other, shifted(place), sector));
        }
        4 => files[file].1.truncate(at),
        5 => drop(files.remove(file)),
        6 => files[file].1 = bytes_of(older, files[file].0).to_vec(),
        7 => {
            let other = usize::from(input.u8()) % files.len();
            if is_reserve(files[other].0) {
                return;
            }
            let content = files[other].1.clone();
            files[other].1 = std::mem::replace(&mut files[file].1, content);
        }
        8 => {
            if let FileName::Segment(uid, _) = files[file].0 {
                let name = FileName::Segment(uid, Offset(input.u64()));
                files.retain(|(other, _)| *other != name);
                if let Some(renamed) = files.iter_mut().find(|(other, _)| matches!(other, FileName::Segment(..))) {
                    renamed.0 = name;
                }
            }
        }
        _ => {
            let turn = input.u8();
            sectors(&mut files[file].1, at, input.u8(), |_, sector| sector.iter_mut().for_each(|byte| *byte ^= turn));
        }
    }
}

fn is_reserve(name: FileName) -> bool {
    matches!(name, FileName::Pool(..) | FileName::Fresh(..))
}

fn bytes_of(files: &Files, name: FileName) -> &[u8] {
    files.iter().find(|(other, _)| *other == name).map_or(&[], |(_, bytes)| bytes)
}

/// Changes those of the eight sectors from the one of `at` on whose bit is set in `mask`.
fn sectors(bytes: &mut [u8], at: usize, mask: u8, mut change: impl FnMut(usize, &mut [u8])) {
    let first = at / SECTOR_BYTES * SECTOR_BYTES;
    let chunks = bytes.get_mut(first..).into_iter().flat_map(|rest| rest.chunks_mut(SECTOR_BYTES));
    for (index, sector) in chunks.take(8).enumerate().filter(|(index, _)| mask & (1 << index) != 0) {
        change(first + index * SECTOR_BYTES, sector);
    }
}

/// Fills `sector` from `from` at `place`; zeros where there is nothing.
fn copy(from: &[u8], place: usize, sector: &mut [u8]) {
    sector.fill(0);
    let there = from.get(place..).unwrap_or_default();
    let len = there.len().min(sector.len());
    sector[..len].copy_from_slice(&there[..len]);
}

/// `image` with one file whose bytes are the rest of `input`, at its own size or filled up to that of a segment.
pub(super) fn foreign(image: &Files, mut input: Input<'_>) -> Files {
    let (kind, uid) = (input.u8(), PartitionUid(1));
    let base = Offset(match kind >> 4 & 3 {
        0 => 0,
        1 => u64::from(input.u8()),
        2 => u64::MAX >> (input.u8() % 64),
        _ => input.u64(),
    });
    let name = match kind % 5 {
        0 | 1 => FileName::Segment(uid, base),
        2 => FileName::Index(uid, base),
        3 => FileName::Checkpoint(0, Copy2::A),
        _ => FileName::Checkpoint(0, Copy2::B),
    };
    let mut bytes = input.0.to_vec();
    if kind & 0x80 == 0 {
        bytes.resize(if matches!(name, FileName::Segment(..)) { FOREIGN_BYTES } else { 4_096 }, 0);
    }
    let mut files = image.clone();
    files.retain(|(other, _)| *other != name);
    files.push((name, bytes));
    files
}
