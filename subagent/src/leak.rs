//! The token must not leave by the branch: an agent can print it into a file and commit it. Looks through everything that
//! would be pushed before it is.

use std::collections::HashSet;

use git2::{Delta, DiffOptions, Oid, Repository};

use crate::failure::{Code, Failure, OrFail, Result};
use crate::remote::Heads;
use crate::repo::Workspace;
use crate::secret::Secret;

/// Larger files are not looked through: a credential is written into a small one.
const LARGEST: usize = 4 << 20;

/// Fails if a commit of `head` that no branch in `there` has, so that a push would give it away, holds the token: in its message, in who
/// made it, in a file it adds or changes, or in that file's name.
pub(crate) fn refuse(workspace: &Workspace, token: &Secret, there: &Heads, head: Oid) -> Result<()> {
    let repository = workspace.shared()?;
    let search = || -> std::result::Result<Option<Oid>, git2::Error> {
        let mut walk = repository.revwalk()?;
        walk.push(head)?;
        for oid in there.oids().filter(|oid| repository.find_commit(*oid).is_ok()) {
            walk.hide(oid)?;
        }
        let mut seen = HashSet::new();
        for oid in walk {
            let oid = oid?;
            if holds(&repository, oid, token.expose().as_bytes(), &mut seen)? {
                return Ok(Some(oid));
            }
        }
        Ok(None)
    };
    match search().or_fail(Code::PushFailed, || "cannot look through the commits".into())? {
        None => Ok(()),
        Some(oid) => {
            let text = format!("cannot push: commit {} holds the access token", &oid.to_string()[..10]);
            Err(Failure::new(Code::SecretInCommit, text)
                .hint("take it out of the history in the worktree, then finish; and replace the token"))
        }
    }
}

fn holds(repository: &Repository, oid: Oid, token: &[u8], seen: &mut HashSet<Oid>) -> Result2<bool> {
    let commit = repository.find_commit(oid)?;
    if contains(commit.message_bytes(), token) || contains(commit.raw_header_bytes(), token) {
        return Ok(true);
    }
    let parent = match commit.parents().next() {
        Some(parent) => Some(parent.tree()?),
        None => None,
    };
    let mut options = DiffOptions::new();
    options.skip_binary_check(true).ignore_submodules(true);
    let diff = repository.diff_tree_to_tree(parent.as_ref(), Some(&commit.tree()?), Some(&mut options))?;
    let odb = repository.odb()?;
    for delta in diff.deltas().filter(|delta| delta.status() != Delta::Deleted) {
        if contains(delta.new_file().path_bytes().unwrap_or_default(), token) {
            return Ok(true);
        }
        let blob = delta.new_file().id();
        if seen.insert(blob)
            && odb.read_header(blob).is_ok_and(|(size, _)| size <= LARGEST)
            && contains(odb.read(blob)?.data(), token)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

type Result2<T> = std::result::Result<T, git2::Error>;

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    let Some(first) = wanted.first() else { return false };
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        if rest[at..].starts_with(wanted) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}
