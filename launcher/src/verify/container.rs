//! The attacks on the container itself: what it shows, what it may take, what it may do.

use anyhow::Result;

use super::Outcome;
use super::attacks::Attacker;

impl Attacker<'_> {
    pub(super) fn supervisor(&self) -> Result<Outcome> {
        let (_, said) = self.trial.sh(
            "[ -e /run/pi-docker ] && echo there; ls /run/pi-docker 2>/dev/null; cat /proc/1/environ 2>/dev/null | head -c 1; kill -0 1 2>/dev/null && echo signals",
        )?;
        Ok(match said.trim() {
            "there" => Outcome::Held,
            said => Outcome::Failed(format!("the agent sees '{said}'")),
        })
    }

    pub(super) fn logs(&self) -> Result<Outcome> {
        let agent = self.agent()?;
        Ok(match agent["HostConfig"]["LogConfig"]["Type"].as_str() {
            Some("none") => Outcome::Held,
            other => Outcome::Failed(format!("the log driver is '{}'", other.unwrap_or_default())),
        })
    }

    pub(super) fn limits(&self) -> Result<Outcome> {
        let host = self.agent()?["HostConfig"].clone();
        let (memory, pids) = (host["Memory"].as_i64().unwrap_or(0), host["PidsLimit"].as_i64().unwrap_or(0));
        if memory <= 0 || host["MemorySwap"].as_i64() != Some(memory) {
            return Ok(Outcome::Failed("memory is not limited, or swap is not".to_owned()));
        }
        if !(1..=4096).contains(&pids) {
            return Ok(Outcome::Failed("processes are not limited".to_owned()));
        }
        let (_, said) = self.trial.sh(&format!(
            "ulimit -Hc; perl -e 'while (@p < {} && defined(my $p = fork)) {{ if (!$p) {{ sleep 60; exit }} push @p, $p }}
             print scalar @p; kill 9, @p; waitpid($_, 0) for @p'",
            pids + 50
        ))?;
        let words: Vec<i64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        Ok(match words[..] {
            [0, forks] if (10..pids).contains(&forks) => Outcome::Held,
            [0, forks] => Outcome::Failed(format!("{forks} processes could be had, of {pids} at most")),
            [core, _] => Outcome::Failed(format!("core dumps of {core} blocks are allowed")),
            _ => Outcome::NotTried(format!("the container says '{}'", said.trim())),
        })
    }

    pub(super) fn rights(&self) -> Result<Outcome> {
        let (_, said) = self.trial.sh(
            "status=/proc/$(pgrep -o -P 1)/status; grep -c '^Cap[A-Za-z]*:.0000000000000000$' $status; grep -c '^NoNewPrivs:.1$' $status
             find / -xdev -type f -perm /6000 2>/dev/null; find /run /var/run -name docker.sock 2>/dev/null; unshare -U true 2>/dev/null && echo namespaces
             mount -t tmpfs none /tmp 2>/dev/null && echo mounts",
        )?;
        let lines: Vec<&str> = said.lines().collect();
        Ok(match lines[..] {
            ["5", "1"] => Outcome::Held,
            ["5", "1", ref more @ ..] => Outcome::Failed(format!("there is {}", more.join(", "))),
            _ => Outcome::Failed("pi has a capability, or may get one".to_owned()),
        })
    }

    pub(super) fn places(&self) -> Result<Outcome> {
        let (_, said) = self.trial.sh(
            "touch /tmp/x && echo there; for dir in / /etc /usr/local/bin /opt /var/tmp /run /run/pi-docker /defaults /etc/squid; do
               [ -d $dir ] && touch $dir/x 2>/dev/null && echo $dir; done; true",
        )?;
        Ok(match said.trim() {
            "there" => Outcome::Held,
            "" => Outcome::NotTried("not even /tmp can be written".to_owned()),
            said => Outcome::Failed(format!("the agent writes to {}", said.replace("there\n", "").replace('\n', ", "))),
        })
    }

    pub(super) fn ports(&self) -> Result<Outcome> {
        let ports = self.agent()?["NetworkSettings"]["Ports"].clone();
        let published = ports.as_object().into_iter().flatten().find(|(_, to)| !to.is_null());
        Ok(published.map_or(Outcome::Held, |(port, to)| Outcome::Failed(format!("{port} is open at {to}"))))
    }
}
