//! The repository as it is found: its root, its common git directory, the commit and branch a task starts from. Reads only.

use std::path::{Path, PathBuf};

use git2::{ErrorCode, Oid, Repository};

use crate::failure::{Code, Failure, OrFail, Result, cause};

/// The repository that tasks are made in.
pub(crate) struct Workspace {
    /// Top of the main worktree; `.worktrees` is in it.
    pub(crate) root: PathBuf,
    /// The git directory that all worktrees share.
    pub(crate) common: PathBuf,
    /// Opened where we were started: its HEAD is the one a task starts from.
    pub(crate) here: Repository,
}

/// Where a task starts, and where its pull request goes.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    /// The branch's short name.
    pub(crate) branch: String,
    pub(crate) oid: Oid,
}

impl Workspace {
    pub(crate) fn discover(cwd: &Path) -> Result<Self> {
        let here = Repository::discover(cwd).map_err(|error| unusable(cwd, &error))?;
        let common =
            here.commondir().canonicalize().or_fail(Code::NoRepository, || "cannot find the git directory".into())?;
        let own = here.workdir().map(Path::to_owned);
        let main = if here.is_worktree() {
            // The main worktree may be one that is not mounted here; then the one we are in has to do.
            Repository::open(&common)
                .ok()
                .and_then(|main| main.workdir().map(Path::to_owned))
                .filter(|dir| dir.is_dir())
        } else {
            own.clone()
        };
        let root = main.or(own).ok_or_else(|| {
            Failure::new(
                Code::RepositoryUnsupported,
                format!("cannot work in '{}': it is a bare repository", cwd.display()),
            )
        })?;
        let root = root.canonicalize().or_fail(Code::NoRepository, || format!("cannot find '{}'", root.display()))?;
        Ok(Workspace { root, common, here })
    }

    /// Where a task's worktree is, or will be.
    pub(crate) fn worktree(&self, task: &str) -> PathBuf {
        self.root.join(".worktrees").join(task)
    }

    /// Resolves what a task starts from: the branch we are on, or the one that was asked for.
    pub(crate) fn base(&self, wanted: Option<&str>) -> Result<Base> {
        let Some(wanted) = wanted else { return self.current() };
        let wanted = wanted.strip_prefix("refs/heads/").unwrap_or(wanted);
        for name in [format!("refs/heads/{wanted}"), format!("refs/remotes/origin/{wanted}")] {
            if let Ok(reference) = self.here.find_reference(&name) {
                let commit = reference.peel_to_commit();
                let oid = commit.or_fail(Code::BaseNotFound, || format!("cannot use '{wanted}' as a base"))?.id();
                return Ok(Base { branch: wanted.to_owned(), oid });
            }
        }
        Err(Failure::new(Code::BaseNotFound, format!("cannot find a branch '{wanted}'")).hint(
            "the base must be a branch, because a pull request goes to one; fetch it first if it is only on the remote",
        ))
    }

    fn current(&self) -> Result<Base> {
        let head = match self.here.head() {
            Ok(head) => head,
            Err(error) if error.code() == ErrorCode::UnbornBranch => {
                return Err(Failure::new(Code::NoCommits, "cannot start from this repository: it has no commits yet")
                    .hint("commit something and push it first"));
            }
            Err(error) => {
                return Err(Failure::new(Code::NoCommits, format!("cannot read HEAD: {}", cause(error.message()))));
            }
        };
        let oid = head.peel_to_commit().or_fail(Code::NoCommits, || "cannot read the commit of HEAD".into())?.id();
        if !head.is_branch() {
            return Err(Failure::new(Code::Detached, "cannot tell where a pull request would go: HEAD is detached")
                .hint("switch to a branch, or name one with --base"));
        }
        let branch =
            head.shorthand().or_fail(Code::NoCommits, || "cannot read the name of the branch".into())?.to_owned();
        Ok(Base { branch, oid })
    }

    /// The repository without regard to where we were started.
    pub(crate) fn shared(&self) -> Result<Repository> {
        Repository::open(&self.common).or_fail(Code::Internal, || format!("cannot open '{}'", self.common.display()))
    }
}

/// Commits on `head` that `base` does not have, and the other way round.
pub(crate) fn ahead_behind(repository: &Repository, head: Oid, base: Oid) -> (usize, usize) {
    repository.graph_ahead_behind(head, base).unwrap_or((0, 0))
}

fn unusable(cwd: &Path, error: &git2::Error) -> Failure {
    let said = cause(error.message());
    match error.code() {
        ErrorCode::NotFound => {
            Failure::new(Code::NoRepository, format!("cannot find a git repository in '{}'", cwd.display()))
        }
        ErrorCode::Owner => {
            Failure::new(Code::NoRepository, format!("cannot use the repository of '{}': {said}", cwd.display()))
                .hint("it belongs to another user; run as its owner")
        }
        _ => Failure::new(
            Code::RepositoryUnsupported,
            format!("cannot open the repository of '{}': {said}", cwd.display()),
        )
        .hint("reftable, SHA-256 and partial-clone repositories are not supported"),
    }
}
