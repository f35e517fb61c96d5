//! Where a repository's git directory is, read without starting git: what follows runs there, so it must be the user's own and not
//! one that an agent left in the tree. Also what lies in it that a session has to know: borrowed objects, an unfinished operation.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::direct::HARMLESS;
use super::place::{open_below, read_plain};
use crate::error::hinted;

#[derive(Clone, Debug)]
pub(crate) struct Repository {
    /// The working tree.
    pub(crate) root: PathBuf,
    /// The git directory; of a linked worktree, its own.
    pub(crate) git_dir: PathBuf,
    /// The git directory that holds objects and branches.
    pub(crate) common_dir: PathBuf,
    /// `.git` is a file that names the git directory.
    pub(crate) by_file: bool,
}

/// A file that names a folder is this long at most.
const SHORT: u64 = 16 * 1024;

impl Repository {
    /// Finds the git directory of the working tree `root`.
    pub(crate) fn at(root: &Path) -> Result<Repository> {
        let dot_git = root.join(".git");
        let refuse = |why: &str| format!("cannot use '{}': {why}", dot_git.display());
        let meta = dot_git.symlink_metadata().with_context(|| format!("cannot read '{}'", dot_git.display()))?;
        if meta.is_symlink() {
            let hint = "replace the link by a file with one line, 'gitdir: <the folder it leads to>'";
            return Err(hinted(refuse("it is a link, which a mount in a container cannot cover"), hint));
        }
        let (git_dir, common_dir) = if meta.is_dir() {
            // One that names the folder itself is what a session with --git=direct leaves if it is killed.
            if read_plain(&dot_git.join("commondir"), SHORT).ok() != Some(None)
                && read_plain(&dot_git.join("commondir"), SHORT).ok().flatten().as_deref() != Some(HARMLESS.as_bytes())
            {
                let hint =
                    "look at 'commondir' in it: git does not write that file there, so delete it unless you made it";
                return Err(hinted(refuse("it points to another git directory"), hint));
            }
            (dot_git.clone(), dot_git.clone())
        } else {
            let git_dir = pointed_to(root, &read_pointer(&dot_git, "gitdir: ")?, &dot_git)?;
            let common_dir = match git_dir.join("commondir").symlink_metadata() {
                Ok(_) => pointed_to(&git_dir, &read_pointer(&git_dir.join("commondir"), "")?, &git_dir)?,
                Err(_) => git_dir.clone(),
            };
            if git_dir.starts_with(root) || common_dir.starts_with(root) {
                bail!(refuse("it names a git directory inside the working tree, where an agent can write"));
            }
            (git_dir, common_dir)
        };
        let owner = fs::metadata(root).with_context(|| format!("cannot read '{}'", root.display()))?.uid();
        if fs::metadata(&git_dir).with_context(|| format!("cannot read '{}'", git_dir.display()))?.uid() != owner {
            bail!(refuse("it belongs to somebody else than the working tree"));
        }
        if !common_dir.join("objects").is_dir() {
            bail!(refuse("no git repository is behind it"));
        }
        Ok(Repository { root: root.to_owned(), git_dir, common_dir, by_file: !meta.is_dir() })
    }

    /// The folders with the repository's objects: its own, then those it borrows from, and what could not be used.
    pub(crate) fn object_folders(&self) -> Result<(Vec<PathBuf>, Vec<String>)> {
        let own = self.common_dir.join("objects");
        let own = own.canonicalize().with_context(|| format!("cannot use '{}'", own.display()))?;
        let (mut found, mut warnings) = (vec![own], Vec::new());
        let mut next = 0;
        while let Some(folder) = found.get(next).cloned() {
            next += 1;
            for line in alternates(&folder)?.split(|&b| b == b'\n') {
                if line.is_empty() || line[0] == b'#' {
                    continue;
                }
                match folder.join(Path::new(std::ffi::OsStr::from_bytes(line))).canonicalize() {
                    Ok(path)
                        if path.is_dir() && (!path.starts_with(&self.root) || path.starts_with(&self.common_dir)) =>
                    {
                        if !found.contains(&path) {
                            found.push(path);
                        }
                    }
                    _ => warnings.push(format!(
                        "objects borrowed from '{}' are left out: it is not a folder outside the working tree",
                        super::report::printable(&String::from_utf8_lossy(line))
                    )),
                }
            }
        }
        Ok((found, warnings))
    }

