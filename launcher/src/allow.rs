//! `pi-docker allow`: the user's own lists of names, and putting a change into force in the sessions that run. A list in the
//! repository does not exist on purpose: the agent could write it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::allowlist::{self, Domain, Entry};
use crate::cli::AllowArgs;
use crate::config::Config;
use crate::docker::Docker;
use crate::error::hinted;
use crate::files::lock_file;
use crate::home::Home;
use crate::inputs;
use crate::repo::Place;
use crate::run_dir::{self, Record};
use crate::terminal::{Terminal, printable};

/// Changes or shows the lists.
pub(crate) fn run(config: Config, args: &AllowArgs) -> Result<u8> {
    let terminal = Terminal::new(true, config.no_colour);
    let home = Home::find(&config)?;
    let place = match Place::find(&config.cwd) {
        Ok(place) => Some(place),
        Err(e) if args.here => return Err(e),
        Err(_) => None,
    };
    if args.list {
        return show(&config, &home, place.as_ref(), &terminal);
    }
    if args.domains.is_empty() {
        return Err(hinted("cannot tell which host to allow", "pi-docker allow HOST…, or pi-docker allow --list"));
    }
    let domains = args.domains.iter().map(|text| Domain::parse(text)).collect::<Result<Vec<_>>>()?;
    let file = match &place {
        Some(place) if args.here => home.state(&place.id()).join("allow.txt"),
        _ => home.join("allow.txt"),
    };
    let here = place.as_ref().map(|place| home.state(&place.id()).join("allow.txt")).filter(|_| !args.here);
    let changed = edit(&home, &file, args, &domains, here.as_deref(), &terminal)?;
    warn_of_what_stays(&config, &home, args, &domains, place.as_ref(), &terminal)?;
    if changed {
        put_into_force(&config, &home, args, place.as_ref(), &terminal)?;
    }
    Ok(0)
}

/// Says where a change of the list does not decide what can be reached.
fn warn_of_what_stays(
    config: &Config,
    home: &Home,
    args: &AllowArgs,
    domains: &[Domain],
    place: Option<&Place>,
    terminal: &Terminal,
) -> Result<()> {
    if args.remove {
        let names = in_force(config, home, place)?;
        let names = allowlist::merge(allowlist::parse_list("the list", &names)?);
        for domain in domains {
            if let Some(wider) = names.iter().find(|name| name.covers(domain)) {
                let hint = "names under `allow` in config.toml, or in PI_DOCKER_ALLOW, are removed there; those of one repository by --here";
                let (name, wider) = (domain.as_str(), wider.as_str());
                terminal.warn(&format!("'{name}' can still be reached: '{wider}' is on another list"), hint);
            }
        }
    }
    for domain in domains.iter().filter(|domain| !args.remove && domain.is_of_private_networks()) {
        terminal.warn(
            &format!("'{}' is a name of private networks: a private address stays refused", domain.as_str()),
            "pi-docker models connects a server of local models",
        );
    }
    Ok(())
}

/// Why a name cannot be taken off the list; `here` is the repository's own list, unless that is the one that was asked for.
fn not_listed(domain: &Domain, here: Option<&Path>) -> anyhow::Error {
    let name = domain.as_str();
    let entry = Entry::Allow(domain.clone());
    if here.is_some_and(|file| inputs::read_list(file).is_ok_and(|entries| entries.contains(&entry))) {
        return hinted(
            format!("cannot remove '{name}': it is on the list of this repository only"),
            format!("pi-docker allow --remove --here {name}"),
        );
    }
    hinted(
        format!("cannot remove '{name}': it is not on the list"),
        "pi-docker allow --list shows what is; names under `allow` in config.toml are removed there",
    )
}

