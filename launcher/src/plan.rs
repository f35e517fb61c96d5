//! What a session will run, as one plain value: made from facts, looked at by --dry-run, carried out by session.rs.
//! Nothing here touches the machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::cli::Owner;
use crate::git;

/// What the name of every volume for caches begins with; the repository's id follows.
pub(crate) const CACHE: &str = "pi-docker-cache-";

/// The names of a session's parts, all made from the repository's name and eight random digits.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) session: String,
    pub(crate) project: String,
    pub(crate) container: String,
    pub(crate) repository_id: String,
}

impl Names {
    pub(crate) fn new(safe_name: &str, repository_id: &str, session: &str) -> Names {
        let project = format!("pi-{safe_name}-{session}");
        Names {
            session: session.to_owned(),
            container: format!("{project}-agent"),
            repository_id: repository_id.to_owned(),
            project,
        }
    }

    /// The volume that a repository's caches are kept in.
    pub(crate) fn cache_volume(&self) -> String {
        format!("{CACHE}{}", self.repository_id)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

impl Mount {
    fn new(source: impl Into<PathBuf>, target: impl Into<String>, read_only: bool) -> Mount {
        Mount { source: source.into(), target: target.into(), read_only }
    }
}

/// Where on the host everything is that a session needs.
pub(crate) struct Places<'a> {
    pub(crate) home: &'a Path,
    pub(crate) root: &'a Path,
    pub(crate) subfolder: &'a Path,
    pub(crate) state: &'a Path,
    pub(crate) run: &'a Path,
    pub(crate) auth: &'a Path,
}

/// What the user has decided.
pub(crate) struct Choices<'a> {
    pub(crate) pi_args: &'a [String],
    pub(crate) user: Owner,
    pub(crate) keep_auth: bool,
    /// Overlays of the user's own, applied last.
    pub(crate) compose_files: &'a [PathBuf],
    pub(crate) compose_override: Option<PathBuf>,
    pub(crate) interactive: bool,
    /// Whether anything can come from stdin.
    pub(crate) input: bool,
    /// Whether the host labels its files, so that a container may not open them unless told otherwise.
    pub(crate) selinux: bool,
    /// What must not answer from inside.
    pub(crate) canary: &'a [SocketAddr],
    /// The mounts that have to do with git, outer ones first.
    pub(crate) git: &'a [git::Mount],
    /// Whether PID 1 has the commits handed out at the end.
    pub(crate) export: bool,
}

/// What the containers are connected to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// To the proxy, and by it to the listed names: docker-compose.yml as it is.
    Proxy,
    /// To the outside, without a proxy, on a network of its own; for a login, which has nothing to give away.
    Direct,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) names: Names,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) proxy_mounts: Vec<Mount>,
    /// The agent's variables that are this session's own.
    pub(crate) environment: BTreeMap<&'static str, String>,
    pub(crate) workdir: String,
    pub(crate) network: Network,
    /// The volume for caches, if there is one.
    pub(crate) cache: Option<String>,
    pub(crate) selinux: bool,
    /// The words after `docker`.
    pub(crate) command: Vec<OsString>,
}

impl Plan {
    pub(crate) fn new(names: Names, places: &Places, choices: &Choices) -> Plan {
        let workdir = match places.subfolder.to_str() {
            None | Some("") => "/workspace".to_owned(),
            Some(subfolder) => format!("/workspace/{subfolder}"),
        };
        let mut mounts = vec![Mount::new(places.root, "/workspace", false)];
        mounts.extend(choices.git.iter().map(|mount| Mount::new(&mount.host, &mount.container, mount.read_only)));
        mounts.extend([Mount::new(places.state.join("sessions"), "/home/pi/.pi/agent/sessions", false)]);
        mounts.extend(run_mounts(places.auth, places.run));
        let canary: Vec<String> = choices.canary.iter().map(SocketAddr::to_string).collect();
        let environment = BTreeMap::from([
            ("PI_DOCKER_MODE", "session".to_owned()),
            ("PI_DOCKER_SESSION", names.session.clone()),
            ("PI_DOCKER_UID", choices.user.uid.to_string()),
            ("PI_DOCKER_GID", choices.user.gid.to_string()),
            ("PI_DOCKER_WORKDIR", workdir.clone()),
            ("PI_DOCKER_CANARY", canary.join(",")),
            ("PI_DOCKER_KEEP_AUTH", u8::from(choices.keep_auth).to_string()),
            ("PI_DOCKER_EXPORT", u8::from(choices.export).to_string()),
        ]);
        Plan {
            command: run_command(&names, places, choices),
            mounts,
            proxy_mounts: vec![Mount::new(places.run.join("squid"), "/etc/squid/session", true)],
            environment,
            workdir,
            network: Network::Proxy,
            cache: Some(names.cache_volume()),
            selinux: choices.selinux,
            names,
        }
    }
}

