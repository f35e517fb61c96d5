//! One task while this process works on it: its claim, its state on disk, and what is said about it.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cancel::Cancel;
use crate::failure::{Code, Failure, OrFail, Result};
use crate::repo::{Base, Workspace};
use crate::report::{Reporter, Stage, Usage};
use crate::store::{Lock, Owner, State, Store, TaskDir, now};
use crate::sys;
use crate::task::{Spec, TaskName};
use crate::worktree::Worktree;

pub(crate) struct Job {
    pub(crate) workspace: Workspace,
    pub(crate) store: Store,
    pub(crate) dir: TaskDir,
    pub(crate) state: State,
    pub(crate) worktree: Worktree,
    pub(crate) reporter: Reporter,
    pub(crate) cancel: Cancel,
    /// What this run has used; the state has the sum of all.
    pub(crate) usage: Usage,
    started: Instant,
    /// A state that is on its way to the disk.
    saving: Option<JoinHandle<Result<()>>>,
    _claim: Lock,
}

/// A task that is ours to work on, before anything about it has changed.
pub(crate) struct Claimed {
    pub(crate) workspace: Workspace,
    pub(crate) store: Store,
    pub(crate) dir: TaskDir,
    pub(crate) cancel: Cancel,
    started: Instant,
    claim: Lock,
}

impl Claimed {
    /// Takes the lock of a task that nobody runs. `request` to cancel is heard from now on, and our parent's end is one.
    pub(crate) fn take(workspace: Workspace, name: &TaskName) -> Result<Self> {
        let store = Store::open(&workspace.common);
        let dir = store.task(name);
        let claim = dir.claim()?.ok_or_else(|| {
            Failure::new(Code::Busy, format!("cannot work on '{name}': it is running"))
                .hint(format!("wait for it, or end it with: pi-subagent cancel {name}"))
        })?;
        let _ = std::fs::remove_file(dir.path("cancel"));
        let cancel = Cancel::listen(dir.path("cancel"))?;
        sys::supervise().or_fail(Code::Internal, || "cannot become the supervisor of pi".into())?;
        Ok(Claimed { workspace, store, dir, cancel, started: Instant::now(), claim })
    }

    /// Gives the task up unchanged; one that never had a state leaves no trace.
    pub(crate) fn release(self) {
        if matches!(self.dir.load(), Ok(None)) {
            let _ = self.dir.remove();
        }
    }

    /// From here on there is a job that ends with a result.
    pub(crate) fn begin(self, state: State, mut reporter: Reporter) -> Job {
        let worktree = Worktree::of(&self.workspace, &state);
        reporter.log_to(&self.dir.path("events.ndjson"));
        Job {
            workspace: self.workspace,
            store: self.store,
            dir: self.dir,
            state,
            worktree,
            reporter,
            cancel: self.cancel,
            usage: Usage::default(),
            started: self.started,
            saving: None,
            _claim: self.claim,
        }
    }
}

impl Job {
    /// Says what is being done now, and remembers it.
    pub(crate) fn stage(&mut self, stage: Stage) {
        self.state.stage = stage;
        self.save();
        self.tell();
    }

    /// The worktree is there and pi starts. That this is remembered takes as long as the disk needs for all the new files;
    /// pi does not wait for it, since the worktree's name says the same.
    pub(crate) fn runs(&mut self) {
        self.state.stage = Stage::Running;
        let (dir, mut state) = (self.dir.clone(), self.state.clone());
        match thread::Builder::new().spawn(move || dir.save(&mut state)) {
            Ok(saving) => self.saving = Some(saving),
            Err(_) => self.save(),
        }
        self.tell();
    }

    fn tell(&mut self) {
        let fields = json!({
            "pid": std::process::id(), "worktree": self.worktree.path, "branch": self.state.branch, "base": self.state.base,
        });
        self.reporter.stage(self.state.stage, fields);
    }

    /// Once there is work, a state that cannot be written must not stop it from being delivered.
    pub(crate) fn save(&mut self) {
        // An older state must not replace a newer one; if it could not be written, the newer one will say so.
        let _ = self.saving.take().map(JoinHandle::join);
        if let Err(failure) = self.dir.save(&mut self.state) {
            self.reporter.warning("state_not_saved", &failure.message);
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The state of a task that starts.
pub(crate) fn new_state(name: &TaskName, base: &Base, spec: Spec, run: &str) -> State {
    State {
        v: 1,
        task: name.clone(),
        run: run.to_owned(),
        attempt: 1,
        stage: Stage::Preparing,
        outcome: None,
        trouble: None,
        branch: name.branch(),
        base: base.branch.clone(),
        base_oid: base.oid.to_string(),
        worktree: format!(".worktrees/{name}"),
        ready: false,
        session: name.session(),
        owner: Owner::me(),
        spec,
        pushed: None,
        pr: None,
        agent: None,
        summary: String::new(),
        usage: Usage::default(),
        created_at: now(),
        updated_at: now(),
    }
}

/// For a run that was cut off: why its work is not complete. An agent that had come to its end is not the reason.
pub(crate) fn note_interruption(state: &mut State) {
    if state.outcome.is_none() && state.agent.is_none() {
        state.trouble.get_or_insert_with(|| "the run was interrupted".to_owned());
    }
}

/// Names one run: enough to tell it from all others in a log.
pub(crate) fn run_id() -> String {
    let nanos =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    format!("{:x}-{:x}", nanos >> 10, std::process::id())
}

/// Ends what a run whose runner was killed has left behind: it must not write into the worktree any more.
pub(crate) async fn end_leftovers(state: &State) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut told = false;
    loop {
        let left = sys::marked(&state.run);
        if left.is_empty() {
            return Ok(());
        }
        let patience = deadline.saturating_duration_since(Instant::now());
        for pid in &left {
            match (told, patience.is_zero()) {
                (false, _) => sys::terminate(*pid),
                (true, true) => sys::kill_hard(*pid),
                (true, false) => {}
            }
        }
        if deadline.elapsed() > Duration::from_secs(5) {
            let text = format!("cannot go on with '{}': process {} of its last run does not end", state.task, left[0]);
            return Err(Failure::new(Code::Busy, text));
        }
        told = true;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
