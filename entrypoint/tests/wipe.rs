//! The login after every end there is: empty, here and on the host, unless somebody else has changed the host's meanwhile.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test starts programs, and fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;

use common::{Case, Finished, LOGIN, Running, eventually, kill};

/// Writes the login anew every 2 ms, in place and by a rename, itself and from a session of its own that ignores every request to end.
const WRITER: &str = r#"
write() { cd ~/.pi/agent; while :; do
  echo '{"anthropic": {"refresh": "sk-again"}}' >auth.json
  echo '{"anthropic": {"refresh": "sk-renamed"}}' >auth.$BASHPID; mv auth.$BASHPID auth.json; sleep 0.002; done; }
export -f write; trap '' HUP; setsid bash -c 'trap "" TERM HUP INT; write' & write & "#;

/// What is run, and what ends it.
type End = (&'static str, &'static str, fn(&Running));

const ENDS: &[End] = &[
    ("exit 0", "exited", |_| {}),
    ("exit 3", "exited", |_| {}),
    ("exec /no/such/program", "exited", |_| {}),
    ("kill -9 $$", "signal", |_| {}),
    ("kill -SEGV $$", "signal", |_| {}),
    ("kill -40 $$", "signal", |_| {}),
    ("sleep 1000", "terminated", |running| running.signal(15)),
    ("trap 'exit 0' TERM; while :; do wait; done", "terminated", |running| running.signal(15)),
    ("trap '' TERM; while :; do wait; done", "killed", |running| {
        running.signal(15);
        running.signal(1);
        eventually("taken", || common::status(running.pid, "ShdPnd").chars().all(|c| c == '0').then_some(()));
        running.signal(15);
    }),
    ("trap '' TERM; while :; do wait; done", "killed", |running| running.signal(15)),
    ("trap - HUP; kill -HUP $$", "signal", |_| {}),
    ("sleep 1000", "signal", |running| running.signal(2)),
    ("sleep 1000", "signal", |running| running.signal(3)),
    ("sleep 1000", "signal", |running| running.signal(10)),
    ("sleep 1000", "signal", |running| kill(main_of(running), 9)),
];

fn main_of(running: &Running) -> i32 {
    common::only_child(u32::try_from(running.pid).unwrap()).unwrap()
}

fn nothing_is_left(ended: &Finished, what: &str) {
    assert_eq!(ended.read("auth.json"), "{}", "{what}: {}", ended.stderr);
    let copy = ended.dir.path().join("home/.pi/agent/auth.json");
    let left = fs::read_to_string(&copy).unwrap_or_else(|_| "{}".into());
    assert_eq!(left, "{}", "{what}");
}

fn every_end(rounds: usize) {
    for round in 0..rounds {
        for (script, reason, end) in ENDS {
            let what = format!("{script}, {reason}, round {round}");
            // The writer that ignores every request takes all the time there is.
            let grace = if *reason == "terminated" || *reason == "killed" { "1" } else { "0" };
            let case = Case::session().keeping_home().env("PI_DOCKER_GRACE", grace);
            // As many writers as make sure that one of them is in the middle of it.
            let running = case.start_script(&format!("{WRITER} until grep -q sk-renamed ~/.pi/agent/auth.json; do :; done 2>/dev/null; echo >/workspace/up; {script}"));
            if *reason != "exited" && !script.contains("$$") {
                eventually("the writers are at work", || running.path("workspace/up").exists().then_some(()));
                // A program that is to be killed by a default disposition must have got there.
                eventually("the script is at its end", || {
                    (common::status(main_of(&running), "State").starts_with('S')).then_some(())
                });
            }
            end(&running);
            let ended = running.finish();
            assert_eq!(ended.ending().1, *reason, "{what}: {}", ended.stderr);
            assert_eq!(ended.ending().2, "wiped", "{what}");
            nothing_is_left(&ended, &what);
        }
    }
}

