//! After a session, or while one runs: what its container handed out becomes the host's. Large files first, then objects, then names: what
//! cannot land where it belongs is set aside, what is dangerous is refused and stays on the private side. Doing it twice changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Result, bail};

pub(crate) use super::bundle::Limits;
use super::bundle::{Bundle, Kind, Said};
use super::check::{self, LinkState};
use super::head::{self, Checkout};
use super::landing::{self, Host, Verdict, Wish};
use super::ledger::{Known, Ledger, lock};
use super::refs::{self, Head, KEEP, Ref, is_oid, is_ref_name};
use super::report::{ImportReport, Landed, RepositoryReport, printable};
use super::repository::Repository;
use super::run::Git;
use super::{Site, pin, settings};

/// Takes what a container handed out. The file is the container's standard output; a part of one is an error, and changes nothing.
/// With no other session running, this also ends the session for the private side: what only it still has is remembered.
pub(crate) fn import(site: &Site, bundle: &Path, limits: &Limits) -> Result<ImportReport> {
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
        if let Some(said) = bundle.said.get(&key) {
            let landed = Import { site, key: &key, bundle: &bundle, said, limits }.run(&mut ledger)?;
            let path = ledger.repositories.get(&key).map(|known| known.path.clone()).unwrap_or_default();
            report.repositories.push(RepositoryReport { path, landed });
        }
    }
    if !site.others_live {
        close(site, &bundle, &report, &mut ledger)?;
    }
    ledger.open.retain(|session| session != site.session);
    ledger.save(site)?;
    Ok(report)
}

