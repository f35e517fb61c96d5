//! The one place that prints and asks. Answers go to stdout, narration to stderr; nothing here fails when the terminal is gone,
//! so that a closed window cannot stop the clean-up. Names from outside lose their control characters before they are shown.

use std::borrow::Cow;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;

use anyhow::{Result, anyhow};

use crate::error::{Hinted, hinted};
use crate::git::report::is_hidden;

#[derive(Clone)]
pub(crate) struct Terminal {
    assume_yes: bool,
    colour: bool,
}

impl Terminal {
    /// `assume_yes` answers every question; `no_colour` is the wish of the environment.
    pub(crate) fn new(assume_yes: bool, no_colour: bool) -> Terminal {
        Terminal { assume_yes, colour: !no_colour && io::stderr().is_terminal() }
    }

    /// Whether pi gets a terminal: both ends of it have to be one.
    pub(crate) fn is_interactive() -> bool {
        io::stdin().is_terminal() && io::stdout().is_terminal()
    }

    /// Whether pi gets anything from stdin: a terminal is no input where pi has no terminal (`pi-docker -p … | less`).
    pub(crate) fn has_input() -> bool {
        if io::stdin().is_terminal() {
            return Terminal::is_interactive();
        }
        let null = fs::metadata("/dev/null").map(|null| null.rdev()).ok();
        null.is_none() || fs::metadata("/dev/stdin").map(|stdin| stdin.rdev()).ok() != null
    }

    /// Whether somebody sees what a long piece of work is doing.
    pub(crate) fn shows_progress(&self) -> bool {
        io::stderr().is_terminal()
    }

    pub(crate) fn answer(&self, text: &str) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(text.as_bytes());
        let _ = out.write_all(b"\n");
        let _ = out.flush();
    }

    pub(crate) fn say(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    pub(crate) fn warn(&self, text: &str, hint: &str) {
        let mut err = io::stderr().lock();
        let label = if self.colour { "\x1b[33mwarning:\x1b[0m" } else { "warning:" };
        let _ = writeln!(err, "{label} {text}");
        if !hint.is_empty() {
            let _ = writeln!(err, "hint: {hint}");
        }
    }

    /// Warns while pi runs. On pi's own screen a line would be lost or in the way: there the bell rings, and the title of the window
    /// says where to look.
    pub(crate) fn warn_meanwhile(&self, text: &str) {
        if Terminal::is_interactive() && io::stderr().is_terminal() {
            let _ = io::stderr().lock().write_all(b"\x1b]0;pi-docker: a warning, see pi-docker status\x07\x07");
        } else {
            self.warn(text, "");
        }
    }

    /// Whether there is somebody to ask who has not answered everything beforehand.
    pub(crate) fn can_ask(&self) -> bool {
        !self.assume_yes && io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Says what has to be read before the screen is another program's, and waits for Enter; Ctrl-C ends the program. Without
    /// anybody to ask it is only said.
    pub(crate) fn let_read(&self, text: &str) {
        self.say(text);
        if self.can_ask() {
            let _ = write!(io::stderr().lock(), "press Enter ");
            let _ = io::stdin().lock().read_line(&mut String::new());
        }
    }

    /// Whether a question gets an answer: beforehand, or from somebody.
    pub(crate) fn is_answered(&self) -> bool {
        self.assume_yes || self.can_ask()
    }

    /// Asks a yes-or-no question. Without a terminal to ask on it fails and says what would have answered.
    pub(crate) fn confirm(&self, question: &str, otherwise: &str) -> Result<bool> {
        if self.assume_yes {
            return Ok(true);
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(hinted(
                format!("cannot ask '{question}': no terminal"),
                format!("{otherwise}, or go on without by `pi-docker --yes …`"),
            ));
        }
        let mut err = io::stderr().lock();
        let _ = write!(err, "{question} [y/N] ");
        let _ = err.flush();
        let mut reply = String::new();
        io::stdin().lock().read_line(&mut reply).map_err(|e| anyhow!("cannot read the answer: {e}"))?;
        Ok(matches!(reply.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }
}

/// Prints an error once, at the end, with its hint.
pub(crate) fn print_error(program: &str, error: &anyhow::Error) {
    let mut err = io::stderr().lock();
    let _ = writeln!(err, "{program}: {}", printable(&format!("{error:#}")));
    if let Some(hinted) = error.downcast_ref::<Hinted>() {
        let _ = writeln!(err, "hint: {}", printable(&hinted.hint));
    }
}

/// The text without what could steer a terminal, or have it show something else.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_hidden) {
        Cow::Owned(text.chars().map(|c| if is_hidden(c) { '?' } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn control_characters_never_reach_the_terminal() {
        assert_eq!(printable("a\x1b]52;c;x\x07b\u{9b}c\n"), "a?]52;c;x?b?c?");
        assert_eq!(printable("größe"), "größe");
    }

    #[test]
    fn a_name_is_shown_as_it_is_spelt() {
        // Shown as `READMEtxt.sh` and the like, where it is not.
        for hidden in ['\u{202e}', '\u{2066}', '\u{200b}', '\u{61c}', '\u{2060}', '\u{feff}'] {
            assert_eq!(printable(&format!("README{hidden}hs.txt")), "README?hs.txt");
        }
    }
}
