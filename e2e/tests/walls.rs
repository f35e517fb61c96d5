//! Walls that are in a program have no switch, so each is taken out of the sources: `walls/NAME.patch` removes one, the launcher or the
//! image is built with it, and the test that tries the attack has to fail, where it says that the attack has succeeded.
//!
//! Two lines at the head of a patch name them: `test:` the test, `fails:` a piece of the assertion, or of what it says.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use e2e::docker::try_docker;
use e2e::internet::manifest;
use e2e::world::install;

/// A patch, and what it says of itself.
struct Wall {
    patch: PathBuf,
    text: String,
}

impl Wall {
    fn named(name: &str) -> Result<Wall> {
        let patch = manifest("walls").join(format!("{name}.patch"));
        let text = fs::read_to_string(&patch).with_context(|| format!("cannot read '{}'", patch.display()))?;
        Ok(Wall { patch, text })
    }

    fn says(&self, key: &str) -> Result<&str> {
        let line = self.text.lines().take_while(|line| !line.starts_with("diff ")).find_map(|l| l.strip_prefix(key));
        line.map(str::trim).with_context(|| format!("'{}' has no line '{key}'", self.patch.display()))
    }

    /// The file of the test, and its name.
    fn test(&self) -> Result<(&str, &str)> {
        self.says("test:")?.split_once("::").context("a test is named as FILE::NAME")
    }

    /// Whether it takes a new image: the launcher is in none.
    fn is_in_image(&self) -> bool {
        self.text.lines().any(|line| line.starts_with("+++ b/") && !line.starts_with("+++ b/launcher/"))
    }

    fn git_apply(&self, to: &Path, how: &[&str]) -> Result<()> {
        let mut git = Command::new("git");
        let ran = git.arg("apply").args(how).arg(&self.patch).current_dir(to).output().context("cannot run git")?;
        ensure!(ran.status.success(), "{}: {}", self.patch.display(), String::from_utf8_lossy(&ran.stderr));
        Ok(())
    }

    /// Runs the test with `env`. What it printed if it failed, nothing if it passed.
    fn run(&self, env: &[(&str, OsString)]) -> Result<Option<String>> {
        let (file, name) = self.test()?;
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["test", "--locked", "--quiet", "--test", file, "--", "--exact", name]).env("RUST_BACKTRACE", "0");
        // What cargo tells this test of its package is no business of the other's: some build scripts would run again.
        let told = std::env::vars_os().map(|(name, _)| name).filter(|name| {
            let name = name.to_string_lossy();
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        told.for_each(|name| _ = cargo.env_remove(name));
        cargo.envs(env.iter().map(|(name, value)| (name, value))).current_dir(manifest("")).stdin(Stdio::null());
        let ran = cargo.output().context("cannot run cargo")?;
        let said = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
        ensure!(said.contains("running 1 test\n"), "there is no test {file}::{name}: {said}");
        Ok((!ran.status.success()).then_some(said))
    }
}

/// An image of this wall's own, removed in the end.
struct Image(String);

impl Drop for Image {
    fn drop(&mut self) {
        let _ = try_docker(["image", "rm", "--force", &self.0]);
    }
}

/// Builds the launcher of a clone, and puts it beside the clone.
fn build_launcher(sources: &Path, launcher: &Path) -> Result<()> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Not the folder that the real one is in; all walls use it, so that what the launcher depends on is built once.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("walls");
    // cargo tells two clones in one folder apart by time only: sources that waited for another wall's build would count as built.
    for step in ["clean", "build"] {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([step, "--locked", "--quiet", "-p", "pi-docker"]).env("CARGO_TARGET_DIR", &target);
        let ran = cargo.current_dir(sources).output().context("cannot run cargo")?;
        ensure!(ran.status.success(), "the launcher cannot be built: {}", String::from_utf8_lossy(&ran.stderr));
    }
    fs::copy(target.join("debug/pi-docker"), launcher).context("cannot copy the launcher").map(drop)
}

/// The lines of tests at which a panic is said to have happened.
fn panicked_at(said: &str) -> Result<String> {
    let mut lines = String::new();
    for place in said.lines().filter_map(|line| line.split_once("panicked at ")).map(|(_, place)| place) {
        let mut parts = place.split(':');
        if let (Some(file), Some(Ok(number))) = (parts.next(), parts.next().map(str::parse::<usize>)) {
            let text = fs::read_to_string(manifest(file))?;
            lines += text.lines().nth(number.saturating_sub(1)).unwrap_or_default();
            lines += "\n";
        }
    }
    Ok(lines)
}

