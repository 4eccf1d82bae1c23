//! The cycle of one shard: completions, messages, connections, the core's decisions, answers; decides nothing itself.
//!
//! ```text
//!  reap ─▶ messages ─▶ connections ─▶ core.cycle ─▶ effects ─▶ answers ─▶ submit ─▶ (sleep)
//! ```
//! All of it runs in one task, so that no queue of an executor stands between a completion and who waits for it. When
//! nothing is left to do the shard sleeps on the ring's eventfd: a completion, a message or a deadline wakes it.

use crate::connection::Connection;
use crate::facts::Facts;
use crate::input::Frame;
use crate::limits::{ACCEPT_PAUSE_MS, CYCLE_ACCEPTS_MAX, SLEEP_MS_MAX};
use crate::message::{Greeting, Message, Report};
use crate::output::Spare;
use crate::pending::Pending;
use crate::shard::counts::Counts;
use crate::shard::overtime::Overtime;
use crate::slab::{Key, Slab};
use coulee_core::block::BlockPool;
use coulee_core::controller::{Controller, View};
use coulee_core::shard::budget::Budget;
use coulee_core::shard::{Command, Now, Shard};
use coulee_io::clock::Clock;
use coulee_io::control::Control;
use coulee_io::disk::FileDisk;
use coulee_io::mesh::MeshEnd;
use coulee_io::net::{AcceptError, Listener};
use coulee_io::ring::{Interest, Ready, Ring, Token};
use coulee_io::wake::Sleeper;
use coulee_protocol::ids::ShardId;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::task::{Context, Waker};
use std::time::Duration;
use tracing::{error, info, warn};

mod answers;
mod connections;
mod counts;
mod dispatch;
mod gather;
mod groups;
mod messages;
mod overtime;
#[cfg(test)]
mod scene;
#[cfg(test)]
mod tests;
mod topics;

/// The token of the listening socket; connections have those behind it.
const LISTENER: Token = Token(0);

/// The token of a connection: those from 1 on.
const fn token_of(key: Key) -> Token {
    Token(key.index() + 1)
}

/// What the rest of the process hears from a shard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Every partition has been opened, or could not be; this shard knows all of them.
    Ready(ShardId),
    /// The broker cannot start, and why.
    Failed(String),
    /// This shard has stopped; everything is durable, or the time for it was over.
    Stopped(ShardId, bool),
}

/// What a shard is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Which one it is.
    pub(crate) id: ShardId,
    /// Its ring.
    pub(crate) ring: Ring,
    /// Its memory.
    pub(crate) pool: BlockPool,
    /// Its partitions.
    pub(crate) core: Shard<FileDisk>,
    /// Its end of the mesh.
    pub(crate) mesh: MeshEnd<Message>,
    /// How it is woken.
    pub(crate) sleeper: Sleeper,
    /// The listening socket, on shard 0.
    pub(crate) listener: Option<Listener>,
    /// The owner of the catalog, on shard 0.
    pub(crate) controller: Option<Controller>,
    /// What is true of the whole broker.
    pub(crate) facts: Facts,
    /// What the process wants of it.
    pub(crate) control: Control,
    /// Where news go.
    pub(crate) news: mpsc::Sender<News>,
    /// Bytes for frames that are received or under way.
    pub(crate) budget_bytes: usize,
}

/// How far stopping has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Until this time at the latest.
    Draining(u64),
    /// The core has stopped; answers are sent until this time at the latest.
    Parting(u64),
    Over,
}

