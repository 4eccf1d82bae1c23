//! Real sockets on ports that the system chooses; a process of its own where a limit has to be lowered.

use super::*;
use std::env;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::mem::ManuallyDrop;
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
use std::os::fd::FromRawFd as _;
use std::process::Command;
use std::thread;

fn listen() -> Listener {
    Listener::bind(&ListenOptions::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))).unwrap()
}

/// Waits in the kernel until the socket is readable.
fn wait_readable(fd: BorrowedFd<'_>) {
    wait(fd, libc::POLLIN);
}

fn wait(fd: BorrowedFd<'_>, events: i16) {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: `poll` is one pollfd of ours that lives through the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, -1) };
    assert_eq!(ready, 1);
}

fn accept(listener: &Listener) -> Socket {
    wait_readable(listener.as_fd());
    listener.accept().unwrap().expect("a connection waits")
}

fn connection() -> (TcpStream, Socket) {
    let listener = listen();
    let peer = TcpStream::connect(listener.local_address()).unwrap();
    (peer, accept(&listener))
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    let listener = listen();
    let address = listener.local_address();
    for reuse_address in [true, false] {
        let error = Listener::bind(&ListenOptions { reuse_address, ..ListenOptions::at(address) }).unwrap_err();
        assert!(matches!(error, BindError::Taken { address: named } if named == address), "{error}");
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}

#[test]
fn nobody_joins_a_port_with_reuse_port() {
    let listener = listen();
    let intruder = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    intruder.set_reuse_address(true).unwrap();
    intruder.set_reuse_port(true).unwrap();
    let bound = intruder.bind(&listener.local_address().into()).and_then(|()| intruder.listen(1));
    assert_eq!(bound.unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
    // And the other way round: who came first with SO_REUSEPORT keeps us out.
    let first = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    first.set_reuse_port(true).unwrap();
    first.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    first.listen(1).unwrap();
    let address = first.local_addr().unwrap().as_socket().unwrap();
    assert!(matches!(Listener::bind(&ListenOptions::at(address)), Err(BindError::Taken { .. })));
}

#[test]
fn a_restarted_broker_binds_beside_lingering_connections() {
    let listener = listen();
    let address = listener.local_address();
    let mut peer = TcpStream::connect(address).unwrap();
    let socket = accept(&listener);
    // Our side closes first, so it is ours that lingers.
    socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
    drop((peer, socket, listener));
    assert_eq!(Listener::bind(&ListenOptions::at(address)).unwrap().local_address(), address);
}

#[test]
fn an_address_of_nobody_is_refused_with_its_name() {
    // 192.0.2.0/24 is for documentation: no machine has it.
    let address = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 0));
    let error = Listener::bind(&ListenOptions::at(address)).unwrap_err();
    assert!(matches!(error, BindError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("192.0.2.1"), "{error}");
}

#[test]
fn connections_inherit_the_options_of_their_listener() {
    let keepalive = Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(5), probes: 3 };
    let options = ListenOptions {
        receive_buffer_bytes: Some(64 << 10),
        send_buffer_bytes: Some(32 << 10),
        keepalive: Some(keepalive),
        ..ListenOptions::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    };
    let listener = Listener::bind(&options).unwrap();
    let peer = TcpStream::connect(listener.local_address()).unwrap();
    let socket = accept(&listener);
    assert!(socket.nodelay().unwrap());
    assert_eq!(socket.receive_buffer_bytes().unwrap(), 2 * (64 << 10));
    assert_eq!(socket.send_buffer_bytes().unwrap(), 2 * (32 << 10));
    let options = SockRef::from(&socket.fd);
    assert!(options.keepalive().unwrap());
    assert_eq!(options.tcp_keepalive_time().unwrap(), keepalive.idle);
    assert_eq!(options.tcp_keepalive_interval().unwrap(), keepalive.interval);
    assert_eq!(options.tcp_keepalive_retries().unwrap(), keepalive.probes);
    assert_eq!(socket.peer_address().unwrap(), peer.local_addr().unwrap());
    assert_eq!(socket.local_address().unwrap(), listener.local_address());
}

