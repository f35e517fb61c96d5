//! Before a session: the private git directory is made, or made to agree with the host again, and the mounts are worked out.
//! Asks nothing of the private side: what it holds that the host has not was fetched before, or the session does not begin.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::direct::HARMLESS;
use super::guard::{self, Survey};
use super::ledger::{self, Ledger, lock};
use super::place::{Folder, read_plain};
use super::plant::{Stores, plant};
use super::repository::Repository;
use super::{Mount, Site, closing, head, lenders, paths, pin};
use crate::error::hinted;

/// A private side that a session's container can be started on.
#[derive(Debug)]
pub(crate) struct PrivateGit {
    /// Every mount of the container that has to do with git, outer ones first.
    pub(crate) mounts: Vec<Mount>,
    /// Files and folders in the tree that the host's git is configured to run, for the watcher.
    pub(crate) programs: Vec<PathBuf>,
    /// What the user should know: one sentence each.
    pub(crate) warnings: Vec<String>,
}

/// Makes the private side ready for a session. Fails, and changes nothing, while another session's commits have not been fetched and
/// that session is over (see `unimported`, `set_aside`). With another one running it joins that one's.
pub(crate) fn prepare(site: &Site) -> Result<PrivateGit> {
    if site.state.starts_with(site.root) {
        let hint = "move pi-docker's folder out of it, or set PI_DOCKER_HOME to another one";
        return Err(hinted(
            format!("cannot keep the private side in '{}': it is in the repository", site.state.display()),
            hint,
        ));
    }
    let _lock = lock(site)?;
    let mut warnings = Vec::new();
    let mut ledger = match Ledger::load(site.state) {
        Ok(ledger) => ledger,
        Err(e) if !site.others_live => {
            let where_to = ledger::set_aside_locked(site)?;
            warnings.push(format!("{e:#}; {}", now_in(where_to.as_deref())));
            Ledger::load(site.state)?
        }
        Err(e) => return Err(e),
    };
    head::recover(site, &mut ledger)?;
    let repository = Repository::at(site.root)?;
    if site.others_live && !ledger.building && !ledger.repositories.is_empty() {
        return join(site, ledger);
    }
    if let Some(session) = ledger.open.first() {
        bail!(hinted(
            format!("cannot start: the commits of session '{session}' have not been fetched"),
            "fetch them, or move the private git directory aside"
        ));
    }
    if ledger.repositories.is_empty() && paths::private(site.state).symlink_metadata().is_ok() && !ledger.building {
        let where_to = ledger::set_aside_locked(site)?;
        warnings.push(format!("a private git directory of unknown origin was there; {}", now_in(where_to.as_deref())));
        ledger = Ledger::load(site.state)?;
    }
    drop_lost_pins(site, &repository, &mut ledger)?;
    make_own_folder(site)?;
    let mut survey = guard::survey(site, repository.clone())?;
    lenders::check(site, &survey, &mut ledger)?;
    let stores = match build(site, &survey, &mut ledger, &mut warnings) {
        Ok(stores) => stores,
        Err(e) if is_the_agents_doing(&e) => {
            let where_to = ledger::set_aside_locked(site)?;
            warnings.push(format!("{e:#}; {}", now_in(where_to.as_deref())));
            ledger = Ledger::load(site.state)?;
            build(site, &survey, &mut ledger, &mut warnings)?
        }
        Err(e) => return Err(e),
    };
    let worktrees = Mount {
        host: paths::worktrees(site.state),
        container: format!("{}/.worktrees", paths::WORKSPACE),
        read_only: false,
    };
    let mut mounts = std::mem::take(&mut survey.cover.mounts);
    mounts.push(worktrees);
    mounts.extend(stores.mounts);
    mounts.sort_by_key(|mount| mount.container.matches('/').count());
    survey.points.push(PathBuf::from(".worktrees"));
    make_points(site, &survey.points, &mut ledger)?;
    ledger.mounts = mounts.clone();
    ledger.programs = survey.programs.clone();
    ledger.building = false;
    ledger.open.push(site.session.to_owned());
    ledger.save(site)?;
    warnings.extend(survey.warnings);
    Ok(PrivateGit { mounts, programs: survey.programs, warnings })
}

