//! Files below a directory that is already open, by one name at a time, never through a link.
//!
//! Directories are held as `O_PATH` descriptors: reaching one needs no right to it, so PID 1 can find a place as root and open what is
//! in it later as the user. Reading is bounded, never blocks on a FIFO, and takes regular files only.
#![expect(unsafe_code, reason = "raw descriptors 0 to 2 before anything else is open")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, unlinkat};

/// A place in the file system, opened without any right to what it holds.
pub(crate) struct Place(OwnedFd);

/// What kind of thing a directory's entry is.
#[derive(PartialEq, Eq)]
pub(crate) enum Kind {
    File { executable: bool },
    Directory,
    Other,
}

impl Place {
    /// A directory by its path; none of the path's last component may be a link.
    pub(crate) fn directory(path: &str) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self(nix::fcntl::open(path, flags, Mode::empty())?))
    }

    /// Whatever `name` is in this directory, unopened; a link is taken as the link itself.
    pub(crate) fn at(&self, name: &str) -> io::Result<Self> {
        Ok(Self(openat(&self.0, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?))
    }

    /// The directory `name` in this one.
    pub(crate) fn dir(&self, name: &str) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self(openat(&self.0, name, flags, Mode::empty())?))
    }

    /// The directory `name` in this one, made with `mode` if it is not there.
    pub(crate) fn make_dir(&self, name: &str, mode: u32) -> io::Result<Self> {
        match mkdirat(&self.0, name, Mode::from_bits_truncate(mode)) {
            Ok(()) | Err(Errno::EEXIST) => self.dir(name),
            Err(error) => Err(error.into()),
        }
    }

    /// A new file, never an existing one.
    pub(crate) fn create(&self, name: &str, mode: u32) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&self.0, name, flags, Mode::from_bits_truncate(mode))?.into())
    }

    /// A file to write from its start, made with mode 0600 if it is not there, emptied if it is.
    pub(crate) fn rewrite(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        self.open_regular(name, flags)
    }

    /// A file to append to, made with mode 0600 if it is not there.
    pub(crate) fn append(&self, name: &str) -> io::Result<File> {
        self.open_regular(name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND)
    }

    /// An existing regular file, for reading and writing in place.
    pub(crate) fn open_rw(&self, name: &str) -> io::Result<File> {
        self.open_regular(name, OFlag::O_RDWR)
    }

    /// The content of the regular file `name`.
    pub(crate) fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        read_bounded(&mut self.open_regular(name, OFlag::O_RDONLY)?, limit)
    }

    /// The content of the regular file at `path` below this directory. Links are followed as long as they stay below it.
    pub(crate) fn read_below(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let how =
            OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let mut file: File = openat2(&self.0, path, how)?.into();
        require_regular(&fstat(&file)?)?;
        read_bounded(&mut file, limit)
    }

    /// Whether there is anything named `path` below this directory, a dangling link included.
    pub(crate) fn has(&self, path: &str) -> bool {
        fstatat(&self.0, path, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// The names in this directory with what they are, without `.` and `..`.
    pub(crate) fn list(&self) -> io::Result<Vec<(String, Kind)>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut entries = Vec::new();
        for entry in nix::dir::Dir::openat(&self.0, ".", flags, Mode::empty())?.iter() {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            let stat = fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            entries.push((name.to_owned(), kind(&stat)));
        }
        Ok(entries)
    }

    /// Opens what this place is, for reading and writing in place: a regular file, or an error.
    pub(crate) fn reopen_file(&self) -> io::Result<File> {
        require_regular(&fstat(&self.0)?)?;
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        Ok(nix::fcntl::open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    /// Gives what this place is, not what is below it, to this user, if it is not theirs.
    pub(crate) fn hand_over(&self, uid: u32, gid: u32) -> io::Result<()> {
        if fstat(&self.0)?.st_uid != uid {
            fchownat(&self.0, "", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_EMPTY_PATH)?;
        }
        Ok(())
    }

    /// Sets the permissions of the directory `name` in this one.
    pub(crate) fn set_mode(&self, name: &str, mode: u32) -> io::Result<()> {
        Ok(fchmodat(&self.0, name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?)
    }

    /// Removes the name of a file, not what it points to.
    pub(crate) fn unlink(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir)?)
    }

    fn open_regular(&self, name: &str, flags: OFlag) -> io::Result<File> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file: File = openat(&self.0, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into();
        require_regular(&fstat(&file)?)?;
        Ok(file)
    }
}

/// How many names a file has: 0 when it was removed or replaced meanwhile.
pub(crate) fn link_count(file: &File) -> u64 {
    #[allow(clippy::useless_conversion, reason = "the type differs between architectures")]
    fstat(file).map_or(0, |stat| stat.st_nlink.into())
}

/// Everything in a file from where it stands; an error if that is more than `limit` bytes.
pub(crate) fn read_bounded(file: &mut impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.by_ref().take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {limit} bytes")));
    }
    Ok(content)
}

fn require_regular(stat: &FileStat) -> io::Result<()> {
    match kind(stat) {
        Kind::File { .. } => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

fn kind(stat: &FileStat) -> Kind {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => Kind::File { executable: stat.st_mode & 0o100 != 0 },
        SFlag::S_IFDIR => Kind::Directory,
        _ => Kind::Other,
    }
}

/// Leaves the working folder for `/`.
pub(crate) fn enter_root() -> io::Result<()> {
    Ok(nix::unistd::chdir("/")?)
}

/// Makes descriptors 0 to 2 exist, so that no file of ours takes their place, and closes all others.
pub(super) fn fill_standard_descriptors() {
    for fd in 0..3 {
        // SAFETY: F_GETFD has no side effect; open takes the lowest free number, which is `fd`, as the lower ones are open.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) == -1 {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            }
        }
    }
    // SAFETY: nothing is open yet that any Rust value owns.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    if closed != 0 {
        for fd in 3..1024 {
            // SAFETY: as above; kernels before 5.9 have no close_range.
            unsafe { libc::close(fd) };
        }
    }
}

/// Hands a terminal or pipe among the standard descriptors to the user, or a program that opens /dev/stdout could not.
pub(crate) fn hand_over_stdio(uid: u32) {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let Ok(stat) = fstat(fd) else { continue };
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFIFO || (kind == SFlag::S_IFCHR && nix::unistd::isatty(fd).unwrap_or(false)) {
            // A failure costs the program /dev/stdout by name, nothing else.
            let _ = fchown(fd, Some(Uid::from_raw(uid)), None);
        }
    }
}
