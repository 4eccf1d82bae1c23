//! One run: brokers one after the other on one disk, clients all along, crashes between; judges by the checker alone.

use super::broker::{Broker, Setup, Start};
use super::client::{Client, Role, Scene};
use super::disk::SimDisk;
use super::disk::damage::Harm;
use super::disk::faults::{Faults, Kind};
use super::network::{Arrival, Network};
use super::plan::{Misfortune, Plan};
use super::topics::Topics;
use crate::checker::{Begun, Crash, Ended, History, Incident, Process, Recorder, Report};
use coulee_core::catalog::CATALOG_UID;
use coulee_core::disk::FileName;
use coulee_core::executor::Random;
use coulee_core::shard::Now;
use coulee_protocol::ids::Offset;

/// After so long, in microseconds, and so many steps, something that has to come does not.
const PATIENCE_US: u64 = 600_000_000;
/// See [`PATIENCE_US`].
const PATIENCE: u64 = 3_000_000;

/// A run that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What went wrong.
    pub text: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seed, text } = self;
        write!(formatter, "seed {seed}: {text}\nrun it again: COULEE_SIM_SEED={seed} cargo test -p coulee-tests ")?;
        write!(formatter, "--test sim -- --exact one_seed_of_the_environment --nocapture")
    }
}

/// A run that went well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// Crashes of all kinds; power cuts alone.
    pub crashes: u64,
    /// See [`Ran::crashes`].
    pub power_cuts: u64,
    /// Steps.
    pub steps: u64,
    /// Operations of the disk that failed, creations that were refused, blocks that were spoilt.
    pub faults: [u64; 3],
    /// Everything that has happened, hashed.
    pub trace: u64,
    /// What the checker says.
    pub report: Report,
}

struct World {
    plan: Plan,
    random: Random,
    disk: SimDisk,
    broker: Option<Box<Broker>>,
    network: Network,
    topics: Topics,
    clients: Vec<Client>,
    over: Vec<Recorder>,
    own: Recorder,
    now_us: u64,
    next_value: u64,
    next_process: u32,
    ran: Ran,
    /// It is told what happens, for whoever looks for the cause of a failure.
    talks: bool,
}

/// Runs `seed`.
///
/// # Errors
/// What went wrong.
pub fn run(seed: u64) -> Result<Ran, Failure> {
    let mut world = World::new(Plan::draw(seed));
    world.talk(|world| format!("{:?}", world.plan));
    world.run().map_err(|text| Failure { seed, text })?;
    let World { over, own, clients, topics, mut ran, disk, .. } = world;
    let recorders = over.into_iter().chain([own]).chain(clients.into_iter().map(Client::into_recorder));
    ran.report = History::new(topics.infos(), recorders).check();
    ran.report.verdict().map_err(|text| Failure { seed, text })?;
    ran.trace ^= disk.trace();
    Ok(ran)
}

/// A piece of the world, as a client sees it.
macro_rules! scene {
    ($world:ident) => {
        Scene {
            now_us: $world.now_us,
            random: &mut $world.random,
            network: &mut $world.network,
            topics: &mut $world.topics,
            plan: &$world.plan,
            next_value: &mut $world.next_value,
            over: &mut $world.over,
            next_process: &mut $world.next_process,
        }
    };
}

impl World {
    fn new(plan: Plan) -> Self {
        let mut random = Random::new(plan.seed);
        let [producers, consumers, operators] = plan.clients;
        let roles = std::iter::repeat_n(Role::Producer, producers as usize)
            .chain(std::iter::repeat_n(Role::Consumer, consumers as usize))
            .chain([Role::Operator(operators > 0)]);
        let clients: Vec<Client> = (1..).zip(roles).map(|(process, role)| Client::new(role, process)).collect();
        Self {
            disk: SimDisk::new(random.next(), plan.disk, plan.device_flush),
            random,
            broker: None,
            network: Network::new(plan.network),
            topics: Topics::default(),
            next_process: clients.len() as u32,
            clients,
            over: Vec::new(),
            own: Recorder::new(Process(0)),
            now_us: 1_000,
            next_value: 1,
            ran: Ran::default(),
            plan,
            talks: std::env::var_os("COULEE_SIM_TALK").is_some(),
        }
    }

    fn talk(&self, what: impl FnOnce(&Self) -> String) {
        if self.talks {
            println!("{} us: {}", self.now_us, what(self));
        }
    }

    fn now(&self) -> Now {
        let monotonic_ms = self.now_us / 1_000;
        Now { monotonic_ms, wall_ms: 1_700_000_000_000 + monotonic_ms as i64 }
    }

