//! What squid refused: read from its log while a session runs, and kept for later, a bounded list on the host. Every name in it
//! was chosen by the agent, so it is parsed strictly and shown without control characters.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::allowlist::Domain;
use crate::files::lock_file;

/// How much is kept, in bytes; when it is more, the older half goes.
const KEPT: usize = 256 << 10;
/// How many hosts of one session are kept.
pub(crate) const HOSTS: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Denial {
    /// Seconds since 1970.
    pub(crate) time: u64,
    pub(crate) host: String,
    pub(crate) reason: String,
}

/// The refusals of one session for one host and reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Of the last one.
    pub(crate) time: u64,
    pub(crate) repository: String,
    pub(crate) session: String,
    pub(crate) host: String,
    pub(crate) reason: String,
    pub(crate) count: u64,
}

pub(crate) const NOT_LISTED: &str = "not on the list";
const UNREACHABLE: &str = "on the list, but not to be reached: no network, no DNS, or nobody answers";

impl Denial {
    /// Reads a line of squid's log (`logformat pi` in squid.conf); `None` if nothing was refused there.
    pub(crate) fn parse(line: &str, allowed: &[Domain]) -> Option<Denial> {
        let fields: Vec<&str> = line.split(' ').collect();
        let [time, _, method, status, tag, _, _, _, sni, url] = fields[..] else { return None };
        let time = time.split('.').next()?.parse().ok()?;
        let (host, port) = if method == "CONNECT" {
            let (host, port) = url.rsplit_once(':')?;
            (host.to_owned(), port)
        } else {
            let rest = url.split_once("://")?.1;
            (rest.split(['/', '?', '#']).next()?.to_owned(), "")
        };
        let reason = if tag.starts_with("TCP_DENIED") {
            let name = Domain::parse(&host);
            if method != "CONNECT" {
                "plain HTTP: only TLS to port 443 goes out".to_owned()
            } else if host.starts_with('[') || host.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
                "an address: only names go out".to_owned()
            } else if port != "443" {
                format!("port {port}: only 443 is open")
            } else if name.is_ok_and(|name| allowed.iter().any(|entry| entry.covers(&name))) {
                "its name leads to a private address".to_owned()
            } else {
                NOT_LISTED.to_owned()
            }
        } else if method == "CONNECT" && tag.starts_with("NONE_NONE") && sni != "-" && !same_host(sni, &host) {
            format!("the TLS greeting names another host, {sni}")
        } else if method == "CONNECT" && tag.starts_with("NONE_NONE") && sni != "-" && status.starts_with('5') {
            // Squid says so in plain text, inside what was to become TLS: a client shows no more than "wrong version number".
            UNREACHABLE.to_owned()
        } else {
            return None;
        };
        Some(Denial { time, host: host.to_lowercase(), reason })
    }

    /// The command that would let it through, if one would.
    pub(crate) fn remedy(host: &str, reason: &str) -> Option<String> {
        let name = Domain::parse(host).ok().filter(|_| reason == NOT_LISTED)?;
        Some(format!("pi-docker allow {}", name.as_str()))
    }
}

fn same_host(a: &str, b: &str) -> bool {
    a.trim_end_matches('.').eq_ignore_ascii_case(b.trim_end_matches('.'))
}

/// Groups by host and reason.
pub(crate) fn group(denials: impl Iterator<Item = Denial>, repository: &str, session: &str) -> Vec<Kept> {
    let mut groups: BTreeMap<(String, String), Kept> = BTreeMap::new();
    for denial in denials {
        let key = (denial.host.clone(), denial.reason.clone());
        if let Some(kept) = groups.get_mut(&key) {
            kept.count += 1;
            kept.time = kept.time.max(denial.time);
        } else if groups.len() < HOSTS {
            let (repository, session) = (repository.to_owned(), session.to_owned());
            groups.insert(
                key,
                Kept { time: denial.time, repository, session, host: denial.host, reason: denial.reason, count: 1 },
            );
        }
    }
    groups.into_values().collect()
}

