//! What a PID 1 owes to the program it runs, claimed of ours; and, by `cargo test -- --ignored`, of the ones people trust.
//!
//! Each claim is one function of the program under test. `the_claims_hold_for_others_where_they_should` runs every one of them against
//! tini, dumb-init and catatonit: it must hold where it is said to, and must fail where it is not, so that a claim that cannot fail is
//! noticed. docs/compatibility.md is the table of it.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test starts programs, and fails by panicking")]

mod common;

use std::fs;

use common::{Case, Running, Subject, Terminal, eventually, kill, namespace_of, recorder, status};

/// Every signal that can be sent to a program and handled by it, with the exception of SIGCHLD and the ones that stop it.
const ORDINARY: &[i32] = &[1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 18, 23, 24, 25, 26, 27, 28, 29, 30, 31];
/// Those of them that only a fault sends, usually.
const FAULTS: &[i32] = &[4, 5, 6, 7, 8, 11, 31];

fn recorded(case: Case, last: &str) -> Running {
    let file = case.dir.path().join("out/log");
    let running =
        case.env("PI_DOCKER_GRACE", "60").start(&[recorder().to_str().unwrap(), file.to_str().unwrap(), last]);
    running.await_text("out/log", "ready");
    running
}

fn each_arrives_once(subject: &Subject, signals: &[i32]) {
    let running = recorded(Case::plain(subject), "10");
    for signal in signals {
        running.signal(*signal);
        running.await_text("out/log", &format!("got-{signal}."));
    }
    // One more, so that a second copy of any of them would have come before it.
    running.signal(10);
    let ended = running.finish();
    let expected: String = signals.iter().chain(&[10]).map(|signal| format!("got-{signal}.\n")).collect();
    assert_eq!(ended.read("out/log"), format!("ready\n{expected}"));
}

fn ordinary_signals_arrive_once(subject: &Subject) {
    let signals: Vec<i32> = ORDINARY.iter().copied().filter(|signal| !FAULTS.contains(signal)).collect();
    each_arrives_once(subject, &signals);
}

fn even_fault_signals_arrive_when_somebody_sends_them(subject: &Subject) {
    each_arrives_once(subject, FAULTS);
}

fn real_time_signals_arrive_once(subject: &Subject) {
    each_arrives_once(subject, &(34..=64).collect::<Vec<_>>());
}

fn signals_that_the_c_library_hides_arrive_too(subject: &Subject) {
    each_arrives_once(subject, &[32, 33]);
}

fn stopping_signals_reach_a_program_that_handles_them(subject: &Subject) {
    each_arrives_once(subject, &[20, 21, 22]);
}

/// The PID of PID 1's child, once that is this program.
fn executing(running: &Running, name: &str) -> Option<i32> {
    let child = common::only_child(u32::try_from(running.pid).ok()?)?;
    (status(child, "Name") == name).then_some(child)
}

fn exit_codes_come_back(subject: &Subject) {
    for code in [0, 1, 2, 32, 64, 127, 128, 254, 255] {
        assert_eq!(Case::plain(subject).run_script(&format!("exit {code}")).code, code);
    }
}

fn an_end_by_a_signal_is_128_and_its_number(subject: &Subject) {
    for signal in [1, 6, 9, 12, 15, 32, 33, 34, 64] {
        assert_eq!(Case::plain(subject).run_script(&format!("kill -{signal} $$")).code, 128 + signal);
    }
}

fn not_found_is_127_and_not_executable_is_126(subject: &Subject) {
    let ended = Case::plain(subject).run(&["/no/such/program"]);
    assert_eq!(ended.code, 127);
    assert!(ended.stderr.contains("no/such/program"), "{}", ended.stderr);
    assert_eq!(Case::plain(subject).run(&["/etc"]).code, 126);
}

fn standard_streams_are_the_programs(subject: &Subject) {
    let ended = Case::plain(subject).run_script("read -t 1; echo out; echo err >&2; exit $?");
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("out\n", "err\n"));
}

fn orphans_are_reaped(subject: &Subject) {
    let script = "for i in $(seq 100); do (sleep 0.$((RANDOM % 30)) & exec sleep 0.00$((RANDOM % 9))) & done; wait; \
                  echo ready >>$OUT/log; exec sleep 1000";
    let running = Case::plain(subject).start_script(script);
    running.await_text("out/log", "ready");
    eventually("PID 1 and one sleep are left", || (namespace_of(running.pid).len() == 2).then_some(()));
}

fn ends_that_come_together_are_all_noticed(subject: &Subject) {
    for _ in 0..40 {
        let ended = Case::plain(subject).run_script("bash -c 'sleep 0.01 & kill -9 $BASHPID'; sleep 0.0087");
        assert_eq!(ended.code, 0);
    }
}

