//! Everything that can fail before a token is spent: the remote, who we are for it, the base branch on it, the right to push
//! and to open a pull request.

use git2::Oid;

use crate::config::Config;
use crate::failure::{Code, Failure, Result};
use crate::git::Git;
use crate::github::GitHub;
use crate::http::Http;
use crate::job::Claimed;
use crate::leak;
use crate::remote::{self, Address, Heads};
use crate::repo::{Base, Workspace};
use crate::report::Reporter;
use crate::secret::Secret;
use crate::store::State;
use crate::task::PrMode;
use crate::wire::Line;

/// The way to the remote, checked as far as it can be without changing anything there.
pub(crate) struct Remote {
    pub(crate) line: Line,
    /// None if no pull request is wanted.
    pub(crate) github: Option<GitHub>,
    pub(crate) heads: Heads,
    pub(crate) token: Secret,
}

/// Finds the remote and the credential, and asks what it has.
pub(crate) async fn connect(config: &Config, workspace: &Workspace, pr: PrMode) -> Result<Remote> {
    let address = Address::origin(&workspace.here)?;
    let places = match pr {
        PrMode::None => None,
        _ => Some((remote::destination(&workspace.here, &address, &config.api)?, address.slug(&config.api)?.owner)),
    };
    let credential = Git::at(&workspace.root).credential(&address.host, &address.path, address.user.as_deref()).await?;
    let credential = credential.ok_or_else(|| {
        Failure::new(Code::NoToken, format!("cannot push to '{}': there is no token for it", address.host))
            .hint("on the host, put a token into .gh-auth-token or set PI_GH_TOKEN, and start a new session")
    })?;
    let http = Http::new(&config.proxy)?;
    let github = places.map(|(slug, owner)| GitHub::new(&http, &config.api, &credential, slug, owner)).transpose()?;
    let token = credential.token.clone();
    let mut line = Line::new(http, credential, &address.host, &address.path);
    let heads = remote::heads(&mut line).await?;
    Ok(Remote { line, github, heads, token })
}

/// The base must be on the remote, or a pull request has nowhere to go. `push_base` puts it there.
pub(crate) async fn base(
    remote: &Remote,
    claimed: &Claimed,
    base: &Base,
    push_base: bool,
    reporter: &mut Reporter,
) -> Result<()> {
    let workspace = &claimed.workspace;
    // It would be pushed with the task's branch, or on request.
    leak::refuse(workspace, &remote.token, &remote.heads, base.oid)?;
    let own = remote.github.as_ref().is_none_or(|github| !github.is_fork());
    if push_base && own && remote.heads.branch(&base.branch).is_none() {
        return remote::push(&remote.line, workspace, &base.branch).await;
    }
    let there = base_exists(remote, &base.branch).await?;
    if there != base.oid {
        let text = match workspace.shared()?.graph_ahead_behind(base.oid, there) {
            Ok((ahead, 0)) => {
                format!(
                    "{ahead} commits of '{}' are not on the remote yet: they will show in the pull request",
                    base.branch
                )
            }
            Ok((_, behind)) => format!("'{}' is {behind} commits behind the remote", base.branch),
            Err(_) => format!("'{}' on the remote has commits that are not here", base.branch),
        };
        reporter.warning("base_differs", &text);
    }
    Ok(())
}

/// The commit of the base where the pull request will be.
pub(crate) async fn base_exists(remote: &Remote, base: &str) -> Result<Oid> {
    if let Some(github) = remote.github.as_ref().filter(|github| github.is_fork()) {
        return github.branch(base).await;
    }
    remote.heads.branch(base).ok_or_else(|| {
        Failure::new(
            Code::BaseNotOnRemote,
            format!("cannot open a pull request against '{base}': it is not on the remote"),
        )
        .hint(format!("push it first: git push -u origin {base}; or use --push-base"))
    })
}

/// A branch of that name on the remote belongs to someone else.
pub(crate) fn free_branch(remote: &Remote, branch: &str) -> Result<()> {
    match remote.heads.branch(branch) {
        None => Ok(()),
        Some(_) => {
            Err(Failure::new(Code::Exists, format!("cannot use the branch '{branch}': the remote has one already"))
                .hint("choose another task name, or delete the branch on the remote"))
        }
    }
}

/// The task's branch on the remote may only have what we have, or the push at the end would be refused.
pub(crate) fn not_overtaken(remote: &Remote, workspace: &Workspace, state: &State) -> Result<()> {
    let Some(there) = remote.heads.branch(&state.branch) else { return Ok(()) };
    let repository = workspace.shared()?;
    let tip =
        repository.find_reference(&format!("refs/heads/{}", state.branch)).and_then(|found| found.peel_to_commit());
    let contained =
        tip.is_ok_and(|tip| tip.id() == there || repository.graph_descendant_of(tip.id(), there).unwrap_or(false));
    if contained {
        return Ok(());
    }
    Err(Failure::new(
        Code::RemoteAhead,
        format!("cannot go on with '{}': the remote has other commits on it", state.branch),
    )
    .hint(format!("merge them first: git -C .worktrees/{} pull --no-rebase origin {}", state.task, state.branch)))
}

/// The right to open a pull request.
pub(crate) async fn rights(remote: &Remote, base: &str) -> Result<()> {
    match &remote.github {
        Some(github) => github.may_open(base).await,
        None => Ok(()),
    }
}

/// Uncommitted changes that a task will not see.
pub(crate) async fn uncommitted(workspace: &Workspace) -> Option<String> {
    let args = ["status", "--porcelain", "--untracked-files=normal", "-z"];
    let output = Git::at(workspace.here.workdir()?).run(&args).await.ok()?;
    let count = output.split(|byte| *byte == 0).filter(|line| line.len() > 3).count();
    (count > 0).then(|| format!("{count} uncommitted changes of this checkout are not in the task's worktree"))
}
