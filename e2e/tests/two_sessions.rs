//! Two sessions in one repository at once.

use anyhow::Result;
use e2e::{SOON, World, wait_until};

#[test]
fn two_sessions_in_one_repository_do_not_disturb_each_other() -> Result<()> {
    let world = World::new("tools")?;
    let first = world.pi_docker().args(["-p", "hold the first"]).start()?;
    let one = world.wait_for_session()?;
    let second = world
        .pi_docker()
        .args(["-p", "hold sh: echo still here; curl -sS -o /dev/null -w '%{http_code}' https://api.github.com/user"]);
    let mut second = second.start()?;
    wait_until("two sessions run", SOON, || Ok((world.sessions()?.len() == 2).then_some(())))?;
    second.until_asked(&world.internet, "held shell", 1)?;
    let sessions = world.sessions()?;
    let two = sessions.iter().find(|session| session.project != one.project).expect("there are two");
    assert_ne!(one.proxy, two.proxy);

    // Neither can speak to the other, and each can speak to its own proxy.
    let reach = |name: &str| two.sh(&format!("timeout 3 bash -c '</dev/tcp/{name}/3128'"));
    assert!(reach("proxy")?.0);
    assert!(!reach(&one.proxy)?.0);
    for address in one.addresses()? {
        assert!(!reach(&address)?.0, "{address}");
    }
    assert!(!two.sh(&format!("getent hosts {}", one.agent))?.0);

    // The first one ends; the second one goes on, with its proxy.
    one.signal("TERM")?;
    assert_ne!(first.finish()?.code(), 0);
    let is_gone = || Ok(world.sessions()?.iter().all(|session| session.project != one.project).then_some(()));
    wait_until("the first session is gone", SOON, is_gone)?;
    let two_goes_on =
        || two.sh("timeout 10 curl -sS -o /dev/null --cacert ~/.config/pi-docker/ca.pem https://api.github.com/user");
    assert!(two_goes_on()?.0);
    assert!(world.repo.join(".worktrees").is_dir());
    world.internet.open_gate("go on")?;
    let ran = second.finish()?.expect(0)?;
    assert!(ran.stdout.contains("still here") && ran.stdout.contains("401"), "{}", ran.stdout);
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    assert!(!world.repo.join(".worktrees").exists());
    Ok(())
}
