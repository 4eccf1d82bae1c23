//! The commands: owns how they reach a broker and standard output; each says for itself what it does.

pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod consume;
pub(crate) mod doctor;
pub(crate) mod group;
pub(crate) mod produce;
pub(crate) mod repair;
pub(crate) mod serve;
pub(crate) mod simulate;
pub(crate) mod topic;
pub(crate) mod verify;

mod ledger;

use std::io::{self, BufWriter, StdoutLock, Write};
use std::sync::Arc;
use std::time::Duration;

use coulee_client::{AdminError, Client, ErrorCode};
use coulee_server::config::edits;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use crate::arguments::{Arguments, Command, Shared, SimulateCommand};
use crate::code::LocalCode;
use crate::failure::{Exit, Failure, Stop};
use crate::terminal::Terminal;

/// Standard output is written in pieces of this size.
const OUT_BYTES: usize = 64 << 10;
/// How long connecting may take, however long a request may.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// What every command has at hand.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) shared: Shared,
    pub(crate) terminal: Terminal,
}

/// Runs one command.
pub(crate) fn run(arguments: Arguments, terminal: Terminal) -> Result<(), Stop> {
    let context = Context { shared: arguments.shared, terminal };
    match arguments.command {
        Command::Serve(serve) => serve::run(&context, &serve),
        Command::Doctor(doctor) => doctor::run(&context, &doctor),
        Command::Verify(verify) => verify::run(&context, &verify),
        Command::Repair(repair) => repair::run(&context, &repair),
        Command::Config(config) => config::run(&context, &config),
        Command::Completion { shell } => completion::run(shell),
        Command::Complete { words } => completion::topics(&context, &words),
        Command::Topic(topic) => runtime()?.block_on(topic::run(&context, topic)),
        Command::Produce(produce) => runtime()?.block_on(produce::run(&context, produce)),
        Command::Consume(consume) => runtime()?.block_on(consume::run(&context, consume)),
        Command::Group(group) => runtime()?.block_on(group::run(&context, group)),
        Command::Simulate(SimulateCommand::Users(users)) => runtime()?.block_on(simulate::run(&context, users)),
    }
}

/// The runtime of one command: one thread.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    let made = Builder::new_current_thread().enable_all().build();
    made.map_err(|error| Failure::local(LocalCode::MachineUnfit, format!("no runtime: {error}")))
}

/// Standard output, gathered; whoever has it flushes it.
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(OUT_BYTES, io::stdout().lock())
}

/// Writes an answer as a whole.
pub(crate) fn print(write: impl FnOnce(&mut BufWriter<StdoutLock<'static>>) -> io::Result<()>) -> Result<(), Stop> {
    let mut out = stdout();
    write(&mut out)?;
    out.flush()?;
    Ok(())
}

/// Wakes at the first SIGINT; the second ends the process at once.
pub(crate) fn interrupts() -> Arc<Notify> {
    let interrupted = Arc::new(Notify::new());
    let told = interrupted.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            told.notify_one();
        }
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(i32::from(Exit::Failed as u8));
        }
    });
    interrupted
}

impl Context {
    /// A connection to the broker at `--address`.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let client = Client::builder()
            .address(&self.shared.address)
            .client_name(concat!("coulee-cli ", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.shared.timeout.min(CONNECT_MAX))
            .request_timeout(self.shared.timeout);
        Ok(client.connect().await?)
    }
}

/// A failure around a topic: one that does not exist gets those that do as a hint.
pub(crate) async fn of_topic(client: &Client, topic: &str, error: AdminError) -> Failure {
    let is_unknown = matches!(error.code(), Some(ErrorCode::UnknownTopicOrPartition | ErrorCode::UnknownTopicId));
    if !is_unknown || matches!(error, AdminError::NoPartition { .. }) {
        return error.into();
    }
    // The failure is clear without the list, so it may fail too.
    let names: Vec<String> =
        client.topics(false).await.unwrap_or_default().into_iter().map(|topic| topic.name).collect();
    unknown_topic(topic, &names)
}

/// There is no such topic.
fn unknown_topic(topic: &str, names: &[String]) -> Failure {
    let create = format!("create it with: coulee topic create {topic}");
    let nearest = names.iter().map(|name| (edits(name, topic), name)).min();
    let similar = nearest.filter(|(distance, _)| *distance <= (topic.len() / 3).clamp(1, 3));
    let hint = similar.map_or_else(|| create.clone(), |(_, name)| format!("did you mean {name:?}?  {create}"));
    Failure::coded(ErrorCode::UnknownTopicOrPartition, format!("topic {topic:?} does not exist")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_topic_brings_the_name_that_was_perhaps_meant() {
        let names = ["order".to_owned(), "events.raw".to_owned()];
        let failure = unknown_topic("orders", &names);
        let expected = "error[E3]: topic \"orders\" does not exist\n  \
                        hint: did you mean \"order\"?  create it with: coulee topic create orders\n  \
                        docs: docs/errors.md#e3\n";
        assert_eq!(failure.text(false), expected);
        let hint = unknown_topic("payments", &names).hint;
        assert_eq!(hint.as_deref(), Some("create it with: coulee topic create payments"));
    }
}
