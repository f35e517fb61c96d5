//! pi-subagent: one task for one pi, in a git worktree of its own. Parses, calls, gives the exit status; the story of a task
//! is in `run.rs`.

mod agent;
mod aside;
mod beside;
mod cancel;
mod cleanup;
mod cli;
mod commit;
mod config;
mod deliver;
mod doctor;
mod export;
mod failure;
mod git;
mod github;
mod http;
mod include;
mod inspect;
mod job;
mod judge;
mod leak;
mod limits;
mod list;
mod out;
mod pi;
mod pkt;
mod pr_text;
mod preflight;
mod probe;
mod raw_log;
mod recover;
mod remote;
mod repo;
mod report;
mod result;
mod run;
mod secret;
mod slots;
mod spec;
mod store;
mod stream;
mod sys;
mod task;
mod wire;
mod worktree;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::config::Config;
use crate::failure::{Code, OrFail, Result};

fn main() -> ExitCode {
    let exit = start(Cli::parse()).unwrap_or_else(|failure| {
        report::complain(&failure);
        failure.code.exit()
    });
    ExitCode::from(exit)
}

fn start(cli: Cli) -> Result<u8> {
    // Another process of the user must not read the token out of our memory.
    sys::hide().or_fail(Code::Internal, || "cannot protect the process".into())?;
    if let Command::Export { full } = cli.command {
        let written =
            export::export(Path::new("/workspace"), full, &mut std::io::BufWriter::new(std::io::stdout().lock()));
        return written.map(|()| 0).or_fail(Code::Internal, || "cannot hand out the commits".into());
    }
    let config = Config::from_env()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.or_fail(Code::Internal, || "cannot start the runtime".into())?;
    runtime.block_on(call(&config, cli.command))
}

async fn call(config: &Config, command: Command) -> Result<u8> {
    match command {
        Command::Spawn(args) => {
            let json = args.json;
            Ok(run::spawn(config, spec::read(*args)?, json).await)
        }
        Command::Resume(args) => {
            let (task, json) = (args.task.clone(), args.json);
            Ok(run::resume(config, &task, spec::changes(*args)?, json).await)
        }
        Command::Finish { task, pr, json } => {
            let changes = task::Spec { pr: pr.unwrap_or_default(), ..task::Spec::default() };
            Ok(run::finish(config, &task, changes, json).await)
        }
        Command::Cancel { task } => inspect::cancel(config, &task).await,
        Command::Wait { task, json } => inspect::wait(config, &task, json).await,
        Command::Logs { task, follow, raw } => inspect::logs(config, &task, follow, raw).await,
        Command::Show { task, json } => {
            report::answer(json, &inspect::show(config, &task).await?);
            Ok(0)
        }
        Command::Recover { json } => {
            report::answer(json, &recover::recover(config).await?);
            Ok(0)
        }
        Command::Doctor { json } => {
            let (answer, well) = doctor::doctor(config).await;
            report::answer(json, &answer);
            Ok(if well { 0 } else { 1 })
        }
        Command::Export { .. } => Ok(0),
        Command::List { json } => {
            report::answer(json, &list::list(config).await?);
            Ok(0)
        }
        Command::Cleanup(args) => {
            let wish = cleanup::Wish {
                tasks: args.tasks,
                all: args.all,
                discard: args.discard,
                keep_branch: args.keep_branch,
                dry_run: args.dry_run,
            };
            let (answer, done) = cleanup::cleanup(config, &wish).await?;
            report::answer(args.json, &answer);
            Ok(if done { 0 } else { 1 })
        }
    }
}
