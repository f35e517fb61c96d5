//! A session as the engine sees it: its containers, what runs in them, what squid said.

use std::ffi::OsStr;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::docker::{docker, inspect, lines, try_docker};
use crate::user::User;

/// A running session.
#[derive(Clone, Debug)]
pub struct Session {
    pub project: String,
    /// The agent's container.
    pub agent: String,
    /// The proxy's container.
    pub proxy: String,
    user: User,
}

impl Session {
    /// The sessions that run in projects whose name starts with `prefix`, agent and proxy both.
    pub(crate) fn all(prefix: &str, user: User) -> Result<Vec<Self>> {
        let running = lines(["ps", "--format", "{{.Names}}"])?;
        let agents = running.iter().filter(|name| name.starts_with(prefix) && name.ends_with("-agent"));
        let sessions = agents.filter_map(|agent| {
            let project = agent.strip_suffix("-agent")?.to_owned();
            let proxy = running.iter().find(|name| name.starts_with(&format!("{project}-proxy")))?.clone();
            Some(Self { project, agent: agent.clone(), proxy, user })
        });
        Ok(sessions.collect())
    }

    /// Runs a shell script in the agent's container as the agent. Gives whether it succeeded and what it printed.
    pub fn sh(&self, script: &str) -> Result<(bool, String)> {
        let user = self.user.numbers();
        try_docker(["exec", "--user", &user, &self.agent, "bash", "-c", script].map(OsStr::new))
    }

    /// What squid has written so far, a request a line.
    pub fn squid_log(&self) -> Result<Vec<String>> {
        Ok(try_docker(["logs", &self.proxy])?.1.lines().map(str::to_owned).collect())
    }

    /// `docker inspect` of the agent's container.
    pub fn inspect_agent(&self) -> Result<Value> {
        inspect(&self.agent)
    }

    /// The addresses of the session's containers, on every network they are on.
    pub fn addresses(&self) -> Result<Vec<String>> {
        let mut addresses = Vec::new();
        for container in [&self.agent, &self.proxy] {
            let networks = inspect(container)?["NetworkSettings"]["Networks"].clone();
            let networks = networks.as_object().context("a container without networks")?;
            addresses.extend(networks.values().filter_map(|network| Some(network["IPAddress"].as_str()?.to_owned())));
        }
        Ok(addresses)
    }

    /// The process id, on the host, of the container's first process.
    pub fn pid(&self) -> Result<u64> {
        self.inspect_agent()?["State"]["Pid"].as_u64().context("the agent's container has no process")
    }

    /// Sends a signal to the container, as `docker kill` does.
    pub fn signal(&self, signal: &str) -> Result<()> {
        docker(["kill", "--signal", signal, &self.agent]).map(drop)
    }
}
