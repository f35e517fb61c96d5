//! Files of the user's own that the launcher makes: with their mode from the first moment, never over something that is there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cli::Owner;

/// Makes files and folders that belong to the agent's user. Only root can give them away, and has to.
#[derive(Clone, Copy)]
pub(crate) struct Maker {
    give_to: Option<Owner>,
}

impl Maker {
    /// `user` is the agent's.
    pub(crate) fn new(user: Owner) -> Maker {
        Maker { give_to: nix::unistd::geteuid().is_root().then_some(user) }
    }

    /// Makes a folder, 0700; it must not exist.
    pub(crate) fn dir(&self, path: &Path) -> Result<()> {
        DirBuilder::new().mode(0o700).create(path).with_context(|| cannot_make(path))?;
        self.give(path)
    }

    /// Makes a folder and its parents, 0700, if they are not there.
    pub(crate) fn dirs(&self, path: &Path) -> Result<()> {
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => Ok(()),
            Ok(_) => bail!("cannot make '{}': something that is not a folder is there", path.display()),
            Err(_) => {
                if let Some(parent) = path.parent().filter(|p| !p.is_dir()) {
                    self.dirs(parent)?;
                }
                match DirBuilder::new().mode(0o700).create(path) {
                    Ok(()) => self.give(path),
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    Err(e) => Err(e).with_context(|| cannot_make(path)),
                }
            }
        }
    }

    /// Makes a file with this content, 0600; it must not exist.
    pub(crate) fn file(&self, path: &Path, content: &[u8]) -> Result<File> {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let mut file = made.with_context(|| cannot_make(path))?;
        file.write_all(content).with_context(|| format!("cannot write '{}'", path.display()))?;
        self.give(path)?;
        Ok(file)
    }

    fn give(&self, path: &Path) -> Result<()> {
        match self.give_to {
            Some(owner) => chown(path, Some(owner.uid), Some(owner.gid)).with_context(|| cannot_make(path)),
            None => Ok(()),
        }
    }
}

/// Opens a file for a lock, and makes it if it is not there.
pub(crate) fn lock_file(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    opened.with_context(|| format!("cannot open '{}'", path.display()))
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot change '{}'", path.display()))
}

fn cannot_make(path: &Path) -> String {
    format!("cannot make '{}'", path.display())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn a_new_file_is_private_and_a_planted_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let maker = Maker { give_to: None };
        maker.file(&dir.path().join("f"), b"x").unwrap();
        assert_eq!(fs::metadata(dir.path().join("f")).unwrap().mode() & 0o777, 0o600);
        let target = dir.path().join("victim");
        symlink(&target, dir.path().join("link")).unwrap();
        assert!(maker.file(&dir.path().join("link"), b"x").is_err());
        assert!(!target.exists());
        symlink(dir.path(), dir.path().join("dirlink")).unwrap();
        assert!(maker.dirs(&dir.path().join("dirlink")).is_err());
        maker.dirs(&dir.path().join("a/b/c")).unwrap();
        assert_eq!(fs::metadata(dir.path().join("a/b")).unwrap().mode() & 0o777, 0o700);
    }
}
