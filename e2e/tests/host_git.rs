//! The host's git directory is out of the agent's reach, and what the agent commits arrives in it all the same.

use std::fs;

use anyhow::Result;
use e2e::{SOON, World, wait_until};

/// Plants a program wherever git would run one, and commits a link to a nested repository. It leaves `mark` on the host only.
fn attack(mark: &str) -> String {
    format!(
        r#"
cat >evil.sh <<'END'
#!/bin/sh
[ "$HOME" = /home/pi ] || touch '{mark}'
END
chmod +x evil.sh
for hook in pre-commit post-commit post-checkout post-index-change reference-transaction; do cp evil.sh .git/hooks/$hook; done
mv .git .git-old && cp -a .git-old .git
mkdir -p inner && git init -q inner && git -C inner -c user.name=x -c user.email=x@x commit -q --allow-empty -m inner
git -C inner config core.fsmonitor ../evil.sh
git update-index --add --cacheinfo 160000,"$(git -C inner rev-parse HEAD)",inner
git -c core.hooksPath=/dev/null commit -q -m link
git config core.fsmonitor ./evil.sh
git config core.pager ./evil.sh
true
"#
    )
}

/// What people and their editors run at the root of the repository.
fn look_around(world: &World) -> Result<()> {
    for command in [
        &["status", "--short"][..],
        &["diff", "--stat"],
        &["log", "--oneline", "-3"],
        &["branch"],
        &["add", "--all", "--", "README.md"],
        &["commit", "--quiet", "--allow-empty", "-a", "-m", "mine"],
    ] {
        let _ = world.git(command.iter().copied());
    }
    Ok(())
}

#[test]
fn commits_arrive_on_the_branch_that_is_checked_out_and_on_others_and_the_status_is_clean() -> Result<()> {
    let world = World::new("tools")?;
    world.agent_sh(
        "echo text >made.txt && git add made.txt && git commit -qm 'made inside' && git switch -qc side && \
         git commit -q --allow-empty -m 'on the side' && git switch -q -",
    )?;
    assert_eq!(world.git(["log", "-1", "--format=%s"])?, "made inside");
    assert_eq!(world.git(["log", "-1", "--format=%s", "side"])?, "on the side");
    assert_eq!(world.git(["status", "--porcelain"])?, "");
    assert_eq!(world.git(["for-each-ref", "refs/pi"])?, "");
    Ok(())
}

#[test]
fn what_the_agent_plants_in_its_git_directory_runs_nothing_on_the_host() -> Result<()> {
    let world = World::new("tools")?;
    let mark = world.path("ran");
    let config = fs::read(world.repo.join(".git/config"))?;
    let ran =
        world.pi_docker().args(["-p", &format!("sh: {}", attack(&mark.display().to_string()))]).run()?.expect(0)?;
    look_around(&world)?;
    assert!(!mark.exists(), "something of the agent's ran on the host");
    assert_eq!(fs::read(world.repo.join(".git/config"))?, config);
    assert!(!world.repo.join(".git/hooks/post-index-change").exists());
    // It is said: the nested repository that no mount can close, and the link that was not taken.
    assert!(ran.stderr.contains("a repository has appeared in 'inner'"), "{}", ran.stderr);
    assert!(ran.stderr.contains("was refused"), "{}", ran.stderr);

    // The same in the repository's own git directory, as it was made writable in the original: it runs.
    let world = World::new("tools")?;
    let mark = world.path("ran");
    world.git(["config", "core.fsmonitor", "./evil.sh"])?;
    world.agent_sh(&attack(&mark.display().to_string()))?;
    look_around(&world)?;
    assert!(mark.exists(), "the attack would not run anyway");
    Ok(())
}

#[test]
fn commits_of_a_session_whose_container_was_killed_arrive_at_the_next_start() -> Result<()> {
    let world = World::new("tools")?;
    let script = "echo text >made.txt && git add made.txt && git commit -qm 'made inside'";
    let mut run = world.pi_docker().args(["-p", &format!("hold sh: {script}")]).start()?;
    run.until_asked(&world.internet, "held shell", 1)?;
    run.signal(nix::sys::signal::Signal::SIGKILL)?;
    world.wait_for_session()?.signal("KILL")?;
    let _ = run.finish()?;
    wait_until("the agent has ended", SOON, || Ok(world.sessions()?.is_empty().then_some(())))?;
    assert_ne!(world.git(["log", "-1", "--format=%s"])?, "made inside");
    world.pi_docker().args(["-p", "hello"]).run()?.expect(0)?;
    assert_eq!(world.git(["log", "-1", "--format=%s"])?, "made inside");
    assert_eq!(world.git(["status", "--porcelain"])?, "");
    Ok(())
}

#[test]
fn commits_arrive_while_a_session_goes_on_when_they_are_fetched() -> Result<()> {
    let world = World::new("tools")?;
    let script = "echo text >made.txt && git add made.txt && git commit -qm 'made inside'";
    let mut run = world.pi_docker().args(["-p", &format!("hold sh: {script}")]).start()?;
    run.until_asked(&world.internet, "held shell", 1)?;
    world.bare_pi_docker().arg("fetch").run()?.expect(0)?;
    assert_eq!(world.git(["log", "-1", "--format=%s"])?, "made inside");
    assert_eq!(world.git(["status", "--porcelain"])?, "");
    world.internet.open_gate("go on")?;
    run.finish()?.expect(0)?;
    assert_eq!(world.git(["log", "-1", "--format=%s"])?, "made inside");
    Ok(())
}

#[test]
fn with_direct_git_commits_are_the_hosts_own_and_what_names_programs_is_closed() -> Result<()> {
    let world = World::new("tools")?;
    let mark = world.path("ran");
    let script = format!(
        "echo text >made.txt && git add made.txt && git commit -qm 'made inside'; {}",
        attack(&mark.display().to_string())
    );
    let ran = world.pi_docker().args(["--git=direct", "-p", &format!("sh: {script}")]).run()?.expect(0)?;
    assert!(ran.stderr.contains("--git=direct: "), "{}", ran.stderr);
    assert!(world.git(["log", "--format=%s"])?.contains("made inside"));
    assert!(!world.repo.join(".git/hooks/pre-commit").exists());
    assert!(!fs::read_to_string(world.repo.join(".git/config"))?.contains("evil"));
    // A link in the index to a repository that the agent has configured: this cannot be closed, and is said.
    assert!(ran.stderr.contains("'inner'"), "{}", ran.stderr);
    Ok(())
}

#[test]
fn a_session_works_in_a_linked_worktree() -> Result<()> {
    let world = World::new("tools")?;
    let linked = world.path("linked");
    world.git(["worktree", "add", "--quiet", "-b", "aside", &linked.display().to_string()])?;
    let script = "echo text >made.txt && git add made.txt && git commit -qm 'made inside'";
    world.pi_docker().within(&linked).args(["-p", &format!("sh: {script}")]).run()?.expect(0)?;
    assert_eq!(world.git(["log", "-1", "--format=%s", "aside"])?, "made inside");
    assert_eq!(world.git(["-C", &linked.display().to_string(), "status", "--porcelain"])?, "");
    Ok(())
}
