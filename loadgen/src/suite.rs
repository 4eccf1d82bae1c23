//! The suite: every row of the targets in turn, beside bare servers, then the report and how it ends; measures nothing
//! itself.

use crate::arguments::SuiteArguments;
use crate::broker;
use crate::fault::Fault;
use crate::machine;
use crate::probe::Files;
use crate::report::parameters;
use measured::Measured;
use stage::Stage;
use std::fs;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};
use targets::{Bare, Metric, RowSpec, Targets};
use verdict::Ending;
use works::{Bares, Works};

mod html;
mod logs;
mod measured;
mod plot;
mod stage;
mod targets;
mod told;
mod verdict;
mod works;

/// A suite that has ended.
#[derive(Debug)]
pub(crate) struct Suite {
    pub(crate) rows: Vec<Measured>,
    pub(crate) is_quick: bool,
    pub(crate) began: SystemTime,
    pub(crate) seconds: f64,
    pub(crate) machine: String,
    pub(crate) command: String,
    /// Bytes of zeroed files that recycled rows found.
    pub(crate) pool_bytes: u64,
}

/// Runs the suite and writes its report.
pub(crate) fn run(arguments: &SuiteArguments) -> Result<ExitCode, Fault> {
    let mut targets = Targets::read(arguments.targets.as_deref())?;
    targets.keep(&arguments.rows)?;
    fs::create_dir_all(&arguments.out).map_err(Fault::machine("the directory of the report"))?;
    let suite = measure(arguments, &targets)?;
    let ending = Ending::of(&suite.rows);
    let out = &arguments.out;
    let json = format!("{:#}\n", told::json(&suite, ending));
    fs::write(out.join("report.json"), json).map_err(Fault::machine("report.json"))?;
    logs::write(&suite, out).map_err(Fault::machine("a latency log"))?;
    fs::write(out.join("report.html"), html::page(&suite, ending)).map_err(Fault::machine("report.html"))?;
    println!("\n{}", told::summary(&suite, ending));
    println!("report: {}", out.join("report.html").display());
    Ok(ExitCode::from(ending.code()))
}

/// Runs all rows; a row that fails does not keep the others from theirs.
fn measure(arguments: &SuiteArguments, targets: &Targets) -> Result<Suite, Fault> {
    let (began, start, pace) = (SystemTime::now(), Instant::now(), targets.pace(arguments.quick));
    let program = broker::program(arguments.broker.as_deref())?;
    let parent = arguments.data_dir.as_ref().unwrap_or(&arguments.out);
    let stage = Stage::new(program, parent, pace)?;
    let files = if targets.rows.iter().any(|row| row.bare != Bare::None) {
        Some(Files::new(stage.directory(), pace.bare_mib << 20)?)
    } else {
        None
    };
    let pool_bytes = stage.pool_bytes();
    let bares = Bares::new(files, pace.bare_seconds);
    let mut works = Works { stage, bares, is_quick: arguments.quick };
    let mut rows: Vec<Measured> = Vec::new();
    println!("{}", told::heads());
    for spec in &targets.rows {
        let base = base_rate(spec, &rows);
        let is_late = pace.seconds_max.is_some_and(|max| start.elapsed().as_secs_f64() > max);
        let skipped = match (&spec.lacks, &base) {
            (Some(lacks), _) => Some(lacks.clone()),
            (None, Err(lacks)) => Some(lacks.clone()),
            (None, Ok(_)) if is_late => Some("no time was left for it".to_owned()),
            (None, Ok(_)) => works.lacks(spec)?,
        };
        let arguments = spec.arguments(pace, arguments.quick, base.ok().flatten());
        let mut row = Measured::new(spec.clone(), parameters(&arguments, 1));
        row.skipped = skipped;
        if row.skipped.is_none() {
            measure_row(&mut works, &mut row, &arguments, pace.runs);
        }
        rows.push(row);
        println!("{}", told::row(&rows[rows.len() - 1], &rows));
    }
    works.stage.clear();
    let command: Vec<String> = std::env::args().collect();
    let (seconds, machine) = (start.elapsed().as_secs_f64(), machine::describe());
    let is_quick = arguments.quick;
    Ok(Suite { rows, is_quick, began, seconds, machine, command: command.join(" "), pool_bytes })
}

/// All runs of a row. One that fails is the last, and its broker is no longer trusted.
fn measure_row(works: &mut Works, row: &mut Measured, arguments: &crate::arguments::RunArguments, runs: u32) {
    let (spec, begun) = (row.spec.clone(), Instant::now());
    for _ in 0..runs {
        match works.run(&spec, arguments) {
            Ok(parts) => parts.into_iter().for_each(|(part, run)| row.add(part, run)),
            Err(fault) => {
                row.fault = Some(fault.to_string());
                works.stage.clear();
                break;
            }
        }
    }
    row.took_seconds = begun.elapsed().as_secs_f64();
}

/// The rate of the row whose share this one's is, where it says so; why there is none, where there should be one.
fn base_rate(spec: &RowSpec, rows: &[Measured]) -> Result<Option<f64>, String> {
    let Some(id) = &spec.rate_of else { return Ok(None) };
    let base = rows.iter().find(|row| row.spec.id == *id);
    let rate = base.and_then(|row| row.part(None)?.value(Metric::RecordsPerSecond));
    rate.map(Some).ok_or_else(|| format!("row {id}, whose rate it takes, has none"))
}
