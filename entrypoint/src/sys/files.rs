//! Files below a directory that is already open, by one name at a time, never through a link.
//!
//! Directories are held as `O_PATH` descriptors: reaching one needs no right to it, so PID 1 can find a place as root and open what is
//! in it later as the user. Reading is bounded, never blocks on a FIFO, and takes regular files only.
#![expect(unsafe_code, reason = "directory entries, write-back, and descriptors 0 to 2 before anything else is open")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, unlinkat};

/// For a directory that is to be reached, not read.
const PATH: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// For a file that somebody may have prepared: nothing is followed, nothing is waited for.
const WARY: OFlag = OFlag::O_NOFOLLOW.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// A place in the file system, opened without any right to what it holds.
pub(crate) struct Place(OwnedFd);

/// What kind of thing a directory's entry is.
#[derive(PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Other,
}

impl Place {
    /// A directory by its absolute path, whose last component is not a link.
    pub(crate) fn directory(path: &str) -> io::Result<Self> {
        Ok(Self(openat(AT_FDCWD, path, PATH, Mode::empty())?))
    }

    /// Whatever `name` is in this directory, unopened; a link is taken as the link itself.
    pub(crate) fn at(&self, name: &str) -> io::Result<Self> {
        Ok(Self(openat(&self.0, name, PATH.difference(OFlag::O_DIRECTORY), Mode::empty())?))
    }

    /// The directory `name` in this one.
    pub(crate) fn dir(&self, name: &str) -> io::Result<Self> {
        Ok(Self(openat(&self.0, name, PATH, Mode::empty())?))
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
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | WARY;
        Ok(openat(&self.0, name, flags, Mode::from_bits_truncate(mode))?.into())
    }

    /// A file to write from its start, made with mode 0600 if it is not there, emptied if it is.
    pub(crate) fn rewrite(&self, name: &str) -> io::Result<File> {
        Ok(self.open_regular(name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC)?.0)
    }

    /// A file to append to, made with mode 0600 if it is not there.
    pub(crate) fn append(&self, name: &str) -> io::Result<File> {
        Ok(self.open_regular(name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND)?.0)
    }

    /// An existing regular file, for reading and writing in place.
    pub(crate) fn open_rw(&self, name: &str) -> io::Result<File> {
        Ok(self.open_regular(name, OFlag::O_RDWR)?.0)
    }

