//! What comes back through the one gate: commits, branches, tags, HEAD and the index, each only where nothing of the host's is lost.

use std::fs;

use crate::git::report::Landed;
use crate::git::{Limits, import, import_running, unimported};
use crate::scene::{Scene, Session};

fn kept(session: &Session, report: &crate::git::ImportReport, name: &str, why: &str) {
    let aside = session.aside(name.strip_prefix("refs/").unwrap_or(name));
    let found = report.repositories[0].landed.iter().any(
        |landed| matches!(landed, Landed::Kept { name: n, at, why: w } if n == name && *at == aside && w.contains(why)),
    );
    assert!(found, "{name} is not kept for '{why}': {:?}", report.lines());
}

#[test]
fn a_commit_made_in_the_container_is_on_the_hosts_branch_and_status_is_clean() {
    let scene = Scene::new();
    let session = scene.prepare();
    assert_eq!(session.agent("git status --porcelain"), "");
    session
        .agent("echo three >> README.md; echo new > new.txt; git rm -q src/lib.rs; git add -A; git commit -qm third");
    assert_ne!(scene.status(), "", "until the import, the host has the changes uncommitted");
    let before = scene.oid("main");
    let report = session.import();
    assert_eq!(scene.git(&["log", "--format=%s", "main"]), "third\nsecond\nfirst");
    assert_eq!(scene.status(), "");
    assert_eq!(scene.git(&["symbolic-ref", "HEAD"]), "refs/heads/main");
    assert_eq!(
        report.repositories[0].landed,
        [Landed::Forwarded { name: "refs/heads/main".into(), from: before, to: scene.oid("main") }]
    );
    assert_eq!(scene.git(&["for-each-ref", "refs/pi"]), "", "nothing of the launcher's is left");
    assert!(scene.git(&["reflog", "-1", "main"]).contains("pi-docker: session"));
    scene.git(&["fsck", "--strict"]);
    assert!(session.import().lines().is_empty(), "a second import changes nothing");
}

#[test]
fn the_agents_uncommitted_changes_stay_uncommitted() {
    let scene = Scene::new();
    let session = scene.prepare();
    session.agent("echo a > a; git add a; git commit -qm a; echo b > b; echo more >> README.md");
    session.import();
    assert_eq!(scene.status(), " M README.md\n?? b");
}

#[test]
fn the_host_is_on_the_branch_that_the_agent_changed_to() {
    let scene = Scene::new();
    let session = scene.prepare();
    session.agent("echo m >> README.md; git commit -qam 'on main'; git checkout -qb feature/x; echo f > f; git add f; git commit -qm f; git tag -a -m 'a tag' v1; git tag v1-light");
    let report = session.import();
    assert_eq!(scene.git(&["symbolic-ref", "HEAD"]), "refs/heads/feature/x", "{:?}", report.lines());
    assert_eq!(scene.status(), "");
    assert_eq!(scene.git(&["log", "--format=%s", "-1", "main"]), "on main");
    assert_eq!(scene.git(&["cat-file", "-t", "v1"]), "tag");
    assert!(scene.has("v1-light"));
    // Back again in another session, onto a branch that is not new.
    let session = scene.prepare();
    session.agent("git checkout -q main");
    session.import();
    assert_eq!((scene.git(&["symbolic-ref", "HEAD"]).as_str(), scene.status().as_str()), ("refs/heads/main", ""));
}

#[test]
fn commits_of_both_sides_are_all_there_and_nobodys_branch_is_overwritten() {
    let scene = Scene::new();
    scene.git(&["branch", "theirs"]);
    scene.git(&["branch", "deleted"]);
    scene.git(&["branch", "reset"]);
    scene.git(&["tag", "t"]);
    let session = scene.prepare();
    session.agent(
        "echo agent > agent; git add agent; git commit -qm agent
        for b in theirs deleted reset; do git branch -qf $b main; done
        git tag -f t main >/dev/null; git checkout -q --detach; git commit -q --amend -m rewritten; git branch -f other; git checkout -q main",
    );
    let agents = session.agent("git rev-parse main").trim().to_owned();
    scene.write("host", "host\n");
    scene.git(&["add", "host"]);
    scene.git(&["commit", "-q", "-m", "host"]);
    let host = scene.oid("main");
    scene.git(&["branch", "-q", "-D", "deleted"]);
    scene.git(&["branch", "-q", "-f", "reset", "main~2"]);
    scene.git(&["branch", "-q", "-f", "theirs", "main"]);
    let report = session.import();
    for (name, why) in [
        ("refs/heads/main", "both sides"),
        ("refs/heads/theirs", "both sides"),
        ("refs/heads/deleted", "deleted on the host"),
        ("refs/heads/reset", "moved back"),
        ("refs/tags/t", "another one of this name"),
    ] {
        kept(&session, &report, name, why);
        assert_eq!(scene.oid(&session.aside(&name[5..])), agents);
    }
    assert_eq!((scene.oid("main"), scene.oid("theirs"), scene.oid("reset")), (host.clone(), host, scene.oid("main~2")));
    assert!(!scene.has("refs/heads/deleted"));
    assert!(scene.has("other"));
    assert_eq!(scene.status(), "?? agent");
    // The next session begins with the host's, and has the other's too.
    let next = scene.prepare();
    assert_eq!(
        next.agent(&format!("git log --format=%s -1; git log --format=%s -1 {}", session.aside("heads/main"))),
        "host\nagent\n"
    );
}

