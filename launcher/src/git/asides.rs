//! What lies below `refs/pi/` on the host: commits that could not become a branch. Each stays until a branch has it or the user drops it.

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::Result;

use super::landing::{Update, transact};
use super::refs::{KEEP, OURS};
use super::report::Dropped;
use super::run::Git;

/// Drops what earlier sessions have set aside and a branch contains by now. Returns that, and how much of theirs stays.
pub(crate) fn sweep(git: &Git, session: &str) -> Result<(Vec<Dropped>, usize)> {
    let listed = git.run(&["for-each-ref", "--format=%(objectname) %(objecttype) %(refname)", OURS])?;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    let own = format!("{OURS}{session}/");
    let asides: Vec<(&str, &str, &str)> = listed
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ' ');
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
        .filter(|(_, _, name)| !name.starts_with(KEEP) && !name.starts_with(&own))
        .collect();
    let commits: BTreeSet<&str> = asides.iter().filter(|aside| aside.1 == "commit").map(|aside| aside.0).collect();
    if commits.is_empty() {
        return Ok((Vec::new(), asides.len()));
    }
    // All that no branch has, at once: to ask for each one which branch has it would take long where none does.
    let loose = git.feed(&["rev-list", "--stdin"], |stdin| {
        commits.iter().try_for_each(|oid| writeln!(stdin, "{oid}"))?;
        writeln!(stdin, "--not\n--branches")
    })?;
    let loose: BTreeSet<String> = String::from_utf8_lossy(&loose).lines().map(str::to_owned).collect();
    let mut dropped = Vec::new();
    for (oid, _, name) in asides.iter().filter(|aside| commits.contains(aside.0) && !loose.contains(aside.0)) {
        let contains = format!("--contains={oid}");
        let format = "--format=%(objectname) %(refname)";
        let holder = git.run(&["for-each-ref", "--count=1", &contains, format, "refs/heads"])?;
        let holder = String::from_utf8_lossy(&holder).trim_end().to_owned();
        let Some((tip, branch)) = holder.split_once(' ') else { continue };
        // Only if the branch is still there: it goes in one step, or not at all.
        if transact(git, session, &[Update::verify(branch, tip), Update::remove(name, oid)])?.is_ok() {
            dropped.push(Dropped { name: (*name).to_owned(), branch: branch.to_owned() });
        }
    }
    let left = asides.len() - dropped.len();
    Ok((dropped, left))
}
