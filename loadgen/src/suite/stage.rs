//! The broker that rows are run on: owns its directory, its pool of segment files, and its starts and ends; measures
//! nothing.
//!
//! A recycled row needs a broker that has run for a while, whose pool holds as many files as the row writes. The broker
//! itself keeps two of each size ready, and takes back those that it has used; so the others are laid into its pool
//! before its first start, zeroed and synced, as docs/STORAGE_FORMAT.md says of the pool.

use super::targets::{Pace, Pool};
use crate::broker::{Broker, Directory};
use crate::control::Control;
use crate::fault::Fault;
use crate::machine::free_bytes;
use coulee_client::Counter;
use rustix::fs::{Advice, fadvise};
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// The largest segment.
const SEGMENT_BYTES: u64 = 128 << 20;
/// Files of 16 MiB, and of 64 KiB, which partitions begin with.
const MIDDLE_FILES: u64 = 24;
const SMALLEST_FILES: u64 = 160;
/// How long a pool may take to get its files back.
const REFILL: Duration = Duration::from_secs(20);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(25);

/// A started broker and who asks it.
#[derive(Debug)]
struct Running {
    broker: Broker,
    control: Control,
    pool: Pool,
}

/// Where rows are run.
#[derive(Debug)]
pub(crate) struct Stage {
    running: Option<Running>,
    program: PathBuf,
    pool_bytes: u64,
    small_files: u64,
    directory: Directory,
}

impl Stage {
    /// No broker yet. The pool takes no more than half of what is free on the disk.
    pub(crate) fn new(program: PathBuf, parent: &Path, pace: &Pace) -> Result<Self, Fault> {
        let directory = Directory::new(parent)?;
        let pool_bytes = (pace.pool_gib << 30).min(free_bytes(directory.path())? / 2);
        Ok(Self { running: None, program, pool_bytes, small_files: pace.small_files, directory })
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Where bare servers have their files.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Bytes of the files that recycled rows find.
    pub(crate) const fn pool_bytes(&self) -> u64 {
        self.pool_bytes
    }

    /// What may be written without filling the disk.
    pub(crate) fn room(&self) -> Result<u64, Fault> {
        Ok(free_bytes(self.directory.path())? / 2)
    }

    /// A broker for the next run: a new one on an empty directory, or, for a recycled row behind another, the same with
    /// its files back in the pool.
    pub(crate) fn ready(&mut self, pool: Pool) -> Result<(SocketAddr, &Control), Fault> {
        if pool == Pool::Recycled && self.running.as_ref().is_some_and(|running| running.pool == pool) {
            self.wait_for_pool()?;
        } else {
            self.clear();
            fs::create_dir_all(self.data()).map_err(Fault::machine("a data directory"))?;
            if pool == Pool::Recycled {
                lay_pool(&self.data().join("pool/0"), self.pool_bytes, self.small_files)?;
            }
            self.start(pool)?;
        }
        self.current()
    }

    /// The broker that runs.
    pub(crate) fn current(&self) -> Result<(SocketAddr, &Control), Fault> {
        let ended = || Fault::Broker { detail: "it is not running".to_owned() };
        let running = self.running.as_ref().ok_or_else(ended)?;
        Ok((running.broker.address, &running.control))
    }

    /// One more connection for control calls.
    pub(crate) fn control(&self) -> Result<Control, Fault> {
        let ended = || Fault::Broker { detail: "it is not running".to_owned() };
        Control::of(&self.running.as_ref().ok_or_else(ended)?.broker)
    }

    /// Ends the broker and starts it again on its data, none of which is cached then.
    pub(crate) fn restart(&mut self) -> Result<(), Fault> {
        let Some(Running { broker, control, pool }) = self.running.take() else { return Ok(()) };
        drop(control);
        broker.stop()?;
        forget(&self.data())?;
        self.start(pool)
    }

    /// Kills the broker and starts it again; milliseconds from its start until it is ready.
    pub(crate) fn kill_and_start(&mut self) -> Result<f64, Fault> {
        let Some(Running { broker, control, pool }) = self.running.take() else { return Ok(0.0) };
        drop(control);
        broker.kill()?;
        let begun = Instant::now();
        self.start(pool)?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    fn start(&mut self, pool: Pool) -> Result<(), Fault> {
        // Recycled files beyond what was laid there have room too.
        let settings = match pool {
            Pool::Recycled => vec![format!("pool.bytes={}", self.pool_bytes + (1 << 30))],
            Pool::Growing => Vec::new(),
        };
        let broker = Broker::start(&self.program, &self.data(), &settings)?;
        let control = Control::of(&broker)?;
        self.running = Some(Running { broker, control, pool });
        Ok(())
    }

    /// Ends the broker and removes its data.
    pub(crate) fn clear(&mut self) {
        self.running = None;
        // What stays is noticed by the next start.
        fs::remove_dir_all(self.data()).ok();
    }

    /// Waits until the files of a deleted topic are back, as far as they come.
    fn wait_for_pool(&self) -> Result<(), Fault> {
        let (_, control) = self.current()?;
        let begun = Instant::now();
        while begun.elapsed() < REFILL {
            let usage = control.usage()?;
            if usage.count(Counter::PoolBytes) >= self.pool_bytes {
                break;
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Lays zeroed and synced files into an empty pool.
fn lay_pool(pool: &Path, bytes: u64, small_files: u64) -> Result<(), Fault> {
    fs::create_dir_all(pool).map_err(Fault::machine("a pool of segment files"))?;
    let zeros = vec![0; 1 << 20];
    let smaller = [(16 << 20, MIDDLE_FILES), (1 << 20, small_files), (64 << 10, SMALLEST_FILES)];
    let large = bytes.saturating_sub(small_files << 20) / SEGMENT_BYTES;
    let counts = [(SEGMENT_BYTES, large)].into_iter().chain(smaller);
    let sizes = counts.flat_map(|(size, count)| std::iter::repeat_n(size, count as usize));
    for (number, size) in (1..).zip(sizes) {
        let lay = || {
            let mut file = File::create(pool.join(format!("{number}.log")))?;
            for at in (0..size).step_by(zeros.len()) {
                file.write_all(&zeros[..(size - at).min(zeros.len() as u64) as usize])?;
            }
            file.sync_all()?;
            Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
        };
        lay().map_err(Fault::machine("a pool of segment files"))?;
    }
    File::open(pool).and_then(|dir| dir.sync_all()).map_err(Fault::machine("a pool of segment files"))
}

/// Drops what the page cache holds of all files below `dir`, so that the next read of them is a cold one.
fn forget(dir: &Path) -> Result<(), Fault> {
    let machine = Fault::machine;
    for entry in fs::read_dir(dir).map_err(machine("a data directory"))? {
        let entry = entry.map_err(machine("a data directory"))?;
        if entry.file_type().map_err(machine("a data directory"))?.is_dir() {
            forget(&entry.path())?;
        } else {
            let file = File::open(entry.path()).map_err(machine("a file of the broker"))?;
            fadvise(&file, 0, None, Advice::DontNeed).map_err(|error| machine("the page cache")(error.into()))?;
        }
    }
    Ok(())
}
