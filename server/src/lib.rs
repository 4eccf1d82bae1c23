//! The broker: wires listeners to shards and shards to each other; decides nothing about data.
//!
//! [`start`] takes the data directory, tries the machine, makes one thread for each shard and returns when all of them
//! are up. They then read the catalog and open their partitions; [`Server::wait_ready`] waits for that.
#![forbid(unsafe_code)]

use crate::config::Config;
use crate::facts::Facts;
use crate::message::Message;
use crate::shard::{News, Parts, ShardServer};
use coulee_core::block::BlockPool;
use coulee_core::controller::Controller;
use coulee_core::disk::Disk;
use coulee_core::meta::{self, MetaError};
use coulee_core::pool::{self, Adopted};
use coulee_core::shard::{Shard, ShardOptions};
use coulee_io::control::{Control, Controls};
use coulee_io::disk::{DirError, DirLock, FileDisk, LockError};
use coulee_io::executor::{self, ExecutorOptions, Executors};
use coulee_io::mesh::{Mesh, MeshEnd};
use coulee_io::net::{BindError, ListenOptions, Listener};
use coulee_io::ring::{Errno, Ring, RingError, RingOptions};
use coulee_io::selftest::{self, SelfTestError};
use coulee_io::wake::{Sleeper, Waker};
use coulee_protocol::ids::{ClusterId, PartitionUid, ShardId};
use std::fmt;
use std::net::SocketAddr;
use std::sync::mpsc;
use tracing::{info, warn};

pub mod config;
mod connection;
pub mod doctor;
mod facts;
mod input;
mod limits;
mod message;
pub mod offline;
mod output;
mod pending;
mod shard;
mod slab;

/// Why the broker does not start.
#[derive(Debug)]
pub enum StartError {
    /// Another process has the data directory, or it cannot be locked.
    Lock(LockError),
    /// The machine does not offer what is needed.
    SelfTest(SelfTestError),
    /// The data directory cannot be used.
    Dir(DirError),
    /// What identifies the data directory cannot be read.
    Meta(MetaError),
    /// The listening socket cannot be had.
    Bind(BindError),
    /// A shard's thread cannot be made.
    Executor(executor::StartError),
    /// A shard's ring cannot be made.
    Ring(RingError),
    /// The system refused something else.
    System(Errno),
    /// A shard cannot read what the last run has left.
    Shard(ShardId, coulee_core::disk::DiskError),
    /// The catalog, or a shard, says no. The text says why.
    Refused(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lock(error) => error.fmt(formatter),
            Self::SelfTest(error) => error.fmt(formatter),
            Self::Dir(error) => write!(formatter, "the data directory cannot be used: {error}"),
            Self::Meta(error) => error.fmt(formatter),
            Self::Bind(error) => error.fmt(formatter),
            Self::Executor(error) => error.fmt(formatter),
            Self::Ring(error) => error.fmt(formatter),
            Self::System(error) => error.fmt(formatter),
            Self::Shard(shard, error) => write!(formatter, "shard {shard} cannot read its files: {error}"),
            Self::Refused(reason) => reason.fmt(formatter),
        }
    }
}

impl std::error::Error for StartError {}

/// What stands in the way of a start, as far as a user can do something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartCause {
    /// Another process listens at the address.
    AddressTaken,
    /// Another broker uses the data directory.
    DataDirTaken,
    /// The data directory can't be made, read or written.
    DataDirUnusable,
    /// A newer broker wrote the data directory.
    FormatTooNew,
    /// The kernel, its limits or the filesystem do not give what is needed.
    MachineUnfit,
    /// Something else; the text says what.
    Other,
}

