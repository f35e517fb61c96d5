//! A person's repository with a remote, a HOME with a credential, and the real program in it.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::internet::{Internet, TOKEN};

pub struct Lab {
    pub internet: Internet,
    pub root: PathBuf,
    pub workspace: PathBuf,
    pub scripts: PathBuf,
    _dir: TempDir,
}

/// What a test has left running, by a runner that it killed, ends with the test.
impl Drop for Lab {
    fn drop(&mut self) {
        let mark = format!("PI_SCRIPTS={}", self.scripts.display()).into_bytes();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if environ.split(|byte| *byte == 0).any(|variable| variable == mark) {
                let _ = Command::new("kill").arg("-9").arg(entry.file_name()).stderr(Stdio::null()).status();
            }
        }
    }
}

/// A finished run of the program.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn events(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
            .collect()
    }

    /// The one result, which must be the last line.
    pub fn result(&self) -> Value {
        let events = self.events();
        let results = events.iter().filter(|event| event["type"] == "result").count();
        assert_eq!(results, 1, "{self:?}");
        let last = events.last().unwrap();
        assert_eq!(last["type"], "result", "{self:?}");
        assert_eq!(last["exit"], self.code, "{self:?}");
        last.clone()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

/// The program under test: the one just built, or, to measure what is shipped, the one that PI_SUBAGENT_BIN names.
pub fn program() -> PathBuf {
    std::env::var_os("PI_SUBAGENT_BIN").map_or_else(|| env!("CARGO_BIN_EXE_pi-subagent").into(), PathBuf::from)
}

/// Watches a process to its end; gives the most memory of its own that it had, in KiB: (resident, anonymous).
pub fn peak_memory(pid: u32) -> (u64, u64) {
    let (mut resident, mut anonymous) = (0, 0);
    while let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        };
        let Some(anon) = field("RssAnon:") else { break };
        resident = resident.max(field("VmHWM:").unwrap_or(0));
        anonymous = anonymous.max(anon);
        std::thread::sleep(Duration::from_millis(10));
    }
    (resident, anonymous)
}

impl Lab {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("pi-subagent-test-").tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let internet = Internet::start(&root);
        let (home, scripts, workspace) = (root.join("home"), root.join("scripts"), root.join("ws"));
        for path in [&home, &scripts, &workspace] {
            std::fs::create_dir_all(path).unwrap();
        }
        std::fs::write(
            home.join(".gitconfig"),
            "[user]\n\tname = A Person\n\temail = person@example.test\n[init]\n\tdefaultBranch = main\n[credential]\n\thelper = store\n[advice]\n\tdetachedHead = false\n",
        )
        .unwrap();
        std::fs::write(home.join(".git-credentials"), format!("https://x-access-token:{TOKEN}@github.test\n")).unwrap();
        std::fs::write(root.join("instructions"), "Do the thing.").unwrap();
        let lab = Lab { internet, root, workspace, scripts, _dir: dir };
        let bare = lab.internet.repositories.join("o/r.git");
        lab.sh(&format!("git init -q --bare '{}' && git -C '{0}' config http.receivepack true", bare.display()));
        lab.sh("git init -q . && echo hello >README && git add . && git commit -qm first");
        lab.sh(&format!("git push -q '{}' main && git remote add origin https://github.test/o/r.git", bare.display()));
        lab
    }

    fn environment(&self, command: &mut Command) {
        let bin = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let program = program();
        command
            .env_clear()
            .env(
                "PATH",
                format!("{}:{}:/usr/local/bin:/usr/bin:/bin", bin.display(), program.parent().unwrap().display()),
            )
            .env("HOME", self.root.join("home"))
            .env("SSL_CERT_FILE", &self.internet.ca)
            .env("HTTPS_PROXY", "")
            .env("https_proxy", format!("http://{}", self.internet.proxy))
            .env("GITHUB_API_URL", "https://api.github.test")
            .env("PI_SCRIPTS", &self.scripts)
            .current_dir(&self.workspace);
    }

    /// Runs a shell command in the workspace; it must succeed.
    pub fn sh(&self, script: &str) -> String {
        let mut command = Command::new("bash");
        self.environment(&mut command);
        let output = command.args(["-euc", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// What pi does for a task, in the words of `fixtures/pi`.
    pub fn script(&self, task: &str, script: &str) {
        std::fs::write(self.scripts.join(format!("{task}.sh")), script).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        self.environment(&mut command);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        finish(self.command(args).spawn().unwrap())
    }

    pub fn start_spawn(&self, task: &str, flags: &[&str]) -> Child {
        let file = self.root.join("instructions");
        let args = ["spawn", "--json", "--task", task, "--instructions-file", file.to_str().unwrap()];
        self.command(&[&args, flags].concat()).spawn().unwrap()
    }

    pub fn spawn(&self, task: &str, flags: &[&str]) -> Ran {
        finish(self.start_spawn(task, flags))
    }

    pub fn worktree(&self, task: &str) -> PathBuf {
        self.workspace.join(".worktrees").join(task)
    }

    /// git in the remote repository.
    pub fn remote(&self, args: &str) -> String {
        self.sh(&format!("git -C '{}' {args}", self.internet.repositories.join("o/r.git").display()))
    }

    /// The entry of a task in `list --json`.
    pub fn listed(&self, task: &str) -> Option<Value> {
        let list = self.run(&["list", "--json"]).json();
        list["tasks"].as_array().unwrap().iter().find(|entry| entry["task"] == task).cloned()
    }
}

pub fn finish(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap());
    Ran {
        code,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs the cases at the same time: most of what they do is waiting.
pub fn each<T: Send>(cases: impl IntoIterator<Item = T>, check: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            scope.spawn(|| check(case));
        }
    });
}

pub fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success());
}

/// Waits for a condition, at most a minute.
pub fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
