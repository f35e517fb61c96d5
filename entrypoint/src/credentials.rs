//! The session's credentials, from the launcher's directory into files that only the agent's user can read, on tmpfs.
//!
//! git's credential store and configuration, gh's hosts file, the login that pi reads, and the CA bundle. Every file is made 0600 and
//! must not exist before. No variable of the agent's environment gets a secret.

use std::fs;

use serde_json::Value;

use crate::auth::Login;
use crate::defaults::create;
use crate::failure::{Failure, Result, cause};
use crate::json::{self, Object};
use crate::sys::files::Place;

const LIMIT: u64 = 1 << 20;
const CA_PATH: &str = "/home/pi/.config/pi-docker/ca.pem";
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Who has to be told of the bundle: OpenSSL and Rust, node, git, curl, Python, pip and cargo.
const CA_VARIABLES: &[(&str, &str)] = &[
    ("SSL_CERT_FILE", CA_PATH),
    ("NODE_EXTRA_CA_CERTS", CA_PATH),
    ("GIT_SSL_CAINFO", CA_PATH),
    ("CURL_CA_BUNDLE", CA_PATH),
    ("REQUESTS_CA_BUNDLE", CA_PATH),
    ("PIP_CERT", CA_PATH),
    ("CARGO_HTTP_CAINFO", CA_PATH),
];

/// Names and values for the agent's environment.
type Variables = &'static [(&'static str, &'static str)];

/// What the launcher handed over.
#[derive(Default)]
pub(crate) struct Secrets {
    github: Option<GitHub>,
    /// API keys by provider, as pi's auth.json has them.
    keys: Object,
}

struct GitHub {
    host: String,
    token: String,
}

impl Secrets {
    pub(crate) fn read(input: &Place) -> Result<Self> {
        let content = match input.read("secrets.json", LIMIT) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            content => content.map_err(|error| Failure::preparing("read 'secrets.json'", &cause(&error)))?,
        };
        Self::parse(&content).ok_or_else(|| Failure::preparing("read 'secrets.json'", "not what the launcher writes"))
    }

    fn parse(content: &[u8]) -> Option<Self> {
        let content = json::object(content)?;
        let keys = match content.get("auth") {
            None | Some(Value::Null) => Object::new(),
            Some(keys) => keys.as_object()?.clone(),
        };
        let github = match content.get("github") {
            None | Some(Value::Null) => None,
            Some(github) => Some(GitHub {
                host: plain(github.get("host")?.as_str()?)?,
                token: plain(github.get("token")?.as_str()?)?,
            }),
        };
        Some(Self { github, keys })
    }
}

/// A host or a token is one word; anything else could become a second line or field of a file it is written to.
fn plain(word: &str) -> Option<String> {
    let fits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\'".contains(&byte));
    fits.then(|| word.to_owned())
}

/// Writes them all. What the agent's environment has to name beside.
pub(crate) fn install(
    secrets: &Secrets,
    login: &mut Login,
    home: &Place,
    agent: &Place,
    input: &Place,
) -> Result<Variables> {
    let config =
        home.make_dir(".config", 0o700).map_err(|error| Failure::preparing("make '.config'", &cause(&error)))?;
    create(home, ".gitconfig", 0o600, gitconfig(secrets, input)?.as_bytes())?;
    // Where `core.excludesFile` in it points to.
    if let Ok(ignored) = input.read("gitignore", LIMIT) {
        let git =
            config.make_dir("git", 0o700).map_err(|error| Failure::preparing("make '.config/git'", &cause(&error)))?;
        create(&git, "ignore", 0o600, &ignored)?;
    }
    if let Some(github) = &secrets.github {
        create(home, ".git-credentials", 0o600, github.store().as_bytes())?;
        let gh =
            config.make_dir("gh", 0o700).map_err(|error| Failure::preparing("make '.config/gh'", &cause(&error)))?;
        create(&gh, "hosts.yml", 0o600, github.hosts().as_bytes())?;
        // Or gh asks the network for the account's name before its first command.
        create(&gh, "config.yml", 0o600, b"version: \"1\"\ngit_protocol: https\nprompt: disabled\n")?;
    }
    create(agent, "auth.json", 0o600, login.for_agent(&secrets.keys)?.as_bytes())?;
    let ours = config
        .make_dir("pi-docker", 0o700)
        .map_err(|error| Failure::preparing("make '.config/pi-docker'", &cause(&error)))?;
    certificates(&ours, input)
}

