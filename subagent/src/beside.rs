//! The files of a new worktree that the checkout beside it has already: to copy one costs less than to unpack it, and the
//! processors share them. Each is hashed on the way and kept only if it is the blob that the commit names, so that nothing
//! somebody has changed there gets in. All that is not that simple is left to git: submodules, large files, names that no
//! repository should have, and the whole of a repository in which git would convert what it writes.

use std::ffi::OsStr;
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use git2::{ErrorCode, Index, IndexEntry, IndexTime, Oid, Repository};
use sha1::{Digest, Sha1};

use crate::sys;

/// Bytes of a file that is left to git: to start a git costs little beside it, and each thread holds a whole file in memory.
const LARGE: u32 = 1 << 20;

/// git's modes: a file, one that can be run, a symbolic link.
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_000;
/// No mode: what could not be copied.
const NOT_COPIED: u32 = 0;

/// Copies what the checkout of `from` has of the commit that the worktree `to` is at into its files' place, `target`, which is
/// empty, and makes an index of just that. Says whether it is all of the commit; if not, or after an error, git has to write
/// the rest, and can. `attributes` is where git looks for the user's own if no setting names another file;
/// without it nothing is copied.
pub(crate) fn copy(
    from: &Repository,
    to: &Repository,
    target: &Path,
    attributes: Option<&Path>,
) -> Result<bool, git2::Error> {
    let (Some(source), Some(attributes)) = (from.workdir(), attributes) else { return Ok(false) };
    let mut tree = Index::new()?;
    tree.read_tree(&to.head()?.peel_to_tree()?)?;
    let tree: Vec<IndexEntry> = tree.iter().collect();
    if converts(to, &tree, attributes)? || !tree.iter().all(|entry| harmless(&entry.path)) {
        return Ok(false);
    }
    let all = tree.len();
    let files = copied(shared(tree, &from.index()?), source, target);
    // Opened without its repository, so that not every object is looked up.
    let mut index = Index::open(&to.path().join("index"))?;
    index.clear()?;
    for file in &files {
        index.add(file)?;
    }
    index.write()?;
    Ok(files.len() == all)
}

