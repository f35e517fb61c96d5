//! Proof, before pi starts, that the way out is closed: what must not answer is asked, and if it does, the session does not start.
//!
//! Connections go to the launcher's own listeners on the host, at the addresses it gave and at the first address of each network of
//! ours (the host's end of the bridge). A query for an outside name goes to every resolver. All of it within one deadline.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use crate::failure::{Failure, Kind, Result};
use crate::sys::{files, net};

const PATIENCE: Duration = Duration::from_millis(140);
const OUTSIDE: &str = "example.com";

/// Fails if any of the launcher's listeners, or the outside by DNS, can be reached.
pub(crate) fn check(listeners: &[SocketAddrV4]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    // Where nothing listens, nothing at the host's ends would.
    let hosts = if listeners.is_empty() { Vec::new() } else { host_ends(&read("/proc/net/route")) };
    let resolvers = resolvers(&read("/etc/resolv.conf"));
    let query = query();
    let mut streams = Vec::new();
    let mut targets = Vec::new();
    for target in with_host_ends(listeners, &hosts) {
        // An error here is an answer: no route, or refused at once.
        if let Ok(stream) = net::begin_stream(target) {
            streams.push(stream);
            targets.push(target);
        }
    }
    let mut sockets: Vec<UdpSocket> = resolvers.iter().filter_map(|resolver| ask(*resolver, &query)).collect();
    while !(streams.is_empty() && sockets.is_empty()) {
        let ready = net::wait_any(&streams, &sockets, deadline).map_err(|error| {
            Failure::new(Kind::System, format!("cannot check the network: {}", crate::failure::cause(&error)))
        })?;
        if ready.is_empty() {
            break;
        }
        for index in ready.into_iter().rev() {
            if index >= streams.len() {
                let socket = sockets.swap_remove(index - streams.len());
                if answers(&socket, &query) {
                    return Err(open(&format!("an outside name by DNS ({OUTSIDE})")));
                }
            } else {
                let target = targets.swap_remove(index);
                if streams.swap_remove(index).peer_addr().is_ok() {
                    return Err(open(&format!("the host at {target}")));
                }
            }
        }
    }
    Ok(())
}

/// An empty text for what is not there.
fn read(path: &str) -> String {
    files::text(path).unwrap_or_default()
}

fn open(what: &str) -> Failure {
    Failure::new(Kind::NetworkOpen, format!("cannot start pi: the container can reach {what}"))
        .hint("the network of this session is not closed; `pi-docker doctor` says why")
}

/// The listeners themselves, and their ports at the host's end of each network.
fn with_host_ends(listeners: &[SocketAddrV4], hosts: &[Ipv4Addr]) -> Vec<SocketAddrV4> {
    let mut targets = listeners.to_vec();
    for host in hosts {
        let there = listeners.iter().map(|listener| SocketAddrV4::new(*host, listener.port()));
        let there: Vec<_> = there.filter(|target| !targets.contains(target)).collect();
        targets.extend(there);
    }
    targets
}

/// From the kernel's table of routes: the first address of each network that is reached directly, and every gateway.
fn host_ends(routes: &str) -> Vec<Ipv4Addr> {
    let address = |field: &str| u32::from_str_radix(field, 16).ok().map(u32::to_ne_bytes).map(Ipv4Addr::from);
    let ends = routes.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let network = address(fields.next()?)?;
        let gateway = address(fields.next()?)?;
        let first = Ipv4Addr::from(u32::from(network).wrapping_add(1));
        Some(if gateway.is_unspecified() { first } else { gateway })
    });
    ends.collect()
}

fn resolvers(resolv_conf: &str) -> Vec<Ipv4Addr> {
    let lines = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    lines.filter_map(|address| address.trim().parse().ok()).collect()
}

/// A query for the address of a name that nobody has asked for before, so that no cache can answer it.
fn query() -> Vec<u8> {
    let label = format!("{:016x}", RandomState::new().hash_one(0u64));
    let mut query = b"pi".to_vec();
    // Recursion desired, one question, nothing else.
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in [label.as_str()].into_iter().chain(OUTSIDE.split('.')) {
        query.push(u8::try_from(label.len()).unwrap_or(63));
        query.extend(label.as_bytes());
    }
    // End of the name, type A, class IN.
    query.extend([0, 0, 1, 0, 1]);
    query
}

fn ask(resolver: Ipv4Addr, query: &[u8]) -> Option<UdpSocket> {
    let socket = net::datagrams_to(SocketAddrV4::new(resolver, 53)).ok()?;
    socket.send(query).ok()?;
    Some(socket)
}

/// Whether somebody outside has answered: with an address, or that there is no such name. A resolver that has nobody to ask says so.
fn answers(socket: &UdpSocket, query: &[u8]) -> bool {
    const NO_ERROR: u8 = 0;
    const NO_SUCH_NAME: u8 = 3;
    let mut reply = [0u8; 512];
    let Ok(length) = socket.recv(&mut reply) else { return false };
    let is_reply = length >= 12 && reply[..2] == query[..2] && reply[2] & 0x80 != 0;
    is_reply && matches!(reply[3] & 0x0f, NO_ERROR | NO_SUCH_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_end_is_the_first_address_of_each_network_and_every_gateway() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
            eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\n\
            eth0\t000012AC\t00000000\t0001\t0\t0\t0\t0000FFFF\n";
        assert_eq!(host_ends(routes), [Ipv4Addr::new(172, 17, 0, 1), Ipv4Addr::new(172, 18, 0, 1)]);
        assert!(host_ends("").is_empty());
    }

    #[test]
    fn resolvers_are_read_as_the_c_library_reads_them() {
        let text = "# comment\nsearch x\nnameserver 127.0.0.11\n  nameserver\t10.0.0.1\nnameserver ::1\n";
        assert_eq!(resolvers(text), [Ipv4Addr::new(127, 0, 0, 11), Ipv4Addr::new(10, 0, 0, 1)]);
    }

    #[test]
    fn listeners_are_tried_where_they_are_and_at_the_hosts_end() {
        let listeners = ["10.0.0.9:4000".parse().expect("address")];
        let all = with_host_ends(&listeners, &[Ipv4Addr::new(172, 18, 0, 1), Ipv4Addr::new(172, 18, 0, 1)]);
        assert_eq!(all, ["10.0.0.9:4000".parse().expect("address"), "172.18.0.1:4000".parse().expect("address")]);
    }
}
