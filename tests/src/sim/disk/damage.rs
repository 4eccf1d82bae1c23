//! Bytes that change by themselves on a simulated disk, and which offsets that takes; knows no broker.

use super::pages::{SECTOR_BYTES, bytes_of, to_page};
use super::{Inode, SimDisk};
use coulee_core::disk::FileName;
use coulee_core::executor::Random;
use coulee_core::limits::BLOCK_BYTES;
use coulee_core::log::scan::{Chain, Step, Window};
use coulee_core::log::segment::{HeaderPage, padded_end};
use coulee_protocol::ids::PartitionUid;
use std::ops::Range;

/// A way in which a device spoils what it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// One bit is another.
    Flip,
    /// A sector reads as zeros.
    Zeros,
    /// A sector, or the whole block, is what it was before its last write: that write never reached it.
    Stale,
    /// The block holds what was written to another file: that write was misdirected.
    Misdirected,
}

impl Harm {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Flip, Self::Zeros, Self::Stale, Self::Misdirected];
}

/// What was spoilt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Harmed {
    /// The file.
    pub name: FileName,
    /// The block.
    pub block: usize,
    /// Offsets of the batches that cannot be what they were, where it is a segment.
    pub lost: Vec<Range<u64>>,
}

impl SimDisk {
    /// The durable segment files of `uid`, oldest first.
    #[must_use]
    pub fn segments(&self, uid: PartitionUid) -> Vec<FileName> {
        let state = self.state.borrow();
        let own = |name: &&FileName| matches!(name, FileName::Segment(of, _) if *of == uid);
        state.durable_names.files.keys().filter(own).copied().collect()
    }

    /// Durable files.
    #[must_use]
    pub fn durable_files(&self) -> Vec<FileName> {
        self.state.borrow().durable_names.files.keys().copied().collect()
    }

    /// Spoils one durable block of `name` that was written, if there is one that `harm` would change.
    pub fn harm(&self, name: FileName, harm: Harm, random: &mut Random) -> Option<Harmed> {
        let mut state = self.state.borrow_mut();
        let inode = *state.names.files.get(&name)?;
        let file = &state.inodes[inode];
        let written: Vec<usize> =
            (0..file.page_count()).filter(|at| file.page(*at).is_some() && file.is_settled(*at)).collect();
        if written.is_empty() {
            return None;
        }
        let block = written[random.below(written.len() as u64) as usize];
        let old = bytes_of(file.page(block));
        let mut new = old;
        let sector = random.below((BLOCK_BYTES / SECTOR_BYTES) as u64) as usize * SECTOR_BYTES;
        match harm {
            Harm::Flip => new[random.below(BLOCK_BYTES as u64) as usize] ^= 1 << random.below(8),
            Harm::Zeros => new[sector..sector + SECTOR_BYTES].fill(0),
            Harm::Stale => {
                let before = bytes_of(&file.before(block));
                let stale = if random.below(2) == 0 { 0..BLOCK_BYTES } else { sector..sector + SECTOR_BYTES };
                new[stale.clone()].copy_from_slice(&before[stale]);
            }
            Harm::Misdirected => {
                let others: Vec<usize> = state.names.files.values().copied().filter(|other| *other != inode).collect();
                let other = &state.inodes[*others.get(random.below(others.len().max(1) as u64) as usize)?];
                new = bytes_of(other.page(block.min(other.page_count() - 1)));
            }
        }
        if new == old {
            return None;
        }
        let file = &mut state.inodes[inode];
        file.damage(block, to_page(&new));
        let lost = if matches!(name, FileName::Segment(..)) { lost(file) } else { Vec::new() };
        Some(Harmed { name, block, lost })
    }
}

/// The offsets of all batches of a segment that are not as they were written.
fn lost(file: &Inode) -> Vec<Range<u64>> {
    let held = |at: usize| bytes_of(file.truth.get(&at).unwrap_or_else(|| file.page(at)));
    let bytes: Vec<u8> = (0..file.page_count()).flat_map(held).collect();
    let Ok(page) = HeaderPage::decode(&bytes) else { return Vec::new() };
    let changed: Vec<usize> = file
        .truth
        .iter()
        .flat_map(|(block, held)| {
            let (held, found) = (bytes_of(held), bytes_of(file.page(*block)));
            let differs = (0..BLOCK_BYTES).filter(move |at| held[*at] != found[*at]);
            differs.map(move |at| block * BLOCK_BYTES + at)
        })
        .collect();
    let is_changed = |range: Range<usize>| changed.iter().any(|at| range.contains(at));
    let window = Window { bytes: &bytes, base: 0, data_end: page.size.data_end() };
    let mut chain = Chain {
        partition_uid: page.owner.partition_uid,
        next_offset: page.base_offset,
        next_index: page.base_index,
        prev_header_crc: Some(page.chain_anchor),
        epoch: page.leader_epoch,
    };
    let (mut position, mut lost) = (BLOCK_BYTES as u32, Vec::new());
    while let Step::Batch { start, header } = window.step(position, &chain) {
        let end = padded_end(start, header.batch_len());
        if is_changed(position as usize..end as usize) {
            lost.push(header.leader.base_offset.0..header.end_offset().0);
        }
        (position, chain) = (end, Chain::behind(&header));
    }
    if is_changed(0..BLOCK_BYTES) {
        // Without its header page nothing in a segment can be placed.
        lost.clear();
        lost.push(page.base_offset.0..chain.next_offset.0);
    }
    lost
}
