//! What the program says: events and exactly one result, one JSON object a line, and the same as plain lines for a person.
//! The wire contract with the extension, and with `out.rs` the only writer of stdout. A reader that went away stops nothing:
//! from then on events go to the task's own file only.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::out::Out;
use crate::secret::Secret;
use crate::store::now;
use crate::stream::clip;

/// Where PID 1 takes lines for its log.
const MAILBOX: &str = "/home/pi/.config/pi-docker/log";

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    Queued,
    Preparing,
    Setup,
    Running,
    Settling,
    Committing,
    Pushing,
    OpeningPr,
    Done,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Succeeded,
    NoChanges,
    /// There is work, but not all of it is where it should be.
    Partial,
    Failed,
    Timeout,
    Budget,
    Cancelled,
    /// Found later: the process that ran it is gone.
    Interrupted,
}

/// pi's own usage object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Usage {
    pub(crate) input: u64,
    pub(crate) output: u64,
    pub(crate) cache_read: u64,
    pub(crate) cache_write: u64,
    pub(crate) total_tokens: u64,
    pub(crate) cost: Cost,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Cost {
    pub(crate) input: f64,
    pub(crate) output: f64,
    pub(crate) cache_read: f64,
    pub(crate) cache_write: f64,
    pub(crate) total: f64,
}

impl Usage {
    pub(crate) fn add(&mut self, other: &Usage) {
        self.input += other.input;
        self.output += other.output;
        self.cache_read += other.cache_read;
        self.cache_write += other.cache_write;
        self.total_tokens += other.total_tokens;
        self.cost.input += other.cost.input;
        self.cost.output += other.cost.output;
        self.cost.cache_read += other.cost.cache_read;
        self.cost.cache_write += other.cost.cache_write;
        self.cost.total += other.cost.total;
    }
}

/// How pi ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct AgentEnd {
    pub(crate) stop_reason: Option<String>,
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) turns: u64,
    pub(crate) session: String,
}

/// Changed files and lines against the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct DiffStat {
    pub(crate) files: usize,
    pub(crate) add: usize,
    pub(crate) del: usize,
}

/// The branch at the end of a run.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GitInfo {
    pub(crate) branch: String,
    pub(crate) base: String,
    pub(crate) base_oid: String,
    pub(crate) head: String,
    pub(crate) commits: usize,
    #[serde(flatten)]
    pub(crate) diff: DiffStat,
    pub(crate) auto_committed: bool,
    pub(crate) dirty: bool,
    pub(crate) pushed: bool,
    pub(crate) ahead: usize,
    pub(crate) behind: usize,
    pub(crate) conflicts: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PrInfo {
    pub(crate) url: String,
    pub(crate) number: u64,
    pub(crate) draft: bool,
    pub(crate) existed: bool,
}

/// The last line of a run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RunResult {
    pub(crate) ok: bool,
    pub(crate) state: Outcome,
    pub(crate) phase: Stage,
    pub(crate) exit: u8,
    pub(crate) error: Option<Value>,
    pub(crate) agent: Option<AgentEnd>,
    pub(crate) git: Option<GitInfo>,
    pub(crate) pr: Option<PrInfo>,
    /// Of this run.
    pub(crate) usage: Usage,
    /// Of all runs of the task.
    pub(crate) total_usage: Usage,
    pub(crate) duration_ms: u64,
    pub(crate) paths: Value,
    pub(crate) summary: String,
    pub(crate) warnings: Vec<String>,
    pub(crate) next: Vec<String>,
    pub(crate) text: String,
}

/// The `error` object of a result.
pub(crate) fn error_value(failure: &Failure) -> Value {
    json!({
        "code": failure.code.name(), "message": failure.message, "hint": failure.hint, "retryable": failure.code.retryable(),
    })
}

/// Where lines go.
pub(crate) struct Reporter {
    out: Option<Out>,
    quiet: bool,
    task: String,
    run: String,
    seq: u64,
    log: Option<File>,
    secret: Option<Secret>,
    pub(crate) warnings: Vec<String>,
}

