//! What the program says when it stops: one line, and a `hint:` line when the person can act.

use std::fmt;

/// An error with advice. The message follows the house's wording; the hint is a whole command or sentence.
#[derive(Debug)]
pub(crate) struct Hinted {
    message: String,
    pub(crate) hint: String,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

/// An error that says `message`, and `hint` on a line of its own.
pub(crate) fn hinted(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Hinted { message: message.into(), hint: hint.into() }.into()
}

/// Ends the program with this status and without a message: what happened has been said already.
#[derive(Debug)]
pub(crate) struct Silent(pub(crate) u8);

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ended with status {}", self.0)
    }
}

impl std::error::Error for Silent {}
