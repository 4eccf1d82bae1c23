//! The bare ring: one io_uring for receives, direct writes and syncs, on one thread; knows no log.
//!
//! ```text
//!  completions ─▶ received: checksum; large: write from where it lies, small: copy into this cycle's block
//!              ─▶ written, in order: the next sync takes it    ─▶ synced: acks
//! ```
//! A write that has the device for itself is durable by itself (RWF_DSYNC): that is a sync's round trip less.

use super::bare::{Acker, Recycled, Scanner, acknowledge, thread_cpu_us};
use crate::fault::Fault;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::collections::VecDeque;
use std::fs::File;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// What O_DIRECT is aligned to.
const BLOCK_BYTES: usize = 4_096;
/// Received pieces from here on are written from where they lie.
const LARGE_BYTES: usize = 32 << 10;
/// A cycle's block.
const STAGE_BYTES: usize = 1 << 20;
const ENTRIES: u32 = 1_024;

/// What an operation was, from its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Receive(usize),
    Write(u64),
    Sync,
}

impl Operation {
    const fn encode(self) -> u64 {
        match self {
            Self::Sync => 0,
            Self::Receive(peer) => 1 | (peer as u64) << 2,
            Self::Write(number) => 2 | number << 2,
        }
    }

    const fn decode(data: u64) -> Self {
        match data & 3 {
            0 => Self::Sync,
            1 => Self::Receive((data >> 2) as usize),
            _ => Self::Write(data >> 2),
        }
    }
}

/// Memory that direct I/O takes.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + BLOCK_BYTES];
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES);
        Self { bytes, start }
    }

    fn len(&self) -> usize {
        self.bytes.len() - BLOCK_BYTES
    }

    fn slice(&mut self) -> &mut [u8] {
        let end = self.start + self.len();
        &mut self.bytes[self.start..end]
    }
}

/// One connection: it receives into one buffer while the other is written.
struct Peer {
    acker: Acker,
    scanner: Scanner,
    buffers: [Aligned; 2],
    /// Writes in flight from each.
    is_writing: [bool; 2],
    current: usize,
    is_receiving: bool,
}

/// Where a write's bytes lie.
#[derive(Clone, Copy, Debug)]
enum Source {
    Peer(usize, usize),
    Stage(usize),
}

/// A write, from its submission until the ones before it have completed too.
struct Write {
    source: Source,
    frames: Vec<(usize, u32)>,
    is_done: bool,
    is_durable: bool,
}

struct Server {
    ring: IoUring,
    file: File,
    file_bytes: u64,
    at: u64,
    peers: Vec<Peer>,
    stages: Vec<Aligned>,
    free_stages: Vec<usize>,
    stage: usize,
    stage_filled: usize,
    stage_frames: Vec<(usize, u32)>,
    /// Writes in flight, or done while one before them is not; the first has number `first`.
    writes: VecDeque<Write>,
    first: u64,
    written: Vec<(usize, u32)>,
    syncing: Option<Vec<(usize, u32)>>,
    syncs: bool,
}

/// Serves the connections until all are closed; CPU time used, in microseconds.
pub(super) fn serve(streams: Vec<TcpStream>, records: u64, file: &Recycled, syncs: bool) -> Result<u64, Fault> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    let ring = builder.build(ENTRIES).map_err(Fault::machine("a ring"))?;
    let buffer_bytes = ((32 << 20) / streams.len() / 2).clamp(64 << 10, 1 << 20).next_multiple_of(BLOCK_BYTES);
    let peer = |stream: TcpStream| Peer {
        acker: Acker::new(stream, records),
        scanner: Scanner::default(),
        buffers: [Aligned::new(buffer_bytes), Aligned::new(buffer_bytes)],
        is_writing: [false; 2],
        current: 0,
        is_receiving: false,
    };
    let mut server = Server {
        ring,
        file: file.open(true)?,
        file_bytes: file.bytes(),
        at: 0,
        peers: streams.into_iter().map(peer).collect(),
        stages: vec![Aligned::new(STAGE_BYTES)],
        free_stages: Vec::new(),
        stage: 0,
        stage_filled: 0,
        stage_frames: Vec::new(),
        writes: VecDeque::new(),
        first: 0,
        written: Vec::new(),
        syncing: None,
        syncs,
    };
    server.run()?;
    Ok(thread_cpu_us())
}

impl Server {
    fn run(&mut self) -> Result<(), Fault> {
        let mut completed: Vec<cqueue::Entry> = Vec::new();
        while self.peers.iter().any(|peer| peer.acker.is_open) || !self.writes.is_empty() || self.syncing.is_some() {
            self.receive_all()?;
            self.ring.submit_and_wait(1).map_err(Fault::machine("a ring"))?;
            completed.extend(self.ring.completion());
            for entry in completed.drain(..) {
                self.complete(Operation::decode(entry.user_data()), entry.result())?;
            }
            self.write_stage()?;
            self.retire()?;
        }
        Ok(())
    }

    fn push(&mut self, entry: &squeue::Entry) -> Result<(), Fault> {
        if self.ring.submission().is_full() {
            self.ring.submit().map_err(Fault::machine("a ring"))?;
        }
        let mut queue = self.ring.submission();
        // SAFETY: every address in an entry leads into a buffer of `peers` or `stages`, which live as long as the ring
        // and are not touched while `is_receiving`, `is_writing` or `free_stages` says that the kernel has them.
        let pushed = unsafe { queue.push(entry) };
        assert!(pushed.is_ok(), "a queue that was just submitted has room");
        Ok(())
    }

