//! Sockets and descriptors that must not make this process wait: connections that are begun, and one wait for all of them; datagrams
//! that are announced by a signal; whether a line can be written.
//!
//! The standard library has sockets, but none that begins to connect without waiting.
#![expect(unsafe_code, reason = "a connection that does not block, a socket that signals")]

use std::io;
use std::net::{SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What a reader gets to make room, in milliseconds: a stopped one must not hold up the end of the session.
const PATIENCE: u8 = 100;

/// Begins a connection and returns at once; the socket becomes writable when it is decided.
pub(crate) fn begin_stream(address: SocketAddrV4) -> io::Result<TcpStream> {
    connect(libc::SOCK_STREAM, address).map(Into::into)
}

/// A socket for datagrams to and from this address, which never waits.
pub(crate) fn datagrams_to(address: SocketAddrV4) -> io::Result<UdpSocket> {
    connect(libc::SOCK_DGRAM, address).map(Into::into)
}

fn connect(kind: libc::c_int, address: SocketAddrV4) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(libc::AF_INET, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let raw = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    };
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the address is valid for the length that is passed.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const raw).cast(), length) };
    let error = io::Error::last_os_error();
    if result == 0 || error.raw_os_error() == Some(libc::EINPROGRESS) {
        return Ok(socket);
    }
    Err(error)
}

/// From now on the kernel sends this process SIGIO when there is something to read, and reading never waits.
pub(crate) fn announce(socket: &UnixDatagram) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    // SAFETY: no pointer is passed.
    let done = unsafe {
        libc::fcntl(fd, libc::F_SETOWN, libc::getpid()) == 0
            && libc::fcntl(fd, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until a connection is decided or a datagram has come on any of these, at most until `deadline`. The indices that are ready:
/// connections first, then datagram sockets; empty when the time is over.
pub(crate) fn wait_any(streams: &[TcpStream], datagrams: &[UdpSocket], deadline: Instant) -> io::Result<Vec<usize>> {
    let mut polled: Vec<PollFd> = Vec::with_capacity(streams.len() + datagrams.len());
    polled.extend(streams.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLOUT)));
    polled.extend(datagrams.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)));
    let left = deadline.saturating_duration_since(Instant::now()).as_millis();
    poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
    Ok(polled.iter().enumerate().filter(|(_, p)| p.any().unwrap_or(false)).map(|(index, _)| index).collect())
}

/// Whether a few bytes can be written without waiting for whoever reads them.
pub(crate) fn is_writable(fd: &impl AsFd) -> bool {
    let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    poll(&mut polled, PATIENCE).is_ok() && polled[0].revents().is_some_and(|r| r.contains(PollFlags::POLLOUT))
}
