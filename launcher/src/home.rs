//! The folder that pi-docker lives in: the clone, or what PI_DOCKER_HOME names. Every path in it has its name here.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::config::{Config, utf8};
use crate::error::hinted;

pub(crate) struct Home {
    dir: PathBuf,
}

impl Home {
    /// PI_DOCKER_HOME, else the clone that this program was built in, else `~/.pi-docker`.
    pub(crate) fn find(config: &Config) -> Result<Home> {
        let dir = match &config.home {
            Some(dir) => dir.clone(),
            None => clone_of_this_program().unwrap_or_else(|| config.user_home.join(".pi-docker")),
        };
        if !is_home(&dir) {
            return Err(hinted(
                format!("cannot find pi-docker's own files in '{}'", dir.display()),
                "run ./install in the clone again, or set PI_DOCKER_HOME to the clone",
            ));
        }
        let dir = dir.canonicalize().with_context(|| format!("cannot use '{}'", dir.display()))?;
        utf8(&dir)?;
        Ok(Home { dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The overlay that `pi-docker models` keeps, if there is one.
    pub(crate) fn compose_override(&self) -> Option<PathBuf> {
        Some(self.dir.join("docker-compose.override.yml")).filter(|path| path.exists())
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.dir.join(".gh-auth-token")
    }

    /// What is kept for a repository.
    pub(crate) fn state(&self, repository_id: &str) -> PathBuf {
        self.dir.join("state").join(repository_id)
    }

    /// Where the sessions' own folders are.
    pub(crate) fn runs(&self) -> PathBuf {
        self.dir.join("run")
    }
}

fn is_home(dir: &Path) -> bool {
    dir.join("docker-compose.yml").is_file() && dir.join("squid.conf").is_file()
}

fn clone_of_this_program() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?.canonicalize().ok()?;
    program.ancestors().skip(1).find(|dir| is_home(dir)).map(Path::to_owned)
}
