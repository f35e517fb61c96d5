#![expect(
    clippy::disallowed_methods,
    reason = "the export starts git by itself: it runs alone, before and without everything else"
)]
//! Hands out what was committed in this container, as one stream for the host (docs/git.md says what is in it): commits that the host
//! has not, the names that point to them, large files of git-lfs. Runs as the agent's user, with nothing that the host trusts: the host
//! checks all of it. Only git's plumbing is called, with hooks and monitors off, so that a broken setting does not keep commits here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

const SETTINGS: &[&str] = &["core.fsmonitor=false", "core.hooksPath=/dev/null", "gc.auto=0", "maintenance.auto=false"];
const VARIABLES: &[(&str, &str)] = &[
    ("GIT_AUTHOR_EMAIL", "pi-docker@localhost"),
    ("GIT_AUTHOR_NAME", "pi-docker"),
    ("GIT_COMMITTER_EMAIL", "pi-docker@localhost"),
    ("GIT_COMMITTER_NAME", "pi-docker"),
    ("GIT_NO_LAZY_FETCH", "1"),
    ("GIT_NO_REPLACE_OBJECTS", "1"),
    ("GIT_TERMINAL_PROMPT", "0"),
    ("LC_ALL", "C"),
];
const PIECE: usize = 64 << 10;
const VOID: [u8; 4] = u32::MAX.to_be_bytes();
/// Files of git-lfs are named by a text of this length at most.
const LONGEST_POINTER: u64 = 1024;

/// Writes the export of the repository that `workspace` belongs to. `full`: all history, not only what the host has not.
pub(crate) fn export(workspace: &Path, full: bool, out: &mut impl Write) -> io::Result<()> {
    let found =
        Git { dir: None, work_tree: workspace.to_owned(), index: None }.line(&["rev-parse", "--absolute-git-dir"])?;
    let git_dir = PathBuf::from(found.ok_or_else(|| fail("no git repository is here"))?);
    let mut repositories = vec![(String::new(), git_dir.clone())];
    find_modules(&git_dir.join("modules"), String::new(), &mut repositories);
    writeln!(out, "{}", json!({ "pi-export": 1 }))?;
    let mut said = serde_json::Map::new();
    for (key, dir) in repositories {
        let git = Git { dir: Some(dir.clone()), work_tree: workspace.to_owned(), index: None };
        let repository = Repository { have: Have::read(&dir, full), git, dir, key: key.clone() };
        said.insert(key, repository.export(out)?);
    }
    writeln!(out, "{}", json!({ "end": said }))?;
    out.flush()
}

/// Submodules that the session began with: folders in which the launcher has left a list.
fn find_modules(folder: &Path, prefix: String, found: &mut Vec<(String, PathBuf)>) {
    if prefix.matches('/').count() > 40 {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let key = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if entry.path().join("pi-have").is_file() {
            found.push((key.clone(), entry.path()));
            find_modules(&entry.path().join("modules"), format!("{key}/modules"), found);
        } else if !entry.path().join("HEAD").exists() {
            find_modules(&entry.path(), key, found);
        }
    }
}

/// What the session began with, as the launcher wrote it down.
#[derive(Default)]
struct Have {
    named: BTreeSet<(String, String)>,
    on_host: BTreeSet<String>,
    index: Option<String>,
}

impl Have {
    fn read(dir: &Path, full: bool) -> Have {
        let mut have = Have::default();
        for line in fs::read_to_string(dir.join("pi-have")).unwrap_or_default().lines() {
            match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
                ["index", oid, _] => have.index = Some(oid.to_owned()),
                [place, oid, name] => {
                    have.named.insert((name.to_owned(), oid.to_owned()));
                    if place == "host" && !full {
                        have.on_host.insert(oid.to_owned());
                    }
                }
                _ => {}
            }
        }
        have
    }
}

/// A name and the object that it points to.
type Named = (String, String);

struct Repository {
    key: String,
    dir: PathBuf,
    git: Git,
    have: Have,
}

