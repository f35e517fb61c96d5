//! The commands beside a session, each as a person runs it; and what a session asks and remembers.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use e2e::docker::{docker, lines};
use e2e::{SOON, World, wait_until};
use serde_json::{Value, json};

/// A world whose model spawns one subagent, which waits.
fn spawning() -> Result<World> {
    let mut world = World::new("tools")?;
    world.change_scenario(|scenario| {
        let rule =
            json!({ "name": "waits", "when": { "contains": "Work on one thing" }, "steps": [{ "gate": "work", "text": "done" }] });
        scenario["rules"].as_array_mut().expect("rules").insert(0, rule);
    })?;
    Ok(world)
}

#[test]
fn status_lists_the_sessions_of_all_repositories_and_what_their_subagents_do() -> Result<()> {
    let world = spawning()?;
    let status =
        |words: &[&str]| world.bare_pi_docker().arg("status").args(words).within(world.home()).run()?.expect(0);
    assert!(status(&[])?.stdout.contains("no session is running"));
    let mut run = world.pi_docker().args(["-p", "spawn: add-it"]).start()?;
    run.until_asked(&world.internet, "waits", 0)?;
    let session = world.wait_for_session()?;

    let text = status(&[])?.stdout;
    let mut shown = text.lines();
    let first = shown.next().context("nothing is listed")?;
    assert!(first.starts_with(&session.project) && first.contains("started just now"), "{text}");
    assert!(first.contains(&world.repo.display().to_string()), "{text}");
    let task = shown.find(|line| line.contains("add-it")).context("no subagent is listed")?;
    assert!(task.starts_with("  ") && task.contains("running"), "{task}");

    let all: Value = serde_json::from_str(&status(&["--json"])?.stdout)?;
    let one = &all["sessions"][0];
    assert_eq!((&one["project"], &one["repository"]), (&json!(session.project), &json!(world.repo)));
    assert_eq!(one["subagents"].as_array().map(Vec::len), Some(1), "{all}");

    world.internet.open_gate("work")?;
    run.finish()?.expect(0)?;
    assert!(status(&[])?.stdout.contains("no session is running"));
    Ok(())
}

#[test]
fn a_session_whose_agent_holds_everything_up_is_listed_without_its_subagents() -> Result<()> {
    let world = World::new("tools")?;
    let mut run = world.pi_docker().args(["-p", "hold"]).start()?;
    run.until_asked(&world.internet, "hold", 0)?;
    let session = world.wait_for_session()?;
    // What the agent writes is not what is believed, and cannot steer a terminal.
    session
        .sh("mkdir -p .git/pi-subagent/tasks/x && printf '\\033]0;pwned\\007' >.git/pi-subagent/tasks/x/state.json")?;
    docker(["pause", &session.agent])?;
    let said = world.bare_pi_docker().arg("status").run();
    docker(["unpause", &session.agent])?;
    let said = said?.expect(0)?.stdout;
    assert!(said.contains(&session.project) && said.contains("subagents: no answer"), "{said}");
    assert!(!said.contains('\x1b'), "{said:?}");
    world.internet.open_gate("go on")?;
    run.finish()?.expect(0)?;
    Ok(())
}

