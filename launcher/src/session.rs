//! A session's story: facts, questions, the plan, the images, the run, the clean-up. What a session leaves on the machine while it
//! runs is made after its own folder is, and taken away on the one way out.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};

use crate::cli::{GitMode, Options};
use crate::config::{Config, utf8};
use crate::containers;
use crate::docker::Docker;
use crate::error::hinted;
use crate::exit_report::Report;
use crate::facts::{Facts, offer_to_keep, words_for_pi};
use crate::files::Maker;
use crate::foreground::Foreground;
use crate::git::Mount;
use crate::heartbeat::{Canary, Heartbeat};
use crate::home::Home;
use crate::images;
use crate::inputs;
use crate::overlay;
use crate::plan::{self, Choices, Names, Places, Plan};
use crate::private_side::{PrivateSide, Ready};
use crate::recover::Orphans;
use crate::repo::Place;
use crate::run_dir::{self, Record, RunDir};
use crate::terminal::{Terminal, printable};
use crate::update::{self, Version};

struct Session<'a> {
    config: &'a Config,
    options: &'a Options,
    terminal: &'a Terminal,
    home: &'a Home,
    docker: Docker,
    facts: Facts,
    names: Names,
    /// `<state>`.
    state: PathBuf,
    pi_args: Vec<String>,
    keep_auth: bool,
    /// The newest pi, if it was looked for.
    newest: Option<Version>,
}

/// Runs pi on the repository that the user is in; returns pi's exit status.
pub(crate) fn start(config: Config, options: &Options, pi_args: Vec<OsString>) -> Result<u8> {
    let terminal = Terminal::new(options.yes, config.no_colour);
    let pi_args = words_for_pi(pi_args)?;
    let home = Home::find(&config)?;
    let place = Place::find(&config.cwd)?;
    let from_env = config.clone();
    let mut config = config.with_file(&home, Some((&place.root, &place.id())))?;
    let orphans = if options.dry_run { None } else { Some(Orphans::find(&home)?) };
    if let Some(orphans) = &orphans {
        orphans.wipe(&terminal)?;
    }
    let mut images = images::wanted(&config, &home)?;
    let mut docker = Docker::new(&config, &images::hash_variables(&images));
    let mut newest = None;
    if options.update && !options.dry_run {
        docker.engine()?;
        let there = docker.image_labels(&images[0].name)?.is_some();
        newest = update::newest(&config, &home, &docker, there.then_some(images[0].name.as_str()), &terminal)?;
        config = from_env.with_version(&home, Some((&place.root, &place.id())), newest)?;
        images = images::wanted(&config, &home)?;
        docker = Docker::new(&config, &images::hash_variables(&images));
    }
    let facts = Facts::collect(&config, options, &home, place, images, &docker)?;
    let names = Names::new(&facts.place.safe_name(), &facts.place.id(), &random_id()?);
    let state = home.state(&names.repository_id);
    facts.warn(&terminal, &config, options);
    update::notice(&config, &home, &terminal);
    let mut keep_auth = options.keep_auth || config.setting("PI_DOCKER_KEEP_AUTH") == Some("1");
    if !options.dry_run {
        if pi_args.is_empty() && !Terminal::has_input() {
            return Err(hinted("cannot start pi: no terminal, no prompt and no input", "pi-docker -p \"PROMPT\""));
        }
        facts.ask(&terminal, &config, &home)?;
        keep_auth = keep_auth || offer_to_keep(&facts.auth, &config, &home, &terminal)?;
    }
    let session = Session {
        config: &config,
        options,
        terminal: &terminal,
        home: &home,
        docker,
        facts,
        names,
        state,
        pi_args,
        keep_auth,
        newest,
    };
    match orphans {
        None => session.show(),
        Some(orphans) => session.run(orphans),
    }
}

