//! Writes one private git directory: what the host has (references, HEAD, index, what is excluded, sparse and shallow), a configuration
//! of its own, and where its objects are. What the agent left there (objects, worktrees, the subagents' state) is kept; all else is
//! moved out before, so the result does not depend on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};

use super::filters;
use super::guard::Part;
use super::ledger::Known;
use super::pin::{self, Tips};
use super::place::{Folder, open_below};
use super::refs::{self, Head, KEEP, Ref, packed};
use super::settings::{self, Basis};
use super::{Mount, Site, paths};

/// What stays when a private git directory is written anew. `objects` stays too, but for its `info`.
const KEPT: &[&str] = &["lfs", "modules", "objects", "pi-subagent", "worktrees"];
/// What of an unfinished merge or pick the next commit needs.
const UNFINISHED: &[&str] = &["MERGE_HEAD", "MERGE_MODE", "MERGE_MSG", "CHERRY_PICK_HEAD", "REVERT_HEAD", "SQUASH_MSG"];
const LARGEST_FILE: u64 = 64 << 20;

/// What a repository on the host has at this moment.
struct Seen {
    refs: Vec<Ref>,
    head: Head,
    index_tree: Option<String>,
    /// What is staged in a conflict.
    unmerged: Vec<String>,
    stash: Vec<String>,
    /// Every setting in force for the user.
    users: Vec<(String, String)>,
}

/// The stores of objects that are mounted, numbered over all repositories of a session.
#[derive(Default)]
pub(crate) struct Stores {
    folders: Vec<std::path::PathBuf>,
    pub(crate) mounts: Vec<Mount>,
}

/// Writes the private git directory of one part into `to`; what was there and does not stay goes into `previous`.
pub(crate) fn plant(
    site: &Site,
    part: &Part,
    known: Option<&Known>,
    to: &Folder,
    previous: &Folder,
    stores: &mut Stores,
) -> Result<(Known, Vec<String>)> {
    let mut warnings = Vec::new();
    let seen = look(site, part)?;
    let retained: BTreeMap<String, String> = known.map(|known| known.retained.clone()).unwrap_or_default();
    let mut oids: BTreeSet<String> = seen.refs.iter().map(|r| r.oid.clone()).collect();
    oids.extend(retained.values().cloned());
    oids.extend(seen.head.oid.iter().cloned());
    oids.extend(seen.stash.iter().cloned());
    oids.extend(
        UNFINISHED
            .iter()
            .filter(|name| name.ends_with("HEAD"))
            .flat_map(|name| oids_in(&part.repository.git_dir, name)),
    );
    let mut tips = pin::sort(&part.git, &oids)?;
    tips.others.extend(seen.index_tree.iter().map(|oid| (oid.clone(), "tree")));
    tips.others.extend(seen.unmerged.iter().map(|oid| (oid.clone(), "blob")));
    pin::pin(&part.git, site.session, &tips)?;

    clear(to, previous).context("cannot clear the private git directory")?;
    let alternates = borrow(site, part, &tips, stores)?;
    let large = part.repository.common_dir.join("lfs/objects");
    if large.is_dir() && !is_no_link(&large) {
        warnings.push(format!("large files are left out: '{}' is a link, or behind one", large.display()));
    }
    let lfs =
        part.repository.common_dir.join("lfs").is_dir() || settings::value(&seen.users, "filter.lfs.process").is_some();
    let filters = filters::names(&seen.users);
    let work_tree = paths::in_container(&part.path).filter(|_| !part.key.is_empty());
    let config =
        settings::render(&Basis { local: &part.settings, work_tree: work_tree.as_deref(), lfs, filters: &filters });
    let objects = to.sub("objects").context("cannot make the private folder of objects")?;
    let mut write = || -> Result<()> {
        objects.sub("info")?.write("alternates", alternates.as_bytes())?;
        write_refs(to, &seen, &retained)?;
        warnings.extend(copy_files(part, to)?);
        to.write("config", config.as_bytes())?;
        if lfs {
            // Or a push would leave the large files behind.
            to.sub("hooks")?.write_program("pre-push", b"#!/bin/sh\nexec git lfs pre-push \"$@\"\n")?;
        }
        Ok(to.write("pi-have", have(&seen, &retained, &tips).as_bytes())?)
    };
    write().context("cannot write the private git directory")?;
    let frozen = freeze(site, part, &filters, to)?;
    if frozen > 0 {
        warnings.push(format!(
            "{frozen} files go through a filter ({}) that is not in the container: there they count as unchanged and cannot be committed",
            filters.join(", ")
        ));
    }
    let synced = seen.refs.iter().filter(|r| r.name.starts_with("refs/heads/") || r.name.starts_with("refs/tags/"));
    let mut synced: BTreeMap<String, String> = synced.map(|r| (r.name.clone(), r.oid.clone())).collect();
    for (name, oid) in &retained {
        // A branch that only the private side still has: deleted on the host, and not to come back from there.
        synced.entry(name.clone()).or_insert_with(|| oid.clone());
    }
    if let Some(operation) = part.repository.operation() {
        let place =
            if part.path.as_os_str().is_empty() { String::new() } else { format!(" in '{}'", part.path.display()) };
        warnings.push(format!("a {operation} is unfinished{place}: new commits on a branch in it are kept aside until it is finished or aborted"));
    }
    let known = Known {
        path: part.path.clone(),
        git_dir: part.repository.git_dir.clone(),
        common_dir: part.repository.common_dir.clone(),
        synced,
        head: seen.head,
        index_tree: seen.index_tree,
        retained,
        moving: None,
    };
    Ok((known, warnings))
}

