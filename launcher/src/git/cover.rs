//! Mounts over places in the working tree. A mount point cannot be renamed or removed from inside, nor can, if each folder on the way is
//! one too, anything be put in its place.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail};

use super::{Mount, paths};
use crate::error::hinted;

/// Other ways to write `.git` that some file system takes for it.
const SPELLINGS: &[&str] =
    &[".GIT", ".GIt", ".GiT", ".Git", ".gIT", ".gIt", ".giT", "git~1", "GIT~1", ".git::$INDEX_ALLOCATION"];

/// The mounts in one working tree.
pub(crate) struct Cover {
    root: PathBuf,
    pub(crate) mounts: Vec<Mount>,
}

impl Cover {
    pub(crate) fn new(root: &Path) -> Cover {
        Cover { root: root.to_owned(), mounts: Vec::new() }
    }

    /// Makes a folder and each one on the way to it a mount point. Paths are from the top.
    pub(crate) fn fence(&mut self, path: &Path) {
        let mut way: Vec<&Path> = path.ancestors().filter(|step| !step.as_os_str().is_empty()).collect();
        way.reverse();
        for step in way {
            self.mount(self.root.join(step), step, false);
        }
    }

    /// Mounts something of the host's over a path. Of two mounts over one path the stricter counts.
    pub(crate) fn mount(&mut self, host: PathBuf, path: &Path, read_only: bool) {
        let Some(container) = paths::in_container(path) else { return };
        match self.mounts.iter_mut().find(|mount| mount.container == container) {
            Some(mount) => mount.read_only |= read_only,
            None => self.mounts.push(Mount { host, container, read_only }),
        }
    }

    /// Mounts over the `.git` of the working tree `path`, in each spelling that the file system takes for it.
    pub(crate) fn dot_git(&mut self, path: &Path, host: &Path, read_only: bool) -> Result<()> {
        for name in spellings(&self.root.join(path))? {
            self.mount(host.to_owned(), &path.join(name), read_only);
        }
        Ok(())
    }
}

/// A relative path that stays where it is.
pub(crate) fn is_plain(path: &Path) -> bool {
    !path.as_os_str().is_empty() && path.components().all(|part| matches!(part, Component::Normal(_)))
}

pub(crate) fn way_is_a_link(root: &Path, path: &Path) -> bool {
    path.ancestors()
        .any(|step| root.join(step).symlink_metadata().is_ok_and(|meta| !meta.is_dir() && !step.as_os_str().is_empty()))
}

/// The names by which the file system finds the `.git` of a folder. Fails where there is no end of them.
pub(crate) fn spellings(folder: &Path) -> Result<Vec<&'static str>> {
    let Ok(dot_git) = fs::symlink_metadata(folder.join(".git")) else { return Ok(vec![".git"]) };
    let is_it = |name: &str| {
        folder
            .join(name)
            .symlink_metadata()
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == (dot_git.dev(), dot_git.ino()))
    };
    if is_it(".g\u{200c}it") {
        bail!(hinted(
            format!(
                "cannot protect '{}': its file system finds '.git' by names without end (HFS+)",
                folder.join(".git").display()
            ),
            "move the repository to an APFS volume, or use --git=direct",
        ));
    }
    Ok([".git"].into_iter().chain(SPELLINGS.iter().copied().filter(|name| is_it(name))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_leads_to_the_git_directory_is_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".git"), "gitdir: x").unwrap();
        assert_eq!(spellings(dir.path()).unwrap(), [".git"]);
        // What a file system that ignores case does: another name, the same file.
        fs::hard_link(dir.path().join(".git"), dir.path().join(".GIT")).unwrap();
        fs::hard_link(dir.path().join(".git"), dir.path().join("git~1")).unwrap();
        assert_eq!(spellings(dir.path()).unwrap(), [".git", ".GIT", "git~1"]);
        fs::hard_link(dir.path().join(".git"), dir.path().join(".g\u{200c}it")).unwrap();
        assert!(spellings(dir.path()).is_err());
    }
}
