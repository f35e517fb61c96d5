//! `pi-docker doctor`: everything that a session needs, looked at one by one; each finding with what to do about it.

use std::path::Path;
use std::time::SystemTime;

use anyhow::Result;
use nix::sys::statvfs::statvfs;
use nix::unistd::{getegid, geteuid};
use serde_json::{Value, json};

use crate::cli::{Options, Owner};
use crate::config::Config;
use crate::credentials::{AuthFile, github_token};
use crate::docker::Docker;
use crate::error::Hinted;
use crate::facts::{agent_user, has_cpus, is_outside, may_write};
use crate::github::{self, Slug};
use crate::home::Home;
use crate::images;
use crate::inputs;
use crate::models;
use crate::plan::CACHE;
use crate::recover::Orphans;
use crate::repo::{GitFacts, Place};
use crate::secret::Secret;
use crate::terminal::{Terminal, printable};
use crate::trial::{self, Ground};

/// Less than this much free space is worth a warning, in bytes.
const SPACE: u64 = 2 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grade {
    Good,
    Warning,
    Failed,
}

#[derive(Debug)]
pub(crate) struct Finding {
    grade: Grade,
    what: &'static str,
    text: String,
    fix: String,
}

impl Finding {
    pub(crate) fn good(what: &'static str, text: impl Into<String>) -> Finding {
        Finding { grade: Grade::Good, what, text: text.into(), fix: String::new() }
    }

    pub(crate) fn warning(what: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { grade: Grade::Warning, what, text: text.into(), fix: fix.into() }
    }

    pub(crate) fn failed(what: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { grade: Grade::Failed, what, text: text.into(), fix: fix.into() }
    }

    /// An error as a finding; its hint is the fix.
    fn from_error(what: &'static str, error: &anyhow::Error, fix: &str) -> Finding {
        let fix = error.downcast_ref::<Hinted>().map_or(fix, |hinted| hinted.hint.as_str());
        Finding::failed(what, format!("{error:#}"), fix)
    }
}

/// Looks at everything and says it. The status is 1 if something would keep a session from working.
pub(crate) fn run(config: Config, options: &Options, as_json: bool) -> Result<u8> {
    let terminal = Terminal::new(true, config.no_colour);
    let home = Home::find(&config)?;
    let place = Place::find(&config.cwd);
    let repository = place.as_ref().ok().map(|place| (place.root.clone(), place.id()));
    let mut findings = Vec::new();
    let config =
        match config.clone().with_file(&home, repository.as_ref().map(|(root, id)| (root.as_path(), id.as_str()))) {
            Ok(with_file) => with_file,
            Err(e) => {
                findings.push(Finding::from_error("configuration", &e, "correct the file"));
                config
            }
        };
    let (git, user) = match &place {
        Ok(place) => {
            let (finding, git) = repository_finding(place, &config);
            findings.extend(finding);
            if let Err(e) = is_outside(home.dir(), &place.root) {
                findings.push(Finding::from_error("repository", &e, ""));
            }
            match agent_user(options.user, place, me()) {
                Ok(user) => {
                    if let Err(e) = may_write(user, &place.root) {
                        findings.push(Finding::from_error("user", &e, ""));
                    }
                    (git, user)
                }
                Err(e) => {
                    findings.push(Finding::from_error("user", &e, ""));
                    (git, me())
                }
            }
        }
        Err(e) => {
            findings.push(Finding::warning(
                "repository",
                format!("{e:#}"),
                "run this in the repository that you want to work on",
            ));
            (None, options.user.unwrap_or_else(me))
        }
    };
    let (login, token) = credentials(&config, &home, &mut findings);
    findings.extend(login);
    findings.extend(ollama(&home));
    findings.push(disk(home.dir()));
    if let Ok(orphans) = Orphans::find(&home)
        && !orphans.is_empty()
    {
        findings.push(Finding::warning("sessions", "a session did not end by itself", "the next start cleans up"));
    }
    engine(&config, &home, &terminal, user, (git.as_ref(), token.as_ref()), &mut findings);
    Ok(report(&terminal, &findings, as_json))
}

