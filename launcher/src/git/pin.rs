//! What the private side borrows stays on the host: one commit per session, below `refs/pi/keep/`, has every borrowed tip as a parent
//! and what is staged as its tree. Annotated tags can be neither, so they are copied: they are a few hundred bytes each.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::refs::KEEP;
use super::run::Git;

/// Objects that the private side begins from, by what they are.
#[derive(Debug, Default)]
pub(crate) struct Tips {
    pub(crate) commits: BTreeSet<String>,
    /// Tags with a message of their own.
    pub(crate) tags: BTreeSet<String>,
    /// Trees and blobs, with git's word for which.
    pub(crate) others: BTreeSet<(String, &'static str)>,
}

/// Sorts objects by kind. Those that are not there are left out.
pub(crate) fn sort(git: &Git, oids: &BTreeSet<String>) -> Result<Tips> {
    let mut tips = Tips::default();
    if oids.is_empty() {
        return Ok(tips);
    }
    let output = git.feed(&["cat-file", "--batch-check=%(objectname) %(objecttype)", "--buffer"], |stdin| {
        let mut stdin = std::io::BufWriter::new(stdin);
        oids.iter().try_for_each(|oid| writeln!(stdin, "{oid}\n{oid}^{{}}"))
    })?;
    let text = String::from_utf8_lossy(&output);
    for line in text.lines() {
        match line.split_once(' ') {
            Some((oid, "commit")) => _ = tips.commits.insert(oid.to_owned()),
            Some((oid, "tag")) => _ = tips.tags.insert(oid.to_owned()),
            Some((oid, "tree")) => _ = tips.others.insert((oid.to_owned(), "tree")),
            Some((oid, "blob")) => _ = tips.others.insert((oid.to_owned(), "blob")),
            _ => {}
        }
    }
    Ok(tips)
}

/// Pins commits, trees and blobs on the host for a session, in place of what was pinned for it before.
pub(crate) fn pin(git: &Git, session: &str, tips: &Tips) -> Result<()> {
    if tips.commits.is_empty() && tips.others.is_empty() {
        return Ok(());
    }
    let tree = git.feed(&["mktree", "--missing"], |stdin| {
        tips.others.iter().try_for_each(|(oid, kind)| {
            let mode = if *kind == "tree" { "040000" } else { "100644" };
            writeln!(stdin, "{mode} {kind} {oid}\t{oid}")
        })
    })?;
    let mut commit = format!("tree {}\n", String::from_utf8_lossy(&tree).trim());
    tips.commits.iter().for_each(|oid| commit.extend(["parent ", oid, "\n"]));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let who = format!("pi-docker <pi-docker@localhost> {now} +0000");
    commit.push_str(&format!("author {who}\ncommitter {who}\n\nobjects that pi-docker session {session} borrows\n"));
    let oid =
        git.feed(&["hash-object", "-t", "commit", "-w", "--stdin"], |stdin| stdin.write_all(commit.as_bytes()))?;
    git.run(&["update-ref", &format!("{KEEP}{session}"), String::from_utf8_lossy(&oid).trim()])?;
    Ok(())
}

/// Removes pins.
pub(crate) fn unpin(git: &Git, sessions: &[String]) -> Result<()> {
    if sessions.is_empty() {
        return Ok(());
    }
    git.feed(&["update-ref", "--stdin"], |stdin| {
        sessions.iter().try_for_each(|session| writeln!(stdin, "delete {KEEP}{session}"))
    })?;
    Ok(())
}

/// Copies annotated tags into a store of objects of their own, unless it holds the same ones already.
pub(crate) fn copy_tags(git: &Git, tags: &BTreeSet<String>, store: &Path) -> Result<()> {
    let list: String = tags.iter().flat_map(|oid| [oid, "\n"]).collect();
    let stamp = store.join("holds");
    let hash = Sha256::digest(list.as_bytes()).to_vec();
    if fs::read(&stamp).is_ok_and(|held| held == hash) {
        return Ok(());
    }
    let pack = store.join("pack");
    let cannot = || format!("cannot write into '{}'", store.display());
    if store.exists() {
        fs::remove_dir_all(store).with_context(cannot)?;
    }
    fs::create_dir_all(&pack).with_context(cannot)?;
    if let Some((uid, gid)) = git.owner() {
        for folder in [store, &pack] {
            std::os::unix::fs::chown(folder, Some(uid), Some(gid)).with_context(cannot)?;
        }
    }
    let base = pack.join("pack");
    let base = base.to_str().context("cannot copy the tags: the path of the state folder is not UTF-8")?;
    git.feed(&["pack-objects", "-q", base], |stdin| stdin.write_all(list.as_bytes()))?;
    fs::write(&stamp, hash).with_context(cannot)
}
