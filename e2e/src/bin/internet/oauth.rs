//! The two logins that pi knows: Anthropic's (authorization code with PKCE, by claude.ai and platform.claude.com) and GitHub
//! Copilot's (device code, by github.com). What is wrong is refused as the real servers do; nobody clicks here but the test.

use std::collections::HashMap;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::World;
use crate::http::{self, Answer, Asked, Body};
use crate::record;
use crate::scenario::{OAuth, Scenario};

/// pi's own ids at the two providers.
const ANTHROPIC_CLIENT: &str = "9d1c250a-e61b-44d9-88ed-5944d1962f5e";
const COPILOT_CLIENT: &str = "Iv1.b507a08c87ecfe98";
const CODE: &str = "a-code-of-one-use";
const DEVICE: &str = "a-device-of-one-use";
/// What a person types into GitHub's page.
const USER_CODE: &str = "ABCD-1234";

/// What has been begun.
#[derive(Default)]
pub(crate) struct Logins(Mutex<Begun>);

#[derive(Default)]
struct Begun {
    /// Challenge, address of return and state, until the code is used.
    authorization: Option<[String; 3]>,
    device_is_approved: bool,
}

pub(crate) async fn answer(world: &World, scenario: &Scenario, asked: Asked<'_>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let bearer = http::presented(&head.headers);
    let body = String::from_utf8_lossy(&http::read(body).await?).into_owned();
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let oauth = &scenario.oauth;
    let mut begun = world.logins.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let response = match (asked.host.as_str(), asked.method.as_str(), path) {
        ("claude.ai", "GET", "/oauth/authorize") => authorize(&mut begun, &fields(query)),
        ("platform.claude.com", "POST", "/v1/oauth/token") => token(&mut begun, oauth, &body),
        ("github.com", "POST", "/login/device/code") => device(&fields(&body)),
        ("github.com", "POST", "/login/device") => approve(&mut begun, &fields(&body)),
        ("github.com", "POST", "/login/oauth/access_token") => poll(&begun, oauth, &fields(&body)),
        ("api.github.com", "GET", "/copilot_internal/v2/token") => copilot_token(oauth, bearer.as_deref()),
        ("api.individual.githubcopilot.com", "GET", "/models") => copilot_models(oauth, bearer.as_deref()),
        _ => say(404, json!({ "error": "not_found" })),
    };
    drop(begun);
    asked.record(world, response.status(), "none", Value::Null);
    Ok(response)
}

fn authorize(begun: &mut Begun, asked: &HashMap<String, String>) -> Response<Body> {
    let get = |name: &str| asked.get(name).cloned().unwrap_or_default();
    let good = get("client_id") == ANTHROPIC_CLIENT
        && get("response_type") == "code"
        && get("code_challenge_method") == "S256"
        && get("redirect_uri") == "http://localhost:53692/callback";
    if !good {
        return say(400, json!({ "error": "invalid_request" }));
    }
    let (back, state) = (get("redirect_uri"), get("state"));
    let to = format!("{back}?code={CODE}&state={state}");
    begun.authorization = Some([get("code_challenge"), back, state]);
    http::with(say(302, Value::Null), &[("location", &to)])
}

fn token(begun: &mut Begun, oauth: &OAuth, body: &str) -> Response<Body> {
    let asked: Value = serde_json::from_str(body).unwrap_or(Value::Null);
    let get = |name: &str| asked[name].as_str().unwrap_or_default();
    // A code is good once.
    let Some([challenge, back, state]) = begun.authorization.take() else {
        return say(400, json!({ "error": "invalid_grant" }));
    };
    let digest = ring::digest::digest(&ring::digest::SHA256, get("code_verifier").as_bytes());
    let good = get("grant_type") == "authorization_code"
        && get("client_id") == ANTHROPIC_CLIENT
        && get("code") == CODE
        && get("redirect_uri") == back
        && get("state") == state
        && URL_SAFE_NO_PAD.encode(digest) == challenge;
    if !good {
        return say(400, json!({ "error": "invalid_grant" }));
    }
    say(
        200,
        json!({
            "token_type": "Bearer", "access_token": oauth.anthropic, "refresh_token": oauth.refresh, "expires_in": 28800,
            "scope": "user:inference user:profile",
        }),
    )
}

fn device(asked: &HashMap<String, String>) -> Response<Body> {
    if asked.get("client_id").map(String::as_str) != Some(COPILOT_CLIENT) {
        return say(404, json!({ "error": "Not Found" }));
    }
    say(
        200,
        json!({
            "device_code": DEVICE, "user_code": USER_CODE, "verification_uri": "https://github.com/login/device",
            "expires_in": 899, "interval": 1,
        }),
    )
}

fn approve(begun: &mut Begun, asked: &HashMap<String, String>) -> Response<Body> {
    begun.device_is_approved = asked.get("user_code").map(String::as_str) == Some(USER_CODE);
    say(if begun.device_is_approved { 200 } else { 422 }, Value::Null)
}

fn poll(begun: &Begun, oauth: &OAuth, asked: &HashMap<String, String>) -> Response<Body> {
    if asked.get("device_code").map(String::as_str) != Some(DEVICE) {
        return say(200, json!({ "error": "incorrect_device_code" }));
    }
    if !begun.device_is_approved {
        return say(200, json!({ "error": "authorization_pending" }));
    }
    say(200, json!({ "access_token": oauth.github, "token_type": "bearer", "scope": "read:user" }))
}

fn copilot_token(oauth: &OAuth, bearer: Option<&str>) -> Response<Body> {
    if bearer != Some(&oauth.github) {
        return say(401, json!({ "message": "Bad credentials" }));
    }
    let expires = record::now() / 1_000_000 + 1800;
    say(200, json!({ "token": oauth.copilot, "expires_at": expires, "refresh_in": 1500 }))
}

fn copilot_models(oauth: &OAuth, bearer: Option<&str>) -> Response<Body> {
    if bearer != Some(&oauth.copilot) {
        return say(401, json!({ "message": "unauthorized" }));
    }
    let model = json!({
        "id": "gpt-4.1", "model_picker_enabled": true, "policy": { "state": "enabled" },
        "capabilities": { "supports": { "tool_calls": true } },
    });
    say(200, json!({ "data": [model] }))
}

fn say(status: u16, body: Value) -> Response<Body> {
    http::reply(StatusCode::from_u16(status).unwrap_or_default(), &body)
}

/// The fields of a form or a query.
fn fields(text: &str) -> HashMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), decode(value))).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex: Vec<u8> = rest.by_ref().take(2).collect();
                std::str::from_utf8(&hex).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok()).unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
