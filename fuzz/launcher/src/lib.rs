//! What the launcher reads that somebody else may have written, and what must be true of it whatever was written.

#![allow(dead_code, unused_imports, reason = "the whole program is here, and only its readers are called")]

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn is_name(name: &str) -> bool {
    let name = name.strip_prefix('.').unwrap_or(name);
    name.contains('.') && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
}

/// A list of names: whatever is taken is what squid takes, no entry covers another, and it is read back as it was written.
pub fn allowlist(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let entries: Vec<_> = text.lines().filter_map(|line| allowlist::parse_line(line).ok().flatten()).collect();
    let merged = allowlist::merge(entries);
    let written = allowlist::render(&merged);
    for (line, domain) in written.lines().zip(&merged) {
        assert!(is_name(line), "{line:?}");
        assert_eq!(allowlist::Domain::parse(line).unwrap(), *domain);
        assert!(!merged.iter().any(|other| other != domain && other.covers(domain)), "{line} is covered");
    }
    assert_eq!(written.lines().count(), merged.len());
    assert_eq!(allowlist::merge(allowlist::parse_list("x", &written).unwrap()), merged);
    let _ = allowlist::parse_list("x", &text);
}

/// Squid's log: what is kept of it is bounded, and a command that is proposed is a name and nothing else.
pub fn squid_log(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let allowed = allowlist::merge([allowlist::Entry::Allow(allowlist::Domain::parse(".npmjs.org").unwrap())]);
    let denials = text.lines().filter_map(|line| denied::Denial::parse(line, &allowed));
    let kept = denied::group(denials, "r", "s");
    assert!(kept.len() <= 200);
    for kept in kept {
        if let Some(command) = denied::Denial::remedy(&kept.host, &kept.reason) {
            assert!(command.strip_prefix("pi-docker allow ").is_some_and(is_name), "{command:?}");
        }
        assert!(!terminal::printable(&kept.host).chars().any(char::is_control));
    }
    for host in traffic::hosts(&text) {
        assert!(is_name(&host.host), "{:?}", host.host);
    }
}

/// A repository's path: its name is a word for docker, and compose gets the path as it is, whatever is in it.
pub fn compose(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let root = Path::new("/").join(text.replace('\0', ""));
    let owner = cli::Owner { uid: 1000, gid: 1000 };
    let place = repo::Place { root: root.clone(), subfolder: PathBuf::new(), owner };
    let name = place.safe_name();
    assert!(name.len() <= 30 && name.starts_with(|c: char| c.is_ascii_alphanumeric()), "{name:?}");
    assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{name:?}");
    let names = plan::Names::new(&name, &place.id(), "0123abcd");
    let there = Path::new("/x");
    let places = plan::Places { home: there, root: &root, subfolder: there, state: there, run: there, auth: there };
    let choices = plan::Choices {
        pi_args: &[],
        user: owner,
        keep_auth: false,
        compose_files: &[],
        compose_override: None,
        interactive: false,
        selinux: false,
        canary: &[],
        git: &[],
        export: true,
        input: true,
    };
    let overlay = overlay::render(&plan::Plan::new(names, &places, &choices));
    assert!(!overlay.chars().any(|c| c.is_control() && c != '\n'), "{overlay:?}");
    let overlay: Value = serde_json::from_str(&overlay).unwrap();
    let source = overlay["services"]["pi"]["volumes"][0]["source"].as_str().unwrap();
    assert_eq!(source.replace("$$", "\u{0}").replace('$', "lost").replace('\u{0}', "$"), root.to_str().unwrap());
    assert_eq!(overlay["services"]["pi"]["volumes"][0]["target"], "/workspace");
}

/// Files that are read again later: a damaged one is an error, never a panic.
pub fn kept_files(data: &[u8]) {
    let _ = serde_json::from_slice::<run_dir::Record>(data);
    let _ = serde_json::from_slice::<exit_report::Report>(data).map(|report| report.lines());
    for line in String::from_utf8_lossy(data).lines() {
        let _ = serde_json::from_str::<denied::Kept>(line).map(|kept| denied::Denial::remedy(&kept.host, &kept.reason));
    }
    let text = String::from_utf8_lossy(data);
    let _: Option<ollama::Server> = text.parse().ok();
    let _: Option<cli::Owner> = text.parse().ok();
    let _: BTreeMap<String, String> = BTreeMap::new();
}
