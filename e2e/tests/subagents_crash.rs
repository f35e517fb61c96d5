//! The container is killed at each state of a run. Afterwards the work is there, `list` tells the truth, and `resume` or
//! `finish` completes it: one branch, one pull request, nothing twice.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use e2e::{SOON, World, evidence, wait_until};
use serde_json::{Value, json};

/// A moment in the life of a task.
struct Moment {
    name: &'static str,
    /// What the orchestrator runs before it starts the subagent.
    before: &'static str,
    /// The step of the subagent that the model does not answer.
    silent: Option<usize>,
    /// What the subagent's own second command goes on with.
    during: &'static str,
    faults: Value,
    /// That the moment has come.
    come: fn(&World) -> Result<bool>,
    /// Files that the subagent had on disk or committed by then.
    had: &'static [&'static str],
    /// Commits of it that the user has in the repository right after the crash.
    imported: bool,
    how: How,
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    /// Nothing was begun: the name is free.
    Again,
    Resume,
    Finish,
    /// All was done.
    Nothing,
}

const COMMIT: &str = "echo one >one.txt; git add one.txt; git commit -qm one";
const LEAVE: &str = "echo two >two.txt";

fn scenario(moment: &Moment) -> Value {
    let bash = |command: String| json!({ "tools": [{ "name": "bash", "input": { "command": command } }] });
    let spawn = json!({ "name": "spawn_subagent", "input": { "task_name": "x", "instructions": "Write two files." } });
    let mut steps = vec![
        bash(COMMIT.to_owned()),
        bash(format!("{LEAVE}; {}", moment.during)),
        json!({ "text": "Both are written." }),
    ];
    if let Some(step) = moment.silent {
        steps[step]["gate"] = "never".into();
    }
    json!({
        "rules": [
            { "name": "shell", "when": { "starts": "sh: " }, "steps": [bash("{{rest}}".to_owned()), { "text": "{{result}}" }] },
            { "name": "resumed", "when": { "contains": "You were stopped" }, "steps": [
                bash(format!("test -e one.txt || {{ {COMMIT}; }}; {LEAVE}")), { "text": "Now both are written." },
            ] },
            { "name": "task", "when": { "contains": "Write two files." }, "steps": steps },
            { "name": "go", "when": { "starts": "go" }, "steps": [
                bash(moment.before.to_owned()), { "tools": [spawn] }, { "gate": "never", "text": "done" },
            ] },
        ],
        "github": { "faults": moment.faults },
    })
}

fn stalled(host: &str, method: &str, path: &str, nth: u64) -> Value {
    json!([{ "host": host, "method": method, "path": path, "nth": nth, "reply": "stall" }])
}

/// Whether a request to this host has been left without an answer.
fn unanswered(world: &World, host: &str) -> Result<bool> {
    Ok(world.internet.requests_to(host)?.iter().any(|request| request.status == 499))
}

fn asked(world: &World, rule: &str, step: u64) -> Result<bool> {
    // It is recorded when it is asked for, also if it is never said.
    Ok(world.internet.step(rule, step)?.is_some())
}

/// The session's worktrees on the host.
fn worktrees(world: &World) -> Result<PathBuf> {
    let state = fs::read_dir(world.install_dir().join("state"))?.next().context("no state")??;
    Ok(state.path().join("worktrees"))
}

fn there(world: &World, path: &str) -> Result<bool> {
    Ok(worktrees(world).is_ok_and(|worktrees| worktrees.join(path).exists()))
}

fn state(world: &World) -> Result<Value> {
    let Ok(worktrees) = worktrees(world) else { return Ok(Value::Null) };
    let path = worktrees.with_file_name("git").join("pi-subagent/tasks/x/state.json");
    Ok(fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or(Value::Null))
}

