//! Everything that PID 1 does as root, in one function: it finds the places it will need, hands the agent's home to the user, and
//! gives root up. What it opens here it opens without any right to the content; the content is read and written as the user.

use crate::config::{Config, Mode};
use crate::failure::{Failure, Kind, Result, cause};
use crate::sys::files::{self, Place};
use crate::sys::{privileges, process};

const RUN: &str = "/run/pi-docker";
const HOME: &str = "/home/pi";

/// Where the session's files are. Nothing is there in export mode.
#[derive(Default)]
pub(crate) struct Places {
    /// The launcher's files for this session.
    pub(crate) input: Option<Place>,
    pub(crate) control: Option<Place>,
    /// The host's auth.json.
    pub(crate) login: Option<Place>,
    pub(crate) home: Option<Place>,
}

/// Finds the places, and is the user afterwards.
pub(crate) fn take(config: &Config) -> Result<Places> {
    privileges::harden().map_err(refused)?;
    // Held by PID 1, a folder could not be unmounted.
    let _ = files::enter_root();
    let alone = std::process::id() == 1;
    if !alone {
        process::become_subreaper()
            .map_err(|error| Failure::new(Kind::System, format!("cannot take over orphans: {}", cause(&error))))?;
    }
    let places = if config.mode == Mode::Export { Places::default() } else { find(config)? };
    if alone {
        files::hand_over_stdio(config.uid);
    }
    privileges::drop_to(config.uid, config.gid).map_err(refused)?;
    Ok(places)
}

fn find(config: &Config) -> Result<Places> {
    let run = Place::directory(RUN).map_err(|error| missing(RUN, &error))?;
    let below = |name: &str| run.dir(name).map_err(|error| missing(&format!("{RUN}/{name}"), &error));
    let home = Place::directory(HOME).map_err(|error| missing(HOME, &error))?;
    let places = Places {
        input: Some(below("in")?),
        control: Some(below("control")?),
        login: run.at("auth.json").ok(),
        home: None,
    };
    // Mount points and the directories that the runtime made to reach them. From the innermost: the outer ones are closed to root
    // once they are the user's, and what cannot be reached is the user's already.
    let pi = home.dir(".pi").ok();
    let agent = pi.as_ref().and_then(|pi| pi.dir("agent").ok());
    let cache = home.dir(".cache").ok();
    for place in [cache.as_ref(), agent.as_ref(), pi.as_ref(), Some(&home)].into_iter().flatten() {
        place.hand_over(config.uid, config.gid).map_err(|error| {
            Failure::new(Kind::System, format!("cannot hand '{HOME}' to the user: {}", cause(&error)))
        })?;
    }
    Ok(Places { home: Some(home), ..places })
}

fn refused(refused: privileges::Refused) -> Failure {
    Failure::new(Kind::System, format!("cannot {}: {}", refused.what, cause(&refused.cause)))
        .hint("the container needs the capabilities SETUID, SETGID, SETPCAP, CHOWN and KILL, as in docker-compose.yml")
}

fn missing(path: &str, error: &std::io::Error) -> Failure {
    Failure::new(Kind::System, format!("cannot find '{path}': {}", cause(error)))
        .hint("the session is started by pi-docker, which mounts what belongs there")
}
