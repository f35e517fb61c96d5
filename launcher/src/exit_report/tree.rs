//! The working tree after a session: which changed files tools on this machine run by themselves, and which have a name outside.
//!
//! A file counts as changed by its change time, which no container can set. The tree is the agent's: no link in it is followed,
//! no file in it is opened, and a tree without end costs no more than a moment.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::libc;

use crate::git::walk::{Folder, Meta, Tree};

/// Files that a tool runs, or reads what to run from, when somebody enters the folder, opens it, or does what is done there daily.
const FILES: &[&str] = &[
    ".envrc",
    ".exrc",
    ".gdbinit",
    ".gitlab-ci.yml",
    ".lldbinit",
    ".mcp.json",
    ".mise.toml",
    ".npmrc",
    ".nvim.lua",
    ".pnpmfile.cjs",
    ".pre-commit-config.yaml",
    ".tool-versions",
    ".yarnrc.yml",
    "GNUmakefile",
    "Jenkinsfile",
    "Justfile",
    "Makefile",
    "Taskfile.yml",
    "build.rs",
    "conftest.py",
    "justfile",
    "lefthook.yml",
    "makefile",
    "mise.toml",
    "package.json",
    "setup.py",
];
/// Folders of which the same is true of everything in them.
const FOLDERS: &[&str] = &[
    ".cargo",
    ".circleci",
    ".claude",
    ".cursor",
    ".devcontainer",
    ".fleet",
    ".githooks",
    ".husky",
    ".idea",
    ".pi",
    ".vscode",
    ".yarn",
    ".zed",
];
/// How many names of each kind are shown, and characters of one.
pub(super) const MOST: usize = 200;
pub(super) const LONGEST: usize = 1000;
/// Changed files with more than one name that are counted.
const MOST_LINKS: usize = 100_000;

/// A look at the working tree after a session.
pub(super) struct Look {
    pub(super) host_files: Vec<String>,
    /// Changed files with more than one name: how many they have, how many of these were met, and the first.
    links: HashMap<(u64, u64), (u64, u64, PathBuf)>,
    /// Whether everything was seen.
    pub(super) complete: bool,
    since: (i64, i64),
    deadline: Instant,
}

/// What a folder is, as far as its files are concerned.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    /// Everything in it is for tools to run.
    Run,
    /// Other people's packages: not looked at by name.
    Packages,
}

impl Look {
    /// Looks at what has changed below `root` since then, until `deadline`.
    pub(super) fn at(root: &Path, since: (i64, i64), deadline: Instant) -> Look {
        let mut look = Look { host_files: Vec::new(), links: HashMap::new(), complete: true, since, deadline };
        let Ok(tree) = Tree::open(root) else {
            look.complete = false;
            return look;
        };
        let mut walk = tree.walk();
        let mut folders = vec![(PathBuf::new(), Kind::Plain)];
        while let Some((path, kind)) = folders.pop() {
            if Instant::now() > deadline {
                look.complete = false;
                break;
            }
            match walk.folder(&path) {
                Ok(folder) => look.read(&folder, &path, kind, &mut folders),
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {}
                // The agent has closed it, to us or to everybody; what was closed before the session is the user's.
                Err(_) if walk.look(&path).is_ok_and(|meta| meta.changed < since) => {}
                Err(_) => {
                    look.complete = false;
                    look.add(&format!("{}/", path.display()));
                }
            }
        }
        look.host_files.sort();
        // A folder is said only if nothing in it is.
        let names = look.host_files.clone();
        look.host_files.retain(|name| !name.ends_with('/') || !names.iter().any(|o| o != name && o.starts_with(name)));
        look
    }

    fn read(&mut self, folder: &Folder, path: &Path, kind: Kind, folders: &mut Vec<(PathBuf, Kind)>) {
        let Ok(entries) = folder.entries() else {
            self.complete = false;
            return;
        };
        let is_top = path.as_os_str().is_empty();
        for (count, (name, _)) in entries.enumerate() {
            if count % 256 == 255 && Instant::now() > self.deadline {
                self.complete = false;
                break;
            }
            // Git's own business, which has its own watch.
            if name == ".git" || (is_top && name == ".worktrees") {
                continue;
            }
            let Ok(meta) = folder.look(&name) else { continue };
            let (text, below) = (name.to_string_lossy(), path.join(&name));
            let kind_below = kind_of(path, &text, kind);
            let changed = meta.changed >= self.since;
            if meta.is_folder {
                if changed && kind_below == Kind::Run && kind != Kind::Run {
                    self.add(&format!("{}/", below.display()));
                }
                folders.push((below, kind_below));
            } else if changed {
                if kind_below == Kind::Run || (kind != Kind::Packages && is_listed(&text)) {
                    self.add(&below.display().to_string());
                }
                self.count(&meta, below);
            }
        }
    }

    fn add(&mut self, name: &str) {
        if self.host_files.len() < MOST {
            self.host_files.push(bounded(name));
        } else {
            self.complete = false;
        }
    }

    fn count(&mut self, meta: &Meta, path: PathBuf) {
        if !meta.is_file || meta.names < 2 {
            return;
        }
        if let Some(link) = self.links.get_mut(&meta.inode) {
            link.1 += 1;
        } else if self.links.len() < MOST_LINKS {
            self.links.insert(meta.inode, (meta.names, 1, path));
        } else {
            self.complete = false;
        }
    }

    /// Not for a tree that was not seen whole: the other name may be in it.
    pub(super) fn linked_outside(&self) -> Vec<String> {
        let outside = self.links.values().filter(|(names, met, _)| self.complete && names > met);
        let mut paths: Vec<String> = outside.map(|(_, _, path)| bounded(&path.display().to_string())).collect();
        paths.sort();
        paths.truncate(MOST);
        paths
    }
}

