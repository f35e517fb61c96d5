//! A task's folder and administration under names that nobody uses, while cleanup looks at them for the last time. Whoever still has
//! the folder open finds no git in it. Where a cleanup was cut off, the next who takes the task's lock puts them back.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::failure::{Code, OrFail, Result};
use crate::worktree::Worktree;

impl Worktree {
    /// Moves it aside; gives it as it is there. The caller holds the task's lock.
    pub(crate) fn set_aside(&self) -> Result<Worktree> {
        let aside = self.aside();
        let moved = rename(&self.path, &aside.path).and_then(|()| rename(&self.admin, &aside.admin));
        if moved.is_err() {
            self.put_back()?;
        }
        moved.map(|()| aside)
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
