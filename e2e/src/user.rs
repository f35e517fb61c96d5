//! Who uses the product in a test: an ordinary user. Tests run by root become uid 1000 for it; anybody else is who they are.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// The ordinary user.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// The group that may speak to the engine.
    engine: Option<u32>,
    /// Whether this process has to become that user first.
    change: bool,
}

impl User {
    /// The user of this run, who may speak to the engine whose socket is `socket`.
    pub fn ordinary(socket: Option<&Path>) -> Result<Self> {
        let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        if uid != 0 {
            return Ok(Self { uid, gid, engine: None, change: false });
        }
        let engine = match socket {
            Some(socket) => {
                let meta = socket
                    .metadata()
                    .with_context(|| format!("cannot look at the engine's socket '{}'", socket.display()))?;
                Some(meta.gid())
            }
            None => None,
        };
        Ok(Self { uid: 1000, gid: 1000, engine, change: true })
    }

    /// A command that is started as this user, with an environment of nothing but PATH and `home` as HOME.
    pub fn command(&self, program: impl AsRef<OsStr>, home: &Path) -> Command {
        let mut command = if self.change {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &self.uid.to_string(), "--regid", &self.gid.to_string()]);
            match self.engine {
                Some(group) => command.args(["--groups", &group.to_string()]),
                None => command.arg("--clear-groups"),
            };
            command.arg("--").arg(program);
            command
        } else {
            Command::new(program)
        };
        command.env_clear().env("HOME", home);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command
    }

    /// Gives `path` and all below it to this user.
    pub fn own(&self, path: &Path) -> Result<()> {
        if !self.change {
            return Ok(());
        }
        let status = Command::new("chown").arg("-hR").arg(format!("{}:{}", self.uid, self.gid)).arg(path).status()?;
        anyhow::ensure!(status.success(), "cannot give '{}' to uid {}", path.display(), self.uid);
        Ok(())
    }

    /// `uid:gid`.
    pub fn numbers(&self) -> String {
        format!("{}:{}", self.uid, self.gid)
    }
}
