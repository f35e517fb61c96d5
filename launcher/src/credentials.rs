//! The keys and logins that a session takes along, read only. auth.json is pi's own file; a session starts with what it holds,
//! and the digest of what was found decides at the end whether it is still ours to empty.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::hinted;
use crate::secret::Secret;
use crate::session::quoted;

/// Variables that hold a provider's only key, and pi's names of the providers it is for.
pub(crate) const PROVIDERS: &[(&str, &[&str])] = &[
    ("ANTHROPIC_OAUTH_TOKEN", &["anthropic"]),
    ("ANTHROPIC_API_KEY", &["anthropic"]),
    ("AI_GATEWAY_API_KEY", &["vercel-ai-gateway"]),
    ("ANT_LING_API_KEY", &["ant-ling"]),
    ("BASETEN_API_KEY", &["baseten"]),
    ("CEREBRAS_API_KEY", &["cerebras"]),
    ("COPILOT_GITHUB_TOKEN", &["github-copilot"]),
    ("DEEPSEEK_API_KEY", &["deepseek"]),
    ("FIREWORKS_API_KEY", &["fireworks"]),
    ("GEMINI_API_KEY", &["google"]),
    ("GROQ_API_KEY", &["groq"]),
    ("HF_TOKEN", &["huggingface"]),
    ("KIMI_API_KEY", &["kimi-coding"]),
    ("META_API_KEY", &["meta"]),
    ("MINIMAX_API_KEY", &["minimax"]),
    ("MINIMAX_CN_API_KEY", &["minimax-cn"]),
    ("MISTRAL_API_KEY", &["mistral"]),
    ("MOONSHOT_API_KEY", &["moonshotai", "moonshotai-cn"]),
    ("NVIDIA_API_KEY", &["nvidia"]),
    ("OPENAI_API_KEY", &["openai"]),
    ("OPENCODE_API_KEY", &["opencode", "opencode-go"]),
    ("OPENROUTER_API_KEY", &["openrouter"]),
    ("QWEN_TOKEN_PLAN_API_KEY", &["qwen-token-plan", "qwen-token-plan-individual"]),
    ("QWEN_TOKEN_PLAN_CN_API_KEY", &["qwen-token-plan-cn", "qwen-token-plan-individual-cn"]),
    ("RADIUS_API_KEY", &["radius"]),
    ("TOGETHER_API_KEY", &["together"]),
    ("TYPESAFE_API_KEY", &["typesafe"]),
    ("XAI_API_KEY", &["xai"]),
    ("XIAOMI_API_KEY", &["xiaomi"]),
    ("XIAOMI_TOKEN_PLAN_AMS_API_KEY", &["xiaomi-token-plan-ams"]),
    ("XIAOMI_TOKEN_PLAN_CN_API_KEY", &["xiaomi-token-plan-cn"]),
    ("XIAOMI_TOKEN_PLAN_SGP_API_KEY", &["xiaomi-token-plan-sgp"]),
    ("ZAI_API_KEY", &["zai"]),
    ("ZAI_CODING_CN_API_KEY", &["zai-coding-cn"]),
];

/// Nothing pi writes comes near it; what is larger is not pi's.
const AUTH_MAX: u64 = 1 << 20;

/// pi's auth.json as it was found.
pub(crate) struct AuthFile {
    /// Where it really is, links followed: what is mounted, and what is emptied at the end.
    pub(crate) path: PathBuf,
    pub(crate) exists: bool,
    /// SHA-256 of what it holds, in hex; `None` if it holds no login.
    pub(crate) digest: Option<String>,
    providers: Map<String, Value>,
}

impl AuthFile {
    /// Reads `path`. It may be missing or empty; if it is damaged, that is an error, for pi would lose it.
    pub(crate) fn read(path: &Path) -> Result<AuthFile> {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let bytes = match read_bounded(&path, AUTH_MAX) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(AuthFile { path, exists: false, digest: None, providers: Map::new() });
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                return Err(hinted(
                    format!("cannot read '{}': {e}", path.display()),
                    format!(
                        "it has to be yours: chmod 600 {0}, or sudo chown \"$(id -u)\" {0}",
                        quoted(&path.to_string_lossy())
                    ),
                ));
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read '{}'", path.display())),
        };
        let damaged = |why: String| {
            let hint = "repair the file, or write `{}` into it and log in again";
            hinted(format!("cannot use '{}': {why}", path.display()), hint)
        };
        let providers = if bytes.iter().all(u8::is_ascii_whitespace) {
            Map::new()
        } else {
            match serde_json::from_slice(&bytes) {
                Ok(Value::Object(providers)) => providers,
                Ok(_) => return Err(damaged("it is not a JSON object".into())),
                Err(e) => {
                    return Err(damaged(format!("it is not valid JSON (line {}, column {})", e.line(), e.column())));
                }
            }
        };
        if let Some((name, _)) = providers.iter().find(|(_, value)| !value.is_object()) {
            return Err(damaged(format!("what it holds for '{name}' is not a credential")));
        }
        let digest = (!providers.is_empty()).then(|| hex_digest(&bytes));
        Ok(AuthFile { path, exists: true, digest, providers })
    }

    /// The providers that a login or key is kept for.
    pub(crate) fn providers(&self) -> impl Iterator<Item = &str> {
        self.providers.keys().map(String::as_str)
    }

    /// Whether Anthropic's session token is past its time.
    pub(crate) fn anthropic_has_expired(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
        let entry = self.providers.get("anthropic");
        let expires = entry.and_then(|e| e.get("expires")).and_then(Value::as_u64);
        expires.is_some_and(|expires| u128::from(expires) <= now)
    }
}