#[test]
fn the_login_is_empty_after_every_end() {
    every_end(1);
}

#[test]
#[ignore = "long: 200 runs"]
fn the_login_is_empty_after_every_end_of_200_runs() {
    every_end(200_usize.div_ceil(ENDS.len()));
}

#[test]
fn a_session_that_was_not_prepared_is_wiped_too() {
    type Breakage = fn(Case) -> Case;
    let cases: [(i32, Breakage); 4] = [
        (122, |case| case.with("in/secrets.json", "{")),
        (122, |case| case.with("in/agent/settings.json", "[]").env("PI_DOCKER_TRUST", "0")),
        (122, |case| case.env("PI_DOCKER_WORKDIR", "/no/such")),
        (127, |case| case),
    ];
    for (code, breakage) in cases {
        let program = if code == 127 { "no-such-program" } else { "true" };
        let ended = breakage(Case::session().keeping_home()).run(&[program]);
        assert_eq!(ended.code, code, "{}", ended.stderr);
        assert_eq!(ended.ending().2, "wiped");
        nothing_is_left(&ended, "not prepared");
    }
}

/// Starts a pi that does not end when it is asked to, says when that was, and sees to it that its copy still is a login then.
fn unwilling(case: Case) -> Running {
    let script =
        "trap 'cat ~/.pi/agent/auth.json >/workspace/asked' TERM; echo >/workspace/up; while :; do sleep 0.02; done";
    let running = case.env("PI_DOCKER_GRACE", "60").keeping_home().start_script(script);
    eventually("pi is up", || running.path("workspace/up").exists().then_some(()));
    running
}

#[test]
fn the_hosts_login_is_empty_as_soon_as_the_end_was_asked_for() {
    let is_blank = |running: &Running| {
        let content = running.read("auth.json");
        (content.trim_end() == "{}" && content.len() == LOGIN.len()).then_some(())
    };
    let running = unwilling(Case::session());
    assert_eq!(running.read("auth.json"), LOGIN);
    running.signal(15);
    eventually("the host's file is blank", || is_blank(&running));
    running.await_text("workspace/asked", "sk-access");
    assert!(common::status(main_of(&running), "State").starts_with(['R', 'S']), "pi still runs");
    // Whoever logs in on the host from now on keeps that.
    let newer = r#"{"anthropic": {"refresh": "sk-made-meanwhile"}}"#;
    fs::write(running.path("auth.json"), newer).unwrap();
    running.signal(15);
    let ended = running.finish();
    assert_eq!(ended.ending(), (137, "killed".into(), "changed".into()));
    assert_eq!((ended.read("auth.json").as_str(), ended.read("home/.pi/agent/auth.json").as_str()), (newer, "{}"));

    let silent = unwilling(Case::session().env("PI_DOCKER_HEARTBEAT", "1").with("control/heartbeat", "1"));
    eventually("the host's file is blank", || is_blank(&silent));
    assert!(common::status(main_of(&silent), "State").starts_with(['R', 'S']), "pi still runs");
    kill(main_of(&silent), 9);
    let ended = silent.finish();
    assert_eq!(ended.ending().2, "wiped");
    nothing_is_left(&ended, "begun, and brought to its end");
}

#[test]
fn a_login_that_stays_is_not_touched_when_the_end_was_asked_for() {
    for setting in [("PI_DOCKER_KEEP_AUTH", "1"), ("PI_DOCKER_MODE", "auth")] {
        let running = unwilling(Case::session().env(setting.0, setting.1));
        running.signal(15);
        eventually("pi was asked", || running.path("workspace/asked").exists().then_some(()));
        running.signal(15);
        let ended = running.finish();
        assert_eq!((ended.ending().2.as_str(), ended.read("auth.json").as_str()), ("kept", LOGIN), "{setting:?}");
    }
}

