//! The real program, without an engine: what it refuses, in one clear line, with nothing started and nothing left behind.

mod common;

use std::fs;
use std::os::unix::ffi::OsStringExt;

use common::Scene;

#[test]
fn outside_a_repository_it_says_so_and_changes_nothing() {
    let scene = Scene::new();
    let before = scene.listing();
    scene.run("", &["-p", "x"]).fails_with(1, "not inside a git repository");
    for folder in ["repo/.git", "repo/.git/objects"] {
        scene.run(folder, &["-p", "x"]).fails_with(1, "not inside a git repository's working tree");
    }
    assert_eq!(scene.listing(), before);
    scene.git("", &["init", "-q", "--bare", "bare.git"]);
    let bare = scene.run("bare.git/refs", &["-p", "x"]);
    bare.fails_with(1, "bare.git' is a repository without files");
    assert!(bare.stderr.contains("\nhint: git clone it"), "{}", bare.stderr);
}

#[test]
fn without_an_engine_nothing_is_made_and_the_hint_says_what_to_do() {
    let scene = Scene::new();
    let before = scene.listing();
    let output = scene.run("repo", &["--yes", "-p", "x"]);
    output.fails_with(1, "cannot reach the Docker engine");
    assert!(output.stderr.contains("\nhint: start Docker"), "{}", output.stderr);
    assert_eq!(scene.listing(), before);
}

#[test]
fn without_docker_it_names_what_to_install() {
    let scene = Scene::new();
    scene
        .command("repo", &["--yes"])
        .env("PATH", scene.path_with_git_only())
        .run()
        .fails_with(1, "cannot run 'docker': not found");
}

#[test]
fn a_remote_engine_is_refused_before_it_is_asked() {
    let scene = Scene::new();
    for host in ["tcp://192.0.2.1:2375", "ssh://nobody@192.0.2.1"] {
        scene.command("repo", &["--yes"]).env("DOCKER_HOST", host).run().fails_with(1, "cannot use the remote engine");
    }
}

#[test]
fn a_damaged_auth_json_is_named_and_left_as_it_is() {
    let scene = Scene::new();
    scene.write("user/.pi/agent/auth.json", "{\"anthropic\": hunter2");
    let before = scene.listing();
    let output = scene.run("repo", &["--yes"]);
    output.fails_with(1, "auth.json': it is not valid JSON");
    assert!(!output.stderr.contains("hunter2"));
    assert_eq!(scene.listing(), before);
}

#[test]
fn a_login_that_cannot_be_read_is_said_with_what_to_do() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    scene.write("user/.pi/agent/auth.json", "{}");
    let mode = |mode| {
        fs::set_permissions(scene.path("user/.pi/agent/auth.json"), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o000);
    let output = scene.run("repo", &["--yes"]);
    output.fails_with(1, "auth.json': Permission denied");
    assert!(output.stderr.contains("\nhint: it has to be yours: chmod 600 "), "{}", output.stderr);
    mode(0o600);
    scene.run("repo", &["--yes"]).fails_with(1, "cannot reach the Docker engine");
}

#[test]
fn words_that_are_not_utf_8_are_refused_and_not_changed() {
    let scene = Scene::new();
    let odd = std::ffi::OsString::from_vec(vec![b'x', 0xff]);
    scene.command("repo", &["--yes", "-p"]).arg(odd).run().fails_with(1, "it is not valid UTF-8");
}

#[test]
fn a_wrong_option_value_and_root_as_the_agent_are_refused() {
    let scene = Scene::new();
    scene.run("repo", &["--user", "me"]).fails_with(2, "expected two numbers");
    scene.run("repo", &["--user", "0:0"]).fails_with(1, "cannot run the agent as root");
}

#[test]
fn a_home_that_is_none_is_named() {
    let scene = Scene::new();
    scene
        .command("repo", &[])
        .env("PI_DOCKER_HOME", scene.path("user"))
        .run()
        .fails_with(1, "cannot find pi-docker's own files");
}

#[test]
fn a_dead_launchers_login_is_emptied_even_without_an_engine() {
    let scene = Scene::new();
    let login = r#"{"anthropic":{"type":"api_key","key":"k"}}"#;
    scene.write("user/.pi/agent/auth.json", login);
    let record = serde_json::json!({
        "pid": 1, "session": "0badcafe", "project": "pi-repo-0badcafe", "container": "pi-repo-0badcafe-agent",
        "repository_id": "repo-0", "root": scene.path("repo"), "auth": scene.path("user/.pi/agent/auth.json"),
        "auth_digest": common::sha256(login), "keep_auth": false, "user": [1000, 1000], "started": 1,
    });
    scene.write("home/run/0badcafe/owner", &record.to_string());
    scene.run("repo", &["--yes"]).fails_with(1, "cannot reach the Docker engine");
    let kept = fs::read_to_string(scene.path("user/.pi/agent/auth.json")).unwrap();
    assert_eq!(kept, login, "pi never ran in that session");

    scene.write("home/run/0badcafe/control/ready", "{}");
    scene.run("repo", &["--yes"]).fails_with(1, "cannot reach the Docker engine");
    assert_eq!(fs::read_to_string(scene.path("user/.pi/agent/auth.json")).unwrap(), "{}");
    assert!(scene.path("home/run/0badcafe").exists(), "what needs the engine is left for the next start");

    scene.write("user/.pi/agent/auth.json", r#"{"anthropic":{"type":"api_key","key":"a newer one"}}"#);
    scene.run("repo", &["--yes"]);
    assert!(fs::read_to_string(scene.path("user/.pi/agent/auth.json")).unwrap().contains("a newer one"));
}

#[test]
fn help_and_version_are_ours_and_need_nothing() {
    let scene = Scene::new();
    let help = scene.run("", &["--help"]);
    assert!(help.status == 0 && help.stdout.contains("pi-docker [OPTIONS] [--] [PI_ARGS]..."), "{}", help.stdout);
    assert!(scene.run("", &["--version"]).stdout.starts_with("pi-docker "));
}
