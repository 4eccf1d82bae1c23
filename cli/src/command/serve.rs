//! `coulee serve`: owns the ready line, signals and the way to the end; the broker itself is the server crate's.

use coulee_server::config::Config;
use serde_json::json;
use std::io::Write;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::arguments::ServeArguments;
use crate::broker::{self, Broker};
use crate::code::LocalCode;
use crate::command::{Context, config, print, runtime};
use crate::failure::{Failure, Stop};
use crate::logging;

/// Runs a broker until a signal ends it.
pub(crate) fn run(context: &Context, arguments: &ServeArguments) -> Result<(), Stop> {
    let config = config::load(&arguments.layers)?;
    let fail = |error: std::io::Error| Failure::local(LocalCode::MachineUnfit, format!("no thread or signal: {error}"));
    logging::start(config.log_level, config.log_format, context.terminal.is_coloured).map_err(fail)?;
    let runtime = runtime()?;
    // Signals are taken before the broker starts, so that none finds it half started.
    let _entered = runtime.enter();
    let mut signals = Signals::new().map_err(fail)?;
    let broker = broker::start(&config)?;
    let drainer = broker.drainer();
    runtime.block_on(async {
        let waiting = tokio::task::spawn_blocking(move || (broker.wait_ready(), broker));
        tokio::pin!(waiting);
        let (ready, broker) = tokio::select! {
            done = &mut waiting => done,
            () = signals.next() => {
                drainer.drain();
                waiting.await
            }
        }
        .expect("waiting for threads does not panic");
        if let Err(failure) = ready {
            drainer.drain();
            broker.join()?;
            return Err(failure.into());
        }
        announce(context, &config, &broker)?;
        signals.next().await;
        drainer.drain();
        let ended = tokio::task::spawn_blocking(move || broker.join());
        tokio::select! {
            ended = ended => ended.expect("waiting for threads does not panic").map_err(Stop::from),
            // Asked twice: what is in flight is left as it is, as by kill -9, which the log survives.
            () = signals.next() => std::process::exit(1),
        }
    })
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The ready line: one JSON object, for whoever started the process.
fn announce(context: &Context, config: &Config, broker: &Broker) -> Result<(), Stop> {
    let native = broker.native_address();
    let line = ready_line(&native.to_string(), broker.shards(), &config.data_dir.display().to_string());
    print(|out| writeln!(out, "{line}"))?;
    context.terminal.next(&format!("coulee topic create hello --address {native}"));
    Ok(())
}

fn ready_line(native: &str, shards: u16, data_dir: &str) -> String {
    json!({"ready": true, "native": native, "shards": shards, "data_dir": data_dir}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_what_scripts_wait_for() {
        let expected = r#"{"ready":true,"native":"127.0.0.1:43121","shards":2,"data_dir":"data/a \"b\""}"#;
        assert_eq!(ready_line("127.0.0.1:43121", 2, "data/a \"b\""), expected);
    }
}
