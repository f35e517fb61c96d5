//! `<run>`, the folder of one session: its secrets, its overlay, its control files, and the record of whose it is.
//! A lock on that record lives as long as the launcher does; when it is free, the launcher is gone and the folder is to be reaped.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::files::{Maker, lock_file, set_mode};
use crate::home::Home;

/// What the next start has to know if this launcher dies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) pid: u32,
    pub(crate) session: String,
    pub(crate) project: String,
    pub(crate) container: String,
    pub(crate) repository_id: String,
    pub(crate) root: PathBuf,
    /// auth.json on the host, and the SHA-256 of the login that was found in it.
    pub(crate) auth: PathBuf,
    pub(crate) auth_digest: Option<String>,
    pub(crate) keep_auth: bool,
    /// Who the agent runs as.
    pub(crate) user: (u32, u32),
    /// When it began, in seconds since 1970.
    pub(crate) started: u64,
}

impl Record {
    /// The container of its proxy, as docker compose names it.
    pub(crate) fn proxy(&self) -> String {
        format!("{}-proxy-1", self.project)
    }

    /// Whether it is a login or a trial.
    pub(crate) fn has_no_repository(&self) -> bool {
        self.repository_id.is_empty()
    }
}

pub(crate) struct RunDir {
    pub(crate) path: PathBuf,
    pub(crate) record: Record,
    /// Held until the end.
    _lock: File,
}

/// A session's folder that was found.
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) record: Record,
    /// The lock, if nobody held it: the session's launcher is gone.
    pub(crate) orphaned: Option<File>,
}

/// What a session's secrets.json holds.
pub(crate) struct Secrets {
    pub(crate) github: Option<(String, String)>,
    pub(crate) auth: serde_json::Map<String, Value>,
}

impl Secrets {
    pub(crate) fn to_json(&self) -> Value {
        let github = self.github.as_ref().map(|(host, token)| json!({ "host": host, "token": token }));
        json!({ "github": github, "auth": self.auth })
    }
}

impl RunDir {
    /// Makes the folder and takes its lock.
    pub(crate) fn create(home: &Home, record: Record, maker: Maker) -> Result<RunDir> {
        let runs = home.runs();
        maker.dirs(&runs)?;
        let _starting = lock_runs(home)?;
        let path = runs.join(&record.session);
        maker.dir(&path)?;
        let mut owner = maker.file(&path.join("owner"), serde_json::to_string(&record)?.as_bytes())?;
        owner.try_lock().map_err(|e| anyhow!("cannot lock '{}': {e}", path.display()))?;
        owner.flush()?;
        Ok(RunDir { path, record, _lock: owner })
    }

    /// Fills the folder that PID 1 reads: secrets and git configuration; `agent` is filled by its own module.
    pub(crate) fn write_in(
        &self,
        maker: Maker,
        secrets: &Secrets,
        gitconfig: &str,
        gitignore: &str,
    ) -> Result<PathBuf> {
        let dir = self.path.join("in");
        maker.dir(&dir)?;
        maker.file(&dir.join("secrets.json"), secrets.to_json().to_string().as_bytes())?;
        maker.file(&dir.join("gitconfig"), gitconfig.as_bytes())?;
        maker.file(&dir.join("gitignore"), gitignore.as_bytes())?;
        Ok(dir)
    }

    /// Makes the folder that both sides write to, with a first sign of life.
    pub(crate) fn write_control(&self, maker: Maker) -> Result<PathBuf> {
        let dir = self.path.join("control");
        maker.dir(&dir)?;
        maker.file(&dir.join("heartbeat"), format!("{:020}\n", 0).as_bytes())?;
        Ok(dir)
    }

    /// Makes squid's folder; squid is another user, and nothing in it is secret.
    pub(crate) fn write_squid(&self, maker: Maker, allow: &str, local: &[u8]) -> Result<()> {
        let dir = self.path.join("squid");
        maker.dir(&dir)?;
        for (name, content) in [("allow.txt", allow.as_bytes()), ("local.conf", local)] {
            maker.file(&dir.join(name), content)?;
            set_mode(&dir.join(name), 0o644)?;
        }
        set_mode(&dir, 0o755)
    }

    pub(crate) fn write_overlay(&self, maker: Maker, overlay: &str) -> Result<()> {
        maker.file(&self.path.join("compose.json"), overlay.as_bytes()).map(drop)
    }

    /// What PID 1 said at its end, if it came to it.
    pub(crate) fn result(&self) -> Option<Value> {
        let mut text = Vec::new();
        File::open(self.path.join("control/result.json")).ok()?.take(64 << 10).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub(crate) fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.path).with_context(|| format!("cannot remove '{}'", self.path.display()))
    }
}

/// Whether pi ran in the session whose folder this is: PID 1 says so as soon as it does.
pub(crate) fn began(run: &Path) -> bool {
    run.join("control/ready").exists()
}

/// Keeps starts and clean-ups apart: nobody sees a folder whose lock is not yet taken.
pub(crate) fn lock_runs(home: &Home) -> Result<File> {
    let lock = lock_file(&home.runs().join(".lock"))?;
    lock.lock().with_context(|| format!("cannot lock '{}'", home.runs().display()))?;
    Ok(lock)
}

/// Every session's folder, in no order. The caller holds `lock_runs`.
pub(crate) fn list(home: &Home) -> Vec<Found> {
    let entries = fs::read_dir(home.runs()).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name() != ".lock").filter_map(|entry| look(&entry.path())).collect()
}

/// The sessions that have their launcher.
pub(crate) fn running(home: &Home) -> Result<Vec<(Record, PathBuf)>> {
    if !home.runs().is_dir() {
        return Ok(Vec::new());
    }
    let _starting = lock_runs(home)?;
    Ok(list(home)
        .into_iter()
        .filter(|found| found.orphaned.is_none())
        .map(|found| (found.record, found.path))
        .collect())
}

fn look(path: &Path) -> Option<Found> {
    if !path.symlink_metadata().ok()?.is_dir() {
        return None;
    }
    let Ok(mut owner) = File::open(path.join("owner")) else {
        // Made by a start that went no further.
        let _ = fs::remove_dir_all(path);
        return None;
    };
    let free = owner.try_lock().is_ok();
    let mut text = String::new();
    owner.read_to_string(&mut text).ok()?;
    owner.rewind().ok()?;
    match serde_json::from_str(&text) {
        Ok(record) => Some(Found { path: path.to_owned(), record, orphaned: free.then_some(owner) }),
        Err(_) if free => {
            let _ = fs::remove_dir_all(path);
            None
        }
        Err(_) => None,
    }
}
