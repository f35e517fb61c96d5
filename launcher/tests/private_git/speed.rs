//! What it costs on a large repository, as time of the processor in a process of its own: what else the machine does is not counted, and
//! on an idle one the clock shows less, for some of it runs side by side. The build is a debug one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::git::{self, Limits};
use crate::scene::Scene;

#[test]
#[ignore = "long: makes 100,000 files"]
fn on_a_hundred_thousand_files_a_session_is_prepared_in_a_tenth_and_imported_in_half_a_second() {
    let scene = Scene::new();
    for folder in 0..1000 {
        let path = scene.root.join(format!("d{}/s{folder}", folder / 50));
        fs::create_dir_all(&path).unwrap();
        for file in 0..100 {
            fs::write(path.join(format!("f{file}")), format!("{folder} {file}\n")).unwrap();
        }
    }
    scene.commit("large");
    let prepared = measured(&scene, "prepare", &[], 10);
    let mut bundles = Vec::new();
    for number in 0..5 {
        let session = scene.prepare();
        assert_eq!(session.agent("git status --porcelain"), "");
        session.agent(&format!("echo {number} > README.md; for i in 1 2 3 4 5 6 7 8 9; do echo {number} > d$i/new; done; git add -A; git commit -qm x"));
        let bundle = scene.base().join(format!("bundle{number}"));
        fs::rename(session.export(), &bundle).unwrap();
        bundles.push(bundle.clone());
        let took = measured(&scene, &format!("import {}", session.id), &[bundle], 1);
        assert_eq!(scene.status(), "");
        eprintln!("imported in {took:?}");
        assert!(took < Duration::from_millis(500), "{took:?}");
    }
    eprintln!("prepared in {prepared:?}");
    assert!(prepared < Duration::from_millis(100), "{prepared:?}");
    let state: u64 = walk(&scene.state);
    assert!(state < 30 << 20, "no object is copied: {state} bytes");
}

/// The processor's time that a step takes, with all the processes that it starts.
fn measured(scene: &Scene, step: &str, bundles: &[PathBuf], runs: u32) -> Duration {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "speed::errand", "--nocapture"])
        .env("PI_TEST_SPEED", format!("{runs} {step}"))
        .env("PI_TEST_BASE", scene.base())
        .env("PI_TEST_BUNDLE", bundles.first().map_or(Path::new("/"), PathBuf::as_path))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let ticks = text
        .lines()
        .find_map(|line| line.strip_prefix("ticks "))
        .unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    Duration::from_millis(ticks.parse::<u64>().unwrap() * 10) / runs
}

/// Not a test by itself: the step that another one measures.
#[test]
fn errand() {
    let Ok(errand) = std::env::var("PI_TEST_SPEED") else { return };
    let base = PathBuf::from(std::env::var("PI_TEST_BASE").unwrap());
    let (root, state) = (base.join("repo"), base.join("state"));
    let env = [("PATH".into(), std::env::var_os("PATH").unwrap()), ("HOME".into(), base.join("home").into_os_string())];
    let words: Vec<&str> = errand.split(' ').collect();
    let site = git::Site {
        root: &root,
        state: &state,
        session: words.get(2).unwrap_or(&"measured"),
        env: &env,
        owner: None,
        others_live: false,
    };
    let before = ticks();
    for _ in 0..words[0].parse().unwrap() {
        match words[1] {
            "prepare" => {
                git::prepare(&site).unwrap();
                git::forget(&site).unwrap();
            }
            _ => {
                _ = git::import(&site, Path::new(&std::env::var_os("PI_TEST_BUNDLE").unwrap()), &Limits::default())
                    .unwrap()
            }
        }
    }
    println!("\nticks {}", ticks() - before);
}

/// User and system time of this process and of those it has waited for, in hundredths of a second.
fn ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').skip(11).take(4).map(|field| field.parse::<u64>().unwrap()).sum()
}

fn walk(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(
            |entry| {
                if entry.file_type().unwrap().is_dir() { walk(&entry.path()) } else { entry.metadata().unwrap().len() }
            },
        )
        .sum()
}
