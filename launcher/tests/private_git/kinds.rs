//! Every kind of repository: what the agent sees at the start, that a commit comes back and the host is clean after it; or the reason why
//! it cannot be used.

use std::fs;
use std::process::{Command, Output};

use crate::scene::{Scene, Session};

/// The story that each kind goes through.
fn works(scene: &Scene) {
    let status = scene.status();
    let session = scene.prepare();
    assert_eq!(session.agent("git status --porcelain").trim_end(), status, "the agent sees what the user sees");
    session.agent(
        "git fsck --connectivity-only 2>&1; echo agent > agent.txt; git add agent.txt; git commit -qm 'by the agent'",
    );
    let report = session.import();
    assert!(!report.has_refusals(), "{:?}", report.lines());
    assert_eq!(scene.git(&["log", "--format=%s", "-1"]), "by the agent", "{:?}", report.lines());
    assert_eq!(scene.status(), status, "{:?}", report.lines());
    crate::git::release(&scene.site(&session.id)).unwrap();
    assert!(!scene.root.join(".worktrees").exists());
    assert!(scene.try_git(&scene.root, &["fsck"]).status.success());
}

fn said(session: &Session, words: &str) {
    assert!(session.private.warnings.iter().any(|w| w.contains(words)), "{words}: {:?}", session.private.warnings);
}

fn refused(scene: &Scene, words: &str) {
    let error = crate::git::prepare(&scene.site("x")).unwrap_err();
    assert!(format!("{error:#}").contains(words), "{error:#}");
    assert!(!scene.root.join(".worktrees").exists());
}

#[test]
fn plain_with_untracked_changed_and_staged_files() {
    let scene = Scene::new();
    scene.write("untracked", "x");
    scene.write("README.md", "changed\n");
    scene.write("src/lib.rs", "staged\n");
    scene.git(&["add", "src"]);
    works_but_staged_is_committed(&scene);
}

fn works_but_staged_is_committed(scene: &Scene) {
    let session = scene.prepare();
    assert_eq!(session.agent("git status --porcelain"), " M README.md\nM  src/lib.rs\n?? untracked\n");
    session.agent("git commit -qm staged");
    session.import();
    assert_eq!(scene.status(), "M README.md\n?? untracked".replacen('M', " M", 1));
}

#[test]
fn paths_with_every_awkward_character() {
    let scene = Scene::new();
    let scene2 = scene.at("a b'c\"d$e:f,g", "state:2 $x");
    scene.git(&["clone", "-q", ".", scene2.root.to_str().unwrap()]);
    works(&scene2);
}

#[test]
fn linked_worktree() {
    let main = Scene::new();
    main.git(&["worktree", "add", "-q", "-b", "linked", "../linked"]);
    let scene = main.at("linked", "state-linked");
    works(&scene);
    let session = scene.prepare();
    assert!(session.private.mounts.iter().any(|mount| mount.container == "/run/pi-git/dir"));
    assert!(!scene.try_inside(&session.mounts(), "mv .git x || echo x > .git || rm .git").status.success());
    assert_eq!(main.git(&["log", "--format=%s", "-1", "linked"]), "by the agent");
    assert_eq!(main.status(), "");
}

#[test]
fn a_submodule_as_the_repository_and_one_with_submodules_in_submodules() {
    let scene = Scene::new();
    for (name, inner) in [("inner", None), ("outer", Some("inner"))] {
        let path = scene.base().join(name);
        fs::create_dir(&path).unwrap();
        scene.git_in(&path, &["init", "-q", "-b", "main"]);
        if let Some(inner) = inner {
            scene.git_in(&path, &["submodule", "--quiet", "add", &format!("../{inner}"), "in ner"]);
        }
        scene.git_in(&path, &["commit", "-q", "--allow-empty", "-m", name]);
    }
    scene.git(&["submodule", "--quiet", "add", "../outer", "libs/outer"]);
    scene.git(&["submodule", "--quiet", "update", "--init", "--recursive"]);
    scene.commit("submodules");
    works(&scene);
    let session = scene.prepare();
    assert_eq!(
        session.agent("git submodule status --recursive | cut -d' ' -f3-"),
        "libs/outer (heads/main)\nlibs/outer/in ner (heads/main)\n"
    );
    let sub = scene.at("repo/libs/outer", "state-sub");
    works(&sub);
}