fn moments() -> Vec<Moment> {
    let plain = || Moment {
        name: "",
        before: "true",
        silent: None,
        during: "true",
        faults: json!([]),
        come: |_| Ok(true),
        had: &[],
        imported: false,
        how: How::Resume,
    };
    let delivering = || Moment { had: &["one.txt", "two.txt"], imported: true, how: How::Finish, ..plain() };
    vec![
        Moment {
            name: "the remote is asked what it has",
            faults: stalled("github.com", "GET", "info/refs", 1),
            come: |world| unanswered(world, "github.com"),
            how: How::Again,
            ..plain()
        },
        Moment {
            name: "the right to open pull requests is asked for",
            faults: stalled("api.github.com", "POST", "/pulls", 1),
            come: |world| unanswered(world, "api.github.com"),
            how: How::Again,
            ..plain()
        },
        Moment {
            name: "it waits for a place",
            before: "mkdir -p .git/pi-subagent/slots; for i in 1 2 3; do (exec 9>.git/pi-subagent/slots/$i; flock 9; sleep 1000 9>&9) >/dev/null 2>&1 & done; sleep 0.5",
            come: |world| Ok(state(world)?["stage"] == "queued"),
            ..plain()
        },
        Moment {
            name: "git writes the files of the worktree",
            before: "git config filter.hang.smudge 'sleep 1000'; git config filter.hang.required true; printf '*.md filter=hang\\n' >.git/info/attributes",
            come: |world| there(world, ".new-x"),
            ..plain()
        },
        Moment {
            name: "pi has started and the model has not answered",
            silent: Some(0),
            come: |world| Ok(state(world)?["stage"] == "running" && there(world, "x/.git")?),
            ..plain()
        },
        Moment {
            name: "there is a commit, and the model is silent",
            silent: Some(1),
            come: |world| asked(world, "task", 1),
            had: &["one.txt"],
            ..plain()
        },
        Moment {
            name: "a tool runs, with changes that are not committed",
            during: "sleep 1000",
            come: |world| there(world, "x/two.txt"),
            had: &["one.txt", "two.txt"],
            imported: true,
            ..plain()
        },
        Moment {
            name: "the model is silent, with changes that are not committed",
            silent: Some(2),
            come: |world| asked(world, "task", 2),
            had: &["one.txt", "two.txt"],
            imported: true,
            how: How::Finish,
            ..plain()
        },
        Moment {
            name: "what is left is committed",
            during: "printf '*.txt filter=hang\\n' >\"$(git rev-parse --git-common-dir)/info/attributes\"; git config filter.hang.required true; git config filter.hang.clean 'sleep 1000'",
            come: |world| Ok(state(world)?["stage"] == "committing"),
            ..delivering()
        },
        Moment {
            name: "the remote is asked before the push",
            faults: stalled("github.com", "GET", "info/refs", 2),
            come: |world| unanswered(world, "github.com"),
            ..delivering()
        },
        Moment {
            name: "the branch is on its way",
            faults: stalled("github.com", "POST", "git-receive-pack", 1),
            come: |world| unanswered(world, "github.com"),
            ..delivering()
        },
        Moment {
            name: "the branch is there, and the pull requests are looked through",
            faults: stalled("api.github.com", "GET", "/pulls?state=open", 1),
            come: |world| unanswered(world, "api.github.com"),
            ..delivering()
        },
        Moment {
            name: "the pull request is asked for",
            faults: stalled("api.github.com", "POST", "/pulls", 2),
            come: |world| unanswered(world, "api.github.com"),
            ..delivering()
        },
        Moment {
            name: "the pull request is there, and the answer was lost",
            faults: json!([
                { "host": "api.github.com", "method": "POST", "path": "/pulls", "nth": 2, "reply": "lost" },
                { "host": "api.github.com", "method": "GET", "path": "/pulls?state=open", "nth": 2, "reply": "stall" },
            ]),
            come: |world| unanswered(world, "api.github.com"),
            ..delivering()
        },
        Moment {
            name: "all is done, and the orchestrator has not been told",
            come: |world| Ok(state(world)?["outcome"] == "succeeded"),
            how: How::Nothing,
            ..delivering()
        },
    ]
}

