//! The command line, nothing else.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::task::{IfExists, PrMode};

/// Runs pi on one task in a git worktree of its own, pushes the branch and opens the pull request.
#[derive(Debug, Parser)]
#[command(name = "pi-subagent", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a task and see it to its end
    Spawn(Box<SpawnArgs>),
    /// Go on with a task that was stopped: same session, same branch
    Resume(Box<ResumeArgs>),
    /// Commit, push and open the pull request of a task, without calling a model
    Finish {
        task: String,
        /// Whether to open a pull request
        #[arg(long)]
        pr: Option<PrMode>,
        /// One JSON object for each event, the result last
        #[arg(long)]
        json: bool,
    },
    /// End a running task; its work is kept
    Cancel { task: String },
    /// Wait for a task to end and repeat its result
    Wait {
        task: String,
        /// The result as JSON
        #[arg(long)]
        json: bool,
    },
    /// What a task has said so far
    Logs {
        task: String,
        /// Go on until it ends
        #[arg(short, long)]
        follow: bool,
        /// pi's own events
        #[arg(long)]
        raw: bool,
    },
    /// Everything known about one task
    Show {
        task: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Put in order what runs that were killed have left behind
    Recover {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Hand out what was committed here, for the launcher; writes a stream to stdout
    #[command(hide = true)]
    Export {
        /// All history, not only what the host has not
        #[arg(long)]
        full: bool,
    },
    /// Look whether a task could be started here
    Doctor {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show all tasks
    List {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove tasks whose work is pushed or merged; keep all others and say why
    Cleanup(CleanupArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SpawnArgs {
    /// The task's name: lower-case letters, digits, inner dashes
    #[arg(long)]
    pub(crate) task: Option<String>,
    /// A JSON specification; '-' is standard input. Flags come before it
    #[arg(long, value_name = "FILE")]
    pub(crate) spec: Option<PathBuf>,
    /// What to do; '-' is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) instructions_file: Option<PathBuf>,
    /// The branch to start from and to open the pull request against [default: the current one]
    #[arg(long, value_name = "BRANCH")]
    pub(crate) base: Option<String>,
    #[arg(long, value_name = "WHAT")]
    pub(crate) if_exists: Option<IfExists>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Whether to open a pull request
    #[arg(long)]
    pub(crate) pr: Option<PrMode>,
    /// The pull request's title
    #[arg(long)]
    pub(crate) title: Option<String>,
    /// Push the base branch first if the remote does not have it
    #[arg(long)]
    pub(crate) push_base: bool,
    /// Fail instead of waiting for a free place
    #[arg(long)]
    pub(crate) no_wait_slot: bool,
    /// Exit 0 also if nothing was changed
    #[arg(long)]
    pub(crate) allow_empty: bool,
    /// One JSON object for each event, the result last
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    pub(crate) task: String,
    /// What to do differently; '-' is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) instructions_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Whether to open a pull request
    #[arg(long)]
    pub(crate) pr: Option<PrMode>,
    /// Fail instead of waiting for a free place
    #[arg(long)]
    pub(crate) no_wait_slot: bool,
    /// One JSON object for each event, the result last
    #[arg(long)]
    pub(crate) json: bool,
}

/// How pi is run.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[arg(long, value_name = "PROVIDER/ID")]
    pub(crate) model: Option<String>,
    #[arg(long, value_name = "LEVEL")]
    pub(crate) thinking: Option<String>,
    /// The only tools it has
    #[arg(long, value_name = "LIST")]
    pub(crate) tools: Option<String>,
    #[arg(long, value_name = "LIST")]
    pub(crate) exclude_tools: Option<String>,
    /// Let pi load what the repository's own .pi folder holds
    #[arg(long)]
    pub(crate) trusted: bool,
    /// As 90s, 30m or 2h; 0 is no limit [default: 30m]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub(crate) timeout: Option<u64>,
    /// Without a sign of life from pi [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub(crate) idle_timeout: Option<u64>,
    /// For one call of a tool [default: 15m]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub(crate) tool_timeout: Option<u64>,
    #[arg(long, value_name = "USD")]
    pub(crate) max_cost: Option<f64>,
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<u64>,
    #[arg(long, value_name = "N")]
    pub(crate) max_turns: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    /// The tasks
    #[arg(value_name = "TASK", required_unless_present = "all")]
    pub(crate) tasks: Vec<String>,
    /// Every task
    #[arg(long, conflicts_with = "tasks")]
    pub(crate) all: bool,
    /// Also what is not safe elsewhere; it goes to a trash
    #[arg(long)]
    pub(crate) discard: bool,
    /// Leave the branch
    #[arg(long)]
    pub(crate) keep_branch: bool,
    /// Only say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn seconds(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("'{text}' is not a time such as 90s, 30m or 2h"))?;
    match &text[digits.len()..] {
        "" | "s" => Ok(number),
        "m" => Ok(number * 60),
        "h" => Ok(number * 3600),
        unit => Err(format!("'{unit}' is not a unit of time: use s, m or h")),
    }
}
