//! The broker's configuration: owns layers, defaults, and where each value came from; reads no file, clock or machine.
//!
//! Layers, each over the one before: defaults, the TOML file, `COULEE_SECTION__KEY`, flags, `--set`. File text,
//! variables, flags and the facts of the machine are arguments, so that the same arguments give the same configuration.
//! All faults are found at once, those in values that another layer overrides too.

mod fault;
mod key;
mod layers;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use coulee_core::groups::Options as GroupOptions;
use coulee_protocol::api::broker::Origin;
use coulee_protocol::limits::FRAME_BYTES_MAX;

pub use self::fault::{ConfigError, Fault, FaultKind, Place};
pub use self::key::{Facts, KEYS, Key, VARIABLE_PREFIX, edits};
pub use self::layers::{FileText, Flag};
pub use self::units::{bytes_text, cpus_text, duration_text, parse_bytes, parse_cpus, parse_duration};

use self::layers::{Reading, Setting};

/// Shards of a broker, at most.
pub const SHARDS_MAX: u16 = 256;
/// A shard's memory, at least: incomplete frames may take half of it, and one frame of any size has to fit there.
pub const MEMORY_SHARD_BYTES_MIN: u64 = 2 * FRAME_BYTES_MAX as u64;
/// A shard's memory, and its pool, at most.
pub const SHARD_BYTES_MAX: u64 = 1 << 40;
/// Connections, at most.
pub const CONNECTIONS_MAX: u32 = 1_000_000;
/// The longest wait for the first members of a group.
const GROUP_DELAY_MAX: Duration = Duration::from_secs(300);
/// The longest that unused offsets are kept.
const OFFSETS_RETENTION_MAX: Duration = Duration::from_secs(3_650 * 86_400);
/// The longest time that a drain may take.
pub const GRACE_MAX: Duration = Duration::from_secs(3_600);

/// Memory of a machine that is used by default: a quarter. The rest is the page cache's and other programs'.
const MEMORY_DIVISOR: u64 = 4;
/// Part of the disk that pools may take by default: a tenth.
const DISK_DIVISOR: u64 = 10;

/// What defaults depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The CPUs that the process may run on, ascending; at least one.
    pub cpus: Vec<u16>,
    /// CPUs that the cgroup's quota is worth, rounded up, where it has one.
    pub cpu_quota: Option<u16>,
    /// Memory of the machine, or the cgroup's limit if that is less.
    pub memory_bytes: u64,
    /// Size of the filesystem that the data directory is on, or will be.
    pub disk_bytes: u64,
    /// Whether the log goes to a terminal.
    pub log_is_terminal: bool,
}

/// The layers above the defaults.
#[derive(Clone, Debug, Default)]
pub struct Layers<'a> {
    /// The configuration file, if there is one.
    pub file: Option<FileText<'a>>,
    /// The environment.
    pub environment: Vec<(&'a str, &'a str)>,
    /// Flags that set one key each.
    pub flags: Vec<Flag<'a>>,
    /// The texts of `--set`, `key=value`.
    pub sets: Vec<&'a str>,
}

/// The least important log lines that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Something failed that an operator has to look at.
    Error,
    /// Something is not as it should be.
    Warn,
    /// Starts, stops, changes.
    Info,
    /// What helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// The broker's effective configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The directory that holds all data.
    pub data_dir: PathBuf,
    /// Where clients of the native protocol connect; port 0 takes a free one, and later listeners that are not set
    /// take port 0 too.
    pub native_listen: SocketAddr,
    /// How many shards: at least one.
    pub shards: u16,
    /// The CPUs that shards are pinned to: shard i on entry i mod length. Not empty.
    pub cpus: Vec<u16>,
    /// Memory that one shard may use.
    pub memory_shard_bytes: u64,
    /// Zeroed segment files that one shard keeps ready.
    pub pool_bytes: u64,
    /// The least important log lines that are written.
    pub log_level: LogLevel,
    /// How log lines look.
    pub log_format: LogFormat,
    /// How long a drain lets requests in flight finish.
    pub shutdown_grace: Duration,
    /// How long the first members of an empty group are waited for.
    pub group_initial_delay: Duration,
    /// How long a committed offset that nobody uses is kept.
    pub offsets_retention: Duration,
    /// Connections of all listeners together.
    pub connections_max: u32,
    /// Where the values come from that are no defaults.
    places: BTreeMap<Key, Place>,
}

/// A key with its effective value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// Its value as text, as any layer would take it.
    pub value: String,
    /// The layer that it comes from.
    pub origin: Origin,
    /// The file and line, the variable or the flag; empty for a default.
    pub detail: String,
}