#[test]
fn logs_show_what_was_said_beside_pi_while_it_runs_and_afterwards() -> Result<()> {
    let world = spawning()?;
    let logs = |words: &[&str]| world.bare_pi_docker().arg("logs").args(words).run();
    assert!(logs(&["-f"])?.expect(1)?.stderr.contains("no session of this repository is running"));
    let mut run = world.pi_docker().args(["-p", "spawn: add-it"]).start()?;
    run.until_asked(&world.internet, "waits", 0)?;
    let follow = world.bare_pi_docker().args(["logs", "-f"]).start()?;
    let now = wait_until("something is said", SOON, || {
        let said = logs(&[])?.expect(0)?.stdout;
        Ok(said.contains("add-it").then_some(said))
    })?;
    // From outside of the repository the session is named, or what can be done is.
    let session = world.wait_for_session()?;
    let outside = |name: &[&str]| world.bare_pi_docker().arg("logs").args(name).within(world.home()).run();
    assert!(outside(&[&session.project])?.expect(0)?.stdout.starts_with(&now));
    let said = outside(&[])?.expect(1)?.stderr;
    assert!(said.contains("not inside a git repository") && said.contains("or pi-docker logs SESSION"), "{said}");
    assert!(outside(&["pi-none-00000000"])?.expect(1)?.stderr.contains("no session 'pi-none-00000000' is running"));
    world.internet.open_gate("work")?;
    run.finish()?.expect(0)?;
    let after = logs(&[])?.expect(0)?.stdout;
    assert!(after.starts_with(&now), "{now}\n---\n{after}");
    // Who follows sees the same, and is let go when the session ends.
    let followed = follow.finish()?.expect(0)?.stdout;
    assert!(followed.contains("add-it"), "{followed}");
    Ok(())
}

