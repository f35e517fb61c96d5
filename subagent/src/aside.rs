//! A task's folder and administration under names that nobody uses, while cleanup looks at them for the last time. Whoever still has
//! the folder open finds no git in it. Where a cleanup was cut off, the next who takes the task's lock puts them back.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::failure::{Code, OrFail, Result};
use crate::worktree::Worktree;

impl Worktree {
    /// Moves it aside; gives it as it is there. The caller holds the task's lock. An administration that a mount holds where it is stays:
    /// in a session with the repository's own git directory, those of earlier sessions are.
    pub(crate) fn set_aside(&self) -> Result<Worktree> {
        let mut aside = self.aside();
        rename(&self.path, &aside.path)?;
        match fs::rename(&self.admin, &aside.admin) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::ResourceBusy => aside.admin.clone_from(&self.admin),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                self.put_back()?;
                return Err(error).or_fail(Code::Kept, || format!("cannot move '{}'", self.admin.display()));
            }
        }
        Ok(aside)
    }

    /// Removes what is left of it when its folder, set aside, has gone. What a mount holds is left to `git worktree prune`.
    pub(crate) fn remove_rest(&self, aside: &Worktree) -> Result<()> {
        self.clear_stale_locks();
        if aside.admin == self.admin {
            self.unlock();
            return Ok(());
        }
        aside.remove()?;
        self.remove_unborn()
    }

    /// Gives back what is aside, if anything is. The caller holds the task's lock.
    pub(crate) fn put_back(&self) -> Result<()> {
        let aside = self.aside();
        rename(&aside.admin, &self.admin)?;
        rename(&aside.path, &self.path)
    }

    /// Whether a cleanup is at its end, or was cut off there.
    pub(crate) fn is_aside(&self) -> bool {
        let aside = self.aside();
        aside.path.exists() || aside.admin.exists()
    }

    /// Both places stay where they are, so links that are relative hold.
    fn aside(&self) -> Worktree {
        let beside =
            |path: &Path| path.with_file_name(format!(".leaving-{}", path.file_name().unwrap_or_default().display()));
        Worktree { path: beside(&self.path), admin: beside(&self.admin), run: self.run.clone() }
    }
}

/// What is not there need not be moved; what is in the way, and not empty, stays.
fn rename(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        moved => moved.or_fail(Code::Kept, || format!("cannot move '{}' to '{}'", from.display(), to.display())),
    }
}