/// Keeps what a session was refused, after its end.
pub(crate) fn keep(file: &Path, denied: &[Kept]) -> Result<()> {
    if denied.is_empty() {
        return Ok(());
    }
    let cannot = || format!("cannot write '{}'", file.display());
    // Its own lock: the file itself is replaced.
    let lock = lock_file(&file.with_extension("lock"))?;
    lock.lock().with_context(cannot)?;
    let mut text = fs::read_to_string(file).unwrap_or_default();
    for kept in denied {
        text += &(serde_json::to_string(kept).with_context(cannot)? + "\n");
    }
    if text.len() > KEPT {
        let from = text.len() - KEPT / 2;
        let from =
            text.as_bytes()[from..].iter().position(|&b| b == b'\n').map_or(text.len(), |newline| from + newline + 1);
        text.drain(..from);
    }
    let new = file.with_extension("new");
    fs::write(&new, &text).and_then(|()| fs::rename(&new, file)).with_context(cannot)
}

/// What was kept; a line that is damaged is left out.
pub(crate) fn kept(file: &Path) -> Vec<Kept> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// How long ago, in words.
pub(crate) fn ago(time: u64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    match now.saturating_sub(time) {
        0..=59 => "just now".to_owned(),
        seconds @ 60..=3599 => format!("{} min ago", seconds / 60),
        seconds @ 3600..=172_799 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(line: &str) -> Option<(String, String)> {
        let allowed = [Domain::parse("github.com").unwrap()];
        Denial::parse(line, &allowed).map(|d| (d.host, d.reason))
    }

    #[test]
    fn a_refusal_is_told_from_an_answer_and_says_why() {
        for (line, host, reason) in [
            ("1795465081.058 10.0.0.3 CONNECT 200 TCP_DENIED - 0 114 - Example.com:443", "example.com", NOT_LISTED),
            (
                "1795465081.094 10.0.0.3 GET 403 TCP_DENIED - 3392 121 - http://github.com/x",
                "github.com",
                "plain HTTP: only TLS to port 443 goes out",
            ),
            (
                "1795465081.112 10.0.0.3 CONNECT 200 TCP_DENIED - 0 110 - github.com:22",
                "github.com",
                "port 22: only 443 is open",
            ),
            (
                "1795465081.136 10.0.0.3 CONNECT 200 TCP_DENIED - 0 106 - 1.2.3.4:443",
                "1.2.3.4",
                "an address: only names go out",
            ),
            (
                "1795465081.136 10.0.0.3 CONNECT 403 TCP_DENIED/403 - 0 106 - github.com:443",
                "github.com",
                "its name leads to a private address",
            ),
            (
                "1795465081.161 10.0.0.3 CONNECT 200 NONE_NONE - 0 112 evil.example github.com:443",
                "github.com",
                "the TLS greeting names another host, evil.example",
            ),
            (
                "1795548379.693 10.0.0.3 CONNECT 500 NONE_NONE - 0 0 api.github.com api.github.com:443",
                "api.github.com",
                UNREACHABLE,
            ),
        ] {
            assert_eq!(denial(line), Some((host.to_owned(), reason.to_owned())), "{line}");
        }
        for line in [
            "1795465081.242 10.0.0.3 CONNECT 200 NONE_NONE - 0 120 api.github.com api.github.com:443",
            "1795465081.242 10.0.0.3 CONNECT 200 TCP_TUNNEL 1.1.1.1 900 120 github.com github.com:443",
            "1795465081.242 10.0.0.3 CONNECT 500 NONE_NONE - 0 0 - github.com:443",
            "1795465081.243 10.0.0.3 - 0 NONE_NONE - 0 517 - error:transaction-end-before-headers",
            "2026/11/23 20:18:00| Starting Squid Cache",
            "",
        ] {
            assert_eq!(denial(line), None, "{line}");
        }
    }

    #[test]
    fn only_what_a_command_would_open_has_a_remedy() {
        assert_eq!(Denial::remedy("x.com", NOT_LISTED).as_deref(), Some("pi-docker allow x.com"));
        assert_eq!(Denial::remedy("x.com", "port 22: only 443 is open"), None);
        assert_eq!(Denial::remedy("$(evil)", NOT_LISTED), None);
    }

    #[test]
    fn the_kept_list_is_bounded_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("denied.log");
        for session in 0..40 {
            let denials =
                (0..300).map(|n| Denial { time: session, host: format!("{n}.example.com"), reason: NOT_LISTED.into() });
            keep(&file, &group(denials, "r", &session.to_string())).unwrap();
        }
        assert!(fs::metadata(&file).unwrap().len() <= KEPT as u64);
        assert_eq!(kept(&file).last().unwrap().session, "39");
        assert!(kept(&file).iter().all(|kept| kept.count == 1));
    }
}
