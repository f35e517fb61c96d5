//! A program on a pseudo-terminal, driven as a person drives it: wait for a text, type an answer, or close the window.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};

use crate::user::User;
use crate::wait_until;

type Screen = Arc<Mutex<Vec<u8>>>;

pub struct Pty {
    child: Child,
    /// `None` once the window is closed.
    keyboard: Option<File>,
    reader: Option<JoinHandle<()>>,
    open: Arc<AtomicBool>,
    screen: Screen,
}

impl Pty {
    /// Starts a command, as it is but for its standard streams, in a session of its own on a new terminal of this user's.
    pub fn start(command: &Command, user: User) -> Result<Self> {
        let (keyboard, slave) = open_terminal(user.uid).context("cannot open a terminal")?;
        let terminal = || -> Result<Stdio> { Ok(slave.try_clone()?.into()) };
        // setsid makes the terminal the controlling one and becomes the command.
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args()).env_clear();
        session.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(dir) = command.get_current_dir() {
            session.current_dir(dir);
        }
        let child = session.stdin(terminal()?).stdout(terminal()?).stderr(terminal()?).spawn();
        let child = child.context("cannot start a program on a terminal")?;
        drop(slave);
        let (screen, open) = (Screen::default(), Arc::new(AtomicBool::new(true)));
        let (output, shown, wanted) = (keyboard.try_clone()?, screen.clone(), open.clone());
        let reader = thread::spawn(move || watch(output, &shown, &wanted));
        Ok(Self { child, keyboard: Some(keyboard), reader: Some(reader), open, screen })
    }

    /// Closes the window: the program's terminal is gone.
    pub fn close(&mut self) {
        self.open.store(false, Ordering::Relaxed);
        self.keyboard = None;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }

    /// Everything that was shown so far.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until `text` is shown.
    pub fn expect(&self, text: &str, limit: Duration) -> Result<()> {
        let seen = wait_until(&format!("'{text}' is shown"), limit, || Ok(self.screen().contains(text).then_some(())));
        seen.map_err(|error| anyhow::anyhow!("{error}; the screen shows:\n{}", self.screen()))
    }

    pub fn type_in(&mut self, text: &str) -> Result<()> {
        match &mut self.keyboard {
            Some(keyboard) => Ok(keyboard.write_all(text.as_bytes())?),
            None => bail!("the window is closed"),
        }
    }

    /// Waits for the program's end.
    pub fn finish(&mut self, limit: Duration) -> Result<ExitStatus> {
        let ended = wait_until("the program ends", limit, || Ok(self.child.try_wait()?));
        ended.map_err(|error| anyhow::anyhow!("{error}; the screen shows:\n{}", self.screen()))
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Both ends of a new terminal of 40 lines and 120 columns that belongs to `uid`. No program that is started meanwhile inherits
/// them: a window is closed when nobody else holds it open.
fn open_terminal(uid: u32) -> Result<(File, File)> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let flags = OFlag::O_NOCTTY.bits();
    let slave = File::options().read(true).write(true).custom_flags(flags).open(ptsname_r(&master)?)?;
    fchown(&slave, Some(uid), None)?;
    let size = Command::new("stty").args(["rows", "40", "columns", "120"]).stdin(slave.try_clone()?).status()?;
    ensure!(size.success(), "stty cannot set its size");
    Ok((File::from(master.as_fd().try_clone_to_owned()?), slave))
}

/// Keeps what is shown, until nobody has the terminal open any more or the window is closed.
fn watch(mut output: File, shown: &Screen, wanted: &AtomicBool) {
    let mut buffer = [0; 4096];
    while wanted.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::from(50_u8)) {
            Ok(0) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        // The end is an error, EIO.
        let Ok(read) = output.read(&mut buffer) else { return };
        shown.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..read]);
    }
}
