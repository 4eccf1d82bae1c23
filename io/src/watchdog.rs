//! One thread that looks after all shards: counts their stalls, nudges one that is silent with work; knows no task.
//!
//! A shard says in each cycle when it began ([`Pulse::beat`]) and, before it waits with nothing to do, that it sleeps
//! ([`Pulse::sleep`]). Between a beat and the next one that follows without a sleep it owes a sign of life; if none
//! comes for [`WATCHDOG_TICK_US`], its executor is nudged from outside, because glommio can park with tasks that want
//! to run (docs/ARCHITECTURE.md, "glommio's traps", 1).
//!
//! A shard that sleeps is nudged once a second, too: glommio can lose the very wake-up that it sleeps for.
//!
//! Cost: a beat is two plain stores to lines that no other thread writes. The watchdog looks at one word a shard every
//! 5 ms while one is awake; 200 ms after all have fallen asleep it waits in the kernel until the first one calls it, or
//! for a second. A nudge of a shard that has nothing to do costs it one empty cycle.

use crate::clock::monotonic_us;
use crate::limits::{NUDGES_MAX, SLEEP_NUDGE_US, WATCHDOG_QUIET_TICKS, WATCHDOG_TICK_US};
use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker as TaskWaker;
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

/// Where the buckets of [`Stalls`] end, in microseconds; the last bucket has no end. Shorter gaps are no stalls.
pub const STALL_BUCKET_ENDS_US: [u64; 8] = [10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 5_000_000];
/// From this length on a gap between two beats is a stall.
pub const STALL_US_MIN: u64 = 5_000;
const BUCKETS: usize = STALL_BUCKET_ENDS_US.len() + 1;

/// Stalls of one shard since it started: times between two beats in which it did not sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// How many ended below each end of [`STALL_BUCKET_ENDS_US`], not counting those of the bucket before.
    pub counts: [u64; BUCKETS],
    /// The longest that is over.
    pub longest_us: u64,
    /// How long the shard has owed a beat by now; 0 if it sleeps or is not late.
    pub current_us: u64,
    /// How often it was nudged from outside.
    pub nudges: u64,
}

/// The state of one shard that others may see. All words but `nudges` are written by the shard.
#[derive(Default)]
struct Vital {
    /// Time of the last beat in µs, times two, plus one while the shard sleeps; 0 before the first beat.
    beat: AtomicU64,
    counts: [AtomicU64; BUCKETS],
    longest_us: AtomicU64,
    nudges: AtomicU64,
    /// What the executor is nudged by. Locked when a shard starts and ends, and for a nudge.
    task: Mutex<Option<TaskWaker>>,
}

/// What all threads share.
struct Shared {
    vitals: Vec<Vital>,
    /// Raised while the watchdog waits to be called.
    is_parked: AtomicBool,
    is_stopping: AtomicBool,
    thread: OnceLock<Thread>,
}

/// The owner of the thread. Dropping it ends the thread.
pub struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A shard's side. Lives on that shard.
pub struct Pulse {
    shared: Arc<Shared>,
    shard: usize,
    last_us: Cell<u64>,
    is_asleep: Cell<bool>,
}

/// Reads stalls from any thread.
#[derive(Clone)]
pub struct Vitals {
    shared: Arc<Shared>,
}

impl Watchdog {
    /// Starts the thread, and makes the pulses of the shards 0, 1, … in this order.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(shards: usize) -> std::io::Result<(Self, Vec<Pulse>)> {
        let shared = Shared::new(shards);
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("watchdog".to_owned()).spawn(move || of_thread.watch())?;
        let pulses = (0..shards).map(|shard| Pulse::new(&shared, shard)).collect();
        Ok((Self { shared, thread: Some(thread) }, pulses))
    }

    /// Reads stalls.
    #[must_use]
    pub fn vitals(&self) -> Vitals {
        Vitals { shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            assert!(thread.join().is_ok(), "the watchdog panicked");
        }
    }
}

impl Pulse {
    fn new(shared: &Arc<Shared>, shard: usize) -> Self {
        Self { shared: Arc::clone(shared), shard, last_us: Cell::new(0), is_asleep: Cell::new(true) }
    }

    fn vital(&self) -> &Vital {
        &self.shared.vitals[self.shard]
    }

    /// The shard lives, and begins a cycle at `now_us` of [`crate::clock`]. The gap since the last beat is a stall if
    /// it was long and the shard did not sleep.
    pub fn beat(&self, now_us: u64) {
        let vital = self.vital();
        vital.beat.store(now_us << 1, Ordering::Relaxed);
        if self.is_asleep.replace(false) {
            self.shared.call();
        } else {
            vital.count(now_us.saturating_sub(self.last_us.get()));
        }
        self.last_us.set(now_us);
    }

    /// The shard is about to wait with nothing to do: until the next beat it owes no sign of life.
    pub fn sleep(&self) {
        self.is_asleep.set(true);
        self.vital().beat.store((self.last_us.get() << 1) | 1, Ordering::Relaxed);
    }

    /// Sets what polls the shard's executor anew from outside, for as long as the guard lives.
    pub(crate) fn attach(&self, task: TaskWaker) -> Attached {
        *self.vital().task.lock().expect("no thread panics with the lock") = Some(task);
        Attached { shared: Arc::clone(&self.shared), shard: self.shard }
    }
}

/// Takes the waker back on the thread that it belongs to, and counts the shard as asleep from then on.
pub(crate) struct Attached {
    shared: Arc<Shared>,
    shard: usize,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let vital = &self.shared.vitals[self.shard];
        vital.beat.store(1, Ordering::Relaxed);
        drop(vital.task.lock().expect("no thread panics with the lock").take());
    }
}

