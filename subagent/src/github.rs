//! GitHub's API: what the token may do, and one pull request for a branch, found before it is made and never made twice.
//! octocrab over the one HTTP client. Nothing here repeats a request that creates something without looking first.

use std::time::Duration;

use git2::Oid;
use octocrab::Octocrab;
use serde_json::{Value, json};

use crate::failure::{Code, Failure, OrFail, Result};
use crate::git::Credential;
use crate::http::Http;
use crate::remote::RepoSlug;
use crate::report::PrInfo;
use crate::stream::clip;

/// One repository's API.
#[derive(Clone)]
pub(crate) struct GitHub {
    api: Octocrab,
    http: Http,
    host: String,
    /// Where pull requests are opened.
    slug: RepoSlug,
    /// Whose repository has the branches.
    owner: String,
}

/// What a pull request should be.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) head: String,
    pub(crate) base: String,
    pub(crate) title: String,
    pub(crate) body: String,
    pub(crate) draft: bool,
}

enum Method<'a> {
    Get,
    Post(&'a Value),
    Patch(&'a Value),
}

/// An answer of the API.
struct Answer {
    status: u16,
    body: Value,
    /// Seconds until it makes sense to ask again, if the answer says so.
    wait: Option<u64>,
    sso: Option<String>,
    rights: Option<String>,
}

/// For one request; the tunnel through the proxy has no limit of its own.
const ANSWER: Duration = Duration::from_secs(60);
/// Waits between tries at a server in trouble, and the longest wait for a rate limit.
const BACKOFF: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(10)];
const RATE_PATIENCE: u64 = 90;

impl GitHub {
    pub(crate) fn new(http: &Http, api: &str, credential: &Credential, slug: RepoSlug, owner: String) -> Result<Self> {
        let host = api.split_once("://").map_or(api, |(_, rest)| rest).split('/').next().unwrap_or(api).to_owned();
        let broken = || format!("cannot use '{api}' of GITHUB_API_URL");
        if !api.starts_with("https://") {
            return Err(Failure::new(Code::Usage, format!("{}: it must start with https://", broken())));
        }
        let builder = Octocrab::builder().base_uri(api).or_fail(Code::Usage, broken)?;
        let builder = builder.personal_token(credential.token.expose().to_owned());
        let api = builder
            .build_with_reqwest(http.client.clone())
            .or_fail(Code::Internal, || "cannot set up the API".into())?;
        Ok(GitHub { api, http: http.clone(), host, slug, owner })
    }

    fn path(&self, rest: &str) -> String {
        format!("/repos/{}/{}{rest}", encode(&self.slug.owner), encode(&self.slug.name))
    }

    /// Whether branches and pull requests are in two repositories.
    pub(crate) fn is_fork(&self) -> bool {
        !self.owner.eq_ignore_ascii_case(&self.slug.owner)
    }

    /// A branch's commit.
    pub(crate) async fn branch(&self, name: &str) -> Result<Oid> {
        let answer = self.patient(|| self.get(self.path(&format!("/branches/{}", encode(name))))).await?;
        if answer.status == 404 {
            let text = format!("cannot open a pull request against '{name}': '{}' has no such branch", self.name());
            return Err(Failure::new(Code::BaseNotOnRemote, text)
                .hint("start from a branch that it has, or name one with --base"));
        }
        let oid = answer.body["commit"]["sha"].as_str().and_then(|oid| Oid::from_str(oid).ok());
        oid.filter(|_| answer.status == 200).ok_or_else(|| self.refused(&answer, "cannot read the base branch"))
    }

    fn name(&self) -> String {
        format!("{}/{}", self.slug.owner, self.slug.name)
    }

    /// Fails, before anything is spent, if the token could not open a pull request against `base`. Asks for one of a branch
    /// into itself: it can never come to be, and the refusal tells a missing right from a senseless request.
    pub(crate) async fn may_open(&self, base: &str) -> Result<()> {
        let about = self.patient(|| self.get(self.path(""))).await?;
        if about.status != 200 {
            return Err(self.refused(&about, &format!("cannot read '{}'", self.name())));
        }
        if about.body["archived"].as_bool() == Some(true) {
            return Err(Failure::new(
                Code::PrForbidden,
                format!("cannot open a pull request: '{}' is archived", self.name()),
            ));
        }
        let senseless = json!({"title": "pi-subagent: right to open pull requests", "head": base, "base": base});
        let answer = self.patient(|| self.post(self.path("/pulls"), &senseless)).await?;
        match answer.status {
            422 => Ok(()),
            // It must not exist, but if a server made one, there is no reason to stop.
            201 => Ok(()),
            _ => Err(self.refused(&answer, "cannot open pull requests")),
        }
    }

