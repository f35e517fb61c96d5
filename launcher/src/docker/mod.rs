#![expect(clippy::disallowed_methods, reason = "this is the one place that starts docker")]
//! The docker command: what it is started with, and the few questions and orders that a session has for it.
//! Its environment is a chosen one: no COMPOSE_ variable, no secret.

mod engine;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
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
pub(crate) use engine::Engine;
use engine::{is_local, judge};

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

    /// Runs docker with its output in `file`. An error with what it says if it fails, takes longer than `limit`, or prints more than
    /// `most` bytes, of which no more are written.
    pub(crate) fn capture(&self, words: &[OsString], mut file: File, limit: Duration, most: u64) -> Result<()> {
        let mut command = self.command(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = start(command)?;
        let pipe = child.stdout.take();
        let copier = thread::spawn(move || {
            let Some(mut pipe) = pipe else { return Ok(true) };
            io::copy(&mut (&mut pipe).take(most), &mut file)?;
            // Docker's own write fails when there is nobody to read any more.
            Ok::<_, io::Error>(pipe.read(&mut [0])? == 0)
        });
        let output = wait(child, limit);
        let copied = copier.join().unwrap_or_else(|_| Err(io::Error::other("its reader has ended")));
        if !copied.context("cannot keep what docker says")? {
            return Err(anyhow!("cannot take the commits: they are more than the limit of {} MiB", most >> 20));
        }
        let output = output?;
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
fn answer(command: Command, limit: Duration) -> Result<process::Output> {
    wait(start(command)?, limit)
}

fn start(mut command: Command) -> Result<Child> {
    // A group of its own: Ctrl-C is for the program in the foreground, and the clean-up goes on.
    command.stderr(Stdio::piped()).process_group(0);
    command.spawn().map_err(not_started)
}

fn wait(child: Child, limit: Duration) -> Result<process::Output> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_what_the_engine_says_and_not_how_docker_is_used() {
        let gone = "docker: Error response from daemon: invalid mount config for type \"bind\": bind source path does not exist: /x.\n\
                    See 'docker run --help'.\n\nRun 'docker run --help' for more information\n";
        assert_eq!(why(gone), "invalid mount config for type \"bind\": bind source path does not exist: /x.");
        assert_eq!(why("one\ntwo\n\n"), "two");
        assert_eq!(why("\n"), "docker does not say why");
    }

    /// A docker that prints: what it prints is all that is far away.
    fn printing(script: &str) -> (tempfile::TempDir, Docker) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("docker");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        (dir, Docker { env: vec![("PATH".into(), path.into())], host: None })
    }

    #[test]
    fn a_container_that_hands_out_without_end_fills_no_disk() {
        let capture = |script: &str| {
            let (_dir, docker) = printing(script);
            let file = tempfile::tempfile().unwrap();
            let begun = Instant::now();
            let captured = docker.capture(&[], file.try_clone().unwrap(), Duration::from_secs(60), 3 << 20);
            assert!(begun.elapsed() < Duration::from_secs(30));
            (captured.map_err(|e| format!("{e:#}")), file.metadata().unwrap().len())
        };
        assert_eq!(capture("head -c 3145728 /dev/zero"), (Ok(()), 3 << 20));
        for endless in ["head -c 3145729 /dev/zero", "exec cat /dev/zero", "trap '' PIPE; cat /dev/zero; echo no"] {
            let (captured, length) = capture(endless);
            assert_eq!(length, 3 << 20);
            assert!(captured.unwrap_err().contains("more than the limit of 3 MiB"), "{endless}");
        }
        assert_eq!(capture("echo x; echo broken >&2; exit 1"), (Err("cannot run 'docker': broken".to_owned()), 2));
    }
}
