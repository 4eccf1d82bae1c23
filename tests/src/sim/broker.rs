//! One life of a broker: shards, controller and views as production runs them, and the messages between; decides
//! nothing and knows no client.

use super::disk::SimDisk;
use super::network::ConnectionId;
use coulee_core::block::BlockPool;
use coulee_core::catalog::{Change, ChangeError};
use coulee_core::controller::{CATALOG_REQUEST, Changed, Controller, Effect as ControllerEffect, Event, Told, View};
use coulee_core::disk::Disk;
use coulee_core::executor::Random;
use coulee_core::log::Incoming;
use coulee_core::partition::{Acks, ProduceError};
use coulee_core::shard::fetches::{FetchSpec, FetchedPart};
use coulee_core::shard::{Command, Effect, Now, Produced, RequestId, Shard, ShardOptions};
use coulee_core::{meta, pool};
use coulee_protocol::ids::{ClusterId, PartitionUid};
use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// What a client asks.
#[derive(Debug)]
pub enum Request {
    /// Append a batch.
    Produce(PartitionUid, Acks, Vec<u8>),
    /// Read partitions of one shard.
    Fetch(FetchSpec),
    /// Change a topic.
    Change(Change),
}

/// What it is told.
#[derive(Debug)]
pub enum Reply {
    /// Of a produce.
    Produced(Result<Produced, ProduceError>),
    /// Of a fetch.
    Fetched(Vec<FetchedPart>),
    /// Of a change.
    Changed(Result<Changed, ChangeError>),
    /// The request was refused before any partition saw it: the catalog is being read.
    Refused,
}

/// What shards say to each other.
enum Mail {
    Ask(RequestId, Request),
    Reply(RequestId, Reply),
    Event(Event),
    Order(Command),
    Told(Told),
}

/// Whom to answer.
#[derive(Clone, Copy)]
enum Asker {
    Connection(ConnectionId, u64),
    Shard(usize, RequestId),
}

/// Set when a shard may have something to do.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A shard in its place.
struct Seat {
    shard: Shard<SimDisk>,
    view: View,
    awake: Arc<Flag>,
    waker: Waker,
    cycled_ms: u64,
}

/// A broker that runs.
pub struct Broker {
    seats: Vec<Seat>,
    controller: Controller,
    /// From each shard to each, in order.
    mail: BTreeMap<(usize, usize), VecDeque<Mail>>,
    pending: BTreeMap<RequestId, Asker>,
    next_request: u64,
    /// What goes out to clients.
    pub answers: VecDeque<(ConnectionId, u64, Reply)>,
    /// Shards that have stopped.
    pub stopped: usize,
    /// Why it cannot go on.
    pub failed: Option<String>,
    /// What partitions have met, in words.
    pub news: Vec<String>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shards: Vec<_> = self.seats.iter().map(|seat| &seat.shard).collect();
        write!(formatter, "Broker({} of {} shards stopped, {shards:?})", self.stopped, shards.len())
    }
}

/// How a broker is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Its shards.
    pub shards: u16,
    /// Bytes of the tail caches of a shard.
    pub tail_bytes: usize,
    /// Bytes of the pool of a shard.
    pub pool_bytes: u64,
}

/// Runs `future` over `disk` until it is done or `steps` operations have completed; time passes as they need it.
pub fn drive<T>(
    disk: &SimDisk,
    now_us: &mut u64,
    random: &mut Random,
    steps: &mut u64,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Some(value);
        }
        if *steps == 0 {
            return None;
        }
        *steps -= 1;
        let (ready, first) = disk.ready();
        if ready == 0 {
            *now_us = first.expect("whoever waits for the disk has an operation in flight").max(*now_us);
            disk.set_now(*now_us);
            continue;
        }
        disk.complete(random.below(ready as u64) as usize);
    }
}

/// How a start has ended.
#[derive(Debug)]
pub enum Start {
    /// It runs.
    Runs(Box<Broker>),
    /// Its disk has failed it.
    Failed(String),
    /// The steps were over first.
    CutOff,
}

