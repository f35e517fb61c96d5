//! `pi-subagent list`: every task with its true state, from disk and git alone.

use serde_json::{Value, json};

use crate::config::Config;
use crate::failure::Result;
use crate::judge::Facts;
use crate::repo::Workspace;
use crate::result::count;
use crate::store::{Store, now};

pub(crate) async fn list(config: &Config) -> Result<Value> {
    let workspace = Workspace::discover(&config.cwd)?;
    let store = Store::open(&workspace.common);
    let (mut tasks, mut lines) = (Vec::new(), Vec::new());
    for dir in store.tasks()? {
        let name = dir.name.as_str();
        match dir.load() {
            Ok(Some(state)) => {
                let facts = Facts::of(&workspace, &dir, state).await;
                lines.push(line(&facts));
                tasks.push(entry(&workspace, &facts));
            }
            Ok(None) => {}
            Err(failure) => {
                lines.push(format!("{name:<24} unreadable   {}", failure.message));
                tasks.push(json!({"task": name, "state": "unreadable", "live": false, "error": failure.message}));
            }
        }
    }
    let text = if lines.is_empty() { "No subagents.".to_owned() } else { lines.join("\n") };
    Ok(json!({"v": 1, "tasks": tasks, "text": text}))
}

/// One task as JSON.
pub(crate) fn entry(workspace: &Workspace, facts: &Facts) -> Value {
    let state = &facts.state;
    json!({
        "task": state.task,
        "state": facts.outcome(),
        "live": facts.live,
        "pid": if facts.live { Some(state.owner.pid) } else { None },
        "attempt": state.attempt,
        "branch": state.branch,
        "base": state.base,
        "baseOid": state.base_oid,
        "worktree": if facts.worktree { Some(workspace.worktree(state.task.as_str())) } else { None },
        "dirty": facts.dirty,
        "commits": facts.commits,
        "pushed": state.pushed.is_some(),
        "pr": state.pr,
        "usage": state.usage,
        "createdAt": state.created_at,
        "updatedAt": state.updated_at,
        "text": line(facts),
    })
}

/// One task as a line.
pub(crate) fn line(facts: &Facts) -> String {
    let state = &facts.state;
    let age = now().saturating_sub(state.created_at) / 60_000;
    let age = match age {
        0..60 => format!("{age} min"),
        60..2880 => format!("{} h", age / 60),
        _ => format!("{} days", age / 1440),
    };
    let dirty = match facts.dirty {
        Some(0) => String::new(),
        Some(count) => format!(", {count} uncommitted"),
        None => ", git cannot read the worktree".into(),
    };
    let place = match (&state.pr, &state.pushed) {
        (Some(pr), _) => pr.url.clone(),
        (None, Some(_)) => "pushed".into(),
        (None, None) => String::new(),
    };
    let cost = state.usage.cost.total;
    let text = format!(
        "{:<24} {:<12} {:>8}  ${cost:.2}  {commits}{dirty}  {place}",
        state.task.as_str(),
        facts.outcome(),
        age,
        commits = count(facts.commits, "commit")
    );
    text.trim_end().to_owned()
}
