//! The wish to end: a signal to this process, or a file that `pi-subagent cancel` leaves, also from another container.

use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::failure::{Code, Failure, OrFail, Result};

/// Seen by every phase of a run.
#[derive(Clone, Debug)]
pub(crate) struct Cancel {
    wish: watch::Receiver<bool>,
}

impl Cancel {
    /// Listens from now on; must be called inside the runtime. The signals no longer end the process.
    pub(crate) fn listen(request: PathBuf) -> Result<Self> {
        let (send, wish) = watch::channel(false);
        let listen = |kind| signal(kind).or_fail(Code::Internal, || "cannot listen for signals".into());
        let mut term = listen(SignalKind::terminate())?;
        let mut int = listen(SignalKind::interrupt())?;
        let mut hup = listen(SignalKind::hangup())?;
        tokio::spawn(async move {
            let asked = async {
                while !request.exists() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            };
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
                _ = hup.recv() => {}
                () = asked => {}
            }
            let _ = send.send(true);
            // Later signals change nothing; the streams stay, or the default action would come back.
            std::future::pending::<()>().await;
            drop((term, int, hup));
        });
        Ok(Cancel { wish })
    }

    pub(crate) fn requested(&self) -> bool {
        *self.wish.borrow()
    }

    /// Ends when the wish is there.
    pub(crate) async fn wait(&self) {
        let _ = self.wish.clone().wait_for(|wished| *wished).await;
    }

    /// Runs something that may be left half-way without harm.
    pub(crate) async fn or<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.wait() => Err(cancelled()),
            done = work => done,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.requested() { Err(cancelled()) } else { Ok(()) }
    }
}

fn cancelled() -> Failure {
    Failure::new(Code::Cancelled, "cancelled")
}
