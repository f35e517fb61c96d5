//! What mounts cannot close is found: each limit is tried as an attack, seen at once, and said again at the end.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use crate::git::Finding;
use crate::git::Watcher;
use crate::git::watch::Watch;
use crate::scene::Scene;

/// What a watcher says, with when it said it.
type Said = Receiver<(Finding, SystemTime)>;

fn watch(scene: &Scene, programs: &[PathBuf]) -> (Watcher, Said) {
    let (sender, said) = channel();
    let tell = move |finding: &Finding| _ = sender.send((finding.clone(), SystemTime::now()));
    let watcher = Watcher::start(&scene.root, programs.to_owned(), tell).unwrap();
    watcher.wait_until_ready();
    (watcher, said)
}

fn begin(root: &Path, programs: &[PathBuf]) -> Watch {
    let mut watch = Watch::open(root).unwrap();
    watch.begin(programs);
    watch
}

/// Waits until this is found, and returns how long after `begun`.
fn found(said: &Said, finding: &Finding, begun: SystemTime) -> Duration {
    loop {
        // A copy on its way there is found too.
        let (seen, when) = said.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|e| panic!("{finding:?}: {e}"));
        if seen == *finding {
            return when.duration_since(begun).unwrap_or_default();
        }
    }
}

#[test]
fn repositories_that_the_agent_makes_are_found_within_a_second_and_what_was_there_is_not() {
    let scene = Scene::new();
    scene.git(&["init", "-q", "vendor/old"]);
    scene.git(&["init", "-q", "--bare", "fixtures/old.git"]);
    scene.write(".githooks/pre-commit", "#!/bin/sh\n");
    scene.git(&["config", "core.hooksPath", ".githooks"]);
    scene.write("vendor/file/.git", "gitdir: ../old/.git\n");
    let session = scene.prepare();
    let (watcher, said) = watch(&scene, &session.private.programs);
    session.agent("mkdir -p a/b; echo x > a/b/file; git -C . status >/dev/null; git worktree add -q .worktrees/t");
    let mut took = Vec::new();
    for (attack, finding) in [
        ("git init -q a/b", Finding::Repository("a/b".into())),
        ("mkdir -p deep/er/c; echo 'gitdir: ../../../evil' > deep/er/c/.git", Finding::Repository("deep/er/c".into())),
        ("mkdir -p link; ln -s /workspace/a/b/.git link/.git", Finding::Repository("link".into())),
        ("mkdir -p other; touch other/.GIT", Finding::Repository("other".into())),
        ("git init -q --bare in/bare", Finding::Bare("in/bare".into())),
        (
            "mkdir -p split; cd split; echo 'ref: refs/heads/x' > HEAD; echo ../a/b/.git > commondir",
            Finding::Bare("split".into()),
        ),
        (
            "git init -q /tmp/x; git -C /tmp/x commit -q --allow-empty -m x; mkdir away; cp -a /tmp/x/.git away/x; mv away/x src/.git",
            Finding::Repository("src".into()),
        ),
        ("git config -f vendor/old/.git/config core.fsmonitor evil", Finding::Changed("vendor/old/.git/config".into())),
        ("echo 'gitdir: ../../a/b/.git' > vendor/file/.git", Finding::Changed("vendor/file/.git".into())),
        ("echo x > fixtures/old.git/hooks/post-update", Finding::Changed("fixtures/old.git/hooks".into())),
        ("echo evil >> .githooks/pre-commit", Finding::Program(".githooks/pre-commit".into())),
    ] {
        session.agent(attack);
        took.push(found(&said, &finding, SystemTime::now()));
    }
    // The machines that test have other work as well: the claim is for most of them.
    took.sort();
    assert!(took[took.len() / 2] < Duration::from_secs(1), "{took:?}");
    let all = watcher.finish();
    assert!(all.contains(&Finding::Repository("a/b".into())) && all.len() >= 11, "{all:?}");
    assert!(all.iter().all(|finding| !finding.to_string().contains('\n')));
}

