//! The outside, on loopback: a CONNECT proxy, and behind it, by name and with a certificate of a throw-away CA, GitHub's API
//! and git over HTTPS by the real `git http-backend`. Records everything it was asked.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};

mod api;

pub const TOKEN: &str = "ghp_0123456789abcdefTOKEN";

/// One request that arrived.
#[derive(Clone, Debug)]
pub struct Asked {
    pub host: String,
    pub method: String,
    pub path: String,
    pub auth: String,
    pub body: String,
}

/// What to answer instead of the truth.
#[derive(Clone, Debug)]
pub struct Fault {
    pub method: &'static str,
    pub path: &'static str,
    pub times: usize,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Answer(u16, &'static [(&'static str, &'static str)], String),
    /// Close the connection without an answer.
    Cut,
    /// Do it, then close the connection without an answer.
    CutAfter,
}

#[derive(Default)]
pub struct World {
    pub asked: Vec<Asked>,
    pub connects: Vec<String>,
    pub pulls: Vec<Value>,
    pub faults: VecDeque<Fault>,
    pub denied: Vec<String>,
    pub repository: Value,
    /// How long it took to answer, all together.
    pub busy: Duration,
}

pub struct Internet {
    pub proxy: SocketAddr,
    pub ca: PathBuf,
    pub repositories: PathBuf,
    world: Arc<Mutex<World>>,
}

impl Internet {
    pub fn start(dir: &Path) -> Self {
        let repositories = dir.join("srv");
        std::fs::create_dir_all(&repositories).unwrap();
        let (config, pem) = certificates();
        let ca = dir.join("ca.pem");
        std::fs::write(&ca, pem).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = listener.local_addr().unwrap();
        let world = Arc::new(Mutex::new(World {
            repository: json!({"full_name": "o/r", "permissions": {"push": true}, "archived": false, "fork": false}),
            ..World::default()
        }));
        let (shared, root) = (world.clone(), repositories.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (world, config, root) = (shared.clone(), config.clone(), root.clone());
                std::thread::spawn(move || tunnel(stream, &world, config, &root));
            }
        });
        Internet { proxy, ca, repositories, world }
    }

    pub fn world<T>(&self, with: impl FnOnce(&mut World) -> T) -> T {
        with(&mut self.world.lock().unwrap())
    }

    pub fn fault(&self, method: &'static str, path: &'static str, times: usize, what: What) {
        self.world(|world| world.faults.push_back(Fault { method, path, times, what }));
    }

    /// Requests whose method and path match.
    pub fn asked(&self, method: &str, part: &str) -> Vec<Asked> {
        self.world(|world| {
            world.asked.iter().filter(|asked| asked.method == method && asked.path.contains(part)).cloned().collect()
        })
    }
}

fn certificates() -> (Arc<rustls::ServerConfig>, String) {
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let names = ["github.test", "api.github.test", "ghe.test", "untrusted.test"].map(str::to_owned).to_vec();
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    (Arc::new(config), ca_pem)
}

fn tunnel(stream: TcpStream, world: &Mutex<World>, config: Arc<rustls::ServerConfig>, root: &Path) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let Some((method, target, _)) = head(&mut reader) else { return };
    let mut stream = stream;
    let host = target.split(':').next().unwrap_or_default().to_owned();
    let denied = {
        let mut world = world.lock().unwrap();
        world.connects.push(format!("{method} {target}"));
        world.denied.contains(&host)
    };
    if method != "CONNECT" || denied {
        let _ = stream
            .write_all(b"HTTP/1.1 403 Forbidden\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
    let tls = rustls::StreamOwned::new(rustls::ServerConnection::new(config).unwrap(), stream);
    let mut tls = BufReader::with_capacity(64 << 10, tls);
    while serve(&mut tls, &host, world, root).unwrap_or(false) {}
}

type Headers = Vec<(String, String)>;

fn head(reader: &mut impl BufRead) -> Option<(String, String, Headers)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_lowercase(), value.to_owned())),
            None => return Some((method, target, headers)),
        }
    }
}

type Tls = BufReader<rustls::StreamOwned<rustls::ServerConnection, TcpStream>>;

