//! The attacks themselves. Squid's own log says whether it refused; that a page did not come says nothing.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use super::{Outcome, PRIVATE, TRIED, Threat};
use crate::docker::Docker;
use crate::heartbeat::Canary;
use crate::session::random_id;
use crate::trial::Trial;

/// A host of the shipped list that answers everybody.
const ALLOWED: &str = "api.github.com";
const ANSWER: Duration = Duration::from_secs(15);
/// How long squid may take to write a line.
const WRITTEN: Duration = Duration::from_secs(3);

pub(super) struct Attacker<'a> {
    pub(super) trial: &'a Trial<'a>,
    pub(super) docker: &'a Docker,
    /// In names, so that a line of the log is of this attack.
    seed: String,
    /// Why a refusal by the proxy would prove nothing.
    dead: Option<String>,
}

pub(super) fn all(trial: &Trial, docker: &Docker) -> Vec<(Threat, Outcome)> {
    let dead = trial.fetch(&format!("https://{ALLOWED}/"), None, None).err().map(|e| format!("{e:#}"));
    let seed = random_id().unwrap_or_else(|_| "0".to_owned());
    let attacker = Attacker { trial, docker, seed, dead };
    // What takes longest runs beside the others.
    thread::scope(|scope| {
        let names = scope.spawn(|| attacker.outcome("N5"));
        let others = TRIED.iter().map(|threat| (*threat, (threat.0 != "N5").then(|| attacker.outcome(threat.0))));
        let others: Vec<_> = others.collect();
        let names = names.join().unwrap_or_else(|_| Outcome::NotTried("it ended in the middle".to_owned()));
        others.into_iter().map(|(threat, outcome)| (threat, outcome.unwrap_or_else(|| names.clone()))).collect()
    })
}

