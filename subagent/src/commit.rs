//! What the agent left uncommitted becomes a commit, made by the git program so that filters and sparse checkouts mean what
//! they mean. What looks like a secret, is too large for GitHub, or is a repository of its own stays where it is and is said.

use std::path::Path;

use git2::{Oid, Repository, RepositoryState};

use crate::failure::{Code, Failure, OrFail, Result};
use crate::git::Git;
use crate::task::TaskName;
use crate::worktree::Worktree;

/// GitHub refuses more than 100 MB in one file and warns at half of it.
const LARGE: u64 = 50 << 20;

/// What was done about uncommitted work.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    pub(crate) committed: bool,
    /// Still there, uncommitted, with the reason.
    pub(crate) kept: Vec<String>,
}

/// One line of `git status`.
#[derive(Debug)]
pub(crate) struct Entry {
    index: u8,
    work: u8,
    pub(crate) path: Vec<u8>,
}

impl Entry {
    fn untracked(&self) -> bool {
        self.work == b'?'
    }

    fn unmerged(&self) -> bool {
        self.index == b'U' || self.work == b'U' || matches!((self.index, self.work), (b'A', b'A') | (b'D', b'D'))
    }
}

/// Everything that differs from HEAD, whatever the configuration would hide.
pub(crate) async fn status(git: &Git) -> Result<Vec<Entry>> {
    let args = ["-c", "status.relativePaths=false", "-c", "core.untrackedCache=false", "status", "--porcelain", "-z"];
    let flags = ["--untracked-files=all", "--ignore-submodules=none", "--no-renames"];
    let output = git.run(&[&args[..], &flags[..]].concat()).await?;
    Ok(output
        .split(|byte| *byte == 0)
        .filter(|line| line.len() > 3)
        .map(|line| Entry { index: line[0], work: line[1], path: line[3..].to_vec() })
        .collect())
}

/// Commits what is left in the worktree.
pub(crate) async fn leftovers(worktree: &Worktree, task: &TaskName) -> Result<Leftovers> {
    let failed =
        |failure: Failure| failure.code(Code::CommitFailed).hint("the work is kept in the worktree; then finish");
    let git = worktree.git();
    let entries = status(&git).await.map_err(failed)?;
    let mut done = Leftovers::default();
    if entries.is_empty() {
        return Ok(done);
    }
    let state = worktree.open()?.state();
    if state != RepositoryState::Clean || entries.iter().any(Entry::unmerged) {
        done.kept.push(format!("a {} is unfinished", operation(state)));
        return Ok(done);
    }
    let mut add = Vec::new();
    let mut staged = false;
    for entry in &entries {
        staged |= entry.index != b' ' && !entry.untracked();
        if entry.work == b' ' {
            continue;
        }
        match reason_to_keep(&worktree.path, entry) {
            Some(reason) => done.kept.push(format!("'{}': {reason}", String::from_utf8_lossy(&entry.path))),
            None => add.extend(entry.path.iter().chain(&[0])),
        }
    }
    if !add.is_empty() {
        let args = ["--literal-pathspecs", "add", "-A", "--sparse", "--pathspec-from-file=-", "--pathspec-file-nul"];
        git.run_with(&args, &add).await.map_err(failed)?;
    }
    if !add.is_empty() || staged {
        let message = format!("wip: what the subagent '{task}' had not committed");
        let identity = identity(&worktree.open()?);
        let mut args: Vec<&str> = identity.iter().flat_map(|setting| ["-c", setting.as_str()]).collect();
        args.extend(["commit", "--quiet", "--no-verify", "--no-gpg-sign", "-m", &message]);
        // An index that says the same as HEAD after filters is nothing to commit.
        let clean = git.run(&["diff", "--cached", "--quiet"]).await.is_ok();
        if !clean {
            git.run(&args).await.map_err(failed)?;
            done.committed = true;
        }
    }
    Ok(done)
}

