//! Why pi was not started: one line, an exit code of its own kind, and a hint where the user can act.

/// What kind of set-up failed; the codes are part of the documented behaviour.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(crate) enum Kind {
    Configuration,
    NetworkOpen,
    Preparation,
    System,
    NotExecutable,
    NotFound,
}

#[cfg_attr(test, derive(Debug))]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) line: String,
    pub(crate) hint: Option<String>,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Kind {
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Configuration => 120,
            Self::NetworkOpen => 121,
            Self::Preparation => 122,
            Self::System => 125,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
        }
    }

    /// The word in result.json.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::NetworkOpen => "network open",
            Self::Preparation => "preparation",
            Self::System => "system",
            Self::NotExecutable => "not executable",
            Self::NotFound => "not found",
        }
    }
}

impl Failure {
    pub(crate) fn new(kind: Kind, line: impl Into<String>) -> Self {
        Self { kind, line: line.into(), hint: None }
    }

    /// `cannot <what>: <cause>`, where the defaults or the credentials could not be prepared.
    pub(crate) fn preparing(what: &str, cause: &str) -> Self {
        Self::new(Kind::Preparation, format!("cannot {what}: {cause}"))
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// An `io::Error` in the words of the house: `permission denied`, not `Permission denied (os error 13)`.
pub(crate) fn cause(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| [first.to_ascii_lowercase()].into_iter().chain(chars).collect())
}
