//! Requests in flight on a connection: owns correlations, bounds, deadlines and what a lost connection means for each;
//! knows no socket, reads no clock.
//!
//! `T` is how the answer gets to whoever asked. Time is counted from the connection's beginning.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use coulee_protocol::frame::FrameHeader;

use crate::limits::{IN_FLIGHT_BYTES_MAX, IN_FLIGHT_LARGE_MAX, IN_FLIGHT_SMALL_MAX, SMALL_FRAME_BYTES};

/// What one request takes of the bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Bytes of the frame.
    pub(crate) frame_bytes: usize,
    /// Bytes of record batches that the answer may have.
    pub(crate) answer_bytes: usize,
}

impl Cost {
    fn bytes(self) -> usize {
        self.frame_bytes.saturating_add(self.answer_bytes).min(IN_FLIGHT_BYTES_MAX)
    }

    fn is_small(self) -> bool {
        self.frame_bytes <= SMALL_FRAME_BYTES && self.answer_bytes <= SMALL_FRAME_BYTES
    }
}

/// A request that is known to be answered.
#[derive(Debug)]
struct Pending<T> {
    api: u16,
    version: u16,
    frame_end: u64,
    cost: Cost,
    issued: Duration,
    deadline: Duration,
    /// `None` once nobody waits any more: the correlation stays taken until the answer comes.
    reply: Option<T>,
}

/// An answer that no request of ours can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The frame is a request.
    NotAResponse,
    /// No request with this correlation waits for an answer.
    UnknownCorrelation {
        /// What the frame says.
        found: u32,
    },
    /// The answer is to another API, or to another version of it.
    OtherApi {
        /// API and version of the request.
        expected: (u16, u16),
        /// Those of the answer.
        found: (u16, u16),
    },
}

/// What became of a request without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The frame never left in whole: nothing of it happened.
    NotSent,
    /// The frame has left, so it may have happened.
    Unanswered,
}

/// The requests in flight.
#[derive(Debug)]
pub(crate) struct Flight<T> {
    pending: HashMap<u32, Pending<T>>,
    /// Requests without an answer (acks 0), which are done when they have left; the ends of their frames ascend.
    silent: VecDeque<(u64, Cost, T)>,
    next_correlation: u32,
    small: usize,
    large: usize,
    bytes: usize,
    sent_end: u64,
}

impl<T> Default for Flight<T> {
    fn default() -> Self {
        let pending = HashMap::new();
        Self { pending, silent: VecDeque::new(), next_correlation: 1, small: 0, large: 0, bytes: 0, sent_end: 0 }
    }
}

impl<T> Flight<T> {
    /// Whether a request of this cost may go out now.
    pub(crate) fn has_room(&self, cost: Cost) -> bool {
        let requests =
            if cost.is_small() { self.small < IN_FLIGHT_SMALL_MAX } else { self.large < IN_FLIGHT_LARGE_MAX };
        requests && (self.bytes == 0 || self.bytes + cost.bytes() <= IN_FLIGHT_BYTES_MAX)
    }

    /// A correlation that no request in flight has.
    pub(crate) fn correlation(&mut self) -> u32 {
        while self.pending.contains_key(&self.next_correlation) {
            self.next_correlation = self.next_correlation.wrapping_add(1);
        }
        let correlation = self.next_correlation;
        self.next_correlation = correlation.wrapping_add(1);
        correlation
    }

    /// Takes a request whose frame ends at `frame_end` of the stream.
    pub(crate) fn admit(
        &mut self,
        request: &FrameHeader,
        frame_end: u64,
        cost: Cost,
        (issued, deadline): (Duration, Duration),
        reply: T,
    ) {
        self.take(cost);
        let (api, version) = (request.api, request.version);
        let pending = Pending { api, version, frame_end, cost, issued, deadline, reply: Some(reply) };
        let before = self.pending.insert(request.correlation, pending);
        assert!(before.is_none(), "correlation {} is in flight", request.correlation);
    }

    /// Takes a request that gets no answer.
    pub(crate) fn admit_silent(&mut self, frame_end: u64, cost: Cost, reply: T) {
        assert!(self.silent.back().is_none_or(|(end, ..)| *end < frame_end), "frames leave in order");
        self.take(cost);
        self.silent.push_back((frame_end, cost, reply));
    }

