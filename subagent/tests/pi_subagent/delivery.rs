//! Committed, pushed, opened: whatever GitHub, git or the agent makes of it.

use crate::internet::{TOKEN, What};
use crate::lab::{Lab, each, finish, wait_for};

fn answer(status: u16, body: &str) -> What {
    What::Answer(status, &[], body.to_owned())
}

#[test]
fn a_push_that_fails_is_finished_later_without_a_model() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say done; settle");
    lab.internet.fault("POST", "git-receive-pack", 9, answer(502, "bad gateway"));
    let ran = lab.spawn("x", &[]);
    let result = ran.result();
    assert_eq!((ran.code, result["state"].as_str()), (6, Some("partial")), "{ran:?}");
    assert_eq!(result["error"]["code"], "push_failed");
    assert_eq!(result["next"][0], "pi-subagent finish x");
    lab.internet.world(|world| world.faults.clear());
    std::fs::remove_file(lab.scripts.join("x.pid")).unwrap();
    for existed in [false, true] {
        let result = lab.run(&["finish", "x", "--json"]).result();
        assert_eq!(
            (result["state"].as_str(), result["pr"]["existed"].as_bool()),
            (Some("succeeded"), Some(existed)),
            "{result}"
        );
        assert_eq!(result["pr"]["draft"], false);
    }
    assert!(!lab.scripts.join("x.pid").exists(), "pi was started");
    assert_eq!(lab.internet.world(|world| world.pulls.len()), 1);
}

#[test]
fn every_answer_to_a_push_keeps_the_work_and_finish_completes_it() {
    let cases = [
        (answer(401, "bad credentials"), "token_rejected", "expired"),
        (answer(403, "Permission denied."), "push_forbidden", "Contents: read and write"),
        (answer(404, "Repository not found."), "repository_not_found", "add this repository to the token"),
        (answer(409, "conflict"), "push_failed", "409"),
        (answer(429, "slow down"), "rate_limited", "limits how much"),
        (answer(500, "oops"), "push_failed", "has a problem"),
        (answer(502, "<html>"), "push_failed", "has a problem"),
        (What::Cut, "push_failed", "cannot reach"),
    ];
    each(cases, |(what, code, words)| {
        let lab = Lab::new();
        lab.script("x", "commit a a a; echo left >left; say done; settle");
        lab.internet.fault("POST", "git-receive-pack", 9, what.clone());
        let ran = lab.spawn("x", &[]);
        let result = ran.result();
        assert_eq!((ran.code, result["error"]["code"].as_str()), (6, Some(code)), "{what:?} {result}");
        assert!(result["text"].as_str().unwrap().contains(words), "{what:?} {result}");
        assert_eq!((result["state"].as_str(), result["git"]["pushed"].as_bool()), (Some("partial"), Some(false)));
        assert_eq!(lab.sh("git diff --name-only main subagent/x"), "a\nleft");
        assert!(lab.run(&["cleanup", "x"]).stdout.contains("x: kept"));
        lab.internet.world(|world| world.faults.clear());
        assert_eq!(lab.run(&["finish", "x"]).code, 0, "{what:?}");
        assert_eq!(lab.remote("diff --name-only main subagent/x"), "a\nleft");
    });
}

#[test]
fn a_push_whose_answer_was_lost_is_not_made_twice() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say done; settle");
    lab.internet.fault("POST", "git-receive-pack", 1, What::CutAfter);
    let ran = lab.spawn("x", &[]);
    assert_eq!((ran.code, ran.result()["state"].as_str()), (0, Some("succeeded")), "{ran:?}");
    assert_eq!(lab.internet.asked("POST", "git-receive-pack").len(), 1);
}

