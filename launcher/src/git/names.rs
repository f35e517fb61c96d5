//! What a folder is to git by the names in it.

/// The names in a folder that make it a repository, as git decides it.
#[derive(Default)]
pub(crate) struct Names {
    head: bool,
    objects: bool,
    refs: bool,
    commondir: bool,
}

impl Names {
    pub(crate) fn add(&mut self, name: &str, is_folder: bool) {
        self.head |= name.eq_ignore_ascii_case("HEAD");
        self.objects |= name.eq_ignore_ascii_case("objects");
        self.refs |= name.eq_ignore_ascii_case("refs");
        self.commondir |= name.eq_ignore_ascii_case("commondir") && !is_folder;
    }

    pub(crate) fn is_repository(&self) -> bool {
        self.head && (self.objects && self.refs || self.commondir)
    }
}

/// Whether some file system takes this name for `.git`.
pub(crate) fn is_dot_git(name: &str) -> bool {
    if !matches!(name.as_bytes().first(), Some(b'.' | b'g' | b'G' | 0x80..)) {
        return false;
    }
    let ignored =
        |c: char| matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}');
    let plain: String = name.chars().filter(|c| !ignored(*c)).collect();
    let plain = plain.split(':').next().unwrap_or_default().trim_end_matches(['.', ' ']);
    plain.eq_ignore_ascii_case(".git") || plain.eq_ignore_ascii_case("git~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_git_is_seen_and_nothing_else() {
        for name in [
            ".git",
            ".GIT",
            ".Git",
            "git~1",
            "GIT~1",
            ".git ",
            ".git...",
            ".g\u{200c}it",
            "\u{feff}.git",
            ".git::$INDEX_ALLOCATION",
        ] {
            assert!(is_dot_git(name), "{name:?}");
        }
        for name in [".gitignore", ".github", "git", ".gi", "git~2", "x.git", ".gitx", ""] {
            assert!(!is_dot_git(name), "{name:?}");
        }
    }
}
