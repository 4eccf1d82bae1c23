//! Owns the cost of making bytes durable in real files; refuses to know records, the log or any crate of ours.
//!
//! Throw-away evidence for docs/decisions/001-formats-by-evidence.md: one ring, O_DIRECT, blocks of 4,096 bytes.
//!
//! * A: one write into each of N files, then made durable in five ways.
//! * B: appending to recycled, fallocated and growing files; zeroing a segment, alone and beside an appender.
//! * C: batches that start on 64 bytes and share blocks, against batches that start on blocks of their own.
//! * D: what a sync leaves for the device: flushes, journal commits, metadata writes.
//! * `--mark` and `--check`: what one flush alone carries to the device; take an image of the device between them.
//!
//! `--dir DIR [--quick] [--only ABCD] [--mark [--each] | --check]`. Ways are interleaved round by round; rates are
//! medians of rounds with their range, latencies are percentiles over all rounds.

use std::collections::VecDeque;
use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{array, io, mem, thread};

use io_uring::{IoUring, opcode, squeue, types};

mod batch_starts;
use batch_starts::starts;

type Outcome<T> = Result<T, Box<dyn Error>>;

const BLOCK: usize = 4096;
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const RING_ENTRIES: u32 = 2048;

fn main() -> Outcome<()> {
    let bench = Bench::from_args()?;
    if bench.mark {
        return mark(&bench);
    }
    if bench.check {
        return check(&bench);
    }
    println!("rounds {}, slice {} ms, journal {}", bench.rounds, bench.slice.as_millis(), bench.device.has_journal());
    for (letter, experiment) in [('A', many_files as Experiment), ('B', grounds), ('C', starts), ('D', traces)] {
        if bench.only.contains(letter) {
            let started = Instant::now();
            experiment(&bench)?;
            println!("\n({letter} took {} s)", started.elapsed().as_secs());
        }
    }
    Ok(())
}

type Experiment = fn(&Bench) -> Outcome<()>;

/// What the command line asks for, and the device below the directory.
struct Bench {
    dir: PathBuf,
    device: Device,
    only: String,
    rounds: usize,
    slice: Duration,
    mark: bool,
    each: bool,
    check: bool,
}

impl Bench {
    fn from_args() -> Outcome<Self> {
        let (mut dir, mut only, mut quick) = (None, "ABCD".to_owned(), false);
        let (mut mark, mut each, mut check) = (false, false, false);
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--dir" => dir = args.next(),
                "--only" => only = args.next().ok_or("--only needs letters")?,
                "--quick" => quick = true,
                "--mark" => mark = true,
                "--each" => each = true,
                "--check" => check = true,
                other => return Err(format!("unknown argument {other}").into()),
            }
        }
        let dir = PathBuf::from(dir.ok_or("--dir DIR is needed: a directory on the disk to measure")?);
        let device = Device::below(&dir)?;
        let (rounds, slice_ms) = if quick { (2, 50) } else { (5, 300) };
        Ok(Self { dir, device, only, rounds, slice: Duration::from_millis(slice_ms), mark, each, check })
    }

    /// A directory of this experiment's own, removed with all its files when the experiment ends.
    fn scratch(&self, name: &str) -> Outcome<Scratch> {
        let path = self.dir.join(format!("commit-costs-{name}"));
        fs::create_dir(&path)?;
        Ok(Scratch { path })
    }
}

struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Files whose blocks have been written and synced before: the state of a pooled segment.
    fn recycled(&self, count: usize, bytes: usize) -> Outcome<Vec<File>> {
        let zeros = Region::new(MIB);
        let mut ring = Ring::new()?;
        let mut files = Vec::with_capacity(count);
        for number in 0..count {
            let file = open_direct(&self.file(&format!("recycled-{number}")))?;
            zero_file(&mut ring, &file, &zeros, bytes, Step { bytes: bytes.min(MIB), depth: 4 })?;
            files.push(file);
        }
        sync_file_system(&files[0])?;
        Ok(files)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("left behind: {}: {error}", self.path.display());
        }
    }
}

#[repr(align(4096))]
#[derive(Clone)]
struct Block([u8; BLOCK]);

/// Aligned memory that is never freed, so that the kernel may read it at any time.
#[derive(Clone, Copy)]
struct Region {
    start: NonNull<u8>,
    bytes: usize,
}

