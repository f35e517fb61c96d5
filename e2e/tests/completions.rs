//! The completions, in the shells that they are for.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::launch::launcher;
use e2e::pty::Pty;
use e2e::user::User;
use e2e::{SOON, programs, wait_until};
use tempfile::TempDir;

/// What is typed after `pi-docker`, and what is offered for its end.
const CASES: &[(&str, &[&str])] = &[
    ("st", &["status", "stop"]),
    ("--yes st", &["status", "stop"]),
    ("--git direct st", &["status", "stop"]),
    ("--dr", &["--dry-run"]),
    ("--yes --up", &["--update"]),
    ("--git ", &["direct", "private"]),
    ("models ollama en", &["enable"]),
    ("models ollama enable --h", &["--help", "--host"]),
    ("allow --re", &["--remove"]),
    ("completions ", &["bash", "elvish", "fish", "powershell", "zsh"]),
    ("completions f", &["fish"]),
];

/// Runs a program to its end and gives what it printed.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The script for a shell, as `name` in a new folder.
fn script(shell: &str, name: &str) -> Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("pi-e2e-shell-").tempdir()?;
    let text = output(Command::new(launcher()?).args(["completions", shell]).current_dir("/"))?;
    fs::write(dir.path().join(name), text)?;
    Ok(dir)
}

#[test]
fn bash_completes_commands_options_and_their_values() -> Result<()> {
    let dir = script("bash", "pi-docker.bash")?;
    for (line, wanted) in CASES {
        // The empty word at the end is a word, too.
        let text = format!(
            "source '{}/pi-docker.bash'; COMP_WORDS=(pi-docker {line}{}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _pi__docker pi-docker \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            dir.path().display(),
            if line.ends_with(' ') { "''" } else { "" },
        );
        let offered = output(Command::new("bash").args(["-c", &text]))?;
        let mut offered: Vec<&str> =
            offered.lines().filter(|word| *word != "--help" || line.ends_with("--h")).collect();
        offered.sort_unstable();
        assert_eq!(&offered, wanted, "{line}");
    }
    Ok(())
}

#[test]
fn fish_completes_commands_options_and_their_values() -> Result<()> {
    let dir = script("fish", "pi-docker.fish")?;
    // What is offered instead where nothing of ours is.
    fs::write(dir.path().join("a-file"), "")?;
    for (line, wanted) in CASES {
        let mut fish = Command::new(programs::find("fish")?);
        fish.args(["--no-config", "-c", &format!("source pi-docker.fish; complete -C 'pi-docker {line}'")]);
        let text = output(fish.current_dir(dir.path()).env("HOME", dir.path()))?;
        let mut offered: Vec<&str> = text.lines().filter_map(|line| line.split('\t').next()).collect();
        offered.sort_unstable();
        assert_eq!(&offered, wanted, "{line}");
    }
    Ok(())
}

/// A zsh on a terminal, set up as a user does it, where `pi-docker` writes down what it is called with.
fn zsh(dir: &Path) -> Result<Pty> {
    let setup = "fpath=($ZDOTDIR $fpath); autoload -U compinit; compinit -D -u; \
                 pi-docker() { print -r -- \"$*\" >$ZDOTDIR/called }; PS1='%% '";
    fs::write(dir.join(".zshrc"), setup)?;
    let mut zsh = Command::new(programs::find("zsh")?);
    zsh.arg("-i").env("ZDOTDIR", dir).env("HOME", dir).env("TERM", "xterm").current_dir(dir);
    Pty::start(&zsh, User::ordinary(None)?)
}

#[test]
fn zsh_completes_commands_options_and_their_values() -> Result<()> {
    let dir = script("zsh", "_pi-docker")?;
    for (line, wanted) in CASES {
        let mut terminal = zsh(dir.path())?;
        terminal.type_in(&format!("pi-docker {line}\t"))?;
        if let [one] = wanted {
            // There is one way to go on, and it is taken.
            let (before, _) = line.rsplit_once(' ').unwrap_or_default();
            let whole = format!("{before} {one}").trim().to_owned();
            terminal.expect(&format!("pi-docker {whole}"), SOON)?;
            terminal.type_in("\n")?;
            let called = dir.path().join("called");
            let words = wait_until(&format!("'{line}' is run"), SOON, || {
                Ok(fs::read_to_string(&called).ok().filter(|text| text.ends_with('\n')))
            })?;
            fs::remove_file(called)?;
            assert_eq!(words.trim(), whole, "{line}");
        } else {
            for word in *wanted {
                terminal.expect(word, SOON).with_context(|| format!("'{line}'"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn zsh_takes_what_a_value_is_called_as_it_is_written() -> Result<()> {
    let dir = script("zsh", "_pi-docker")?;
    for (line, called) in [("--user ", "UID:GID"), ("models ollama enable --host ", "HOST[:PORT]")] {
        let mut terminal = zsh(dir.path())?;
        // Whatever it says, an error is none of it.
        terminal.type_in(&format!("zstyle ':completion:*' format '<%d>'\n pi-docker {line}\t"))?;
        terminal.expect(&format!("<{called}>"), SOON)?;
    }
    Ok(())
}

#[test]
fn a_shell_that_has_no_completions_is_refused() -> Result<()> {
    let refused = Command::new(launcher()?).args(["completions", "csh"]).current_dir("/").output()?;
    assert_eq!(refused.status.code(), Some(2));
    Ok(())
}
