//! How long it takes, beside git itself. `bench/worktree` runs it on a disk and in memory, with the program as it is shipped.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::lab::Lab;

const MILLION: f64 = 1e6;

fn git(dir: &Path, args: &[&str]) {
    let output = Command::new("git").arg("-C").arg(dir).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A repository of so many files of about 4 kB each, packed, as after a clone.
fn fill(lab: &Lab, files: usize) {
    let mut seed = 1_u64;
    for number in 0..files {
        let dir = lab.workspace.join(format!("d{}/s{}", number / 1000, number / 50 % 20));
        std::fs::create_dir_all(&dir).unwrap();
        let mut text = String::new();
        for _ in 0..40 + number % 120 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push_str(&format!("let value_{} = {};\n", seed >> 44, seed >> 33));
        }
        std::fs::write(dir.join(format!("f{number}.rs")), text).unwrap();
    }
    lab.sh("git config maintenance.auto false; git add . && git commit -qm files && git gc -q");
    lab.sh(&format!("git push -q '{}' main", lab.internet.repositories.join("o/r.git").display()));
}

/// Milliseconds from the moment the runner begins to make the worktree to the one it starts pi.
fn ours(lab: &Lab, task: &str) -> f64 {
    let ran = lab.spawn(task, &["--pr", "none", "--allow-empty"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let events = ran.events();
    let at = |state: &str| {
        let event = events.iter().rfind(|event: &&Value| event["state"] == state);
        event.and_then(|event| event["ts"].as_f64()).unwrap_or_else(|| panic!("no {state}: {events:?}"))
    };
    at("running") - at("preparing")
}

fn timed(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_nanos() as f64 / MILLION
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "long: measures worktrees of up to 100,000 files"]
fn a_worktree_is_made_no_slower_than_git_makes_it_with_two_workers() {
    let sizes = std::env::var("BENCH_FILES").unwrap_or("1000 20000 100000".into());
    let rounds: usize = std::env::var("BENCH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5);
    println!("files  plain git ms  two workers ms  pi-subagent ms  against plain  against two workers");
    for files in sizes.split_whitespace().map(|files| files.parse::<usize>().unwrap()) {
        let lab = Lab::new();
        fill(&lab, files);
        // Nothing is removed before the end: ext4 without a journal is slow to make files for a while after many were deleted.
        let by_git = |name: String, options: &[&str]| {
            let place = lab.root.join(name);
            let args = [options, &["worktree", "add", "--quiet", "--detach", place.to_str().unwrap()]].concat();
            timed(|| git(&lab.workspace, &args))
        };
        let settle = || drop(Command::new("sync").status());
        let (mut plain, mut workers, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=rounds {
            let task = format!("t{round}");
            lab.script(&task, "say done; settle");
            settle();
            own.push(ours(&lab, &task));
            settle();
            plain.push(by_git(format!("plain{round}"), &[]));
            settle();
            workers.push(by_git(format!("two{round}"), &["-c", "checkout.workers=2"]));
        }
        // The first round fills the caches.
        let ratio = |other: &[f64]| median(own.iter().zip(other).skip(1).map(|(own, other)| own / other).collect());
        let (against_plain, against_workers) = (ratio(&plain), ratio(&workers));
        let middle = |times: &[f64]| median(times[1..].to_vec());
        println!(
            "{files:>6}  {:>12.0}  {:>14.0}  {:>14.0}  {against_plain:>13.2}  {against_workers:>19.2}",
            middle(&plain),
            middle(&workers),
            middle(&own),
        );
    }
}

#[test]
#[ignore = "long: measures the runner as it is shipped"]
fn what_the_runner_adds_to_a_task_is_below_150_ms() {
    let lab = Lab::new();
    lab.script("x", "date +%s%N >\"$dir/started\"; commit a a a; say done; settle; date +%s%N >\"$dir/ended\"");
    let mark = |name: &str| std::fs::read_to_string(lab.scripts.join(name)).unwrap().trim().parse::<f64>().unwrap();
    let mut added = Vec::new();
    for _ in 0..21 {
        lab.internet.world(|world| world.asked.clear());
        let whole = timed(|| assert_eq!(lab.spawn("x", &[]).code, 0));
        let pi = (mark("ended") - mark("started")) / MILLION;
        let network = lab.internet.world(|world| world.busy.as_nanos() as f64 / MILLION);
        lab.internet.world(|world| world.busy = std::time::Duration::ZERO);
        added.push(whole - pi - network);
        assert_eq!(lab.run(&["cleanup", "x"]).code, 0);
        lab.remote("update-ref -d refs/heads/subagent/x");
        lab.internet.world(|world| world.pulls.clear());
    }
    let added = median(added);
    println!("the runner adds {added:.0} ms");
    if !cfg!(debug_assertions) {
        assert!(added < 150.0, "{added}");
    }
}
