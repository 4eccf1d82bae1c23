//! The binary `coulee-loadgen`: takes the command line to its work; measures and decides nothing itself.
//!
//! All measured traffic goes over plain sockets that never wait, from threads pinned to their CPUs, with what
//! `coulee-protocol` knows of bytes. The SDK makes topics and asks for statistics.
//!
//! It ends with 0 when the work was done, with 1 on an error or a lost, doubled or reordered record.

use arguments::{Arguments, Command};
use clap::Parser;
use fault::Fault;
use std::process::ExitCode;

mod arguments;
mod broker;
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
mod tally;
mod templates;
mod wire;

fn main() -> ExitCode {
    match work(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("error: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn work(command: &Command) -> Result<(), Fault> {
    let (json, is_json, table) = match command {
        Command::Run(arguments) => {
            let rows = run::run(arguments)?;
            (rows.json(), arguments.json, rows.table())
        }
        Command::Probe(arguments) => {
            let limits = limits::measure(arguments)?;
            (limits.json(), arguments.json, limits.table())
        }
    };
    if is_json {
        println!("{json:#}");
    } else {
        println!("{table}");
    }
    Ok(())
}
