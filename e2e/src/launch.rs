//! Running the launcher as a user would: with arguments, an environment, input, with or without a terminal.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::internet::{Internet, Request};
#[cfg(target_os = "linux")]
use crate::pty::Pty;
use crate::user::User;
use crate::{SOON, wait_until};

/// What a run of a program came to.
#[derive(Debug)]
pub struct Ran {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Ran {
    /// The exit status as a shell shows it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// This run, if it ended with `code`; else everything it said, as an error.
    pub fn expect(self, code: i32) -> Result<Self> {
        if self.code() != code {
            bail!(
                "exit status {} instead of {code}\n--- stdout\n{}\n--- stderr\n{}",
                self.code(),
                self.stdout,
                self.stderr
            );
        }
        Ok(self)
    }
}

/// A command line of the launcher, not yet run.
pub struct Launch {
    pub(crate) command: Command,
    user: User,
    input: Option<Vec<u8>>,
    limit: Duration,
    shown: bool,
}

impl Launch {
    pub(crate) fn new(command: Command, user: User) -> Self {
        Self { command, user, input: None, limit: Duration::from_secs(180), shown: false }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub fn within(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    pub fn input(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.input = Some(text.into());
        self
    }

    /// How long it may take before the test fails.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Its narration goes to whoever runs this program, instead of into what it came to.
    pub fn shown(mut self) -> Self {
        self.shown = true;
        self
    }

    /// As a shell runs it with its output piped into another program: `pi-docker … | cat`.
    pub fn piped(mut self) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", "\"$0\" \"$@\" | cat"]).arg(self.command.get_program()).args(self.command.get_args());
        shell.env_clear().envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(dir) = self.command.get_current_dir() {
            shell.current_dir(dir);
        }
        self.command = shell;
        self
    }

    /// Runs it to its end, without a terminal.
    pub fn run(self) -> Result<Ran> {
        self.start()?.finish()
    }

    /// Starts it without a terminal.
    pub fn start(mut self) -> Result<Running> {
        let stdin = if self.input.is_some() { Stdio::piped() } else { Stdio::null() };
        let stderr = if self.shown { Stdio::inherit() } else { Stdio::piped() };
        self.command.stdin(stdin).stdout(Stdio::piped()).stderr(stderr);
        let mut child = self.command.spawn().context("cannot start the launcher")?;
        if let (Some(input), Some(mut stdin)) = (self.input, child.stdin.take()) {
            thread::spawn(move || stdin.write_all(&input));
        }
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Ok(Running { child, stdout, stderr, started: Instant::now(), limit: self.limit })
    }

    /// Starts it on a terminal of its own.
    #[cfg(target_os = "linux")]
    pub fn start_on_terminal(self) -> Result<Pty> {
        Pty::start(&self.command, self.user)
    }
}

/// A launcher that runs.
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
    started: Instant,
    limit: Duration,
}

impl Running {
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal).context("cannot signal the launcher")
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the model has been asked for `step` of rule `rule`; what the launcher said is in the error if that does not
    /// happen.
    pub fn until_asked(&mut self, internet: &Internet, rule: &str, step: u64) -> Result<Request> {
        let what = format!("the model is asked for step {step} of '{rule}'");
        let asked = wait_until(&what, SOON, || match internet.step(rule, step)? {
            Some(request) => Ok(Some(request)),
            None if self.has_ended()? => bail!("the launcher has ended before {what}"),
            None => Ok(None),
        });
        asked.map_err(|error| {
            let _ = self.child.kill();
            let _ = self.child.wait();
            anyhow!("{error}\n--- stdout\n{}\n--- stderr\n{}", text(self.stdout.take()), text(self.stderr.take()))
        })
    }

    /// How long it has had a processor so far, in seconds, without the programs that it started; `None` when it has ended.
    #[cfg(target_os = "linux")]
    pub fn cpu_time(&self) -> Option<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // Clock ticks, of which Linux always shows a hundred a second.
        Some((fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?) / 100.0)
    }

    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end. A launcher that takes longer than its limit is killed.
    pub fn finish(mut self) -> Result<Ran> {
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if self.started.elapsed() > self.limit {
                self.child.kill()?;
                self.child.wait()?;
                let (stdout, stderr) = (text(self.stdout.take()), text(self.stderr.take()));
                bail!("no end after {} s\n--- stdout\n{stdout}\n--- stderr\n{stderr}", self.limit.as_secs());
            }
            thread::sleep(Duration::from_millis(10));
        };
        let took = self.started.elapsed();
        Ok(Ran { status, stdout: text(self.stdout.take()), stderr: text(self.stderr.take()), took })
    }
}

/// Reads a pipe to its end.
fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A launcher that nobody waited for does not outlive its test.
impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn text(reader: Option<JoinHandle<String>>) -> String {
    reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
}

/// The launcher that is tested.
pub fn launcher() -> Result<PathBuf> {
    let path = match std::env::var_os("E2E_LAUNCHER") {
        Some(path) => PathBuf::from(path),
        None => crate::internet::manifest("../target/debug/pi-docker"),
    };
    path.canonicalize().with_context(|| format!("cannot find the launcher '{}'; cargo build makes it", path.display()))
}
