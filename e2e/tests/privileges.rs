//! The agent is an ordinary user of the host, without any right above that and without a secret it could read by looking around.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::Result;
use e2e::held::Held;
use e2e::{World, docker};

#[test]
fn the_agent_is_the_user_and_has_no_capability_and_no_way_to_get_one() -> Result<()> {
    let world = World::new("tools")?;
    let said = world.agent_sh(
        "id -u; id -g; id -G; grep -E '^(Cap|NoNewPrivs|Groups)' /proc/self/status; echo; sudo -n true; echo $?",
    )?;
    let lines: Vec<_> = said.lines().collect();
    let (uid, gid) = (world.user.uid.to_string(), world.user.gid.to_string());
    assert_eq!(lines[..3], [uid.as_str(), gid.as_str(), gid.as_str()], "{said}");
    let field = |name: &str| {
        let line = lines.iter().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {said}"));
        line.split_once(':').map_or("", |(_, value)| value.trim()).to_owned()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Groups"), "");
    assert!(!said.trim_end().ends_with("\n0"), "{said}");
    Ok(())
}

/// Looks for the word `$1` in everything of other processes that can be read.
const SEARCH: &str = r#"
found() { for file in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do tr '\0' '\n' <"$file" 2>/dev/null | grep -F -- "$1"; done; }
echo "key: $(found "$(printf 'sk-ant%s' -test)")"
echo "token: $(found "$(printf 'github_pat%s' _test)")"
echo "proxy: $(found http://proxy:3128 | head -n 1)"
if cat /proc/1/environ >/dev/null 2>&1; then echo "pid 1 can be read"; else echo "pid 1 cannot be read"; fi
"#;

#[test]
fn no_process_and_no_inspection_shows_a_secret() -> Result<()> {
    let world = World::new("tools")?;
    let mut run = world.pi_docker().args(["-p", &format!("hold sh: {SEARCH}")]).start()?;
    let said = run.until_asked(&world.internet, "held shell", 1)?;
    let said = said.body["text"].as_str().unwrap_or_default().to_owned();
    // What may be seen is seen: the search itself works.
    assert!(said.contains("proxy: ") && said.contains("=http://proxy:3128"), "{said}");
    assert!(said.contains("pid 1 cannot be read"), "{said}");
    assert!(said.contains("key: \n") && said.contains("token: \n"), "{said}");

    let session = world.wait_for_session()?;
    for container in [&session.agent, &session.proxy] {
        let inspected = docker::inspect(container)?.to_string();
        assert!(inspected.contains("PATH="), "{inspected}");
        assert!(!inspected.contains(&world.key) && !inspected.contains(&world.token), "{inspected}");
    }
    // PID 1 has kept the one right that it needs at the end.
    let status = fs::read_to_string(format!("/proc/{}/status", session.pid()?))?;
    for set in ["CapPrm", "CapEff"] {
        assert!(status.contains(&format!("{set}:\t{:016x}\n", 1 << 5)), "{status}");
    }
    world.internet.open_gate("go on")?;
    run.finish()?.expect(0)?;
    Ok(())
}

#[test]
fn files_belong_to_the_user_and_the_repository_has_none_it_did_not_ask_for() -> Result<()> {
    let world = World::new("tools")?;
    world.agent_sh("mkdir -p made && echo text >made/file && touch docs/notes.md")?;
    assert_eq!(world.git(["status", "--porcelain", "--ignored", "--untracked-files=all"])?, "?? made/file");
    for path in ["made", "made/file", "README.md", ".git", ".git/HEAD", ""] {
        let meta = fs::symlink_metadata(world.repo.join(path))?;
        assert_eq!((meta.uid(), meta.gid()), (world.user.uid, world.user.gid), "{path}");
    }
    assert!(!world.repo.join(".pi").exists() && !world.repo.join(".worktrees").exists());
    Ok(())
}

#[test]
fn nothing_outside_the_workspace_home_and_tmp_can_be_written() -> Result<()> {
    let world = World::new("tools")?;
    let said = world.agent_sh(
        "grep -q ' / [^ ]* ro[ ,]' /proc/mounts && echo 'root ro'
         for dir in / /usr/local/bin /etc /defaults /run /run/pi-docker /opt /workspace /home/pi /tmp; do
           if touch $dir/x 2>/dev/null; then echo \"$dir yes\"; rm $dir/x; else echo \"$dir no\"; fi
         done",
    )?;
    assert!(said.starts_with("root ro\n"), "{said}");
    for (dir, answer) in said.trim().lines().skip(1).filter_map(|line| line.split_once(' ')) {
        let writable = ["/workspace", "/home/pi", "/tmp"].contains(&dir);
        assert_eq!(answer, if writable { "yes" } else { "no" }, "{dir}");
    }
    assert_eq!(said.trim().lines().count(), 11, "{said}");
    Ok(())
}

// That the search above can fail.

#[test]
#[ignore = "long: a session with a secret in its environment"]
fn a_secret_in_the_environment_is_found_by_whoever_looks_around() -> Result<()> {
    let held = Held::altered(&[(
        "docker-compose.yml",
        "      PI_DOCKER_SESSION: ${PI_DOCKER_SESSION:-}\n",
        "      PI_DOCKER_SESSION: ${PI_DOCKER_SESSION:-}\n      LEAK: sk-ant-test-leak\n",
    )])?;
    let said = held.sh(SEARCH)?;
    assert!(said.contains("key: LEAK=sk-ant-test-leak"), "{said}");
    assert!(docker::inspect(&held.session.agent)?.to_string().contains("sk-ant-test-leak"));
    Ok(())
}
