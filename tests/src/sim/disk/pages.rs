//! The bytes of one file: what is read, what is durable, what waits for a sync; knows no name.

use super::is_empty_page;
use coulee_core::executor::Random;
use coulee_core::limits::BLOCK_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

/// What a device tears a write at.
pub(super) const SECTOR_BYTES: usize = 512;

/// 4 KiB, or zeros.
pub(super) type Page = Option<Rc<[u8; BLOCK_BYTES]>>;

/// The bytes of one block as a page.
pub(super) fn to_page(bytes: &[u8]) -> Page {
    (!is_empty_page(bytes)).then(|| Rc::new(bytes.try_into().expect("a page has the size of a block")))
}

/// The bytes of a page.
pub(super) fn bytes_of(page: &Page) -> [u8; BLOCK_BYTES] {
    page.as_ref().map_or([0; BLOCK_BYTES], |page| **page)
}

/// A write that no sync has covered.
#[derive(Clone)]
struct Unsynced {
    first: usize,
    pages: Vec<Page>,
    completed: u64,
    /// A failed sync has dropped it. A later one succeeds without it.
    dropped: bool,
}

impl Unsynced {
    fn blocks(&self) -> Range<usize> {
        self.first..self.first + self.pages.len()
    }
}

#[derive(Clone)]
pub(super) struct Inode {
    pages: Vec<Page>,
    durable: Vec<Page>,
    unsynced: Vec<Unsynced>,
    /// Blocks that a sync of the file has covered: a device flush is enough for them from then on.
    converted: Vec<bool>,
    /// What damaged blocks have to hold, until they are written again.
    pub(super) truth: BTreeMap<usize, Page>,
    /// What blocks held before their last write.
    before: BTreeMap<usize, Page>,
    /// Blocks that were asked for ahead and not written since: a mapping has them in memory.
    ahead: BTreeSet<usize>,
}

impl Inode {
    pub(super) fn new(pages: usize) -> Self {
        Self {
            pages: vec![None; pages],
            durable: vec![None; pages],
            unsynced: Vec::new(),
            converted: vec![false; pages],
            truth: BTreeMap::new(),
            before: BTreeMap::new(),
            ahead: BTreeSet::new(),
        }
    }

    pub(super) fn page_count(&self) -> usize {
        self.pages.len()
    }

    pub(super) fn len(&self) -> u64 {
        (self.pages.len() * BLOCK_BYTES) as u64
    }

    pub(super) fn page(&self, at: usize) -> &Page {
        &self.pages[at]
    }

    pub(super) fn before(&self, at: usize) -> Page {
        self.before.get(&at).cloned().flatten()
    }

    /// Writes pages into the cache of the device.
    pub(super) fn write(&mut self, first: usize, pages: &[Page], completed: u64) {
        for (at, page) in (first..).zip(pages) {
            let before = std::mem::replace(&mut self.pages[at], page.clone());
            if let Some(held) = self.truth.remove(&at) {
                self.truth.extend(still_wrong(&held, &before, page).map(|held| (at, held)));
            }
            self.before.insert(at, before);
            self.ahead.remove(&at);
        }
        self.unsynced.push(Unsynced { first, pages: pages.to_vec(), completed, dropped: false });
    }

    /// Changes bytes behind everybody's back.
    pub(super) fn damage(&mut self, at: usize, page: Page) {
        let held = std::mem::replace(&mut self.pages[at], page.clone());
        self.truth.entry(at).or_insert(held);
        self.durable[at] = page;
        self.ahead.remove(&at);
    }

    /// Whether nothing that waits for a sync covers a block.
    pub(super) fn is_settled(&self, at: usize) -> bool {
        self.unsynced.iter().all(|write| !write.blocks().contains(&at))
    }

    /// The last write is never durable.
    pub(super) fn drop_last(&mut self) {
        if let Some(last) = self.unsynced.last_mut() {
            last.dropped = true;
        }
    }

    /// Nothing that waits is ever durable.
    pub(super) fn drop_all(&mut self) {
        self.unsynced.iter_mut().for_each(|write| write.dropped = true);
    }

