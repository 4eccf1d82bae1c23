//! Produce requests whose clients wait for so long and no longer: answers them when that is over; unwrites nothing.
//!
//! Nearly every request is answered long before, so a request costs one push here, and one look when its generation
//! turns: two generations of at least a tick each hold those that came, and what has outlived both is kept in order.
//!
//! ```text
//!  note ─▶ young ─(tick)─▶ elder ─(tick, still unanswered)─▶ deadlines ─(due)─▶ REQUEST_TIMED_OUT
//! ```
//! The shard does not wake for a tick: generations turn in cycles that are run anyway, or when a deadline has come.

use super::ShardServer;
use crate::limits::{CYCLE_OVERTIMES_MAX, OVERTIME_NOTES_MAX, OVERTIME_TICK_MS};
use crate::pending::{Asker, Patience, Pending};
use crate::slab::{Key, Slab};
use coulee_core::shard::RequestId;
use coulee_protocol::error::ErrorCode;
use std::collections::BTreeSet;

/// Requests that were noted in one tick or two; most of them have been answered.
#[derive(Debug)]
struct Generation {
    keys: Vec<Key>,
    /// The first deadline of all that were noted.
    first_ms: u64,
}

impl Default for Generation {
    fn default() -> Self {
        Self { keys: Vec::new(), first_ms: u64::MAX }
    }
}

/// When the time of which request is over. Lives on each shard.
#[derive(Debug, Default)]
pub(super) struct Overtime {
    young: Generation,
    elder: Generation,
    /// When the generations turn next.
    turn_at_ms: u64,
    /// Those that have outlived both generations.
    deadlines: BTreeSet<(u64, Key)>,
}

impl Overtime {
    /// Notes a request that is to be answered until `deadline_ms`.
    fn note(&mut self, pending: &mut Slab<Pending>, (deadline_ms, key): (u64, Key)) {
        if self.young.keys.len() == OVERTIME_NOTES_MAX {
            self.turn(pending);
        }
        self.young.keys.push(key);
        self.young.first_ms = self.young.first_ms.min(deadline_ms);
    }

    /// When the shard wants to be awake for the next deadline; it may have been answered by then.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        let watched = self.deadlines.first().map_or(u64::MAX, |(deadline_ms, _)| *deadline_ms);
        let first_ms = watched.min(self.young.first_ms).min(self.elder.first_ms);
        (first_ms < u64::MAX).then_some(first_ms)
    }

    /// The next request whose time is over.
    fn due(&mut self, pending: &mut Slab<Pending>, now_ms: u64) -> Option<Key> {
        if now_ms >= self.turn_at_ms {
            self.turn_at_ms = now_ms + OVERTIME_TICK_MS;
            self.turn(pending);
        }
        // Twice at most: then both are empty.
        while self.young.first_ms.min(self.elder.first_ms) <= now_ms {
            self.turn(pending);
        }
        let (_, key) = self.deadlines.first().copied().filter(|(deadline_ms, _)| *deadline_ms <= now_ms)?;
        self.deadlines.pop_first();
        Some(key)
    }

    /// Puts what is unanswered of the elder generation in order; the young one is the elder from now on.
    fn turn(&mut self, pending: &mut Slab<Pending>) {
        for key in self.elder.keys.drain(..) {
            if let Some(pending) = pending.find(key)
                && let Patience::Until(deadline_ms) = pending.patience
            {
                pending.patience = Patience::Watched(deadline_ms);
                self.deadlines.insert((deadline_ms, key));
            }
        }
        self.elder.first_ms = u64::MAX;
        std::mem::swap(&mut self.young, &mut self.elder);
    }

    /// Forgets a request that has its answer.
    fn forget(&mut self, key: Key, patience: Patience) {
        if let Patience::Watched(deadline_ms) = patience {
            let was_there = self.deadlines.remove(&(deadline_ms, key));
            assert!(was_there, "what is watched has its deadline");
        }
    }
}

impl ShardServer {
    /// Answers a request after this time if nothing else does; 0 is for ever.
    pub(super) fn limit_patience(&mut self, request: RequestId, timeout_ms: u32) {
        let key = Key(request.0);
        let deadline_ms = self.now().monotonic_ms + u64::from(timeout_ms);
        if timeout_ms > 0
            && let Some(pending) = self.pending.find(key)
        {
            pending.patience = Patience::Until(deadline_ms);
            self.overtime.note(&mut self.pending, (deadline_ms, key));
        }
    }

    /// Takes an answered request off the list of deadlines. Whether it still is to be answered.
    pub(super) fn is_in_time(&mut self, request: RequestId, pending: &Pending) -> bool {
        self.overtime.forget(Key(request.0), pending.patience);
        pending.patience != Patience::Over
    }

    /// Tells clients whose time is over. Their requests go on, and hold what they have held until they are done: a
    /// client does not get more of the broker by waiting for less.
    pub(super) fn look_after_overtime(&mut self) -> bool {
        let now_ms = self.now().monotonic_ms;
        for told in 0..CYCLE_OVERTIMES_MAX {
            let Some(key) = self.overtime.due(&mut self.pending, now_ms) else { return told > 0 };
            let pending = self.pending.find(key).expect("what is watched is unanswered");
            pending.patience = Patience::Over;
            let Asker::Connection(connection_key) = pending.asker else { continue };
            self.counts.produce_errors += 1;
            if let Some(Some(connection)) = self.connections.find(connection_key) {
                let detail = "the write is still under way";
                connection.output.refuse(&mut self.spare, &pending.header, ErrorCode::RequestTimedOut, detail);
                self.flush_soon(connection_key);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
