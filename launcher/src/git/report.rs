//! What an import did, as a value and as lines for a person.

use std::fmt;
use std::path::PathBuf;

/// What became of one import.
#[derive(Debug, Default)]
pub(crate) struct ImportReport {
    pub(crate) repositories: Vec<RepositoryReport>,
}

/// What became of one repository: the session's own, or a submodule of it.
#[derive(Debug, Default)]
pub(crate) struct RepositoryReport {
    /// From the top; empty for the repository itself.
    pub(crate) path: PathBuf,
    pub(crate) landed: Vec<Landed>,
}

/// What became of one reference.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Landed {
    /// A branch or tag that is new on the host.
    Made { name: String, oid: String },
    /// A branch that was moved forward.
    Forwarded { name: String, from: String, to: String },
    /// The working tree is now on this branch, or detached at this commit, as it was in the container.
    CheckedOut { name: String, to: String },
    /// Taken, but put aside below `refs/pi/`.
    Kept { name: String, at: String, why: String },
    /// Not taken. It is still on the private side.
    Refused { name: String, why: String },
}

impl ImportReport {
    /// Something was refused, so the private side still has what the host has not.
    pub(crate) fn has_refusals(&self) -> bool {
        self.repositories.iter().flat_map(|r| &r.landed).any(|landed| matches!(landed, Landed::Refused { .. }))
    }

    /// One line for each thing that happened; safe to print.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for repository in &self.repositories {
            for landed in &repository.landed {
                let place = if repository.path.as_os_str().is_empty() {
                    String::new()
                } else {
                    format!("{}: ", repository.path.display())
                };
                lines.push(printable(&format!("{place}{landed}")));
            }
        }
        if self.has_refusals() {
            lines.push(
                "what was refused is in the container below 'refs/pi/refused/', from the next session on".to_owned(),
            );
        }
        lines
    }
}

impl fmt::Display for Landed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Landed::Made { name, oid } => write!(f, "{} is new, at {}", short(name), abbreviated(oid)),
            Landed::Forwarded { name, from, to } => {
                write!(f, "{} went from {} to {}", short(name), abbreviated(from), abbreviated(to))
            }
            Landed::CheckedOut { name, to } if name == "HEAD" => {
                write!(f, "the working tree is now detached at {}", abbreviated(to))
            }
            Landed::CheckedOut { name, .. } => write!(f, "the working tree is now on {}", short(name)),
            Landed::Kept { name, at, why } => write!(f, "{} is kept as {at}: {why}", short(name)),
            Landed::Refused { name, why } => {
                write!(f, "{} was refused and is only on the private side: {why}", short(name))
            }
        }
    }
}

fn short(name: &str) -> String {
    match name.split_once('/') {
        Some(("refs", rest)) => match rest.split_once('/') {
            Some(("heads", branch)) => format!("branch '{branch}'"),
            Some(("tags", tag)) => format!("tag '{tag}'"),
            _ => format!("'{name}'"),
        },
        Some(("stash", number)) => format!("stash {number}"),
        Some(("worktree", name)) => format!("the detached worktree '{name}'"),
        _ if name == "index" => "what is staged".to_owned(),
        _ => format!("'{name}'"),
    }
}

fn abbreviated(oid: &str) -> &str {
    oid.get(..10).unwrap_or(oid)
}

/// A text from outside without what a terminal would obey or would not show.
pub(crate) fn printable(text: &str) -> String {
    let invisible =
        |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    text.chars().map(|c| if c.is_control() || invisible(c) { '?' } else { c }).take(2000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_nothing_that_a_terminal_would_obey() {
        let landed = Landed::Refused { name: "refs/heads/a\u{1b}]52;c;eA==\u{7}".to_owned(), why: "x\r\ny".to_owned() };
        let repository = RepositoryReport { path: "sub".into(), landed: vec![landed] };
        let lines = ImportReport { repositories: vec![repository] }.lines();
        assert_eq!(lines[0], "sub: branch 'a?]52;c;eA==?' was refused and is only on the private side: x??y");
    }
}
