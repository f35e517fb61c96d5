//! Nothing is lost, whatever is killed and whoever else is at work: every commit that either side has made is still there afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use e2e::{SOON, World, wait_until};
use nix::sys::signal::Signal;

/// Commits until it is killed; what is committed is written down.
const COMMITS: &str = r#"i=0; while true; do i=$((i+1)); echo $i >made-$((i % 5)); git add made-*; git commit -qm "agent $i"; git rev-parse HEAD >>done; done"#;

/// The whole lines of the agent's list.
fn written_down(world: &World) -> Result<Vec<String>> {
    let text = fs::read_to_string(world.repo.join("done")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    Ok(whole.lines().map(str::to_owned).collect())
}

/// Kills the container when the agent has made `commits`, the launcher too if that is asked for, while the user commits as well.
fn killed(world: &World, commits: usize, with_launcher: bool) -> Result<()> {
    let _ = fs::remove_file(world.repo.join("done"));
    let run = world.pi_docker().args(["-p", &format!("sh: {COMMITS}")]).start()?;
    let mut of_user = Vec::new();
    wait_until("the agent has made its commits", SOON, || {
        if of_user.len() < 3 {
            world.git(["commit", "--quiet", "--allow-empty", "-m", "by the user"])?;
            of_user.push(world.git(["rev-parse", "HEAD"])?);
        }
        Ok((written_down(world)?.len() >= commits).then_some(()))
    })?;
    if with_launcher {
        run.signal(Signal::SIGKILL)?;
    }
    world.wait_for_session()?.signal("KILL")?;
    let of_agent = written_down(world)?;
    run.finish()?;
    wait_until("the session has ended", SOON, || Ok(world.sessions()?.is_empty().then_some(())))?;
    if with_launcher {
        world.pi_docker().args(["-p", "hello"]).run()?.expect(0)?;
    }
    let all = world.git(["rev-list", "--branches", "--glob=refs/pi"])?;
    let all: BTreeSet<&str> = all.lines().collect();
    let lost: Vec<&String> = of_agent.iter().chain(&of_user).filter(|oid| !all.contains(oid.as_str())).collect();
    ensure!(lost.is_empty(), "{lost:?} of {} and {}", of_agent.len(), of_user.len());
    for oid in &of_user {
        world
            .git(["merge-base", "--is-ancestor", oid, "main"])
            .context("a commit of the user's is not on the branch")?;
    }
    ensure!(world.repo.join("made-1").exists(), "the files are still there");
    world.git(["fsck"]).map(drop)
}

#[test]
fn a_container_killed_while_both_sides_commit_loses_nothing() -> Result<()> {
    let world = World::new("tools")?;
    killed(&world, 1, false)?;
    killed(&world, 12, true)
}

#[test]
#[ignore = "long: kills a container at a dozen moments"]
fn a_container_killed_at_any_moment_loses_nothing() -> Result<()> {
    let world = World::new("tools")?;
    for commits in [1, 2, 3, 5, 8, 13, 21, 34, 55, 90] {
        for with_launcher in [false, true] {
            killed(&world, commits, with_launcher).with_context(|| format!("{commits} commits, {with_launcher}"))?;
        }
    }
    Ok(())
}

/// Runs a session whose launcher is killed when it starts git for the `count`th time after the agent has ended. Whether it came to that.
fn launcher_killed(world: &World, count: u32) -> Result<bool> {
    let folder = world.path("killer");
    fs::create_dir_all(&folder)?;
    let real = std::env::var_os("PATH").context("no PATH")?;
    let real = std::env::split_paths(&real).map(|dir| dir.join("git")).find(|git| git.exists()).context("no git")?;
    let script = format!(
        "#!/bin/sh\nif [ -e {0}/armed ]; then read n <{1}/count; n=$((n-1)); echo $n >{1}/count; [ $n = 0 ] && kill -9 $PPID; fi\nexec {2} \"$@\"\n",
        world.repo.display(),
        folder.display(),
        real.display()
    );
    fs::write(folder.join("git"), script)?;
    fs::set_permissions(folder.join("git"), fs::Permissions::from_mode(0o755))?;
    fs::write(folder.join("count"), format!("{count}\n"))?;
    world.user.own(&folder)?;
    let path = format!("{}:{}", folder.display(), std::env::var("PATH")?);
    let script = format!(
        "git checkout -q main; echo {count} >f; git add f; git commit -qm 'agent {count}'; git branch side-{count}; git rev-parse HEAD >done; touch armed"
    );
    let ran = world.pi_docker().env("PATH", path).args(["-p", &format!("sh: {script}")]).run()?;
    fs::remove_file(world.repo.join("armed"))?;
    ensure!(matches!(ran.code(), 0 | 137), "{}", ran.stderr);
    Ok(ran.code() == 137)
}

/// After it, the next start has brought everything.
fn completed(world: &World, count: u32) -> Result<()> {
    world.git(["fsck"])?;
    world.pi_docker().args(["-p", "hello"]).run()?.expect(0)?;
    let made = fs::read_to_string(world.repo.join("done"))?;
    ensure!(world.git(["rev-parse", "main"])? == made.trim(), "killed at the {count}th git");
    ensure!(world.git(["rev-parse", &format!("side-{count}")])? == made.trim());
    fs::remove_file(world.repo.join("done"))?;
    ensure!(world.git(["status", "--porcelain"])?.is_empty(), "{}", world.git(["status", "--porcelain"])?);
    ensure!(world.git(["for-each-ref", "refs/pi"])?.is_empty(), "{}", world.git(["for-each-ref", "refs/pi"])?);
    ensure!(!world.repo.join(".git/index.lock").exists() && world.leftovers()?.is_empty());
    Ok(())
}

#[test]
fn a_launcher_killed_in_the_middle_of_an_import_loses_nothing_and_the_next_start_completes_it() -> Result<()> {
    let world = World::new("tools")?;
    for count in [6, 13] {
        ensure!(launcher_killed(&world, count)?, "the import was over before the {count}th git");
        completed(&world, count)?;
    }
    Ok(())
}

#[test]
#[ignore = "long: kills a launcher at every step of an import"]
fn a_launcher_killed_at_any_step_of_an_import_loses_nothing() -> Result<()> {
    let world = World::new("tools")?;
    for count in 1.. {
        let killed = launcher_killed(&world, count)?;
        completed(&world, count).with_context(|| format!("killed at the {count}th git"))?;
        if !killed {
            ensure!(count > 12, "only {count} steps");
            return Ok(());
        }
    }
    Ok(())
}

#[test]
fn a_rebase_and_a_gc_on_the_host_in_mid_session_break_nothing() -> Result<()> {
    let world = World::new("tools")?;
    world.write("more.txt", "more\n")?;
    world.git(["add", "more.txt"])?;
    world.git(["commit", "--quiet", "-m", "more"])?;
    let script = "echo one >one && git add one && git commit -qm 'agent one'";
    let mut run = world.pi_docker().args(["-p", &format!("hold sh: {script}")]).start()?;
    run.until_asked(&world.internet, "held shell", 1)?;
    // All that the session began from goes from the user's own references.
    world.git(["stash", "push", "--quiet", "--include-untracked"])?;
    world.git(["stash", "drop", "--quiet"])?;
    world.git([
        "-c",
        "sequence.editor=sed -i s/^pick/reword/",
        "-c",
        "core.editor=sed -i 1s/more/moved/",
        "rebase",
        "-q",
        "-i",
        "HEAD~1",
    ])?;
    world.git(["reflog", "expire", "--expire=now", "--all"])?;
    world.git(["gc", "--quiet", "--prune=now"])?;
    let onward = "cd /workspace && git fsck --full && echo two >two && git add two && git commit -qm 'agent two' && git log --format=%s";
    let (done, seen) = world.wait_for_session()?.sh(onward)?;
    ensure!(done && seen.ends_with("agent two\nagent one\nmore\nBegin\n"), "{seen}");
    world.internet.open_gate("go on")?;
    let said = run.finish()?.expect(0)?.stderr;
    ensure!(world.git(["log", "--format=%s"])? == "moved\nBegin", "the user's branch is as the user made it");
    let aside = world.git(["for-each-ref", "--format=%(refname)", "refs/pi/*/heads/main"])?;
    ensure!(said.contains(&aside) && said.contains("git merge"), "{said}");
    ensure!(world.git(["log", "--format=%s", &aside])? == "agent two\nagent one\nmore\nBegin");
    world.git(["gc", "--quiet", "--prune=now"])?;
    world.git(["fsck"]).map(drop)
}
