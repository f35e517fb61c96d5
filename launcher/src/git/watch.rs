//! What mounts cannot close on a working tree that both sides share: repositories that the agent makes in it, and programs in it that
//! the host's git is told to run. They are looked for all the time, without git, by the time of change of each folder: that can
//! be read on every system, cannot be forged by who owns the folder, and costs one `lstat` per folder and look.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::libc;

use super::finding::Finding;
use super::names::{Names, is_dot_git};
use super::walk::{DEEPEST, Folder, Meta, Tree, Walk};

/// A change within this long before a look may be followed by another one with the same time.
const GRAIN: Duration = Duration::from_secs(2);
const MOST_FOLDERS: usize = 500_000;
const MOST_NAMES: usize = 1_000_000;

/// What is known of a working tree, and what was found in it. Paths are from its top, where nothing else is said.
pub(crate) struct Watch {
    known: Known,
    tree: Tree,
    most: Most,
}

/// How much is looked at.
#[derive(Clone, Copy)]
struct Most {
    folders: usize,
    /// In one folder.
    names: usize,
}

#[derive(Default)]
struct Known {
    root: PathBuf,
    folders: BTreeMap<PathBuf, Seen>,
    /// Files of repositories that matter, as they were at the start; `None` if not there.
    files: BTreeMap<PathBuf, Option<Stamp>>,
    /// The same of programs, by the whole path: what the host's git would run, whatever links lead there.
    programs: BTreeMap<PathBuf, Option<Stamp>>,
    repositories: BTreeSet<PathBuf>,
    /// Folders that could not be read at the start, of another user for example.
    closed: BTreeSet<PathBuf>,
    found: BTreeSet<Finding>,
}

struct Seen {
    stamp: Stamp,
    /// Read so soon after its last change that another one may have the same time.
    again: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    /// Not for a git directory, in which git itself is at work.
    changed: Option<(i64, i64, u64)>,
}

impl Watch {
    /// Holds the tree. `root` is its top, links followed.
    pub(crate) fn open(root: &Path) -> io::Result<Watch> {
        let most = Most { folders: MOST_FOLDERS, names: MOST_NAMES };
        Ok(Watch { tree: Tree::open(root)?, known: Known { root: root.to_owned(), ..Known::default() }, most })
    }

    /// Takes all that is there now for the user's. `programs` are files and folders in the tree that the host's git uses.
    pub(crate) fn begin(&mut self, programs: &[PathBuf]) {
        for program in programs {
            self.known.programs.insert(program.clone(), look_at(program));
            for entry in fs::read_dir(program).into_iter().flatten().flatten() {
                self.known.programs.insert(entry.path(), look_at(&entry.path()));
            }
        }
        Look { known: &mut self.known, walk: self.tree.walk(), most: self.most, first: true }
            .read(vec![PathBuf::new()]);
    }

    /// Looks again. Returns what was not found before.
    pub(crate) fn look(&mut self) -> Vec<Finding> {
        let before = self.known.found.clone();
        let mut look = Look { known: &mut self.known, walk: self.tree.walk(), most: self.most, first: false };
        let changed = look.changed_folders();
        look.read(changed);
        look.changed_files();
        self.known.found.difference(&before).cloned().collect()
    }

    /// Everything that was found since it began.
    pub(crate) fn found(self) -> impl Iterator<Item = Finding> {
        self.known.found.into_iter()
    }
}

/// One look at the tree.
struct Look<'a> {
    known: &'a mut Known,
    walk: Walk<'a>,
    most: Most,
    first: bool,
}

