//! What is removed, and above all what is not.

use serde_json::Value;

use crate::lab::{Lab, Ran, finish};

fn fate<'a>(answer: &'a Value, task: &str) -> &'a Value {
    answer["tasks"].as_array().unwrap().iter().find(|fate| fate["task"] == task).unwrap()
}

fn cleanup(lab: &Lab, args: &[&str]) -> Ran {
    lab.run(&[&["cleanup", "--json"], args].concat())
}

#[test]
fn cleanup_removes_what_is_pushed_and_keeps_what_is_not() {
    let lab = Lab::new();
    for task in ["pushed", "edited", "ahead", "empty"] {
        lab.script(task, "commit f-$PI_SUBAGENT_TASK a a; say ok; settle");
    }
    lab.script("empty", "say 'nothing to do'; settle");
    for task in ["pushed", "edited", "ahead", "empty"] {
        lab.spawn(task, &["--pr", "none"]).result();
    }
    std::fs::write(lab.worktree("edited").join("new"), "unsaved").unwrap();
    lab.sh("cd .worktrees/ahead && git commit -q --allow-empty -m later");
    let ran = cleanup(&lab, &["--all"]);
    let answer = ran.json();
    assert_eq!(ran.code, 0, "{ran:?}");
    for (task, gone) in [("pushed", true), ("empty", true), ("edited", false), ("ahead", false)] {
        assert_eq!(fate(&answer, task)["removed"], gone, "{answer}");
        assert_eq!(lab.worktree(task).exists(), !gone, "{task}");
        assert_eq!(lab.sh(&format!("git branch --list subagent/{task}")).is_empty(), gone, "{task}");
        assert_eq!(lab.listed(task).is_none(), gone, "{task}");
    }
    assert!(fate(&answer, "edited")["reasons"][0].as_str().unwrap().contains("1 uncommitted"));
    assert_eq!(std::fs::read_to_string(lab.worktree("edited").join("new")).unwrap(), "unsaved");
    assert_eq!(lab.sh("git worktree list --porcelain | grep -c '^worktree '"), "3");
}

#[test]
fn what_the_remote_has_lost_is_kept_here() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say ok; settle");
    lab.spawn("x", &[]).result();
    lab.remote("update-ref -d refs/heads/subagent/x");
    let ran = cleanup(&lab, &["x"]);
    assert_eq!((ran.code, &fate(&ran.json(), "x")["removed"]), (1, &Value::Bool(false)));
    // And without an answer of the remote nothing is removed either.
    lab.remote("update-ref refs/heads/subagent/x main");
    lab.internet.world(|world| world.denied.push("github.test".into()));
    let ran = cleanup(&lab, &["x"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stdout.contains("allow it on the host with") || ran.stdout.contains("the proxy answered 403"),
        "{ran:?}"
    );
    assert!(lab.worktree("x").exists());
}

#[test]
fn what_is_discarded_can_be_taken_back() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say ok; settle");
    lab.spawn("x", &["--pr", "none"]).result();
    std::fs::write(lab.worktree("x").join("new"), "unsaved").unwrap();
    let answer = cleanup(&lab, &["x", "--discard"]).json();
    let trash = fate(&answer, "x")["trash"].as_str().unwrap().to_owned();
    assert!(!lab.worktree("x").exists());
    assert_eq!(lab.sh(&format!("git show {trash}:new && git show {trash}:a")), "unsaveda");
    assert_eq!(lab.sh("cat .worktrees/.trash/*/new"), "unsaved");
    assert_eq!(lab.sh("git status --porcelain"), "");
}

#[test]
fn a_worktree_that_is_not_ours_is_never_touched() {
    let lab = Lab::new();
    lab.sh("git worktree add -q .worktrees/mine -b mine");
    assert_eq!(cleanup(&lab, &["mine"]).code, 1);
    assert_eq!(cleanup(&lab, &["--all"]).code, 0);
    assert!(lab.worktree("mine").join("README").exists());
}

#[test]
fn what_was_merged_by_a_squash_is_safe_and_what_was_added_after_it_is_not() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say done; settle");
    let head = lab.spawn("x", &[]).result()["git"]["head"].clone();
    // Its branch is deleted on the remote, as GitHub does after a merge, and no branch there has the commit.
    lab.remote("update-ref -d refs/heads/subagent/x");
    let merge = |merged: bool| {
        lab.internet.world(|world| {
            world.pulls[0]["merged"] = merged.into();
            world.pulls[0]["head"]["sha"] = head.clone();
        });
    };
    merge(false);
    assert!(cleanup(&lab, &["x"]).stdout.contains("is not on the remote"));
    merge(true);
    lab.sh("cd .worktrees/x && echo more >more && git add . && git commit -qm more");
    assert!(cleanup(&lab, &["x"]).stdout.contains("is not on the remote"));
    lab.sh("cd .worktrees/x && git reset -q --hard HEAD^");
    let ran = cleanup(&lab, &["x"]);
    assert_eq!((ran.code, lab.worktree("x").exists()), (0, false), "{ran:?}");
}

