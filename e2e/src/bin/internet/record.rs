//! The record of what was asked: one JSON object a line in `requests.ndjson`, written when the answer's status is known.
//! It never holds a secret: known ones are replaced wherever they turn up, and credentials are recorded as a label only.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

pub(crate) struct Record {
    dir: PathBuf,
    file: Mutex<File>,
    secrets: Mutex<Vec<String>>,
}

/// One request. `ts` is its arrival in microseconds since the epoch; `sni` is there when it differs from `host`.
#[derive(Serialize)]
pub(crate) struct Entry<'a> {
    pub(crate) ts: u64,
    pub(crate) host: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sni: Option<&'a str>,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) status: u16,
    pub(crate) auth: &'a str,
    pub(crate) body: Value,
}

/// Microseconds since the epoch.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

impl Record {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("requests.ndjson");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write '{}'", path.display()))?;
        Ok(Self { dir: dir.to_owned(), file: Mutex::new(file), secrets: Mutex::new(Vec::new()) })
    }

    /// Tells whoever waits for it that requests are answered from now on.
    pub(crate) fn ready(&self) -> Result<()> {
        fs::write(self.dir.join("ready"), "").context("cannot say that the internet is ready")
    }

    /// From now on each of `secrets` is written as `[secret]`.
    pub(crate) fn hide(&self, secrets: impl IntoIterator<Item = String>) {
        let mut known = lock(&self.secrets);
        for secret in secrets {
            if !secret.is_empty() && !known.contains(&secret) {
                known.push(secret);
            }
        }
    }

    pub(crate) fn request(&self, entry: &Entry) {
        let mut line = serde_json::to_string(entry).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
        for secret in lock(&self.secrets).iter() {
            line = line.replace(secret.as_str(), "[secret]");
        }
        line.push('\n');
        if let Err(error) = lock(&self.file).write_all(line.as_bytes()) {
            eprintln!("internet: cannot write the record: {error}");
        }
    }

    /// What was no HTTP request: a DNS query, a broken greeting, a connection to another port.
    pub(crate) fn event(&self, ts: u64, method: &str, host: &str, path: &str) {
        self.request(&Entry { ts, host, sni: None, method, path, status: 0, auth: "none", body: Value::Null });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
