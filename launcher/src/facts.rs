//! What a session is decided on: found out before anything is changed, said to the user, and where the user has a say, asked.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use nix::unistd::{getegid, geteuid};

use crate::cli::{Options, Owner};
use crate::config::Config;
use crate::credentials::{AuthFile, github_token};
use crate::docker::{Docker, Engine};
use crate::error::{Silent, hinted};
use crate::gitconfig::{Identity, identity};
use crate::home::Home;
use crate::images::{self, Image};
use crate::inputs;
use crate::repo::{GitFacts, Head, Place};
use crate::secret::Secret;
use crate::session::quoted;
use crate::terminal::{Terminal, printable};

/// What docker-compose.yml says if the user does not.
const DEFAULT_CPUS: f64 = 2.0;

pub(crate) struct Facts {
    pub(crate) place: Place,
    /// Who the agent runs as.
    pub(crate) user: Owner,
    pub(crate) git: GitFacts,
    pub(crate) identity: Option<Identity>,
    pub(crate) token: Option<Secret>,
    pub(crate) auth: AuthFile,
    pub(crate) engine: Engine,
    pub(crate) images: [Image; 2],
    pub(crate) image_states: [images::State; 2],
}

impl Facts {
    /// Finds everything out; what can be asked at the same time is.
    pub(crate) fn collect(
        config: &Config,
        options: &Options,
        home: &Home,
        place: Place,
        images: [Image; 2],
        docker: &Docker,
    ) -> Result<Facts> {
        let me = Owner { uid: geteuid().as_raw(), gid: getegid().as_raw() };
        let user = agent_user(options.user, &place, me)?;
        is_outside(home.dir(), &place.root)?;
        may_write(user, &place.root)?;
        inputs::check(config, home, &place.id())?;
        let auth = AuthFile::read(&config.agent_dir.join("auth.json"))?;
        let token = github_token(config.github_token.as_ref(), &home.token_file())?;
        let (engine, image_states, git) = thread::scope(|scope| {
            let engine = scope.spawn(|| docker.engine());
            let image_states = scope.spawn(|| images::states(docker, &images));
            let git = place.git_facts(config);
            let died = |_| anyhow!("cannot find out about Docker");
            (engine.join().map_err(died), image_states.join().map_err(died), git)
        });
        // The engine's own answer first: without one, the others fail too, and say less.
        let engine = engine??;
        has_cpus(config.setting("PI_DOCKER_CPUS"), engine.cpus)?;
        let git = git?;
        Ok(Facts {
            identity: identity(&git.settings, &config.git_identity),
            image_states: image_states??,
            place,
            user,
            git,
            token,
            auth,
            engine,
            images,
        })
    }

    /// The lines that every session begins with.
    pub(crate) fn banner(&self, project: &str, workdir: &str) -> String {
        let branch = match &self.git.head {
            Head::Branch(name) | Head::Unborn(name) => name.clone(),
            Head::Detached(commit) => format!("(detached at {})", commit.get(..12).unwrap_or(commit)),
        };
        let root = self.place.root.display().to_string();
        format!(
            "repo     {}\nbranch   {}\npath     {}\nproject: {project}",
            printable(&root),
            printable(&branch),
            printable(workdir)
        )
    }

