//! Cleaning up after a session: the same steps for one that has just ended and, at the next start, for one whose launcher died.

use anyhow::{Context, Result};

use crate::credentials::wipe_if_unchanged;
use crate::docker::Docker;
use crate::home::Home;
use crate::run_dir::{self, Found, Record};
use crate::state::State;
use crate::terminal::{Terminal, printable};

/// The sessions whose launcher is gone.
pub(crate) struct Orphans(Vec<Found>);

impl Orphans {
    pub(crate) fn find(home: &Home) -> Result<Orphans> {
        if !home.runs().is_dir() {
            return Ok(Orphans(Vec::new()));
        }
        let _starting = run_dir::lock_runs(home)?;
        Ok(Orphans(run_dir::list(home).into_iter().filter(|found| found.orphaned.is_some()).collect()))
    }

    /// Empties auth.json where one of them has left its login behind. Needs no engine.
    pub(crate) fn wipe(&self, terminal: &Terminal) -> Result<()> {
        for found in &self.0 {
            if wipe(&found.record)? {
                let path = found.record.auth.display().to_string();
                terminal.say(&format!(
                    "session {} did not end by itself: emptied '{}'",
                    found.record.session,
                    printable(&path)
                ));
            }
        }
        Ok(())
    }

    /// Ends what still runs of them and removes what they left. What fails is said and left for the next start.
    pub(crate) fn remove(self, home: &Home, docker: &Docker, terminal: &Terminal) {
        for found in self.0 {
            // It may be running still, and pi may have something to save. None of this name is what is hoped for.
            let _ = docker.stop(&found.record.container);
            let removed = docker.remove_project(&found.record.project).and_then(|()| {
                State::new(home, &found.record.repository_id, &found.record.root)
                    .release(home, &found.record.session)?;
                std::fs::remove_dir_all(&found.path)
                    .with_context(|| format!("cannot remove '{}'", found.path.display()))
            });
            match removed {
                Ok(()) => terminal.say(&format!("session {} did not end by itself: cleaned up", found.record.session)),
                Err(e) => terminal.warn(&format!("{e:#}"), "the next start tries again"),
            }
        }
    }
}

/// Empties the session's auth.json on the host if it still holds what the session found there, unless it is to be kept.
/// True if it was emptied now.
pub(crate) fn wipe(record: &Record) -> Result<bool> {
    match &record.auth_digest {
        Some(digest) if !record.keep_auth => {
            wipe_if_unchanged(&record.auth, digest).with_context(|| format!("cannot empty '{}'", record.auth.display()))
        }
        _ => Ok(false),
    }
}
