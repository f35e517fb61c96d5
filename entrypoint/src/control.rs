//! What the launcher and PID 1 tell each other: files in a directory that only root can reach in the container.
//!
//! ready (pi has been executed), log (one line each), result.json (the last thing written), heartbeat (read). They are
//! written as the user, whose directory it is on the host. None of this may fail a session: what cannot be written is left out.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::config::{Config, Mode};
use crate::sys::files::{self, Place};
use crate::sys::net;

pub(crate) struct Control {
    directory: Option<Place>,
    /// Where the agent's side may say a line.
    mailbox: Option<UnixDatagram>,
    /// Bytes that may still go into the log: it is on the host's disk, and some of its lines come from the agent's side.
    left: Cell<usize>,
}

const LOG_LIMIT: usize = 1 << 20;
/// Of these, what the agent's side cannot take from PID 1.
const OWN_SHARE: usize = 1 << 16;
const LINE_LIMIT: usize = 1000;
/// One datagram, one line. It is the agent's user's to write to, and to remove.
const MAILBOX: &str = "/home/pi/.config/pi-docker/log";

impl Control {
    pub(crate) fn new(directory: Option<Place>) -> Self {
        Self { directory, mailbox: None, left: Cell::new(LOG_LIMIT) }
    }

    /// Begins to take lines for the log from the agent's side. A session does not fail by it.
    pub(crate) fn open_mailbox(&mut self) {
        self.mailbox = UnixDatagram::bind(MAILBOX).ok().filter(|mailbox| net::announce(mailbox).is_ok());
    }

    /// Writes the lines that have come into the log.
    pub(crate) fn empty_mailbox(&self) {
        let Some(mailbox) = &self.mailbox else { return };
        let mut line = [0; LINE_LIMIT];
        // Bounded, or a fast writer would keep PID 1 from everything else.
        for _ in 0..100 {
            let Ok(length) = mailbox.recv(&mut line) else { return };
            self.take(&line[..length]);
        }
    }

    /// Writes what the agent's side says, as long as there is room for more than what PID 1 has to say.
    fn take(&self, line: &[u8]) {
        if self.left.get() > OWN_SHARE {
            self.append(&format!("pi-subagent: {}", String::from_utf8_lossy(line)));
        }
    }

    /// Says a line to the user, and to the log.
    pub(crate) fn say(&self, line: &str) {
        let line = printable(line);
        self.log(&line);
        // A reader that has stopped must not hold up the end of the session: it gets a moment, and what it has room for.
        if let Some(mut stderr) = files::impatient_stderr().filter(net::is_writable) {
            // A full-screen program may have taken the terminal's own line ends away.
            let end = if stderr.is_terminal() { "\r\n" } else { "\n" };
            let _ = stderr.write_all(format!("pi-entrypoint: {line}{end}").as_bytes());
        }
    }

    /// A line for `pi-docker logs`.
    pub(crate) fn log(&self, line: &str) {
        self.append(&format!("pi-entrypoint: {line}"));
    }

    fn append(&self, line: &str) {
        let line = format!("{}\n", printable(line));
        let Some(left) = self.left.get().checked_sub(line.len()) else { return };
        self.left.set(left);
        if let Some(Ok(mut file)) = self.directory.as_ref().map(|directory| directory.append("log")) {
            let _ = file.write_all(line.as_bytes());
        }
    }

    pub(crate) fn ready(&self) {
        self.write("ready", r#"{"pid1": "ready"}"#);
    }

    pub(crate) fn result(&self, exit: u8, reason: &str, auth: &str) {
        self.write("result.json", &format!(r#"{{"exit": {exit}, "reason": "{reason}", "auth": "{auth}"}}"#));
    }

    /// A file of this directory to write a program's output to, emptied.
    pub(crate) fn output(&self, name: &str) -> std::io::Result<std::fs::File> {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        self.directory.as_ref().ok_or_else(missing)?.rewrite(name)
    }

    pub(crate) fn remove(&self, name: &str) {
        let _ = self.directory.as_ref().map(|directory| directory.unlink(name));
    }

    fn write(&self, name: &str, content: &str) {
        if let Some(Ok(mut file)) = self.directory.as_ref().map(|directory| directory.rewrite(name)) {
            let _ = file.write_all(format!("{content}\n").as_bytes());
        }
    }

    fn beat(&self) -> Option<Vec<u8>> {
        self.directory.as_ref()?.read("heartbeat", 256).ok()
    }
}

/// No line break, no escape sequence, no end in sight: one line stays one line.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LINE_LIMIT).collect()
}

/// The launcher's sign of life. It is stale when its content has stayed the same over enough looks, not by the clock: a machine that
/// was suspended has not been looked at.
pub(crate) struct Heartbeat {
    limit: Duration,
    last: Option<Vec<u8>>,
    looked: Instant,
    silent: Duration,
}

impl Heartbeat {
    /// `None`: the launcher may be silent.
    pub(crate) fn new(config: &Config, control: &Control) -> Option<Self> {
        let limit = config.heartbeat.filter(|_| config.mode != Mode::Export)?;
        Some(Self { limit, last: control.beat(), looked: Instant::now(), silent: Duration::ZERO })
    }

    /// How often to look.
    pub(crate) fn interval(&self) -> Duration {
        (self.limit / 8).min(Duration::from_secs(5))
    }

    /// Looks; true when the launcher has been silent for too long.
    pub(crate) fn is_stale(&mut self, control: &Control) -> bool {
        let now = Instant::now();
        let since = now.duration_since(self.looked).min(self.interval() * 2);
        self.looked = now;
        // One that cannot be read is no sign of life.
        match control.beat().filter(|beat| self.last.as_ref() != Some(beat)) {
            None => self.silent += since,
            beat => {
                self.last = beat;
                self.silent = Duration::ZERO;
            }
        }
        self.silent >= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_fills_the_log_leaves_room_for_what_pid_1_has_to_say() {
        let dir = tempfile::tempdir().expect("a folder");
        let control = Control::new(Some(Place::directory(dir.path().to_str().expect("text")).expect("a folder")));
        for _ in 0..2 * LOG_LIMIT / LINE_LIMIT {
            control.take(&[b'x'; LINE_LIMIT]);
        }
        control.log("the end");
        let log = std::fs::read_to_string(dir.path().join("log")).expect("a log");
        assert!(log.ends_with("pi-entrypoint: the end\n") && log.lines().count() > 900);
        assert!(log.len() < LOG_LIMIT - OWN_SHARE + 3 * LINE_LIMIT, "{}", log.len());
    }
}
