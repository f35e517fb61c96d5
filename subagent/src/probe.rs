//! How much the agent has changed so far, for the progress line: asked of git now and then, never more than a tenth of the
//! time, and never in the agent's way (git takes no lock for it).

use std::pin::Pin;
use std::time::{Duration, Instant};

use crate::git::Git;
use crate::report::DiffStat;

type Asking = Pin<Box<dyn Future<Output = Option<DiffStat>>>>;

pub(crate) struct Probe {
    git: Git,
    base: String,
    asking: Option<(Asking, Instant)>,
    next: Instant,
    pub(crate) last: Option<DiffStat>,
}

const EVERY: Duration = Duration::from_secs(2);

impl Probe {
    pub(crate) fn new(git: Git, base: &str) -> Self {
        Probe { git, base: base.to_owned(), asking: None, next: Instant::now() + EVERY, last: None }
    }

    /// Starts asking if it is time to.
    pub(crate) fn tick(&mut self) {
        if self.asking.is_none() && Instant::now() >= self.next {
            let (git, base) = (self.git.clone(), self.base.clone());
            self.asking = Some((Box::pin(async move { diff_stat(&git, &base).await }), Instant::now()));
        }
    }

    /// Waits for the answer; for ever if nothing was asked. Says whether it is another one than before.
    pub(crate) async fn answer(&mut self) -> bool {
        let Some((asking, since)) = &mut self.asking else { return std::future::pending().await };
        let answer = asking.await;
        self.next = Instant::now() + EVERY.max(since.elapsed() * 10);
        self.asking = None;
        let changed = answer.is_some() && answer != self.last;
        self.last = answer.or(self.last);
        changed
    }

    pub(crate) fn stop(&mut self) {
        self.asking = None;
    }
}

/// Files and lines that differ between two commits, or between one and the worktree. Asked of git, because libgit2 would
/// load both sides of a large file.
pub(crate) async fn diff_stat(git: &Git, range: &str) -> Option<DiffStat> {
    let text = git.text(&["diff", "--shortstat", "--no-ext-diff", "--no-textconv", range, "--"]).await.ok()?;
    Some(parse(&text))
}

/// ` 3 files changed, 40 insertions(+), 2 deletions(-)`, each part only if it is not 0.
fn parse(text: &str) -> DiffStat {
    let count = |word: &str| {
        let part = text.split(',').find(|part| part.contains(word));
        part.and_then(|part| part.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    DiffStat { files: count("file"), add: count("insertion"), del: count("deletion") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_git_are_read_whichever_are_there() {
        let stat = |files, add, del| DiffStat { files, add, del };
        assert_eq!(parse(" 3 files changed, 40 insertions(+), 2 deletions(-)"), stat(3, 40, 2));
        assert_eq!(parse(" 1 file changed, 1 deletion(-)"), stat(1, 0, 1));
        assert_eq!(parse(""), stat(0, 0, 0));
    }
}
