//! The login: the host's auth.json, held by a descriptor from the start, and the copy that pi reads and refreshes.
//!
//! The host's file is only ever changed in place, and only while it holds what this session found in it or put there. What comes out
//! of the container was written by the agent: nothing of it but refreshed tokens and, in auth mode, a new login goes back.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde_json::Value;

use crate::failure::{Failure, Kind, Result, cause};
use crate::json::{self, Object};
use crate::sys::files::{self, Place};

const LIMIT: u64 = 1 << 20;
const EMPTY: &[u8] = b"{}";

pub(crate) struct Login {
    host: Option<File>,
    /// What this session last saw or put into the host's file, byte for byte.
    known: Vec<u8>,
    found: Object,
    /// Keys that the agent's copy got beside what was found; none of the host's file's business.
    given: Object,
    shared: bool,
    /// Whether the host's file holds blanks that are not known to be on the disk yet.
    begun: bool,
}

/// What has become of the host's file; the word in result.json.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// There is none, or it is none of this mode's business.
    None,
    Wiped,
    Kept,
    /// A token that pi has refreshed was written back.
    Refreshed,
    /// A new login was written back.
    LoggedIn,
    /// Somebody else has changed it meanwhile: left alone.
    Changed,
    Failed,
}

impl State {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Wiped => "wiped",
            Self::Kept => "kept",
            Self::Refreshed => "refreshed",
            Self::LoggedIn => "logged in",
            Self::Changed => "changed",
            Self::Failed => "failed",
        }
    }
}

impl Login {
    pub(crate) fn none() -> Self {
        Self { host: None, known: Vec::new(), found: Object::new(), given: Object::new(), shared: false, begun: false }
    }

    /// Opens the host's file for the whole session.
    pub(crate) fn open(place: Option<&Place>) -> Result<Self> {
        let Some(place) = place else { return Ok(Self::none()) };
        let failed = |error: &std::io::Error| Failure::preparing("open the host's 'auth.json'", &cause(error));
        let host = place.reopen_file().map_err(|error| failed(&error))?;
        let known = files::read_bounded(&host, LIMIT).map_err(|error| failed(&error))?;
        let found = providers(&known).ok_or_else(|| {
            Failure::new(Kind::Preparation, "cannot read '~/.pi/agent/auth.json': not a JSON object")
                .hint("repair or remove the file, then log in again with `pi-docker auth`; it was left as it is")
        })?;
        Ok(Self { host: Some(host), known, found, given: Object::new(), shared: false, begun: false })
    }

    /// What pi gets: the host's login, and the keys for providers that it has none for.
    pub(crate) fn for_agent(&mut self, keys: &Object) -> Result<String> {
        let mut providers = self.found.clone();
        for (provider, key) in keys {
            if !self.found.contains_key(provider) {
                self.given.insert(provider.clone(), key.clone());
                providers.insert(provider.clone(), key.clone());
            }
        }
        json::text(&providers).ok_or_else(|| Failure::preparing("copy the host's 'auth.json'", "a fraction in it"))
    }

    /// Writes over the host's file and has the disk begin with it, without waiting for the disk: `wipe` does that.
    pub(crate) fn begin_wipe(&mut self) {
        if self.begun {
            return;
        }
        let Ok(file) = self.ours(EMPTY, State::Wiped) else { return };
        if let Ok(blank) = blank(file, EMPTY) {
            files::begin_write_back(file);
            (self.known, self.begun) = (blank, true);
        }
    }

    /// Empties the host's file.
    pub(crate) fn wipe(&mut self) -> State {
        self.replace(EMPTY, State::Wiped)
    }

    /// Keeps the host's file, with what `copy`, the one pi has used, has refreshed in it.
    pub(crate) fn keep(&mut self, copy: Option<&[u8]>) -> State {
        let refreshed = copy.and_then(providers).and_then(|copy| refreshed(&self.found, &copy));
        match refreshed.and_then(|providers| json::text(&providers)) {
            Some(content) if self.host.is_some() => self.replace(content.as_bytes(), State::Refreshed),
            _ if self.host.is_some() => State::Kept,
            _ => State::None,
        }
    }

