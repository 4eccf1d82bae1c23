//! Bounded rings between every two shards, one producer and one consumer each; knows nothing of what is sent.
//!
//! A message costs two stores on the sender's side and one load and one store on the receiver's; indices of the two
//! sides lie on cache lines of their own, and each side keeps what it last saw of the other's, so that the line of the
//! other is touched once a batch rather than once a message. loom runs the ring and the sleeping flag through every
//! interleaving: `make loom`.

use crate::limits::MESH_RING_SLOTS;
use crate::wake::Waker;
use cell::Slot;
use std::fmt;

#[cfg(loom)]
use loom::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
#[cfg(not(loom))]
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// How a message becomes visible: not before its slot has been written.
const PUBLISH: Ordering =
    if cfg!(coulee_mutation = "mesh_relaxed_publish") { Ordering::Relaxed } else { Ordering::Release };

/// The rings between every two shards, before their ends are handed out.
#[derive(Debug)]
pub struct Mesh;

impl Mesh {
    /// The ends of the shards 0, 1, … in this order.
    ///
    /// # Panics
    /// When there is no shard.
    #[expect(clippy::new_ret_no_self, reason = "a mesh is nothing but its ends, and each belongs to another thread")]
    #[must_use]
    pub fn new<T: Send>(shards: usize) -> Vec<MeshEnd<T>> {
        Self::with_slots(shards, MESH_RING_SLOTS)
    }

    fn with_slots<T: Send>(shards: usize, slots: usize) -> Vec<MeshEnd<T>> {
        assert!(shards > 0, "a broker has at least one shard");
        let mut ends: Vec<MeshEnd<T>> = (0..shards).map(|shard| MeshEnd::unconnected(shard, shards)).collect();
        for from in 0..shards {
            for to in (0..shards).filter(|to| *to != from) {
                let (sender, receiver) = ring(slots);
                ends[from].peers[to].sender = Some(sender);
                ends[to].peers[from].receiver = Some(receiver);
            }
        }
        ends
    }
}

/// One shard's end of the mesh. Lives on that shard.
pub struct MeshEnd<T> {
    shard: usize,
    peers: Vec<Peer<T>>,
    /// Whom to ask first next time.
    next: usize,
}

struct Peer<T> {
    sender: Option<Sender<T>>,
    receiver: Option<Receiver<T>>,
    waker: Option<Waker>,
    /// Something was sent since the peer was last woken.
    is_due: bool,
}

impl<T: Send> MeshEnd<T> {
    fn unconnected(shard: usize, shards: usize) -> Self {
        let peer = |_| Peer { sender: None, receiver: None, waker: None, is_due: false };
        Self { shard, peers: (0..shards).map(peer).collect(), next: 0 }
    }

    /// Whose end this is.
    #[must_use]
    pub const fn shard(&self) -> usize {
        self.shard
    }

    /// How many shards the mesh connects.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.peers.len()
    }

    /// Sets by what a peer is woken in [`MeshEnd::wake_peers`].
    pub fn attach(&mut self, to: usize, waker: Waker) {
        assert_ne!(to, self.shard, "a shard does not wake itself");
        self.peers[to].waker = Some(waker);
        // Whatever was sent before had nobody to wake.
        self.peers[to].is_due = true;
    }

    /// Puts `message` into the ring to shard `to`; the ring gives it back when it is full. The peer is woken by
    /// [`MeshEnd::wake_peers`], once for all messages of a cycle.
    ///
    /// # Errors
    /// The message, when [`MESH_RING_SLOTS`] wait.
    pub fn send(&mut self, to: usize, message: T) -> Result<(), T> {
        let peer = &mut self.peers[to];
        let sender = peer.sender.as_mut().expect("a shard sends to others only, and they are all connected");
        sender.push(message)?;
        peer.is_due = true;
        Ok(())
    }

    /// Wakes the peers that something was sent to since the last call, if they sleep.
    pub fn wake_peers(&mut self) {
        for peer in self.peers.iter_mut().filter(|peer| peer.is_due) {
            if let Some(waker) = &peer.waker {
                waker.wake();
                peer.is_due = false;
            }
        }
    }

    /// The next message and the shard that sent it. Takes one from each peer in turn, so that none is starved.
    pub fn receive(&mut self) -> Option<(usize, T)> {
        let shards = self.peers.len();
        for step in 0..shards {
            let from = (self.next + step) % shards;
            if let Some(message) = self.peers[from].receiver.as_mut().and_then(Receiver::pop) {
                self.next = (from + 1) % shards;
                return Some((from, message));
            }
        }
        None
    }

    /// Whether no message waits for this shard. To be asked again after a sleep was announced.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.iter().filter_map(|peer| peer.receiver.as_ref()).all(Receiver::is_empty)
    }
}

impl<T> fmt::Debug for MeshEnd<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MeshEnd").field("shard", &self.shard).field("shards", &self.peers.len()).finish()
    }
}

/// Two lines: processors fetch them in pairs.
#[repr(align(128))]
struct Padded<T>(T);

/// Indices count on and on; a slot's place is the index modulo the count of slots.
struct Ring<T> {
    slots: Box<[Slot<T>]>,
    /// The next index to be taken. Written by the receiver alone.
    head: Padded<AtomicUsize>,
    /// The next index to be filled. Written by the sender alone.
    tail: Padded<AtomicUsize>,
}

