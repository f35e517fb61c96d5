//! What is asked for: the task's name and its specification. Pure values; reading them from the command line is `cli.rs`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure, Result};

/// A task's name: also a folder, a branch, and a part of a session id, so nothing in it needs quoting anywhere.
/// `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct TaskName(String);

impl TaskName {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let edge = |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let bytes = text.as_bytes();
        if bytes.len() <= 63 && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|c| inner(*c)) {
            return Ok(TaskName(text.to_owned()));
        }
        let shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
        Err(Failure::new(Code::Usage, format!("cannot use '{shown}' as a task name"))
            .hint("use 1 to 63 lower-case letters, digits and inner dashes, such as 'fix-login'"))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The branch the task works on, short form.
    pub(crate) fn branch(&self) -> String {
        format!("subagent/{}", self.0)
    }

    /// The session id of its pi.
    pub(crate) fn session(&self) -> String {
        format!("sa-{}", self.0)
    }

    /// This name with a number, for `--if-exists suffix`.
    pub(crate) fn with_suffix(&self, number: u32) -> Self {
        let tail = format!("-{number}");
        let head = self.0[..self.0.len().min(63 - tail.len())].trim_end_matches('-');
        TaskName(format!("{head}{tail}"))
    }
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TaskName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        TaskName::parse(&text).map_err(|failure| serde::de::Error::custom(failure.message))
    }
}

/// Whether a pull request is opened. `auto`: a draft if the work is partial, open otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PrMode {
    #[default]
    Auto,
    Open,
    Draft,
    None,
}

/// What to do if the task's name is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum IfExists {
    #[default]
    Fail,
    Resume,
    Suffix,
}

/// Everything about a task that can be said in the JSON of `--spec` or by a flag of the same name. Unknown keys are an error.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Spec {
    pub(crate) task: String,
    pub(crate) instructions: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) base: Option<String>,
    pub(crate) if_exists: IfExists,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) thinking: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tools: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exclude_tools: Option<String>,
    /// Whether pi may load what the repository's own `.pi` folder holds.
    pub(crate) trusted: bool,
    /// Seconds; 0 is no limit.
    pub(crate) timeout: Option<u64>,
    pub(crate) idle_timeout: Option<u64>,
    pub(crate) tool_timeout: Option<u64>,
    /// US dollars.
    pub(crate) max_cost: Option<f64>,
    pub(crate) max_tokens: Option<u64>,
    pub(crate) max_turns: Option<u64>,
    pub(crate) pr: PrMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) title: Option<String>,
    pub(crate) push_base: bool,
    pub(crate) allow_empty: bool,
    pub(crate) no_wait_slot: bool,
}

impl Spec {
    /// Takes over what `changes` says about how a run is made; what it is about stays.
    pub(crate) fn take(&mut self, changes: &Spec) {
        fn set<T: Clone>(field: &mut Option<T>, change: &Option<T>) {
            if change.is_some() {
                field.clone_from(change);
            }
        }
        set(&mut self.model, &changes.model);
        set(&mut self.thinking, &changes.thinking);
        set(&mut self.tools, &changes.tools);
        set(&mut self.exclude_tools, &changes.exclude_tools);
        set(&mut self.timeout, &changes.timeout);
        set(&mut self.idle_timeout, &changes.idle_timeout);
        set(&mut self.tool_timeout, &changes.tool_timeout);
        set(&mut self.max_cost, &changes.max_cost);
        set(&mut self.max_tokens, &changes.max_tokens);
        set(&mut self.max_turns, &changes.max_turns);
        set(&mut self.title, &changes.title);
        if changes.pr != PrMode::default() {
            self.pr = changes.pr;
        }
        self.trusted |= changes.trusted;
        self.no_wait_slot = changes.no_wait_slot;
        self.allow_empty |= changes.allow_empty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_need_quoting_are_refused() {
        for good in ["a", "7", "fix-login", "a--b", &"x".repeat(63)] {
            assert!(TaskName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a b", "a\n", "a.lock", "é", "a;b", "$x", &"x".repeat(64)] {
            assert!(TaskName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_suffix_keeps_the_name_valid() {
        let long = TaskName::parse(&"x".repeat(63)).unwrap().with_suffix(12);
        assert!(TaskName::parse(long.as_str()).is_ok());
        assert_eq!(TaskName::parse("ab").unwrap().with_suffix(2).as_str(), "ab-2");
    }

    #[test]
    fn an_unknown_key_of_a_specification_is_an_error() {
        let error = serde_json::from_str::<Spec>(r#"{"task":"a","instruction":"b"}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `instruction`"), "{error}");
    }
}
