//! A folder that the agent has written to, held by its descriptor. Every step down is taken without following a link, and every file
//! is written beside its name and renamed onto it: whatever was planted there is replaced, never written through.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

pub(crate) struct Folder {
    fd: OwnedFd,
    owner: Option<(u32, u32)>,
}

const OPEN: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Folder {
    /// Opens a folder whose parents only the user writes to; makes it, 0700, if it is not there. `owner` is who gets what is made.
    pub(crate) fn open(path: &Path, owner: Option<(u32, u32)>) -> io::Result<Folder> {
        match nix::unistd::mkdir(path, Mode::S_IRWXU) {
            Ok(()) => Folder { fd: open(path, OPEN, Mode::empty())?, owner }.given(),
            Err(Errno::EEXIST) => Ok(Folder { fd: open(path, OPEN, Mode::empty())?, owner }),
            Err(e) => Err(e.into()),
        }
    }

    /// The folder `name` in it, made if missing. Something else of that name is an error.
    pub(crate) fn sub(&self, name: &str) -> io::Result<Folder> {
        match mkdirat(&self.fd, name, Mode::S_IRWXU) {
            Ok(()) => Folder { fd: openat(&self.fd, name, OPEN, Mode::empty())?, owner: self.owner }.given(),
            Err(Errno::EEXIST) => Ok(Folder { fd: openat(&self.fd, name, OPEN, Mode::empty())?, owner: self.owner }),
            Err(e) => Err(e.into()),
        }
    }

    /// As `sub`, down a path of several names.
    pub(crate) fn descend(&self, path: &str) -> io::Result<Folder> {
        let mut names = path.split('/').filter(|name| !name.is_empty() && *name != "." && *name != "..");
        let first = names.next().ok_or(io::ErrorKind::InvalidInput)?;
        names.try_fold(self.sub(first)?, |folder, name| folder.sub(name))
    }

    /// Whether there is anything of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// Whether `name` is a folder itself, not a link to one.
    pub(crate) fn has_folder(&self, name: &str) -> bool {
        let kind =
            fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW).map(|stat| SFlag::from_bits_truncate(stat.st_mode));
        kind.is_ok_and(|mode| mode & SFlag::S_IFMT == SFlag::S_IFDIR)
    }

    /// The names in it, unsorted.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut dir = Dir::openat(&self.fd, ".", OPEN, Mode::empty())?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            // A name that is not UTF-8 is none that git or this program has made.
            if let Ok(name) = entry?.file_name().to_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// As `write`, and it can be run.
    pub(crate) fn write_program(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.place(name, |file| {
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
            file.write_all(content)
        })
    }

    /// Writes a file, in place of whatever has its name (but a folder).
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.place(name, |file| file.write_all(content))
    }

    /// Copies a file of the user's here, with its time of change, by which git tells whether an index entry can be trusted.
    pub(crate) fn copy(&self, from: &mut File, name: &str) -> io::Result<()> {
        let modified = from.metadata()?.modified()?;
        self.place(name, |file| {
            io::copy(&mut from.take(u64::MAX), file)?;
            file.set_modified(modified)
        })
    }

    /// Writes a file by `fill`; if that fails there is none.
    pub(crate) fn place(&self, name: &str, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        let new = format!("{name}.pi-new");
        match unlinkat(&self.fd, new.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.fd, new.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        if let Some((uid, gid)) = self.owner {
            fchown(&file, Some(uid), Some(gid))?;
        }
        if let Err(e) = fill(&mut file) {
            let _ = unlinkat(&self.fd, new.as_str(), UnlinkatFlags::NoRemoveDir);
            return Err(e);
        }
        Ok(renameat(&self.fd, new.as_str(), &self.fd, name)?)
    }

    /// Moves `name` into `to`, under the same name. Nothing there is no error.
    pub(crate) fn give_away(&self, name: &str, to: &Folder) -> io::Result<()> {
        match renameat(&self.fd, name, &to.fd, name) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn given(self) -> io::Result<Folder> {
        if let Some((uid, gid)) = self.owner {
            fchown(self.fd.as_fd(), Some(uid), Some(gid))?;
        }
        Ok(self)
    }
}

/// Opens a file below a folder of the user's, each step without following a link: a git directory that an agent could write to may hold
/// links to anything. `None` if nothing is there.
pub(crate) fn open_below(base: &Path, path: &str) -> io::Result<Option<File>> {
    let odd = || Err(io::Error::other("it is a link, behind one, or not a file"));
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    let step = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut fd = open(base, step, Mode::empty())?;
    for folder in folders.split('/').filter(|folder| !folder.is_empty()) {
        fd = match openat(&fd, folder, OPEN, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP | Errno::ENOTDIR) => return odd(),
            Err(e) => return Err(e.into()),
        };
    }
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    match openat(&fd, name, flags, Mode::empty()) {
        Ok(fd) => {
            let file = File::from(fd);
            if file.metadata()?.is_file() { Ok(Some(file)) } else { odd() }
        }
        Err(Errno::ENOENT) => Ok(None),
        Err(Errno::ELOOP | Errno::ENXIO) => odd(),
        Err(e) => Err(e.into()),
    }
}

/// Reads a file that must be one, and not a link to one. `None` if nothing is there.
pub(crate) fn read_plain(path: &Path, at_most: u64) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = match open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > at_most {
        return Err(io::Error::other("it is not a file of a sensible size"));
    }
    let mut content = Vec::new();
    file.take(at_most).read_to_end(&mut content)?;
    Ok(Some(content))
}
