//! Several at once: places, the queue, and nobody in anybody's way.

use crate::lab::{Lab, finish, signal, wait_for};

#[test]
fn no_more_run_than_there_are_places_and_all_come_to_their_turn() {
    let lab = Lab::new();
    let tasks: Vec<String> = (0..16).map(|number| format!("t{number}")).collect();
    for task in &tasks {
        lab.script(task, "echo start >>\"$dir/log\"; commit $PI_SUBAGENT_TASK a a; sleep 0.1; echo end >>\"$dir/log\"; say done; settle");
    }
    let children: Vec<_> = tasks.iter().map(|task| lab.start_spawn(task, &[])).collect();
    let ran: Vec<_> = children.into_iter().map(finish).collect();
    for ran in &ran {
        assert_eq!((ran.code, ran.result()["state"].as_str()), (0, Some("succeeded")), "{ran:?}");
    }
    let log = std::fs::read_to_string(lab.scripts.join("log")).unwrap();
    let mut running = 0;
    let mut most = 0;
    for line in log.lines() {
        running += if line == "start" { 1 } else { -1 };
        most = most.max(running);
    }
    assert_eq!((most, running), (3, 0), "{log}");
    assert!(ran.iter().any(|ran| ran.stdout.contains("waiting for a place")));
    assert_eq!(lab.internet.world(|world| world.pulls.len()), 16);
    for task in &tasks {
        assert_eq!(lab.remote(&format!("diff --name-only main subagent/{task}")), *task);
    }
    assert_eq!(lab.sh("git worktree list | wc -l; git fsck --no-dangling 2>&1"), "17");
    let ran = lab.run(&["cleanup", "--all"]);
    assert_eq!(ran.stdout.matches(": removed").count(), 16, "{ran:?}");
}

#[test]
fn a_full_house_is_said_and_a_dead_runner_gives_its_place_back() {
    let lab = Lab::new();
    for task in ["a", "b", "c"] {
        lab.script(task, "echo ready >\"$dir/ready-$PI_SUBAGENT_TASK\"; sleep 1000");
    }
    lab.script("d", "commit d d d; say done; settle");
    let mut running: Vec<_> = ["a", "b", "c"].iter().map(|task| lab.start_spawn(task, &[])).collect();
    wait_for("three run", || ["a", "b", "c"].iter().all(|task| lab.scripts.join(format!("ready-{task}")).exists()));
    let ran = lab.spawn("d", &["--no-wait-slot"]);
    assert_eq!((ran.code, ran.result()["error"]["code"].as_str()), (10, Some("no_slot")), "{ran:?}");
    let waiting = lab.start_spawn("d", &[]);
    wait_for("it waits", || lab.listed("d").is_some_and(|entry| entry["state"] == "queued"));
    let dead = running.remove(0);
    signal(&dead, "KILL");
    finish(dead);
    assert_eq!(finish(waiting).code, 0);
    for child in running {
        signal(&child, "TERM");
        assert_eq!(finish(child).code, 130);
    }
}

#[test]
fn a_task_that_waits_can_be_cancelled_and_leaves_nothing() {
    let lab = Lab::new();
    lab.script("a", "echo ready >\"$dir/ready\"; sleep 1000");
    lab.script("b", "say hi; settle");
    let mut command = lab.command(&["spawn", "--json", "--task", "a", "--instructions-file", "/etc/hostname"]);
    let running = command.env("PI_SUBAGENT_SLOTS", "1").spawn().unwrap();
    wait_for("a runs", || lab.scripts.join("ready").exists());
    let mut command = lab.command(&["spawn", "--json", "--task", "b", "--instructions-file", "/etc/hostname"]);
    let waiting = command.env("PI_SUBAGENT_SLOTS", "1").spawn().unwrap();
    wait_for("b waits", || lab.listed("b").is_some_and(|entry| entry["state"] == "queued"));
    assert_eq!(lab.run(&["cancel", "b"]).code, 0);
    assert_eq!(finish(waiting).code, 130);
    assert!(!lab.scripts.join("b.pid").exists());
    assert!(lab.listed("b").is_none());
    assert_eq!(lab.sh("git branch --list 'subagent/b'; ls -A .worktrees"), "a");
    signal(&running, "TERM");
    finish(running);
}

#[test]
fn two_of_the_same_name_never_share_a_worktree() {
    let lab = Lab::new();
    lab.script("x", "echo start >>\"$dir/log\"; commit a a a; sleep 0.3; say done; settle");
    let children: Vec<_> = (0..6).map(|_| lab.start_spawn("x", &[])).collect();
    let mut codes: Vec<i32> = children.into_iter().map(|child| finish(child).code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [0, 11, 11, 11, 11, 11]);
    assert_eq!(std::fs::read_to_string(lab.scripts.join("log")).unwrap(), "start\n");
}

#[test]
fn cleanup_and_runs_at_the_same_time_do_not_meet() {
    let lab = Lab::new();
    for number in 0..6 {
        lab.script(&format!("t{number}"), "commit $PI_SUBAGENT_TASK a a; sleep 0.2; say done; settle");
    }
    let children: Vec<_> = (0..6).map(|number| lab.start_spawn(&format!("t{number}"), &[])).collect();
    for _ in 0..8 {
        let ran = lab.run(&["cleanup", "--all"]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    for child in children {
        let ran = finish(child);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    assert_eq!(lab.internet.world(|world| world.pulls.len()), 6);
}