#[test]
fn a_finding_is_not_missed_when_the_folder_changes_twice_in_one_tick_of_the_clock() {
    let scene = Scene::new();
    for round in 0..30 {
        let folder = scene.root.join(format!("f{round}"));
        std::fs::create_dir(&folder).unwrap();
        let mut watch = begin(&scene.root, &[]);
        std::fs::write(folder.join(".git"), "gitdir: x").unwrap();
        assert_eq!(watch.look(), [Finding::Repository(PathBuf::from(format!("f{round}")))]);
    }
}

#[test]
fn hooks_that_the_user_keeps_in_the_tree_are_watched() {
    let scene = Scene::new();
    scene.write(".githooks/pre-commit", "#!/bin/sh\n");
    scene.commit("hooks");
    scene.git(&["config", "core.hooksPath", ".githooks"]);
    let session = scene.prepare();
    assert_eq!(session.private.programs, [scene.root.join(".githooks")]);
    for attack in
        ["echo evil >> .githooks/pre-commit", "echo evil > .githooks/post-checkout", "mv .githooks x; mkdir .githooks"]
    {
        let mut watch = begin(&scene.root, &session.private.programs);
        assert_eq!(watch.look(), []);
        session.agent(attack);
        let found = watch.look();
        assert!(
            found.iter().any(|f| matches!(f, Finding::Program(path) if path.starts_with(".githooks"))),
            "{attack}: {found:?}"
        );
    }
}

#[test]
fn configuration_that_the_hosts_git_includes_from_the_tree_is_closed() {
    let include = |scene: &Scene| {
        scene.write("dev/gitconfig", "[alias]\n\tx = status\n");
        scene.commit("dev");
        scene.git(&["config", "include.path", "../dev/gitconfig"]);
    };
    let attack = "printf '[core]\\n\\tfsmonitor = evil\\n' > dev/gitconfig || { mv dev x && mkdir dev && printf '[core]\\n\\tfsmonitor = evil\\n' > dev/gitconfig; }";
    let scene = Scene::new();
    include(&scene);
    scene.inside(&scene.unprotected(), attack);
    assert!(scene.read("dev/gitconfig").contains("evil"), "unprotected, the attack must work");
    let scene = Scene::new();
    include(&scene);
    let session = scene.prepare();
    assert!(!scene.try_inside(&session.mounts(), attack).status.success());
    assert_eq!(scene.read("dev/gitconfig"), "[alias]\n\tx = status\n");
    session.agent("echo y > dev/other; git add dev; git commit -qm 'beside it'");
    // One that is not there yet cannot be closed, and is said.
    scene.git(&["config", "include.path", "../local.gitconfig"]);
    crate::git::forget(&scene.site(&session.id)).unwrap();
    let session = scene.prepare();
    assert!(session.private.warnings.iter().any(|w| w.contains("local.gitconfig")), "{:?}", session.private.warnings);
    let mut watch = begin(&scene.root, &session.private.programs);
    session.agent("echo > local.gitconfig");
    assert_eq!(watch.look(), [Finding::Program("local.gitconfig".into())]);
}

#[test]
#[ignore = "long: makes 10,000 folders"]
fn a_look_at_ten_thousand_folders_takes_less_than_a_tenth_of_a_second() {
    let scene = Scene::new();
    for folder in 0..10_000 {
        std::fs::create_dir_all(scene.root.join(format!("d{}/s{}/t{folder}", folder / 500, folder / 20))).unwrap();
    }
    let mut watch = begin(&scene.root, &[]);
    // So long after the last change that no folder has to be read twice.
    let made = Instant::now();
    while made.elapsed() < Duration::from_secs(4) {
        watch.look();
    }
    let took = (0..20)
        .map(|_| {
            let begun = Instant::now();
            watch.look();
            begun.elapsed()
        })
        .min()
        .unwrap();
    assert!(took < Duration::from_millis(100), "{took:?}");
}
