//! What a session did that matters on this machine: files that tools here run by themselves, files with another name outside, hosts
//! that were reached and refused, commits. A few lines at its end, the whole of it by `pi-docker report`, kept in `<state>`.
//!
//! A file counts as changed by its change time, which no container can set. The tree is the agent's: no link in it is followed,
//! nothing in it is opened, and a tree without end costs no more than a moment.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::allowlist::{self, Domain};
use crate::config::Config;
use crate::credentials::read_bounded;
use crate::denied::{self, Denial};
use crate::error::hinted;
use crate::home::Home;
use crate::inputs;
use crate::repo::Place;
use crate::run_dir::Record;
use crate::session::unix_now;
use crate::terminal::{Terminal, printable};
use crate::traffic::{self, Host};

/// Files that a tool runs, or reads what to run from, when somebody enters the folder, opens it, or does what is done there daily.
const FILES: &[&str] = &[
    ".envrc",
    ".exrc",
    ".gdbinit",
    ".gitlab-ci.yml",
    ".lldbinit",
    ".mcp.json",
    ".mise.toml",
    ".npmrc",
    ".nvim.lua",
    ".pnpmfile.cjs",
    ".pre-commit-config.yaml",
    ".tool-versions",
    ".yarnrc.yml",
    "GNUmakefile",
    "Jenkinsfile",
    "Justfile",
    "Makefile",
    "Taskfile.yml",
    "build.rs",
    "conftest.py",
    "justfile",
    "lefthook.yml",
    "makefile",
    "mise.toml",
    "package.json",
    "setup.py",
];
/// Folders of which the same is true of everything in them.
const FOLDERS: &[&str] = &[
    ".cargo",
    ".circleci",
    ".claude",
    ".cursor",
    ".devcontainer",
    ".fleet",
    ".githooks",
    ".husky",
    ".idea",
    ".pi",
    ".vscode",
    ".yarn",
    ".zed",
];
/// How long the tree is looked at, and how much of it is shown.
const LOOK: Duration = Duration::from_millis(1500);
const MOST: usize = 200;
/// How many names a line at the session's end has.
const SHOWN: usize = 6;
/// Characters of a name, and lines about commits, that are kept.
const LONGEST: usize = 1000;
const MOST_LINES: usize = 1000;
/// More than names and lines of these numbers can come to.
const REPORT_MAX: u64 = 32 << 20;

/// The whole of it, as it is kept and as JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    session: String,
    repository: String,
    /// Seconds since 1970.
    started: u64,
    ended: u64,
    /// From the top of the working tree.
    host_files: Vec<String>,
    /// Changed files that have another name, outside of the working tree.
    linked_outside: Vec<String>,
    /// Whether the whole working tree was looked at.
    complete: bool,
    hosts: Vec<Host>,
    refused: Vec<Refused>,
    commits: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Refused {
    host: String,
    reason: String,
    count: u64,
}

impl Report {
    /// Of a session whose container has ended, with `log` from its proxy.
    pub(crate) fn collect(log: &str, record: &Record, run: &Path) -> Report {
        let allowed = inputs::read_list(&run.join("squid/allow.txt")).map(allowlist::merge).unwrap_or_default();
        // Written just before the container was started, by the clock of the same kernel.
        let since = fs::symlink_metadata(run.join("compose.json"))
            .map_or((i64::try_from(record.started).unwrap_or(0), 0), |meta| (meta.mtime(), meta.mtime_nsec()));
        let tree = Tree::look(&record.root, since, Instant::now() + LOOK);
        Report {
            session: record.session.clone(),
            repository: record.root.display().to_string(),
            started: record.started,
            ended: unix_now(),
            linked_outside: tree.linked_outside(),
            host_files: tree.host_files,
            complete: tree.complete,
            hosts: traffic::hosts(log),
            refused: refused(log, &allowed, record),
            commits: Vec::new(),
        }
    }

    /// What was said of the commits.
    pub(crate) fn take_commits(&mut self, mut lines: Vec<String>) {
        lines.truncate(MOST_LINES);
        self.commits = lines;
    }

