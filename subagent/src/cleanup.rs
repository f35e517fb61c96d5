//! `pi-subagent cleanup`: removes tasks whose work is safe elsewhere and says why it kept the others. Whatever cannot be
//! judged is kept. What is discarded on request goes to a trash that it can be taken back from.

use std::fs;

use git2::Oid;
use serde_json::{Value, json};

use crate::config::Config;
use crate::failure::{Code, OrFail, Result};
use crate::git::Git;
use crate::job::end_leftovers;
use crate::judge::{Safe, judge, tips};
use crate::preflight::{self, Remote};
use crate::remote::Heads;
use crate::repo::Workspace;
use crate::report::Outcome;
use crate::store::{State, Store, TaskDir, now};
use crate::task::{PrMode, TaskName};
use crate::worktree::Worktree;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    pub(crate) tasks: Vec<String>,
    pub(crate) all: bool,
    pub(crate) discard: bool,
    pub(crate) keep_branch: bool,
    pub(crate) dry_run: bool,
}

/// What became of one task.
struct Fate {
    task: String,
    removed: bool,
    reasons: Vec<String>,
    trash: Option<String>,
}

/// Gives the answer and whether everything that was named is gone.
pub(crate) async fn cleanup(config: &Config, wish: &Wish) -> Result<(Value, bool)> {
    let workspace = Workspace::discover(&config.cwd)?;
    let store = Store::open(&workspace.common);
    let dirs = chosen(&store, wish)?;
    let remote = if wish.discard || dirs.is_empty() { None } else { Some(ask_remote(config, &workspace).await) };
    let mut fates = Vec::new();
    for dir in &dirs {
        let there = remote.as_ref().and_then(|remote| remote.as_ref().ok());
        let fate = one(&workspace, &store, dir, wish, there).await;
        let mut fate = fate.unwrap_or_else(|failure| kept(dir, vec![failure.to_string()]));
        if let (Some(Err(failure)), false) = (&remote, fate.reasons.is_empty()) {
            fate.reasons.push(failure.message.clone());
        }
        fates.push(fate);
    }
    let done = fates.iter().all(|fate| fate.removed);
    Ok((answer(&fates, wish.dry_run), done || wish.all))
}

/// The tasks that are meant; with one that does not exist, nothing is touched.
fn chosen(store: &Store, wish: &Wish) -> Result<Vec<TaskDir>> {
    if wish.all {
        return store.tasks();
    }
    let find = |name: &String| {
        let dir = store.task(&TaskName::parse(name)?);
        if dir.path("").is_dir() { Ok(dir) } else { Err(store.unknown(&dir.name)) }
    };
    wish.tasks.iter().map(find).collect()
}

/// What there is to be asked whether it has the work. None: no remote at all, so nothing can be on it.
async fn ask_remote(config: &Config, workspace: &Workspace) -> Result<Option<Remote>> {
    // With its pull requests, if it has any.
    let whole = preflight::connect(config, workspace, PrMode::Auto).await;
    let remote = match whole {
        Err(failure) if failure.code == Code::RemoteUnsupported => {
            preflight::connect(config, workspace, PrMode::None).await
        }
        whole => whole,
    };
    match remote {
        Err(failure) if failure.code == Code::NoRemote => Ok(None),
        remote => remote.map(Some),
    }
}

async fn safe(remote: &Option<Remote>, state: &State) -> Safe {
    let Some(remote) = remote else { return Safe { heads: Heads::default(), merged: None } };
    let merged = match (&remote.github, &state.pr, remote.heads.branch(&state.branch)) {
        (Some(github), Some(pr), None) => github.merged(pr.number).await,
        _ => None,
    };
    Safe { heads: remote.heads.clone(), merged }
}

