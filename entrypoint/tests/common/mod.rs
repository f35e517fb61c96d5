//! Runs the real program as PID 1 of namespaces of its own: PIDs, mounts, network. Nothing of the machine can be signalled or changed.
//!
//! The paths are the real ones: temporary directories are mounted over them, in the new mount namespace only. The capabilities are
//! those that docker-compose.yml leaves. Needs root, and util-linux.
#![allow(dead_code, unused_imports, reason = "each test program uses a part of this")]

mod processes;
mod terminal;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(crate) use processes::{exists, field_of, heed_signal, kill, namespace_of, only_child, status};
pub(crate) use terminal::Terminal;

/// The program under test: the one that cargo has built for the tests, or another build of it.
pub(crate) fn ours() -> String {
    std::env::var("PI_ENTRYPOINT_UNDER_TEST").unwrap_or_else(|_| env!("CARGO_BIN_EXE_pi-entrypoint").into())
}

pub(crate) const UID: u32 = 51234;
pub(crate) const GID: u32 = 51235;
pub(crate) const LOGIN: &str =
    r#"{"anthropic": {"type": "oauth", "refresh": "sk-refresh-1", "access": "sk-access-1", "expires": 1}}"#;
/// What docker-compose.yml leaves.
pub(crate) const CAPABILITIES: &str = "-all,+setuid,+setgid,+setpcap,+chown,+kill";
/// In seconds.
static PATIENCE: AtomicU64 = AtomicU64::new(20);

/// A program that can be PID 1.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) argv: Vec<String>,
}

impl Subject {
    pub(crate) fn ours() -> Self {
        Self { name: "pi-entrypoint".into(), argv: vec![ours()] }
    }

    /// A shell as PID 1, for what is not PID 1 itself.
    pub(crate) fn shell() -> Self {
        Self { name: "bash".into(), argv: vec!["/bin/bash".into(), "-c".into()] }
    }
}

/// A container to be: what is mounted, what the environment says, what runs before PID 1 becomes the subject.
pub(crate) struct Case {
    pub(crate) dir: TempDir,
    subject: Subject,
    variables: Vec<(String, String)>,
    script: String,
    wrapper: String,
    inner: String,
    capabilities: String,
    stdio: Option<File>,
    network: bool,
}

/// A started one. Dropping it ends all of it.
pub(crate) struct Running {
    child: Child,
    dir: TempDir,
    /// PID 1, as the test sees it.
    pub(crate) pid: i32,
}

/// An ended one.
pub(crate) struct Finished {
    pub(crate) dir: TempDir,
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Case {
    /// Nothing prepared, nothing wiped: supervision only.
    pub(crate) fn plain(subject: &Subject) -> Self {
        assert_eq!(
            fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap(),
            0,
            "needs root"
        );
        let dir = TempDir::new().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        fs::set_permissions(&out, fs::Permissions::from_mode(0o777)).unwrap();
        let case = Self {
            dir,
            subject: subject.clone(),
            variables: Vec::new(),
            script: String::new(),
            wrapper: String::new(),
            inner: String::new(),
            capabilities: CAPABILITIES.into(),
            stdio: None,
            network: false,
        };
        let workdir = out.to_str().unwrap().to_owned();
        case.env("PI_DOCKER_MODE", "export")
            .env("PI_DOCKER_UID", &UID.to_string())
            .env("PI_DOCKER_GID", &GID.to_string())
            .env("PI_DOCKER_WORKDIR", &workdir)
            .env("OUT", &workdir)
    }

    /// A whole session: the launcher's files, a repository, a login.
    pub(crate) fn session() -> Self {
        let mut case = Self::plain(&Subject::ours());
        case.script.push_str(MOUNTS);
        let dir = case.dir.path();
        for name in ["in", "in/agent", "control", "workspace", "defaults", "defaults/extensions", "sessions"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        for name in ["in", "control"] {
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o700)).unwrap();
        }
        for name in ["in", "in/agent", "control", "workspace", "sessions"] {
            chown(dir.join(name), Some(UID), Some(GID)).unwrap();
        }
        case.write("auth.json", LOGIN, 0o600);
        case.write(
            "in/secrets.json",
            r#"{"github": {"host": "github.com", "token": "ghp_secret"}, "auth": {}}"#,
            0o600,
        );
        case.env("PI_DOCKER_MODE", "session").env("PI_DOCKER_WORKDIR", "/workspace").env("PI_DOCKER_HEARTBEAT", "0")
    }

