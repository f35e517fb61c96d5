//! api.github.com: the few calls that a pull request needs, checked against the real bare repositories, and the replies that
//! the real API gives when it refuses.

use std::io;

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::World;
use crate::http::{self, Answer, Asked, Body};
use crate::pulls::{self, Bare, Pull};
use crate::record;
use crate::scenario::{Access, GitHub, Reply, Scenario};

/// A status and its JSON.
type Said = (u16, Value);

pub(crate) async fn answer(world: &World, scenario: &Scenario, asked: Asked<'_>, request: Request<Incoming>) -> Answer {
    let github = &scenario.github;
    let (head, body) = request.into_parts();
    let presented = http::presented(&head.headers);
    let auth = http::label(presented.as_deref(), std::slice::from_ref(&github.token));
    let sent: Value = serde_json::from_slice(&http::read(body).await?).unwrap_or(Value::Null);
    let fault = scenario.fault(&world.faults, "api.github.com", &asked.method, &asked.path);
    let response = if !head.headers.contains_key("user-agent") {
        plain(403, "Request forbidden by administrative rules. Please make sure your request has a User-Agent header")
    } else if let Some(reply) = fault.filter(|reply| *reply != Reply::Lost) {
        faulty(reply)
    } else if auth != "token ok" {
        say(error(401, "Bad credentials", "rest"))
    } else {
        call(world, github, &asked, &sent).await
    };
    let status =
        if fault == Some(Reply::Cut) || fault == Some(Reply::Stall) { 499 } else { response.status().as_u16() };
    asked.record(world, StatusCode::from_u16(status).unwrap_or_default(), auth, sent);
    match fault {
        Some(Reply::Cut | Reply::Lost) => Err(io::Error::other("cut")),
        Some(Reply::Stall) => std::future::pending().await,
        _ => Ok(response),
    }
}

async fn call(world: &World, github: &GitHub, asked: &Asked<'_>, sent: &Value) -> Response<Body> {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let method = asked.method.as_str();
    if let ("GET", ["user"]) = (method, parts.as_slice()) {
        return say((200, pulls::user(&github.login)));
    }
    let ["repos", owner, name, rest @ ..] = parts.as_slice() else { return say(not_found()) };
    let repo = format!("{owner}/{name}");
    let Some(bare) = Bare::find(&world.repos, &repo).filter(|_| github.contents > Access::None || github.public) else {
        return say(not_found());
    };
    match (method, rest) {
        ("GET", []) => say((200, repository(&repo, &bare, github).await)),
        ("GET", ["branches", ..]) => {
            let branch = rest[1..].join("/");
            match bare.tip(&branch).await {
                Some(sha) => say((200, json!({ "name": branch, "commit": { "sha": sha }, "protected": false }))),
                None => say(error(404, "Branch not found", "rest/branches/branches#get-a-branch")),
            }
        }
        (_, ["pulls" | "issues", ..]) => {
            let wanted = if method == "GET" { Access::Read } else { Access::Write };
            if github.pulls < wanted {
                return faulty(Reply::Forbidden);
            }
            pull_call(world, github, &bare, &repo, (method, &rest[1..], query), sent).await
        }
        _ => say(not_found()),
    }
}

