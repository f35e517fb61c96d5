//! What a session with --git=direct may leave in the repository's git directory so that a later one shows it files of the host: other
//! folders to read objects from, links. Each is tried where nothing protects, too.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::error::Hinted;
use crate::git::{self, direct};
use crate::scene::Scene;

const SECRET: &str = "nobody else's business";

/// A folder of the user's with a secret in it.
fn secret(scene: &Scene) -> PathBuf {
    let folder = scene.base().join("secret");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("key"), SECRET).unwrap();
    folder
}

/// A direct session in which nothing happens but what is done by hand afterwards, as an agent did it that got past the protection.
fn direct_session(scene: &Scene) {
    direct::protect(&scene.site("direct")).unwrap();
    git::release(&scene.site("direct")).unwrap();
}

fn sees(mounts: &[git::Mount], folder: &Path) -> bool {
    mounts.iter().any(|mount| mount.host.canonicalize().is_ok_and(|host| host.starts_with(folder)))
}

/// The reason for which a session does not begin, with what to do about it.
fn refused(scene: &Scene) -> String {
    let error = git::prepare(&scene.site("next")).unwrap_err();
    let hint = error.downcast_ref::<Hinted>().map(|hinted| hinted.hint.clone()).unwrap_or_default();
    format!("{error:#}\n{hint}")
}

#[test]
fn a_direct_session_cannot_name_folders_of_the_host_that_a_private_one_then_shows() {
    for protect in [false, true] {
        let scene = Scene::new();
        let secret = secret(&scene);
        let mut mounts = scene.unprotected();
        if protect {
            mounts.extend(direct::protect(&scene.site("direct")).unwrap().mounts);
        }
        let attack = format!(
            "set +e; mv .git/objects .git/old; cp -a .git/old .git/objects; mv .git/objects/info .git/objects/old; mkdir -p .git/objects/info
            rm -f .git/objects/info/alternates; echo {} > .git/objects/info/alternates",
            secret.display()
        );
        let _ = scene.try_inside(&mounts, &attack);
        scene.git(&["fsck"]);
        git::release(&scene.site("direct")).unwrap();
        assert!(!protect || !scene.root.join(".git/objects/info/alternates").exists(), "what was made is removed");
        let private = git::prepare(&scene.site("next")).unwrap();
        assert_eq!(sees(&private.mounts, &secret), !protect, "protected {protect}");
    }
}

#[test]
fn after_a_direct_session_objects_are_borrowed_only_from_where_they_were_before_or_the_user_says() {
    let main = Scene::new();
    main.git_in(&main.base(), &["clone", "-q", "--shared", "repo", "second"]);
    let scene = main.at("second", "state-second");
    let (secret, lender) = (secret(&main), main.root.join(".git/objects"));
    direct_session(&scene);
    let private = git::prepare(&scene.site("one")).unwrap();
    assert!(sees(&private.mounts, &lender), "it was there before: {:?}", private.mounts);
    git::forget(&scene.site("one")).unwrap();

    let alternates = scene.root.join(".git/objects/info/alternates");
    fs::write(&alternates, format!("{}\n{}\n", lender.display(), secret.display())).unwrap();
    let why = refused(&scene);
    assert!(why.contains("cannot borrow objects from") && why.contains(&secret.display().to_string()), "{why}");
    // Neither moving the private side away nor a damaged memory of it changes that.
    git::set_aside(&scene.site("two")).unwrap();
    refused(&scene);
    fs::write(scene.state.join("git.json"), "{").unwrap();
    refused(&scene);
    // What the reason says to do about it helps.
    let setting = ["config", "--add", "pi-docker.objects"];
    scene.git(&[&setting[..], &[lender.to_str().unwrap()]].concat());
    refused(&scene);
    scene.git(&[&setting[..], &[secret.to_str().unwrap()]].concat());
    assert!(sees(&git::prepare(&scene.site("three")).unwrap().mounts, &secret));
}

#[test]
fn without_a_direct_session_the_user_may_begin_to_borrow_at_any_time() {
    let scene = Scene::new();
    git::prepare(&scene.site("one")).unwrap();
    git::forget(&scene.site("one")).unwrap();
    let other = scene.base().join("other");
    scene.git_in(&scene.base(), &["clone", "-q", "repo", "other"]);
    let objects = other.join(".git/objects");
    fs::write(scene.root.join(".git/objects/info/alternates"), format!("{}\n", objects.display())).unwrap();
    assert!(sees(&git::prepare(&scene.site("two")).unwrap().mounts, &objects));
}