impl Look<'_> {
    /// The folders that have changed since they were read. Those that are gone are forgotten.
    fn changed_folders(&mut self) -> Vec<PathBuf> {
        let (walk, mut changed) = (&mut self.walk, Vec::new());
        self.known.folders.retain(|path, seen| match walk.look(path) {
            Ok(meta) if meta.is_folder => {
                if seen.again || seen.stamp != stamp(&meta, true) {
                    changed.push(path.clone());
                }
                true
            }
            _ => false,
        });
        changed
    }

    fn changed_files(&mut self) {
        for (path, before) in &self.known.files {
            let with_time = before.is_none_or(|stamp| stamp.changed.is_some());
            if self.walk.look(path).ok().map(|meta| stamp(&meta, with_time)) != *before {
                self.known.found.insert(Finding::Changed(path.clone()));
            }
        }
        for (path, _) in self.known.programs.iter().filter(|(path, before)| look_at(path) != **before) {
            let shown = path.strip_prefix(&self.known.root).unwrap_or(path);
            self.known.found.insert(Finding::Program(shown.to_owned()));
        }
    }

    /// Reads folders, and those below that are not known yet.
    fn read(&mut self, mut to_read: Vec<PathBuf>) {
        while let Some(path) = to_read.pop() {
            if self.known.folders.len() >= self.most.folders {
                self.known.found.insert(Finding::TooMany);
                return;
            }
            let opened = self.walk.folder(&path).and_then(|folder| Ok((folder.meta()?, folder)));
            let (meta, names) = match opened {
                Ok((meta, folder)) => (Ok(meta), self.read_one(&path, &folder, &mut to_read)),
                // It may be seen, and may not be read.
                Err(error) => {
                    self.found_closed(&path, &error);
                    (self.walk.look(&path), Names::default())
                }
            };
            if names.is_repository() {
                self.found_repository(&path);
            }
            if let Ok(meta) = meta
                && meta.is_folder
            {
                self.known.folders.insert(path, Seen { stamp: stamp(&meta, true), again: is_recent(&meta) });
            }
        }
    }

    fn read_one(&mut self, path: &Path, folder: &Folder, to_read: &mut Vec<PathBuf>) -> Names {
        let mut names = Names::default();
        let entries = match folder.entries() {
            Ok(entries) => entries,
            Err(error) => {
                self.found_closed(path, &error);
                return names;
            }
        };
        let (is_top, is_deepest) = (path.as_os_str().is_empty(), path.components().count() >= DEEPEST);
        for (count, (name, is_folder)) in entries.enumerate() {
            if count >= self.most.names {
                self.known.found.insert(Finding::TooMany);
                break;
            }
            match name.to_str() {
                Some(text) if is_dot_git(text) => {
                    if !is_top {
                        self.found_dot_git(&path.join(&name), is_folder);
                    } else if text != ".git" && !is_same(folder, &name) {
                        self.known.found.insert(Finding::Repository(PathBuf::new()));
                    }
                }
                // Covered by a mount: what the host has there the agent cannot reach.
                Some(".worktrees") if is_top => {}
                text => {
                    names.add(text.unwrap_or_default(), is_folder);
                    let below = path.join(&name);
                    if is_folder && is_deepest {
                        self.known.found.insert(Finding::TooMany);
                    } else if is_folder && !self.known.folders.contains_key(&below) {
                        to_read.push(below);
                    }
                }
            }
        }
        names
    }

    fn found_closed(&mut self, path: &Path, error: &io::Error) {
        // What is not there any more, or no folder any more, is looked for in the folder above.
        if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) {
        } else if self.first {
            self.known.closed.insert(path.to_owned());
        } else if !self.known.closed.contains(path) {
            self.known.found.insert(Finding::Unreadable(path.to_owned()));
        }
    }

    fn found_dot_git(&mut self, dot_git: &Path, is_folder: bool) {
        if !self.first {
            if !self.known.repositories.contains(dot_git) {
                let folder = dot_git.parent().unwrap_or(dot_git);
                self.known.found.insert(Finding::Repository(folder.to_owned()));
            }
            return;
        }
        self.known.repositories.insert(dot_git.to_owned());
        self.remember(dot_git, !is_folder);
        if is_folder {
            self.remember_parts(dot_git);
        }
    }

    fn found_repository(&mut self, path: &Path) {
        if self.first {
            self.known.repositories.insert(path.to_owned());
            self.remember_parts(path);
        } else if !self.known.repositories.contains(path) {
            self.known.found.insert(Finding::Bare(path.to_owned()));
        }
    }

    /// What decides in a git directory which programs git runs.
    fn remember_parts(&mut self, git_dir: &Path) {
        for part in ["config", "config.worktree", "commondir", "hooks", "info/attributes"] {
            self.remember(&git_dir.join(part), true);
        }
        let hooks = git_dir.join("hooks");
        let Ok(folder) = self.walk.folder(&hooks) else { return };
        for (name, _) in folder.entries().into_iter().flatten() {
            self.remember(&hooks.join(name), true);
        }
    }

    fn remember(&mut self, path: &Path, with_time: bool) {
        let stamp = self.walk.look(path).ok().map(|meta| stamp(&meta, with_time));
        self.known.files.insert(path.to_owned(), stamp);
    }
}

