//! `doctor` tells what is good from what is not, each with its fix, and takes away whatever it made to find out.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use e2e::World;
use e2e::docker::docker;
use e2e::launch::Launch;
use serde_json::{Value, json};

/// What it found: the grade, what it looked at, what it says, and the fix.
struct Found(Vec<Value>);

impl Found {
    fn look(launch: Launch, code: i32) -> Result<Self> {
        let ran = launch.args(["doctor", "--json"]).run()?.expect(code)?;
        let all: Value = serde_json::from_str(&ran.stdout).with_context(|| format!("not JSON: {}", ran.stdout))?;
        Ok(Self(all["findings"].as_array().context("no findings")?.clone()))
    }

    fn grade(&self, what: &str) -> (&str, &str, &str) {
        let found = self.0.iter().find(|finding| finding["what"] == what);
        let text = |key| found.and_then(|found| found[key].as_str()).unwrap_or("missing");
        (text("grade"), text("text"), text("fix"))
    }
}

fn nothing_is_left(world: &World) -> Result<()> {
    assert_eq!(world.run_dirs()?, Vec::<PathBuf>::new());
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn where_all_is_well_every_line_is_ok_and_nothing_is_changed() -> Result<()> {
    let world = World::new("tools")?;
    let found = Found::look(world.bare_pi_docker(), 0)?;
    let bad: Vec<_> = found.0.iter().filter(|finding| finding["grade"] != "ok").collect();
    // How full the disk is, and what others have left in the engine, is not this test's.
    assert!(bad.iter().all(|finding| finding["what"] == "disk" || finding["what"] == "caches"), "{bad:?}");
    for what in ["repository", "login", "engine", "image", "allowlist", "network", "token: push", "token: pulls"] {
        assert_eq!(found.grade(what).0, "ok", "{what}: {:?}", found.0);
    }
    let text = world.bare_pi_docker().arg("doctor").run()?.expect(0)?.stdout;
    assert!(text.lines().any(|line| line.starts_with("ok       network")), "{text}");
    // GitHub was asked, and not changed.
    let asked = world.internet.requests_to("api.github.com")?;
    assert!(asked.iter().all(|request| request.status == 422) && !asked.is_empty(), "{asked:?}");
    assert!(world.internet.pulls()?.is_empty());
    assert!(!world.install_dir().join("state").exists());
    nothing_is_left(&world)
}

#[test]
fn what_a_token_may_not_do_is_found_out_and_said_with_its_fix() -> Result<()> {
    let mut world = World::new("tools")?;
    let push = |found: &Found| found.grade("token: push").0.to_owned();
    let pulls = |found: &Found| found.grade("token: pulls").0.to_owned();
    world.change_scenario(|scenario| scenario["github"]["pulls"] = "read".into())?;
    let found = Found::look(world.bare_pi_docker(), 1)?;
    assert_eq!((push(&found).as_str(), pulls(&found).as_str()), ("ok", "failed"));
    assert!(found.grade("token: pulls").2.contains("Pull requests: read and write"), "{:?}", found.0);

    world.change_scenario(|scenario| scenario["github"]["contents"] = "read".into())?;
    let found = Found::look(world.bare_pi_docker(), 1)?;
    assert_eq!(push(&found), "failed");
    assert!(found.grade("token: push").2.contains("Contents: read and write"), "{:?}", found.0);

    let found = Found::look(world.bare_pi_docker().env("PI_GH_TOKEN", "github_pat_wrong"), 1)?;
    assert!(found.grade("token: push").1.contains("does not know the token"), "{:?}", found.0);
    let found = Found::look(world.bare_pi_docker().without("PI_GH_TOKEN"), 0)?;
    assert_eq!((found.grade("token").0, found.grade("token").1), ("warning", "No GitHub token found"));
    nothing_is_left(&world)
}

#[test]
fn an_unclear_answer_is_a_warning_and_no_judgement() -> Result<()> {
    let mut world = World::new("tools")?;
    world.change_scenario(|scenario| {
        let fault = |host: &str, reply: &str| json!({ "host": host, "times": 100, "reply": reply });
        scenario["github"]["faults"] = json!([fault("github.com", "500"), fault("api.github.com", "403 rate")]);
    })?;
    let found = Found::look(world.bare_pi_docker(), 0)?;
    assert_eq!(found.grade("token: push").0, "warning", "{:?}", found.0);
    assert_eq!(found.grade("token: pulls").0, "warning", "{:?}", found.0);
    nothing_is_left(&world)
}

#[test]
fn an_open_network_and_a_dead_engine_fail_and_a_lost_cache_is_named() -> Result<()> {
    let world = World::altered("tools", |home| {
        let file = home.join("docker-compose.yml");
        let text = fs::read_to_string(&file)?;
        let open = text.replace("bridge.inhibit_ipv4: \"true\"", "bridge.inhibit_ipv4: \"false\"");
        assert_ne!(open, text);
        Ok(fs::write(file, open)?)
    })?;
    let lost = format!("pi-docker-cache-app-{}-lost", world.id);
    let whose = "pi-docker.cache-of=/nonexistent/repository";
    docker(["volume", "create", "--label", "pi-docker.cache=1", "--label", whose, &lost])?;
    let found = Found::look(world.bare_pi_docker(), 1)?;
    let (grade, text, _) = found.grade("network");
    assert!(grade == "failed" && text.contains("the container can reach the host at"), "{text}");
    assert!(!found.grade("caches").2.contains(&lost), "another clone's: {:?}", found.0);
    fs::create_dir_all(world.install_dir().join(format!("state/app-{}-lost", world.id)))?;
    world.user.own(&world.install_dir())?;
    let found = Found::look(world.bare_pi_docker(), 1)?;
    let (grade, _, fix) = found.grade("caches");
    assert!(grade == "warning" && fix.starts_with("docker volume rm ") && fix.contains(&lost), "{fix}");
    docker(["volume", "rm", &lost])?;
    assert!(!Found::look(world.bare_pi_docker(), 1)?.grade("caches").2.contains(&lost));

    let found = Found::look(world.bare_pi_docker().env("DOCKER_HOST", "unix:///nonexistent/docker.sock"), 1)?;
    let (grade, text, fix) = found.grade("engine");
    assert!(
        grade == "failed" && text.contains("cannot reach the Docker engine") && fix.contains("start Docker"),
        "{text}"
    );
    assert_eq!(found.grade("login").0, "ok");
    nothing_is_left(&world)
}

#[test]
fn what_is_wrong_with_the_repository_the_login_and_the_settings_is_said_line_by_line() -> Result<()> {
    let world = World::new("tools")?;
    world.git(["remote", "remove", "origin"])?;
    world.log_in(
        &json!({ "anthropic": { "type": "oauth", "access": "a", "refresh": "r", "expires": 1 } }).to_string(),
    )?;
    let found = Found::look(world.bare_pi_docker(), 0)?;
    assert!(found.grade("git").1.contains("no remote") && found.grade("login").1.contains("expired"), "{:?}", found.0);

    fs::write(world.auth_json(), "{\"anthropic\": hunter2")?;
    fs::write(world.install_dir().join("config.toml"), "memroy = \"1g\"\n")?;
    let found = Found::look(world.bare_pi_docker(), 1)?;
    let text = found.grade("configuration").1;
    assert!(found.grade("configuration").0 == "failed" && text.contains("did you mean 'memory'?"), "{text}");
    assert!(found.grade("login").0 == "failed" && !found.grade("login").1.contains("hunter2"), "{:?}", found.0);
    let found = Found::look(world.bare_pi_docker().within(world.home()), 1)?;
    assert_eq!(found.grade("repository").0, "warning");
    nothing_is_left(&world)
}

#[test]
fn root_is_told_that_the_network_was_not_looked_at_and_a_container_that_says_nothing_is_not_waited_for() -> Result<()> {
    let world = World::new("tools")?;
    let found = Found::look(world.bare_pi_docker().args(["--user", "0:0"]).within(world.home()), 0)?;
    let (grade, text, fix) = found.grade("network");
    assert!(grade == "warning" && text.starts_with("not looked at") && fix.contains("--user UID:GID"), "{text}; {fix}");

    // PID 1 refuses this before it has a log.
    let overlay = world.path("root.json");
    fs::write(&overlay, r#"{"services": {"pi": {"environment": {"PI_DOCKER_UID": "0"}}}}"#)?;
    let files = format!("{}:{}", world.path("overlay.json").display(), overlay.display());
    let found = Found::look(world.bare_pi_docker().env("PI_DOCKER_COMPOSE_FILES", files), 1)?;
    let (grade, text, _) = found.grade("network");
    assert!(grade == "failed" && text.contains("before it could say why"), "{text}");
    nothing_is_left(&world)
}
