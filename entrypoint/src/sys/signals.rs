//! Signals as numbers, 1 to 64: all of them blocked, then taken from the queue one at a time.
//!
//! The masks are the kernel's own 64 bits, by raw system calls: the C library hides the real-time signals it uses itself (32 to 34),
//! and nix has no real-time signals at all.
#![expect(unsafe_code, reason = "raw system calls")]

use std::time::Duration;

pub(crate) const HUP: i32 = libc::SIGHUP;
pub(crate) const INT: i32 = libc::SIGINT;
pub(crate) const QUIT: i32 = libc::SIGQUIT;
pub(crate) const KILL: i32 = libc::SIGKILL;
pub(crate) const TERM: i32 = libc::SIGTERM;
pub(crate) const CHLD: i32 = libc::SIGCHLD;
pub(crate) const IO: i32 = libc::SIGIO;
pub(crate) const CONT: i32 = libc::SIGCONT;
pub(crate) const XFSZ: i32 = libc::SIGXFSZ;

const MASK_BYTES: usize = 8;

/// The dispositions and the mask that the process was started with, and the queue of what has been sent since.
pub(crate) struct Signals {
    inherited_mask: u64,
    inherited_chld: libc::sighandler_t,
}

/// One signal taken from the queue.
pub(crate) struct Received {
    pub(crate) number: i32,
    /// Sent by the kernel itself: the terminal's keys and its hang-up, among others.
    pub(crate) from_kernel: bool,
    /// The sender in our PID namespace; 0 when it is outside, or the kernel.
    pub(crate) sender: i32,
}

impl Signals {
    /// Blocks every signal and makes ended children stay until they are waited for, whatever was inherited.
    pub(crate) fn block() -> Self {
        let mut inherited_mask = 0u64;
        set_mask(u64::MAX, Some(&mut inherited_mask));
        // SAFETY: SIG_DFL is a valid disposition for SIGCHLD.
        let inherited_chld = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        Self { inherited_mask, inherited_chld }
    }

    /// Takes the next signal; `None` when `timeout` has passed (no timeout: waits for ever).
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Option<Received> {
        let all = u64::MAX;
        // SAFETY: an all-zero siginfo_t is a valid value of this plain struct.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let time = timeout.map(|t| libc::timespec {
            tv_sec: t.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: all pointers are valid for the call; the mask has the size that is passed.
        let number =
            unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &raw const all, &raw mut info, time, MASK_BYTES) };
        if number <= 0 {
            return None;
        }
        // SAFETY: for signals sent by kill, sigqueue or the kernel the sender's fields are set, and they are zero otherwise.
        let sender = unsafe { info.si_pid() };
        let from_kernel = info.si_code == libc::SI_KERNEL;
        Some(Received { number: info.si_signo, from_kernel, sender })
    }

    /// Which of these signals has been sent and not been taken yet.
    pub(crate) fn pending(&self, numbers: &[i32]) -> Option<i32> {
        let mut set = 0u64;
        // SAFETY: the pointer is valid for the size that is passed.
        unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut set, MASK_BYTES) };
        numbers.iter().copied().find(|number| set & (1u64 << (number - 1)) != 0)
    }

    /// In a child: everything as this process found it.
    pub(super) fn restore(&self) {
        // SAFETY: the disposition came from the same call.
        unsafe { libc::signal(libc::SIGCHLD, self.inherited_chld) };
        set_mask(self.inherited_mask, None);
    }
}

fn set_mask(mask: u64, old: Option<&mut u64>) {
    let old = old.map_or(std::ptr::null_mut(), std::ptr::from_mut);
    // SAFETY: both masks are 64 bits long, as the size says; with valid arguments the call cannot fail.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, old, MASK_BYTES) };
}
