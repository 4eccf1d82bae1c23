//! The machine that a run was made on, and where its threads run; measures nothing.

use crate::fault::Fault;
use rustix::fs::statvfs;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

/// The CPUs that the process had when it first asked.
static CPUS: OnceLock<Vec<usize>> = OnceLock::new();

/// The CPUs that this process may run on. To be asked first before any thread is pinned.
pub(crate) fn cpus() -> &'static [usize] {
    CPUS.get_or_init(|| {
        let set = sched_getaffinity(None).unwrap_or_default();
        (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
    })
}

/// Whether there is but one: then nothing is pinned, since nothing could run beside it.
pub(crate) fn is_single() -> bool {
    cpus().len() == 1
}

/// What has to be known about figures of a machine with one CPU.
pub(crate) fn caution() -> Option<&'static str> {
    is_single().then_some("this machine has 1 CPU: nothing is pinned, and broker and generators take turns on it")
}

/// Keeps the calling thread on one CPU, where there are several.
pub(crate) fn pin(cpu: usize) -> Result<(), Fault> {
    if is_single() {
        return Ok(());
    }
    let machine = |error: std::io::Error| Fault::Machine { what: "pinning a thread to a cpu", error };
    if cpu >= CpuSet::MAX_CPU {
        return Err(machine(std::io::ErrorKind::InvalidInput.into()));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|error| machine(error.into()))
}

/// Bytes that may still be written to the disk of `path`.
pub(crate) fn free_bytes(path: &Path) -> Result<u64, Fault> {
    let found = statvfs(path).map_err(|error| Fault::machine("the room on the disk")(error.into()))?;
    Ok(found.f_bavail * found.f_frsize)
}

/// Processor, count of CPUs and kernel, in one line.
pub(crate) fn describe() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |line: &str| line.split_once(':').map(|(_, value)| value.trim().to_owned());
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(field).unwrap_or_default();
    let cpus = info.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cpus} × {model}, Linux {}", kernel.trim())
}
