//! The command line as it is written: owns commands, flags and help; runs nothing.

use std::time::Duration;

use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand, ValueEnum, ValueHint};
use coulee_server::config::{Key, parse_duration};

use crate::offset::{OffsetFrom, SeekTo};
use crate::record_format::RecordFormat;

/// Event streaming with acknowledgements that mean on disk.
#[derive(Debug, Parser)]
#[command(name = "coulee", version, arg_required_else_help = true, propagate_version = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) shared: Shared,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Shared {
    /// The broker to talk to.
    #[arg(long, global = true, env = "COULEE_ADDRESS", default_value = "127.0.0.1:7700", value_name = "HOST:PORT")]
    pub(crate) address: String,
    /// How long a request or a delivery may take, tries included: 500ms, 30s, 2m.
    #[arg(long, global = true, default_value = "30s", value_parser = timeout, value_name = "TIME")]
    pub(crate) timeout: Duration,
    /// Say nothing but errors.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// No colours; the variable NO_COLOR does the same.
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a broker.
    Serve(ServeArguments),
    /// Create, list, describe, change and delete topics.
    #[command(subcommand)]
    Topic(TopicCommand),
    /// Send lines to a topic, each as one record.
    Produce(ProduceArguments),
    /// Read a topic.
    Consume(ConsumeArguments),
    /// List, describe, move and delete consumer groups.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Make traffic as real users would.
    #[command(subcommand)]
    Simulate(SimulateCommand),
    /// Check whether this machine can run a broker, and what would make it run better.
    Doctor(DoctorArguments),
    /// Check what a stopped broker has on disk, or that a running one keeps what it acknowledges.
    Verify(VerifyArguments),
    /// Mend the directory of a stopped broker as far as it can be, and mark what is lost; without -y only say how.
    Repair(RepairArguments),
    /// Check, show and explain a broker's configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script.
    Completion {
        /// For this shell.
        shell: Shell,
    },
    /// Print what the last word may be, where it is the name of a topic; nothing, whatever is wrong.
    #[command(name = "__complete", hide = true)]
    Complete {
        /// The words behind the program's name, up to the one that is written.
        #[arg(last = true)]
        words: Vec<String>,
    },
}

/// How an answer looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// One JSON value.
    Json,
    /// One JSON object a line.
    Jsonl,
    /// YAML.
    Yaml,
    /// Comma-separated, with a line of names.
    Csv,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
    Powershell,
}

/// The layers of a broker's configuration that a command line can give.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct LayerArguments {
    /// The directory that holds all data.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    data_dir: Option<String>,
    /// Where clients of the native protocol connect; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// How many shards.
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// The CPUs that shards are pinned to: 0,2-3.
    #[arg(long, value_name = "LIST")]
    cpus: Option<String>,
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "COULEE_CONFIG", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<String>,
    /// A configuration key and its value; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub(crate) set: Vec<String>,
    /// How log lines look: pretty or json.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl LayerArguments {
    /// The flags that have a key of their own, where they were given.
    pub(crate) fn flags(&self) -> impl Iterator<Item = (Key, &str)> {
        let flags = [
            (Key::DataDir, &self.data_dir),
            (Key::NativeListen, &self.listen),
            (Key::Shards, &self.shards),
            (Key::Cpus, &self.cpus),
            (Key::LogFormat, &self.log_format),
        ];
        flags.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?)))
    }
}

#[derive(Args, Debug)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    pub(crate) layers: LayerArguments,
}

#[derive(Args, Debug)]
pub(crate) struct DoctorArguments {
    #[command(flatten)]
    pub(crate) layers: LayerArguments,
    #[command(flatten)]
    pub(crate) answer: AnswerArguments,
}

#[derive(Args, Clone, Debug)]
#[command(group(ArgGroup::new("what").required(true).args(["data_dir", "duration"])))]
pub(crate) struct VerifyArguments {
    /// Check every byte of this directory of a stopped broker, and change nothing.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data_dir: Option<String>,
    /// Send records to the broker at --address for so long, and read all of them back.
    #[arg(long = "for", value_name = "TIME", value_parser = timeout)]
    pub(crate) duration: Option<Duration>,
    /// The topic to make for it; without it one with a name that nobody has.
    #[arg(long, value_name = "NAME", conflicts_with = "data_dir")]
    pub(crate) topic: Option<String>,
    /// Its partitions.
    #[arg(short, long, value_name = "N", default_value_t = 4, conflicts_with = "data_dir",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) partitions: u32,
    /// Producers beside each other.
    #[arg(long, value_name = "N", default_value_t = 4, conflicts_with = "data_dir",
          value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub(crate) producers: u16,
    /// Records a second, of all producers together.
    #[arg(long, value_name = "N", default_value_t = 10_000, conflicts_with = "data_dir",
          value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) rate: u64,
    /// Bytes of a value, at least.
    #[arg(long, value_name = "BYTES", default_value_t = 100, conflicts_with = "data_dir", hide = true)]
    pub(crate) size: usize,
    /// Keep the topic when the proof holds; otherwise it is kept anyway.
    #[arg(long, conflicts_with = "data_dir")]
    pub(crate) keep: bool,
    #[command(flatten)]
    pub(crate) answer: AnswerArguments,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RepairArguments {
    /// The directory.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data_dir: String,
    /// Do it.
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Only say what would be done, which is the default.
    #[arg(long, conflicts_with = "yes")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) answer: AnswerArguments,
}

