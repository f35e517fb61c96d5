//! Real repositories: names that are hard to quote, filters, sparse checkouts, hooks, agents that do not keep to the rules.

use crate::lab::Lab;

#[test]
fn what_is_left_is_committed_whatever_its_name_is_and_secrets_are_not() {
    let lab = Lab::new();
    lab.sh("printf 'a\\n' >old && printf 'b\\n' >gone && printf 'c\\n' >moved && git add . && git commit -qm more");
    lab.script(
        "x",
        r#"
        for name in 'a b' $'new\nline' 'quo"te' "apo'" '$(x)' ':(exclude)old' '*' '-n' 'ü' ; do echo x >"$name"; done
        mkdir -p 'dir with space/deep'; echo y >'dir with space/deep/f'; ln -s nowhere link; echo z >run.sh; chmod +x run.sh
        echo changed >old; rm gone; git mv moved to
        echo S >.env; echo S >key.pem; echo E >.env.example; truncate -s 60M big.bin
        git init -q nested && echo n >nested/n && git -C nested add n && git -C nested commit -qm n
        echo ignored >ignored; echo ignored >.gitignore
        say done; settle"#,
    );
    let ran = lab.spawn("x", &[]);
    let result = ran.result();
    assert_eq!((ran.code, result["state"].as_str()), (0, Some("partial")), "{ran:?}");
    let names =
        lab.remote("-c core.quotePath=false diff --no-renames --name-status -z main~0 subagent/x | tr '\\0' '|'");
    for name in [
        "a b",
        "new\nline",
        "quo\"te",
        "apo'",
        "$(x)",
        ":(exclude)old",
        "*",
        "-n",
        "ü",
        "dir with space/deep/f",
        "link",
        "run.sh",
        ".env.example",
        "to",
        ".gitignore",
    ] {
        assert!(names.contains(&format!("A|{name}|")), "{name}: {names}");
    }
    assert!(names.contains("M|old|") || names.contains("A|old|"), "{names}");
    for name in ["|.env|", "key.pem", "big.bin", "nested", "|ignored|"] {
        assert!(!names.contains(name), "{name}: {names}");
    }
    let warning = result["warnings"].to_string();
    for name in [".env", "key.pem", "big.bin", "nested/"] {
        assert!(warning.contains(&format!("'{name}'")), "{name}: {warning}");
        assert!(lab.worktree("x").join(name).exists());
    }
    assert_eq!(result["pr"]["draft"], true);
    assert_eq!(lab.run(&["cleanup", "x"]).code, 1);
}

#[test]
fn an_agent_that_renames_detaches_or_switches_loses_nothing() {
    for (script, kept) in [
        ("git branch -m other; commit a a a; echo b >b", "a\nb"),
        ("git checkout -q --detach; commit a a a; echo b >b", "a\nb"),
        ("git checkout -qb other; commit a a a; echo b >b", "a\nb"),
        (
            "git symbolic-ref HEAD refs/heads/other && git branch -D -q subagent/x; git branch other main; git reset -q; commit a a a; echo b >b",
            "a\nb",
        ),
    ] {
        let lab = Lab::new();
        lab.script("x", &format!("{script}; say done; settle"));
        let ran = lab.spawn("x", &[]);
        assert_eq!((ran.code, ran.result()["state"].as_str()), (0, Some("succeeded")), "{script}: {ran:?}");
        assert_eq!(lab.remote("diff --name-only main subagent/x"), kept, "{script}");
    }
}

#[test]
fn an_unfinished_merge_is_kept_as_it_is_and_said() {
    let lab = Lab::new();
    lab.script(
        "x",
        "commit a one one; git checkout -qb side HEAD~; commit a two two; git checkout -q subagent/x; git merge side >/dev/null; say stuck; settle",
    );
    let ran = lab.spawn("x", &[]);
    let result = ran.result();
    assert_eq!(result["state"], "partial", "{ran:?}");
    assert!(result["warnings"].to_string().contains("a merge is unfinished"), "{result}");
    assert_eq!(lab.remote("log -1 --format=%s subagent/x"), "one");
    assert_eq!(lab.sh("git -C .worktrees/x status --porcelain"), "AA a");
    assert!(lab.run(&["cleanup", "--all"]).stdout.contains("x: kept"));
}

#[test]
fn commits_beside_the_branch_are_said_and_keep_the_worktree() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; git checkout -q --detach HEAD~; commit b b b; say done; settle");
    let ran = lab.spawn("x", &[]);
    assert_eq!(ran.result()["state"], "partial", "{ran:?}");
    assert!(ran.stdout.contains("is not on 'subagent/x'"));
    assert_eq!(lab.remote("diff --name-only main subagent/x"), "a");
    assert!(lab.run(&["cleanup", "--all"]).stdout.contains("x: kept, because commit"));
}

