//! What a container hands out: a line `{"pi-export":1}`, then packs and large files in pieces of known length, and last a line that says
//! what the references are. It was written by the agent's user: lengths are checked before anything is read, nothing in it is a path.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde::Deserialize;

use super::refs::{Head, is_oid};
use crate::error::hinted;

/// How much is taken from one container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of a whole bundle.
    pub(crate) bytes: u64,
    /// References of one repository.
    pub(crate) refs: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { bytes: 4 << 30, refs: 5000 }
    }
}

/// A complete bundle.
pub(crate) struct Bundle {
    file: File,
    pub(crate) sections: Vec<Section>,
    /// By the folder below `modules`; the repository itself is "".
    pub(crate) said: BTreeMap<String, Said>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) repository: String,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pieces: Vec<(u64, u32)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Pack,
    /// A file of git-lfs, by its SHA-256.
    Lfs(String),
}

/// What a container says about one repository. Names are anything until they have been checked.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Said {
    #[serde(default)]
    pub(crate) head: Head,
    /// References that differ from what the session began with: name and object.
    #[serde(default)]
    pub(crate) refs: Vec<(String, String)>,
    /// References that the private side shall keep though the host has them not.
    #[serde(default)]
    pub(crate) keep: Vec<(String, String)>,
    /// What could not be handed out, and why.
    #[serde(default)]
    pub(crate) failed: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(rename = "pi-export")]
    version: Option<u32>,
    pack: Option<String>,
    lfs: Option<String>,
    #[serde(default)]
    repository: String,
    end: Option<BTreeMap<String, Said>>,
}

/// Offset and length of each, and the sum.
type Pieces = (Vec<(u64, u32)>, u64);

const LONGEST_LINE: u64 = 64 << 20;
const VOID: u32 = u32::MAX;
const MOST_SECTIONS: usize = 100_000;
/// Of all parts together: pieces of 64 KiB are what is written, and less where a pipe gives less.
const MOST_PIECES: usize = 2_000_000;

