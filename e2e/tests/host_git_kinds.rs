//! Kinds of repositories in real sessions: the agent sees what the user sees, its commit comes back, and the host is as it was but for it.
//! docs/git.md has the table; `launcher/tests/private_git/kinds.rs` looks at each kind more closely.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use e2e::World;

/// Runs the user's shell in a folder; it must succeed.
fn on_host(world: &World, folder: &Path, script: &str) -> Result<String> {
    let mut shell = world.user.command("bash", &world.home());
    let output = shell.args(["-euc", script]).current_dir(folder).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// How each kind is made: the script runs in the world's folder and makes the repository `$R` from `$FROM`.
const KINDS: &[(&str, &str)] = &[
    ("plain", "git clone -q $FROM $R; cd $R; echo changed >>README.md; echo new >untracked"),
    ("shallow", "git clone -q --depth 1 file://$FROM $R"),
    ("partial", "git -C $FROM config uploadpack.allowFilter true; git clone -q --filter=blob:none file://$FROM $R"),
    ("sparse", "git clone -q $FROM $R; cd $R; git sparse-checkout set --cone docs"),
    ("sha256", "git init -q --object-format=sha256 $R; cd $R; echo x >x; git add x; git commit -qm first"),
    ("detached", "git clone -q $FROM $R; cd $R; git checkout -q --detach"),
    ("stashes", "git clone -q $FROM $R; cd $R; echo a >>README.md; git stash -q; echo b >>README.md; git stash -q"),
    ("empty", "git init -q $R"),
    ("elsewhere", "git clone -q --separate-git-dir=$R.git $FROM $R"),
    ("borrowing", "git clone -q --shared $FROM $R"),
    (
        "submodules",
        "git clone -q $FROM $R; cd $R; git init -q ../lib; git -C ../lib commit -q --allow-empty -m lib
        git -c protocol.file.allow=always submodule --quiet add $PWD/../lib a/sub; git commit -qm sub",
    ),
];

#[test]
#[ignore = "long: a session for each kind of repository"]
fn a_commit_comes_back_from_every_kind_of_repository_and_the_host_is_as_it_was_but_for_it() -> Result<()> {
    let world = World::new("tools")?;
    for (kind, make) in KINDS {
        comes_back(&world, kind, make).with_context(|| (*kind).to_owned())?;
    }
    Ok(())
}

fn comes_back(world: &World, kind: &str, make: &str) -> Result<()> {
    let repo = world.path(&format!("app-{}-{kind}", world.id));
    let names = format!("R={} FROM={}", repo.display(), world.repo.display());
    on_host(world, &world.path(""), &format!("{names}\n{make}"))?;
    let look = "git status --porcelain; git stash list; git symbolic-ref -q HEAD || echo detached";
    let before = on_host(world, &repo, look)?;
    let script = format!("{look}; echo made >made.txt; git add made.txt; git commit -qm 'by the agent'");
    let ran = world.pi_docker().within(&repo).args(["-p", &format!("sh: {script}")]).run()?.expect(0)?;
    ensure!(ran.stdout.contains(&before), "the agent sees {}, the user saw {before}", ran.stdout);
    ensure!(on_host(world, &repo, "git log -1 --format=%s")? == "by the agent", "{}", ran.stderr);
    let after = on_host(world, &repo, look)?;
    ensure!(after == before, "after the session: {after}; before: {before}");
    on_host(world, &repo, "git fsck").map(drop)
}

#[test]
fn a_repository_in_the_middle_of_a_rebase_stays_there_and_the_agents_commit_is_kept_aside() -> Result<()> {
    let world = World::new("tools")?;
    let conflict = "git checkout -q -b topic; echo topic >README.md; git commit -qam topic; git checkout -q main
        echo main >README.md; git commit -qam main; git checkout -q topic; ! git rebase -q main 2>/dev/null";
    on_host(&world, &world.repo, conflict)?;
    let script = "git status --porcelain; echo solved >README.md; git add README.md; git commit -qm solved";
    let ran = world.pi_docker().args(["-p", &format!("sh: {script}")]).run()?.expect(0)?;
    ensure!(ran.stdout.contains("UU README.md") && ran.stderr.contains("a rebase is unfinished"), "{}", ran.stderr);
    ensure!(world.git(["log", "-1", "--format=%s", "topic"])? == "topic", "it is being rebased");
    ensure!(world.git(["for-each-ref", "--format=%(subject)", "refs/pi"])? == "solved");
    on_host(&world, &world.repo, "git add README.md; GIT_EDITOR=true git rebase --continue")?;
    ensure!(world.git(["log", "--format=%s"])?.starts_with("topic\nmain\n"));
    Ok(())
}

#[test]
fn large_files_of_git_lfs_go_in_and_new_ones_come_back_with_the_commits() -> Result<()> {
    let world = World::new("tools")?;
    // As a host with git-lfs leaves it: the content in the tree and beside the repository, a pointer in the commit.
    let keep = r#"
keep() {
    oid=$(sha256sum <$1 | cut -c-64); place=.git/lfs/objects/${oid:0:2}/${oid:2:2}; mkdir -p $place; cp $1 $place/$oid
    blob=$(printf 'version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %s\n' $oid $(stat -c %s $1) | git hash-object -w --stdin)
    git update-index --add --cacheinfo 100644,$blob,$1
}
echo '*.bin filter=lfs diff=lfs merge=lfs -text' >.gitattributes; git add .gitattributes
head -c 300000 /dev/urandom >old.bin; keep old.bin; git commit -qm large"#;
    on_host(&world, &world.repo, keep)?;
    let script = "git lfs ls-files -n; git status --porcelain; head -c 200000 /dev/urandom >new.bin; git add new.bin; git commit -qm new; sha256sum <new.bin
        rm old.bin; git checkout -q old.bin; sha256sum <old.bin";
    let seen = world.agent_sh(script)?;
    let hash = |name: &str| on_host(&world, &world.repo, &format!("sha256sum <{name} | cut -c-64"));
    let (old, new) = (hash("old.bin")?, hash("new.bin")?);
    ensure!(seen.contains("old.bin") && !seen.contains(" M ") && seen.contains(&old) && seen.contains(&new), "{seen}");
    ensure!(world.git(["show", "HEAD:new.bin"])?.contains(&format!("oid sha256:{new}")), "the commit has a pointer");
    let stored = format!(".git/lfs/objects/{}/{}/{new}", &new[..2], &new[2..4]);
    ensure!(hash(&stored)? == new, "the content is beside the repository");
    Ok(())
}
