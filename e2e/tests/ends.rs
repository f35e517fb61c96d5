//! However a session ends, pi is told, everything ends within the grace period, and no credential is left.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::launch::Running;
use e2e::session::Session;
use e2e::{SOON, World, wait_until};
use nix::sys::signal::Signal;

/// The default grace period of 8 s, and what the engine needs to take a session down on a slow machine.
const GRACE: Duration = Duration::from_secs(8 + 12);

/// An extension of the repository that notes when pi is told to end.
const WITNESS: &str = r#"
import { appendFileSync } from "node:fs";
export default function (pi) {
  pi.on("session_shutdown", () => appendFileSync("/workspace/told.txt", "told\n"));
}
"#;

fn world() -> Result<World> {
    let world = World::new("tools")?;
    world.write(".pi/extensions/witness.ts", WITNESS)?;
    world.git(["add", "."])?;
    world.git(["commit", "--quiet", "-m", "a witness"])?;
    world.log_in_with_key()?;
    Ok(world)
}

/// A session in which the model has been asked and does not answer.
fn held(world: &World) -> Result<(Running, Session)> {
    let mut run = world.pi_docker().without("ANTHROPIC_API_KEY").args(["-p", "hold"]).start()?;
    run.until_asked(&world.internet, "hold", 0)?;
    assert!(fs::read_to_string(world.auth_json())?.contains(&world.key), "the login is there while the session runs");
    Ok((run, world.wait_for_session()?))
}

/// What must be so at the end: pi was told, everything is gone, and so is the login.
fn all_gone(world: &World, since: Instant) -> Result<()> {
    assert!(since.elapsed() < GRACE, "it took {:?}", since.elapsed());
    assert_eq!(fs::read_to_string(world.repo.join("told.txt")).unwrap_or_default(), "told\n");
    nothing_left(world)
}

fn nothing_left(world: &World) -> Result<()> {
    assert_eq!(fs::read_to_string(world.auth_json())?, "{}");
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    assert_eq!(world.run_dirs()?, Vec::<std::path::PathBuf>::new());
    Ok(())
}

#[test]
fn a_term_to_the_container_ends_everything_and_wipes_the_login() -> Result<()> {
    let world = world()?;
    let (run, session) = held(&world)?;
    let since = Instant::now();
    session.signal("TERM")?;
    assert_eq!(run.finish()?.code(), 143);
    all_gone(&world, since)
}

#[test]
fn a_term_to_the_launcher_ends_everything_and_wipes_the_login() -> Result<()> {
    let world = world()?;
    let (run, _) = held(&world)?;
    let since = Instant::now();
    run.signal(Signal::SIGTERM)?;
    assert_eq!(run.finish()?.code(), 143);
    all_gone(&world, since)
}

#[test]
fn a_closed_terminal_ends_everything_and_wipes_the_login() -> Result<()> {
    let world = world()?;
    let mut terminal = world.pi_docker().without("ANTHROPIC_API_KEY").arg("hold").start_on_terminal()?;
    wait_until("the model is asked", SOON, || world.internet.step("hold", 0))?;
    world.wait_for_session()?;
    let since = Instant::now();
    terminal.close();
    terminal.finish(GRACE)?;
    all_gone(&world, since)
}

#[test]
fn a_session_ends_by_itself_when_its_launcher_was_killed() -> Result<()> {
    let world = world()?;
    let mut run =
        world.pi_docker().without("ANTHROPIC_API_KEY").env("PI_DOCKER_HEARTBEAT", "6").args(["-p", "hold"]).start()?;
    run.until_asked(&world.internet, "hold", 0)?;
    world.wait_for_session()?;
    run.signal(Signal::SIGKILL)?;
    assert_eq!(run.finish()?.code(), 137);
    wait_until("the login is wiped", SOON, || Ok((fs::read_to_string(world.auth_json())? == "{}").then_some(())))?;
    wait_until("the agent has ended", SOON, || Ok(world.sessions()?.is_empty().then_some(())))?;
    assert_eq!(fs::read_to_string(world.repo.join("told.txt"))?, "told\n");
    // What a dead launcher could not take down is known, and taken down when the user asks.
    let listed = world.bare_pi_docker().arg("status").run()?.expect(0)?;
    assert!(listed.stdout.contains("its launcher is gone"), "{}", listed.stdout);
    let stopped = world.bare_pi_docker().arg("stop").run()?.expect(0)?;
    assert!(stopped.stderr.contains("did not end by itself: cleaned up"), "{}", stopped.stderr);
    nothing_left(&world)?;
    world.bare_pi_docker().arg("stop").run()?.expect(1)?;
    world.pi_docker().args(["-p", "hello"]).run()?.expect(0)?;
    nothing_left(&world)
}

#[test]
fn the_login_is_wiped_also_when_pi_or_its_container_is_killed() -> Result<()> {
    let world = world()?;
    let (run, session) = held(&world)?;
    assert!(session.sh("kill -KILL $(pgrep -o -P 1)")?.0);
    assert_eq!(run.finish()?.code(), 137);
    nothing_left(&world)?;

    world.log_in_with_key()?;
    let run = world.pi_docker().without("ANTHROPIC_API_KEY").args(["-p", "hold"]).start()?;
    wait_until("the model is asked again", SOON, || Ok((world.internet.model()?.len() == 2).then_some(())))?;
    world.wait_for_session()?.signal("KILL")?;
    assert_eq!(run.finish()?.code(), 137);
    nothing_left(&world)
}

#[test]
fn keep_auth_leaves_the_login_and_a_login_made_meanwhile_stays() -> Result<()> {
    let world = world()?;
    let login = fs::read_to_string(world.auth_json())?;
    let ran = world.pi_docker().without("ANTHROPIC_API_KEY").args(["--keep-auth", "-p", "hello"]).run()?.expect(0)?;
    assert_eq!(ran.stdout.trim(), "hello");
    assert_eq!(fs::read_to_string(world.auth_json())?, login);

    let (run, _) = held(&world)?;
    let other = "{\"openai\":{\"type\":\"api_key\",\"key\":\"made meanwhile\"}}";
    fs::write(world.auth_json(), other)?;
    world.internet.open_gate("go on")?;
    run.finish()?.expect(0)?;
    assert_eq!(fs::read_to_string(world.auth_json())?, other);
    Ok(())
}
