//! What is left to pi of root's rights, what is left to PID 1, and what neither can do to the other.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test starts programs, and fails by panicking")]

mod common;

use std::process::{Command, Stdio};

use common::{Case, GID, Subject, Terminal, UID, eventually, field_of, namespace_of, status};

const NONE: &str = "0000000000000000";

#[test]
fn pi_has_no_capability_no_group_and_no_way_to_more() {
    let ended = Case::session().run_script("cat /proc/self/status; ls /proc/self/fd");
    let field = |name: &str| field_of(&ended.stdout, name);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), NONE, "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Groups"), "");
    assert_eq!(field("Uid"), format!("{UID} {UID} {UID} {UID}"));
    assert_eq!(field("Gid"), format!("{GID} {GID} {GID} {GID}"));
    assert_eq!(field("SigBlk"), NONE);
    assert_eq!(field("SigIgn"), NONE);
    // The one that ls has opened itself is the last.
    assert!(ended.stdout.ends_with("\n0\n1\n2\n3\n"), "{}", ended.stdout);
}

#[test]
fn pid_1_keeps_the_right_to_signal_and_nothing_else() {
    let running = Case::session().start_script("echo ready >/workspace/log; exec sleep 1000");
    running.await_text("workspace/log", "ready");
    let field = |name: &str| status(running.pid, name);
    const KILL: &str = "0000000000000020";
    assert_eq!((field("CapPrm").as_str(), field("CapEff").as_str()), (KILL, KILL));
    assert_eq!((field("CapInh").as_str(), field("CapBnd").as_str(), field("CapAmb").as_str()), (NONE, NONE, NONE));
    assert_eq!(field("Uid"), format!("0 {UID} 0 {UID}"));
    assert_eq!(field("Gid"), format!("{GID} {GID} {GID} {GID}"));
    assert_eq!((field("Groups").as_str(), field("NoNewPrivs").as_str()), ("", "1"));
}

#[test]
fn pi_cannot_signal_trace_or_look_into_pid_1() {
    let script = "for s in TERM KILL STOP 40; do kill -$s 1 2>/dev/null && echo signalled; done; \
                  cat /proc/1/environ /proc/1/maps /proc/1/mem 2>/dev/null && echo read; ls /proc/1/fd /proc/1/cwd/ 2>/dev/null; \
                  ls -A /run/pi-docker 2>/dev/null; cat /run/pi-docker/auth.json 2>/dev/null; echo alive";
    let ended = Case::session().run_script(script);
    assert_eq!((ended.code, ended.stdout.lines().last()), (0, Some("alive")));
    assert!(!ended.stdout.contains("signalled") && !ended.stdout.contains("read"), "{}", ended.stdout);
    assert!(!ended.stdout.contains("sk-"), "{}", ended.stdout);
}

#[test]
fn pi_can_open_its_own_standard_streams_by_name() {
    let ended = Case::session().run_script("echo out >/dev/stdout; echo err >/dev/stderr");
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("out\n", "err\n"));
    let terminal = Terminal::new();
    let ended = Case::session()
        .terminal(&terminal)
        .run_script("echo out >/dev/stdout && echo err >/dev/stderr && echo tty >/dev/tty");
    assert_eq!(ended.code, 0, "{}", terminal.screen());
    terminal.await_text("out\r\nerr\r\ntty");
}

#[test]
fn descriptors_do_not_leak_and_missing_ones_are_made_up_for() {
    let open = Case::session().before("exec 7</etc/hostname 9>$D/out/x").run_script("ls /proc/self/fd");
    assert_eq!(open.stdout, "0\n1\n2\n3\n");
    let closed = Case::session()
        .before("exec 0<&- 2>&-")
        .run_script("ls /proc/self/fd; readlink /proc/self/fd/0 /proc/self/fd/2");
    assert_eq!(closed.stdout, "0\n1\n2\n3\n/dev/null\n/dev/null\n");
}

