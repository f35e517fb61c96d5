//! When git's side of a session is made ready and what happens to it afterwards: the private git directory is fetched from at the end, on
//! request, and at a later start for a session that was killed; with `--git=direct` the repository's own is protected and looked at.
//! `git` does the work; this runs the short container that hands out what PID 1 could not.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cli::{GitMode, Owner};
use crate::docker::Docker;
use crate::error::hinted;
use crate::files::lock_file;
use crate::git::{self, Finding, ImportReport, Limits, Mount, Site, Watcher};
use crate::home::Home;
use crate::run_dir;
use crate::terminal::{Terminal, printable};

/// How long handing out may take.
const EXPORT: Duration = Duration::from_secs(600);
/// How many findings are said one by one: an agent can make any number.
const MOST_SAID: usize = 50;
/// How many lines are said about commits: an agent can make any number of branches.
const MOST_LINES: usize = 200;
/// How a line of the session's log begins that is one of the launcher's warnings. Lines from the container begin otherwise.
pub(crate) const WARNING: &str = "pi-docker: warning: ";

/// What a session has of git, from before its container to after it.
pub(crate) struct Ready {
    pub(crate) mounts: Vec<Mount>,
    watcher: Option<Watcher>,
    /// The repositories that the host's index linked to, with `--git=direct`.
    linked: Vec<PathBuf>,
}

impl Ready {
    /// Returns when all that was in the working tree is known: the container must not run before.
    pub(crate) fn wait(&self) {
        if let Some(watcher) = &self.watcher {
            watcher.wait_until_ready();
        }
    }
}

/// Git's side of the sessions of one repository.
pub(crate) struct PrivateSide<'a> {
    pub(crate) docker: &'a Docker,
    pub(crate) terminal: &'a Terminal,
    pub(crate) home: &'a Home,
    pub(crate) repository_id: &'a str,
    /// The working tree's top folder.
    pub(crate) root: &'a Path,
    /// The whole environment for git.
    pub(crate) env: &'a [(OsString, OsString)],
    /// Who the agent runs as.
    pub(crate) user: Owner,
    /// The agent's image.
    pub(crate) image: &'a str,
    pub(crate) mode: GitMode,
}

