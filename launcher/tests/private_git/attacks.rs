//! Attacks from inside, each followed by what people run on the host. Every one is also made on the host's own git directory, mounted
//! without any protection: there the attacker's program must run, or the attack proves nothing.

use std::fs;
use std::path::Path;

use crate::scene::{Scene, marker};

/// What people, their prompts and their editors run at the top of a repository.
const HOST_COMMANDS: &[&[&str]] = &[
    &["status"],
    &["status", "--porcelain=v2", "--branch", "--show-stash"],
    &["diff"],
    &["log", "-p", "-2"],
    &["rev-parse", "--abbrev-ref", "HEAD"],
    &["stash", "list"],
    &["fetch", "-q"],
    &["add", "-A", "--", "src"],
    &["commit", "-q", "-a", "-m", "by the user"],
    &["checkout", "-q", "-b", "users-branch"],
    &["gc", "-q", "--auto"],
];

/// Makes an attack where git is protected and where it is not. `prepare` builds the repository; `$EVIL` in the script is a command
/// that leaves a trace. `more` are folders that the user goes into as well.
fn fails_only_when_protected(prepare: &dyn Fn(&Scene), attack: &str, more: &[&str]) {
    let script = |scene: &Scene| format!("EVIL='touch {}; false'\n{attack}", marker(scene).display());
    let scene = Scene::new();
    prepare(&scene);
    let output = scene.try_inside(&scene.unprotected(), &script(&scene));
    host_commands_until_attacked(&scene, more);
    assert!(
        marker(&scene).exists(),
        "unprotected, the attack must work: {attack}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let scene = Scene::new();
    prepare(&scene);
    let session = scene.prepare();
    // What is closed may also stop the attacker's script.
    let _ = scene.try_inside(&session.mounts(), &script(&scene).replace("set -e", ""));
    host_commands(&scene, more);
    assert!(!marker(&scene).exists(), "the attacker's program ran during the session");
    let _ = session.import_file(&session.export());
    assert!(!marker(&scene).exists(), "the attacker's program ran in the import");
    crate::git::release(&scene.site(&session.id)).unwrap();
    host_commands(&scene, more);
    assert!(!marker(&scene).exists(), "the attacker's program ran after the session");
    let _ = scene.prepare();
    assert!(!marker(&scene).exists(), "the attacker's program ran in the next launcher");
}

pub(crate) fn host_commands(scene: &Scene, more: &[&str]) {
    run_host_commands(scene, more, &|| false);
}

/// The same, to show that an attack works: what comes after the first trace of it does not matter.
pub(crate) fn host_commands_until_attacked(scene: &Scene, more: &[&str]) {
    run_host_commands(scene, more, &|| marker(scene).exists());
}

fn run_host_commands(scene: &Scene, more: &[&str], enough: &dyn Fn() -> bool) {
    scene.write("README.md", &(scene.read("README.md") + "by the user\n"));
    for folder in [""].iter().chain(more) {
        let folder = scene.root.join(folder);
        for command in HOST_COMMANDS.iter().filter(|_| folder.is_dir()) {
            if enough() {
                return;
            }
            scene.try_git(&folder, command);
        }
    }
}

fn nothing(_: &Scene) {}

pub(crate) fn with_submodule(scene: &Scene) {
    let library = scene.base().join("library");
    fs::create_dir(&library).unwrap();
    scene.git_in(&library, &["init", "-q", "-b", "main"]);
    fs::write(library.join("lib.c"), "int one;\n").unwrap();
    scene.git_in(&library, &["add", "-A"]);
    scene.git_in(&library, &["commit", "-q", "-m", "library"]);
    for path in ["sub", "deep/er/sub"] {
        scene.git(&["submodule", "--quiet", "add", library.to_str().unwrap(), path]);
    }
    scene.commit("submodules");
}

pub(crate) fn with_uninitialised_submodule(scene: &Scene) {
    with_submodule(scene);
    scene.git(&["submodule", "--quiet", "deinit", "-f", "--all"]);
    fs::remove_dir_all(scene.root.join(".git/modules")).unwrap();
}

pub(crate) fn with_embedded_repository(scene: &Scene) {
    scene.git(&["init", "-q", "embedded"]);
    scene.git_in(&scene.root.join("embedded"), &["commit", "-q", "--allow-empty", "-m", "x"]);
    scene.git(&["-c", "advice.addEmbeddedRepo=false", "add", "embedded"]);
    scene.git(&["commit", "-q", "-m", "embedded"]);
}

pub(crate) fn with_worktree_inside(scene: &Scene) {
    scene.git(&["worktree", "add", "-q", "trees/t1"]);
    fs::write(scene.root.join(".git/info/exclude"), "/trees/\n/.worktrees/\n").unwrap();
}

#[test]
fn g1_a_git_directory_renamed_away_and_replaced() {
    let attack = "
        cp -a .git .git-new
        git config -f .git-new/config core.fsmonitor \"$EVIL\"
        printf '#!/bin/sh\\n%s\\n' \"$EVIL\" > .git-new/hooks/pre-commit 2>/dev/null || true
        mv .git .git-old && mv .git-new .git";
    fails_only_when_protected(&nothing, attack, &[]);
}

#[test]
fn g2_a_commondir_that_leads_git_to_another_configuration() {
    let attack = "
        cp -a .git .evil
        git config -f .evil/config core.fsmonitor \"$EVIL\"
        echo ../.evil > .git/commondir";
    fails_only_when_protected(&nothing, attack, &[]);
}

#[test]
fn g3_a_nested_repository_put_into_the_index() {
    let attack = "
        git init -q evil
        git -C evil commit -q --allow-empty -m x
        git -C evil config core.fsmonitor \"$EVIL\"
        git update-index --add --cacheinfo 160000,$(git -C evil rev-parse HEAD),evil
        git commit -qm 'a link' -- evil || git commit -qm 'a link'";
    fails_only_when_protected(&nothing, attack, &[]);
}

#[test]
fn g4_the_configuration_of_a_submodule() {
    fails_only_when_protected(
        &with_submodule,
        "git config -f .git/modules/sub/config core.fsmonitor \"$EVIL\"",
        &["sub"],
    );
}

#[test]
fn g4_the_git_file_of_a_submodule() {
    let attack = "
        git init -q --bare .evil && git config -f .evil/config core.bare false
        git -C .evil fetch -q ../sub HEAD 2>/dev/null || cp -a .git/modules/sub/. .evil/
        git config -f .evil/config core.worktree ../sub
        git config -f .evil/config core.fsmonitor \"$EVIL\"
        echo 'gitdir: ../.evil' > sub/.git || { mv sub/.git sub/.old; echo 'gitdir: ../.evil' > sub/.git; }";
    fails_only_when_protected(&with_submodule, attack, &["sub"]);
}

#[test]
fn g4_a_submodule_moved_away_with_its_parents_and_replaced() {
    let attack = "
        cp -a .git/modules/deep/er/sub .evil 2>/dev/null || cp -a $(git -C deep/er/sub rev-parse --absolute-git-dir) .evil
        git config -f .evil/config core.worktree ../deep/er/sub
        git config -f .evil/config core.fsmonitor \"$EVIL\"
        mv deep/er/sub deep/er/old || mv deep/er deep/old || mv deep old
        mkdir -p deep/er/sub; echo 'gitdir: ../../../.evil' > deep/er/sub/.git";
    fails_only_when_protected(&with_submodule, attack, &["deep/er/sub"]);
}

#[test]
fn g4_a_repository_put_where_a_submodule_is_not_initialised() {
    let attack = "
        mv sub sub-old || true
        git init -q sub
        git -C sub commit -q --allow-empty -m x
        git -C sub config core.fsmonitor \"$EVIL\"";
    fails_only_when_protected(&with_uninitialised_submodule, attack, &["sub"]);
}

#[test]
fn g4_the_git_directory_of_an_embedded_repository() {
    let attack = "git config -f embedded/.git/config core.fsmonitor \"$EVIL\"";
    fails_only_when_protected(&with_embedded_repository, attack, &["embedded"]);
}

#[test]
fn g4_the_git_file_of_a_linked_worktree_in_the_tree() {
    let attack = "
        cp -a .git .evil; git config -f .evil/config core.bare false
        git config -f .evil/config core.fsmonitor \"$EVIL\"
        echo 'gitdir: ../../.evil' > trees/t1/.git || mv trees old || mv trees/t1 trees/old
        mkdir -p trees/t1; echo 'gitdir: ../../.evil' > trees/t1/.git";
    fails_only_when_protected(&with_worktree_inside, attack, &["trees/t1"]);
}

#[test]
fn g4_the_folder_of_the_agents_own_worktrees() {
    let attack = "
        git worktree add -q .worktrees/t1
        cp -a .git .worktrees/evil
        git config -f .worktrees/evil/config core.fsmonitor \"$EVIL\"
        echo 'gitdir: ../evil' > .worktrees/t1/.git";
    fails_only_when_protected(&nothing, attack, &[".worktrees/t1", ".worktrees"]);
}

#[test]
fn g5_links_in_the_git_directory_that_the_hosts_git_writes_through() {
    for (link, undone) in [("logs/HEAD", "# mine\n"), ("COMMIT_EDITMSG", "# mine\n"), ("FETCH_HEAD", "# mine\n")] {
        let attack = |scene: &Scene| format!("mkdir -p .git/logs; ln -sf {}/.bashrc .git/{link}", scene.home.display());
        let bashrc = |scene: &Scene| fs::read_to_string(scene.home.join(".bashrc")).unwrap();
        let scene = Scene::new();
        scene.inside(&scene.unprotected(), &attack(&scene));
        host_commands(&scene, &[]);
        assert_ne!(bashrc(&scene), undone, "unprotected, the attack must work: {link}");

        let scene = Scene::new();
        let session = scene.prepare();
        session.agent(&attack(&scene));
        session.agent("echo x > x; git add x; git commit -qm x || true");
        host_commands(&scene, &[]);
        session.import();
        host_commands(&scene, &[]);
        let _ = scene.prepare();
        assert_eq!(bashrc(&scene), undone, "{link}");
    }
}

#[test]
fn g6_hooks_and_every_setting_that_names_a_program() {
    for setting in [
        "mkdir -p .git/hooks; for h in pre-commit post-checkout post-commit reference-transaction pre-auto-gc; do printf '#!/bin/sh\\n%s\\n' \"$EVIL\" > .git/hooks/$h; chmod +x .git/hooks/$h; done",
        "git config core.hooksPath /workspace/hooks; mkdir -p hooks; printf '#!/bin/sh\\n%s\\n' \"$EVIL\" > hooks/pre-commit; chmod +x hooks/pre-commit; git config core.hooksPath hooks",
        "git config core.fsmonitor \"$EVIL\"",
        "git config alias.st \"!$EVIL\"; git config core.pager \"$EVIL\"; git config core.sshCommand \"$EVIL\"; git config remote.origin.url ssh://h/x",
        "git config filter.x.clean \"$EVIL\"; echo '* filter=x' > .git/info/attributes",
        "printf '[core]\\n\\tfsmonitor = %s\\n' \"$EVIL\" > .gitx; git config include.path ../.gitx",
        "git config diff.external \"$EVIL\"; echo x >> README.md",
        "git config commit.gpgSign true; git config gpg.program /workspace/p; printf '#!/bin/sh\\n%s\\n' \"$EVIL\" > p; chmod +x p; git config gpg.program \"$(echo ./p)\"",
        "git config extensions.worktreeConfig true; git config -f .git/config.worktree core.fsmonitor \"$EVIL\"",
    ] {
        fails_only_when_protected(&nothing, setting, &[]);
    }
}

#[test]
fn g7_another_spelling_of_the_git_file_on_a_file_system_that_takes_it() {
    // A linked worktree whose `.git` has a second name, as every name of it has where case does not count.
    let base = Scene::new();
    base.git(&["worktree", "add", "-q", "../linked"]);
    let scene = base.at("linked", "state-linked");
    fs::hard_link(scene.root.join(".git"), scene.root.join(".GIT")).unwrap();
    let before = scene.read(".git");
    scene.inside(&scene.unprotected(), "echo 'gitdir: /evil' > .GIT");
    assert_ne!(scene.read(".git"), before, "unprotected, the attack must work");
    fs::write(scene.root.join(".git"), &before).unwrap();
    let session = scene.prepare();
    let _ = scene.try_inside(&session.mounts(), "echo 'gitdir: /evil' > .GIT; rm -f .GIT; mv .GIT x");
    assert_eq!((scene.read(".git"), scene.read(".GIT")), (before.clone(), before));
}

#[test]
fn g10_a_repository_that_an_agent_has_been_in_cannot_attack_the_launcher() {
    // As after --git=direct, or by hand: everything in the user's own git directory is hostile.
    let scene = Scene::new();
    let evil = format!("touch {}; false", marker(&scene).display());
    for key in [
        "core.fsmonitor",
        "core.sshCommand",
        "core.pager",
        "core.editor",
        "filter.x.clean",
        "filter.x.process",
        "diff.external",
        "core.alternateRefsCommand",
        "uploadpack.packObjectsHook",
        "credential.helper",
        "gpg.program",
        "diff.x.textconv",
        "merge.x.driver",
    ] {
        scene.git(&["config", key, &evil]);
    }
    scene.git(&["config", "remote.origin.promisor", "true"]);
    scene.git(&["config", "remote.origin.url", &format!("ext::sh -c '{evil}'")]);
    scene.git(&["config", "protocol.ext.allow", "always"]);
    scene.git(&["config", "core.hooksPath", "hooks"]);
    for hook in ["reference-transaction", "post-index-change", "pre-commit", "post-checkout"] {
        let path = scene.root.join("hooks").join(hook);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{evil}\n")).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    scene.write(".gitattributes", "* filter=x diff=x merge=x\n");
    scene.try_git(&scene.root, &["status"]);
    assert!(marker(&scene).exists(), "the user's own git must run it");
    fs::remove_file(marker(&scene)).unwrap();
    let session = scene.prepare();
    session.agent("echo x >> README.md; git -c core.hooksPath=/dev/null -c filter.x.clean=cat commit -qam x");
    session.import();
    let _ = scene.prepare();
    assert!(!marker(&scene).exists());
}

#[test]
fn a_git_file_that_names_a_folder_in_the_tree_is_refused() {
    let scene = Scene::new();
    let session = scene.prepare();
    session.agent("mkdir -p sub; cp -a .git sub/.evil; echo 'gitdir: .evil' > sub/.git");
    let planted = scene.at("repo/sub", "state-planted");
    let error = crate::git::prepare(&planted.site("x")).unwrap_err();
    assert!(format!("{error:#}").contains("inside the working tree"), "{error:#}");
}

#[test]
fn links_planted_in_the_private_git_directory_lead_the_launcher_nowhere() {
    let scene = Scene::new();
    let victim = scene.base().join("victim");
    fs::create_dir_all(victim.join("info")).unwrap();
    fs::write(victim.join("config"), "mine").unwrap();
    let names = [
        "HEAD",
        "config",
        "packed-refs",
        "index",
        "pi-have",
        "shallow",
        "refs",
        "info",
        "logs",
        "objects",
        "modules",
        "worktrees",
        "lfs",
    ];
    for name in names {
        let session = scene.prepare();
        let target = if matches!(name, "HEAD" | "config" | "packed-refs" | "index" | "pi-have" | "shallow") {
            "victim/config"
        } else {
            "victim"
        };
        session.agent(&format!("rm -rf .git/{name}; ln -s {}/{target} .git/{name}", scene.base().display()));
        crate::git::forget(&scene.site(&session.id)).unwrap();
        let next = scene.prepare();
        assert_eq!(next.agent("git status --porcelain; git log --format=%s"), "second\nfirst\n", "{name}");
        crate::git::forget(&scene.site(&next.id)).unwrap();
    }
    // And one step further down.
    let session = scene.prepare();
    session.agent(&format!(
        "rm -rf .git/objects/info .git/info; ln -s {0}/victim .git/objects/info; ln -s {0}/victim .git/info",
        scene.base().display()
    ));
    crate::git::forget(&scene.site(&session.id)).unwrap();
    scene.prepare();
    assert_eq!(list(&victim), ["config", "info"]);
    assert_eq!(fs::read_to_string(victim.join("config")).unwrap(), "mine");
    assert!(list(&victim.join("info")).is_empty());
}

fn list(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