impl Broker {
    /// Starts a broker on what a disk holds, within so many completions of the disk.
    pub fn start(disk: &SimDisk, setup: Setup, now_us: &mut u64, random: &mut Random, mut steps: u64) -> Start {
        let memory = BlockPool::new(8 << 20);
        let started = async {
            let meta = meta::open(disk, &memory, ClusterId([7; 16])).await.map_err(|error| error.to_string())?;
            let directories = disk.list_partitions().await.map_err(|error| error.to_string())?;
            pool::adopt(disk, setup.shards, setup.pool_bytes).await.map_err(|error| error.to_string())?;
            let mut shards = Vec::new();
            for id in 0..setup.shards {
                let options = ShardOptions { id, tail_bytes: setup.tail_bytes, pool_bytes: setup.pool_bytes };
                let shard = Shard::start(disk.clone(), memory.clone(), options).await;
                shards.push(shard.map_err(|error| error.to_string())?);
            }
            Ok((meta.cluster_id, directories, shards))
        };
        let driven = drive(disk, now_us, random, &mut steps, started);
        let (cluster_id, directories, shards) = match driven {
            None => return Start::CutOff,
            Some(Err(error)) => return Start::Failed(error),
            Some(Ok(started)) => started,
        };
        let controller = Controller::new(cluster_id, setup.shards, directories);
        let seat = |shard| {
            let awake = Arc::new(Flag(AtomicBool::new(true)));
            Seat { shard, view: View::default(), waker: Waker::from(Arc::clone(&awake)), awake, cycled_ms: 0 }
        };
        let mut broker = Self {
            seats: shards.into_iter().map(seat).collect(),
            controller,
            mail: BTreeMap::new(),
            pending: BTreeMap::new(),
            next_request: 0,
            answers: VecDeque::new(),
            stopped: 0,
            failed: None,
            news: Vec::new(),
        };
        for from in 0..usize::from(setup.shards) {
            broker.post(from, 0, Mail::Event(Event::ShardStarted));
        }
        Start::Runs(Box::new(broker))
    }