impl Vitals {
    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.shared.vitals.len()
    }

    /// The stalls of a shard so far.
    #[must_use]
    pub fn stalls(&self, shard: usize) -> Stalls {
        self.shared.vitals[shard].read(monotonic_us())
    }
}

impl Vital {
    /// Only the shard itself adds: no atomic addition is needed.
    fn count(&self, gap_us: u64) {
        if gap_us < STALL_US_MIN {
            return;
        }
        let bucket = STALL_BUCKET_ENDS_US.iter().take_while(|end| gap_us >= **end).count();
        let count = &self.counts[bucket];
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let longest_us = self.longest_us.load(Ordering::Relaxed).max(gap_us);
        self.longest_us.store(longest_us, Ordering::Relaxed);
    }

    /// Time of the last beat, unless the shard sleeps or has not begun.
    fn awake_since(&self) -> Option<u64> {
        let beat = self.beat.load(Ordering::Relaxed);
        (beat != 0 && beat & 1 == 0).then_some(beat >> 1)
    }

    fn read(&self, now_us: u64) -> Stalls {
        let silent_us = self.awake_since().map_or(0, |since_us| now_us.saturating_sub(since_us));
        Stalls {
            counts: std::array::from_fn(|bucket| self.counts[bucket].load(Ordering::Relaxed)),
            longest_us: self.longest_us.load(Ordering::Relaxed),
            current_us: if silent_us < STALL_US_MIN { 0 } else { silent_us },
            nudges: self.nudges.load(Ordering::Relaxed),
        }
    }

    fn nudge(&self) {
        self.nudges.fetch_add(1, Ordering::Relaxed);
        self.wake();
    }

    fn wake(&self) {
        if let Some(task) = &*self.task.lock().expect("no thread panics with the lock") {
            task.wake_by_ref();
        }
    }
}

/// What the watchdog remembers of one shard between two looks.
#[derive(Clone, Copy, Default)]
struct Silence {
    since_us: u64,
    nudges: u32,
    /// The sleep that was last seen, when it was last nudged, and how often.
    sleep: u64,
    slept_us: u64,
    sleep_nudges: u32,
}

impl Shared {
    fn new(shards: usize) -> Arc<Self> {
        let vitals = (0..shards).map(|_| Vital::default()).collect();
        let (is_parked, is_stopping) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { vitals, is_parked, is_stopping, thread: OnceLock::new() })
    }

    /// Ends the watchdog's wait. The flag comes down once, so that one shard of many makes the system call.
    fn call(&self) {
        fence(Ordering::SeqCst);
        if self.is_parked.load(Ordering::Relaxed)
            && self.is_parked.swap(false, Ordering::Relaxed)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Looks at each shard; whether one is awake.
    fn look(&self, now_us: u64, silences: &mut [Silence]) -> bool {
        let mut is_one_awake = false;
        for (vital, silence) in self.vitals.iter().zip(silences) {
            let Some(since_us) = vital.awake_since() else {
                self.nudge_sleeper(vital, silence, now_us);
                continue;
            };
            is_one_awake = true;
            if silence.since_us != since_us {
                *silence = Silence { since_us, nudges: 0, ..*silence };
            }
            if now_us.saturating_sub(since_us) >= WATCHDOG_TICK_US && silence.nudges < NUDGES_MAX {
                silence.nudges += 1;
                vital.nudge();
            }
        }
        is_one_awake
    }

    /// Wakes a shard that has slept for a while. One that has nothing to do sleeps on after an empty cycle, which
    /// is another sleep: so nudges that do nothing are bounded here too.
    fn nudge_sleeper(&self, vital: &Vital, silence: &mut Silence, now_us: u64) {
        let sleep = vital.beat.load(Ordering::Relaxed);
        if sleep != silence.sleep {
            (silence.sleep, silence.slept_us, silence.sleep_nudges) = (sleep, now_us, 0);
        } else if sleep > 1
            && now_us.saturating_sub(silence.slept_us) >= SLEEP_NUDGE_US
            && silence.sleep_nudges < NUDGES_MAX
        {
            silence.slept_us = now_us;
            silence.sleep_nudges += 1;
            vital.wake();
        }
    }

    /// Waits for the first shard that wakes. The same two steps on each side as in `wake`: no call is lost.
    fn park(&self) {
        self.is_parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.vitals.iter().all(|vital| vital.awake_since().is_none()) && !self.is_stopping.load(Ordering::Acquire) {
            thread::park_timeout(Duration::from_micros(SLEEP_NUDGE_US));
        }
        self.is_parked.store(false, Ordering::Relaxed);
    }

    fn watch(&self) {
        self.thread.get_or_init(thread::current);
        let mut silences = vec![Silence::default(); self.vitals.len()];
        let mut quiet_ticks = 0;
        while !self.is_stopping.load(Ordering::Acquire) {
            if self.look(monotonic_us(), &mut silences) {
                quiet_ticks = 0;
            } else {
                quiet_ticks += 1;
            }
            if quiet_ticks < WATCHDOG_QUIET_TICKS {
                thread::park_timeout(Duration::from_micros(WATCHDOG_TICK_US));
            } else {
                quiet_ticks = 0;
                self.park();
            }
        }
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Watchdog").field("shards", &self.shared.vitals.len()).finish()
    }
}

impl fmt::Debug for Pulse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pulse").field("shard", &self.shard).finish()
    }
}

impl fmt::Debug for Vitals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Vitals").field("shards", &self.shared.vitals.len()).finish()
    }
}

#[cfg(test)]
mod tests;
