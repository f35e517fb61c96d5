//! What an agent does to outlive its session, or to keep PID 1 from telling.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test starts programs, and fails by panicking")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::Case;

/// pi, and a child of its that traces it, ignores every request to end, and never waits for pi: until the tracer ends, nobody else
/// is told of pi's own end.
const TRACED: &str = r#"
import ctypes, os, signal, time
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_PTRACER, ANYBODY, PTRACE_SEIZE = 0x59616d61, ctypes.c_ulong(-1), 0x4206
libc.prctl(PR_SET_PTRACER, ANYBODY, 0, 0, 0)
pi = os.getpid()
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if libc.ptrace(PTRACE_SEIZE, pi, None, None) == 0: open("/workspace/traced", "w").write("yes")
while True: time.sleep(1)
"#;

#[test]
fn a_main_program_whose_end_its_tracer_keeps_back_ends_in_time() {
    let case = || Case::session().env("PI_DOCKER_GRACE", "1").with("control/heartbeat", "1");
    let asked = case().start(&["/usr/bin/env", "python3", "-c", TRACED]);
    asked.await_text("workspace/traced", "yes");
    asked.signal(15);
    assert_eq!(asked.finish().ending(), (137, "killed".into(), "wiped".into()));
    let silent = case().env("PI_DOCKER_HEARTBEAT", "1").start(&["/usr/bin/env", "python3", "-c", TRACED]);
    silent.await_text("workspace/traced", "yes");
    assert_eq!(silent.finish().ending(), (137, "heartbeat".into(), "wiped".into()));
}

#[test]
fn the_agents_side_cannot_silence_what_is_said_about_the_session() {
    let script = r#"python3 - <<'END'
import socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect("/home/pi/.config/pi-docker/log")
for size in [900] * 1300 + [1] * 2000: s.send(b"x" * size)
open("/workspace/flooded", "w").write("yes")
END
sleep 1000"#;
    let running = Case::session().start_script(&script.replace("python3", "/usr/bin/env python3"));
    running.await_text("workspace/flooded", "yes");
    fs::write(running.path("auth.json"), r#"{"another": {"type": "oauth"}}"#).unwrap();
    running.signal(15);
    let ended = running.finish();
    assert_eq!(ended.ending(), (143, "terminated".into(), "changed".into()));
    let log = ended.read("control/log");
    assert!(log.ends_with("pi-entrypoint: left the host's auth.json alone: it was changed during the session\n"));
    assert!(log.len() <= 1 << 20);
}

/// Orphans of pi's, and one of them that stops and continues the last of them without end: PID 1 looks through the others first, and
/// never comes to where nothing has changed.
const STORM: &str = r#"
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    idle = []
    for _ in range(800):
        idle.append(os.fork())
        if idle[-1] == 0: time.sleep(1000)
    last = idle[-32:]
    if os.fork() > 0: os._exit(0)
    time.sleep(0.2)
    open("/workspace/storm", "w").write("yes")
    while True:
        for at in range(32):
            os.kill(last[at], signal.SIGSTOP)
            os.kill(last[at - 16], signal.SIGCONT)
while True: time.sleep(1)
"#;

#[test]
fn a_storm_of_stopped_and_continued_processes_does_not_keep_pid_1_from_its_deadline() {
    let running = Case::session().env("PI_DOCKER_GRACE", "1").start(&["/usr/bin/env", "python3", "-c", STORM]);
    running.await_text("workspace/storm", "yes");
    let asked = Instant::now();
    running.signal(15);
    assert_eq!(running.finish().ending(), (137, "killed".into(), "wiped".into()));
    // The grace period is a second; the storm leaves PID 1 only its share of a busy machine.
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}
