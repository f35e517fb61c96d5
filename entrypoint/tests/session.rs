//! What a session finds when pi starts, and what is left of it at the end.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test starts programs, and fails by panicking")]

mod common;

use std::net::{TcpListener, UdpSocket};

use common::{Case, Finished, LOGIN};

/// Every file below the home directory as `mode owner path`, one per line, then what is asked for.
const FILES: &str = "cd; find . -path ./.pi/agent/sessions -prune -o -type f -printf '%m %U:%G %p\\n' | sort";

#[test]
fn pi_runs_as_the_user_with_its_arguments_and_its_exit_status_comes_back() {
    let words = ["printf", "%s|", "a b", "", "it's", "\"q\"", "line\nbreak", "--flag", "-p", "ü$HOME"];
    let ended = Case::session().run(&words);
    assert_eq!(ended.stdout, "a b||it's|\"q\"|line\nbreak|--flag|-p|ü$HOME|");
    assert_eq!(ended.ending(), (0, "exited".into(), "wiped".into()));
    for code in [1, 2, 42, 120, 126, 127, 255] {
        let ended = Case::session().run_script(&format!("exit {code}"));
        assert_eq!(ended.ending(), (code, "exited".into(), "wiped".into()));
    }
}

#[test]
fn the_launcher_is_told_when_pi_starts_and_not_before() {
    let ended = Case::session().run_script("echo started");
    assert_eq!(ended.read("control/ready").trim(), r#"{"pid1": "ready"}"#);
    let ended = Case::session().env("PI_DOCKER_UID", "0").run_script("echo started");
    assert_eq!((ended.code, ended.stdout.as_str(), ended.read("control/ready").as_str()), (120, "", ""));
}

#[test]
fn credentials_are_private_files_of_the_user_and_in_no_variable() {
    let case = Case::session()
        .with("in/secrets.json", r#"{"github": {"host": "ghe.example", "token": "t/k%"}, "auth": {"openai": {"type": "api_key", "key": "sk-key"}, "anthropic": {"type": "api_key", "key": "unused"}}}"#)
        .with("in/gitconfig", "[user]\n\tname = A User\n[commit]\n\tgpgSign = true");
    let ended = case.run_script(&format!("{FILES}; cat .git-credentials .config/gh/hosts.yml .pi/agent/auth.json; env; git config --get-all commit.gpgsign; git config user.name"));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    for name in [".git-credentials", ".gitconfig", ".config/gh/hosts.yml", ".pi/agent/auth.json"] {
        assert!(ended.stdout.contains(&format!("600 51234:51235 ./{name}\n")), "{name}: {}", ended.stdout);
    }
    for text in [
        "https://x-access-token:t%2Fk%25@ghe.example\n",
        "\"ghe.example\":\n    user: x-access-token\n    oauth_token: \"t/k%\"\n    git_protocol: https\n",
        "sk-refresh-1",
        "sk-key",
        "true\nfalse\nA User\n",
    ] {
        assert!(ended.stdout.contains(text), "{text}: {}", ended.stdout);
    }
    assert!(!ended.stdout.contains("unused"), "a login goes before a key");
    let environment = ended.stdout.lines().filter(|line| {
        line.split('=').next().is_some_and(|n| n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
    });
    assert!(!environment.clone().any(|line| line.contains("t/k%") || line.contains("sk-")));
    assert!(!environment.clone().any(|line| line.starts_with("PI_DOCKER_")));
}

#[test]
fn the_environment_is_the_users() {
    let ended = Case::session()
        .env("TERM", "")
        .env("COLORTERM", "truecolor")
        .env("HOME", "/root")
        .env("USER", "root")
        .env("KEEP", "kept")
        .run_script("echo $HOME $USER $LOGNAME $SHELL $COLORTERM $KEEP; pwd; env | grep -c ^TERM=; env | cut -d= -f1 | sort | uniq -d");
    assert_eq!(ended.stdout, "/home/pi pi pi /bin/bash truecolor kept\n/workspace\n0\n");
}

#[test]
fn pi_starts_in_the_folder_the_user_was_in() {
    let case = Case::session().env("PI_DOCKER_WORKDIR", "/workspace/docs/a b").with("workspace/docs/a b/x", "");
    assert_eq!(
        case.before("chmod 755 $D/workspace/docs $D/workspace/docs/*").run(&["pwd"]).stdout,
        "/workspace/docs/a b\n"
    );
    let ended = Case::session().env("PI_DOCKER_WORKDIR", "/workspace/gone").run(&["pwd"]);
    assert_eq!(ended.ending(), (122, "preparation".into(), "wiped".into()));
    assert_eq!(ended.stderr, "pi-entrypoint: cannot enter '/workspace/gone': no such file or directory\n");
}

fn rules(case: Case) -> String {
    case.with("defaults/AGENTS.md", "default rules").run(&["cat", "/home/pi/.pi/agent/AGENTS.md"]).stdout
}

#[test]
fn the_default_rules_stand_in_for_missing_ones_only() {
    assert_eq!(rules(Case::session()), "default rules");
    for own in ["AGENTS.md", "AGENTS.override.md", "CLAUDE.md"] {
        assert_eq!(rules(Case::session().with(&format!("workspace/{own}"), "own")), "", "{own}");
    }
    let both = Case::session().with("workspace/.pi/AGENTS.md", "repository").with("in/agent/AGENTS.md", "user");
    assert_eq!(rules(both.before("chmod 755 $D/workspace/.pi")), "user\n\nrepository");
    assert_eq!(rules(Case::session().with("in/agent/AGENTS.md", "user")), "default rules\n\nuser");
}

#[test]
fn a_link_out_of_the_repository_is_not_followed_and_a_fifo_does_not_block() {
    for trap in
        ["ln -s /run/pi-docker/in/secrets.json", "ln -s /proc/self/environ", "ln -s /etc/hostname", "mkfifo", "mkdir"]
    {
        let ended = Case::session()
            .before(&format!(
                "mkdir $D/workspace/.pi; {trap} $D/workspace/.pi/AGENTS.md; chown -Rh 51234 $D/workspace/.pi"
            ))
            .run_script("cat /home/pi/.pi/agent/AGENTS.md");
        assert_eq!(ended.stdout, "", "{trap}");
        assert!(ended.read("control/log").contains("left out '.pi/AGENTS.md'"), "{trap}: {}", ended.stderr);
    }
    let inside = Case::session()
        .with("workspace/real.md", "rules")
        .before("mkdir $D/workspace/.pi; ln -s ../real.md $D/workspace/.pi/AGENTS.md");
    assert_eq!(inside.run(&["cat", "/home/pi/.pi/agent/AGENTS.md"]).stdout, "rules");
}

#[test]
fn copies_of_the_users_resources_are_in_the_agent_directory() {
    let case = Case::session()
        .with("in/agent/models.json", "{}")
        .with("in/agent/skills/a/SKILL.md", "skill")
        .with("in/agent/auth.json", "must not be copied")
        .with("in/agent/settings.json", r#"{"theme": "dark"}"#)
        .before("ln -s /etc/shadow $D/in/agent/link; mkfifo $D/in/agent/fifo; chown -R 51234:51235 $D/in/agent");
    let ended = case.run_script(&format!("{FILES}; cd .pi/agent; cat settings.json trust.json; ls -A"));
    assert!(
        ended.stdout.contains("600 51234:51235 ./.pi/agent/skills/a/SKILL.md\n"),
        "{}{}",
        ended.stdout,
        ended.stderr
    );
    assert!(ended.stdout.contains("{\"theme\": \"dark\"}{\"/workspace\": true}\n"), "{}", ended.stdout);
    assert!(!ended.stdout.contains("link") && !ended.stdout.contains("fifo"), "{}", ended.stdout);
}

#[test]
fn a_repository_that_is_not_trusted_brings_nothing_in() {
    let extension = |trust: &str| {
        Case::session()
            .env("PI_DOCKER_TRUST", trust)
            .with("defaults/extensions/subagent.ts", "shipped")
            .with("workspace/.pi/extensions/subagent.ts", "own")
            .before("chmod -R a+rX $D/workspace/.pi $D/defaults")
            .run_script("cd ~/.pi/agent; cat extensions/*; ls trust.json; cat settings.json")
            .stdout
    };
    assert_eq!(extension("1"), "trust.json\n");
    assert_eq!(extension("0"), "shipped{\"defaultProjectTrust\": \"never\"}\n");
}

#[test]
fn the_repository_is_left_as_it_was() {
    let before = "find $D/workspace -printf '%p %U %m %T@\\n' | sort >$D/out/before";
    let ended =
        Case::session().with("workspace/file", "x").with("defaults/AGENTS.md", "rules").before(before).run(&["true"]);
    let now = std::process::Command::new("find")
        .arg(ended.dir.path().join("workspace"))
        .args(["-printf", "%p %U %m %T@\n"])
        .output()
        .unwrap();
    let mut now: Vec<_> = String::from_utf8(now.stdout).unwrap().lines().map(str::to_owned).collect();
    now.sort();
    assert_eq!(ended.read("out/before").lines().collect::<Vec<_>>(), now);
}

#[test]
fn a_corporate_certificate_joins_the_systems() {
    let ended = Case::session()
        .with("in/ca.pem", "EXTRA CA\n")
        .run_script("tail -n 1 $SSL_CERT_FILE; test $(wc -c <$NODE_EXTRA_CA_CERTS) -ge $(wc -c </etc/ssl/certs/ca-certificates.crt) && echo $GIT_SSL_CAINFO");
    assert_eq!(ended.stdout, "EXTRA CA\n/home/pi/.config/pi-docker/ca.pem\n");
    assert_eq!(Case::session().run_script("echo $SSL_CERT_FILE").stdout, "\n");
}

#[test]
fn a_kill_for_lack_of_memory_is_named() {
    let limited = |name: &str| {
        let group = format!("pi-entrypoint-{}-{name}", std::process::id());
        let before = format!(
            "if [ -e /sys/fs/cgroup/cgroup.controllers ]; then C=/sys/fs/cgroup LIMIT=memory.max; \
             else C=/sys/fs/cgroup/memory LIMIT=memory.limit_in_bytes; fi; \
             mkdir $C/{group}; echo 64M >$C/{group}/$LIMIT; echo $$ >$C/{group}/cgroup.procs; mount --bind $C/{group} $C"
        );
        (Case::session().before(&before), group)
    };
    let remove = |group: &str| {
        let below = |parent: &str| std::fs::remove_dir(format!("/sys/fs/cgroup/{parent}{group}")).ok();
        common::eventually("the control group is empty", || below("").or_else(|| below("memory/")));
    };
    let (case, group) = limited("hungry");
    let ended = case.run(&["tail", "/dev/zero"]);
    remove(&group);
    assert_eq!(ended.ending(), (137, "out of memory".into(), "wiped".into()), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("out of memory: the kernel killed 1 of the session's processes\n"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("hint: give the container more with PI_DOCKER_MEMORY"), "{}", ended.stderr);
    let (case, group) = limited("killed");
    let ended = case.run_script("kill -9 $$");
    remove(&group);
    assert_eq!((ended.ending().1.as_str(), ended.stderr.as_str()), ("signal", ""));
}

fn refused(ended: &Finished, code: i32, line: &str) {
    assert_eq!(ended.code, code, "{}", ended.stderr);
    assert!(ended.stderr.contains(line), "{}", ended.stderr);
    assert!(!ended.stdout.contains("started"));
    assert_eq!(ended.read("control/ready"), "");
}

#[test]
fn a_damaged_login_stops_the_session_and_stays_as_it_is() {
    for damaged in ["{", "[]", "\"text\"", "{} {}", "\u{0}\u{0}"] {
        let ended = Case::session().with("auth.json", damaged).run_script("echo started");
        refused(&ended, 122, "cannot read '~/.pi/agent/auth.json': not a JSON object");
        assert_eq!(ended.read("auth.json"), damaged);
    }
    for trap in ["mkfifo", "mkdir", "ln -s /etc/hostname"] {
        let ended = Case::session()
            .before(&format!(
                "umount /run/pi-docker/auth.json; rm /run/pi-docker/auth.json; {trap} /run/pi-docker/auth.json"
            ))
            .run_script("echo started");
        refused(&ended, 122, "cannot open the host's 'auth.json': not a regular file");
    }
}

#[test]
fn nothing_to_run_is_a_mistake_of_whoever_starts_it() {
    let ended = Case::session().run(&[]);
    refused(&ended, 120, "pi-entrypoint: usage: pi-entrypoint PROGRAM [ARGUMENT…]");
    // It has not got as far as to know whose login there is.
    assert_eq!(ended.read("auth.json"), LOGIN);
}

#[test]
fn a_program_that_is_not_there_or_not_executable_has_the_shells_codes() {
    let ended = Case::session().run(&["no-such-program"]);
    refused(&ended, 127, "cannot find 'no-such-program': no such file or directory");
    assert_eq!(ended.ending(), (127, "not found".into(), "wiped".into()));
    let ended = Case::session().run(&["/etc"]);
    refused(&ended, 126, "cannot execute '/etc': permission denied");
    assert_eq!(ended.ending(), (126, "not executable".into(), "wiped".into()));
}

#[test]
fn a_mount_that_is_missing_is_named() {
    let ended = Case::session().before("umount /run/pi-docker/in; rmdir /run/pi-docker/in").run_script("echo started");
    refused(&ended, 125, "cannot find '/run/pi-docker/in': no such file or directory");
    let ended = Case::session().capabilities("-all,+setuid,+setgid,+chown,+kill").run_script("echo started");
    refused(&ended, 125, "cannot empty the capability bounding set: operation not permitted");
}

/// On the machine's own loopback, with `resolvers` as the only ones.
fn on_loopback(resolvers: &str) -> Case {
    let case = Case::session().on_this_network().with("resolv.conf", resolvers);
    case.before("mount --bind $D/resolv.conf $(readlink -f /etc/resolv.conf)")
}

#[test]
fn a_listener_of_the_launcher_that_answers_stops_the_session() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let open = on_loopback("").env("PI_DOCKER_CANARY", &format!("192.0.2.1:9, {address}")).run_script("echo started");
    refused(&open, 121, &format!("cannot start pi: the container can reach the host at {address}\n"));
    assert_eq!(open.ending(), (121, "network open".into(), "wiped".into()));
    assert_eq!(open.read("auth.json"), "{}");
    drop(listener);
    let closed = on_loopback("").env("PI_DOCKER_CANARY", &address).run_script("echo started");
    assert_eq!((closed.code, closed.stdout.as_str()), (0, "started\n"), "{}", closed.stderr);
}

#[test]
fn an_answer_from_outside_by_dns_stops_the_session_and_a_resolver_that_has_nobody_to_ask_does_not() {
    const ADDRESS: &str = "127.77.0.53";
    let resolver = UdpSocket::bind((ADDRESS, 53)).unwrap();
    for (code, open) in [(0, true), (3, true), (2, false), (5, false)] {
        let asked = std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let mut query = [0; 512];
                let (length, from) = resolver.recv_from(&mut query).unwrap();
                let mut reply = query[..length].to_vec();
                (reply[2], reply[3]) = (0x81, 0x80 | code);
                resolver.send_to(&reply, from).unwrap();
                String::from_utf8_lossy(&query[..length]).into_owned()
            });
            let ended = on_loopback(&format!("nameserver {ADDRESS}\n")).run_script("echo started");
            match open {
                true => refused(&ended, 121, "cannot start pi: the container can reach an outside name by DNS"),
                false => assert_eq!(ended.stdout, "started\n", "{}", ended.stderr),
            }
            asked.join().unwrap()
        });
        assert!(asked.contains("example"), "{asked:?}");
    }
}

