//! The environment that pi gets: the container's, without what is meant for PID 1, and with a home of its own.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::config::Config;
use crate::failure::{Failure, Kind, Result};

/// Who pi is, and where the tools it runs keep what may be lost: the one place below HOME that is a volume.
const OURS: &[(&str, &str)] = &[
    ("HOME", "/home/pi"),
    ("USER", "pi"),
    ("LOGNAME", "pi"),
    ("SHELL", "/bin/bash"),
    ("XDG_CACHE_HOME", "/home/pi/.cache"),
    ("npm_config_cache", "/home/pi/.cache/npm"),
    ("PIP_CACHE_DIR", "/home/pi/.cache/pip"),
    ("CARGO_HOME", "/home/pi/.cache/cargo"),
];
/// An empty value of these means something else than none.
const NEVER_EMPTY: &[&str] = &["TERM", "COLORTERM", "TZ"];

/// As `execve` takes it; `more` replaces what has the same name.
pub(crate) fn for_agent(config: &Config, more: &[(&str, &str)]) -> Result<Vec<CString>> {
    let replaced = |name: &OsStr| OURS.iter().chain(more).any(|(ours, _)| *ours == name);
    let meaningless = |name: &OsStr, value: &OsStr| value.is_empty() && NEVER_EMPTY.iter().any(|known| *known == name);
    let inherited = config.environment.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()));
    let inherited = inherited.filter(|(name, value)| !replaced(name) && !meaningless(name, value));
    let ours = OURS.iter().chain(more).map(|(name, value)| (OsStr::new(name), OsStr::new(value)));
    inherited.chain(ours).map(|(name, value)| entry(name, value)).collect()
}

fn entry(name: &OsStr, value: &OsStr) -> Result<CString> {
    let entry: OsString = [name, OsStr::new("="), value].into_iter().collect();
    CString::new(entry.as_bytes())
        .map_err(|_| Failure::new(Kind::Configuration, "cannot use the environment: a NUL in it"))
}
