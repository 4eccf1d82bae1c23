//! Who is compared, in which mode, and what an ack of it means: starts it for a round; measures nothing itself.

use super::nats;
use super::peer::{self, Round, Work};
use super::redis;
use super::{coulee, server};
use crate::arguments::{CompareArguments, Durability, PeerName};
use crate::broker;
use crate::fault::Fault;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Records in a batch of Coulee's, where it sends batches.
const BATCH: u32 = 1_000;

/// What an ack promises: only peers that promise the same are compared by a ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    /// It outlives a power cut.
    Disk,
    /// The system has it, and will write it to disk.
    PageCache,
    /// The process has it.
    Memory,
    /// A server that was named by its address, and does not tell.
    Unknown,
}

impl Promise {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Disk => "on disk",
            Self::PageCache => "page cache",
            Self::Memory => "memory",
            Self::Unknown => "not told",
        }
    }
}

/// How it is reached.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Program(PathBuf),
    Address(SocketAddr),
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Coulee { durability: Durability, batch: u32 },
    Redis { appendfsync: &'static str },
    Nats { sync: nats::Sync },
}

/// One line of the comparison.
#[derive(Clone, Debug)]
pub(super) struct Contestant {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) promise: Promise,
    pub(super) version: String,
    pub(super) settings: String,
    pub(super) place: Place,
}

/// Those that can be run, and why others cannot.
#[derive(Debug, Default)]
pub(super) struct Field {
    pub(super) contestants: Vec<Contestant>,
    /// Name and reason.
    pub(super) absent: Vec<(String, String)>,
    /// Peers, apart from Coulee, of which at least one mode runs.
    pub(super) peers: usize,
    /// A server that was named does not answer.
    pub(super) has_failed: bool,
}

impl Contestant {
    /// One round: on a server of its own with an empty directory, or on the one that was named.
    pub(super) fn round(&self, directory: &Path, work: &Work) -> Result<Round, Fault> {
        match (self.kind, &self.place) {
            (Kind::Coulee { durability, batch }, place) => {
                coulee::round(place, directory, durability, (batch > 1).then_some(batch), work)
            }
            (Kind::Redis { appendfsync }, Place::Program(program)) => {
                let (server, mut redis) = redis::start(program, directory, appendfsync)?;
                peer::round(&mut redis, Some(server.id()), work)
            }
            (Kind::Redis { .. }, Place::Address(address)) => {
                peer::round(&mut redis::Redis::connect(*address)?, None, work)
            }
            (Kind::Nats { sync }, Place::Program(program)) => {
                let (server, mut nats) = nats::start(program, directory, sync)?;
                peer::round(&mut nats, Some(server.id()), work)
            }
            (Kind::Nats { .. }, Place::Address(address)) => {
                peer::round(&mut nats::Nats::connect(*address)?, None, work)
            }
        }
    }

    /// Coulee with batches, or with single records.
    pub(super) const fn coulee_batch(&self) -> Option<u32> {
        match self.kind {
            Kind::Coulee { batch, .. } => Some(batch),
            Kind::Redis { .. } | Kind::Nats { .. } => None,
        }
    }
}

impl Field {
    /// Coulee and everybody that was asked for.
    pub(super) fn gather(arguments: &CompareArguments) -> Result<Self, Fault> {
        let mut field = Self::default();
        field.add_coulee(arguments)?;
        for peer in &arguments.with {
            let before = field.contestants.len();
            let added = match peer {
                PeerName::Redis => field.add_redis(arguments.redis_address),
                PeerName::Nats => field.add_nats(arguments.nats_address),
            };
            // A server that was named and does not answer keeps no other from its turn.
            if let Err(fault) = added {
                field.absent.push((peer.name().to_owned(), fault.to_string()));
                field.has_failed = true;
            }
            field.peers += usize::from(field.contestants.len() > before);
        }
        // Without a peer that promises less there is nobody to hold a weaker promise against.
        let mut peers = field.contestants.iter().filter(|contestant| contestant.coulee_batch().is_none());
        let is_weaker_wanted = peers.any(|peer| peer.promise != Promise::Disk);
        field.contestants.retain(|contestant| {
            is_weaker_wanted || contestant.coulee_batch().is_none() || contestant.promise == Promise::Disk
        });
        Ok(field)
    }

