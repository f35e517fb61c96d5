//! What a session's containers are given: the files of `<run>`, from the facts. Everything is written here and nowhere else.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::agent_copy;
use crate::allowlist::{self, Domain, Entry};
use crate::config::Config;
use crate::credentials::{AuthFile, api_key, read_bounded};
use crate::error::hinted;
use crate::facts::Facts;
use crate::files::{Maker, set_mode};
use crate::gitconfig;
use crate::home::Home;
use crate::run_dir::{RunDir, Secrets};
use crate::terminal::{Terminal, printable};

const LIST_MAX: u64 = 1 << 20;

/// auth.json has to be there to be mounted.
pub(crate) fn prepare_auth(auth: &AuthFile, maker: Maker) -> Result<()> {
    if auth.exists {
        return set_mode(&auth.path, 0o600);
    }
    if let Some(parent) = auth.path.parent() {
        maker.dirs(parent)?;
    }
    maker.file(&auth.path, b"{}").map(drop)
}

/// Fills `<run>/in` for a session and returns the folder.
pub(crate) fn write(
    config: &Config,
    home: &Home,
    facts: &Facts,
    terminal: &Terminal,
    run: &RunDir,
    maker: Maker,
) -> Result<PathBuf> {
    let git = &facts.git;
    let secrets = Secrets {
        github: match &facts.token {
            Some(token) => Some((github(config)?.0, token.expose().to_owned())),
            None => None,
        },
        auth: config.provider_keys.iter().map(|(provider, key)| ((*provider).to_owned(), api_key(key))).collect(),
    };
    let excludes = gitconfig::excludes_file(git.excludes_file.as_deref(), &config.user_home, &config.user_config);
    let excludes = read_bounded(&excludes, LIST_MAX).unwrap_or_default();
    let dir = run.write_in(
        maker,
        &secrets,
        &gitconfig::render(facts.identity.as_ref(), &git.settings),
        &gitconfig::ignore_list(&String::from_utf8_lossy(&excludes)),
    )?;
    write_common(config, home, terminal, &dir, maker)?;
    Ok(dir)
}

/// Refuses what a start would fail of later, when half of it is made. Changes nothing.
pub(crate) fn check(config: &Config, home: &Home, repository_id: &str) -> Result<()> {
    allowed_names(config, home, &home.state(repository_id))?;
    squid_local(home)?;
    github(config)?;
    if let Some(ca) = config.setting("PI_DOCKER_EXTRA_CA") {
        extra_ca(ca)?;
    }
    for file in config.compose_files() {
        std::fs::File::open(&file).map_err(|e| {
            hinted(
                format!("cannot read the overlay '{}': {e}", file.display()),
                "correct `compose-files` in config.toml, or PI_DOCKER_COMPOSE_FILES",
            )
        })?;
    }
    Ok(())
}

fn extra_ca(path: &str) -> Result<Vec<u8>> {
    read_bounded(path.as_ref(), 4 << 20).map_err(|e| {
        hinted(
            format!("cannot read the extra CA '{path}': {e}"),
            "correct `extra-ca` in config.toml, or PI_DOCKER_EXTRA_CA",
        )
    })
}

/// What a login needs as well as a session: the extra CA and the copies of pi's own files.
pub(crate) fn write_common(config: &Config, home: &Home, terminal: &Terminal, dir: &Path, maker: Maker) -> Result<()> {
    if let Some(ca) = config.setting("PI_DOCKER_EXTRA_CA") {
        maker.file(&dir.join("ca.pem"), &extra_ca(ca)?)?;
    }
    let skipped = agent_copy::copy(&config.agent_dir, &dir.join("agent"), &home.join("models.json"), maker)?;
    skipped.0.iter().for_each(|line| terminal.warn(&printable(line), ""));
    Ok(())
}

/// The list of names for squid: the shipped one, the user's for all repositories, the user's for this one, and the configuration's.
pub(crate) fn allowed_names(config: &Config, home: &Home, state: &Path) -> Result<String> {
    let mut names = Vec::new();
    for file in [home.join("allowlist.txt"), home.join("allow.txt"), state.join("allow.txt")] {
        names.extend(read_list(&file)?);
    }
    for name in config.setting("PI_DOCKER_ALLOW").unwrap_or_default().split(',').filter(|name| !name.trim().is_empty())
    {
        let domain = Domain::parse(name).map_err(|e| {
            hinted(format!("{e:#}"), "correct `allow` in config.toml in pi-docker's own folder, or PI_DOCKER_ALLOW")
        })?;
        names.push(Entry::Allow(domain));
    }
    if config.setting("GITHUB_API_URL").is_some() {
        let (host, api) = github(config)?;
        names.extend([Entry::Allow(Domain::parse(&host)?), Entry::Allow(Domain::parse(&api)?)]);
    }
    Ok(allowlist::render(&allowlist::merge(names)))
}

/// The entries of a list file, which may be missing.
pub(crate) fn read_list(file: &Path) -> Result<Vec<Entry>> {
    match read_bounded(file, LIST_MAX) {
        Ok(bytes) => allowlist::parse_list(&file.display().to_string(), &String::from_utf8_lossy(&bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("cannot read '{}'", file.display())),
    }
}

/// What `pi-docker models` adds to squid.conf.
pub(crate) fn squid_local(home: &Home) -> Result<Vec<u8>> {
    let file = home.join("squid-local.conf");
    match read_bounded(&file, LIST_MAX) {
        Ok(bytes) => Ok(bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("cannot read '{}'", file.display())),
    }
}

/// GitHub's name, and the name of its API.
pub(crate) fn github(config: &Config) -> Result<(String, String)> {
    let url = config.setting("GITHUB_API_URL").unwrap_or("https://api.github.com");
    let api =
        url.strip_prefix("https://").and_then(|rest| rest.split('/').next()).filter(|host| Domain::parse(host).is_ok());
    let api = api.ok_or_else(|| {
        hinted(
            format!("cannot use GITHUB_API_URL '{url}'"),
            "write it as https://api.github.com or https://HOST/api/v3",
        )
    })?;
    Ok((api.strip_prefix("api.").unwrap_or(api).to_owned(), api.to_owned()))
}
