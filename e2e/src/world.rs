//! One person's machine: a home folder with a git identity, pi-docker's own folder as it is shipped, a repository with an origin
//! on GitHub, and the internet around it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::ca::Authority;
use crate::docker;
use crate::internet::{Internet, manifest};
use crate::launch::{Launch, launcher};
use crate::session::Session;
use crate::user::User;
use crate::{SOON, wait_until};

/// The repository on GitHub.
pub const REPO: &str = "octo/app";

const BUILD: Duration = Duration::from_secs(30 * 60);

pub struct World {
    dir: TempDir,
    /// Names everything that this world makes.
    pub id: String,
    pub user: User,
    pub internet: Internet,
    /// The working tree that the user is in.
    pub repo: PathBuf,
    /// The model's key and GitHub's token, both throw-away.
    pub key: String,
    pub token: String,
    scenario: Value,
    env: BTreeMap<&'static str, OsString>,
}

impl World {
    /// A world whose model follows the scenario file of this name in `e2e/scenarios`.
    pub fn new(scenario: &str) -> Result<Self> {
        Self::with_scenario(read_scenario(scenario)?)
    }

    /// A world with this scenario; the good key and token are filled in, unless it names some.
    pub fn with_scenario(scenario: Value) -> Result<Self> {
        Self::build(scenario, |_| Ok(()))
    }

    /// A world like `new`'s in which pi-docker's own folder was changed by `alter`: to prove that a test sees what is missing.
    pub fn altered(scenario: &str, alter: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        Self::build(read_scenario(scenario)?, alter)
    }

    fn build(mut scenario: Value, alter: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pi-e2e-").tempdir()?;
        let id = format!("{:08x}", random()?);
        let user = User::ordinary(docker::socket()?.as_deref())?;
        let (key, token) = (format!("sk-ant-test-{id}{id}"), format!("github_pat_test{id}{id}"));
        if scenario["anthropic"].is_null() {
            scenario["anthropic"] = json!({ "keys": [key] });
        }
        if scenario["github"]["token"].is_null() {
            scenario["github"]["token"] = token.clone().into();
        }
        let outside = dir.path().join("internet");
        for folder in ["home", "bin", "internet/ca", "internet/repos"] {
            fs::create_dir_all(dir.path().join(folder))?;
        }
        // mkdtemp makes it for its owner alone.
        set_mode(dir.path(), 0o755)?;
        Authority::create(&outside.join("ca"))?;
        fs::write(outside.join("scenario.json"), serde_json::to_vec_pretty(&scenario)?)?;
        let machine_ca = std::env::var_os("PI_DOCKER_EXTRA_CA").filter(|path| !path.is_empty()).map(PathBuf::from);
        let mut bundle = fs::read(outside.join("ca/ca.pem"))?;
        if let Some(machine_ca) = &machine_ca {
            bundle.extend(fs::read(machine_ca).with_context(|| format!("cannot read '{}'", machine_ca.display()))?);
        }
        fs::write(dir.path().join("ca.pem"), bundle)?;
        install(&dir.path().join("pi-docker"))?;
        alter(&dir.path().join("pi-docker"))?;
        fs::copy(launcher()?, dir.path().join("bin/pi-docker")).context("cannot copy the launcher")?;
        user.own(dir.path())?;

        let internet = Internet::start(&id, &outside, user, machine_ca.as_deref())?;
        let repo = dir.path().join(format!("app-{id}"));
        let mut world = Self { dir, id, user, internet, repo, key, token, scenario, env: BTreeMap::new() };
        world.write_overlay()?;
        world.create_repository()?;
        world.set_env();
        world.ensure_images()?;
        Ok(world)
    }

    /// Has the product's own launcher build its images, unless they are those of the sources. One process at a time: the others
    /// find them built.
    fn ensure_images(&self) -> Result<()> {
        static DONE: Mutex<bool> = Mutex::new(false);
        let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
        if !*done && !self.images_are_current()? {
            let path = std::env::temp_dir().join(format!("pi-docker-e2e-{}.lock", nix::unistd::getuid()));
            let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
            lock.lock().context("cannot wait for others that build the images")?;
            if !self.images_are_current()? {
                eprintln!("building the images ...");
                self.pi_docker().args(["--rebuild", "--", "--version"]).limit(BUILD).shown().run()?.expect(0)?;
            }
        }
        *done = true;
        Ok(())
    }

    fn images_are_current(&self) -> Result<bool> {
        let said = self.pi_docker().arg("--dry-run").run()?.expect(0)?.stdout;
        let images =
            said.lines().find(|line| line.starts_with("images ")).context("a dry run says nothing of images")?;
        Ok(images.matches("(current)").count() == 2)
    }

