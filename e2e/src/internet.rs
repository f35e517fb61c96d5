//! The world outside of one `World`: a network of its own and the program `internet` on it, under the real names.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::docker::{self, LABEL, docker};
use crate::user::User;
use crate::{SOON, wait_until};

/// An image with git and a shell.
pub const IMAGE: &str = "pi-docker-e2e-internet";
/// Set where that image is there already and is not to be built.
pub const GIVEN: &str = "E2E_IMAGE_IS_GIVEN";
/// The same with the program in it.
const WHOLE: &str = "pi-docker-e2e-internet:whole";
/// The names that are played. Any other name that squid may ask for leads here by DNS, and is answered with 418.
const NAMES: &[&str] = &[
    "api.anthropic.com",
    "api.github.com",
    "github.com",
    "claude.ai",
    "platform.claude.com",
    "api.individual.githubcopilot.com",
];
/// Where Ollama listens, by its own default.
pub const OLLAMA_PORT: u16 = 11434;

pub struct Internet {
    dir: PathBuf,
    network: String,
    /// Where it answers, on its own network.
    pub address: String,
    user: User,
}

/// A line of the record: see `record.rs` of the program.
#[derive(Clone, Debug)]
pub struct Request {
    /// Microseconds since the epoch.
    pub ts: u64,
    pub host: String,
    pub method: String,
    pub path: String,
    pub status: u64,
    pub auth: String,
    pub body: Value,
}

impl Internet {
    /// Starts it in the folder `dir`, which has `ca`, `repos` and `scenario.json`, and waits until it answers.
    pub fn start(id: &str, dir: &Path, user: User, extra_ca: Option<&Path>) -> Result<Self> {
        let program = Program::find(extra_ca)?;
        fs::create_dir_all(dir.join("record/gates"))?;
        user.own(dir)?;
        let network = format!("pi-e2e-{id}");
        let address = create_network(&network)?;
        let internet = Self { dir: dir.to_owned(), address, network, user };
        internet.run(program)?;
        Ok(internet)
    }

    fn run(&self, program: &Program) -> Result<()> {
        let mut args: Vec<String> =
            ["run", "--detach", "--init", "--read-only", "--cap-drop=ALL"].map(str::to_owned).into();
        args.extend(["--name", &self.network, "--network", &self.network, "--ip", &self.address].map(str::to_owned));
        args.extend(
            ["--label", &format!("{LABEL}={}", std::process::id()), "--user", &self.user.numbers()].map(str::to_owned),
        );
        for name in NAMES {
            args.push(format!("--network-alias={name}"));
        }
        args.push(bind(&self.dir, "/world"));
        if let Program::Here(path) = program {
            args.push(bind(path, "/internet"));
        }
        args.push(program.image().to_owned());
        args.extend(
            ["/internet", "/world/scenario.json", "/world/ca", "/world/repos", "/world/record"].map(str::to_owned),
        );
        args.extend(["--dns", &self.address, "--trap", "22", "--trap", "80", "--trap", "8443"].map(str::to_owned));
        args.extend(["--ollama".to_owned(), format!("{}:{OLLAMA_PORT}", self.address)]);
        docker(args)?;
        let ready = self.dir.join("record/ready");
        let waited = wait_until("the internet answers", SOON, || Ok(ready.exists().then_some(())));
        waited.or_else(|error| bail!("{error}: {}", docker::try_docker(["logs", &self.network])?.1.trim()))
    }

    /// The network's name, which is also the container's.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// Everything that was asked so far.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let text = fs::read_to_string(self.dir.join("record/requests.ndjson")).context("cannot read the record")?;
        // The last line may be in the middle of being written.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        whole.lines().map(Request::parse).collect()
    }

    /// The requests to one host.
    pub fn requests_to(&self, host: &str) -> Result<Vec<Request>> {
        Ok(self.requests()?.into_iter().filter(|request| request.host == host).collect())
    }

    /// The requests that the model has answered.
    pub fn model(&self) -> Result<Vec<Request>> {
        let all = self.requests_to("api.anthropic.com")?;
        Ok(all
            .into_iter()
            .filter(|request| request.path.starts_with("/v1/messages") && request.status == 200)
            .collect())
    }

    /// The request that the model answered with `step` of rule `rule`, if it was asked.
    pub fn step(&self, rule: &str, step: u64) -> Result<Option<Request>> {
        let asked = |request: &Request| request.body["rule"] == rule && request.body["step"] == step;
        Ok(self.requests()?.into_iter().find(asked))
    }

    /// Lets the turns go on that wait at the gate `name`.
    pub fn open_gate(&self, name: &str) -> Result<()> {
        fs::write(self.dir.join("record/gates").join(name), "")
            .with_context(|| format!("cannot open the gate '{name}'"))
    }

    /// The pull requests that were opened.
    pub fn pulls(&self) -> Result<Vec<Value>> {
        match fs::read(self.dir.join("record/pulls.json")) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(_) => Ok(Vec::new()),
        }
    }

    /// The bare repository `owner/name`.
    pub fn bare(&self, repo: &str) -> PathBuf {
        self.dir.join("repos").join(format!("{repo}.git"))
    }

    /// The scenario, to be changed while everything runs.
    pub fn set_scenario(&self, scenario: &Value) -> Result<()> {
        let draft = self.dir.join("scenario.new");
        fs::write(&draft, serde_json::to_vec_pretty(scenario)?)?;
        fs::rename(draft, self.dir.join("scenario.json")).context("cannot write the scenario")
    }

    /// Everything that was asked and answered with 418, by DNS, or at a port where nothing is to be had: what got out that should
    /// not.
    pub fn strays(&self) -> Result<Vec<Request>> {
        let stray =
            |request: &Request| request.status == 418 || ["DNS", "TCP", "TLS"].contains(&request.method.as_str());
        Ok(self.requests()?.into_iter().filter(stray).collect())
    }

    pub(crate) fn remove(&self) -> Result<()> {
        docker::remove_network(&self.network)
    }
}

