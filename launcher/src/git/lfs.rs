//! Large files that git-lfs keeps beside the repository. A container hands out those that its commits point to; each is taken only if its
//! content has the hash that is its name.

use std::fs::File;
use std::io::{self, Write};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::bundle::{Bundle, Kind, Section};
use super::ledger::Known;
use super::place::Folder;

/// Stores the large files of one repository. Returns the names of those that were not what they claimed to be.
pub(crate) fn store(bundle: &Bundle, key: &str, known: &Known, owner: Option<(u32, u32)>) -> Result<Vec<String>> {
    let mut false_ones = Vec::new();
    for section in bundle.sections.iter().filter(|section| section.repository == key) {
        let Kind::Lfs(oid) = &section.kind else { continue };
        let path = format!("lfs/objects/{}/{}", &oid[..2], &oid[2..4]);
        let store = || -> io::Result<bool> {
            // An agent that once could write there may have left links.
            let folder = Folder::open(&known.common_dir, owner)?.descend(&path)?;
            Ok(folder.has(oid) || write_if_true(bundle, section, oid, &folder)?)
        };
        let cannot = || format!("cannot write '{}'", known.common_dir.join(&path).join(oid).display());
        if !store().with_context(cannot)? {
            false_ones.push(oid.clone());
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

fn write_if_true(bundle: &Bundle, section: &Section, oid: &str, folder: &Folder) -> io::Result<bool> {
    let placed = folder.place(oid, |file| {
        let mut hashing = Hashing { file, hash: Sha256::new() };
        bundle.write_section(section, &mut hashing)?;
        let hash: String = hashing.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if hash != oid {
            return Err(io::ErrorKind::InvalidData.into());
        }
        hashing.file.sync_data()
    });
    match placed {
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(false),
        placed => placed.map(|()| true),
    }
}