    /// Keeps it in place of the last one. A session does not fail by it.
    pub(crate) fn keep(&self, home: &Home, record: &Record) {
        let file = file(home, &record.repository_id);
        let draft = file.with_extension(format!("{}.new", self.session));
        if let Ok(text) = serde_json::to_vec_pretty(self) {
            let _ = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &file));
        }
    }

    /// What is said at the session's end; nothing, if nothing is to be looked at.
    pub(crate) fn say(&self, terminal: &Terminal) {
        if !self.host_files.is_empty() {
            terminal.warn(
                &format!("changed, and run by tools on this machine: {}", listed(&self.host_files)),
                "read them before you open the folder in an editor, build or commit; pi-docker report shows all",
            );
        }
        if !self.linked_outside.is_empty() {
            let names = listed(&self.linked_outside);
            terminal.warn(&format!("changed, and also has a name outside of the repository: {names}"), "");
        }
        if !self.complete {
            terminal.warn("not all of the working tree could be looked at for files that tools run", "");
        }
        if !self.refused.is_empty() {
            let hosts: Vec<String> = self.refused.iter().map(|refused| refused.host.clone()).collect();
            terminal.say(&format!("refused: {} (pi-docker denied)", listed(&hosts)));
        }
    }

    /// The whole of it, for a person.
    pub(crate) fn lines(&self) -> Vec<String> {
        let now = std::time::SystemTime::now();
        let minutes = self.ended.saturating_sub(self.started).div_ceil(60);
        let mut lines =
            vec![format!("session {}, {} min, ended {}", self.session, minutes, denied::ago(self.ended, now))];
        let mut part = |title: &str, entries: Vec<String>| {
            lines.push(format!("{title}{}", if entries.is_empty() { ": none" } else { ":" }));
            lines.extend(entries.iter().map(|entry| format!("  {}", printable(entry))));
        };
        part("changed files that tools on this machine run", self.host_files.clone());
        part("changed files with another name outside of the repository", self.linked_outside.clone());
        let host = |host: &Host| {
            format!(
                "{:<40} {} sent, {} received, {}×",
                host.host,
                size(host.sent),
                size(host.received),
                host.connections
            )
        };
        part("hosts that were reached", self.hosts.iter().map(host).collect());
        let refused = |refused: &Refused| format!("{:<40} {}×, {}", refused.host, refused.count, refused.reason);
        part("hosts that were refused", self.refused.iter().map(refused).collect());
        part("commits", self.commits.clone());
        if !self.complete {
            lines.push("not all of the working tree could be looked at".to_owned());
        }
        lines
    }
}

/// `pi-docker report`: the last session of the repository that the user is in.
pub(crate) fn show(config: &Config, as_json: bool) -> Result<u8> {
    let terminal = Terminal::new(true, config.no_colour);
    let home = Home::find(config)?;
    let file = file(&home, &Place::find(&config.cwd)?.id());
    let text = match read_bounded(&file, REPORT_MAX) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(hinted("no session of this repository has ended yet", "pi-docker status lists those that run"));
        }
        text => text.with_context(|| format!("cannot read '{}'", file.display()))?,
    };
    let report: Report =
        serde_json::from_slice(&text).with_context(|| format!("cannot understand '{}'", file.display()))?;
    if as_json {
        terminal.answer(&serde_json::to_string(&report)?);
    } else {
        report.lines().iter().for_each(|line| terminal.answer(line));
    }
    Ok(0)
}

fn file(home: &Home, repository_id: &str) -> PathBuf {
    home.state(repository_id).join("report.json")
}

/// A name that was chosen by the agent, as far as a person reads it.
fn bounded(name: &str) -> String {
    name.chars().take(LONGEST).collect()
}

fn listed(names: &[String]) -> String {
    let mut text = names.iter().take(SHOWN).map(|name| printable(name)).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{} kB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

fn refused(log: &str, allowed: &[Domain], record: &Record) -> Vec<Refused> {
    let denials = log.lines().filter_map(|line| Denial::parse(line, allowed));
    let kept = denied::group(denials, &record.repository_id, &record.session).into_iter();
    kept.map(|kept| Refused { host: kept.host, reason: kept.reason, count: kept.count }).collect()
}

/// A look at the working tree after a session.
struct Tree {
    host_files: Vec<String>,
    /// Changed files with more than one name: how many they have, how many of these were met, and the first.
    links: HashMap<(u64, u64), (u64, u64, PathBuf)>,
    complete: bool,
}

/// What a folder is, as far as its files are concerned.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    /// Everything in it is for tools to run.
    Run,
    /// Other people's packages: not looked at by name.
    Packages,
}