/// The same program on this machine itself, in a part that a user has there.
pub struct OnThisMachine {
    process: std::process::Child,
    record: PathBuf,
}

impl OnThisMachine {
    /// An Ollama server that listens at `address`, as `ip:port`.
    pub fn ollama(internet: &Internet, address: &str) -> Result<Self> {
        Self::start(internet, "--ollama", address)
    }

    /// A proxy for TLS at `address`, behind which all the names are played.
    pub fn tunnel(internet: &Internet, address: &str) -> Result<Self> {
        Self::start(internet, "--tunnel", address)
    }

    /// What is asked of it is recorded in a folder of its own.
    fn start(internet: &Internet, part: &str, address: &str) -> Result<Self> {
        let record = internet.dir.join(format!("on-this-machine-{}", address.replace([':', '.'], "-")));
        fs::create_dir_all(record.join("gates"))?;
        let mut command = std::process::Command::new(program()?);
        command.arg(internet.dir.join("scenario.json")).arg(internet.dir.join("ca")).arg(internet.dir.join("repos"));
        command.arg(&record).args(["--listen", "127.0.0.1:0", part, address]);
        let process = command.spawn().context("cannot start the program 'internet'")?;
        let server = Self { process, record };
        wait_until("it answers", SOON, || Ok(server.record.join("ready").exists().then_some(())))?;
        Ok(server)
    }

    /// The paths that were asked for.
    pub fn paths(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.record.join("requests.ndjson"))?;
        text.lines().map(|line| Ok(Request::parse(line)?.path)).collect()
    }
}

impl Drop for OnThisMachine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Request {
    fn parse(line: &str) -> Result<Self> {
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("cannot understand the record: {line}"))?;
        let text = |key: &str| value[key].as_str().unwrap_or("").to_owned();
        Ok(Self {
            ts: value["ts"].as_u64().unwrap_or(0),
            host: text("host"),
            method: text("method"),
            path: text("path"),
            status: value["status"].as_u64().unwrap_or(0),
            auth: text("auth"),
            body: value["body"].clone(),
        })
    }
}

/// A file of this package.
pub fn manifest(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn bind(source: &Path, target: &str) -> String {
    format!("--mount=type=bind,source={},target={target}", source.display())
}

/// The program, as it was built beside this one.
fn program() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let beside = this.ancestors().skip(1).take(2).map(|dir| dir.join("internet")).find(|path| path.is_file());
    beside.context("cannot find the program 'internet'; cargo build makes it")
}

/// Where the program comes from.
enum Program {
    /// It was built beside this one, and runs in the image.
    Here(PathBuf),
    InImage,
}

impl Program {
    /// Finds out once, and builds what is needed.
    fn find(extra_ca: Option<&Path>) -> Result<&'static Self> {
        static FOUND: Mutex<Option<&'static Program>> = Mutex::new(None);
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = *found {
            return Ok(program);
        }
        let dockerfile = manifest("internet.Dockerfile");
        // An engine without network is given the image.
        if std::env::var_os(GIVEN).is_none() {
            docker::build(IMAGE, &dockerfile, "git", extra_ca)?;
        }
        let path = program()?;
        let probe = ["run", "--rm", "--network=none", &bind(&path, "/internet"), IMAGE, "/internet", "--help"];
        let program = if docker::try_docker(probe)?.0 {
            Program::Here(path)
        } else {
            eprintln!("building the program 'internet' for the container ...");
            docker::build(WHOLE, &dockerfile, "whole", extra_ca)?;
            Program::InImage
        };
        Ok(found.insert(Box::leak(Box::new(program))))
    }

    fn image(&self) -> &'static str {
        match self {
            Program::Here(_) => IMAGE,
            Program::InImage => WHOLE,
        }
    }
}

/// Makes an internal network in a range that is never routed and that squid does not take for a private one. Gives the address
/// for `internet`.
fn create_network(name: &str) -> Result<String> {
    static SWEPT: std::sync::Once = std::sync::Once::new();
    SWEPT.call_once(|| {
        if let Err(error) = docker::sweep() {
            eprintln!("{error:#}");
        }
    });
    let label = format!("{LABEL}={}", std::process::id());
    wait_until("a network is free for the test", Duration::from_secs(300), || {
        for block in 0..16 {
            let subnet = format!("192.88.99.{}/28", block * 16);
            let args = ["network", "create", "--internal", "--label", &label, "--subnet", &subnet, name];
            match docker(args) {
                Ok(_) => return Ok(Some(format!("192.88.99.{}", block * 16 + 2))),
                Err(error) if format!("{error:#}").contains("overlaps") => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    })
}