    /// In auth mode: brings what changed in `copy` to the host. The providers that have a new login; `None` if nothing changed.
    pub(crate) fn share(&mut self, copy: &[u8]) -> Option<(State, Vec<String>)> {
        let copy = but(&providers(copy)?, |provider, login| self.given.get(provider) == Some(login));
        if copy == self.found {
            return None;
        }
        let current = self.current().as_deref().and_then(providers)?;
        // A login that pi has removed is removed, unless the host has another one by now.
        let removed =
            |provider: &str, login: &Value| !copy.contains_key(provider) && self.found.get(provider) == Some(login);
        let mut current = but(&current, removed);
        let mut new = Vec::new();
        for (provider, login) in &copy {
            if self.found.get(provider) != Some(login) && !has_command(login) {
                current.insert(provider.clone(), login.clone());
                new.push(provider.clone());
            }
        }
        self.found = copy;
        self.known = self.current().unwrap_or_default();
        let state = self.replace(json::text(&current)?.as_bytes(), State::LoggedIn);
        self.shared |= state == State::LoggedIn && !new.is_empty();
        Some((state, new))
    }

    /// In auth mode: what has become of the host's file so far.
    pub(crate) fn state(&self) -> State {
        match self.host {
            None => State::None,
            Some(_) if self.shared => State::LoggedIn,
            Some(_) => State::Kept,
        }
    }

    /// Writes over the host's file, if it is still the one this session knows.
    fn replace(&mut self, content: &[u8], done: State) -> State {
        let file = match self.ours(content, done) {
            Ok(file) => file,
            Err(state) => return state,
        };
        let blanks = if self.begun { Ok(()) } else { blank(file, content).map(drop) };
        if blanks.and_then(|()| settle(file, content)).is_err() {
            return State::Failed;
        }
        self.known = content.to_vec();
        done
    }

    /// The host's file, if it has to be written to become `content` and is still the one this session knows; else what it has become.
    fn ours(&self, content: &[u8], done: State) -> std::result::Result<&File, State> {
        let file = self.host.as_ref().ok_or(State::None)?;
        if files::link_count(file) == 0 {
            return Err(State::Changed);
        }
        match self.current() {
            Some(current) if current == content => Err(done),
            Some(current) if current == self.known => Ok(file),
            // Somebody else has wiped it already.
            Some(current) if done == State::Wiped && providers(&current).is_some_and(|p| p.is_empty()) => Err(done),
            Some(_) => Err(State::Changed),
            None => Err(State::Failed),
        }
    }

    fn current(&self) -> Option<Vec<u8>> {
        files::read_bounded(self.host.as_ref()?, LIMIT).ok()
    }
}

/// The copy in the agent directory, as it is now; `None` if there is none that could be read.
pub(crate) fn copy(agent: &Place) -> Option<Vec<u8>> {
    agent.read("auth.json", LIMIT).ok()
}

/// Empties the copy, or removes what the agent has put in its place. The directory is the one that was made at the start.
pub(crate) fn wipe_copy(agent: &Place) {
    let file = agent.open_rw("auth.json").ok().filter(|file| files::link_count(file) == 1);
    if file.is_none_or(|file| overwrite(&file, EMPTY).is_err()) {
        let _ = agent.unlink("auth.json");
    }
}

/// In place, blanks over all that was there: on the disk too, a secret is gone before the file gets shorter. It is JSON all the time.
fn overwrite(file: &File, content: &[u8]) -> io::Result<()> {
    blank(file, content)?;
    settle(file, content)
}

/// The first half of it: what the file holds now.
fn blank(file: &File, content: &[u8]) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    let mut padded = content.to_vec();
    padded.resize(length.max(content.len()), b' ');
    file.write_all_at(&padded, 0)?;
    Ok(padded)
}

/// The second half, when the blanks are on the disk.
fn settle(file: &File, content: &[u8]) -> io::Result<()> {
    file.sync_data()?;
    file.set_len(content.len() as u64)
}

/// An empty file is an empty login: it is what a machine leaves behind that went down at the wrong moment.
fn providers(content: &[u8]) -> Option<Object> {
    if content.trim_ascii().is_empty() {
        return Some(Object::new());
    }
    json::object(content)
}

/// All entries but those.
fn but(object: &Object, those: impl Fn(&str, &Value) -> bool) -> Object {
    let mut rest = Object::new();
    for (name, value) in object {
        if !those(name, value) {
            rest.insert(name.clone(), value.clone());
        }
    }
    rest
}

