//! The known ways from a repository's git directory to code on the host, each tried by an agent in a real session, with an editor that polls
//! on the host meanwhile and a person at work there afterwards. The same is done first in a container that has the repository as it is, without
//! any protection: there it must run, or the attack proves nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::World;
use e2e::docker::docker;

/// What an editor or a prompt asks again and again.
const POLL: &str = "git --no-optional-locks status --porcelain=v2 --branch; git --no-optional-locks diff --stat";

/// What a person does at the root of a repository, with a prompt that asks git.
const AT_WORK: &str = r#"
PROMPT=/usr/lib/git-core/git-sh-prompt
prompt() {
    if [ -e $PROMPT ]; then
        . $PROMPT; GIT_PS1_SHOWDIRTYSTATE=1 GIT_PS1_SHOWUNTRACKEDFILES=1 GIT_PS1_SHOWUPSTREAM=auto __git_ps1
    fi
    git rev-parse --git-dir --is-bare-repository --abbrev-ref HEAD; git diff --quiet; git diff --cached --quiet
    git ls-files --others --exclude-standard --directory; git rev-list --count --left-right '@{upstream}...HEAD'
}
prompt; git status; git diff; git log -p -2; git stash list; git fetch -q
echo mine >>README.md; prompt; git add -A -- docs; git commit -q -a -m mine; git checkout -q -b mine; git gc -q --auto; prompt
"#;

/// A submodule at `sub` and one further down.
const SUBMODULES: &str = "
git init -q ../library-$NAME && git -C ../library-$NAME commit -q --allow-empty -m library
for path in sub deep/er/sub; do git -c protocol.file.allow=always submodule --quiet add $PWD/../library-$NAME $path; done
git commit -q -m submodules";

const WORKTREE: &str = "git worktree add -q trees/t1; printf '/trees/\\n/.worktrees/\\n' >.git/info/exclude";

struct Case {
    name: &'static str,
    /// What the user has made of the repository before.
    before: &'static str,
    /// What the agent does; `$EVIL` is a command that leaves a mark, `$BASHRC` the user's.
    attack: &'static str,
    /// Where the user goes as well.
    folder: &'static str,
}

const fn case(name: &'static str, attack: &'static str) -> Case {
    Case { name, before: "", attack, folder: "." }
}

/// Tries each of them on a copy of the world's repository.
fn nothing_runs(cases: &[Case]) -> Result<()> {
    let world = World::new("tools")?;
    for case in cases {
        for protected in [false, true] {
            let ran =
                tried(&world, case, protected).with_context(|| format!("{}, protected: {protected}", case.name))?;
            ensure!(ran != protected, "{}, protected: {protected}: something of the agent's ran: {ran}", case.name);
        }
    }
    Ok(())
}

/// Whether anything of the agent's ran on the host, or was written where it should not be.
fn tried(world: &World, case: &Case, protected: bool) -> Result<bool> {
    let name = format!("{}-{}", case.name, if protected { "closed" } else { "open" });
    let repo = world.path(&format!("app-{}-{name}", world.id));
    let (mark, bashrc) = (world.path(&format!("ran-{name}")), world.home().join(".bashrc"));
    world.git(["clone", "--quiet", ".", &repo.display().to_string()])?;
    fs::write(&bashrc, "# mine\n")?;
    world.user.own(&bashrc)?;
    let before = on_host(world, &repo, &format!("set -e; NAME={name}; {}", case.before))?;
    ensure!(before.status.success(), "cannot prepare it: {}", String::from_utf8_lossy(&before.stderr));
    let script = format!("EVIL='touch {}; false'; BASHRC={}\n{}\ntrue", mark.display(), bashrc.display(), case.attack);
    let has_run = || -> Result<bool> { Ok(mark.exists() || fs::read_to_string(&bashrc)? != "# mine\n") };
    if protected {
        let mut run = world.pi_docker().within(&repo).args(["-p", &format!("sh: {script}")]).start()?;
        while !run.has_ended()? {
            on_host(world, &repo, POLL)?;
            thread::sleep(Duration::from_millis(100));
        }
        run.finish()?.expect(0)?;
        ensure!(!has_run()?, "it ran during the session");
    } else {
        as_it_is(world, &repo, &script)?;
    }
    for folder in [".", case.folder] {
        on_host(world, &repo, &format!("cd {folder} || exit 0; {AT_WORK}"))?;
    }
    if protected {
        // The launcher's own git, in a repository that an agent has been in.
        world.pi_docker().within(&repo).arg("--dry-run").run()?.expect(0)?;
    }
    has_run()
}

