//! One worktree for each task: made so that a crash at any moment leaves it whole or not there at all, with links that also
//! hold when the repository is seen from another path, and locked, so that no `git worktree prune` takes it away.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use git2::{ErrorCode, Oid, Repository};

use crate::beside;
use crate::failure::{Code, Failure, OrFail, Result, cause};
use crate::git::Git;
use crate::include;
use crate::repo::Workspace;
use crate::store::State;
use crate::sys;
use crate::task::TaskName;

/// A task's worktree and the folder git administers it in.
#[derive(Clone, Debug)]
pub(crate) struct Worktree {
    pub(crate) path: PathBuf,
    pub(crate) admin: PathBuf,
    /// The run whose mark every git carries that works in it.
    pub(crate) run: String,
}

impl Worktree {
    pub(crate) fn of(workspace: &Workspace, state: &State) -> Self {
        let name = state.task.as_str();
        let admin = workspace.common.join("worktrees").join(name);
        Worktree { path: workspace.worktree(name), admin, run: state.run.clone() }
    }

    /// It got its name only when it was whole.
    pub(crate) fn whole(&self) -> bool {
        self.path.join(".git").exists()
    }

    /// Gives a worktree its administration back if that was lost; its files stay as they are.
    pub(crate) async fn repair(&self, workspace: &Workspace, task: &TaskName, start: Oid) -> Result<()> {
        self.clear_stale_locks();
        if self.admin.join("HEAD").exists() {
            return Ok(());
        }
        make_branch(&workspace.shared()?, task, start)?;
        self.administer(workspace, task)?;
        self.git().run(&["reset", "--quiet"]).await.map(|_| ()).map_err(|failure| failure.code(Code::Setup))
    }

    /// Opens it as a repository of its own: HEAD is the task's.
    pub(crate) fn open(&self) -> Result<Repository> {
        Repository::open(&self.path).or_fail(Code::Internal, || format!("cannot open '{}'", self.path.display()))
    }

    pub(crate) fn git(&self) -> Git {
        self.git_at(&self.path)
    }

    fn git_at(&self, path: &Path) -> Git {
        Git::in_worktree(path, &self.admin, &self.run)
    }

    /// First half, under the repository's lock: the branch, git's administration, an empty folder beside the final place.
    /// Gives that folder.
    pub(crate) fn prepare(&self, workspace: &Workspace, task: &TaskName, start: Oid) -> Result<PathBuf> {
        ignore_worktrees(&workspace.common)?;
        let repository = workspace.shared()?;
        self.clear_stale_locks();
        make_branch(&repository, task, start)?;
        self.administer(workspace, task)?;
        let fresh = self.unborn();
        let parent = self.path.parent().unwrap_or(&workspace.root);
        fs::create_dir_all(parent).or_fail(Code::Setup, || format!("cannot create '{}'", parent.display()))?;
        remove_all(&[&fresh])?;
        let fill = || -> std::io::Result<()> {
            fs::create_dir(&fresh)?;
            // Both places are one step below `.worktrees`, so the same link is right before and after the move.
            let up = pathdiff(&workspace.common, &fresh).unwrap_or_else(|| workspace.common.clone());
            fs::write(fresh.join(".git"), format!("gitdir: {}/worktrees/{task}\n", up.display()))
        };
        fill().or_fail(Code::Setup, || format!("cannot create '{}'", fresh.display()))?;
        Ok(fresh)
    }

    /// Second half, without the lock: the files are written, and only then the worktree gets its name. Gives warnings.
    /// `attributes` is where git looks for the user's own if no setting names another file.
    pub(crate) async fn fill(
        &self,
        fresh: &Path,
        here: &Repository,
        attributes: Option<&Path>,
    ) -> Result<Vec<(&'static str, String)>> {
        let mut warnings = Vec::new();
        let copied = Repository::open(fresh).and_then(|there| beside::copy(here, &there, fresh, attributes));
        if !copied.unwrap_or(false) {
            warnings.extend(self.check_out(fresh, here).await?);
        }
        if let Some(source) = here.workdir() {
            match include::copy(source, fresh).await {
                Ok(problems) if problems.is_empty() => {}
                Ok(problems) => {
                    warnings.push((
                        "not_copied",
                        format!("not everything of .worktreeinclude was copied: {}", problems.join(", ")),
                    ));
                }
                Err(failure) => warnings.push(("not_copied", failure.message)),
            }
        }
        fs::rename(fresh, &self.path).or_fail(Code::Setup, || format!("cannot create '{}'", self.path.display()))?;
        Ok(warnings)
    }