impl Session<'_> {
    fn run(&self, orphans: Orphans) -> Result<u8> {
        let foreground = Foreground::new()?;
        orphans.remove(self.home, &self.docker, self.terminal);
        self.build(&foreground)?;
        let maker = Maker::new(self.facts.user);
        let run = RunDir::create(self.home, self.record(), maker)?;
        let mut ready = None;
        let ended = self.prepare(&run, maker, &mut ready).and_then(|(plan, heartbeat)| {
            update::look_in_background(
                self.config,
                self.home,
                &self.facts.images[0].name,
                &plan.names.project,
                &run.path.join("control"),
            );
            self.terminal.say(&self.facts.banner(&plan.names.project, &plan.workdir));
            containers::run(&self.docker, &foreground, &run, &plan.command, heartbeat)
        });
        // Whatever happens now, what the proxy has seen is read before it goes.
        let seen = run_dir::began(&run.path).then(|| self.docker.logs(&run.record.proxy()));
        // The commits are fetched from files: nothing of the engine's is needed for it any more.
        let (report, fetched, taken) = thread::scope(|scope| {
            let taken = scope.spawn(|| containers::take_down(&self.docker, self.home, &run));
            let report = scope.spawn(|| seen.as_deref().map(|log| Report::collect(log, &run.record, &run.path)));
            let fetched = self.private_side().finish(&self.names.session, &run.path.join("control"), ready);
            let taken = taken.join().unwrap_or_else(|_| Err(anyhow!("cannot clean up after the session")));
            (report.join().ok().flatten(), fetched, taken)
        });
        let fetched = fetched.map(|commits| self.report(report, &run.record, commits));
        let cleaned = containers::forget(run, taken);
        let status = ended?;
        fetched.and(cleaned)?;
        Ok(status)
    }

    /// Says and keeps what the session did that matters on this machine.
    fn report(&self, report: Option<Report>, record: &Record, commits: Vec<String>) {
        if let Some(mut report) = report {
            report.take_commits(commits);
            report.keep(self.home, record);
            report.say(self.terminal);
        }
    }

    /// Builds what is missing, or everything if that is asked for.
    fn build(&self, foreground: &Foreground) -> Result<()> {
        let services = self.facts.to_build(self.options);
        if services.is_empty() {
            return Ok(());
        }
        let compose = plan::compose(self.home.dir(), self.home.compose_override().as_deref());
        let words = images::build_command(compose, &self.config.compose_files(), &services);
        containers::build(
            &self.docker,
            self.terminal,
            foreground,
            &words,
            &format!("the images ({})", services.join(", ")),
        )?;
        self.newest.map_or(Ok(()), |version| update::keep(self.home, version))
    }

    /// Writes everything that the containers are started with.
    fn prepare(&self, run: &RunDir, maker: Maker, ready: &mut Option<Ready>) -> Result<(Plan, Heartbeat)> {
        let canary = Canary::open()?;
        thread::scope(|scope| {
            let volume = scope.spawn(|| self.docker.create_volume(&self.names.cache_volume(), &self.facts.place.root));
            inputs::prepare_auth(&self.facts.auth, maker)?;
            maker.dirs(&self.state.join("sessions"))?;
            let git = &*ready.insert(self.private_side().prepare(&self.names.session)?);
            let plan = self.plan(&run.path, &canary.addresses, &git.mounts);
            let secrets = inputs::write(self.config, self.home, &self.facts, self.terminal, run, maker)?;
            let control = run.write_control(maker)?;
            let names = inputs::allowed_names(self.config, self.home, &self.state)?;
            run.write_squid(maker, &names, &inputs::squid_local(self.home)?)?;
            run.write_overlay(maker, &overlay::render(&plan))?;
            volume.join().map_err(|_| anyhow!("cannot make the cache volume"))??;
            git.wait();
            Ok((plan, Heartbeat::start(&control, secrets, Some(canary))?))
        })
    }

    fn private_side(&self) -> PrivateSide<'_> {
        PrivateSide {
            docker: &self.docker,
            terminal: self.terminal,
            home: self.home,
            repository_id: &self.names.repository_id,
            root: &self.facts.place.root,
            env: &self.config.git_env,
            user: self.facts.user,
            image: &self.facts.images[0].name,
            mode: self.options.git,
        }
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
            keep_auth: self.keep_auth,
            user: (self.facts.user.uid, self.facts.user.gid),
            started: unix_now(),
        }
    }

    fn plan(&self, run: &Path, canary: &[SocketAddr], git: &[Mount]) -> Plan {
        let places = Places {
            home: self.home.dir(),
            root: &self.facts.place.root,
            subfolder: &self.facts.place.subfolder,
            state: &self.state,
            run,
            auth: &self.facts.auth.path,
        };
        let choices = Choices {
            pi_args: &self.pi_args,
            user: self.facts.user,
            keep_auth: self.keep_auth,
            compose_files: &self.config.compose_files(),
            compose_override: self.home.compose_override(),
            interactive: Terminal::is_interactive(),
            input: Terminal::has_input(),
            selinux: selinux(),
            canary,
            git,
            export: self.options.git == GitMode::Private,
        };
        Plan::new(self.names.clone(), &places, &choices)
    }

    /// Where the agent's git would work. Its mounts are made with the session, so they are no part of what is shown.
    fn git_words(&self) -> Result<String> {
        Ok(match self.options.git {
            GitMode::Private => format!(
                "private: '{}' is mounted over .git, the repository's objects read-only",
                utf8(&self.state.join("git"))?
            ),
            GitMode::Direct => "direct: the repository's own .git, what names programs in it read-only".to_owned(),
        })
    }

    /// Says what would be run.
    fn show(&self) -> Result<u8> {
        let plan = self.plan(&self.home.runs().join(&self.names.session), &[], &[]);
        let facts = &self.facts;
        let yes = |known: bool| if known { "yes" } else { "no" };
        let logins: Vec<&str> = facts.auth.providers().chain(self.config.provider_keys.keys().copied()).collect();
        let images =
            facts.images.iter().zip(&facts.image_states).map(|(image, state)| format!("{} ({state})", image.name));
        let mut text = facts.banner(&plan.names.project, &plan.workdir);
        for (name, value) in [
            ("user", format!("{}:{}", facts.user.uid, facts.user.gid)),
            ("engine", format!("{}, compose {}", facts.engine.version, facts.engine.compose)),
            ("images", images.collect::<Vec<_>>().join(", ")),
            ("token", yes(facts.token.is_some()).to_owned()),
            ("logins", if logins.is_empty() { "none".to_owned() } else { logins.join(", ") }),
            ("kept", yes(self.keep_auth).to_owned()),
            ("state", utf8(&self.state)?.to_owned()),
            ("git", self.git_words()?),
        ] {
            text += &format!("\n{name:<9}{}", printable(&value));
        }
        for (name, value) in self.config.for_compose() {
            text += &format!("\n{:<9}{}", "setting", printable(&format!("{name}={value}")));
        }
        self.terminal.answer(&format!("{text}\n\n{}\n\n{}", quoted_command(&plan.command), overlay::render(&plan)));
        Ok(0)
    }
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// Whether the host labels its files.
pub(crate) fn selinux() -> bool {
    fs::read("/sys/fs/selinux/enforce").is_ok_and(|text| text.starts_with(b"1"))
}

/// A command of docker as a shell takes it.
pub(crate) fn quoted_command(words: &[OsString]) -> String {
    let words = words.iter().map(|word| quoted(&word.to_string_lossy()));
    std::iter::once("docker".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&b);
    let is_plain = !word.is_empty() && word.bytes().all(plain);
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// Eight random hex digits.
pub(crate) fn random_id() -> Result<String> {
    let mut bytes = [0; 4];
    let read = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.context("cannot read '/dev/urandom'")?;
    Ok(format!("{:08x}", u32::from_ne_bytes(bytes)))
}
