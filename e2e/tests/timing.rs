//! How long a person waits, beside a bare `docker run` of the same image in the same minute; figures go into docs/benchmarks.md.
//! `E2E_LAUNCHER=…/release/pi-docker cargo test --test timing -- --ignored --nocapture`

#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use e2e::docker::docker;
use e2e::{SOON, World, wait_until};
use serde_json::json;

const ROUNDS: usize = 9;
/// In pi's place: it says when its first instruction was.
const CLOCK: &str = "+%s.%N";

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A median as it goes into the table, and its bound.
fn within(what: &str, values: Vec<f64>, bound: f64) {
    let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
    let middle = median(values);
    println!("{what}: {:.0} ms ({:.0}–{:.0}), bound {:.0}", middle * 1e3, least * 1e3, most * 1e3, bound * 1e3);
    assert!(middle <= bound, "{what}: {middle:.3} s");
}

/// A world whose sessions run `date` instead of pi.
fn clock() -> Result<(World, String)> {
    let world = World::new("tools")?;
    let overlay = world.path("clock.json");
    let entrypoint = json!({ "services": { "pi": { "entrypoint": ["pi-entrypoint", "date", CLOCK] } } });
    fs::write(&overlay, entrypoint.to_string())?;
    world.user.own(&overlay)?;
    let files = format!("{}:{}", world.path("overlay.json").display(), overlay.display());
    Ok((world, files))
}

#[test]
#[ignore = "long: measures"]
fn a_session_starts_and_ends_little_later_than_a_bare_container() -> Result<()> {
    let (world, files) = clock()?;
    let image = std::env::var("PI_DOCKER_IMAGE").unwrap_or_else(|_| "pi-docker-agent:latest".into());
    let (mut more, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = now();
        let bare: f64 = docker(["run", "--rm", "--entrypoint", "date", &image, CLOCK])?.trim().parse()?;
        let bare = bare - began;
        let began = now();
        let ran = world.pi_docker().env("PI_DOCKER_COMPOSE_FILES", &files).input("a prompt\n").run()?.expect(0)?;
        let ended = began + ran.took.as_secs_f64();
        let first: f64 = ran.stdout.trim().parse()?;
        more.push(first - began - bare);
        ends.push(ended - first);
    }
    within("to pi's first instruction, more than a bare docker run", more, 1.2);
    within("from the end of what is in pi's place to the prompt", ends, 1.0);
    Ok(())
}

#[test]
#[ignore = "long: measures"]
fn the_launchers_own_share_of_a_session_is_small() -> Result<()> {
    let (world, files) = clock()?;
    let (bin, log) = (world.path("clocked"), world.path("clocked/log"));
    fs::create_dir(&bin)?;
    fs::write(&log, "")?;
    let path = std::env::var("PATH")?;
    let real = |program: &str| -> Result<String> {
        let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
        Ok(found.context("a program is missing")?.display().to_string())
    };
    for program in ["docker", "git"] {
        let text = format!(
            "#!/bin/bash\nbegan=$EPOCHREALTIME\n'{}' \"$@\"\nstatus=$?\necho $began $EPOCHREALTIME >>'{}'\nexit $status\n",
            real(program)?,
            log.display()
        );
        fs::write(bin.join(program), text)?;
        fs::set_permissions(bin.join(program), fs::Permissions::from_mode(0o755))?;
    }
    world.user.own(&bin)?;
    // What the instrument itself takes, each time: a shell that starts and ends around the program.
    let instrument = {
        let (script, mut costs) = (bin.join("true"), Vec::new());
        fs::write(&script, fs::read_to_string(bin.join("git"))?.replace(&real("git")?, "/bin/true"))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        for _ in 0..40 {
            fs::write(&log, "")?;
            let began = Instant::now();
            std::process::Command::new(&script).status()?;
            let whole = began.elapsed().as_secs_f64();
            let text = fs::read_to_string(&log)?;
            let (from, to) = text.trim().split_once(' ').context("a broken line")?;
            costs.push(whole - (to.parse::<f64>()? - from.parse::<f64>()?));
        }
        median(costs)
    };
    let (mut shares, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        fs::write(&log, "")?;
        let began = now();
        let launch = world.pi_docker().env("PI_DOCKER_COMPOSE_FILES", &files).input("a prompt\n");
        let mut run = launch.env("PATH", format!("{}:{path}", bin.display())).start()?;
        let mut ticks = 0.0;
        while !run.has_ended()? {
            ticks = run.cpu_time().unwrap_or(ticks);
            std::thread::sleep(Duration::from_millis(5));
        }
        busy.push(ticks);
        let ran = run.finish()?.expect(0)?;
        let ended = began + ran.took.as_secs_f64();
        let mut spans: Vec<(f64, f64)> = Vec::new();
        for line in fs::read_to_string(&log)?.lines() {
            let (from, to) = line.split_once(' ').context("a broken line")?;
            spans.push((from.parse()?, to.parse()?));
        }
        spans.sort_by(|a, b| a.0.total_cmp(&b.0));
        // What is left of the time when nothing of docker's or git's ran.
        let (mut own, mut at) = (0.0, began);
        for (from, to) in spans {
            own += (from - at - instrument).max(0.0);
            at = at.max(to);
        }
        shares.push(own + ended - at);
    }
    within("the launcher's own share, CPU", busy, 0.05);
    // On a busy machine it waits for its turn as everybody does: the least of the rounds is what is nearest to its own.
    shares.sort_by(f64::total_cmp);
    println!(
        "the launcher's own share, wall clock: least of the rounds {:.0} ms, median {:.0}",
        shares[0] * 1e3,
        median(shares.clone()) * 1e3
    );
    assert!(shares[0] <= 0.05, "{shares:?}");
    Ok(())
}