#[test]
fn submodule_that_is_not_initialised_is_read_only() {
    let scene = Scene::new();
    scene.git_in(&scene.base(), &["init", "-q", "lib"]);
    scene.git_in(&scene.base().join("lib"), &["commit", "-q", "--allow-empty", "-m", "x"]);
    scene.git(&["submodule", "--quiet", "add", "../lib", "sub"]);
    scene.commit("sub");
    let clone = scene.at("clone", "state-clone");
    scene.git(&["clone", "-q", ".", clone.root.to_str().unwrap()]);
    works(&clone);
    let session = clone.prepare();
    assert!(!clone.try_inside(&session.mounts(), "touch sub/x").status.success());
}

#[test]
fn sparse() {
    for index in ["--no-sparse-index", "--sparse-index"] {
        let scene = Scene::new();
        for folder in ["in", "out", "far/away"] {
            scene.write(&format!("{folder}/f"), "x\n");
        }
        scene.commit("folders");
        scene.git(&["sparse-checkout", "set", "--cone", index, "in"]);
        works(&scene);
        let session = scene.prepare();
        session.agent("git sparse-checkout list | grep -qx in; test ! -e out/f");
        session.agent("echo in > in/g; git add in; b=$(echo changed | git hash-object -w --stdin); git update-index --cacheinfo 100644,$b,out/f; git update-index --skip-worktree out/f; git commit -qm 'in and out'");
        session.import();
        assert_eq!(scene.status(), "", "{index}");
        assert_eq!(scene.git(&["show", "HEAD:out/f"]), "changed");
    }
}

#[test]
fn shallow() {
    let scene = Scene::new();
    let clone = scene.at("clone", "state-clone");
    scene.git(&[
        "clone",
        "-q",
        "--depth",
        "1",
        &format!("file://{}", scene.root.display()),
        clone.root.to_str().unwrap(),
    ]);
    works(&clone);
    let session = clone.prepare();
    assert_eq!(
        session.agent("git log --format=%s; git rev-parse --is-shallow-repository"),
        "by the agent\nsecond\ntrue\n"
    );
}

#[test]
fn partial_clone() {
    let scene = Scene::new();
    scene.git(&["config", "uploadpack.allowFilter", "true"]);
    let clone = scene.at("clone", "state-clone");
    scene.git(&[
        "clone",
        "-q",
        "--filter=blob:none",
        &format!("file://{}", scene.root.display()),
        clone.root.to_str().unwrap(),
    ]);
    let session = clone.prepare();
    session.agent("git status --porcelain; git config --get remote.origin.promisor; echo a > agent.txt; git add agent.txt; git commit -qm 'by the agent'");
    let report = session.import();
    assert_eq!(clone.git(&["log", "--format=%s", "-1"]), "by the agent", "{:?}", report.lines());
    assert_eq!(clone.status(), "");
}

#[test]
fn sha256() {
    let scene = Scene::with(&["init", "-q", "-b", "main", "--object-format=sha256"]);
    works(&scene);
    let session = scene.prepare();
    assert_eq!(session.agent("git rev-parse HEAD").len(), 65);
}

#[test]
fn references_in_another_format() {
    // The container's git does not know it, and does not have to.
    let scene = Scene::empty();
    let init: Output = scene.try_git(&scene.root, &["init", "-q", "-b", "main", "--ref-format=reftable"]);
    if init.status.success() {
        let scene = Scene::with(&["init", "-q", "-b", "main", "--ref-format=reftable"]);
        works(&scene);
    }
}

#[test]
fn detached_head() {
    let scene = Scene::new();
    scene.git(&["checkout", "-q", "--detach"]);
    works(&scene);
    assert!(!scene.try_git(&scene.root, &["symbolic-ref", "-q", "HEAD"]).status.success());
    // A branch that the agent begins there is where the host is then.
    let session = scene.prepare();
    session.agent("git checkout -qb begun; git commit -q --allow-empty -m begun");
    session.import();
    assert_eq!(scene.git(&["symbolic-ref", "HEAD"]), "refs/heads/begun");
}

