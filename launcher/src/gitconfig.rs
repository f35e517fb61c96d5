//! The git configuration of a session: who the user is, and how lines and ignored files are treated. A short list of plain values,
//! never a command, a path of the host or a key for signing.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Settings that are words or numbers to git, and nothing that it would run or open.
const KEPT: &[&str] = &[
    "core.autocrlf",
    "core.eol",
    "core.safecrlf",
    "core.abbrev",
    "core.quotepath",
    "init.defaultbranch",
    "pull.rebase",
    "pull.ff",
    "merge.conflictstyle",
    "merge.ff",
    "diff.algorithm",
    "rebase.autosquash",
    "rebase.autostash",
    "rerere.enabled",
    "fetch.prune",
    "commit.verbose",
    "i18n.commitencoding",
];

/// Where PID 1 puts the ignore list, `in/gitignore`.
const EXCLUDES: &str = "/home/pi/.config/git/ignore";

/// Who the commits are by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) email: String,
}

/// The identity that git would use here, if it is set whole.
pub(crate) fn identity(settings: &HashMap<String, String>, env: &(Option<String>, Option<String>)) -> Option<Identity> {
    let pick = |from_env: &Option<String>, keys: [&str; 2]| {
        from_env
            .clone()
            .or_else(|| keys.iter().find_map(|key| settings.get(*key).filter(|v| !v.trim().is_empty()).cloned()))
    };
    Some(Identity {
        name: pick(&env.0, ["author.name", "user.name"])?,
        email: pick(&env.1, ["author.email", "user.email"])?,
    })
}

/// The session's gitconfig.
pub(crate) fn render(identity: Option<&Identity>, settings: &HashMap<String, String>) -> String {
    let mut text = String::new();
    if let Some(identity) = identity {
        let _ = write!(text, "[user]\n\tname = {}\n\temail = {}\n", quoted(&identity.name), quoted(&identity.email));
    }
    let _ = write!(text, "[core]\n\texcludesFile = {EXCLUDES}\n");
    for key in KEPT {
        if let (Some(value), Some((section, name))) = (settings.get(*key), key.split_once('.')) {
            let _ = write!(text, "[{section}]\n\t{name} = {}\n", quoted(value));
        }
    }
    text
}

/// The file of ignored names that the user has for all repositories: the one that is `configured`, else git's default.
pub(crate) fn excludes_file(configured: Option<&str>, user_home: &Path, user_config: &Path) -> PathBuf {
    match configured {
        Some(path) => match path.strip_prefix("~/") {
            Some(rest) => user_home.join(rest),
            None => PathBuf::from(path),
        },
        None => user_config.join("git/ignore"),
    }
}

/// The session's ignore list: the user's, and the folder of the worktrees.
pub(crate) fn ignore_list(of_the_user: &str) -> String {
    let mut text = of_the_user.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text + "/.worktrees/\n"
}

fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            c if c.is_control() => {}
            c => text.push(c),
        }
    }
    text + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn no_command_no_path_and_no_signing_key_goes_along() {
        let settings = settings(&[
            ("core.autocrlf", "input"),
            ("core.editor", "vi"),
            ("core.sshcommand", "evil"),
            ("credential.helper", "!evil"),
            ("commit.gpgsign", "true"),
            ("user.signingkey", "K"),
            ("alias.x", "!evil"),
            ("core.excludesfile", "/host/path"),
        ]);
        let text = render(None, &settings);
        assert_eq!(text, "[core]\n\texcludesFile = /home/pi/.config/git/ignore\n[core]\n\tautocrlf = \"input\"\n");
    }

    #[test]
    fn a_name_cannot_break_out_of_its_line() {
        let identity = Identity { name: "A \"B\"\n[alias]\n\tx = !evil \\".into(), email: "a@b".into() };
        let text = render(Some(&identity), &HashMap::new());
        assert!(
            text.starts_with("[user]\n\tname = \"A \\\"B\\\"\\n[alias]\\n\\tx = !evil \\\\\"\n\temail = \"a@b\"\n"),
            "{text}"
        );
    }

    #[test]
    fn the_identity_of_the_environment_wins_and_half_of_one_is_none() {
        let both = settings(&[("user.name", "N"), ("user.email", "e@x")]);
        assert_eq!(identity(&both, &(Some("M".into()), None)).unwrap().name, "M");
        assert!(identity(&settings(&[("user.name", "N")]), &(None, None)).is_none());
    }

    #[test]
    fn worktrees_are_ignored_after_a_list_without_a_last_newline() {
        assert_eq!(ignore_list("*.swp"), "*.swp\n/.worktrees/\n");
    }
}
