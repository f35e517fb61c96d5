//! `pi-docker`, the launcher on the host: words and environment in, docker compose out, pi's exit status back.

mod agent_copy;
mod allowlist;
mod cli;
mod config;
mod containers;
mod credentials;
mod docker;
mod error;
mod facts;
mod files;
mod foreground;
mod gitconfig;
mod heartbeat;
mod home;
mod host_git;
mod images;
mod inputs;
mod overlay;
mod plan;
mod recover;
mod repo;
mod run_dir;
mod secret;
mod session;
mod sessions;
mod settings;
mod signals;
mod state;
mod terminal;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::{Command, Invocation};
use crate::config::Config;
use crate::error::Silent;

fn main() -> ExitCode {
    let invocation = match cli::parse(std::env::args_os().skip(1).collect()) {
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
    match invocation {
        Invocation::Session { options, pi_args } => session::start(config, &options, pi_args),
        Invocation::Command { command: Command::Stop { all }, .. } => sessions::stop(config, all),
    }
}