fn me() -> Owner {
    Owner { uid: geteuid().as_raw(), gid: getegid().as_raw() }
}

fn repository_finding(place: &Place, config: &Config) -> (Vec<Finding>, Option<GitFacts>) {
    match place.git_facts(config) {
        Ok(git) => {
            let root = place.root.display().to_string();
            let mut findings = vec![Finding::good("repository", root)];
            findings.extend(git.lacks(config).into_iter().map(|(text, fix)| Finding::warning("git", text, fix)));
            (findings, Some(git))
        }
        Err(e) => (vec![Finding::from_error("git", &e, "see whether `git config --list` works here")], None),
    }
}

fn credentials(config: &Config, home: &Home, findings: &mut Vec<Finding>) -> (Option<Finding>, Option<Secret>) {
    let token = match github_token(config.github_token.as_ref(), &home.token_file()) {
        Ok(token) => token,
        Err(e) => {
            findings.push(Finding::from_error("token", &e, "put the token alone into the file"));
            None
        }
    };
    let login = match AuthFile::read(&config.agent_dir.join("auth.json")) {
        Err(e) => Finding::from_error("login", &e, ""),
        Ok(auth) if auth.anthropic_has_expired(SystemTime::now()) => {
            Finding::warning("login", "Anthropic session token is expired", "pi refreshes it, or pi-docker auth")
        }
        Ok(auth) => {
            let names: Vec<&str> = auth.providers().chain(config.provider_keys.keys().copied()).collect();
            match names.is_empty() {
                true => Finding::warning(
                    "login",
                    "No Anthropic auth found, nor another provider's",
                    "pi-docker auth, or export ANTHROPIC_API_KEY",
                ),
                false => Finding::good("login", names.join(", ")),
            }
        }
    };
    (Some(login), token)
}

/// The server for local models, if one is connected.
fn ollama(home: &Home) -> Option<Finding> {
    let server = models::connected(home).ok()?;
    Some(match server.version() {
        Ok(version) => Finding::good("ollama", format!("{version} at {server}")),
        Err(e) => Finding::warning("ollama", format!("{e:#}"), "start it, or pi-docker models ollama disable"),
    })
}

fn disk(dir: &Path) -> Finding {
    match statvfs(dir) {
        Ok(stat) => {
            #[allow(clippy::unnecessary_cast, reason = "the widths differ from system to system")]
            let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
            let text = format!("{:.1} GB free", free as f64 / f64::from(1 << 30));
            if free < SPACE {
                Finding::warning("disk", text, "docker system prune, or make room")
            } else {
                Finding::good("disk", text)
            }
        }
        Err(e) => Finding::warning("disk", format!("cannot tell how much is free: {e}"), ""),
    }
}

/// The volumes that repositories' caches are kept in; what has outlived its repository only takes up room.
/// Another clone's are left alone.
fn caches(docker: &Docker, home: &Home) -> Option<Finding> {
    let mut volumes = docker.cache_volumes().ok()?;
    volumes.retain(|(name, _)| name.strip_prefix(CACHE).is_some_and(|id| home.state(id).is_dir()));
    let left: Vec<&str> = volumes
        .iter()
        .filter(|(_, repository)| repository.as_ref().is_some_and(|repository| !repository.exists()))
        .map(|(name, _)| name.as_str())
        .collect();
    if left.is_empty() {
        return (!volumes.is_empty())
            .then(|| Finding::good("caches", format!("{} volumes, one a repository", volumes.len())));
    }
    let text = format!("{} of {} volumes belong to repositories that are gone", left.len(), volumes.len());
    Some(Finding::warning("caches", text, format!("docker volume rm {}", left.join(" "))))
}