// SAFETY: a slot is touched by one side at a time. The sender writes a slot before it publishes `tail`, the receiver
// takes from it before it publishes `head`; there is one `Sender` and one `Receiver`, neither can be cloned.
unsafe impl<T: Send> Sync for Ring<T> {}

struct Sender<T> {
    ring: Arc<Ring<T>>,
    tail: usize,
    /// The receiver's index as last seen: it is at least this.
    head_seen: usize,
}

struct Receiver<T> {
    ring: Arc<Ring<T>>,
    head: usize,
    /// The sender's index as last seen: it is at least this.
    tail_seen: usize,
}

fn ring<T: Send>(slots: usize) -> (Sender<T>, Receiver<T>) {
    assert!(slots.is_power_of_two(), "a slot's place is found by a mask");
    let slots = (0..slots).map(|_| Slot::empty()).collect();
    let head = Padded(AtomicUsize::new(0));
    let tail = Padded(AtomicUsize::new(0));
    let ring = Arc::new(Ring { slots, head, tail });
    (Sender { ring: Arc::clone(&ring), tail: 0, head_seen: 0 }, Receiver { ring, head: 0, tail_seen: 0 })
}

impl<T> Ring<T> {
    fn slot(&self, index: usize) -> &Slot<T> {
        &self.slots[index & (self.slots.len() - 1)]
    }
}

impl<T> Sender<T> {
    fn push(&mut self, message: T) -> Result<(), T> {
        let slots = self.ring.slots.len();
        if self.tail.wrapping_sub(self.head_seen) == slots {
            self.head_seen = self.ring.head.0.load(Ordering::Acquire);
            if self.tail.wrapping_sub(self.head_seen) == slots {
                return Err(message);
            }
        }
        // SAFETY: the receiver has left this slot (`head_seen`) and won't come back before `tail` is published.
        unsafe { self.ring.slot(self.tail).put(message) };
        self.tail = self.tail.wrapping_add(1);
        self.ring.tail.0.store(self.tail, PUBLISH);
        Ok(())
    }
}

impl<T> Receiver<T> {
    fn pop(&mut self) -> Option<T> {
        if self.head == self.tail_seen {
            self.tail_seen = self.ring.tail.0.load(Ordering::Acquire);
            if self.head == self.tail_seen {
                return None;
            }
        }
        // SAFETY: the sender has filled this slot (`tail_seen`) and won't come back before `head` is published.
        let message = unsafe { self.ring.slot(self.head).take() };
        self.head = self.head.wrapping_add(1);
        self.ring.head.0.store(self.head, Ordering::Release);
        Some(message)
    }

    fn is_empty(&self) -> bool {
        self.head == self.tail_seen && self.head == self.ring.tail.0.load(Ordering::Acquire)
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let mut head = self.head.0.load(Ordering::Relaxed);
        let tail = self.tail.0.load(Ordering::Relaxed);
        while head != tail {
            // SAFETY: both sides are gone, and between the two indices each slot is filled.
            drop(unsafe { self.slot(head).take() });
            head = head.wrapping_add(1);
        }
    }
}

#[cfg(not(loom))]
mod cell {
    use std::cell::UnsafeCell;
    use std::mem::MaybeUninit;

    /// Room for one message.
    pub(super) struct Slot<T>(UnsafeCell<MaybeUninit<T>>);

    impl<T> Slot<T> {
        pub(super) const fn empty() -> Self {
            Self(UnsafeCell::new(MaybeUninit::uninit()))
        }

        /// # Safety
        /// The slot is empty and nobody else touches it.
        pub(super) unsafe fn put(&self, message: T) {
            let place = self.0.get().cast::<T>();
            // SAFETY: the caller has the slot for itself; it is large enough and aligned for a `T`.
            unsafe { place.write(message) };
        }

        /// # Safety
        /// The slot is filled and nobody else touches it; it is empty afterwards.
        pub(super) unsafe fn take(&self) -> T {
            let place = self.0.get().cast::<T>();
            // SAFETY: the caller has the slot for itself and knows that it is filled.
            unsafe { place.read() }
        }
    }
}

#[cfg(loom)]
mod cell {
    use loom::cell::UnsafeCell;
    use std::mem::MaybeUninit;

    /// Room for one message; loom watches who touches it.
    pub(super) struct Slot<T>(UnsafeCell<MaybeUninit<T>>);

    impl<T> Slot<T> {
        pub(super) fn empty() -> Self {
            Self(UnsafeCell::new(MaybeUninit::uninit()))
        }

        /// # Safety
        /// The slot is empty and nobody else touches it.
        pub(super) unsafe fn put(&self, message: T) {
            // SAFETY: the caller has the slot for itself.
            self.0.with_mut(|place| unsafe { place.cast::<T>().write(message) });
        }

        /// # Safety
        /// The slot is filled and nobody else touches it; it is empty afterwards.
        pub(super) unsafe fn take(&self) -> T {
            // SAFETY: the caller has the slot for itself and knows that it is filled.
            self.0.with_mut(|place| unsafe { place.cast::<T>().read() })
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod model;
