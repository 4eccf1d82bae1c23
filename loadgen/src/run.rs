//! One run: topic, threads, statistics before and after, and the proof that nothing is lost; prints nothing.

use crate::arguments::{Durability, RunArguments, Work};
use crate::broker::{self, Broker, Directory};
use crate::control::{Control, Place};
use crate::fault::Fault;
use crate::generator::{Generator, Outcome, Plan};
use crate::lane::{Lane, Target};
use crate::machine;
use crate::probe::{self, Files, Kind, Load};
use crate::reader::{Reader, Source};
use crate::report::{Row, Rows, parameters};
use crate::sdk;
use crate::tally::Window;
use crate::templates::Templates;
use coulee_protocol::ids::ShardId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant;

/// Runs one kind of work.
pub(crate) fn run(arguments: &RunArguments) -> Result<Rows, Fault> {
    let files = match &arguments.data_dir {
        Some(dir) if arguments.bare => Some(Files::new(dir, probe::FILE_BYTES)?),
        _ => None,
    };
    let beside = || files.as_ref().map_or_else(|| Ok(Vec::new()), |files| bare(arguments, &Kind::BOTH, files));
    let mut bare = beside()?;
    let (_directory, broker) = match &arguments.data_dir {
        Some(parent) if arguments.embedded => {
            let directory = Directory::new(parent)?;
            let program = broker::program(arguments.broker.as_deref())?;
            let broker = Broker::start(&program, &directory.path().join("data"), &arguments.settings)?;
            (Some(directory), Some(broker))
        }
        _ => (None, None),
    };
    let address = broker.as_ref().map_or(arguments.address, |broker| broker.address);
    let control = broker.as_ref().map_or_else(|| Control::connect(address), Control::of)?;
    let rows = perform(arguments, address, &control)?;
    bare.extend(beside()?);
    Ok(Rows { rows, bare, machine: machine::describe() })
}

/// Does the work on a topic of its own. The topic of work that failed stays, to be looked at.
pub(crate) fn perform(arguments: &RunArguments, address: SocketAddr, control: &Control) -> Result<Vec<Row>, Fault> {
    let topic = format!("loadgen-{}-{}", arguments.work.name(), std::process::id());
    let job = Job::new(arguments, address, control, &topic)?;
    let rows = match arguments.work {
        Work::Replay => job.replay()?,
        Work::Sdk => job.sdk()?,
        _ => vec![job.write(None)?],
    };
    control.delete_topic(&topic)?;
    Ok(rows)
}

/// Bare servers under the same load.
pub(crate) fn bare(arguments: &RunArguments, kinds: &[Kind], files: &Files) -> Result<Vec<Row>, Fault> {
    let load = Load {
        batch: arguments.batch(),
        size: arguments.size,
        connections: arguments.producers(),
        in_flight: arguments.in_flight(),
        per_second: arguments.rate().map(|rate| rate as f64 / f64::from(arguments.batch())),
        syncs: arguments.durability == Durability::Fsync,
        seconds: arguments.seconds,
        cpus: arguments.cpus.clone(),
    };
    let row = |kind: &Kind| {
        let (outcome, cpu_us) = probe::bare(*kind, &load, files)?;
        Ok(Row::bare(parameters(arguments, 1), kind.name().to_owned(), arguments.size, outcome, cpu_us))
    };
    kinds.iter().map(row).collect()
}

/// A topic, and the broker that it is on.
pub(crate) struct Job<'a> {
    arguments: &'a RunArguments,
    address: SocketAddr,
    control: &'a Control,
    topic: &'a str,
    places: Vec<Place>,
    templates: Arc<Templates>,
}

/// A topic that was left.
#[derive(Debug)]
pub(crate) struct Left {
    places: Vec<Place>,
    templates: Arc<Templates>,
}

impl Left {
    /// The topic on its broker again.
    pub(crate) fn on<'a>(
        self,
        arguments: &'a RunArguments,
        address: SocketAddr,
        control: &'a Control,
        topic: &'a str,
    ) -> Job<'a> {
        Job { arguments, address, control, topic, places: self.places, templates: self.templates }
    }
}

