//! Coulee's own round, by the very ways of `coulee-loadgen run`; knows no peer.

use super::contestant::Place;
use super::drive::on_cpu;
use super::peer::{Cost, Figures, Round, Work, passes};
use crate::arguments::{Durability, RunArguments, Work as Kind};
use crate::broker::Broker;
use crate::control::Control;
use crate::fault::Fault;
use crate::probe::SERVER_CPU;
use crate::run::Job;
use std::path::Path;

/// Producers of batches, and batches that each keeps in flight: as in the first row of the target numbers.
const PRODUCERS: u32 = 4;
const BATCHES_IN_FLIGHT: u32 = 8;

/// One round with batches of so many records, or with single ones. Only those have an ack of their own.
pub(super) fn round(
    place: &Place,
    directory: &Path,
    durability: Durability,
    batch: Option<u32>,
    work: &Work,
) -> Result<Round, Fault> {
    let (broker, address) = match place {
        Place::Address(address) => (None, *address),
        // As of every peer, all threads of the broker stay on core 0.
        Place::Program(program) => {
            let broker = on_cpu(SERVER_CPU, || Broker::start(program, &directory.join("data"), &[]))?;
            let address = broker.address;
            (Some(broker), address)
        }
    };
    let control = broker.as_ref().map_or_else(|| Control::connect(address), Control::of)?;
    let process = broker.as_ref().map(Broker::id);
    let common = RunArguments {
        size: work.size,
        durability,
        cpus: vec![work.cpu],
        ..RunArguments::of(Kind::Produce, work.seconds)
    };
    let topic = |what| format!("loadgen-compare-{what}-{}", std::process::id());
    let bulk = RunArguments {
        batch: Some(batch.unwrap_or(1)),
        producers: Some(if batch.is_some() { PRODUCERS } else { work.connections }),
        in_flight: Some(if batch.is_some() { BATCHES_IN_FLIGHT } else { work.in_flight }),
        bytes_max: Some(work.records_max.saturating_mul(u64::from(work.size))),
        ..common.clone()
    };
    let name = topic("bulk");
    let job = Job::new(&bulk, address, &control, &name)?;
    let before_us = Cost::before(process)?;
    let written = job.write(None)?.acks;
    let cost = Cost::since(process, before_us, written.records)?;
    let replay = passes(work.seconds, || Ok(job.pass("replay", written.records)?.reads))?;
    control.delete_topic(&name)?;
    let ack = if batch.is_some() { None } else { Some(ack(&common, address, &control, &topic("ack"))?) };
    Ok(Round { bulk: Figures::of(&written), cost, replay, ack })
}

/// One record in flight.
fn ack(common: &RunArguments, address: std::net::SocketAddr, control: &Control, topic: &str) -> Result<Figures, Fault> {
    let alone = RunArguments { work: Kind::Ack, ..common.clone() };
    let acks = Job::new(&alone, address, control, topic)?.write(None)?.acks;
    control.delete_topic(topic)?;
    Ok(Figures::of(&acks))
}
