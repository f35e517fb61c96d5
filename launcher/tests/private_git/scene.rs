//! A repository of a user, its private side, and a stand-in for the container: the same mounts, nothing else of the host.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::git::prepare::PrivateGit;
use crate::git::{self, ImportReport, Limits, Mount, Site};

pub(crate) struct Scene {
    dir: TempDir,
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) home: PathBuf,
    env: Vec<(OsString, OsString)>,
    sessions: std::cell::Cell<u32>,
    /// Who the agent is; root without its rights if nobody.
    pub(crate) uid: std::cell::Cell<u32>,
}

/// What the host's file system shows of a program that should not have run.
pub(crate) fn marker(scene: &Scene) -> PathBuf {
    scene.dir.path().join("attacker-was-here")
}

impl Scene {
    /// A repository with two commits on `main`, an ordinary user's git configuration, and a bare `origin`.
    pub(crate) fn new() -> Scene {
        static MADE: OnceLock<PathBuf> = OnceLock::new();
        let made = MADE.get_or_init(|| {
            // Kept between runs, and made anew when this file has changed.
            let place =
                Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("scene-{}", include_str!("scene.rs").len()));
            if !place.exists() {
                let scene = Scene::with(&["init", "-q", "-b", "main"]);
                let half = place.with_extension(std::process::id().to_string());
                assert!(Command::new("cp").arg("-a").arg(scene.dir.path()).arg(&half).status().unwrap().success());
                let _ = fs::rename(half, &place);
            }
            place
        });
        let scene = Scene::empty();
        let copied = Command::new("cp").arg("-a").arg(made.join(".")).arg(scene.dir.path()).status().unwrap();
        assert!(copied.success());
        scene
    }

    /// The same, made by another `git init`.
    pub(crate) fn with(init: &[&str]) -> Scene {
        let scene = Scene::empty();
        scene.git_in(scene.dir.path(), &["init", "-q", "--bare", "origin.git"]);
        scene.git(init);
        scene.write("README.md", "one\n");
        scene.write("src/lib.rs", "fn one() {}\n");
        scene.commit("first");
        scene.write("README.md", "one\ntwo\n");
        scene.commit("second");
        scene.git(&["remote", "add", "origin", "../origin.git"]);
        scene
    }

    /// A folder, and no repository in it yet.
    pub(crate) fn empty() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let (root, state, home) = (base.join("repo"), base.join("state"), base.join("home"));
        for folder in [&root, &state, &home] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(home.join(".gitconfig"), "[user]\n\tname = Ada\n\temail = ada@example.com\n[protocol \"file\"]\n\tallow = always\n[advice]\n\tdetachedHead = false\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n").unwrap();
        fs::write(home.join(".bashrc"), "# mine\n").unwrap();
        let path = std::env::var_os("PATH").unwrap();
        let env = vec![("PATH".into(), path), ("HOME".into(), home.clone().into_os_string())];
        Scene { dir, root, state, home, env, sessions: std::cell::Cell::new(0), uid: std::cell::Cell::new(0) }
    }

    pub(crate) fn base(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    /// The same repository and state seen from another working tree.
    pub(crate) fn at(&self, root: &str, state: &str) -> Scene {
        let base = self.base();
        fs::create_dir_all(base.join(state)).unwrap();
        // Its own temporary folder is of no use, only the paths are.
        Scene {
            dir: tempfile::tempdir().unwrap(),
            root: base.join(root),
            state: base.join(state),
            home: self.home.clone(),
            env: self.env.clone(),
            sessions: std::cell::Cell::new(0),
            uid: std::cell::Cell::new(0),
        }
    }

    pub(crate) fn write(&self, path: &str, content: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap()
    }

    pub(crate) fn commit(&self, message: &str) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", message]);
        self.oid("HEAD")
    }

    /// Runs the user's git in the repository; it must succeed.
    pub(crate) fn git(&self, args: &[&str]) -> String {
        self.git_in(&self.root, args)
    }

    pub(crate) fn git_in(&self, folder: &Path, args: &[&str]) -> String {
        let output = self.try_git(folder, args);
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    pub(crate) fn try_git(&self, folder: &Path, args: &[&str]) -> Output {
        Command::new("git").env_clear().envs(self.env.iter().cloned()).current_dir(folder).args(args).output().unwrap()
    }

    pub(crate) fn oid(&self, revision: &str) -> String {
        self.git(&["rev-parse", revision])
    }

    pub(crate) fn has(&self, revision: &str) -> bool {
        self.try_git(&self.root, &["rev-parse", "-q", "--verify", &format!("{revision}^{{commit}}")]).status.success()
    }

    pub(crate) fn status(&self) -> String {
        self.git(&["status", "--porcelain"])
    }

    pub(crate) fn site<'a>(&'a self, session: &'a str) -> Site<'a> {
        Site { root: &self.root, state: &self.state, session, env: &self.env, owner: None, others_live: false }
    }

    /// A program in place of git for the launcher, which finds the real one in `$GIT`.
    pub(crate) fn put_before_git(&mut self, script: &str) {
        let folder = self.base().join("before");
        fs::create_dir_all(&folder).unwrap();
        let real = Command::new("sh").args(["-c", "command -v git"]).output().unwrap().stdout;
        let script = format!("#!/bin/sh\nGIT={}\n{script}\n", String::from_utf8(real).unwrap().trim());
        fs::write(folder.join("git"), script).unwrap();
        fs::set_permissions(folder.join("git"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        self.env[0].1 = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap()).into();
    }

    pub(crate) fn prepare(&self) -> Session<'_> {
        let number = self.sessions.get() + 1;
        self.sessions.set(number);
        let id = format!("{number:08x}");
        let private = git::prepare(&self.site(&id)).unwrap();
        Session { scene: self, id, private }
    }

    /// The one mount of a session whose git is the host's own.
    pub(crate) fn unprotected(&self) -> Vec<Mount> {
        vec![Mount { host: self.root.clone(), container: "/workspace".to_owned(), read_only: false }]
    }

    /// Runs a shell script where only `mounts` are of the host; it must succeed.
    pub(crate) fn inside(&self, mounts: &[Mount], script: &str) -> String {
        let output = self.try_inside(mounts, script);
        assert!(
            output.status.success(),
            "{script}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn try_inside(&self, mounts: &[Mount], script: &str) -> Output {
        let setup = enter(mounts, &self.base(), self.uid.get());
        let test_binary = std::env::current_exe().unwrap();
        Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-euc", &setup, "sh", script])
            .env("TESTS", test_binary.parent().unwrap())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

/// One session on a private side.
pub(crate) struct Session<'a> {
    scene: &'a Scene,
    pub(crate) id: String,
    pub(crate) private: PrivateGit,
}

impl<'a> Session<'a> {
    /// A container of an earlier session's mounts.
    pub(crate) fn of(scene: &'a Scene, id: &str, mounts: Vec<Mount>) -> Session<'a> {
        let private = PrivateGit { mounts, programs: Vec::new(), warnings: Vec::new() };
        Session { scene, id: id.to_owned(), private }
    }

    pub(crate) fn mounts(&self) -> Vec<Mount> {
        [self.scene.unprotected(), self.private.mounts.clone()].concat()
    }

    /// What the agent does.
    pub(crate) fn agent(&self, script: &str) -> String {
        self.scene.inside(&self.mounts(), script)
    }

    /// What PID 1 does after pi has ended. Returns the file that the launcher finds.
    pub(crate) fn export(&self) -> PathBuf {
        self.export_with("export")
    }

    pub(crate) fn export_with(&self, errand: &str) -> PathBuf {
        let name = std::env::current_exe().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let control = self.scene.base().join("control");
        fs::create_dir_all(&control).unwrap();
        std::os::unix::fs::chown(&control, Some(self.scene.uid.get()), None).unwrap();
        let mut mounts = self.mounts();
        mounts.push(Mount { host: control.clone(), container: "/run/pi-docker/control".to_owned(), read_only: false });
        let script = format!("PI_TEST_ERRAND={errand} /tests/{name} --exact scene::errand >/dev/null");
        self.scene.inside(&mounts, &script);
        control.join("export.bundle")
    }

    pub(crate) fn import(&self) -> ImportReport {
        self.import_file(&self.export()).unwrap()
    }

    pub(crate) fn import_file(&self, bundle: &Path) -> anyhow::Result<ImportReport> {
        git::import(&self.scene.site(&self.id), bundle, &Limits::default())
    }

    pub(crate) fn aside(&self, name: &str) -> String {
        format!("refs/pi/{}/{name}", self.id)
    }
}

/// Not a test by itself: what another one needs done in a process of its own, there in the container.
#[test]
fn errand() {
    let Ok(errand) = std::env::var("PI_TEST_ERRAND") else { return };
    let mut out = fs::File::create("/run/pi-docker/control/export.bundle").unwrap();
    crate::export::export(Path::new("/workspace"), errand == "export-full", &mut out).unwrap();
}

/// A shell script that makes a root of its own from the system's programs and the mounts, and runs `$1` there without any capability.
fn enter(mounts: &[Mount], base: &Path, uid: u32) -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let mut script =
        format!("R={}; mkdir -p \"$R\"; mount -t tmpfs none \"$R\"\n", quote(base.join("container").to_str().unwrap()));
    script.push_str("cd \"$R\"; mkdir usr etc proc dev tmp run home home/pi workspace tests; chmod 1777 tmp\n");
    script.push_str("for d in bin sbin lib lib64; do if [ -L /$d ]; then cp -a /$d .; else mkdir $d; mount --rbind /$d $d; fi; done\n");
    script.push_str(
        "mount --bind /usr usr; mount -o remount,bind,ro usr; mount --bind /etc etc; mount -o remount,bind,ro etc\n",
    );
    script.push_str("mount --rbind /dev dev; mount --bind /proc proc; mount --bind \"$TESTS\" tests; mount -o remount,bind,ro tests\n");
    for mount in mounts {
        let (host, target) = (quote(mount.host.to_str().unwrap()), quote(mount.container.trim_start_matches('/')));
        // As the engine does, outside the tree only: in the tree the mount points must be there.
        if !mount.container.starts_with("/workspace") {
            script.push_str(&format!("if [ -d {host} ]; then mkdir -p {target}; else mkdir -p \"$(dirname {target})\"; [ -e {target} ] || touch {target}; fi\n"));
        }
        script.push_str(&format!("mount --bind {host} {target}\n"));
        if mount.read_only {
            script.push_str(&format!("mount -o remount,bind,ro {target}\n"));
        }
    }
    script.push_str("printf '[user]\\n\\tname = Agent\\n\\temail = agent@example.com\\n' > home/pi/.gitconfig\n");
    script.push_str("exec chroot . /usr/bin/env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/home/pi LANG=C.UTF-8 ");
    script.push_str(&format!("setpriv --reuid {uid} --regid {uid} --clear-groups "));
    script.push_str("--bounding-set=-all --inh-caps=-all --no-new-privs sh -euc \"cd /workspace\n$1\"\n");
    script
}
