//! The binary `coulee-loadgen`: takes the command line to its work; measures and decides nothing itself.
//!
//! All measured traffic goes over plain sockets that never wait, from threads pinned to their CPUs, with what
//! `coulee-protocol` knows of bytes. The SDK makes topics and asks for statistics.
//!
//! It ends with 0 when the work was done, with 1 on an error or a lost, doubled or reordered record, and a suite with 3
//! when the work was done and a target missed.

use arguments::{Arguments, Command, Output};
use clap::Parser;
use fault::Fault;
use std::process::ExitCode;

mod arguments;
mod broker;
mod compare;
mod control;
mod fault;
mod generator;
mod lane;
mod limits;
mod machine;
mod probe;
mod reader;
mod report;
mod run;
mod schedule;
mod sdk;
mod suite;
mod tally;
mod templates;
mod wire;

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    machine::caution().into_iter().for_each(|caution| eprintln!("note: {caution}"));
    match work(&command) {
        Ok(code) => code,
        Err(fault) => {
            eprintln!("error: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn work(command: &Command) -> Result<ExitCode, Fault> {
    let (json, output, table) = match command {
        Command::Run(arguments) => {
            let rows = run::run(arguments)?;
            (rows.json(), arguments.output, rows.table())
        }
        Command::Probe(arguments) => {
            let limits = limits::measure(arguments)?;
            (limits.json(), arguments.output, limits.table())
        }
        Command::Compare(arguments) => return compare::run(arguments),
        Command::Suite(arguments) => return suite::run(arguments),
    };
    match output {
        Output::Json => println!("{json:#}"),
        Output::Table => println!("{table}"),
    }
    Ok(ExitCode::SUCCESS)
}