/// Asks git all that is needed, at the same time.
fn look(site: &Site, part: &Part) -> Result<Seen> {
    let git = &part.git;
    std::thread::scope(|scope| {
        let index = scope.spawn(|| staged(site, part));
        let head = scope.spawn(|| refs::head(git));
        let users = scope.spawn(|| git.settings_of_user());
        let refs = refs::list(git)?;
        let has_stash = refs.iter().any(|r| r.name == "refs/stash");
        let stash = if has_stash { git.run(&["log", "-g", "--format=%H", "refs/stash"])? } else { Vec::new() };
        let (index_tree, unmerged) =
            index.join().map_err(|_| anyhow::anyhow!("cannot read the index: a thread panicked"))??;
        let head = head.join().map_err(|_| anyhow::anyhow!("cannot read HEAD: a thread panicked"))??;
        Ok(Seen {
            refs: refs.into_iter().filter(|r| !r.name.starts_with(KEEP) && !is_of_one_worktree(&r.name)).collect(),
            head,
            index_tree,
            unmerged,
            users: users.join().map_err(|_| anyhow::anyhow!("cannot read the settings: a thread panicked"))??,
            stash: String::from_utf8_lossy(&stash).lines().map(str::to_owned).collect(),
        })
    })
}

fn is_of_one_worktree(name: &str) -> bool {
    ["refs/bisect/", "refs/rewritten/", "refs/worktree/"].iter().any(|space| name.starts_with(space))
}

/// What is staged, as a tree; in a conflict, as the blobs of its sides.
fn staged(site: &Site, part: &Part) -> Result<(Option<String>, Vec<String>)> {
    if part.repository.git_dir.join("index").symlink_metadata().is_err() {
        return Ok((None, Vec::new()));
    }
    let scratch = paths::scratch_index(site.state, &part.key);
    let tree = scratch_tree(part, &scratch, site.owner);
    let _ = fs::remove_file(&scratch);
    match tree? {
        Some(tree) => Ok((Some(tree), Vec::new())),
        None => {
            let unmerged = part.git.run(&["ls-files", "--unmerged"])?;
            let lines = String::from_utf8_lossy(&unmerged).into_owned();
            Ok((None, lines.lines().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect()))
        }
    }
}

/// A copy of an index to work on: git takes a lock beside the index, which the user's own git may hold.
fn copy_to_scratch(git_dir: &Path, scratch: &Path, owner: Option<(u32, u32)>) -> Result<SystemTime> {
    // Left by a git that was killed.
    let _ = fs::remove_file(scratch.with_extension("lock"));
    let copy = || -> io::Result<SystemTime> {
        let mut index = open_below(git_dir, "index")?.ok_or(io::ErrorKind::NotFound)?;
        io::copy(&mut index, &mut File::create(scratch)?)?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(scratch, Some(uid), Some(gid))?;
        }
        index.metadata()?.modified()
    };
    copy().with_context(|| format!("cannot copy '{}'", git_dir.join("index").display()))
}

