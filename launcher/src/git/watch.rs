//! What mounts cannot close on a working tree that both sides share: repositories that the agent makes in it, and programs in it that
//! the host's git is told to run. They are looked for all the time, without git, by the time of change of each folder: that can
//! be read on every system, cannot be forged by who owns the folder, and costs one `lstat` per folder and look.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};

use super::report::printable;

/// Something in the working tree that the host's git would obey. The paths are from its top.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Finding {
    /// A repository in this folder that was not there when the session began.
    Repository(PathBuf),
    /// This folder is a repository by itself, without a working tree.
    Bare(PathBuf),
    /// A file of a repository that was there, by which it can be made to run something.
    Changed(PathBuf),
    /// A program or configuration in the tree that the host's git uses.
    Program(PathBuf),
    /// A folder that was open to a look, or was not there, and is closed now: git run in it obeys what nobody sees.
    Unreadable(PathBuf),
    /// There are more folders, or more names in one, than are looked at.
    TooMany,
}

/// A change within this long before a look may be followed by another one with the same time.
const GRAIN: Duration = Duration::from_secs(2);
/// Between two looks: this, or eight times as long as the last one took.
const PAUSE: Duration = Duration::from_millis(400);
const MOST_FOLDERS: usize = 500_000;
const MOST_NAMES: usize = 1_000_000;

/// What is known of a working tree, and what was found in it.
pub(crate) struct Watch {
    root: PathBuf,
    folders: HashMap<PathBuf, Folder>,
    /// Files that matter, as they were at the start; `None` if not there.
    files: HashMap<PathBuf, (Option<Stamp>, bool)>,
    repositories: BTreeSet<PathBuf>,
    /// Folders that could not be read at the start, of another user for example.
    closed: BTreeSet<PathBuf>,
    pub(crate) found: BTreeSet<Finding>,
}

struct Folder {
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
    /// Takes all that is there now for the user's. `programs` are files and folders in the tree that the host's git uses.
    pub(crate) fn begin(root: &Path, programs: &[PathBuf]) -> Watch {
        let mut watch = Watch {
            root: root.to_owned(),
            folders: HashMap::new(),
            files: HashMap::new(),
            repositories: BTreeSet::new(),
            closed: BTreeSet::new(),
            found: BTreeSet::new(),
        };
        for program in programs {
            watch.remember(program, true);
            for entry in fs::read_dir(program).into_iter().flatten().flatten() {
                watch.remember(&entry.path(), true);
            }
        }
        watch.read(vec![root.to_owned()], true);
        watch
    }