#[test]
fn docker_compose_shows_and_restarts_the_proxy_by_the_project_that_is_printed() -> Result<()> {
    let world = World::new("tools")?;
    let mut run = world.pi_docker().args(["-p", "hold"]).start()?;
    run.until_asked(&world.internet, "hold", 0)?;
    let session = world.wait_for_session()?;
    let file = world.install_dir().join("docker-compose.yml").display().to_string();
    let compose = |words: &[&str]| -> Result<String> {
        let mut command = world.user.command("docker", &world.home());
        command.envs(std::env::var_os("DOCKER_HOST").map(|value| ("DOCKER_HOST", value)));
        command.args(["compose", "-f", &file, "-p", &session.project]).args(words).current_dir("/");
        let output = command.output()?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert!(compose(&["logs", "proxy"])?.contains("api.anthropic.com:443"));
    compose(&["restart", "proxy"])?;
    let curl = "curl -s -o /dev/null -w '%{http_code}' --cacert ~/.config/pi-docker/ca.pem https://api.github.com/user";
    wait_until("the proxy is back", SOON, || Ok((session.sh(curl)?.1.trim() == "401").then_some(())))?;
    world.internet.open_gate("go on")?;
    run.finish()?.expect(0)?;
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn stop_returns_when_nothing_is_left_of_the_session() -> Result<()> {
    let world = World::new("tools")?;
    let stop = |words: &[&str]| world.bare_pi_docker().arg("stop").args(words).run();
    assert!(stop(&[])?.expect(1)?.stderr.contains("no session of this repository is running"));
    world.log_in_with_key()?;
    let mut run = world.pi_docker().without("ANTHROPIC_API_KEY").args(["-p", "hold"]).start()?;
    run.until_asked(&world.internet, "hold", 0)?;
    // From elsewhere it is not meant.
    let elsewhere = world.path("another");
    world.git_in_home(&["init", "--quiet", &elsewhere.display().to_string()])?;
    world.bare_pi_docker().arg("stop").within(&elsewhere).run()?.expect(1)?;
    assert!(!run.has_ended()?);
    // An engine that is not there is no session that has ended.
    let gone =
        world.bare_pi_docker().arg("stop").env("DOCKER_HOST", "unix:///nonexistent.sock").run()?.expect(1)?.stderr;
    assert!(gone.contains("cannot reach the Docker engine"), "{gone}");
    assert!(!run.has_ended()?);

    let said = stop(&[])?.expect(0)?.stderr;
    assert!(said.contains("ending pi-app-"), "{said}");
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    assert_eq!(world.run_dirs()?, Vec::<PathBuf>::new());
    assert_eq!(fs::read_to_string(world.auth_json())?, "{}");
    assert_eq!(run.finish()?.code(), 143);
    Ok(())
}

#[test]
fn continue_in_one_repository_never_shows_a_session_of_another() -> Result<()> {
    let world = World::new("tools")?;
    let say = |folder: &PathBuf, words: &[&str]| world.pi_docker().within(folder).args(words).run()?.expect(0);
    let other = world.path("other");
    world.git_in_home(&["init", "--quiet", &other.display().to_string()])?;
    world.git_in_home(&["-C", &other.display().to_string(), "commit", "--quiet", "--allow-empty", "-m", "Begin"])?;
    say(&world.repo, &["-p", "my word is walnut"])?;
    say(&other, &["-p", "my word is cherry"])?;
    let asked = |rule: &str| -> Result<(u64, String)> {
        let last = world.internet.model()?.pop().with_context(|| format!("{rule}: nothing was asked"))?;
        let count = last.body["messages"].as_u64().context("no messages")?;
        Ok((count, last.body["conversation"].as_str().unwrap_or_default().to_owned()))
    };
    say(&world.repo, &["--continue", "-p", "which word?"])?;
    let (count, conversation) = asked("here")?;
    assert!(count >= 3 && conversation.contains("walnut"), "{count} {conversation}");
    say(&other, &["--continue", "-p", "which word?"])?;
    let (count, conversation) = asked("there")?;
    assert!(count >= 3 && conversation.contains("cherry"), "{count} {conversation}");
    Ok(())
}

#[test]
fn without_a_login_it_asks_and_the_first_time_it_offers_to_keep_one() -> Result<()> {
    let world = World::new("tools")?;
    let start = || world.bare_pi_docker().without("ANTHROPIC_API_KEY").args(["-p", "hello"]).start_on_terminal();
    let mut terminal = start()?;
    terminal.expect("No Anthropic auth found", SOON)?;
    terminal.expect("Go on without a login?", SOON)?;
    terminal.type_in("n\n")?;
    assert_eq!(terminal.finish(SOON)?.code(), Some(1));
    assert!(world.internet.requests()?.is_empty());

    // No is no, and the question is not asked again.
    world.log_in_with_key()?;
    let mut terminal = start()?;
    terminal.expect("Keep the login instead", SOON)?;
    terminal.type_in("\n")?;
    assert_eq!(terminal.finish(SOON)?.code(), Some(0));
    assert_eq!(fs::read_to_string(world.auth_json())?, "{}");
    world.log_in_with_key()?;
    let mut terminal = start()?;
    assert_eq!(terminal.finish(SOON)?.code(), Some(0));
    assert!(!terminal.screen().contains("Keep the login"), "{}", terminal.screen());

    // Yes is written down, and holds.
    fs::remove_file(world.install_dir().join("state/told-about-login"))?;
    for asked in [true, false] {
        world.log_in_with_key()?;
        let login = fs::read_to_string(world.auth_json())?;
        let mut terminal = start()?;
        if asked {
            terminal.expect("Keep the login instead", SOON)?;
            terminal.type_in("y\n")?;
        }
        assert_eq!(terminal.finish(SOON)?.code(), Some(0));
        assert_eq!(fs::read_to_string(world.auth_json())?, login);
    }
    let config = fs::read_to_string(world.install_dir().join("config.toml"))?;
    assert!(config.starts_with("keep-auth = true\n"), "{config}");
    Ok(())
}

#[test]
fn an_expired_login_is_said_and_the_session_goes_on() -> Result<()> {
    let world = World::new("tools")?;
    let login = json!({ "anthropic": { "type": "oauth", "access": "a", "refresh": "r", "expires": 1 } });
    world.log_in(&login.to_string())?;
    let ran = world.pi_docker().args(["-p", "hello"]).run()?;
    assert!(ran.stderr.contains("Anthropic session token is expired"), "{}", ran.stderr);
    assert!(ran.stderr.contains("project: pi-app-"), "{}", ran.stderr);
    Ok(())
}

#[test]
fn settings_come_from_the_file_for_all_or_one_repository_and_a_variable_wins() -> Result<()> {
    let world = World::new("tools")?;
    let file = world.install_dir().join("config.toml");
    let write = |text: &str| -> Result<()> {
        fs::write(&file, text)?;
        world.user.own(&file)
    };
    let limits = |launch: e2e::launch::Launch| -> Result<(u64, u64, u64, String)> {
        let mut run = launch.args(["-p", "hold"]).start()?;
        let before = world.internet.model()?.len();
        wait_until("the model is asked", SOON, || Ok((world.internet.model()?.len() > before).then_some(())))?;
        let session = world.wait_for_session()?;
        let facts = session.inspect_agent()?["HostConfig"].clone();
        let home = facts["Tmpfs"]["/home/pi"].as_str().unwrap_or_default().to_owned();
        session.signal("TERM")?;
        wait_until("it has ended", SOON, || Ok(run.has_ended()?.then_some(())))?;
        let number = |key: &str| facts[key].as_u64().context("no such limit");
        Ok((number("Memory")?, number("NanoCpus")?, number("PidsLimit")?, home))
    };
    write(&format!(
        "memory = \"1g\"\ncpus = 1.5\nhome-size = \"300m\"\n[repository.\"{}\"]\npids = 300\nmemory = \"900m\"\n",
        world.repo.display()
    ))?;
    let (memory, cpus, pids, home) = limits(world.pi_docker())?;
    assert_eq!((memory, cpus, pids), (900 << 20, 1_500_000_000, 300));
    assert!(home.contains("size=300m"), "{home}");
    let (memory, ..) = limits(world.pi_docker().env("PI_DOCKER_MEMORY", "800m"))?;
    assert_eq!(memory, 800 << 20);

    for (wrong, said) in [
        ("memroy = \"1g\"\n", "unknown key 'memroy'; did you mean 'memory'?"),
        ("memory = \"lots\"\n", "'memory': expected a size"),
        ("memory = \n", "line 1: "),
    ] {
        write(wrong)?;
        let ran = world.pi_docker().args(["-p", "hello"]).run()?.expect(1)?;
        assert!(ran.stderr.contains("config.toml'") && ran.stderr.contains(said), "{}", ran.stderr);
        assert_eq!(world.run_dirs()?, Vec::<PathBuf>::new());
    }
    fs::remove_file(&file)?;
    let ran = world.pi_docker().env("PI_DOCKER_PIDS", "many").args(["-p", "hello"]).run()?.expect(1)?;
    assert!(ran.stderr.contains("cannot use PI_DOCKER_PIDS='many': expected a whole number"), "{}", ran.stderr);
    Ok(())
}

#[test]
fn a_dry_run_says_everything_and_makes_nothing() -> Result<()> {
    let world = World::new("tools")?;
    let list = || -> Result<Vec<String>> {
        let found = Command::new("find").arg(world.install_dir()).arg(&world.repo).arg(world.home()).output()?;
        Ok(String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect())
    };
    let before = list()?;
    let volumes = || lines(["volume", "ls", "-q", "--filter", &format!("name=pi-docker-cache-app-{}", world.id)]);
    let made = volumes()?;
    let ran = world.bare_pi_docker().args(["--dry-run", "-p", "it's \"me\" $HOME"]).run()?.expect(0)?;
    for fact in [
        "repo     ",
        "branch   main",
        "project: pi-app-",
        "user     ",
        "engine   ",
        "token    yes",
        "logins   anthropic",
    ] {
        assert!(ran.stdout.contains(fact), "'{fact}' is not in:\n{}", ran.stdout);
    }
    assert!(ran.stdout.contains("-agent pi -p 'it'\\''s \"me\" $HOME'"), "{}", ran.stdout);
    assert!(!ran.stdout.contains(&world.key) && !ran.stdout.contains(&world.token), "{}", ran.stdout);
    assert_eq!((list()?, volumes()?), (before, made));
    assert!(world.internet.requests()?.is_empty());
    Ok(())
}
