//! Looking at a task from another process, and asking it to end: `cancel`, `wait`, `logs`, `show`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::config::Config;
use crate::failure::{Code, Failure, OrFail, Result};
use crate::judge::Facts;
use crate::list;
use crate::repo::Workspace;
use crate::report::answer;
use crate::store::{State, Store, TaskDir};
use crate::task::TaskName;

const POLL: Duration = Duration::from_millis(100);
/// pi's grace, a commit, and some time for a busy machine.
const END: Duration = Duration::from_secs(60);

fn find(config: &Config, task: &str) -> Result<(Workspace, TaskDir, State)> {
    let name = TaskName::parse(task)?;
    let workspace = Workspace::discover(&config.cwd)?;
    let store = Store::open(&workspace.common);
    let dir = store.task(&name);
    let state = dir.load()?.ok_or_else(|| store.unknown(&name))?;
    Ok((workspace, dir, state))
}

fn live(dir: &TaskDir) -> bool {
    matches!(dir.load(), Ok(Some(state)) if dir.live(&state))
}

/// Asks a running task to end, and waits until it has. Works from another container too.
pub(crate) async fn cancel(config: &Config, task: &str) -> Result<u8> {
    let (_, dir, _) = find(config, task)?;
    if !live(&dir) {
        answer(false, &json!({"text": format!("'{task}' is not running.")}));
        return Ok(0);
    }
    dir.write("cancel", b"")?;
    let started = Instant::now();
    while live(&dir) {
        if started.elapsed() > END {
            return Err(Failure::new(
                Code::Busy,
                format!("cannot end '{task}': it has not ended in {} s", END.as_secs()),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
    answer(false, &json!({"text": format!("'{task}' has ended; its work is kept.")}));
    Ok(0)
}

/// Waits for the end of a task; gives its exit status.
pub(crate) async fn wait(config: &Config, task: &str, json: bool) -> Result<u8> {
    let (_, dir, _) = find(config, task)?;
    while live(&dir) {
        tokio::time::sleep(POLL).await;
    }
    let result = last_result(&dir.path("events.ndjson")).ok_or_else(|| {
        Failure::new(Code::Crashed, format!("'{task}' was cut off and has no result"))
            .hint(format!("put things in order with: pi-subagent recover, then resume or finish {task}"))
    })?;
    answer(json, &result);
    Ok(result["exit"].as_u64().and_then(|exit| u8::try_from(exit).ok()).unwrap_or(70))
}

/// The last line of the file if it is a result.
fn last_result(path: &Path) -> Option<Value> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(64 << 10))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let line = bytes.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty())?;
    serde_json::from_slice::<Value>(line).ok().filter(|event| event["type"] == "result")
}

/// Prints what the task has said, `raw` as pi said it.
pub(crate) async fn logs(config: &Config, task: &str, follow: bool, raw: bool) -> Result<u8> {
    let (_, dir, _) = find(config, task)?;
    let path = dir.path(if raw { "pi.ndjson" } else { "events.ndjson" });
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        opened => opened.or_fail(Code::Internal, || format!("cannot read '{}'", path.display()))?,
    };
    let mut rest = Vec::new();
    loop {
        // Asked before reading: what is written until it ends is then read in any case.
        let more = follow && live(&dir);
        let mut bytes = Vec::new();
        let read = Read::by_ref(&mut file).take(1 << 20).read_to_end(&mut bytes);
        let count = read.or_fail(Code::Internal, || format!("cannot read '{}'", path.display()))?;
        rest.extend_from_slice(&bytes);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if print(&line, raw).is_err() {
                return Ok(0);
            }
        }
        if count == 0 && !more {
            return Ok(0);
        }
        if count == 0 {
            tokio::time::sleep(POLL).await;
        }
    }
}

fn print(line: &[u8], raw: bool) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    if raw {
        return stdout.write_all(line);
    }
    let event: Value = serde_json::from_slice(line).unwrap_or_default();
    writeln!(stdout, "{}", event["text"].as_str().unwrap_or_default())
}

/// Everything known about a task.
pub(crate) async fn show(config: &Config, task: &str) -> Result<Value> {
    let (workspace, dir, state) = find(config, task)?;
    let facts = Facts::of(&workspace, &dir, state).await;
    let mut entry = list::entry(&workspace, &facts);
    let state = &facts.state;
    let result = last_result(&dir.path("events.ndjson"));
    let said = result.as_ref().and_then(|result| result["text"].as_str()).unwrap_or(&state.summary).to_owned();
    let text = format!("{}\nfrom {} at {}\n\n{said}", list::line(&facts), state.base, &state.base_oid[..10]);
    entry["instructions"] = json!(state.spec.instructions);
    entry["summary"] = json!(state.summary);
    entry["agent"] = json!(state.agent);
    entry["log"] = json!(dir.path("events.ndjson"));
    entry["result"] = json!(result);
    entry["text"] = json!(text.trim_end());
    Ok(entry)
}
