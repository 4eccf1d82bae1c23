//! The keys of the configuration: owns their names, flags, defaults and bounds as text; holds no value.

use std::fmt;

/// A key of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `cpus`
    Cpus,
    /// `data_dir`
    DataDir,
    /// `group.initial.rebalance.delay`
    GroupInitialRebalanceDelay,
    /// `limits.connections`
    LimitsConnections,
    /// `log.format`
    LogFormat,
    /// `log.level`
    LogLevel,
    /// `memory.shard`
    MemoryShard,
    /// `native.listen`
    NativeListen,
    /// `offsets.retention`
    OffsetsRetention,
    /// `pool.bytes`
    PoolBytes,
    /// `shards`
    Shards,
    /// `shutdown.grace`
    ShutdownGrace,
}

/// What is to be known of a key before it has a value.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The key.
    pub key: Key,
    /// As it is written: sections and name, with dots.
    pub name: &'static str,
    /// The flag of `coulee serve`, where it has one of its own.
    pub flag: Option<&'static str>,
    /// The default, for people.
    pub default: &'static str,
    /// Which values it may have.
    pub allowed: &'static str,
    /// What it sets.
    pub meaning: &'static str,
}

/// Every key, by name.
pub const KEYS: [Facts; 12] = [
    Facts {
        key: Key::Cpus,
        name: "cpus",
        flag: Some("--cpus"),
        default: "the first `shards` CPUs that the process may run on",
        allowed: "a list of CPUs that the process may run on, such as 0,2-3",
        meaning: "the CPUs that shards are pinned to, one after the other and from the first again",
    },
    Facts {
        key: Key::DataDir,
        name: "data_dir",
        flag: Some("--data-dir"),
        default: "./coulee-data",
        allowed: "a path",
        meaning: "the directory that holds all data; only one broker at a time may use it",
    },
    Facts {
        key: Key::GroupInitialRebalanceDelay,
        name: "group.initial.rebalance.delay",
        flag: None,
        default: "3s",
        allowed: "0s to 5m",
        meaning: "how long the first members of an empty group are waited for, and again as long as more come",
    },
    Facts {
        key: Key::LimitsConnections,
        name: "limits.connections",
        flag: None,
        default: "20000",
        allowed: "1 to 1000000",
        meaning: "connections of all listeners together; further ones are refused",
    },
    Facts {
        key: Key::LogFormat,
        name: "log.format",
        flag: Some("--log-format"),
        default: "pretty on a terminal, else json",
        allowed: "pretty or json",
        meaning: "how log lines on standard error look",
    },
    Facts {
        key: Key::LogLevel,
        name: "log.level",
        flag: None,
        default: "info",
        allowed: "error, warn, info, debug or trace",
        meaning: "the least important log lines that are written",
    },
    Facts {
        key: Key::MemoryShard,
        name: "memory.shard",
        flag: None,
        default: "25 % of the memory (of the cgroup) divided by `shards`, at least 32MiB",
        allowed: "32MiB to 1TiB, and for all shards together no more than the memory",
        meaning: "memory that one shard may use for frames, buffers and the tail cache",
    },
    Facts {
        key: Key::NativeListen,
        name: "native.listen",
        flag: Some("--listen"),
        default: "127.0.0.1:7700",
        allowed: "IP:PORT, [IP6]:PORT or localhost:PORT; port 0 takes a free one",
        meaning: "where clients of the native protocol connect",
    },
    Facts {
        key: Key::OffsetsRetention,
        name: "offsets.retention",
        flag: None,
        default: "7d",
        allowed: "1m to 3650d",
        meaning: "how long a committed offset is kept that no member of its group uses",
    },
    Facts {
        key: Key::PoolBytes,
        name: "pool.bytes",
        flag: None,
        default: "1GiB, but for all shards together at most 10 % of the disk",
        allowed: "0 to 1TiB",
        meaning: "zeroed segment files that one shard keeps ready, so that a sync needs no journal",
    },
    Facts {
        key: Key::Shards,
        name: "shards",
        flag: Some("--shards"),
        default: "the CPUs that the process may run on, capped by the cgroup's quota; with `cpus`, as many as it names",
        allowed: "1 to 256",
        meaning: "shards, each one thread on one CPU; may be changed at each start",
    },
    Facts {
        key: Key::ShutdownGrace,
        name: "shutdown.grace",
        flag: None,
        default: "30s",
        allowed: "0s to 1h",
        meaning: "how long a drain lets requests in flight finish",
    },
];

impl Key {
    /// What is to be known of it.
    #[must_use]
    pub fn facts(self) -> &'static Facts {
        &KEYS[self as usize]
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// The key of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        KEYS.iter().find(|facts| facts.name == name).map(|facts| facts.key)
    }

    /// The environment variable that sets it: `COULEE_NATIVE__LISTEN`.
    #[must_use]
    pub fn variable(self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name().replace('.', "__").to_uppercase())
    }

    /// The key that `name` was perhaps meant to be: a few letters off, or written without its section.
    #[must_use]
    pub fn similar(name: &str) -> Option<Self> {
        let name = name.to_lowercase().replace('-', "_");
        // Of two that are equally near, the one written in full.
        let distance = |facts: &Facts| {
            let tail = facts.name.rsplit('.').next().unwrap_or(facts.name);
            let section = facts.name.split('.').next().unwrap_or(facts.name);
            let of_part = edits(tail, &name).min(edits(section, &name)) + 1;
            (edits(facts.name, &name), false).min((of_part, true))
        };
        let nearest = KEYS.iter().min_by_key(|facts| distance(facts))?;
        (distance(nearest).0 <= (name.len() / 3).clamp(1, 3)).then_some(nearest.key)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How the name of each variable begins that sets a key.
pub const VARIABLE_PREFIX: &str = "COULEE_";

/// Letters to insert, remove or replace until one text is the other. Quadratic: names are short.
#[must_use]
pub fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_by_name_and_at_their_own_place() {
        assert!(KEYS.windows(2).all(|pair| pair[0].name < pair[1].name));
        for facts in &KEYS {
            assert_eq!((facts.key.name(), Key::named(facts.name)), (facts.name, Some(facts.key)));
        }
        assert_eq!(Key::named("native"), None);
    }

    #[test]
    fn variables_separate_sections_by_two_underscores() {
        assert_eq!(Key::NativeListen.variable(), "COULEE_NATIVE__LISTEN");
        assert_eq!(Key::DataDir.variable(), "COULEE_DATA_DIR");
    }

    #[test]
    fn slips_of_the_pen_find_the_key_that_was_meant() {
        let table = [
            ("native.lisen", Some(Key::NativeListen)),
            ("listen", Some(Key::NativeListen)),
            ("native", Some(Key::NativeListen)),
            ("shard", Some(Key::Shards)),
            ("data-dir", Some(Key::DataDir)),
            ("datadir", Some(Key::DataDir)),
            ("log.levle", Some(Key::LogLevel)),
            ("memory.shards", Some(Key::MemoryShard)),
            ("replication.factor", None),
            ("x", None),
        ];
        for (name, key) in table {
            assert_eq!(Key::similar(name), key, "{name:?}");
        }
    }

    #[test]
    fn edits_count_letters() {
        for (from, to, count) in [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("shard", "shards", 1)] {
            assert_eq!((edits(from, to), edits(to, from)), (count, count), "{from:?} {to:?}");
        }
    }
}
