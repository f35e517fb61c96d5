//! Nothing is lost: launchers killed at every step, a full disk, both sides at work at once, the host's history rewritten meanwhile.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::git::{self, Limits};
use crate::scene::{Scene, Session};

/// Starts a launcher's step in a process of its own, with a git that kills it when it starts git for the `count`th time: before git
/// runs, or after. Whether it was killed.
fn killed_at(scene: &Scene, errand: &str, bundle: &Path, count: usize, when: &str) -> bool {
    let folder = scene.base().join("killer");
    fs::create_dir_all(&folder).unwrap();
    let real = String::from_utf8(Command::new("sh").args(["-c", "command -v git"]).output().unwrap().stdout).unwrap();
    let script = format!(
        "#!/bin/sh\nread n < {0}/count; n=$((n-1)); echo $n > {0}/count\n[ $n = 0 ] && [ {when} = before ] && kill -9 $PPID && exit 1\n{1} \"$@\"; s=$?\n[ $n = 0 ] && kill -9 $PPID\nexit $s\n",
        folder.display(),
        real.trim()
    );
    fs::write(folder.join("git"), script).unwrap();
    fs::set_permissions(folder.join("git"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.join("count"), format!("{count}\n")).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lossless::errand"])
        .env("PI_TEST_LAUNCHER", errand)
        .env("PI_TEST_BASE", scene.base())
        .env("PI_TEST_BUNDLE", bundle)
        .env("PATH", format!("{}:{}", folder.display(), std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    std::os::unix::process::ExitStatusExt::signal(&status.status) == Some(9)
}

/// Not a test by itself: a launcher's step in a process that another test kills or gives a small disk.
#[test]
fn errand() {
    let Ok(errand) = std::env::var("PI_TEST_LAUNCHER") else { return };
    let base = std::path::PathBuf::from(std::env::var("PI_TEST_BASE").unwrap());
    let (root, state) = (base.join("repo"), base.join("state"));
    let env = [("PATH".into(), std::env::var_os("PATH").unwrap()), ("HOME".into(), base.join("home").into_os_string())];
    let (step, session) = errand.split_once(' ').unwrap();
    let site = git::Site { root: &root, state: &state, session, env: &env, owner: None, others_live: false };
    let bundle = std::env::var_os("PI_TEST_BUNDLE").unwrap();
    match step {
        "prepare" => _ = git::prepare(&site).unwrap(),
        "import" => _ = git::import(&site, Path::new(&bundle), &Limits::default()).unwrap(),
        _ => fill_and_import(&site, Path::new(&bundle)),
    }
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
#[ignore = "long: kills a launcher some dozens of times"]
fn an_import_killed_at_any_step_loses_nothing_and_the_next_one_completes_it() {
    let scene = Scene::new();
    scene.write("staged", "by the user\n");
    scene.git(&["add", "staged"]);
    let (id, bundle) = {
        let session = scene.prepare();
        session.agent("echo 1 > 1; git add 1; git commit -qm one -- 1; git branch topic; git checkout -qb next; echo 2 > 2; git add 2; git commit -qm two -- 2; git tag v1");
        (session.id.clone(), session.export())
    };
    let (kept_repo, kept_state) = (scene.base().join("kept-repo"), scene.base().join("kept-state"));
    copy(&scene.root, &kept_repo);
    copy(&scene.state, &kept_state);
    let mut kills = 0;
    for when in ["before", "after"] {
        for count in 1.. {
            copy(&kept_repo, &scene.root);
            copy(&kept_state, &scene.state);
            let killed = killed_at(&scene, &format!("import {id}"), &bundle, count, when);
            // Whatever is there now can be used: git finds no fault, and the user's own commits are where they were.
            scene.git(&["fsck"]);
            let log = scene.git(&["log", "--format=%s", "main"]);
            assert!(log.ends_with("second\nfirst"), "{log}");
            git::import(&scene.site(&id), &bundle, &Limits::default()).unwrap();
            assert_eq!(scene.status(), "A  staged", "killed {when} git call {count}");
            assert_eq!(scene.git(&["symbolic-ref", "HEAD"]), "refs/heads/next");
            assert_eq!(scene.git(&["log", "--format=%s", "next"]), "two\none\nsecond\nfirst");
            assert_eq!(scene.oid("topic"), scene.oid("main"));
            assert!(scene.has("v1"));
            assert_eq!(scene.git(&["for-each-ref", "refs/pi"]), "", "killed {when} git call {count}");
            assert!(!scene.root.join(".git/index.lock").exists() && !scene.root.join(".git/pi-index").exists());
            if !killed {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 20, "only {kills} kills");
}

#[test]
#[ignore = "long: kills a launcher some dozens of times"]
fn a_preparation_killed_at_any_step_loses_nothing_and_the_next_one_completes_it() {
    let scene = Scene::new();
    {
        let session = scene.prepare();
        session.agent(
            "git worktree add -q -b subagent/t .worktrees/t; cd .worktrees/t; echo t > t; git add t; git commit -qm t; echo dirty > dirty
            cd ../..; mkdir -p .git/pi-subagent; echo state > .git/pi-subagent/s; git update-index --add --cacheinfo 160000,$(git rev-parse HEAD),evil; git commit -qm link; git branch refused; git reset -q --hard HEAD~1",
        );
        session.import();
    }
    scene.write("README.md", "more\n");
    scene.commit("third");
    let (kept_repo, kept_state) = (scene.base().join("kept-repo"), scene.base().join("kept-state"));
    copy(&scene.root, &kept_repo);
    copy(&scene.state, &kept_state);
    for when in ["before", "after"] {
        for count in 1.. {
            copy(&kept_repo, &scene.root);
            copy(&kept_state, &scene.state);
            let killed = killed_at(&scene, "prepare killed", Path::new("/"), count, when);
            if !killed {
                git::forget(&scene.site("killed")).unwrap();
            }
            scene.git(&["gc", "-q", "--prune=now"]);
            let next = scene.prepare();
            let seen = next.agent(
                "git log --format=%s -1; git status --porcelain; cat .git/pi-subagent/s; cd .worktrees/t; git status --porcelain; git log --format=%s -1 HEAD
                git log --format=%s -1 $(git for-each-ref --format='%(refname)' refs/pi/refused); git fsck --no-dangling 2>&1",
            );
            assert_eq!(seen, "third\nstate\n?? dirty\nt\nlink\n", "killed {when} git call {count}");
            if !killed {
                break;
            }
        }
    }
}

#[test]
fn a_container_that_was_killed_leaves_everything_for_a_later_one() {
    let scene = Scene::new();
    let session = scene.prepare();
    // Killed in the middle: locks are left, a reference half written.
    session.agent("echo x >> README.md; git commit -qam precious; touch .git/index.lock .git/refs/heads/main.lock; printf 0000 > .git/refs/heads/half");
    let id = git::unimported(&scene.state).unwrap().remove(0);
    let later = Session::of(&scene, &id, session.private.mounts.clone());
    later.import();
    assert_eq!(scene.git(&["log", "--format=%s", "-1"]), "precious");
    assert_eq!(scene.status(), "");
    assert_eq!(
        scene.prepare().agent("git status --porcelain; git commit -q --allow-empty -m x; git log --format=%s -1"),
        "x\n"
    );
}

#[test]
fn a_rebase_and_a_gc_on_the_host_in_mid_session_break_nothing() {
    let scene = Scene::new();
    scene.git(&["checkout", "-q", "-b", "topic"]);
    scene.write("t", "t\n");
    scene.commit("topic");
    scene.write("README.md", "stashed\n");
    scene.git(&["stash", "-q"]);
    scene.write("staged", "staged\n");
    scene.git(&["add", "staged"]);
    let session = scene.prepare();
    session.agent("echo a > a; git add a; git commit -qm agent -- a");
    let agents = session.agent("git rev-parse HEAD").trim().to_owned();
    // All that the session began from goes from the host's own references.
    scene.git(&["rm", "-q", "-f", "--cached", "staged"]);
    scene.git(&["stash", "drop", "-q"]);
    scene.git(&["checkout", "-q", "main"]);
    scene.git(&["commit", "-q", "--amend", "-m", "amended"]);
    scene.git(&["branch", "-q", "-D", "topic"]);
    scene.git(&["reflog", "expire", "--expire=now", "--all"]);
    scene.git(&["gc", "-q", "--prune=now"]);
    session.agent("git fsck --full; git show HEAD~1:t; git stash show -p stash@{0} | grep -q stashed; git show :staged; git commit -q --allow-empty -m 'goes on'");
    let report = session.import();
    let aside = session.aside("heads/topic");
    assert_eq!(
        scene.git(&["log", "--format=%s", &aside]),
        "goes on\nagent\ntopic\nsecond\nfirst",
        "{:?}",
        report.lines()
    );
    assert_eq!(scene.oid(&format!("{aside}~1")), agents);
    assert_eq!(scene.git(&["log", "--format=%s", "main"]), "amended\nfirst");
    scene.git(&["gc", "-q", "--prune=now"]);
    scene.git(&["fsck"]);
    assert_eq!(scene.git(&["for-each-ref", "refs/pi/keep"]), "");
}

#[test]
fn imports_and_commits_of_the_user_at_the_same_time_all_get_through() {
    let scene = Scene::new();
    let session = scene.prepare();
    session.agent("for i in 1 2 3 4 5 6; do git branch a$i; git checkout -q a$i; echo $i > f$i; git add f$i; git commit -qm a$i; done; git checkout -q main");
    let bundle = session.export();
    let (root, env_root) = (scene.root.clone(), scene.base());
    let commits = std::thread::scope(|scope| {
        let imports: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    git::import(
                        &git::Site {
                            root: &root,
                            state: &env_root.join("state"),
                            session: &session.id,
                            env: &env(&env_root),
                            owner: None,
                            others_live: true,
                        },
                        &bundle,
                        &Limits::default(),
                    )
                    .unwrap()
                })
            })
            .collect();
        let mut commits = Vec::new();
        while !imports.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let output = scene.try_git(&scene.root, &["commit", "-q", "--allow-empty", "-m", "user's"]);
            if output.status.success() {
                commits.push(scene.oid("HEAD"));
            }
        }
        imports.into_iter().for_each(|import| _ = import.join().unwrap());
        commits
    });
    assert!(
        commits
            .iter()
            .all(|oid| scene.try_git(&scene.root, &["merge-base", "--is-ancestor", oid, "main"]).status.success())
    );
    for number in 1..7 {
        assert_eq!(scene.git(&["log", "--format=%s", "-1", &format!("a{number}")]), format!("a{number}"));
    }
    session.import();
    scene.git(&["fsck"]);
}

fn env(base: &Path) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    vec![("PATH".into(), std::env::var_os("PATH").unwrap()), ("HOME".into(), base.join("home").into_os_string())]
}