impl Bundle {
    /// Reads the frame of a bundle. One that ends before its last line is an error: its container was killed while it wrote.
    pub(crate) fn open(path: &Path, limits: &Limits) -> Result<Bundle> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let cannot = || format!("cannot read '{}'", path.display());
        let file = File::from(open(path, flags, Mode::empty()).with_context(cannot)?);
        let meta = file.metadata().with_context(cannot)?;
        if !meta.is_file() {
            bail!("{}: it is not a file", cannot());
        }
        if meta.len() > limits.bytes {
            let message = format!(
                "cannot take the commits: {} MiB are more than the limit of {} MiB",
                meta.len() >> 20,
                limits.bytes >> 20
            );
            return Err(hinted(
                message,
                "they are kept on the private side; start a session and make fewer or smaller commits of them",
            ));
        }
        let mut reader = BufReader::with_capacity(64 << 10, file);
        let (sections, said) = read_frame(&mut reader, meta.len()).with_context(cannot)?;
        Ok(Bundle { file: reader.into_inner(), sections, said })
    }

    /// Writes what a section holds.
    pub(crate) fn write_section(&self, section: &Section, to: &mut impl Write) -> io::Result<()> {
        let mut file = &self.file;
        for (at, length) in &section.pieces {
            file.seek(SeekFrom::Start(*at))?;
            let copied = io::copy(&mut file.take(u64::from(*length)), to)?;
            if copied != u64::from(*length) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// How many objects a pack says it has; 0 if it is no pack.
    pub(crate) fn pack_count(&self, section: &Section) -> u32 {
        let mut head = Vec::new();
        let mut file = &self.file;
        for (at, length) in &section.pieces {
            let read = file
                .seek(SeekFrom::Start(*at))
                .and_then(|_| file.take(u64::from(*length).min(12)).read_to_end(&mut head));
            if read.is_err() || head.len() >= 12 {
                break;
            }
        }
        match head.get(..12) {
            Some([b'P', b'A', b'C', b'K', _, _, _, _, a, b, c, d]) => u32::from_be_bytes([*a, *b, *c, *d]),
            _ => 0,
        }
    }
}

fn read_frame(reader: &mut (impl BufRead + Seek), length: u64) -> Result<(Vec<Section>, BTreeMap<String, Said>)> {
    if read_line(reader)?.version != Some(1) {
        bail!("it is no export of this version");
    }
    let mut sections = Vec::new();
    let mut left = MOST_PIECES;
    loop {
        let line = read_line(reader)?;
        if let Some(said) = line.end {
            return Ok((sections, said));
        }
        let kind = match (line.pack, line.lfs) {
            (Some(repository), None) => (repository, Kind::Pack),
            (None, Some(oid)) if is_oid(&oid) && oid.len() == 64 => (line.repository, Kind::Lfs(oid)),
            _ => bail!("a part of it is of an unknown kind"),
        };
        if sections.len() >= MOST_SECTIONS {
            bail!("it has too many parts");
        }
        if let Some((pieces, size)) = read_pieces(reader, length, &mut left)? {
            sections.push(Section { repository: kind.0, kind: kind.1, size, pieces });
        }
    }
}

/// Where each piece of a part is, and how much there is. `None` if the part is void.
fn read_pieces(reader: &mut (impl BufRead + Seek), length: u64, left: &mut usize) -> Result<Option<Pieces>> {
    let (mut pieces, mut size) = (Vec::new(), 0);
    loop {
        let mut number = [0; 4];
        reader.read_exact(&mut number).context("it ends too early")?;
        let piece = u32::from_be_bytes(number);
        if piece == 0 || piece == VOID {
            return Ok((piece == 0).then_some((pieces, size)));
        }
        *left = left.checked_sub(1).context("it has too many pieces")?;
        let at = reader.stream_position()?;
        if at + u64::from(piece) > length {
            bail!("it ends too early");
        }
        reader.seek_relative(i64::from(piece))?;
        pieces.push((at, piece));
        size += u64::from(piece);
    }
}

fn read_line(reader: &mut impl BufRead) -> Result<Line> {
    let mut line = Vec::new();
    reader.take(LONGEST_LINE).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        bail!("it ends too early");
    }
    serde_json::from_slice(&line).context("a line of it is not as it should be")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_bytes(bytes: &[u8]) -> Result<Bundle> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        std::fs::write(&path, bytes).unwrap();
        Bundle::open(&path, &Limits { bytes: 1000, refs: 10 })
    }

    const WHOLE: &[u8] = b"{\"pi-export\":1}\n{\"pack\":\"\"}\n\0\0\0\x03abc\0\0\0\x02de\0\0\0\0{\"pack\":\"sub\"}\n\0\0\0\x01x\xff\xff\xff\xff\
        {\"end\":{\"\":{\"refs\":[[\"refs/heads/a\",\"b\"]],\"head\":{\"branch\":\"refs/heads/a\",\"oid\":\"b\"}}}}\n";

    #[test]
    fn a_whole_bundle_is_read_and_a_void_part_is_not_there() {
        let bundle = open_bytes(WHOLE).unwrap();
        assert_eq!((bundle.sections.len(), bundle.sections[0].size), (1, 5));
        let mut content = Vec::new();
        bundle.write_section(&bundle.sections[0], &mut content).unwrap();
        assert_eq!(content, b"abcde");
        assert_eq!(bundle.said[""].refs, [("refs/heads/a".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn a_bundle_cut_off_anywhere_is_refused() {
        for length in 0..WHOLE.len() {
            assert!(open_bytes(&WHOLE[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn nonsense_and_too_much_are_refused() {
        for bytes in [
            &b"{\"pi-export\":2}\n{\"end\":{}}\n"[..],
            b"{\"pi-export\":1}\n{\"lfs\":\"../../x\"}\n\0\0\0\0{\"end\":{}}\n",
            b"{\"pi-export\":1}\n{\"path\":\"/etc\"}\n\0\0\0\0{\"end\":{}}\n",
            b"{\"pi-export\":1}\n{\"pack\":\"\"}\n\xff\xff\xff\xfeabc",
            &[b'x'; 1001],
        ] {
            assert!(open_bytes(bytes).is_err());
        }
        // As many pieces as may be, and one more.
        for (pieces, is_taken) in [(MOST_PIECES, true), (MOST_PIECES + 1, false)] {
            let mut reader = io::Cursor::new(
                [
                    b"{\"pi-export\":1}\n{\"pack\":\"\"}\n".to_vec(),
                    b"\0\0\0\x01x".repeat(pieces),
                    b"\0\0\0\0{\"end\":{}}\n".to_vec(),
                ]
                .concat(),
            );
            let length = reader.get_ref().len() as u64;
            assert_eq!(read_frame(&mut reader, length).is_ok(), is_taken);
        }
    }
}
