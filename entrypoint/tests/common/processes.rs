//! What /proc says, and signals.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Stops ignoring a signal that the C library's own functions refuse.
#[expect(unsafe_code, reason = "a raw system call")]
pub(crate) fn heed_signal(number: i32) {
    let default = [0u64; 4];
    // SAFETY: the kernel's sigaction is four words long on every 64-bit machine, and all zero it is the default.
    let done = unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), std::ptr::null::<u64>(), 8) };
    assert_eq!(done, 0);
}

pub(crate) fn kill(pid: i32, number: i32) {
    let done = Command::new("kill").args(["-s", &number.to_string(), "--", &pid.to_string()]).status().unwrap();
    assert!(done.success());
}

pub(crate) fn only_child(pid: u32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_ascii_whitespace().next()?.parse().ok()
}

/// Every process of the same PID namespace as `pid`, by the test's numbers.
pub(crate) fn namespace_of(pid: i32) -> Vec<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(wanted) = namespace(pid) else { return Vec::new() };
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| namespace(*pid).as_ref() == Some(&wanted)).collect()
}

/// A field of /proc/PID/status.
pub(crate) fn status(pid: i32, field: &str) -> String {
    field_of(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(), field)
}

pub(crate) fn field_of(status: &str, field: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

pub(crate) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