impl StartError {
    /// What stands in the way.
    #[must_use]
    pub fn cause(&self) -> StartCause {
        match self {
            Self::Bind(BindError::Taken { .. }) => StartCause::AddressTaken,
            Self::Lock(LockError::Held { .. }) => StartCause::DataDirTaken,
            Self::Dir(DirError::NoDirectIo) | Self::SelfTest(SelfTestError::Dir(DirError::NoDirectIo)) => {
                StartCause::MachineUnfit
            }
            Self::Lock(_) | Self::Dir(_) => StartCause::DataDirUnusable,
            Self::SelfTest(SelfTestError::Dir(_)) => StartCause::DataDirUnusable,
            Self::Meta(MetaError::TooNew { .. }) => StartCause::FormatTooNew,
            Self::SelfTest(_) | Self::Ring(_) | Self::Executor(_) | Self::System(_) => StartCause::MachineUnfit,
            Self::Meta(_) | Self::Bind(_) | Self::Shard(..) | Self::Refused(_) => StartCause::Other,
        }
    }
}

/// Why the broker has not ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunError {
    /// The grace period was over before these shards had written everything. What was acknowledged is safe.
    Unclean(Vec<ShardId>),
}

impl fmt::Display for RunError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Unclean(shards) = self;
        write!(formatter, "{} shards were stopped before everything was written", shards.len())
    }
}

impl std::error::Error for RunError {}

/// A running broker.
#[derive(Debug)]
pub struct Server {
    native: SocketAddr,
    shards: u16,
    controls: Controls,
    news: mpsc::Receiver<News>,
    executors: Executors,
    /// Kept for as long as anything writes to the directory.
    lock: DirLock,
}

/// Append buffers that a shard keeps for readers at its tail, at most: memory that is used again is much faster than
/// memory that the system has just given out, and what has left the tail is one read away.
const TAIL_BYTES_MAX: usize = 64 << 20;
/// Free buffers that a shard keeps, at most.
const BLOCKS_KEPT_BYTES_MAX: usize = 64 << 20;

/// What a shard's thread starts from.
struct Seed {
    id: ShardId,
    mesh: MeshEnd<Message>,
    listener: Option<Listener>,
    directories: Option<Vec<PartitionUid>>,
    facts: Facts,
    config: Config,
    control: Control,
    news: mpsc::Sender<News>,
    up: mpsc::Sender<Result<(ShardId, Waker), StartError>>,
    go: mpsc::Receiver<Vec<Waker>>,
}

/// Raises the limit of open files, and has the table large enough for all connections before they come. Answers how
/// many connections there may be.
fn prepare_descriptors(connections_max: u32) -> u32 {
    let limit = match executor::raise_open_files() {
        Ok(files) => files.now,
        Err(error) => {
            warn!(%error, "the limit of open files cannot be raised");
            return connections_max;
        }
    };
    info!(now = limit, "open files");
    let connections = limits::connections_within(limit, connections_max);
    if connections < connections_max {
        info!(connections, wanted = connections_max, "there are descriptors for fewer connections: raise ulimit -n");
    }
    let wanted = connections.saturating_add(limits::OTHER_DESCRIPTORS);
    if let Err(error) = executor::grow_file_table(wanted.min(u32::try_from(limit).unwrap_or(u32::MAX))) {
        warn!(%error, "the table of descriptors grows only as they come");
    }
    connections
}

