//! One thread of work: lanes and readers behind one epoll, in a closed loop or on a schedule; knows no report.
//!
//! Closed: each lane has as many requests in flight as it may. Open: requests are due by the clock and go to the lanes
//! in turn; one that finds no room goes later, and its latency counts from when it was due.

use crate::fault::Fault;
use crate::lane::Lane;
use crate::reader::Reader;
use crate::schedule::Schedule;
use crate::tally::{Tally, Window};
use crate::templates::Templates;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Nothing may stay out for longer than this.
const STALL_SECONDS: u64 = 30;
/// A sleep ends about this much late, so the rest of the way to a due request is waited awake.
const AWAKE_NS: u64 = 80_000;
/// Events taken at once.
const EVENTS_MAX: usize = 256;

/// What a thread is to do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) window: Window,
    /// Nothing is sent from here on.
    pub(crate) stop_ns: u64,
    /// Requests of this thread, at most.
    pub(crate) requests: u64,
    /// Requests a second of this thread, where there is a schedule.
    pub(crate) per_second: Option<f64>,
    /// Records that readers have to find where no lane writes.
    pub(crate) records_wanted: u64,
    /// Nothing is sent any more once somebody sets it.
    pub(crate) stop: Option<Arc<AtomicBool>>,
}

impl Plan {
    /// Whether nothing is to be sent any more.
    fn is_over(&self, now_ns: u64) -> bool {
        now_ns >= self.stop_ns || self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed))
    }
}

/// A thread's work.
#[derive(Debug)]
pub(crate) struct Generator {
    pub(crate) lanes: Vec<Lane>,
    pub(crate) readers: Vec<Reader>,
    pub(crate) templates: Arc<Templates>,
    pub(crate) plan: Plan,
    /// When the run began, for all threads.
    pub(crate) start: Instant,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) acks: Tally,
    pub(crate) reads: Tally,
}

/// The loop's own state.
struct Turn<'a> {
    generator: &'a mut Generator,
    schedule: Option<Schedule>,
    next_lane: usize,
    requests_left: u64,
    outcome: Outcome,
}

impl Generator {
    /// Works until everything is sent and answered.
    pub(crate) fn run(&mut self) -> Result<Outcome, Fault> {
        let window = self.plan.window;
        let mut turn = Turn {
            schedule: self.plan.per_second.map(|per_second| Schedule::new(now_ns(self.start), per_second)),
            next_lane: 0,
            requests_left: self.plan.requests,
            outcome: Outcome { acks: Tally::new(window), reads: Tally::new(window) },
            generator: self,
        };
        turn.work()?;
        let mut outcome = turn.outcome;
        if turn.requests_left == 0 {
            (outcome.acks.is_exhausted, outcome.reads.is_exhausted) = (true, true);
        }
        Ok(outcome)
    }

    fn register(&self) -> Result<std::os::fd::OwnedFd, Fault> {
        let machine = |error: rustix::io::Errno| Fault::Machine { what: "epoll", error: error.into() };
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(machine)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        let lanes = self.lanes.iter().map(Lane::wire);
        for (at, wire) in lanes.chain(self.readers.iter().map(Reader::wire)).enumerate() {
            epoll::add(&poll, wire.stream(), epoll::EventData::new_u64(at as u64), flags).map_err(machine)?;
        }
        Ok(poll)
    }
}

fn now_ns(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).expect("runs are shorter than 500 years")
}

