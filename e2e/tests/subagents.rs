//! The real pi in its RPC mode, as a person's editor drives it: subagents side by side, an error beside a success, cancel,
//! and the commands about worktrees.

use std::fs;

use anyhow::Result;
use e2e::rpc::Rpc;
use e2e::session::Session;
use e2e::{SOON, World, evidence, wait_until};
use serde_json::{Value, json};

/// What the tool gave for a task.
fn ended<'a>(records: &'a [Value], task: &str) -> &'a Value {
    let of_task = |record: &&Value| {
        let started = records
            .iter()
            .find(|start| start["type"] == "tool_execution_start" && start["toolCallId"] == record["toolCallId"]);
        started.is_some_and(|start| start["args"]["task_name"] == task)
    };
    let mut ends = records.iter().rev().filter(|record| record["type"] == "tool_execution_end");
    ends.find(of_task).unwrap_or_else(|| panic!("no end of {task}: {records:#?}"))
}

/// What the extension offers for `/cleanup-worktree al`; pi asks for it only on a terminal.
const COMPLETE: &str = r#"node -e '
import("/home/pi/.pi/agent/extensions/worktree-subagent.ts").then(async (extension) => {
  const commands = {};
  extension.default({ registerTool() {}, on() {}, registerCommand: (name, command) => (commands[name] = command) });
  const items = await commands["cleanup-worktree"].getArgumentCompletions("al");
  console.log(JSON.stringify(items.map((item) => item.value)));
})' 2>/dev/null"#;

/// Arguments and environment of every process in the agent's container, as the host's root sees them.
fn processes(session: &Session) -> Result<String> {
    let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let ours = space(&session.pid()?.to_string());
    let mut all = String::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_string_lossy().into_owned();
        if pid.bytes().all(|byte| byte.is_ascii_digit()) && space(&pid) == ours {
            for what in ["cmdline", "environ"] {
                let bytes = fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
                all.push_str(&String::from_utf8_lossy(&bytes).replace('\0', "\n"));
            }
        }
    }
    Ok(all)
}

fn cost(pi: &mut Rpc) -> Result<f64> {
    Ok(pi.ask(json!({ "type": "get_session_stats" }))?["cost"].as_f64().unwrap_or(0.0))
}

