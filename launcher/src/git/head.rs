//! Moves what is checked out on the host along with the working tree, which the agent has already changed: HEAD or its branch, and the
//! index, so that `git status` is right afterwards. No file of the tree is touched or read. Git's own lock on the index is held
//! meanwhile, and the ledger says what is under way: after a kill at any point `recover` finishes it or takes it back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Site;
use super::landing::{Update, transact};
use super::ledger::{Known, Ledger, Moving};
use super::place::open_below;
use super::refs::{self, Head};
use super::run::Git;

/// How long another git may hold the index.
const PATIENCE: Duration = Duration::from_secs(3);

/// A checkout to be moved.
pub(crate) struct Checkout<'a> {
    pub(crate) site: &'a Site<'a>,
    pub(crate) git: &'a Git<'a>,
    pub(crate) known: &'a Known,
}

/// What stands in the way, in words.
type Obstacle = String;

impl Checkout<'_> {
    /// Moves from what the host has to what the container had. `note` writes into the ledger what is under way.
    pub(crate) fn advance(
        &self,
        from: &Head,
        to: &Head,
        note: &mut dyn FnMut(Option<Moving>) -> Result<()>,
    ) -> Result<Result<(), Obstacle>> {
        for _ in 0..3 {
            let seen = stat(&self.index());
            let new = self.rewritten(from.oid.as_deref(), to.oid.as_deref().unwrap_or_default())?;
            note(Some(Moving { from: from.clone(), to: to.clone(), index: new.clone() }))?;
            if !self.lock(&new)? {
                self.drop_new(&new, note)?;
                return Ok(Err("the host's index is in use".to_owned()));
            }
            if stat(&self.index()) != seen || refs::head(self.git)? != *from {
                // The user was faster: look again.
                self.unlock()?;
                continue;
            }
            if let Err(why) = self.move_head(from, to)? {
                self.unlock()?;
                self.drop_new(&new, note)?;
                return Ok(Err(why));
            }
            fs::rename(self.lock_file(), self.index()).context("cannot put the new index in place")?;
            self.drop_new(&new, note)?;
            return Ok(Ok(()));
        }
        self.drop_new(&self.new_index(), note)?;
        Ok(Err("the host's index keeps changing".to_owned()))
    }

    fn move_head(&self, from: &Head, to: &Head) -> Result<Result<(), String>> {
        let to_oid = to.oid.as_deref().unwrap_or_default();
        let message = format!("pi-docker: session {}", self.site.session);
        match (&from.branch, &to.branch) {
            (Some(here), Some(there)) if here == there => {
                transact(self.git, self.site.session, &[Update::swap(here, to_oid, from.oid.as_deref())])
            }
            (_, Some(there)) => match self.git.ask(&["symbolic-ref", "-m", &message, "HEAD", there])? {
                Some(_) => Ok(Ok(())),
                None => Ok(Err("git did not change HEAD".to_owned())),
            },
            (_, None) => {
                let old = from.oid.as_deref().unwrap_or_default();
                match self.git.ask(&["update-ref", "--no-deref", "-m", &message, "HEAD", to_oid, old])? {
                    Some(_) => Ok(Ok(())),
                    None => Ok(Err("git did not change HEAD".to_owned())),
                }
            }
        }
    }

    /// A copy of the index with what lies between two commits taken over; what the user has staged meanwhile stays staged.
    fn rewritten(&self, from: Option<&str>, to: &str) -> Result<PathBuf> {
        let new = self.new_index();
        let _ = fs::remove_file(&new);
        // Left by a git that was killed: nobody else uses this name, and launchers wait for each other.
        let _ = fs::remove_file(new.with_extension("lock"));
        let git = self.git.with_index(&new);
        let modified = copy_with_time(&self.known.git_dir, &new, self.site.owner).context("cannot copy the index")?;
        let changes = changes(self.git, from, to)?;
        if !changes.is_empty() {
            self.take_over(&git, &changes)?;
        }
        if let Some(modified) = modified {
            // By its time git tells which entries it must compare by content: a newer one would make it trust too many.
            File::options()
                .write(true)
                .open(&new)
                .and_then(|file| file.set_modified(modified))
                .context("cannot write the index")?;
        }
        Ok(new)
    }

    fn take_over(&self, git: &Git, changes: &BTreeMap<Vec<u8>, Change>) -> Result<()> {
        let entries = entries(git, changes)?;
        let mut at_start = None;
        let (mut removals, mut additions, mut hidden) = (Vec::new(), Vec::new(), Vec::new());
        for (path, change) in changes {
            let entry = entries.get(path);
            let now = entry.map(|e| (e.mode.as_str(), e.oid.as_str()));
            if now == change.after() {
                continue;
            }
            if now != change.before() {
                // Staged by the user. If that was before the session, the agent had it too and went on from there.
                let at_start = match &at_start {
                    Some(at_start) => at_start,
                    None => at_start.insert(self.staged_at_start(changes)?),
                };
                if at_start.get(path).map(|(mode, oid)| (mode.as_str(), oid.as_str())) != now {
                    continue;
                }
            }
            match change.after() {
                None => removals.extend([b"0 ", change.null().as_bytes(), b"\t", path, b"\0"].concat()),
                Some((mode, oid)) => {
                    additions.extend([mode.as_bytes(), b" ", oid.as_bytes(), b"\t", path, b"\0"].concat());
                    let absent = self.tree_lacks(path);
                    if absent && (entry.is_some_and(|e| e.hidden) || entries.values().any(|e| e.hidden)) {
                        hidden.extend([path.as_slice(), b"\0"].concat());
                    }
                }
            }
        }
        git.feed(&["update-index", "-z", "--index-info"], |stdin| {
            stdin.write_all(&removals).and_then(|()| stdin.write_all(&additions))
        })?;
        if !hidden.is_empty() {
            git.feed(&["update-index", "--skip-worktree", "-z", "--stdin"], |stdin| stdin.write_all(&hidden))?;
        }
        Ok(())
    }

    /// Mode and object of these paths in the index as the session found it.
    fn staged_at_start(&self, changes: &BTreeMap<Vec<u8>, Change>) -> Result<BTreeMap<Vec<u8>, (String, String)>> {
        let Some(tree) = &self.known.index_tree else { return Ok(BTreeMap::new()) };
        let output = self.git.run(&["ls-tree", "-r", "-z", "--full-tree", tree])?;
        let mut staged = BTreeMap::new();
        for record in output.split(|&b| b == 0) {
            let Some(tab) = record.iter().position(|&b| b == b'\t') else { continue };
            let path = &record[tab + 1..];
            if let (true, [mode, _, oid]) = (
                changes.contains_key(path),
                &String::from_utf8_lossy(&record[..tab]).split(' ').collect::<Vec<_>>()[..],
            ) {
                staged.insert(path.to_owned(), ((*mode).to_owned(), (*oid).to_owned()));
            }
        }
        Ok(staged)
    }

    fn tree_lacks(&self, path: &[u8]) -> bool {
        use std::os::unix::ffi::OsStrExt;
        let path = self.site.root.join(&self.known.path).join(std::ffi::OsStr::from_bytes(path));
        path.symlink_metadata().is_err()
    }

    /// Takes git's lock on the index by giving the new one its name. `false` if another git holds it for too long.
    fn lock(&self, new: &Path) -> Result<bool> {
        let begun = Instant::now();
        loop {
            match link_or_copy(new, &self.lock_file()) {
                Ok(()) => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
                Err(e) => return Err(e).with_context(|| format!("cannot make '{}'", self.lock_file().display())),
            }
        }
    }

    fn unlock(&self) -> Result<()> {
        fs::remove_file(self.lock_file()).with_context(|| format!("cannot remove '{}'", self.lock_file().display()))
    }

    fn drop_new(&self, new: &Path, note: &mut dyn FnMut(Option<Moving>) -> Result<()>) -> Result<()> {
        let _ = fs::remove_file(new);
        note(None)
    }

    fn index(&self) -> PathBuf {
        self.known.git_dir.join("index")
    }

    fn new_index(&self) -> PathBuf {
        self.known.git_dir.join("pi-index")
    }

    fn lock_file(&self) -> PathBuf {
        self.known.git_dir.join("index.lock")
    }
}

