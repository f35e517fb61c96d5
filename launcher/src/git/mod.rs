//! The host's git directory, kept out of the agent's reach (docs/git.md). `prepare` builds the private git directory that a
//! session's container works on, `import` brings back what was committed there, through one bundle that a container made.
//! Two rules hold everywhere below: git runs on the host only in the user's own git directory, never in a folder that the agent
//! wrote to, and nothing is opened through a path that the agent could have turned into a link.

mod asides;
mod bundle;
mod check;
mod closing;
mod cover;
pub(crate) mod direct;
mod filters;
pub(crate) mod finding;
mod guard;
mod head;
mod import;
mod in_tree;
mod index;
mod intake;
mod landing;
mod ledger;
mod lenders;
mod lfs;
mod names;
mod paths;
mod pin;
mod place;
mod plant;
pub(crate) mod prepare;
mod refs;
pub(crate) mod report;
mod repository;
mod run;
mod settings;
pub(crate) mod walk;
pub(crate) mod watch;
mod watcher;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub(crate) use finding::Finding;
pub(crate) use import::{Limits, import, import_running};
pub(crate) use ledger::{direct as direct_sessions, mounts, set_aside, unimported};
pub(crate) use prepare::{forget, prepare, release};
pub(crate) use refs::head as checked_out;
pub(crate) use report::ImportReport;
pub(crate) use repository::Repository;
pub(crate) use run::Git;
pub(crate) use watcher::Watcher;

/// A repository, its private side and the session that is meant.
#[derive(Clone, Copy)]
pub(crate) struct Site<'a> {
    /// The working tree's top folder, links followed.
    pub(crate) root: &'a Path,
    /// `<state>`: exists, 0700, belongs to the agent's user.
    pub(crate) state: &'a Path,
    /// The session's id: lower-case letters, digits and dashes.
    pub(crate) session: &'a str,
    /// The whole environment for git; it needs PATH, and gets no more than this.
    pub(crate) env: &'a [(OsString, OsString)],
    /// Who shall own what is made here, and run git. Only for a launcher that runs as root for somebody else.
    pub(crate) owner: Option<(u32, u32)>,
    /// Another session of this repository is running: it works in the same private git directory.
    pub(crate) others_live: bool,
}

/// A bind mount of the session's container.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Mount {
    pub(crate) host: PathBuf,
    pub(crate) container: String,
    pub(crate) read_only: bool,
}
