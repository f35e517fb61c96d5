//! The allowlist while a session runs: a refusal is seen as it happens with the command that lifts it, and that command is in
//! force when it returns. The session goes on through all of it.

use std::fs;

use anyhow::{Context, Result};
use e2e::docker::docker;
use e2e::launch::{Launch, Running};
use e2e::session::Session;
use e2e::{Ran, SOON, World, wait_until};
use serde_json::json;

/// A session that waits for its model, and a shell beside it in the same container.
struct Held {
    run: Running,
    session: Session,
    world: World,
}

impl Held {
    fn new() -> Result<Self> {
        let world = World::new("tools")?;
        let mut run = world.pi_docker().args(["-p", "hold"]).start()?;
        run.until_asked(&world.internet, "hold", 0)?;
        let session = world.wait_for_session()?;
        Ok(Self { run, session, world })
    }

    /// What a host answers the agent: the status, 0 if it is not let through.
    fn status(&self, host: &str) -> Result<u16> {
        self.curl(&format!("https://{host}/"))
    }

    fn curl(&self, args: &str) -> Result<u16> {
        let ca = "--cacert /home/pi/.config/pi-docker/ca.pem";
        let (_, said) = self
            .session
            .sh(&format!("curl -sS --max-time 8 {ca} -o /dev/null -w '%{{http_code}}' {args} 2>/dev/null"))?;
        said.trim().parse().with_context(|| format!("curl {args} said '{said}'"))
    }

    fn own(&self, words: &[&str]) -> Launch {
        self.world.bare_pi_docker().args(words)
    }

    fn run(&self, words: &[&str]) -> Result<Ran> {
        self.own(words).run()
    }

    /// The session is what it was: pi answers, and ends well.
    fn goes_on(self) -> Result<World> {
        self.world.internet.open_gate("go on")?;
        let ran = self.run.finish()?.expect(0)?;
        assert_eq!(ran.stdout.trim(), "let go");
        Ok(self.world)
    }
}

#[test]
fn a_refusal_is_shown_as_it_happens_and_its_command_is_in_force_when_it_returns() -> Result<()> {
    let held = Held::new()?;
    let follow = held.own(&["denied", "-f"]).start_on_terminal()?;
    // The follower begins at some moment after it was started: the agent goes on asking.
    let shown = || -> Result<Option<()>> {
        assert_eq!(held.status("new.example")?, 0);
        Ok(follow.screen().contains("pi-docker allow new.example").then_some(()))
    };
    wait_until("the refusal is shown", SOON, shown)?;
    let ran = held.run(&["allow", "new.example"])?.expect(0)?;
    assert!(ran.stderr.contains(&format!("in force in {}", held.session.project)), "{}", ran.stderr);
    assert_eq!(held.status("new.example")?, 418);
    assert_eq!(held.status("other.example")?, 0);
    // Whoever follows goes on following when a removal has restarted the proxy.
    held.run(&["allow", "--remove", "new.example"])?.expect(0)?;
    let again = || -> Result<Option<()>> {
        assert_eq!(held.status("new.example")?, 0);
        Ok((follow.screen().matches("pi-docker allow new.example").count() > 1).then_some(()))
    };
    wait_until("the next refusal is shown", SOON, again)?;
    drop(follow);

    // By host, also when the session is over.
    let denied = held.run(&["denied"])?.expect(0)?.stdout;
    let line = denied.lines().find(|line| line.starts_with("other.example")).context("it is not listed")?;
    assert!(line.contains("1×") && line.ends_with("→ pi-docker allow other.example"), "{line}");
    let world = held.goes_on()?;
    let after = world.bare_pi_docker().arg("denied").run()?.expect(0)?.stdout;
    assert!(after.contains("pi-docker allow other.example"), "{after}");
    let follow = world.bare_pi_docker().args(["denied", "-f"]).run()?.expect(1)?;
    assert!(follow.stderr.contains("no session of this repository is running"), "{}", follow.stderr);
    Ok(())
}