/// Finishes what a killed launcher had under way, or takes it back.
pub(crate) fn recover(site: &Site, ledger: &mut Ledger) -> Result<()> {
    let keys: Vec<String> =
        ledger.repositories.iter().filter(|(_, known)| known.moving.is_some()).map(|(key, _)| key.clone()).collect();
    for key in keys {
        let Some(known) = ledger.repositories.get(&key).cloned() else { continue };
        let Some(moving) = known.moving.clone() else { continue };
        let git = Git::new(&known.git_dir, site.env, site.owner);
        let checkout = Checkout { site, git: &git, known: &known };
        let (index, lock) = (checkout.index(), checkout.lock_file());
        let lock_is_ours = is_same(&lock, &moving.index);
        let arrived = refs::head(&git)? == moving.to;
        if arrived && lock_is_ours {
            fs::rename(&lock, &index).context("cannot put the new index in place")?;
        } else if lock_is_ours {
            checkout.unlock()?;
        } else if arrived && !is_same(&index, &moving.index) {
            // The user has removed the lock that was left behind: HEAD has moved, the index has not.
            let new = checkout.rewritten(moving.from.oid.as_deref(), moving.to.oid.as_deref().unwrap_or_default())?;
            if checkout.lock(&new)? {
                fs::rename(&lock, &index).context("cannot put the new index in place")?;
            }
        }
        let _ = fs::remove_file(&moving.index);
        if let Some(known) = ledger.repositories.get_mut(&key) {
            known.moving = None;
            if arrived {
                known.head = moving.to.clone();
                if let (Some(branch), Some(oid)) = (moving.to.branch, moving.to.oid) {
                    known.synced.insert(branch, oid);
                }
            }
        }
        ledger.save(site)?;
    }
    Ok(())
}