impl<'a> Job<'a> {
    /// Makes the topic.
    pub(crate) fn new(
        arguments: &'a RunArguments,
        address: SocketAddr,
        control: &'a Control,
        topic: &'a str,
    ) -> Result<Self, Fault> {
        let places = control.create_topic(topic, arguments.partitions(), arguments.durability)?;
        let templates = Templates::new(arguments.batch(), arguments.size as usize)
            .map_err(|error| Fault::wire("a batch of our own", error))?;
        Ok(Self { arguments, address, control, topic, places, templates: Arc::new(templates) })
    }

    /// Leaves the topic on its broker, which may be started again.
    pub(crate) fn leave(self) -> Left {
        Left { places: self.places, templates: self.templates }
    }

    /// Producers, and consumers beside them where the work wants them. It ends when `stop` is set, if not before.
    pub(crate) fn write(&self, stop: Option<Arc<AtomicBool>>) -> Result<Row, Fault> {
        let with_readers = matches!(self.arguments.work, Work::E2e | Work::Mixed);
        let plan = Plan { stop, ..self.plan() };
        let start = Instant::now();
        let generators = self.generators(&plan, start, with_readers)?;
        let before = self.control.usage()?;
        let (outcome, read_bytes) = run_threads(generators, &self.arguments.cpus)?;
        let after = self.control.usage()?;
        self.prove(outcome.acks.records)?;
        Ok(Row::new(self.arguments, self.arguments.work.name(), outcome, read_bytes, (&before, &after)))
    }

    /// Whether a consumer could see `records` records, no less and no more.
    pub(crate) fn prove(&self, records: u64) -> Result<(), Fault> {
        let visible = self.control.visible_records(self.topic)?;
        if visible != records {
            let what = "the count of all visible records";
            return Err(Fault::Record { partition: 0, what, expected: records, found: visible });
        }
        Ok(())
    }

    /// Writes, then reads all of it from its start, twice.
    fn replay(&self) -> Result<Vec<Row>, Fault> {
        let mut written = self.write(None)?;
        let records = written.acks.records;
        written.name = "replay: write".to_owned();
        let first = self.pass("replay: first pass", records)?;
        let second = self.pass("replay: second pass", records)?;
        Ok(vec![written, first, second])
    }

    /// One consumer reads `records` records from their start.
    pub(crate) fn pass(&self, name: &str, records: u64) -> Result<Row, Fault> {
        let plan = Plan {
            window: Window { start_ns: 0, end_ns: u64::MAX },
            stop_ns: u64::MAX,
            requests: 0,
            per_second: None,
            records_wanted: records,
            stop: None,
        };
        let sources = self.sources(0..self.places.len());
        let reader = Reader::connect(self.address, self.shard(0), sources, self.arguments.fetch_bytes)?;
        let before = self.control.usage()?;
        let templates = Arc::clone(&self.templates);
        let generator = Generator { lanes: Vec::new(), readers: vec![reader], templates, plan, start: Instant::now() };
        let (outcome, bytes) = run_threads(vec![generator], &self.arguments.cpus)?;
        let after = self.control.usage()?;
        Ok(Row::new(self.arguments, name, outcome, bytes, (&before, &after)))
    }

    /// The Rust client writes, and reads all of it back.
    fn sdk(&self) -> Result<Vec<Row>, Fault> {
        let before = self.control.usage()?;
        let written = sdk::write(self.arguments, self.address, self.topic)?;
        let after = self.control.usage()?;
        let records = written.acks.records;
        self.prove(records)?;
        let written = Row::new(self.arguments, "sdk: produce", written, 0, (&before, &after));
        let before = self.control.usage()?;
        let (read, bytes) = sdk::read(self.arguments, self.address, self.topic, records)?;
        let after = self.control.usage()?;
        Ok(vec![written, Row::new(self.arguments, "sdk: consume", read, bytes, (&before, &after))])
    }

    /// What each thread is to do.
    fn plan(&self) -> Plan {
        let arguments = self.arguments;
        let threads = arguments.cpus.len() as u64;
        let batch = u64::from(arguments.batch());
        let shared = |records: u64| records.div_ceil(batch).div_ceil(threads);
        let (window, requests) = match arguments.records {
            Some(records) => (Window { start_ns: 0, end_ns: u64::MAX }, shared(records)),
            None => {
                let records_max = arguments.bytes_max.map(|bytes| bytes / u64::from(arguments.size));
                (measured(arguments.seconds), records_max.map_or(u64::MAX, shared))
            }
        };
        let per_second = arguments.rate().map(|rate| rate as f64 / batch as f64 / threads as f64);
        Plan { window, stop_ns: window.end_ns, requests, per_second, records_wanted: 0, stop: None }
    }