    /// Notes how far the stream has left; the next silent request that has left in whole is done.
    pub(crate) fn sent(&mut self, sent_end: u64) -> Option<T> {
        self.sent_end = sent_end;
        if self.silent.front()?.0 > sent_end {
            return None;
        }
        let (_, cost, reply) = self.silent.pop_front()?;
        self.release(cost);
        Some(reply)
    }

    /// Whose answer this is; `Ok(None)` where nobody waits for it any more.
    ///
    /// # Errors
    /// [`Violation`]: the peer does not speak the protocol, the connection has to close.
    pub(crate) fn answer(&mut self, header: &FrameHeader) -> Result<Option<T>, Violation> {
        if !header.is_response() {
            return Err(Violation::NotAResponse);
        }
        let Some(pending) = self.pending.get(&header.correlation) else {
            return Err(Violation::UnknownCorrelation { found: header.correlation });
        };
        let (expected, found) = ((pending.api, pending.version), (header.api, header.version));
        if expected != found {
            return Err(Violation::OtherApi { expected, found });
        }
        let pending = self.pending.remove(&header.correlation).expect("it was there a line above");
        self.release(pending.cost);
        Ok(pending.reply)
    }

    /// Whether the peer is gone: a request has waited for its whole time, and in that time the peer has said nothing
    /// (`heard` is when it last did) or has not taken the frame.
    pub(crate) fn is_peer_gone(&self, now: Duration, heard: Duration) -> bool {
        let late = |pending: &&Pending<T>| pending.deadline <= now && pending.reply.is_some();
        self.pending.values().filter(late).any(|late| heard <= late.issued || late.frame_end > self.sent_end)
    }

    /// Takes out those whose deadline has passed; whether they happened is unknown. Their correlations stay taken.
    pub(crate) fn expire(&mut self, now: Duration) -> Vec<T> {
        self.pending
            .values_mut()
            .filter(|pending| pending.deadline <= now)
            .filter_map(|late| late.reply.take())
            .collect()
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.silent.is_empty()
    }

    /// The connection is lost: everything in flight, with what that means for it.
    pub(crate) fn lose(self) -> impl Iterator<Item = (T, Lost)> {
        let sent_end = self.sent_end;
        let lost = move |end: u64| if end <= sent_end { Lost::Unanswered } else { Lost::NotSent };
        let pending = self.pending.into_values().filter_map(|pending| Some((pending.frame_end, pending.reply?)));
        let silent = self.silent.into_iter().map(|(end, _, reply)| (end, reply));
        pending.chain(silent).map(move |(end, reply)| (reply, lost(end)))
    }

    fn take(&mut self, cost: Cost) {
        self.bytes += cost.bytes();
        *(if cost.is_small() { &mut self.small } else { &mut self.large }) += 1;
    }

