//! What an agent would try against its own container, the engine and the launcher: logs, limits, rights, names. Every refusal beside
//! the same thing where it is allowed; the proofs that each can fail are at the end, with `--long`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use e2e::docker::{docker, inspect, try_docker};
use e2e::held::{Change, Held, altered};
use e2e::{SOON, World, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// S2: what the agent's own terminal shows, in the engine's log.
const PRINT: &str = "printf 'tran%s\\n' script >/proc/$(pgrep -o -P 1)/fd/1";

#[test]
fn what_the_agent_prints_is_in_no_log_of_the_engine() -> Result<()> {
    let held = Held::shared()?;
    held.sh(PRINT)?;
    assert_eq!(held.curl("https://api.github.com/user")?, 401);
    held.squid_says("a line, which is in a log", |line| line.ends_with("api.github.com:443"))?;
    let (_, said) = try_docker(["logs", &held.session.agent])?;
    assert!(!said.contains("transcript") && said.contains("does not support reading"), "{said}");
    Ok(())
}

/// S4: a session with little of everything.
fn small(changes: &[Change]) -> Result<Held> {
    let world = if changes.is_empty() { World::new("tools")? } else { altered("tools", changes)? };
    let launch = world.pi_docker();
    let limits = [("PI_DOCKER_MEMORY", "700m"), ("PI_DOCKER_PIDS", "150"), ("PI_DOCKER_TMP_SIZE", "32m")];
    Held::started(world, limits.into_iter().fold(launch, |launch, (name, value)| launch.env(name, value)))
}

/// How many processes can be had, of 300 that are asked for.
const FORKS: &str = "perl -e 'while (@p < 300 && defined(my $p = fork)) { if (!$p) { sleep 60; exit } push @p, $p }
                     print scalar @p; kill 9, @p; waitpid($_, 0) for @p'";
/// Fills the memory; the exit status.
const HOG: &str = "perl -e 'my $x = \"a\" x ($ARGV[0] << 20); print length $x' MIB >/dev/null 2>&1; echo $?";
/// Dies in the workspace with a core, if there may be one: the limit, the exit status, and what it leaves.
const CORE: &str = "cd /workspace && ulimit -c unlimited 2>/dev/null; ulimit -Hc; bash -c 'kill -SEGV $$'; echo $?; ls | grep -c '^core'";

#[test]
fn an_agent_that_takes_all_it_can_is_held_at_its_limits_and_the_session_goes_on() -> Result<()> {
    let held = small(&[])?;
    let forks: u32 = held.sh(FORKS)?.trim().parse()?;
    assert!((20..150).contains(&forks), "{forks}");
    assert!(held.sh(&HOG.replace("MIB", "32"))?.starts_with('0'));
    assert!(held.sh(&HOG.replace("MIB", "2000"))?.starts_with("137"));
    assert!(held.can("head -c 16M /dev/zero >/tmp/some")?);
    let (filled, said) = held.session.sh("head -c 64M /dev/zero >/tmp/much")?;
    assert!(!filled && said.contains("No space left"), "{said}");
    let core = held.session.sh(CORE)?.1;
    assert_eq!(core.split_whitespace().take(3).collect::<Vec<_>>(), ["0", "139", "0"], "{core}");
    let host = inspect(&held.session.agent)?["HostConfig"].clone();
    assert_eq!(host["MemorySwap"], host["Memory"], "no swap");
    assert_eq!(held.curl("https://api.github.com/user")?, 401, "the session goes on");
    Ok(())
}

/// S5: more rights than it was given.
const RISE: &str =
    "unshare -U true 2>&1; mount -t tmpfs none /tmp 2>&1; chroot /tmp true 2>&1; find / -name docker.sock 2>/dev/null";

#[test]
fn there_is_no_way_to_more_rights_in_the_container() -> Result<()> {
    let held = Held::shared()?;
    let said = held.session.sh(RISE)?.1;
    assert!(said.contains("unshare failed: Operation not permitted"), "{said}");
    assert!(said.contains("chroot: cannot change root directory"), "{said}");
    assert!(!said.contains("docker.sock"), "{said}");
    // What looks for such programs finds some where there are some: one of the agent's own, on a file system that ignores it.
    let find = "find / -xdev -type f -perm /6000 2>/dev/null";
    assert_eq!(held.session.sh(find)?.1, "");
    held.sh("cp /usr/bin/id /tmp/id && chmod 6755 /tmp/id")?;
    assert_eq!(held.session.sh("find /tmp -perm /6000")?.1.trim(), "/tmp/id");
    assert!(held.sh("grep ' /tmp ' /proc/mounts")?.contains("nosuid"));
    assert!(held.sh("grep ' /home/pi ' /proc/mounts")?.contains("nosuid"));
    Ok(())
}

/// The end of a session, and what it wipes, wait for PID 1: it has the user's effective id, which is what most of these ask for.
#[test]
fn nobody_in_the_container_slows_pid_1_down_or_stops_it() -> Result<()> {
    let held = Held::shared()?;
    for way in [
        "renice -n 19 -p",
        "chrt --idle -p 0",
        "taskset -p 1",
        "prlimit --nofile=3 --pid",
        "ionice -c 3 -p",
        "kill -STOP",
        "kill -TERM",
    ] {
        let own = held.session.sh(&format!("sleep 60 & {way} $!; done=$?; kill -KILL $!; exit $done"))?;
        assert!(own.0, "{way}: {}", own.1);
        let (done, said) = held.session.sh(&format!("{way} 1"))?;
        assert!(!done && said.to_lowercase().contains("not permitted"), "{way}: {said}");
    }
    for file in ["oom_score_adj", "mem", "fd", "environ", "cwd/."] {
        assert!(!held.can(&format!("ls -l /proc/1/{file} >/dev/null && echo 0 >/proc/1/{file}"))?, "{file}");
    }
    assert_eq!(held.curl("https://api.github.com/user")?, 401, "the session goes on");
    Ok(())
}

#[test]
fn the_images_have_no_program_that_raises_rights_and_nothing_that_anybody_may_write() -> Result<()> {
    let held = Held::shared()?;
    for container in [&held.session.agent, &held.session.proxy] {
        let image = inspect(container)?["Config"]["Image"].as_str().context("no image")?.to_owned();
        // Without the walls of a session: a root that can be written, and a user that is nobody.
        let find = |user: &str, test: &str| {
            let script = format!("find / -xdev {test} -not -path '/proc/*' -not -path '/dev/*' 2>/dev/null; true");
            docker(["run", "--rm", "--network", "none", "--user", user, "--entrypoint", "sh", &image, "-c", &script])
        };
        assert_eq!(find("0:0", "-type f -perm /6000")?, "", "{image}");
        assert!(find("0:0", "-type f -perm /0100")?.contains("/bin/bash"), "{image}");
        let writable = find("4711:4711", "-writable -not -type l")?;
        // Covered by a tmpfs in a session.
        let may = if *container == held.session.agent { "/tmp" } else { "" };
        assert_eq!(writable.trim(), may, "{image}");
    }
    Ok(())
}

#[test]
fn in_a_session_nothing_can_be_written_but_the_workspace_and_what_is_on_tmpfs_or_the_users_own() -> Result<()> {
    let held = Held::shared()?;
    let script = "find / -xdev -writable -not -type l 2>/dev/null; awk '$4 ~ /^rw/ { print $2, $3 }' /proc/mounts | while read -r dir kind; do
                    if [ -w \"$dir\" ]; then echo \"$dir $kind\"; fi; done";
    let said = held.sh(script)?;
    let may = |line: &str| {
        let place = line.split(' ').next().unwrap_or_default();
        let shared = ["/workspace", "/home/pi", "/tmp", "/dev", "/proc"];
        shared
            .iter()
            .any(|known| place == *known || place.strip_prefix(known).is_some_and(|rest| rest.starts_with('/')))
    };
    assert!(said.lines().any(|line| line.starts_with("/tmp tmpfs")), "{said}");
    assert!(said.lines().all(may), "{said}");
    Ok(())
}

/// Where the pins of a version and its packages are.
const PINS: &str = include_str!("../../image/pi-packages.sha512");

#[test]
fn pi_and_its_packages_are_pinned_by_their_content() -> Result<()> {
    let pins: Vec<(&str, &str)> = PINS.lines().filter_map(|line| line.split_once(' ')).collect();
    for (package, sum) in &pins {
        assert!(sum.strip_prefix("sha512-").is_some_and(|sum| sum.len() == 88), "{package}");
    }
    let version = |text: &str, before: &str| -> Result<String> {
        let rest = text.split_once(before).with_context(|| format!("no '{before}'"))?.1;
        Ok(rest.split(|c: char| c != '.' && !c.is_ascii_digit()).next().unwrap_or_default().to_owned())
    };
    let built = version(include_str!("../../Dockerfile"), "ARG PI_VERSION=")?;
    assert_eq!(built, version(include_str!("../../docker-compose.yml"), "PI_DOCKER_PI_VERSION:-")?);
    let pi = format!("@earendil-works/pi-coding-agent@{built}");
    assert!(pins.iter().any(|(package, _)| *package == pi), "'{pi}' has no pin");
    // What is in the image is what the pins are of, and nothing else.
    let held = Held::shared()?;
    let installed = held.sh("cd /opt/pi && node -p 'require(\"./package.json\").version'; find node_modules -name package.json -maxdepth 3 | sort")?;
    assert_eq!(installed.lines().next(), Some(built.as_str()));
    for path in installed.lines().skip(1) {
        let name = path.trim_start_matches("node_modules/").trim_end_matches("/package.json");
        assert!(
            pins.iter().any(|(package, _)| package.rsplit_once('@').is_some_and(|(known, _)| known == name)),
            "{path}"
        );
    }
    Ok(())
}

/// S6: a repository whose name and files are for docker to stumble over.
const NAME: &str = "a:b ${HOME} $(x) 'q' \"r\", {{.}}";
const HOSTILE: &str = "services:\n  pi:\n    privileged: true\n    environment:\n      EVIL: '1'\n";

fn hostile(world: &World) -> Result<PathBuf> {
    let root = world.path(NAME);
    fs::create_dir(&root)?;
    for file in ["docker-compose.yml", "docker-compose.override.yml", "compose.yaml"] {
        fs::write(root.join(file), HOSTILE)?;
    }
    fs::write(
        root.join(".env"),
        "PI_DOCKER_IMAGE=evil\nCOMPOSE_FILE=docker-compose.yml\nHTTPS_PROXY=http://evil.example\n",
    )?;
    fs::create_dir(root.join(".git"))?;
    for folder in ["objects", "refs"] {
        fs::create_dir(root.join(".git").join(folder))?;
    }
    fs::write(root.join(".git/HEAD"), "ref: refs/heads/main\n")?;
    world.user.own(&root)?;
    Ok(root)
}

#[test]
fn neither_a_repositorys_name_nor_its_files_nor_variables_change_what_docker_is_told() -> Result<()> {
    let world = World::new("tools")?;
    let root = hostile(&world)?;
    let script = "sh: echo made >made; env | grep -c EVIL; env | grep -i evil.example; grep CapBnd /proc/self/status";
    let run = world.pi_docker().within(&root).env("COMPOSE_FILE", root.join("docker-compose.yml"));
    let run = run
        .env("COMPOSE_PROJECT_NAME", "evil")
        .env("COMPOSE_PROFILES", "evil")
        .env("COMPOSE_ENV_FILES", root.join(".env"));
    let said = run.args(["-p", script]).run()?.expect(0)?.stdout;
    assert!(said.starts_with("0\nCapBnd:\t0000000000000000"), "{said}");
    assert_eq!(fs::read_to_string(root.join("made"))?, "made\n");
    Ok(())
}

#[test]
fn a_subagents_name_is_a_word_and_its_instructions_are_nobody_elses_to_read() -> Result<()> {
    let held = Held::shared()?;
    // With the environment that pi has.
    let spawn = "while IFS= read -r -d '' set; do export \"$set\"; done </proc/$(pgrep -o -P 1)/environ
                 cd /workspace && printf 'pri%s: do one thing\\n' vate >/tmp/instructions &&
                 pi-subagent spawn --pr none --instructions-file /tmp/instructions --task";
    for name in [
        "a/b",
        "../x",
        "$(touch /tmp/ran)",
        "`touch /tmp/ran`",
        "a;touch /tmp/ran",
        "-x",
        "A",
        "a b",
        "",
        ".",
        &"a".repeat(99),
    ] {
        let (spawned, said) = held.session.sh(&format!("{spawn} '{name}'"))?;
        assert!(!spawned, "'{name}': {said}");
    }
    assert!(!held.can("ls /tmp/ran")?);
    assert_eq!(held.sh("ls /workspace/.worktrees")?, "");
    // A good one starts, and nobody sees what it was told.
    let said = held.sh(&format!(
        "({spawn} good >/tmp/spawned 2>&1; touch /tmp/ended) & until [ -e /tmp/ended ]; do
           cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o -e 'pri[v]ate' -e 'pi --[a-z]*' ; sleep 0.1
         done | sort -u; ls /workspace/.worktrees"
    ))?;
    assert!(said.contains("good") && !said.contains("private"), "{said} {}", held.sh("cat /tmp/spawned")?);
    Ok(())
}

/// S10: a folder and a branch that would write the clipboard, colour the terminal and turn the line round for whoever reads their names.
const FOLDER: &str = "app\u{1b}]52;c;eA==\u{7}\u{9b}31m\u{202e}";
const BRANCH: &str = "branch\u{9b}31m";

#[test]
fn names_that_would_steer_the_terminal_are_shown_without_what_does_it() -> Result<()> {
    let world = World::new("tools")?;
    let root = world.path(FOLDER);
    fs::rename(&world.repo, &root)?;
    let git =
        |args: &[&str]| world.git(["-C", root.to_str().unwrap_or_default()].into_iter().chain(args.iter().copied()));
    fs::create_dir(&world.repo)?;
    git(&["switch", "--quiet", "--create", BRANCH])?;
    for args in [&["--dry-run"][..], &["-p", "hello"]] {
        let ran = world.pi_docker().within(&root).args(args).run()?.expect(0)?;
        let shown = ran.stderr + &ran.stdout;
        assert!(shown.contains("app?]52;c;eA==??31m?") && shown.contains("branch?31m"), "{shown:?}");
        assert!(!shown.chars().any(|c| c == '\u{202e}' || c.is_control() && c != '\n'), "{shown:?}");
    }
    Ok(())
}

// That the tests above can fail: each wall is taken away, and the same attempt succeeds.

#[test]
#[ignore = "long: a session without the wall"]
fn with_a_log_driver_the_engine_keeps_what_the_agent_prints() -> Result<()> {
    let held = Held::altered(&[("docker-compose.yml", "driver: none", "driver: json-file")])?;
    held.sh(PRINT)?;
    wait_until("the engine has it", SOON, || {
        Ok(try_docker(["logs", &held.session.agent])?.1.contains("transcript").then_some(()))
    })
}

#[test]
#[ignore = "long: a session without the wall"]
fn without_the_limits_an_agent_takes_more() -> Result<()> {
    let held = small(&[
        ("docker-compose.yml", "pids_limit: ${PI_DOCKER_PIDS:-512}", "pids_limit: -1"),
        ("docker-compose.yml", "mem_limit: ${PI_DOCKER_MEMORY:-4g}", "mem_limit: 4g"),
        ("docker-compose.yml", "memswap_limit: ${PI_DOCKER_MEMORY:-4g}", "memswap_limit: 4g"),
        ("docker-compose.yml", "size=${PI_DOCKER_TMP_SIZE:-2g}", "size=256m"),
        ("docker-compose.yml", "      core: 0\n    mem_limit: 4g", "      core: -1\n    mem_limit: 4g"),
    ])?;
    assert_eq!(held.sh(FORKS)?.trim(), "300");
    assert!(held.sh(&HOG.replace("MIB", "2000"))?.starts_with('0'));
    assert!(held.can("head -c 64M /dev/zero >/tmp/much")?);
    assert_ne!(held.session.sh(CORE)?.1.lines().next(), Some("0"));
    Ok(())
}

#[test]
#[ignore = "long: a session without the wall"]
fn without_the_filter_of_system_calls_namespaces_can_be_had() -> Result<()> {
    let open = "security_opt: [\"no-new-privileges:true\", \"seccomp=unconfined\"]\n    read_only: true\n    tmpfs";
    let held = Held::altered(&[(
        "docker-compose.yml",
        "security_opt: [\"no-new-privileges:true\"]\n    read_only: true\n    tmpfs",
        open,
    )])?;
    let said = held.session.sh(RISE)?.1;
    assert!(!said.contains("unshare failed"), "{said}");
    Ok(())
}

#[test]
#[ignore = "long: a session without the wall"]
fn with_a_root_that_can_be_written_root_in_the_image_could_have_left_a_door() -> Result<()> {
    let held = Held::altered(&[("docker-compose.yml", "    read_only: true\n    tmpfs:", "    tmpfs:")])?;
    let image: Value = inspect(&held.session.agent)?;
    assert_eq!(image["HostConfig"]["ReadonlyRootfs"], false);
    let root = ["exec", "--user", "0:0", &held.session.agent, "touch", "/etc/x"];
    assert!(try_docker(root)?.0);
    let held = Held::new()?;
    let root = ["exec", "--user", "0:0", &held.session.agent, "touch", "/etc/x"];
    assert!(!try_docker(root)?.0);
    Ok(())
}

#[test]
#[ignore = "long: docker without the wall"]
fn in_dockers_short_form_such_a_name_mounts_something_else_or_nothing() -> Result<()> {
    let world = World::new("tools")?;
    let root = hostile(&world)?;
    let short = format!("{}:/workspace", root.display());
    let (ran, said) = try_docker(["run", "--rm", "-v", &short, e2e::internet::IMAGE, "ls", "/workspace"])?;
    assert!(!ran || !said.contains("compose.yaml"), "{said}");
    Ok(())
}

#[test]
#[ignore = "long: a session without the wall"]
fn without_the_heartbeat_a_session_outlives_its_launcher() -> Result<()> {
    let world = World::new("tools")?;
    let mut run = world.pi_docker().env("PI_DOCKER_HEARTBEAT", "0").args(["-p", "hold"]).start()?;
    run.until_asked(&world.internet, "hold", 0)?;
    world.wait_for_session()?;
    run.signal(Signal::SIGKILL)?;
    wait_until("the launcher is dead", SOON, || Ok(run.has_ended()?.then_some(())))?;
    // Longer than it takes with the heartbeat that ends.rs has.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(15);
    while std::time::Instant::now() < end {
        assert!(!world.sessions()?.is_empty());
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    world.pi_docker().args(["-p", "hello"]).run()?.expect(0)?;
    Ok(())
}

#[test]
#[ignore = "long: asks the registry of npm packages"]
fn a_package_that_is_not_the_pinned_one_is_not_installed() -> Result<()> {
    let world = World::new("tools")?;
    let image = std::env::var("PI_DOCKER_IMAGE").unwrap_or_else(|_| "pi-docker-agent:latest".into());
    let scripts = format!("--volume={}:/image:ro", world.install_dir().join("image").display());
    let ca = format!("--volume={}:/ca.pem:ro", world.path("ca.pem").display());
    let install = |integrity: &str| {
        let script = format!("rm -rf /opt/pi /usr/local/bin/pi; /image/install-pi 1.5.2 {integrity}");
        try_docker([
            "run",
            "--rm",
            "--user",
            "0",
            &scripts,
            &ca,
            "-e",
            "NODE_EXTRA_CA_CERTS=/ca.pem",
            "--entrypoint",
            "bash",
            &image,
            "-c",
            &script,
        ])
    };
    let (installed, said) = install("sha512-AAAA")?;
    assert!(!installed && said.contains("is not the pinned package"), "{said}");
    let (installed, said) = install("")?;
    assert!(installed, "{said}");
    Ok(())
}
