//! The extension on the oldest pi that it is written for.

use std::time::Duration;

use anyhow::Result;
use e2e::{World, docker, evidence};
use serde_json::json;

const OLD: &str = "0.87.1";
const IMAGE: &str = "pi-docker-agent:e2e-old-pi";

#[test]
#[ignore = "long: builds an image with another pi"]
fn the_extension_works_on_pi_0_87_1_too() -> Result<()> {
    let world = World::new("subagents")?;
    let old = |world: &World| {
        let launch = world.pi_docker().limit(Duration::from_secs(1800));
        launch.env("PI_DOCKER_PI_VERSION", OLD).env("PI_DOCKER_IMAGE", IMAGE)
    };
    let version = old(&world).args(["--rebuild", "--", "--version"]).run()?.expect(0)?;
    assert_eq!(version.stdout.trim(), OLD);

    let mut pi = old(&world).start_rpc()?;
    let records = pi.prompt("four")?;
    let ends: Vec<_> = records.iter().filter(|record| record["type"] == "tool_execution_end").collect();
    let of_state = |state: &str| ends.iter().filter(|end| end["result"]["details"]["state"] == state).count();
    assert_eq!((ends.len(), of_state("succeeded"), of_state("failed")), (4, 2, 1), "{ends:#?}");
    assert_eq!(evidence::pulls(&world)?.len(), 3);
    let listed = pi.command("/worktrees")?;
    assert!(["good", "also-good", "bad"].iter().all(|task| listed.contains(task)), "{listed}");
    assert!(pi.command("/cleanup-worktree also-good")?.contains("also-good: removed"));
    pi.send(&json!({ "type": "prompt", "message": "/cleanup-all" }))?;
    let asked = pi.wait("it asks", 0, |record| record["method"] == "confirm")?;
    pi.send(&json!({ "type": "extension_ui_response", "id": asked["id"], "confirmed": true }))?;
    pi.wait("it says what it did", 0, |record| {
        record["method"] == "notify" && record["message"].as_str().is_some_and(|text| text.contains("good: removed"))
    })?;
    assert_eq!(pi.finish()?, 0);
    docker::remove(&["rmi"], &[IMAGE.to_owned()]);
    Ok(())
}
