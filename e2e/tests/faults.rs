//! Something is killed at some step of a session: what is left, and what the next start makes of it. The table is in
//! docs/compatibility.md; every row ends in the same state, a machine as if nothing had happened.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use e2e::docker::{docker, try_docker};
use e2e::launch::{Ran, Running};
use e2e::{SOON, World, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BUILD: Duration = Duration::from_secs(10 * 60);

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// Its folder is there, and nothing of it in the engine.
    Prepared,
    /// Its container is there, pi is not.
    Starting,
    Running,
    /// pi has ended, and its container with it.
    Ending,
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    Launcher,
    DockerCli,
    Container,
}

struct Scene {
    /// Goes before its world.
    run: Option<Running>,
    world: World,
    login: String,
}

impl Scene {
    /// A session with a login, as far as `step`.
    fn at(step: Step) -> Result<Self> {
        let world = World::new("tools")?;
        world.log_in_with_key()?;
        let login = fs::read_to_string(world.auth_json())?;
        // A session that has lost its launcher ends soon.
        let launch = world.pi_docker().without("ANTHROPIC_API_KEY").env("PI_DOCKER_HEARTBEAT", "6");
        let mut run = launch.args(["-p", "hold"]).start()?;
        match step {
            Step::Prepared => wait_until("it has a folder", SOON, || Ok(world.run_dirs()?.pop()))?,
            Step::Starting => wait_until("it has a container", SOON, || {
                Ok(world.run_dirs()?.pop().filter(|_| world.leftovers().is_ok_and(|all| has_agent(&all))))
            })?,
            Step::Running => {
                run.until_asked(&world.internet, "hold", 0)?;
                PathBuf::new()
            }
            Step::Ending => {
                run.until_asked(&world.internet, "hold", 0)?;
                world.internet.open_gate("go on")?;
                let gone = || Ok((!has_agent(&world.leftovers()?)).then(PathBuf::new));
                wait_until("its container is gone", SOON, gone)?
            }
        };
        Ok(Self { run: Some(run), world, login })
    }

    /// Kills `victim` and waits for the launcher's end.
    fn kill(&mut self, victim: Victim) -> Result<Ran> {
        let run = self.run.take().context("nothing runs")?;
        match victim {
            Victim::Launcher => run.signal(Signal::SIGKILL)?,
            Victim::DockerCli => {
                let launcher = run.id();
                let compose = || Ok(children(launcher)?.into_iter().find(|pid| is_compose_run(*pid)));
                let pid = wait_until("docker's command runs", SOON, compose)?;
                kill(Pid::from_raw(pid), Signal::SIGKILL).context("cannot kill docker's command")?;
            }
            Victim::Container => {
                let name = |all: Vec<String>| all.into_iter().find(|name| name.ends_with("-agent"));
                let agent = name(self.world.leftovers()?).context("there is no container")?;
                // It may be about to start, or to end by itself.
                let killed = || Ok(try_docker(["kill", &agent])?.0.then_some(()));
                wait_until("the container is killed", SOON, killed)?;
            }
        }
        run.finish()
    }

    /// What must be so at last: nothing in the engine, no folder, no login unless pi never ran, and a repository that works.
    fn as_if_nothing_had_happened(&self, after: &str, pi_ran: bool) -> Result<()> {
        assert_eq!(self.world.leftovers()?, Vec::<String>::new(), "{after}");
        assert_eq!(self.world.run_dirs()?, Vec::<PathBuf>::new(), "{after}");
        let login = fs::read_to_string(self.world.auth_json())?;
        assert!(login == "{}" || (!pi_ran && login == self.login), "{after}: {login}");
        assert_eq!(self.world.git(["status", "--porcelain"])?, "", "{after}");
        Ok(())
    }
}

fn has_agent(names: &[String]) -> bool {
    names.iter().any(|name| name.ends_with("-agent"))
}

/// The processes that this one has started, in all of its threads.
fn children(pid: u32) -> Result<Vec<i32>> {
    let mut children = Vec::new();
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { bail!("the launcher has ended") };
    for task in tasks.flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    Ok(children)
}

fn is_compose_run(pid: i32) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
    words.contains(&b"compose".as_slice()) && words.contains(&b"run".as_slice())
}

/// Kills `victim` at `step`. A launcher that lives cleans up by itself; after a dead one the next start does, and says so.
fn fault(step: Step, victim: Victim) -> Result<Ran> {
    let case = format!("{victim:?} killed while {step:?}");
    let mut scene = Scene::at(step)?;
    let ran = scene.kill(victim)?;
    assert_ne!(ran.code(), 0, "{case}: {}", ran.stderr);
    if matches!(victim, Victim::Launcher) {
        assert_eq!(ran.code(), 137, "{case}");
        // The login is still there only if nothing of the session could have wiped it yet.
        let left = fs::read_to_string(scene.world.auth_json())?;
        assert!(left == "{}" || left == scene.login, "{case}: {left}");
        let next = scene.world.pi_docker().args(["-p", "hello"]).run()?.expect(0)?;
        assert_eq!(next.stdout.trim(), "hello", "{case}");
        assert!(next.stderr.contains("did not end by itself: cleaned up"), "{case}: {}", next.stderr);
    } else {
        scene.as_if_nothing_had_happened(&case, matches!(step, Step::Running | Step::Ending))?;
        let next = scene.world.pi_docker().args(["-p", "hello"]).run()?.expect(0)?;
        assert!(!next.stderr.contains("did not end by itself"), "{case}: {}", next.stderr);
    }
    scene.as_if_nothing_had_happened(&case, true)?;
    Ok(ran)
}

