//! The one HTTP client: TLS by rustls, through the proxy that the environment names, for git and for GitHub's API alike.
//! Turns what can go wrong on the way into a sentence that says where it went wrong.

use std::error::Error;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::Proxy;
use crate::failure::{Code, Failure, OrFail, Result, cause};

/// Client and proxy, cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    pub(crate) client: reqwest::Client,
    proxy: Proxy,
}

impl Http {
    pub(crate) fn new(proxy: &Proxy) -> Result<Self> {
        // A second call finds it installed: no harm.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("pi-subagent/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(15))
            .redirect(reqwest::redirect::Policy::none())
            .https_only(true)
            .http1_only()
            .no_proxy();
        if let Some(url) = &proxy.url {
            let set =
                reqwest::Proxy::https(url).or_fail(Code::Network, || "cannot use the proxy of HTTPS_PROXY".into())?;
            let exceptions = proxy.exceptions.as_deref().and_then(reqwest::NoProxy::from_string);
            builder = builder.proxy(set.no_proxy(exceptions));
        }
        let client = builder.build().map_err(|error| {
            Failure::new(Code::Network, format!("cannot set up TLS: {}", deepest(&error)))
                .hint("look at the certificate bundle that SSL_CERT_FILE names")
        })?;
        Ok(Http { client, proxy: proxy.clone() })
    }

    /// Says why a request did not get through. A proxy's refusal is asked for again, because the client keeps no word of it.
    pub(crate) async fn explain(&self, host: &str, error: &(dyn Error + 'static)) -> Failure {
        let said = deepest(error);
        if said.contains("UnknownIssuer") || said.contains("invalid peer certificate") {
            return Failure::new(Code::Network, format!("cannot trust the certificate of '{host}': {said}"))
                .hint("behind an intercepting proxy, give its CA to pi-docker with PI_DOCKER_EXTRA_CA");
        }
        if let Some(refused) = self.refusal(host).await {
            return refused;
        }
        Failure::new(Code::Network, format!("cannot reach '{host}': {said}"))
    }

    async fn refusal(&self, host: &str) -> Option<Failure> {
        let url = reqwest::Url::parse(self.proxy.url.as_deref()?).ok()?;
        let address = (url.host_str()?.to_owned(), url.port_or_known_default()?);
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect(address).await?;
            let port = if host.contains(':') { "" } else { ":443" };
            let request = format!("CONNECT {host}{port} HTTP/1.1\r\nHost: {host}{port}\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = [0; 256];
            let count = stream.read(&mut answer).await?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer[..count]).into_owned())
        };
        match tokio::time::timeout(Duration::from_secs(5), ask).await {
            Ok(Ok(answer)) => {
                let status = answer.split_whitespace().nth(1)?;
                (!status.starts_with('2')).then(|| {
                    let name = host.split(':').next().unwrap_or(host);
                    let failure =
                        Failure::new(Code::Network, format!("cannot reach '{host}': the proxy answered {status}"));
                    match status {
                        "403" => failure.hint(format!("allow it on the host with: pi-docker allow {name}")),
                        _ => failure,
                    }
                })
            }
            Ok(Err(error)) => {
                let said = cause(&error.to_string());
                Some(Failure::new(Code::Network, format!("cannot reach '{host}': the proxy does not answer: {said}")))
            }
            Err(_) => Some(Failure::new(Code::Network, format!("cannot reach '{host}': the proxy does not answer"))),
        }
    }
}

/// The innermost cause: the outer ones only say that a request failed, and may hold an address.
fn deepest(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(inner) = error.source() {
        error = inner;
    }
    cause(&error.to_string())
}
