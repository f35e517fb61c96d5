//! `pi-docker auth`: a login and nothing else. The container has no repository, no tools and no proxy; what pi saves there comes
//! back into auth.json on the host, and is never wiped by this.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::thread;

use anyhow::{Result, anyhow, bail};
use nix::unistd::{getegid, geteuid};

use crate::cli::{Options, Owner};
use crate::config::Config;
use crate::containers;
use crate::credentials::AuthFile;
use crate::docker::Docker;
use crate::error::hinted;
use crate::files::Maker;
use crate::foreground::Foreground;
use crate::heartbeat::Heartbeat;
use crate::home::Home;
use crate::images;
use crate::inputs;
use crate::overlay;
use crate::plan::{self, Choices, Names, Plan};
use crate::recover::Orphans;
use crate::run_dir::{Record, RunDir, Secrets};
use crate::session::{quoted_command, random_id, selinux, unix_now};
use crate::terminal::Terminal;

const PORT: u16 = 53692;

/// Lets the user log in; returns the status of the container.
pub(crate) fn start(config: Config, options: &Options, provider: Option<&str>) -> Result<u8> {
    let terminal = Terminal::new(options.yes, config.no_colour);
    if provider.is_some_and(|name| {
        name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    }) {
        bail!("cannot log in: a provider's name is made of lower-case letters, digits and dashes");
    }
    let home = Home::find(&config)?;
    let config = config.with_file(&home, None)?;
    let user = match options.user {
        Some(user) => user,
        None => Owner { uid: geteuid().as_raw(), gid: getegid().as_raw() },
    };
    if user.uid == 0 || user.gid == 0 {
        return Err(hinted("cannot run pi as root", "log in as an ordinary user, or pass --user UID:GID"));
    }
    let images = images::wanted(&config, &home)?;
    let docker = Docker::new(&config, &images::hash_variables(&images));
    let names = Names::new("login", "", &random_id()?);
    let run = home.runs().join(&names.session);
    let auth_path = config.agent_dir.join("auth.json");
    let choices = Choices {
        pi_args: &[],
        user,
        keep_auth: true,
        compose_files: &config.compose_files(),
        compose_override: home.compose_override(),
        interactive: true,
        input: true,
        selinux: selinux(),
        canary: &[],
        git: &[],
        export: false,
    };
    if options.dry_run {
        let plan = Plan::login(names, home.dir(), &run, &auth_path, provider, &choices);
        terminal.answer(&format!("{}\n\n{}", quoted_command(&plan.command), overlay::render(&plan)));
        return Ok(0);
    }
    if !Terminal::is_interactive() {
        return Err(hinted("cannot log in: no terminal", "export the provider's API key instead"));
    }
    let orphans = Orphans::find(&home)?;
    orphans.wipe(&terminal)?;
    let auth = AuthFile::read(&auth_path)?;
    let (engine, states) = thread::scope(|scope| {
        let engine = scope.spawn(|| docker.engine());
        let states = images::states(&docker, &images);
        (engine.join().map_err(|_| anyhow!("cannot find out about Docker")), states)
    });
    engine??;
    let [state, _] = states?;
    if TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).is_err() {
        return Err(hinted(
            format!("cannot use port {PORT}: something else listens on it"),
            "another login may be open: pi-docker stop --all",
        ));
    }
    if provider.is_none() {
        // pi clears the screen.
        terminal.let_read(
            "pi opens now: type /login there, choose your provider, and quit when the login has arrived.\n\
             The container ends by itself after 3 minutes.",
        );
    }
    let foreground = Foreground::new()?;
    orphans.remove(&home, &docker, &terminal);
    if options.rebuild || state == images::State::Missing {
        let compose = plan::compose(home.dir(), home.compose_override().as_deref());
        let words = images::build_command(compose, &config.compose_files(), &["pi"]);
        containers::build(&docker, &terminal, &foreground, &words, "the image (pi)")?;
    }
    let plan = Plan::login(names, home.dir(), &run, &auth.path, provider, &choices);
    let maker = Maker::new(user);
    let run = RunDir::create(&home, record(&plan, &auth, user), maker)?;
    let ended = prepare(&config, &home, &terminal, &run, &plan, &auth, maker)
        .and_then(|heartbeat| containers::run(&docker, &foreground, &run, &plan.command, heartbeat));
    let cleaned = containers::clean_up(&docker, &home, run);
    let status = ended?;
    cleaned?;
    let before: BTreeSet<&str> = auth.providers().collect();
    let after = AuthFile::read(&auth.path)?;
    let names: Vec<&str> =
        after.providers().filter(|name| after.digest != auth.digest || !before.contains(name)).collect();
    match (names.is_empty(), after.digest == auth.digest) {
        (false, false) => terminal.say(&format!("logged in: {}", names.join(", "))),
        _ => terminal.say("no new login has arrived"),
    }
    Ok(status)
}

fn record(plan: &Plan, auth: &AuthFile, user: Owner) -> Record {
    Record {
        pid: std::process::id(),
        session: plan.names.session.clone(),
        project: plan.names.project.clone(),
        container: plan.names.container.clone(),
        repository_id: String::new(),
        root: PathBuf::new(),
        auth: auth.path.clone(),
        auth_digest: None,
        keep_auth: true,
        user: (user.uid, user.gid),
        started: unix_now(),
    }
}

fn prepare(
    config: &Config,
    home: &Home,
    terminal: &Terminal,
    run: &RunDir,
    plan: &Plan,
    auth: &AuthFile,
    maker: Maker,
) -> Result<Heartbeat> {
    inputs::prepare_auth(auth, maker)?;
    let none = Secrets { github: None, auth: serde_json::Map::new() };
    let secrets = run.write_in(maker, &none, "", "")?;
    inputs::write_common(config, home, terminal, &secrets, maker)?;
    let control = run.write_control(maker)?;
    run.write_overlay(maker, &overlay::render(plan))?;
    Heartbeat::start(&control, secrets, None)
}
