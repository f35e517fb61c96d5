#![expect(clippy::disallowed_methods, reason = "this is the one reader of the environment")]
//! What the environment says, read once. Everything after it takes plain values.
//! The variables that docker compose fills into docker-compose.yml are listed here, and a test holds them against that file.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::credentials::PROVIDERS;
use crate::error::hinted;
use crate::home::Home;
use crate::secret::Secret;
use crate::settings::{self, Settings};
use crate::update::{self, Version};

/// The user's settings in docker-compose.yml: they go to docker compose as they are.
pub(crate) const SETTINGS: &[&str] = &[
    "PI_DOCKER_IMAGE",
    "PI_DOCKER_PROXY_IMAGE",
    "PI_DOCKER_PI_VERSION",
    "PI_DOCKER_PI_INTEGRITY",
    "PI_DOCKER_EXTRA_PACKAGES",
    "PI_DOCKER_EXTRA_CA",
    "PI_DOCKER_TRUST",
    "PI_DOCKER_KEEP_AUTH",
    "PI_DOCKER_GRACE",
    "PI_DOCKER_HEARTBEAT",
    "PI_DOCKER_AUTH_TIMEOUT",
    "PI_DOCKER_TMP_SIZE",
    "PI_DOCKER_HOME_SIZE",
    "PI_DOCKER_MEMORY",
    "PI_DOCKER_CPUS",
    "PI_DOCKER_PIDS",
    "PI_SUBAGENT_SLOTS",
    "GITHUB_API_URL",
];

/// The user's settings that are the launcher's own business.
const OWN_SETTINGS: &[&str] = &["PI_DOCKER_ALLOW", "PI_DOCKER_COMPOSE_FILES"];

/// What the terminal is: along it goes, too.
const LOCALE: &[&str] = &["TERM", "COLORTERM", "LANG", "TZ"];

/// The settings that change what the agent's image is.
const BUILT_FROM: &[&str] = &["PI_DOCKER_PI_VERSION", "PI_DOCKER_PI_INTEGRITY", "PI_DOCKER_EXTRA_PACKAGES"];

/// What docker itself needs, besides everything that starts with one of DOCKER_PREFIXES.
const DOCKER_NEEDS: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "TERM",
    "NO_COLOR",
    "SSH_AUTH_SOCK",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "GNUPGHOME",
    "PASSWORD_STORE_DIR",
];
const DOCKER_PREFIXES: &[&str] = &["DOCKER_", "XDG_", "BUILDX_", "BUILDKIT_"];

/// What git needs to find the user's own configuration, and nothing that points it at another repository.
const GIT_NEEDS: &[&str] = &[
    "PATH",
    "HOME",
    "XDG_CONFIG_HOME",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM",
    "GIT_EXEC_PATH",
];

#[derive(Clone)]
pub(crate) struct Config {
    /// The user's home folder.
    pub(crate) user_home: PathBuf,
    /// Where the user's programs keep their configuration.
    pub(crate) user_config: PathBuf,
    /// pi's own folder on the host.
    pub(crate) agent_dir: PathBuf,
    /// Where the user is.
    pub(crate) cwd: PathBuf,
    /// PI_DOCKER_HOME, if set.
    pub(crate) home: Option<PathBuf>,
    pub(crate) github_token: Option<Secret>,
    /// Keys of model providers, by pi's name of the provider.
    pub(crate) provider_keys: BTreeMap<&'static str, Secret>,
    /// The user's settings and LOCALE, as far as they are set.
    settings: Settings,
    /// The whole environment that docker is started with, but for `settings`.
    pub(crate) docker_env: Vec<(OsString, OsString)>,
    /// Where docker was told to find its engine, if anywhere.
    pub(crate) docker_host: Option<String>,
    pub(crate) git_env: Vec<(OsString, OsString)>,
    /// An identity for commits that the environment gives: name, email.
    pub(crate) git_identity: (Option<String>, Option<String>),
    pub(crate) no_colour: bool,
    /// Whether nothing is to be looked up that pi itself would not look up.
    pub(crate) offline: bool,
}

