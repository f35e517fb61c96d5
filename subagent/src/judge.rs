//! What is true about a task now, as far as it can be found out, and what would be lost if it were removed. Every doubt is a
//! reason to keep it.

use git2::{ErrorCode, Oid, Repository};

use crate::commit::status;
use crate::failure::{Code, Failure, OrFail, Result};
use crate::git::Git;
use crate::remote::Heads;
use crate::repo::{Workspace, ahead_behind};
use crate::report::Outcome;
use crate::store::{State, TaskDir};
use crate::worktree::Worktree;

/// A task as `list` shows it.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) state: State,
    pub(crate) live: bool,
    pub(crate) worktree: bool,
    /// Files with uncommitted changes; none if git could not tell.
    pub(crate) dirty: Option<usize>,
    /// Commits beyond the base.
    pub(crate) commits: usize,
}

impl Facts {
    pub(crate) async fn of(workspace: &Workspace, dir: &TaskDir, state: State) -> Facts {
        let worktree = Worktree::of(workspace, &state);
        let exists = worktree.path.is_dir();
        let dirty = match exists {
            true => status(&worktree.git()).await.ok().map(|entries| entries.len()),
            false => Some(0),
        };
        let commits = workspace.shared().ok().and_then(|repository| {
            let tip = branch_tip(&repository, &state.branch)?;
            Some(ahead_behind(&repository, tip, Oid::from_str(&state.base_oid).ok()?).0)
        });
        Facts { live: dir.live(&state), worktree: exists, dirty, commits: commits.unwrap_or(0), state }
    }

    /// `running`, or how it ended; a run that is neither was cut off.
    pub(crate) fn outcome(&self) -> String {
        if self.live {
            return serde_json::json!(self.state.stage).as_str().unwrap_or("running").to_owned();
        }
        let outcome = self.state.outcome.unwrap_or(Outcome::Interrupted);
        serde_json::json!(outcome).as_str().unwrap_or_default().to_owned()
    }
}

/// What is known to be safe elsewhere.
#[derive(Debug)]
pub(crate) struct Safe {
    /// What the remote has now.
    pub(crate) heads: Heads,
    /// The commit that the task's pull request has brought in.
    pub(crate) merged: Option<Oid>,
}

impl Safe {
    fn oids(&self) -> impl Iterator<Item = Oid> {
        self.heads.oids().chain(self.merged)
    }
}

/// Whether a task that nobody runs may be removed: the commits it holds, all of them safe elsewhere; or what would be lost. `safe` is
/// what is elsewhere; none if it could not be asked.
pub(crate) async fn judge(
    workspace: &Workspace,
    worktree: &Worktree,
    state: &State,
    safe: Option<&Safe>,
) -> std::result::Result<Vec<Oid>, Vec<String>> {
    let mut reasons = Vec::new();
    if worktree.path.exists()
        && let Err(reason) = untouched(worktree).await
    {
        reasons.push(reason.message);
    }
    let tips = tips(workspace, worktree, state).unwrap_or_else(|failure| {
        reasons.push(failure.message);
        Vec::new()
    });
    reasons.extend(tips.iter().filter_map(|tip| unsafe_tip(workspace, state, *tip, safe)));
    reasons.dedup();
    if reasons.is_empty() { Ok(tips) } else { Err(reasons) }
}

/// Fails unless git says, without any setting that could hide something, that the worktree has nothing uncommitted.
async fn untouched(worktree: &Worktree) -> Result<()> {
    if !worktree.whole() || !worktree.admin.join("HEAD").exists() {
        let text = format!("'{}' is not a worktree any more", worktree.path.display());
        return Err(Failure::new(Code::Kept, text));
    }
    let git = worktree.git();
    let entries = status(&git).await?;
    if !entries.is_empty() {
        return Err(Failure::new(Code::Kept, format!("{} uncommitted files", entries.len())));
    }
    // By its administration: the folder's link to it does not hold while both are set aside.
    let own = Repository::open(&worktree.admin).or_fail(Code::Kept, || "cannot open the worktree".into())?;
    if own.state() != git2::RepositoryState::Clean {
        return Err(Failure::new(Code::Kept, "a merge or rebase is unfinished"));
    }
    if worktree.admin.join("modules").exists() || has_repository_inside(worktree, &git).await? {
        return Err(Failure::new(Code::Kept, "there is a submodule in it, whose commits may be nowhere else"));
    }
    if hides_changes(&git).await? {
        return Err(Failure::new(Code::Kept, "some files are marked so that git does not see their changes"));
    }
    Ok(())
}

/// Whether a commit of another repository is recorded in place of a folder, and that repository is there.
async fn has_repository_inside(worktree: &Worktree, git: &Git) -> Result<bool> {
    use std::os::unix::ffi::OsStrExt;
    let output = git.run(&["ls-files", "--stage", "-z"]).await?;
    let links = output.split(|byte| *byte == 0).filter(|line| line.starts_with(b"160000 "));
    let mut paths = links.filter_map(|line| line.splitn(2, |byte| *byte == b'\t').nth(1));
    Ok(paths.any(|path| worktree.path.join(std::ffi::OsStr::from_bytes(path)).join(".git").exists()))
}

/// Whether `update-index --assume-unchanged` or `--skip-worktree` was used on files that are there.
async fn hides_changes(git: &Git) -> Result<bool> {
    let sparse = git.text(&["config", "--bool", "core.sparseCheckout"]).await.is_ok_and(|value| value == "true");
    let output = git.run(&["ls-files", "-v", "-z"]).await?;
    let marks = output.split(|byte| *byte == 0).filter_map(|line| line.first());
    Ok(marks.into_iter().any(|mark| mark.is_ascii_lowercase() || (*mark == b'S' && !sparse)))
}

/// The commits that only the task may hold: the worktree's, wherever its folder is now, and the branch's.
pub(crate) fn tips(workspace: &Workspace, worktree: &Worktree, state: &State) -> Result<Vec<Oid>> {
    let repository = workspace.shared()?;
    let mut tips = Vec::new();
    if worktree.admin.join("HEAD").exists() {
        let head = Repository::open(&worktree.admin).and_then(|own| match own.head() {
            Err(error) if error.code() == ErrorCode::UnbornBranch => Ok(None),
            head => head.and_then(|head| head.peel_to_commit()).map(|commit| Some(commit.id())),
        });
        tips.extend(head.or_fail(Code::Kept, || "cannot read the worktree's HEAD".into())?);
    }
    tips.extend(branch_tip(&repository, &state.branch));
    tips.dedup();
    Ok(tips)
}

fn branch_tip(repository: &Repository, branch: &str) -> Option<Oid> {
    repository.find_reference(&format!("refs/heads/{branch}")).ok()?.peel_to_commit().ok().map(|commit| commit.id())
}

/// Why this commit is not safe elsewhere.
fn unsafe_tip(workspace: &Workspace, state: &State, tip: Oid, safe: Option<&Safe>) -> Option<String> {
    let Ok(repository) = workspace.shared() else { return Some("cannot open the repository".into()) };
    let contains = |holder: Oid| holder == tip || repository.graph_descendant_of(holder, tip).unwrap_or(false);
    if Oid::from_str(&state.base_oid).is_ok_and(contains) {
        return None;
    }
    let short: String = tip.to_string().chars().take(10).collect();
    match safe {
        None => Some(format!("cannot ask the remote whether it has {short}")),
        Some(safe) if safe.oids().any(contains) => None,
        Some(_) => Some(format!("commit {short} is not on the remote")),
    }
}
