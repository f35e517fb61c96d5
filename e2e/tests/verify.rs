//! `pi-docker verify` on this engine: every wall holds; and with walls taken away it names exactly those.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::World;
use e2e::held::{Change, altered};
use e2e::launch::Ran;
use serde_json::Value;

fn verify(world: &World) -> Result<(Ran, BTreeMap<String, String>)> {
    let ran =
        world.bare_pi_docker().without("ANTHROPIC_API_KEY").without("PI_GH_TOKEN").args(["verify", "--json"]).run()?;
    let said: Value = serde_json::from_str(&ran.stdout).with_context(|| format!("{ran:?}"))?;
    let lines = said["threats"].as_array().context("no threats")?;
    let outcome = |line: &Value| {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        (text("id"), format!("{} {}", text("outcome"), text("why")).trim().to_owned())
    };
    Ok((ran, lines.iter().map(outcome).collect()))
}

fn with(outcomes: &BTreeMap<String, String>, word: &str) -> Vec<String> {
    outcomes.iter().filter(|(_, outcome)| outcome.starts_with(word)).map(|(id, _)| id.clone()).collect()
}

#[test]
fn every_wall_is_attacked_and_holds_in_under_a_minute_without_a_key_or_a_token() -> Result<()> {
    let world = World::new("tools")?;
    let (ran, outcomes) = verify(&world)?;
    assert_eq!(ran.code(), 0, "{outcomes:#?}");
    assert!(ran.took < Duration::from_secs(60), "{:?}", ran.took);
    assert_eq!(with(&outcomes, "failed"), Vec::<String>::new(), "{outcomes:#?}");
    // No local model server is connected; all else that can be tried was.
    let tried = with(&outcomes, "ok");
    assert_eq!(tried.len(), 18, "{outcomes:#?}");
    assert!(outcomes["N14"].starts_with("not tried no local model server"), "{outcomes:#?}");
    assert!(!ran.stdout.contains(&world.key) && world.internet.model()?.is_empty());
    assert_eq!(world.run_dirs()?, Vec::<std::path::PathBuf>::new());
    Ok(())
}

#[test]
fn where_the_host_can_be_reached_it_says_so_and_fails() -> Result<()> {
    let world =
        altered("tools", &[("docker-compose.yml", "bridge.inhibit_ipv4: \"true\"", "bridge.inhibit_ipv4: \"false\"")])?;
    let (ran, outcomes) = verify(&world)?;
    assert_eq!(ran.code(), 1, "{ran:?}");
    assert_eq!(with(&outcomes, "failed"), ["N6"], "{outcomes:#?}");
    let shown = world.bare_pi_docker().arg("verify").run()?.expect(1)?.stdout;
    assert!(shown.contains("failed     N6    this machine cannot be reached: "), "{shown}");
    Ok(())
}

/// What each change takes away.
const WALLS: &[(&str, Change<'static>)] = &[
    ("N11", ("squid.conf", "http_access deny manager\n", "http_access allow manager\n")),
    ("N2", ("squid.conf", "http_access deny !CONNECT\nhttp_access deny !tls_port\n", "")),
    ("N3", ("squid.conf", "http_access deny to_local\n", "")),
    ("N4", ("squid.conf", "http_access deny !allowed\n", "")),
    ("", ("squid.conf", "http_access allow allowed\n", "http_access allow all\n")),
    ("N1", ("squid.conf", "http_access deny ip_literal\n", "")),
    ("N9", ("squid.conf", "ssl_bump splice step2 sni_allowed", "ssl_bump splice step2")),
    ("N15", ("squid.conf", "%#ssl::>sni %#ru", "%'ssl::>sni %'ru")),
    ("N7", ("docker-compose.yml", "disable_ipv6: 1\n    # Root", "disable_ipv6: 0\n    # Root")),
    ("N8", ("docker-compose.yml", "net.ipv4.ip_forward: 0", "net.ipv4.ip_forward: 1")),
    ("S2", ("docker-compose.yml", "driver: none", "driver: json-file")),
    ("S4", ("docker-compose.yml", "pids_limit: ${PI_DOCKER_PIDS:-512}", "pids_limit: -1")),
    (
        "S5",
        (
            "docker-compose.yml",
            "security_opt: [\"no-new-privileges:true\"]\n    read_only: true\n    tmpfs",
            "security_opt: [\"seccomp=unconfined\"]\n    read_only: true\n    tmpfs",
        ),
    ),
];

#[test]
#[ignore = "long: takes the walls away"]
fn it_names_exactly_the_walls_that_are_missing() -> Result<()> {
    let changes: Vec<Change> = WALLS.iter().map(|(_, change)| *change).collect();
    let world = altered("tools", &changes)?;
    let (ran, outcomes) = verify(&world)?;
    assert_eq!(ran.code(), 1, "{ran:?}");
    let missing = with(&outcomes, "failed");
    for (id, _) in WALLS.iter().filter(|(id, _)| !id.is_empty()) {
        assert!(missing.contains(&(*id).to_owned()), "{id} is not named: {outcomes:#?}");
    }
    for id in ["N5", "N6", "S1", "P4"] {
        assert!(!missing.contains(&id.to_owned()), "{id}: {outcomes:#?}");
    }
    Ok(())
}
