//! stdout as a reader may leave it: closed, or open and never read. Lines go through a thread of their own, so that whoever
//! reads slowly slows nothing down; what is only progress is dropped when too much waits.

use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, Instant};

/// Lines that may wait.
const WAITING: usize = 64;
/// For a reader to take the last lines.
const PATIENCE: Duration = Duration::from_secs(3);

/// Writes lines in order.
pub(crate) struct Out {
    lines: Option<SyncSender<String>>,
    done: Receiver<()>,
}

impl Out {
    pub(crate) fn start() -> Self {
        let (lines, queue) = sync_channel::<String>(WAITING);
        let (over, done) = channel();
        std::thread::spawn(move || {
            for line in queue {
                let mut stdout = std::io::stdout().lock();
                if stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).is_err() {
                    break;
                }
            }
            let _ = over.send(());
        });
        Out { lines: Some(lines), done }
    }

    /// Hands a line over; one that may be missed is dropped rather than waited for.
    pub(crate) fn line(&mut self, line: String, may_be_missed: bool) {
        let Some(lines) = &self.lines else { return };
        let deadline = Instant::now() + PATIENCE;
        let mut line = line;
        loop {
            match lines.try_send(line) {
                Ok(()) => return,
                Err(TrySendError::Full(again)) if !may_be_missed && Instant::now() < deadline => {
                    line = again;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TrySendError::Full(_)) if may_be_missed => return,
                Err(_) => {
                    self.lines = None;
                    return;
                }
            }
        }
    }

    /// Waits until everything is written, or nobody reads any more.
    pub(crate) fn finish(&mut self) {
        if self.lines.take().is_none() {
            return;
        }
        let _ = self.done.recv_timeout(PATIENCE);
    }
}
