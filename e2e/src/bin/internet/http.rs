//! From a name to the part that plays it, and the few things that all parts do with requests and answers.

use std::convert::Infallible;
use std::io;

use base64::Engine;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap};
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::record::{self, Entry};
use crate::scenario::Scenario;
use crate::{World, anthropic, git, github, npm, oauth};

pub(crate) type Body = BoxBody<Bytes, io::Error>;

/// An error here closes the connection without an answer.
pub(crate) type Answer = Result<Response<Body>, io::Error>;

const MAX_BODY: usize = 64 << 20;

/// What is known of a request before its body is read.
pub(crate) struct Asked<'a> {
    pub(crate) ts: u64,
    pub(crate) sni: Option<&'a str>,
    pub(crate) host: String,
    pub(crate) method: String,
    pub(crate) path: String,
}

impl Asked<'_> {
    /// Writes the request down with the answer's status.
    pub(crate) fn record(&self, world: &World, status: StatusCode, auth: &str, body: Value) {
        world.record.request(&Entry {
            ts: self.ts,
            host: &self.host,
            sni: self.sni.filter(|sni| *sni != self.host),
            method: &self.method,
            path: &self.path,
            status: status.as_u16(),
            auth,
            body,
        });
    }
}

pub(crate) async fn answer(world: &World, sni: Option<&str>, request: Request<Incoming>) -> Answer {
    let header = request.headers().get(HOST).and_then(|value| value.to_str().ok()).unwrap_or("");
    let asked = Asked {
        ts: record::now(),
        sni,
        host: header.strip_suffix(":443").unwrap_or(header).to_ascii_lowercase(),
        method: request.method().to_string(),
        path: request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned(),
    };
    let scenario = match world.load_scenario() {
        Ok(scenario) => scenario,
        Err(error) => {
            let body = json!({ "scenario": format!("{error:#}") });
            asked.record(world, StatusCode::INTERNAL_SERVER_ERROR, "none", body.clone());
            return Ok(reply(StatusCode::INTERNAL_SERVER_ERROR, &body));
        }
    };
    let path = asked.path.as_str();
    match sni.unwrap_or(&asked.host) {
        "claude.ai" | "platform.claude.com" | "api.individual.githubcopilot.com" => {
            oauth::answer(world, &scenario, asked, request).await
        }
        "github.com" if path.starts_with("/login/") => oauth::answer(world, &scenario, asked, request).await,
        "api.github.com" if path.starts_with("/copilot_internal/") => {
            oauth::answer(world, &scenario, asked, request).await
        }
        "api.anthropic.com" => anthropic::answer(world, &scenario, asked, request).await,
        "api.github.com" => github::answer(world, &scenario, asked, request).await,
        "github.com" => git::answer(world, &scenario, asked, request).await,
        name if npm::plays(&scenario, name) => npm::answer(world, &scenario, asked, request).await,
        _ => stranger(world, asked, request).await,
    }
}

/// A name nobody plays: what arrives here got further than it should, unless a test sent it.
async fn stranger(world: &World, asked: Asked<'_>, request: Request<Incoming>) -> Answer {
    let auth = if request.headers().contains_key(AUTHORIZATION) { "wrong" } else { "none" };
    let body = read(request.into_body()).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&body[..body.len().min(2000)]).into_owned();
    asked.record(world, StatusCode::IM_A_TEAPOT, auth, json!({ "bytes": body.len(), "text": text }));
    Ok(reply(StatusCode::IM_A_TEAPOT, &json!({ "message": "the internet of the tests plays no such host" })))
}

/// The whole body, as it was sent.
pub(crate) async fn read(body: Incoming) -> io::Result<Bytes> {
    let collected = Limited::new(body, MAX_BODY).collect().await.map_err(io::Error::other)?;
    Ok(collected.to_bytes())
}

pub(crate) fn bytes(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed()
}

pub(crate) fn reply(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(bytes(body.to_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json; charset=utf-8"));
    response
}

/// Adds headers; one that is no header is left out.
pub(crate) fn with(mut response: Response<Body>, headers: &[(&'static str, &str)]) -> Response<Body> {
    for (name, value) in headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(*name, value);
        }
    }
    response
}

/// The secret in an Authorization header: after `Bearer` or `token`, or the password of `Basic`.
pub(crate) fn presented(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Some(rest.trim().to_owned());
    }
    let pair = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok()?;
    let pair = String::from_utf8(pair).ok()?;
    Some(pair.split_once(':').map_or(pair.clone(), |(_, password)| password.to_owned()))
}

/// How a presented secret is recorded.
pub(crate) fn label(presented: Option<&str>, good: &[String]) -> &'static str {
    match presented {
        None => "none",
        Some(secret) if good.iter().any(|known| known == secret) => "token ok",
        Some(_) => "wrong",
    }
}

impl World {
    /// The scenario as it is in the file now: a test may rewrite it at any time.
    pub(crate) fn load_scenario(&self) -> anyhow::Result<Scenario> {
        let scenario = Scenario::load(&self.scenario)?;
        self.record.hide(scenario.secrets());
        Ok(scenario)
    }
}
