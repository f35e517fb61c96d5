//! Models of an Ollama server: the real pi answers from it through the proxy, and nothing but inference gets there.

use std::fs;
use std::net::TcpListener;

use anyhow::{Context, Result};
use e2e::docker::bridge_address;
use e2e::internet::{OLLAMA_PORT, OnThisMachine};
use e2e::{Ran, World};
use serde_json::{Value, json};

const CODER: &str = "qwen2.5-coder:32b";
const SMALL: &str = "llama3.2:latest";

fn world() -> Result<World> {
    let mut world = World::new("tools")?;
    world.change_scenario(|scenario| scenario["ollama"] = json!({ "models": [CODER, SMALL] }))?;
    Ok(world)
}

fn models(world: &World, words: &str) -> Result<Ran> {
    world.bare_pi_docker().arg("models").args(words.split(' ')).run()
}

/// The server that is on the internet of the test.
fn server(world: &World) -> String {
    format!("{}:{OLLAMA_PORT}", world.internet.address)
}

/// Every file of pi-docker's own folder with its content, but what a session leaves.
fn installed(world: &World) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(world.install_dir())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push((entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path())?));
        }
    }
    files.sort();
    Ok(files)
}

fn asked_of_ollama(world: &World) -> Result<Vec<String>> {
    Ok(world.internet.requests_to("ollama")?.into_iter().map(|request| request.path).collect())
}

#[test]
fn pi_answers_from_a_local_model_through_the_proxy_and_can_ask_the_server_for_nothing_else() -> Result<()> {
    let world = world()?;
    let said = models(&world, &format!("ollama enable --host {}", world.internet.address))?.expect(0)?.stderr;
    assert!(said.contains("connected to Ollama 0.12.6") && said.contains("2 models"), "{said}");

    let listed = world.pi_docker().arg("--list-models").run()?.expect(0)?.stdout;
    assert!(listed.lines().any(|line| line.contains("ollama") && line.contains(CODER)), "{listed}");
    let model = format!("ollama/{CODER}");
    let ran = world.pi_docker().args(["--model", &model, "-p", "hello, local one"]).run()?.expect(0)?;
    assert_eq!(ran.stdout.trim(), "hello, local one");
    let asked = world.internet.requests_to("ollama")?;
    let answered = asked.iter().find(|request| request.path == "/v1/chat/completions").context("it was not asked")?;
    assert_eq!(answered.body["model"], CODER);
    assert!(world.internet.model()?.is_empty());

    // The same way, from the agent's own shell.
    let mut run = world.pi_docker().args(["-p", "hold sh: env"]).start()?;
    run.until_asked(&world.internet, "held shell", 1)?;
    let session = world.wait_for_session()?;
    let curl = |args: &str| -> Result<String> {
        Ok(session.sh(&format!("curl -sS --max-time 8 -o /dev/null -w '%{{http_code}}' {args}"))?.1)
    };
    let before = asked_of_ollama(&world)?.len();
    assert_eq!(curl("http://proxy:11434/v1/models")?, "200");
    for refused in [
        "http://proxy:11434/api/pull -d '{\"model\":\"evil.example/x\"}'",
        "http://proxy:11434/api/create -d '{\"model\":\"x\",\"remote_host\":\"https://evil.example\"}'",
        "-X DELETE http://proxy:11434/api/delete -d '{\"model\":\"x\"}'",
        "http://proxy:11434/api/tags",
        "--path-as-is http://proxy:11434/v1/models/../../api/pull -d '{}'",
        "'http://proxy:11434/v1/models?x=/v1/chat/completions' -d '{}'",
        "http://proxy:11434/v1/models -d '{}'",
    ] {
        assert_eq!(curl(refused)?, "403", "{refused}");
    }
    // Nor by the way that leads out, nor past the proxy.
    let server = server(&world);
    for closed in [format!("-x http://proxy:3128 http://{server}/v1/models"), format!("http://{server}/v1/models")] {
        assert!(!curl(&closed)?.ends_with("200"), "{closed}");
    }
    assert_eq!(asked_of_ollama(&world)?[before..], ["/v1/models"]);

    // What the original switched off here stays: the limits.
    let limits = session.inspect_agent()?["HostConfig"].clone();
    assert_eq!((&limits["Memory"], &limits["NanoCpus"]), (&json!(4_u64 << 30), &json!(2_000_000_000)));
    assert_eq!(limits["PidsLimit"], 512);
    world.internet.open_gate("go on")?;
    run.finish()?.expect(0)?;
    Ok(())
}

