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

/// As `execve` takes it.
pub(crate) fn for_agent(config: &Config, more: Vec<(String, String)>) -> Result<Vec<CString>> {
    let mut environment = config.environment.clone();
    for name in NEVER_EMPTY {
        if environment.get(OsStr::new(name)).is_some_and(|value| value.is_empty()) {
            environment.remove(OsStr::new(name));
        }
    }
    environment.extend(OURS.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))));
    environment.extend(more.into_iter().map(|(name, value)| (name.into(), value.into())));
    let entry = |(name, value): (OsString, OsString)| {
        let entry = [name.as_bytes(), b"=", value.as_bytes()].concat();
        CString::new(entry).map_err(|_| {
            Failure::new(
                Kind::Configuration,
                format!("cannot use the variable {}: a NUL in it", name.to_string_lossy()),
            )
        })
    };
    environment.into_iter().map(entry).collect()
}
