//! What went through the proxy, by host: the bytes that squid counted in each tunnel.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::allowlist::Domain;

/// How many hosts are told apart.
pub(crate) const MOST: usize = 200;

/// What went to one host and came from it, in bytes; TLS included.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Host {
    pub(crate) host: String,
    pub(crate) connections: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// Reads squid's log (`logformat pi` in squid.conf). Most was sent to the first.
pub(crate) fn hosts(log: &str) -> Vec<Host> {
    let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
    for line in log.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, _, "CONNECT", _, "TCP_TUNNEL", _, received, sent, _, url] = fields[..] else { continue };
        let (Ok(received), Ok(sent)) = (received.parse::<u64>(), sent.parse::<u64>()) else { continue };
        let Some(name) = url.rsplit_once(':').and_then(|(name, _)| Domain::parse(name).ok()) else { continue };
        if hosts.len() >= MOST && !hosts.contains_key(name.as_str()) {
            continue;
        }
        let host = hosts.entry(name.as_str().to_owned()).or_default();
        name.as_str().clone_into(&mut host.host);
        host.connections += 1;
        host.sent = host.sent.saturating_add(sent);
        host.received = host.received.saturating_add(received);
    }
    let mut hosts: Vec<Host> = hosts.into_values().collect();
    hosts.sort_by_key(|host| std::cmp::Reverse(host.sent));
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_by_host() {
        let log = "1.1 10.0.0.3 CONNECT 200 NONE_NONE - 0 116 a.com a.com:443\n\
                   1.1 10.0.0.3 CONNECT 200 TCP_TUNNEL 1.1.1.1 900 120 a.com a.com:443\n\
                   1.1 10.0.0.3 CONNECT 200 TCP_TUNNEL 1.1.1.1 100 5 A.com A.com:443\n\
                   1.1 10.0.0.3 CONNECT 200 TCP_TUNNEL 1.1.1.1 1 9999 b.com b.com:443\n\
                   nonsense\n";
        let hosts = hosts(log);
        let shown: Vec<_> = hosts.iter().map(|h| (h.host.as_str(), h.connections, h.sent, h.received)).collect();
        assert_eq!(shown, [("b.com", 1, 9999, 1), ("a.com", 2, 125, 1000)]);
    }
}