/// Edits the list and keeps its comments. False if there was nothing to change.
fn edit(
    home: &Home,
    file: &Path,
    args: &AllowArgs,
    domains: &[Domain],
    here: Option<&Path>,
    terminal: &Terminal,
) -> Result<bool> {
    let folder = file.parent().unwrap_or(home.dir());
    fs::create_dir_all(folder).with_context(|| format!("cannot make '{}'", folder.display()))?;
    let lock = lock_file(&file.with_extension("lock"))?;
    lock.lock().with_context(|| format!("cannot lock '{}'", file.display()))?;
    let name = file.display().to_string();
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e).with_context(|| format!("cannot read '{name}'")),
    };
    allowlist::parse_list(&name, &text)?;
    // What is in force apart from this file decides whether a removal needs a line of its own.
    let mut others = inputs::read_list(&home.join("allowlist.txt"))?;
    if file != home.join("allow.txt") {
        others.extend(inputs::read_list(&home.join("allow.txt"))?);
    }
    let others = allowlist::merge(others);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut said = Vec::new();
    for domain in domains {
        let own = |line: &str| allowlist::parse_line(line).ok().flatten();
        let listed = lines.iter().any(|line| own(line) == Some(Entry::Allow(domain.clone())));
        if args.remove {
            let known = others.contains(domain);
            let allowed = lines.iter().filter_map(|line| match own(line) {
                Some(Entry::Allow(allowed)) => Some(allowed),
                _ => None,
            });
            let mut wider = allowed.chain(others.iter().cloned()).filter(|other| !domains.contains(other));
            if let Some(wider) = wider.find(|other| other.covers(domain)) {
                let (name, wider) = (domain.as_str(), wider.as_str());
                return Err(hinted(
                    format!("cannot remove '{name}': it is part of '{wider}'"),
                    format!("pi-docker allow --remove {wider}, then allow what you need of it"),
                ));
            }
            if !listed && !known {
                return Err(not_listed(domain, here));
            }
            lines.retain(|line| own(line) != Some(Entry::Allow(domain.clone())));
            if known && !lines.iter().any(|line| own(line) == Some(Entry::Remove(domain.clone()))) {
                lines.push(format!("!{}", domain.as_str()));
            }
            said.push(format!("removed {}", domain.as_str()));
        } else {
            let removed = Entry::Remove(domain.clone());
            let before = lines.len();
            lines.retain(|line| own(line).as_ref() != Some(&removed));
            if listed || (before == lines.len() && others.iter().any(|other| other.covers(domain))) {
                said.push(format!("{} is allowed already", domain.as_str()));
                continue;
            }
            if !others.contains(domain) {
                lines.push(domain.as_str().to_owned());
            }
            said.push(format!("allowed {}", domain.as_str()));
        }
    }
    let new: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let changed = new != text;
    if changed {
        allowlist::parse_list(&name, &new)?;
        let draft = file.with_extension("new");
        let written = fs::write(&draft, new).and_then(|()| fs::rename(&draft, file));
        written.with_context(|| format!("cannot write '{name}'"))?;
    }
    // Not before it is so.
    said.iter().for_each(|line| terminal.say(line));
    Ok(changed)
}

/// Gives the new list to the proxies of the sessions that it concerns.
fn put_into_force(
    config: &Config,
    home: &Home,
    args: &AllowArgs,
    place: Option<&Place>,
    terminal: &Terminal,
) -> Result<()> {
    let here = place.filter(|_| args.here).map(Place::id);
    let mut failed = None;
    for (record, run) in run_dir::running(home)? {
        if here.as_ref().is_some_and(|id| *id != record.repository_id) || record.has_no_repository() {
            continue;
        }
        match reload(config, home, &record, &run, args.remove) {
            Ok(()) => terminal.say(&format!("in force in {}", record.project)),
            Err(e) => failed = Some(e.context(format!("cannot change the list of {}", record.project))),
        }
    }
    failed.map_or(Ok(()), Err)
}

fn reload(config: &Config, home: &Home, record: &Record, run: &Path, cut: bool) -> Result<()> {
    let config = config.clone().with_file(home, Some((&record.root, &record.repository_id)))?;
    let docker = Docker::new(&config, &std::collections::BTreeMap::new());
    let names = inputs::allowed_names(&config, home, &home.state(&record.repository_id))?;
    let squid = run.join("squid");
    let draft: PathBuf = squid.join("allow.next");
    fs::write(&draft, names).with_context(|| format!("cannot write '{}'", draft.display()))?;
    let proxy = record.proxy();
    let conf = fs::read_to_string(home.join("squid.conf")).context("cannot read squid.conf")?;
    let conf = conf.replace("session/allow.txt", "session/allow.next");
    let checked = docker.feed(&["exec", "-i", &proxy, "squid", "-k", "parse", "-f", "/dev/stdin"], conf.as_bytes())?;
    if !checked.status.success() {
        let _ = fs::remove_file(&draft);
        let told = String::from_utf8_lossy(&checked.stderr);
        let why = told
            .lines()
            .rev()
            .find(|line| line.contains("FATAL") || line.contains("ERROR"))
            .unwrap_or("it does not say why");
        return Err(anyhow!("squid refuses the list: {}", printable(why)));
    }
    fs::rename(&draft, squid.join("allow.txt")).context("cannot put the new list in place")?;
    if cut { docker.restart(&proxy) } else { docker.hang_up(&proxy) }
}

fn show(config: &Config, home: &Home, place: Option<&Place>, terminal: &Terminal) -> Result<u8> {
    terminal.answer(in_force(config, home, place)?.trim_end());
    Ok(0)
}

/// The whole list for a session that would start here.
fn in_force(config: &Config, home: &Home, place: Option<&Place>) -> Result<String> {
    let config = config.clone().with_file(
        home,
        place.map(|place| (place.root.as_path(), place.id())).as_ref().map(|(r, i)| (*r, i.as_str())),
    )?;
    let state = place.map_or_else(|| home.join("state/none"), |place| home.state(&place.id()));
    inputs::allowed_names(&config, home, &state)
}
