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
        /// The task's name, as `list` shows it
        task: String,
        /// Whether to open a pull request
        #[arg(long)]
        pr: Option<PrMode>,
        /// One JSON object for each event, the result last
        #[arg(long)]
        json: bool,
    },
    /// End a running task; its work is kept
    Cancel {
        /// The task's name, as `list` shows it
        task: String,
    },
    /// Wait for a task to end and repeat its result
    Wait {
        /// The task's name, as `list` shows it
        task: String,
        /// The result as JSON
        #[arg(long)]
        json: bool,
    },
    /// What a task has said so far
    Logs {
        /// The task's name, as `list` shows it
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
        /// The task's name, as `list` shows it
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
    /// If there is a task of this name: fail, go on with it, or take the name with a number [default: fail]
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
    /// The task's name, as `list` shows it
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
    /// The model [default: pi's own]
    #[arg(long, value_name = "PROVIDER/ID")]
    pub(crate) model: Option<String>,
    /// How long it thinks: off, minimal, low, medium, high or xhigh [default: pi's own]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) thinking: Option<String>,
    /// The only tools it has, separated by commas
    #[arg(long, value_name = "LIST")]
    pub(crate) tools: Option<String>,
    /// Tools it does not have
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
    /// Stop when it has cost so much; 0 is no limit
    #[arg(long, value_name = "USD", value_parser = dollars)]
    pub(crate) max_cost: Option<f64>,
    /// Stop when so many tokens are used; 0 is no limit
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<u64>,
    /// Stop after so many answers of the model; 0 is no limit
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
    let unknown = || format!("'{text}' is not a time such as 90s, 30m or 2h");
    let number: u64 = digits.parse().map_err(|_| unknown())?;
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        unit => return Err(format!("'{unit}' is not a unit of time: use s, m or h")),
    };
    number.checked_mul(unit).ok_or_else(unknown)
}

fn dollars(text: &str) -> Result<f64, String> {
    check_cost(text.parse().map_err(|_| format!("'{text}' is not a number of dollars such as 0.5"))?)
}

/// A limit that no cost could ever reach must not be taken for one.
pub(crate) fn check_cost(cost: f64) -> Result<f64, String> {
    if cost.is_finite() && cost >= 0.0 { Ok(cost) } else { Err(format!("{cost} is no limit of a cost")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_would_be_none_is_refused() {
        assert_eq!((seconds("90"), seconds("30m"), seconds("2h")), (Ok(90), Ok(1800), Ok(7200)));
        for time in ["9999999999999999h", "5y", "-1", "", "h"] {
            assert!(seconds(time).is_err(), "{time}");
        }
        assert_eq!((dollars("0"), dollars("0.5")), (Ok(0.0), Ok(0.5)));
        for cost in ["NaN", "inf", "-1", "much"] {
            assert!(dollars(cost).is_err(), "{cost}");
        }
    }
}