#[test]
fn the_models_that_pi_offers_are_kept_and_disable_removes_exactly_what_enable_made() -> Result<()> {
    let mut world = world()?;
    let mine =
        json!({ "providers": { "mine": { "baseUrl": "https://models.example/v1", "models": [{ "id": "own" }] } } });
    let file = world.install_dir().join("models.json");
    fs::write(&file, mine.to_string())?;
    world.user.own(&file)?;
    let before = installed(&world)?;
    let offered = |world: &World| -> Result<Vec<String>> {
        let models: Value = serde_json::from_slice(&fs::read(world.install_dir().join("models.json"))?)?;
        assert_eq!(models["providers"]["mine"], mine["providers"]["mine"]);
        let list = models["providers"]["ollama"]["models"].as_array().cloned().unwrap_or_default();
        Ok(list.iter().filter_map(|model| Some(model["id"].as_str()?.to_owned())).collect())
    };

    assert!(models(&world, "status")?.expect(0)?.stdout.contains("not connected"));
    for words in ["ollama sync", "ollama add x", "ollama remove x"] {
        let ran = models(&world, words)?.expect(1)?;
        assert!(ran.stderr.contains("hint: pi-docker models ollama enable"), "{}", ran.stderr);
    }
    let nobody = format!("{}:9", world.internet.address);
    let ran = models(&world, &format!("ollama enable --host {nobody}"))?.expect(1)?;
    assert!(ran.stderr.contains(&format!("cannot reach '{nobody}'")), "{}", ran.stderr);
    assert_eq!(installed(&world)?, before);

    models(&world, &format!("ollama enable --host {}", server(&world)))?.expect(0)?;
    assert_eq!(offered(&world)?, [SMALL, CODER]);
    let status = models(&world, "status")?.expect(0)?.stdout;
    assert!(
        status.contains(&server(&world)) && status.contains("version 0.12.6") && status.contains(CODER),
        "{status}"
    );
    models(&world, &format!("ollama remove {CODER}"))?.expect(0)?;
    assert_eq!(offered(&world)?, [SMALL]);
    let listed = models(&world, "ollama list")?.expect(0)?.stdout;
    assert!(listed.contains(&format!("* {SMALL}")) && listed.contains(&format!("  {CODER}")), "{listed}");
    models(&world, &format!("ollama add {CODER}"))?.expect(0)?;
    assert_eq!(offered(&world)?, [SMALL, CODER]);
    let ran = models(&world, "ollama add nonesuch")?.expect(1)?;
    assert!(ran.stderr.contains("hint: ollama pull nonesuch:latest"), "{}", ran.stderr);

    // A model is pulled on the host, another one removed.
    world.change_scenario(|scenario| scenario["ollama"]["models"] = json!([CODER, "new:1b"]))?;
    let listed = models(&world, "ollama list")?.expect(0)?.stdout;
    assert!(listed.contains(&format!("! {SMALL}")), "{listed}");
    models(&world, "ollama sync")?.expect(0)?;
    assert_eq!(offered(&world)?, ["new:1b", CODER]);

    models(&world, "ollama disable")?.expect(0)?;
    let after = installed(&world)?;
    let names = |files: &[(String, String)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before));
    for ((name, now), (_, then)) in after.iter().zip(&before) {
        match name.as_str() {
            "models.json" => assert_eq!(serde_json::from_str::<Value>(now)?, mine),
            _ => assert_eq!(now, then, "{name}"),
        }
    }
    // The host's pi has nothing of it.
    assert!(!world.home().join(".pi/agent/models.json").exists());

    // An override of the user's own is not written over.
    let own = world.install_dir().join("docker-compose.override.yml");
    fs::write(&own, "services: {}\n")?;
    world.user.own(&own)?;
    let ran = models(&world, &format!("ollama enable --host {}", server(&world)))?.expect(1)?;
    assert!(ran.stderr.contains("you have one of your own"), "{}", ran.stderr);
    models(&world, "ollama disable")?.expect(0)?;
    assert_eq!(fs::read_to_string(own)?, "services: {}\n");
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_on_this_machine_is_reached_and_one_that_listens_on_loopback_only_is_named_as_such() -> Result<()> {
    let world = world()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let enable = format!("ollama enable --host localhost:{port}");
    let ran = models(&world, &enable)?.expect(1)?;
    assert!(ran.stderr.contains("hint: start it with `ollama serve`"), "{}", ran.stderr);

    let gateway = bridge_address()?;
    let on_loopback = OnThisMachine::ollama(&world.internet, &format!("127.0.0.1:{port}"))?;
    let ran = models(&world, &enable)?.expect(1)?;
    assert!(ran.stderr.contains("listens on this machine's loopback only"), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("OLLAMA_HOST={gateway}:{port}")), "{}", ran.stderr);
    drop(on_loopback);

    let for_containers = OnThisMachine::ollama(&world.internet, &format!("{gateway}:{port}"))?;
    models(&world, &enable)?.expect(0)?;
    // The proxy has a way to the host, as it has with a user.
    let open = world.path("open.json");
    fs::write(&open, json!({ "networks": { "proxy-net": { "internal": false } } }).to_string())?;
    world.user.own(&open)?;
    let files = format!("{}:{}", world.path("overlay.json").display(), open.display());
    let ran = world.pi_docker().env("PI_DOCKER_COMPOSE_FILES", files);
    let ran = ran.args(["--model", &format!("ollama/{SMALL}"), "-p", "hello, host"]).run()?.expect(0)?;
    assert_eq!(ran.stdout.trim(), "hello, host");
    assert!(for_containers.paths()?.contains(&"/v1/chat/completions".to_owned()));
    Ok(())
}
