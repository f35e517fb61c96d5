//! git's smart HTTP for libgit2, over the one HTTP client. libgit2 is built without a TLS of its own: through a proxy that
//! one can hang on an untrusted certificate, and it loses the server's words. What is pushed is streamed, never held.
#![expect(unsafe_code, reason = "git2::transport::register, once, before anything uses a transport")]

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream, Transport};
use reqwest::{Response, StatusCode, header};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::failure::{Code, Failure, Result};
use crate::git::Credential;
use crate::http::Http;

/// What is sent at once, and how much may wait.
const CHUNK: usize = 64 << 10;
const WAITING: usize = 4;
/// A server that does not answer: while refs are listed, and after a pack has been sent.
const LISTING: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(900);

/// The connection to one remote. Its calls block: use it from a thread that is not the runtime's.
#[derive(Clone)]
pub(crate) struct Line {
    http: Http,
    credential: Credential,
    handle: Handle,
    /// What the server said, because libgit2 passes on only that it failed.
    failure: Arc<Mutex<Option<Failure>>>,
    /// Where a renamed repository is now.
    moved: Arc<Mutex<Option<String>>>,
    given_up: Arc<AtomicBool>,
}

impl Line {
    /// Makes this the way libgit2 reaches every `https:` remote of the process. To be called once.
    pub(crate) fn install(http: Http, credential: Credential) -> Result<Line> {
        let (failure, moved, given_up) = (Arc::default(), Arc::default(), Arc::default());
        let line = Line { http, credential, handle: Handle::current(), failure, moved, given_up };
        let shared = line.clone();
        // SAFETY: no transport is in use yet, and nothing else registers one.
        let registered =
            unsafe { git2::transport::register("https", move |remote| Transport::smart(remote, true, shared.clone())) };
        registered.map_err(|error| {
            Failure::new(Code::Internal, format!("cannot register a transport: {}", error.message()))
        })?;
        Ok(line)
    }

    /// The failure that libgit2's error stands for.
    pub(crate) fn failure(&self, error: &git2::Error) -> Failure {
        let kept = self.failure.lock().ok().and_then(|mut kept| kept.take());
        kept.unwrap_or_else(|| Failure::new(Code::Network, crate::failure::cause(error.message())))
    }

    /// Makes what is under way fail soon.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    fn fail(&self, failure: Failure) -> io::Error {
        let error = io::Error::other(failure.message.clone());
        if let Ok(mut kept) = self.failure.lock() {
            kept.get_or_insert(failure);
        }
        error
    }

    fn check(&self) -> io::Result<()> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(self.fail(Failure::new(Code::Cancelled, "cancelled")));
        }
        Ok(())
    }

    /// Lists the remote's refs; follows a renamed repository, but never to another host.
    async fn list(&self, url: &str, service: &str) -> std::result::Result<Response, Failure> {
        let mut base = url.trim_end_matches('/').to_owned();
        for _ in 0..5 {
            let request = self.http.client.get(format!("{base}/info/refs?service={service}"));
            let request = request.basic_auth(&self.credential.user, Some(self.credential.token.expose()));
            let sent = tokio::time::timeout(LISTING, request.header(header::PRAGMA, "no-cache").send());
            let response = match sent.await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(self.http.explain(&host_of(&base), &error).await),
                Err(_) => {
                    return Err(Failure::new(Code::Network, format!("cannot reach '{}': no answer", host_of(&base))));
                }
            };
            if !response.status().is_redirection() {
                return check(response, service, "advertisement").await;
            }
            let target = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = target.and_then(|target| target.split_once("/info/refs")).map(|(next, _)| next.to_owned());
            base = next.filter(|next| next.starts_with("https://") && host_of(next) == host_of(&base)).ok_or_else(
                || {
                    Failure::new(
                        Code::RepositoryNotFound,
                        format!("cannot follow '{}' to another host", host_of(&base)),
                    )
                },
            )?;
            if let Ok(mut moved) = self.moved.lock() {
                *moved = Some(base.clone());
            }
        }
        Err(Failure::new(Code::RepositoryNotFound, format!("cannot follow '{}': too many redirects", host_of(&base))))
    }
}

impl SmartSubtransport for Line {
    fn action(&self, url: &str, action: Service) -> std::result::Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        let service = match action {
            Service::UploadPackLs | Service::UploadPack => "git-upload-pack",
            Service::ReceivePackLs | Service::ReceivePack => "git-receive-pack",
        };
        let failed = |failure: Failure| git2::Error::from_str(&self.fail(failure).to_string());
        let state = match action {
            Service::UploadPackLs | Service::ReceivePackLs => {
                State::Receiving(Box::new(self.handle.block_on(self.list(url, service)).map_err(failed)?))
            }
            Service::UploadPack | Service::ReceivePack => State::Idle,
        };
        let moved = self.moved.lock().ok().and_then(|moved| moved.clone());
        let url = moved.unwrap_or_else(|| url.trim_end_matches('/').to_owned());
        Ok(Box::new(Exchange { line: self.clone(), url, service, state, buffer: Bytes::new(), pending: Vec::new() }))
    }

    fn close(&self) -> std::result::Result<(), git2::Error> {
        Ok(())
    }
}

/// One request and its answer.
struct Exchange {
    line: Line,
    url: String,
    service: &'static str,
    state: State,
    /// Received, not yet read.
    buffer: Bytes,
    /// Written, not yet sent.
    pending: Vec<u8>,
}