    /// Looks again. Returns what was not found before.
    pub(crate) fn look(&mut self) -> Vec<Finding> {
        let before = self.found.clone();
        let mut to_read = Vec::new();
        self.folders.retain(|path, folder| match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() => {
                if folder.again || folder.stamp != stamp(&meta, true) {
                    to_read.push(path.clone());
                }
                true
            }
            _ => false,
        });
        self.read(to_read, false);
        let changed: Vec<(PathBuf, bool)> = self
            .files
            .iter()
            .filter(|(path, (before, _))| look_at(path, before.is_none_or(|stamp| stamp.changed.is_some())) != *before)
            .map(|(path, (_, is_program))| (path.clone(), *is_program))
            .collect();
        for (path, is_program) in changed {
            let shown = self.relative(&path);
            self.found.insert(if is_program { Finding::Program(shown) } else { Finding::Changed(shown) });
        }
        self.found.difference(&before).cloned().collect()
    }

    /// Reads folders, and those below that are not known yet.
    fn read(&mut self, mut to_read: Vec<PathBuf>, first: bool) {
        while let Some(path) = to_read.pop() {
            if self.folders.len() >= MOST_FOLDERS {
                self.found.insert(Finding::TooMany);
                return;
            }
            let meta = match path.symlink_metadata() {
                Ok(meta) => meta,
                Err(error) => {
                    self.found_closed(&path, first, &error);
                    continue;
                }
            };
            let again = is_recent(&meta);
            let names = self.read_one(&path, first, &mut to_read);
            if names.is_repository() {
                self.found_repository(&path, first);
            }
            self.folders.insert(path, Folder { stamp: stamp(&meta, true), again });
        }
    }

    fn read_one(&mut self, path: &Path, first: bool, to_read: &mut Vec<PathBuf>) -> Names {
        let mut names = Names::default();
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => {
                self.found_closed(path, first, &error);
                return names;
            }
        };
        for (count, entry) in entries.flatten().enumerate() {
            if count >= MOST_NAMES {
                self.found.insert(Finding::TooMany);
                break;
            }
            let name = entry.file_name();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let below = path.join(&name);
            match name.to_str() {
                Some(name) if is_dot_git(name) => {
                    if path != self.root {
                        self.found_dot_git(&below, is_folder, first);
                    } else if name != ".git" && !is_same(&below, &self.root.join(".git")) {
                        self.found.insert(Finding::Repository(PathBuf::new()));
                    }
                }
                // Covered by a mount: what the host has there the agent cannot reach.
                Some(".worktrees") if path == self.root => {}
                name => {
                    names.add(name.unwrap_or_default(), is_folder);
                    if is_folder && !self.folders.contains_key(&below) {
                        to_read.push(below);
                    }
                }
            }
        }
        names
    }

    fn found_closed(&mut self, path: &Path, first: bool, error: &io::Error) {
        // What is not there any more, or no folder any more, is looked for in the folder above.
        if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
        } else if first {
            self.closed.insert(path.to_owned());
        } else if !self.closed.contains(path) {
            self.found.insert(Finding::Unreadable(self.relative(path)));
        }
    }

    fn found_dot_git(&mut self, dot_git: &Path, is_folder: bool, first: bool) {
        if !first {
            if !self.repositories.contains(dot_git) {
                let folder = dot_git.parent().unwrap_or(dot_git);
                self.found.insert(Finding::Repository(self.relative(folder)));
            }
            return;
        }
        self.repositories.insert(dot_git.to_owned());
        self.files.insert(dot_git.to_owned(), (look_at(dot_git, !is_folder), false));
        if is_folder {
            self.remember_parts(dot_git);
        }
    }

    fn found_repository(&mut self, path: &Path, first: bool) {
        if first {
            self.repositories.insert(path.to_owned());
            self.remember_parts(path);
        } else if !self.repositories.contains(path) {
            self.found.insert(Finding::Bare(self.relative(path)));
        }
    }

    /// What decides in a git directory which programs git runs.
    fn remember_parts(&mut self, git_dir: &Path) {
        for part in ["config", "config.worktree", "commondir", "hooks", "info/attributes"] {
            self.remember(&git_dir.join(part), false);
        }
        for entry in fs::read_dir(git_dir.join("hooks")).into_iter().flatten().flatten() {
            self.remember(&entry.path(), false);
        }
    }

    fn remember(&mut self, path: &Path, is_program: bool) {
        self.files.insert(path.to_owned(), (look_at(path, true), is_program));
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap_or(path).to_owned()
    }
}

/// The names in a folder that make it a repository, as git decides it.
#[derive(Default)]
struct Names {
    head: bool,
    objects: bool,
    refs: bool,
    commondir: bool,
}

impl Names {
    fn add(&mut self, name: &str, is_folder: bool) {
        self.head |= name.eq_ignore_ascii_case("HEAD");
        self.objects |= name.eq_ignore_ascii_case("objects");
        self.refs |= name.eq_ignore_ascii_case("refs");
        self.commondir |= name.eq_ignore_ascii_case("commondir") && !is_folder;
    }

    fn is_repository(&self) -> bool {
        self.head && (self.objects && self.refs || self.commondir)
    }
}

/// Whether some file system takes this name for `.git`.
fn is_dot_git(name: &str) -> bool {
    if !matches!(name.as_bytes().first(), Some(b'.' | b'g' | b'G' | 0x80..)) {
        return false;
    }
    let ignored =
        |c: char| matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}');
    let plain: String = name.chars().filter(|c| !ignored(*c)).collect();
    let plain = plain.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    plain.eq_ignore_ascii_case(".git") || plain.eq_ignore_ascii_case("git~1")
}

