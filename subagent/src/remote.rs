//! The remote that branches go to: its address, what it has, and the push.

use git2::{Oid, Repository};

use crate::failure::{Code, Failure, OrFail, Result, cause};
use crate::git::Git;
use crate::pkt::{self, Verdict};
use crate::repo::Workspace;
use crate::wire::Line;

/// Where `origin` is, from its URL after `insteadOf`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Address {
    /// With a port if it is not 443.
    pub(crate) host: String,
    /// `owner/name.git`, as the URL has it.
    pub(crate) path: String,
    pub(crate) user: Option<String>,
}

/// A repository on GitHub.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RepoSlug {
    pub(crate) owner: String,
    pub(crate) name: String,
}

impl Address {
    /// The address pushes go to.
    pub(crate) fn origin(repository: &Repository) -> Result<Self> {
        let remote = repository.find_remote("origin").map_err(|_| {
            Failure::new(Code::NoRemote, "cannot push anywhere: the repository has no remote 'origin'")
                .hint("add one with: git remote add origin https://github.com/OWNER/NAME.git")
        })?;
        let url = remote.pushurl().ok().flatten().map_or_else(|| remote.url(), Ok);
        let url = url.or_fail(Code::RemoteUnsupported, || "cannot read the address of 'origin'".into())?;
        Address::parse(url)
    }

    pub(crate) fn parse(url: &str) -> Result<Self> {
        let unsupported = || {
            // What stands before an @ may be a password.
            let shown = url.rsplit('@').next().unwrap_or(url);
            Failure::new(Code::RemoteUnsupported, format!("cannot push to '{shown}': only https remotes are supported"))
                .hint("set it with: git remote set-url origin https://github.com/OWNER/NAME.git")
        };
        let rest = url.strip_prefix("https://").ok_or_else(unsupported)?;
        let (authority, path) = rest.split_once('/').ok_or_else(unsupported)?;
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user.split(':').next().unwrap_or(user).to_owned()), host),
            None => (None, authority),
        };
        let host = host.strip_suffix(":443").unwrap_or(host).to_ascii_lowercase();
        let path = path.trim_matches('/').to_owned();
        if host.is_empty() || path.is_empty() {
            return Err(unsupported());
        }
        Ok(Address { host, path, user: user.filter(|user| !user.is_empty()) })
    }

    /// Owner and name, if the host is the one whose API is configured.
    pub(crate) fn slug(&self, api: &str) -> Result<RepoSlug> {
        let expected = web_host(api);
        if self.host != expected {
            return Err(Failure::new(
                Code::RemoteUnsupported,
                format!("cannot open pull requests on '{}': GitHub is configured as '{expected}'", self.host),
            )
            .hint("for GitHub Enterprise set GITHUB_API_URL; for another host use --pr none, which only pushes"));
        }
        let path = self.path.strip_suffix(".git").unwrap_or(&self.path);
        match path.split('/').collect::<Vec<_>>()[..] {
            [owner, name] if !owner.is_empty() && !name.is_empty() => {
                Ok(RepoSlug { owner: owner.to_owned(), name: name.to_owned() })
            }
            _ => Err(Failure::new(Code::RemoteUnsupported, format!("cannot read '{path}' as owner/name"))),
        }
    }
}

/// Whose pull requests they are: the repository that `gh repo set-default` has chosen, so that a fork's go to what it was forked
/// from; else the one branches go to. Never guessed: a pull request in a stranger's repository is seen by many.
pub(crate) fn destination(repository: &Repository, origin: &Address, api: &str) -> Result<RepoSlug> {
    let own = origin.slug(api)?;
    let Ok(config) = repository.config().and_then(|mut config| config.snapshot()) else { return Ok(own) };
    let mut chosen = None;
    if let Ok(entries) = config.entries(Some("^remote\\..*\\.gh-resolved$")) {
        let _ = entries.for_each(|entry| {
            if let (Ok(name), Ok(value)) = (entry.name(), entry.value()) {
                chosen = Some((name.to_owned(), value.to_owned()));
            }
        });
    }
    let Some((name, value)) = chosen else { return Ok(own) };
    if value != "base" {
        let path: Vec<&str> = value.rsplit('/').take(2).collect();
        return match path[..] {
            [name, owner] => Ok(RepoSlug { owner: owner.to_owned(), name: name.to_owned() }),
            _ => Err(Failure::new(Code::RemoteUnsupported, format!("cannot read '{value}' of '{name}' as owner/name"))),
        };
    }
    let remote = name.trim_start_matches("remote.").trim_end_matches(".gh-resolved");
    let found = repository.find_remote(remote);
    let found = found.or_fail(Code::RemoteUnsupported, || format!("cannot find the remote '{remote}'"))?;
    let url = found.url().or_fail(Code::RemoteUnsupported, || format!("cannot read the address of '{remote}'"))?;
    Address::parse(url)?.slug(api)
}

