//! The story of a task: claimed → checked → a slot → a worktree → pi → committed → pushed → pull request → one result.
//! `spawn` tells all of it, `resume` from the slot on, `finish` only the end.

use std::path::Path;

use git2::Oid;
use serde_json::json;

use crate::agent::Finished;
use crate::config::Config;
use crate::deliver::{self, Delivered};
use crate::failure::{Code, Failure, OrFail, Result};
use crate::job::{Claimed, Job, end_leftovers, new_state, note_interruption, run_id};
use crate::pi;
use crate::preflight::{self, Remote};
use crate::repo::Workspace;
use crate::report::{Outcome, Reporter, Stage};
use crate::result::{self, Ending};
use crate::slots;
use crate::store::{Owner, State, Store, TaskDir};
use crate::task::{IfExists, Spec, TaskName};
use crate::worktree::Worktree;

/// What a resumed pi is told if the person says nothing.
const GO_ON: &str = "You were stopped before you were done. Look at what is there, and finish the task.";

/// `pi-subagent spawn`: gives the exit status, after exactly one result.
pub(crate) async fn spawn(config: &Config, spec: Spec, json: bool) -> u8 {
    let mut reporter = Reporter::new(json, &spec.task, &run_id());
    match begin(config, spec.clone(), &mut reporter).await {
        Ok((job, remote)) => work(config, job, remote, spec.instructions.clone()).await,
        Err(failure) if failure.code == Code::Exists && spec.if_exists == IfExists::Resume => {
            resume(config, &spec.task, spec.clone(), json).await
        }
        Err(failure) => refuse(&mut reporter, &failure),
    }
}

/// `pi-subagent resume`: the same session, branch and worktree. `changes` says what is different this time.
pub(crate) async fn resume(config: &Config, task: &str, changes: Spec, json: bool) -> u8 {
    let mut reporter = Reporter::new(json, task, &run_id());
    match take_up(config, task, &mut reporter, &changes, true).await {
        Ok((job, remote)) => {
            let said = Some(changes.instructions).filter(|text| !text.trim().is_empty());
            // A session that never began knows nothing of the task; pi writes it down with the model's first answer.
            let begun = std::fs::read_dir(job.dir.path("sessions")).is_ok_and(|mut files| files.next().is_some());
            let fresh = (!begun).then(|| job.state.spec.instructions.clone());
            let instructions = said.or(fresh).unwrap_or_else(|| GO_ON.to_owned());
            work(config, job, remote, instructions).await
        }
        Err(failure) => refuse(&mut reporter, &failure),
    }
}

/// `pi-subagent finish`: commits, pushes and opens the pull request, and calls no model.
pub(crate) async fn finish(config: &Config, task: &str, changes: Spec, json: bool) -> u8 {
    let mut reporter = Reporter::new(json, task, &run_id());
    match take_up(config, task, &mut reporter, &changes, false).await {
        Ok((mut job, remote)) => {
            let mut delivered = deliver::gather(&mut job).await;
            let trouble = job.state.trouble.clone();
            deliver::send(&mut job, &remote, &mut delivered, trouble.as_deref()).await;
            end(job, Ending { failure: None, delivered })
        }
        Err(failure) => refuse(&mut reporter, &failure),
    }
}

fn refuse(reporter: &mut Reporter, failure: &Failure) -> u8 {
    let result = result::refusal(reporter, failure);
    reporter.result(&result);
    result.exit
}

fn end(mut job: Job, ending: Ending) -> u8 {
    let result = result::conclude(&mut job, ending);
    job.reporter.result(&result);
    result.exit
}

/// Everything that can fail before something is made.
async fn begin(config: &Config, spec: Spec, reporter: &mut Reporter) -> Result<(Job, Remote)> {
    refuse_nested(config)?;
    if spec.instructions.trim().is_empty() {
        return Err(Failure::new(Code::Usage, "cannot start a subagent without instructions"));
    }
    let claimed = claim_new(config, &spec)?;
    let name = claimed.dir.name.clone();
    reporter.rename(name.as_str());
    let checked = async {
        let base = claimed.workspace.base(spec.base.as_deref())?;
        let remote = preflight::connect(config, &claimed.workspace, spec.pr).await?;
        preflight::base(&remote, &claimed, &base, spec.push_base, reporter).await?;
        preflight::free_branch(&remote, &name.branch())?;
        preflight::rights(&remote, &base.branch).await?;
        Ok((base, remote))
    };
    let (base, remote) = match claimed.cancel.or(checked).await {
        Ok(checked) => checked,
        Err(failure) => {
            claimed.release();
            return Err(failure);
        }
    };
    reporter.keep_secret(&remote.token);
    if let Some(message) = preflight::uncommitted(&claimed.workspace).await {
        reporter.warning("parent_dirty", &message);
    }
    let state = new_state(&name, &base, spec, reporter.run());
    let mut job = claimed.begin(state, reporter.take());
    // What is written here is the first thing that a crash leaves behind.
    job.dir.save(&mut job.state)?;
    Ok((job, remote))
}

