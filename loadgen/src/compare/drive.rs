//! Connections to a peer behind one epoll: a closed loop that writes, a loop that reads; knows no protocol.
//!
//! Sketch: requests are gathered for one system call, answers are looked at where they lie; nothing is allocated for a
//! record. The time is read once for all answers that came together.

use super::values::Values;
use crate::fault::Fault;
use crate::machine;
use crate::tally::{Tally, Window};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Instant;

/// Room for answers at first; it grows where one is larger.
const ROOM: usize = 256 << 10;
/// The largest answer that is waited for.
const ROOM_MAX: usize = 64 << 20;
/// Requests are gathered up to here before the socket is asked to take them.
const GATHERED_BYTES_MAX: usize = 256 << 10;
/// Waits of a second each without anything in between that acknowledges or holds a record: counted, not measured, so
/// that a pause of this process is not held against the peer.
const IDLE_WAITS_MAX: u64 = 60;

/// What was taken from the front of what came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) bytes: usize,
    /// Records that it acknowledges or holds.
    pub(super) records: u64,
}

/// One side of a conversation with a peer, about one log.
pub(super) trait Talk: Send {
    /// Adds the next request: a record to keep, or, of a reader, the first demand for records.
    fn request(&mut self, values: &Values, out: &mut Vec<u8>);

    /// Takes all whole answers from the front of `bytes`; what has to be said at once goes to `out`.
    fn answers(&mut self, values: &Values, bytes: &[u8], out: &mut Vec<u8>) -> Result<Taken, Fault>;
}

/// How writers load a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Records that each connection keeps in flight.
    pub(super) in_flight: usize,
    pub(super) window: Window,
    /// Records, at most.
    pub(super) records_max: u64,
}

/// A connection and what is said on it.
#[derive(Debug)]
pub(super) struct Link<T> {
    stream: TcpStream,
    pub(super) talk: T,
    out: Vec<u8>,
    sent: usize,
    is_writable: bool,
    buffer: Vec<u8>,
    filled: usize,
    /// When each record in flight was sent.
    in_flight: VecDeque<u64>,
}

impl<T: Talk> Link<T> {
    /// A connection that has said everything which comes before the talk; `read` came behind the answers to that.
    pub(super) fn new(stream: TcpStream, read: &[u8], talk: T) -> Result<Self, Fault> {
        stream.set_nodelay(true).map_err(Fault::machine("nodelay"))?;
        stream.set_nonblocking(true).map_err(Fault::machine("a socket that does not wait"))?;
        let mut buffer = vec![0; ROOM.max(read.len() * 2)];
        buffer[..read.len()].copy_from_slice(read);
        Ok(Self {
            stream,
            talk,
            out: Vec::new(),
            sent: 0,
            is_writable: true,
            buffer,
            filled: read.len(),
            in_flight: VecDeque::new(),
        })
    }

    fn flush(&mut self) -> Result<(), Fault> {
        while self.is_writable && self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Machine { what: "a request to a peer", error }),
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
        Ok(())
    }

    /// Reads until nothing is left; records that were acknowledged or read.
    fn receive(&mut self, values: &Values) -> Result<u64, Fault> {
        let mut records = 0;
        loop {
            if self.filled == self.buffer.len() {
                if self.filled >= ROOM_MAX {
                    return Err(Fault::wire("a peer's answer", "it is too long"));
                }
                self.buffer.resize(self.filled * 2, 0);
            }
            let room = &mut self.buffer[self.filled..];
            let wanted = room.len();
            let count = match self.stream.read(room) {
                Ok(0) => return Err(Fault::wire("a peer's answer", "it has closed the connection")),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(records),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Fault::Machine { what: "a peer's answer", error }),
            };
            self.filled += count;
            let taken = self.talk.answers(values, &self.buffer[..self.filled], &mut self.out)?;
            assert!(taken.bytes <= self.filled, "no more is taken than came");
            self.buffer.copy_within(taken.bytes..self.filled, 0);
            self.filled -= taken.bytes;
            records += taken.records;
            self.flush()?;
            if count < wanted {
                return Ok(records);
            }
        }
    }

    /// Keeps as much in flight as it may; how many records were added, no more than `left`.
    fn fill(&mut self, load: &Load, left: u64, values: &Values, now_ns: u64) -> u64 {
        let mut added = 0;
        while added < left && self.in_flight.len() < load.in_flight && self.out.len() < GATHERED_BYTES_MAX {
            self.talk.request(values, &mut self.out);
            self.in_flight.push_back(now_ns);
            added += 1;
        }
        added
    }
}

