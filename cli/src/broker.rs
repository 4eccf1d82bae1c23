//! The broker in this process: owns the one place where the command line meets the server crate; decides nothing.

use std::net::SocketAddr;

use coulee_server::config::Config;

use crate::code::LocalCode;
use crate::failure::Failure;

/// A broker that runs. There is none yet: the server crate does not start one, and no value of this type exists.
#[derive(Debug)]
pub(crate) enum Broker {}

impl Broker {
    /// Where clients of the native protocol connect.
    pub(crate) fn native_address(&self) -> SocketAddr {
        match *self {}
    }

    /// How many shards it has.
    pub(crate) fn shards(&self) -> u16 {
        match *self {}
    }

    /// Begins to stop: takes no more connections, finishes what is in flight.
    pub(crate) fn drain(&self) {
        match *self {}
    }

    /// Waits until all shards have ended.
    pub(crate) fn join(self) -> Result<(), Failure> {
        match self {}
    }
}

/// Starts a broker. When this returns, its listeners are up.
pub(crate) fn start(config: &Config) -> Result<Broker, Failure> {
    let message = format!("this build has no broker to start on {}", config.native_listen);
    Err(Failure::local(LocalCode::StartFailed, message).hint("use a build whose server crate starts one"))
}

/// How a check of the machine came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "the server crate, which makes the checks, has none yet")]
pub(crate) enum Outcome {
    /// As it should be.
    Good,
    /// A broker runs, and would run better otherwise.
    Warning,
    /// No broker can run.
    Failed,
}

/// A check of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    pub(crate) advice: String,
}

/// Checks the machine for a broker with this configuration.
pub(crate) fn checks(_config: &Config) -> Result<Vec<Check>, Failure> {
    let message = "this build has no checks of the machine";
    Err(Failure::local(LocalCode::CheckFailed, message).hint("use a build whose server crate has them"))
}
