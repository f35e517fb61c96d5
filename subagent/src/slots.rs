//! How many agents run at once, over all processes: a numbered file lock for each that may run, and tickets for those that
//! wait, served in the order they came. The dead hold no lock, so they hold nobody up.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::failure::{Code, Failure, OrFail, Result};
use crate::store::{Lock, make_dir};

const POLL: Duration = Duration::from_millis(100);

/// A place among those that run, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    _lock: Lock,
}

/// A place in the queue; its file goes with it.
struct Ticket {
    path: PathBuf,
    number: u64,
    _lock: Lock,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes a slot. `queued` is told the position, 1 for the next in line, whenever it changes. Without `wait` a full house is
/// a failure.
pub(crate) async fn take(state: &Path, count: usize, wait: bool, mut queued: impl FnMut(usize)) -> Result<Slot> {
    let dir = state.join("slots");
    make_dir(&dir.join("queue"))?;
    let ticket = draw(&dir).await?;
    let mut told = 0;
    loop {
        let position = position(&dir, &ticket)?;
        if position == 1 {
            for number in 1..=count {
                if let Some(lock) = Lock::try_take(&dir.join(number.to_string()))? {
                    return Ok(Slot { _lock: lock });
                }
            }
        }
        if !wait {
            return Err(Failure::new(Code::NoSlot, format!("cannot start now: all {count} places are taken"))
                .hint("wait for one to end, or leave out --no-wait-slot"));
        }
        if position != told {
            told = position;
            queued(position);
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn draw(dir: &Path) -> Result<Ticket> {
    let _numbering = Lock::take(&dir.join("numbering"), Duration::from_secs(30)).await?;
    let number = tickets(dir)?.last().map_or(1, |last| last + 1);
    let path = dir.join("queue").join(number.to_string());
    let lock = Lock::try_take(&path)?;
    let lock = lock.ok_or_else(|| Failure::new(Code::Internal, "cannot draw a number: it is taken"))?;
    Ok(Ticket { path, number, _lock: lock })
}

/// 1 and the number of living tickets before this one. Removes those of the dead.
fn position(dir: &Path, mine: &Ticket) -> Result<usize> {
    let mut position = 1;
    for number in tickets(dir)?.into_iter().take_while(|number| *number < mine.number) {
        let path = dir.join("queue").join(number.to_string());
        // A file that is gone by now is made again by the attempt, and removed at once.
        match Lock::try_take(&path)? {
            Some(_dead) => {
                let _ = fs::remove_file(&path);
            }
            None => position += 1,
        }
    }
    Ok(position)
}

fn tickets(dir: &Path) -> Result<Vec<u64>> {
    let queue = dir.join("queue");
    let entries = fs::read_dir(&queue).or_fail(Code::Setup, || format!("cannot read '{}'", queue.display()))?;
    let mut numbers: Vec<u64> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}
