//! The story of a task: claimed → checked → a slot → a worktree → pi → committed → pushed → pull request → one result.
//! `spawn` tells all of it, `resume` from the slot on, `finish` only the end.

use std::time::Instant;

use git2::Oid;
use serde_json::json;

use crate::agent::{Agent, Finished};
use crate::cancel::Cancel;
use crate::config::Config;
use crate::deliver::{self, Delivered};
use crate::failure::{Code, Failure, OrFail, Result};
use crate::limits::Limits;
use crate::preflight::{self, Remote};
use crate::repo::{Base, Workspace};
use crate::report::{Outcome, Reporter, Stage, Usage};
use crate::result::{self, Ending};
use crate::slots;
use crate::store::{Lock, Owner, State, Store, TaskDir, now};
use crate::sys;
use crate::task::{IfExists, PrMode, Spec, TaskName};
use crate::worktree::Worktree;

/// One task while this process works on it.
pub(crate) struct Job {
    pub(crate) workspace: Workspace,
    pub(crate) store: Store,
    pub(crate) dir: TaskDir,
    pub(crate) state: State,
    pub(crate) worktree: Worktree,
    pub(crate) reporter: Reporter,
    pub(crate) cancel: Cancel,
    started: Instant,
    _claim: Lock,
}

impl Job {
    /// Says what is being done now, and remembers it.
    pub(crate) fn stage(&mut self, stage: Stage) {
        self.state.stage = stage;
        self.save();
        let fields = json!({
            "pid": std::process::id(), "worktree": self.worktree.path, "branch": self.state.branch, "base": self.state.base,
        });
        self.reporter.stage(stage, fields);
    }

    /// Once there is work, a state that cannot be written must not stop it from being delivered.
    pub(crate) fn save(&mut self) {
        if let Err(failure) = self.dir.save(&mut self.state) {
            self.reporter.warning("state_not_saved", &failure.message);
        }
    }

    fn end(mut self, ending: Ending) -> u8 {
        let result = result::conclude(&mut self, ending);
        self.reporter.result(&result);
        result.exit
    }