fn the_mask_and_the_dispositions_are_the_ones_it_was_started_with(subject: &Subject) {
    let ended = Case::plain(subject)
        .wrapped("env --ignore-signal=USR1 --ignore-signal=TTOU --ignore-signal=TSTP --block-signal=USR2 --block-signal=TTIN")
        .run(&["grep", "^Sig[BI]", "/proc/self/status"]);
    let mask = |signals: &[u32]| format!("{:016x}", signals.iter().map(|signal| 1u64 << (signal - 1)).sum::<u64>());
    assert_eq!(common::field_of(&ended.stdout, "SigBlk"), mask(&[12, 21]));
    assert_eq!(common::field_of(&ended.stdout, "SigIgn"), mask(&[10, 22, 20]));
    let ended = Case::plain(subject).run(&["grep", "^Sig[BI]", "/proc/self/status"]);
    assert_eq!(
        (common::field_of(&ended.stdout, "SigBlk"), common::field_of(&ended.stdout, "SigIgn")),
        (mask(&[]), mask(&[]))
    );
}

fn children_that_were_to_be_ignored_are_still_waited_for(subject: &Subject) {
    assert_eq!(Case::plain(subject).wrapped("env --ignore-signal=CHLD").run_script("exit 7").code, 7);
}

fn the_working_folder_is_the_programs_and_not_pid_1s(subject: &Subject) {
    let running = Case::plain(subject).wrapped("env -C $D/out").start_script("pwd >>$OUT/log; exec sleep 1000");
    running.await_text("out/log", "/out\n");
    eventually("PID 1 is in /", || {
        (fs::read_link(format!("/proc/{}/cwd", running.pid)).unwrap().to_str()? == "/").then_some(())
    });
}

fn no_descriptor_is_kept_open_by_pid_1(subject: &Subject) {
    let running = Case::plain(subject)
        .before("exec 7>$D/out/held")
        .start_script("exec 7>&-; echo ready >>$OUT/log; exec sleep 1000");
    running.await_text("out/log", "ready");
    let held = |fd: fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|path| path.ends_with("held"));
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", running.pid)).unwrap().map(Result::unwrap);
    eventually("PID 1 has closed it", || (!descriptors().any(held)).then_some(()));
}

fn a_signal_is_for_the_program_and_not_for_its_children(subject: &Subject) {
    let script = "trap 'echo main >>$OUT/log' USR1; \
                  (trap 'echo child >>$OUT/log' USR1; echo ready >>$OUT/log; while :; do sleep 0.01; done) & \
                  while :; do wait; done";
    let running = Case::plain(subject).start_script(script);
    running.await_text("out/log", "ready");
    running.signal(10);
    running.await_text("out/log", "main");
    running.signal(10);
    eventually("both signals", || (running.read("out/log").matches("main").count() == 2).then_some(()));
    assert!(!running.read("out/log").contains("child"));
}

fn nothing_wakes_it_while_nothing_happens(subject: &Subject) {
    let running = Case::plain(subject).start(&["sleep", "1000"]);
    let sleep = eventually("pi is executing", || executing(&running, "sleep"));
    let switches = || status(running.pid, "voluntary_ctxt_switches");
    eventually("PID 1 is asleep", || status(running.pid, "State").starts_with('S').then_some(()));
    let before = switches();
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(before, switches());
    kill(sleep, 9);
}

fn what_is_left_behind_may_clean_up_before_the_end(subject: &Subject) {
    let script = "setsid bash -c 'trap \"sleep 0.1; echo clean >>$OUT/log; exit\" TERM; echo ready >>$OUT/log; while :; do sleep 0.01; done' & \
                  until grep -q ready $OUT/log; do sleep 0.01; done 2>/dev/null; exit 3";
    let ended = Case::plain(subject).run_script(script);
    assert_eq!((ended.code, ended.read("out/log").as_str()), (3, "ready\nclean\n"));
}

fn a_program_that_does_not_end_is_killed_after_a_time(subject: &Subject) {
    let script = "trap 'echo asked >>$OUT/log' TERM; echo ready >>$OUT/log; while :; do sleep 0.01 & wait $!; done";
    let running = Case::plain(subject).env("PI_DOCKER_GRACE", "1").start_script(script);
    running.await_text("out/log", "ready");
    running.signal(15);
    let ended = running.finish();
    assert_eq!((ended.code, ended.read("out/log").as_str()), (137, "ready\nasked\n"));
}

fn a_second_request_to_end_kills(subject: &Subject) {
    let script = "trap 'echo asked >>$OUT/log' TERM; echo ready >>$OUT/log; while :; do sleep 0.01 & wait $!; done";
    let running = Case::plain(subject).env("PI_DOCKER_GRACE", "1000").start_script(script);
    running.await_text("out/log", "ready");
    running.signal(15);
    running.await_text("out/log", "asked");
    running.signal(15);
    assert_eq!(running.finish().code, 137);
}

