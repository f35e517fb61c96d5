//! api.anthropic.com: the Messages API with streaming and message threads. A thread's transcript is kept by the id of each
//! reply; a request that goes on with it brings the new messages only. What the real API refuses is refused here too.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::World;
use crate::http::{self, Answer, Asked};
use crate::scenario::{Scenario, Usage};
use crate::script::{self, Turn};
use crate::sse::{self, Message};

const THREADS_BETA: &str = "message-threads-";

/// The transcripts of all threads, each by the ids of its replies.
#[derive(Default)]
pub(crate) struct Threads {
    known: Mutex<HashMap<String, Vec<Value>>>,
    next: AtomicU64,
}

impl Threads {
    fn id(&self, kind: &str) -> String {
        format!("{kind}_01{:022}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn of(&self, reply: &str) -> Option<Vec<Value>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(reply).cloned()
    }

    fn keep(&self, reply: &str, messages: Vec<Value>) {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(reply.to_owned(), messages);
    }
}

/// Why a request is refused: the status, the error's type, its message, and the thread error code.
struct Refusal(u16, &'static str, String, Option<&'static str>);

impl Refusal {
    fn invalid(message: impl Into<String>) -> Self {
        Self(400, "invalid_request_error", message.into(), None)
    }

    fn of_status(status: u16) -> Self {
        let (kind, message) = match status {
            401 => ("authentication_error", "invalid x-api-key"),
            403 => ("permission_error", "Your API key does not have permission to use the specified resource."),
            404 => ("not_found_error", "Not found"),
            429 => ("rate_limit_error", "This request would exceed your account's rate limit. Please try again later."),
            529 => ("overloaded_error", "Overloaded"),
            _ => ("api_error", "Internal server error"),
        };
        Self(status, kind, message.to_owned(), None)
    }
}

pub(crate) async fn answer(world: &World, scenario: &Scenario, asked: Asked<'_>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let key = head.headers.get("x-api-key").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let key = key.or_else(|| http::presented(&head.headers));
    let auth = http::label(key.as_deref(), &scenario.anthropic.keys);
    let body: Value = serde_json::from_slice(&http::read(body).await?).unwrap_or(Value::Null);
    let path = asked.path.split('?').next().unwrap_or("").to_owned();
    let checked = if auth != "token ok" {
        Err(Refusal::of_status(401))
    } else {
        match (asked.method.as_str(), path.as_str()) {
            ("POST", "/v1/messages") => converse(world, scenario, &head.headers, &body),
            ("POST", "/v1/messages/count_tokens") => {
                asked.record(world, StatusCode::OK, auth, json!({}));
                return Ok(http::reply(StatusCode::OK, &json!({ "input_tokens": body.to_string().len() / 4 })));
            }
            _ => Err(Refusal::of_status(404)),
        }
    };
    match checked {
        Ok((turn, messages)) => {
            asked.record(world, StatusCode::OK, auth, summary(&body, &messages, &turn));
            Ok(stream(world, &body, messages, turn))
        }
        Err(refusal) => {
            let status = StatusCode::from_u16(refusal.0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            asked.record(world, status, auth, refused(&body, &refusal));
            Ok(refuse(world, status, &refusal))
        }
    }
}

fn refuse(world: &World, status: StatusCode, refusal: &Refusal) -> Response<http::Body> {
    let id = world.threads.id("req");
    let mut error = json!({ "type": refusal.1, "message": refusal.2 });
    if let Some(code) = refusal.3 {
        error["details"] = json!({ "error_code": code });
    }
    let body = json!({ "type": "error", "error": error, "request_id": id });
    http::with(http::reply(status, &body), &[("request-id", &id)])
}

/// The whole conversation and what is to be said next, or why the request is refused.
fn converse(
    world: &World,
    scenario: &Scenario,
    headers: &HeaderMap,
    body: &Value,
) -> Result<(Turn, Vec<Value>), Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    if header("anthropic-version").is_empty() {
        return Err(Refusal::invalid("anthropic-version: header is required"));
    }
    if !body["model"].is_string() || !body["max_tokens"].is_u64() {
        return Err(Refusal::invalid("model, max_tokens: Field required"));
    }
    if body["stream"] != true {
        return Err(Refusal::invalid("this model only speaks in streams"));
    }
    let fresh = body["messages"].as_array().cloned().unwrap_or_default();
    if fresh.is_empty() {
        return Err(Refusal::invalid("messages: at least one message is required"));
    }
    let thread = &body["thread"];
    if !thread.is_null() && !header("anthropic-beta").contains(THREADS_BETA) {
        return Err(Refusal::invalid("thread: Extra inputs are not permitted"));
    }
    let mut messages = match thread["type"].as_str() {
        Some("continue") => earlier(world, body)?,
        _ => Vec::new(),
    };
    messages.extend(fresh);
    unanswered_call(&messages)?;
    let turn = script::next(scenario, &messages).map_err(Refusal::invalid)?;
    if let Some(failure) = turn.step.error {
        let name = format!("error {} {} {}", turn.rule, turn.index, script::title(&messages));
        if world.faults.next(&name) <= failure.times {
            return Err(Refusal::of_status(failure.status));
        }
    }
    Ok((turn, messages))
}

/// The transcript that a `continue` goes on with.
fn earlier(world: &World, body: &Value) -> Result<Vec<Value>, Refusal> {
    if !body["system"].is_null() || !body["tools"].is_null() {
        return Err(Refusal::invalid("thread: system and tools cannot change when a thread goes on"));
    }
    let previous = body["thread"]["previous_message_id"].as_str().unwrap_or("");
    world.threads.of(previous).ok_or_else(|| {
        Refusal(404, "not_found_error", format!("thread: no message {previous}"), Some("thread_not_found"))
    })
}

/// Every tool call must be followed by its result at once.
fn unanswered_call(messages: &[Value]) -> Result<(), Refusal> {
    let blocks = |message: &Value, kind: &str, key: &str| -> Vec<String> {
        let blocks = message["content"].as_array().cloned().unwrap_or_default();
        let found = blocks.iter().filter(|block| block["type"] == kind);
        found.map(|block| block[key].as_str().unwrap_or("").to_owned()).collect()
    };
    let spoken: Vec<&Value> = messages.iter().filter(|message| message["role"] != "system").collect();
    for pair in spoken.windows(2) {
        let results = blocks(pair[1], "tool_result", "tool_use_id");
        for call in blocks(pair[0], "tool_use", "id") {
            if !results.contains(&call) {
                return Err(Refusal::invalid(format!(
                    "messages: `tool_use` ids were found without `tool_result` blocks immediately after: {call}"
                )));
            }
        }
    }
    Ok(())
}

/// What the record says of a request that is answered.
fn summary(body: &Value, messages: &[Value], turn: &Turn) -> Value {
    let tools = body["tools"].as_array().map(|tools| tools.iter().map(|tool| tool["name"].clone()).collect::<Value>());
    json!({
        "conversation": script::title(messages),
        "rule": turn.rule,
        "step": turn.index,
        "thread": body["thread"]["type"].as_str().unwrap_or("none"),
        "model": body["model"],
        "messages": messages.len(),
        "last": if script::ends_with_result(messages) { "tool_result" } else { "text" },
        "text": script::last_text(messages),
        "system": body["system"].as_array().map(|blocks| blocks.iter().map(|block| block["text"].clone()).collect::<Value>()),
        "tools": tools,
    })
}

/// What the record says of a request that is refused.
fn refused(body: &Value, refusal: &Refusal) -> Value {
    let messages = body["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    json!({
        "conversation": script::title(messages),
        "error": refusal.2,
        "model": body["model"],
        "thread": body["thread"]["type"].as_str().unwrap_or("none"),
    })
}

