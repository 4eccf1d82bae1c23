//! What is wrong with a configuration: owns faults and their places; corrects nothing.

use std::fmt;

use coulee_protocol::api::broker::Origin;

use super::key::Key;

/// Where a setting stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the configuration file.
    File {
        /// As it was named.
        path: Box<str>,
        /// From 1.
        line: usize,
        /// In letters, from 1.
        column: usize,
    },
    /// In an environment variable.
    Variable {
        /// Its name.
        name: Box<str>,
    },
    /// In a flag of the command line.
    Flag {
        /// Its name, dashes included.
        name: Box<str>,
    },
}

impl Place {
    /// The layer.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match self {
            Self::File { .. } => Origin::File,
            Self::Variable { .. } => Origin::Environment,
            Self::Flag { .. } => Origin::Flag,
        }
    }

    /// The place inside the layer: `coulee.toml:7`, `COULEE_SHARDS`, `--listen`.
    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::File { path, line, .. } => format!("{path}:{line}"),
            Self::Variable { name } | Self::Flag { name } => name.to_string(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(formatter, "{path}:{line}:{column}"),
            Self::Variable { name } | Self::Flag { name } => formatter.write_str(name),
        }
    }
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What.
    pub kind: FaultKind,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The file is no TOML.
    Syntax {
        /// What the parser says.
        message: Box<str>,
    },
    /// There is no such key.
    UnknownKey {
        /// As it was written.
        key: Box<str>,
        /// What was perhaps meant.
        similar: Option<Key>,
    },
    /// The key can't have this value.
    Value {
        /// The key.
        key: Key,
        /// As it was written.
        value: Box<str>,
        /// The values that it can have on this machine.
        allowed: Box<str>,
    },
    /// The text of `--set` has no `=`.
    NoValue {
        /// As it was written.
        text: Box<str>,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: ", self.place)?;
        match &self.kind {
            FaultKind::Syntax { message } => write!(formatter, "not TOML: {message}"),
            FaultKind::UnknownKey { key, similar: None } => write!(formatter, "unknown key {key:?}"),
            FaultKind::UnknownKey { key, similar: Some(similar) } => match self.place {
                Place::Variable { .. } => {
                    write!(formatter, "unknown key {key:?}, did you mean {}?", similar.variable())
                }
                _ => write!(formatter, "unknown key {key:?}, did you mean \"{similar}\"?"),
            },
            FaultKind::Value { key, value, allowed } => {
                write!(formatter, "{key} can't be {value:?}, allowed: {allowed}")
            }
            FaultKind::NoValue { text } => write!(formatter, "{text:?} is no key=value"),
        }
    }
}

/// Everything that is wrong with a configuration: at least one fault, in the order of the layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The faults.
    pub faults: Vec<Fault>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(formatter, "{separator}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
