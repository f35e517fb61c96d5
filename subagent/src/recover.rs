//! `pi-subagent recover`: after a crash. Runs that were cut off get their true state, what their agents left uncommitted
//! becomes a commit, what only exists half is removed. Local, and nothing that could be work is deleted.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::commit::leftovers;
use crate::config::Config;
use crate::failure::{Failure, Result};
use crate::job::{end_leftovers, note_interruption};
use crate::repo::Workspace;
use crate::report::{Outcome, Reporter};
use crate::result;
use crate::store::{State, Store, TaskDir, now};
use crate::worktree::Worktree;

/// How long discarded work can be taken back.
const TRASH_DAYS: u64 = 14;

pub(crate) async fn recover(config: &Config) -> Result<Value> {
    let workspace = match Workspace::discover(&config.cwd) {
        Ok(workspace) => workspace,
        // A session may start anywhere; there is nothing to recover where no repository is.
        Err(failure) => return Ok(json!({"v": 1, "recovered": 0, "tasks": [], "text": failure.message})),
    };
    let store = Store::open(&workspace.common);
    let (mut tasks, mut lines) = (Vec::new(), Vec::new());
    for dir in store.tasks()? {
        match one(&workspace, &store, &dir).await {
            Ok(Some(said)) => {
                lines.push(format!("{}: {said}", dir.name));
                tasks.push(json!({"task": dir.name, "said": said}));
            }
            Ok(None) => {}
            Err(failure) => {
                lines.push(format!("{}: {}", dir.name, failure.message));
                tasks.push(json!({"task": dir.name, "said": failure.message}));
            }
        }
    }
    sweep(&workspace, &store);
    let text = if lines.is_empty() { "Nothing to recover.".to_owned() } else { lines.join("\n") };
    Ok(json!({"v": 1, "recovered": tasks.len(), "tasks": tasks, "text": text}))
}

/// What was done about one task; none if it needed nothing.
async fn one(workspace: &Workspace, store: &Store, dir: &TaskDir) -> Result<Option<String>> {
    let needs = |state: &State| state.outcome.is_none() || Worktree::of(workspace, state).is_aside();
    if dir.load()?.is_some_and(|state| !needs(&state)) {
        return Ok(None);
    }
    let Some(_claim) = dir.claim()? else { return Ok(None) };
    let Some(mut state) = dir.load()?.filter(needs) else { return Ok(None) };
    let worktree = Worktree::of(workspace, &state);
    worktree.put_back()?;
    if state.outcome.is_some() {
        return Ok(Some("its cleanup was interrupted; it is kept".to_owned()));
    }
    end_leftovers(&state).await?;
    let mut said =
        format!("was interrupted while {}", json!(state.stage).as_str().unwrap_or_default().replace('_', " "));
    if worktree.whole() {
        state.ready = true;
        worktree.clear_stale_locks();
        match leftovers(&worktree, &state.task).await {
            Ok(left) if left.committed => said.push_str("; what it had not committed is committed now"),
            Ok(left) if !left.kept.is_empty() => said.push_str("; it has uncommitted changes"),
            Ok(_) => {}
            Err(Failure { message, .. }) => said.push_str(&format!("; {message}")),
        }
    } else if !state.ready {
        let _lock = store.repository_lock().await?;
        worktree.remove_unborn()?;
    }
    note_interruption(&mut state);
    state.outcome = Some(Outcome::Interrupted);
    dir.save(&mut state)?;
    let mut reporter = Reporter::silent(state.task.as_str(), &state.run);
    reporter.log_to(&dir.path("events.ndjson"));
    said.push_str(&format!("; go on with resume, or only push with finish: {}", state.task));
    reporter.result(&result::interrupted(&state, &worktree, &said));
    Ok(Some(said))
}

/// What cleanups left half-way, and trash that has become old.
fn sweep(workspace: &Workspace, store: &Store) {
    let worktrees = workspace.root.join(".worktrees");
    for entry in fs::read_dir(&worktrees).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".gone-") {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let old = now().saturating_sub(Duration::from_secs(TRASH_DAYS * 86_400).as_millis() as u64);
    let stamp = |name: &str| name.rsplit_once('-').and_then(|(_, stamp)| stamp.parse::<u64>().ok());
    for place in [worktrees.join(".trash"), store.dir().join("trash")] {
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            if stamp(&entry.file_name().to_string_lossy()).is_some_and(|stamp| stamp < old) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
    let Ok(repository) = workspace.shared() else { return };
    for reference in repository.references_glob("refs/pi-subagent/trash/*").into_iter().flatten().flatten() {
        let mut reference = reference;
        if reference.name().ok().and_then(stamp).is_some_and(|stamp| stamp < old) {
            let _ = reference.delete();
        }
    }
}
