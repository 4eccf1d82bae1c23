//! One pinned thread and one glommio executor for each shard, with the shard's life as its only task; knows no cycle.
//!
//! Each executor is made once and lives as long as its shard. It has glommio's default preempt timer and one task
//! queue (docs/ARCHITECTURE.md, "glommio's traps"); the task never waits for it, as a shard sleeps in its own ring. A
//! panic on a shard's thread ends the process: what a shard held is in no state to go on with, and the log is there to
//! recover from.

use crate::limits::{IO_MEMORY_BYTES_MAX, IO_MEMORY_BYTES_MIN};
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};
use std::fmt;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

mod cpus;
mod resources;

pub use cpus::{UsableCpus, usable_cpus};
pub use resources::{LockedMemoryTooLow, OpenFiles, grow_file_table, raise_locked_memory, raise_open_files};

/// How the shards' threads are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutorOptions {
    /// One shard for each entry, pinned to that CPU.
    pub cpus: Vec<usize>,
    /// Memory that each executor registers with its rings; locked, so it counts against `ulimit -l`.
    pub io_memory_bytes: usize,
}

impl ExecutorOptions {
    /// A shard on each of `cpus`, with as little locked memory as may be: files and sockets have buffers of their own.
    #[must_use]
    pub const fn on(cpus: Vec<usize>) -> Self {
        Self { cpus, io_memory_bytes: IO_MEMORY_BYTES_MIN }
    }
}

/// Why the shards did not start. None of them has run then.
#[derive(Debug)]
pub enum StartError {
    /// The limit of locked memory is below what glommio starts with.
    LockedMemory(LockedMemoryTooLow),
    /// The system gave no thread.
    Thread(io::Error),
    /// The executor of a shard could not be made; io_uring may be forbidden.
    Executor {
        /// Which shard.
        shard: usize,
        /// The CPU that it was to be pinned to.
        cpu: usize,
        /// What glommio or the kernel said.
        source: io::Error,
    },
}

/// The running shards.
#[derive(Debug)]
pub struct Executors {
    threads: Vec<JoinHandle<()>>,
}

impl Executors {
    /// Waits until the bodies of all shards have returned.
    ///
    /// # Panics
    /// Never: a shard that panics takes the process with it.
    pub fn join(self) {
        for thread in self.threads {
            assert!(thread.join().is_ok(), "a shard's panic ends the process");
        }
    }
}

/// Starts a shard on each CPU of `options`. Each one takes its element of `parts` and runs `body` to its end on its own
/// thread; no body begins before all executors have been made.
///
/// # Errors
/// See [`StartError`].
///
/// # Panics
/// When there is not one part for each CPU, or `io_memory_bytes` is out of its bounds.
pub fn start<P, B>(options: &ExecutorOptions, parts: Vec<P>, body: B) -> Result<Executors, StartError>
where
    P: Send + 'static,
    B: FnOnce(P) + Clone + Send + 'static,
{
    assert!(!options.cpus.is_empty(), "a broker has at least one shard");
    assert_eq!(options.cpus.len(), parts.len(), "each shard takes one part");
    assert!((IO_MEMORY_BYTES_MIN..=IO_MEMORY_BYTES_MAX).contains(&options.io_memory_bytes), "{options:?}");
    raise_locked_memory().map_err(StartError::LockedMemory)?;
    let (made, outcomes) = mpsc::channel();
    let mut threads = Vec::with_capacity(parts.len());
    let mut starts = Vec::with_capacity(parts.len());
    for (shard, (&cpu, part)) in options.cpus.iter().zip(parts).enumerate() {
        let (start, started) = mpsc::channel();
        let (made, body, io_memory_bytes) = (made.clone(), body.clone(), options.io_memory_bytes);
        let run = move || {
            let executor = make(shard, cpu, io_memory_bytes);
            let (executor, outcome) = match executor {
                Ok(executor) => (Some(executor), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // An error on either channel: the start was given up, and there is nothing to run.
            if made.send(outcome).is_ok()
                && started.recv().is_ok()
                && let Some(executor) = executor
            {
                // An executor that is unwound waits for ever: a panic ends the process inside it.
                executor.run(async move {
                    panic::catch_unwind(AssertUnwindSafe(|| body(part))).unwrap_or_else(|_| stop(shard));
                });
            }
        };
        threads.push(spawn(shard, run).map_err(StartError::Thread)?);
        starts.push(start);
    }
    drop(made);
    outcomes.iter().take(starts.len()).collect::<Result<(), StartError>>()?;
    for start in starts {
        assert!(start.send(()).is_ok(), "a shard that has made its executor waits for its start");
    }
    Ok(Executors { threads })
}

fn spawn(shard: usize, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let guarded = move || panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| stop(shard));
    thread::Builder::new().name(format!("shard-{shard}")).spawn(guarded)
}

/// Ends the process after a panic and says on which shard it was. Where panics don't unwind, the thread's name in
/// Rust's own message says it.
fn stop(shard: usize) -> ! {
    eprintln!("shard {shard} panicked: the broker stops here and recovers from its log at the next start");
    process::abort();
}

#[expect(clippy::disallowed_methods, reason = "the one place where executors are made, once for each shard")]
fn make(shard: usize, cpu: usize, io_memory_bytes: usize) -> Result<LocalExecutor, StartError> {
    LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(&format!("shard-{shard}"))
        .io_memory(io_memory_bytes)
        .make()
        .map_err(|error| StartError::Executor { shard, cpu, source: error.into() })
}

impl fmt::Display for StartError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LockedMemory(error) => error.fmt(formatter),
            Self::Thread(error) => write!(formatter, "the system gives no thread for a shard: {error}"),
            Self::Executor { shard, cpu, source } => write!(
                formatter,
                "shard {shard} can't start on CPU {cpu}: {source} (is io_uring allowed here? the default seccomp \
                 profiles of Docker and containerd forbid it)"
            ),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::LockedMemory(error) => Some(error),
            Self::Thread(source) | Self::Executor { source, .. } => Some(source),
        }
    }
}

#[cfg(test)]
mod tests;
