//! What does not come through the gate, each with a twin that does.

use std::fs;

use crate::git::report::Landed;
use crate::git::{self, ImportReport, Limits};
use crate::scene::{Scene, Session};

fn refused(report: &ImportReport, name: &str, why: &str) -> bool {
    report
        .repositories
        .iter()
        .flat_map(|r| &r.landed)
        .any(|l| matches!(l, Landed::Refused { name: n, why: w } if n == name && w.contains(why)))
}

/// Commits a tree that holds one blob under each of these names, without an index, which would refuse them.
fn commit_names(session: &Session, branch: &str, names: &[&str]) {
    let entries: String = names.iter().map(|name| format!("printf '100644 blob %s\\t%s\\0' $b '{name}';")).collect();
    session.agent(&format!(
        "b=$(echo content | git hash-object -w --stdin); t=$( {{ {entries} }} | sort -z -k2 | git mktree -z)
        git update-ref refs/heads/{branch} $(git commit-tree -p HEAD -m x $t)"
    ));
}

#[test]
fn names_that_a_file_system_takes_for_git_are_refused_and_harmless_ones_are_not() {
    let scene = Scene::new();
    for name in [".git", ".GIT", "git~1", ".git ", ".git::$INDEX_ALLOCATION", "..", ".g\u{200c}it", ".git\\config"] {
        let session = scene.prepare();
        commit_names(&session, "bad", &[name, "z"]);
        session.agent("git commit -q --allow-empty -m good");
        let report = session.import();
        assert!(refused(&report, "refs/heads/bad", "git refuses its objects"), "{name:?}: {:?}", report.lines());
        assert!(!scene.has("refs/heads/bad"));
        assert_eq!(
            scene.git(&["for-each-ref", "refs/heads", "refs/pi/*/"]).lines().count(),
            1,
            "nothing of it is taken"
        );
    }
    let scene = Scene::new();
    let session = scene.prepare();
    commit_names(&session, "good", &[".gitignore", ".github", ".gitx", "git", "a b", "ä", "x~1"]);
    let report = session.import();
    assert!(scene.has("refs/heads/good"), "{:?}", report.lines());
}

#[test]
fn a_new_gitlink_is_refused_wherever_it_is_in_history_and_the_rest_comes() {
    let scene = Scene::new();
    let session = scene.prepare();
    session.agent(
        "git branch good; git checkout -q good; echo g > g; git add g; git commit -qm good; git checkout -q main
        git checkout -qb tip; git update-index --add --cacheinfo 160000,$(git rev-parse HEAD),evil; git commit -qm link
        git checkout -qfb inside; git rm -q --cached evil; git commit -qm 'no link any more'
        git checkout -qf main; git merge -q --no-ff -m merged inside; git reset -q --hard HEAD~1 2>/dev/null || true; git branch -q merge ORIG_HEAD",
    );
    let report = session.import();
    for branch in ["tip", "inside", "merge"] {
        assert!(refused(&report, &format!("refs/heads/{branch}"), "gitlink"), "{branch}: {:?}", report.lines());
        assert!(!scene.has(branch));
    }
    assert!(scene.has("good"), "{:?}", report.lines());
    // Nothing is lost: it is on the private side, for as long as it is kept there, whatever becomes of the host's history.
    let place = format!("refs/pi/refused/{}/heads/tip", session.id);
    for subject in ["amended", "amended again"] {
        scene.git(&["commit", "-q", "--amend", "-m", subject]);
        scene.git(&["branch", "-q", "-D", "good"]);
        scene.git(&["branch", "-q", "good"]);
        scene.git(&["reflog", "expire", "--expire=now", "--all"]);
        scene.git(&["gc", "-q", "--prune=now"]);
        let next = scene.prepare();
        assert_eq!(next.agent(&format!("git log --format=%s -2 {place}; git fsck --no-dangling")), "link\nsecond\n");
        assert!(!next.import().has_refusals());
    }
    let last = scene.prepare();
    last.agent("git for-each-ref --format='delete %(refname)' refs/pi/refused | git update-ref --stdin");
    last.import();
    assert_eq!(
        scene.git(&["for-each-ref", "refs/pi/keep"]),
        "",
        "given up in the container, so nothing is pinned for it"
    );
    assert!(
        !scene.try_inside(&scene.prepare().mounts(), &format!("git rev-parse -q --verify {place}")).status.success()
    );
}