#[test]
fn in_the_middle_of_a_rebase() {
    let scene = Scene::new();
    scene.git(&["checkout", "-q", "-b", "topic", "main~1"]);
    scene.write("README.md", "topic\n");
    scene.commit("topic");
    assert!(!scene.try_git(&scene.root, &["rebase", "main"]).status.success());
    let session = scene.prepare();
    said(&session, "a rebase is unfinished");
    assert_eq!(session.agent("git status --porcelain"), "UU README.md\n");
    session.agent("echo solved > README.md; git add README.md; git commit -qm solved; git branch onward $(git commit-tree -p topic -m onward topic^{tree}); git branch -f topic onward");
    let report = session.import();
    assert_eq!(scene.git(&["log", "--format=%s", "-1", "topic"]), "topic", "it is being rebased");
    assert!(scene.has(&session.aside("heads/topic")) && scene.has(&session.aside("HEAD")), "{:?}", report.lines());
    // The user goes on with what is in the tree.
    scene.git(&["add", "README.md"]);
    scene.git(&["-c", "core.editor=true", "rebase", "--continue"]);
    assert_eq!((scene.status().as_str(), scene.read("README.md").as_str()), ("", "solved\n"));
}

#[test]
fn stashes() {
    let scene = Scene::new();
    for change in ["a\n", "b\n"] {
        scene.write("README.md", change);
        scene.git(&["stash", "-q"]);
    }
    works(&scene);
    let session = scene.prepare();
    assert_eq!(
        session.agent("git stash list | wc -l; git stash apply -q stash@{1}; cat README.md").replace(' ', ""),
        "2\na\n"
    );
    assert_eq!(scene.git(&["stash", "list"]).lines().count(), 2);
}

#[test]
fn empty_and_empty_with_staged_files() {
    let scene = Scene::empty();
    scene.git(&["init", "-q", "-b", "trunk"]);
    works(&scene);
    assert_eq!(scene.git(&["symbolic-ref", "HEAD"]), "refs/heads/trunk");
    let scene = Scene::empty();
    scene.git(&["init", "-q"]);
    scene.write("f", "x");
    scene.git(&["add", "f"]);
    let session = scene.prepare();
    session.agent("git commit -qm first");
    session.import();
    assert_eq!((scene.status().as_str(), scene.git(&["log", "--format=%s"]).as_str()), ("", "first"));
}

#[test]
fn borrowed_objects_of_a_repository_that_borrows_itself() {
    let scene = Scene::new();
    for (from, to) in [("repo", "second"), ("second", "th ird")] {
        scene.git_in(&scene.base(), &["clone", "-q", "--shared", from, to]);
        let folder = scene.base().join(to);
        scene.git_in(&folder, &["commit", "-q", "--allow-empty", "-m", to]);
    }
    let third = scene.at("th ird", "state-third");
    works(&third);
    let session = third.prepare();
    assert_eq!(session.agent("git log --format=%s 2>&1"), "by the agent\nth ird\nsecond\nsecond\nfirst\n");
}

#[test]
fn git_directory_elsewhere_split_index_untracked_cache_and_worktree_settings() {
    let scene = Scene::with(&["init", "-q", "-b", "main", "--separate-git-dir", "../elsewhere.git"]);
    works(&scene);
    let scene = Scene::new();
    scene.git(&["update-index", "--split-index"]);
    scene.write("src/lib.rs", "more\n");
    scene.git(&["add", "src"]);
    scene.git(&["commit", "-q", "-m", "more"]);
    works(&scene);
    let scene = Scene::new();
    scene.git(&["update-index", "--index-version", "4"]);
    scene.git(&["update-index", "--untracked-cache"]);
    scene.git(&["config", "extensions.worktreeConfig", "true"]);
    scene.git(&["config", "--worktree", "core.autocrlf", "input"]);
    works(&scene);
    let session = scene.prepare();
    assert_eq!(session.agent("git config core.autocrlf; git config core.bigFileThreshold || true"), "input\n");
}

#[test]
fn many_branches_and_tags() {
    let scene = Scene::new();
    let head = scene.oid("HEAD");
    let refs: String = (0..300).map(|n| format!("create refs/heads/b/{n} {head}\n")).collect();
    fs::write(scene.base().join("refs"), refs).unwrap();
    scene.inside(&[crate::git::Mount { host: scene.base(), container: "/workspace".into(), read_only: false }],
        "cd repo; git config --global --add safe.directory '*'; git update-ref --stdin < ../refs; for i in 1 2 3; do git tag -a -m $i t$i; done; git pack-refs --all");
    works(&scene);
    let session = scene.prepare();
    // Even a tag that the host deletes and prunes stays readable.
    scene.git(&["tag", "-d", "t1"]);
    scene.git(&["gc", "-q", "--prune=now"]);
    session.agent("git cat-file -p t1 | grep -q tagger; git fsck");
}

