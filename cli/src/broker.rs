//! The broker in this process: owns the one place where the command line meets the server crate; decides nothing.

use std::net::SocketAddr;

use coulee_server::config::Config;
use coulee_server::{Drainer, Server, StartError};

pub(crate) use coulee_server::doctor::{Check, Outcome};

use crate::code::LocalCode;
use crate::failure::Failure;

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
        self.0.join().map_err(|error| Failure::local(LocalCode::StartFailed, error.to_string()))
    }
}

/// Starts a broker. When this returns, its listeners are up.
pub(crate) fn start(config: &Config) -> Result<Broker, Failure> {
    coulee_server::start(config).map(Broker).map_err(|error| refused(&error))
}

fn refused(error: &StartError) -> Failure {
    Failure::local(LocalCode::StartFailed, error.to_string()).hint(hint(error))
}

/// What to do about it, where the error does not say so itself.
const fn hint(error: &StartError) -> &'static str {
    match error {
        StartError::Lock(_) => "stop the broker that has the directory, or name another one with --data-dir",
        StartError::Bind(_) => "stop what listens there, or name another address with --listen",
        StartError::SelfTest(_) | StartError::Executor(_) | StartError::Ring(_) => "coulee doctor checks the machine",
        StartError::Dir(_) | StartError::System(_) => "name another directory with --data-dir",
        StartError::Meta(_) | StartError::Shard(..) | StartError::Refused(_) => {
            "the log says more; nothing in the data directory was changed"
        }
    }
}

/// Checks the machine for a broker with this configuration.
pub(crate) fn checks(config: &Config) -> Vec<Check> {
    coulee_server::doctor::run(config)
}
