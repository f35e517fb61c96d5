//! Where a reference from a container lands on the host: on the branch or tag of its name if that loses nothing, else aside below
//! `refs/pi/<session>/`. Everything is set aside first, then moved, each step only if the host still has what was seen.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Result, bail};

use super::refs::{OURS, Ref, is_ref_name, misleading};
use super::report::Landed;
use super::run::Git;

/// A reference that a container hands out, found to be harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) name: String,
    pub(crate) oid: String,
}

/// What shall happen with a branch or tag.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The host has it already, or had it and the user deleted it.
    Nothing,
    Make,
    Forward(String),
    Keep(String),
}

/// The host as it is now, and as both sides last had it.
pub(crate) struct Host<'a> {
    pub(crate) git: &'a Git<'a>,
    pub(crate) refs: &'a [Ref],
    pub(crate) synced: &'a BTreeMap<String, String>,
    /// Branches that must stay where they are, and why.
    pub(crate) busy: &'a BTreeMap<String, String>,
}

impl Host<'_> {
    pub(crate) fn oid(&self, name: &str) -> Option<&str> {
        let at = self.refs.binary_search_by(|r| r.name.as_str().cmp(name)).ok()?;
        Some(&self.refs[at].oid)
    }

    /// Decides on a branch or tag.
    pub(crate) fn judge(&self, wish: &Wish) -> Result<Verdict> {
        let keep = |why: &str| Ok(Verdict::Keep(why.to_owned()));
        let synced = self.synced.get(&wish.name);
        let Some(here) = self.oid(&wish.name) else {
            return match synced {
                Some(synced) if *synced == wish.oid => Ok(Verdict::Nothing),
                Some(_) => keep("it was deleted on the host"),
                None => Ok(match misleading(&wish.name, self.refs) {
                    Some(why) => Verdict::Keep(why),
                    None => Verdict::Make,
                }),
            };
        };
        if here == wish.oid {
            return Ok(Verdict::Nothing);
        }
        if self.refs.iter().any(|r| r.name == wish.name && r.symref.is_some()) {
            return keep("on the host it stands for another reference");
        }
        if !wish.name.starts_with("refs/heads/") {
            return keep("the host has another one of this name");
        }
        if self.is_ancestor(&wish.oid, here)? {
            return Ok(Verdict::Nothing);
        }
        if !self.is_ancestor(here, &wish.oid)? {
            let agents = synced.is_some_and(|synced| synced == here);
            return keep(if agents { "its history was rewritten" } else { "both sides have new commits" });
        }
        if let Some(synced) = synced.filter(|synced| *synced != here)
            && !self.is_ancestor(synced, here)?
        {
            return keep("it was moved back on the host");
        }
        match self.busy.get(&wish.name) {
            Some(why) => keep(why),
            None => Ok(Verdict::Forward(here.to_owned())),
        }
    }

    pub(crate) fn is_ancestor(&self, older: &str, newer: &str) -> Result<bool> {
        Ok(self.git.ask(&["merge-base", "--is-ancestor", older, newer])?.is_some())
    }
}

/// The name aside for a reference.
pub(crate) fn aside_name(session: &str, wish: &Wish) -> String {
    let rest = match wish.name.strip_prefix("refs/") {
        Some(rest) if rest.starts_with("heads/") || rest.starts_with("tags/") => rest.to_owned(),
        Some(rest) => format!("other/{rest}"),
        None => wish.name.clone(),
    };
    let name = format!("{OURS}{session}/{rest}");
    if is_ref_name(&name) { name } else { format!("{OURS}{session}/object/{}", wish.oid) }
}

