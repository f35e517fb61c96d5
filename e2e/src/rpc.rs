//! pi in its RPC mode, through the launcher: JSON records, one a line, both ways.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

use crate::launch::Launch;
use crate::wait_until;

/// For one answer; a subagent's whole run is below it.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Rpc {
    child: Child,
    stdin: Option<ChildStdin>,
    records: Arc<Mutex<Vec<Value>>>,
    said: Arc<Mutex<String>>,
    asked: u64,
}

impl Launch {
    /// Starts pi in RPC mode.
    pub fn start_rpc(self) -> Result<Rpc> {
        let mut command = self.args(["--mode", "rpc"]).command;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start the launcher")?;
        let (records, said) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(String::new())));
        let (stdout, stderr) = (child.stdout.take().context("no output")?, child.stderr.take().context("no errors")?);
        let (kept, words) = (records.clone(), said.clone());
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let record = serde_json::from_slice(&line).unwrap_or_else(|_| json!({ "type": "not JSON" }));
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(record);
            }
        });
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = BufReader::new(stderr).read_to_end(&mut bytes);
            words.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(&bytes));
        });
        Ok(Rpc { stdin: child.stdin.take(), child, records, said, asked: 0 })
    }
}

impl Rpc {
    /// Everything that pi has said so far.
    pub fn records(&self) -> Vec<Value> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn send(&mut self, record: &Value) -> Result<()> {
        let stdin = self.stdin.as_mut().context("pi's input is closed")?;
        writeln!(stdin, "{record}").context("cannot write to the launcher")
    }

    /// Waits for the first record from number `from` on that `wanted` takes.
    pub fn wait(&mut self, what: &str, from: usize, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let found = wait_until(what, PATIENCE, || {
            let found = self.records().into_iter().skip(from).find(&wanted);
            match self.child.try_wait()? {
                Some(status) if found.is_none() => bail!("the launcher has ended with {status}"),
                _ => Ok(found),
            }
        });
        found.map_err(|error| {
            let tail: Vec<_> = self.records().iter().rev().take(12).map(Value::to_string).collect();
            anyhow!("{error}\n{}\n{}", tail.join("\n"), self.said.lock().unwrap_or_else(PoisonError::into_inner))
        })
    }

    /// Sends a command and gives the data of its response.
    pub fn ask(&mut self, mut command: Value) -> Result<Value> {
        self.asked += 1;
        let (id, from) = (format!("ask-{}", self.asked), self.records().len());
        command["id"] = id.clone().into();
        self.send(&command)?;
        let answer = self.wait(&format!("{command} is answered"), from, |record| {
            record["type"] == "response" && record["id"] == id.as_str()
        })?;
        if answer["success"] != true {
            bail!("pi refused {command}: {answer}");
        }
        Ok(answer["data"].clone())
    }

    /// Says something to pi, and gives what came of it, up to where pi has settled.
    pub fn prompt(&mut self, text: &str) -> Result<Vec<Value>> {
        let from = self.records().len();
        self.ask(json!({ "type": "prompt", "message": text }))?;
        self.wait(&format!("pi has settled after '{text}'"), from, |record| record["type"] == "agent_settled")?;
        Ok(self.records().split_off(from))
    }

    /// Calls a slash command, and gives the text that it shows.
    pub fn command(&mut self, line: &str) -> Result<String> {
        let from = self.records().len();
        self.ask(json!({ "type": "prompt", "message": line }))?;
        let shown = self.wait(&format!("'{line}' shows something"), from, |record| record["method"] == "notify")?;
        Ok(shown["message"].as_str().unwrap_or_default().to_owned())
    }

    /// Closes pi's input and waits for the end of it all; gives the exit status.
    pub fn finish(mut self) -> Result<i32> {
        self.stdin = None;
        let status = wait_until("the launcher ends", PATIENCE, || Ok(self.child.try_wait()?))?;
        Ok(status.code().unwrap_or(-1))
    }
}

impl Drop for Rpc {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
