//! What an agent leaves in the working tree for the host to trip over, and what the launcher says of it.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result};
use e2e::World;
use serde_json::Value;

fn report(world: &World) -> Result<Value> {
    let said = world.bare_pi_docker().args(["report", "--json"]).run()?.expect(0)?.stdout;
    serde_json::from_str(&said).with_context(|| said.clone())
}

#[test]
fn a_session_that_did_nothing_that_matters_ends_without_a_word() -> Result<()> {
    let world = World::new("tools")?;
    world.write(".envrc", "export A=1\n")?;
    world.write("package.json", "{}\n")?;
    assert!(
        world
            .bare_pi_docker()
            .arg("report")
            .run()?
            .expect(1)?
            .stderr
            .contains("no session of this repository has ended yet")
    );
    let ran = world.pi_docker().args(["-p", "sh: echo text >README.md; cat .envrc package.json"]).run()?.expect(0)?;
    // What the launcher may have to say of its images or of a newer pi is not about the session.
    for word in ["changed", "run by tools", "name outside", "refused:", "not all of it"] {
        assert!(!ran.stderr.contains(word), "{}", ran.stderr);
    }
    let report = report(&world)?;
    assert_eq!(report["refused"].as_array().map(Vec::len), Some(0), "{report}");
    assert_eq!(report["complete"], true);
    Ok(())
}

#[test]
fn what_tools_on_the_host_would_run_is_named_at_the_end_with_hosts_bytes_and_commits() -> Result<()> {
    let world = World::new("tools")?;
    world.write("Makefile", "all:\n")?;
    world.write("sub/package.json", "{}\n")?;
    world.write(".idea/kept.xml", "<x/>\n")?;
    let script = r#"
        echo 'touch /tmp/ran' >.envrc; mkdir -p .vscode .github/workflows sub/.husky
        echo '{}' >.vscode/tasks.json; echo 'on: push' >.github/workflows/$'ci\e]52;c;eA==\a.yml'
        echo x >sub/.husky/pre-commit; echo '{"scripts":{"preinstall":"x"}}' >sub/package.json
        ln -s /etc/passwd .mcp.json; mkdir other && mv other .claude
        touch -d '2001-01-01' .envrc
        head -c 300000 /dev/zero | curl -sS -o /dev/null --cacert ~/.config/pi-docker/ca.pem --data-binary @- https://drop.npmjs.org/ || echo failed
        curl -sS -o /dev/null https://refused.example/ || true
        git add sub && git commit --quiet -m 'work'
    "#;
    let ran = world.pi_docker().args(["-p", &format!("sh: {script}")]).run()?.expect(0)?;
    assert!(!ran.stdout.contains("failed"), "{}", ran.stdout);
    let report = report(&world)?;
    let files: Vec<&str> =
        report["host_files"].as_array().context("no files")?.iter().filter_map(Value::as_str).collect();
    let expected = [
        ".claude/",
        ".envrc",
        ".github/workflows/ci\u{1b}]52;c;eA==\u{7}.yml",
        ".mcp.json",
        ".vscode/tasks.json",
        "sub/.husky/pre-commit",
        "sub/package.json",
    ];
    assert_eq!(files, expected);
    let host = |name: &str| {
        let mut hosts = report["hosts"].as_array().into_iter().flatten();
        hosts.find(|&host| host["host"] == name).cloned().with_context(|| format!("no {name} in {report}"))
    };
    let sent = host("drop.npmjs.org")?["sent"].as_u64().unwrap_or(0);
    assert!((300_000..330_000).contains(&sent), "{report}");
    assert!(host("api.anthropic.com")?["received"].as_u64() > Some(0), "{report}");
    assert_eq!(report["refused"][0]["host"], "refused.example", "{report}");
    assert!(report["commits"].to_string().contains("branch 'main' went from"), "{report}");

    // What is said of it is short, and steers no terminal.
    let lines: Vec<&str> =
        ran.stderr.lines().filter(|line| line.contains("run by tools") || line.contains("refused:")).collect();
    assert_eq!(lines.len(), 2, "{}", ran.stderr);
    assert!(lines[0].contains(".envrc") && lines[0].ends_with("and 1 more"), "{}", lines[0]);
    let shown = world.bare_pi_docker().arg("report").run()?.expect(0)?.stdout + &ran.stderr;
    assert!(shown.contains("ci?]52;c;eA==?.yml") && shown.contains("drop.npmjs.org"), "{shown}");
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
    Ok(())
}

#[test]
fn a_file_that_is_also_outside_of_the_repository_is_named_when_it_has_changed() -> Result<()> {
    let world = World::new("tools")?;
    let outside = world.path("outside");
    fs::write(&outside, "mine\n")?;
    world.user.own(&outside)?;
    fs::hard_link(&outside, world.repo.join("shared"))?;
    let run = |script: &str| world.pi_docker().args(["-p", &format!("sh: {script}")]).run()?.expect(0);
    let read = run("cat shared; echo x >one; ln one two")?;
    assert!(!read.stderr.contains("name outside"), "{}", read.stderr);
    let written = run("echo theirs >shared")?;
    assert_eq!(fs::read_to_string(&outside)?, "theirs\n", "a hard link is the file itself");
    assert!(written.stderr.contains("also has a name outside of the repository: shared"), "{}", written.stderr);
    Ok(())
}

/// G11: whatever the launcher could write in a repository is a link of the agent's.
#[test]
fn the_launcher_writes_nothing_through_links_that_an_agent_has_left() -> Result<()> {
    let world = World::new("tools")?;
    let victim = world.path("victim");
    fs::create_dir(&victim)?;
    fs::write(victim.join("file"), "kept\n")?;
    world.user.own(&victim)?;
    let file = victim.join("file").display().to_string();
    let plant = format!(
        "sh: for name in .gitignore .gitattributes .pi .envrc AGENTS.md; do rm -rf $name; ln -s {file} $name; done
         ln -s {} .vscode; ln -s /workspace/.. up; rm -rf docs; ln -s {} docs; ls -l .gitignore",
        victim.display(),
        victim.display()
    );
    let said = world.pi_docker().args(["-p", &plant]).run()?.expect(0)?.stdout;
    assert!(said.contains("-> "), "{said}");
    // Where the agent could not put one: the folders that mounts are made on.
    symlink(&victim, world.repo.join(".worktrees"))?;
    let _ = world.pi_docker().args(["-p", "sh: git status --short >/dev/null; echo x >y"]).run()?;
    fs::remove_file(world.repo.join(".worktrees"))?;
    let again = world.pi_docker().args(["-p", "sh: echo again"]).run()?.expect(0)?;
    assert_eq!(again.stdout.trim(), "again");
    let left: Vec<_> = fs::read_dir(&victim)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    assert_eq!(left, ["file"]);
    assert_eq!(fs::read_to_string(victim.join("file"))?, "kept\n");
    for name in [".gitignore", ".pi", "docs"] {
        assert!(world.repo.join(name).is_symlink(), "{name}");
    }
    Ok(())
}