impl Tree {
    fn look(root: &Path, since: (i64, i64), deadline: Instant) -> Tree {
        let mut tree = Tree { host_files: Vec::new(), links: HashMap::new(), complete: true };
        let mut folders = vec![(PathBuf::new(), Kind::Plain)];
        while let Some((folder, kind)) = folders.pop() {
            if Instant::now() > deadline {
                tree.complete = false;
                break;
            }
            let entries = match fs::read_dir(root.join(&folder)) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                // The agent has closed it, to us or to everybody; what was closed before the session is the user's.
                Err(_) => {
                    let meta = root.join(&folder).symlink_metadata();
                    if !meta.is_ok_and(|meta| (meta.ctime(), meta.ctime_nsec()) < since) {
                        tree.complete = false;
                        tree.add(&format!("{}/", folder.display()));
                    }
                    continue;
                }
            };
            for (count, entry) in entries.flatten().enumerate() {
                if count % 256 == 255 && Instant::now() > deadline {
                    tree.complete = false;
                    break;
                }
                let name = entry.file_name();
                // Git's own business, which has its own watch.
                if name == ".git" || (folder.as_os_str().is_empty() && name == ".worktrees") {
                    continue;
                }
                let Ok(meta) = entry.path().symlink_metadata() else { continue };
                let path = folder.join(&name);
                let below = kind_of(&folder, &name.to_string_lossy(), kind);
                let changed = (meta.ctime(), meta.ctime_nsec()) >= since;
                if meta.is_dir() {
                    if changed && below == Kind::Run && kind != Kind::Run {
                        tree.add(&format!("{}/", path.display()));
                    }
                    folders.push((path, below));
                } else if changed {
                    let is_run = below == Kind::Run || (kind != Kind::Packages && is_listed(&name.to_string_lossy()));
                    if is_run {
                        tree.add(&path.display().to_string());
                    }
                    tree.count(&meta, path);
                }
            }
        }
        tree.host_files.sort();
        // A folder is said only if nothing in it is.
        let names = tree.host_files.clone();
        tree.host_files.retain(|name| !name.ends_with('/') || !names.iter().any(|o| o != name && o.starts_with(name)));
        tree
    }

    fn add(&mut self, name: &str) {
        if self.host_files.len() < MOST {
            self.host_files.push(bounded(name));
        } else {
            self.complete = false;
        }
    }

    fn count(&mut self, meta: &Metadata, path: PathBuf) {
        if meta.is_file() && meta.nlink() > 1 {
            let link = self.links.entry((meta.dev(), meta.ino())).or_insert((meta.nlink(), 0, path));
            link.1 += 1;
        }
    }

    /// Not for a tree that was not seen whole: the other name may be in it.
    fn linked_outside(&self) -> Vec<String> {
        let outside = self.links.values().filter(|(names, met, _)| self.complete && names > met);
        let mut paths: Vec<String> = outside.map(|(_, _, path)| bounded(&path.display().to_string())).collect();
        paths.sort();
        paths.truncate(MOST);
        paths
    }
}

fn kind_of(folder: &Path, name: &str, kind: Kind) -> Kind {
    let is_action =
        folder.file_name().is_some_and(|parent| parent == ".github") && ["workflows", "actions"].contains(&name);
    match kind {
        Kind::Plain if name == "node_modules" => Kind::Packages,
        Kind::Plain if FOLDERS.contains(&name) || is_action => Kind::Run,
        kind => kind,
    }
}

fn is_listed(name: &str) -> bool {
    FILES.contains(&name) || name.ends_with(".code-workspace")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn look(dir: &Path) -> Tree {
        Tree::look(dir, (0, 0), Instant::now() + LOOK)
    }

    #[test]
    fn what_tools_run_is_found_wherever_it_is_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            ".envrc",
            "README.md",
            "sub/package.json",
            "sub/.vscode/tasks.json",
            ".github/workflows/ci.yml",
            ".github/CODEOWNERS",
            "node_modules/x/package.json",
            ".git/hooks/x",
            "a.code-workspace",
        ] {
            fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
            fs::write(dir.path().join(file), "").unwrap();
        }
        fs::create_dir(dir.path().join(".idea")).unwrap();
        assert_eq!(
            look(dir.path()).host_files,
            [
                ".envrc",
                ".github/workflows/ci.yml",
                ".idea/",
                "a.code-workspace",
                "sub/.vscode/tasks.json",
                "sub/package.json"
            ]
        );
        // Nothing of it has changed since tomorrow.
        let tomorrow = i64::try_from(unix_now()).unwrap() + 86_400;
        assert!(Tree::look(dir.path(), (tomorrow, 0), Instant::now() + LOOK).host_files.is_empty());
    }

    #[test]
    fn no_link_is_followed_and_a_link_by_such_a_name_is_one() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(other.path().join("Makefile"), "").unwrap();
        symlink(other.path(), dir.path().join("link")).unwrap();
        symlink(other.path(), dir.path().join(".vscode")).unwrap();
        symlink("..", dir.path().join("up")).unwrap();
        assert_eq!(look(dir.path()).host_files, [".vscode"]);
    }

    #[test]
    fn a_name_outside_is_told_from_a_second_one_inside() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("sub")).unwrap();
        fs::write(tree.join("inside"), "").unwrap();
        fs::hard_link(tree.join("inside"), tree.join("sub/inside")).unwrap();
        fs::write(dir.path().join("outside"), "").unwrap();
        fs::hard_link(dir.path().join("outside"), tree.join("shared")).unwrap();
        assert_eq!(look(&tree).linked_outside(), ["shared"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_that_is_closed_to_looks_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        fs::write(sub.join(".envrc"), "").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(dir.path(), 0o755);
        // Root reads everything; a thread may look with the eyes of somebody else.
        let look_as_user = || {
            let path = dir.path().to_owned();
            let tree = std::thread::spawn(move || {
                if nix::unistd::geteuid().is_root() {
                    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
                }
                look(&path)
            });
            let tree = tree.join().unwrap();
            (tree.host_files, tree.complete)
        };
        assert_eq!(look_as_user(), (vec!["sub/.envrc".to_owned()], true));
        mode(&sub, 0o311);
        assert_eq!(look_as_user(), (vec!["sub/".to_owned()], false));
    }

    #[test]
    fn a_tree_without_end_is_said_and_left() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Tree::look(dir.path(), (0, 0), Instant::now() - Duration::from_secs(1)).complete);
    }
}
