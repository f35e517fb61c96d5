//! The runner is killed at any moment: the work is there, `list` tells the truth, and `resume` or `finish` completes it.

use std::io::{BufRead, BufReader};

use serde_json::Value;

use crate::lab::{Lab, each, finish, signal, wait_for};

#[derive(Clone, Copy, Debug)]
enum Moment {
    /// After so many events.
    Events(usize),
    /// At the event of this type or state.
    At(&'static str),
}

/// Runs `x` and kills the runner with SIGKILL at that moment; gives the last event.
fn killed(lab: &Lab, moment: Moment) -> Value {
    let mut child = lab.start_spawn("x", &[]);
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut last = Value::Null;
    for count in 0.. {
        if matches!(moment, Moment::Events(wanted) if wanted == count)
            || matches!(moment, Moment::At(wanted) if last["state"] == wanted || last["type"] == wanted)
        {
            break;
        }
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        last = serde_json::from_str(&line).unwrap();
        assert_ne!(last["type"], "result", "{moment:?}: the run was over before");
    }
    signal(&child, "KILL");
    finish(child);
    last
}

fn check_completed(lab: &Lab, moment: &str) {
    assert_eq!(lab.remote("diff --name-only main subagent/x"), "kept\nleft", "{moment}");
    let pulls = lab.internet.world(|world| world.pulls.clone());
    assert_eq!(pulls.len(), 1, "{moment}: {pulls:?}");
    assert_eq!(lab.sh("git -C .worktrees/x status --porcelain; git fsck --no-dangling 2>&1"), "", "{moment}");
    let ran = lab.run(&["cleanup", "x"]);
    assert_eq!(ran.code, 0, "{moment}: {ran:?}");
    assert_eq!(
        lab.sh("ls -A .worktrees; git branch --list 'subagent/*'; ls .git/worktrees 2>/dev/null || true"),
        "",
        "{moment}"
    );
}

#[test]
fn a_runner_killed_at_any_moment_loses_nothing_and_can_go_on() {
    let early = (0..7).map(Moment::Events);
    let named = ["preparing", "running", "progress", "committing", "pushing", "opening_pr", "pr"].map(Moment::At);
    each(early.chain(named), killed_and_completed);
}

fn killed_and_completed(moment: Moment) {
    let lab = Lab::new();
    // It is in a tool for a moment, so that there are moments while pi works.
    lab.script(
        "x",
        "test -e kept || commit kept kept kept; echo more >left; tool_start t ls; sleep 0.6; tool_end t; say done; settle",
    );
    let last = killed(&lab, moment);
    let delivered = last["type"] == "pr";
    let moment = format!("{moment:?} {last}");
    let Some(listed) = lab.listed("x") else {
        // So early that nothing was made: the name is free.
        let again = lab.spawn("x", &[]);
        assert_eq!(again.code, 0, "{moment}: {again:?}");
        return;
    };
    let state = listed["state"].as_str().unwrap();
    // The kill may have come a moment too late: all has arrived, and perhaps nothing was said or the end not written.
    let delivered = delivered || lab.internet.world(|world| world.pulls.len()) == 1;
    assert!(state == "interrupted" || (delivered && state == "succeeded"), "{moment}: {listed}");
    assert_eq!(listed["live"], false, "{moment}");
    // Nothing is removed because of the crash, but what never began, and what has arrived.
    let worked = lab.worktree("x").join("kept").exists();
    let ran = lab.run(&["cleanup", "--all"]);
    assert_eq!(ran.code, 0, "{moment}: {ran:?}");
    match ran.stdout.contains("x: removed") {
        true if delivered => assert_eq!(lab.remote("diff --name-only main subagent/x"), "kept\nleft"),
        true => {
            assert!(!worked, "{moment}: {ran:?}");
            let again = lab.spawn("x", &[]);
            assert_eq!(again.code, 0, "{moment}: {ran:?} {again:?}");
        }
        false => {
            assert_eq!(lab.worktree("x").join("kept").exists(), worked, "{moment}");
            if moment.len().is_multiple_of(2) {
                let ran = lab.run(&["recover"]);
                assert!(ran.stdout.contains("x: was interrupted"), "{moment}: {ran:?}");
                assert_eq!(lab.run(&["recover"]).stdout, "Nothing to recover.\n");
            }
            let ran = lab.run(&["resume", "x", "--json"]);
            assert_eq!((ran.code, ran.result()["state"].as_str()), (0, Some("succeeded")), "{moment}: {ran:?}");
            check_completed(&lab, &moment);
        }
    }
}

#[test]
fn finish_completes_a_killed_run_without_a_model() {
    let lab = Lab::new();
    lab.script("x", "commit kept kept kept; echo more >left; echo ready >\"$dir/ready\"; sleep 1000");
    let child = lab.start_spawn("x", &[]);
    wait_for("pi runs", || lab.scripts.join("ready").exists());
    signal(&child, "KILL");
    finish(child);
    std::fs::remove_file(lab.scripts.join("x.pid")).unwrap();
    let ran = lab.run(&["finish", "x", "--json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!lab.scripts.join("x.pid").exists(), "pi was started");
    assert_eq!(lab.internet.world(|world| world.pulls[0]["draft"].as_bool()), Some(true));
    check_completed(&lab, "finished");
}

#[test]
fn what_a_killed_runner_left_running_is_ended_before_anyone_goes_on() {
    let lab = Lab::new();
    lab.script(
        "x",
        "commit kept kept kept; trap '' TERM; echo ready >\"$dir/ready\"; while :; do echo x >>kept; sleep 0.05; done",
    );
    let child = lab.start_spawn("x", &[]);
    wait_for("pi runs", || lab.scripts.join("ready").exists());
    let pid = std::fs::read_to_string(lab.scripts.join("x.pid")).unwrap();
    signal(&child, "KILL");
    finish(child);
    assert!(std::path::Path::new(&format!("/proc/{}", pid.trim())).exists(), "the test needs a pi that survives");
    lab.script("x", "echo more >left; say done; settle");
    let ran = lab.run(&["resume", "x", "--json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    assert_eq!(lab.remote("diff --name-only main subagent/x"), "kept\nleft");
}

#[test]
fn a_lock_that_a_killed_runner_left_is_in_nobodys_way() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say done; settle");
    // Killed while it made, moved or deleted the branch.
    let lock = lab.workspace.join(".git/refs/heads/subagent/x.lock");
    let plant = || {
        std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
        std::fs::write(&lock, "").unwrap();
    };
    plant();
    assert_eq!(lab.spawn("x", &[]).code, 0);
    // Killed while it, or the agent's own git, wrote to the worktree.
    plant();
    for name in ["index.lock", "HEAD.lock"] {
        std::fs::write(lab.workspace.join(".git/worktrees/x").join(name), "").unwrap();
    }
    lab.script("x", "commit b b b; say done; settle");
    assert_eq!(lab.run(&["resume", "x"]).code, 0);
    assert_eq!(lab.sh("git log --format=%s -1 subagent/x"), "b");
    plant();
    let ran = lab.run(&["cleanup", "x"]);
    assert_eq!((ran.code, lock.exists()), (0, false), "{ran:?}");
    assert_eq!(lab.sh("git branch --list 'subagent/*'"), "");
}

#[test]
fn a_pi_that_had_no_answer_yet_is_told_the_task_again() {
    let lab = Lab::new();
    lab.script("x", "echo ready >\"$dir/ready\"; sleep 1000");
    let child = lab.start_spawn("x", &[]);
    wait_for("pi runs", || lab.scripts.join("ready").exists());
    signal(&child, "KILL");
    finish(child);
    lab.script("x", "commit a a a; fail broken; settle");
    let said = || std::fs::read_to_string(lab.scripts.join("x.stdin")).unwrap();
    assert_eq!(lab.run(&["resume", "x"]).code, 4);
    assert_eq!(said(), "Task: x\n\nDo the thing.\n");
    // Now its session knows.
    assert_eq!(lab.run(&["resume", "x"]).code, 4);
    assert!(said().starts_with("Task: x\n\nYou were stopped"), "{}", said());
}

#[test]
fn a_resumed_pi_has_its_session_and_new_words() {
    let lab = Lab::new();
    lab.script("x", "commit kept kept kept; fail broken; settle");
    assert_eq!(lab.spawn("x", &[]).code, 4);
    let first = std::fs::read_to_string(lab.scripts.join("x.args")).unwrap();
    lab.script("x", "echo more >left; say done; settle");
    let words = lab.root.join("words");
    std::fs::write(&words, "Try the other way.").unwrap();
    let ran = lab.run(&["resume", "x", "--json", "--instructions-file", words.to_str().unwrap(), "--model", "a/b"]);
    let result = ran.result();
    assert_eq!((ran.code, result["state"].as_str()), (0, Some("succeeded")), "{ran:?}");
    assert_eq!(std::fs::read_to_string(lab.scripts.join("x.stdin")).unwrap(), "Task: x\n\nTry the other way.\n");
    let second = std::fs::read_to_string(lab.scripts.join("x.args")).unwrap();
    let session = |args: &str| {
        args.split('\0').skip_while(|arg| *arg != "--session-dir").take(4).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(session(&first), session(&second));
    assert!(second.contains("--model\0a/b\0"));
    // The pull request of the first run is the one of the second, with the text of the second.
    let pulls = lab.internet.world(|world| world.pulls.clone());
    assert_eq!(pulls.len(), 1);
    assert!(!pulls[0]["body"].as_str().unwrap().contains("Not complete"), "{pulls:?}");
    assert_eq!(
        (result["usage"]["cost"]["total"].as_f64(), result["totalUsage"]["cost"]["total"].as_f64()),
        (Some(0.03), Some(0.06))
    );
}