/// GitHub's token: the environment's, else the first line of `file`; empty counts as none. PID 1 takes no token that could become a
/// second line or field of a file it is written to.
pub(crate) fn github_token(from_env: Option<&Secret>, file: &Path) -> Result<Option<Secret>> {
    let one_word = |token: Secret, place: String| {
        if token.expose().bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\'".contains(&byte)) {
            return Ok(Some(token));
        }
        Err(hinted(
            format!(
                "cannot use the GitHub token in {place}: it holds a space, a quote or another character that no token has"
            ),
            "put the token there alone, without quotes",
        ))
    };
    if let Some(token) = from_env {
        return one_word(token.clone(), "PI_GH_TOKEN".to_owned());
    }
    match read_bounded(file, 64 << 10) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes).map_err(|_| {
                hinted(format!("cannot use '{}': it is not text", file.display()), "put the token alone into it")
            })?;
            match text.lines().find_map(Secret::new) {
                Some(token) => one_word(token, format!("'{}'", file.display())),
                None => Ok(None),
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read '{}'", file.display())),
    }
}

/// A credential as pi reads it from auth.json, where `$` and a leading `!` have a meaning.
pub(crate) fn api_key(key: &Secret) -> Value {
    let mut text = key.expose().replace('$', "$$");
    if text.starts_with('!') {
        text.insert(0, '$');
    }
    serde_json::json!({ "type": "api_key", "key": text })
}

/// Empties auth.json in place if it still holds what has this digest. True if it did.
pub(crate) fn wipe_if_unchanged(path: &Path, digest: &str) -> io::Result<bool> {
    use std::io::{Read, Write};
    let mut file = match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    (&mut file).take(AUTH_MAX + 1).read_to_end(&mut bytes)?;
    if hex_digest(&bytes) != digest {
        return Ok(false);
    }
    // In place: a session that still runs has this very file mounted.
    file.set_len(0)?;
    io::Seek::rewind(&mut file)?;
    file.write_all(b"{}")?;
    file.sync_all()?;
    Ok(true)
}

pub(crate) fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The whole of a regular file, or an error if it is something else or larger than `max` bytes.
pub(crate) fn read_bounded(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {max} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn file(content: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        fs::write(&path, content).unwrap();
        (dir, path)
    }

    #[test]
    fn a_login_is_found_and_its_expiry_is_in_milliseconds() {
        let (_dir, path) = file(r#"{"anthropic":{"type":"oauth","access":"a","refresh":"r","expires":2000}}"#);
        let auth = AuthFile::read(&path).unwrap();
        assert_eq!(auth.providers().collect::<Vec<_>>(), ["anthropic"]);
        assert!(!auth.anthropic_has_expired(UNIX_EPOCH + Duration::from_millis(1999)));
        assert!(auth.anthropic_has_expired(UNIX_EPOCH + Duration::from_secs(2)));
    }

    #[test]
    fn an_empty_object_an_empty_file_and_a_missing_one_hold_no_login() {
        for content in ["{}", "", " {} \n"] {
            let (_dir, path) = file(content);
            let auth = AuthFile::read(&path).unwrap();
            assert!(auth.digest.is_none() && auth.exists, "{content:?}");
        }
        let (dir, _) = file("{}");
        assert!(!AuthFile::read(&dir.path().join("none")).unwrap().exists);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_shows_none_of_it() {
        for content in ["{\"anthropic\": {\"key\": \"hunter2", "[]", "{\"anthropic\":\"hunter2\"}"] {
            let (_dir, path) = file(content);
            let Err(error) = AuthFile::read(&path) else { panic!("{content} was taken") };
            let text = format!("{error:#}");
            assert!(text.contains("auth.json") && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn only_what_was_found_is_wiped() {
        let (_dir, path) = file("{\"a\":{}}");
        let digest = AuthFile::read(&path).unwrap().digest.unwrap();
        fs::write(&path, "{\"b\":{}}").unwrap();
        assert!(!wipe_if_unchanged(&path, &digest).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"b\":{}}");
        fs::write(&path, "{\"a\":{}}").unwrap();
        assert!(wipe_if_unchanged(&path, &digest).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}");
    }

    #[test]
    fn a_key_is_neither_a_command_nor_a_variable_to_pi() {
        let key = |text: &str| api_key(&Secret::new(text).unwrap())["key"].as_str().unwrap().to_owned();
        assert_eq!(key("!rm"), "$!rm");
        assert_eq!(key("a$b!c"), "a$$b!c");
    }

    #[test]
    fn the_token_file_gives_its_first_line_and_nothing_when_empty() {
        let (_dir, path) = file("\n  github_pat_x  \nmore\n");
        assert_eq!(github_token(None, &path).unwrap().unwrap().expose(), "github_pat_x");
        let (_dir, path) = file("\n");
        assert!(github_token(None, &path).unwrap().is_none());
    }

    #[test]
    fn a_token_that_is_not_one_word_is_refused_by_its_place_and_not_shown() {
        for text in ["hunter2 two", "\"hunter2\"", "'hunter2'", "hunter2\\", "hunter2é"] {
            let (_dir, path) = file(text);
            let refused = format!("{:#}", github_token(None, &path).unwrap_err());
            assert!(refused.contains("auth.json") && !refused.contains("hunter2"), "{refused}");
            let refused = format!("{:#}", github_token(Secret::new(text).as_ref(), &path).unwrap_err());
            assert!(refused.contains("PI_GH_TOKEN") && !refused.contains("hunter2"), "{refused}");
        }
    }
}
