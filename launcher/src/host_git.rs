#![expect(clippy::disallowed_methods, reason = "this is the one place that starts git")]
//! The host's git, asked about a repository that an agent could write to. Nothing here may run what such a repository
//! configures: no hook, no monitor, no lazy fetch, and never `status` or `diff`, which look into nested repositories.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use crate::error::hinted;

pub(crate) struct HostGit<'a> {
    root: &'a Path,
    env: &'a [(OsString, OsString)],
}

impl<'a> HostGit<'a> {
    /// `root` is the working tree's top folder, `env` the whole environment for git.
    pub(crate) fn new(root: &'a Path, env: &'a [(OsString, OsString)]) -> HostGit<'a> {
        HostGit { root, env }
    }

    /// Every setting in force, in order; of two with one name the later one counts.
    pub(crate) fn settings(&self) -> Result<Vec<(String, String)>> {
        let output = self.run(&["config", "--list", "-z"])?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            bail!("cannot read the git configuration of '{}': {}", self.root.display(), why.trim());
        }
        let entries = output.stdout.split(|&b| b == 0).filter(|e| !e.is_empty());
        Ok(entries
            .map(|entry| {
                let entry = String::from_utf8_lossy(entry);
                match entry.split_once('\n') {
                    Some((name, value)) => (name.to_owned(), value.to_owned()),
                    None => (entry.into_owned(), "true".to_owned()),
                }
            })
            .collect())
    }

    /// The user's own list of ignored names, as configured. A repository's own setting does not count: it could name any file.
    pub(crate) fn global_excludes_file(&self) -> Result<Option<String>> {
        let output = self.run(&["config", "--global", "--get", "core.excludesFile"])?;
        Ok(output.status.success().then(|| first_line(&output)))
    }

    /// The branch that is checked out; `None` when HEAD is detached.
    pub(crate) fn branch(&self) -> Result<Option<String>> {
        let output = self.run(&["symbolic-ref", "--quiet", "--short", "HEAD"])?;
        Ok(output.status.success().then(|| first_line(&output)))
    }

    /// The commit that HEAD names; `None` before the first one.
    pub(crate) fn head(&self) -> Result<Option<String>> {
        // Without `^{commit}`: that would read the object, and in a partial clone fetch it.
        let output = self.run(&["rev-parse", "--quiet", "--verify", "HEAD"])?;
        Ok(output.status.success().then(|| first_line(&output)))
    }

    fn run(&self, args: &[&str]) -> Result<Output> {
        let mut safe = OsString::from("safe.directory=");
        safe.push(self.root);
        let mut command = Command::new("git");
        command
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .envs([
                ("GIT_OPTIONAL_LOCKS", "0"),
                ("GIT_TERMINAL_PROMPT", "0"),
                ("GIT_NO_LAZY_FETCH", "1"),
                ("LC_ALL", "C"),
            ])
            .args(["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c"])
            .arg(safe)
            .arg("-C")
            .arg(self.root)
            .args(args)
            .stdin(Stdio::null());
        match command.output() {
            Ok(output) => Ok(output),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(hinted("cannot run 'git': not found", "install git 2.20 or newer"))
            }
            Err(e) => Err(e).context("cannot run 'git'"),
        }
    }
}

fn first_line(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned()
}
