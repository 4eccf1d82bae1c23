//! The shard's memory budget for frames: bytes are reserved before a body is read; it knows no socket and no frame.
//!
//! Rules: frames up to 16 KiB have a reserve of their own, so that small requests go on when large ones wait;
//! incomplete frames hold at most half of the budget, and those of one client a quarter of that. Who is refused is
//! paused by not reading, and asks again when something is released.

use crate::limits::SMALL_FRAME_BYTES;
use coulee_protocol::limits::FRAME_BYTES_MAX;
use std::collections::BTreeMap;

/// Names a client: one peer, however many connections it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// Bytes reserved for one frame. Give it back with [`Budget::release`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a reservation that is dropped is never given back"]
pub struct Reservation {
    client: ClientId,
    bytes: usize,
    incomplete: bool,
    small: bool,
}

/// Bytes that a shard may hold for frames. One lives on each shard.
#[derive(Debug)]
pub struct Budget {
    large_max: usize,
    small_max: usize,
    large: usize,
    small: usize,
    incomplete: usize,
    by_client: BTreeMap<ClientId, usize>,
}

/// The least budget with which every frame can get through: a quarter of a half has to hold the largest frame.
pub const BUDGET_BYTES_MIN: usize = 8 * FRAME_BYTES_MAX + SMALL_FRAMES_BYTES;
/// The reserve of small frames.
const SMALL_FRAMES_BYTES: usize = 16 << 20;
const _: () = assert!(SMALL_FRAMES_BYTES >= 64 * SMALL_FRAME_BYTES);

impl Budget {
    /// A budget of `bytes`, at least [`BUDGET_BYTES_MIN`].
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let bytes = bytes.max(BUDGET_BYTES_MIN);
        let large_max = bytes - SMALL_FRAMES_BYTES;
        Self { large_max, small_max: SMALL_FRAMES_BYTES, large: 0, small: 0, incomplete: 0, by_client: BTreeMap::new() }
    }

    /// Reserves `bytes` for a frame that begins to arrive, or refuses.
    pub fn reserve(&mut self, client: ClientId, bytes: usize) -> Option<Reservation> {
        assert!(bytes <= FRAME_BYTES_MAX, "the frame header was checked");
        let small = bytes <= SMALL_FRAME_BYTES;
        if small && self.small + bytes <= self.small_max {
            self.small += bytes;
            return Some(Reservation { client, bytes, incomplete: true, small });
        }
        let held = self.by_client.get(&client).copied().unwrap_or(0);
        let fits = self.large + bytes <= self.large_max
            && self.incomplete + bytes <= self.large_max / 2
            && held + bytes <= self.large_max / 8;
        if !fits {
            return None;
        }
        self.large += bytes;
        self.incomplete += bytes;
        self.by_client.insert(client, held + bytes);
        Some(Reservation { client, bytes, incomplete: true, small: false })
    }

    /// The frame has arrived whole: it no longer counts as incomplete.
    pub fn complete(&mut self, reservation: &mut Reservation) {
        if std::mem::take(&mut reservation.incomplete) && !reservation.small {
            self.arrived(reservation.client, reservation.bytes);
        }
    }

    fn arrived(&mut self, client: ClientId, bytes: usize) {
        self.incomplete -= bytes;
        let held = self.by_client.get_mut(&client).expect("its frames were counted when they began");
        *held -= bytes;
        if *held == 0 {
            self.by_client.remove(&client);
        }
    }

    /// Gives the bytes of a frame back.
    pub fn release(&mut self, mut reservation: Reservation) {
        self.complete(&mut reservation);
        if reservation.small {
            self.small -= reservation.bytes;
        } else {
            self.large -= reservation.bytes;
        }
    }

    /// Bytes reserved now.
    #[must_use]
    pub const fn reserved(&self) -> usize {
        self.large + self.small
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Random;

    #[test]
    fn one_client_that_trickles_large_frames_leaves_room_for_others() {
        let mut budget = Budget::new(0);
        let slow: Vec<Reservation> = (0..100).map_while(|_| budget.reserve(ClientId(1), 4 << 20)).collect();
        assert_eq!(slow.len(), 4, "an eighth of the budget");
        assert!(budget.reserve(ClientId(2), FRAME_BYTES_MAX).is_some());
        let clients = (3..100).map_while(|client| budget.reserve(ClientId(client), FRAME_BYTES_MAX)).count();
        assert_eq!(clients, 2, "incomplete frames hold half at most");
        assert!(budget.reserve(ClientId(1), 100).is_some(), "small frames go on");
    }

    #[test]
    fn whatever_is_reserved_and_released_the_books_balance() {
        for seed in 0..50 {
            let (mut random, mut budget, mut held) = (Random::new(seed), Budget::new(0), Vec::new());
            for _ in 0..500 {
                if random.below(3) > 0 {
                    let bytes = 1 + random.below(FRAME_BYTES_MAX as u64) as usize;
                    held.extend(budget.reserve(ClientId(random.below(5)), bytes));
                } else if !held.is_empty() {
                    let mut reservation: Reservation = held.swap_remove(random.below(held.len() as u64) as usize);
                    if random.below(2) == 0 {
                        budget.complete(&mut reservation);
                    }
                    budget.release(reservation);
                }
                assert!(budget.reserved() <= BUDGET_BYTES_MIN, "seed {seed}");
            }
            held.into_iter().for_each(|reservation| budget.release(reservation));
            assert_eq!((budget.reserved(), budget.incomplete, budget.by_client.len()), (0, 0, 0), "seed {seed}");
        }
    }
}