#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct AnswerArguments {
    /// How the answer looks.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Create a topic.
    Create {
        /// Its name.
        name: String,
        /// How many partitions; without it the broker's default.
        #[arg(short, long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        partitions: u32,
        /// A configuration key and its value; may be repeated.
        #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
        set: Vec<(String, String)>,
        /// Check everything, create nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        answer: AnswerArguments,
    },
    /// List topics.
    List {
        /// The broker's own topics too.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        answer: AnswerArguments,
    },
    /// Show a topic's partitions and configuration.
    Describe {
        /// Its name.
        name: String,
        #[command(flatten)]
        answer: AnswerArguments,
    },
    /// Change a topic's configuration, or give it more partitions.
    #[command(group(ArgGroup::new("change").required(true).multiple(true).args(["partitions", "set", "unset"])))]
    Alter {
        /// Its name.
        name: String,
        /// How many partitions there are afterwards: never fewer than before.
        #[arg(short, long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        partitions: u32,
        /// A configuration key and its new value; may be repeated.
        #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
        set: Vec<(String, String)>,
        /// A configuration key that gets its default back; may be repeated.
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
        /// Check everything, change nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        answer: AnswerArguments,
    },
    /// Delete a topic and all of its records.
    Delete {
        /// Its name.
        name: String,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        /// Say what would be deleted, delete nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// List groups.
    List {
        #[command(flatten)]
        answer: AnswerArguments,
    },
    /// Show what a group has committed, how far behind it is and who reads.
    Describe {
        /// Its name.
        name: String,
        #[command(flatten)]
        answer: AnswerArguments,
    },
    /// Move a group without members: it goes on somewhere else.
    Seek {
        /// Its name.
        name: String,
        /// Where to: start, end, an offset, @time, or a duration ago (-1h, -30m).
        #[arg(long, value_name = "start|end|N|@TIME|-DURATION", allow_hyphen_values = true)]
        to: SeekTo,
        /// Only this topic, or this partition of it; may be repeated. Without it all that the group has offsets of.
        #[arg(long, value_name = "TOPIC[:PARTITION]", value_parser = place)]
        topic: Vec<(String, Option<u32>)>,
        /// Show before and after, move nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        answer: AnswerArguments,
    },
    /// Delete a group without members, and what it has committed.
    Delete {
        /// Its name.
        name: String,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        /// Say what would be deleted, delete nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Args, Debug)]
pub(crate) struct ProduceArguments {
    /// The topic.
    pub(crate) topic: String,
    /// Read this file instead of standard input.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<String>,
    /// The field of each line's JSON object that becomes the key: userId, payload.userId.
    #[arg(long, value_name = "NAME")]
    pub(crate) key_field: Option<String>,
    /// What an acknowledgement means: 0 nothing, 1 the topic's durability.
    #[arg(long, value_name = "0|1", default_value = "1", value_parser = clap::value_parser!(u8).range(0..=1))]
    pub(crate) acks: u8,
    /// Read and check every line, send none.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print what was acknowledged: json is one object at the end, jsonl one object for each record as it comes.
    #[arg(short, long, value_enum)]
    pub(crate) output: Option<Summary>,
}

/// How a summary looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Summary {
    /// One JSON object at the end: counts, and the end of each partition.
    Json,
    /// One JSON object a line, for each record that was acknowledged.
    Jsonl,
}

#[derive(Args, Debug)]
pub(crate) struct ConsumeArguments {
    /// The topic.
    pub(crate) topic: String,
    /// Where to begin in each partition: start, end, an offset, or @time (@2026-11-20T10:00Z, or @ and milliseconds).
    #[arg(long, value_name = "start|end|N|@TIME", default_value = "start")]
    pub(crate) offset: OffsetFrom,
    /// Read as a member of this group: go on where it has committed, and commit what was printed. Partitions without a
    /// committed offset begin at --offset, start or end.
    #[arg(short, long, value_name = "GROUP", conflicts_with_all = ["partition", "until_end", "skip_damaged"])]
    pub(crate) group: Option<String>,
    /// Only this partition; may be repeated.
    #[arg(short, long, value_name = "N")]
    pub(crate) partition: Vec<u32>,
    /// End after so many records.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) num: Option<u64>,
    /// End where the partitions ended when the command began.
    #[arg(long)]
    pub(crate) until_end: bool,
    /// Step over damaged records, and end with an error all the same.
    #[arg(long)]
    pub(crate) skip_damaged: bool,
    /// How a record looks: %t topic, %p partition, %o offset, %k key, %v value, %h headers, %d timestamp in
    /// milliseconds, %% and \n \r \t \\.
    #[arg(short, long, value_name = "FORMAT", default_value = r"%v\n")]
    pub(crate) format: RecordFormat,
    /// One JSON object for each record: jsonl.
    #[arg(short, long, value_enum, conflicts_with = "format")]
    pub(crate) output: Option<Lines>,
}

/// How records look, if not by a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lines {
    /// One JSON object a line.
    Jsonl,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SimulateCommand {
    /// Users that log in, look at pages, click, fill in forms and log out. The key is the user's id.
    Users(UsersArguments),
}

#[derive(Args, Debug)]
pub(crate) struct UsersArguments {
    /// The topic.
    pub(crate) topic: String,
    /// Events a second. Without it: as fast as they are taken with --count, else 1000.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(crate) rate: Option<u64>,
    /// End after so many events; without it, when interrupted.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// The same seed makes the same users do the same; printed when it is not given.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Print the events instead of sending them.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print what was acknowledged: json is one object at the end, jsonl one object for each record as it comes.
    #[arg(short, long, value_enum, conflicts_with = "dry_run")]
    pub(crate) output: Option<Summary>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check the layers, and say what is wrong with them.
    Check {
        #[command(flatten)]
        layers: LayerArguments,
    },
    /// Show what is set.
    Show {
        #[command(flatten)]
        layers: LayerArguments,
        /// Every key, those at their default too.
        #[arg(long)]
        effective: bool,
        /// Ask the broker at --address instead.
        #[arg(long)]
        running: bool,
        #[command(flatten)]
        answer: AnswerArguments,
    },
    /// Say what a key does, what it is, and where that comes from.
    Explain {
        /// The key.
        key: String,
        #[command(flatten)]
        layers: LayerArguments,
        /// Ask the broker at --address instead.
        #[arg(long)]
        running: bool,
        #[command(flatten)]
        answer: AnswerArguments,
    },
}

fn timeout(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_millis(1)..=Duration::from_secs(86_400);
    parse_duration(text)
        .filter(|duration| allowed.contains(duration))
        .ok_or_else(|| "expected a whole number with ms, s, m or h, from 1ms to 24h".to_owned())
}

/// A topic, and perhaps one of its partitions.
fn place(text: &str) -> Result<(String, Option<u32>), String> {
    match text.split_once(':') {
        None => Ok((text.to_owned(), None)),
        Some((topic, partition)) => match partition.parse() {
            Ok(partition) => Ok((topic.to_owned(), Some(partition))),
            Err(_) => Err("expected TOPIC or TOPIC:PARTITION".to_owned()),
        },
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| "expected KEY=VALUE".to_owned())?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn flags_and_commands_contradict_each_other_nowhere() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_takes_an_address() {
        let lines = [
            "coulee topic list --address h:1",
            "coulee --address h:1 produce t --file f --key-field userId --acks 0",
            "coulee consume t --offset @2026-11-20T10:00Z -n 3 --until-end -f %v\\n --skip-damaged --address h:1",
            "coulee consume t --group g -n 3 --address h:1",
            "coulee group seek g --to -1h --topic t:3 --topic u --dry-run --address h:1",
            "coulee group delete g -y --address h:1",
            "coulee simulate users t --rate 10 --count 5 --seed 1 --address h:1",
            "coulee config show --effective --address h:1",
            "coulee doctor --address h:1",
            "coulee verify --data-dir d -o json --address h:1",
            "coulee repair --data-dir d -y -o json --address h:1",
            "coulee verify --for 60s -p 2 --producers 3 --rate 9 --topic t --keep --address h:1",
            "coulee serve --data-dir d --listen h:0 --shards 2 --cpus 0-1 --config f --set a=b --set c=d --address h:1",
            "coulee serve --log-format json --address h:1",
            "coulee completion zsh --address h:1",
        ];
        for line in lines {
            let arguments =
                Arguments::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(arguments.shared.address, "h:1", "{line}");
        }
    }

    #[test]
    fn flags_that_exclude_each_other_are_refused() {
        for line in [
            "coulee consume t -f %v -o jsonl",
            "coulee consume t -n 0",
            "coulee consume t --group g --until-end",
            "coulee group seek g",
            "coulee group seek g --to end --topic t:x",
            "coulee topic alter t",
            "coulee produce t --acks 2",
            "coulee simulate users t --dry-run -o json",
            "coulee topic create t --set durability",
            "coulee topic list --timeout 5",
            "coulee verify",
            "coulee verify --data-dir d --for 1s",
            "coulee verify --data-dir d --keep",
            "coulee repair -y",
            "coulee repair --data-dir d -y --dry-run",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