impl Region {
    fn new(bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(BLOCK), "regions are whole blocks");
        let blocks: &'static mut [Block] = vec![Block([0; BLOCK]); bytes / BLOCK].leak();
        assert!(blocks.iter().all(|block| block.0[0] == 0), "fresh blocks are zero");
        Self { start: NonNull::from(blocks).cast(), bytes }
    }

    /// The region cut into equal ones.
    fn split(self, count: usize) -> Vec<Self> {
        let bytes = self.bytes / count;
        let part = |number: usize| NonNull::new(self.at(number * bytes, bytes)).expect("within an allocation");
        (0..count).map(|number| Self { start: part(number), bytes }).collect()
    }

    fn piece(&self, index: usize, bytes: usize) -> Piece {
        Piece { start: self.at(index, bytes), bytes }
    }

    fn at(&self, index: usize, bytes: usize) -> *mut u8 {
        assert!(index + bytes <= self.bytes, "range {index} + {bytes} ends within the region");
        self.start.as_ptr().wrapping_add(index)
    }

    /// Copies from another region; the two never overlap, as each region is an allocation of its own.
    fn copy(&self, to: usize, source: &Self, from: usize, bytes: usize) {
        assert_ne!(self.start, source.start, "regions differ");
        let (target, origin) = (self.at(to, bytes), source.at(from, bytes));
        // SAFETY: `at` checked both ranges; two regions are two leaked allocations and do not overlap.
        unsafe { origin.copy_to_nonoverlapping(target, bytes) };
    }

    fn fill(&self, from: usize, bytes: usize, value: u8) {
        let target = self.at(from, bytes);
        // SAFETY: `at` checked the range, which lies in a leaked allocation of bytes.
        unsafe { target.write_bytes(value, bytes) };
    }
}

/// A checked range of a region. Only `Region::piece` makes one.
#[derive(Clone, Copy)]
struct Piece {
    start: *mut u8,
    bytes: usize,
}

/// One io_uring of one thread. In simple use a write's tag is its length and a sync's tag is 0: what success returns.
struct Ring {
    ring: IoUring,
    in_flight: usize,
}

impl Ring {
    fn new() -> Outcome<Self> {
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(RING_ENTRIES)?;
        Ok(Self { ring, in_flight: 0 })
    }

    fn write(&mut self, file: &File, piece: Piece, position: u64, flags: i32, tag: u64) -> io::Result<()> {
        let length = u32::try_from(piece.bytes).expect("regions are far smaller than 4 GiB");
        let write =
            opcode::Write::new(types::Fd(file.as_raw_fd()), piece.start, length).offset(position).rw_flags(flags);
        self.push(&write.build().user_data(tag))
    }

    /// Gathers pieces into one write; the vectors must stay where they are until it completes.
    fn write_vectors(&mut self, file: &File, vectors: &[libc::iovec], position: u64, tag: u64) -> io::Result<()> {
        let count = u32::try_from(vectors.len()).expect("a few hundred at most");
        let write = opcode::Writev::new(types::Fd(file.as_raw_fd()), vectors.as_ptr(), count).offset(position);
        self.push(&write.build().user_data(tag))
    }