fn operation(state: RepositoryState) -> &'static str {
    match state {
        RepositoryState::Rebase | RepositoryState::RebaseInteractive | RepositoryState::RebaseMerge => "rebase",
        RepositoryState::CherryPick | RepositoryState::CherryPickSequence => "cherry-pick",
        RepositoryState::Revert | RepositoryState::RevertSequence => "revert",
        RepositoryState::Bisect => "bisect",
        RepositoryState::ApplyMailbox | RepositoryState::ApplyMailboxOrRebase => "patch series",
        RepositoryState::Clean | RepositoryState::Merge => "merge",
    }
}

/// Why an untracked file is not committed on the agent's behalf.
fn reason_to_keep(root: &Path, entry: &Entry) -> Option<&'static str> {
    use std::os::unix::ffi::OsStrExt;
    if !entry.untracked() {
        return None;
    }
    if entry.path.ends_with(b"/") {
        return Some("a repository of its own");
    }
    let path = root.join(std::ffi::OsStr::from_bytes(&entry.path));
    if std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() > LARGE) {
        return Some("larger than 50 MB");
    }
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    looks_secret(&name).then_some("it looks like a secret")
}

fn looks_secret(name: &str) -> bool {
    let example = ["example", "sample", "template", "dist", "pub"].iter().any(|end| name.ends_with(end));
    let exact = [".env", ".netrc", ".git-credentials", "id_rsa", "id_ed25519", "id_ecdsa"];
    let ends = [".pem", ".key", ".p12", ".pfx", ".jks", ".keystore"];
    !example && (exact.contains(&name) || name.starts_with(".env.") || ends.iter().any(|end| name.ends_with(end)))
}

/// Settings that let git commit where nobody has said who they are.
pub(crate) fn identity(repository: &Repository) -> Vec<String> {
    match repository.signature() {
        Ok(_) => Vec::new(),
        Err(_) => vec!["user.name=pi-subagent".into(), "user.email=pi-subagent@localhost".into()],
    }
}

/// The commit that is the task's result, and its branch brought up to it: agents rename branches and detach HEAD.
/// The second value warns about commits that the branch could not take in.
pub(crate) fn settle_branch(worktree: &Worktree, task: &TaskName) -> Result<(Oid, Option<String>)> {
    let repository = worktree.open()?;
    let name = format!("refs/heads/{}", task.branch());
    let broken = || format!("cannot read the branch '{}'", task.branch());
    let head = repository.head().and_then(|head| head.peel_to_commit()).map(|commit| commit.id());
    let branch = repository.find_reference(&name).and_then(|found| found.peel_to_commit()).map(|commit| commit.id());
    match (head, branch) {
        (Ok(head), Ok(branch)) if head == branch => Ok((branch, None)),
        (Ok(head), Ok(branch)) if repository.graph_descendant_of(head, branch).unwrap_or(false) => {
            repository
                .reference(&name, head, true, "pi-subagent: work done elsewhere")
                .or_fail(Code::CommitFailed, broken)?;
            Ok((head, None))
        }
        (Ok(head), Ok(branch)) if repository.graph_descendant_of(branch, head).unwrap_or(false) => Ok((branch, None)),
        (Ok(head), Ok(branch)) => {
            let what = format!("commit {head} in the worktree is not on '{}'", task.branch());
            Ok((branch, Some(what)))
        }
        (Ok(head), Err(_)) => {
            repository
                .reference(&name, head, false, "pi-subagent: work done elsewhere")
                .or_fail(Code::CommitFailed, broken)?;
            Ok((head, None))
        }
        (Err(_), Ok(branch)) => Ok((branch, None)),
        (Err(error), Err(_)) => Err(error).or_fail(Code::CommitFailed, broken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_known_and_their_examples_are_not_secret() {
        for secret in [".env", ".env.local", "server.pem", "id_rsa", ".netrc"] {
            assert!(looks_secret(secret), "{secret}");
        }
        for plain in [".env.example", "id_rsa.pub", "keyboard.rs", "environment.ts", "monkey"] {
            assert!(!looks_secret(plain), "{plain}");
        }
    }
}
