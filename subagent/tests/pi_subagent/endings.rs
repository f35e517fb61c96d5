//! However a run ends: it ends, everything it has started ends with it, and its work is kept.

use std::time::Instant;

use serde_json::Value;

use crate::lab::{Lab, finish, signal, wait_for};

/// Runs `x` with this script; its one file must be on the remote in a draft, or at least committed.
fn ended(script: &str, flags: &[&str], exit: i32, state: &str, code: &str) -> (Lab, Value) {
    let lab = Lab::new();
    lab.script("x", &format!("commit kept kept kept; echo more >left; {script}"));
    let ran = lab.spawn("x", flags);
    let result = ran.result();
    assert_eq!((ran.code, result["state"].as_str()), (exit, Some(state)), "{ran:?}");
    assert_eq!(result["error"]["code"].as_str(), Some(code), "{ran:?}");
    assert_eq!(lab.sh("git diff --name-only main subagent/x"), "kept\nleft");
    assert_eq!(lab.sh("git -C .worktrees/x status --porcelain"), "");
    (lab, result)
}

fn draft(lab: &Lab) {
    let pulls = lab.internet.world(|world| world.pulls.clone());
    assert_eq!((pulls.len(), pulls[0]["draft"].as_bool()), (1, Some(true)), "{pulls:?}");
    assert!(pulls[0]["body"].as_str().unwrap().starts_with("> **Not complete:**"), "{pulls:?}");
}

#[test]
fn a_model_that_fails_is_a_failure_although_pi_exits_with_0() {
    let (lab, result) = ended("fail '529 overloaded'; settle", &[], 4, "failed", "model_error");
    assert!(result["error"]["message"].as_str().unwrap().contains("529 overloaded"));
    draft(&lab);
}

#[test]
fn an_answer_that_was_cut_off_is_a_failure() {
    ended("say half length; settle", &[], 4, "failed", "output_limit");
}

#[test]
fn a_pi_that_dies_is_a_failure_with_its_last_words() {
    let (_, result) = ended("echo 'out of cheese' >&2; exit 3", &[], 4, "failed", "crashed");
    assert!(result["error"]["message"].as_str().unwrap().contains("status 3: out of cheese"), "{result}");
    let (_, result) = ended("kill -9 $$", &[], 4, "failed", "crashed");
    assert_eq!(result["agent"]["signal"], 9);
}

#[test]
fn a_run_ends_at_its_time_limit() {
    let (lab, _) = ended("tool_start t 'sleep 100'; sleep 100", &["--timeout", "1s"], 8, "timeout", "timeout");
    draft(&lab);
}

#[test]
fn a_tool_that_never_returns_ends_the_run() {
    // It keeps talking, so there is no silence.
    let script = "tool_start t 'yes'; while :; do emit '{\"type\":\"tool_execution_update\"}'; sleep 0.1; done";
    ended(script, &["--tool-timeout", "1s", "--idle-timeout", "30s"], 8, "timeout", "tool_timeout");
}

#[test]
fn silence_ends_the_run() {
    ended("sleep 100", &["--idle-timeout", "1s"], 8, "timeout", "idle");
}

#[test]
fn budgets_end_the_run_in_the_middle() {
    let script = "for i in 1 2 3; do tool_start t$i ls; tool_end t$i; done; echo no >late; say done; settle";
    for flags in [["--max-cost", "0.05"], ["--max-tokens", "200"], ["--max-turns", "2"]] {
        let lab = Lab::new();
        // The stand-in does not wait for the runner: give it time to be told.
        lab.script("x", &format!("commit kept kept kept; {}", script.replace("echo no", "sleep 5; echo no")));
        let ran = lab.spawn("x", &flags);
        let result = ran.result();
        assert_eq!((ran.code, result["state"].as_str()), (9, Some("budget")), "{ran:?}");
        assert_eq!(lab.sh("git diff --name-only main subagent/x"), "kept");
    }
}

#[test]
fn a_pi_that_ignores_the_end_is_killed_with_all_it_has_started() {
    let lab = Lab::new();
    // One in the same group, one in a session of its own whose parent is gone, one that ignores SIGTERM.
    lab.script(
        "x",
        "commit kept kept kept; trap '' TERM; sleep 71000 & (setsid sleep 71001 &) ; bash -c 'trap \"\" TERM; sleep 71002' & \
         echo ready >\"$dir/ready\"; while :; do sleep 0.1; done",
    );
    let child = lab.start_spawn("x", &[]);
    wait_for("pi runs", || lab.scripts.join("ready").exists());
    let alive = |number: u32| {
        std::process::Command::new("pgrep").args(["-f", &format!("sleep {number}")]).output().unwrap().status.success()
    };
    wait_for("all run", || alive(71000) && alive(71001) && alive(71002));
    signal(&child, "TERM");
    let ran = finish(child);
    assert_eq!((ran.code, ran.result()["state"].as_str()), (130, Some("cancelled")), "{ran:?}");
    assert!(![71000, 71001, 71002].into_iter().any(alive), "something is left");
    assert_eq!(lab.sh("git diff --name-only main subagent/x"), "kept");
    // Who cancels gets no pull request, but can have it.
    assert!(lab.internet.world(|world| world.pulls.is_empty()));
    let ran = lab.run(&["finish", "x", "--json"]);
    assert_eq!(ran.result()["pr"]["draft"], true, "{ran:?}");
}