/// The session never started: nothing has to be fetched for it.
pub(crate) fn forget(site: &Site) -> Result<()> {
    let _lock = lock(site)?;
    let mut ledger = Ledger::load(site.state)?;
    ledger.open.retain(|session| session != site.session);
    ledger.save(site)
}

/// Removes what was made in the working tree to mount onto, unless another session uses it or something has been put there.
pub(crate) fn release(site: &Site) -> Result<()> {
    let _lock = lock(site)?;
    let mut ledger = Ledger::load(site.state)?;
    ledger.direct_open.retain(|session| session != site.session);
    if site.others_live {
        return ledger.save(site);
    }
    for point in std::mem::take(&mut ledger.made).iter().rev() {
        let path = site.root.join(point);
        let is_ours =
            content(point).is_some_and(|content| read_plain(&path, 16).ok().flatten().as_deref() == Some(content));
        match if is_ours { fs::remove_file(&path) } else { fs::remove_dir(&path) } {
            Ok(()) => {}
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory
                ) => {}
            Err(e) => return Err(e).with_context(|| format!("cannot remove '{}'", path.display())),
        }
    }
    ledger.save(site)
}

fn join(site: &Site, mut ledger: Ledger) -> Result<PrivateGit> {
    ledger.open.push(site.session.to_owned());
    let points: Vec<PathBuf> = vec![PathBuf::from(".worktrees")];
    make_points(site, &points, &mut ledger)?;
    ledger.save(site)?;
    Ok(PrivateGit { mounts: ledger.mounts, programs: ledger.programs, warnings: Vec::new() })
}

/// Writes all private git directories. The ledger says so before and after: what is found half done is done again.
fn build(site: &Site, survey: &Survey, ledger: &mut Ledger, warnings: &mut Vec<String>) -> Result<Stores> {
    let again = std::mem::replace(&mut ledger.building, true);
    if !ledger.pins.iter().any(|pin| pin == site.session) {
        ledger.pins.push(site.session.to_owned());
    }
    ledger.save(site)?;
    for (file, content) in &survey.files {
        let (Some(folder), Some(name)) = (file.parent(), file.file_name().and_then(|name| name.to_str())) else {
            continue;
        };
        let written = Folder::open(folder, site.owner).and_then(|folder| folder.write(name, content.as_bytes()));
        written.with_context(|| format!("cannot write '{}'", file.display()))?;
    }
    let to = Folder::open(&paths::private(site.state), site.owner).context("cannot open the private git directory")?;
    Folder::open(&paths::worktrees(site.state), site.owner).context("cannot open the folder of worktrees")?;
    let previous = fresh_previous(site, again)?;
    let mut stores = Stores::default();
    let mut repositories = BTreeMap::new();
    for part in &survey.parts {
        let below = |folder: &Folder| folder.sub("modules")?.descend(&part.key);
        let (known, said) = if part.key.is_empty() {
            plant(site, part, ledger.repositories.get(""), &to, &previous, &mut stores)?
        } else {
            let to = below(&to)
                .with_context(|| format!("cannot open the private git directory of '{}'", part.path.display()))?;
            let previous = below(&previous).context("cannot keep the former private git directory")?;
            plant(site, part, ledger.repositories.get(&part.key), &to, &previous, &mut stores)?
        };
        repositories.insert(part.key.clone(), known);
        warnings.extend(said);
    }
    ledger.repositories = repositories;
    drop_old_pins(site, survey, ledger)?;
    Ok(stores)
}

/// An empty folder for what is moved out of the private git directory. After a crash it goes beside what was moved before that.
fn fresh_previous(site: &Site, again: bool) -> Result<Folder> {
    let path = paths::previous(site.state);
    let cannot = || format!("cannot empty '{}'", path.display());
    if again && path.is_dir() {
        let redone = path.join(site.session);
        return Folder::open(&redone, site.owner).with_context(cannot);
    }
    if path.symlink_metadata().is_ok() {
        // Never through a link: neither the folder nor what is in it. What the agent has made impossible to delete is moved.
        if fs::remove_dir_all(&path).is_err() {
            fs::rename(&path, path.with_extension(site.session)).with_context(cannot)?;
        }
    }
    Folder::open(&path, site.owner).with_context(cannot)
}

