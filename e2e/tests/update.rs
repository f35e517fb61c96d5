//! Newer images and a newer pi: how they are found, said and built, and what is said where a registry cannot be reached. The npm registry is
//! played behind a proxy that docker's own configuration names, as on a company's network; the container registry is a real one.

#![cfg(target_os = "linux")]

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::docker::{bridge_address, docker, try_docker};
use e2e::internet::OnThisMachine;
use e2e::launch::Launch;
use e2e::{SOON, World, programs, wait_until};
use serde_json::json;

const PACKAGE: &str = "@earendil-works/pi-coding-agent";
const SHIPPED: &str = "1.5.2";
const BUILD: Duration = Duration::from_secs(20 * 60);

/// A world with an image of its own, and an npm registry that has a newer pi.
struct Scene {
    /// Goes before its world.
    registry: Option<OnThisMachine>,
    world: World,
    image: String,
    address: String,
    /// The newer one; another for each world, for the engine remembers what it has built.
    newer: String,
}

impl Scene {
    fn new() -> Result<Self> {
        let mut world = World::new("tools")?;
        let image = format!("pi-e2e-update:{}", world.id);
        docker(["tag", &default_image(), &image])?;
        let newer = format!("9.9.{}", u32::from_str_radix(&world.id, 16)?);
        let folder = world.path("newer");
        fs::create_dir(&folder)?;
        // The pi of the image under another number, with all that it needs in its archive.
        let pack = format!(
            "cp -r /opt/pi /tmp/package && cd /tmp && node -e '\
               const f = \"package/package.json\", p = JSON.parse(fs.readFileSync(f)); p.version = \"{newer}\"; \
               p.dependencies = {{}}; fs.writeFileSync(f, JSON.stringify(p))' && tar -czf /out/newer.tgz package"
        );
        let out = format!("--mount=type=bind,source={},target=/out", folder.display());
        docker(["run", "--rm", "--network=none", "--user=0:0", &out, "--entrypoint=sh", &image, "-c", &pack])?;
        world.user.own(&folder)?;
        world.change_scenario(|scenario| {
            scenario["npm"] = json!({ PACKAGE: { SHIPPED: "/nowhere", newer.clone(): folder.join("newer.tgz") } });
        })?;
        let gateway = bridge_address()?;
        let port = TcpListener::bind((gateway.as_str(), 0))?.local_addr()?.port();
        let address = format!("{gateway}:{port}");
        let settings = world.home().join(".docker");
        fs::create_dir_all(&settings)?;
        let proxy = json!({ "proxies": { "default": { "httpsProxy": format!("http://{address}") } } });
        fs::write(settings.join("config.json"), proxy.to_string())?;
        world.user.own(&settings)?;
        let registry = Some(OnThisMachine::tunnel(&world.internet, &address)?);
        Ok(Self { registry, world, image, address, newer })
    }

    fn pi_docker(&self, words: &[&str]) -> Launch {
        self.world.pi_docker().env("PI_DOCKER_IMAGE", &self.image).limit(BUILD).args(words)
    }

    /// What the image's own pi says it is.
    fn version(&self) -> Result<String> {
        Ok(docker(["run", "--rm", "--network=none", "--entrypoint=pi", &self.image, "--version"])?.trim().to_owned())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = try_docker(["image", "rm", "--force", &self.image]);
    }
}

fn default_image() -> String {
    std::env::var("PI_DOCKER_IMAGE").unwrap_or_else(|_| "pi-docker-agent:latest".into())
}

