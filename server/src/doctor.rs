//! Checks of the machine for a broker: what `coulee doctor` shows; changes nothing that it does not undo.

use crate::config::Config;
use coulee_io::net::{BindError, ListenOptions, Listener};
use coulee_io::{executor, selftest};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Good,
    /// A broker runs, and would run better otherwise.
    Warning,
    /// No broker can run.
    Failed,
}

/// A check of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub outcome: Outcome,
    /// What was found, and what to change.
    pub advice: String,
}

impl Check {
    fn new(name: &'static str, outcome: Outcome, advice: impl Into<String>) -> Self {
        Self { name, outcome, advice: advice.into() }
    }
}

/// Open files below which a broker with many segments and connections runs out.
const OPEN_FILES_WANTED: u64 = 65_536;

/// Checks the machine for a broker with this configuration.
#[must_use]
pub fn run(config: &Config) -> Vec<Check> {
    vec![data_dir(config), machine(config), one_flush(config), port(config), cpus(config), open_files()]
}

fn data_dir(config: &Config) -> Check {
    let dir = config.data_dir.display();
    match coulee_io::disk::lock(&config.data_dir) {
        Ok(lock) => {
            drop(lock);
            Check::new("data directory", Outcome::Good, format!("{dir} is there and free"))
        }
        Err(_) if !config.data_dir.exists() => {
            Check::new("data directory", Outcome::Good, format!("{dir} will be made at the first start"))
        }
        Err(error) => Check::new("data directory", Outcome::Failed, error.to_string()),
    }
}

/// A directory to try things in: the data directory, or where it will be.
fn trial_dir(config: &Config) -> Option<&std::path::Path> {
    config.data_dir.ancestors().find(|dir| dir.is_dir())
}

fn machine(config: &Config) -> Check {
    let Some(dir) = trial_dir(config).filter(|dir| *dir == config.data_dir) else {
        return Check::new("io_uring and direct I/O", Outcome::Warning, "tried once the data directory is there");
    };
    match selftest::run(dir) {
        Ok(_) => Check::new("io_uring and direct I/O", Outcome::Good, "written, synced and read back"),
        Err(error) => Check::new("io_uring and direct I/O", Outcome::Failed, error.to_string()),
    }
}

fn one_flush(config: &Config) -> Check {
    let name = "one flush for a shard";
    match trial_dir(config).filter(|dir| *dir == config.data_dir).map(selftest::run) {
        Some(Ok(findings)) if findings.is_device_flush_proved => Check::new(name, Outcome::Good, "ext4 or xfs"),
        Some(Ok(_)) => Check::new(name, Outcome::Warning, "each file is synced by itself here: ext4 or xfs are faster"),
        _ => Check::new(name, Outcome::Warning, "tried once the data directory is there"),
    }
}

fn port(config: &Config) -> Check {
    match Listener::bind(&ListenOptions::at(config.native_listen)) {
        Ok(listener) => Check::new("port", Outcome::Good, format!("{} is free", listener.local_address())),
        Err(error @ BindError::Taken { .. }) => Check::new("port", Outcome::Failed, error.to_string()),
        Err(error) => Check::new("port", Outcome::Failed, error.to_string()),
    }
}

fn cpus(config: &Config) -> Check {
    match executor::usable_cpus() {
        Ok(usable) if usize::from(config.shards) <= usable.cpus.len() => {
            Check::new("CPUs", Outcome::Good, format!("{} shards on {} CPUs", config.shards, usable.cpus.len()))
        }
        Ok(usable) => {
            let advice = format!("{} shards share {} CPUs: use fewer shards", config.shards, usable.cpus.len());
            Check::new("CPUs", Outcome::Warning, advice)
        }
        Err(error) => Check::new("CPUs", Outcome::Warning, format!("cannot be counted: {error}")),
    }
}

fn open_files() -> Check {
    match executor::raise_open_files() {
        Ok(files) if files.now >= OPEN_FILES_WANTED => {
            Check::new("open files", Outcome::Good, format!("{} at once", files.now))
        }
        Ok(files) => {
            let advice = format!("{} at once, {OPEN_FILES_WANTED} are better: raise ulimit -n", files.now);
            Check::new("open files", Outcome::Warning, advice)
        }
        Err(error) => Check::new("open files", Outcome::Warning, format!("cannot be raised: {error}")),
    }
}