    /// With a home directory that can be looked at after the end, as `home`.
    pub(crate) fn keeping_home(self) -> Self {
        fs::create_dir(self.dir.path().join("home")).unwrap();
        self.before("umount /home/pi/.pi/agent/sessions /home/pi; mount --bind $D/home /home/pi; mkdir -p /home/pi/.pi/agent /home/pi/.cache")
    }

    /// The same with another program as PID 1.
    pub(crate) fn subject(mut self, subject: &Subject) -> Self {
        self.subject = subject.clone();
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.into(), value.into()));
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self
    }

    /// Shell lines that run in the namespaces, as root with all rights, before PID 1 becomes the subject.
    pub(crate) fn before(mut self, lines: &str) -> Self {
        writeln!(self.script, "{lines}").unwrap();
        self
    }

    /// A command in front of the subject, that executes it.
    pub(crate) fn wrapped(mut self, command: &str) -> Self {
        self.wrapper.push_str(command);
        self.wrapper.push(' ');
        self
    }

    /// The same, directly in front of it, with no more rights than it has.
    pub(crate) fn around(mut self, command: &str) -> Self {
        self.inner.push_str(command);
        self.inner.push(' ');
        self
    }

    pub(crate) fn capabilities(mut self, set: &str) -> Self {
        self.capabilities = set.into();
        self
    }

    /// On this machine's network instead of one of its own with nothing in it.
    pub(crate) fn on_this_network(mut self) -> Self {
        self.network = true;
        self
    }

    /// With a terminal for all three standard descriptors, controlling it.
    pub(crate) fn terminal(mut self, terminal: &Terminal) -> Self {
        self.stdio = Some(terminal.line.try_clone().unwrap());
        self.wrapped("setsid --ctty")
    }

    /// A file of the session's owner.
    pub(crate) fn write(&self, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        chown(&path, Some(UID), Some(GID)).unwrap();
        path
    }

    pub(crate) fn with(self, name: &str, content: &str) -> Self {
        self.write(name, content, 0o600);
        self
    }

    pub(crate) fn start(self, argv: &[&str]) -> Running {
        let script = format!(
            "set -e\nD={}\n{}\nexec {}setpriv --bounding-set={} --inh-caps=-all {}\"$@\"",
            self.dir.path().display(),
            self.script,
            self.wrapper,
            self.capabilities,
            self.inner
        );
        let mut command = Command::new("unshare");
        // Setting an id makes the standard library fork: the other way, by which cargo has started this, leaves signals ignored.
        command.gid(0);
        // A job in the background of a shell is started with the first two ignored.
        [2, 3, 32, 33].into_iter().for_each(heed_signal);
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]);
        if !self.network {
            command.arg("--net");
        }
        command.args(["bash", "-c", &script, "bash"]).args(&self.subject.argv).args(argv);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        match &self.stdio {
            Some(terminal) => {
                command.stdin(terminal.try_clone().unwrap());
                command.stdout(terminal.try_clone().unwrap());
                command.stderr(terminal.try_clone().unwrap());
            }
            None => {
                command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            }
        }
        let child = command.spawn().unwrap();
        let mut running = Running { child, dir: self.dir, pid: 0 };
        let program = fs::canonicalize(&self.subject.argv[0]).unwrap();
        eventually("PID 1 is the program under test", || {
            if running.child.try_wait().unwrap().is_some() {
                return Some(());
            }
            running.pid = only_child(running.child.id())?;
            let executing = fs::read_link(format!("/proc/{}/exe", running.pid)).ok()?;
            (executing == program).then_some(())
        });
        running
    }

    pub(crate) fn run(self, argv: &[&str]) -> Finished {
        self.start(argv).finish()
    }

    /// A shell script as pi.
    pub(crate) fn run_script(self, script: &str) -> Finished {
        self.run(&["bash", "-c", script])
    }

    pub(crate) fn start_script(self, script: &str) -> Running {
        self.start(&["bash", "-c", script])
    }
}

