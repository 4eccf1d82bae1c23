//! A `coulee` of one shard, started to be measured: owns the process and its directory; knows nothing of what is
//! measured.

use crate::fault::Fault;
use crate::machine;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A directory that goes with this value.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// A new one below `parent`, named after this process.
    pub(crate) fn new(parent: &Path) -> Result<Self, Fault> {
        remove_leavings(parent);
        let path = parent.join(format!("coulee-loadgen-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(Fault::machine("a data directory"))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // A directory that stays is no reason to fail a run that was good.
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Removes what processes have left here that were killed: gigabytes, mostly.
fn remove_leavings(parent: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| is_left(&entry.file_name().to_string_lossy())) {
        // What cannot be removed is in nobody's way.
        fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path())).ok();
    }
}

/// Whether a name is one of ours, of a process that is gone.
fn is_left(name: &str) -> bool {
    let id = name.strip_prefix("coulee-loadgen-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
    id.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists())
}

/// A running broker. It ends with this value, its data does not.
#[derive(Debug)]
pub(crate) struct Broker {
    child: Child,
    pub(crate) address: SocketAddr,
}

/// The program: `named`, or the one beside this program.
pub(crate) fn program(named: Option<&Path>) -> Result<PathBuf, Fault> {
    let own = std::env::current_exe().map_err(Fault::machine("where this program lies"))?;
    let program = named.map_or_else(|| own.with_file_name("coulee"), Path::to_path_buf);
    if !program.exists() {
        let detail =
            format!("{} is missing: build it beside this program, or name one with --broker", program.display());
        return Err(Fault::Broker { detail });
    }
    Ok(program)
}

impl Broker {
    /// Starts a broker of one shard on core 0 with its data in `data_dir`, and waits until it is ready.
    pub(crate) fn start(program: &Path, data_dir: &Path, settings: &[String]) -> Result<Self, Fault> {
        let mut command = Command::new(program);
        command.args(["serve", "--shards", "1", "--listen", "127.0.0.1:0", "--log-format", "json"]);
        if !machine::is_single() {
            command.args(["--cpus", "0"]);
        }
        command.arg("--data-dir").arg(data_dir);
        settings.iter().for_each(|setting| {
            command.args(["--set", setting]);
        });
        let log_path = data_dir.with_extension("log");
        let log = fs::File::create(&log_path).map_err(Fault::machine("a log file"))?;
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn();
        let mut child = spawned.map_err(Fault::machine("starting coulee"))?;
        let stdout = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let mut broker = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        read.map_err(Fault::machine("the ready line"))?;
        let Some(address) = ready_address(&line) else {
            let log = fs::read_to_string(log_path).unwrap_or_default();
            return Err(Fault::Broker { detail: format!("not ready: {line}{log}") });
        };
        broker.address = address;
        Ok(broker)
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as its users do, so that it closes its log, and waits for that.
    pub(crate) fn stop(mut self) -> Result<(), Fault> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child has a process id");
        kill_process(id, Signal::TERM).map_err(|error| Fault::machine("stopping coulee")(error.into()))?;
        let status = self.child.wait().map_err(Fault::machine("stopping coulee"))?;
        if status.success() { Ok(()) } else { Err(Fault::Broker { detail: format!("it ended with {status}") }) }
    }

    /// Kill -9. When this returns the process is gone.
    pub(crate) fn kill(mut self) -> Result<(), Fault> {
        self.child.kill().map_err(Fault::machine("killing coulee"))?;
        self.child.wait().map(|_| ()).map_err(Fault::machine("killing coulee"))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Both may have happened already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// CPU time of a process, in microseconds, and its resident memory in bytes, as the system says.
pub(crate) fn usage_of(id: u32) -> Result<(u64, u64), Fault> {
    let read = |file| fs::read_to_string(format!("/proc/{id}/{file}")).map_err(Fault::machine("what coulee uses"));
    let (stat, status) = (read("stat")?, read("status")?);
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    let ticks = cpu_ticks(&stat).ok_or_else(|| Fault::Broker { detail: "its CPU time cannot be read".into() })?;
    let rss_kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    Ok((ticks * 1_000_000 / ticks_per_second, rss_kib.unwrap_or(0_u64) << 10))
}

/// User and system time in a line of /proc/PID/stat: fields 14 and 15, counted behind the name, which may hold spaces.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
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

    #[test]
    fn what_a_living_process_has_made_is_not_left() {
        assert!(!is_left(&format!("coulee-loadgen-{}", std::process::id())));
        assert!(is_left("coulee-loadgen-4194999") && is_left("coulee-loadgen-4194999-loop"));
        assert!(!is_left("coulee-loadgen-x") && !is_left("data"));
    }

    #[test]
    fn cpu_time_is_found_behind_a_name_with_spaces() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 99 0 0 0 120 30 0 0 20 0 3 0 55";
        assert_eq!(cpu_ticks(stat), Some(150));
    }

    #[test]
    fn a_process_is_asked_for_what_it_uses() {
        let (_, rss) = usage_of(std::process::id()).unwrap();
        assert!(rss > 100_000, "{rss}");
    }
}