#[test]
fn a_submodule_is_not_moved_to_a_commit_that_the_host_has_not() {
    let scene = Scene::new();
    let library = scene.base().join("library");
    fs::create_dir(&library).unwrap();
    scene.git_in(&library, &["init", "-q", "-b", "main"]);
    scene.git_in(&library, &["commit", "-q", "--allow-empty", "-m", "library"]);
    scene.git(&["submodule", "--quiet", "add", library.to_str().unwrap(), "sub"]);
    scene.commit("submodule");
    let session = scene.prepare();
    session
        .agent("git update-index --cacheinfo 160000,$(git rev-parse HEAD),sub; git commit -qm bump; git branch bump");
    let report = session.import();
    assert!(refused(&report, "refs/heads/bump", "a commit that is not in it"), "{:?}", report.lines());
}

#[test]
fn branches_and_tags_that_would_mislead_are_kept_aside_or_refused() {
    let scene = Scene::new();
    scene.git(&["push", "-q", "origin", "main"]);
    let session = scene.prepare();
    session.agent(
        "c=$(git commit-tree -p HEAD -m x HEAD^{tree})
        for r in refs/heads/origin/main refs/tags/main refs/heads/HEAD refs/heads/-x refs/tags/origin refs/heads/refs/heads/main refs/heads/fine; do
          git update-ref $r $c
        done
        mkdir -p .git/refs/heads/a.lock .git/refs/pi/keep; echo $c > .git/refs/pi/keep/forged; echo $c > .git/refs/pi/x",
    );
    let before = scene.git(&["for-each-ref", "refs/heads", "refs/tags", "refs/remotes"]);
    let report = session.import();
    let after = scene.git(&["for-each-ref", "refs/heads", "refs/tags", "refs/remotes"]);
    let fresh: Vec<&str> = after.lines().filter(|line| !before.contains(line)).collect();
    assert!(fresh.len() == 1 && fresh[0].ends_with("refs/heads/fine"), "{after}");
    assert!(scene.has(&session.aside("heads/origin/main")), "{:?}", report.lines());
    assert!(!scene.has("refs/pi/keep/forged") && !scene.has("refs/pi/x"));
}

#[test]
fn a_bundle_changed_anywhere_never_damages_the_host() {
    let scene = Scene::new();
    let session = scene.prepare();
    session.agent("echo x >> README.md; git commit -qam x; git branch y");
    let bundle = session.export();
    let good = fs::read(&bundle).unwrap();
    let forged = scene.base().join("forged");
    let step = (good.len() / 40).max(1);
    for at in (0..good.len()).step_by(step) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x55;
        fs::write(&forged, &bytes).unwrap();
        let _ = session.import_file(&forged);
        fs::write(&forged, &good[..at]).unwrap();
        assert!(session.import_file(&forged).is_err(), "cut off at {at}");
    }
    scene.git(&["fsck", "--strict", "--connectivity-only"]);
    session.import_file(&bundle).unwrap();
    assert_eq!(scene.git(&["log", "--format=%s", "-1"]), "x");
    scene.git(&["fsck", "--strict"]);
}

