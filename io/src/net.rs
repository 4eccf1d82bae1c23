//! ① Sockets: listens, accepts, reads and writes without ever waiting; knows no frame and no shard.
//!
//! Readiness comes from the shard's ring; here a call that can't go on says so ([`Transfer::WouldBlock`]). Reads and
//! writes are one `recvmsg` or `sendmsg` each, straight into and out of the caller's buffers.
//!
//! A broker has *one* listening socket for an address, bound without SO_REUSEPORT, and the shard that owns it hands
//! connections on ([`Socket::into_fd`]). One for each shard with SO_REUSEPORT was weighed: any process of the same user
//! may join such a group, so a second broker takes its share of the connections in silence, and a trial bind before
//! it leaves a gap that two brokers started together both get through. Here the kernel refuses the second one, always.
//! The kernel also spreads by a hash, which puts four long-lived connections on one of two shards once in eight times;
//! a hand-over deals them out in turn, and a client that asks for a shard is handed over anyway. The price is one
//! message through the mesh for a connection.

use socket2::SockRef;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::limits::VECTORED_SLICES_MAX;

mod listener;

pub use listener::{AcceptError, BindError, ListenOptions, Listener};

/// How one read or write went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// So many bytes, at least one, unless the slices held none.
    Bytes(usize),
    /// Nothing can be moved now: wait for readiness.
    WouldBlock,
    /// The peer has closed the connection, or has gone.
    Closed,
    /// The kernel could not reach the caller's memory (EFAULT): a page of a mapped file could not be read. Nothing was
    /// moved by this call, and the connection is as good as before it.
    Fault,
    /// The connection failed, with this errno.
    Failed(i32),
}

/// A connection. Lives on one shard at a time; [`Socket::into_fd`] and [`Socket::from_fd`] take it to another.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

/// When a silent connection is probed, and when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Time between two probes.
    pub interval: Duration,
    /// Probes without an answer after which the connection has failed.
    pub probes: u32,
}

impl Socket {
    /// Takes over a connected stream socket, from [`Socket::into_fd`] on another shard.
    #[must_use]
    pub const fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Gives the connection away as it is: nothing is closed, nothing is lost.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Reads into `slices`, in order, at most [`VECTORED_SLICES_MAX`] of them. [`Transfer::Closed`] is the end of what
    /// the peer sent.
    pub fn read_vectored(&self, slices: &mut [IoSliceMut<'_>]) -> Transfer {
        let has_room = slices.iter().any(|slice| !slice.is_empty());
        let mut message = message(slices.as_mut_ptr().cast(), slices.len());
        let outcome = retried(|| {
            // SAFETY: `IoSliceMut` is an iovec in memory, and both the slices and what they point to are lent to us.
            unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }
        });
        match outcome {
            Transfer::Bytes(0) if has_room => Transfer::Closed,
            outcome => outcome,
        }
    }

    /// Writes `slices`, in order, at most [`VECTORED_SLICES_MAX`] of them. Never raises SIGPIPE.
    pub fn write_vectored(&self, slices: &[IoSlice<'_>]) -> Transfer {
        let message = message(slices.as_ptr().cast_mut().cast(), slices.len());
        retried(|| {
            // SAFETY: `IoSlice` is an iovec in memory, both the slices and what they point to are lent to us, and
            // sendmsg writes to neither.
            unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) }
        })
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        inet(&SockRef::from(&self.fd).peer_addr()?)
    }

    /// The address that the peer connected to.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        inet(&SockRef::from(&self.fd).local_addr()?)
    }

    /// Ends one direction, or both. What was written before is still sent, and the peer learns of it at once: a drop
    /// alone says nothing as long as the descriptor is held elsewhere, by a poll in flight for one.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        SockRef::from(&self.fd).shutdown(how)
    }

    /// Shuts both sides down: the peer sees the end of the stream, whoever else holds the descriptor.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn hang_up(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Both)
    }

    /// What the kernel may hold of received bytes; it counts its own overhead too, and doubles what was asked for.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn receive_buffer_bytes(&self) -> io::Result<usize> {
        SockRef::from(&self.fd).recv_buffer_size()
    }

    /// What the kernel may hold of bytes to be sent, counted alike.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send_buffer_bytes(&self) -> io::Result<usize> {
        SockRef::from(&self.fd).send_buffer_size()
    }

    /// Asks for another size of the receive buffer; the kernel caps it.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn set_receive_buffer_bytes(&self, bytes: usize) -> io::Result<()> {
        SockRef::from(&self.fd).set_recv_buffer_size(bytes)
    }

    /// Asks for another size of the send buffer; the kernel caps it.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn set_send_buffer_bytes(&self, bytes: usize) -> io::Result<()> {
        SockRef::from(&self.fd).set_send_buffer_size(bytes)
    }

    /// Whether small writes go out at once.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn nodelay(&self) -> io::Result<bool> {
        SockRef::from(&self.fd).tcp_nodelay()
    }

    /// Sets whether small writes go out at once.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        SockRef::from(&self.fd).set_tcp_nodelay(nodelay)
    }

    /// Has a silent connection probed.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn set_keepalive(&self, keepalive: Keepalive) -> io::Result<()> {
        SockRef::from(&self.fd).set_tcp_keepalive(&keepalive.options())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Keepalive {
    fn options(self) -> socket2::TcpKeepalive {
        socket2::TcpKeepalive::new().with_time(self.idle).with_interval(self.interval).with_retries(self.probes)
    }
}

impl fmt::Display for Transfer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(count) => write!(formatter, "{count} bytes"),
            Self::WouldBlock => formatter.write_str("would block"),
            Self::Closed => formatter.write_str("closed by the peer"),
            Self::Fault => formatter.write_str("memory that can't be read"),
            Self::Failed(errno) => io::Error::from_raw_os_error(*errno).fmt(formatter),
        }
    }
}

/// A message of these iovecs and nothing else.
fn message(slices: *mut libc::iovec, count: usize) -> libc::msghdr {
    // SAFETY: a msghdr is made of integers and pointers, for which zeros are valid and mean "none".
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = slices;
    message.msg_iovlen = count.min(VECTORED_SLICES_MAX);
    message
}

/// Makes the call until no signal interrupts it, and reads what it says.
fn retried(mut call: impl FnMut() -> isize) -> Transfer {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Transfer::Bytes(count);
        }
        let errno = io::Error::last_os_error().raw_os_error().expect("the call has just set it");
        match errno {
            libc::EINTR => {}
            libc::EAGAIN => return Transfer::WouldBlock,
            libc::EPIPE | libc::ECONNRESET => return Transfer::Closed,
            libc::EFAULT => return Transfer::Fault,
            errno => return Transfer::Failed(errno),
        }
    }
}

fn inet(address: &socket2::SockAddr) -> io::Result<SocketAddr> {
    address.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
}

#[cfg(test)]
mod tests;
