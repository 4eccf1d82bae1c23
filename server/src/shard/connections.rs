//! The sockets of one shard: read within a budget, written when there are answers, looked after; knows no API.

use super::{Phase, ShardServer, token_of};
use crate::connection::{Connection, Stage};
use crate::input::{Frame, Means};
use crate::limits::{
    CONNECTION_CYCLE_BYTES, CONNECTION_CYCLE_FRAMES, CYCLE_DEADLINES_MAX, CYCLE_FRAMES_MAX, CYCLE_TURNS_MAX,
    OUTBOX_MESSAGES_MAX, READ_BYTES_MIN,
};
use crate::slab::Key;
use coulee_core::shard::budget::{ClientId, Reservation};
use coulee_io::net::{Socket, Transfer};
use coulee_io::ring::{Interest, Readiness};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::{FrameError, FrameHeader};
use coulee_protocol::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX};
use std::io::IoSliceMut;
use std::os::fd::AsFd;
use tracing::{debug, info};

/// Why a connection is read no further for now.
enum Pause {
    /// The socket has nothing more.
    Drained,
    /// It has had its turn, or has too much under way.
    Turn,
    /// The budget has no room for its next frame.
    Budget,
    /// It is to be closed at once.
    Gone,
    /// What comes is no frame.
    Broken(FrameError),
}

impl ShardServer {
    /// Takes in a connection that was just accepted.
    pub(super) fn welcome(&mut self, socket: Socket) {
        if self.is_out_of_room() || self.phase != Phase::Running {
            self.counts.connections_refused += 1;
            return;
        }
        self.adopt(Box::new(Connection::new(socket, Stage::Greeting)));
    }

    /// Whether no further connection is taken.
    pub(super) fn is_out_of_room(&self) -> bool {
        self.connections.len() >= self.parts.facts.connections_max
    }

    /// Gives a connection its place and has its socket watched.
    pub(super) fn adopt(&mut self, connection: Box<Connection>) -> Key {
        self.counts.connections_accepted += 1;
        let key = self.connections.insert(None);
        let token = token_of(key);
        self.parts.ring.poll_multishot(connection.socket.as_fd(), token, Interest::ReadWrite);
        self.put_back(key, connection);
        self.enqueue(key);
        key
    }

    /// Takes a connection out of its place, to be worked on beside everything else.
    fn take_out(&mut self, key: Key) -> Option<Box<Connection>> {
        self.connections.find(key)?.take()
    }

    fn put_back(&mut self, key: Key, mut connection: Box<Connection>) {
        self.count_answers(&mut connection);
        self.set_deadline(key, &mut connection);
        if let Some(place) = self.connections.find(key) {
            *place = Some(connection);
        }
    }

    /// Keeps the sum of all answers.
    fn count_answers(&mut self, connection: &mut Connection) {
        let now = connection.answers();
        let before = std::mem::replace(&mut connection.counted_answers, now);
        self.answers_bytes = self.answers_bytes - before + now;
    }

    /// Whether answers hold so much memory that each connection has to make do with one at a time.
    pub(super) fn is_crowded(&self) -> bool {
        self.answers_bytes >= self.parts.budget_bytes
    }

    /// Keeps one deadline for each connection that is waited for.
    fn set_deadline(&mut self, key: Key, connection: &mut Connection) {
        let wanted = connection.waits_for();
        if wanted == connection.watch.map(|watch| watch.wait) {
            return;
        }
        self.forget_deadline(key, connection);
        connection.watch = wanted.map(|wait| connection.watch(wait, self.now().monotonic_ms));
        self.deadlines.extend(connection.watch.map(|watch| (watch.deadline_ms, key)));
    }

    fn forget_deadline(&mut self, key: Key, connection: &mut Connection) {
        if let Some(watch) = connection.watch.take() {
            self.deadlines.remove(&(watch.deadline_ms, key));
        }
    }

    pub(super) fn enqueue(&mut self, key: Key) {
        if let Some(Some(connection)) = self.connections.find(key)
            && !connection.queued
        {
            connection.queued = true;
            self.queue.push_back(key);
        }
    }