fn scratch_tree(part: &Part, scratch: &Path, owner: Option<(u32, u32)>) -> Result<Option<String>> {
    copy_to_scratch(&part.repository.git_dir, scratch, owner)?;
    let tree = part.git.with_index(scratch).ask(&["write-tree", "--missing-ok"])?;
    Ok(tree.map(|oid| String::from_utf8_lossy(&oid).trim().to_owned()))
}

/// Puts an index in place in which the files of these filters count as unchanged. Returns how many there are.
fn freeze(site: &Site, part: &Part, filters: &[String], to: &Folder) -> Result<usize> {
    let git_dir = &part.repository.git_dir;
    if filters.is_empty() || git_dir.join("index").symlink_metadata().is_err() {
        return Ok(0);
    }
    let scratch = paths::scratch_index(site.state, &part.key);
    let modified = copy_to_scratch(git_dir, &scratch, site.owner)?;
    let write = || -> Result<usize> {
        let count = filters::freeze(&part.git.with_index(&scratch), filters)?;
        if count > 0 {
            let mut file = File::options().read(true).write(true).open(&scratch)?;
            file.set_modified(modified)?;
            to.copy(&mut file, "index")?;
        }
        Ok(count)
    };
    let done = write().context("cannot write the private index");
    let _ = fs::remove_file(&scratch);
    done
}

/// Moves everything out that does not stay.
fn clear(to: &Folder, previous: &Folder) -> io::Result<()> {
    for name in to.names()? {
        if !(KEPT.contains(&name.as_str()) && to.has_folder(&name)) {
            to.give_away(&name, previous)?;
        }
    }
    to.sub("objects")?.give_away("info", &previous.sub("objects")?)
}

/// The text of `objects/info/alternates`, and the mounts that it names.
fn borrow(site: &Site, part: &Part, tips: &Tips, stores: &mut Stores) -> Result<String> {
    let mut folders = part.objects.clone();
    if !tips.tags.is_empty() {
        let tags = paths::tags(site.state, &part.key);
        pin::copy_tags(&part.git, &tips.tags, &tags)?;
        folders.push(tags);
    }
    let mut text = String::new();
    for folder in folders {
        let number = match stores.folders.iter().position(|known| *known == folder) {
            Some(number) => number,
            None => {
                stores.add(site, &folder, &part.repository.common_dir);
                stores.folders.len() - 1
            }
        };
        let _ = writeln!(text, "{}/objects", paths::store(number));
    }
    Ok(text)
}

/// Whether `lfs/objects` is no link to another place.
fn is_no_link(lfs_objects: &Path) -> bool {
    lfs_objects.ancestors().take(2).all(|path| path.symlink_metadata().is_ok_and(|meta| meta.is_dir()))
}

impl Stores {
    fn add(&mut self, site: &Site, folder: &Path, common_dir: &Path) {
        let store = paths::store(self.folders.len());
        self.folders.push(folder.to_owned());
        let mut mount = |host: &Path, name: &str| {
            self.mounts.push(Mount { host: host.to_owned(), container: format!("{store}/{name}"), read_only: true });
        };
        mount(folder, "objects");
        if folder.join("info/alternates").exists() {
            // Those are listed one by one; the paths in it are the host's.
            mount(&paths::empty(site.state), "objects/info/alternates");
        }
        // Where git-lfs looks for what an alternate has.
        let lfs = common_dir.join("lfs/objects");
        if folder.starts_with(common_dir) && is_no_link(&lfs) {
            mount(&lfs, "lfs/objects");
        }
    }
}

fn write_refs(to: &Folder, seen: &Seen, retained: &BTreeMap<String, String>) -> io::Result<()> {
    let plain = seen.refs.iter().filter(|r| r.symref.is_none()).map(|r| (r.name.clone(), r.oid.clone()));
    // Those that only the private side has come first: of two with one name the first one counts.
    let all: Vec<(String, String)> =
        retained.iter().map(|(name, oid)| (name.clone(), oid.clone())).chain(plain).collect();
    to.write("packed-refs", &packed(&without_conflicts(all)))?;
    let loose = to.sub("refs")?;
    loose.sub("heads")?;
    loose.sub("tags")?;
    for symbolic in &seen.refs {
        if let (Some(target), Some((folder, name))) = (&symbolic.symref, symbolic.name.rsplit_once('/')) {
            to.descend(folder)?.write(name, format!("ref: {target}\n").as_bytes())?;
        }
    }
    let head = match (&seen.head.branch, &seen.head.oid) {
        (Some(branch), _) => format!("ref: {branch}\n"),
        (None, Some(oid)) => format!("{oid}\n"),
        (None, None) => "ref: refs/heads/main\n".to_owned(),
    };
    to.write("HEAD", head.as_bytes())
}

