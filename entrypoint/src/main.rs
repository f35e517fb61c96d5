//! PID 1 of the session's container: prepares it, starts pi without any privilege, supervises it, and wipes the credentials.
//!
//! This file is the story, in order. What runs as root is in places.rs; what is done with the agent's files is done as the user.
//! Linux only; docs/architecture.md has the contract with the launcher, and the exit codes are in failure.rs.
#![cfg_attr(not(test), no_main)]

mod auth;
mod canary;
mod config;
mod control;
mod credentials;
mod defaults;
mod environment;
mod failure;
mod json;
mod memory;
mod places;
mod supervisor;
mod sys;

use std::ffi::{CString, OsString};
use std::time::{Duration, Instant};

use crate::auth::{Login, State};
use crate::config::{Config, Mode};
use crate::control::{Control, Heartbeat};
use crate::credentials::Secrets;
use crate::failure::{Failure, Kind};
use crate::places::Places;
use crate::supervisor::{Cause, End, Status, Supervisor};
use crate::sys::files::{self, Place};
use crate::sys::process::{NotStarted, Program, Step};
use crate::sys::signals::{HUP, INT, KILL, QUIT, Signals, TERM, XFSZ};

/// How the session has ended, for the exit code and for result.json.
struct Ending {
    exit: u8,
    reason: &'static str,
    /// Whether somebody is waiting for the end.
    asked: bool,
}

/// What is ready before pi starts.
struct Prepared {
    agent: Option<Place>,
    environment: Vec<CString>,
}

/// From the first instruction, with all signals blocked, to the exit code.
pub(crate) fn story(args: Vec<OsString>, signals: &Signals) -> u8 {
    let mut control = Control::new(None);
    let config = match Config::read(args) {
        Ok(config) => config,
        Err(failure) => return report(&failure, &control).exit,
    };
    let mut places = match places::take(&config) {
        Ok(places) => places,
        Err(failure) => return report(&failure, &control).exit,
    };
    control = Control::new(places.control.take());
    let (ending, auth) = match Login::open(places.login.as_ref()) {
        Ok(mut login) => session(&config, &places, &mut control, &mut login, signals),
        Err(failure) => (report(&failure, &control), State::Failed),
    };
    control.result(ending.exit, ending.reason, auth.word());
    ending.exit
}

/// Everything between the login's opening and its end, which comes after every process has.
fn session(
    config: &Config,
    places: &Places,
    control: &mut Control,
    login: &mut Login,
    signals: &Signals,
) -> (Ending, State) {
    let prepared = match prepare(config, places, control, login) {
        Ok(prepared) => prepared,
        Err(failure) => return (report(&failure, control), finish_login(config, login, None, control)),
    };
    if let Some(signal) = signals.pending(&[TERM, INT, QUIT, HUP]) {
        let ending = Ending { exit: Status::Killed(signal).exit_code(), reason: "terminated", asked: true };
        return (ending, finish_login(config, login, prepared.agent.as_ref(), control));
    }
    let mut supervisor = Supervisor::new(signals, config.grace);
    let ending = match run(config, &prepared, control, login, &mut supervisor) {
        Ok(end) => describe(&end, control),
        Err(failure) => report(&failure, control),
    };
    if !supervisor.sweep() {
        control.say("cannot end every process that pi has left behind");
    }
    let auth = finish_login(config, login, prepared.agent.as_ref(), control);
    if let (true, Mode::Session, Some(home)) = (config.export, config.mode, &places.home) {
        // git does there what the agent has told it to: it finds no credential any more.
        credentials::remove(home);
        export(config, &prepared, control, &mut supervisor, ending.asked);
        prepared.agent.as_ref().inspect(|agent| auth::wipe_copy(agent));
    }
    control.empty_mailbox();
    if supervisor.was_powerless() {
        control.say("cannot signal pi: CAP_KILL is missing");
    }
    (ending, auth)
}

