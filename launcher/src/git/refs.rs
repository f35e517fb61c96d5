//! References: those of the host as git lists them, the text of a `packed-refs` file, and which names from a container are harmless.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::run::Git;

/// Where the launcher keeps references of its own: tips that a private side borrows, and what could not become a branch.
pub(crate) const OURS: &str = "refs/pi/";
pub(crate) const KEEP: &str = "refs/pi/keep/";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ref {
    pub(crate) oid: String,
    pub(crate) name: String,
    /// The reference that this one stands for.
    pub(crate) symref: Option<String>,
    /// It is checked out in some working tree.
    pub(crate) checked_out: bool,
}

/// What HEAD says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// The full name of the branch; `None` when detached.
    pub(crate) branch: Option<String>,
    /// `None` before the first commit.
    pub(crate) oid: Option<String>,
}

/// All references of a repository, sorted by name.
pub(crate) fn list(git: &Git) -> Result<Vec<Ref>> {
    let format = "--format=%(objectname)%00%(refname)%00%(symref)%00%(worktreepath)%00";
    let output = git.run(&["for-each-ref", format])?;
    let mut refs = Vec::new();
    for record in output.split(|&b| b == 0).collect::<Vec<_>>().chunks_exact(4) {
        let [oid, name, symref, worktree] = record else { break };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        // A name that is not UTF-8 stays on the host: neither JSON nor the agent's tools can carry it.
        if let (Some(oid), Some(name), Some(symref)) = (text(oid.trim_ascii_start()), text(name), text(symref)) {
            let symref = Some(symref).filter(|s| !s.is_empty());
            refs.push(Ref { oid, name, symref, checked_out: !worktree.is_empty() });
        }
    }
    refs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(refs)
}

/// What HEAD says, in any format of references.
pub(crate) fn head(git: &Git) -> Result<Head> {
    let line = |output: Option<Vec<u8>>| -> Result<Option<String>> {
        let Some(bytes) = output else { return Ok(None) };
        Ok(Some(
            String::from_utf8(bytes).context("cannot read HEAD: it is not UTF-8")?.trim_end_matches('\n').to_owned(),
        ))
    };
    let branch = line(git.ask(&["symbolic-ref", "-q", "HEAD"])?)?;
    let oid = line(git.ask(&["rev-parse", "-q", "--verify", "HEAD"])?)?;
    Ok(Head { branch, oid })
}

/// The text of a `packed-refs` file. `refs` may come in any order and hold a name twice: the first one counts.
pub(crate) fn packed(refs: &[(String, String)]) -> Vec<u8> {
    let mut sorted: Vec<&(String, String)> = refs.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    sorted.dedup_by(|later, earlier| later.0 == earlier.0);
    let mut text = String::from("# pack-refs with: sorted \n");
    for (name, oid) in sorted {
        text.extend([oid.as_str(), " ", name.as_str(), "\n"]);
    }
    text.into_bytes()
}

/// Whether this is an object's name in full, of either hash.
pub(crate) fn is_oid(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether git takes this name for a reference below `refs/` (as `git check-ref-format` decides).
pub(crate) fn is_ref_name(name: &str) -> bool {
    let part_ok =
        |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock") && !part.ends_with('.');
    name.len() <= 512
        && name.starts_with("refs/")
        && name.split('/').count() > 2
        && name.split('/').all(part_ok)
        && !name.contains("..")
        && !name.contains("@{")
        && !name
            .chars()
            .any(|c| c.is_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\' | '\u{7f}'))
}

/// Why a branch or tag of this name is not made on the host: there it would be taken for something else.
pub(crate) fn misleading(name: &str, host: &[Ref]) -> Option<String> {
    let short = name.strip_prefix("refs/heads/").or_else(|| name.strip_prefix("refs/tags/"))?;
    if short.starts_with('-') {
        return Some("it looks like an option".to_owned());
    }
    if is_oid(short) || short == "@" || short.starts_with("refs/") || short.ends_with("HEAD") && !short.contains('/') {
        return Some("git would take it for something else".to_owned());
    }
    if short
        .chars()
        .any(|c| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'))
    {
        return Some("it holds characters that cannot be seen".to_owned());
    }
    let twins = ["refs/heads/", "refs/tags/", "refs/remotes/", "refs/"].map(|space| format!("{space}{short}"));
    let remote = format!("refs/remotes/{short}/");
    host.iter()
        .find(|r| r.name != name && (twins.contains(&r.name) || r.name.starts_with(&remote)))
        .map(|twin| format!("'{short}' would also mean '{}'", twin.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_host(name: &str) -> Ref {
        Ref { oid: "0".repeat(40), name: name.to_owned(), symref: None, checked_out: false }
    }

    #[test]
    fn names_that_leave_their_place_are_no_references() {
        for name in
            ["refs/heads/a", "refs/heads/a/b", "refs/heads/ä", "refs/heads/a@b", "refs/tags/v1.0", "refs/heads/-x"]
        {
            assert!(is_ref_name(name), "{name}");
        }
        for name in [
            "HEAD",
            "refs/heads",
            "refs/heads/",
            "refs/heads/../x",
            "refs/heads/a..b",
            "refs/heads/.a",
            "refs/heads/a.lock",
            "refs/heads/a b",
            "refs/heads/a\nb",
            "refs/heads/a//b",
            "refs/heads/a~1",
            "refs/heads/a@{1}",
            "refs/heads/a.",
            "/refs/heads/a",
            "refs/heads/a\\b",
        ] {
            assert!(!is_ref_name(name), "{name}");
        }
    }

    #[test]
    fn a_branch_or_tag_that_would_be_taken_for_another_is_misleading() {
        let host = [on_host("refs/heads/main"), on_host("refs/remotes/origin/main"), on_host("refs/tags/v1")];
        for name in [
            "refs/tags/main",
            "refs/heads/origin/main",
            "refs/heads/v1",
            "refs/heads/HEAD",
            "refs/tags/FETCH_HEAD",
            "refs/heads/-f",
            "refs/tags/origin",
            "refs/heads/0000000000000000000000000000000000000000",
            "refs/heads/ma\u{200b}in",
        ] {
            assert!(misleading(name, &host).is_some(), "{name}");
        }
        for name in
            ["refs/heads/main", "refs/heads/feature/x", "refs/tags/v2", "refs/heads/fix/HEAD", "refs/heads/origin2"]
        {
            assert_eq!(misleading(name, &host), None, "{name}");
        }
    }

    #[test]
    fn packed_references_are_sorted_and_the_first_of_two_counts() {
        let refs = [("refs/b", "2"), ("refs/a", "1"), ("refs/a", "9")].map(|(n, o)| (n.to_owned(), o.to_owned()));
        assert_eq!(packed(&refs), b"# pack-refs with: sorted \n1 refs/a\n2 refs/b\n");
    }
}