#[test]
fn options_of_one_connection_can_be_changed() {
    let (_peer, socket) = connection();
    socket.set_nodelay(false).unwrap();
    socket.set_receive_buffer_bytes(16 << 10).unwrap();
    socket.set_send_buffer_bytes(16 << 10).unwrap();
    socket
        .set_keepalive(Keepalive { idle: Duration::from_secs(9), interval: Duration::from_secs(1), probes: 2 })
        .unwrap();
    assert!(!socket.nodelay().unwrap());
    assert_eq!(socket.receive_buffer_bytes().unwrap(), 2 * (16 << 10));
    assert_eq!(socket.send_buffer_bytes().unwrap(), 2 * (16 << 10));
    assert_eq!(SockRef::from(&socket.fd).tcp_keepalive_time().unwrap(), Duration::from_secs(9));
}

#[test]
fn accept_and_read_never_wait() {
    let listener = listen();
    assert!(listener.accept().unwrap().is_none());
    let _peer = TcpStream::connect(listener.local_address()).unwrap();
    let socket = accept(&listener);
    assert!(listener.accept().unwrap().is_none());
    assert_eq!(socket.read_vectored(&mut [IoSliceMut::new(&mut [0; 8])]), Transfer::WouldBlock);
}

#[test]
fn bytes_are_spread_over_slices_in_order() {
    let (mut peer, socket) = connection();
    peer.write_all(b"abcdefgh").unwrap();
    wait_readable(socket.as_fd());
    let (mut first, mut second) = ([0; 3], [0; 16]);
    let read = socket.read_vectored(&mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)]);
    assert_eq!((read, &first, &second[..5]), (Transfer::Bytes(8), b"abc", &b"defgh"[..]));
    let written = socket.write_vectored(&[IoSlice::new(b"12"), IoSlice::new(b""), IoSlice::new(b"345")]);
    assert_eq!(written, Transfer::Bytes(5));
    let mut back = [0; 5];
    peer.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"12345");
}

#[test]
fn more_slices_than_the_kernel_takes_are_written_in_part() {
    let (_peer, socket) = connection();
    let slices = vec![IoSlice::new(b"x"); VECTORED_SLICES_MAX + 10];
    assert_eq!(socket.write_vectored(&slices), Transfer::Bytes(VECTORED_SLICES_MAX));
}

#[test]
fn a_closed_peer_is_told_from_an_empty_socket() {
    let (peer, socket) = connection();
    assert_eq!(socket.read_vectored(&mut []), Transfer::WouldBlock);
    drop(peer);
    wait_readable(socket.as_fd());
    assert_eq!(socket.read_vectored(&mut [IoSliceMut::new(&mut [0; 8])]), Transfer::Closed);
    // The first write is answered with a reset; after it there is nobody to write to, and no signal.
    assert_eq!(socket.write_vectored(&[IoSlice::new(b"x")]), Transfer::Bytes(1));
    wait(socket.as_fd(), libc::POLLERR);
    assert_eq!(socket.write_vectored(&[IoSlice::new(b"x")]), Transfer::Closed);
}

#[test]
fn shutdown_reaches_the_peer_while_the_descriptor_is_held() {
    let (mut peer, socket) = connection();
    let held = socket.as_fd().try_clone_to_owned().unwrap();
    assert_eq!(socket.write_vectored(&[IoSlice::new(b"last")]), Transfer::Bytes(4));
    socket.shutdown(Shutdown::Both).unwrap();
    drop(socket);
    let mut read = Vec::new();
    peer.read_to_end(&mut read).unwrap();
    assert_eq!(read, b"last");
    drop(held);
}

#[test]
fn a_slow_reader_makes_writes_stop_and_loses_nothing() {
    let (mut peer, socket) = connection();
    let block = vec![7_u8; 256 << 10];
    let mut sent = 0;
    let stopped = loop {
        match socket.write_vectored(&[IoSlice::new(&block), IoSlice::new(&block)]) {
            Transfer::Bytes(count) => sent += count,
            other => break other,
        }
    };
    assert_eq!(stopped, Transfer::WouldBlock);
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        all
    });
    wait(socket.as_fd(), libc::POLLOUT);
    drop(socket);
    let all = reader.join().unwrap();
    assert_eq!(all.len(), sent);
    assert!(all.iter().all(|byte| *byte == 7));
}

#[test]
fn a_connection_is_handed_to_another_thread_with_what_it_holds() {
    let (mut peer, socket) = connection();
    peer.write_all(b"before").unwrap();
    let fd = socket.into_fd();
    let other = thread::spawn(move || {
        let socket = Socket::from_fd(fd);
        wait_readable(socket.as_fd());
        let mut read = [0; 6];
        assert_eq!(socket.read_vectored(&mut [IoSliceMut::new(&mut read)]), Transfer::Bytes(6));
        assert_eq!(socket.write_vectored(&[IoSlice::new(&read)]), Transfer::Bytes(6));
        socket.peer_address().unwrap()
    });
    let mut back = [0; 6];
    peer.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"before");
    assert_eq!(other.join().unwrap(), peer.local_addr().unwrap());
}

