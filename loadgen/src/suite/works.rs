//! One run of a row, whatever its work: owns what happens in which order; decides no verdict and prints nothing.
//!
//! Ordinary work goes through `run::perform`, the very way of `coulee-loadgen run`.

use super::measured::{BareRun, Beside, Run, Values};
use super::stage::Stage;
use super::targets::{Bare, Metric, Pool, RowSpec, RowWork};
use crate::arguments::{RunArguments, Work};
use crate::control::Control;
use crate::fault::Fault;
use crate::probe::{self, Files, Kind};
use crate::report::Row;
use crate::run::{self, Job};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A broker that has just got its topics is left alone for this long before it counts as idle.
const SETTLE: Duration = Duration::from_secs(1);
/// What the bare replay sends at once.
const REPLAY_SLICE_BYTES: usize = 1 << 20;

/// Runs by the part that they are of.
type Parts = Vec<(&'static str, Run)>;

/// Bare servers: their files, and what was measured last.
#[derive(Debug)]
pub(crate) struct Bares {
    files: Option<Files>,
    seconds: f64,
    /// What they did last, and under which load: that is the next run's *before*.
    last: Option<(String, Vec<Row>)>,
}

impl Bares {
    pub(crate) const fn new(files: Option<Files>, seconds: f64) -> Self {
        Self { files, seconds, last: None }
    }

    fn files(&self) -> Result<&Files, Fault> {
        let detail = || "a suite whose rows want no bare servers has no files for them".to_owned();
        self.files.as_ref().ok_or_else(|| Fault::Targets { detail: detail() })
    }

    fn measure(&self, kind: Bare, arguments: &RunArguments) -> Result<Vec<Row>, Fault> {
        let kinds: &[Kind] = match kind {
            Bare::Best => &Kind::BOTH,
            Bare::Ring => &[Kind::Ring],
            Bare::None | Bare::Replay => return Ok(Vec::new()),
        };
        run::bare(&RunArguments { seconds: self.seconds, ..arguments.clone() }, kinds, self.files()?)
    }

    fn before(&mut self, kind: Bare, arguments: &RunArguments) -> Result<Vec<Row>, Fault> {
        let load = load_of(kind, arguments);
        match self.last.take().filter(|(last, _)| *last == load) {
            Some((_, rows)) => Ok(rows),
            None => self.measure(kind, arguments),
        }
    }

    fn after(&mut self, kind: Bare, arguments: &RunArguments) -> Result<Vec<Row>, Fault> {
        let rows = self.measure(kind, arguments)?;
        self.last = Some((load_of(kind, arguments), rows.clone()));
        Ok(rows)
    }

    fn replay(&self, is_before: bool, cpu: usize) -> Result<BareRun, Fault> {
        let rate = probe::replay(self.files()?, REPLAY_SLICE_BYTES, cpu)?;
        let values = Values::from([(Metric::MbPerSecond, rate / 1e6)]);
        Ok(BareRun { name: "bare replay".to_owned(), is_before, values, latencies: None })
    }
}

fn load_of(kind: Bare, arguments: &RunArguments) -> String {
    let RunArguments { size, durability, cpus, .. } = arguments;
    let counts = (arguments.batch(), arguments.producers(), arguments.in_flight(), arguments.rate());
    format!("{kind:?} {size} {durability:?} {cpus:?} {counts:?}")
}

/// Everything that a run needs.
#[derive(Debug)]
pub(crate) struct Works {
    pub(crate) stage: Stage,
    pub(crate) bares: Bares,
    pub(crate) is_quick: bool,
}

impl Works {
    /// One run of the row.
    pub(crate) fn run(&mut self, spec: &RowSpec, arguments: &RunArguments) -> Result<Parts, Fault> {
        match spec.work {
            RowWork::Replay => self.replay(spec, arguments),
            RowWork::Idle => self.idle(spec, arguments),
            RowWork::Restart => self.restart(spec, arguments),
            _ => self.ordinary(spec, arguments),
        }
    }

    fn ordinary(&mut self, spec: &RowSpec, arguments: &RunArguments) -> Result<Parts, Fault> {
        let before = self.bares.before(spec.bare, arguments)?;
        let room = self.stage.room()?;
        let bytes_max = Some(arguments.bytes_max.unwrap_or(u64::MAX).min(room));
        let bounded = RunArguments { bytes_max, ..arguments.clone() };
        let (address, control) = self.stage.ready(spec.pool)?;
        let rows = run::perform(&bounded, address, control)?;
        let after = self.bares.after(spec.bare, arguments)?;
        let beside = Beside { before, after };
        let run = |row: &Row, is_read: bool| Run::of(row, if is_read { &row.reads } else { &row.acks }, &beside);
        Ok(match (spec.work, rows.as_slice()) {
            (RowWork::E2e, [row]) => vec![("end to end", run(row, true)), ("acks", run(row, false))],
            (RowWork::Mixed, [row]) => vec![("produced", run(row, false)), ("read", run(row, true))],
            (RowWork::Sdk, [write, read]) => vec![("produced", run(write, false)), ("read", run(read, true))],
            (_, rows) => rows.iter().map(|row| ("acks", run(row, false))).collect(),
        })
    }

    /// Writes, starts the broker again, reads cold with acks of another topic beside it, reads once more.
    fn replay(&mut self, spec: &RowSpec, arguments: &RunArguments) -> Result<Parts, Fault> {
        let arguments = self.filling(spec, arguments);
        let topic = format!("loadgen-replay-{}", std::process::id());
        let (address, control) = self.stage.ready(Pool::Growing)?;
        let job = Job::new(&arguments, address, control, &topic)?;
        let written = job.write(None)?;
        let (records, memory) = (written.acks.records, job.leave());
        self.stage.restart()?;
        let (address, control) = self.stage.current()?;
        let job = memory.on(&arguments, address, control, &topic);
        let cpu = arguments.cpus[0];
        let mut bare = self.bare_replay(spec, true, cpu)?;
        let alone = Acks::new(&self.stage, address, cpu)?.for_a_while(arguments.seconds.min(2.0))?;
        let acks = Acks::new(&self.stage, address, cpu)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (first, beside) = thread::scope(|scope| {
            let acking = scope.spawn(|| acks.until(Arc::clone(&stop)));
            let first = job.pass("first pass", records);
            stop.store(true, Ordering::Relaxed);
            (first, acking.join().expect("acks beside a replay do not panic"))
        });
        let (first, beside) = (first?, beside?);
        let second = job.pass("second pass", records)?;
        job.prove(records)?;
        bare.extend(self.bare_replay(spec, false, cpu)?);
        let none = Beside::default();
        let pass = |row: &Row| beside_bare_replay(Run::of(row, &row.reads, &none), row, &bare);
        Ok(vec![
            ("write", Run::of(&written, &written.acks, &none)),
            ("first pass", pass(&first)),
            ("second pass", pass(&second)),
            ("acks alone", Run::of(&alone, &alone.acks, &none)),
            ("acks beside the first pass", Run::of(&beside, &beside.acks, &none)),
        ])
    }

    fn bare_replay(&self, spec: &RowSpec, is_before: bool, cpu: usize) -> Result<Vec<BareRun>, Fault> {
        if spec.bare == Bare::Replay { Ok(vec![self.bares.replay(is_before, cpu)?]) } else { Ok(Vec::new()) }
    }

    fn idle(&mut self, spec: &RowSpec, arguments: &RunArguments) -> Result<Parts, Fault> {
        let (_, control) = self.stage.ready(Pool::Growing)?;
        for topic in 0..spec.topics.unwrap_or(1) {
            let name = format!("idle-{topic}");
            control.create_topic(&name, arguments.partitions(), arguments.durability)?;
        }
        thread::sleep(SETTLE);
        let (before, begun) = (control.usage()?, Instant::now());
        thread::sleep(Duration::from_secs_f64(arguments.seconds));
        let (after, seconds) = (control.usage()?, begun.elapsed().as_secs_f64());
        let cpu_us = after.cpu_us.saturating_sub(before.cpu_us);
        let values = [
            (Metric::CpuPercent, cpu_us as f64 / seconds / 1e4),
            (Metric::RssMib, after.rss_bytes as f64 / f64::from(1 << 20)),
        ];
        Ok(vec![("idle", Run::plain(values, json!({"server_cpu_us": cpu_us, "seconds": seconds})))])
    }

    /// Writes, kills, starts, and has all that was acknowledged counted.
    fn restart(&mut self, spec: &RowSpec, arguments: &RunArguments) -> Result<Parts, Fault> {
        let arguments = self.filling(spec, arguments);
        let topic = format!("loadgen-restart-{}", std::process::id());
        let (address, control) = self.stage.ready(Pool::Growing)?;
        let job = Job::new(&arguments, address, control, &topic)?;
        let written = job.write(None)?;
        let (records, memory) = (written.acks.records, job.leave());
        let start_ms = self.stage.kill_and_start()?;
        let (address, control) = self.stage.current()?;
        let asked = Instant::now();
        memory.on(&arguments, address, control, &topic).prove(records)?;
        let start_ms = start_ms + asked.elapsed().as_secs_f64() * 1e3;
        let counts = json!({"records_acknowledged": records, "records_found": records});
        let written = Run::of(&written, &written.acks, &Beside::default());
        Ok(vec![("start", Run::plain([(Metric::StartMs, start_ms)], counts)), ("write", written)])
    }

    /// The row's work until so many bytes are written as it wants to find.
    fn filling(&self, spec: &RowSpec, arguments: &RunArguments) -> RunArguments {
        let records = Some(spec.bytes(self.is_quick) / u64::from(arguments.size));
        RunArguments { records, bytes_max: None, ..arguments.clone() }
    }

    /// Why the row cannot be run on this disk, if it cannot.
    pub(crate) fn lacks(&self, spec: &RowSpec) -> Result<Option<String>, Fault> {
        if !matches!(spec.work, RowWork::Replay | RowWork::Restart) {
            return Ok(None);
        }
        let (mib, room_mib) = (spec.bytes(self.is_quick) >> 20, self.stage.room()? >> 20);
        let lacks = || format!("it writes {mib} MiB, and half of the free disk is {room_mib} MiB");
        Ok((mib > room_mib).then(lacks))
    }
}

/// What a pass has read each second over what the bare replay has sent.
fn beside_bare_replay(mut run: Run, row: &Row, bare: &[BareRun]) -> Run {
    if bare.is_empty() {
        return run;
    }
    let rates = bare.iter().filter_map(|bare| bare.values.get(&Metric::MbPerSecond));
    let mean = rates.sum::<f64>() / bare.len() as f64;
    let rate = row.read_bytes as f64 / 1e6 / run.seconds;
    run.values.insert(Metric::ThroughputOverBare, rate / mean);
    run.bare.extend(bare.iter().cloned());
    run
}

/// Acks of a topic of its own, one in flight.
struct Acks {
    control: Control,
    address: SocketAddr,
    cpu: usize,
}

impl Acks {
    fn new(stage: &Stage, address: SocketAddr, cpu: usize) -> Result<Self, Fault> {
        Ok(Self { control: stage.control()?, address, cpu })
    }

    fn for_a_while(&self, seconds: f64) -> Result<Row, Fault> {
        let arguments = RunArguments { cpus: vec![self.cpu], ..RunArguments::of(Work::Ack, seconds) };
        let rows = run::perform(&arguments, self.address, &self.control)?;
        rows.into_iter().next().ok_or_else(|| Fault::Broker { detail: "it has acknowledged nothing".to_owned() })
    }

    fn until(&self, stop: Arc<AtomicBool>) -> Result<Row, Fault> {
        let given = RunArguments::of(Work::Ack, 0.0);
        let arguments = RunArguments { cpus: vec![self.cpu], records: Some(u64::MAX >> 1), ..given };
        let topic = format!("loadgen-beside-{}", std::process::id());
        let job = Job::new(&arguments, self.address, &self.control, &topic)?;
        let row = job.write(Some(stop))?;
        self.control.delete_topic(&topic)?;
        Ok(row)
    }
}