    /// git writes what is not there yet.
    async fn check_out(&self, fresh: &Path, here: &Repository) -> Result<Option<(&'static str, String)>> {
        let workers = format!("checkout.workers={}", workers(here));
        let reset = ["-c", &workers, "reset", "--hard", "--quiet"];
        let Err(failure) = self.git_at(fresh).run(&reset).await else { return Ok(None) };
        // git-lfs without its server, or without the files: their pointers are better than no worktree.
        let pointers = self.git_at(fresh).with("GIT_LFS_SKIP_SMUDGE", "1");
        if !failure.message.contains("lfs") || pointers.run(&reset).await.is_err() {
            let failure = failure.code(Code::Setup);
            return Err(match sys::free_space(fresh) {
                Some(free) if free < 64 << 20 => failure.hint(format!("only {} MB are free there", free >> 20)),
                _ => failure,
            });
        }
        let pointers = "large files are there as pointers only: git-lfs could not fetch them".to_owned();
        Ok(Some(("lfs_pointers", pointers)))
    }

    /// git's own files about the worktree, put in place as a whole.
    fn administer(&self, workspace: &Workspace, task: &TaskName) -> Result<()> {
        let parent = workspace.common.join("worktrees");
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(&parent)?;
            if self.admin.join("HEAD").exists() {
                return Ok(());
            }
            let fresh = tempfile::Builder::new().prefix("pi-subagent-").tempdir_in(&workspace.common)?;
            let lines = [
                ("HEAD", format!("ref: refs/heads/{}", task.branch())),
                ("commondir", "../..".to_owned()),
                ("gitdir", self.path.join(".git").display().to_string()),
                ("locked", "a subagent's work: use pi-subagent cleanup".to_owned()),
            ];
            for (name, text) in lines {
                fs::write(fresh.path().join(name), format!("{text}\n"))?;
            }
            for name in ["info/sparse-checkout", "config.worktree"] {
                let source = workspace.here.path().join(name);
                if source.is_file() {
                    let target = fresh.path().join(name);
                    fs::create_dir_all(target.parent().unwrap_or(&target))?;
                    fs::copy(source, target)?;
                }
            }
            fs::rename(fresh.path(), &self.admin)
        };
        write().or_fail(Code::Setup, || format!("cannot create '{}'", self.admin.display()))
    }

    /// Removes the worktree's folder and administration. The caller has made sure that nothing in it is needed.
    pub(crate) fn remove(&self) -> Result<()> {
        remove_all(&[&self.path, &self.unborn(), &self.admin])
    }

    /// Removes the beginnings of a worktree that never got its name: nobody can have worked in it. One that has lost its link to git had.
    pub(crate) fn remove_unborn(&self) -> Result<()> {
        if self.path.exists() { Ok(()) } else { remove_all(&[&self.unborn(), &self.admin]) }
    }

    /// Where it grows.
    fn unborn(&self) -> PathBuf {
        self.path.with_file_name(format!(".new-{}", self.path.file_name().unwrap_or_default().display()))
    }

    /// Deletes the branch if it is still where it was made.
    pub(crate) fn drop_branch_at(&self, workspace: &Workspace, state: &State) -> Result<()> {
        let repository = workspace.shared()?;
        let Ok(mut branch) = repository.find_reference(&format!("refs/heads/{}", state.branch)) else { return Ok(()) };
        if branch.target().is_some_and(|oid| oid.to_string() == state.base_oid) {
            branch.delete().or_fail(Code::Internal, || format!("cannot delete the branch '{}'", state.branch))?;
        }
        Ok(())
    }

    /// Locks of a git, or of us, that was killed: whoever could hold one has been ended, and the task is ours.
    pub(crate) fn clear_stale_locks(&self) {
        for name in ["index.lock", "HEAD.lock"] {
            let _ = fs::remove_file(self.admin.join(name));
        }
        // `<common>/worktrees/<task>` and `<common>/refs/heads/subagent/<task>`.
        if let (Some(common), Some(task)) = (self.admin.ancestors().nth(2), self.admin.file_name()) {
            let _ = fs::remove_file(common.join(format!("refs/heads/subagent/{}.lock", task.display())));
        }
    }

    /// Lets git's own commands treat it as any other worktree.
    pub(crate) fn unlock(&self) {
        let _ = fs::remove_file(self.admin.join("locked"));
    }
}

