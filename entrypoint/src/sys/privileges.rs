//! Giving up what root has, for PID 1 itself and so for every process it starts.
//!
//! After `drop_to` PID 1 acts on files as the user, and can do nothing as root but send signals. Its real uid stays 0, so that no
//! process of the user can signal or trace it; a child gives that up too, which needs no capability.
#![expect(unsafe_code, reason = "the bounding set's prctl")]

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid};

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
            return keep_only_kill().map_err(|cause| Refused { what: "drop the capabilities", cause });
        }
        let cause = io::Error::from(io::ErrorKind::PermissionDenied);
        return Err(Refused { what: "become the user", cause });
    }
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    step("drop the supplementary groups", setgroups(&[]))?;
    step("become the group", setresgid(group, group, group))?;
    clear_bounding_set()?;
    step("become the user", setresuid(Uid::from_raw(0), user, Uid::from_raw(0)))?;
    let kept = keep_only_kill().map_err(|cause| Refused { what: "drop the capabilities", cause });
    // The kernel resets it when the ids change.
    step("make the process undumpable", prctl::set_dumpable(false))?;
    kept
}

/// In a child: the real and the saved uid too, and the last capability.
pub(super) fn finish_drop(uid: u32, gid: u32) -> nix::Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    caps::clear(None, CapSet::Permitted).map_err(|_| Errno::EPERM)
}

fn keep_only_kill() -> io::Result<()> {
    let had_kill = caps::has_cap(None, CapSet::Permitted, Capability::CAP_KILL).map_err(io::Error::other)?;
    let kept: CapsHashSet = had_kill.then_some(Capability::CAP_KILL).into_iter().collect();
    caps::clear(None, CapSet::Inheritable).map_err(io::Error::other)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(io::Error::other)?;
    caps::set(None, CapSet::Effective, &kept).map_err(io::Error::other)
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
