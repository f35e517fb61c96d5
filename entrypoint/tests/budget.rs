//! What the shipped program may cost: bytes, system calls, page faults and memory do not depend on how busy the machine is.
//!
//! The figures beside other programs' are made by bench/entrypoint. This needs strace (dev/anchors) and the build that the image gets:
//! `cargo build --profile pid1 --target x86_64-unknown-linux-musl -p pi-entrypoint`. `./test` sees to both.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test starts programs, and fails by panicking")]

mod common;

use std::fs;

use common::{Case, Subject, eventually, status};

fn shipped() -> Subject {
    // This test is in target/debug/deps.
    let test = std::env::current_exe().unwrap();
    let name = format!("{}-unknown-linux-musl/pid1/pi-entrypoint", std::env::consts::ARCH);
    let path = fs::canonicalize(test.ancestors().nth(3).unwrap().join(name)).expect("the shipped build is there");
    Subject { name: "pi-entrypoint".into(), argv: vec![path.to_str().unwrap().into()] }
}

#[test]
#[ignore = "needs the shipped build"]
fn it_is_a_static_program_of_500_kib_at_most() {
    let content = fs::read(&shipped().argv[0]).unwrap();
    assert!(content.len() <= 500 << 10, "{} bytes", content.len());
    // A dynamic one would name its loader.
    assert!(!content.windows(8).any(|window| window == b"/ld-musl" || window == b"ld-linux"));
}

#[test]
#[ignore = "needs the shipped build, and strace: dev/anchors"]
fn a_whole_session_starts_in_210_system_calls() {
    let case = Case::session()
        .with("defaults/AGENTS.md", "rules")
        .with("in/gitconfig", "[user]\n")
        .env("PI_DOCKER_GRACE", "0");
    let ended = case.subject(&shipped()).around("strace -D -o $D/out/trace").run(&["true"]);
    let trace = ended.read("out/trace");
    let calls = trace.lines().take_while(|line| !line.starts_with("rt_sigtimedwait")).count();
    assert!((100..=210).contains(&calls), "{calls} system calls:\n{trace}");
    println!("{calls} system calls");
}

#[test]
#[ignore = "needs the shipped build"]
fn a_whole_session_starts_in_40_page_faults_and_idles_in_400_kib() {
    let case = Case::session().with("defaults/AGENTS.md", "rules").subject(&shipped());
    // The count goes on over an execve: what was there before is written down by what executes the program.
    let before = "bash -c 'read -r line </proc/self/stat; echo \"$line\" >'$D'/out/before; exec \"$@\"' bash";
    let running = case.around(before).start(&["sleep", "1000"]);
    eventually("the launcher has been told", || running.path("control/ready").exists().then_some(()));
    eventually("PID 1 is asleep", || status(running.pid, "State").starts_with('S').then_some(()));
    let faults = |stat: &str| -> u64 {
        stat.rsplit(')').next().unwrap().split_ascii_whitespace().nth(7).unwrap().parse().unwrap()
    };
    let stat = fs::read_to_string(format!("/proc/{}/stat", running.pid)).unwrap();
    let faults = faults(&stat) - faults(&running.read("out/before"));
    assert!((10..=40).contains(&faults), "{faults} page faults");
    let kib: u64 = status(running.pid, "VmRSS").split(' ').next().unwrap().parse().unwrap();
    assert!(kib <= 400, "{kib} KiB");
    println!("{faults} page faults, {kib} KiB");
}