/// What the host finds by this path.
fn look_at(path: &Path) -> Option<Stamp> {
    let meta = path.symlink_metadata().ok()?;
    let changed = Some((meta.ctime(), meta.ctime_nsec(), meta.size()));
    Some(Stamp { inode: (meta.dev(), meta.ino()), changed })
}

fn stamp(meta: &Meta, with_time: bool) -> Stamp {
    let (seconds, parts) = meta.changed;
    Stamp { inode: meta.inode, changed: with_time.then_some((seconds, parts, meta.size)) }
}

fn is_recent(meta: &Meta) -> bool {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let changed = Duration::from_secs(u64::try_from(meta.changed.0).unwrap_or_default());
    changed + GRAIN + Duration::from_secs(1) > now
}

/// Whether `name` in the top folder is another spelling of what its `.git` is.
fn is_same(top: &Folder, name: &OsString) -> bool {
    top.look(name).is_ok_and(|meta| top.look(".git".as_ref()).is_ok_and(|git| git.inode == meta.inode))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_that_is_closed_to_looks_is_found_unless_it_was_so_before() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mode =
            |name: &str, mode| fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        mode("", 0o755);
        for name in ["open", "closed", "passed"] {
            fs::create_dir_all(dir.path().join(name).join("below")).unwrap();
        }
        mode("closed", 0o711);
        let (root, (ask, asked), (tell, told)) = (dir.path().to_owned(), channel(), channel());
        // Root reads everything; a thread may look with the eyes of somebody else.
        let looking = std::thread::spawn(move || {
            if nix::unistd::geteuid().is_root() {
                nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
            }
            let mut watch = Watch::open(&root).unwrap();
            watch.begin(&[]);
            while tell.send(watch.look()).is_ok() && asked.recv().is_ok() {}
        });
        assert_eq!(told.recv().unwrap(), []);
        mode("open", 0o711);
        mode("closed", 0o311);
        // Its names can be read, and nothing of what is below.
        mode("passed", 0o744);
        ask.send(()).unwrap();
        let found = told.recv().unwrap();
        assert_eq!(found, [Finding::Unreadable("open".into()), Finding::Unreadable("passed/below".into())]);
        drop((ask, told));
        looking.join().unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_that_is_swapped_for_a_link_meanwhile_leads_nobody_out_of_the_tree() {
        use super::super::walk::swapper::Swapper;
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(dir.path().join("folder/sub")).unwrap();
        fs::create_dir(outside.path().join(".git")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        let mut watch = Watch::open(dir.path()).unwrap();
        watch.begin(&[]);
        let swapper = Swapper::start(dir.path(), "folder", "link");
        for _ in 0..10_000 {
            assert_eq!(watch.look(), []);
        }
        assert!(swapper.stop() > 1000);
        // The same repository inside of the tree is found.
        fs::create_dir(dir.path().join("new")).unwrap();
        fs::rename(outside.path().join(".git"), dir.path().join("new/.git")).unwrap();
        assert_eq!(watch.look(), [Finding::Repository("new".into())]);
    }

    #[test]
    fn more_folders_names_or_depth_than_are_looked_at_are_said() {
        let dir = tempfile::tempdir().unwrap();
        let look = |most: Most| {
            let mut watch = Watch::open(dir.path()).unwrap();
            watch.most = most;
            watch.begin(&[]);
            watch.found().collect::<Vec<_>>()
        };
        for name in ["a", "b", "c/d"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        // The top is one of five.
        assert_eq!(look(Most { folders: 5, names: 3 }), []);
        assert_eq!(look(Most { folders: 4, names: 3 }), [Finding::TooMany]);
        assert_eq!(look(Most { folders: 5, names: 2 }), [Finding::TooMany]);
        let all = Most { folders: MOST_FOLDERS, names: MOST_NAMES };
        fs::create_dir_all(dir.path().join("d/".repeat(DEEPEST))).unwrap();
        assert_eq!(look(all), []);
        fs::create_dir_all(dir.path().join("d/".repeat(DEEPEST + 1))).unwrap();
        assert_eq!(look(all), [Finding::TooMany]);
    }
}
