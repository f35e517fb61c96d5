//! The newest published pi: looked up by npm in a short container, at most once an hour, and never before pi runs. What is found is
//! said at the next start; `--update` builds it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::docker::{Docker, Output};
use crate::error::hinted;
use crate::home::Home;
use crate::session::unix_now;
use crate::terminal::Terminal;

const PACKAGE: &str = "@earendil-works/pi-coding-agent";
const SETTING: &str = "PI_DOCKER_PI_VERSION";
const FRESH: u64 = 3600;
const LOOK: Duration = Duration::from_secs(90);
/// npm's own patience, so that it ends by itself, and says why, well within `LOOK`.
const PATIENCE: [&str; 3] = ["--fetch-timeout=20000", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"];
const READY: Duration = Duration::from_millis(500);

/// A release; a pre-release is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Version(u32, u32, u32);

impl Version {
    pub(crate) fn parse(text: &str) -> Option<Version> {
        let mut parts = text.trim().split('.').map(|part| part.parse().ok());
        let version = Version(parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(version)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[derive(Serialize, Deserialize)]
struct Found {
    checked: u64,
    version: Version,
}

/// The version that docker-compose.yml builds if nothing else is said.
fn shipped(home: &Home) -> Option<Version> {
    let compose = fs::read_to_string(home.join("docker-compose.yml")).ok()?;
    let (_, rest) = compose.split_once("${PI_DOCKER_PI_VERSION:-")?;
    Version::parse(rest.split_once('}')?.0)
}

fn chosen_file(home: &Home) -> PathBuf {
    home.join("state/pi-version")
}

/// What an earlier `--update` has built.
fn kept(home: &Home) -> Option<Version> {
    Version::parse(&fs::read_to_string(chosen_file(home)).ok()?)
}

/// The version to build if nobody has set one and it is not the clone's: the one that `--update` has found now, else what an earlier one
/// has built.
pub(crate) fn chosen(home: &Home, found: Option<Version>) -> Option<String> {
    let chosen = found.or_else(|| kept(home));
    chosen.filter(|_| chosen > shipped(home)).map(|chosen| chosen.to_string())
}

/// The version that a session runs, if it is a plain release.
fn wanted(config: &Config, home: &Home) -> Option<Version> {
    config.setting(SETTING).map_or_else(|| shipped(home), Version::parse)
}

fn cache_file(home: &Home) -> PathBuf {
    home.join("cache/newest-pi.json")
}

fn cached(home: &Home) -> Option<Found> {
    serde_json::from_slice(&fs::read(cache_file(home)).ok()?).ok()
}

/// Says that there is a newer pi, if the last look found one.
pub(crate) fn notice(config: &Config, home: &Home, terminal: &Terminal) {
    if let (Some(found), Some(wanted)) = (cached(home), wanted(config, home))
        && found.version > wanted
    {
        terminal.say(&format!("pi {} is out, this is {wanted}: pi-docker --update", found.version));
    }
}

/// While a session runs, looks for the newest pi if that has not been done for an hour. Everything of it ends with the project.
pub(crate) fn look_in_background(config: &Config, home: &Home, image: &str, project: &str, control: &Path) {
    let fresh = |found: Found| unix_now().saturating_sub(found.checked) < FRESH;
    if config.offline || !Terminal::is_interactive() || cached(home).is_some_and(fresh) {
        return;
    }
    let docker = Docker::new(config, &std::collections::BTreeMap::new());
    let words = look_words(config, image, Some(project));
    let (file, ready) = (cache_file(home), control.join("ready"));
    thread::spawn(move || {
        // Before pi is there, it would only slow it down.
        while !ready.exists() {
            if !ready.parent().is_some_and(Path::exists) {
                return;
            }
            thread::sleep(READY);
        }
        if let Ok(version) = look(&docker, &words) {
            let _ = remember(&file, version);
        }
    });
}

/// Looks for the newest pi now. None if a version is set that is built in any case.
pub(crate) fn newest(
    config: &Config,
    home: &Home,
    docker: &Docker,
    image: Option<&str>,
    terminal: &Terminal,
) -> Result<Option<Version>> {
    if let Some(pinned) = config.setting(SETTING).filter(|pinned| chosen(home, None).as_deref() != Some(pinned)) {
        terminal.warn(
            &format!("pi's version is set to {pinned}: that one is built"),
            "take pi-version out of config.toml, or unset PI_DOCKER_PI_VERSION",
        );
        return Ok(None);
    }
    terminal.say("looking for the newest pi …");
    let image = match image {
        Some(image) => image.to_owned(),
        None => base(home, docker, terminal)?,
    };
    let version = look(docker, &look_words(config, &image, None))?;
    remember(&cache_file(home), version)?;
    terminal.say(&format!("the newest pi is {version}"));
    Ok(Some(version))
}

/// Makes a version that has been built the one that is built from now on.
pub(crate) fn keep(home: &Home, version: Version) -> Result<()> {
    let file = chosen_file(home);
    let folder = file.parent().unwrap_or(home.dir());
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&file, format!("{version}\n")))
        .with_context(|| format!("cannot write '{}'", file.display()))
}

/// The image that the agent's is built on: it has npm. Pulled if it is not there, in the open: that can take minutes.
fn base(home: &Home, docker: &Docker, terminal: &Terminal) -> Result<String> {
    let text = fs::read_to_string(home.join("Dockerfile")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("FROM ") && line.ends_with(" AS agent"));
    let Some(image) = line.and_then(|line| line.split(' ').nth(1)) else {
        bail!("cannot look for the newest pi: no image to look with");
    };
    if docker.image_labels(image)?.is_none() {
        terminal.say(&format!("pulling {image}, to look with …"));
        let quiet = (!terminal.shows_progress()).then_some("--quiet");
        let words: Vec<OsString> = ["pull"].into_iter().chain(quiet).chain([image]).map(OsString::from).collect();
        let mut pull = docker.spawn(&words, Output::Narration)?;
        if !pull.wait().context("cannot wait for docker")?.success() {
            return Err(hinted(
                format!("cannot pull '{image}': docker says why above"),
                "see whether the engine reaches its registry; a session with the images that are there needs none",
            ));
        }
    }
    Ok(image.to_owned())
}

/// A container that has the network and nothing else.
fn look_words(config: &Config, image: &str, project: Option<&str>) -> Vec<String> {
    let mut words: Vec<String> =
        ["run", "--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--cpus", "0.5"]
            .map(str::to_owned)
            .into();
    words.extend(
        ["--memory", "512m", "--tmpfs", "/tmp", "--user", "65534:65534", "--env", "HOME=/tmp"].map(str::to_owned),
    );
    // Named where it is not set, it would take away the one that docker's own configuration has.
    for proxy in ["HTTPS_PROXY", "https_proxy"] {
        if config.docker_env.iter().any(|(name, _)| name == proxy) {
            words.extend(["--env".to_owned(), proxy.to_owned()]);
        }
    }
    if let Some(ca) = config.setting("PI_DOCKER_EXTRA_CA") {
        // A CSV record to docker: quoted, a path may hold anything.
        let mount = format!("type=bind,\"source={}\",target=/ca.pem,readonly", ca.replace('"', "\"\""));
        words.extend(["--mount", &mount, "--env", "NODE_EXTRA_CA_CERTS=/ca.pem"].map(str::to_owned));
    }
    if let Some(project) = project {
        words.extend(["--label".to_owned(), format!("com.docker.compose.project={project}")]);
    }
    words.extend(["--entrypoint", "npm", image, "view", "--no-update-notifier"].map(str::to_owned));
    words.extend(PATIENCE.map(str::to_owned));
    words.extend([PACKAGE, "version"].map(str::to_owned));
    words
}

fn look(docker: &Docker, words: &[String]) -> Result<Version> {
    let output = docker.ask(words, LOOK)?;
    let hint = "see whether the npm registry can be reached";
    let failed = |why: &str| hinted(format!("cannot find the newest pi: {why}"), hint);
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(failed(
            told.lines()
                .find(|line| line.contains("error") || line.contains("ERR"))
                .unwrap_or("npm does not say why")
                .trim(),
        ));
    }
    Version::parse(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| failed("npm's answer is not a version"))
}

fn remember(file: &Path, version: Version) -> Result<()> {
    let found = serde_json::to_vec(&Found { checked: unix_now(), version })?;
    let folder = file.parent().unwrap_or(file);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(file, found))
        .with_context(|| format!("cannot write '{}'", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_number_and_a_pre_release_is_none() {
        assert!(Version::parse("1.10.0") > Version::parse("1.9.9\n"));
        for text in ["1.2", "1.2.3-beta.1", "latest", "", "1.2.3.4", "1.2.x"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_shipped_files_name_a_version_and_an_image_with_npm() {
        let compose = include_str!("../../docker-compose.yml");
        assert!(compose.contains("${PI_DOCKER_PI_VERSION:-"));
        let dockerfile = include_str!("../../Dockerfile");
        assert!(dockerfile.lines().any(|line| line.starts_with("FROM node:") && line.ends_with(" AS agent")));
    }
}
