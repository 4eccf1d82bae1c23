//! The bare loop: epoll, plain sockets, one positioned write for each wake-up, syncs in a helper thread; knows no log.
//!
//! ```text
//!  epoll ─▶ read every ready socket into one buffer, checksum each frame ─▶ one pwrite ─▶ ask for a sync, ─▶ acks
//!                                                                        if none is under way
//! ```
//! The written pages are resident, so a write is a copy into the page cache; the sync writes them to the device.

use super::bare::{Acker, Recycled, Scanner, acknowledge, thread_cpu_us};
use crate::fault::Fault;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll, eventfd};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

/// What is read of one socket before it is the next one's turn.
const TURN_BYTES: usize = 512 << 10;
/// What one write holds at most.
const WRITE_BYTES: usize = 4 << 20;

/// One connection.
struct Peer {
    acker: Acker,
    scanner: Scanner,
    readable: bool,
    /// The other side has closed: the end may come right behind bytes, without an event of its own.
    is_ending: bool,
}

/// The helper: an order is a sync, and the eventfd says that it is done.
struct Syncer {
    orders: Option<mpsc::Sender<()>>,
    done: Arc<OwnedFd>,
    thread: Option<thread::JoinHandle<u64>>,
}

impl Syncer {
    fn start(file: File) -> Result<Self, Fault> {
        let done = eventfd(0, EventfdFlags::NONBLOCK).map_err(|error| Fault::machine("an eventfd")(error.into()))?;
        let done = Arc::new(done);
        let (orders, taken) = mpsc::channel();
        let signal = Arc::clone(&done);
        let work = move || {
            while taken.recv().is_ok() {
                file.sync_data().expect("the device takes a sync, or the measurement is over");
                rustix::io::write(&signal, &1_u64.to_ne_bytes()).expect("a counter of 64 bits is never full");
            }
            thread_cpu_us()
        };
        Ok(Self { orders: Some(orders), done, thread: Some(thread::spawn(work)) })
    }

    fn order(&self) {
        let orders = self.orders.as_ref().expect("it is taken at the end only");
        orders.send(()).expect("the helper lives as long as this");
    }

    /// CPU time that the helper has used.
    fn end(mut self) -> u64 {
        self.orders = None;
        let thread = self.thread.take().expect("it is taken here only");
        thread.join().expect("the helper does not panic")
    }
}

/// The loop's state.
struct Loop {
    peers: Vec<Peer>,
    file: File,
    file_bytes: u64,
    at: u64,
    buffer: Vec<u8>,
    /// Frames that are written and wait for the next sync, and those that the sync under way will make durable.
    written: Vec<(usize, u32)>,
    syncing: Vec<(usize, u32)>,
    is_syncing: bool,
}

/// Serves the connections until all are closed; CPU time used, in microseconds.
pub(super) fn serve(streams: Vec<TcpStream>, records: u64, file: &Recycled, syncs: bool) -> Result<u64, Fault> {
    let machine = |error: rustix::io::Errno| Fault::Machine { what: "epoll", error: error.into() };
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(machine)?;
    let syncer = Syncer::start(file.open(false)?)?;
    let synced = streams.len();
    epoll::add(&poll, &*syncer.done, epoll::EventData::new_u64(synced as u64), epoll::EventFlags::IN)
        .map_err(machine)?;
    let mut peers = Vec::new();
    for (at, stream) in streams.into_iter().enumerate() {
        stream.set_nonblocking(true).map_err(Fault::machine("a socket that does not wait"))?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&poll, &stream, epoll::EventData::new_u64(at as u64), flags).map_err(machine)?;
        let acker = Acker::new(stream, records);
        peers.push(Peer { acker, scanner: Scanner::default(), readable: true, is_ending: false });
    }
    let mut state = Loop {
        peers,
        file: file.open(false)?,
        file_bytes: file.bytes(),
        at: 0,
        buffer: vec![0; WRITE_BYTES],
        written: Vec::new(),
        syncing: Vec::new(),
        is_syncing: false,
    };
    let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
    loop {
        state.read_and_write()?;
        if !syncs {
            let written = std::mem::take(&mut state.written);
            acknowledge(&mut state.peers, |peer| &mut peer.acker, written)?;
        } else if !state.is_syncing && !state.written.is_empty() {
            std::mem::swap(&mut state.written, &mut state.syncing);
            state.is_syncing = true;
            syncer.order();
        }
        if state.peers.iter().all(|peer| !peer.acker.is_open) {
            break;
        }
        let more = state.peers.iter().any(|peer| peer.readable && peer.acker.is_open);
        let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        events.clear();
        epoll::wait(&poll, spare_capacity(&mut events), more.then_some(&none)).map_err(machine)?;
        for event in &events {
            let flags = event.flags;
            match event.data.u64() as usize {
                at if at == synced => {
                    rustix::io::read(&*syncer.done, &mut [0_u8; 8]).map_err(machine)?;
                    state.is_syncing = false;
                    let durable = std::mem::take(&mut state.syncing);
                    acknowledge(&mut state.peers, |peer| &mut peer.acker, durable)?;
                }
                at => {
                    state.peers[at].readable = true;
                    state.peers[at].is_ending |= flags.contains(epoll::EventFlags::RDHUP);
                    state.peers[at].acker.flush()?;
                }
            }
        }
    }
    Ok(thread_cpu_us() + syncer.end())
}

impl Loop {
    fn read_and_write(&mut self) -> Result<(), Fault> {
        let mut filled = 0;
        for (at, peer) in self.peers.iter_mut().enumerate() {
            if !peer.readable || !peer.acker.is_open || filled == self.buffer.len() {
                continue;
            }
            let end = (filled + TURN_BYTES).min(self.buffer.len());
            let room = &mut self.buffer[filled..end];
            let wanted = room.len();
            match peer.acker.stream.read(room) {
                Ok(0) => peer.acker.is_open = false,
                Ok(count) => {
                    peer.readable = count == wanted || peer.is_ending;
                    let written = &mut self.written;
                    peer.scanner.scan(&room[..count], |correlation| written.push((at, correlation)));
                    filled += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => peer.readable = false,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => peer.acker.is_open = false,
                Err(error) => return Err(Fault::Machine { what: "a bare read", error }),
            }
        }
        if filled > 0 {
            if self.at + filled as u64 > self.file_bytes {
                self.at = 0;
            }
            let written = self.file.write_all_at(&self.buffer[..filled], self.at);
            written.map_err(Fault::machine("a bare write"))?;
            self.at += filled as u64;
        }
        Ok(())
    }
}
