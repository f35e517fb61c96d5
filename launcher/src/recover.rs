//! Cleaning up after a session: the same steps for one that has just ended and, at the next start, for one whose launcher died.

use std::path::Path;

use anyhow::{Context, Result};

use crate::allowlist;
use crate::credentials::{read_bounded, wipe_if_unchanged};
use crate::denied::{self, Denial};
use crate::docker::Docker;
use crate::exit_report::Report;
use crate::home::Home;
use crate::inputs;
use crate::run_dir::{self, Found, Record};
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

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of one repository; of all without one.
    pub(crate) fn of(mut self, repository: Option<&str>) -> Orphans {
        self.0.retain(|found| repository.is_none_or(|id| id == found.record.repository_id));
        self
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.0.iter().map(|found| &found.record)
    }

    /// Empties auth.json where one of them has left its login behind. Needs no engine.
    pub(crate) fn wipe(&self, terminal: &Terminal) -> Result<()> {
        for found in &self.0 {
            if wipe(&found.record, &found.path)? {
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

    /// Ends what still runs of them and removes what they left. What fails is said and left for the next start. True if nothing did.
    pub(crate) fn remove(self, home: &Home, docker: &Docker, terminal: &Terminal) -> bool {
        let mut all = true;
        for found in self.0 {
            // It may be running still, and pi may have something to save. None of this name is what is hoped for.
            let _ = docker.stop(&found.record.container);
            if !found.record.has_no_repository() {
                Report::collect(&docker.logs(&found.record.proxy()), &found.record, &found.path)
                    .keep(home, &found.record);
                keep_logs(docker, home, &found.record, &found.path);
            }
            // What was committed in it is fetched at the next start in its repository: it is safe on the private side.
            let removed = docker.remove_project(&found.record.project).and_then(|()| {
                std::fs::remove_dir_all(&found.path)
                    .with_context(|| format!("cannot remove '{}'", found.path.display()))
            });
            match removed {
                Ok(()) => terminal.say(&format!("session {} did not end by itself: cleaned up", found.record.session)),
                Err(e) => {
                    all = false;
                    terminal.warn(&format!("{e:#}"), "the next start tries again");
                }
            }
        }
        all
    }
}

/// Keeps what `pi-docker denied` and `pi-docker logs` show of a session that has ended. A session does not fail by it.
pub(crate) fn keep_logs(docker: &Docker, home: &Home, record: &Record, run: &Path) {
    let state = home.state(&record.repository_id);
    let squid = docker.logs(&record.proxy());
    let allowed = inputs::read_list(&run.join("squid/allow.txt")).map(allowlist::merge).unwrap_or_default();
    let denials = squid.lines().filter_map(|line| Denial::parse(line, &allowed));
    let _ = denied::keep(&home.join("denied.log"), &denied::group(denials, &record.repository_id, &record.session));
    let log = read_bounded(&run.join("control/log"), 2 << 20).unwrap_or_default();
    let _ = std::fs::write(state.join("last.log"), log);
}

/// Empties the session's auth.json on the host if it still holds what the session found there, unless it is to be kept, or pi never
/// ran in the session, whose folder is `run`. True if it was emptied now.
pub(crate) fn wipe(record: &Record, run: &Path) -> Result<bool> {
    match &record.auth_digest {
        Some(digest) if !record.keep_auth && run_dir::began(run) => {
            wipe_if_unchanged(&record.auth, digest).with_context(|| format!("cannot empty '{}'", record.auth.display()))
        }
        _ => Ok(false),
    }
}
