//! A peer's server, found and started to be measured: owns its process; knows no protocol.

use super::drive::on_cpu;
use crate::fault::Fault;
use crate::machine;
use crate::probe::SERVER_CPU;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// Between two looks at a server that is starting.
const LOOK: Duration = Duration::from_millis(20);
/// Looks, at most: counted, so that a pause of this process is not held against the server.
const LOOKS_MAX: u32 = 1_500;

/// A running server. It ends with this value.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    pub(super) address: SocketAddr,
    log: PathBuf,
}

/// The program of this name on PATH.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Why a program that is not found cannot be run. Debian keeps servers in /usr/sbin, which is not on everybody's PATH.
pub(super) fn not_found(name: &str) -> String {
    format!("not found: install {name}, or put it on PATH")
}

/// What a program says of its version: the first line.
pub(super) fn version_line(program: &Path) -> Result<String, Fault> {
    let output = Command::new(program).arg("--version").output().map_err(Fault::machine("a server's version"))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned())
}

/// An address on this machine that nobody listens at; somebody else may take it before it is used.
pub(super) fn free_address() -> Result<SocketAddr, Fault> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Fault::machine("a free port"))?;
    listener.local_addr().map_err(Fault::machine("a free port"))
}

impl Server {
    /// Starts a program that will listen at `address`; all its threads stay on core 0. What it prints goes to `log`.
    pub(super) fn start(command: &mut Command, address: SocketAddr, log: &Path) -> Result<Self, Fault> {
        let open = || File::create(log).and_then(|file| Ok((file.try_clone()?, file)));
        let (out, err) = open().map_err(Fault::machine("a log file"))?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        // A child has the CPUs of the thread that starts it.
        let child = on_cpu(SERVER_CPU, || command.spawn().map_err(Fault::machine("starting a peer")))?;
        Ok(Self { child, address, log: log.to_owned() })
    }

    /// Its process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks until the server answers, or has ended.
    pub(super) fn wait<T>(&mut self, ask: impl Fn(SocketAddr) -> Result<T, Fault>) -> Result<T, Fault> {
        let mut looks = 0;
        loop {
            let fault = match ask(self.address) {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            let ended = self.child.try_wait().map_err(Fault::machine("a started peer"))?;
            looks += 1;
            if ended.is_some() || looks > LOOKS_MAX {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                let detail = format!("not ready: {fault} {}", tail.join(" | "));
                return Err(Fault::Peer { peer: "a started server", detail });
            }
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Says where servers run.
pub(super) fn place() -> &'static str {
    if machine::is_single() { "nothing is pinned" } else { "servers on core 0" }
}
