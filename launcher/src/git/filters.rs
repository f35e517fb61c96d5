//! Files whose content goes through a program on its way into git (git-crypt and the like). The program is not in the container, and
//! without it the agent would commit what is in the tree: with git-crypt, the secret in plain text. So there these files count as
//! unchanged, and git refuses to take new ones.

use std::fmt::Write;

use anyhow::Result;

use super::run::Git;
use super::settings::quoted;

/// Passes on what git has already, which is what a checkout without the program leaves; anything else is refused.
const CLEAN: &str = "f=$(mktemp) && cat > \"$f\" && if git cat-file -e \"$(git hash-object --no-filters \"$f\")\" 2>/dev/null; then cat \"$f\"; rm \"$f\"; \
    else rm \"$f\"; echo 'the filter of this file is not in the container: commit it on the host' >&2; exit 1; fi";

/// The names of the filters that are configured, without git-lfs, which the container has.
pub(crate) fn names(settings: &[(String, String)]) -> Vec<String> {
    let mut names: Vec<String> = settings
        .iter()
        .filter_map(|(key, _)| key.strip_prefix("filter.")?.rsplit_once('.'))
        .filter(|(name, key)| *name != "lfs" && matches!(*key, "clean" | "smudge" | "process" | "required"))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The part of a configuration that stands in for these filters.
pub(crate) fn stand_ins(names: &[String]) -> String {
    let mut text = String::new();
    for name in names {
        let _ =
            writeln!(text, "[filter {}]\n\tclean = {}\n\tsmudge = cat\n\trequired = true", quoted(name), quoted(CLEAN));
    }
    text
}

/// Marks the files of these filters as unchanged in an index, which is a copy. Returns how many there are.
pub(crate) fn freeze(git: &Git, names: &[String]) -> Result<usize> {
    let specs: Vec<String> = names.iter().map(|name| format!(":(top,attr:filter={name})")).collect();
    let mut args = vec!["ls-files", "-z", "--"];
    args.extend(specs.iter().map(String::as_str));
    let files = git.run(&args)?;
    if !files.is_empty() {
        git.feed(&["update-index", "-z", "--assume-unchanged", "--stdin"], |stdin| {
            std::io::Write::write_all(stdin, &files)
        })?;
    }
    Ok(files.iter().filter(|&&b| b == 0).count())
}