/// Starts a broker. When this returns its listener is up and every shard runs; requests are answered with RECOVERING
/// until the log has been read.
///
/// # Errors
/// [`StartError`]; everything that was begun has been given up.
pub fn start(config: &Config) -> Result<Server, StartError> {
    let connections_max = prepare_descriptors(config.connections_max);
    let lock = coulee_io::disk::lock(&config.data_dir).map_err(StartError::Lock)?;
    let findings = selftest::run(&config.data_dir).map_err(StartError::SelfTest)?;
    info!(one_flush = findings.is_device_flush_proved, "the machine passes the self-test");
    let (cluster_id, directories) = identify(config)?;
    let options = ListenOptions::at(config.native_listen);
    let waits = || info!(address = %config.native_listen, "the port is taken: waiting for it");
    let listener = Listener::bind_within(&options, limits::BIND_PATIENCE, waits).map_err(StartError::Bind)?;
    let native = listener.local_address();
    let facts = Facts {
        cluster_id,
        native,
        entries: config.entries(),
        connections_max: (connections_max / u32::from(config.shards)).max(1) as usize,
        shutdown_grace_ms: Facts::grace_ms(config.shutdown_grace),
    };
    let control = Control::default();
    let (news, heard) = mpsc::channel();
    let (up, ups) = mpsc::channel();
    let (mut seeds, mut gos) = (Vec::new(), Vec::new());
    let mut first = Some((listener, directories));
    for (id, mesh) in (0..).map(ShardId).zip(Mesh::new(usize::from(config.shards))) {
        let (go, gone) = mpsc::channel();
        gos.push(go);
        let (listener, directories) = first.take().unzip();
        let (facts, config, control) = (facts.clone(), config.clone(), control.clone());
        let (news, up) = (news.clone(), up.clone());
        seeds.push(Seed { id, mesh, listener, directories, facts, config, control, news, up, go: gone });
    }
    drop(up);
    let cpus = (0..config.shards).map(|shard| usize::from(config.cpu_of(shard))).collect();
    let executors = executor::start(&ExecutorOptions::on(cpus), seeds, run_shard).map_err(StartError::Executor)?;
    let wakers = connect(&ups, &gos)?;
    let controls = control.of_process(wakers);
    info!(%native, shards = config.shards, "the broker is up");
    Ok(Server { native, shards: config.shards, controls, news: heard, executors, lock })
}

/// The cluster that a data directory belongs to, chosen now where it is new, and the partitions that have files. What
/// shards have kept in reserve that are no more goes to those that are.
fn identify(config: &Config) -> Result<(ClusterId, Vec<PartitionUid>), StartError> {
    let ring = Ring::new(RingOptions::default()).map_err(StartError::Ring)?;
    let pool = BlockPool::new(0);
    let disk = FileDisk::open(&config.data_dir, ring.clone(), pool.clone()).map_err(StartError::Dir)?;
    let fresh = ClusterId(coulee_io::entropy::random_bytes_16());
    let meta = ring.block_on(meta::open(&disk, &pool, fresh)).map_err(StartError::System)?;
    let meta = meta.map_err(StartError::Meta)?;
    let directories = ring.block_on(disk.list_partitions()).map_err(StartError::System)?;
    let directories = directories.map_err(|error| StartError::Meta(MetaError::Disk(error)))?;
    let adopted = ring.block_on(pool::adopt(&disk, config.shards, config.pool_bytes)).map_err(StartError::System)?;
    let Adopted { moved, removed } = adopted.map_err(|error| StartError::Shard(ShardId(0), error))?;
    if moved + removed > 0 {
        info!(moved, removed, "files in reserve of shards that are no more");
    }
    Ok((meta.cluster_id, directories))
}

/// Waits until every shard is up, and tells each how to wake the others.
fn connect(
    ups: &mpsc::Receiver<Result<(ShardId, Waker), StartError>>,
    gos: &[mpsc::Sender<Vec<Waker>>],
) -> Result<Vec<Waker>, StartError> {
    let mut wakers: Vec<(ShardId, Waker)> = ups.iter().take(gos.len()).collect::<Result<_, _>>()?;
    if wakers.len() < gos.len() {
        return Err(StartError::Refused("a shard has ended before it was up".into()));
    }
    wakers.sort_by_key(|(id, _)| *id);
    let wakers: Vec<Waker> = wakers.into_iter().map(|(_, waker)| waker).collect();
    for go in gos {
        if go.send(wakers.clone()).is_err() {
            return Err(StartError::Refused("a shard has ended before it was connected".into()));
        }
    }
    Ok(wakers)
}

/// The life of one shard's thread.
fn run_shard(seed: Seed) {
    let up = seed.up.clone();
    match prepare(seed) {
        Ok(Some(server)) => server.run(),
        // The process has given up starting.
        Ok(None) => {}
        Err(error) => {
            if up.send(Err(error)).is_err() {
                warn!("a shard cannot start, and nobody listens");
            }
        }
    }
}