    /// The content of the regular file `name`.
    pub(crate) fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        Ok(self.read_program(name, limit)?.0)
    }

    /// The content of the regular file `name`, and whether its owner may execute it.
    pub(crate) fn read_program(&self, name: &str, limit: u64) -> io::Result<(Vec<u8>, bool)> {
        let (file, stat) = self.open_regular(name, OFlag::O_RDONLY)?;
        Ok((read_whole(&file, &stat, limit)?, stat.st_mode & 0o100 != 0))
    }

    /// The content of the regular file at `path` below this directory. Links are followed as long as they stay below it.
    pub(crate) fn read_below(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        let flags = (OFlag::O_RDONLY | WARY).difference(OFlag::O_NOFOLLOW);
        let how =
            OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let file: File = openat2(&self.0, path, how)?.into();
        read_bounded(&file, limit)
    }

    /// Whether there is anything named `path` below this directory, a dangling link included.
    pub(crate) fn has(&self, path: &str) -> bool {
        fstatat(&self.0, path, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// The names in this directory that are text, with what they are.
    pub(crate) fn list(&self) -> io::Result<Vec<(String, Kind)>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = openat(&self.0, ".", flags, Mode::empty())?;
        let mut entries = Vec::new();
        let mut buffer = [0; 2048];
        while let Some(names) = read_names(&directory, &mut buffer)? {
            for (name, kind_of_entry) in names.into_iter().filter(|(name, _)| name != "." && name != "..") {
                let kind = match kind_of_entry {
                    libc::DT_REG => Kind::File,
                    libc::DT_DIR => Kind::Directory,
                    // Not every file system says it in the directory.
                    libc::DT_UNKNOWN => kind(&fstatat(&self.0, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?),
                    _ => Kind::Other,
                };
                entries.push((name, kind));
            }
        }
        Ok(entries)
    }

    /// Opens what this place is, for reading and writing in place: a regular file, or an error.
    pub(crate) fn reopen_file(&self) -> io::Result<File> {
        must_be_regular(&fstat(&self.0)?)?;
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        Ok(openat(AT_FDCWD, path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?.into())
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

    fn open_regular(&self, name: &str, flags: OFlag) -> io::Result<(File, FileStat)> {
        let file: File = openat(&self.0, name, flags | WARY, Mode::S_IRUSR | Mode::S_IWUSR)?.into();
        let stat = fstat(&file)?;
        must_be_regular(&stat)?;
        Ok((file, stat))
    }
}

/// How many names a file has: 0 when it was removed or replaced meanwhile.
pub(crate) fn link_count(file: &File) -> u64 {
    #[allow(clippy::useless_conversion, reason = "the type differs between architectures")]
    fstat(file).map_or(0, |stat| stat.st_nlink.into())
}

/// Has the kernel begin to write out what was written into a file. Only speed depends on it: an error is none.
pub(crate) fn begin_write_back(file: &File) {
    // SAFETY: the descriptor is open as long as the call; offset and length 0 are all of the file.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// What users have left of the file system that a file is on.
pub(crate) fn free_bytes(file: &File) -> io::Result<u64> {
    let stat = fstatvfs(file)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// The text at `path`, one of the kernel's or the image's own; cut off at 1 MiB.
pub(crate) fn text(path: &str) -> io::Result<String> {
    let file: File = openat(AT_FDCWD, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into();
    let mut text = String::with_capacity(512);
    file.take(1 << 20).read_to_string(&mut text)?;
    Ok(text)
}

/// Everything in a regular file; an error if that is more than `limit` bytes.
pub(crate) fn read_bounded(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let stat = fstat(file)?;
    must_be_regular(&stat)?;
    read_whole(file, &stat, limit)
}

fn read_whole(file: &File, stat: &FileStat, limit: u64) -> io::Result<Vec<u8>> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {limit} bytes"));
    // One more than there should be: a file that grows meanwhile is as strange as one that is too large.
    let wanted = usize::try_from(size.min(limit)).map_err(|_| too_large())? + 1;
    let mut content = vec![0; wanted];
    let mut length = 0;
    while length < wanted {
        match file.read_at(&mut content[length..], length as u64)? {
            0 => {
                content.truncate(length);
                return Ok(content);
            }
            more => length += more,
        }
        if length + 1 == wanted {
            content.truncate(length);
            return Ok(content);
        }
    }
    Err(too_large())
}

fn must_be_regular(stat: &FileStat) -> io::Result<()> {
    match kind(stat) {
        Kind::File => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

fn kind(stat: &FileStat) -> Kind {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => Kind::File,
        SFlag::S_IFDIR => Kind::Directory,
        _ => Kind::Other,
    }
}

/// Some more names of a directory with the kernel's word for what they are, without those that are not text; `None` at its end. The C
/// library's way takes three times as many system calls.
fn read_names(directory: &OwnedFd, buffer: &mut [u8; 2048]) -> io::Result<Option<Vec<(String, u8)>>> {
    // SAFETY: the pointer is valid for the length that is passed.
    let length =
        unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
    let mut entries = &buffer[..usize::try_from(length).map_err(|_| io::Error::last_os_error())?];
    if entries.is_empty() {
        return Ok(None);
    }
    let mut names = Vec::new();
    // An entry: inode and offset, 8 bytes each, then its own length, 2, its type, 1, and its name, up to a NUL.
    while let Some(own) = entries.get(16..18) {
        let (entry, rest) =
            entries.split_at(usize::from(u16::from_ne_bytes([own[0], own[1]])).clamp(19, entries.len()));
        let name = entry[19..].split(|byte| *byte == 0).next().unwrap_or_default();
        names.extend(std::str::from_utf8(name).ok().map(|name| (name.to_owned(), entry[18])));
        entries = rest;
    }
    Ok(Some(names))
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

/// Standard error by a descriptor that never waits, and is nobody else's: the flag of the inherited one is shared with pi and the user's
/// shell. What cannot be opened anew, a socket, is taken as it is.
pub(crate) fn impatient_stderr() -> Option<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let anew = openat(AT_FDCWD, "/proc/self/fd/2", flags, Mode::empty()).ok();
    Some(anew.or_else(|| io::stderr().as_fd().try_clone_to_owned().ok())?.into())
}

/// Hands a terminal or pipe among the standard descriptors to the user, or a program that opens /dev/stdout could not.
pub(crate) fn hand_over_stdio(uid: u32) {
    for fd in 0..3 {
        // SAFETY: they were made to exist, and are closed by nobody. Rust's own handles would bring buffers along.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let Ok(stat) = fstat(fd) else { continue };
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFIFO || (kind == SFlag::S_IFCHR && nix::unistd::isatty(fd).unwrap_or(false)) {
            // A failure costs the program /dev/stdout by name, nothing else.
            let _ = fchown(fd, Some(Uid::from_raw(uid)), None);
        }
    }
}