/// The test passes; with the wall taken out, it fails where the attack has succeeded.
fn proves(name: &str) -> Result<()> {
    let wall = Wall::named(name)?;
    if let Some(said) = wall.run(&[])? {
        bail!("it fails with the wall in its place: {said}");
    }
    let dir = tempfile::Builder::new().prefix("pi-e2e-wall-").tempdir()?;
    let sources = dir.path().join("pi-docker");
    install(&sources)?;
    wall.git_apply(&sources, &[])?;
    let mut git = Command::new("git");
    ensure!(git.args(["init", "--quiet"]).current_dir(&sources).status()?.success());
    let image = Image(format!("pi-docker-without-{name}:{}", std::process::id()));
    let mut env = vec![("E2E_SOURCES", sources.clone().into_os_string())];
    if wall.is_in_image() {
        // The launcher builds it, as it sees that it is not there.
        env.push(("PI_DOCKER_IMAGE", image.0.clone().into()));
    } else {
        let launcher = dir.path().join("launcher");
        build_launcher(&sources, &launcher)?;
        env.push(("E2E_LAUNCHER", launcher.into_os_string()));
    }
    let said = wall.run(&env)?.with_context(|| format!("without the wall the test passes: {}", wall.text))?;
    let expected = wall.says("fails:")?;
    ensure!(said.contains(expected) || panicked_at(&said)?.contains(expected), "not at '{expected}': {said}");
    Ok(())
}

const WALLS: &[&str] = &["g11", "g8", "g9", "p3", "p4", "p5", "p6", "s10", "s7", "s8", "s9"];

#[test]
fn every_patch_applies_and_has_its_proof() -> Result<()> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(manifest("walls"))? {
        let name = entry?.file_name().into_string().ok().context("a name that is no text")?;
        names.insert(name.strip_suffix(".patch").context("a file that is no patch")?.to_owned());
    }
    assert_eq!(names, WALLS.iter().map(|name| (*name).to_owned()).collect());
    for name in WALLS {
        let wall = Wall::named(name)?;
        wall.git_apply(&manifest(".."), &["--check"])?;
        let (file, test) = wall.test()?;
        let source = fs::read_to_string(manifest(&format!("tests/{file}.rs")))?;
        assert!(source.contains(&format!("fn {test}()")), "{name}: {file}::{test}");
        wall.says("fails:")?;
    }
    Ok(())
}

#[test]
#[ignore = "long: builds the launcher without a wall"]
fn where_the_end_is_not_the_sessions_own_it_tears_down_the_other_one() -> Result<()> {
    proves("s7")
}

#[test]
#[ignore = "long: builds the launcher without a wall"]
fn without_the_look_at_its_address_a_remote_engine_is_used() -> Result<()> {
    proves("s8")
}

#[test]
#[ignore = "long: builds an image without a wall"]
fn without_a_strict_word_any_text_makes_a_subagents_folder() -> Result<()> {
    proves("s9")
}

#[test]
#[ignore = "long: builds the launcher without a wall"]
fn without_the_look_at_characters_names_steer_the_terminal() -> Result<()> {
    proves("s10")
}

#[test]
#[ignore = "long: builds an image without a wall"]
fn where_defaults_go_into_the_repository_a_link_is_written_through() -> Result<()> {
    proves("p3")
}

#[test]
#[ignore = "long: builds an image without a wall"]
fn where_the_wipe_goes_by_a_name_a_link_is_written_through() -> Result<()> {
    proves("p4")
}

#[test]
#[ignore = "long: builds an image without a wall"]
fn where_the_login_comes_back_whole_commands_come_with_it() -> Result<()> {
    proves("p5")
}

#[test]
#[ignore = "long: builds the launcher without a wall"]
fn a_logins_port_that_is_not_bound_to_the_loopback_is_open_to_all() -> Result<()> {
    proves("p6")
}

#[test]
#[ignore = "long: builds the launcher without a wall"]
fn a_launcher_that_writes_in_the_repository_writes_through_links() -> Result<()> {
    proves("g11")
}

#[test]
#[ignore = "long: builds the launcher without a wall"]
fn by_a_time_that_can_be_set_a_changed_file_is_not_named() -> Result<()> {
    proves("g8")
}

#[test]
#[ignore = "long: builds the launcher without a wall"]
fn without_a_look_at_its_names_a_file_that_is_also_outside_is_not_named() -> Result<()> {
    proves("g9")
}
