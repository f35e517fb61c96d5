//! The main job: one prompt, two subagents at the same time, two pull requests, nothing left behind.

use std::fs;

use anyhow::Result;
use e2e::{World, evidence};

const PROMPT: &str = "Add input validation to the API and write tests for it";

#[test]
fn two_subagents_work_at_once_and_each_opens_a_pull_request_with_exactly_its_files() -> Result<()> {
    let world = World::new("story")?;
    world.log_in_with_key()?;
    world.begin_branch("feature/api", "src/api.js", "export const users = [];\n")?;
    let head = world.git(["rev-parse", "HEAD"])?;

    let mut run = world.pi_docker().without("ANTHROPIC_API_KEY").args(["-p", PROMPT]).start()?;
    run.until_asked(&world.internet, "orchestrator", 1)?;
    // While the orchestrator is about to report, the proxy is still there to be asked.
    let squid = world.wait_for_session()?.squid_log()?;
    world.internet.open_gate("report")?;
    let ran = run.finish()?.expect(0)?;

    // What the user is told, and what is on GitHub.
    let pulls = evidence::pulls(&world)?;
    assert_eq!(pulls.len(), 2, "{pulls:?}");
    for (branch, files) in [
        ("subagent/add-validation", vec!["src/validate.js"]),
        ("subagent/add-validation-tests", vec!["test/README.md", "test/validate.test.js"]),
    ] {
        let pull = pulls.iter().find(|pull| pull.head == branch).unwrap_or_else(|| panic!("no {branch}: {pulls:?}"));
        assert!(ran.stdout.contains(&pull.url), "{} is not in what pi said:\n{}", pull.url, ran.stdout);
        assert_eq!((pull.base.as_str(), pull.state.as_str()), ("feature/api", "open"));
        assert_eq!(pull.files, files, "{branch}");
        assert_eq!(world.github_git(["merge-base", "feature/api", branch])?, head);
        let authors = world.github_git(["log", "--format=%an <%ae>", &format!("feature/api..{branch}")])?;
        assert!(authors.lines().all(|author| author == "Octavia Cat <octavia@example.com>"), "{authors}");
    }

    // Both were at work at the same time, by the record of the world outside.
    let model = world.internet.model()?;
    let span = |rule| evidence::span(&model, rule).unwrap_or_else(|| panic!("the model was never asked for {rule}"));
    let (first, second) = (span("add-validation"), span("add-validation-tests"));
    assert!(evidence::overlap(first, second).is_some(), "{first:?} and {second:?} do not overlap");

    // Every connection went through squid, and nothing else got anywhere.
    for host in ["api.anthropic.com:443", "api.github.com:443", "github.com:443"] {
        assert!(squid.iter().any(|line| line.contains("CONNECT") && line.ends_with(host)), "{host}: {squid:#?}");
    }
    assert_eq!(evidence::refused(&squid), ["telemetry.example:443"], "{squid:#?}");
    let strays = world.internet.strays()?;
    assert!(strays.is_empty(), "{strays:?}");

    // No secret went anywhere but into a header: not to the model, not into a commit, a pull request or what was printed.
    let bodies: Vec<_> = world.internet.requests()?.into_iter().map(|request| request.body.to_string()).collect();
    assert!(!bodies.iter().any(|body| body.contains("[secret]")), "{bodies:#?}");
    let said = [ran.stdout, ran.stderr, squid.join("\n"), world.github_git(["log", "--all", "--patch"])?].concat();
    assert!(said.contains("+export function validate"), "{said}");
    assert!(!said.contains(&world.token) && !said.contains(&world.key), "{said}");

    // Nothing is left: no credential, no container, no file.
    assert_eq!(fs::read_to_string(world.auth_json())?, "{}");
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    assert_eq!(world.run_dirs()?, Vec::<std::path::PathBuf>::new());
    assert_eq!(world.git(["status", "--porcelain", "--ignored"])?, "");
    assert_eq!(world.git(["rev-parse", "HEAD"])?, head);
    assert!(!world.repo.join(".worktrees").exists());
    Ok(())
}
