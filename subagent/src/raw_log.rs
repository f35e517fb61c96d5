//! What a run of pi leaves on disk of what it said: bounded, and never a reason to stop.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

const RAW_LOG: u64 = 20 << 20;

/// pi's events on disk, at most two files of 20 MB. A full disk ends the log, not the run.
pub(crate) struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
}

impl Log {
    pub(crate) fn open(path: PathBuf) -> Self {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options().append(true).create(true).mode(0o600).open(&path).ok();
        let size = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |meta| meta.len());
        Log { path, file, size }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        if self.size > RAW_LOG {
            let _ = std::fs::rename(&self.path, self.path.with_extension("ndjson.1"));
            *self = Log::open(self.path.clone());
        }
        let written = self.file.as_mut().map(|file| file.write_all(bytes));
        if let Some(Err(_)) = written {
            self.file = None;
        }
        self.size += bytes.len() as u64;
    }
}

/// pi's standard error: the first megabyte on disk, the end of it in memory.
pub(crate) struct Errors {
    log: Log,
    tail: Vec<u8>,
}

impl Errors {
    pub(crate) fn open(path: &Path) -> Self {
        Errors { log: Log::open(path.to_owned()), tail: Vec::new() }
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) {
        if self.log.size < 1 << 20 {
            self.log.write(bytes);
        }
        self.tail.extend_from_slice(bytes);
        let surplus = self.tail.len().saturating_sub(4 << 10);
        self.tail.drain(..surplus);
    }

    pub(crate) fn last(&self) -> String {
        String::from_utf8_lossy(&self.tail).into_owned()
    }
}
