//! GitHub's API, as far as the program asks it.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::{Answer, Asked, TOKEN, World};

pub fn answer(asked: &Asked, world: &mut World, root: &Path) -> Answer {
    let answer = |status: u16, body: Value| Answer {
        status,
        headers: vec![("Content-Type".into(), "application/json".into())],
        body: body.to_string().into_bytes(),
    };
    if asked.auth != format!("Bearer {TOKEN}") {
        return answer(401, json!({"message": "Bad credentials"}));
    }
    let path = asked.path.strip_prefix("/api/v3").unwrap_or(&asked.path);
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let body: Value = serde_json::from_str(&asked.body).unwrap_or_default();
    match (asked.method.as_str(), path) {
        ("GET", "/repos/o/r") => answer(200, world.repository.clone()),
        ("GET", "/repos/o/r/pulls") => {
            let find = |name: &str| {
                query
                    .split('&')
                    .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').map(decode))
                    .unwrap_or_default()
            };
            let (head, base) = (find("head"), find("base"));
            let matches = |pr: &&Value| {
                pr["state"] == "open"
                    && head
                        == format!(
                            "{}:{}",
                            pr["head"]["owner"].as_str().unwrap_or("o"),
                            pr["head"]["ref"].as_str().unwrap()
                        )
                    && pr["base"]["ref"] == *base
            };
            let found: Vec<&Value> = world.pulls.iter().filter(matches).collect();
            answer(200, json!(found))
        }
        ("GET", path) if path.starts_with("/repos/o/r/branches/") => {
            let name = decode(path.trim_start_matches("/repos/o/r/branches/"));
            let (bare, name) = (root.join("o/r.git"), format!("refs/heads/{name}"));
            let asked = Command::new("git").arg("-C").arg(bare).args(["rev-parse", "-q", "--verify", &name]).output();
            let oid = String::from_utf8_lossy(&asked.unwrap().stdout).trim().to_owned();
            match oid.as_str() {
                "" => answer(404, json!({"message": "Branch not found"})),
                oid => answer(200, json!({"commit": {"sha": oid}})),
            }
        }
        ("GET", path) if path.starts_with("/repos/o/r/pulls/") => {
            let number: u64 = path.rsplit('/').next().unwrap().parse().unwrap();
            match world.pulls.iter().find(|pr| pr["number"] == number) {
                Some(pr) => answer(200, pr.clone()),
                None => answer(404, json!({"message": "Not Found"})),
            }
        }
        ("POST", "/repos/o/r/pulls") => create(&body, world, answer),
        ("PATCH", path) => {
            let number: u64 = path.rsplit('/').next().unwrap().parse().unwrap();
            let pr = world.pulls.iter_mut().find(|pr| pr["number"] == number).unwrap();
            pr["title"] = body["title"].clone();
            pr["body"] = body["body"].clone();
            answer(200, pr.clone())
        }
        _ => answer(404, json!({"message": "Not Found"})),
    }
}

fn create(body: &Value, world: &mut World, answer: impl Fn(u16, Value) -> Answer) -> Answer {
    if body["head"] == body["base"] {
        let error = format!("No commits between {} and {}", body["base"], body["head"]);
        return answer(422, json!({"message": "Validation Failed", "errors": [{"message": error}]}));
    }
    if world.pulls.iter().any(|pr| pr["head"]["ref"] == body["head"] && pr["state"] == "open") {
        let error = format!("A pull request already exists for o:{}.", body["head"].as_str().unwrap());
        return answer(422, json!({"message": "Validation Failed", "errors": [{"message": error}]}));
    }
    let head = body["head"].as_str().unwrap();
    let (owner, head) = head.split_once(':').unwrap_or(("o", head));
    let number = world.pulls.len() + 1;
    let pr = json!({
        "number": number, "state": "open", "html_url": format!("https://github.test/o/r/pull/{number}"),
        "title": body["title"], "body": body["body"], "draft": body["draft"],
        "head": {"ref": head, "owner": owner}, "base": {"ref": body["base"]},
    });
    world.pulls.push(pr.clone());
    answer(201, pr)
}

fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            out.push(u8::from_str_radix(&text[at + 1..at + 3], 16).unwrap());
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).unwrap()
}
