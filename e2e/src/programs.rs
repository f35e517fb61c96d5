//! The programs that `dev/programs` has for the tests.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The cache folder of the programs in `dev/`.
pub fn cache() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("PI_DOCKER_DEV_CACHE") {
        return Ok(named.into());
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    Ok(base.or(home).context("no HOME")?.join("pi-docker-dev"))
}

/// The program of this name: the machine's, else the one that was unpacked.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = cache()?.join("programs/bin");
    let found = std::env::split_paths(&path).chain([unpacked]).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("cannot find '{name}'; dev/programs unpacks it"))
}
