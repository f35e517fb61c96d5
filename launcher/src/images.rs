//! The two images: whether they are there, whether the files they were built from have changed since, and building them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::docker::Docker;
use crate::home::Home;

/// One of the two services of docker-compose.yml that have an image.
pub(crate) struct Image {
    pub(crate) service: &'static str,
    pub(crate) name: String,
    /// Of what it would be built from now.
    pub(crate) hash: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum State {
    Missing,
    Stale,
    Current,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::Missing => "to be built",
            State::Stale => "older than its sources",
            State::Current => "current",
        })
    }
}

const LABEL: &str = "pi-docker.source";
/// What goes into each image, and the settings that are its build arguments.
const AGENT: (&[&str], &[&str]) = (
    &["Dockerfile", "Cargo.toml", "Cargo.lock", "entrypoint", "subagent", "image"],
    &["PI_DOCKER_PI_VERSION", "PI_DOCKER_PI_INTEGRITY", "PI_DOCKER_EXTRA_PACKAGES"],
);
/// Folders that no image holds.
const LEFT_OUT: &[&str] = &["target", "tests"];
const PROXY: (&[&str], &[&str]) = (&["Dockerfile.proxy"], &[]);

/// The images under the names that the configuration gives them.
pub(crate) fn wanted(config: &Config, home: &Home) -> Result<[Image; 2]> {
    let image = |service, variable, default: &str, (files, settings): (&[&str], &[&str])| {
        let name = config.setting(variable).unwrap_or(default).to_owned();
        let mut hash = Sha256::new();
        for file in files {
            add(&mut hash, home.dir(), Path::new(file))?;
        }
        for setting in settings {
            hash.update(format!("{setting}={}\0", config.setting(setting).unwrap_or_default()));
        }
        let hash: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        anyhow::Ok(Image { service, name, hash })
    };
    Ok([
        image("pi", "PI_DOCKER_IMAGE", "pi-docker-agent:latest", AGENT)?,
        image("proxy", "PI_DOCKER_PROXY_IMAGE", "pi-docker-proxy:latest", PROXY)?,
    ])
}

/// Adds a file, or all files below a folder but tests and what a build leaves there, by name and content.
fn add(hash: &mut Sha256, base: &Path, path: &Path) -> Result<()> {
    let full = base.join(path);
    let cannot = || format!("cannot read '{}'", full.display());
    match fs::symlink_metadata(&full) {
        Ok(meta) if meta.is_dir() => {
            let mut names =
                fs::read_dir(&full).and_then(Iterator::collect::<Result<Vec<_>, _>>).with_context(cannot)?;
            names.sort_by_key(fs::DirEntry::file_name);
            names
                .iter()
                .filter(|entry| !LEFT_OUT.iter().any(|name| entry.file_name() == *name))
                .try_for_each(|entry| add(hash, base, &path.join(entry.file_name())))
        }
        Ok(_) => {
            let content = fs::read(&full).with_context(cannot)?;
            hash.update(format!("{}\0{}\0", path.display(), content.len()));
            hash.update(content);
            Ok(())
        }
        // A home made by hand needs no sources, as long as the images are there.
        Err(_) => Ok(()),
    }
}

/// Looks at both images at once.
pub(crate) fn states(docker: &Docker, images: &[Image; 2]) -> Result<[State; 2]> {
    let [pi, proxy] = images;
    thread::scope(|scope| {
        let other = scope.spawn(|| state(docker, proxy));
        Ok([state(docker, pi)?, other.join().map_err(|_| anyhow!("cannot look at the images"))??])
    })
}

fn state(docker: &Docker, image: &Image) -> Result<State> {
    Ok(match docker.image_labels(&image.name)? {
        None => State::Missing,
        // Built by hand, with `docker compose build`: whoever does that knows.
        Some(labels) => match labels.get(LABEL).map(String::as_str) {
            None | Some("") => State::Current,
            Some(hash) if hash == image.hash => State::Current,
            Some(_) => State::Stale,
        },
    })
}

/// The variables that put the hashes into the images' labels.
pub(crate) fn hash_variables(images: &[Image; 2]) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("PI_DOCKER_SOURCE_HASH", images[0].hash.clone()),
        ("PI_DOCKER_PROXY_SOURCE_HASH", images[1].hash.clone()),
    ])
}

/// The words after `docker` that build these services.
pub(crate) fn build_command(
    compose: Vec<OsString>,
    compose_files: &[std::path::PathBuf],
    services: &[&str],
) -> Vec<OsString> {
    let mut words = compose;
    for file in compose_files {
        words.extend(["-f".into(), file.into()]);
    }
    words.push("build".into());
    words.extend(services.iter().map(OsString::from));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(setup: impl Fn(&Path)) -> String {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("entrypoint/src")).unwrap();
        fs::write(dir.path().join("entrypoint/src/main.rs"), "fn main() {}").unwrap();
        setup(dir.path());
        let mut hash = Sha256::new();
        add(&mut hash, dir.path(), Path::new("entrypoint")).unwrap();
        add(&mut hash, dir.path(), Path::new("missing")).unwrap();
        format!("{:x?}", hash.finalize())
    }

    #[test]
    fn the_hash_follows_names_and_contents_and_not_build_results() {
        let plain = hash(|_| ());
        for folder in ["entrypoint/target/debug", "entrypoint/tests"] {
            assert_eq!(plain, hash(|dir| fs::create_dir_all(dir.join(folder)).unwrap()), "{folder}");
        }
        assert_ne!(plain, hash(|dir| fs::write(dir.join("entrypoint/src/main.rs"), "fn main() { }").unwrap()));
        assert_ne!(
            plain,
            hash(|dir| fs::rename(dir.join("entrypoint/src/main.rs"), dir.join("entrypoint/src/lib.rs")).unwrap())
        );
    }
}
