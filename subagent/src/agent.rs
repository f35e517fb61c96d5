//! pi, run once in a worktree: started, listened to, limited, ended with everything it has started. Says how it went; that
//! it went badly is a value here, not an error.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::cancel::Cancel;
use crate::failure::{Code, Failure, OrFail, Result};
use crate::git::Git;
use crate::limits::{Limits, Stop, Watch};
use crate::probe::Probe;
use crate::raw_log::{Errors, Log};
use crate::report::{AgentEnd, DiffStat, Reporter, Usage};
use crate::stream::{Assistant, Lines, PiEvent, clip};
use crate::sys;

/// What is started, and where.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: PathBuf,
    pub(crate) input: String,
    pub(crate) limits: Limits,
    /// pi's events without the streaming ones, and its standard error.
    pub(crate) log: PathBuf,
    pub(crate) stderr: PathBuf,
    /// Of the worktree, and the commit that changes are counted against.
    pub(crate) git: Git,
    pub(crate) base: String,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) end: AgentEnd,
    pub(crate) usage: Usage,
    /// The model's last words.
    pub(crate) text: String,
    /// None if it did what it was asked.
    pub(crate) failure: Option<Failure>,
}

/// Variables that must not reach the nested pi: tokens, and the identity of the outer session.
const PRIVATE: &[&str] = &["GH_TOKEN", "GITHUB_TOKEN", "PI_GH_TOKEN", "PI_SESSION_ID", "PI_SESSION_FILE"];

/// From SIGTERM to SIGKILL. Below the container's own grace, so that there is time left to commit.
const GRACE: Duration = Duration::from_secs(5);
/// From SIGKILL, or from an end that nobody is told of, to going on without it.
const UNKILLABLE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(250);