impl Repository {
    fn export(&self, out: &mut impl Write) -> io::Result<Value> {
        let head = json!({
            "branch": self.git.line(&["symbolic-ref", "-q", "HEAD"])?,
            "oid": self.git.line(&["rev-parse", "-q", "--verify", "HEAD"])?,
        });
        let (mut wishes, keep) = self.wishes(&head)?;
        let have = self.present(&self.have.on_host)?;
        let mut failed = Vec::new();
        if !wishes.is_empty() && !self.write_pack(&wishes, &have, out)? {
            // Something is missing or damaged: without what cannot be read through, the rest goes.
            let mut whole = BTreeMap::new();
            for (name, oid) in wishes {
                match self.git.feed(&["rev-list", "--objects", "--quiet", "--stdin"], &revisions([&oid], &have)) {
                    Ok(_) => _ = whole.insert(name, oid),
                    Err(e) => failed.push((name, e.to_string())),
                }
            }
            wishes = whole;
            if !self.write_pack(&wishes, &have, out)? {
                return Err(fail("git cannot pack the commits"));
            }
        }
        if self.dir.join("lfs/objects").is_dir() && !wishes.is_empty() {
            self.write_large_files(&wishes, &have, out)?;
        }
        let refs: Vec<(&String, &String)> = wishes.iter().collect();
        Ok(json!({ "head": head, "refs": refs, "keep": keep, "failed": failed }))
    }

    /// The names that point to something else than at the start, and those that only the private side needs.
    fn wishes(&self, head: &Value) -> io::Result<(BTreeMap<String, String>, Vec<Named>)> {
        let mut wishes = BTreeMap::new();
        let mut wish = |name: String, oid: &str| {
            if !self.have.named.contains(&(name.clone(), oid.to_owned())) {
                wishes.insert(name, oid.to_owned());
            }
        };
        let refs = self.git.run(&["for-each-ref", "--format=%(objectname) %(refname)"])?;
        let refs: BTreeMap<&str, &str> =
            refs.lines().filter_map(|line| line.split_once(' ')).map(|(oid, name)| (name, oid)).collect();
        let elsewhere = [
            "refs/bisect/",
            "refs/pi-subagent/",
            "refs/pi/",
            "refs/prefetch/",
            "refs/remotes/",
            "refs/rewritten/",
            "refs/worktree/",
        ];
        for (name, oid) in &refs {
            if *name != "refs/stash" && !elsewhere.iter().any(|space| name.starts_with(space)) {
                wish((*name).to_owned(), oid);
            }
        }
        if let (Some(oid), true) = (head["oid"].as_str(), head["branch"].is_null()) {
            wish("HEAD".to_owned(), oid);
        }
        if refs.contains_key("refs/stash") {
            let known: BTreeSet<&str> =
                self.have.named.iter().filter(|(name, _)| name == "stash").map(|(_, oid)| oid.as_str()).collect();
            let stash = self.git.run(&["log", "-g", "--format=%H", "refs/stash", "--"]).unwrap_or_default();
            for (number, oid) in stash.lines().filter(|oid| !known.contains(oid)).enumerate() {
                wish(format!("stash/{number}"), oid);
            }
        }
        let ours = ["refs/pi-subagent/", "refs/pi/refused/"];
        let mut keep: Vec<Named> = Vec::new();
        for (name, oid) in refs.iter().filter(|(name, _)| ours.iter().any(|space| name.starts_with(space))) {
            keep.push(((*name).to_owned(), (*oid).to_owned()));
        }
        for worktree in self.git.run(&["worktree", "list", "--porcelain"])?.split("\n\n").skip(1) {
            let field = |name: &str| worktree.lines().find_map(|line| line.strip_prefix(name));
            match (field("branch "), field("HEAD "), field("worktree ")) {
                (Some(branch), Some(oid), _) if refs.contains_key(branch) => {
                    keep.push((branch.to_owned(), oid.to_owned()))
                }
                (None, Some(oid), Some(path)) if !self.have.on_host.contains(oid) && oid.bytes().any(|b| b != b'0') => {
                    wish(format!("worktree/{}", path.rsplit('/').next().unwrap_or_default()), oid);
                }
                _ => {}
            }
        }
        if let Ok(Some(oid)) = self.staged() {
            wish("index".to_owned(), &oid);
        }
        Ok((wishes, keep))
    }