impl Config {
    /// Reads the layers and resolves what is not set from the machine.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault of every layer.
    pub fn load(layers: &Layers<'_>, machine: &Machine) -> Result<Self, ConfigError> {
        assert!(!machine.cpus.is_empty(), "the process runs on some CPU");
        let mut reading = Reading::default();
        if let Some(file) = layers.file {
            reading.file(file);
        }
        reading.environment(layers.environment.iter().copied());
        reading.flags(&layers.flags);
        reading.sets(&layers.sets);
        let Reading { settings, mut faults } = reading;
        let mut draft = Draft::default();
        for setting in settings {
            if let Err(fault) = draft.set(setting, machine) {
                faults.push(fault);
            }
        }
        let config = draft.resolve(machine);
        faults.extend(config.too_much_memory(machine));
        if faults.is_empty() { Ok(config) } else { Err(ConfigError { faults }) }
    }

    /// Every key with its effective value and its origin, by name.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |facts: &Facts| {
            let place = self.places.get(&facts.key);
            Entry {
                key: facts.key,
                value: self.text(facts.key),
                origin: place.map_or(Origin::Default, Place::origin),
                detail: place.map(Place::detail).unwrap_or_default(),
            }
        };
        KEYS.iter().map(entry).collect()
    }

    /// What consumer groups are allowed.
    #[must_use]
    pub fn group_options(&self) -> GroupOptions {
        GroupOptions {
            // Both are bounded above, to days and years.
            initial_delay_ms: self.group_initial_delay.as_millis() as u32,
            retention_ms: self.offsets_retention.as_millis() as i64,
            ..GroupOptions::default()
        }
    }

    /// The CPU that a shard is pinned to.
    #[must_use]
    pub fn cpu_of(&self, shard: u16) -> u16 {
        assert!(shard < self.shards, "shard {shard} of {}", self.shards);
        self.cpus[usize::from(shard) % self.cpus.len()]
    }

    fn text(&self, key: Key) -> String {
        match key {
            Key::Cpus => cpus_text(&self.cpus),
            Key::DataDir => self.data_dir.display().to_string(),
            Key::GroupInitialRebalanceDelay => duration_text(self.group_initial_delay),
            Key::LimitsConnections => self.connections_max.to_string(),
            Key::LogFormat => self.log_format.to_string(),
            Key::LogLevel => self.log_level.to_string(),
            Key::MemoryShard => bytes_text(self.memory_shard_bytes),
            Key::NativeListen => self.native_listen.to_string(),
            Key::OffsetsRetention => duration_text(self.offsets_retention),
            Key::PoolBytes => bytes_text(self.pool_bytes),
            Key::Shards => self.shards.to_string(),
            Key::ShutdownGrace => duration_text(self.shutdown_grace),
        }
    }

    /// Budgets that no machine could keep, where somebody has set them.
    fn too_much_memory(&self, machine: &Machine) -> Option<Fault> {
        let place = self.places.get(&Key::MemoryShard)?.clone();
        let most = machine.memory_bytes / u64::from(self.shards);
        if self.memory_shard_bytes <= most {
            return None;
        }
        let (least, most) = (bytes_text(MEMORY_SHARD_BYTES_MIN), bytes_text(whole_mib(most)));
        let allowed = format!("{least} to {most}, with {} shards on this machine", self.shards).into();
        let value = bytes_text(self.memory_shard_bytes).into();
        Some(Fault { place, kind: FaultKind::Value { key: Key::MemoryShard, value, allowed } })
    }
}

/// What layers have set so far.
#[derive(Debug, Default)]
struct Draft {
    data_dir: Option<PathBuf>,
    native_listen: Option<SocketAddr>,
    shards: Option<u16>,
    cpus: Option<Vec<u16>>,
    memory_shard_bytes: Option<u64>,
    pool_bytes: Option<u64>,
    log_level: Option<LogLevel>,
    log_format: Option<LogFormat>,
    shutdown_grace: Option<Duration>,
    group_initial_delay: Option<Duration>,
    offsets_retention: Option<Duration>,
    connections_max: Option<u32>,
    places: BTreeMap<Key, Place>,
}