fn prepare(config: &Config, places: &Places, control: &Control, login: &mut Login) -> failure::Result<Prepared> {
    let (Some(input), Some(home)) = (&places.input, &places.home) else {
        let environment = environment::for_agent(config, &[])?;
        return Ok(Prepared { agent: None, environment });
    };
    if config.mode == Mode::Session {
        canary::check(&config.canary)?;
    }
    let agent = defaults::prepare(config, home, input, control)?;
    let secrets = Secrets::read(input)?;
    let variables = credentials::install(&secrets, login, home, &agent, input)?;
    let environment = environment::for_agent(config, variables)?;
    Ok(Prepared { agent: Some(agent), environment })
}

fn run(
    config: &Config,
    prepared: &Prepared,
    control: &mut Control,
    login: &mut Login,
    supervisor: &mut Supervisor,
) -> failure::Result<End> {
    let program = Program {
        argv: &config.argv,
        environment: &prepared.environment,
        directory: &config.workdir,
        uid: config.uid,
        gid: config.gid,
        output: None,
    };
    supervisor.start(&program).map_err(|error| not_started(config, &error))?;
    control.ready();
    control.open_mailbox();
    let control = &*control;
    let mut heartbeat = Heartbeat::new(config, control);
    let mut interval = heartbeat.as_ref().map(Heartbeat::interval);
    if config.mode == Mode::Auth {
        interval = Some(Duration::from_millis(500));
    }
    let last_moment = (config.mode == Mode::Auth).then(|| Instant::now() + config.auth_timeout);
    let mut arrived = false;
    let mut end = supervisor.stay(interval, |asked| {
        control.empty_mailbox();
        if asked && config.mode == Mode::Session && !config.keep_auth {
            // Nothing that pi still does can change what becomes of the host's file: it is empty now, whoever kills this next, and the
            // disk works while pi ends.
            login.begin_wipe();
        }
        if let (Mode::Auth, Some(agent)) = (config.mode, &prepared.agent) {
            arrived |= share_login(login, agent, control);
        }
        if last_moment.is_some_and(|at| Instant::now() >= at) {
            return Some(Cause::Timeout);
        }
        heartbeat.as_mut().is_some_and(|heartbeat| heartbeat.is_stale(control)).then_some(Cause::Heartbeat)
    });
    if let (Mode::Auth, Some(agent)) = (config.mode, &prepared.agent) {
        arrived |= share_login(login, agent, control);
    }
    if end.cause == Some(Cause::Timeout) {
        // The time a login has is part of how it works, not a failure, once the login is there.
        end.status = Status::Exited(if arrived { 0 } else { 124 });
    }
    Ok(end)
}

/// Lets the agent's commits be handed out, by a program that runs as the agent does, into a file that the launcher reads. Nothing else
/// runs any more, so nothing changes them meanwhile.
fn export(config: &Config, prepared: &Prepared, control: &Control, supervisor: &mut Supervisor, hurry: bool) {
    const BUNDLE: &str = "export.bundle";
    let argv = [c"/usr/local/bin/pi-subagent".into(), c"export".into()];
    let limit = Duration::from_secs(if hurry { 2 } else { 60 });
    let mut heartbeat = Heartbeat::new(config, control);
    let interval = heartbeat.as_ref().map(Heartbeat::interval);
    let result = control.output(BUNDLE).map_err(|error| failure::cause(&error)).and_then(|bundle| {
        // On the host's disk, which is not the agent's to fill.
        let room = files::free_bytes(&bundle).map_err(|error| failure::cause(&error))? / 2;
        let program = Program {
            argv: &argv,
            environment: &prepared.environment,
            directory: c"/workspace",
            uid: config.uid,
            gid: config.gid,
            output: Some((&bundle, room)),
        };
        let tick = |_| {
            control.empty_mailbox();
            heartbeat.as_mut().is_some_and(|heartbeat| heartbeat.is_stale(control)).then_some(Cause::Heartbeat)
        };
        supervisor.run_after(&program, limit, interval, tick).map_err(|error| failure::cause(&error.cause))
    });
    let cause = match result {
        Ok(Status::Exited(0)) => return,
        Ok(Status::Exited(code)) => format!("exit status {code}"),
        Ok(Status::Killed(XFSZ)) => "they take more than half of the disk space that is left".into(),
        Ok(Status::Killed(signal)) => format!("killed by signal {signal}"),
        Err(cause) => cause,
    };
    control.remove(BUNDLE);
    control.say(&format!("cannot hand out the commits of this session: {cause}"));
}