/// Where pi's login comes back: the port is fixed by the provider.
pub(crate) const CALLBACK: &str = "127.0.0.1:53692:53692";

impl Plan {
    /// A container for a login and nothing else: no repository, no tools, no proxy.
    pub(crate) fn login(
        names: Names,
        home: &Path,
        run: &Path,
        auth: &Path,
        provider: Option<&str>,
        choices: &Choices,
    ) -> Plan {
        let workdir = "/home/pi".to_owned();
        let mut command = compose(home, choices.compose_override.as_deref());
        command.extend(["-f".into(), run.join("compose.json").into()]);
        for file in choices.compose_files {
            command.extend(["-f".into(), file.into()]);
        }
        let project = names.project.as_str();
        command.extend(
            ["--progress", "quiet", "-p", project, "run", "--rm", "--no-deps", "--publish", CALLBACK]
                .map(OsString::from),
        );
        command.extend(["--name", &names.container, "pi"].map(OsString::from));
        match provider {
            Some(provider) => command.extend(["auth", "login", provider].map(OsString::from)),
            None => command.extend(WITHOUT_TOOLS.iter().map(OsString::from)),
        }
        let environment = BTreeMap::from([
            ("PI_DOCKER_MODE", "auth".to_owned()),
            ("PI_DOCKER_SESSION", names.session.clone()),
            ("PI_DOCKER_UID", choices.user.uid.to_string()),
            ("PI_DOCKER_GID", choices.user.gid.to_string()),
            ("PI_DOCKER_WORKDIR", workdir.clone()),
            // Published on the host's loopback only; inside, the engine's forwarder comes from another address.
            ("PI_OAUTH_CALLBACK_HOST", "0.0.0.0".to_owned()),
        ]);
        Plan {
            command,
            mounts: run_mounts(auth, run).into(),
            proxy_mounts: Vec::new(),
            environment,
            workdir,
            network: Network::Direct,
            cache: None,
            selinux: choices.selinux,
            names,
        }
    }
}

impl Plan {
    /// A session that runs nothing but time, to look at what a session has; `empty` is an empty folder in place of a repository.
    pub(crate) fn trial(names: Names, home: &Path, run: &Path, auth: &Path, empty: &Path, choices: &Choices) -> Plan {
        let mut command = compose(home, choices.compose_override.as_deref());
        command.extend(["-f".into(), run.join("compose.json").into()]);
        for file in choices.compose_files {
            command.extend(["-f".into(), file.into()]);
        }
        let entrypoint = "pi-entrypoint sleep 120";
        command.extend(["--progress", "quiet", "-p", &names.project, "run", "--detach", "-T"].map(OsString::from));
        command.extend(["--entrypoint", entrypoint, "--name", &names.container, "pi"].map(OsString::from));
        let canary: Vec<String> = choices.canary.iter().map(SocketAddr::to_string).collect();
        let mut mounts = vec![Mount::new(empty, "/workspace", true)];
        mounts.extend(run_mounts(auth, run));
        Plan {
            environment: BTreeMap::from([
                ("PI_DOCKER_MODE", "session".to_owned()),
                ("PI_DOCKER_SESSION", names.session.clone()),
                ("PI_DOCKER_UID", choices.user.uid.to_string()),
                ("PI_DOCKER_GID", choices.user.gid.to_string()),
                ("PI_DOCKER_CANARY", canary.join(",")),
                ("PI_DOCKER_KEEP_AUTH", "1".to_owned()),
            ]),
            command,
            mounts,
            proxy_mounts: vec![Mount::new(run.join("squid"), "/etc/squid/session", true)],
            workdir: "/workspace".to_owned(),
            network: Network::Proxy,
            cache: None,
            selinux: choices.selinux,
            names,
        }
    }
}

/// A pi that can do nothing but talk about its login.
const WITHOUT_TOOLS: &[&str] = &[
    "--no-tools",
    "--no-mcp",
    "--no-extensions",
    "--no-skills",
    "--no-prompt-templates",
    "--no-context-files",
    "--no-session",
];