#[test]
fn a_proxy_that_goes_away_during_the_run_costs_no_work() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; echo left >left; touch \"$dir/ready\"; until test -e \"$dir/go\"; do sleep 0.05; done; say done; settle");
    let child = lab.start_spawn("x", &[]);
    wait_for("pi works", || lab.scripts.join("ready").exists());
    lab.internet.world(|world| world.denied = vec!["github.test".into(), "api.github.test".into()]);
    std::fs::write(lab.scripts.join("go"), "").unwrap();
    let ran = finish(child);
    let result = ran.result();
    assert_eq!((ran.code, result["error"]["code"].as_str()), (6, Some("push_failed")), "{ran:?}");
    assert!(result["text"].as_str().unwrap().contains("pi-docker allow github.test"), "{result}");
    assert_eq!(lab.sh("git diff --name-only main subagent/x"), "a\nleft");
    lab.internet.world(|world| world.denied.clear());
    std::fs::remove_file(lab.scripts.join("x.pid")).unwrap();
    assert_eq!(lab.run(&["finish", "x"]).code, 0);
    assert!(!lab.scripts.join("x.pid").exists(), "pi was started");
}

#[test]
fn a_refused_push_says_why_and_is_never_forced() {
    let lab = Lab::new();
    let hook = lab.internet.repositories.join("o/r.git/hooks/update");
    std::fs::write(&hook, "#!/bin/sh\necho no such thing here >&2\nexit 1\n").unwrap();
    lab.sh(&format!("chmod +x '{}'", hook.display()));
    lab.script("x", "commit a a a; say done; settle");
    let ran = lab.spawn("x", &[]);
    assert_eq!((ran.code, ran.result()["error"]["code"].as_str()), (6, Some("push_rejected")), "{ran:?}");
    std::fs::remove_file(&hook).unwrap();
    // Meanwhile somebody else has pushed to the branch.
    let remote = lab.internet.repositories.join("o/r.git");
    lab.sh(&format!(
        "cd '{}'; git update-ref refs/heads/subagent/x $(git commit-tree -m other 'main^{{tree}}')",
        remote.display()
    ));
    let ran = lab.run(&["finish", "x", "--json"]);
    assert_eq!((ran.code, ran.result()["error"]["code"].as_str()), (7, Some("remote_ahead")), "{ran:?}");
    assert_eq!(lab.remote("log -1 --format=%s subagent/x"), "other");
    assert!(lab.worktree("x").join("a").exists());
}