    pub(super) fn socket_ready(&mut self, key: Key, readiness: Readiness) {
        let Some(Some(connection)) = self.connections.find(key) else { return };
        connection.readable |= readiness.is_readable();
        if readiness.is_writable() && !connection.writable {
            connection.writable = true;
            if !connection.output.is_empty() && !connection.flushing {
                connection.flushing = true;
                self.flush.push(key);
            }
        }
        self.enqueue(key);
    }

    /// Gives every connection that has something its turn.
    pub(super) fn serve(&mut self) -> bool {
        if self.outbox.iter().any(|messages| messages.len() >= OUTBOX_MESSAGES_MAX) {
            // What these connections bring might have to be passed on: let the other shards catch up.
            return false;
        }
        let turns = self.queue.len().min(CYCLE_TURNS_MAX);
        self.cycle_frames = 0;
        for _ in 0..turns {
            if self.cycle_frames >= CYCLE_FRAMES_MAX {
                // What has come goes to the disk while the rest is read.
                break;
            }
            let Some(key) = self.queue.pop_front() else { break };
            let Some(mut connection) = self.take_out(key) else { continue };
            connection.queued = false;
            if connection.has_work(self.is_crowded()) && self.phase != Phase::Over {
                self.serve_one(key, connection);
            } else {
                self.put_back(key, connection);
            }
        }
        turns > 0
    }

    fn serve_one(&mut self, key: Key, mut connection: Box<Connection>) {
        let freed_before = self.freed;
        let mut frames = std::mem::take(&mut self.frames);
        let pause =
            if connection.backlog.is_empty() { self.receive(key, &mut connection, &mut frames) } else { Pause::Turn };
        self.counts.copied_bytes += connection.input.take_copied();
        let handed_over = self.take_frames(key, &mut connection, &mut frames);
        self.frames = frames;
        if handed_over {
            return self.hand_over(key, connection);
        }
        match pause {
            Pause::Drained => connection.readable = false,
            Pause::Turn | Pause::Budget => {}
            Pause::Gone => return self.close(key, connection),
            Pause::Broken(error) => self.break_off(&mut connection, &error),
        }
        // Where its own frames have given something back it tries again: whoever was woken then, it was not, as it was
        // out of its place.
        let waits_for_budget = connection.input.is_paused() && self.freed == freed_before;
        if waits_for_budget {
            self.counts.paused_reads += 1;
            self.paused.insert(key);
        }
        let again = !waits_for_budget && connection.has_work(self.is_crowded());
        self.want_flush(key, &mut connection);
        self.put_back(key, connection);
        if again {
            self.enqueue(key);
        }
    }

    /// Takes the frames that waited, then those just cut, until the connection has enough under way; the others wait.
    /// Whether it is to be handed over to another shard.
    fn take_frames(&mut self, key: Key, connection: &mut Connection, frames: &mut Vec<Frame>) -> bool {
        let mut waited = std::mem::take(&mut connection.backlog);
        let mut new = frames.drain(..);
        let mut handed_over = false;
        while !connection.is_full(self.is_crowded()) || connection.stage == Stage::Closing || handed_over {
            let Some(frame) = waited.pop_front().or_else(|| new.next()) else { break };
            if connection.stage == Stage::Closing || handed_over {
                self.free(frame.reservation);
                continue;
            }
            handed_over = self.frame(key, connection, frame);
            self.cycle_frames += 1;
            self.count_answers(connection);
        }
        waited.extend(new);
        if !waited.is_empty() {
            connection.backlog = waited;
        }
        handed_over
    }

    /// Gives back what a frame has held of the budget, if anything, to those who wait for it.
    pub(super) fn free(&mut self, reservation: Option<Reservation>) {
        let Some(reservation) = reservation else { return };
        self.budget.release(reservation);
        self.freed += 1;
        self.resume_paused();
    }

    /// Answers what is no frame, and reads no further.
    fn break_off(&mut self, connection: &mut Connection, error: &FrameError) {
        self.counts.invalid_frames += 1;
        debug!(client = %connection.client_name, %error, "closing a connection");
        let unknown = FrameHeader::request(0, 0, 0, 0, 0);
        connection.output.refuse(&mut self.spare, &unknown, error.code(), &error.to_string());
        connection.stage = Stage::Closing;
    }

