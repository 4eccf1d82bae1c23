//! What is told of a comparison: a table with its ratios, or JSON; measures nothing.

use super::contestant::{Contestant, Place, Promise};
use super::peer::{Figures, Round};
use super::server;
use super::{Comparison, Row};
use crate::report::median;
use serde_json::{Value, json};

/// The width of the first column.
const NAME: usize = 38;

/// A figure of a round, where it has one.
type Figure = fn(&Round) -> Option<f64>;

/// Figures by their name in JSON: those of which more is better, then those of which less is.
const RATES: [(&str, Figure); 2] =
    [("produce", |round| Some(round.bulk.per_second)), ("replay", |round| Some(round.replay.per_second))];
const LATENCIES: [(&str, Figure); 2] =
    [("ack_p50", |round| Some(round.ack?.p50_us)), ("ack_p99", |round| Some(round.ack?.p99_us))];

impl Row {
    /// The median of a figure over all rounds.
    fn median(&self, figure: Figure) -> Option<f64> {
        let values: Vec<f64> = self.rounds.iter().filter_map(figure).collect();
        if values.is_empty() { None } else { Some(median(values)) }
    }

    fn is_coulee(&self) -> bool {
        self.contestant.coulee_batch().is_some()
    }
}

/// How many times as fast as a peer Coulee is.
#[derive(Debug)]
struct Ratios<'a> {
    peer: &'a Contestant,
    against: &'a Contestant,
    values: Vec<(&'static str, f64)>,
}

/// Coulee with batches and with singles against each peer, where both promise the same. A peer that promises less than
/// any mode of Coulee, or tells nothing, stands against the weakest.
fn ratios(rows: &[Row]) -> Vec<Ratios<'_>> {
    let mut found = Vec::new();
    for peer in rows.iter().filter(|row| !row.is_coulee()) {
        let promise = if peer.contestant.promise == Promise::Disk { Promise::Disk } else { Promise::PageCache };
        for own in rows.iter().filter(|row| row.is_coulee() && row.contestant.promise == promise) {
            let ratio = |(name, figure, is_rate): (&'static str, Figure, bool)| {
                let quotient = |(own, peer): (&Round, &Round)| {
                    let (own, peer) = (figure(own)?, figure(peer)?);
                    let quotient = if is_rate { own / peer } else { peer / own };
                    quotient.is_finite().then_some(quotient)
                };
                let quotients: Vec<f64> = own.rounds.iter().zip(&peer.rounds).filter_map(quotient).collect();
                if quotients.is_empty() { None } else { Some((name, median(quotients))) }
            };
            let rates = RATES.iter().map(|(name, figure)| (*name, *figure, true));
            let latencies = LATENCIES.iter().map(|(name, figure)| (*name, *figure, false));
            let values: Vec<_> = rates.chain(latencies).filter_map(ratio).collect();
            found.push(Ratios { peer: &peer.contestant, against: &own.contestant, values });
        }
    }
    found
}

fn cell(value: Option<f64>, width: usize, decimals: usize) -> String {
    value.map_or_else(|| format!(" {:>width$}", "-"), |value| format!(" {value:>width$.decimals$}"))
}

