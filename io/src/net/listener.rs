//! The listening socket: bound by one process alone, accepts without waiting; knows not which shard serves whom.

use super::{Keepalive, Socket, inet};
use socket2::{Domain, Protocol, SockAddr, Type};
use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// How to listen. Connections inherit buffers, nodelay and keepalive, so that accepting one costs no further call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// Where; port 0 lets the system choose.
    pub address: SocketAddr,
    /// Lets a broker that restarts bind while old connections linger. It never lets two processes listen.
    pub reuse_address: bool,
    /// Connections that wait to be accepted; capped by `net.core.somaxconn`.
    pub waiting_connections_max: u16,
    /// Whether small writes go out at once.
    pub nodelay: bool,
    /// Receive buffer of a connection; `None` leaves it to the kernel, which then adapts it.
    pub receive_buffer_bytes: Option<usize>,
    /// Send buffer of a connection, alike.
    pub send_buffer_bytes: Option<usize>,
    /// When silent connections are probed.
    pub keepalive: Option<Keepalive>,
}

impl ListenOptions {
    /// What a broker wants: restarts at once, small writes go out at once, the kernel sizes the buffers.
    #[must_use]
    pub const fn at(address: SocketAddr) -> Self {
        Self {
            address,
            reuse_address: true,
            waiting_connections_max: 1_024,
            nodelay: true,
            receive_buffer_bytes: None,
            send_buffer_bytes: None,
            keepalive: None,
        }
    }
}

/// Why nobody listens.
#[derive(Debug)]
pub enum BindError {
    /// Another process listens at this address, another broker perhaps.
    Taken {
        /// The address.
        address: SocketAddr,
    },
    /// The system refuses this address or these options.
    Refused {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why a connection was not accepted. The listener itself is as good as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptError {
    /// The process has no descriptor left. The connection was closed in the peer's face, so that it doesn't hang and
    /// the listener's readiness doesn't spin: go on when others have closed.
    OutOfFiles,
    /// The system has no descriptor or no memory left; the connection still waits. Pause before the next try.
    OutOfResources(i32),
    /// The connection had failed before it was accepted. Try the next one.
    Aborted(i32),
}

/// A listening socket. Lives on one shard.
#[derive(Debug)]
pub struct Listener {
    socket: socket2::Socket,
    address: SocketAddr,
    /// A descriptor held back for the day when there is none, to turn a connection away with.
    spare: RefCell<Option<OwnedFd>>,
}

impl Listener {
    /// Binds and listens. A port is never shared: SO_REUSEPORT stays off.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(options: &ListenOptions) -> Result<Self, BindError> {
        let address = options.address;
        Self::open(options).map_err(|source| match source.raw_os_error() {
            Some(libc::EADDRINUSE) => BindError::Taken { address },
            _ => BindError::Refused { address, source },
        })
    }

    /// The same, but a port that is taken may become free within `patience`: the kernel gives up the rings of a killed
    /// process, and with them its listener, a moment after the process itself. `waits` is called once where that is
    /// waited for.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind_within(options: &ListenOptions, patience: Duration, waits: impl FnOnce()) -> Result<Self, BindError> {
        let (began, mut waits) = (Instant::now(), Some(waits));
        loop {
            let bound = Self::bind(options);
            if !matches!(bound, Err(BindError::Taken { .. })) || began.elapsed() >= patience {
                return bound;
            }
            if let Some(waits) = waits.take() {
                waits();
            }
            thread::sleep(patience / 40);
        }
    }

    fn open(options: &ListenOptions) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(options.address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(options.reuse_address)?;
        socket.set_tcp_nodelay(options.nodelay)?;
        if let Some(bytes) = options.receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(bytes) = options.send_buffer_bytes {
            socket.set_send_buffer_size(bytes)?;
        }
        if let Some(keepalive) = options.keepalive {
            socket.set_tcp_keepalive(&keepalive.options())?;
        }
        socket.bind(&SockAddr::from(options.address))?;
        socket.listen(i32::from(options.waiting_connections_max))?;
        let address = inet(&socket.local_addr()?)?;
        Ok(Self { socket, address, spare: RefCell::new(Some(spare()?)) })
    }

    /// Where it listens, with the port that the system has chosen.
    #[must_use]
    pub const fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection that waits; `None` when none does.
    ///
    /// # Errors
    /// See [`AcceptError`].
    ///
    /// # Panics
    /// When the descriptor is no listening socket: a fault of ours.
    pub fn accept(&self) -> Result<Option<Socket>, AcceptError> {
        loop {
            let error = match self.socket.accept() {
                Ok((socket, _)) => return Ok(Some(Socket::from_fd(socket.into()))),
                Err(error) => error,
            };
            let errno = error.raw_os_error().expect("accept has just set it");
            match errno {
                libc::EINTR => {}
                libc::EAGAIN => return Ok(None),
                libc::EMFILE => return self.turn_away().map(|()| None),
                libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => return Err(AcceptError::OutOfResources(errno)),
                libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP | libc::EFAULT => {
                    panic!("the listener of {} is none: {error}", self.address)
                }
                errno => return Err(AcceptError::Aborted(errno)),
            }
        }
    }

    /// Gives up the spare descriptor, accepts with it, closes, and takes the spare back. `Ok`: nobody waits; the kernel
    /// asks for a descriptor before it looks.
    fn turn_away(&self) -> Result<(), AcceptError> {
        let had_spare = self.spare.take().is_some();
        let accepted = self.socket.accept().map(drop);
        // Another thread may have taken the descriptor meanwhile: then the next call tries again.
        self.spare.replace(spare().ok());
        match accepted {
            Ok(()) => Err(AcceptError::OutOfFiles),
            Err(error) if had_spare && error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(AcceptError::OutOfResources(libc::EMFILE)),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn spare() -> io::Result<OwnedFd> {
    File::open("/dev/null").map(OwnedFd::from)
}

impl fmt::Display for BindError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken { address } => {
                write!(formatter, "{address} is taken: another process listens there, another broker perhaps")
            }
            Self::Refused { address, source } => write!(formatter, "can't listen at {address}: {source}"),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Taken { .. } => None,
            Self::Refused { source, .. } => Some(source),
        }
    }
}

impl fmt::Display for AcceptError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = match self {
            Self::OutOfFiles => return formatter.write_str("no descriptor is left: a connection was turned away"),
            Self::OutOfResources(errno) | Self::Aborted(errno) => *errno,
        };
        write!(formatter, "a connection was not accepted: {}", io::Error::from_raw_os_error(errno))
    }
}

impl std::error::Error for AcceptError {}
