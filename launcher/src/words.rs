//! Which words are ours and which are pi's. Our options are long ones, before the first word that is not one of them; `--` ends
//! them; everything after that is pi's, byte for byte. A first word that names one of our commands is ours.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{CommandFactory, Parser};

use crate::allowlist::Domain;
use crate::cli::{Cli, Command, Options};
use crate::nearest::{nearest, slip};
use crate::refusals;
use crate::session::quoted;

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invocation {
    Session { options: Options, pi_args: Vec<OsString> },
    Command { options: Options, command: Command },
}

/// Commands that the program is when it is called by another name.
const NAMES: &[(&str, &str)] = &[("pi-docker-auth", "auth"), ("pi-docker-models", "models")];

/// Reads the command line, the program's name first. The error is clap's: it knows how to print itself and what status it means.
pub(crate) fn parse(line: Vec<OsString>) -> Result<Invocation, clap::Error> {
    let mut words = line.into_iter();
    let program = words.next().unwrap_or_default();
    let name = Path::new(&program).file_name().and_then(OsStr::to_str);
    let command = NAMES.iter().find(|(known, _)| name == Some(known)).map(|(_, command)| OsString::from(command));
    parse_words(command.into_iter().chain(words).collect())
}

fn parse_words(words: Vec<OsString>) -> Result<Invocation, clap::Error> {
    let table = Cli::command();
    let (mut ours, rest) = split(&table, words);
    let name = rest.first().and_then(|word| word.to_str()).unwrap_or("");
    let is_command = !ours.ended && table.get_subcommands().any(|c| c.get_name() == name);
    if !ours.ended && !is_command {
        if let Some(command) = asks_for_help(&table, &rest) {
            let line = std::iter::once("pi-docker").chain(command).chain(["--help"]);
            return Cli::try_parse_from(line)
                .map(|_| Invocation::Session { options: Options::default(), pi_args: rest });
        }
        refuse_unknown_help(&table, &rest)?;
        refuse_a_slip(&table, &rest)?;
    }
    let mut line = vec![OsString::from("pi-docker")];
    line.append(&mut ours.words);
    if !is_command {
        let cli = Cli::try_parse_from(line)?;
        return Ok(Invocation::Session { options: cli.options, pi_args: rest });
    }
    line.extend(rest.iter().cloned());
    let cli = Cli::try_parse_from(line).map_err(|error| refusals::clearer(&table, &rest, error))?;
    Ok(match cli.command {
        Some(command) => Invocation::Command { options: cli.options, command },
        None => Invocation::Session { options: cli.options, pi_args: Vec::new() },
    })
}

/// `-h` and `help`, alone, are ours, and so is `help COMMAND`, with the command's own commands; the value is the command, word by word.
fn asks_for_help<'a>(table: &'a clap::Command, rest: &[OsString]) -> Option<Vec<&'a str>> {
    let words: Vec<&str> = rest.iter().map(|word| word.to_str()).collect::<Option<_>>()?;
    match words[..] {
        ["-h"] => Some(Vec::new()),
        ["help", ref names @ ..] => {
            let mut command = table;
            names
                .iter()
                .map(|name| {
                    command = command.find_subcommand(name)?;
                    Some(command.get_name())
                })
                .collect()
        }
        _ => None,
    }
}

/// `help` and one word that is no command of ours.
fn refuse_unknown_help(table: &clap::Command, rest: &[OsString]) -> Result<(), clap::Error> {
    let [first, name] = rest else { return Ok(()) };
    let (Some("help"), Some(name)) = (first.to_str(), name.to_str()) else { return Ok(()) };
    let near = nearest(name, table.get_subcommands().map(clap::Command::get_name));
    let meant = near.map(|near| format!(": did you mean 'pi-docker help {near}'?")).unwrap_or_default();
    let prompt = quoted(&format!("help {name}"));
    let text = format!("there is no command '{name}'{meant}");
    Err(refusals::refusal(&text, &format!("pi-docker -- {prompt}  sends it to pi")))
}

