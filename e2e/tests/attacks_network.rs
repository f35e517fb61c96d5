//! The ways out that an agent would try, one test for each threat that docs/security.md numbers and egress.rs has not: every refusal
//! beside the same thing where it is allowed. The proofs that each can fail are at the end, with `--long`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use anyhow::{Context, Result};
use e2e::docker::{docker, inspect, network, try_docker};
use e2e::held::{Held, altered};
use e2e::{SOON, World, wait_until};
use serde_json::{Value, json};

/// Opens a tunnel with a head of its own making, speaks TLS in it, and asks for a page. Takes `[[head, name in the greeting], …]`,
/// prints a line for each: the status of the answer, or 0.
const TUNNEL: &str = r#"
const net = require("net"), tls = require("tls");
const once = ([head, sni]) => new Promise((done) => {
  let status = 0;
  const raw = net.connect(3128, "proxy", () => raw.write(Buffer.from(head, "latin1")));
  const end = () => { raw.destroy(); done(status); };
  raw.setTimeout(6000, end); raw.on("error", end); raw.on("close", end);
  raw.once("data", (answer) => {
    if (!answer.toString("latin1").startsWith("HTTP/1.1 200 Connection")) {
      status = Number(answer.toString("latin1").split(" ")[1]) || 0;
      return end();
    }
    const name = sni === null ? undefined : sni;
    const secure = tls.connect({ socket: raw, servername: name, rejectUnauthorized: false }, () =>
      secure.write(`GET /user HTTP/1.1\r\nHost: ${sni}\r\nUser-Agent: probe\r\nConnection: close\r\n\r\n`));
    secure.on("error", end);
    secure.once("data", (page) => { status = Number(page.toString("latin1").split(" ")[1]) || 0; end(); });
  });
});
(async () => { for (const one of JSON.parse(process.argv[1])) console.log(await once(one)); })();
"#;