/// What older sessions pinned is covered by this one's pins, which hold every tip that both sides have.
fn drop_old_pins(site: &Site, survey: &Survey, ledger: &mut Ledger) -> Result<()> {
    let needed = closing::needed_pins(ledger);
    let pins = std::mem::take(&mut ledger.pins).into_iter();
    let (kept, old): (Vec<String>, Vec<String>) = pins.partition(|pin| pin == site.session || needed.contains(pin));
    ledger.pins = kept;
    survey.parts.iter().try_for_each(|part| pin::unpin(&part.git, &old))
}

/// The pins of a private side that was moved away go when its folder has gone.
fn drop_lost_pins(site: &Site, repository: &Repository, ledger: &mut Ledger) -> Result<()> {
    let (kept, lost): (Vec<_>, Vec<_>) =
        std::mem::take(&mut ledger.aside).into_iter().partition(|aside| aside.folder.is_dir());
    ledger.aside = kept;
    let git = super::run::Git::new(&repository.git_dir, site.env, site.owner);
    lost.iter().try_for_each(|aside| pin::unpin(&git, &aside.pins))
}

fn make_own_folder(site: &Site) -> Result<()> {
    let empty = paths::empty(site.state);
    let folder = empty.parent().context("cannot make the launcher's own folder")?;
    let folder = Folder::open(folder, site.owner).with_context(|| format!("cannot make '{}'", folder.display()))?;
    folder.write("empty", b"").with_context(|| format!("cannot make '{}'", empty.display()))
}

/// Makes files and folders to mount onto, as the user: the engine would make them as root.
pub(crate) fn make_points(site: &Site, points: &[PathBuf], ledger: &mut Ledger) -> Result<()> {
    for point in points {
        let path = site.root.join(point);
        match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() && content(point).is_none() || meta.is_file() && content(point).is_some() => {}
            Ok(_) => bail!(
                "cannot use '{}': it is not a {}",
                path.display(),
                if content(point).is_some() { "file" } else { "folder" }
            ),
            Err(_) => {
                if !ledger.made.contains(point) {
                    ledger.made.push(point.clone());
                }
                // Written down first: what is made is removed again, whatever happens now.
                ledger.save(site)?;
                let made = match content(point) {
                    Some(content) => make_file(&path, content),
                    None => fs::DirBuilder::new().mode(0o755).create(&path),
                };
                made.with_context(|| format!("cannot make '{}'", path.display()))?;
                if let Some((uid, gid)) = site.owner {
                    std::os::unix::fs::lchown(&path, Some(uid), Some(gid))?;
                }
            }
        }
    }
    Ok(())
}

/// What a file that is made to mount onto holds, by its name; `None` for a folder.
fn content(point: &Path) -> Option<&'static [u8]> {
    match point.file_name()?.to_str()? {
        "commondir" => Some(HARMLESS.as_bytes()),
        "alternates" | "config" | "config.worktree" => Some(b""),
        _ => None,
    }
}

fn make_file(path: &Path, content: &[u8]) -> io::Result<()> {
    io::Write::write_all(&mut fs::File::options().write(true).create_new(true).open(path)?, content)
}

/// Whether a step failed for what the private git directory looks like, so that a new one would do.
fn is_the_agents_doing(error: &anyhow::Error) -> bool {
    use nix::errno::Errno;
    let code = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).find_map(io::Error::raw_os_error);
    let planted = [
        Errno::EACCES,
        Errno::EPERM,
        Errno::ELOOP,
        Errno::ENOTDIR,
        Errno::EISDIR,
        Errno::ENOTEMPTY,
        Errno::EEXIST,
        Errno::ENAMETOOLONG,
    ];
    code.is_some_and(|code| planted.contains(&Errno::from_raw(code)))
}

fn now_in(folder: Option<&Path>) -> String {
    match folder {
        Some(folder) => format!("it is now in '{}'", folder.display()),
        None => "a new one was made".to_owned(),
    }
}
