//! What this program is told: the only reader of the environment and of the arguments, once, at the start.
//!
//! The variables are those of docker-compose.yml (docs/architecture.md). They are checked here and plain data afterwards; pi's own
//! environment is what the container has without them.
#![expect(clippy::disallowed_methods, reason = "the environment is read in this file")]

use std::ffi::{CString, OsStr, OsString};
use std::net::SocketAddrV4;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::failure::{Failure, Kind, Result};

/// Every variable that is read here. All start with `PI_DOCKER_`, and none reaches pi.
#[cfg(test)]
pub(crate) const VARIABLES: &[&str] = &[
    "PI_DOCKER_MODE",
    "PI_DOCKER_UID",
    "PI_DOCKER_GID",
    "PI_DOCKER_WORKDIR",
    "PI_DOCKER_CANARY",
    "PI_DOCKER_KEEP_AUTH",
    "PI_DOCKER_TRUST",
    "PI_DOCKER_GRACE",
    "PI_DOCKER_HEARTBEAT",
    "PI_DOCKER_AUTH_TIMEOUT",
    "PI_DOCKER_EXPORT",
];

#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(crate) enum Mode {
    /// pi behind the proxy, with everything around it.
    Session,
    /// A login: its result goes back to the host as soon as it is there, nothing is wiped there.
    Auth,
    /// A command without any privilege and without any credential, supervised; nothing else.
    Export,
}

#[cfg_attr(test, derive(Debug))]
pub(crate) struct Config {
    pub(crate) mode: Mode,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) workdir: CString,
    pub(crate) canary: Vec<SocketAddrV4>,
    pub(crate) keep_auth: bool,
    pub(crate) trust: bool,
    pub(crate) grace: Duration,
    /// How long the launcher may be silent; `None`: for ever.
    pub(crate) heartbeat: Option<Duration>,
    pub(crate) auth_timeout: Duration,
    pub(crate) export: bool,
    /// The program and its arguments; never empty.
    pub(crate) argv: Vec<CString>,
    /// What pi inherits from the container.
    pub(crate) environment: Vec<(OsString, OsString)>,
}

impl Config {
    /// From the program's arguments, its own name first, and its environment.
    pub(crate) fn read(args: Vec<OsString>) -> Result<Self> {
        let mut ours = Vec::new();
        let mut environment = Vec::new();
        for (name, value) in std::env::vars_os() {
            if name.as_bytes().starts_with(b"PI_DOCKER_") {
                ours.push((name, value));
            } else {
                environment.push((name, value));
            }
        }
        Self::from(args, &ours, environment)
    }

    fn from(
        args: Vec<OsString>,
        ours: &[(OsString, OsString)],
        environment: Vec<(OsString, OsString)>,
    ) -> Result<Self> {
        let ours = Variables(ours);
        let argv = args.iter().skip(1).map(|arg| c_string(arg)).collect::<Result<Vec<_>>>()?;
        if argv.is_empty() {
            return Err(configuration("usage: pi-entrypoint PROGRAM [ARGUMENT…]"));
        }
        Ok(Self {
            mode: ours.mode()?,
            uid: ours.id("PI_DOCKER_UID")?,
            gid: ours.id("PI_DOCKER_GID")?,
            workdir: ours.get("PI_DOCKER_WORKDIR").map_or(Ok(c"/workspace".into()), c_string)?,
            canary: ours.addresses("PI_DOCKER_CANARY")?,
            keep_auth: ours.flag("PI_DOCKER_KEEP_AUTH", false)?,
            trust: ours.flag("PI_DOCKER_TRUST", true)?,
            grace: Duration::from_secs(ours.number("PI_DOCKER_GRACE", 8)?),
            heartbeat: Some(ours.number("PI_DOCKER_HEARTBEAT", 20)?).filter(|s| *s > 0).map(Duration::from_secs),
            auth_timeout: Duration::from_secs(ours.number("PI_DOCKER_AUTH_TIMEOUT", 180)?),
            export: ours.flag("PI_DOCKER_EXPORT", false)?,
            argv,
            environment,
        })
    }
}

struct Variables<'a>(&'a [(OsString, OsString)]);

