//! Checks of the machine for a broker: what `coulee doctor` shows; leaves no trace.

use crate::config::Config;
use coulee_io::disk::DirError;
use coulee_io::executor;
use coulee_io::net::{BindError, ListenOptions, Listener};
use coulee_io::selftest::{self, Findings, SelfTestError};

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
/// Advice of a check that another one has to come before.
const UNTRIED: &str = "tried once the other checks are good";

/// Checks the machine for a broker with this configuration.
#[must_use]
pub fn run(config: &Config) -> Vec<Check> {
    let tried = selftest::run_apart(&config.data_dir);
    vec![data_dir(config, &tried), machine(&tried), one_flush(&tried), port(config), cpus(config), open_files()]
}

type Tried = Result<Findings, SelfTestError>;

/// Whether a self-test has failed for the directory, not for the machine.
fn is_of_dir(error: &SelfTestError) -> bool {
    matches!(error, SelfTestError::Dir(reason) if *reason != DirError::NoDirectIo)
}

fn data_dir(config: &Config, tried: &Tried) -> Check {
    let (name, dir) = ("data directory", config.data_dir.display());
    match (coulee_io::disk::check_free(&config.data_dir), tried) {
        (_, Err(error)) if is_of_dir(error) => Check::new(name, Outcome::Failed, format!("{dir}: {error}")),
        (Err(error), _) => Check::new(name, Outcome::Failed, error.to_string()),
        (Ok(()), _) if config.data_dir.exists() => Check::new(name, Outcome::Good, format!("{dir} is there and free")),
        (Ok(()), _) => Check::new(name, Outcome::Good, format!("{dir} will be made at the first start")),
    }
}

fn machine(tried: &Tried) -> Check {
    let name = "io_uring and direct I/O";
    match tried {
        Ok(_) => Check::new(name, Outcome::Good, "written, synced and read back"),
        Err(error) if is_of_dir(error) => Check::new(name, Outcome::Warning, UNTRIED),
        Err(error) => Check::new(name, Outcome::Failed, error.to_string()),
    }
}

fn one_flush(tried: &Tried) -> Check {
    let name = "one flush for a shard";
    match tried {
        Ok(findings) if findings.is_device_flush_proved => Check::new(name, Outcome::Good, "ext4 or xfs"),
        Ok(_) => Check::new(name, Outcome::Warning, "each file is synced by itself here: ext4 or xfs are faster"),
        Err(_) => Check::new(name, Outcome::Warning, UNTRIED),
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