    fn run(&mut self) -> Result<(), String> {
        for life in 0..self.plan.lives {
            self.live(life).map_err(|wrong| format!("life {life}: {wrong}"))?;
        }
        self.read_all().map_err(|wrong| format!("the last life: {wrong}"))
    }

    /// One life of the broker, up to its crash.
    fn live(&mut self, life: u64) -> Result<(), String> {
        if !self.start(true)? {
            return Ok(());
        }
        for _ in 0..self.random.below(self.plan.steps) {
            self.step()?;
            if let Some(error) = self.broker.as_mut().and_then(|broker| broker.failed.take()) {
                if self.struck() == 0 {
                    return Err(error);
                }
                break;
            }
            if self.plan.misfortune == Misfortune::Harm && self.random.below(300) == 0 {
                self.harm_one(false);
            }
        }
        if life + 1 == self.plan.lives && self.random.below(2) == 0 {
            self.settle_clients()?;
        }
        self.end_life()
    }

    /// The broker goes down, in one of three ways.
    fn end_life(&mut self) -> Result<(), String> {
        match self.random.below(6) {
            0 => {
                // What was never opened in this life may be in no checkpoint yet: there a flipped bit is a torn tail.
                let opened = self.broker.as_deref().is_some_and(Broker::is_settled);
                self.stop()?;
                self.crash(Crash::Process);
                if self.plan.misfortune == Misfortune::Harm && opened {
                    (0..1 + self.random.below(3)).for_each(|_| self.harm_one(true));
                }
            }
            1 => self.crash(Crash::Process),
            _ => self.crash(Crash::Power),
        }
        Ok(())
    }

    /// Faults of the disk that have struck in this life.
    fn struck(&self) -> u64 {
        self.disk.faults().struck.values().sum()
    }

    /// What the disk will do to the next life.
    fn draw_faults(&mut self) -> Faults {
        let mut faults = Faults { short_writes: self.plan.short_writes, ..Faults::default() };
        match self.plan.misfortune {
            Misfortune::Errors => {
                for _ in 0..1 + self.random.below(3) {
                    let kind = Kind::ALL[self.random.below(Kind::ALL.len() as u64) as usize];
                    let most = [5, 50, 300][self.random.below(3) as usize];
                    faults.countdowns.insert(kind, self.random.below(most));
                }
            }
            Misfortune::Full => {
                let from = self.now_us + self.random.below(50_000);
                faults.full = from..from + self.random.below(200_000);
            }
            Misfortune::None | Misfortune::Harm => {}
        }
        faults
    }

    /// Starts the broker on what the disk holds; whether it runs. It may crash while it starts.
    fn start(&mut self, with_faults: bool) -> Result<bool, String> {
        let setup = Setup {
            shards: self.plan.shards(&mut self.random),
            tail_bytes: self.plan.tail_bytes,
            pool_bytes: self.plan.pool_bytes,
        };
        let faults = if with_faults { self.draw_faults() } else { Faults::default() };
        self.disk.set_faults(faults);
        self.disk.set_now(self.now_us);
        let cut_short = with_faults && self.random.below(10) == 0;
        let steps = if cut_short { self.random.below(100) } else { PATIENCE };
        match Broker::start(&self.disk, setup, &mut self.now_us, &mut self.random, steps) {
            Start::Runs(broker) => {
                self.talk(|world| format!("{} shards run, {:?}", broker.shards(), world.disk.faults()));
                self.broker = Some(broker);
                Ok(true)
            }
            Start::CutOff if cut_short => {
                self.crash(Crash::Power);
                Ok(false)
            }
            Start::Failed(_) if self.struck() > 0 || self.disk.faults().refused > 0 => {
                self.crash(Crash::Process);
                Ok(false)
            }
            Start::CutOff => Err("the broker does not come up".into()),
            Start::Failed(error) => Err(format!("the broker does not start: {error}")),
        }
    }

    /// The broker is gone. Some answers that were under way may still have come before.
    fn crash(&mut self, crash: Crash) {
        self.now_us += 1;
        let faults = self.disk.faults();
        self.talk(|_| format!("{crash:?} crash, {faults:?}"));
        self.ran.faults[0] += faults.struck.values().sum::<u64>();
        self.ran.faults[1] += faults.refused;
        self.ran.crashes += 1;
        self.ran.power_cuts += u64::from(crash == Crash::Power);
        for at in 0..self.clients.len() {
            self.clients[at].lose_connection(&mut scene!(self));
        }
        self.network.break_all();
        self.broker = None;
        // What was only written is as safe as the device is.
        let failed = [Kind::Write, Kind::Sync, Kind::Flush].into_iter().any(|kind| faults.has_struck(kind));
        self.own.incident(self.now_us, Incident::Crash(if failed { Crash::Power } else { crash }));
        self.disk = match crash {
            Crash::Power => self.disk.cut_power(),
            Crash::Process => self.disk.kill(),
        };
        self.now_us += 1;
    }