#[test]
fn history_that_the_agent_rewrote_is_kept_beside_the_hosts() {
    let scene = Scene::new();
    let session = scene.prepare();
    session.agent("git commit -q --amend -m rewritten");
    let report = session.import();
    kept(&session, &report, "refs/heads/main", "rewritten");
    assert_eq!(scene.git(&["log", "--format=%s", "-1"]), "second");
}

#[test]
fn what_the_user_has_staged_stays_staged_unless_the_agent_committed_it() {
    let scene = Scene::new();
    for file in ["both", "agents", "users", "late"] {
        scene.write(file, "base\n");
    }
    scene.commit("files");
    for file in ["both", "users"] {
        scene.write(file, "staged before\n");
    }
    scene.git(&["add", "both", "users"]);
    scene.git(&["rm", "-q", "--cached", "src/lib.rs"]);
    let session = scene.prepare();
    assert_eq!(
        session.agent("git status --porcelain"),
        "M  both\nD  src/lib.rs\nM  users\n?? src/\n",
        "the agent sees it staged"
    );
    session.agent("for f in both agents late; do echo agent > $f; done; git commit -qm x both agents late");
    scene.write("late", "staged during\n");
    scene.git(&["add", "late"]);
    session.import();
    assert_eq!(scene.status(), "M  late\nD  src/lib.rs\nM  users\n?? src/");
    assert_eq!(scene.git(&["show", ":late"]), "staged during");
    assert_eq!(scene.git(&["show", "HEAD:late"]), "agent");
}

#[test]
fn a_file_staged_before_the_session_and_committed_changed_is_clean_after_it() {
    let scene = Scene::new();
    scene.write("f", "staged\n");
    scene.git(&["add", "f"]);
    let session = scene.prepare();
    session.agent("echo more >> f; git commit -qam f");
    session.import();
    assert_eq!(scene.status(), "");
}

#[test]
fn a_branch_changed_on_the_host_in_mid_session_is_left_alone() {
    let scene = Scene::new();
    scene.git(&["branch", "other", "main~1"]);
    let session = scene.prepare();
    session.agent("echo a > a; git add a; git commit -qm agent");
    fs::remove_file(scene.root.join("a")).unwrap();
    scene.git(&["checkout", "-q", "other"]);
    let report = session.import();
    assert_eq!(scene.git(&["symbolic-ref", "HEAD"]), "refs/heads/other", "{:?}", report.lines());
    assert_eq!(scene.status(), "");
    assert_eq!(scene.git(&["log", "--format=%s", "-1", "main"]), "agent", "main is not checked out, so it could move");
}

#[test]
fn the_hosts_branch_stays_if_the_working_tree_is_not_on_it_any_more() {
    let scene = Scene::new();
    let session = scene.prepare();
    session.agent("echo x >> README.md; git commit -qam x; git checkout -q --detach HEAD~1");
    let report = session.import();
    kept(&session, &report, "refs/heads/main", "the container was not on it");
    assert_eq!((scene.status().as_str(), scene.git(&["log", "--format=%s", "-1"]).as_str()), ("", "second"));
}

#[test]
fn a_branch_that_another_working_tree_is_on_is_kept_aside() {
    let scene = Scene::new();
    scene.git(&["worktree", "add", "-q", "-b", "elsewhere", "../elsewhere"]);
    let session = scene.prepare();
    session.agent("git checkout -q elsewhere; echo a > a; git add a; git commit -qm agent");
    let report = session.import();
    kept(&session, &report, "refs/heads/elsewhere", "another working tree");
    assert_eq!(scene.git_in(&scene.base().join("elsewhere"), &["status", "--porcelain"]), "");
    assert_eq!(scene.git(&["symbolic-ref", "HEAD"]), "refs/heads/main");
}

