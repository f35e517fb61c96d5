//! github.com: git over HTTPS, by the real `git http-backend` over bare repositories, streaming both ways. The token decides
//! who may read and who may push; the repositories' own hooks decide the rest.

use std::io;
use std::process::Stdio;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::World;
use crate::http::{self, Answer, Asked};
use crate::scenario::{Access, Reply, Scenario};

pub(crate) async fn answer(world: &World, scenario: &Scenario, asked: Asked<'_>, request: Request<Incoming>) -> Answer {
    let github = &scenario.github;
    let presented = http::presented(request.headers());
    let auth = http::label(presented.as_deref(), std::slice::from_ref(&github.token));
    let agent = request.headers().get("user-agent").and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let note = json!({ "agent": agent });
    let refuse = |status: u16, text: &'static str| {
        let mut response = Response::new(http::bytes(text));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
        asked.record(world, response.status(), auth, note.clone());
        http::with(response, &[("content-type", "text/plain; charset=utf-8")])
    };
    let fault = scenario.fault(&world.faults, "github.com", &asked.method, &asked.path);
    match fault {
        Some(Reply::Cut) => {
            refuse(499, "");
            return Err(io::Error::other("cut"));
        }
        Some(Reply::Stall) => {
            refuse(499, "");
            std::future::pending::<()>().await;
        }
        Some(Reply::Forbidden) => return Ok(refuse(403, "Permission denied.\n")),
        Some(Reply::NotFound) => return Ok(refuse(404, "Repository not found.\n")),
        Some(Reply::BadGateway) => return Ok(refuse(502, "<html>Unicorn!</html>\n")),
        Some(Reply::TooMany | Reply::RateLimited | Reply::SecondaryLimited) => {
            return Ok(http::with(refuse(429, "Too many requests.\n"), &[("retry-after", "1")]));
        }
        Some(Reply::BadCredentials) => return Ok(login(refuse(401, "Invalid username or token.\n"))),
        Some(Reply::Broken | Reply::Invalid) => return Ok(refuse(500, "Internal server error.\n")),
        Some(Reply::Lost) | None => {}
    }

    let pushing = asked.path.contains("git-receive-pack");
    if auth == "wrong" {
        return Ok(login(refuse(401, "Invalid username or token. Password authentication is not supported.\n")));
    }
    if auth == "none" && (pushing || !github.public) {
        return Ok(login(refuse(401, "Repository not found.\n")));
    }
    let Some((path, query)) = backend_path(world, &asked.path) else {
        return Ok(refuse(404, "Repository not found.\n"));
    };
    let may = if auth == "token ok" { github.contents } else { Access::Read };
    if pushing && may < Access::Write {
        return Ok(refuse(403, "Permission to the repository denied to octo.\n"));
    }
    if may < Access::Read && !github.public {
        return Ok(refuse(404, "Repository not found.\n"));
    }
    let user = if auth == "token ok" { github.login.as_str() } else { "" };
    let response = backend(world, &path, &query, user, request).await?;
    asked.record(world, response.status(), auth, note);
    if fault == Some(Reply::Lost) {
        // The push is done; only its answer is lost.
        let _ = response.into_body().collect().await;
        return Err(io::Error::other("lost"));
    }
    Ok(response)
}

fn login(response: Response<http::Body>) -> Response<http::Body> {
    http::with(response, &[("www-authenticate", "Basic realm=\"GitHub\"")])
}

/// The path and query for the backend; the folder's `.git` may be left out, as on the real host.
fn backend_path(world: &World, asked: &str) -> Option<(String, String)> {
    let (path, query) = asked.split_once('?').unwrap_or((asked, ""));
    let mut parts = path.trim_start_matches('/').splitn(3, '/');
    let (owner, name, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let name = name.strip_suffix(".git").unwrap_or(name);
    let plain = |part: &str| !part.is_empty() && part != ".." && !part.contains('%');
    if !plain(owner) || !plain(name) || rest.contains("..") {
        return None;
    }
    world
        .repos
        .join(owner)
        .join(format!("{name}.git"))
        .is_dir()
        .then(|| (format!("/{owner}/{name}.git/{rest}"), query.to_owned()))
}

/// Runs the backend for one request and returns its answer as soon as its head is known.
async fn backend(
    world: &World,
    path: &str,
    query: &str,
    user: &str,
    request: Request<Incoming>,
) -> io::Result<Response<http::Body>> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("GIT_PROJECT_ROOT", &world.repos)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", request.method().as_str())
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("CONTENT_TYPE", header("content-type"));
    for (name, header_name) in [
        ("CONTENT_LENGTH", "content-length"),
        ("HTTP_CONTENT_ENCODING", "content-encoding"),
        ("GIT_PROTOCOL", "git-protocol"),
        ("REMOTE_USER", ""),
    ] {
        let value = if name == "REMOTE_USER" { user } else { header(header_name) };
        if !value.is_empty() {
            command.env(name, value);
        }
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("git http-backend has no pipes"));
    };
    tokio::spawn(feed(request.into_body(), stdin));
    let mut stdout = BufReader::new(stdout);
    let (status, headers) = head(&mut stdout).await?;
    let (out, channel) = Channel::new(16);
    tokio::spawn(drain(child, stdout, out));
    let mut response = Response::new(channel.boxed());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.headers_mut().remove(AUTHORIZATION);
    Ok(response)
}

/// The request's body into the backend, as it comes.
async fn feed(mut body: Incoming, mut stdin: ChildStdin) {
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data()
            && stdin.write_all(&data).await.is_err()
        {
            return;
        }
    }
}

/// The head of a CGI answer; without a `Status` it is 200.
async fn head(stdout: &mut BufReader<ChildStdout>) -> io::Result<(StatusCode, HeaderMap)> {
    let (mut status, mut headers) = (StatusCode::OK, HeaderMap::new());
    loop {
        let mut line = String::new();
        if stdout.read_line(&mut line).await? == 0 {
            return Err(io::Error::other("git http-backend said nothing"));
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok((status, headers));
        }
        let Some((name, value)) = line.split_once(": ") else { continue };
        if name.eq_ignore_ascii_case("status") {
            status = value.get(..3).and_then(|code| code.parse().ok()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        } else if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            headers.append(name, value);
        }
    }
}

/// The backend's answer to the client; the backend is ended if the client goes.
async fn drain(mut child: Child, mut stdout: BufReader<ChildStdout>, mut out: Sender<Bytes, io::Error>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stdout.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) => {
                if out.send_data(Bytes::copy_from_slice(&buffer[..read])).await.is_err() {
                    let _ = child.kill().await;
                    return;
                }
            }
            Err(error) => {
                out.abort(error);
                break;
            }
        }
    }
    let _ = child.wait().await;
}
