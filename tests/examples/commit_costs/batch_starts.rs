//! Owns experiment C, batches that start on 64 bytes against batches on blocks of their own; knows no other.

use super::*;

#[derive(Clone, Copy, PartialEq)]
enum Start {
    /// Starts on 64 bytes, copied into the tail, whose unfinished block the next write writes again: one in flight.
    Shared,
    /// Starts on 4 KiB, padded, a write of its own from where it was received: eight in flight.
    Own,
    /// The same, but all that waits goes in one vectored write of up to 1 MiB: eight in flight.
    Gathered,
}

const STARTS: [(Start, &str); 3] =
    [(Start::Shared, "64 B, shared tail"), (Start::Own, "4 KiB, each alone"), (Start::Gathered, "4 KiB, gathered")];
const LANE_FILE: u64 = 64 * MIB as u64;
const WRITE_MAX: usize = MIB;
const CLIENTS_MAX: usize = 64;
const LANES_MAX: usize = 16;
const IN_FLIGHT_MAX: usize = 8;
const SYNC_TAG: u64 = u64::MAX;
/// Whole batches as stored: a header of 128 bytes and a payload.
const BATCHES: [usize; 8] = [356, 1152, 4224, 8320, 16512, 32896, 65664, 112768];

/// Closed loop: each client sends a batch, waits until a sync covers it, sends the next.
pub(super) fn starts(bench: &Bench) -> Outcome<()> {
    let scratch = bench.scratch("c")?;
    let files = scratch.recycled(LANES_MAX, LANE_FILE as usize)?;
    let memory = Memory::new();
    for (lanes, clients) in [(1, 64), (16, 64), (1, 8), (1, 1)] {
        table(
            &format!("## C. Starts of batches: {clients} batches in flight over {lanes} file(s), group fdatasync"),
            "batch B | start | written/stored | batches/sync | MB/s (range) | k batches/s | p50 | p99 | CPU µs/batch",
        );
        for bytes in BATCHES {
            let mut tallies = vec![Tally::default(); STARTS.len()];
            for round in 0..bench.rounds {
                for turn in 0..STARTS.len() {
                    let way = (turn + round) % STARTS.len();
                    let mut shard = Shard::new(&files[..lanes], &memory, STARTS[way].0, bytes, clients)?;
                    shard.run(bench.slice, &mut tallies[way])?;
                }
            }
            for (tally, (_, name)) in tallies.iter().zip(STARTS) {
                tally.print(bytes, name);
            }
        }
    }
    Ok(())
}

struct Memory {
    /// What the sockets hold.
    wire: Region,
    /// Where batches are received: a slot for each client.
    source: Region,
    tails: Vec<[Region; 2]>,
}

impl Memory {
    fn new() -> Self {
        let (wire, source) = (Region::new(CLIENTS_MAX * 128 * KIB), Region::new(CLIENTS_MAX * 128 * KIB));
        wire.fill(0, wire.bytes, 0xa5);
        let tails = Region::new(LANES_MAX * 2 * WRITE_MAX).split(LANES_MAX * 2);
        let tails = tails.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect();
        Self { wire, source, tails }
    }

    /// Stands for `recv`: one copy into the slot, whatever happens to the batch next.
    fn receive(&self, client: usize, bytes: usize) {
        self.source.copy(client * bytes.next_multiple_of(BLOCK), &self.wire, client * bytes, bytes);
    }
}

#[derive(Clone, Default)]
struct Tally {
    series: Series,
    stored_bytes: usize,
    written_bytes: usize,
    syncs: usize,
    processor: Duration,
}

impl Tally {
    fn print(&self, bytes: usize, name: &str) {
        let batches = self.stored_bytes / bytes;
        print!("| {bytes} | {name} | {:.2} |", self.written_bytes as f64 / self.stored_bytes as f64);
        print!(" {:.1} | {} |", batches as f64 / self.syncs as f64, self.series.rate(1e6));
        print!(" {} |", self.series.rate(1e3 * bytes as f64));
        print!(" {} | {} |", self.series.percentile(50), self.series.percentile(99));
        println!(" {:.2} |", self.processor.as_secs_f64() * 1e6 / batches as f64);
    }
}

/// The files of a shard with their writes, and the one sync in flight.
struct Shard<'a> {
    ring: Ring,
    files: &'a [File],
    memory: &'a Memory,
    start: Start,
    bytes: usize,
    lanes: Vec<Lane>,
    arrived: Vec<Instant>,
    written: Vec<usize>,
    syncing: Vec<usize>,
    is_syncing: bool,
    written_bytes: usize,
}

/// One file: who waits, what is in flight, and for shared blocks the tail that grows.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<usize>,
    flights: [Option<(Vec<usize>, usize)>; IN_FLIGHT_MAX],
    vectors: [Vec<libc::iovec>; IN_FLIGHT_MAX],
    position: u64,
    current: usize,
    filled: usize,
    fresh: Vec<usize>,
}

impl<'a> Shard<'a> {
    fn new(files: &'a [File], memory: &'a Memory, start: Start, bytes: usize, clients: usize) -> Outcome<Self> {
        let mut lanes: Vec<Lane> = (0..files.len()).map(|_| Lane::default()).collect();
        for client in 0..clients {
            lanes[client % files.len()].waiting.push_back(client);
        }
        let arrived = vec![Instant::now(); clients];
        let (written, syncing) = (Vec::new(), Vec::new());
        let (ring, written_bytes) = (Ring::new()?, 0);
        Ok(Self {
            ring,
            files,
            memory,
            start,
            bytes,
            lanes,
            arrived,
            written,
            syncing,
            is_syncing: false,
            written_bytes,
        })
    }