/// Leaves out names that are a folder of another one: `a` beside `a/b`. The earlier one stays.
fn without_conflicts(refs: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    let fits = |name: &str, names: &BTreeSet<String>| {
        let below = format!("{name}/");
        let has_child = names.range(below.clone()..).next().is_some_and(|next| next.starts_with(&below));
        !has_child && !name.match_indices('/').any(|(at, _)| names.contains(&name[..at]))
    };
    refs.into_iter().filter(|(name, _)| fits(name, &names) && names.insert(name.clone())).collect()
}

/// Copies what git reads beside references and objects. Returns what could not be: a link in the host's git directory may be one that an
/// agent has left there, and lead to any file of the user's.
fn copy_files(part: &Part, to: &Folder) -> Result<Vec<String>> {
    let (own, common) = (&part.repository.git_dir, &part.repository.common_dir);
    let info = to.sub("info")?;
    let mut left_out = Vec::new();
    let mut exclude = Vec::new();
    match open_below(common, "info/exclude").and_then(|file| read_at_most(file, LARGEST_FILE)) {
        Ok(content) => exclude = content,
        Err(e) => left_out.push(format!("'{}' was left out: {e}", common.join("info/exclude").display())),
    }
    if part.key.is_empty() {
        exclude.extend_from_slice(b"\n# where subagents work\n/.worktrees/\n");
    }
    info.write("exclude", &exclude)?;
    // Without these two the agent would see another repository.
    for (base, name) in [(own, "index"), (common, "shallow")] {
        let copied = open_below(base, name).and_then(|file| file.map_or(Ok(()), |mut file| to.copy(&mut file, name)));
        copied.with_context(|| format!("cannot copy '{}'", base.join(name).display()))?;
    }
    let unfinished: &[&str] =
        if own.join("rebase-merge").exists() || own.join("rebase-apply").exists() { &[] } else { UNFINISHED };
    let shared: Vec<String> = fs::read_dir(own)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("sharedindex."))
        .collect();
    let beside = unfinished.iter().copied().chain(shared.iter().map(String::as_str)).map(|name| (own, name));
    let paths = [(own, "info/sparse-checkout"), (common, "info/attributes"), (common, "logs/refs/stash")];
    for (base, path) in paths.into_iter().chain(beside) {
        let mut file = match open_below(base, path) {
            Ok(Some(file)) => file,
            Ok(None) => continue,
            Err(e) => {
                left_out.push(format!("'{}' was left out: {e}", base.join(path).display()));
                continue;
            }
        };
        match path.rsplit_once('/') {
            Some((folder, name)) => to.descend(folder)?.copy(&mut file, name)?,
            None => to.copy(&mut file, path)?,
        }
    }
    Ok(left_out)
}

fn read_at_most(file: Option<File>, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    if let Some(file) = file {
        file.take(most).read_to_end(&mut content)?;
    }
    Ok(content)
}

/// What the private side begins with, for the export: `host` lines are on the host, `private` ones only here.
fn have(seen: &Seen, retained: &BTreeMap<String, String>, tips: &Tips) -> String {
    let mut text = String::new();
    let on_host = |oid: &String| tips.commits.contains(oid) || tips.tags.contains(oid);
    for (name, oid) in retained {
        let _ = writeln!(text, "{} {oid} {name}", if on_host(oid) { "host" } else { "private" });
    }
    for Ref { oid, name, .. } in &seen.refs {
        let _ = writeln!(text, "host {oid} {name}");
    }
    seen.head.oid.iter().for_each(|oid| _ = writeln!(text, "host {oid} HEAD"));
    seen.stash.iter().for_each(|oid| _ = writeln!(text, "host {oid} stash"));
    seen.index_tree.iter().for_each(|oid| _ = writeln!(text, "index {oid} index"));
    text
}

fn oids_in(git_dir: &Path, name: &str) -> Vec<String> {
    let content = open_below(git_dir, name).and_then(|file| read_at_most(file, LARGEST_FILE)).unwrap_or_default();
    String::from_utf8_lossy(&content).lines().filter(|line| refs::is_oid(line)).map(str::to_owned).collect()
}