#[test]
fn a_network_that_never_answers_is_closed_after_150_ms() {
    // Nobody is there, and nobody says so: packets to this address are dropped.
    let dropping = "ip link set lo up; ip link add canary0 type veth peer name canary1; ip link set canary1 up; ip addr add 10.7.0.2/16 dev canary0; ip link set canary0 up; \
                    ip neigh add 10.7.0.1 lladdr 02:00:00:00:00:01 dev canary0; ip neigh add 10.7.0.9 lladdr 02:00:00:00:00:02 dev canary0";
    let milliseconds = || {
        let case = Case::session()
            .with("resolv.conf", "nameserver 10.7.0.9\n")
            .before("mount --bind $D/resolv.conf $(readlink -f /etc/resolv.conf)")
            .before(dropping)
            .before("chmod 777 $D/out; date +%s%N >$D/out/before")
            .env("PI_DOCKER_CANARY", "10.7.0.1:4000,10.7.0.1:4001");
        let ended = case.run_script("date +%s%N >$OUT/after");
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let time = |name: &str| ended.read(name).trim().parse::<u64>().unwrap();
        let milliseconds = (time("out/after") - time("out/before")) / 1_000_000;
        assert!(milliseconds >= 130, "{milliseconds} ms");
        milliseconds
    };
    // The rest of the start, with two date commands; on a busy machine any one of them may take longer.
    let tried: Vec<u64> = (0..5).map(|_| milliseconds()).collect();
    assert!(tried.iter().any(|milliseconds| *milliseconds < 250), "{tried:?} ms");
}

#[test]
fn export_mode_touches_no_credential() {
    let ended = Case::session().env("PI_DOCKER_MODE", "export").run_script("ls -A /home/pi 2>&1; id -u");
    assert_eq!(ended.stdout, "ls: cannot open directory '/home/pi': Permission denied\n51234\n");
    assert_eq!((ended.read("auth.json").as_str(), ended.read("control/result.json").as_str()), (LOGIN, ""));
}
