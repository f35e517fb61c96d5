//! Start, stop, memory and size of pi-entrypoint beside what people use, in one go: every round runs every subject once, in turn.
//!
//! Each run is PID 1 of new PID, mount and network namespaces with the session's files mounted where the container has them, on the
//! machine's own file system. Times are from the moment before `execve` of the subject to the first instruction of a main program
//! of 1 KB, and from SIGTERM to the end of PID 1. `run` beside this builds what is measured and starts it.
#![allow(clippy::disallowed_methods, reason = "a bench starts programs")]

mod namespaces;

use std::path::{Path, PathBuf};
use std::process::Command;

use namespaces::{Fixture, Measured};

struct Subject {
    name: &'static str,
    argv: Vec<String>,
    /// What has to be there, for its size.
    files: Vec<PathBuf>,
}

#[derive(Default)]
struct Samples {
    start: Vec<f64>,
    stop: Vec<f64>,
    total: Vec<f64>,
    faults: Vec<f64>,
    rss: Vec<f64>,
    pss: Vec<f64>,
    calls: f64,
    bytes: f64,
}

const UID: &str = "65534";

fn subjects(ours: &str, chain: &str) -> Vec<Subject> {
    let subject = |name, line: &str, files: &[&str]| Subject {
        name,
        argv: line.split_whitespace().map(str::to_owned).collect(),
        files: files.iter().map(PathBuf::from).collect(),
    };
    let (init, gosu) = ("/usr/bin/tini-static", "/usr/sbin/gosu");
    vec![
        subject("main alone", "", &[]),
        subject("docker-init", &format!("{init} --"), &[init]),
        subject("docker-init + gosu", &format!("{init} -- {gosu} {UID}:{UID}"), &[init, gosu]),
        subject(
            "docker-init + setpriv",
            &format!(
                "{init} -- setpriv --reuid={UID} --regid={UID} --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs"
            ),
            &[init, "/usr/bin/setpriv"],
        ),
        subject("shell chain", &format!("{init} -- {chain}"), &[init, gosu, "/bin/bash", chain]),
        subject("pi-entrypoint", ours, &[ours]),
    ]
}

fn main() {
    let rounds: usize = std::env::args().nth(1).map_or(40, |rounds| rounds.parse().expect("a number of rounds"));
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ours = std::env::var("PI_ENTRYPOINT_UNDER_TEST").expect("started by bench/entrypoint/run");
    let ours = std::fs::canonicalize(ours).expect("the program to measure");
    let fixture = Fixture::new(&here.join("src/main.c"));
    let subjects = subjects(ours.to_str().expect("a path"), here.join("chain.sh").to_str().expect("a path"));
    let mut samples: Vec<Samples> = subjects.iter().map(|_| Samples::default()).collect();
    for round in 0..rounds {
        for turn in 0..subjects.len() {
            let index = (round + turn) % subjects.len();
            let (subject, samples) = (&subjects[index], &mut samples[index]);
            let Measured { start, total, faults, .. } = fixture.run(&subject.argv, false);
            samples.start.push(start);
            samples.total.push(total);
            samples.faults.push(faults);
            let Measured { stop, rss, pss, .. } = fixture.run(&subject.argv, true);
            samples.stop.push(stop);
            samples.rss.push(rss);
            samples.pss.push(pss);
        }
    }
    for (subject, samples) in subjects.iter().zip(&mut samples) {
        samples.calls = fixture.count_calls(&subject.argv);
        samples.bytes =
            subject.files.iter().map(|file| std::fs::metadata(file).expect("a file").len()).sum::<u64>() as f64;
    }
    report(&subjects, &samples);
}

fn report(subjects: &[Subject], samples: &[Samples]) {
    let (base, ours) = (&samples[0], samples.last().expect("ours"));
    let over = |a: &[f64], b: &[f64]| median(a.iter().zip(b).map(|(a, b)| a - b).collect());
    println!(
        "| | + start, ms | start to end, ratio | stop, ms | RSS, KiB | PSS, KiB | system calls | page faults | bytes |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (subject, samples) in subjects.iter().zip(samples) {
        println!(
            "| {} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
            subject.name,
            over(&samples.start, &base.start),
            median(samples.total.iter().zip(&base.total).map(|(a, b)| a / b).collect()),
            median(samples.stop.clone()),
            median(samples.rss.clone()),
            median(samples.pss.clone()),
            samples.calls - base.calls,
            over(&samples.faults, &base.faults),
            samples.bytes
        );
    }
    let start = |index: usize| over(&samples[index].start, &base.start);
    let own = over(&ours.start, &base.start);
    let stop_over = |samples: &Samples| over(&samples.stop, &base.stop);
    let goals = [
        ("start / (docker-init + setpriv)", own / start(3), 1.0),
        ("start / shell chain", own / start(4), 1.0 / 20.0),
        ("start / docker-init (stretch)", own / start(1), 1.2),
        ("stop with wipe / shell chain's", stop_over(ours) / stop_over(&samples[4]), 1.0 / 100.0),
        ("RSS, KiB", median(ours.rss.clone()), 512.0),
        ("RSS / docker-init's", median(ours.rss.clone()) / median(samples[1].rss.clone()), 0.7),
        ("size, KiB", ours.bytes / 1024.0, 500.0),
    ];
    println!("\n| goal | measured | at most | |\n|---|---|---|---|");
    for (name, measured, limit) in goals {
        let verdict = if measured <= limit { "met" } else { "missed" };
        println!("| {name} | {measured:.4} | {limit:.4} | {verdict} |");
    }
    let version = Command::new("uname").args(["-r", "-m"]).output().expect("uname").stdout;
    println!("\nMedians of {} rounds on {}", base.start.len(), String::from_utf8_lossy(&version).trim());
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
