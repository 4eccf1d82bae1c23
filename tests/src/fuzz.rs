//! Bodies of the fuzz targets, shared with the replay of the corpus; knows no fuzzer and no file of the corpus.
//!
//! Each takes any bytes and panics when a property breaks. What is allocated is measured, not believed: whoever calls
//! them has [`memory::Counting`] as its allocator, and they panic where it is missing.

pub mod memory;

mod batch;
mod frame;
mod input;
mod recovery;
mod stored;

pub use batch::batch;
pub use frame::frame;
pub use recovery::{recovery, repair};
pub use stored::stored;

/// A target's name and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 5] =
    [("frame", frame), ("batch", batch), ("stored", stored), ("recovery", recovery), ("repair", repair)];