/// How many processes are to write the files: each costs milliseconds to start, so for few files only two. The index of the
/// checkout beside it says how many there are, at some 100 bytes for each.
fn workers(here: &Repository) -> u8 {
    let size = fs::metadata(here.path().join("index")).map_or(0, |meta| meta.len());
    if size < 1 << 20 { 2 } else { 4 }
}

fn remove_all(paths: &[&Path]) -> Result<()> {
    for path in paths {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).or_fail(Code::Internal, || format!("cannot remove '{}'", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Makes the task's branch, or takes the one an earlier try has left at the same commit or ahead of it.
fn make_branch(repository: &Repository, task: &TaskName, start: Oid) -> Result<()> {
    let name = format!("refs/heads/{}", task.branch());
    let made = repository.reference(&name, start, false, "pi-subagent: start");
    let error = match made {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    if error.code() == ErrorCode::Exists {
        let tip = repository.find_reference(&name).and_then(|found| found.peel_to_commit()).map(|commit| commit.id());
        let tip = tip.or_fail(Code::Setup, || format!("cannot read the branch '{}'", task.branch()))?;
        if tip == start || repository.graph_descendant_of(tip, start).unwrap_or(false) {
            return Ok(());
        }
        return Err(Failure::new(Code::Exists, format!("cannot create the branch '{}': it exists", task.branch()))
            .hint("choose another task name, or delete the branch"));
    }
    let failure =
        Failure::new(Code::Setup, format!("cannot create the branch '{}': {}", task.branch(), cause(error.message())));
    if repository.find_reference("refs/heads/subagent").is_ok() {
        return Err(failure.hint("a branch named 'subagent' is in the way of all branches 'subagent/…': rename it"));
    }
    Err(failure)
}

/// Keeps `.worktrees` out of `git status` by the repository's own exclude file, which is not committed.
fn ignore_worktrees(common: &Path) -> Result<()> {
    const LINE: &str = "/.worktrees/";
    let path = common.join("info/exclude");
    let add = || -> std::io::Result<()> {
        let text = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        if text.split(|byte| *byte == b'\n').any(|line| line.trim_ascii() == LINE.as_bytes()) {
            return Ok(());
        }
        fs::create_dir_all(common.join("info"))?;
        let newline = if text.is_empty() || text.ends_with(b"\n") { "" } else { "\n" };
        let mut file = fs::OpenOptions::new().append(true).create(true).open(&path)?;
        std::io::Write::write_all(&mut file, format!("{newline}{LINE}\n").as_bytes())
    };
    add().or_fail(Code::Setup, || format!("cannot write '{}'", path.display()))
}

/// `target` as seen from `from`, both absolute and without links.
fn pathdiff(target: &Path, from: &Path) -> Option<PathBuf> {
    let (target, from): (Vec<_>, Vec<_>) = (target.components().collect(), from.components().collect());
    let shared = target.iter().zip(&from).take_while(|(a, b)| a == b).count();
    if shared < 2 {
        return None;
    }
    let up = std::iter::repeat_n("..", from.len() - shared).map(PathBuf::from);
    Some(up.chain(target[shared..].iter().map(|part| PathBuf::from(part.as_os_str()))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_from_the_worktree_to_the_git_directory() {
        let link = |target: &str, from: &str| pathdiff(Path::new(target), Path::new(from));
        assert_eq!(link("/w/.git", "/w/.worktrees/x"), Some("../../.git".into()));
        assert_eq!(link("/elsewhere/git", "/w/.worktrees/x"), None);
    }
}
