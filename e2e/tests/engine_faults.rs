//! The engine itself is killed at some step of a session and comes back, alone or with everything else, as when a machine goes down. It is an engine of this test's own, in a network namespace
//! of its own, unpacked by `dev/engine`; the one that everything else runs on is left alone.

#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::docker::docker;
use e2e::{SOON, World, programs, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Set for the process that uses the second engine; its DOCKER_HOST leads there.
const INSIDE: &str = "E2E_SECOND_ENGINE";

fn image(variable: &str, default: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| default.to_owned())
}

#[test]
#[ignore = "long: starts an engine of its own, six times"]
fn after_an_engine_was_killed_or_the_machine_went_down_the_next_start_finds_a_machine_that_works() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("pi-e2e-engine-").tempdir()?;
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    // A first world builds what is missing, where it is quick.
    drop(World::new("tools")?);
    let images = [
        image("PI_DOCKER_IMAGE", "pi-docker-agent:latest"),
        image("PI_DOCKER_PROXY_IMAGE", "pi-docker-proxy:latest"),
        e2e::internet::IMAGE.to_owned(),
    ];
    let tar = dir.path().join("images.tar").display().to_string();
    docker(["save", "--output", &tar].into_iter().map(str::to_owned).chain(images))?;
    let status = Command::new(std::env::current_exe()?)
        .args(["--exact", "in_the_second_engine", "--ignored", "--nocapture"])
        .env(INSIDE, dir.path())
        .env(e2e::internet::GIVEN, "1")
        .env("DOCKER_HOST", format!("unix://{}", dir.path().join("docker.sock").display()))
        .status()?;
    let left = (named(dir.path())?, mounts(dir.path())?);
    // Also where that process was killed: nothing could be removed any more.
    end_all(dir.path(), Vec::new())?;
    ensure!(left == (Vec::new(), Vec::new()), "it left processes and mounts behind: {left:?}");
    ensure!(status.success(), "the test in the second engine failed");
    Ok(())
}

/// An engine that can be killed and started again where it was.
struct Engine {
    dir: PathBuf,
    /// Keeps the namespace that the engine's bridges are in.
    holder: Child,
    dockerd: Option<Child>,
}

/// A process that holds a network namespace of its own, for as long as this one is there.
fn hold_a_namespace() -> Result<Child> {
    let mut holder = Command::new("setpriv");
    holder.args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "86400"]);
    let holder = holder.spawn().context("cannot run 'setpriv'")?;
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net"));
    let (own, pid) = (namespace("self")?, holder.id().to_string());
    wait_until("the namespace is there", SOON, || Ok((namespace(&pid)? != own).then_some(())))?;
    Ok(holder)
}

/// The processes of this machine: each with its parent and its command line.
fn processes() -> Result<Vec<(i32, i32, String)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut fields = rest.split_whitespace();
        let (state, parent) = (fields.next().unwrap_or("Z"), fields.next().and_then(|field| field.parse().ok()));
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if let (true, Some(parent)) = (state != "Z", parent) {
            all.push((pid, parent, String::from_utf8_lossy(&words).replace('\0', " ")));
        }
    }
    Ok(all)
}

/// The processes that have an engine's folder in their command line.
fn named(dir: &Path) -> Result<Vec<i32>> {
    let dir = dir.display().to_string();
    Ok(processes()?.into_iter().filter(|(_, _, words)| words.contains(&dir)).map(|(pid, ..)| pid).collect())
}

/// What is mounted below an engine's folder, the last first.
fn mounts(dir: &Path) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let places = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
    Ok(places.map(PathBuf::from).filter(|place| place.starts_with(dir)).collect())
}

/// Ends these processes, those that name an engine's folder and all that came from them, at once; then takes away what is mounted there.
fn end_all(dir: &Path, mut doomed: Vec<i32>) -> Result<()> {
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        doomed.extend(named(dir)?);
        let all = processes()?;
        loop {
            let is_new = |(pid, parent, _): &&(i32, i32, String)| doomed.contains(parent) && !doomed.contains(pid);
            let more: Vec<i32> = all.iter().filter(is_new).map(|(pid, ..)| *pid).collect();
            if more.is_empty() {
                break;
            }
            doomed.extend(more);
        }
        for pid in &doomed {
            // It may have ended with the others.
            let _ = kill(Pid::from_raw(*pid), signal);
        }
    }
    wait_until("all of it is gone", SOON, || Ok(named(dir)?.is_empty().then_some(())))?;
    for place in mounts(dir)? {
        let unmounted = Command::new("umount").arg("--lazy").arg(&place).status()?;
        ensure!(unmounted.success(), "cannot unmount '{}'", place.display());
    }
    Ok(())
}

