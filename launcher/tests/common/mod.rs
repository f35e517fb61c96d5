//! A home of pi-docker, a user's home and a repository, all of their own; and the real program run in them. As root, the program
//! is run as an ordinary user, for root is refused.

#![allow(dead_code, reason = "no test file needs all of it")]
#![expect(clippy::unwrap_used, reason = "a test may end here")]
#![expect(clippy::disallowed_methods, reason = "a test starts the program and git itself")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::Digest;

const ORDINARY: u32 = 1000;

pub(crate) struct Scene {
    dir: tempfile::TempDir,
}

pub(crate) struct Output {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) struct Run(Command);

impl Scene {
    pub(crate) fn new() -> Scene {
        let scene = Scene { dir: tempfile::Builder::new().prefix("pi docker $x:").tempdir().unwrap() };
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for name in ["docker-compose.yml", "squid.conf", "allowlist.txt", "AGENTS.md"] {
            scene.write(&format!("home/{name}"), &fs::read_to_string(shipped.join(name)).unwrap());
        }
        // Where it was built may be out of an ordinary user's reach.
        fs::copy(env!("CARGO_BIN_EXE_pi-docker"), scene.path("pi-docker")).unwrap();
        scene.write("user/.gitconfig", "[user]\n\tname = T\n\temail = t@example.com\n");
        fs::create_dir(scene.path("repo")).unwrap();
        scene.own(&scene.path(""));
        scene.git("repo", &["init", "-q", "-b", "main"]);
        scene.git("repo", &["commit", "-q", "--allow-empty", "-m", "first"]);
        scene
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self.own(&self.path(""));
    }

    pub(crate) fn run(&self, folder: &str, words: &[&str]) -> Output {
        self.command(folder, words).run()
    }

    /// The program in this folder, with an engine that is not there.
    pub(crate) fn command(&self, folder: &str, words: &[&str]) -> Run {
        let mut command = self.as_user(self.path("pi-docker"));
        command.current_dir(self.path(folder)).args(words);
        command.env("PI_DOCKER_HOME", self.path("home")).env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
        Run(command)
    }

    pub(crate) fn git(&self, folder: &str, words: &[&str]) {
        let mut command = self.as_user("git");
        assert!(command.arg("-C").arg(self.path(folder)).args(words).status().unwrap().success(), "git {words:?}");
    }

    /// A PATH with git and no docker.
    pub(crate) fn path_with_git_only(&self) -> PathBuf {
        let path = std::env::var_os("PATH").unwrap();
        let git = std::env::split_paths(&path).map(|dir| dir.join("git")).find(|git| git.is_file()).unwrap();
        let bin = self.path("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(git, bin.join("git")).unwrap();
        bin
    }

    /// Every path with its content's digest.
    pub(crate) fn listing(&self) -> Vec<String> {
        let mut lines = Vec::new();
        list(self.dir.path(), &mut lines);
        lines.sort();
        lines
    }

    fn as_user(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.path("user"))
            .stdin(Stdio::null());
        if is_root() {
            command.uid(ORDINARY).gid(ORDINARY);
        }
        command
    }

    fn own(&self, path: &Path) {
        if is_root() {
            chown(path, Some(ORDINARY), Some(ORDINARY)).unwrap();
            if path.is_dir() {
                fs::read_dir(path).unwrap().for_each(|entry| self.own(&entry.unwrap().path()));
            }
        }
    }
}

impl Run {
    pub(crate) fn arg(mut self, word: impl AsRef<OsStr>) -> Run {
        self.0.arg(word);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Run {
        self.0.env(name, value);
        self
    }

    pub(crate) fn run(mut self) -> Output {
        let output = self.0.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Output { status: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Output {
    pub(crate) fn fails_with(&self, status: i32, what: &str) {
        assert!(self.stderr.contains(what), "{what:?} is not in: {}", self.stderr);
        assert_eq!((self.status, self.stdout.as_str()), (status, ""), "{}", self.stderr);
    }
}

pub(crate) fn sha256(text: &str) -> String {
    sha2::Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn list(path: &Path, lines: &mut Vec<String>) {
    let digest = fs::read_to_string(path).map(|text| sha256(&text)).unwrap_or_default();
    lines.push(format!("{} {digest}", path.display()));
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| list(&entry.unwrap().path(), lines));
    }
}
