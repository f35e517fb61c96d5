//! `pi-docker`, the launcher on the host: words and environment in, docker compose out, pi's exit status back.

mod agent_copy;
mod allow;
mod allowlist;
mod cli;
mod completions;
mod config;
mod containers;
mod credentials;
mod denied;
mod docker;
mod doctor;
mod error;
mod exit_report;
mod facts;
mod files;
mod foreground;
mod git;
mod gitconfig;
mod github;
mod heartbeat;
mod help;
mod home;
mod images;
mod inputs;
mod login;
mod models;
mod nearest;
mod ollama;
mod overlay;
mod plan;
mod private_side;
mod recover;
mod refusals;
mod repo;
mod run_dir;
mod secret;
mod session;
mod sessions;
mod settings;
mod signals;
mod terminal;
mod traffic;
mod trial;
mod update;
mod verify;
mod words;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::Command;
use crate::config::Config;
use crate::error::Silent;
use crate::terminal::Terminal;
use crate::words::Invocation;

fn main() -> ExitCode {
    let invocation = match words::parse(std::env::args_os().collect()) {
        Ok(invocation) => invocation,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(invocation) {
        Ok(status) => ExitCode::from(status),
        Err(error) => match error.downcast_ref::<Silent>() {
            Some(Silent(status)) => ExitCode::from(*status),
            None => {
                terminal::print_error("pi-docker", &error);
                ExitCode::FAILURE
            }
        },
    }
}

fn run(invocation: Invocation) -> Result<u8> {
    let config = Config::from_env()?;
    let (options, command) = match invocation {
        Invocation::Session { options, pi_args } => return session::start(config, &options, pi_args),
        Invocation::Command { options, command } => (options, command),
    };
    match command {
        Command::Auth { provider } => login::start(config, &options, provider.as_deref()),
        Command::Models { what } => models::run(config, &what),
        Command::Doctor { json } => doctor::run(config, &options, json),
        Command::Allow(args) => allow::run(config, &args),
        Command::Denied { follow, all } => sessions::denied(&config, all, follow),
        Command::Status { json } => sessions::status(&config, json),
        Command::Logs { session, follow } => sessions::logs(&config, session.as_deref(), follow),
        Command::Report { json } => exit_report::show(&config, json),
        Command::Verify { json } => verify::run(config, &options, json),
        Command::Fetch => sessions::fetch(&config),
        Command::Stop { all } => sessions::stop(&config, all),
        Command::Completions { shell } => {
            Terminal::new(true, true).answer(completions::script(shell).trim_end());
            Ok(0)
        }
    }
}
