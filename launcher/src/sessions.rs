//! The sessions that run: ending them, listing them, what they said and what they were refused.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::allowlist::{self, Domain};
use crate::cli::{GitMode, Owner};
use crate::config::Config;
use crate::denied::{self, Denial, Kept};
use crate::docker::Docker;
use crate::error::{Silent, hinted};
use crate::home::Home;
use crate::inputs;
use crate::private_side::{PrivateSide, WARNING};
use crate::recover::Orphans;
use crate::repo::Place;
use crate::run_dir::{self, Record};
use crate::session;
use crate::terminal::{Terminal, printable};

/// How long pi-subagent may take to answer, so that one stuck session does not hide the others.
const SUBAGENTS: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(200);
/// How long a session may take to end: the container's grace period, and what is done after it.
const GONE: Duration = Duration::from_secs(60);

/// What the commands here begin with.
struct Scene {
    terminal: Terminal,
    home: Home,
    docker: Docker,
    /// The repository that is asked about; `None` for all.
    repository: Option<String>,
}

impl Scene {
    /// `outside` is what else can be done where there is no repository.
    fn new(config: &Config, all: bool, outside: &str) -> Result<Scene> {
        let advice = || format!("cd into one{outside}");
        Ok(Scene {
            terminal: Terminal::new(true, config.no_colour),
            home: Home::find(config)?,
            docker: Docker::new(config, &BTreeMap::new()),
            repository: if all { None } else { Some(Place::find_or(&config.cwd, &advice())?.id()) },
        })
    }

    fn running(&self) -> Result<Vec<(Record, PathBuf)>> {
        let mut running = run_dir::running(&self.home)?;
        running.retain(|(record, _)| self.repository.as_ref().is_none_or(|id| *id == record.repository_id));
        running.sort_by_key(|(record, _)| record.started);
        Ok(running)
    }

    fn none(&self) -> anyhow::Error {
        self.terminal.say(if self.repository.is_none() {
            "no session is running"
        } else {
            "no session of this repository is running"
        });
        Silent(1).into()
    }
}

/// Ends the sessions of the repository that the user is in, or all of them, and waits until nothing is left of them. Those whose
/// launcher is gone are cleaned up from here.
pub(crate) fn stop(config: &Config, all: bool) -> Result<u8> {
    let scene = Scene::new(config, all, ", or pi-docker stop --all")?;
    let mut running = scene.running()?;
    // A look of `doctor` has no login to name, and ends by itself.
    running.retain(|(record, _)| !record.auth.as_os_str().is_empty());
    let orphans = Orphans::find(&scene.home)?.of(scene.repository.as_deref());
    if running.is_empty() && orphans.is_empty() {
        return Err(scene.none());
    }
    running.iter().for_each(|(record, _)| scene.terminal.say(&format!("ending {} …", record.project)));
    thread::scope(|scope| {
        let ends: Vec<_> = running.iter().map(|(record, _)| scope.spawn(|| end(&scene, record))).collect();
        ends.into_iter().map(|end| end.join().unwrap_or(Ok(()))).fold(Ok(()), Result::and)
    })?;
    orphans.wipe(&scene.terminal)?;
    let cleaned = orphans.remove(&scene.home, &scene.docker, &scene.terminal);
    Ok(u8::from(!cleaned))
}

