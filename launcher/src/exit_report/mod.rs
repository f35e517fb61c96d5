//! What a session did that matters on this machine: files that tools here run by themselves, files with another name outside, hosts
//! that were reached and refused, commits. A few lines at its end, the whole of it by `pi-docker report`, kept in `<state>`.

mod tree;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::allowlist::{self, Domain};
use crate::config::Config;
use crate::credentials::read_bounded;
use crate::denied::{self, Denial};
use crate::error::hinted;
use crate::home::Home;
use crate::inputs;
use crate::repo::Place;
use crate::run_dir::Record;
use crate::session::unix_now;
use crate::terminal::{Terminal, printable};
use crate::traffic::{self, Host};
use tree::Look;

/// How long the tree is looked at.
const LOOK: Duration = Duration::from_millis(1500);
/// How many names a line at the session's end has.
const SHOWN: usize = 6;
/// Lines about commits that are kept.
const MOST_LINES: usize = 1000;
/// More than names and lines of these numbers can come to.
const REPORT_MAX: u64 = 32 << 20;

/// The whole of it, as it is kept and as JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    session: String,
    repository: String,
    /// Seconds since 1970.
    started: u64,
    ended: u64,
    /// From the top of the working tree.
    host_files: Vec<String>,
    /// Changed files that have another name, outside of the working tree.
    linked_outside: Vec<String>,
    /// Whether the whole working tree was looked at.
    complete: bool,
    hosts: Vec<Host>,
    refused: Vec<Refused>,
    commits: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Refused {
    host: String,
    reason: String,
    count: u64,
}

impl Report {
    /// Of a session whose container has ended, with `log` from its proxy.
    pub(crate) fn collect(log: &str, record: &Record, run: &Path) -> Report {
        let allowed = inputs::read_list(&run.join("squid/allow.txt")).map(allowlist::merge).unwrap_or_default();
        // Written just before the container was started, by the clock of the same kernel.
        let since = fs::symlink_metadata(run.join("compose.json"))
            .map_or((i64::try_from(record.started).unwrap_or(0), 0), |meta| (meta.mtime(), meta.mtime_nsec()));
        let tree = Look::at(&record.root, since, Instant::now() + LOOK);
        Report {
            session: record.session.clone(),
            repository: record.root.display().to_string(),
            started: record.started,
            ended: unix_now(),
            linked_outside: tree.linked_outside(),
            host_files: tree.host_files,
            complete: tree.complete,
            hosts: traffic::hosts(log),
            refused: refused(log, &allowed, record),
            commits: Vec::new(),
        }
    }

    /// What was said of the commits.
    pub(crate) fn take_commits(&mut self, mut lines: Vec<String>) {
        lines.truncate(MOST_LINES);
        self.commits = lines;
    }

    /// Keeps it in place of the last one. A session does not fail by it.
    pub(crate) fn keep(&self, home: &Home, record: &Record) {
        let file = file(home, &record.repository_id);
        let draft = file.with_extension(format!("{}.new", self.session));
        if let Ok(text) = serde_json::to_vec_pretty(self) {
            let _ = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &file));
        }
    }

    /// What is said at the session's end; nothing, if nothing is to be looked at.
    pub(crate) fn say(&self, terminal: &Terminal) {
        if !self.host_files.is_empty() {
            terminal.warn(
                &format!("changed, and run by tools on this machine: {}", listed(&self.host_files)),
                "read them before you open the folder in an editor, build or commit; pi-docker report shows all",
            );
        }
        if !self.linked_outside.is_empty() {
            let names = listed(&self.linked_outside);
            terminal.warn(&format!("changed, and also has a name outside of the repository: {names}"), "");
        }
        if !self.complete {
            terminal.warn("not all of the working tree could be looked at for files that tools run", "");
        }
        if !self.refused.is_empty() {
            let hosts: Vec<String> = self.refused.iter().map(|refused| refused.host.clone()).collect();
            terminal.say(&format!("refused: {} (pi-docker denied)", listed(&hosts)));
        }
    }

    /// The whole of it, for a person.
    pub(crate) fn lines(&self) -> Vec<String> {
        let now = std::time::SystemTime::now();
        let lasted = match self.ended.saturating_sub(self.started) {
            seconds @ 0..60 => format!("{seconds} s"),
            seconds => format!("{} min", seconds / 60),
        };
        let mut lines = vec![format!("session {}, {lasted}, ended {}", self.session, denied::ago(self.ended, now))];
        let mut part = |title: &str, entries: Vec<String>| {
            lines.push(format!("{title}{}", if entries.is_empty() { ": none" } else { ":" }));
            lines.extend(entries.iter().map(|entry| format!("  {}", printable(entry))));
        };
        part("changed files that tools on this machine run", self.host_files.clone());
        part("changed files with another name outside of the repository", self.linked_outside.clone());
        let host = |host: &Host| {
            format!(
                "{:<40} {} sent, {} received, {}×",
                host.host,
                size(host.sent),
                size(host.received),
                host.connections
            )
        };
        part("hosts that were reached", self.hosts.iter().map(host).collect());
        let refused = |refused: &Refused| format!("{:<40} {}×, {}", refused.host, refused.count, refused.reason);
        part("hosts that were refused", self.refused.iter().map(refused).collect());
        part("commits", self.commits.clone());
        if !self.complete {
            lines.push("not all of the working tree could be looked at".to_owned());
        }
        lines
    }
}

