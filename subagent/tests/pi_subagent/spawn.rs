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
