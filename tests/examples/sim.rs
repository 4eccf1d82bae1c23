//! Runs the simulator for as long as one has time, and says how to run a failing seed again; knows no rule.
//!
//! `sim [--seeds FROM..TO] [--seconds S] [--until-failure]`: seeds one after the other, 1,000 of them where nothing is
//! said; with a number of seconds, seeds that were never run before. Exit 0 where no promise was broken, 1 where one
//! was.

use coulee_tests::sim::{Ran, run_caught};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What was asked for.
struct Wanted {
    from: u64,
    to: u64,
    until: Option<Duration>,
    until_failure: bool,
}

fn wanted() -> Result<Wanted, String> {
    let mut wanted = Wanted { from: 0, to: 1_000, until: None, until_failure: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let number = |text: Option<String>| {
            let text = text.ok_or_else(|| format!("{word} wants a value"))?;
            text.parse::<u64>().map_err(|error| format!("{word} {text}: {error}"))
        };
        match word.as_str() {
            "--seeds" => {
                let range = words.next().ok_or("--seeds wants FROM..TO")?;
                let (from, to) = range.split_once("..").ok_or("--seeds wants FROM..TO")?;
                (wanted.from, wanted.to) = (number(Some(from.into()))?, number(Some(to.into()))?);
            }
            "--seconds" => {
                wanted.until = Some(Duration::from_secs(number(words.next())?));
                let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
                (wanted.from, wanted.to) = (clock.as_secs() << 20, u64::MAX);
                println!("from seed {} on", wanted.from);
            }
            "--until-failure" => wanted.until_failure = true,
            _ => return Err(format!("what is {word}? [--seeds FROM..TO] [--seconds S] [--until-failure]")),
        }
    }
    Ok(wanted)
}

fn main() -> ExitCode {
    let wanted = match wanted() {
        Ok(wanted) => wanted,
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::from(2);
        }
    };
    // A seed that panics is told once, in one line.
    std::panic::set_hook(Box::new(|_| {}));
    let (begun, mut total, mut failed, mut seed) = (Instant::now(), Ran::default(), 0_u64, wanted.from);
    while seed < wanted.to && wanted.until.is_none_or(|until| begun.elapsed() < until) {
        match run_caught(seed) {
            Ok(ran) => add(&mut total, &ran),
            Err(failure) => {
                failed += 1;
                println!("{failure}");
                if wanted.until_failure {
                    println!("failed after {} seeds", seed - wanted.from + 1);
                    return ExitCode::FAILURE;
                }
            }
        }
        seed += 1;
    }
    let (seeds, seconds) = (seed - wanted.from, begun.elapsed().as_secs_f64());
    let Ran { crashes, power_cuts, steps, faults, report, .. } = total;
    println!("{seeds} seeds in {seconds:.1} s, {failed} failed");
    println!(
        "{crashes} crashes, {power_cuts} of them power cuts: {:.0} a second; {steps} steps",
        crashes as f64 / seconds
    );
    println!("{} operations failed, {} found no room, {} blocks spoilt", faults[0], faults[1], faults[2]);
    println!("{report}");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn add(total: &mut Ran, ran: &Ran) {
    total.crashes += ran.crashes;
    total.power_cuts += ran.power_cuts;
    total.steps += ran.steps;
    total.faults.iter_mut().zip(ran.faults).for_each(|(sum, more)| *sum += more);
    total.report.acked += ran.report.acked;
    total.report.unknown += ran.report.unknown;
    total.report.unknown_found += ran.report.unknown_found;
    total.report.read += ran.report.read;
}
