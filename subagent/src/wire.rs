//! git's smart HTTP over the one HTTP client: asks what a remote has, and sends it a pack as it is made, never held. libgit2
//! has no network here: through a proxy its own TLS can hang on an untrusted certificate, it loses the server's words, and
//! what it pushes it builds in memory.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::{Response, StatusCode, header};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use crate::failure::{Code, Failure, OrFail, Result};
use crate::git::{Credential, Stream};
use crate::http::Http;
use crate::pkt::Advertisement;

const SERVICE: &str = "git-receive-pack";
/// Of an answer; a list of a hundred thousand refs is below it.
const LARGEST: usize = 32 << 20;
const LISTING: Duration = Duration::from_secs(60);
/// A server may check a large pack for long before it answers.
const ANSWER: Duration = Duration::from_secs(900);
const CHUNK: usize = 64 << 10;
const WAITING: usize = 4;

/// The connection to one remote.
#[derive(Clone)]
pub(crate) struct Line {
    http: Http,
    credential: Credential,
    url: String,
}

impl Line {
    pub(crate) fn new(http: Http, credential: Credential, host: &str, path: &str) -> Self {
        Line { http, credential, url: format!("https://{host}/{path}") }
    }

    /// Asks as one who wants to push: the answer shows the branches, and that the token may. Follows a renamed repository,
    /// but never to another host.
    pub(crate) async fn advertise(&mut self) -> Result<Advertisement> {
        for _ in 0..5 {
            let request = self.http.client.get(format!("{}/info/refs?service={SERVICE}", self.url));
            let request = request.basic_auth(&self.credential.user, Some(self.credential.token.expose()));
            let answer = self.within(LISTING, request.header(header::PRAGMA, "no-cache").send()).await?;
            if !answer.status().is_redirection() {
                let bytes = self.body(answer, "advertisement", LISTING).await?;
                return Advertisement::parse(&bytes, SERVICE).ok_or_else(|| {
                    Failure::new(Code::Network, format!("the list of '{}' was cut short", host_of(&self.url)))
                });
            }
            let target = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = target.and_then(|target| target.split_once("/info/refs")).map(|(next, _)| next.to_owned());
            let here = host_of(&self.url);
            self.url = next.filter(|next| next.starts_with("https://") && host_of(next) == here).ok_or_else(|| {
                Failure::new(Code::RepositoryNotFound, format!("cannot follow '{here}' to another host"))
            })?;
        }
        Err(Failure::new(
            Code::RepositoryNotFound,
            format!("cannot follow '{}': too many redirects", host_of(&self.url)),
        ))
    }

    /// Sends the commands and then the pack, as git makes it; gives the server's report.
    pub(crate) async fn send(&self, commands: Vec<u8>, mut pack: Stream) -> Result<Vec<u8>> {
        let (body, received) = mpsc::channel(WAITING);
        let request = self
            .http
            .client
            .post(format!("{}/{SERVICE}", self.url))
            .basic_auth(&self.credential.user, Some(self.credential.token.expose()))
            .header(header::CONTENT_TYPE, format!("application/x-{SERVICE}-request"))
            .header(header::ACCEPT, format!("application/x-{SERVICE}-result"))
            .body(reqwest::Body::wrap(Chunks { received }));
        let moved = Cell::new(Instant::now());
        let feed = async {
            let mut chunk = commands;
            // A server that has answered early, or is gone, takes no more; its answer says why.
            while body.send(Ok(Bytes::from(chunk))).await.is_ok() {
                moved.set(Instant::now());
                chunk = vec![0; CHUNK];
                let read = pack.stdout.read(&mut chunk).await;
                match read.or_fail(Code::Internal, || "cannot read the pack".into())? {
                    0 => {
                        let ended = pack.end().await;
                        if let Err(failure) = &ended {
                            // A pack that is not whole must not look like one.
                            let _ = body.send(Err(io::Error::other(failure.message.clone()))).await;
                        }
                        drop(body);
                        return ended;
                    }
                    count => chunk.truncate(count),
                }
            }
            Ok(())
        };
        let sending = async {
            match request.send().await {
                Ok(answer) => self.body(answer, "result", ANSWER).await,
                Err(error) => Err(self.http.explain(&host_of(&self.url), &error).await),
            }
        };
        let stalled = async {
            while moved.get().elapsed() < ANSWER {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        };
        tokio::select! {
            (fed, answered) = async { tokio::join!(feed, sending) } => fed.and(answered),
            () = stalled => Err(Failure::new(Code::Network, format!("no answer from '{}'", host_of(&self.url)))),
        }
    }

    async fn within<T>(&self, limit: Duration, work: impl Future<Output = reqwest::Result<T>>) -> Result<T> {
        match tokio::time::timeout(limit, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.http.explain(&host_of(&self.url), &error).await),
            Err(_) => Err(Failure::new(Code::Network, format!("cannot reach '{}': no answer", host_of(&self.url)))),
        }
    }

    /// The whole body of an answer that is what was asked for.
    async fn body(&self, answer: Response, kind: &str, limit: Duration) -> Result<Vec<u8>> {
        let mut answer = check(answer, kind).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = self.within(limit, answer.chunk()).await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > LARGEST {
                return Err(Failure::new(
                    Code::RemoteUnsupported,
                    format!("'{}' answers too much", host_of(&self.url)),
                ));
            }
        }
        Ok(bytes)
    }
}

/// A request's body that comes through a channel.
struct Chunks {
    received: mpsc::Receiver<io::Result<Bytes>>,
}

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<http_body::Frame<Bytes>>>> {
        self.received.poll_recv(context).map(|chunk| chunk.map(|bytes| bytes.map(http_body::Frame::data)))
    }
}

/// The server's refusals in our words.
async fn check(answer: Response, kind: &str) -> Result<Response> {
    let status = answer.status();
    let host = answer.url().host_str().unwrap_or_default().to_owned();
    let typed = answer.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if status == StatusCode::OK && typed == format!("application/x-{SERVICE}-{kind}") {
        return Ok(answer);
    }
    let path =
        answer.url().path().trim_end_matches("/info/refs").trim_end_matches(SERVICE).trim_matches('/').to_owned();
    let said = tokio::time::timeout(Duration::from_secs(10), answer.text()).await;
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
        StatusCode::TOO_MANY_REQUESTS => failure(Code::RateLimited, &format!("'{host}' limits how much it is asked")),
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
