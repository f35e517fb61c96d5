//! Objects from a container enter the host's store only through `git index-pack --strict`, which checks each one (names such as `.git` in
//! any spelling, `..`, dangerous .gitmodules, damaged trees). What it does not look at is checked here: that nothing is missing, and that
//! no commit names another repository where there was none.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use anyhow::Result;

use super::bundle::{Bundle, Limits, Section};
use super::run::Git;

/// Puts the objects of a pack into the repository. The inner error is git's reason to refuse them; then none of them is there.
pub(crate) fn unpack(
    git: &Git,
    bundle: &Bundle,
    section: &Section,
    limits: &Limits,
) -> Result<std::result::Result<(), String>> {
    if bundle.pack_count(section) == 0 {
        return Ok(Ok(()));
    }
    let largest = format!("--max-input-size={}", limits.bytes);
    let result = git.try_feed(&["index-pack", "--stdin", "--fix-thin", "--strict", &largest], |stdin| {
        bundle.write_section(section, stdin)
    })?;
    Ok(result.map(|_| ()))
}

/// Which of these commits may not be taken, and why. `links` says for the path of a submodule whether its repository has a commit.
pub(crate) fn refused(
    git: &Git,
    tips: &BTreeSet<String>,
    promisor: bool,
    links: &dyn Fn(&str, &str) -> LinkState,
) -> Result<BTreeMap<String, String>> {
    let mut refused = BTreeMap::new();
    if tips.is_empty() {
        return Ok(refused);
    }
    if let Err(why) = examine(git, tips, promisor, links)? {
        if tips.len() == 1 {
            refused.extend(tips.iter().map(|tip| (tip.clone(), why.clone())));
            return Ok(refused);
        }
        for tip in tips {
            if let Err(why) = examine(git, &BTreeSet::from([tip.clone()]), promisor, links)? {
                refused.insert(tip.clone(), why);
            }
        }
    }
    Ok(refused)
}

/// What the host knows about a path that a commit names as a repository.
pub(crate) enum LinkState {
    /// A submodule that is checked out here, and has the commit.
    Present,
    /// A submodule that is checked out here, and lacks it.
    CommitMissing,
    /// None.
    Unknown,
}

fn examine(
    git: &Git,
    tips: &BTreeSet<String>,
    promisor: bool,
    links: &dyn Fn(&str, &str) -> LinkState,
) -> Result<std::result::Result<(), String>> {
    let feed = |stdin: &mut std::process::ChildStdin| tips.iter().try_for_each(|tip| writeln!(stdin, "{tip}"));
    // What the host has been given is judged already, but not what lies below refs/pi: that may have been refused, and only be kept.
    let mut args = vec!["rev-list", "--objects", "--quiet", "--stdin", "--not", "--exclude=refs/pi/*", "--all"];
    if promisor {
        args.insert(1, "--exclude-promisor-objects");
    }
    if let Err(why) = git.try_feed(&args, feed)? {
        return Ok(Err(format!("it is not complete: {why}")));
    }
    let commits = git.feed(&["rev-list", "--stdin", "--not", "--exclude=refs/pi/*", "--all"], feed)?;
    if commits.is_empty() {
        return Ok(Ok(()));
    }
    // Merges are compared with all their parents: what only came in from another commit is judged there.
    let args =
        ["diff-tree", "--stdin", "-c", "-r", "--root", "--raw", "--no-renames", "--no-abbrev", "--no-commit-id", "-z"];
    let changes = git.feed(&args, |stdin| stdin.write_all(&commits))?;
    let mut fields = changes.split(|&b| b == 0).filter(|field| !field.is_empty());
    while let Some(stat) = fields.next() {
        let stat = String::from_utf8_lossy(stat);
        if !stat.starts_with(':') {
            continue;
        }
        let path = String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned();
        if let Some(commit) = link_in(&stat) {
            let shown = super::report::printable(&path);
            match links(&path, &commit) {
                LinkState::Present => {}
                LinkState::CommitMissing => {
                    return Ok(Err(format!(
                        "it moves the submodule '{shown}' to a commit that is not in it on the host"
                    )));
                }
                LinkState::Unknown => {
                    return Ok(Err(format!("it makes '{shown}' a repository inside the repository (a gitlink)")));
                }
            }
        }
    }
    Ok(Ok(()))
}

/// The commit that a raw line links to: `:old new oid oid S`, and for a merge of n parents `::` with n of each before the new ones.
fn link_in(stat: &str) -> Option<String> {
    let parents = stat.chars().take_while(|&c| c == ':').count();
    let fields: Vec<&str> = stat[parents..].split(' ').collect();
    (fields.get(parents) == Some(&"160000"))
        .then(|| fields.get(2 * parents + 1).copied().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_seen_in_plain_and_in_merge_lines() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        assert_eq!(link_in(&format!(":000000 160000 {a} {b} A")), Some(b.clone()));
        assert_eq!(link_in(&format!(":160000 000000 {a} {b} D")), None);
        assert_eq!(link_in(&format!("::100644 160000 160000 {a} {a} {b} MM")), Some(b));
    }
}