    fn sync(&mut self, file: &File, tag: u64) -> io::Result<()> {
        let sync = opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(types::FsyncFlags::DATASYNC);
        self.push(&sync.build().user_data(tag))
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: entries come from the methods above: they name pieces of leaked regions, vectors that callers
            // keep until completion, and files, which callers close only after `drain`.
            let pushed = unsafe { self.ring.submission().push(entry) };
            if pushed.is_ok() {
                self.in_flight += 1;
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    /// Waits for at least one completion and appends all that are there as (tag, result).
    fn wait(&mut self, done: &mut Vec<(u64, i32)>) -> io::Result<()> {
        self.ring.submit_and_wait(1)?;
        let before = done.len();
        done.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        self.in_flight -= done.len() - before;
        Ok(())
    }

    /// Waits until nothing is in flight and each operation has returned its tag.
    fn drain(&mut self) -> Outcome<()> {
        self.drain_to(0)
    }

    fn drain_to(&mut self, in_flight: usize) -> Outcome<()> {
        let mut done = Vec::with_capacity(self.in_flight);
        while self.in_flight > in_flight {
            self.wait(&mut done)?;
        }
        match done.iter().find(|(tag, result)| i64::from(*result) != i64::try_from(*tag).unwrap_or(i64::MAX)) {
            Some((tag, result)) => Err(format!("an operation returned {result} instead of {tag}").into()),
            None => Ok(()),
        }
    }
}

/// The counters of the block device and of its file system's journal.
struct Device {
    stat: PathBuf,
    journal: PathBuf,
}

/// Writes, sectors written, flushes, journal commits.
type Counters = [u64; 4];
const FLUSHES: usize = 2;
const COMMITS: usize = 3;

impl Device {
    fn below(dir: &Path) -> Outcome<Self> {
        let device = fs::metadata(dir)?.dev();
        let sys = PathBuf::from(format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device)));
        let uevent = fs::read_to_string(sys.join("uevent"))?;
        let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).ok_or("the device has a name")?;
        Ok(Self { stat: sys.join("stat"), journal: PathBuf::from(format!("/proc/fs/jbd2/{name}-8/info")) })
    }

    fn has_journal(&self) -> bool {
        self.journal.exists()
    }

    /// Fields 5, 7 and 16 of the kernel's block/stat.rst, and the first number of jbd2's info: its transactions.
    fn counters(&self) -> Outcome<Counters> {
        let text = fs::read_to_string(&self.stat)?;
        let fields: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let commits = match fs::read_to_string(&self.journal) {
            Ok(info) => info.split_whitespace().next().ok_or("jbd2 info is not empty")?.parse()?,
            Err(_) => 0,
        };
        Ok([fields[4], fields[6], fields[15], commits])
    }

    fn since(&self, before: Counters) -> Outcome<Counters> {
        let now = self.counters()?;
        Ok(array::from_fn(|field| now[field] - before[field]))
    }
}

/// What one way has cost over all rounds.
#[derive(Clone, Default)]
struct Series {
    latencies: Vec<Duration>,
    rates: Vec<f64>,
    counters: Counters,
}

impl Series {
    fn percentile(&self, percent: usize) -> String {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let us = sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1e6;
        if us < 10_000.0 { format!("{us:.0} µs") } else { format!("{:.1} ms", us / 1000.0) }
    }

    /// The median of the rounds and their range, scaled.
    fn rate(&self, scale: f64) -> String {
        let mut sorted = self.rates.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let show = |value: f64| {
            if value / scale < 100.0 { format!("{:.1}", value / scale) } else { format!("{:.0}", value / scale) }
        };
        format!("{} ({}–{})", show(sorted[sorted.len() / 2]), show(sorted[0]), show(sorted[sorted.len() - 1]))
    }

    fn add(&mut self, seen: Counters) {
        self.counters = array::from_fn(|field| self.counters[field] + seen[field]);
    }

    /// Flushes and journal commits for each operation, as two cells.
    fn traces(&self) -> String {
        let each = |field: usize| self.counters[field] as f64 / self.latencies.len() as f64;
        format!("{:.2} | {:.2}", each(FLUSHES), each(COMMITS))
    }
}

/// Prints a title and the head of a table.
fn table(title: &str, columns: &str) {
    println!("\n{title}\n\n| {columns} |\n|{}", "---|".repeat(columns.split('|').count()));
}

fn open_direct(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT).open(path)
}

fn fallocated(path: &Path, bytes: usize) -> Outcome<File> {
    let file = open_direct(path)?;
    let length = libc::off_t::try_from(bytes)?;
    // SAFETY: a system call on a descriptor that `file` keeps open; no memory is passed.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) };
    if result != 0 {
        return Err(io::Error::last_os_error().into());
    }
    file.sync_all()?;
    Ok(file)
}

