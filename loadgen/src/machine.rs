//! The machine that a run was made on, and where its threads run; measures nothing.

use crate::fault::Fault;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::fs;

/// Keeps the calling thread on one CPU.
pub(crate) fn pin(cpu: usize) -> Result<(), Fault> {
    let machine = |error: std::io::Error| Fault::Machine { what: "pinning a thread to a cpu", error };
    if cpu >= CpuSet::MAX_CPU {
        return Err(machine(std::io::ErrorKind::InvalidInput.into()));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|error| machine(error.into()))
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