#[test]
fn an_index_that_the_user_has_locked_is_waited_for_and_then_left_alone() {
    let scene = Scene::new();
    let session = scene.prepare();
    session.agent("echo x >> README.md; git commit -qam x");
    let bundle = session.export();
    fs::write(scene.root.join(".git/index.lock"), "").unwrap();
    let report = session.import_file(&bundle).unwrap();
    assert!(report.lines()[0].contains("index is in use"), "{:?}", report.lines());
    assert!(scene.has(&session.aside("heads/main")));
    assert_eq!(fs::read(scene.root.join(".git/index.lock")).unwrap(), b"");
    fs::remove_file(scene.root.join(".git/index.lock")).unwrap();
    session.import_file(&bundle).unwrap();
    assert_eq!((scene.status().as_str(), scene.git(&["log", "--format=%s", "-1"]).as_str()), ("", "x"));
}

#[test]
fn a_lock_left_by_a_killed_launcher_and_removed_by_hand_still_ends_well() {
    for (head_moved, lock_there) in [(true, true), (true, false), (false, true), (false, false)] {
        let scene = Scene::new();
        let (id, bundle) = {
            let session = scene.prepare();
            session.agent("echo x >> README.md; git commit -qam x");
            (session.id.clone(), session.export())
        };
        // Killed when it asks for HEAD with the lock held (before) or right after the branch has moved.
        let mut count = 1;
        loop {
            assert!(
                killed_at(&scene, &format!("import {id}"), &bundle, count, "after"),
                "no such moment: {head_moved}"
            );
            let moved = scene.git(&["log", "--format=%s", "-1", "main"]) == "x";
            if scene.root.join(".git/index.lock").exists() && moved == head_moved {
                break;
            }
            count += 1;
        }
        if !lock_there {
            fs::remove_file(scene.root.join(".git/index.lock")).unwrap();
        }
        git::import(&scene.site(&id), &bundle, &Limits::default()).unwrap();
        assert_eq!(
            (scene.status().as_str(), scene.git(&["log", "--format=%s", "-1"]).as_str()),
            ("", "x"),
            "{head_moved} {lock_there}"
        );
        assert!(!scene.root.join(".git/index.lock").exists());
    }
}

