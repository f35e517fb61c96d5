//! `.worktreeinclude`: files that git ignores and a build needs all the same (`.env`, `node_modules`) are copied from the
//! checkout a task is started from. A file is copied if a pattern of that file matches it and git ignores it, so nothing
//! that is copied can end up in a commit by itself. Links are copied as links; nothing outside the checkout is read.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Component, Path};

use crate::failure::Result;
use crate::git::Git;

const NAME: &str = ".worktreeinclude";

/// Copies from one checkout into another; gives what could not be copied.
pub(crate) async fn copy(from: &Path, to: &Path) -> Result<Vec<String>> {
    if !from.join(NAME).is_file() {
        return Ok(Vec::new());
    }
    let git = Git::at(from);
    let patterns = format!("--exclude-from={NAME}");
    let args = ["ls-files", "--others", "--ignored", "--directory", "--full-name", "-z", &patterns];
    let matching = git.run(&args).await?;
    if matching.is_empty() {
        return Ok(Vec::new());
    }
    // Its status is 1 if it ignores none of them.
    let ignored = git.run_with(&["check-ignore", "--stdin", "-z"], &matching).await.unwrap_or_default();
    let mut problems = Vec::new();
    for name in ignored.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = Path::new(OsStr::from_bytes(name));
        let inside = name.components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || name.starts_with(".worktrees") || name.starts_with(".git") {
            continue;
        }
        if let Some(parent) = to.join(name).parent() {
            let _ = fs::create_dir_all(parent);
        }
        if let Err(error) = copy_any(&from.join(name), &to.join(name)) {
            problems.push(format!("'{}': {}", name.display(), crate::failure::cause(&error.to_string())));
        }
    }
    Ok(problems)
}

fn copy_any(from: &Path, to: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(from)?.file_type();
    if kind.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if kind.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_any(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if kind.is_file() {
        // Shares the blocks where the file system can.
        fs::copy(from, to)?;
    }
    Ok(())
}
