//! Files that come from the checkout beside the worktree instead of from git's store: exactly those that git would have written.

use crate::lab::Lab;

/// What git says about a worktree without looking at an index that somebody else made.
const LOOK: &str = r#"
    git diff-files >"$dir/stale"
    git ls-files -s >"$dir/index"; git ls-tree -r HEAD | sed 's/ [a-z]* / /; s/\t/ 0\t/' >"$dir/tree"
    rm "$(git rev-parse --git-path index)"; git reset -q; git status --porcelain >"$dir/changed"; say done; settle"#;

fn looked(lab: &Lab, task: &str) {
    lab.script(task, LOOK);
    let ran = lab.spawn(task, &["--pr", "none", "--allow-empty"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let read = |name: &str| std::fs::read_to_string(lab.scripts.join(name)).unwrap();
    assert_eq!(read("changed"), "", "a file is not what the commit says");
    assert_eq!(read("stale"), "", "the index does not know the files");
    assert_eq!(read("index"), read("tree"));
}

fn push(lab: &Lab) {
    lab.sh(&format!("git push -q '{}' main", lab.internet.repositories.join("o/r.git").display()));
}

#[test]
fn a_worktree_is_the_commit_whatever_somebody_has_changed_in_the_checkout() {
    let lab = Lab::new();
    lab.sh(r#"
        for n in changed touched deleted staged replaced linked kept; do echo "$n 1" >$n; done
        mkdir -p deep/er/dir gone 'sp ace'; echo a >deep/er/dir/a; echo b >gone/b; echo c >'sp ace/ü "c'; : >empty
        printf '#!/bin/sh\n' >run.sh; chmod 755 run.sh; ln -s deep/er link; ln -s /nowhere dangling; ln -s kept relinked
        git add .; git commit -qm files"#);
    push(&lab);
    looked(&lab, "all");
    // The same length and the same times: git's index says that it is as it was.
    lab.sh("touch -r changed times; echo 'changed 2' >changed; touch -r times changed; rm times");
    looked(&lab, "one");
    lab.sh("touch touched; rm deleted; echo 'staged 2' >staged; git add staged; rm replaced; mkfifo replaced");
    lab.sh("rm linked; ln -s kept linked; rm -r gone; ln -s deep gone; ln -sf empty relinked; chmod -x run.sh; echo new >untracked");
    let before = lab.sh("git status --porcelain");
    looked(&lab, "x");
    let place = lab.worktree("x");
    assert_eq!(std::fs::read_to_string(place.join("changed")).unwrap(), "changed 1\n");
    assert_eq!(std::fs::read_link(place.join("link")).unwrap().to_str(), Some("deep/er"));
    assert!(!place.join("untracked").exists());
    assert_eq!(lab.sh("git status --porcelain"), before);
    // Another base than what is checked out: some of it is there, the rest is not.
    lab.sh("git reset -q --hard; git clean -fdq; git checkout -qb other; head -c 3000000 /dev/zero >large.bin; echo 2 >kept; git rm -q touched; git add .; git commit -qm other");
    lab.sh(&format!("git push -q '{}' other", lab.internet.repositories.join("o/r.git").display()));
    lab.script("y", LOOK);
    let ran = lab.spawn("y", &["--pr", "none", "--allow-empty", "--base", "main"]);
    assert_eq!(
        (ran.code, lab.sh("cat .worktrees/y/kept; ls .worktrees/y/touched")),
        (0, "kept 1\n.worktrees/y/touched".into()),
        "{ran:?}"
    );
    looked(&lab, "z");
}

#[test]
fn a_file_is_copied_where_git_would_write_it_as_it_is_and_left_to_git_where_it_would_not() {
    // What is in the checkout has no CR: it was there before the setting was.
    for (setting, converted) in [
        ("true", ""),
        ("echo '*.txt text=auto' >.gitattributes", ""),
        ("git config core.autocrlf input", ""),
        ("git config core.autocrlf true", "\r"),
        ("echo '*.txt text' >.gitattributes; git config core.eol crlf", "\r"),
        ("echo '*.txt text eol=crlf' >.gitattributes", "\r"),
        ("mkdir -p sub; echo '*.txt text eol=crlf' >sub/.gitattributes", "\r"),
        ("echo '*.txt text eol=crlf' >.git/info/attributes", "\r"),
        ("mkdir -p ~/.config/git; echo '*.txt text eol=crlf' >~/.config/git/attributes", "\r"),
        ("echo '*.txt text eol=crlf' >~/own; git config --global core.attributesFile ~/own", "\r"),
    ] {
        let lab = Lab::new();
        lab.sh("mkdir sub; echo one >sub/one.txt; git add .; git commit -qm one");
        lab.sh(&format!("{setting}; git add .; git commit -qm setting --allow-empty"));
        push(&lab);
        let blob = lab.sh("git rev-parse HEAD:sub/one.txt; cat sub/one.txt | od -c | grep -c r || true");
        let blob = blob.lines().next().unwrap().to_owned();
        // Without what is stored, only a copy can be made.
        let object = format!(".git/objects/{}/{}", &blob[..2], &blob[2..]);
        if converted.is_empty() {
            lab.sh(&format!("mv {object} {object}.aside"));
        }
        lab.script("x", "cp sub/one.txt \"$dir/seen\"; say done; settle");
        let ran = lab.spawn("x", &["--pr", "none", "--allow-empty"]);
        let seen = std::fs::read_to_string(lab.scripts.join("seen")).unwrap_or_default();
        assert_eq!(seen, format!("one{converted}\n"), "{setting}: {ran:?}");
    }
}

#[test]
fn a_file_is_as_in_a_worktree_of_gits_own_whatever_setting_says_so() {
    let settings = [
        // Blob, commit: `git replace` lets one stand for the other.
        "git replace $(git rev-parse HEAD:one.txt) $(echo two | git hash-object -w --stdin)",
        "old=$(git rev-parse HEAD); echo two >one.txt; git commit -qam two; new=$(git rev-parse HEAD); git reset -q --hard $old; git replace $old $new",
        "mkdir a; echo '*.txt text eol=crlf' >a/.gitattributes; git add a; git config attr.tree $(git write-tree --prefix=a); git rm -qrf a",
        "printf '[core]\\n\\tautocrlf\\n' >>.git/config",
        "printf '[core]\\n\\tautocrlf = true\\n' >~/inc; git config --global 'includeIf.hasconfig:remote.*.url:https://github.test/**.path' ~/inc",
        "echo '*.txt text eol=crlf' >~/own; git config core.attributesFile \"~$(id -un)/../..$HOME/own\"",
        "git config extensions.worktreeConfig true; git config --worktree core.autocrlf true",
        "printf '[attr]odd text eol=crlf\\n' >.git/info/attributes; echo '*.txt odd' >.gitattributes; git add .; git commit -qm odd",
    ];
    crate::lab::each(settings, |setting| {
        let lab = Lab::new();
        lab.sh("echo one >one.txt; git add .; git commit -qm one");
        push(&lab);
        lab.sh(setting);
        lab.sh("git worktree add -q --detach ../git; cp .git/config.worktree .git/worktrees/git/ 2>/dev/null && git -C ../git rm -qf one.txt && git -C ../git reset -q --hard || true");
        let changed = lab.sh("cp ../git/one.txt ../seen; cd ../git; touch one.txt; git status --porcelain");
        lab.script(
            "x",
            "cp one.txt \"$dir/seen\"; touch one.txt; git status --porcelain >\"$dir/changed\"; say done; settle",
        );
        let ran = lab.spawn("x", &["--pr", "none", "--allow-empty"]);
        let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let pair = (read(lab.scripts.join("seen")), read(lab.scripts.join("changed")));
        let pair = (pair.0, pair.1.trim_end().to_owned());
        assert_eq!(pair, (read(lab.root.join("seen")), changed.trim_end().to_owned()), "{setting}: {ran:?}");
    });
}
