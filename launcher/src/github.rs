//! What a token may do on a repository of GitHub, found out without changing anything: asked from inside a trial session, so that
//! the way there is a session's own. Pure but for the asking.

use crate::config::Config;
use crate::doctor::Finding;
use crate::inputs;
use crate::repo::GitFacts;
use crate::secret::Secret;
use crate::trial::{Answer, Trial};

/// A repository's owner and name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Slug {
    owner: String,
    name: String,
}

impl Slug {
    /// The one that `origin` leads to, if it is on this configuration's GitHub.
    pub(crate) fn of(git: &GitFacts, config: &Config) -> Option<Slug> {
        let host = inputs::github(config).ok()?.0;
        Slug::parse(git.settings.get("remote.origin.url")?, &host)
    }

    fn parse(url: &str, host: &str) -> Option<Slug> {
        let path = match url.split_once("://") {
            Some(("https" | "ssh", rest)) => {
                let (server, path) = rest.split_once('/')?;
                let server = server.rsplit('@').next()?.split(':').next()?;
                server.eq_ignore_ascii_case(host).then_some(path)?
            }
            Some(_) => return None,
            None => {
                let (server, path) = url.split_once(':')?;
                server.rsplit('@').next()?.eq_ignore_ascii_case(host).then_some(path)?
            }
        };
        let path = path.trim_matches('/');
        let (owner, name) = path.strip_suffix(".git").unwrap_or(path).split_once('/')?;
        let good = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) && part != ".."
        };
        (good(owner) && good(name)).then(|| Slug { owner: owner.to_owned(), name: name.to_owned() })
    }
}

/// Asks GitHub, in a way that cannot succeed in changing anything, what the token may do.
pub(crate) fn check(trial: &Trial, config: &Config, slug: &Slug, token: &Secret) -> Vec<Finding> {
    let Ok((host, _)) = inputs::github(config) else { return Vec::new() };
    let api = config.setting("GITHUB_API_URL").unwrap_or("https://api.github.com").trim_end_matches('/');
    let Slug { owner, name } = slug;
    let repository = format!("{owner}/{name}");
    let basic = format!("Authorization: Basic {}", base64(format!("x-access-token:{}", token.expose()).as_bytes()));
    let contents = trial.fetch(
        &format!("https://{host}/{owner}/{name}.git/info/refs?service=git-receive-pack"),
        Some(&basic),
        None,
    );
    let bearer = format!("Authorization: Bearer {}", token.expose());
    // No branch has an empty name: with the right to open pull requests this is invalid, without it forbidden.
    let body = r#"{"title":"","head":"","base":""}"#;
    let pulls = trial.fetch(&format!("{api}/repos/{owner}/{name}/pulls"), Some(&bearer), Some(body));
    vec![judge_contents(&repository, contents), judge_pulls(&repository, pulls)]
}

fn judge_contents(repository: &str, answer: anyhow::Result<Answer>) -> Finding {
    const WHAT: &str = "token: push";
    let fix = "give the token Contents: read and write, on this repository";
    match answer.map(|answer| answer.status) {
        Ok(200) => Finding::good(WHAT, format!("may push to {repository}")),
        Ok(401) => Finding::failed(WHAT, "GitHub does not know the token, or it has expired", "make a new one"),
        Ok(403) => Finding::failed(WHAT, format!("may not push to {repository}"), fix),
        Ok(404) => Finding::failed(WHAT, format!("cannot see {repository}"), fix),
        Ok(status) => Finding::warning(WHAT, format!("GitHub's answer is unclear: {status}"), "try again later"),
        Err(e) => Finding::warning(WHAT, format!("{e:#}"), "pi-docker denied"),
    }
}

fn judge_pulls(repository: &str, answer: anyhow::Result<Answer>) -> Finding {
    const WHAT: &str = "token: pulls";
    let fix = "give the token Pull requests: read and write, on this repository";
    match answer {
        Ok(Answer { status: 422, .. }) => Finding::good(WHAT, format!("may open pull requests in {repository}")),
        Ok(Answer { status: 401, .. }) => {
            Finding::failed(WHAT, "GitHub does not know the token, or it has expired", "make a new one")
        }
        Ok(Answer { status: 403, body }) if body.contains("rate limit") => {
            Finding::warning(WHAT, "GitHub wants fewer requests", "try again later")
        }
        Ok(Answer { status: 403 | 404, .. }) => {
            Finding::failed(WHAT, format!("may not open pull requests in {repository}"), fix)
        }
        Ok(Answer { status, .. }) => {
            Finding::warning(WHAT, format!("GitHub's answer is unclear: {status}"), "try again later")
        }
        Err(e) => Finding::warning(WHAT, format!("{e:#}"), "pi-docker denied"),
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i > chunk.len() { '=' } else { char::from(letter) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_on_github_is_an_owner_and_a_name() {
        for url in [
            "https://github.com/me/app",
            "https://github.com/me/app.git",
            "https://token@github.com/me/app.git/",
            "git@github.com:me/app.git",
            "ssh://git@github.com/me/app.git",
            "ssh://git@GitHub.com:22/me/app",
        ] {
            assert_eq!(Slug::parse(url, "github.com"), Some(Slug { owner: "me".into(), name: "app".into() }), "{url}");
        }
        for url in [
            "https://gitlab.com/me/app",
            "/srv/app.git",
            "file:///x/y",
            "git@github.com:app",
            "https://github.com/a/b/c",
            "https://github.com/../x",
        ] {
            assert_eq!(Slug::parse(url, "github.com"), None, "{url}");
        }
    }

    #[test]
    fn base64_is_what_everybody_means_by_it() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn an_invalid_pull_request_tells_a_right_from_its_lack() {
        let pulls =
            |status, body: &str| format!("{:?}", judge_pulls("me/app", Ok(Answer { status, body: body.into() })));
        assert!(pulls(422, "").contains("Good") && pulls(403, "Resource not accessible").contains("Failed"));
        assert!(pulls(403, "API rate limit exceeded").contains("Warning") && pulls(502, "").contains("Warning"));
    }
}
