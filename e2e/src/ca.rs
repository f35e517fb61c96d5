//! A throw-away certificate authority: made once for a run, it signs a certificate for any name on demand.
//! Its private key never leaves the run's own folder; nothing outside the run trusts it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

const CERT: &str = "ca.pem";
const KEY: &str = "ca.key";

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate chain of one and its key, both in DER.
pub struct Leaf {
    pub cert: Vec<u8>,
    pub key: Vec<u8>,
}

impl Authority {
    /// Writes `ca.pem` and `ca.key` into `dir`, which must exist.
    pub fn create(dir: &Path) -> Result<()> {
        let key = KeyPair::generate().context("cannot make the key of a CA")?;
        let cert = authority().self_signed(&key).context("cannot make the certificate of a CA")?;
        for (name, text) in [(CERT, cert.pem()), (KEY, key.serialize_pem())] {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write '{}'", path.display()))?;
        }
        Ok(())
    }

    /// The authority that `create` left in `dir`.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(KEY);
        let pem = fs::read_to_string(&path).with_context(|| format!("cannot read '{}'", path.display()))?;
        let key = KeyPair::from_pem(&pem).with_context(|| format!("cannot read a key from '{}'", path.display()))?;
        Ok(Self { issuer: Issuer::new(authority(), key) })
    }

    /// A certificate for the one name `host`.
    pub fn sign(&self, host: &str) -> Result<Leaf> {
        let mut params = CertificateParams::new(vec![host.to_owned()])
            .with_context(|| format!("cannot make a certificate for '{host}'"))?;
        params.distinguished_name = named(host);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf { cert: cert.der().to_vec(), key: key.serialize_der() })
    }
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("throw-away CA of a test run");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