/// pi, and a child of its that traces it, ignores every request to end, and never waits for pi: until the tracer ends, nobody else
/// is told of pi's own end. With an argument, pi ends by itself then.
const TRACED: &str = r#"
import ctypes, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_PTRACER, ANYBODY, PTRACE_SEIZE = 0x59616d61, ctypes.c_ulong(-1), 0x4206
libc.prctl(PR_SET_PTRACER, ANYBODY, 0, 0, 0)
pi, told = os.getpid(), os.environ["PI_SCRIPTS"] + "/traced"
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if libc.ptrace(PTRACE_SEIZE, pi, None, None) == 0: open(told, "w").write("yes")
    while True: time.sleep(1)
while len(sys.argv) == 1 or not os.path.exists(told): time.sleep(0.01)
"#;

#[test]
fn a_pi_whose_end_its_tracer_keeps_back_ends_in_time_with_its_result() {
    let program = format!("exec python3 -c '{TRACED}'");
    let started = Instant::now();
    let (lab, _) = ended(&program, &["--timeout", "2s"], 8, "timeout", "timeout");
    assert!(lab.scripts.join("traced").exists() && started.elapsed().as_secs() < 15);
    // One that ends by itself needs no limit.
    let lab = Lab::new();
    lab.script("x", &format!("commit a a a; say done; settle; {program} ends"));
    let started = Instant::now();
    assert_eq!(lab.spawn("x", &[]).code, 0);
    assert!(lab.scripts.join("traced").exists() && started.elapsed().as_secs() < 8);
}

#[test]
fn a_pi_whose_tracer_is_out_of_reach_is_given_up_and_its_work_is_kept() {
    let lab = Lab::new();
    let allow =
        "import ctypes, time; ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0); time.sleep(1000)";
    lab.script("x", &format!("commit kept kept kept; echo more >left; exec python3 -c '{allow}'"));
    let child = lab.start_spawn("x", &["--timeout", "3s"]);
    wait_for("pi runs", || lab.worktree("x").join("left").exists());
    let pi = std::fs::read_to_string(lab.scripts.join("x.pid")).unwrap();
    let trace = "import ctypes, sys, time; print(ctypes.CDLL(None).ptrace(0x4206, int(sys.argv[1]), None, None), flush=True); time.sleep(1000)";
    let mut tracer = std::process::Command::new("python3");
    let mut tracer = tracer.args(["-c", trace, pi.trim()]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut said = [0; 1];
    std::io::Read::read_exact(tracer.stdout.as_mut().unwrap(), &mut said).unwrap();
    let started = Instant::now();
    wait_for("the runner ends", || std::path::Path::new(&format!("/proc/{}/exe", child.id())).read_link().is_err());
    let ran = finish(child);
    tracer.kill().unwrap();
    tracer.wait().unwrap();
    assert_eq!((&said, ran.code, ran.result()["state"].as_str()), (b"0", 8, Some("timeout")), "{ran:?}");
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    assert!(ran.stdout.contains("processes_left"), "{ran:?}");
    assert_eq!(lab.sh("git diff --name-only main subagent/x"), "kept\nleft");
    draft(&lab);
}

#[test]
fn a_background_process_that_keeps_the_pipes_open_holds_nothing_up() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; (setsid sleep 71003 &); say done; settle");
    let started = Instant::now();
    assert_eq!(lab.spawn("x", &[]).code, 0);
    assert!(started.elapsed().as_secs() < 8);
    assert!(!std::process::Command::new("pgrep").args(["-f", "sleep 71003"]).output().unwrap().status.success());
}

#[test]
fn a_pi_that_is_done_and_does_not_end_is_a_success() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say done; settle; sleep 1000");
    let ran = lab.spawn("x", &[]);
    assert_eq!((ran.code, ran.result()["state"].as_str()), (0, Some("succeeded")), "{ran:?}");
}

#[test]
fn cancel_from_another_process_ends_the_run_and_keeps_its_work() {
    let lab = Lab::new();
    lab.script("x", "echo more >left; echo ready >\"$dir/ready\"; sleep 1000");
    let child = lab.start_spawn("x", &[]);
    wait_for("pi runs", || lab.scripts.join("ready").exists());
    assert_eq!(lab.listed("x").unwrap()["state"], "running");
    let ran = lab.run(&["cancel", "x"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = finish(child);
    assert_eq!((ran.code, ran.result()["state"].as_str()), (130, Some("cancelled")), "{ran:?}");
    assert_eq!(lab.sh("git diff --name-only main subagent/x"), "left");
    assert_eq!(lab.run(&["wait", "x"]).code, 130);
}

#[test]
fn a_reader_that_goes_away_or_never_reads_stops_nothing() {
    use std::io::Read;
    for close in [true, false] {
        let lab = Lab::new();
        let noise = "big=$(head -c 3000 /dev/zero | tr '\\0' x); for i in $(seq 300); do fail \"$big\"; \
                     emit '{\"type\":\"auto_retry_start\",\"attempt\":1,\"errorMessage\":\"'$big'\"}'; done";
        lab.script("x", &format!("{noise}; commit a a a; say done; settle"));
        let mut child = lab.start_spawn("x", &[]);
        let mut first = [0; 10];
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        if close {
            drop(child.stdout.take());
        }
        wait_for("the pull request is there", || lab.internet.world(|world| world.pulls.len() == 1));
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert_eq!(lab.run(&["wait", "x", "--json"]).json()["state"], "succeeded");
    }
}

#[test]
fn a_run_that_changed_nothing_says_so() {
    let lab = Lab::new();
    lab.script("x", "say 'There is nothing to do.'; settle");
    let ran = lab.spawn("x", &[]);
    let result = ran.result();
    assert_eq!((ran.code, result["state"].as_str(), result["ok"].as_bool()), (3, Some("no_changes"), Some(true)));
    assert!(result["text"].as_str().unwrap().contains("There is nothing to do."));
    assert!(lab.internet.asked("POST", "git-receive-pack").is_empty());
}
