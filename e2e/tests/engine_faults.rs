//! The engine itself is killed at some step of a session and comes back. It is an engine of this test's own, in a network namespace
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
#[ignore = "long: starts an engine of its own, three times"]
fn after_an_engine_was_killed_the_next_start_finds_a_machine_that_works() -> Result<()> {
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

impl Engine {
    fn start(dir: &Path) -> Result<Self> {
        let holder =
            Command::new("unshare").args(["--net", "sleep", "86400"]).spawn().context("cannot run 'unshare'")?;
        let mut engine = Self { dir: dir.to_owned(), holder, dockerd: None };
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net"));
        let own = namespace("self")?;
        let holder = engine.holder.id().to_string();
        wait_until("the namespace is there", SOON, || Ok((namespace(&holder)? != own).then_some(())))?;
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
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(mut dockerd) = self.dockerd.take() {
            // It ends its containers and its containerd by itself.
            let _ = kill(Pid::from_raw(dockerd.id().cast_signed()), Signal::SIGTERM);
            let _ = dockerd.wait();
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
    // The login does not wait for the engine.
    let wiped = || Ok((fs::read_to_string(world.auth_json())? == "{}").then_some(()));
    wait_until("the login is wiped", SOON, wiped)?;
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
