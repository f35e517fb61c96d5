//! The real program, without an engine: what it says of the user's list, and of sessions whose launcher died.

mod common;

use std::fs;

use common::{Output, Scene};

fn died(scene: &Scene, login: &str) {
    scene.write("user/.pi/agent/auth.json", login);
    let record = serde_json::json!({
        "pid": 1, "session": "0badcafe", "project": "pi-repo-0badcafe", "container": "pi-repo-0badcafe-agent",
        "repository_id": "repo-0", "root": scene.path("repo"), "auth": scene.path("user/.pi/agent/auth.json"),
        "auth_digest": common::sha256(login), "keep_auth": false, "user": [1000, 1000], "started": 1,
    });
    scene.write("home/run/0badcafe/owner", &record.to_string());
    scene.write("home/run/0badcafe/control/ready", "{}");
}

fn goes(output: &Output) {
    assert_eq!(output.status, 0, "{}", output.stderr);
}

#[test]
fn a_session_whose_launcher_died_is_listed_and_stopped() {
    let scene = Scene::new();
    let status = scene.run("", &["status"]);
    assert_eq!(status.stdout, "no session is running\n");
    died(&scene, r#"{"anthropic":{"type":"api_key","key":"k"}}"#);
    let status = scene.run("", &["status"]);
    assert!(status.stdout.contains("pi-repo-0badcafe"), "{}", status.stdout);
    assert!(status.stdout.contains("its launcher is gone"), "{}", status.stdout);
    let json: serde_json::Value = serde_json::from_str(&scene.run("", &["status", "--json"]).stdout).unwrap();
    assert_eq!(json["left"][0]["session"], "0badcafe");
    assert_eq!(json["sessions"], serde_json::json!([]));

    // It is not of this repository.
    scene.run("repo", &["stop"]).fails_with(1, "no session of this repository is running");
    // Without an engine the login is emptied, and the rest is said to be there still.
    let stopped = scene.run("", &["stop", "--all"]);
    assert!(stopped.status == 1 && stopped.stderr.contains("the next start tries again"), "{}", stopped.stderr);
    assert_eq!(fs::read_to_string(scene.path("user/.pi/agent/auth.json")).unwrap(), "{}");
    assert!(scene.path("home/run/0badcafe").exists());
}

#[test]
fn a_change_of_the_list_is_said_only_when_it_is_made() {
    let scene = Scene::new();
    goes(&scene.run("repo", &["allow", "p.example"]));
    fs::create_dir(scene.path("home/allow.new")).unwrap();
    let output = scene.run("repo", &["allow", "q.example"]);
    output.fails_with(1, "cannot write");
    assert!(!output.stderr.contains("allowed"), "{}", output.stderr);
    fs::remove_dir(scene.path("home/allow.new")).unwrap();
    let output = scene.run("repo", &["allow", "q.example"]);
    goes(&output);
    assert!(output.stderr.contains("allowed q.example"), "{}", output.stderr);
}

#[test]
fn a_name_is_not_said_to_be_removed_while_a_wider_one_lets_it_through() {
    let scene = Scene::new();
    goes(&scene.run("repo", &["allow", "example.org", "plain.example", ".example.org"]));
    for name in ["example.org", "www.example.org"] {
        let output = scene.run("repo", &["allow", "--remove", name]);
        output.fails_with(1, &format!("cannot remove '{name}': it is part of '.example.org'"));
        assert!(output.stderr.contains("\nhint: pi-docker allow --remove .example.org"), "{}", output.stderr);
    }
    goes(&scene.run("repo", &["allow", "--remove", "plain.example"]));
    goes(&scene.run("repo", &["allow", "--remove", "example.org", ".example.org"]));
    assert!(!scene.run("repo", &["allow", "--list"]).stdout.contains("example"));

    scene.write("home/config.toml", "allow = [\".example.net\"]\n");
    goes(&scene.run("repo", &["allow", "x.example.net", "y.example.com"]));
    let output = scene.run("repo", &["allow", "--remove", "x.example.net", "y.example.com"]);
    assert!(output.stderr.contains("'x.example.net' can still be reached"), "{}", output.stderr);
    assert!(!output.stderr.contains("'y.example.com' can"), "{}", output.stderr);
}

#[test]
fn a_name_of_private_networks_is_said_to_stay_refused() {
    let scene = Scene::new();
    for (name, warned) in [("host.docker.internal", true), ("nas.local", true), ("internal.example.org", false)] {
        let output = scene.run("repo", &["allow", name]);
        goes(&output);
        assert_eq!(output.stderr.contains("a private address stays refused"), warned, "{}", output.stderr);
    }
}

#[test]
fn an_empty_log_is_said_to_be_empty() {
    let scene = Scene::new();
    let none = scene.run("repo", &["logs"]);
    assert!(none.stdout.is_empty() && none.stderr.contains("no session has been here yet"), "{}", none.stderr);
    let state = scene.run("repo", &["allow", "--here", "x.example"]);
    goes(&state);
    let states = fs::read_dir(scene.path("home/state")).unwrap().map(|entry| entry.unwrap().path());
    let log = states.filter(|path| path.is_dir()).map(|path| path.join("last.log")).next().unwrap();
    fs::write(&log, "").unwrap();
    let empty = scene.run("repo", &["logs"]);
    assert!(empty.stdout.is_empty() && empty.stderr.contains("nothing was said"), "{}", empty.stderr);
    fs::write(&log, "pi ended\n").unwrap();
    let output = scene.run("repo", &["logs"]);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("pi ended\n", ""));

    // One that runs, and has no log yet: its launcher holds the lock.
    died(&scene, "{}");
    let owner = scene.path("home/run/0badcafe/owner");
    let id = log.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let record = fs::read_to_string(&owner).unwrap().replace("repo-0\"", &format!("{id}\""));
    fs::write(&owner, record).unwrap();
    let held = fs::File::open(&owner).unwrap();
    held.lock().unwrap();
    let runs = scene.run("repo", &["logs"]);
    assert!(runs.stdout.is_empty() && runs.stderr.contains("nothing was said"), "{}", runs.stderr);
}
