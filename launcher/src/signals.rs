#![expect(unsafe_code, reason = "the one file that installs signal handlers")]
//! Signals to the launcher, as bytes in a pipe that one thread reads. Handlers, not an ignored or blocked state: a child process
//! starts with the default of every one of them.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::Sender;
use std::thread;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Where the handler writes; -1 before there is such a place.
static PIPE: AtomicI32 = AtomicI32::new(-1);
/// The first signal that asked for the end, 0 if none has.
static FIRST: AtomicI32 = AtomicI32::new(0);

/// The signals that end a session.
const CAUGHT: [Signal; 4] = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP];

/// From now on these signals do not end the program; each is sent to `events` instead. To be called once.
pub(crate) fn catch<E: From<Signal> + Send + 'static>(events: Sender<E>) -> Result<()> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let mut reader = File::from(OwnedFd::from(reader));
    PIPE.store(OwnedFd::from(writer).into_raw_fd(), Ordering::SeqCst);
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in CAUGHT {
        // SAFETY: `note` does nothing but async-signal-safe calls, and is installed for the life of the program.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot catch {signal}"))?;
    }
    debug_assert!(reader.as_raw_fd() >= 0);
    thread::spawn(move || {
        let mut byte = [0];
        while reader.read_exact(&mut byte).is_ok() {
            if let Ok(signal) = Signal::try_from(i32::from(byte[0]))
                && events.send(signal.into()).is_err()
            {
                break;
            }
        }
    });
    Ok(())
}

/// The first signal that came, if one has.
pub(crate) fn first() -> Option<Signal> {
    Signal::try_from(FIRST.load(Ordering::SeqCst)).ok()
}

extern "C" fn note(signal: nix::libc::c_int) {
    let errno = Errno::last_raw();
    let _ = FIRST.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
    let pipe = PIPE.load(Ordering::SeqCst);
    if pipe >= 0 {
        // SAFETY: the descriptor was made by `catch` and is never closed.
        let pipe = unsafe { BorrowedFd::borrow_raw(pipe) };
        let _ = nix::unistd::write(pipe, &[u8::try_from(signal).unwrap_or(0)]);
    }
    Errno::set_raw(errno);
}