#[test]
fn a_task_that_does_not_exist_is_named_with_those_that_do_and_nothing_is_touched() {
    let lab = Lab::new();
    let nonsense = lab.run(&["cleanup", "nonsense"]);
    assert_eq!((nonsense.code, nonsense.stdout.as_str()), (1, ""), "{nonsense:?}");
    assert_eq!(nonsense.stderr, "pi-subagent: there is no task 'nonsense'\nhint: there are no tasks here\n");
    lab.script("x", "commit a a a; say done; settle");
    lab.spawn("x", &["--pr", "none"]).result();
    for command in [
        "cleanup x nonsense",
        "show nonsense",
        "cancel nonsense",
        "wait nonsense",
        "resume nonsense",
        "finish nonsense",
    ] {
        let ran = lab.run(&command.split(' ').collect::<Vec<_>>());
        assert_eq!(ran.code, 1, "{ran:?}");
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(said.contains("there is no task 'nonsense'") && said.contains("there are: x"), "{command}: {ran:?}");
        assert!(!said.contains("kept"), "{command}: {ran:?}");
        assert!(lab.worktree("x").exists(), "{command}");
    }
    assert_eq!(cleanup(&lab, &["x"]).code, 0);
}

#[test]
fn cleanup_of_all_keeps_what_has_no_pull_request_yet_and_by_name_it_goes() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say done; settle");
    // Pushed, and cut off before the pull request.
    lab.spawn("x", &["--pr", "none"]).result();
    let path = lab.workspace.join(".git/pi-subagent/tasks/x/state.json");
    let mut state: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    state["outcome"] = "partial".into();
    state["spec"]["pr"] = "auto".into();
    std::fs::write(&path, state.to_string()).unwrap();
    let answer = cleanup(&lab, &["--all"]).json();
    let reason = fate(&answer, "x")["reasons"][0].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("pull request is not open yet") && lab.worktree("x").exists(), "{answer}");
    assert_eq!((cleanup(&lab, &["x"]).code, lab.worktree("x").exists()), (0, false));
}

#[test]
fn commits_of_a_submodule_that_only_the_worktree_has_are_kept() {
    let lab = Lab::new();
    let bare = lab.internet.repositories.join("o/r.git").display().to_string();
    lab.sh("git init -q ../sub && cd ../sub && git commit -q --allow-empty -m sub");
    lab.sh(&format!("git -c protocol.file.allow=always submodule --quiet add '{}/sub' lib", lab.root.display()));
    lab.sh(&format!("git commit -qm submodule && git push -q '{bare}' main"));
    for task in ["inside", "without"] {
        lab.script(task, "commit a a a; say ok; settle");
        lab.spawn(task, &["--pr", "none"]).result();
    }
    lab.sh("cd .worktrees/inside && git -c protocol.file.allow=always submodule --quiet update --init && cd lib && \
            git commit -q --allow-empty -m 'only here' && cd .. && git commit -qam newer");
    lab.sh(&format!("cd .worktrees/inside && git push -q '{bare}' HEAD:subagent/inside"));
    let only_here = lab.sh("git -C .worktrees/inside/lib rev-parse HEAD");
    let answer = cleanup(&lab, &["--all"]).json();
    assert_eq!(fate(&answer, "without")["removed"], true, "{answer}");
    assert_eq!(fate(&answer, "inside")["removed"], false, "{answer}");
    assert_eq!(lab.sh("git -C .worktrees/inside/lib rev-parse HEAD"), only_here);
}

#[test]
fn a_worktree_that_was_moved_away_keeps_its_commits() {
    let lab = Lab::new();
    for task in ["moved", "deleted"] {
        lab.script(task, "commit a a a; say ok; settle");
        lab.spawn(task, &["--pr", "none"]).result();
    }
    lab.sh("cd .worktrees/moved && git checkout -q --detach && git commit -q --allow-empty -m 'only here'");
    let only_here = lab.sh("git -C .worktrees/moved rev-parse HEAD");
    lab.sh("mv .worktrees/moved ../elsewhere && rm -r .worktrees/deleted");
    let answer = cleanup(&lab, &["--all"]).json();
    assert_eq!(fate(&answer, "deleted")["removed"], true, "{answer}");
    assert_eq!(fate(&answer, "moved")["removed"], false, "{answer}");
    assert_eq!(lab.sh("cat .git/worktrees/moved/HEAD"), only_here);
}

