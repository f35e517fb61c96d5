//! The title and body of a pull request: the agent's own words if it left some, else the repository's template and the
//! commits. Pure but for reading the base commit's tree and the agent's file.

use git2::{Oid, Repository};

use crate::report::Usage;
use crate::stream::clip;
use crate::task::TaskName;

/// GitHub's own limits are 256 and 65536 characters.
const TITLE: usize = 200;
const BODY: usize = 60_000;

#[derive(Debug, PartialEq)]
pub(crate) struct PrText {
    pub(crate) title: String,
    pub(crate) body: String,
}

/// What a text is made of.
pub(crate) struct Source<'a> {
    pub(crate) task: &'a TaskName,
    /// A title that was asked for.
    pub(crate) title: Option<&'a str>,
    /// What the agent wrote to its file.
    pub(crate) written: Option<&'a str>,
    pub(crate) template: Option<&'a str>,
    /// Subjects, oldest first.
    pub(crate) commits: &'a [String],
    pub(crate) summary: &'a str,
    /// Why the work is not complete.
    pub(crate) partial: Option<&'a str>,
    pub(crate) model: Option<&'a str>,
    pub(crate) usage: &'a Usage,
}

pub(crate) fn compose(source: &Source) -> PrText {
    let written = source.written.map(str::trim).filter(|text| !text.is_empty());
    let (own_title, own_body) = match written.map(|text| text.split_once('\n').unwrap_or((text, ""))) {
        Some((title, body)) => (Some(title.trim_start_matches('#').trim()), Some(body.trim())),
        None => (None, None),
    };
    let title = source
        .title
        .or(own_title.filter(|title| !title.is_empty()))
        .map(str::to_owned)
        .or_else(|| match source.commits {
            [only] => Some(only.clone()),
            _ => None,
        })
        .unwrap_or_else(|| spoken(source.task));
    let mut parts = Vec::new();
    if let Some(reason) = source.partial {
        parts.push(format!("> **Not complete:** {reason}"));
    }
    match own_body.filter(|body| !body.is_empty()) {
        Some(body) => parts.push(body.to_owned()),
        None => {
            parts.extend(source.template.map(|template| template.trim().to_owned()));
            if !source.summary.trim().is_empty() {
                parts.push(source.summary.trim().to_owned());
            }
            if source.commits.len() > 1 {
                parts.push(source.commits.iter().map(|subject| format!("* {subject}")).collect::<Vec<_>>().join("\n"));
            }
        }
    }
    let model = source.model.map(|model| format!(", {model}")).unwrap_or_default();
    let footer = format!("---\nSubagent `{}`{model}, ${:.2}", source.task, source.usage.cost.total);
    let body = clip(&parts.join("\n\n"), BODY);
    PrText { title: clip(title.trim(), TITLE), body: format!("{body}\n\n{footer}").trim_start().to_owned() }
}

/// `fix-login-page` as `Fix login page`.
fn spoken(task: &TaskName) -> String {
    let words = task.as_str().replace('-', " ");
    let mut chars = words.chars();
    chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

/// The pull-request template of the base, where GitHub looks for one.
pub(crate) fn template(repository: &Repository, base: Oid) -> Option<String> {
    let tree = repository.find_commit(base).ok()?.tree().ok()?;
    for folder in [".github", "", "docs"] {
        let found = if folder.is_empty() {
            Some(tree.clone())
        } else {
            tree.get_name(folder).and_then(|entry| entry.to_object(repository).ok()?.into_tree().ok())
        };
        let Some(found) = found else { continue };
        let entry = found.iter().find(|entry| {
            let name = entry.name().unwrap_or_default().to_lowercase();
            name == "pull_request_template.md" || name == "pull_request_template.txt" || name == "pull_request_template"
        });
        let blob = entry.and_then(|entry| entry.to_object(repository).ok()?.into_blob().ok());
        if let Some(blob) = blob {
            return Some(String::from_utf8_lossy(blob.content()).into_owned());
        }
    }
    None
}

/// Subjects of the commits that the branch has and the base has not, oldest first.
pub(crate) fn subjects(repository: &Repository, base: Oid, head: Oid) -> Vec<String> {
    let walk = || -> Result<Vec<String>, git2::Error> {
        let mut walk = repository.revwalk()?;
        walk.push(head)?;
        walk.hide(base)?;
        let mut found: Vec<String> = walk
            .take(200)
            .filter_map(|oid| repository.find_commit(oid.ok()?).ok())
            .map(|commit| clip(&String::from_utf8_lossy(commit.summary_bytes().unwrap_or_default()), TITLE))
            .collect();
        found.reverse();
        Ok(found)
    };
    walk().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source<'a>(task: &'a TaskName, usage: &'a Usage) -> Source<'a> {
        Source {
            task,
            title: None,
            written: None,
            template: None,
            commits: &[],
            summary: "",
            partial: None,
            model: None,
            usage,
        }
    }

    #[test]
    fn the_agents_own_words_come_first_and_the_template_steps_in_for_them() {
        let (task, usage) = (TaskName::parse("fix-login").unwrap(), Usage::default());
        let base = source(&task, &usage);
        let own = compose(&Source { written: Some("# Fix it\n\nBecause.\n"), template: Some("## Why"), ..base });
        assert_eq!((own.title.as_str(), own.body.starts_with("Because.\n\n---")), ("Fix it", true));
        let base = source(&task, &usage);
        let none = compose(&Source {
            template: Some("## Why"),
            commits: &["a".into(), "b".into()],
            summary: "Did it.",
            ..base
        });
        assert_eq!(none.title, "Fix login");
        assert!(none.body.starts_with("## Why\n\nDid it.\n\n* a\n* b\n\n---\nSubagent `fix-login`"), "{}", none.body);
    }

    #[test]
    fn what_is_not_complete_says_so_first() {
        let (task, usage) = (TaskName::parse("x").unwrap(), Usage::default());
        let text = compose(&Source { partial: Some("stopped after 30 min"), ..source(&task, &usage) });
        assert!(text.body.starts_with("> **Not complete:** stopped after 30 min"));
    }
}
