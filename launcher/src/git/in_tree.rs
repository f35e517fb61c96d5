//! Files in the working tree that the host's git is configured to use: hooks kept in the tree, helper scripts, included configuration.
//! The agent can write to them as to any file of the tree.

use std::path::{Component, Path, PathBuf};

use super::repository::Repository;

/// What the host's git takes from the tree.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct InTree {
    /// Programs, and folders of programs.
    pub(crate) programs: Vec<PathBuf>,
    /// Configuration that git reads. It may not exist yet.
    pub(crate) included: Vec<PathBuf>,
}

/// Whether the value of a setting is run, as a whole or in its first word.
fn names_program(key: &str, value: &str) -> bool {
    let (section, name) = (key.split('.').next().unwrap_or_default(), key.rsplit('.').next().unwrap_or_default());
    match section {
        "core" => {
            matches!(name, "hookspath" | "fsmonitor" | "sshcommand" | "editor" | "pager" | "askpass" | "gitproxy")
        }
        "alias" => value.starts_with('!'),
        "filter" => matches!(name, "clean" | "smudge" | "process"),
        "diff" => matches!(name, "external" | "command" | "textconv"),
        "merge" => name == "driver",
        "mergetool" | "difftool" | "browser" | "man" => name == "cmd",
        "gpg" => name == "program",
        "sequence" => name == "editor",
        "credential" => name == "helper",
        "remote" => matches!(name, "uploadpack" | "receivepack"),
        "pager" | "interactive" | "sendemail" | "trailer" => true,
        _ => false,
    }
}

/// Looks through the settings in force for the user. `local` are the repository's own among them.
pub(crate) fn find(repository: &Repository, users: &[(String, String)], local: &[(String, String)]) -> InTree {
    let mut found = InTree::default();
    for (key, value) in users.iter().filter(|(key, value)| names_program(key, value)) {
        let words =
            value.split(|c: char| c.is_whitespace() || "'\"!;|&()=".contains(c)).filter(|word| !word.is_empty());
        for word in words {
            let path = normal(&repository.root.join(word));
            // A bare word is looked up on the PATH, not in the tree; but for a folder of hooks.
            let is_path = word.contains('/') || key == "core.hookspath";
            if is_path
                && path.starts_with(&repository.root)
                && path != repository.root
                && !in_git(repository, &path)
                && path.exists()
            {
                if key == "core.hookspath" && path.file_name().is_some_and(|name| name == "_") {
                    // Husky: the folder that git knows calls the scripts beside it.
                    found.programs.extend(path.parent().map(Path::to_owned));
                }
                found.programs.push(path);
            }
        }
    }
    let includes = local
        .iter()
        .filter(|(key, _)| key == "include.path" || key.starts_with("includeif.") && key.ends_with(".path"));
    for (_, value) in includes.filter(|(_, value)| !value.starts_with('~')) {
        let path = normal(&repository.common_dir.join(value));
        if path.starts_with(&repository.root) && !in_git(repository, &path) {
            found.included.push(path);
        }
    }
    for list in [&mut found.programs, &mut found.included] {
        list.sort();
        list.dedup();
    }
    found
}

fn in_git(repository: &Repository, path: &Path) -> bool {
    path.starts_with(&repository.git_dir) || path.starts_with(&repository.common_dir)
}

/// The path without `.` and `..`, by its text.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => _ = normal.pop(),
            part => normal.push(part),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_scripts_and_includes_in_the_tree_are_found_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        for path in [".husky/_/pre-commit", "tools/clean.sh", ".gitconfig", ".git/hooks/x", "sh"] {
            std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            std::fs::write(root.join(path), "").unwrap();
        }
        let repository = Repository {
            root: root.clone(),
            git_dir: root.join(".git"),
            common_dir: root.join(".git"),
            by_file: false,
        };
        let settings: Vec<(String, String)> = [
            ("core.hookspath", ".husky/_"),
            ("filter.x.clean", "sh ./tools/clean.sh %f"),
            ("core.editor", "vi"),
            ("alias.x", "!sh -c x"),
            ("core.fsmonitor", "true"),
            ("include.path", "../.gitconfig"),
            ("include.path", "other"),
            ("user.name", "tools/clean.sh"),
            ("core.pager", ".git/hooks/x"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let found = find(&repository, &settings, &settings);
        assert_eq!(found.programs, [root.join(".husky"), root.join(".husky/_"), root.join("tools/clean.sh")]);
        assert_eq!(found.included, [root.join(".gitconfig")]);
    }
}
