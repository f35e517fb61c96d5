//! The agent directory of this container: the user's copies, the default rules and extensions, and the trust in the repository.
//!
//! It is on tmpfs and written as the user. The repository is read (as the user, no link out of it is followed), never written: pi
//! loads all of this from the agent directory, for itself and for every subagent.

use std::io::Write;

use crate::config::{Config, Mode};
use crate::control::Control;
use crate::failure::{Failure, Result, cause};
use crate::json;
use crate::sys::files::{Kind, Place};

const COPY_LIMIT: u64 = 64 << 20;
const RULES_LIMIT: u64 = 1 << 20;
const DEPTH_LIMIT: usize = 16;
/// What has an owner of its own in the agent directory, and is never a copy.
const NOT_COPIED: &[&str] = &["AGENTS.md", "auth.json", "auth.json.lock", "sessions", "settings.json", "trust.json"];
/// Rules that pi finds in the repository itself, and the one that it does not.
const REPOSITORY_RULES: &[&str] = &["AGENTS.md", "AGENTS.override.md", "CLAUDE.md", ".pi/AGENTS.md"];

/// Fills the agent directory below `home`; the directory.
pub(crate) fn prepare(config: &Config, home: &Place, input: &Place, control: &Control) -> Result<Place> {
    let agent =
        agent_directory(home).map_err(|error| Failure::preparing("make the agent directory", &cause(&error)))?;
    let copies = input.dir("agent").ok();
    if let Some(copies) = &copies {
        let mut copier = Copier { left: COPY_LIMIT, control };
        copier.copy(copies, &agent, 0, &|name| NOT_COPIED.contains(&name))?;
    }
    settings(config, copies.as_ref(), &agent)?;
    if config.mode == Mode::Session {
        let workspace =
            Place::directory("/workspace").map_err(|error| Failure::preparing("open '/workspace'", &cause(&error)))?;
        rules(&workspace, copies.as_ref(), &agent, control)?;
        extensions(config, &workspace, &agent, control)?;
    }
    Ok(agent)
}

fn agent_directory(home: &Place) -> std::io::Result<Place> {
    let pi = home.make_dir(".pi", 0o700)?;
    let agent = pi.make_dir("agent", 0o700)?;
    // The runtime gives mount points the mode they have in the image.
    home.set_mode(".", 0o700)?;
    home.set_mode(".pi", 0o700)?;
    pi.set_mode("agent", 0o700)?;
    Ok(agent)
}

/// The user's settings, and what this program has to say about the repository's own `.pi`.
fn settings(config: &Config, copies: Option<&Place>, agent: &Place) -> Result<()> {
    let own = match copies.map(|copies| copies.read("settings.json", RULES_LIMIT)) {
        None => None,
        Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => None,
        Some(content) => Some(content.map_err(|error| Failure::preparing("read 'settings.json'", &cause(&error)))?),
    };
    if config.trust {
        create(agent, "trust.json", 0o600, b"{\"/workspace\": true}\n")?;
        return own.map_or(Ok(()), |own| create(agent, "settings.json", 0o600, &own));
    }
    let settings = json::with_member(own.as_deref().unwrap_or(b"{}"), "defaultProjectTrust", "never")
        .ok_or_else(|| Failure::preparing("read 'settings.json'", "not a JSON object"))?;
    create(agent, "settings.json", 0o600, settings.as_bytes())
}

/// One AGENTS.md out of the default rules, if the repository has none of its own, the user's, and those in the repository's `.pi`.
fn rules(workspace: &Place, copies: Option<&Place>, agent: &Place, control: &Control) -> Result<()> {
    let mut parts = Vec::new();
    if !REPOSITORY_RULES.iter().any(|name| workspace.has(name)) {
        let defaults = Place::directory("/defaults").and_then(|defaults| defaults.read("AGENTS.md", RULES_LIMIT));
        parts.extend(optional(defaults, "/defaults/AGENTS.md", control));
    }
    parts.extend(copies.and_then(|copies| copies.read("AGENTS.md", RULES_LIMIT).ok()));
    parts.extend(optional(workspace.read_below(".pi/AGENTS.md", RULES_LIMIT), ".pi/AGENTS.md", control));
    if parts.is_empty() {
        return Ok(());
    }
    create(agent, "AGENTS.md", 0o600, &parts.join(&b"\n\n"[..]))
}

/// A file that may be missing, or be something else than a file: the session goes on without it, and says so.
fn optional(content: std::io::Result<Vec<u8>>, name: &str, control: &Control) -> Option<Vec<u8>> {
    match content {
        Ok(content) => Some(content),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            control.say(&format!("left out '{name}': {}", cause(&error)));
            None
        }
    }
}

/// The shipped extensions, but those that the repository, or the user, replaces by one of the same name that pi will load.
fn extensions(config: &Config, workspace: &Place, agent: &Place, control: &Control) -> Result<()> {
    let Ok(shipped) = Place::directory("/defaults/extensions") else { return Ok(()) };
    let target = agent
        .make_dir("extensions", 0o700)
        .map_err(|error| Failure::preparing("make the extensions directory", &cause(&error)))?;
    let replaced = |name: &str| {
        let by_the_repository = config.trust && workspace.has(&format!(".pi/extensions/{name}"));
        by_the_repository || target.has(name)
    };
    Copier { left: COPY_LIMIT, control }.copy(&shipped, &target, 0, &replaced)
}

struct Copier<'a> {
    left: u64,
    control: &'a Control,
}

impl Copier<'_> {
    /// Copies the regular files and directories in `from`, but those that are `left_out` by their name, into `to`.
    fn copy(&mut self, from: &Place, to: &Place, depth: usize, left_out: &dyn Fn(&str) -> bool) -> Result<()> {
        let failed = |what: &str, error: &std::io::Error| Failure::preparing(&format!("copy '{what}'"), &cause(error));
        for (name, kind) in from.list().map_err(|error| failed("a directory", &error))? {
            if left_out(&name) {
                continue;
            }
            match kind {
                Kind::File => {
                    let (content, executable) =
                        from.read_program(&name, self.left).map_err(|error| failed(&name, &error))?;
                    self.left -= content.len() as u64;
                    create(to, &name, if executable { 0o700 } else { 0o600 }, &content)?;
                }
                Kind::Directory if depth < DEPTH_LIMIT => {
                    let source = from.dir(&name).map_err(|error| failed(&name, &error))?;
                    let target = to.make_dir(&name, 0o700).map_err(|error| failed(&name, &error))?;
                    self.copy(&source, &target, depth + 1, &|_| false)?;
                }
                _ => self.control.log(&format!("left out '{name}': not a regular file or directory")),
            }
        }
        Ok(())
    }
}

/// A new file with this content.
pub(crate) fn create(directory: &Place, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    let written = directory.create(name, mode).and_then(|mut file| file.write_all(content));
    written.map_err(|error| Failure::preparing(&format!("write '{name}'"), &cause(&error)))
}
