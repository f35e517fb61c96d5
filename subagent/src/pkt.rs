//! git's pkt-lines and what servers say in them: the list of refs, and the report about a push. Pure.

use git2::Oid;

/// One line, framed.
pub(crate) fn line(data: &[u8]) -> Vec<u8> {
    let mut framed = format!("{:04x}", data.len() + 4).into_bytes();
    framed.extend_from_slice(data);
    framed
}

pub(crate) const FLUSH: &[u8] = b"0000";

/// Cuts a stream into lines; none is a flush. What is no frame ends it.
pub(crate) fn lines(mut bytes: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    std::iter::from_fn(move || {
        let length = std::str::from_utf8(bytes.get(..4)?).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok())?;
        if length < 4 {
            bytes = &bytes[4..];
            return Some(None);
        }
        let (line, rest) = (bytes.get(4..length)?, &bytes[length..]);
        bytes = rest;
        Some(Some(line))
    })
}

/// What a server advertises: its refs, and what it can do.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Advertisement {
    pub(crate) refs: Vec<(String, Oid)>,
    pub(crate) capabilities: Vec<String>,
}

impl Advertisement {
    /// None if it is not an advertisement of this service, or was cut short.
    pub(crate) fn parse(bytes: &[u8], service: &str) -> Option<Self> {
        let mut all = lines(bytes);
        let title = all.next()??.trim_ascii();
        if title != format!("# service={service}").as_bytes() || all.next()?.is_some() {
            return None;
        }
        let mut found = Advertisement::default();
        for line in all {
            let Some(line) = line else { return Some(found) };
            let (line, capabilities) = match line.iter().position(|byte| *byte == 0) {
                Some(at) => (&line[..at], Some(&line[at + 1..])),
                None => (line, None),
            };
            if let Some(capabilities) = capabilities {
                let text = String::from_utf8_lossy(capabilities);
                found.capabilities = text.split_whitespace().map(str::to_owned).collect();
            }
            let text = String::from_utf8_lossy(line);
            let (oid, name) = text.trim_end().split_once(' ')?;
            // A repository without refs advertises its capabilities under the zero id.
            if let Some(oid) = Oid::from_str(oid).ok().filter(|oid| !oid.is_zero()) {
                found.refs.push((name.to_owned(), oid));
            }
        }
        None
    }

    pub(crate) fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|found| found == capability)
    }
}

/// A server's report about one pushed ref.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    Accepted,
    /// With its reason, and what it said besides.
    Refused(String),
}

/// Reads the report; `side_band` if it comes in bands. None if it was cut short.
pub(crate) fn report(bytes: &[u8], side_band: bool, name: &str) -> Option<Verdict> {
    let (mut report, mut said) = (Vec::new(), Vec::new());
    if side_band {
        for line in lines(bytes).flatten() {
            match line.split_first() {
                Some((1, data)) => report.extend_from_slice(data),
                Some((2 | 3, data)) => said.extend_from_slice(data),
                _ => {}
            }
        }
    } else {
        report.extend_from_slice(bytes);
    }
    let said = remarks(&said);
    let with =
        |reason: &str| Verdict::Refused(if said.is_empty() { reason.to_owned() } else { format!("{reason}: {said}") });
    let text: Vec<String> =
        lines(&report).flatten().map(|line| String::from_utf8_lossy(line).trim().to_owned()).collect();
    let unpacked = text.iter().find_map(|line| line.strip_prefix("unpack "));
    match unpacked {
        Some("ok") => {}
        Some(reason) => return Some(with(reason)),
        None if !said.is_empty() => return Some(Verdict::Refused(said)),
        None => return None,
    }
    text.iter().find_map(|line| match line.split_once(' ')? {
        ("ok", found) if found == name => Some(Verdict::Accepted),
        ("ng", rest) => rest.strip_prefix(name).map(|reason| with(reason.trim())),
        _ => None,
    })
}

/// The server's remarks without its progress, as one line.
fn remarks(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let kept: Vec<&str> = text
        .split(['\n', '\r'])
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.contains("% (") && !line.starts_with("Resolving deltas"))
        .collect();
    kept.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OID: &str = "0123456789012345678901234567890123456789";

    fn frame(parts: &[&[u8]]) -> Vec<u8> {
        parts.iter().flat_map(|part| if part.is_empty() { FLUSH.to_vec() } else { line(part) }).collect()
    }

    #[test]
    fn an_advertisement_gives_refs_and_capabilities_and_only_whole() {
        let first = format!("{OID} refs/heads/main\0report-status side-band-64k ofs-delta\n");
        let second = format!("{OID} refs/heads/x\n");
        let whole = frame(&[b"# service=git-receive-pack\n", b"", first.as_bytes(), second.as_bytes(), b""]);
        let found = Advertisement::parse(&whole, "git-receive-pack").unwrap();
        assert_eq!(found.refs.len(), 2);
        assert_eq!(found.refs[1], ("refs/heads/x".into(), Oid::from_str(OID).unwrap()));
        assert!(found.can("ofs-delta") && !found.can("atomic"));
        for cut in 0..whole.len() {
            assert_eq!(Advertisement::parse(&whole[..cut], "git-receive-pack"), None, "{cut}");
        }
        let empty = format!("{} capabilities^{{}}\0report-status\n", "0".repeat(40));
        let empty = frame(&[b"# service=git-receive-pack\n", b"", empty.as_bytes(), b""]);
        assert!(Advertisement::parse(&empty, "git-receive-pack").unwrap().refs.is_empty());
        assert_eq!(Advertisement::parse(b"<html>", "git-receive-pack"), None);
    }

    #[test]
    fn a_report_is_read_in_bands_with_the_servers_words() {
        let name = "refs/heads/x";
        let ok = frame(&[b"unpack ok\n", b"ok refs/heads/x\n", b""]);
        assert_eq!(report(&ok, false, name), Some(Verdict::Accepted));
        let banded = |data: &[u8], said: &str| {
            let parts = [&[1], data].concat();
            frame(&[&[&[2], said.as_bytes()].concat(), &parts, b""])
        };
        assert_eq!(report(&banded(&ok, "Resolving deltas:  50% (1/2)\r"), true, name), Some(Verdict::Accepted));
        let ng = frame(&[b"unpack ok\n", b"ng refs/heads/x pre-receive hook declined\n", b""]);
        let said = "error: GH013: Repository rule violations\n";
        let refused = "pre-receive hook declined: error: GH013: Repository rule violations";
        assert_eq!(report(&banded(&ng, said), true, name), Some(Verdict::Refused(refused.into())));
        let broken = frame(&[b"unpack index-pack abnormal exit\n", b""]);
        assert_eq!(report(&broken, false, name), Some(Verdict::Refused("index-pack abnormal exit".into())));
        assert_eq!(report(b"", true, name), None);
        assert_eq!(report(&ok[..20], false, name), None);
    }
}