    /// The services whose image is built before the start: what is missing, and what is asked for.
    pub(crate) fn to_build(&self, options: &Options) -> Vec<&'static str> {
        let wanted = self.images.iter().zip(&self.image_states).filter(|(image, state)| {
            let asked = options.rebuild || (options.update && image.service == "pi");
            asked || **state == images::State::Missing
        });
        wanted.map(|(image, _)| image.service).collect()
    }

    /// Says what the session starts without.
    pub(crate) fn warn(&self, terminal: &Terminal, config: &Config, options: &Options) {
        for (text, fix) in self.git.lacks(config) {
            terminal.warn(text, fix);
        }
        let to_build = self.to_build(options);
        let mut images = self.images.iter().zip(&self.image_states);
        if images.any(|(image, state)| *state == images::State::Stale && !to_build.contains(&image.service)) {
            terminal.warn("images are older than their sources", "pi-docker --rebuild");
        }
        if self.auth.anthropic_has_expired(SystemTime::now()) {
            terminal.warn(
                "Anthropic session token is expired: pi will try to refresh it, which may fail",
                "pi-docker auth if it does",
            );
        }
    }

    /// Asks whether to go on without what most sessions need.
    pub(crate) fn ask(&self, terminal: &Terminal, config: &Config, home: &Home) -> Result<()> {
        let go_on = |question: &str, fix: &str| match terminal.confirm(question, fix) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Silent(1).into()),
            Err(e) => Err(e),
        };
        // Where nobody can answer, the error has the same advice.
        fn hint_of(fix: &str, answered: bool) -> &str {
            if answered { fix } else { "" }
        }
        let answered = terminal.is_answered();
        if self.token.is_none() {
            let fix = format!("put a token into '{}', or export PI_GH_TOKEN", home.token_file().display());
            terminal
                .warn("No GitHub token found: nothing can be pushed, no pull request opened", hint_of(&fix, answered));
            go_on("Go on without GitHub?", &fix)?;
        }
        if self.auth.digest.is_none() && config.provider_keys.is_empty() {
            let fix = "pi-docker auth, or export ANTHROPIC_API_KEY";
            terminal.warn("No Anthropic auth found, nor a key or login of another provider", hint_of(fix, answered));
            go_on("Go on without a login?", fix)?;
        }
        Ok(())
    }
}

/// The first time that a session would empty a login, says so and offers to keep it, from now on. True if it is to be kept.
pub(crate) fn offer_to_keep(auth: &AuthFile, config: &Config, home: &Home, terminal: &Terminal) -> Result<bool> {
    let told = home.join("state/told-about-login");
    if auth.digest.is_none() || config.setting("PI_DOCKER_KEEP_AUTH").is_some() || told.exists() {
        return Ok(false);
    }
    let path = auth.path.display().to_string();
    terminal.say(&format!(
        "At the end of a session '{}' is emptied, so that no login stays behind: a pi on this machine is logged out too.",
        printable(&path)
    ));
    if !terminal.can_ask() {
        return Ok(false);
    }
    let keep = terminal.confirm("Keep the login instead, now and from now on?", "")?;
    let cannot = || format!("cannot write into '{}'", home.dir().display());
    if keep {
        let file = home.join("config.toml");
        // Above everything else: what comes after the first section would belong to it.
        let text = fs::read_to_string(&file).unwrap_or_default();
        fs::write(&file, format!("keep-auth = true\n{text}")).with_context(cannot)?;
        terminal.say(&format!("'{}' says so now: keep-auth = true", file.display()));
    }
    let folder = told.parent().unwrap_or(home.dir());
    fs::create_dir_all(folder).and_then(|()| fs::write(&told, "")).with_context(cannot)?;
    Ok(keep)
}

/// The words for pi as text: the way to the engine is JSON.
pub(crate) fn words_for_pi(words: Vec<OsString>) -> Result<Vec<String>> {
    let text = |word: OsString| {
        word.into_string().map_err(|word| anyhow!("cannot pass '{}' to pi: it is not valid UTF-8", word.display()))
    };
    words.into_iter().map(text).collect()
}

/// Who the agent runs as: the one that was asked for, else the repository's owner; never root. `me` is the launcher's own user.
pub(crate) fn agent_user(asked: Option<Owner>, place: &Place, me: Owner) -> Result<Owner> {
    let owner = place.owner;
    let refused =
        |why: &str| Err(hinted(format!("cannot start: the repository belongs to {why}"), give(&place.root, me)));
    match asked {
        Some(user) if user.uid == 0 || user.gid == 0 => {
            Err(hinted("cannot run the agent as root", "pass another --user UID:GID"))
        }
        Some(user) => Ok(user),
        None if owner.uid == 0 => refused("root, and the agent runs as its owner"),
        None if owner.gid == 0 => refused("root's group, and the agent runs as its owner"),
        None if me.uid != 0 && owner.uid != me.uid => refused(&format!("another user ({})", owner.uid)),
        None => Ok(owner),
    }
}

