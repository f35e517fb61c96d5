//! A signal at every moment of the start, to the system call: either pi never runs, or it is ended, and the login is wiped.
//!
//! strace delivers the signal as the program enters its Nth system call. What the kernel drops before the program has blocked signals
//! is the only thing that may be lost; how early that is is part of the claim.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test starts programs, and fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{Case, Finished, eventually, kill};

/// System calls of the start, up to the one that waits for pi, one per line.
fn calls_of_the_start() -> Vec<String> {
    let ended = traced("", 0);
    assert_eq!(ended.ending(), (0, "exited".into(), "wiped".into()), "{}", ended.stderr);
    let trace = ended.read("out/trace");
    trace.lines().take_while(|line| !line.starts_with("rt_sigtimedwait")).map(str::to_owned).collect()
}

fn name_of(call: &str) -> &str {
    call.split('(').next().unwrap_or_default()
}

fn traced(injection: &str, round: usize) -> Finished {
    let case = Case::session().env("PI_DOCKER_GRACE", "0").before("touch $D/out/trace");
    // In front of nothing but the program itself.
    let running = case.around(&format!("strace -D -o $D/out/trace {injection}")).start(if injection.is_empty() {
        &["true"]
    } else {
        &["sleep", "1000"]
    });
    if injection.is_empty() {
        return running.finish();
    }
    let mut running = running;
    let pid = running.pid;
    eventually(&format!("the end, or pi, in round {round}"), || (running.has_ended() || pi_sleeps(pid)).then_some(()));
    // If pi runs, it is either on its way to its end, or the signal is lost.
    let patience = Instant::now() + Duration::from_millis(500);
    while !running.has_ended() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(2));
    }
    let lost = !running.has_ended();
    if lost {
        kill(pid, 15);
    }
    let mut ended = running.finish();
    if lost {
        ended.stdout.push_str("LOST");
    }
    ended
}

fn pi_sleeps(pid: i32) -> bool {
    common::namespace_of(pid).into_iter().any(|pid| common::status(pid, "Name") == "sleep")
}

fn a_signal_at_moments(step: usize, signals: &[(&str, i32)]) -> usize {
    let calls = calls_of_the_start();
    let blocked = calls.iter().position(|call| call.starts_with("rt_sigprocmask")).unwrap() + 1;
    // The loader of a dynamic program comes before anything of ours.
    if std::env::var("PI_ENTRYPOINT_UNDER_TEST").is_ok_and(|path| path.contains("musl")) {
        assert!(blocked <= 4, "signals are blocked by call {blocked}: {:?}", &calls[..blocked]);
    }
    let mut moments = 0;
    for (name, number) in signals {
        for moment in (1..=calls.len()).step_by(step) {
            // strace counts each kind of call for itself.
            let call = name_of(&calls[moment - 1]);
            let count = calls[..moment].iter().filter(|other| name_of(other) == call).count();
            let ended = traced(&format!("-e inject={call}:signal={name}:when={count}"), moment);
            moments += 1;
            let (code, reason, login) = ended.ending();
            let what =
                format!("{name} at call {moment}, {}: {code} {reason} {login} {}", calls[moment - 1], ended.stderr);
            assert_eq!((login.as_str(), ended.read("auth.json").as_str()), ("wiped", "{}"), "{what}");
            if ended.stdout.ends_with("LOST") {
                assert!(moment <= blocked, "lost: {what}");
                continue;
            }
            assert!(code == 128 + number || code == 137, "{what}");
            assert!(["terminated", "killed", "signal"].contains(&reason.as_str()), "{what}");
        }
    }
    println!("{moments} moments, signals blocked by call {blocked} of {}", calls.len());
    moments
}

#[test]
#[ignore = "needs strace: dev/anchors"]
fn no_signal_is_lost_at_some_moments_of_the_start() {
    assert!(a_signal_at_moments(7, &[("TERM", 15)]) > 25);
}

#[test]
#[ignore = "long, and needs strace: dev/anchors"]
fn no_signal_is_lost_at_500_moments_of_the_start() {
    let moments = a_signal_at_moments(1, &[("TERM", 15), ("INT", 2), ("HUP", 1)]);
    assert!(moments >= 500, "{moments}");
}

/// Without strace: as soon as the program has blocked signals.
#[test]
fn a_request_to_end_during_the_start_is_heeded() {
    for round in 0..20 {
        let mut running = Case::session().start(&["sleep", "1000"]);
        eventually("signals are blocked", || {
            let open = common::status(running.pid, "SigBlk").chars().all(|digit| digit == '0');
            (!open || running.has_ended() || pi_sleeps(running.pid)).then_some(())
        });
        kill(running.pid, 15);
        let ended = running.finish();
        assert_eq!((ended.code, ended.read("auth.json").as_str()), (143, "{}"), "round {round}: {}", ended.stderr);
    }
}
