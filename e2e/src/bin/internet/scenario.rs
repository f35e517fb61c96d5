//! The scenario file: what the scripted model says, which secrets are good, what the token may do, and what goes wrong when.
//! It is read anew for every request. See `scenarios/README.md` for how to write one.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    #[serde(default)]
    pub(crate) anthropic: Anthropic,
    #[serde(default)]
    pub(crate) github: GitHub,
    #[serde(default)]
    pub(crate) oauth: OAuth,
    #[serde(default)]
    pub(crate) ollama: Ollama,
    /// The packages of the npm registry: by name, the archive of each version. The last version is the newest.
    #[serde(default)]
    pub(crate) npm: HashMap<String, BTreeMap<String, PathBuf>>,
    #[serde(default)]
    pub(crate) rules: Vec<Rule>,
}

/// The keys that are good: an API key, or the access token of a login.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Anthropic {
    pub(crate) keys: Vec<String>,
}

/// What a completed login is given: Anthropic's two tokens, GitHub's, and the one that Copilot makes of it.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OAuth {
    pub(crate) anthropic: String,
    pub(crate) refresh: String,
    pub(crate) github: String,
    pub(crate) copilot: String,
}

/// The models that the Ollama server has.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Ollama {
    pub(crate) models: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GitHub {
    /// Empty: no token is good.
    pub(crate) token: String,
    pub(crate) login: String,
    /// Whether anyone may read.
    pub(crate) public: bool,
    pub(crate) contents: Access,
    pub(crate) pulls: Access,
    pub(crate) faults: Vec<Fault>,
}

impl Default for GitHub {
    fn default() -> Self {
        Self {
            token: String::new(),
            login: "octo".into(),
            public: false,
            contents: Access::Write,
            pulls: Access::Write,
            faults: Vec::new(),
        }
    }
}

#[derive(Deserialize, Clone, Copy, PartialEq, PartialOrd)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Access {
    None,
    Read,
    Write,
}

/// The `nth` to the `nth + times - 1`th request that matches gets `reply` instead of an answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    pub(crate) host: String,
    #[serde(default)]
    pub(crate) method: Option<String>,
    /// A part of the path and query.
    #[serde(default)]
    pub(crate) path: String,
    #[serde(default = "one")]
    pub(crate) nth: u64,
    #[serde(default = "one")]
    pub(crate) times: u64,
    pub(crate) reply: Reply,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
pub(crate) enum Reply {
    #[serde(rename = "401")]
    BadCredentials,
    #[serde(rename = "403 permission")]
    Forbidden,
    #[serde(rename = "403 rate")]
    RateLimited,
    #[serde(rename = "403 secondary")]
    SecondaryLimited,
    #[serde(rename = "429")]
    TooMany,
    #[serde(rename = "404")]
    NotFound,
    #[serde(rename = "422")]
    Invalid,
    #[serde(rename = "500")]
    Broken,
    #[serde(rename = "502")]
    BadGateway,
    /// The connection ends without an answer.
    #[serde(rename = "cut")]
    Cut,
    /// What was asked is done, but the answer never arrives.
    #[serde(rename = "lost")]
    Lost,
    /// Neither an answer nor an end.
    #[serde(rename = "stall")]
    Stall,
}

/// What the model says when the last text of the user matches: its steps in turn, one for each request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) when: When,
    pub(crate) steps: Vec<Step>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct When {
    pub(crate) starts: String,
    pub(crate) contains: String,
}

#[derive(Deserialize, Default, Clone)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Step {
    pub(crate) text: String,
    pub(crate) tools: Vec<Call>,
    pub(crate) delay_ms: u64,
    /// Nothing is said until the test makes the file `gates/NAME` in the record's folder.
    pub(crate) gate: Option<String>,
    /// Nothing is said until as many requests as `count` wait at the same barrier.
    pub(crate) barrier: Option<Barrier>,
    pub(crate) usage: Option<Usage>,
    pub(crate) error: Option<Failure>,
    /// The stream ends in the middle.
    pub(crate) cut: bool,
    pub(crate) stop_reason: Option<String>,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub(crate) struct Call {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) input: Map<String, Value>,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub(crate) struct Barrier {
    pub(crate) name: String,
    pub(crate) count: usize,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(deny_unknown_fields)]
pub(crate) struct Usage {
    pub(crate) input: u64,
    pub(crate) output: u64,
}

/// The first `times` requests at this step fail with `status`.
#[derive(Deserialize, Clone, Copy)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failure {
    pub(crate) status: u16,
    #[serde(default = "always")]
    pub(crate) times: u64,
}

fn one() -> u64 {
    1
}

fn always() -> u64 {
    u64::MAX
}

impl Scenario {
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("cannot read '{}'", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("cannot understand '{}'", path.display()))
    }

    pub(crate) fn secrets(&self) -> Vec<String> {
        let OAuth { anthropic, refresh, github, copilot } = &self.oauth;
        let known = [&self.github.token, anthropic, refresh, github, copilot];
        self.anthropic.keys.iter().chain(known).cloned().collect()
    }

    /// The fault that this request meets, if any.
    pub(crate) fn fault(&self, counter: &Counter, host: &str, method: &str, path: &str) -> Option<Reply> {
        let mut met = None;
        for (index, fault) in self.github.faults.iter().enumerate() {
            let wanted = fault.method.as_deref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(method));
            if fault.host == host && wanted && path.contains(&fault.path) {
                let count = counter.next(&format!("fault {index} {host} {} {}", fault.path, fault.nth));
                if count >= fault.nth && count - fault.nth < fault.times {
                    met = met.or(Some(fault.reply));
                }
            }
        }
        met
    }
}

/// Counts by name, from one.
#[derive(Default)]
pub(crate) struct Counter(Mutex<HashMap<String, u64>>);

impl Counter {
    pub(crate) fn next(&self, name: &str) -> u64 {
        let mut counts = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = counts.entry(name.to_owned()).or_insert(0);
        *count += 1;
        *count
    }
}