    /// What is staged, as a commit, if neither a commit nor the files hold it.
    fn staged(&self) -> io::Result<Option<String>> {
        // A copy: the agent's own git may be at work, and must not find its index locked.
        let copy = self.dir.join(format!("pi-index-{}", std::process::id()));
        fs::copy(self.dir.join("index"), &copy)?;
        let git = Git { index: Some(copy.clone()), ..self.git.clone() };
        let staged = self.staged_in(&git);
        let _ = fs::remove_file(copy);
        staged
    }

    fn staged_in(&self, git: &Git) -> io::Result<Option<String>> {
        let head = git.line(&["rev-parse", "-q", "--verify", "HEAD"])?;
        let (Some(tree), Some(head)) = (git.line(&["write-tree"])?, head) else { return Ok(None) };
        let committed = git.line(&["rev-parse", "-q", "--verify", "HEAD^{tree}"])?;
        if self.have.index.as_ref() == Some(&tree) || committed.as_ref() == Some(&tree) {
            return Ok(None);
        }
        let _ = git.line(&["update-index", "-q", "--refresh"])?;
        let staged = git.run(&["diff-index", "--cached", "--name-only", "-z", "HEAD", "--"])?;
        let changed = git.run(&["diff-files", "--name-only", "-z", "--ignore-submodules"])?;
        let changed: BTreeSet<&str> = changed.split('\0').filter(|path| !path.is_empty()).collect();
        if !staged.split('\0').any(|path| changed.contains(path)) {
            return Ok(None);
        }
        git.line(&["commit-tree", "-p", &head, "-m", "staged, not committed", &tree])
    }

    /// Those of these objects that can be read here: the host may have removed one meanwhile.
    fn present(&self, oids: &BTreeSet<String>) -> io::Result<BTreeSet<String>> {
        let input: String = oids.iter().flat_map(|oid| [oid, "\n"]).collect();
        let output = self.git.feed(&["cat-file", "--batch-check=%(objectname) %(objecttype)", "--buffer"], &input)?;
        let found = output
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(_, kind)| matches!(*kind, "commit" | "tag"));
        Ok(found.map(|(oid, _)| oid.to_owned()).collect())
    }

    /// Writes one pack. `false` if git failed; what was written so far is marked as void.
    fn write_pack(
        &self,
        wishes: &BTreeMap<String, String>,
        have: &BTreeSet<String>,
        out: &mut impl Write,
    ) -> io::Result<bool> {
        let mut args = vec!["pack-objects", "-q", "--revs", "--stdout", "--thin", "--delta-base-offset"];
        if self.git.run(&["config", "--get-regexp", r"^remote\..*\.promisor$"]).is_ok() {
            args.push("--missing=allow-promisor");
        }
        let mut child = self.git.spawn(&args)?;
        let mut stdin = child.stdin.take().ok_or_else(|| fail("git has no input"))?;
        let mut stdout = child.stdout.take().ok_or_else(|| fail("git has no output"))?;
        let mut stderr = child.stderr.take().ok_or_else(|| fail("git has no output"))?;
        let input = revisions(wishes.values(), have);
        writeln!(out, "{}", json!({ "pack": self.key }))?;
        std::thread::scope(|scope| {
            // If git stops early its status says so.
            scope.spawn(move || _ = stdin.write_all(input.as_bytes()));
            scope.spawn(move || _ = io::copy(&mut stderr, &mut io::sink()));
            write_pieces(&mut stdout, out)
        })?;
        let done = finish(child).is_ok();
        out.write_all(if done { &[0; 4] } else { &VOID })?;
        Ok(done)
    }

    /// Writes the files that new pointers of git-lfs name.
    fn write_large_files(
        &self,
        wishes: &BTreeMap<String, String>,
        have: &BTreeSet<String>,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let objects = self
            .git
            .feed(&["rev-list", "--objects", "--no-object-names", "--stdin"], &revisions(wishes.values(), have))?;
        let sizes = self
            .git
            .feed(&["cat-file", "--batch-check=%(objectname) %(objecttype) %(objectsize)", "--buffer"], &objects)?;
        let small = sizes.lines().filter(|line| {
            let size = line.split(" blob ").nth(1).and_then(|size| size.parse::<u64>().ok());
            size.is_some_and(|size| size < LONGEST_POINTER)
        });
        let input: String = small.filter_map(|line| line.split(' ').next()).flat_map(|oid| [oid, "\n"]).collect();
        let texts = self.git.feed(&["cat-file", "--batch", "--buffer"], &input)?;
        let oids: BTreeSet<&str> = texts.lines().filter_map(|line| line.strip_prefix("oid sha256:")).collect();
        for oid in oids.into_iter().filter(|oid| oid.len() == 64 && oid.bytes().all(|b| b.is_ascii_hexdigit())) {
            let path = self.dir.join("lfs/objects").join(&oid[..2]).join(&oid[2..4]).join(oid);
            if let Ok(mut file) = fs::File::open(path) {
                writeln!(out, "{}", json!({ "lfs": oid, "repository": self.key }))?;
                write_pieces(&mut file, out)?;
                out.write_all(&[0; 4])?;
            }
        }
        Ok(())
    }
}

