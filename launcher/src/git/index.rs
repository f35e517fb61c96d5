//! Which paths of an index are other repositories (gitlinks), read without git: `git ls-files` would do, but an index that an agent
//! wrote must not be given to git on the host.

use anyhow::{Result, bail};

/// What an index says about other repositories.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Links {
    /// Paths of entries with mode 160000, in the index's order.
    pub(crate) gitlinks: Vec<String>,
    /// An entry lies below this folder.
    pub(crate) below_worktrees: bool,
    /// Part of the index is in another file, which was not read.
    pub(crate) split: bool,
}

const GITLINK: u32 = 0o160_000;

/// Reads the entries. `hash` is the length of an object's name in bytes.
pub(crate) fn links(data: &[u8], hash: usize) -> Result<Links> {
    let mut reader = Reader { data, at: 0 };
    if reader.take(4)? != b"DIRC" {
        bail!("cannot read the index: it does not begin as one");
    }
    let version = reader.number()?;
    if !(2..=4).contains(&version) {
        bail!("cannot read the index: its version {version} is not known");
    }
    let count = reader.number()?;
    let mut found = Links::default();
    let mut name: Vec<u8> = Vec::new();
    for _ in 0..count {
        let start = reader.at;
        let stat = reader.take(40)?;
        let mode = u32::from_be_bytes([stat[24], stat[25], stat[26], stat[27]]);
        reader.take(hash)?;
        let flags = reader.take(2)?;
        if version > 2 && flags[0] & 0x40 != 0 {
            reader.take(2)?;
        }
        if version == 4 {
            let strip = reader.offset()?;
            name.truncate(name.len().saturating_sub(strip));
            name.extend_from_slice(reader.until_nul()?);
        } else {
            name.clear();
            name.extend_from_slice(reader.until_nul()?);
            let length = reader.at - 1 - start;
            reader.at = start + (length / 8 + 1) * 8;
        }
        if mode == GITLINK {
            found.gitlinks.push(String::from_utf8_lossy(&name).into_owned());
        }
        found.below_worktrees |= name.starts_with(b".worktrees/");
    }
    // Extensions: four letters, a length, content; the last bytes are the checksum.
    while data.len().saturating_sub(reader.at) > hash + 8 {
        let name = reader.take(4)?;
        found.split |= name == b"link";
        let length = reader.number()? as usize;
        reader.take(length)?;
    }
    Ok(found)
}

struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let Some(bytes) = self.at.checked_add(length).and_then(|end| self.data.get(self.at..end)) else {
            bail!("cannot read the index: it ends too early");
        };
        self.at += length;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u32> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// Git's variable-length number of a prefix-compressed name.
    fn offset(&mut self) -> Result<usize> {
        let mut byte = self.take(1)?[0];
        let mut value = usize::from(byte & 0x7f);
        while byte & 0x80 != 0 {
            byte = self.take(1)?[0];
            value = ((value + 1) << 7) | usize::from(byte & 0x7f);
            if value > 1 << 20 {
                bail!("cannot read the index: a name in it is too long");
            }
        }
        Ok(value)
    }

    fn until_nul(&mut self) -> Result<&'a [u8]> {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let Some(length) = rest.iter().position(|&b| b == 0) else { bail!("cannot read the index: it ends too early") };
        self.at += length + 1;
        Ok(&rest[..length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(entries: &[(u32, &str)]) -> Vec<u8> {
        let mut data = b"DIRC\0\0\0\x02".to_vec();
        data.extend((entries.len() as u32).to_be_bytes());
        for (mode, name) in entries {
            let start = data.len();
            data.extend([0; 24]);
            data.extend(mode.to_be_bytes());
            data.extend([0; 12 + 20 + 2]);
            data.extend(name.as_bytes());
            let length = data.len() - start;
            data.extend(vec![0; 8 - length % 8]);
        }
        data.extend([0; 20]);
        data
    }

    #[test]
    fn gitlinks_are_found_among_files_whatever_their_names_length() {
        let links =
            links(&index(&[(0o100_644, "a"), (GITLINK, "dir/sub"), (0o120_000, "1234567"), (GITLINK, "z")]), 20)
                .unwrap();
        assert_eq!(links.gitlinks, ["dir/sub", "z"]);
        assert!(!links.below_worktrees && !links.split);
        assert!(super::links(&index(&[(0o100_644, ".worktrees/a/b")]), 20).unwrap().below_worktrees);
    }

    #[test]
    fn a_damaged_index_is_an_error_not_a_crash() {
        let good = index(&[(0o100_644, "a"), (GITLINK, "sub")]);
        for length in 0..good.len() - 20 {
            assert!(links(&good[..length], 20).is_err() || length > good.len() - 30, "{length}");
        }
        let mut many = good.clone();
        many[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(links(&many, 20).is_err());
    }
}