    pub(crate) fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// `pi-subagent spawn`: gives the exit status, after exactly one result.
pub(crate) async fn spawn(config: &Config, spec: Spec, json: bool) -> u8 {
    let mut reporter = Reporter::new(json, &spec.task, &run_id());
    match begin(config, spec, &mut reporter).await {
        Ok((job, remote)) => work(config, job, remote).await,
        Err(failure) => {
            let result = result::refusal(&reporter, &failure);
            reporter.result(&result);
            result.exit
        }
    }
}

/// Everything that can fail before something is made.
async fn begin(config: &Config, spec: Spec, reporter: &mut Reporter) -> Result<(Job, Remote)> {
    refuse_nested(config)?;
    let started = Instant::now();
    if spec.instructions.trim().is_empty() {
        return Err(Failure::new(Code::Usage, "cannot start a subagent without instructions"));
    }
    let mut name = TaskName::parse(&spec.task)?;
    let workspace = Workspace::discover(&config.cwd)?;
    let store = Store::open(&workspace.common);
    let mut number = 1;
    let (dir, claim) = loop {
        match claim_new(&store, &workspace, &name) {
            Err(failure) if failure.code == Code::Exists && spec.if_exists == IfExists::Suffix && number < 100 => {
                number += 1;
                name = TaskName::parse(&spec.task)?.with_suffix(number);
            }
            claimed => break claimed?,
        }
    };
    reporter.rename(name.as_str());
    let cancel = Cancel::listen(dir.path("cancel"))?;
    sys::supervise().or_fail(Code::Internal, || "cannot become the supervisor of pi".into())?;
    let checked = async {
        let base = workspace.base(spec.base.as_deref())?;
        let remote = preflight::connect(config, &workspace, spec.pr).await?;
        let warnings = preflight::check(&remote, &workspace, &base, &name.branch()).await?;
        Ok((base, remote, warnings))
    };
    let (base, remote, warnings) = match cancel.or(checked).await {
        Ok(checked) => checked,
        Err(failure) => {
            // Nothing was made: the name is free again.
            let _ = dir.remove();
            return Err(failure);
        }
    };
    for (code, message) in warnings {
        reporter.warning(code, &message);
    }
    if let Some(message) = preflight::uncommitted(&workspace.root).await {
        reporter.warning("parent_dirty", &message);
    }
    let worktree = Worktree::of(&workspace, &name);
    let state = new_state(&name, &base, spec, reporter.run());
    let reporter = std::mem::replace(reporter, Reporter::new(false, "", ""));
    let mut job = Job { workspace, store, dir, state, worktree, reporter, cancel, started, _claim: claim };
    job.reporter.log_to(&job.dir.path("events.ndjson"));
    Ok((job, remote))
}

fn claim_new(store: &Store, workspace: &Workspace, name: &TaskName) -> Result<(TaskDir, Lock)> {
    let dir = store.task(name);
    let claim = dir.claim()?.ok_or_else(|| {
        Failure::new(Code::Busy, format!("cannot start '{name}': it is running"))
            .hint(format!("wait for it, or end it with: pi-subagent cancel {name}"))
    })?;
    let taken = dir.load()?.is_some() || workspace.worktree(name.as_str()).exists();
    if taken {
        return Err(Failure::new(Code::Exists, format!("cannot start '{name}': there is a task of this name"))
            .hint(format!("choose another name, go on with it by resume, or remove it: pi-subagent cleanup {name}")));
    }
    Ok((dir, claim))
}

fn new_state(name: &TaskName, base: &Base, spec: Spec, run: &str) -> State {
    State {
        v: 1,
        task: name.clone(),
        run: run.to_owned(),
        attempt: 1,
        stage: Stage::Preparing,
        outcome: None,
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

/// From a slot to the result. From here on there is always a job that can end.
async fn work(config: &Config, mut job: Job, remote: Remote) -> u8 {
    let finished = match run_agent(config, &mut job).await {
        Ok(finished) => finished,
        Err(failure) => return job.end(Ending { failure: Some(failure), delivered: Delivered::default() }),
    };
    job.state.usage.add(&finished.usage);
    job.state.agent = Some(finished.end);
    finished.text.trim().clone_into(&mut job.state.summary);
    let mut delivered = deliver::gather(&mut job).await;
    let cancelled = job.cancel.requested();
    if delivered.git.commits > 0 && !cancelled {
        let why = finished.failure.as_ref().map(|failure| failure.message.clone());
        let why = why.or_else(|| delivered.git.dirty.then(|| "not everything could be committed".into()));
        deliver::send(&mut job, &remote, &mut delivered, why.as_deref()).await;
    }
    job.end(Ending { failure: finished.failure, delivered })
}

async fn run_agent(config: &Config, job: &mut Job) -> Result<Finished> {
    job.dir.save(&mut job.state)?;
    job.stage(Stage::Queued);
    let wait = !job.state.spec.no_wait_slot;
    let cancel = job.cancel.clone();
    let reporter = &mut job.reporter;
    let told =
        |position| reporter.event("queued", json!({"position": position}), &format!("waiting, place {position}"));
    let _slot = cancel.or(slots::take(job.store.dir(), config.slots, wait, told)).await?;
    job.stage(Stage::Preparing);
    make_worktree(job).await?;
    job.cancel.check()?;
    let agent = agent(config, job)?;
    job.stage(Stage::Running);
    let (dir, cancel) = (job.dir.clone(), job.cancel.clone());
    let mut finished = agent.run(&mut job.reporter, &cancel, || dir.beat()).await?;
    finished.end.session.clone_from(&job.state.session);
    Ok(finished)
}

/// The worktree whole, or an error and nothing of it to be seen.
async fn make_worktree(job: &mut Job) -> Result<()> {
    let start = Oid::from_str(&job.state.base_oid).or_fail(Code::Internal, || "cannot read the base commit".into())?;
    let fresh = {
        let _lock = job.store.repository_lock().await?;
        job.worktree.prepare(&job.workspace, &job.state.task, start)?
    };
    job.worktree.fill(&fresh).await?;
    job.state.ready = true;
    job.dir.save(&mut job.state)
}

/// pi's command line. The instructions go through stdin: no length limit, and nothing in them is taken for an option, a
/// file or a command, because the first line is ours.
fn agent(config: &Config, job: &Job) -> Result<Agent> {
    let (state, spec) = (&job.state, &job.state.spec);
    job.dir.write("rules.md", rules(job).as_bytes())?;
    job.dir.write("instructions.md", spec.instructions.as_bytes())?;
    let path = |name: &str| job.dir.path(name).display().to_string();
    let mut args: Vec<String> = ["--mode", "json", "-p"].map(str::to_owned).to_vec();
    let mut option = |name: &str, value: &str| args.extend([name.to_owned(), value.to_owned()]);
    option("--session-dir", &path("sessions"));
    option("--session-id", &state.session);
    option("--name", &format!("subagent:{}", state.task));
    option("--append-system-prompt", &path("rules.md"));
    let excluded =
        spec.exclude_tools.as_deref().map_or("spawn_subagent".into(), |tools| format!("{tools},spawn_subagent"));
    option("--exclude-tools", &excluded);
    for (name, value) in [("--model", &spec.model), ("--thinking", &spec.thinking), ("--tools", &spec.tools)] {
        if let Some(value) = value {
            option(name, value);
        }
    }
    args.push(if spec.trusted { "--approve" } else { "--no-approve" }.to_owned());
    let env = [
        ("PI_SUBAGENT_DEPTH", (config.depth + 1).to_string()),
        ("PI_SUBAGENT_TASK", state.task.to_string()),
        ("PI_SUBAGENT_RUN", state.run.clone()),
        ("PI_OFFLINE", "1".into()),
        ("PI_SKIP_VERSION_CHECK", "1".into()),
        ("PI_TELEMETRY", "0".into()),
        ("GIT_TERMINAL_PROMPT", "0".into()),
        ("GIT_EDITOR", "true".into()),
    ];
    Ok(Agent {
        args,
        env: env.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        cwd: job.worktree.path.clone(),
        input: format!("Task: {}\n\n{}\n", state.task, spec.instructions.trim()),
        limits: Limits::of(spec),
        log: job.dir.path("pi.ndjson"),
        stderr: job.dir.path("stderr.log"),
    })
}

fn rules(job: &Job) -> String {
    let template = match job.state.spec.pr {
        PrMode::None => "",
        _ => " Follow the repository's pull-request template if it has one.",
    };
    include_str!("rules.md")
        .replace("{task}", job.state.task.as_str())
        .replace("{worktree}", &job.worktree.path.display().to_string())
        .replace("{branch}", &job.state.branch)
        .replace("{base}", &job.state.base)
        .replace("{pr}", &job.dir.path("pr.md").display().to_string())
        .replace("{template}", template)
}

/// A subagent that starts subagents would multiply without anyone having asked for it.
fn refuse_nested(config: &Config) -> Result<()> {
    if config.depth == 0 {
        return Ok(());
    }
    Err(Failure::new(Code::Nested, "cannot start a subagent from a subagent")
        .hint("do the work yourself, or say in your summary what is left to do"))
}

/// Names one run: enough to tell it from all others in a log.
fn run_id() -> String {
    let nanos =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    format!("{:x}-{:x}", nanos >> 10, std::process::id())
}

/// How a run that was ended in some way is called.
pub(crate) fn outcome(failure: Option<&Failure>, delivered: &Delivered) -> Outcome {
    let ended = failure.or(delivered.failure.as_ref());
    match ended.map(|failure| failure.code) {
        Some(Code::Timeout | Code::Idle | Code::ToolTimeout) => Outcome::Timeout,
        Some(Code::Budget) => Outcome::Budget,
        Some(Code::Cancelled) => Outcome::Cancelled,
        Some(_) if failure.is_some() => Outcome::Failed,
        Some(_) => Outcome::Partial,
        None if delivered.git.dirty => Outcome::Partial,
        None if delivered.git.commits == 0 => Outcome::NoChanges,
        None => Outcome::Succeeded,
    }
}