impl PrivateSide<'_> {
    /// Makes git's side ready for a session whose folder exists.
    pub(crate) fn prepare(&self, session: &str) -> Result<Ready> {
        let _lock = self.lock()?;
        let (state, live) = (self.state(), self.live()?);
        let mut linked = Vec::new();
        let prepared = match self.mode {
            GitMode::Private => {
                if let Some(direct) = git::direct_sessions(&state)?.iter().find(|direct| live.contains(*direct)) {
                    return Err(hinted(
                        format!(
                            "cannot start: session '{direct}' works in the repository's own git directory (--git=direct)"
                        ),
                        "end it first: pi-docker stop",
                    ));
                }
                self.fetch_left(&state, &live)?;
                git::prepare(&self.site(session, &state, self.others(session, &live, &state)))?
            }
            GitMode::Direct => {
                self.terminal.warn(&format!("--git=direct: {}", git::direct::weaknesses()), "");
                if git::direct::ignore_worktrees(self.root, self.owner())? {
                    self.terminal.say("added '/.worktrees/' to the repository's .gitignore");
                }
                linked = git::direct::linked(self.root)?;
                git::direct::protect(&self.site(session, &state, !live.is_empty()))?
            }
        };
        prepared.warnings.iter().for_each(|line| self.terminal.warn(&printable(line), ""));
        let watcher = Watcher::start(self.root, prepared.programs, self.say_at_once(session))?;
        Ok(Ready { mounts: prepared.mounts, watcher: Some(watcher), linked })
    }

    /// What is done with a finding while the session runs: it is said, and written where `pi-docker status` and `logs` look.
    fn say_at_once(&self, session: &str) -> impl Fn(&Finding) + Send + use<> {
        let (terminal, said) = (self.terminal.clone(), AtomicUsize::new(0));
        let log = self.home.runs().join(session).join("control/log");
        move |finding| {
            let line = match said.fetch_add(1, Ordering::Relaxed).cmp(&MOST_SAID) {
                Less => finding.to_string(),
                Equal => "more was found in the working tree: it is said at the end".to_owned(),
                Greater => return,
            };
            terminal.warn_meanwhile(&line);
            let opened = File::options().append(true).create(true).mode(0o600).open(&log);
            // PID 1 appends to it, too: a line goes in by one write.
            let _ = opened.and_then(|mut file| file.write_all(format!("{WARNING}{line}\n").as_bytes()));
        }
    }

    /// Fetches what killed sessions have left; if that cannot be done it is moved aside, whole, and said.
    fn fetch_left(&self, state: &Path, live: &BTreeSet<String>) -> Result<()> {
        let open = git::unimported(state).unwrap_or_default();
        for left in open.iter().filter(|open| !live.contains(*open)) {
            match self.fetch(left, None, live) {
                Ok(report) => self.say(&report),
                Err(e) => {
                    self.terminal.warn(
                        &format!("cannot fetch the commits of session {left}: {}", printable(&format!("{e:#}"))),
                        "",
                    );
                    if let Some(folder) = git::set_aside(&self.site(left, state, false))? {
                        self.terminal.say(&format!("they are in '{}'", folder.display()));
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    /// Fetches at the session's end what was committed in it, says what was found in the working tree, and takes away what was made
    /// there. A failure to fetch is said, and left for the next start: nothing is lost by it.
    /// Returns what was said of the commits.
    pub(crate) fn finish(&self, session: &str, control: &Path, ready: Option<Ready>) -> Result<Vec<String>> {
        let _lock = self.lock()?;
        let (state, live) = (self.state(), self.live()?);
        let mut commits = Vec::new();
        let mut linked = Vec::new();
        if let Some(mut ready) = ready {
            let found = ready.watcher.take().map(Watcher::finish).unwrap_or_default();
            found.iter().take(MOST_SAID).for_each(|finding| self.terminal.warn(&finding.to_string(), ""));
            if found.len() > MOST_SAID {
                self.terminal.warn(&format!("{} more like these were found", found.len() - MOST_SAID), "");
            }
            linked = ready.linked;
        }
        if self.mode == GitMode::Direct {
            git::direct::inspect(self.root, &linked)?.iter().for_each(|line| self.terminal.warn(line, ""));
        } else if control.join("ready").exists() {
            match self.fetch(session, Some(control), &live) {
                Ok(report) => {
                    self.say(&report);
                    commits = report.lines();
                }
                Err(e) => self.terminal.warn(
                    &format!("cannot fetch the session's commits: {}", printable(&format!("{e:#}"))),
                    "they are safe in the private git directory; the next start tries again",
                ),
            }
        } else {
            // pi never ran.
            git::forget(&self.site(session, &state, true))?;
        }
        git::release(&self.site(session, &state, self.others(session, &live, &state)))?;
        Ok(commits)
    }

    /// Fetches from a session that goes on. False if it had nothing new.
    pub(crate) fn fetch_now(&self, session: &str, container: &str) -> Result<bool> {
        let _lock = self.lock()?;
        let state = self.state();
        let file = self.bundle_file(&state)?;
        let user = format!("{}:{}", self.user.uid, self.user.gid);
        let words = [
            "exec",
            "--user",
            &user,
            "--env",
            "HOME=/home/pi",
            "--workdir",
            "/workspace",
            container,
            "pi-subagent",
            "export",
        ];
        self.docker.capture(&words.map(OsString::from), file.reopen()?, EXPORT, room(&state))?;
        let report = git::import_running(&self.site(session, &state, true), file.path(), &Limits::default())?;
        self.say(&report);
        Ok(!report.lines().is_empty())
    }

    fn fetch(&self, session: &str, control: Option<&Path>, live: &BTreeSet<String>) -> Result<ImportReport> {
        let state = self.state();
        let site = self.site(session, &state, self.others(session, live, &state));
        if let Some(bundle) = control.map(|control| control.join("export.bundle")).filter(|bundle| bundle.is_file())
            && let Ok(report) = git::import(&site, &bundle, &Limits::default())
        {
            return Ok(report);
        }
        let file = self.bundle_file(&state)?;
        let command = self.export_command(session, &state)?;
        let captured = self.docker.capture(&command, file.reopen()?, EXPORT, room(&state));
        if captured.is_err() {
            // Ending docker's command does not end the container, in which the agent's git configuration is at work.
            self.docker.kill(&export_container(session));
        }
        captured?;
        git::import(&site, file.path(), &Limits::default())
    }

    /// A container that has the private side, no network and no right, and hands out.
    fn export_command(&self, session: &str, state: &Path) -> Result<Vec<OsString>> {
        let name = export_container(session);
        let user = format!("{}:{}", self.user.uid, self.user.gid);
        let mut words: Vec<OsString> = [
            "run",
            "--rm",
            "--name",
            &name,
            "--network",
            "none",
            "--user",
            &user,
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
            "--read-only",
            "--tmpfs",
            "/tmp",
            "--memory",
            "1g",
            "--pids-limit",
            "128",
            "--cpus",
            "2",
            "--ulimit",
            "core=0",
            "--log-driver",
            "none",
            "--workdir",
            "/workspace",
            "--env",
            "HOME=/tmp",
            "--env",
            "GIT_CONFIG_COUNT=1",
            "--env",
            "GIT_CONFIG_KEY_0=safe.directory",
            "--env",
            "GIT_CONFIG_VALUE_0=*",
        ]
        .map(OsString::from)
        .into();
        if crate::session::selinux() {
            words.extend(["--security-opt", "label=disable"].map(OsString::from));
        }
        words.extend(["--mount".into(), mount_word(self.root, "/workspace", true)?.into()]);
        for mount in git::mounts(state)? {
            words.extend(["--mount".into(), mount_word(&mount.host, &mount.container, mount.read_only)?.into()]);
        }
        words.extend(["--entrypoint", "/usr/local/bin/pi-subagent", self.image, "export"].map(OsString::from));
        Ok(words)
    }

    fn bundle_file(&self, state: &Path) -> Result<tempfile::NamedTempFile> {
        let made = tempfile::Builder::new().prefix("export-").tempfile_in(state);
        made.with_context(|| format!("cannot make a file in '{}'", state.display()))
    }

    fn say(&self, report: &ImportReport) {
        said(report.lines()).iter().for_each(|line| self.terminal.say(line));
        if report.has_refusals() {
            self.terminal.say(&format!("what was refused stays in '{}'", self.state().join("git").display()));
        }
    }

    fn state(&self) -> PathBuf {
        self.home.state(self.repository_id)
    }

    /// One launcher at a time finds out who else is there and acts on it.
    fn lock(&self) -> Result<File> {
        let lock = lock_file(&self.state().join("private.lock"))?;
        lock.lock().context("cannot lock the state of the repository")?;
        Ok(lock)
    }

    /// The sessions of this repository that have their launcher.
    fn live(&self) -> Result<BTreeSet<String>> {
        let running = run_dir::running(self.home)?.into_iter().map(|(record, _)| record);
        Ok(running.filter(|record| record.repository_id == self.repository_id).map(|record| record.session).collect())
    }

    /// Whether another session works in the private side: it is live, and it was prepared.
    fn others(&self, session: &str, live: &BTreeSet<String>, state: &Path) -> bool {
        let open = git::unimported(state).unwrap_or_default();
        open.iter().any(|open| open != session && live.contains(open))
    }

    /// Whose the files are to be, if the launcher is somebody else.
    fn owner(&self) -> Option<(u32, u32)> {
        nix::unistd::geteuid().is_root().then_some((self.user.uid, self.user.gid))
    }

    fn site<'s>(&'s self, session: &'s str, state: &'s Path, others_live: bool) -> Site<'s> {
        Site { root: self.root, state, session, env: self.env, owner: self.owner(), others_live }
    }
}

/// What is said of so many lines.
fn said(mut lines: Vec<String>) -> Vec<String> {
    let more = lines.len().saturating_sub(MOST_LINES);
    lines.truncate(MOST_LINES);
    lines.extend((more > 0).then(|| format!("and {more} more like these")));
    lines
}

/// How many bytes a container may hand out into `state`: never more than half of what the disk has left.
#[allow(clippy::useless_conversion, reason = "the type differs between systems")]
fn room(state: &Path) -> u64 {
    let most = Limits::default().bytes;
    nix::sys::statvfs::statvfs(state).map_or(most, |disk| {
        let free = u64::from(disk.blocks_available()).saturating_mul(disk.fragment_size());
        most.min(free / 2)
    })
}

fn export_container(session: &str) -> String {
    format!("pi-docker-export-{session}")
}

/// A bind mount as docker's command line takes it: fields of CSV, so that a path may hold anything.
fn mount_word(host: &Path, container: &str, read_only: bool) -> Result<String> {
    let host = host.to_str().with_context(|| format!("cannot mount '{}': its name is not UTF-8", host.display()))?;
    let mut fields = vec!["type=bind".to_owned(), format!("source={host}"), format!("target={container}")];
    if read_only {
        fields.push("readonly".to_owned());
    }
    let quoted = fields.iter().map(|field| match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.clone(),
    });
    Ok(quoted.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_branches_are_said_in_few_lines_and_few_in_full() {
        let lines = |count: usize| said(vec!["x".to_owned(); count]);
        assert_eq!(lines(MOST_LINES), vec!["x"; MOST_LINES]);
        assert_eq!(lines(MOST_LINES + 7).len(), MOST_LINES + 1);
        assert_eq!(lines(MOST_LINES + 7).last().unwrap(), "and 7 more like these");
    }

    #[test]
    fn what_is_handed_out_never_takes_all_of_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path());
        assert!(room > 0 && room <= Limits::default().bytes);
    }

    #[test]
    fn a_mount_takes_a_path_with_commas_and_quotes() {
        let word = mount_word(Path::new("/a,b \"c\":d"), "/workspace", true).unwrap();
        assert_eq!(word, "type=bind,\"source=/a,b \"\"c\"\":d\",target=/workspace,readonly");
    }
}
