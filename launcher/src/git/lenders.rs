//! Whose objects a session may read. A repository says it in its git directory (`objects/info/alternates`, the `.git` file of a submodule),
//! so whoever can write there decides which folders of the host the next container sees. What an agent may have written is not
//! taken from there: only what was known before, or what the user has said in the configuration, which no agent can write to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::Site;
use super::guard::{Part, Survey};
use super::ledger::Ledger;
use super::report::printable;
use crate::error::hinted;

/// A setting of the repository: a folder with objects that may be read.
const SETTING: &str = "pi-docker.objects";

/// Refuses a session that would see a folder which an agent may have named. What is taken is known from now on.
pub(crate) fn check(site: &Site, survey: &Survey, ledger: &mut Ledger) -> Result<()> {
    let top = &survey.parts[0];
    let approved = |folder: &Path| {
        top.settings
            .iter()
            .any(|(key, value)| key == SETTING && Path::new(value).canonicalize().is_ok_and(|p| p == folder))
    };
    let mut taken = BTreeSet::new();
    for part in &survey.parts {
        for folder in part.objects.iter().filter(|folder| !is_inside(site, top, part, folder)) {
            let trusted = match &ledger.lenders {
                // No agent has been here.
                None => true,
                Some(known) => known.contains(folder) || approved(folder) || !ledger.direct && is_closed(top, part),
            };
            if !trusted {
                let named_by = if part.repository.common_dir.join("objects") == *folder {
                    site.root.join(&part.path).join(".git")
                } else {
                    part.repository.common_dir.join("objects/info/alternates")
                };
                let folder = printable(&folder.to_string_lossy());
                bail!(hinted(
                    format!(
                        "cannot borrow objects from '{folder}': an agent may have written that into '{}'",
                        named_by.display()
                    ),
                    format!("look at that file; if it is right, run: git config --add {SETTING} '{folder}'"),
                ));
            }
            taken.insert(folder.clone());
        }
    }
    ledger.lenders.get_or_insert_default().extend(taken);
    Ok(())
}

/// What the repository has itself, not somebody else's.
fn is_inside(site: &Site, top: &Part, part: &Part, folder: &Path) -> bool {
    let own = [&top.repository.common_dir, &top.repository.git_dir].iter().any(|dir| folder.starts_with(dir));
    own || folder == site.root.join(&part.path).join(".git/objects")
}

/// Without --git=direct no agent can write to the git directory that names the lenders.
fn is_closed(top: &Part, part: &Part) -> bool {
    [&top.repository.common_dir, &top.repository.git_dir].iter().any(|dir| part.repository.common_dir.starts_with(dir))
}

/// What a repository borrows from before a session in its own git directory begins.
pub(crate) fn before_direct(folders: impl IntoIterator<Item = PathBuf>, ledger: &mut Ledger) {
    if !ledger.direct {
        ledger.lenders.get_or_insert_default().extend(folders);
        ledger.direct = true;
    }
}