#[test]
fn what_cannot_be_used_is_refused_with_the_reason() {
    let scene = Scene::new();
    fs::rename(scene.root.join(".git"), scene.base().join("moved.git")).unwrap();
    std::os::unix::fs::symlink("../moved.git", scene.root.join(".git")).unwrap();
    refused(&scene, "it is a link");

    let scene = Scene::new();
    scene.write(".git/commondir", "../x\n");
    refused(&scene, "another git directory");

    let scene = Scene::new();
    scene.write(".worktrees/x", "tracked");
    scene.git(&["add", "-f", ".worktrees"]);
    let error = crate::git::prepare(&scene.site("x")).unwrap_err();
    assert!(format!("{error:#}").contains("tracks files there"), "{error:#}");

    let scene = Scene::new();
    scene.write(".worktrees", "a file");
    let error = crate::git::prepare(&scene.site("x")).unwrap_err();
    assert!(format!("{error:#}").contains("not a folder"), "{error:#}");

    let scene = Scene::new();
    fs::write(scene.root.join(".git/index"), "nonsense").unwrap();
    refused(&scene, "the index");

    let scene = Scene::new();
    fs::create_dir(scene.root.join("state")).unwrap();
    let inside = crate::git::Site { state: &scene.root.join("state"), ..scene.site("x") };
    let error = crate::git::prepare(&inside).unwrap_err();
    assert!(format!("{error:#}").contains("it is in the repository"), "{error:#}");
}

#[test]
fn files_whose_filter_is_not_in_the_container_are_never_committed_as_they_are() {
    // As git-crypt does it: the secret is in the tree, and only its cipher in the repository.
    for global in [false, true] {
        let scene = Scene::new();
        let place = if global { "--global" } else { "--local" };
        scene.git(&["config", place, "filter.crypt.clean", "tr a-z n-za-m"]);
        scene.git(&["config", place, "filter.crypt.smudge", "tr a-z n-za-m"]);
        scene.write(".gitattributes", "secret filter=crypt\n");
        scene.write("secret", "hello\n");
        scene.commit("secret");
        assert_eq!(scene.git(&["show", "HEAD:secret"]), "uryyb");
        let session = scene.prepare();
        assert_eq!(session.agent("git status --porcelain"), "");
        session.agent("echo changed > secret; git add -A; git commit -q --allow-empty -m x");
        assert_eq!(session.agent("git status --porcelain"), "", "it counts as unchanged");
        session.agent("cp secret other; echo 'other filter=crypt' >> .gitattributes; ! git add other 2>/dev/null; rm other; git checkout -q .gitattributes");
        assert_eq!(
            session.agent(
                "git worktree add -q .worktrees/t; cd .worktrees/t; cat secret; touch secret; git status --porcelain"
            ),
            "uryyb\n"
        );
        assert!(session.private.warnings[0].contains("filter (crypt)"), "{:?}", session.private.warnings);
        session.import();
        assert_eq!((scene.git(&["show", "HEAD:secret"]).as_str(), scene.status().as_str()), ("uryyb", " M secret"));
    }
}

#[test]
fn a_launcher_of_root_gives_everything_to_the_owner_of_the_repository() {
    use std::os::unix::fs::MetadataExt;
    assert!(nix::unistd::geteuid().is_root(), "this test needs to be root");
    let scene = Scene::new();
    scene.git(&["tag", "-a", "-m", "x", "v1"]);
    let base = scene.base();
    let own = |path: &std::path::Path| Command::new("chown").args(["-R", "4711:4711"]).arg(path).status().unwrap();
    for path in [&scene.root, &scene.state, &base] {
        own(path);
    }
    let site = crate::git::Site { owner: Some((4711, 4711)), ..scene.site("rooted") };
    let private = crate::git::prepare(&site).unwrap();
    let session = Session::of(&scene, "rooted", private.mounts);
    scene.uid.set(4711);
    session.agent("echo x >> README.md; git commit -qam x");
    let bundle = session.export();
    crate::git::import(&site, &bundle, &crate::git::Limits::default()).unwrap();
    let strange = |folder: &std::path::Path| {
        let found =
            Command::new("find").arg(folder).args(["!", "-uid", "4711", "!", "-name", "holds"]).output().unwrap();
        String::from_utf8(found.stdout).unwrap()
    };
    assert_eq!(strange(&scene.root), "");
    assert_eq!(strange(&scene.state), "");
    assert_eq!(fs::metadata(scene.root.join(".git/index")).unwrap().uid(), 4711);
    crate::git::prepare(&crate::git::Site { session: "again", ..site }).unwrap();
    assert_eq!(strange(&scene.state), "");
}
