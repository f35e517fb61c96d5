//! Safe copies from pi's own folder on the host: what pi in the container may read, and nothing that is or holds a command or
//! a secret. Links that lead out of the folder are left behind, and so is what is too large.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Map, Value};

use crate::credentials::read_bounded;
use crate::files::Maker;

/// Settings that are preferences. What names a command, a package, a path of the host or a proxy is not here.
const SETTINGS: &[&str] = &[
    "defaultProvider",
    "defaultModel",
    "defaultThinkingLevel",
    "modelThinkingLevels",
    "thinkingBudgets",
    "enabledModels",
    "hideThinkingBlock",
    "showCacheMissNotices",
    "cacheWarming",
    "steeringMode",
    "followUpMode",
    "doubleEscapeAction",
    "treeFilterMode",
    "defaultTools",
    "codemode",
    "compaction",
    "branchSummary",
    "theme",
    "quietStartup",
    "tuiMode",
    "fullscreenExitOutput",
    "fullscreenScrollbar",
    "fullscreenCopyOnSelect",
    "fullscreenWheelScrollLines",
    "editorPaddingX",
    "outputPad",
    "autocompleteMaxVisible",
    "showHardwareCursor",
    "terminal",
    "images",
    "markdown",
    "transport",
    "httpIdleTimeoutMs",
    "websocketConnectTimeoutMs",
    "retry",
    "enableSkillCommands",
    "collapseChangelog",
    "enableInstallTelemetry",
    "enableAnalytics",
    "warnings",
];
const FILES: &[&str] =
    &["keybindings.json", "AGENTS.md", "AGENTS.override.md", "CLAUDE.md", "SYSTEM.md", "APPEND_SYSTEM.md"];
const FOLDERS: &[&str] = &["prompts", "skills", "themes"];

const FILE_MAX: u64 = 1 << 20;
const TOTAL_MAX: u64 = 32 << 20;
const COUNT_MAX: usize = 4000;

/// What was left behind, to be said in one line each.
#[derive(Debug, Default)]
pub(crate) struct Skipped(pub(crate) Vec<String>);

/// Copies from `from` (which may be missing) into the new folder `to`. `local_models` is models.json of pi-docker's own folder.
pub(crate) fn copy(from: &Path, to: &Path, local_models: &Path, maker: Maker) -> Result<Skipped> {
    maker.dir(to)?;
    let mut copy = Copy {
        base: fs::canonicalize(from).unwrap_or_default(),
        maker,
        bytes: 0,
        count: 0,
        skipped: Skipped::default(),
    };
    if let Some(Value::Object(settings)) = copy.json(&from.join("settings.json")) {
        let kept: Map<String, Value> =
            settings.into_iter().filter(|(key, _)| SETTINGS.contains(&key.as_str())).collect();
        maker.file(&to.join("settings.json"), format!("{:#}\n", Value::Object(kept)).as_bytes())?;
    }
    let models = [from.join("models.json"), local_models.to_owned()].map(|path| copy.json(&path));
    if models.iter().any(Option::is_some) {
        let merged = merge_models(models.into_iter().flatten(), &mut copy.skipped);
        maker.file(&to.join("models.json"), format!("{merged:#}\n").as_bytes())?;
    }
    for name in FILES {
        copy.entry(&from.join(name), &to.join(name), 0)?;
    }
    for name in FOLDERS {
        copy.entry(&from.join(name), &to.join(name), 0)?;
    }
    Ok(copy.skipped)
}

struct Copy {
    /// What a link may lead to: pi's folder itself.
    base: PathBuf,
    maker: Maker,
    bytes: u64,
    count: usize,
    skipped: Skipped,
}

impl Copy {
    /// A JSON file; a damaged one is left behind.
    fn json(&mut self, path: &Path) -> Option<Value> {
        match read_bounded(path, FILE_MAX) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(value) => Some(value),
                Err(e) => {
                    self.skip(path, &format!("not valid JSON (line {})", e.line()));
                    None
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                self.skip(path, &e.to_string());
                None
            }
        }
    }

    fn entry(&mut self, from: &Path, to: &Path, depth: usize) -> Result<()> {
        let Ok(real) = fs::canonicalize(from) else { return Ok(()) };
        if !real.starts_with(&self.base) {
            self.skip(from, "it leads out of the folder");
            return Ok(());
        }
        let Ok(meta) = fs::metadata(&real) else { return Ok(()) };
        self.count += 1;
        if depth > 12 || self.count > COUNT_MAX {
            self.skip(from, "too many files");
        } else if meta.is_dir() {
            let name = from.file_name().unwrap_or_default();
            if name == "node_modules" || name == ".git" {
                return Ok(());
            }
            self.maker.dir(to)?;
            let mut names: Vec<_> =
                fs::read_dir(&real).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
            names.sort();
            for name in names {
                self.entry(&from.join(&name), &to.join(&name), depth + 1)?;
            }
        } else if meta.is_file() {
            match read_bounded(&real, FILE_MAX.min(TOTAL_MAX - self.bytes)) {
                Ok(bytes) => {
                    self.bytes += bytes.len() as u64;
                    self.maker.file(to, &bytes)?;
                }
                Err(e) => self.skip(from, &e.to_string()),
            }
        }
        Ok(())
    }

    fn skip(&mut self, path: &Path, why: &str) {
        self.skipped.0.push(format!("not taken along: '{}': {why}", path.display()));
    }
}