#[test]
fn a_newer_pi_is_found_while_one_runs_said_at_the_next_start_and_built_by_an_update() -> Result<()> {
    let scene = Scene::new()?;
    let newer = &scene.newer;
    // Without a terminal nothing is looked for.
    scene.pi_docker(&["-p", "hello"]).run()?.expect(0)?;
    let registry = scene.registry.as_ref().context("no registry")?;
    let asked = || registry.paths().unwrap_or_default();
    assert_eq!(asked(), Vec::<String>::new());

    let mut terminal = scene.pi_docker(&["hello"]).start_on_terminal()?;
    let found = scene.world.install_dir().join("cache/newest-pi.json");
    wait_until("a newer pi is found", SOON, || Ok(found.exists().then_some(())))?;
    terminal.type_in("\x04")?;
    assert_eq!(terminal.finish(SOON)?.code(), Some(0), "{}", terminal.screen());
    assert!(!terminal.screen().contains(&scene.newer), "{}", terminal.screen());

    let said = scene.pi_docker(&["-p", "hello"]).run()?.expect(0)?.stderr;
    assert!(said.contains(&format!("pi {newer} is out, this is {SHIPPED}: pi-docker --update")), "{said}");
    assert_eq!(scene.version()?, SHIPPED);

    // A version that somebody has set is what is built, and said to be.
    let pinned = scene.pi_docker(&["--update", "--dry-run"]).env("PI_DOCKER_PI_VERSION", SHIPPED).run()?.expect(0)?;
    assert!(pinned.stdout.contains(&format!("PI_DOCKER_PI_VERSION={SHIPPED}")), "{}", pinned.stdout);

    let ran = scene.pi_docker(&["--update", "-p", "hello"]).run()?.expect(0)?;
    assert_eq!(ran.stdout.trim(), "hello");
    assert!(!ran.stderr.contains("older than their sources"), "{}", ran.stderr);
    for line in ["looking for the newest pi", &format!("the newest pi is {newer}"), "built the images (pi) in "] {
        assert!(ran.stderr.contains(line), "'{line}' is not in:\n{}", ran.stderr);
    }
    assert_eq!(scene.version()?, scene.newer);
    let archive = format!("/{PACKAGE}/-/{newer}.tgz");
    assert!(asked().iter().any(|path| path.replace("%2f", "/") == archive), "{:?}", asked());

    // It is kept to, and there is nothing more to say.
    let said = scene.pi_docker(&["-p", "hello"]).run()?.expect(0)?.stderr;
    assert!(!said.contains("is out") && !said.contains("older than their sources"), "{said}");
    Ok(())
}

#[test]
fn where_npm_cannot_be_reached_an_update_says_so_and_the_image_that_is_there_goes_on_working() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.registry = None;
    let ran = scene.pi_docker(&["--update", "-p", "hello"]).run()?.expect(1)?;
    assert!(ran.stderr.contains("cannot find the newest pi: npm"), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: see whether the npm registry can be reached"), "{}", ran.stderr);
    assert!(ran.took < Duration::from_secs(60), "it took {:?}", ran.took);
    assert_eq!(scene.world.leftovers()?, Vec::<String>::new());
    let ran = scene.pi_docker(&["-p", "hello"]).run()?.expect(0)?;
    assert_eq!(ran.stdout.trim(), "hello");

    // It goes away between the look and the build: what could not be built is not kept to, and is built when that is asked for again.
    scene.registry = Some(OnThisMachine::tunnel(&scene.world.internet, &scene.address)?);
    let archive = scene.world.path("newer/newer.tgz");
    fs::rename(&archive, scene.world.path("newer/away"))?;
    let ran = scene.pi_docker(&["--update", "-p", "hello"]).run()?.expect(1)?;
    assert!(ran.stderr.contains("cannot build the images (pi): docker says why above"), "{}", ran.stderr);
    assert!(ran.stderr.contains("404"), "{}", ran.stderr);
    let ran = scene.pi_docker(&["-p", "hello"]).run()?.expect(0)?;
    assert_eq!(ran.stdout.trim(), "hello");
    assert!(!ran.stderr.contains("older than their sources"), "{}", ran.stderr);
    let newer = &scene.newer;
    let notice = format!("pi {newer} is out, this is {SHIPPED}: pi-docker --update");
    assert!(ran.stderr.contains(&notice), "{}", ran.stderr);
    let shown = || scene.pi_docker(&["--dry-run"]).run()?.expect(0).map(|ran| ran.stdout);
    assert!(!shown()?.contains(newer), "{}", shown()?);
    fs::rename(scene.world.path("newer/away"), &archive)?;
    scene.pi_docker(&["--update", "-p", "hello"]).run()?.expect(0)?;
    assert_eq!(scene.version()?, scene.newer);
    assert!(shown()?.contains(&format!("PI_DOCKER_PI_VERSION={newer}")), "{}", shown()?);
    Ok(())
}