fn sync_file_system(file: &File) -> io::Result<()> {
    // SAFETY: a system call on a descriptor that `file` keeps open; no memory is passed.
    let result = unsafe { libc::syncfs(file.as_raw_fd()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Processor time of all threads of this process, the ring's kernel workers included.
fn processor_time() -> Duration {
    let mut usage = mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one rusage into memory that is one rusage.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    assert_eq!(result, 0, "getrusage of oneself cannot fail");
    // SAFETY: rusage is plain integers: zeroed is valid, and the call above has filled it.
    let usage = unsafe { usage.assume_init() };
    let time = |value: libc::timeval| {
        Duration::new(value.tv_sec.unsigned_abs(), 0) + Duration::from_micros(value.tv_usec.unsigned_abs())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

// ── A ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

#[derive(Clone, Copy)]
enum Durable {
    Each,
    Dsync,
    One,
    FileSystem,
    No,
}

const DURABLE: [(Durable, &str); 5] = [
    (Durable::Each, "fdatasync of each"),
    (Durable::Dsync, "RWF_DSYNC on each write"),
    (Durable::One, "**one fdatasync**"),
    (Durable::FileSystem, "syncfs"),
    (Durable::No, "no sync"),
];

fn many_files(bench: &Bench) -> Outcome<()> {
    table(
        "## A. Many dirty files: a write into each, then all durable",
        "files × bytes | way | cycle p50 | p99 | k writes/s (range) | MB/s (range) | flushes/cycle | commits/cycle",
    );
    let scratch = bench.scratch("a")?;
    let file_bytes = MIB;
    let files = scratch.recycled(1024, file_bytes)?;
    let region = Region::new(64 * KIB);
    region.fill(0, region.bytes, 0xa5);
    let mut ring = Ring::new()?;
    for count in [1, 16, 256, 1024] {
        for bytes in [4 * KIB, 64 * KIB] {
            let mut series = vec![Series::default(); DURABLE.len()];
            for round in 0..bench.rounds {
                for turn in 0..DURABLE.len() {
                    let way = (turn + round) % DURABLE.len();
                    let set = (&files[..count], &region, bytes);
                    cycles(bench, &mut ring, set, DURABLE[way].0, &mut series[way])?;
                }
            }
            for (one, (_, name)) in series.iter().zip(DURABLE) {
                print!("| {count} × {} KiB | {name} | {} | {} |", bytes / KIB, one.percentile(50), one.percentile(99));
                print!(" {} | {} |", one.rate(1e3), one.rate(1e6 / bytes as f64));
                println!(" {} |", one.traces());
            }
        }
    }
    Ok(())
}

fn cycles(
    bench: &Bench,
    ring: &mut Ring,
    set: (&[File], &Region, usize),
    way: Durable,
    series: &mut Series,
) -> Outcome<()> {
    let (files, region, bytes) = set;
    let before = bench.device.counters()?;
    let (started, mut count) = (Instant::now(), 0_usize);
    while started.elapsed() < bench.slice || count < 10 {
        let cycle_started = Instant::now();
        let position = (count * bytes % MIB) as u64;
        let flags = if matches!(way, Durable::Dsync) { libc::RWF_DSYNC } else { 0 };
        for file in files {
            ring.write(file, region.piece(0, bytes), position, flags, bytes as u64)?;
        }
        ring.drain()?;
        match way {
            Durable::Each => files.iter().try_for_each(|file| ring.sync(file, 0))?,
            Durable::One => ring.sync(&files[0], 0)?,
            Durable::FileSystem => sync_file_system(&files[0])?,
            Durable::Dsync | Durable::No => {}
        }
        ring.drain()?;
        series.latencies.push(cycle_started.elapsed());
        count += 1;
    }
    series.rates.push((count * files.len()) as f64 / started.elapsed().as_secs_f64());
    series.add(bench.device.since(before)?);
    Ok(())
}

// ── B ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

#[derive(Clone, Copy, PartialEq)]
enum Ground {
    Recycled,
    Fallocated,
    Growing,
}

#[derive(Clone, Copy)]
struct Append {
    ground: Ground,
    /// A sync follows once so many bytes are written; 0 stands for RWF_DSYNC on each write.
    sync_bytes: usize,
    name: &'static str,
}

const APPENDS: [Append; 6] = [
    Append { ground: Ground::Recycled, sync_bytes: 1, name: "**recycled**, fdatasync each" },
    Append { ground: Ground::Recycled, sync_bytes: 0, name: "recycled, RWF_DSYNC" },
    Append { ground: Ground::Fallocated, sync_bytes: 1, name: "fallocated, fdatasync each" },
    Append { ground: Ground::Growing, sync_bytes: 1, name: "growing, fdatasync each" },
    Append { ground: Ground::Recycled, sync_bytes: 4 * MIB, name: "recycled, fdatasync per 4 MiB" },
    Append { ground: Ground::Fallocated, sync_bytes: 4 * MIB, name: "fallocated, fdatasync per 4 MiB" },
];

const APPEND_FILE: usize = 64 * MIB;

fn grounds(bench: &Bench) -> Outcome<()> {
    table(
        "## B. Appending to recycled, fallocated and growing files (per sync; MB/s over all)",
        "append | way | p50 | p99 | MB/s (range) | flushes/sync | commits/sync",
    );
    for (bytes, appends) in [(4 * KIB, 400), (64 * KIB, 400), (MIB, 64)] {
        let scratch = bench.scratch("b")?;
        let recycled = scratch.recycled(1, APPEND_FILE)?;
        let mut ring = Ring::new()?;
        let region = Region::new(MIB);
        region.fill(0, region.bytes, 0xa5);
        let mut series = vec![Series::default(); APPENDS.len()];
        for round in 0..bench.rounds {
            for turn in 0..APPENDS.len() {
                let way = (turn + round) % APPENDS.len();
                let path = scratch.file(&format!("append-{round}-{way}"));
                let fresh = match APPENDS[way].ground {
                    Ground::Recycled => None,
                    Ground::Fallocated => Some(fallocated(&path, APPEND_FILE)?),
                    Ground::Growing => Some(open_direct(&path)?),
                };
                let file = fresh.as_ref().unwrap_or(&recycled[0]);
                file.sync_all()?;
                let total = if APPENDS[way].sync_bytes > 1 { APPEND_FILE } else { appends * bytes };
                let piece = region.piece(0, bytes);
                appended(&bench.device, &mut ring, (file, piece, total), APPENDS[way], &mut series[way])?;
            }
        }
        for (one, way) in series.iter().zip(APPENDS) {
            print!("| {} KiB | {} | {} | {} |", bytes / KIB, way.name, one.percentile(50), one.percentile(99));
            println!(" {} | {} |", one.rate(1e6), one.traces());
        }
    }
    zeroing(bench)
}

fn appended(
    device: &Device,
    ring: &mut Ring,
    place: (&File, Piece, usize),
    way: Append,
    series: &mut Series,
) -> Outcome<()> {
    let (file, piece, total) = place;
    let flags = if way.sync_bytes == 0 { libc::RWF_DSYNC } else { 0 };
    let before = device.counters()?;
    let started = Instant::now();
    let mut written = 0;
    while written < total {
        let sync_started = Instant::now();
        let end = written + way.sync_bytes.max(piece.bytes);
        while written < end {
            ring.write(file, piece, written as u64, flags, piece.bytes as u64)?;
            written += piece.bytes;
        }
        ring.drain()?;
        if way.sync_bytes > 0 {
            ring.sync(file, 0)?;
            ring.drain()?;
        }
        series.latencies.push(sync_started.elapsed());
    }
    series.rates.push(total as f64 / started.elapsed().as_secs_f64());
    series.add(device.since(before)?);
    Ok(())
}

#[derive(Clone, Copy)]
struct Step {
    bytes: usize,
    depth: usize,
}

fn zero_file(ring: &mut Ring, file: &File, zeros: &Region, bytes: usize, step: Step) -> Outcome<()> {
    for position in (0..bytes).step_by(step.bytes) {
        ring.drain_to(step.depth - 1)?;
        ring.write(file, zeros.piece(0, step.bytes), position as u64, 0, step.bytes as u64)?;
    }
    ring.drain()?;
    file.sync_all()?;
    Ok(())
}

const ZEROED: usize = 128 * MIB;
const ZEROERS: [(Option<Step>, &str); 3] = [
    (None, "nothing"),
    (Some(Step { bytes: MIB, depth: 4 }), "1 MiB × 4 in flight"),
    (Some(Step { bytes: 256 * KIB, depth: 1 }), "256 KiB × 1"),
];
const APPENDERS: [(Option<(usize, usize)>, &str); 3] = [
    (None, "nothing"),
    (Some((64 * KIB, 1)), "64 KiB, fdatasync each"),
    (Some((MIB, 8)), "8 × 1 MiB in flight, then fdatasync"),
];

/// Each pair of a zeroer and an appender, side by side on two rings of two threads.
fn zeroing(bench: &Bench) -> Outcome<()> {
    table(
        "### Zeroing a segment of 128 MiB (fallocated before, O_DIRECT zeros, fsync at its end)",
        "zeroing | beside it, on a recycled file | zeroing MB/s | append p50 | p99 | append MB/s",
    );
    let scratch = bench.scratch("z")?;
    let recycled = scratch.recycled(1, APPEND_FILE)?;
    let pairs: Vec<(usize, usize)> = (0..9).map(|pair| (pair / 3, pair % 3)).skip(1).collect();
    let mut series = vec![(Series::default(), Series::default()); pairs.len()];
    for round in 0..bench.rounds {
        for turn in 0..pairs.len() {
            let way = (turn + round) % pairs.len();
            let (zeroer, appender) = (ZEROERS[pairs[way].0].0, APPENDERS[pairs[way].1].0);
            let over = AtomicBool::new(false);
            thread::scope(|scope| -> Outcome<()> {
                let appending = appender.map(|shape| {
                    let (file, over) = (&recycled[0], &over);
                    scope.spawn(move || append_until(file, shape, over).map_err(|error| error.to_string()))
                });
                let zeroed = zero_some(bench, &scratch, zeroer, &mut series[way].0);
                over.store(true, Ordering::Relaxed);
                if let Some(thread) = appending {
                    let mut appended = thread.join().expect("the appender returns its errors")?;
                    series[way].1.latencies.append(&mut appended.latencies);
                    series[way].1.rates.append(&mut appended.rates);
                }
                zeroed
            })?;
        }
    }
    for ((zeroer, appender), (zeroed, appended)) in pairs.iter().zip(&series) {
        print!("| {} | {} |", ZEROERS[*zeroer].1, APPENDERS[*appender].1);
        let rate = |one: &Series| if one.rates.is_empty() { "–".to_owned() } else { one.rate(1e6) };
        let at = |one: &Series, p| if one.latencies.is_empty() { "–".to_owned() } else { one.percentile(p) };
        println!(" {} | {} | {} | {} |", rate(zeroed), at(appended, 50), at(appended, 99), rate(appended));
    }
    Ok(())
}

/// Zeroes two fresh segments, or only lets as much time pass.
fn zero_some(bench: &Bench, scratch: &Scratch, step: Option<Step>, series: &mut Series) -> Outcome<()> {
    let Some(step) = step else {
        thread::sleep(bench.slice);
        return Ok(());
    };
    let zeros = Region::new(MIB);
    let mut ring = Ring::new()?;
    let paths = [scratch.file("zeroed-0"), scratch.file("zeroed-1")];
    let files = [fallocated(&paths[0], ZEROED)?, fallocated(&paths[1], ZEROED)?];
    let started = Instant::now();
    for file in &files {
        zero_file(&mut ring, file, &zeros, ZEROED, step)?;
    }
    series.rates.push((2 * ZEROED) as f64 / started.elapsed().as_secs_f64());
    for path in &paths {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn append_until(file: &File, (bytes, depth): (usize, usize), over: &AtomicBool) -> Outcome<Series> {
    let mut ring = Ring::new()?;
    let region = Region::new(bytes);
    let (mut series, mut position, mut total) = (Series::default(), 0, 0);
    let started = Instant::now();
    while !over.load(Ordering::Relaxed) {
        let sync_started = Instant::now();
        for _ in 0..depth {
            ring.write(file, region.piece(0, bytes), position as u64, 0, bytes as u64)?;
            position = (position + bytes) % APPEND_FILE;
        }
        ring.drain()?;
        ring.sync(file, 0)?;
        ring.drain()?;
        series.latencies.push(sync_started.elapsed());
        total += bytes * depth;
    }
    series.rates.push(total as f64 / started.elapsed().as_secs_f64());
    Ok(series)
}

// ── D ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

const TRACED: usize = 200;
const TRACED_FILES: usize = 64;

/// Counts what reaches the device besides the data. Its other users add to that, so the least of the rounds is shown.
fn traces(bench: &Bench) -> Outcome<()> {
    let columns = "ground | flushes | journal commits | writes besides the data | KiB besides the data";
    table(&format!("## D. Traces on the device: {TRACED} × (4 KiB into one file, fdatasync of it)"), columns);
    let named = [(Ground::Recycled, "recycled"), (Ground::Fallocated, "fallocated"), (Ground::Growing, "growing")];
    for (ground, name) in named {
        trace(bench, ground, name, 1)?;
    }
    table(
        &format!("{TRACED} × (4 KiB into each of {TRACED_FILES} files, one fdatasync of another, clean one)"),
        columns,
    );
    for (ground, name) in named {
        trace(bench, ground, name, TRACED_FILES)?;
    }
    Ok(())
}

fn trace(bench: &Bench, ground: Ground, name: &str, count: usize) -> Outcome<()> {
    let bytes = BLOCK;
    let region = Region::new(bytes);
    region.fill(0, bytes, 0xa5);
    let mut ring = Ring::new()?;
    let mut least: Option<Counters> = None;
    for _ in 0..bench.rounds {
        let scratch = bench.scratch("d")?;
        let bystander = scratch.recycled(1, MIB)?;
        let files = ground_files(&scratch, ground, count)?;
        sync_file_system(&bystander[0])?;
        let synced = if count == 1 { &files[0] } else { &bystander[0] };
        let before = bench.device.counters()?;
        for turn in 0..TRACED {
            for file in &files {
                ring.write(file, region.piece(0, bytes), (turn * bytes) as u64, 0, bytes as u64)?;
            }
            ring.drain()?;
            ring.sync(synced, 0)?;
            ring.drain()?;
        }
        let seen = bench.device.since(before)?;
        let low = least.unwrap_or(seen);
        least = Some(array::from_fn(|field| low[field].min(seen[field])));
    }
    let [writes, sectors, flushes, commits] = least.ok_or("there is at least one round")?.map(u64::cast_signed);
    let commits = if bench.device.has_journal() { commits.to_string() } else { "no journal".to_owned() };
    // The kernel counts an empty flush as a write of no sectors.
    let data_writes = (TRACED * count) as i64;
    let other_kib = sectors / 2 - data_writes * bytes as i64 / KIB as i64;
    println!("| {name} | {flushes} | {commits} | {} | {other_kib} |", writes - flushes - data_writes);
    Ok(())
}

fn ground_files(scratch: &Scratch, ground: Ground, count: usize) -> Outcome<Vec<File>> {
    if ground == Ground::Recycled {
        return scratch.recycled(count, MIB);
    }
    (0..count)
        .map(|number| {
            let path = scratch.file(&format!("fresh-{number}"));
            if ground == Ground::Growing { Ok(open_direct(&path)?) } else { fallocated(&path, MIB) }
        })
        .collect()
}

// ── What one flush carries ───────────────────────────────────────────────────────────────────────────────────────────

const MARKED: usize = 64;
const MARKS: [(Ground, &str); 3] =
    [(Ground::Recycled, "recycled"), (Ground::Fallocated, "fallocated"), (Ground::Growing, "growing")];

/// Writes a mark into 64 files of each kind, then syncs one recycled file that was not written, and nothing else; with
/// `--each` it syncs every marked file instead.
fn mark(bench: &Bench) -> Outcome<()> {
    let mut ring = Ring::new()?;
    let region = Region::new(BLOCK);
    region.fill(0, BLOCK, 0xa5);
    let mut files = Vec::new();
    let bystander = mem::ManuallyDrop::new(bench.scratch("bystander")?);
    let bystanders = bystander.recycled(1, MIB)?;
    for (ground, name) in MARKS {
        let path = bench.dir.join(name);
        fs::create_dir(&path)?;
        let place = mem::ManuallyDrop::new(Scratch { path });
        files.append(&mut ground_files(&place, ground, MARKED)?);
    }
    sync_file_system(&bystanders[0])?;
    let before = bench.device.counters()?;
    for file in &files {
        ring.write(file, region.piece(0, BLOCK), 0, 0, BLOCK as u64)?;
    }
    ring.drain()?;
    let synced = if bench.each { &files } else { &bystanders };
    synced.iter().try_for_each(|file| ring.sync(file, 0))?;
    ring.drain()?;
    let seen = bench.device.since(before)?;
    println!("marked {} files: {} flushes, {} journal commits", files.len(), seen[FLUSHES], seen[COMMITS]);
    io::stdout().flush()?;
    Ok(())
}

fn check(bench: &Bench) -> Outcome<()> {
    println!("| ground | marks found |\n|---|---|");
    for (_, name) in MARKS {
        let mut found = 0;
        for entry in fs::read_dir(bench.dir.join(name))? {
            let mut block = vec![0; BLOCK];
            let file = File::open(entry?.path())?;
            found += usize::from(file.read_exact_at(&mut block, 0).is_ok() && block.iter().all(|byte| *byte == 0xa5));
        }
        println!("| {name} | {found} of {MARKED} |");
    }
    Ok(())
}
