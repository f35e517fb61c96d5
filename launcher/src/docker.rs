#![expect(clippy::disallowed_methods, reason = "this is the one place that starts docker")]
//! The docker command: what it is started with, and the few questions and orders that a session has for it.
//! Its environment is a chosen one: no COMPOSE_ variable, no secret.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::config::Config;
use crate::error::hinted;

/// How long an engine may take for a question; one that is alive needs a fraction of a second.
const ANSWER: Duration = Duration::from_secs(15);
/// The container's own grace period, and then some.
const STOP: Duration = Duration::from_secs(40);
/// Between two tries to remove what somebody else is removing.
const AGAIN: Duration = Duration::from_millis(100);
/// The label that names a volume's repository.
const CACHE_OF: &str = "pi-docker.cache-of";

pub(crate) struct Docker {
    env: Vec<(OsString, OsString)>,
    host: Option<String>,
}

/// Where the output of a docker in the foreground goes.
pub(crate) enum Output {
    /// To the terminal that this program has.
    Terminal,
    /// The same, with an input that the caller writes.
    Fed,
    /// To stderr, all of it.
    Narration,
    File(File),
}

/// What answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Engine {
    pub(crate) version: String,
    pub(crate) compose: String,
    /// How many it has; 0 if it does not say.
    pub(crate) cpus: u64,
    /// Docker Desktop: the engine is in a machine of its own, and has a name for this one.
    pub(crate) desktop: bool,
}

impl Docker {
    /// `extra` is what docker compose fills into its files, besides the settings of the configuration.
    pub(crate) fn new(config: &Config, extra: &BTreeMap<&'static str, String>) -> Docker {
        let mut env = config.docker_env.clone();
        for (name, value) in config.for_compose().chain(extra.iter().map(|(name, value)| (*name, value.as_str()))) {
            env.retain(|(known, _)| known != name);
            env.push((name.into(), value.into()));
        }
        Docker { env, host: config.docker_host.clone() }
    }

    /// Finds out whether there is an engine that a session can run on; if not, the error says why.
    pub(crate) fn engine(&self) -> Result<Engine> {
        if let Some(host) = &self.host {
            is_local(host)?;
        }
        let output = self.ask(["info", "--format", "{{json .}}"], ANSWER)?;
        let info: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if let (None, Some(context)) = (&self.host, info["ClientInfo"]["Context"].as_str())
            && context != "default"
        {
            let output = self.ask(["context", "inspect", "--format", "{{.Endpoints.docker.Host}}", context], ANSWER)?;
            is_local(String::from_utf8_lossy(&output.stdout).trim())?;
        }
        judge(&info, &String::from_utf8_lossy(&output.stderr))
    }

    /// The labels of a local image; `None` if there is no such image.
    pub(crate) fn image_labels(&self, image: &str) -> Result<Option<BTreeMap<String, String>>> {
        let output = self.ask(["image", "inspect", "--format", "{{json .Config.Labels}}", image], ANSWER)?;
        if output.status.success() {
            let labels: Option<BTreeMap<String, String>> = serde_json::from_slice(&output.stdout)
                .with_context(|| format!("cannot read the labels of '{image}'"))?;
            return Ok(Some(labels.unwrap_or_default()));
        }
        if String::from_utf8_lossy(&output.stderr).to_lowercase().contains("no such image") {
            return Ok(None);
        }
        Err(failed("cannot look at the image", image, &output))
    }

    /// Makes the volume for a repository's caches, if it is not there yet. The label says whose it is.
    pub(crate) fn create_volume(&self, name: &str, repository: &Path) -> Result<()> {
        let whose = format!("{CACHE_OF}={}", repository.display());
        let output = self.ask(["volume", "create", "--label", "pi-docker.cache=1", "--label", &whose, name], ANSWER)?;
        if output.status.success() { Ok(()) } else { Err(failed("cannot make the volume", name, &output)) }
    }

    /// The volumes for caches, each with its repository if that is known.
    pub(crate) fn cache_volumes(&self) -> Result<Vec<(String, Option<PathBuf>)>> {
        let format = format!("{{{{.Name}}}}\t{{{{.Label \"{CACHE_OF}\"}}}}");
        let lines = self.list(["volume", "ls", "--filter", "label=pi-docker.cache", "--format", &format])?;
        let volume = |line: String| match line.split_once('\t') {
            Some((name, "")) => (name.to_owned(), None),
            Some((name, repository)) => (name.to_owned(), Some(repository.into())),
            None => (line, None),
        };
        Ok(lines.into_iter().map(volume).collect())
    }

