//! The private git directory's configuration, written anew: from the repository's own settings come only those that say what the
//! content is and where it goes. No key that names a program, and no address with a password in it.

use std::fmt::Write;

use super::filters;

/// What the configuration needs to know beside the repository's own settings.
pub(crate) struct Basis<'a> {
    /// The repository's settings in order, as `git config --list -z` prints them: `key\nvalue`.
    pub(crate) local: &'a [(String, String)],
    /// Where the working tree is in the container, if git would not find it by itself.
    pub(crate) work_tree: Option<&'a str>,
    /// The repository keeps large files outside git.
    pub(crate) lfs: bool,
    /// The user's other filters, by name: their programs are not in the container.
    pub(crate) filters: &'a [String],
}

/// Section, subsection or not, and the keys that are taken over.
const SAFE: &[(&str, bool, &[&str])] = &[
    (
        "core",
        false,
        &[
            "abbrev",
            "autocrlf",
            "bigfilethreshold",
            "checkstat",
            "commentchar",
            "eol",
            "filemode",
            "ignorecase",
            "precomposeunicode",
            "quotepath",
            "safecrlf",
            "sparsecheckout",
            "sparsecheckoutcone",
            "symlinks",
            "trustctime",
            "whitespace",
        ],
    ),
    ("author", false, &["email", "name"]),
    ("branch", true, &["description", "merge", "pushremote", "rebase", "remote"]),
    ("committer", false, &["email", "name"]),
    ("fetch", false, &["prune", "prunetags"]),
    ("i18n", false, &["commitencoding", "logoutputencoding"]),
    ("index", false, &["sparse"]),
    ("init", false, &["defaultbranch"]),
    ("lfs", false, &["fetchexclude", "fetchinclude", "pushurl", "repositoryformatversion", "url"]),
    ("merge", false, &["conflictstyle", "ff", "renames"]),
    ("pull", false, &["ff", "rebase"]),
    ("push", false, &["autosetupremote", "default", "followtags"]),
    ("remote", false, &["pushdefault"]),
    (
        "remote",
        true,
        &[
            "fetch",
            "gh-resolved",
            "lfsurl",
            "partialclonefilter",
            "promisor",
            "prune",
            "push",
            "pushurl",
            "tagopt",
            "url",
        ],
    ),
    ("submodule", false, &["active"]),
    ("submodule", true, &["active", "branch", "ignore", "url"]),
    ("user", false, &["email", "name"]),
];

/// The text of the configuration.
pub(crate) fn render(basis: &Basis) -> String {
    let sha256 = value(basis.local, "extensions.objectformat").is_some_and(|format| format == "sha256");
    let mut text = format!(
        "[core]\n\trepositoryformatversion = {}\n\tbare = false\n\tlogAllRefUpdates = true\n",
        u8::from(sha256)
    );
    if !cfg!(target_os = "linux") {
        // A container on another machine's kernel sees other inodes and times of change; the content has not changed.
        text.push_str("\tcheckStat = minimal\n\ttrustctime = false\n");
    }
    if let Some(work_tree) = basis.work_tree {
        let _ = writeln!(text, "\tworktree = {}", quoted(work_tree));
    }
    if sha256 {
        text.push_str("[extensions]\n\tobjectFormat = sha256\n");
    }
    for (key, value) in basis.local {
        let Some((section, subsection, name)) = split(key) else { continue };
        let safe = SAFE
            .iter()
            .any(|(s, has_sub, names)| *s == section && *has_sub == subsection.is_some() && names.contains(&name));
        // A folder of hooks in the tree comes along with the tree: in the container its hooks run as the agent.
        let hooks_in_tree =
            key == "core.hookspath" && !value.starts_with(['/', '~']) && !value.split('/').any(|part| part == "..");
        if (safe || hooks_in_tree) && is_text(value) && subsection.is_none_or(is_text) {
            match subsection {
                Some(sub) => _ = writeln!(text, "[{section} {}]", quoted(sub)),
                None => _ = writeln!(text, "[{section}]"),
            }
            let _ = writeln!(text, "\t{name} = {}", quoted(&without_secret(value)));
        }
    }
    if basis.lfs {
        text.push_str(
            "[filter \"lfs\"]\n\tclean = git-lfs clean -- %f\n\tsmudge = git-lfs smudge -- %f\n\tprocess = git-lfs filter-process\n\trequired = true\n",
        );
    }
    text.push_str(&filters::stand_ins(basis.filters));
    text
}