fn claim_new(config: &Config, spec: &Spec) -> Result<Claimed> {
    let first = TaskName::parse(&spec.task)?;
    let mut name = first.clone();
    let mut number = 1;
    loop {
        let claimed = Claimed::take(Workspace::discover(&config.cwd)?, &name);
        let suffix = spec.if_exists == IfExists::Suffix && number < 100;
        match claimed {
            Ok(claimed) if taken(&claimed)? => {
                if !suffix {
                    return Err(taken_by(&claimed)?);
                }
            }
            Err(failure) if failure.code == Code::Busy && suffix => {}
            claimed => return claimed,
        }
        number += 1;
        name = first.with_suffix(number);
    }
}

fn taken_by(claimed: &Claimed) -> Result<Failure> {
    let name = &claimed.dir.name;
    let (what, hint) = match claimed.dir.load()? {
        Some(_) => ("task", format!("go on with it by resume, or remove it: pi-subagent cleanup {name}")),
        None => ("branch or worktree", format!("choose another name, or look at it: git log {}", name.branch())),
    };
    Ok(Failure::new(Code::Exists, format!("cannot start '{name}': there is a {what} of this name")).hint(hint))
}

fn taken(claimed: &Claimed) -> Result<bool> {
    let name = &claimed.dir.name;
    let branch = format!("refs/heads/{}", name.branch());
    Ok(claimed.dir.load()?.is_some()
        || claimed.workspace.worktree(name.as_str()).exists()
        || claimed.workspace.here.find_reference(&branch).is_ok())
}

/// Takes up a task that has been started before and that nobody runs. `spend`: pi will run, so what would be in vain is
/// refused now.
async fn take_up(
    config: &Config,
    task: &str,
    reporter: &mut Reporter,
    changes: &Spec,
    spend: bool,
) -> Result<(Job, Remote)> {
    refuse_nested(config)?;
    let name = TaskName::parse(task)?;
    let workspace = Workspace::discover(&config.cwd)?;
    let store = Store::open(&workspace.common);
    let unknown = || store.unknown(&name);
    store.task(&name).load()?.ok_or_else(unknown)?;
    let claimed = Claimed::take(workspace, &name)?;
    // Only now is it certain that nobody changes it.
    let mut state = claimed.dir.load()?.ok_or_else(unknown)?;
    Worktree::of(&claimed.workspace, &state).put_back()?;
    end_leftovers(&state).await?;
    state.spec.take(changes);
    note_interruption(&mut state);
    if spend {
        state.agent = None;
        state.trouble = None;
    }
    let checked = async {
        let remote = preflight::connect(config, &claimed.workspace, state.spec.pr).await?;
        preflight::not_overtaken(&remote, &claimed.workspace, &state)?;
        if spend {
            preflight::base_exists(&remote, &state.base).await?;
            preflight::rights(&remote, &state.base).await?;
        }
        Ok(remote)
    };
    let remote = claimed.cancel.or(checked).await?;
    reporter.keep_secret(&remote.token);
    state.run = reporter.run().to_owned();
    state.attempt += u32::from(spend);
    state.outcome = None;
    state.stage = Stage::Preparing;
    state.owner = Owner::me();
    let mut job = claimed.begin(state, reporter.take());
    job.dir.save(&mut job.state)?;
    Ok((job, remote))
}

