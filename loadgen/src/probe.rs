//! The limits of this machine, now: bare servers, sockets, memory and disk; knows nothing of the broker.

use crate::fault::Fault;
use crate::generator::{Generator, Outcome, Plan};
use crate::lane::{Lane, Target};
use crate::machine;
use crate::run::{measured, run_threads};
use crate::templates::Templates;
use bare::Recycled;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

mod bare;
pub(crate) mod basics;
mod epoll_loop;
mod replay;
mod ring;

pub(crate) use bare::FILE_BYTES;
pub(crate) use replay::replay;

/// Where bare servers run; generators run elsewhere.
pub(crate) const SERVER_CPU: usize = 0;

/// Which of the two bare servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Loop,
    Ring,
}

impl Kind {
    pub(crate) const BOTH: [Self; 2] = [Self::Loop, Self::Ring];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Loop => "bare loop",
            Self::Ring => "bare ring",
        }
    }
}

/// What a bare server is put under.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) batch: u32,
    pub(crate) size: u32,
    pub(crate) connections: u32,
    pub(crate) in_flight: u32,
    /// Requests a second, where there is a schedule.
    pub(crate) per_second: Option<f64>,
    pub(crate) syncs: bool,
    pub(crate) seconds: f64,
    pub(crate) cpus: Vec<usize>,
}

/// The files that bare servers write over, made once.
#[derive(Debug)]
pub(crate) struct Files {
    buffered: Recycled,
    direct: Recycled,
}

impl Files {
    /// Two files of `bytes`.
    pub(crate) fn new(dir: &Path, bytes: u64) -> Result<Self, Fault> {
        Ok(Self { buffered: Recycled::new(dir, "loop", bytes)?, direct: Recycled::new(dir, "ring", bytes)? })
    }

    const fn of(&self, kind: Kind) -> &Recycled {
        match kind {
            Kind::Loop => &self.buffered,
            Kind::Ring => &self.direct,
        }
    }
}

/// What a bare server has done, and the CPU time of its threads in microseconds.
pub(crate) fn bare(kind: Kind, load: &Load, files: &Files) -> Result<(Outcome, u64), Fault> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Fault::machine("listen"))?;
    let address = listener.local_addr().map_err(Fault::machine("listen"))?;
    let count = load.connections as usize;
    thread::scope(|scope| {
        let server = scope.spawn(move || {
            machine::pin(SERVER_CPU)?;
            let mut streams = Vec::new();
            for _ in 0..count {
                let (stream, _) = listener.accept().map_err(Fault::machine("accept"))?;
                stream.set_nodelay(true).map_err(Fault::machine("nodelay"))?;
                streams.push(stream);
            }
            let records = u64::from(load.batch);
            match kind {
                Kind::Loop => epoll_loop::serve(streams, records, files.of(kind), load.syncs),
                Kind::Ring => ring::serve(streams, records, files.of(kind), load.syncs),
            }
        });
        let outcome = drive(load, address);
        let served = server.join().expect("a bare server does not panic");
        // The server's own fault is the better explanation where both have one.
        let cpu_us = served?;
        Ok((outcome?, cpu_us))
    })
}

/// Puts the load on a bare server, with the very lanes that a broker gets.
fn drive(load: &Load, address: SocketAddr) -> Result<Outcome, Fault> {
    let templates =
        Templates::new(load.batch, load.size as usize).map_err(|error| Fault::wire("a batch of our own", error))?;
    let templates = Arc::new(templates);
    let window = measured(load.seconds);
    let threads = load.cpus.len();
    let per_second = load.per_second.map(|rate| rate / threads as f64);
    let plan = Plan { window, stop_ns: window.end_ns, requests: u64::MAX, per_second, records_wanted: 0, stop: None };
    let mut lanes: Vec<Vec<Lane>> = (0..threads).map(|_| Vec::new()).collect();
    for at in 0..load.connections as usize {
        let target = vec![Target::new(at as u64 + 1, true, false)];
        lanes[at % threads].push(Lane::connect(address, None, target, load.in_flight, templates.batch_bytes())?);
    }
    let start = Instant::now();
    let generator =
        |lanes| Generator { lanes, readers: Vec::new(), templates: Arc::clone(&templates), plan: plan.clone(), start };
    let generators = lanes.into_iter().filter(|lanes| !lanes.is_empty()).map(generator).collect();
    run_threads(generators, &load.cpus).map(|(outcome, _)| outcome)
}
