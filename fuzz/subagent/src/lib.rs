//! What pi-subagent reads that somebody else may have written, and what must be true of it whatever was written.

#![allow(dead_code, unused_imports, reason = "the whole program is here, and only its readers are called")]

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// The address of a remote: a host and a path, or an error that does not show what may be a password.
pub fn remote_url(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match remote::Address::parse(&text) {
        Ok(address) => {
            assert!(!address.host.is_empty() && !address.host.contains(['@', '/']), "{address:?}");
            if let Ok(slug) = address.slug("https://api.github.com") {
                assert_eq!(address.host, "github.com");
                assert!(!slug.owner.is_empty() && !slug.name.is_empty() && !slug.name.contains('/'));
            }
        }
        Err(error) => {
            let said = format!("{error:?}");
            let secret = text.split_once("://").and_then(|(_, rest)| rest.split_once('@')).map(|(before, _)| before);
            let secret = secret.filter(|secret| secret.len() > 8 && secret.bytes().all(|b| b.is_ascii_alphanumeric()));
            assert!(secret.is_none_or(|secret| text.matches(secret).count() > 1 || !said.contains(secret)), "{said}");
        }
    }
}

/// pi's events: cut anywhere, they mean the same, and no line is kept longer than it may be.
pub fn events(data: &[u8]) {
    let (mut whole, mut cut) = (Vec::new(), Vec::new());
    let mut lines = stream::Lines::default();
    lines.feed(data, |event| whole.push(event), |_| ());
    let mut lines = stream::Lines::default();
    for part in data.chunks(if data.len() < 4096 { 1 + data.len() % 7 } else { 4097 }) {
        lines.feed(part, |event| cut.push(event), |_| ());
    }
    assert_eq!(whole, cut);
    assert_eq!(whole.len(), data.iter().filter(|byte| **byte == b'\n').count());
    let text = String::from_utf8_lossy(data);
    assert!(stream::clip(&text, 40).chars().count() <= 41);
}

/// The state of a task, and a specification: a damaged one is an error, never a panic; a task's name is a word.
pub fn state_file(data: &[u8]) {
    if let Ok(state) = serde_json::from_slice::<store::State>(data) {
        let written = serde_json::to_vec(&state).unwrap();
        serde_json::from_slice::<store::State>(&written).unwrap();
        let name = serde_json::to_string(&state.task).unwrap();
        let name = name.trim_matches('"');
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{name:?}");
    }
    let _ = serde_json::from_slice::<task::Spec>(data);
}
