//! What may be taken of what a container says and brings: names are checked, objects go into the host's store through git's own checks,
//! and commits that would make the host's git go into another repository are refused.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::bundle::{Bundle, Kind, Limits, Said};
use super::check::{self, LinkState};
use super::landing::Wish;
use super::ledger::{Known, Ledger};
use super::refs::{KEEP, is_oid, is_ref_name};
use super::report::{Landed, printable};
use super::run::Git;
use super::{Site, lfs, pin};

/// The intake of one repository.
pub(crate) struct Intake<'a> {
    pub(crate) site: &'a Site<'a>,
    pub(crate) key: &'a str,
    pub(crate) bundle: &'a Bundle,
    pub(crate) limits: &'a Limits,
    pub(crate) git: &'a Git<'a>,
    pub(crate) known: &'a Known,
}

impl Intake<'_> {
    /// The references that may be taken, their objects in the host's store, and what was refused.
    pub(crate) fn take(&self, said: &Said, ledger: &Ledger) -> Result<(Vec<Wish>, Vec<Landed>)> {
        let (git, known) = (self.git, self.known);
        let mut landed = Vec::new();
        let mut refuse =
            |name: &str, why: &str| landed.push(Landed::Refused { name: name.to_owned(), why: why.to_owned() });
        let count = said.refs.len() + said.failed.len();
        if count > self.limits.refs {
            refuse("refs/heads", &format!("{count} references are more than the limit of {}", self.limits.refs));
            return Ok((Vec::new(), landed));
        }
        for (name, why) in &said.failed {
            refuse(name, &printable(why));
        }
        let mut wishes: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, oid) in &said.refs {
            match may_be_named(name) && is_oid(oid) {
                true => _ = wishes.insert(name, oid),
                false => refuse(name, "its name or its object's is not valid"),
            }
        }
        for oid in lfs::store(self.bundle, self.key, known, self.site.owner)? {
            refuse(&oid, "its content is not what its name says");
        }
        for section in self.bundle.sections.iter().filter(|s| s.kind == Kind::Pack && s.repository == self.key) {
            if let Err(why) = check::unpack(git, self.bundle, section, self.limits)? {
                wishes.keys().for_each(|name| refuse(name, &format!("git refuses its objects: {why}")));
                return Ok((Vec::new(), landed));
            }
        }
        let oids: BTreeSet<String> = wishes.values().map(|oid| (*oid).to_owned()).collect();
        let tips = pin::sort(git, &oids)?;
        let commits: BTreeSet<String> =
            oids.iter().filter(|oid| tips.commits.contains(*oid) || tips.tags.contains(*oid)).cloned().collect();
        let config = git.settings()?;
        let promisor = config
            .iter()
            .any(|(key, value)| key.starts_with("remote.") && key.ends_with(".promisor") && value == "true");
        let links = |path: &str, commit: &str| link_state(self.site, known, ledger, path, commit);
        let refused = check::refused(git, &commits, promisor, &links)?;
        let mut taken = Vec::new();
        for (name, oid) in wishes {
            match (commits.contains(oid), refused.get(oid)) {
                (true, None) => taken.push(Wish { name: name.to_owned(), oid: oid.to_owned() }),
                (true, Some(why)) => refuse(name, why),
                (false, _) => refuse(name, "it is no commit that the host has or got"),
            }
        }
        Ok((taken, landed))
    }
}

fn link_state(site: &Site, known: &Known, ledger: &Ledger, path: &str, commit: &str) -> LinkState {
    let Some(module) = ledger.repositories.values().find(|other| other.path == known.path.join(path)) else {
        return LinkState::Unknown;
    };
    let git = Git::new(&module.git_dir, site.env, site.owner);
    match git.ask(&["rev-parse", "-q", "--verify", &format!("{commit}^{{commit}}")]) {
        Ok(Some(_)) => LinkState::Present,
        _ => LinkState::CommitMissing,
    }
}

/// What a container may hand out: references but the launcher's own, and a few things that have no reference.
fn may_be_named(name: &str) -> bool {
    match name.split_once('/') {
        None => matches!(name, "HEAD" | "index"),
        Some(("stash", number)) => number.len() < 6 && number.bytes().all(|b| b.is_ascii_digit()),
        Some(("worktree", name)) => {
            name.len() <= 100 && !name.contains('/') && is_ref_name(&format!("refs/worktree/{name}"))
        }
        Some(_) => is_ref_name(name) && !name.starts_with(KEEP) && !name.starts_with("refs/pi/"),
    }
}