#[test]
fn a_killed_docker_command_ends_the_session_as_a_request_to_end_does() -> Result<()> {
    let ran = fault(Step::Running, Victim::DockerCli)?;
    assert_eq!(ran.code(), 143);
    Ok(())
}

#[test]
#[ignore = "long: every step of a session, again and again"]
fn whatever_is_killed_at_whatever_step_the_next_start_finds_a_machine_that_works() -> Result<()> {
    for (step, victim) in [
        (Step::Prepared, Victim::Launcher),
        (Step::Starting, Victim::Launcher),
        (Step::Running, Victim::Launcher),
        (Step::Ending, Victim::Launcher),
        (Step::Prepared, Victim::DockerCli),
        (Step::Starting, Victim::DockerCli),
        (Step::Starting, Victim::Container),
        (Step::Running, Victim::Container),
    ] {
        let ran = fault(step, victim).with_context(|| format!("{victim:?} killed while {step:?}"))?;
        eprintln!("{victim:?} killed while {step:?}: status {}", ran.code());
    }
    Ok(())
}

/// A world whose agent's image is built slowly, by a step that sleeps for as long as the name in the second value says.
fn slow_build(image: &str) -> Result<(World, String)> {
    let world = World::new("tools")?;
    let nap = format!("12.{}", u32::from_str_radix(&world.id, 16)?);
    let dockerfile = world.install_dir().join("Dockerfile");
    let text = fs::read_to_string(&dockerfile)?;
    fs::write(&dockerfile, format!("{text}RUN sleep {nap}\n"))?;
    let shipped = std::env::var("PI_DOCKER_IMAGE").unwrap_or_else(|_| "pi-docker-agent:latest".into());
    docker(["tag", &shipped, image])?;
    Ok((world, nap))
}

/// Kills `victim` while the agent's image is built for the first time or, with an image, again.
fn fault_in_a_build(victim: Victim, with_image: bool) -> Result<()> {
    let image = format!("pi-e2e-build-{victim:?}-{with_image}:{}", std::process::id()).to_lowercase();
    let (world, nap) = slow_build(&image)?;
    if !with_image {
        docker(["image", "rm", &image])?;
    }
    world.log_in_with_key()?;
    let login = fs::read_to_string(world.auth_json())?;
    let start = |words: &[&str]| world.pi_docker().env("PI_DOCKER_IMAGE", &image).args(words);
    let run = start(if with_image { &["--rebuild", "-p", "hello"] } else { &["-p", "hello"] });
    let run = run.without("ANTHROPIC_API_KEY").start()?;
    let sleeps = || -> Result<bool> {
        let found = Command::new("pgrep").args(["-f", &format!("^sleep {nap}")]).output()?;
        Ok(found.status.success())
    };
    wait_until("the slow step is built", BUILD, || Ok(sleeps()?.then_some(())))?;
    let builders = children(run.id())?;
    match victim {
        Victim::Launcher => run.signal(Signal::SIGKILL)?,
        _ => {
            for pid in builders.iter().copied() {
                kill(Pid::from_raw(pid), Signal::SIGKILL).context("cannot kill docker's command")?;
            }
        }
    }
    let ran = run.finish()?;
    if matches!(victim, Victim::DockerCli) {
        assert_eq!(ran.code(), 1, "{}", ran.stderr);
        assert!(ran.stderr.contains("cannot build the images"), "{}", ran.stderr);
        assert!(ran.stderr.contains("docker was ended by signal 9"), "{}", ran.stderr);
    }
    // Nothing of a session was there yet, and the login is as it was.
    assert_eq!((world.leftovers()?, world.run_dirs()?), (Vec::new(), Vec::new()));
    assert_eq!(fs::read_to_string(world.auth_json())?, login);

    // With an image the next start goes on with it; without one it builds.
    let next = start(&["-p", "hello"]).limit(BUILD).run()?.expect(0)?;
    assert_eq!(next.stdout.trim(), "hello");
    assert_eq!(next.stderr.contains("images are older than their sources"), with_image, "{}", next.stderr);
    assert_eq!(next.stderr.contains("built the images (pi)"), !with_image, "{}", next.stderr);
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    // A build whose launcher was killed goes on to its end.
    let ended = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |words| words.is_empty());
    wait_until("no build goes on", BUILD, || Ok(builders.iter().all(ended).then_some(())))?;
    docker(["image", "rm", "--force", &image])?;
    Ok(())
}

#[test]
fn a_kill_inside_an_image_build_leaves_nothing_and_the_next_start_works() -> Result<()> {
    for (victim, with_image) in [(Victim::Launcher, true), (Victim::DockerCli, true), (Victim::DockerCli, false)] {
        let case = format!("{victim:?} killed inside a build, with an image: {with_image}");
        fault_in_a_build(victim, with_image).with_context(|| case.clone())?;
    }
    Ok(())
}

#[test]
#[ignore = "long: the build that goes on without its launcher is waited for"]
fn a_launcher_killed_inside_the_first_build_leaves_a_build_that_the_next_start_joins() -> Result<()> {
    fault_in_a_build(Victim::Launcher, false)
}
