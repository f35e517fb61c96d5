//! The second half of every run, and all of `finish`: what is left is committed, the branch pushed, the pull request opened.
//! Calls no model, and can be repeated: each step looks first whether it is done.

use std::time::Duration;

use git2::Oid;
use serde_json::json;

use crate::commit::{leftovers, settle_branch};
use crate::failure::{Code, Failure, OrFail, Result};
use crate::git::Git;
use crate::github::Wanted;
use crate::job::Job;
use crate::leak;
use crate::pr_text::{self, Source, compose, subjects, template};
use crate::preflight::Remote;
use crate::probe::diff_stat;
use crate::remote;
use crate::repo::ahead_behind;
use crate::report::{GitInfo, PrInfo, Stage};
use crate::sys;

use crate::task::PrMode;

/// Where the work is now.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    pub(crate) git: GitInfo,
    pub(crate) pr: Option<PrInfo>,
    /// What could not be done; the work is in every case where `git` says.
    pub(crate) failure: Option<Failure>,
}

const PUSH_TRIES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// Commits what is left and looks at the branch. Local only.
pub(crate) async fn gather(job: &mut Job) -> Delivered {
    let mut done = Delivered::default();
    done.git.branch = job.state.branch.clone();
    done.git.base = job.state.base.clone();
    done.git.base_oid = job.state.base_oid.clone();
    if let Err(failure) = collect(job, &mut done).await {
        done.failure = Some(failure);
    }
    done
}

async fn collect(job: &mut Job, done: &mut Delivered) -> Result<()> {
    job.stage(Stage::Committing);
    let repository = job.workspace.shared()?;
    let head = if job.worktree.whole() { tidy(job, done).await? } else { branch_tip(&repository, &job.state.branch)? };
    let base = Oid::from_str(&job.state.base_oid).or_fail(Code::Internal, || "cannot read the base commit".into())?;
    done.git.head = head.to_string();
    done.git.commits = ahead_behind(&repository, head, base).0;
    let range = format!("{base}...{head}");
    done.git.diff = diff_stat(&Git::at(&job.workspace.root), &range).await.unwrap_or_default();
    done.git.ahead = done.git.commits;
    Ok(())
}

/// Leaves nothing uncommitted that can be committed; gives the commit that is the task's result.
async fn tidy(job: &mut Job, done: &mut Delivered) -> Result<Oid> {
    job.worktree.clear_stale_locks();
    match leftovers(&job.worktree, &job.state.task).await {
        Ok(left) => {
            done.git.auto_committed = left.committed;
            if !left.kept.is_empty() {
                done.git.dirty = true;
                let shown: Vec<&str> = left.kept.iter().take(5).map(String::as_str).collect();
                let text = format!("{} uncommitted and only in the worktree: {}", left.kept.len(), shown.join(", "));
                job.reporter.warning("left_uncommitted", &text);
            }
        }
        Err(failure) => {
            done.git.dirty = true;
            done.failure = Some(failure);
        }
    }
    let (head, stray) = settle_branch(&job.worktree, &job.state.task)?;
    if let Some(stray) = stray {
        done.git.dirty = true;
        job.reporter.warning("stray_commits", &stray);
    }
    Ok(head)
}

fn branch_tip(repository: &git2::Repository, branch: &str) -> Result<Oid> {
    let tip = repository.find_reference(&format!("refs/heads/{branch}")).and_then(|found| found.peel_to_commit());
    Ok(tip.or_fail(Code::CommitFailed, || format!("cannot find the branch '{branch}'"))?.id())
}

/// Pushes the branch and opens the pull request. `partial` is why the work is not complete.
pub(crate) async fn send(job: &mut Job, remote: &Remote, done: &mut Delivered, partial: Option<&str>) {
    if done.git.commits == 0 {
        return;
    }
    let partial = partial.or_else(|| done.git.dirty.then_some("not everything could be committed"));
    if let Err(failure) = push(job, remote, done).await {
        done.failure.get_or_insert(failure);
        return;
    }
    match open(job, remote, done, partial).await {
        Ok(pr) => done.pr = pr,
        Err(failure) => {
            done.failure.get_or_insert(failure);
        }
    }
}

async fn push(job: &mut Job, remote: &Remote, done: &mut Delivered) -> Result<()> {
    job.cancel.check()?;
    job.stage(Stage::Pushing);
    let head = Oid::from_str(&done.git.head).or_fail(Code::Internal, || "cannot read the head commit".into())?;
    leak::refuse(&job.workspace, &remote.token, &remote.heads, head)?;
    let branch = job.state.branch.clone();
    let there = remote.heads.branch(&branch).is_some_and(|oid| oid.to_string() == done.git.head);
    if !there {
        patiently(job, remote, &branch).await?;
    }
    done.git.pushed = true;
    job.state.pushed = Some(done.git.head.clone());
    job.save();
    Ok(())
}

async fn patiently(job: &Job, remote: &Remote, branch: &str) -> Result<()> {
    let mut tries = PUSH_TRIES.iter();
    loop {
        let Err(failure) = job.cancel.or(remote::push(&remote.line, &job.workspace, branch)).await else {
            return Ok(());
        };
        let passing = matches!(failure.code, Code::Network | Code::GithubDown);
        match tries.next().filter(|_| passing) {
            Some(pause) => {
                let rest = async {
                    tokio::time::sleep(*pause).await;
                    Ok(())
                };
                job.cancel.or(rest).await?;
            }
            None if passing || failure.code == Code::Internal => return Err(failure.code(Code::PushFailed)),
            None => return Err(failure),
        }
    }
}

async fn open(job: &mut Job, remote: &Remote, done: &Delivered, partial: Option<&str>) -> Result<Option<PrInfo>> {
    let Some(github) = &remote.github else { return Ok(None) };
    if job.state.spec.pr == PrMode::None {
        return Ok(None);
    }
    job.cancel.check()?;
    job.stage(Stage::OpeningPr);
    let wanted = text(job, remote, done, partial)?;
    let pr = github.open(&wanted).await.map_err(|failure| match failure.code {
        Code::Network | Code::GithubDown | Code::TokenRejected | Code::RepositoryNotFound => {
            failure.code(Code::PrFailed)
        }
        _ => failure,
    })?;
    job.reporter.event("pr", json!({"pr": pr}), &format!("pull request {}", pr.url));
    job.state.pr = Some(pr.clone());
    job.save();
    Ok(Some(pr))
}

fn text(job: &Job, remote: &Remote, done: &Delivered, partial: Option<&str>) -> Result<Wanted> {
    let repository = job.workspace.shared()?;
    let oid = |text: &str| Oid::from_str(text).or_fail(Code::Internal, || format!("cannot read the commit '{text}'"));
    let (base, head) = (oid(&done.git.base_oid)?, oid(&done.git.head)?);
    let spec = &job.state.spec;
    let written = sys::read_file(&job.dir.path("pr.md")).ok();
    let text = compose(&Source {
        task: &job.state.task,
        title: spec.title.as_deref(),
        written: written.as_deref().map(String::from_utf8_lossy).as_deref(),
        template: template(&repository, base).as_deref(),
        commits: &subjects(&repository, base, head),
        summary: &job.state.summary,
        partial,
        model: spec.model.as_deref(),
        usage: &job.state.usage,
    });
    let pr_text::PrText { title, body } = text;
    let draft = spec.pr == PrMode::Draft || (spec.pr == PrMode::Auto && partial.is_some());
    Ok(Wanted {
        head: job.state.branch.clone(),
        base: job.state.base.clone(),
        title: remote.token.redact(&title),
        body: remote.token.redact(&body),
        draft,
    })
}