/// One shard of the broker. It never leaves its thread.
pub(crate) struct ShardServer {
    parts: Parts,
    clock: Clock,
    view: View,
    connections: Slab<Option<Box<Connection>>>,
    /// Connections to be served.
    queue: VecDeque<Key>,
    /// Connections that wait for the budget.
    paused: BTreeSet<Key>,
    /// Frames taken in this cycle.
    cycle_frames: usize,
    /// Connections with answers to send.
    flush: Vec<Key>,
    deadlines: BTreeSet<(u64, Key)>,
    pending: Slab<Pending>,
    overtime: Overtime,
    budget: Budget,
    /// How often something of the budget was given back.
    freed: u64,
    /// Bytes of answers that connections hold, or will when they are read.
    answers_bytes: usize,
    spare: Spare,
    /// Frames that were just cut; empty between two connections.
    frames: Vec<Frame>,
    ready: Vec<Ready>,
    /// Messages that the mesh had no room for, by shard; and those for this shard itself.
    outbox: Vec<VecDeque<Message>>,
    counts: Counts,
    accept_at_ms: Option<u64>,
    told_ready: bool,
    /// When the topic of committed offsets may be asked for again.
    ask_for_offsets_at_ms: u64,
    /// The shard that the connection being served wants, and its Hello.
    handed_over: Option<(ShardId, Greeting)>,
    phase: Phase,
}

impl std::fmt::Debug for ShardServer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "ShardServer({})", self.parts.id)
    }
}

impl ShardServer {
    /// Puts a shard together.
    #[must_use]
    pub(crate) fn new(parts: Parts) -> Self {
        let shards = parts.mesh.shards();
        if let Some(listener) = &parts.listener {
            parts.ring.poll_multishot(listener.as_fd(), LISTENER, Interest::Read);
        }
        Self {
            clock: Clock::new(),
            view: View::default(),
            connections: Slab::default(),
            queue: VecDeque::new(),
            paused: BTreeSet::new(),
            cycle_frames: 0,
            flush: Vec::new(),
            deadlines: BTreeSet::new(),
            pending: Slab::default(),
            overtime: Overtime::default(),
            budget: Budget::new(parts.budget_bytes),
            freed: 0,
            answers_bytes: 0,
            spare: Spare::default(),
            frames: Vec::new(),
            ready: Vec::new(),
            outbox: (0..shards).map(|_| VecDeque::new()).collect(),
            counts: Counts::default(),
            accept_at_ms: None,
            told_ready: false,
            ask_for_offsets_at_ms: 0,
            handed_over: None,
            phase: Phase::Running,
            parts,
        }
    }

    fn now(&self) -> Now {
        self.clock.now()
    }

    fn id(&self) -> ShardId {
        self.parts.id
    }

    fn shards(&self) -> u16 {
        u16::try_from(self.parts.mesh.shards()).expect("shards are counted in 16 bits")
    }

    /// Runs until the shard has stopped.
    pub(crate) fn run(mut self) {
        self.report(Report::Started);
        while self.phase != Phase::Over {
            let worked = self.cycle();
            if !worked && self.queue.is_empty() {
                self.sleep();
            }
        }
        let stopped = News::Stopped(self.id(), true);
        self.tell(stopped);
    }

    /// One cycle; whether it found anything to do.
    fn cycle(&mut self) -> bool {
        self.clock.read();
        let began_us = self.clock.monotonic_us();
        let mut worked = self.parts.ring.reap() > 0;
        worked |= self.take_messages();
        worked |= self.take_ready();
        worked |= self.serve();
        worked |= self.parts.core.cycle(self.clock.now(), &mut Context::from_waker(Waker::noop()));
        worked |= self.take_effects();
        worked |= self.look_after_deadlines();
        worked |= self.look_after_overtime();
        self.send_answers();
        self.send_messages();
        // Stopping begins with a command to the core, which has to be carried out before the shard may sleep.
        worked |= self.obey();
        self.submit();
        self.counts.cycle(coulee_io::clock::monotonic_us() - began_us);
        worked
    }

    fn submit(&self) {
        if let Err(errno) = self.parts.ring.submit() {
            panic!("the kernel takes nothing from the ring of shard {}: {errno}", self.id());
        }
    }

    fn tell(&self, news: News) {
        if self.parts.news.send(news).is_err() {
            warn!(shard = self.id().0, "nobody listens to this shard any more");
        }
    }

