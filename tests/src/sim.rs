//! The simulator: whole brokers, their disk, their network and their clients on one thread, from one seed; knows no
//! kernel and no clock.
//!
//! A broker here is what production runs: every `core::shard` with its controller and its views of the catalog; only
//! what moves bytes between sockets and shards is another. Virtual time passes when nothing is left to do. What
//! happens next is one of all things that can happen now (a completion of the disk, a message between shards, a cycle
//! of a shard that was woken, a request or an answer on the network, a client that acts), chosen by chance. A crash
//! may come between any two of them.
//!
//! What clients do and are told goes into a history, and the checker says whether any promise was broken.

pub mod broker;
pub mod client;
pub mod disk;
pub mod latency;
pub mod network;
pub mod plan;
pub mod topics;
pub mod world;

pub use world::{Failure, Ran, run};

/// Runs `seed`, whatever happens: a panic is a failure like any other.
///
/// # Errors
/// What went wrong, and the command that runs it again.
pub fn run_caught(seed: u64) -> Result<Ran, Failure> {
    let caught = std::panic::catch_unwind(|| run(seed));
    caught.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(Failure { seed, text: format!("a panic: {}", text.unwrap_or_default()) })
    })
}