/// Kills the container at this moment and completes the task in the next session.
fn survive(moment: &Moment) -> Result<()> {
    let mut world = World::with_scenario(scenario(moment))?;
    let mut run = world.pi_docker().args(["-p", "go"]).start()?;
    wait_until("the moment has come", SOON, || {
        ensure!(!run.has_ended()?, "the session has ended before");
        Ok((moment.come)(&world)?.then_some(()))
    })?;
    world.wait_for_session()?.signal("KILL")?;
    assert_eq!(run.finish()?.code(), 137);

    // What was committed is in the user's own repository at once.
    if moment.imported {
        assert_eq!(world.git(["show", "subagent/x:one.txt"])?, "one");
    }
    world.change_scenario(|scenario| {
        scenario["github"]["faults"] = json!([]);
        for rule in scenario["rules"].as_array_mut().into_iter().flatten() {
            rule["steps"].as_array_mut().into_iter().flatten().for_each(|step| step["gate"] = Value::Null);
        }
    })?;
    let pi = |script: &str| -> Result<String> { world.agent_sh(script) };
    // The filters that hang were the test's own.
    let heal = "rm -f .git/info/attributes; git config --remove-section filter.hang 2>/dev/null;";
    let list: Value = serde_json::from_str(&pi(&format!("{heal} pi-subagent list --json"))?)?;
    let entry = list["tasks"].as_array().and_then(|tasks| tasks.iter().find(|task| task["task"] == "x")).cloned();
    let (state, live) =
        entry.map_or((None, None), |entry| (entry["state"].as_str().map(str::to_owned), entry["live"].as_bool()));
    let wanted = match moment.how {
        How::Again => (None, None),
        How::Nothing => (Some("succeeded".to_owned()), Some(false)),
        How::Resume | How::Finish => (Some("interrupted".to_owned()), Some(false)),
    };
    assert_eq!((state, live), wanted, "{list:#}");
    for file in moment.had {
        assert!(there(&world, &format!("x/{file}"))?, "{file} is gone");
    }

    let model = world.internet.model()?.len();
    let verb = match moment.how {
        How::Again => "echo Write two files. | pi-subagent spawn --task x --instructions-file -",
        How::Resume => "pi-subagent resume x",
        How::Finish => "pi-subagent finish x",
        How::Nothing => "pi-subagent wait x",
    };
    let said = pi(&format!("{heal} {verb} --json 2>/dev/null | tail -1"))?;
    let result: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    assert_eq!(result["ok"], true, "{result:#}");
    if moment.how != How::Resume && moment.how != How::Again {
        // Only the shell's own two turns.
        assert_eq!(world.internet.model()?.len(), model + 2, "finish has asked the model");
    }

    if moment.silent == Some(0) {
        assert!(asked(&world, "task", 2)?, "a pi without a session was not told the task");
    }
    let pulls = evidence::pulls(&world)?;
    assert_eq!(pulls.len(), 1, "{pulls:#?}");
    assert_eq!(pulls[0].files, ["one.txt", "two.txt"]);
    assert_eq!(pulls[0].commits.iter().filter(|line| line.ends_with(" one")).count(), 1, "{pulls:#?}");
    let left =
        pi("pi-subagent cleanup x; ls -A .worktrees; git fsck --no-dangling 2>&1; git branch --list 'subagent/*'")?;
    assert_eq!(left.trim(), "x: removed", "{left}");
    assert!(world.internet.strays()?.is_empty());
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    Ok(())
}

#[test]
#[ignore = "long: some minutes of sessions"]
fn a_container_killed_at_any_moment_of_a_run_loses_nothing_and_the_next_session_completes_it() {
    let moments = moments();
    let next = std::sync::Mutex::new(moments.iter());
    let failed = std::sync::Mutex::new(Vec::new());
    let work = || {
        while let Some(moment) = next.lock().ok().and_then(|mut next| next.next()) {
            let outcome = std::panic::catch_unwind(|| survive(moment));
            let said = match outcome {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => format!("{}: {error:#}", moment.name),
                Err(_) => format!("{}: see above", moment.name),
            };
            eprintln!("{said}");
            failed.lock().expect("nobody panics with it").push(said);
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    let failed = failed.into_inner().expect("nobody panics with it");
    assert!(failed.is_empty(), "{} of {}: {failed:#?}", failed.len(), moments.len());
}
