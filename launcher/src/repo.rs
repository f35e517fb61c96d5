//! The repository that the user is in: where it is, whose it is, what is checked out, and what of its git configuration goes along.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cli::Owner;
use crate::config::{Config, utf8};
use crate::credentials::hex_digest;
use crate::error::hinted;
use crate::git::{Git, Repository, checked_out};
use crate::gitconfig::identity;

/// Where the repository is.
#[derive(Debug)]
pub(crate) struct Place {
    /// The working tree's top folder, links followed.
    pub(crate) root: PathBuf,
    /// The folder that the user is in, from `root`; empty at the top.
    pub(crate) subfolder: PathBuf,
    pub(crate) owner: Owner,
}

/// What is checked out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Head {
    Branch(String),
    /// A branch without a commit yet.
    Unborn(String),
    Detached(String),
}

/// What git knows about it.
#[derive(Debug)]
pub(crate) struct GitFacts {
    pub(crate) head: Head,
    /// Whether a remote has an address.
    pub(crate) has_remote: bool,
    /// Git's settings by name, the name's section and key in lower case.
    pub(crate) settings: HashMap<String, String>,
    /// The list of ignored names that the user has configured for all repositories.
    pub(crate) excludes_file: Option<String>,
}

impl Place {
    /// Finds the repository that `cwd` is in.
    pub(crate) fn find(cwd: &Path) -> Result<Place> {
        Place::find_or(cwd, "cd into one first")
    }

    /// The same, with what can be done outside of one.
    pub(crate) fn find_or(cwd: &Path, advice: &str) -> Result<Place> {
        let outside = || hinted("not inside a git repository", advice);
        let cwd = cwd.canonicalize().with_context(|| format!("cannot use the folder '{}'", cwd.display()))?;
        if let Some(bare) = cwd.ancestors().find(|dir| is_git_dir(dir)) {
            let (what, fix) = match bare.file_name() == Some(".git".as_ref()) {
                true => ("inside a repository's own git directory", "cd into its working tree"),
                false => ("a repository without files", "git clone it, and cd into the clone"),
            };
            return Err(hinted(
                format!("not inside a git repository's working tree: '{}' is {what}", bare.display()),
                fix,
            ));
        }
        let root = cwd.ancestors().find(|dir| is_repository(dir)).ok_or_else(outside)?;
        let meta = fs::metadata(root).with_context(|| format!("cannot use '{}'", root.display()))?;
        utf8(&cwd)?;
        Ok(Place {
            subfolder: cwd.strip_prefix(root).map(Path::to_owned).unwrap_or_default(),
            root: root.to_owned(),
            owner: Owner { uid: meta.uid(), gid: meta.gid() },
        })
    }

    /// The folder's name as a word for names of containers: lower-case letters, digits and dashes, at most 30.
    pub(crate) fn safe_name(&self) -> String {
        let name = self.root.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
        let mut safe = String::new();
        for c in name.chars() {
            if c.is_ascii_alphanumeric() {
                safe.push(c);
            } else if !safe.is_empty() && !safe.ends_with('-') {
                safe.push('-');
            }
        }
        safe.truncate(30);
        let safe = safe.trim_end_matches('-');
        if safe.is_empty() { "repository".to_owned() } else { safe.to_owned() }
    }

    /// Names the repository among all on this machine.
    pub(crate) fn id(&self) -> String {
        use std::os::unix::ffi::OsStrExt;
        format!("{}-{}", self.safe_name(), &hex_digest(self.root.as_os_str().as_bytes())[..12])
    }

    /// Asks git what a session needs to know.
    pub(crate) fn git_facts(&self, config: &Config) -> Result<GitFacts> {
        let git = Git::new(&Repository::at(&self.root)?.git_dir, &config.git_env, None);
        let settings: HashMap<String, String> = git.settings_of_user()?.into_iter().collect();
        let head = checked_out(&git)?;
        let branch = head.branch.map(|name| name.strip_prefix("refs/heads/").unwrap_or(&name).to_owned());
        let head = match (branch, head.oid) {
            (Some(branch), Some(_)) => Head::Branch(branch),
            (Some(branch), None) => Head::Unborn(branch),
            (None, commit) => Head::Detached(commit.unwrap_or_default()),
        };
        let has_remote = settings.keys().any(|name| name.starts_with("remote.") && name.ends_with(".url"));
        Ok(GitFacts { head, has_remote, settings, excludes_file: git.global_setting("core.excludesFile")? })
    }
}

impl GitFacts {
    /// What will not work here, and what to do about it.
    pub(crate) fn lacks(&self, config: &Config) -> Vec<(&'static str, &'static str)> {
        let mut lacks = Vec::new();
        match &self.head {
            Head::Branch(_) => {}
            Head::Unborn(_) => {
                lacks.push(("the repository has no commit yet: subagents cannot start", "make a first commit"))
            }
            Head::Detached(_) => lacks.push((
                "HEAD is detached: subagents cannot start, for a pull request needs a branch to go to",
                "git switch BRANCH",
            )),
        }
        if !self.has_remote {
            lacks.push((
                "the repository has no remote: subagents can neither push nor open pull requests",
                "git remote add origin URL",
            ));
        }
        if identity(&self.settings, &config.git_identity).is_none() {
            lacks.push((
                "git knows no name and email of yours: commits will fail",
                "git config --global user.name \"…\" and git config --global user.email \"…\"",
            ));
        }
        lacks
    }
}

/// A git directory itself.
fn is_git_dir(dir: &Path) -> bool {
    dir.join("HEAD").symlink_metadata().is_ok() && dir.join("objects").is_dir() && dir.join("refs").is_dir()
}

/// As git decides it: `.git` is a file that points elsewhere, or a folder with what a repository has.
fn is_repository(dir: &Path) -> bool {
    let git = dir.join(".git");
    match git.metadata() {
        Ok(meta) if meta.is_dir() => git.join("HEAD").symlink_metadata().is_ok() && git.join("objects").is_dir(),
        Ok(meta) => meta.is_file(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(root: &str) -> Place {
        Place { root: root.into(), subfolder: PathBuf::new(), owner: Owner { uid: 1, gid: 1 } }
    }

    #[test]
    fn any_folder_name_makes_a_name_that_compose_takes() {
        for (root, name) in [
            ("/x/My Project", "my-project"),
            ("/x/..$'a:b\n--", "a-b"),
            ("/x/größe", "gr-e"),
            ("/x/日本", "repository"),
            ("/", "repository"),
            ("/x/a_b.c", "a-b-c"),
            ("/x/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
        ] {
            assert_eq!(named(root).safe_name(), name);
        }
    }

    #[test]
    fn repositories_of_one_name_have_different_ids() {
        assert_ne!(named("/a/app").id(), named("/b/app").id());
        assert_eq!(named("/a/app").id().len(), "app-".len() + 12);
    }
}