/// The value in force of a key, which is in lower case.
pub(crate) fn value<'a>(settings: &'a [(String, String)], key: &str) -> Option<&'a str> {
    settings.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

/// What `git config --list -z` has printed.
pub(crate) fn parse(output: &[u8]) -> Vec<(String, String)> {
    let entries = output.split(|&b| b == 0).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let entry = String::from_utf8_lossy(entry);
            // A key alone is how git writes "true" shortest.
            let (key, value) = entry.split_once('\n').unwrap_or((&entry, "true"));
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

fn split(key: &str) -> Option<(&str, Option<&str>, &str)> {
    let (section, rest) = key.split_once('.')?;
    match rest.rsplit_once('.') {
        Some((subsection, name)) => Some((section, Some(subsection), name)),
        None => Some((section, None, rest)),
    }
}

fn is_text(value: &str) -> bool {
    !value.chars().any(|c| c.is_control() && c != '\t')
}

/// A value or subsection as a configuration file holds it.
pub(crate) fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

/// An address without user and password; for SSH the user stays, it is part of where to go.
fn without_secret(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else { return value.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let Some((userinfo, host)) = authority.rsplit_once('@') else { return value.to_owned() };
    match userinfo.split(':').next() {
        Some(user) if scheme.contains("ssh") => format!("{scheme}://{user}@{host}{path}"),
        _ => format!("{scheme}://{host}{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(local: &[(&str, &str)]) -> String {
        let local: Vec<(String, String)> = local.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        render(&Basis { local: &local, work_tree: None, lfs: false, filters: &[] })
    }

    #[test]
    fn no_program_no_include_and_no_password_is_taken_over() {
        let text = rendered(&[
            ("core.fsmonitor", "evil"),
            ("core.sshcommand", "evil"),
            ("core.hookspath", "/evil"),
            ("include.path", "evil"),
            ("alias.x", "!evil"),
            ("filter.x.clean", "evil"),
            ("diff.x.textconv", "evil"),
            ("remote.o.uploadpack", "evil"),
            ("remote.o.vcs", "evil"),
            ("credential.helper", "evil"),
            ("submodule.a.update", "!evil"),
            ("remote.o.proxy", "http://evil"),
            ("core.worktree", "/evil"),
            ("remote.origin.url", "https://me:secret@github.com/a/b.git"),
            ("remote.origin.pushurl", "https://secret@github.com/a/b"),
            ("remote.s.url", "ssh://git:secret@github.com/a/b"),
            ("branch.b.remote", "https://x:secret@h/p@q"),
        ]);
        assert!(!text.contains("evil") && !text.contains("secret"), "{text}");
        for kept in ["\"https://github.com/a/b.git\"", "\"ssh://git@github.com/a/b\"", "\"https://h/p@q\""] {
            assert!(text.contains(kept), "{text}");
        }
    }

    #[test]
    fn what_the_content_depends_on_is_taken_over_and_quoted() {
        let text = rendered(&[
            ("core.autocrlf", "input"),
            ("branch.a \"b\\.merge", "refs/heads/x"),
            ("core.hookspath", ".githooks"),
            ("user.name", "x\ny"),
        ]);
        assert!(text.contains("[core]\n\tautocrlf = \"input\"\n"), "{text}");
        assert!(text.contains("[branch \"a \\\"b\\\\\"]\n\tmerge = \"refs/heads/x\"\n"), "{text}");
        assert!(text.contains("\thookspath = \".githooks\"\n") && !text.contains("user"), "{text}");
    }

    #[test]
    fn a_sha256_repository_says_so() {
        assert!(rendered(&[("extensions.objectformat", "sha256")]).contains("repositoryformatversion = 1\n"));
    }
}
