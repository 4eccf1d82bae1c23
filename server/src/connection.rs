//! One client on one shard: its socket, what comes, what goes, and how much of it is under way; decides nothing.

use crate::input::{Frame, Input};
use crate::limits::{
    FRAME_BYTES_PER_PERIOD, FRAME_PERIOD_MS, HELLO_WAIT_MS, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_LARGE_MAX,
    IN_FLIGHT_REQUESTS_MAX, OUTPUT_BYTES_MAX, OUTPUT_STALL_MS,
};
use crate::output::Output;
use coulee_io::net::Socket;
use std::collections::VecDeque;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Hello has not come.
    Greeting,
    /// Requests are answered.
    Open,
    /// Nothing is read any more; it is closed once its answers are sent.
    Closing,
}

/// What one request holds of its connection's allowance until it is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Charge {
    /// Bytes of its frame.
    pub(crate) bytes: usize,
    /// Bytes that its answer may take as soon as they are read.
    pub(crate) answer_bytes: usize,
    /// Whether it is one of the few large ones.
    pub(crate) large: bool,
}

/// What a connection is waited for. It may not take for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitFor {
    /// Its Hello.
    Hello,
    /// That it takes its answers.
    Output,
    /// The rest of the frame that began after so many others.
    Frame(u64),
}

/// When a wait began to be watched and when it is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watch {
    /// What is waited for.
    pub(crate) wait: WaitFor,
    /// When to look, on the monotonic clock.
    pub(crate) deadline_ms: u64,
    /// Bytes received until then.
    pub(crate) received: u64,
    /// Bytes sent until then.
    pub(crate) sent: u64,
}

/// A connection. Lives on one shard.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The socket.
    pub(crate) socket: Socket,
    /// How far it is.
    pub(crate) stage: Stage,
    /// What comes.
    pub(crate) input: Input,
    /// Whole frames that wait until less is under way.
    pub(crate) backlog: VecDeque<Frame>,
    /// What goes.
    pub(crate) output: Output,
    /// The socket may have something to read.
    pub(crate) readable: bool,
    /// The socket may take something.
    pub(crate) writable: bool,
    /// It is in the list of connections to be served.
    pub(crate) queued: bool,
    /// It is in the list of connections with answers to send.
    pub(crate) flushing: bool,
    /// Bytes of answers, as the shard's sum has them.
    pub(crate) counted_answers: usize,
    /// What it is waited for, as the shard's list of deadlines has it.
    pub(crate) watch: Option<Watch>,
    /// Name of the client, for logs.
    pub(crate) client_name: Box<str>,
    requests: usize,
    large: usize,
    bytes: usize,
    answer_bytes: usize,
}

impl Connection {
    /// A connection that has just come.
    #[must_use]
    pub(crate) fn new(socket: Socket, stage: Stage) -> Self {
        Self {
            socket,
            stage,
            input: Input::default(),
            backlog: VecDeque::new(),
            output: Output::default(),
            readable: true,
            writable: true,
            queued: false,
            flushing: false,
            counted_answers: 0,
            watch: None,
            client_name: Box::default(),
            requests: 0,
            large: 0,
            bytes: 0,
            answer_bytes: 0,
        }
    }

    /// Counts a request as unanswered.
    pub(crate) const fn charge(&mut self, charge: Charge) {
        self.requests += 1;
        self.large += charge.large as usize;
        self.bytes += charge.bytes;
        self.answer_bytes += charge.answer_bytes;
    }

    /// Counts it as answered.
    pub(crate) const fn discharge(&mut self, charge: Charge) {
        self.requests -= 1;
        self.large -= charge.large as usize;
        self.bytes -= charge.bytes;
        self.answer_bytes -= charge.answer_bytes;
    }

    /// Bytes of answers that it holds, or will when they are read.
    #[must_use]
    pub(crate) const fn answers(&self) -> usize {
        self.answer_bytes + self.output.bytes()
    }

    /// Whether so much is under way that no further request is taken; where the shard is crowded with answers, one
    /// that is to be answered with records is enough.
    #[must_use]
    pub(crate) const fn is_full(&self, is_crowded: bool) -> bool {
        self.requests >= IN_FLIGHT_REQUESTS_MAX
            || self.large >= IN_FLIGHT_LARGE_MAX
            || self.bytes + self.answer_bytes >= IN_FLIGHT_BYTES_MAX
            || self.output.bytes() >= OUTPUT_BYTES_MAX
            || (is_crowded && self.answers() > 0)
    }

    /// Whether it is worth serving now.
    #[must_use]
    pub(crate) fn has_work(&self, is_crowded: bool) -> bool {
        let wants = self.readable || self.input.is_paused() || !self.backlog.is_empty();
        wants && self.stage != Stage::Closing && !self.is_full(is_crowded)
    }

    /// What it is waited for now.
    #[must_use]
    pub(crate) fn waits_for(&self) -> Option<WaitFor> {
        if self.stage == Stage::Greeting {
            Some(WaitFor::Hello)
        } else if !self.output.is_empty() {
            Some(WaitFor::Output)
        } else {
            // One that is held back has its whole time again when it goes on.
            let is_held_back = self.input.is_paused() || !self.backlog.is_empty() || self.is_full(false);
            (self.input.is_amid_frame() && !is_held_back).then(|| WaitFor::Frame(self.input.frames()))
        }
    }