/// What git reads as "these, without those".
fn revisions<'a>(wanted: impl IntoIterator<Item = &'a String>, have: &BTreeSet<String>) -> String {
    let wanted: String = wanted.into_iter().flat_map(|oid| [oid, "\n"]).collect();
    have.iter().fold(wanted, |text, oid| text + "^" + oid + "\n")
}

fn write_pieces(from: &mut impl Read, out: &mut impl Write) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(PIECE, from);
    loop {
        let piece = reader.fill_buf()?;
        if piece.is_empty() {
            return Ok(());
        }
        let length = piece.len();
        out.write_all(&u32::try_from(length).map_err(io::Error::other)?.to_be_bytes())?;
        out.write_all(piece)?;
        reader.consume(length);
    }
}

#[derive(Clone)]
struct Git {
    /// `None`: git looks for it.
    dir: Option<PathBuf>,
    work_tree: PathBuf,
    /// Another file than its own as the index.
    index: Option<PathBuf>,
}

impl Git {
    fn spawn(&self, args: &[&str]) -> io::Result<Child> {
        let mut command = Command::new("git");
        command.current_dir(&self.work_tree).envs(VARIABLES.iter().copied());
        for name in
            ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES"]
        {
            command.env_remove(name);
        }
        if let Some(dir) = &self.dir {
            command.env("GIT_DIR", dir);
        }
        if let Some(index) = &self.index {
            command.env("GIT_INDEX_FILE", index);
        }
        SETTINGS.iter().for_each(|setting| _ = command.args(["-c", setting]));
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    }

    fn run(&self, args: &[&str]) -> io::Result<String> {
        self.feed(args, "")
    }

    /// The first line that git prints, or `None` if it fails.
    fn line(&self, args: &[&str]) -> io::Result<Option<String>> {
        let output = self.spawn(args)?.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
        Ok(output.status.success().then_some(text))
    }

    fn feed(&self, args: &[&str], input: &str) -> io::Result<String> {
        let mut child = self.spawn(args)?;
        let stdin = child.stdin.take();
        std::thread::scope(|scope| {
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
            finish(child)
        })
    }
}

/// What git printed; an error with its last words if it failed.
fn finish(child: Child) -> io::Result<String> {
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(fail(words.lines().last().unwrap_or("git failed")))
}

fn fail(why: &str) -> io::Error {
    io::Error::other(why.to_owned())
}
