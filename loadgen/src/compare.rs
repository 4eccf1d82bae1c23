//! The comparison: Coulee and its peers in turn under the same work, and how they stand to each other; knows no
//! protocol.
//!
//! A round gives everybody one turn on a server of its own, and each round begins with another one, so that what the
//! machine does meanwhile meets all of them. Ratios are taken within a round; the figures told are medians.

use crate::arguments::{CompareArguments, Output};
use crate::broker::Directory;
use crate::fault::Fault;
use crate::machine;
use contestant::{Contestant, Field};
use peer::{Round, Work};
use std::fs;
use std::path::Path;
use std::process::ExitCode;

mod contestant;
mod coulee;
mod drive;
mod nats;
mod peer;
mod redis;
mod server;
mod told;
mod values;

/// What one bulk writes at most, and the share of the free disk that it may take.
const BULK_BYTES_MAX: u64 = 4 << 30;
const DISK_SHARE: u64 = 8;

/// What came of one contestant.
#[derive(Debug)]
struct Row {
    contestant: Contestant,
    rounds: Vec<Round>,
    /// Why it has no more rounds.
    fault: Option<String>,
}

/// A comparison that has ended.
#[derive(Debug)]
struct Comparison<'a> {
    arguments: &'a CompareArguments,
    work: Work,
    rows: Vec<Row>,
    /// Who could not be run, and why.
    absent: Vec<(String, String)>,
    machine: String,
}

/// Compares, prints, and says how it ended.
pub(crate) fn run(arguments: &CompareArguments) -> Result<ExitCode, Fault> {
    let field = Field::gather(arguments)?;
    for (name, reason) in &field.absent {
        eprintln!("{name}: {reason}");
    }
    if field.peers == 0 {
        eprintln!("error: there is nobody to compare with");
        return Ok(ExitCode::FAILURE);
    }
    let is_incomplete = field.has_failed;
    let comparison = measure(arguments, field)?;
    match arguments.output {
        Output::Json => println!("{:#}", told::json(&comparison)),
        Output::Table => println!("{}", told::table(&comparison)),
    }
    let has_failed = is_incomplete || comparison.rows.iter().any(|row| row.fault.is_some());
    Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// All rounds; a contestant that fails keeps no other from its turn.
fn measure(arguments: &CompareArguments, field: Field) -> Result<Comparison<'_>, Fault> {
    fs::create_dir_all(&arguments.data_dir).map_err(Fault::machine("a data directory"))?;
    // Servers may run elsewhere than here, so they are told the whole path.
    let parent = fs::canonicalize(&arguments.data_dir).map_err(Fault::machine("a data directory"))?;
    let directory = Directory::new(&parent)?;
    let bytes_max = BULK_BYTES_MAX.min(machine::free_bytes(directory.path())? / DISK_SHARE);
    let work = Work::new(arguments, bytes_max);
    let row = |contestant| Row { contestant, rounds: Vec::new(), fault: None };
    let mut rows: Vec<Row> = field.contestants.into_iter().map(row).collect();
    let count = rows.len();
    for round in 0..arguments.rounds as usize {
        for turn in 0..count {
            let row = &mut rows[(round + turn) % count];
            if row.fault.is_some() {
                continue;
            }
            eprintln!("round {} of {}: {}", round + 1, arguments.rounds, row.contestant.name);
            match in_turn(&row.contestant, directory.path(), &work) {
                Ok(round) => row.rounds.push(round),
                Err(fault) => {
                    eprintln!("error: {}: {fault}", row.contestant.name);
                    row.fault = Some(fault.to_string());
                }
            }
        }
    }
    Ok(Comparison { arguments, work, rows, absent: field.absent, machine: machine::describe() })
}

/// One turn in an empty directory, which is gone afterwards.
fn in_turn(contestant: &Contestant, parent: &Path, work: &Work) -> Result<Round, Fault> {
    let directory = parent.join("turn");
    fs::create_dir_all(&directory).map_err(Fault::machine("a data directory"))?;
    let round = contestant.round(&directory, work);
    fs::remove_dir_all(&directory).map_err(Fault::machine("removing what a server has left"))?;
    round
}
