//! What an agent does to outlive its session, or to keep PID 1 from telling.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test starts programs, and fails by panicking")]

mod common;

use std::fs;

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