/// The command that gives the repository to the launcher's own user, or to one that root has to choose.
fn give(root: &Path, me: Owner) -> String {
    let root = quoted(&root.to_string_lossy());
    match me.uid {
        0 => format!("chown -R UID:GID {root}, with the numbers of an ordinary user"),
        uid => format!("sudo chown -R {uid}:{} {root}", me.gid),
    }
}

/// Refuses a repository that the agent could reach pi-docker's own folder through: the token and the lists are there.
pub(crate) fn is_outside(home: &Path, root: &Path) -> Result<()> {
    if !home.starts_with(root) {
        return Ok(());
    }
    Err(hinted(
        format!(
            "cannot start: the repository '{}' contains pi-docker's own folder '{}'",
            root.display(),
            home.display()
        ),
        "move that folder out of it, and run its ./install again or set PI_DOCKER_HOME",
    ))
}

/// Refuses more CPUs than the engine has: docker would, in words of its own.
pub(crate) fn has_cpus(setting: Option<&str>, there: u64) -> Result<()> {
    let wanted = setting.and_then(|cpus| cpus.parse::<f64>().ok()).unwrap_or(DEFAULT_CPUS);
    if there == 0 || wanted <= there as f64 {
        return Ok(());
    }
    Err(hinted(
        format!("cannot give a session {wanted} CPUs: the engine has {there}"),
        format!("set cpus = {there} in config.toml in pi-docker's own folder, or PI_DOCKER_CPUS={there}"),
    ))
}

/// Refuses a user who could not write what git does, before git says so in words of its own. Other groups than the user's first
/// do not count: the agent has none.
pub(crate) fn may_write(user: Owner, root: &Path) -> Result<()> {
    for folder in [root.to_owned(), root.join(".git")] {
        let Ok(meta) = fs::metadata(&folder) else { continue };
        let shift = match (meta.uid() == user.uid, meta.gid() == user.gid) {
            (true, _) => 6,
            (_, true) => 3,
            _ => 0,
        };
        if meta.is_dir() && (meta.mode() >> shift) & 0o3 != 0o3 {
            let folder_word = quoted(&folder.to_string_lossy());
            return Err(hinted(
                format!("cannot start: user {}:{} may not write in '{}'", user.uid, user.gid, folder.display()),
                match shift {
                    6 => format!("chmod u+wx {folder_word}"),
                    _ => format!("sudo chown -R {}:{} {}", user.uid, user.gid, quoted(&root.to_string_lossy())),
                },
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn more_cpus_than_the_engine_has_are_refused_and_as_many_are_not() {
        for (setting, there, fits) in
            [(Some("2.5"), 2, false), (Some("2"), 2, true), (None, 1, false), (None, 2, true), (Some("64"), 0, true)]
        {
            assert_eq!(has_cpus(setting, there).is_ok(), fits, "{setting:?} of {there}");
        }
    }

    #[test]
    fn the_agent_is_never_root_and_never_a_stranger() {
        let user = |uid, gid| Owner { uid, gid };
        let (root, me) = (user(0, 0), user(1000, 1000));
        let agent_user =
            |asked, owner, me| agent_user(asked, &Place { root: "/a b".into(), subfolder: PathBuf::new(), owner }, me);
        assert_eq!(agent_user(None, me, me).unwrap(), me);
        assert_eq!(agent_user(None, me, root).unwrap(), me);
        assert_eq!(agent_user(Some(user(7, 8)), root, me).unwrap(), user(7, 8));
        for (asked, owner, launcher) in [
            (None, root, me),
            (None, root, root),
            (None, user(1000, 0), me),
            (None, user(1001, 1001), me),
            (Some(root), me, me),
            (Some(user(1000, 0)), me, me),
        ] {
            assert!(agent_user(asked, owner, launcher).is_err(), "{asked:?} {owner:?} {launcher:?}");
        }
        let error = agent_user(None, root, me).unwrap_err();
        assert!(error.downcast_ref::<crate::error::Hinted>().unwrap().hint == "sudo chown -R 1000:1000 '/a b'");
    }
}