#[test]
fn whoever_came_in_from_outside_is_ended_too() {
    let running =
        Case::session().env("PI_DOCKER_GRACE", "1").start_script("echo ready >/workspace/log; sleep 1000 & wait");
    running.await_text("workspace/log", "ready");
    let target = running.pid.to_string();
    let mut guest = Command::new("nsenter")
        .args(["--target", &target, "--pid", "--", "bash", "-c", "trap '' TERM; sleep 1001 & wait; wait"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the guest is there", || (namespace_of(running.pid).len() == 5).then_some(()));
    running.signal(15);
    assert_eq!(running.finish().ending().1, "terminated");
    eventually("the guest has ended", || guest.try_wait().unwrap());
}

/// In a shell that is PID 1, so that nothing of this can reach the machine, whatever goes wrong.
fn outside_a_container(script: &str) -> common::Finished {
    let script = format!("OURS={}; {script}", common::ours());
    Case::plain(&Subject::shell()).run(&[&script])
}

#[test]
fn outside_a_container_only_its_own_descendants_are_ended() {
    let ended = outside_a_container(
        "sleep 1000 & bystander=$!; setsid sleep 1001 & other=$!; \
         PI_DOCKER_GRACE=1 $OURS bash -c 'trap \"\" TERM; setsid sleep 2000 & (setsid bash -c \"trap : TERM; while :; do sleep 0.01; done\" &); sleep 0.1; exit 4'; \
         echo code=$?; kill -0 $bystander && kill -0 $other && echo bystanders; \
         ps -e -o comm= >$OUT/ps; grep -c -e sleep -e bash $OUT/ps",
    );
    assert_eq!(ended.stdout, "code=4\nbystanders\n3\n");
}

#[test]
fn outside_a_container_orphans_are_reaped_and_a_kill_of_everything_is_never_tried() {
    let ended = outside_a_container(
        "trap 'echo signalled' TERM; (trap 'echo signalled' TERM; sleep 1000) & \
         PI_DOCKER_GRACE=1 $OURS bash -c '(setsid sleep 0.1 &); sleep 0.3; grep -c zombie /proc/[0-9]*/status | grep -v :0; \
         (trap \"\" TERM; setsid sleep 2000 &); exit 3'; echo code=$?",
    );
    assert_eq!(ended.stdout, "code=3\n");
}

#[test]
fn outside_a_container_job_control_is_the_shells() {
    let mut terminal = Terminal::new();
    let running =
        Case::plain(&Subject::ours()).env("OURS", &common::ours()).terminal(&terminal).start(&["bash", "--norc", "-i"]);
    terminal.types("PI_DOCKER_MODE=export PI_DOCKER_UID=$UID PI_DOCKER_GID=51235 PI_DOCKER_WORKDIR=/ $OURS bash -c 'trap \"echo interrupted; exit 6\" INT; echo up; while :; do read -t 0.05 line && echo \"read $line\"; done'\n");
    terminal.await_text("\nup");
    terminal.types("one\n");
    terminal.await_text("read one");
    terminal.types("\x1a");
    terminal.await_text("Stopped");
    terminal.types("echo in the shell\nfg\n");
    terminal.await_text("\nin the shell");
    terminal.types("two\n");
    terminal.await_text("read two");
    terminal.types("\x03");
    terminal.await_text("^Cinterrupted");
    terminal.types("echo code=$?\nexit\n");
    terminal.await_text("code=6");
    assert_eq!(terminal.screen().matches("interrupted\r\n").count(), 1);
    assert_eq!(running.finish().code, 0);
}

#[test]
fn outside_a_container_another_user_can_only_be_oneself() {
    let ended = outside_a_container(
        "setpriv --reuid=51234 --regid=51235 --clear-groups $OURS id -u; \
         setpriv --reuid=51236 --regid=51235 --clear-groups $OURS id -u; echo code=$?",
    );
    assert_eq!(ended.stdout, "51234\ncode=125\n");
    assert!(ended.stderr.starts_with("pi-entrypoint: cannot become the user: permission denied\n"), "{}", ended.stderr);
}