#[test]
fn every_answer_of_github_about_the_pull_request_is_understood() {
    let cases: &[(What, i32, &str, &str)] = &[
        (answer(401, r#"{"message":"Bad credentials"}"#), 5, "pr_failed", "expired"),
        (
            answer(403, r#"{"message":"Resource not accessible by personal access token"}"#),
            5,
            "pr_forbidden",
            "Pull requests: read and write",
        ),
        (
            What::Answer(
                403,
                &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "99999999999")],
                r#"{"message":"API rate limit exceeded"}"#.into(),
            ),
            5,
            "rate_limited",
            "try again",
        ),
        (
            What::Answer(
                403,
                &[("retry-after", "3600")],
                r#"{"message":"You have exceeded a secondary rate limit"}"#.into(),
            ),
            5,
            "rate_limited",
            "in 1 h",
        ),
        (answer(404, r#"{"message":"Not Found"}"#), 5, "pr_failed", "add this repository to the token"),
        (answer(409, r#"{"message":"Conflict"}"#), 5, "pr_failed", "409"),
        (
            answer(
                422,
                r#"{"message":"Validation Failed","errors":[{"resource":"PullRequest","field":"base","code":"invalid"}]}"#,
            ),
            5,
            "pr_failed",
            "push the branch 'main'",
        ),
        (
            answer(
                422,
                r#"{"message":"Validation Failed","errors":[{"message":"No commits between main and subagent/x"}]}"#,
            ),
            5,
            "pr_failed",
            "is in 'main' already",
        ),
    ];
    each(cases, |(what, exit, code, words)| {
        let lab = Lab::new();
        // The first POST is the question before the start.
        lab.script("x", "touch \"$dir/go\"; commit a a a; say done; settle");
        lab.internet.fault("POST", "/pulls", 1, answer(422, r#"{"message":"Validation Failed"}"#));
        lab.internet.fault("POST", "/pulls", 9, what.clone());
        let ran = lab.spawn("x", &[]);
        let result = ran.result();
        assert_eq!((ran.code, result["error"]["code"].as_str()), (*exit, Some(*code)), "{what:?} {result}");
        assert!(result["text"].as_str().unwrap().contains(words), "{what:?} {result}");
        assert_eq!((result["state"].as_str(), result["git"]["pushed"].as_bool()), (Some("partial"), Some(true)));
        assert_eq!(lab.internet.asked("POST", "/pulls").len(), 2, "{what:?}: a refusal was repeated");
        lab.internet.world(|world| world.faults.clear());
        assert_eq!(lab.run(&["finish", "x"]).code, 0, "{what:?}");
    });
}

#[test]
fn a_server_in_trouble_is_asked_again_and_never_makes_two() {
    let cut: &[What] = &[
        answer(502, "<html>bad gateway</html>"),
        answer(500, "{}"),
        What::Cut,
        What::CutAfter,
        What::Answer(403, &[("retry-after", "1")], r#"{"message":"secondary rate limit"}"#.into()),
    ];
    each(cut, |what| {
        let lab = Lab::new();
        lab.script("x", "commit a a a; say done; settle");
        lab.internet.fault("POST", "/pulls", 1, answer(422, r#"{"message":"Validation Failed"}"#));
        lab.internet.fault("POST", "/pulls", 1, what.clone());
        let ran = lab.spawn("x", &[]);
        assert_eq!(ran.code, 0, "{what:?} {ran:?}");
        assert_eq!(lab.internet.world(|world| world.pulls.len()), 1, "{what:?}");
    });
}

#[test]
fn a_pull_request_that_somebody_opened_meanwhile_is_taken() {
    let lab = Lab::new();
    lab.internet.world(|world| {
        world.pulls.push(serde_json::json!({
            "number": 1, "state": "open", "html_url": "https://github.test/o/r/pull/1", "draft": false,
            "title": "theirs", "body": "theirs", "head": {"ref": "subagent/x"}, "base": {"ref": "main"},
        }));
    });
    // It was not there when it was looked for.
    lab.internet.fault("GET", "/pulls?state=open", 1, answer(200, "[]"));
    lab.script("x", "commit a a a; say done; settle");
    let result = lab.spawn("x", &[]).result();
    assert_eq!((result["pr"]["number"].as_u64(), result["pr"]["existed"].as_bool()), (Some(1), Some(true)), "{result}");
    assert_eq!(lab.internet.world(|world| world.pulls.len()), 1);
}

#[test]
fn a_pull_request_that_is_there_is_updated_and_not_doubled() {
    let lab = Lab::new();
    lab.internet.world(|world| {
        world.pulls.push(serde_json::json!({
            "number": 1, "state": "open", "html_url": "https://github.test/o/r/pull/1", "draft": false,
            "title": "old", "body": "old", "head": {"ref": "subagent/x"}, "base": {"ref": "main"},
        }));
    });
    lab.script("x", "commit a a 'feat: new'; say done; settle");
    let result = lab.spawn("x", &[]).result();
    assert_eq!((result["pr"]["number"].as_u64(), result["pr"]["existed"].as_bool()), (Some(1), Some(true)));
    assert_eq!(lab.internet.world(|world| world.pulls[0]["title"].clone()), "feat: new");
}

#[test]
fn where_drafts_are_not_supported_it_is_opened_without() {
    let lab = Lab::new();
    lab.internet.fault("POST", "/pulls", 1, answer(422, r#"{"message":"Validation Failed"}"#));
    lab.internet.fault(
        "POST",
        "/pulls",
        1,
        answer(422, r#"{"message":"Draft pull requests are not supported in this repository."}"#),
    );
    lab.script("x", "commit a a a; say done; settle");
    let result = lab.spawn("x", &["--pr", "draft"]).result();
    assert_eq!((result["exit"].as_u64(), result["pr"]["draft"].as_bool()), (Some(0), Some(false)), "{result}");
}

#[test]
fn the_text_is_the_agents_or_the_templates() {
    let lab = Lab::new();
    lab.sh("mkdir .github && echo '## Checklist' >.github/PULL_REQUEST_TEMPLATE.md && git add . && git commit -qm template");
    lab.sh(&format!("git push -q '{}' main", lab.internet.repositories.join("o/r.git").display()));
    lab.script("own", "commit a a a; pr 'The title\\n\\nThe body.\\n'; say done; settle");
    lab.script("plain", "commit b b 'feat: b'; say 'Did b.'; settle");
    lab.spawn("own", &[]).result();
    lab.spawn("plain", &["--title", "Given"]).result();
    let pulls = lab.internet.world(|world| world.pulls.clone());
    let body = |at: usize| pulls[at]["body"].as_str().unwrap().to_owned();
    assert_eq!(pulls[0]["title"], "The title");
    assert!(body(0).starts_with("The body.\n\n---\n"), "{}", body(0));
    assert_eq!(pulls[1]["title"], "Given");
    assert!(body(1).starts_with("## Checklist\n\nDid b."), "{}", body(1));
}

#[test]
fn the_token_leaves_by_no_way() {
    let lab = Lab::new();
    // The agent has it, as every program of the user has, and says it everywhere.
    let leak =
        format!("pr 'A {TOKEN}\\n\\nB {TOKEN}'; tool_start t 'echo {TOKEN}'; sleep 0.6; tool_end t; say 'C {TOKEN}'");
    lab.script("x", &format!("commit a a a; {leak}; settle"));
    let ran = lab.spawn("x", &[]);
    assert_eq!(ran.code, 0);
    let pulls = lab.internet.world(|world| format!("{:?}", world.pulls));
    let log = std::fs::read_to_string(lab.workspace.join(".git/pi-subagent/tasks/x/events.ndjson")).unwrap();
    let state = std::fs::read_to_string(lab.workspace.join(".git/pi-subagent/tasks/x/state.json")).unwrap();
    for text in [&ran.stdout, &ran.stderr, &pulls, &log, &state] {
        assert!(!text.contains(TOKEN), "{text}");
        assert!(text.is_empty() || text.contains("***"), "{text}");
    }
    let environment = std::fs::read_to_string(lab.scripts.join("x.env")).unwrap();
    let arguments = std::fs::read_to_string(lab.scripts.join("x.args")).unwrap();
    assert!(!environment.contains(TOKEN) && !arguments.contains(TOKEN));
    // A commit that holds it stays here.
    lab.script("y", &format!("commit deep/b {TOKEN} b; git rm -q deep/b; git commit -qm gone; say done; settle"));
    let ran = lab.spawn("y", &[]);
    assert_eq!((ran.code, ran.result()["error"]["code"].as_str()), (6, Some("secret_in_commit")), "{ran:?}");
    assert!(lab.internet.asked("POST", "git-receive-pack").len() == 1);
}

#[test]
fn the_token_leaves_with_no_commit_of_the_base_and_by_no_name() {
    let lab = Lab::new();
    let refused = |task: &str, flags: &[&str]| {
        lab.script(task, "commit a a a; say done; settle");
        let ran = lab.spawn(task, flags);
        assert_eq!(ran.result()["error"]["code"].as_str(), Some("secret_in_commit"), "{task}: {ran:?}");
        assert!(!ran.stdout.contains(TOKEN) && !ran.stderr.contains(TOKEN), "{ran:?}");
        assert!(lab.internet.asked("POST", "git-receive-pack").is_empty());
    };
    // The base is ahead of the remote: what is pushed holds its commits too.
    lab.sh(&format!("git checkout -qb ahead && echo {TOKEN} >notes && git add . && git commit -qm notes"));
    refused("new-base", &["--push-base"]);
    lab.sh("git checkout -q main && git merge -q --ff-only ahead");
    refused("ahead", &[]);
    for (task, commit) in [
        ("path", format!("mkdir {TOKEN} && echo >{TOKEN}/x && git add . && git commit -qm path")),
        ("author", format!("git -c user.name={TOKEN} commit -q --allow-empty -m author")),
    ] {
        lab.sh("git reset -q --hard HEAD^");
        lab.sh(&commit);
        refused(task, &[]);
    }
    // What the remote has already is nothing that this push gives away.
    let bare = lab.internet.repositories.join("o/r.git").display().to_string();
    lab.sh(&format!("git push -q '{bare}' main"));
    lab.script("there", "commit a a a; say done; settle");
    assert_eq!(lab.spawn("there", &[]).code, 0);
}

#[test]
fn a_text_that_is_no_file_or_has_no_end_holds_nothing_up() {
    let lab = Lab::new();
    for (task, text) in [("fifo", "mkfifo"), ("endless", "ln -s /dev/zero")] {
        let file = lab.workspace.join(format!(".git/pi-subagent/tasks/{task}/pr.md"));
        lab.script(task, &format!("commit {task} a 'feat: a'; {text} '{}'; say done; settle", file.display()));
        let child = lab.start_spawn(task, &[]);
        crate::lab::wait_for("the end", || {
            std::path::Path::new(&format!("/proc/{}/exe", child.id())).read_link().is_err()
        });
        let ran = crate::lab::finish(child);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
}

#[test]
fn a_base_that_only_exists_here_is_pushed_on_request() {
    let lab = Lab::new();
    lab.sh("git checkout -qb feature && git commit -q --allow-empty -m feature");
    lab.script("x", "commit a a a; say done; settle");
    let result = lab.spawn("x", &["--push-base"]).result();
    assert_eq!(result["state"], "succeeded", "{result}");
    assert_eq!(lab.internet.world(|world| world.pulls[0]["base"]["ref"].clone()), "feature");
    assert_eq!(lab.remote("rev-parse feature"), lab.sh("git rev-parse feature"));
}

#[test]
fn a_forks_branch_goes_to_the_fork_and_its_pull_request_to_the_repository_that_was_chosen() {
    let lab = Lab::new();
    let theirs = lab.internet.repositories.join("o/r.git");
    let fork = lab.internet.repositories.join("me/r.git");
    lab.sh(&format!(
        "git clone -q --bare '{}' '{}'; git -C '{1}' config http.receivepack true",
        theirs.display(),
        fork.display()
    ));
    lab.sh(
        "git remote set-url origin https://github.test/me/r.git; git remote add upstream https://github.test/o/r.git",
    );
    // What `gh repo set-default o/r` writes.
    lab.sh("git config remote.upstream.gh-resolved base");
    lab.script("x", "commit a a a; say done; settle");
    let ran = lab.spawn("x", &[]);
    assert_eq!((ran.code, ran.result()["state"].as_str()), (0, Some("succeeded")), "{ran:?}");
    let pulls = lab.internet.world(|world| world.pulls.clone());
    assert_eq!(
        (pulls[0]["head"]["owner"].as_str(), pulls[0]["head"]["ref"].as_str()),
        (Some("me"), Some("subagent/x"))
    );
    assert_eq!(lab.sh(&format!("git -C '{}' diff --name-only main subagent/x", fork.display())), "a");
    assert_eq!(lab.sh(&format!("git -C '{}' branch --list 'subagent/*'", theirs.display())), "");
    // Found again, not doubled.
    assert_eq!(lab.run(&["finish", "x", "--json"]).result()["pr"]["existed"], true);
    assert_eq!(lab.internet.world(|world| world.pulls.len()), 1);
    // A branch that only the fork has is no base there, and nothing is spent to find that out.
    lab.sh(&format!("git checkout -qb mine && git push -q '{}' mine", fork.display()));
    lab.script("y", "say done; settle");
    let ran = lab.spawn("y", &[]);
    assert_eq!((ran.code, ran.result()["error"]["code"].as_str()), (7, Some("base_not_on_remote")), "{ran:?}");
    assert!(!lab.scripts.join("y.pid").exists());
    assert_eq!(lab.spawn("z", &["--pr", "none", "--allow-empty"]).code, 4, "z has no script, but it started");
}

#[test]
fn a_github_enterprise_server_is_reached_where_its_address_says() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say done; settle");
    let instructions = lab.root.join("instructions");
    let args = ["spawn", "--json", "--task", "x", "--instructions-file", instructions.to_str().unwrap()];
    let ran = finish(lab.command(&args).env("GITHUB_API_URL", "https://github.test/api/v3").spawn().unwrap());
    assert_eq!((ran.code, ran.result()["state"].as_str()), (0, Some("succeeded")), "{ran:?}");
    let made = &lab.internet.asked("POST", "/api/v3/repos/o/r/pulls")[1];
    assert_eq!(made.host, "github.test");
}
