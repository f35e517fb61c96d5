//! Processes: starting one as the user, waiting for all, signalling them.
//!
//! Children are waited for by raw calls: nix cannot express an end by a real-time signal, and the status would be lost.
#![expect(unsafe_code, reason = "clone, raw waitpid and kill")]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, chdir, dup2_stdin, dup2_stdout, execvpe, getpid, setpgid};

use super::signals::Signals;
use super::terminal::Terminal;

/// What is started, and how.
pub(crate) struct Program<'a> {
    pub(crate) argv: &'a [CString],
    pub(crate) environment: &'a [CString],
    pub(crate) directory: &'a CStr,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// In place of the standard output, with the size that no file may exceed; there is nothing to read then.
    pub(crate) output: Option<(&'a File, u64)>,
}

/// Where a program is in job control.
#[derive(Clone, Copy)]
pub(crate) enum Group<'a> {
    /// With this process.
    Ours,
    /// In a group of its own, in the foreground of this terminal.
    Own(Option<&'a Terminal>),
}

/// Which step of the start failed, in the child.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Fork,
    Group,
    Drop,
    Directory,
    Execute,
}

/// Why a program could not be started.
pub(crate) struct NotStarted {
    pub(crate) step: Step,
    pub(crate) cause: io::Error,
}

/// A change of state of a child.
pub(crate) enum Change {
    Exited { pid: i32, code: i32 },
    Killed { pid: i32, signal: i32 },
    Stopped { pid: i32 },
}

/// Starts a program as the user, without any privilege, with the signals as this process found them. The PID, once it is executing.
///
/// The child borrows this process's memory until it executes, and this process sleeps as long: nothing is copied, and the child says
/// in place why it could not.
pub(crate) fn start(program: &Program, group: Group, signals: &Signals) -> Result<i32, NotStarted> {
    const STACK: usize = 64 << 10;
    let mut stack = vec![0u128; STACK / size_of::<u128>()];
    let mut child = Child { program, group, signals, failure: None };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack grows down from its end, which is aligned, and is larger than what the child's few calls need; `child` outlives
    // the child, as this process continues only when that has executed or ended.
    let pid = unsafe { libc::clone(run_child, stack.as_mut_ptr_range().end.cast(), flags, (&raw mut child).cast()) };
    let failure = if pid < 0 { Some((Step::Fork, Errno::last())) } else { child.failure };
    // The child's change of user has changed this for the memory that it borrowed.
    let _ = nix::sys::prctl::set_dumpable(false);
    match failure {
        Some((step, errno)) => Err(NotStarted { step, cause: errno.into() }),
        None => Ok(pid),
    }
}

/// What parent and child share.
struct Child<'a> {
    program: &'a Program<'a>,
    group: Group<'a>,
    signals: &'a Signals,
    failure: Option<(Step, Errno)>,
}

extern "C" fn run_child(child: *mut libc::c_void) -> libc::c_int {
    // SAFETY: it is the `Child` of `start`, which nobody else uses meanwhile.
    let child = unsafe { &mut *child.cast::<Child>() };
    child.failure = Some(become_program(child.program, child.group, child.signals));
    127
}

fn become_program(program: &Program, group: Group, signals: &Signals) -> (Step, Errno) {
    let steps = || -> Result<(), (Step, Errno)> {
        if let Group::Own(terminal) = group {
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(|errno| (Step::Group, errno))?;
            if let Some(terminal) = terminal {
                terminal.give_to(getpid().as_raw());
            }
        }
        if let Some((output, size)) = program.output {
            let nothing = open("/dev/null", OFlag::O_RDONLY, Mode::empty()).map_err(|errno| (Step::Group, errno))?;
            dup2_stdin(nothing)
                .and_then(|()| dup2_stdout(output))
                .and_then(|()| setrlimit(Resource::RLIMIT_FSIZE, size, size))
                .map_err(|errno| (Step::Group, errno))?;
        }
        super::privileges::finish_drop(program.uid, program.gid).map_err(|errno| (Step::Drop, errno))?;
        chdir(program.directory).map_err(|errno| (Step::Directory, errno))
    };
    if let Err(failure) = steps() {
        return failure;
    }
    signals.restore();
    let Err(errno) = execvpe(&program.argv[0], program.argv, program.environment);
    (Step::Execute, errno)
}

