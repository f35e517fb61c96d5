//! After a session, or while one runs: what its container handed out becomes the host's. Large files first, then objects, then names: what
//! cannot land where it belongs is set aside, what is dangerous is refused and stays on the private side. Doing it twice changes nothing.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};

pub(crate) use super::bundle::Limits;
use super::bundle::{Bundle, Said};
use super::closing::close;
use super::head::{self, Checkout};
use super::intake::Intake;
use super::landing::{self, Host, Verdict, Wish};
use super::ledger::{Known, Ledger, lock};
use super::refs::{self, Head, Ref, is_oid, is_ref_name};
use super::report::{ImportReport, Landed, RepositoryReport};
use super::repository::Repository;
use super::run::Git;
use super::{Site, asides};

/// Takes what a container handed out. The file is the container's standard output; a part of one is an error, and changes nothing.
/// With no other session running, this also ends the session for the private side: what only it still has is remembered.
pub(crate) fn import(site: &Site, bundle: &Path, limits: &Limits) -> Result<ImportReport> {
    take(site, bundle, limits, true)
}

/// The same for a session that goes on: its commits have still to be fetched at its end.
pub(crate) fn import_running(site: &Site, bundle: &Path, limits: &Limits) -> Result<ImportReport> {
    take(site, bundle, limits, false)
}

fn take(site: &Site, bundle: &Path, limits: &Limits, over: bool) -> Result<ImportReport> {
    let _lock = lock(site)?;
    let mut ledger = Ledger::load(site.state)?;
    if ledger.repositories.is_empty() {
        bail!("cannot fetch the session's commits: no private git directory is known in '{}'", site.state.display());
    }
    head::recover(site, &mut ledger)?;
    let bundle = Bundle::open(bundle, limits)?;
    let mut report = ImportReport::default();
    // Submodules before what they are in, whose commits may link to theirs.
    let keys: Vec<String> = ledger.repositories.keys().rev().cloned().collect();
    for key in keys {
        let path = ledger.repositories.get(&key).map(|known| known.path.clone()).unwrap_or_default();
        let landed = match bundle.said.get(&key) {
            Some(said) => Import { site, key: &key, bundle: &bundle, said, limits }.run(&mut ledger)?,
            None if key.is_empty() => {
                bail!("cannot fetch the session's commits: the container says nothing about the repository")
            }
            None => {
                vec![Landed::Refused { name: key, why: "the container hands out nothing of this submodule".to_owned() }]
            }
        };
        report.repositories.push(RepositoryReport { path, landed, ..RepositoryReport::default() });
    }
    if over && !site.others_live {
        close(site, &bundle, &report, &mut ledger)?;
    }
    if over {
        ledger.open.retain(|session| session != site.session);
        for said in &mut report.repositories {
            if let Some(known) = ledger.repositories.values().find(|known| known.path == said.path) {
                let git = Git::new(&known.git_dir, site.env, site.owner);
                (said.dropped, said.older) = asides::sweep(&git, site.session)?;
            }
        }
    }
    ledger.save(site)?;
    Ok(report)
}

/// The import of one repository.
struct Import<'a> {
    site: &'a Site<'a>,
    key: &'a str,
    bundle: &'a Bundle,
    said: &'a Said,
    limits: &'a Limits,
}