/// Everything that needs the engine, as far as it goes.
fn engine(
    config: &Config,
    home: &Home,
    terminal: &Terminal,
    user: Owner,
    on: (Option<&GitFacts>, Option<&Secret>),
    findings: &mut Vec<Finding>,
) {
    let (git, token) = on;
    let looked = images::wanted(config, home).and_then(|images| {
        let docker = Docker::new(config, &images::hash_variables(&images));
        Ok((docker.engine()?, images::states(&docker, &images)?, docker, images))
    });
    let (engine, states, docker, images) = match looked {
        Ok(looked) => looked,
        Err(e) => return findings.push(Finding::from_error("engine", &e, "start Docker")),
    };
    findings.push(Finding::good("engine", format!("{}, compose {}", engine.version, engine.compose)));
    for (image, state) in images.iter().zip(&states) {
        findings.push(match state {
            images::State::Current => Finding::good("image", image.name.clone()),
            images::State::Stale => {
                Finding::warning("image", format!("{}: older than its sources", image.name), "pi-docker --rebuild")
            }
            images::State::Missing => {
                Finding::warning("image", format!("{}: not built yet", image.name), "the next start builds it")
            }
        });
    }
    findings.extend(caches(&docker, home));
    match inputs::allowed_names(config, home, Path::new("/nonexistent")) {
        Ok(names) => findings.push(Finding::good("allowlist", format!("{} names", names.lines().count()))),
        Err(e) => return findings.push(Finding::from_error("allowlist", &e, "correct the list")),
    }
    if let Err(e) =
        inputs::check(config, home, "none").and_then(|()| has_cpus(config.setting("PI_DOCKER_CPUS"), engine.cpus))
    {
        return findings.push(Finding::from_error("configuration", &e, "correct the file"));
    }
    if states.contains(&images::State::Missing) {
        return findings.push(Finding::warning("network", "not looked at: there is no image", "start a session first"));
    }
    if user.uid == 0 || user.gid == 0 {
        let fix = "pi-docker --user UID:GID doctor, with the numbers of an ordinary user";
        return findings.push(Finding::warning("network", "not looked at: nothing runs as root in a container", fix));
    }
    let ground = Ground { config, home, docker: &docker, terminal, user, names: &[] };
    let trial = trial::run(&ground, |trial| {
        let mut found =
            vec![Finding::good("network", "closed: neither this machine nor an outside name can be reached")];
        match (token, git.and_then(|git| Slug::of(git, config))) {
            (None, _) => found.push(Finding::warning(
                "token",
                "No GitHub token found",
                "export PI_GH_TOKEN, or put a token into .gh-auth-token in pi-docker's folder",
            )),
            (Some(_), None) => found.push(Finding::warning(
                "token",
                "not looked at: no remote on GitHub here",
                "git remote add origin URL",
            )),
            (Some(token), Some(slug)) => found.extend(github::check(trial, config, &slug, token)),
        }
        found
    });
    match trial {
        Ok(found) => findings.extend(found),
        Err(e) => findings.push(Finding::from_error("network", &e, "docs/security.md says what is tried and why")),
    }
}

fn report(terminal: &Terminal, findings: &[Finding], as_json: bool) -> u8 {
    let word = |grade| match grade {
        Grade::Good => "ok",
        Grade::Warning => "warning",
        Grade::Failed => "failed",
    };
    if as_json {
        let findings: Vec<Value> = findings
            .iter()
            .map(|f| json!({ "grade": word(f.grade), "what": f.what, "text": f.text, "fix": f.fix }))
            .collect();
        terminal.answer(&json!({ "findings": findings }).to_string());
    } else {
        for finding in findings {
            terminal.answer(&format!("{:<8} {:<13} {}", word(finding.grade), finding.what, printable(&finding.text)));
            if finding.grade != Grade::Good && !finding.fix.is_empty() {
                terminal.answer(&format!("{:<22} fix: {}", "", printable(&finding.fix)));
            }
        }
    }
    u8::from(findings.iter().any(|finding| finding.grade == Grade::Failed))
}
