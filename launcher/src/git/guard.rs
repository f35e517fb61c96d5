//! The repositories inside the repository that the host's git goes into by itself: submodules, other folders that the index names as
//! repositories, and linked worktrees. Each gets a private git directory or is closed, and each folder on the way to it becomes a
//! mount point: what is one cannot be renamed, so nothing else can be put in its place.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::cover::{Cover, is_plain, way_is_a_link};
use super::index::{self, Links};
use super::place::read_plain;
use super::repository::Repository;
use super::run::Git;
use super::{Mount, Site, in_tree, paths, settings};
use crate::error::hinted;

/// A repository that gets a private side: the one the session is for, or one inside it.
pub(crate) struct Part<'a> {
    /// Its folder below `modules` of the private git directory; empty for the repository itself.
    pub(crate) key: String,
    /// Its working tree, from the top.
    pub(crate) path: PathBuf,
    pub(crate) repository: Repository,
    pub(crate) git: Git<'a>,
    pub(crate) settings: Vec<(String, String)>,
    /// The folders with its objects, its own first.
    pub(crate) objects: Vec<PathBuf>,
}

/// What a repository consists of, and what covers the places where the host's git would look.
pub(crate) struct Survey<'a> {
    pub(crate) parts: Vec<Part<'a>>,
    pub(crate) cover: Cover,
    /// Files to be written for the mounts.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Folders that have to be made to mount onto, from the top.
    pub(crate) points: Vec<PathBuf>,
    /// What the host's git uses in the tree and no mount closes.
    pub(crate) programs: Vec<PathBuf>,
    pub(crate) warnings: Vec<String>,
}

/// More mounts than this are not made.
const MOST_MOUNTS: usize = 400;
const LARGEST_INDEX: u64 = 1 << 30;

/// Looks at the repository and, through their indexes, at all that are in it.
pub(crate) fn survey<'a>(site: &Site<'a>, repository: Repository) -> Result<Survey<'a>> {
    let mut survey = Survey {
        parts: Vec::new(),
        cover: Cover::new(site.root),
        files: Vec::new(),
        points: Vec::new(),
        programs: Vec::new(),
        warnings: Vec::new(),
    };
    let by_file = repository.by_file;
    let inside = repository.worktrees_inside();
    survey.add_part(site, String::new(), PathBuf::new(), repository)?;
    let private = paths::private(site.state);
    if by_file {
        survey.cover.mounts.push(Mount { host: private, container: paths::APART.to_owned(), read_only: false });
        survey.cover_by_file(site, Path::new(""), "")?;
    } else {
        survey.cover.dot_git(Path::new(""), &private, false)?;
    }
    survey.close_included(site)?;
    let mut next = 0;
    while next < survey.parts.len() {
        survey.descend(site, next)?;
        next += 1;
    }
    for path in inside.iter().filter(|path| !path.starts_with(".worktrees")) {
        survey.cover.fence(path);
        let dot_git = site.root.join(path).join(".git");
        if dot_git.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            survey.cover.dot_git(path, &dot_git, true)?;
            survey
                .warnings
                .push(format!("git does not work in the container inside the linked worktree '{}'", path.display()));
        }
    }
    Ok(survey)
}

impl<'a> Survey<'a> {
    fn add_part(&mut self, site: &Site<'a>, key: String, path: PathBuf, repository: Repository) -> Result<()> {
        let git = Git::new(&repository.git_dir, site.env, site.owner);
        let settings = git.settings()?;
        let (objects, left_out) = repository.object_folders()?;
        self.warnings.extend(left_out);
        self.parts.push(Part { key, path, repository, git, settings, objects });
        Ok(())
    }

    /// Configuration that lies in the tree is made read-only: the host's git obeys every line of it.
    fn close_included(&mut self, site: &Site) -> Result<()> {
        let part = &self.parts[0];
        let users = part.git.settings_of_user()?;
        let in_tree = in_tree::find(&part.repository, &users, &part.settings);
        self.programs = in_tree.programs;
        for file in in_tree.included {
            let path = file.strip_prefix(site.root).unwrap_or(&file).to_owned();
            if file.symlink_metadata().is_ok_and(|meta| meta.is_file())
                && !way_is_a_link(site.root, path.parent().unwrap_or(&path))
            {
                self.cover.fence(path.parent().unwrap_or(Path::new("")));
                self.cover.mount(file, &path, true);
            } else {
                self.warnings
                    .push(format!("git's configuration includes '{}', which the agent can make", path.display()));
                self.programs.push(file);
            }
        }
        Ok(())
    }

