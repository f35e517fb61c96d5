//! What cannot end well is refused before a model is asked for anything, and leaves nothing behind.

use crate::internet::What;
use crate::lab::{Lab, each};

/// The task `x` must be refused with this exit status and code, pi not started, nothing made.
fn refused(lab: &Lab, flags: &[&str], exit: i32, code: &str) -> String {
    lab.script("x", "say hi; settle");
    let ran = lab.spawn("x", flags);
    let result = ran.result();
    assert_eq!((ran.code, result["error"]["code"].as_str()), (exit, Some(code)), "{ran:?}");
    assert!(!lab.scripts.join("x.pid").exists(), "pi was started");
    assert_eq!(lab.sh("git branch --list 'subagent/*'; ls -A .worktrees 2>/dev/null || true"), "");
    assert_eq!(lab.run(&["list"]).stdout, "No subagents.\n");
    result["text"].as_str().unwrap().to_owned()
}

/// The same task is not refused once nothing is wrong: the refusals do not come from something else.
fn accepted(lab: &Lab, flags: &[&str]) {
    lab.script("x", "commit a a a; say hi; settle");
    let ran = lab.spawn("x", flags);
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn a_repository_that_has_nothing_to_start_from_is_refused() {
    let lab = Lab::new();
    lab.sh("git checkout -q --detach");
    assert!(refused(&lab, &[], 7, "detached_head").contains("--base"));
    refused(&lab, &["--base", "nope"], 7, "base_not_found");
    lab.sh("git checkout -q -b local-only");
    assert!(refused(&lab, &[], 7, "base_not_on_remote").contains("git push -u origin local-only"));
    lab.sh("git checkout -q --orphan empty && git rm -qrf .");
    refused(&lab, &[], 7, "no_commits");
    lab.sh("git checkout -q main");
    accepted(&lab, &[]);
}

#[test]
fn a_remote_that_cannot_take_the_work_is_refused() {
    let lab = Lab::new();
    for url in ["git@github.test:o/r.git", "https://gitlab.test/o/r.git"] {
        lab.sh(&format!("git remote set-url origin {url}"));
        refused(&lab, &[], 7, "remote_unsupported");
    }
    lab.sh("git remote set-url origin https://github.test/o/missing.git");
    refused(&lab, &[], 7, "repository_not_found");
    lab.sh("git remote remove origin");
    refused(&lab, &[], 7, "no_remote");
    // An SSH address is fine where the user's configuration rewrites it.
    lab.sh("git remote add origin git@github.test:o/r.git");
    lab.sh("git config --global url.https://github.test/.insteadOf git@github.test:");
    accepted(&lab, &[]);
}

#[test]
fn without_a_token_or_its_rights_nothing_starts() {
    let lab = Lab::new();
    let credentials = lab.root.join("home/.git-credentials");
    let good = std::fs::read(&credentials).unwrap();
    std::fs::remove_file(&credentials).unwrap();
    refused(&lab, &[], 7, "no_token");
    std::fs::write(&credentials, "https://x-access-token:wrong@github.test\n").unwrap();
    refused(&lab, &[], 7, "token_rejected");
    std::fs::write(&credentials, good).unwrap();
    lab.internet.fault(
        "GET",
        "git-receive-pack",
        1,
        What::Answer(403, &[], "Permission to o/r.git denied to me.".into()),
    );
    assert!(refused(&lab, &[], 7, "push_forbidden").contains("Contents: read and write"));
    lab.internet.fault(
        "POST",
        "/pulls",
        1,
        What::Answer(
            403,
            &[("x-accepted-github-permissions", "pull_requests=write")],
            r#"{"message":"Resource not accessible by personal access token"}"#.into(),
        ),
    );
    assert!(refused(&lab, &[], 7, "pr_forbidden").contains("pull_requests=write"));
    lab.internet.fault(
        "POST",
        "/pulls",
        1,
        What::Answer(403, &[("x-github-sso", "required; url=https://sso.test/x")], r#"{"message":"SAML"}"#.into()),
    );
    assert!(refused(&lab, &[], 7, "pr_forbidden").contains("https://sso.test/x"));
    lab.internet.world(|world| world.repository["archived"] = true.into());
    refused(&lab, &[], 7, "pr_forbidden");
    lab.internet.world(|world| world.repository["archived"] = false.into());
    accepted(&lab, &[]);
}

#[test]
fn a_github_in_trouble_refuses_before_anything_is_spent() {
    let limit: &[(&str, &str)] = &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "99999999999")];
    let answer = |status: u16, body: &str| What::Answer(status, &[], body.to_owned());
    let cases = [
        ("GET", "/repos/o/r", answer(404, r#"{"message":"Not Found"}"#), "repository_not_found"),
        ("GET", "/repos/o/r", answer(401, r#"{"message":"Bad credentials"}"#), "token_rejected"),
        ("POST", "/pulls", answer(500, "{}"), "github_down"),
        ("POST", "/pulls", What::Answer(403, limit, r#"{"message":"API rate limit exceeded"}"#.into()), "rate_limited"),
        ("POST", "/pulls", What::Cut, "network"),
        ("GET", "git-receive-pack", answer(404, "Repository not found."), "repository_not_found"),
        ("GET", "git-receive-pack", answer(502, "<html>"), "github_down"),
        ("GET", "git-receive-pack", answer(429, "slow down"), "rate_limited"),
        ("GET", "git-receive-pack", What::Cut, "network"),
    ];
    each(cases, |(method, path, what, code)| {
        let lab = Lab::new();
        lab.internet.fault(method, path, 9, what);
        refused(&lab, &[], 7, code);
        lab.internet.world(|world| world.faults.clear());
        accepted(&lab, &[]);
    });
}

#[test]
fn a_proxy_that_refuses_or_is_gone_is_named() {
    let lab = Lab::new();
    lab.internet.world(|world| world.denied.push("github.test".into()));
    assert!(refused(&lab, &[], 7, "network").contains("pi-docker allow github.test"));
    lab.internet.world(|world| world.denied = vec!["api.github.test".into()]);
    assert!(refused(&lab, &[], 7, "network").contains("pi-docker allow api.github.test"));
    lab.internet.world(|world| world.denied.clear());
    accepted(&lab, &[]);
    let mut command = lab.command(&["cleanup", "x"]);
    let output = command.env("https_proxy", "http://127.0.0.1:1").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("the proxy does not answer"), "{output:?}");
    let mut command = lab.command(&["cleanup", "x"]);
    let output =
        command.env("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt").env_remove("SSL_CERT_DIR").output().unwrap();
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("cannot trust the certificate of 'github.test'"),
        "{output:?}"
    );
    assert!(lab.worktree("x").exists());
}

#[test]
fn names_and_specifications_that_make_no_sense_are_refused() {
    let lab = Lab::new();
    for name in ["../x", "a/b", "A", "a b", "-x", "x;rm", "$(x)", "a\nb", ""] {
        let ran = lab.run(&["spawn", "--json", "--task", name, "--instructions-file", "/etc/hostname"]);
        assert_eq!(ran.code, 2, "{name:?} {ran:?}");
    }
    for spec in [
        "{",
        "[]",
        r#"{"task":"x","instructions":"y","color":"red"}"#,
        r#"{"task":"x"}"#,
        r#"{"task":"x","instructions":"y","maxCost":-1}"#,
    ] {
        std::fs::write(lab.root.join("spec"), spec).unwrap();
        let ran = lab.run(&["spawn", "--json", "--spec", lab.root.join("spec").to_str().unwrap()]);
        assert_eq!(ran.code, 2, "{spec} {ran:?}");
    }
}

#[test]
fn a_subagent_starts_no_subagent() {
    let lab = Lab::new();
    lab.script(
        "outer",
        "pi-subagent spawn --task inner --instructions-file /etc/hostname --json >inner.out; say ok; settle",
    );
    lab.script("inner", "say hi; settle");
    lab.spawn("outer", &[]).result();
    let said = std::fs::read_to_string(lab.worktree("outer").join("inner.out")).unwrap();
    assert!(said.contains(r#""code":"nested""#), "{said}");
    assert!(!lab.scripts.join("inner.pid").exists());
}

#[test]
fn a_name_that_is_taken_is_refused_or_gets_a_number() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say hi; settle");
    lab.spawn("x", &[]).result();
    let again = lab.spawn("x", &[]);
    assert_eq!((again.code, again.result()["error"]["code"].as_str()), (11, Some("exists")));
    lab.script("x-2", "commit b b b; say hi; settle");
    let suffixed = lab.spawn("x", &["--if-exists", "suffix"]).result();
    assert_eq!((suffixed["task"].as_str(), suffixed["state"].as_str()), (Some("x-2"), Some("succeeded")));
    // A branch of that name that only the remote has is someone else's.
    lab.remote("update-ref refs/heads/subagent/y main");
    lab.script("y", "say hi; settle");
    let ran = lab.spawn("y", &[]);
    assert_eq!((ran.code, lab.scripts.join("y.pid").exists()), (11, false));
    // A branch of that name that is only here is someone's too.
    lab.sh("git branch subagent/z");
    let ran = lab.spawn("z", &[]);
    assert_eq!((ran.code, ran.result()["error"]["code"].as_str()), (11, Some("exists")), "{ran:?}");
    assert_eq!(lab.sh("git branch --list subagent/z"), "  subagent/z");
}

#[test]
fn doctor_says_what_is_well_and_what_is_not_and_changes_nothing() {
    let lab = Lab::new();
    let ran = lab.run(&["doctor"]);
    assert_eq!((ran.code, ran.stdout.matches("ok ").count()), (0, 6), "{ran:?}");
    lab.internet.fault("POST", "/pulls", 1, What::Answer(403, &[], r#"{"message":"Resource not accessible"}"#.into()));
    let ran = lab.run(&["doctor"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("failed  pull requests: ") && ran.stdout.contains("hint: the token needs"), "{ran:?}");
    lab.sh("git checkout -q --detach");
    let checks = lab.run(&["doctor", "--json"]).json()["checks"].clone();
    assert_eq!((checks[2]["check"].as_str(), checks[2]["ok"].as_bool()), (Some("base"), Some(false)), "{checks}");
    assert_eq!(lab.sh("ls -d .worktrees .git/pi-subagent 2>/dev/null || git branch --list 'subagent/*'"), "");
    assert!(lab.internet.world(|world| world.pulls.is_empty()));
}