#[test]
fn an_error_in_one_leaves_the_others_alone_and_everything_is_told_and_paid() -> Result<()> {
    let world = World::new("subagents")?;
    let mut pi = world.pi_docker().start_rpc()?;
    let before = cost(&mut pi)?;
    let records = pi.prompt("four")?;

    // Two successes, one failure of the model, and one call that never began; each told apart.
    for task in ["good", "also-good"] {
        let end = ended(&records, task);
        let details = &end["result"]["details"];
        assert_eq!((end["isError"].as_bool(), details["state"].as_str()), (Some(false), Some("succeeded")), "{end:#}");
    }
    let bad = ended(&records, "bad");
    let details = &bad["result"]["details"];
    assert_eq!(
        (bad["isError"].as_bool(), details["error"]["code"].as_str()),
        (Some(true), Some("model_error")),
        "{bad:#}"
    );
    assert_eq!(ended(&records, "Not A Name")["isError"], true);
    let pulls = evidence::pulls(&world)?;
    let heads: Vec<_> = pulls.iter().map(|pull| (pull.head.as_str(), pull.files.join(" "))).collect();
    for wanted in [("good", "good.txt"), ("also-good", "also-good.txt"), ("bad", "half.txt")] {
        assert!(heads.contains(&(format!("subagent/{}", wanted.0).as_str(), wanted.1.to_owned())), "{heads:?}");
    }
    assert_eq!(pulls.len(), 3);

    // Progress came while they worked, for each by its own call, and what they cost is in pi's own sum.
    let updates: Vec<_> = records.iter().filter(|record| record["type"] == "tool_execution_update").collect();
    for task in ["good", "also-good", "bad"] {
        let of_task = |update: &&&Value| update["partialResult"]["details"]["task"] == task;
        assert!(
            updates.iter().filter(of_task).any(|update| update["partialResult"]["details"]["type"] == "progress"),
            "{task}"
        );
    }
    assert!(records.iter().any(|record| record["method"] == "setStatus"), "no line of status");
    let theirs: f64 = ["good", "also-good", "bad"]
        .iter()
        .filter_map(|task| ended(&records, task)["result"]["details"]["usage"]["cost"]["total"].as_f64())
        .sum();
    assert!(theirs > 0.0 && cost(&mut pi)? - before >= theirs, "{theirs}");

    // The failed one goes on: same branch, same pull request, no draft's mark left behind by a second one.
    let shown = pi.command("/subagent-resume bad Go on after the error.")?;
    assert!(shown.contains("is done") && shown.contains("/pull/"), "{shown}");
    assert_eq!(world.github_git(["show", "subagent/bad:half.txt"])?, "half\nwhole");
    assert_eq!(evidence::pulls(&world)?.len(), 3);

    // What is listed is what is there; what is not safe stays.
    let listed = pi.command("/worktrees")?;
    assert!(["good", "also-good", "bad"].iter().all(|task| listed.contains(task)), "{listed}");
    let completed = pi.ask(json!({ "type": "bash", "command": COMPLETE }))?;
    assert_eq!(completed["output"].as_str().map(str::trim), Some(r#"["also-good"]"#), "{completed}");
    let session = world.wait_for_session()?;
    assert!(session.sh("echo mine >/workspace/.worktrees/good/unsaved.txt")?.0);
    let kept = pi.command("/cleanup-worktree good")?;
    assert!(kept.contains("kept") && kept.contains("uncommitted"), "{kept}");
    let unknown = pi.command("/cleanup-worktree nonsense")?;
    assert!(unknown.contains("there is no task 'nonsense'") && unknown.contains("also-good, bad, good"), "{unknown}");
    assert!(pi.command("/cleanup-worktree also-good")?.contains("also-good: removed"));

    // Everything at once asks first; a no changes nothing, a yes takes what is safe.
    for (answer, left) in [(false, "bad good"), (true, "good")] {
        let from = pi.records().len();
        pi.send(&json!({ "type": "prompt", "message": "/cleanup-all" }))?;
        let asked = pi.wait("it asks", from, |record| record["method"] == "confirm")?;
        assert!(asked["message"].as_str().is_some_and(|text| text.contains("bad") && text.contains("kept")), "{asked}");
        pi.send(&json!({ "type": "extension_ui_response", "id": asked["id"], "confirmed": answer }))?;
        if answer {
            let shown = pi.wait("it says what it did", from, |record| record["method"] == "notify")?;
            assert!(shown["message"].as_str().is_some_and(|text| text.contains("bad: removed")), "{shown}");
        }
        let there = session.sh("cd /workspace/.worktrees && echo *")?.1;
        assert_eq!(there.trim(), left);
    }
    assert_eq!(session.sh("cat /workspace/.worktrees/good/unsaved.txt")?.1.trim(), "mine");
    assert_eq!(pi.finish()?, 0);
    assert!(world.internet.strays()?.is_empty());
    Ok(())
}

#[test]
fn a_cancel_ends_a_subagent_with_all_it_started_and_keeps_its_work_and_none_starts_another() -> Result<()> {
    let world = World::new("subagents")?;
    let mut pi = world.pi_docker().start_rpc()?;
    pi.ask(json!({ "type": "prompt", "message": "long" }))?;
    let session = world.wait_for_session()?;
    let alive = || session.sh("kill -0 $(cat /tmp/slow.pid) && pgrep -x sleep >/dev/null");
    wait_until("the subagent is in its tool", SOON, || Ok(alive()?.0.then_some(())))?;
    let seen = processes(&session)?;
    assert!(seen.contains("pi-subagent\nspawn") && seen.contains("PI_SUBAGENT_TASK=slow"), "{seen}");
    assert!(!seen.contains(&world.token) && !seen.contains(&world.key), "a process shows a secret");
    let from = pi.records().len();
    pi.ask(json!({ "type": "abort" }))?;
    let end = pi.wait("the tool has ended", 0, |record| record["type"] == "tool_execution_end")?;
    assert_eq!(end["result"]["details"]["state"], "cancelled", "{end:#}");
    pi.wait("pi has settled", from, |record| record["type"] == "agent_settled")?;
    assert!(!session.sh("pgrep -x sleep")?.0, "a process of the subagent is left");
    assert_eq!(session.sh("git -C /workspace show subagent/slow:slow.txt")?.1.trim(), "slow");
    assert!(evidence::pulls(&world)?.is_empty());
    // Who cancelled can have it delivered all the same.
    let said = pi.ask(json!({ "type": "bash", "command": "pi-subagent finish slow" }))?;
    assert!(said["output"].as_str().is_some_and(|said| said.contains("/pull/1")), "{said}");

    // A subagent has no tool for it, and the program refuses it as well.
    let records = pi.prompt("nest")?;
    let end = ended(&records, "nest");
    assert_eq!(end["result"]["details"]["state"], "succeeded", "{end:#}");
    let refused = world.github_git(["show", "subagent/nest:nested.txt"])?;
    assert!(refused.contains(r#""code":"nested""#), "{refused}");
    let summary = end["result"]["details"]["summary"].as_str().unwrap_or_default();
    assert!(summary.contains("spawn_subagent") && summary.contains("not found"), "{summary}");
    assert!(!session.sh("cd /workspace && git rev-parse --verify -q subagent/inner")?.0);
    assert_eq!(pi.finish()?, 0);
    Ok(())
}