#[test]
fn what_is_discarded_without_its_link_to_git_can_be_taken_back() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say ok; settle");
    lab.spawn("x", &["--pr", "none"]).result();
    lab.sh("cd .worktrees/x && echo unsaved >new && git checkout -q --detach && git commit -q --allow-empty -m here");
    let here = lab.sh("git -C .worktrees/x rev-parse HEAD");
    lab.sh("rm .worktrees/x/.git");
    let answer = cleanup(&lab, &["x", "--discard"]).json();
    let trash = fate(&answer, "x")["trash"].as_str().unwrap().to_owned();
    assert!(!lab.worktree("x").exists());
    assert_eq!(lab.sh("cat .worktrees/.trash/*/new"), "unsaved");
    lab.sh(&format!("git merge-base --is-ancestor {here} {trash}"));
    assert_eq!(lab.sh(&format!("git show {trash}:new")), "unsaved");
}

#[test]
fn what_is_discarded_has_the_branch_and_the_commits_beside_it() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say ok; settle");
    lab.spawn("x", &["--pr", "none"]).result();
    let branch = lab.sh("git rev-parse subagent/x");
    lab.sh("cd .worktrees/x && git checkout -q --detach main && git commit -q --allow-empty -m beside");
    let beside = lab.sh("git -C .worktrees/x rev-parse HEAD");
    let answer = cleanup(&lab, &["x", "--discard"]).json();
    let trash = fate(&answer, "x")["trash"].as_str().unwrap().to_owned();
    for commit in [branch, beside] {
        lab.sh(&format!("git merge-base --is-ancestor {commit} {trash}"));
    }
}

#[test]
fn a_recovery_leaves_the_commits_of_a_worktree_without_its_link_to_git() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say ok; settle");
    lab.spawn("x", &["--pr", "none"]).result();
    lab.sh("cd .worktrees/x && git checkout -q --detach && git commit -q --allow-empty -m 'only here'");
    let only_here = lab.sh("git -C .worktrees/x rev-parse HEAD");
    lab.sh(
        "rm .worktrees/x/.git && sed -i 's/\"outcome\": .*,/\"outcome\": null,/' .git/pi-subagent/tasks/x/state.json",
    );
    assert_eq!(lab.run(&["recover", "--json"]).json()["recovered"], 1);
    assert_eq!(lab.sh("cat .git/worktrees/x/HEAD"), only_here);
}

#[test]
fn a_planted_state_holds_nobody_up() {
    let lab = Lab::new();
    lab.sh("mkdir -p .git/pi-subagent/tasks/planted && mkfifo .git/pi-subagent/tasks/planted/state.json");
    let args = ["list", "recover", "cleanup"].map(|command| vec![command, "--json"]);
    for args in args.map(|args| if args[0] == "cleanup" { [args, vec!["--all"]].concat() } else { args }) {
        let child = lab.command(&args).spawn().unwrap();
        let process = std::path::PathBuf::from(format!("/proc/{}/exe", child.id()));
        crate::lab::wait_for("the end", || process.read_link().is_err());
        finish(child);
    }
}

/// Runs a command with a git that, whenever its arguments have these words, is followed by a script.
fn after_git(lab: &Lab, args: &[&str], words: &str, script: &str) -> std::process::Child {
    let bin = lab.root.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let real = lab.sh("command -v git");
    let text =
        format!("#!/bin/bash\n'{real}' \"$@\"; status=$?\ncase \"$*\" in *'{words}'*) {script};; esac\nexit $status\n");
    std::fs::write(bin.join("git"), text).unwrap();
    lab.sh("chmod +x ../bin/git");
    let mut command = lab.command(args);
    let path = command.get_envs().find(|(name, _)| *name == "PATH").unwrap().1.unwrap().to_owned();
    let path = format!("{}:{}", bin.display(), path.display());
    command.env("PATH", path).spawn().unwrap()
}

#[test]
fn what_is_written_after_the_last_look_of_git_is_not_lost() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say ok; settle");
    lab.spawn("x", &["--pr", "none"]).result();
    let late = format!("[ -e '{0}/late' ] || echo late >'{0}/late'", lab.worktree("x").display());
    let ran = finish(after_git(&lab, &["cleanup", "--json", "x"], "ls-files -v", &late));
    assert_eq!(fate(&ran.json(), "x")["removed"], false, "{ran:?}");
    assert!(ran.stdout.contains("1 uncommitted"), "{ran:?}");
    assert_eq!(lab.sh("cat .worktrees/x/late; git -C .worktrees/x status --short"), "late\n?? late");
    // And without anybody writing it goes.
    lab.sh("rm .worktrees/x/late");
    let ran = finish(after_git(&lab, &["cleanup", "--json", "x"], "ls-files -v", "true"));
    assert_eq!((ran.code, lab.worktree("x").exists()), (0, false), "{ran:?}");
    assert_eq!(lab.sh("ls -A .worktrees .git/worktrees"), ".git/worktrees:\n\n.worktrees:");
}

