//! `<state>`, what is kept for one repository from session to session, and the mount point that the sessions of a repository share.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::files::{Maker, lock_file};
use crate::home::Home;
use crate::run_dir;

const MOUNT_POINT: &str = ".worktrees";
/// Says that the mount point in the repository is ours to remove.
const MADE: &str = "made-mount-point";

pub(crate) struct State {
    pub(crate) dir: PathBuf,
    repository_id: String,
    root: PathBuf,
}

impl State {
    pub(crate) fn new(home: &Home, repository_id: &str, root: &Path) -> State {
        State { dir: home.state(repository_id), repository_id: repository_id.to_owned(), root: root.to_owned() }
    }

    /// Makes the folders, and in the repository the mount point of the worktrees if it has none: the engine would make it as root.
    /// The session's own folder has to exist, so that the end of another session leaves the mount point alone.
    pub(crate) fn prepare(&self, maker: Maker) -> Result<()> {
        maker.dirs(&self.dir.join("worktrees"))?;
        maker.dirs(&self.dir.join("sessions"))?;
        let lock = lock_file(&self.dir.join("lock"))?;
        lock.lock().context("cannot lock the state of the repository")?;
        let point = self.root.join(MOUNT_POINT);
        match point.symlink_metadata() {
            Ok(meta) if meta.is_dir() => Ok(()),
            Ok(_) => bail!("cannot use '{}': it is not a folder", point.display()),
            Err(_) => {
                maker.dir(&point)?;
                fs::write(self.dir.join(MADE), "")
                    .with_context(|| format!("cannot write into '{}'", self.dir.display()))
            }
        }
    }

    /// Removes the mount point if it was made by a session and no session but `session` uses it.
    pub(crate) fn release(&self, home: &Home, session: &str) -> Result<()> {
        let lock = lock_file(&self.dir.join("lock"))?;
        lock.lock().context("cannot lock the state of the repository")?;
        let made = self.dir.join(MADE);
        if !made.exists() || self.is_used(home, session)? {
            return Ok(());
        }
        let point = self.root.join(MOUNT_POINT);
        match fs::remove_dir(&point) {
            Ok(()) => {}
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory
                ) => {}
            Err(e) => return Err(e).with_context(|| format!("cannot remove '{}'", point.display())),
        }
        fs::remove_file(&made).with_context(|| format!("cannot remove '{}'", made.display()))
    }

    fn is_used(&self, home: &Home, but: &str) -> Result<bool> {
        let _starting = run_dir::lock_runs(home)?;
        // A session without a launcher counts too: its container may still run.
        let mut found = run_dir::list(home).into_iter();
        Ok(found.any(|found| found.record.repository_id == self.repository_id && found.record.session != but))
    }
}