#[test]
fn a_bundle_that_points_to_what_it_does_not_bring_is_refused() {
    let scene = Scene::new();
    let session = scene.prepare();
    // A commit whose tree nobody has.
    session.agent(
        "c=$(printf 'tree %s\\nauthor a <a> 0 +0000\\ncommitter a <a> 0 +0000\\n\\nx\\n' 1111111111111111111111111111111111111111 | git hash-object -t commit -w --stdin --literally)
        mkdir -p .git/refs/heads; echo $c > .git/refs/heads/hollow; echo good > good; git add good; git commit -qm good",
    );
    let report = session.import();
    assert!(refused(&report, "refs/heads/hollow", ""), "{:?}", report.lines());
    assert_eq!(scene.git(&["log", "--format=%s", "-1"]), "good", "{:?}", report.lines());
}

#[test]
fn what_the_host_has_only_in_part_cannot_be_named() {
    let scene = Scene::new();
    let session = scene.prepare();
    // A commit that lies about on the host, its tree gone long ago.
    scene.write(
        "hollow",
        "tree 1111111111111111111111111111111111111111\nauthor a <a> 0 +0000\ncommitter a <a> 0 +0000\n\nx\n",
    );
    let hollow = scene.git(&["hash-object", "-t", "commit", "-w", "--literally", "hollow"]);
    let good = scene.git(&["commit-tree", "-p", "HEAD", "-m", "good", "HEAD^{tree}"]);
    let bundle = scene.base().join("by-hand");
    let refs = format!("[[\"refs/heads/hollow\",\"{hollow}\"],[\"refs/heads/good\",\"{good}\"]]");
    fs::write(&bundle, format!("{{\"pi-export\":1}}\n{{\"end\":{{\"\":{{\"refs\":{refs}}}}}}}\n")).unwrap();
    let report = session.import_file(&bundle).unwrap();
    assert!(refused(&report, "refs/heads/hollow", "not complete"), "{:?}", report.lines());
    assert!(scene.has("refs/heads/good") && !scene.has("refs/heads/hollow"), "{:?}", report.lines());
}

#[test]
fn more_than_the_limits_is_refused_and_stays_on_the_private_side() {
    let scene = Scene::new();
    let session = scene.prepare();
    session.agent("head -c 200000 /dev/urandom > big; git add big; git commit -qm big; git branch a; git branch b");
    let bundle = session.export();
    let small = Limits { bytes: 100_000, refs: 5000 };
    let error = git::import(&scene.site(&session.id), &bundle, &small).unwrap_err();
    assert!(format!("{error:#}").contains("more than the limit"), "{error:#}");
    let few = Limits { refs: 2, ..Limits::default() };
    let report =
        git::import(&crate::git::Site { others_live: true, ..scene.site(&session.id) }, &bundle, &few).unwrap();
    assert!(report.has_refusals() && !scene.has("a"));
    session.import_file(&bundle).unwrap();
    assert!(scene.has("a") && scene.has("b"));
}

#[test]
fn a_session_whose_commits_were_not_fetched_blocks_the_next_until_it_is_fetched_or_moved_aside() {
    let scene = Scene::new();
    let session = scene.prepare();
    session.agent(
        "echo x >> README.md; git commit -qam precious; mkdir .git/unreadable; chmod 000 .git/unreadable; rm .git/HEAD",
    );
    assert_eq!(git::unimported(&scene.state).unwrap(), [session.id.as_str()]);
    let error = git::prepare(&scene.site("next")).unwrap_err();
    assert!(format!("{error:#}").contains(&session.id), "{error:#}");
    let aside = git::set_aside(&scene.site("next")).unwrap().unwrap();
    scene.git(&["gc", "-q", "--prune=now"]);
    assert!(aside.join("git/objects").is_dir());
    let pins = scene.git(&["for-each-ref", "refs/pi/keep"]);
    assert!(!pins.is_empty(), "what it borrows stays");
    git::prepare(&scene.site("next")).unwrap();
    git::forget(&scene.site("next")).unwrap();
    fs::remove_dir_all(&aside).unwrap();
    git::prepare(&scene.site("third")).unwrap();
    assert!(
        !scene.git(&["for-each-ref", "refs/pi/keep"]).contains(&session.id),
        "its folder has gone, and so have its pins"
    );
}
