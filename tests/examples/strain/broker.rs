//! A broker as a process: started, looked at through /proc, killed; knows no protocol.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;

pub(crate) struct Broker {
    child: Child,
    pub(crate) address: String,
    /// From the start of the process to its ready line.
    pub(crate) started_in: Duration,
}

/// What /proc says of a process, in KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    pub(crate) anonymous: u64,
    pub(crate) file: u64,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { resident, anonymous, file } = self;
        write!(formatter, "{resident} KiB resident ({anonymous} anonymous, {file} of files)")
    }
}

impl Broker {
    pub(crate) fn start(binary: &Path, dir: &Path, more: &[String]) -> Outcome<Self> {
        let began = Instant::now();
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.with_extension("log"))?;
        let mut child = Command::new(binary)
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("it is piped")?).read_line(&mut line)?;
        let started_in = began.elapsed();
        let address = line.split("\"native\":\"").nth(1).and_then(|rest| rest.split('"').next());
        let address = address.ok_or_else(|| format!("no ready line: {line:?}"))?.to_owned();
        Ok(Self { child, address, started_in })
    }

    fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.child.id()))
    }

    pub(crate) fn memory(&self) -> Outcome<Memory> {
        let status = fs::read_to_string(self.proc("status"))?;
        let of = |key: &str| -> Outcome<u64> {
            let line = status.lines().find(|line| line.starts_with(key)).ok_or("a line of status is missing")?;
            Ok(line.split_whitespace().nth(1).ok_or("it has a value")?.parse()?)
        };
        Ok(Memory { resident: of("VmRSS:")?, anonymous: of("RssAnon:")?, file: of("RssFile:")? })
    }

    /// CPU time so far, user and system, in clock ticks of 10 ms.
    pub(crate) fn cpu_ticks(&self) -> Outcome<u64> {
        let stat = fs::read_to_string(self.proc("stat"))?;
        let rest = stat.rsplit(')').next().ok_or("it has a name")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    }

    /// CPU time of each thread so far, in nanoseconds.
    pub(crate) fn threads_cpu(&self) -> Outcome<BTreeMap<PathBuf, (String, u64)>> {
        let mut found = BTreeMap::new();
        for task in fs::read_dir(self.proc("task"))? {
            let task = task?.path();
            let name = fs::read_to_string(task.join("comm"))?.trim().to_owned();
            let schedstat = fs::read_to_string(task.join("schedstat"))?;
            let nanos = schedstat.split_whitespace().next().ok_or("it has three numbers")?.parse()?;
            found.insert(task, (name, nanos));
        }
        Ok(found)
    }

    pub(crate) fn descriptors(&self) -> Outcome<usize> {
        Ok(fs::read_dir(self.proc("fd"))?.count())
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(mut self) -> Outcome<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
