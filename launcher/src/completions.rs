//! The completions for a shell: clap's own, and what its scripts leave out.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};
use clap_complete::{Shell, generate};

use crate::cli::Cli;

/// The completions of the whole command line.
pub(crate) fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    let mut table = Cli::command();
    generate(shell, &mut table, "pi-docker", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    match shell {
        // It writes the dash in our name in two ways, so that nothing below a command would be completed.
        Shell::Bash => script.replace("pi__subcmd__docker", "pi__docker"),
        Shell::Zsh => with_escaped_names(script, &table),
        Shell::Fish => format!("{script}{}", rest_for_fish(&table)),
        _ => script,
    }
}

/// What a value is called is ended by a colon in zsh, and so has none of its own.
fn with_escaped_names(script: String, command: &Command) -> String {
    let names = command.get_arguments().flat_map(|arg| arg.get_value_names().unwrap_or_default());
    let script = names.filter(|name| name.contains(':')).fold(script, |script, name| {
        script.replace(&format!("]:{name}:"), &format!("]:{}:", name.replace(':', "\\:")))
    });
    command.get_subcommands().fold(script, with_escaped_names)
}

/// Clap asks fish to read a command line that ends at an option as one that is whole, which it is not; it offers no value of a command,
/// and no option of a command's command's command.
fn rest_for_fish(table: &Command) -> String {
    let mut lines = String::new();
    let commands: Vec<&str> = table.get_subcommands().map(Command::get_name).collect();
    let before = format!("not __fish_seen_subcommand_from {}", commands.join(" "));
    for arg in table.get_arguments().filter(|arg| arg.get_action().takes_values()) {
        complete(&mut lines, &before, arg);
    }
    for command in table.get_subcommands() {
        let name = command.get_name();
        let after = format!("__fish_pi_docker_using_subcommand {name}");
        command.get_positionals().for_each(|arg| complete(&mut lines, &after, arg));
        for last in command.get_subcommands().flat_map(Command::get_subcommands) {
            let after = format!("{after}; and __fish_seen_subcommand_from {}", last.get_name());
            last.get_opts().for_each(|arg| complete(&mut lines, &after, arg));
        }
    }
    lines
}

/// An option, with its values if it has a choice of them; or the values of a word that has.
fn complete(lines: &mut String, condition: &str, arg: &Arg) {
    let values: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let values = values.join(" ");
    let _ = match arg.get_long() {
        Some(name) => {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default().replace('\'', "\\'");
            writeln!(lines, "complete -c pi-docker -n '{condition}' -l {name} -x -a '{values}' -d '{help}'")
        }
        None if values.is_empty() => Ok(()),
        None => writeln!(lines, "complete -c pi-docker -n '{condition}' -f -a '{values}'"),
    };
}