/// Sets references aside. Returns the name that each one got, in order.
pub(crate) fn set_aside(git: &Git, session: &str, wishes: &[Wish]) -> Result<Vec<String>> {
    let mut names: Vec<String> = wishes.iter().map(|wish| aside_name(session, wish)).collect();
    let updates = |names: &[String]| -> Vec<Update> {
        names.iter().zip(wishes).map(|(name, wish)| Update::set(name, &wish.oid)).collect()
    };
    if transact(git, session, &updates(&names))?.is_err() {
        // One name in the way of another (`a` beside `a/b`), or locked by a git that was killed: one by one, then under other names.
        for (name, wish) in names.iter_mut().zip(wishes) {
            let others = (0..10).map(|number| format!("{OURS}{session}/object/{}-{number}", wish.oid));
            let mut why = None;
            for candidate in std::iter::once(name.clone()).chain(others) {
                *name = candidate;
                why = transact(git, session, &[Update::set(name, &wish.oid)])?.err();
                if why.is_none() {
                    break;
                }
            }
            if let Some(why) = why {
                bail!("cannot keep '{}': {why}", super::report::printable(&wish.name));
            }
        }
    }
    Ok(names)
}

/// Makes and forwards branches and tags; what the host has changed meanwhile is left as it is and said.
pub(crate) fn land(
    git: &Git,
    session: &str,
    wishes: Vec<(Wish, Option<String>)>,
    asides: &dyn Fn(&Wish) -> String,
) -> Result<Vec<Landed>> {
    let update = |(wish, from): &(Wish, Option<String>)| Update::swap(&wish.name, &wish.oid, from.as_deref());
    let landed = |(wish, from): &(Wish, Option<String>)| match from {
        None => Landed::Made { name: wish.name.clone(), oid: wish.oid.clone() },
        Some(from) => Landed::Forwarded { name: wish.name.clone(), from: from.clone(), to: wish.oid.clone() },
    };
    let all: Vec<Update> = wishes.iter().map(update).collect();
    if transact(git, session, &all)?.is_ok() {
        return Ok(wishes.iter().map(landed).collect());
    }
    let mut results = Vec::new();
    for wish in &wishes {
        results.push(match transact(git, session, &[update(wish)])? {
            Ok(()) => landed(wish),
            Err(why) => Landed::Kept { name: wish.0.name.clone(), at: asides(&wish.0), why },
        });
    }
    Ok(results)
}

/// Removes names that were set aside, now that their objects have a better one.
pub(crate) fn clear(git: &Git, session: &str, asides: &[(String, String)]) -> Result<()> {
    let updates: Vec<Update> = asides.iter().map(|(name, oid)| Update::remove(name, oid)).collect();
    // If somebody has moved one of them it stays.
    let _ = transact(git, session, &updates)?;
    Ok(())
}

/// One line for `git update-ref --stdin -z`.
pub(crate) struct Update(Vec<u8>);

impl Update {
    fn set(name: &str, to: &str) -> Update {
        Update(format!("option no-deref\0update {name}\0{to}\0\0").into_bytes())
    }

    /// Only if the reference has the value `from`; `None`: only if there is none.
    pub(crate) fn swap(name: &str, to: &str, from: Option<&str>) -> Update {
        match from {
            Some(from) => Update(format!("option no-deref\0update {name}\0{to}\0{from}\0").into_bytes()),
            None => Update(format!("option no-deref\0create {name}\0{to}\0").into_bytes()),
        }
    }

    /// Changes nothing, and fails if the reference has another value.
    pub(crate) fn verify(name: &str, oid: &str) -> Update {
        Update(format!("option no-deref\0verify {name}\0{oid}\0").into_bytes())
    }

    pub(crate) fn remove(name: &str, from: &str) -> Update {
        Update(format!("option no-deref\0delete {name}\0{from}\0").into_bytes())
    }
}

/// Carries out all updates or none; the inner error is git's reason.
pub(crate) fn transact(git: &Git, session: &str, updates: &[Update]) -> Result<std::result::Result<(), String>> {
    if updates.is_empty() {
        return Ok(Ok(()));
    }
    let message = format!("pi-docker: session {session}");
    let result = git.try_feed(&["update-ref", "-m", &message, "--stdin", "-z"], |stdin| {
        updates.iter().try_for_each(|u| stdin.write_all(&u.0))
    })?;
    Ok(result.map(|_| ()))
}
