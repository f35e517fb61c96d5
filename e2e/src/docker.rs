//! The only place that runs docker.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

/// What marks everything that the tests make; its value is the pid of the test's process.
pub const LABEL: &str = "pi-docker-e2e";

/// Runs docker and gives what it printed; an error holds what it complained about.
pub fn docker<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<String> {
    let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
    let output = Command::new("docker")
        .args(&args)
        .stdin(Stdio::null())
        .output()
        .context("cannot run 'docker'; dev/engine up starts an engine")?;
    if !output.status.success() {
        let shown: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        bail!("'docker {}' failed: {}", shown.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As `docker`, but what it prints on both streams, and whether it succeeded.
pub fn try_docker<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<(bool, String)> {
    let output = Command::new("docker").args(args).stdin(Stdio::null()).output().context("cannot run 'docker'")?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// `docker inspect` of one thing.
pub fn inspect(name: &str) -> Result<Value> {
    let all: Value = serde_json::from_str(&docker(["inspect", name])?)?;
    Ok(all[0].clone())
}

/// `docker network inspect` of one network, whatever else has its name.
pub fn network(name: &str) -> Result<Value> {
    let all: Value = serde_json::from_str(&docker(["network", "inspect", name])?)?;
    Ok(all[0].clone())
}

/// The lines that docker prints, without empty ones.
pub fn lines<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Vec<String>> {
    Ok(docker(args)?.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// The address that this machine has for containers, on the engine's own bridge.
pub fn bridge_address() -> Result<String> {
    let lines = lines(["network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"])?;
    lines.into_iter().next().context("the engine's bridge has no address")
}

/// The engine's socket, if it is reached by one.
pub fn socket() -> Result<Option<PathBuf>> {
    let host = match std::env::var("DOCKER_HOST") {
        Ok(host) if !host.is_empty() => host,
        _ => docker(["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"])?.trim().to_owned(),
    };
    Ok(host.strip_prefix("unix://").map(PathBuf::from))
}

/// Builds one stage of a Dockerfile, with the Dockerfile's folder as context, as the image `tag`.
pub fn build(tag: &str, dockerfile: &Path, stage: &str, extra_ca: Option<&Path>) -> Result<()> {
    let context = dockerfile.parent().context("a Dockerfile without a folder")?;
    let mut args = vec!["build".to_owned(), "--tag".into(), tag.to_owned(), "--target".into(), stage.to_owned()];
    if let Some(ca) = extra_ca {
        args.extend(["--secret".into(), format!("id=extra_ca,src={}", ca.display())]);
    }
    args.extend(["--file".into(), dockerfile.display().to_string(), context.display().to_string()]);
    docker(args).map(drop)
}

/// Removes what earlier runs that did not come to their end have left.
pub fn sweep() -> Result<()> {
    let format = format!("{{{{.Name}}}} {{{{.Label \"{LABEL}\"}}}}");
    for line in lines(["network", "ls", "--filter", &format!("label={LABEL}"), "--format", &format])? {
        let Some((network, pid)) = line.split_once(' ') else { continue };
        let pid = pid.parse().map(Pid::from_raw);
        // No answer but "no such process" says that it has ended.
        if pid.is_ok_and(|pid| kill(pid, None) != Err(Errno::ESRCH)) {
            continue;
        }
        remove_network(network)?;
    }
    Ok(())
}

/// Removes a network and every container on it. One that is gone already is no error.
pub fn remove_network(network: &str) -> Result<()> {
    let on_it = lines(["ps", "--all", "--quiet", "--filter", &format!("network={network}")])?;
    remove(&["rm", "--force", "--volumes"], &on_it);
    remove(&["network", "rm", "--force"], &[network.to_owned()]);
    Ok(())
}

/// `docker VERB… NAME…`, if there is any name; what goes wrong is said and left at that.
pub fn remove(verb: &[&str], names: &[String]) {
    if names.is_empty() {
        return;
    }
    let args = verb.iter().map(|word| (*word).to_owned()).chain(names.iter().cloned());
    if let Err(error) = docker(args) {
        eprintln!("{error:#}");
    }
}