/// From a slot to the result. From here on there is always a job that can end.
async fn work(config: &Config, mut job: Job, remote: Remote, instructions: String) -> u8 {
    let finished = match run_agent(config, &mut job, &instructions).await {
        Ok(finished) => finished,
        Err(failure) if !job.state.ready && job.state.attempt == 1 && !job.worktree.whole() => {
            return undo(job, failure).await;
        }
        Err(failure) => return end(job, Ending { failure: Some(failure), delivered: Delivered::default() }),
    };
    job.usage = finished.usage;
    job.state.usage.add(&job.usage);
    job.state.agent = Some(finished.end);
    job.state.summary = job.reporter.redact(finished.text.trim());
    job.state.trouble = finished.failure.as_ref().map(|failure| failure.message.clone());
    let mut delivered = deliver::gather(&mut job).await;
    // Who cancels wants an end, not a pull request; `finish` is there if they do.
    let cancelled = finished.failure.as_ref().is_some_and(|failure| failure.code == Code::Cancelled);
    if !cancelled {
        let trouble = job.state.trouble.clone();
        deliver::send(&mut job, &remote, &mut delivered, trouble.as_deref()).await;
    }
    end(job, Ending { failure: finished.failure, delivered })
}

/// A task that came to nothing before there was a worktree leaves nothing: its name is free again.
async fn undo(mut job: Job, failure: Failure) -> u8 {
    let undone = async {
        let _lock = job.store.repository_lock().await?;
        job.worktree.remove_unborn()?;
        job.worktree.drop_branch_at(&job.workspace, &job.state)?;
        job.dir.remove()
    };
    if let Err(left) = undone.await {
        job.reporter.warning("not_undone", &left.message);
        return end(job, Ending { failure: Some(failure), delivered: Delivered::default() });
    }
    refuse(&mut job.reporter, &failure)
}

async fn run_agent(config: &Config, job: &mut Job, instructions: &str) -> Result<Finished> {
    let wait = !job.state.spec.no_wait_slot;
    let cancel = job.cancel.clone();
    job.state.stage = Stage::Queued;
    job.dir.save(&mut job.state)?;
    let reporter = &mut job.reporter;
    let told = |position| {
        let fields = json!({"state": Stage::Queued, "position": position});
        reporter.event("state", fields, &format!("waiting for a place, number {position} in line"));
    };
    let _slot = cancel.or(slots::take(job.store.dir(), config.slots, wait, told)).await?;
    job.stage(Stage::Preparing);
    make_worktree(job, config.attributes.as_deref()).await?;
    job.cancel.check()?;
    let agent = pi::agent(config, job, instructions)?;
    job.runs();
    let dir: TaskDir = job.dir.clone();
    let mut finished = agent.run(&mut job.reporter, &cancel, || dir.beat()).await?;
    finished.end.session.clone_from(&job.state.session);
    Ok(finished)
}

/// The worktree whole, or an error and nothing of it to be seen.
async fn make_worktree(job: &mut Job, attributes: Option<&Path>) -> Result<()> {
    let start = Oid::from_str(&job.state.base_oid).or_fail(Code::Internal, || "cannot read the base commit".into())?;
    if job.worktree.whole() {
        job.state.ready = true;
        let _lock = job.store.repository_lock().await?;
        return job.worktree.repair(&job.workspace, &job.state.task, start).await;
    }
    let fresh = {
        let _lock = job.store.repository_lock().await?;
        job.worktree.prepare(&job.workspace, &job.state.task, start)?
    };
    for (code, message) in job.worktree.fill(&fresh, &job.workspace.here, attributes).await? {
        job.reporter.warning(code, &message);
    }
    // Written with the next stage; until then the worktree's name says the same.
    job.state.ready = true;
    Ok(())
}

/// A subagent that starts subagents would multiply without anyone having asked for it.
fn refuse_nested(config: &Config) -> Result<()> {
    if config.depth == 0 {
        return Ok(());
    }
    Err(Failure::new(Code::Nested, "cannot start a subagent from a subagent")
        .hint("do the work yourself, or say in your summary what is left to do"))
}

/// How a run that was ended in some way is called.
pub(crate) fn outcome(state: &State, failure: Option<&Failure>, delivered: &Delivered) -> Outcome {
    let ended = failure.or(delivered.failure.as_ref());
    match ended.map(|failure| failure.code) {
        Some(Code::Timeout | Code::Idle | Code::ToolTimeout) => Outcome::Timeout,
        Some(Code::Budget) => Outcome::Budget,
        Some(Code::Cancelled) => Outcome::Cancelled,
        Some(_) if failure.is_some() => Outcome::Failed,
        Some(_) => Outcome::Partial,
        None if delivered.git.dirty || state.trouble.is_some() => Outcome::Partial,
        None if delivered.git.commits == 0 => Outcome::NoChanges,
        None => Outcome::Succeeded,
    }
}