/// Remembers what only the private side has, and lets go of what was pinned if that is nothing.
fn close(site: &Site, bundle: &Bundle, report: &ImportReport, ledger: &mut Ledger) -> Result<()> {
    let refused = report.has_refusals();
    let pins = ledger.pins.clone();
    let mut still_needed = refused;
    for (key, known) in &mut ledger.repositories {
        let Some(said) = bundle.said.get(key) else { continue };
        let kept = said.keep.iter().take(1000).filter(|(name, oid)| {
            is_oid(oid)
                && is_ref_name(name)
                && (name.starts_with("refs/heads/") || name.starts_with("refs/pi-subagent/"))
        });
        let mut retained: BTreeMap<String, String> = kept.cloned().collect();
        retained.extend(
            known
                .retained
                .iter()
                .filter(|(name, _)| name.starts_with("refs/pi/refused/"))
                .map(|(n, o)| (n.clone(), o.clone())),
        );
        let landed = report.repositories.iter().find(|r| r.path == known.path).map(|r| &r.landed);
        for name in landed
            .into_iter()
            .flatten()
            .filter_map(|l| if let Landed::Refused { name, .. } = l { Some(name) } else { None })
        {
            let oid = said.refs.iter().find(|(said_name, _)| said_name == name).map(|(_, oid)| oid);
            let place = format!("refs/pi/refused/{}/{}", site.session, name.strip_prefix("refs/").unwrap_or(name));
            if let Some(oid) = oid.filter(|oid| is_oid(oid) && is_ref_name(&place)) {
                retained.insert(place, oid.clone());
            }
        }
        known.retained = retained;
        if !refused {
            let git = Git::new(&known.git_dir, site.env, site.owner);
            let tips = pin::sort(&git, &known.retained.values().cloned().collect())?;
            // The new pin before the old ones go: nothing is without one in between.
            pin::pin(&git, site.session, &tips)?;
            let needed = !tips.commits.is_empty();
            let old: Vec<String> = pins.iter().filter(|pin| !(needed && *pin == site.session)).cloned().collect();
            pin::unpin(&git, &old)?;
            still_needed |= needed;
        }
    }
    if !refused {
        ledger.pins = if still_needed { vec![site.session.to_owned()] } else { Vec::new() };
    }
    Ok(())
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
        let mut landed = Vec::new();
        let wishes = self.wishes(&git, &known, ledger, &mut landed)?;
        if wishes.is_empty() && self.said.head == known.head {
            return Ok(landed);
        }
        let asides = landing::set_aside(&git, self.site.session, &wishes)?;
        let aside_of: BTreeMap<&str, &String> = wishes.iter().map(|w| w.name.as_str()).zip(&asides).collect();
        let refs = refs::list(&git)?;
        let here = refs::head(&git)?;
        let busy = self.busy(&known, &refs, &here);
        let host = Host { git: &git, refs: &refs, synced: &known.synced, busy: &busy };

        let mut settled: BTreeSet<&str> = BTreeSet::new();
        let checkout = self.checkout(&known, &here, &wishes, &host)?;
        let mut arrived = None;
        if let Some(to) = &checkout {
            match self.advance(&git, &known, &here, to, ledger)? {
                Ok(mut moved) => {
                    landed.append(&mut moved);
                    settled.extend(
                        wishes.iter().map(|w| w.name.as_str()).filter(|name| Some(*name) == to.branch.as_deref()),
                    );
                    arrived = Some(to.clone());
                }
                Err(why) => {
                    let name = to.branch.as_deref().unwrap_or("HEAD");
                    if let Some((name, aside)) = aside_of.get_key_value(name) {
                        landed.push(Landed::Kept { name: (*name).to_owned(), at: (*aside).clone(), why });
                        settled.insert(name);
                    }
                }
            }
        }
        let mut to_land = Vec::new();
        let mut needless = Vec::new();
        for (wish, aside) in wishes.iter().zip(&asides) {
            if settled.contains(wish.name.as_str()) {
                continue;
            }
            let verdict = match wish.name.starts_with("refs/heads/") || wish.name.starts_with("refs/tags/") {
                true if arrived.is_none() && here.branch.as_deref() == Some(&wish.name) => {
                    self.judge_checked_out(wish, &host)?
                }
                true => host.judge(wish)?,
                false => Verdict::Keep(reason_to_keep(&wish.name).to_owned()),
            };
            match verdict {
                Verdict::Nothing => needless.push((aside.clone(), wish.oid.clone())),
                Verdict::Make => to_land.push((wish.clone(), None)),
                Verdict::Forward(from) => to_land.push((wish.clone(), Some(from))),
                Verdict::Keep(why) => landed.push(Landed::Kept { name: wish.name.clone(), at: aside.clone(), why }),
            }
        }
        landed.extend(landing::land(&git, self.site.session, to_land, &|wish| aside_of[wish.name.as_str()].clone())?);
        let kept = |name: &str| landed.iter().any(|l| matches!(l, Landed::Kept { name: n, .. } if n == name));
        needless.extend(
            wishes.iter().zip(&asides).filter(|(wish, _)| !kept(&wish.name)).map(|(w, a)| (a.clone(), w.oid.clone())),
        );
        needless.sort();
        needless.dedup();
        landing::clear(&git, self.site.session, &needless)?;
        self.remember(&git, ledger)?;
        Ok(landed)
    }

    /// The references that may be taken, their objects in the host's store; what may not is added to `landed`.
    fn wishes(&self, git: &Git, known: &Known, ledger: &Ledger, landed: &mut Vec<Landed>) -> Result<Vec<Wish>> {
        let mut refuse =
            |name: &str, why: &str| landed.push(Landed::Refused { name: name.to_owned(), why: why.to_owned() });
        for (name, why) in &self.said.failed {
            refuse(name, &printable(why));
        }
        if self.said.refs.len() > self.limits.refs {
            refuse(
                "refs/heads",
                &format!("{} references are more than the limit of {}", self.said.refs.len(), self.limits.refs),
            );
            return Ok(Vec::new());
        }
        let mut wishes: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, oid) in &self.said.refs {
            match may_be_named(name) && is_oid(oid) {
                true => _ = wishes.insert(name, oid),
                false => refuse(name, "its name or its object's is not valid"),
            }
        }
        for oid in super::lfs::store(self.bundle, self.key, known, self.site.owner)? {
            refuse(&oid, "its content is not what its name says");
        }
        for section in self.bundle.sections.iter().filter(|s| s.kind == Kind::Pack && s.repository == self.key) {
            if let Err(why) = check::unpack(git, self.bundle, section, self.limits)? {
                wishes.keys().for_each(|name| refuse(name, &format!("git refuses its objects: {why}")));
                return Ok(Vec::new());
            }
        }
        let oids: BTreeSet<String> = wishes.values().map(|oid| (*oid).to_owned()).collect();
        let tips = pin::sort(git, &oids)?;
        let commits: BTreeSet<String> =
            oids.iter().filter(|oid| tips.commits.contains(*oid) || tips.tags.contains(*oid)).cloned().collect();
        let config = settings::parse(&git.run(&["config", "--list", "-z"])?);
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
        Ok(taken)
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

    /// The host's own branch did not move with its working tree, so it must not move at all.
    fn judge_checked_out(&self, wish: &Wish, host: &Host) -> Result<Verdict> {
        Ok(match host.judge(wish)? {
            Verdict::Forward(_) | Verdict::Make => {
                Verdict::Keep("it is checked out on the host, and the container was not on it".to_owned())
            }
            other => other,
        })
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

fn reason_to_keep(name: &str) -> &'static str {
    match name {
        "HEAD" => "the container's HEAD was detached",
        "index" => "it was staged, not committed, and differs from the files",
        _ if name.starts_with("stash/") => "the agent stashed it; 'git stash apply <name>' brings it back",
        _ => "it is neither a branch nor a tag",
    }
}
