//! Sixteen subagents asked for in one message, under the limits that are shipped.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::session::Session;
use e2e::{World, evidence, wait_until};
use serde_json::{Value, json};

const COUNT: usize = 16;
const SLOTS: usize = 3;

fn scenario() -> Value {
    let spawns: Vec<_> = (1..=COUNT)
        .map(|number| {
            let input = json!({ "task_name": format!("task-{number}"), "instructions": "Write one file." });
            json!({ "name": "spawn_subagent", "input": input })
        })
        .collect();
    // What the agent writes says in which folder it was.
    let write = "pwd >$PI_SUBAGENT_TASK.txt && git add . && git commit -qm \"add $PI_SUBAGENT_TASK\"";
    json!({ "rules": [
        { "name": "one", "when": { "contains": "Write one file." }, "steps": [
            { "tools": [{ "name": "bash", "input": { "command": write } }] },
            { "delay_ms": 2500, "text": "The file is there." },
        ] },
        { "name": "many", "when": { "starts": "many" }, "steps": [{ "tools": spawns }, { "gate": "report", "text": "{{result}}" }] },
    ] })
}

/// The most memory that each runner had, in KiB: all that is in memory, and what is its own.
fn watch(session: &Session, stop: &AtomicBool) -> Result<BTreeMap<String, (u64, u64)>> {
    let script = r#"for dir in /proc/[0-9]*; do [ "$(cat $dir/comm 2>/dev/null)" = pi-subagent ] || continue
        awk -v pid=${dir#/proc/} '/^VmHWM|^RssAnon/ { out = out " " $2 } END { print pid out }' $dir/status; done 2>/dev/null"#;
    let mut peaks = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        for line in session.sh(script)?.1.lines() {
            let [pid, resident, own] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
            let peak: &mut (u64, u64) = peaks.entry(pid.to_owned()).or_default();
            *peak = (peak.0.max(resident.parse()?), peak.1.max(own.parse()?));
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(peaks)
}

#[test]
#[ignore = "long: a minute of subagents"]
fn sixteen_at_once_all_finish_in_worktrees_of_their_own_within_the_shipped_limits() -> Result<()> {
    let world = World::with_scenario(scenario())?;
    let mut run = world.pi_docker().args(["-p", "many"]).limit(Duration::from_secs(600)).start()?;
    run.until_asked(&world.internet, "many", 0)?;
    let session = world.wait_for_session()?;
    let host = session.inspect_agent()?["HostConfig"].clone();
    assert_eq!((host["Memory"].as_u64(), host["PidsLimit"].as_u64()), (Some(4 << 30), Some(512)));

    let stop = AtomicBool::new(false);
    let peaks = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&session, &stop));
        let what = "all have ended and the orchestrator is told";
        let waited = wait_until(what, Duration::from_secs(300), || world.internet.step("many", 1));
        stop.store(true, Ordering::Relaxed);
        let peaks = watcher.join().expect("the watcher does not panic");
        waited.and(peaks)
    })?;
    let killed = session
        .sh("cat /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control 2>/dev/null | grep 'oom_kill '")?
        .1;
    assert!(killed.lines().all(|line| line.ends_with(" 0")), "{killed}");
    world.internet.open_gate("report")?;
    let ran = run.finish()?.expect(0)?;

    // All finished, each with its own file, written in its own worktree.
    let mut pulls = evidence::pulls(&world)?;
    assert_eq!(pulls.len(), COUNT, "{}", ran.stdout);
    pulls.sort_by(|one, other| one.head.cmp(&other.head));
    for pull in &pulls {
        let task = pull.head.strip_prefix("subagent/").context("a branch of another kind")?;
        assert_eq!(pull.files, [format!("{task}.txt")], "{pull:?}");
        assert_eq!(
            world.github_git(["show", &format!("{}:{task}.txt", pull.head)])?,
            format!("/workspace/.worktrees/{task}")
        );
    }
    assert_eq!(ran.stdout.matches("is done: pull request").count(), COUNT, "{}", ran.stdout);
    for word in ["lock", "Warning", "Error"] {
        assert!(!ran.stdout.contains(word), "{word}: {}", ran.stdout);
    }

    // Never more at once than there are places, and not one after the other.
    let model = world.internet.model()?;
    let mut spans = BTreeMap::<&str, (u64, u64)>::new();
    for request in model.iter().filter(|request| request.body["rule"] == "one") {
        let span = spans.entry(request.body["conversation"].as_str().unwrap_or("")).or_insert((request.ts, request.ts));
        span.1 = request.ts;
    }
    assert_eq!(spans.len(), COUNT, "{spans:?}");
    let at_once = |time: u64| spans.values().filter(|span| span.0 <= time && time <= span.1).count();
    let most = spans.values().map(|span| at_once(span.0)).max().unwrap_or(0);
    assert!((2..=SLOTS).contains(&most), "{most}: {spans:?}");

    let most = |of: fn(&(u64, u64)) -> u64| peaks.values().map(of).max().unwrap_or(0);
    let (resident, own) = (most(|peak| peak.0), most(|peak| peak.1));
    println!(
        "{} runners seen; the largest had {resident} KiB in memory, the largest of its own {own} KiB",
        peaks.len()
    );
    assert!(peaks.len() >= COUNT && own < 12 << 10, "{peaks:?}");
    assert!(resident < 12 << 10, "{peaks:?}");
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    Ok(())
}
