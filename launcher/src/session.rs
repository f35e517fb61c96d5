//! A session's story: facts, questions, the plan, the images, the run, the clean-up. What a session leaves on the machine while it
//! runs is made after its own folder is, and taken away on the one way out.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::agent_copy;
use crate::allowlist::{self, Domain};
use crate::cli::Options;
use crate::config::{Config, utf8};
use crate::credentials::{api_key, read_bounded};
use crate::docker::Docker;
use crate::error::{Silent, hinted};
use crate::facts::{Facts, words_for_pi};
use crate::files::{Maker, set_mode};
use crate::foreground::{self, Foreground};
use crate::gitconfig;
use crate::heartbeat::{Canary, Heartbeat};
use crate::home::Home;
use crate::images;
use crate::overlay;
use crate::plan::{self, Choices, Names, Places, Plan};
use crate::recover::{self, Orphans};
use crate::repo::Place;
use crate::run_dir::{Record, RunDir, Secrets};
use crate::state::State;
use crate::terminal::{Terminal, printable};

struct Session<'a> {
    config: &'a Config,
    options: &'a Options,
    terminal: &'a Terminal,
    home: Home,
    docker: Docker,
    facts: Facts,
    names: Names,
    state: State,
    pi_args: Vec<String>,
}

/// Runs pi on the repository that the user is in; returns pi's exit status.
pub(crate) fn start(config: &Config, options: &Options, pi_args: Vec<OsString>) -> Result<u8> {
    let terminal = Terminal::new(options.yes, config.no_colour);
    let pi_args = words_for_pi(pi_args)?;
    let home = Home::find(config)?;
    let place = Place::find(&config.cwd)?;
    let orphans = if options.dry_run { None } else { Some(Orphans::find(&home)?) };
    if let Some(orphans) = &orphans {
        orphans.wipe(&terminal)?;
    }
    let images = images::wanted(config, &home)?;
    let docker = Docker::new(config, &images::hash_variables(&images));
    let facts = Facts::collect(config, options, &home, place, images, &docker)?;
    let names = Names::new(&facts.place.safe_name(), &facts.place.id(), &random_id()?);
    let state = State::new(&home, &names.repository_id, &facts.place.root);
    let session = Session { config, options, terminal: &terminal, home, docker, facts, names, state, pi_args };
    session.facts.warn(&terminal);
    match orphans {
        None => session.show(),
        Some(orphans) => session.run(orphans),
    }
}

