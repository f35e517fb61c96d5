//! `<home>/config.toml`: the user's settings in one file, for every repository and, in a section of its own, for one. Each key is a
//! variable too, and the variable wins. Values are checked here, wherever they come from. Pure: text in, values out.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use toml::{Table, Value};

use crate::nearest::nearest;

/// The settings by the names of their variables.
pub(crate) type Settings = BTreeMap<&'static str, String>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    /// Bytes, as in `4g`, and how many MiB it takes at least for a session to start.
    Size(u64),
    /// A number above zero, which may have a fraction.
    Amount,
    /// A whole number, and the least that works.
    Count(u64),
    Flag,
    /// Several values in one variable, with this between them.
    List(char),
}

struct Key {
    name: &'static str,
    variable: &'static str,
    kind: Kind,
    /// Whether it may differ from repository to repository.
    per_repository: bool,
}

const fn key(name: &'static str, variable: &'static str, kind: Kind, per_repository: bool) -> Key {
    Key { name, variable, kind, per_repository }
}

const KEYS: &[Key] = &[
    key("memory", "PI_DOCKER_MEMORY", Kind::Size(256), true),
    key("cpus", "PI_DOCKER_CPUS", Kind::Amount, true),
    key("pids", "PI_DOCKER_PIDS", Kind::Count(32), true),
    key("tmp-size", "PI_DOCKER_TMP_SIZE", Kind::Size(1), true),
    key("home-size", "PI_DOCKER_HOME_SIZE", Kind::Size(16), true),
    key("subagents", "PI_SUBAGENT_SLOTS", Kind::Count(1), true),
    key("allow", "PI_DOCKER_ALLOW", Kind::List(','), true),
    key("keep-auth", "PI_DOCKER_KEEP_AUTH", Kind::Flag, true),
    key("trust", "PI_DOCKER_TRUST", Kind::Flag, true),
    key("pi-version", "PI_DOCKER_PI_VERSION", Kind::Text, true),
    key("pi-integrity", "PI_DOCKER_PI_INTEGRITY", Kind::Text, true),
    key("packages", "PI_DOCKER_EXTRA_PACKAGES", Kind::List(' '), true),
    key("github-api-url", "GITHUB_API_URL", Kind::Text, true),
    key("grace", "PI_DOCKER_GRACE", Kind::Count(0), false),
    key("heartbeat", "PI_DOCKER_HEARTBEAT", Kind::Count(0), false),
    key("auth-timeout", "PI_DOCKER_AUTH_TIMEOUT", Kind::Count(1), false),
    key("image", "PI_DOCKER_IMAGE", Kind::Text, true),
    key("proxy-image", "PI_DOCKER_PROXY_IMAGE", Kind::Text, false),
    key("extra-ca", "PI_DOCKER_EXTRA_CA", Kind::Text, false),
    key("compose-files", "PI_DOCKER_COMPOSE_FILES", Kind::List(':'), false),
];

/// The section that holds one section for each repository, by its path.
const REPOSITORIES: &str = "repository";
/// Lists that grow from section to section, instead of one taking the other's place.
const GROWING: &str = "PI_DOCKER_ALLOW";

/// Every variable that has a key.
#[cfg(test)]
pub(crate) fn variables() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.variable)
}

/// Reads config.toml for the repository at `root`; `user_home` is what a leading `~` in a section's path means.
pub(crate) fn parse(text: &str, root: Option<&Path>, user_home: &Path) -> Result<Settings> {
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
        anyhow!("line {line}: {}", e.message())
    })?;
    let repositories = match table.remove(REPOSITORIES) {
        Some(Value::Table(repositories)) => repositories,
        Some(_) => bail!("'{REPOSITORIES}' is for sections, as in [{REPOSITORIES}.\"/path/of/the/repository\"]"),
        None => Table::new(),
    };
    let mut settings = Settings::new();
    section(&table, false, &mut settings)?;
    for (path, values) in &repositories {
        let Value::Table(values) = values else { bail!("'{REPOSITORIES}.{path}' is not a section") };
        let mut own = Settings::new();
        section(values, true, &mut own).map_err(|e| anyhow!("[{REPOSITORIES}.\"{path}\"]: {e}"))?;
        let path = path.strip_prefix("~/").map_or_else(|| path.into(), |rest| user_home.join(rest));
        if root == Some(path.as_path()) {
            add(&mut settings, own);
        }
    }
    Ok(settings)
}

/// Puts `more` over `settings`.
pub(crate) fn add(settings: &mut Settings, more: Settings) {
    for (variable, value) in more {
        match settings.get_mut(variable) {
            Some(known) if variable == GROWING => *known = format!("{known},{value}"),
            _ => {
                settings.insert(variable, value);
            }
        }
    }
}

/// Whether a value that came as a variable is one.
pub(crate) fn check(variable: &str, value: &str) -> Result<()> {
    match KEYS.iter().find(|key| key.variable == variable) {
        Some(key) => good(key.kind, value).map_err(|what| anyhow!("cannot use {variable}='{value}': expected {what}")),
        None => Ok(()),
    }
}

fn section(table: &Table, of_a_repository: bool, settings: &mut Settings) -> Result<()> {
    for (name, value) in table {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            // A section's name is no key of a section.
            let sections = Some(REPOSITORIES).filter(|_| !of_a_repository);
            match nearest(name, KEYS.iter().map(|key| key.name).chain(sections)) {
                Some(known) => bail!("unknown key '{name}'; did you mean '{known}'?"),
                None => bail!("unknown key '{name}'; README.md has them all"),
            }
        };
        if of_a_repository && !key.per_repository {
            bail!("'{name}' cannot differ from repository to repository: it belongs above the sections");
        }
        let text = as_text(key.kind, value);
        let text = text
            .map_err(str::to_owned)
            .and_then(|text| good(key.kind, &text).map(|()| text))
            .map_err(|what| anyhow!("'{name}': expected {what}"))?;
        settings.insert(key.variable, text);
    }
    Ok(())
}