    /// Reads until the socket is empty or the connection has had its turn.
    fn receive(&mut self, key: Key, connection: &mut Connection, frames: &mut Vec<Frame>) -> Pause {
        let begun = connection.input.received();
        loop {
            let greeting = connection.stage == Stage::Greeting;
            let mut means = Means {
                pool: &self.parts.pool,
                budget: &mut self.budget,
                client: ClientId(key.0),
                frame_bytes_max: if greeting { HELLO_BYTES_MAX } else { FRAME_BYTES_MAX },
            };
            let (asked, moved) = if connection.input.is_paused() {
                if let Err(error) = connection.input.resume(&mut means, frames) {
                    return Pause::Broken(error);
                }
                if connection.input.is_paused() {
                    return Pause::Budget;
                }
                continue;
            } else if connection.input.is_large() {
                read_large(connection, &mut means, frames)
            } else {
                read_small(connection, &mut means, frames)
            };
            let received = match moved {
                Ok(Transfer::Bytes(received)) => received,
                Ok(Transfer::WouldBlock) => return Pause::Drained,
                Ok(Transfer::Closed | Transfer::Fault | Transfer::Failed(_)) => return Pause::Gone,
                Err(error) => return Pause::Broken(error),
            };
            self.counts.received_bytes += received as u64;
            if received < asked && !connection.input.is_paused() {
                return Pause::Drained;
            }
            let had = connection.input.received() - begun;
            if greeting || had as usize >= CONNECTION_CYCLE_BYTES || frames.len() >= CONNECTION_CYCLE_FRAMES {
                return Pause::Turn;
            }
        }
    }

    /// Has the answers of a connection sent at the end of the cycle.
    pub(super) fn want_flush(&mut self, key: Key, connection: &mut Connection) {
        let owes = !connection.output.is_empty() && connection.writable;
        let done = connection.stage == Stage::Closing;
        if (owes || done) && !connection.flushing {
            connection.flushing = true;
            self.flush.push(key);
        }
    }

    /// Sends what answers there are, as far as the sockets take them.
    pub(super) fn send_answers(&mut self) {
        for key in std::mem::take(&mut self.flush) {
            let Some(mut connection) = self.take_out(key) else { continue };
            connection.flushing = false;
            let sound = self.send(&mut connection);
            if !sound || (connection.stage == Stage::Closing && connection.output.is_empty()) {
                self.close(key, connection);
                continue;
            }
            let again = connection.has_work(self.is_crowded());
            self.put_back(key, connection);
            if again {
                // It may have been held back by its own answers.
                self.enqueue(key);
            }
        }
    }

    /// Whether the connection is still of use.
    fn send(&mut self, connection: &mut Connection) -> bool {
        while !connection.output.is_empty() && connection.writable {
            let moved = connection.socket.write_vectored(&connection.output.slices());
            match moved {
                Transfer::Bytes(sent) => {
                    self.counts.sent_bytes += sent as u64;
                    connection.output.advance(&mut self.spare, sent);
                }
                Transfer::WouldBlock => connection.writable = false,
                Transfer::Fault => {
                    // A page of a mapped segment cannot be read. Part of the answer is out: it cannot be taken back.
                    info!(client = %connection.client_name, "closing a connection: a mapped segment cannot be read");
                    return false;
                }
                Transfer::Closed | Transfer::Failed(_) => return false,
            }
        }
        true
    }

    /// Ends a connection. What it has asked for goes on; the answers are dropped when they come.
    pub(super) fn close(&mut self, key: Key, mut connection: Box<Connection>) {
        self.release(key, &mut connection);
        debug!(client = %connection.client_name, "connection closed");
        if let Err(error) = connection.socket.hang_up() {
            // The peer was faster.
            debug!(%error, "a socket could not be shut down");
        }
    }