fn serve(tls: &mut Tls, host: &str, world: &Mutex<World>, root: &Path) -> Option<bool> {
    let (method, path, headers) = head(tls)?;
    let started = Instant::now();
    // A tunnel that is open does not outlive the permission.
    if world.lock().unwrap().denied.iter().any(|denied| denied == host) {
        return Some(false);
    }
    let header = |name: &str| headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone());
    let length = header("content-length").and_then(|value| value.parse::<u64>().ok());
    let chunked = header("transfer-encoding").as_deref() == Some("chunked");
    let auth = header("authorization").unwrap_or_default();
    let git = path.contains("/info/refs") || path.ends_with("-pack");
    let mut asked = Asked { host: host.to_owned(), method, path, auth, body: String::new() };
    if git {
        let fault = record(world, asked.clone());
        let kind = header("content-type").unwrap_or_default();
        let mut body: Box<dyn Read> = match (chunked, length) {
            (true, _) => Box::new(Dechunk { inner: tls, left: 0, done: false }),
            (false, length) => Box::new(Read::take(&mut *tls, length.unwrap_or(0))),
        };
        let answer = if matches!(fault, Some(What::Answer(..) | What::Cut)) {
            std::io::copy(&mut body, &mut std::io::sink()).ok()?;
            None
        } else {
            Some(backend(&asked, &kind, &mut body, root))
        };
        drop(body);
        let replied = reply(tls, fault, || answer.unwrap());
        world.lock().unwrap().busy += started.elapsed();
        return replied;
    }
    let mut bytes = Vec::new();
    match chunked {
        true => Dechunk { inner: tls, left: 0, done: false }.read_to_end(&mut bytes).ok()?,
        false => Read::take(&mut *tls, length.unwrap_or(0)).read_to_end(&mut bytes).ok()?,
    };
    asked.body = String::from_utf8_lossy(&bytes).into_owned();
    let fault = record(world, asked.clone());
    let answer = match fault {
        Some(What::Answer(..) | What::Cut) => None,
        _ => Some(api::answer(&asked, &mut world.lock().unwrap(), root)),
    };
    let replied = reply(tls, fault, || answer.unwrap());
    world.lock().unwrap().busy += started.elapsed();
    replied
}

fn record(world: &Mutex<World>, asked: Asked) -> Option<What> {
    let mut world = world.lock().unwrap();
    let fault = world
        .faults
        .iter_mut()
        .find(|fault| fault.times > 0 && fault.method == asked.method && asked.path.contains(fault.path));
    let what = fault.map(|fault| {
        fault.times -= 1;
        fault.what.clone()
    });
    world.asked.push(asked);
    what
}

struct Answer {
    status: u16,
    headers: Headers,
    body: Vec<u8>,
}

fn reply(tls: &mut Tls, fault: Option<What>, truth: impl FnOnce() -> Answer) -> Option<bool> {
    let answer = match fault {
        Some(What::Cut | What::CutAfter) => {
            let _ = tls.get_mut().sock.shutdown(std::net::Shutdown::Both);
            return Some(false);
        }
        Some(What::Answer(status, headers, body)) => Answer {
            status,
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            body: body.into_bytes(),
        },
        None => truth(),
    };
    let mut text = format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let stream = tls.get_mut();
    stream.write_all(&[text.into_bytes(), answer.body].concat()).ok()?;
    stream.flush().ok()?;
    Some(true)
}

struct Dechunk<'a> {
    inner: &'a mut Tls,
    left: u64,
    done: bool,
}

impl Read for Dechunk<'_> {
    fn read(&mut self, target: &mut [u8]) -> std::io::Result<usize> {
        if self.done {
            return Ok(0);
        }
        if self.left == 0 {
            let mut line = String::new();
            self.inner.read_line(&mut line)?;
            self.left = u64::from_str_radix(line.trim(), 16).map_err(|_| std::io::Error::other("chunk"))?;
            if self.left == 0 {
                self.inner.read_line(&mut line)?;
                self.done = true;
                return Ok(0);
            }
        }
        let most = target.len().min(self.left as usize);
        let count = self.inner.read(&mut target[..most])?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        if self.left == 0 {
            self.inner.read_line(&mut String::new())?;
        }
        Ok(count)
    }
}

/// git over HTTPS: the real server program, behind basic authentication.
fn backend(asked: &Asked, kind: &str, body: &mut dyn Read, root: &Path) -> Answer {
    let wanted = format!("Basic {}", base64(format!("x-access-token:{TOKEN}").as_bytes()));
    if asked.auth != wanted {
        return Answer { status: 401, headers: Vec::new(), body: b"bad credentials".to_vec() };
    }
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let mut child = Command::new("git")
        .arg("http-backend")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("REMOTE_USER", "agent")
        .env("REQUEST_METHOD", &asked.method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", kind)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _ = std::io::copy(body, child.stdin.as_mut().unwrap());
    let output = child.wait_with_output().unwrap().stdout;
    let split = output.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(output.len().saturating_sub(4));
    let mut answer = Answer { status: 200, headers: Vec::new(), body: output[split + 4..].to_vec() };
    for line in String::from_utf8_lossy(&output[..split]).lines() {
        let Some((name, value)) = line.split_once(": ") else { continue };
        match name {
            "Status" => answer.status = value.split(' ').next().unwrap().parse().unwrap(),
            _ => answer.headers.push((name.to_owned(), value.to_owned())),
        }
    }
    answer
}

fn base64(bytes: &[u8]) -> String {
    const TABLE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let letter = TABLE[(word >> (18 - 6 * place)) as usize & 63] as char;
            out.push(if place <= group.len() { letter } else { '=' });
        }
    }
    out
}