#[test]
fn on_a_full_disk_nothing_is_lost_and_with_room_again_it_all_comes() {
    let scene = Scene::new();
    let (id, bundle) = {
        let session = scene.prepare();
        session.agent("head -c 150000 /dev/urandom > big; git add big; git commit -qm big");
        (session.id.clone(), session.export())
    };
    let base = scene.base();
    let script = format!(
        "mkdir {0}/keep; cp -a {0}/repo {0}/state {0}/keep/; cp {1} /dev/shm/pi-bundle-$$; mount -t tmpfs -o size=3m none {0}/repo; cp -a {0}/keep/repo/. {0}/repo/
        mount --bind {0}/repo {0}/repo; mkdir {0}/repo/.state; cp -a {0}/state/. {0}/repo/.state/; mount --bind {0}/repo/.state {0}/state
        PI_TEST_BUNDLE=/dev/shm/pi-bundle-$$ \"$0\" --exact lossless::errand; s=$?; rm /dev/shm/pi-bundle-$$; exit $s",
        base.display(),
        bundle.display()
    );
    let output = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-euc", &script])
        .arg(std::env::current_exe().unwrap())
        .env("PI_TEST_LAUNCHER", format!("disk {id}"))
        .env("PI_TEST_BASE", &base)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// On a disk of a few MiB: imports with less and less room missing, then one with enough, then the next session.
fn fill_and_import(site: &git::Site, bundle: &Path) {
    let ask = |args: &[&str]| {
        let output =
            Command::new("git").env("HOME", "/nonexistent").current_dir(site.root).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let filler = site.root.join("filler");
    let mut failures = 0;
    for room in [0, 4, 8, 12, 16, 24, 32, 64, 128, 152, 160, 164, 168, 172, 176, 180] {
        fill(&filler, room << 10);
        failures += u32::from(git::import(site, bundle, &Limits::default()).is_err());
        fs::remove_file(&filler).unwrap();
        ask(&["fsck"]);
        assert!(ask(&["log", "--format=%s"]).ends_with("second\nfirst\n"));
    }
    assert!(failures > 5, "the disk was full {failures} times");
    git::import(site, bundle, &Limits::default()).unwrap();
    assert_eq!(ask(&["log", "--format=%s", "-1"]), "big\n");
    assert_eq!(ask(&["status", "--porcelain", "--", "big", "README.md"]), "");
    let next = git::Site { session: "next", ..*site };
    for room in [0, 4, 8, 16, 24] {
        fill(&filler, room << 10);
        let prepared = git::prepare(&next);
        fs::remove_file(&filler).unwrap();
        if prepared.is_ok() {
            git::forget(&next).unwrap();
        }
    }
    git::prepare(&next).unwrap();
}

fn fill(path: &Path, leave: u64) {
    use std::io::Write;
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(leave)).unwrap();
}