/// A first word that is a slip away from one of our options, or from a command with nothing or what belongs to one behind it, would
/// go to pi as a prompt, and cost a session. It is refused; `--` sends it to pi for certain.
fn refuse_a_slip(table: &clap::Command, rest: &[OsString]) -> Result<(), clap::Error> {
    let Some(first) = rest.first().and_then(|word| word.to_str()) else { return Ok(()) };
    let refusal = |meant: String| {
        Err(refusals::refusal(
            &format!("'{first}' is not known: did you mean '{meant}'?"),
            &format!("pi-docker -- {first}  sends it to pi"),
        ))
    };
    if let Some(option) = first.strip_prefix("--") {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let known = table.get_arguments().filter_map(clap::Arg::get_long);
        let simple = !name.is_empty() && value.bytes().all(|b| b.is_ascii_graphic());
        return match slip(name, known).filter(|_| simple) {
            Some(meant) => refusal(format!("--{meant}")),
            None => Ok(()),
        };
    }
    if !first.is_empty() && first.bytes().all(|b| b.is_ascii_lowercase()) {
        let known = table.get_subcommands().map(clap::Command::get_name).chain(["help"]);
        if let Some(meant) = slip(first, known)
            && rest.get(1).is_none_or(|second| belongs_to(table, meant, second))
        {
            return refusal(format!("pi-docker {meant}"));
        }
    }
    Ok(())
}

/// Whether a word looks like what comes after a command of ours: an option, a host, or what that command has in its place.
fn belongs_to(table: &clap::Command, command: &str, word: &OsStr) -> bool {
    let Some(word) = word.to_str() else { return false };
    let Some(command) = table.find_subcommand(command) else { return false };
    let is_value = |arg: &clap::Arg| arg.get_possible_values().iter().any(|value| value.matches(word, false));
    let is_host = word.contains('.') && Domain::parse(word).is_ok();
    word.starts_with('-') || is_host || command.find_subcommand(word).is_some() || command.get_arguments().any(is_value)
}

struct Ours {
    words: Vec<OsString>,
    /// Whether `--` said that the rest is pi's.
    ended: bool,
}

fn split(table: &clap::Command, words: Vec<OsString>) -> (Ours, Vec<OsString>) {
    let mut ours = Ours { words: Vec::new(), ended: false };
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == "--" {
            ours.ended = true;
            return (ours, words.collect());
        }
        match own_option(table, &word) {
            Some(wants_value) => {
                ours.words.push(word);
                if wants_value {
                    ours.words.extend(words.next());
                }
            }
            None => return (ours, std::iter::once(word).chain(words).collect()),
        }
    }
    (ours, Vec::new())
}

