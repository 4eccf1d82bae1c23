//! The flag and the eventfd by which one thread ends another one's sleep; knows no queue and no message.
//!
//! Who sleeps raises the flag, looks at its queues *again*, and only then waits. Who pushes publishes first and looks
//! at the flag then. Between the two steps of each side stands a full fence, so that one of them sees the other: either
//! the sleeper sees the message, or the pusher sees the flag. `mesh` has the model of it. Every change of the flag is a
//! swap, so that its changes have one order that needs no argument (and loom, which orders plain stores loosely beside
//! swaps, none either).
//!
//! Cost of a wake-up that finds the peer awake: one fence and one load, no system call.

use signal::Signal;
use std::fmt;
#[cfg(not(loom))]
use std::io;
#[cfg(not(loom))]
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[cfg(loom)]
use loom::sync::{
    Arc,
    atomic::{AtomicBool, Ordering, fence},
};
#[cfg(not(loom))]
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering, fence},
};

/// The side that sleeps: one for each shard, on that shard.
pub struct Sleeper {
    shared: Arc<Shared>,
}

/// The side that wakes; any thread may have one.
#[derive(Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

/// A sleep that has been announced. Dropping it says that its owner is awake.
pub struct Sleep<'sleeper> {
    shared: &'sleeper Shared,
}

struct Shared {
    is_asleep: AtomicBool,
    signal: Signal,
}

impl Sleeper {
    /// A sleeper that is woken through an eventfd that its owner waits on, such as a ring's.
    #[cfg(not(loom))]
    #[must_use]
    pub fn new(eventfd: OwnedFd) -> Self {
        Self::over(Signal::new(eventfd))
    }

    /// A sleeper with an eventfd of its own.
    ///
    /// # Errors
    /// No descriptor or no memory is left.
    #[cfg(not(loom))]
    pub fn with_own_eventfd() -> io::Result<Self> {
        Ok(Self::over(Signal::with_own_eventfd()?))
    }

    /// A sleeper over loom's model of an eventfd.
    #[cfg(loom)]
    pub fn modelled() -> Self {
        Self::over(Signal::new())
    }

    fn over(signal: Signal) -> Self {
        Self { shared: Arc::new(Shared { is_asleep: AtomicBool::new(false), signal }) }
    }

    /// A handle that ends this sleeper's sleep.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker { shared: Arc::clone(&self.shared) }
    }

    /// Announces a sleep, then asks `has_work` once more. `None`: there is work, don't sleep. With a [`Sleep`] the
    /// owner may wait for the eventfd: each push from here on signals it.
    pub fn announce(&self, has_work: impl FnOnce() -> bool) -> Option<Sleep<'_>> {
        self.shared.is_asleep.swap(true, Ordering::Relaxed);
        let sleep = Sleep { shared: &self.shared };
        fence(Ordering::SeqCst);
        let has_work = !cfg!(coulee_mutation = "mesh_skips_recheck") && has_work();
        (!has_work).then_some(sleep)
    }
}

#[cfg(not(loom))]
impl AsFd for Sleeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.signal.as_fd()
    }
}

impl Sleep<'_> {
    /// Waits in the kernel until a waker signals, and takes the signal. For threads that have no ring to wait on.
    pub fn block(self) {
        self.shared.signal.wait();
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        self.shared.is_asleep.swap(false, Ordering::Relaxed);
    }
}

impl Waker {
    /// Ends the peer's sleep, if it sleeps. Call it after what it should find has been published; once is enough for
    /// many messages.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        // The swap leaves the system call to one of several wakers.
        if self.shared.is_asleep.load(Ordering::Relaxed) && self.shared.is_asleep.swap(false, Ordering::Relaxed) {
            self.shared.signal.raise();
        }
    }
}

impl fmt::Debug for Sleeper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Sleeper")
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Waker")
    }
}

impl fmt::Debug for Sleep<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Sleep")
    }
}