impl Agent {
    /// Runs pi to its end. `beat` is called about once a second.
    pub(crate) async fn run(
        self,
        reporter: &mut Reporter,
        cancel: &Cancel,
        mut beat: impl FnMut(),
    ) -> Result<Finished> {
        let mut child = self.start()?;
        let pid = child.id().unwrap_or(0);
        reporter.event("agent", json!({"pid": pid}), "pi started");
        let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
        let mut run = Run::new(self.limits.clone(), Log::open(self.log.clone()));
        let mut errors = Errors::open(&self.stderr);
        let mut probe = Probe::new(self.git.clone(), &self.base);
        let feed = feed(child.stdin.take(), self.input);
        tokio::pin!(feed);
        let mut fed = false;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut ticks = 0_u64;
        let (mut out, mut err) = (vec![0; 64 << 10], vec![0; 4 << 10]);
        let status = loop {
            tokio::select! {
                status = child.wait() => break Some(status.or_fail(Code::Internal, || "cannot wait for 'pi'".into())?),
                read = read(&mut stdout, &mut out) => run.take(&out[..read], reporter),
                read = read(&mut stderr, &mut err) => errors.take(&err[..read]),
                () = &mut feed, if !fed => fed = true,
                changed = probe.answer() => run.changed |= changed,
                () = cancel.wait(), if !run.stopping() => run.stop(Failure::new(Code::Cancelled, "cancelled")),
                _ = tick.tick() => {
                    ticks += 1;
                    probe.tick();
                    run.tick(reporter, probe.last);
                    if run.given_up(pid) {
                        break None;
                    }
                    if ticks.is_multiple_of(4) {
                        sys::reap_adopted(&[pid]);
                        beat();
                    }
                }
            }
            run.enforce(pid);
        };
        probe.stop();
        end_descendants(reporter).await;
        // Whatever held the pipes open is gone now; a second is for what is still in them.
        let rest = async {
            while stdout.is_some() {
                let read = read(&mut stdout, &mut out).await;
                run.take(&out[..read], reporter);
            }
            while stderr.is_some() {
                let read = read(&mut stderr, &mut err).await;
                errors.take(&err[..read]);
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
        Ok(run.finish(status, &errors.last()))
    }

    fn start(&self) -> Result<Child> {
        let mut command = Command::new("pi");
        command.args(&self.args).current_dir(&self.cwd).envs(self.env.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        for name in PRIVATE.iter().chain(crate::git::FOREIGN) {
            command.env_remove(name);
        }
        sys::die_with_us(&mut command);
        command.spawn().or_fail(Code::PiNotFound, || "cannot start 'pi'".into())
    }
}

async fn feed(stdin: Option<tokio::process::ChildStdin>, input: String) {
    if let Some(mut stdin) = stdin {
        // A pi that ends without reading says why by its exit.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
}

/// Reads what there is. At the end the stream is put away, and this waits for ever, so that others in a select go on.
async fn read(stream: &mut Option<impl AsyncReadExt + Unpin>, buffer: &mut [u8]) -> usize {
    let Some(open) = stream else { return std::future::pending().await };
    let count = open.read(buffer).await.unwrap_or(0);
    if count == 0 {
        *stream = None;
    }
    count
}

/// A background process of a shell tool is in no process group of ours, but it is a descendant.
async fn end_descendants(reporter: &mut Reporter) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        sys::kill_descendants();
        if !sys::reap_children() {
            return;
        }
        if Instant::now() > deadline {
            return reporter.warning("processes_left", "some processes of the agent could not be ended");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What is known while pi runs.
struct Run {
    watch: Watch,
    lines: Lines,
    log: Log,
    last: Option<Assistant>,
    text: String,
    tool: String,
    aborted: bool,
    started: bool,
    changed: bool,
    /// Why and since when it is being stopped.
    stop: Option<(Option<Failure>, Instant)>,
    told: bool,
    /// Since when pi is dead or ought to be.
    dead: Option<Instant>,
}

impl Run {
    fn new(limits: Limits, log: Log) -> Self {
        Run {
            watch: Watch::start(limits, Instant::now()),
            lines: Lines::default(),
            log,
            last: None,
            text: String::new(),
            tool: String::new(),
            aborted: false,
            started: false,
            changed: true,
            stop: None,
            told: false,
            dead: None,
        }
    }

    fn take(&mut self, bytes: &[u8], reporter: &mut Reporter) {
        let mut lines = std::mem::take(&mut self.lines);
        let mut events = Vec::new();
        lines.feed(bytes, |event| events.push(event), |raw| self.log.write(raw));
        self.lines = lines;
        for event in events {
            self.event(event, reporter);
        }
    }

    fn event(&mut self, event: PiEvent, reporter: &mut Reporter) {
        if let Some(failure) = self.watch.event(&event, Instant::now())
            && !self.stopping()
        {
            self.stop(failure);
        }
        match event {
            PiEvent::Message { assistant: Some(message), .. } => {
                if let Some(text) = &message.text {
                    text.clone_into(&mut self.text);
                }
                self.last = Some(message);
            }
            PiEvent::ToolStart { name, summary, .. } => {
                self.tool = format!("{name} {summary}").trim().to_owned();
            }
            PiEvent::RetryStart { attempt, max, delay_ms, error } => {
                let fields = json!({"attempt": attempt, "max": max, "delayMs": delay_ms, "error": error});
                reporter.event("retry", fields, &format!("retry {attempt} of {max}: {}", clip(&error, 120)));
            }
            PiEvent::Settled { aborted } => self.aborted = aborted,
            PiEvent::Session => self.started = true,
            PiEvent::Other => return,
            _ => {}
        }
        self.changed = true;
    }

    fn tick(&mut self, reporter: &mut Reporter, diff: Option<DiffStat>) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let usage = &self.watch.usage;
        let tool = self.watch.tool(Instant::now());
        let fields = json!({
            "turn": self.watch.turns,
            "tool": tool.map(|(name, elapsed)| json!({
                "name": name, "summary": self.tool, "elapsedMs": elapsed.as_millis() as u64,
            })),
            "usage": usage,
            "diff": diff,
        });
        let doing = if tool.is_some() { self.tool.as_str() } else { "" };
        let size = diff.map(|diff| format!(" +{} -{}", diff.add, diff.del)).unwrap_or_default();
        let what = format!("turn {} ${:.2}{size} {doing}", self.watch.turns, usage.cost.total);
        reporter.event("progress", fields, what.trim_end());
    }

    fn stopping(&self) -> bool {
        self.stop.is_some()
    }

    fn stop(&mut self, why: Failure) {
        self.stop = Some((Some(why), Instant::now()));
    }

    /// Signals that are due.
    fn enforce(&mut self, pid: u32) {
        if self.stop.is_none() {
            match self.watch.due(Instant::now()) {
                Some(Stop::Limit(failure)) => self.stop(failure),
                Some(Stop::Settled) => self.stop = Some((None, Instant::now())),
                None => {}
            }
        }
        if let Some((_, since)) = &self.stop {
            if !self.told {
                sys::terminate(pid);
                self.told = true;
            } else if since.elapsed() > GRACE {
                sys::kill_hard(pid);
                self.dead.get_or_insert_with(Instant::now);
            }
        }
    }

    /// Whether to go on without having been told of pi's end. Of the end of a process that is traced only the tracer is told, until it
    /// has ended too: so one that pi has started ends with it.
    fn given_up(&mut self, pid: u32) -> bool {
        if sys::start_of(pid).is_none() {
            self.dead.get_or_insert_with(Instant::now);
        }
        if self.dead.is_some() {
            sys::kill_descendants();
        }
        self.dead.is_some_and(|since| since.elapsed() > UNKILLABLE)
    }

    /// How it went; no status: nobody was told of pi's end.
    fn finish(self, status: Option<ExitStatus>, stderr: &str) -> Finished {
        use std::os::unix::process::ExitStatusExt;
        let stop_reason = self.last.as_ref().map(|message| message.stop_reason.clone());
        let end = AgentEnd {
            stop_reason: stop_reason.clone(),
            exit_code: status.and_then(|status| status.code()),
            signal: status.and_then(|status| status.signal()),
            turns: self.watch.turns,
            session: String::new(),
        };
        let failure = match self.stop {
            // It was done before it was told to stop.
            Some((Some(failure), _)) if failure.code != Code::Cancelled || !self.watch.settled() => Some(failure),
            _ if self.watch.settled() && !self.aborted => verdict(self.last.as_ref()),
            _ if self.aborted => Some(Failure::new(Code::Cancelled, "the run was aborted inside pi")),
            _ => Some(crash(status, stderr, self.started, self.last.as_ref())),
        };
        Finished { end, usage: self.watch.usage, text: self.text, failure }
    }
}

/// pi's exit status says nothing about the model: its last message does.
fn verdict(last: Option<&Assistant>) -> Option<Failure> {
    let Some(last) = last else { return Some(Failure::new(Code::Crashed, "pi ended without an answer of the model")) };
    let said = last.error.as_deref().map(|error| clip(error, 400));
    match last.stop_reason.as_str() {
        "stop" => None,
        "length" => Some(
            Failure::new(Code::OutputLimit, "the model reached its output limit")
                .hint("resume the task, or ask for smaller steps"),
        ),
        "error" => Some(model_error(said.unwrap_or_else(|| "no reason given".into()))),
        other => Some(Failure::new(Code::Crashed, format!("pi ended in the middle of its work ({other})"))),
    }
}

fn model_error(said: String) -> Failure {
    Failure::new(Code::ModelError, format!("the model failed: {said}")).hint("its work is kept; go on with resume")
}

fn crash(status: Option<ExitStatus>, stderr: &str, started: bool, last: Option<&Assistant>) -> Failure {
    use std::os::unix::process::ExitStatusExt;
    if let Some(error) = last.and_then(|message| message.error.as_deref()) {
        return model_error(clip(error, 400));
    }
    let how = match status.map(|status| (status.code(), status.signal())) {
        None => "a status that nobody was told".into(),
        Some((Some(code), _)) => format!("status {code}"),
        Some((None, Some(9))) => "signal 9 (killed; perhaps out of memory)".into(),
        Some((None, signal)) => format!("signal {}", signal.unwrap_or(0)),
    };
    let said = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("");
    let failure = Failure::new(Code::Crashed, format!("pi ended with {how}: {}", clip(said.trim(), 300)));
    if started { failure.hint("its work is kept; go on with resume") } else { failure }
}
