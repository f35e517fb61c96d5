//! Giving up what root has, for PID 1 itself and so for every process it starts.
//!
//! After `drop_to` PID 1 acts on files as the user, and can do nothing as root but send signals. Its real uid stays 0, so that no
//! process of the user can signal or trace it; a child gives that up too, which needs no capability.
#![expect(unsafe_code, reason = "the capabilities' calls, and those of the ids")]

use std::io;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{getegid, geteuid};

/// What could not be given up, in words for the error line.
pub(crate) struct Refused {
    pub(crate) what: &'static str,
    pub(crate) cause: io::Error,
}

/// Forbids, for good and for all children, that executing a program raises rights; and that other processes look into this one.
pub(crate) fn harden() -> Result<(), Refused> {
    step("set no_new_privs", prctl::set_no_new_privs())?;
    step("make the process undumpable", prctl::set_dumpable(false))
}

/// Becomes the user for all but the real uid, with CAP_KILL as the only capability that is left, if it was there at all. Not started
/// as root, it can only be the user that it is.
pub(crate) fn drop_to(uid: u32, gid: u32) -> Result<(), Refused> {
    if !geteuid().is_root() {
        if (geteuid().as_raw(), getegid().as_raw()) == (uid, gid) {
            return step("drop the capabilities", keep_only_kill());
        }
        let cause = io::Error::from(io::ErrorKind::PermissionDenied);
        return Err(Refused { what: "become the user", cause });
    }
    step("drop the supplementary groups", call(libc::SYS_setgroups, [0; 3]))?;
    step("become the group", call(libc::SYS_setresgid, [gid; 3]))?;
    clear_bounding_set()?;
    step("become the user", call(libc::SYS_setresuid, [0, uid, 0]))?;
    let kept = step("drop the capabilities", keep_only_kill());
    // The kernel resets it when the ids change.
    step("make the process undumpable", prctl::set_dumpable(false))?;
    kept
}

/// In a child: the real and the saved uid too, and the last capability.
pub(super) fn finish_drop(uid: u32, gid: u32) -> nix::Result<()> {
    call(libc::SYS_setresgid, [gid; 3])?;
    call(libc::SYS_setresuid, [uid; 3])?;
    set_capabilities(0)
}

/// The C library's functions for these would tell other threads, which there are none of, and block the signals for it each time.
fn call(number: libc::c_long, ids: [u32; 3]) -> nix::Result<()> {
    const { assert!(size_of::<libc::c_long>() == 8, "the calls of these names take 16 bits elsewhere") };
    let [first, second, third] = ids.map(libc::c_long::from);
    // SAFETY: of the calls used here only setgroups takes a pointer, and reads nothing for a count of 0.
    Errno::result(unsafe { libc::syscall(number, first, second, third) }).map(drop)
}

/// What capget and capset take: the kernel's third version, this process, and the effective, permitted and inheritable sets in two
/// halves of 32 bits.
const HEADER: [u32; 2] = [0x2008_0522, 0];
const KILL: u32 = 1 << 5;

fn keep_only_kill() -> nix::Result<()> {
    let mut header = HEADER;
    let mut sets = [0u32; 6];
    // SAFETY: both have the layout and the size that the kernel knows.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) })?;
    set_capabilities(sets[1] & KILL)
}

/// The effective and the permitted set; the inheritable one gets empty, and the ambient one is never larger than that.
fn set_capabilities(kept: u32) -> nix::Result<()> {
    let mut header = HEADER;
    let sets = [kept, kept, 0, 0, 0, 0];
    // SAFETY: both have the layout and the size that the kernel knows.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()) }).map(drop)
}

/// Until the kernel says that there is no such capability: it may know more of them than any list compiled in here. Most are gone in
/// a container, and looking is much cheaper than dropping.
fn clear_bounding_set() -> Result<(), Refused> {
    for capability in 0..64u64 {
        // SAFETY: no pointer is passed.
        let held = unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) };
        if held < 0 {
            break;
        }
        // SAFETY: no pointer is passed.
        if held > 0 && unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            return Err(Refused { what: "empty the capability bounding set", cause: io::Error::last_os_error() });
        }
    }
    Ok(())
}

fn step<T>(what: &'static str, result: nix::Result<T>) -> Result<T, Refused> {
    result.map_err(|errno| Refused { what, cause: errno.into() })
}