    fn release(&mut self, cost: Cost) {
        self.bytes -= cost.bytes();
        *(if cost.is_small() { &mut self.small } else { &mut self.large }) -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coulee_protocol::error::ErrorCode;

    const SMALL: Cost = Cost { frame_bytes: 100, answer_bytes: 0 };
    const SECOND: Duration = Duration::from_secs(1);

    /// A flight with requests 1, 2, … that have these ends.
    fn flight(ends: &[u64]) -> Flight<u32> {
        let mut flight = Flight::default();
        for end in ends {
            let correlation = flight.correlation();
            let header = FrameHeader::request(2, 1, correlation, 14, 100);
            flight.admit(&header, *end, SMALL, (Duration::ZERO, SECOND), correlation);
        }
        flight
    }

    fn answer(correlation: u32) -> FrameHeader {
        FrameHeader::response(&FrameHeader::request(2, 1, correlation, 0, 0), ErrorCode::None, 0, 0)
    }

    #[test]
    fn answers_find_their_requests_in_any_order() {
        let mut flight = flight(&[10, 20, 30]);
        for correlation in [2, 3, 1] {
            assert_eq!(flight.answer(&answer(correlation)), Ok(Some(correlation)));
        }
        assert!(flight.is_empty());
    }

    #[test]
    fn wrong_correlations_and_other_apis_are_violations() {
        let mut flight = flight(&[10]);
        assert_eq!(flight.answer(&answer(9)), Err(Violation::UnknownCorrelation { found: 9 }));
        let other = FrameHeader { api: 3, ..answer(1) };
        assert_eq!(flight.answer(&other), Err(Violation::OtherApi { expected: (2, 1), found: (3, 1) }));
        let request = FrameHeader::request(2, 1, 1, 0, 0);
        assert_eq!(flight.answer(&request), Err(Violation::NotAResponse));
        assert_eq!(flight.answer(&answer(1)), Ok(Some(1)));
        assert_eq!(flight.answer(&answer(1)), Err(Violation::UnknownCorrelation { found: 1 }));
    }

    #[test]
    fn a_lost_connection_separates_what_left_in_whole_from_what_did_not() {
        let mut flight = flight(&[10, 20, 30]);
        flight.admit_silent(40, SMALL, 4);
        assert_eq!(flight.sent(20), None);
        let mut lost: Vec<_> = flight.lose().collect();
        lost.sort_unstable_by_key(|(request, _)| *request);
        let expected = [(1, Lost::Unanswered), (2, Lost::Unanswered), (3, Lost::NotSent), (4, Lost::NotSent)];
        assert_eq!(lost, expected);
    }

    #[test]
    fn silent_requests_are_done_when_they_have_left() {
        let mut flight = Flight::default();
        flight.admit_silent(10, SMALL, 1);
        flight.admit_silent(20, SMALL, 2);
        assert_eq!(flight.sent(9), None);
        assert_eq!((flight.sent(20), flight.sent(20), flight.sent(20)), (Some(1), Some(2), None));
    }

    #[test]
    fn an_expired_request_keeps_its_correlation_until_its_answer_comes() {
        let mut flight = flight(&[10]);
        flight.sent(10);
        assert!(flight.expire(SECOND / 2).is_empty());
        assert!(!flight.is_peer_gone(SECOND, SECOND / 2), "it has answered others");
        assert_eq!(flight.expire(SECOND), [1]);
        assert!(flight.expire(SECOND).is_empty());
        flight.next_correlation = 1;
        assert_eq!(flight.correlation(), 2);
        assert_eq!(flight.answer(&answer(1)), Ok(None));
    }

    #[test]
    fn a_peer_that_was_silent_or_took_nothing_for_a_whole_timeout_is_gone() {
        let mut flight = flight(&[10]);
        assert!(!flight.is_peer_gone(SECOND / 2, Duration::ZERO));
        assert!(flight.is_peer_gone(SECOND, SECOND / 2), "the frame has not left");
        flight.sent(10);
        assert!(flight.is_peer_gone(SECOND, Duration::ZERO), "nothing was heard");
        assert!(!flight.is_peer_gone(SECOND, SECOND / 2));
    }

    #[test]
    fn requests_and_bytes_in_flight_are_bounded() {
        let mut flight = flight(&[]);
        let large = Cost { frame_bytes: 1 << 20, answer_bytes: 0 };
        let end = (0..).take_while(|_| {
            let room = flight.has_room(large);
            if room {
                let correlation = flight.correlation();
                let header = FrameHeader::request(2, 1, correlation, 0, 0);
                flight.admit(&header, 1, large, (Duration::ZERO, SECOND), correlation);
            }
            room
        });
        assert_eq!(end.count(), IN_FLIGHT_BYTES_MAX >> 20);
        assert!(!flight.has_room(SMALL));
        flight.answer(&answer(1)).unwrap();
        assert!(flight.has_room(SMALL) && flight.has_room(large));
        let whole = Cost { frame_bytes: 100, answer_bytes: usize::MAX };
        assert!(!flight.has_room(whole) && Flight::<u32>::default().has_room(whole));
    }

    #[test]
    fn small_requests_are_pipelined_deeper_than_large_ones() {
        let depth = |cost: Cost| {
            let mut flight = Flight::default();
            (1..)
                .take_while(|end| {
                    let room = flight.has_room(cost);
                    if room {
                        flight.admit_silent(*end, cost, ());
                    }
                    room
                })
                .count()
        };
        assert_eq!(depth(SMALL), IN_FLIGHT_SMALL_MAX);
        assert_eq!(depth(Cost { frame_bytes: SMALL_FRAME_BYTES + 1, answer_bytes: 0 }), IN_FLIGHT_LARGE_MAX);
    }
}