    /// The overlay that is all the difference to a user's session: the proxy's way out leads to this world's internet and
    /// nowhere else.
    fn write_overlay(&self) -> Result<()> {
        let overlay = json!({
            "services": { "proxy": {
                "networks": { "pi-net": {}, "proxy-net": {}, "internet": {} },
                "dns": [self.internet.address],
            } },
            "networks": {
                "proxy-net": { "internal": true },
                "internet": { "external": true, "name": self.internet.network() },
            },
        });
        let path = self.path("overlay.json");
        fs::write(&path, serde_json::to_vec_pretty(&overlay)?).context("cannot write the overlay")?;
        self.user.own(&path)
    }

    fn create_repository(&self) -> Result<()> {
        let home = self.home();
        self.git_in(&home, ["config", "--global", "user.name", "Octavia Cat"])?;
        self.git_in(&home, ["config", "--global", "user.email", "octavia@example.com"])?;
        self.git_in(&home, ["config", "--global", "init.defaultBranch", "main"])?;
        self.git_in(self.dir.path(), ["init", "--quiet", &self.repo.display().to_string()])?;
        self.write("README.md", "# app\n\nA small example.\n")?;
        self.write("docs/notes.md", "Notes.\n")?;
        self.git(["add", "."])?;
        self.git(["commit", "--quiet", "-m", "Begin"])?;
        let bare = self.internet.bare(REPO).display().to_string();
        self.git(["clone", "--quiet", "--bare", ".", &bare])?;
        self.git(["remote", "add", "origin", &format!("https://github.com/{REPO}.git")])?;
        Ok(())
    }

    fn set_env(&mut self) {
        self.env = BTreeMap::from([
            ("PI_DOCKER_HOME", self.install_dir().into()),
            ("PI_DOCKER_COMPOSE_FILES", self.path("overlay.json").into()),
            ("PI_DOCKER_EXTRA_CA", self.path("ca.pem").into()),
            ("ANTHROPIC_API_KEY", self.key.clone().into()),
            ("PI_GH_TOKEN", self.token.clone().into()),
            ("TERM", "xterm-256color".into()),
            ("LANG", "C.UTF-8".into()),
        ]);
        // The engine and the images that are tested may be chosen from outside.
        for name in ["DOCKER_HOST", "PI_DOCKER_IMAGE", "PI_DOCKER_PROXY_IMAGE"] {
            if let Some(value) = std::env::var_os(name) {
                self.env.insert(name, value);
            }
        }
    }

    /// A path in this world's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The user's home folder.
    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// Where pi-docker is installed.
    pub fn install_dir(&self) -> PathBuf {
        self.path("pi-docker")
    }

    /// pi's login on the host.
    pub fn auth_json(&self) -> PathBuf {
        self.home().join(".pi/agent/auth.json")
    }

    /// Writes a login for the host's pi, as pi does.
    pub fn log_in(&self, auth: &str) -> Result<()> {
        let path = self.auth_json();
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(&path, auth)?;
        set_mode(&path, 0o600)?;
        self.user.own(&self.home().join(".pi"))
    }

    /// A login that holds nothing but this world's good key.
    pub fn log_in_with_key(&self) -> Result<()> {
        self.log_in(&json!({ "anthropic": { "type": "api_key", "key": self.key } }).to_string())
    }

    /// The launcher in this world's repository, with its login and token, and `--yes`.
    pub fn pi_docker(&self) -> Launch {
        self.bare_pi_docker().arg("--yes")
    }

    /// As `pi_docker`, without `--yes`.
    pub fn bare_pi_docker(&self) -> Launch {
        let mut command = self.user.command(self.path("bin/pi-docker"), &self.home());
        command.envs(&self.env).current_dir(&self.repo);
        Launch::new(command, self.user)
    }

    /// Runs a shell script by the agent's own bash tool in a session of its own, and gives what the tool printed. The scenario
    /// must have the rule `shell`.
    pub fn agent_sh(&self, script: &str) -> Result<String> {
        Ok(self.pi_docker().args(["-p", &format!("sh: {script}")]).run()?.expect(0)?.stdout)
    }

    /// The sessions that run now.
    pub fn sessions(&self) -> Result<Vec<Session>> {
        Session::all(&self.project_prefix(), self.user)
    }

    /// Waits until a session runs.
    pub fn wait_for_session(&self) -> Result<Session> {
        wait_until("a session runs", SOON, || Ok(self.sessions()?.pop()))
    }

    fn project_prefix(&self) -> String {
        format!("pi-app-{}-", self.id)
    }