impl Running {
    /// By number, from outside the namespace, as the engine does it.
    pub(crate) fn signal(&self, number: i32) {
        kill(self.pid, number);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Waits until a file that pi writes has this in it.
    pub(crate) fn await_text(&self, name: &str, text: &str) {
        wait_for(
            || format!("{text:?} in {name}: {:?}", self.read(name)),
            || self.read(name).contains(text).then_some(()),
        );
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for the end of all of it.
    pub(crate) fn finish(mut self) -> Finished {
        let mut stdout = self.child.stdout.take();
        let mut stderr = self.child.stderr.take();
        eventually("the end", || self.child.try_wait().unwrap().map(|_| ()));
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        let read = |pipe: &mut dyn Read| {
            let mut text = Vec::new();
            pipe.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        };
        let stdout = stdout.as_mut().map(|pipe| read(pipe)).unwrap_or_default();
        let stderr = stderr.as_mut().map(|pipe| read(pipe)).unwrap_or_default();
        let dir = std::mem::replace(&mut self.dir, TempDir::new().unwrap());
        Finished { dir, code, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The namespace dies with its PID 1. `--kill-child` would not do: the kernel forgets it when PID 1 changes its user.
        if self.pid > 0 && !self.has_ended() {
            let _ = Command::new("kill").args(["-9", "--", &self.pid.to_string()]).status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    pub(crate) fn result(&self) -> serde_json::Value {
        serde_json::from_str(&self.read("control/result.json")).unwrap_or_default()
    }

    /// The exit code, and the reason and the fate of the login as the launcher reads them.
    pub(crate) fn ending(&self) -> (i32, String, String) {
        let result = self.result();
        assert_eq!(result["exit"], self.code, "{}{}", self.stdout, self.stderr);
        let word = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
        (self.code, word("reason"), word("auth"))
    }
}

/// What the runtime would have mounted.
const MOUNTS: &str = "
mkdir -p /home/pi /workspace /defaults
mount -t tmpfs -o mode=0755 none /run
install -d -m 0700 /run/pi-docker
mkdir /run/pi-docker/in /run/pi-docker/control
touch /run/pi-docker/auth.json
mount --bind $D/in /run/pi-docker/in
mount -o remount,bind,ro /run/pi-docker/in
mount --bind $D/control /run/pi-docker/control
mount --bind $D/auth.json /run/pi-docker/auth.json
mount --bind $D/workspace /workspace
mount --bind $D/defaults /defaults
mount -t tmpfs -o mode=0700 none /home/pi
mkdir -p /home/pi/.pi/agent/sessions /home/pi/.cache
mount --bind $D/sessions /home/pi/.pi/agent/sessions
";

/// A program that writes down the signals it gets: examples/recorder.rs, which cargo builds with the tests.
pub(crate) fn recorder() -> PathBuf {
    let path = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/recorder");
    assert!(path.exists(), "cannot find '{}'; build it: cargo build --examples", path.display());
    path
}

/// For claims that are expected to fail.
pub(crate) fn be_impatient() {
    PATIENCE.store(4, Ordering::Relaxed);
}

/// Waits for a condition, and says which one did not come.
pub(crate) fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_for(|| what.to_owned(), condition)
}

fn wait_for<T>(what: impl Fn() -> String, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed().as_secs() < PATIENCE.load(Ordering::Relaxed), "waited in vain for {}", what());
        std::thread::sleep(Duration::from_millis(2));
    }
}