    /// Covers what the index of one part names as repositories.
    fn descend(&mut self, site: &Site<'a>, number: usize) -> Result<()> {
        let part = &self.parts[number];
        let (key, path) = (part.key.clone(), part.path.clone());
        let links = read_links(part)?;
        if links.below_worktrees && path.as_os_str().is_empty() {
            bail!(hinted(
                "cannot use '.worktrees': the repository tracks files there",
                "move them, or use --git=direct"
            ));
        }
        for link in links.gitlinks {
            let link_path = path.join(&link);
            if self.cover.mounts.len() > MOST_MOUNTS {
                self.warnings.push(format!(
                    "'{}' and what follows is watched only: there are too many submodules to close",
                    link_path.display()
                ));
                break;
            }
            if !is_plain(&link_path) || way_is_a_link(site.root, &link_path) {
                self.warnings.push(format!(
                    "the submodule '{}' is not a folder of the tree; it was left out",
                    link_path.display()
                ));
                continue;
            }
            self.enclose(site, number, &key, &link, link_path)?;
        }
        Ok(())
    }

    fn enclose(&mut self, site: &Site<'a>, parent: usize, parent_key: &str, link: &str, path: PathBuf) -> Result<()> {
        let root = site.root.join(&path);
        let Ok(dot_git) = root.join(".git").symlink_metadata() else {
            // Not initialised. Empty it must stay, or the host's git would go into what is put there.
            self.cover.fence(path.parent().unwrap_or(Path::new("")));
            if root.symlink_metadata().is_err() {
                self.points.push(path.clone());
            }
            self.cover.mount(root, &path, true);
            return Ok(());
        };
        self.cover.fence(&path);
        let repository = match Repository::at(&root) {
            Ok(repository) => repository,
            Err(e) => {
                self.warnings.push(format!("the submodule '{}' is read-only: {e:#}", path.display()));
                self.cover.mount(root, &path, true);
                return Ok(());
            }
        };
        let top = &self.parts[0].repository;
        let ours = [&top.git_dir, &top.common_dir].iter().any(|dir| repository.git_dir.starts_with(dir));
        if repository.by_file && repository.git_dir.starts_with(site.root) && !ours {
            self.warnings
                .push(format!("the submodule '{}' is read-only: its git directory is in the tree", path.display()));
            self.cover.mount(root, &path, true);
            return Ok(());
        }
        let modules = self.parts[parent].repository.git_dir.join("modules");
        let name = repository.git_dir.strip_prefix(&modules).ok().and_then(Path::to_str).unwrap_or(link);
        let key = if parent_key.is_empty() { name.to_owned() } else { format!("{parent_key}/modules/{name}") };
        if !is_plain(Path::new(&key)) || self.parts.iter().any(|part| part.key == key) {
            self.warnings.push(format!("the submodule '{}' is read-only: its name cannot be used", path.display()));
            self.cover.mount(root, &path, true);
            return Ok(());
        }
        if dot_git.is_dir() {
            self.cover.dot_git(&path, &paths::private(site.state).join("modules").join(&key), false)?;
        } else {
            self.cover_by_file(site, &path, &key)?;
        }
        self.add_part(site, key, path, repository)
    }

    fn cover_by_file(&mut self, site: &Site, path: &Path, key: &str) -> Result<()> {
        let base = match self.parts.first() {
            Some(part) if !part.repository.by_file => format!("{}/.git", paths::WORKSPACE),
            _ => paths::APART.to_owned(),
        };
        let target = if key.is_empty() { base } else { format!("{base}/modules/{key}") };
        let file = paths::git_file(site.state, key);
        self.files.push((file.clone(), format!("gitdir: {target}\n")));
        self.cover.dot_git(path, &file, true)
    }
}

fn read_links(part: &Part) -> Result<Links> {
    let path = part.repository.git_dir.join("index");
    let hash = if settings::value(&part.settings, "extensions.objectformat") == Some("sha256") { 32 } else { 20 };
    let data = read_plain(&path, LARGEST_INDEX).with_context(|| format!("cannot read '{}'", path.display()))?;
    let Some(data) = data else { return Ok(Links::default()) };
    let mut links = index::links(&data, hash)?;
    if links.split {
        // The user's own index: git may be asked about it.
        let listed = part.git.run(&["ls-files", "--stage", "-z"])?;
        let entries = listed.split(|&b| b == 0).filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('\t'));
        links.gitlinks =
            entries.filter(|(stat, _)| stat.starts_with("160000 ")).map(|(_, path)| path.to_owned()).collect();
    }
    Ok(links)
}