    /// Waits for a completion, a message or the next deadline.
    fn sleep(&self) {
        if self.outbox.iter().any(|messages| !messages.is_empty()) {
            // The mesh had no room for them, and nobody says when it has.
            return;
        }
        let now_ms = self.now().monotonic_ms;
        let own = self.deadlines.first().map(|(deadline, _)| *deadline);
        let phase = match self.phase {
            Phase::Draining(until) | Phase::Parting(until) => Some(until),
            _ => None,
        };
        let overtime = self.overtime.deadline_ms();
        let deadlines = [self.parts.core.deadline_ms(), own, overtime, self.accept_at_ms, phase];
        let deadline_ms = deadlines.into_iter().flatten().min().unwrap_or(u64::MAX);
        let sleep_ms = deadline_ms.saturating_sub(now_ms).min(SLEEP_MS_MAX);
        if sleep_ms == 0 {
            return;
        }
        let running = self.phase == Phase::Running;
        let Parts { sleeper, mesh, control, ring, .. } = &self.parts;
        if let Some(sleep) = sleeper.announce(|| !mesh.is_empty() || (control.is_stopping() && running)) {
            let waited = ring.wait(Some(Duration::from_millis(sleep_ms)));
            drop(sleep);
            assert!(waited.is_ok(), "the ring of a shard can be waited for: {waited:?}");
        }
    }

    /// Takes what the ring says of sockets.
    fn take_ready(&mut self) -> bool {
        let mut ready = std::mem::take(&mut self.ready);
        self.parts.ring.take_ready(&mut ready);
        let worked = !ready.is_empty();
        for Ready { token, readiness } in ready.drain(..) {
            if token == LISTENER {
                self.accept();
            } else if let Some(key) = self.connections.key_at(token.0 - 1) {
                self.socket_ready(key, readiness);
            }
        }
        self.ready = ready;
        worked
    }

    fn accept(&mut self) {
        self.accept_at_ms = None;
        for _ in 0..CYCLE_ACCEPTS_MAX {
            let accepted = match &self.parts.listener {
                Some(listener) => listener.accept(),
                None => return,
            };
            match accepted {
                Ok(Some(socket)) => self.welcome(socket),
                Ok(None) => return,
                Err(AcceptError::Aborted(_)) => {}
                Err(reason) => {
                    warn!(?reason, "no connection can be accepted for the moment");
                    self.counts.connections_refused += 1;
                    break;
                }
            }
        }
        // More wait, or there is no room for them: readiness is told once only.
        self.accept_at_ms = Some(self.now().monotonic_ms + ACCEPT_PAUSE_MS * u64::from(self.is_out_of_room()));
    }

    /// Looks for what the process wants: to stop. Whether it has just begun to.
    fn obey(&mut self) -> bool {
        let now_ms = self.now().monotonic_ms;
        let begins = self.phase == Phase::Running && self.parts.control.is_stopping();
        if begins {
            info!(shard = self.id().0, "draining");
            let grace_ms = self.parts.facts.shutdown_grace_ms;
            self.phase = Phase::Draining(now_ms + grace_ms);
            self.parts.listener = None;
            self.parts.ring.unpoll(LISTENER);
            self.stop_controller();
            self.parts.core.command(Command::Stop);
        }
        let over = match self.phase {
            Phase::Draining(until) if now_ms >= until => {
                error!(shard = self.id().0, "stopping before everything was written: the grace period is over");
                self.tell(News::Stopped(self.id(), false));
                true
            }
            Phase::Parting(until) => now_ms >= until || self.connections_owe_nothing(),
            _ => false,
        };
        if over {
            self.close_all();
            self.submit();
            self.phase = Phase::Over;
        }
        begins
    }

    /// The core has stopped: nothing will be acknowledged any more.
    fn core_stopped(&mut self) {
        if let Phase::Draining(until) = self.phase {
            self.phase = Phase::Parting(until);
        }
    }
}
