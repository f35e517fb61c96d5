#![expect(clippy::disallowed_methods, reason = "this is the one place that starts git")]
//! The host's git, run in the user's own git directory with everything off by which a repository starts programs: hooks, monitors,
//! filters (it has no working tree here), lazy fetches, submodules, helpers, the user's and the system's configuration. Never `status`
//! or `diff`, which look into nested repositories.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use super::settings;
use crate::error::hinted;

const SETTINGS: &[&str] = &[
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.pager=cat",
    "core.editor=false",
    "core.sshCommand=false",
    "core.alternateRefsCommand=false",
    // Larger files are handled as a stream, not in memory.
    "core.bigFileThreshold=16m",
    "credential.helper=",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "protocol.allow=never",
    "gc.auto=0",
    "maintenance.auto=false",
];

const VARIABLES: &[(&str, &str)] = &[
    ("GIT_ALLOW_PROTOCOL", "none"),
    ("GIT_COMMITTER_EMAIL", "pi-docker@localhost"),
    ("GIT_COMMITTER_NAME", "pi-docker"),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_NO_LAZY_FETCH", "1"),
    ("GIT_NO_REPLACE_OBJECTS", "1"),
    ("GIT_OPTIONAL_LOCKS", "0"),
    ("GIT_TERMINAL_PROMPT", "0"),
    ("LC_ALL", "C"),
];

/// Runs git in one git directory of the user's.
#[derive(Clone)]
pub(crate) struct Git<'a> {
    dir: PathBuf,
    index: Option<PathBuf>,
    env: &'a [(OsString, OsString)],
    owner: Option<(u32, u32)>,
}

impl<'a> Git<'a> {
    /// `dir` is the git directory (of a linked worktree: its own below `worktrees`).
    pub(crate) fn new(dir: &Path, env: &'a [(OsString, OsString)], owner: Option<(u32, u32)>) -> Git<'a> {
        Git { dir: dir.to_owned(), index: None, env, owner }
    }

    /// The same, with another file as the index.
    pub(crate) fn with_index(&self, index: &Path) -> Git<'a> {
        Git { index: Some(index.to_owned()), ..self.clone() }
    }

    /// Who git runs as, if not as the launcher itself.
    pub(crate) fn owner(&self) -> Option<(u32, u32)> {
        self.owner
    }

    /// The repository's own settings, of its common and its worktree's configuration. Reading settings starts nothing.
    pub(crate) fn settings(&self) -> Result<Vec<(String, String)>> {
        let child = self.start(self.command(&[], &["config", "--list", "-z"]))?;
        let output = child.wait_with_output().context("cannot run 'git'")?;
        if !output.status.success() {
            bail!("cannot read the settings of '{}': {}", self.dir.display(), words(&output));
        }
        Ok(settings::parse(&output.stdout))
    }

    /// Every setting in force for the user, theirs and the system's too, in order: of two with one name the later one counts.
    pub(crate) fn settings_of_user(&self) -> Result<Vec<(String, String)>> {
        Ok(settings::parse(
            &self
                .ask_for_user(&["config", "--list", "-z"])?
                .map_err(|why| anyhow!("cannot read the git configuration of '{}': {why}", self.dir.display()))?,
        ))
    }

    /// A value that the user has set for all repositories. A repository's own does not count.
    pub(crate) fn global_setting(&self, key: &str) -> Result<Option<String>> {
        let value = self.ask_for_user(&["config", "--global", "--get", key])?.ok();
        Ok(value.map(|value| String::from_utf8_lossy(&value).trim_end_matches('\n').to_owned()))
    }

    /// Asks with the user's and the system's configuration in force. Only for `config`, which starts nothing.
    fn ask_for_user(&self, args: &[&str]) -> Result<std::result::Result<Vec<u8>, String>> {
        let mut command = self.command(&[], args);
        for name in ["GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM"] {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let output = self.start(command)?.wait_with_output().context("cannot run 'git'")?;
        Ok(if output.status.success() { Ok(output.stdout) } else { Err(words(&output)) })
    }

    /// What git prints; an error with git's own words if it fails.
    pub(crate) fn run(&self, args: &[&str]) -> Result<Vec<u8>> {
        self.feed(args, |_| Ok(()))
    }

    /// What git prints, or `None` if it fails.
    pub(crate) fn ask(&self, args: &[&str]) -> Result<Option<Vec<u8>>> {
        let output = self.spawn(args)?.wait_with_output().context("cannot run 'git'")?;
        Ok(output.status.success().then_some(output.stdout))
    }

    /// As `run`, with `write` filling git's input while its output is read.
    pub(crate) fn feed(
        &self,
        args: &[&str],
        write: impl FnOnce(&mut ChildStdin) -> io::Result<()> + Send,
    ) -> Result<Vec<u8>> {
        let (output, written) = self.exchange(args, write)?;
        if !output.status.success() {
            bail!("cannot run 'git {}': {}", args[0], words(&output));
        }
        written.with_context(|| format!("cannot write to 'git {}'", args[0]))?;
        Ok(output.stdout)
    }

    /// As `feed`, with what git says on failure as a value.
    pub(crate) fn try_feed(
        &self,
        args: &[&str],
        write: impl FnOnce(&mut ChildStdin) -> io::Result<()> + Send,
    ) -> Result<std::result::Result<Vec<u8>, String>> {
        let (output, written) = self.exchange(args, write)?;
        if !output.status.success() {
            return Ok(Err(words(&output)));
        }
        written.with_context(|| format!("cannot write to 'git {}'", args[0]))?;
        Ok(Ok(output.stdout))
    }

    fn exchange(
        &self,
        args: &[&str],
        write: impl FnOnce(&mut ChildStdin) -> io::Result<()> + Send,
    ) -> Result<(Output, io::Result<()>)> {
        let mut child = self.spawn(args)?;
        let mut stdin = child.stdin.take();
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || match &mut stdin {
                Some(stdin) => write(stdin).and_then(|()| stdin.flush()),
                None => Ok(()),
            });
            let output = child.wait_with_output().context("cannot run 'git'")?;
            let written = writer.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked")));
            Ok((output, written))
        })
    }

    fn spawn(&self, args: &[&str]) -> Result<Child> {
        self.start(self.command(SETTINGS, args))
    }

    fn start(&self, mut command: Command) -> Result<Child> {
        match command.spawn() {
            Ok(child) => Ok(child),
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.dir.is_dir() => {
                Err(hinted("cannot run 'git': not found", "install git 2.25 or newer"))
            }
            Err(e) => Err(e).with_context(|| format!("cannot run 'git' in '{}'", self.dir.display())),
        }
    }

    fn command(&self, settings: &[&str], args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.env_clear().envs(self.env.iter().map(|(name, value)| (name, value))).envs(VARIABLES.iter().copied());
        // No command that runs here looks at files of a working tree; the git directory stands in for it.
        command.env("GIT_DIR", &self.dir).env("GIT_WORK_TREE", &self.dir).current_dir(&self.dir);
        if let Some(index) = &self.index {
            command.env("GIT_INDEX_FILE", index);
        }
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        for setting in settings {
            command.args([OsStr::new("-c"), OsStr::new(setting)]);
        }
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// What git said was wrong, on one line, without what a terminal would obey.
fn words(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let blames = |line: &&str| line.starts_with("error: ") || line.starts_with("fatal: ");
    let mut said: Vec<&str> = text.lines().filter(blames).map(|line| &line[7..]).take(3).collect();
    if said.is_empty() {
        said.push(text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given"));
    }
    super::report::printable(&said.join("; "))
}
