//! The git program: the only file that starts it. It writes commits and those files of worktrees that are not copied (`beside.rs`),
//! because filters, sparse checkouts and index formats are its own, and it asks credential helpers. Never the network, never a hook,
//! never a prompt.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;

use crate::failure::{Code, Failure, OrFail, Result};
use crate::secret::Secret;
use crate::sys;

/// Variables that would make git look at another repository than the one it is started in.
pub(crate) const FOREIGN: &[&str] = &[
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_ATTR_SOURCE",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_COUNT",
];

/// A git that hangs (a filter, a dead file system) must not hang the runner.
const PATIENCE: Duration = Duration::from_secs(900);

/// Who we are for a remote.
#[derive(Clone, Debug)]
pub(crate) struct Credential {
    pub(crate) user: String,
    pub(crate) token: Secret,
}

/// A git whose output is read while it is made.
pub(crate) struct Stream {
    pub(crate) stdout: ChildStdout,
    child: Child,
    said: JoinHandle<Vec<u8>>,
}

impl Stream {
    /// After its output has been read: whether it was all.
    pub(crate) async fn end(&mut self) -> Result<()> {
        let status = self.child.wait().await.or_fail(Code::Internal, || "cannot wait for 'git'".into())?;
        if status.success() {
            return Ok(());
        }
        let said = (&mut self.said).await.unwrap_or_default();
        let said = String::from_utf8_lossy(&said).trim().trim_start_matches("fatal: ").to_owned();
        Err(Failure::new(Code::Internal, format!("git could not make the pack: {said}")))
    }
}

/// git, in one working folder.
#[derive(Clone, Debug)]
pub(crate) struct Git {
    dir: PathBuf,
    set: Vec<(&'static str, PathBuf)>,
}

impl Git {
    pub(crate) fn at(dir: &Path) -> Self {
        Git { dir: dir.to_owned(), set: Vec::new() }
    }

    /// git in a linked worktree, told where its git directory is: without being told, and with the link gone, git would
    /// take the files for a part of the repository around them.
    pub(crate) fn in_worktree(path: &Path, admin: &Path, run: &str) -> Self {
        let set = vec![("GIT_DIR", admin.to_owned()), ("GIT_WORK_TREE", path.to_owned()), (sys::MARK, run.into())];
        Git { dir: path.to_owned(), set }
    }

    /// The same with one more variable.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.set.push((name, value.into()));
        self
    }

    /// The same with another index file: looks at, or snapshots, a worktree without touching its own.
    pub(crate) fn with_index(mut self, index: &Path) -> Self {
        self.set.push(("GIT_INDEX_FILE", index.to_owned()));
        self
    }

    /// Runs git and gives what it printed; a status other than 0 is a failure in its own words.
    pub(crate) async fn run<A: AsRef<OsStr>>(&self, args: &[A]) -> Result<Vec<u8>> {
        self.run_with(args, b"").await
    }

    pub(crate) async fn run_with<A: AsRef<OsStr>>(&self, args: &[A], input: &[u8]) -> Result<Vec<u8>> {
        // The command is the first word that is no option and no option's value.
        let words: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy().into_owned()).collect();
        let is_name = |at: &usize| !words[*at].starts_with('-') && (*at == 0 || words[*at - 1] != "-c");
        let name = (0..words.len()).find(is_name).map_or("", |at| words[at].as_str());
        let (status, stdout, stderr) = self.output(args, input).await?;
        if status == Some(0) {
            return Ok(stdout);
        }
        let said = String::from_utf8_lossy(&stderr);
        let said = said.lines().filter(|line| !line.starts_with("hint:")).collect::<Vec<_>>().join("\n");
        let said = said.trim().trim_start_matches("fatal: ").trim_start_matches("error: ");
        let said = if said.is_empty() { format!("status {status:?}") } else { said.chars().take(600).collect() };
        Err(Failure::new(Code::Internal, format!("cannot run 'git {name}': {said}")))
    }

    /// As [`Git::run`], as text without the last line break.
    pub(crate) async fn text<A: AsRef<OsStr>>(&self, args: &[A]) -> Result<String> {
        let bytes = self.run(args).await?;
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned())
    }

    fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        let mut command = Command::new("git");
        command
            .args(["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "commit.gpgSign=false"])
            .args([
                "-c",
                "gc.auto=0",
                "-c",
                "maintenance.auto=false",
                "-c",
                "core.quotePath=false",
                "-c",
                "core.askPass=",
            ])
            // Constant memory for a pack of any size: large files are copied, not compared.
            .args(["-c", "pack.threads=1", "-c", "pack.windowMemory=32m", "-c", "core.bigFileThreshold=8m"])
            .args(args)
            .current_dir(&self.dir)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("LC_ALL", "C")
            .env_remove("GIT_ASKPASS")
            .env_remove("SSH_ASKPASS")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        for name in FOREIGN {
            command.env_remove(name);
        }
        command.envs(self.set.iter().map(|(name, value)| (name, value)));
        sys::die_with_us(&mut command);
        command
    }

    /// Starts git for what it prints, which may be more than memory holds. The input is small and given at once.
    pub(crate) fn stream<A: AsRef<OsStr>>(&self, args: &[A], input: Vec<u8>) -> Result<Stream> {
        let mut child = self.command(args).spawn().or_fail(Code::Setup, || "cannot start 'git'".into())?;
        let missing = || Failure::new(Code::Internal, "cannot connect to 'git'");
        let (mut stdin, mut stderr) =
            (child.stdin.take().ok_or_else(missing)?, child.stderr.take().ok_or_else(missing)?);
        tokio::spawn(async move {
            let _ = stdin.write_all(&input).await;
        });
        let said = tokio::spawn(async move {
            let mut said = Vec::new();
            let _ = stderr.read_to_end(&mut said).await;
            said
        });
        Ok(Stream { stdout: child.stdout.take().ok_or_else(missing)?, child, said })
    }

    async fn output<A: AsRef<OsStr>>(&self, args: &[A], input: &[u8]) -> Result<(Option<i32>, Vec<u8>, Vec<u8>)> {
        let mut child = self.command(args).spawn().or_fail(Code::Setup, || "cannot start 'git'".into())?;
        let stdin = child.stdin.take();
        let feed = async move {
            if let Some(mut stdin) = stdin {
                let _ = stdin.write_all(input).await;
            }
        };
        let both = async { tokio::join!(feed, child.wait_with_output()).1 };
        let output = tokio::time::timeout(PATIENCE, both)
            .await
            .or_fail(Code::Internal, || format!("cannot wait for git any longer in '{}'", self.dir.display()))?
            .or_fail(Code::Internal, || "cannot read from 'git'".into())?;
        Ok((output.status.code(), output.stdout, output.stderr))
    }

    /// Asks the user's credential helpers, never the user. None if they know nothing.
    pub(crate) async fn credential(&self, host: &str, path: &str, user: Option<&str>) -> Result<Option<Credential>> {
        let mut ask = format!("protocol=https\nhost={host}\npath={path}\n");
        if let Some(user) = user {
            ask.push_str(&format!("username={user}\n"));
        }
        ask.push('\n');
        let (status, stdout, _) = self.output(&["credential", "fill"], ask.as_bytes()).await?;
        if status != Some(0) {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&stdout);
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        Ok(field("password").filter(|token| !token.is_empty()).map(|token| Credential {
            user: field("username").filter(|user| !user.is_empty()).unwrap_or("x-access-token").to_owned(),
            token: Secret::new(token),
        }))
    }
}
