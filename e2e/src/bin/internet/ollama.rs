//! An Ollama server: plain HTTP, its own API as far as pi-docker and an attacker use it, and the OpenAI-compatible one that pi uses.
//! It does whatever it is asked: what must not be asked of it is the proxy's business.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::World;
use crate::http::{self, Answer, Asked, Body};
use crate::record;
use crate::scenario::Scenario;
use crate::script;

/// What the record calls it.
const NAME: &str = "ollama";

/// Answers at `address` from now on.
pub(crate) async fn listen(world: Arc<World>, address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on '{address}'"))?;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let world = world.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|request| answer(&world, request));
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    Ok(())
}

async fn answer(world: &World, request: Request<Incoming>) -> Answer {
    let asked = Asked {
        ts: record::now(),
        sni: None,
        host: NAME.to_owned(),
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
    };
    let body: Value = serde_json::from_slice(&http::read(request.into_body()).await?).unwrap_or(Value::Null);
    let response = match world.load_scenario() {
        Ok(scenario) => say(&scenario, &asked, &body),
        Err(error) => http::reply(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": error.to_string() })),
    };
    asked.record(world, response.status(), "none", body);
    Ok(response)
}

fn say(scenario: &Scenario, asked: &Asked<'_>, body: &Value) -> Response<Body> {
    let models = &scenario.ollama.models;
    let ok = |value: Value| http::reply(StatusCode::OK, &value);
    match (asked.method.as_str(), asked.path.as_str()) {
        ("GET", "/api/version") => ok(json!({ "version": "0.12.6" })),
        ("GET", "/api/tags") => {
            let models: Vec<Value> = models.iter().map(|name| json!({ "name": name, "model": name })).collect();
            ok(json!({ "models": models }))
        }
        ("POST", "/api/pull" | "/api/create" | "/api/push") | ("DELETE", "/api/delete") => {
            ok(json!({ "status": "success" }))
        }
        ("GET", "/v1/models") => {
            let models: Vec<Value> =
                models.iter().map(|name| json!({ "id": name, "object": "model", "owned_by": "library" })).collect();
            ok(json!({ "object": "list", "data": models }))
        }
        ("POST", "/v1/chat/completions") => {
            match script::next(scenario, body["messages"].as_array().map_or(&[], Vec::as_slice)) {
                Ok(turn) => stream(&turn.step.text, &body["model"]),
                Err(why) => http::reply(StatusCode::BAD_REQUEST, &json!({ "error": { "message": why } })),
            }
        }
        _ => http::reply(StatusCode::NOT_FOUND, &json!({ "error": "404 page not found" })),
    }
}

/// One answer as the OpenAI-compatible API streams it.
fn stream(text: &str, model: &Value) -> Response<Body> {
    let chunk = |delta: Value, end: Value| {
        json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model,
            "choices": [{ "index": 0, "delta": delta, "finish_reason": end }],
        })
    };
    let mut usage = chunk(json!({}), Value::Null);
    usage["choices"] = json!([]);
    usage["usage"] = json!({ "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15 });
    let chunks =
        [chunk(json!({ "role": "assistant", "content": text }), Value::Null), chunk(json!({}), "stop".into()), usage];
    let events: String = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
    let response = Response::new(http::bytes(events + "data: [DONE]\n\n"));
    http::with(response, &[("content-type", "text/event-stream")])
}