#[test]
fn it_is_wiped_in_place_and_stays_the_owners() {
    let case = Case::session();
    let before = fs::metadata(case.dir.path().join("auth.json")).unwrap();
    let ended = case.run(&["true"]);
    let after = fs::metadata(ended.dir.path().join("auth.json")).unwrap();
    assert_eq!((before.ino(), before.uid(), before.mode()), (after.ino(), after.uid(), after.mode()));
    assert_eq!(after.len(), 2);
}

#[test]
fn a_login_made_on_the_host_meanwhile_stays() {
    let changed = r#"{"anthropic": {"refresh": "sk-made-meanwhile"}}"#;
    // In place, and by a new file: the mount then still shows the old one.
    for renamed in [false, true] {
        let running = Case::session().start_script("echo >/workspace/up; sleep 1000");
        eventually("pi is up", || running.path("workspace/up").exists().then_some(()));
        let written = running.path(if renamed { "new" } else { "auth.json" });
        fs::write(&written, changed).unwrap();
        if renamed {
            fs::rename(written, running.path("auth.json")).unwrap();
        }
        running.signal(15);
        let ended = running.finish();
        assert_eq!(ended.ending(), (143, "terminated".into(), "changed".into()));
        assert_eq!(ended.read("auth.json"), changed);
        assert!(ended.stderr.contains("left the host's auth.json alone"), "{}", ended.stderr);
    }
}

#[test]
fn what_the_agent_puts_in_its_copys_place_is_not_followed() {
    let traps = [
        "ln -s /workspace/precious auth.json",
        "ln precious auth.json",
        "mkfifo auth.json",
        "mkdir auth.json; touch auth.json/precious",
        "ln -s /run/pi-docker/control/log auth.json",
        "cd ..; mv agent elsewhere; mkdir agent; ln -s /workspace/precious agent/auth.json",
        "chmod 000 auth.json.new; mv auth.json.new auth.json",
        "cd ..; chmod 000 agent",
    ];
    for trap in traps {
        let script = format!(
            "echo precious >/workspace/precious; cd ~/.pi/agent; echo precious >precious; cp auth.json auth.json.new; rm auth.json; {trap}"
        );
        let ended = Case::session().keeping_home().run_script(&script);
        assert_eq!(ended.ending(), (0, "exited".into(), "wiped".into()), "{trap}");
        assert_eq!(ended.read("workspace/precious"), "precious\n", "{trap}");
        assert!(!ended.read("control/log").contains("{}"), "{trap}");
        for name in ["home/.pi/agent/precious", "home/.pi/elsewhere/precious"] {
            assert!(["", "precious\n"].contains(&ended.read(name).as_str()), "{trap}");
        }
        assert_eq!(ended.read("auth.json"), "{}");
    }
}

#[test]
fn a_login_that_is_to_be_kept_is_kept() {
    let keep = |script: &str| Case::session().env("PI_DOCKER_KEEP_AUTH", "1").keeping_home().run_script(script);
    let untouched = keep("true");
    assert_eq!((untouched.ending().2.as_str(), untouched.read("auth.json").as_str()), ("kept", LOGIN));
    let refreshed = keep("sed -i s/sk-access-1/sk-access-2/ ~/.pi/agent/auth.json");
    assert_eq!(refreshed.ending().2, "refreshed");
    let written: serde_json::Value = serde_json::from_str(&refreshed.read("auth.json")).unwrap();
    assert_eq!(written, serde_json::from_str::<serde_json::Value>(&LOGIN.replace("access-1", "access-2")).unwrap());
    // Nothing that the agent writes can become a command or another account's address on the host.
    for bad in [
        "s/sk-access-1/!touch pwned/",
        "s/oauth/api_key/",
        "s/\"expires\": 1/\"expires\": 1, \"baseUrl\": \"https:\\/\\/evil\"/",
        "s/anthropic/evil/",
        "s/{/[/",
    ] {
        let ended = keep(&format!("sed -i '{bad}' ~/.pi/agent/auth.json"));
        assert_eq!((ended.ending().2.as_str(), ended.read("auth.json").as_str()), ("kept", LOGIN), "{bad}");
        assert_eq!(ended.read("home/.pi/agent/auth.json"), "{}");
    }
}