    /// One of all things that can happen now happens; where nothing can, time passes.
    fn step(&mut self) -> Result<(), String> {
        self.now_us += 1;
        self.ran.steps += 1;
        self.disk.set_now(self.now_us);
        let now = self.now();
        let broker = self.broker.as_mut().expect("a broker runs");
        let (on_disk, disk_us) = self.disk.ready();
        let (awake, cycle_ms) = broker.awake(now);
        let mails = broker.mails();
        let (arrivals, arrival_us) = self.network.ready(self.now_us);
        let now_us = self.now_us;
        let acting: Vec<usize> = (0..self.clients.len()).filter(|at| self.clients[*at].next_us <= now_us).collect();
        let all = on_disk + awake.len() + mails + arrivals + acting.len();
        if all == 0 {
            let client_us = self.clients.iter().map(|client| client.next_us).min();
            let next = disk_us.into_iter().chain(arrival_us).chain(cycle_ms.map(|ms| ms * 1_000)).chain(client_us);
            self.now_us = next.min().ok_or("nothing will ever happen again")?.max(self.now_us);
            return Ok(());
        }
        let mut chosen = self.random.below(all as u64) as usize;
        self.ran.trace = (self.ran.trace ^ (chosen as u64 | self.now_us << 8)).wrapping_mul(0x0100_0000_01b3);
        if chosen < on_disk {
            self.disk.complete(chosen);
            return Ok(());
        }
        chosen -= on_disk;
        if chosen < awake.len() {
            broker.cycle(awake[chosen], now);
            self.send_answers();
            return self.check_answers();
        }
        chosen -= awake.len();
        if chosen < mails {
            broker.deliver(chosen, now);
            self.send_answers();
            return Ok(());
        }
        chosen -= mails;
        if chosen < arrivals {
            self.arrive(chosen)
        } else {
            self.act(acting[chosen - arrivals])
        }
        Ok(())
    }

    fn send_answers(&mut self) {
        let Some(broker) = &mut self.broker else { return };
        for news in broker.news.drain(..).filter(|_| self.talks) {
            println!("{} us: {news}", self.now_us);
        }
        for (connection, number, reply) in broker.answers.drain(..) {
            self.network.answer(connection, number, reply, self.now_us, &mut self.random);
        }
    }

    /// Nobody may be told of a failure that did not happen.
    fn check_answers(&self) -> Result<(), String> {
        let faults = self.disk.faults();
        let reads: u64 = self.clients.iter().map(|client| client.failed_reads).sum();
        if reads > 0 && !faults.has_struck(Kind::Read) && self.plan.misfortune != Misfortune::Errors {
            return Err("a fetch has failed on the disk, and no read has".into());
        }
        let offline: u64 = self.clients.iter().map(|client| client.offline).sum();
        if offline > 0 && self.plan.misfortune != Misfortune::Errors {
            return Err("a partition is offline, and no operation has failed".into());
        }
        Ok(())
    }

    fn arrive(&mut self, chosen: usize) {
        let now = self.now();
        match self.network.take(chosen, self.now_us) {
            Some(Arrival::Request(connection, shard, number, request)) => {
                let broker = self.broker.as_mut().expect("a broker runs");
                broker.request(connection, shard, number, request, now);
                self.send_answers();
            }
            Some(Arrival::Reply(client, number, reply)) => self.clients[client].hear(number, reply, &mut scene!(self)),
            None => {}
        }
    }

    fn act(&mut self, at: usize) {
        let broker = self.broker.as_ref().expect("a broker runs");
        let breaks = !self.clients[at].resting && self.random.below(1_000) < self.plan.breaks;
        let Some(shard) = self.clients[at].shard() else {
            let shard = self.random.below(u64::from(broker.shards())) as u16;
            let id = self.network.connect(at, shard);
            self.clients[at].connect(id, shard);
            return;
        };
        if breaks {
            if let Some(id) = self.clients[at].connection_id() {
                self.network.break_off(id, &mut self.random);
            }
            self.clients[at].lose_connection(&mut scene!(self));
            return;
        }
        self.clients[at].act(broker.view(shard), &mut scene!(self));
    }

    /// Goes on until `there`; whether that comes.
    fn until(&mut self, there: impl Fn(&Self) -> bool) -> Result<bool, String> {
        let (until_us, mut steps) = (self.now_us + PATIENCE_US, PATIENCE);
        while !there(self) {
            if self.now_us > until_us || steps == 0 {
                return Ok(false);
            }
            steps -= 1;
            self.step()?;
        }
        Ok(true)
    }

