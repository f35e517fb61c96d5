//! The pull requests of all repositories, and what git says about their branches. Kept in `pulls.json` of the record's
//! folder, so that a test reads them from there.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::process::Command;

#[derive(Serialize, Deserialize, Clone)]
pub(crate) struct Pull {
    pub(crate) number: u64,
    /// `owner/name`.
    pub(crate) repo: String,
    pub(crate) head: String,
    pub(crate) base: String,
    pub(crate) title: String,
    pub(crate) body: Option<String>,
    pub(crate) draft: bool,
    pub(crate) state: String,
    pub(crate) url: String,
    pub(crate) labels: Vec<String>,
}

pub(crate) struct Pulls {
    file: PathBuf,
    all: Mutex<Vec<Pull>>,
}

impl Pulls {
    pub(crate) fn open(record: &Path) -> Result<Self> {
        let file = record.join("pulls.json");
        let all = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).context("cannot understand pulls.json")?,
            Err(_) => Vec::new(),
        };
        Ok(Self { file, all: Mutex::new(all) })
    }

    /// The pull requests of one repository that `wanted` takes.
    pub(crate) fn find(&self, repo: &str, wanted: impl Fn(&Pull) -> bool) -> Vec<Pull> {
        self.lock().iter().filter(|pull| pull.repo == repo && wanted(pull)).cloned().collect()
    }

    /// Opens a pull request, unless the same one is open.
    pub(crate) fn open_one(&self, mut pull: Pull) -> Option<Pull> {
        let mut all = self.lock();
        let same = |other: &&Pull| {
            other.repo == pull.repo && other.head == pull.head && other.base == pull.base && other.state == "open"
        };
        if all.iter().find(same).is_some() {
            return None;
        }
        pull.number = all.iter().map(|pull| pull.number).max().unwrap_or(0) + 1;
        pull.url = format!("https://github.com/{}/pull/{}", pull.repo, pull.number);
        all.push(pull.clone());
        self.save(&all);
        Some(pull)
    }

    pub(crate) fn change(&self, repo: &str, number: u64, change: impl FnOnce(&mut Pull)) -> Option<Pull> {
        let mut all = self.lock();
        let pull = all.iter_mut().find(|pull| pull.repo == repo && pull.number == number)?;
        change(pull);
        let changed = pull.clone();
        self.save(&all);
        Some(changed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Pull>> {
        self.all.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn save(&self, all: &[Pull]) {
        let draft = self.file.with_extension("new");
        let text = serde_json::to_vec_pretty(all).unwrap_or_default();
        if let Err(error) = std::fs::write(&draft, text).and_then(|()| std::fs::rename(&draft, &self.file)) {
            eprintln!("internet: cannot write pulls.json: {error}");
        }
    }
}

/// A bare repository.
pub(crate) struct Bare(PathBuf);

impl Bare {
    /// `repo` is `owner/name`; nothing if there is no such repository.
    pub(crate) fn find(repos: &Path, repo: &str) -> Option<Self> {
        let dir = repos.join(format!("{repo}.git"));
        (!repo.contains("..") && dir.is_dir()).then_some(Self(dir))
    }

    /// The commit that a branch points to.
    pub(crate) async fn tip(&self, branch: &str) -> Option<String> {
        self.git(&["rev-parse", "--verify", "--quiet", &format!("refs/heads/{branch}^{{commit}}")]).await
    }

    pub(crate) async fn default_branch(&self) -> String {
        self.git(&["symbolic-ref", "--short", "HEAD"]).await.unwrap_or_else(|| "main".into())
    }

    /// How many commits `head` has over `base`.
    pub(crate) async fn ahead(&self, base: &str, head: &str) -> u64 {
        let count = self.git(&["rev-list", "--count", &format!("{base}..{head}")]).await;
        count.and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    async fn git(&self, args: &[&str]) -> Option<String> {
        let mut command = Command::new("git");
        command.arg("-c").arg("safe.directory=*").arg("--git-dir").arg(&self.0).args(args);
        let output = command.stdin(Stdio::null()).output().await.ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// A user as the API shows one.
pub(crate) fn user(login: &str) -> Value {
    let api = format!("https://api.github.com/users/{login}");
    let mut user = json!({
        "login": login, "id": 583_231, "node_id": "MDQ6VXNlcjU4MzIzMQ==", "gravatar_id": "", "type": "User",
        "avatar_url": "https://avatars.githubusercontent.com/u/583231", "url": api,
        "html_url": format!("https://github.com/{login}"), "site_admin": false,
    });
    for name in [
        "followers",
        "following",
        "gists",
        "starred",
        "subscriptions",
        "organizations",
        "repos",
        "events",
        "received_events",
    ] {
        let path = if name == "organizations" { "orgs" } else { name };
        user[format!("{name}_url")] = format!("{api}/{path}").into();
    }
    user
}

/// A pull request as the API shows one. The two tips are the branches' commits.
pub(crate) fn shown(pull: &Pull, login: &str, tips: (String, String)) -> Value {
    let owner = pull.repo.split('/').next().unwrap_or("");
    let api = format!("https://api.github.com/repos/{}", pull.repo);
    let side = |branch: &str, sha: String| {
        let name = pull.repo.rsplit('/').next().unwrap_or("");
        let repo = json!({ "id": 1_296_269, "name": name, "full_name": pull.repo, "url": api });
        json!({ "label": format!("{owner}:{branch}"), "ref": branch, "sha": sha, "user": user(owner), "repo": repo })
    };
    let labels = pull.labels.iter().enumerate().map(|(id, name)| {
        json!({ "id": id + 1, "node_id": "L", "url": format!("{api}/labels/{name}"), "name": name, "color": "ededed", "default": false })
    });
    json!({
        "url": format!("{api}/pulls/{}", pull.number), "id": 1_000_000 + pull.number,
        "node_id": format!("PR_{}", pull.number), "html_url": pull.url,
        "diff_url": format!("{}.diff", pull.url), "patch_url": format!("{}.patch", pull.url),
        "issue_url": format!("{api}/issues/{}", pull.number), "number": pull.number, "state": pull.state,
        "locked": false, "title": pull.title, "user": user(login), "body": pull.body, "draft": pull.draft,
        "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z", "closed_at": null, "merged_at": null,
        "merged": false, "mergeable": null, "mergeable_state": "unknown", "labels": labels.collect::<Value>(),
        "head": side(&pull.head, tips.0), "base": side(&pull.base, tips.1), "author_association": "OWNER",
    })
}