impl Draft {
    fn set(&mut self, setting: Setting, machine: &Machine) -> Result<(), Fault> {
        let Setting { key, value, place } = setting;
        let is_taken = match key {
            Key::Cpus => take(&mut self.cpus, cpus_of(&value, machine)),
            Key::DataDir => take(&mut self.data_dir, (!value.is_empty()).then(|| PathBuf::from(&value))),
            Key::LimitsConnections => take(&mut self.connections_max, number_in(&value, 1, CONNECTIONS_MAX)),
            Key::LogFormat => take(&mut self.log_format, LogFormat::named(&value)),
            Key::LogLevel => take(&mut self.log_level, LogLevel::named(&value)),
            Key::MemoryShard => {
                let allowed = MEMORY_SHARD_BYTES_MIN..=SHARD_BYTES_MAX;
                take(&mut self.memory_shard_bytes, parse_bytes(&value).filter(|bytes| allowed.contains(bytes)))
            }
            Key::NativeListen => take(&mut self.native_listen, address(&value)),
            Key::PoolBytes => take(&mut self.pool_bytes, parse_bytes(&value).filter(|bytes| *bytes <= SHARD_BYTES_MAX)),
            Key::Shards => take(&mut self.shards, number_in(&value, 1, SHARDS_MAX)),
            Key::GroupInitialRebalanceDelay => {
                take(&mut self.group_initial_delay, parse_duration(&value).filter(|delay| *delay <= GROUP_DELAY_MAX))
            }
            Key::OffsetsRetention => {
                let allowed = Duration::from_secs(60)..=OFFSETS_RETENTION_MAX;
                take(&mut self.offsets_retention, parse_duration(&value).filter(|kept| allowed.contains(kept)))
            }
            Key::ShutdownGrace => {
                take(&mut self.shutdown_grace, parse_duration(&value).filter(|grace| *grace <= GRACE_MAX))
            }
        };
        if is_taken {
            self.places.insert(key, place);
            return Ok(());
        }
        let allowed = match key {
            Key::Cpus => format!("a list of CPUs among {}", cpus_text(&machine.cpus)).into(),
            _ => key.facts().allowed.into(),
        };
        Err(Fault { place, kind: FaultKind::Value { key, value: value.into(), allowed } })
    }

    fn resolve(self, machine: &Machine) -> Config {
        let usable = machine.cpu_quota.map_or(machine.cpus.len(), |quota| machine.cpus.len().min(quota.into()));
        let named = self.cpus.as_ref().map_or(usable, Vec::len);
        let by_default = u16::try_from(named).unwrap_or(SHARDS_MAX).clamp(1, SHARDS_MAX);
        let shards = self.shards.unwrap_or(by_default);
        let first = || machine.cpus.iter().copied().take(shards.into()).collect();
        let share = |bytes: u64, divisor: u64| whole_mib(bytes / divisor / u64::from(shards));
        let memory = || share(machine.memory_bytes, MEMORY_DIVISOR).clamp(MEMORY_SHARD_BYTES_MIN, SHARD_BYTES_MAX);
        let format = if machine.log_is_terminal { LogFormat::Pretty } else { LogFormat::Json };
        Config {
            data_dir: self.data_dir.unwrap_or_else(|| PathBuf::from("./coulee-data")),
            native_listen: self.native_listen.unwrap_or(SocketAddr::new(LOOPBACK, 7_700)),
            shards,
            cpus: self.cpus.unwrap_or_else(first),
            memory_shard_bytes: self.memory_shard_bytes.unwrap_or_else(memory),
            pool_bytes: self.pool_bytes.unwrap_or_else(|| share(machine.disk_bytes, DISK_DIVISOR).min(1 << 30)),
            log_level: self.log_level.unwrap_or(LogLevel::Info),
            log_format: self.log_format.unwrap_or(format),
            shutdown_grace: self.shutdown_grace.unwrap_or(Duration::from_secs(30)),
            group_initial_delay: self.group_initial_delay.unwrap_or(Duration::from_secs(3)),
            offsets_retention: self.offsets_retention.unwrap_or(Duration::from_secs(7 * 86_400)),
            connections_max: self.connections_max.unwrap_or(20_000),
            places: self.places,
        }
    }
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Puts a value into its place, if there is one.
fn take<T>(place: &mut Option<T>, value: Option<T>) -> bool {
    let is_some = value.is_some();
    if is_some {
        *place = value;
    }
    is_some
}

/// Defaults that come from a division are cut to whole MiB, so that people can read them.
fn whole_mib(bytes: u64) -> u64 {
    bytes >> 20 << 20
}

fn number_in<T: std::str::FromStr + PartialOrd>(text: &str, least: T, most: T) -> Option<T> {
    text.trim().parse().ok().filter(|number| *number >= least && *number <= most)
}

fn cpus_of(text: &str, machine: &Machine) -> Option<Vec<u16>> {
    parse_cpus(text).filter(|cpus| cpus.iter().all(|cpu| machine.cpus.contains(cpu)))
}

/// An address, or `localhost` with a port. Other names are looked up by nobody here.
fn address(text: &str) -> Option<SocketAddr> {
    let port = text.strip_prefix("localhost:").map(str::parse);
    port.map_or_else(|| text.parse().ok(), |port| Some(SocketAddr::new(LOOPBACK, port.ok()?)))
}

impl LogLevel {
    /// Every level, from the most important on.
    pub const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    fn named(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.to_string() == text)
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

impl LogFormat {
    fn named(text: &str) -> Option<Self> {
        [Self::Pretty, Self::Json].into_iter().find(|format| format.to_string() == text)
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Pretty => "pretty",
            Self::Json => "json",
        })
    }
}

#[cfg(test)]
mod tests;