    fn run(&mut self, slice: Duration, tally: &mut Tally) -> Outcome<()> {
        let (started, processor) = (Instant::now(), processor_time());
        self.arrived.fill(started);
        let (mut done, mut batches) = (Vec::new(), 0);
        while started.elapsed() < slice || self.ring.in_flight > 0 {
            if started.elapsed() < slice {
                for lane in 0..self.lanes.len() {
                    self.issue(lane)?;
                }
            }
            if !self.is_syncing && !self.written.is_empty() {
                mem::swap(&mut self.written, &mut self.syncing);
                self.is_syncing = true;
                self.ring.sync(&self.files[0], SYNC_TAG)?;
                tally.syncs += 1;
            }
            if self.ring.in_flight == 0 {
                break;
            }
            self.ring.wait(&mut done)?;
            for (tag, result) in done.drain(..) {
                batches += self.complete(tag, result, tally)?;
            }
        }
        tally.series.rates.push((batches * self.bytes) as f64 / started.elapsed().as_secs_f64());
        tally.stored_bytes += batches * self.bytes;
        tally.written_bytes += self.written_bytes;
        tally.processor += processor_time().saturating_sub(processor);
        Ok(())
    }

    /// Returns how many batches this completion has made durable.
    fn complete(&mut self, tag: u64, result: i32, tally: &mut Tally) -> Outcome<usize> {
        if tag != SYNC_TAG {
            let (lane, slot) = (tag as usize / IN_FLIGHT_MAX, tag as usize % IN_FLIGHT_MAX);
            let (mut clients, bytes) = self.lanes[lane].flights[slot].take().ok_or("a write completed twice")?;
            if usize::try_from(result) != Ok(bytes) {
                return Err(format!("a write of {bytes} returned {result}").into());
            }
            self.written.append(&mut clients);
            return Ok(0);
        }
        if result != 0 {
            return Err(format!("a sync returned {result}").into());
        }
        self.is_syncing = false;
        let now = Instant::now();
        let acked = self.syncing.len();
        for client in self.syncing.drain(..) {
            tally.series.latencies.push(now - self.arrived[client]);
            self.arrived[client] = now;
            self.lanes[client % self.files.len()].waiting.push_back(client);
        }
        Ok(acked)
    }

    fn issue(&mut self, lane: usize) -> Outcome<()> {
        if self.start == Start::Shared {
            self.absorb(lane);
            if self.lanes[lane].flights[0].is_none() && !self.lanes[lane].fresh.is_empty() {
                self.write_tail(lane)?;
            }
            return Ok(());
        }
        let padded = self.bytes.next_multiple_of(BLOCK);
        let together = if self.start == Start::Own { 1 } else { WRITE_MAX / padded };
        while let Some(slot) = self.lanes[lane].flights.iter().position(Option::is_none) {
            let count = self.lanes[lane].waiting.len().min(together);
            if count == 0 {
                break;
            }
            let clients: Vec<usize> = self.lanes[lane].waiting.drain(..count).collect();
            let slots = clients.iter().map(|client| self.memory.source.piece(client * padded, padded));
            clients.iter().for_each(|client| self.memory.receive(*client, self.bytes));
            self.lanes[lane].vectors[slot] =
                slots.map(|piece| libc::iovec { iov_base: piece.start.cast(), iov_len: piece.bytes }).collect();
            let (position, tag) = self.take_off(lane, slot, count * padded, clients);
            self.ring.write_vectors(&self.files[lane], &self.lanes[lane].vectors[slot], position, tag)?;
            self.lanes[lane].position += (count * padded) as u64;
        }
        Ok(())
    }

    /// Copies what waits into the growing tail: 64-byte starts.
    fn absorb(&mut self, lane: usize) {
        let padded = self.bytes.next_multiple_of(BLOCK);
        let tail = &mut self.lanes[lane];
        let buffer = self.memory.tails[lane][tail.current];
        while tail.filled.next_multiple_of(64) + self.bytes <= WRITE_MAX {
            let Some(client) = tail.waiting.pop_front() else { break };
            let start = tail.filled.next_multiple_of(64);
            buffer.fill(tail.filled, start - tail.filled, 0);
            self.memory.receive(client, self.bytes);
            buffer.copy(start, &self.memory.source, client * padded, self.bytes);
            tail.filled = start + self.bytes;
            tail.fresh.push(client);
        }
    }

    /// Freezes the tail's buffer and writes it; the other one goes on from a copy of the unfinished block.
    fn write_tail(&mut self, lane: usize) -> Outcome<()> {
        let tail = &mut self.lanes[lane];
        let buffer = self.memory.tails[lane][tail.current];
        let other = self.memory.tails[lane][1 - tail.current];
        let (filled, written) = (tail.filled, tail.filled.next_multiple_of(BLOCK));
        buffer.fill(filled, written - filled, 0);
        let unfinished = filled % BLOCK;
        other.copy(0, &buffer, filled - unfinished, unfinished);
        tail.current = 1 - tail.current;
        tail.filled = unfinished;
        let clients = mem::take(&mut tail.fresh);
        let (position, tag) = self.take_off(lane, 0, written, clients);
        self.ring.write(&self.files[lane], buffer.piece(0, written), position, 0, tag)?;
        self.lanes[lane].position += (filled - unfinished) as u64;
        Ok(())
    }

    /// Enters a write into the lane and returns its position and tag.
    fn take_off(&mut self, lane: usize, slot: usize, bytes: usize, clients: Vec<usize>) -> (u64, u64) {
        self.written_bytes += bytes;
        let tail = &mut self.lanes[lane];
        if tail.position + bytes as u64 > LANE_FILE {
            tail.position = 0;
        }
        tail.flights[slot] = Some((clients, bytes));
        (tail.position, (lane * IN_FLIGHT_MAX + slot) as u64)
    }
}