    /// Its shards.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.seats.len() as u16
    }

    /// What one shard knows of the catalog.
    #[must_use]
    pub fn view(&self, shard: u16) -> &View {
        &self.seats[usize::from(shard)].view
    }

    /// Whether every shard knows that every partition has been opened, or could not be.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.seats.iter().all(|seat| seat.view.is_settled())
    }

    fn post(&mut self, from: usize, to: usize, mail: Mail) {
        self.mail.entry((from, to)).or_default().push_back(mail);
    }

    /// Pairs of shards with a message on its way.
    #[must_use]
    pub fn mails(&self) -> usize {
        self.mail.values().filter(|queue| !queue.is_empty()).count()
    }

    /// Delivers the first message of the `chosen`-th of these pairs.
    pub fn deliver(&mut self, chosen: usize, now: Now) {
        let mut queues = self.mail.iter_mut().filter(|(_, queue)| !queue.is_empty());
        let Some((&(from, to), queue)) = queues.nth(chosen) else { return };
        let Some(mail) = queue.pop_front() else { return };
        match mail {
            Mail::Ask(number, request) => self.ask(to, Asker::Shard(from, number), request, now),
            Mail::Reply(request, reply) => self.answered(to, request, reply),
            Mail::Event(event) => self.control(now, event),
            Mail::Order(command) => self.command(to, command),
            Mail::Told(told) => self.seats[to].view.hear(&told),
        }
    }

    fn command(&mut self, seat: usize, command: Command) {
        self.seats[seat].shard.command(command);
        self.seats[seat].awake.0.store(true, Ordering::Relaxed);
    }

    fn control(&mut self, now: Now, event: Event) {
        for effect in self.controller.step(now, event) {
            match effect {
                ControllerEffect::Own(command) => self.command(0, command),
                ControllerEffect::Order(shard, order) => {
                    self.post(0, usize::from(shard.0), Mail::Order(order.into()));
                }
                ControllerEffect::Tell(told) => {
                    (0..self.seats.len()).for_each(|to| self.post(0, to, Mail::Told(told.clone())));
                }
                ControllerEffect::Changed(request, result) => self.answered(0, request, Reply::Changed(result)),
                ControllerEffect::Foreign(uid) => self.failed = Some(format!("the directory of {uid} is foreign")),
                ControllerEffect::Failed(error) => self.failed = Some(error.to_string()),
            }
        }
    }

    /// A request has come over a connection to a shard.
    pub fn request(&mut self, connection: ConnectionId, shard: u16, number: u64, request: Request, now: Now) {
        self.ask(usize::from(shard), Asker::Connection(connection, number), request, now);
    }

    fn expect(&mut self, asker: Asker) -> RequestId {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.pending.insert(request, asker);
        request
    }

    /// A request has come to a shard, from a client or from another shard: it is carried out here or passed on.
    fn ask(&mut self, at: usize, asker: Asker, request: Request, now: Now) {
        let uid = match &request {
            Request::Produce(uid, ..) => Some(*uid),
            Request::Fetch(spec) => spec.parts.first().map(|part| part.partition),
            Request::Change(_) => None,
        };
        let view = &self.seats[at].view;
        let owner = uid.map(|uid| view.catalog().shard_of(uid, self.shards()).map(|shard| usize::from(shard.0)));
        if owner == Some(None) && !view.is_settled() {
            return self.reply(at, asker, Reply::Refused);
        }
        let owner = match owner {
            None => 0,
            // Whoever was asked by another shard does not ask a third.
            Some(found) => found.filter(|_| matches!(asker, Asker::Connection(..))).unwrap_or(at),
        };
        let own = self.expect(asker);
        if owner != at {
            return self.post(at, owner, Mail::Ask(own, request));
        }
        match request {
            Request::Produce(partition, acks, bytes) => {
                if acks == Acks::None {
                    self.pending.remove(&own);
                }
                let batch = incoming(&bytes);
                self.command(at, Command::Produce { request: own, partition, acks, batch });
            }
            Request::Fetch(spec) => self.command(at, Command::Fetch(own, spec)),
            Request::Change(change) => self.control(now, Event::Change(own, change)),
        }
    }

    fn answered(&mut self, at: usize, request: RequestId, reply: Reply) {
        if let Some(asker) = self.pending.remove(&request) {
            self.reply(at, asker, reply);
        }
    }

    fn reply(&mut self, from: usize, asker: Asker, reply: Reply) {
        match asker {
            Asker::Connection(connection, number) => self.answers.push_back((connection, number, reply)),
            Asker::Shard(shard, request) => self.post(from, shard, Mail::Reply(request, reply)),
        }
    }

    /// Shards that were woken, or whose time has come; and when the next one's comes.
    #[must_use]
    pub fn awake(&self, now: Now) -> (Vec<usize>, Option<u64>) {
        let (mut awake, mut next) = (Vec::new(), None::<u64>);
        for (at, seat) in self.seats.iter().enumerate() {
            // The server wakes it once a second, whatever happens.
            let deadline = seat.shard.deadline_ms().into_iter().chain([seat.cycled_ms + 1_000]).min();
            if seat.awake.0.load(Ordering::Relaxed) || deadline.is_some_and(|ms| ms <= now.monotonic_ms) {
                awake.push(at);
            }
            next = next.into_iter().chain(deadline).min();
        }
        (awake, next)
    }

    /// One cycle of a shard.
    pub fn cycle(&mut self, at: usize, now: Now) {
        let seat = &mut self.seats[at];
        seat.awake.0.store(false, Ordering::Relaxed);
        seat.cycled_ms = now.monotonic_ms;
        let worked = seat.shard.cycle(now, &mut Context::from_waker(&seat.waker));
        if worked {
            seat.awake.0.store(true, Ordering::Relaxed);
        }
        let effects = seat.shard.take_effects();
        effects.into_iter().for_each(|effect| self.route(at, effect));
    }

    fn route(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::Produced(CATALOG_REQUEST, result) => self.post(at, 0, Mail::Event(Event::Produced(result))),
            Effect::Fetched(CATALOG_REQUEST, parts) => self.post(at, 0, Mail::Event(Event::Fetched(parts))),
            Effect::Opened(uid, opened) => {
                self.news.push(format!("shard {at} opens {uid}: {opened:?}"));
                self.post(at, 0, Mail::Event(Event::Opened(uid, opened)));
            }
            Effect::Offline(uid) => {
                self.news.push(format!("{uid} is offline"));
                self.post(at, 0, Mail::Event(Event::Offline(uid)));
            }
            Effect::Deleted(uid, _) => self.post(at, 0, Mail::Event(Event::Deleted(uid))),
            Effect::Produced(request, result) => self.answered(at, request, Reply::Produced(result)),
            Effect::Fetched(request, parts) => self.answered(at, request, Reply::Fetched(parts)),
            Effect::Stopped => self.stopped += 1,
            Effect::Listed(..) | Effect::Described(..) | Effect::Group(..) | Effect::Groups(..) => {
                unreachable!("nobody asks for these here")
            }
        }
    }

    /// Stops the broker cleanly; it has when all shards are counted in `stopped`.
    pub fn stop(&mut self, now: Now) {
        self.control(now, Event::Stop);
        (0..self.seats.len()).for_each(|seat| self.command(seat, Command::Stop));
    }
}

/// Bytes as they come from a socket: large batches in a block of their own.
fn incoming(bytes: &[u8]) -> Incoming {
    let mut block = BlockPool::new(0).take(bytes.len());
    block.extend(bytes);
    if coulee_core::log::segment::is_large(bytes.len()) {
        Incoming::Owned(block)
    } else {
        Incoming::Shared(block.freeze())
    }
}