    fn add_coulee(&mut self, arguments: &CompareArguments) -> Result<(), Fault> {
        let (place, version) = match arguments.address {
            Some(address) => (Place::Address(address), "by address".to_owned()),
            None => {
                let program = broker::program(arguments.broker.as_deref())?;
                let version = server::version_line(&program)?;
                (Place::Program(program), version)
            }
        };
        for (durability, promise) in [(Durability::Fsync, Promise::Disk), (Durability::Written, Promise::PageCache)] {
            for (batch, what) in [(BATCH, "batches of 1,000"), (1, "single records")] {
                self.contestants.push(Contestant {
                    name: format!("Coulee, {}, {what}", durability.name()),
                    kind: Kind::Coulee { durability, batch },
                    promise,
                    version: version.clone(),
                    settings: format!("durability={}, 1 shard", durability.name()),
                    place: place.clone(),
                });
            }
        }
        Ok(())
    }

    fn add_redis(&mut self, address: Option<SocketAddr>) -> Result<(), Fault> {
        let mut add = |appendfsync: &'static str, promise, version: &str, place: &Place| {
            let (name, settings) = match place {
                Place::Program(_) => (format!("appendfsync {appendfsync}"), redis::SETTINGS),
                Place::Address(_) => (format!("appendfsync {appendfsync}, by address"), "as it is configured"),
            };
            self.contestants.push(Contestant {
                name: format!("Redis Streams, {name}"),
                kind: Kind::Redis { appendfsync },
                promise,
                version: version.to_owned(),
                settings: format!("appendfsync {appendfsync}, {settings}"),
                place: place.clone(),
            });
        };
        if let Some(address) = address {
            let (version, appendfsync) = redis::Redis::connect(address)?.describe()?;
            let (appendfsync, promise) = match appendfsync.as_deref() {
                Some("always") => ("always", Promise::Disk),
                Some("everysec") => ("everysec", Promise::PageCache),
                Some(_) => ("no", Promise::PageCache),
                None => ("off: no log", Promise::Memory),
            };
            add(appendfsync, promise, &version, &Place::Address(address));
            return Ok(());
        }
        let Some(program) = server::find("redis-server") else {
            self.absent.push(("redis".to_owned(), server::not_found("redis-server")));
            return Ok(());
        };
        let line = server::version_line(&program)?;
        let version = line.split(' ').find_map(|word| word.strip_prefix("v=")).unwrap_or(&line).to_owned();
        let place = Place::Program(program);
        add("always", Promise::Disk, &version, &place);
        add("everysec", Promise::PageCache, &version, &place);
        Ok(())
    }

    fn add_nats(&mut self, address: Option<SocketAddr>) -> Result<(), Fault> {
        let mut add = |sync: nats::Sync, promise, version: &str, place: &Place| {
            self.contestants.push(Contestant {
                name: format!("NATS JetStream, {}", sync.name()),
                kind: Kind::Nats { sync },
                promise,
                version: version.to_owned(),
                settings: sync.settings().to_owned(),
                place: place.clone(),
            });
        };
        if let Some(address) = address {
            let version = nats::Nats::connect(address)?.version().to_owned();
            add(nats::Sync::AsConfigured, Promise::Unknown, &version, &Place::Address(address));
            return Ok(());
        }
        let Some(program) = server::find("nats-server") else {
            self.absent.push(("nats".to_owned(), server::not_found("nats-server")));
            return Ok(());
        };
        let line = server::version_line(&program)?;
        let version = line.rsplit(['v', ' ']).next().unwrap_or(&line).to_owned();
        let place = Place::Program(program);
        add(nats::Sync::Default, Promise::PageCache, &version, &place);
        if nats::knows_sync_always(&version) {
            add(nats::Sync::Always, Promise::Disk, &version, &place);
        } else {
            let reason = format!("not in nats-server {version}: install 2.10 or later");
            self.absent.push(("NATS JetStream, sync always".to_owned(), reason));
        }
        Ok(())
    }
}
