//! Flags of the command line and what they mean together; runs nothing.

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Measures a Coulee broker, and the machine's own limits beside it.
#[derive(Debug, Parser)]
#[command(name = "coulee-loadgen", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Puts one kind of work on a broker and measures it.
    Run(Box<RunArguments>),
    /// Measures the limits of this machine, now.
    Probe(ProbeArguments),
    /// Puts the same work on Coulee and on installed peers in turn, and says how they stand to each other.
    Compare(CompareArguments),
    /// Holds a broker against target numbers, row by row, beside bare servers, and writes a report.
    Suite(SuiteArguments),
}

/// The kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Work {
    /// Producers that keep requests in flight.
    Produce,
    /// One record in flight: how long an ack takes.
    Ack,
    /// A log is written, then read from its start, twice.
    Replay,
    /// How long a record takes from producer to consumer.
    E2e,
    /// Writing and reading at once.
    Mixed,
    /// Many partitions, all written.
    Partitions,
    /// The Rust client writes and reads, as an application would.
    Sdk,
}

impl Work {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Produce => "produce",
            Self::Ack => "ack",
            Self::Replay => "replay",
            Self::E2e => "e2e",
            Self::Mixed => "mixed",
            Self::Partitions => "partitions",
            Self::Sdk => "sdk",
        }
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// A table for people.
    Table,
    /// One JSON object.
    Json,
}

/// What an ack is to mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Durability {
    /// It survives power loss.
    Fsync,
    /// It survives a crash of the system.
    Written,
}

impl Durability {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::Written => "written",
        }
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RunArguments {
    /// What is done.
    pub(crate) work: Work,
    /// How long is measured, in seconds; a tenth of it before that is not.
    #[arg(long, value_name = "S", default_value_t = 5.0, conflicts_with = "records")]
    pub(crate) seconds: f64,
    /// Sends so many records instead.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) records: Option<u64>,
    /// Stops sooner, once values of so many bytes are sent.
    #[arg(long, value_name = "B", conflicts_with = "records")]
    pub(crate) bytes_max: Option<u64>,
    /// Bytes of a record's value.
    #[arg(long, value_name = "B", default_value_t = 100, value_parser = clap::value_parser!(u32).range(16..=4_194_304))]
    pub(crate) size: u32,
    /// Records in a request; 1 is a single.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) batch: Option<u32>,
    /// Connections that produce.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) producers: Option<u32>,
    /// Partitions that they write; each has its own by default.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) partitions: Option<u32>,
    /// Requests in flight on each connection.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub(crate) in_flight: Option<u32>,
    /// Records a second on a schedule: latencies count from the time that each was to be sent.
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// What an ack is to mean.
    #[arg(long, value_enum, default_value = "fsync")]
    pub(crate) durability: Durability,
    /// The CPUs that generators run on, one thread each.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1")]
    pub(crate) cpus: Vec<usize>,
    /// Bytes that a fetch asks for.
    #[arg(long, value_name = "B", default_value_t = 4 << 20)]
    pub(crate) fetch_bytes: u32,
    /// The broker.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7700", conflicts_with = "embedded")]
    pub(crate) address: SocketAddr,
    /// Starts the `coulee` that lies beside this program, on core 0.
    #[arg(long, requires = "data_dir")]
    pub(crate) embedded: bool,
    /// Where a started broker keeps its data, in a directory of its own that is removed afterwards.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Settings of a started broker, as for `coulee serve --set`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
    /// Measures the bare loop and the bare ring under the same load, before and after; files of 2 GiB in --data-dir.
    #[arg(long, requires = "data_dir")]
    pub(crate) bare: bool,
    /// The program that --embedded starts, instead of the `coulee` that lies beside this one.
    #[arg(long, value_name = "PATH", requires = "embedded")]
    pub(crate) broker: Option<PathBuf>,
    /// How the result is printed.
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ProbeArguments {
    /// Where files of 2 GiB are made, on the device that is to be measured. They are removed afterwards.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// How long each bare server is measured, in seconds.
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    pub(crate) seconds: f64,
    /// The CPU of the generator; servers run on core 0.
    #[arg(long, value_name = "CPU", default_value_t = 1)]
    pub(crate) cpu: usize,
    /// How the result is printed.
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

/// What Coulee can be compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerName {
    /// Redis Streams, appendfsync always and everysec.
    Redis,
    /// NATS JetStream, sync always and as it is by default.
    Nats,
}

impl PeerName {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Nats => "nats",
        }
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct CompareArguments {
    /// The peers. Their servers are found on PATH and started on core 0, in every mode of theirs.
    #[arg(long, value_enum, value_name = "PEERS", value_delimiter = ',', default_value = "redis,nats")]
    pub(crate) with: Vec<PeerName>,
    /// How often everybody has their turn; the figures are medians.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) rounds: u32,
    /// How long each kind of work is measured, in seconds; a tenth of it before that is not.
    #[arg(long, value_name = "S", default_value_t = 3.0, value_parser = positive_seconds)]
    pub(crate) seconds: f64,
    /// Bytes of a record's value.
    #[arg(long, value_name = "B", default_value_t = 100, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    pub(crate) size: u32,
    /// Connections that write single records, each into a log of its own.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) connections: u32,
    /// Single records that each of them keeps in flight.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub(crate) in_flight: u32,
    /// Where servers keep their data, each in a directory of its own that is removed afterwards.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) data_dir: PathBuf,
    /// The CPU of the generator; servers run on core 0.
    #[arg(long, value_name = "CPU", default_value_t = 1)]
    pub(crate) cpu: usize,
    /// The broker's program, instead of the `coulee` that lies beside this one.
    #[arg(long, value_name = "PATH")]
    pub(crate) broker: Option<PathBuf>,
    /// A running broker instead of a started one.
    #[arg(long, value_name = "IP:PORT", conflicts_with = "broker")]
    pub(crate) address: Option<SocketAddr>,
    /// A running Redis instead of started ones, in the mode that it is in.
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) redis_address: Option<SocketAddr>,
    /// A running NATS server with JetStream instead of started ones, in the mode that it is in.
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) nats_address: Option<SocketAddr>,
    /// How the result is printed.
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

