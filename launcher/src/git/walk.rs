//! A way through a working tree that an agent writes to meanwhile. Every step starts at a folder that is held open and follows no link,
//! so whatever is put in a folder's place between a look at it and the next one, no step leads out of the tree.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::dir::{Dir, Type};
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

/// Folders in each other that a walk goes down: each is a descriptor held open.
pub(crate) const DEEPEST: usize = 128;

const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// To go through a folder, which takes no right to read it where the system has such a thing.
#[cfg(target_os = "linux")]
const STEP: OFlag = FOLDER.union(OFlag::O_PATH);
#[cfg(not(target_os = "linux"))]
const STEP: OFlag = FOLDER;

/// The top of a tree, held open.
pub(crate) struct Tree(OwnedFd);

impl Tree {
    /// `root` is the user's, links in it are followed.
    pub(crate) fn open(root: &Path) -> io::Result<Tree> {
        let flags = STEP.difference(OFlag::O_NOFOLLOW);
        Ok(Tree(open(root, flags, Mode::empty())?))
    }

    /// A walk through the tree as it is now. Quick where one path follows another in the same folder.
    pub(crate) fn walk(&self) -> Walk<'_> {
        Walk { top: self.0.as_fd(), way: Vec::new() }
    }
}

/// The folders from the top to where the last step led, each with its name.
pub(crate) struct Walk<'a> {
    top: BorrowedFd<'a>,
    way: Vec<(OsString, OwnedFd)>,
}

impl Walk<'_> {
    /// What is at `path`, from the top; a link is itself.
    pub(crate) fn look(&mut self, path: &Path) -> io::Result<Meta> {
        let Some(name) = path.file_name() else { return Ok(Meta::of(&fstat(self.top)?)) };
        let folder = self.go_to(path.parent().unwrap_or(Path::new("")))?;
        Ok(Meta::of(&fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?))
    }

    /// The folder at `path`, from the top, to be read.
    pub(crate) fn folder(&mut self, path: &Path) -> io::Result<Folder> {
        let parent = self.go_to(path.parent().unwrap_or(Path::new("")))?;
        let name = path.file_name().unwrap_or(OsStr::new("."));
        Ok(Folder(openat(parent, name, FOLDER.union(OFlag::O_RDONLY), Mode::empty())?))
    }

    fn go_to(&mut self, path: &Path) -> io::Result<BorrowedFd<'_>> {
        let mut names = path.components();
        let mut kept = 0;
        while let (Some((name, _)), Some(Component::Normal(next))) = (self.way.get(kept), names.clone().next())
            && name == next
        {
            names.next();
            kept += 1;
        }
        self.way.truncate(kept);
        for name in names {
            let Component::Normal(name) = name else { return Err(io::ErrorKind::InvalidInput.into()) };
            if self.way.len() >= DEEPEST {
                return Err(io::Error::other("too many folders in each other"));
            }
            let step = openat(self.here(), name, STEP, Mode::empty())?;
            self.way.push((name.to_owned(), step));
        }
        Ok(self.here())
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.way.last().map_or(self.top, |(_, fd)| fd.as_fd())
    }
}

/// A folder that is open to be read.
pub(crate) struct Folder(OwnedFd);

impl Folder {
    pub(crate) fn meta(&self) -> io::Result<Meta> {
        Ok(Meta::of(&fstat(&self.0)?))
    }

    /// What `name` in it is; a link is itself.
    pub(crate) fn look(&self, name: &OsStr) -> io::Result<Meta> {
        Ok(Meta::of(&fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW)?))
    }

    /// The names in it, each with whether it is a folder. One that cannot be read ends them.
    pub(crate) fn entries(&self) -> io::Result<impl Iterator<Item = (OsString, bool)> + '_> {
        let entries = Dir::from_fd(self.0.try_clone()?)?.into_iter();
        Ok(entries.map_while(Result::ok).filter_map(|entry| {
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                return None;
            }
            let is_folder = match entry.file_type() {
                Some(kind) => kind == Type::Directory,
                None => self.look(name).is_ok_and(|meta| meta.is_folder),
            };
            Some((name.to_owned(), is_folder))
        }))
    }
}

/// What is known of a file or folder without opening it.
#[derive(Clone, Copy)]
pub(crate) struct Meta {
    /// The device, and the number on it.
    pub(crate) inode: (u64, u64),
    /// The time of change, which nobody can set: seconds and their parts.
    pub(crate) changed: (i64, i64),
    pub(crate) size: u64,
    /// How many names it has.
    pub(crate) names: u64,
    pub(crate) is_folder: bool,
    pub(crate) is_file: bool,
}

impl Meta {
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, reason = "the types differ between systems")]
    fn of(stat: &FileStat) -> Meta {
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        Meta {
            inode: (stat.st_dev as u64, stat.st_ino as u64),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
            size: stat.st_size as u64,
            names: stat.st_nlink as u64,
            is_folder: kind == SFlag::S_IFDIR,
            is_file: kind == SFlag::S_IFREG,
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
pub(crate) mod swapper {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::{self, JoinHandle};

    use nix::fcntl::{RenameFlags, renameat2};

    use super::*;

    /// Somebody who has a folder and a link take each other's place all the time.
    pub(crate) struct Swapper {
        stop: Arc<AtomicBool>,
        thread: JoinHandle<u64>,
    }

    impl Swapper {
        pub(crate) fn start(dir: &Path, one: &'static str, other: &'static str) -> Swapper {
            let (dir, stop) = (Tree::open(dir).unwrap(), Arc::<AtomicBool>::default());
            let stopped = Arc::clone(&stop);
            let thread = thread::spawn(move || {
                let mut swaps = 0;
                while !stopped.load(Ordering::Relaxed) {
                    renameat2(&dir.0, one, &dir.0, other, RenameFlags::RENAME_EXCHANGE).unwrap();
                    swaps += 1;
                }
                swaps
            });
            Swapper { stop, thread }
        }

        /// How often they did.
        pub(crate) fn stop(self) -> u64 {
            self.stop.store(true, Ordering::Relaxed);
            self.thread.join().unwrap()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_step_stays_in_the_tree() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file"), "12345").unwrap();
        fs::write(other.path().join("file"), "").unwrap();
        symlink(other.path(), dir.path().join("link")).unwrap();
        symlink(dir.path().join("a"), dir.path().join("inner")).unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        let mut walk = tree.walk();
        assert_eq!(walk.look(Path::new("a/b/file")).unwrap().size, 5);
        assert!(walk.look(Path::new("")).unwrap().is_folder);
        assert!(walk.look(Path::new("a")).unwrap().is_folder);
        let link = walk.look(Path::new("link")).unwrap();
        assert!(!link.is_folder && !link.is_file);
        for out in ["link/file", "inner/b", "../x", "/etc/passwd", "a/../link"] {
            assert!(walk.look(Path::new(out)).is_err(), "{out}");
            assert!(walk.folder(Path::new(out)).is_err(), "{out}");
        }
        assert!(walk.folder(Path::new("link")).is_err());
        let names: Vec<_> = walk.folder(Path::new("a")).unwrap().entries().unwrap().collect();
        assert_eq!(names, [("b".into(), true)]);
    }

    #[test]
    fn a_tree_without_a_bottom_is_walked_so_far_and_no_farther() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d/".repeat(DEEPEST));
        fs::create_dir_all(deep.join("d/d")).unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        let path = |depth: usize| std::path::PathBuf::from("d/".repeat(depth));
        assert!(tree.walk().folder(&path(DEEPEST + 1)).is_ok());
        assert!(tree.walk().folder(&path(DEEPEST + 2)).is_err());
    }
}