fn as_text(kind: Kind, value: &Value) -> Result<String, &'static str> {
    match (kind, value) {
        (Kind::Flag, Value::Boolean(flag)) => Ok(u8::from(*flag).to_string()),
        (Kind::Flag, _) => Err("true or false"),
        (Kind::List(separator), Value::Array(values)) => {
            let words: Option<Vec<&str>> = values.iter().map(Value::as_str).collect();
            let words = words.filter(|words| !words.iter().any(|word| word.contains(separator) || word.is_empty()));
            words.map(|words| words.join(&separator.to_string())).ok_or("a list of texts")
        }
        (Kind::List(_), _) => Err("a list, as in [\"one\", \"two\"]"),
        (_, Value::String(text)) => Ok(text.clone()),
        (_, Value::Integer(number)) => Ok(number.to_string()),
        (_, Value::Float(number)) => Ok(number.to_string()),
        _ => Err("a text or a number"),
    }
}

fn good(kind: Kind, text: &str) -> Result<(), String> {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (fits, what) = match kind {
        Kind::Text => (!text.chars().any(char::is_control), "a text of one line".to_owned()),
        Kind::List(_) => (!text.chars().any(char::is_control), "texts of one line".to_owned()),
        Kind::Size(least) => {
            let bytes = bytes(text);
            (bytes.is_some_and(|bytes| bytes >= least << 20), format!("a size of at least {least}m, as in 512m or 4g"))
        }
        Kind::Amount => (text.parse::<f64>().is_ok_and(|n| n.is_finite() && n > 0.0), "a number above zero".to_owned()),
        Kind::Count(0) => (number(text).is_some(), "a whole number".to_owned()),
        Kind::Count(least) => (number(text).is_some_and(|n| n >= least), format!("a whole number of at least {least}")),
        Kind::Flag => (text == "0" || text == "1", "0 or 1".to_owned()),
    };
    if fits { Ok(()) } else { Err(what) }
}

/// A size as docker and the kernel both read it: a number and a letter, or bytes.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Settings> {
        parse(text, Some(Path::new("/r/one")), Path::new("/home/me"))
    }

    #[test]
    fn a_repositorys_section_goes_over_the_rest_and_adds_to_its_names() {
        let settings = parsed(
            "memory = \"8g\"\ncpus = 1.5\nallow = [\"a.com\"]\nkeep-auth = false\n\
             [repository.\"/r/one\"]\nmemory = \"2g\"\nallow = [\"b.com\"]\n[repository.\"/r/two\"]\npids = 77\n",
        )
        .unwrap();
        let expected = [
            ("PI_DOCKER_ALLOW", "a.com,b.com"),
            ("PI_DOCKER_CPUS", "1.5"),
            ("PI_DOCKER_KEEP_AUTH", "0"),
            ("PI_DOCKER_MEMORY", "2g"),
        ];
        assert_eq!(settings, expected.map(|(k, v)| (k, v.to_owned())).into());
    }

    #[test]
    fn a_tilde_is_the_users_home() {
        let text = "[repository.\"~/x\"]\npids = 77\n";
        assert_eq!(parse(text, Some(Path::new("/home/me/x")), Path::new("/home/me")).unwrap()["PI_DOCKER_PIDS"], "77");
    }

    #[test]
    fn a_wrong_key_names_the_nearest_right_one() {
        for (text, message) in [
            ("memroy = \"1g\"", "unknown key 'memroy'; did you mean 'memory'?"),
            ("[repository.\"/r/two\"]\ncpu = 1", "[repository.\"/r/two\"]: unknown key 'cpu'; did you mean 'cpus'?"),
            (
                "[repository.\"/r/one\"]\ngrace = 1",
                "[repository.\"/r/one\"]: 'grace' cannot differ from repository to repository",
            ),
            ("memory = \"lots\"", "'memory': expected a size"),
            ("pids = -1", "'pids': expected a whole number"),
            ("keep-auth = \"yes\"", "'keep-auth': expected true or false"),
            ("allow = \"a.com\"", "'allow': expected a list"),
            ("\n\nmemory = ", "line 3: "),
            ("repository = 1", "'repository' is for sections"),
            ("[repo.\"/r/one\"]\npids = 99", "unknown key 'repo'; did you mean 'repository'?"),
            ("colour = 1", "unknown key 'colour'; README.md"),
            ("memory = 6", "'memory': expected a size of at least 256m"),
            ("memory = \"10m\"", "'memory': expected a size of at least 256m"),
            ("memory = \"4gb\"", "'memory': expected a size"),
            ("tmp-size = \"1\"", "'tmp-size': expected a size of at least 1m"),
            ("pids = 1", "'pids': expected a whole number of at least 32"),
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn a_variable_is_held_to_the_same_rules() {
        assert!(check("PI_DOCKER_MEMORY", "512m").is_ok() && check("PI_DOCKER_CPUS", "0.5").is_ok());
        for (variable, value) in [
            ("PI_DOCKER_MEMORY", "4 GB"),
            ("PI_DOCKER_CPUS", "0"),
            ("PI_DOCKER_KEEP_AUTH", "yes"),
            ("PI_DOCKER_PIDS", ""),
        ] {
            assert!(check(variable, value).is_err(), "{variable}={value}");
        }
    }
}