impl Session<'_> {
    fn run(&self, orphans: Orphans) -> Result<u8> {
        self.facts.ask(self.terminal, self.config, &self.home)?;
        let foreground = Foreground::new()?;
        orphans.remove(&self.home, &self.docker, self.terminal);
        self.build(&foreground)?;
        let maker = Maker::new(self.facts.user);
        let run = RunDir::create(&self.home, self.record(), maker)?;
        let ended =
            self.prepare(&run, maker).and_then(|(plan, heartbeat)| self.supervise(&foreground, &run, &plan, heartbeat));
        let cleaned = self.clean_up(run);
        let status = ended?;
        cleaned?;
        Ok(status)
    }

    fn record(&self) -> Record {
        Record {
            pid: std::process::id(),
            session: self.names.session.clone(),
            project: self.names.project.clone(),
            container: self.names.container.clone(),
            repository_id: self.names.repository_id.clone(),
            root: self.facts.place.root.clone(),
            auth: self.facts.auth.path.clone(),
            auth_digest: self.facts.auth.digest.clone(),
            keep_auth: self.options.keep_auth,
        }
    }

    fn plan(&self, run: &std::path::Path, canary: &[std::net::SocketAddr]) -> Plan {
        let places = Places {
            home: self.home.dir(),
            root: &self.facts.place.root,
            subfolder: &self.facts.place.subfolder,
            state: &self.state.dir,
            run,
            auth: &self.facts.auth.path,
        };
        let choices = Choices {
            pi_args: &self.pi_args,
            user: self.facts.user,
            keep_auth: self.options.keep_auth,
            compose_files: &self.config.compose_files,
            compose_override: self.home.compose_override(),
            interactive: Terminal::is_interactive(),
            selinux: fs::read("/sys/fs/selinux/enforce").is_ok_and(|text| text.starts_with(b"1")),
            canary,
        };
        Plan::new(self.names.clone(), &places, &choices)
    }

    /// Builds what is missing, or everything if that is asked for.
    fn build(&self, foreground: &Foreground) -> Result<()> {
        let wanted = self.facts.images.iter().zip(&self.facts.image_states);
        let services: Vec<&str> = wanted
            .filter(|(_, state)| self.options.rebuild || **state == images::State::Missing)
            .map(|(image, _)| image.service)
            .collect();
        if services.is_empty() {
            return Ok(());
        }
        self.terminal.say(&format!("building the images ({}) …", services.join(", ")));
        let compose = plan::compose(self.home.dir(), self.home.compose_override().as_deref());
        let words = images::build_command(compose, &self.config.compose_files, &services);
        let status = foreground.wait(self.docker.spawn(&words, true)?, |pid, _| foreground::terminate(pid))?;
        foreground.check()?;
        if status.success() { Ok(()) } else { Err(anyhow!("cannot build the images: docker says why above")) }
    }

    /// Writes everything that the containers are started with.
    fn prepare(&self, run: &RunDir, maker: Maker) -> Result<(Plan, Heartbeat)> {
        let canary = Canary::open()?;
        let plan = self.plan(&run.path, &canary.addresses);
        thread::scope(|scope| {
            let volume = scope.spawn(|| self.docker.create_volume(&plan.names.cache_volume()));
            self.prepare_auth(maker)?;
            self.state.prepare(maker)?;
            let secrets = self.write_in(run, maker)?;
            let control = run.write_control(maker)?;
            run.write_squid(maker, &self.allowed_names()?, &self.squid_local()?)?;
            run.write_overlay(maker, &overlay::render(&plan))?;
            volume.join().map_err(|_| anyhow!("cannot make the cache volume"))??;
            let heartbeat = Heartbeat::start(&control, secrets, canary)?;
            Ok(heartbeat)
        })
        .map(|heartbeat| (plan, heartbeat))
    }

    /// The file has to be there to be mounted.
    fn prepare_auth(&self, maker: Maker) -> Result<()> {
        let auth = &self.facts.auth;
        if auth.exists {
            return set_mode(&auth.path, 0o600);
        }
        if let Some(parent) = auth.path.parent() {
            maker.dirs(parent)?;
        }
        maker.file(&auth.path, b"{}").map(drop)
    }

    fn write_in(&self, run: &RunDir, maker: Maker) -> Result<PathBuf> {
        let git = &self.facts.git;
        let secrets = Secrets {
            github: match &self.facts.token {
                Some(token) => Some((self.github()?.0, token.expose().to_owned())),
                None => None,
            },
            auth: self
                .config
                .provider_keys
                .iter()
                .map(|(provider, key)| ((*provider).to_owned(), api_key(key)))
                .collect(),
        };
        let excludes =
            gitconfig::excludes_file(git.excludes_file.as_deref(), &self.config.user_home, &self.config.user_config);
        let excludes = read_bounded(&excludes, 1 << 20).unwrap_or_default();
        let dir = run.write_in(
            maker,
            &secrets,
            &gitconfig::render(self.facts.identity.as_ref(), &git.settings),
            &gitconfig::ignore_list(&String::from_utf8_lossy(&excludes)),
        )?;
        if let Some(ca) = self.config.setting("PI_DOCKER_EXTRA_CA") {
            let bytes =
                read_bounded(ca.as_ref(), 4 << 20).with_context(|| format!("cannot read PI_DOCKER_EXTRA_CA '{ca}'"))?;
            maker.file(&dir.join("ca.pem"), &bytes)?;
        }
        let skipped =
            agent_copy::copy(&self.config.agent_dir, &dir.join("agent"), &self.home.join("models.json"), maker)?;
        skipped.0.iter().for_each(|line| self.terminal.warn(&printable(line), ""));
        Ok(dir)
    }

    /// GitHub's name, and the name of its API.
    fn github(&self) -> Result<(String, String)> {
        let url = self.config.setting("GITHUB_API_URL").unwrap_or("https://api.github.com");
        let api = url
            .strip_prefix("https://")
            .and_then(|rest| rest.split('/').next())
            .filter(|host| Domain::parse(host).is_ok());
        let api = api.ok_or_else(|| {
            hinted(
                format!("cannot use GITHUB_API_URL '{url}'"),
                "write it as https://api.github.com or https://HOST/api/v3",
            )
        })?;
        Ok((api.strip_prefix("api.").unwrap_or(api).to_owned(), api.to_owned()))
    }

    /// The session's list for squid.
    fn allowed_names(&self) -> Result<String> {
        let mut names = Vec::new();
        for file in [self.home.join("allowlist.txt"), self.home.join("allow.txt"), self.state.dir.join("allow.txt")] {
            match read_bounded(&file, 1 << 20) {
                Ok(bytes) => {
                    names.extend(allowlist::parse_list(&file.display().to_string(), &String::from_utf8_lossy(&bytes))?)
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e).with_context(|| format!("cannot read '{}'", file.display())),
            }
        }
        if self.config.setting("GITHUB_API_URL").is_some() {
            let (host, api) = self.github()?;
            names.extend([Domain::parse(&host)?, Domain::parse(&api)?]);
        }
        Ok(allowlist::render(&allowlist::merge(names)))
    }

    /// What `pi-docker models` adds to squid.conf.
    fn squid_local(&self) -> Result<Vec<u8>> {
        let file = self.home.join("squid-local.conf");
        match read_bounded(&file, 1 << 20) {
            Ok(bytes) => Ok(bytes),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e).with_context(|| format!("cannot read '{}'", file.display())),
        }
    }

    /// Runs the containers until pi has ended.
    fn supervise(&self, foreground: &Foreground, run: &RunDir, plan: &Plan, heartbeat: Heartbeat) -> Result<u8> {
        foreground.check()?;
        self.terminal.say(&self.facts.banner(&plan.names.project, &plan.workdir));
        let container = &plan.names.container;
        let status = thread::scope(|scope| {
            let child = self.docker.spawn(&plan.command, false)?;
            foreground.wait(child, |pid, before| {
                scope.spawn(move || match before {
                    // Without a container yet, docker itself is what has to end.
                    0 => self.docker.stop(container).unwrap_or_else(|_| foreground::terminate(pid)),
                    _ => self.docker.kill(container),
                });
            })
        })?;
        let mut result = run.result();
        if result.is_none() {
            // Docker's command has ended, PID 1 has not, or was killed: it still gets its time to save and to wipe.
            let _ = self.docker.stop(container);
            result = run.result();
        }
        drop(heartbeat);
        let exit = result.as_ref().and_then(|result| result["exit"].as_u64()).and_then(|exit| u8::try_from(exit).ok());
        match (status.code(), exit) {
            (None, Some(exit)) => Ok(exit),
            _ => Ok(foreground::code(status)),
        }
    }

    /// Takes away everything that the session has made on this machine. All steps are tried; the first failure is returned.
    fn clean_up(&self, run: RunDir) -> Result<()> {
        let wiped = recover::wipe(&run.record).map(drop);
        let removed = self.docker.remove_project(&run.record.project);
        let released = self.state.release(&self.home, &run.record.session);
        // As long as something is left of the session, the folder stays: the next start reads in it what to do.
        let result = wiped.and(removed).and(released);
        match result {
            Ok(()) => run.remove(),
            Err(e) => {
                let _ = fs::remove_dir_all(run.path.join("in"));
                Err(e.context("cannot clean up after the session; the next start tries again"))
            }
        }
    }

    /// Says what would be run.
    fn show(&self) -> Result<u8> {
        let plan = self.plan(&self.home.runs().join(&self.names.session), &[]);
        let facts = &self.facts;
        let yes = |known: bool| if known { "yes" } else { "no" };
        let logins: Vec<&str> = facts.auth.providers().chain(self.config.provider_keys.keys().copied()).collect();
        let words: Vec<String> = plan.command.iter().map(|word| quoted(&word.to_string_lossy())).collect();
        let mut text = facts.banner(&plan.names.project, &plan.workdir);
        for (name, value) in [
            ("user", format!("{}:{}", facts.user.uid, facts.user.gid)),
            ("engine", format!("{}, compose {}", facts.engine.version, facts.engine.compose)),
            (
                "images",
                facts
                    .images
                    .iter()
                    .zip(&facts.image_states)
                    .map(|(i, s)| format!("{} ({s})", i.name))
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
            ("token", yes(facts.token.is_some()).to_owned()),
            ("logins", if logins.is_empty() { "none".to_owned() } else { logins.join(", ") }),
            ("state", utf8(&self.state.dir)?.to_owned()),
        ] {
            text += &format!("\n{name:<9}{}", printable(&value));
        }
        self.terminal.answer(&format!("{text}\n\ndocker {}\n\n{}", words.join(" "), overlay::render(&plan)));
        Ok(0)
    }
}

/// The word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Eight random hex digits.
fn random_id() -> Result<String> {
    let mut bytes = [0; 4];
    let read = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.context("cannot read '/dev/urandom'")?;
    Ok(format!("{:08x}", u32::from_ne_bytes(bytes)))
}

/// Ends the sessions of the repository that the user is in, or all of them.
pub(crate) fn stop(config: &Config, all: bool) -> Result<u8> {
    let terminal = Terminal::new(true, config.no_colour);
    let home = Home::find(config)?;
    let repository = if all { None } else { Some(Place::find(&config.cwd)?.id()) };
    let docker = Docker::new(config, &std::collections::BTreeMap::new());
    let found = crate::run_dir::running(&home)?;
    let mut ended = 0;
    for record in found.iter().filter(|record| repository.as_ref().is_none_or(|id| *id == record.repository_id)) {
        terminal.say(&format!("ending {} …", record.project));
        docker.stop(&record.container)?;
        ended += 1;
    }
    if ended == 0 {
        terminal.say(if all { "no session is running" } else { "no session of this repository is running" });
        return Err(Silent(1).into());
    }
    Ok(0)
}