/// Brings a login that has arrived in the container to the host; true if there was one.
fn share_login(login: &mut Login, agent: &Place, control: &Control) -> bool {
    let Some((state, new)) = auth::copy(agent).and_then(|copy| login.share(&copy)) else { return false };
    for provider in &new {
        match state {
            State::LoggedIn => control.say(&format!("the login for '{provider}' has arrived in auth.json")),
            _ => control.say(&format!("cannot save the login for '{provider}' in the host's auth.json")),
        }
    }
    state == State::LoggedIn && !new.is_empty()
}

/// The last thing before the exit: no process is left that could write a credential again.
fn finish_login(config: &Config, login: &mut Login, agent: Option<&Place>, control: &Control) -> State {
    // Needed only to keep a login; it is what the agent has made of it.
    let copy = agent.filter(|_| config.keep_auth).and_then(auth::copy);
    if let Some(agent) = agent {
        auth::wipe_copy(agent);
    }
    let state = match config.mode {
        Mode::Export => State::None,
        Mode::Auth => login.state(),
        Mode::Session if config.keep_auth => login.keep(copy.as_deref()),
        Mode::Session => login.wipe(),
    };
    match state {
        State::Changed => control.say("left the host's auth.json alone: it was changed during the session"),
        State::Failed => control.say("cannot wipe the host's auth.json"),
        _ => {}
    }
    state
}

fn describe(end: &End, control: &Control) -> Ending {
    let starved = memory::out_of_memory_kills();
    if starved > 0 {
        control.say(&format!("out of memory: the kernel killed {starved} of the session's processes"));
        control.say("hint: give the container more with PI_DOCKER_MEMORY");
    }
    let reason = match (end.cause, end.status) {
        (Some(Cause::Heartbeat), _) => "heartbeat",
        (Some(Cause::Timeout), _) => "timeout",
        (Some(Cause::Terminated), _) if end.killed_by_us => "killed",
        (Some(Cause::Terminated), _) => "terminated",
        (None, Status::Exited(_)) => "exited",
        (None, Status::Killed(KILL)) if starved > 0 => "out of memory",
        (None, Status::Killed(_)) => "signal",
    };
    Ending { exit: end.status.exit_code(), reason, asked: end.cause.is_some() }
}

fn report(failure: &Failure, control: &Control) -> Ending {
    control.say(&failure.line);
    if let Some(hint) = &failure.hint {
        control.say(&format!("hint: {hint}"));
    }
    Ending { exit: failure.kind.exit_code(), reason: failure.kind.reason(), asked: false }
}

fn not_started(config: &Config, error: &NotStarted) -> Failure {
    let cause = failure::cause(&error.cause);
    let program = config.argv[0].to_string_lossy().into_owned();
    match error.step {
        Step::Execute if error.cause.kind() == std::io::ErrorKind::NotFound => {
            Failure::new(Kind::NotFound, format!("cannot find '{program}': {cause}"))
        }
        Step::Execute => Failure::new(Kind::NotExecutable, format!("cannot execute '{program}': {cause}")),
        Step::Directory => {
            Failure::new(Kind::Preparation, format!("cannot enter '{}': {cause}", config.workdir.to_string_lossy()))
        }
        _ => Failure::new(Kind::System, format!("cannot start '{program}': {cause}")),
    }
}