    /// Makes the last write durable and no other.
    pub(super) fn sync_last(&mut self) {
        let Some(last) = self.unsynced.pop() else { return };
        self.keep(&last);
    }

    fn keep(&mut self, write: &Unsynced) {
        for (at, page) in write.blocks().zip(&write.pages) {
            self.converted[at] = true;
            if !write.dropped {
                self.durable[at].clone_from(page);
            }
        }
    }

    /// Makes durable what completed before `began`; a device flush (`whole` false) only over converted blocks.
    pub(super) fn sync(&mut self, began: u64, whole: bool) {
        let (covered, left) = std::mem::take(&mut self.unsynced).into_iter().partition(|write: &Unsynced| {
            write.completed < began && (whole || self.converted[write.blocks()].iter().all(|block| *block))
        });
        self.unsynced = left;
        let covered: Vec<Unsynced> = covered;
        covered.iter().for_each(|write| self.keep(write));
    }

    /// What is there after a power cut: the durable bytes, and of each unsynced write any of its sectors.
    pub(super) fn cut_power(&self, random: &mut Random) -> Self {
        let mut cut = self.clone();
        cut.pages.clone_from(&self.durable);
        cut.ahead.clear();
        for write in std::mem::take(&mut cut.unsynced).into_iter().filter(|write| !write.dropped) {
            cut.tear(write.first, &write.pages, random);
        }
        cut
    }

    /// Applies a write as a device that lost power may have: all, nothing, or some sectors.
    pub(super) fn tear(&mut self, first: usize, pages: &[Page], random: &mut Random) {
        let fate = random.below(4);
        for (at, page) in (first..).zip(pages) {
            match fate {
                0 => {}
                1 => self.pages[at].clone_from(page),
                _ => {
                    let (mut torn, new) = (bytes_of(&self.pages[at]), bytes_of(page));
                    for sector in (0..BLOCK_BYTES).step_by(SECTOR_BYTES).filter(|_| random.below(2) == 0) {
                        torn[sector..sector + SECTOR_BYTES].copy_from_slice(&new[sector..sector + SECTOR_BYTES]);
                    }
                    self.pages[at] = to_page(&torn);
                }
            }
        }
    }

    /// After the death of the process: a new one reads from the device, which has lost what a failed sync was for.
    pub(super) fn kill(&self) -> Self {
        let mut left = self.clone();
        left.ahead.clear();
        let (dropped, kept): (Vec<Unsynced>, Vec<Unsynced>) =
            std::mem::take(&mut left.unsynced).into_iter().partition(|write| write.dropped);
        left.unsynced = kept;
        for block in dropped.iter().flat_map(Unsynced::blocks) {
            if left.is_settled(block) {
                left.pages[block].clone_from(&left.durable[block]);
            }
        }
        left
    }

    /// After a power cut: what is there is durable.
    pub(super) fn settle(&mut self) {
        self.durable.clone_from(&self.pages);
        let (truth, pages) = (&mut self.truth, &self.pages);
        truth.retain(|at, held| bytes_of(held) != bytes_of(&pages[*at]));
    }

    pub(super) fn is_resident(&self, range: &Range<u64>) -> bool {
        blocks(range).all(|block| self.ahead.contains(&block))
    }

    pub(super) fn fetch_ahead(&mut self, range: &Range<u64>) {
        self.ahead.extend(blocks(range));
    }
}

/// What a damaged block should hold after a write that may have repeated what is wrong in it: whoever appends to a
/// block begins with what he has read of it.
fn still_wrong(held: &Page, found: &Page, written: &Page) -> Option<Page> {
    let (held, found, mut truth) = (bytes_of(held), bytes_of(found), bytes_of(written));
    let wrong: Vec<usize> = (0..BLOCK_BYTES).filter(|at| held[*at] != found[*at] && truth[*at] == found[*at]).collect();
    wrong.iter().for_each(|at| truth[*at] = held[*at]);
    (!wrong.is_empty()).then(|| to_page(&truth))
}

/// The blocks that `range` touches.
fn blocks(range: &Range<u64>) -> Range<usize> {
    range.start as usize / BLOCK_BYTES..(range.end as usize).div_ceil(BLOCK_BYTES)
}
