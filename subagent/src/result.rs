//! From what happened to the one result: its state, its exit status, and the words for the model that asked.

use serde_json::json;

use crate::deliver::Delivered;
use crate::failure::{Code, Failure};
use crate::job::Job;
use crate::limits::spell;
use crate::report::{Outcome, PrInfo, Reporter, RunResult, Stage, Usage, error_value};
use crate::run::outcome;
use crate::store::State;
use crate::stream::clip;
use crate::worktree::Worktree;

/// How a job's work came to its end.
pub(crate) struct Ending {
    /// Of the agent, or of what had to come before it.
    pub(crate) failure: Option<Failure>,
    pub(crate) delivered: Delivered,
}

const SUMMARY: usize = 2_000;

/// The result of a request that was refused before anything was made.
pub(crate) fn refusal(reporter: &Reporter, failure: &Failure) -> RunResult {
    let state = if failure.code == Code::Cancelled { Outcome::Cancelled } else { Outcome::Failed };
    // What a code means after a run, it does not mean before one: nothing was made and nothing spent.
    let exit = match failure.code.exit() {
        4..=6 | 8 | 9 => Code::Setup.exit(),
        exit => exit,
    };
    RunResult {
        ok: false,
        state,
        phase: Stage::Preparing,
        exit,
        error: Some(error_value(failure)),
        agent: None,
        git: None,
        pr: None,
        usage: Usage::default(),
        total_usage: Usage::default(),
        duration_ms: 0,
        paths: json!({}),
        summary: String::new(),
        warnings: reporter.warnings.clone(),
        next: Vec::new(),
        text: format!("pi-subagent did not start: {failure}"),
    }
}

/// The result that a run which was killed could not give.
pub(crate) fn interrupted(state: &State, worktree: &Worktree, said: &str) -> RunResult {
    let failure = Failure::new(Code::Crashed, "the run was interrupted");
    RunResult {
        ok: false,
        state: Outcome::Interrupted,
        phase: state.stage,
        exit: failure.code.exit(),
        error: Some(error_value(&failure)),
        agent: state.agent.clone(),
        git: None,
        pr: state.pr.clone(),
        usage: Usage::default(),
        total_usage: state.usage.clone(),
        duration_ms: 0,
        paths: json!({"worktree": worktree.path}),
        summary: state.summary.clone(),
        warnings: Vec::new(),
        next: vec![format!("pi-subagent resume {}", state.task), format!("pi-subagent finish {}", state.task)],
        text: format!("Subagent '{}' {said}", state.task),
    }
}

/// The result of a job, and its last state on disk.
pub(crate) fn conclude(job: &mut Job, ending: Ending) -> RunResult {
    let Ending { failure, delivered } = ending;
    let mut state = outcome(&job.state, failure.as_ref(), &delivered);
    let phase = job.state.stage;
    if job.state.agent.is_none() && state == Outcome::NoChanges {
        state = Outcome::Failed;
    }
    let ended = failure.as_ref().or(delivered.failure.as_ref());
    let exit = match (ended, state) {
        // After the agent it only counts how far its work has come, whatever was in the way.
        (Some(stopped), _) if failure.is_none() => match stopped.code.exit() {
            exit @ (70 | 130) => exit,
            _ if delivered.git.pushed => 5,
            _ => 6,
        },
        (Some(failure), _) => failure.code.exit(),
        (None, Outcome::NoChanges) if !job.state.spec.allow_empty => 3,
        (None, _) => 0,
    };
    job.state.outcome = Some(state);
    if ended.is_none() {
        job.state.stage = Stage::Done;
    }
    let git = job.state.agent.is_some().then(|| delivered.git.clone());
    if state == Outcome::Succeeded && delivered.git.pushed {
        job.worktree.unlock();
    }
    job.save();
    let next = next_steps(job, state, ended);
    let summary = clip(&job.state.summary, SUMMARY);
    let text = text(job, state, ended, &delivered, &next);
    RunResult {
        ok: ended.is_none(),
        state,
        phase: if ended.is_none() { Stage::Done } else { phase },
        exit,
        error: ended.map(error_value),
        agent: job.state.agent.clone(),
        git,
        pr: delivered.pr.or_else(|| job.state.pr.clone()),
        usage: job.usage.clone(),
        total_usage: job.state.usage.clone(),
        duration_ms: job.elapsed().as_millis() as u64,
        paths: json!({"worktree": job.worktree.path, "log": job.dir.path("events.ndjson")}),
        summary,
        warnings: job.reporter.warnings.clone(),
        next,
        text,
    }
}

fn next_steps(job: &Job, state: Outcome, ended: Option<&Failure>) -> Vec<String> {
    let task = &job.state.task;
    let step = |verb: &str| format!("pi-subagent {verb} {task}");
    match (state, ended.map(|failure| failure.code)) {
        (Outcome::Succeeded, _) => Vec::new(),
        (Outcome::NoChanges, _) => vec![step("cleanup")],
        (Outcome::Partial, _) => vec![step("finish")],
        _ if !job.state.ready => vec![step("cleanup")],
        _ => vec![step("resume"), step("finish")],
    }
}

/// A number of things, in words.
pub(crate) fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

fn text(job: &Job, state: Outcome, ended: Option<&Failure>, delivered: &Delivered, next: &[String]) -> String {
    let task = &job.state.task;
    let git = &delivered.git;
    let (commits, files) = (count(git.commits, "commit"), count(git.diff.files, "file"));
    let size = format!("{commits}, {files}, +{} -{}", git.diff.add, git.diff.del);
    let spent = format!("${:.2}, {}", job.usage.cost.total, spell(job.elapsed()));
    let mut lines = vec![match (state, &delivered.pr) {
        (Outcome::Succeeded, Some(pr)) => format!("Subagent '{task}' is done: {} ({size}; {spent}).", describe(pr)),
        (Outcome::Succeeded, None) => {
            format!("Subagent '{task}' is done: branch '{}' is pushed ({size}; {spent}).", git.branch)
        }
        (Outcome::NoChanges, _) => format!("Subagent '{task}' ended without changing anything ({spent})."),
        (state, _) => {
            let name = json!(state).as_str().unwrap_or_default().replace('_', " ");
            format!("Subagent '{task}': {name} ({size}; {spent}).")
        }
    }];
    if let Some(failure) = ended {
        lines.push(format!("Error: {failure}"));
    }
    if state != Outcome::Succeeded {
        match &delivered.pr {
            Some(pr) => lines.push(format!("What there is: {}.", describe(pr))),
            None if git.pushed => lines.push(format!("The branch '{}' is pushed.", git.branch)),
            None if job.state.ready && git.commits > 0 => {
                lines.push(format!("The work is on the local branch '{}'.", git.branch))
            }
            None => {}
        }
    }
    lines.extend(job.reporter.warnings.iter().take(8).map(|warning| format!("Warning: {warning}")));
    if !next.is_empty() {
        lines.push(format!("Next: {}", next.join("  or  ")));
    }
    if !job.state.summary.is_empty() {
        lines.push(String::new());
        lines.push(clip(&job.state.summary, SUMMARY));
    }
    clip(&lines.join("\n"), 4_000)
}

fn describe(pr: &PrInfo) -> String {
    let kind = if pr.draft { "draft pull request" } else { "pull request" };
    format!("{kind} {}", pr.url)
}
