//! From files, variables and flags to settings: owns what a layer may look like; knows no value's meaning.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::fault::{Fault, FaultKind, Place};
use super::key::{KEYS, Key, VARIABLE_PREFIX};

/// The configuration file as it was read.
#[derive(Clone, Copy, Debug)]
pub struct FileText<'a> {
    /// Its path, for messages.
    pub path: &'a str,
    /// Its text.
    pub text: &'a str,
}

/// A flag of the command line that sets one key.
#[derive(Clone, Copy, Debug)]
pub struct Flag<'a> {
    /// The key.
    pub key: Key,
    /// The value as it was written.
    pub value: &'a str,
}

/// A key, its value as text, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) key: Key,
    pub(super) value: String,
    pub(super) place: Place,
}

/// What layers are read into.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) settings: Vec<Setting>,
    pub(super) faults: Vec<Fault>,
}

impl Reading {
    /// Reads the configuration file.
    pub(super) fn file(&mut self, file: FileText<'_>) {
        let root = match DeTable::parse(file.text) {
            Ok(root) => root,
            Err(error) => {
                let message = error.message().lines().collect::<Vec<_>>().join(", ").into();
                let place = place_in(file, error.span().unwrap_or_default());
                return self.faults.push(Fault { place, kind: FaultKind::Syntax { message } });
            }
        };
        self.table(file, "", root.get_ref());
    }

    fn table(&mut self, file: FileText<'_>, section: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let path = if section.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{section}.{name}", name = name.get_ref())
            };
            let is_section = KEYS
                .iter()
                .any(|facts| facts.name.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('.')));
            match (Key::named(&path), value.get_ref()) {
                (None, DeValue::Table(inner)) if is_section => self.table(file, &path, inner),
                (None, _) => self.unknown(&path, place_in(file, name.span())),
                (Some(key), found) => match scalar(found) {
                    Some(text) => {
                        self.settings.push(Setting { key, value: text, place: place_in(file, name.span()) });
                    }
                    None => {
                        let written = file.text.get(value.span()).unwrap_or_default().into();
                        let kind = FaultKind::Value { key, value: written, allowed: key.facts().allowed.into() };
                        self.faults.push(Fault { place: place_in(file, value.span()), kind });
                    }
                },
            }
        }
    }

    /// Reads the environment: what begins with `COULEE_` and is, or was surely meant to be, a key.
    ///
    /// Orchestrators put variables of their own beside ours (`COULEE_PORT`, `COULEE_SERVICE_HOST`), so a name that is
    /// like no key and has no `__` is none of our business.
    pub(super) fn environment<'a>(&mut self, variables: impl IntoIterator<Item = (&'a str, &'a str)>) {
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix(VARIABLE_PREFIX).filter(|_| !BESIDE.contains(&name)) else { continue };
            let path = rest.replace("__", ".").to_lowercase();
            let place = Place::Variable { name: name.into() };
            match KEYS.iter().find(|facts| facts.key.variable() == name) {
                Some(facts) => self.settings.push(Setting { key: facts.key, value: value.into(), place }),
                None if rest.contains("__") || Key::similar(&path).is_some() => self.unknown(&path, place),
                None => {}
            }
        }
    }

    /// Reads flags that have a key of their own.
    pub(super) fn flags(&mut self, flags: &[Flag<'_>]) {
        for Flag { key, value } in flags {
            let name = key.facts().flag.unwrap_or("--set").into();
            self.settings.push(Setting { key: *key, value: (*value).into(), place: Place::Flag { name } });
        }
    }

    /// Reads the texts of `--set`.
    pub(super) fn sets(&mut self, sets: &[&str]) {
        for text in sets {
            let place = Place::Flag { name: "--set".into() };
            match text.split_once('=') {
                None => self.faults.push(Fault { place, kind: FaultKind::NoValue { text: (*text).into() } }),
                Some((name, value)) => match Key::named(name.trim()) {
                    Some(key) => self.settings.push(Setting { key, value: value.trim().into(), place }),
                    None => self.unknown(name.trim(), place),
                },
            }
        }
    }

    fn unknown(&mut self, key: &str, place: Place) {
        let kind = FaultKind::UnknownKey { key: key.into(), similar: Key::similar(key) };
        self.faults.push(Fault { place, kind });
    }
}

/// Variables with our prefix that set no key: the command line's own, and the tests'.
const BESIDE: [&str; 3] = ["COULEE_CONFIG", "COULEE_ADDRESS", "COULEE_GOLDEN"];

/// The value as a flag would have it; a list is joined by commas.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Array(values) => {
            let parts: Option<Vec<String>> = values.iter().map(|value| scalar(value.get_ref())).collect();
            parts.map(|parts| parts.join(","))
        }
        _ => None,
    }
}

/// Line and column of the beginning of a span.
fn place_in(file: FileText<'_>, span: Range<usize>) -> Place {
    let before = file.text.get(..span.start).unwrap_or(file.text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    Place::File { path: file.path.into(), line, column: before[line_start..].chars().count() + 1 }
}