fn tunnels(held: &Held, attempts: &[(&str, &str)]) -> Result<Vec<u16>> {
    let attempts: Vec<Value> = attempts.iter().map(|(head, sni)| json!([head, sni])).collect();
    let command = format!("node -e {} {}", quoted(TUNNEL), quoted(&Value::from(attempts).to_string()));
    let said = held.sh(&command)?;
    said.lines().map(|line| line.trim().parse().with_context(|| format!("node said '{said}'"))).collect()
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The hosts, addresses aside, that were asked for by name or reached, and should not have been.
fn strays_of(world: &World, part: &str) -> Result<Vec<String>> {
    let strays = world.internet.strays()?;
    Ok(strays
        .into_iter()
        .map(|stray| format!("{} {}", stray.method, stray.host))
        .filter(|s| s.contains(part))
        .collect())
}

/// N1: every spelling of an address whose owner calls it `api.github.com`.
fn spellings(address: &str) -> Vec<String> {
    let [a, b, c, d]: [u32; 4] =
        address.split('.').map(|part| part.parse().unwrap()).collect::<Vec<_>>().try_into().unwrap();
    let number = (a << 24) | (b << 16) | (c << 8) | d;
    vec![
        address.to_owned(),
        format!("{address}."),
        number.to_string(),
        format!("0x{number:x}"),
        format!("0{a:o}.{b}.{c}.{d}"),
        format!("0x{a:x}.{b}.0x{c:x}.{d}"),
        format!("{a}.{}", (b << 16) | (c << 8) | d),
        format!("[::ffff:{address}]"),
        format!("[::ffff:{:x}:{:x}]", number >> 16, number & 0xffff),
        format!("[64:ff9b::{address}]"),
        NOBODY.to_owned(),
    ]
}

/// An address that the engine's resolver knows no name for, so that it asks outside.
const NOBODY: &str = "192.88.99.250";

fn by_spelling(held: &Held) -> Result<Vec<u16>> {
    let heads: Vec<String> = spellings(&held.world.internet.address)
        .into_iter()
        .map(|host| format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n"))
        .collect();
    tunnels(held, &heads.iter().map(|head| (head.as_str(), "api.github.com")).collect::<Vec<_>>())
}

#[test]
fn no_spelling_of_an_address_is_a_way_out_and_its_reverse_name_is_never_asked_for() -> Result<()> {
    let held = Held::shared()?;
    assert_eq!(tunnels(&held, &[("CONNECT api.github.com:443 HTTP/1.1\r\n\r\n", "api.github.com")])?, [401]);
    let before = held.world.internet.requests_to("api.github.com")?.len();
    for status in by_spelling(&held)? {
        assert!([0, 400, 403].contains(&status), "{status}");
    }
    assert_eq!(held.world.internet.requests_to("api.github.com")?.len(), before);
    held.squid_says("the refusal", |line| line.contains("TCP_DENIED") && line.contains(NOBODY))?;
    assert_eq!(strays_of(&held.world, ".arpa")?, Vec::<String>::new());
    Ok(())
}

/// N3: what an allowed name's owner may have it lead to.
const PRIVATE: &[&str] = &[
    "127-0-0-1",
    "10-0-0-1",
    "169-254-169-254",
    "172-16-0-1",
    "172-31-255-254",
    "192-168-1-1",
    "100-64-0-1",
    "0-0-0-0",
    "198-18-0-1",
    "224-0-0-1",
    "255-255-255-255",
];

#[test]
fn an_allowed_name_that_leads_to_a_private_address_is_refused() -> Result<()> {
    let held = Held::shared()?;
    // The same kind of name, of a public address.
    let public = held.world.internet.address.replace('.', "-");
    assert_eq!(held.curl(&format!("https://{public}.npmjs.org/"))?, 418);
    let own = held.session.addresses()?.into_iter().filter(|address| !address.starts_with("192.88.99."));
    let own = own.map(|address| address.replace('.', "-"));
    for address in PRIVATE.iter().map(|address| (*address).to_owned()).chain(own) {
        assert_eq!(held.curl(&format!("https://{address}.npmjs.org/"))?, 0, "{address}");
        let refused = format!("{address}.npmjs.org:443");
        held.squid_says(&format!("that {refused} was refused"), |line| {
            line.contains("TCP_DENIED") && line.ends_with(&refused)
        })?;
    }
    let denied = held.world.bare_pi_docker().arg("denied").run()?.expect(0)?.stdout;
    let line = denied.lines().find(|line| line.starts_with("169-254-169-254.npmjs.org")).unwrap_or_default();
    assert!(line.contains("private address") && !line.contains("pi-docker allow"), "{denied}");
    Ok(())
}

/// N7: whether the kernel has anything of IPv6 here.
fn has_ipv6(held: &Held) -> Result<bool> {
    let (_, said) = held.session.sh("cat /proc/net/if_inet6; (</dev/tcp/::1/9) 2>&1; true")?;
    // "refused" is an answer: there is an interface that took the packet.
    Ok(said.contains("refused") || said.contains(" lo") || said.contains("eth"))
}

#[test]
fn there_is_no_ipv6_to_go_out_by() -> Result<()> {
    let held = Held::shared()?;
    assert!(held.sh("(</dev/tcp/127.0.0.1/9) 2>&1 || true")?.contains("refused"));
    assert!(!has_ipv6(&held)?);
    let (_, proxy) = try_docker(["exec", &held.session.proxy, "cat", "/proc/net/if_inet6"])?;
    assert_eq!(proxy.trim(), "");
    Ok(())
}

/// N8: frames and packets of the agent's own making, and a way for itself to be a router.
const RAW: &str = r#"
    perl -e 'use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) or die; print "stream\n";
             socket($s, 17, SOCK_RAW, 0x0300) and print "frames\n";
             socket($s, PF_INET, SOCK_RAW, 1) and print "packets\n";
             # SIOCADDRT: a default route by the proxy.
             socket($s, PF_INET, SOCK_DGRAM, 0) or die;
             my $route = pack("x8 S n a4 x8 S x14 S x14 S", 2, 0, inet_aton($ARGV[0]), 2, 0, 3);
             ioctl($s, 0x890B, $route) and print "routes\n"; print "refused: $!\n"' PROXY
"#;

#[test]
fn the_proxy_is_no_router_and_the_agent_can_make_no_packets_of_its_own() -> Result<()> {
    let held = Held::shared()?;
    let proxy = held.sh("getent hosts proxy")?;
    let proxy = proxy.split_whitespace().next().context("the proxy has no address")?.to_owned();
    let said = held.sh(&RAW.replace("PROXY", &proxy))?;
    assert!(said.starts_with("stream\n") && said.contains("refused: Operation not permitted"), "{said}");
    assert!(!said.contains("frames") && !said.contains("packets") && !said.contains("routes"), "{said}");
    assert!(!held.can("echo 1 >/proc/sys/net/ipv4/ip_forward")?);
    let forwards = ["exec", &held.session.proxy, "cat", "/proc/sys/net/ipv4/ip_forward"];
    assert_eq!(docker(forwards)?.trim(), "0");
    Ok(())
}

/// N10: heads that two parsers may read in two ways. Whatever squid makes of them, the name with `trick` in it is not reached.
const TRICKS: &[&str] = &[
    "CONNECT github.com@trick.example:443 HTTP/1.1\r\n\r\n",
    "CONNECT trick.example:443@github.com:443 HTTP/1.1\r\n\r\n",
    "CONNECT trick.example#@github.com:443 HTTP/1.1\r\n\r\n",
    "CONNECT trick.example:443#github.com:443 HTTP/1.1\r\n\r\n",
    "CONNECT trick.example%00.github.com:443 HTTP/1.1\r\n\r\n",
    "CONNECT trick.example\u{0}.github.com:443 HTTP/1.1\r\n\r\n",
    "CONNECT trick.example/.github.com:443 HTTP/1.1\r\n\r\n",
    "CONNECT trick.example\\.github.com:443 HTTP/1.1\r\n\r\n",
    "CONNECT trick.example:443 HTTP/1.1\r\nHost: github.com:443\r\n\r\n",
    "CONNECT trick.example.:443 HTTP/1.1\r\nHost: github.com:443\r\n\r\n",
    "CONNECT trick.example:443 HTTP/1.0\r\nHost: github.com\r\nX-Forwarded-Host: github.com\r\n\r\n",
    "CONNECT\ttrick.example:443\tHTTP/1.1\r\nHost: github.com:443\r\n\r\n",
    "CONNECT github.com:443 trick.example:443 HTTP/1.1\r\n\r\n",
    "connect trick.example:443 HTTP/1.1\r\nHost: github.com:443\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: trick.example\r\n\r\n",
    "GET https://trick.example/ HTTP/1.1\r\nHost: github.com\r\n\r\n",
    "GET ftp://trick.example/ HTTP/1.1\r\n\r\n",
    "GET urn:trick.example HTTP/1.1\r\n\r\n",
    "POST http://github.com/ HTTP/1.1\r\nHost: github.com\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nCONNECT trick.example:443 HTTP/1.1\r\n\r\n",
];

fn play(held: &Held, heads: &[&str], sni: &str) -> Result<Vec<u16>> {
    tunnels(held, &heads.iter().map(|head| (*head, sni)).collect::<Vec<_>>())
}

#[test]
fn heads_that_parsers_read_in_two_ways_lead_nowhere() -> Result<()> {
    let held = Held::shared()?;
    let good = "CONNECT github.com:443 HTTP/1.1\r\nHost: other.example\r\n\r\n";
    assert_eq!(play(&held, &[good], "github.com")?, [401]);
    for (head, status) in TRICKS.iter().zip(play(&held, TRICKS, "trick.example")?) {
        assert!([0, 400, 403].contains(&status), "{status}: {head}");
    }
    assert_eq!(strays_of(&held.world, "trick")?, Vec::<String>::new());
    assert_eq!(play(&held, &[good], "github.com")?, [401], "squid still works");
    Ok(())
}

/// N11: squid's own pages, and what squid would fetch by itself.
const MANAGER: &[&str] = &[
    "GET http://proxy:3128/squid-internal-mgr/info HTTP/1.1\r\nHost: proxy:3128\r\n\r\n",
    "GET /squid-internal-mgr/info HTTP/1.1\r\nHost: pi-egress\r\n\r\n",
    "GET http://pi-egress:3128/squid-internal-mgr/config HTTP/1.1\r\nHost: pi-egress:3128\r\n\r\n",
    "GET cache_object://proxy/info HTTP/1.0\r\n\r\n",
    "GET https://github.com/by-squid HTTP/1.1\r\nHost: github.com\r\n\r\n",
    "TRACE http://github.com/by-squid HTTP/1.1\r\nHost: github.com\r\nMax-Forwards: 0\r\n\r\n",
    "PURGE https://github.com/by-squid HTTP/1.1\r\nHost: github.com\r\n\r\n",
];

#[test]
fn squid_shows_nothing_of_itself_and_fetches_nothing_by_itself() -> Result<()> {
    let held = Held::shared()?;
    assert_eq!(play(&held, &["CONNECT github.com:443 HTTP/1.1\r\n\r\n"], "github.com")?, [401]);
    for (head, status) in MANAGER.iter().zip(play(&held, MANAGER, "github.com")?) {
        assert!([0, 400, 403].contains(&status), "{status}: {head}");
    }
    let requests = held.world.internet.requests_to("github.com")?;
    assert!(!requests.iter().any(|request| request.path.contains("by-squid")), "{requests:?}");
    held.squid_says("a refusal", |line| line.contains(" GET 403 TCP_DENIED ") && line.ends_with("/by-squid"))?;
    Ok(())
}

/// Keeps a tunnel open and asks something through it five times a second: a line for each answer, and one when it is cut.
const KEPT: &str = r#"
const net = require("net"), tls = require("tls");
const raw = net.connect(3128, "proxy", () => raw.write("CONNECT kept.npmjs.org:443 HTTP/1.1\r\n\r\n"));
const cut = () => { console.log("cut"); process.exit(); };
raw.on("error", cut); raw.on("close", cut);
raw.once("data", () => {
  const secure = tls.connect({ socket: raw, servername: "kept.npmjs.org", rejectUnauthorized: false });
  secure.on("error", cut);
  secure.on("data", (page) => console.log(page.toString("latin1").split(" ")[1]));
  setInterval(() => secure.write("GET / HTTP/1.1\r\nHost: kept.npmjs.org\r\n\r\n"), 200);
});
"#;

#[test]
fn a_host_that_is_taken_off_the_list_loses_the_tunnels_it_has() -> Result<()> {
    let held = Held::new()?;
    held.sh(&format!("nohup node -e {} >/tmp/kept.log 2>&1 </dev/null &", quoted(KEPT)))?;
    let answers =
        || -> Result<usize> { Ok(held.sh("cat /tmp/kept.log")?.lines().filter(|line| *line == "418").count()) };
    wait_until("the tunnel answers", SOON, || Ok((answers()? >= 2).then_some(())))?;
    // A new list alone cuts nothing: that is what makes the test one.
    held.world.bare_pi_docker().args(["allow", "more.example.com"]).run()?.expect(0)?;
    let before = answers()?;
    wait_until("the tunnel has outlived a reload", SOON, || Ok((answers()? >= before + 3).then_some(())))?;
    assert!(!held.sh("cat /tmp/kept.log")?.contains("cut"));

    held.world.bare_pi_docker().args(["allow", "--remove", ".npmjs.org"]).run()?.expect(0)?;
    wait_until("the tunnel is cut", SOON, || Ok(held.sh("cat /tmp/kept.log")?.ends_with("cut\n").then_some(())))?;
    wait_until("squid is back", SOON, || Ok((held.curl("https://api.github.com/user")? == 401).then_some(())))?;
    assert_eq!(held.curl("https://kept.npmjs.org/")?, 0);
    Ok(())
}

/// A server of the user's own that speaks as Ollama does, and says for every request whether it came.
fn ollama() -> Result<(u16, std::sync::mpsc::Receiver<String>)> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    let (sender, asked) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let line = head.lines().next().unwrap_or_default().to_owned();
            let body = match line.split(' ').nth(1).unwrap_or_default() {
                "/api/version" => json!({ "version": "0.9.0" }),
                "/api/tags" => json!({ "models": [{ "name": "small:1b" }] }),
                "/v1/models" => json!({ "object": "list", "data": [{ "id": "small:1b" }] }),
                _ => json!({ "done": true }),
            };
            let _ = sender.send(line);
            let body = body.to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    Ok((port, asked))
}

/// What has the server fetch from anywhere, make or delete models, or run one of another host's.
const OLLAMA: &[(&str, &str)] = &[
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/copy"),
    ("POST", "/api/generate"),
    ("GET", "/api/tags"),
    ("POST", "/v1/models"),
    ("GET", "/v1/chat/completions"),
    ("POST", "/v1/../api/pull"),
    ("POST", "/v1/%2e%2e/api/pull"),
    ("POST", "//api/pull"),
    ("POST", "/api/pull?/v1/completions"),
    ("POST", "/api/pull#/v1/completions"),
    ("POST", "/v1/completions/../../api/pull"),
    ("POST", "/v1/completions%0a/api/pull"),
];

fn ask_ollama(held: &Held, method: &str, path: &str) -> Result<u16> {
    let body = if method == "POST" { "-d '{}'" } else { "" };
    held.curl(&format!("--noproxy '*' --path-as-is -X {method} {body} 'http://proxy:11434{path}'"))
}

/// A session that is connected to the server, whose squid-local.conf was changed.
fn with_ollama(change: Option<(&str, &str)>) -> Result<(Held, std::sync::mpsc::Receiver<String>)> {
    let (port, asked) = ollama()?;
    let world = World::new("tools")?;
    let gateway = network("bridge")?["IPAM"]["Config"][0]["Gateway"].as_str().context("no gateway")?.to_owned();
    let host = format!("{gateway}:{port}");
    world.bare_pi_docker().args(["models", "ollama", "enable", "--host", &host]).run()?.expect(0)?;
    // The proxy's way to the host's own bridge is the world's internet here, which leads nowhere else: the port at its own gateway.
    let conf = world.install_dir().join("squid-local.conf");
    let near = first_of(&network(world.internet.network())?["IPAM"]["Config"][0])?;
    let mut text =
        std::fs::read_to_string(&conf)?.replace(&format!("cache_peer {gateway} "), &format!("cache_peer {near} "));
    if let Some((old, new)) = change {
        assert!(text.contains(old), "{text}");
        text = text.replace(old, new);
    }
    std::fs::write(&conf, text)?;
    let held = Held::within(world)?;
    while asked.try_recv().is_ok() {}
    Ok((held, asked))
}

fn first_of(network: &Value) -> Result<String> {
    let subnet = network["Subnet"].as_str().context("a network without a subnet")?;
    let address: std::net::Ipv4Addr = subnet.split('/').next().unwrap_or_default().parse()?;
    Ok(std::net::Ipv4Addr::from(u32::from(address) + 1).to_string())
}

#[test]
fn a_local_model_server_can_be_used_and_neither_fetch_nor_be_changed() -> Result<()> {
    let (held, asked) = with_ollama(None)?;
    assert_eq!(ask_ollama(&held, "POST", "/v1/chat/completions")?, 200);
    assert_eq!(asked.recv_timeout(SOON)?, "POST /v1/chat/completions HTTP/1.1");
    for (method, path) in OLLAMA {
        let status = ask_ollama(&held, method, path)?;
        assert!([0, 400, 403].contains(&status), "{method} {path}: {status}");
    }
    // Nor as a way to somewhere else, nor by a tunnel.
    assert!([0, 400, 403].contains(&held.curl("-x http://proxy:11434 https://api.github.com/user")?));
    assert!([0, 400, 403, 404].contains(&held.curl("-x http://proxy:11434 http://github.com/api/pull")?));
    let more: Vec<String> = asked.try_iter().collect();
    assert_eq!(more, Vec::<String>::new());
    Ok(())
}

/// N15: names with what a log, a terminal or a person could take for something else.
fn forge(held: &Held) -> Result<Vec<u16>> {
    let forged = "x.example 200 TCP_DENIED - 0 1 - forged.example:443";
    let attempts: &[(&str, &str)] = &[
        ("CONNECT a|b\"c'.forgery.example:443 HTTP/1.1\r\n\r\n", "x"),
        ("CONNECT \u{1b}[2J\u{1b}]52;c;eA==\u{7}.forgery.example:443 HTTP/1.1\r\n\r\n", "x"),
        ("CONNECT x%0a1795465081.058%20.forgery.example:443 HTTP/1.1\r\n\r\n", "x"),
        ("CONNECT \u{9b}31m.forgery.example:443 HTTP/1.1\r\n\r\n", "x"),
        ("CONNECT github.com:443 HTTP/1.1\r\n\r\n", forged),
        (
            "CONNECT github.com:443 HTTP/1.1\r\n\r\n",
            "x\n1795465081.058 10.0.0.3 CONNECT 200 TCP_DENIED - 0 1 - forged.example:443",
        ),
        ("CONNECT plain.forgery.example:443 HTTP/1.1\r\n\r\n", "x"),
    ];
    tunnels(held, attempts)
}

#[test]
fn nobody_can_forge_a_line_of_the_log_or_steer_the_terminal_that_shows_it() -> Result<()> {
    let held = Held::shared()?;
    forge(&held)?;
    held.squid_says("the last one", |line| line.contains("TCP_DENIED") && line.ends_with("plain.forgery.example:443"))?;
    let denied = held.world.bare_pi_docker().arg("denied").run()?.expect(0)?.stdout;
    assert!(denied.lines().any(|line| line.starts_with("plain.forgery.example ")), "{denied}");
    assert!(!denied.lines().any(|line| line.starts_with("forged.example")), "{denied}");
    assert!(!denied.chars().any(|c| c.is_control() && c != '\n'), "{denied:?}");
    for line in held.session.squid_log()? {
        assert!(!line.starts_with("1795465081"), "{line}");
        assert!(line.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{line:?}");
    }
    Ok(())
}

#[test]
fn squid_is_nobody_in_particular_keeps_nothing_and_is_small() -> Result<()> {
    let held = Held::shared()?;
    assert_eq!(held.curl("https://api.github.com/user")?, 401);
    let proxy = inspect(&held.session.proxy)?;
    let pid = proxy["State"]["Pid"].as_u64().context("no process")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    assert_eq!(field("Uid:"), "13\t13\t13\t13", "{status}");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    let memory: u64 = field("VmRSS:").trim_end_matches(" kB").trim().parse()?;
    assert!(memory < 64 << 10, "{memory} KiB");
    assert_eq!(proxy["HostConfig"]["ReadonlyRootfs"], true);
    assert!(!try_docker(["exec", &held.session.proxy, "touch", "/var/spool/squid/x"])?.0);
    assert!(!try_docker(["exec", &held.session.proxy, "touch", "/etc/squid/session/allow.txt"])?.0);
    assert!(try_docker(["exec", &held.session.proxy, "touch", "/dev/shm/x"])?.0, "touch itself works");
    Ok(())
}

// That the tests above can fail: each wall is taken away, and the same attempt succeeds.

#[test]
#[ignore = "long: a session without the wall"]
fn with_reverse_lookups_an_address_is_a_way_out() -> Result<()> {
    let held = Held::altered(&[
        ("squid.conf", "acl allowed dstdomain -n", "acl allowed dstdomain"),
        ("squid.conf", "http_access deny ip_literal\n", ""),
    ])?;
    tunnels(&held, &[("CONNECT 192.88.99.250:443 HTTP/1.1\r\n\r\n", "api.github.com")])?;
    held.squid_says("an answer", |line| line.contains(NOBODY) && !line.contains("TCP_DENIED"))?;
    assert!(!strays_of(&held.world, "250.99.88.192.in-addr.arpa")?.is_empty());
    Ok(())
}

#[test]
#[ignore = "long: a session without the wall"]
fn without_the_look_at_the_address_an_allowed_name_leads_into_the_private_network() -> Result<()> {
    let held = Held::altered(&[("squid.conf", "http_access deny to_local\n", "")])?;
    // Somebody answers there.
    let network = format!("{}_proxy-net", held.session.project);
    docker(["network", "connect", &network, held.world.internet.network()])?;
    let address = inspect(held.world.internet.network())?["NetworkSettings"]["Networks"][&network]["IPAddress"].clone();
    let name = address.as_str().context("no address")?.replace('.', "-");
    let status = held.curl(&format!("https://{name}.npmjs.org/"));
    docker(["network", "disconnect", "--force", &network, held.world.internet.network()])?;
    assert_eq!(status?, 418);
    Ok(())
}

#[test]
#[ignore = "long: a session without the wall"]
fn without_the_switch_there_is_ipv6() -> Result<()> {
    let held = Held::altered(&[("docker-compose.yml", "conf.all.disable_ipv6: 1", "conf.all.disable_ipv6: 0")])?;
    assert!(has_ipv6(&held)?);
    Ok(())
}

#[test]
#[ignore = "long: a container without the wall"]
fn with_the_engines_own_capabilities_raw_sockets_can_be_had() -> Result<()> {
    let held = Held::shared()?;
    let image = inspect(&held.session.agent)?["Config"]["Image"].as_str().context("no image")?.to_owned();
    let script = RAW.replace("PROXY", "127.0.0.1");
    let said = docker([
        "run",
        "--rm",
        "--user",
        "0",
        "--cap-add",
        "NET_ADMIN",
        "--entrypoint",
        "bash",
        &image,
        "-c",
        &script,
    ])?;
    for word in ["stream", "frames", "packets"] {
        assert!(said.contains(word), "{said}");
    }
    Ok(())
}

#[test]
#[ignore = "long: a session without the wall"]
fn without_the_list_the_tricks_are_not_even_needed() -> Result<()> {
    let held = Held::altered(&[
        ("squid.conf", "http_access deny !allowed\n", ""),
        ("squid.conf", "http_access allow allowed\n", "http_access allow CONNECT\n"),
    ])?;
    play(&held, TRICKS, "trick.example")?;
    assert!(strays_of(&held.world, "trick")?.iter().any(|stray| stray.starts_with("DNS")));
    Ok(())
}

#[test]
#[ignore = "long: a session without the wall"]
fn without_the_refusal_squid_shows_itself_and_fetches() -> Result<()> {
    let held = Held::altered(&[(
        "squid.conf",
        "http_access deny manager\nhttp_access deny !CONNECT\n",
        "http_access allow manager\n",
    )])?;
    let said = play(&held, MANAGER, "github.com")?;
    assert!(said[..4].contains(&200), "{said:?}");
    // It trusts the world's authority as little as it should, so a page it does not get; what counts is that it tried.
    held.squid_says("that it tried", |line| {
        line.contains("TCP_MISS") && line.ends_with("https://github.com/by-squid")
    })?;
    Ok(())
}

#[test]
#[ignore = "long: a session without the wall"]
fn without_the_path_filter_a_local_model_server_fetches() -> Result<()> {
    let (held, asked) = with_ollama(Some((
        "http_access allow ollama_port ollama_post ollama_inference",
        "http_access allow ollama_port",
    )))?;
    assert_eq!(ask_ollama(&held, "POST", "/api/pull")?, 200);
    assert_eq!(asked.recv_timeout(SOON)?, "POST /api/pull HTTP/1.1");
    Ok(())
}

#[test]
#[ignore = "long: a session without the wall"]
fn with_unescaped_fields_a_line_of_the_log_can_be_forged() -> Result<()> {
    let held = Held::altered(&[("squid.conf", "%#ssl::>sni %#ru", "%'ssl::>sni %'ru")])?;
    forge(&held)?;
    held.squid_says("the last one", |line| line.ends_with("plain.forgery.example:443"))?;
    let log = held.session.squid_log()?.join("\n");
    assert!(log.contains(" forged.example:443"), "{log}");
    Ok(())
}

#[test]
#[ignore = "long: a session without the wall"]
fn where_outside_names_are_answered_pi_does_not_start() -> Result<()> {
    // The agent on a network on which the host has no address, but the world's name server has.
    let world = altered("tools", &[("docker-compose.yml", "networks: [pi-net]\n", "networks: [pi-net, names]\n")])?;
    let names = format!("{}-names", world.internet.network());
    let label = format!("pi-docker-e2e={}", std::process::id());
    let inhibit = "com.docker.network.bridge.inhibit_ipv4=true";
    docker(["network", "create", "--internal", "--opt", inhibit, "--label", &label, &names])?;
    docker(["network", "connect", &names, world.internet.network()])?;
    let address = inspect(world.internet.network())?["NetworkSettings"]["Networks"][&names]["IPAddress"].clone();
    let overlay = world.path("overlay.json");
    let mut text: Value = serde_json::from_slice(&std::fs::read(&overlay)?)?;
    text["services"]["pi"] = json!({ "dns": [address] });
    text["networks"]["names"] = json!({ "external": true, "name": names });
    std::fs::write(&overlay, text.to_string())?;
    let ran = world.pi_docker().args(["-p", "hello"]).run();
    docker(["network", "disconnect", "--force", &names, world.internet.network()])?;
    docker(["network", "rm", &names])?;
    let ran = ran?;
    assert_ne!(ran.code(), 0);
    assert!(ran.stderr.contains("can reach an outside name by DNS"), "{}", ran.stderr);
    assert!(strays_of(&world, "DNS")?.iter().any(|stray| stray.ends_with("example.com")));
    Ok(())
}