    /// Asks a container to end, and waits until it has. An error if there is none of this name.
    pub(crate) fn stop(&self, container: &str) -> Result<()> {
        let output = self.ask(["stop", container], STOP)?;
        if output.status.success() { Ok(()) } else { Err(failed("cannot stop", container, &output)) }
    }

    /// What a container has ended with, if it has.
    pub(crate) fn exit_status(&self, container: &str) -> Option<u32> {
        let format = "{{if not .State.Running}}{{.State.ExitCode}}{{end}}";
        let output = self.ask(["container", "inspect", "--format", format, container], ANSWER).ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok()
    }

    /// Ends a container at once. Nothing to end is no error.
    pub(crate) fn kill(&self, container: &str) {
        let _ = self.ask(["kill", container], ANSWER);
    }

    /// Tells a container's program to read its configuration again.
    pub(crate) fn hang_up(&self, container: &str) -> Result<()> {
        let output = self.ask(["kill", "--signal", "HUP", container], ANSWER)?;
        if output.status.success() { Ok(()) } else { Err(failed("cannot reload", container, &output)) }
    }

    /// Ends a container at once and starts it again.
    pub(crate) fn restart(&self, container: &str) -> Result<()> {
        let output = self.ask(["restart", "--time", "0", container], ANSWER)?;
        if output.status.success() { Ok(()) } else { Err(failed("cannot restart", container, &output)) }
    }

    /// The address that this machine has for containers, on the engine's own bridge.
    pub(crate) fn bridge_address(&self) -> Result<String> {
        let format = "{{range .IPAM.Config}}{{println .Gateway}}{{end}}";
        let output = self.ask(["network", "inspect", "bridge", "--format", format], ANSWER)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let address = text.split_whitespace().find(|address| address.parse::<Ipv4Addr>().is_ok());
        address.map(str::to_owned).ok_or_else(|| failed("cannot find this machine's address on", "bridge", &output))
    }

    /// What a container has written to its log; empty if it has none.
    pub(crate) fn logs(&self, container: &str) -> String {
        match self.ask(["logs", container], ANSWER) {
            Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
            _ => String::new(),
        }
    }

    /// Starts docker with its output in a pipe, for a reader of lines.
    pub(crate) fn follow(&self, words: &[&str]) -> Result<Child> {
        let mut command = self.command(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(not_started)
    }

    /// Runs docker with `input` on its stdin, and returns what it says.
    pub(crate) fn feed(&self, words: &[&str], input: &[u8]) -> Result<process::Output> {
        // A file, not a pipe: nobody has to write while the other side does not read.
        let mut file = tempfile::tempfile().context("cannot make a file for docker's input")?;
        file.write_all(input).and_then(|()| file.rewind()).context("cannot make a file for docker's input")?;
        let mut command = self.command(words);
        command.stdin(file).stdout(Stdio::piped());
        answer(command, ANSWER)
    }

    /// Removes every container and network of a compose project; a session's networks are its own. Stops nothing gently.
    ///
    /// Docker's own command may be removing the same things, or may have been killed with the engine still making them: what is
    /// under way is an error to whoever asks again, keeps a network in use, or comes after the list. So what counts is that
    /// nothing is left.
    pub(crate) fn remove_project(&self, project: &str) -> Result<()> {
        let filter = format!("label=com.docker.compose.project={project}");
        let deadline = Instant::now() + STOP;
        loop {
            let (containers, networks) = thread::scope(|scope| {
                let networks = scope.spawn(|| self.list(["network", "ls", "--quiet", "--filter", &filter]));
                let containers = self.list(["ps", "--all", "--quiet", "--filter", &filter]);
                (containers, networks.join().unwrap_or_else(|_| Err(anyhow!("cannot list networks"))))
            });
            let (containers, networks) = (containers?, networks?);
            if containers.is_empty() && networks.is_empty() {
                return Ok(());
            }
            let removed =
                self.remove(&["rm", "--force", "--volumes"], containers).and_then(|()| self.remove_networks(networks));
            match removed {
                Ok(()) => {}
                Err(_) if Instant::now() < deadline => thread::sleep(AGAIN),
                Err(e) => return Err(e),
            }
        }
    }

    /// Each takes its time, so all at once.
    fn remove_networks(&self, networks: Vec<String>) -> Result<()> {
        thread::scope(|scope| {
            let ends: Vec<_> = networks
                .into_iter()
                .map(|network| scope.spawn(|| self.remove(&["network", "rm", "--force"], vec![network])))
                .collect();
            ends.into_iter()
                .map(|end| end.join().unwrap_or_else(|_| Err(anyhow!("cannot remove the networks"))))
                .fold(Ok(()), Result::and)
        })
    }

    fn remove(&self, verb: &[&str], ids: Vec<String>) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let words = verb.iter().map(|w| (*w).to_owned()).chain(ids.iter().cloned());
        let output = self.ask(words, STOP)?;
        if output.status.success() { Ok(()) } else { Err(failed("cannot remove", &ids.join(" "), &output)) }
    }