/// Runs pi on a terminal with a prompt, leaves it by its key, and gives the time until the launcher has ended.
fn leave(world: &World, prompt: &str) -> Result<f64> {
    let before = world.internet.model()?.len();
    let mut terminal = world.pi_docker().arg(prompt).start_on_terminal()?;
    let steps = if prompt.starts_with("sh: ") { 2 } else { 1 };
    wait_until("the model has answered", SOON, || Ok((world.internet.model()?.len() >= before + steps).then_some(())))?;
    // pi has shown all it has to show.
    let mut shown = (terminal.screen().len(), Instant::now());
    wait_until("pi is quiet", SOON, || {
        let length = terminal.screen().len();
        if length != shown.0 {
            shown = (length, Instant::now());
        }
        Ok((shown.1.elapsed() > Duration::from_millis(700)).then_some(()))
    })?;
    let began = Instant::now();
    terminal.type_in("\x04")?;
    let status = terminal.finish(SOON)?;
    assert_eq!(status.code(), Some(0), "{}", terminal.screen());
    Ok(began.elapsed().as_secs_f64())
}

#[test]
#[ignore = "long: measures"]
fn from_the_last_key_in_pi_to_the_prompt_is_a_moment_also_with_commits() -> Result<()> {
    let world = World::new("tools")?;
    let (mut plain, mut commits) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        plain.push(leave(&world, "hello")?);
        commits
            .push(leave(&world, &format!("sh: echo {round} >f{round} && git add f{round} && git commit -qm {round}"))?);
    }
    assert_eq!(world.git(["rev-list", "--count", "main"])?, (1 + ROUNDS).to_string());
    within("from the last key in pi to the prompt", plain, 1.0);
    within("the same, with a commit to import", commits, 2.0);
    Ok(())
}

#[test]
#[ignore = "long: measures"]
fn a_refusal_is_seen_and_a_change_is_in_force_within_a_second() -> Result<()> {
    let mut world = World::new("tools")?;
    let mut run = world.pi_docker().args(["-p", "hold"]).start()?;
    run.until_asked(&world.internet, "hold", 0)?;
    let session = world.wait_for_session()?;
    let follow = world.bare_pi_docker().args(["denied", "-f"]).start_on_terminal()?;
    let ask = |host: &str| session.sh(&format!("curl -s --max-time 8 -o /dev/null https://{host}/; true"));
    wait_until("the follower has begun", SOON, || {
        ask("begin.example")?;
        Ok(follow.screen().contains("begin.example").then_some(()))
    })?;
    let (mut seen, mut allowed, mut cut, mut back) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    world.change_scenario(|scenario| {
        scenario["github"]["faults"] =
            json!([{ "host": "api.github.com", "path": "/slow", "times": 1000, "reply": "stall" }]);
    })?;
    for round in 0..ROUNDS {
        let host = format!("h{round}.example");
        let began = Instant::now();
        ask(&host)?;
        follow.expect(&format!("pi-docker allow {host}"), SOON)?;
        seen.push(began.elapsed().as_secs_f64());
        allowed.push(world.bare_pi_docker().args(["allow", &host]).run()?.expect(0)?.took.as_secs_f64());
        // A connection that is open when its host is removed.
        let path = format!("/slow/{round}");
        let open =
            format!("curl -s --max-time 60 --cacert ~/.config/pi-docker/ca.pem https://api.github.com{path}; true");
        let open = std::thread::spawn({
            let session = session.clone();
            move || session.sh(&open).map(|_| Instant::now())
        });
        let asked = || Ok(world.internet.requests()?.iter().any(|request| request.path == path).then_some(()));
        wait_until("a connection is open", SOON, asked)?;
        let began = Instant::now();
        let ran = world.bare_pi_docker().args(["allow", "--remove", "api.github.com"]).run()?.expect(0)?;
        back.push(ran.took.as_secs_f64());
        let ended = open.join().map_err(|_| anyhow::anyhow!("the connection was lost"))??;
        cut.push(ended.duration_since(began).as_secs_f64());
        world.bare_pi_docker().args(["allow", "api.github.com"]).run()?.expect(0)?;
    }
    world.internet.open_gate("go on")?;
    run.finish()?.expect(0)?;
    within("from the request to its refusal on the screen", seen, 1.0);
    within("`allow` until it is in force", allowed, 1.0);
    within("`allow --remove` until an open connection is cut", cut, 1.0);
    println!("`allow --remove` until the proxy serves the other hosts again: {:.0} ms", median(back) * 1e3);
    Ok(())
}