    /// The open pull request of a branch into a base.
    pub(crate) async fn find(&self, head: &str, base: &str) -> Result<Option<PrInfo>> {
        let head = format!("{}:{head}", self.owner);
        let query = format!("/pulls?state=open&head={}&base={}&per_page=10", encode(&head), encode(base));
        let answer = self.patient(|| self.get(self.path(&query))).await?;
        if answer.status != 200 {
            return Err(self.refused(&answer, "cannot list pull requests"));
        }
        Ok(answer.body.as_array().and_then(|list| list.iter().find_map(|pr| pull_request(pr, true))))
    }

    /// The commit that a pull request brought in, if it was merged: also by a squash, after which no branch has it.
    pub(crate) async fn merged(&self, number: u64) -> Option<Oid> {
        let answer = self.patient(|| self.get(self.path(&format!("/pulls/{number}")))).await.ok()?;
        let merged = answer.status == 200 && answer.body["merged"] == true;
        answer.body["head"]["sha"].as_str().filter(|_| merged).and_then(|oid| Oid::from_str(oid).ok())
    }

    /// Finds the pull request or opens it. One that exists gets the new text; only a failure to do that is not one.
    pub(crate) async fn open(&self, wanted: &Wanted) -> Result<PrInfo> {
        if let Some(found) = self.find(&wanted.head, &wanted.base).await? {
            let text = json!({"title": wanted.title, "body": wanted.body});
            let _ = self.ask(Method::Patch(&text), self.path(&format!("/pulls/{}", found.number))).await;
            return Ok(found);
        }
        let head = if self.is_fork() { format!("{}:{}", self.owner, wanted.head) } else { wanted.head.clone() };
        let mut draft = wanted.draft;
        let mut waits = BACKOFF.iter();
        loop {
            let body = json!({
                "title": wanted.title, "head": head, "base": wanted.base, "body": wanted.body, "draft": draft,
            });
            let answer = self.post(self.path("/pulls"), &body).await;
            let failure = match answer {
                Ok(answer) if answer.status == 201 => {
                    if let Some(made) = pull_request(&answer.body, false) {
                        return Ok(made);
                    }
                    Failure::new(Code::PrFailed, "cannot understand GitHub's answer about the new pull request")
                }
                Ok(answer) if answer.status == 422 => {
                    let said = words(&answer.body);
                    if draft && said.to_lowercase().contains("draft") {
                        draft = false;
                        continue;
                    }
                    if !said.contains("already exists") {
                        return Err(self.unprocessable(&said, wanted));
                    }
                    Failure::new(Code::PrFailed, format!("cannot open the pull request: {said}"))
                }
                Ok(answer) => {
                    let failure = self.refused(&answer, "cannot open the pull request");
                    match failure.code {
                        Code::GithubDown => failure,
                        Code::RateLimited if answer.wait.is_some_and(|wait| wait <= RATE_PATIENCE) => {
                            tokio::time::sleep(Duration::from_secs(answer.wait.unwrap_or(1).max(1))).await;
                            failure
                        }
                        _ => return Err(failure),
                    }
                }
                Err(failure) => failure,
            };
            // It may have been made although the answer was lost.
            let Some(wait) = waits.next() else { return Err(failure) };
            tokio::time::sleep(*wait).await;
            if let Some(found) = self.find(&wanted.head, &wanted.base).await? {
                return Ok(found);
            }
        }
    }

    fn unprocessable(&self, said: &str, wanted: &Wanted) -> Failure {
        let failure = Failure::new(Code::PrFailed, format!("cannot open the pull request: {said}"));
        if said.contains("No commits between") {
            return failure.hint(format!("everything on '{}' is in '{}' already", wanted.head, wanted.base));
        }
        if said.contains("base") {
            return failure.hint(format!("push the branch '{}' to the remote, then finish", wanted.base));
        }
        failure
    }

    /// Tries again while the server is in trouble or asks to wait a little. For requests that create nothing.
    async fn patient<F: Future<Output = Result<Answer>>>(&self, ask: impl Fn() -> F) -> Result<Answer> {
        let mut waits = BACKOFF.iter();
        loop {
            let answer = ask().await;
            let again = match &answer {
                Ok(answer) if answer.status >= 500 => Some(None),
                Ok(answer) if limited(answer) => answer.wait.filter(|wait| *wait <= RATE_PATIENCE).map(Some),
                Err(failure) if failure.code == Code::Network && !failure.message.contains("the proxy answered") => {
                    Some(None)
                }
                _ => None,
            };
            let (Some(wait), Some(pause)) = (again, waits.next()) else { return answer };
            tokio::time::sleep(wait.map_or(*pause, |seconds| Duration::from_secs(seconds.max(1)))).await;
        }
    }

