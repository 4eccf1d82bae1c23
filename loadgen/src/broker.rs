//! The `coulee` that lies beside this program, started for one run; knows nothing of what is measured.

use crate::fault::Fault;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running broker. It ends, and its data goes, with this value.
#[derive(Debug)]
pub(crate) struct Broker {
    child: Child,
    pub(crate) address: SocketAddr,
    data_dir: PathBuf,
}

impl Broker {
    /// Starts a broker of one shard on core 0, with its data in a new directory below `parent`, and waits until it is
    /// ready.
    pub(crate) fn start(parent: &Path, settings: &[String]) -> Result<Self, Fault> {
        let program = std::env::current_exe().map_err(Fault::machine("where this program lies"))?;
        let program = program.with_file_name("coulee");
        let data_dir = parent.join(format!("coulee-loadgen-{}", std::process::id()));
        fs::create_dir_all(&data_dir).map_err(Fault::machine("a data directory"))?;
        let mut command = Command::new(&program);
        command.args(["serve", "--shards", "1", "--cpus", "0", "--listen", "127.0.0.1:0", "--log-format", "json"]);
        command.arg("--data-dir").arg(&data_dir);
        settings.iter().for_each(|setting| {
            command.args(["--set", setting]);
        });
        let log = fs::File::create(data_dir.join("broker.log")).map_err(Fault::machine("a log file"))?;
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn();
        let mut child = spawned.map_err(Fault::machine("starting coulee"))?;
        let stdout = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let mut broker = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)), data_dir };
        read.map_err(Fault::machine("the ready line"))?;
        match ready_address(&line) {
            Some(address) => broker.address = address,
            None => {
                let log = fs::read_to_string(broker.data_dir.join("broker.log")).unwrap_or_default();
                return Err(Fault::Broker { detail: format!("not ready: {line}{log}") });
            }
        }
        Ok(broker)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Both may have happened already; a directory that stays is no reason to fail a run that was good.
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_dir_all(&self.data_dir).ok();
    }
}

/// The address in a ready line.
fn ready_address(line: &str) -> Option<SocketAddr> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    line.get("native")?.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_says_where_the_broker_listens() {
        let line = r#"{"ready":true,"native":"127.0.0.1:43121","shards":1,"data_dir":"data"}"#;
        assert_eq!(ready_address(line), Some(SocketAddr::from(([127, 0, 0, 1], 43121))));
        assert_eq!(ready_address("error[E2001]"), None);
    }
}
