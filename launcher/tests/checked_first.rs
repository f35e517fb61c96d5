//! The real program, without an engine: what a start would fail of is refused before the engine is asked, by `--dry-run` too.

mod common;

use common::Scene;

/// A start and a dry run say the same, and leave nothing.
fn refused(scene: &Scene, folder: &str, what: &str, hint: &str) {
    let before = scene.listing();
    for words in [&["--yes", "-p", "x"][..], &["--dry-run"]] {
        let output = scene.run(folder, words);
        output.fails_with(1, what);
        assert!(output.stderr.contains(hint), "{hint:?} is not in: {}", output.stderr);
    }
    assert_eq!(scene.listing(), before);
}

#[test]
fn a_setting_that_no_session_could_start_with_is_refused_before_anything_is_made() {
    let scene = Scene::new();
    for (config, what, hint) in [
        ("allow = [\"https://x.example\"]", "cannot allow 'https://x.example'", "hint: correct `allow` in config.toml"),
        ("github-api-url = \"http://x.example\"", "cannot use GITHUB_API_URL", "hint: write it as https://"),
        (
            "extra-ca = \"/nonexistent/ca.pem\"",
            "cannot read the extra CA '/nonexistent/ca.pem'",
            "hint: correct `extra-ca`",
        ),
        (
            "compose-files = [\"/nonexistent.yml\"]",
            "cannot read the overlay '/nonexistent.yml'",
            "hint: correct `compose-files`",
        ),
        ("memory = 6", "'memory': expected a size of at least 256m", ""),
        ("[repo.\"/x\"]", "did you mean 'repository'?", ""),
    ] {
        scene.write("home/config.toml", config);
        refused(&scene, "repo", what, hint);
    }
    scene.write("home/config.toml", "allow = [\"x.example\"]\nmemory = \"1g\"\n");
    scene.run("repo", &["--dry-run"]).fails_with(1, "cannot reach the Docker engine");
}

#[test]
fn a_repository_around_pi_dockers_own_folder_is_refused_before_anything_is_made() {
    let scene = Scene::new();
    scene.git("home", &["init", "-q"]);
    refused(&scene, "home", "contains pi-docker's own folder", "hint: move that folder out of it");
    std::fs::remove_dir_all(scene.path("home/.git")).unwrap();
    scene.git("", &["init", "-q"]);
    refused(&scene, "user", "contains pi-docker's own folder", "hint: move that folder out of it");
    scene.run("repo", &["--dry-run"]).fails_with(1, "cannot reach the Docker engine");
}

#[test]
fn a_folder_that_its_owner_may_not_write_is_told_apart_from_anothers() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let mode = |mode| std::fs::set_permissions(scene.path("repo"), std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o555);
    let output = scene.run("repo", &["--dry-run"]);
    mode(0o755);
    output.fails_with(1, "may not write in");
    assert!(output.stderr.contains("\nhint: chmod u+wx "), "{}", output.stderr);
    let output = scene.run("repo", &["--dry-run", "--user", "4321:4321"]);
    output.fails_with(1, "user 4321:4321 may not write in");
    assert!(output.stderr.contains("\nhint: sudo chown -R 4321:4321 "), "{}", output.stderr);
    scene.run("repo", &["--dry-run"]).fails_with(1, "cannot reach the Docker engine");
}

#[test]
fn doctor_says_of_a_user_and_a_place_what_a_start_would() {
    let scene = Scene::new();
    let output = scene.run("repo", &["--user", "4321:4321", "doctor"]);
    assert!(output.stdout.contains("user 4321:4321 may not write in"), "{}", output.stdout);
    let output = scene.run("repo", &["doctor"]);
    assert!(!output.stdout.contains("may not write in"), "{}", output.stdout);
    scene.git("home", &["init", "-q"]);
    let output = scene.run("home", &["doctor"]);
    assert!(output.stdout.contains("contains pi-docker's own folder"), "{}", output.stdout);
}
