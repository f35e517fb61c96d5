//! The end of a session for the private side: what only it has is remembered, so that the next session finds it there again, and what
//! the host pinned for it is let go as far as nothing depends on it any more.

use std::collections::BTreeMap;

use anyhow::Result;

use super::bundle::{Bundle, Said};
use super::ledger::{Known, Ledger};
use super::refs::{is_oid, is_ref_name};
use super::report::{ImportReport, Landed};
use super::run::Git;
use super::{Site, pin};

/// Where the private side keeps what the host has refused, by the session whose pins it depends on.
const REFUSED: &str = "refs/pi/refused/";
/// More than this the private side does not keep for itself.
const MOST_KEPT: usize = 1000;

/// Ends the last running session of a private side.
pub(crate) fn close(site: &Site, bundle: &Bundle, report: &ImportReport, ledger: &mut Ledger) -> Result<()> {
    let owner = ledger.pins.last().cloned().unwrap_or_else(|| site.session.to_owned());
    let nothing = Vec::new();
    for (key, known) in &mut ledger.repositories {
        if let Some(said) = bundle.said.get(key) {
            let landed = report.repositories.iter().find(|r| r.path == known.path).map_or(&nothing, |r| &r.landed);
            known.retained = retained(known, said, landed, &owner);
        }
    }
    let needed = needed_pins(ledger);
    if needed.contains(&owner) {
        return Ok(());
    }
    let old: Vec<String> = ledger.pins.iter().filter(|pin| !needed.contains(pin)).cloned().collect();
    let mut still_pinned = false;
    for known in ledger.repositories.values() {
        let git = Git::new(&known.git_dir, site.env, site.owner);
        let tips = pin::sort(&git, &known.retained.values().cloned().collect())?;
        // The new pin before the old ones go: nothing is without one in between.
        pin::pin(&git, site.session, &tips)?;
        let is_pinned = !tips.commits.is_empty();
        let lost: Vec<String> = old.iter().filter(|pin| !(is_pinned && *pin == site.session)).cloned().collect();
        pin::unpin(&git, &lost)?;
        still_pinned |= is_pinned;
    }
    ledger.pins = needed;
    if still_pinned {
        ledger.pins.push(site.session.to_owned());
    }
    Ok(())
}

/// The sessions whose pins must stay: what was refused was built on them, and the host cannot see how.
pub(crate) fn needed_pins(ledger: &Ledger) -> Vec<String> {
    let names = ledger.repositories.values().flat_map(|known| known.retained.keys());
    let mut sessions: Vec<String> =
        names.filter_map(|name| name.strip_prefix(REFUSED)?.split('/').next()).map(str::to_owned).collect();
    sessions.sort();
    sessions.dedup();
    sessions.retain(|session| ledger.pins.contains(session));
    sessions
}

/// What the private side keeps: branches of its worktrees, the subagents' own references, what was refused now and what was before.
fn retained(known: &Known, said: &Said, landed: &[Landed], owner: &str) -> BTreeMap<String, String> {
    let may_stay = |name: &str, oid: &str| match name.strip_prefix("refs/") {
        Some(rest) if rest.starts_with("heads/") || rest.starts_with("pi-subagent/") => is_ref_name(name),
        Some(_) => name.starts_with(REFUSED) && known.retained.get(name).is_some_and(|known| known == oid),
        None => false,
    };
    let kept = said.keep.iter().take(MOST_KEPT).filter(|(name, oid)| is_oid(oid) && may_stay(name, oid));
    let mut retained: BTreeMap<String, String> = kept.cloned().collect();
    for refused in landed {
        let Landed::Refused { name, .. } = refused else { continue };
        let place = format!("{REFUSED}{owner}/{}", name.strip_prefix("refs/").unwrap_or(name));
        let oid = said.refs.iter().find(|(said, _)| said == name).map(|(_, oid)| oid);
        if let Some(oid) = oid.filter(|oid| is_oid(oid) && is_ref_name(&place)) {
            retained.insert(place, oid.clone());
        }
    }
    retained
}
