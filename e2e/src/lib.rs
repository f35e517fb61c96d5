//! The end-to-end harness: the product as it is shipped, on a real engine, with `internet` in the place of the world outside.
//!
//! A `World` is one person's machine: a home folder, pi-docker's own folder, a repository, and an internet of its own. Everything
//! it makes goes away with it, unless E2E_KEEP=1 is set. E2E_LAUNCHER names another launcher than the one that was built in the
//! clone, E2E_SOURCES another clone; PI_DOCKER_IMAGE and PI_DOCKER_PROXY_IMAGE name other images.

pub mod ca;
pub mod docker;
pub mod evidence;
pub mod held;
pub mod internet;
pub mod launch;
pub mod programs;
#[cfg(target_os = "linux")]
pub mod pty;
pub mod rpc;
pub mod session;
pub mod user;
pub mod world;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use crate::launch::Ran;
pub use crate::world::World;

/// Tries `condition` until it gives a value, at most for `limit`; `what` says what was waited for.
pub fn wait_until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("waited {} s in vain until {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Long enough for anything but an image build, on a slow machine.
pub const SOON: Duration = Duration::from_secs(60);
