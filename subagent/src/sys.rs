//! The kernel: prctl, signals to other processes, and what /proc says about them. The only file that names nix and
//! that holds `unsafe`. Nothing here knows what a task is.
#![expect(unsafe_code, reason = "pre_exec, so that pi never outlives the program that supervises it")]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid};

/// Keeps our memory and environment unreadable for other processes of the user.
pub(crate) fn hide() -> io::Result<()> {
    Ok(prctl::set_dumpable(false)?)
}

/// Makes orphans of our descendants our own children (a shell tool's background process leaves pi's process group), and
/// ends us with SIGTERM when our parent dies.
pub(crate) fn supervise() -> io::Result<()> {
    let parent = getppid();
    prctl::set_child_subreaper(true)?;
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    if getppid() != parent {
        kill(getpid(), Signal::SIGTERM)?;
    }
    Ok(())
}

/// The child gets SIGTERM when the thread that starts it ends: start it from the main thread only.
pub(crate) fn die_with_us(command: &mut tokio::process::Command) {
    let parent = getpid();
    // SAFETY: the closure runs between fork and exec; prctl and getppid are async-signal-safe, nothing allocates.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGTERM)?;
            if getppid() != parent { Err(io::Error::from_raw_os_error(nix::libc::ESRCH)) } else { Ok(()) }
        });
    }
}

/// SIGTERM to one process; that it is gone already is no error.
pub(crate) fn terminate(pid: u32) {
    let _ = kill(Pid::from_raw(pid as i32), Signal::SIGTERM);
}

/// SIGKILL to one process.
pub(crate) fn kill_hard(pid: u32) {
    let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
}

/// Reaps dead children that we adopted; `own` are those that someone else waits for.
pub(crate) fn reap_adopted(own: &[u32]) {
    let me = getpid().as_raw() as u32;
    for (pid, process) in processes() {
        if process.parent == me && process.zombie && !own.contains(&pid) {
            let _ = waitpid(Pid::from_raw(pid as i32), Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// Kills every descendant that there is now.
pub(crate) fn kill_descendants() {
    let me = getpid().as_raw() as u32;
    let all = processes();
    let mut ours: HashSet<u32> = HashSet::from([me]);
    loop {
        let found: Vec<u32> = all
            .iter()
            .filter(|(pid, p)| ours.contains(&p.parent) && !ours.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if found.is_empty() {
            break;
        }
        ours.extend(found);
    }
    ours.into_iter().filter(|pid| *pid != me).for_each(kill_hard);
}

/// Reaps every child that has ended; says whether any is left. Only the absence of children says for sure that all descendants
/// are dead: a list of processes is made one by one, and orphans become ours meanwhile.
pub(crate) fn reap_children() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return true,
            Ok(_) => {}
            // nix knows no status of a real-time signal, but the child is reaped.
            Err(Errno::EINVAL | Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// The variable that everything a run starts has in its environment.
pub(crate) const MARK: &str = "PI_SUBAGENT_RUN";

/// Processes, other than this one, that carry the mark of a run.
pub(crate) fn marked(run: &str) -> Vec<u32> {
    let me = getpid().as_raw() as u32;
    let wanted = format!("{MARK}={run}").into_bytes();
    let mut found = Vec::new();
    for pid in pids() {
        let Ok(environ) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        if pid != me && environ.split(|byte| *byte == 0).any(|entry| entry == wanted) {
            found.push(pid);
        }
    }
    found
}

/// When a process started, in ticks since boot: with its id, it names one process for good. None if there is none.
pub(crate) fn start_of(pid: u32) -> Option<u64> {
    process(pid).filter(|process| !process.zombie).map(|process| process.start)
}

/// Names this boot of the kernel that we share file locks with, and this process-id namespace.
pub(crate) fn machine() -> (String, String) {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let namespace = fs::read_link("/proc/self/ns/pid").map(|path| path.display().to_string()).unwrap_or_default();
    (boot, namespace)
}

/// Bytes that a user may still write where `path` is.
pub(crate) fn free_space(path: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    Some(stat.blocks_available() * stat.fragment_size())
}

/// What is in a regular file of at most 16 MB; agents can put a FIFO, or something without an end, in its place.
pub(crate) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    const LIMIT: u64 = 16 << 20;
    let file = open_file(path)?;
    let about = file.metadata()?;
    if !about.is_file() || about.len() > LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file, or too large"));
    }
    let mut content = Vec::new();
    file.take(LIMIT).read_to_end(&mut content)?;
    Ok(content)
}

/// Opens a file for reading; a FIFO in its place is opened, too, and does not make us wait.
pub(crate) fn open_file(path: &Path) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)
}

pub(crate) fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

struct Process {
    parent: u32,
    zombie: bool,
    start: u64,
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn processes() -> HashMap<u32, Process> {
    pids().filter_map(|pid| Some((pid, process(pid)?))).collect()
}

fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and parentheses: the fields start after the last one.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Process {
        zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}
