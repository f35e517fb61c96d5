//! What is said of words after a command of ours that it does not know, where the person can be told what they may have meant.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::nearest::nearest;

/// Commands that use what a session would be started with: those options come before them.
const WITH_OPTIONS: &[&str] = &["auth", "doctor", "verify"];

/// A usage error, with a hint.
pub(crate) fn refusal(text: &str, hint: &str) -> clap::Error {
    clap::Error::raw(ErrorKind::UnknownArgument, format!("{text}\nhint: {hint}\n"))
}

/// clap's error about a command line, in better words if there are any. `words`: the command and what came after it.
pub(crate) fn clearer(table: &clap::Command, words: &[OsString], error: clap::Error) -> clap::Error {
    let words: Vec<&str> = words.iter().map_while(|word| word.to_str()).collect();
    let better = match error.kind() {
        ErrorKind::InvalidSubcommand => unknown_command(table, &words),
        ErrorKind::UnknownArgument => misplaced_option(table, &words, &error),
        _ => None,
    };
    better.unwrap_or(error)
}

/// A word where a command's own command should be: it may be one of another step.
fn unknown_command(table: &clap::Command, words: &[&str]) -> Option<clap::Error> {
    let top = table.find_subcommand(words.first()?)?;
    let (mut known, mut path) = (top, top.get_name().to_owned());
    for word in &words[1..] {
        let Some(next) = known.find_subcommand(word) else {
            let mut all = Vec::new();
            list(top, top.get_name(), &mut all);
            let last = |path: &String| path.rsplit(' ').next().unwrap_or_default().to_owned();
            let names: Vec<String> = all.iter().map(last).collect();
            let near = nearest(word, names.iter().map(String::as_str));
            let meant = near.and_then(|near| all.iter().find(|path| last(path) == near));
            let meant = meant.map(|path| format!(": did you mean 'pi-docker {path}'?")).unwrap_or_default();
            let text = format!("'pi-docker {path}' has no command '{word}'{meant}");
            return Some(refusal(&text, &format!("pi-docker help {path}")));
        };
        known = next;
        path = format!("{path} {}", next.get_name());
    }
    None
}

/// The commands below a command, with the words that lead there.
fn list(command: &clap::Command, path: &str, all: &mut Vec<String>) {
    for below in command.get_subcommands() {
        let path = format!("{path} {}", below.get_name());
        list(below, &path, all);
        all.push(path);
    }
}

/// An option of a session's behind a command that uses it.
fn misplaced_option(table: &clap::Command, words: &[&str], error: &clap::Error) -> Option<clap::Error> {
    let Some(ContextValue::String(said)) = error.get(ContextKind::InvalidArg) else { return None };
    let command = words.first().filter(|command| WITH_OPTIONS.contains(command))?;
    let name = said.strip_prefix("--")?.split('=').next()?;
    let arg = table.get_arguments().find(|arg| arg.get_long() == Some(name))?;
    let value = arg.get_value_names().filter(|_| arg.get_action().takes_values()).and_then(|names| names.first());
    let value = value.map(|value| format!(" {value}")).unwrap_or_default();
    let text = format!("'--{name}' comes before the command");
    Some(refusal(&text, &format!("pi-docker --{name}{value} {command}")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn said(words: &[&str]) -> String {
        let line = ["pi-docker"].iter().chain(words);
        let error = Cli::command().try_get_matches_from(line).unwrap_err();
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let error = clearer(&Cli::command(), &words, error);
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn a_command_that_is_another_ones_is_found_there() {
        for (words, meant) in [
            (&["models", "ollama", "status"][..], "did you mean 'pi-docker models status'?"),
            (&["models", "sync"], "did you mean 'pi-docker models ollama sync'?"),
            (&["models", "ollama", "enabel"], "did you mean 'pi-docker models ollama enable'?"),
            (&["models", "ollama", "serve"], "'pi-docker models ollama' has no command 'serve'\n"),
        ] {
            assert!(said(words).contains(meant), "{words:?}: {}", said(words));
        }
        assert!(said(&["models", "ollama", "x"]).contains("\nhint: pi-docker help models ollama\n"));
    }

    #[test]
    fn an_option_of_a_session_behind_a_command_that_uses_it_is_said_to_come_before() {
        for (words, hint) in [
            (&["auth", "--user", "1:1"][..], "pi-docker --user UID:GID auth"),
            (&["auth", "anthropic", "--user=1:1"], "pi-docker --user UID:GID auth"),
            (&["doctor", "--yes"], "pi-docker --yes doctor"),
        ] {
            let said = said(words);
            assert!(said.contains("comes before the command") && said.contains(hint), "{words:?}: {said}");
        }
        for words in [&["auth", "--nonsense"][..], &["allow", "--user", "1:1"]] {
            assert!(said(words).contains("unexpected argument"), "{words:?}: {}", said(words));
        }
    }
}