/// Whether git may write something else than what it has stored, or not all of it.
fn converts(to: &Repository, tree: &[IndexEntry], attributes: &Path) -> Result<bool, git2::Error> {
    let config = to.config()?.snapshot()?;
    let text = |name| config.get_str(name).unwrap_or_default().to_ascii_lowercase();
    let yes = |name, default| config.get_bool(name).unwrap_or(default);
    let is_set = |name| !matches!(config.get_entry(name), Err(error) if error.code() == ErrorCode::NotFound);
    if is_set("core.autocrlf") && yes("core.autocrlf", true) && text("core.autocrlf") != "input"
        || text("core.eol") == "crlf"
        || yes("core.sparseCheckout", is_set("core.sparseCheckout"))
        || !yes("core.symlinks", !is_set("core.symlinks"))
        // libgit2 does not know these two, and replaced objects not at all.
        || is_set("attr.tree")
        || config.entries(Some("^includeif\\.hasconfig:"))?.next().is_some()
        || to.references_glob("refs/replace/*")?.next().is_some()
    {
        return Ok(true);
    }
    let own = match config.get_path("core.attributesFile") {
        Ok(path) if path.is_absolute() => path,
        Err(error) if error.code() == ErrorCode::NotFound => attributes.to_owned(),
        _ => return Ok(true),
    };
    for path in [own, to.commondir().join("info/attributes"), "/etc/gitattributes".into()] {
        match sys::read_file(&path) {
            Ok(attributes) if !convert(&attributes) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => return Ok(true),
        }
    }
    for entry in tree.iter().filter(|entry| entry.path.ends_with(b".gitattributes")) {
        if entry.mode == LINK || convert(to.find_blob(entry.id)?.content()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a file of attributes has one that changes content: `filter`, `ident`, `working-tree-encoding`, `eol=crlf`, `crlf`.
fn convert(attributes: &[u8]) -> bool {
    let has = |word: &[u8]| attributes.windows(word.len()).any(|part| part == word);
    [&b"filter"[..], b"ident", b"encoding", b"crlf"].into_iter().any(has)
}

/// Git refuses to write paths that lead out of a worktree or into a git directory, by whatever name a file system may know that; it says
/// so better than we could.
fn harmless(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').all(|part| {
        let plain = match part {
            [] => return false,
            [b'.' | b'g' | b'G' | 0x80.., ..] => {
                part.iter().filter(|byte| byte.is_ascii()).map(u8::to_ascii_lowercase).collect()
            }
            _ => Vec::new(),
        };
        let is_git = plain.strip_prefix(b".git").is_some_and(|rest| matches!(rest, [] | [b' ' | b'.' | b':', ..]));
        !is_git && !plain.starts_with(b"git~") && !matches!(part, b"." | b"..") && !part.contains(&b'\\')
    })
}

/// Of the entries of `tree` those that the checkout has too, small ones. `file_size` is what it was there.
fn shared(tree: Vec<IndexEntry>, checkout: &Index) -> Vec<IndexEntry> {
    let mut others = checkout.iter().peekable();
    let have = |mut entry: IndexEntry| {
        // Both are sorted.
        while others.next_if(|other| other.path < entry.path).is_some() {}
        let other = others.next_if(|other| (&other.path, other.id) == (&entry.path, entry.id))?;
        entry.file_size = other.file_size;
        (matches!(entry.mode, FILE | PROGRAM | LINK) && other.file_size < LARGE).then_some(entry)
    };
    tree.into_iter().filter_map(have).collect()
}

/// Copies files; gives those for which it worked, with what the file system says about the copy.
fn copied(files: Vec<IndexEntry>, from: &Path, to: &Path) -> Vec<IndexEntry> {
    let (mut links, mut files): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| file.mode == LINK);
    let folders = Mutex::new(files.chunk_by_mut(|a, b| folder(&a.path) == folder(&b.path)));
    let next = || folders.lock().ok().and_then(|mut folders| folders.next());
    let work = || {
        let mut buffer = Vec::new();
        while let Some(files) = next() {
            copy_folder(files, from, to, &mut buffer);
        }
    };
    let threads = thread::available_parallelism().map_or(2, usize::from).min(8);
    thread::scope(|scope| {
        for _ in 1..threads {
            // One that cannot be started has its share done by the others.
            let _ = thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    // No file can be written through a link if all are there before the first link is.
    for link in links.chunk_by_mut(|a, b| folder(&a.path) == folder(&b.path)) {
        copy_folder(link, from, to, &mut Vec::new());
    }
    files.append(&mut links);
    files.retain(|file| file.mode != NOT_COPIED);
    files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    files
}

/// Files of one folder.
fn copy_folder(files: &mut [IndexEntry], from: &Path, to: &Path, buffer: &mut Vec<u8>) {
    let (mut from, mut to) = (from.join(folder(&files[0].path)), to.join(folder(&files[0].path)));
    let _ = fs::create_dir_all(&to);
    for file in files {
        let name = path(&file.path).file_name().unwrap_or_default();
        from.push(name);
        to.push(name);
        match copy_one(file, &from, &to, buffer) {
            Ok(about) => describe(file, &about),
            Err(_) => file.mode = NOT_COPIED,
        }
        from.pop();
        to.pop();
    }
}

fn copy_one(file: &IndexEntry, from: &Path, to: &Path, buffer: &mut Vec<u8>) -> io::Result<Metadata> {
    if file.mode == LINK {
        let target = fs::read_link(from)?;
        is_blob(file.id, target.as_os_str().as_bytes())?;
        symlink(target, to)?;
        return fs::symlink_metadata(to);
    }
    buffer.clear();
    buffer.reserve(file.file_size as usize);
    // A file that has grown gives its beginning: the hash decides in any case.
    sys::open_file(from)?.take(file.file_size.into()).read_to_end(buffer)?;
    is_blob(file.id, buffer)?;
    let mode = if file.mode == PROGRAM { 0o777 } else { 0o666 };
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(mode).open(to)?;
    copy.write_all(buffer)?;
    copy.metadata()
}

fn is_blob(id: Oid, content: &[u8]) -> io::Result<()> {
    let head = format!("blob {}\0", content.len());
    let hash = Sha1::new().chain_update(head).chain_update(content).finalize();
    if hash[..] == *id.as_bytes() { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// By these git sees that nobody has touched the file since; of each it keeps the lower 32 bits.
fn describe(file: &mut IndexEntry, about: &Metadata) {
    file.ctime = IndexTime::new(about.ctime() as i32, about.ctime_nsec() as u32);
    file.mtime = IndexTime::new(about.mtime() as i32, about.mtime_nsec() as u32);
    (file.dev, file.ino) = (about.dev() as u32, about.ino() as u32);
    (file.uid, file.gid) = (about.uid(), about.gid());
    file.file_size = about.len() as u32;
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn folder(file: &[u8]) -> &Path {
    path(&file[..file.iter().rposition(|byte| *byte == b'/').unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, mode: u32, content: &[u8]) -> IndexEntry {
        let time = IndexTime::new(0, 0);
        IndexEntry {
            ctime: time,
            mtime: time,
            dev: 0,
            ino: 0,
            mode,
            uid: 0,
            gid: 0,
            file_size: content.len() as u32,
            id: Oid::hash_object(git2::ObjectType::Blob, content).unwrap(),
            flags: 0,
            flags_extended: 0,
            path: path.into(),
        }
    }

    #[test]
    fn no_file_is_written_through_a_link() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("deep/to"));
        for dir in ["from", "o", "deep/o", "deep/to"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        // The commit has both a link and a file below it, and the link leads elsewhere from the copy.
        symlink("../o", from.join("a")).unwrap();
        fs::write(root.path().join("o/b"), "x").unwrap();
        let link = || entry("a", LINK, b"../o");
        let names = |files: Vec<IndexEntry>| files.into_iter().map(|file| file.path).collect::<Vec<_>>();
        assert_eq!(names(copied(vec![link(), entry("a/b", FILE, b"x")], &from, &to)), [b"a/b"]);
        assert!(fs::symlink_metadata(to.join("a")).unwrap().is_dir());
        assert!(fs::read_dir(root.path().join("deep/o")).unwrap().next().is_none());
        // The twin: alone, the link is made.
        fs::remove_dir_all(to.join("a")).unwrap();
        assert_eq!(names(copied(vec![link()], &from, &to)), [b"a"]);
        assert_eq!(fs::read_link(to.join("a")).unwrap(), Path::new("../o"));
    }

    #[test]
    fn paths_into_a_git_directory_or_out_of_the_worktree_are_left_to_git() {
        let bad = ["../x", "a/../x", "/x", ".git/config", ".GIT/x", "a/.gIt", "git~1/x", "a\\b", "a//b", ".", ""];
        let else_named = [".git ", ".git./x", ".git::$INDEX_ALLOCATION/x", "a/.g\u{200c}it", "\u{200d}.Git", "GIT~2"];
        for bad in bad.into_iter().chain(else_named) {
            assert!(!harmless(bad.as_bytes()), "{bad}");
        }
        for good in ["a", ".gitignore", ".github/x", "git", "gitter", "a..b/c", "ü \"x", "...", "a.git"] {
            assert!(harmless(good.as_bytes()), "{good}");
        }
    }
}