/// A container registry on this machine's loopback, where docker needs no certificate of it.
struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    fn start(world: &World) -> Result<Self> {
        let address = format!("127.0.0.1:{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
        let settings = json!({
            "version": "0.1",
            "log": { "level": "error", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": world.path("registry") } },
            "http": { "addr": address },
        });
        let file = world.path("registry.yml");
        fs::write(&file, settings.to_string())?;
        let mut command = Command::new(programs::find("docker-registry")?);
        command.arg("serve").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().context("cannot start the registry")?;
        let registry = Self { process, address };
        let answers = || Ok(std::net::TcpStream::connect(&registry.address).is_ok().then_some(()));
        wait_until("the registry answers", SOON, answers)?;
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn without_any_image_an_update_pulls_the_base_from_its_registry_and_says_so_where_it_cannot() -> Result<()> {
    let scene = Scene::new()?;
    let newer = &scene.newer;
    let registry = Registry::start(&scene.world)?;
    let base = format!("{}/node:22-bookworm-slim", registry.address);
    docker(["tag", "node:22-bookworm-slim", &base])?;
    docker(["push", "--quiet", &base])?;
    docker(["image", "rm", &base])?;
    let dockerfile = scene.world.install_dir().join("Dockerfile");
    let text = fs::read_to_string(&dockerfile)?;
    fs::write(&dockerfile, text.replace("FROM node:22-bookworm-slim AS agent", &format!("FROM {base} AS agent")))?;
    docker(["image", "rm", &scene.image])?;

    let ran = scene.pi_docker(&["--update", "-p", "hello"]).run();
    let _ = try_docker(["image", "rm", &base]);
    let ran = ran?.expect(0)?;
    assert!(ran.stderr.contains(&format!("pulling {base}, to look with")), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("the newest pi is {newer}")), "{}", ran.stderr);
    assert_eq!((ran.stdout.trim(), scene.version()?), ("hello", scene.newer.clone()));

    docker(["image", "rm", "--force", &scene.image])?;
    drop(registry);
    let ran = scene.pi_docker(&["--update", "-p", "hello"]).run()?.expect(1)?;
    assert!(ran.stderr.contains(&format!("cannot pull '{base}': docker says why above")), "{}", ran.stderr);
    assert!(ran.stderr.contains("connection refused"), "{}", ran.stderr);
    assert_eq!(scene.world.run_dirs()?, Vec::<std::path::PathBuf>::new());
    Ok(())
}

#[test]
fn stale_images_and_a_newer_pi_are_said_before_the_start() -> Result<()> {
    let world = World::altered("tools", |home| {
        fs::create_dir_all(home.join("cache"))?;
        let newer = json!({ "checked": 1, "version": [9, 9, 9] });
        fs::write(home.join("cache/newest-pi.json"), newer.to_string()).map_err(Into::into)
    })?;
    let hello = || world.pi_docker().args(["-p", "hello"]).run()?.expect(0);
    let said = hello()?.stderr;
    assert!(said.contains("pi 9.9.9 is out, this is 1.5.2: pi-docker --update"), "{said}");
    assert!(!said.contains("older than their sources"), "{said}");
    // As if somebody had pulled a newer clone, after the images were built.
    let dockerfile = world.install_dir().join("Dockerfile");
    fs::write(&dockerfile, format!("{}# changed\n", fs::read_to_string(&dockerfile)?))?;
    let said = hello()?.stderr;
    assert!(said.contains("images are older than their sources\nhint: pi-docker --rebuild"), "{said}");
    let doctor = world.bare_pi_docker().arg("doctor").run()?.stdout;
    assert!(doctor.contains("older than its sources"), "{doctor}");
    Ok(())
}
