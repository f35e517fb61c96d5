//! The completions for a shell: clap's own, and what its scripts leave out.

use std::fmt::Write;

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::cli::Cli;

/// The completions of the whole command line.
pub(crate) fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    let mut table = Cli::command();
    generate(shell, &mut table, "pi-docker", &mut script);
    let script = String::from_utf8_lossy(&script);
    match shell {
        // It writes the dash in our name in two ways, so that nothing below a command would be completed.
        Shell::Bash => script.replace("pi__subcmd__docker", "pi__docker"),
        Shell::Fish => format!("{script}{}", values_for_fish(&table)),
        _ => script.into_owned(),
    }
}

/// The values that an option or a command of ours can have. Clap asks fish to read a command line that ends at an option as one that
/// is whole, which it is not, and offers no value of a command at all.
fn values_for_fish(table: &clap::Command) -> String {
    let values = |arg: &clap::Arg| {
        let values = arg.get_possible_values();
        values.iter().map(|value| value.get_name().to_owned()).collect::<Vec<_>>().join(" ")
    };
    let commands: Vec<&str> = table.get_subcommands().map(clap::Command::get_name).collect();
    let mut lines = String::new();
    for arg in table.get_arguments().filter(|arg| arg.get_action().takes_values()) {
        if let Some(name) = arg.get_long() {
            let before = format!("not __fish_seen_subcommand_from {}", commands.join(" "));
            let _ = writeln!(lines, "complete -c pi-docker -n '{before}' -l {name} -x -a '{}'", values(arg));
        }
    }
    for command in table.get_subcommands() {
        for arg in command.get_positionals().filter(|arg| !values(arg).is_empty()) {
            let name = command.get_name();
            let after = format!("__fish_pi_docker_using_subcommand {name}");
            let _ = writeln!(lines, "complete -c pi-docker -n '{after}' -f -a '{}'", values(arg));
        }
    }
    lines
}