/// Makes everything that a shard needs. Blocks the thread: nothing else runs there yet.
fn prepare(seed: Seed) -> Result<Option<ShardServer>, StartError> {
    let Seed { id, mut mesh, listener, directories, facts, config, control, news, up, go } = seed;
    let memory = usize::try_from(config.memory_shard_bytes).unwrap_or(usize::MAX);
    let ring = Ring::new(RingOptions::default()).map_err(StartError::Ring)?;
    let pool = BlockPool::new((memory / 8).min(BLOCKS_KEPT_BYTES_MAX));
    let disk = FileDisk::open(&config.data_dir, ring.clone(), pool.clone()).map_err(StartError::Dir)?;
    let sleeper = Sleeper::new(ring.eventfd().map_err(StartError::System)?);
    let options =
        ShardOptions { id: id.0, tail_bytes: (memory / 2).min(TAIL_BYTES_MAX), pool_bytes: config.pool_bytes };
    let core = ring.block_on(Shard::start(disk, pool.clone(), options)).map_err(StartError::System)?;
    let mut core = core.map_err(|error| StartError::Shard(id, error))?;
    core.allow_groups(config.group_options());
    if up.send(Ok((id, sleeper.waker()))).is_err() {
        return Ok(None);
    }
    let Ok(wakers) = go.recv() else { return Ok(None) };
    for (peer, waker) in wakers.into_iter().enumerate().filter(|(peer, _)| *peer != usize::from(id.0)) {
        mesh.attach(peer, waker);
    }
    let controller = directories.map(|found| Controller::new(facts.cluster_id, config.shards, found));
    let parts = Parts {
        id,
        ring,
        pool,
        core,
        mesh,
        sleeper,
        listener,
        controller,
        facts,
        control,
        news,
        budget_bytes: memory / 4,
    };
    Ok(Some(ShardServer::new(parts)))
}

impl Server {
    /// Where clients of the native protocol connect.
    #[must_use]
    pub const fn native_address(&self) -> SocketAddr {
        self.native
    }

    /// How many shards there are.
    #[must_use]
    pub const fn shards(&self) -> u16 {
        self.shards
    }

    /// Waits until every partition is open on its shard, or could not be opened; then every shard knows all of them.
    ///
    /// # Errors
    /// [`StartError::Refused`]: the catalog cannot be used; the broker is to be drained.
    pub fn wait_ready(&self) -> Result<(), StartError> {
        let mut ready = 0;
        while ready < self.shards {
            match self.news.recv() {
                Ok(News::Ready(_)) => ready += 1,
                Ok(News::Failed(reason)) => return Err(StartError::Refused(reason)),
                Ok(News::Stopped(..)) | Err(_) => {
                    return Err(StartError::Refused("the broker was stopped before it was ready".into()));
                }
            }
        }
        Ok(())
    }

    /// What stops this broker, for another thread.
    #[must_use]
    pub fn drainer(&self) -> Drainer {
        Drainer(self.controls.clone())
    }

    /// Begins to stop: no more connections, no more produces; what is under way is finished.
    pub fn drain(&self) {
        self.controls.stop();
    }

    /// Waits until all shards have stopped. Call [`Server::drain`] first, or from elsewhere.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn join(self) -> Result<(), RunError> {
        let Self { news, executors, lock, .. } = self;
        executors.join();
        let unclean = |news| if let News::Stopped(id, false) = news { Some(id) } else { None };
        let unclean: Vec<ShardId> = news.try_iter().filter_map(unclean).collect();
        drop(lock);
        if unclean.is_empty() { Ok(()) } else { Err(RunError::Unclean(unclean)) }
    }
}

/// Stops a broker from another thread.
#[derive(Clone, Debug)]
pub struct Drainer(Controls);

impl Drainer {
    /// As [`Server::drain`].
    pub fn drain(&self) {
        self.0.stop();
    }
}
