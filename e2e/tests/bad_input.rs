//! What cannot work is said in one clear line before anything starts; what can work in part starts and says which part will not.

use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::{fs, io, thread};

use anyhow::{Context, Result};
use e2e::docker::{docker, socket};
use e2e::internet::IMAGE;
use e2e::launch::Launch;
use e2e::{SOON, World};

/// Runs what must be refused: one line that says `why`, a status that is not 0, nothing started, nothing left.
fn refused(world: &World, launch: Launch, why: &str) -> Result<()> {
    let ran = launch.run()?;
    assert_ne!(ran.code(), 0, "{ran:?}");
    let lines: Vec<_> = ran.stderr.lines().filter(|line| !line.starts_with("hint: ")).collect();
    assert_eq!(lines.len(), 1, "{}", ran.stderr);
    assert!(lines[0].starts_with("pi-docker: ") && lines[0].contains(why), "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    assert_eq!(world.run_dirs()?, Vec::<std::path::PathBuf>::new());
    assert!(world.internet.requests()?.is_empty());
    Ok(())
}

#[test]
fn what_cannot_work_is_refused_with_the_reason_and_nothing_is_started_or_lost() -> Result<()> {
    let world = World::new("tools")?;
    let hello = || world.pi_docker().args(["-p", "hello"]);

    refused(&world, hello().within(world.home()), "not inside a git repository")?;
    refused(&world, hello().env("DOCKER_HOST", "unix:///nonexistent/docker.sock"), "Docker")?;
    // One that would answer, and one that would not.
    refused(&world, hello().env("DOCKER_HOST", engine_by_tcp()?), "remote")?;
    refused(&world, hello().env("DOCKER_HOST", "tcp://192.0.2.1:2375"), "remote")?;

    let damaged = "{\"anthropic\": {\"type\": \"api_key\", \"key\": \"sk-ant-precious";
    world.log_in(damaged)?;
    refused(&world, hello(), "auth.json")?;
    assert_eq!(fs::read_to_string(world.auth_json())?, damaged);
    fs::remove_file(world.auth_json())?;

    own(&world, "0:0")?;
    let ran = hello().run()?;
    let hint = format!("hint: sudo chown -R {} {}", world.user.numbers(), world.repo.display());
    assert!(ran.stderr.contains(&hint), "{}", ran.stderr);
    refused(&world, hello(), "the repository belongs to root")?;
    // A user who could not write in it is told so here, and not by git.
    let numbers = world.user.numbers();
    refused(&world, world.pi_docker().args(["--user", &numbers, "-p", "hello"]), "may not write in")?;
    own(&world, &numbers)?;
    refused(&world, world.pi_docker().args(["--user", "0:0"]), "root")?;

    // The same words, where nothing is wrong.
    hello().run()?.expect(0)?;
    Ok(())
}

/// The engine that is used, by an address of the loopback; as long as this process runs.
fn engine_by_tcp() -> Result<String> {
    let socket = socket()?.context("the engine has no socket")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(engine) = UnixStream::connect(&socket) else { continue };
            let (Ok(mut from), Ok(mut to)) = (client.try_clone(), engine.try_clone()) else { continue };
            thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
            let (mut from, mut to) = (engine, client);
            thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    });
    Ok(format!("tcp://{address}"))
}

