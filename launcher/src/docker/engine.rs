//! Which engines a session can run on.

use anyhow::Result;
use serde_json::Value;

use crate::error::hinted;

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

/// An error unless the engine at `host` is on this machine.
pub(super) fn is_local(host: &str) -> Result<()> {
    if ["unix://", "npipe://", "fd://"].iter().any(|scheme| host.starts_with(scheme)) {
        return Ok(());
    }
    Err(hinted(
        format!("cannot use the remote engine '{host}': it cannot mount this machine's folders"),
        "unset DOCKER_HOST, or `docker context use default`",
    ))
}

/// Whether a session can run on the engine that `info` describes.
pub(super) fn judge(info: &Value, stderr: &str) -> Result<Engine> {
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
