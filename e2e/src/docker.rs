//! The only place that runs docker.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
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

/// The lines that docker prints, without empty ones.
pub fn lines<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Vec<String>> {
    Ok(docker(args)?.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// The engine's socket, if it is reached by one.
pub fn socket() -> Result<Option<PathBuf>> {
    let host = match std::env::var("DOCKER_HOST") {
        Ok(host) if !host.is_empty() => host,
        _ => docker(["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"])?.trim().to_owned(),
    };
    Ok(host.strip_prefix("unix://").map(PathBuf::from))
}

/// Builds an image from a Dockerfile without a context, unless one built from the same text is there.
pub fn build(tag: &str, dockerfile: &Path, extra_ca: Option<&Path>) -> Result<()> {
    let text = std::fs::read(dockerfile).with_context(|| format!("cannot read '{}'", dockerfile.display()))?;
    let sum =
        text.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    let label = format!("{LABEL}.source={sum:016x}");
    let format = format!("{{{{index .Config.Labels \"{LABEL}.source\"}}}}");
    let (there, built) = try_docker(["image", "inspect", "--format", &format, tag])?;
    if there && label.ends_with(built.trim()) && !built.trim().is_empty() {
        return Ok(());
    }
    let empty = tempfile::tempdir()?;
    let mut args = vec!["build".to_owned(), "--label".into(), label, "--tag".into(), tag.to_owned()];
    if let Some(ca) = extra_ca {
        args.extend(["--secret".into(), format!("id=extra_ca,src={}", ca.display())]);
    }
    args.extend(["--file".into(), dockerfile.display().to_string(), empty.path().display().to_string()]);
    docker(args).map(drop)
}

/// Removes what earlier runs that did not come to their end have left.
pub fn sweep() -> Result<()> {
    let format = format!("{{{{.Name}}}} {{{{.Label \"{LABEL}\"}}}}");
    for line in lines(["network", "ls", "--filter", &format!("label={LABEL}"), "--format", &format])? {
        let Some((network, pid)) = line.split_once(' ') else { continue };
        if Path::new("/proc").join(pid).exists() {
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
