//! The one error type. Every failure ends as the `error` of a result that a program reads, so each carries a stable code
//! besides its sentence; the code decides the exit status and whether trying again can help.

use std::fmt;

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// What went wrong, by the name that consumers match on. The groups are those of the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    // 2: the request itself
    Usage,
    // 4: the agent
    ModelError,
    OutputLimit,
    Crashed,
    // 5: pushed, but no pull request
    PrFailed,
    PrForbidden,
    RateLimited,
    // 6: committed, but not pushed
    CommitFailed,
    PushFailed,
    PushRejected,
    SecretInCommit,
    // 7: nothing was spent
    Nested,
    NoRepository,
    RepositoryUnsupported,
    NoCommits,
    Detached,
    BaseNotFound,
    BaseNotOnRemote,
    NoRemote,
    RemoteUnsupported,
    NoToken,
    TokenRejected,
    PushForbidden,
    RepositoryNotFound,
    Network,
    GithubDown,
    RemoteAhead,
    Setup,
    PiNotFound,
    // 8, 9, 10, 11
    Timeout,
    Idle,
    ToolTimeout,
    Budget,
    NoSlot,
    Exists,
    Busy,
    NoTask,
    Kept,
    // 70
    Internal,
    // 130
    Cancelled,
}

impl Code {
    /// The name in the `error.code` field.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Code::Usage => "usage",
            Code::ModelError => "model_error",
            Code::OutputLimit => "output_limit",
            Code::Crashed => "crashed",
            Code::PrFailed => "pr_failed",
            Code::PrForbidden => "pr_forbidden",
            Code::RateLimited => "rate_limited",
            Code::CommitFailed => "commit_failed",
            Code::PushFailed => "push_failed",
            Code::PushRejected => "push_rejected",
            Code::Nested => "nested",
            Code::NoRepository => "no_repository",
            Code::RepositoryUnsupported => "repository_unsupported",
            Code::NoCommits => "no_commits",
            Code::Detached => "detached_head",
            Code::BaseNotFound => "base_not_found",
            Code::BaseNotOnRemote => "base_not_on_remote",
            Code::NoRemote => "no_remote",
            Code::RemoteUnsupported => "remote_unsupported",
            Code::NoToken => "no_token",
            Code::TokenRejected => "token_rejected",
            Code::PushForbidden => "push_forbidden",
            Code::RepositoryNotFound => "repository_not_found",
            Code::Network => "network",
            Code::GithubDown => "github_down",
            Code::RemoteAhead => "remote_ahead",
            Code::SecretInCommit => "secret_in_commit",
            Code::Setup => "setup_failed",
            Code::PiNotFound => "pi_not_found",
            Code::Timeout => "timeout",
            Code::Idle => "idle",
            Code::ToolTimeout => "tool_timeout",
            Code::Budget => "budget",
            Code::NoSlot => "no_slot",
            Code::Exists => "exists",
            Code::Busy => "busy",
            Code::NoTask => "no_task",
            Code::Kept => "kept",
            Code::Internal => "internal",
            Code::Cancelled => "cancelled",
        }
    }

    /// The program's exit status when this is what ended it.
    pub(crate) fn exit(self) -> u8 {
        match self {
            Code::Usage => 2,
            Code::ModelError | Code::OutputLimit | Code::Crashed => 4,
            Code::PrFailed | Code::PrForbidden | Code::RateLimited => 5,
            Code::CommitFailed | Code::PushFailed | Code::PushRejected | Code::SecretInCommit => 6,
            Code::Timeout | Code::Idle | Code::ToolTimeout => 8,
            Code::Budget => 9,
            Code::NoSlot => 10,
            Code::Exists | Code::Busy => 11,
            Code::Internal => 70,
            Code::Cancelled => 130,
            Code::NoTask | Code::Kept => 1,
            _ => 7,
        }
    }

    /// Whether the same request can succeed later without anyone changing anything.
    pub(crate) fn retryable(self) -> bool {
        matches!(
            self,
            Code::ModelError
                | Code::RateLimited
                | Code::PushFailed
                | Code::PrFailed
                | Code::Network
                | Code::GithubDown
                | Code::NoSlot
                | Code::Busy
                | Code::Crashed
        )
    }
}

/// One failure: `message` is one line, lower case, without a final period; `hint` says what the person can do.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: one_line(&message.into()), hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure as another phase sees it: a network error while pushing is a failed push.
    pub(crate) fn code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Turns any error into a [`Failure`], saying what could not be done.
pub(crate) trait OrFail<T> {
    fn or_fail(self, code: Code, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> OrFail<T> for std::result::Result<T, E> {
    fn or_fail(self, code: Code, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Failure::new(code, format!("{}: {}", what(), cause(&error.to_string()))))
    }
}

/// The system's words, without what only a programmer reads.
pub(crate) fn cause(text: &str) -> String {
    let text = text.trim().trim_end_matches('.');
    let text = text.split_once(" (os error ").map_or(text, |(said, _)| said);
    let text = text.split_once("; class=").map_or(text, |(said, _)| said);
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        // "HEAD is …" keeps its capitals.
        (Some(first), Some(second)) if first.is_uppercase() && second.is_lowercase() => {
            first.to_lowercase().chain(text.chars().skip(1)).collect()
        }
        _ => text.to_owned(),
    }
}

fn one_line(text: &str) -> String {
    text.split('\n').map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_with_its_cause_last() {
        let error =
            std::fs::read("/nonexistent").or_fail(Code::Internal, || "cannot read '/nonexistent'".into()).unwrap_err();
        assert_eq!(error.to_string(), "cannot read '/nonexistent': no such file or directory");
        let error = Failure::new(Code::Usage, "a\n\n b").hint("c");
        assert_eq!(error.to_string(), "a; b\nhint: c");
    }

    #[test]
    fn capitals_that_mean_something_stay() {
        assert_eq!(cause("HEAD is detached; class=Reference (4)"), "HEAD is detached");
        assert_eq!(cause("Permission denied (os error 13)"), "permission denied");
    }
}
