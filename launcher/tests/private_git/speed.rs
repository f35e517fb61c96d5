//! What it costs on a large repository, in a process of its own. The bound is on the processor's time: what else the machine does is not
//! counted. The time by the clock is said beside it, as a median.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

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
    let prepared = measured(&scene, "prepare", None, 11);
    let mut imported = Vec::new();
    for number in 0..7 {
        let session = scene.prepare();
        assert_eq!(session.agent("git status --porcelain"), "");
        session.agent(&format!("echo {number} > README.md; for i in 1 2 3 4 5 6 7 8 9; do echo {number} > d$i/new; done; git add -A; git commit -qm x"));
        let bundle = scene.base().join(format!("bundle{number}"));
        fs::rename(session.export(), &bundle).unwrap();
        imported.extend(measured(&scene, &format!("import {}", session.id), Some(&bundle), 1));
        assert_eq!(scene.status(), "");
    }
    for (step, runs, most) in [("prepared", prepared, 100), ("imported", imported, 500)] {
        let [clock, processor] = [|run: &Run| run.clock, |run: &Run| run.processor].map(|of| {
            let mut all: Vec<Duration> = runs.iter().map(of).collect();
            all.sort();
            all[all.len() / 2]
        });
        eprintln!("{step}: {clock:?} by the clock, {processor:?} of the processor, medians of {}", runs.len());
        assert!(processor < Duration::from_millis(most), "{step}: {processor:?}");
    }
    let state: u64 = walk(&scene.state);
    eprintln!("the private side has {} MB", state >> 20);
    assert!(state < 30 << 20, "no object is copied: {state} bytes");
}

/// What one step took, with all the processes that it started.
struct Run {
    clock: Duration,
    processor: Duration,
}

fn measured(scene: &Scene, step: &str, bundle: Option<&Path>, runs: u32) -> Vec<Run> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "speed::errand", "--nocapture"])
        .env("PI_TEST_SPEED", format!("{runs} {step}"))
        .env("PI_TEST_BASE", scene.base())
        .env("PI_TEST_BUNDLE", bundle.unwrap_or(Path::new("/")))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let took = text.lines().filter_map(|line| line.strip_prefix("took ")?.split_once(' '));
    let runs: Vec<Run> = took
        .map(|(clock, ticks)| Run {
            clock: Duration::from_micros(clock.parse().unwrap()),
            processor: Duration::from_millis(ticks.parse::<u64>().unwrap() * 10),
        })
        .collect();
    assert!(!runs.is_empty(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    runs
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
    for _ in 0..words[0].parse().unwrap() {
        let (before, begun) = (ticks(), Instant::now());
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
        println!("\ntook {} {}", begun.elapsed().as_micros(), ticks() - before);
    }
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