/// The user's own shell.
fn on_host(world: &World, repo: &Path, script: &str) -> Result<Output> {
    let mut shell = world.user.command("timeout", &world.home());
    shell.args(["60", "bash", "-c", script]).current_dir(repo).env("GIT_TERMINAL_PROMPT", "0");
    shell.stdin(Stdio::null()).output().context("cannot run a shell")
}

/// The agent's image with the repository in it and nothing in between. What the script comes to does not matter.
fn as_it_is(world: &World, repo: &Path, script: &str) -> Result<()> {
    let image = std::env::var("PI_DOCKER_IMAGE").unwrap_or_else(|_| "pi-docker-agent".to_owned());
    let mount = format!("type=bind,source={},target=/workspace", repo.display());
    let git = "export HOME=/tmp; git config --global user.name x; git config --global user.email x@x";
    docker([
        "run",
        "--rm",
        "--network",
        "none",
        "--user",
        &world.user.numbers(),
        "--mount",
        &mount,
        "--workdir",
        "/workspace",
        "--entrypoint",
        "bash",
        &image,
        "-c",
        &format!("{git}; ( {script} ); true"),
    ])
    .map(drop)
}

#[test]
fn g1_to_g3_a_replaced_git_directory_a_commondir_and_a_nested_repository_run_nothing_on_the_host() -> Result<()> {
    nothing_runs(&[
        case(
            "g1",
            "cp -a .git .git-new; git config -f .git-new/config core.fsmonitor \"$EVIL\"; mv .git .git-old && mv .git-new .git",
        ),
        case(
            "g2",
            "cp -a .git .evil; git config -f .evil/config core.fsmonitor \"$EVIL\"; echo ../.evil >.git/commondir",
        ),
        case(
            "g3",
            "git init -q evil; git -C evil commit -q --allow-empty -m x; git -C evil config core.fsmonitor \"$EVIL\"
            git update-index --add --cacheinfo 160000,$(git -C evil rev-parse HEAD),evil; git commit -qm 'a link'",
        ),
    ])
}

#[test]
fn g4_the_git_directories_of_submodules_and_worktrees_run_nothing_on_the_host() -> Result<()> {
    nothing_runs(&[
        Case {
            name: "g4-config",
            before: SUBMODULES,
            attack: "git config -f .git/modules/sub/config core.fsmonitor \"$EVIL\"",
            folder: "sub",
        },
        Case {
            name: "g4-file",
            before: SUBMODULES,
            attack: "cp -a .git/modules/sub .evil; git config -f .evil/config core.worktree ../sub
            git config -f .evil/config core.fsmonitor \"$EVIL\"
            echo 'gitdir: ../.evil' >sub/.git || { mv sub/.git sub/.old; echo 'gitdir: ../.evil' >sub/.git; }",
            folder: "sub",
        },
        Case {
            name: "g4-worktree",
            before: WORKTREE,
            attack: "cp -a .git .evil; git config -f .evil/config core.fsmonitor \"$EVIL\"
            echo 'gitdir: ../../.evil' >trees/t1/.git || mv trees old; mkdir -p trees/t1; echo 'gitdir: ../../.evil' >trees/t1/.git",
            folder: "trees/t1",
        },
    ])
}