fn stream(world: &World, body: &Value, mut messages: Vec<Value>, turn: Turn) -> Response<http::Body> {
    let mut content = Vec::new();
    if !turn.step.text.is_empty() || turn.step.tools.is_empty() {
        content.push(json!({ "type": "text", "text": turn.step.text }));
    }
    for call in &turn.step.tools {
        content.push(
            json!({ "type": "tool_use", "id": world.threads.id("toolu"), "name": call.name, "input": call.input }),
        );
    }
    let tokens = |text: usize| u64::try_from(text / 4).unwrap_or(u64::MAX);
    let usage = turn.step.usage.unwrap_or(Usage {
        input: tokens(body.to_string().len()),
        output: tokens(content.iter().map(|block| block.to_string().len()).sum()),
    });
    let message =
        Message { id: world.threads.id("msg"), model: body["model"].as_str().unwrap_or("").to_owned(), content, usage };
    messages.push(json!({ "role": "assistant", "content": message.content }));
    world.threads.keep(&message.id, messages);

    let (mut out, channel) = Channel::new(64);
    let pace = world.pace.clone();
    tokio::spawn(async move {
        let said = match pace.wait(&turn.step).await {
            Ok(()) => sse::say(&mut out, &message, &turn).await,
            Err(vain) => sse::fail(&mut out, &vain).await,
        };
        if said.is_err() {
            out.abort(std::io::Error::other("cut"));
        }
    });
    let mut response = Response::new(channel.boxed());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    http::with(response, &[("request-id", &world.threads.id("req")), ("cache-control", "no-cache")])
}