    /// Takes a connection out of this shard: nothing of it stays here.
    pub(super) fn release(&mut self, key: Key, connection: &mut Connection) {
        connection.input.abandon(&mut self.budget);
        for frame in connection.backlog.drain(..) {
            frame.reservation.into_iter().for_each(|reservation| self.budget.release(reservation));
        }
        self.answers_bytes -= std::mem::take(&mut connection.counted_answers);
        self.forget_deadline(key, connection);
        self.parts.ring.unpoll(token_of(key));
        self.connections.remove(key);
        self.freed += 1;
        self.resume_paused();
    }

    /// Lets the connections that wait for the budget try again: some of it was released.
    pub(super) fn resume_paused(&mut self) {
        for key in std::mem::take(&mut self.paused) {
            self.enqueue(key);
        }
    }

    /// Looks after connections whose deadline has come: closes those that have made no progress.
    pub(super) fn look_after_deadlines(&mut self) -> bool {
        let now_ms = self.now().monotonic_ms;
        if self.accept_at_ms.is_some_and(|at| at <= now_ms) {
            self.accept();
        }
        let mut worked = false;
        for _ in 0..CYCLE_DEADLINES_MAX {
            let due = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now_ms);
            let Some((deadline, key)) = due else { break };
            worked = true;
            self.deadlines.remove(&(deadline, key));
            let Some(mut connection) = self.take_out(key) else { continue };
            if connection.watch.take().is_some_and(|watch| connection.has_failed(&watch)) {
                self.stuck(&mut connection);
                self.close(key, connection);
            } else {
                self.put_back(key, connection);
            }
        }
        worked
    }

    /// Says why a connection is closed, where it still listens.
    fn stuck(&mut self, connection: &mut Connection) {
        info!(client = %connection.client_name, stage = ?connection.stage, "closing a connection that is stuck");
        if connection.stage == Stage::Greeting {
            let unknown = FrameHeader::request(0, 0, 0, 0, 0);
            let detail = "no Hello within 5 s";
            connection.output.refuse(&mut self.spare, &unknown, ErrorCode::HelloRequired, detail);
            self.send(connection);
        }
    }

    /// Whether all answers that can be given are sent.
    pub(super) fn connections_owe_nothing(&self) -> bool {
        let done = |connection: &Connection| connection.output.is_empty() || !connection.writable;
        self.connections.things().flatten().all(|connection| done(connection))
    }

    pub(super) fn close_all(&mut self) {
        let keys: Vec<Key> = self.connections.keys().collect();
        for key in keys {
            if let Some(connection) = self.take_out(key) {
                self.close(key, connection);
            }
        }
    }
}

type Moved = (usize, Result<Transfer, FrameError>);

/// Reads into the large frame that is being received, and a little of what follows where that is its end.
fn read_large(connection: &mut Connection, means: &mut Means<'_>, frames: &mut Vec<Frame>) -> Moved {
    let mut ahead = means.pool.take(READ_BYTES_MIN);
    let is_last = connection.input.is_large_spare_last();
    let spare = connection.input.large_spare();
    let own = spare.len();
    let beyond = if is_last { READ_BYTES_MIN } else { 0 };
    let moved = connection.socket.read_vectored(&mut [IoSliceMut::new(spare), IoSliceMut::new(ahead.spare(beyond))]);
    let Transfer::Bytes(received) = moved else { return (own, Ok(moved)) };
    frames.extend(connection.input.large_received(means, received.min(own)));
    if received > own {
        ahead.advance(received - own);
        if let Err(error) = connection.input.cut(means, ahead, received - own, frames) {
            return (own, Err(error));
        }
    }
    (own, Ok(moved))
}

/// Reads into a buffer and cuts frames out of it.
fn read_small(connection: &mut Connection, means: &mut Means<'_>, frames: &mut Vec<Frame>) -> Moved {
    let mut buffer = connection.input.buffer(means.pool);
    let room = buffer.capacity() - buffer.len();
    let moved = connection.socket.read_vectored(&mut [IoSliceMut::new(buffer.spare(room))]);
    let Transfer::Bytes(received) = moved else {
        connection.input.keep(&buffer);
        return (room, Ok(moved));
    };
    buffer.advance(received);
    let cut = connection.input.cut(means, buffer, received, frames);
    (room, cut.map(|()| moved))
}
