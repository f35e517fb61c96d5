//! The ways out that an agent would try, one test for each threat that docs/security.md numbers and egress.rs has not: every refusal
//! beside the same thing where it is allowed. The proofs that each can fail are at the end, with `--long`.

use anyhow::{Context, Result};
use e2e::docker::{docker, inspect, try_docker};
use e2e::held::{Held, altered};
use serde_json::{Value, json};

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
    held.tunnels(&heads.iter().map(|head| (head.as_str(), "api.github.com")).collect::<Vec<_>>())
}

#[test]
fn no_spelling_of_an_address_is_a_way_out_and_its_reverse_name_is_never_asked_for() -> Result<()> {
    let held = Held::shared()?;
    assert_eq!(held.tunnels(&[("CONNECT api.github.com:443 HTTP/1.1\r\n\r\n", "api.github.com")])?, [401]);
    let before = held.world.internet.requests_to("api.github.com")?.len();
    for status in by_spelling(&held)? {
        assert!([0, 400, 403].contains(&status), "{status}");
    }
    assert_eq!(held.world.internet.requests_to("api.github.com")?.len(), before);
    held.squid_says("the refusal", |line| line.contains("TCP_DENIED") && line.contains(NOBODY))?;
    assert_eq!(held.strays_of(".arpa")?, Vec::<String>::new());
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

// That the tests above can fail: each wall is taken away, and the same attempt succeeds.

#[test]
#[ignore = "long: a session without the wall"]
fn with_reverse_lookups_an_address_is_a_way_out() -> Result<()> {
    let held = Held::altered(&[
        ("squid.conf", "acl allowed dstdomain -n", "acl allowed dstdomain"),
        ("squid.conf", "http_access deny ip_literal\n", ""),
    ])?;
    held.tunnels(&[("CONNECT 192.88.99.250:443 HTTP/1.1\r\n\r\n", "api.github.com")])?;
    held.squid_says("an answer", |line| line.contains(NOBODY) && !line.contains("TCP_DENIED"))?;
    assert!(!held.strays_of("250.99.88.192.in-addr.arpa")?.is_empty());
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
    let mut strays = world.internet.strays()?.into_iter();
    assert!(strays.any(|stray| stray.method == "DNS" && stray.host.ends_with("example.com")));
    Ok(())
}
