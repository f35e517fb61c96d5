//! Everything that can fail before a token is spent: the remote, who we are for it, the base branch on it, the right to push
//! and to open a pull request.

use std::path::Path;

use crate::config::Config;
use crate::failure::{Code, Failure, Result};
use crate::git::Git;
use crate::github::GitHub;
use crate::http::Http;
use crate::remote::{self, Address, Heads};
use crate::repo::{Base, Workspace};
use crate::secret::Secret;
use crate::task::PrMode;
use crate::transport::Line;

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
    let slug = match pr {
        PrMode::None => None,
        _ => Some(address.slug(&config.api)?),
    };
    let credential = Git::at(&workspace.root).credential(&address.host, &address.path, address.user.as_deref()).await?;
    let credential = credential.ok_or_else(|| {
        Failure::new(Code::NoToken, format!("cannot push to '{}': there is no token for it", address.host))
            .hint("on the host, put a token into .gh-auth-token or set PI_GH_TOKEN, and start a new session")
    })?;
    let http = Http::new(&config.proxy)?;
    let github = slug.map(|slug| GitHub::new(&http, &config.api, &credential, slug)).transpose()?;
    let token = credential.token.clone();
    let line = Line::install(http, credential)?;
    let heads = remote::heads(&line, &workspace.common).await?;
    Ok(Remote { line, github, heads, token })
}

/// Refuses what could not end in a pull request. Gives warnings.
pub(crate) async fn check(
    remote: &Remote,
    workspace: &Workspace,
    base: &Base,
    branch: &str,
) -> Result<Vec<(&'static str, String)>> {
    let mut warnings = Vec::new();
    let Some(there) = remote.heads.branch(&base.branch) else {
        return Err(Failure::new(
            Code::BaseNotOnRemote,
            format!("cannot open a pull request against '{}': it is not on the remote", base.branch),
        )
        .hint(format!("push it first: git push -u origin {}; or use --push-base", base.branch)));
    };
    if remote.heads.branch(branch).is_some() {
        return Err(Failure::new(
            Code::Exists,
            format!("cannot use the branch '{branch}': the remote has one already"),
        )
        .hint("choose another task name, or delete the branch on the remote"));
    }
    if there != base.oid {
        let repository = workspace.shared()?;
        let text = match repository.graph_ahead_behind(base.oid, there) {
            Ok((ahead, 0)) => {
                format!(
                    "{ahead} commits of '{}' are not on the remote yet: they will show in the pull request",
                    base.branch
                )
            }
            Ok((_, behind)) => format!("'{}' is {behind} commits behind the remote", base.branch),
            Err(_) => format!("'{}' on the remote has commits that are not here", base.branch),
        };
        warnings.push(("base_differs", text));
    }
    if let Some(github) = &remote.github {
        github.may_open(&base.branch).await?;
    }
    Ok(warnings)
}

/// Uncommitted changes that a task will not see.
pub(crate) async fn uncommitted(root: &Path) -> Option<String> {
    let args = ["status", "--porcelain", "--untracked-files=normal", "-z"];
    let output = Git::at(root).run(&args).await.ok()?;
    let count = output.split(|byte| *byte == 0).filter(|line| line.len() > 3).count();
    (count > 0).then(|| format!("{count} uncommitted changes of the main checkout are not in the task's worktree"))
}
