//! One run of one subject as PID 1 of namespaces of its own, and what it cost.

use std::ffi::CString;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const LOGIN: &str =
    r#"{"anthropic": {"type": "oauth", "refresh": "sk-refresh", "access": "sk-access", "expires": 1790000000000}}"#;

/// The files of a session, and the main program.
pub struct Fixture {
    dir: PathBuf,
    main: String,
}

/// Milliseconds, KiB, and a count.
#[derive(Default)]
pub struct Measured {
    pub start: f64,
    pub total: f64,
    pub stop: f64,
    pub rss: f64,
    pub pss: f64,
    pub faults: f64,
}

impl Fixture {
    pub fn new(main: &Path) -> Self {
        // Not on a tmpfs: the wipe has to reach a disk.
        let dir = main.parent().and_then(Path::parent).expect("the bench's folder").join("target/fixture");
        let _ = fs::remove_dir_all(&dir);
        for name in ["in/agent", "workspace", "defaults/extensions"] {
            fs::create_dir_all(dir.join(name)).expect("a folder");
        }
        let write = |name: &str, text: &str| fs::write(dir.join(name), text).expect("a file");
        write("in/secrets.json", r#"{"github": {"host": "github.com", "token": "ghp_secret"}, "auth": {}}"#);
        write("in/gitconfig", "[user]\n\tname = A User\n\temail = user@example.com\n");
        write("in/agent/settings.json", r#"{"theme": "dark"}"#);
        write("in/agent/models.json", "{}");
        write("defaults/AGENTS.md", include_str!("../../../AGENTS.md"));
        write("defaults/extensions/worktree-subagent.ts", &"// the size of an extension\n".repeat(400));
        write("auth.json", LOGIN);
        run("chown", &["-R", "65534:65534", &dir.display().to_string()]);
        run("chmod", &["700", &dir.join("in").display().to_string()]);
        let program = dir.join("main").display().to_string();
        run(
            "cc",
            &["-O2", "-static", "-nostdlib", "-fno-stack-protector", "-o", &program, &main.display().to_string()],
        );
        Self { dir, main: program }
    }

    /// Runs a subject with the main program; one that stays is stopped by SIGTERM once it sleeps.
    pub fn run(&self, subject: &[String], stays: bool) -> Measured {
        self.freshen();
        let mut argv: Vec<&str> = subject.iter().map(String::as_str).collect();
        argv.push(&self.main);
        argv.extend(stays.then_some("stay"));
        let mut started = self.start(&argv);
        let first = number(&mut started.output);
        let mut measured = Measured { start: (first - started.executed) / 1e6, ..Measured::default() };
        let mut stopped = now();
        if stays {
            let main = settle(started.init);
            (measured.rss, measured.pss) = memory(started.init, main);
            stopped = now();
            // SAFETY: the process is a child that has not been waited for.
            unsafe { libc::kill(started.init, libc::SIGTERM) };
        }
        let (status, faults) = wait(started.init);
        let ended = now();
        measured.total = (ended - started.executed) / 1e6;
        measured.stop = (ended - stopped) / 1e6;
        measured.faults = faults;
        assert!(stays || status == 0, "{subject:?}: status {status}");
        let name = subject.last().map(String::as_str).unwrap_or_default();
        if name.ends_with("pi-entrypoint") || name.ends_with("chain.sh") {
            let login = fs::read_to_string(self.dir.join("auth.json")).expect("auth.json");
            assert_eq!(login, "{}", "{name} has wiped");
        }
        measured
    }

    /// System calls of everything, by strace.
    pub fn count_calls(&self, subject: &[String]) -> f64 {
        let trace = self.dir.join("trace");
        let path = trace.display().to_string();
        self.freshen();
        let mut argv = vec!["strace", "-D", "-f", "-o", &path];
        argv.extend(subject.iter().map(String::as_str));
        argv.push(&self.main);
        let mut started = self.start(&argv);
        number(&mut started.output);
        wait(started.init);
        let text = fs::read_to_string(trace).expect("a trace");
        // Nothing after the sweep's first look, where strace itself is what is left.
        let own = text.lines().take_while(|line| !line.contains("kill(-1,"));
        own.filter(|line| line.contains('(') && !line.contains("resumed>")).count() as f64
    }

    /// Every session has a login, on the disk since long.
    fn freshen(&self) {
        let mut login = fs::File::create(self.dir.join("auth.json")).expect("auth.json");
        login.write_all(LOGIN.as_bytes()).and_then(|()| login.sync_all()).expect("auth.json");
    }

    fn start(&self, argv: &[&str]) -> Started {
        let (output, input) = pipe();
        let (clock, clock_end) = pipe();
        let (words, variables) = (strings(argv.iter().copied()), self.environment());
        let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
            list.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (argv, environment) = (pointers(&words), pointers(&variables));
        let mounts = self.mounts();
        // SAFETY: the bench has one thread; the child only makes system calls, on memory that was prepared before.
        let init = unsafe {
            let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::SIGCHLD;
            let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) as i32;
            assert!(pid >= 0, "clone: {}", std::io::Error::last_os_error());
            if pid == 0 {
                for mount in &mounts {
                    mount.make();
                }
                // What the engine leaves by default, the same for all: the shell chain needs it.
                for capability in
                    (0..64).filter(|known| ![0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31].contains(known))
                {
                    libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
                }
                libc::dup2(raw(&input), 1);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                let executed = now().to_ne_bytes();
                libc::write(raw(&clock_end), executed.as_ptr().cast(), 8);
                libc::execvpe(argv[0], argv.as_ptr(), environment.as_ptr());
                libc::_exit(99);
            }
            pid
        };
        drop((input, clock_end));
        let mut executed = [0; 8];
        fs::File::from(clock).read_exact(&mut executed).expect("the time of execve");
        Started { init, executed: f64::from_ne_bytes(executed), output: output.into() }
    }

    fn environment(&self) -> Vec<CString> {
        strings(
            [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "PI_DOCKER_MODE=session",
                "PI_DOCKER_UID=65534",
                "PI_DOCKER_GID=65534",
                "PI_DOCKER_WORKDIR=/workspace",
                "GH_TOKEN=ghp_secret",
                "TERM=xterm",
            ]
            .into_iter(),
        )
    }

    fn mounts(&self) -> Vec<Mount> {
        let at = |name: &str| self.dir.join(name).display().to_string();
        for folder in ["/run/pi-docker", "/home/pi", "/workspace", "/defaults"] {
            fs::create_dir_all(folder).expect("a mount point");
        }
        fs::write("/run/pi-docker/auth.json", "").expect("a mount point");
        fs::create_dir_all("/run/pi-docker/in").expect("a mount point");
        fs::create_dir_all("/run/pi-docker/control").expect("a mount point");
        vec![
            Mount::new("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, ""),
            Mount::new("none", "/proc", "proc", 0, ""),
            Mount::new(&at("in"), "/run/pi-docker/in", "", libc::MS_BIND, ""),
            // What the shell chain has none of. Not on the disk: there the time depends on what was removed last.
            Mount::new("none", "/run/pi-docker/control", "tmpfs", 0, "mode=0700,uid=65534,gid=65534"),
            Mount::new(&at("auth.json"), "/run/pi-docker/auth.json", "", libc::MS_BIND, ""),
            Mount::new(&at("workspace"), "/workspace", "", libc::MS_BIND, ""),
            Mount::new(&at("defaults"), "/defaults", "", libc::MS_BIND, ""),
            Mount::new("none", "/home/pi", "tmpfs", 0, "mode=0700"),
        ]
    }
}

struct Started {
    init: i32,
    executed: f64,
    output: fs::File,
}

struct Mount {
    source: CString,
    target: CString,
    kind: CString,
    flags: libc::c_ulong,
    options: CString,
}

impl Mount {
    fn new(source: &str, target: &str, kind: &str, flags: libc::c_ulong, options: &str) -> Self {
        let text = |text: &str| CString::new(text).expect("text");
        Self { source: text(source), target: text(target), kind: text(kind), flags, options: text(options) }
    }

    /// In the child: everything was allocated before.
    fn make(&self) {
        // SAFETY: all strings live as long as the call.
        let done = unsafe {
            let options = self.options.as_ptr().cast();
            libc::mount(self.source.as_ptr(), self.target.as_ptr(), self.kind.as_ptr(), self.flags, options)
        };
        if done != 0 {
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(98) };
        }
    }
}

/// The main program's PID, once it sleeps in its wait and everything around it sleeps too.
fn settle(init: i32) -> i32 {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let family = family(init);
        let state = |pid: i32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let asleep = family.iter().all(|pid| state(*pid).rsplit(") ").next().is_some_and(|rest| rest.starts_with('S')));
        let main = family.iter().copied().find(|pid| state(*pid).contains("(main)"));
        if let (true, Some(main)) = (asleep, main) {
            return main;
        }
        assert!(Instant::now() < deadline, "main sleeps: {family:?}");
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// A process and its descendants.
fn family(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    [pid].into_iter().chain(children.flat_map(family)).collect()
}

/// RSS and PSS in KiB of everything but the main program.
fn memory(init: i32, main: i32) -> (f64, f64) {
    let field = |text: &str, name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
        line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0.0)
    };
    let others = family(init).into_iter().filter(|pid| *pid != main || *pid == init);
    others.fold((0.0, 0.0), |(rss, pss), pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        (rss + field(&text, "Rss:"), pss + field(&text, "Pss:"))
    })
}

/// The exit status, and the page faults of it and of all that it has waited for.
fn wait(pid: i32) -> (i32, f64) {
    let mut status = 0;
    // SAFETY: an all-zero rusage is valid; the pointers are.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::wait4(pid, &raw mut status, 0, &raw mut usage), pid);
        usage
    };
    (status, usage.ru_minflt as f64)
}

fn number(output: &mut fs::File) -> f64 {
    let mut line = Vec::new();
    let mut byte = [0];
    while output.read(&mut byte).expect("the main program's time") == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).parse().expect("the main program has run")
}

fn now() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn strings<'a>(words: impl Iterator<Item = &'a str>) -> Vec<CString> {
    words.map(|word| CString::new(word).expect("no NUL")).collect()
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both, and nobody else owns them.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

fn raw(fd: &OwnedFd) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(fd)
}

fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().expect(program).success(), "{program}");
}
