//! What could not become a branch stays below `refs/pi/` until a branch has it, and the user is told what to do about it.

use std::process::Command;

use crate::scene::Scene;

/// A session in which both sides commit on `branch`. Returns what is said at its end.
fn diverged(scene: &Scene, branch: &str) -> (String, Vec<String>) {
    let session = scene.prepare();
    session.agent(&format!(
        "git checkout -q '{branch}'; git commit -q --allow-empty -m \"the agent's\"; git checkout -q main"
    ));
    scene.git(&["checkout", "-q", branch]);
    scene.git(&["commit", "-q", "--allow-empty", "-m", "the user's"]);
    scene.git(&["checkout", "-q", "main"]);
    (session.aside(&format!("heads/{branch}")), session.import().lines())
}

/// What a session says in which nothing is done.
fn next(scene: &Scene) -> Vec<String> {
    scene.prepare().import().lines()
}

/// The command that a line says.
fn command<'a>(lines: &'a [String], words: &str) -> &'a str {
    lines.iter().find_map(|line| line.strip_prefix(words)).unwrap_or_else(|| panic!("{words}: {lines:?}"))
}

fn shell(scene: &Scene, command: &str) {
    let output = Command::new("sh").args(["-c", command]).current_dir(&scene.root).env("HOME", &scene.home).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_is_kept_aside_goes_when_a_branch_has_it_and_not_before() {
    let scene = Scene::new();
    scene.git(&["branch", "topic"]);
    let (aside, lines) = diverged(&scene, "topic");
    assert!(scene.has(&aside), "{lines:?}");
    for _ in 0..2 {
        let lines = next(&scene);
        assert_eq!(lines, ["kept from earlier sessions: 1; to see it: git for-each-ref refs/pi"]);
        scene.git(&["gc", "-q", "--prune=now"]);
        assert!(scene.has(&aside));
    }
    shell(&scene, command(&lines, "to take what is kept: "));
    assert_eq!(next(&scene), [format!("{aside} is dropped: branch 'main' has it now")]);
    assert_eq!(scene.git(&["for-each-ref", "refs/pi"]), "");
    assert!(scene.git(&["log", "--format=%s", "main"]).contains("the agent's"));
    assert_eq!(next(&scene), Vec::<String>::new());
}

#[test]
fn the_commands_that_are_said_are_safe_to_copy_whatever_the_branch_is_called() {
    let scene = Scene::new();
    let branch = "$(touch${IFS}ran)'x";
    let outside = branch.replace('\'', "'\\''");
    scene.git(&["branch", branch]);
    let session = scene.prepare();
    session.agent(&format!("git checkout -q '{outside}'; git commit -q --allow-empty -m x; git checkout -q main"));
    scene.git(&["branch", "-f", branch, &scene.git(&["commit-tree", "-p", "main", "-m", "y", "main^{tree}"])]);
    let lines = session.import().lines();
    let aside = session.aside(&format!("heads/{branch}"));
    assert!(scene.has(&aside), "{lines:?}");
    shell(&scene, command(&lines, "to take what is kept: "));
    shell(&scene, command(&lines, "to drop it: "));
    assert!(!scene.root.join("ran").exists() && !scene.has(&aside));
}

#[test]
fn what_a_branch_had_is_not_dropped_if_that_branch_is_deleted_at_the_same_moment() {
    let mut scene = Scene::new();
    scene.git(&["branch", "topic"]);
    let (aside, _) = diverged(&scene, "topic");
    scene.git(&["branch", "merged", &aside]);
    scene.put_before_git(&format!(
        "case \"$*\" in *--contains=*) $GIT \"$@\"; cd {}; unset GIT_DIR; exec $GIT branch -q -D merged >&2;; esac; exec $GIT \"$@\"",
        scene.root.display()
    ));
    next(&scene);
    assert!(!scene.has("refs/heads/merged"), "the branch went in between");
    assert!(scene.has(&aside));
}

#[test]
fn what_a_submodule_has_aside_is_said_with_where_to_run_the_command() {
    let scene = Scene::new();
    crate::attacks::with_submodule(&scene);
    let session = scene.prepare();
    session.agent("cd deep/er/sub; git commit -q --allow-empty -m \"the agent's\"");
    let sub = scene.root.join("deep/er/sub");
    scene.git_in(&sub, &["commit", "-q", "--allow-empty", "-m", "the user's"]);
    let lines = session.import().lines();
    shell(&scene, command(&lines, "deep/er/sub: to take what is kept: "));
    assert!(scene.git_in(&sub, &["log", "--format=%s"]).contains("the agent's"));
}