/// What PID 1 reads and writes.
fn run_mounts(auth: &Path, run: &Path) -> [Mount; 3] {
    [
        Mount::new(auth, "/run/pi-docker/auth.json", false),
        Mount::new(run.join("in"), "/run/pi-docker/in", true),
        Mount::new(run.join("control"), "/run/pi-docker/control", false),
    ]
}

fn run_command(names: &Names, places: &Places, choices: &Choices) -> Vec<OsString> {
    let mut words = compose(places.home, choices.compose_override.as_deref());
    words.extend(["-f".into(), places.run.join("compose.json").into()]);
    for file in choices.compose_files {
        words.extend(["-f".into(), file.into()]);
    }
    words.extend(["--progress", "quiet", "-p", &names.project, "run", "--rm"].map(OsString::from));
    if !choices.interactive {
        words.push("-T".into());
    }
    // The end of an input that ends at once can be lost on its way into the container, and pi would wait for it for ever.
    if !choices.input {
        words.push("--interactive=false".into());
    }
    words.extend(["--name", &names.container, "pi"].map(OsString::from));
    words.extend(choices.pi_args.iter().map(OsString::from));
    words
}

/// `compose` with the shipped file and its local override; nothing that lies in the user's folder is read.
pub(crate) fn compose(home: &Path, compose_override: Option<&Path>) -> Vec<OsString> {
    let mut words: Vec<OsString> =
        ["compose", "--env-file", "/dev/null", "--project-directory"].map(OsString::from).into();
    words.extend([home.into(), "-f".into(), home.join("docker-compose.yml").into()]);
    if let Some(file) = compose_override {
        words.extend(["-f".into(), file.into()]);
    }
    words
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn plan(subfolder: &str, pi_args: &[&str]) -> Plan {
        let places = Places {
            home: Path::new("/h"),
            root: Path::new("/r/a b:$x"),
            subfolder: Path::new(subfolder),
            state: Path::new("/h/state/id"),
            run: Path::new("/h/run/s"),
            auth: Path::new("/u/auth.json"),
        };
        let pi_args: Vec<String> = pi_args.iter().map(|a| (*a).to_owned()).collect();
        let choices = Choices {
            pi_args: &pi_args,
            user: Owner { uid: 1000, gid: 100 },
            keep_auth: false,
            compose_files: &["/x/over.yml".into()],
            compose_override: None,
            interactive: false,
            input: true,
            selinux: false,
            canary: &["10.0.0.2:4711".parse().unwrap()],
            git: &[],
            export: false,
        };
        Plan::new(Names::new("a-b", "id", "0123abcd"), &places, &choices)
    }

    #[test]
    fn the_command_ends_in_pis_words_and_the_users_overlays_come_last() {
        let command = plan("", &["-p", "--x", "$y"]).command;
        let text: Vec<&str> = command.iter().map(|w| w.to_str().unwrap()).collect();
        assert_eq!(
            text.join(" "),
            "compose --env-file /dev/null --project-directory /h -f /h/docker-compose.yml -f /h/run/s/compose.json \
             -f /x/over.yml --progress quiet -p pi-a-b-0123abcd run --rm -T --name pi-a-b-0123abcd-agent pi -p --x $y"
        );
    }

    pub(crate) fn login() -> Plan {
        let choices = Choices {
            pi_args: &[],
            user: Owner { uid: 1000, gid: 100 },
            keep_auth: true,
            compose_files: &[],
            compose_override: None,
            interactive: true,
            input: true,
            selinux: false,
            canary: &[],
            git: &[],
            export: false,
        };
        let names = Names::new("login", "", "0123abcd");
        Plan::login(
            names,
            Path::new("/h"),
            Path::new("/h/run/s"),
            Path::new("/u/auth.json"),
            Some("anthropic"),
            &choices,
        )
    }

    #[test]
    fn a_login_is_published_on_the_loopback_only_and_starts_no_proxy() {
        let command = login().command;
        let text: Vec<&str> = command.iter().map(|w| w.to_str().unwrap()).collect();
        assert!(text.join(" ").ends_with(
            "run --rm --no-deps --publish 127.0.0.1:53692:53692 --name pi-login-0123abcd-agent pi auth login anthropic"
        ));
    }

    #[test]
    fn pi_starts_in_the_folder_the_user_is_in() {
        assert_eq!(plan("docs/my notes", &[]).workdir, "/workspace/docs/my notes");
        assert_eq!(plan("", &[]).workdir, "/workspace");
    }
}