/// One models.json out of several; of two providers with one name the later one counts. Values that are commands are dropped.
fn merge_models(files: impl Iterator<Item = Value>, skipped: &mut Skipped) -> Value {
    let mut merged = Map::new();
    for file in files {
        let Value::Object(file) = file else { continue };
        for (key, value) in file {
            match (merged.get_mut(&key), value) {
                (Some(Value::Object(known)), Value::Object(more)) if key == "providers" => known.extend(more),
                (_, value) => {
                    merged.insert(key, value);
                }
            }
        }
    }
    let mut merged = Value::Object(merged);
    drop_commands(&mut merged, skipped);
    merged
}

fn drop_commands(value: &mut Value, skipped: &mut Skipped) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| {
                let command = value.as_str().is_some_and(|text| text.starts_with('!'));
                if command {
                    skipped.0.push(format!("not taken along: '{key}' in models.json: it is a command"));
                }
                !command
            });
            map.values_mut().for_each(|value| drop_commands(value, skipped));
        }
        Value::Array(values) => {
            values.retain(|value| !value.as_str().is_some_and(|text| text.starts_with('!')));
            values.iter_mut().for_each(|value| drop_commands(value, skipped));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::cli::Owner;

    fn copied(setup: impl Fn(&Path)) -> (tempfile::TempDir, Skipped) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("agent")).unwrap();
        setup(dir.path());
        let maker = Maker::new(Owner { uid: 0, gid: 0 });
        let skipped =
            copy(&dir.path().join("agent"), &dir.path().join("to"), &dir.path().join("models.json"), maker).unwrap();
        (dir, skipped)
    }

    #[test]
    fn neither_secrets_nor_commands_go_along() {
        let (dir, skipped) = copied(|dir| {
            let agent = dir.join("agent");
            for name in ["auth.json", "trust.json", "mcp.json"] {
                fs::write(agent.join(name), "{}").unwrap();
            }
            fs::create_dir(agent.join("extensions")).unwrap();
            fs::write(agent.join("extensions/x.ts"), "").unwrap();
            fs::write(
                agent.join("settings.json"),
                r#"{"theme":"dark","shellPath":"/x","packages":["p"],"httpProxy":"http://x"}"#,
            )
            .unwrap();
            fs::write(agent.join("models.json"), r#"{"providers":{"a":{"apiKey":"!security x","baseUrl":"u"}}}"#)
                .unwrap();
        });
        let mut names: Vec<_> = fs::read_dir(dir.path().join("to")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["models.json", "settings.json"]);
        let settings: Value = serde_json::from_slice(&fs::read(dir.path().join("to/settings.json")).unwrap()).unwrap();
        assert_eq!(settings, serde_json::json!({ "theme": "dark" }));
        let models: Value = serde_json::from_slice(&fs::read(dir.path().join("to/models.json")).unwrap()).unwrap();
        assert_eq!(models, serde_json::json!({ "providers": { "a": { "baseUrl": "u" } } }));
        assert_eq!(skipped.0.len(), 1);
    }

    #[test]
    fn links_within_the_folder_are_followed_and_others_are_not() {
        let (dir, skipped) = copied(|dir| {
            let agent = dir.join("agent");
            fs::create_dir_all(agent.join("skills/a")).unwrap();
            fs::write(agent.join("skills/a/SKILL.md"), "skill").unwrap();
            symlink(agent.join("skills/a"), agent.join("skills/b")).unwrap();
            symlink("/etc/passwd", agent.join("skills/leak")).unwrap();
            symlink(agent.join("skills"), agent.join("skills/a/loop")).unwrap();
            symlink("/etc/hostname", agent.join("AGENTS.md")).unwrap();
        });
        assert_eq!(fs::read(dir.path().join("to/skills/b/SKILL.md")).unwrap(), b"skill");
        assert!(!dir.path().join("to/skills/leak").exists() && !dir.path().join("to/AGENTS.md").exists());
        assert!(skipped.0.iter().any(|s| s.contains("leak")), "{skipped:?}");
    }

    #[test]
    fn local_models_join_the_users_own() {
        let (dir, _) = copied(|dir| {
            fs::write(dir.join("agent/models.json"), r#"{"providers":{"a":{"baseUrl":"1"}}}"#).unwrap();
            fs::write(dir.join("models.json"), r#"{"providers":{"ollama":{"baseUrl":"2"}}}"#).unwrap();
        });
        let models: Value = serde_json::from_slice(&fs::read(dir.path().join("to/models.json")).unwrap()).unwrap();
        assert_eq!(models["providers"].as_object().unwrap().len(), 2);
    }
}
