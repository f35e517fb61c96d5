//! Running the containers of a session or a login, from the first command of docker to nothing being left of them.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ChildStdin;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::docker::{Docker, Output};
use crate::error::hinted;
use crate::foreground::{self, Foreground};
use crate::heartbeat::Heartbeat;
use crate::home::Home;
use crate::recover;
use crate::run_dir::{self, RunDir};
use crate::terminal::Terminal;

/// How much of a failed build is shown where nobody has seen it.
const TAIL: usize = 40;
/// Between two looks whether pi runs.
const LOOK: Duration = Duration::from_millis(20);

/// Runs a build. On a terminal it shows what docker shows, elsewhere it is quiet unless it fails.
pub(crate) fn build(
    docker: &Docker,
    terminal: &Terminal,
    foreground: &Foreground,
    words: &[OsString],
    what: &str,
) -> Result<()> {
    let began = Instant::now();
    terminal.say(&format!("building {what} …"));
    let mut log = if terminal.shows_progress() {
        None
    } else {
        Some(tempfile::tempfile().context("cannot make a file for the build's output")?)
    };
    let output = match &log {
        Some(log) => Output::File(log.try_clone().context("cannot make a file for the build's output")?),
        None => Output::Narration,
    };
    let status = foreground.wait(docker.spawn(words, output)?, |pid, _| foreground::terminate(pid))?;
    foreground.check()?;
    if status.success() {
        terminal.say(&format!("built {what} in {} s", began.elapsed().as_secs()));
        return Ok(());
    }
    if let Some(log) = &mut log {
        let mut text = Vec::new();
        log.rewind().and_then(|()| log.read_to_end(&mut text)).context("cannot read the build's output")?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].iter().for_each(|line| terminal.say(line));
    }
    match status.signal() {
        Some(signal) => Err(anyhow!("cannot build {what}: docker was ended by signal {signal}")),
        None => Err(anyhow!("cannot build {what}: docker says why above")),
    }
}

/// Runs the session's containers until pi has ended; returns its exit status.
pub(crate) fn run(
    docker: &Docker,
    foreground: &Foreground,
    run: &RunDir,
    command: &[OsString],
    heartbeat: Heartbeat,
) -> Result<u8> {
    foreground.check()?;
    let container = &run.record.container;
    let status = thread::scope(|scope| {
        let fed = !Terminal::is_interactive() && Terminal::has_input();
        let mut child = docker.spawn(command, if fed { Output::Fed } else { Output::Terminal })?;
        if let Some(pipe) = child.stdin.take() {
            feed(pipe, run.path.clone());
        }
        foreground.wait(child, |pid, before| {
            scope.spawn(move || match before {
                // Without a container yet, docker itself is what has to end.
                0 => docker.stop(container).unwrap_or_else(|_| foreground::terminate(pid)),
                _ => docker.kill(container),
            });
        })
    })?;
    let mut result = run.result();
    if result.is_none() {
        // Docker's command has ended, PID 1 has not, or was killed: it still gets its time to save and to wipe.
        let _ = docker.stop(container);
        result = run.result();
    }
    drop(heartbeat);
    let exit = result.as_ref().and_then(|result| result["exit"].as_u64()).and_then(|exit| u8::try_from(exit).ok());
    match (status.code(), exit) {
        (None, Some(exit)) => Ok(exit),
        // A status of docker's own, which nobody can tell from one of pi's.
        (Some(1..), None) if !run_dir::began(&run.path) && foreground.check().is_ok() => Err(hinted(
            "cannot start the containers: docker says why above",
            "pi-docker doctor looks at everything that a session needs",
        )),
        _ => Ok(foreground::code(status)),
    }
}

/// Passes on what comes in, and its end only when pi runs: docker can lose an end that comes before, and pi would wait for it for ever.
fn feed(mut pipe: ChildStdin, run: PathBuf) {
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut pipe);
        while run.exists() && !run_dir::began(&run) {
            thread::sleep(LOOK);
        }
    });
}

/// Takes away everything that was made on this machine. All steps are tried; the first failure is returned.
pub(crate) fn clean_up(docker: &Docker, home: &Home, run: RunDir) -> Result<()> {
    let taken = take_down(docker, home, &run);
    forget(run, taken)
}

/// The first half of the clean-up: everything but the session's own folder.
pub(crate) fn take_down(docker: &Docker, home: &Home, run: &RunDir) -> Result<()> {
    let wiped = recover::wipe(&run.record, &run.path).map(drop);
    if !run.record.has_no_repository() {
        recover::keep_logs(docker, home, &run.record, &run.path);
    }
    wiped.and(docker.remove_project(&run.record.project))
}

/// The second half. As long as something is left, the folder stays: the next start reads in it what to do.
pub(crate) fn forget(run: RunDir, taken: Result<()>) -> Result<()> {
    match taken {
        Ok(()) => run.remove(),
        Err(e) => {
            let _ = fs::remove_dir_all(run.path.join("in"));
            Err(e.context("cannot clean up after the session; the next start tries again"))
        }
    }
}
