//! The main job: one prompt, two subagents at the same time, two pull requests, nothing left behind.

use std::fs;

use anyhow::Result;
use e2e::World;
use e2e::internet::Request;

const PROMPT: &str = "Add input validation to the API and write tests for it";

#[test]
fn two_subagents_work_at_once_and_each_opens_a_pull_request_with_exactly_its_files() -> Result<()> {
    let world = World::new("story")?;
    world.log_in_with_key()?;
    world.git(["switch", "--quiet", "--create", "feature/api"])?;
    world.write("src/api.js", "export const users = [];\n")?;
    world.git(["add", "."])?;
    world.git(["commit", "--quiet", "-m", "api: begin"])?;
    world.git(["push", "--quiet", &world.internet.bare("octo/app").display().to_string(), "feature/api"])?;
    let head = world.git(["rev-parse", "HEAD"])?;

    let run = world.pi_docker().without("ANTHROPIC_API_KEY").args(["-p", PROMPT]).start()?;
    world.internet.wait_for_step("orchestrator", 1)?;
    // While the orchestrator is about to report, the proxy is still there to be asked.
    let squid = world.wait_for_session()?.squid_log()?;
    world.internet.open_gate("report")?;
    let ran = run.finish()?.expect(0)?;

    // What the user is told.
    let pulls = world.internet.pulls()?;
    assert_eq!(pulls.len(), 2, "{pulls:?}");
    for pull in &pulls {
        let url = pull["url"].as_str().unwrap_or_default();
        assert!(ran.stdout.contains(url), "{url} is not in what pi said:\n{}", ran.stdout);
    }

    // What is on GitHub.
    let expected: [(&str, &[&str]); 2] = [
        ("subagent/add-validation", &["src/validate.js"]),
        ("subagent/add-validation-tests", &["test/README.md", "test/validate.test.js"]),
    ];
    for (branch, files) in expected {
        let pull = pulls.iter().find(|pull| pull["head"] == branch).unwrap_or_else(|| panic!("no {branch}: {pulls:?}"));
        assert_eq!(pull["base"], "feature/api");
        assert_eq!(pull["state"], "open");
        let changed = world.github_git(["diff", "--name-only", &format!("feature/api...{branch}")])?;
        assert_eq!(changed.lines().collect::<Vec<_>>(), files, "{branch}");
        let authors = world.github_git(["log", "--format=%an <%ae>", &format!("feature/api..{branch}")])?;
        assert!(authors.lines().all(|author| author == "Octavia Cat <octavia@example.com>"), "{authors}");
        assert_eq!(world.github_git(["merge-base", "feature/api", branch])?, head);
    }

    // Both were at work at the same time, by the record of the world outside.
    let model = world.internet.model()?;
    let (first, second) = (span(&model, "add-validation"), span(&model, "add-validation-tests"));
    assert!(first.0 < second.1 && second.0 < first.1, "{first:?} and {second:?} do not overlap");

    // Every connection went through squid, and nothing else got anywhere.
    for host in ["api.anthropic.com:443", "api.github.com:443", "github.com:443"] {
        assert!(squid.iter().any(|line| line.contains("CONNECT") && line.ends_with(host)), "{host}: {squid:#?}");
    }
    assert!(squid.iter().any(|line| line.contains("DENIED") && line.ends_with("telemetry.example:443")), "{squid:#?}");
    let strays = world.internet.strays()?;
    assert!(strays.is_empty(), "{strays:?}");

    // Nothing is left: no credential, no container, no file.
    assert_eq!(fs::read_to_string(world.auth_json())?, "{}");
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    assert_eq!(world.run_dirs()?, Vec::<std::path::PathBuf>::new());
    assert_eq!(world.git(["status", "--porcelain", "--ignored"])?, "");
    assert_eq!(world.git(["rev-parse", "HEAD"])?, head);
    assert!(!world.repo.join(".worktrees").exists());
    Ok(())
}

/// When a rule's first and last requests arrived.
fn span(model: &[Request], rule: &str) -> (u64, u64) {
    let times: Vec<u64> =
        model.iter().filter(|request| request.body["rule"] == rule).map(|request| request.ts).collect();
    (*times.first().expect("it was asked"), *times.last().expect("it was asked"))
}