#[test]
fn a_filter_is_applied_both_ways() {
    let lab = Lab::new();
    // Stands for any driver such as git-lfs: what is stored is not what is on disk.
    lab.sh("git config --global filter.upper.clean 'tr a-z A-Z' && git config --global filter.upper.smudge 'tr A-Z a-z' && git config --global filter.upper.required true");
    lab.sh("echo '*.up filter=upper' >.gitattributes && echo hello >one.up && git add . && git commit -qm filter");
    lab.sh(&format!("git push -q '{}' main", lab.internet.repositories.join("o/r.git").display()));
    lab.script("x", "cp one.up seen; echo more >two.up; say done; settle");
    let ran = lab.spawn("x", &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(lab.remote("show subagent/x:seen subagent/x:one.up subagent/x:two.up"), "hello\nHELLO\nMORE");
    // A filter that is required and fails: nothing raw is committed, the work is kept.
    lab.script(
        "y",
        "git config --global filter.upper.clean false; echo more >two.up; commit ok ok ok; say done; settle",
    );
    let ran = lab.spawn("y", &[]);
    assert_eq!((ran.code, ran.result()["error"]["code"].as_str()), (6, Some("commit_failed")), "{ran:?}");
    assert_eq!(std::fs::read_to_string(lab.worktree("y").join("two.up")).unwrap(), "more\n");
    lab.sh("git config --global filter.upper.clean 'tr a-z A-Z'");
    assert_eq!(lab.run(&["finish", "y"]).code, 0);
    assert_eq!(lab.remote("show subagent/y:two.up"), "MORE");
}

#[test]
fn large_files_that_cannot_be_fetched_are_pointers_and_stay_pointers() {
    let lab = Lab::new();
    // As git-lfs without its server: it fails, unless it is told to leave the pointers as they are.
    lab.sh("git config --global filter.lfs.clean cat && git config --global filter.lfs.required true");
    lab.sh(r#"git config --global filter.lfs.smudge 'test -n "$GIT_LFS_SKIP_SMUDGE" || exit 1; cat'"#);
    lab.sh("echo '*.bin filter=lfs' >.gitattributes && echo pointer >big.bin && git add . && git commit -qm large");
    lab.sh(&format!("git push -q '{}' main", lab.internet.repositories.join("o/r.git").display()));
    lab.script("x", "cp big.bin seen; say done; settle");
    let ran = lab.spawn("x", &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.events().iter().any(|event| event["code"] == "lfs_pointers"), "{ran:?}");
    assert_eq!(lab.remote("diff --name-only main subagent/x"), "seen");
    assert_eq!(lab.remote("show subagent/x:seen"), "pointer");
    // The twin: where git-lfs can fetch, they are the files.
    lab.sh("git config --global filter.lfs.smudge 'echo whole' && git config --global filter.lfs.clean 'echo pointer'");
    lab.script("y", "cp big.bin seen; say done; settle");
    let ran = lab.spawn("y", &[]);
    assert!(!ran.events().iter().any(|event| event["code"] == "lfs_pointers"), "{ran:?}");
    assert_eq!(lab.remote("diff --name-only main subagent/y; git show subagent/y:seen"), "seen\nwhole");
}

#[test]
fn a_sparse_checkout_stays_sparse_and_deletes_nothing() {
    let lab = Lab::new();
    lab.sh("mkdir in out && echo 1 >in/a && echo 2 >out/b && git add . && git commit -qm dirs && git sparse-checkout set in");
    lab.sh(&format!("git push -q '{}' main", lab.internet.repositories.join("o/r.git").display()));
    lab.script("x", "ls >\"$dir/ls\"; echo 3 >in/c; echo 4 >in/a; say done; settle");
    let ran = lab.spawn("x", &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(std::fs::read_to_string(lab.scripts.join("ls")).unwrap(), "README\nin\n");
    assert_eq!(lab.remote("diff --name-status main subagent/x"), "M\tin/a\nA\tin/c");
    assert_eq!(lab.run(&["cleanup", "x"]).code, 0);
}

#[test]
fn hooks_of_the_repository_neither_run_nor_stop_us() {
    let lab = Lab::new();
    for hook in ["pre-commit", "commit-msg", "post-checkout", "pre-push", "reference-transaction", "post-commit"] {
        let path = lab.workspace.join(".git/hooks").join(hook);
        std::fs::write(&path, format!("#!/bin/sh\necho {hook} >>'{}'\nexit 1\n", lab.root.join("ran").display()))
            .unwrap();
        lab.sh(&format!("chmod +x '{}'", path.display()));
    }
    lab.script("x", "echo a >a; say done; settle");
    let ran = lab.spawn("x", &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!lab.root.join("ran").exists(), "{}", std::fs::read_to_string(lab.root.join("ran")).unwrap());
}

#[test]
fn settings_that_hide_changes_do_not_hide_them_from_cleanup() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; say done; settle");
    lab.spawn("x", &[]).result();
    lab.sh("git config status.showUntrackedFiles no && git config core.fsmonitor true");
    std::fs::write(lab.worktree("x").join("new"), "work").unwrap();
    assert_eq!(lab.run(&["cleanup", "x"]).code, 1);
    std::fs::remove_file(lab.worktree("x").join("new")).unwrap();
    lab.sh("cd .worktrees/x && git update-index --assume-unchanged a && echo work >a");
    assert!(lab.run(&["cleanup", "x"]).stdout.contains("does not see their changes"));
    lab.sh("cd .worktrees/x && git update-index --no-assume-unchanged a && git checkout -q a");
    // Without its link the folder would look like a part of the repository around it, and clean.
    std::fs::remove_file(lab.worktree("x").join(".git")).unwrap();
    std::fs::write(lab.worktree("x").join("new"), "work").unwrap();
    assert!(lab.run(&["cleanup", "x"]).stdout.contains("is not a worktree any more"));
    assert!(lab.worktree("x").join("new").exists());
}

#[test]
fn a_worktree_stands_where_git_expects_it_and_works_from_another_path() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; fail no; settle");
    lab.spawn("x", &[]).result();
    assert_eq!(std::fs::read_to_string(lab.worktree("x").join(".git")).unwrap(), "gitdir: ../../.git/worktrees/x\n");
    assert_eq!(std::fs::read_to_string(lab.workspace.join(".git/worktrees/x/commondir")).unwrap(), "../..\n");
    assert_eq!(lab.sh("git worktree prune --expire now; git worktree list | wc -l; git status --porcelain"), "2");
    let moved = lab.root.join("elsewhere");
    std::fs::rename(&lab.workspace, &moved).unwrap();
    std::fs::create_dir(&lab.workspace).unwrap();
    let seen = lab.sh("cd ../elsewhere/.worktrees/x && git status --porcelain && git log -1 --format=%s && git -C ../.. gc -q --prune=now && git -C ../.. worktree prune --expire now && git log -1 --format=%s");
    assert_eq!(seen, "a\na");
}

#[test]
fn a_worktree_that_was_deleted_is_made_again_from_its_branch() {
    let lab = Lab::new();
    lab.script("x", "commit a a a; fail no; settle");
    lab.spawn("x", &["--pr", "none"]).result();
    for rm in ["rm -rf .worktrees/x", "rm -rf .worktrees/x .git/worktrees/x", "rm -rf .git/worktrees/x"] {
        lab.sh(rm);
        lab.script(
            "x",
            "test -z \"$(git status --porcelain)\" && test -e a && say 'all there' || say 'missing'; settle",
        );
        let ran = lab.run(&["resume", "x", "--json"]);
        assert_eq!(ran.result()["summary"], "all there", "{rm}: {ran:?}");
    }
}

#[test]
fn it_starts_from_where_the_person_is_also_inside_another_worktree_or_folder() {
    let lab = Lab::new();
    lab.sh("git checkout -qb feature && mkdir sub && echo s >sub/s && git add . && git commit -qm sub");
    lab.sh(&format!("git push -q '{}' feature", lab.internet.repositories.join("o/r.git").display()));
    lab.sh("git worktree add -q ../linked -b linked && git push -q ../srv/o/r.git linked");
    lab.script("x", "commit a a a; say done; settle");
    lab.script("y", "commit b b b; say done; settle");
    std::fs::write(lab.root.join("i"), "go").unwrap();
    let instructions = lab.root.join("i");
    let args = |task| {
        ["spawn", "--json", "--task", task, "--instructions-file", instructions.to_str().unwrap()].map(str::to_owned)
    };
    let run = |task: &str, dir: &str| {
        let args = args(task.to_owned().leak());
        let mut command = lab.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
        command.current_dir(lab.workspace.join(dir)).status().unwrap()
    };
    assert!(run("x", "sub").success());
    assert!(run("y", "../linked").success());
    let bases: Vec<_> = lab.internet.world(|world| world.pulls.iter().map(|pr| pr["base"]["ref"].clone()).collect());
    assert_eq!(bases, ["feature", "linked"]);
    assert!(lab.worktree("x").is_dir() && lab.worktree("y").is_dir());
}

#[test]
fn a_repository_that_libgit2_would_get_wrong_is_refused_in_words() {
    let lab = Lab::new();
    lab.script("x", "say hi; settle");
    lab.sh("rm -rf .git && git init -q --object-format=sha256 . && git add . && git commit -qm first");
    let ran = lab.spawn("x", &[]);
    assert_eq!((ran.code, ran.result()["error"]["code"].as_str()), (7, Some("repository_unsupported")), "{ran:?}");
}

#[test]
fn ignored_files_that_a_build_needs_come_along_and_nothing_else() {
    let lab = Lab::new();
    lab.sh("printf '.env\\nnode_modules/\\n*.secret\\n' >.gitignore && printf '.env\\nnode_modules/\\nplain\\n' >.worktreeinclude && git add . && git commit -qm ignore");
    lab.sh(&format!("git push -q '{}' main", lab.internet.repositories.join("o/r.git").display()));
    lab.sh("echo key >.env && mkdir -p node_modules/a && echo js >node_modules/a/i.js && ln -s a node_modules/b && echo s >x.secret && echo p >plain");
    lab.script("x", "find . -path ./.git -prune -o -print | sort | tr '\\n' ' ' >\"$dir/found\"; readlink node_modules/b >>\"$dir/found\"; commit a a a; say ok; settle");
    let ran = lab.spawn("x", &[]);
    assert_eq!((ran.code, ran.result()["state"].as_str()), (0, Some("succeeded")), "{ran:?}");
    let found = std::fs::read_to_string(lab.scripts.join("found")).unwrap();
    assert_eq!(
        found,
        ". ./.env ./.gitignore ./.worktreeinclude ./README ./node_modules ./node_modules/a ./node_modules/a/i.js ./node_modules/b a\n"
    );
    assert_eq!(lab.remote("diff --name-only main subagent/x"), "a");
}

#[test]
fn a_full_disk_leaves_nothing_half_made_and_loses_nothing() {
    let lab = Lab::new();
    let worktrees = lab.workspace.join(".worktrees");
    lab.sh("head -c 3M /dev/urandom >big && git add big && git commit -qm big");
    lab.sh(&format!("git push -q '{}' main", lab.internet.repositories.join("o/r.git").display()));
    lab.script("x", "commit a a a; say ok; settle");
    // Too small for the files of the repository; a file system of its own, as in the container.
    let run = |script: &str| lab.sh(&format!("unshare -m bash -euc '{script}'"));
    let spawn = format!(
        "pi-subagent spawn --json --task x --instructions-file \"{}\"",
        lab.root.join("instructions").display()
    );
    let output = run(&format!(
        "mkdir -p \"{0}\"; mount -t tmpfs -o size=1m none \"{0}\"; {spawn} || echo status $?; ls -A \"{0}\"",
        worktrees.display()
    ));
    assert!(output.contains("\"code\":\"setup_failed\"") && output.ends_with("status 7"), "{output}");
    assert!(output.contains("cannot run 'git reset'") && output.contains("MB are free there"), "{output}");
    assert!(!lab.scripts.join("x.pid").exists());
    assert_eq!(lab.sh("git branch --list 'subagent/*'; ls -A .worktrees; ls .git/worktrees"), "");
    assert_eq!(lab.spawn("x", &[]).code, 0);
}

#[test]
fn a_disk_that_fills_up_during_the_run_ends_it_with_a_result_and_keeps_the_work() {
    let lab = Lab::new();
    lab.script(
        "x",
        "commit kept kept kept; echo left >left; head -c 64M /dev/zero >filler 2>/dev/null; touch \"$dir/full\"; say done; settle",
    );
    let small = lab.root.join("small");
    let instructions = lab.root.join("instructions");
    // A file system of its own, as in the container; what it holds is gone with it, so everything is asked in it.
    let script = format!(
        "mkdir -p {0}; mount -t tmpfs -o size=8m none {0}; cp -a . {0}; cd {0}; \
         pi-subagent spawn --json --task x --instructions-file {1} >{2}/first || echo status $?; \
         git show subagent/x:kept; cat .worktrees/x/left; pi-subagent list; \
         rm .worktrees/x/filler; pi-subagent finish x --json >{2}/second; echo status $?",
        small.display(),
        instructions.display(),
        lab.root.display()
    );
    let output = lab.sh(&format!("unshare -m bash -uc '{script}'"));
    let result = |name: &str| -> serde_json::Value {
        let text = std::fs::read_to_string(lab.root.join(name)).unwrap();
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    };
    let first = result("first");
    assert_eq!((first["type"].as_str(), first["ok"].as_bool()), (Some("result"), Some(false)), "{first}");
    assert!(first["text"].as_str().unwrap().contains("No space left"), "{first}");
    assert!(lab.scripts.join("full").exists());
    assert!(output.contains("kept\nleft\n"), "{output}");
    let second = result("second");
    assert_eq!(second["ok"], true, "{second}");
    assert_eq!(lab.remote("diff --name-only main subagent/x"), "kept\nleft");
}