#[test]
fn a_page_that_cannot_be_read_is_a_fault_and_the_connection_lives() {
    let (mut peer, socket) = connection();
    // SAFETY: the name is a C string.
    let number = unsafe { libc::memfd_create(c"page".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(number >= 0);
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    let file = unsafe { File::from_raw_fd(number) };
    file.set_len(4_096).unwrap();
    // SAFETY: a mapping at a place that the kernel chooses.
    let place = unsafe { libc::mmap(std::ptr::null_mut(), 4_096, libc::PROT_READ, libc::MAP_SHARED, number, 0) };
    assert_ne!(place, libc::MAP_FAILED);
    // SAFETY: the mapping is 4,096 bytes long and stays until the end of the test.
    let page: &[u8] = unsafe { std::slice::from_raw_parts(place.cast(), 4_096) };
    // As an unreadable sector of a mapped segment: the page is there, its bytes are not.
    file.set_len(0).unwrap();
    assert_eq!(socket.write_vectored(&[IoSlice::new(page)]), Transfer::Fault);
    assert_eq!(socket.write_vectored(&[IoSlice::new(b"sorry")]), Transfer::Bytes(5));
    let mut said = [0; 5];
    peer.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"sorry");
    // SAFETY: nothing refers to the mapping from here on.
    let unmapped = unsafe { libc::munmap(place, 4_096) };
    assert_eq!(unmapped, 0);
}

#[test]
fn failures_are_told_apart() {
    let listener = listen();
    // A socket that was never connected.
    let unconnected = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let socket = Socket::from_fd(unconnected.into());
    let read = socket.read_vectored(&mut [IoSliceMut::new(&mut [0; 1])]);
    assert_eq!(read, Transfer::Failed(libc::ENOTCONN));
    assert!(socket.peer_address().is_err());
    // A reset is a peer that has gone.
    let peer = TcpStream::connect(listener.local_address()).unwrap();
    let socket = accept(&listener);
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    wait_readable(socket.as_fd());
    assert_eq!(socket.read_vectored(&mut [IoSliceMut::new(&mut [0; 1])]), Transfer::Closed);
}

#[test]
fn listens_at_addresses_of_both_families() {
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    match Listener::bind(&ListenOptions::at(address)) {
        Ok(listener) => {
            let _peer = TcpStream::connect(listener.local_address()).unwrap();
            assert!(accept(&listener).peer_address().unwrap().is_ipv6());
        }
        // A machine without IPv6 says so, by name.
        Err(error) => assert!(error.to_string().contains("[::1]:0"), "{error}"),
    }
}

/// Lowers the limit of open files so that not one more can be opened, and returns the limit before.
fn exhaust_files() -> libc::rlimit {
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `before` is ours and lives through the call.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut before) }, 0);
    let free = ManuallyDrop::new(File::open("/dev/null").unwrap());
    let number = u64::try_from(free.as_raw_fd()).unwrap();
    drop(ManuallyDrop::into_inner(free));
    let limit = libc::rlimit { rlim_cur: number, ..before };
    // SAFETY: `limit` is ours and lives through the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    before
}

#[test]
fn without_descriptors_connections_are_turned_away_and_accept_goes_on() {
    const CHILD: &str = "COULEE_IO_NET_CHILD";
    const NAME: &str = "net::tests::without_descriptors_connections_are_turned_away_and_accept_goes_on";
    if env::var_os(CHILD).is_none() {
        let mut command = Command::new(env::current_exe().unwrap());
        let output = command.args(["--exact", NAME, "--nocapture"]).env(CHILD, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let listener = listen();
    let mut peers: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(listener.local_address()).unwrap()).collect();
    wait_readable(listener.as_fd());
    let before = exhaust_files();
    for peer in &mut peers {
        assert_eq!(listener.accept().unwrap_err(), AcceptError::OutOfFiles);
        // The peer learns of it at once.
        assert!(matches!(peer.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
    // No readiness is left that would spin.
    assert!(listener.accept().unwrap().is_none());
    // SAFETY: `before` is ours and lives through the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const before) }, 0);
    let _peer = TcpStream::connect(listener.local_address()).unwrap();
    drop(accept(&listener));
}