/// `Some(true)` for an option of ours whose value is the next word.
fn own_option(table: &clap::Command, word: &OsStr) -> Option<bool> {
    let name = word.to_str()?.strip_prefix("--")?;
    let (name, has_value) = name.split_once('=').map_or((name, false), |(name, _)| (name, true));
    let arg = table.get_arguments().find(|arg| arg.get_long() == Some(name))?;
    Some(arg.get_action().takes_values() && !has_value)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::cli::Owner;

    fn session(words: &[&str]) -> (Options, Vec<OsString>) {
        match parse_words(words.iter().map(OsString::from).collect()) {
            Ok(Invocation::Session { options, pi_args }) => (options, pi_args),
            other => panic!("not a session: {other:?}"),
        }
    }

    #[test]
    fn pi_gets_its_words_unchanged() {
        for words in [
            &["-p", "add \"unit\" tests", "a\nb", "", "--leading", "--", "$HOME ${X}"][..],
            &["--model", "x", "--yes"],
            &["-h", "me"],
            &["help", "me", "out"],
            &["help me"],
            &["-", "--dry-run"],
            &["stat"],
            &["statsu", "page"],
            &["model", "the data in x.example.com"],
            &["alow", "README"],
            &["explain", "x.example.com"],
            &["Status?"],
            &["--print", "--yess"],
        ] {
            let (options, pi_args) = session(words);
            assert_eq!(options, Options::default(), "{words:?}");
            assert_eq!(pi_args, words.iter().map(OsString::from).collect::<Vec<_>>());
        }
    }

    #[test]
    fn own_options_end_at_the_first_word_that_is_not_one() {
        let (options, pi_args) = session(&["--yes", "--user", "7:8", "-p", "--rebuild"]);
        assert!(options.yes && !options.rebuild);
        assert_eq!(options.user, Some(Owner { uid: 7, gid: 8 }));
        assert_eq!(pi_args, ["-p", "--rebuild"]);
        let (options, pi_args) = session(&["--user=7:8", "--", "--yes", "--"]);
        assert!(!options.yes && options.user.is_some());
        assert_eq!(pi_args, ["--yes", "--"]);
    }

    #[test]
    fn bytes_that_are_not_utf_8_stay_as_they_are() {
        let odd = OsString::from_vec(vec![b'-', b'-', b'y', 0xff]);
        match parse_words(vec![odd.clone()]) {
            Ok(Invocation::Session { pi_args, .. }) => assert_eq!(pi_args, [odd]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_other_names_are_commands() {
        let line = |words: &[&str]| parse(words.iter().map(OsString::from).collect());
        assert!(matches!(
            line(&["/usr/bin/pi-docker-auth"]),
            Ok(Invocation::Command { command: Command::Auth { .. }, .. })
        ));
        assert!(matches!(line(&["pi-docker", "pi-docker-auth"]), Ok(Invocation::Session { .. })));
    }

    #[test]
    fn a_first_word_that_is_a_command_is_ours_and_a_dash_dash_sends_it_to_pi() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let stop = Command::Stop { all: true };
        assert!(
            matches!(parse_words(words(&["stop", "--all"])), Ok(Invocation::Command { command, .. }) if command == stop)
        );
        assert_eq!(session(&["--", "stop"]).1, ["stop"]);
        assert_eq!(session(&["please", "stop"]).1, ["please", "stop"]);
        assert_eq!(parse_words(words(&["stop", "now"])).unwrap_err().exit_code(), 2);
    }

    /// pi's own options, as its `--help` has them: none of them may be taken for a slip of ours.
    const OF_PI: &str = "provider model api-key system-prompt append-system-prompt mode print continue resume session session-id \
        fork session-dir no-session name models no-tools no-builtin-tools tools exclude-tools thinking extension no-extensions \
        no-mcp skill no-skills prompt-template no-prompt-templates theme use-theme no-themes no-context-files export list-models \
        verbose tui-mode approve no-approve offline";

    #[test]
    fn a_slip_is_refused_and_a_dash_dash_sends_it_to_pi() {
        for (words, meant) in [
            (&["--dryrun"][..], "'--dry-run'"),
            (&["--yess"], "'--yes'"),
            (&["--yes", "--rebiuld", "x"], "'--rebuild'"),
            (&["--usr=1:1"], "'--user'"),
            (&["statsu"], "'pi-docker status'"),
            (&["doctr"], "'pi-docker doctor'"),
            (&["alow", "x.example.com"], "'pi-docker allow'"),
            (&["alow", "--here", "x"], "'pi-docker allow'"),
            (&["allw", ".example.com", "b.example"], "'pi-docker allow'"),
            (&["modles", "ollama", "list"], "'pi-docker models'"),
            (&["completion", "bash"], "'pi-docker completions'"),
        ] {
            let error = parse_words(words.iter().map(OsString::from).collect()).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(meant), "{words:?}: {error}");
            let again: Vec<&str> = ["--"].iter().chain(words).copied().collect();
            assert_eq!(session(&again).1, words.iter().map(OsString::from).collect::<Vec<_>>());
        }
        for option in OF_PI.split_whitespace() {
            let option = format!("--{option}");
            assert_eq!(session(&[&option]).1, [option.as_str()]);
        }
    }

    #[test]
    fn help_is_ours_in_every_common_way_to_ask_for_it() {
        for words in [&["-h"][..], &["help"], &["--help"], &["--yes", "help"], &["help", "allow"], &["allow", "-h"]] {
            let error = parse_words(words.iter().map(OsString::from).collect()).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::DisplayHelp, "{words:?}");
            assert_eq!(error.to_string().contains("HOST"), words.contains(&"allow"), "{words:?}");
        }
        let error = parse_words(["help", "models", "ollama"].map(OsString::from).to_vec()).unwrap_err();
        assert!(error.to_string().contains("pi-docker models ollama <COMMAND>"), "{error}");
        assert_eq!(session(&["help", "models", "fit"]).1, ["help", "models", "fit"]);
    }

    #[test]
    fn help_for_a_command_that_there_is_not_is_refused_and_a_dash_dash_sends_it_to_pi() {
        for (name, said) in [
            ("alow", "there is no command 'alow': did you mean 'pi-docker help allow'?\n"),
            ("me", "there is no command 'me'\nhint: pi-docker -- 'help me'  sends it to pi\n"),
        ] {
            let error = parse_words(["help", name].map(OsString::from).to_vec()).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(said), "{name}: {error}");
            assert_eq!(session(&["--", "help", name]).1, ["help", name]);
        }
    }

    #[test]
    fn the_help_of_every_command_has_an_example() {
        for command in Cli::command().get_subcommands() {
            let error = parse_words(["help", command.get_name()].map(OsString::from).to_vec()).unwrap_err();
            assert!(error.to_string().contains("\nExamples:\n"), "{}", command.get_name());
        }
    }

    #[test]
    fn a_wrong_value_of_an_own_option_is_a_usage_error() {
        for words in [&["--user", "root"][..], &["--user"], &["--yes=1"]] {
            let error = parse_words(words.iter().map(OsString::from).collect()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }
}