#[test]
fn a_session_that_docker_does_not_start_costs_no_login() -> Result<()> {
    let world = World::new("tools")?;
    world.log_in_with_key()?;
    let login = fs::read_to_string(world.auth_json())?;
    let overlay = world.path("no-such-network.json");
    fs::write(&overlay, r#"{"networks": {"pi-net": {"external": true, "name": "pi-docker-no-such-network"}}}"#)?;
    let files = format!("{}:{}", world.path("overlay.json").display(), overlay.display());
    let ran = world.pi_docker().env("PI_DOCKER_COMPOSE_FILES", files).args(["-p", "hello"]).run()?;
    // Not compose's own status, which could be one of pi's.
    assert_eq!(ran.code(), 1, "{ran:?}");
    assert!(ran.stderr.contains("pi-docker-no-such-network"), "{}", ran.stderr);
    assert!(ran.stderr.contains("docker says why above\nhint: pi-docker doctor"), "{}", ran.stderr);
    assert_eq!(fs::read_to_string(world.auth_json())?, login);
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    world.pi_docker().args(["-p", "hello"]).run()?.expect(0)?;
    assert_eq!(fs::read_to_string(world.auth_json())?, "{}");
    Ok(())
}

#[test]
fn a_slip_in_a_word_of_our_own_is_not_taken_for_a_prompt() -> Result<()> {
    let world = World::new("tools")?;
    for (words, meant) in [(&["--dryrun", "-p", "x"][..], "'--dry-run'"), (&["statsu"], "'pi-docker status'")] {
        let ran = world.pi_docker().args(words).run()?.expect(2)?;
        assert!(ran.stderr.contains(&format!("did you mean {meant}?\nhint: pi-docker -- ")), "{}", ran.stderr);
    }
    for help in [&["help"][..], &["-h"], &["help", "allow"], &["allow", "--help"]] {
        let ran = world.bare_pi_docker().args(help).within(world.home()).run()?.expect(0)?;
        assert!(ran.stdout.contains("Usage: pi-docker") && ran.stdout.contains("Examples:"), "{}", ran.stdout);
    }
    assert!(world.internet.requests()?.is_empty());
    // The same word, meant for pi.
    let ran = world.pi_docker().args(["--", "-p", "statsu"]).run()?.expect(0)?;
    assert_eq!(ran.stdout.trim(), "statsu");
    Ok(())
}

#[test]
fn a_path_may_hold_any_character_and_one_that_is_no_text_is_refused() -> Result<()> {
    use std::os::unix::ffi::OsStringExt;
    let world = World::new("tools")?;
    for name in ["a: b,c=d", "it's \"$HOME\" `x`", "one\ntwo", "größe 日本"] {
        let folder = world.path(name);
        let text = folder.display().to_string();
        world.git_in_home(&["init", "--quiet", &text])?;
        world.git_in_home(&["-C", &text, "commit", "--quiet", "--allow-empty", "-m", "Begin"])?;
        let prompt = "sh: echo x >made && git add made && git commit -qm made && git log --oneline | wc -l";
        let ran = world.pi_docker().within(&folder).args(["-p", prompt]).run()?.expect(0)?;
        assert_eq!(ran.stdout.trim(), "2", "{name:?}: {}", ran.stderr);
        assert!(folder.join("made").is_file());
        assert_eq!(world.git_in_home(&["-C", &text, "rev-list", "--count", "main"])?, "2", "{name:?}");
        assert!(!ran.stderr.contains("one\ntwo"), "{}", ran.stderr);
    }
    let odd = world.path("").join(std::ffi::OsString::from_vec(vec![b'o', 0xff]));
    fs::create_dir(&odd)?;
    world.user.own(&odd)?;
    fs::create_dir_all(odd.join(".git/objects"))?;
    fs::write(odd.join(".git/HEAD"), "ref: refs/heads/main\n")?;
    world.user.own(&odd)?;
    let ran = world.pi_docker().within(&odd).args(["-p", "hello"]).run()?.expect(1)?;
    assert!(ran.stderr.contains("it is not valid UTF-8"), "{}", ran.stderr);
    Ok(())
}

/// Gives the repository to another user, also where the tests are not run by root.
fn own(world: &World, owner: &str) -> Result<()> {
    let mount = format!("--volume={}:/repository", world.repo.display());
    docker(["run", "--rm", &mount, IMAGE, "chown", "-R", owner, "/repository"]).map(drop)
}

#[test]
fn without_a_terminal_a_question_is_an_error_that_says_how_to_answer_it() -> Result<()> {
    let world = World::new("tools")?;
    let ran = world.bare_pi_docker().without("PI_GH_TOKEN").args(["-p", "hello"]).run()?;
    assert_ne!(ran.code(), 0);
    assert!(ran.stderr.contains("No GitHub token") && ran.stderr.contains("--yes"), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("export PI_GH_TOKEN").count(), 1, "{}", ran.stderr);
    assert!(world.internet.requests()?.is_empty());
    world.pi_docker().without("PI_GH_TOKEN").args(["-p", "hello"]).run()?.expect(0)?;
    Ok(())
}

#[test]
fn on_a_terminal_the_question_is_asked_and_only_a_yes_goes_on() -> Result<()> {
    let world = World::new("tools")?;
    let ask =
        || world.bare_pi_docker().without("PI_GH_TOKEN").args(["-p", "hello from a terminal"]).start_on_terminal();
    for answer in ["n\n", "\n"] {
        let mut terminal = ask()?;
        terminal.expect("Go on without GitHub?", SOON)?;
        terminal.type_in(answer)?;
        assert_eq!(terminal.finish(SOON)?.code(), Some(1));
    }
    assert!(world.internet.requests()?.is_empty());
    let mut terminal = ask()?;
    terminal.expect("Go on without GitHub?", SOON)?;
    terminal.type_in("y\n")?;
    assert_eq!(terminal.finish(SOON)?.code(), Some(0));
    assert_eq!(world.internet.model()?.len(), 1);
    Ok(())
}

/// Starts a session that has `lacking`, which must say so, and in which a subagent must be refused before its model is called.
fn spawn_refused(world: &World, launch: Launch, said: &str, lacking: &str) -> Result<()> {
    let ran = launch.args(["-p", "spawn: try-it"]).run()?.expect(0)?;
    assert!(ran.stderr.contains(said), "'{said}' is not said:\n{}", ran.stderr);
    assert!(ran.stdout.to_lowercase().contains(lacking), "'{lacking}' is not in the tool's answer:\n{}", ran.stdout);
    let model = world.internet.model()?;
    assert!(model.iter().all(|request| request.body["rule"] == "spawn"), "{model:?}");
    assert!(!world.repo.join(".worktrees").exists());
    Ok(())
}

#[test]
fn without_a_token_a_session_starts_and_spawn_refuses() -> Result<()> {
    let world = World::new("tools")?;
    spawn_refused(&world, world.pi_docker().without("PI_GH_TOKEN"), "No GitHub token", "token")
}

#[test]
fn without_a_remote_a_session_starts_and_spawn_refuses() -> Result<()> {
    let world = World::new("tools")?;
    world.git(["remote", "remove", "origin"])?;
    spawn_refused(&world, world.pi_docker(), "no remote", "remote")
}

#[test]
fn with_a_detached_head_a_session_starts_and_spawn_refuses() -> Result<()> {
    let world = World::new("tools")?;
    world.git(["switch", "--quiet", "--detach"])?;
    spawn_refused(&world, world.pi_docker(), "detached", "detached")
}

#[test]
fn without_a_commit_a_session_starts_and_spawn_refuses() -> Result<()> {
    let world = World::new("tools")?;
    fs::remove_dir_all(world.repo.join(".git"))?;
    world.git(["init", "--quiet"])?;
    world.git(["remote", "add", "origin", "https://github.com/octo/app.git"])?;
    spawn_refused(&world, world.pi_docker(), "no commit", "commit")?;
    assert!(Path::new(&world.repo).join("README.md").exists());
    Ok(())
}
