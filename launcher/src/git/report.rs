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
    /// What earlier sessions had put aside and a branch has now.
    pub(crate) dropped: Vec<Dropped>,
    /// How much of what they put aside is still there.
    pub(crate) older: usize,
}

/// A reference below `refs/pi/` that is not needed any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) name: String,
    pub(crate) branch: String,
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
        let mut lines: Vec<String> = self.repositories.iter().flat_map(RepositoryReport::lines).collect();
        if self.has_refusals() {
            lines.push(
                "what was refused is in the container below 'refs/pi/refused/', from the next session on".to_owned(),
            );
        }
        lines
    }
}

impl RepositoryReport {
    fn lines(&self) -> Vec<String> {
        let path = self.path.to_string_lossy();
        let (place, git) = match self.path.as_os_str().is_empty() {
            true => (String::new(), "git".to_owned()),
            false => (format!("{path}: "), format!("git -C {}", shell_word(&path))),
        };
        let mut lines: Vec<String> = self.landed.iter().map(|landed| format!("{place}{landed}")).collect();
        for Dropped { name, branch } in &self.dropped {
            lines.push(format!("{place}{name} is dropped: {} has it now", short(branch)));
        }
        let kept = self.landed.iter().find_map(|landed| match landed {
            Landed::Kept { at, .. } => Some(shell_word(at)),
            _ => None,
        });
        if let Some(at) = kept {
            lines.push(format!("{place}to take what is kept: {git} merge {at}"));
            lines.push(format!("{place}to drop it: {git} update-ref -d {at}"));
        }
        if self.older > 0 {
            let count = self.older;
            lines.push(format!("{place}kept from earlier sessions: {count}; to see it: {git} for-each-ref refs/pi"));
        }
        lines.iter().map(|line| printable(line)).collect()
    }
}

/// A word as a shell takes it: the names are the agent's, and the line is there to be copied.
fn shell_word(word: &str) -> String {
    let is_plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
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
    text.chars().map(|c| if is_hidden(c) { '?' } else { c }).take(2000).collect()
}

/// What a terminal obeys, does not show, or shows the rest of a line in another order for.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_nothing_that_a_terminal_would_obey() {
        let landed = Landed::Refused { name: "refs/heads/a\u{1b}]52;c;eA==\u{7}".to_owned(), why: "x\r\ny".to_owned() };
        let repository = RepositoryReport { path: "sub".into(), landed: vec![landed], ..RepositoryReport::default() };
        let lines = ImportReport { repositories: vec![repository] }.lines();
        assert_eq!(lines[0], "sub: branch 'a?]52;c;eA==?' was refused and is only on the private side: x??y");
    }
}