#[test]
fn g5_and_g6_links_hooks_and_settings_in_the_git_directory_run_and_write_nothing_on_the_host() -> Result<()> {
    nothing_runs(&[
        case("g5-log", "mkdir -p .git/logs; ln -sf \"$BASHRC\" .git/logs/HEAD"),
        case("g5-heads", "ln -sf \"$BASHRC\" .git/FETCH_HEAD; ln -sf \"$BASHRC\" .git/COMMIT_EDITMSG"),
        case(
            "g6-hooks",
            "mkdir -p .git/hooks; for h in pre-commit post-checkout post-index-change reference-transaction; do
            printf '#!/bin/sh\\n%s\\n' \"$EVIL\" >.git/hooks/$h; chmod +x .git/hooks/$h; done",
        ),
        case(
            "g6-settings",
            "git config core.fsmonitor \"$EVIL\"; git config diff.external \"$EVIL\"; git config filter.x.clean \"$EVIL\"
            mkdir -p .git/info; echo '* filter=x' >.git/info/attributes; git config core.sshCommand \"$EVIL\"",
        ),
    ])
}

#[test]
fn g7_another_spelling_of_the_git_file_does_not_lead_past_the_mount_over_it() -> Result<()> {
    // A second name of the file stands for what a file system that ignores case does.
    let world = World::new("tools")?;
    for protected in [false, true] {
        let linked = world.path(&format!("app-{}-linked-{protected}", world.id));
        world.git(["worktree", "add", "--quiet", "-b", &format!("b-{protected}"), &linked.display().to_string()])?;
        let names: [PathBuf; 2] = [".git", ".GIT"].map(|name| linked.join(name));
        fs::hard_link(&names[0], &names[1])?;
        let before = fs::read_to_string(&names[0])?;
        let attack = "echo 'gitdir: /evil' >.GIT; rm -f .GIT; mv .GIT x; true";
        if protected {
            world.pi_docker().within(&linked).args(["-p", &format!("sh: {attack}")]).run()?.expect(0)?;
        } else {
            as_it_is(&world, &linked, attack)?;
        }
        ensure!((fs::read_to_string(&names[0])? == before) == protected, "protected: {protected}");
    }
    Ok(())
}

#[test]
#[ignore = "long: more ways into submodules and worktrees"]
fn g4_moved_and_uninitialised_submodules_and_the_agents_own_worktrees_run_nothing_on_the_host() -> Result<()> {
    nothing_runs(&[
        Case {
            name: "g4-moved",
            before: SUBMODULES,
            attack: "cp -a $(git -C deep/er/sub rev-parse --absolute-git-dir) .evil; git config -f .evil/config core.worktree ../deep/er/sub
            git config -f .evil/config core.fsmonitor \"$EVIL\"; mv deep/er/sub deep/er/old || mv deep/er deep/old || mv deep old
            mkdir -p deep/er/sub; echo 'gitdir: ../../../.evil' >deep/er/sub/.git",
            folder: "deep/er/sub",
        },
        Case {
            name: "g4-empty",
            before: "git init -q ../library-$NAME && git -C ../library-$NAME commit -q --allow-empty -m library
            git -c protocol.file.allow=always submodule --quiet add $PWD/../library-$NAME sub; git commit -q -m sub
            git submodule --quiet deinit -f --all; rm -rf .git/modules",
            attack: "mv sub sub-old; git init -q sub; git -C sub commit -q --allow-empty -m x; git -C sub config core.fsmonitor \"$EVIL\"",
            folder: "sub",
        },
        Case {
            name: "g4-own",
            before: "",
            attack: "git worktree add -q .worktrees/t1; cp -a .git .worktrees/evil
            git config -f .worktrees/evil/config core.fsmonitor \"$EVIL\"; echo 'gitdir: ../evil' >.worktrees/t1/.git",
            folder: ".worktrees/t1",
        },
        case(
            "g2-config",
            "git config extensions.worktreeConfig true; git config -f .git/config.worktree core.fsmonitor \"$EVIL\"",
        ),
    ])
}
