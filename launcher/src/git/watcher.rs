//! The watch over a working tree, in a thread of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::finding::Finding;
use super::watch::Watch;

/// Between two looks: this, or eight times as long as the last one took.
const PAUSE: Duration = Duration::from_millis(400);

/// Looks from time to time. It ends when this is dropped.
pub(crate) struct Watcher {
    ready: Receiver<()>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Watch>>,
}

impl Watcher {
    /// Starts to look. What is there before `wait_until_ready` returns is the user's; what is found later goes to `tell` at once.
    pub(crate) fn start(
        root: &Path,
        programs: Vec<PathBuf>,
        tell: impl Fn(&Finding) + Send + 'static,
    ) -> Result<Watcher> {
        let mut watch = Watch::open(root).with_context(|| format!("cannot open '{}'", root.display()))?;
        let (is_ready, ready) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            watch.begin(&programs);
            let _ = is_ready.send(());
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                watch.look().iter().for_each(&tell);
                std::thread::park_timeout(PAUSE.max(begun.elapsed() * 8));
            }
            watch
        };
        let thread =
            std::thread::Builder::new().name("watch".to_owned()).spawn(run).context("cannot start a thread")?;
        Ok(Watcher { ready, stop, thread: Some(thread) })
    }

    /// Returns when the first look is over. The container must not run before.
    pub(crate) fn wait_until_ready(&self) {
        let _ = self.ready.recv();
    }

    /// Ends it with a last look, and returns everything that was found since it began.
    pub(crate) fn finish(mut self) -> Vec<Finding> {
        let Some(mut watch) = self.stop() else { return Vec::new() };
        watch.look();
        watch.found().collect()
    }

    fn stop(&mut self) -> Option<Watch> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take()?;
        thread.thread().unpark();
        thread.join().ok()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