#[test]
fn a_silent_launcher_ends_the_session_and_a_beating_one_does_not() {
    let case = Case::session().env("PI_DOCKER_HEARTBEAT", "1").with("control/heartbeat", "1");
    let running = case.start_script("trap 'echo asked >/workspace/log; exit 0' TERM; while :; do sleep 0.02; done");
    for beat in 0..30 {
        fs::write(running.path("control/heartbeat"), beat.to_string()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(running.read("workspace/log"), "");
    let ended = running.finish();
    assert_eq!(ended.ending(), (0, "heartbeat".into(), "wiped".into()));
    assert_eq!(ended.read("workspace/log"), "asked\n");
}

#[test]
fn a_heartbeat_that_cannot_be_read_is_no_sign_of_life() {
    let case = Case::session().env("PI_DOCKER_HEARTBEAT", "1").with("control/heartbeat", "1");
    let mut running = case.start(&["sleep", "1000"]);
    let (there, away) = (running.path("control/heartbeat"), running.path("control/away"));
    // It comes and goes, and says nothing new.
    eventually("the end", || {
        let _ = fs::rename(&there, &away);
        std::thread::sleep(std::time::Duration::from_millis(100));
        let _ = fs::rename(&away, &there);
        std::thread::sleep(std::time::Duration::from_millis(100));
        running.has_ended().then_some(())
    });
    assert_eq!(running.finish().ending(), (143, "heartbeat".into(), "wiped".into()));
}

#[test]
fn the_agents_side_may_say_a_line_for_the_log() {
    let script = r#"python3 - <<'END'
import socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect("/home/pi/.config/pi-docker/log")
for line in ["one", "two\nforged \x1b[2J", "x" * 5000]: s.send(line.encode())
END"#;
    let script = script.replace("python3", "/usr/bin/env python3");
    let ended = Case::session().run_script(&script);
    let log = ended.read("control/log");
    assert!(
        log.starts_with("pi-subagent: one\npi-subagent: two forged  [2J\npi-subagent: xxx"),
        "{log}{}",
        ended.stderr
    );
    assert!(log.lines().all(|line| line.len() <= 1000), "{log}");
}

#[test]
fn auth_mode_brings_the_login_to_the_host_as_soon_as_it_is_there_and_never_wipes() {
    let case = Case::session()
        .env("PI_DOCKER_MODE", "auth")
        .env("PI_DOCKER_AUTH_TIMEOUT", "2")
        .env("PI_DOCKER_WORKDIR", "/home/pi")
        .keeping_home();
    let case =
        case.with("in/secrets.json", r#"{"github": null, "auth": {"openai": {"type": "api_key", "key": "sk-key"}}}"#);
    let login = r#"{"anthropic": {"type": "oauth", "access": "sk-new"}, "openai": {"type": "api_key", "key": "sk-key"}, "github-copilot": {"type": "oauth", "refresh": "gho"}}"#;
    let running = case.start_script(&format!(
        "echo '{login}' >~/.pi/agent/auth.json; trap 'echo asked >~/asked; exit 1' TERM; while :; do sleep 0.02; done"
    ));
    running.await_text("auth.json", "gho");
    running.await_text("control/log", "the login for 'github-copilot' has arrived in auth.json");
    assert!(!running.read("home/asked").contains("asked"), "before the end");
    let ended = running.finish();
    assert_eq!(ended.ending(), (0, "timeout".into(), "logged in".into()));
    assert_eq!(ended.read("home/asked"), "asked\n");
    let host: serde_json::Value = serde_json::from_str(&ended.read("auth.json")).unwrap();
    assert_eq!(host["anthropic"]["access"], "sk-new");
    assert_eq!(host.as_object().unwrap().len(), 2, "a key from the environment is no login");
    assert_eq!(ended.read("home/.pi/agent/auth.json"), "{}");
}

#[test]
fn auth_mode_without_a_login_ends_by_itself() {
    let case = Case::session()
        .env("PI_DOCKER_MODE", "auth")
        .env("PI_DOCKER_AUTH_TIMEOUT", "1")
        .env("PI_DOCKER_WORKDIR", "/home/pi");
    let ended = case.run_script("sleep 1000");
    assert_eq!(ended.ending(), (124, "timeout".into(), "kept".into()));
    assert_eq!(ended.read("auth.json"), LOGIN);
}

/// With a program of this text in pi-subagent's place.
fn exporting(exporter: &str) -> Case {
    let case = Case::session().env("PI_DOCKER_EXPORT", "1");
    case.write("bin/pi-subagent", &format!("#!/bin/bash\n{exporter}"), 0o755);
    case.before("chmod 755 $D/bin; mount --bind $D/bin /usr/local/bin")
}

/// Nothing has been handed out, and why is said; nothing else is different.
fn nothing_handed_out(ended: &Finished, why: &str) {
    assert_eq!(ended.ending(), (0, "exited".into(), "wiped".into()));
    assert!(!ended.dir.path().join("control/export.bundle").exists());
    let line = format!("cannot hand out the commits of this session: {why}\n");
    assert!(ended.stderr.contains(&line), "{}", ended.stderr);
}

#[test]
fn commits_are_handed_out_when_every_process_has_ended() {
    let exporter = "pgrep -x sleep && exit 9; id -u && echo \"$@ $HOME $PWD\"; test ! -e /workspace/fail";
    let ended = exporting(exporter).run_script("setsid sleep 1000 & exit 5");
    assert_eq!(ended.ending(), (5, "exited".into(), "wiped".into()));
    assert_eq!(ended.read("control/export.bundle"), "51234\nexport /home/pi /workspace\n");
    nothing_handed_out(&exporting(exporter).run_script("touch /workspace/fail"), "exit status 1");
}

#[test]
fn no_credential_is_left_when_the_commits_are_handed_out() {
    let exporter = "cd; cat .pi/agent/auth.json; grep -rl -e ghp_ -e sk- . /workspace; echo >/workspace/exporting; \
                    until [ -e /workspace/go ]; do sleep 0.01; done";
    let running = exporting(exporter).start_script("grep -rl -e ghp_ -e sk- ~ >/workspace/before");
    eventually("the export", || running.path("workspace/exporting").exists().then_some(()));
    assert_eq!(running.read("auth.json"), "{}");
    fs::write(running.path("workspace/go"), "").unwrap();
    let ended = running.finish();
    assert_eq!(ended.read("workspace/before").lines().count(), 3);
    assert_eq!(ended.read("control/export.bundle"), "{}");
}

#[test]
fn an_export_ends_with_the_launcher() {
    let case = exporting("echo >/workspace/exporting; trap '' TERM; sleep 1000");
    let running = case.env("PI_DOCKER_HEARTBEAT", "1").start(&["true"]);
    eventually("the export", || running.path("workspace/exporting").exists().then_some(()));
    nothing_handed_out(&running.finish(), "killed by signal 9");
}

#[test]
fn an_export_takes_half_of_the_free_disk_space_at_most() {
    // A hole takes no space, and counts.
    let exporter = |part: u32| {
        let free = "$(df --output=avail --block-size=1 /workspace | tail -n 1)";
        format!("exec truncate -s $(({free} / 100 * {part})) /dev/stdout")
    };
    let ended = exporting(&exporter(40)).run(&["true"]);
    assert_eq!(ended.stderr, "");
    assert!(fs::metadata(ended.dir.path().join("control/export.bundle")).unwrap().len() > 1 << 20);
    let ended = exporting(&exporter(60)).run(&["true"]);
    nothing_handed_out(&ended, "they take more than half of the disk space that is left");
}
