//! How an idle shard waits in its ring, and how other threads end the wait; knows no operation and no message.
//!
//! The wait is one system call that submits what is queued and ends with the first completion
//! (docs/decisions/003-waiting-in-the-ring.md has reasons and figures). Other threads write to an eventfd that the ring
//! polls for as long as it lives: the kernel keeps what was written before a wait, so that no wake-up is lost.

use super::{Errno, Inner, Ring, WAKE_UP, duplicate};
use io_uring::{cqueue, opcode, types};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// The eventfd, and whether the ring polls it.
pub(super) struct WakeUps {
    eventfd: OwnedFd,
    is_polled: bool,
}

impl WakeUps {
    pub(super) fn new() -> Result<Self, Errno> {
        // SAFETY: the call takes two plain numbers and answers a new descriptor or -1.
        let fd: RawFd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(Errno::of(&std::io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just made this descriptor and nobody else knows it.
        Ok(Self { eventfd: unsafe { OwnedFd::from_raw_fd(fd) }, is_polled: false })
    }

    /// Someone has written. Nothing needs to be read: each write is told by itself.
    pub(super) fn completed(&mut self, flags: u32) {
        self.is_polled = cqueue::more(flags);
    }
}

impl Ring {
    /// Waits until something completes, another thread wakes this one ([`Ring::waker`]) or `until` is over, and blocks
    /// the thread as long. Submits what is queued. Returns at once where something is there already; may return
    /// without a cause.
    ///
    /// # Errors
    /// The kernel has no memory for it.
    pub fn wait(&self, until: Option<Duration>) -> Result<(), Errno> {
        self.inner.borrow_mut().wait(until)
    }

    /// The eventfd that ends this ring's wait, for who wakes the shard by other means than a completion.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn eventfd(&self) -> Result<OwnedFd, Errno> {
        duplicate(&self.inner.borrow().wake_ups.eventfd)
    }

    /// A handle that ends this ring's wait from any thread.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn waker(&self) -> Result<RingWaker, Errno> {
        Ok(RingWaker { eventfd: File::from(self.eventfd()?) })
    }
}

impl Inner {
    fn wait(&mut self, until: Option<Duration>) -> Result<(), Errno> {
        if !self.wake_ups.is_polled {
            let eventfd = types::Fd(self.wake_ups.eventfd.as_raw_fd());
            let poll = opcode::PollAdd::new(eventfd, libc::POLLIN as u32).multi(true);
            self.push(&poll.build().user_data(WAKE_UP));
            self.wake_ups.is_polled = true;
        }
        if !self.woken.is_empty() || self.polls.is_waiting() || !self.uring.completion().is_empty() {
            return self.submit();
        }
        // Asleep, this thread keeps no worker of the kernel from the CPU.
        self.has_punted = false;
        self.enters += 1;
        let timespec = until.map(types::Timespec::from);
        let forever = types::SubmitArgs::new();
        let args = timespec.as_ref().map_or(forever, |timespec| forever.timespec(timespec));
        match self.uring.submitter().submit_with_args(1, &args) {
            Ok(_) => Ok(()),
            Err(error) => match Errno::of(&error) {
                Errno(libc::ETIME | libc::EINTR) => Ok(()),
                // Full of completions: they are taken before anything else is submitted.
                Errno(libc::EBUSY) => Ok(()),
                errno => Err(errno),
            },
        }
    }
}

/// Ends the wait of one shard's ring. Any thread may have it.
#[derive(Debug)]
pub struct RingWaker {
    eventfd: File,
}

impl RingWaker {
    /// Ends the wait that the shard is in, or the next one.
    pub fn wake(&self) {
        let written = (&self.eventfd).write(&1_u64.to_ne_bytes());
        assert!(written.is_ok(), "an eventfd takes one more until it has been signalled 2^64 times: {written:?}");
    }
}
