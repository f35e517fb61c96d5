//! What was refused once is refused again, however it is offered.

use crate::attacks::host_commands;
use crate::scene::{Scene, marker};

#[test]
fn a_refused_link_is_refused_again_when_a_later_session_offers_it_under_another_name() {
    let scene = Scene::new();
    let one = scene.prepare();
    let evil = format!("touch {}; false", marker(&scene).display());
    one.agent(&format!(
        "git init -q evil; git -C evil commit -q --allow-empty -m x
        git -C evil config core.fsmonitor '{evil}'
        git checkout -qb side
        git update-index --add --cacheinfo 160000,$(git -C evil rev-parse HEAD),evil; git commit -qm link; git checkout -qf main"
    ));
    assert!(one.import().has_refusals());
    let two = scene.prepare();
    two.agent("git merge -q --ff-only $(git for-each-ref --format='%(refname)' refs/pi/refused | head -1)");
    assert!(two.import().has_refusals());
    host_commands(&scene, &[]);
    assert!(!marker(&scene).exists(), "the agent's program ran on the host");
}