    /// Begins to watch a wait.
    #[must_use]
    pub(crate) const fn watch(&self, wait: WaitFor, now_ms: u64) -> Watch {
        let patience_ms = match wait {
            WaitFor::Hello => HELLO_WAIT_MS,
            WaitFor::Output => OUTPUT_STALL_MS,
            WaitFor::Frame(_) => FRAME_PERIOD_MS,
        };
        let (received, sent) = (self.input.received(), self.output.sent());
        Watch { wait, deadline_ms: now_ms + patience_ms, received, sent }
    }

    /// Whether it has done too little of what it was waited for.
    #[must_use]
    pub(crate) const fn has_failed(&self, watch: &Watch) -> bool {
        match watch.wait {
            WaitFor::Hello => true,
            WaitFor::Output => self.output.sent() == watch.sent,
            WaitFor::Frame(_) => self.input.received() - watch.received < FRAME_BYTES_PER_PERIOD as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Means;
    use coulee_core::block::BlockPool;
    use coulee_core::shard::budget::{BUDGET_BYTES_MIN, Budget, ClientId};
    use coulee_protocol::frame::FrameHeader;
    use coulee_protocol::limits::FRAME_BYTES_MAX;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    fn connection() -> Connection {
        let (own, _) = UnixStream::pair().unwrap();
        Connection::new(Socket::from_fd(OwnedFd::from(own)), Stage::Open)
    }

    /// Receives the beginning of a large frame.
    fn begin_large(connection: &mut Connection, budget: &mut Budget) {
        let pool = BlockPool::new(0);
        let mut means = Means { pool: &pool, budget, client: ClientId(1), frame_bytes_max: FRAME_BYTES_MAX };
        let mut buffer = connection.input.buffer(&pool);
        buffer.extend(&FrameHeader::request(2, 1, 1, 14, 8 << 20).encode());
        let received = buffer.len();
        connection.input.cut(&mut means, buffer, received, &mut Vec::new()).unwrap();
    }

    #[test]
    fn a_frame_that_waits_for_the_budget_has_its_whole_time_when_it_goes_on() {
        let (mut connection, mut budget, mut held) = (connection(), Budget::new(BUDGET_BYTES_MIN), Vec::new());
        while let Some(reservation) = budget.reserve(ClientId(held.len() as u64 + 7), 8 << 20) {
            held.push(reservation);
        }
        begin_large(&mut connection, &mut budget);
        assert!(connection.input.is_paused());
        assert_eq!(connection.waits_for(), None, "it is the broker that waits");
        held.into_iter().for_each(|reservation| budget.release(reservation));
        let pool = BlockPool::new(0);
        let mut means =
            Means { pool: &pool, budget: &mut budget, client: ClientId(1), frame_bytes_max: FRAME_BYTES_MAX };
        connection.input.resume(&mut means, &mut Vec::new()).unwrap();
        let wait = connection.waits_for().unwrap();
        assert_eq!(wait, WaitFor::Frame(0));
        let watch = connection.watch(wait, 1_000);
        assert_eq!(watch.deadline_ms, 1_000 + FRAME_PERIOD_MS);
        assert!(connection.has_failed(&watch), "nothing has come since");
    }

    #[test]
    fn a_peer_that_takes_nothing_of_its_answers_has_failed_and_one_that_takes_a_byte_has_not() {
        let mut connection = connection();
        let mut spare = crate::output::Spare::default();
        let request = FrameHeader::request(3, 1, 1, 0, 0);
        connection.output.refuse(&mut spare, &request, coulee_protocol::error::ErrorCode::Overloaded, "later");
        connection.writable = false;
        let wait = connection.waits_for().unwrap();
        assert_eq!(wait, WaitFor::Output);
        let watch = connection.watch(wait, 1_000);
        assert_eq!(watch.deadline_ms, 1_000 + OUTPUT_STALL_MS);
        assert!(connection.has_failed(&watch));
        connection.output.advance(&mut spare, 1);
        assert!(!connection.has_failed(&watch));
    }

    #[test]
    fn answers_that_are_being_read_count_before_they_are_there() {
        let mut connection = connection();
        let fetch = Charge { bytes: 65, answer_bytes: 11 << 20, large: true };
        let taken = (0..IN_FLIGHT_LARGE_MAX)
            .take_while(|_| {
                let is_taken = !connection.is_full(false);
                connection.charge(fetch);
                is_taken
            })
            .count();
        assert_eq!(taken, 3, "32 MiB hold no more of them");
    }

    #[test]
    fn on_a_crowded_shard_a_connection_has_one_answer_at_a_time_and_fetches_that_wait_hold_nothing_up() {
        let mut connection = connection();
        let waiting = Charge { bytes: 65, answer_bytes: 0, large: true };
        connection.charge(waiting);
        assert!(!connection.is_full(true));
        let fetch = Charge { bytes: 65, answer_bytes: 100, large: true };
        connection.charge(fetch);
        assert!(connection.is_full(true) && !connection.is_full(false));
        connection.discharge(fetch);
        assert!(!connection.is_full(true));
    }
}
