//! The broker in this process: owns the one place where the command line meets the server crate; decides nothing.

use std::net::SocketAddr;
use std::path::Path;

use coulee_client::ErrorCode;
use coulee_server::config::Config;
use coulee_server::offline::{self, DirFault, OfflineError, Progress};
use coulee_server::{Drainer, Server, StartCause, StartError};

pub(crate) use coulee_server::doctor::{Check, Outcome};
pub(crate) use coulee_server::offline::{Finding, Partition as VerifiedPartition, Repaired, Verified};

use crate::code::LocalCode;
use crate::failure::{Exit, Failure};

/// A broker that runs.
#[derive(Debug)]
pub(crate) struct Broker(Server);

impl Broker {
    /// Where clients of the native protocol connect.
    pub(crate) fn native_address(&self) -> SocketAddr {
        self.0.native_address()
    }

    /// How many shards it has.
    pub(crate) fn shards(&self) -> u16 {
        self.0.shards()
    }

    /// Waits until it has read its log.
    pub(crate) fn wait_ready(&self) -> Result<(), Failure> {
        self.0.wait_ready().map_err(|error| refused(&error))
    }

    /// What stops it, for another thread: takes no more connections, finishes what is in flight.
    pub(crate) fn drainer(&self) -> Drainer {
        self.0.drainer()
    }

    /// Waits until all shards have ended.
    pub(crate) fn join(self) -> Result<(), Failure> {
        self.0.join().map_err(|error| Failure::local(LocalCode::Stopped, error.to_string()))
    }
}

/// Starts a broker. When this returns, its listeners are up.
pub(crate) fn start(config: &Config) -> Result<Broker, Failure> {
    coulee_server::start(config).map(Broker).map_err(|error| match error.cause() {
        StartCause::AddressTaken | StartCause::MachineUnfit => refused(&error),
        _ => refused(&error).note(format!("data directory: {}", config.data_dir.display())),
    })
}

/// A start that was refused, with its code and what to do about it.
fn refused(error: &StartError) -> Failure {
    failure_of(error.cause(), error.to_string())
}

fn failure_of(cause: StartCause, message: String) -> Failure {
    let local = |code, hint: &str| Failure::local(code, message.clone()).hint(hint);
    match cause {
        StartCause::AddressTaken => {
            local(LocalCode::AddressTaken, "stop what listens there, or name another address with --listen")
        }
        StartCause::DataDirTaken => local(
            LocalCode::DataDirTaken,
            "stop the broker that has the directory, or name another one with --data-dir",
        ),
        StartCause::DataDirUnusable => local(
            LocalCode::DataDirUnusable,
            "give it to the user that runs the broker, make room there, or name another one with --data-dir",
        ),
        StartCause::FormatTooNew => Failure::coded(ErrorCode::FormatTooNew, message),
        StartCause::MachineUnfit => local(LocalCode::MachineUnfit, "see what to change with: coulee doctor"),
        StartCause::Other => {
            local(LocalCode::StartFailed, "the log says more; nothing in the data directory was changed")
        }
    }
}

/// Checks the machine for a broker with this configuration.
pub(crate) fn checks(config: &Config) -> Vec<Check> {
    coulee_server::doctor::run(config)
}

/// Checks the directory of a stopped broker.
pub(crate) fn verify(data_dir: &Path, on_progress: &mut dyn FnMut(Progress)) -> Result<Verified, Failure> {
    offline::verify(data_dir, on_progress).map_err(|error| of_dir(data_dir, &error))
}

/// What a repair of a stopped broker's directory would do, or, with a time, does.
pub(crate) fn repair(data_dir: &Path, now_ms: Option<u64>) -> Result<Repaired, Failure> {
    let repaired = match now_ms {
        Some(now_ms) => offline::repair(data_dir, now_ms),
        None => offline::plan_repair(data_dir),
    };
    repaired.map_err(|error| of_dir(data_dir, &error))
}

/// A directory that cannot be looked at.
fn of_dir(data_dir: &Path, error: &OfflineError) -> Failure {
    let message = format!("{}: {error}", data_dir.display());
    let (code, exit, hint) = match error.fault() {
        DirFault::Missing => {
            (LocalCode::DataDirUnusable, Exit::NotFound, "name the directory that the broker had with --data-dir")
        }
        DirFault::Taken => (LocalCode::DataDirTaken, Exit::Conflict, "stop the broker that has the directory first"),
        DirFault::Rights => (LocalCode::DataDirUnusable, Exit::Denied, "run it as the user that runs the broker"),
        DirFault::Other => (LocalCode::DataDirUnusable, Exit::Failed, "see what the machine lacks with: coulee doctor"),
    };
    Failure::local(code, message).hint(hint).exit(exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_a_code_and_a_hint_of_its_own() {
        let causes = [
            (StartCause::AddressTaken, 2_006, Exit::Conflict),
            (StartCause::DataDirTaken, 2_007, Exit::Conflict),
            (StartCause::DataDirUnusable, 2_013, Exit::Failed),
            (StartCause::FormatTooNew, 1_009, Exit::Failed),
            (StartCause::MachineUnfit, 2_014, Exit::Failed),
            (StartCause::Other, 2_005, Exit::Failed),
        ];
        for (cause, number, exit) in causes {
            let failure = failure_of(cause, "it does not start".into());
            assert_eq!((failure.number, failure.exit, failure.hint.is_some()), (number, exit, true), "{cause:?}");
        }
    }
}
