//! `--git=direct`: the container works in the host's own git directory. What can be protected is: the files that name programs are
//! read-only and cannot be replaced, as are the ways from the tree to other repositories. What cannot is said by `weaknesses`, and
//! looked for after the session by `inspect`, which reads files and starts no git.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::libc;

use super::cover::{Cover, is_plain, way_is_a_link};
use super::index;
use super::ledger::{Ledger, give, lock};
use super::place::read_plain;
use super::prepare::{PrivateGit, make_points};
use super::repository::Repository;
use super::run::Git;
use super::{Mount, Site, in_tree, lenders, paths, settings};
use crate::error::hinted;

/// The content of a `commondir` that changes nothing.
pub(crate) const HARMLESS: &str = ".\n";
const DEEPEST: usize = 8;
const LARGEST_INDEX: u64 = 1 << 30;
/// What git run on the host reads or writes there, and through a link anywhere.
const LINK_FREE: usize = 200_000;

/// What `--git=direct` leaves open, for the person who asks for it.
pub(crate) fn weaknesses() -> &'static str {
    "the agent can change the index, references and logs of your own git directory: links in it that your git writes through, other \
     repositories in the index, and steps of an unfinished rebase can make your git run or overwrite something"
}

/// The mounts that protect what can be protected.
pub(crate) fn protect(site: &Site) -> Result<PrivateGit> {
    let _lock = lock(site)?;
    let repository = Repository::at(site.root)?;
    if repository.by_file {
        let hint = "leave --git=direct out, or start from the main working tree";
        return Err(hinted("cannot use --git=direct in a linked worktree or a submodule", hint));
    }
    let mut direct = Direct {
        cover: Cover::new(site.root),
        points: vec![PathBuf::from(".worktrees")],
        warnings: Vec::new(),
        git_dirs: Vec::new(),
    };
    direct.cover.dot_git(Path::new(""), &repository.git_dir, false)?;
    let git_dir = Path::new(".git");
    direct.close_git_dir(site.root, git_dir);
    direct.close_modules(site.root, &git_dir.join("modules"), 0);
    for entry in fs::read_dir(repository.git_dir.join("worktrees")).into_iter().flatten().flatten() {
        let folder = git_dir.join("worktrees").join(entry.file_name());
        direct.cover.fence(&folder);
        for name in ["commondir", "gitdir", "config.worktree"] {
            direct.close_file(site.root, &folder.join(name));
        }
    }
    let git = Git::new(&repository.git_dir, site.env, site.owner);
    let local = git.settings()?;
    direct.close_tree(site.root, &repository, &local)?;
    let in_tree = in_tree::find(&repository, &git.settings_of_user()?, &local);
    for file in &in_tree.included {
        let path = file.strip_prefix(site.root).unwrap_or(file).to_owned();
        if !way_is_a_link(site.root, path.parent().unwrap_or(&path)) {
            direct.cover.fence(path.parent().unwrap_or(Path::new("")));
            direct.close_file(site.root, &path);
        }
    }
    let mut ledger = Ledger::load(site.state)?;
    lenders::before_direct(direct.lenders(site.root), &mut ledger);
    ledger.direct_open.push(site.session.to_owned());
    ledger.save(site)?;
    no_links(site.root, &direct.cover.mounts)?;
    make_points(site, &direct.points, &mut ledger)?;
    let mut mounts = direct.cover.mounts;
    mounts.retain(|mount| mount.host.symlink_metadata().is_ok());
    let worktrees = paths::worktrees(site.state);
    super::place::Folder::open(&worktrees, site.owner).context("cannot open the folder of worktrees")?;
    mounts.push(Mount { host: worktrees, container: format!("{}/.worktrees", paths::WORKSPACE), read_only: false });
    mounts.sort_by_key(|mount| mount.container.matches('/').count());
    Ok(PrivateGit { mounts, programs: in_tree.programs, warnings: direct.warnings })
}

struct Direct {
    cover: Cover,
    points: Vec<PathBuf>,
    warnings: Vec<String>,
    /// The git directories that were closed.
    git_dirs: Vec<PathBuf>,
}