#[test]
fn an_unfinished_merge_on_the_host_is_not_moved_under_the_user() {
    let scene = Scene::new();
    scene.git(&["checkout", "-q", "-b", "side", "main~1"]);
    scene.write("README.md", "side\n");
    scene.commit("side");
    scene.git(&["checkout", "-q", "main"]);
    assert!(!scene.try_git(&scene.root, &["merge", "side"]).status.success());
    let session = scene.prepare();
    assert!(
        session.private.warnings.iter().any(|w| w.contains("a merge is unfinished")),
        "{:?}",
        session.private.warnings
    );
    session.agent("echo solved > README.md; git add README.md; git commit -qm merged; test $(git rev-list --parents -1 HEAD | wc -w) = 3");
    let report = session.import();
    kept(&session, &report, "refs/heads/main", "unfinished");
    assert!(scene.root.join(".git/MERGE_HEAD").exists());
    // What a user does now.
    scene.git(&["add", "-A"]);
    scene.git(&["merge", "--abort"]);
    scene.git(&["merge", "-q", "--ff-only", &session.aside("heads/main")]);
    assert_eq!(scene.read("README.md"), "solved\n");
}

#[test]
fn stashes_detached_commits_notes_and_half_staged_files_come_along_aside() {
    let scene = Scene::new();
    scene.write("README.md", "mine\n");
    scene.git(&["stash", "-q"]);
    let session = scene.prepare();
    assert_eq!(session.agent("git stash list | wc -l"), "1\n");
    session.agent(
        "echo s > README.md; git stash -q; echo t > README.md; git stash -q
        git notes add -m note; git replace HEAD HEAD~1
        git worktree add -q --detach .worktrees/w; echo w > .worktrees/w/w; git -C .worktrees/w add w; git -C .worktrees/w commit -qm 'in w'
        git checkout -q --detach; git commit -q --allow-empty -m loose
        echo staged > README.md; git add README.md; echo later > README.md",
    );
    let report = session.import();
    for name in ["stash/0", "stash/1", "HEAD", "index", "worktree/w"] {
        kept(&session, &report, name, "");
    }
    kept_other(&scene, &session, "notes/commits");
    assert!(
        scene.git(&["for-each-ref", "refs/replace"]).is_empty(),
        "a replacement would change what the host's git shows"
    );
    assert_eq!(scene.git(&["show", &format!("{}:README.md", session.aside("index"))]), "staged");
    assert_eq!(scene.git(&["show", &format!("{}:README.md", session.aside("stash/0"))]), "t");
    assert_eq!(scene.git(&["stash", "list"]).lines().count(), 1, "the user's own list is as it was");
    assert_eq!(scene.git(&["symbolic-ref", "HEAD"]), "refs/heads/main");
}

fn kept_other(scene: &Scene, session: &Session, name: &str) {
    assert!(scene.has(&session.aside(&format!("other/{name}"))));
}

#[test]
fn an_import_on_request_and_the_one_at_the_end_add_up() {
    let scene = Scene::new();
    let session = scene.prepare();
    session.agent("echo 1 > 1; git add 1; git commit -qm one; git branch topic");
    import_running(&scene.site(&session.id), &session.export(), &Limits::default()).unwrap();
    assert_eq!(scene.git(&["log", "--format=%s", "-1"]), "one");
    assert_eq!(unimported(&scene.state).unwrap(), [session.id.as_str()]);
    session.agent("echo 2 > 2; git add 2; git commit -qm two; git branch -f topic");
    session.import();
    assert_eq!(scene.git(&["log", "--format=%s", "-2", "topic"]), "two\none");
    assert_eq!(scene.status(), "");
}

#[test]
fn a_commit_in_a_submodule_comes_back_and_so_does_the_commit_that_links_to_it() {
    let scene = Scene::new();
    let library = scene.base().join("library");
    fs::create_dir(&library).unwrap();
    scene.git_in(&library, &["init", "-q", "-b", "main"]);
    scene.git_in(&library, &["commit", "-q", "--allow-empty", "-m", "library"]);
    scene.git(&["submodule", "--quiet", "add", library.to_str().unwrap(), "lib/sub"]);
    scene.commit("submodule");
    let session = scene.prepare();
    assert_eq!(session.agent("git status --porcelain; git submodule status | cut -c1"), " \n");
    session.agent("cd lib/sub; echo a > a; git add a; git commit -qm 'in sub'; cd ../..; git commit -qam bump");
    let report = session.import();
    assert_eq!(
        scene.git_in(&scene.root.join("lib/sub"), &["log", "--format=%s", "-1"]),
        "in sub",
        "{:?}",
        report.lines()
    );
    assert_eq!(scene.git(&["log", "--format=%s", "-1"]), "bump", "{:?}", report.lines());
    assert_eq!(scene.status(), "");
    assert_eq!(scene.git_in(&scene.root.join("lib/sub"), &["status", "--porcelain"]), "");
}

