//! TLS for any name: a certificate for the name in the greeting, signed on the spot by the run's own authority.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use e2e::ca::Authority;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

struct Certificates {
    authority: Authority,
    made: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

pub(crate) fn acceptor(ca: &Path) -> Result<TlsAcceptor> {
    let certificates = Certificates { authority: Authority::load(ca)?, made: Mutex::new(HashMap::new()) };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or("no-name.invalid").to_ascii_lowercase();
        let mut made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(key) = made.get(&name) {
            return Some(key.clone());
        }
        let leaf = self.authority.sign(&name).ok()?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf.key));
        let key = CertifiedKey::from_der(vec![CertificateDer::from(leaf.cert)], key, &ring::default_provider()).ok()?;
        let key = Arc::new(key);
        made.insert(name, key.clone());
        Some(key)
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certificates")
    }
}
