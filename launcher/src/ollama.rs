//! An Ollama server, asked from the host over plain HTTP: whether it is there, and what models it has. It is the user's own, but
//! what it says is still bounded and checked.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

pub(crate) const PORT: u16 = 11434;
const PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_MAX: u64 = 4 << 20;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl FromStr for Server {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Server> {
        let wrong = || {
            anyhow!(
                "cannot use '{text}' as a server: expected a name or an address, as in 192.168.1.100 or gpu.lan:11434"
            )
        };
        let rest = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
            None => (rest, PORT),
        };
        let good = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if port == 0 || host.len() > 253 || !host.split('.').all(good) || host.starts_with('-') {
            return Err(wrong());
        }
        Ok(Server { host: host.to_owned(), port })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Server {
    /// The version that it says it is.
    pub(crate) fn version(&self) -> Result<String> {
        let answer = self.get("/api/version")?;
        answer["version"].as_str().map(str::to_owned).ok_or_else(|| anyhow!("'{self}' does not answer as Ollama does"))
    }

    /// The names of the models that it has, in order.
    pub(crate) fn models(&self) -> Result<Vec<String>> {
        let answer = self.get("/api/tags")?;
        let models = answer["models"].as_array().ok_or_else(|| anyhow!("'{self}' does not answer as Ollama does"))?;
        let mut names: Vec<String> = models
            .iter()
            .filter_map(|model| model["name"].as_str())
            .filter(|name| is_model(name))
            .map(str::to_owned)
            .collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Whether something listens there.
    pub(crate) fn is_open(&self) -> bool {
        self.connect().is_ok()
    }

    fn connect(&self) -> Result<TcpStream> {
        let cannot = || format!("cannot reach '{self}'");
        let addresses: Vec<SocketAddr> =
            (self.host.as_str(), self.port).to_socket_addrs().with_context(cannot)?.collect();
        let mut last = anyhow!("no address");
        for address in addresses {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => return Ok(stream),
                Err(e) => last = e.into(),
            }
        }
        Err(last.context(cannot()))
    }

    /// The old protocol on purpose: the answer ends with the connection, and has no chunks.
    fn get(&self, path: &str) -> Result<Value> {
        let mut stream = self.connect()?;
        let cannot = || format!("cannot ask '{self}'");
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .with_context(cannot)?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n")
            .with_context(cannot)?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer).with_context(cannot)?;
        let end = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .ok_or_else(|| anyhow!("'{self}' does not speak HTTP"))?;
        let status = String::from_utf8_lossy(&answer[..end]).split_whitespace().nth(1).map(str::to_owned);
        if status.as_deref() != Some("200") {
            bail!("'{self}' answers {path} with {}", status.unwrap_or_default());
        }
        serde_json::from_slice(&answer[end + 4..]).map_err(|_| anyhow!("'{self}' does not answer as Ollama does"))
    }
}

/// Whether this can be a model's name.
pub(crate) fn is_model(name: &str) -> bool {
    !name.is_empty() && name.len() <= 200 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/@".contains(&b))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn answering(answer: &'static str) -> Server {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // All of the request: what is left unread makes the end of the connection an error for the other side.
            let (mut request, mut byte) = (Vec::new(), [0]);
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
                request.extend(byte);
            }
            stream.write_all(answer.as_bytes()).unwrap();
        });
        Server { host: "127.0.0.1".into(), port }
    }

    #[test]
    fn a_server_is_written_as_people_write_it() {
        for (text, server) in [
            ("192.168.1.100", "192.168.1.100:11434"),
            ("gpu.lan:8080", "gpu.lan:8080"),
            ("http://gpu.lan:11434/", "gpu.lan:11434"),
        ] {
            assert_eq!(text.parse::<Server>().unwrap().to_string(), server);
        }
        for text in ["", "a b", "https://x", "x:0", "x:99999", "x\ny", "-x", "a..b", "user@x", "x/y"] {
            assert!(text.parse::<Server>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn models_are_read_and_odd_names_left_out() {
        let server = answering(
            "HTTP/1.0 200 OK\r\n\r\n{\"models\":[{\"name\":\"b:7b\"},{\"name\":\"a\\n\"},{\"name\":\"a:1b\"}]}",
        );
        assert_eq!(server.models().unwrap(), ["a:1b", "b:7b"]);
    }

    #[test]
    fn another_server_is_not_taken_for_ollama() {
        for answer in [
            "HTTP/1.0 404 Not Found\r\n\r\n",
            "SSH-2.0-x\r\n",
            "HTTP/1.0 200 OK\r\n\r\n[]",
            "HTTP/1.0 200 OK\r\n\r\n<html>",
        ] {
            assert!(answering(answer).models().is_err(), "{answer:?}");
        }
    }
}
