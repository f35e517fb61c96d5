//! The one reader of the environment. An empty variable counts as one that is not set.
#![expect(clippy::disallowed_methods, reason = "the environment is read here and nowhere else")]

use std::path::PathBuf;

use crate::failure::{Code, OrFail, Result};

/// What the environment says, read once.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The folder we were started in.
    pub(crate) cwd: PathBuf,
    /// How many subagents there are above us.
    pub(crate) depth: u32,
    /// Subagents that may run at once.
    pub(crate) slots: usize,
    /// Where GitHub's API is, without a slash at the end.
    pub(crate) api: String,
    pub(crate) proxy: Proxy,
    /// Where git looks for the user's own attributes if no setting says where they are. None if git has been told to take its
    /// settings from elsewhere: then only git itself knows them.
    pub(crate) attributes: Option<PathBuf>,
}

/// The proxy of `https:` addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proxy {
    pub(crate) url: Option<String>,
    pub(crate) exceptions: Option<String>,
}

/// Variables that docker-compose.yml sets.
#[cfg(test)]
const CONTRACT: &[&str] = &["PI_SUBAGENT_SLOTS", "GITHUB_API_URL", "HTTPS_PROXY", "https_proxy"];

impl Config {
    pub(crate) fn from_env() -> Result<Self> {
        let number = |name: &str, default: u32| match set(&[name]) {
            None => Ok(default),
            Some(text) => text
                .trim()
                .parse::<u32>()
                .or_fail(Code::Usage, || format!("cannot read '{text}' of {name} as a number")),
        };
        Ok(Config {
            cwd: std::env::current_dir().or_fail(Code::Usage, || "cannot find the working folder".into())?,
            depth: number("PI_SUBAGENT_DEPTH", 0)?,
            slots: number("PI_SUBAGENT_SLOTS", 3)?.clamp(1, 256) as usize,
            api: set(&["GITHUB_API_URL"]).unwrap_or("https://api.github.com".into()).trim_end_matches('/').to_owned(),
            attributes: set(&["XDG_CONFIG_HOME"])
                .or_else(|| set(&["HOME"]).map(|home| format!("{home}/.config")))
                .filter(|_| set(&["GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"]).is_none())
                .map(|dir| PathBuf::from(dir).join("git/attributes")),
            proxy: Proxy {
                url: set(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
                exceptions: set(&["NO_PROXY", "no_proxy"]),
            },
        })
    }
}

/// The first of the variables that is set to something.
fn set(names: &[&str]) -> Option<String> {
    names.iter().filter_map(|name| std::env::var(name).ok()).find(|value| !value.trim().is_empty())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_variable_of_the_contract_is_in_the_compose_file() {
        let compose = include_str!("../../docker-compose.yml");
        for name in super::CONTRACT {
            assert!(compose.contains(&format!("\n      {name}: ")), "{name}");
        }
    }
}
