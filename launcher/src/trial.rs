//! A session without a repository, a login or a token, that runs nothing but time: proof that the containers start, that the network
//! is closed, and a place to ask GitHub from, by the way that a session would.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::allowlist;
use crate::cli::Owner;
use crate::config::Config;
use crate::containers;
use crate::docker::{Docker, why};
use crate::files::Maker;
use crate::heartbeat::{Canary, Heartbeat};
use crate::home::Home;
use crate::inputs;
use crate::overlay;
use crate::plan::{Choices, Names, Plan};
use crate::run_dir::{Record, RunDir, Secrets};
use crate::session::{random_id, selinux, unix_now};
use crate::terminal::{Terminal, printable};

const START: Duration = Duration::from_secs(60);
const READY: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
/// Between two questions to the engine whether the container is still there.
const ASK: Duration = Duration::from_secs(1);

/// A trial that has started.
pub(crate) struct Trial<'a> {
    docker: &'a Docker,
    record: Record,
    has_ca: bool,
}

/// What a trial is made from.
pub(crate) struct Ground<'a> {
    pub(crate) config: &'a Config,
    pub(crate) home: &'a Home,
    pub(crate) docker: &'a Docker,
    pub(crate) terminal: &'a Terminal,
    pub(crate) user: Owner,
    /// Names that are allowed in it, besides those of a session.
    pub(crate) names: &'a [&'a str],
}

/// Starts a trial, lets `look` look around in it, and takes everything away again.
pub(crate) fn run<T>(ground: &Ground, look: impl FnOnce(&Trial) -> T) -> Result<T> {
    let (user, docker) = (ground.user, ground.docker);
    let names = Names::new("doctor", "", &random_id()?);
    let record = Record {
        pid: std::process::id(),
        session: names.session.clone(),
        project: names.project.clone(),
        container: names.container.clone(),
        repository_id: String::new(),
        root: PathBuf::new(),
        auth: PathBuf::new(),
        auth_digest: None,
        keep_auth: true,
        user: (user.uid, user.gid),
        started: unix_now(),
    };
    let run = RunDir::create(ground.home, record.clone(), Maker::new(user))?;
    let looked = start(ground, &run, names).map(|heartbeat| {
        let looked = look(&Trial { docker, record, has_ca: ground.config.setting("PI_DOCKER_EXTRA_CA").is_some() });
        drop(heartbeat);
        looked
    });
    let cleaned = containers::clean_up(docker, ground.home, run);
    let looked = looked?;
    cleaned?;
    Ok(looked)
}

fn start(ground: &Ground, run: &RunDir, names: Names) -> Result<Heartbeat> {
    let Ground { config, home, docker, terminal, user, names: more } = *ground;
    let maker = Maker::new(user);
    let (empty, auth) = (run.path.join("empty"), run.path.join("auth.json"));
    maker.dir(&empty)?;
    maker.file(&auth, b"{}")?;
    let canary = Canary::open()?;
    let choices = Choices {
        pi_args: &[],
        user,
        keep_auth: true,
        compose_files: &config.compose_files(),
        compose_override: home.compose_override(),
        interactive: false,
        input: true,
        selinux: selinux(),
        canary: &canary.addresses,
        git: &[],
        export: false,
    };
    let plan = Plan::trial(names, home.dir(), &run.path, &auth, &empty, &choices);
    let secrets = run.write_in(maker, &Secrets { github: None, auth: serde_json::Map::new() }, "", "")?;
    inputs::write_common(config, home, terminal, &secrets, maker)?;
    let control = run.write_control(maker)?;
    let mut allowed = allowlist::parse_list("the list", &inputs::allowed_names(config, home, &run.path)?)?;
    for name in more {
        allowed.push(allowlist::Entry::Allow(allowlist::Domain::parse(name)?));
    }
    let allowed = allowlist::render(&allowlist::merge(allowed));
    run.write_squid(maker, &allowed, &inputs::squid_local(home)?)?;
    run.write_overlay(maker, &overlay::render(&plan))?;
    let heartbeat = Heartbeat::start(&control, secrets, Some(canary))?;
    let started = docker.ask(&plan.command, START)?;
    if !started.status.success() {
        return Err(anyhow!("{}", printable(why(&String::from_utf8_lossy(&started.stderr)))));
    }
    let deadline = Instant::now() + READY;
    let mut next_look = Instant::now() + ASK;
    while !control.join("ready").exists() {
        let mut ended = control.join("result.json").exists();
        if !ended && Instant::now() > next_look {
            next_look = Instant::now() + ASK;
            // PID 1 may have refused before it could write anything.
            let status = docker.exit_status(&run.record.container);
            ended = control.join("result.json").exists();
            if let Some(status) = status.filter(|_| !ended && !control.join("log").exists()) {
                return Err(anyhow!("the container ended with status {status} before it could say why"));
            }
            ended |= status.is_some();
        }
        if ended || Instant::now() > deadline {
            let log = fs::read_to_string(control.join("log")).unwrap_or_default();
            let told = log.lines().find(|line| !line.starts_with("hint")).unwrap_or("the container does not say why");
            return Err(anyhow!("{}", printable(told)));
        }
        thread::sleep(LOOK);
    }
    Ok(heartbeat)
}

/// What a server answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Trial<'_> {
    /// Its containers and networks.
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Runs a script as the agent; whether it succeeded, and what it printed.
    pub(crate) fn sh(&self, script: &str) -> Result<(bool, String)> {
        let user = format!("{}:{}", self.record.user.0, self.record.user.1);
        let words = ["exec", "-i", "--user", &user, "--env", "HOME=/home/pi", &self.record.container, "bash", "-s"];
        let output = self.docker.feed(&words, script.as_bytes())?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// Asks `url` by curl in the container, through the proxy. `header` may hold a secret: it goes in by stdin. `body` makes it a POST.
    pub(crate) fn fetch(&self, url: &str, header: Option<&str>, body: Option<&str>) -> Result<Answer> {
        let mut curl = format!(
            "silent\nshow-error\nmax-time = 15\nconnect-timeout = 8\nwrite-out = \"\\n%{{http_code}}\"\nuser-agent = \"pi-docker\"\nurl = {}\n",
            quoted(url)
        );
        if let Some(header) = header {
            curl += &format!("header = {}\n", quoted(header));
        }
        if let Some(body) = body {
            curl += &format!("data = {}\nheader = \"Content-Type: application/json\"\n", quoted(body));
        }
        if self.has_ca {
            curl += "cacert = \"/home/pi/.config/pi-docker/ca.pem\"\n";
        }
        let user = format!("{}:{}", self.record.user.0, self.record.user.1);
        let words = ["exec", "-i", "--user", &user, &self.record.container, "curl", "--config", "-"];
        let output = self.docker.feed(&words, curl.as_bytes())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (body, status) = text.rsplit_once('\n').unwrap_or(("", ""));
        match status.trim().parse() {
            Ok(status) if status > 0 => Ok(Answer { status, body: body.to_owned() }),
            _ => Err(anyhow!("{}", printable(String::from_utf8_lossy(&output.stderr).trim()))),
        }
        .with_context(|| format!("no answer from '{url}'"))
    }
}

/// A value as curl's configuration file takes it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars().filter(|c| !c.is_control()) {
        if c == '"' || c == '\\' {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted + "\""
}
