//! `coulee config`: owns the reading of layers and their showing; knows no key's meaning.

use std::fs;
use std::path::Path;

use coulee_client::{BrokerConfig, Origin};
use coulee_server::config::{Config, Entry, FileText, Flag, KEYS, Key, Layers};
use serde_json::{Map, Value};

use crate::arguments::{AnswerArguments, ConfigCommand, LayerArguments, Output};
use crate::code::LocalCode;
use crate::command::{Context, print, runtime};
use crate::failure::{Failure, Stop, unreadable};
use crate::machine;
use crate::sheet::{Sheet, write_value};

/// Runs one of the config commands.
pub(crate) fn run(context: &Context, command: &ConfigCommand) -> Result<(), Stop> {
    match command {
        ConfigCommand::Check { layers } => {
            load(layers)?;
            context.terminal.say("the configuration is sound");
            context.terminal.next("coulee config show --effective");
            Ok(())
        }
        ConfigCommand::Show { layers, effective, running, answer } => {
            let rows = rows(context, layers, *running)?;
            show(rows.into_iter().filter(|row| *effective || *running || row.origin != "default"), *answer)
        }
        ConfigCommand::Explain { key, layers, running, answer } => {
            let key = Key::named(key).ok_or_else(|| unknown_key(key))?;
            let rows = rows(context, layers, *running)?;
            explain(key, rows.iter().find(|row| row.key == key.name()), *answer)
        }
    }
}

/// Reads the layers that a command line gives.
pub(crate) fn load(arguments: &LayerArguments) -> Result<Config, Failure> {
    let text = match &arguments.config {
        Some(path) => Some((path.as_str(), fs::read_to_string(path).map_err(|error| unreadable(path, &error))?)),
        None => None,
    };
    let variables: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let layers = Layers {
        file: text.as_ref().map(|(path, text)| FileText { path, text }),
        environment: variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        flags: arguments.flags().map(|(key, value)| Flag { key, value }).collect(),
        sets: arguments.set.iter().map(String::as_str).collect(),
    };
    // Which disk counts is known once the data directory is.
    let here = machine::read(Path::new("."));
    let config = Config::load(&layers, &here)?;
    let there = machine::read(&config.data_dir);
    Ok(Config::load(&layers, &there)?)
}

/// A key and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    key: String,
    value: String,
    origin: &'static str,
    detail: String,
}

impl From<Entry> for Row {
    fn from(entry: Entry) -> Self {
        let Entry { key, value, origin, detail } = entry;
        Self { key: key.name().to_owned(), value, origin: origin_name(Some(origin)), detail }
    }
}

impl From<BrokerConfig> for Row {
    fn from(entry: BrokerConfig) -> Self {
        let BrokerConfig { key, value, origin, origin_detail } = entry;
        Self { key, value, origin: origin_name(origin), detail: origin_detail }
    }
}

fn origin_name(origin: Option<Origin>) -> &'static str {
    match origin {
        Some(Origin::Default) => "default",
        Some(Origin::File) => "file",
        Some(Origin::Environment) => "environment",
        Some(Origin::Flag) => "flag",
        None => "unknown",
    }
}

fn rows(context: &Context, layers: &LayerArguments, is_running: bool) -> Result<Vec<Row>, Failure> {
    if !is_running {
        return Ok(load(layers)?.entries().into_iter().map(Row::from).collect());
    }
    runtime()?.block_on(async {
        let described = context.connect().await?.describe_broker().await?;
        Ok(described.entries.into_iter().map(Row::from).collect())
    })
}

fn show(rows: impl Iterator<Item = Row>, answer: AnswerArguments) -> Result<(), Stop> {
    let mut sheet = Sheet::new(&["key", "value", "origin", "from"]);
    for Row { key, value, origin, detail } in rows {
        sheet.push([key.into(), value.into(), origin.into(), detail.into()]);
    }
    print(|out| sheet.write(answer.output, out))
}

fn explain(key: Key, row: Option<&Row>, answer: AnswerArguments) -> Result<(), Stop> {
    let facts = key.facts();
    let set_by = |row: &Row| {
        if row.detail.is_empty() { row.origin.to_owned() } else { format!("{} {}", row.origin, row.detail) }
    };
    let mut object = Map::new();
    let mut put = |name: &str, value: &str| object.insert(name.into(), value.into());
    put("key", facts.name);
    put("value", row.map_or("", |row| &row.value));
    put("from", &row.map(set_by).unwrap_or_default());
    put("meaning", facts.meaning);
    put("default", facts.default);
    put("allowed", facts.allowed);
    put("variable", &key.variable());
    put("flag", facts.flag.unwrap_or("--set"));
    print(|out| match answer.output {
        Output::Table => object.iter().try_for_each(|(name, value)| {
            std::io::Write::write_fmt(out, format_args!("{name:<9} {}\n", value.as_str().unwrap_or_default()))
        }),
        Output::Csv => {
            let mut sheet = Sheet::new(&["key", "value", "from", "meaning", "default", "allowed", "variable", "flag"]);
            sheet.push(object.values().cloned());
            sheet.write(Output::Csv, out)
        }
        output => write_value(&Value::Object(object.clone()), output, out),
    })
}

fn unknown_key(key: &str) -> Failure {
    let names: Vec<&str> = KEYS.iter().map(|facts| facts.name).collect();
    let hint = Key::similar(key).map_or_else(
        || format!("the keys are {}", names.join(", ")),
        |similar| format!("did you mean: coulee config explain {similar}"),
    );
    Failure::local(LocalCode::ConfigInvalid, format!("there is no key {key:?}")).hint(hint)
}
