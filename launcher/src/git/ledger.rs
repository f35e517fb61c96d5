//! What the launcher knows about a private side, in `<state>/git.json`, out of the agent's reach: which sessions have not been fetched
//! yet, what both sides agreed on last, what is pinned on the host for it, and a checkout that is being moved.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::refs::Head;
use super::{Mount, Site};

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ledger {
    /// Sessions that were prepared and whose commits have not been fetched.
    pub(crate) open: Vec<String>,
    /// The private git directory is being written: not to be trusted until this is done again.
    pub(crate) building: bool,
    /// The names below `refs/pi/keep/` that belong to this private side.
    pub(crate) pins: Vec<String>,
    pub(crate) mounts: Vec<Mount>,
    /// What the host's git uses in the tree.
    #[serde(default)]
    pub(crate) programs: Vec<PathBuf>,
    /// What was made in the working tree to mount onto, from its top.
    pub(crate) made: Vec<PathBuf>,
    /// By their folder below `modules` of the private git directory; the repository itself is "".
    pub(crate) repositories: BTreeMap<String, Known>,
    /// Former private sides that were moved away.
    pub(crate) aside: Vec<Aside>,
    /// Folders outside the repository that it was known to borrow objects from; `None` if no session has been here.
    #[serde(default)]
    pub(crate) lenders: Option<BTreeSet<PathBuf>>,
    /// A session with --git=direct has been here: whatever the repository's own git directory says may be an agent's.
    #[serde(default)]
    pub(crate) direct: bool,
    /// Sessions with --git=direct that have not ended.
    #[serde(default)]
    pub(crate) direct_open: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The working tree, from the top of the repository's; empty for the repository itself.
    pub(crate) path: PathBuf,
    pub(crate) git_dir: PathBuf,
    pub(crate) common_dir: PathBuf,
    /// Branches and tags, by full name, as both sides had them last.
    pub(crate) synced: BTreeMap<String, String>,
    pub(crate) head: Head,
    /// What was staged on the host when the session began, as a tree.
    pub(crate) index_tree: Option<String>,
    /// References that only the private side has, to be kept there.
    pub(crate) retained: BTreeMap<String, String>,
    /// A checked-out branch that is being moved.
    pub(crate) moving: Option<Moving>,
}

/// A checkout on its way from one commit to another: written before the first step, removed after the last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Moving {
    pub(crate) from: Head,
    pub(crate) to: Head,
    /// The new index, in the git directory, until it takes the index's place.
    pub(crate) index: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Aside {
    pub(crate) folder: PathBuf,
    pub(crate) pins: Vec<String>,
}

const FILE: &str = "git.json";

/// Held while a private side is changed; launchers wait for each other here.
pub(crate) struct Lock {
    _file: File,
}

pub(crate) fn lock(site: &Site) -> Result<Lock> {
    let path = site.state.join("git.lock");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.with_context(|| format!("cannot open '{}'", path.display()))?;
    give(&file, site.owner)?;
    file.lock().with_context(|| format!("cannot lock '{}'", path.display()))?;
    Ok(Lock { _file: file })
}

impl Ledger {
    /// The ledger, empty if there is none. A damaged one is an error.
    pub(crate) fn load(state: &Path) -> Result<Ledger> {
        let path = state.join(FILE);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("cannot read '{}'", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Ledger::default()),
            Err(e) => Err(e).with_context(|| format!("cannot read '{}'", path.display())),
        }
    }

    /// In place of a damaged one: what was known is not known any more, and an agent may have been here.
    fn lost() -> Ledger {
        Ledger { lenders: Some(BTreeSet::new()), direct: true, ..Ledger::default() }
    }

    /// Replaces the ledger on disk, whole or not at all.
    pub(crate) fn save(&self, site: &Site) -> Result<()> {
        let path = site.state.join(FILE);
        let new = path.with_extension("json.new");
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            give(&file, site.owner)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_data()?;
            fs::rename(&new, &path)
        };
        write().with_context(|| format!("cannot write '{}'", path.display()))
    }
}

/// The sessions that were prepared here and whose commits have not been fetched. Some of them may still be running.
pub(crate) fn unimported(state: &Path) -> Result<Vec<String>> {
    Ok(Ledger::load(state)?.open)
}

/// The sessions with --git=direct that have not ended. Some of them may have been killed.
pub(crate) fn direct(state: &Path) -> Result<Vec<String>> {
    Ok(Ledger::load(state)?.direct_open)
}

/// The mounts of the private side as it was prepared last, for a container that hands out what is there.
pub(crate) fn mounts(state: &Path) -> Result<Vec<Mount>> {
    Ok(Ledger::load(state)?.mounts)
}

/// Moves a private side away that cannot be fetched from, so that a session can start; nothing of it is deleted, and what it borrows
/// stays pinned as long as the folder is there. Returns where it is now, or `None` if there was none.
pub(crate) fn set_aside(site: &Site) -> Result<Option<PathBuf>> {
    let _lock = lock(site)?;
    if site.others_live {
        bail!("cannot move the private git directory away: another session works in it");
    }
    set_aside_locked(site)
}

pub(crate) fn set_aside_locked(site: &Site) -> Result<Option<PathBuf>> {
    let mut ledger = Ledger::load(site.state).unwrap_or_else(|_| Ledger::lost());
    let mut folder = None;
    for name in ["git", "worktrees"] {
        let from = site.state.join(name);
        if from.symlink_metadata().is_err() || name == "worktrees" && is_empty(&from) {
            continue;
        }
        let to = match &folder {
            Some(folder) => folder,
            None => folder.insert(new_aside(site)?),
        };
        fs::rename(&from, to.join(name)).with_context(|| format!("cannot move '{}'", from.display()))?;
    }
    if let Some(folder) = &folder {
        ledger.aside.push(Aside { folder: folder.clone(), pins: std::mem::take(&mut ledger.pins) });
    }
    let Ledger { aside, made, lenders, direct, direct_open, .. } = ledger;
    Ledger { aside, made, lenders, direct, direct_open, ..Ledger::default() }.save(site)?;
    Ok(folder)
}

fn new_aside(site: &Site) -> Result<PathBuf> {
    for number in 1..1000 {
        let folder = site.state.join(format!("aside-{number}"));
        match fs::create_dir(&folder) {
            Ok(()) => {
                if let Some((uid, gid)) = site.owner {
                    std::os::unix::fs::chown(&folder, Some(uid), Some(gid))?;
                }
                return Ok(folder);
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(|| format!("cannot make '{}'", folder.display())),
        }
    }
    bail!("cannot make '{}': too many of them", site.state.join("aside-1000").display())
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Gives a file to the agent's user, if the launcher is somebody else.
pub(crate) fn give(file: &File, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    match owner {
        Some((uid, gid)) => fchown(file, Some(uid), Some(gid)),
        None => Ok(()),
    }
}