impl Direct {
    /// Closes what decides which programs git runs in one git directory, and which other folders it reads.
    fn close_git_dir(&mut self, root: &Path, git_dir: &Path) {
        let info = git_dir.join("objects/info");
        self.cover.fence(&info);
        self.make(root, &info);
        for name in ["hooks", "commondir", "config", "config.worktree", "objects/info/alternates"] {
            let path = git_dir.join(name);
            self.make(root, &path);
            self.cover.mount(root.join(&path), &path, true);
        }
        self.git_dirs.push(root.join(git_dir));
    }

    fn make(&mut self, root: &Path, path: &Path) {
        if root.join(path).symlink_metadata().is_err() {
            self.points.push(path.to_owned());
        }
    }

    fn close_file(&mut self, root: &Path, path: &Path) {
        if root.join(path).symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            self.cover.mount(root.join(path), path, true);
        }
    }

    /// The folders that these repositories borrow objects from.
    fn lenders(&self, root: &Path) -> Vec<PathBuf> {
        let repositories = self.git_dirs.iter().map(|dir| Repository {
            root: root.to_owned(),
            git_dir: dir.clone(),
            common_dir: dir.clone(),
            by_file: false,
        });
        repositories
            .filter_map(|repository| repository.object_folders().ok())
            .flat_map(|(folders, _)| folders)
            .collect()
    }

    /// Closes the git directories of submodules, by where git keeps them.
    fn close_modules(&mut self, root: &Path, folder: &Path, depth: usize) {
        if depth > DEEPEST {
            return;
        }
        for entry in fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
            let path = folder.join(entry.file_name());
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if root.join(&path).join("HEAD").symlink_metadata().is_ok() {
                self.close_git_dir(root, &path);
                self.close_modules(root, &path.join("modules"), depth + 1);
            } else {
                self.close_modules(root, &path, depth + 1);
            }
        }
    }

    /// Closes the ways from the tree into other repositories.
    fn close_tree(&mut self, root: &Path, repository: &Repository, local: &[(String, String)]) -> Result<()> {
        for path in gitlinks(repository, local)?.into_iter().chain(repository.worktrees_inside()) {
            if !is_plain(&path) || way_is_a_link(root, &path) {
                self.warnings.push(format!(
                    "the submodule '{}' is not a folder of the tree; it is not protected",
                    path.display()
                ));
                continue;
            }
            let dot_git = path.join(".git");
            match root.join(&dot_git).symlink_metadata() {
                Ok(meta) if meta.is_dir() => self.close_git_dir(root, &dot_git),
                Ok(_) => {
                    self.cover.fence(&path);
                    self.close_file(root, &dot_git);
                }
                Err(_) => {
                    self.cover.fence(path.parent().unwrap_or(Path::new("")));
                    self.cover.mount(root.join(&path), &path, true);
                }
            }
        }
        Ok(())
    }
}

/// The engine would follow a link that an earlier session has left, and mount what it leads to.
fn no_links(root: &Path, mounts: &[Mount]) -> Result<()> {
    for path in mounts.iter().filter_map(|mount| mount.host.strip_prefix(root).ok()) {
        let steps = path.ancestors().filter(|step| !step.as_os_str().is_empty());
        if let Some(link) = steps.map(|step| root.join(step)).find(|step| step.is_symlink()) {
            let hint = "put a folder or file of your own there, or leave --git=direct out";
            return Err(hinted(format!("cannot use --git=direct: '{}' is a link", link.display()), hint));
        }
    }
    Ok(())
}

fn gitlinks(repository: &Repository, local: &[(String, String)]) -> Result<Vec<PathBuf>> {
    let hash = if settings::value(local, "extensions.objectformat") == Some("sha256") { 32 } else { 20 };
    let path = repository.git_dir.join("index");
    let data = read_plain(&path, LARGEST_INDEX).with_context(|| format!("cannot read '{}'", path.display()))?;
    let Some(data) = data else { return Ok(Vec::new()) };
    let links = index::links(&data, hash)?;
    if links.split {
        bail!(hinted("cannot protect a split index", "run 'git update-index --no-split-index' first"));
    }
    Ok(links.gitlinks.into_iter().map(PathBuf::from).collect())
}