impl Config {
    /// Reads the environment and the working directory.
    pub(crate) fn from_env() -> Result<Config> {
        let user_home = path("HOME").ok_or_else(|| hinted("cannot find your home folder", "set HOME"))?;
        let mut settings = Settings::new();
        for name in SETTINGS.iter().chain(OWN_SETTINGS).chain(LOCALE) {
            if let Some(value) = text(name)? {
                settings::check(name, &value)?;
                settings.insert(*name, value);
            }
        }
        if !settings.contains_key("TZ")
            && let Some(zone) = zone_of_this_machine()
        {
            settings.insert("TZ", zone);
        }
        let mut provider_keys = BTreeMap::new();
        for (variable, providers) in PROVIDERS {
            if let Some(key) = text(variable)?.as_deref().and_then(Secret::new) {
                for provider in *providers {
                    provider_keys.entry(*provider).or_insert_with(|| key.clone());
                }
            }
        }
        Ok(Config {
            agent_dir: path("PI_CODING_AGENT_DIR").unwrap_or_else(|| user_home.join(".pi/agent")),
            user_config: path("XDG_CONFIG_HOME").unwrap_or_else(|| user_home.join(".config")),
            cwd: env::current_dir().context("cannot find the folder you are in")?,
            home: path("PI_DOCKER_HOME"),
            github_token: text("PI_GH_TOKEN")?.as_deref().and_then(Secret::new),
            provider_keys,
            settings,
            docker_env: env::vars_os().filter(|(name, _)| is_for_docker(&name.to_string_lossy())).collect(),
            docker_host: text("DOCKER_HOST")?,
            git_env: GIT_NEEDS.iter().filter_map(|name| Some((OsString::from(name), env::var_os(name)?))).collect(),
            git_identity: (text("GIT_AUTHOR_NAME")?, text("GIT_AUTHOR_EMAIL")?),
            offline: ["PI_OFFLINE", "PI_SKIP_VERSION_CHECK"]
                .iter()
                .any(|name| env::var_os(name).is_some_and(|v| !v.is_empty())),
            no_colour: env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()),
            user_home,
        })
    }

    /// With what config.toml says, for the repository of this root and id if there is one; the environment wins.
    pub(crate) fn with_file(self, home: &Home, repository: Option<(&Path, &str)>) -> Result<Config> {
        self.with_version(home, repository, None)
    }

    /// As [`Config::with_file`], with the newest pi if it was looked for.
    pub(crate) fn with_version(
        mut self,
        home: &Home,
        repository: Option<(&Path, &str)>,
        newest: Option<Version>,
    ) -> Result<Config> {
        let file = home.join("config.toml");
        let wrong = |e: anyhow::Error| anyhow!("cannot use '{}': {e}", file.display());
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(wrong(e.into())),
        };
        let read = |root| settings::parse(&text, root, &self.user_home).map_err(wrong);
        let (general, mut settings) = (read(None)?, read(repository.map(|(root, _)| root))?);
        // An image of its own for a repository that is built differently.
        if let Some((_, id)) = repository
            && BUILT_FROM.iter().any(|name| general.get(name) != settings.get(name))
        {
            settings.entry("PI_DOCKER_IMAGE").or_insert_with(|| format!("pi-docker-agent:{id}"));
        }
        settings::add(&mut settings, std::mem::take(&mut self.settings));
        if let Some(version) = update::chosen(home, newest) {
            settings.entry("PI_DOCKER_PI_VERSION").or_insert(version);
        }
        if let Some(ca) = settings.get_mut("PI_DOCKER_EXTRA_CA") {
            let absolute = std::path::absolute(&*ca).context("cannot use PI_DOCKER_EXTRA_CA")?;
            utf8(&absolute)?.clone_into(ca);
        }
        self.settings = settings;
        Ok(self)
    }

    /// A setting, if the user has made it.
    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    /// Overlays of the user's own for docker compose, in order.
    pub(crate) fn compose_files(&self) -> Vec<PathBuf> {
        let files = self.setting("PI_DOCKER_COMPOSE_FILES").unwrap_or_default();
        files.split(':').filter(|file| !file.is_empty()).map(PathBuf::from).collect()
    }

    /// What docker compose fills into its files.
    pub(crate) fn for_compose(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let known = SETTINGS.iter().chain(LOCALE);
        known.filter_map(|name| Some((*name, self.setting(name)?)))
    }
}

fn is_for_docker(name: &str) -> bool {
    DOCKER_NEEDS.contains(&name) || DOCKER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The path as text: what goes to docker compose goes through JSON.
pub(crate) fn utf8(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| anyhow!("cannot use the path '{}': it is not valid UTF-8", path.display()))
}

fn path(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn text(name: &str) -> Result<Option<String>> {
    match env::var(name) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => bail!("cannot use {name}: its value is not valid UTF-8"),
    }
}

/// The machine's time zone by name, where the machine keeps it as a link.
fn zone_of_this_machine() -> Option<String> {
    let target = std::fs::read_link("/etc/localtime").ok()?;
    let (_, zone) = target.to_str()?.split_once("zoneinfo/")?;
    Some(zone.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What the launcher itself fills in: by the build's environment, or by the session's overlay.
    const OURS: &[&str] = &[
        "PI_DOCKER_SOURCE_HASH",
        "PI_DOCKER_PROXY_SOURCE_HASH",
        "PI_DOCKER_MODE",
        "PI_DOCKER_SESSION",
        "PI_DOCKER_UID",
        "PI_DOCKER_GID",
        "PI_DOCKER_WORKDIR",
        "PI_DOCKER_CANARY",
        "PI_DOCKER_EXPORT",
    ];

    #[test]
    fn every_variable_of_the_compose_file_is_known_here_and_the_other_way_round() {
        let compose = include_str!("../../docker-compose.yml");
        let named: BTreeSet<&str> =
            compose.split("${").skip(1).filter_map(|rest| rest.split([':', '}']).next()).collect();
        let known: BTreeSet<&str> = SETTINGS.iter().chain(LOCALE).chain(OURS).copied().collect();
        assert_eq!(named, known);
    }

    #[test]
    fn every_key_of_the_file_is_a_variable_that_is_read() {
        let read: BTreeSet<&str> = SETTINGS.iter().chain(OWN_SETTINGS).copied().collect();
        assert_eq!(settings::variables().collect::<BTreeSet<_>>(), read);
    }

    #[test]
    fn docker_inherits_no_compose_variable_and_no_secret() {
        for name in
            ["COMPOSE_FILE", "COMPOSE_PROJECT_NAME", "PI_GH_TOKEN", "ANTHROPIC_API_KEY", "GH_TOKEN", "LD_PRELOAD"]
        {
            assert!(!is_for_docker(name), "{name}");
        }
        assert!(is_for_docker("DOCKER_HOST") && is_for_docker("PATH"));
    }
}
