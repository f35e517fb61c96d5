//! The names of everything on the private side: on the host below `<state>`, in the container below `/run/pi-git`.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub(crate) const WORKSPACE: &str = "/workspace";
/// Where the private git directory is if `.git` is a file that names it.
pub(crate) const APART: &str = "/run/pi-git/dir";

/// The private git directory; its parts for submodules are below `modules` in it.
pub(crate) fn private(state: &Path) -> PathBuf {
    state.join("git")
}

/// What the private git directory had before it was written anew: one generation.
pub(crate) fn previous(state: &Path) -> PathBuf {
    state.join("git-previous")
}

pub(crate) fn worktrees(state: &Path) -> PathBuf {
    state.join("worktrees")
}

/// An empty file, to hide one.
pub(crate) fn empty(state: &Path) -> PathBuf {
    state.join("git-own/empty")
}

/// A `.git` file for the container.
pub(crate) fn git_file(state: &Path, key: &str) -> PathBuf {
    state.join("git-own").join(format!("file-{}", short_hash(key)))
}

/// Copies of annotated tags: small objects that only a reference holds, and that nothing else can pin.
pub(crate) fn tags(state: &Path, key: &str) -> PathBuf {
    state.join("git-own").join(format!("tags-{}", short_hash(key)))
}

/// A scratch copy of an index.
pub(crate) fn scratch_index(state: &Path, key: &str) -> PathBuf {
    state.join("git-own").join(format!("index-{}", short_hash(key)))
}

/// In the container: the folder of the `number`th store of objects.
pub(crate) fn store(number: usize) -> String {
    format!("/run/pi-git/{number}")
}

/// A path of the working tree in the container. `None` if it is not UTF-8.
pub(crate) fn in_container(path: &Path) -> Option<String> {
    Some(Path::new(WORKSPACE).join(path).to_str()?.trim_end_matches('/').to_owned())
}

fn short_hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}
