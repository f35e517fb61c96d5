//! Large files that git-lfs keeps beside the repository. A container hands out those that its commits point to; each is taken only if its
//! content has the hash that is its name.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::bundle::{Bundle, Kind, Section};
use super::ledger::Known;

/// Stores the large files of one repository. Returns the names of those that were not what they claimed to be.
pub(crate) fn store(bundle: &Bundle, key: &str, known: &Known, owner: Option<(u32, u32)>) -> Result<Vec<String>> {
    let mut false_ones = Vec::new();
    for section in bundle.sections.iter().filter(|section| section.repository == key) {
        let Kind::Lfs(oid) = &section.kind else { continue };
        let folder = known.common_dir.join("lfs/objects").join(&oid[..2]).join(&oid[2..4]);
        if folder.join(oid).exists() {
            continue;
        }
        make_folders(&known.common_dir, &folder, owner)
            .with_context(|| format!("cannot make '{}'", folder.display()))?;
        let new = folder.join(format!("{oid}.pi-new"));
        let stored = write_if_true(bundle, section, oid, &new, owner)
            .with_context(|| format!("cannot write '{}'", new.display()));
        match stored {
            Ok(true) => fs::rename(&new, folder.join(oid))
                .with_context(|| format!("cannot write '{}'", folder.join(oid).display()))?,
            Ok(false) => {
                let _ = fs::remove_file(&new);
                false_ones.push(oid.clone());
            }
            Err(e) => {
                let _ = fs::remove_file(&new);
                return Err(e);
            }
        }
    }
    Ok(false_ones)
}

struct Hashing<'a> {
    file: &'a mut File,
    hash: Sha256,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn write_if_true(
    bundle: &Bundle,
    section: &Section,
    oid: &str,
    to: &Path,
    owner: Option<(u32, u32)>,
) -> io::Result<bool> {
    let _ = fs::remove_file(to);
    let mut file = File::options().write(true).create_new(true).open(to)?;
    super::ledger::give(&file, owner)?;
    let mut hashing = Hashing { file: &mut file, hash: Sha256::new() };
    bundle.write_section(section, &mut hashing)?;
    let hash: String = hashing.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    file.sync_data()?;
    Ok(hash == oid)
}

fn make_folders(base: &Path, folder: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|step| *step != base && !step.is_dir()).collect();
    for step in missing.into_iter().rev() {
        fs::create_dir(step)?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(step, Some(uid), Some(gid))?;
        }
    }
    Ok(())
}