#[test]
fn a_large_file_of_git_lfs_comes_along_if_it_is_what_it_says() {
    let scene = Scene::new();
    fs::create_dir_all(scene.root.join(".git/lfs/objects")).unwrap();
    let session = scene.prepare();
    // As git-lfs leaves it: the content beside the repository, a pointer in the commit. The second one is forged.
    session.agent(
        "for f in good bad; do echo $f > c; o=$(sha256sum c | cut -d' ' -f1); d=.git/lfs/objects/$(echo $o | cut -c1-2)/$(echo $o | cut -c3-4)
        mkdir -p $d; cp c $d/$o; [ $f = good ] || echo forged > $d/$o; rm c
        printf 'version https://git-lfs.github.com/spec/v1\\noid sha256:%s\\nsize 5\\n' $o > $f.bin; done
        git add .; git -c filter.lfs.required=false commit -qm large",
    );
    let report = session.import();
    let lfs = scene.root.join(".git/lfs/objects");
    let good = "cde5b04893cc74bf0057f601d4a0a59db4d3d2a8b59b4a1d1a8b7b0a1d6ae1e0";
    let stored: Vec<_> = walk(&lfs);
    assert_eq!(stored.len(), 1, "{good}: {stored:?} {:?}", report.lines());
    assert_eq!(fs::read_to_string(&stored[0]).unwrap(), "good\n");
    assert!(report.has_refusals());
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn subagents_worktrees_and_branches_outlive_sessions() {
    let scene = Scene::new();
    let session = scene.prepare();
    session.agent(
        "mkdir -p .git/pi-subagent; echo state > .git/pi-subagent/s
        git worktree add -q -b subagent/t .worktrees/t; cd .worktrees/t; echo t > t; git add t; git commit -qm t; echo dirty > dirty",
    );
    assert_eq!(session.agent("git status --porcelain"), "");
    session.import();
    assert_eq!(scene.git(&["log", "--format=%s", "-1", "subagent/t"]), "t");
    // Even if the user deletes the branch on the host and everything that nothing there needs.
    scene.git(&["branch", "-q", "-D", "subagent/t"]);
    scene.git(&["gc", "-q", "--prune=now"]);
    let next = scene.prepare();
    assert_eq!(
        next.agent(
            "cat .git/pi-subagent/s; git -C .worktrees/t status --porcelain; git -C .worktrees/t log --format=%s -1"
        ),
        "state\n?? dirty\nt\n"
    );
    let report = next.import();
    assert!(
        report.lines().is_empty() && !scene.has("refs/heads/subagent/t"),
        "what was deleted does not come back: {:?}",
        report.lines()
    );
    assert_eq!(scene.git(&["status", "--porcelain", "--ignored"]), "", "the tree has nothing of it");
}

#[test]
fn two_sessions_share_one_private_side_and_neither_disturbs_the_other() {
    let scene = Scene::new();
    let first = scene.prepare();
    first.agent("echo 1 > 1; git add 1; git commit -qm one");
    let site = crate::git::Site { others_live: true, ..scene.site("second") };
    let second = crate::git::prepare(&site).unwrap();
    assert_eq!(second.mounts, first.private.mounts);
    assert_eq!(first.agent("git log --format=%s -1; git status --porcelain"), "one\n");
    import(&site, &first.export(), &Limits::default()).unwrap();
    crate::git::release(&site).unwrap();
    assert!(scene.root.join(".worktrees").is_dir(), "the other session still has it mounted");
    first.agent("echo 2 > 2; git add 2; git commit -qm two");
    first.import();
    crate::git::release(&scene.site(&first.id)).unwrap();
    assert_eq!(scene.git(&["log", "--format=%s", "-2"]), "two\none");
    assert!(!scene.root.join(".worktrees").exists());
    assert!(crate::git::unimported(&scene.state).unwrap().is_empty());
}

#[test]
fn a_file_changed_in_the_same_second_as_the_index_is_seen_as_changed_on_both_sides() {
    let scene = Scene::new();
    // Same length, same second: only the index's own time tells git to compare the content.
    for round in 0..100 {
        scene.write("racy", &format!("{round:04} before\n"));
        scene.git(&["add", "racy"]);
        scene.write("racy", &format!("{round:04} after!\n"));
        let changed = |path: &str| fs::metadata(scene.root.join(path)).unwrap().modified().unwrap();
        let second = |path: &str| changed(path).duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        if second("racy") == second(".git/index") {
            break;
        }
    }
    // In that very second any copy would do.
    scene.inside(&scene.unprotected(), "while [ $(date +%s) -le $(stat -c %Y racy) ]; do sleep 0.1; done");
    let session = scene.prepare();
    assert_eq!(session.agent("git status --porcelain"), "AM racy\n");
    session.agent("echo other > other; git add other; git commit -qm other -- other");
    session.import();
    assert_eq!(scene.status(), "AM racy");
}