/// The host of clone addresses that belongs to an API's address.
fn web_host(api: &str) -> String {
    let rest = api.split_once("://").map_or(api, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or(rest).to_ascii_lowercase();
    match host.strip_prefix("api.") {
        // api.github.com and api.SUBDOMAIN.ghe.com; an Enterprise server has its API below /api/v3 of its own name.
        Some(web) if !rest.contains("/api/") => web.to_owned(),
        _ => host,
    }
}

/// The branches a remote has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heads(Vec<(String, Oid)>);

impl Heads {
    /// Every commit a branch of the remote points to.
    pub(crate) fn oids(&self) -> impl Iterator<Item = Oid> {
        self.0.iter().filter(|(name, _)| name.starts_with("refs/heads/")).map(|(_, oid)| *oid)
    }

    pub(crate) fn branch(&self, short: &str) -> Option<Oid> {
        let name = format!("refs/heads/{short}");
        self.0.iter().find(|(found, _)| *found == name).map(|(_, oid)| *oid)
    }
}

/// Asks what the remote has.
pub(crate) async fn heads(line: &mut Line) -> Result<Heads> {
    Ok(Heads(line.advertise().await?.refs))
}

/// Pushes one branch under its own name. Never with force: what the remote has must be in what we have, and the server is
/// told which commit it is expected to replace.
pub(crate) async fn push(line: &Line, workspace: &Workspace, branch: &str) -> Result<()> {
    let name = format!("refs/heads/{branch}");
    let mut line = line.clone();
    let there = line.advertise().await?;
    let (commands, wanted) = {
        let repository = workspace.shared()?;
        let new = repository.find_reference(&name).and_then(|found| found.peel_to_commit()).map(|commit| commit.id());
        let new = new.or_fail(Code::PushFailed, || format!("cannot find the branch '{branch}'"))?;
        let old = there.refs.iter().find(|(found, _)| *found == name).map_or(Oid::ZERO_SHA1, |(_, oid)| *oid);
        if old == new {
            return Ok(());
        }
        if !old.is_zero() && !repository.graph_descendant_of(new, old).unwrap_or(false) {
            return Err(rejected(branch, "non-fast-forward"));
        }
        let capabilities = ["report-status", "side-band-64k", "quiet"].into_iter().filter(|name| there.can(name));
        let capabilities: Vec<&str> = capabilities.collect();
        let command = format!("{old} {new} {name}\0 {} agent=pi-subagent", capabilities.join(" "));
        let mut commands = shallow(workspace);
        commands.extend(pkt::line(command.as_bytes()));
        commands.extend(pkt::FLUSH);
        (commands, wanted(&repository, new, &there.refs))
    };
    let mut args = vec!["pack-objects", "--revs", "--stdout", "--thin", "--quiet"];
    if there.can("ofs-delta") {
        args.push("--delta-base-offset");
    }
    let pack = Git::at(&workspace.root).stream(&args, wanted.into_bytes())?;
    let answer = line.send(commands, pack).await?;
    match pkt::report(&answer, there.can("side-band-64k"), &name) {
        Some(Verdict::Accepted) => {
            remember(workspace, branch);
            Ok(())
        }
        Some(Verdict::Refused(reason)) => Err(rejected(branch, &reason)),
        None => Err(Failure::new(Code::Network, format!("the report about '{branch}' was cut short"))),
    }
}

/// The commits to send and, with a caret, those the remote has already.
fn wanted(repository: &Repository, new: Oid, there: &[(String, Oid)]) -> String {
    let mut wanted = format!("{new}\n");
    for (_, oid) in there {
        if repository.odb().is_ok_and(|odb| odb.exists(*oid)) {
            wanted.push_str(&format!("^{oid}\n"));
        }
    }
    wanted
}

/// Where our history was cut off; a server that does not know would look for what is before.
fn shallow(workspace: &Workspace) -> Vec<u8> {
    let text = std::fs::read_to_string(workspace.common.join("shallow")).unwrap_or_default();
    text.lines().flat_map(|oid| pkt::line(format!("shallow {oid}").as_bytes())).collect()
}

/// As `git push` does: what is known of the remote's branch. Nothing depends on it.
fn remember(workspace: &Workspace, branch: &str) {
    let Ok(repository) = workspace.shared() else { return };
    let Ok(tip) = repository.find_reference(&format!("refs/heads/{branch}")).and_then(|found| found.peel_to_commit())
    else {
        return;
    };
    let _ = repository.reference(&format!("refs/remotes/origin/{branch}"), tip.id(), true, "pi-subagent: push");
}

fn rejected(branch: &str, reason: &str) -> Failure {
    let failure =
        Failure::new(Code::PushRejected, format!("cannot push '{branch}': the remote refused it: {}", cause(reason)));
    if reason.contains("non-fast-forward") || reason.contains("fetch first") {
        return failure
            .hint("the remote branch has commits that are not here; merge them in the worktree, then finish");
    }
    if reason.contains("workflow") {
        return failure.hint("the token needs Workflows: read and write to change files below .github/workflows");
    }
    failure.hint("change what the remote refuses in the worktree, then finish")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_without_its_password() {
        let address = Address::parse("https://me:secret@GitHub.com:443/o/r.git/").unwrap();
        assert_eq!(address, Address { host: "github.com".into(), path: "o/r.git".into(), user: Some("me".into()) });
        let error = Address::parse("ssh://git:secret@example.org/o/r").unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        for bad in ["/srv/r.git", "file:///srv/r", "git@github.com:o/r", "https://github.com"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_api_belongs_to_the_host_of_its_repositories() {
        let slug = |url: &str, api: &str| {
            Address::parse(url).unwrap().slug(api).map(|slug| format!("{}/{}", slug.owner, slug.name))
        };
        assert_eq!(slug("https://github.com/o/r.git", "https://api.github.com").unwrap(), "o/r");
        assert_eq!(slug("https://ghe.example.org/o/r", "https://ghe.example.org/api/v3").unwrap(), "o/r");
        assert_eq!(slug("https://x.ghe.com/o/r", "https://api.x.ghe.com").unwrap(), "o/r");
        assert_eq!(slug("https://gitlab.com/o/r", "https://api.github.com").unwrap_err().code, Code::RemoteUnsupported);
        assert!(slug("https://github.com/o/r/x", "https://api.github.com").is_err());
    }
}
