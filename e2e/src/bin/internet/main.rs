//! Every upstream of a session in one program: a scripted model, the GitHub API, git over HTTPS, the two logins, npm, Ollama, and for any other name an
//! answer that cannot be mistaken for success. It tells the upstreams apart by the TLS name, as the internet does, and writes
//! down every request, so that a test can say what was asked and what was not.
//!
//! usage: internet SCENARIO CA_DIR REPOS RECORD_DIR [--listen ADDR:PORT] [--dns ANSWER] [--trap PORT]... [--ollama ADDR:PORT]
//!        [--tunnel ADDR:PORT]

mod anthropic;
mod dns;
mod git;
mod github;
mod http;
mod npm;
mod oauth;
mod ollama;
mod pulls;
mod record;
mod scenario;
mod script;
mod sse;
mod tls;
mod trap;
mod tunnel;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::record::Record;

struct Options {
    scenario: PathBuf,
    ca: PathBuf,
    repos: PathBuf,
    record: PathBuf,
    listen: SocketAddr,
    dns: Option<Ipv4Addr>,
    traps: Vec<u16>,
    ollama: Option<SocketAddr>,
    tunnel: Option<SocketAddr>,
}

/// What every handler needs.
struct World {
    scenario: PathBuf,
    repos: PathBuf,
    record: Record,
    threads: anthropic::Threads,
    pace: Arc<script::Pace>,
    faults: scenario::Counter,
    pulls: pulls::Pulls,
    logins: oauth::Logins,
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("internet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

const USAGE: &str = "usage: internet SCENARIO CA_DIR REPOS RECORD_DIR [--listen ADDR:PORT] [--dns ANSWER] [--trap PORT]... [--ollama ADDR:PORT] [--tunnel ADDR:PORT]";

fn start() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("--help") {
        println!("{USAGE}");
        return Ok(());
    }
    let options = parse(std::env::args().skip(1))?;
    tokio::runtime::Runtime::new()?.block_on(serve(options))
}

fn parse(args: impl Iterator<Item = String>) -> Result<Options> {
    let mut paths = Vec::new();
    let mut listen: SocketAddr = ([0, 0, 0, 0], 443).into();
    let (mut dns, mut traps, mut ollama, mut tunnel) = (None, Vec::new(), None, None);
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("'{arg}' wants a value"));
        match arg.as_str() {
            "--listen" => listen = value()?.parse().context("--listen wants ADDR:PORT")?,
            "--dns" => dns = Some(value()?.parse().context("--dns wants an IPv4 address")?),
            "--trap" => traps.push(value()?.parse().context("--trap wants a port")?),
            "--ollama" => ollama = Some(value()?.parse().context("--ollama wants ADDR:PORT")?),
            "--tunnel" => tunnel = Some(value()?.parse().context("--tunnel wants ADDR:PORT")?),
            _ => paths.push(PathBuf::from(arg)),
        }
    }
    let Ok([scenario, ca, repos, record]) = <[PathBuf; 4]>::try_from(paths) else {
        bail!("{USAGE}");
    };
    Ok(Options { scenario, ca, repos, record, listen, dns, traps, ollama, tunnel })
}

async fn serve(options: Options) -> Result<()> {
    let world = Arc::new(World {
        record: Record::open(&options.record)?,
        threads: anthropic::Threads::default(),
        pace: Arc::new(script::Pace::new(&options.record)),
        faults: scenario::Counter::default(),
        pulls: pulls::Pulls::open(&options.record)?,
        logins: oauth::Logins::default(),
        scenario: options.scenario,
        repos: options.repos,
    });
    world.load_scenario().context("the scenario is not good")?;
    for port in options.traps {
        trap::listen(world.clone(), options.listen.ip(), port).await?;
    }
    if let Some(answer) = options.dns {
        dns::listen(world.clone(), options.listen.ip(), answer).await?;
    }
    if let Some(address) = options.ollama {
        ollama::listen(world.clone(), address).await?;
    }
    let acceptor = tls::acceptor(&options.ca)?;
    if let Some(address) = options.tunnel {
        tunnel::listen(world.clone(), acceptor.clone(), address).await?;
    }
    let listener =
        TcpListener::bind(options.listen).await.with_context(|| format!("cannot listen on '{}'", options.listen))?;
    world.record.ready()?;
    loop {
        let (socket, _) = listener.accept().await?;
        tokio::spawn(greet(world.clone(), acceptor.clone(), socket));
    }
}

/// Serves one connection that begins with a TLS greeting.
async fn greet(world: Arc<World>, acceptor: TlsAcceptor, socket: TcpStream) {
    let arrived = record::now();
    match acceptor.accept(socket).await {
        Ok(stream) => {
            let sni = stream.get_ref().1.server_name().map(str::to_owned);
            let service = hyper::service::service_fn(|request| http::answer(&world, sni.as_deref(), request));
            // A client that goes away is its own business.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
        Err(error) => world.record.event(arrived, "TLS", "", &error.to_string()),
    }
}