fn a_request_to_end_while_the_rest_is_being_ended_kills_it(subject: &Subject) {
    let script = "setsid bash -c 'trap \"echo asked >>$OUT/log\" TERM; echo ready >>$OUT/log; while :; do sleep 0.01; done' & \
                  until grep -q ready $OUT/log; do sleep 0.01; done 2>/dev/null; exit 3";
    let running = Case::plain(subject).env("PI_DOCKER_GRACE", "1000").start_script(script);
    running.await_text("out/log", "asked");
    running.signal(15);
    assert_eq!(running.finish().code, 3);
}

fn it_can_be_ended_without_cap_kill(subject: &Subject) {
    let running = Case::plain(subject).capabilities("-all,+setuid,+setgid,+setpcap,+chown");
    let script = "trap 'exit 9' TERM; echo ready >>$OUT/log; setsid sleep 1000 & while :; do wait; done";
    // The others do not drop privileges: a second program does it for them.
    let second = ["setpriv", "--reuid=51234", "--regid=51235", "--clear-groups"];
    let second = if subject.name == "pi-entrypoint" { &second[..0] } else { &second };
    let words: Vec<&str> = second.iter().copied().chain(["bash", "-c", script]).collect();
    let running = running.start(&words);
    running.await_text("out/log", "ready");
    running.signal(15);
    assert_eq!(running.finish().code, 9);
}

fn the_foreground_is_the_programs(subject: &Subject) {
    let mut terminal = Terminal::new();
    let mut running = Case::plain(subject).terminal(&terminal).start(&["bash", "--norc", "-i"]);
    terminal.types("echo flags=$-=\n");
    terminal.await_text("flags=");
    terminal.types("sleep 1000\n");
    eventually("sleep is in the foreground", || {
        namespace_of(running.pid).into_iter().find(|pid| status(*pid, "Name") == "sleep" && in_foreground(*pid))
    });
    terminal.types("\x1a");
    terminal.await_text("Stopped");
    // The first one only says that there is a stopped job.
    terminal.types("exit 5\nexit 5\n");
    eventually("the end", || running.has_ended().then_some(()));
    assert_eq!(running.finish().code, 5);
    let screen = terminal.screen();
    assert!(!screen.contains("no job control"), "{screen}");
    let flags = screen.split('=').find(|part| part.contains("himBH"));
    assert!(flags.is_some(), "{screen}");
}

fn in_foreground(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
    fields.len() > 5 && fields[2] == fields[5]
}

fn the_terminals_keys_and_its_size_arrive_once(subject: &Subject) {
    let mut terminal = Terminal::new();
    terminal.stty(&["-echo"]);
    let running = recorded(Case::plain(subject).terminal(&terminal), "10");
    for (number, keys) in [(2, "\x03"), (3, "\x1c")] {
        terminal.types(keys);
        running.await_text("out/log", &format!("got-{number}."));
    }
    // From no size at all, as the engine starts with.
    assert_eq!(terminal.stty(&["size"]), "0 0\n");
    terminal.stty(&["rows", "42"]);
    running.await_text("out/log", "got-28.");
    running.signal(10);
    assert_eq!(running.finish().read("out/log"), "ready\ngot-2.\ngot-3.\ngot-28.\ngot-10.\n");
}

fn a_program_that_stops_itself_goes_on(subject: &Subject) {
    let mut terminal = Terminal::new();
    let running = Case::plain(subject).terminal(&terminal).start_script(
        "trap 'echo resumed >>$OUT/log' CONT; echo ready >>$OUT/log; kill -TSTP 0; until grep -q resumed $OUT/log; do :; done; echo on >>$OUT/log; exec cat",
    );
    running.await_text("out/log", "ready");
    running.await_text("out/log", "on");
    // And it has the terminal.
    terminal.types("typed\n");
    terminal.await_text("typed\r\ntyped");
    terminal.types("\x1a");
    terminal.types("again\n");
    terminal.await_text("again\r\nagain");
    terminal.types("\x04");
    assert_eq!(running.finish().code, 0);
}

fn the_terminal_is_usable_after_a_kill(subject: &Subject) {
    let terminal = Terminal::new();
    let before = terminal.stty(&["-g"]);
    let ended =
        Case::plain(subject).terminal(&terminal).run_script("stty raw -echo; printf '\\e[?1049h\\e[?25l'; kill -9 $$");
    assert_eq!(ended.code, 137);
    assert_eq!(terminal.stty(&["-g"]), before);
    terminal.await_text("\x1b[?1049l");
    terminal.await_text("\x1b[?25h");
    // Nothing of it after an ordinary end.
    let terminal = Terminal::new();
    Case::plain(subject).terminal(&terminal).run_script("echo done");
    terminal.await_text("done");
    assert!(!terminal.screen().contains('\x1b'), "{:?}", terminal.screen());
}