fn look_at(path: &Path, with_time: bool) -> Option<Stamp> {
    path.symlink_metadata().ok().map(|meta| stamp(&meta, with_time))
}

fn stamp(meta: &Metadata, with_time: bool) -> Stamp {
    let changed = with_time.then(|| (meta.ctime(), meta.ctime_nsec(), meta.size()));
    Stamp { inode: (meta.dev(), meta.ino()), changed }
}

fn is_recent(meta: &Metadata) -> bool {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let changed = Duration::from_secs(u64::try_from(meta.ctime()).unwrap_or_default());
    changed + GRAIN + Duration::from_secs(1) > now
}

fn is_same(a: &Path, b: &Path) -> bool {
    look_at(a, false).is_some_and(|stamp| look_at(b, false) == Some(stamp))
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |path: &Path| match path.as_os_str().is_empty() {
            true => ".".to_owned(),
            false => printable(&path.to_string_lossy()),
        };
        match self {
            Finding::Repository(path) => {
                write!(f, "a repository has appeared in '{}': git run on the host in there obeys it", shown(path))
            }
            Finding::Bare(path) => {
                write!(f, "'{}' has become a git directory: git run on the host in there obeys it", shown(path))
            }
            Finding::Changed(path) => write!(f, "'{}' has changed: the host's git obeys it", shown(path)),
            Finding::Program(path) => {
                write!(f, "'{}' has changed: the host's git is configured to use it", shown(path))
            }
            Finding::Unreadable(path) => {
                write!(f, "'{}' cannot be looked into any more: git run on the host in there may obey it", shown(path))
            }
            Finding::TooMany => {
                write!(f, "too many folders or names in one: not all of them are watched for repositories")
            }
        }
    }
}

/// A watch in a thread of its own. It ends when this is dropped.
pub(crate) struct Watcher {
    ready: Receiver<()>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Watch>>,
}

impl Watcher {
    /// Starts to look. What is there before `wait_until_ready` returns is the user's; what is found later goes to `tell` at once.
    pub(crate) fn start(
        root: PathBuf,
        programs: Vec<PathBuf>,
        tell: impl Fn(&Finding) + Send + 'static,
    ) -> Result<Watcher> {
        let (is_ready, ready) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            let mut watch = Watch::begin(&root, &programs);
            let _ = is_ready.send(());
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                watch.look().iter().for_each(&tell);
                std::thread::park_timeout(PAUSE.max(begun.elapsed() * 8));
            }
            watch
        };
        let thread =
            std::thread::Builder::new().name("watch".to_owned()).spawn(run).context("cannot start a thread")?;
        Ok(Watcher { ready, stop, thread: Some(thread) })
    }

    /// Returns when the first look is over. The container must not run before.
    pub(crate) fn wait_until_ready(&self) {
        let _ = self.ready.recv();
    }

    /// Ends it with a last look, and returns everything that was found since it began.
    pub(crate) fn finish(mut self) -> Vec<Finding> {
        let Some(mut watch) = self.stop() else { return Vec::new() };
        watch.look();
        watch.found.into_iter().collect()
    }

    fn stop(&mut self) -> Option<Watch> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take()?;
        thread.thread().unpark();
        thread.join().ok()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

#[cfg(test)]
mod tests {
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
            let mut watch = Watch::begin(&root, &[]);
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

    #[test]
    fn every_spelling_of_git_is_seen_and_nothing_else() {
        for name in [
            ".git",
            ".GIT",
            ".Git",
            "git~1",
            "GIT~1",
            ".git ",
            ".git...",
            ".g\u{200c}it",
            "\u{feff}.git",
            ".git::$INDEX_ALLOCATION",
        ] {
            assert!(is_dot_git(name), "{name:?}");
        }
        for name in [".gitignore", ".github", "git", ".gi", "git~2", "x.git", ".gitx", ""] {
            assert!(!is_dot_git(name), "{name:?}");
        }
    }
}
