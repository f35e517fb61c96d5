//! The one program that has the terminal: docker, building or running pi. Ctrl-C reaches it from the terminal itself, so the
//! launcher lets SIGINT pass; what asks the launcher alone to end goes to the `end` function.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::Silent;
use crate::signals;

enum Event {
    Signal(Signal),
    Exited(io::Result<ExitStatus>),
}

impl From<Signal> for Event {
    fn from(signal: Signal) -> Event {
        Event::Signal(signal)
    }
}

/// From when it is made, no signal ends the launcher by itself.
pub(crate) struct Foreground {
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Foreground {
    /// To be made once.
    pub(crate) fn new() -> Result<Foreground> {
        let (sender, events) = mpsc::channel();
        signals::catch(sender.clone())?;
        Ok(Foreground { sender, events })
    }

    /// Waits until `child` has ended. `end` is called for each signal that asks for the end, and told how many came before.
    pub(crate) fn wait(&self, mut child: Child, mut end: impl FnMut(Pid, u32)) -> Result<ExitStatus> {
        let pid = Pid::from_raw(i32::try_from(child.id()).context("cannot wait for docker")?);
        let sender = self.sender.clone();
        thread::spawn(move || sender.send(Event::Exited(child.wait())));
        let mut count = 0;
        loop {
            match self.events.recv().context("cannot wait for docker")? {
                Event::Exited(status) => return status.context("cannot wait for docker"),
                Event::Signal(Signal::SIGINT | Signal::SIGQUIT) => {}
                Event::Signal(_) => {
                    end(pid, count);
                    count += 1;
                }
            }
        }
    }

    /// Fails if a signal has asked for the end.
    pub(crate) fn check(&self) -> Result<()> {
        match signals::first() {
            Some(signal) => Err(Silent(status_of_signal(signal as i32)).into()),
            None => Ok(()),
        }
    }
}

pub(crate) fn terminate(pid: Pid) {
    let _ = kill(pid, Signal::SIGTERM);
}

/// The shell's way to name an end by a signal.
fn status_of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// A child's end as an exit status.
pub(crate) fn code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => status_of_signal(signal),
        (None, None) => 1,
    }
}