    /// What the user has begun and not finished, as git calls it.
    pub(crate) fn operation(&self) -> Option<&'static str> {
        let operations = [
            ("rebase-merge", "rebase"),
            ("rebase-apply", "rebase"),
            ("MERGE_HEAD", "merge"),
            ("CHERRY_PICK_HEAD", "cherry-pick"),
            ("REVERT_HEAD", "revert"),
            ("sequencer", "cherry-pick or revert"),
            ("BISECT_LOG", "bisect"),
        ];
        operations
            .iter()
            .find(|(name, _)| self.git_dir.join(name).symlink_metadata().is_ok())
            .map(|(_, operation)| *operation)
    }

    /// The full names of branches that are being rebased or bisected, in any worktree. Git does not list these as checked out.
    pub(crate) fn branches_in_operations(&self) -> Vec<String> {
        let mut git_dirs = vec![self.common_dir.clone()];
        git_dirs
            .extend(fs::read_dir(self.common_dir.join("worktrees")).into_iter().flatten().flatten().map(|e| e.path()));
        let mut names = Vec::new();
        for dir in git_dirs {
            for file in ["rebase-merge/head-name", "rebase-apply/head-name", "BISECT_START"] {
                if let Ok(Some(content)) = read_plain(&dir.join(file), SHORT) {
                    let name = String::from_utf8_lossy(&content).trim().to_owned();
                    names.push(if name.starts_with("refs/") { name } else { format!("refs/heads/{name}") });
                }
            }
        }
        names
    }

    /// The linked worktrees that lie inside the working tree, as paths from its top.
    pub(crate) fn worktrees_inside(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.common_dir.join("worktrees")).into_iter().flatten().flatten();
        let dot_gits = entries.filter_map(|entry| {
            let pointer = read_pointer(&entry.path().join("gitdir"), "").ok()?;
            Some(entry.path().join(pointer))
        });
        dot_gits
            .filter_map(|dot_git| {
                dot_git.parent()?.canonicalize().ok()?.strip_prefix(&self.root).ok().map(Path::to_owned)
            })
            .filter(|path| !path.as_os_str().is_empty())
            .collect()
    }
}

/// The list of the folders that a folder of objects is completed by.
fn alternates(folder: &Path) -> Result<Vec<u8>> {
    let mut list = Vec::new();
    let read = open_below(folder, "info/alternates").and_then(|file| match file {
        Some(file) => file.take(1024 * SHORT).read_to_end(&mut list),
        None => Ok(0),
    });
    read.with_context(|| format!("cannot read '{}'", folder.join("info/alternates").display()))?;
    Ok(list)
}

fn read_pointer(file: &Path, prefix: &str) -> Result<PathBuf> {
    let content =
        read_plain(file, SHORT).with_context(|| format!("cannot read '{}'", file.display()))?.unwrap_or_default();
    let Some(path) =
        content.strip_prefix(prefix.as_bytes()).map(<[u8]>::trim_ascii_end).filter(|path| !path.is_empty())
    else {
        bail!("cannot read '{}': it does not name a folder", file.display());
    };
    Ok(PathBuf::from(std::ffi::OsStr::from_bytes(path)))
}

fn pointed_to(base: &Path, path: &Path, named_by: &Path) -> Result<PathBuf> {
    let path = base.join(path);
    path.canonicalize().with_context(|| format!("cannot follow '{}' to '{}'", named_by.display(), path.display()))
}
