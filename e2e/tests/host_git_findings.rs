//! What no mount can close on a tree that both sides share is found while it happens, and said at once and at the end.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use e2e::{SOON, World, wait_until};
use nix::sys::signal::Signal;

/// What the agent makes, and what is said of it.
const LIMITS: &[(&str, &str)] = &[
    ("git init -q inner", "a repository has appeared in 'inner'"),
    ("mkdir by-file && echo 'gitdir: ../inner/.git' >by-file/.git", "a repository has appeared in 'by-file'"),
    ("git init -q --bare bare", "'bare' has become a git directory"),
    ("echo 'gitdir: ../../inner/.git' >vendor/file/.git", "'vendor/file/.git' has changed"),
    ("git config -f vendor/whole/.git/config core.fsmonitor evil", "'vendor/whole/.git/config' has changed"),
    ("echo evil >>.githooks/pre-commit", "'.githooks/pre-commit' has changed"),
];

/// A world with repositories in the tree that are the user's, and hooks that the user keeps there.
fn world() -> Result<World> {
    let world = World::new("tools")?;
    world.write(".githooks/pre-commit", "#!/bin/sh\n")?;
    world.git(["config", "core.hooksPath", ".githooks"])?;
    world.git(["init", "-q", "vendor/whole"])?;
    world.write("vendor/file/.git", "gitdir: ../whole/.git\n")?;
    Ok(world)
}

/// When the log of the only session has this line; `None` while it has not.
fn said(world: &World, words: &str) -> Result<Option<SystemTime>> {
    let log = world.run_dirs()?.pop().context("no session runs")?.join("control/log");
    let has_it = fs::read_to_string(&log).is_ok_and(|text| text.contains(words));
    Ok(if has_it { Some(log.metadata()?.modified()?) } else { None })
}

fn since_epoch(nanoseconds: &str) -> Result<SystemTime> {
    let number = nanoseconds.lines().last().unwrap_or_default().trim();
    Ok(UNIX_EPOCH + Duration::from_nanos(number.parse().with_context(|| format!("no time: {nanoseconds}"))?))
}

#[test]
fn repositories_and_hooks_in_the_tree_are_said_within_a_second_in_the_status_the_log_and_at_the_end() -> Result<()> {
    let world = world()?;
    let mut run = world.pi_docker().args(["-p", "hold sh: git init -q /tmp/elsewhere; touch harmless"]).start()?;
    run.until_asked(&world.internet, "held shell", 1)?;
    let session = world.wait_for_session()?;
    let mut took = Vec::new();
    for (attack, words) in LIMITS {
        let (done, time) = session.sh(&format!("cd /workspace && {attack} && date +%s%N"))?;
        ensure!(done, "{attack}: {time}");
        let found = wait_until(words, SOON, || said(&world, words))?;
        took.push(found.duration_since(since_epoch(&time)?).unwrap_or_default());
    }
    // Other tests run on the same machine: the claim is for most of them.
    took.sort();
    ensure!(took[took.len() / 2] < Duration::from_secs(1), "{took:?}");
    let status = world.bare_pi_docker().arg("status").run()?.expect(0)?.stdout;
    let logs = world.bare_pi_docker().arg("logs").run()?.expect(0)?.stdout;
    let json = world.bare_pi_docker().args(["status", "--json"]).run()?.expect(0)?.stdout;
    world.internet.open_gate("go on")?;
    let narration = run.finish()?.expect(0)?.stderr;
    for (_, words) in LIMITS {
        for text in [&status, &logs, &json] {
            ensure!(text.contains(words), "{words}: {text}");
        }
        ensure!(narration.matches(words).count() == 2, "once when it was found, once at the end: {words}: {narration}");
    }
    ensure!(!narration.contains("harmless") && !narration.contains("'vendor/whole'"), "{narration}");
    let logs = world.bare_pi_docker().arg("logs").run()?.expect(0)?.stdout;
    ensure!(logs.contains(LIMITS[0].1), "after the session: {logs}");
    Ok(())
}

#[test]
fn on_pis_own_screen_a_finding_rings_and_sets_the_title_and_is_said_at_the_end() -> Result<()> {
    let world = world()?;
    let mut terminal = world.pi_docker().arg("hold sh: git init -q inner").start_on_terminal()?;
    let words = "a repository has appeared in 'inner'";
    terminal.expect("\u{1b}]0;pi-docker: a warning, see pi-docker status\u{7}\u{7}", SOON)?;
    ensure!(!terminal.screen().contains(words), "pi's screen was written into: {}", terminal.screen());
    let status = world.bare_pi_docker().arg("status").run()?.expect(0)?.stdout;
    ensure!(status.contains(words), "{status}");
    world.wait_for_session()?.signal("TERM")?;
    terminal.finish(SOON)?;
    terminal.expect(words, SOON)
}

#[test]
fn what_a_direct_session_writes_into_alternates_shows_no_folder_of_the_host_to_a_later_private_one() -> Result<()> {
    let world = World::new("tools")?;
    let secret = world.home().join("secret");
    fs::create_dir(&secret)?;
    fs::write(secret.join("key"), "nobody else's business\n")?;
    world.user.own(&secret)?;
    let alternates = world.repo.join(".git/objects/info/alternates");
    let name = format!("{}\n", secret.display());
    let attack = format!(
        "echo '{0}' >.git/objects/info/alternates; mv .git/objects/info .git/x; mv .git/objects .git/y; ln -s '{0}/key' .git/MERGE_MSG; echo tried",
        secret.display()
    );
    let ran = world.pi_docker().args(["--git=direct", "-p", &format!("sh: {attack}")]).run()?.expect(0)?;
    ensure!(ran.stdout.contains("tried") && ran.stderr.contains("MERGE_MSG' is a link"), "{}", ran.stderr);
    ensure!(!alternates.exists() && world.repo.join(".git/MERGE_MSG").is_symlink());
    let look = "cat /run/pi-git/*/objects/key .git/MERGE_MSG; git log --format=%s";
    let seen = world.agent_sh(look)?;
    ensure!(!seen.contains("business") && seen.contains("Begin"), "{seen}");

    // The same list, where it got there in another way: it is not taken, and said what to do about it; then it is.
    write(&alternates, &name)?;
    world.user.own(&alternates)?;
    let refused = world.pi_docker().args(["-p", "hello"]).run()?.expect(1)?.stderr;
    ensure!(refused.contains("cannot borrow objects from") && refused.contains("hint: "), "{refused}");
    world.git(["config", "--add", "pi-docker.objects", &secret.display().to_string()])?;
    ensure!(world.agent_sh(look)?.contains("business"), "the user's word counts");
    Ok(())
}

#[test]
fn no_private_session_begins_beside_one_in_the_repositorys_own_git_directory() -> Result<()> {
    let world = World::new("tools")?;
    let mut direct = world.pi_docker().args(["--git=direct", "-p", "hold"]).start()?;
    direct.until_asked(&world.internet, "hold", 0)?;
    let refused = world.pi_docker().args(["-p", "hello"]).run()?.expect(1)?.stderr;
    ensure!(refused.contains("--git=direct") && refused.contains("hint: end it first"), "{refused}");
    direct.signal(Signal::SIGTERM)?;
    direct.finish()?;
    world.pi_docker().args(["-p", "hello"]).run()?.expect(0)?;
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write '{}'", path.display()))
}