/// All connections of a run.
struct Links<'a, T> {
    links: Vec<Link<T>>,
    values: &'a Values,
    poll: OwnedFd,
    events: Vec<epoll::Event>,
    start: Instant,
    idle_waits: u64,
}

impl<'a, T: Talk> Links<'a, T> {
    fn new(links: Vec<Link<T>>, values: &'a Values) -> Result<Self, Fault> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(epoll_fault)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        for (at, link) in links.iter().enumerate() {
            epoll::add(&poll, &link.stream, epoll::EventData::new_u64(at as u64), flags).map_err(epoll_fault)?;
        }
        Ok(Self { links, values, poll, events: Vec::with_capacity(256), start: Instant::now(), idle_waits: 0 })
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("runs are shorter than 500 years")
    }

    /// Waits for up to a second, reads what came, and tells `came` of each connection how many records that was.
    fn turn(&mut self, mut came: impl FnMut(&mut Link<T>, u64, u64)) -> Result<(), Fault> {
        self.events.clear();
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        match epoll::wait(&self.poll, spare_capacity(&mut self.events), Some(&second)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(epoll_fault(error)),
        }
        // Heartbeats and room in a socket are no progress, but neither do they take a second.
        self.idle_waits += u64::from(self.events.is_empty());
        if self.idle_waits > IDLE_WAITS_MAX {
            let outstanding = self.links.iter().map(|link| link.in_flight.len() as u64).sum();
            return Err(Fault::Stalled { what: "a peer's answers", seconds: IDLE_WAITS_MAX, outstanding });
        }
        let events = std::mem::take(&mut self.events);
        for event in &events {
            let link = &mut self.links[event.data.u64() as usize];
            let flags = event.flags;
            if flags.contains(epoll::EventFlags::OUT) {
                link.is_writable = true;
                link.flush()?;
            }
            if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                let records = link.receive(self.values)?;
                let now_ns = u64::try_from(self.start.elapsed().as_nanos()).expect("runs are shorter than 500 years");
                if records > 0 {
                    self.idle_waits = 0;
                    came(link, records, now_ns);
                }
            }
        }
        self.events = events;
        Ok(())
    }
}

fn epoll_fault(error: rustix::io::Errno) -> Fault {
    Fault::Machine { what: "epoll", error: error.into() }
}

/// Writes until the window ends or so many records are sent, and waits for the last ack.
pub(super) fn write<T: Talk>(links: Vec<Link<T>>, load: Load, values: &Values, cpu: usize) -> Result<Tally, Fault> {
    on_cpu(cpu, || {
        let (mut links, mut tally, mut left) = (Links::new(links, values)?, Tally::new(load.window), load.records_max);
        loop {
            let now_ns = links.now_ns();
            if now_ns < load.window.end_ns {
                for link in &mut links.links {
                    left -= link.fill(&load, left, values, now_ns);
                    link.flush()?;
                }
            }
            let is_over = left == 0 || now_ns >= load.window.end_ns;
            if is_over && links.links.iter().all(|link| link.in_flight.is_empty()) {
                tally.is_exhausted = left == 0;
                return Ok(tally);
            }
            let mut unasked = false;
            links.turn(|link, records, now_ns| {
                for _ in 0..records {
                    match link.in_flight.pop_front() {
                        Some(sent_ns) => tally.done(1, sent_ns, now_ns),
                        None => unasked = true,
                    }
                }
            })?;
            if unasked {
                return Err(Fault::wire("a peer's answer", "an ack that nobody waits for"));
            }
        }
    })
}

/// Reads until `wanted` records have come over all connections.
pub(super) fn read<T: Talk>(links: Vec<Link<T>>, wanted: u64, values: &Values, cpu: usize) -> Result<Tally, Fault> {
    on_cpu(cpu, || {
        let mut links = Links::new(links, values)?;
        let mut tally = Tally::new(Window { start_ns: 0, end_ns: u64::MAX });
        for link in &mut links.links {
            link.talk.request(values, &mut link.out);
            link.flush()?;
        }
        while tally.records < wanted {
            links.turn(|_, records, now_ns| tally.done(records, 0, now_ns))?;
        }
        Ok(tally)
    })
}

/// Runs `work` on a thread of its own that stays on one CPU.
pub(super) fn on_cpu<R: Send>(cpu: usize, work: impl FnOnce() -> Result<R, Fault> + Send) -> Result<R, Fault> {
    thread::scope(|scope| {
        let pinned = scope.spawn(move || {
            machine::pin(cpu)?;
            work()
        });
        pinned.join().expect("a generator does not panic")
    })
}