/// A name that was chosen by the agent, as far as a person reads it.
fn bounded(name: &str) -> String {
    name.chars().take(LONGEST).collect()
}

fn kind_of(folder: &Path, name: &str, kind: Kind) -> Kind {
    let is_action =
        folder.file_name().is_some_and(|parent| parent == ".github") && ["workflows", "actions"].contains(&name);
    match kind {
        Kind::Plain if name == "node_modules" => Kind::Packages,
        Kind::Plain if FOLDERS.contains(&name) || is_action => Kind::Run,
        kind => kind,
    }
}

fn is_listed(name: &str) -> bool {
    FILES.contains(&name) || name.ends_with(".code-workspace")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::Duration;

    use super::super::LOOK;
    use super::*;
    use crate::session::unix_now;

    fn look(dir: &Path) -> Look {
        Look::at(dir, (0, 0), Instant::now() + LOOK)
    }

    #[test]
    fn what_tools_run_is_found_wherever_it_is_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            ".envrc",
            "README.md",
            "sub/package.json",
            "sub/.vscode/tasks.json",
            ".github/workflows/ci.yml",
            ".github/CODEOWNERS",
            "node_modules/x/package.json",
            ".git/hooks/x",
            "a.code-workspace",
        ] {
            fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
            fs::write(dir.path().join(file), "").unwrap();
        }
        fs::create_dir(dir.path().join(".idea")).unwrap();
        assert_eq!(
            look(dir.path()).host_files,
            [
                ".envrc",
                ".github/workflows/ci.yml",
                ".idea/",
                "a.code-workspace",
                "sub/.vscode/tasks.json",
                "sub/package.json"
            ]
        );
        // Nothing of it has changed since tomorrow.
        let tomorrow = i64::try_from(unix_now()).unwrap() + 86_400;
        assert!(Look::at(dir.path(), (tomorrow, 0), Instant::now() + LOOK).host_files.is_empty());
    }

    #[test]
    fn no_link_is_followed_and_a_link_by_such_a_name_is_one() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(other.path().join("Makefile"), "").unwrap();
        symlink(other.path(), dir.path().join("link")).unwrap();
        symlink(other.path(), dir.path().join(".vscode")).unwrap();
        symlink("..", dir.path().join("up")).unwrap();
        assert_eq!(look(dir.path()).host_files, [".vscode"]);
    }

    #[test]
    fn a_name_outside_is_told_from_a_second_one_inside() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("sub")).unwrap();
        fs::write(tree.join("inside"), "").unwrap();
        fs::hard_link(tree.join("inside"), tree.join("sub/inside")).unwrap();
        fs::write(dir.path().join("outside"), "").unwrap();
        fs::hard_link(dir.path().join("outside"), tree.join("shared")).unwrap();
        assert_eq!(look(&tree).linked_outside(), ["shared"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_that_is_closed_to_looks_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        fs::write(sub.join(".envrc"), "").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(dir.path(), 0o755);
        // Root reads everything; a thread may look with the eyes of somebody else.
        let look_as_user = || {
            let path = dir.path().to_owned();
            let tree = std::thread::spawn(move || {
                if nix::unistd::geteuid().is_root() {
                    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
                }
                look(&path)
            });
            let tree = tree.join().unwrap();
            (tree.host_files, tree.complete)
        };
        assert_eq!(look_as_user(), (vec!["sub/.envrc".to_owned()], true));
        mode(&sub, 0o311);
        assert_eq!(look_as_user(), (vec!["sub/".to_owned()], false));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_that_is_swapped_for_a_link_meanwhile_leads_nobody_out_of_the_tree() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(dir.path().join("folder")).unwrap();
        fs::write(dir.path().join("folder/package.json"), "").unwrap();
        fs::write(outside.path().join("Makefile"), "").unwrap();
        symlink(outside.path(), dir.path().join("link")).unwrap();
        let swapper = crate::git::walk::swapper::Swapper::start(dir.path(), "folder", "link");
        let mut named = 0;
        for _ in 0..10_000 {
            for file in look(dir.path()).host_files {
                assert!(!file.ends_with("Makefile"), "{file}");
                named += 1;
            }
        }
        assert!(swapper.stop() > 1000 && named > 1000);
    }

    #[test]
    fn what_is_named_and_counted_has_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join(format!("{}/", "x".repeat(250)).repeat(6));
        fs::create_dir_all(&long).unwrap();
        fs::write(long.join("Makefile"), "").unwrap();
        let seen = look(dir.path());
        assert_eq!(seen.host_files.iter().map(|name| name.chars().count()).collect::<Vec<_>>(), [LONGEST]);
        for number in 0..MOST {
            fs::create_dir(dir.path().join(number.to_string())).unwrap();
            fs::write(dir.path().join(number.to_string()).join("Makefile"), "").unwrap();
        }
        let seen = look(dir.path());
        assert_eq!((seen.host_files.len(), seen.complete), (MOST, false));
        let mut seen = look(dir.path());
        seen.complete = true;
        let linked =
            |number| Meta { inode: (1, number), changed: (0, 0), size: 0, names: 2, is_folder: false, is_file: true };
        for number in 0..=MOST_LINKS as u64 {
            assert!(seen.complete, "{number}");
            seen.count(&linked(number), "x".into());
        }
        assert_eq!((seen.links.len(), seen.complete), (MOST_LINKS, false));
    }

    #[test]
    fn a_tree_without_end_is_said_and_left() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Look::at(dir.path(), (0, 0), Instant::now() - Duration::from_secs(1)).complete);
    }
}
