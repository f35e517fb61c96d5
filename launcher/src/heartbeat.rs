//! The launcher's sign of life while a container runs, and what waits for the container to be ready: the secrets' folder, which is
//! deleted then, and the listener that the container must not reach.

use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const BEAT: Duration = Duration::from_secs(5);
const READY: Duration = Duration::from_millis(20);

/// A port that is open on every address of this machine, and those addresses.
pub(crate) struct Canary {
    listener: TcpListener,
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Canary {
    pub(crate) fn open() -> Result<Canary> {
        let listener =
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a port to test the network with")?;
        let port = listener.local_addr().context("cannot open a port to test the network with")?.port();
        let interfaces = nix::ifaddrs::getifaddrs().context("cannot list the addresses of this machine")?;
        let mut addresses: Vec<SocketAddr> = interfaces
            .filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()))
            .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
            .map(|ip| SocketAddrV4::new(ip, port).into())
            .collect();
        addresses.sort();
        addresses.dedup();
        Ok(Canary { listener, addresses })
    }
}

pub(crate) struct Heartbeat {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Begins to beat in `control`; when the container says there that it is ready, `secrets` is deleted and `canary` closed.
    pub(crate) fn start(control: &Path, secrets: PathBuf, canary: Option<Canary>) -> Result<Heartbeat> {
        let path = control.join("heartbeat");
        let file =
            OpenOptions::new().write(true).open(&path).with_context(|| format!("cannot write '{}'", path.display()))?;
        let ready = control.join("ready");
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut waiting = Some((secrets, canary.map(|canary| canary.listener)));
            let mut beats = 0;
            let mut next = Instant::now();
            loop {
                if Instant::now() >= next {
                    beats += 1;
                    beat(&file, beats);
                    next += BEAT;
                }
                if waiting.is_some()
                    && ready.exists()
                    && let Some((secrets, _)) = waiting.take()
                {
                    let _ = fs::remove_dir_all(secrets);
                }
                let pause = next.saturating_duration_since(Instant::now());
                let pause = if waiting.is_some() { pause.min(READY) } else { pause };
                if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        Ok(Heartbeat { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Always the same bytes in the same place: a full disk does not stop it.
fn beat(file: &File, beats: u64) {
    let _ = file.write_all_at(format!("{beats:020}\n").as_bytes(), 0);
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}");
            thread::yield_now();
        }
    }

    #[test]
    fn secrets_and_canary_last_until_the_container_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let (control, secrets) = (dir.path().join("control"), dir.path().join("in"));
        fs::create_dir(&control).unwrap();
        fs::create_dir(&secrets).unwrap();
        fs::write(secrets.join("secrets.json"), "{}").unwrap();
        fs::write(control.join("heartbeat"), format!("{:020}\n", 0)).unwrap();
        let canary = Canary::open().unwrap();
        let port = canary.listener.local_addr().unwrap().port();
        let heartbeat = Heartbeat::start(&control, secrets.clone(), Some(canary)).unwrap();
        until("no beat", || fs::read_to_string(control.join("heartbeat")).unwrap().contains('1'));
        assert!(secrets.exists() && TcpStream::connect(("127.0.0.1", port)).is_ok());
        fs::write(control.join("ready"), "{}").unwrap();
        until("the canary stays open", || TcpStream::connect(("127.0.0.1", port)).is_err());
        assert!(!secrets.exists());
        drop(heartbeat);
    }
}
