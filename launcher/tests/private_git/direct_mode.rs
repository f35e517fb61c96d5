//! `--git=direct`: what its protection closes, and what it leaves open and finds afterwards.

use std::fs;
use std::path::PathBuf;

use crate::attacks::{
    host_commands, host_commands_until_attacked, with_embedded_repository, with_submodule,
    with_uninitialised_submodule, with_worktree_inside,
};
use crate::git::direct;
use crate::scene::{Scene, Session, marker};

fn protected(scene: &Scene) -> Session<'_> {
    let private = direct::protect(&scene.site("direct")).unwrap();
    Session::of(scene, "direct", private.mounts)
}

/// How the repository is made, what the agent does, and where else the user goes.
type Case<'a> = (&'a dyn Fn(&Scene), &'a str, &'a [&'a str]);

#[test]
fn files_that_name_programs_and_ways_into_other_repositories_are_closed() {
    let nothing = |_: &Scene| {};
    let cases: &[Case] = &[
        (&nothing, "cp -a .git .n; git config -f .n/config core.fsmonitor \"$EVIL\"; mv .git .o; mv .n .git", &[]),
        (
            &nothing,
            "cp -a .git .evil; git config -f .evil/config core.fsmonitor \"$EVIL\"; echo ../.evil > .git/commondir",
            &[],
        ),
        (&nothing, "git config core.fsmonitor \"$EVIL\"; git config alias.x y", &[]),
        (
            &nothing,
            "printf '#!/bin/sh\\n%s\\n' \"$EVIL\" > .git/hooks/pre-commit; chmod +x .git/hooks/pre-commit; mv .git/hooks .git/x; mkdir .git/hooks; cp .git/x/pre-commit .git/hooks",
            &[],
        ),
        (
            &with_submodule,
            "git config -f .git/modules/sub/config core.fsmonitor \"$EVIL\"; mv .git/modules .git/m; cp -a .git/m .git/modules; git config -f .git/modules/sub/config core.fsmonitor \"$EVIL\"",
            &["sub"],
        ),
        (
            &with_submodule,
            "cp -a .git/modules/sub .evil; git config -f .evil/config core.worktree ../sub; git config -f .evil/config core.fsmonitor \"$EVIL\"; echo 'gitdir: ../.evil' > sub/.git; rm sub/.git; mv sub x; mkdir sub; echo 'gitdir: ../.evil' > sub/.git",
            &["sub"],
        ),
        (
            &with_uninitialised_submodule,
            "mv sub x; git init -q sub; git -C sub commit -q --allow-empty -m x; git -C sub config core.fsmonitor \"$EVIL\"",
            &["sub"],
        ),
        (&with_embedded_repository, "git config -f embedded/.git/config core.fsmonitor \"$EVIL\"", &["embedded"]),
        (
            &with_worktree_inside,
            "cp -a .git .evil; git config -f .evil/config core.bare false; git config -f .evil/config core.fsmonitor \"$EVIL\"; echo 'gitdir: ../../.evil' > trees/t1/.git",
            &["trees/t1"],
        ),
        (
            &with_worktree_inside,
            "cp -a .git .evil; git config -f .evil/config core.fsmonitor \"$EVIL\"; echo ../../../.evil > .git/worktrees/t1/commondir",
            &["trees/t1"],
        ),
    ];
    for (prepare, attack, more) in cases {
        for protect in [false, true] {
            let scene = Scene::new();
            prepare(&scene);
            let mounts = if protect { protected(&scene).mounts() } else { scene.unprotected() };
            // Each command by itself: one that fails does not keep the others from being tried.
            let _ = scene
                .try_inside(&mounts, &format!("set +e; EVIL='touch {}; false'\n{attack}", marker(&scene).display()));
            if protect {
                host_commands(&scene, more)
            } else {
                host_commands_until_attacked(&scene, more)
            }
            assert_eq!(marker(&scene).exists(), !protect, "protected {protect}: {attack}");
        }
    }
}

#[test]
fn the_users_git_works_during_and_after_and_what_was_made_is_removed() {
    let scene = Scene::new();
    fs::remove_dir_all(scene.root.join(".git/hooks")).unwrap();
    let session = protected(&scene);
    session.agent("echo x >> README.md; git commit -qam x; git checkout -qb topic; git worktree add -q .worktrees/t 2>/dev/null; git -C .worktrees/t status >/dev/null");
    assert_eq!(scene.git(&["log", "--format=%s", "-1", "topic"]), "x");
    scene.git(&["commit", "-q", "--allow-empty", "-m", "by the user"]);
    scene.git(&["config", "user.email", "x@example.com"]);
    // Killed here, the next session of the other kind still begins.
    crate::git::release(&scene.site("direct")).unwrap();
    assert!(!scene.root.join(".git/commondir").exists() && !scene.root.join(".worktrees").exists());
    assert_eq!(scene.status(), "");
    fs::write(scene.root.join(".git/commondir"), ".\n").unwrap();
    crate::git::prepare(&scene.site("next")).unwrap();
}

#[test]
fn what_stays_open_is_found_after_the_session() {
    let scene = Scene::new();
    let session = protected(&scene);
    assert_eq!(direct::inspect(&scene.root, &[]).unwrap(), Vec::<String>::new());
    session.agent(
        "ln -s /etc/x .git/logs/link; ln -sf /etc/x .git/COMMIT_EDITMSG; mkdir .git/rebase-merge; echo 'exec evil' > .git/rebase-merge/git-rebase-todo
        git init -q nested; git -C nested commit -q --allow-empty -m x; git update-index --add --cacheinfo 160000,$(git -C nested rev-parse HEAD),nested",
    );
    let said = direct::inspect(&scene.root, &[]).unwrap().join("\n");
    for words in [
        "logs/link' is a link",
        "COMMIT_EDITMSG' is a link",
        "git-rebase-todo' is there",
        "'nested' as another repository",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!direct::inspect(&scene.root, &[PathBuf::from("nested")]).unwrap().join("\n").contains("nested"));
}

#[test]
fn the_ignore_file_gets_one_line_once_and_never_through_a_link() {
    let scene = Scene::new();
    scene.write(".gitignore", "target");
    assert!(direct::ignore_worktrees(&scene.root, None).unwrap());
    assert!(!direct::ignore_worktrees(&scene.root, None).unwrap());
    assert_eq!(scene.read(".gitignore"), "target\n/.worktrees/\n");
    fs::remove_file(scene.root.join(".gitignore")).unwrap();
    std::os::unix::fs::symlink("../home/.bashrc", scene.root.join(".gitignore")).unwrap();
    assert!(!direct::ignore_worktrees(&scene.root, None).unwrap());
    assert_eq!(fs::read_to_string(scene.home.join(".bashrc")).unwrap(), "# mine\n");
}

#[test]
fn a_linked_worktree_is_refused() {
    let main = Scene::new();
    main.git(&["worktree", "add", "-q", "../linked"]);
    let scene = main.at("linked", "state-linked");
    let error = direct::protect(&scene.site("x")).unwrap_err();
    assert!(format!("{error:#}").contains("linked worktree"), "{error:#}");
}