async fn one(
    workspace: &Workspace,
    store: &Store,
    dir: &TaskDir,
    wish: &Wish,
    remote: Option<&Option<Remote>>,
) -> Result<Fate> {
    let Some(_claim) = dir.claim()? else { return Ok(kept(dir, vec!["it is running".into()])) };
    let state = match dir.load() {
        Ok(Some(state)) => state,
        Ok(None) if workspace.worktree(dir.name.as_str()).exists() => {
            return Ok(kept(dir, vec!["its state is missing".into()]));
        }
        Ok(None) => {
            if !wish.dry_run {
                dir.remove()?;
            }
            return Ok(removed(dir, None));
        }
        Err(failure) => return Ok(kept(dir, vec![failure.message])),
    };
    end_leftovers(&state).await?;
    let safe = match remote {
        Some(remote) => Some(safe(remote, &state).await),
        None => None,
    };
    let _lock = store.repository_lock().await?;
    let worktree = Worktree::of(workspace, &state);
    worktree.put_back()?;
    if wish.discard {
        if wish.dry_run {
            return Ok(removed(dir, None));
        }
        let discarded = discard(workspace, store, dir, &state, &worktree).await;
        if discarded.is_err() {
            worktree.put_back()?;
        }
        return Ok(removed(dir, Some(discarded?)));
    }
    if let Err(reasons) = judge(workspace, &worktree, &state, safe.as_ref()).await {
        return Ok(kept(dir, reasons));
    }
    // Nothing would be lost, but it would be forgotten.
    if wish.all && undelivered(&state) {
        let reason = format!("its pull request is not open yet: finish {0}, or cleanup {0}", state.task);
        return Ok(kept(dir, vec![reason]));
    }
    if wish.dry_run {
        return Ok(removed(dir, None));
    }
    // Somebody may have gone on in it meanwhile: once nobody finds it any more, it is looked at again.
    let aside = worktree.set_aside()?;
    match judge(workspace, &aside, &state, safe.as_ref()).await {
        Ok(tips) => remove(workspace, dir, &state, &aside, if wish.keep_branch { &[] } else { &tips })?,
        Err(reasons) => {
            worktree.put_back()?;
            return Ok(kept(dir, reasons));
        }
    }
    Ok(removed(dir, None))
}

/// Pushed, and then something came between.
fn undelivered(state: &State) -> bool {
    let delivered = matches!(state.outcome, Some(Outcome::Succeeded | Outcome::NoChanges));
    !delivered && state.pushed.is_some() && state.pr.is_none() && state.spec.pr != PrMode::None
}

/// Removes what is known to be safe, and the branch if it is at one of `tips`. The folder first gets a name of what may be deleted
/// unseen, so that half of it is never mistaken for work.
fn remove(workspace: &Workspace, dir: &TaskDir, state: &State, aside: &Worktree, tips: &[Oid]) -> Result<()> {
    if aside.path.exists() {
        let gone = aside.path.with_file_name(format!(".gone-{}", state.task));
        let _ = fs::remove_dir_all(&gone);
        fs::rename(&aside.path, &gone).or_fail(Code::Internal, || format!("cannot move '{}'", aside.path.display()))?;
        fs::remove_dir_all(&gone).or_fail(Code::Internal, || format!("cannot remove '{}'", gone.display()))?;
    }
    remove_rest(workspace, state, aside, tips)?;
    dir.remove()
}

/// All but the folder and the task's records.
fn remove_rest(workspace: &Workspace, state: &State, aside: &Worktree, tips: &[Oid]) -> Result<()> {
    Worktree::of(workspace, state).remove_rest(aside)?;
    let repository = workspace.shared()?;
    match repository.find_reference(&format!("refs/heads/{}", state.branch)) {
        // It is deleted only as it was found here; one that has moved on has commits that nobody has looked at.
        Ok(mut branch) if branch.target().is_some_and(|tip| tips.contains(&tip)) => {
            branch.delete().or_fail(Code::Internal, || format!("cannot delete the branch '{}'", state.branch))
        }
        _ => Ok(()),
    }
}