/// The table: figures, ratios, who was absent, then versions, settings and the load.
pub(super) fn table(comparison: &Comparison<'_>) -> String {
    let mut text = format!(
        "{:<NAME$} {:<10} {:>11} {:>9} {:>8} {:>11} {:>10} {:>10}",
        "", "ack means", "produce k/s", "cpu us/r", "rss MiB", "replay M/s", "ack p50 us", "ack p99 us"
    );
    for row in &comparison.rows {
        text += &format!("\n{:<NAME$} {:<10}", row.contestant.name, row.contestant.promise.name());
        text += &cell(row.median(|round| Some(round.bulk.per_second / 1e3)), 11, 1);
        text += &cell(row.median(|round| Some(round.cost?.cpu_us_per_record)), 9, 2);
        text += &cell(row.median(|round| Some(round.cost?.rss_bytes as f64 / f64::from(1 << 20))), 8, 0);
        text += &cell(row.median(|round| Some(round.replay.per_second / 1e6)), 11, 2);
        text += &cell(row.median(|round| Some(round.ack?.p50_us)), 10, 0);
        text += &cell(row.median(|round| Some(round.ack?.p99_us)), 10, 0);
        if let Some(fault) = &row.fault {
            text += &format!("\n    failed: {fault}");
        }
    }
    text += "\n\nCoulee is so many times as fast (rates: Coulee / peer, latencies: peer / Coulee):";
    text += &format!("\n{:<NAME$} {:<34}", "", "");
    for (name, _) in RATES.iter().chain(&LATENCIES) {
        text += &format!(" {name:>8}");
    }
    for Ratios { peer, against, values } in ratios(&comparison.rows) {
        text += &format!("\n{:<NAME$} {:<34}", peer.name, against.name);
        for (name, _) in RATES.iter().chain(&LATENCIES) {
            let value = values.iter().find(|(found, _)| found == name).map(|(_, value)| *value);
            text += &cell(value, 8, 2);
        }
    }
    text += "\n";
    for (name, reason) in &comparison.absent {
        text += &format!("\n{name}: {reason}");
    }
    for Row { contestant, .. } in &comparison.rows {
        text += &format!("\n{}: {}; {}", contestant.name, contestant.version, contestant.settings);
    }
    text + &format!("\n{}", load(comparison))
}

fn load(comparison: &Comparison<'_>) -> String {
    let work = &comparison.work;
    format!(
        "medians of {} rounds of {} s, {} B records; singles and peers: {} connections x {} in flight, a log each; \
         {}, generator on core {}  [{}]",
        comparison.arguments.rounds,
        work.seconds,
        work.size,
        work.connections,
        work.in_flight,
        server::place(),
        work.cpu,
        comparison.machine
    )
}

pub(super) fn json(comparison: &Comparison<'_>) -> Value {
    let command: Vec<String> = std::env::args().collect();
    let work = &comparison.work;
    let absent = |(name, reason): &(String, String)| json!({"name": name, "reason": reason});
    let ratio = |ratios: &Ratios<'_>| {
        let values: serde_json::Map<_, _> =
            ratios.values.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({"peer": ratios.peer.name, "coulee": ratios.against.name, "times_as_fast": values})
    };
    json!({
        "machine": comparison.machine,
        "command": command.join(" "),
        "rounds": comparison.arguments.rounds,
        "seconds": work.seconds,
        "size": work.size,
        "connections": work.connections,
        "in_flight": work.in_flight,
        "records_max": work.records_max,
        "rows": comparison.rows.iter().map(row).collect::<Vec<_>>(),
        "ratios": ratios(&comparison.rows).iter().map(ratio).collect::<Vec<_>>(),
        "absent": comparison.absent.iter().map(absent).collect::<Vec<_>>(),
    })
}

fn row(row: &Row) -> Value {
    let contestant = &row.contestant;
    let place = match &contestant.place {
        Place::Program(program) => program.display().to_string(),
        Place::Address(address) => address.to_string(),
    };
    let medians: serde_json::Map<_, _> =
        RATES.iter().chain(&LATENCIES).map(|(name, figure)| ((*name).to_owned(), json!(row.median(*figure)))).collect();
    json!({
        "name": contestant.name,
        "version": contestant.version,
        "settings": contestant.settings,
        "server": place,
        "ack_means": contestant.promise.name(),
        "batch": contestant.coulee_batch().unwrap_or(1),
        "median": medians,
        "rounds": row.rounds.iter().map(round).collect::<Vec<_>>(),
        "fault": row.fault,
    })
}

fn round(round: &Round) -> Value {
    let written = |figures: &Figures| {
        json!({
            "records_acknowledged": figures.records, "records_per_second": figures.per_second,
            "latency_us": {"p50": figures.p50_us, "p99": figures.p99_us},
        })
    };
    json!({
        "produce": written(&round.bulk),
        "replay": {"records_verified": round.replay.records, "records_per_second": round.replay.per_second},
        "ack": round.ack.as_ref().map(written),
        "server_cpu_us_per_record": round.cost.map(|cost| cost.cpu_us_per_record),
        "rss_bytes": round.cost.map(|cost| cost.rss_bytes),
    })
}
