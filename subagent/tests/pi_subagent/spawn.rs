//! The story of a task, from the request to the pull request.

use crate::internet::TOKEN;
use crate::lab::Lab;

#[test]
fn a_task_ends_as_a_pull_request_of_exactly_its_files() {
    let lab = Lab::new();
    lab.script("add-docs", "commit docs/a.md one 'docs: say it'; echo two >b.txt; say 'Wrote the docs.'; settle");
    let ran = lab.spawn("add-docs", &[]);
    let result = ran.result();
    assert_eq!((ran.code, result["state"].as_str()), (0, Some("succeeded")), "{ran:?}");
    let pulls = lab.internet.world(|world| world.pulls.clone());
    assert_eq!(pulls.len(), 1);
    assert_eq!(
        (pulls[0]["head"]["ref"].as_str(), pulls[0]["base"]["ref"].as_str()),
        (Some("subagent/add-docs"), Some("main"))
    );
    assert_eq!(result["pr"]["url"], pulls[0]["html_url"]);
    assert_eq!(lab.remote("diff --name-only main subagent/add-docs"), "b.txt\ndocs/a.md");
    assert_eq!(result["git"]["autoCommitted"], true);
    assert_eq!(result["usage"]["cost"]["total"], 0.03);
    assert!(result["text"].as_str().unwrap().contains("https://github.test/o/r/pull/1"), "{result}");
    assert_eq!(lab.sh("git status --porcelain"), "");
    for text in [&ran.stdout, &ran.stderr] {
        assert!(!text.contains(TOKEN));
    }
}

#[test]
fn everything_goes_through_the_proxy_and_nothing_beside_it() {
    // The names end in `.test`: they resolve nowhere, so a connection beside the proxy could not have worked.
    let lab = Lab::new();
    lab.script("x", "commit a a a; say done; settle");
    lab.spawn("x", &[]).result();
    let connects = lab.internet.world(|world| world.connects.clone());
    assert!(
        connects.iter().all(|line| line == "CONNECT github.test:443" || line == "CONNECT api.github.test:443"),
        "{connects:?}"
    );
    assert!(connects.len() >= 2, "{connects:?}");
}

#[test]
fn what_the_caller_has_not_committed_or_not_pushed_is_said_and_nothing_is_said_without_it() {
    let lab = Lab::new();
    let warned = |task: &str| {
        lab.script(task, &format!("commit {task} a a; say done; settle"));
        let events = lab.spawn(task, &[]).events();
        let codes = events.iter().filter(|event| event["type"] == "warning").filter_map(|event| event["code"].as_str());
        codes.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(warned("x"), [""; 0]);
    lab.sh("echo more >>README");
    assert_eq!(warned("y"), ["parent_dirty"]);
    lab.sh("git commit -qam more");
    assert_eq!(warned("z"), ["base_differs"]);
}

#[test]
fn model_thinking_tools_and_trust_are_those_of_the_caller() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say done; settle");
    lab.script("y", "commit b b b; say done; settle");
    let flags =
        ["--model", "a/b", "--thinking", "high", "--tools", "read,bash", "--exclude-tools", "edit", "--trusted"];
    assert_eq!(lab.spawn("x", &flags).code, 0);
    assert_eq!(lab.spawn("y", &[]).code, 0);
    let args = |task: &str| std::fs::read_to_string(lab.scripts.join(format!("{task}.args"))).unwrap();
    for given in [
        "--model\0a/b\0",
        "--thinking\0high\0",
        "--tools\0read,bash\0",
        "--exclude-tools\0edit,spawn_subagent\0",
        "--approve\0",
    ] {
        assert!(args("x").contains(given), "{given}: {}", args("x"));
    }
    for given in ["--exclude-tools\0spawn_subagent\0", "--no-approve\0"] {
        assert!(args("y").contains(given), "{given}: {}", args("y"));
    }
    assert!(!args("y").contains("--model"));
}