    async fn get(&self, path: String) -> Result<Answer> {
        self.ask(Method::Get, path).await
    }

    async fn post(&self, path: String, body: &Value) -> Result<Answer> {
        self.ask(Method::Post(body), path).await
    }

    async fn ask(&self, method: Method<'_>, path: String) -> Result<Answer> {
        let whole = async {
            let reply = match method {
                Method::Get => self.api._get(path).await,
                Method::Post(body) => self.api._post(path, Some(body)).await,
                Method::Patch(body) => self.api._patch(path, Some(body)).await,
            }?;
            let header =
                |name: &str| reply.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let exhausted = header("x-ratelimit-remaining").as_deref() == Some("0");
            let reset = header("x-ratelimit-reset").filter(|_| exhausted).and_then(|at| at.parse::<u64>().ok());
            let wait = header("retry-after").and_then(|seconds| seconds.parse().ok());
            let mut answer = Answer {
                status: reply.status().as_u16(),
                body: Value::Null,
                wait: wait.or_else(|| Some(reset?.saturating_sub(crate::store::now() / 1000))),
                sso: header("x-github-sso"),
                rights: header("x-accepted-github-permissions"),
            };
            let text = self.api.body_to_string(reply).await?;
            answer.body = serde_json::from_str(&text).unwrap_or_else(|_| json!({"message": text}));
            Ok::<_, octocrab::Error>(answer)
        };
        match tokio::time::timeout(ANSWER, whole).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.http.explain(&self.host, &error).await),
            Err(_) => Err(Failure::new(Code::Network, format!("cannot reach '{}': no answer", self.host))),
        }
    }

    /// Any refusal in words that say what to change.
    fn refused(&self, answer: &Answer, what: &str) -> Failure {
        let said = words(&answer.body);
        let failure = |code| Failure::new(code, format!("{what}: GitHub answered {} ({said})", answer.status));
        match answer.status {
            401 => {
                failure(Code::TokenRejected).hint("the token may have expired; make a new one and start a new session")
            }
            _ if limited(answer) => {
                let when = answer
                    .wait
                    .map_or("later".into(), |wait| format!("in {}", crate::limits::spell(Duration::from_secs(wait))));
                failure(Code::RateLimited).hint(format!("GitHub limits how much it is asked; try again {when}"))
            }
            403 => match (&answer.sso, &answer.rights) {
                (Some(sso), _) => {
                    let url = sso.split("url=").nth(1).unwrap_or(sso).to_owned();
                    failure(Code::PrForbidden).hint(format!("the organization wants the token authorized: {url}"))
                }
                (None, Some(rights)) => {
                    failure(Code::PrForbidden).hint(format!("the token lacks a permission; GitHub names: {rights}"))
                }
                (None, None) if self.is_fork() => failure(Code::PrForbidden).hint(format!(
                    "a fine-grained token cannot open pull requests in the repository of '{}'; use a classic one",
                    self.slug.owner
                )),
                (None, None) => {
                    failure(Code::PrForbidden).hint("the token needs Pull requests: read and write on this repository")
                }
            },
            404 => failure(Code::RepositoryNotFound)
                .hint("add this repository to the token, with Contents and Pull requests: read and write"),
            500.. => failure(Code::GithubDown).hint("nothing is lost; try again later"),
            _ => failure(Code::PrFailed),
        }
    }
}

fn limited(answer: &Answer) -> bool {
    matches!(answer.status, 403 | 429)
        && (answer.wait.is_some() || words(&answer.body).to_lowercase().contains("rate limit"))
}

/// What GitHub says, with the details it hides in a list.
fn words(body: &Value) -> String {
    let mut said = vec![body["message"].as_str().unwrap_or_default().to_owned()];
    for error in body["errors"].as_array().into_iter().flatten() {
        said.push(match (error["message"].as_str(), error["field"].as_str(), error["code"].as_str()) {
            (Some(message), _, _) => message.to_owned(),
            (None, Some(field), Some(code)) => format!("{field} is {code}"),
            _ => error.as_str().unwrap_or_default().to_owned(),
        });
    }
    said.retain(|part| !part.is_empty());
    clip(&said.join(": ").replace('\n', " "), 300)
}

fn pull_request(value: &Value, existed: bool) -> Option<PrInfo> {
    let number = value["number"].as_u64()?;
    let draft = value["draft"].as_bool().unwrap_or(false);
    Some(PrInfo { url: value["html_url"].as_str()?.to_owned(), number, draft, existed })
}

/// Percent-encodes what is not allowed everywhere in a path or a query.
fn encode(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