impl Import<'_> {
    fn run(&self, ledger: &mut Ledger) -> Result<Vec<Landed>> {
        let Some(known) = ledger.repositories.get(self.key).cloned() else { return Ok(Vec::new()) };
        if !known.git_dir.is_dir() {
            bail!("cannot fetch the session's commits: '{}' has gone", known.git_dir.display());
        }
        let git = Git::new(&known.git_dir, self.site.env, self.site.owner);
        let intake = Intake {
            site: self.site,
            key: self.key,
            bundle: self.bundle,
            limits: self.limits,
            git: &git,
            known: &known,
        };
        let (wishes, mut landed) = intake.take(self.said, ledger)?;
        if wishes.is_empty() && self.said.head == known.head {
            return Ok(landed);
        }
        let asides = landing::set_aside(&git, self.site.session, &wishes)?;
        let aside_of: BTreeMap<&str, &String> = wishes.iter().map(|w| w.name.as_str()).zip(&asides).collect();
        let refs = refs::list(&git)?;
        let here = refs::head(&git)?;
        let busy = self.busy(&known, &refs, &here);
        let host = Host { git: &git, refs: &refs, synced: &known.synced, busy: &busy };

        let mut stays = here.branch.as_deref();
        let mut settled = None;
        let checkout = self.checkout(&known, &here, &wishes, &host)?;
        if let Some(to) = &checkout {
            settled = to.branch.as_deref();
            match self.advance(&git, &known, &here, to, ledger)? {
                Ok(moved) => {
                    landed.extend(moved);
                    stays = None;
                }
                Err(why) => {
                    let aside = settled.and_then(|name| aside_of.get(name));
                    landed.extend(aside.map(|at| kept(settled.unwrap_or_default(), at, &why)));
                }
            }
        }
        let mut to_land = Vec::new();
        for wish in wishes.iter().filter(|wish| settled != Some(&wish.name)) {
            match self.judge(wish, stays, &host)? {
                Verdict::Nothing => {}
                Verdict::Make => to_land.push((wish.clone(), None)),
                Verdict::Forward(from) => to_land.push((wish.clone(), Some(from))),
                Verdict::Keep(why) => landed.push(kept(&wish.name, aside_of[wish.name.as_str()], &why)),
            }
        }
        landed.extend(landing::land(&git, self.site.session, to_land, &|wish| aside_of[wish.name.as_str()].clone())?);
        let is_kept = |name: &str| landed.iter().any(|l| matches!(l, Landed::Kept { name: n, .. } if n == name));
        let needless = wishes.iter().zip(asides).filter(|(wish, _)| !is_kept(&wish.name));
        let needless: Vec<(String, String)> = needless.map(|(wish, aside)| (aside, wish.oid.clone())).collect();
        landing::clear(&git, self.site.session, &needless)?;
        self.remember(&git, ledger)?;
        Ok(landed)
    }

    /// `stays` is the branch that the host's HEAD is on, if that did not move with its working tree: it must not move at all.
    fn judge(&self, wish: &Wish, stays: Option<&str>, host: &Host) -> Result<Verdict> {
        if !wish.name.starts_with("refs/heads/") && !wish.name.starts_with("refs/tags/") {
            return Ok(Verdict::Keep(reason_to_keep(&wish.name).to_owned()));
        }
        Ok(match host.judge(wish)? {
            Verdict::Forward(_) | Verdict::Make if stays == Some(&wish.name) => {
                Verdict::Keep("it is checked out on the host, and the container was not on it".to_owned())
            }
            verdict => verdict,
        })
    }

    /// Branches that must not be moved under somebody.
    fn busy(&self, known: &Known, refs: &[Ref], here: &Head) -> BTreeMap<String, String> {
        let elsewhere = refs.iter().filter(|r| r.checked_out && here.branch.as_deref() != Some(&r.name));
        let mut busy: BTreeMap<String, String> =
            elsewhere.map(|r| (r.name.clone(), "it is checked out in another working tree".to_owned())).collect();
        let repository = repository_of(self.site, known);
        busy.extend(
            repository
                .branches_in_operations()
                .into_iter()
                .map(|name| (name, "it is being rebased or bisected".to_owned())),
        );
        if let Some(operation) = repository.operation() {
            busy.extend(
                here.branch.iter().map(|name| (name.clone(), format!("a {operation} is unfinished on the host"))),
            );
        }
        busy
    }

    /// Where the host's HEAD goes, if it may follow the container's: nobody has moved it, and the target is as the container had it.
    fn checkout(&self, known: &Known, here: &Head, wishes: &[Wish], host: &Host) -> Result<Option<Head>> {
        let there = &self.said.head;
        let unmoved = here.branch == known.head.branch && (here.branch.is_some() || here.oid == known.head.oid);
        let named = there.branch.as_deref().is_none_or(|name| name.starts_with("refs/heads/") && is_ref_name(name));
        let Some(oid) = there.oid.as_deref().filter(|oid| is_oid(oid) && named && unmoved && *there != *here) else {
            return Ok(None);
        };
        if repository_of(self.site, known).operation().is_some() {
            return Ok(None);
        }
        let to = Head { branch: there.branch.clone(), oid: Some(oid.to_owned()) };
        let name = there.branch.as_deref().unwrap_or("HEAD");
        let wish = wishes.iter().find(|wish| wish.name == name && wish.oid == oid);
        match (&there.branch, &here.branch) {
            (None, Some(_)) => Ok(None),
            (None, None) => match (wish, &here.oid) {
                (Some(_), Some(old)) if host.is_ancestor(old, oid)? => Ok(Some(to)),
                _ => Ok(None),
            },
            (Some(branch), _) => {
                let verdict = match wish {
                    Some(wish) => host.judge(wish)?,
                    // Not new: only a branch that the host has just so.
                    None if host.oid(branch) == Some(oid) => Verdict::Nothing,
                    None => return Ok(None),
                };
                let busy = host.busy.contains_key(branch);
                let fits = match verdict {
                    Verdict::Make | Verdict::Forward(_) => true,
                    Verdict::Nothing => host.oid(branch) == Some(oid),
                    Verdict::Keep(_) => false,
                };
                Ok((fits && !busy).then_some(to))
            }
        }
    }

    fn advance(
        &self,
        git: &Git,
        known: &Known,
        here: &Head,
        to: &Head,
        ledger: &mut Ledger,
    ) -> Result<Result<Vec<Landed>, String>> {
        let mut landed = Vec::new();
        let oid = to.oid.clone().unwrap_or_default();
        let switches = here.branch != to.branch;
        if let Some(branch) = to.branch.as_ref().filter(|_| switches) {
            // First the branch, then HEAD onto it.
            let before = git
                .ask(&["rev-parse", "-q", "--verify", branch])?
                .map(|oid| String::from_utf8_lossy(&oid).trim().to_owned());
            if before.as_ref() != Some(&oid) {
                let wish = Wish { name: branch.clone(), oid: oid.clone() };
                landed = landing::land(git, self.site.session, vec![(wish, before)], &|_| String::new())?;
                if let Some(Landed::Kept { why, .. }) = landed.first() {
                    return Ok(Err(why.clone()));
                }
            }
        }
        let (site, key) = (self.site, self.key);
        let mut note = |moving| {
            if let Some(known) = ledger.repositories.get_mut(key) {
                known.moving = moving;
            }
            ledger.save(site)
        };
        if let Err(why) = (Checkout { site, git, known }).advance(here, to, &mut note)? {
            return Ok(Err(why));
        }
        match (&to.branch, switches) {
            (Some(branch), false) => landed.push(match &here.oid {
                Some(from) => Landed::Forwarded { name: branch.clone(), from: from.clone(), to: oid },
                None => Landed::Made { name: branch.clone(), oid },
            }),
            (branch, _) => {
                landed.push(Landed::CheckedOut { name: branch.clone().unwrap_or_else(|| "HEAD".to_owned()), to: oid })
            }
        }
        Ok(Ok(landed))
    }

    /// What both sides have now.
    fn remember(&self, git: &Git, ledger: &mut Ledger) -> Result<()> {
        let refs = refs::list(git)?;
        let Some(known) = ledger.repositories.get_mut(self.key) else { return Ok(()) };
        let on_host: BTreeMap<&str, &str> = refs.iter().map(|r| (r.name.as_str(), r.oid.as_str())).collect();
        for (name, oid) in &self.said.refs {
            if on_host.get(name.as_str()) == Some(&oid.as_str()) {
                known.synced.insert(name.clone(), oid.clone());
            }
        }
        let here = refs::head(git)?;
        if here.branch == self.said.head.branch {
            known.head = here;
        }
        ledger.save(self.site)
    }
}

fn repository_of(site: &Site, known: &Known) -> Repository {
    Repository {
        root: site.root.join(&known.path),
        git_dir: known.git_dir.clone(),
        common_dir: known.common_dir.clone(),
        by_file: false,
    }
}

fn kept(name: &str, at: &str, why: &str) -> Landed {
    Landed::Kept { name: name.to_owned(), at: at.to_owned(), why: why.to_owned() }
}

fn reason_to_keep(name: &str) -> &'static str {
    match name {
        "HEAD" => "the container's HEAD was detached",
        "index" => "it was staged, not committed, and differs from the files",
        _ if name.starts_with("stash/") => "the agent stashed it; 'git stash apply <name>' brings it back",
        _ => "it is neither a branch nor a tag",
    }
}
