//! The table of the command line: the options, the commands, and what each says of itself. It is clap's own, and the only one: what is
//! split off (`words.rs`), what is parsed and what is completed (`completions.rs`) cannot differ.

use std::str::FromStr;

use clap::{ArgAction, Parser, Subcommand, ValueHint};

use crate::help;

/// Runs the pi coding agent on the repository you are in, locked into a container.
#[derive(Debug, Parser)]
#[command(
    name = "pi-docker",
    version,
    disable_help_flag = true,
    disable_version_flag = true,
    disable_help_subcommand = true,
    override_usage = "pi-docker [OPTIONS] [--] [PI_ARGS]...\n       pi-docker COMMAND [ARGS]...",
    after_help = help::SESSION,
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) options: Options,
    /// Print this help; `pi-docker -- --help` prints pi's
    #[arg(long, short_alias = 'h', action = ArgAction::Help, global = true)]
    help: Option<bool>,
    /// Print the version; `pi-docker -- --version` prints pi's
    #[arg(long, action = ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What a session is started with.
#[derive(Debug, Default, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct Options {
    /// Go on where a question would be asked
    #[arg(long)]
    pub(crate) yes: bool,
    /// Print what would be run and every fact it was decided on; start nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Build the images again before the start
    #[arg(long)]
    pub(crate) rebuild: bool,
    /// Build the newest published pi before the start, and keep to it
    #[arg(long)]
    pub(crate) update: bool,
    /// Leave the login in ~/.pi/agent/auth.json at the end of the session
    #[arg(long)]
    pub(crate) keep_auth: bool,
    /// Where the agent's git works: `private`, in a git directory of its own whose commits are fetched at the end, or `direct`, in the
    /// repository's own, where it can plant programs that git on this machine runs
    #[arg(long, value_name = "MODE", default_value = "private")]
    pub(crate) git: GitMode,
    /// Run the agent as this user, by number, instead of the repository's owner
    #[arg(long, value_name = "UID:GID", value_hint = ValueHint::Other)]
    pub(crate) user: Option<Owner>,
}

/// Where the agent's git works.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum GitMode {
    #[default]
    Private,
    Direct,
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Log in to a model provider, in a container that has nothing else; `pi-docker-auth` is the same
    #[command(after_help = help::AUTH)]
    Auth {
        /// pi's name of the provider, as in `anthropic` or `github-copilot`; without one pi opens, and `/login` asks
        provider: Option<String>,
    },
    /// Use models of an Ollama server of yours; `pi-docker-models` is the same
    #[command(after_help = help::MODELS)]
    Models {
        #[command(subcommand)]
        what: ModelsCommand,
    },
    /// Look at everything a session needs: engine, images, network, token, login, disk
    #[command(after_help = help::DOCTOR)]
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let hosts through the proxy, or no longer; sessions that run follow at once
    #[command(after_help = help::ALLOW)]
    Allow(AllowArgs),
    /// Show the requests that the proxy refused, by host, with the command that would allow each
    #[command(after_help = help::DENIED)]
    Denied {
        /// Show them as they happen
        #[arg(long, short)]
        follow: bool,
        /// Those of every repository
        #[arg(long)]
        all: bool,
    },
    /// List the sessions that run, of every repository, and their subagents
    #[command(after_help = help::STATUS)]
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what the container's supervisor and the subagents said, in the session that runs or the last one
    #[command(after_help = help::LOGS)]
    Logs {
        /// One of the sessions that run, by its name in `pi-docker status`; without one, those of the repository you are in
        session: Option<String>,
        /// Show more as it comes
        #[arg(long, short)]
        follow: bool,
    },
    /// Show what the last session of the repository you are in did that matters on this machine
    #[command(after_help = help::REPORT)]
    Report {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Attack a session's container from inside, on this engine, and say of each wall whether it holds
    #[command(after_help = help::VERIFY)]
    Verify {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Fetch what has been committed so far in the sessions of the repository you are in
    #[command(after_help = help::FETCH)]
    Fetch,
    /// End the sessions of the repository you are in, as if pi had been asked to quit
    #[command(after_help = help::STOP)]
    Stop {
        /// End the sessions of every repository
        #[arg(long)]
        all: bool,
    },
    /// Print the completions for a shell
    #[command(after_help = help::COMPLETIONS)]
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum ModelsCommand {
    /// Connect sessions to an Ollama server, or change which of its models pi offers
    #[command(subcommand, after_help = help::OLLAMA)]
    Ollama(OllamaCommand),
    /// Say whether a server is connected, whether it answers, and which of its models pi offers
    #[command(after_help = help::MODELS_STATUS)]
    Status,
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum OllamaCommand {
    /// Connect the sessions that start from now on, with every model that the server has
    #[command(after_help = help::OLLAMA_ENABLE)]
    Enable {
        /// The server, if it is not on this machine: a name or an address, and a port if it is not 11434
        #[arg(long, value_name = "HOST[:PORT]", value_hint = ValueHint::Other)]
        host: Option<String>,
    },
    /// Disconnect, and remove the files that `enable` made
    #[command(after_help = help::OLLAMA_DISABLE)]
    Disable,
    /// List the models that the server has; those that pi offers are marked
    #[command(after_help = help::OLLAMA_LIST)]
    List,
    /// Offer exactly the models that the server has now
    #[command(after_help = help::OLLAMA_SYNC)]
    Sync,
    /// Offer these models too
    #[command(after_help = help::OLLAMA_ADD)]
    Add {
        #[arg(required = true, value_name = "MODEL")]
        models: Vec<String>,
    },
    /// Offer these models no longer
    #[command(after_help = help::OLLAMA_REMOVE)]
    Remove {
        #[arg(required = true, value_name = "MODEL")]
        models: Vec<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub(crate) struct AllowArgs {
    /// Take the hosts off the list again, and cut their open connections
    #[arg(long)]
    pub(crate) remove: bool,
    /// Only for the repository you are in
    #[arg(long)]
    pub(crate) here: bool,
    /// Print the whole list that is in force here
    #[arg(long, conflicts_with_all = ["remove", "domains"])]
    pub(crate) list: bool,
    /// Hosts, by name
    #[arg(value_name = "HOST")]
    pub(crate) domains: Vec<String>,
}

/// A user and a group by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl FromStr for Owner {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Owner, Self::Err> {
        let wrong = "expected two numbers, as in 1000:1000";
        let (uid, gid) = text.split_once(':').ok_or(wrong)?;
        Ok(Owner { uid: uid.parse().map_err(|_| wrong)?, gid: gid.parse().map_err(|_| wrong)? })
    }
}