struct Change {
    old: (String, String),
    new: (String, String),
}

impl Change {
    /// Mode and object before; `None` if the path was not there.
    fn before(&self) -> Option<(&str, &str)> {
        (self.old.0 != "000000").then_some((&self.old.0, &self.old.1))
    }

    /// The same after.
    fn after(&self) -> Option<(&str, &str)> {
        (self.new.0 != "000000").then_some((&self.new.0, &self.new.1))
    }

    fn null(&self) -> String {
        "0".repeat(self.new.1.len())
    }
}

/// What differs between two commits, by path.
fn changes(git: &Git, from: Option<&str>, to: &str) -> Result<BTreeMap<Vec<u8>, Change>> {
    let empty;
    let from = match from {
        Some(from) => from,
        None => {
            empty = String::from_utf8_lossy(&git.run(&["hash-object", "-t", "tree", "--stdin"])?).trim().to_owned();
            &empty
        }
    };
    let output = git.run(&["diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev", from, to])?;
    let mut fields = output.split(|&b| b == 0).filter(|field| !field.is_empty());
    let mut changes = BTreeMap::new();
    while let (Some(stat), Some(path)) = (fields.next(), fields.next()) {
        let stat = String::from_utf8_lossy(stat).into_owned();
        let parts: Vec<&str> = stat.trim_start_matches(':').split(' ').collect();
        if let [old_mode, new_mode, old, new, _] = parts[..] {
            let change =
                Change { old: (old_mode.to_owned(), old.to_owned()), new: (new_mode.to_owned(), new.to_owned()) };
            changes.insert(path.to_owned(), change);
        }
    }
    Ok(changes)
}

struct Entry {
    mode: String,
    oid: String,
    /// Not in the working tree, on purpose (sparse checkout).
    hidden: bool,
}

/// The index's entries for these paths.
fn entries(git: &Git, changes: &BTreeMap<Vec<u8>, Change>) -> Result<BTreeMap<Vec<u8>, Entry>> {
    let output = git.run(&["ls-files", "-t", "--stage", "-z"])?;
    let mut entries = BTreeMap::new();
    for record in output.split(|&b| b == 0) {
        let Some(tab) = record.iter().position(|&b| b == b'\t') else { continue };
        let (stat, path) = (&record[..tab], &record[tab + 1..]);
        let hidden = stat.first() == Some(&b'S');
        if changes.contains_key(path) || hidden && entries.values().all(|e: &Entry| !e.hidden) {
            let stat = String::from_utf8_lossy(stat).into_owned();
            if let [_, mode, oid, _] = stat.split(' ').collect::<Vec<_>>()[..] {
                entries.insert(path.to_owned(), Entry { mode: mode.to_owned(), oid: oid.to_owned(), hidden });
            }
        }
    }
    Ok(entries)
}

fn copy_with_time(git_dir: &Path, to: &Path, owner: Option<(u32, u32)>) -> io::Result<Option<std::time::SystemTime>> {
    let Some(mut from) = open_below(git_dir, "index")? else { return Ok(None) };
    let modified = from.metadata()?.modified()?;
    let mut file = File::options().write(true).create_new(true).open(to)?;
    super::ledger::give(&file, owner)?;
    io::copy(&mut from, &mut file)?;
    file.set_modified(modified)?;
    Ok(Some(modified))
}

/// Gives a file a second name, or where that is impossible makes a copy; fails if the name is taken.
fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists && e.kind() != io::ErrorKind::NotFound => {
            let mut file = File::options().write(true).create_new(true).open(to)?;
            let copied = File::open(from).and_then(|mut source| io::copy(&mut source, &mut file));
            let modified = fs::metadata(from)?.modified()?;
            match copied.and_then(|_| file.set_modified(modified)) {
                Ok(()) => Ok(()),
                Err(e) => fs::remove_file(to).and(Err(e)),
            }
        }
        done => done,
    }
}

fn is_same(a: &Path, b: &Path) -> bool {
    let (Ok(meta_a), Ok(meta_b)) = (fs::symlink_metadata(a), fs::symlink_metadata(b)) else { return false };
    let one_file = (meta_a.dev(), meta_a.ino()) == (meta_b.dev(), meta_b.ino());
    one_file || meta_a.len() == meta_b.len() && fs::read(a).ok() == fs::read(b).ok()
}

/// By what a changed file is told from an unchanged one.
fn stat(path: &Path) -> Option<(u64, u64, i64, i64)> {
    fs::metadata(path).ok().map(|meta| (meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
}