    /// Everything that this world's sessions have in the engine: containers and networks, running or not.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let prefix = self.project_prefix();
        let mut all = docker::lines(["ps", "--all", "--format", "{{.Names}}"])?;
        all.extend(docker::lines(["network", "ls", "--format", "{{.Name}}"])?);
        // A login and a look of `doctor` do not have the repository's name: they are known by their folder.
        let sessions: Vec<String> =
            self.run_dirs()?.iter().filter_map(|dir| Some(format!("-{}", dir.file_name()?.to_str()?))).collect();
        all.retain(|name| name.starts_with(&prefix) || sessions.iter().any(|session| name.contains(session)));
        Ok(all)
    }

    /// What is left in `<home>/run`: folders of sessions.
    pub fn run_dirs(&self) -> Result<Vec<PathBuf>> {
        let Ok(entries) = fs::read_dir(self.install_dir().join("run")) else { return Ok(Vec::new()) };
        let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()?;
        Ok(paths.into_iter().filter(|path| path.is_dir()).collect())
    }

    /// Writes a file in the repository as the user.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.repo.join(name);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(&path, text).with_context(|| format!("cannot write '{}'", path.display()))?;
        self.user.own(&self.repo)
    }

    /// Runs git in the repository as the user and gives what it printed.
    pub fn git<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        self.git_in(&self.repo, args)
    }

    /// Runs git in the user's home folder as the user.
    pub fn git_in_home(&self, args: &[&str]) -> Result<String> {
        self.git_in(&self.home(), args.iter().copied())
    }

    /// Runs git on GitHub's copy of the repository.
    pub fn github_git<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        self.git_in(&self.internet.bare(REPO), args)
    }

    /// Commits one file on a new branch, and has the branch on GitHub too.
    pub fn begin_branch(&self, branch: &str, file: &str, text: &str) -> Result<()> {
        self.git(["switch", "--quiet", "--create", branch])?;
        self.write(file, text)?;
        self.git(["add", "."])?;
        self.git(["commit", "--quiet", "-m", &format!("Begin {file}")])?;
        self.git(["push", "--quiet", &self.internet.bare(REPO).display().to_string(), branch]).map(drop)
    }

    fn git_in<'a>(&self, dir: &Path, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let mut command = self.user.command("git", &self.home());
        let output = run(command.args(args).current_dir(dir))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Changes the scenario while everything runs.
    pub fn change_scenario(&mut self, change: impl FnOnce(&mut Value)) -> Result<()> {
        change(&mut self.scenario);
        self.internet.set_scenario(&self.scenario)
    }

    fn remove(&self) -> Result<()> {
        let leftovers = self.leftovers()?;
        let containers = docker::lines(["ps", "--all", "--format", "{{.Names}}"])?;
        let (containers, networks): (Vec<_>, Vec<_>) =
            leftovers.into_iter().partition(|name| containers.contains(name));
        docker::remove(&["rm", "--force", "--volumes"], &containers);
        docker::remove(&["network", "rm", "--force"], &networks);
        self.internet.remove()?;
        // The caches of every repository in this world's folder, as their labels say.
        let here = format!("pi-docker.cache-of={}/", self.dir.path().display());
        let mut volumes = Vec::new();
        for line in docker::lines(["volume", "ls", "--filter", "label=pi-docker.cache-of", "--format", "{{json .}}"])? {
            let volume: Value = serde_json::from_str(&line)?;
            if let (Some(name), Some(labels)) = (volume["Name"].as_str(), volume["Labels"].as_str())
                && labels.contains(&here)
            {
                volumes.push(name.to_owned());
            }
        }
        docker::remove(&["volume", "rm", "--force"], &volumes);
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::env::var_os("E2E_KEEP").is_some_and(|keep| keep == "1") {
            self.dir.disable_cleanup(true);
            eprintln!("kept: world {} in {}", self.id, self.dir.path().display());
        } else if let Err(error) = self.remove() {
            eprintln!("cannot take the world down: {error:#}");
        }
    }
}

fn read_scenario(name: &str) -> Result<Value> {
    let path = manifest("scenarios").join(format!("{name}.json"));
    let text = fs::read(&path).with_context(|| format!("cannot read '{}'", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("cannot understand '{}'", path.display()))
}

/// The shipped files, as a clone has them: this one, or the one that E2E_SOURCES names.
pub fn install(target: &Path) -> Result<()> {
    let clone = std::env::var_os("E2E_SOURCES").map_or_else(|| manifest(".."), PathBuf::from).canonicalize()?;
    let mut list = Command::new("git");
    list.args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = run(list.current_dir(&clone))?;
    for name in String::from_utf8(listed.stdout)?.split('\0').filter(|name| !name.is_empty()) {
        let source = clone.join(name);
        // Tests are not shipped; a file may be listed and deleted.
        if name.starts_with("e2e/") || !source.is_file() {
            continue;
        }
        let copy = target.join(name);
        fs::create_dir_all(copy.parent().unwrap_or(target))?;
        fs::copy(&source, &copy).with_context(|| format!("cannot copy '{name}'"))?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot change '{}'", path.display()))
}

fn random() -> Result<u32> {
    use std::io::Read;
    let mut bytes = [0; 4];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}