impl Engine {
    fn start(dir: &Path) -> Result<Self> {
        let mut engine = Self { dir: dir.to_owned(), holder: hold_a_namespace()?, dockerd: None };
        engine.up()?;
        docker(["load", "--quiet", "--input", &dir.join("images.tar").display().to_string()])?;
        Ok(engine)
    }

    fn up(&mut self) -> Result<()> {
        let unpacked = programs::cache()?.join("engine");
        let (bin, sbin) = (unpacked.join("usr/bin"), unpacked.join("usr/sbin"));
        ensure!(sbin.join("dockerd").is_file(), "there is no '{}': dev/engine up unpacks it", sbin.display());
        let path =
            format!("{}:{}:/usr/local/sbin:/usr/sbin:/sbin:{}", bin.display(), sbin.display(), std::env::var("PATH")?);
        let at = |name: &str| self.dir.join(name).display().to_string();
        // What was killed has left its pid behind.
        let _ = fs::remove_file(at("dockerd.pid"));
        let log = File::options().create(true).append(true).open(at("dockerd.log"))?;
        let mut command = Command::new("nsenter");
        command.args([
            "--net",
            "--target",
            &self.holder.id().to_string(),
            "sh",
            "-c",
            "ip link set lo up; exec \"$@\"",
            "sh",
        ]);
        command.arg(sbin.join("dockerd")).args(["--host", &format!("unix://{}", at("docker.sock"))]);
        command.args(["--group", "1000", "--log-level", "warn", "--pidfile", &at("dockerd.pid")]);
        command.args(["--data-root", &at("data"), "--exec-root", &at("exec")]);
        command.args(["--userland-proxy-path", &sbin.join("docker-proxy").display().to_string()]);
        command.env("PATH", path).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.dockerd = Some(command.spawn().context("cannot start dockerd")?);
        wait_until("the engine answers", SOON, || Ok(docker(["version"]).is_ok().then_some(())))
    }

    fn kill(&mut self) -> Result<()> {
        let mut dockerd = self.dockerd.take().context("no engine runs")?;
        dockerd.kill()?;
        dockerd.wait()?;
        Ok(())
    }