/// `pi-docker report`: the last session of the repository that the user is in.
pub(crate) fn show(config: &Config, as_json: bool) -> Result<u8> {
    let terminal = Terminal::new(true, config.no_colour);
    let home = Home::find(config)?;
    let file = file(&home, &Place::find(&config.cwd)?.id());
    let text = match read_bounded(&file, REPORT_MAX) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(hinted("no session of this repository has ended yet", "pi-docker status lists those that run"));
        }
        text => text.with_context(|| format!("cannot read '{}'", file.display()))?,
    };
    let report: Report =
        serde_json::from_slice(&text).with_context(|| format!("cannot understand '{}'", file.display()))?;
    if as_json {
        terminal.answer(&serde_json::to_string(&report)?);
    } else {
        report.lines().iter().for_each(|line| terminal.answer(line));
    }
    Ok(0)
}

fn file(home: &Home, repository_id: &str) -> PathBuf {
    home.state(repository_id).join("report.json")
}

fn listed(names: &[String]) -> String {
    let mut text = names.iter().take(SHOWN).map(|name| printable(name)).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{} kB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

fn refused(log: &str, allowed: &[Domain], record: &Record) -> Vec<Refused> {
    let denials = log.lines().filter_map(|line| Denial::parse(line, allowed));
    let kept = denied::group(denials, &record.repository_id, &record.session).into_iter();
    kept.map(|kept| Refused { host: kept.host, reason: kept.reason, count: kept.count }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_report_is_one_that_can_be_read_again() {
        // Each a character that takes the most there is, in JSON and as UTF-8.
        let names = |count: usize| vec!["\u{1}".repeat(tree::LONGEST); count];
        let host = |n: usize| Host { host: format!("{n}.{}", "x".repeat(250)), ..Host::default() };
        let refused =
            |n: usize| Refused { host: format!("{n}.{}", "x".repeat(250)), reason: "x".repeat(100), count: u64::MAX };
        let mut report = Report {
            host_files: names(tree::MOST),
            linked_outside: names(tree::MOST),
            hosts: (0..traffic::MOST).map(host).collect(),
            refused: (0..denied::HOSTS).map(refused).collect(),
            ..Report::default()
        };
        report.take_commits(vec!["\u{1f600}".repeat(2000); 2 * MOST_LINES]);
        assert_eq!(report.commits.len(), MOST_LINES);
        let length = serde_json::to_vec_pretty(&report).unwrap().len() as u64;
        assert!(length < REPORT_MAX, "{length}");
        // Without the bound on lines it would not be.
        report.commits = vec!["\u{1f600}".repeat(2000); 4 * MOST_LINES];
        assert!(serde_json::to_vec_pretty(&report).unwrap().len() as u64 > REPORT_MAX);
    }

    #[test]
    fn what_is_said_of_many_names_is_short_and_steers_nothing() {
        let names: Vec<String> = (0..SHOWN + 3).map(|n| format!("{n}\u{1b}]52;c;eA==\u{7}\n")).collect();
        let said = listed(&names);
        assert!(said.ends_with("5?]52;c;eA==?? and 3 more") && !said.chars().any(char::is_control), "{said}");
    }
}