impl Reporter {
    pub(crate) fn new(json: bool, task: &str, run: &str) -> Self {
        let (task, run) = (task.to_owned(), run.to_owned());
        Reporter {
            out: json.then(Out::start),
            quiet: false,
            task,
            run,
            seq: 0,
            log: None,
            secret: None,
            warnings: Vec::new(),
        }
    }

    /// One that writes to the task's own file only.
    pub(crate) fn silent(task: &str, run: &str) -> Self {
        Reporter { quiet: true, ..Reporter::new(false, task, run) }
    }

    /// The reporter itself, for a job to hold; what stays behind says nothing.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::replace(self, Reporter::silent("", ""))
    }

    /// From now on every event is also appended to this file.
    pub(crate) fn log_to(&mut self, path: &Path) {
        self.log = OpenOptions::new().append(true).create(true).mode(0o600).open(path).ok();
    }

    /// From now on this value appears in no line, whoever says it.
    pub(crate) fn keep_secret(&mut self, secret: &Secret) {
        self.secret = Some(secret.clone());
    }

    pub(crate) fn redact(&self, text: &str) -> String {
        self.secret.as_ref().map_or_else(|| text.to_owned(), |secret| secret.redact(text))
    }

    pub(crate) fn run(&self) -> &str {
        &self.run
    }

    pub(crate) fn rename(&mut self, task: &str) {
        task.clone_into(&mut self.task);
    }

    /// `what` is the short line for a person.
    pub(crate) fn event(&mut self, kind: &str, fields: Value, what: &str) {
        let text = self.redact(&format!("[{}] {what}", self.task));
        if self.out.is_none() && !self.quiet {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
        self.emit(kind, fields, text);
    }

    pub(crate) fn stage(&mut self, stage: Stage, mut fields: Value) {
        let name = json!(stage).as_str().unwrap_or_default().replace('_', " ");
        fields["state"] = json!(stage);
        self.event("state", fields, &name);
        self.tell_pid1(&name);
    }

    pub(crate) fn warning(&mut self, code: &str, message: &str) {
        let message = clip(&self.redact(message), 1_000);
        self.event("warning", json!({"code": code, "message": message}), &format!("warning: {message}"));
        self.tell_pid1(&format!("warning: {message}"));
        self.warnings.push(message);
    }

    /// The result, the last line. In plain mode its text is the answer on stdout.
    pub(crate) fn result(&mut self, result: &RunResult) {
        let fields = serde_json::to_value(result).unwrap_or_default();
        if self.out.is_none() && !self.quiet {
            let _ = writeln!(std::io::stdout(), "{}", self.redact(&result.text));
        }
        self.emit("result", fields, result.text.clone());
        self.tell_pid1(&self.redact(result.text.lines().next().unwrap_or_default()));
        if let Some(out) = &mut self.out {
            out.finish();
        }
    }

    /// A line for `pi-docker logs`, if PID 1 is there to take it. It is never waited for.
    fn tell_pid1(&self, what: &str) {
        if let (false, Ok(socket)) = (self.quiet, UnixDatagram::unbound()) {
            let line = clip(&format!("[{}] {what}", self.task), 900);
            let _ = socket.set_nonblocking(true).and_then(|()| socket.send_to(line.as_bytes(), MAILBOX));
        }
    }

    fn emit(&mut self, kind: &str, fields: Value, text: String) {
        self.seq += 1;
        let mut event = json!({"v": 1, "seq": self.seq, "ts": now(), "run": self.run, "task": self.task, "type": kind});
        if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields) {
            event.extend(fields);
        }
        event["text"] = Value::String(text);
        let line = self.redact(&format!("{event}\n"));
        if let Some(log) = &mut self.log {
            let _ = log.write_all(line.as_bytes());
        }
        if let Some(out) = &mut self.out {
            out.line(line, kind == "progress");
        }
    }
}

/// Prints one answer that is not a run's: a JSON object or its text.
pub(crate) fn answer(json_wanted: bool, value: &Value) {
    let mut stdout = std::io::stdout().lock();
    let _ = if json_wanted {
        writeln!(stdout, "{value}")
    } else {
        writeln!(stdout, "{}", value["text"].as_str().unwrap_or_default())
    };
}

/// The one place that prints an error.
pub(crate) fn complain(failure: &Failure) {
    let _ = writeln!(std::io::stderr(), "pi-subagent: {failure}");
}
