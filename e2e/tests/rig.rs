//! The rig itself: what the other tests take for granted of it.

use anyhow::Result;
use e2e::World;
use e2e::docker::docker;
use e2e::internet::IMAGE;

#[test]
fn the_internet_is_there_under_its_names_and_says_what_it_was_asked() -> Result<()> {
    let world = World::new("tools")?;
    let ca = format!("--volume={}:/ca.pem:ro", world.path("ca.pem").display());
    let git = |url: &str| {
        let (network, dns) = (world.internet.network(), world.internet.address.as_str());
        let run = ["run", "--rm", "--network", network, "--dns", dns, &ca, "--env", "GIT_SSL_CAINFO=/ca.pem"];
        docker(run.into_iter().chain([IMAGE, "git", "ls-remote", url]))
    };
    let refs = git(&format!("https://x:{}@github.com/octo/app", world.token))?;
    assert!(refs.contains("refs/heads/main"), "{refs}");
    assert!(git("https://x:wrong@github.com/octo/app").is_err());
    assert!(git("https://stranger.example/octo/app").is_err());

    let strays = world.internet.strays()?;
    assert!(strays.iter().any(|stray| stray.method == "DNS" && stray.host == "stranger.example"), "{strays:?}");
    assert!(strays.iter().any(|stray| stray.status == 418 && stray.host == "stranger.example"), "{strays:?}");
    let github = world.internet.requests_to("github.com")?;
    assert!(github.iter().any(|request| request.auth == "token ok" && request.status == 200), "{github:?}");
    assert!(github.iter().any(|request| request.auth == "wrong" && request.status == 401), "{github:?}");
    Ok(())
}