    /// One for each CPU, the producers dealt out to them in turn.
    fn generators(&self, plan: &Plan, start: Instant, with_readers: bool) -> Result<Vec<Generator>, Fault> {
        let producers = self.arguments.producers() as usize;
        let threads = self.arguments.cpus.len();
        let mut generators: Vec<Generator> = (0..threads)
            .map(|_| Generator {
                lanes: Vec::new(),
                readers: Vec::new(),
                templates: Arc::clone(&self.templates),
                plan: plan.clone(),
                start,
            })
            .collect();
        for producer in 0..producers {
            let own = written_by(producer, producers, self.places.len());
            let is_own = self.is_own();
            let target = |at: &usize| Target::new(self.places[*at].uid, is_own, with_readers);
            let targets = own.iter().map(target).collect();
            let shard = self.shard(own[0]);
            let batch_bytes = self.templates.batch_bytes();
            let lane = Lane::connect(self.address, Some(shard), targets, self.arguments.in_flight(), batch_bytes)?;
            let generator = &mut generators[producer % threads];
            generator.lanes.push(lane);
            if with_readers {
                let sources = self.sources(own);
                generator.readers.push(Reader::connect(self.address, shard, sources, self.arguments.fetch_bytes)?);
            }
        }
        generators.retain(|generator| !generator.lanes.is_empty());
        Ok(generators)
    }

    fn sources(&self, places: impl IntoIterator<Item = usize>) -> Vec<Source> {
        let source = |at: usize| Source { uid: self.places[at].uid, is_own: self.is_own(), next: 0 };
        places.into_iter().map(source).collect()
    }

    fn shard(&self, place: usize) -> ShardId {
        ShardId(self.places[place].shard)
    }

    /// Whether each partition has one producer.
    fn is_own(&self) -> bool {
        self.places.len() >= self.arguments.producers() as usize
    }
}

/// A tenth of the time warms up.
pub(crate) fn measured(seconds: f64) -> Window {
    let start_ns = (seconds * 1e8) as u64;
    Window { start_ns, end_ns: start_ns + (seconds * 1e9) as u64 }
}

/// The partitions that a producer writes: every one that is its own where there are enough, else one that it shares.
fn written_by(producer: usize, producers: usize, partitions: usize) -> Vec<usize> {
    if partitions >= producers {
        (producer..partitions).step_by(producers).collect()
    } else {
        vec![producer % partitions]
    }
}

/// Runs each on its CPU; what came of all of them, and the bytes that readers have checked.
pub(crate) fn run_threads(generators: Vec<Generator>, cpus: &[usize]) -> Result<(Outcome, u64), Fault> {
    let work = |(mut generator, cpu): (Generator, usize)| {
        machine::pin(cpu)?;
        let outcome = generator.run()?;
        let bytes: u64 = generator.readers.iter().map(|reader| reader.bytes).sum();
        Ok((outcome, bytes))
    };
    let threads: Vec<_> =
        generators.into_iter().zip(cpus.iter().copied()).map(|pair| thread::spawn(move || work(pair))).collect();
    let mut sum: Option<(Outcome, u64)> = None;
    for thread in threads {
        let (outcome, bytes) = thread.join().expect("a generator does not panic")?;
        sum = Some(match sum {
            None => (outcome, bytes),
            Some((mut all, all_bytes)) => {
                all.acks.add(&outcome.acks);
                all.reads.add(&outcome.reads);
                (all, all_bytes + bytes)
            }
        });
    }
    Ok(sum.expect("there is at least one cpu and one producer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_is_written_by_one_producer_where_there_are_enough() {
        let all: Vec<Vec<usize>> = (0..3).map(|producer| written_by(producer, 3, 7)).collect();
        assert_eq!(all, [vec![0, 3, 6], vec![1, 4], vec![2, 5]]);
        let shared: Vec<Vec<usize>> = (0..3).map(|producer| written_by(producer, 3, 2)).collect();
        assert_eq!(shared, [vec![0], vec![1], vec![0]]);
    }

    #[test]
    fn a_tenth_of_the_time_warms_up() {
        assert_eq!(measured(5.0), Window { start_ns: 500_000_000, end_ns: 5_500_000_000 });
    }
}
