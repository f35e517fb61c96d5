//! The controlling terminal: whose turn it is in the foreground, and its settings.
//!
//! Every call here is safe from the background because SIGTTOU is blocked.

use std::io::Write;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{Pid, tcsetpgrp};

/// What full-screen programs switch on and a killed one cannot switch off: synchronized output, mouse, focus and paste reports, Kitty and
/// xterm keyboard modes, the alternate screen, colours; and the cursor they hide.
const RESET: &[u8] = b"\x1b[?2026l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[?2004l\
\x1b[<u\x1b[>4;0m\x1b[?1049l\x1b[0m\x1b[?25h\r\n";

/// The controlling terminal with the settings it had when it was opened.
pub(crate) struct Terminal {
    file: std::fs::File,
    settings: Option<Termios>,
}

impl Terminal {
    /// The controlling terminal, if there is one.
    pub(crate) fn open() -> Option<Self> {
        // A terminal that nobody reads from any more must not hold up the end.
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let fd = open("/dev/tty", flags, Mode::empty()).ok()?;
        let settings = tcgetattr(&fd).ok();
        Some(Self { file: fd.into(), settings })
    }

    /// Puts a process group into the foreground.
    pub(crate) fn give_to(&self, group: i32) -> bool {
        tcsetpgrp(&self.file, Pid::from_raw(group)).is_ok()
    }

    /// Undoes what a program that was killed has left behind.
    pub(crate) fn reset(&self) {
        if let Some(settings) = &self.settings {
            let _ = tcsetattr(&self.file, SetArg::TCSANOW, settings);
        }
        if super::net::is_writable(&self.file) {
            let _ = (&self.file).write_all(RESET);
        }
    }
}