impl Turn<'_> {
    fn work(&mut self) -> Result<(), Fault> {
        let poll = self.generator.register()?;
        let start = self.generator.start;
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
        let mut moved_ns = now_ns(start);
        for reader in &mut self.generator.readers {
            reader.ask(moved_ns)?;
        }
        loop {
            self.send(now_ns(start))?;
            let now = now_ns(start);
            if self.is_done(now) {
                return Ok(());
            }
            if now - moved_ns > STALL_SECONDS * 1_000_000_000 {
                let outstanding = self.generator.lanes.iter().map(|lane| lane.outstanding() as u64).sum();
                return Err(Fault::Stalled { what: "answers", seconds: STALL_SECONDS, outstanding });
            }
            events.clear();
            let timeout = self.timeout(now);
            match epoll::wait(&poll, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Fault::Machine { what: "epoll", error: error.into() }),
            }
            for event in &events {
                moved_ns = now;
                let flags = event.flags;
                self.react(event.data.u64() as usize, flags)?;
            }
        }
    }

    /// Sends what may be sent now.
    fn send(&mut self, now_ns: u64) -> Result<(), Fault> {
        loop {
            let offered = match self.schedule {
                Some(_) => self.offer_due(now_ns),
                None => self.offer_all(now_ns),
            };
            let Generator { lanes, templates, .. } = &mut *self.generator;
            lanes.iter_mut().try_for_each(|lane| lane.flush(templates))?;
            if !offered {
                return Ok(());
            }
        }
    }

    /// Fills each lane. Whether anything was added.
    fn offer_all(&mut self, now_ns: u64) -> bool {
        let Generator { lanes, templates, plan, .. } = &mut *self.generator;
        if plan.is_over(now_ns) {
            return false;
        }
        let before = self.requests_left;
        for lane in lanes {
            while self.requests_left > 0 && lane.has_room() && !lane.is_gathered() {
                lane.request(templates, now_ns);
                self.requests_left -= 1;
            }
        }
        self.requests_left < before
    }

    /// Gives what is due to the lanes in turn. Whether anything was added.
    fn offer_due(&mut self, now_ns: u64) -> bool {
        let Some(schedule) = &mut self.schedule else { return false };
        let Generator { lanes, templates, plan, .. } = &mut *self.generator;
        let mut added = false;
        while self.requests_left > 0 && schedule.due_ns() <= now_ns.min(plan.stop_ns - 1) {
            let count = lanes.len();
            let turn = (0..count).map(|step| (self.next_lane + step) % count);
            let Some(at) = { turn }.find(|at| lanes[*at].has_room() && !lanes[*at].is_gathered()) else { break };
            lanes[at].request(templates, schedule.due_ns());
            schedule.advance();
            self.requests_left -= 1;
            self.next_lane = (at + 1) % count;
            added = true;
        }
        added
    }

    fn react(&mut self, at: usize, flags: epoll::EventFlags) -> Result<(), Fault> {
        let Generator { lanes, readers, templates, start, .. } = &mut *self.generator;
        let is_readable = flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        let start = *start;
        let count = lanes.len();
        if let Some(lane) = lanes.get_mut(at) {
            if flags.contains(epoll::EventFlags::OUT) {
                lane.set_writable();
            }
            if is_readable {
                lane.receive(templates, &mut self.outcome.acks, || now_ns(start))?;
            }
            return Ok(());
        }
        let place = at - count;
        let reader = &mut readers[place];
        if flags.contains(epoll::EventFlags::OUT) {
            reader.flush()?;
        }
        if !is_readable {
            return Ok(());
        }
        let times = lanes.get(place).map(|lane| &lane.targets);
        let intended_ns = |source: usize, number: u64| {
            let sent = times?.get(source)?.times.as_ref()?;
            sent.get(number as usize).copied()
        };
        reader.receive(templates, &mut self.outcome.reads, || now_ns(start), intended_ns)
    }

    /// Whether everything is sent, acknowledged and, where there are readers, read.
    fn is_done(&self, now_ns: u64) -> bool {
        let Generator { lanes, readers, plan, templates, .. } = &*self.generator;
        let sending = !lanes.is_empty() && self.requests_left > 0 && !plan.is_over(now_ns);
        if sending || lanes.iter().any(|lane| lane.outstanding() > 0) {
            return false;
        }
        let acked = lanes.iter().flat_map(|lane| &lane.targets).map(|target| target.acked()).sum::<u64>();
        let wanted = acked * u64::from(templates.records()) + plan.records_wanted;
        readers.is_empty() || readers.iter().map(Reader::records).sum::<u64>() >= wanted
    }

    fn timeout(&self, now_ns: u64) -> Timespec {
        let plan = &self.generator.plan;
        let due_ns = self.schedule.filter(|_| self.requests_left > 0).map_or(u64::MAX, |schedule| schedule.due_ns());
        let has_room = self.generator.lanes.iter().any(Lane::has_room);
        let until_ns = if now_ns < plan.stop_ns && has_room { due_ns.min(plan.stop_ns) } else { u64::MAX };
        let left_ns = until_ns.saturating_sub(now_ns).saturating_sub(AWAKE_NS).min(1_000_000_000);
        Timespec { tv_sec: (left_ns / 1_000_000_000) as i64, tv_nsec: (left_ns % 1_000_000_000) as i64 }
    }
}