/// Removes the tokens from the agent's home, as far as they are where they were put; as the user, so it can reach nothing else.
pub(crate) fn remove(home: &Place) {
    let _ = home.unlink(".git-credentials");
    let _ = home.dir(".config").and_then(|config| config.dir("gh")).and_then(|gh| gh.unlink("hosts.yml"));
}

impl GitHub {
    fn store(&self) -> String {
        format!("https://x-access-token:{}@{}\n", percent_encoded(&self.token), self.host)
    }

    /// YAML takes JSON's strings as they are.
    fn hosts(&self) -> String {
        let (host, token) = (json::string(&self.host), json::string(&self.token));
        format!(
            "{host}:\n    user: x-access-token\n    oauth_token: {token}\n    git_protocol: https\n    users:\n        \
             x-access-token:\n            oauth_token: {token}\n"
        )
    }
}

/// The user's own lines first, so that ours stand.
fn gitconfig(secrets: &Secrets, input: &Place) -> Result<String> {
    let mut text = match input.read("gitconfig", LIMIT) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        content => content
            .map(|content| String::from_utf8_lossy(&content).into_owned())
            .map_err(|error| Failure::preparing("read 'gitconfig'", &cause(&error)))?,
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    // The container is the boundary: who owns a repository in it says nothing. Signing keys do not come along.
    text.push_str("[safe]\n\tdirectory = *\n[commit]\n\tgpgSign = false\n[tag]\n\tgpgSign = false\n");
    // One empty helper forgets those of the image's own configuration.
    text.push_str(
        "[credential]\n\thelper =\n\thelper = store --file /home/pi/.git-credentials\n\tuseHttpPath = false\n",
    );
    let host = secrets.github.as_ref().map_or("github.com", |github| &github.host);
    text.push_str(&format!("[url \"https://{host}/\"]\n\tinsteadOf = git@{host}:\n\tinsteadOf = ssh://git@{host}/\n"));
    Ok(text)
}

/// The system's certificates and the user's, in one bundle.
fn certificates(ours: &Place, input: &Place) -> Result<Variables> {
    let extra = match input.read("ca.pem", LIMIT) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(&[]),
        content => content.map_err(|error| Failure::preparing("read 'ca.pem'", &cause(&error)))?,
    };
    let mut bundle = fs::read(SYSTEM_CA).unwrap_or_default();
    if bundle.last().is_some_and(|byte| *byte != b'\n') {
        bundle.push(b'\n');
    }
    bundle.extend(extra);
    create(ours, "ca.pem", 0o600, &bundle)?;
    Ok(CA_VARIABLES)
}

fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_token_cannot_become_a_second_line_or_another_host() {
        let secrets = |token: &str| json!({"github": {"host": "github.com", "token": token}}).to_string();
        assert!(Secrets::parse(secrets("a\nb").as_bytes()).is_none());
        assert!(Secrets::parse(secrets("").as_bytes()).is_none());
        assert!(Secrets::parse(secrets("a\"b").as_bytes()).is_none());
        let github = Secrets::parse(secrets("p@ss/w:rd%").as_bytes()).and_then(|s| s.github).expect("a token");
        assert_eq!(github.store(), "https://x-access-token:p%40ss%2Fw%3Ard%25@github.com\n");
    }

    #[test]
    fn no_token_and_no_key_is_fine() {
        let secrets = Secrets::parse(br#"{"github": null, "auth": {}}"#).expect("secrets");
        assert!(secrets.github.is_none() && secrets.keys.is_empty());
    }
}
