//! An allocator that counts what a thread holds and the most it has held; knows nothing of who allocates what.
//!
//! It sees what Rust allocates. What a C library takes with `malloc` (zstd's context) passes it by.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

thread_local! {
    /// Bytes held. Below zero on a thread that frees what another has allocated.
    static HELD: Cell<isize> = const { Cell::new(0) };
    /// The most bytes held since a measurement began.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, counted.
#[derive(Clone, Copy, Debug)]
pub struct Counting;

/// Neither cell has a destructor or allocates, so this may run at any time in a thread's life.
fn count(change: isize) {
    let held = HELD.get() + change;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every method hands its arguments to `System` unchanged and returns what that returned; counting neither
// allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps `GlobalAlloc::alloc_zeroed`'s contract, which is `System`'s.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `place` came from `System` through this allocator, with this layout.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: `place` came from `System` through this allocator, with this layout; the caller vouches for `size`.
        unsafe { System.realloc(place, layout, size) }
    }
}

/// What `work` returns, and how many bytes more than before it held at its peak. Measurements nest.
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let (start, outer) = (HELD.get(), PEAK.get());
    PEAK.set(start);
    let result = work();
    let reached = PEAK.get();
    PEAK.set(reached.max(outer));
    (result, (reached - start).max(0) as usize)
}

/// What `work` returns.
///
/// # Panics
/// When it held more than `bound` bytes more than before.
pub fn within<T>(bound: usize, what: &str, work: impl FnOnce() -> T) -> T {
    let (result, reached) = peak(work);
    assert!(reached <= bound, "{what} held {reached} bytes, at most {bound} are allowed");
    result
}

/// Makes sure that measurements measure.
///
/// # Panics
/// When [`Counting`] is not the allocator.
pub fn assert_counted() {
    let (memory, reached) = peak(|| black_box(Vec::<u8>::with_capacity(64)));
    assert!(reached >= memory.capacity(), "the counting allocator is not installed");
}