#[test]
fn a_removed_host_is_cut_off_at_once_also_where_it_is_connected() -> Result<()> {
    let mut held = Held::new()?;
    assert_eq!(held.status("api.github.com")?, 401);
    held.world.change_scenario(|scenario| {
        scenario["github"]["faults"] =
            json!([{ "host": "api.github.com", "path": "/slow", "times": 100, "reply": "stall" }]);
    })?;
    let session = held.session.clone();
    let open = std::thread::spawn(move || {
        session.sh(
            "curl -sS --max-time 120 --cacert ~/.config/pi-docker/ca.pem https://api.github.com/slow; echo ended $?",
        )
    });
    let asked = || Ok(held.world.internet.requests()?.iter().any(|request| request.path == "/slow").then_some(()));
    wait_until("the tunnel is open", SOON, asked)?;
    held.run(&["allow", "--remove", "api.github.com"])?.expect(0)?;
    let (_, said) = open.join().expect("curl was asked")?;
    // 28 would be curl's own patience.
    assert!(said.contains("ended ") && !said.contains("ended 28"), "{said}");
    assert_eq!(held.status("api.github.com")?, 0);
    assert_eq!(held.curl("'https://github.com/octo/app/info/refs?service=git-upload-pack'")?, 401);
    held.run(&["allow", "api.github.com"])?.expect(0)?;
    assert_eq!(held.status("api.github.com")?, 401);
    held.goes_on().map(drop)
}

#[test]
fn a_host_that_is_allowed_here_is_allowed_nowhere_else() -> Result<()> {
    let held = Held::new()?;
    let there = held.world.path("another");
    held.world.git_in_home(&["init", "--quiet", &there.display().to_string()])?;
    held.run(&["allow", "--here", ".new.example"])?.expect(0)?;
    assert_eq!(held.status("deep.new.example")?, 418);
    let list = |launch: Launch| -> Result<String> { Ok(launch.run()?.expect(0)?.stdout) };
    assert!(list(held.own(&["allow", "--list"]))?.lines().any(|line| line == ".new.example"));
    assert!(!list(held.own(&["allow", "--list"]).within(&there))?.contains("new.example"));

    // A removal in the wrong place says which is the right one.
    let ran = held.run(&["allow", "--remove", ".new.example"])?.expect(1)?;
    assert!(ran.stderr.contains("hint: pi-docker allow --remove --here .new.example"), "{}", ran.stderr);
    assert_eq!(held.status("deep.new.example")?, 418);
    held.run(&["allow", "--remove", "--here", ".new.example"])?.expect(0)?;
    assert_eq!(held.status("deep.new.example")?, 0);

    // Outside of a repository there is no here; and no file of the repository can widen the list.
    assert!(
        held.own(&["allow", "--here", "x.example"])
            .within(held.world.home())
            .run()?
            .stderr
            .contains("not inside a git")
    );
    for name in ["allow.txt", ".pi/allow.txt", ".pi-docker/allow.txt", "config.toml"] {
        held.world.write(name, "planted.example\n")?;
    }
    assert!(!list(held.own(&["allow", "--list"]))?.contains("planted"));
    held.goes_on().map(drop)
}

#[test]
fn a_list_that_cannot_be_is_refused_and_the_one_in_force_stays() -> Result<()> {
    let held = Held::new()?;
    let lists = || -> Result<(String, String)> {
        let home = held.world.install_dir();
        let run = held.world.run_dirs()?.pop().context("no session")?;
        Ok((
            fs::read_to_string(home.join("allow.txt")).unwrap_or_default(),
            fs::read_to_string(run.join("squid/allow.txt"))?,
        ))
    };
    held.run(&["allow", "good.example"])?.expect(0)?;
    let before = lists()?;
    for bad in [
        "com",
        "*",
        "10.0.0.1",
        "https://x.example",
        "x.example:8443",
        ".co.uk",
        "a b",
        "größe.example",
        "x.example\ny",
    ] {
        let ran = held.run(&["allow", "fine.example", bad])?.expect(1)?;
        assert!(ran.stderr.starts_with("pi-docker: cannot allow '"), "{bad:?}: {}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
    assert_eq!(lists()?, before);

    // A list that was spoilt by hand is named with its line; squid itself is asked before anything takes its place.
    let file = held.world.install_dir().join("allow.txt");
    fs::write(&file, format!("{}http://oops\n", before.0))?;
    let ran = held.run(&["allow", "more.example"])?.expect(1)?;
    assert!(ran.stderr.contains("allow.txt', line 2"), "{}", ran.stderr);
    fs::write(&file, &before.0)?;
    let conf = held.world.install_dir().join("squid.conf");
    let good = fs::read_to_string(&conf)?;
    fs::write(&conf, format!("{good}no_such_directive on\nacl x nonsense y\n"))?;
    let ran = held.run(&["allow", "more.example"])?.expect(1)?;
    assert!(ran.stderr.contains("squid refuses the list"), "{}", ran.stderr);
    assert_eq!(lists()?.1, before.1);
    fs::write(&conf, good)?;
    assert_eq!((held.status("good.example")?, held.status("more.example")?), (418, 0));
    // The proxy is the one that was there from the beginning.
    assert_eq!(docker(["inspect", "--format", "{{.RestartCount}}", &held.session.proxy])?.trim(), "0");
    held.goes_on().map(drop)
}