async fn pull_call(
    world: &World,
    github: &GitHub,
    bare: &Bare,
    repo: &str,
    (method, rest, query): (&str, &[&str], &str),
    sent: &Value,
) -> Response<Body> {
    let number = rest.first().and_then(|number| number.parse::<u64>().ok());
    let text = |key: &str| sent[key].as_str().map(str::to_owned);
    let one = match (method, rest) {
        ("GET", []) => {
            let mut shown = Vec::new();
            for pull in world.pulls.find(repo, |pull| listed(pull, query)) {
                shown.push(show(&pull, github, bare).await);
            }
            return say((200, shown.into()));
        }
        ("POST", []) => match create(world, bare, repo, sent).await {
            Ok(pull) => return say((201, show(&pull, github, bare).await)),
            Err(refused) => return say(refused),
        },
        ("GET", [_]) => world.pulls.find(repo, |pull| Some(pull.number) == number).pop(),
        ("PATCH", [_]) => world.pulls.change(repo, number.unwrap_or(0), |pull| {
            pull.title = text("title").unwrap_or_else(|| pull.title.clone());
            pull.body = text("body").or(pull.body.take());
            pull.state = text("state").unwrap_or_else(|| pull.state.clone());
        }),
        ("POST", [_, "labels"]) => world.pulls.change(repo, number.unwrap_or(0), |pull| {
            pull.labels
                .extend(sent["labels"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
        }),
        _ => None,
    };
    match one {
        Some(pull) if rest.len() == 2 => say((200, show(&pull, github, bare).await["labels"].clone())),
        Some(pull) => say((200, show(&pull, github, bare).await)),
        None => say(not_found()),
    }
}

async fn create(world: &World, bare: &Bare, repo: &str, sent: &Value) -> Result<Pull, Said> {
    let text = |key: &str| sent[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let (Some(title), Some(head), Some(base)) = (text("title"), text("head"), text("base")) else {
        return Err(error(422, "Invalid request.\n\n\"base\", \"head\" weren't supplied.", CREATE));
    };
    let owner = repo.split('/').next().unwrap_or("");
    let head = head.strip_prefix(&format!("{owner}:")).unwrap_or(&head).to_owned();
    if bare.tip(&base).await.is_none() {
        return Err(invalid(json!({ "resource": "PullRequest", "field": "base", "code": "invalid" })));
    }
    if bare.tip(&head).await.is_none() {
        return Err(invalid(json!({ "resource": "PullRequest", "field": "head", "code": "invalid" })));
    }
    let custom = |message: String| invalid(json!({ "resource": "PullRequest", "code": "custom", "message": message }));
    if bare.ahead(&base, &head).await == 0 {
        return Err(custom(format!("No commits between {base} and {head}")));
    }
    let exists = format!("A pull request already exists for {owner}:{head}.");
    let pull = Pull {
        number: 0,
        repo: repo.to_owned(),
        head,
        base,
        title,
        body: text("body"),
        draft: sent["draft"] == true,
        state: "open".into(),
        url: String::new(),
        labels: Vec::new(),
    };
    world.pulls.open_one(pull).ok_or_else(|| custom(exists))
}

fn listed(pull: &Pull, query: &str) -> bool {
    query.split('&').filter_map(|pair| pair.split_once('=')).all(|(key, value)| {
        let value = decode(value);
        match key {
            "state" => value == "all" || value == pull.state,
            "base" => value == pull.base,
            "head" => value
                .split_once(':')
                .is_some_and(|(owner, branch)| pull.repo.split('/').next() == Some(owner) && branch == pull.head),
            _ => true,
        }
    }) && (query.contains("state=") || pull.state == "open")
}

/// Undoes percent encoding.
fn decode(text: &str) -> String {
    let (mut bytes, mut left) = (Vec::new(), text.as_bytes());
    while let Some((&first, rest)) = left.split_first() {
        let hex = rest.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                left = &rest[2..];
            }
            _ => {
                bytes.push(if first == b'+' { b' ' } else { first });
                left = rest;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn show(pull: &Pull, github: &GitHub, bare: &Bare) -> Value {
    let tips = (bare.tip(&pull.head).await.unwrap_or_default(), bare.tip(&pull.base).await.unwrap_or_default());
    pulls::shown(pull, &github.login, tips)
}

async fn repository(repo: &str, bare: &Bare, github: &GitHub) -> Value {
    let (owner, name) = repo.split_once('/').unwrap_or(("", repo));
    let push = github.contents == Access::Write;
    json!({
        "id": 1_296_269, "node_id": "MDEwOlJlcG9zaXRvcnkxMjk2MjY5", "name": name, "full_name": repo,
        "owner": pulls::user(owner), "private": !github.public, "fork": false, "archived": false,
        "html_url": format!("https://github.com/{repo}"), "url": format!("https://api.github.com/repos/{repo}"),
        "clone_url": format!("https://github.com/{repo}.git"), "default_branch": bare.default_branch().await,
        "permissions": { "admin": false, "maintain": false, "push": push, "triage": push, "pull": true },
    })
}

const CREATE: &str = "rest/pulls/pulls#create-a-pull-request";

fn error(status: u16, message: &str, page: &str) -> Said {
    let page = format!("https://docs.github.com/{page}");
    (status, json!({ "message": message, "documentation_url": page, "status": status.to_string() }))
}

fn invalid(what: Value) -> Said {
    let (status, mut body) = error(422, "Validation Failed", CREATE);
    body["errors"] = json!([what]);
    (status, body)
}

fn not_found() -> Said {
    error(404, "Not Found", "rest")
}

fn say((status, body): Said) -> Response<Body> {
    limits(http::reply(StatusCode::from_u16(status).unwrap_or_default(), &body), 4999)
}

/// The headers that every reply of the API carries.
fn limits(response: Response<Body>, remaining: u32) -> Response<Body> {
    let reset = (record::now() / 1_000_000 + 3600).to_string();
    http::with(
        response,
        &[
            ("x-github-media-type", "github.v3; format=json"),
            ("x-github-request-id", "C0DE:1234:5678:9ABC:DEF0"),
            ("x-ratelimit-limit", "5000"),
            ("x-ratelimit-remaining", &remaining.to_string()),
            ("x-ratelimit-used", &(5000 - remaining).to_string()),
            ("x-ratelimit-reset", &reset),
            ("x-ratelimit-resource", "core"),
        ],
    )
}

fn plain(status: u16, text: &str) -> Response<Body> {
    let mut response = Response::new(http::bytes(text.to_owned()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    http::with(response, &[("content-type", "text/html; charset=utf-8")])
}

const SECONDARY: &str = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.";
const UNICORN: &str = "<!DOCTYPE html>\n<html><head><title>Unicorn! &middot; GitHub</title></head><body>\
    <p><strong>We had issues producing the response to your request.</strong></p></body></html>\n";

fn faulty(reply: Reply) -> Response<Body> {
    let limits_page = "rest/using-the-rest-api/rate-limits-for-the-rest-api";
    match reply {
        Reply::BadCredentials => say(error(401, "Bad credentials", "rest")),
        Reply::Forbidden => http::with(
            say(error(403, "Resource not accessible by personal access token", CREATE)),
            &[("x-accepted-github-permissions", "pull_requests=write")],
        ),
        Reply::RateLimited => {
            let (status, body) = error(403, "API rate limit exceeded for user ID 583231.", limits_page);
            limits(http::reply(StatusCode::from_u16(status).unwrap_or_default(), &body), 0)
        }
        Reply::SecondaryLimited => http::with(say(error(403, SECONDARY, limits_page)), &[("retry-after", "1")]),
        Reply::TooMany => http::with(say(error(429, SECONDARY, limits_page)), &[("retry-after", "1")]),
        Reply::Invalid => say(invalid(
            json!({ "resource": "PullRequest", "code": "custom", "message": "Draft pull requests are not supported in this repository." }),
        )),
        Reply::Broken => plain(500, UNICORN),
        Reply::BadGateway => plain(502, UNICORN),
        Reply::NotFound | Reply::Cut | Reply::Lost | Reply::Stall => say(not_found()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_filtered_by_head_base_and_state() {
        let pull = Pull {
            number: 1,
            repo: "octo/app".into(),
            head: "subagent/x".into(),
            base: "feature/api".into(),
            title: String::new(),
            body: None,
            draft: false,
            state: "open".into(),
            url: String::new(),
            labels: Vec::new(),
        };
        for query in ["", "state=all", "head=octo%3Asubagent%2Fx&base=feature/api&state=open&per_page=1"] {
            assert!(listed(&pull, query), "{query}");
        }
        for query in ["state=closed", "head=subagent/x", "head=other:subagent/x", "base=main", "head=octo:x"] {
            assert!(!listed(&pull, query), "{query}");
        }
    }

    #[test]
    fn percent_signs_are_undone_and_a_bad_one_stays() {
        assert_eq!(decode("a%2Fb+c%zz%"), "a/b c%zz%");
    }
}