    /// The machine loses its power: the engine, every process of its containers, the launcher and its docker end at once, and what is only
    /// in memory (mounts, networks, the engine's run folder) is gone.
    fn lose_power(&mut self, launcher: u32) -> Result<()> {
        end_all(&self.dir, vec![launcher.cast_signed()])?;
        self.dockerd.take().context("no engine runs")?.wait()?;
        fs::remove_dir_all(self.dir.join("exec"))?;
        self.holder.kill()?;
        self.holder.wait()?;
        self.holder = hold_a_namespace()?;
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(mut dockerd) = self.dockerd.take() {
            // It ends its containers and its containerd by itself.
            let _ = kill(Pid::from_raw(dockerd.id().cast_signed()), Signal::SIGTERM);
            let _ = dockerd.wait();
        }
        // Containers outlive an engine that was killed, and a test may fail before it is back.
        if let Err(error) = end_all(&self.dir, Vec::new()) {
            eprintln!("cannot take the engine away: {error:#}");
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The other half of the test above, and nothing by itself.
#[test]
#[ignore = "long: a part of another test"]
fn in_the_second_engine() -> Result<()> {
    let Some(dir) = std::env::var_os(INSIDE) else { return Ok(()) };
    let mut engine = Engine::start(Path::new(&dir))?;
    for step in ["starting", "running", "ending"] {
        fault(&mut engine, step).with_context(|| format!("the engine was killed while {step}"))?;
    }
    for step in ["starting", "running"] {
        reboot(&mut engine, step).with_context(|| format!("the machine went down while {step}"))?;
    }
    Ok(())
}

fn fault(engine: &mut Engine, step: &str) -> Result<()> {
    let world = World::new("tools")?;
    world.log_in_with_key()?;
    let launch = world.pi_docker().without("ANTHROPIC_API_KEY").env("PI_DOCKER_HEARTBEAT", "6");
    let mut run = launch.args(["-p", "hold"]).start()?;
    let agent = || Ok::<_, anyhow::Error>(world.leftovers()?.iter().any(|name| name.ends_with("-agent")));
    match step {
        "starting" => wait_until("it has a container", SOON, || Ok(agent()?.then_some(())))?,
        _ => run.until_asked(&world.internet, "hold", 0).map(drop)?,
    }
    if step == "ending" {
        world.internet.open_gate("go on")?;
        wait_until("its container is gone", SOON, || Ok((!agent()?).then_some(())))?;
    }
    engine.kill()?;
    let killed = Instant::now();
    let ran = run.finish()?;
    let status = ran.code();
    assert_ne!(status, 0, "{}", ran.stderr);
    assert!(killed.elapsed() < Duration::from_secs(30), "it took {:?}", killed.elapsed());
    // The login does not wait for the engine; a session that pi never ran in keeps it.
    assert_eq!(fs::read_to_string(world.auth_json())? == "{}", began(&world)?, "{}", ran.stderr);
    let ran = world.pi_docker().args(["-p", "hello"]).run()?.expect(1)?;
    assert!(ran.stderr.contains("cannot reach the Docker engine"), "{}", ran.stderr);

    engine.up()?;
    // The internet was on that engine, too.
    docker(["start", world.internet.network()])?;
    let ran = world.pi_docker().args(["-p", "hello"]).run()?.expect(0)?;
    assert_eq!(ran.stdout.trim(), "hello");
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    assert_eq!(world.run_dirs()?, Vec::<PathBuf>::new());
    assert_eq!(fs::read_to_string(world.auth_json())?, "{}");
    assert_eq!(world.git(["status", "--porcelain"])?, "");
    eprintln!("the engine was killed while {step}: status {status}, the next start worked");
    Ok(())
}

/// Whether pi ran in the session whose folder was left.
fn began(world: &World) -> Result<bool> {
    Ok(world.run_dirs()?.iter().any(|run| run.join("control/ready").exists()))
}

fn reboot(engine: &mut Engine, step: &str) -> Result<()> {
    let world = World::new("tools")?;
    world.log_in_with_key()?;
    let login = fs::read_to_string(world.auth_json())?;
    let prompt = "hold sh: echo one >one && git add one && git commit -qm one";
    let mut run = world.pi_docker().without("ANTHROPIC_API_KEY").args(["-p", prompt]).start()?;
    match step {
        "starting" => {
            let agent = || Ok(world.leftovers()?.iter().any(|name| name.ends_with("-agent")).then_some(()));
            wait_until("it has a container", SOON, agent)?;
        }
        _ => drop(run.until_asked(&world.internet, "held shell", 1)?),
    }
    engine.lose_power(run.id())?;
    let began = began(&world)?;
    assert_eq!(run.finish()?.code(), 137);
    // Nobody was left to wipe it.
    assert_eq!(fs::read_to_string(world.auth_json())?, login);
    assert_eq!(world.run_dirs()?.len(), 1);

    // Before the engine is back, the next start wipes, and says so.
    let ran = world.pi_docker().without("ANTHROPIC_API_KEY").args(["-p", "hello"]).run()?.expect(1)?;
    assert_eq!(ran.stderr.contains("did not end by itself: emptied"), began, "{}", ran.stderr);
    assert_eq!(fs::read_to_string(world.auth_json())? == "{}", began);

    engine.up()?;
    docker(["start", world.internet.network()])?;
    let ran = world.pi_docker().args(["-p", "hello"]).run()?.expect(0)?;
    assert_eq!(ran.stdout.trim(), "hello");
    assert!(ran.stderr.contains("did not end by itself: cleaned up"), "{}", ran.stderr);
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    assert_eq!(world.run_dirs()?, Vec::<PathBuf>::new());
    assert_eq!(fs::read_to_string(world.auth_json())?, "{}");
    let commits = if step == "running" { "2" } else { "1" };
    assert_eq!(world.git(["rev-list", "--count", "main"])?, commits, "{}", ran.stderr);
    eprintln!("the machine went down while {step}: the next start worked");
    Ok(())
}
