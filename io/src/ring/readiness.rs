//! Which sockets are ready: one multishot poll a token, merged between two drains; knows no connection and no bytes.
//!
//! Edge-triggered: after an event the owner works until the kernel says EAGAIN, then hears of it again. A token given
//! to a new owner has a new generation, so that no completion meant for the former one reaches it.

use io_uring::{opcode, squeue, types};
use std::os::fd::RawFd;

/// Names a polled descriptor; small numbers, the owner's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub u32);

/// What to be told about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something to read, or the peer has shut its side down.
    Read,
    /// Room to write.
    Write,
    /// Both.
    ReadWrite,
}

impl Interest {
    const fn events(self) -> u32 {
        let (read, write) = ((libc::POLLIN | libc::POLLRDHUP) as u32, libc::POLLOUT as u32);
        match self {
            Self::Read => read,
            Self::Write => write,
            Self::ReadWrite => read | write,
        }
    }
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness(u32);

impl Readiness {
    const fn has(self, events: libc::c_short) -> bool {
        self.0 & events as u32 != 0
    }

    /// A read will not wait: bytes, an end or an error.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        self.has(libc::POLLIN | libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR)
    }

    /// A write will not wait: room, or an error.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.has(libc::POLLOUT | libc::POLLHUP | libc::POLLERR)
    }

    /// The peer sends nothing more.
    #[must_use]
    pub const fn is_peer_closed(self) -> bool {
        self.has(libc::POLLRDHUP | libc::POLLHUP)
    }

    /// The descriptor has failed, or can't be polled.
    #[must_use]
    pub const fn is_failed(self) -> bool {
        self.has(libc::POLLERR | libc::POLLNVAL)
    }
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Whose.
    pub token: Token,
    /// What for, since the last drain.
    pub readiness: Readiness,
}

#[derive(Clone, Copy, Default)]
struct Poll {
    generation: u32,
    /// Descriptor and events while it is wanted.
    armed: Option<(RawFd, u32)>,
    pending: u32,
}

/// Generations have 31 bits: the highest bit of a completion's name says that it is a poll's.
const GENERATION_MASK: u32 = u32::MAX >> 1;
/// The bit that marks a poll's completion.
pub(super) const POLL_BIT: u64 = 1 << 63;

/// Everything polled on one ring.
pub(super) struct Polls {
    polls: Vec<Poll>,
    polls_max: u32,
    ready: Vec<Token>,
    /// Ended by the kernel, with the generation that was.
    ended: Vec<(Token, u32)>,
}

impl Polls {
    pub(super) const fn new(polls_max: u32) -> Self {
        Self { polls: Vec::new(), polls_max, ready: Vec::new(), ended: Vec::new() }
    }

    fn name(&self, token: Token) -> u64 {
        POLL_BIT | u64::from(self.polls[token.0 as usize].generation) << 32 | u64::from(token.0)
    }

    fn entry(&self, token: Token, fd: RawFd, events: u32) -> squeue::Entry {
        opcode::PollAdd::new(types::Fd(fd), events).multi(true).build().user_data(self.name(token))
    }

    /// Begins to poll.
    pub(super) fn arm(&mut self, fd: RawFd, token: Token, interest: Interest) -> squeue::Entry {
        assert!(token.0 < self.polls_max, "tokens stay below the ring's bound on polls");
        let index = token.0 as usize;
        if self.polls.len() <= index {
            self.polls.resize(index + 1, Poll::default());
        }
        let poll = &mut self.polls[index];
        assert!(poll.armed.is_none(), "a token polls one descriptor at a time");
        poll.armed = Some((fd, interest.events()));
        self.entry(token, fd, interest.events())
    }

    /// Ends it: the entry that cancels, if the token polled. Nothing of it is delivered after this.
    pub(super) fn disarm(&mut self, token: Token) -> Option<squeue::Entry> {
        let poll = self.polls.get_mut(token.0 as usize).filter(|poll| poll.armed.is_some())?;
        (poll.armed, poll.pending) = (None, 0);
        let name = self.name(token);
        let poll = &mut self.polls[token.0 as usize];
        poll.generation = (poll.generation + 1) & GENERATION_MASK;
        Some(opcode::AsyncCancel::new(name).build())
    }

    /// Takes a completion in.
    pub(super) fn completed(&mut self, name: u64, result: i32, more: bool) {
        let (token, generation) = (Token(name as u32), (name >> 32) as u32 & GENERATION_MASK);
        let poll = &mut self.polls[token.0 as usize];
        if poll.generation != generation {
            return;
        }
        assert!(poll.armed.is_some(), "a poll that has ended has another generation");
        let failed = result < 0;
        let events_now = if failed { libc::POLLERR as u32 } else { result as u32 };
        if poll.pending == 0 && events_now != 0 {
            self.ready.push(token);
        }
        poll.pending |= events_now;
        // A poll that failed would fail again: its owner hears of it and lets go.
        if !more && !failed {
            self.ended.push((token, generation));
        }
    }

    /// The entry that arms the next poll that the kernel has ended and its owner has not.
    pub(super) fn next_ended(&mut self) -> Option<squeue::Entry> {
        loop {
            let (token, generation) = self.ended.pop()?;
            let poll = self.polls[token.0 as usize];
            if let (true, Some((fd, events))) = (poll.generation == generation, poll.armed) {
                return Some(self.entry(token, fd, events));
            }
        }
    }

    /// Whether anything waits to be drained or armed again.
    pub(super) fn is_waiting(&self) -> bool {
        !self.ready.is_empty() || !self.ended.is_empty()
    }

    /// Moves what has become ready into `into`, each token once.
    pub(super) fn drain(&mut self, into: &mut Vec<Ready>) {
        for token in self.ready.drain(..) {
            let pending = std::mem::take(&mut self.polls[token.0 as usize].pending);
            if pending != 0 {
                into.push(Ready { token, readiness: Readiness(pending) });
            }
        }
    }
}
