//! What is found in a working tree while an agent works in it, as it is said to the user.

use std::fmt;
use std::path::{Path, PathBuf};

use super::report::printable;

/// Something in the working tree that the host's git would obey. The paths are from its top.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Finding {
    /// A repository in this folder that was not there when the session began.
    Repository(PathBuf),
    /// This folder is a repository by itself, without a working tree.
    Bare(PathBuf),
    /// A file of a repository that was there, by which it can be made to run something.
    Changed(PathBuf),
    /// A program or configuration in the tree that the host's git uses.
    Program(PathBuf),
    /// A folder that was open to a look, or was not there, and is closed now: git run in it obeys what nobody sees.
    Unreadable(PathBuf),
    /// There are more folders, more names in one, or more of them in each other than are looked at.
    TooMany,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |path: &Path| match path.as_os_str().is_empty() {
            true => ".".to_owned(),
            false => printable(&path.to_string_lossy()),
        };
        match self {
            Finding::Repository(path) => {
                write!(f, "a repository has appeared in '{}': git run on the host in there obeys it", shown(path))
            }
            Finding::Bare(path) => {
                write!(f, "'{}' has become a git directory: git run on the host in there obeys it", shown(path))
            }
            Finding::Changed(path) => write!(f, "'{}' has changed: the host's git obeys it", shown(path)),
            Finding::Program(path) => {
                write!(f, "'{}' has changed: the host's git is configured to use it", shown(path))
            }
            Finding::Unreadable(path) => {
                write!(f, "'{}' cannot be looked into any more: git run on the host in there may obey it", shown(path))
            }
            Finding::TooMany => {
                write!(
                    f,
                    "too many folders, or names in one, or folders in each other: not all are watched for repositories"
                )
            }
        }
    }
}
