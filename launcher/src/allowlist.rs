//! The list of names that a session may reach: read from several files, made one list that squid takes. Squid dies of a name that
//! lies under another entry's wildcard, and never matches what it does not understand, so every line is checked here first.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow, bail};

/// One name, as squid wants it: lower case, ASCII; a leading dot takes the name and everything below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Domain(String);

impl Domain {
    /// Reads what a person writes: `example.com`, `.example.com` or `*.example.com`.
    pub(crate) fn parse(text: &str) -> Result<Domain> {
        let text = text.trim().trim_end_matches('.').to_lowercase();
        let (name, wildcard) = match text.strip_prefix("*.").or_else(|| text.strip_prefix('.')) {
            Some(name) => (name, true),
            None => (text.as_str(), false),
        };
        if name.contains("://") || name.contains('/') || name.contains(':') {
            bail!("cannot allow '{text}': give the host's name alone, without scheme, port or path");
        }
        if !name.is_ascii() {
            bail!("cannot allow '{text}': write it in its ASCII form (xn--…)");
        }
        let labels: Vec<&str> = name.split('.').collect();
        let last = labels.last().copied().unwrap_or_default();
        if last.bytes().all(|b| b.is_ascii_digit()) {
            bail!("cannot allow '{text}': addresses are never let through, only names");
        }
        let good = |label: &&str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.len() > 253 || !labels.iter().all(good) || !last.starts_with(|c: char| c.is_ascii_alphabetic()) {
            bail!("cannot allow '{text}': it is not a host name");
        }
        if labels.len() < 2 {
            bail!("cannot allow '{text}': a name without a dot would open a whole top-level domain, or none");
        }
        if wildcard && labels.len() == 2 && is_public_suffix(labels[0], labels[1]) {
            bail!("cannot allow '{text}': anyone can have a name below '{name}'");
        }
        Ok(Domain(if wildcard { format!(".{name}") } else { name.to_owned() }))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether only private networks have names like this: the addresses that they lead to are refused whatever is allowed.
    pub(crate) fn is_of_private_networks(&self) -> bool {
        [".internal", ".local", ".localhost", ".lan", ".home.arpa"].iter().any(|end| self.0.ends_with(end))
    }

    /// Whether `self` lets everything through that `other` does.
    pub(crate) fn covers(&self, other: &Domain) -> bool {
        if self == other {
            return true;
        }
        let Some(name) = self.0.strip_prefix('.') else { return false };
        let other = other.0.strip_prefix('.').unwrap_or(&other.0);
        other == name || other.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
    }
}

/// The second-level registries that are common enough to be a mistake: `co.uk`, `com.au`, `github.io`.
fn is_public_suffix(second: &str, top: &str) -> bool {
    let registry = matches!(second, "co" | "com" | "net" | "org" | "gov" | "edu" | "ac" | "or" | "ne" | "go" | "gob")
        && top.len() == 2;
    let hosting = matches!(
        (second, top),
        ("github", "io")
            | ("gitlab", "io")
            | ("herokuapp" | "appspot" | "netlify" | "vercel" | "web" | "pages", "com" | "app" | "dev")
            | ("workers", "dev")
            | ("amazonaws", "com")
            | ("cloudfront", "net")
            | ("ngrok", "io")
            | ("azurewebsites", "net")
    );
    registry || hosting
}

/// A line of a list file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    Allow(Domain),
    /// `!name`: takes a name of an earlier list away again.
    Remove(Domain),
}

/// Reads a line; `#` begins a comment.
pub(crate) fn parse_line(line: &str) -> Result<Option<Entry>> {
    let line = line.split('#').next().unwrap_or_default().trim();
    Ok(match line.strip_prefix('!') {
        _ if line.is_empty() => None,
        Some(name) => Some(Entry::Remove(Domain::parse(name)?)),
        None => Some(Entry::Allow(Domain::parse(line)?)),
    })
}

/// The entries of a list file, one a line. The error names the line.
pub(crate) fn parse_list(file: &str, text: &str) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        entries.extend(parse_line(line).map_err(|e| anyhow!("cannot use '{file}', line {}: {e}", number + 1))?);
    }
    Ok(entries)
}

/// One list out of many, in order: what is taken away is what an earlier entry of that very name gave. Without what another entry
/// covers.
pub(crate) fn merge(entries: impl IntoIterator<Item = Entry>) -> Vec<Domain> {
    let mut all = BTreeSet::new();
    for entry in entries {
        match entry {
            Entry::Allow(domain) => {
                all.insert(domain);
            }
            Entry::Remove(domain) => {
                all.remove(&domain);
            }
        }
    }
    all.iter().filter(|domain| !all.iter().any(|other| other != *domain && other.covers(domain))).cloned().collect()
}

/// The file for squid.
pub(crate) fn render(domains: &[Domain]) -> String {
    domains.iter().map(|domain| format!("{}\n", domain.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(names: &[&str]) -> Vec<String> {
        merge(names.iter().map(|n| parse_line(n).unwrap().unwrap())).into_iter().map(|d| d.0).collect()
    }

    #[test]
    fn a_name_is_written_as_squid_wants_it() {
        for (text, name) in [
            ("API.Example.COM.", "api.example.com"),
            ("*.example.com", ".example.com"),
            (".example.com", ".example.com"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("_dmarc.example.com", "_dmarc.example.com"),
        ] {
            assert_eq!(Domain::parse(text).unwrap().as_str(), name);
        }
    }

    #[test]
    fn what_would_open_too_much_or_nothing_is_refused() {
        for text in [
            "com",
            ".com",
            "*",
            "*.*",
            "10.0.0.1",
            "1.2",
            "::1",
            "[::1]",
            "https://x.com",
            "x.com:443",
            "x.com/y",
            "a b.com",
            "-a.com",
            "a..com",
            ".co.uk",
            "*.github.io",
            "größe.de",
            "",
            "a.com b.com",
            "*.a.*.com",
            "a\".com",
            "0x7f.1",
        ] {
            assert!(Domain::parse(text).is_err(), "{text:?} was taken");
        }
        assert!(Domain::parse("me.github.io").is_ok() && Domain::parse("bbc.co.uk").is_ok());
    }

    #[test]
    fn what_squid_would_die_of_is_left_out() {
        assert_eq!(merged(&["api.x.com", ".x.com", "x.com", ".sub.x.com", "x.com"]), [".x.com"]);
        assert_eq!(merged(&["a.x.com", "x.com", "ax.com"]), ["a.x.com", "ax.com", "x.com"]);
        assert_eq!(merged(&[".x.com", "ax.com"]), [".x.com", "ax.com"]);
    }

    #[test]
    fn a_later_list_takes_away_what_an_earlier_one_gave() {
        assert_eq!(merged(&["a.com", "b.com", "!a.com"]), ["b.com"]);
        assert_eq!(merged(&["a.com", "!a.com", "a.com"]), ["a.com"]);
        assert_eq!(merged(&[".a.com", "!x.a.com"]), [".a.com"]);
    }

    #[test]
    fn the_shipped_list_is_good_and_none_of_its_names_is_lost() {
        let domains = parse_list("allowlist.txt", include_str!("../../allowlist.txt")).unwrap();
        assert_eq!(merge(domains.clone()).len(), domains.len());
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = parse_list("allow.txt", "# mine\nx.com # ok\nhttp://y\n").unwrap_err();
        assert!(error.to_string().contains("'allow.txt', line 3"), "{error}");
    }
}