enum State {
    Idle,
    Sending { body: mpsc::Sender<Bytes>, answer: JoinHandle<reqwest::Result<Response>> },
    Receiving(Box<Response>),
    Over,
}

impl Exchange {
    fn begin(&mut self) {
        let (body, received) = mpsc::channel(WAITING);
        let request = self
            .line
            .http
            .client
            .post(format!("{}/{}", self.url, self.service))
            .basic_auth(&self.line.credential.user, Some(self.line.credential.token.expose()))
            .header(header::CONTENT_TYPE, format!("application/x-{}-request", self.service))
            .header(header::ACCEPT, format!("application/x-{}-result", self.service))
            .body(reqwest::Body::wrap(Chunks { received }));
        self.state = State::Sending { body, answer: self.line.handle.spawn(request.send()) };
    }

    fn send(&mut self) -> io::Result<()> {
        self.line.check()?;
        if matches!(self.state, State::Idle) {
            self.begin();
        }
        if let State::Sending { body, .. } = &self.state
            && !self.pending.is_empty()
        {
            let chunk = Bytes::from(std::mem::take(&mut self.pending));
            if body.blocking_send(chunk).is_err() {
                // The server has answered, or the connection broke, before everything was sent: the answer says which.
                self.answer()?;
                return Err(self.line.fail(Failure::new(Code::Network, "the server ended the connection")));
            }
        }
        Ok(())
    }

    fn answer(&mut self) -> io::Result<()> {
        if !matches!(self.state, State::Sending { .. }) {
            return Ok(());
        }
        let State::Sending { body, answer } = std::mem::replace(&mut self.state, State::Over) else { return Ok(()) };
        drop(body);
        let line = self.line.clone();
        let received = line.handle.block_on(async {
            match tokio::time::timeout(ANSWER, answer).await {
                Ok(Ok(Ok(response))) => check(response, self.service, "result").await,
                Ok(Ok(Err(error))) => Err(line.http.explain(&host_of(&self.url), &error).await),
                Ok(Err(_)) | Err(_) => {
                    Err(Failure::new(Code::Network, format!("no answer from '{}'", host_of(&self.url))))
                }
            }
        });
        self.state = State::Receiving(Box::new(received.map_err(|failure| line.fail(failure))?));
        Ok(())
    }
}

impl Write for Exchange {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Exchange {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if !self.pending.is_empty() || matches!(self.state, State::Idle) {
            self.send()?;
        }
        self.answer()?;
        self.line.check()?;
        while self.buffer.is_empty() {
            let State::Receiving(response) = &mut self.state else { return Ok(0) };
            let line = self.line.clone();
            let chunk = line.handle.block_on(async { tokio::time::timeout(ANSWER, response.chunk()).await });
            match chunk {
                Ok(Ok(Some(bytes))) => self.buffer = bytes,
                Ok(Ok(None)) => return Ok(0),
                Ok(Err(_)) | Err(_) => {
                    let text = format!("the connection to '{}' broke", host_of(&self.url));
                    return Err(line.fail(Failure::new(Code::Network, text)));
                }
            }
        }
        let count = target.len().min(self.buffer.len());
        target[..count].copy_from_slice(&self.buffer.split_to(count));
        Ok(count)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // A pack that was not written to its end must not look like a whole one.
        if let State::Sending { answer, .. } = &self.state {
            answer.abort();
        }
    }
}

/// A request's body that comes through a channel.
struct Chunks {
    received: mpsc::Receiver<Bytes>,
}

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<http_body::Frame<Bytes>>>> {
        self.received.poll_recv(context).map(|chunk| chunk.map(|bytes| Ok(http_body::Frame::data(bytes))))
    }
}

/// The server's refusals in our words.
async fn check(response: Response, service: &str, kind: &str) -> std::result::Result<Response, Failure> {
    let status = response.status();
    let host = response.url().host_str().unwrap_or_default().to_owned();
    let typed = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if status == StatusCode::OK && typed == format!("application/x-{service}-{kind}") {
        return Ok(response);
    }
    let path = response.url().path().split("/info/refs").next().unwrap_or_default().trim_matches('/').to_owned();
    let said = tokio::time::timeout(Duration::from_secs(10), response.text()).await;
    let said = said.ok().and_then(|text| text.ok()).unwrap_or_default();
    let said = crate::stream::clip(said.lines().next().unwrap_or_default().trim(), 200);
    let told = if said.is_empty() || said.starts_with('<') { String::new() } else { format!(": {said}") };
    let failure = |code, what: &str| Failure::new(code, format!("{what} ({status}{told})"));
    Err(match status {
        StatusCode::UNAUTHORIZED => failure(Code::TokenRejected, &format!("'{host}' does not accept the token"))
            .hint("the token may have expired; make a new one and start a new session"),
        StatusCode::FORBIDDEN => failure(Code::PushForbidden, &format!("cannot push to '{path}' on '{host}'"))
            .hint("the token needs Contents: read and write on this repository"),
        StatusCode::NOT_FOUND => {
            failure(Code::RepositoryNotFound, &format!("cannot find '{path}' on '{host}', or the token may not see it"))
                .hint("add this repository to the token, with Contents and Pull requests: read and write")
        }
        status if status.is_server_error() => failure(Code::GithubDown, &format!("'{host}' has a problem")),
        StatusCode::OK => Failure::new(Code::RemoteUnsupported, format!("'{host}' does not speak git at '{path}'")),
        _ => failure(Code::Network, &format!("'{host}' refused '{path}'")),
    })
}

fn host_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    authority.rsplit('@').next().unwrap_or(authority).to_owned()
}
