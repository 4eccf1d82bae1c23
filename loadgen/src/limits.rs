//! The limits of this machine as a table: what is measured by `probe`, in what order; knows no broker.

use crate::arguments::ProbeArguments;
use crate::fault::Fault;
use crate::machine;
use crate::probe::{self, Files, Kind, Load, basics};
use crate::tally::Latencies;
use serde_json::{Value, json};

/// One limit.
#[derive(Debug)]
struct Limit {
    name: String,
    value: f64,
    unit: &'static str,
    /// Percentiles in microseconds, where it is a matter of latencies.
    latencies: Option<[f64; 4]>,
}

/// All that were measured.
#[derive(Debug)]
pub(crate) struct Limits {
    limits: Vec<Limit>,
    machine: String,
}

/// Batch, bytes of a record, connections, requests in flight on each.
const BARE: [(u32, u32, u32, u32); 5] =
    [(1_000, 100, 4, 8), (1_000, 1_024, 8, 4), (1, 100, 16, 625), (1, 100, 64, 1), (1, 100, 1, 1)];

/// Measures everything, one after the other.
pub(crate) fn measure(arguments: &ProbeArguments) -> Result<Limits, Fault> {
    let files = Files::new(&arguments.data_dir, probe::FILE_BYTES)?;
    let mut limits = Vec::new();
    let dir = &arguments.data_dir;
    let latency = |name: String, latencies: &Latencies| Limit {
        name,
        value: latencies.percentile_us(50.0),
        unit: "us p50",
        latencies: Some(percentiles(latencies)),
    };
    let rate = |name: String, bytes_per_second: f64| Limit {
        name,
        value: bytes_per_second / 1e9,
        unit: "GB/s",
        latencies: None,
    };
    limits.push(latency("loopback round trip, 100 B".into(), &basics::round_trip(arguments.cpu, 20_000)?));
    limits.push(rate("loopback, 256 KiB pieces".into(), basics::bandwidth(arguments.cpu, 4 << 30)?));
    limits.push(rate("memcpy, 64 MiB".into(), basics::memcpy(64 << 20)));
    limits.push(rate("memcpy, 256 KiB".into(), basics::memcpy(256 << 10)));
    limits.push(rate("CRC-32, 64 KiB".into(), basics::crc()));
    for (bytes, name) in [(4 << 10, "4 KiB"), (64 << 10, "64 KiB"), (1 << 20, "1 MiB")] {
        let latencies = basics::durable_writes(dir, bytes, 500)?;
        limits.push(latency(format!("write + fdatasync, {name}, recycled"), &latencies));
    }
    for slice_bytes in [1 << 20, 256 << 10, 64 << 10] {
        let replayed = probe::replay(&files, slice_bytes, arguments.cpu)?;
        limits.push(rate(format!("bare replay, {} KiB slices", slice_bytes >> 10), replayed));
    }
    for (batch, size, connections, in_flight) in BARE {
        for (kind, syncs) in [(Kind::Loop, true), (Kind::Ring, true), (Kind::Loop, false), (Kind::Ring, false)] {
            let (seconds, cpus) = (arguments.seconds, vec![arguments.cpu]);
            let load = Load { batch, size, connections, in_flight, per_second: None, syncs, seconds, cpus };
            let (outcome, cpu_us) = probe::bare(kind, &load, &files)?;
            let acks = &outcome.acks;
            let durability = if syncs { "fsync" } else { "no sync" };
            let cpu_ns = cpu_us as f64 * 1e3 / acks.records.max(1) as f64;
            limits.push(Limit {
                name: format!(
                    "{}, {connections} x {in_flight} x {batch} x {size} B, {durability}, cpu {cpu_ns:.0} ns/r",
                    kind.name()
                ),
                value: acks.records_per_second() / 1e6,
                unit: "M records/s",
                latencies: Some(percentiles(&acks.latencies)),
            });
        }
    }
    Ok(Limits { limits, machine: machine::describe() })
}

fn percentiles(latencies: &Latencies) -> [f64; 4] {
    let [p50, p99, p999] = [50.0, 99.0, 99.9].map(|percent| latencies.percentile_us(percent));
    [p50, p99, p999, latencies.max_us()]
}

impl Limits {
    pub(crate) fn table(&self) -> String {
        let mut lines = format!(
            "{:<72} {:>9} {:<11} {:>9} {:>9} {:>9} {:>9}",
            "limit", "", "", "p50 us", "p99 us", "p99.9 us", "max us"
        );
        for Limit { name, value, unit, latencies } in &self.limits {
            lines += &format!("\n{name:<72} {value:>9.3} {unit:<11}");
            latencies.iter().flatten().for_each(|latency_us| lines += &format!(" {latency_us:>9.1}"));
        }
        lines + "\n[" + &self.machine + "]"
    }

    pub(crate) fn json(&self) -> Value {
        let limit = |limit: &Limit| {
            let [p50, p99, p999, max] = limit.latencies.map_or([None; 4], |latencies| latencies.map(Some));
            json!({
                "name": limit.name, "value": limit.value, "unit": limit.unit,
                "latency_us": {"p50": p50, "p99": p99, "p99.9": p999, "max": max},
            })
        };
        json!({"machine": self.machine, "limits": self.limits.iter().map(limit).collect::<Vec<_>>()})
    }
}
