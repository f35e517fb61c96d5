//! The npm registry, as far as a lookup and a download need it: a package's document, and its versions' archives.

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::World;
use crate::http::{self, Answer, Asked, Body};
use crate::scenario::Scenario;

/// Whether this name is the registry's: in a scenario that has packages, all those are that the shipped list allows.
pub(crate) fn plays(scenario: &Scenario, name: &str) -> bool {
    !scenario.npm.is_empty() && name.ends_with(".npmjs.org")
}

pub(crate) async fn answer(world: &World, scenario: &Scenario, asked: Asked<'_>, request: Request<Incoming>) -> Answer {
    http::read(request.into_body()).await?;
    let response = say(scenario, &asked.host, &asked.path);
    asked.record(world, response.status(), "none", Value::Null);
    Ok(response)
}

fn say(scenario: &Scenario, host: &str, path: &str) -> Response<Body> {
    let name = path.trim_start_matches('/').replace("%2f", "/").replace("%2F", "/");
    let not_found = || http::reply(StatusCode::NOT_FOUND, &json!({ "error": "not_found" }));
    if let Some((package, file)) = name.split_once("/-/") {
        let version = file.strip_suffix(".tgz").unwrap_or(file);
        let archive = scenario.npm.get(package).and_then(|versions| versions.get(version));
        return match archive.and_then(|path| std::fs::read(path).ok()) {
            Some(bytes) => {
                http::with(Response::new(http::bytes(bytes)), &[("content-type", "application/octet-stream")])
            }
            None => not_found(),
        };
    }
    let Some(versions) = scenario.npm.get(&name) else { return not_found() };
    let entry = |version: &String| {
        let archive = format!("https://{host}/{name}/-/{version}.tgz");
        (version.clone(), json!({ "name": name, "version": version, "dist": { "tarball": archive } }))
    };
    http::reply(
        StatusCode::OK,
        &json!({
            "name": name,
            "dist-tags": { "latest": versions.keys().next_back() },
            "versions": versions.keys().map(entry).collect::<Map<String, Value>>(),
        }),
    )
}