#[cfg(not(loom))]
mod signal {
    use std::fs::File;
    use std::io::{self, ErrorKind, Read as _, Write as _};
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

    /// An eventfd.
    pub(super) struct Signal(File);

    impl Signal {
        pub(super) fn new(eventfd: OwnedFd) -> Self {
            Self(File::from(eventfd))
        }

        pub(super) fn with_own_eventfd() -> io::Result<Self> {
            // SAFETY: no pointer is passed.
            let number = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the kernel has just made this descriptor and nobody else knows it.
            Ok(Self::new(unsafe { OwnedFd::from_raw_fd(number) }))
        }

        pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        pub(super) fn raise(&self) {
            match (&self.0).write(&1_u64.to_ne_bytes()) {
                Ok(count) => assert_eq!(count, 8, "an eventfd takes eight bytes"),
                // Its counter is full: it has been signalled.
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "eventfd: {error}"),
            }
        }

        pub(super) fn wait(&self) {
            let mut count = [0; 8];
            loop {
                match (&self.0).read(&mut count) {
                    Ok(_) => return,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => self.poll(),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted, "eventfd: {error}"),
                }
            }
        }

        fn poll(&self) {
            let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: `poll` is one pollfd of ours that lives through the call.
            let outcome = unsafe { libc::poll(&raw mut poll, 1, -1) };
            if outcome < 0 {
                let error = io::Error::last_os_error();
                assert_eq!(error.kind(), ErrorKind::Interrupted, "poll: {error}");
            }
        }
    }
}

#[cfg(loom)]
mod signal {
    use loom::sync::Notify;

    /// What an eventfd promises: a signal stays until it is taken. It may also come without a cause.
    pub(super) struct Signal(Notify);

    impl Signal {
        pub(super) fn new() -> Self {
            Self(Notify::new())
        }

        pub(super) fn raise(&self) {
            self.0.notify();
        }

        pub(super) fn wait(&self) {
            self.0.wait();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{ErrorKind, Read as _};

    /// Whether a signal waits, taking it.
    fn take_signal(sleeper: &Sleeper) -> bool {
        let mut eventfd = File::from(sleeper.as_fd().try_clone_to_owned().expect("a descriptor is left"));
        match eventfd.read(&mut [0; 8]) {
            Ok(count) => count == 8,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_waker_makes_no_system_call_for_a_peer_that_is_awake() {
        let sleeper = Sleeper::with_own_eventfd().unwrap();
        let waker = sleeper.waker();
        waker.wake();
        assert!(!take_signal(&sleeper));
        let sleep = sleeper.announce(|| false).unwrap();
        waker.wake();
        sleeper.waker().wake();
        assert!(take_signal(&sleeper));
        drop(sleep);
        waker.wake();
        assert!(!take_signal(&sleeper), "an ended sleep needs no signal");
    }

    #[test]
    fn work_that_came_between_prevents_the_sleep() {
        let sleeper = Sleeper::with_own_eventfd().unwrap();
        assert!(sleeper.announce(|| true).is_none());
        sleeper.waker().wake();
        assert!(!take_signal(&sleeper), "the sleep that was called off is over");
    }

    #[test]
    fn a_sleeper_uses_the_eventfd_that_it_is_given() {
        let owner = Sleeper::with_own_eventfd().unwrap();
        let other = Sleeper::new(owner.as_fd().try_clone_to_owned().unwrap());
        let sleep = other.announce(|| false).unwrap();
        other.waker().wake();
        assert!(take_signal(&owner));
        drop(sleep);
    }

    #[test]
    fn a_blocked_thread_is_woken_by_another() {
        let sleeper = Sleeper::with_own_eventfd().unwrap();
        let waker = sleeper.waker();
        let sleep = sleeper.announce(|| false).unwrap();
        let thread = std::thread::spawn(move || waker.wake());
        sleep.block();
        thread.join().unwrap();
    }
}