fn a_terminal_that_nobody_reads_does_not_hold_up_the_end(subject: &Subject) {
    let terminal = Terminal::unread();
    // Full, and told to wait.
    let script = "stty raw; yes >/dev/tty & echo ready >>$OUT/log; sleep 0.3; kill -9 $$";
    assert_eq!(Case::plain(subject).terminal(&terminal).run_script(script).code, 137);
    let script = "stty ixon; kill -9 $$";
    let mut terminal = Terminal::unread();
    terminal.types("\x13");
    assert_eq!(Case::plain(subject).terminal(&terminal).run_script(script).code, 137);
}

fn a_hang_up_of_the_terminal_ends_the_program(subject: &Subject) {
    let terminal = Terminal::new();
    let running = Case::plain(subject).terminal(&terminal).start_script(
        "trap 'echo got-HUP >>$OUT/log; exit 4' HUP; echo ready >>$OUT/log; while :; do sleep 0.01 & wait $!; done",
    );
    running.await_text("out/log", "ready");
    drop(terminal);
    // What the engine does when its side is closed.
    running.signal(1);
    assert_eq!(running.finish().code, 4);
}

/// Name, claim, and for tini, dumb-init and catatonit whether it holds.
type Claim = (&'static str, fn(&Subject), [bool; 3]);

macro_rules! claims {
    ($($name:ident: $tini:literal $dumb_init:literal $catatonit:literal,)*) => {
        const CLAIMS: &[Claim] = &[$((stringify!($name), $name, [$tini == 1, $dumb_init == 1, $catatonit == 1]),)*];
        mod ours {
            $(#[test] fn $name() { super::$name(&super::Subject::ours()); })*
        }
    };
}

claims! {
    ordinary_signals_arrive_once: 1 1 1,
    even_fault_signals_arrive_when_somebody_sends_them: 0 1 0,
    real_time_signals_arrive_once: 1 1 1,
    signals_that_the_c_library_hides_arrive_too: 0 0 0,
    stopping_signals_reach_a_program_that_handles_them: 0 0 0,
    exit_codes_come_back: 1 1 1,
    an_end_by_a_signal_is_128_and_its_number: 1 1 1,
    not_found_is_127_and_not_executable_is_126: 1 0 0,
    standard_streams_are_the_programs: 1 1 1,
    orphans_are_reaped: 1 1 1,
    ends_that_come_together_are_all_noticed: 1 1 1,
    the_mask_and_the_dispositions_are_the_ones_it_was_started_with: 1 0 0,
    children_that_were_to_be_ignored_are_still_waited_for: 0 1 0,
    the_working_folder_is_the_programs_and_not_pid_1s: 0 1 0,
    no_descriptor_is_kept_open_by_pid_1: 0 0 1,
    a_signal_is_for_the_program_and_not_for_its_children: 1 0 1,
    nothing_wakes_it_while_nothing_happens: 0 1 1,
    what_is_left_behind_may_clean_up_before_the_end: 0 0 0,
    a_program_that_does_not_end_is_killed_after_a_time: 0 0 0,
    a_second_request_to_end_kills: 0 0 0,
    a_request_to_end_while_the_rest_is_being_ended_kills_it: 0 0 0,
    it_can_be_ended_without_cap_kill: 0 0 0,
    the_foreground_is_the_programs: 1 1 0,
    the_terminals_keys_and_its_size_arrive_once: 1 1 1,
    a_program_that_stops_itself_goes_on: 0 0 0,
    the_terminal_is_usable_after_a_kill: 0 0 0,
    a_terminal_that_nobody_reads_does_not_hold_up_the_end: 1 1 1,
    a_hang_up_of_the_terminal_ends_the_program: 1 1 1,
}

#[test]
#[ignore = "long, and needs the packages tini, dumb-init and catatonit: dev/anchors"]
fn the_claims_hold_for_others_where_they_should() {
    let mut wrong = Vec::new();
    common::be_impatient();
    for (index, name) in ["tini", "dumb-init", "catatonit"].into_iter().enumerate() {
        let subject = Subject { name: name.into(), argv: vec![format!("/usr/bin/{name}"), "--".into()] };
        for (claim, check, expected) in CLAIMS {
            let held = std::panic::catch_unwind(|| check(&subject)).is_ok();
            println!("{name}: {claim}: {held}");
            if held != expected[index] {
                wrong.push(format!("{name}: {claim}: {held}"));
            }
        }
    }
    assert!(wrong.is_empty(), "not as said: {wrong:#?}");
}