#[test]
fn a_commit_made_while_its_task_is_discarded_is_not_lost() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say ok; settle");
    lab.spawn("x", &["--pr", "none"]).result();
    // In the worktree it is refused or kept; beside it, it is on the branch and stays there.
    let commit = format!(
        "cd '{}' && (cd .worktrees/x && git commit -q --allow-empty -m inside && git rev-parse HEAD >../../../inside); \
         git update-ref refs/heads/subagent/x \"$(git commit-tree -p subagent/x -m beside subagent/x^{{tree}})\" && \
         git rev-parse subagent/x >../beside",
        lab.workspace.display()
    );
    let ran = finish(after_git(&lab, &["cleanup", "--json", "x", "--discard"], "update-ref refs/pi-subagent", &commit));
    assert_eq!((ran.code, lab.worktree("x").exists()), (0, false), "{ran:?}");
    let reachable = lab.sh("git rev-list --all");
    for place in ["inside", "beside"] {
        let Ok(oid) = std::fs::read_to_string(lab.root.join(place)) else { continue };
        assert!(reachable.contains(oid.trim()), "{place} is lost");
    }
    assert!(lab.root.join("beside").exists(), "{ran:?}");
}

#[test]
fn a_cleanup_that_is_killed_at_its_last_look_leaves_the_worktree_to_whoever_comes_next() {
    let next = ["recover --json", "resume x --json", "cleanup x --json --discard"];
    crate::lab::each(next, |next| {
        let lab = Lab::new();
        lab.script("x", "commit a a a; say ok; settle");
        lab.spawn("x", &["--pr", "none"]).result();
        let hold = format!(
            "at='{}/.worktrees/.leaving-x'; if [ -e \"$at\" ]; then echo late >\"$at/late\"; \
             kill -9 $PPID; fi",
            lab.workspace.display()
        );
        let ran = finish(after_git(&lab, &["cleanup", "--json", "x"], "ls-files -v", &hold));
        assert_eq!(ran.code, 137, "{ran:?}");
        assert!(!lab.worktree("x").exists());
        let ran = lab.run(&next.split(' ').collect::<Vec<_>>());
        assert_eq!(ran.code, 0, "{next}: {ran:?}");
        match next {
            "recover --json" => {
                assert_eq!(lab.sh("cat .worktrees/x/late"), "late");
                assert_eq!(lab.run(&["recover", "--json"]).json()["recovered"], 0);
            }
            "resume x --json" => assert_eq!(lab.sh("git show subagent/x:late"), "late"),
            _ => assert_eq!(lab.sh("cat .worktrees/.trash/*/late"), "late"),
        }
    });
}

/// As in a session with the repository's own git directory: the administration of worktrees that were there before is a mount point.
#[test]
fn a_cleanup_leaves_an_administration_that_a_mount_holds_to_git() {
    let lab = Lab::new();
    for task in ["x", "edited"] {
        lab.script(task, "commit f-$PI_SUBAGENT_TASK a a; say ok; settle");
        lab.spawn(task, &["--pr", "none"]).result();
    }
    lab.sh("echo unsaved >.worktrees/edited/new");
    let program = crate::lab::program();
    let script = format!(
        "cd .git/worktrees && for task in x edited; do mount --bind $task $task; mount --bind $task/gitdir $task/gitdir; done; \
         cd ../.. && '{}' cleanup --json --all",
        program.display()
    );
    let cleanup = |script: &str| -> Value {
        let said =
            lab.sh(&format!("unshare --user --map-root-user --mount bash -euc '{}'", script.replace('\'', "'\\''")));
        serde_json::from_str(&said).unwrap()
    };
    let answer = cleanup(&script);
    assert_eq!((&fate(&answer, "x")["removed"], lab.worktree("x").exists()), (&Value::Bool(true), false), "{answer}");
    assert_eq!(lab.sh("cat .worktrees/edited/new; git -C .worktrees/edited status --short"), "unsaved\n?? new");
    assert_eq!(lab.sh("git branch --list subagent/x; git worktree prune; ls .git/worktrees"), "edited");
    let answer = cleanup(&script.replace("x edited;", "edited;").replace("--all", "edited --discard"));
    let trash = fate(&answer, "edited")["trash"].as_str().unwrap().to_owned();
    assert_eq!(
        lab.sh(&format!("git show {trash}:new; git worktree prune; ls -A .git")).lines().next(),
        Some("unsaved")
    );
    assert_eq!(lab.sh("ls -A .worktrees; git worktree list --porcelain | grep -c '^worktree '"), ".trash\n1");
    // And a name that was in use is free again.
    assert_eq!(lab.spawn("edited", &["--pr", "none", "--push-base"]).result()["task"], "edited");
}
