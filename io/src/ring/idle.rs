//! How an idle shard waits for its ring, and how other threads end the wait; knows no operation and no message.
//!
//! One read of the eventfd through glommio is kept across waits and never dropped half-way: dropping it would cancel
//! it lazily and could swallow a signal. The kernel signals only while a shard waits; whether something came before is
//! asked after that has been switched on, so that no wake-up is lost.

use super::{Errno, Ring, duplicate, eventfd};
use glommio::io::BufferedFile;
use glommio::timer::Timer;
use std::cell::RefCell;
use std::fs::File;
use std::future::poll_fn;
use std::io::Write as _;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

type Signal = Pin<Box<dyn Future<Output = ()>>>;

/// The eventfd and the read of it.
pub(super) struct Idle {
    eventfd: OwnedFd,
    /// Made with the first wait: it needs the executor.
    file: RefCell<Option<Rc<BufferedFile>>>,
    signal: RefCell<Option<Signal>>,
}

impl Idle {
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self { eventfd: eventfd()?, file: RefCell::new(None), signal: RefCell::new(None) })
    }

    pub(super) fn eventfd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }

    fn file(&self) -> Result<Rc<BufferedFile>, Errno> {
        let mut file = self.file.borrow_mut();
        if let Some(file) = &*file {
            return Ok(Rc::clone(file));
        }
        let fd = duplicate(&self.eventfd)?.into_raw_fd();
        // SAFETY: the number was just given up by its owner, so the new one is the only one.
        let made = Rc::new(unsafe { BufferedFile::from_raw_fd(fd) });
        *file = Some(Rc::clone(&made));
        Ok(made)
    }

    /// Polls the read that is under way, or a new one.
    fn poll_signal(&self, context: &mut Context<'_>) -> Result<Poll<()>, Errno> {
        let kept = self.signal.borrow_mut().take();
        let mut signal = match kept {
            Some(signal) => signal,
            None => {
                let file = self.file()?;
                Box::pin(async move {
                    // Whatever the read says, the shard looks at its ring again.
                    drop(file.read_at(0, 8).await);
                })
            }
        };
        let polled = signal.as_mut().poll(context);
        if polled.is_pending() {
            *self.signal.borrow_mut() = Some(signal);
        }
        Ok(polled)
    }
}

impl Ring {
    /// Waits until something completes, another thread wakes this one ([`Ring::waker`]) or `until` is over. Submits
    /// what is queued. Returns at once where something is there already; may return without a cause.
    ///
    /// # Errors
    /// The kernel has no memory or no descriptor for it.
    pub async fn wait(&self, until: Option<Duration>) -> Result<(), Errno> {
        self.submit()?;
        if self.listen() {
            let mut timer = until.map(Timer::new);
            let mut polled = false;
            poll_fn(|context| {
                // Polled again: someone has woken this task. Whatever it was, the shard looks at everything anew.
                if std::mem::replace(&mut polled, true) {
                    return Poll::Ready(Ok(()));
                }
                if self.idle.poll_signal(context)?.is_ready() {
                    return Poll::Ready(Ok(()));
                }
                timer.as_mut().map_or(Poll::Pending, |timer| Pin::new(timer).poll(context).map(|_| Ok(())))
            })
            .await?;
        }
        self.inner.borrow_mut().uring.completion().disable_eventfd();
        Ok(())
    }

    /// Has completions signalled; whether there is nothing yet.
    fn listen(&self) -> bool {
        let mut inner = self.inner.borrow_mut();
        inner.uring.completion().enable_eventfd();
        // The kernel reads the flag after it has posted: the flag has to be out before we look.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        inner.woken.is_empty()
            && !inner.polls.is_waiting()
            && !inner.is_deferring()
            && inner.uring.completion().is_empty()
    }

    /// The eventfd that this ring waits on, for who wakes the shard by other means than a completion.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn eventfd(&self) -> Result<OwnedFd, Errno> {
        duplicate(&self.idle.eventfd)
    }

    /// A handle that ends this ring's wait from any thread.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn waker(&self) -> Result<RingWaker, Errno> {
        Ok(RingWaker { eventfd: File::from(duplicate(&self.idle.eventfd)?) })
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