#[test]
fn a_folder_in_the_tree_cannot_pass_for_a_submodule_to_show_another_repository() {
    for agents in [false, true] {
        let scene = Scene::new();
        let other = scene.base().join("other");
        scene.git_in(&scene.base(), &["clone", "-q", "repo", "other"]);
        let plant = format!("mkdir evil; echo 'gitdir: {}/.git' > evil/.git", other.display());
        if agents {
            let session = scene.prepare();
            session.agent(&plant);
            session.import();
        } else {
            scene.inside(&scene.unprotected(), &plant);
        }
        // The user adds everything.
        scene.git(&["-c", "advice.addEmbeddedRepo=false", "add", "-A"]);
        scene.git(&["commit", "-q", "-m", "with the folder"]);
        if agents {
            let why = refused(&scene);
            assert!(why.contains("evil/.git") && why.contains("other/.git/objects"), "{why}");
        } else {
            let private = git::prepare(&scene.site("next")).unwrap();
            assert!(sees(&private.mounts, &other), "before any session it is the user's own");
        }
    }
}

#[test]
fn links_in_the_git_directory_show_nothing_of_the_host_to_a_private_session() {
    for (name, target) in [
        ("MERGE_MSG", "key"),
        ("CHERRY_PICK_HEAD", "key"),
        ("info/exclude", "key"),
        ("info/attributes", "key"),
        ("info/sparse-checkout", "key"),
        ("info", ""),
        ("logs/refs/stash", "key"),
        ("logs/refs", ""),
        ("sharedindex.0", "key"),
        ("lfs", ""),
        ("lfs/objects", ""),
        ("index", "key"),
        ("shallow", "key"),
    ] {
        let scene = Scene::new();
        let secret = secret(&scene);
        for file in ["exclude", "attributes", "sparse-checkout", "stash", "objects/x"] {
            let file = secret.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, SECRET).unwrap();
        }
        direct_session(&scene);
        let link = scene.root.join(".git").join(name);
        let _ = fs::remove_file(&link);
        let _ = fs::remove_dir_all(&link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(secret.join(target), &link).unwrap();
        // The same read through the link shows it.
        let read = if target.is_empty() { link.join("key") } else { link.clone() };
        assert_eq!(fs::read_to_string(read).unwrap(), SECRET);
        match git::prepare(&scene.site("next")) {
            Ok(private) => assert!(!sees(&private.mounts, &secret), "{name}"),
            Err(e) => assert!(matches!(name, "index" | "shallow") && format!("{e:#}").contains(name), "{name}: {e:#}"),
        }
        let found = scene.try_git(&scene.base(), &["grep", "-q", "--no-index", SECRET, "--", "state"]);
        assert!(!found.status.success(), "{name}: it is in the private side");
    }
}

#[test]
fn links_in_the_git_directory_are_not_mounted_by_the_next_direct_session() {
    for name in ["modules", "worktrees", "hooks", "objects/info", "config.worktree"] {
        let scene = Scene::new();
        let folder = scene.base().join("home/project");
        fs::create_dir_all(folder.join("x")).unwrap();
        fs::write(folder.join("x/HEAD"), "ref: refs/heads/main\n").unwrap();
        direct_session(&scene);
        let link = scene.root.join(".git").join(name);
        let _ = fs::remove_dir_all(&link);
        symlink(&folder, &link).unwrap();
        let error = direct::protect(&scene.site("again")).unwrap_err();
        assert!(format!("{error:#}").contains("is a link"), "{name}: {error:#}");
        git::release(&scene.site("again")).unwrap();
        fs::remove_file(&link).unwrap();
        direct::protect(&scene.site("again")).unwrap();
    }
}

#[test]
fn a_large_file_is_not_written_through_a_link_in_the_git_directory() {
    for planted in [false, true] {
        let scene = Scene::new();
        let victim = secret(&scene);
        fs::create_dir_all(scene.root.join(".git/lfs/objects")).unwrap();
        let session = scene.prepare();
        session.agent(
            "printf 'large' > /tmp/l; o=$(sha256sum < /tmp/l | cut -c-64); d=.git/lfs/objects/$(echo $o | cut -c-2)/$(echo $o | cut -c3-4); mkdir -p $d; cp /tmp/l $d/$o
            printf 'version https://git-lfs.github.com/spec/v1\\noid sha256:%s\\nsize 5\\n' $o > big; git -c filter.lfs.clean=cat -c filter.lfs.process= add big; git commit -qm big",
        );
        let bundle = session.export();
        if planted {
            let oid = scene.inside(&scene.unprotected(), "printf large | sha256sum | cut -c-64");
            symlink(&victim, scene.root.join(".git/lfs/objects").join(&oid[..2])).unwrap();
        }
        let imported = session.import_file(&bundle);
        assert_eq!(imported.is_err(), planted, "{imported:?}");
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 1, "nothing is written there");
    }
}