/// The repositories that the index names, from the top. Reads it without git.
pub(crate) fn linked(root: &Path) -> Result<Vec<PathBuf>> {
    let repository = Repository::at(root)?;
    // Which hash it is with says the configuration; an index of the other one cannot be read.
    let sha256 = [("extensions.objectformat".to_owned(), "sha256".to_owned())];
    gitlinks(&repository, &[]).or_else(|_| gitlinks(&repository, &sha256))
}

/// What an agent may have left in the host's own git directory: one sentence each. `before` is what the index linked to at the start.
pub(crate) fn inspect(root: &Path, before: &[PathBuf]) -> Result<Vec<String>> {
    let repository = Repository::at(root)?;
    let mut said = Vec::new();
    let mut folders = vec![repository.git_dir.clone()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read '{}'", folder.display()))?.flatten() {
            seen += 1;
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            if kind.is_symlink() {
                said.push(format!("'{}' is a link: your git writes through it; delete it", path.display()));
            } else if kind.is_dir() && !path.starts_with(repository.git_dir.join("objects")) && seen < LINK_FREE {
                folders.push(path);
            }
        }
    }
    for name in ["rebase-merge/git-rebase-todo", "rebase-apply", "sequencer/todo"] {
        if repository.git_dir.join(name).symlink_metadata().is_ok() {
            said.push(format!("'.git/{name}' is there: look at it before you continue, its steps can be commands"));
        }
    }
    match linked(root) {
        Ok(links) => said.extend(links.iter().filter(|link| !before.contains(link)).map(|link| {
            format!(
                "the index has '{}' as another repository: your git goes into it; run 'git rm --cached' on it",
                link.display()
            )
        })),
        Err(e) => said.push(format!("{e:#}: it was not looked into for other repositories")),
    }
    Ok(said.iter().map(|line| super::report::printable(line)).collect())
}

/// Adds the folder of the subagents' worktrees to the repository's `.gitignore`. `false` if it is there already, or the file is a link,
/// which is left alone. A new one is `owner`'s, if that is somebody else.
pub(crate) fn ignore_worktrees(root: &Path, owner: Option<(u32, u32)>) -> Result<bool> {
    const LINE: &str = "/.worktrees/";
    let path = root.join(".gitignore");
    let cannot = || format!("cannot write '{}'", path.display());
    if path.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
        return Ok(false);
    }
    let content = read_plain(&path, LARGEST_INDEX).with_context(cannot)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    if text.lines().any(|line| matches!(line.trim_end(), LINE | ".worktrees" | ".worktrees/" | "/.worktrees")) {
        return Ok(false);
    }
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let opened = fs::OpenOptions::new().append(true).create(true).custom_flags(libc::O_NOFOLLOW).open(&path);
    let written = opened.and_then(|mut file| {
        if content.is_empty() {
            give(&file, owner)?;
        }
        writeln!(file, "{newline}{LINE}")
    });
    written.with_context(cannot)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_new_gitignore_is_the_repositorys_owners_and_an_old_one_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let ignored = dir.path().join(".gitignore");
        let uid = || fs::metadata(&ignored).unwrap().uid();
        // Only root can give a file away.
        let root = nix::unistd::geteuid().is_root();
        let owner = root.then_some((65534, 65534));
        assert!(ignore_worktrees(dir.path(), owner).unwrap());
        assert_eq!((fs::read_to_string(&ignored).unwrap().as_str(), uid() == 65534), ("/.worktrees/\n", root));
        assert!(!ignore_worktrees(dir.path(), owner).unwrap());
        fs::remove_file(&ignored).unwrap();
        fs::write(&ignored, "target").unwrap();
        let before = uid();
        assert!(ignore_worktrees(dir.path(), owner).unwrap());
        assert_eq!((fs::read_to_string(&ignored).unwrap().as_str(), uid()), ("target\n/.worktrees/\n", before));
    }
}