/// The next change of state of any child, without waiting. `Ok(None)`: none has changed. An error: there is no child.
pub(crate) fn next_change() -> io::Result<Option<Change>> {
    loop {
        let mut status = 0;
        // SAFETY: the pointer is valid.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::WUNTRACED) };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid == 0 {
            return Ok(None);
        }
        if libc::WIFEXITED(status) {
            return Ok(Some(Change::Exited { pid, code: libc::WEXITSTATUS(status) }));
        }
        if libc::WIFSIGNALED(status) {
            return Ok(Some(Change::Killed { pid, signal: libc::WTERMSIG(status) }));
        }
        if libc::WIFSTOPPED(status) {
            return Ok(Some(Change::Stopped { pid }));
        }
    }
}

/// Sends a signal, any number up to 64, to a process, or to a process group by its negative number.
pub(crate) fn send(pid: i32, signal: i32) -> io::Result<()> {
    assert!(pid != -1 && pid != 0, "everything is signalled by `send_to_all` only");
    raw_kill(pid, signal)
}

/// Every other process of this PID namespace. Getting one of these is the gate: only PID 1 of a namespace that is not the machine's can.
pub(crate) struct Everyone(());

impl Everyone {
    /// `None`: everyone would be more than what this program has started.
    pub(crate) fn below_this_init() -> Option<Self> {
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
        may_signal_everyone(std::process::id(), namespace.to_str()?).then_some(Self(()))
    }

    /// Sends a signal to every other process. `Ok(false)`: there is none.
    pub(crate) fn send(&self, signal: i32) -> io::Result<bool> {
        match raw_kill(-1, signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            result => result.map(|()| true),
        }
    }
}

/// The initial PID namespace has this inode number on every Linux machine.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

fn may_signal_everyone(own_pid: u32, namespace: &str) -> bool {
    own_pid == 1 && namespace.starts_with("pid:[") && namespace != INITIAL_PID_NAMESPACE
}

/// Signals every descendant of this process, one by one; false if there is none.
///
/// Children that have not been waited for keep their numbers, so they are signalled by number. A descendant further down may end and
/// its number be given away at any moment: it is held by a descriptor first, and looked at again before it is signalled.
pub(crate) fn send_to_descendants(signal: i32) -> bool {
    let own = own_pid();
    let table = parents();
    let mut found = vec![own];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        for &(pid, parent_of_pid) in &table {
            if parent_of_pid != parent || found.contains(&pid) {
                continue;
            }
            found.push(pid);
            if parent == own {
                let _ = raw_kill(pid, signal);
            } else {
                let _ = send_if_child_of(pid, parent, signal);
            }
        }
    }
    found.len() > 1
}

fn send_if_child_of(pid: i32, parent: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the descriptor is new, and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if parent_of(pid) != Some(parent) {
        return Ok(());
    }
    // SAFETY: a null siginfo is allowed, and means what kill means.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Every process that can be seen, with its parent.
fn parents() -> Vec<(i32, i32)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, parent_of(pid)?))).collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it is in parentheses, and may contain some.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

pub(crate) fn own_pid() -> i32 {
    getpid().as_raw()
}

/// Gives the pages of code that the start has needed back to the kernel: what follows needs few of them, and gets them again.
pub(crate) fn rest() {
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    const PAGE: usize = 4096;
    let (start, end) = (&raw const __executable_start, &raw const etext);
    let length = (end.addr() - start.addr()) & !(PAGE - 1);
    // SAFETY: the linker puts both around the code, which starts on a page and is never written: a page that is given back comes from
    // the file again.
    unsafe { libc::madvise(start.cast_mut().cast(), length, libc::MADV_DONTNEED) };
}

/// Stops this process until it is continued, as its main program has been.
pub(crate) fn stop_self() {
    let _ = raw_kill(own_pid(), libc::SIGSTOP);
}

fn raw_kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointer is passed.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes over the orphans among its descendants, as PID 1 does without asking.
pub(crate) fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_is_signalled_only_by_pid_1_of_a_namespace_that_is_not_the_machines() {
        assert!(may_signal_everyone(1, "pid:[4026532198]"));
        assert!(!may_signal_everyone(1, INITIAL_PID_NAMESPACE));
        assert!(!may_signal_everyone(2, "pid:[4026532198]"));
        assert!(!may_signal_everyone(1, ""));
    }
}