    fn rest(&mut self, resting: bool) {
        self.clients.iter_mut().for_each(|client| client.resting = resting);
    }

    /// Every operation in flight gets its answer.
    fn settle_clients(&mut self) -> Result<(), String> {
        self.rest(true);
        let settled = self.until(|world| world.clients.iter().all(|client| client.waits() == 0))?;
        self.rest(false);
        let waiting: Vec<&Client> = self.clients.iter().filter(|client| client.waits() > 0).collect();
        if settled { Ok(()) } else { Err(format!("never answered: {waiting:?}")) }
    }

    /// Stops the broker cleanly, while clients go on for a while.
    fn stop(&mut self) -> Result<(), String> {
        self.talk(|_| "stopping".into());
        let now = self.now();
        let Some(broker) = self.broker.as_mut() else { return Ok(()) };
        broker.stop(now);
        for _ in 0..self.random.below(100) {
            self.step()?;
        }
        self.rest(true);
        let is_stopped = |broker: &Broker| broker.stopped == usize::from(broker.shards());
        let stopped = self.until(|world| world.broker.as_deref().is_none_or(is_stopped))?;
        self.rest(false);
        if stopped { Ok(()) } else { Err(format!("the broker does not stop: {:?}", self.broker)) }
    }

    /// Spoils one block of a segment that nothing is appended to, of any segment where the broker has `stopped`
    /// cleanly, or of another file that there are two of.
    fn harm_one(&mut self, stopped: bool) {
        let harm = Harm::ALL[self.random.below(4) as usize];
        let of_users = |name: &FileName| match name {
            FileName::Segment(uid, _) => *uid != CATALOG_UID,
            FileName::Index(..) => stopped,
            _ => false,
        };
        let files: Vec<FileName> = self.disk.durable_files().into_iter().filter(of_users).collect();
        let Some(name) = files.get(self.random.below(files.len().max(1) as u64) as usize).copied() else { return };
        if let FileName::Segment(uid, _) = name
            && !stopped
            && self.disk.segments(uid).last() == Some(&name)
        {
            return;
        }
        let Some(harmed) = self.disk.harm(name, harm, &mut self.random) else { return };
        self.ran.faults[2] += 1;
        self.talk(|_| format!("{harm:?}: {harmed:?}"));
        let FileName::Segment(uid, _) = name else { return };
        let Some(asked) = self.topics.of_uid(uid) else { return };
        for lost in harmed.lost {
            let incident = Incident::Damage(asked.key, Offset(lost.start), Offset(lost.end));
            self.own.incident(self.now_us, incident);
        }
    }

    /// The last life, without faults: everything is read, and every topic is there that has to be.
    fn read_all(&mut self) -> Result<(), String> {
        if !self.start(false)? {
            return Err("the broker does not start".into());
        }
        self.rest(true);
        let quiet = |broker: &Broker| broker.failed.is_some() || (broker.is_settled() && broker.mails() == 0);
        if !self.until(|world| world.broker.as_deref().is_none_or(quiet))? {
            return Err(format!("the broker never settles: {:?}", self.broker));
        }
        if let Some(error) = self.broker.as_mut().and_then(|broker| broker.failed.take()) {
            return Err(error);
        }
        self.look_for_topics();
        let broker = self.broker.as_ref().expect("a broker runs");
        let mut left = std::collections::VecDeque::new();
        for topic in broker.view(0).catalog().topics() {
            for (number, placed) in (0..).zip(&topic.partitions).filter(|(_, placed)| placed.uid != CATALOG_UID) {
                let asked = self.topics.find(topic.id, number, placed.uid);
                left.push_back((placed.uid, asked.ok_or("a topic was made by nobody")?.key));
            }
        }
        self.next_process += 1;
        self.clients.push(Client::new(Role::Reader(left), self.next_process));
        let is_done =
            |reader: &Client| matches!(reader.role(), Role::Reader(left) if left.is_empty()) && reader.waits() == 0;
        let read = self.until(|world| world.clients.last().is_none_or(is_done))?;
        if read { Ok(()) } else { Err(format!("not everything can be read: {:?}", self.clients.last())) }
    }

    /// Writes down which topics there are.
    fn look_for_topics(&mut self) {
        let broker = self.broker.as_ref().expect("a broker runs");
        for (id, number, asked) in self.topics.all() {
            let topic = broker.view(0).catalog().topic_by_id(id);
            let there = topic.is_some_and(|topic| topic.partitions.len() > number as usize);
            self.now_us += 1;
            let op = self.own.begin(self.now_us, Begun::Describe(asked.key));
            self.now_us += 1;
            self.own.end(self.now_us, op, Ended::There(there));
        }
    }
}