/// What may go back to the host after a session: the same providers with the same fields, where nothing but the tokens of a login
/// and their expiry has changed. `None` if that is not so, or if nothing has changed.
fn refreshed(found: &Object, copy: &Object) -> Option<Object> {
    const REFRESHED: [&str; 3] = ["access", "expires", "refresh"];
    let mut result = found.clone();
    for (provider, before) in found {
        let (before, after) = (before.as_object()?, copy.get(provider)?.as_object()?);
        if before == after {
            continue;
        }
        let is_login = before.get("type").and_then(Value::as_str) == Some("oauth");
        let same_fields = before.len() == after.len() && before.keys().all(|field| after.contains_key(field));
        let only_tokens = after.iter().all(|(field, value)| match before.get(field) {
            Some(old) if REFRESHED.contains(&field.as_str()) => {
                (old.is_string() && value.is_string()) || (old.is_number() && value.is_number())
            }
            old => old == Some(value),
        });
        if !is_login || !same_fields || !only_tokens || has_command(&Value::from(after.clone())) {
            return None;
        }
        result.insert(provider.clone(), after.clone().into());
    }
    (result != *found).then_some(result)
}

/// pi executes a value that starts with `!`, on the host too.
fn has_command(value: &Value) -> bool {
    match value {
        Value::String(text) => text.trim_start().starts_with('!'),
        Value::Array(values) => values.iter().any(has_command),
        Value::Object(fields) => fields.values().any(has_command),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Object {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn only_refreshed_tokens_go_back_to_the_host() {
        let login = |access: &str, url: &str| json!({"type": "oauth", "access": access, "refresh": "r", "expires": 1, "url": url});
        let found = object(json!({"anthropic": login("old", "u"), "openai": {"type": "api_key", "key": "k"}}));
        let with = |name: &str, value: Value| {
            let mut copy = found.clone();
            copy.insert(name.into(), value);
            refreshed(&found, &copy)
        };
        let good = with("anthropic", login("new", "u")).expect("a refreshed token");
        assert_eq!(good["anthropic"]["access"], "new");
        assert_eq!(with("added-from-a-key", json!({"type": "api_key", "key": "x"})), None, "nothing to write");
        assert_eq!(with("anthropic", login("new", "https://elsewhere")), None);
        assert_eq!(with("anthropic", login("!touch /tmp/x", "u")), None);
        assert_eq!(with("anthropic", json!({"type": "oauth", "access": "new"})), None);
        assert_eq!(with("openai", json!({"type": "api_key", "key": "other"})), None);
        assert_eq!(with("anthropic", json!("text")), None);
        assert_eq!(refreshed(&found, &Object::new()), None);
    }

    #[test]
    fn a_wipe_that_has_begun_is_done_only_when_it_has_reached_its_end() {
        let place = std::env::temp_dir().join(format!("auth-{}", std::process::id()));
        let known = br#"{"anthropic": {}}"#;
        std::fs::write(&place, known).expect("a file");
        let open = |writable| File::options().read(true).write(writable).open(&place).expect("a file");
        let mut login = Login { host: Some(open(true)), known: known.to_vec(), ..Login::none() };
        login.begin_wipe();
        let begun = std::fs::read_to_string(&place).expect("a file");
        assert!(begun.trim_end() == "{}" && begun.len() == known.len());
        // One that cannot be shortened stands for one that cannot be flushed.
        let writable = login.host.replace(open(false));
        assert!(login.wipe() == State::Failed);
        login.host = writable;
        assert!(login.wipe() == State::Wiped && login.wipe() == State::Wiped);
        assert_eq!(std::fs::read(&place).expect("a file"), EMPTY);
        std::fs::remove_file(place).expect("a file");
    }

    #[test]
    fn an_empty_file_is_an_empty_login_and_anything_but_an_object_is_damaged() {
        assert_eq!(providers(b""), Some(Object::new()));
        assert_eq!(providers(b" \n"), Some(Object::new()));
        assert_eq!(providers(b"{}"), Some(Object::new()));
        for damaged in [&b"[]"[..], b"null", b"{", b"{} {}", b"\0\0\0\0"] {
            assert_eq!(providers(damaged), None);
        }
    }
}
