//! One round against a peer: writing in bulk, reading it back, one record in flight; knows no protocol of them.

use super::drive::{self, Link, Load, Talk};
use super::values::Values;
use crate::arguments::CompareArguments;
use crate::broker::usage_of;
use crate::fault::Fault;
use crate::run::measured;
use crate::tally::Tally;
use std::time::{Duration, Instant};

/// One log of a peer: a stream, which one connection writes.
#[derive(Clone, Debug)]
pub(super) struct Log {
    pub(super) name: String,
    pub(super) place: u64,
    /// Records that it holds.
    pub(super) records: u64,
}

/// What has to be known of a peer's protocol.
pub(super) trait Protocol {
    type Writer: Talk;
    type Reader: Talk;

    fn create(&mut self, log: &Log) -> Result<(), Fault>;
    fn writer(&mut self, log: &Log, values: &Values) -> Result<Link<Self::Writer>, Fault>;
    fn reader(&mut self, log: &Log) -> Result<Link<Self::Reader>, Fault>;
    /// Records that the peer says the log holds.
    fn count(&mut self, log: &Log) -> Result<u64, Fault>;
    fn delete(&mut self, log: &Log) -> Result<(), Fault>;
}

/// What is done in a round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) seconds: f64,
    pub(super) size: u32,
    pub(super) connections: u32,
    pub(super) in_flight: u32,
    /// Records that are written in bulk, at most.
    pub(super) records_max: u64,
    pub(super) cpu: usize,
}

impl Work {
    pub(super) fn new(arguments: &CompareArguments, bytes_max: u64) -> Self {
        Self {
            seconds: arguments.seconds,
            size: arguments.size,
            connections: arguments.connections,
            in_flight: arguments.in_flight,
            records_max: (bytes_max / u64::from(arguments.size)).max(1),
            cpu: arguments.cpu,
        }
    }
}

/// What came of one direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figures {
    pub(super) records: u64,
    pub(super) per_second: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

impl Figures {
    pub(super) fn of(tally: &Tally) -> Self {
        Self {
            records: tally.records,
            per_second: tally.records_per_second(),
            p50_us: tally.latencies.percentile_us(50.0),
            p99_us: tally.latencies.percentile_us(99.0),
        }
    }
}

/// CPU time for each record and resident memory behind the bulk, of a server whose process is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cost {
    pub(super) cpu_us_per_record: f64,
    pub(super) rss_bytes: u64,
}

impl Cost {
    /// What `records` have cost a process since it had used `before_us`.
    pub(super) fn since(process: Option<u32>, before_us: u64, records: u64) -> Result<Option<Self>, Fault> {
        let Some(process) = process else { return Ok(None) };
        let (cpu_us, rss_bytes) = usage_of(process)?;
        Ok(Some(Self { cpu_us_per_record: (cpu_us - before_us) as f64 / records.max(1) as f64, rss_bytes }))
    }

    /// CPU time that a process has used.
    pub(super) fn before(process: Option<u32>) -> Result<u64, Fault> {
        process.map_or(Ok(0), |process| usage_of(process).map(|(cpu_us, _)| cpu_us))
    }
}

/// All of a round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Round {
    pub(super) bulk: Figures,
    pub(super) cost: Option<Cost>,
    pub(super) replay: Figures,
    /// One record in flight; batches have none.
    pub(super) ack: Option<Figures>,
}

/// Does the work on logs of its own, which are gone afterwards. Those of work that failed stay, to be looked at.
pub(super) fn round<P: Protocol>(peer: &mut P, process: Option<u32>, work: &Work) -> Result<Round, Fault> {
    let values = Values::new(work.size as usize);
    let log = |place| Log { name: format!("coulee-loadgen-{}-{place}", std::process::id()), place, records: 0 };
    let mut logs: Vec<Log> = (0..u64::from(work.connections)).map(log).collect();
    let before_us = Cost::before(process)?;
    let written = write(peer, &mut logs, work.in_flight as usize, work, &values)?;
    let cost = Cost::since(process, before_us, written.records)?;
    let replay = replay(peer, &logs, work, &values)?;
    let mut alone = vec![log(u64::from(work.connections))];
    let acks = write(peer, &mut alone, 1, work, &values)?;
    logs.extend(alone);
    logs.iter().try_for_each(|log| peer.delete(log))?;
    Ok(Round { bulk: Figures::of(&written), cost, replay, ack: Some(Figures::of(&acks)) })
}

/// Writes, and compares what was acknowledged with what the peer says it holds.
fn write<P: Protocol>(
    peer: &mut P,
    logs: &mut [Log],
    in_flight: usize,
    work: &Work,
    values: &Values,
) -> Result<Tally, Fault> {
    logs.iter().try_for_each(|log| peer.create(log))?;
    let links = logs.iter().map(|log| peer.writer(log, values)).collect::<Result<Vec<_>, _>>()?;
    let load = Load { in_flight, window: measured(work.seconds), records_max: work.records_max };
    let tally = drive::write(links, load, values, work.cpu)?;
    for log in &mut *logs {
        log.records = peer.count(log)?;
    }
    let found = logs.iter().map(|log| log.records).sum();
    if found != tally.records {
        let what = "the count of all records that the peer holds";
        return Err(Fault::Record { partition: 0, what, expected: tally.records, found });
    }
    Ok(tally)
}

/// Reads everything from its start, again until there is enough to be measured.
fn replay<P: Protocol>(peer: &mut P, logs: &[Log], work: &Work, values: &Values) -> Result<Figures, Fault> {
    let wanted = logs.iter().map(|log| log.records).sum();
    passes(work.seconds, || {
        let written = logs.iter().filter(|log| log.records > 0);
        let links = { written }.map(|log| peer.reader(log)).collect::<Result<Vec<_>, _>>()?;
        drive::read(links, wanted, values, work.cpu)
    })
}

/// Passes of a replay until half of the time is over, and at least one.
pub(super) fn passes(seconds: f64, mut pass: impl FnMut() -> Result<Tally, Fault>) -> Result<Figures, Fault> {
    let (begun, enough) = (Instant::now(), Duration::from_secs_f64(seconds / 2.0));
    let (mut records, mut read_seconds) = (0, 0.0);
    while records == 0 || begun.elapsed() < enough {
        let tally = pass()?;
        if tally.records == 0 {
            return Err(Fault::Peer { peer: "replay", detail: "nothing was written that could be read".to_owned() });
        }
        records += tally.records;
        read_seconds += tally.seconds();
    }
    Ok(Figures { records, per_second: records as f64 / f64::max(read_seconds, 1e-9), p50_us: 0.0, p99_us: 0.0 })
}