impl<'a> Variables<'a> {
    /// An empty value is what compose passes for a variable that is not set.
    fn get(&self, name: &str) -> Option<&'a OsStr> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_os_str()).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.to_str().map(Some).ok_or_else(|| configuration(format!("cannot use {name}: not text")))
    }

    fn mode(&self) -> Result<Mode> {
        match self.text("PI_DOCKER_MODE")? {
            None | Some("session") => Ok(Mode::Session),
            Some("auth") => Ok(Mode::Auth),
            Some("export") => Ok(Mode::Export),
            Some(other) => Err(unusable("PI_DOCKER_MODE", other, "not session, auth or export")),
        }
    }

    /// A user or group id: a plain number, never root's, and never the -1 that system calls take for "unchanged".
    fn id(&self, name: &str) -> Result<u32> {
        let hint = "start the session with pi-docker, which passes the owner of the repository";
        let Some(value) = self.text(name)? else {
            return Err(configuration(format!("cannot start: {name} is not set")).hint(hint));
        };
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        match value.parse::<u32>() {
            Ok(0) => Err(unusable(name, value, "pi never runs as root").hint(hint)),
            Ok(id) if digits && id != u32::MAX => Ok(id),
            _ => Err(unusable(name, value, "not a numeric id").hint(hint)),
        }
    }

    fn number(&self, name: &str, default: u64) -> Result<u64> {
        let Some(value) = self.text(name)? else { return Ok(default) };
        let number = value.parse::<u64>().ok().filter(|n| *n <= 1_000_000);
        number.ok_or_else(|| unusable(name, value, "not a number of seconds"))
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.text(name)? {
            None => Ok(default),
            Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(other) => Err(unusable(name, other, "not 0 or 1")),
        }
    }

    fn addresses(&self, name: &str) -> Result<Vec<SocketAddrV4>> {
        let list = self.text(name)?.unwrap_or_default();
        let addresses = list.split(',').map(str::trim).filter(|address| !address.is_empty());
        addresses.map(|a| a.parse().map_err(|_| unusable(name, a, "not an IPv4 address with a port"))).collect()
    }
}

/// What comes from the kernel has no NUL in it; this is only for the type.
fn c_string(value: &OsStr) -> Result<CString> {
    CString::new(value.as_bytes()).map_err(|_| configuration("cannot use an argument: a NUL in it"))
}

fn configuration(line: impl Into<String>) -> Failure {
    Failure::new(Kind::Configuration, line)
}

fn unusable(name: &str, value: &str, cause: &str) -> Failure {
    configuration(format!("cannot use {name} '{}': {cause}", value.replace(char::is_control, " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config> {
        let ids = [("PI_DOCKER_UID", "1000"), ("PI_DOCKER_GID", "1000")];
        let ours: Vec<_> = variables.iter().chain(&ids).map(|(k, v)| (k.into(), v.into())).collect();
        Config::from(vec!["pi-entrypoint".into(), "pi".into()], &ours, Vec::new())
    }

    #[test]
    fn every_variable_is_one_of_the_compose_file() {
        let compose = include_str!("../../docker-compose.yml");
        for name in VARIABLES {
            assert!(compose.contains(&format!("      {name}: ")), "{name} is not in docker-compose.yml");
        }
    }

    #[test]
    fn a_user_id_is_a_plain_number_and_never_roots() {
        for bad in ["0", "00", "-1", "+5", " 5", "root", "4294967295", "4294967296", "0x10", "1000:1000"] {
            let failure = read(&[("PI_DOCKER_UID", bad)]).expect_err(bad);
            assert_eq!(failure.kind.exit_code(), 120);
            assert!(failure.line.contains("PI_DOCKER_UID"), "{}", failure.line);
            assert!(read(&[("PI_DOCKER_GID", bad)]).is_err(), "{bad}");
        }
        assert!(read(&[("PI_DOCKER_UID", "")]).expect_err("unset").line.contains("is not set"));
        let config = read(&[("PI_DOCKER_UID", "4294967294")]).expect("the largest id");
        assert_eq!((config.uid, config.gid), (4_294_967_294, 1000));
    }

    #[test]
    fn an_empty_value_is_an_unset_one() {
        let config =
            read(&[("PI_DOCKER_MODE", ""), ("PI_DOCKER_GRACE", ""), ("PI_DOCKER_TRUST", "")]).expect("defaults");
        assert_eq!((config.mode, config.grace.as_secs(), config.trust), (Mode::Session, 8, true));
        assert_eq!(config.heartbeat, Some(Duration::from_secs(20)));
        assert_eq!(read(&[("PI_DOCKER_HEARTBEAT", "0")]).expect("off").heartbeat, None);
    }

    #[test]
    fn a_value_that_cannot_be_meant_is_refused_by_name() {
        let values = [
            ("PI_DOCKER_MODE", "Session"),
            ("PI_DOCKER_GRACE", "8s"),
            ("PI_DOCKER_TRUST", "yes"),
            ("PI_DOCKER_CANARY", "host:1"),
        ];
        for (name, value) in values {
            let line = read(&[(name, value)]).expect_err(name).line;
            assert!(line.contains(name) && line.contains(value), "{line}");
        }
    }
}
