//! What happened, read back from the parts that know: GitHub's repository, the record of the internet, squid's log.

use anyhow::{Context, Result};

use crate::World;
use crate::internet::Request;

/// A pull request and what it would bring.
#[derive(Debug)]
pub struct Pull {
    pub number: u64,
    pub url: String,
    pub base: String,
    pub head: String,
    pub state: String,
    /// Short id and subject, oldest first.
    pub commits: Vec<String>,
    /// The files that it changes, sorted.
    pub files: Vec<String>,
}

/// The pull requests that were opened, in order, with what the bare repository has on their branches.
pub fn pulls(world: &World) -> Result<Vec<Pull>> {
    let lines = |text: String| text.lines().map(str::to_owned).collect();
    let pull = |value: &serde_json::Value| {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let (base, head) = (text("base"), text("head"));
        let commits = world.github_git(["log", "--reverse", "--format=%h %s", &format!("{base}..{head}")])?;
        let files = world.github_git(["diff", "--name-only", &format!("{base}...{head}")])?;
        Ok(Pull {
            number: value["number"].as_u64().context("a pull request without a number")?,
            url: text("url"),
            state: text("state"),
            commits: lines(commits),
            files: lines(files),
            base,
            head,
        })
    };
    world.internet.pulls()?.iter().map(pull).collect()
}

/// When the first and the last request that the model answered by `rule` arrived, in microseconds since the epoch.
pub fn span(requests: &[Request], rule: &str) -> Option<(u64, u64)> {
    let mut times = requests.iter().filter(|request| request.body["rule"] == rule).map(|request| request.ts);
    let first = times.next()?;
    Some((first, times.next_back().unwrap_or(first)))
}

/// How long two spans overlap, in microseconds; nothing if they do not.
pub fn overlap(one: (u64, u64), other: (u64, u64)) -> Option<u64> {
    one.1.min(other.1).checked_sub(one.0.max(other.0)).filter(|time| *time > 0)
}

/// What squid refused, as `host:port`, in order and each once.
pub fn refused(squid: &[String]) -> Vec<String> {
    let mut hosts = Vec::new();
    for line in squid.iter().filter(|line| line.contains("_DENIED")) {
        let host = line.rsplit(' ').next().unwrap_or_default().to_owned();
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}