/// Keeps a commit of everything that is there, and the folder itself, under names that say when.
async fn discard(
    workspace: &Workspace,
    store: &Store,
    dir: &TaskDir,
    state: &State,
    worktree: &Worktree,
) -> Result<String> {
    let name = format!("{}-{}", state.task, now());
    let trash_ref = format!("refs/pi-subagent/trash/{name}");
    let aside = worktree.set_aside()?;
    let tips = tips(workspace, &aside, state)?;
    snapshot(workspace, &aside, dir, &tips, &trash_ref).await?;
    if aside.path.exists() {
        let place = workspace.root.join(".worktrees/.trash");
        fs::create_dir_all(&place).or_fail(Code::Internal, || format!("cannot create '{}'", place.display()))?;
        let target = place.join(&name);
        fs::rename(&aside.path, &target)
            .or_fail(Code::Internal, || format!("cannot move '{}'", aside.path.display()))?;
        // Without its link it is a plain folder, which no git command mistakes for a worktree.
        let _ = fs::remove_file(target.join(".git"));
    }
    let modules = aside.admin.join("modules");
    if modules.exists() {
        fs::rename(&modules, dir.path("modules"))
            .or_fail(Code::Internal, || format!("cannot move '{}'", modules.display()))?;
    }
    remove_rest(workspace, state, &aside, &tips)?;
    let records = store.dir().join("trash");
    crate::store::make_dir(&records)?;
    fs::rename(dir.path(""), records.join(&name))
        .or_fail(Code::Internal, || "cannot move the task's records".into())?;
    Ok(trash_ref)
}

/// A commit on top of the worktree's HEAD and the branch, with everything that git would add, made with an index of its own.
async fn snapshot(workspace: &Workspace, worktree: &Worktree, dir: &TaskDir, tips: &[Oid], name: &str) -> Result<()> {
    let tips: Vec<String> = tips.iter().map(ToString::to_string).collect();
    let Some(first) = tips.first() else { return Ok(()) };
    let mut tree = format!("{first}^{{tree}}");
    if worktree.path.exists() && worktree.admin.join("HEAD").exists() {
        let index = dir.path("trash.index");
        let own = worktree.admin.join("index");
        if own.exists() {
            fs::copy(&own, &index).or_fail(Code::Internal, || format!("cannot copy '{}'", own.display()))?;
        }
        let git = worktree.git().with_index(&index);
        git.run(&["add", "-A", "--sparse", "."]).await?;
        tree = git.text(&["write-tree"]).await?;
        let _ = fs::remove_file(&index);
    }
    let git = Git::at(&workspace.root);
    let identity = crate::commit::identity(&workspace.shared()?);
    let mut args: Vec<&str> = identity.iter().flat_map(|setting| ["-c", setting.as_str()]).collect();
    args.push("commit-tree");
    args.extend(tips.iter().flat_map(|tip| ["-p", tip.as_str()]));
    args.extend(["-m", "pi-subagent: discarded", &tree]);
    let commit = git.text(&args).await?;
    git.run(&["update-ref", name, &commit]).await.map(|_| ())
}

fn kept(dir: &TaskDir, reasons: Vec<String>) -> Fate {
    Fate { task: dir.name.to_string(), removed: false, reasons, trash: None }
}

fn removed(dir: &TaskDir, trash: Option<String>) -> Fate {
    Fate { task: dir.name.to_string(), removed: true, reasons: Vec::new(), trash }
}

fn answer(fates: &[Fate], dry_run: bool) -> Value {
    let lines: Vec<String> = fates
        .iter()
        .map(|fate| match (fate.removed, &fate.trash, dry_run) {
            (true, _, true) => format!("{}: would be removed", fate.task),
            (true, Some(trash), false) => {
                format!("{}: discarded; take it back with: git branch {}-again {trash}", fate.task, fate.task)
            }
            (true, None, false) => format!("{}: removed", fate.task),
            (false, ..) => format!("{}: kept, because {}", fate.task, fate.reasons.join("; ")),
        })
        .collect();
    let text = if lines.is_empty() { "No subagents.".to_owned() } else { lines.join("\n") };
    let tasks: Vec<Value> = fates
        .iter()
        .map(|fate| json!({"task": fate.task, "removed": fate.removed, "reasons": fate.reasons, "trash": fate.trash}))
        .collect();
    let removable = fates.iter().filter(|fate| fate.removed).count();
    let question = format!("Remove {removable} of {} subagents?", fates.len());
    json!({"v": 1, "dryRun": dry_run, "tasks": tasks, "removable": removable, "question": question, "text": text})
}