impl Attacker<'_> {
    fn outcome(&self, id: &str) -> Outcome {
        let tried = match id {
            "N1" => self.by_proxy(|| {
                self.refused(&[("https://1.1.1.1/", "1.1.1.1:443"), ("https://[2606:4700::1111]/", ":1111")])
            }),
            "N2" => self.by_proxy(|| {
                let (tunnel, page) = (format!("https://{ALLOWED}:22/"), format!("http://{ALLOWED}/{}", self.seed));
                self.refused(&[(&tunnel, &format!("{ALLOWED}:22")), (&page, &self.seed)])
            }),
            "N3" => self.by_proxy(|| self.private_addresses()),
            "N4" => self.by_proxy(|| {
                let name = format!("{}.example.com", self.seed);
                self.refused(&[(&format!("https://{name}/"), &format!("{name}:443"))])
            }),
            "N5" => self.names(),
            "N6" => self.this_machine(),
            "N7" => self.ipv6(),
            "N8" => self.packets(),
            "N9" => self.by_proxy(|| self.greeting()),
            "N10" => self.by_proxy(|| self.tricks()),
            "N11" => self.manager(),
            "N14" => self.model_server(),
            "N15" => self.by_proxy(|| self.forgery()),
            "S1" => self.supervisor(),
            "S2" => self.logs(),
            "S4" => self.limits(),
            "S5" => self.rights(),
            "P4" => self.places(),
            _ => self.ports(),
        };
        tried.unwrap_or_else(|e| Outcome::NotTried(format!("{e:#}")))
    }

    /// What is refused by the proxy counts if the proxy lets something through.
    fn by_proxy(&self, attack: impl FnOnce() -> Result<Outcome>) -> Result<Outcome> {
        match &self.dead {
            None => attack(),
            Some(why) => {
                Ok(Outcome::NotTried(format!("nothing that is allowed answers, so a refusal proves nothing ({why})")))
            }
        }
    }

    /// Squid must refuse each of these; the second word is how its line of the log ends.
    fn refused(&self, attempts: &[(&str, &str)]) -> Result<Outcome> {
        for (url, end) in attempts {
            // An error is what is hoped for.
            let got = self.trial.fetch(url, None, None).ok().filter(|answer| answer.status != 403);
            if let Some(answer) = got {
                return Ok(Outcome::Failed(format!("'{url}' answered {}", answer.status)));
            }
            match self.logged(end) {
                Some(line) if line.contains("TCP_DENIED") => {}
                Some(_) => return Ok(Outcome::Failed(format!("squid let '{url}' through"))),
                None => return Ok(Outcome::NotTried(format!("squid has written nothing about '{url}'"))),
            }
        }
        Ok(Outcome::Held)
    }

    /// The first line of squid's log that ends so.
    fn logged(&self, end: &str) -> Option<String> {
        let deadline = Instant::now() + WRITTEN;
        loop {
            let log = self.docker.logs(&self.trial.record().proxy());
            let found = log.lines().find(|line| line.replace("%5D", "]").contains(end));
            if found.is_some() || Instant::now() > deadline {
                return found.map(str::to_owned);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn private_addresses(&self) -> Result<Outcome> {
        let mut tried = false;
        for name in PRIVATE {
            // As squid asks. Some name servers withhold private addresses.
            let known = self.docker.ask(["exec", &self.trial.record().proxy(), "getent", "ahostsv4", name], ANSWER)?;
            if !known.status.success() {
                continue;
            }
            let _ = self.trial.fetch(&format!("https://{name}/"), None, None);
            match self.logged(&format!("{name}:443")) {
                Some(line) if line.contains("TCP_DENIED") => tried = true,
                Some(_) => return Ok(Outcome::Failed(format!("squid let '{name}' through"))),
                None => {}
            }
        }
        Ok(if tried {
            Outcome::Held
        } else {
            Outcome::NotTried("no name that leads to a private address is answered here".to_owned())
        })
    }

    fn names(&self) -> Result<Outcome> {
        let script = format!(
            "getent hosts proxy >/dev/null || echo dead; timeout 12 getent hosts {}.example.com github.com",
            self.seed
        );
        let (_, said) = self.trial.sh(&script)?;
        Ok(match said.trim() {
            "" => Outcome::Held,
            "dead" => Outcome::NotTried("not even the proxy's name is known".to_owned()),
            said => Outcome::Failed(said.to_owned()),
        })
    }

    fn this_machine(&self) -> Result<Outcome> {
        let canary = Canary::open()?;
        let Some(first) = canary.addresses.first() else {
            return Ok(Outcome::NotTried("this machine has no address but its loopback".to_owned()));
        };
        if TcpStream::connect_timeout(first, Duration::from_secs(2)).is_err() {
            return Ok(Outcome::NotTried("this machine does not reach itself".to_owned()));
        }
        let mut hosts: Vec<String> = canary.addresses.iter().map(|address| address.ip().to_string()).collect();
        hosts.extend(self.gateways());
        hosts.extend(["host.docker.internal", "gateway.docker.internal"].map(str::to_owned));
        let script = format!(
            "for host in {}; do (timeout 3 bash -c \"</dev/tcp/$host/{}\" 2>/dev/null && echo $host) & done; wait",
            hosts.join(" "),
            first.port()
        );
        let (_, said) = self.trial.sh(&script)?;
        Ok(if said.trim().is_empty() {
            Outcome::Held
        } else {
            Outcome::Failed(format!("it answers at {}", said.trim().replace('\n', ", ")))
        })
    }

    /// The first address of each of the session's networks, which is the host's where it has one.
    fn gateways(&self) -> Vec<String> {
        let project = &self.trial.record().project;
        let networks = ["pi-net", "proxy-net"].map(|network| format!("{project}_{network}"));
        let found = networks.iter().filter_map(|network| self.inspect("network", network).ok());
        found
            .filter_map(|network| network["IPAM"]["Config"][0]["Subnet"].as_str().map(str::to_owned))
            .filter_map(|subnet| {
                let (start, _) = subnet.split_once('/')?;
                let start: std::net::Ipv4Addr = start.parse().ok()?;
                Some(std::net::Ipv4Addr::from(u32::from(start) + 1).to_string())
            })
            .collect()
    }

    pub(super) fn inspect(&self, kind: &str, name: &str) -> Result<Value> {
        let output = self.docker.ask([kind, "inspect", name], ANSWER)?;
        let all: Value = serde_json::from_slice(&output.stdout)?;
        Ok(all[0].clone())
    }

    pub(super) fn agent(&self) -> Result<Value> {
        self.inspect("container", &self.trial.record().container)
    }

    fn ipv6(&self) -> Result<Outcome> {
        let (_, said) = self.trial.sh("cat /proc/net/if_inet6 2>/dev/null")?;
        Ok(if said.trim().is_empty() { Outcome::Held } else { Outcome::Failed(said.trim().to_owned()) })
    }

    fn packets(&self) -> Result<Outcome> {
        let (_, said) = self.trial.sh(
            "perl -e 'use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) and print \"stream \";
               socket($s, 17, SOCK_RAW, 0x0300) and print \"frames \"; socket($s, PF_INET, SOCK_RAW, 1) and print \"packets \"'",
        )?;
        match said.trim() {
            "stream" => {}
            "" => return Ok(Outcome::NotTried("there is no perl in the image".to_owned())),
            said => return Ok(Outcome::Failed(format!("the agent can make {said}"))),
        }
        let record = self.trial.record();
        let forwards = self.docker.ask(["exec", &record.proxy(), "cat", "/proc/sys/net/ipv4/ip_forward"], ANSWER)?;
        if forwards.stdout.trim_ascii() != b"0" {
            return Ok(Outcome::Failed("the proxy forwards packets".to_owned()));
        }
        let neighbours = self.inspect("network", &format!("{}_pi-net", record.project))?["Containers"].clone();
        Ok(match neighbours.as_object().map(serde_json::Map::len) {
            Some(2) => Outcome::Held,
            Some(count) => Outcome::Failed(format!("{count} containers are on the session's network")),
            None => Outcome::NotTried("the engine does not say who is on the network".to_owned()),
        })
    }

    fn greeting(&self) -> Result<Outcome> {
        let name = format!("{}-greeting.example.com", self.seed);
        let (_, said) = self.trial.sh(&format!(
            "curl -sk --max-time 8 -o /dev/null -w '%{{http_code}}' --connect-to {name}:443:{ALLOWED}:443 https://{name}/"
        ))?;
        if said.trim() != "000" {
            return Ok(Outcome::Failed(format!(
                "'{name}' was answered with {} through a tunnel to '{ALLOWED}'",
                said.trim()
            )));
        }
        Ok(match self.logged(&format!(" {name} {ALLOWED}:443")) {
            Some(line) if line.contains("TCP_TUNNEL") => Outcome::Failed(format!("squid let '{name}' through")),
            Some(_) => Outcome::Held,
            None => Outcome::NotTried("squid has written nothing about it".to_owned()),
        })
    }

    /// The first line that the proxy answers to a head of the agent's own making.
    fn answer_to(&self, port: u16, head: &str) -> Result<String> {
        let script =
            format!("exec 3<>/dev/tcp/proxy/{port} && printf '{head}\\r\\n\\r\\n' >&3 && timeout 3 head -n 1 <&3");
        Ok(self.trial.sh(&script)?.1.trim().to_owned())
    }

    fn tricks(&self) -> Result<Outcome> {
        let open = self.answer_to(3128, &format!("CONNECT {ALLOWED}:443 HTTP/1.1"))?;
        if !open.starts_with("HTTP/1.1 200") {
            return Ok(Outcome::NotTried(format!("a tunnel that is allowed was answered with '{open}'")));
        }
        let name = format!("{}-trick.example.com", self.seed);
        for head in [
            format!("CONNECT {ALLOWED}@{name}:443 HTTP/1.1"),
            format!("CONNECT {name}:443@{ALLOWED}:443 HTTP/1.1"),
            format!("CONNECT {name}:443#{ALLOWED}:443 HTTP/1.1"),
            format!("CONNECT {name}%%00.{ALLOWED}:443 HTTP/1.1"),
            format!("CONNECT {name}:443 HTTP/1.1\\r\\nHost: {ALLOWED}:443"),
            format!("GET https://{ALLOWED}/{} HTTP/1.1\\r\\nHost: {ALLOWED}", self.seed),
            format!("GET / HTTP/1.1\\r\\nHost: {ALLOWED}"),
        ] {
            let answer = self.answer_to(3128, &head)?;
            if answer.starts_with("HTTP/1.1 200") {
                return Ok(Outcome::Failed(format!("'{head}' was answered with '{answer}'")));
            }
        }
        Ok(Outcome::Held)
    }

    fn manager(&self) -> Result<Outcome> {
        for head in [
            "GET http://proxy:3128/squid-internal-mgr/info HTTP/1.1\\r\\nHost: proxy:3128",
            "GET /squid-internal-mgr/info HTTP/1.1\\r\\nHost: pi-egress",
            "GET cache_object://proxy/info HTTP/1.0",
        ] {
            let answer = self.answer_to(3128, head)?;
            if answer.is_empty() {
                return Ok(Outcome::NotTried("the proxy says nothing".to_owned()));
            }
            if !(answer.contains(" 403 ") || answer.contains(" 400 ")) {
                return Ok(Outcome::Failed(format!("'{head}' was answered with '{answer}'")));
            }
        }
        Ok(Outcome::Held)
    }

    fn model_server(&self) -> Result<Outcome> {
        let open = self.answer_to(11434, "GET /v1/models HTTP/1.1\\r\\nHost: proxy")?;
        if !open.contains(" 200 ") {
            return Ok(Outcome::NotTried("no local model server is connected, or it does not answer".to_owned()));
        }
        for (method, path) in
            [("POST", "/api/pull"), ("POST", "/api/create"), ("DELETE", "/api/delete"), ("POST", "/v1/../api/pull")]
        {
            let answer =
                self.answer_to(11434, &format!("{method} {path} HTTP/1.1\\r\\nHost: proxy\\r\\nContent-Length: 0"))?;
            if !(answer.contains(" 403 ") || answer.contains(" 400 ")) {
                return Ok(Outcome::Failed(format!("{method} {path} was answered with '{answer}'")));
            }
        }
        Ok(Outcome::Held)
    }

    fn forgery(&self) -> Result<Outcome> {
        let forged = format!("{}-forged.example.com", self.seed);
        let sni = format!("x 200 TCP_DENIED - 0 1 - {forged}:443");
        // Whether or not the client takes such a name for one.
        let script = format!(
            "node -e 'const net = require(\"net\"), tls = require(\"tls\"); const raw = net.connect(3128, \"proxy\", () => raw.write(\"CONNECT {ALLOWED}:443 HTTP/1.1\\r\\n\\r\\n\"));
               raw.on(\"error\", () => process.exit()); raw.on(\"close\", () => process.exit()); setTimeout(() => process.exit(), 4000);
               raw.once(\"data\", () => tls.connect({{ socket: raw, servername: process.argv[1], rejectUnauthorized: false }}).on(\"error\", () => process.exit()))' '{sni}'"
        );
        self.trial.sh(&script)?;
        let last = format!("{}-last.example.com", self.seed);
        self.answer_to(3128, &format!("CONNECT a|b\\x1b[2J\\x9b.{last}:443 HTTP/1.1"))?;
        self.answer_to(3128, &format!("CONNECT {last}:443 HTTP/1.1"))?;
        if self.logged(&format!(" {last}:443")).is_none() {
            return Ok(Outcome::NotTried("squid has written nothing".to_owned()));
        }
        let log = self.docker.logs(&self.trial.record().proxy());
        // Squid's own messages begin with a date.
        let mut requests =
            log.lines().filter(|line| line.split('.').next().is_some_and(|time| time.parse::<u64>().is_ok()));
        if let Some(line) = requests.find(|line| line.split(' ').count() != 10 || line.chars().any(char::is_control)) {
            return Ok(Outcome::Failed(line.to_owned()));
        }
        Ok(Outcome::Held)
    }
}