    fn list<const N: usize>(&self, words: [&str; N]) -> Result<Vec<String>> {
        let output = self.ask(words, ANSWER)?;
        if !output.status.success() {
            return Err(failed("cannot list", words[0], &output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    /// Starts docker in the foreground.
    pub(crate) fn spawn(&self, words: &[OsString], output: Output) -> Result<Child> {
        let mut command = self.command(words);
        match output {
            Output::Terminal => &mut command,
            Output::Fed => command.stdin(Stdio::piped()),
            Output::Narration => command.stdin(Stdio::null()).stdout(io::stderr()),
            Output::File(file) => {
                let copy = file.try_clone().context("cannot copy a descriptor")?;
                command.stdin(Stdio::null()).stdout(copy).stderr(file)
            }
        };
        command.spawn().map_err(not_started)
    }

    /// Runs docker and returns what it says, unless it takes longer than `limit`.
    pub(crate) fn ask<I, S>(&self, words: I, limit: Duration) -> Result<process::Output>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = self.command(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        answer(command, limit)
    }

    /// Runs docker with its output in `file`. An error with what it says if it fails or takes longer than `limit`.
    pub(crate) fn capture(&self, words: &[OsString], file: File, limit: Duration) -> Result<()> {
        let mut command = self.command(words);
        command.stdin(Stdio::null()).stdout(file);
        let output = answer(command, limit)?;
        if output.status.success() { Ok(()) } else { Err(failed("cannot run", "docker", &output)) }
    }

    fn command<I, S>(&self, words: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = Command::new("docker");
        command.env_clear().envs(self.env.iter().map(|(name, value)| (name, value))).args(words);
        command
    }
}

/// Runs a prepared docker and returns what it says, unless it takes longer than `limit`.
fn answer(mut command: Command, limit: Duration) -> Result<process::Output> {
    // A group of its own: Ctrl-C is for the program in the foreground, and the clean-up goes on.
    command.stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().map_err(not_started)?;
    let pid = child.id();
    let (sender, answer) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    match answer.recv_timeout(limit) {
        Ok(output) => output.context("cannot read what docker says"),
        Err(_) => {
            if let Ok(pid) = i32::try_from(pid) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let hint = "see whether `docker info` answers; restart Docker if it does not";
            Err(hinted(format!("cannot use Docker: no answer within {} s", limit.as_secs()), hint))
        }
    }
}

fn not_started(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::NotFound {
        return hinted("cannot run 'docker': not found", "install Docker Engine 24 or newer, or Docker Desktop");
    }
    anyhow!("cannot run 'docker': {error}")
}

fn failed(what: &str, name: &str, output: &process::Output) -> anyhow::Error {
    anyhow!("{what} '{name}': {}", why(&String::from_utf8_lossy(&output.stderr)))
}

/// The line that says why docker failed: the last one that is not about how docker is used.
pub(crate) fn why(stderr: &str) -> &str {
    let advice =
        |line: &str| line.is_empty() || ["Run 'docker", "See 'docker"].iter().any(|start| line.starts_with(start));
    let line = stderr.lines().rev().map(str::trim).find(|line| !advice(line)).unwrap_or("docker does not say why");
    let line = line.strip_prefix("docker: ").unwrap_or(line);
    line.strip_prefix("Error response from daemon: ").unwrap_or(line)
}

/// An error unless the engine at `host` is on this machine.
fn is_local(host: &str) -> Result<()> {
    if ["unix://", "npipe://", "fd://"].iter().any(|scheme| host.starts_with(scheme)) {
        return Ok(());
    }
    Err(hinted(
        format!("cannot use the remote engine '{host}': it cannot mount this machine's folders"),
        "unset DOCKER_HOST, or `docker context use default`",
    ))
}

/// Whether a session can run on the engine that `info` describes.
fn judge(info: &Value, stderr: &str) -> Result<Engine> {
    let Some(version) = info["ServerVersion"].as_str().filter(|v| !v.is_empty()) else {
        let told = info["ServerErrors"][0].as_str().unwrap_or(stderr);
        let why = told.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no answer");
        return Err(hinted(format!("cannot reach the Docker engine: {why}"), "start Docker, then try again"));
    };
    let options = info["SecurityOptions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if options.iter().filter_map(Value::as_str).any(|option| option.contains("name=rootless")) {
        return Err(hinted(
            "cannot use a rootless engine: it maps user numbers, so the agent could not be the owner of its files",
            "use Docker Engine as root, or Docker Desktop",
        ));
    }
    if major(version) < 24 {
        return Err(hinted(format!("cannot use Docker Engine {version}: older than 24"), "update Docker"));
    }
    let plugins = info["ClientInfo"]["Plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
    let compose =
        plugins.iter().find(|plugin| plugin["Name"] == "compose").and_then(|plugin| plugin["Version"].as_str());
    match compose {
        Some(compose) if major(compose) >= 2 => Ok(Engine {
            version: version.to_owned(),
            compose: compose.to_owned(),
            cpus: info["NCPU"].as_u64().unwrap_or_default(),
            desktop: info["OperatingSystem"].as_str().is_some_and(|name| name.contains("Docker Desktop")),
        }),
        _ => Err(hinted("cannot find Docker Compose v2", "install the package docker-compose-plugin")),
    }
}

fn major(version: &str) -> u32 {
    let digits: String = version.trim_start_matches('v').chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_reason_is_what_the_engine_says_and_not_how_docker_is_used() {
        let gone = "docker: Error response from daemon: invalid mount config for type \"bind\": bind source path does not exist: /x.\n\
                    See 'docker run --help'.\n\nRun 'docker run --help' for more information\n";
        assert_eq!(why(gone), "invalid mount config for type \"bind\": bind source path does not exist: /x.");
        assert_eq!(why("one\ntwo\n\n"), "two");
        assert_eq!(why("\n"), "docker does not say why");
    }

    fn info(version: &str, compose: &str) -> Value {
        json!({
            "ServerVersion": version, "SecurityOptions": ["name=seccomp,profile=builtin"],
            "ClientInfo": { "Plugins": [{ "Name": "buildx" }, { "Name": "compose", "Version": compose }] },
        })
    }

    fn refusal(info: &Value) -> String {
        format!("{:#}", judge(info, "").unwrap_err())
    }

    #[test]
    fn a_local_engine_24_with_compose_2_is_taken() {
        for version in ["24.0.0", "26.1.5+dfsg1"] {
            assert!(judge(&info(version, "2.26.1-4"), "").is_ok());
        }
        assert!(judge(&info("28.0", "v5.0.0"), "").is_ok());
        assert!(is_local("unix:///var/run/docker.sock").is_ok());
    }

    #[test]
    fn what_a_session_cannot_run_on_is_refused_with_the_reason() {
        assert!(refusal(&info("20.10.24", "2.2")).contains("older than 24"));
        assert!(refusal(&info("26.1", "1.29")).contains("Compose v2"));
        for host in ["tcp://10.0.0.1:2375", "ssh://me@host"] {
            assert!(is_local(host).unwrap_err().to_string().contains("remote"));
        }
        let mut rootless = info("26.1", "2.26");
        rootless["SecurityOptions"] = json!(["name=rootless"]);
        assert!(refusal(&rootless).contains("rootless"));
        let dead = json!({ "ServerErrors": ["Cannot connect to the Docker daemon at unix:///x."] });
        assert!(refusal(&dead).contains("Cannot connect"));
    }
}