    /// Every connection whose buffer is free receives into it.
    fn receive_all(&mut self) -> Result<(), Fault> {
        for at in 0..self.peers.len() {
            let peer = &mut self.peers[at];
            if peer.is_receiving || !peer.acker.is_open {
                continue;
            }
            if peer.is_writing[peer.current] {
                peer.current = 1 - peer.current;
            }
            if peer.is_writing[peer.current] {
                continue;
            }
            peer.is_receiving = true;
            let fd = types::Fd(peer.acker.stream.as_raw_fd());
            let buffer = peer.buffers[peer.current].slice();
            let entry = opcode::Recv::new(fd, buffer.as_mut_ptr(), buffer.len() as u32).build();
            self.push(&entry.user_data(Operation::Receive(at).encode()))?;
        }
        Ok(())
    }

    fn complete(&mut self, operation: Operation, result: i32) -> Result<(), Fault> {
        match operation {
            Operation::Receive(at) => self.received(at, result),
            Operation::Write(number) => {
                let write = &mut self.writes[(number - self.first) as usize];
                write.is_done = true;
                match write.source {
                    Source::Peer(peer, buffer) => self.peers[peer].is_writing[buffer] = false,
                    Source::Stage(stage) => self.free_stages.push(stage),
                }
                checked("a bare write", result)
            }
            Operation::Sync => {
                checked("a bare sync", result)?;
                let frames = self.syncing.take().expect("a sync is under way while it is waited for");
                acknowledge(&mut self.peers, |peer| &mut peer.acker, frames)
            }
        }
    }

    fn received(&mut self, at: usize, result: i32) -> Result<(), Fault> {
        let peer = &mut self.peers[at];
        peer.is_receiving = false;
        if result == 0 || result == -libc::ECONNRESET {
            peer.acker.is_open = false;
            return Ok(());
        }
        checked("a bare read", result)?;
        let (count, current) = (result as usize, peer.current);
        let bytes = &peer.buffers[current].slice()[..count];
        let mut frames = Vec::new();
        peer.scanner.scan(bytes, |correlation| frames.push((at, correlation)));
        if count >= LARGE_BYTES {
            peer.is_writing[current] = true;
            let address = bytes.as_ptr();
            return self.write(Source::Peer(at, current), address, count, frames, false);
        }
        if self.stage_filled + count > STAGE_BYTES {
            self.write_stage()?;
        }
        let filled = self.stage_filled;
        let bytes = &self.peers[at].buffers[current].slice()[..count];
        self.stages[self.stage].slice()[filled..filled + count].copy_from_slice(bytes);
        self.stage_filled += count;
        self.stage_frames.extend(frames);
        Ok(())
    }

    /// Writes what this cycle has gathered.
    fn write_stage(&mut self) -> Result<(), Fault> {
        if self.stage_filled == 0 {
            return Ok(());
        }
        let (stage, count) = (self.stage, std::mem::take(&mut self.stage_filled));
        let frames = std::mem::take(&mut self.stage_frames);
        let address = self.stages[stage].slice().as_ptr();
        let is_alone = self.syncs && self.writes.is_empty() && self.written.is_empty() && self.syncing.is_none();
        self.stage = self.free_stages.pop().unwrap_or_else(|| {
            self.stages.push(Aligned::new(STAGE_BYTES));
            self.stages.len() - 1
        });
        self.write(Source::Stage(stage), address, count, frames, is_alone)
    }

    fn write(
        &mut self,
        source: Source,
        address: *const u8,
        count: usize,
        frames: Vec<(usize, u32)>,
        is_durable: bool,
    ) -> Result<(), Fault> {
        let len = count.next_multiple_of(BLOCK_BYTES);
        if self.at + len as u64 > self.file_bytes {
            self.at = 0;
        }
        let number = self.first + self.writes.len() as u64;
        let flags = if is_durable { libc::RWF_DSYNC } else { 0 };
        let fd = types::Fd(self.file.as_raw_fd());
        let entry = opcode::Write::new(fd, address, len as u32).offset(self.at).rw_flags(flags).build();
        self.at += len as u64;
        self.writes.push_back(Write { source, frames, is_done: false, is_durable });
        self.push(&entry.user_data(Operation::Write(number).encode()))
    }

    /// Hands completed writes on, in their order, and begins a sync if none is under way.
    fn retire(&mut self) -> Result<(), Fault> {
        while self.writes.front().is_some_and(|write| write.is_done) {
            let Some(write) = self.writes.pop_front() else { break };
            self.first += 1;
            if write.is_durable || !self.syncs {
                acknowledge(&mut self.peers, |peer| &mut peer.acker, write.frames)?;
            } else {
                self.written.extend(write.frames);
            }
        }
        if self.syncing.is_none() && !self.written.is_empty() {
            self.syncing = Some(std::mem::take(&mut self.written));
            let fd = types::Fd(self.file.as_raw_fd());
            let entry = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build();
            self.push(&entry.user_data(Operation::Sync.encode()))?;
        }
        Ok(())
    }
}

fn checked(what: &'static str, result: i32) -> Result<(), Fault> {
    if result < 0 { Err(Fault::Machine { what, error: std::io::Error::from_raw_os_error(-result) }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_known_by_their_user_data() {
        for operation in [Operation::Sync, Operation::Receive(0), Operation::Receive(9_999), Operation::Write(1 << 40)]
        {
            assert_eq!(Operation::decode(operation.encode()), operation);
        }
    }
}
