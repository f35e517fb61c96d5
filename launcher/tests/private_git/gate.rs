//! What comes back through the one gate: commits, branches, HEAD and index; and what does not come.

use crate::git::Landed;
use crate::scene::Scene;

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
    scene.git(&["fsck", "--strict"]);
}