/// A stretch of time that can be measured.
fn positive_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    if seconds > 0.0 && seconds <= 86_400.0 { Ok(seconds) } else { Err("from above 0 to 86400".to_owned()) }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct SuiteArguments {
    /// Rows, parameters and target numbers, instead of those built in (loadgen/targets.toml).
    #[arg(long, value_name = "FILE")]
    pub(crate) targets: Option<PathBuf>,
    /// Where report.html, report.json and the latency logs go.
    #[arg(long, value_name = "DIR", default_value = "coulee-suite")]
    pub(crate) out: PathBuf,
    /// One short run of each row, within a minute.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Where brokers keep their data, in a directory of its own that is removed afterwards: on the device that is to be
    /// measured. By default in --out.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The broker's program, instead of the `coulee` that lies beside this one.
    #[arg(long, value_name = "PATH")]
    pub(crate) broker: Option<PathBuf>,
    /// Rows that are run, by their ids; all by default.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub(crate) rows: Vec<String>,
}

impl RunArguments {
    /// This work with everything else as it is when nothing is said; the broker is none's business here.
    pub(crate) fn of(work: Work, seconds: f64) -> Self {
        Self {
            work,
            seconds,
            records: None,
            bytes_max: None,
            size: 100,
            batch: None,
            producers: None,
            partitions: None,
            in_flight: None,
            rate: None,
            durability: Durability::Fsync,
            cpus: vec![1],
            fetch_bytes: 4 << 20,
            address: SocketAddr::from(([127, 0, 0, 1], 7_700)),
            embedded: false,
            data_dir: None,
            settings: Vec::new(),
            bare: false,
            broker: None,
            output: Output::Table,
        }
    }

    /// Records in a request.
    pub(crate) fn batch(&self) -> u32 {
        self.batch.unwrap_or_else(|| match self.work {
            Work::Ack | Work::E2e => 1,
            Work::Produce | Work::Replay | Work::Mixed | Work::Partitions | Work::Sdk => {
                1_000.min((1 << 20) / (self.size + 8)).max(1)
            }
        })
    }

    /// Connections that produce.
    pub(crate) fn producers(&self) -> u32 {
        self.producers.unwrap_or(match self.work {
            Work::Ack | Work::E2e | Work::Replay | Work::Sdk => 1,
            Work::Produce | Work::Mixed | Work::Partitions => 4,
        })
    }

    /// Partitions that are written.
    pub(crate) fn partitions(&self) -> u32 {
        self.partitions.unwrap_or_else(|| match self.work {
            Work::Partitions => 1_000,
            _ => self.producers(),
        })
    }

    /// Requests in flight on each connection.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.unwrap_or_else(|| match self.work {
            Work::Ack => 1,
            Work::E2e => 1_024,
            _ if self.batch() == 1 => 1_024,
            Work::Produce | Work::Replay | Work::Mixed | Work::Sdk => 8,
            Work::Partitions => 32,
        })
    }

    /// Records a second, where there is a schedule.
    pub(crate) fn rate(&self) -> Option<u64> {
        self.rate.or_else(|| (self.work == Work::E2e).then_some(1_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> RunArguments {
        match Arguments::try_parse_from(line.split(' ')).unwrap().command {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_kind_of_work_has_defaults_that_make_sense_for_it() {
        let produce = parse("coulee-loadgen run produce");
        assert_eq!((produce.batch(), produce.producers(), produce.partitions(), produce.in_flight()), (1_000, 4, 4, 8));
        let ack = parse("coulee-loadgen run ack");
        assert_eq!((ack.batch(), ack.producers(), ack.in_flight(), ack.rate()), (1, 1, 1, None));
        assert_eq!(parse("coulee-loadgen run e2e").rate(), Some(1_000));
        assert_eq!(parse("coulee-loadgen run partitions --producers 2").partitions(), 1_000);
    }

    #[test]
    fn a_batch_of_large_records_stays_below_what_a_topic_takes() {
        assert_eq!(parse("coulee-loadgen run produce --size 1024").batch(), 1_000);
        assert_eq!(parse("coulee-loadgen run produce --size 1000000").batch(), 1);
    }

    #[test]
    fn a_started_broker_needs_a_place_for_its_data() {
        let line = "coulee-loadgen run ack --embedded";
        assert!(Arguments::try_parse_from(line.split(' ')).is_err());
    }
}