/// Ends one session and waits until its launcher has taken everything away.
fn end(scene: &Scene, record: &Record) -> Result<()> {
    // Or every failure below would look like a container that is not there.
    scene.docker.engine()?;
    let deadline = Instant::now() + GONE;
    while run_dir::running(&scene.home)?.iter().any(|(running, _)| running.session == record.session) {
        if Instant::now() > deadline {
            return Err(hinted(
                format!("cannot end {}: it is still there after {} s", record.project, GONE.as_secs()),
                format!("docker kill {}", record.container),
            ));
        }
        // A session that is just starting has no container yet, one that is ending no longer.
        if scene.docker.stop(&record.container).is_err() {
            thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// Fetches what has been committed so far in the sessions of the repository that the user is in.
pub(crate) fn fetch(config: &Config) -> Result<u8> {
    let scene = Scene::new(config, false, ": pi-docker status lists where sessions run")?;
    let Some((record, _)) = scene.running()?.pop() else {
        return Err(scene.none());
    };
    let side = PrivateSide {
        docker: &scene.docker,
        terminal: &scene.terminal,
        home: &scene.home,
        repository_id: &record.repository_id,
        root: &record.root,
        env: &config.git_env,
        user: Owner { uid: record.user.0, gid: record.user.1 },
        image: "",
        mode: GitMode::Private,
    };
    // The sessions of a repository share one private git directory: any of them has it all.
    if !side.fetch_now(&record.session, &record.container)? {
        scene.terminal.say("nothing new");
    }
    Ok(0)
}

/// Lists the sessions of all repositories, and their subagents as pi-subagent in the container tells it.
pub(crate) fn status(config: &Config, as_json: bool) -> Result<u8> {
    let scene = Scene::new(config, true, "")?;
    let running = scene.running()?;
    let orphans: Vec<Record> = Orphans::find(&scene.home)?.records().cloned().collect();
    let tasks: Vec<Option<Value>> = thread::scope(|scope| {
        let asked: Vec<_> =
            running.iter().map(|(record, _)| scope.spawn(|| subagents(&scene.docker, record))).collect();
        asked.into_iter().map(|asked| asked.join().ok().flatten()).collect()
    });
    let sessions = running.iter().zip(tasks);
    let warnings = |run: &Path| -> Vec<String> {
        let lines = new_lines(&run.join("control/log"), &mut 0).unwrap_or_default();
        lines.iter().filter_map(|line| line.strip_prefix(WARNING)).map(str::to_owned).collect()
    };
    if as_json {
        let sessions: Vec<Value> = sessions
            .map(|((record, run), tasks)| {
                json!({
                    "project": record.project, "session": record.session, "repository": record.root,
                    "started": record.started, "pid": record.pid, "subagents": tasks,
                    "warnings": warnings(run),
                })
            })
            .collect();
        let left: Vec<Value> = orphans
            .iter()
            .map(|record| {
                json!({ "project": record.project, "session": record.session, "repository": record.root, "started": record.started })
            })
            .collect();
        scene.terminal.answer(&json!({ "sessions": sessions, "left": left }).to_string());
        return Ok(0);
    }
    if running.is_empty() && orphans.is_empty() {
        scene.terminal.answer("no session is running");
    }
    let head = |record: &Record| {
        let root = record.root.display().to_string();
        let what = if record.has_no_repository() { "no repository" } else { root.as_str() };
        let when = denied::ago(record.started, SystemTime::now());
        scene.terminal.answer(&format!("{}  {}  started {when}", record.project, printable(what)));
    };
    for record in &orphans {
        head(record);
        scene.terminal.answer("  its launcher is gone: pi-docker stop --all, or the next start, cleans up");
    }
    for ((record, run), tasks) in sessions {
        head(record);
        warnings(run).iter().for_each(|line| scene.terminal.answer(&format!("  warning: {}", printable(line))));
        let lines: Vec<&Value> = tasks.iter().flat_map(|tasks| tasks.as_array().into_iter().flatten()).collect();
        for task in lines {
            scene.terminal.answer(&format!("  {}", printable(task["text"].as_str().unwrap_or_default())));
        }
        if tasks.is_none() && !record.has_no_repository() {
            scene.terminal.answer("  subagents: no answer");
        }
    }
    Ok(0)
}

fn subagents(docker: &Docker, record: &Record) -> Option<Value> {
    if record.has_no_repository() {
        return None;
    }
    let user = format!("{}:{}", record.user.0, record.user.1);
    let words = [
        "exec",
        "--user",
        &user,
        "--workdir",
        "/workspace",
        "--env",
        "HOME=/home/pi",
        &record.container,
        "pi-subagent",
        "list",
        "--json",
    ];
    let output = docker.ask(words, SUBAGENTS).ok().filter(|output| output.status.success())?;
    let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
    answer.get("tasks").filter(|tasks| tasks.is_array()).cloned()
}

/// Shows what PID 1 and pi-subagent said: in the session of this name, else in those of this repository that run, else in the last one.
pub(crate) fn logs(config: &Config, session: Option<&str>, follow: bool) -> Result<u8> {
    let outside = ", or pi-docker logs SESSION: pi-docker status lists those that run";
    let scene = Scene::new(config, session.is_some(), outside)?;
    let mut running = scene.running()?;
    if let Some(name) = session {
        running.retain(|(record, _)| record.project == name || record.session == name);
        if running.is_empty() {
            return Err(hinted(format!("no session '{name}' is running"), "pi-docker status lists those that run"));
        }
    }
    let mut files: Vec<PathBuf> = running.into_iter().map(|(_, run)| run.join("control/log")).collect();
    let runs = !files.is_empty();
    if !runs {
        if follow {
            return Err(scene.none());
        }
        let state = scene.home.state(scene.repository.as_deref().unwrap_or_default());
        files.push(state.join("last.log"));
    }
    let mut read = vec![0; files.len()];
    loop {
        let mut any = false;
        for (file, at) in files.iter().zip(&mut read) {
            any |= file.exists();
            for line in new_lines(file, at)? {
                scene.terminal.answer(&printable(&line));
            }
        }
        if !follow && read.iter().all(|at| *at == 0) {
            scene.terminal.say(if any || runs { "nothing was said" } else { "no session has been here yet" });
        }
        if !follow || !any {
            return Ok(0);
        }
        thread::sleep(LOOK);
    }
}

/// The whole lines that have come since the last look.
fn new_lines(file: &Path, at: &mut u64) -> Result<Vec<String>> {
    let Ok(mut log) = fs::File::open(file) else { return Ok(Vec::new()) };
    let mut text = Vec::new();
    log.seek(SeekFrom::Start(*at))
        .and_then(|_| log.take(4 << 20).read_to_end(&mut text))
        .with_context(|| format!("cannot read '{}'", file.display()))?;
    let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |newline| newline + 1);
    *at += whole as u64;
    Ok(String::from_utf8_lossy(&text[..whole]).lines().map(str::to_owned).collect())
}

/// Shows what was refused, by host, in the sessions that run and those that have ended; `follow`: as it happens.
pub(crate) fn denied(config: &Config, all: bool, follow: bool) -> Result<u8> {
    let scene = Scene::new(config, all, ", or pi-docker denied --all")?;
    let running: Vec<_> = scene.running()?.into_iter().filter(|(record, _)| !record.has_no_repository()).collect();
    if follow {
        if running.is_empty() {
            return Err(scene.none());
        }
        return follow_denied(&scene, running);
    }
    let mut found: Vec<Kept> = denied::kept(&scene.home.join("denied.log"));
    found.retain(|kept| scene.repository.as_ref().is_none_or(|id| *id == kept.repository));
    for (record, run) in &running {
        let (log, allowed) = (scene.docker.logs(&record.proxy()), allowed(run));
        let denials = log.lines().filter_map(|line| Denial::parse(line, &allowed));
        found.extend(denied::group(denials, &record.repository_id, &record.session));
    }
    let mut hosts: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for kept in found {
        let entry = hosts.entry((kept.host, kept.reason)).or_default();
        *entry = (entry.0.max(kept.time), entry.1 + kept.count);
    }
    let mut hosts: Vec<_> = hosts.into_iter().collect();
    hosts.sort_by_key(|(_, (time, _))| *time);
    if hosts.is_empty() {
        scene.terminal.say("nothing was refused");
    }
    for ((host, reason), (time, count)) in hosts {
        let when = denied::ago(time, SystemTime::now());
        scene.terminal.answer(&line(&host, &reason, &format!("{count}×, {when}")));
    }
    Ok(0)
}

fn line(host: &str, reason: &str, when: &str) -> String {
    let remedy = Denial::remedy(host, reason).map(|command| format!("  → {command}")).unwrap_or_default();
    printable(&format!("{host:<40} {when:<18} {reason}{remedy}")).into_owned()
}

fn follow_denied(scene: &Scene, running: Vec<(Record, PathBuf)>) -> Result<u8> {
    let (sender, denials) = mpsc::channel();
    let since = session::unix_now();
    thread::scope(|scope| {
        for (record, run) in &running {
            let sender = sender.clone();
            scope.spawn(move || watch(&scene.docker, record, run, since, &sender));
        }
        drop(sender);
        for denial in denials {
            scene.terminal.answer(&line(&denial.host, &denial.reason, "now"));
        }
    });
    Ok(0)
}

/// Sends the refusals of one session until it ends. `allow --remove` restarts the proxy, and docker lets go of its log then: it is
/// taken up again where it was left.
fn watch(docker: &Docker, record: &Record, run: &Path, since: u64, denials: &mpsc::Sender<Denial>) {
    let mut seen = format!("{since}.000");
    while run.exists() {
        let (before, from) = (seen.clone(), seen.split('.').next().unwrap_or_default().to_owned());
        let Ok(mut child) = docker.follow(&["logs", "--follow", "--since", &from, &record.proxy()]) else { return };
        let lines = child.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines);
        for line in lines.map_while(Result::ok) {
            // Squid's own time comes first, in digits of one length.
            let Some(time) = line.split(' ').next().filter(|time| **time > *before) else { continue };
            let Some(denial) = Denial::parse(&line, &allowed(run)) else { continue };
            time.clone_into(&mut seen);
            if denials.send(denial).is_err() {
                break;
            }
        }
        let _ = child.wait();
        thread::sleep(LOOK);
    }
}

/// What is let through in a session now.
fn allowed(run: &Path) -> Vec<Domain> {
    inputs::read_list(&run.join("squid/allow.txt")).map(allowlist::merge).unwrap_or_default()
}
